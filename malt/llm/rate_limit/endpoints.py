"""The endpoints of this process: one limiter for each model, address and key, whichever sessions ask there."""

import os
from typing import NamedTuple

from malt.config.spec import Limits, ModelSpec
from malt.llm.rate_limit.limiter import Endpoint
from malt.llm.rate_limit.rate import PATIENT, Policy


class Where(NamedTuple):
    """What tells endpoints apart."""

    model: str
    api_base: str | None
    key: str | None


class Endpoints:
    """Endpoints by where they are. All methods belong to the loop on which they are asked."""

    def __init__(self, policy: Policy = PATIENT) -> None:
        self._policy = policy
        self._known: dict[Where, Endpoint] = {}

    def enter(self, model: ModelSpec, limits: Limits) -> Endpoint:
        """Return a model's endpoint, which keeps to these limits until `leave`; one that was given up starts afresh."""
        where = where_is(model)
        endpoint = self._known.get(where)
        if endpoint is None or endpoint.is_given_up:
            endpoint = self._known[where] = Endpoint(limits, self._policy)
        else:
            endpoint.enter(limits)
        return endpoint

    def leave(self, endpoint: Endpoint, limits: Limits) -> None:
        """Stop asking there; what was learned of an endpoint is forgotten with its last user."""
        endpoint.leave(limits)
        if endpoint.is_unused:
            self._known = {where: known for where, known in self._known.items() if known is not endpoint}


def where_is(model: ModelSpec) -> Where:
    """Return what a model's requests share with others' at the provider."""
    return Where(model.model, model.api_base, os.environ.get(model.api_key_env) if model.api_key_env else None)


endpoints = Endpoints()
