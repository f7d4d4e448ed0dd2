"""Failed branches are asked for again in three ways, each on a real server by a real worker; the provider counts."""

from pathlib import Path

from tests import mishaps
from tests.flows.service.conftest import Prefect, declared, in_form
from tests.mishaps import Asked
from tests.providers import ScriptedProvider

QUESTIONS = 8
BRANCHES = 13 * QUESTIONS
"""Requests, one a branch: 104."""


def breaking(provider: ScriptedProvider, count: int) -> set[str]:
    """Let the first `count` refiner prompts that come fail until they are taken out of what this returns."""
    broken: set[str] = set()
    seen: list[str] = []

    def is_broken(asked: Asked) -> bool:
        if asked.model == "refiner-model" and len(seen) < count:
            seen.append(asked.conversation)
            broken.add(asked.conversation)
        return asked.conversation in broken

    provider.faults = mishaps.when(is_broken, mishaps.context_overflow())
    return broken


def test_retry_a_new_run_and_rerun_ask_for_exactly_what_is_missing(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    spec = declared("healing", tmp_path, provider, QUESTIONS)
    broken = breaking(provider, 14)
    failed = prefect.run("generate", spec=in_form(spec))
    assert failed["state_type"] == "FAILED"
    assert failed["state"]["message"].startswith("14 failed branches")
    assert provider.request_count == BRANCHES

    for way, still_missing in (("retry", 9), ("again", 4), ("rerun", 0)):
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
    assert ended["state"]["message"] == f"healing@v{len(prefect.versions('healing'))}: 8 questions complete"
    assert "healing-changes" in prefect.artifacts(ended["id"])
