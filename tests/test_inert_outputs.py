"""A hostile payload in every field that others can fill: every output shows it as text, and nothing executes it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, metadata_load
from markdown_it import MarkdownIt

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.check.compare import compare
from malt.datasets.export.export import export
from malt.datasets.export.formats import FORMATS
from malt.datasets.pages.card import figures_markdown
from malt.datasets.publish.writer import Provenance
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.build import RunSummary
from malt.grading.grades import Outcome
from malt.questions.screening import HeldOutSet, Screening
from malt.sanitize import escape_controls
from malt.trees.credit import OwnAnswer, ValuedTree
from malt.trees.tree import FailedBranch, Tree
from tasks.publishing import failure_rows
from tests.published import mixed_tree, publish, spec_of
from tests.strategies import incomplete_tree_of

PAYLOAD = (
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07 \x9b2J\x1b[2J \u202egnp.exe \u2066x\u2069 \U000e0041 "
    "[link](https://evil.example) ![image](https://evil.example/i.png) <https://evil.example> www.evil.example "
    "<script>alert(1)</script></script><img src=https://evil.example onerror=alert(1)> &lt;b&gt; ${x} {{ x }} "
    "`code` | cell | **bold** _it_ ~~gone~~ [bold]markup[/bold] :smile:\r\n---\nlicense: evil\n---\n# head\n- item\n"
    "=cmd|'/c calc'!A1"
)


def tree_with(text: str) -> ValuedTree:
    """Return a mixed tree with this text in every field."""
    whole = mixed_tree("q1")
    question = replace(
        whole.tree.question,
        question_id=f"q1 {text}",
        question=f"{text}?",
        ground_truth=text,
        reference=text,
        choices=(text, text),
        metadata={text: text},
    )
    nodes = {
        address: replace(
            node,
            completion=replace(
                node.completion, text=f"{text} {address}", reasoning=text, model=f"model {text}", run=f"run {text}"
            ),
        )
        for address, node in whole.tree.nodes.items()
    }
    grades = {
        address: replace(
            grade,
            answer=text,
            error=grade.error and text,
            evaluation=grade.evaluation and replace(grade.evaluation, explanation=(text,), key_matches=(text,)),
        )
        for address, grade in whole.grades.items()
    }
    diagnosis = {address: OwnAnswer(Outcome.WRONG, text) for address in nodes}
    return replace(whole, tree=Tree(question, nodes), grades=grades, diagnosis=diagnosis)


def failed_with(text: str) -> ValuedTree:
    failed = replace(mixed_tree("q2"), tree=incomplete_tree_of("q2"))
    branch = FailedBranch(f"q2 {text}", "", failed.tree.failures[0].role, f"HTTP 500: {text}")
    question = replace(failed.tree.question, question_id=f"q2 {text}")
    return replace(failed, tree=Tree(question, {}, (branch,)), grades={}, values={})


def spec_with(text: str) -> RunSpec:
    config = spec_of().as_config()
    config["questions"]["source"] = f"{text}.jsonl"
    config["evaluator"]["model"] = text
    for role in config["roles"].values():
        role["model"] = text
    return RunSpec.model_validate(config)


def published_with(text: str, folder: Path) -> DatasetVersion:
    screening = Screening(test_sets=(HeldOutSet(source=text, rows=1, sha256="0" * 64),))
    provenance = Provenance({"verifier/user.md": "0" * 64}, screening)
    return publish([tree_with(text), failed_with(text)], spec_with(text), provenance, folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets folder with a hostile and a plain version."""
    folder = tmp_path_factory.mktemp("published")
    published_with(PAYLOAD, folder / "hostile")
    published_with("plain", folder / "plain")
    return folder


@pytest.fixture
def hostile(published: Path) -> DatasetVersion:
    shutil.copytree(published / "hostile", Settings().datasets_dir, symlinks=True)
    return open_version("arith", Settings().datasets_dir)


@pytest.fixture
def plain(published: Path) -> DatasetVersion:
    return open_version("arith", published / "plain")


