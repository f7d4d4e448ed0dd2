"""Setting for fault injection: runs of one small dataset, a provider that counts requests, and the accounting.

A request is identified by its whole body. An answer counts as received if the provider sent all of it `WINDOW_S` before
the asking process was killed: reading and committing it take some milliseconds, in which an answer cannot be kept.
Answers within that window are counted separately.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from malt.config.loader import load_spec
from malt.engine.job import read_job
from malt.llm.store.samples import Store
from tests import forking
from tests.configs import REQUESTS, write_config
from tests.mishaps import Asked
from tests.providers import ScriptedProvider, Sent

MALT = str(Path(sys.executable).parent / "malt")
PROJECT = Path(__file__).parents[2]
Running: TypeAlias = "forking.Process | subprocess.Popen[str]"
QUESTIONS = 6
SMALL = ("limits.max_in_flight=4", *(f"roles.{role}.samples=2" for role in REQUESTS))
"""Overrides: 42 requests, four at once."""
LATENCY_S = 0.1
ASKING_S = 1.2
"""Approximate time during which such a run sends requests."""
WINDOW_S = 0.2
RUN_LIMIT_S = 600.0


@dataclass
class Account:
    """Results of the rounds of one fault."""

    kills: int = 0
    rounds: int = 0
    same: int = 0
    """Number of rounds with the digest of an undisturbed run."""
    repeats: int = 0
    """Number of received answers that were requested again."""
    lost: int = 0
    """Number of received answers that were not in the store after the kill."""
    in_window: list[float] = field(default_factory=list)
    """Seconds between each answer that came too late to be kept and the kill."""
    seconds: list[float] = field(default_factory=list)
    """Seconds from each kill to the run's end."""


class Stage:
    """One round, with its own data folder and its requests to the provider."""

    def __init__(self, folder: Path, provider: ScriptedProvider, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MALT"))}
        self.data_dir = folder / "data"
        self.environment = {**outside, "MALT_DATA_DIR": str(self.data_dir), "TEST_KEY": "key", **environment}
        self.store_url = environment.get("MALT_STORE_URL", f"sqlite:///{self.data_dir / 'store.db'}")
        self.config = write_config(folder, provider, QUESTIONS)
        self.provider = provider
        self._asked, self._sent = provider.request_count, len(provider.sent)
        self._looked = self._sent
        self._excused: set[str] = set()

    @property
    def folder(self) -> Path:
        """Folder of the store, or the data folder if the store is in PostgreSQL."""
        return Path(self.store_url.removeprefix("sqlite:///")).parent if "sqlite" in self.store_url else self.data_dir

    @property
    def asked(self) -> list[Asked]:
        return self.provider.requests[self._asked :]

    def start(self, *overrides: str) -> Running:
        """Start `malt run`, or start it again; it is forked unless it needs its own Prefect server."""
        options = [part for override in (*SMALL, *overrides) for part in ("-s", override)]
        command = ["run", str(self.config), "--json", *options]
        if "PREFECT_API_URL" in self.environment:
            return forking.Process(forking.MALT, *command, environment=self.environment)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [MALT, *command], stdout=pipe, stderr=pipe, text=True, cwd=PROJECT, env=self.environment
        )

    def wait_for_requests(self, process: Running, after_s: float) -> bool:
        """Wait until a process sends a new request, and some time longer; return whether it still runs."""
        before, deadline = self.provider.request_count, time.monotonic() + RUN_LIMIT_S
        while self.provider.request_count == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after_s)
        return process.poll() is None

    def look_after_kill(self, killed_at: float, account: Account) -> None:
        """Count the answers that were sent before the kill and are not in the store."""
        stored = self.stored_answers()
        for sent in self.provider.sent[self._looked :]:
            if sent.id in stored:
                continue
            gap = killed_at - sent.at
            account.lost += gap > WINDOW_S
            if gap <= WINDOW_S:
                self._excused.add(sent.id)
                account.in_window.append(gap)
        self._looked = len(self.provider.sent)

    def stored_answers(self) -> set[str]:
        """Return the ids of the provider's answers in the store."""
        spec = load_spec(self.config, SMALL)
        with Store(self.store_url) as store:
            rows = store.rows(question.question_id for question in read_job(spec).questions)
        return {json.loads(row.response)["id"] for row in rows.values() if row.response}

    def repeats(self) -> int:
        """Count the received answers whose request was sent again."""
        last = {identity(asked): asked.at for asked in self.asked}
        return sum(self._is_repeated(sent, last) for sent in self.provider.sent[self._sent :])

    def _is_repeated(self, sent: Sent, last: Mapping[str, float]) -> bool:
        return sent.id not in self._excused and last[identity(sent.asked)] > sent.at


def identity(asked: Asked) -> str:
    """Return the whole body of a request as one text."""
    return json.dumps(asked.body, sort_keys=True)


class Ended(NamedTuple):
    """Exit code, digest and error output of a run."""

    code: int
    digest: str | None
    said: str


def ended(process: Running) -> Ended:
    """Wait for a run's end; return its result."""
    out, err = process.communicate(timeout=RUN_LIMIT_S)
    return Ended(process.wait(), json.loads(out)["content_sha256"] if out else None, err.strip())
