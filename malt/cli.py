"""The `malt` command: reads what the user typed, calls the library or a flow, and says what came of it.

How things look is in console.py. Exit codes: 0 done, 1 failed branches or a check that did not hold, 2 the command or
the config is wrong, 3 stopped at a limit, 130 interrupted.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from malt.errors import ConfigError, MaltError
from malt.visible import visible

if TYPE_CHECKING:
    from malt.inputs import Inputs
    from malt.spec import RunSpec
    from malt.summary import RunSummary

F = TypeVar("F", bound=Callable[..., Any])

UNEXPECTED = 1
INTERRUPTED = 130
MOST_CHARACTERS = 400
"""Of what an error that nobody foresaw says."""


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    open_outputs()
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
        from malt.interruption import MESSAGE

        return failed(MESSAGE, INTERRUPTED, debug=debug)
    except OSError as error:
        return failed(f"the operating system refused: {error}; --debug shows where", 2, debug=debug)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_CHARACTERS]}"
        return failed(f"{what} (not expected; --debug shows where)", UNEXPECTED, debug=debug)
    return result if isinstance(result, int) else 0


def failed(message: str, code: int, *, debug: bool) -> int:
    """Say what went wrong."""
    if debug:
        traceback.print_exc()
    print(f"error: {visible(message)}", file=sys.stderr)
    return code


def takes_config(command: F) -> F:
    """Give a command its CONFIG argument, and the options that change it."""
    for add in (
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N questions."),
        click.option(
            "-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key by dotted path."
        ),
        click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG"),
    ):
        command = add(command)
    return command


def takes_grading(command: F) -> F:
    """Give a command the config that declares its graders, and the option that changes it."""
    for add in (
        click.option("-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key of C."),
        click.option("--config", type=click.Path(path_type=Path), metavar="C", help="Take the evaluator of a config."),
    ):
        command = add(command)
    return command


takes_version = click.argument("version", metavar="VERSION")
takes_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")


@click.group(epilog="CONFIG is a dataset's TOML file. VERSION is NAME, NAME@v3 or a folder. --debug shows tracebacks.")
@click.version_option(package_name="malt-trees")
def malt() -> None:
    """Grow MALT trees with any model in any role, and write versioned training datasets."""


@malt.command()
@takes_config
@takes_json
def plan(config: Path, override: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """Quote a run without a model call: requests, completions, tokens, cost, and what the store already holds."""
    from malt import console
    from malt.llm.store import Store
    from malt.plan import plan as quote
    from malt.settings import Settings

    spec, inputs = declared(config, override, limit)
    with Store(Settings().store) as store:
        quoted = quote(inputs, spec, store)
    console.emit(quoted.model_dump(mode="json")) if as_json else console.show_plan(quoted)


@malt.command()
@takes_config
@takes_json
def run(config: Path, override: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Grow, grade and publish; asks only for what the store does not hold."""
    from malt import console
    from malt.inputs import check_models

    spec, inputs, wait_for_prefect = begun(config, override, limit)
    check_models(spec)
    with console.progress(spec, len(inputs.questions)):
        summary = flow_summary("generate", spec, wait_for_prefect)
    return finish(summary, as_json=as_json)


