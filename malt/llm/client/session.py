"""Session: a run's store, endpoints and budget in one process; it sends requests and stores each answer on arrival.

Prefect gives each task its own event loop, so sessions live on the process's background loop, with their connections,
limiters and writer. Any thread may submit a coroutine.
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
"""Seconds that a closing session waits for answers in flight, and for a store that is away."""
_GRACE_TURNS = 100
"""Iterations of the loop in which waiters receive the last answers, however slow the machine is."""
_GRACE_S = 1.0
"""Grace period for coroutines submitted before the stop."""
_STORE_CHECK_EVERY_S = 0.2
"""Seconds between checks of whether an unavailable store can be used again."""


class Session:
    """Store, endpoints and budget of a run, in one process."""

    def __init__(self, settings: Settings, limits: Limits, shared: Endpoints = endpoints) -> None:
        """Open the store. `shared` holds the limiters, which the process's sessions share."""
        self.store = Store(settings.store, settings.store_patience_s)
        self.store.check_writable()
        self.tally = Tally()
        self.stopped: MaltError | None = None
        self.batch_store = BatchStore(self.store)
        self.session_id = uuid4().hex
        """Unique id among all sessions that write to the store."""
        self.batches = ""
        """State of the open batches, for the progress line."""
        self._limits = limits
        self.budget = Budget(limits)
        self._shared = shared
        self._endpoints: dict[EndpointKey, tuple[Endpoint, Limits]] = {}
        self._loop = _background.enter()
        self._is_closed = False
        self._writer = BatchedWriter(self.store)
        self._rejected: set[str] = set()
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._submitted: set[concurrent.futures.Future[Any]] = set()
        self._close_lock = threading.Lock()
        self._submit_lock = threading.Lock()
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
        with self._submit_lock:  # `close` ends the loop only after this coroutine is registered
            if self._is_closed:
                work.close()
                raise self.stopped or _session_closed()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._submitted.add(future)
        future.add_done_callback(self._submitted.discard)
        return future

    def close(self) -> None:
        """Send no more requests, wait up to `STOP_SECONDS` for answers in flight, store them, and release the loop."""
        with self._close_lock:
            if self._is_closed:
                return
            self.stopped = self.stopped or _session_closed()
            self.store.patience_s = min(self.store.patience_s, STOP_SECONDS)
            self.run(self._drain())
            with self._submit_lock:
                self._is_closed = True
            concurrent.futures.wait(tuple(self._submitted), _GRACE_S)  # they see `stopped` and end
            _background.leave(call.close)
            self.store.close()
            atexit.unregister(self.close)  # last: a process that exits meanwhile then waits for this close

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
        """Return the limiter shared by all of the process's requests to one model at one address."""
        key = endpoint_key(model)
        if key not in self._endpoints:
            limits = _limits_for(model, self._limits)
            endpoint = self._shared.enter(model, limits)
            endpoint.siblings = endpoint.siblings and call.takes_siblings(model)
            self._endpoints[key] = endpoint, limits
        return self._endpoints[key][0]

    @asynccontextmanager
    async def tree(self, worst: Amount) -> AsyncIterator[None]:
        """Context for growing a tree, on any loop, entered once the budget has room for it (see `Budget.tree`)."""
        reservation = self.budget.tree(worst)
        await self.call(reservation.__aenter__())
        try:
            yield
        finally:
            await self.call(reservation.__aexit__(None, None, None))

    def was_rejected(self, request: CompletionRequest) -> bool:
        """Whether a sample of a request was rejected by the last model to ask: its last fallback, or its only model."""
        last = (request, *(replace(request, model=model) for model in request.model.backups))[-1]
        return not self._rejected.isdisjoint(last.keys)

    def raise_if_stopped(self) -> None:
        """Raise the error that stopped the session, if it was stopped."""
        if self.stopped is not None:
            raise self.stopped.with_traceback(None)  # the traceback would grow with each caller that raises this object

    @property
    def is_asking(self) -> bool:
        """Whether answers are in flight, or waiting to be stored."""
        return bool(self._in_flight)

    @property
    def throttled_by(self) -> list[str]:
        """Reasons why the endpoints' rates are not higher, for the progress line."""
        if self.store.is_away:
            return ["the store, which cannot be used; no requests are sent until it can"]
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
        """Request samples first … first+count-1, store the answers, and return their rows; there may be fewer.

        `has_spare`: a fallback remains, so an endpoint that is down or an empty account does not end the run.
        `has_failed`: the request failed in an earlier run.
        """
        task = asyncio.create_task(self._ask(request, first, count, tally, has_spare=has_spare, has_failed=has_failed))
        self._in_flight.add(task)
        task.add_done_callback(self._discard)
        return await asyncio.shield(task)  # an answer in flight is paid for: store it even if the caller is cancelled

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: asyncio need not log it where the caller is gone

    async def _ask(
        self, request: CompletionRequest, first: int, count: int, tally: Tally, *, has_spare: bool, has_failed: bool
    ) -> list[StoredSample]:
        endpoint = self.endpoint(request.model)
        requested = count if endpoint.siblings else 1
        started = time.perf_counter()
        try:
            reply = await self._send(endpoint, request, first, requested, tally, has_failed=has_failed)
            rows = fill_rows(make_blank_rows(request, range(first, first + requested), tally.run), reply)
        except NoSiblings:
            endpoint.siblings = False
            return await self._ask(request, first, 1, tally, has_spare=has_spare, has_failed=has_failed)
        except Exception as error:
            # It either stops the run, or is stored and reported as the failure of this branch alone (exit 1): an
            # unexpected error must not cost the other branches.
            is_passed_on = has_spare and isinstance(error, EndpointDown | AccountEmpty)
            if isinstance(error, MaltError) and not (isinstance(error, RequestFailed) or is_passed_on):
                self.stopped = self.stopped or error
                raise
            if isinstance(error, Rejected):
                self._rejected.update(request.keys[first : first + count])
            key_names = filter(None, (request.model.api_key_env,))
            unexpected = f"{type(error).__name__}: {redact(str(error), key_names)}"
            reason = str(error) if isinstance(error, MaltError) else unexpected
            waited_s = time.perf_counter() - started
            blank = make_blank_rows(request, range(first, first + count), tally.run)
            rows = [replace(row, error=clean_text(reason), latency_s=waited_s) for row in blank]
        return await self._put(rows)

    async def _wait_for_store(self) -> None:
        """Wait while the store is away: answers in flight are only held in memory, so no more should be requested."""
        self.store.check_in_place()
        while (self.store.is_away or self.store.lost) and self.stopped is None:
            if self.store.lost is not None:
                raise self.store.lost
            await asyncio.sleep(_STORE_CHECK_EVERY_S)
        self.raise_if_stopped()

    async def _put(self, rows: list[StoredSample]) -> list[StoredSample]:
        """Write rows, and return what the store holds for their keys; a store that fails stops the session."""
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
            self.raise_if_stopped()  # it may have been stopped while this waited for the budget
            tally.add(request.role, Usage(requests=1))
            return await call.send(request, first, count)

        async def attempt() -> Reply:
            return await self.budget.pay(self.worst_case(request, count), send)

        most_tokens, question = request.most_tokens(count), request.question_id
        return await endpoint.call(attempt, most_tokens, question, self._wait_for_store, has_failed=has_failed)

    def worst_case(self, request: CompletionRequest, count: int, *, batched: bool = False) -> Amount:
        """Return the most that samples may cost. Raises `ConfigError` under a cost cap where the price is unknown."""
        prices = call.find_price(request.model, batched=batched)
        if prices is None and self._limits.max_cost_usd is not None:
            raise ConfigError(
                f"limits.max_cost_usd is set, but the price of {request.model.model} is not known; remove the cap"
            )
        return estimate_worst_case(request, count, prices or (0.0, 0.0))


