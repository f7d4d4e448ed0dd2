"""The report: its figures, the trees it shows, and that a model's text stays text in it."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.cli.main import exit_code
from malt.config.spec import RunSpec
from malt.datasets.check.verify import verify
from malt.datasets.manifest import Failure, Manifest
from malt.datasets.measures import Values
from malt.datasets.pages.card import figures_markdown
from malt.datasets.pages.page import (
    draw_flips,
    draw_histogram,
    redraw_report,
    render_picture,
    render_report,
    shorten_number,
)
from malt.datasets.pages.sample import KEPT, TreeSample, embed_json, rank_question
from malt.datasets.rows import examples
from malt.datasets.stats.figures import Flip
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.trees.credit import ValuedTree, value_tree
from malt.trees.tree import Node, Tree
from tests.published import PROVENANCE, asking_for, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import incomplete_tree_of, leaf_addresses, tree_of, valued

HOSTILE = (
    "<script>window.ran = 1</script> </SCRIPT> ]]> <!-- <img src=x onerror='window.ran = 1'> **bold** &amp; \u2028"
)
TURNED = "abc\u202edef\u2066ghi\x1b[31m\x00\x07"


class Tags(HTMLParser):
    """Parser that collects a page's elements and the contents of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def data_of(page: str) -> dict[str, list[dict[str, str]]]:
    data: dict[str, list[dict[str, str]]] = json.loads(Tags(page).scripts[0])
    return data


def ids_of(sample: TreeSample) -> list[str]:
    return [json.loads(tree)["id"] for tree in sample.chosen]


def failed(question_id: str) -> ValuedTree:
    tree = incomplete_tree_of(question_id)
    return value_tree(tree, {}, spec_of().credit)


def saying(text: str, question_id: str = "q1", shape: tuple[int, int, int] = (3, 3, 3)) -> ValuedTree:
    """Return a tree whose question and texts are all this text."""
    tree = tree_of(question_id, shape)
    nodes = {
        address: Node(address, node.prompt, replace(node.completion, text=text)) for address, node in tree.nodes.items()
    }
    asked = replace(tree.question, question=text, ground_truth=text, choices=(text,))
    rewards = [place % 2 for place, _ in enumerate(leaf_addresses(shape))]
    return valued(Tree(asked, nodes), rewards)


def sampled(trees: Iterator[ValuedTree]) -> TreeSample:
    sample = TreeSample()
    for tree in trees:
        rows = list(examples.trajectory_rows(tree)) if tree.tree.complete else []
        failures = [
            Failure(question_id=f.question_id, address=f.address, role=f.role, reason=f.reason)
            for f in tree.tree.failures
        ]
        sample.add(examples.question_row(tree.tree, "train", None), rows, failures)
    return sample


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return publish_questions(["q1", "q2"], tmp_path_factory.mktemp("datasets"))


# Figures.


def test_every_figure_is_a_data_frame(mixed: DatasetVersion) -> None:
    frames = mixed.figures
    gates = sum(len(rows.dropped) for kinds in mixed.manifest.selection.values() for rows in kinds.values())
    assert {name: len(frame) for name, frame in frames.items()} == {
        "asked": 3, "accuracy": 3, "flips": 0, "mix": 5, "yields": 9, "losses": gates, "values": 30, "used": 3,
    }  # fmt: skip
    assert list(frames["flips"].columns) == ["before", "after", "leaves", "percent"]


def test_the_figures_of_a_version_by_hand(mixed: DatasetVersion) -> None:
    frames = mixed.figures
    accuracy = frames["accuracy"].set_index("measure")
    assert accuracy[["right", "known", "unknown"]].T.to_dict("list") == {
        "Graded leaves": [26, 52, 2],
        "maj@27 of leaves": [2, 2, 0],
        "pass@27 of leaves": [2, 2, 0],
    }
    assert accuracy.percent.tolist() == [50.0, 100.0, 100.0]
    assert frames["mix"].set_index("kind").questions.to_dict() == {
        "all right": 0, "mixed": 2, "all wrong": 0, "unknown": 0, "failed": 0,
    }  # fmt: skip
    assert frames["values"].query("role == 'refiner'")[["right", "wrong"]].sum().to_dict() == {"right": 26, "wrong": 26}
    assert frames["used"].set_index("role").cost_usd.to_dict() == pytest.approx(
        {"generator": 0.006, "verifier": 0.018, "refiner": 0.054}
    )


