"""Diagnostics: what the trees say about the roles, counted as they pass. What the figures mean is in `manifest`."""

import re
from collections import Counter
from functools import lru_cache

from malt.datasets.manifest import Accuracy, Diagnostics, Flips, Portion, QuestionMix, TextCounts, Verdicts
from malt.spec import PLAYERS, Role, RunSpec
from malt.trees.answers import normalised
from malt.trees.assessment import diagnosing
from malt.trees.credit import ValuedTree
from malt.trees.grading import Outcome
from malt.trees.tree import Address, Node, NodeStatus

VERDICT = re.compile(
    r"^[^\w\n]{0,20}verdict[^\w\n]{1,20}(?:(?P<correct>correct|right)|wrong|incorrect)\b", re.IGNORECASE | re.MULTILINE
)
"""A critique's own verdict, on a line of its own, in Markdown or not."""

KNOWN_TRUTH = {Outcome.RIGHT: True, Outcome.WRONG: False, Outcome.UNANSWERED: False}

plain = lru_cache(maxsize=4096)(normalised)
"""The answers to one question are few."""

Truth = bool | None
"""Whether an answer is right; None where nobody knows."""


def stated_verdict(critique: str) -> Truth:
    """Whether a critique's last verdict is that the answer is correct; None where it states none."""
    stated = list(VERDICT.finditer(critique))
    return stated[-1]["correct"] is not None if stated else None


class DiagnosticsCount:
    """Counts complete trees."""

    def __init__(self, spec: RunSpec) -> None:
        self._graders = diagnosing(spec.evaluator)
        self._truncated: Truth = False if spec.credit.truncated == "wrong" else None
        self._generations: Counter[Truth] = Counter()
        self._refinements: Counter[Truth] = Counter()
        self._leaves: Counter[Truth] = Counter()
        self._flips: Counter[tuple[Truth, Truth]] = Counter()
        self._verdicts: Counter[tuple[Truth, Truth]] = Counter()
        self._same: Counter[bool] = Counter()
        self._texts: dict[tuple[Role, str], Counter[str]] = {}
        self._graded_by: Counter[str] = Counter()
        self._questions: Counter[frozenset[bool]] = Counter()

    def add(self, valued: ValuedTree) -> None:
        """Count one tree."""
        for node in valued.tree.nodes.values():
            self._add_text(node, outcome_of(valued, node))
            match node.role:
                case Role.GENERATOR:
                    self._generations[self._own_truth(valued, node.address)] += 1
                case Role.VERIFIER:
                    truth = self._own_truth(valued, node.address.parent)
                    self._verdicts[stated_verdict(node.text), truth] += 1
                case Role.REFINER:
                    self._add_leaf(valued, node.address)
        labels = {valued.label(leaf.address) for leaf in valued.tree.leaves}
        self._questions[frozenset(label for label in labels if label is not None)] += 1

    @property
    def result(self) -> Diagnostics:
        """All figures so far."""
        return Diagnostics(
            graders=self._graders,
            generator=accuracy(self._generations),
            refiner=accuracy(self._refinements),
            leaves=accuracy(self._leaves),
            flips=flips(self._flips),
            verdicts=verdicts(self._verdicts),
            unchanged=portion(self._same[True], self._same.total()),
            texts={role.value: self._texts_of(role) for role in PLAYERS},
            graded_by=dict(sorted(self._graded_by.items())),
            questions=question_mix(self._questions),
        )

    def _truth(self, outcome: Outcome) -> Truth:
        return self._truncated if outcome is Outcome.TRUNCATED else KNOWN_TRUTH.get(outcome)

    def _own_truth(self, valued: ValuedTree, address: Address) -> Truth:
        own = valued.diagnosis.get(address)
        return None if own is None else self._truth(own.outcome)

    def _add_leaf(self, valued: ValuedTree, leaf: Address) -> None:
        grade, generation = valued.grades[leaf], Address(leaf[:1])
        before, after = self._own_truth(valued, generation), self._own_truth(valued, leaf)
        self._leaves[self._truth(grade.outcome)] += 1
        self._refinements[after] += 1
        self._flips[before, after] += 1
        if grade.outcome not in (Outcome.TRUNCATED, Outcome.UNKNOWN):
            self._graded_by[grade.grader] += 1
        first, last = valued.diagnosis.get(generation), valued.diagnosis.get(leaf)
        if first and last and first.answer is not None and last.answer is not None:
            self._same[is_same(first.answer, last.answer)] += 1

    def _add_text(self, node: Node, outcome: Outcome | None) -> None:
        counts = self._texts.setdefault((node.role, node.completion.model), Counter())
        counts["nodes"] += 1
        counts[node.status] += 1
        counts["answers"] += outcome is not None
        counts["unanswered"] += outcome is Outcome.UNANSWERED

    def _texts_of(self, role: Role) -> dict[str, TextCounts]:
        return {model: text_counts(counts) for (who, model), counts in sorted(self._texts.items()) if who is role}