@malt.command()
@takes_config
@takes_json
def assemble(config: Path, override: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Make a dataset version from what the store holds; generator, verifier and refiner are not asked."""
    spec, _, wait_for_prefect = begun(config, override, limit)
    return finish(flow_summary("assemble", spec, wait_for_prefect), as_json=as_json)


@malt.command()
@click.argument("name", required=False)
@takes_json
def datasets(name: str | None, as_json: bool) -> None:
    """List versions: number, rows per file, content digest, date."""
    from malt import console
    from malt.datasets.version import list_versions
    from malt.settings import Settings

    versions = list_versions(Settings().datasets_dir, name)
    console.emit(console.listing(versions)) if as_json else console.show_versions(versions)


@malt.command()
@takes_version
@click.argument("question_id", required=False)
@takes_json
def show(version: str, question_id: str | None, as_json: bool) -> None:
    """Show what is in a version, or one question's tree with grades and values."""
    from malt import console
    from malt.datasets.version import open_version

    opened = open_version(version)
    if question_id is None:
        console.emit(opened.manifest.model_dump(mode="json")) if as_json else console.show_version(opened)
    elif as_json:
        nodes = json.loads(opened.tree_rows(question_id).to_json(orient="records"))
        console.emit({"version": opened.reference, "question_id": question_id, "nodes": nodes})
    else:
        console.show_tree(opened, question_id)


@malt.command()
@takes_version
@click.argument("row_id", metavar="ROW_ID")
@takes_json
def explain(version: str, row_id: str, as_json: bool) -> None:
    """Explain a training row, kept or left out, or a node (QUESTION_ID/2.0.1): texts, grades, arithmetic, gates."""
    from malt import console, console_versions
    from malt.datasets.explain import explain as explained
    from malt.datasets.version import open_version

    told = explained(open_version(version), row_id)
    console.emit(told.model_dump(mode="json")) if as_json else console_versions.show_explanation(told)


@malt.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@takes_json
def diff(old: str, new: str, as_json: bool) -> None:
    """Say what changed from version A to version B: inputs, and rows added, removed, relabelled, by question."""
    from malt import console, console_versions
    from malt.datasets.compare import compare
    from malt.datasets.version import open_version

    found = compare(open_version(old), open_version(new), None if as_json else console_versions.QUESTIONS_SHOWN)
    console.emit(found.model_dump(mode="json")) if as_json else console_versions.show_diff(found)


@malt.command()
@takes_version
@takes_json
def verify(version: str, as_json: bool) -> int:
    """Recompute every digest and invariant of a version; names what does not hold."""
    from malt import console
    from malt.datasets.verify import verify as problems_of
    from malt.datasets.version import open_version

    opened = open_version(version)
    problems = problems_of(opened)
    if as_json:
        console.emit({"version": opened.reference, "holds": not problems, "problems": [*problems]})
    else:
        console.show_verdict(opened, problems)
    return 1 if problems else 0


@malt.command()
@click.argument("file", metavar="FILE")
@click.option("--kind", "kinds", multiple=True, metavar="K", help="Grade by this kind; of several the first decisive.")
@takes_grading
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their grades: .jsonl or .parquet.")
@takes_json
def grade(
    file: str, kinds: tuple[str, ...], config: Path | None, override: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Grade rows of question, ground_truth, answer[, label]; with labels, say how far the grades agree with them."""
    from malt import console, console_grading
    from malt.grade_file import grade_file
    from malt.regrading import chosen_grading
    from malt.row_output import check_output, write_rows

    if out is not None:
        check_output(out)
    rows, report = grade_file(file, chosen_grading(kinds, config, override))
    if out is not None:
        write_rows((row.as_columns() for row in rows), out)
    console.emit(report.model_dump(mode="json")) if as_json else console_grading.show_grades(report)


@malt.command()
@takes_version
@click.option("--with", "kinds", multiple=True, required=True, metavar="K", help="A kind of grader; may be repeated.")
@takes_grading
@takes_json
def audit(version: str, kinds: tuple[str, ...], config: Path | None, override: tuple[str, ...], as_json: bool) -> None:
    """Grade a version's leaves again with other graders: where they differ, and what would change."""
    from malt import audit as auditing
    from malt import console, console_grading
    from malt.datasets.version import open_version
    from malt.regrading import declared_grading, grading_of, read_kinds

    opened = open_version(version)
    grading = declared_grading(config, override, otherwise=grading_of(opened.spec))
    report = auditing.audit(opened, grading, read_kinds(kinds, "--with"))
    console.emit(report.model_dump(mode="json")) if as_json else console_grading.show_audit(report)


def declared(config: Path, override: tuple[str, ...], limit: int | None) -> "tuple[RunSpec, Inputs]":
    """Read a config and all that it names, so that what is wrong with it is said at once."""
    from malt.config import load_spec
    from malt.inputs import read_inputs

    spec = load_spec(config, override, limit)
    return spec, read_inputs(spec)


def begun(config: Path, override: tuple[str, ...], limit: int | None) -> "tuple[RunSpec, Inputs, Callable[[], None]]":
    """Read a config and all that it names while a Prefect server starts; what comes last waits until that is up."""
    from malt.config import load_spec
    from malt.inputs import read_inputs
    from malt.private_prefect import connect
    from malt.settings import Settings

    spec = load_spec(config, override, limit)
    wait_for_prefect = connect(Settings().data_dir)
    return spec, read_inputs(spec), wait_for_prefect


def flow_summary(name: str, spec: "RunSpec", wait_for_prefect: Callable[[], None]) -> "RunSummary":
    """Run one of the flows here. Raises the flow's own error where it did not come to a summary."""
    from malt import interruption
    from malt.llm import provider

    flow = flow_named(name)
    if name == "generate":
        provider.warm_up()
    wait_for_prefect()
    result = interruption.run(ended(flow, spec))
    if isinstance(result, BaseException):
        raise result
    return result


def flow_named(name: str) -> Any:  # noqa: ANN401 - Prefect is not imported here
    """Import a flow, which lies beside the library and not in it. Raises `ConfigError` where it does not."""
    try:
        return getattr(import_module(f"flows.{name}"), name)
    except ModuleNotFoundError as missing:
        if missing.name not in ("flows", "tasks"):
            raise
        raise ConfigError(f"`malt {name}` needs flows/ and tasks/: run it from a checkout of the project") from None


async def ended(flow: Any, spec: "RunSpec") -> "RunSummary | BaseException":  # noqa: ANN401 - Prefect is not imported here
    """Run a flow to its end, whatever the state: a flow with failed branches has a summary too."""
    state = await flow(spec, return_state=True)
    result: RunSummary | BaseException = await state.aresult(raise_on_failure=False)
    return result


def finish(summary: "RunSummary", *, as_json: bool) -> int:
    """Print a run's summary, its failures on stderr, and return the exit code."""
    from malt import console

    console.emit(summary.model_dump(mode="json")) if as_json else console.show_summary(summary)
    console.show_failures(summary)
    return summary.exit_code
