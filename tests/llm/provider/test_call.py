"""One request through LiteLLM: its content, its response, and the meaning of each error to the run."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from pydantic import BaseModel, JsonValue

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.errors import AccountEmpty, ConfigError
from malt.llm.faults import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.provider import call as llm
from malt.llm.request import CompletionRequest, Message
from tests import mishaps, providers
from tests.mishaps import Fault
from tests.providers import ScriptedProvider

KEY = "sk-the-users-own-key-0123456789"


@pytest.fixture(autouse=True)
async def connections() -> AsyncIterator[None]:
    yield
    await llm.close()


def spec(provider: ScriptedProvider, model: str = "openai/m", **settings: object) -> ModelSpec:
    return ModelSpec.model_validate({"model": model, "api_base": provider.url, **settings})


def request(model: ModelSpec, *, question: str = "q", schema: type[BaseModel] | None = None) -> CompletionRequest:
    messages = (Message("system", "Be brief."), Message("user", "What is 2 + 3?"))
    return CompletionRequest(Role.GENERATOR, model, messages, question, "0", 3, schema)


def texts(reply: llm.Reply) -> list[JsonValue]:
    choices = reply.response["choices"]
    assert isinstance(choices, list)
    return [choice["message"]["content"] for choice in choices if isinstance(choice, dict)]  # type: ignore[index,call-overload]


# what is sent


async def test_siblings_are_one_request(provider: ScriptedProvider) -> None:
    reply = await llm.send(request(spec(provider)), first=0, count=3)
    assert provider.request_count == 1
    assert len(set(map(str, texts(reply)))) == 3


async def test_messages_sampling_and_extra_parameters_reach_the_provider(provider: ScriptedProvider) -> None:
    model = spec(provider, temperature=0.7, top_p=0.9, max_tokens=50, extra={"top_k": 5, "stop": ["END"]})
    await llm.send(request(model), 0, 2)
    [asked] = provider.requests
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 50,
        "n": 2,
        "top_k": 5,
        "stop": ["END"],
    }


async def test_a_seed_repeats_for_an_equal_request_and_differs_for_every_other(provider: ScriptedProvider) -> None:
    model = spec(provider, seed=7)
    for question, first in (("q", 0), ("q", 0), ("q", 3), ("r", 0)):
        await llm.send(request(model, question=question), first, 1)
    seeds = [asked.seed for asked in provider.requests]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("model", ["openai/m", "hosted_vllm/m", "openai/o3-mini"])
async def test_the_key_comes_from_the_named_variable(
    provider: ScriptedProvider, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    await llm.send(request(spec(provider, model, api_key_env="TEST_KEY", temperature=1)), 0, 1)
    assert provider.requests[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_reasoning_models_of_openai_keep_their_own_parameters(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    await llm.send(request(spec(provider, "openai/o3-mini", temperature=1, max_tokens=9)), 0, 1)
    assert provider.requests[0].body["max_completion_tokens"] == 9


class Verdict(BaseModel):
    score: float


async def test_a_schema_is_sent_as_json_schema(provider: ScriptedProvider) -> None:
    await llm.send(request(spec(provider), schema=Verdict), 0, 1)
    wanted = provider.requests[0].body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"]["required"] == ["score"]


async def test_a_provider_without_json_schemas_is_asked_again_without(provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(
        lambda asked: "response_format" in asked.body, mishaps.bad_request("response_format is not supported")
    )
    wanted = request(spec(provider), schema=Verdict)
    with pytest.raises(Unavailable, match="without a JSON schema"):
        await llm.send(wanted, 0, 1)
    assert len(texts(await llm.send(wanted, 0, 1))) == 1


# what comes back


async def test_a_reply_is_the_whole_body(provider: ScriptedProvider) -> None:
    provider.reasoning = lambda _asked, _sample: "Two and three."
    reply = await llm.send(request(spec(provider)), 0, 3)
    [asked] = provider.requests
    assert texts(reply) == [provider.script(asked, sample) for sample in range(3)]
    assert '"reasoning_content": "Two and three."' in json.dumps(reply.response)
    assert reply.total_tokens == sum(
        providers.tokens_in(text)
        for text in [asked.prompt, *(f"assistant{text}Two and three." for text in texts(reply))]
    )


async def test_a_provider_that_ignores_n_returns_what_it_has(provider: ScriptedProvider) -> None:
    provider.siblings = "ignored"
    assert len(texts(await llm.send(request(spec(provider)), 0, 3))) == 1


async def test_cost_is_what_the_provider_reports(provider: ScriptedProvider) -> None:
    provider.cost_usd = 0.25
    assert (await llm.send(request(spec(provider, "openai/gpt-4o-mini")), 0, 1)).cost_usd == 0.25


async def test_cost_is_reckoned_from_the_price_list_where_none_is_reported(provider: ScriptedProvider) -> None:
    model = spec(provider, "openai/gpt-4o-mini")
    prices = llm.find_price(model)
    assert prices is not None
    reply = await llm.send(request(model), 0, 2)
    usage = reply.response["usage"]
    assert isinstance(usage, dict)
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    assert isinstance(prompt, int)
    assert isinstance(completion, int)
    assert reply.cost_usd == pytest.approx(prompt * prices.prompt + completion * prices.completion)


@pytest.mark.parametrize("reported", [-0.25, float("inf")])
async def test_a_cost_that_cannot_be_is_not_taken_over(provider: ScriptedProvider, reported: float) -> None:
    provider.cost_usd = reported
    reply = await llm.send(request(spec(provider, "openai/gpt-4o-mini")), 0, 1)
    assert reply.cost_usd is not None
    assert 0 < reply.cost_usd < 1


async def test_usage_that_is_missing_makes_the_cost_unknown(provider: ScriptedProvider) -> None:
    provider.counts_tokens = False
    reply = await llm.send(request(spec(provider, "openai/gpt-4o-mini")), 0, 1)
    assert (reply.cost_usd, reply.total_tokens) == (None, None)


async def test_litellm_s_changes_to_extra_change_no_key(provider: ScriptedProvider) -> None:
    asked = request(spec(provider, extra={"metadata": {"team": "a"}}))
    before = replace(asked).keys
    await llm.send(asked, 0, 1)
    assert replace(asked).keys == before


async def test_an_unknown_cost_is_unknown_and_never_nothing(provider: ScriptedProvider) -> None:
    model = spec(provider, "openai/unlisted")
    assert (await llm.send(request(model), 0, 1)).cost_usd is None
    assert llm.find_price(model) is None
    assert llm.find_price(spec(provider, "hosted_vllm/unlisted")) is None


@pytest.mark.parametrize(
    "name", ["openai/gpt-5.9", "openai/gpt-5-mini-of-mine", "openai/o1-foo", "dashscope/qwen-flash"]
)
def test_a_price_that_litellm_makes_up_or_has_by_tiers_is_unknown(name: str) -> None:
    assert llm.find_price(ModelSpec(model=name)) is None


def test_the_embedded_model_costs_nothing() -> None:
    assert llm.find_price(ModelSpec(model="embedded")) == (0, 0)


async def test_the_embedded_model_counts_each_samples_tokens_and_gives_at_most_its_slots() -> None:
    reply = await llm.send(request(ModelSpec(model="embedded", max_tokens=4, seed=1)), 0, 10)
    choices = reply.response["choices"]
    assert isinstance(choices, list)
    counts = [choice["completion_tokens"] for choice in choices if isinstance(choice, dict)]
    assert len(counts) == 4
    assert all(isinstance(count, int) and 1 <= count <= 5 for count in counts)
    assert reply.cost_usd == 0


# what errors mean


FAULTS = [
    (mishaps.rate_limited(), RateLimited),
    (mishaps.server_error(500), Unavailable),
    (mishaps.server_error(502), Unavailable),
    (mishaps.server_error(503), Unavailable),
    (mishaps.server_error(529), Unavailable),
    (mishaps.not_json(), Unavailable),
    (Fault(text="[]"), Unavailable),
    (mishaps.no_choices(), Unavailable),
    (mishaps.reset(), Unavailable),
    (mishaps.hang(), Unavailable),
    (mishaps.drip(), Unavailable),
    (mishaps.bad_request(), Rejected),
    (mishaps.context_overflow(), Rejected),
    (mishaps.prompt_filtered(), Rejected),
    (mishaps.refusal(429, "Request too large for m on tokens per min", "rate_limit_exceeded", "tokens"), Rejected),
    (mishaps.refusal(403, "Your input was flagged.", None), Rejected),
    (mishaps.wrong_key(), ConfigError),
    (mishaps.forbidden(), ConfigError),
    (mishaps.unknown_model(), ConfigError),
    (Fault(status=404, text="<html>no such page"), ConfigError),
    (mishaps.payment_required(), AccountEmpty),
    (mishaps.quota_spent(), AccountEmpty),
]


@pytest.mark.parametrize(("fault", "meaning"), FAULTS)
@pytest.mark.parametrize("model", ["openai/m", "openai/o3-mini"])
async def test_every_fault_has_a_meaning_and_is_sent_once(
    provider: ScriptedProvider, model: str, fault: Fault, meaning: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    provider.faults = lambda _asked: fault
    limit_s = 0.3 if fault.action in ("hang", "drip") else 30
    with pytest.raises(meaning) as raised:
        await llm.send(request(spec(provider, model, temperature=1, timeout_s=limit_s)), 0, 1)
    assert type(raised.value) is meaning
    assert provider.request_count == 1
    assert str(raised.value).startswith(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
async def test_an_endpoint_nobody_listens_at_is_unreachable(provider: ScriptedProvider, address: str) -> None:
    with pytest.raises(Unreachable):
        await llm.send(request(spec(provider, api_base=address)), 0, 1)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [({"Retry-After": "7"}, 7), ({"Retry-After": "9", "retry-after-ms": "250"}, 0.25), ({"Retry-After": "soon"}, None)],
)
async def test_the_provider_says_how_long_to_wait(
    provider: ScriptedProvider, headers: dict[str, str], wait_s: float | None
) -> None:
    provider.faults = lambda _asked: mishaps.refusal(429, "Too fast", None, **headers)
    with pytest.raises(RateLimited) as raised:
        await llm.send(request(spec(provider)), 0, 1)
    assert raised.value.retry_after_s == wait_s


async def test_an_answer_that_got_lost_may_have_been_billed_and_a_refusal_not(provider: ScriptedProvider) -> None:
    billed = {}
    for name, fault in {
        "reset": mishaps.reset(),
        "500": mishaps.server_error(),
        "html": mishaps.not_json(),
    }.items():
        provider.faults = lambda _asked, fault=fault: fault
        with pytest.raises(Unavailable) as raised:
            await llm.send(request(spec(provider)), 0, 1)
        billed[name] = raised.value.perhaps_billed
    assert billed == {"reset": True, "500": False, "html": True}


async def test_a_provider_that_refuses_n_says_so(provider: ScriptedProvider) -> None:
    provider.siblings = "refused"
    with pytest.raises(NoSiblings):
        await llm.send(request(spec(provider)), 0, 3)


async def test_a_bad_prompt_is_no_refusal_of_n_where_n_has_worked(provider: ScriptedProvider) -> None:
    model = spec(provider)
    await llm.send(request(model), 0, 3)
    provider.faults = lambda _asked: mishaps.bad_request()
    with pytest.raises(Rejected):
        await llm.send(request(model), 0, 3)


async def test_a_filtered_reply_is_an_answer(provider: ScriptedProvider) -> None:
    provider.faults = lambda _asked: mishaps.reply_filtered()
    reply = await llm.send(request(spec(provider)), 0, 1)
    assert '"finish_reason": "content_filter"' in json.dumps(reply.response)


@pytest.mark.parametrize("model", ["openai/m", "openai/o3-mini"])
async def test_no_error_and_no_log_line_holds_the_key(
    provider: ScriptedProvider,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TEST_KEY", KEY)
    for fault in (mishaps.wrong_key(KEY), mishaps.server_error(), mishaps.bad_request(f"odd key {KEY}")):
        provider.faults = lambda _asked, fault=fault: fault
        with pytest.raises((ConfigError, Unavailable, Rejected)) as raised:
            await llm.send(request(spec(provider, model, api_key_env="TEST_KEY", temperature=1)), 0, 1)
        assert KEY not in str(raised.getrepr(chain=True, showlocals=False))
    assert KEY not in caplog.text
    assert capfd.readouterr() == ("", "")


# errors found before any request


def test_a_sound_declaration_passes(provider: ScriptedProvider) -> None:
    for sound in (spec(provider), spec(provider, "hosted_vllm/m", seed=3, top_p=0.5)):
        llm.check(sound)
        assert llm.takes_siblings(sound)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "nonsense/m"}, "names no provider"),
        ({"model": "m"}, "names no provider"),
        ({"model": "groq/m", "api_base": None}, "export GROQ_API_KEY"),
        ({"model": "hosted_vllm/m", "api_base": None}, "set api_base"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which is not set"),
        ({"model": "openai/o3-mini", "temperature": 0.3}, "temperature"),
        ({"extra": {"api_key": "x", "n": 2}}, "extra may not set api_key, n"),
        ({"model": "embedded", "api_key_env": "NOT_SET_ANYWHERE"}, "is not set"),
    ],
)
def test_a_wrong_declaration_is_found_before_money_is_spent(
    provider: ScriptedProvider, settings: dict[str, object], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=complaint):
        llm.check(spec(provider, **{"model": "openai/m", **settings}))  # type: ignore[arg-type]
    assert provider.request_count == 0


def test_a_cap_needs_a_price_and_a_longest_completion(provider: ScriptedProvider) -> None:
    dollars, tokens = Limits(max_cost_usd=1), Limits(max_tokens_total=1)
    llm.check(spec(provider, "openai/gpt-4o-mini"), dollars)
    llm.check(spec(provider, "openai/unlisted"), tokens)
    llm.check(ModelSpec(model="embedded", max_tokens=None), dollars)
    with pytest.raises(ConfigError, match="price of openai/unlisted is not known"):
        llm.check(spec(provider, "openai/unlisted"), dollars)
    for model, limits in (("openai/gpt-4o-mini", dollars), ("openai/unlisted", tokens), ("embedded", tokens)):
        with pytest.raises(ConfigError, match="has no max_tokens"):
            llm.check(spec(provider, model, max_tokens=None), limits)


@pytest.mark.parametrize(
    ("model", "takes"), [("openai/m", True), ("embedded", True), ("anthropic/claude-sonnet-4-5", False)]
)
def test_providers_that_take_siblings_are_known(model: str, takes: bool) -> None:
    assert llm.takes_siblings(ModelSpec(model=model)) is takes


async def test_siblings_are_not_sent_to_a_provider_without_n() -> None:
    with pytest.raises(NoSiblings):
        await llm.send(request(ModelSpec(model="anthropic/claude-sonnet-4-5")), 0, 3)
