"""Similarity: what two texts have in common, and what a text has from a reference that its role never saw."""

from functools import lru_cache

from rapidfuzz import fuzz

from malt.datasets.rows.examples import Candidate
from malt.datasets.stats.diagnostics import is_same_answer, stated_verdict
from malt.questions.shingles import find_figures, split_words
from malt.trees.credit import ValuedTree
from malt.trees.tree import Address, Node

_LEAKED_WORDS = 12
"""Words of a reference in a row that nobody writes by chance."""
_SHORTEST_LEAK = 8
"""Words of a whole reference below which a model may well have come upon it by itself."""


def quotes_reference(valued: ValuedTree, node: Node) -> bool:
    """Whether a text quotes a run of words from the reference that its role never saw: neither in the question, nor in
    the texts that it answered to. A short reference is no quotation: a model may come upon it by itself.
    """
    question = valued.tree.question
    secrets = _reference_runs(question.reference or question.ground_truth)
    if not secrets:
        return False
    said = _spoken_words(node.text)
    quoted = [run for run in secrets if run in said]
    if not quoted:
        return False
    above = [valued.tree.nodes[Address(node.address[:depth])].text for depth in range(1, len(node.address))]
    seen = [_spoken_words(text) for text in (question.question, *above)]
    return any(not any(run in text for text in seen) for run in quoted)


@lru_cache(maxsize=1024)
def _reference_runs(reference: str) -> tuple[str, ...]:
    """Return every run of `_LEAKED_WORDS` words of a reference; of a shorter one the whole, of a short one nothing."""
    said = split_words(reference)
    if len(said) < _SHORTEST_LEAK:
        return ()
    length = min(_LEAKED_WORDS, len(said))
    return tuple(f" {' '.join(said[start : start + length])} " for start in range(len(said) - length + 1))


def _spoken_words(text: str) -> str:
    return f" {' '.join(split_words(text))} "


def is_identical(pair: Candidate) -> bool:
    """Say whether two texts are one but for case and space."""
    chosen, rejected = pair.chosen.text, pair.rejected.text
    return chosen == rejected or chosen.casefold().split() == rejected.casefold().split()


def is_near_identical(valued: ValuedTree, pair: Candidate, most: float) -> bool:
    """Whether two texts are more alike than `most` and say the same: not with another number, answer or verdict."""
    if most >= 1:
        return False
    chosen, rejected = pair.texts
    return (
        fuzz.ratio(chosen.text, rejected.text, score_cutoff=100 * most) > 100 * most
        and find_figures(chosen.text) == find_figures(rejected.text)
        and stated_verdict(chosen.text) == stated_verdict(rejected.text)
        and (answer_of(valued, chosen.node) == answer_of(valued, rejected.node) or have_same_answer(valued, pair))
    )


def similarity(pair: Candidate) -> float:
    """Return how alike two texts are: the share of their characters that stay, from 0 to 1 (rapidfuzz's ratio)."""
    return fuzz.ratio(pair.chosen.text, pair.rejected.text) / 100


def have_same_answer(valued: ValuedTree, pair: Candidate) -> bool:
    """Whether both texts give a final answer, and the same one."""
    chosen, rejected = answer_of(valued, pair.chosen.node), answer_of(valued, pair.rejected.node)
    return chosen is not None and rejected is not None and is_same_answer(chosen, rejected)


def answer_of(valued: ValuedTree, node: Node) -> str | None:
    """Return the final answer that was read from a text, for its grade or else for its diagnosis."""
    grade, own = valued.grades.get(node.address), valued.diagnosis.get(node.address)
    if grade is not None and grade.answer is not None:
        return grade.answer
    return own.answer if own is not None else None


def length_ratio(pair: Candidate) -> float:
    """Return the longer text's characters over the shorter one's; an empty one counts as one character."""
    shorter, longer = sorted(len(text.text) for text in pair.texts)
    return longer / max(shorter, 1)
