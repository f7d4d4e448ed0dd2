"""Hostile JSON: every place in a JSON value, and the values that an attacker could put there."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from malt.canonical_json import digest

Place = tuple[str | int, ...]

LINK = "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\"
VALUES: dict[str, object] = {
    "nothing": None,
    "a list": [],
    "an object": {},
    "below zero": -1,
    "a huge number": 10**4_000,
    "more than any float": 1e308 * 10,
    "no number": float("nan"),
    "a boolean": True,
    "a long text": "x" * 1_000_000,
    "an empty text": "",
    "a way out": "../../../escaped",
    "a screen's orders": f"{LINK}\x1b[2J\x9b31m\u202e\u200b",
    "a lone surrogate": "\ud800",
    "a NUL": "a\0b",
    "markup": "<script>alert(1)</script>![x](http://evil.example/x.png)|\n# Title",
    "depth": [[[[[[[[[[]]]]]]]]]],
}
"""Hostile values, by description."""
RAW = ("\x1b", "\x9b", "\u202e", "\u200b", "\x07")
"""Characters that no terminal may receive."""


def places(value: object, place: Place = ()) -> Iterator[Place]:
    """Yield every place in a JSON value, nested ones too."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*place, key))


def put(value: Any, place: Place, new: object) -> Any:  # noqa: ANN401 - JSON
    """Return a copy of a JSON value with `new` at a place."""
    if not place:
        return new
    changed = copy.copy(value)
    changed[place[0]] = put(value[place[0]], place[1:], new)
    return changed


def forge(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; a manifest gets a digest that fits its content."""
    unsealed = {name: each for name, each in content.items() if name != "manifest_sha256"}
    is_manifest = len(unsealed) < len(content)
    try:
        seal = {"manifest_sha256": digest(unsealed)} if is_manifest else {}
    except (ValueError, TypeError, OverflowError):  # content that has no digest
        seal = {"manifest_sha256": "0" * 64}
    file.write_text(json.dumps({**unsealed, **seal}))


STRIDE = 8
"""Each command is tested with every 8th place, the next command with the places after those; values take turns."""


def find_bad(
    command: list[str], number: int, files: Sequence[Path], run: Callable[[list[str]], tuple[int, str, str]]
) -> Iterator[str]:
    """Yield the places at which a command fails badly: an unexpected error, a foreign exit code, or raw control text.

    `files` are copies of one JSON file; each change is written to all of them.
    """
    whole = json.loads(files[0].read_bytes())
    names = [*VALUES]
    for index, place in enumerate(places(whole)):
        if index % STRIDE == number % STRIDE:
            name = names[(index // STRIDE + number) % len(names)]
            for file in files:
                forge(file, put(whole, place, VALUES[name]))
            code, out, err = run(command)
            is_told = code != 2 or err.startswith("error: ")
            if code not in (0, 1, 2) or "not expected" in err or not is_told or any(raw in out + err for raw in RAW):
                yield f"{name} in {place}: exit {code}, {err[:300]}"
