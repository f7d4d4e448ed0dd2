"""Terminal output: no text from a model or file can control the terminal."""

import pytest
from rich.tree import Tree

from malt.cli.terminal import new_table, one_line, say, styled, warn

STEERING = "\x1b[2J\x9b31m\x07\u202e"


def test_no_text_of_a_model_can_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tree, table = Tree(STEERING), new_table("column")
    tree.add(styled((STEERING, "dim")))
    table.add_row(STEERING)
    for thing in (STEERING, tree, table):
        say(thing)
    warn(STEERING)
    shown = "".join(capsys.readouterr())
    assert shown.count("\\x1b[2J\\x9b31m\\x07\\u202e") == 5
    assert not set(shown) & set(STEERING[0] + "\x9b\x07\u202e")


@pytest.mark.parametrize("text", ["[bold]x[/bold] [/dim] [link=http://a]", "a:smile:b :b: 1:2:3", "\\[x]"])
def test_markup_and_emoji_codes_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], text: str) -> None:
    table, tree = new_table("column"), Tree(text)
    table.add_row(text)
    tree.add(styled((text, "dim")))
    say(text, style="dim")
    say(table)
    say(tree)
    assert capsys.readouterr().out.count(text) == 4


def test_a_text_is_folded_to_one_line() -> None:
    assert one_line("a\n\tb" + "c" * 200) == "a b" + "c" * 156 + "\u2026"
