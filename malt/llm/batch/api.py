"""Client of a provider's batch API in OpenAI's protocol, through LiteLLM: upload, create, poll, find and read batches.

The calls block, since LiteLLM's async ones cannot be made to close their connections. `BatchClient` retries those that
fail temporarily, and creates no batch twice.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

from pydantic import JsonValue

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.errors import ConfigError, EndpointDown, MaltError, RunStopped
from malt.llm.budget import Usage
from malt.llm.faults import RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.provider import embedded
from malt.llm.provider.call import Reply, build_arguments, compute_cost, default_key, read_key, take_answers
from malt.llm.provider.errors import classify_error, name_endpoint, translate_error
from malt.llm.provider.openai_compatible import HttpRefusal, build_body
from malt.llm.provider.routing import Route, find_provider, find_route, import_litellm
from malt.llm.rate_limit.policy import PATIENT, Policy
from malt.llm.request import CompletionRequest
from malt.llm.response import has_usage, parse_body, read_token_count
from malt.llm.store.batches import Batch

_ENDPOINT = "/v1/chat/completions"
_WINDOW = "24h"
MOST_ITEMS = 50_000
MOST_BYTES = 190_000_000
"""Bytes of a file; OpenAI accepts 200 MB."""
_DIGEST_CHARACTERS = 40
"""Characters of a key's digest in a custom id, enough to be unique; some providers allow 64 in all."""
ANSWERED = 200
"""HTTP status of an answered item."""
_CALL_LIMIT_S = 600.0
"""Seconds that one call may take; an upload is slow."""
_PER_PAGE = 100
MARK = "malt_mark"
"""Metadata key of a batch's mark, our unique name for it."""
GONE = "unknown there"
"""Status of a batch that its provider no longer knows."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled", GONE})
_HEADER_KEYS = frozenset({"headers", "extra_headers", "organization"})
"""Keys of `extra` that are sent as headers, which the items of a batch do not have."""


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """State of a batch at the provider."""

    batch_id: str
    status: str
    """One of validating, in_progress, finalizing, completed, failed, expired, cancelling and cancelled; or `GONE`."""
    mark: str | None = None
    created_at: float = 0.0
    total: int = 0
    completed: int = 0
    failed: int = 0
    files: tuple[str, ...] = ()
    """Ids of the files with results: the output, then the errors."""
    error: str = ""
    """Reason why the batch failed as a whole."""
    error_code: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Result of one item: a chat-completion body, or an HTTP error status and its body."""

    custom_id: str
    status: int
    body: Mapping[str, JsonValue]
    code: str = ""


def takes_batches(model: ModelSpec) -> bool:
    """Whether a model can be requested in batches: `openai/…`, at OpenAI or any address that speaks its protocol."""
    return not embedded.is_embedded(model.model) and find_provider(model) == "openai"


def is_asked_in_batches(model: ModelSpec, spec: RunSpec) -> bool:
    return spec.run.mode == "batch" and takes_batches(model)


def check_batchable(model: ModelSpec) -> None:
    """Raise `ConfigError` where a model's `extra` has keys that a batch cannot express."""
    if unsupported := sorted(_HEADER_KEYS & model.extra.keys()):
        problem = f"extra.{unsupported[0]} is sent as a header, and the items of a batch have none"
        raise ConfigError(f'{model.model}: {problem}; leave it out, or set run.mode = "direct"')


def make_custom_id(request: CompletionRequest, first: int) -> str:
    """Return an item's custom id, made of its first sample's key, by which its result is matched."""
    prompt, _, sample = request.keys[first].partition(".")
    return f"{prompt[:_DIGEST_CHARACTERS]}-{sample}"


def make_item(request: CompletionRequest, route: Route, first: int, count: int) -> dict[str, JsonValue]:
    """Return one line of a batch, with the body of a direct request for these samples. Raises the same as `send`."""
    try:
        body = build_body(route, build_arguments(request, route, first, count))
    except MaltError:
        raise
    except Exception as error:
        raise classify_error(error, request.model, route) from None
    return {"custom_id": make_custom_id(request, first), "method": "POST", "url": _ENDPOINT, "body": body}


def upload(model: ModelSpec, route: Route, lines: bytes) -> str:
    file = import_litellm().create_file(file=("batch.jsonl", lines), purpose="batch", **_make_access(model, route))
    return str(file.id)


def create(model: ModelSpec, route: Route, file_id: str, mark: str) -> RemoteBatch:
    batch = import_litellm().create_batch(
        completion_window=_WINDOW,
        endpoint=_ENDPOINT,
        input_file_id=file_id,
        metadata={MARK: mark},
        **_make_access(model, route),
    )
    return _read_batch(batch)


def look(model: ModelSpec, route: Route, batch_id: str) -> RemoteBatch:
    return _read_batch(import_litellm().retrieve_batch(batch_id, **_make_access(model, route)))


