"""Failed branches are asked for again in three ways, each on a real server by a real worker; the provider counts."""

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
    """Let the first `count` refiner prompts about two questions fail until they are taken out of what this returns."""
    broken: set[str] = set()
    seen: list[str] = []

    def is_broken(asked: Asked) -> bool:
        about_them = asked.model == "refiner-model" and any(question in asked.conversation for question in BROKEN)
        if about_them and len(seen) < count:
            seen.append(asked.conversation)
            broken.add(asked.conversation)
        return asked.conversation in broken

    provider.faults = mishaps.when(is_broken, mishaps.context_overflow())
    return broken


def test_retry_a_new_run_and_rerun_ask_for_exactly_what_is_missing(
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
        missing, sent = len(broken), provider.request_count
        while len(broken) > still_missing:
            broken.pop()
        match way:
            case "retry":
                ended = prefect.retry(failed["id"])
            case "again":
                ended = prefect.run("generate", spec=in_form(spec))
            case _:
                ended = prefect.run("rerun", name="healing")
        assert provider.request_count - sent == missing, way
        assert ended["state_type"] == ("FAILED" if still_missing else "COMPLETED"), way

    assert len({asked.conversation for asked in provider.requests}) == BRANCHES
    assert ended["state"]["message"] == f"healing@v{len(prefect.versions('healing'))}: {QUESTIONS} questions complete"
    assert "healing-changes" in prefect.artifacts(ended["id"])


def check_task_runs(prefect: Prefect, flow_run_id: str) -> None:
    """Check that each question is a task run, which is red where something of it failed, and the log says what."""
    wait_for(lambda: len(prefect.task_runs(flow_run_id)) == QUESTIONS + 1 and not prefect.open_task_runs(flow_run_id))
    states = {each["name"]: each["state_type"] for each in prefect.task_runs(flow_run_id)}
    failed = [name.removeprefix("grow ") for name, state in states.items() if state == "FAILED"]
    assert Counter(states.values()) == {"COMPLETED": QUESTIONS + 1 - len(failed), "FAILED": len(failed)}
    logged = prefect.logs(flow_run_id)
    assert 0 < len(failed) < QUESTIONS
    assert all(any(line.startswith(f"{each}/") and ": no refiner: " in line for line in logged) for each in failed)
