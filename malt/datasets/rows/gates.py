"""Gates: every reason to leave a candidate out. `GATES` lists them in the order in which they are applied.

A gate is named after the key of `[dataset]` that sets it. It filters one tree's candidates for one role and one kind of
row. A new gate needs such a key and an entry in `GATES`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from rapidfuzz import fuzz

from malt.config.roles import PLAYERS, Role
from malt.config.spec import DatasetSpec
from malt.datasets.rows.examples import Candidate
from malt.datasets.rows.tables import KINDS, Kind
from malt.datasets.stats.diagnostics import is_same_answer, stated_verdict
from malt.grading.answers import final_answer
from malt.questions.screening import CONTAMINATED, DUPLICATE, Exclusion
from malt.questions.shingles import find_figures, split_words
from malt.trees.credit import ROUNDING, ValuedTree
from malt.trees.tree import Node, NodeStatus


class Context(NamedTuple):
    """Input of the gates besides the candidates."""

    valued: ValuedTree
    role: Role
    spec: DatasetSpec
    excluded: Exclusion | None = None
    """Reason why the whole question gives no rows; None where there is none."""


Keep = Callable[[Context, Sequence[Candidate]], Sequence[Candidate]]
"""Function that returns the candidates that pass, in the order of the tree."""


class Gate(NamedTuple):
    """A reason to leave candidates out."""

    name: str
    kinds: tuple[Kind, ...]
    """Kinds of rows that the gate applies to."""
    keep: Keep
    why: str | Callable[[Context, Candidate], str]
    """Reason why a candidate was left out, as a text or computed from the candidate."""

    def explain(self, context: Context, candidate: Candidate) -> str:
        return self.why if isinstance(self.why, str) else self.why(context, candidate)


def gates_of(kind: Kind) -> list[Gate]:
    return [gate for gate in GATES if kind in gate.kinds]


def _each(passes: Callable[[Context, Candidate], bool]) -> Keep:
    """Return a filter that tests every candidate by itself."""
    return lambda context, candidates: [one for one in candidates if passes(context, one)]


def _unless(shut: Callable[[Context], bool]) -> Keep:
    """Return a filter that drops all candidates where `shut` holds, and else none."""
    return lambda context, candidates: candidates[:0] if shut(context) else candidates


def _unless_excluded(reason: str) -> Keep:
    return _unless(lambda context: context.excluded is not None and context.excluded.reason == reason)


def _excluded_by(context: Context) -> str:
    return context.excluded.by if context.excluded else ""


def _has_no_flaw(context: Context, candidate: Candidate) -> bool:
    return context.spec.flawed_texts == "keep" or all(text.is_whole for text in candidate.texts)


def _is_marked(context: Context, candidate: Candidate) -> bool:
    if context.spec.unmarked_texts == "keep":
        return True
    read = final_answer if context.role.gives_answer else stated_verdict
    return read(candidate.chosen.text) is not None


def _judges_rightly(context: Context, candidate: Candidate) -> bool:
    """Whether a critique's verdict on the answer above is that of the graders, or one of the two is unknown."""
    if context.spec.false_verdicts == "keep" or context.role.gives_answer:
        return True
    above = context.valued.diagnosis.get(candidate.chosen.node.address.parent)
    verdict, truth = stated_verdict(candidate.chosen.text), above and above.outcome.truth
    return None in (verdict, truth) or verdict is truth


def _name_flaws(_: Context, candidate: Candidate) -> str:
    flawed = (text.node for text in candidate.texts if not text.is_whole)
    return " and ".join(f"{node.address} is {_flaw_of(node)}" for node in flawed)


def _flaw_of(node: Node) -> NodeStatus:
    return NodeStatus.EMPTY if node.status is NodeStatus.OK else node.status  # status OK: only stop tokens


def _quotes_no_reference(context: Context, candidate: Candidate) -> bool:
    if context.spec.leaks != "drop" or context.role is PLAYERS[0]:
        return True
    return not any(_quotes_reference(context.valued, text.node) for text in candidate.texts)


def _is_no_repetition(context: Context, pair: Candidate) -> bool:
    """Whether two texts differ in more than case and space."""
    chosen, rejected = (text.text.casefold().split() for text in pair.texts)
    return context.spec.identical_pairs == "keep" or chosen != rejected


def _differs_enough(context: Context, pair: Candidate) -> bool:
    """Whether two texts are no more alike than is allowed, or differ in their numbers, answer or verdict."""
    if context.spec.max_similarity >= 1:
        return True
    most, (chosen, rejected) = 100 * context.spec.max_similarity, pair.texts
    return not (
        _compare(pair, most) > most
        and find_figures(chosen.text) == find_figures(rejected.text)
        and stated_verdict(chosen.text) == stated_verdict(rejected.text)
        and (len(set(_answers_of(context, pair))) == 1 or _have_same_answer(context, pair))
    )


