"""Commands about configs: `init`, `config`."""

import json
import os
import re
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from malt.cli import terminal
from malt.cli.options import takes_json
from malt.errors import ConfigError, named_place
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.config.roles import ModelSpec
    from malt.grading.references import Suggestion
    from malt.questions.readers import Row

_QUESTION_COLUMNS = ("question", "problem", "prompt", "input", "text")
_ANSWER_COLUMNS = ("ground_truth", "answer", "solution", "answerKey", "target", "output", "label")
_SAMPLED_ROWS = 50
"""Number of first rows whose columns are examined."""


class _Answers(NamedTuple):
    """Values that fill in the template of a config."""

    source: str
    question: str
    answer: str
    model: str
    api_base: str
    api_key_env: str
    kinds: tuple[str, ...]
    name: str


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--questions", metavar="FILE", help="Question file: .jsonl .json .csv .parquet, a folder or an address.")
@click.option("--question", metavar="COLUMN", help="Column of the question in that file.")
@click.option("--answer", "--ground-truth", "answer", metavar="COLUMN", help="Column of the reference answer there.")
@click.option("--model", metavar="NAME", help="Model of every role: openai/…, hosted_vllm/…, ollama_chat/…, embedded.")
@click.option("--api-base", metavar="URL", help="Address of the model's server; empty: its provider's.")
@click.option("--api-key-env", metavar="VARIABLE", help="Environment variable that holds the key; empty: none.")
@click.option("--grader", "kinds", multiple=True, metavar="KIND", help="Kind of grader; may be repeated.")
@click.option("--name", metavar="NAME", help="Name of the dataset: lower-case letters, digits, hyphens.")
@click.option("--force", is_flag=True, help="Replace CONFIG if it exists.")
@takes_json
def init(
    config: Path | None,
    questions: str | None,
    question: str | None,
    answer: str | None,
    model: str | None,
    api_base: str | None,
    api_key_env: str | None,
    kinds: tuple[str, ...],
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a config for a question file. Asks for values that no option gives; without a terminal, uses defaults."""
    from malt.review.grader_options import read_kinds

    source = questions or _ask("Question file", None, "--questions")
    rows = _first_rows(source)
    asked = question or _ask_column("Column of the question", rows, _QUESTION_COLUMNS, "--question")
    answered = answer or _ask_column("Column of the reference answer", rows, _ANSWER_COLUMNS, "--answer", asked)
    if asked == answered:
        raise ConfigError(f"--question and --answer are both {asked}; name the column of the reference answer")
    suggestion, count = _look_at(source, asked, answered)
    model = model or _ask("Model of every role", "embedded", "--model")
    base, key = _ask_place(model, api_base, api_key_env)
    proposed = " ".join(suggestion.kinds)
    given = read_kinds(kinds, "--grader") or _ask(f"Graders ({suggestion.reason})", proposed, "--grader").split()
    name = name or _ask("Name of the dataset", _slug(source), "--name")
    path = config or Path(f"{name}.toml")
    answers = _Answers(source, asked, answered, model, base, key, tuple(given), name)
    _write_config(path, _checked_config(path, answers), force=force)
    next_steps = [f"malt plan {path}", f"malt run {path} --limit 3", f"malt run {path}"]
    if as_json:
        terminal.emit({"config": str(path), "questions": count, "next": next_steps})
    else:
        terminal.say(f"{path} is written for {count_noun(count, 'question')}. Next:")
        for step in next_steps:
            terminal.say(f"  {step}")


def _ask(what: str, proposed: str | None, option: str) -> str:
    """Ask on a terminal, on stderr; without one return `proposed`, and raise `ConfigError` if that is None."""
    if sys.stdin is not None and sys.stdin.isatty():  # None if standard input is closed
        return str(click.prompt(what, default=proposed, err=True))
    if proposed is None:
        raise ConfigError(f"{what.lower()}: not given, and no terminal to ask on; give it with {option}")
    return proposed


def _ask_column(what: str, rows: "list[Row]", usual: tuple[str, ...], option: str, taken: str = "") -> str:
    from malt.questions.readers import join_names

    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    return _ask(what, _guess(rows, columns, usual, taken), f"{option}; the file's columns: {join_names(columns)}")


def _first_rows(source: str) -> "list[Row]":
    from malt.questions.readers import read_rows

    rows = list(islice(read_rows(source, "--questions"), _SAMPLED_ROWS))
    if not rows:
        raise ConfigError(f"--questions = {source}: no questions in it; give a file with one question a row")
    return rows


def _guess(rows: "list[Row]", columns: list[str], usual: tuple[str, ...], taken: str) -> str | None:
    """Return a column with one of the usual names, else the first that holds texts and is not `taken`."""
    texts = [name for name in columns if name != taken and all(isinstance(row.values.get(name), str) for row in rows)]
    return next((name for name in (*usual, *texts) if name in columns), None)


def _look_at(source: str, question: str, answer: str) -> "tuple[Suggestion, int]":
    """Read the whole file; return suitable graders and the number of questions."""
    from malt.config.questions import QuestionSource
    from malt.grading.references import suggest_kinds
    from malt.questions.question import read_questions

    questions = read_questions(QuestionSource(source=source, question=question, ground_truth=answer))
    return suggest_kinds(questions), len(questions)


def _ask_place(model: str, api_base: str | None, api_key_env: str | None) -> tuple[str, str]:
    from malt.config.secret_scan import VARIABLE
    from malt.llm.provider.embedded import is_embedded
    from malt.models.playing import NAMED

    if is_embedded(model) or NAMED.fullmatch(model):
        return "", ""
    provider = model.partition("/")[0]
    usual = f"{provider.upper().replace('-', '_')}_API_KEY" if api_base is None else ""
    base = api_base if api_base is not None else _ask("Address of its server; empty: its provider's", "", "--api-base")
    variable = "" if base or not VARIABLE.fullmatch(usual) else usual
    key = api_key_env
    if key is None:
        key = _ask("Environment variable with the key; empty: none", variable, "--api-key-env")
    return base, key


def _slug(source: str) -> str:
    stem = Path(source.rstrip("/").rpartition("/")[2]).name.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "dataset"


def _checked_config(path: Path, answers: _Answers) -> str:
    """Return a commented config, validated as `malt run` would."""
    from malt.config.loader import parse_spec

    text = _fill_template(path, answers)
    _check_model(parse_spec(text.encode(), path).roles.generator)
    return text


def _check_model(model: "ModelSpec") -> None:
    """Refuse a model that no provider knows, and missing weights. A key may be set, and a package installed, later."""
    from malt.config.roles import Role
    from malt.config.settings import Settings
    from malt.llm.provider import embedded
    from malt.llm.provider.routing import find_provider
    from malt.models.playing import identify

    with named_place("--model"):
        name, _ = identify(model.model, Role.GENERATOR, Settings().models_dir)
        if name == embedded.NAME:
            return
        embedded.check_weights(name) if embedded.is_embedded(name) else find_provider(model)


def _write_config(path: Path, text: str, *, force: bool) -> None:
    from malt.files import replace_text

    if (path.exists() or path.is_symlink()) and not force:
        raise ConfigError(f"{path} exists already; name another file, or give --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


_TEMPLATE = """# malt run {path}
#
# `malt plan {path}` quotes the cost; `malt config --explain KEY` explains a key.

name = {name}
prompts = {prompts}                  # a set of prompts, or a folder of your own

[questions]
source = {source}
question = {question}
ground_truth = {answer}
# limit = 100                       # take only this many; with shuffle_seed a stable sample

[model]                             # for every role; [roles.verifier] and the like override it
{model}
temperature = 0.7                   # high enough that siblings differ, and so make preference pairs
{longest}

[roles.generator]
samples = 3                         # the other roles default to 3 too: 39 completions a question, in 13 requests

[evaluator]
kind = {kinds}

[limits]
# max_cost_usd = 5.0                # hard cap for one run
max_in_flight = {in_flight}                   # most requests in flight at once

# `malt evaluate {path}` compares systems of these roles on held-out questions.
# [evaluate]
# questions = {{ source = "heldout.jsonl" }}   # your own file, like the one above
# [evaluate.systems.pipeline]
# [evaluate.systems.without-verifier]
# roles = ["generator", "refiner"]
# [evaluate.systems.trained]                  # once `malt train {dataset}` has made the model version
# models = "{dataset}@v1"
"""
_FOR_SMALL = "max_tokens = 256                    # small models ramble; a longer text is cut off and makes no row"


def _fill_template(path: Path, answers: _Answers) -> str:
    kinds = list(answers.kinds)
    place = {"model": answers.model, "api_base": answers.api_base, "api_key_env": answers.api_key_env}
    return _TEMPLATE.format(
        path=path,
        dataset=answers.name,
        name=_toml(answers.name),
        prompts=_toml("math" if "math" in kinds else "choice" if kinds == ["choice"] else "general"),
        source=_toml(_from_config(answers.source, path)),
        question=_toml(answers.question),
        answer=_toml(answers.answer),
        model="\n".join(f"{key} = {_toml(value)}" for key, value in place.items() if value),
        longest=_FOR_SMALL if answers.model == "embedded" else "# max_tokens = 1024",
        kinds=json.dumps(kinds if len(kinds) > 1 else kinds[0]),
        in_flight=8 if answers.api_base else 64,
    )


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_config(source: str, config: Path) -> str:
    """Return a local path relative to the config's folder, as configs take it."""
    if "://" in source or Path(source).is_absolute():
        return source
    return os.path.relpath(source, config.parent)


@click.command()
@click.option("--explain", "key", metavar="KEY", help="Only this key, by dotted path, and the keys below it.")
@click.option("--markdown", is_flag=True, help="Print docs/reference/config.md.")
@click.option("--schema", is_flag=True, help="Print the JSON schema, for editors.")
@takes_json
def config(key: str | None, markdown: bool, schema: bool, as_json: bool) -> None:
    """Explain the keys of a config: type, default, meaning. All of them, or one."""
    from malt.config.reference import explain_key, list_keys, write_markdown
    from malt.config.spec import RunSpec

    keys = list(list_keys()) if key is None else explain_key(key)
    if schema:
        terminal.emit(RunSpec.model_json_schema())
    elif as_json:
        terminal.emit({"keys": [each._asdict() for each in keys]})
    elif markdown:
        click.echo(write_markdown(), nl=False)
    else:
        terminal.say("\n".join(line for each in keys for line in each.lines))
