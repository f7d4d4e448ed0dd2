"""Evaluations on a provider with planted answers: the expected value of every cell is counted here by hand."""

from itertools import product
from pathlib import Path

import pytest

import malt
from malt.errors import ConfigError, NothingToPublish, QuestionError, RunStopped
from malt.evaluation.card import percent
from malt.evaluation.evaluate import evaluate
from malt.evaluation.version import EvaluationVersion
from tests import mishaps
from tests.evaluation.planted import (
    CHAINS,
    QUESTIONS,
    ends_right,
    is_called_correct,
    is_right,
    planted_spec,
)
from tests.providers import ScriptedProvider

CELLS = list(product(range(QUESTIONS), range(CHAINS)))
TWO = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'


def share(rights: list[bool]) -> float:
    return sum(rights) / len(rights)


def vote(rights: list[bool]) -> bool:
    """Whether three chains with different wrong answers win the vote: of three different answers the first wins."""
    return sum(rights) >= 2 or (sum(rights) == 1 and rights[0])


def evaluated(folder: Path, provider: ScriptedProvider, text: str = "") -> EvaluationVersion:
    return evaluate(planted_spec(folder, provider, text))


def test_every_cell_is_what_was_planted(tmp_path: Path, provider: ScriptedProvider) -> None:
    system = evaluated(tmp_path, provider).summary.systems["pipeline"]
    by_question = [[is_right(question, chain) for chain in range(CHAINS)] for question in range(QUESTIONS)]
    in_the_end = [[ends_right(question, chain) for chain in range(CHAINS)] for question in range(QUESTIONS)]
    assert system.sa.accuracy == pytest.approx(share([right for rights in by_question for right in rights]))
    assert system.ma.accuracy == pytest.approx(share([right for rights in in_the_end for right in rights]))
    assert system.sa_mv.accuracy == share([vote(rights) for rights in by_question])
    assert system.ma_mv.accuracy == share([vote(rights) for rights in in_the_end])


