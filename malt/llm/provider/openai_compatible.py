"""OpenAI-compatible endpoints: LiteLLM's translation and HTTP handler, without the rest of its `acompletion`.

`acompletion` takes 1.9 ms of CPU a call, or 3.9 with OpenAI's SDK; request, answer and connection are 0.5 of it. The
rest looks up prices, fills logs and runs hooks, none of which is used here.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from malt.llm.provider.routing import COMPATIBLE, Route, import_litellm


async def complete(route: Route, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - LiteLLM is not typed
    """Ask an endpoint as `acompletion` would; returns and raises what that does.

    `arguments` are those of `acompletion`, without such as only LiteLLM knows.
    """
    model = route.name.removeprefix(f"{COMPATIBLE}/")
    sent = {name: value for name, value in arguments.items() if name not in _NOT_IN_BODY}
    config, messages = _load_translation(), arguments["messages"]
    base, key = config.get_openai_compatible_provider_info(arguments["api_base"], arguments["api_key"])
    try:
        return await _load_handler().async_completion(
            custom_llm_provider=COMPATIBLE,
            provider_config=config,
            api_base=config.get_complete_url(base, key, model, sent, {}),
            headers=config.validate_environment({}, model, messages, sent, {}, key),
            data=config.transform_request(model, messages, sent, {}, {}),
            timeout=arguments["timeout"],
            model=model,
            model_response=import_litellm().ModelResponse(),
            logging_obj=_NoLogging(),
            messages=messages,
            optional_params=sent,
            litellm_params={},
            encoding=None,
            api_key=key,
            client=make_http_client(),
        )
    except Exception as error:
        known = import_litellm().exception_type(model, error, COMPATIBLE)
        raise known from (None if known is error else error)


_NOT_IN_BODY = frozenset(
    {"model", "messages", "api_base", "api_key", "timeout", "max_retries", "num_retries", "no-log"}
)
"""Arguments of `acompletion` that are no part of a request's body, or are set apart."""


class _NoLogging:
    """What LiteLLM reports a call to, where nobody listens."""

    dynamic_success_callbacks = None

    def __init__(self) -> None:
        self.model_call_details: dict[str, object] = {}

    def post_call(self, **_: object) -> None:
        """Called with the raw answer."""


@cache
def _load_translation() -> Any:  # noqa: ANN401
    """Return LiteLLM's rules of what is sent and how the answer is read."""
    return import_litellm().HostedVLLMChatConfig()


@cache
def _load_handler() -> Any:  # noqa: ANN401
    """Return what LiteLLM sends with, and turns HTTP errors into its own with."""
    import_litellm()
    from litellm.llms.custom_httpx.llm_http_handler import BaseLLMHTTPHandler

    return BaseLLMHTTPHandler()


@cache
def make_http_client() -> Any:  # noqa: ANN401
    """Return LiteLLM's HTTP client, except that it does not send a request again behind our back: it may be billed."""
    import_litellm()
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    class SendsOnce(AsyncHTTPHandler):  # type: ignore[misc]  # LiteLLM is not typed
        async def single_connection_post_request(self, **_: object) -> None:
            """Called where a connection broke, to send again."""
            raise  # the error of the connection, which the caller is handling

    return SendsOnce()


async def close() -> None:
    """Close the client's connections, if there are any."""
    if make_http_client.cache_info().currsize:
        await make_http_client().close()
