"""Measurements in a manifest: counts of trees, texts, answers and rows, their lengths, tokens and cost."""

from typing import Literal

from pydantic import Field

from malt.config.base import Recorded
from malt.config.roles import Role


class Tokens(Recorded):
    """Tokens of one role's completions in a version, whichever run requested them."""

    completions: int = 0
    prompt_tokens: int | None = 0
    """None where one completion's count is unknown."""
    completion_tokens: int | None = 0
    """None where one completion's count is unknown."""


class Cost(Recorded):
    """Cost of one role's completions in a version, whichever run paid for them."""

    cost_usd: float | None = 0.0
    """None where one completion's cost is unknown."""
    known: int = 0
    """Number of completions whose cost is known."""
    known_usd: float = 0.0
    """Cost of those completions."""


class LedgerEntry(Recorded):
    """Tokens and cost of a version's completions by one model in one role in one run."""

    run: str
    """Start of the run, and part of its id; empty where the store does not record it."""
    role: Role
    model: str
    """The model that answered, as the provider names it."""
    tokens: Tokens
    cost: Cost


class LabelCounts(Recorded):
    """One role's nodes by label."""

    right: int = 0
    wrong: int = 0
    none: int = 0
    """Nodes without a known leaf below them."""


class Counts(Recorded):
    """Size of a version; nodes, statuses, outcomes and labels are those of complete trees only."""

    questions: int = 0
    complete: int = 0
    failed_branches: int = 0
    nodes: dict[str, int]
    """Nodes by role."""
    statuses: dict[str, int]
    """Nodes by the status of their text: `ok`, `truncated`, `empty` or `refused`."""
    outcomes: dict[str, int]
    """Leaves by the outcome of their grade."""
    labels: dict[str, LabelCounts]
    """Labels by role."""


class RowCounts(Recorded):
    """One role's candidates for one kind of row; `kept` and `dropped` add up to `candidates`."""

    candidates: int = 0
    kept: int = 0
    dropped: dict[str, int]
    """Candidates by the gate that dropped them, in the order of the gates."""


class LengthCounts(Recorded):
    """Lengths of the rows of one kind, in tokens of the prompt and of the longest completion."""

    rows: int = 0
    mean: float = 0.0
    median: int = 0
    p95: int = 0
    longest: int = 0


class LengthBias(Recorded):
    """Lengths of the chosen texts of one role's pairs, compared with the rejected ones."""

    pairs: int = 0
    chosen_characters: float = 0.0
    """Mean length of the chosen texts."""
    rejected_characters: float = 0.0
    """Mean length of the rejected texts."""
    chosen_longer: int = 0
    """Pairs whose chosen text is the longer one."""
    chosen_shorter: int = 0


class GrowthSummary(Recorded):
    """Extent to which full trees were grown, and its effect on the values."""

    mode: Literal["full", "adaptive"]
    confidence: float | None
    """Adaptive growth: confidence that a label equals the full tree's, at which growth stops. None in full trees."""
    nodes: int
    nodes_in_full: int
    """Number of nodes in full trees of the same questions."""
    values: str
    """Description of what a node's value estimates, and whether it is unbiased."""


class Share(Recorded):
    """Count, and its share of a whole."""

    count: int = 0
    percent: float | None = None
    """Percentage of the whole, to two decimals; None where the whole is empty."""


class Accuracy(Recorded):
    """Number of right answers. Unanswered ones are wrong; truncated ones count as `[credit] truncated` says."""

    right: int = 0
    wrong: int = 0
    unknown: int = 0
    percent: float | None = None
    """Percentage of right answers among right and wrong ones, to two decimals; None where there are neither."""
    low: float | None = None
    """Lower end of the 95 % interval of `percent`; it allows for the correlation of answers to one question."""
    high: float | None = None
    """Upper end of the interval."""


class Values(Recorded):
    """Histogram of one role's node values in ten bins; a value on a border is in the bin above it, 1 in the last."""

    right: tuple[int, ...]
    """Nodes labelled right."""
    wrong: tuple[int, ...]
    """Nodes labelled wrong."""


class FlipTable(Recorded):
    """Leaves by whether their generation's answer and their own are right, as in the paper's flip table.

    Counts only leaves for which the diagnosis knows both.
    """

    wrong_to_right: Share
    right_to_right: Share
    wrong_to_wrong: Share
    right_to_wrong: Share
    lift_points: float | None
    """Share wrong to right minus share right to wrong, in percentage points."""


class VerdictTable(Recorded):
    """Critiques by the last verdict that they state, and by whether the answer that they criticise is right."""

    correct_on_right: int = 0
    correct_on_wrong: int = 0
    wrong_on_right: int = 0
    wrong_on_wrong: int = 0
    unstated: int = 0
    """Critiques that state no verdict, of answers known to be right or wrong."""
    agree: Share
    """True verdicts, among those stated about answers known to be right or wrong."""


class TextCounts(Recorded):
    """One model's texts in one role, and the flaws among them."""

    nodes: int = 0
    truncated: Share
    empty: Share
    refused: Share
    stop_tokens: Share = Share()
    """Texts that ended with stop tokens of a chat template; rows leave the tokens out."""
    unanswered: Share | None
    """Texts without a readable final answer; None where none is expected: critiques, and generations not diagnosed."""


class QuestionMix(Recorded):
    """Questions by the labels of their known leaves. Only mixed ones can give pairs."""

    all_right: Share
    all_wrong: Share
    mixed: Share
    unknown: Share
    """Questions without a known leaf."""


class Diagnostics(Recorded):
    """Measurements of the roles' quality. They do not affect the credit."""

    graders: tuple[str, ...]
    """Graders of the diagnosis, the same for generations and refinements: those of the config except the judge.

    Where the judge is the only grader: the judge if its scope is `all`, else none.
    """
    generator: Accuracy
    """Accuracy of the generations, by the diagnosis."""
    refiner: Accuracy
    """Accuracy of the refinements, by the diagnosis."""
    leaves: Accuracy
    """Accuracy of the refinements, by the grades that give credit."""
    generations_vote: Accuracy
    """Questions whose most frequent answer among the generations is right, by the diagnosis."""
    leaves_vote: Accuracy
    """Questions whose most frequent answer among the leaves is right, by the grades that give credit."""
    any_leaf: Accuracy
    """Questions with at least one right leaf, by the grades that give credit."""
    values: dict[str, Values]
    """Node values by role."""
    flips: FlipTable
    verdicts: VerdictTable
    unchanged: Share
    """Leaves that repeat their generation's answer, of those where both give one."""
    texts: dict[str, dict[str, TextCounts]]
    """Texts by role, then by the model that answered."""
    unknown: dict[str, int] = Field(default_factory=dict)
    """Leaves of unknown grade, by the reason without its quotations; the most frequent reasons first."""
    graded_by: dict[str, int]
    """Leaves by the kind of grader that decided; truncated leaves and those of unknown grade are left out."""
    unread: Share = Share()
    """Leaves that are wrong because no grader could read the whole of their answer."""
    disputed: Share = Share()
    """Leaves on which two ways of comparing mathematics disagree."""
    questions: QuestionMix
