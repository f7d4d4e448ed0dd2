"""Verification of a version: checks every digest, and recomputes every row from the leaves' grades.

Streams, as publishing does: one question's rows are in memory at a time.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from malt.datasets.manifest import CARD_FILE, MANIFEST_FILE, REPORT_FILE
from malt.datasets.pages.sample import TreeSample, group_failures
from malt.datasets.publish.shard import TreeWriter
from malt.datasets.publish.writer import render_pages, training_metadata
from malt.datasets.rows.files import RowsDigest, digested_columns, example_lines, examples_head
from malt.datasets.rows.selection import estimate_tokens, measure_lengths
from malt.datasets.rows.tables import (
    QUESTION_COLUMNS,
    QUESTIONS,
    QUESTIONS_FILE,
    ROLE_FILES,
    SCHEMAS,
    TRAJECTORIES_FILE,
    DpoRow,
    KtoRow,
    MessageRow,
    QuestionRow,
    SftRow,
    TrajectoryRow,
    training_file,
)
from malt.datasets.stats.counts import code_version, growth_of, ledger_of
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.published import Problem, check_files, check_pages, check_seal
from malt.datasets.version.reading import (
    UNREADABLE,
    Cursor,
    Row,
    exclusion_of,
    is_unread,
    open_parquet,
    parquet_rows,
    question_rows,
    restore_tree,
    screen_again,
)
from malt.errors import VersionError
from malt.questions.screening import Screening
from malt.sanitize import fold_lines
from malt.text import shorten
from malt.trees.adaptive import Rule, nodes_grown
from malt.trees.credit import ValuedTree
from malt.trees.tree import Address

_ROW_FILES = SCHEMAS.keys() | {training_file(role) for role in PLAYERS}
"""Files whose rows have digests."""
_PAGES = frozenset({CARD_FILE, REPORT_FILE})

_SHOWN = 5
"""Problems listed for each file; the rest are counted."""
_LONGEST = 60
"""Maximum length of a quoted value, in characters."""


class _Problems:
    """Problems found, as sentences, by file."""

    def __init__(self) -> None:
        self._first: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, file: str, problem: str) -> None:
        self._counts[file] += 1
        if self._counts[file] <= _SHOWN:
            self._first.setdefault(file, []).append(f"{file}: {fold_lines(problem)}")

    def extend(self, problems: Iterable[Problem]) -> None:
        for file, problem in problems:
            self.add(file, problem)

    @property
    def lines(self) -> list[str]:
        return [line for file in self._first for line in self._lines_of(file)]

    def _lines_of(self, file: str) -> list[str]:
        more = self._counts[file] - _SHOWN
        return [*self._first[file], *([f"{file}: … and {more} more"] if more > 0 else [])]


def verify(version: DatasetVersion) -> list[str]:
    """Return the problems of a version, a sentence each that names file and row; none if it is as it was published.

    Raises `OSError` if the system cannot read a file: the content may still be intact.
    """
    problems = _Problems()
    problems.extend(check_seal(version))
    if version.name != version.manifest.config.get("name"):
        problems.add(MANIFEST_FILE, f"says dataset {version.name!r}, but its config names another dataset")
    readable = _check_files(version, problems)
    try:
        spec = version.spec
    except VersionError as error:
        problems.add(MANIFEST_FILE, str(error))
        return problems.lines
    try:
        if readable:
            _RowCheck(version, spec, problems).run()
    except UNREADABLE as error:
        if is_unread(error):
            raise
        problems.add(QUESTIONS_FILE, f"the rows that follow from it cannot be recomputed ({error})")
    return problems.lines


def list_unchecked(version: DatasetVersion) -> list[str]:
    """Return what `verify` does not check but takes as recorded, a line each."""
    manifest, spec = version.manifest, version.spec
    unchecked = ["that models wrote these texts, and that the leaves' grades are right (malt audit grades them again)"]
    if manifest.screening.test_sets:
        unchecked.append("how the questions overlap with the test sets, which are not in the version")
    if spec.dataset.tokenizer is not None:
        unchecked.append("how many tokens the texts have for the tokenizer")
    if "llm" in spec.evaluator.kind:
        unchecked.append("the judge's tokens and cost, which are in no row")
    if manifest.code != code_version():
        unchecked.append(f"card and report beyond their digests: malt {manifest.code.version} wrote them, not this one")
    return unchecked


def _check_files(version: DatasetVersion, problems: _Problems) -> bool:
    """Check every file's bytes and rows against the manifest; return whether all rows can be read."""
    listed = version.manifest.files
    problems.extend(check_files(version, _ROW_FILES | _PAGES))
    for file in sorted(listed.keys() - _ROW_FILES - _PAGES):
        problems.add(file, "is no file of a version, though the manifest names it")
    readable = [_check_rows(version, file, problems) for file in sorted(_ROW_FILES)]
    return all(readable)