def _session_closed() -> RunStopped:
    return RunStopped("the session was closed")


def _limits_for(model: ModelSpec, limits: Limits) -> Limits:
    """Return an endpoint's limits; the embedded model gets one request per lane, as others would time out."""
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
    """Fill blank rows with the raw choices of one response; return those filled, perhaps fewer than requested."""
    responses = split_response(reply.response, len(blank))
    cost = None if reply.cost_usd is None else reply.cost_usd / len(responses)
    filled = zip(blank, responses, strict=False)
    return [replace(row, response=each, cost_usd=cost, latency_s=reply.latency_s) for row, each in filled]


_sessions: dict[tuple[Settings, Limits, str], Session] = {}
_stopped: set[str | None] = set()
"""Runs that may send no more requests; None stands for all."""
_opening = threading.Lock()


def open_session(settings: Settings, limits: Limits, run: str = "") -> Session:
    """Return the process's session for a run with these settings and limits; opened at first use, closed at exit.

    A stopped session stays stopped for its `run`, so that later batches of questions spend no more; without a run name
    a new one is opened. Raises `RunStopped` after `stop_sessions`, even for a run that had no session here yet.
    """
    with _opening:
        _raise_if_stopped(run)
        session = _sessions.get((settings, limits, run))
        if session is None or (session.stopped is not None and not run):
            session = _sessions[settings, limits, run] = Session(settings, limits)
    try:
        _raise_if_stopped(run)
    except RunStopped:  # stopped meanwhile, perhaps without closing this session
        stop_sessions(run)
        raise
    return session


def _raise_if_stopped(run: str) -> None:
    if run in _stopped or None in _stopped:
        raise _session_closed()


def latest_session() -> Session | None:
    """Return the session that `open_session` opened last, or None."""
    return next(reversed(list(_sessions.values())), None)


def is_asking() -> bool:
    """Whether any session of `open_session` has answers in flight."""
    return any(session.is_asking for session in list(_sessions.values()))


def stop_sessions(run: str | None = None) -> None:
    """Close the sessions of `open_session`, for one run or all; later calls of it raise `RunStopped`."""
    _stopped.add(run)
    for key, session in list(_sessions.items()):
        if run in (None, key[-1]):
            session.close()
            _sessions.pop(key, None)


def close_sessions() -> None:
    """Close all sessions of `open_session`; later calls open new ones."""
    stop_sessions()
    _stopped.clear()


_background = BackgroundLoop()
