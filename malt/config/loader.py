"""Reading a TOML config into a RunSpec: overrides, paths, and errors that name key, value, file and what is allowed."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from malt.config.reference import find_model, list_keys
from malt.config.roles import Role
from malt.config.secret_scan import find_forbidden
from malt.config.spec import RunSpec
from malt.errors import ConfigError
from malt.text import find_close, shorten

Table = dict[str, Any]
Key = tuple[str, ...]

_MOST_ERRORS = 5


def load_spec(path: Path, overrides: Sequence[str] = (), limit: int | None = None) -> RunSpec:
    """Read a config file, apply `key=value` overrides and then `limit`, and validate the result.

    A value is read as TOML, else as plain text; an empty value resets the key to its default. Local paths are
    relative to the config file; one given by an override may also be relative to the current directory.
    Raises `ConfigError` with one line per problem.
    """
    return parse_spec(_read_file(path), path, overrides, limit)


def parse_spec(text: bytes, path: Path, overrides: Sequence[str] = (), limit: int | None = None) -> RunSpec:
    """Do as `load_spec` does with the text of a config file that need not be there yet."""
    values = _parse_toml(text, path)
    origins = _apply(overrides, values)
    if limit is not None:
        _put(values, ("questions", "limit"), limit, "--limit")
        origins["questions", "limit"] = "--limit"
    return _checked(values, Places(path, origins))


def override_spec(spec: RunSpec, overrides: Sequence[str], place: Path) -> RunSpec:
    """Apply `key=value` overrides to a spec that was read from `place`. Raises `ConfigError`, one line per problem."""
    values = spec.as_config()
    origins = _apply(overrides, values)
    return _checked(values, Places(place, origins)) if overrides else spec


def _checked(values: Table, places: "Places") -> RunSpec:
    """Validate a config's values; each problem in the error names the place where its key was given."""
    _refuse([f"{places.name(key)}{problem}" for key, problem in find_forbidden(values)])
    for key, find in _LOCAL_PATHS.items():
        _resolve_paths(values, places, key, find)
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        _refuse(_list_problems(error, places))
        raise


def _list_problems(error: ValidationError, places: "Places") -> list[str]:
    """Translate pydantic's errors into messages, unknown keys first."""
    relevant = [details for details in error.errors() if details["type"] != "too_short" or not details["input"]]
    unknown_first = sorted(relevant, key=lambda details: details["type"] != "extra_forbidden")
    return [_problem(details, places) for details in unknown_first]


class Places(NamedTuple):
    """Places where the keys of a config were given."""

    file: Path
    origins: Mapping[Key, str]
    """`--set KEY` or `--limit` for the keys that were not read from the file."""

    def name(self, key: Key) -> str:
        """Write a key after its place: `FILE: KEY`, `--set KEY`, `--limit: KEY`; without a key the place alone."""
        place, name = self.option(key) or self._file_with(key), ".".join(key)
        return place if place == f"--set {name}" or not name else f"{place}: {name}"

    def option(self, key: Key) -> str | None:
        """Return the option that gave a key or a table above it; None if the file did."""
        prefixes = (key[:length] for length in range(len(key), 0, -1))
        return next((self.origins[prefix] for prefix in prefixes if prefix in self.origins), None)

    def _file_with(self, key: Key) -> str:
        """Return the file, and the options that changed something below `key`: they may be what is wrong there."""
        below = [option for changed, option in self.origins.items() if changed[: len(key)] == key]
        return f"{self.file} with {', '.join(below)}" if below else str(self.file)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"… and {len(problems) - _MOST_ERRORS} more"] if len(problems) > _MOST_ERRORS else []
        raise ConfigError("\n".join([*problems[:_MOST_ERRORS], *more]))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file (looked in {Path.cwd()}); check the path") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a TOML file") from error


def _parse_toml(text: bytes, path: Path) -> Table:
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8; save it as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep to be read") from error
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        raise ConfigError(f"{path}{f':{at[1]}' if at else ''}: not valid TOML: {error}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}: not TOML that can be read: {error}") from error


def _apply(overrides: Sequence[str], values: Table) -> dict[Key, str]:
    """Change `values`; return the option that gave each changed key."""
    keys = [_override(values, override) for override in overrides]
    return {key: f"--set {'.'.join(key)}" for key in keys}


def _override(values: Table, override: str) -> Key:
    name, equals, text = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError(f"--set {name!r}: expected key=value, such as --set credit.threshold=0.7")
    if text.strip():
        _put(values, key, _parse_value(text), "--set")
    else:
        _table(values, key, "--set").pop(key[-1], None)
    return key


def _parse_value(text: str) -> object:
    with suppress(ValueError, RecursionError):
        if len(parsed := tomllib.loads(f"value = {text}")) == 1:
            return parsed["value"]
    return text


def _put(values: Table, key: Key, value: object, place: str) -> None:
    _table(values, key, place)[key[-1]] = value


def _table(values: Table, key: Key, place: str) -> Table:
    """Return the table that holds `key`; create it if it is missing."""
    for depth, part in enumerate(key[:-1], 1):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{place} {'.'.join(key)}: {'.'.join(key[:depth])} is {_shown(inner)}, not a table")
        values = inner
    return values


Seen = Callable[[str], str]
"""Converts a path relative to the config file to one relative to the current directory."""


class Find(Protocol):
    """Converts a config value that may be a local path to the value that the spec holds."""

    def __call__(self, given: str, seen: Seen) -> str: ...


