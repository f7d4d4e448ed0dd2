r"""Reading mathematics whole: a text becomes a `Reading` of all of its tokens, or `Unread` is raised.

Runs in the grader processes alone: SymPy takes its time, and a hostile expression all of it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import sympy
from sympy import Expr, Integer, Rational, Symbol

from malt.grading.math_tokens import FUNCTIONS, GREEK, Token, Unread, tokenize
from malt.grading.number_words import number_in_words
from malt.grading.units import COUNTED, FILLERS, TURNING, UNITS

_MOST_TOKENS = 2_000
_MOST_NESTING = 60
_LARGEST_POWER = 100_000
"""Bits of a whole number past which a power is not carried out."""

_SIGN = Symbol("±")
"""Stands in an expression for either sign, until the reading is split in two."""
_DEGREE = Symbol("unit degree", positive=True)
PERCENT = Symbol("unit percent", positive=True)


class MathValue(NamedTuple):
    """An expression and its unit; `decimal` is how it was written if it is one decimal number."""

    expr: Expr
    unit: Expr = Integer(1)
    decimal: str | None = None


class Items(NamedTuple):
    """Several readings: `list`, `either` and `set` have no order, `round`, `square`, `ratio` and `dots` have one."""

    kind: str
    items: "tuple[Reading, ...]"


class Region(NamedTuple):
    """A set of numbers: intervals and what is made of them."""

    points: sympy.Set


class Chain(NamedTuple):
    """Sides with relations between them: `x = 5`, `1 < x < 2`."""

    sides: "tuple[Reading, ...]"
    relations: tuple[str, ...]


class Based(NamedTuple):
    """A numeral with its base, `204_8`."""

    digits: str
    base: int


class Words(NamedTuple):
    """An answer that is words, in lower case."""

    text: str


class Grid(NamedTuple):
    """A matrix or column."""

    cells: sympy.ImmutableDenseMatrix


Reading = MathValue | Items | Region | Chain | Based | Words | Grid


def read_math(text: str, nouns: frozenset[str] = frozenset(), known: frozenset[str] = frozenset()) -> Reading:
    """Read a whole text as mathematics, or raise `Unread`.

    `nouns` are words that may stand beside a value, `known` are symbols that may cancel out.
    """
    tokens = tokenize(_subject_left_out(text), nouns)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "!!"):
        tokens.pop()
    if not tokens or len(tokens) > _MOST_TOKENS:
        raise Unread("nothing" if not tokens else f"{len(tokens)} tokens")
    if all(token.kind == "word" or token.text in ("-", "'", ",", "&", "(", ")") for token in tokens):
        return _read_words(tokens, nouns)
    parser = _Parser(tokens, nouns)
    reading = parser.statement()
    if parser.peek() is not None:
        raise Unread(f"what stands after {parser.read_so_far()!r}")
    if lost := parser.symbols - _symbols_in(reading) - known:
        raise Unread(f"{', '.join(sorted(lost))} cancels out")
    return _split_signs(reading)


def _symbols_in(reading: Reading) -> set[str]:
    """Return the names of the symbols that a reading depends on."""
    match reading:
        case MathValue(expr):
            return {symbol.name for symbol in expr.free_symbols}
        case Items(_, items) | Chain(items, _):
            return set().union(*map(_symbols_in, items))
        case Grid(cells):
            return {symbol.name for symbol in cells.free_symbols}
    return set()


_SUBJECT = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|the|our|my|this|that|it|there|its|a|an|we|she|he|they)\b|\$?[A-Za-z]\$?(?=\s))"
    r"(?:[^=$\\\d]|\$[^$=\d]{1,30}\$)*?"
    r"\b(?:is|are|was|equals?|get|have|has|be)\b:?(?:\s+equal\s+to\b)?(?=[\s$\\:])",
    re.IGNORECASE,
)
_OR_SO = re.compile(r"^\s*no\.\s*(?=\d)|\s+or so\b", re.IGNORECASE)
_REASON = re.compile(r",?\s(?:because|since)\s")
_NEGATED = re.compile(r"\b(?:not|no|never|nor|neither|wrong|incorrect|false|cannot)\b|n[\u2019']t\b", re.IGNORECASE)


def _subject_left_out(text: str) -> str:
    """Leave out a sentence's subject and verb, `The area is`; one that denies is kept, and is not read."""
    text = _OR_SO.sub("", _REASON.split(text, maxsplit=1)[0])
    subject = _SUBJECT.match(text)
    return text if subject is None or _NEGATED.search(subject[0]) else text[subject.end() :]


