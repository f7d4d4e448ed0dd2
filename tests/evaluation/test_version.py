"""Evaluation versions on disk: `malt show`, `diff`, `verify`, `push` and `report`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from malt.cli.main import exit_code
from malt.evaluation.evaluate import evaluate
from malt.evaluation.publish import verify
from malt.evaluation.version import EvaluationVersion, open_evaluation
from tests.evaluation.planted import QUESTIONS, planted_spec
from tests.providers import ScriptedProvider

SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'


@pytest.fixture
def version(tmp_path: Path, provider: ScriptedProvider) -> EvaluationVersion:
    return evaluate(planted_spec(tmp_path, provider, SYSTEMS))


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert exit_code([str(argument) for argument in arguments]) == code
    found = capsys.readouterr()
    return found.out + found.err


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return dict(json.loads(said(capsys, *arguments, "--json")))


def test_an_evaluation_is_opened_by_name_number_and_folder(version: EvaluationVersion) -> None:
    for reference in ("evaluations/planted", "evaluations/planted@v1", "planted", version.path):
        assert open_evaluation(reference).path == version.path


def test_show_prints_the_figures_and_one_question(
    version: EvaluationVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "MA+MV@3" in said(capsys, "show", "evaluations/planted")
    assert told(capsys, "show", version.path)["summary"]["systems"].keys() == {"plain", "star"}
    one = said(capsys, "show", "evaluations/planted@v1", "sum-103")
    assert "reference: 113" in one
    assert "star, chain 2: " in one
    assert len(told(capsys, "show", "evaluations/planted", "sum-103")["answers"]) == 2 * 3
    assert "has no question 'sum-9'" in said(capsys, "show", "evaluations/planted", "sum-9", code=2)


def test_a_single_chain_has_no_vote(
    tmp_path: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    version = evaluate(planted_spec(tmp_path, provider, f"chains = 1\n{SYSTEMS}"))
    shown = said(capsys, "show", version.path)
    pages = [(version.path / name).read_text() for name in ("README.md", "report.html")]
    assert "MV" not in shown
    assert not any("pipeline, vote" in text or "MV@1" in text for text in pages)
    assert all(re.search(r" 1\s(independent\s)?chain\s+each", text) for text in pages)


def wins_vote(outcomes: "pd.Series[str]") -> bool:
    """Whether three chains whose wrong answers differ win the vote."""
    right = list(outcomes == "right")
    return sum(right) >= 2 or (sum(right) == 1 and right[0])


def test_a_notebook_shows_every_way_of_answering_with_its_interval(version: EvaluationVersion) -> None:
    figures = version.figures.set_index(["system", "measure"])
    for name, system in version.summary.systems.items():
        assert figures.loc[(name, "ma_mv"), "accuracy"] == pytest.approx(system.ma_mv.accuracy)
    unpaired = version.figures.query("system == @version.summary.baseline")[f"over_{version.summary.baseline}"]
    assert unpaired.isna().all()
    assert version.reference in version._repr_html_()


def test_diff_lists_changed_inputs_accuracies_and_questions(
    version: EvaluationVersion, tmp_path: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = SYSTEMS.replace(
        "[evaluate.systems.plain]", '[evaluate.systems.plain]\nrefiner = { model = "openai/better" }'
    )
    assert evaluate(planted_spec(tmp_path, provider, changed)).number == 2
    found = told(capsys, "diff", "evaluations/planted@v1", "evaluations/planted@v2")
    assert found["inputs"]["evaluate.systems.plain.refiner.model"]["new"] == "openai/better"
    assert all(name.startswith("evaluate.systems.plain.refiner") for name in found["inputs"])
    assert found["accuracies"]["plain"].keys() == {"ma", "ma_mv"}
    assert found["accuracies"]["plain"]["ma"]["new"] == 1.0
    votes = version.answers.query("system == 'plain'").groupby("question_id").outcome.agg(wins_vote)
    assert set(found["turned"]["plain"]["better"]) == set(votes[~votes].index)
    assert found["turned"]["plain"]["worse"] == []
    assert "star" not in found["accuracies"]
    assert "questions turned better" in said(capsys, "diff", "evaluations/planted@v1", "evaluations/planted@v2")


def test_a_published_evaluation_verifies(version: EvaluationVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(version) == []
    assert "evaluations/planted@v1 holds: 4 files" in said(capsys, "verify", "evaluations/planted")


def edit_summary(version: EvaluationVersion) -> None:
    path = version.path / "summary.json"
    path.write_text(path.read_text().replace('"right_to_right": ', '"right_to_right": 1'))


def lose_report(version: EvaluationVersion) -> None:
    (version.path / "report.html").unlink()


def edit_manifest(version: EvaluationVersion) -> None:
    path = version.path / "manifest.json"
    path.write_text(path.read_text().replace('"planted"', '"planned"', 1))


def add_file(version: EvaluationVersion) -> None:
    (version.path / "notes.txt").write_text("mine")


def spoil_answers(version: EvaluationVersion) -> None:
    (version.path / "answers.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (edit_summary, "summary.json: its figures are not those of the answers"),
        (lose_report, "report.html: is missing"),
        (edit_manifest, "manifest.json: was edited"),
        (add_file, "notes.txt: is not in the manifest"),
        (spoil_answers, "cannot be read"),
    ],
)
def test_verify_finds_damage(
    version: EvaluationVersion, damage: Callable[[EvaluationVersion], None], problem: str
) -> None:
    damage(version)
    assert problem in "\n".join(verify(open_evaluation(version.path)))


def test_push_puts_an_evaluation_into_the_folder_evaluations(
    version: EvaluationVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = told(capsys, "push", "evaluations/planted", tmp_path / "shelf")
    assert (pushed["version"], pushed["sent"]) == ("evaluations/planted@v1", 5)
    assert verify(open_evaluation(tmp_path / "shelf" / "evaluations" / "planted" / "v1")) == []
    assert told(capsys, "push", "evaluations/planted", tmp_path / "shelf")["sent"] == 0


def test_report_shows_every_system_and_the_questions_on_which_systems_differ(
    tmp_path: Path, provider: ScriptedProvider, version: EvaluationVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    version = evaluate(planted_spec(tmp_path, provider, 'measure = "sa"\nchains = 2\n' + SYSTEMS))
    assert told(capsys, "report", "evaluations/planted")["report"] == str(version.path / "report.html")
    page = (version.path / "report.html").read_text()
    assert '<h3 class="system name">star</h3>' in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    plain = [question["share"]["plain"] for question in data["questions"]]
    assert 0 < len(plain) <= QUESTIONS
    assert f"{len(plain)} of {QUESTIONS} questions: those that some system" in page
    assert re.search(r"<i>\u2212\d+</i><i>0</i><i>\+\d+</i>", page)
    assert all(len({*question["share"].values()}) > 1 for question in data["questions"])
    told(capsys, "report", "evaluations/planted", "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page
