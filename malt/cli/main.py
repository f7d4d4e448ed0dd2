"""The `malt` command: its subcommands, which are in `commands`, and how it ends.

Exit codes: 0 done, 1 failed branches or a check that did not hold, 2 the command or the config is wrong, 3 stopped at a
limit, 4 batches are under way and nobody was to wait for them, 130 interrupted.
"""

import asyncio
import errno
import logging
import os
import sys
import traceback
from pathlib import Path

import click

from malt.cli import batches, exporting, grading, lifecycle, pushing, runs, service, training, versions
from malt.errors import MaltError, RunStopped
from malt.sanitize import escape_controls

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOTHING_LOST = "what was paid for is in the store, and no version is half written: make room, and run again"
UNEXPECTED = 1
INTERRUPTED = 130
COMMANDS = [
    *(runs.plan, runs.run, runs.assemble, batches.batches),
    *(versions.datasets, versions.show, versions.report, versions.explain, versions.diff, versions.verify),
    *(lifecycle.tag, lifecycle.rebuild, lifecycle.rm, lifecycle.gc),
    *(exporting.export, pushing.push),
    *(training.train, training.models),
    *(grading.grade, grading.audit),
    *(service.up, service.doctor),
]
MOST_CHARACTERS = 400
"""Of what an error that nobody foresaw says."""


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    open_outputs()
    logging.getLogger("malt").addHandler(OnStderr())
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = exit_code(arguments, debug=len(arguments) < len(sys.argv) - 1)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along, like `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = UNEXPECTED
    sys.exit(code)


def open_outputs() -> None:
    """Make stdout and stderr take anything: in any encoding, and where they were closed from the start."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        getattr(sys, name).reconfigure(errors="backslashreplace")


class OnStderr(logging.Handler):
    """Prints what the library has to say while it works."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, above the progress bars where there are any."""
        print(escape_controls(record.getMessage()), file=sys.stderr, flush=True)


def exit_code(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code; an error is one or two lines on stderr."""
    try:
        result = malt.main(arguments, prog_name="malt", standalone_mode=False)
    except MaltError as error:
        return failed(str(error), error.exit_code, debug=debug)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        return failed(f"{error.format_message()} See: malt --help", 2, debug=debug)
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        from malt.engine.signals import MESSAGE

        return failed(MESSAGE, INTERRUPTED, debug=debug)
    except OSError as error:
        if error.errno in NO_ROOM:
            return failed(f"no room on the disk ({error.strerror}); {NOTHING_LOST}", RunStopped.exit_code, debug=debug)
        return failed(f"the operating system refused: {error}; --debug shows where", 2, debug=debug)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_CHARACTERS]}"
        return failed(f"{what} (not expected; --debug shows where)", UNEXPECTED, debug=debug)
    return result if isinstance(result, int) else 0


def failed(message: str, code: int, *, debug: bool) -> int:
    """Say what went wrong."""
    if debug:
        traceback.print_exc()
    print(f"error: {escape_controls(message)}", file=sys.stderr)
    return code


@click.group(
    commands=COMMANDS,
    epilog="CONFIG is a dataset's TOML file. VERSION is NAME, NAME@v3, NAME@TAG or a folder. --debug shows tracebacks.",
)
@click.version_option(package_name="malt-trees")
def malt() -> None:
    """Grow MALT trees with any model in any role, and write versioned training datasets."""