def _read_words(tokens: list[Token], nouns: frozenset[str]) -> Reading:
    """Read words: a number with a unit, else the words themselves."""
    words = [token.text for token in tokens if token.text not in ("(", ")")]
    ends = [end for end in range(len(words), 0, -1) if end == len(words) or _is_unit(words[end:], nouns)]
    for end in ends:
        number = number_in_words(" ".join(words[:end]))
        if number is not None:
            return MathValue(Rational(number.numerator, number.denominator))
    return Words(" ".join(" ".join(words).casefold().replace(" - ", "-").split()))


def _is_unit(words: list[str], nouns: frozenset[str]) -> bool:
    known = (word in UNITS or word.lower() in UNITS or word.lower() in nouns | COUNTED | FILLERS for word in words)
    return all(known) and "percent" not in words


def _split_signs(reading: Reading) -> Reading:
    """Turn `1 ± x` into the two values that it stands for."""
    if isinstance(reading, Chain) and len(reading.sides) == 2 and reading.relations == ("=",):
        last = _split_signs(reading.sides[1])
        return Chain((reading.sides[0], last), reading.relations)
    if isinstance(reading, Items):
        items = tuple(map(_split_signs, reading.items))
        if reading.kind in ("list", "either", "set"):
            return Items(reading.kind, tuple(inner for item in items for inner in _flat(item)))
        return Items(reading.kind, items)
    if isinstance(reading, MathValue) and reading.expr.has(_SIGN):
        both = tuple(reading._replace(expr=reading.expr.subs(_SIGN, sign)) for sign in (1, -1))
        return Items("list", both)
    return reading


def _flat(reading: Reading) -> "tuple[Reading, ...]":
    return reading.items if isinstance(reading, Items) and reading.kind in ("list", "either") else (reading,)


