"""JudgeReply, the schema of a judge's reply, and reading a reply, even a loosely written one."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema
from pydantic.config import JsonDict

from malt.config.base import first_problem

_SCORE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:(?P<percent>%)|(?:/|out of)\s*(?P<whole>\d+(?:\.\d+)?))?\s*", re.I)


def _as_score(value: object) -> object:
    """Read `"0.9"`, `"9/10"`, `"0.9 out of 1"`, `"90%"` and true or false as numbers; the range is checked after."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return value
    match = _SCORE.fullmatch(value)
    whole = 0.0 if match is None else 100.0 if match["percent"] else float(match["whole"] or 1)
    if match is None or whole == 0:
        raise ValueError(f"{value[:40]!r} is not a score")
    return float(match[1]) / whole


def _as_lines(value: object) -> object:
    """Read a single text, or none, as a list of texts; listed values of other types are kept as JSON."""
    if value is None or value == "":
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    texts = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
    return tuple(text.encode("utf-8", "replace").decode() for text in texts)


Score = Annotated[
    float,
    BeforeValidator(_as_score),
    Field(ge=0, le=1, allow_inf_nan=False),
    WithJsonSchema({"type": "number", "enum": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]}),
]
"""A score from 0 to 1, also for the further scores of a schema subclass. The schema lists tenths, since servers can
hold a model to a list of values but not to a range; other numbers in the range are read too."""

_Lines = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_lines),
    WithJsonSchema({"type": "array", "items": {"type": "string", "maxLength": 120}, "maxItems": 3}),
]
"""A few short texts. The bounds make a small model stop on servers that hold it to the schema; a reply with more or
longer texts is read too."""


def _closed(schema: JsonDict) -> None:
    """Adapt a JSON schema to structured output: all keys required, no others, no defaults, no docstring."""
    properties = schema["properties"]
    if isinstance(properties, dict):
        schema["required"] = list(properties)
        for declared in properties.values():
            if isinstance(declared, dict):
                declared.pop("default", None)
    schema["additionalProperties"] = False
    schema.pop("description", None)


class JudgeReply(BaseModel):
    """Schema of the judge's reply. The explanation comes first: a model that has stated its reasons scores better.

    A subclass adds scores, declared as `Score`; any other field it adds needs a default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra=_closed)

    explanation: _Lines = ()
    key_matches: _Lines = ()
    correctness_score: Score
    reasoning_score: Score

    @classmethod
    def score_names(cls) -> list[str]:
        """Return the names of all scores, including a subclass's."""
        return [name for name, field in cls.model_fields.items() if field.annotation is float]


_Reply = TypeVar("_Reply", bound=JudgeReply)


def read_reply(text: str, schema: type[_Reply]) -> _Reply | str:
    """Return the judge's reply, or the reason why it cannot be read. Never raises; time is linear in the text.

    The object may stand in prose, a code fence or a wrapping object, and be written loosely (single quotes, trailing
    commas, bare keys, stray quotes and backslashes). A broken object makes the reply unreadable, and so do two
    verdicts that differ: either may be a quotation from the answer.
    """
    try:
        replies = [reply for value in _objects_in(text, schema) for reply in _verdicts_in(value, schema)]
    except ValidationError as error:
        return first_problem(error, "reply", quotes=True)
    except (ValueError, RecursionError) as error:
        return f"its JSON is broken ({str(error)[:120]})"
    if len({tuple(getattr(reply, name) for name in schema.score_names()) for reply in replies}) > 1:
        return "it gives several verdicts that differ"
    return replies[0] if replies else "it holds no JSON object with the scores"


def reply_to_empty_answer(schema: type[_Reply]) -> _Reply:
    """Return a reply with zero for all scores."""
    zeros = dict.fromkeys(schema.score_names(), 0.0)
    return schema.model_validate({"explanation": "there is no answer to judge", **zeros})


