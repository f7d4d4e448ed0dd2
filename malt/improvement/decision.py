"""Deciding whether trained roles are better than those before them: a pure function of answers, paired by question."""

from malt.config.base import Recorded
from malt.config.evaluate import EvaluateSpec
from malt.config.improve import ImproveSpec
from malt.evaluation.card import points
from malt.evaluation.statistics import Scores, paired_difference
from malt.evaluation.summary import Measure
from malt.evaluation.systems import require_evaluate
from malt.evaluation.table import make_sheets
from malt.evaluation.version import EvaluationVersion

CURRENT, CANDIDATE = "current", "candidate"
"""The systems of a round's evaluation: who grew its trees, and what was trained on them."""


class RoundDecision(Recorded):
    """Whether a round's models play from now on, and by how much they are better."""

    is_kept: bool
    """Whether the trained roles play from now on."""
    difference: float | None
    """What they have over those before them, by the measure that decides; None where no question is known of both."""
    low: float | None
    """Lower bound of its interval, which decides."""
    high: float | None
    questions: int

    @property
    def points(self) -> str:
        """The gain in points with its interval; empty where nothing could be compared."""
        if self.difference is None or self.low is None or self.high is None:
            return ""
        return points(self.difference, self.low, self.high)


def decide(candidate: Scores, current: Scores, spec: ImproveSpec) -> RoundDecision:
    """Keep what was trained only where the lower bound of its gain is above the margin, and the test finds a gain: of a
    handful of questions the bound alone says too much.
    """
    found = paired_difference(candidate, current, level=spec.level)
    if found is None:
        return RoundDecision(is_kept=False, difference=None, low=None, high=None, questions=0)
    return RoundDecision(
        is_kept=found.low > spec.margin and found.p <= 1 - spec.level,
        difference=found.difference,
        low=found.low,
        high=found.high,
        questions=found.questions,
    )


def judge_evaluation(version: EvaluationVersion, spec: ImproveSpec) -> RoundDecision:
    sheets = make_sheets(version.spec, version.answers, "chain")
    measure = choose_measure(spec, require_evaluate(version.spec))
    scores = {name: sheets[name].scores(measure) for name in (CANDIDATE, CURRENT)}
    return decide(scores[CANDIDATE], scores[CURRENT], spec)


def choose_measure(spec: ImproveSpec, evaluate: EvaluateSpec) -> Measure:
    return spec.measure or evaluate.measure
