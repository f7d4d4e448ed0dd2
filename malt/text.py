"""How texts and numbers are written alike everywhere: cut short, counted, listed; and what a wrong name meant."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice


def shorten(text: str, most: int) -> str:
    """Return a text, or as much of its beginning as fits into `most` characters with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count_noun(number: int, noun: str) -> str:
    """Write a number with its noun, which takes an `s` but for one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def list_first(names: Collection[str], most: int = 3) -> str:
    """Write some names; of many the first, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more


def draw_bar(percent: float | None) -> str:
    """Draw a share as twenty blocks."""
    filled = round((percent or 0) / 5)
    return "█" * filled + "░" * (20 - filled)


def find_close(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelled most like a wrong one; None where none is near."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)
