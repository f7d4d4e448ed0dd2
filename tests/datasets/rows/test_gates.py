"""Every gate drops the planted offender, keeps the harmless row beside it, and counts both."""

import random
import time
from dataclasses import replace

import pytest

from malt.config.roles import Role
from malt.config.spec import CreditSpec, DatasetSpec
from malt.datasets.rows.selection import Selected, estimate_tokens, measure_lengths, select
from malt.datasets.rows.tables import KINDS, Kind
from malt.grading.grades import Outcome
from malt.llm.request import FinishReason
from malt.questions.question import Question
from malt.questions.screening import Exclusion
from malt.trees.credit import OwnAnswer, ValuedTree
from malt.trees.tree import Address
from tests.strategies import saying, tree_of, valued

REFERENCE = (
    "She bakes three trays of twelve buns, eats four of them herself and sells the other thirty-two at the market."
)


def refinements(*texts: str, right: int = 1, question: Question | None = None, critique: str = "") -> ValuedTree:
    """Return a tree of one generation, one critique and these refinements, the first ones right; no answer is read."""
    tree = saying(tree_of("q1", (1, 1, len(texts))), {f"0.0.{place}": text for place, text in enumerate(texts)})
    tree = saying(tree, {"0.0": critique or "Check the sum."})
    graded = valued(tree, [1] * right + [0] * (len(texts) - right))
    grades = {leaf: replace(grade, answer=None) for leaf, grade in graded.grades.items()}
    asked = replace(graded.tree, question=question or graded.tree.question)
    return measure_lengths(replace(graded, tree=asked, grades=grades), estimate_tokens)


def sifted(tree: ValuedTree, kind: Kind, excluded: Exclusion | None = None, **spec: object) -> Selected:
    """Select the refinements as rows of one kind."""
    found = select(tree, Role.REFINER, DatasetSpec.model_validate(spec), excluded)[kind]
    assert found.candidates == len(found.kept) + sum(found.dropped.values())
    return found


def dropped(found: Selected) -> dict[str, int]:
    """Return the gates that dropped candidates, with their numbers."""
    return {gate: count for gate, count in found.dropped.items() if count}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", ["decontaminate", "duplicate_questions"])
def test_a_question_that_is_screened_out_gives_no_rows(kind: Kind, gate: str) -> None:
    tree = refinements("It is 4.", "It is 5.")
    innocent, offender = sifted(tree, kind), sifted(tree, kind, Exclusion(gate, "test.jsonl:7"))
    assert dropped(innocent) == {}
    assert dropped(offender) == {gate: innocent.candidates}


@pytest.mark.parametrize(("kind", "kept", "lost"), [("sft", 1, 1), ("dpo", 1, 1), ("kto", 2, 1)])
def test_a_text_that_was_cut_off_is_left_out(kind: Kind, kept: int, lost: int) -> None:
    tree = tree_of("q1", (1, 1, 3), {Address((0, 0, 0)): FinishReason.LENGTH})
    told = valued(tree, [1, 1, 0])
    found = sifted(told, kind, same_answer=())
    assert (len(found.kept), dropped(found)) == (kept, {"flawed_texts": 1})
    assert dropped(sifted(told, kind, same_answer=(), flawed_texts="keep")) == {}


def test_a_text_without_a_marked_answer_is_not_learned_but_may_be_the_worse_of_a_pair() -> None:
    marked, unmarked = "Two and two.\nFinal Answer: 4", "Two and two are more."
    assert dropped(sifted(refinements(marked, unmarked, right=2), "sft")) == {}
    assert dropped(sifted(refinements(marked, unmarked, right=2), "sft", unmarked_texts="drop")) == {
        "unmarked_texts": 1
    }
    assert dropped(sifted(refinements(marked, unmarked), "dpo", unmarked_texts="drop")) == {}
    assert dropped(sifted(refinements(unmarked, marked), "dpo", unmarked_texts="drop")) == {"unmarked_texts": 1}