def test_the_losses_of_every_gate_add_up(mixed: DatasetVersion) -> None:
    frames = mixed.figures
    lost = frames["losses"].groupby(["role", "kind"]).lost.sum()
    yields = frames["yields"].set_index(["role", "kind"])
    assert (yields.candidates - yields.kept).sort_index().tolist() == lost.sort_index().tolist()


counts = st.integers(0, 1000)


@given(counts, counts, counts, counts)
def test_a_flip_picture_leads_every_answer_from_one_side_to_the_other(
    kept: int, broken: int, fixed: int, missed: int
) -> None:
    numbers = {
        ("right", "right"): kept,
        ("right", "wrong"): broken,
        ("wrong", "right"): fixed,
        ("wrong", "wrong"): missed,
    }
    flips = [Flip(*sides, count, None) for sides, count in numbers.items()] if any(numbers.values()) else []
    picture = draw_flips(flips)
    if picture is not None:
        assert (picture.before.right_leaves, picture.after.right_leaves) == (kept + broken, kept + fixed)
        for column in (picture.before, picture.after):
            assert column.wrong.top + column.wrong.height == pytest.approx(100)
        assert [ribbon.flip.leaves for ribbon in picture.ribbons] == [count for count in numbers.values() if count]


def test_a_histogram_s_highest_bar_leaves_room_for_its_number() -> None:
    first, last = draw_histogram(Values(right=(0, 14), wrong=(7, 0)))
    assert (first.wrong.top, first.wrong.height, last.right.top, last.right.height) == (57, 43, 14, 86)
    assert draw_histogram(Values(right=(0,), wrong=(0,)))[0].right.height == 0


@pytest.mark.parametrize(("number", "told"), [(999, "999"), (1000, "1 k"), (12_345, "12.3 k"), (999_999, "1 M")])
def test_numbers_on_pictures_are_short(number: int, told: str) -> None:
    assert shorten_number(number) == told


def test_the_picture_is_an_image_that_stands_alone(mixed: DatasetVersion) -> None:
    picture = ElementTree.fromstring(render_picture(mixed.manifest))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    said = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Accuracy of the answers", "maj@27 of leaves", "generator"} <= set(said)


def test_the_figures_in_markdown_are_the_picture_and_a_table_each(mixed: DatasetVersion) -> None:
    told = figures_markdown(mixed.manifest)
    image = re.match(r"!\[the figures\]\(data:image/svg\+xml;base64,(\S+)\)\n", told)
    assert image is not None
    assert b64decode(image[1]).decode() == render_picture(mixed.manifest)
    assert "| Graded leaves | 50.0 % | 52 | " in told
    assert "| mixed | ████████████████████ | 2 | 100.0 % |" in told
    assert "| dpo/generator | ░░░░░░░░░░░░░░░░░░░░ | 0 | 4 | 4 generator_dpo |" in told
    assert "| refiner | 54 | 1,620 | 1,026 | $0.0540 |" in told


# The trees it shows.


def test_a_small_version_is_shown_whole_in_the_order_of_its_questions(mixed: DatasetVersion) -> None:
    page = (mixed.path / "report.html").read_text(encoding="utf-8")
    assert [tree["id"] for tree in data_of(page)["trees"]] == ["q1", "q2"]
    assert "All 2 questions." in page


def test_the_choice_of_questions_depends_on_their_ids_alone() -> None:
    ids = [f"q{number}" for number in range(KEPT * 3)]
    shuffled = [*ids]
    Random(0).shuffle(shuffled)
    chosen = [set(ids_of(sampled(mixed_tree(each) for each in order))) for order in (ids, shuffled)]
    assert chosen[0] == chosen[1] == set(sorted(ids, key=rank_question)[: len(chosen[0])])
    assert len(chosen[0]) == KEPT


