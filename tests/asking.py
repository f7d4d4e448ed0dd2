"""Real model requests without Prefect: a single one, or all that a spec needs."""

from collections.abc import Sequence

from malt.config.spec import RunSpec
from malt.engine.fill import fill_batch
from malt.engine.job import Job, read_job
from malt.engine.run import Run
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session
from malt.llm.request import Completion, CompletionRequest


def ask(session: Session, request: CompletionRequest) -> Sequence[Completion]:
    return session.run(make_completer(session, [request.question_id])(request))


def asked_directly(spec: RunSpec, run: str = "") -> Job:
    """Return the job after every request that it needs was tried."""
    job = read_job(spec)
    fill_batch(job, Run(run))
    return job