@dataclass
class _Parser:
    """Recursive descent over the tokens: lists of relations of set operations of sums of products of powers."""

    tokens: list[Token]
    nouns: frozenset[str]
    position: int = 0
    depth: int = 0
    bars: int = 0
    symbols: set[str] = field(default_factory=set)
    """Names of the symbols that were read."""

    # Tokens.

    def peek(self, ahead: int = 0) -> Token | None:
        """Return a token ahead."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else None

    def text(self, ahead: int = 0) -> str:
        """Return the text of a token ahead, empty past the end and for words."""
        token = self.peek(ahead)
        return token.text if token is not None and token.kind != "word" else ""

    def word(self, ahead: int = 0) -> str:
        """Return a word ahead, in lower case; empty for whatever else stands there."""
        token = self.peek(ahead)
        return token.text.lower() if token is not None and token.kind == "word" else ""

    def take(self, *texts: str) -> str | None:
        """Step over the next token if it is one of these."""
        if self.text() in texts and self.text():
            self.position += 1
            return self.tokens[self.position - 1].text
        return None

    def take_word(self, *words: str) -> bool:
        """Step over the next word if it is one of these."""
        if self.word() in words and self.word():
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Step over this token, which must come."""
        if self.take(text) is None:
            raise Unread(f"{text!r} is missing after {self.read_so_far()!r}")

    def read_so_far(self) -> str:
        """Return the end of what was read."""
        return " ".join(token.text for token in self.tokens[: self.position])[-30:]

    # Statements.

    def statement(self) -> Reading:
        """Read the whole: words that lead in, then a list."""
        self.skip_lead_in()
        if self.take("approx"):
            return self.listed()
        return self.listed()

    def skip_lead_in(self) -> None:
        """Step over words before the first value, such as `The total is`; one that turns the meaning is not read."""
        start = self.position
        while self.peek() is not None and self.peek().kind == "word" and not number_in_words(self.word()):  # type: ignore[union-attr] # peek() was None-checked
            if self.word() in TURNING and self.word() not in ("all", "total", "minimum", "maximum", "positive"):
                raise Unread(f"the word {self.word()!r}")
            self.position += 1
            while self.take(":", ","):
                pass
        following = self.peek()
        if self.position > start and following is not None and following.text in "+*/^!_-" and self.text(1):
            after = self.peek(1)
            if following.text != "-" or (after is not None and after.spaced):
                raise Unread("words before an operator")

    def listed(self) -> Reading:
        """Read items apart by commas, `and` or `or`."""
        items: list[Reading] = [self.related()]
        dots, joined = False, set[str]()
        while self.take(",", ";") or self.word() in ("and", "or"):
            joined.add(self.word())
            while self.take_word("and", "or"):
                pass
            if self.take("ldots"):
                items.append(Words("…"))
                dots = True
            else:
                items.append(self.related())
        if len(items) == 1:
            return items[0]
        return Items("dots" if dots else "either" if joined == {"or"} else "list", tuple(items))

    def related(self) -> Reading:
        """Read sides with relations between them."""
        sides, relations = [self.side()], list[str]()
        while relation := self.take("=", "<", ">", "leq", "geq", "neq", "approx", ":", "in", "equiv"):
            sides.append(self.side())
            relations.append(relation)
        if not relations:
            return sides[0]
        if set(relations) == {":"}:
            return Items("ratio", tuple(sides))
        if relations == ["in"] and isinstance(sides[1], Region | Items) and is_symbol(sides[0]):
            return Chain(tuple(sides), ("in",))
        if "approx" in relations and len(set(relations)) == 1:
            self.symbols -= set().union(*map(_symbols_in, sides[1:])) - _symbols_in(sides[0])
            return sides[0]
        if {":", "in", "approx", "equiv"} & set(relations) and len(relations) > 1:
            raise Unread("relations of several sorts")
        return Chain(tuple(sides), tuple(relations))

    def side(self) -> Reading:
        """Read sets joined, or one sum."""
        left = self.sum()
        while operation := self.take("cup", "cap", "setminus"):
            left = _join_sets(operation, left, self.sum())
        if self.take("pmod", "bmod"):
            return Items("modulo", (left, self.atom()))
        return left

    # Expressions.

    def sum(self) -> Reading:
        """Read terms with signs between them."""
        sign = self.take("+", "-", "pm", "mp")
        first = self.product()
        if sign is None and self.text() not in ("+", "-", "pm", "mp"):
            return first
        decimal = first.decimal if isinstance(first, MathValue) else None
        total = _signed(sign or "+", _whole(first))
        single = True
        while sign := self.take("+", "-", "pm", "mp"):
            total = _finite(total) + _signed(sign, _finite(_whole(self.product())))
            single = False
        written = decimal if single and decimal and not total.has(_SIGN) else None
        return _measured(total, written and ("-" + written if total.is_negative else written))

    def product(self) -> Reading:
        """Read factors side by side or with signs between them, and the unit after them."""
        first = self.mixed_number() or self.power()
        if not self.goes_on():
            return _measured(first.expr, first.decimal) if isinstance(first, MathValue) else first
        result, decimal = _whole(first), first.decimal if isinstance(first, MathValue) else None
        while self.goes_on():
            if self.skip_fillers():
                continue
            operation = "/" if self.take_word("per") else self.take("*", "/")
            factor = self.factor(signed=operation is not None)
            if operation is None and _has_unit(result) and not _has_unit(factor):
                raise Unread("a value after a unit")
            result = _finite(result) / factor if operation == "/" else _finite(result) * _finite(factor)
            decimal = decimal if _only_unit(factor) else None
        return _measured(result, decimal)

    def factor(self, *, signed: bool) -> Expr:
        """Read one factor as an expression, after a sign of multiplication with a sign of its own."""
        negative = signed and self.take("-") is not None
        value = _whole(self.mixed_number() or self.power() if signed else self.power())
        return -value if negative else value

    def mixed_number(self) -> MathValue | None:
        r"""Read a whole number with a fraction after it, `1 1/4` or `2\frac{1}{2}`; an improper one is ambiguous."""
        match = _MIXED.match(" ".join(token.text for token in self.tokens[self.position : self.position + 9]) + " ")
        if match is None or not self.tokens[self.position].text.isdigit():
            return None
        digits = match["digits"] or "  "
        numerator = int(match["top"] or match["top2"] or digits[0])
        denominator = int(match["bottom"] or match["bottom2"] or digits[1])
        if not 0 < numerator < denominator:
            raise Unread("a whole number beside an improper fraction")
        self.position += len(match[0].split())
        return MathValue(Integer(int(match["whole"])) + Rational(numerator, denominator))

    def skip_fillers(self) -> bool:
        """Step over small words, if a unit or nothing follows them."""
        start = self.position
        while self.word() in FILLERS and self.word():
            self.position += 1
        if self.position > start and self.peek() is not None and self.peek().kind != "word":  # type: ignore[union-attr] # None-checked
            raise Unread("a value after words")
        return self.position > start

    def goes_on(self) -> bool:
        """Whether another factor follows; a number does not without a sign before it."""
        token = self.peek()
        if token is None or token.kind == "number":
            return False
        if token.kind == "word":
            word = token.text.lower()
            return word == "per" or self.is_unit_word(token) or word in FILLERS
        if token.text == "|":
            return self.bars == 0
        if token.kind == "mark":
            return token.text in ("*", "/", "(", "{", "\\{")
        if token.kind == "command":
            return token.text not in _NOT_FACTORS
        return True

    def is_unit_word(self, token: Token) -> bool:
        """Whether a word is a unit, or a noun that is counted."""
        low = token.text.lower()
        nouns = low in self.nouns or low in COUNTED or low in ("square", "sq", "cubic")
        return token.text in UNITS or low in UNITS or nouns

    def power(self) -> Reading:
        """Read an atom with what is raised, lowered or set after it."""
        base = self.atom()
        while True:
            if self.take("^"):
                base = self.raised(base)
            elif self.text() == "!" and self.text(1) != "=":
                self.position += 1
                base = MathValue(sympy.factorial(_bounded(_whole(base), 5000)))
            elif self.take("%"):
                base = MathValue(_whole(base) * PERCENT)
            elif self.take("deg"):
                base = self.degrees(base)
            elif self.text() in _CURRENCIES and self.text(1) == "":
                base = MathValue(_whole(base) * _unit(_CURRENCIES[self.take(*_CURRENCIES) or ""]))
            else:
                return base

    def raised(self, base: Reading) -> Reading:
        """Read an exponent, or the sign of a degree."""
        if self.take("deg"):
            return self.degrees(base)
        if self.text() == "{" and self.text(1) == "deg" and self.text(2) == "}":
            self.position += 3
            return self.degrees(base)
        exponent = self.exponent()
        return MathValue(_power(_whole(base), exponent))

    def degrees(self, base: Reading) -> Reading:
        """Return a value in degrees, of an angle or of heat."""
        self.take("C", "F")
        return MathValue(_whole(base) * _DEGREE)

    def exponent(self) -> Expr:
        """Read what stands after `^`: a group, or one signed number, symbol or bracket."""
        negative = self.take("-") is not None
        value = _whole(self.atom())
        if self.take("^"):
            value = _power(value, self.exponent())
        return -value if negative else value

    def atom(self) -> Reading:
        """Read one number, symbol, bracket, function or unit."""
        token = self.peek()
        if token is None:
            raise Unread("the end is missing")
        self.depth += 1
        if self.depth > _MOST_NESTING:
            raise Unread("too deeply nested")
        try:
            self.position += 1
            return self.read_atom(token)
        finally:
            self.depth -= 1

    def read_atom(self, token: Token) -> Reading:
        """Read an atom that begins with this token."""
        if token.kind == "number":
            return self.number(token)
        if token.kind == "symbol":
            return self.symbol(token.text)
        if token.kind == "word":
            return self.unit(token)
        if token.kind == "command":
            return self.command(token.text)
        if token.text == "{":
            return self.braced("}")
        if token.text == "\\{":
            return self.braced("\\}")
        if token.text in ("(", "[", "]"):
            return self.bracketed(token.text)
        if token.text == "|":
            self.bars += 1
            inner = _whole(self.sum())
            self.expect("|")
            self.bars -= 1
            return MathValue(sympy.Abs(_finite(inner)))
        if token.text in _CURRENCIES:
            inner = _whole(self.mixed_number() or self.power())
            return MathValue(inner * _unit(_CURRENCIES[token.text]))
        raise Unread(f"the sign {token.text!r}")

    def number(self, token: Token) -> Reading:
        """Read a number: with a base, with a bar over what repeats, or as it stands."""
        if self.text() == "_":
            self.position += 1
            base = _whole(self.atom())
            if not (base.is_Integer and 2 <= base <= 36 and token.text.isdigit()):
                raise Unread("a number with an index")
            return Based(token.text, int(base))
        if self.text() == "overline" and "." in token.text + self.text(-1):
            return self.repeating(token.text)
        return MathValue(Rational(token.text), Integer(1), token.text)

    def repeating(self, start: str) -> Reading:
        r"""Read `0.1\overline{6}`."""
        self.position += 1
        self.expect("{")
        repeated = self.peek()
        self.position += 1
        self.expect("}")
        if repeated is None or not repeated.text.isdigit():
            raise Unread("what repeats")
        places = len(start.partition(".")[2])
        period = Rational(int(repeated.text), (10 ** len(repeated.text) - 1) * 10**places)
        return MathValue(Rational(start) + period)

    def symbol(self, name: str) -> Reading:
        """Read a symbol with its index and primes, or a function of something."""
        name += self.index()
        if (
            name in ("f", "g", "h", "F", "G", "P")
            and self.text() == "^"
            and self.text(2) == "-"
            and self.text(3) == "1"
        ):
            self.position += 5
            name += "^-1"
        if name[0] in "fghFGP" and self.text() == "(":
            self.position += 1
            arguments = self.arguments(")")
            return MathValue(sympy.Function(name)(*arguments))
        if name == "e":
            return MathValue(sympy.E)
        if name == "i":
            return MathValue(sympy.I)
        return self.named(name)

    def named(self, name: str) -> MathValue:
        """Return a symbol of this name, and note that it was read."""
        self.symbols.add(name)
        return MathValue(Symbol(name))

    def index(self) -> str:
        """Read an index and primes as part of a name."""
        name = ""
        while self.text() in ("_", "'"):
            if self.take("'"):
                name += "'"
                continue
            self.position += 1
            if self.take("{"):
                while not self.take("}"):
                    name += self.any_text()
            else:
                name += self.any_text()
            name = "_" + name.lstrip("_")
        return name

    def any_text(self) -> str:
        """Return the next token as text."""
        token = self.peek()
        if token is None or token.text in ("{", "}"):
            raise Unread("an index")
        self.position += 1
        return token.text

    def unit(self, token: Token) -> Reading:
        """Read a unit, with `square` or `cubic` before it."""
        low = token.text.lower()
        if low in ("square", "sq", "cubic"):
            following = self.peek()
            if following is None or following.kind != "word":
                raise Unread(f"the word {token.text!r}")
            return MathValue(_whole(self.atom()) ** (3 if low == "cubic" else 2))
        if not self.is_unit_word(token):
            raise Unread(f"the word {token.text!r}")
        name = UNITS.get(token.text) or UNITS.get(low) or low
        return MathValue(PERCENT if name == "percent" else _DEGREE if name == "degree" else _unit(name))

    # Commands.

    def command(self, name: str) -> Reading:
        """Read a command with its arguments."""
        if name in _CONSTANTS:
            return MathValue(_CONSTANTS[name])
        if name == "frac":
            return self.fraction()
        if name in ("sqrt", "cbrt"):
            return self.root(name)
        if name == "binom":
            return MathValue(sympy.binomial(_bounded(self.argument(), 10**6), _bounded(self.argument(), 10**6)))
        if name in ("lfloor", "lceil"):
            inner = _whole(self.sum())
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return MathValue(sympy.floor(inner) if name == "lfloor" else sympy.ceiling(inner))
        if name == "langle":
            return Items("round", tuple(self.readings("rangle")))
        if name in FUNCTIONS:
            return self.function(name)
        if name in (
            "overline",
            "bar",
            "vec",
            "hat",
            "overrightarrow",
            "tilde",
            "underline",
            "angle",
            "triangle",
            "widehat",
        ):
            return MathValue(Symbol(f"{name} {self.name_text()}"))
        if name == "mathbb":
            return self.number_set()
        if name == "begin":
            return self.matrix()
        if name in GREEK or name == "ell":
            return self.named(name + self.index())
        if name in ("emptyset",):
            return Items("set", ())
        raise Unread(f"the command \\{name}")

    def number_set(self) -> Reading:
        """Read the letter of a set of numbers."""
        braced = self.take("{") is not None
        letter = self.any_text()
        if braced:
            self.expect("}")
        if letter not in _NUMBER_SETS:
            raise Unread(f"the set {letter}")
        return Region(_NUMBER_SETS[letter])

    def name_text(self) -> str:
        """Return the letters of a name, in a group or side by side."""
        if self.take("{"):
            name = ""
            while not self.take("}"):
                name += self.any_text()
            return name
        name = self.any_text()
        while self.peek() is not None and self.peek().kind == "symbol" and not self.peek().spaced:  # type: ignore[union-attr] # None-checked
            name += self.any_text()
        return name

    def argument(self) -> Expr:
        """Read one argument of a command: a group, or a single digit or token, as LaTeX has it."""
        token = self.peek()
        if token is not None and token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.position] = token._replace(text=token.text[1:])
            return Integer(int(token.text[0]))
        return _whole(self.atom())

    def fraction(self) -> Reading:
        """Read a fraction; a derivative is a name."""
        derivative = re.match(
            r"\{ d (?:\^ . )?(\S) \} \{ d (\S)(?: \^ .)? \}",
            " ".join(t.text for t in self.tokens[self.position : self.position + 12]),
        )
        if derivative:
            end = self.position
            for _ in range(2):
                while self.tokens[end].text != "}":
                    end += 1
                end += 1
            name = " ".join(token.text for token in self.tokens[self.position : end])
            self.position = end
            return MathValue(Symbol(f"derivative {name}"))
        numerator, denominator = self.argument(), self.argument()
        if denominator == 0:
            raise Unread("division by zero")
        return MathValue(numerator / denominator)

    def root(self, name: str) -> Reading:
        """Read a root, of the degree that stands in brackets."""
        degree = Integer(3 if name == "cbrt" else 2)
        if self.take("["):
            degree = _whole(self.sum())
            self.expect("]")
        return MathValue(sympy.root(_finite(_whole(self.atom())), degree))

    def function(self, name: str) -> Reading:
        """Read a function: its index or power, and its argument."""
        base, power = None, None
        while mark := self.take("_", "^"):
            if mark == "_":
                base = _whole(self.atom())
            else:
                power = self.exponent()
        if self.text() == "(":
            self.position += 1
            arguments = self.arguments(")")
        elif self.text() == "{":
            self.position += 1
            arguments = self.arguments("}")
        else:
            arguments = [self.bare_argument()]
        if name == "exp" and base is None and len(arguments) == 1:
            value = _power(sympy.E, arguments[0])
        else:
            value = _apply(name, arguments, base, power == -1)
        return MathValue(value if power is None or power == -1 else _power(value, power))

    def bare_argument(self) -> Expr:
        r"""Read a function's argument without brackets, `\sin 2x`: it ends before a sign or another function."""
        result = self.factor(signed=True)
        while self.goes_on() and self.text() and self.text() not in {"*", "/", "(", "|", *FUNCTIONS}:
            result = result * self.factor(signed=False)
        return result

    def arguments(self, closing: str) -> list[Expr]:
        """Read expressions up to the closing bracket."""
        return [_whole(each) for each in self.readings(closing)]

    def readings(self, *closings: str) -> list[Reading]:
        """Read what stands apart by commas up to one of the closing brackets."""
        bars, self.bars = self.bars, 0
        found = [self.related()]
        while self.take(",", ";"):
            found.append(Words("…") if self.take("ldots") else self.related())
        if self.take(*closings) is None:
            self.expect(closings[0])
        self.bars = bars
        return found

    def braced(self, closing: str) -> Reading:
        """Read a group, or a set if its braces are written out or hold several items."""
        if self.take(closing):
            if closing == "}":
                raise Unread("an empty group")
            return Items("set", ())
        found = self.readings_of_set(closing) if closing == "\\}" else self.readings("}", "choose")
        if self.tokens[self.position - 1].text == "choose":
            chosen = _whole(self.related())
            self.expect(closing)
            return MathValue(sympy.binomial(_bounded(_whole(found[0]), 10**4), _bounded(chosen, 10**4)))
        if closing == "}" and len(found) == 1:
            return found[0]
        return Items("dots" if Words("…") in found else "set", tuple(found))

    def readings_of_set(self, closing: str) -> list[Reading]:
        """Read the items of a set, or its condition: `x | x > 3`."""
        start, self.bars = self.position, self.bars + (self.text() != "|")
        try:
            found = [self.related()]
        finally:
            self.bars -= self.tokens[start].text != "|"
        if self.take("|") or self.take(":"):
            found = [self.listed()]
            self.expect(closing)
            return found if isinstance(found[0], Chain) else self.no_set()
        while self.take(",", ";"):
            found.append(Words("…") if self.take("ldots") else self.related())
        self.expect(closing)
        return found

    def no_set(self) -> list[Reading]:
        """Refuse a set whose condition is no relation."""
        raise Unread("a set's condition")

    def bracketed(self, opening: str) -> Reading:
        """Read brackets: around one value, a point, a sequence or an interval."""
        bars, self.bars = self.bars, 0
        found = [self.related()]
        while self.take(",", ";"):
            found.append(Words("…") if self.take("ldots") else self.related())
        self.bars = bars
        closing = self.take(")", "]", "[")
        if closing is None:
            raise Unread("an open bracket")
        if len(found) == 2 and all(isinstance(each, MathValue) for each in found):
            return _pair(opening, closing, *found)
        if (opening, closing) not in (("(", ")"), ("[", "]")):
            raise Unread("brackets that do not match")
        if len(found) == 1:
            return found[0]
        if Words("…") in found:
            return Items("dots", tuple(found))
        return Items("round" if opening == "(" else "square", tuple(found))

    def matrix(self) -> Reading:
        """Read a matrix in one of the plain environments."""
        name = self.name_text()
        if name not in ("matrix", "pmatrix", "bmatrix", "smallmatrix", "Bmatrix"):
            raise Unread(f"the environment {name}")
        rows, row = list[list[Expr]](), [_whole(self.sum())]
        while not self.take("end"):
            if self.take("&"):
                row.append(_whole(self.sum()))
            elif self.take("\\\\"):
                rows.append(row)
                if self.text() == "end":
                    row = []
                    continue
                row = [_whole(self.sum())]
            else:
                raise Unread("a matrix")
        if self.name_text() != name:
            raise Unread("an environment's end")
        rows = [*rows, row] if row else rows
        if len({len(each) for each in rows}) != 1:
            raise Unread("rows of several lengths")
        return Grid(sympy.ImmutableDenseMatrix(rows))


