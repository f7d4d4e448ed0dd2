"""Session: the one place where a process asks models. Store first, then the endpoint; every answer stored at once.

Prefect gives tasks loops of their own, so a session lives on the process's background loop, with its connections,
limits and the store's writer. Anything may hand it a coroutine, from any thread.
"""

import asyncio
import atexit
import concurrent.futures
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from malt.concurrency import BackgroundLoop
from malt.config.limits import Limits
from malt.config.roles import ModelSpec
from malt.config.secret_scan import redact
from malt.config.settings import Settings
from malt.errors import AccountEmpty, ConfigError, EndpointDown, MaltError, RunStopped
from malt.llm.budget import Amount, Budget, Tally, Usage, estimate_worst_case
from malt.llm.faults import NoSiblings, Rejected
from malt.llm.provider import call, embedded
from malt.llm.provider.call import Reply
from malt.llm.rate_limit.limiter import Endpoint, EndpointKey, Endpoints, endpoint_key, endpoints
from malt.llm.request import CompletionRequest, RequestFailed
from malt.llm.response import clean_text, split_response
from malt.llm.store.batches import BatchStore
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import BatchedWriter, Store, UnwritableRow

T = TypeVar("T")

STOP_SECONDS = 6.0
"""Seconds that a stopping session waits for answers in flight, and for a store that is away."""
_GRACE_TURNS = 100
"""Turns of the loop in which who waited for the last answers takes them, however slow the machine is."""
_GRACE_S = 1.0
"""Grace period for coroutines submitted before the stop."""
_LOOK_EVERY_S = 0.2
"""Seconds between two checks whether a store that was away is back."""