def _answers_differ(context: Context, pair: Candidate) -> bool:
    return context.role not in context.spec.same_answer or not _have_same_answer(context, pair)


def _drop_repeats(context: Context, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Keep the first of the candidates with the same texts under the same parent."""
    if context.spec.repeats != "drop":
        return candidates
    first: dict[tuple[object, ...], Candidate] = {}
    for one in candidates:
        first.setdefault(tuple((text.node.address.parent, text.is_right, text.text) for text in one.texts), one)
    return list(first.values())


def _is_short_enough(context: Context, candidate: Candidate) -> bool:
    return context.spec.max_length is None or candidate.tokens <= context.spec.max_length


def _has_fair_lengths(context: Context, pair: Candidate) -> bool:
    return context.spec.max_length_ratio is None or _length_ratio(pair) <= context.spec.max_length_ratio


def _keep_best(context: Context, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Keep the texts of highest value, the first among equals."""
    return _keep_first(candidates, context.spec.max_examples_per_question, lambda one: one.chosen.value.mean)


def _keep_strongest(context: Context, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Keep the pairs of largest margin, then of largest confidence, then the first; margins are rounded to compare."""
    most = context.spec.max_pairs_per_question
    return _keep_first(candidates, most, lambda pair: (round(pair.margin, 12), pair.confidence))


def _keep_first(
    candidates: Sequence[Candidate], most: int | None, worth: Callable[[Candidate], float | tuple[float, float]]
) -> Sequence[Candidate]:
    if most is None or len(candidates) <= most:
        return candidates
    worths = list(map(worth, candidates))
    ranked = sorted(range(len(candidates)), key=worths.__getitem__, reverse=True)[:most]
    return [candidates[place] for place in sorted(ranked)]


def _balance(context: Context, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Keep as many right as wrong: the right ones of highest value, the wrong ones of lowest, the first among equals.

    A question whose texts all have one label keeps none.
    """
    if context.spec.balance != "labels":
        return candidates
    right = sorted((one for one in candidates if one.chosen.is_right), key=lambda one: -one.chosen.value.mean)
    wrong = sorted((one for one in candidates if not one.chosen.is_right), key=lambda one: one.chosen.value.mean)
    most = min(len(right), len(wrong))
    kept = {one.addresses for one in right[:most] + wrong[:most]}
    return [one for one in candidates if one.addresses in kept]


def _why_unbalanced(_: Context, candidate: Candidate) -> str:
    most, which = ("right", "best") if candidate.chosen.is_right else ("wrong", "worst")
    return f"this question has more texts that are {most}, and only the {which} are kept"


_ALL: tuple[Kind, ...] = tuple(KINDS)

GATES: tuple[Gate, ...] = (
    Gate(
        CONTAMINATED,
        _ALL,
        _unless_excluded(CONTAMINATED),
        lambda context, _: f"the question overlaps with {_excluded_by(context)}, of the sets in decontaminate",
    ),
    Gate(
        DUPLICATE,
        _ALL,
        _unless_excluded(DUPLICATE),
        lambda context, _: f"question {_excluded_by(context)!r} asks the same",
    ),
    Gate(
        "generator_dpo",
        ("dpo",),
        _unless(lambda context: context.role is PLAYERS[0] and not context.spec.generator_dpo),
        "[dataset] generator_dpo is false",
    ),
    Gate("flawed_texts", _ALL, _each(_has_no_flaw), _name_flaws),
    Gate("unmarked_texts", ("sft", "dpo"), _each(_is_marked), "it marks no final answer, or states no verdict"),
    Gate(
        "false_verdicts",
        ("sft", "dpo"),
        _each(_judges_rightly),
        "its verdict contradicts the graders on the answer that it criticises",
    ),
    Gate(
        "leaks",
        _ALL,
        _each(_quotes_no_reference),
        "it quotes the reference answer at length, which its role was not shown",
    ),
    Gate("identical_pairs", ("dpo",), _each(_is_no_repetition), "both texts are the same but for case and space"),
    Gate(
        "max_similarity",
        ("dpo",),
        _each(_differs_enough),
        lambda context, pair: (
            f"the texts' similarity is {_compare(pair) / 100:.3f}, and max_similarity = {context.spec.max_similarity:g}"
        ),
    ),
    Gate(
        "same_answer",
        ("dpo",),
        _each(_answers_differ),
        lambda context, pair: f"both texts answer {_answers_of(context, pair)[0]!r}",
    ),
    Gate("repeats", _ALL, _drop_repeats, "an earlier row below the same parent says the same"),
    Gate(
        "min_margin",
        ("dpo",),
        _each(lambda context, pair: pair.margin - context.spec.min_margin > -ROUNDING),
        lambda context, pair: f"a margin of {pair.margin:.6g}, and min_margin = {context.spec.min_margin:g}",
    ),
    Gate(
        "min_confidence",
        ("dpo",),
        _each(lambda context, pair: context.spec.min_confidence == 0 or pair.confidence >= context.spec.min_confidence),
        lambda context, pair: (
            f"a confidence of {pair.confidence:.4f}, and min_confidence = {context.spec.min_confidence:g}"
        ),
    ),
    Gate(
        "max_length",
        _ALL,
        _each(_is_short_enough),
        lambda context, one: f"{one.tokens:,} tokens, and max_length = {context.spec.max_length:,}",
    ),
    Gate(
        "max_length_ratio",
        ("dpo",),
        _each(_has_fair_lengths),
        lambda context, pair: (
            f"one text has {_length_ratio(pair):.2f} times the characters of the other, and max_length_ratio = "
            f"{context.spec.max_length_ratio:g}"
        ),
    ),
    Gate(
        "max_examples_per_question",
        ("sft",),
        _keep_best,
        lambda context, _: (
            f"{context.spec.max_examples_per_question} of this question's texts come before it, by value"
        ),
    ),
    Gate("balance", ("kto",), _balance, _why_unbalanced),
    Gate(
        "max_pairs_per_question",
        ("dpo",),
        _keep_strongest,
        lambda context, _: (
            f"{context.spec.max_pairs_per_question} of this question's pairs come before it, by margin, then confidence"
        ),
    ),
)


_LEAKED_WORDS = 12
"""Length in words of a run from a reference that cannot be in a text by chance."""
_SHORTEST_LEAK = 8
"""Least number of words of a reference that counts as quoted; a model may well find a shorter one by itself."""


def _quotes_reference(valued: ValuedTree, node: Node) -> bool:
    """Whether a text quotes a run of words from the reference that its role saw neither in the question nor in the
    texts above. A reference shorter than `_SHORTEST_LEAK` words is never quoted.
    """
    question = valued.tree.question
    if not (runs := _reference_runs(question.reference or question.ground_truth)):
        return False
    words = _join_words(node.text)
    if not (quoted := [run for run in runs if run in words]):
        return False
    above = [valued.tree.nodes[address].text for address in node.address.path[:-1]]
    seen = [_join_words(text) for text in (question.question, *above)]
    return any(not any(run in text for text in seen) for run in quoted)


@lru_cache(maxsize=1024)
def _reference_runs(reference: str) -> tuple[str, ...]:
    """Return every run of `_LEAKED_WORDS` words; a shorter reference whole, one below `_SHORTEST_LEAK` not at all."""
    words = split_words(reference)
    if len(words) < _SHORTEST_LEAK:
        return ()
    length = min(_LEAKED_WORDS, len(words))
    return tuple(f" {' '.join(words[start : start + length])} " for start in range(len(words) - length + 1))


def _join_words(text: str) -> str:
    return f" {' '.join(split_words(text))} "


_MOST_COMPARED = 200_000
"""Characters compared of each text. The time grows with their square, and a reply may have millions."""


def _compare(pair: Candidate, cutoff: float = 0.0) -> float:
    """Return the similarity of two texts in percent (rapidfuzz's ratio); 0 below the cutoff."""
    chosen, rejected = (text.text[:_MOST_COMPARED] for text in pair.texts)
    return fuzz.ratio(chosen, rejected, score_cutoff=cutoff)


def _have_same_answer(context: Context, pair: Candidate) -> bool:
    """Whether both texts give a final answer, and the same one."""
    chosen, rejected = _answers_of(context, pair)
    return chosen is not None and rejected is not None and is_same_answer(chosen, rejected)


def _answers_of(context: Context, pair: Candidate) -> list[str | None]:
    """Return the final answers of two texts, as read for their grade, else for their diagnosis."""
    grades, diagnosis = context.valued.grades, context.valued.diagnosis
    read = [(grades.get(address), diagnosis.get(address)) for address in pair.addresses]
    return [next((one.answer for one in found if one and one.answer is not None), None) for found in read]


def _length_ratio(pair: Candidate) -> float:
    """Return the longer text's characters over the shorter one's; an empty one counts as one character."""
    shorter, longer = sorted(len(text.text) for text in pair.texts)
    return longer / max(shorter, 1)
