"""`rerun`: part of a dataset is requested again; replaced answers are kept, and nothing is requested twice."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.generate import generate
from flows.rerun import rerun
from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.build import RunSummary
from malt.errors import ConfigError, QuestionError, VersionError
from malt.llm.client.session import close_sessions
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import ASIDE, Store
from tests import mishaps
from tests.configs import REQUESTS, write_config
from tests.providers import ScriptedProvider

QUESTIONS = 3


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """Config of a dataset of three questions that was grown once."""
    path = write_config(tmp_path, provider, QUESTIONS)
    ended(generate, load_spec(path))
    return path


def rerun_of(**parameters: object) -> RunSummary:
    """Run the flow to its end; raise its error."""
    return ended(rerun, name="sums", **parameters)


def ended(flow: Any, *arguments: object, **parameters: object) -> RunSummary:  # noqa: ANN401 - a flow, whose types do not know return_state
    """Run a flow in this process as a new process would."""

    async def result() -> Any:  # noqa: ANN401
        state = await flow(*arguments, **parameters, return_state=True)
        return await state.aresult(raise_on_failure=False)

    close_sessions()
    came = asyncio.run(result())
    if isinstance(came, BaseException):
        raise came
    summary: RunSummary = came
    return summary


def asked_since(provider: ScriptedProvider, before: int) -> Counter[str]:
    return Counter(asked.model for asked in provider.requests[before:])


def first_question() -> str:
    return str(newest().questions["question_id"].iloc[0])


def newest() -> DatasetVersion:
    return open_version("sums")


def stored() -> list[StoredSample]:
    with Store(Settings().store) as store:
        return list(store.rows(newest().questions["question_id"]).values())


@pytest.mark.usefixtures("config")
def test_nothing_is_asked_where_nothing_is_missing(provider: ScriptedProvider) -> None:
    before = provider.request_count
    summary = rerun_of()
    assert provider.request_count == before
    assert (summary.version, summary.created, summary.exit_code) == (1, False, 0)


@pytest.mark.usefixtures("config")
def test_a_refreshed_role_of_one_question_is_asked_anew_and_the_rest_is_not(provider: ScriptedProvider) -> None:
    before, old = provider.request_count, newest()
    question = first_question()
    summary = rerun_of(questions=(question,), roles=(Role.REFINER,), refresh=True)
    assert asked_since(provider, before) == {"refiner": 9}
    assert (summary.version, summary.created) == (2, True)
    changed = newest().trajectories.merge(old.trajectories, on=["question_id", "node_id"], suffixes=("", "_old"))
    other = changed[changed["text"] != changed["text_old"]]
    assert set(other["question_id"]) == {question}
    assert set(other["role"]) == {"refiner"}


@pytest.mark.usefixtures("config")
def test_a_refreshed_answer_regrows_its_subtree(provider: ScriptedProvider) -> None:
    before = provider.request_count
    rerun_of(questions=(first_question(),), roles=(Role.GENERATOR,), refresh=True)
    asked = asked_since(provider, before)
    assert asked["generator"] == 1
    assert asked["verifier"] == REQUESTS["verifier"]
    assert asked["refiner"] == REQUESTS["refiner"]


@pytest.mark.usefixtures("config")
def test_an_answer_that_was_set_aside_is_kept_and_its_seed_is_not_used_again(provider: ScriptedProvider) -> None:
    before = {row.response for row in stored()}
    first = {asked.seed for asked in provider.requests_to("generator")}
    rerun_of(refresh=True)
    kept = stored()
    assert before <= {row.response for row in kept}
    assert sum(ASIDE in row.key for row in kept) == 39 * QUESTIONS
    assert len({asked.seed for asked in provider.requests_to("generator")} - first) == QUESTIONS


@pytest.mark.usefixtures("config")
def test_a_refresh_that_fails_midway_asks_for_the_rest_alone(provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(lambda asked: asked.number % 3 == 0, mishaps.context_overflow())
    before = provider.request_count
    failed = rerun_of(roles=(Role.REFINER,), refresh=True)
    provider.faults, sent = None, provider.request_count
    assert sent - before == 9 * QUESTIONS
    healed = rerun_of()
    assert provider.request_count - sent == failed.failed_branches == 9
    assert (healed.exit_code, healed.complete) == (0, QUESTIONS)


def test_a_role_that_is_named_is_all_that_is_asked(provider: ScriptedProvider, tmp_path: Path) -> None:
    path = write_config(tmp_path, provider, QUESTIONS)
    provider.faults = mishaps.when(lambda asked: asked.model != "generator", mishaps.context_overflow())
    ended(generate, load_spec(path))
    provider.faults, before = None, provider.request_count
    summary = rerun_of(config=str(path), roles=(Role.VERIFIER,))
    assert asked_since(provider, before) == {"verifier": 3 * QUESTIONS}
    assert summary.failed_branches == 9 * QUESTIONS


def test_a_missing_question_or_another_dataset_s_config_is_refused(config: Path, provider: ScriptedProvider) -> None:
    before = provider.request_count
    with pytest.raises(QuestionError, match=r"no question 'q0000' in the dataset; .*questions\.parquet lists them"):
        rerun_of(questions=("q0000",))
    config.write_text(config.read_text().replace('"sums"', '"others"', 1))
    with pytest.raises(ConfigError, match="declares dataset 'others', not 'sums'"):
        rerun_of(config=str(config))
    assert provider.request_count == before


def test_a_dataset_without_a_version_needs_a_config() -> None:
    with pytest.raises(VersionError, match="no dataset 'sums'"):
        rerun_of()
