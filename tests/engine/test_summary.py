"""What a run's summary says of its end."""

from pathlib import Path

import pytest

from malt.config.spec import EvaluatorSpec, QuestionSource, Role, RunSpec
from malt.engine.job import read_job
from malt.engine.run import Filled
from malt.engine.summary import summarise
from malt.llm.usage import Tally
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from malt.trees.tree import FailedBranch
from tests.specs import write_questions

FAILED = Shortfall((FailedBranch("q1", "0", Role.VERIFIER, "it is down"),), None)
STOPPED = Shortfall((), "the budget is spent")


@pytest.mark.parametrize(
    ("shortfall", "code", "said"),
    [
        (NOTHING_MISSING, 1, "no version: the store has no whole tree of 3 questions"),
        (FAILED, 1, "1 failed branches, 2 of 3 questions complete"),
        (STOPPED, 3, "stopped: the budget is spent; 0 of 3 questions complete"),
    ],
)
def test_a_run_without_a_version_has_failed(tmp_path: Path, shortfall: Shortfall, code: int, said: str) -> None:
    questions = QuestionSource(source=str(write_questions(tmp_path, 3)), format="gsm8k")
    job = read_job(RunSpec(name="sums", questions=questions, evaluator=EvaluatorSpec(kind=("number",))))
    summary = summarise(job, Filled(shortfall, Tally()), None, 1.0)
    assert summary.exit_code == code
    assert summary.sentence.startswith(said)
