"""Figures of dataset versions side by side: accuracy, training rows, tokens and cost."""

from malt.config.base import Recorded
from malt.config.roles import PLAYERS
from malt.datasets.rows.tables import Kind, count_rows
from malt.datasets.version.dataset_version import DatasetVersion


class Standing(Recorded):
    """Figures of one version; percentages come from its diagnostics, None where nothing was graded."""

    version: str
    questions: int
    """Questions with a whole tree."""
    generator_percent: float | None
    """Percentage of right generations."""
    refiner_percent: float | None
    """Percentage of right refinements."""
    generations_vote_percent: float | None
    leaves_vote_percent: float | None
    lift_points: float | None
    """Percentage of right refinements minus that of right generations."""
    mixed_percent: float | None
    """Percentage of questions with right and wrong leaves; only these give pairs."""
    rows: dict[Kind, int]
    """Number of training rows of all roles, by kind."""
    tokens: int | None
    """Prompt and completion tokens of all roles; None where a provider did not report them."""
    cost_usd: float | None
    tokens_per_sft_row: float | None
    cost_per_sft_row: float | None


def standing_of(version: DatasetVersion) -> Standing:
    manifest, found = version.manifest, version.manifest.diagnostics
    rows = count_rows(manifest.rows)
    used = [manifest.tokens[role] for role in PLAYERS]
    counts = [count for each in used for count in (each.prompt_tokens, each.completion_tokens) if count is not None]
    tokens = sum(counts) if len(counts) == 2 * len(used) else None
    cost = manifest.total_cost_usd
    return Standing(
        version=version.reference,
        questions=manifest.counts.complete,
        generator_percent=found.generator.percent,
        refiner_percent=found.refiner.percent,
        generations_vote_percent=found.generations_vote.percent,
        leaves_vote_percent=found.leaves_vote.percent,
        lift_points=found.flips.lift_points,
        mixed_percent=found.questions.mixed.percent,
        rows=rows,
        tokens=tokens,
        cost_usd=cost,
        tokens_per_sft_row=tokens / rows["sft"] if tokens is not None and rows["sft"] else None,
        cost_per_sft_row=cost / rows["sft"] if cost is not None and rows["sft"] else None,
    )