_MIXED = re.compile(
    r"(?P<whole>[0-9]+) (?:(?P<top>[0-9]+) / (?P<bottom>[0-9]+) "
    r"|frac (?:(?P<digits>[0-9]{2}) |\{ (?P<top2>[0-9]+) \} \{ (?P<bottom2>[0-9]+) \} ))"
)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound-sterling", "¥": "yen", "₹": "rupee"}
_CONSTANTS = {"pi": sympy.pi, "infty": sympy.oo, "deg": _DEGREE}
_NUMBER_SETS = {
    "R": sympy.S.Reals, "Z": sympy.S.Integers, "N": sympy.S.Naturals, "Q": sympy.S.Rationals, "C": sympy.S.Complexes,
}  # fmt: skip
_ENDS = "leq geq neq approx in equiv pmod bmod choose cup cap setminus pm mp rfloor rceil rangle end ldots"
_NOT_FACTORS = frozenset(_ENDS.split())


def _whole(reading: Reading) -> Expr:
    """Return the expression of a value, its unit included."""
    if not isinstance(reading, MathValue):
        raise Unread("what is no value stands in an expression")
    return reading.expr * reading.unit


def _unit(name: str) -> Symbol:
    return Symbol(f"unit {name}", positive=True)


def _only_unit(expr: Expr) -> bool:
    return bool(expr.free_symbols) and all(symbol.name.startswith("unit ") for symbol in expr.free_symbols)


