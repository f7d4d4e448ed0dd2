"""The command about what lies with providers: `batches`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from malt.cli import terminal
from malt.cli.options import takes_json
from malt.errors import ConfigError

if TYPE_CHECKING:
    from malt.llm.store.batches import Batch


@click.command()
@click.argument("name", required=False)
@click.option("--forget", multiple=True, metavar="BATCH", help="Let it go: its items are asked and paid for again.")
@takes_json
def batches(name: str | None, forget: tuple[str, ...], as_json: bool) -> None:
    """List the batches that are under way. Those of NAME, or all; --forget lets one go that nobody can collect."""
    from malt.config.settings import Settings
    from malt.llm.store.batches import BatchStore
    from malt.llm.store.samples import Store

    with Store(Settings().store) as store:
        book = BatchStore(store)
        listed = book.list_open(name)
        samples = book.count_samples()
        forgotten = [_find_batch(listed, told) for told in forget]
        for batch in forgotten:
            book.forget(batch.mark)
    rows = [_describe(batch, samples.get(batch.mark, 0)) for batch in forgotten or listed]
    if as_json:
        terminal.emit({"forgotten": bool(forgotten), "batches": rows})
    else:
        _show_batches(rows, forgotten=bool(forgotten))


def _find_batch(listed: Sequence["Batch"], name: str) -> "Batch":
    """Return the open batch of a name, the provider's or our own."""
    for batch in listed:
        if name in (batch.batch_id, batch.mark):
            return batch
    raise ConfigError(f"--forget {name}: no such batch is under way; malt batches lists those that are")


def _describe(batch: "Batch", samples: int) -> dict[str, Any]:
    """Describe a batch; `batch` is the provider's name, else our own: `malt_mark` in its metadata there."""
    return {
        "batch": batch.label,
        "dataset": batch.dataset,
        "model": batch.model,
        "api_base": batch.api_base,
        "api_key_env": batch.api_key_env,
        "since": datetime.fromtimestamp(batch.planned_at, UTC).isoformat(timespec="seconds"),
        "samples": samples,
        "most_usd": batch.usd,
        "most_tokens": batch.tokens,
    }


def _show_batches(rows: Sequence[dict[str, Any]], *, forgotten: bool) -> None:
    if not rows:
        terminal.say("no batch is under way")
    for row in rows:
        place = f"{row['model']} at {row['api_base']}" if row["api_base"] else row["model"]
        cost = f", ${row['most_usd']:.4f}" if row["most_usd"] else ""
        most = f"since {row['since']}, at most {row['most_tokens']:,} tokens{cost}"
        terminal.say(f"{row['batch']}  {row['dataset']}, {place}, {row['samples']:,} samples, {most}")
    if forgotten:
        terminal.say("forgotten: its items are asked for again. The provider still bills this batch; cancel it there")
