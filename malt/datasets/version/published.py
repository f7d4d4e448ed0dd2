"""What versions of datasets, models and evaluations have in common, and which of them a reference names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from malt.config.spec import RunSpec
from malt.datasets.manifest import MANIFEST_FILE, VersionManifest, read_as
from malt.errors import VersionError

M = TypeVar("M", bound=VersionManifest)


@dataclass(frozen=True)
class Published(Generic[M]):
    """One immutable version on disk."""

    path: Path
    manifest: M = field(repr=False)
    created: bool = False
    """Whether the call that returned this made it; equal content makes no new version."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def number(self) -> int:
        return self.manifest.version

    @property
    def reference(self) -> str:
        """How commands name it: `NAME@v3`, of models and evaluations with the shelf before it."""
        shelf = "" if self.manifest.kind == "datasets" else f"{self.manifest.kind}/"
        return f"{shelf}{self.name}@v{self.number}"


Kind = Literal["datasets", "models", "evaluations"]
SHELVES: dict[str, Kind] = {"models": "models", "evaluations": "evaluations"}


def find_kind(reference: str) -> Kind:
    """Return the kind by a folder's manifest, where the reference is a version's folder, else by its shelf."""
    folder = Path(reference).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        return SHELVES.get(reference.partition("/")[0], "datasets")
    try:
        return read_as(VersionManifest, folder, "whole").kind
    except VersionError:  # whoever opens it says what is wrong
        return "datasets"


def read_spec(config: Mapping[str, Any], reference: str) -> RunSpec:
    """Return what a version was declared with. Raises `VersionError` where this release cannot read it."""
    try:
        return RunSpec.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise VersionError(f"{reference}: its config is no longer a valid one ({first})") from error
