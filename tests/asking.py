"""Asking in earnest, without Prefect, for all that a spec needs."""

from malt.config.spec import RunSpec
from malt.engine.fill import fill_batch
from malt.engine.job import Job, read_job
from malt.engine.run import Run


def asked_directly(spec: RunSpec, run: str = "") -> Job:
    """Return the job, once everything about it was asked that can be had."""
    job = read_job(spec)
    fill_batch(job, Run(run))
    return job
