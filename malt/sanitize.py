"""Escaping of untrusted text for the place where it is shown: terminal, page, Markdown, JSON on a terminal.

Models, providers, question files and foreign versions choose such text. Characters that control a terminal, reverse
text or hide it are written out as `\\x1b` or `\\u202e`.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, lone surrogates, and the separators that some terminals take for line ends."""
_KEPT = frozenset("\n\t\u200c\u200d")
"""Line ends, tabs, and the joiners that are part of many scripts and emoji."""

_MARKUP = re.compile(r"[\\`*\[\]<>~&$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""Characters that Markdown reads as markup, or as a bare link."""
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)])|)([.)#+=-])(?=[\s#=-]|$)")
"""Line starts that Markdown reads as a list or a heading."""


_LONE_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and a UTF-8 file or database cannot."""
    return text.translate(_LONE_SURROGATES)


class _WrittenOut(dict[int, int | str]):
    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        steers = unicodedata.category(character) in _STEERING and character not in _KEPT
        self[code] = _escape(code) if steers else code
        return self[code]


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _JsonEscaped(_WrittenOut):
    def __missing__(self, code: int) -> int | str:
        shown = super().__missing__(code)
        self[code] = shown if isinstance(shown, int) else json.dumps(chr(code))[1:-1]
        return self[code]


_WRITTEN_OUT, _JSON_ESCAPED = _WrittenOut(), _JsonEscaped()


def escape_controls(text: str) -> str:
    """Write out control characters, so that the text is safe to print; line ends and tabs stay."""
    return text.translate(_WRITTEN_OUT)


def dump_json(value: object, *, ascii_only: bool = False) -> str:
    """Encode JSON on one line without control characters; parsing it gives the same value."""
    return json.dumps(value, ensure_ascii=ascii_only).translate(_JSON_ESCAPED)


class Markdown(str):
    """Trusted Markdown; text of any other type is escaped before it goes into a page."""

    __slots__ = ()


def escape_markdown(text: str) -> Markdown:
    """Escape a text into one line of Markdown without markup, link, image, HTML, formula or table cell."""
    if isinstance(text, Markdown):
        return text
    line = _MARKUP.sub(r"\\\g<0>", fold_lines(text)).replace("|", "&#124;")
    return Markdown(_BLOCK.sub(r"\1\\\2", line))


def fold_lines(text: str) -> str:
    """Put a text on one line that is safe to print."""
    return " ".join(escape_controls(text).split())


def code_span(text: str) -> Markdown:
    """Format a text as a code span, or escape it as plain text if it could end the span."""
    line = fold_lines(text)
    return Markdown(f"`{line}`") if line and not {"`", "|"} & set(line) else escape_markdown(line)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """Lay out a table. Whole numbers get commas; a column of numbers alone is right-aligned."""
    cells = [tuple(row) for row in rows]
    rule = [Markdown("---:" if _is_numeric(cells, place) else "---") for place in range(len(head))]
    return Markdown("\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (head, rule, *cells)))


def _is_numeric(cells: Sequence[Sequence[object]], place: int) -> bool:
    return bool(cells) and all(isinstance(row[place], int | float) for row in cells)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else escape_markdown(value if isinstance(value, str) else str(value))
