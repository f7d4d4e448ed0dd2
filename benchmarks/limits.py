"""Prints how a run copes with limits and outages of real length: `python -m benchmarks.limits` takes eight minutes.

Trees grow against a scripted provider on loopback, with the production policy. Where 429s are the only fault, requests
have a single attempt, so that a 429 that used up an attempt would show as a failed branch.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from malt.config.limits import Limits
from malt.config.settings import Settings
from malt.errors import RunStopped
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import PATIENT, Policy
from malt.prompts import load_prompts
from malt.questions.question import read_questions
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import Shortfall, ask_all
from tests.mishaps import Asked, Fault, above_rate, rate_limited, server_error, when
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

SETTLING_S = 15.0


class Seen(NamedTuple):
    """Result of a run."""

    shortfall: Shortfall
    wall_s: float
    answered_at: list[float]
    """Times of the answers, in seconds after the start."""


def grow(provider: ScriptedProvider, folder: Path, questions: int, policy: Policy) -> Seen:
    """Grow trees for some questions; samples in the folder's store are reused."""
    spec = spec_of(provider, write_questions(folder, questions))
    one_model = spec.roles.generator
    spec = spec.model_copy(
        update={"roles": spec.roles.model_copy(update=dict.fromkeys(("verifier", "refiner"), one_model))}
    )
    session = Session(Settings(data_dir=folder), Limits(), Endpoints(policy))
    asked = read_questions(spec.questions)
    started = time.monotonic()
    ask = make_completer(session, [question.question_id for question in asked])
    shortfall = session.run(ask_all(asked, TreeInputs(spec, load_prompts(spec.prompts), ask)))
    rows = session.store.rows(question.question_id for question in asked).values()
    begun = time.time() - (time.monotonic() - started)
    answered = {row.created_at - begun for row in rows if row.response and row.sample == 0}
    session.close()
    return Seen(shortfall, time.monotonic() - started, sorted(answered))


def down(since: float, seconds: float) -> Callable[[Asked], Fault | None]:
    """Return faults that last for some seconds."""
    return lambda asked: server_error(503) if since <= asked.at < since + seconds else None


def limited(per_second: float = 20, seconds: float = 60) -> str:
    """Run against an unadvertised limit of requests a second."""
    with ScriptedProvider(faults=above_rate(per_second, rate_limited())) as provider, TemporaryDirectory() as data:
        seen = grow(provider, Path(data), round(per_second * seconds / 13), replace(PATIENT, attempts=1))
    steady = [at for at in seen.answered_at if SETTLING_S <= at <= seen.wall_s - 5]
    rate = (len(steady) - 1) / (steady[-1] - steady[0])
    sent = provider.request_count
    refused = sent - len(seen.answered_at)
    return f"{rate:.1f} answers/s of {per_second:g}; {refused} of {sent} requests refused; {end_of(seen)}"


def shedding(questions: int = 300) -> str:
    """Run against a gateway that refuses a share of the requests at any rate."""
    rates = {share: shed_rate(share, questions) for share in (0.0, 0.02, 0.1)}
    rates_text = ", ".join(
        f"{rate:.0f}/s at {share:.0%} ({rate / rates[0.0] / (1 - share):.2f} of the rest)"
        for share, rate in rates.items()
    )
    return f"{questions} questions at 50 ms: {rates_text}"


def shed_rate(share: float, questions: int) -> float:
    """Return the answers a second if a random share of the requests is refused."""
    chance = random.Random(7)
    faults = when(lambda _asked: chance.random() < share, rate_limited())
    with ScriptedProvider(latency_s=0.05, faults=faults) as provider, TemporaryDirectory() as data:
        seen = grow(provider, Path(data), questions, replace(PATIENT, attempts=1))
    return len(seen.answered_at) / seen.wall_s


def interrupted(seconds: float = 60) -> str:
    """Run through an outage."""
    with ScriptedProvider(latency_s=0.5) as provider, TemporaryDirectory() as data:
        provider.faults = down(time.monotonic() + 5, seconds)
        seen = grow(provider, Path(data), 150, PATIENT)
        longest = max(after - before for before, after in zip(seen.answered_at, seen.answered_at[1:], strict=False))
    return f"down for {seconds:g} s, nothing answered for {longest:.1f} s, then on by itself; {end_of(seen)}"


def ended() -> str:
    """Run against an endpoint that goes down for good, then continue the run."""
    with ScriptedProvider(latency_s=0.5) as provider, TemporaryDirectory() as data:
        provider.faults = down(time.monotonic() + 5, 10**6)
        seen = grow(provider, Path(data), 150, PATIENT)
        kept, provider.faults, sent = provider.completions_sent, None, provider.completions_sent
        after = grow(provider, Path(data), 150, PATIENT)
    bought = provider.completions_sent - sent
    whole = 150 * 39
    return f"{end_of(seen)}; {kept} completions kept, a later run bought {bought} of {whole}; {end_of(after)}"


def end_of(seen: Seen) -> str:
    """Describe how a run ended."""
    stopped = seen.shortfall.stopped
    end = f"exit {RunStopped.exit_code}: {stopped}" if stopped else f"{len(seen.shortfall.failures)} failed branches"
    return f"{end}, {seen.wall_s:.0f} s"


def main() -> None:
    """Print a line for each."""
    os.environ["TEST_KEY"] = "none"
    print(f"limit: {limited()}", flush=True)
    print(f"load shedding: {shedding()}", flush=True)
    print(f"outage: {interrupted()}", flush=True)
    print(f"end: {ended()}", flush=True)


if __name__ == "__main__":
    main()