def _has_unit(expr: Expr) -> bool:
    return any(symbol.name.startswith("unit ") for symbol in expr.free_symbols)


def _measured(expr: Expr, decimal: str | None) -> Reading:
    """Part an expression from its unit, which may stand once for a whole sum; a sum of several units is not read."""
    if not _has_unit(expr):
        return MathValue(expr, Integer(1), decimal)
    units = [symbol for symbol in expr.free_symbols if symbol.name.startswith("unit ")]
    if expr.is_Add and len(units) == 1 and sum(map(_has_unit, expr.args)) == 1:
        return MathValue(expr.subs(units[0], 1), units[0], decimal)
    coefficient, unit = sympy.factor_terms(expr).as_independent(*units, as_Add=False)
    if _has_unit(coefficient) or (not unit.is_Mul and not unit.is_Pow and not unit.is_Symbol):
        raise Unread("several units")
    return MathValue(coefficient, unit, decimal)


def _signed(sign: str, value: Expr) -> Expr:
    return value * {"+": Integer(1), "-": Integer(-1), "pm": _SIGN, "mp": -_SIGN}[sign]


def is_symbol(reading: Reading) -> bool:
    """Whether a reading is one symbol."""
    return isinstance(reading, MathValue) and bool(reading.expr.is_Symbol)


