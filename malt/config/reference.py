"""The config's keys, each with its type, default and meaning: `malt config --explain`, and docs/reference/config.md."""

import types
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_json

from malt.config.spec import RunSpec
from malt.errors import ConfigError
from malt.text import find_close

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "empty"}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


class Key(NamedTuple):
    """One key of a config."""

    name: str
    """Dotted path; `NAME` stands for a name that the user chooses."""
    kind: str
    default: str
    """Default value as TOML; empty: no default."""
    meaning: str

    @property
    def lines(self) -> Iterator[str]:
        yield self.name
        yield f"  type     {self.kind}"
        yield f"  default  {self.default or 'none'}"
        yield f"  meaning  {self.meaning}"
        if self.default:
            yield f"  example  {self.name} = {self.default}"


def list_keys(model: type[BaseModel] = RunSpec, above: str = "") -> Iterator[Key]:
    """Yield every key of a config in the order of its tables, each table before its keys."""
    for name, field in model.model_fields.items():
        path, inner = f"{above}{name}", find_model(field.annotation)
        yield Key(path, _describe_type(field), _write_default(field), " ".join((field.description or "").split()))
        if inner is not None:
            yield from list_keys(inner, f"{path}.NAME." if get_origin(field.annotation) is dict else f"{path}.")


def explain_key(name: str) -> list[Key]:
    """Return a key, and the keys below it if it is a table. Raises `ConfigError` for an unknown key."""
    keys = list(list_keys())
    found = [key for key in keys if key.name == name or key.name.startswith(f"{name}.")]
    if not found:
        names = [key.name for key in keys]
        last = find_close(name.rpartition(".")[2], [each.rpartition(".")[2] for each in names])
        meant = [each for each in names if each.rpartition(".")[2] == last]
        hint = f"did you mean {' or '.join(meant[:3])}?" if meant else "malt config lists all"
        raise ConfigError(f"{name}: a config has no such key; {hint}")
    return found


def find_model(annotation: object, *through: object) -> type[BaseModel] | None:
    """Return the model in an annotation such as `X`, `X | None` or `dict[str, X]`; `through` adds container types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (dict, Union, types.UnionType, Annotated, *through):
        return next(filter(None, (find_model(inner, *through) for inner in get_args(annotation))), None)
    return None


_PAGE = """# Config reference

All keys of a config. `malt config --markdown` generates this page, and `malt config --explain KEY` prints the entry
of one key. `malt config --schema > config.schema.json` writes the JSON schema for editors: put
`#:schema ./config.schema.json` on the first line of a config.
"""
_HEAD = "| key | type | default | meaning |\n|---|---|---|---|"


def write_markdown() -> str:
    """Return the text of docs/reference/config.md: the top level, then one section per table."""
    keys = list(list_keys())
    tables = [key for key in keys if "." not in key.name and key.kind == "table"]
    top = [key for key in keys if "." not in key.name and key not in tables]
    parts = [_PAGE, "## Top level\n", _HEAD, *map(_table_row, top)]
    for table in tables:
        below = [key for key in keys if key.name.startswith(f"{table.name}.")]
        parts += [f"\n## [{table.name}]\n", f"{table.meaning}\n", _HEAD, *map(_table_row, below)]
    return "\n".join(parts) + "\n"


def _table_row(key: Key) -> str:
    cells = (f"`{key.name}`", key.kind, f"`{key.default}`" if key.default else "", key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _describe_type(field: FieldInfo) -> str:
    if find_model(field.annotation) is not None:
        return "table"
    bounds = [
        words.format(f"{value:g}")
        for name, words in _BOUNDS.items()
        for item in field.metadata
        if isinstance(value := getattr(item, name, None), int | float)
    ]
    return ", ".join((_describe(field.annotation), *bounds))


def _describe(annotation: Any) -> str:  # noqa: ANN401 - any annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {_describe(arguments[0])}"
    if origin is dict:
        return "table of any values"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(each) for each in arguments)
    if isinstance(annotation, type):
        return _describe_class(annotation)
    return _WORDS.get(annotation, "any value")


def _describe_class(kind: type) -> str:
    if issubclass(kind, StrEnum):
        return ", ".join(kind)
    return "table" if issubclass(kind, BaseModel) else _WORDS.get(kind, "any value")


def _write_default(field: FieldInfo) -> str:
    if field.is_required() or find_model(field.annotation) is not None:
        return ""
    default = field.get_default(call_default_factory=True)
    return "" if default in (None, PydanticUndefined, (), {}) else to_json(default).decode()
