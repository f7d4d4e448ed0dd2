"""Showing text that others wrote: what would steer a terminal, or turn text around, is written out instead."""

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control and format characters, halves of characters, and the separators that some terminals take for line ends."""

KEPT = "\n\t\u200c\u200d"
"""The joiners are part of many scripts and emoji."""

_WRITTEN_OUT = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in range(0x10000)
    if unicodedata.category(chr(code)) in STEERING and chr(code) not in KEPT
}


def visible(text: str) -> str:
    """Return a text that can be printed anywhere: an escape becomes `\\x1b`, a mark for right-to-left `\\u202e`."""
    return text.translate(_WRITTEN_OUT)