def test_flips_and_what_refining_mends_and_spoils_are_what_was_planted(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    system = evaluated(tmp_path, provider).summary.systems["pipeline"]
    flips = [(is_right(*cell), ends_right(*cell)) for cell in CELLS]
    found = system.flips
    assert (found.wrong_to_right, found.right_to_right) == (flips.count((False, True)), flips.count((True, True)))
    assert (found.wrong_to_wrong, found.right_to_wrong) == (flips.count((False, False)), flips.count((True, False)))
    wrong, right = sum(not before for before, _ in flips), sum(before for before, _ in flips)
    assert system.refining.ecr == pytest.approx(flips.count((False, True)) / wrong)
    assert system.refining.eir == pytest.approx(flips.count((True, False)) / right)
    assert system.refining.pays is (flips.count((False, True)) > flips.count((True, False)))


def test_verdicts_are_counted_against_the_truth(tmp_path: Path, provider: ScriptedProvider) -> None:
    verdicts = evaluated(tmp_path, provider).summary.systems["pipeline"].verdicts
    wrong = [is_called_correct(*cell) for cell in CELLS if not is_right(*cell)]
    right = [is_called_correct(*cell) for cell in CELLS if is_right(*cell)]
    assert verdicts.sensitivity == pytest.approx(wrong.count(False) / len(wrong))
    assert verdicts.specificity == pytest.approx(right.count(True) / len(right))
    assert verdicts.agreement == pytest.approx(share([is_called_correct(*cell) == is_right(*cell) for cell in CELLS]))
    assert (verdicts.stated, verdicts.unstated) == (len(CELLS), 0)


def test_a_difference_is_paired_by_question(tmp_path: Path, provider: ScriptedProvider) -> None:
    summary = evaluated(tmp_path, provider, 'measure = "sa"\n' + TWO).summary
    assert summary.baseline == "plain"
    assert summary.systems["star"].sa.accuracy == 1.0
    plain = summary.systems["plain"].sa.accuracy
    assert plain is not None
    found = summary.differences["star"]
    assert found.difference == pytest.approx(1.0 - plain)
    assert found.low < found.difference < found.high
    assert found.p == found.p_holm < 0.001


def test_systems_share_the_requests_of_equal_roles(tmp_path: Path, provider: ScriptedProvider) -> None:
    """The second system shares the first's generator and verifier, the third only its generator."""
    systems = '[evaluate.systems.a]\n[evaluate.systems.b]\nrefiner = { model = "openai/better" }\n'
    systems += '[evaluate.systems.c]\nverifier = { model = "openai/verifier-2" }\n'
    evaluated(tmp_path, provider, systems)
    generator, verifier = 1, CHAINS
    refiner = CHAINS
    assert provider.request_count == QUESTIONS * (generator + 2 * verifier + 3 * refiner)
    assert provider.completions_sent == QUESTIONS * (CHAINS + 2 * CHAINS + 3 * CHAINS)


def test_a_second_evaluation_asks_nothing_and_makes_no_new_version(tmp_path: Path, provider: ScriptedProvider) -> None:
    first = evaluated(tmp_path, provider, TWO)
    asked = provider.request_count
    again = evaluated(tmp_path, provider, TWO)
    assert (again.number, again.created, first.created) == (1, False, True)
    assert again.manifest.content_sha256 == first.manifest.content_sha256
    assert provider.request_count == asked


def test_roles_outside_a_system_are_not_asked(tmp_path: Path, provider: ScriptedProvider) -> None:
    systems = '[evaluate.systems.alone]\nroles = ["generator"]\n'
    systems += '[evaluate.systems.unchecked]\nroles = ["generator", "refiner"]\n'
    summary = evaluated(tmp_path, provider, systems).summary
    assert provider.requests_to("verifier") == []
    assert len(provider.requests_to("refiner")) == QUESTIONS * CHAINS
    alone = summary.systems["alone"]
    assert (alone.sa, alone.sa_mv) == (alone.ma, alone.ma_mv)
    assert alone.verdicts.stated == 0
    assert summary.systems["unchecked"].ma.accuracy == pytest.approx(share([ends_right(*cell) for cell in CELLS]))


def test_every_seed_asks_anew_and_a_question_stays_one_cluster(tmp_path: Path, provider: ScriptedProvider) -> None:
    summary = evaluated(tmp_path, provider, "seeds = [1, 2, 3]").summary
    assert provider.request_count == 3 * QUESTIONS * (1 + 2 * CHAINS)
    system = summary.systems["pipeline"]
    assert system.by_seed.keys() == {"1", "2", "3"}
    assert system.sa.questions == QUESTIONS
    [alone] = {seed["sa"] for seed in system.by_seed.values()}  # planted answers are the same for every seed
    assert system.sa.accuracy == alone


def test_a_control_at_another_temperature_is_one_chain_more(tmp_path: Path, provider: ScriptedProvider) -> None:
    version = evaluated(tmp_path, provider, "temperature = 0")
    control = version.summary.systems["pipeline"].control
    assert control is not None
    assert control.sa.accuracy == share([is_right(question, 0) for question in range(QUESTIONS)])
    assert control.ma.accuracy == share([ends_right(question, 0) for question in range(QUESTIONS)])
    assert f"pipeline at temperature 0 {percent(control.ma)}" in (version.path / "README.md").read_text()
    cold = [asked for asked in provider.requests if asked.body["temperature"] == 0]
    assert len(cold) == QUESTIONS * 3
    assert provider.request_count == QUESTIONS * (1 + 2 * CHAINS + 3)


def test_a_single_agent_gets_votes_until_it_has_written_as_much(tmp_path: Path, provider: ScriptedProvider) -> None:
    version = evaluated(tmp_path, provider, "equal_tokens = true")
    equal = version.summary.systems["pipeline"].equal_tokens
    assert equal is not None
    assert equal.completion_tokens is not None
    assert equal.pipeline_completion_tokens is not None
    a_vote = equal.completion_tokens / equal.votes
    assert 0 <= equal.completion_tokens - equal.pipeline_completion_tokens < 1.1 * a_vote
    votes = version.answers.query("kind == 'votes'")
    assert len(votes) == QUESTIONS * equal.votes
    assert provider.completions_sent == QUESTIONS * (3 * CHAINS + equal.votes - CHAINS)


def test_questions_that_may_have_been_trained_on_are_refused_by_name(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    spec = planted_spec(tmp_path, provider)
    (tmp_path / "train.jsonl").write_text('{"id": "t1", "question": "what is 103 + 10", "answer": "113"}\n')
    with pytest.raises(QuestionError, match=r"1 of 16 questions .* sum-103 \(as t1\); take others, or say overlap"):
        evaluate(spec)
    assert provider.request_count == 0
    kept = spec.model_copy(update={"evaluate": spec.evaluate and spec.evaluate.model_copy(update={"overlap": "keep"})})
    assert evaluate(kept).summary.questions == QUESTIONS


def test_a_failed_branch_is_listed_and_the_other_questions_are_compared(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    provider.faults = lambda asked: mishaps.bad_request() if "What is 103 + 10" in asked.prompt else None
    version = evaluated(tmp_path, provider, TWO)
    assert {failure.question_id for failure in version.manifest.failures} == {"sum-103"}
    assert version.summary.questions == QUESTIONS
    assert version.summary.systems["plain"].ma.questions == QUESTIONS - 1
    assert version.summary.differences["star"].questions == QUESTIONS - 1


def test_a_stop_publishes_nothing_and_the_next_evaluation_goes_on(tmp_path: Path, provider: ScriptedProvider) -> None:
    spec = planted_spec(tmp_path, provider)
    capped = spec.model_copy(update={"limits": spec.limits.model_copy(update={"max_tokens_total": 30_000})})
    with pytest.raises(RunStopped):
        evaluate(capped)
    had = provider.request_count
    assert 0 < had < QUESTIONS * (1 + 2 * CHAINS)
    evaluate(spec)
    assert provider.request_count == QUESTIONS * (1 + 2 * CHAINS)


def test_an_evaluation_without_any_answer_is_not_published(tmp_path: Path, provider: ScriptedProvider) -> None:
    provider.faults = lambda _asked: mishaps.bad_request()
    with pytest.raises(NothingToPublish):
        evaluated(tmp_path, provider)


def test_config_errors_are_found_before_any_request(tmp_path: Path, provider: ScriptedProvider) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.baseline = 'none' is no system; there are: plain, star"):
        evaluated(tmp_path, provider, 'baseline = "none"\n' + TWO)
    with pytest.raises(ConfigError, match=r"evaluate\.systems\.plain\.generatr: unknown key; did you mean"):
        evaluated(tmp_path, provider, '[evaluate.systems.plain]\ngeneratr = { model = "x" }\n')
    assert provider.request_count == 0


def test_evaluate_is_a_public_name() -> None:
    assert malt.evaluate is evaluate
