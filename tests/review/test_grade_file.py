"""`malt grade`: answers in a file, graded, and compared with labels where there are any."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from tests.configs import write_judge_config
from tests.mishaps import Asked, bad_request, when
from tests.providers import ScriptedProvider, judgement

Rows = Sequence[Mapping[str, object]]
Grade = Callable[..., dict[str, Any]]

SUMS: Rows = [
    {"question": "1 + 1?", "ground_truth": "2", "answer": "Final Answer: 2", "label": True},
    {"question": "2 + 2?", "ground_truth": "4", "answer": "Final Answer: 5", "label": False},
    {"question": "3 + 3?", "ground_truth": "6", "answer": "I do not know", "label": False},
    {"question": "4 + 4?", "ground_truth": "8", "answer": "Final Answer: 8.0", "label": False},
    {"question": "Who?", "ground_truth": "nobody", "answer": "Final Answer: nobody", "label": True},
]
"""Answers that `number` grades as right, wrong, unanswered, right (against the label) and unknown, in this order."""


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Rows = SUMS, name: str = "answers.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def grade(capsys: pytest.CaptureFixture[str]) -> Grade:
    """Run `malt grade --json` and return its object."""

    def run(file: Path, *arguments: str | Path) -> dict[str, Any]:
        code = exit_code(["grade", str(file), "--json", *map(str, arguments)])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        report: dict[str, Any] = json.loads(printed.out)
        return report

    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `malt grade`, which must refuse its input, and return the error message."""

    def run(*arguments: str | Path) -> str:
        code = exit_code(["grade", *map(str, arguments)])
        printed = capsys.readouterr()
        assert (code, printed.out) == (2, "")
        return printed.err

    return run


def unlabelled(rows: Rows = SUMS) -> Rows:
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


def judge_by_answer(asked: Asked, _sample: int) -> str:
    """Judge's script that gives a high score to answers that contain `Final Answer: right`."""
    return judgement(0.9 if "Final Answer: right" in asked.body["messages"][-1]["content"] else 0.1)


def judged_rows(*answers: str) -> Rows:
    return [
        {"question": f"Question {number}?", "ground_truth": "right", "answer": f"Final Answer: {answer}"}
        for number, answer in enumerate(answers)
    ]


def test_the_four_outcomes_add_up_to_the_rows(rows_file: Callable[..., Path], grade: Grade) -> None:
    report = grade(rows_file(unlabelled()), "--kind", "number")
    assert [report[key] for key in ("rows", "right", "wrong", "unanswered", "unknown")] == [5, 2, 1, 1, 1]


def test_without_labels_nothing_is_compared(rows_file: Callable[..., Path], grade: Grade) -> None:
    assert not {"agreement", "kappa", "confusion"} & grade(rows_file(unlabelled()), "--kind", "number").keys()


def test_labels_are_compared_with_the_known_grades(rows_file: Callable[..., Path], grade: Grade) -> None:
    report = grade(rows_file(), "--kind", "number")
    assert (report["labelled"], report["compared"], report["agreement"], report["kappa"]) == (5, 4, 0.75, 0.5)
    assert report["confusion"] == {
        "right": {"right": 1, "wrong": 0, "unanswered": 0, "unknown": 1},
        "wrong": {"right": 1, "wrong": 1, "unanswered": 1, "unknown": 0},
    }


def test_a_row_whose_grade_is_not_its_label_is_named(rows_file: Callable[..., Path], grade: Grade) -> None:
    path = rows_file()
    assert grade(path, "--kind", "number")["disagreements"] == [
        {
            "place": f"{path}:4",
            "label": "wrong",
            "outcome": "right",
            "read": "8.0",
            "reference": "8",
            "grader": "number",
        }
    ]


def test_an_unknown_grade_says_why(rows_file: Callable[..., Path], grade: Grade) -> None:
    path = rows_file()
    (row,) = grade(path, "--kind", "number")["unknown_rows"]
    assert row["place"] == f"{path}:5"
    assert "'nobody' cannot be graded with number" in row["error"]


@pytest.mark.parametrize("kinds", [["--kind", "number,exact"], ["--kind", "number", "--kind", "exact"]])
def test_several_kinds_are_a_cascade(kinds: list[str], rows_file: Callable[..., Path], grade: Grade) -> None:
    report = grade(rows_file(), *kinds)
    assert (report["right"], report["unknown"]) == (3, 0)
    assert report["decided"] == {"number": 3, "exact": 2}


def test_a_gsm8k_reference_is_what_follows_its_hashes(rows_file: Callable[..., Path], grade: Grade) -> None:
    row = {"question": "48 and half of it?", "ground_truth": "48/2 = 24\n48 + 24 = 72\n#### 72"}
    answers = ["Final Answer: 72", "Final Answer: 24"]
    report = grade(rows_file([{**row, "answer": answer} for answer in answers]), "--kind", "exact")
    assert (report["right"], report["wrong"]) == (1, 1)


