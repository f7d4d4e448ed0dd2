"""A tree's texts under Prefect: one artifact a tree, which its branches name. What models wrote is shown as it is."""

import asyncio
import re
from collections.abc import Iterator

from prefect.artifacts import acreate_markdown_artifact

from malt.canonical_json import digest
from malt.sanitize import code_span, escape_controls, escape_markdown
from malt.trees.credit import ValuedTree
from malt.trees.tree import Node
from tasks.artifacts import leave

MOST_TREES = 200
"""Runs of more questions leave none: the report has their trees."""
_LONGEST_TEXT = 8_000


def tree_key(dataset: str, question_id: str) -> str:
    """Return the key of a tree's artifact: lower-case letters, digits and hyphens."""
    slug = re.sub("[^a-z0-9]+", "-", question_id.lower()).strip("-")[:60]
    return f"{dataset}-tree-{slug if slug == question_id else f'{slug}-{digest(question_id)[:6]}'}"


def leave_tree(dataset: str, valued: ValuedTree) -> None:
    """Leave the artifact of one tree."""
    question = valued.tree.question
    key, told = tree_key(dataset, question.question_id), escape_markdown(question.question)
    text = "".join(_tree_markdown(valued))
    asyncio.run(_leave(key, text, told))


async def _leave(key: str, text: str, told: str) -> None:
    await leave(acreate_markdown_artifact(text, key=key, description=told))


def _tree_markdown(valued: ValuedTree) -> Iterator[str]:
    question, seen = valued.tree.question, set()
    yield f"# {escape_markdown(question.question)}\n\nreference: {code_span(str(question.ground_truth))}\n"
    for node in valued.tree.nodes.values():
        yield f"\n## {node.address} {node.role}: {_describe(valued, node)}\n\n{_verbatim(node.text)}\n"
        if node.role not in seen:
            prompt = "\n\n".join(f"[{message.role}]\n{message.content}" for message in node.prompt)
            yield f"\nwhat this {node.role} was asked:\n\n{_verbatim(prompt)}\n"
        seen.add(node.role)


def _describe(valued: ValuedTree, node: Node) -> str:
    value, grade = valued.values.get(node.address), valued.grades.get(node.address)
    told = [str(node.status), f"value {value.mean:.2f}" if value else "", str(grade.outcome) if grade else ""]
    return ", ".join(filter(None, told))


def _verbatim(text: str) -> str:
    """Return a text as a code block that it cannot end."""
    shown = escape_controls(text[:_LONGEST_TEXT]) + ("\n…" if len(text) > _LONGEST_TEXT else "")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"
