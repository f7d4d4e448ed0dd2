"""The store of completions as Prefect's cache: a branch whose answers are stored is `Cached`, and nobody is asked."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # not re-exported by name
from prefect.serializers import PickleSerializer


@dataclass
class StoredAnswers(CachePolicy):
    """A branch's key in Prefect's cache is its request's key in the store."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: object,
    ) -> str | None:
        """Return the key of the request's last sample, which tells how many there are; None where nothing is asked."""
        request = inputs["grower"].build_request(inputs["branch"], inputs["parent"])
        return None if request is None else str(request.keys[-1])


STORED_ANSWERS = StoredAnswers()


class AnswerStorage(WritableFileSystem):
    """Reads a branch's answers out of the store of completions, where whoever asks for them writes them."""

    _block_type_name = "MALT answers"
    _block_type_slug = "malt-answers"

    def read_path(self, path: str, **_: object) -> bytes:  # type: ignore[override]  # Prefect calls either kind
        """Return the result of the task run that is going on. Raises `LookupError` where the store lacks a sample."""
        context = TaskRunContext.get()
        if context is None:
            raise LookupError(f"{path}: answers are read by the task run that needs them")
        grower, branch, parent = (context.parameters[name] for name in ("grower", "branch", "parent"))
        request = grower.build_request(branch, parent)
        if not grower.is_stored(request):
            raise LookupError(f"{path}: not in the store")
        metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key=path)
        return ResultRecord(result=grower.expand(branch, parent, request), metadata=metadata).serialize()

    def write_path(self, path: str, content: bytes, **_: object) -> None:  # type: ignore[override]
        """Do nothing: the answers were stored as they came."""


async def save_answer_storage() -> AnswerStorage:
    """Return the storage, saved on the server, as Prefect wants it of whatever holds results."""
    storage = AnswerStorage()
    for wait_s in (0.1, 0.3, 1.0, 3.0, None):
        try:
            await storage.asave("malt", overwrite=True)
        except PrefectHTTPStatusError as error:  # another run is making its type, schema or document just now
            if wait_s is None or error.response.status_code != HTTPStatus.CONFLICT:
                raise
            await asyncio.sleep(wait_s)
        else:
            break
    return storage
