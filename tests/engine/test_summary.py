"""What a run's summary says of its end."""

import pytest

from malt.config.spec import Role
from malt.engine.summary import summarise
from malt.llm.usage import Tally
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from malt.trees.tree import FailedBranch

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
def test_a_run_without_a_version_has_failed(shortfall: Shortfall, code: int, said: str) -> None:
    summary = summarise("sums", 3, Tally(), shortfall, None, 1.0)
    assert summary.exit_code == code
    assert summary.sentence.startswith(said)
