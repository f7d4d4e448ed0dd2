"""What an evaluation did, in the words of `malt evaluate --json`."""

import time
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from malt.evaluation.job import EvaluationJob
from malt.evaluation.version import EvaluationVersion
from malt.llm.budget import Tally
from malt.trees.tree import FailedBranch


class Evaluated(BaseModel):
    """What came of an evaluation, and what it used. Requests and tokens count this run alone."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)

    evaluation: str
    version: EvaluationVersion | None
    """None where nothing was published."""
    questions: int
    failures: tuple[FailedBranch, ...]
    requests: int
    """Sent to endpoints by this run, retries included."""
    completions: int
    cached_completions: int
    """Taken from the store."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """What this run spent; None where a completion's cost is unknown."""
    wall_s: float
    stopped: str | None
    """Why the run stopped early."""

    @classmethod
    def of(
        cls,
        job: EvaluationJob,
        version: EvaluationVersion | None,
        failures: tuple[FailedBranch, ...],
        tally: Tally,
        started: float,
        stopped: str | None = None,
    ) -> Self:
        """Tell of an evaluation that has ended."""
        used = tally.total
        return cls(
            evaluation=job.spec.name,
            version=version,
            questions=len(job.questions),
            failures=failures,
            requests=used.requests,
            completions=used.completions,
            cached_completions=used.cached_completions,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            cost_usd=used.cost_usd,
            wall_s=time.monotonic() - started,
            stopped=stopped,
        )

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed branches or without a version, 3 stopped at a limit."""
        if self.stopped is not None:
            return 3
        return 1 if self.failures or self.version is None else 0

    @property
    def sentence(self) -> str:
        """How it ended, in one line."""
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        if self.version is None:
            return "no evaluation: no question was answered"
        missing = f", {len(self.failures)} failed branches; run again to ask for just what is missing"
        return f"{self.version.reference}: {self.questions} questions{missing if self.failures else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON: the version's figures beside what this run used."""
        version = self.version
        empty: dict[str, Any] = {"systems": {}, "differences": {}}
        figures = empty if version is None else version.summary.model_dump(mode="json")
        place = {
            "version": None if version is None else version.number,
            "created": version is not None and version.created,
            "path": None if version is None else str(version.path),
            "content_sha256": None if version is None else version.manifest.content_sha256,
        }
        return {**self.model_dump(mode="json", exclude={"version"}), **figures, **place}
