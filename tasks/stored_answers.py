"""The store of completions as Prefect's cache: a branch whose answers are stored is `Cached` and asks no model."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # not re-exported by name
from prefect.serializers import PickleSerializer


@dataclass
class StoredAnswers(CachePolicy):
    """Takes a branch's key in Prefect's cache from the keys of its request in the store."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: object,
    ) -> str | None:
        """Return the key of the request's last sample, which implies the number of samples; None without a request."""
        request = inputs["grower"].build_request(inputs["branch"], inputs["parent"])
        return None if request is None else str(request.keys[-1])


STORED_ANSWERS = StoredAnswers()


class AnswerStorage(WritableFileSystem):
    """Reads a branch's answers from the store of completions; the completer that asks for them writes them there."""

    _block_type_name = "MALT answers"
    _block_type_slug = "malt-answers"

    def read_path(self, path: str, **_: object) -> bytes:  # type: ignore[override]  # Prefect also calls sync methods
        """Return the result of the current task run. Raises `LookupError` if the store lacks a sample."""
        context = TaskRunContext.get()
        if context is None:
            raise LookupError(f"{path}: answers can be read only in the task run that needs them")
        grower, branch, parent = (context.parameters[name] for name in ("grower", "branch", "parent"))
        request = grower.build_request(branch, parent)
        if not grower.is_stored(request):
            raise LookupError(f"{path}: not in the store")
        metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key=path)
        return ResultRecord(result=grower.expand(branch, parent, request), metadata=metadata).serialize()

    def write_path(self, path: str, content: bytes, **_: object) -> None:  # type: ignore[override]
        """Do nothing: the answers were stored when they arrived."""


async def save_answer_storage() -> AnswerStorage:
    """Return the storage, saved on the server as Prefect requires of result storages."""
    storage = AnswerStorage()
    for wait_s in (0.1, 0.3, 1.0, 3.0, None):  # another run may be saving it at the same time
        try:
            await storage.asave("malt", overwrite=True)
        except (ObjectAlreadyExists, PrefectHTTPStatusError) as error:
            if wait_s is None or not _is_conflict(error):
                raise
            await asyncio.sleep(wait_s)
        else:
            break
    return storage


def _is_conflict(error: ObjectAlreadyExists | PrefectHTTPStatusError) -> bool:
    return isinstance(error, ObjectAlreadyExists) or error.response.status_code == HTTPStatus.CONFLICT
