"""Batches in doubt are never paid for twice: invisible batches, creations without a response, direct runs beside."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from malt.cli.main import exit_code
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.engine.fill import fill_batch
from malt.engine.job import read_job
from malt.engine.run import Run
from malt.errors import ConfigError
from malt.llm.client.session import Session, close_sessions, open_session
from malt.llm.store.batches import LIFE_S, BatchStore, batches_table
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from tests.batches import BatchProvider
from tests.batching import IMPATIENT, batched, grown
from tests.batching import provider as provider
from tests.batching import spec as spec
from tests.mishaps import Fault, refusal, server_error

NOT_LISTED = [refusal(404, "Not Found", None), refusal(405, "Method Not Allowed", None), server_error(501)]


@pytest.fixture
def suspended(provider: BatchProvider, spec: RunSpec) -> RunSpec:
    """Spec of a run that does not wait for batches, with its first level in flight."""
    provider.stages = ["in_progress", "completed"]
    not_waiting = batched(spec, wait=False)
    assert grown(not_waiting)[0].waits is not None
    close_sessions()
    return not_waiting


def check_each_item_is_paid_once(provider: BatchProvider) -> None:
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 6, 18]
    assert set(provider.paid.values()) == {1}


def another_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "a key of another project")


def test_a_batch_that_the_key_does_not_see_stops_the_run(
    provider: BatchProvider, spec: RunSpec, suspended: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        another_project(elsewhere)
        stopped = grown(suspended, run="two")[0].stopped or ""
    assert "does not know batch batch_0 (404)" in stopped
    assert "key in TEST_KEY" in stopped
    assert "malt batches --forget batch_0" in stopped
    assert grown(spec, run="three")[0] == NOTHING_MISSING
    check_each_item_is_paid_once(provider)


def test_items_of_a_forgotten_batch_are_requested_again(
    provider: BatchProvider,
    spec: RunSpec,
    suspended: RunSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(["batches", suspended.name]) == 0
    assert "batch_0  sums, openai/generator-model" in capsys.readouterr().out
    assert exit_code(["batches", "--forget", "batch_1"]) == 2
    assert exit_code(["batches", "--forget", "batch_0"]) == 0
    another_project(monkeypatch)
    assert grown(spec, run="two")[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 2, 6, 18]
    capsys.readouterr()
    assert exit_code(["batches"]) == 0
    assert "no batch is under way" in capsys.readouterr().out


def test_an_unknown_batch_older_than_its_lifetime_has_expired(
    provider: BatchProvider, spec: RunSpec, suspended: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_session(Settings(), suspended.limits).store
    long_ago = sa.update(batches_table).values(planned_at=batches_table.c.planned_at - LIFE_S)
    store.transact(lambda connection: connection.execute(long_ago))
    another_project(monkeypatch)
    assert grown(spec, run="two")[0] == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 2, 6, 18]


@pytest.mark.parametrize("not_listed", NOT_LISTED, ids=lambda fault: str(fault.status))
def test_a_batch_created_without_a_response_is_kept_until_its_state_is_known(
    provider: BatchProvider, spec: RunSpec, not_listed: Fault
) -> None:
    provider.afterwards = lambda *which: server_error() if which == ("create", 0) else None
    provider.batch_faults = lambda name, _: not_listed if name == "list" else None
    for run in ("asks", "comes again"):
        shortfall, _ = grown(spec, IMPATIENT, run)
        assert shortfall.stopped is not None
        close_sessions()
    assert provider.done["create"] == 1
    provider.batch_faults = lambda *_: None
    assert grown(spec, run="can see")[0] == NOTHING_MISSING
    check_each_item_is_paid_once(provider)


def test_the_error_for_a_batch_in_doubt_says_what_to_do(provider: BatchProvider, spec: RunSpec) -> None:
    provider.afterwards = lambda *which: server_error() if which == ("create", 0) else None
    provider.batch_faults = lambda name, _: refusal(404, "Not Found", None) if name == "list" else None
    stopped = grown(spec)[0].stopped or ""
    [mark] = [batch.metadata["malt_mark"] for batch in provider.batches]
    assert f"whether batch {mark} was made there is in doubt" in stopped
    assert f"malt batches --forget {mark}" in stopped
    assert exit_code(["batches", "--forget", mark]) == 0


def test_items_of_a_failed_upload_are_free_at_once_without_listing_batches(
    provider: BatchProvider, spec: RunSpec
) -> None:
    provider.batch_faults = lambda name, _: server_error() if name == "upload" else None
    assert "bad day" in (grown(spec, IMPATIENT)[0].stopped or "")
    provider.batch_faults = lambda *_: None
    assert grown(spec, run="two")[0] == NOTHING_MISSING
    assert provider.calls["list"] == 0


def the_session(spec: RunSpec) -> Session:
    return open_session(Settings(), spec.limits, run="one")


GiveUp = Callable[[BatchStore, str], None]
GIVEN_UP = pytest.mark.parametrize("give_up", [BatchStore.release, BatchStore.forget])
"""Ways to give a batch up: by another process that took this one for dead, and by hand."""


def given_up_as(provider: BatchProvider, spec: RunSpec, call: str, give_up: GiveUp) -> Shortfall:
    """Grow while the first batch is given up just as `call` takes effect."""

    def meanwhile(name: str, number: int) -> None:
        if (name, number) == (call, 0):
            book = the_session(spec).batch_store
            give_up(book, book.list_open()[0].mark)

    provider.afterwards = meanwhile
    return grown(spec)[0]


@GIVEN_UP
def test_a_batch_that_was_given_up_meanwhile_is_not_made(
    provider: BatchProvider, spec: RunSpec, give_up: GiveUp
) -> None:
    assert "was given up before it was made" in (given_up_as(provider, spec, "upload", give_up).stopped or "")
    assert provider.batches == []
    assert grown(spec, run="two")[0] == NOTHING_MISSING


@GIVEN_UP
def test_a_batch_that_was_given_up_as_it_was_made_is_to_be_cancelled(
    provider: BatchProvider, spec: RunSpec, give_up: GiveUp
) -> None:
    stopped = given_up_as(provider, spec, "create", give_up).stopped or ""
    assert "batch batch_0 was made at openai/generator-model" in stopped


def test_a_stopped_session_submits_nothing_more(provider: BatchProvider, spec: RunSpec) -> None:
    def stop(*_: object) -> None:
        session = the_session(spec)
        session.stopped = session.stopped or ConfigError("enough")

    provider.afterwards = stop
    with pytest.raises(ConfigError, match="enough"):
        grown(spec)
    assert provider.calls == {"upload": 1}


def asked_directly(spec: RunSpec, run: str = "direct", asks: frozenset[Role] = frozenset(Role)) -> Shortfall:
    return fill_batch(read_job(spec), Run(run, asks)).shortfall


def test_a_direct_run_does_not_pay_for_items_in_flight(
    provider: BatchProvider, spec: RunSpec, suspended: RunSpec
) -> None:
    with pytest.raises(ConfigError, match=r"dataset sums: .* under way in batch batch_0, .* --forget batch_0"):
        asked_directly(suspended)
    assert provider.requests == []
    assert grown(suspended, run="two")[0].waits is not None  # the first level is collected, the second in flight
    assert grown(spec, run="three")[0] == NOTHING_MISSING
    assert asked_directly(suspended, run="again") == NOTHING_MISSING
    check_each_item_is_paid_once(provider)


def test_a_direct_run_requests_items_that_no_batch_holds(provider: BatchProvider, suspended: RunSpec) -> None:
    warmer = suspended.roles.generator.model_copy(update={"temperature": 0.9})
    other = suspended.model_copy(update={"roles": suspended.roles.model_copy(update={"generator": warmer})})
    assert asked_directly(other) == NOTHING_MISSING
    assert len(provider.batches) == 1


@pytest.mark.parametrize("mode", ["batch", "direct"])
def test_a_judge_that_takes_no_schema_is_asked_again_without_one(
    provider: BatchProvider, spec: RunSpec, mode: str
) -> None:
    judge = EvaluatorSpec(kind=("llm",), model="openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    judged = spec.model_copy(update={"evaluator": judge})
    unknown = refusal(400, "Unknown parameter: response_format.", None)
    provider.faults = lambda asked: unknown if "response_format" in asked.body else None
    assert (grown(judged)[0] if mode == "batch" else asked_directly(judged)) == NOTHING_MISSING
    assert "response_format" in [key for asked in provider.requests for key in asked.body]
