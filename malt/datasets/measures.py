"""What a manifest measures: trees, texts, answers, rows, tokens and dollars."""

from typing import Literal

from pydantic import Field

from malt.config.base import Recorded
from malt.config.roles import Role


class Tokens(Recorded):
    """What one role's completions in a version took, whichever run asked for them."""

    completions: int = 0
    prompt_tokens: int | None = 0
    """None where one completion's count is unknown."""
    completion_tokens: int | None = 0
    """None where one completion's count is unknown."""


class Cost(Recorded):
    """What one role's completions in a version cost, whichever run paid for them."""

    cost_usd: float | None = 0.0
    """None where one completion's cost is unknown."""
    known: int = 0
    """How many completions' cost is known."""
    known_usd: float = 0.0
    """What those cost."""


class LedgerEntry(Recorded):
    """What one model in one role gave a version in one run."""

    run: str
    """When the run began, and part of its id; empty where the store does not say."""
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
    """No leaf below is known."""


class Counts(Recorded):
    """How much there is; nodes, outcomes and labels count complete trees only."""

    questions: int = 0
    complete: int = 0
    failed_branches: int = 0
    nodes: dict[str, int]
    """By role."""
    statuses: dict[str, int]
    """Nodes by the kind of their text."""
    outcomes: dict[str, int]
    """Leaves by what became of them."""
    labels: dict[str, LabelCounts]
    """By role."""


class RowCounts(Recorded):
    """What became of one role's candidates for one kind of row: kept and dropped add up to all of them."""

    candidates: int = 0
    kept: int = 0
    dropped: dict[str, int]
    """By the gate that dropped them, in the order of the gates."""


class LengthCounts(Recorded):
    """How long the rows of one kind are, in tokens of the prompt and of the longest completion."""

    rows: int = 0
    mean: float = 0.0
    median: int = 0
    p95: int = 0
    longest: int = 0


class LengthBias(Recorded):
    """How much longer the chosen texts of one role's pairs are than the rejected ones."""

    pairs: int = 0
    chosen_characters: float = 0.0
    """Mean of the chosen texts."""
    rejected_characters: float = 0.0
    """Mean of the rejected texts."""
    chosen_longer: int = 0
    """Pairs whose chosen text is the longer one."""
    chosen_shorter: int = 0


class GrowthSummary(Recorded):
    """How much of the trees was grown, and what that means for the values."""

    mode: Literal["full", "adaptive"]
    confidence: float | None
    """Adaptive: how sure it was that a label is the full tree's when it stopped."""
    nodes: int
    nodes_in_full: int
    """What full trees of the same questions have."""
    values: str
    """What a node's value estimates, and whether it is unbiased."""


class Share(Recorded):
    """Part of a whole."""

    count: int = 0
    percent: float | None = None
    """Of the whole, to two decimals; None where the whole is empty."""


class Accuracy(Recorded):
    """How many answers are right. Unanswered ones are wrong; cut off ones are what `[credit] truncated` says."""

    right: int = 0
    wrong: int = 0
    unknown: int = 0
    percent: float | None = None
    """Right among right and wrong, to two decimals; None where there are none."""
    low: float | None = None
    """Lower end of its 95 % interval over questions: answers to one question count as no more alike than they are."""
    high: float | None = None
    """Upper end."""


class Values(Recorded):
    """One role's valued nodes by tenths of value; a value on a border belongs to the tenth above it, 1 to the last."""

    right: tuple[int, ...]
    """Nodes labelled right."""
    wrong: tuple[int, ...]
    """Nodes labelled wrong."""


class FlipTable(Recorded):
    """Leaves by what their generation's answer was and what theirs is, as in the paper's flip table.

    Only those of which both are known, by the diagnosis.
    """

    wrong_to_right: Share
    right_to_right: Share
    wrong_to_wrong: Share
    right_to_wrong: Share
    lift_points: float | None
    """Right refinements less right generations over these leaves, in percentage points: fixed less broken."""


class VerdictTable(Recorded):
    """Critiques by the verdict in their last line that states one, against the truth of the answer they criticise."""

    correct_on_right: int = 0
    correct_on_wrong: int = 0
    wrong_on_right: int = 0
    wrong_on_wrong: int = 0
    unstated: int = 0
    """Critiques, of answers whose truth is known, that state no verdict."""
    agree: Share
    """Verdicts that say what is true, of those stated."""


class TextCounts(Recorded):
    """What one model's texts in one role are like."""

    nodes: int = 0
    truncated: Share
    empty: Share
    refused: Share
    stop_tokens: Share = Share()
    """Texts that ended with stop tokens of a chat template; rows leave those out."""
    unanswered: Share | None
    """No final answer could be read; None where none is looked for: critiques, and generations nobody diagnosed."""


class QuestionMix(Recorded):
    """Questions by the labels of their known leaves. Only mixed ones can give pairs."""

    all_right: Share
    all_wrong: Share
    mixed: Share
    unknown: Share
    """No leaf is known."""


class Diagnostics(Recorded):
    """What the trees say about the roles. None of it is part of the credit."""

    graders: tuple[str, ...]
    """The graders of the diagnosis, the same for generations and refinements: the config's without the judge.

    Only the judge where there is no other and its scope is all; where there is no other and it is not, nobody.
    """
    generator: Accuracy
    """Of the generations, by the diagnosis."""
    refiner: Accuracy
    """Of the refinements, by the diagnosis."""
    leaves: Accuracy
    """Of the refinements, by the grades that count."""
    generations_vote: Accuracy
    """Of questions: whether the answer that most generations give is right, by the diagnosis."""
    leaves_vote: Accuracy
    """Of questions: whether the answer that most leaves give is right, by the grades that count."""
    any_leaf: Accuracy
    """Of questions: whether any leaf is right, by the grades that count."""
    values: dict[str, Values]
    """By role."""
    flips: FlipTable
    verdicts: VerdictTable
    unchanged: Share
    """Leaves that give their generation's answer again, of those where both give one."""
    texts: dict[str, dict[str, TextCounts]]
    """By role, then by the model that answered."""
    unknown: dict[str, int] = Field(default_factory=dict)
    """Leaves whose grade is unknown by the reason, quotations left out; the most frequent reasons first."""
    graded_by: dict[str, int]
    """Leaves by the kind of grader that decided; truncated and unknown ones were decided by nobody."""
    unread: Share = Share()
    """Leaves that are wrong because no grader could read the whole of their answer."""
    disputed: Share = Share()
    """Leaves on which two ways of comparing mathematics disagree."""
    questions: QuestionMix
