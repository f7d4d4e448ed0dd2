"""Batch mode makes the same dataset as direct requests, at half the price."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from malt.config.roles import Fallback, Role
from malt.config.spec import RunSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.build import build
from malt.engine.job import check_models, read_job
from malt.errors import ConfigError
from malt.llm.batch.submit import BatchSize
from malt.trees.pipeline import NOTHING_MISSING
from tests.asking import asked_directly
from tests.batches import BatchProvider, StandInBatch
from tests.batching import QUICK, grown
from tests.batching import provider as provider
from tests.batching import spec as spec
from tests.mishaps import Asked, Fault, context_overflow, prompt_filtered, rate_limited, refusal, server_error, when
from tests.providers import ScriptedProvider

PER_QUESTION = 1 + 3 + 9


def test_each_level_of_all_trees_is_one_batch(provider: BatchProvider, spec: RunSpec) -> None:
    shortfall, tally = grown(spec)
    assert shortfall == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 6, 18]
    assert tally.total.requests == 2 * PER_QUESTION
    assert tally.total.completions == 2 * (3 + 9 + 27)


def published(spec: RunSpec) -> DatasetVersion:
    version, failures, _ = build(read_job(spec))
    assert version is not None
    assert failures == ()
    return version


def directly(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"run": spec.run.model_copy(update={"mode": "direct"})})


def test_the_dataset_is_the_one_that_direct_requests_make(
    provider: BatchProvider, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(spec)
    batched = published(spec)
    assert provider.calls["download"] == len(provider.batches)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "other"))
    asked_directly(directly(spec), "direct")
    assert published(directly(spec)).manifest.content_sha256 == batched.manifest.content_sha256


@pytest.mark.parametrize(
    "extra",
    [{}, {"user": "u"}, {"top_k": 4}, {"extra_body": {"min_p": 0.1}}, {"metadata": {"a": "b"}}, {"tags": ["a"]}],
    ids=str,
)
def test_an_item_asks_for_what_a_direct_request_would(
    provider: BatchProvider, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, JsonValue]
) -> None:
    with_extra = with_role(spec, "generator", extra=extra)
    grown(with_extra)
    items = bodies(provider)
    provider.requests.clear()
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "other"))
    asked_directly(directly(with_extra), "direct")
    assert bodies(provider) == items


@pytest.mark.parametrize("extra", [{"extra_headers": {"X-Team": "a"}}, {"organization": "org-1"}], ids=str)
def test_a_header_that_items_cannot_have_is_refused_before_anything_is_asked(
    spec: RunSpec, extra: dict[str, JsonValue]
) -> None:
    told = with_role(spec, "generator", extra=extra)
    check_models(directly(told))
    with pytest.raises(ConfigError, match="sent as a header, and the items of a batch have none"):
        check_models(told)


def bodies(provider: BatchProvider) -> list[str]:
    return sorted(json.dumps(asked.body, sort_keys=True) for asked in provider.requests)


def test_stored_samples_are_not_requested_again(provider: BatchProvider, spec: RunSpec) -> None:
    grown(spec)
    made = len(provider.batches)
    shortfall, tally = grown(spec, run="two")
    assert shortfall == NOTHING_MISSING
    assert len(provider.batches) == made
    assert tally.total.cached_completions == 2 * (3 + 9 + 27)
    asked_directly(directly(spec), "direct")
    assert provider.calls["create"] == made


def with_role(spec: RunSpec, role: str, **changes: object) -> RunSpec:
    declared = getattr(spec.roles, role).model_copy(update=changes)
    return spec.model_copy(update={"roles": spec.roles.model_copy(update={role: declared})})


def models(provider: BatchProvider, batch: StandInBatch) -> set[str]:
    return {line["body"]["model"] for line in provider.lines(batch)}


def question(spec: RunSpec, number: int) -> str:
    return read_job(spec).questions[number].question_id


overloaded = server_error(503)


def is_refiner(asked: Asked) -> bool:
    return asked.model == "refiner-model"


def test_answers_of_an_expired_batch_are_kept_and_the_rest_is_requested_again(
    provider: BatchProvider, spec: RunSpec
) -> None:
    provider.stages, provider.answers_before_the_end = ["in_progress", "expired"], 1
    provider.later_stages = {1: ["completed"]}
    assert grown(spec)[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 1, 3, 3, 9, 9]
    assert set(provider.paid.values()) == {1}


def test_only_failed_items_are_asked_for_again(provider: BatchProvider, spec: RunSpec) -> None:
    provider.faults = when(lambda asked: is_refiner(asked) and asked.attempt == 0 and asked.number % 2 == 0, overloaded)
    assert grown(spec)[0] == NOTHING_MISSING
    *_, refinements, again = [provider.lines(batch) for batch in provider.batches]
    assert len(refinements) == 18
    assert len(again) == 9
    assert set(provider.paid.values()) == {1}


def test_an_item_is_given_up_after_as_many_batches_as_a_direct_request_is_tried(
    provider: BatchProvider, spec: RunSpec
) -> None:
    provider.faults = when(lambda asked: is_refiner(asked) and "1 + 10" in asked.prompt, overloaded)
    shortfall, _ = grown(spec)
    assert len(provider.batches) == 2 + QUICK.attempts
    assert {branch.question_id for branch in shortfall.failures} == {question(spec, 1)}
    assert "gave up after 5 batches" in shortfall.failures[0].reason


def test_another_dataset_requests_items_that_one_has_given_up(provider: BatchProvider, spec: RunSpec) -> None:
    provider.faults = when(lambda asked: "1 + 10" in asked.prompt, prompt_filtered())
    provider.later_stages = {1: ["cancelled"]}
    assert "was cancelled" in (grown(spec)[0].stopped or "")
    provider.faults, provider.later_stages = None, {}
    assert grown(spec.model_copy(update={"name": "renamed"}), run="two")[0] == NOTHING_MISSING


def test_the_next_run_requests_items_again_that_were_given_up(provider: BatchProvider, spec: RunSpec) -> None:
    provider.faults = when(lambda asked: is_refiner(asked) and "1 + 10" in asked.prompt, overloaded)
    grown(spec)
    provider.faults = None
    assert grown(spec, run="two")[0] == NOTHING_MISSING


@pytest.mark.parametrize("fault", [prompt_filtered(), context_overflow()])
def test_a_prompt_that_is_refused_fails_its_branch_at_once(
    provider: BatchProvider, spec: RunSpec, fault: Fault
) -> None:
    provider.faults = when(lambda asked: is_refiner(asked) and "1 + 10" in asked.prompt, fault)
    shortfall, _ = grown(spec)
    assert len(provider.batches) == 3
    assert len(shortfall.failures) == 9
    assert all(branch.role is Role.REFINER for branch in shortfall.failures)


def test_siblings_that_are_left_out_are_asked_for_singly(provider: BatchProvider, spec: RunSpec) -> None:
    provider.siblings = "ignored"
    assert grown(spec)[0] == NOTHING_MISSING
    counts = [line["body"].get("n", 1) for batch in provider.batches for line in provider.lines(batch)]
    assert sorted(counts) == [1] * 52 + [3] * 26


def test_siblings_that_are_refused_are_asked_for_singly(provider: BatchProvider, spec: RunSpec) -> None:
    provider.siblings = "refused"
    assert grown(spec)[0] == NOTHING_MISSING


def test_a_fallback_is_asked_for_items_that_are_given_up(provider: BatchProvider, spec: RunSpec) -> None:
    fallback = Fallback(model="openai/spare")
    provider.faults = when(lambda asked: asked.model == "verifier-model", prompt_filtered())
    assert grown(with_role(spec, "verifier", fallbacks=(fallback,)))[0] == NOTHING_MISSING
    assert [models(provider, batch) for batch in provider.batches] == [
        {"generator-model"},
        {"verifier-model"},
        {"spare"},
        {"refiner-model"},
    ]


def test_a_model_without_batches_is_asked_directly(provider: BatchProvider, spec: RunSpec) -> None:
    assert grown(with_role(spec, "verifier", model="hosted_vllm/verifier-model"))[0] == NOTHING_MISSING
    assert [models(provider, batch) for batch in provider.batches] == [{"generator-model"}, {"refiner-model"}]


def test_the_judge_has_a_level_of_its_own(provider: BatchProvider, spec: RunSpec) -> None:
    judge = spec.evaluator.model_copy(
        update={"kind": ("llm",), "model": "openai/judge", "api_base": provider.url, "api_key_env": "TEST_KEY"}
    )
    assert grown(spec.model_copy(update={"evaluator": judge}))[0] == NOTHING_MISSING
    assert models(provider, provider.batches[3]) == {"judge"}
    assert len(provider.batches) == 4


def test_a_level_is_cut_into_batches_of_what_a_file_may_hold(provider: BatchProvider, spec: RunSpec) -> None:
    assert grown(spec, replace(QUICK, size=BatchSize(items=4)))[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 4, 2, 4, 4, 4, 4, 2]


def test_a_file_stays_below_its_most_bytes(provider: BatchProvider, spec: RunSpec) -> None:
    assert grown(spec, replace(QUICK, size=BatchSize(bytes=5000)))[0] == NOTHING_MISSING
    sizes = [len(provider.files[batch.file_id]) for batch in provider.batches]
    assert max(sizes) <= 5000
    assert len(sizes) > 3


def test_a_cancelled_batch_stops_the_run_and_keeps_what_it_had(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages, provider.answers_before_the_end = ["cancelling", "cancelled"], 1
    shortfall, tally = grown(spec)
    assert "batch_0 was cancelled there" in (shortfall.stopped or "")
    assert tally.total.completions == 3
    provider.stages = ["completed"]
    assert grown(spec, run="two")[0] == NOTHING_MISSING
    assert set(provider.paid.values()) == {1}


def test_a_batch_that_fails_validation_ends_the_run_with_one_sentence(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = ["validating", "failed"]
    with pytest.raises(ConfigError, match=r"batch batch_0 failed validation: The model `m` does not exist\."):
        grown(spec)
    provider.stages = ["completed"]
    assert grown(spec, run="two")[0] == NOTHING_MISSING


def test_a_full_queue_makes_batches_smaller_and_one_at_a_time(provider: BatchProvider, spec: RunSpec) -> None:
    provider.invalid = ("token_limit_exceeded", "Enqueued token limit reached.")
    provider.stages = ["failed"]
    provider.later_stages = {1: ["completed"]}
    assert grown(spec)[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches][:3] == [2, 1, 1]
    assert set(provider.paid.values()) == {1}


def test_an_account_that_may_spend_no_more_stops_the_run(provider: BatchProvider, spec: RunSpec) -> None:
    provider.invalid = ("billing_hard_limit_reached", "Billing hard limit has been reached.")
    provider.stages = ["failed"]
    assert "Billing hard limit" in (grown(spec)[0].stopped or "")
    provider.stages = ["completed"]
    assert grown(spec, run="two")[0] == NOTHING_MISSING


def test_a_wrong_key_is_reported_at_once(provider: BatchProvider, spec: RunSpec) -> None:
    provider.key = "another"
    with pytest.raises(ConfigError, match="refused the key in TEST_KEY"):
        grown(spec)
    provider.key = None
    assert grown(spec, run="two")[0] == NOTHING_MISSING


def test_an_address_without_batches_is_reported_at_once(spec: RunSpec) -> None:
    with ScriptedProvider() as plain, pytest.raises(ConfigError, match="has no batch API"):
        grown(with_role(spec, "generator", api_base=plain.url))


def test_a_batch_whose_making_is_in_doubt_is_not_made_twice(provider: BatchProvider, spec: RunSpec) -> None:
    provider.afterwards = lambda name, number: server_error() if (name, number) == ("create", 0) else None
    assert grown(spec)[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 6, 18]


@pytest.mark.parametrize("call", ["upload", "create", "look", "download"])
@pytest.mark.parametrize("fault", [server_error(), rate_limited(0.01)])
def test_a_call_that_fails_for_now_is_made_again(
    provider: BatchProvider, spec: RunSpec, call: str, fault: Fault
) -> None:
    provider.batch_faults = lambda name, number: fault if (name, number) == (call, 0) else None
    assert grown(spec)[0] == NOTHING_MISSING
    assert len(provider.batches) == 3


def test_lost_results_are_requested_again(provider: BatchProvider, spec: RunSpec) -> None:
    gone = refusal(404, "No such file.", None)
    provider.batch_faults = lambda name, number: gone if (name, number) == ("download", 0) else None
    assert grown(spec)[0] == NOTHING_MISSING
    assert len(provider.batches) == 4
