"""The quote of a run: counted against the store without any request; an unknown cost is never zero."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Literal

import pytest

from malt.cli.summaries import show_plan, show_range
from malt.config.limits import Limits
from malt.config.loader import load_spec
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, Role, Roles, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, GrowthSpec, RunSpec
from malt.engine.job import read_job
from malt.engine.plan import Figures, Plan, Quote, Range, Total, each_takes, plan
from malt.engine.run import most_for_tree
from malt.engine.runner import rerun_job, run_pilot, spread_evenly
from malt.errors import ConfigError
from malt.llm.budget import Usage
from malt.llm.client.completers import make_completer, read_sample
from malt.llm.client.session import open_session
from malt.llm.store.samples import Store
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import NOTHING_MISSING, ask_all
from tests import mishaps, providers
from tests.configs import write_config
from tests.mishaps import Asked
from tests.providers import ScriptedProvider
from tests.specs import write_questions

QUESTIONS = 4


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    return write_config(tmp_path, provider, QUESTIONS)


def quote(spec: RunSpec, refresh: Collection[Role] = ()) -> Plan:
    with Store(Settings().store) as store:
        return plan(read_job(spec), store, refresh)


def grow(spec: RunSpec) -> bool:
    """Make all requests that a spec needs; return whether all succeeded."""
    job, session = read_job(spec), open_session(Settings(), Limits())
    ask = make_completer(session, [question.question_id for question in job.questions])
    missing = session.run(ask_all(job.questions, TreeInputs(spec, job.prompts, ask)))
    return missing == NOTHING_MISSING


def figures(quoted: Plan) -> dict[str, tuple[int, int, int]]:
    """Return requests, completions to buy and stored completions, by role."""
    return {
        role.value: (each.requests, each.completions, each.stored_completions) for role, each in quoted.roles.items()
    }


def test_before_a_run_everything_is_still_to_be_asked(config: Path, provider: ScriptedProvider) -> None:
    quoted = quote(load_spec(config))
    assert figures(quoted) == {"generator": (4, 12, 0), "verifier": (12, 36, 0), "refiner": (36, 108, 0)}
    assert (quoted.requests, quoted.completions, quoted.stored_completions) == (52, 156, 0)
    assert provider.request_count == 0


def test_the_quote_is_what_the_run_then_sends(config: Path, provider: ScriptedProvider) -> None:
    quoted = quote(load_spec(config))
    assert grow(load_spec(config))
    assert provider.request_count == quoted.requests
    assert provider.completions_sent == quoted.completions


def test_after_a_run_nothing_is_left_to_ask(config: Path) -> None:
    assert grow(load_spec(config))
    quoted = quote(load_spec(config))
    assert figures(quoted) == {"generator": (0, 0, 12), "verifier": (0, 0, 36), "refiner": (0, 0, 108)}
    assert (quoted.prompt_tokens, quoted.completion_tokens, quoted.cost_usd) == (0, 0, 0.0)


def test_a_fourth_sample_is_quoted_as_45_completions_a_question(config: Path, provider: ScriptedProvider) -> None:
    assert grow(load_spec(config))
    four = load_spec(config, [f"roles.{role}.samples=4" for role in PLAYERS])
    quoted, sent = quote(four), provider.request_count
    assert quoted.completions == 45 * QUESTIONS
    assert grow(four)
    assert provider.request_count - sent == quoted.requests


def test_another_refiner_leaves_the_other_roles_stored(config: Path) -> None:
    assert grow(load_spec(config))
    quoted = quote(load_spec(config, ["roles.refiner.model=openai/other"]))
    assert figures(quoted) == {"generator": (0, 0, 12), "verifier": (0, 0, 36), "refiner": (36, 108, 0)}


def test_samples_of_a_failed_branch_are_still_to_be_requested(config: Path, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "refiner", mishaps.context_overflow())
    assert not grow(load_spec(config))
    assert figures(quote(load_spec(config)))["refiner"] == (36, 108, 0)


def test_a_judge_is_quoted_where_a_grader_may_need_one(
    tmp_path: Path, config: Path, provider: ScriptedProvider
) -> None:
    judged = write_config(tmp_path, provider, QUESTIONS, judge=True)
    assert figures(quote(load_spec(judged)))["evaluator"] == (108, 108, 0)
    everything = load_spec(judged, ["evaluator.scope=all"])
    assert figures(quote(everything))["evaluator"] == (156, 156, 0)


def test_tokens_come_from_what_the_store_has_seen(config: Path) -> None:
    before = quote(load_spec(config)).roles[Role.REFINER]
    assert "assumed" in before.basis
    assert before.completion_tokens == 108 * 512
    assert grow(load_spec(config, limit=2))
    after = quote(load_spec(config)).roles[Role.REFINER]
    assert "store" in after.basis
    assert after.completion_tokens < 54 * 100


def test_a_changed_prompt_is_quoted_by_how_long_answers_to_the_old_one_were(config: Path) -> None:
    assert grow(load_spec(config))
    changed = load_spec(config, ["prompts=math"])
    with Store(Settings().store) as store:
        rows = store.rows(question.question_id for question in read_job(changed).questions).values()
    lengths = [read_sample(row, cached=True).completion_tokens or 0 for row in rows if row.role == "refiner"]
    refiner = quote(changed).roles[Role.REFINER]
    assert (refiner.completions, refiner.stored_completions) == (108, 0)
    assert refiner.completion_tokens == pytest.approx(108 * fmean(lengths), abs=1)
    assert "the mean of 108 stored ones to other prompts" in refiner.basis
    unheard_of = quote(load_spec(config, ["prompts=math", "roles.refiner.model=openai/other"])).roles[Role.REFINER]
    assert "half of max_tokens" in unheard_of.basis


@pytest.mark.parametrize("role", PLAYERS)
def test_a_refresh_sends_what_was_quoted_of_it(config: Path, provider: ScriptedProvider, role: Role) -> None:
    provider.cost_usd = 0.3
    assert grow(load_spec(config))
    job, sent = read_job(load_spec(config)), provider.request_count
    quoted = quote(job.spec, [role])
    assert provider.request_count == sent
    summary = asyncio.run(rerun_job(job, job.questions, [role], refresh=True))
    assert (summary.requests, summary.completions) == (quoted.requests, quoted.completions)
    assert quoted.low.completion_tokens <= summary.completion_tokens <= quoted.high.completion_tokens
    assert summary.cost_usd == pytest.approx(quoted.cost_usd)
    assert "stored completions to 4 questions" in quoted.roles[role].basis


def test_a_refresh_of_the_judge_is_quoted_as_its_completions_alone(tmp_path: Path, provider: ScriptedProvider) -> None:
    job = read_job(load_spec(write_config(tmp_path, provider, QUESTIONS, judge=True)))
    assert grow(job.spec)
    quoted = quote(job.spec, [Role.EVALUATOR])
    summary = asyncio.run(rerun_job(job, job.questions, [Role.EVALUATOR], refresh=True))
    assert summary.requests == quoted.requests


@pytest.mark.parametrize(
    ("model", "is_known"), [("openai/gpt-4o-mini", True), ("openai/never-heard-of", False), ("embedded", True)]
)
def test_a_cost_that_is_not_known_is_null_and_never_zero(config: Path, model: str, is_known: bool) -> None:
    spec = load_spec(config, [f"roles.refiner.model={model}"])
    cost = quote(spec).roles[Role.REFINER].cost_usd
    assert (cost is not None) == is_known
    assert (cost == 0) == (model == "embedded")


def test_one_unknown_cost_makes_the_total_unknown(config: Path) -> None:
    known = load_spec(config, [f"roles.{role}.model=openai/gpt-4o-mini" for role in PLAYERS])
    assert (quote(known).cost_usd or 0) > 0
    assert quote(load_spec(config, ["roles.refiner.model=openai/gpt-4o-mini"])).cost_usd is None


def test_the_embedded_model_costs_nothing(config: Path) -> None:
    quoted = quote(load_spec(config, [f"roles.{role}.model=embedded" for role in PLAYERS]))
    assert quoted.cost_usd == 0.0
    assert quoted.completions == 156


def test_a_quote_is_a_range_within_what_it_assumes(config: Path) -> None:
    refiner = quote(load_spec(config, ["roles.refiner.model=openai/gpt-4o-mini"])).roles[Role.REFINER]
    assert (refiner.low.completion_tokens, refiner.high.completion_tokens) == (108 * 128, 108 * 1024)
    assert refiner.low.prompt_tokens < refiner.prompt_tokens < refiner.high.prompt_tokens
    assert (refiner.low.cost_usd or 0) < (refiner.cost_usd or 0) < (refiner.high.cost_usd or 0)


def test_a_run_s_usage_lies_in_the_range_that_its_pilot_predicted(config: Path, provider: ScriptedProvider) -> None:
    spec = load_spec(config)
    job = read_job(spec)
    assert asyncio.run(run_pilot(job, 3)) == NOTHING_MISSING
    assert provider.request_count == 3 * 13
    quoted = quote(spec)
    assert quoted.stored_completions == 3 * 39
    assert "to 3 questions" in quoted.roles[Role.REFINER].basis
    session = open_session(Settings(), Limits())
    ask = make_completer(session, [question.question_id for question in job.questions])
    session.run(ask_all(job.questions, TreeInputs(spec, job.prompts, ask)))
    used = ask.tally.total
    assert quoted.low.completion_tokens <= used.completion_tokens <= quoted.high.completion_tokens
    assert quoted.low.prompt_tokens <= used.prompt_tokens <= quoted.high.prompt_tokens


def test_costs_that_a_provider_reported_come_before_listed_prices(config: Path, provider: ScriptedProvider) -> None:
    provider.cost_usd = 0.3
    assert grow(load_spec(config, limit=2))
    refiner = quote(load_spec(config)).roles[Role.REFINER]
    assert refiner.cost_usd == pytest.approx(0.1 * refiner.completions)


def test_a_pilot_asks_at_even_distances(config: Path) -> None:
    questions = read_job(load_spec(config)).questions
    assert spread_evenly(questions, 2) == [questions[0], questions[2]]
    assert spread_evenly(questions, 9) == questions


def test_adaptive_growth_is_quoted_as_at_most_the_full_trees(config: Path, provider: ScriptedProvider) -> None:
    provider.script = providers.answering({}, right=0.9)
    spec = load_spec(config, ["growth=adaptive"])
    before = quote(spec)
    assert before.completions == QUESTIONS * 39
    refiner = before.roles[Role.REFINER]
    assert refiner.low.completion_tokens == QUESTIONS * 3 * 128
    assert refiner.high.completion_tokens == QUESTIONS * 27 * 1024
    assert grow(load_spec(config, ["growth=adaptive"], limit=2))
    bought = provider.completions_sent
    after = quote(spec)
    assert (after.completions, after.stored_completions) == (2 * 39, bought)
    assert after.roles[Role.REFINER].completion_tokens < after.roles[Role.REFINER].high.completion_tokens
    assert grow(spec)
    assert (quote(spec).completions, quote(spec).requests) == (0, 0)


def test_batch_mode_is_quoted_at_batch_prices(config: Path) -> None:
    def cost(*overrides: str) -> float:
        listed = [f"roles.{role}.model=openai/gpt-4o-mini" for role in PLAYERS]
        quoted = quote(load_spec(config, [*listed, "run.tracking=auto", *overrides]))
        assert {role.mode for role in quoted.roles.values()} == {"batch" if overrides else "direct"}
        assert quoted.cost_usd is not None
        return quoted.cost_usd

    assert cost("run.mode=batch") == pytest.approx(cost() / 2)


# The upper bound: full-length texts, on a server that counts a token for every byte.

LISTED = [f"roles.{role}.{key}" for role in PLAYERS for key in ("model=openai/gpt-4o-mini", "max_tokens=64")]
JUDGED = ["evaluator.model=openai/gpt-4o-mini", "evaluator.max_tokens=64"]


def write_at_length(asked: Asked, sample: int) -> str:
    """Return a text of 64 tokens for a server that counts bytes, and 9 for the message's role; no judge can be read."""
    return f"{providers.draw(asked, sample)} é Final Answer: {sample}".rjust(54)[-54:]