def _bounded(value: Expr, most: int) -> Expr:
    """Return a value that is not too large to be carried on with."""
    if value.is_number and not abs(value) <= most:
        raise Unread("a number too large")
    return value


def _finite(value: Expr) -> Expr:
    """Refuse to calculate with infinity."""
    if value.has(sympy.oo, -sympy.oo, sympy.zoo):
        raise Unread("infinity in a calculation")
    return value


def _power(base: Expr, exponent: Expr) -> Expr:
    """Raise, unless the result would be absurdly long."""
    _finite(base * exponent)
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(int(base.p)).bit_length(), int(base.q).bit_length()) * abs(exponent)
        if bits > _LARGEST_POWER:
            raise Unread("a power too large")
        if base == 0 and exponent <= 0:
            raise Unread("zero to the power of zero")
    return base**exponent


def _apply(name: str, arguments: list[Expr], base: Expr | None, inverse: bool) -> Expr:
    """Apply a function of one or more arguments."""
    if name in ("gcd", "lcm", "max", "min"):
        many: dict[str, Callable[..., Expr]] = {"gcd": sympy.gcd, "lcm": sympy.lcm, "max": sympy.Max, "min": sympy.Min}
        return many[name](*arguments) if name in ("max", "min") else many[name](arguments)
    if len(arguments) != 1:
        raise Unread(f"{name} of {len(arguments)} arguments")
    argument = _finite(arguments[0])
    if name in ("ln", "log", "lg"):
        if base in (0, 1) or argument == 0:
            raise Unread("a logarithm without a value")
        if base is not None:
            return sympy.log(argument, base)
        return sympy.log(argument, 10) if name == "lg" else sympy.log(argument)
    if base is not None:
        raise Unread(f"{name} with an index")
    if name in ("sin", "cos", "tan", "cot", "sec", "csc") and not inverse:
        argument = argument.subs(_DEGREE, sympy.pi / 180)
    if _has_unit(argument):
        raise Unread(f"{name} of a unit")
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "abs": "Abs", "ceil": "ceiling"}
    found = getattr(sympy, "a" + name if inverse else names.get(name, name))(argument)
    if found.has(sympy.zoo, sympy.nan):
        raise Unread(f"{name} without a value")
    return found


