"""The survey: which questions lack something, as the store tells, and what it has of the others."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, Role, RunSpec
from malt.engine.job import Inputs, read_inputs
from malt.errors import StoreError
from malt.trees.missing import Surveyed, survey, survey_window
from malt.trees.replay import MANY, Source, made_of_each
from tests import mishaps, providers
from tests.asking import asked_directly
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

SAMPLES = {Role.GENERATOR: 2, Role.VERIFIER: 4, Role.REFINER: 8}
"""What one question's tree is made of at two samples a node."""


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Three sums."""
    monkeypatch.setenv("TEST_KEY", "key")
    return spec_of(provider, write_questions(tmp_path, 3), samples=2)


def surveyed(inputs: Inputs, spec: RunSpec) -> Sequence[Surveyed]:
    return list(survey(inputs.questions, Source(spec, inputs.prompts, Settings().store)))


def lacking(inputs: Inputs, spec: RunSpec) -> list[str]:
    return [question.question for part in surveyed(inputs, spec) for question in part.lacking]


def had(inputs: Inputs, spec: RunSpec) -> Counter[Role]:
    return sum((Counter(part.had) for part in surveyed(inputs, spec)), Counter())


def change(statement: str) -> None:
    """Change the store behind everybody's back."""
    with closing(sqlite3.connect(Settings().store.removeprefix("sqlite:///"))) as store, store:
        store.execute(statement)


def test_of_an_empty_store_all_is_lacking_at_once(spec: RunSpec) -> None:
    inputs = read_inputs(spec)
    assert surveyed(inputs, spec) == [Surveyed(inputs.questions, {})]


def test_what_is_whole_is_not_lacking_and_is_counted_by_role(spec: RunSpec) -> None:
    inputs = asked_directly(spec)
    assert lacking(inputs, spec) == []
    assert had(inputs, spec) == {role: 3 * samples for role, samples in SAMPLES.items()}


def test_a_branch_that_failed_is_lacking(spec: RunSpec, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(
        lambda asked: asked.model == "refiner-model" and "What is 1 + 10?" in asked.prompt, mishaps.context_overflow()
    )
    inputs = asked_directly(spec)
    assert lacking(inputs, spec) == ["What is 1 + 10?"]
    assert had(inputs, spec) == {role: 2 * samples for role, samples in SAMPLES.items()}


def test_those_of_which_too_little_is_stored_come_first(spec: RunSpec) -> None:
    inputs = asked_directly(spec)
    first, last = inputs.questions[0].question_id, inputs.questions[2].question_id
    change(f"UPDATE samples SET response = NULL, error = 'was lost' WHERE question_id = '{first}'")
    change(f"DELETE FROM samples WHERE question_id = '{last}' AND role = 'refiner' AND sample = 1")
    assert lacking(inputs, spec) == ["What is 2 + 10?", "What is 0 + 10?"]


def test_rows_of_other_models_are_no_tree(spec: RunSpec) -> None:
    inputs = asked_directly(spec)
    other = spec.model_copy(update={"roles": spec.roles.model_copy(update={"refiner": spec.roles.generator})})
    assert len(lacking(inputs, other)) == 3


def test_a_grade_that_the_judge_has_not_given_is_lacking_and_one_it_has_given_is_counted_once(
    spec: RunSpec, provider: ScriptedProvider
) -> None:
    provider.script = lambda asked, sample: (
        providers.judgement(0.9) if asked.model == "judge" else f"Final Answer: about {sample}"
    )
    judge = EvaluatorSpec(kind=("exact", "llm"), model="openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    judged = spec.model_copy(update={"evaluator": judge})
    inputs = asked_directly(spec)
    assert len(lacking(inputs, judged)) == 3
    asked_directly(judged)
    assert lacking(inputs, judged) == []
    assert had(inputs, judged)[Role.EVALUATOR] == len(provider.requests_to("judge")) == 3 * 2


def test_an_adaptive_tree_is_whole_with_what_it_would_ask_for(spec: RunSpec) -> None:
    adaptive = spec.model_copy(update={"growth": spec.growth.model_copy(update={"mode": "adaptive"})})
    inputs = asked_directly(adaptive)
    assert lacking(inputs, adaptive) == []
    assert 0 < had(inputs, adaptive)[Role.REFINER] <= 3 * SAMPLES[Role.REFINER]


def test_other_processes_see_what_this_one_would(spec: RunSpec, tmp_path: Path) -> None:
    source = str(write_questions(tmp_path, MANY))
    many = spec.model_copy(update={"questions": spec.questions.model_copy(update={"source": source})})
    inputs = asked_directly(many)
    missing = inputs.questions[7].question_id
    change(f"UPDATE samples SET response = NULL, error = 'lost' WHERE question_id = '{missing}' AND role = 'verifier'")
    windows = [[question] for question in inputs.questions]
    found = list(made_of_each(survey_window, windows, Source(many, inputs.prompts, Settings().store)))
    assert [question.question_id for part in found for question in part.lacking] == [missing]
    assert [part.had for part in found if not part.lacking] == [SAMPLES] * (MANY - 1)


def test_a_damaged_answer_is_the_store_s_fault(spec: RunSpec) -> None:
    inputs = asked_directly(spec)
    change("UPDATE samples SET response = 'half of {' WHERE role = 'refiner'")
    with pytest.raises(StoreError, match="is damaged"):
        surveyed(inputs, spec)
