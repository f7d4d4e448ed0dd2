"""Published: what versions of datasets, models and evaluations have in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from malt.datasets.manifest import VersionManifest

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
