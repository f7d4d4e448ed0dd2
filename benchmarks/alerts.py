"""Prints whether `malt up` sends one alert a failure, how soon, and with which state: `python -m benchmarks.alerts`.

Five kinds of failure, four runs each. The processes of the last kind are suspended (SIGSTOP), as if their machine was
lost: only those are for `mark-crashed`.
"""

import os
import signal
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from tests import mishaps
from tests.flows.service.conftest import ENDED, Json, Prefect, declared, in_form, pid_of, start, wait_for
from tests.postgres import free_port
from tests.providers import ScriptedProvider

EACH = 4
HEAD = ("kind of failure", "runs", "told of once", "with the state", "slowest s", "marked by mark-crashed")


class Failures:
    """Starts runs that fail in different ways, on one server with one provider."""

    def __init__(self, client: Prefect, provider: ScriptedProvider, folder: Path) -> None:
        self.client, self.provider, self.folder = client, provider, folder

    def begin(self, kind: str, **changed: Json) -> list[str]:
        """Start the runs of one kind of failure; return their ids."""
        ids = []
        for number in range(EACH):
            own = self.folder / f"{kind}-{number}"
            own.mkdir()
            spec = in_form(declared(own.name, own, self.provider, 1, run={"tracking": "branch"}, **changed))
            ids.append(str(self.client.trigger("generate", spec=spec).raise_for_status().json()["id"]))
        return ids

    def end(self, ids: list[str]) -> list[str]:
        """Wait until runs have ended; return their ids."""
        for each in ids:
            self.client.ended(each)
        return ids

    def signal_once_they_ask(self, kind: str, number: signal.Signals) -> list[str]:
        """Start runs and send them a signal while their first requests are in flight."""
        sent, self.provider.holds = self.provider.request_count, True
        ids = self.begin(kind)
        wait_for(lambda: self.provider.request_count >= sent + EACH)
        for each in ids:
            os.kill(pid_of(each), number)
        self.provider.holds = False
        return ids

    def with_fault(self, kind: str, fault: mishaps.Fault) -> list[str]:
        """Run with a fault for all requests to the refiner."""
        self.provider.faults = mishaps.when(lambda asked: asked.model == "refiner-model", fault)
        ids = self.end(self.begin(kind))
        self.provider.faults = None
        return ids


def provoke(failures: Failures) -> dict[str, list[str]]:
    """Return the ids of failed runs, by kind."""
    silent = failures.signal_once_they_ask("silent", signal.SIGSTOP)
    by_kind = {
        "failed branches": failures.with_fault("branches", mishaps.context_overflow()),
        "no question file": failures.end(failures.begin("nowhere", questions={"source": "/nowhere.jsonl"})),
        "wrong key": failures.with_fault("key", mishaps.wrong_key()),
        "process killed": failures.end(failures.signal_once_they_ask("killed", signal.SIGKILL)),
        "gone without a word": failures.end(silent),
    }
    assert failures.end(failures.begin("fine"))
    return by_kind


def runs_by_subject(client: Prefect, flow: str) -> dict[str, list[Json]]:
    """Return the runs of an alerting flow, by the id of the run that each is about."""
    told: dict[str, list[Json]] = {}
    for run in (run for state in ENDED for run in client.flow_runs(flow, state)):
        told.setdefault(run["parameters"]["resource"].removeprefix("prefect.flow-run."), []).append(run)
    return told


def seconds_until_sent(client: Prefect, flow_run_id: str, alert: Json) -> float:
    """Return the time from a run's state change until the alert about that state was sent."""
    states = client.http.get("/flow_run_states/", params={"flow_run_id": flow_run_id}).raise_for_status().json()
    (began, *_) = (each["timestamp"] for each in states if each["name"] == alert["parameters"]["state"])
    return (datetime.fromisoformat(alert["end_time"]) - datetime.fromisoformat(began)).total_seconds()


def row(
    client: Prefect, kind: str, ids: list[str], alerts: Mapping[str, list[Json]], marked: Mapping[str, object]
) -> str:
    """Return a table's row."""
    once = [alerts[each][0] for each in ids if len(alerts.get(each, ())) == 1]
    states = ", ".join(sorted({alert["parameters"]["state"] for alert in once}))
    slowest = max(seconds_until_sent(client, each, alert) for each in ids for alert in alerts[each])
    return f"| {kind} | {len(ids)} | {len(once)} | {states} | {slowest:.1f} | {sum(each in marked for each in ids)} |"


def measure(client: Prefect, provider: ScriptedProvider, folder: Path) -> None:
    """Provoke all failures, and print their alerts."""
    by_kind = provoke(Failures(client, provider, folder))
    ids = {each for kind in by_kind.values() for each in kind}
    wait_for(lambda: runs_by_subject(client, "notify").keys() >= ids)
    alerts, marked = runs_by_subject(client, "notify"), runs_by_subject(client, "mark-crashed")
    print(f"| {' | '.join(HEAD)} |\n|---{'|---:' * (len(HEAD) - 1)}|")
    for kind, failed in by_kind.items():
        print(row(client, kind, failed, alerts, marked))
    told, needless = sum(map(len, alerts.values())), sum(map(len, marked.values()))
    print(f"\n{told} alerts of {len(ids)} failures; mark-crashed ran {needless} times, for {len(marked)} runs")


def main() -> None:
    """Measure on a separate server."""
    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider() as provider:
        up = start(Path(folder) / "data", "--port", str(free_port()))
        client = Prefect(up)
        try:
            measure(client, provider, Path(folder))
        finally:
            client.http.close()
            up.stop()


if __name__ == "__main__":
    main()
