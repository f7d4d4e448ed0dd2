"""Pilot: a few questions asked in earnest, so that a quote can go by what they took. The store keeps what they gave."""

from datetime import UTC, datetime

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import Inputs
from malt.engine.tree_cost import beginning
from malt.llm.client.completers import make_completer
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.client.session import open_session
from malt.questions.question import Question
from malt.trees.pipeline import Shortfall, ask_all


def pilot(inputs: Inputs, spec: RunSpec, settings: Settings, questions: int) -> Shortfall:
    """Ask for the trees of so many questions, spread evenly over all; what the store has of them costs nothing."""
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-pilot"
    chosen = spread(inputs.questions, questions)
    session = open_session(settings, spec.limits, run)

    async def asked() -> Shortfall:
        async with hold_run_lock(spec.name, settings, f"pilot {run}"):
            ask = make_completer(session, [question.question_id for question in chosen], run=run)
            return await ask_all(chosen, spec, inputs.prompts, ask, beginning(ask, spec, inputs.prompts))

    return session.run(asked())


def spread(questions: list[Question], count: int) -> list[Question]:
    """Pick questions at even distances: a file is often sorted by how hard they are."""
    taken = min(count, len(questions))
    return [questions[place * len(questions) // taken] for place in range(taken)]