def test_a_choice_may_be_given_by_letter_or_text(rows_file: Callable[..., Path], grade: Grade) -> None:
    row = {"question": "Where?", "ground_truth": "bank", "choices": ["mall", "bank"]}
    answers = ["Final Answer: B", "Final Answer: (B) bank", "Final Answer: A"]
    report = grade(rows_file([{**row, "answer": answer} for answer in answers]), "--kind", "choice")
    assert (report["right"], report["wrong"]) == (2, 1)


@pytest.mark.parametrize("answer", ["", None, "   "])
def test_an_empty_answer_is_unanswered(answer: str | None, rows_file: Callable[..., Path], grade: Grade) -> None:
    row = {"question": "1 + 1?", "ground_truth": 2, "answer": answer}
    assert grade(rows_file([row]), "--kind", "number")["unanswered"] == 1


@pytest.mark.parametrize("name", ["answers.json", "answers.csv", "answers.parquet"])
def test_every_format_gives_the_same_report(
    name: str, tmp_path: Path, rows_file: Callable[..., Path], grade: Grade
) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([dict(row) for row in SUMS]), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(SUMS))
    else:
        lines = [",".join(map(str, row.values())) for row in SUMS]
        path.write_text("\n".join([",".join(SUMS[0]), *lines]))
    same = ("rows", "right", "wrong", "unanswered", "unknown", "agreement", "kappa", "confusion")
    first, second = grade(path, "--kind", "number"), grade(rows_file(), "--kind", "number")
    assert [first[key] for key in same] == [second[key] for key in same]


@pytest.mark.parametrize("label", [True, 1, 1.0, "1", "true", "True", "right", "Correct", " yes "])
def test_a_label_may_say_right_in_many_ways(label: object, rows_file: Callable[..., Path], grade: Grade) -> None:
    assert grade(rows_file([{**SUMS[0], "label": label}]), "--kind", "number")["agreement"] == 1


@pytest.mark.parametrize("label", [False, 0, 0.0, "0", "false", "FALSE", "wrong", "incorrect", "no"])
def test_a_label_may_say_wrong_in_many_ways(label: object, rows_file: Callable[..., Path], grade: Grade) -> None:
    assert grade(rows_file([{**SUMS[0], "label": label}]), "--kind", "number")["agreement"] == 0


