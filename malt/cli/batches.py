"""The command about what lies with providers: `batches`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from malt.cli.options import takes_json
from malt.errors import ConfigError

if TYPE_CHECKING:
    from malt.llm.store.batches import Batch


@click.command()
@click.argument("name", required=False)
@click.option(
    "--forget", "names", multiple=True, metavar="BATCH", help="Let it go: its items are asked and paid for again."
)
@takes_json
def batches(name: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """List the batches that are under way. Those of NAME, or all; --forget lets one go that nobody can collect."""
    from malt.cli.console import terminal
    from malt.cli.console.batches import batch_told, show_batches
    from malt.config.settings import Settings
    from malt.llm.store.batches import BatchStore
    from malt.llm.store.samples import Store

    with Store(Settings().store) as store:
        book = BatchStore(store)
        listed = book.under_way(name)
        samples = book.samples()
        forgotten = [named(listed, told) for told in names]
        for batch in forgotten:
            book.forget(batch.mark)
    told = [batch_told(batch, samples.get(batch.mark, 0)) for batch in forgotten or listed]
    if as_json:
        terminal.emit({"forgotten": bool(forgotten), "batches": [batch._asdict() for batch in told]})
    else:
        show_batches(told, forgotten=bool(forgotten))


def named(listed: Sequence["Batch"], told: str) -> "Batch":
    """Return the open batch of a name, the provider's or our own. Raises `ConfigError` where there is none."""
    for batch in listed:
        if told in (batch.batch_id, batch.mark):
            return batch
    raise ConfigError(f"--forget {told}: no such batch is under way; malt batches lists those that are")
