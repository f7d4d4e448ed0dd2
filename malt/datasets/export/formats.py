"""Formats that a version can be exported to: a writer for each kind of row, and instructions for users."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from malt.datasets.export import row_formats, tool_files
from malt.datasets.export.row_formats import STEPWISE_COLUMNS, Record, StepwiseRow, stepwise_rows
from malt.datasets.export.tool_files import ExportedFile, ExportManifest
from malt.datasets.rows.files import json_line
from malt.datasets.rows.tables import QUESTIONS_FILE, TRAJECTORIES_FILE, TrajectoryRow, role_file
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import Cursor, open_parquet, parquet_rows, question_rows, reading
from malt.errors import VersionError
from malt.questions.screening import Split

STEPWISE = "prm"
"""Kind of row that is in no file of a version, and that holds all roles."""

_OPENAI_FEWEST_ROWS = 10
_OPENAI_MOST_BYTES = 512 * 10**6


_Writer = Callable[[DatasetVersion, ExportedFile, Path], ExportedFile]
"""Function that writes one file and returns it with its rows counted. Raises `VersionError` for a damaged version."""


@dataclass(frozen=True)
class Format:
    """Format of one tool."""

    about: str
    """Description for a list of formats, one line."""
    use: str
    """Instructions for using the files, in Markdown."""
    writers: Mapping[str, _Writer]
    """Writers by kind of row, for the kinds that the format takes."""
    beside: Callable[[ExportManifest], Mapping[str, str]] = lambda _: {}
    """Function that returns the tool's settings files, by file name."""
    suffix: str = ".jsonl"
    warnings: Callable[[ExportedFile, int], list[str]] = lambda _file, _size: []
    """Function that returns warnings about a file of so many bytes."""


def _as_lines(record: Callable[[Any], Record]) -> _Writer:
    """Return a writer of a role's rows as JSONL, one record a row, in their order."""
    return lambda version, file, path: file.model_copy(
        update={"rows": _write_lines(_role_records(version, file, record), path)}
    )


def _copy(version: DatasetVersion, file: ExportedFile, path: Path) -> ExportedFile:
    source = version.path / source_file(file)
    with reading(version.path, str(source)), open_parquet(source) as parquet:
        rows = parquet.metadata.num_rows
    shutil.copyfile(source, path)
    return file.model_copy(update={"rows": rows})


def _stepwise_lines(version: DatasetVersion, file: ExportedFile, path: Path) -> ExportedFile:
    left_out = Counter[str]()
    rows = _write_lines(_stepwise_rows(version, file.split, left_out), path)
    return file.model_copy(update={"rows": rows, "left_out": dict(left_out)})


def _stepwise_rows(version: DatasetVersion, split: Split, left_out: Counter[str]) -> Iterator[StepwiseRow]:
    """Yield the paths of all trees of a split, a question at a time; count those left out, by fault."""
    questions, trajectories = version.path / QUESTIONS_FILE, version.path / TRAJECTORIES_FILE
    with reading(version.path, str(questions)):
        if all(row["split"] != split for row in parquet_rows(questions, ["split"])):
            return
    with reading(version.path, str(trajectories)):
        nodes = Cursor(parquet_rows(trajectories, STEPWISE_COLUMNS))
        for question in question_rows(version):
            tree = cast(list[TrajectoryRow], nodes.take(question["question_id"]))
            if question["split"] == split:
                yield from stepwise_rows(question, tree, left_out)
        if any(nodes.left):
            raise VersionError(f"{trajectories} is not in the order of its questions; try: malt verify {version.path}")


def _role_records(version: DatasetVersion, file: ExportedFile, record: Callable[[Any], Record]) -> Iterator[Record]:
    path = version.path / source_file(file)
    with reading(version.path, str(path)):
        yield from map(record, parquet_rows(path))


def source_file(file: ExportedFile) -> str:
    if file.role is None:
        raise ValueError(f"rows of kind {file.kind} have no role, and so no file")
    return role_file(file.kind, file.role, file.split)


def _write_lines(rows: Iterable[Record], path: Path) -> int:
    """Write one JSON object a line; return the number of lines."""
    count = 0
    with path.open("wb") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the last one is the count
            file.write(json_line(row) + b"\n")
    return count


