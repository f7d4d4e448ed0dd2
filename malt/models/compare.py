"""Differences between two model versions, and the datasets and rows that a model was trained on."""

from pydantic import BaseModel, JsonValue

from malt.config.roles import PLAYERS, Role
from malt.datasets.check.compare import Change, compare_values, flatten_table
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.errors import VersionError
from malt.models.version import DatasetEntry, ModelVersion


class ModelDiff(BaseModel):
    """Differences between two model versions; empty where they are equal."""

    old: str
    new: str
    same_content: bool
    inputs: dict[str, Change]
    """Base, dataset and settings, by dotted name."""
    roles: dict[str, str]
    """State of each role's weights: same, changed, added or removed."""
    losses: dict[str, Change]
    """Last loss by role and stage."""


def compare_models(old: ModelVersion, new: ModelVersion) -> ModelDiff:
    roles = {*old.manifest.roles, *new.manifest.roles}
    return ModelDiff(
        old=old.reference,
        new=new.reference,
        same_content=old.manifest.content_sha256 == new.manifest.content_sha256,
        inputs=compare_values(_inputs(old), _inputs(new)),
        roles={role: _role_change(old, new, role) for role in PLAYERS if role in roles},
        losses=compare_values(_last_losses(old), _last_losses(new)),
    )


def _inputs(version: ModelVersion) -> dict[str, JsonValue]:
    manifest = version.manifest
    return {
        "base": manifest.base.sha256,
        "dataset": manifest.dataset.reference,
        "dataset.content_sha256": manifest.dataset.content_sha256,
        "dataset.earlier": ", ".join(each.reference for each in manifest.earlier) or None,
        **{f"libraries.{name}": used for name, used in manifest.libraries.items()},
        **dict(flatten_table(manifest.train.model_dump(mode="json"), "train.")),
    }


def _last_losses(version: ModelVersion) -> dict[str, JsonValue]:
    roles = version.manifest.roles.items()
    return {f"{role}.{stage.stage}": stage.loss_last for role, entry in roles for stage in entry.stages}


def _role_change(old: ModelVersion, new: ModelVersion, role: Role) -> str:
    before, after = old.manifest.roles.get(role), new.manifest.roles.get(role)
    if before is None or after is None:
        return "added" if before is None else "removed"
    return "same" if before.adapter_sha256 == after.adapter_sha256 else "changed"


class Origin(BaseModel):
    """Dataset, questions and rows that a model version was trained on."""

    version: str
    dataset: str
    content_sha256: str
    questions: list[str]
    rows: dict[str, list[str]]
    """Row ids by file; `malt explain MODEL ROW_ID` shows a row's tree."""
    earlier: "tuple[Origin, ...]" = ()
    """Origins in the datasets of earlier rounds."""

    def home_of(self, row_id: str) -> str:
        """Return the newest dataset that has the row."""
        from_earlier = (each.dataset for each in reversed(self.earlier) if each.has(row_id))
        return self.dataset if self.has(row_id) else next(from_earlier, self.dataset)

    def has(self, row_id: str) -> bool:
        return any(row_id in rows for rows in self.rows.values())


def explain_model(version: ModelVersion) -> Origin:
    """Return a model's training rows and questions. Raises `VersionError` where a dataset changed since training."""
    earlier = tuple(_trace(version, entry) for entry in version.manifest.earlier)
    return _trace(version, version.manifest.dataset).model_copy(update={"earlier": earlier})


def _trace(version: ModelVersion, entry: DatasetEntry) -> Origin:
    """Return a model's training rows and questions from one of its datasets."""
    dataset = _open_dataset(version, entry)
    rows = {
        f"{stage.stage}/{role}": [str(row) for row in getattr(dataset, stage.stage)(role)["row_id"]]
        for role, entry in version.manifest.roles.items()
        for stage in entry.stages
    }
    questions = [str(question) for question in dataset.questions["question_id"]]
    return Origin(version=version.reference, dataset=dataset.reference, content_sha256=entry.content_sha256,
                  questions=questions, rows=rows)  # fmt: skip


def _open_dataset(version: ModelVersion, wanted: DatasetEntry) -> DatasetVersion:
    """Open a dataset that a model was trained on. Raises `VersionError` where it is gone, or has other content."""
    dataset = open_version(wanted.reference)
    if dataset.manifest.content_sha256 != wanted.content_sha256:
        raise VersionError(
            f"{version.reference} was trained on {dataset.reference} of content {wanted.content_sha256[:12]}…, and the "
            f"one here has {dataset.manifest.content_sha256[:12]}…; set MALT_DATA_DIR to where it was trained"
        )
    return dataset
