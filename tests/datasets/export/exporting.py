"""Trees to export, and the output and files of an export."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from malt.llm.request import Message
from malt.trees.credit import ValuedTree
from tests.published import mixed_tree

Row = Mapping[str, Any]

TEXTS = [
    "plain",
    "日本語 😀",
    "a\0b\u2028c\x85d",
    "line\r\nbreak\n",
    "half \ud800 a character",
    '{"json": "\\"}',
    "2024-01-01",
]
EXAMPLE = (Message("user", "1 + 1?"), Message("assistant", "an example's reply"))


def shown_an_example(question_id: str, number: int) -> ValuedTree:
    """Return a tree whose prompts have system text and an example, and whose texts are hard to escape."""
    tree = mixed_tree(question_id)
    nodes = {
        address: replace(
            node,
            prompt=(node.prompt[0], *EXAMPLE, node.prompt[1]),
            completion=replace(node.completion, text=f"{node.text} {TEXTS[(place + number) % len(TEXTS)]}"),
        )
        for place, (address, node) in enumerate(tree.tree.nodes.items())
    }
    return replace(tree, tree=replace(tree.tree, nodes=nodes))


class Said(NamedTuple):
    """Exit code and output of the command."""

    code: int
    out: str
    err: str


Export = Callable[..., Said]


def lines_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
