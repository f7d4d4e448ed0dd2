"""Diagnostics: measurements of the roles' quality, counted question by question. `measures` explains each of them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from malt.config.roles import PLAYERS, Role
from malt.config.spec import RunSpec
from malt.datasets.measures import (
    Accuracy,
    Diagnostics,
    FlipTable,
    QuestionMix,
    Share,
    TextCounts,
    Values,
    VerdictTable,
)
from malt.datasets.stats.counts import Mergeable
from malt.grading.answers import normalised, without_stop_tokens
from malt.grading.grades import Grade, Outcome
from malt.sanitize import replace_lone_surrogates
from malt.trees.credit import Interval, OwnAnswer, ValuedTree, wilson
from malt.trees.pipeline import diagnosing
from malt.trees.tree import Address, Node, NodeStatus

_normalise_answer = lru_cache(maxsize=4096)(normalised)
"""Normalise an answer; cached, because one question has few different answers."""

Truth = bool | None
"""Whether an answer is right; None where that is unknown."""


class Ballot(NamedTuple):
    """One text's vote: its answer, and whether that is right."""

    answer: str | None
    truth: Truth
    is_cast: bool = True
    """Whether the text votes; one without an answer or cut off does not."""


class TruthCount(Mergeable):
    """Counter of right, wrong and unknown answers, fed one question at a time."""

    def __init__(self) -> None:
        self._truths: Counter[Truth] = Counter()
        self._questions = 0
        self._right_squared = self._right_known = self._known_squared = 0

    def add(self, truths: Iterable[Truth]) -> None:
        counts = Counter(truths)
        right, known = counts[True], counts[True] + counts[False]
        self._truths.update(counts)
        self._questions += known > 0
        self._right_squared += right * right
        self._right_known += right * known
        self._known_squared += known * known

    @property
    def accuracy(self) -> Accuracy:
        right, wrong, unknown = (self._truths[truth] for truth in (True, False, None))
        if not right + wrong:
            return Accuracy(unknown=unknown)
        low, high = self._interval(right, right + wrong)
        return Accuracy(
            right=right,
            wrong=wrong,
            unknown=unknown,
            percent=round(100 * right / (right + wrong), 2),
            low=round(100 * low, 2),
            high=round(100 * high, 2),
        )

    def _interval(self, right: int, known: int) -> Interval:
        """Return Wilson's interval for the number of independent answers of equal variance (ratio estimator)."""
        share, questions = right / known, self._questions
        spread = self._right_squared - 2 * share * self._right_known + share * share * self._known_squared
        if questions < 2 or spread <= 0:
            return wilson(share, questions)
        variance = spread / known**2 * questions / (questions - 1)
        return wilson(share, max(1.0, min(known, share * (1 - share) / variance)))


def majority(ballots: Sequence[Ballot]) -> Truth:
    """Return whether the most frequent answer is right; of equally frequent ones, the one given first.

    Right answers count as one answer: all equal the reference. Wrong ones are told apart by their words; those that a
    judge found wrong without reading an answer count as one. Where all abstain: wrong, or None if none is known.
    """
    cast = [ballot for ballot in ballots if ballot.is_cast and (ballot.answer, ballot.truth) != (None, None)]
    if not cast:
        return any_right(ballots)
    votes = Counter(map(_vote_key, cast))
    winner = max(votes, key=votes.__getitem__)
    return any_right(ballot for ballot in cast if _vote_key(ballot) == winner)


def _vote_key(ballot: Ballot) -> tuple[bool, str]:
    return (True, "") if ballot.truth else (False, _normalise_answer(ballot.answer or ""))


def any_right(ballots: Iterable[Ballot]) -> Truth:
    """Return whether at least one answer is right; None where none is known to be right or wrong."""
    known = [ballot.truth for ballot in ballots if ballot.truth is not None]
    return any(known) if known else None


_VERDICT = re.compile(
    r"^[^\w\n]{0,20}verdict[^\w\n]{1,20}(?:(?P<correct>correct|right)|wrong|incorrect)\b", re.IGNORECASE | re.MULTILINE
)
"""Verdict of a critique, on a line of its own, with or without Markdown."""

_QUOTATION = re.compile(r"""'[^'\n]*'|"[^"\n]*"|`[^`\n]*`""")
"""Quotation in a reason; quotations differ by answer, and would make one reason look like many."""
_LONGEST_REASON, _MOST_REASONS = 200, 20

_NO_ANSWER = {Outcome.UNANSWERED, Outcome.TRUNCATED}

_NOT_DIAGNOSED = OwnAnswer(Outcome.UNKNOWN, None)

