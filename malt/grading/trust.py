"""Code that a version names: found without importing it, and run only where the user says so."""

import logging
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from malt.canonical_json import file_sha256
from malt.errors import InputError

log = logging.getLogger(__name__)


def require_trust(owner: str, function: str, *, trusted: bool) -> None:
    """Raise `InputError` unless code named by `owner` is trusted; either way say which files with which digests."""
    files = ", ".join(f"{path} (SHA-256 {file_sha256(path)})" for path in find_code(function)) or "no file found"
    if not trusted:
        raise InputError(
            f"{owner} names code to run: {function}, {files}. Nothing was run; read it, then: --trust-code"
        )
    log.warning("%s names code, which runs as trusted: %s, %s", owner, function, files)


def find_code(function: str) -> Iterator[Path]:
    """Yield the files that importing `module:function` would run, packages first, where grader processes look."""
    module = function.partition(":")[0]
    if module.endswith(".py"):
        yield from (path.resolve() for path in [Path(module)] if path.is_file())
        return
    places, parts = [*sys.path, str(Path.cwd())], module.split(".")
    for depth in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        if found is None:
            return
        if found.origin is not None and Path(found.origin).is_file():
            yield Path(found.origin).resolve()
        places = list(found.submodule_search_locations or ())
