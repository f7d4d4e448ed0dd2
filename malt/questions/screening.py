"""Screening: questions that give no training rows, and the split of the others' rows.

It depends on the questions alone, so that `malt plan` can show it before money is spent; trees are grown for all. Of
near duplicates the first counts, and its id decides the split of all of them: adding questions moves none to another
split, and no validation question has a near duplicate in train.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from malt.canonical_json import digest
from malt.config.base import Recorded
from malt.config.spec import DatasetSpec
from malt.errors import QuestionError
from malt.questions.question import Question, read_cell
from malt.questions.readers import read_rows, strip_secrets
from malt.questions.shingles import Hashes, find_near_duplicates, hash_runs, split_words

CONTAMINATED, DUPLICATE = "decontaminate", "duplicate_questions"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_TEXT_COLUMNS = ("question", "problem", "prompt", "text")
"""Columns of a test set that may hold the question; the first that a row fills is read."""


class HeldOutSet(Recorded):
    """A test set that the questions were compared with."""

    source: str
    rows: int
    sha256: str
    """Digest of the question texts of its rows."""


class ScreeningCounts(Recorded):
    """Counts of the questions that give no training rows."""

    excluded: dict[str, int]
    """Number of excluded questions by reason."""
    test_sets: tuple[HeldOutSet, ...]
    """Test sets named in `decontaminate`."""


class Exclusion(NamedTuple):
    """Reason why a question gives no training rows."""

    reason: str
    """Gate that excludes it: `decontaminate` or `duplicate_questions`."""
    by: str
    """Row of the test set, or id of the earlier question that asks the same."""


@dataclass(frozen=True)
class Screening:
    """Result of screening some questions."""

    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    """Exclusions by question id."""
    originals: Mapping[str, str] = field(default_factory=dict)
    """Id of the first question that asks the same, by question id, whether or not duplicates are dropped."""
    test_sets: tuple[HeldOutSet, ...] = ()

    def choose_split(self, question_id: str, spec: DatasetSpec) -> Split:
        return choose_split(self.originals.get(question_id, question_id), spec.validation)

    def select(self, question_ids: Iterable[str]) -> "Screening":
        ids = list(question_ids)
        excluded = {each: self.excluded[each] for each in ids if each in self.excluded}
        originals = {each: self.originals[each] for each in ids if each in self.originals}
        return replace(self, excluded=excluded, originals=originals)

    @property
    def counts(self) -> ScreeningCounts:
        reasons = Counter(exclusion.reason for exclusion in self.excluded.values())
        return ScreeningCounts(excluded=dict(sorted(reasons.items())), test_sets=self.test_sets)


def choose_split(question_id: str, validation: float) -> Split:
    """Choose a split by a hash of the id alone: adding questions moves none."""
    drawn = int(digest(["split", question_id])[:12], 16) / 16**12
    return "validation" if drawn < validation else "train"


def screen(questions: Sequence[Question], spec: DatasetSpec) -> Screening:
    """Screen questions. Raises `QuestionError` where a test set cannot be read."""
    overlaps = _Overlaps(spec)
    found = ((question.question_id, overlaps.find(question.question)) for question in questions)
    contaminated = {question_id: Exclusion(CONTAMINATED, place) for question_id, place in found if place}
    return screen_known(questions, spec, contaminated, overlaps.test_sets)


def screen_known(
    questions: Sequence[Question],
    spec: DatasetSpec,
    contaminated: Mapping[str, Exclusion],
    test_sets: tuple[HeldOutSet, ...] = (),
) -> Screening:
    """Screen questions whose overlaps with the test sets are known."""
    clean = [question for question in questions if question.question_id not in contaminated]
    alike = find_near_duplicates([question.question for question in clean])
    originals = {clean[place].question_id: clean[first].question_id for place, first in alike.items()}
    duplicates = {each: Exclusion(DUPLICATE, first) for each, first in originals.items()}
    return Screening(
        excluded={**contaminated, **(duplicates if spec.duplicate_questions == "drop" else {})},
        originals=originals,
        test_sets=test_sets,
    )


class _Overlaps:
    """Runs of words in the test sets, and the row that each comes from."""

    def __init__(self, spec: DatasetSpec) -> None:
        self.length = spec.decontaminate_words
        self.test_sets: tuple[HeldOutSet, ...] = ()
        self._places: list[str] = []
        found: list[Hashes] = []
        for source in spec.decontaminate:
            found += self._read(source)
        self._runs = np.concatenate([np.empty(0, dtype=np.uint64), *found])
        self._owners = np.repeat(np.arange(len(found)), [len(each) for each in found])
        order = np.argsort(self._runs, kind="stable")
        self._runs, self._owners = self._runs[order], self._owners[order]

    def find(self, text: str) -> str | None:
        """Return the first row of a test set that a question overlaps with."""
        found = hash_runs(text, self.length) if len(self._runs) and split_words(text) else np.empty(0, np.uint64)
        at = np.searchsorted(self._runs, found)
        at = at[(at < len(self._runs)) & (self._runs[np.minimum(at, len(self._runs) - 1)] == found)]
        return self._places[int(self._owners[at].min())] if len(at) else None

    def _read(self, source: str) -> Iterator[Hashes]:
        """Yield the runs of each row of a test set; record the rows' places and the digest of their texts."""
        sha256, rows = hashlib.sha256(), 0
        for place, text in _read_texts(source):
            sha256.update(text.encode("utf-8", "surrogatepass") + b"\0")
            rows += 1
            self._places.append(place)
            yield hash_runs(text, self.length)
        if not rows:
            raise QuestionError(f"dataset.decontaminate: {strip_secrets(source)} has no rows; name a test set's file")
        self.test_sets += (HeldOutSet(source=strip_secrets(source), rows=rows, sha256=sha256.hexdigest()),)


def _read_texts(source: str) -> Iterator[tuple[str, str]]:
    """Yield place and text of every row of a test set."""
    for row in read_rows(source, "dataset.decontaminate"):
        column = next((name for name in _TEXT_COLUMNS if row.values.get(name)), None)
        if column is None:
            raise QuestionError(
                f"dataset.decontaminate: {row.place}: none of the columns {', '.join(_TEXT_COLUMNS)} is filled; "
                "rename the column that holds the question"
            )
        yield row.place, read_cell(row.values[column], column)
