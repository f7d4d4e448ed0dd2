"""What `malt batches` prints for people."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from rich.markup import escape

from malt.cli.console.terminal import out

if TYPE_CHECKING:
    from malt.llm.store.batches import Batch


class BatchTold(NamedTuple):
    """What is told of a batch that is under way."""

    batch: str
    """The provider's name of it; where that is not known, our own: `malt_mark` in its metadata there."""
    dataset: str
    model: str
    api_base: str | None
    api_key_env: str | None
    since: str
    samples: int
    most_usd: float
    most_tokens: int


def batch_told(batch: "Batch", samples: int) -> BatchTold:
    """Return what is told of a batch."""
    return BatchTold(
        batch=batch.told,
        dataset=batch.dataset,
        model=batch.model,
        api_base=batch.api_base,
        api_key_env=batch.api_key_env,
        since=datetime.fromtimestamp(batch.planned_at, UTC).isoformat(timespec="seconds"),
        samples=samples,
        most_usd=batch.usd,
        most_tokens=batch.tokens,
    )


def show_batches(batches: Sequence[BatchTold], *, forgotten: bool) -> None:
    """Print which batches are under way, or were let go."""
    if not batches:
        out.print("no batch is under way")
    for batch in batches:
        place = f"{batch.model} at {batch.api_base}" if batch.api_base else batch.model
        cost = f", ${batch.most_usd:.4f}" if batch.most_usd else ""
        since_and_most = f"since {batch.since}, at most {batch.most_tokens:,} tokens{cost}"
        out.print(escape(f"{batch.batch}  {batch.dataset}, {place}, {batch.samples:,} samples, {since_and_most}"))
    if forgotten:
        out.print("let go here: its items are asked for again. What goes on at the provider is billed: cancel it there")