def find(model: ModelSpec, route: Route, mark: str, since: float) -> RemoteBatch | None:
    """Return the batch with this mark among those created since a time, in seconds since the epoch; None if none is."""
    recent = takewhile(lambda remote: remote.created_at >= since or not remote.created_at, _newest_first(model, route))
    return next((remote for remote in recent if remote.mark == mark), None)


def _newest_first(model: ModelSpec, route: Route) -> Iterator[RemoteBatch]:
    after = None
    while True:
        page = import_litellm().list_batches(after=after, limit=_PER_PAGE, **_make_access(model, route))
        page._client.close()
        yield from map(_read_batch, page.data)
        if not (page.data and getattr(page, "has_more", False)):
            return
        after = page.data[-1].id


def read(model: ModelSpec, route: Route, file_id: str) -> list[ItemResult]:
    content = import_litellm().file_content(file_id, **_make_access(model, route)).content
    return [_read_result(parse_body(line)) for line in content.split(b"\n") if line.strip()]


def read_item(model: ModelSpec, body: Mapping[str, JsonValue], latency_s: float) -> Reply:
    """Read an answered item as `send` reads a response. Raises `Unavailable` where it has no answer."""
    response = take_answers(body, model)
    return Reply(response, latency_s, compute_cost(model, response.get("usage"), batched=True))


def read_bill(model: ModelSpec, body: Mapping[str, JsonValue]) -> Usage:
    """Return the billed usage of an answer that cannot be used; its cost is None where no usage was reported."""
    counted = body.get("usage")
    if not has_usage(counted):
        return Usage(cost_usd=None)
    prompt, completion = (read_token_count(counted.get(f"{kind}_tokens")) or 0 for kind in ("prompt", "completion"))
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, cost_usd=compute_cost(model, counted, batched=True)
    )


def classify_refusal(result: ItemResult, model: ModelSpec, route: Route, count: int, *, has_schema: bool) -> MaltError:
    """Return the error of a refused item, of the same class as for a direct request."""
    refused = HttpRefusal(result.status or 500, json.dumps(result.body), {})
    return classify_error(translate_error(refused, route), model, route, count, has_schema=has_schema)


def _make_access(model: ModelSpec, route: Route) -> dict[str, Any]:
    return {
        "custom_llm_provider": "openai",
        "api_base": route.api_base,
        "api_key": read_key(model) or default_key(model, route),
        "timeout": _CALL_LIMIT_S,
        "max_retries": 0,
        "no-log": True,
        "extra_headers": {"Connection": "close"},  # LiteLLM opens a client for each call and never closes it
    }


def _read_batch(batch: Any) -> RemoteBatch:  # noqa: ANN401 - LiteLLM is not typed
    counts, metadata = batch.request_counts, batch.metadata
    problem = next(iter((batch.errors and batch.errors.data) or ()), None)
    return RemoteBatch(
        batch_id=batch.id,
        status=batch.status,
        mark=metadata.get(MARK) if isinstance(metadata, dict) else None,
        created_at=float(batch.created_at or 0),
        **({name: getattr(counts, name) for name in ("total", "completed", "failed")} if counts else {}),
        files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
        error=str(problem.message or "") if problem else "",
        error_code=str(problem.code or "") if problem else "",
    )


def _read_result(line: Any) -> ItemResult:  # noqa: ANN401 - whatever a provider sent
    response, error = line.get("response") or {}, line.get("error") or {}
    body = response.get("body") or {"error": error}
    return ItemResult(line["custom_id"], int(response.get("status_code") or 0), body, str(error.get("code") or ""))


T = TypeVar("T")

_LOOK_PATIENCE_S = 3600.0
"""Seconds for which polling a batch may fail: the batch goes on at the provider meanwhile."""
_CLOCK_SKEW_S = 3600.0
"""Seconds before its recorded time from which a batch is searched for, as clocks differ."""


class Gone(Exception):  # noqa: N818 - an answer, not an error
    """The provider does not know the file or batch, or has no batch API (404)."""