class Session:
    """A run's store, endpoints and budget."""

    def __init__(self, settings: Settings, limits: Limits, shared: Endpoints = endpoints) -> None:
        """Open the store. `shared` are the endpoints that it asks along with the process's other sessions."""
        self.store = Store(settings.store, settings.store_patience_s)
        self.store.check_writable()
        self.tally = Tally()
        self.stopped: MaltError | None = None
        self.batch_store = BatchStore(self.store)
        self.session_id = uuid4().hex
        """Tells it from all other sessions that write to the store."""
        self.batches = ""
        """State of the open batches, for the progress line."""
        self._limits = limits
        self.budget = Budget(limits)
        self._shared = shared
        self._endpoints: dict[EndpointKey, tuple[Endpoint, Limits]] = {}
        self._loop = _background.enter()
        self._left = False
        self._writer = BatchedWriter(self.store)
        self._rejected: set[str] = set()
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._work: set[concurrent.futures.Future[Any]] = set()
        self._closing = threading.Lock()
        self._leaving = threading.Lock()
        atexit.register(self.close)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the session's loop and wait for it; never call it from that loop."""
        return self._submit(work).result()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the session's loop, from any loop."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._leaving:  # the loop ends only after what it was given
            if self._left:
                work.close()
                raise self.stopped or _session_closed()
            submitted = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._work.add(submitted)
        submitted.add_done_callback(self._work.discard)
        return submitted

    def close(self) -> None:
        """Stop asking, give answers under way a few seconds to arrive, and write them."""
        with self._closing:
            if self._left:
                return
            self.stopped = self.stopped or _session_closed()
            self.store.patience_s = min(self.store.patience_s, STOP_SECONDS)
            self.run(self._drain())
            with self._leaving:
                self._left = True
            concurrent.futures.wait(tuple(self._work), _GRACE_S)  # it is about to see that it was stopped
            _background.leave(call.close)
            self.store.close()
            atexit.unregister(self.close)  # not before: the process waits for it

    async def _drain(self) -> None:
        for endpoint, _ in self._endpoints.values():
            endpoint.wake_waiters()
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._writer.drain()
        for _ in range(_GRACE_TURNS):
            await asyncio.sleep(0)
        for endpoint, limits in self._endpoints.values():
            self._shared.leave(endpoint, limits)

    def endpoint(self, model: ModelSpec) -> Endpoint:
        """Return the limiter that all requests of the process to one model at one address share."""
        where = endpoint_key(model)
        if where not in self._endpoints:
            limits = _limits_for(model, self._limits)
            endpoint = self._shared.enter(model, limits)
            endpoint.siblings = endpoint.siblings and call.takes_siblings(model)
            self._endpoints[where] = endpoint, limits
        return self._endpoints[where][0]

    @asynccontextmanager
    async def tree(self, worst: Amount) -> AsyncIterator[None]:
        """Grow a tree in here, from any loop: it begins once the budget has room for it (see `Budget.tree`)."""
        growing = self.budget.tree(worst)
        await self.call(growing.__aenter__())
        try:
            yield
        finally:
            await self.call(growing.__aexit__(None, None, None))

    def was_rejected(self, request: CompletionRequest) -> bool:
        """Whether a sample of a request, as its model or its last fallback was asked for it, was refused for good."""
        asked = (request, *(replace(request, model=model) for model in request.model.backups))[-1]
        return not self._rejected.isdisjoint(asked.keys)

    def raise_if_stopped(self) -> None:
        """Raise why nothing more is asked, where that is so."""
        if self.stopped is not None:
            raise self.stopped.with_traceback(None)  # which would grow: all who ask raise the same

    @property
    def is_asking(self) -> bool:
        """Whether answers are under way, or on their way to the store."""
        return bool(self._in_flight)

    @property
    def throttled_by(self) -> list[str]:
        """Reasons why each endpoint's rate is not higher, for the progress line."""
        if self.store.is_away:
            return ["the store, which cannot be used; nothing more is asked until it can"]
        if self.batches:
            return [self.batches]
        return [endpoint.throttled_by for endpoint, _ in list(self._endpoints.values()) if endpoint.throttled_by]

    async def ask(
        self,
        request: CompletionRequest,
        first: int,
        count: int,
        tally: Tally,
        *,
        has_spare: bool = False,
        has_failed: bool = False,
    ) -> list[StoredSample]:
        """Ask for samples first … first+count-1 and store what comes before returning it; may be fewer than asked.

        `has_spare`: another model will be asked instead, so an endpoint that is down or unpaid does not end the run.
        `has_failed`: an earlier run asked for it in vain.
        """
        task = asyncio.create_task(self._ask(request, first, count, tally, has_spare=has_spare, has_failed=has_failed))
        self._in_flight.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)  # an answer under way is paid for: it is stored even if nobody waits for it

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            task.exception()  # where nobody waits for it any more, asyncio need not tell

    async def _ask(
        self, request: CompletionRequest, first: int, count: int, tally: Tally, *, has_spare: bool, has_failed: bool
    ) -> list[StoredSample]:
        endpoint = self.endpoint(request.model)
        asked = count if endpoint.siblings else 1
        started = time.perf_counter()
        try:
            reply = await self._send(endpoint, request, first, asked, tally, has_failed=has_failed)
            rows = fill_rows(make_blank_rows(request, range(first, first + asked), tally.run), reply)
        except NoSiblings:
            endpoint.siblings = False
            return await self._ask(request, first, 1, tally, has_spare=has_spare, has_failed=has_failed)
        except Exception as error:  # it is stored as what became of these samples: what nobody foresaw costs a branch
            is_passed_on = has_spare and isinstance(error, EndpointDown | AccountEmpty)
            if isinstance(error, MaltError) and not (isinstance(error, RequestFailed) or is_passed_on):
                self.stopped = self.stopped or error
                raise
            if isinstance(error, Rejected):
                self._rejected.update(request.keys[first : first + count])
            named = filter(None, (request.model.api_key_env,))
            unforeseen = f"{type(error).__name__}: {redact(str(error), named)}"
            reason = str(error) if isinstance(error, MaltError) else unforeseen
            waited_s = time.perf_counter() - started
            blank = make_blank_rows(request, range(first, first + count), tally.run)
            rows = [replace(row, error=clean_text(reason), latency_s=waited_s) for row in blank]
        return await self._put(rows)

    async def _wait_for_store(self) -> None:
        """Wait while the store is away: answers under way are held meanwhile, and more might be lost with them."""
        self.store.check_in_place()
        while (self.store.is_away or self.store.lost) and self.stopped is None:
            if self.store.lost is not None:
                raise self.store.lost
            await asyncio.sleep(_LOOK_EVERY_S)
        self.raise_if_stopped()

    async def _put(self, rows: list[StoredSample]) -> list[StoredSample]:
        """Write rows, and return what the store holds for their keys; a store that fails ends all asking at once."""
        try:
            return await self._writer.put(rows)
        except UnwritableRow as error:
            raise RequestFailed(str(error)) from error
        except MaltError as error:
            self.stopped = self.stopped or error
            raise

    async def _send(
        self, endpoint: Endpoint, request: CompletionRequest, first: int, count: int, tally: Tally, *, has_failed: bool
    ) -> Reply:
        async def send() -> Reply:
            self.raise_if_stopped()  # as may be since it waited for the budget
            tally.add(request.role, Usage(requests=1))
            return await call.send(request, first, count)

        async def attempt() -> Reply:
            return await self.budget.pay(self.worst_case(request, count), send)

        most_tokens, question = request.most_tokens(count), request.question_id
        return await endpoint.call(attempt, most_tokens, question, self._wait_for_store, has_failed=has_failed)

    def worst_case(self, request: CompletionRequest, count: int, *, batched: bool = False) -> Amount:
        """Return the most that so many samples may take. Raises `ConfigError` where a cap has no price to go by."""
        prices = call.find_price(request.model, batched=batched)
        if prices is None and self._limits.max_cost_usd is not None:
            raise ConfigError(
                f"limits.max_cost_usd is set, but the price of {request.model.model} is not known; remove it"
            )
        return estimate_worst_case(request, count, prices or (0.0, 0.0))


