"""Gates: every reason to leave a candidate out, each named after the key of `[dataset]` that sets it.

A gate looks at one tree's candidates for one role and one kind of row. What two texts have in common is in `likeness`.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from malt.config.spec import DatasetSpec, Role
from malt.datasets.rows.examples import Labelled, Pair, texts_of
from malt.datasets.rows.similarity import (
    answer_of,
    answers_alike,
    is_identical,
    is_near_identical,
    quotes_reference,
    ratio,
    similarity,
)
from malt.questions.screening import CONTAMINATED, DUPLICATE, Exclusion
from malt.trees.credit import ROUNDING, ValuedTree

C = TypeVar("C", Labelled, Pair)

Candidates = Sequence[C]
"""What one tree offers for one role's rows of one kind, in the order of the tree."""

NOT_EXCLUDED = Exclusion("", "")


class Gate(NamedTuple, Generic[C]):
    """A reason to leave rows out."""

    name: str
    keep: Callable[[Candidates[C]], Candidates[C]]
    """Return the candidates that pass, in their order."""
    why: Callable[[C], str]
    """Say why one that did not pass was left out."""


class Context(NamedTuple):
    """What the gates know beside the candidates."""

    valued: ValuedTree
    role: Role
    spec: DatasetSpec
    excluded: Exclusion | None = None
    """Why the whole question gives no rows."""


def sft_gates(context: Context) -> list[Gate[Labelled]]:
    """The gates of supervised examples."""
    most = context.spec.max_examples_per_question
    return [
        *text_gates(context),
        Gate(
            "max_examples_per_question",
            lambda candidates: best(candidates, most),
            lambda _: f"{most} of this question's texts come before it, by value",
        ),
    ]


def kto_gates(context: Context) -> list[Gate[Labelled]]:
    """The gates of unpaired labels."""
    balance = context.spec.balance == "labels"
    return [
        *text_gates(context),
        Gate("balance", lambda candidates: balanced(candidates) if balance else candidates, unbalanced),
    ]


def text_gates(context: Context) -> list[Gate[Labelled]]:
    """The gates of single texts."""
    return [
        decontaminate(context),
        duplicate_questions(context),
        flawed_texts(context.spec),
        leaks(context),
        repeats(context.spec),
        max_length(context.spec),
    ]


def dpo_gates(context: Context) -> list[Gate[Pair]]:
    """The gates of preference pairs."""
    spec = context.spec
    unwanted = context.role is Role.GENERATOR and not spec.generator_dpo
    return [
        decontaminate(context),
        duplicate_questions(context),
        shut("generator_dpo", unwanted, "[dataset] generator_dpo is false"),
        flawed_texts(spec),
        leaks(context),
        *likeness_gates(context),
        repeats(spec),
        each(
            "min_margin",
            lambda pair: pair.margin - spec.min_margin > -ROUNDING,
            lambda pair: f"a margin of {pair.margin:.6g}, and min_margin = {spec.min_margin:g}",
        ),
        each(
            "min_confidence",
            lambda pair: spec.min_confidence == 0 or pair.confidence >= spec.min_confidence,
            lambda pair: f"a confidence of {pair.confidence:.4f}, and min_confidence = {spec.min_confidence:g}",
        ),
        max_length(spec),
        max_length_ratio(spec),
        Gate(
            "max_pairs_per_question",
            lambda candidates: strongest(candidates, spec.max_pairs_per_question),
            lambda _: (
                f"{spec.max_pairs_per_question} of this question's pairs come before it, by margin, then confidence"
            ),
        ),
    ]


def each(name: str, passes: Callable[[C], bool], why: Callable[[C], str]) -> Gate[C]:
    """Return a gate that looks at every candidate by itself."""
    return Gate(name, lambda candidates: [one for one in candidates if passes(one)], why)


def shut(name: str, is_shut: bool, why: str) -> Gate[C]:
    """Return a gate that lets all pass or none."""
    return Gate(name, lambda candidates: candidates[:0] if is_shut else candidates, lambda _: why)


def decontaminate(context: Context) -> Gate[C]:
    """Leave out all of a question that is in a test set."""
    reason, by = context.excluded or NOT_EXCLUDED
    return shut(CONTAMINATED, reason == CONTAMINATED, f"the question overlaps with {by}, of the sets in decontaminate")


def duplicate_questions(context: Context) -> Gate[C]:
    """Leave out all of a question that asks what an earlier one asks."""
    reason, by = context.excluded or NOT_EXCLUDED
    return shut(DUPLICATE, reason == DUPLICATE, f"question {by!r} asks the same")


def flawed_texts(spec: DatasetSpec) -> Gate[C]:
    """Leave out texts that are cut off, empty or refused."""
    return each(
        "flawed_texts",
        lambda one: spec.flawed_texts == "keep" or all(text.whole for text in texts_of(one)),
        lambda one: " and ".join(
            f"{text.node.address} is {text.node.status}" for text in texts_of(one) if not text.whole
        ),
    )