def _find_prompts(given: str, seen: Seen) -> str:
    """Return the folder's path if the value means one: a bare name does only if the folder holds a role's prompts."""
    folder = Path(seen(given))
    if not (folder.is_dir() and ("/" in given or any((folder / role).is_dir() for role in Role))):
        return given
    return str(folder) if os.sep in str(folder) else f".{os.sep}{folder}"


def _find_function(given: str, seen: Seen) -> str:
    """Return `file.py:name` for a module beside its config; other modules are found on the Python path."""
    module, _, name = given.partition(":")
    path = seen(module if module.endswith(".py") else f"{module}.py")
    return f"{path}:{name}" if module.endswith(".py") or Path(path).is_file() else given


_LOCAL_PATHS: Mapping[Key, Find] = {
    ("questions", "source"): lambda given, seen: seen(given),
    ("evaluate", "questions", "source"): lambda given, seen: seen(given),
    ("improve", "beside", "*", "source"): lambda given, seen: seen(given),
    ("prompts",): _find_prompts,
    ("evaluator", "function"): _find_function,
    ("dataset", "decontaminate"): lambda given, seen: seen(given),
    ("dataset", "tokenizer"): lambda given, seen: seen(given) if Path(seen(given)).exists() else given,  # on the Hub
    ("train", "base"): lambda given, seen: seen(given) if Path(seen(given)).is_dir() else given,  # on the Hub
}
"""Keys that may hold local paths, each with its conversion."""


def _resolve_paths(values: object, places: Places, key: Key, find: Find, above: Key = ()) -> None:
    if not isinstance(values, dict):
        return
    for name in [each for each in values if key[0] in (each, "*")]:
        here = (*above, name)
        if len(key) > 1:
            _resolve_paths(values[name], places, key[1:], find, here)
        else:
            values[name] = _resolve_at(here, values[name], places, find)


def _resolve_at(key: Key, value: object, places: Places, find: Find) -> object:
    try:
        return _resolve(value, partial(find, seen=partial(_from_here, key=key, places=places)))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{places.name(key)}: this path cannot be used: {_shown(str(error))}") from error


def _resolve(value: object, find: Seen) -> object:
    if isinstance(value, list):
        return [_resolve(each, find) for each in value]
    return find(value) if _is_local(value) else value


def _is_local(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and "://" not in value


def _from_here(value: str, key: Key, places: Places) -> str:
    """Return a path relative to the current directory if it is below it, else absolute."""
    given = Path(value).expanduser()
    path = places.file.parent / given
    if places.option(key) and given.exists() and not path.exists():
        path = given
    # Not resolve(): a link's target need not have the ending that tells the format.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list, in [ ]"),
    "dict_type": "must be a table",
    "string_type": "must be text, in quotes",
}
"""What a value must be, by the type of pydantic's error; for other types, pydantic's own words."""


def _problem(details: ErrorDetails, places: Places) -> str:
    """Translate one of pydantic's errors into a message."""
    key = tuple(part for part in details["loc"] if isinstance(part, str))
    place = places.name(key)
    match details["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key{_nearest(key)}"
        case "missing":
            return f"{place}: missing. {_help(key)}"
        case "value_error":
            return f"{place}: {details['msg'].removeprefix('Value error, ')}"
        case "model_type":
            return f"{place} = {_shown(details['input'])}: must be a table, written [{'.'.join(key)}]"
        case "string_pattern_mismatch":
            return f"{place} = {_shown(details['input'])}: not allowed. {_help(key)}"
    return f"{place} = {_shown(details['input'])}: {_wanted(details)}{_guess(details)}"


def _wanted(details: ErrorDetails) -> str:
    own = details["msg"].replace("Input should be", "must be").replace("String should have", "must have")
    return _WANTED.get(details["type"], own)


def _nearest(key: Key) -> str:
    """Suggest keys for an unknown one: one of similar spelling in its table, else the same name in other tables."""
    allowed = list(_model_at(key[:-1]).model_fields)
    close = find_close(key[-1], allowed)
    elsewhere = [each.name for each in list_keys() if each.name.endswith(f".{key[-1]}") and ".NAME." not in each.name]
    meant = " or ".join([".".join((*key[:-1], close))] if close else elsewhere[:3])
    return f"{f'; did you mean {meant}?' if meant else '.'} Allowed: {', '.join(allowed)}"


def _guess(details: ErrorDetails) -> str:
    options = re.findall(r"'([^']*)'", details["msg"]) if details["type"] == "literal_error" else []
    close = find_close(str(details["input"]), options)
    return f"; did you mean '{close}'?" if close else ""


def _help(key: Key) -> str:
    """Return the first paragraph of a field's description as one line."""
    field = _model_at(key[:-1]).model_fields.get(key[-1])
    described = (field.description or "") if field else ""
    return " ".join(described.partition("\n\n")[0].split())


def _model_at(key: Key) -> type[BaseModel]:
    """Return the model of the table at `key`; below free-form tables, the last model on the way."""
    model: type[BaseModel] = RunSpec
    parts = iter(key)
    for part in parts:
        field = model.model_fields.get(part)
        inner = find_model(field.annotation, tuple) if field else None
        if field is None or inner is None:
            break
        model = inner
        if get_origin(field.annotation) is dict:
            next(parts, None)  # the name of one of several tables
    return model


def _shown(value: object) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 60)
