"""A run in Prefect's UI: task runs for branches or batches with states and edges, the run's state, and artifacts."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, State, TaskRun, TaskRunResult
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Running

from flows.from_config import from_config
from flows.generate import generate
from flows.watch import mark_crashed
from malt.cli.main import exit_code
from tests import mishaps, providers
from tests.configs import write_config
from tests.flows.conftest import Malt, Ran
from tests.providers import ScriptedProvider

BRANCH = ("-s", "run.tracking=branch")
SHARD = ("-s", "run.tracking=shard")
RECORDED_WITHIN_S = 300.0
"""Limit in seconds: the server records task runs in batches, about a second after they end."""


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_config(tmp_path, provider, questions=2)


def last_flow_run(client: SyncPrefectClient) -> FlowRun:
    return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def tracked(expected: int) -> tuple[FlowRun, dict[str, TaskRun]]:
    """Return the last flow run, and its task runs by name once all are recorded."""
    deadline = time.monotonic() + RECORDED_WITHIN_S
    with get_client(sync_client=True) as client:
        flow_run = last_flow_run(client)
        while True:
            filtered = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
            task_runs = client.read_task_runs(flow_run_filter=filtered, limit=200)
            done = [task_run for task_run in task_runs if task_run.state and task_run.state.is_final()]
            if len(done) >= expected or time.monotonic() > deadline:
                return flow_run, {task_run.name: task_run for task_run in task_runs}
            time.sleep(0.2)


def state_of(run: FlowRun | TaskRun) -> State[object]:
    assert run.state is not None
    return run.state


def states(task_runs: Mapping[str, TaskRun]) -> Counter[tuple[str, str | None]]:
    """Count the states' names by the first word of the task runs' names."""
    return Counter((name.split()[0], state_of(task_run).name) for name, task_run in task_runs.items())


def parents(task_run: TaskRun, task_runs: Mapping[str, TaskRun]) -> set[str]:
    """Return the names of the task runs that are inputs of this one."""
    names = {each.id: name for name, each in task_runs.items()}
    inputs = [each for taken in task_run.task_inputs.values() for each in taken]
    return {names[each.id] for each in inputs if isinstance(each, TaskRunResult)}


def artifacts(flow_run: FlowRun) -> dict[str | None, Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        )
    return {artifact.key: artifact for artifact in found}


def question_of(ran: Ran) -> str:
    return ran.summary.failures[0].question_id


def test_every_branch_is_a_task_run_with_its_address_in_its_name(malt: Malt, config: Path) -> None:
    malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(15)
    question = next(name.removeprefix("grade ") for name in task_runs if name.startswith("grade "))
    assert set(task_runs) == {
        f"generator {question}",
        *(f"verifier {question}/{first}" for first in range(3)),
        *(f"refiner {question}/{first}.{second}" for first in range(3) for second in range(3)),
        f"grade {question}",
        "publish sums",
    }


def test_a_branch_is_joined_to_the_one_it_grew_from(malt: Malt, config: Path) -> None:
    malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(15)
    question = next(name.removeprefix("grade ") for name in task_runs if name.startswith("grade "))
    assert parents(task_runs[f"generator {question}"], task_runs) == set()
    assert parents(task_runs[f"verifier {question}/1"], task_runs) == {f"generator {question}"}
    assert parents(task_runs[f"refiner {question}/1.2"], task_runs) == {f"verifier {question}/1"}
    leaves = {f"refiner {question}/{first}.{second}" for first in range(3) for second in range(3)}
    assert parents(task_runs[f"grade {question}"], task_runs) == leaves


def test_a_rerun_shows_every_branch_as_cached(malt: Malt, config: Path) -> None:
    malt("run", config, *BRANCH, "--limit", 1)
    malt("run", config, *BRANCH, "--limit", 1)
    flow_run, task_runs = tracked(15)
    assert states(task_runs) == {
        ("generator", "Cached"): 1,
        ("verifier", "Cached"): 3,
        ("refiner", "Cached"): 9,
        ("grade", "Completed"): 1,
        ("publish", "Completed"): 1,
    }
    assert state_of(flow_run).is_completed()


def test_a_truncated_branch_says_so(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    provider.truncated = lambda asked: asked.model == "verifier"
    malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(15)
    assert states(task_runs)["verifier", "Truncated"] == 3


def test_grading_says_how_many_leaves_are_right(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    provider.script = providers.answering({}, right=1.0)
    malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(15)
    graded = next(task_run for name, task_run in task_runs.items() if name.startswith("grade"))
    assert state_of(graded).message == "27 of 27 leaves right"


def test_a_failed_branch_is_red_with_its_reason_and_the_rest_goes_on(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    fails = mishaps.when(
        lambda asked: "What is 1 + 10?" in asked.prompt and asked.model == "verifier", mishaps.context_overflow()
    )
    provider.faults = fails
    ran = malt("run", config, *BRANCH)
    flow_run, task_runs = tracked(1 + 3 + 9 + 1 + 1 + 3 + 1 + 1)
    assert ran.code == 1
    assert states(task_runs)["verifier", "Failed"] == 3
    assert states(task_runs)["refiner", "Completed"] == 9
    failed = task_runs[f"verifier {question_of(ran)}/0"]
    assert "maximum context length" in (state_of(failed).message or "")
    assert failed.run_count == 1, "what is refused for good is not tried again"
    assert state_of(flow_run).name == "Failed"
    assert state_of(flow_run).message == ran.summary.sentence
    assert (ran.summary.version, ran.summary.complete) == (1, 1)


def test_a_successful_rerun_shows_missing_branches_among_cached_ones(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    provider.faults = mishaps.when(lambda asked: asked.number == 5, mishaps.context_overflow())
    assert malt("run", config, *BRANCH, "--limit", 1).code == 1
    provider.faults, asked = None, provider.request_count
    healed = malt("run", config, *BRANCH, "--limit", 1)
    flow_run, task_runs = tracked(15)
    counted = Counter(
        state for (role, state), count in states(task_runs).items() for _ in range(count) if role in PLAYED
    )
    assert counted == {"Cached": 13 - (provider.request_count - asked), "Completed": provider.request_count - asked}
    assert healed.code == 0
    assert state_of(flow_run).is_completed()


def test_a_branch_waits_for_an_endpoint_that_comes_back(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    """The request is given up after five attempts; Prefect retries the task once after a pause that the UI shows."""
    provider.faults = mishaps.when(
        lambda asked: asked.model == "generator" and asked.attempt < 5, mishaps.server_error(503)
    )
    ran = malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(15)
    [generator] = [task_run for name, task_run in task_runs.items() if name.startswith("generator")]
    with get_client(sync_client=True) as client:
        passed = [state.name for state in client.read_task_run_states(generator.id)]
    assert (ran.code, ran.summary.requests) == (0, 13 + 5)
    assert "AwaitingRetry" in passed
    assert (state_of(generator).name, generator.run_count) == ("Completed", 2)


PLAYED = ("generator", "verifier", "refiner")


def test_received_siblings_hang_below_a_failed_branch(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    """The provider returns one sample a request, and one of three always fails."""
    provider.siblings = "ignored"
    provider.faults = mishaps.when(
        lambda asked: asked.model == "generator" and asked.number == 2, mishaps.context_overflow()
    )
    ran = malt("run", config, *BRANCH, "--limit", 1)
    _, task_runs = tracked(1 + 3 + 9 + 1 + 1)  # all task runs have ended
    counted = states(task_runs)
    assert counted["generator", "Failed"] == 1
    assert (counted["verifier", "Completed"], counted["verifier", "NotReady"]) == (2, 1)
    assert (counted["refiner", "Completed"], counted["refiner", "NotReady"]) == (6, 3)
    graded = [state_of(run) for name, run in task_runs.items() if name.startswith("grade ")]
    assert [(each.name, each.message) for each in graded] == [
        ("Failed", "not graded: 9 of its 27 refinements are missing")
    ]
    generator = f"generator {question_of(ran)}"
    children = [name for name, task_run in task_runs.items() if parents(task_run, task_runs) == {generator}]
    assert len(children) == 3
    assert ran.summary.failed_branches == 1


def test_branches_and_shards_make_the_same_dataset(
    malt: Malt, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_branch = malt("run", config, *BRANCH).summary
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "elsewhere"))
    by_shard = malt("run", config, *SHARD).summary
    assert by_shard.content_sha256 == by_branch.content_sha256
    assert (by_shard.requests, by_shard.completions) == (by_branch.requests, by_branch.completions) == (26, 78)


def test_a_batch_of_questions_is_one_task_run(malt: Malt, config: Path) -> None:
    malt("run", config, *SHARD)
    _, task_runs = tracked(2)
    assert states(task_runs) == {("grow", "Completed"): 1, ("publish", "Completed"): 1}


def test_a_question_whose_tree_is_whole_is_in_no_batch(malt: Malt, config: Path) -> None:
    malt("run", config, *SHARD, "--limit", 1)
    grown = malt("run", config, *SHARD).summary
    assert (grown.requests, grown.cached_completions) == (13, 39)
    again = malt("run", config, *SHARD).summary
    assert (again.requests, again.cached_completions) == (0, 78)
    _, task_runs = tracked(1)
    assert states(task_runs) == {("publish", "Completed"): 1}


def test_auto_tracks_branches_while_they_are_few(malt: Malt, config: Path) -> None:
    malt("run", config, "-s", "run.tracking=auto", "--limit", 1)
    _, task_runs = tracked(15)
    assert len(task_runs) == 15


def test_a_run_leaves_a_page_of_figures_and_a_table_of_failures(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    provider.faults = mishaps.when(lambda asked: "What is 1 + 10?" in asked.prompt, mishaps.context_overflow())
    ran = malt("run", config, *SHARD)
    with get_client(sync_client=True) as client:
        left = artifacts(last_flow_run(client))
    assert set(left) == {"sums-progress", "sums-summary", "sums-report", "sums-failed-branches"}
    assert ran.summary.sentence in str(left["sums-summary"].data)
    assert str(ran.summary.content_sha256) in str(left["sums-summary"].data)
    assert f"{ran.summary.path}/report.html" in str(left["sums-report"].data)
    assert "![the figures](data:image/svg+xml;base64," in str(left["sums-report"].data)
    assert question_of(ran) in str(left["sums-failed-branches"].data)
    assert "maximum context length" in str(left["sums-failed-branches"].data)


def test_a_run_that_misses_nothing_leaves_no_table_of_failures(malt: Malt, config: Path) -> None:
    malt("run", config, *SHARD)
    with get_client(sync_client=True) as client:
        assert set(artifacts(last_flow_run(client))) == {"sums-progress", "sums-summary", "sums-report"}


@pytest.mark.parametrize("tracking", [BRANCH, SHARD], ids=["branch", "shard"])
def test_progress_ends_at_the_number_of_received_samples(malt: Malt, config: Path, tracking: tuple[str, ...]) -> None:
    malt("run", config, *tracking)
    with get_client(sync_client=True) as client:
        progress = artifacts(last_flow_run(client))["sums-progress"]
    assert (progress.data, progress.description) == (100.0, "78 of 78 completions")


def test_a_version_that_changes_the_one_before_tells_what_changed(malt: Malt, config: Path) -> None:
    malt("run", config, *SHARD)
    malt("run", config, *SHARD, "-s", "credit.threshold=0.8")
    with get_client(sync_client=True) as client:
        changes = artifacts(last_flow_run(client))["sums-changes"]
    assert changes.description == "sums@v1 -> sums@v2"
    assert "- config `credit.threshold`: `0.5` → `0.8`" in str(changes.data)
    assert "| `trajectories.parquet` | 78 | 78 | 0 | 0 |" in str(changes.data)


def test_our_own_fault_fails_the_run_and_exits_2_in_one_line(
    config: Path, provider: ScriptedProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    provider.key = "another"
    for tracking in (BRANCH, SHARD):
        assert exit_code(["run", str(config), *tracking]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        assert "TEST_KEY (401)" in printed.err
    with get_client(sync_client=True) as client:
        assert state_of(last_flow_run(client)).is_failed()


def test_a_missing_block_is_reported_before_any_request(
    config: Path, provider: ScriptedProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    role = "--set=roles.generator"
    assert exit_code(["run", str(config), f"{role}.api_key_env=", f"{role}.api_key_block=no-such-block"]) == 2
    assert "api_key_block = 'no-such-block': the Prefect server has no Secret block" in capfd.readouterr().err
    assert provider.request_count == 0


def test_a_form_that_is_wrong_fails_at_once_in_one_sentence_that_names_the_field(config: Path) -> None:
    async def fill_in() -> str:
        state = await from_config(config, overrides=("credit.threshold=1.5",), return_state=True)
        assert state.is_failed()
        return str(state.message)

    said = asyncio.run(fill_in())
    assert "credit.threshold" in said
    assert "\n" not in said


def test_a_run_that_has_just_begun_is_not_taken_for_dead() -> None:
    with get_client(sync_client=True) as client:
        begun = client.create_flow_run(generate, state=Running()).id
        asyncio.run(mark_crashed(f"prefect.flow-run.{begun}"))
        assert state_of(client.read_flow_run(begun)).is_running()
