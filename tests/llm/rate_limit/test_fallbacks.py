"""Fallback models: they answer requests that a role's own model cannot, and are recorded as the answering model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from malt.config.limits import Limits
from malt.config.roles import Fallback, ModelSpec, Role
from malt.config.settings import Settings
from malt.engine.python_api import TrainingDataGenerator
from malt.errors import ConfigError
from malt.llm.client.completers import make_store_completer
from malt.llm.client.session import Session
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import Completion, CompletionRequest, Message, RequestFailed
from tests import mishaps
from tests.asking import ask
from tests.mishaps import Fault
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

QUICK = Policy(attempts=2, backoff_s=0.002, never_up_after_s=0.1, probe_max_s=0.02)
MAIN, SPARE, LAST = "openai/main", "openai/spare", "openai/last"


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    opened = Session(settings, Limits(), Endpoints(QUICK))
    yield opened
    opened.close()


@pytest.fixture
def request_for_three(provider: ScriptedProvider) -> CompletionRequest:
    model = ModelSpec.model_validate(
        {"model": MAIN, "api_base": provider.url, "api_key_env": "TEST_KEY", "fallbacks": [SPARE, LAST]}
    )
    return CompletionRequest(Role.GENERATOR, model, (Message("user", "What is 2 + 3?"),), "q1", "", 3)


def models_of(completions: Sequence[Completion]) -> list[str]:
    return [completion.model for completion in completions]


def fail(provider: ScriptedProvider, *models: str, fault: Fault | None = None) -> None:
    names = {model.removeprefix("openai/") for model in models}
    provider.faults = mishaps.when(lambda asked: asked.model in names, fault or mishaps.context_overflow())


def without_fallbacks(request: CompletionRequest) -> CompletionRequest:
    return replace(request, model=request.model.model_copy(update={"fallbacks": ()}))


def test_a_fallback_changes_no_key(request_for_three: CompletionRequest) -> None:
    assert without_fallbacks(request_for_three).keys == request_for_three.keys


def test_while_the_model_answers_no_fallback_is_asked(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    assert models_of(ask(session, request_for_three)) == ["main"] * 3
    assert [asked.model for asked in provider.requests] == ["main"]


@pytest.mark.parametrize("fault", [mishaps.context_overflow(), mishaps.server_error(), mishaps.quota_spent()])
def test_a_fallback_answers_requests_that_the_model_cannot(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest, fault: Fault
) -> None:
    fail(provider, MAIN, fault=fault)
    assert models_of(ask(session, request_for_three)) == ["spare"] * 3
    assert len(provider.requests_to("spare")) == 1
    assert provider.requests_to("last") == []


def test_fallbacks_are_asked_in_their_order(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN, SPARE)
    assert models_of(ask(session, request_for_three)) == ["last"] * 3


def test_the_error_names_every_model_s_reason_if_all_fail(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN, SPARE, LAST)
    with pytest.raises(RequestFailed, match=r"openai/main .*; then openai/spare .*; then openai/last "):
        ask(session, request_for_three)


def test_only_the_missing_siblings_are_asked_of_the_fallback(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    provider.siblings = "ignored"
    provider.faults = mishaps.when(lambda asked: asked.number == 1, mishaps.context_overflow())
    assert sorted(models_of(ask(session, request_for_three))) == ["main", "main", "spare"]


def test_a_rerun_reuses_a_fallback_s_answers_and_pays_nothing(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN)
    first, asked = ask(session, request_for_three), provider.request_count
    provider.faults = None
    again = ask(session, request_for_three)
    assert [one.text for one in again] == [one.text for one in first]
    assert all(one.cached for one in again)
    assert provider.request_count == asked
    assert models_of(session.run(make_store_completer(session.store, ["q1"])(request_for_three))) == ["spare"] * 3


def test_a_fallback_s_answer_is_stored_under_the_fallback_s_key(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN)
    ask(session, request_for_three)
    spare = request_for_three.model.backups[0]
    asked = provider.request_count
    assert all(one.cached for one in ask(session, replace(request_for_three, model=spare)))
    assert provider.request_count == asked


def test_a_fallback_s_stored_answers_are_used_only_if_the_model_fails(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    ask(session, replace(request_for_three, model=request_for_three.model.backups[0]))
    assert models_of(ask(session, request_for_three)) == ["main"] * 3
    other = replace(request_for_three, question_id="q2")
    ask(session, replace(other, model=other.model.backups[0]))
    fail(provider, MAIN)
    assert models_of(ask(session, other)) == ["spare"] * 3
    assert len(provider.requests_to("spare")) == 2


def test_a_config_without_fallbacks_does_not_use_their_answers(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN)
    ask(session, request_for_three)
    provider.faults = None
    assert models_of(ask(session, without_fallbacks(request_for_three))) == ["main"] * 3


def test_an_endpoint_that_is_down_does_not_stop_a_run_that_has_another(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    elsewhere = {"api_base": "http://127.0.0.1:9/v1", "fallbacks": (Fallback(model=SPARE, api_base=provider.url),)}
    dead = replace(request_for_three, model=request_for_three.model.model_copy(update=elsewhere))
    assert models_of(ask(session, dead)) == ["spare"] * 3
    assert models_of(ask(session, replace(dead, question_id="q2"))) == ["spare"] * 3
    assert session.stopped is None


def test_an_empty_account_is_not_asked_again(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN, fault=mishaps.payment_required())
    for question in ("q1", "q2"):
        assert models_of(ask(session, replace(request_for_three, question_id=question))) == ["spare"] * 3
    assert len(provider.requests_to("main")) == 1


def test_a_wrong_key_stops_the_run_all_the_same(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    fail(provider, MAIN, fault=mishaps.wrong_key())
    with pytest.raises(ConfigError, match="TEST_KEY"):
        ask(session, request_for_three)
    assert provider.request_count == 1


def test_a_fallback_given_by_name_takes_the_role_s_address_if_the_provider_is_the_same() -> None:
    role = ModelSpec.model_validate(
        {
            "model": MAIN,
            "api_base": "http://here/v1",
            "api_key_env": "OWN_KEY",
            "temperature": 0.7,
            "fallbacks": [SPARE, "groq/llama", {"model": LAST, "api_base": "http://there/v1"}],
        }
    )
    assert [(each.model, each.api_base, each.api_key_env) for each in role.backups] == [
        (SPARE, "http://here/v1", "OWN_KEY"),
        ("groq/llama", None, None),
        (LAST, "http://there/v1", None),
    ]
    assert {each.temperature for each in role.backups} == {0.7}


async def test_the_nodes_of_a_tree_name_the_model_that_really_answered(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    spec = spec_of(provider, write_questions(tmp_path), samples=2)
    verifier = spec.roles.verifier.model_copy(update={"fallbacks": (Fallback(model=SPARE),)})
    spec = spec.model_copy(update={"roles": spec.roles.model_copy(update={"verifier": verifier})})
    fail(provider, "openai/verifier-model")
    rows = [{"question": "What is 1 + 10?", "ground_truth": "11"}]
    version = await TrainingDataGenerator(spec=spec).generate_and_evaluate(rows)
    by_role = version.trajectories.groupby("role").model.unique().map(list).to_dict()
    assert by_role == {"generator": ["generator-model"], "verifier": ["spare"], "refiner": ["refiner-model"]}
    assert version.manifest.spec.roles.verifier.fallbacks == (Fallback(model=SPARE),)
