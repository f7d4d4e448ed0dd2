"""Formatting of texts and numbers: shortening, counting, listing; and the likely meaning of a misspelled name."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice


def shorten(text: str, most: int) -> str:
    """Cut a text to at most `most` characters, the last an ellipsis if it was longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count_noun(number: int, noun: str) -> str:
    """Write a number with its noun, which takes an `s` unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def list_first(names: Collection[str], most: int = 3) -> str:
    """Join the first `most` names, and say how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more


def draw_bar(percent: float | None) -> str:
    """Draw a percentage as twenty blocks; None is drawn as 0."""
    filled = round((percent or 0) / 5)
    return "█" * filled + "░" * (20 - filled)


def find_close(name: str, known: Iterable[str]) -> str | None:
    """Return the known name spelled most like `name`, or None if none is close."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)