def test_rows_without_a_label_are_graded_but_not_compared(rows_file: Callable[..., Path], grade: Grade) -> None:
    report = grade(rows_file([SUMS[0], *unlabelled(SUMS[1:3]), {**SUMS[3], "label": None}]), "--kind", "number")
    assert (report["rows"], report["labelled"], report["compared"], report["agreement"]) == (4, 1, 1, 1)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**SUMS[0], "label": "maybe"}, "label 'maybe' cannot be read"),
        ({**SUMS[0], "label": 2}, "label 2 cannot be read"),
        ({**SUMS[0], "label": [True]}, "label [true] cannot be read"),
        ({"question": "1 + 1?", "ground_truth": "2"}, "no column 'answer'; it has: question, ground_truth"),
        ({"question": "1 + 1?", "answer": "2"}, "no column 'ground_truth'"),
        ({**SUMS[0], "ground_truth": " "}, "empty reference answer in column 'ground_truth'"),
        ({**SUMS[0], "question": ""}, "empty question in column 'question'"),
        ({**SUMS[0], "answer": ["2"]}, "column 'answer' holds a list"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(
    row: Mapping[str, object], problem: str, rows_file: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    path = rows_file([*SUMS, row])
    said = refusal(path, "--kind", "number")
    assert said.startswith(f"error: {path}:6: ")
    assert problem in said


def test_columns_may_have_other_names(rows_file: Callable[..., Path], grade: Grade) -> None:
    named = {"question": "q", "ground_truth": "a", "answer": "reply", "label": "ok"}
    file = rows_file([{named[name]: value for name, value in row.items()} for row in SUMS])
    columns = [f"--column={name}={column}" for name, column in named.items()]
    assert grade(file, "--kind", "number", *columns)["right"] == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [("answer=nothing", "no column 'nothing'"), ("reply", "write answer=COLUMN"), ("id=q", "write answer")],
)
def test_a_column_that_cannot_be_read_is_refused(
    given: str, said: str, rows_file: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    assert said in refusal(rows_file(), "--kind", "number", "--column", given)


def test_a_broken_line_is_named(tmp_path: Path, refusal: Callable[..., str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(SUMS[0]) + "\n{broken\n")
    assert refusal(path, "--kind", "number").startswith(f"error: {path}:2: not JSON")


def test_a_missing_or_empty_file_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert refusal(tmp_path / "none.csv", "--kind", "number").startswith(f"error: {tmp_path}/none.csv: no such file")
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl: no rows in it" in refusal(tmp_path / "empty.jsonl", "--kind", "number")


def test_the_command_must_say_how_to_grade(rows_file: Callable[..., Path], refusal: Callable[..., str]) -> None:
    path = rows_file()
    assert "nothing says how to grade; give --config C, or --kind" in refusal(path)
    assert "--kind nummer: no such kind of grader; did you mean number?" in refusal(path, "--kind", "exact,nummer")
    assert "--kind names no kind" in refusal(path, "--kind", ",")
    assert "kind 'python' needs a config" in refusal(path, "--kind", "python")
    assert "give --config" in refusal(path, "--kind", "number", "-s", "evaluator.kind=exact")


def test_an_override_without_a_config_is_refused_without_showing_its_value(
    rows_file: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    said = refusal(rows_file(), "--kind", "number", "-s", "evaluator.api_key=hush-hush")
    assert said.startswith("error: --set evaluator.api_key: changes a key of a config")
    assert "hush" not in said


def test_a_config_says_how_to_grade(
    tmp_path: Path, provider: ScriptedProvider, rows_file: Callable[..., Path], grade: Grade
) -> None:
    config = write_judge_config(tmp_path, provider)
    assert grade(rows_file(), "--config", config, "-s", "evaluator.kind=exact")["kinds"] == ["exact"]
    assert grade(rows_file(), "--config", config, "--kind", "number,exact")["kinds"] == ["number", "exact"]
    assert provider.request_count == 0


def test_a_judge_is_asked_once_for_every_answer(
    tmp_path: Path,
    provider: ScriptedProvider,
    rows_file: Callable[..., Path],
    grade: Grade,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_KEY", "key")
    provider.script, provider.cost_usd = judge_by_answer, 0.25
    path, config = rows_file(judged_rows("right", "wrong", "wrong")), write_judge_config(tmp_path, provider)
    first, second = grade(path, "--config", config), grade(path, "--config", config)
    assert (first["right"], first["wrong"], first["requests"], first["cost_usd"]) == (1, 2, 3, 0.75)
    assert (second["right"], second["wrong"], second["requests"], second["cost_usd"]) == (1, 2, 0, 0)


def test_a_judge_that_cannot_be_asked_leaves_that_row_unknown(
    tmp_path: Path,
    provider: ScriptedProvider,
    rows_file: Callable[..., Path],
    grade: Grade,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_KEY", "key")
    provider.script = judge_by_answer
    provider.faults = when(lambda asked: "Question 1?" in asked.body["messages"][-1]["content"], bad_request())
    report = grade(
        rows_file(judged_rows("right", "right", "wrong")), "--config", write_judge_config(tmp_path, provider)
    )
    assert (report["right"], report["wrong"], report["unknown"]) == (1, 1, 1)
    assert "must alternate" in report["unknown_rows"][0]["error"]


def test_the_graded_rows_keep_their_columns(tmp_path: Path, rows_file: Callable[..., Path], grade: Grade) -> None:
    path, out = rows_file([{**row, "split": "test"} for row in SUMS]), tmp_path / "graded.jsonl"
    grade(path, "--kind", "number", "--out", out)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written[1] == {
        **SUMS[1], "split": "test", "outcome": "wrong", "read": "5", "score": 0.0, "grader": "number", "unread": False,
        "error": None,
    }  # fmt: skip
    assert [row["outcome"] for row in written] == ["right", "wrong", "unanswered", "right", "unknown"]


def test_graded_rows_can_be_graded_again(tmp_path: Path, rows_file: Callable[..., Path], grade: Grade) -> None:
    out = tmp_path / "graded.parquet"
    grade(rows_file(), "--kind", "number", "--out", out)
    assert pq.read_table(out).column("outcome").to_pylist() == ["right", "wrong", "unanswered", "right", "unknown"]
    assert grade(out, "--kind", "exact", "--out", out)["right"] == 2
    assert [path.name for path in tmp_path.glob("*graded*")] == ["graded.parquet"]


def test_an_output_that_cannot_be_written_is_refused_before_grading(
    tmp_path: Path, rows_file: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    path = rows_file()
    assert "it must end in .jsonl or .parquet" in refusal(path, "--kind", "number", "--out", tmp_path / "out.xlsx")
    assert "there is no folder" in refusal(path, "--kind", "number", "--out", tmp_path / "none" / "out.jsonl")


def test_columns_that_fit_no_parquet_type_are_named(
    tmp_path: Path, rows_file: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    path = rows_file([{**SUMS[0], "level": 1}, {**SUMS[1], "level": "one"}])
    said = refusal(path, "--kind", "number", "--out", tmp_path / "out.parquet")
    assert "column 'level' fits no Parquet type" in said


def test_people_get_a_table_and_the_rows_that_differ(
    rows_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows_file()
    assert exit_code(["grade", str(path), "--kind", "number"]) == 0
    printed = capsys.readouterr().out
    assert f"{path}: 5 rows graded by number" in printed
    assert "agreement 75.00 % of 4 labelled rows, kappa 0.500; 1 unknown left out" in printed
    assert f"{path}:4: label wrong, graded right by number: read '8.0', reference '8'" in printed