def outcome_of(valued: ValuedTree, node: Node) -> Outcome | None:
    """What became of a node's own answer: by the grade that counts, else by the diagnosis. None for a critique."""
    if node.address.is_leaf:
        return valued.grades[node.address].outcome
    own = valued.diagnosis.get(node.address)
    return None if own is None else own.outcome


def is_same(first: str, last: str) -> bool:
    """Whether two answers are the same but for case, space and markup."""
    return first == last or plain(first) == plain(last)


def portion(count: int, whole: int) -> Portion:
    """Write a count and its share of the whole."""
    return Portion(count=count, percent=percent(count, whole))


def percent(count: int, whole: int) -> float | None:
    """Return a share in percent; None of nothing."""
    return round(100 * count / whole, 2) if whole else None


def accuracy(truths: Counter[Truth]) -> Accuracy:
    """Say how many are right."""
    right, wrong = truths[True], truths[False]
    return Accuracy(right=right, wrong=wrong, unknown=truths[None], percent=percent(right, right + wrong))


def flips(counts: Counter[tuple[Truth, Truth]]) -> Flips:
    """Write the flip table, from counts by the truth before and after."""
    fixed, kept = counts[False, True], counts[True, True]
    missed, broken = counts[False, False], counts[True, False]
    whole = fixed + kept + missed + broken
    return Flips(
        wrong_to_right=portion(fixed, whole),
        right_to_right=portion(kept, whole),
        wrong_to_wrong=portion(missed, whole),
        right_to_wrong=portion(broken, whole),
        lift_points=percent(fixed - broken, whole),
    )


def verdicts(counts: Counter[tuple[Truth, Truth]]) -> Verdicts:
    """Write the table of verdicts, from counts by what was said and what is true."""
    agree, differ = counts[True, True] + counts[False, False], counts[True, False] + counts[False, True]
    return Verdicts(
        correct_on_right=counts[True, True],
        correct_on_wrong=counts[True, False],
        wrong_on_right=counts[False, True],
        wrong_on_wrong=counts[False, False],
        unstated=counts[None, True] + counts[None, False],
        agree=portion(agree, agree + differ),
    )


def text_counts(counts: Counter[str]) -> TextCounts:
    """Write what one model's texts in one role are like."""
    nodes = counts["nodes"]
    return TextCounts(
        nodes=nodes,
        truncated=portion(counts[NodeStatus.TRUNCATED], nodes),
        empty=portion(counts[NodeStatus.EMPTY], nodes),
        refused=portion(counts[NodeStatus.REFUSED], nodes),
        unanswered=portion(counts["unanswered"], nodes) if counts["answers"] else None,
    )


def question_mix(counts: Counter[frozenset[bool]]) -> QuestionMix:
    """Write the kinds of questions, from counts by the labels that their leaves have."""
    whole = counts.total()
    return QuestionMix(
        all_right=portion(counts[frozenset({True})], whole),
        all_wrong=portion(counts[frozenset({False})], whole),
        mixed=portion(counts[frozenset({True, False})], whole),
        unknown=portion(counts[frozenset()], whole),
    )
