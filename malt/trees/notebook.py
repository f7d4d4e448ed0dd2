"""A tree as HTML, for notebooks: every text folded under its value, and nothing in a text that acts."""

from html import escape
from typing import TYPE_CHECKING

from malt.sanitize import escape_controls, fold_lines

if TYPE_CHECKING:
    from malt.trees.credit import ValuedTree
    from malt.trees.tree import Node

_START = 80
"""Characters of a text beside its value."""


def render_tree(valued: "ValuedTree") -> str:
    """Write a question and its nodes, children below their parent."""
    question = valued.tree.question
    head = f"<p><b>{_inert(question.question)}</b><br>reference: {_inert(question.ground_truth)}</p>"
    nodes = [valued.tree.nodes[address] for address in sorted(valued.tree.nodes)]
    return head + "".join(_render_node(valued, node) for node in nodes)


def _render_node(valued: "ValuedTree", node: "Node") -> str:
    value = valued.values.get(node.address)
    worth = "no value" if value is None else f"{value.mean:.2f} {'✓' if value.label(valued.threshold) else '✗'}"
    start = _inert(fold_lines(node.text)[:_START])
    summary = f"<summary>{node.address} {node.role.value}, {worth}: {start}</summary>"
    indent = 1.5 * (len(node.address) - 1)
    return f'<details style="margin-left:{indent}em">{summary}<pre>{_inert(node.text)}</pre></details>'


def _inert(text: str) -> str:
    return escape(escape_controls(text))
