"""Taking secrets out of what others said, before it is cut, stored or shown: by value, and by what keys look like."""

import os
import re
from collections.abc import Iterable

_SHORTEST = 6
"""Characters; what is shorter is a placeholder for a server that wants no key, and would be found within words."""
_NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PWD|CREDENTIALS?|AUTH(?:ORIZATION)?)(?:$|_)", re.IGNORECASE
)
"""Names of environment variables that hold secrets."""
_LOOKS_SECRET = re.compile(
    r"\b(?:sk|gsk|xai|hf|r8|pplx|nvapi|key|ghp|gho|ghs|github_pat|glpat|xox[a-z])[-_][\w-]{8,}"
    r"|\b(?:AKIA|ASIA|AIza|hf_)[\w-]{12,}|\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
    r"|(?<=Bearer )\S{6,}|(?<=://)[^/@\s]+(?=@)"
    r"|(?<=[?&])(?:[\w-]*(?:key|token|sig|signature|secret|password|code|credential)=)[^&\s\"']+",
    re.IGNORECASE,
)


def redact(text: str, names: Iterable[str] = ()) -> str:
    """Replace secrets with `[key]`: values of the environment's secret variables and of `names`, and look-alikes."""
    named = set(names)
    values = {value for name, value in os.environ.items() if name in named or _NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, "[key]")
    return _LOOKS_SECRET.sub("[key]", text)
