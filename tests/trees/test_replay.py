"""Trees read from the store alone, the same in every process; and the survey of missing samples."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.engine.job import Job, read_job
from malt.errors import StoreError
from malt.trees.replay import MANY, Source, Survey, Window, map_items, read_trees, survey, survey_window
from tests import mishaps, providers
from tests.asking import asked_directly
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

SAMPLES = {Role.GENERATOR: 2, Role.VERIFIER: 4, Role.REFINER: 8}
"""Number of samples in one question's tree, at two samples a node."""


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Spec with three sums."""
    monkeypatch.setenv("TEST_KEY", "key")
    return spec_of(provider, write_questions(tmp_path, 3), samples=2)


def source_of(job: Job, spec: RunSpec) -> Source:
    return Source(spec, job.prompts, Settings().store)


def surveyed(job: Job, spec: RunSpec) -> Sequence[Survey]:
    return list(survey(job.questions, source_of(job, spec)))


def lacking(job: Job, spec: RunSpec) -> list[str]:
    return [question.question for part in surveyed(job, spec) for question in part.missing]


def had(job: Job, spec: RunSpec) -> Counter[Role]:
    return sum((Counter(part.stored) for part in surveyed(job, spec)), Counter())


def change(statement: str) -> None:
    """Change the store's file directly in SQL."""
    with closing(sqlite3.connect(Settings().store.removeprefix("sqlite:///"))) as store, store:
        store.execute(statement)


def test_an_empty_store_lacks_all_questions(spec: RunSpec) -> None:
    job = read_job(spec)
    assert surveyed(job, spec) == [Survey(job.questions, {})]


def test_complete_trees_are_not_lacking_and_are_counted_by_role(spec: RunSpec) -> None:
    job = asked_directly(spec)
    assert lacking(job, spec) == []
    assert had(job, spec) == {role: 3 * samples for role, samples in SAMPLES.items()}


def test_a_branch_that_failed_is_lacking(spec: RunSpec, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(
        lambda asked: asked.model == "refiner-model" and "What is 1 + 10?" in asked.prompt, mishaps.context_overflow()
    )
    job = asked_directly(spec)
    assert lacking(job, spec) == ["What is 1 + 10?"]
    assert had(job, spec) == {role: 2 * samples for role, samples in SAMPLES.items()}


def test_questions_with_too_few_stored_samples_come_first(spec: RunSpec) -> None:
    job = asked_directly(spec)
    first, last = job.questions[0].question_id, job.questions[2].question_id
    change(f"UPDATE samples SET response = NULL, error = 'was lost' WHERE question_id = '{first}'")
    change(f"DELETE FROM samples WHERE question_id = '{last}' AND role = 'refiner' AND sample = 1")
    assert lacking(job, spec) == ["What is 2 + 10?", "What is 0 + 10?"]


def test_rows_of_other_models_do_not_count(spec: RunSpec) -> None:
    job = asked_directly(spec)
    other = spec.model_copy(update={"roles": spec.roles.model_copy(update={"refiner": spec.roles.generator})})
    assert len(lacking(job, other)) == 3


def test_a_grade_that_the_judge_has_not_given_is_lacking_and_one_it_has_given_is_counted_once(
    spec: RunSpec, provider: ScriptedProvider
) -> None:
    provider.script = lambda asked, sample: (
        providers.judgement(0.9) if asked.model == "judge" else f"Final Answer: about {sample}"
    )
    judge = EvaluatorSpec(kind=("exact", "llm"), model="openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    judged = spec.model_copy(update={"evaluator": judge})
    job = asked_directly(spec)
    assert len(lacking(job, judged)) == 3
    asked_directly(judged)
    assert lacking(job, judged) == []
    assert had(job, judged)[Role.EVALUATOR] == len(provider.requests_to("judge")) == 3 * 2


def test_an_adaptive_tree_is_complete_with_the_samples_it_would_request(spec: RunSpec) -> None:
    adaptive = spec.model_copy(update={"growth": spec.growth.model_copy(update={"mode": "adaptive"})})
    job = asked_directly(adaptive)
    assert lacking(job, adaptive) == []
    assert 0 < had(job, adaptive)[Role.REFINER] <= 3 * SAMPLES[Role.REFINER]


def with_many_questions(spec: RunSpec, folder: Path) -> RunSpec:
    """Return the spec with so many questions that windows of one are many."""
    source = str(write_questions(folder, MANY))
    return spec.model_copy(update={"questions": spec.questions.model_copy(update={"source": source})})


def single(job: Job) -> Sequence[Window]:
    """Return a window for each question."""
    return [[question] for question in job.questions]


def test_other_processes_find_the_same_missing_samples(spec: RunSpec, tmp_path: Path) -> None:
    job = asked_directly(with_many_questions(spec, tmp_path))
    missing = job.questions[7].question_id
    change(f"UPDATE samples SET response = NULL, error = 'lost' WHERE question_id = '{missing}' AND role = 'verifier'")
    found = list(map_items(survey_window, single(job), source_of(job, spec)))
    assert [question.question_id for part in found for question in part.missing] == [missing]
    assert [part.stored for part in found if not part.missing] == [SAMPLES] * (MANY - 1)


def test_many_windows_give_the_same_trees_as_one(spec: RunSpec, provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.faults = mishaps.when(lambda asked: "What is 1 + 10?" in asked.prompt, mishaps.context_overflow())
    job = asked_directly(with_many_questions(spec, tmp_path))
    ahead = list(chain.from_iterable(map_items(read_trees, single(job), source_of(job, spec))))
    assert ahead == read_trees(job.questions, source_of(job, spec))
    assert [tree.valued.tree.complete for tree in ahead] == [place != 1 for place in range(MANY)]


def test_a_damaged_answer_is_the_store_s_fault_wherever_it_is_read(spec: RunSpec, tmp_path: Path) -> None:
    job = asked_directly(with_many_questions(spec, tmp_path))
    change("UPDATE samples SET response = 'half of {' WHERE role = 'refiner'")
    with pytest.raises(StoreError, match="is damaged"):
        surveyed(job, spec)
    with pytest.raises(StoreError, match="is damaged"):
        list(map_items(read_trees, single(job), source_of(job, spec)))
