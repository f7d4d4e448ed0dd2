"""The `malt` command: its subcommands, error reports and exit codes.

Exit codes: 0 done, 1 failed branches or a failed check, 2 the command or the config is wrong, 3 stopped at a limit,
4 batches are still under way (--no-wait), 130 interrupted.
"""

import asyncio
import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from malt.cli import (
    configuring,
    evaluating,
    explaining,
    grading,
    lifecycle,
    runs,
    service,
    training,
    versions,
)
from malt.errors import MaltError, RunStopped
from malt.sanitize import escape_controls

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_MESSAGE = (
    "no room on the disk ({}); what was paid for is in the store, and no version is half written: "
    "make room, and run again"
)
_UNEXPECTED = 1
_INTERRUPTED = 130
_COMMANDS: Mapping[str, Sequence[click.Command]] = {
    "From questions to a dataset": (
        configuring.init, configuring.config, runs.plan, runs.run, runs.rerun, runs.assemble, runs.batches,
    ),
    "Look at a version": (
        versions.datasets, versions.show, versions.report, explaining.explain, explaining.diff, explaining.compare,
        versions.verify,
    ),
    "Grade": (grading.grade, grading.audit),
    "From a dataset to models": (
        training.train, training.models, training.serve_adapters, evaluating.evaluate, evaluating.evaluations,
        training.improve, service.serve,
    ),
    "Keep and share": (
        lifecycle.tag, lifecycle.export, lifecycle.push, lifecycle.rebuild, lifecycle.rm, lifecycle.gc,
    ),
    "Services": (service.up, service.doctor),
}  # fmt: skip
_LONGEST_ERROR = 400
"""Most characters shown of an unexpected error."""


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    _open_outputs()
    logging.getLogger("malt").addHandler(_StderrHandler())
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = exit_code(arguments, debug=len(arguments) < len(sys.argv) - 1)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _UNEXPECTED
    signal.signal(signal.SIGINT, lambda *_: os._exit(code))  # the work is done: no need to wait for Python's shutdown
    sys.exit(code)


def _open_outputs() -> None:
    """Make stdout and stderr accept any text in any encoding, even if they were closed from the start."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        getattr(sys, name).reconfigure(errors="backslashreplace")


class _StderrHandler(logging.Handler):
    """Prints the library's log lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, above any progress bars."""
        print(escape_controls(record.getMessage()), file=sys.stderr, flush=True)


def exit_code(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code; an error is one or two lines on stderr."""
    try:
        result = malt.main(arguments, prog_name="malt", standalone_mode=False)
    except MaltError as error:
        return _report(str(error), error.exit_code, debug=debug)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        message = re.sub(r"(?<![.?])$", ".", error.format_message())
        return _report(f"{message} See: {context.command_path if context else 'malt'} --help", 2, debug=debug)
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        from malt.engine.signals import MESSAGE

        return _report(MESSAGE, _INTERRUPTED, debug=debug)
    except OSError as error:
        if error.errno in _NO_ROOM:
            return _report(_NO_ROOM_MESSAGE.format(error.strerror), RunStopped.exit_code, debug=debug)
        return _report(f"the operating system refused: {error}; --debug shows where", 2, debug=debug)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_ERROR]}"
        return _report(f"{what} (not expected; --debug shows where)", _UNEXPECTED, debug=debug)
    return result if isinstance(result, int) else 0


def _report(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {escape_controls(message)}", file=sys.stderr)
    return code


class _Sections(click.Group):
    """A group whose help lists its commands by purpose, in the order of the work."""

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(str(each.name), each.get_short_help_str(limit=70)) for each in commands])


@click.group(
    cls=_Sections,
    commands=[command for commands in _COMMANDS.values() for command in commands],
    epilog="CONFIG is a dataset's TOML file. VERSION is NAME, NAME@v3, NAME@TAG or a folder. --debug shows tracebacks.",
)
@click.version_option(package_name="malt-trees")
def malt() -> None:
    """Train a generator, a verifier and a refiner that work in sequence: questions to trees, datasets and models."""