def _check_rows(version: DatasetVersion, file: str, problems: _Problems) -> bool:
    """Check one file's rows against their digest; return whether they can be read."""
    entry = version.manifest.files.get(file)
    if entry is None or not (version.path / file).is_file():
        return False
    if entry.rows_sha256 is None:
        problems.add(MANIFEST_FILE, f"has no digest of the rows of {file}")
        return True
    try:
        rows, sha256 = digest_rows(version.path, file)
    except (OSError, ValueError, pa.ArrowException) as error:
        if is_unread(error):
            raise
        problems.add(file, f"cannot be read ({error})")
        return False
    if (rows, sha256) != (entry.rows, entry.rows_sha256):
        problems.add(file, f"its rows changed since it was published ({entry.rows} then, {rows} now)")
    return True


def digest_rows(folder: Path, file: str) -> tuple[int, str]:
    if file not in SCHEMAS:
        return _digest_lines(folder / file)
    with open_parquet(folder / file) as parquet:
        if parquet.schema_arrow.metadata or not parquet.schema_arrow.equals(SCHEMAS[file]):
            raise ValueError("its columns are not those of a published file")
        digest = RowsDigest(SCHEMAS[file], digested_columns(SCHEMAS[file]))
        for batch in parquet.iter_batches():
            digest.update(batch)
    return digest.rows, digest.hexdigest()


def _digest_lines(path: Path) -> tuple[int, str]:
    sha256, rows = hashlib.sha256(), 0
    for line in example_lines(path):
        sha256.update(line + b"\n")
        rows += 1
    return rows, sha256.hexdigest()


