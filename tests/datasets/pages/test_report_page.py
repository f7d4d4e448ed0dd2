"""The report in a real browser, opened from disk: its content, its network requests, and whether scripts can run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from malt.trees.credit import ValuedTree, value_tree
from malt.trees.tree import Address, Node
from tests.browser import Page, chromium
from tests.published import PROVENANCE, mixed_tree, publish, spec_of
from tests.strategies import incomplete_tree_of, tree_of, valued

PLANTED = "<script>window.ran = 1</script></script><img src=x onerror='window.ran = 1'>]]><!-- **not bold** \u202eabc"


def planted_tree() -> ValuedTree:
    """Return a mixed tree whose first generation tries to inject markup into the page."""
    tree = mixed_tree("planted")
    node = tree.tree.nodes[Address((0,))]
    written = Node(node.address, node.prompt, replace(node.completion, text=PLANTED))
    return replace(tree, tree=replace(tree.tree, nodes={**tree.tree.nodes, node.address: written}))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a report with questions of every kind."""
    trees = [
        mixed_tree("m1"),
        valued(tree_of("all right"), [1] * 27),
        valued(tree_of("w&1"), [0] * 27),
        value_tree(incomplete_tree_of("lost"), {}, spec_of().credit),
        planted_tree(),
    ]
    version = publish(trees, spec_of(), PROVENANCE, tmp_path_factory.mktemp("datasets"))
    return (version.path / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: str) -> Iterator[Page]:
    """The report as it opens; the test fails on a console message or a network request."""
    browser.show_as(1280)
    browser.open("about:blank")
    browser.open(report)
    yield browser
    assert browser.complaints == []
    assert browser.requested == []


def listed(page: Page) -> list[str]:
    shown: list[str] = page.js("[...document.querySelectorAll('#questions .asked')].map((e) => e.textContent)")
    return shown


def question(page: Page) -> str:
    return str(
        page.js("document.querySelector('#tree h3')?.textContent ?? document.querySelector('#tree').textContent")
    )


def click(page: Page, selector: str) -> None:
    page.js(f"document.querySelector({selector!r}).click()")


ALL = ["What is m1?", "What is all right?", "What is w&1?", "What is lost?", "What is planted?"]


def test_the_report_opens_from_disk_and_shows_the_first_tree(page: Page) -> None:
    assert page.js("document.title") == "arith v1 · MALT report"
    assert listed(page) == ALL
    assert question(page) == "What is m1?"
    assert page.js("document.querySelectorAll('.map button').length") == 3 + 9 + 27
    assert page.js("document.querySelectorAll('.card').length") == 9


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mixed", ["What is m1?", "What is planted?"]),
        ("all right", ["What is all right?"]),
        ("all wrong", ["What is w&1?"]),
        ("failed", ["What is lost?"]),
        ("all", ALL),
    ],
)
def test_filters_show_one_kind_of_question(page: Page, kind: str, expected: list[str]) -> None:
    click(page, f"[data-kind='{kind}']")
    assert listed(page) == expected
    named = {"all right": "all positive", "all wrong": "all negative"}.get(kind, kind)
    assert page.js("document.querySelector('#filters [aria-pressed=true]').textContent") == f"{named} {len(expected)}"
    if kind != "all":
        assert page.js("document.querySelector('#questions .id').textContent") == named
    assert page.js("document.querySelector('#found').textContent") == f"{len(expected)} of 5 shown"


def test_search_looks_through_questions_and_texts(page: Page) -> None:
    page.press("/")
    for key in "Refiner 2.2.2 on W":
        page.press(key)
    assert page.js("document.querySelector('#search').value") == "Refiner 2.2.2 on W"
    assert listed(page) == ["What is w&1?"]


def test_arrows_move_between_questions(page: Page) -> None:
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert (question(page), page.js("location.hash")) == ("What is w&1?", "#q=w%261")
    page.press("ArrowLeft")
    assert question(page) == "What is all right?"
    assert page.js("document.querySelector('#questions [aria-current] .asked').textContent") == "What is all right?"


def test_arrows_stay_within_what_the_filter_shows(page: Page) -> None:
    click(page, "[data-kind='mixed']")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert question(page) == "What is planted?"


def test_the_list_is_walked_by_up_and_down_and_search_keeps_its_caret(page: Page) -> None:
    page.js("document.querySelector('#search').focus()")
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert question(page) == "What is all right?"
    page.js("document.querySelector('#questions a').focus()")
    page.press("ArrowDown")
    assert question(page) == page.js("document.activeElement.querySelector('.asked').textContent") == "What is w&1?"


