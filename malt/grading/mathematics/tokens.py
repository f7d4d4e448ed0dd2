# ruff: noqa: RUF001 - the signs that look alike are what this module is about
r"""Tokens of mathematics, in LaTeX, Unicode or plain text: `\sqrt{2}`, `√2` and `sqrt(2)` become the same tokens.

Nothing is dropped but layout: a sign that no rule knows raises `Unread`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from malt.grading.normalize import closing_brace, translation
from malt.grading.words import COUNTED, FILLERS, TURNING, UNITS


class Unread(Exception):  # noqa: N818 - a finding about an answer, not an error of the program
    """Some part of a text was not understood, so none of it was read."""


class Token(NamedTuple):
    r"""One token: a number, a symbol (one letter), a `\command`, a word, or a mark."""

    kind: str
    text: str
    spaced: bool = False
    """Whether space precedes the token."""


_FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt cbrt abs floor ceil gcd lcm max min
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_GREEK_NAMES = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
"""
GREEK = frozenset(_GREEK_NAMES.split())
_SYNONYMS = """
dfrac frac tfrac frac cfrac frac dbinom binom tbinom binom ge geq le leq geqslant geq leqslant leq ne neq gt > lt <
times * cdot * ast * div / lbrace { rbrace } lbrack [ rbrack ] lparen ( rparen ) lvert | rvert | vert | mid | colon :
varepsilon epsilon vartheta theta varphi phi varnothing emptyset degree deg circ deg dots ldots cdots ldots dotsc ldots
backslash setminus simeq approx tg tan ctg cot mod bmod pounds £ euro €
"""
_SAME_COMMAND = dict(zip(_SYNONYMS.split()[::2], _SYNONYMS.split()[1::2], strict=True))
_WORD_COMMANDS = {"inf": "infty", "infinity": "infty", "oo": "infty", "degrees": "deg", "degree": "deg", "in": "in"}
_TEXT = frozenset(
    ["text", "textrm", "textbf", "textit", "textsf", "texttt", "mbox", "hbox", "textnormal", "mathrm", "operatorname"]
)
_LETTERS = frozenset(["mathbf", "boldsymbol", "bm", "mathit", "mathsf", "mathcal", "mathscr", "mathfrak", "mathnormal"])

_SIGNS = r"""
−‐‑‒–﹣－ -  ×⋅·∗•✕ *  ÷∕⁄ /  ≤⩽ \leq  ≥⩾ \geq  ≠ \neq  ± \pm  ∓ \mp  ∞ \infty  ∪ \cup  ∩ \cap  ∈ \in  ∅ \emptyset
∖ \setminus  ≈≃≅ \approx  √ \sqrt  ∛ \sqrt[3]  ∜ \sqrt[4]  °º˚∘ \deg  ⌊ \lfloor  ⌋ \rfloor  ⌈ \lceil  ⌉ \rceil
⟨〈 \langle  ⟩〉 \rangle  …⋯ \ldots  △ \triangle  ∠ \angle  ℝ \mathbb{R}  ℤ \mathbb{Z}  ℕ \mathbb{N}  ℚ \mathbb{Q}
ℂ \mathbb{C}  ∣ |  ‖ \|  ′’ '  ″ ''  ，、 ,  。 .  ； ;  ∶ :  ％ %
"""
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u2060\ufeff\ufe0f"
_PLAIN = {sign: f"{plain} " if len(plain) > 2 else plain for sign, plain in translation(_SIGNS, "", _INVISIBLE).items()}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ", "0123456789+-nx")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+")
_VULGAR = re.compile("(?<=[0-9])?[¼½¾⅐-⅞]")
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]|\$\$")
_FINAL_TAG = re.compile(r"\\tag\*?\{[^{}]*\}")


