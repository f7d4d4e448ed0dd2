"""What a run's summary says of its end."""

from pathlib import Path

import pytest

from malt.config.questions import QuestionSource
from malt.config.roles import Role
from malt.config.spec import CreditSpec, EvaluatorSpec, RunSpec
from malt.engine.build import Built, summarise
from malt.engine.job import read_job
from malt.engine.run import Filled
from malt.llm.budget import Tally
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from malt.trees.tree import FailedBranch
from tests.published import PROVENANCE, mixed_tree, publish, spec_of
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


def test_a_run_whose_version_is_not_made_latest_has_failed_and_says_why(tmp_path: Path) -> None:
    spec = spec_of().model_copy(update={"credit": CreditSpec(max_unknown=0)})
    version = publish([mixed_tree("q1")], spec, PROVENANCE, tmp_path)  # one of its leaves has no grade
    questions = QuestionSource(source=str(write_questions(tmp_path, 1)), format="gsm8k")
    job = read_job(RunSpec(name="arith", questions=questions, evaluator=EvaluatorSpec(kind=("number",))))
    summary = summarise(job, Filled(NOTHING_MISSING, Tally()), Built(version, ()), 1.0)
    assert summary.exit_code == 1
    assert summary.unknown == {"the judge's reply could not be read": 1}
    assert summary.sentence.startswith("arith@v1 was not made latest: the grade of 1 of 27 leaves is unknown")
    assert summary.suspicions
    assert "suspicious: the grade of 1 of 27 leaves is unknown" in summary.markdown