@pytest.mark.parametrize(
    ("outcome", "verdict", "lost"),
    [
        (Outcome.RIGHT, "correct", 0),
        (Outcome.RIGHT, "wrong", 1),
        (Outcome.WRONG, "correct", 1),
        (Outcome.UNANSWERED, "correct", 1),
        (Outcome.WRONG, "wrong", 0),
        (Outcome.WRONG, "doubtful", 0),
        (Outcome.TRUNCATED, "correct", 0),
        (Outcome.UNKNOWN, "correct", 0),
    ],
)
def test_a_critique_whose_verdict_the_graders_deny_is_not_learned(outcome: Outcome, verdict: str, lost: int) -> None:
    tree = saying(tree_of("q1", (1, 1, 1)), {"0.0": f"It is so.\nVerdict: {verdict}"})
    told = replace(valued(tree, [1]), diagnosis={Address((0,)): OwnAnswer(outcome, "4")})
    for spec, expected in (DatasetSpec(false_verdicts="drop"), lost), (DatasetSpec(), 0):
        assert select(told, Role.VERIFIER, spec)["sft"].dropped["false_verdicts"] == expected


def test_a_text_without_a_word_is_left_out() -> None:
    assert dropped(sifted(refinements(" \n", "It is 5."), "sft")) == {"flawed_texts": 1}


def question(ground_truth: str, reference: str = "") -> Question:
    return Question(
        question_id="q1", question="How many buns does she sell?", ground_truth=ground_truth, reference=reference
    )


QUOTING = "I know it: she bakes three trays of twelve buns, eats four of them herself, so thirty-two."
"""Twelve words of the reference in a row, whatever the punctuation."""
COUNTING = "Three trays of twelve buns are 36; she eats four, so she sells 32."


