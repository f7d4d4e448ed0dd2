"""Model versions: open one, list them, and what they have for a role. Writing one is `publishing`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from malt.config.settings import Settings
from malt.config.spec import Role
from malt.datasets.manifest import MANIFEST_FILE
from malt.datasets.version.folders import LATEST, version_numbers
from malt.errors import VersionError
from malt.models.manifest import GGUF_FILE, ModelManifest, RoleEntry, read_manifest

NAME = "[a-z0-9-]{1,100}"
KIND = "models/"
"""What commands that take versions of any kind call these by: `models/NAME@v3`."""
REFERENCE = re.compile(rf"({KIND})?(?P<name>{NAME})(@(?P<wanted>v?[1-9][0-9]*|{LATEST}))?")


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version on disk."""

    path: Path
    manifest: ModelManifest = field(repr=False)
    created: bool = False
    """Whether the call that returned this made it; equal content makes no new version."""

    @property
    def name(self) -> str:
        """The models' name."""
        return self.manifest.name

    @property
    def number(self) -> int:
        """The version's number among those of its name."""
        return self.manifest.version

    @property
    def reference(self) -> str:
        """How configs name it: `NAME@v3`."""
        return f"{self.name}@v{self.number}"

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
                f"file. Serve its adapter with vLLM: malt serve-adapters {KIND}{self.reference} --to URL"
            )
        return self.path / role / GGUF_FILE


def is_reference(text: str) -> bool:
    """Whether a text names a model version for certain: `models/NAME…`."""
    return text.startswith(KIND) and REFERENCE.fullmatch(text) is not None


def open_model(reference: str | Path, models_dir: Path | None = None) -> ModelVersion:
    """Open `NAME` (its newest version), `NAME@v3`, either with `models/` before it, or a version's folder.

    Raises `VersionError`, which says what versions there are.
    """
    return open_folder(locate(reference, models_dir))


def locate(reference: str | Path, models_dir: Path | None = None) -> Path:
    """Return the folder of a version, without looking inside."""
    path = Path(reference).expanduser()
    if (path / MANIFEST_FILE).is_file():
        return path.resolve()
    named = REFERENCE.fullmatch(str(reference))
    if named is None:
        raise VersionError(f"{str(reference)[:80]} is neither NAME, NAME@v3, nor a folder with a {MANIFEST_FILE}")
    folder = (Settings().models_dir if models_dir is None else models_dir) / named["name"]
    return folder / f"v{choose(folder, named['wanted'] or LATEST)}"


def choose(folder: Path, wanted: str) -> int:
    """Return the number that is wanted, or the newest one."""
    numbers = version_numbers(folder)
    if not numbers:
        others = ", ".join(model_names(folder.parent)) or "none yet"
        raise VersionError(f"no models {folder.name!r} in {folder.parent}; there are: {others}")
    if wanted == LATEST:
        return numbers[-1]
    number = int(wanted.removeprefix("v"))
    if number not in numbers:
        there = ", ".join(f"v{each}" for each in numbers)
        raise VersionError(f"models {folder.name!r} have no version v{number}; there are: {there}")
    return number


def open_folder(path: Path) -> ModelVersion:
    """Open the version in a folder; a link is followed, so that the path stays this version's."""
    folder = path.resolve()
    return ModelVersion(folder, read_manifest(folder))


def model_names(models_dir: Path) -> list[str]:
    """Return the names that have a version."""
    if not models_dir.is_dir():
        return []
    return sorted(
        entry.name for entry in models_dir.iterdir() if re.fullmatch(NAME, entry.name) and version_numbers(entry)
    )


def list_models(models_dir: Path, name: str | None = None) -> tuple[list[ModelVersion], dict[str, VersionError]]:
    """Return all versions by name and number, and why the others cannot be opened, by reference."""
    if name is not None:
        choose(models_dir / name, LATEST)
    opened, unreadable = list[ModelVersion](), dict[str, VersionError]()
    for folder in (models_dir / each for each in ([name] if name else model_names(models_dir))):
        for number in version_numbers(folder):
            try:
                opened.append(open_folder(folder / f"v{number}"))
            except VersionError as error:
                unreadable[f"{folder.name}@v{number}"] = error
    return opened, unreadable