def grow_at_length(spec: RunSpec, provider: ScriptedProvider) -> dict[Role, Usage]:
    """Make all requests that a spec needs, for the longest texts; return each role's usage."""
    provider.script, provider.count_tokens = write_at_length, lambda text: len(text.encode())
    return grow_and_count(spec)


def grow_and_count(spec: RunSpec) -> dict[Role, Usage]:
    """Make all requests that a spec needs; return each role's usage, whether or not all succeeded."""
    job, session = read_job(spec), open_session(Settings(), Limits())
    ask = make_completer(session, [question.question_id for question in job.questions])
    session.run(ask_all(job.questions, TreeInputs(spec, job.prompts, ask)))
    return ask.tally.roles


def assert_bounded(quoted: Plan, used: dict[Role, Usage]) -> None:
    assert quoted.most is not None
    assert any(usage.completions for usage in used.values())
    for role, each in quoted.roles.items():
        assert each.most is not None
        assert used[role].prompt_tokens <= each.most.prompt_tokens
        assert used[role].completion_tokens <= each.most.completion_tokens
        assert (used[role].cost_usd or 0) <= (each.most.cost_usd or 0)


@pytest.mark.parametrize(
    ("stored", "siblings", "further"),
    [
        (0, "honoured", []),
        (2, "honoured", []),
        (0, "refused", []),
        (2, "ignored", []),
        (0, "honoured", ["growth=adaptive"]),
        (2, "refused", ["growth=adaptive"]),
        (0, "honoured", ["prompts=math"]),
        (2, "ignored", ["evaluator.scope=all"]),
    ],
)
def test_no_run_uses_more_than_the_upper_bound(
    stored: int,
    siblings: Literal["honoured", "refused", "ignored"],
    further: list[str],
    tmp_path: Path,
    config: Path,
    provider: ScriptedProvider,
) -> None:
    provider.siblings = siblings
    judged = write_config(tmp_path, provider, QUESTIONS, judge=True)
    spec = load_spec(judged, [*LISTED, *JUDGED, *further])
    if stored:
        grow_at_length(load_spec(judged, [*LISTED, *JUDGED, *further], limit=stored), provider)
    quoted = quote(spec)
    used = grow_at_length(spec, provider)
    assert used[Role.EVALUATOR].completions > 0
    assert_bounded(quoted, used)