@pytest.mark.parametrize("asked", [question(REFERENCE), question("32", REFERENCE)], ids=["whole", "read from a field"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refinement_that_quotes_the_reference_is_left_out(asked: Question, kind: Kind) -> None:
    assert dropped(sifted(refinements(QUOTING, COUNTING, question=asked), kind)) == {"leaks": 1}
    assert dropped(sifted(refinements(QUOTING, COUNTING, question=asked), kind, leaks="keep")) == {}
    assert dropped(sifted(refinements(COUNTING, "It is 5.", question=asked), kind)) == {}


def test_a_refinement_may_quote_what_its_critique_said() -> None:
    tree = refinements(QUOTING, COUNTING, question=question(REFERENCE), critique=f"Remember: {REFERENCE}")
    assert dropped(sifted(tree, "sft")) == {}


def test_a_short_reference_is_no_quotation() -> None:
    said = "Paris is the capital of France."
    assert dropped(sifted(refinements(said, "It is Rome.", question=question(said)), "sft")) == {}


def test_the_generator_may_know_a_reference_by_heart() -> None:
    tree = saying(tree_of("q1", (2, 1, 1)), {"0": REFERENCE})
    told = valued(replace(tree, question=question(REFERENCE)), [1, 0])
    assert select(told, Role.GENERATOR, DatasetSpec())["sft"].dropped["leaks"] == 0


@pytest.mark.parametrize("twin", ["It is 4.", "it  is\n4."])
def test_a_pair_of_one_text_is_left_out(twin: str) -> None:
    tree = refinements("It is 4.", twin, "It is 5.")
    assert dropped(sifted(tree, "dpo")) == {"identical_pairs": 1}
    assert dropped(sifted(tree, "dpo", identical_pairs="keep", max_similarity=1)) == {}


LONG = "First add the apples to the pears, then take away what was eaten on the way home, and you are done with it"


@pytest.mark.parametrize(
    ("other", "lost"),
    [
        pytest.param(f"{LONG}!", 1, id="one sign more"),
        pytest.param(f"{LONG} 7", 0, id="another number"),
        pytest.param(f"{LONG}\nVerdict: wrong", 0, id="another verdict"),
        pytest.param("Count them all again from the start, and mind the pears.", 0, id="another text"),
    ],
)
def test_a_pair_of_nearly_one_text_is_left_out_unless_it_says_something_else(other: str, lost: int) -> None:
    tree = refinements(LONG, other)
    assert dropped(sifted(tree, "dpo", max_similarity=0.9)) == ({"max_similarity": 1} if lost else {})
    assert dropped(sifted(tree, "dpo", max_similarity=1)) == {}


def answering(tree: ValuedTree, *answers: str | None) -> ValuedTree:
    """Return the same tree with these final answers read from its refinements."""
    leaves = [leaf.address for leaf in tree.tree.leaves]
    grades = {leaf: replace(tree.grades[leaf], answer=answer) for leaf, answer in zip(leaves, answers, strict=True)}
    return replace(tree, grades=grades)


def test_refinements_with_one_answer_make_no_pair() -> None:
    tree = answering(refinements("So it is 4.", "Hence 4 it is.", "Rather 5."), "4", "**4**", "5")
    assert dropped(sifted(tree, "dpo")) == {"same_answer": 1}
    assert dropped(sifted(tree, "dpo", same_answer=())) == {}
    assert dropped(sifted(answering(tree, None, None, "5"), "dpo")) == {}


def test_generations_with_one_answer_make_a_pair_unless_that_is_declared() -> None:
    told = valued(tree_of("q1", (2, 1, 1)), [1, 0])
    told = replace(told, diagnosis={Address((each,)): OwnAnswer(Outcome.WRONG, "4") for each in (0, 1)})
    kept = select(told, Role.GENERATOR, DatasetSpec(generator_dpo=True))["dpo"]
    lost = select(told, Role.GENERATOR, DatasetSpec(generator_dpo=True, same_answer=(Role.GENERATOR,)))["dpo"]
    assert (len(kept.kept), lost.dropped["same_answer"]) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_said_again_is_left_out_where_that_is_declared(kind: Kind) -> None:
    tree = refinements("It is 4.", "It is 4.", "It is 5.", right=2)
    assert dropped(sifted(tree, kind)) == {}
    assert dropped(sifted(tree, kind, repeats="drop")) == {"repeats": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_longer_than_the_trainer_takes_is_left_out(kind: Kind) -> None:
    tree = refinements("word " * 200, "It is 4.", "It is 5.", right=2)
    assert dropped(sifted(tree, kind, max_length=100)) == {"max_length": 1}
    assert dropped(sifted(tree, kind, max_length=1000)) == {}


def test_a_pair_that_lengths_tell_apart_is_left_out() -> None:
    tree = refinements("It is 4. " * 4, "It is 4. It is 4.", "It is 5.", right=2)
    assert dropped(sifted(tree, "dpo", max_length_ratio=3)) == {"max_length_ratio": 1}
    assert dropped(sifted(tree, "dpo")) == {}


def test_one_question_gives_as_many_examples_as_declared_the_best_first() -> None:
    tree = valued(tree_of("q1", (1, 3, 3)), [0.9, 0.9, 0.9, 0.9, 0.9, 0.3, 0.1, 0.1, 0.1], CreditSpec())
    found = select(tree, Role.VERIFIER, DatasetSpec(max_examples_per_question=1))["sft"]
    assert [str(one.chosen.node.address) for one in found.kept] == ["0.0"]
    assert dropped(found) == {"max_examples_per_question": 1}


def test_only_roles_that_answer_can_answer_alike() -> None:
    with pytest.raises(ValueError, match="only the generator and the refiner give final answers"):
        DatasetSpec(same_answer=(Role.VERIFIER,))


def test_texts_of_millions_of_characters_are_compared_in_a_moment() -> None:
    """Comparing the whole texts would take time quadratic in their length."""
    letters = random.Random(1)
    tree = refinements(*("".join(letters.choices("abcdefgh \n", k=4_000_000)) for _ in range(2)))
    started = time.process_time()
    assert dropped(sifted(tree, "dpo")) == {}
    assert time.process_time() - started < 10
