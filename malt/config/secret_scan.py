"""Secret detection: refuses secrets in configs, which are published and shown in Prefect's UI, and redacts messages."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Key = tuple[str, ...]

_NAMES = (
    "api[-_]?key|secret|password|passwd|credential|authorization|cookies?(?![a-z_-])|(^|[-_])signature"
    "|(subscription|access|private|functions)[-_]?key"
    "|(^|[-_])(access|ad|api|auth|bearer|bot|csrf|github|hf|id|oauth|private|refresh|security|session|vault|x)"
    "[-_]?token"
)
_KEY_NAME = re.compile(f"{_NAMES}$|^token$", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Name of an environment variable."""
BLOCK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""Name of a Prefect block."""
_PASSWORD_IN_URL = re.compile(r"^([a-z][a-z0-9+.-]*://[^/@\s]*:|https?://)[^/@\s]*@", re.IGNORECASE)
"""In http(s) URLs a user name alone may be a token; in other schemes it is a location: abfs://CONTAINER@ACCOUNT."""
_PREFIXES = "sk|gsk|xai|hf|r8|pplx|nvapi|gh[opsu]|github_pat|glpat|xox[a-z]"
"""First characters of providers' keys."""
_JWT = r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
_IN_QUERY = r"([\w-]*(key|token|sig|signature|secret|password|credential)|code)="
_BASIC = r"(?=\S*([0-9=+/]|(?-i:[a-z][A-Z])))"
"""Lookahead for characters that base64 has and a plain word lacks."""
_KEY_VALUE = re.compile(
    rf"\b({_PREFIXES})[-_](?=(?:[a-z_-]{{0,100}}[0-9]){{3}})[\w-]{{20,}}"
    rf"|\b(hf_|AIza|AKIA|ASIA)\w{{16,}}|\bBearer\s+\S{{8,}}|^Basic\s+{_BASIC}\S{{8,}}$"
    rf"|-----BEGIN [A-Z ]*PRIVATE KEY|{_JWT}|[?&]{_IN_QUERY}",
    re.IGNORECASE,
)
_KEY_OVERRIDE = re.compile(rf"({_NAMES}|token)\s*=", re.IGNORECASE)
_NAME_FIELDS = {
    "api_key_env": (VARIABLE, "the name of an environment variable"),
    "api_key_block": (BLOCK, "the name of a Prefect Secret block (lower-case letters, digits, hyphens)"),
}
"""Config keys that name the place of an API key."""
_MAY_LOOK_LIKE_A_KEY = ("source", "prompts", "decontaminate")
"""Keys that hold the user's paths and addresses, some of which carry signatures."""
_NO_KEYS = "keys are never written in a config; name an environment variable with api_key_env"


def find_forbidden(values: Mapping[str, object], above: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield the key of each secret (never shown), at any depth, and of each number that JSON cannot hold.

    The problem beside it is worded to follow the key.
    """
    for name, value in values.items():
        key = (*above, name)
        if isinstance(value, dict):
            yield from find_forbidden(value, key)
        elif isinstance(value, list):
            for item in value:
                yield from find_forbidden({name: item}, above)
        elif isinstance(value, float) and not math.isfinite(value):
            yield key, f" = {value}: must be a finite number; leave the key out for its default"
        elif (problem := _find_secret(name, value)) is not None:
            yield key, f": {problem}{_NO_KEYS}"


def _find_secret(name: str, value: object) -> str | None:
    """Return why this value may not have this name, empty if the name says why; None if it may."""
    if name in _NAME_FIELDS:
        pattern, expected = _NAME_FIELDS[name]
        is_name = not isinstance(value, str) or (pattern.fullmatch(value) and not _KEY_VALUE.search(value))
        return None if is_name else f"not {expected}; "
    if _KEY_NAME.search(name):
        return ""
    if isinstance(value, str) and _PASSWORD_IN_URL.match(value):
        return "holds a password, and configs are published; "
    if isinstance(value, str) and name not in _MAY_LOOK_LIKE_A_KEY and _KEY_VALUE.search(value):
        return "holds what looks like a key; "
    return None


def schema_without_keys(depth: int = 2) -> dict[str, Any]:
    """Return the JSON schema of a value without secrets; Prefect's server refuses others and does not record them."""
    deeper = {} if depth == 0 else schema_without_keys(depth - 1)
    return {
        "not": match_text(_KEY_VALUE),
        "propertyNames": {"not": {"pattern": _ignore_case(_KEY_NAME)}},
        "additionalProperties": deeper,
        "items": deeper,
    }


def address_without_keys() -> dict[str, Any]:
    """Return the JSON schema of an address without a secret."""
    return {"not": {"anyOf": [match_text(_PASSWORD_IN_URL), match_text(_KEY_VALUE)]}}


def override_without_keys() -> dict[str, Any]:
    """Return the JSON schema of a `key=value` text without a secret."""
    return {"not": {"anyOf": [match_text(_KEY_VALUE), match_text(_KEY_OVERRIDE)]}}


def match_name(pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return the JSON schema of a name that is not itself a key."""
    return {"pattern": f"^{pattern.pattern}$", "not": match_text(_KEY_VALUE)}


def match_text(pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return the JSON schema of a text in which a pattern matches."""
    return {"type": "string", "pattern": _ignore_case(pattern)}


def _ignore_case(pattern: re.Pattern[str]) -> str:
    return f"(?i){pattern.pattern}"


_SHORTEST = 6
"""Shortest secret to redact, in characters: shorter values are placeholders for servers that need no key."""
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PWD|CREDENTIALS?|AUTH(?:ORIZATION)?)(?:$|_)", re.IGNORECASE
)
"""Names of environment variables that hold secrets."""
_USER = r"([^/@\s:]*:(?!\d+/)\S{1,300}|[^/@\s]+)"
"""User and password in an address: a password may contain a slash or an @, but not begin like a port number."""
_LOOKS_SECRET = re.compile(
    rf"\b(?:{_PREFIXES}|key)[-_][\w-]{{8,}}|\b(?:AKIA|ASIA|AIza|hf_)[\w-]{{12,}}|{_JWT}"
    rf"|(?<=Bearer )\S{{6,}}|(?<=Basic ){_BASIC}[\w+/=]{{12,}}|(?<=://){_USER}(?=@)|(?<=[?&]){_IN_QUERY}[^&\s\"']+",
    re.IGNORECASE,
)


def redact(text: str, names: Iterable[str] = ()) -> str:
    """Replace secrets with `[key]`: values of secret environment variables and of `names`, and look-alikes."""
    named = set(names)
    values = {value for name, value in os.environ.items() if name in named or _SECRET_VARIABLE.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, "[key]")
    return _LOOKS_SECRET.sub("[key]", text)
