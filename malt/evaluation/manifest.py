"""The manifest of an evaluation version: what was compared, on which questions, by whom and how graded."""

from typing import Any, Literal

from pydantic import ValidationError

from malt.config.base import Recorded
from malt.config.spec import RunSpec
from malt.datasets.manifest import Code, Failure, QuestionsUsed, VersionManifest
from malt.errors import VersionError


class Player(Recorded):
    """Who played a role in a system."""

    model: str
    digest: str | None
    """Of a model version's content; None of a model that is only known by its name."""
    sampling: dict[str, Any]
    """Temperature, tokens, seed: what shapes its texts beside the prompt."""


class EvaluationManifest(VersionManifest):
    """The whole story of one evaluation version."""

    kind: Literal["evaluations"] = "evaluations"
    config: dict[str, Any]
    """The whole spec."""
    prompts: dict[str, str]
    """SHA-256 of every prompt file."""
    questions: QuestionsUsed
    models: dict[str, dict[str, Player]]
    """By system, then by the roles that take part."""
    grader: tuple[str, ...]
    """Kinds of graders, the judge's model last where one is asked."""
    code: Code
    failures: tuple[Failure, ...] = ()

    @property
    def spec(self) -> RunSpec:
        """The declaration that it came from. Raises `VersionError` where this release cannot read it."""
        try:
            return RunSpec.model_validate(self.config)
        except ValidationError as error:
            raise VersionError(
                f"{self.kind}/{self.name}@v{self.version}: its config is no longer a valid one "
                f"({error.errors()[0]['msg']})"
            ) from error
