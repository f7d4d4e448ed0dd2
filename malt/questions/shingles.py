"""Wording: texts as words, and runs of words as 64-bit hashes, to find what says the same in other letters or order.

A question of fewer words than a run is one run by itself. Two different runs have one hash once in 2^64.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

WORD = re.compile(r"\w+")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*|[-+*/^=<>%\u00d7\u00f7\u2212\u221a\u222b]")
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Any odd number with its bits well spread."""

PERMUTATIONS, ROWS = 64, 4
"""Of MinHash: 16 bands of 4. Texts alike by 0.8 share a band all but twice in 10,000, by 0.7 all but once in 80."""
FACTORS = np.frombuffer(hashlib.shake_256(b"malt").digest(16 * PERMUTATIONS), "<u8").reshape(2, -1) | np.uint64(1)
"""Of the permutations: the same in every process, whatever the libraries' versions."""


def words(text: str) -> list[str]:
    """The words and numbers of a text in order, in lower case, without punctuation; of one without any, what it has."""
    return WORD.findall(text.casefold()) or text.split()


def figures(text: str) -> list[str]:
    """The numbers and signs of arithmetic in a text, in order: where these differ, two texts do not say the same."""
    return FIGURE.findall(text)


def runs(text: str, length: int) -> Hashes:
    """Hash every run of `length` words in a text; the whole text where it has fewer."""
    return hashed_runs(tuple(words(text)), length)


@lru_cache(maxsize=256)
def hashed_runs(spoken: tuple[str, ...], length: int) -> Hashes:
    """Hash every run of `length` words; sorted, each once."""
    import pandas as pd  # not before: what merely reads words has no use for it

    hashes = np.asarray(pd.util.hash_array(np.array(spoken, dtype=object), categorize=False), dtype=np.uint64)
    length = min(length, len(hashes))
    found = np.full(len(hashes) - length + 1 if length else 0, length, dtype=np.uint64)
    for place in range(length):
        found = found * MIX + hashes[place : place + len(found)]
    return np.unique(found)


def jaccard(one: Hashes, other: Hashes) -> float:
    """How alike two sets of runs are: the share of all that both have."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def bands(found: Hashes) -> Hashes:
    """Return the MinHash bands of a set of runs: texts that have much in common have one of these in common.

    Shape: (PERMUTATIONS / ROWS,). Broder (1997); a set without a run has bands of its own.
    """
    if not len(found):
        return np.zeros(PERMUTATIONS // ROWS, dtype=np.uint64)
    permuted = (found[:, None] * FACTORS[0] + FACTORS[1]) >> np.uint64(32)
    lowest = permuted.min(axis=0).reshape(-1, ROWS)
    together = np.zeros(len(lowest), dtype=np.uint64)
    for row in range(ROWS):
        together = (together + lowest[:, row]) * MIX
    return together


def earlier_alike(texts: Sequence[str], length: int, least: float, compared: int) -> dict[int, int]:
    """Return the places of texts that say what an earlier one says, each with the place of the first such text.

    Alike is: the same figures, and runs of `length` words that are alike by `least`. Each text is compared with at most
    `compared` earlier ones of a band, the first and the nearest. Memory: about 150 bytes a text.
    """
    if not texts:
        return {}
    table = np.stack([bands(runs(text, length)) for text in texts])
    found: dict[int, int] = {}
    for band in table.T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
        for group in np.split(order, starts[1:]):
            _match(group.tolist(), texts, length, least, compared, found)
    return {place: _first(place, found) for place in sorted(found)}


def _match(
    group: Sequence[int], texts: Sequence[str], length: int, least: float, compared: int, found: dict[int, int]
) -> None:
    """Note for each of some texts the first of the earlier ones that it is like."""
    for position, place in enumerate(group[1:], 1):
        before = group[:position]
        near = before if len(before) <= compared else [*before[: compared // 2], *before[-compared // 2 :]]
        for other in near:
            if other >= found.get(place, place):
                break
            if alike(texts[other], texts[place], length, least):
                found[place] = other
                break


def _first(place: int, found: dict[int, int]) -> int:
    while place in found:
        place = found[place]
    return place


def alike(one: str, other: str, length: int, least: float) -> bool:
    """Whether two texts say the same: with the same figures the same words, or runs of words alike by `least`."""
    if figures(one) != figures(other):
        return False
    return words(one) == words(other) or jaccard(runs(one, length), runs(other, length)) >= least