class _RowCheck:
    """Recomputes every row of a version from its trajectories, question by question, as publishing does."""

    def __init__(self, version: DatasetVersion, spec: RunSpec, problems: _Problems) -> None:
        self.version, self.manifest, self.spec, self.problems = version, version.manifest, spec, problems
        self._failures = group_failures(self.manifest)
        self._stored = {file: Cursor(parquet_rows(version.path / file)) for file in (TRAJECTORIES_FILE, *ROLE_FILES)}
        self._lines = {training_file(role): example_lines(version.path / training_file(role)) for role in PLAYERS}

    def run(self) -> None:
        self._check_question_digest()
        _, screening = screen_again(self.version)
        self._check_screening(screening)
        writer = TreeWriter(self.spec, screening)
        questions = self._check_questions(writer)
        self._check_rest()
        self._check_counts(questions, writer)
        self._check_heads()
        if not self.problems.lines and self.manifest.code == code_version():
            self._check_pages(writer.stats.sample)

    def _check_question_digest(self) -> None:
        digest = RowsDigest(QUESTIONS, QUESTION_COLUMNS)
        with pq.ParquetFile(self.version.path / QUESTIONS_FILE) as parquet:
            for batch in parquet.iter_batches():
                digest.update(batch)
        if digest.hexdigest() != self.manifest.questions.sha256:
            self.problems.add(QUESTIONS_FILE, "its questions are not those that the manifest says were asked")

    def _check_screening(self, screening: Screening) -> None:
        for row in question_rows(self.version):
            question_id = row["question_id"]
            if row["split"] != screening.choose_split(question_id, self.spec.dataset):
                self.problems.add(QUESTIONS_FILE, f"question {question_id!r} does not belong in split {row['split']!r}")
            if exclusion_of(row) != screening.excluded.get(question_id):
                self.problems.add(QUESTIONS_FILE, f"question {question_id!r}: its exclusion differs from the screening")

    def _check_questions(self, writer: TreeWriter) -> Counter[bool]:
        """Check every tree, in order; return the numbers of complete (True) and incomplete (False) questions."""
        questions: Counter[bool] = Counter()
        for question in question_rows(self.version):
            questions[question["complete"]] += 1
            if question["complete"]:
                self._check_question(question, writer)
            else:
                writer.stats.sample.add(question, (), self._failures.get(question["question_id"], ()))
        return questions

    def _check_question(self, question: QuestionRow, writer: TreeWriter) -> None:
        question_id = question["question_id"]
        stored = {file: cursor.take(question_id) for file, cursor in self._stored.items()}
        try:
            valued = self._restore(question, stored)
        except UNREADABLE as error:
            self.problems.add(TRAJECTORIES_FILE, f"question {question_id!r} cannot be read ({error})")
            return
        if valued.tree.nodes.keys() != self._expected_addresses(valued):
            self.problems.add(TRAJECTORIES_FILE, f"question {question_id!r}: its nodes are not those of its config")
        if self.spec.dataset.tokenizer is None:
            self._check_lengths(valued)
        writer.rows, writer.lines = {}, {}
        writer.add(valued)
        for file, rows in stored.items():
            self._compare(file, writer.rows.get(file, ()), rows)
        for file, lines in writer.lines.items():
            for line in lines:
                if next(self._lines[file], None) != line:
                    self.problems.add(file, f"an example of question {question_id!r} does not match its node")

    def _restore(self, question: QuestionRow, stored: Mapping[str, Sequence[Row]]) -> ValuedTree:
        """Rebuild a tree. Prompts are taken from the training rows; all siblings have the same prompt."""
        by_parent: dict[str, list[list[MessageRow]]] = {}
        for path in ROLE_FILES:
            for row in cast("Sequence[SftRow | DpoRow | KtoRow]", stored[path]):
                by_parent.setdefault(parent_of(row), []).append(row["prompt"])
        prompts = {parent: _most_common(siblings) for parent, siblings in by_parent.items()}
        return restore_tree(question, cast("list[TrajectoryRow]", stored[TRAJECTORIES_FILE]), prompts, self.spec)

    def _expected_addresses(self, valued: ValuedTree) -> set[Address]:
        """Return the addresses of a full tree, or those that adaptive growth reaches with these leaves' values."""
        if self.spec.growth.mode == "full":
            levels = [range(samples) for samples in self.spec.roles.branching]
            return {Address(path) for depth in range(len(levels)) for path in itertools.product(*levels[: depth + 1])}
        values = {leaf.address: valued.values.get(leaf.address) for leaf in valued.tree.leaves}
        means = {leaf: value.mean if value else None for leaf, value in values.items()}
        with suppress(KeyError):  # raised for a missing leaf that adaptive growth would have requested
            return nodes_grown(Rule.of(self.spec), means)
        return set()

    def _check_lengths(self, valued: ValuedTree) -> None:
        """Check the estimated lengths; a prompt is known only where one of its rows was kept."""
        for address, recomputed in measure_lengths(valued, estimate_tokens).lengths.items():
            stored, known = valued.lengths[address], valued.tree.nodes[address].prompt
            if stored.text != recomputed.text or (known and stored.prompt != recomputed.prompt):
                question_id = valued.tree.question.question_id
                self.problems.add(TRAJECTORIES_FILE, f"node {address} of question {question_id!r}: wrong length")

    def _compare(self, file: str, expected: Iterable[Row], stored: Sequence[Row]) -> None:
        key = "node_id" if file == TRAJECTORIES_FILE else "row_id"
        unmatched = {row[key]: row for row in stored}
        rows = {row[key]: row for row in expected}
        if len(unmatched) < len(stored):
            self.problems.add(file, f"holds a row of question {stored[0]['question_id']!r} twice")
        elif unmatched.keys() == rows.keys() and list(unmatched) != list(rows):
            self.problems.add(file, f"the rows of question {stored[0]['question_id']!r} are out of order")
        for name, row in rows.items():
            if (published := unmatched.pop(name, None)) is None:
                self.problems.add(file, f"{_name_row(row, key)} is missing")
            elif published != row:
                self.problems.add(file, f"{_name_row(row, key)}: {_first_difference(row, published)}")
        for row in unmatched.values():
            self.problems.add(file, f"{_name_row(row, key)} should not be there by its nodes' labels")

    def _check_rest(self) -> None:
        for file, cursor in self._stored.items():
            for question_id in cursor.left:
                self.problems.add(file, f"holds rows of question {question_id!r}, out of order or without a tree")
        for file, lines in self._lines.items():
            if next(lines, None) is not None:
                self.problems.add(file, "holds more examples than there are valued nodes")

    def _check_counts(self, questions: Counter[bool], writer: TreeWriter) -> None:
        manifest, trees, selection = self.manifest, writer.stats.trees, writer.stats.selection
        update = {"questions": questions.total(), "failed_branches": len(manifest.failures)}
        figures: dict[str, tuple[object, object]] = {
            "counts": (manifest.counts, trees.counts.model_copy(update=update)),
            "counts of what was left out": (manifest.selection, selection.counts),
            "lengths": ((manifest.lengths, manifest.length_bias), (selection.lengths, selection.length_bias)),
            "counts of questions that give no rows": (manifest.screening, writer.screening.counts),
            "diagnostics": (manifest.diagnostics, writer.stats.diagnostics.result),
        }
        for name, (recorded, recomputed) in figures.items():
            self._expect(recorded, recomputed, f"its {name} are not those of the rows")
        growth = growth_of(self.spec, trees.counts)
        self._expect(manifest.growth, growth, "its growth figures do not match its config and rows")
        for role, used in trees.usage.items():
            entry = manifest.tokens.get(role), manifest.cost.get(role)
            self._expect(entry, (used.tokens, used.cost), f"the {role}'s tokens or cost are not the sums of the rows")
        ledger = tuple(entry for entry in manifest.ledger if entry.role in PLAYERS)
        self._expect(ledger, ledger_of(trees.usage), "its ledger does not match the sums of the rows")

    def _expect(self, recorded: object, recomputed: object, problem: str) -> None:
        if recorded != recomputed:
            self.problems.add(MANIFEST_FILE, problem)

    def _check_heads(self) -> None:
        for role in PLAYERS:
            file = training_file(role)
            metadata = training_metadata(self.spec, role, self.manifest.created_at)
            with (self.version.path / file).open("rb") as stream:
                if stream.readline().rstrip(b"\n") != examples_head(metadata, self.manifest.files[file].rows or 0):
                    self.problems.add(file, "its metadata does not match the manifest")

    def _check_pages(self, trees: TreeSample) -> None:
        """Compare the pages to newly rendered ones; the caller makes sure that the code is the version's."""
        files = {file: entry for file, entry in self.manifest.files.items() if file not in _PAGES}
        manifest = self.manifest.model_copy(update={"files": files})
        self.problems.extend(check_pages(self.version, render_pages(manifest, trees)))


def parent_of(row: SftRow | DpoRow | KtoRow) -> str:
    """Return the id of the parent node of a training row's texts; empty for a generation."""
    node_id = row.get("node_id") or row.get("chosen_node_id")
    return str(node_id).rpartition(".")[0]


def _most_common(prompts: Sequence[list[MessageRow]]) -> list[MessageRow]:
    """Return the most common prompt, so that a single changed row does not decide."""
    first = prompts[0]
    return first if all(prompt == first for prompt in prompts) else max(prompts, key=prompts.count)


def _name_row(row: Row, key: str) -> str:
    return str(row[key]) if key == "row_id" else f"node {row[key]} of question {row['question_id']!r}"


def _first_difference(expected: Row, stored: Row) -> str:
    column = next(name for name, value in expected.items() if stored[name] != value)
    actual, recomputed = (shorten(repr(row[column]), _LONGEST) for row in (stored, expected))
    return f"{column} is {actual}, but recomputed {recomputed}"