def _verdicts_in(value: JsonValue, schema: type[_Reply]) -> Iterator[_Reply]:
    """Yield the outermost objects that have one of the scores; raises where one of them does not fit the schema."""
    named = {_bare(name): name for name in schema.model_fields}
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(reversed(value))
        elif isinstance(value, dict):
            fields = _unique((named.get(_bare(key), key), item) for key, item in value.items())
            if any(name in fields for name in schema.score_names()):
                yield schema.model_validate(fields)
            else:
                pending.extend(reversed(value.values()))


def _bare(name: str) -> str:
    """Reduce a key to its letters, so that `Correctness Score` and `correctnessScore` name the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _unique(pairs: Iterator[tuple[str, JsonValue]] | list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Return the pairs as a dict; raises where one key has two values."""
    found: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"{key[:40]} is given twice")
        found[key] = value
    return found


_BEGIN = re.compile(r"""\{\s*(?:(?P<quote>["'])[^"'{}]{0,60}(?P=quote)|(?P<bare>[A-Za-z][\w -]{0,60}))\s{0,20}:""")
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_unique)


def _objects_in(text: str, schema: type[JudgeReply]) -> Iterator[JsonValue]:
    """Yield the JSON objects that stand in a text, in order; raises `ValueError` at one that cannot be read.

    A brace begins an object when a quoted key follows it, or a bare one of the schema: mathematics has braces too.
    """
    names = {_bare(name) for name in schema.model_fields}
    position = 0
    while begin := _BEGIN.search(text, position):
        position = begin.end()
        if begin["quote"] or _bare(begin["bare"]) in names:
            value, position = _decode(text, begin.start())
            yield value


def _decode(text: str, start: int) -> tuple[JsonValue, int]:
    with suppress(ValueError):
        return _DECODER.raw_decode(text, start)
    strict, end = _rewrite(text, start)
    return _DECODER.decode(strict), end


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<mark>[{}\[\],:])
    |"(?P<double>(?>(?:[^"\\]|\\.|"(?!\s*[,:\]}]))*))"
    |'(?P<single>(?>(?:[^'\\]|\\.|'(?!\s*[,:\]}]))*))'
    |(?P<word>[^\s{}\[\],:"']+)
    )""",
    re.VERBOSE | re.DOTALL,
)
"""One token of a loosely written object. A quotation mark ends a text only before a mark, so `"so "7" fits"` is one."""

_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null", "nan": "NaN"}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_ESCAPE = re.compile(r"""(?P<kept>\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))|(?P<apostrophe>\\')|[\\"]""")


def _rewrite(text: str, start: int) -> tuple[str, int]:
    """Return the object that starts here as strict JSON, and where it ends; raises `ValueError` where it has no end."""
    pieces: list[str] = []
    depth = 0
    for token in _tokens(text, start):
        piece = _strict_token(token)
        depth += (piece in "{[") - (piece in "}]")
        if piece in "}]" and pieces[-1] == ",":
            pieces.pop()
        pieces.append(piece)
        if depth == 0:
            return "".join(pieces), token.end()
    raise ValueError("the object has no end")


def _tokens(text: str, start: int) -> Iterator[re.Match[str]]:
    while token := _TOKEN.match(text, start):
        yield token
        start = token.end()


def _strict_token(token: re.Match[str]) -> str:
    if token["mark"]:
        return token["mark"]
    if word := token["word"]:
        number = word if _NUMBER.fullmatch(word) else None
        return number or _WORDS.get(word.lower()) or json.dumps(word)
    return '"' + _ESCAPE.sub(_strict_escape, token["double"] or token["single"] or "") + '"'


def _strict_escape(escape: re.Match[str]) -> str:
    """Keep valid JSON escapes; escape a stray backslash or quotation mark."""
    if escape["kept"]:
        return escape["kept"]
    return "'" if escape["apostrophe"] else "\\" + escape[0]