def _plain_signs(text: str) -> str:
    """Replace Unicode signs by LaTeX or ASCII."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
    text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
    text = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("\u2044", "/") + " ", text)
    return "".join(map(_plain_character, text.translate(_PLAIN)))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    name = unicodedata.name(unicodedata.normalize("NFKC", character)[:1] or " ", "")
    greek = name.removeprefix("GREEK SMALL LETTER ").removeprefix("GREEK CAPITAL LETTER ").replace("LAMDA", "LAMBDA")
    if name.startswith("GREEK") and (greek.lower() in GREEK or greek.title() in GREEK):
        return "\\" + (greek.lower() if "SMALL" in name else greek.title()) + " "
    return unicodedata.normalize("NFKC", character)


_TOKEN = re.compile(
    r"""
      (?P<space>(?:\s|~|\\[,;:!\ >]|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z]))+)
    | (?P<layout>\\(?:left|right|[Bb]igg?[lr]?|displaystyle|textstyle|limits|rm|bf)(?![A-Za-z])\.?)
    | (?P<comma>[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9.,]))
    | (?P<number>[0-9]+(?:\.(?:[0-9]+|(?=\\(?:overline|bar)\b)))?(?:[eE][-+]?[0-9]{1,4}(?![A-Za-z0-9.]))?|\.[0-9]+)
    | (?P<row>\\\\)
    | \\(?P<command>[A-Za-z]+)\*?
    | \\(?P<escaped>[{}$%\#&_|])
    | (?P<letters>[A-Za-z]+)
    | (?P<mark>\*\*|==|<=|>=|!=|:=|[-+*/^_=<>(){}\[\]|,;:!%&'.$€£¥₹])
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(r"\.(?=\s*[A-Za-z])")
_MARKS = {"**": "^", "==": "=", "<=": "\\leq", ">=": "\\geq", "!=": "\\neq", ":=": "="}


def tokenize(text: str, nouns: frozenset[str]) -> list[Token]:
    r"""Return the tokens of a text; `nouns` are words that may stand beside values.

    Letters outside `\text{…}` are symbols, except names of functions, known words and units of two letters and more.
    Raises `Unread` at the first sign without a meaning.
    """
    text = _DELIMITER.sub("$", _plain_signs(_FINAL_TAG.sub("", text)))
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0:  # a `$` without a partner: a delimiter is missing, or it is a currency sign
        parts = [" ".join(parts)]
    scanned = (_scan(part, nouns, len(parts) > 1 and number % 2 == 0) for number, part in enumerate(parts))
    return _join_numbers(list(chain.from_iterable(scanned)))


def _scan(text: str, nouns: frozenset[str], prose: bool) -> Iterator[Token]:
    position, spaced, previous = 0, "", Token("start", "")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unread(f"the sign {text[position]!r}")
        position = match.end()
        if match["space"] or match["layout"]:
            spaced += match["space"] or ""
            continue
        command = match["command"]
        if command in _TEXT or command in _LETTERS:
            inner, position = _group(text, position)
            words = command in _TEXT and not (command in ("mathrm", "operatorname") and len(inner.strip()) == 1)
            tokens = list(_scan(inner, nouns, words))
        elif match["letters"]:
            tokens = list(_letters(match["letters"], previous, nouns, prose))
        else:
            tokens = [_single(match)]
        for token in tokens[:1]:
            yield token._replace(spaced=bool(spaced) or token.spaced)
        yield from tokens[1:]
        if tokens:
            previous, spaced = tokens[-1], ""
        if prose and match["letters"] and _ABBREVIATION.match(text, position):
            position += 1


def _single(match: "re.Match[str]") -> Token:
    if match["comma"]:
        return Token("number", match["comma"].replace(".", "").replace(",", "."))
    if match["number"]:
        return Token("number", match["number"])
    if match["row"]:
        return Token("mark", "\\\\")
    if sign := match["escaped"]:
        return Token("mark", "\\" + sign if sign in "{}" else sign)
    if match["command"]:
        return _command(match["command"])
    mark = _MARKS.get(match["mark"], match["mark"])
    return _command(mark[1:]) if mark[0] == "\\" else Token("mark", mark)


def _command(name: str) -> Token:
    name = _SAME_COMMAND.get(name, name)
    if name in ("{", "}"):
        return Token("mark", "\\" + name)
    return Token("command" if name.isalpha() else "mark", name)


def _group(text: str, start: int) -> tuple[str, int]:
    """Return the text in the braces after a command, or the one character after it, and the position after that."""
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] != "{":
        return text[start : start + 1], start + 1
    closing = closing_brace(text, start)
    if closing is None:
        raise Unread("an open brace")
    return text[start + 1 : closing], closing + 1


def _letters(run: str, previous: Token, nouns: frozenset[str], prose: bool) -> Iterator[Token]:
    """Read a run of letters: one name, one word, or symbols side by side."""
    low = run.lower()
    if run == "a" and previous.kind == "word" and previous.text in ("of", "in", "per", "is"):
        yield Token("word", run)
    elif run in FUNCTIONS or low in ("and", "or"):
        yield Token("command" if run in FUNCTIONS else "word", low)
    elif low in _WORD_COMMANDS and low != "in":
        yield Token("command", _WORD_COMMANDS[low])
    elif (run in GREEK and len(run) > 2) or run == "pi" or run in ("sqrt", "cbrt"):
        yield Token("command", run)
    elif prose or (len(run) > 1 and _is_word(run, previous, nouns)):
        yield Token("word", run)
    elif run[:2] == "pi" and len(run) == 3:
        yield from (Token("command", "pi"), Token("symbol", run[2]))
    else:
        yield from (Token("symbol", letter) for letter in run)


_SMALL_TEXT = """
is are was be it we so an on at as by of to no if he she has do does can got get
"""
_SMALL = frozenset(_SMALL_TEXT.split())


def _is_word(run: str, previous: Token, nouns: frozenset[str]) -> bool:
    """Whether letters outside `\\text` are a word: a unit after a number, a run too long for symbols, a known word."""
    if run in UNITS:
        return len(run) > 3 or previous.kind == "number"
    return len(run) > 3 or any(run.lower() in known for known in (nouns, FILLERS, TURNING, _SMALL, COUNTED))


def _join_numbers(tokens: list[Token]) -> list[Token]:
    r"""Join the groups of a long number: `1,234`, `1{,}234`, `1\,234` and `1'234`; in brackets a comma ends an item."""
    found: list[Token] = []
    depth, position = 0, 0
    while position < len(tokens):
        token = tokens[position]
        depth += (token.text in ("(", "[", "\\{")) - (token.text in (")", "]", "\\}"))
        if token.kind == "number" and re.fullmatch("[0-9]{1,3}", token.text):
            joined, position = _grouped(tokens, position, depth)
            found.append(joined)
        else:
            found.append(token)
            position += 1
    return found


def _grouped(tokens: list[Token], position: int, depth: int) -> tuple[Token, int]:
    first = tokens[position]
    text, position, separators = first.text, position + 1, set[str]()
    while group := _next_group(tokens, position, depth):
        separator, length, digits = group
        separators.add(separator)
        text, position = text + digits, position + length
        if "." in digits:
            break
    if len(separators) > 1:
        raise Unread(f"a number with {' and '.join(map(repr, sorted(separators)))} in it")
    return first._replace(text=text), position


def _next_group(tokens: list[Token], position: int, depth: int) -> tuple[str, int, str] | None:
    """Return the next group of three digits: the sign before it, its number of tokens, and its digits."""
    window = tokens[position : position + 4]
    texts = [token.text for token in window]
    if texts[:3] == ["{", ",", "}"] and len(window) > 3 and _is_group(window[3]):
        return ",", 4, window[3].text
    if window and window[0].kind == "number" and window[0].spaced and _is_group(window[0]) and texts[1:2] != ["/"]:
        return " ", 1, window[0].text
    tight = len(window) > 1 and not window[0].spaced and not window[1].spaced and _is_group(window[1])
    if tight and (texts[0] == "'" or (texts[0] == "," and depth == 0)):
        return texts[0], 2, window[1].text
    return None


def _is_group(token: Token) -> bool:
    return token.kind == "number" and re.fullmatch(r"[0-9]{3}(?:\.[0-9]+)?", token.text) is not None


_END = Token("end", "")


@dataclass
class TokenCursor:
    """A position in a list of tokens."""

    tokens: list[Token]
    position: int = 0

    def peek(self, ahead: int = 0) -> Token:
        """Return a token ahead; one of the kind `end` past the last."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

    def text(self, ahead: int = 0) -> str:
        """Return the text of a token ahead, empty past the end and for words."""
        token = self.peek(ahead)
        return "" if token.kind == "word" else token.text

    def take(self, *texts: str) -> str | None:
        if self.text() not in texts:
            return None
        self.position += 1
        return self.tokens[self.position - 1].text

    def expect(self, text: str) -> None:
        """Step over this token; raise `Unread` if another one comes."""
        if self.take(text) is None:
            raise Unread(f"{text!r} is missing after {self.read_so_far()!r}")

    def take_any(self) -> str:
        """Step over the next token, which may not be a brace, and return its text."""
        token = self.peek()
        if token.text in ("", "{", "}"):
            raise Unread("an index")
        self.position += 1
        return token.text

    def take_to_brace(self) -> str:
        """Step over the rest of an open group, and return its letters."""
        name = ""
        while not self.take("}"):
            name += self.take_any()
        return name

    def read_so_far(self) -> str:
        return " ".join(token.text for token in self.tokens[: self.position])[-30:]

    def word(self) -> str:
        """Return the next word in lower case, or an empty text if the next token is no word."""
        token = self.peek()
        return token.text.lower() if token.kind == "word" else ""

    def take_word(self, *words: str) -> bool:
        """Step over the next word if it is one of these."""
        taken = self.word() in words
        self.position += taken
        return taken
