"""What faults are tried on: runs of one small dataset, a provider that counts what it is asked, and the account.

A request is known by all that it says. An answer counts as had when the provider sent all of it `WINDOW_S` before the
process that asked was killed: reading it and the commit take some milliseconds, and what comes in those cannot be kept.
Answers in that window are counted apart.
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
"""About how long such a run asks."""
WINDOW_S = 0.2
RUN_LIMIT_S = 600.0


@dataclass
class Account:
    """What came of the rounds of one fault."""

    kills: int = 0
    rounds: int = 0
    same: int = 0
    """Rounds whose digest is that of an undisturbed run."""
    repeats: int = 0
    """Answers that were had, and asked for again."""
    lost: int = 0
    """Answers that were had, and not in the store after the kill."""
    in_window: list[float] = field(default_factory=list)
    """Answers that came too late to be kept: seconds between each and the kill."""
    seconds: list[float] = field(default_factory=list)
    """From each kill to the run's end."""


class Stage:
    """One round: a data folder of its own, and what the provider was asked in it."""

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
        """Where its store lies, or would."""
        return Path(self.store_url.removeprefix("sqlite:///")).parent if "sqlite" in self.store_url else self.data_dir

    @property
    def asked(self) -> list[Asked]:
        return self.provider.requests[self._asked :]

    def start(self, *overrides: str) -> Running:
        """Begin `malt run`, or begin it again: forked, unless it starts a server of its own."""
        options = [part for override in (*SMALL, *overrides) for part in ("-s", override)]
        command = ["run", str(self.config), "--json", *options]
        if "PREFECT_API_URL" in self.environment:
            return forking.Process(forking.MALT, *command, environment=self.environment)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [MALT, *command], stdout=pipe, stderr=pipe, text=True, cwd=PROJECT, env=self.environment
        )

    def wait_for_requests(self, process: Running, after_s: float) -> bool:
        """Wait until a process asks for something new, and some time longer; return whether it is still there."""
        before, deadline = self.provider.request_count, time.monotonic() + RUN_LIMIT_S
        while self.provider.request_count == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after_s)
        return process.poll() is None

    def look_after_kill(self, killed_at: float, account: Account) -> None:
        """Find out which answers that were sent before the asking process died are not in the store."""
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
        """The ids of the provider's answers that the store has."""
        spec = load_spec(self.config, SMALL)
        with Store(self.store_url) as store:
            rows = store.rows(question.question_id for question in read_job(spec).questions)
        return {json.loads(row.response)["id"] for row in rows.values() if row.response}

    def repeats(self) -> int:
        """Count the answers that were had and whose request came again."""
        last = {identity(asked): asked.at for asked in self.asked}
        return sum(self._is_repeated(sent, last) for sent in self.provider.sent[self._sent :])

    def _is_repeated(self, sent: Sent, last: Mapping[str, float]) -> bool:
        return sent.id not in self._excused and last[identity(sent.asked)] > sent.at


def identity(asked: Asked) -> str:
    """All that a request says."""
    return json.dumps(asked.body, sort_keys=True)


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    digest: str | None
    said: str


def ended(process: Running) -> Ended:
    """Wait for a run's end."""
    out, err = process.communicate(timeout=RUN_LIMIT_S)
    return Ended(process.wait(), json.loads(out)["content_sha256"] if out else None, err.strip())
