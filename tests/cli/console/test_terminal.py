"""The terminal that no text steers."""

import io

from rich.markup import escape
from rich.tree import Tree

from malt.cli.console.terminal import SafeConsole, one_line, table_of

STEERING = "\x1b[2J\x9b31m\x07\u202e"


def printed(*things: object) -> str:
    console = SafeConsole(file=io.StringIO(), width=200)
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_no_text_of_a_model_steers_the_terminal_wherever_it_is_shown() -> None:
    tree, table = Tree(STEERING), table_of("column")
    tree.add(escape(STEERING))
    table.add_row(STEERING)
    shown = printed(STEERING, tree, table)
    assert shown.count("\\x1b[2J\\x9b31m\\x07\\u202e") == 4
    assert not set(shown) & set(STEERING[0] + "\x9b\x07\u202e")


def test_markup_in_a_models_text_is_shown_as_it_is() -> None:
    assert printed(f"[dim]{escape('[bold]x[/bold] [/dim] [link=http://a]')}[/dim]") == (
        "[bold]x[/bold] [/dim] [link=http://a]\n"
    )


def test_a_text_is_folded_to_one_line() -> None:
    assert one_line("a\n\tb" + "c" * 200) == "a b" + "c" * 156 + "\u2026"