_BINS = 10
"""Number of bins for values, which lie in [0, 1]."""


def stated_verdict(critique: str) -> Truth:
    """Return whether a critique's last verdict calls the answer correct; None where it states none."""
    stated = list(_VERDICT.finditer(critique))
    return stated[-1]["correct"] is not None if stated else None


def verdict_among(nodes: Iterable[Node | None]) -> Truth:
    """Return the verdict of the first critique among some nodes; None where there is no critique, or no verdict."""
    return next((stated_verdict(node.text) for node in nodes if node is not None and not node.role.gives_answer), None)


class DiagnosticsCount(Mergeable):
    """Counter of complete trees, from which `Diagnostics` are made."""

    def __init__(self, spec: RunSpec) -> None:
        self._graders = diagnosing(spec.evaluator)
        self._truncated: Truth = False if spec.credit.truncated == "wrong" else None
        answers = ("generator", "refiner", "leaves", "generations_vote", "leaves_vote", "any_leaf")
        self._truths = {name: TruthCount() for name in answers}
        """Counts by the field of `Diagnostics` that they become."""
        self._values: Counter[tuple[Role, int, bool]] = Counter()
        self._flips: Counter[tuple[Truth, Truth]] = Counter()
        self._verdicts: Counter[tuple[Truth, Truth]] = Counter()
        self._same: Counter[bool] = Counter()
        self._texts: dict[tuple[Role, str], Counter[str]] = {}
        self._graded_by: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._doubts: Counter[str] = Counter()
        self._questions: Counter[frozenset[bool]] = Counter()

    def add(self, valued: ValuedTree) -> None:
        for node in valued.tree.nodes.values():
            self._add_text(node, _outcome_of(valued, node))
            if not node.role.gives_answer:
                truth = self._own_truth(valued, node.address.parent)
                self._verdicts[stated_verdict(node.text), truth] += 1
            elif node.address.is_leaf:
                self._add_leaf(valued, node.address)
        for address, value in valued.values.items():
            self._values[address.role, bin_of(value.mean), value.label(valued.threshold)] += 1
        self._add_answers(valued)
        labels = {valued.label(leaf.address) for leaf in valued.tree.leaves}
        self._questions[frozenset(label for label in labels if label is not None)] += 1

    @property
    def result(self) -> Diagnostics:
        return Diagnostics(
            graders=self._graders,
            **{name: count.accuracy for name, count in self._truths.items()},
            values={role.value: self._values_of(role) for role in PLAYERS},
            flips=_flip_table(self._flips),
            verdicts=_verdict_table(self._verdicts),
            unchanged=_share(self._same[True], self._same.total()),
            texts={role.value: self._texts_of(role) for role in PLAYERS},
            unknown=dict(sorted(self._unknown.items(), key=lambda each: (-each[1], each[0]))[:_MOST_REASONS]),
            graded_by=dict(sorted(self._graded_by.items())),
            unread=_share(self._doubts["unread"], self._doubts["leaves"]),
            disputed=_share(self._doubts["disputed"], self._doubts["leaves"]),
            questions=_question_mix(self._questions),
        )

    def _truth(self, outcome: Outcome) -> Truth:
        return self._truncated if outcome is Outcome.TRUNCATED else outcome.truth

    def _own_truth(self, valued: ValuedTree, address: Address) -> Truth:
        own = valued.diagnosis.get(address)
        return None if own is None else self._truth(own.outcome)

    def _add_leaf(self, valued: ValuedTree, leaf: Address) -> None:
        grade, generation = valued.grades[leaf], Address(leaf[:1])
        before, after = self._own_truth(valued, generation), self._own_truth(valued, leaf)
        self._flips[before, after] += 1
        if grade.outcome is Outcome.UNKNOWN:
            self._unknown[_reason_of(grade)] += 1
        elif grade.outcome is not Outcome.TRUNCATED:
            self._graded_by[grade.grader] += 1
        self._doubts.update(leaves=1, unread=grade.is_unread, disputed=grade.is_disputed)
        first, last = valued.diagnosis.get(generation), valued.diagnosis.get(leaf)
        if first and last and first.answer is not None and last.answer is not None:
            self._same[is_same_answer(first.answer, last.answer)] += 1

    def _add_answers(self, valued: ValuedTree) -> None:
        """Count the answers of one question's generations, refinements and leaves, singly and by vote."""
        first = sorted(address for address in valued.tree.nodes if address.role is PLAYERS[0])
        last = sorted(leaf.address for leaf in valued.tree.leaves)
        generations = [self._ballot(*valued.diagnosis.get(address, _NOT_DIAGNOSED)) for address in first]
        leaves = [self._ballot(valued.grades[leaf].outcome, valued.grades[leaf].answer) for leaf in last]
        self._truths["generator"].add(ballot.truth for ballot in generations)
        self._truths["refiner"].add(self._own_truth(valued, leaf) for leaf in last)
        self._truths["leaves"].add(ballot.truth for ballot in leaves)
        self._truths["generations_vote"].add([majority(generations)])
        self._truths["leaves_vote"].add([majority(leaves)])
        self._truths["any_leaf"].add([any_right(leaves)])

    def _ballot(self, outcome: Outcome, answer: str | None) -> Ballot:
        return Ballot(answer, self._truth(outcome), is_cast=outcome not in _NO_ANSWER)

    def _values_of(self, role: Role) -> Values:
        counts = self._values
        right, wrong = (tuple(counts[role, place, label] for place in range(_BINS)) for label in (True, False))
        return Values(right=right, wrong=wrong)

    def _add_text(self, node: Node, outcome: Outcome | None) -> None:
        counts = self._texts.setdefault((node.role, node.completion.model), Counter())
        counts["nodes"] += 1
        counts[node.status] += 1
        counts["stop_tokens"] += without_stop_tokens(node.text) != node.text
        counts["answers"] += outcome is not None
        counts["unanswered"] += outcome is Outcome.UNANSWERED

    def _texts_of(self, role: Role) -> dict[str, TextCounts]:
        return {model: _text_counts(counts) for (who, model), counts in sorted(self._texts.items()) if who is role}