def leaks(context: Context) -> Gate[C]:
    """Leave out critiques and refinements that know the reference from nowhere."""
    drop = context.spec.leaks == "drop" and context.role is not Role.GENERATOR
    return each(
        "leaks",
        lambda one: not (drop and any(quotes_reference(context.valued, text.node) for text in texts_of(one))),
        lambda _: "it quotes the reference answer at length, and nothing that its role saw holds that",
    )


def likeness_gates(context: Context) -> list[Gate[Pair]]:
    """The gates of pairs whose two texts say much the same."""
    valued, spec = context.valued, context.spec
    return [
        each(
            "identical_pairs",
            lambda pair: spec.identical_pairs == "keep" or not is_identical(pair),
            lambda _: "both texts are the same but for case and space",
        ),
        each(
            "max_similarity",
            lambda pair: not is_near_identical(valued, pair, spec.max_similarity),
            lambda pair: f"its texts are alike by {similarity(pair):.3f}, and max_similarity = {spec.max_similarity:g}",
        ),
        each(
            "same_answer",
            lambda pair: context.role not in spec.same_answer or not answers_alike(valued, pair),
            lambda pair: f"both texts answer {answer_of(valued, pair.chosen.node)!r}",
        ),
    ]


def repeats(spec: DatasetSpec) -> Gate[C]:
    """Leave out what says the same, word for word, as an earlier candidate below the same parent."""
    drop = spec.repeats == "drop"
    return Gate(
        "repeats",
        lambda candidates: said_once(candidates) if drop else candidates,
        lambda _: "an earlier row below the same parent says the same",
    )


def said_once(candidates: Candidates[C]) -> list[C]:
    """Keep the first of those with the same texts under the same parent."""
    first: dict[tuple[object, ...], C] = {}
    for one in candidates:
        said = [(text.node.address.parent, text.right, text.node.text) for text in texts_of(one)]
        first.setdefault(tuple(said), one)
    return list(first.values())


def max_length(spec: DatasetSpec) -> Gate[C]:
    """Leave out rows that a trainer would cut."""
    most = spec.max_length
    return each(
        "max_length",
        lambda one: most is None or length_of(one) <= most,
        lambda one: f"{length_of(one):,} tokens, and max_length = {most:,}",
    )


def length_of(one: Labelled | Pair) -> int:
    """How many tokens a row takes: its prompt and its longest text."""
    return max(text.length.prompt + text.length.text for text in texts_of(one))


def max_length_ratio(spec: DatasetSpec) -> Gate[Pair]:
    """Leave out pairs that lengths alone tell apart."""
    most = spec.max_length_ratio
    return each(
        "max_length_ratio",
        lambda pair: most is None or ratio(pair) <= most,
        lambda pair: (
            f"one text has {ratio(pair):.2f} times the characters of the other, and max_length_ratio = {most:g}"
        ),
    )


def best(candidates: Candidates[Labelled], most: int | None) -> Candidates[Labelled]:
    """Keep the texts of highest value, the first among equals."""
    return first_by(candidates, [one.value.mean for one in candidates], most)


def strongest(candidates: Candidates[Pair], most: int | None) -> Candidates[Pair]:
    """Keep the pairs of largest margin, among equal ones of largest confidence, then the first ones."""
    if most is None or len(candidates) <= most:
        return candidates
    # Margins that only floating point tells apart are equal.
    return first_by(candidates, [(round(pair.margin, 12), pair.confidence) for pair in candidates], most)


def first_by(
    candidates: Candidates[C], worth: Sequence[float] | Sequence[tuple[float, float]], most: int | None
) -> Candidates[C]:
    """Keep the candidates of most worth, the first among equals, in their order."""
    if most is None or len(candidates) <= most:
        return candidates
    ranked = sorted(range(len(candidates)), key=worth.__getitem__, reverse=True)[:most]
    return [candidates[place] for place in sorted(ranked)]


def balanced(candidates: Candidates[Labelled]) -> list[Labelled]:
    """Keep as many right as wrong: the right ones of highest value, the wrong ones of lowest, the first among equals.

    A question whose texts all have one label keeps none.
    """
    right = sorted((one for one in candidates if one.right), key=lambda one: -one.value.mean)
    wrong = sorted((one for one in candidates if not one.right), key=lambda one: one.value.mean)
    each_label = min(len(right), len(wrong))
    kept = {one.node.address for one in right[:each_label] + wrong[:each_label]}
    return [one for one in candidates if one.node.address in kept]


def unbalanced(one: Labelled) -> str:
    """Say why the balance left a text out."""
    most, which = ("right", "best") if one.right else ("wrong", "worst")
    return f"this question has more texts that are {most}, and only the {which} are kept"
