"""Near duplicates: runs of words (shingles) as 64-bit hashes, compared by MinHash and Jaccard similarity.

A question with fewer words than a run is one run. Two different runs share a hash once in 2^64.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_FIGURE = re.compile(r"\d+(?:[.,]\d+)*|[-+*/^=<>%\u00d7\u00f7\u2212\u221a\u222b]")
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Multiplier for hashing: any odd number with well-spread bits."""

_PERMUTATIONS, _ROWS = 64, 4
"""MinHash in 16 bands of 4. It misses two texts of similarity 0.8 twice in 10,000, of similarity 0.7 once in 80."""
_FACTORS = np.frombuffer(hashlib.shake_256(b"malt").digest(16 * _PERMUTATIONS), "<u8").reshape(2, -1) | np.uint64(1)
"""Coefficients of the permutations: the same in every process, with any version of the libraries."""


def split_words(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case; if it has none, its parts between spaces."""
    return _WORD.findall(text.casefold()) or text.split()


def find_figures(text: str) -> list[str]:
    """Return the numbers and arithmetic signs of a text; texts that differ in them ask different things."""
    return _FIGURE.findall(text)


def hash_runs(text: str, length: int) -> Hashes:
    """Hash every run of `length` words in a text; the whole text where it has fewer."""
    return _hash_runs(tuple(split_words(text)), length)


@lru_cache(maxsize=256)
def _hash_runs(words: tuple[str, ...], length: int) -> Hashes:
    """Return the sorted, distinct hashes of the runs."""
    hashes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    length = min(length, len(hashes))
    found = np.full(len(hashes) - length + 1 if length else 0, length, dtype=np.uint64)
    for place in range(length):
        found = found * MIX + hashes[place : place + len(found)]
    return np.unique(found)


@lru_cache(maxsize=2**16)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())


def _jaccard(one: Hashes, other: Hashes) -> float:
    """Return the share of all hashes in two sets that are in both."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def _hash_bands(found: Hashes) -> Hashes:
    """Return the MinHash bands of a set of runs (Broder, 1997): similar texts share at least one of them.

    Shape: (PERMUTATIONS / ROWS,). All bands of a set without runs are zero.
    """
    if not len(found):
        return np.zeros(_PERMUTATIONS // _ROWS, dtype=np.uint64)
    permuted = (found[:, None] * _FACTORS[0] + _FACTORS[1]) >> np.uint64(32)
    lowest = permuted.min(axis=0).reshape(-1, _ROWS)
    together = np.zeros(len(lowest), dtype=np.uint64)
    for row in range(_ROWS):
        together = (together + lowest[:, row]) * MIX
    return together


_RUN = 5
"""Words of a run in the comparison of questions, a usual length with MinHash."""
_NEAR = 0.7
"""Least similarity of near duplicates: in a question of 35 words one may differ."""
_COMPARED = 32
"""Most earlier questions of a band that a question is compared with; too few only for thousands from one template."""


def find_near_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Return the indices of questions that ask the same as an earlier one, each with the index of the first such one.

    Near duplicates have the same figures and most runs of words in common. Each question is compared with the first
    and the latest of the earlier ones in its bands. Memory: about 150 bytes a text.
    """
    if not texts:
        return {}
    table = np.stack([_hash_bands(hash_runs(text, _RUN)) for text in texts])
    found: dict[int, int] = {}
    for band in table.T:
        for group in _group_equal(band):
            _match(group.tolist(), texts, found)
    return {place: _first(place, found) for place in sorted(found)}


def _group_equal(band: Hashes) -> list[NDArray[np.intp]]:
    """Group the indices of equal hashes, in order."""
    order = np.argsort(band, kind="stable")
    starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]))
    return np.split(order, starts[1:])


def _match(group: Sequence[int], texts: Sequence[str], found: dict[int, int]) -> None:
    """Record in `found` the first similar earlier text of each text in a group."""
    for position, place in enumerate(group[1:], 1):
        before = group[:position]
        near = before if len(before) <= _COMPARED else [*before[: _COMPARED // 2], *before[-_COMPARED // 2 :]]
        for other in near:
            if other >= found.get(place, place):
                break
            if _are_alike(texts[other], texts[place]):
                found[place] = other
                break


def _first(place: int, found: dict[int, int]) -> int:
    while place in found:
        place = found[place]
    return place


def _are_alike(one: str, other: str) -> bool:
    """Whether two texts have the same figures, and the same words or nearly the same runs of words."""
    if find_figures(one) != find_figures(other):
        return False
    return split_words(one) == split_words(other) or _jaccard(hash_runs(one, _RUN), hash_runs(other, _RUN)) >= _NEAR
