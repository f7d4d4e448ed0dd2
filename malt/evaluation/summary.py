"""Summary: an evaluation in figures, as `summary.json` keeps them. How they are worked out is `summarise`."""

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
    """Return the measures that say something of their own: a vote of one chain is its answer."""
    return MEASURES if chains > 1 else ("sa", "ma")


def write_title(measure: Measure, chains: int) -> str:
    """Name a way of answering, with how many vote."""
    return f"{TITLES[measure]} of {chains}" if is_vote(measure) else TITLES[measure]


class Cell(Recorded):
    """How often one way of answering is right."""

    accuracy: float | None
    """Share of right answers, over the questions of which that is known; None where there are none."""
    stderr: float | None
    """Over questions: answers to one question count as one cluster."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    questions: int


class Compared(Recorded):
    """What a system has over the baseline, paired by question."""

    difference: float
    low: float
    """Lower end of the 95 % interval: a bootstrap over questions."""
    high: float
    p: float
    """Of flipping the signs of the differences; of single votes that is McNemar's exact test."""
    p_holm: float
    """Corrected for how many systems are compared."""
    questions: int


class AnswerUsage(Recorded):
    """What answers took; None where a provider told less."""

    tokens: int | None
    """Prompt and completion together."""
    completion_tokens: int | None
    cost_usd: float | None
    seconds: float
    """Of all requests, as if one came after another."""
    tokens_per_question: float | None
    cost_per_question: float | None
    seconds_per_question: float
    tokens_per_right: float | None
    """By right answers before any vote; None where none is right."""
    cost_per_right: float | None
    seconds_per_right: float | None


class Flips(Recorded):
    """Chains by what the generator's answer was and what the final one is."""

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
    """The verifier's stated verdicts against the truth of the answers below them."""

    stated: int
    unstated: int
    sensitivity: float | None
    """Share of wrong answers that are called wrong."""
    specificity: float | None
    """Share of right answers that are called correct."""
    agreement: float | None
    """Share of verdicts that are true."""


class EqualTokens(Recorded):
    """A single agent whose votes are as many as it takes to write as much as the pipeline does."""

    votes: int
    vote: Cell
    completion_tokens: int | None
    pipeline_completion_tokens: int | None
    pipeline_ahead: Compared | None
    """The pipeline's vote less this one."""


class Control(Recorded):
    """One chain a question at another temperature."""

    temperature: float
    sa: Cell
    ma: Cell


class SystemSummary(Recorded):
    """What was found of one system."""

    sa: Cell
    sa_mv: Cell
    ma: Cell
    ma_mv: Cell
    tokens: int | None
    """Of all its chains, without what the judge took."""
    cost_usd: float | None
    single: AnswerUsage
    """The generator's part."""
    pipeline: AnswerUsage
    flips: Flips
    refining: Refining
    verdicts: Verdicts
    by_seed: dict[str, dict[str, float | None]]
    """Accuracies of each repeat, by seed and measure."""
    equal_tokens: EqualTokens | None = None
    control: Control | None = None

    def cells(self, chains: int) -> Iterator[tuple[str, Cell]]:
        """Yield the measures that are shown, and what stands beside them, by title."""
        yield from ((write_title(measure, chains), getattr(self, measure)) for measure in list_shown(chains))
        yield from self.beside()

    def beside(self) -> Iterator[tuple[str, Cell]]:
        """Yield what stands beside the four measures, by title."""
        if self.equal_tokens is not None:
            votes = self.equal_tokens.votes
            yield f"single agent, vote of {votes}: as many tokens as the pipeline", self.equal_tokens.vote
        if self.control is not None:
            yield f"single agent at temperature {self.control.temperature:g}", self.control.sa
            yield f"pipeline at temperature {self.control.temperature:g}", self.control.ma


class Worth(Recorded):
    """What a model is worth in a role: its systems' mean less that of all the tournament's, paired by question."""

    accuracy: float
    """Mean of the systems in which it plays the role."""
    worth: float
    low: float
    """Lower end of the 95 % interval: a bootstrap over questions."""
    high: float
    questions: int


class Choice(Recorded):
    """A way of answering that nothing beats at its price."""

    system: str
    way: str
    """`SA` or `MA`, and how many votes."""
    tokens: float
    """Completion tokens of a question."""
    cost_usd: float | None
    """Of a question."""
    cell: Cell


class Summary(Recorded):
    """An evaluation in figures."""

    evaluation: str
    questions: int
    chains: int
    seeds: tuple[int, ...]
    baseline: str
    measure: Measure
    systems: dict[str, SystemSummary]
    differences: dict[str, Compared]
    """Of `measure`, by system."""
    all_differences: dict[str, dict[str, Compared]]
    """By measure, then by system."""
    frontier: tuple[Choice, ...]
    """From the cheapest on; under a budget choose the last one within it."""
    tournament: dict[str, dict[str, Worth]]
    """By role and model; empty where there was none."""
    dropped: dict[str, int]
    """Systems that a race dropped, and after how many questions."""
    smallest_difference: dict[str, float | None]
    """What these questions show with 80 % power: at 20 % discordant votes, and at each system's own."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return list_shown(self.chains)

    @property
    def title(self) -> str:
        """What the deciding measure is called."""
        return TITLES[self.measure if self.measure in self.measures else self.measure.removesuffix("_mv")]