def test_the_bound_holds_for_further_samples_of_stored_nodes(config: Path, provider: ScriptedProvider) -> None:
    grow_at_length(load_spec(config, LISTED), provider)
    four = load_spec(config, [*LISTED, *(f"roles.{role}.samples=4" for role in PLAYERS)])
    assert_bounded(quote(four), grow_at_length(four, provider))


def test_the_embedded_model_s_tokens_lie_in_the_likely_range_and_below_the_bound(tmp_path: Path) -> None:
    embedded = dict.fromkeys(map(str, PLAYERS), RoleSpec(samples=1, max_tokens=32, seed=7))
    questions = QuestionSource(source=str(write_questions(tmp_path, 1)), format="gsm8k")
    spec = RunSpec(name="one", questions=questions, roles=Roles(**embedded), evaluator=EvaluatorSpec(kind=("number",)))
    quoted = quote(spec)
    used = grow_and_count(spec)
    assert_bounded(quoted, used)
    for role in PLAYERS:
        each = quoted.roles[role]
        assert each.low.prompt_tokens <= used[role].prompt_tokens <= each.high.prompt_tokens


def test_the_bound_takes_the_dearest_fallback_s_price(config: Path) -> None:
    def bound(*overrides: str) -> float:
        most = quote(load_spec(config, [*LISTED, *overrides])).most
        assert most is not None
        assert most.cost_usd is not None
        return most.cost_usd

    assert (
        bound('roles.refiner.fallbacks=["openai/gpt-4o"]')
        > bound()
        == bound('roles.refiner.fallbacks=["openai/gpt-4o-mini"]')
    )


