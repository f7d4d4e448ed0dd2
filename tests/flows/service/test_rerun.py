"""Three ways to request failed branches again, on a real server with a real worker; the provider counts requests."""

from collections import Counter
from pathlib import Path

from tests import mishaps
from tests.flows.service.conftest import Prefect, declared, in_form, wait_for
from tests.mishaps import Asked
from tests.providers import ScriptedProvider

QUESTIONS = 4
BRANCHES = 13 * QUESTIONS
"""Requests, one a branch: 52."""
BROKEN = ("What is 0 + 10?", "What is 1 + 10?")


def breaking(provider: ScriptedProvider, count: int) -> set[str]:
    """Let the first `count` refiner prompts about two questions fail until they are removed from the returned set."""
    broken: set[str] = set()
    failed: list[str] = []

    def is_broken(request: Asked) -> bool:
        is_listed = request.model == "refiner-model" and any(text in request.conversation for text in BROKEN)
        if is_listed and len(failed) < count:
            failed.append(request.conversation)
            broken.add(request.conversation)
        return request.conversation in broken

    provider.faults = mishaps.when(is_broken, mishaps.context_overflow())
    return broken


def test_retry_a_new_run_and_rerun_request_exactly_the_missing_branches(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    spec = declared("healing", tmp_path, provider, QUESTIONS, run={"tracking": "question"})
    broken = breaking(provider, 9)
    failed = prefect.run("generate", spec=in_form(spec))
    assert failed["state_type"] == "FAILED"
    assert failed["state"]["message"].startswith("9 failed branches")
    assert provider.request_count == BRANCHES
    check_task_runs(prefect, failed["id"])

    for way, still_missing in (("retry", 6), ("again", 3), ("rerun", 0)):
        missing, requests_before = len(broken), provider.request_count
        while len(broken) > still_missing:
            broken.pop()
        match way:
            case "retry":
                ended = prefect.retry(failed["id"])
            case "again":
                ended = prefect.run("generate", spec=in_form(spec))
            case _:
                ended = prefect.run("rerun", name="healing")
        assert provider.request_count - requests_before == missing, way
        assert ended["state_type"] == ("FAILED" if still_missing else "COMPLETED"), way

    assert len({request.conversation for request in provider.requests}) == BRANCHES
    assert ended["state"]["message"] == f"healing@v{len(prefect.versions('healing'))}: {QUESTIONS} questions complete"
    assert "healing-changes" in prefect.artifacts(ended["id"])


def check_task_runs(prefect: Prefect, flow_run_id: str) -> None:
    """Check that each question is a task run, failed where one of its branches failed, which the log names."""
    wait_for(lambda: len(prefect.task_runs(flow_run_id)) == QUESTIONS + 1 and not prefect.open_task_runs(flow_run_id))
    states = {each["name"]: each["state_type"] for each in prefect.task_runs(flow_run_id)}
    failed = [name.removeprefix("grow ") for name, state in states.items() if state == "FAILED"]
    assert Counter(states.values()) == {"COMPLETED": QUESTIONS + 1 - len(failed), "FAILED": len(failed)}
    logged = prefect.logs(flow_run_id)
    assert 0 < len(failed) < QUESTIONS
    assert all(any(line.startswith(f"{each}/") and ": no refiner: " in line for line in logged) for each in failed)
