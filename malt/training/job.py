"""RoleJob: everything that one role's training depends on, sent to the training process as JSON; and its result.

Rows are described from the dataset versions' manifests, and measured with the base's tokenizer.
"""

import fcntl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from malt.canonical_json import digest
from malt.config.roles import PLAYERS, Role
from malt.config.settings import Settings
from malt.config.train import Stage, TrainSpec
from malt.datasets.rows.tables import role_file
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.folders import discard, last_touched, size_of
from malt.models.version import Sample, StageResult
from malt.training.base import Base

_CHANGE_NO_WEIGHT = {"name", "base", "checkpoint_s", *PLAYERS}
LOCK = ".lock"
"""Lock file that the training process holds."""
RESULT_FILE = "result.json"
BASES = "bases"
"""Folder of unpacked bases, beside those of jobs."""
FINAL = "final"
"""Folder of a stage's weights, once they are trained."""


class StageRows(BaseModel):
    """Rows of the dataset versions for one stage."""

    model_config = ConfigDict(frozen=True)

    paths: tuple[Path, ...]
    """One file for each version that has rows, in the versions' order."""
    rows: int
    sha256: str
    """Digest of the rows' values."""


class RoleJob(BaseModel):
    """Training of one role."""

    model_config = ConfigDict(frozen=True)

    role: Role
    base: Base
    stages: tuple[Stage, ...]
    files: dict[Stage, StageRows]
    train: TrainSpec
    training_dir: Path
    """Folder of the models' name; each job has a folder in it."""

    @property
    def inputs_sha256(self) -> str:
        """Digest of everything that determines the role's weights, except the machine and its libraries."""
        unused = {stage for stage in ("sft", "dpo") if stage not in self.stages}
        settings: dict[str, Any] = self.train.model_dump(mode="json", exclude=_CHANGE_NO_WEIGHT | unused)
        return digest(
            {
                "role": self.role.value,
                "stages": list(self.stages),
                "rows": {stage: self.files[stage].sha256 for stage in self.stages},
                "base": self.base.sha256,
                "settings": settings,
            }
        )

    @property
    def work(self) -> Path:
        """Folder of this job: its checkpoints, and in the end the files for the model version."""
        return self.training_dir / f"{self.role}-{self.inputs_sha256[:16]}"

    @property
    def done(self) -> Path:
        return self.work / "done"


class RoleResult(BaseModel):
    """Result of a job."""

    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...]
    inputs_sha256: str
    libraries: dict[str, str]


def lock_of_base(folder: Path) -> Path:
    """Return the lock file of an unpacked base; it is beside the folder, so that it outlasts the folder."""
    return Path(f"{folder}{LOCK}")


def list_jobs(versions: Sequence[DatasetVersion], train: TrainSpec, base: Base, training_dir: Path) -> list[RoleJob]:
    """Return a job for every role that has a stage with rows in any of the versions."""
    jobs = []
    for role, described in find_rows(versions, train).items():
        files = {stage: rows for stage, rows in described.items() if rows.rows}
        if files:
            job = RoleJob(
                role=role, base=base, stages=tuple(files), files=files, train=train, training_dir=training_dir
            )
            jobs.append(job)
    return jobs


def name_skipped(versions: Sequence[DatasetVersion], train: TrainSpec) -> list[str]:
    """Name the declared stages that the versions have no rows for."""
    found = find_rows(versions, train)
    return [f"{role}, {stage}: no rows" for role in found for stage, rows in found[role].items() if not rows.rows]


def find_rows(versions: Sequence[DatasetVersion], train: TrainSpec) -> dict[Role, dict[Stage, StageRows]]:
    """Return the versions' rows for the declared stages of every role; a stage may have none."""
    return {
        role: {stage: _describe_rows(versions, role, stage) for stage in getattr(train, role.value)} for role in PLAYERS
    }


def _describe_rows(versions: Sequence[DatasetVersion], role: Role, stage: Stage) -> StageRows:
    path = role_file(stage, role)
    found = {version.path / path: version.manifest.files.get(path) for version in versions}
    entries = {place: entry for place, entry in found.items() if entry is not None and entry.rows}
    digests = [entry.rows_sha256 or "" for entry in entries.values()]
    sha256 = digests[0] if len(digests) == 1 else digest([*digests])
    return StageRows(paths=tuple(entries), rows=sum(entry.rows or 0 for entry in entries.values()), sha256=sha256)


