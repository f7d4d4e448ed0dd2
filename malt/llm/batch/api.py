"""A provider's batches, through LiteLLM's batch calls in OpenAI's protocol: handed in, looked at, found again, read.

The calls block: LiteLLM's async ones cannot be made to close their connections. client.py says when to call.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from pydantic import JsonValue

from malt.config.spec import ModelSpec, RunSpec
from malt.errors import ConfigError, MaltError
from malt.llm.faults import Unavailable
from malt.llm.provider import embedded
from malt.llm.provider.call import Reply, build_arguments, compute_cost, default_key, read_key
from malt.llm.provider.errors import classify_error, name_endpoint, read_reason
from malt.llm.provider.routing import Route, find_provider, import_litellm
from malt.llm.request import CompletionRequest, has_usage, read_token_count
from malt.llm.usage import Usage

_ENDPOINT = "/v1/chat/completions"
_WINDOW = "24h"
MOST_ITEMS = 50_000
MOST_BYTES = 190_000_000
"""OpenAI takes 200 MB a file."""
_DIGEST_CHARACTERS = 40
"""Characters of a key's digest that tell it from all others; some providers take 64 in all."""
ANSWERED = 200
"""Status of an item that has its answer."""
_CALL_LIMIT_S = 600.0
"""Seconds one call may take: an upload is long."""
_PER_PAGE = 100
MARK = "malt_mark"
"""Name in a batch's metadata of what tells it from all others."""
GONE = "unknown there"
"""Status of a batch that its provider knows no longer."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled", GONE})
_NOT_IN_BODY = frozenset({"model", "messages", "api_base", "api_key", "timeout"})
_HEADER_KEYS = frozenset({"headers", "extra_headers", "organization"})
"""What `extra` may set for requests that have headers of their own; items have none."""


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch as the provider tells of it."""

    batch_id: str
    status: str
    """validating, in_progress, finalizing, completed, failed, expired, cancelling, cancelled. Or `GONE`."""
    mark: str | None = None
    created_at: float = 0.0
    total: int = 0
    completed: int = 0
    failed: int = 0
    files: tuple[str, ...] = ()
    """Ids of what can be read: the output, the errors."""
    error: str = ""
    """Why it failed as a whole."""
    error_code: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _ENDED


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What came of one item: a chat-completion body, or an HTTP status and what was said."""

    custom_id: str
    status: int
    body: Mapping[str, JsonValue]
    code: str = ""


def takes_batches(model: ModelSpec) -> bool:
    """Whether a model can be asked in batches: `openai/…`, at OpenAI or at whatever address speaks its protocol."""
    return not embedded.is_embedded(model.model) and find_provider(model) == "openai"


def is_asked_in_batches(model: ModelSpec, spec: RunSpec) -> bool:
    """Whether a run asks a model in batches."""
    return spec.run.mode == "batch" and takes_batches(model)


def check(model: ModelSpec) -> None:
    """Find what a batch cannot say of a model. Raises `ConfigError`."""
    if said := sorted(_HEADER_KEYS & model.extra.keys()):
        raise ConfigError(
            f"{model.model}: extra.{said[0]} is sent as a header, and the items of a batch have none; leave it out, or "
            'set run.mode = "direct"'
        )


def make_custom_id(request: CompletionRequest, first: int) -> str:
    """Name an item after its first sample's key: how results find their way."""
    prompt, _, sample = request.keys[first].partition(".")
    return f"{prompt[:_DIGEST_CHARACTERS]}-{sample}"


def make_item(request: CompletionRequest, route: Route, first: int, count: int) -> dict[str, JsonValue]:
    """Return one line of a batch: what a direct request for these samples would send. Raises as `send` does."""
    try:
        body = _make_body(route, build_arguments(request, route, first, count))
    except MaltError:
        raise
    except Exception as error:
        raise classify_error(error, request.model, route) from None
    return {"custom_id": make_custom_id(request, first), "method": "POST", "url": _ENDPOINT, "body": body}


def _make_body(route: Route, arguments: Mapping[str, Any]) -> dict[str, Any]:
    service, _, name = route.name.partition("/")
    litellm, own = import_litellm(), _list_own_parameters()
    sampling = {key: value for key, value in arguments.items() if key not in _NOT_IN_BODY | own}
    config = litellm.utils.ProviderConfigManager.get_provider_chat_config(
        model=name, provider=litellm.LlmProviders(service)
    )
    parameters = litellm.get_optional_params(model=name, custom_llm_provider=service, **sampling)
    body: dict[str, Any] = config.transform_request(
        model=name, messages=arguments["messages"], optional_params=parameters, litellm_params={}, headers={}
    )
    body.pop("stream", None)
    body.update(body.pop("extra_body", {}))
    return body


@cache
def _list_own_parameters() -> frozenset[str]:
    """Return what LiteLLM keeps to itself of a request's arguments, but for what its translation is told by."""
    return frozenset(import_litellm().types.utils.all_litellm_params) - {"allowed_openai_params"}