def _warn_of_openai_limits(file: ExportedFile, size: int) -> list[str]:
    """Return what OpenAI will refuse; other readers of these formats have other limits."""
    warnings = []
    if file.rows < _OPENAI_FEWEST_ROWS:
        warnings.append(f"{file.path} has {file.rows} rows; OpenAI takes no fewer than {_OPENAI_FEWEST_ROWS}")
    if size > _OPENAI_MOST_BYTES:
        warnings.append(f"{file.path} has {size / 1e6:,.0f} MB; OpenAI takes no more than {_OPENAI_MOST_BYTES / 1e6:g}")
    return warnings


FORMATS: Mapping[str, Format] = {
    "trl": Format(
        about="TRL: the Parquet files as they are (sft, dpo, kto)",
        use="""`trl sft --dataset_name . --dataset_config CONFIG --model_name_or_path MODEL` trains on an `sft` config
of the table; `trl dpo` and `trl kto` on theirs. In Python: `load_dataset(".", "CONFIG", split="train")`.""",
        writers={"sft": _copy, "dpo": _copy, "kto": _copy},
        suffix=".parquet",
    ),
    "openai-sft": Format(
        about="OpenAI fine-tuning, supervised; also Together, Fireworks and others",
        use="""Upload a file with purpose `fine-tune`, and name it as `training_file` or `validation_file` of a job.
Replies in the worked examples of a prompt have `weight` 0: only the last reply is trained on.""",
        writers={"sft": _as_lines(row_formats.openai_supervised)},
        warnings=_warn_of_openai_limits,
    ),
    "openai-dpo": Format(
        about="OpenAI fine-tuning, preference; also Together, Fireworks and others",
        use="""Upload a file with purpose `fine-tune`, and name it as `training_file` or `validation_file` of a job
whose `method` has the type `dpo`.""",
        writers={"dpo": _as_lines(row_formats.openai_preference)},
        warnings=_warn_of_openai_limits,
    ),
    "sharegpt": Format(
        about="conversations of from and value, supervised",
        use="""Each line is one conversation: `system` where there is a system text, then `human` and `gpt` by turns.
Where the prompt has worked examples, they are the earlier turns; train on the last `gpt` turn alone. `id` names the
row: `malt explain` tells where it is from.""",
        writers={"sft": _as_lines(row_formats.sharegpt)},
    ),
    "alpaca": Format(
        about="instruction, input, output, with system and history, supervised",
        use="""`instruction` is the last question, `output` the reply; `input` is empty. `system` and `history` are
LLaMA-Factory's columns for the system text and the worked examples of a prompt, pair by pair: a tool that does not read
them trains without. `id` names the row: `malt explain` tells where it is from.""",
        writers={"sft": _as_lines(row_formats.alpaca)},
    ),
    "axolotl": Format(
        about="Axolotl: sft, dpo and kto, with a config for each role",
        use="""`KIND-ROLE.yaml` is the part of an Axolotl config that names the files and how they are read; add your
model and settings to it. In `sft` each message says whether it is trained on: only the last reply is.""",
        writers={
            "sft": _as_lines(row_formats.axolotl_supervised),
            "dpo": _as_lines(row_formats.axolotl_preference),
            "kto": _as_lines(row_formats.axolotl_unpaired),
        },
        beside=tool_files.axolotl_configs,
    ),
    "llamafactory": Format(
        about="LLaMA-Factory: sft, dpo and kto, with dataset_info.json",
        use="""Set `dataset_dir` to this folder, and `dataset` (or `eval_dataset`) to a name in `dataset_info.json`; or
copy its entries into your own. With `stage: sft` set `mask_history: true`, so that the worked examples of a prompt are
not trained on. `stage` is `dpo` or `kto` for the others.""",
        writers={
            "sft": _as_lines(row_formats.sharegpt),
            "dpo": _as_lines(row_formats.llamafactory_preference),
            "kto": _as_lines(row_formats.llamafactory_unpaired),
        },
        beside=tool_files.llamafactory_info,
    ),
    STEPWISE: Format(
        about="stepwise supervision for process reward models: the three steps of every path",
        use="""Each line is one path of a tree: the question as `prompt`; generation, critique and refinement as
`completions`; whether each is labelled right as `labels`, and its value as `values`. Axolotl reads it with
`process_reward_model: true` and `type: stepwise_supervised`, TRL (until it dropped the trainer in September 2026) with
`trl.experimental.prm`. `malt explain VERSION ID` explains the path's leaf.""",
        writers={STEPWISE: _stepwise_lines},
    ),
}
"""Every format, by the name that `malt export --to` takes."""