def _pair(opening: str, closing: str, left: Reading, right: Reading) -> Reading:
    """Read two values in brackets: an interval unless both brackets are round and both values finite."""
    low, high = _whole(left), _whole(right)
    infinite = sympy.oo in (abs(low), abs(high))
    if (opening, closing) == ("(", ")") and not infinite:
        return Items("round", (left, right))
    if not (low.is_extended_real and high.is_extended_real):
        return Items(f"{opening}{closing}", (left, right))
    if low > high:
        raise Unread("an interval that ends before it begins")
    return Region(sympy.Interval(low, high, opening in ("(", "]"), closing in (")", "[")))


def as_region(reading: Reading) -> sympy.Set | None:
    """Return a reading as a set of points, a round pair as the interval; None where it is none."""
    if isinstance(reading, Region):
        return reading.points
    if not isinstance(reading, Items) or not all(isinstance(item, MathValue) for item in reading.items):
        return None
    values = [_whole(item) for item in reading.items]
    if (
        reading.kind == "round"
        and len(values) == 2
        and all(value.is_real for value in values)
        and values[0] < values[1]
    ):
        return sympy.Interval.open(*values)
    return sympy.FiniteSet(*values) if reading.kind == "set" else None


def _join_sets(operation: str, left: Reading, right: Reading) -> Reading:
    first, second = as_region(left), as_region(right)
    if first is None or second is None:
        raise Unread("what is no set stands beside \\cup")
    joined = {"cup": first.union, "cap": first.intersect, "setminus": lambda other: first - other}[operation](second)
    if isinstance(joined, sympy.FiniteSet):
        return Items("set", tuple(MathValue(each) for each in joined))
    return Region(joined)
