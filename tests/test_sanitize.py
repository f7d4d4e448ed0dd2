"""Untrusted text is shown as text and cannot control a terminal or a page."""

import json
import re
import unicodedata
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from malt.sanitize import Markdown, code_span, dump_json, escape_controls, escape_markdown, markdown_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\u202eright to left", "\\u202eright to left"),
        ("half \ud83d", "half \\ud83d"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\U0001f468\u200d\U0001f469 na\u00efve \u0646", "\U0001f468\u200d\U0001f469 na\u00efve \u0646"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


@given(st.text())
def test_escaped_text_is_encodable_and_escaping_it_again_changes_nothing(text: str) -> None:
    shown = escape_controls(text)
    shown.encode()
    assert escape_controls(shown) == shown
    assert not any(unicodedata.category(character) == "Cc" for character in shown if character not in "\n\t")


@given(st.recursive(st.text() | st.integers(), lambda values: st.dictionaries(st.text(), values)))
def test_json_for_a_terminal_is_the_same_value_without_a_control_character(value: object) -> None:
    line = dump_json(value)
    assert json.loads(line) == value
    assert escape_controls(line) == line
    assert "\n" not in line


MARKUP = "[a](https://x.y) ![i](javascript:1) <b>&lt; www.x.y a@b _e_ **b** ~~s~~ `c` $x$ | cell\n# head\n- item\x1b[2J"


def rendered(text: str) -> str:
    """Render Markdown to HTML with CommonMark, tables and strikethrough."""
    html: str = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return html


def test_markup_is_shown_as_it_was_written() -> None:
    shown = unescape(re.sub("<[^>]*>", "", rendered(escape_markdown(MARKUP)))).strip()
    assert shown == escape_controls(" ".join(MARKUP.split()))


@given(st.text(alphabet="[]()!<>&`*_~$|@:/.#-+=1 \nwhtpsx\\\x1b\u202e", max_size=60))
def test_no_text_makes_an_element(text: str) -> None:
    for made in (escape_markdown(text), code_span(text)):
        assert not re.search(r"<(?!/?(?:p|code)>)", rendered(f"a {made} b")), made
    table = rendered(markdown_table(["head", text], [(text, 1), (code_span(text), 2)]))
    assert not re.search(r"<(?!/?(?:table|thead|tbody|tr|t[hd]|code)\b)", table), table
    assert table.count("<tr>") == 3
    assert table.count("<td") == 4


def test_own_markdown_stays_and_numbers_stand_to_the_right() -> None:
    table = markdown_table(["file", "rows"], [(Markdown("**f**"), 1_000), (code_span("a_b"), 2)])
    assert table == "| file | rows |\n| --- | ---: |\n| **f** | 1,000 |\n| `a_b` | 2 |"


@pytest.mark.parametrize("start", ["# a", "- a", "+ a", "1. a", "12) a", "=====", "---", "> a", "    a", "```a"])
def test_no_text_begins_a_block(start: str) -> None:
    assert re.fullmatch("<p>.*</p>", rendered(escape_markdown(start)).strip())


def test_an_address_without_brackets_is_no_link_on_github() -> None:
    made = escape_markdown("https://x.y www.x.y WWW.x.y me@x.y")
    assert not re.search(r"(?<!\\)://|www\.|\w@", made, re.IGNORECASE)