def _outcome_of(valued: ValuedTree, node: Node) -> Outcome | None:
    """Return a node's outcome: a leaf's by its grade, another's by the diagnosis. None for a critique."""
    own = valued.grades[node.address] if node.address.is_leaf else valued.diagnosis.get(node.address)
    return None if own is None else own.outcome


def _reason_of(grade: Grade) -> str:
    line = next(iter(replace_lone_surrogates(grade.error or "").strip().splitlines()), "no reason given")
    return _QUOTATION.sub("…", line)[:_LONGEST_REASON]


def is_same_answer(first: str, last: str) -> bool:
    """Whether two answers are the same but for case, space and markup."""
    return first == last or _normalise_answer(first) == _normalise_answer(last)


def bin_of(value: float) -> int:
    """Return the index of a value's bin, rounding first: floating point puts some means just below a border."""
    return min(int(round(value * _BINS, 9)), _BINS - 1)


def _share(count: int, whole: int) -> Share:
    return Share(count=count, percent=percent(count, whole))


def percent(count: int, whole: int) -> float | None:
    """Return a share in percent; None where the whole is 0."""
    return round(100 * count / whole, 2) if whole else None


def _flip_table(counts: Counter[tuple[Truth, Truth]]) -> FlipTable:
    fixed, kept = counts[False, True], counts[True, True]
    missed, broken = counts[False, False], counts[True, False]
    whole = fixed + kept + missed + broken
    return FlipTable(
        wrong_to_right=_share(fixed, whole),
        right_to_right=_share(kept, whole),
        wrong_to_wrong=_share(missed, whole),
        right_to_wrong=_share(broken, whole),
        lift_points=percent(fixed - broken, whole),
    )


def _verdict_table(counts: Counter[tuple[Truth, Truth]]) -> VerdictTable:
    agree, differ = counts[True, True] + counts[False, False], counts[True, False] + counts[False, True]
    return VerdictTable(
        correct_on_right=counts[True, True],
        correct_on_wrong=counts[True, False],
        wrong_on_right=counts[False, True],
        wrong_on_wrong=counts[False, False],
        unstated=counts[None, True] + counts[None, False],
        agree=_share(agree, agree + differ),
    )


def _text_counts(counts: Counter[str]) -> TextCounts:
    nodes = counts["nodes"]
    return TextCounts(
        nodes=nodes,
        truncated=_share(counts[NodeStatus.TRUNCATED], nodes),
        empty=_share(counts[NodeStatus.EMPTY], nodes),
        refused=_share(counts[NodeStatus.REFUSED], nodes),
        stop_tokens=_share(counts["stop_tokens"], nodes),
        unanswered=_share(counts["unanswered"], nodes) if counts["answers"] else None,
    )


def _question_mix(counts: Counter[frozenset[bool]]) -> QuestionMix:
    whole = counts.total()
    return QuestionMix(
        all_right=_share(counts[frozenset({True})], whole),
        all_wrong=_share(counts[frozenset({False})], whole),
        mixed=_share(counts[frozenset({True, False})], whole),
        unknown=_share(counts[frozenset()], whole),
    )
