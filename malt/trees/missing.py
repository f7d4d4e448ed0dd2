"""Survey: which questions' trees the store holds whole, so that nobody need be asked about them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from threading import Event
from typing import NamedTuple

from malt.concurrency import gather_in_turn
from malt.config.spec import Role, RunSpec
from malt.llm.client.completers import RecordingCompleter, make_store_completer
from malt.llm.usage import Tally, Usage
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question
from malt.trees.pipeline import ask_all, asks_judge
from malt.trees.replay import Source, Window, collecting_seldom, made_of_each, windows

WINDOW = 50
"""Questions looked at in one go."""


class Surveyed(NamedTuple):
    """What the store has of some questions."""

    lacking: Sequence[Question]
    """Those whose trees, or their grades, are not whole."""
    had: Mapping[Role, int]
    """The samples that the other questions' trees are made of, by role."""


class Lacking:
    """The questions that the store does not answer as yet; what it has of the others is counted meanwhile."""

    def __init__(self, questions: Sequence[Question], source: Source, above: Tally) -> None:
        self.questions = questions
        self.source = source
        self.had = Tally(above=above)
        """The samples that whole trees are made of, as far as those were looked at."""
        self._stopped = Event()

    def __iter__(self) -> Iterator[Question]:
        """Yield them as it shows that they lack something."""
        return chain.from_iterable(self._parts())

    def batches(self, size: int) -> Iterator[list[Question]]:
        """Yield them so many at a time; the first do not wait for those that must be looked at."""
        parts = self._parts()
        return chain(cut(next(parts), size), cut(chain.from_iterable(parts), size))

    def stop(self) -> None:
        """Look no further."""
        self._stopped.set()

    def _parts(self) -> Iterator[Sequence[Question]]:
        for part in survey(self.questions, self.source):
            for role, samples in part.had.items():
                self.had.add(role, Usage(cached_completions=samples))
            yield part.lacking
            if self._stopped.is_set():
                return


def cut(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Cut questions into batches."""
    left = iter(questions)
    return iter(lambda: list(islice(left, size)), [])


def survey(questions: Sequence[Question], source: Source) -> Iterator[Surveyed]:
    """Yield questions as it shows what they lack: first, at once, those of which the store has too little anyway."""
    with source.open_store() as store:
        rows = store.count(question.question_id for question in questions)
    least = least_rows(source.spec)
    yield Surveyed([question for question in questions if rows[question.question_id] < least], {})
    begun = [question for question in questions if rows[question.question_id] >= least]
    grades = asks_judge(source.spec) or source.spec.growth.mode == "adaptive"
    yield from made_of_each(survey_window, windows(begun, WINDOW), source, grades=grades)


def least_rows(spec: RunSpec) -> int:
    """Rows below which no tree is whole."""
    return sum(nodes_per_question(spec).values()) if spec.growth.mode == "full" else 1


@collecting_seldom()
def survey_window(window: Window, source: Source) -> Surveyed:
    """Grow some questions' trees again, and their judge's grades, as far as the store goes."""
    with source.open_store() as store:
        noted = RecordingCompleter(make_store_completer(store, [question.question_id for question in window]))
    shortfall = asyncio.run(ask_all(window, source.spec, source.prompts, noted, wait=gather_in_turn))
    lacking = {branch.question_id for branch in shortfall.failures}
    whole = [request for request in noted.requests if request.question_id not in lacking]
    had = Counter(role for _, role in {(key, request.role) for request in whole for key in request.keys})
    return Surveyed([question for question in window if question.question_id in lacking], had)