def test_there_is_no_bound_where_a_text_has_none(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load_spec(config)
    endless = spec.roles.changed(
        lambda role, model: model.model_copy(update={"max_tokens": None}) if role is Role.VERIFIER else model
    )
    quoted = quote(spec.model_copy(update={"roles": endless}))
    assert [each.most is None for each in quoted.roles.values()] == [False, True, True]
    show_plan(quoted)
    assert "and without an upper bound, as a role has no max_tokens" in capsys.readouterr().out


def test_no_cost_is_promised_where_the_provider_charges_more_than_listed(
    config: Path, provider: ScriptedProvider
) -> None:
    provider.cost_usd = 0.3
    assert grow(load_spec(config, LISTED, limit=2))
    quoted = quote(load_spec(config, LISTED))
    assert quoted.most is not None
    assert quoted.most.cost_usd is None
    assert quoted.high.cost_usd is not None


def test_the_range_ends_at_the_bound(config: Path, provider: ScriptedProvider) -> None:
    spec = load_spec(config, LISTED)
    for stored in (0, 1, 2):
        if stored:
            assert grow(load_spec(config, LISTED, limit=stored))
        for each in quote(spec).roles.values():
            assert each.most is not None
            assert each.high.prompt_tokens <= each.most.prompt_tokens
            assert each.high.completion_tokens <= each.most.completion_tokens


def test_an_adaptive_tree_reserves_a_prompt_for_each_sample_as_samples_may_be_asked_for_one_by_one(
    tmp_path: Path,
) -> None:
    def most_prompts(mode: Literal["full", "adaptive"]) -> int:
        job = read_job(spec_at_openai(tmp_path).model_copy(update={"growth": GrowthSpec(mode=mode)}))
        return most_for_tree(job.questions[0], job.spec, job.prompts).tokens - (3 + 9 + 27) * 64

    assert most_prompts("adaptive") == 3 * most_prompts("full")


def test_an_unknown_fallback_is_named_with_its_key(tmp_path: Path) -> None:
    spec = spec_at_openai(tmp_path, fallbacks=("nonsense",))
    with pytest.raises(ConfigError, match=r"^roles\.generator\.fallbacks or model\.fallbacks: model 'nonsense'"):
        quote(spec)


def test_an_unknown_judge_is_quoted_without_a_cost(tmp_path: Path) -> None:
    judge = EvaluatorSpec(kind=("llm",), model="nonsense")
    quoted = quote(spec_at_openai(tmp_path).model_copy(update={"evaluator": judge}))
    most = quoted.roles[Role.EVALUATOR].most
    assert most is not None
    assert most.cost_usd is None


def spec_at_openai(folder: Path, fallbacks: tuple[str, ...] = ()) -> RunSpec:
    """Return a spec whose models are at OpenAI's own address, where samples share a prompt."""
    model = RoleSpec.model_validate({"model": "openai/gpt-4o-mini", "max_tokens": 64, "fallbacks": fallbacks})
    questions = QuestionSource(source=str(write_questions(folder, 1)), format="gsm8k")
    roles = Roles(**dict.fromkeys(map(str, PLAYERS), model))
    return RunSpec(name="one", questions=questions, roles=roles, evaluator=EvaluatorSpec(kind=("number",)))


def test_a_bound_without_a_range_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    exact = Figures(prompt_tokens=1_000, completion_tokens=20, cost_usd=0.0)
    ends = {"low": exact, "high": exact, "most": exact}
    show_range(Quote(requests=1, completions=1, stored_completions=0, **exact.model_dump(), **ends))
    assert capsys.readouterr().out == "the total is at most 1,000 tokens in, 20 out, if no request is repeated\n"


# The usage of further completions.


def test_the_range_holds_nineteen_times_of_twenty() -> None:
    """Questions differ by a factor, completions of one question are alike; ten questions predict a hundred."""
    chance, held = Random(1), 0
    for _ in range(400):
        seen = [Total(9 * chance.lognormvariate(5, 0.5), 9) for _ in range(10)]
        came = fmean(chance.lognormvariate(5, 0.5) for _ in range(100))
        low, _, high = each_takes(seen, 100)
        held += low <= came <= high
    assert 0.90 <= held / 400 <= 0.99


def test_more_questions_make_the_range_narrower() -> None:
    chance = Random(2)
    totals = [Total(chance.gauss(100, 20), 1) for _ in range(200)]
    widths = [high - low for low, _, high in (each_takes(totals[:count], 1000) for count in (3, 10, 50, 200))]
    assert widths == sorted(widths, reverse=True)


def test_one_question_says_little() -> None:
    assert each_takes([Total(300, 3)], 50) == Range(50, 100, 200)


def test_questions_weigh_by_their_completions() -> None:
    assert each_takes([Total(300, 3), Total(10, 1)], 50).expected == 77.5