# The rows of a job: read, and measured with the base's tokenizer and chat template.

_Row = Mapping[str, Any]
ANSWERS: Mapping[Stage, tuple[str, ...]] = {"sft": ("completion",), "dpo": ("chosen", "rejected")}
_TOO_LONG = "longer than max_length"


class Measured(NamedTuple):
    """Rows of a stage, and their lengths."""

    rows: list[dict[str, Any]]
    """Rows to train on, with only their prompt and answers."""
    lengths: list[int]
    """Length of every row, in tokens: the prompt with the longest answer."""
    tokens: int
    """Tokens of the rows to train on, the prompt counted with every answer."""
    lost: dict[str, int]
    """Rows left out, by reason."""


def measure_rows(job: RoleJob, stage: Stage, tokenizer: Any) -> Measured:  # noqa: ANN401 - transformers is not typed
    """Read and measure a stage's rows, and leave out those longer than `max_length`."""
    answers = ANSWERS[stage]
    limit = job.train.settings_of(stage).max_length
    kept, lengths, tokens = [], [], 0
    tables = (pq.read_table(path, columns=["prompt", *answers]) for path in job.files[stage].paths)
    for row in (row for table in tables for row in table.to_pylist()):
        counts = [_count_tokens(tokenizer, row["prompt"], row[answer]) for answer in answers]
        lengths.append(max(counts))
        if lengths[-1] <= limit:
            kept.append(row)
            tokens += sum(counts)
    lost = {_TOO_LONG: len(lengths) - len(kept)} if len(kept) < len(lengths) else {}
    return Measured(kept, lengths, tokens, lost)


def _count_tokens(tokenizer: Any, prompt: Sequence[_Row], answer: Sequence[_Row]) -> int:  # noqa: ANN401
    """Count the tokens of a conversation as the chat template writes it."""
    written = tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=True)
    return len(written["input_ids"])


def find_refusal(job: RoleJob, stage: Stage, found: Measured) -> str | None:
    """Return why a stage must not be trained: too long rows may not be left out, or no row is left; else None."""
    settings, lost, key = job.train.settings_of(stage), found.lost.get(_TOO_LONG, 0), f"train.{stage}"
    longer = f"{len(found.lengths)} {stage} rows are longer than {key}.max_length = {settings.max_length} tokens"
    if lost and settings.too_long == "refuse":
        longest = max(found.lengths)
        left_out = f'{key}.too_long = "drop" to leave them out'
        return f"{job.role}: {lost} of {longer} (the longest has {longest}); raise it, or set {left_out}"
    return None if found.rows else f"{job.role}: all {longer}; raise it"


def spread(lengths: Iterable[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {"shortest": ordered[0], "median": ordered[len(ordered) // 2], "longest": ordered[-1]} if ordered else {}


# Leftovers of training that can be made again: folders of abandoned jobs, and unpacked bases.


class Leftovers(NamedTuple):
    """Number and size of the folders that were found, or deleted."""

    folders: int
    folder_bytes: int


def clear_leftovers(settings: Settings, older_than_s: float, *, delete: bool) -> Leftovers:
    """Count, or delete, the folders below `training/` that no process uses and that have not changed for so long."""
    before, folders, sizes = time.time() - older_than_s, 0, 0
    for folder in sorted(path for path in settings.training_dir.glob("*/*") if path.is_dir()):
        with _lock_unused(folder) as is_unused:
            if is_unused and last_touched(folder) < before:
                folders, sizes = folders + 1, sizes + size_of(folder)
                if delete:
                    discard(folder)
    return Leftovers(folders, sizes)


@contextmanager
def _lock_unused(folder: Path) -> Iterator[bool]:
    """Lock training processes out of a job's folder or an unpacked base; yield False where one uses it."""
    is_base = folder.parent.name == BASES
    lock = lock_of_base(folder) if is_base else folder / LOCK
    if not is_base and not lock.exists():
        yield True
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