def test_every_kind_of_question_is_shown_though_one_is_rare() -> None:
    def many() -> Iterator[ValuedTree]:
        yield failed("lost")
        yield valued(tree_of("good"), [1] * 27)
        yield valued(tree_of("bad"), [0] * 27)
        yield valued(tree_of("dark"), [None] * 27)
        for number in range(KEPT * 2):
            yield mixed_tree(f"q{number}")

    trees = [json.loads(tree) for tree in sampled(many()).chosen]
    kinds = {tree["id"]: tree["kind"] for tree in trees}
    assert {"lost": "failed", "good": "all right", "bad": "all wrong", "dark": "unknown"}.items() <= kinds.items()
    assert set(kinds.values()) == {"mixed", "failed", "all right", "all wrong", "unknown"}


def test_a_page_stays_small_whatever_it_is_of(tmp_path: Path) -> None:
    trees = (saying("<" * 20_000, f"q{number}") for number in range(40))
    version = publish(trees, spec_of(), PROVENANCE, tmp_path)
    report = version.path / "report.html"
    page = report.read_text(encoding="utf-8")
    assert 1_000_000 < report.stat().st_size < 5_000_000
    shown = data_of(page)["trees"]
    assert 0 < len(shown) < 40
    assert f"<b>A sample</b>: {len(shown)} of 40 questions" in page
    assert "more characters]" in shown[0]["question"]


def test_a_tree_with_many_children_shows_the_first_and_counts_the_rest() -> None:
    tree = json.loads(sampled(iter([saying("x", shape=(12, 2, 8))])).chosen[0])
    assert len(tree["nodes"]) == 6 + 6 * 2 + 6 * 2 * 6
    assert tree["hidden"] == 12 + 12 * 2 + 12 * 2 * 8 - len(tree["nodes"])


def test_a_failed_question_is_shown_with_its_reasons() -> None:
    tree = json.loads(sampled(iter([failed("lost")])).chosen[0])
    assert (tree["kind"], tree["nodes"], tree["failed"]) == ("failed", [], 1)
    assert tree["failures"] == [{"role": "generator", "node": "", "reason": "HTTP 500 from the provider, 5 attempts"}]


# A model's text stays text.


@pytest.mark.parametrize("text", [HOSTILE, TURNED, "plain"])
def test_a_page_holds_no_element_that_a_model_wrote(text: str, tmp_path: Path) -> None:
    page = (publish([saying(text)], spec_of(), PROVENANCE, tmp_path).path / "report.html").read_text(encoding="utf-8")
    found = Tags(page)
    names = [tag for tag, _ in found.tags]
    assert (names.count("script"), names.count("img"), len(found.scripts)) == (2, 0, 2)
    assert not [attrs for _, attrs in found.tags if {"style", "onerror", "onclick", "src", "srcset"} & attrs.keys()]


def test_a_model_s_text_is_unchanged_in_the_page_s_data(tmp_path: Path) -> None:
    page = (publish([saying(HOSTILE)], spec_of(), PROVENANCE, tmp_path).path / "report.html").read_text(
        encoding="utf-8"
    )
    assert data_of(page)["trees"][0]["question"] == HOSTILE.replace("\u2028", "\\u2028")


def test_signs_that_steer_or_turn_text_are_written_out(tmp_path: Path) -> None:
    page = (publish([saying(TURNED)], spec_of(), PROVENANCE, tmp_path).path / "report.html").read_text(encoding="utf-8")
    assert data_of(page)["trees"][0]["question"] == "abc\\u202edef\\u2066ghi\\x1b[31m\\x00\\x07"
    assert not re.search("[\x00-\x08\x1b\u202e\u2066]", page)


def test_names_in_the_config_stay_text(mixed: DatasetVersion) -> None:
    page = render_report(with_model(mixed.manifest, HOSTILE + TURNED), [])
    assert [tag for tag, _ in Tags(page).tags].count("script") == 2
    assert "&lt;script&gt;window.ran" in page
    assert "\u202e" not in page


