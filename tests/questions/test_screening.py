"""Screening: questions that give no rows, and the split of the others, decided from the questions alone."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.spec import DatasetSpec
from malt.errors import QuestionError
from malt.questions.question import Question
from malt.questions.screening import Exclusion, HeldOutSet, choose_split, screen

BAKERY = (
    "Maria bakes 12 buns on each of 3 trays every morning, eats 4 of them on her way to the market and sells all of "
    "the others to her neighbours. How many buns does she sell in a week of 7 days, if nobody steals any of them?"
)


def asked(*texts: str) -> list[Question]:
    return [Question(question_id=f"q{number}", question=text, ground_truth="4") for number, text in enumerate(texts)]


def held_out_file(folder: Path, *texts: str, column: str = "question") -> str:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps({column: text, "answer": "224"}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(BAKERY.upper(), id="in capitals"),
        pytest.param(BAKERY.replace(", ", "; "), id="with other signs"),
        pytest.param(BAKERY.replace("neighbours", "friends"), id="with another word"),
    ],
)
def test_a_question_asked_again_gives_no_rows(again: str) -> None:
    screening = screen(asked(BAKERY, "What is 2 + 2?", again), DatasetSpec())
    assert screening.excluded == {"q2": Exclusion("duplicate_questions", "q0")}
    assert screen(asked(BAKERY, again), DatasetSpec(duplicate_questions="keep")).excluded == {}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(BAKERY.replace("12", "15"), id="another number"),
        pytest.param(f"{BAKERY} -1", id="another sign"),
        pytest.param("Maria bakes buns every morning. How many does she eat?", id="another question"),
    ],
)
def test_a_question_like_another_is_asked_in_its_own_right(other: str) -> None:
    assert screen(asked(BAKERY, other), DatasetSpec()).excluded == {}


def test_the_first_of_many_equal_questions_is_kept() -> None:
    screening = screen(asked(*["What is two and two?"] * 100), DatasetSpec())
    assert set(screening.excluded.values()) == {Exclusion("duplicate_questions", "q0")}
    assert len(screening.excluded) == 99


def test_questions_of_one_template_are_all_asked() -> None:
    texts = [f"What is {number} {sign} {number + 1}?" for number in range(100) for sign in "+-*/"]
    assert screen(asked(*texts), DatasetSpec()).excluded == {}


@pytest.mark.parametrize("column", ["question", "problem", "prompt", "text"])
def test_a_question_of_a_test_set_gives_no_rows(tmp_path: Path, column: str) -> None:
    source = held_out_file(tmp_path, "Who was it?", f"Note. {BAKERY}", column=column)
    screening = screen(asked("What is 2 + 2?", f"{BAKERY} Think."), DatasetSpec(decontaminate=(source,)))
    assert screening.excluded == {"q1": Exclusion("decontaminate", f"{source}:2")}
    (held_out,) = screening.counts.test_sets
    assert (held_out.source, held_out.rows) == (source, 2)
    assert screening.counts.excluded == {"decontaminate": 1}


def test_a_short_question_of_a_test_set_overlaps_only_with_itself(tmp_path: Path) -> None:
    spec = DatasetSpec(decontaminate=(held_out_file(tmp_path, "What is 2 + 2?"),))
    screening = screen(asked("what is 2 + 2", "What is 2 + 2, and why is it so, and who found out about that?"), spec)
    assert set(screening.excluded) == {"q0"}


def test_fewer_words_in_a_row_are_an_overlap_where_that_is_declared(tmp_path: Path) -> None:
    source = held_out_file(tmp_path, "On her way to the market she lost 3 coins and found 5 others. How many has she?")
    assert screen(asked(BAKERY), DatasetSpec(decontaminate=(source,))).excluded == {}
    assert set(screen(asked(BAKERY), DatasetSpec(decontaminate=(source,), decontaminate_words=6)).excluded) == {"q0"}


def test_the_digest_of_a_test_set_is_that_of_what_it_asks(tmp_path: Path) -> None:
    def held_out(folder: str, *texts: str) -> HeldOutSet:
        (tmp_path / folder).mkdir()
        source = held_out_file(tmp_path / folder, *texts)
        return screen(asked(BAKERY), DatasetSpec(decontaminate=(source,))).test_sets[0]

    assert held_out("a", "Who?", "What?").sha256 == held_out("b", "Who?", "What?").sha256
    assert held_out("c", "Who?", "What?").sha256 != held_out("d", "Who?What?").sha256


def test_a_test_set_that_asks_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"answer": "4"}\n')
    with pytest.raises(QuestionError, match=r"test\.jsonl:1: none of the columns question, problem, prompt, text"):
        screen(asked(BAKERY), DatasetSpec(decontaminate=(str(tmp_path / "test.jsonl"),)))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(QuestionError, match=r"empty\.jsonl has no rows"):
        screen(asked(BAKERY), DatasetSpec(decontaminate=(str(tmp_path / "empty.jsonl"),)))
    with pytest.raises(QuestionError, match=r"dataset.decontaminate = nowhere.jsonl: no such file"):
        screen(asked(BAKERY), DatasetSpec(decontaminate=("nowhere.jsonl",)))


TEXTS = st.lists(st.text("ab ", max_size=12), max_size=12)


@given(TEXTS, TEXTS)
def test_questions_added_at_the_end_change_nothing_for_the_others(first: list[str], added: list[str]) -> None:
    spec = DatasetSpec(validation=0.5)
    few, more = screen(asked(*first), spec), screen(asked(*first, *added), spec)
    for question in asked(*first):
        assert few.excluded.get(question.question_id) == more.excluded.get(question.question_id)
        assert few.choose_split(question.question_id, spec) == more.choose_split(question.question_id, spec)


def test_a_split_takes_about_its_share() -> None:
    splits = [choose_split(f"q{number}", 0.2) for number in range(5000)]
    assert 0.18 < splits.count("validation") / 5000 < 0.22
    assert {choose_split(f"q{number}", 0.0) for number in range(1000)} == {"train"}


@given(st.text(min_size=1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_only_adds_to_the_validation_split(question_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert choose_split(question_id, large) == "validation" or choose_split(question_id, small) == "train"


def test_a_question_and_its_like_are_in_one_split() -> None:
    spec = DatasetSpec(validation=0.5, duplicate_questions="keep")
    texts = [f"What is {number} and {number}?" for number in range(50)]
    screening = screen(asked(*texts, *texts), spec)
    splits = [screening.choose_split(f"q{number}", spec) for number in range(100)]
    assert splits[:50] == splits[50:]
    assert len(set(splits)) == 2