def test_the_buttons_move_on_and_keep_the_focus(page: Page) -> None:
    page.js("document.querySelector('[data-step=\"1\"]').focus()")
    page.press("Enter")
    page.press("Enter")
    assert question(page) == "What is w&1?"
    assert page.js("document.activeElement.dataset.step") == "1"


def test_a_node_is_chosen_by_keyboard_and_its_children_follow(page: Page) -> None:
    page.js("document.querySelector('.map [data-node=\"2.1\"]').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.dataset.node") == "2.1"
    assert page.js("[...document.querySelectorAll('.columns h4')].map((e) => e.textContent)") == [
        "Generations",
        "Critiques of generation 2",
        "Refinements of critique 2.1",
    ]
    assert page.js("location.hash") == "#q=m1&n=2.1"


def test_a_link_leads_to_a_question_and_a_node(page: Page, report: str) -> None:
    page.open("about:blank")
    page.open(f"{report}#q=w%261&n=1.2.0")
    assert question(page) == "What is w&1?"
    assert page.js("document.querySelector('.map [aria-current=true]').dataset.node") == "1.2.0"


def test_a_link_to_a_question_that_is_not_there_says_where_to_look(page: Page, report: str) -> None:
    page.open("about:blank")
    page.open(f"{report}#q=nowhere")
    assert question(page) == "Question “nowhere” is not in this page; try: malt show arith@v1 nowhere"


def test_a_card_tells_value_label_grade_and_text(page: Page) -> None:
    card = page.js("document.querySelectorAll('.columns section')[2].querySelectorAll('.card')[1].innerText")
    assert card.split("\n") == [
        "✗ negative",
        "0.00 · 0.0.1",
        "refiner 0.0.1 on m1",
        "incorrect by llm, read “5”",
        "worth 0",
    ]


def test_a_failed_question_tells_its_reasons(page: Page, report: str) -> None:
    page.open("about:blank")
    page.open(f"{report}#q=lost")
    assert "generator: HTTP 500 from the provider, 5 attempts" in page.js("document.querySelector('#tree').innerText")


def test_a_model_s_text_is_shown_as_text_and_never_runs(page: Page, report: str) -> None:
    page.open("about:blank")
    page.open(f"{report}#q=planted")
    assert page.js("document.querySelector('.card .text').textContent") == PLANTED.replace("\u202e", "\\u202e")
    assert page.js("typeof window.ran") == "undefined"
    assert page.js("document.querySelectorAll('img, iframe, object, embed, #tree script').length") == 0


def test_nothing_but_the_page_s_own_script_could_run(browser: Page, report: str) -> None:
    browser.open("about:blank")
    browser.open(report)
    browser.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));"
        "document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.ran = 1\">x</b>');"
        "document.body.lastChild.click()"
    )
    assert browser.js("typeof window.ran") == "undefined"
    assert len(browser.complaints) == 2


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.show_as(width)
    assert page.js("document.documentElement.scrollWidth") == width


CONTRAST = """(() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const shine = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return /, 0\\)$/.test(colour) ? behind(element.parentElement) : colour;
  };
  const faint = [];
  for (const element of document.querySelectorAll("header *, main *, footer *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg, noscript, .map") || element.offsetParent === null) continue;
    const [text, ground] = [getComputedStyle(element).color, behind(element)].map(shine);
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (ratio < 4.5) faint.push(`${element.className || element.tagName} ${ratio.toFixed(2)}: ${element.textContent}`);
  }
  return faint;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_is_readable_in_light_and_dark(page: Page, dark: bool) -> None:
    page.show_as(1280, dark=dark)
    light_ground = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(253, 252, 250)"
    assert light_ground is not dark
    assert page.js(CONTRAST) == []


def test_the_report_prints_without_its_controls_and_with_whole_texts(page: Page) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    for control in ("#viewer nav", ".moves", ".keys"):
        assert page.js(f"getComputedStyle(document.querySelector('{control}')).display") == "none"
    assert page.js("getComputedStyle(document.querySelector('.card .text')).maxHeight") == "none"
    page.call("Emulation.setEmulatedMedia", media="")


def test_without_a_browser_the_tests_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="install Debian's `chromium`"), chromium(tmp_path):
        pass