def _session_closed() -> RunStopped:
    return RunStopped("the session was closed")


def _limits_for(model: ModelSpec, limits: Limits) -> Limits:
    """Return an endpoint's limits; more requests than the embedded model can work on would only time out waiting."""
    if not embedded.is_embedded(model.model):
        return limits
    return limits.model_copy(update={"max_in_flight": min(limits.max_in_flight, embedded.count_lanes())})


def make_blank_rows(request: CompletionRequest, samples: Iterable[int], run: str = "") -> list[StoredSample]:
    return [
        StoredSample(
            key=request.keys[sample],
            question_id=request.question_id,
            role=request.role.value,
            model=request.model.model,
            address=request.address,
            sample=sample,
            run=run,
        )
        for sample in samples
    ]


def fill_rows(blank: Sequence[StoredSample], reply: Reply) -> list[StoredSample]:
    """Return the rows of one response, one a choice, raw; there may be fewer than were asked for."""
    responses = split_response(reply.response, len(blank))
    cost = None if reply.cost_usd is None else reply.cost_usd / len(responses)
    filled = zip(blank, responses, strict=False)
    return [replace(row, response=each, cost_usd=cost, latency_s=reply.latency_s) for row, each in filled]


_sessions: dict[tuple[Settings, Limits, str], Session] = {}
_stopped: set[str | None] = set()
"""Runs that may not ask any more; None is all of them."""
_opening = threading.Lock()


def open_session(settings: Settings, limits: Limits, run: str = "") -> Session:
    """Return the process's session for a run with these settings and limits; made at first use, closed at exit.

    A session that has stopped stays so for its `run`: no later batch may spend on. Without a name, a new one is made.
    Raises `RunStopped` once `stop_sessions` was called, were it before the run came here.
    """
    with _opening:
        _raise_if_stopped(run)
        session = _sessions.get((settings, limits, run))
        if session is None or (session.stopped is not None and not run):
            session = _sessions[settings, limits, run] = Session(settings, limits)
    try:
        _raise_if_stopped(run)
    except RunStopped:  # meanwhile: the session may not have been seen
        stop_sessions(run)
        raise
    return session


def _raise_if_stopped(run: str) -> None:
    if not _stopped.isdisjoint((run, None)):
        raise _session_closed()


def latest_session() -> Session | None:
    """Return the session that `open_session` made last, or None where it has made none yet."""
    return next(reversed(list(_sessions.values())), None)


def is_asking() -> bool:
    """Whether any session that `open_session` has made waits for answers."""
    return any(session.is_asking for session in list(_sessions.values()))


def stop_sessions(run: str | None = None) -> None:
    """Close what `open_session` has made, for one run or all, and make no more: who asks for one gets `RunStopped`."""
    _stopped.add(run)
    for key, session in list(_sessions.items()):
        if run in (None, key[-1]):
            session.close()
            _sessions.pop(key, None)


def close_sessions() -> None:
    """Close what `open_session` has made; the next call makes new ones."""
    stop_sessions()
    _stopped.clear()


_background = BackgroundLoop()