COMMANDS = {
    "datasets": ["datasets"],
    "show": ["show", "arith"],
    "show a tree": ["show", "arith", f"q1 {PAYLOAD}"],
    "show no tree": ["show", "arith", f"q2 {PAYLOAD}"],
    "explain a row": ["explain", "arith", f"sft-verifier/q1 {PAYLOAD}/0.0"],
    "explain a node": ["explain", "arith", f"q1 {PAYLOAD}/0.0.0"],
    "explain no row": ["explain", "arith", f"q9 {PAYLOAD}/0.0.0"],
    "diff": ["diff", "arith", "PLAIN"],
    "verify": ["verify", "arith"],
    "audit": ["audit", "arith", "--with", "exact"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_steers_a_terminal(
    hostile: DatasetVersion,
    plain: DatasetVersion,
    arguments: list[str],
    as_json: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trajectories = hostile.path / "trajectories.parquet"
    if arguments[0] == "verify":
        trajectories.write_bytes(trajectories.read_bytes()[:-1])
    exit_code([*(str(plain.path) if each == "PLAIN" else each for each in arguments), *(["--json"] if as_json else [])])
    printed = capsys.readouterr()
    assert printed.out + printed.err
    assert escape_controls(printed.out) == printed.out
    assert escape_controls(printed.err) == printed.err
    if as_json and printed.out:
        json.loads(printed.out)


def test_json_output_contains_the_text_unchanged(hostile: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "arith", f"q1 {PAYLOAD}/0.0.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ground_truth"] == PAYLOAD


Page = Callable[[DatasetVersion, DatasetVersion], str]
PAGES: dict[str, Page] = {
    "card": lambda version, _: DatasetCard((version.path / "README.md").read_text(encoding="utf-8")).text,
    "figures": lambda version, _: figures_markdown(version.manifest),
    "differences": lambda version, plain: compare(plain, version).markdown,
}


def tags(markdown: str) -> list[str]:
    """Return the elements of a page outside code spans; texts that could end a code span are never put into one."""
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)
    return [tag for tag in re.findall(r"</?[a-zA-Z][^>]*>", html) if tag not in ("<code>", "</code>")]


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_markdown_has_no_injected_element(
    hostile: DatasetVersion,
    plain: DatasetVersion,
    tmp_path: Path,
    page: Callable[[DatasetVersion, DatasetVersion], str],
) -> None:
    other = published_with("other", tmp_path / "other")
    written = page(hostile, plain)
    drawn = re.compile(r"base64,[^)]*")
    assert ("evil" in written) == (page is not PAGES["figures"])  # the page of figures has no foreign text
    assert tags(drawn.sub("", written)) == tags(drawn.sub("", page(other, plain)))
    assert escape_controls(written) == written
    assert not re.search(r"(?<!\\)://evil|(?<![\\\w])www\.evil", re.sub(r"`[^`]*`", "", written))


def test_hostile_text_adds_no_key_to_the_card_s_metadata(hostile: DatasetVersion, plain: DatasetVersion) -> None:
    theirs, ours = (metadata_load(each.path / "README.md") for each in (hostile, plain))
    assert theirs is not None
    assert ours is not None
    assert theirs["license"] == "unknown"
    assert theirs.keys() == ours.keys()


class Elements(HTMLParser):
    """Parser that collects a page's elements with attributes, and its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_the_report_has_no_injected_element(hostile: DatasetVersion, plain: DatasetVersion) -> None:
    theirs, ours = ((each.path / "report.html").read_text(encoding="utf-8") for each in (hostile, plain))
    assert "evil" in theirs
    assert Elements(theirs).found == Elements(ours).found
    assert escape_controls(theirs) == theirs


def test_a_notebook_shows_no_injected_element(hostile: DatasetVersion, plain: DatasetVersion) -> None:
    for theirs, ours in ((hostile, plain), (next(hostile.trees()), next(plain.trees()))):
        assert "evil" in theirs._repr_html_()
        assert Elements(theirs._repr_html_()).found == Elements(ours._repr_html_()).found
        assert escape_controls(theirs._repr_html_()) == theirs._repr_html_()


def summary_of(text: str) -> RunSummary:
    """Return the summary of a run that was stopped with a provider's error message."""
    return RunSummary(
        dataset="arith", version=None, created=False, path=f"/data/{text}", content_sha256=None, questions=1,
        complete=0, failed_branches=1, requests=1, completions=0, cached_completions=0, prompt_tokens=0,
        completion_tokens=0, cost_usd=None, wall_s=1, stopped=text, failures=(failed_with(text).tree.failures[0],),
        rows={}, outcomes={}, graded_by={},
    )  # fmt: skip


def test_prefect_shows_no_injected_element() -> None:
    theirs, ours = summary_of(PAYLOAD), summary_of("plain")
    assert tags(theirs.markdown) == tags(ours.markdown)
    (row,) = failure_rows(theirs.failures)
    for cell in (theirs.markdown, *row.values()):
        assert escape_controls(cell) == cell
        assert not re.search(r"(?<!\\)://evil", re.sub(r"`[^`]*`", "", cell))
    assert {tag for cell in row.values() for tag in tags(cell)} <= {"<p>", "</p>"}


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_holds_the_texts_as_data(hostile: DatasetVersion, tmp_path: Path, to: str) -> None:
    """The rows keep the text, since models are trained on it; the other files contain none of it."""
    exported = export(open_version("arith"), to, tmp_path / "out")
    rows = {file.path for file in exported.manifest.files}
    for path in exported.path.rglob("*"):
        name = path.relative_to(exported.path).as_posix()
        if path.is_file() and name not in rows:
            assert "evil" not in path.read_text(encoding="utf-8")
        elif name.endswith(".jsonl"):
            assert all(isinstance(json.loads(line), dict) for line in path.read_text(encoding="utf-8").splitlines())
