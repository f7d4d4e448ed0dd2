"""Summary: the figures of an evaluation, as `summary.json` holds them. `summarise` computes them."""

from collections.abc import Iterator, Mapping
from typing import get_args

from malt.config.base import Recorded
from malt.config.evaluate import Measure

MEASURES: tuple[Measure, ...] = get_args(Measure)
TITLES: Mapping[str, str] = {
    "sa": "single agent",
    "sa_mv": "single agent, vote",
    "ma": "pipeline",
    "ma_mv": "pipeline, vote",
}


def is_vote(measure: Measure) -> bool:
    return measure.endswith("_mv")


def list_shown(chains: int) -> tuple[Measure, ...]:
    """Return the measures to show; votes are left out for one chain, where they equal its answer."""
    return MEASURES if chains > 1 else ("sa", "ma")


def write_title(measure: Measure, chains: int) -> str:
    """Name a way of answering, with the number of votes."""
    return f"{TITLES[measure]} of {chains}" if is_vote(measure) else TITLES[measure]


class Cell(Recorded):
    """Accuracy of one way of answering."""

    accuracy: float | None
    """Share of right answers, over the questions with a known result; None where there are none."""
    stderr: float | None
    """Standard error over questions: answers to one question count as one cluster."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    questions: int


class Compared(Recorded):
    """Difference of a system to the baseline, paired by question."""

    difference: float
    low: float
    """Lower end of the 95 % interval: a bootstrap over questions."""
    high: float
    p: float
    """P-value of a sign-flip test of the differences; for single votes that is McNemar's exact test."""
    p_holm: float
    """P-value corrected for the number of systems compared."""
    questions: int


class AnswerUsage(Recorded):
    """Usage of answers; None where a provider reported less."""

    tokens: int | None
    """Prompt and completion together."""
    completion_tokens: int | None
    cost_usd: float | None
    seconds: float
    """Sum of the latencies of all requests, as if one came after another."""
    tokens_per_question: float | None
    cost_per_question: float | None
    seconds_per_question: float
    tokens_per_right: float | None
    """Tokens for each right answer, before any vote; None where none is right."""
    cost_per_right: float | None
    seconds_per_right: float | None


class Flips(Recorded):
    """Numbers of chains, by whether the generator's answer and the final one are right."""

    wrong_to_right: int
    right_to_right: int
    wrong_to_wrong: int
    right_to_wrong: int
    unchanged: float | None
    """Share of final answers that repeat the generator's, of those where both give one."""


class Refining(Recorded):
    """Whether critique and refinement pay (arXiv 2604.22273)."""

    ecr: float | None
    """Errors corrected: share of wrong generations that end right."""
    eir: float | None
    """Errors introduced: share of right generations that end wrong."""
    threshold: float | None
    """Acc/(1 - Acc) of the generator: ECR/EIR must be above it."""
    pays: bool | None
    sentence: str


class Verdicts(Recorded):
    """The verifier's stated verdicts against the truth of the answers that they judge."""

    stated: int
    unstated: int
    sensitivity: float | None
    """Share of wrong answers that are called wrong."""
    specificity: float | None
    """Share of right answers that are called correct."""
    agreement: float | None
    """Share of stated verdicts that are true."""


class EqualTokens(Recorded):
    """A single agent with as many votes as it takes to write as many tokens as the pipeline does."""

    votes: int
    vote: Cell
    completion_tokens: int | None
    pipeline_completion_tokens: int | None
    pipeline_ahead: Compared | None
    """Difference of the pipeline's vote to this one."""


class Control(Recorded):
    """One chain a question at another temperature."""

    temperature: float
    sa: Cell
    ma: Cell


class SystemSummary(Recorded):
    """Figures of one system."""

    sa: Cell
    sa_mv: Cell
    ma: Cell
    ma_mv: Cell
    tokens: int | None
    """Tokens of all its chains, without the judge's."""
    cost_usd: float | None
    single: AnswerUsage
    """Usage of the generator alone."""
    pipeline: AnswerUsage
    flips: Flips
    refining: Refining
    verdicts: Verdicts
    by_seed: dict[str, dict[str, float | None]]
    """Accuracies by seed and measure; empty where there is one seed."""
    equal_tokens: EqualTokens | None = None
    control: Control | None = None

    def cells(self, chains: int) -> Iterator[tuple[str, Cell]]:
        """Yield the accuracies to show, and the further comparisons, by title."""
        yield from ((write_title(measure, chains), getattr(self, measure)) for measure in list_shown(chains))
        yield from self.beside()

    def beside(self) -> Iterator[tuple[str, Cell]]:
        """Yield the comparisons at equal tokens and at another temperature, by title."""
        if self.equal_tokens is not None:
            votes = self.equal_tokens.votes
            yield f"single agent, vote of {votes}: as many tokens as the pipeline", self.equal_tokens.vote
        if self.control is not None:
            yield f"single agent at temperature {self.control.temperature:g}", self.control.sa
            yield f"pipeline at temperature {self.control.temperature:g}", self.control.ma


class Worth(Recorded):
    """Worth of a model in a role: its systems' mean less that of the whole tournament, paired by question."""

    accuracy: float
    """Mean of the systems in which it plays the role."""
    worth: float
    low: float
    """Lower end of the 95 % interval: a bootstrap over questions."""
    high: float
    questions: int


class Choice(Recorded):
    """A way of answering, with its price and accuracy."""

    system: str
    way: str
    """`SA` or `MA`, and the number of votes."""
    tokens: float
    """Completion tokens per question."""
    cost_usd: float | None
    """Cost per question."""
    cell: Cell


class Summary(Recorded):
    """Figures of an evaluation."""

    evaluation: str
    questions: int
    chains: int
    seeds: tuple[int, ...]
    baseline: str
    measure: Measure
    systems: dict[str, SystemSummary]
    differences: dict[str, Compared]
    """Differences by `measure`, the deciding one, by system."""
    all_differences: dict[str, dict[str, Compared]]
    """Differences by measure, then by system."""
    frontier: tuple[Choice, ...]
    """Cost-accuracy frontier, from the cheapest on; under a budget choose the last one within it."""
    tournament: dict[str, dict[str, Worth]]
    """Worths by role and model; empty without a tournament."""
    dropped: dict[str, int]
    """Systems that a race dropped, with the number of questions that each was asked."""
    smallest_difference: dict[str, float | None]
    """Smallest differences that show with 80 % power: at 20 % discordant votes, and at each system's own share."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return list_shown(self.chains)

    @property
    def title(self) -> str:
        """Title of the deciding measure."""
        return TITLES[self.measure if self.measure in self.measures else self.measure.removesuffix("_mv")]
