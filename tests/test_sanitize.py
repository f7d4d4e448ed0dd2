"""What others wrote is shown, and steers nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.sanitize import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\u202eright to left", "\\u202eright to left"),
        ("half \ud83d", "half \\ud83d"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\U0001f468\u200d\U0001f469 na\u00efve \u0646", "\U0001f468\u200d\U0001f469 na\u00efve \u0646"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_what_is_shown_is_encodable_and_shown_again_the_same(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert visible(shown) == shown
    assert not any(unicodedata.category(character) == "Cc" for character in shown if character not in "\n\t")
