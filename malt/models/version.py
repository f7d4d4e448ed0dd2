"""Model versions: open one, list them, and what they have for a role. Writing one is `publishing`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.datasets.manifest import read_as
from malt.datasets.version.dataset_version import Listed, list_opened, locate
from malt.datasets.version.published import Published
from malt.errors import VersionError
from malt.models.manifest import GGUF_FILE, ModelManifest, RoleEntry

if TYPE_CHECKING:
    import pandas as pd

_SHELF = "models"
_FIGURES = ("stage", "rows", "trained", "steps", "loss_first", "loss_last")


@dataclass(frozen=True)
class ModelVersion(Published[ModelManifest]):
    """One immutable version on disk."""

    @property
    def played_as(self) -> str:
        """How configs name it: `NAME@v3`."""
        return f"{self.name}@v{self.number}"

    @property
    def figures(self) -> "pd.DataFrame":
        """One row a role and stage: rows, rows trained, steps, and the loss of the first and last."""
        import pandas as pd

        return pd.DataFrame(
            {"role": role.value, **stage.model_dump(include=set(_FIGURES))}
            for role, entry in self.manifest.roles.items()
            for stage in entry.stages
        )

    def _repr_html_(self) -> str:
        return f"<h3>{self.reference}</h3>{self.figures.to_html(index=False, border=0, float_format='{:.3f}'.format)}"

    def role(self, role: Role) -> RoleEntry:
        """Return what it has for a role. Raises `VersionError` where that was not trained."""
        if role not in self.manifest.roles:
            there = ", ".join(self.manifest.roles)
            raise VersionError(f"{self.reference} has no {role}: it was trained for {there}. Name another model")
        return self.manifest.roles[role]

    def weights(self, role: Role) -> Path:
        """Return the file that the embedded model's server plays a role from. Raises `VersionError` without one."""
        if self.role(role).gguf_sha256 is None:
            raise VersionError(
                f"{self.reference} has no {GGUF_FILE} for the {role}: its base, {self.manifest.base.name}, was no GGUF "
                f"file. Serve its {role}/adapter with a server of your own, and name that server's model in the config"
            )
        return self.path / role / GGUF_FILE


def open_model(reference: str | Path, models_dir: Path | None = None) -> ModelVersion:
    """Open `NAME` (its newest version), `NAME@v3`, either after `models/`, or a folder. Raises `VersionError`."""
    return open_folder(locate(reference, models_dir or Settings().models_dir, _SHELF))


def open_folder(path: Path) -> ModelVersion:
    """Open the version in a folder; a link is followed, so that the path stays this version's."""
    folder = path.resolve()
    return ModelVersion(folder, read_as(ModelManifest, folder, "model"))


def list_models(models_dir: Path, name: str | None = None) -> Listed[ModelVersion]:
    """All versions of one model or of all, by name and number. Raises `VersionError` where `name` has none."""
    return list_opened(models_dir, name, open_folder, f"{_SHELF}/")
