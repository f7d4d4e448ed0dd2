"""Looking up a row or a node by its id. An id that nothing has is an error that names near ones."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from malt.config.roles import PLAYERS, Role
from malt.datasets.rows.examples import RowSource, parse_row_id
from malt.datasets.rows.tables import KINDS, QUESTIONS_FILE, Kind, QuestionRow
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import read_question_row, read_rows
from malt.errors import VersionError
from malt.trees.credit import ValuedTree
from malt.trees.tree import Address

_CONFIGS: Mapping[str, tuple[Kind, Role]] = {f"{kind}-{role}": (kind, role) for kind in KINDS for role in PLAYERS}
"""Kind and role of rows, by the first part of their ids."""
_NEAR = 3
"""Ids that an error suggests."""


class FoundNodes(NamedTuple):
    """What an id names: one node, or two for a pair, and the kind of row; no kind for a node."""

    kind: Kind | None
    addresses: tuple[Address, ...]


def find_question(version: DatasetVersion, row_id: str) -> tuple[RowSource, QuestionRow]:
    for source in _read_id(row_id):
        question = read_question_row(version, source.question_id)
        if question is not None:
            return source, question
    if read_question_row(version, row_id):
        raise VersionError(
            f"{row_id!r} is a question of {version.reference}; its tree: malt show {version.reference} {row_id}; "
            f"one of its nodes: {row_id}/0.0.0"
        )
    raise _unknown_id_error(version, row_id, _find_near_questions(version, row_id))


def _read_id(row_id: str) -> Iterator[RowSource]:
    """Yield what an id may mean. A question's id may hold slashes, so a row's id can also read as that of a node."""
    config, _, rest = row_id.partition("/")
    if config in _CONFIGS and all(rest.rpartition("/")):
        yield parse_row_id(row_id)
    question_id, _, node_id = row_id.rpartition("/")
    if question_id:
        yield RowSource("", question_id, (node_id,))


def _find_near_questions(version: DatasetVersion, row_id: str) -> list[str]:
    known = read_rows(version, QUESTIONS_FILE, columns=["question_id"])
    question_ids = [str(row["question_id"]) for row in known]
    config, _, rest = row_id.partition("/")
    if row_id.endswith("/"):
        return []
    near_configs = [""] if config in question_ids else _find_close(config, list(_CONFIGS), cutoff=0.6)
    for kind in near_configs or [""]:
        question_id, _, nodes = (rest if kind else row_id).rpartition("/")
        found = _find_close(question_id, question_ids, cutoff=0.5)
        if found:
            return [f"{kind}/{each}/{nodes}" if kind else f"{each}/{nodes}" for each in found]
    return []


def _find_close(text: str, others: Sequence[str], cutoff: float = 0.0) -> list[str]:
    return difflib.get_close_matches(text, others, n=_NEAR, cutoff=cutoff)


def _unknown_id_error(version: DatasetVersion, row_id: str, near: Sequence[str]) -> VersionError:
    forms = "an id reads like sft-verifier/QUESTION_ID/2.0, dpo-refiner/QUESTION_ID/2.0.1-2.0.2 or QUESTION_ID/2.0.1"
    return VersionError(f"{version.reference} has no {row_id!r}; " + (f"near: {', '.join(near)}" if near else forms))


def find_nodes(version: DatasetVersion, row_id: str, source: RowSource, valued: ValuedTree) -> FoundNodes:
    """Find the nodes that an id names; a pair's must be siblings."""
    kind, role = _CONFIGS.get(source.config, (None, None))
    nodes = {str(address): address for address in valued.tree.nodes}
    addresses = tuple(nodes[node_id] for node_id in source.node_ids if node_id in nodes)
    wanted = 2 if kind == "dpo" else 1
    if len(set(addresses)) != wanted or len(source.node_ids) != wanted or len({each.parent for each in addresses}) > 1:
        played = [node_id for node_id, address in nodes.items() if role in (None, address.role)]
        near = _find_near_pairs(source, played) if wanted == 2 else _find_close(source.node_ids[0], played)
    elif role in (None, addresses[0].role):
        return FoundNodes(kind, addresses)
    else:
        source = source._replace(config=f"{kind}-{addresses[0].role}")
        near = ["-".join(source.node_ids)]
    start = "/".join([*filter(None, [source.config]), source.question_id])
    raise _unknown_id_error(version, row_id, [f"{start}/{each}" for each in near])


def _find_near_pairs(source: RowSource, node_ids: Sequence[str]) -> list[str]:
    first = _find_close(source.node_ids[0], node_ids)[0]
    family = [each for each in node_ids if each.rpartition(".")[0] == first.rpartition(".")[0] and each != first]
    return [f"{first}-{other}" for other in _find_close(source.node_ids[-1], family)]
