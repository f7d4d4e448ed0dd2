"""What `malt export` and `malt push` print for people."""

from typing import TYPE_CHECKING

from rich.markup import escape

from malt.cli.console.terminal import err, from_here, out, show_rows

if TYPE_CHECKING:
    from malt.datasets.export.export import Exported
    from malt.datasets.push.files import Pushed


def show_export(exported: "Exported") -> None:
    """Print what was written, and what the format left out."""
    receipt = exported.receipt
    out.print(f"{receipt.reference} as {receipt.format}: {escape(from_here(str(exported.path)))}")
    show_rows({file.path: file.rows for file in receipt.files})
    for file in receipt.files:
        if file.left_out:
            counted = ", ".join(f"{count:,} {why}" for why, count in sorted(file.left_out.items()))
            out.print(f"  left out of {file.path}: {counted}")


def show_export_warnings(exported: "Exported") -> None:
    """Print on stderr what the tool will not like, and which files are not there for want of rows."""
    for warning in exported.warnings:
        err.print(f"warning: {warning}")
    splits = {"train", *(file.split for file in exported.receipt.files)}
    empty = [file.path for file in exported.receipt.empty if file.split in splits]
    if empty:
        err.print(f"warning: not written, as they would have no rows: {', '.join(empty)}")


def show_pushed(pushed: "Pushed") -> None:
    """Print what a push came to."""
    readers = {None: "", True: " (private)", False: " (public)"}[pushed.private]
    if pushed.sent:
        out.print(f"{pushed.version} is at {escape(pushed.url)}{readers}")
        out.print(f"  sent      {pushed.sent} files, {pushed.bytes:,} bytes; {pushed.skipped} were there already")
    else:
        out.print(f"{pushed.version} was at {escape(pushed.url)}{readers} already; nothing was sent")
    out.print(f"  verified  {pushed.verified} files by their digests there")
