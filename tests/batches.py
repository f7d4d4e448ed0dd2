"""A stand-in for OpenAI's files and batches over real HTTP, beside a scripted provider's chat completions.

    with BatchProvider() as provider:
        provider.stages = ["validating", "in_progress", "completed"]

A batch moves to its next stage each time its status is requested. When it reaches its last stage, its items are
answered or refused by the same script and faults as direct requests. An API key sees only its own batches, as if every
key had a project of its own at OpenAI.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.mishaps import Fault, refusal
from tests.providers import ScriptedProvider

ENDED = {"completed", "failed", "expired", "cancelled"}
NOT_EXECUTED = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed because the batch was cancelled.",
}
"""Messages in the error file for items that were not executed, by the batch's final status."""


@dataclass
class StandInBatch:
    """One batch as the server keeps it."""

    batch_id: str
    file_id: str
    metadata: dict[str, str]
    stages: list[str]
    """Statuses that the batch has yet to reach."""
    created_at: int
    key: str | None
    """Authorization header of the client that created it."""
    status: str = "validating"
    answered: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0


@dataclass
class BatchProvider(ScriptedProvider):
    """The server; its fields may be changed while it runs."""

    stages: Sequence[str] = ("completed",)
    """Statuses of each new batch; every status request moves it to the next."""
    answers_before_the_end: int | None = None
    """Number of items answered before a batch expires or is cancelled; a completed batch answers all of its items."""
    invalid: tuple[str, str] = ("model_not_found", "The model `m` does not exist.")
    """Code and message of a batch that fails."""
    batch_faults: Callable[[str, int], Fault | None] = lambda _call, _number: None
    """Faults of calls that are refused, by kind ("upload", "create", "look", "list", "download") and number from 0."""
    afterwards: Callable[[str, int], Fault | None] = lambda _call, _number: None
    """Faults sent in place of the response after a call took effect; with `hang()` no response is sent."""
    later_stages: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Stages that replace `stages`, keyed by the number of the first batch that they apply to."""
    calls: Counter[str] = field(default_factory=Counter, init=False)
    done: Counter[str] = field(default_factory=Counter, init=False)
    """Number of calls that took effect, by kind, whether answered or not."""
    batches: list[StandInBatch] = field(default_factory=list, init=False)
    files: dict[str, bytes] = field(default_factory=dict, init=False)
    changed: threading.Condition = field(default_factory=threading.Condition, init=False)

    @property
    def items(self) -> list[str]:
        """Custom ids of the items of all batches ever created."""
        return [line["custom_id"] for batch in self.batches for line in self.lines(batch)]

    @property
    def paid(self) -> Counter[str]:
        """Number of answers to each item, by custom id."""
        return Counter(line["custom_id"] for batch in self.batches for line in batch.answered)

    def lines(self, batch: StandInBatch) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch.file_id].splitlines()]

    def wait_until_done(self, name: str, number: int, timeout_s: float = 180) -> None:
        """Wait until call `number` of a kind, counted from 0, has taken effect."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.done[name] > number, timeout_s)

    def _add_routes(self, app: web.Application) -> None:
        super()._add_routes(app)
        for method, path, name, act in (
            ("POST", "/v1/files", "upload", self._upload),
            ("GET", "/v1/files/{file_id}/content", "download", self._download),
            ("POST", "/v1/batches", "create", self._create),
            ("GET", "/v1/batches", "list", self._list),
            ("GET", "/v1/batches/{batch_id}", "look", self._look),
        ):
            app.router.add_route(method, path, self._handler(name, act))

    def _handler(self, name: str, act: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            number = self.calls[name]
            self.calls[name] += 1
            if fault := self.batch_faults(name, number) or self._wrong_key(request):
                return response_for(fault)
            response: web.StreamResponse = await act(request)
            with self.changed:
                self.done[name] += 1
                self.changed.notify_all()
            fault = self.afterwards(name, number)
            if fault and fault.action == "hang":
                await self._stopped.wait()
            return response_for(fault) if fault else response

        return handle

    def _wrong_key(self, request: web.Request) -> Fault | None:
        is_wrong = self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}"
        return refusal(401, "Incorrect API key provided.", "invalid_api_key") if is_wrong else None

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        assert form["purpose"] == "batch"
        with upload.file:
            content = upload.file.read()
        return web.json_response(self._file(self._keep(content), len(content)))

    async def _download(self, request: web.Request) -> web.Response:
        content = self.files.get(request.match_info["file_id"])
        return not_found() if content is None else web.Response(body=content)

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        batch = StandInBatch(
            batch_id=f"batch_{len(self.batches)}",
            file_id=asked["input_file_id"],
            metadata=asked.get("metadata") or {},
            stages=list(self._stages_of(len(self.batches))),
            created_at=int(time.time()),
            key=request.headers.get("Authorization"),
        )
        assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
        self.batches.append(batch)
        return web.json_response(self._description(batch))

    def _stages_of(self, number: int) -> Sequence[str]:
        begun = [first for first in self.later_stages if first <= number]
        return self.later_stages[max(begun)] if begun else self.stages

    def _seen_by(self, request: web.Request) -> list[StandInBatch]:
        return [batch for batch in self.batches if batch.key == request.headers.get("Authorization")]

    async def _list(self, request: web.Request) -> web.Response:
        newest_first = self._seen_by(request)[::-1]
        if after := request.query.get("after"):
            place = [batch.batch_id for batch in newest_first].index(after)
            newest_first = newest_first[place + 1 :]
        page = newest_first[: int(request.query.get("limit", "20"))]
        told = [self._description(batch) for batch in page]
        return web.json_response({"object": "list", "data": told, "has_more": len(page) < len(newest_first)})

    async def _look(self, request: web.Request) -> web.Response:
        found = [batch for batch in self._seen_by(request) if batch.batch_id == request.match_info["batch_id"]]
        if not found:
            return not_found()
        [batch] = found
        if batch.stages:
            batch.status = batch.stages.pop(0)
            if batch.status in ENDED:
                self._end(batch)
        return web.json_response(self._description(batch))

    def _end(self, batch: StandInBatch) -> None:
        if batch.status == "failed":
            code, message = self.invalid
            batch.errors = [{"code": code, "message": message, "param": None, "line": None}]
            return
        lines = self.lines(batch)
        batch.total = len(lines)
        most = len(lines) if batch.status == "completed" else self.answers_before_the_end or 0
        for line in lines[:most]:
            self._work_on(batch, line)
        for line in lines[most:]:
            error = {"code": f"batch_{batch.status}", "message": NOT_EXECUTED[batch.status]}
            batch.refused.append({"custom_id": line["custom_id"], "response": None, "error": error})

    def _work_on(self, batch: StandInBatch, line: Mapping[str, Any]) -> None:
        asked = self._receive(line["body"], {})
        fault = self._refuse(asked)
        if fault is not None and fault.action == "answer":
            response = {"status_code": fault.status, "request_id": "r", "body": json.loads(fault.text)}
            batch.refused.append({"custom_id": line["custom_id"], "response": response, "error": None})
            return
        body = self._answer(asked) | ({"choices": []} if fault is not None and fault.action == "no_choices" else {})
        response = {"status_code": 200, "request_id": "r", "body": body}
        batch.answered.append({"custom_id": line["custom_id"], "response": response, "error": None})

    def _description(self, batch: StandInBatch) -> dict[str, Any]:
        has_ended = batch.status in ENDED
        return {
            "id": batch.batch_id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch.file_id,
            "completion_window": "24h",
            "status": batch.status,
            "created_at": batch.created_at,
            "metadata": batch.metadata,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "output_file_id": self._results(batch, "answered") if has_ended else None,
            "error_file_id": self._results(batch, "refused") if has_ended else None,
            "request_counts": {
                "total": batch.total,
                "completed": len(batch.answered),
                "failed": len(batch.refused),
            },
        }

    def _results(self, batch: StandInBatch, kind: Literal["answered", "refused"]) -> str | None:
        lines = getattr(batch, kind)
        if not lines:
            return None
        file_id = f"{batch.batch_id}-{kind}"
        in_another_order = sorted(lines, key=lambda line: str(hash(line["custom_id"])))
        self.files[file_id] = "".join(json.dumps(line) + "\n" for line in in_another_order).encode()
        return file_id

    def _keep(self, content: bytes) -> str:
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        return file_id

    def _file(self, file_id: str, size: int) -> dict[str, Any]:
        return {
            "id": file_id,
            "object": "file",
            "bytes": size,
            "created_at": 1_700_000_000,
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }


def not_found() -> web.Response:
    return response_for(refusal(404, "No such object.", None))


def response_for(fault: Fault) -> web.Response:
    return web.Response(status=fault.status, text=fault.text, headers=dict(fault.headers))