def upload(model: ModelSpec, route: Route, lines: bytes) -> str:
    """Upload a batch's items, and return the file's id."""
    file = import_litellm().create_file(file=("batch.jsonl", lines), purpose="batch", **_make_access(model, route))
    return str(file.id)


def create(model: ModelSpec, route: Route, file_id: str, mark: str) -> RemoteBatch:
    """Hand a batch in."""
    batch = import_litellm().create_batch(
        completion_window=_WINDOW,
        endpoint=_ENDPOINT,
        input_file_id=file_id,
        metadata={MARK: mark},
        **_make_access(model, route),
    )
    return _read_batch(batch)


def look(model: ModelSpec, route: Route, batch_id: str) -> RemoteBatch:
    """Ask how a batch is."""
    return _read_batch(import_litellm().retrieve_batch(batch_id, **_make_access(model, route)))


def find(model: ModelSpec, route: Route, mark: str, since: float) -> RemoteBatch | None:
    """Look for a batch by its mark among those that were made since a time, in seconds since the epoch."""
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
    """Download a file of results."""
    content = import_litellm().file_content(file_id, **_make_access(model, route)).content
    return [_read_result(json.loads(line)) for line in content.split(b"\n") if line.strip()]


def read_reply(model: ModelSpec, body: Mapping[str, JsonValue], latency_s: float) -> Reply:
    """Read an answered item as `send` reads a response. Raises `Unavailable` where it holds no choices."""
    try:
        answer = import_litellm().utils.convert_to_model_response_object(
            response_object=dict(body), model_response_object=import_litellm().ModelResponse()
        )
    except Exception as error:
        unreadable = f"{name_endpoint(model)}: an item's answer cannot be read: {read_reason(error)}"
        raise Unavailable(unreadable, perhaps_billed=True) from None
    response = answer.model_dump(mode="json", warnings=False)
    if not response.get("choices"):
        raise Unavailable(f"{name_endpoint(model)} answered without choices", perhaps_billed=True)
    cost_usd = compute_cost(model, getattr(answer, "usage", None), response.get("usage"), batched=True)
    return Reply(response, latency_s, cost_usd)


def read_bill(model: ModelSpec, body: Mapping[str, JsonValue]) -> Usage:
    """Return what an answer that cannot be used took all the same; its cost is None where it does not tell."""
    counted = body.get("usage")
    if not has_usage(counted):
        return Usage(cost_usd=None)
    prompt, completion = (read_token_count(counted.get(f"{kind}_tokens")) or 0 for kind in ("prompt", "completion"))
    usage = import_litellm().Usage(prompt_tokens=prompt, completion_tokens=completion, cost=counted.get("cost"))
    cost_usd = compute_cost(model, usage, counted, batched=True)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cost_usd=cost_usd)


def classify_refusal(result: ItemResult, model: ModelSpec, route: Route, count: int, *, has_schema: bool) -> MaltError:
    """Say what a refused item means: the classes of a direct request's errors."""
    said = json.dumps(result.body)
    refused = import_litellm().llms.openai.common_utils.OpenAIError(status_code=result.status or 500, message=said)
    return classify_error(translate_error(refused, route), model, route, count, has_schema=has_schema)


def translate_error(error: Exception, route: Route) -> Exception:
    """Return LiteLLM's own class of an error."""
    try:
        import_litellm().exception_type(route.name.partition("/")[2], error, "openai")
    except Exception as classed:
        classed.__cause__ = None if classed is error else error
        return classed
    return error


def _make_access(model: ModelSpec, route: Route) -> dict[str, Any]:
    return {
        "custom_llm_provider": "openai",
        "api_base": route.api_base,
        "api_key": read_key(model) or default_key(model, route),
        "timeout": _CALL_LIMIT_S,
        "max_retries": 0,
        "no-log": True,
        "extra_headers": {"Connection": "close"},  # each call of LiteLLM's makes a client, and leaves it open
    }


def _read_batch(batch: Any) -> RemoteBatch:  # noqa: ANN401 - LiteLLM is not typed
    counts, metadata = batch.request_counts, batch.metadata
    problem = next(iter((batch.errors and batch.errors.data) or ()), None)
    return RemoteBatch(
        batch_id=batch.id,
        status=batch.status,
        mark=metadata.get(MARK) if isinstance(metadata, dict) else None,
        created_at=float(batch.created_at or 0),
        total=counts.total if counts else 0,
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
        error=str(problem.message or "") if problem else "",
        error_code=str(problem.code or "") if problem else "",
    )


def _read_result(line: Mapping[str, Any]) -> ItemResult:
    response, error = line.get("response") or {}, line.get("error") or {}
    body = response.get("body") or {"error": error}
    return ItemResult(line["custom_id"], int(response.get("status_code") or 0), body, str(error.get("code") or ""))
