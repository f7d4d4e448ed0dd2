"""Reading a row as a question: columns, ids, reference answers and choices; and sampling the questions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.questions import QuestionSource
from malt.errors import QuestionError
from malt.questions.question import Question, content_id, find_last_boxed, read_questions, read_reference

Cells = dict[str, Any]

GSM8K = {"question": "Eggs?", "answer": "She sells 9 * 2 = <<9*2=18>>18.\n#### 18"}
MATH = {"problem": "Half?", "level": "Level 1", "solution": r"It is $\frac{1}{2}=\boxed{\frac{1}{2}}$."}
CSQA = {
    "id": "1afa",
    "question": "Where is money kept?",
    "question_concept": "money",
    "choices": {"label": ["A", "B"], "text": ["bank", "river"]},
    "answerKey": "A",
}
PLAIN = {"question": "Capital of France?", "ground_truth": "Paris"}


def read(folder: Path, *rows: Cells, **source: object) -> list[Question]:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_questions(QuestionSource.model_validate({"source": str(path)} | source))


def read_one(folder: Path, row: Cells, **source: object) -> Question:
    (question,) = read(folder, row, **source)
    return question


def refusal(folder: Path, *rows: Cells, **source: object) -> str:
    with pytest.raises(QuestionError) as caught:
        read(folder, *rows, **source)
    return str(caught.value).replace(f"{folder}/", "")


def test_each_benchmark_is_read_without_being_named(tmp_path: Path) -> None:
    gsm8k, math, csqa, plain = read(tmp_path, GSM8K, MATH, CSQA, PLAIN)
    assert (gsm8k.question, gsm8k.ground_truth) == ("Eggs?", "18")
    assert (math.question, math.ground_truth) == ("Half?", r"\frac{1}{2}")
    assert (csqa.question, csqa.ground_truth) == ("Where is money kept?\nA. bank\nB. river", "A")
    assert csqa.choices == ("bank", "river")
    assert (plain.question, plain.ground_truth) == ("Capital of France?", "Paris")


@pytest.mark.parametrize(("row", "written"), [(GSM8K, "gsm8k"), (MATH, "math"), (CSQA, "csqa"), (PLAIN, "plain")])
def test_a_named_format_reads_as_auto_does(tmp_path: Path, row: Cells, written: str) -> None:
    assert read(tmp_path, row, format=written) == read(tmp_path, row)


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    row = {"q": "1 + 1?", "a": 2, "key": "one", "question": "not this"}
    question = read_one(tmp_path, row, question="q", ground_truth="a", id="key")
    assert question == Question(
        question_id="one", question="1 + 1?", ground_truth="2", metadata={"question": "not this"}
    )


@pytest.mark.parametrize("key", ["question", "ground_truth", "id", "choices"])
def test_a_declared_column_must_exist(tmp_path: Path, key: str) -> None:
    said = refusal(tmp_path, GSM8K, **{key: "nope"})
    assert (
        said == f"q.jsonl:1: no column 'nope'; it has: question, answer. Name the right one as {key!r}, beside 'source'"
    )


def test_a_row_without_a_known_column_names_what_it_has(tmp_path: Path) -> None:
    assert "q.jsonl:2: no column 'question' or 'problem'; it has: prompt, answer" in refusal(
        tmp_path, GSM8K, {"prompt": "x", "answer": "y"}
    )


def test_math_prefers_the_worked_solution_and_auto_the_final_answer(tmp_path: Path) -> None:
    row = MATH | {"answer": "0.5"}
    assert read_one(tmp_path, row, format="math").ground_truth == r"\frac{1}{2}"
    assert read_one(tmp_path, row).ground_truth == "0.5"


def test_the_first_column_that_the_row_fills_is_taken(tmp_path: Path) -> None:
    row = {"question": None, "problem": "Half?", "answer": "", "solution": "0.5"}
    question = read_one(tmp_path, row)
    assert (question.question, question.ground_truth) == ("Half?", "0.5")


def test_other_columns_become_metadata_and_empty_cells_do_not(tmp_path: Path) -> None:
    row = PLAIN | {"level": 3, "tags": ["a", None], "nothing": None, "nan": float("nan"), "nested": {"x": 1.5}}
    assert read_one(tmp_path, row).metadata == {"level": 3, "tags": ["a", None], "nested": {"x": 1.5}}


@pytest.mark.parametrize(
    ("value", "text"),
    [(72, "72"), (72.0, "72"), (0, "0"), (0.5, "0.5"), (-1e300, "-1e+300"), (True, "true"), (" 1,000 ", "1,000")],
)
def test_references_become_text(tmp_path: Path, value: object, text: str) -> None:
    assert read_one(tmp_path, {"question": "?", "answer": value}).ground_truth == text


@pytest.mark.parametrize("value", ["", "  \n", None, float("nan")])
@pytest.mark.parametrize(("column", "what"), [("question", "question"), ("ground_truth", "reference answer")])
def test_an_empty_question_or_reference_names_its_line(tmp_path: Path, column: str, what: str, value: object) -> None:
    said = refusal(tmp_path, GSM8K, PLAIN | {column: value})
    assert said == f"q.jsonl:2: empty {what} in column {column!r}; fill it or remove the row"


@pytest.mark.parametrize("value", [[["a"]], [{"a": 1}], {"a": 1}])
def test_a_reference_must_be_text_or_a_number(tmp_path: Path, value: object) -> None:
    assert "column 'answer' holds a" in refusal(tmp_path, {"question": "?", "answer": value})


@pytest.mark.parametrize(
    ("answer", "first", "others"),
    [
        ({"value": "Sinclair Lewis", "aliases": ["Harry Lewis", "Lewis"]}, "Sinclair Lewis", ("Harry Lewis", "Lewis")),
        (["14 December 1972", "December 1972"], "14 December 1972", ("December 1972",)),
        (True, "true", ()),
        (False, "false", ()),
    ],
)
def test_references_are_read_as_benchmarks_publish_them(
    tmp_path: Path, answer: object, first: str, others: tuple[str, ...]
) -> None:
    question = read_one(tmp_path, {"question": "Who or when?", "answer": answer})
    assert (question.ground_truth, question.aliases) == (first, others)


def test_commonsense_qa_is_read_as_its_authors_publish_it(tmp_path: Path) -> None:
    choices = [{"label": "A", "text": "bank"}, {"label": "B", "text": "river"}]
    asked = {"question_concept": "money", "choices": choices, "stem": "Where is money kept?"}
    question = read_one(tmp_path, {"answerKey": "A", "id": "1afa", "question": asked})
    assert question == read_one(tmp_path, CSQA)


def test_a_given_id_is_kept_as_text(tmp_path: Path) -> None:
    assert [q.question_id for q in read(tmp_path, PLAIN | {"id": 7}, GSM8K | {"id": "a/b c"})] == ["7", "a/b c"]


def test_an_id_from_content_depends_on_nothing_else(tmp_path: Path) -> None:
    alone = read_one(tmp_path, GSM8K)
    later = read(tmp_path, PLAIN, GSM8K | {"level": 2, "id": None})[1]
    assert alone.question_id == later.question_id == content_id("Eggs?", "18") == "q354584efabac"


def test_equal_stems_with_other_choices_are_other_questions(tmp_path: Path) -> None:
    row = {"question": "Which?", "answer": "A"}
    first, second = read(tmp_path, row | {"choices": ["a", "b"]}, row | {"choices": ["a", "c"]})
    assert first.question_id != second.question_id


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    said = refusal(tmp_path, PLAIN | {"id": "x"}, GSM8K, MATH | {"id": "x"})
    assert said == "q.jsonl:3: id 'x' is taken by q.jsonl:1; give every row its own id"


def test_a_row_that_repeats_another_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [each.ground_truth for each in read(tmp_path, GSM8K, PLAIN, GSM8K, PLAIN)] == ["18", "Paris"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.replace(f"{tmp_path}/", "") == (
        "2 rows are dropped, since an earlier row has the same question and answer: q.jsonl:3 repeats q.jsonl:1"
    )
    assert len(read(tmp_path, *[PLAIN | {"id": 7}] * 2)) == 1
    assert caplog.messages[-1].startswith("1 row is dropped, since an earlier row has the same question and answer: ")


@pytest.mark.parametrize("bad", ["a\nb", "a\tb", "\x7f", "a\u2028b"])
def test_an_id_with_a_control_character_is_refused(tmp_path: Path, bad: str) -> None:
    assert "holds a control character" in refusal(tmp_path, PLAIN | {"id": bad})


def test_an_id_is_short_enough_for_an_index_of_postgresql(tmp_path: Path) -> None:
    assert "is longer than 500 characters" in refusal(tmp_path, PLAIN | {"id": "é" * 501})
    (question,) = read(tmp_path, PLAIN | {"id": "é" * 500})
    assert len(question.question_id) == 500


def test_an_empty_id_in_a_declared_column_is_refused(tmp_path: Path) -> None:
    assert "q.jsonl:1: empty id in column 'key'" in refusal(tmp_path, PLAIN | {"key": ""}, id="key")


@pytest.mark.parametrize(
    ("text", "written", "answer"),
    [
        ("work\n#### 1,234", "gsm8k", "1,234"),
        ("#### 1\nmore\n####   -2 \n", "gsm8k", "-2"),
        ("work\n#### 72", "auto", "72"),
        ("#### Step 1\nso\n\\boxed{5}", "auto", "5"),
        ("#### Step 1\nso it is 5", "auto", "#### Step 1\nso it is 5"),
        ("C# or F#", "auto", "C# or F#"),
        ("#### 72", "plain", "#### 72"),
        (r"\boxed{5}", "plain", r"\boxed{5}"),
    ],
)
def test_a_reference_is_read_as_its_format_says(text: str, written: str, answer: str) -> None:
    assert read_reference(text, written) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{1}$, no, $\boxed{2}$", "2"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$.", "5"),
        (r"it is \boxed 12.", "12"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed{\left\{ x \right.}$", r"\left\{ x \right."),
        (r"\boxed {3}", "3"),
        ("\\boxed{\n a \n}", "a"),
        (r"\boxed{x\boxed{y}}", "y"),
        (r"\boxed{a\\} b}", r"a\\"),
    ],
)
def test_the_last_box_is_read_with_balanced_braces(text: str, content: str) -> None:
    assert find_last_boxed(text) == content


@given(
    st.recursive(
        st.text("ab1 ", min_size=1), lambda inner: inner.map("{{{}}}".format) | st.tuples(inner, inner).map("".join)
    )
)
def test_any_balanced_content_of_a_box_comes_back(content: str) -> None:
    if content.strip():
        assert find_last_boxed(f"so $\\boxed{{{content}}}$ and {{more}}") == content.strip()


@pytest.mark.parametrize("text", ["5", r"\boxed{}", r"\boxed{ }", r"\boxed{1", r"\boxed", r"\boxedfoo{1}", r"\boxed$"])
def test_a_box_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(QuestionError, match="boxed"):
        find_last_boxed(text)


def test_gsm8k_needs_its_mark_on_every_row(tmp_path: Path) -> None:
    said = refusal(tmp_path, GSM8K, {"question": "?", "answer": "just 5"}, format="gsm8k")
    assert said == "q.jsonl:2: no answer after '####' in 'just 5'; set questions.format = 'plain' or fix the row"


@pytest.mark.parametrize(
    ("choices", "reference", "letter"),
    [
        ({"label": ["A", "B"], "text": ["x", "y"]}, "b", "B"),
        ({"label": ["1", "2"], "text": ["x", "y"]}, 2, "B"),
        ({"label": ["A", "B"], "text": ["B", "A"]}, "A", "A"),
        ({"label": ["A", "B"], "text": ["x", "y"]}, "y", "B"),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "B", "B"),
        (["x", "y"], "B", "B"),
        (["x", "y"], "y", "B"),
        (["x", "y"], 1, "B"),
        (["x", "y"], 1.0, "B"),
        (["x", "y"], "0", "A"),
        (["0", "4", "1"], 1, "B"),
        ('["x", "y"]', "y", "B"),
    ],
)
def test_choices_are_answered_by_letter(tmp_path: Path, choices: object, reference: object, letter: str) -> None:
    question = read_one(tmp_path, {"question": "Which?", "choices": choices, "answer": reference})
    assert question.ground_truth == letter


@pytest.mark.parametrize(
    ("choices", "reference", "problem"),
    [
        (["x", "y"], "z", "reference answer 'z' is none of the choices"),
        (["x", "y"], 2, "reference answer '2' is none of the choices"),
        (["0", "4", "1"], "1", "reference answer '1' can be read as several of the choices"),
        (["b", "A"], "A", "can be read as several of"),
        (["x", "x"], "x", "can be read as several of"),
        ({"label": ["A", "B"], "text": ["x", "y"]}, "C", 'write one of ["A", "B"]'),
        ({"label": ["A"], "text": ["x", "y"]}, "A", "cannot be read"),
        ("x or y", "x", "cannot be read"),
        (["x"], "A", "1 choices; there must be 2 to 26"),
        (["x", ""], "A", "must all be texts"),
        ([1, 2], "A", "must all be texts"),
        ([{"label": "A", "text": "x"}, "y"], "A", "must all be texts"),
    ],
)
def test_choices_that_do_not_settle_one_letter_are_refused(
    tmp_path: Path, choices: object, reference: object, problem: str
) -> None:
    said = refusal(tmp_path, {"question": "Which?", "choices": choices, "answer": reference})
    assert said.startswith("q.jsonl:1: ")
    assert problem in said


def test_csqa_needs_choices_on_every_row(tmp_path: Path) -> None:
    assert "no column 'choices'" in refusal(tmp_path, PLAIN, format="csqa")
    assert "choices null cannot be read" in refusal(tmp_path, CSQA | {"choices": None}, format="csqa")


@pytest.mark.parametrize("empty", [None, [], ""])
def test_a_row_without_choices_is_no_multiple_choice(tmp_path: Path, empty: object) -> None:
    assert read_one(tmp_path, PLAIN | {"choices": empty}, choices="choices").ground_truth == "Paris"


def test_other_formats_leave_a_column_of_choices_alone(tmp_path: Path) -> None:
    question = read_one(tmp_path, PLAIN | {"choices": ["Paris", "Rome"]}, format="plain")
    assert (question.ground_truth, question.choices) == ("Paris", ())
    assert question.metadata == {"choices": ["Paris", "Rome"]}


def test_choices_cannot_be_declared_for_a_format_that_has_none(tmp_path: Path) -> None:
    assert "format 'gsm8k' reads no choices" in refusal(tmp_path, GSM8K, format="gsm8k", choices="options")


def numbered(count: int) -> list[Cells]:
    return [{"id": f"n{n}", "question": f"{n} + 1?", "answer": n + 1} for n in range(count)]


def ids(questions: list[Question]) -> list[str]:
    return [question.question_id for question in questions]


def test_without_a_shuffle_the_order_of_the_file_is_kept(tmp_path: Path) -> None:
    assert ids(read(tmp_path, *numbered(5), limit=3)) == ["n0", "n1", "n2"]


def test_a_limit_above_the_file_takes_all(tmp_path: Path) -> None:
    assert len(read(tmp_path, *numbered(5), limit=9)) == 5


def test_rows_after_the_limit_are_checked_too(tmp_path: Path) -> None:
    assert "q.jsonl:3: empty question" in refusal(tmp_path, *numbered(2), PLAIN | {"question": ""}, limit=1)


def test_the_limit_cuts_the_shuffled_order(tmp_path: Path) -> None:
    shuffled = ids(read(tmp_path, *numbered(20), shuffle_seed=1))
    assert sorted(shuffled) == sorted(ids(read(tmp_path, *numbered(20)))) != shuffled
    assert ids(read(tmp_path, *numbered(20), shuffle_seed=1, limit=4)) == shuffled[:4]
    assert ids(read(tmp_path, *numbered(20), shuffle_seed=2)) != shuffled


@given(order=st.permutations(range(12)), kept=st.integers(1, 12), seed=st.integers())
def test_rows_added_or_moved_do_not_reorder_the_others(
    order: list[int], kept: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, rows = tmp_path_factory.mktemp("moved"), numbered(12)
    whole = ids(read(folder, *rows, shuffle_seed=seed))
    some = ids(read(folder, *(rows[n] for n in order[:kept]), shuffle_seed=seed))
    assert some == [name for name in whole if name in some]
