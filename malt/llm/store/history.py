"""The store as it was: what was set aside since counts there, and what came in its place does not."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from malt.llm.store.samples import ASIDE, Store, StoredSample


class StoreThen(Store):
    """A store as of a moment, for reading."""

    def __init__(self, url: str, moment: datetime) -> None:
        super().__init__(url)
        self.moment = moment.timestamp()

    def rows(self, question_ids: Iterable[str]) -> dict[str, StoredSample]:
        """Return all rows of these questions by the keys that they had then."""
        answers: dict[str, list[StoredSample]] = {}
        for key, row in super().rows(question_ids).items():
            answers.setdefault(key.partition(ASIDE)[0], []).append(row)
        return {key: replace(self._held(rows), key=key) for key, rows in answers.items()}

    def _held(self, rows: list[StoredSample]) -> StoredSample:
        in_order = sorted(rows, key=lambda row: row.created_at)
        return next((row for row in reversed(in_order) if row.created_at <= self.moment), in_order[0])