def with_model(manifest: Manifest, model: str) -> Manifest:
    config = {**manifest.config, "roles": {**manifest.config["roles"], "generator": {"model": model}}}
    RunSpec.model_validate(config)
    return manifest.model_copy(update={"config": config})


@given(st.text(max_size=30))
def test_embedded_json_reads_back_and_ends_no_script(text: str) -> None:
    written = embed_json([text.encode("utf-8", "replace").decode()])
    assert json.loads(written) == [text.encode("utf-8", "replace").decode()]
    assert not set(written.decode()) & set("<>&\u2028\u2029")


def test_the_page_may_load_nothing_and_run_only_its_own_script(mixed: DatasetVersion) -> None:
    found = Tags((mixed.path / "report.html").read_text(encoding="utf-8"))
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.strip().split(" ", 1) for part in (policy or "").split(";"))
    assert directives.pop("default-src") == "'none'"
    assert directives.pop("img-src") == "data:"
    assert {name: re.sub("sha256-[^']+", "sha256-…", value) for name, value in directives.items()} == {
        "style-src": "'sha256-…'", "script-src": "'sha256-…'", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert [attrs["href"] for tag, attrs in found.tags if tag == "link"] == ["data:,"]


# In a version, and from the command line.


def test_a_report_is_a_file_of_its_version_and_verified_with_it(tmp_path: Path) -> None:
    version = publish([mixed_tree("q1"), failed("q2")], asking_for(spec_of(), tree_of("q1")), PROVENANCE, tmp_path)
    entry = version.manifest.files["report.html"]
    assert entry.bytes == (version.path / "report.html").stat().st_size
    assert (entry.rows, verify(version)) == (None, [])
    with (version.path / "report.html").open("a") as report:
        report.write("<!-- more -->")
    assert verify(version) == ["report.html: its bytes changed since it was published"]


def test_a_report_drawn_from_the_rows_is_the_published_one(tmp_path: Path) -> None:
    trees = [mixed_tree("q1"), failed("q2"), valued(tree_of("q3"), [1] * 27), saying(HOSTILE + TURNED, "q4")]
    version = publish(trees, spec_of(), PROVENANCE, tmp_path)
    assert redraw_report(open_version(version.path)) == (version.path / "report.html").read_text(encoding="utf-8")


def test_the_report_says_what_is_not_known(mixed: DatasetVersion) -> None:
    unknown = mixed.manifest.cost["refiner"].model_copy(update={"cost_usd": None, "known": 5, "known_usd": 0.005})
    page = render_report(mixed.manifest.model_copy(update={"cost": {**mixed.manifest.cost, "refiner": unknown}}), [])
    assert "at least $0.0050, known of 5" in page
    assert "the judge graded the leaves alone" in page


def test_the_command_names_the_published_report_and_draws_it_anew_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = publish_questions(["q1"], tmp_path / "data" / "datasets")
    published = version.path / "report.html"
    assert exit_code(["report", "arith", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": "arith@v1", "report": str(published)}
    assert exit_code(["report", "arith@v1", "--out", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").read_bytes() == published.read_bytes()


def test_a_version_without_a_report_gets_one_in_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish_questions(["q1"], tmp_path / "data" / "datasets")
    (version.path / "report.html").unlink()
    monkeypatch.chdir(tmp_path)
    assert exit_code(["report", "arith"]) == 0
    assert capsys.readouterr().out == "arith-v1-report.html\n"
    assert (tmp_path / "arith-v1-report.html").stat().st_size > 10_000
    assert not (version.path / "report.html").exists()


def test_a_damaged_version_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = publish_questions(["q1"], tmp_path / "data" / "datasets")
    (version.path / "trajectories.parquet").write_bytes(b"PAR1")
    assert exit_code(["report", "arith", "--out", str(tmp_path / "mine.html")]) == 2
    assert "try: malt verify" in capsys.readouterr().err
    assert not (tmp_path / "mine.html").exists()
