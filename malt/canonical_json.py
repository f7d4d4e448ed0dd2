"""Identity of values: canonical JSON and its SHA-256. Equal values have equal digests in every process."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: object) -> bytes:
    """Encode as JSON with sorted keys, no spaces and UTF-8 text; NaN raises `ValueError`."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def digest(value: JsonValue) -> str:
    """Return the SHA-256 of a JSON value as 64 hex characters."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex characters, without holding them all in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """Return the `file_sha256` of a file, read again only when its size, mtime or inode has changed."""
    stat = path.stat()
    return _sha256_of(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, *_changes: int) -> str:
    return file_sha256(path)