class BatchClient:
    """Calls to one model's batch API, with retries.

    All methods raise `ConfigError` for a wrong key or an address without a batch API, and `EndpointDown` where retries
    fail too long: two minutes as a rule, 20 s for an address that has never been reached, 15 minutes for 429s, an hour
    for `look`. `check` is called before each call, to raise where the run has stopped.
    """

    def __init__(self, model: ModelSpec, policy: Policy = PATIENT, check: Callable[[], None] = lambda: None) -> None:
        self.model = model
        self._policy = policy
        self._check = check

    async def upload(self, lines: bytes) -> str:
        try:
            return await self._retry(lambda route: upload(self.model, route, lines))
        except Gone:
            raise self._no_batches() from None

    async def create(self, file_id: str, mark: str) -> RemoteBatch:
        """Create a batch from a file, once: after a failure, search for the batch before trying again.

        Raises `ConfigError` where it was refused. After any other error it is unknown whether the batch exists.
        """
        search = partial(self.find, mark, time.time())
        try:
            return await self._retry(lambda route: create(self.model, route, file_id, mark), before_retry=search)
        except Gone:
            raise self._no_batches() from None

    async def look(self, batch: Batch) -> RemoteBatch:
        """Return the state of a batch. Raises `RunStopped` where the provider does not know one that is not over."""
        batch_id = batch.batch_id or ""
        try:
            return await self._retry(lambda route: look(self.model, route, batch_id), _LOOK_PATIENCE_S)
        except Gone:
            if not batch.is_over:
                raise RunStopped(self._unknown(batch)) from None
            return RemoteBatch(batch_id, GONE)

    async def find(self, mark: str, since: float) -> RemoteBatch | None:
        """Return the batch that a call at `since` (in seconds since the epoch) may have created; None if none exists.

        Raises `RunStopped` where the provider does not list its batches.
        """
        since -= _CLOCK_SKEW_S
        try:
            return await self._retry(lambda route: find(self.model, route, mark, since))
        except (Gone, ConfigError) as refused:
            raise RunStopped(
                f"{str(refused) or f'{name_endpoint(self.model)} lists no batches (404)'}; so whether batch {mark} was "
                f"made there is in doubt. Look there for one with {MARK} = {mark} in its metadata, cancel it if "
                f"there is one, abandon it here with: malt batches --forget {mark}, and run again"
            ) from None

    async def results(self, remote: RemoteBatch) -> list[ItemResult]:
        """Return the results of a batch's items, answers first; files that no longer exist are skipped."""
        found: list[ItemResult] = []
        for file in remote.files:
            try:
                found += await self._retry(lambda route, file=file: read(self.model, route, file))  # type: ignore[misc]
            except Gone:
                continue
        return sorted(found, key=lambda result: result.status != ANSWERED)

    def _no_batches(self) -> ConfigError:
        return ConfigError(
            f'{name_endpoint(self.model)} has no batch API (404); set run.mode = "direct", or check api_base'
        )

    def _unknown(self, batch: Batch) -> str:
        key = batch.api_key_env or "the environment"
        since = datetime.fromtimestamp(batch.planned_at, UTC)
        return (
            f"{name_endpoint(self.model)} does not know batch {batch.batch_id} (404), submitted {since:%Y-%m-%d %H:%M} "
            f"UTC; is the key in {key} of another project? Set the key that it was submitted with, and run again; "
            f"or abandon it with: malt batches --forget {batch.batch_id}, and its items are paid for again"
        )

    async def _retry(
        self,
        call: Callable[[Route], T],
        at_least_s: float = 0.0,
        before_retry: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T:
        """Repeat a blocking call until it succeeds, or until `before_retry` returns the result instead."""
        route, started, failures = await find_route(self.model), time.monotonic(), 0
        while True:
            self._check()
            try:
                answer = await asyncio.to_thread(call, route)
            except MaltError:
                raise
            except Exception as error:
                fault = self._fault(error, route)
            else:
                route.has_batches = True
                return answer
            failures += 1
            wait_s, patience_s = self._wait_s(fault, failures), max(at_least_s, self._patience_s(fault, route))
            waited_s = time.monotonic() - started
            if waited_s + wait_s > patience_s:
                raise EndpointDown(
                    f"{fault}; no better answer for {waited_s:.0f} s. Submitted batches go on there: run again "
                    "when the endpoint is up"
                )
            await asyncio.sleep(wait_s)
            if before_retry is not None and (found := await before_retry()) is not None:
                return found

    def _patience_s(self, fault: RateLimited | Unavailable, route: Route) -> float:
        if isinstance(fault, RateLimited):
            return self._policy.limited_after_s
        is_new = isinstance(fault, Unreachable) and not route.has_batches
        return self._policy.never_up_after_s if is_new else self._policy.down_after_s

    def _fault(self, error: Exception, route: Route) -> RateLimited | Unavailable:
        """Return the error if it is temporary (a rate limit or an outage), else raise it."""
        if getattr(error, "status_code", None) == 404:
            raise Gone from None
        fault = classify_error(translate_error(error, route), self.model, route)
        if isinstance(fault, RateLimited | Unavailable):
            return fault
        raise ConfigError(str(fault)) if isinstance(fault, Rejected) else fault from None

    def _wait_s(self, fault: RateLimited | Unavailable, failures: int) -> float:
        if isinstance(fault, RateLimited) and fault.retry_after_s:
            return self._policy.pause_for_s(failures, fault.retry_after_s)
        return self._policy.backoff_after_s(failures)
