"""Commands that train models on datasets and serve them: `train`, `models`, `serve-adapters`, `improve`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli import evaluating, runs, summaries, terminal
from malt.cli.options import WholeNumber, find_role, takes_config, takes_json, takes_version
from malt.errors import ConfigError
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.config.spec import RunSpec
    from malt.config.train import TrainSpec
    from malt.datasets.version.dataset_version import DatasetVersion
    from malt.improvement.improve import ImprovementPlan
    from malt.improvement.report import RoundFigures
    from malt.improvement.rounds import Improvement
    from malt.models.adapters import Proof
    from malt.models.compare import Origin
    from malt.models.version import ModelVersion, StageResult
    from malt.training.plan import RowsPlan, TrainPlan
    from malt.training.run import TrainSummary

_COUNTED = ("rows", "median", "longest", "max_length", "tokens", "steps")
"""Counts that a plan shows for each stage."""


@click.command()
@takes_version
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="CONFIG", help="Take [train] of this config.")
@click.option("-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key, such as train.base.")
@click.option("--plan", "plans", is_flag=True, help="Show time and memory, and train nothing.")
@takes_json
def train(version: str, config: Path | None, override: tuple[str, ...], plans: bool, as_json: bool) -> None:
    """Train the roles on a dataset version, into a model version. Resumes an earlier call that was stopped."""
    from malt.cli.progress import training_progress
    from malt.datasets.version.dataset_version import open_version
    from malt.training.process import check_installed
    from malt.training.run import read_train_spec
    from malt.training.run import train as train_roles

    opened = open_version(version)
    spec = read_train_spec(opened, config, override)
    if not plans:
        check_installed()
    _warn_of_others(opened.reference, opened.spec, spec)
    if plans:
        _plan_training(opened, spec, as_json=as_json)
        return
    with training_progress() as tell:
        summary = train_roles(opened, spec, tell=tell)
    terminal.show_report(summary, _show_summary, as_json=as_json)


def _plan_training(version: "DatasetVersion", spec: "TrainSpec", *, as_json: bool) -> None:
    """Quote a training; without the training packages, only its rows and steps."""
    from malt.config.settings import Settings
    from malt.training.plan import plan, plan_rows
    from malt.training.process import check_installed

    try:
        check_installed()
    except ConfigError as error:
        terminal.show_report(plan_rows(version, spec), _show_rows_plan, as_json=as_json)
        terminal.warn(f"before it can run: {error}")
    else:
        terminal.show_report(plan(version, spec, Settings()), _show_plan, as_json=as_json)


def _warn_of_others(trees: str, grown: "RunSpec", spec: "TrainSpec") -> None:
    """Warn if another model grew the trees than the one to be trained."""
    from malt.config.roles import PLAYERS

    names = {grown.roles[role].model for role in PLAYERS}
    others = sorted(name for name in names if "@" not in name and not name.endswith(spec.base))
    if others:
        terminal.warn(f"{trees}: grown by {', '.join(others)}, but the model to be trained is train.base = {spec.base}")


@click.command()
@click.argument("name", required=False)
@takes_json
def models(name: str | None, as_json: bool) -> int:
    """List model versions: base, dataset, digest, date."""
    from malt.config.settings import Settings
    from malt.models.version import list_models

    listed = list_models(Settings().models_dir, name)
    if as_json:
        return terminal.emit_listing(listed, _describe)
    none_yet = "no models yet; train some with: malt train DATASET"
    return terminal.show_listing(listed, ("roles.", "base.", "trained on."), _list_cells, none_yet)


@click.command("serve-adapters")
@click.argument("model", metavar="MODEL")
@click.option(
    "--to", "url", required=True, metavar="URL", help="The server's address, such as http://127.0.0.1:8000/v1."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Path of the version's folder on the server.")
@click.option("--key-env", default="", metavar="NAME", help="Environment variable with the server's key.")
@takes_json
def serve_adapters(model: str, url: str, folder: Path | None, key_env: str, as_json: bool) -> None:
    """Load a model's adapters into vLLM, and verify them.

    The server's log-probabilities are compared with those of training; exits with code 2 if they differ.
    """
    from malt.models.adapters import serve_adapters as serve
    from malt.models.version import open_model

    proofs = serve(open_model(model), url, folder=folder, key_env=key_env)
    if as_json:
        terminal.emit({"adapters": [proof.model_dump(mode="json") for proof in proofs]})
        return
    _show_proofs(proofs)
    for proof in proofs:
        terminal.say(f'[roles.{proof.role}] model = "hosted_vllm/{proof.name}", api_base = "{url}"')


def _show_proofs(proofs: Iterable["Proof"]) -> None:
    table = terminal.new_table("role", "adapter.", "loaded.", "noise", "from training", "training's effect")
    for proof in proofs:
        figures = (f"{value:.3f}" for value in (proof.noise, proof.difference, proof.effect))
        table.add_row(proof.role.value, proof.name, "now" if proof.loaded else "before", *figures)
    terminal.say(table)


def _show_summary(summary: "TrainSummary") -> None:
    table = terminal.new_table("role", *_STAGE_COLUMNS, "seconds")
    for role, trained in summary.roles.items():
        for stage in trained.stages.values():
            table.add_row(role, *_stage_cells(stage), "known" if trained.cached else f"{stage.wall_s:.0f}")
    terminal.say(table)
    _show_skipped(summary.skipped)
    reference = f"{summary.models}@v{summary.version}"
    state = "" if summary.created else " (unchanged)"
    terminal.say(f"{reference}{state}: {terminal.shorten_path(summary.path)}")
    terminal.say(f'to use it for a role: model = "{reference}"')


_STAGE_COLUMNS = ("stage.", "rows", "trained", "steps", "first loss", "last loss")


def _stage_cells(stage: "StageResult") -> tuple[str, ...]:
    counts, losses = (stage.rows, stage.trained, stage.steps), (stage.loss_first, stage.loss_last)
    return stage.stage, *map("{:,}".format, counts), *map("{:.4f}".format, losses)


def _describe(version: "ModelVersion") -> "dict[str, object]":
    manifest = version.manifest
    return {"base": manifest.base.name, "dataset": manifest.dataset.reference, "roles": [*manifest.roles]}


def _list_cells(version: "ModelVersion") -> tuple[str, str, str]:
    manifest = version.manifest
    return ", ".join(manifest.roles), manifest.base.name, manifest.dataset.reference


def _show_rows_plan(plan: "RowsPlan") -> None:
    terminal.say(f"{plan.models}: {plan.dataset} on {plan.base}")
    table = terminal.new_table("role", "stage.", *_COUNTED)
    for role, quoted in plan.roles.items():
        for name, stage in quoted.stages.items():
            table.add_row(role.value, name, *(f"{getattr(stage, count):,}" for count in _COUNTED))
    terminal.say(table)
    _show_skipped(plan.skipped)
    terminal.say("tokens as the dataset counted them; memory, time and the base's own counts need the packages")


def _show_skipped(skipped: "Sequence[str]") -> None:
    for line in skipped:
        terminal.say(f"not trained: {line}")


def _show_plan(plan: "TrainPlan") -> None:
    sizes = f"{plan.parameters / 1e6:,.0f} M parameters, {plan.trainable / 1e6:,.1f} M of them trained"
    terminal.say(f"{plan.models}: {plan.dataset} on {plan.base} ({sizes}), {plan.device}")
    table = terminal.new_table("role", "stage.", *_COUNTED, "trained", "GB", "s")
    for role, quoted in plan.roles.items():
        for name, stage in quoted.stages.items():
            counts = (getattr(stage, count) for count in (*_COUNTED, "trained"))
            time_left = "known" if quoted.known else f"{stage.seconds:,.0f}"
            table.add_row(role, name, *(f"{count:,}" for count in counts), f"{stage.memory_gb:.1f}", time_left)
    terminal.say(table)
    _show_skipped(plan.skipped)
    for stage in (stage for quoted in plan.roles.values() for stage in quoted.stages.values()):
        if stage.refused:
            terminal.say(f"refused: {stage.refused}")
    terminal.say(
        f"about {plan.seconds / 60:,.0f} min and {plan.memory_gb:.1f} GB; estimated from a probe of half a second"
    )


def show(reference: str, role: str | None, *, as_json: bool) -> None:
    """Print a model version, or one role's part of it."""
    from malt.models.version import open_model

    version = open_model(reference)
    roles = version.manifest.roles if role is None else {find_role(role, ""): version.role(find_role(role, ""))}
    if as_json:
        manifest = version.manifest.model_copy(update={"roles": roles})
        terminal.emit(manifest.model_dump(mode="json"))
        return
    terminal.show_head(version)
    manifest = version.manifest
    base = f"{manifest.base.name} ({manifest.base.sha256[:12]})"
    terminal.say(f"trained on {manifest.dataset.reference} from {base}")
    table = terminal.new_table("role", *_STAGE_COLUMNS, "weights.")
    for name, entry in roles.items():
        for stage in entry.stages:
            table.add_row(name.value, *_stage_cells(stage), (entry.gguf_sha256 or entry.adapter_sha256)[:12])
    terminal.say(table)
    _show_results(version)


def _show_results(version: "ModelVersion") -> None:
    from malt.evaluation.card import find_results, percent

    for result in find_results(version):
        terminal.say(f"{result.evaluation.reference}, {result.system}, {result.way}: {percent(result.cell)} % right")


def diff(old: str, new: str, *, as_json: bool) -> None:
    from malt.models.compare import compare_models
    from malt.models.version import open_model

    found = compare_models(open_model(old), open_model(new))
    if as_json:
        terminal.emit(found.model_dump(mode="json"))
        return
    terminal.say(f"{found.old} -> {found.new}{': the same weights' if found.same_content else ''}", style="bold")
    for name, change in {**found.inputs, **found.losses}.items():
        terminal.say(f"  {name}: {change.old} -> {change.new}")
    for role, became in found.roles.items():
        terminal.say(f"  {role}: {became}")


def explain(reference: str, row_id: str | None, *, as_json: bool) -> str:
    """Return the dataset version that a model, or the row `row_id`, comes from; without `row_id`, print its rows."""
    from malt.models.compare import explain_model
    from malt.models.version import open_model

    origin = explain_model(open_model(reference))
    if row_id is None and as_json:
        terminal.emit(origin.model_dump(mode="json"))
    elif row_id is None:
        for each in (*origin.earlier, origin):
            _show_origin(each)
        terminal.say(f"one row, with its tree: malt explain {origin.version} ROW_ID")
    return origin.dataset if row_id is None else origin.home_of(row_id)


def _show_origin(origin: "Origin") -> None:
    terminal.say(f"{origin.version} was trained on {origin.dataset}: {len(origin.questions):,} questions")
    for file, rows in origin.rows.items():
        terminal.say(f"  {file:<16} {len(rows):>6,} rows, such as {', '.join(rows[:2])}")


@click.command()
@takes_config
@click.option("--rounds", type=WholeNumber(1), metavar="N", help="Total number of rounds; overrides improve.rounds.")
@click.option("--plan", "plans", is_flag=True, help="Quote all rounds; ask and train nothing.")
@takes_json
def improve(
    config: Path, override: tuple[str, ...], limit: int | None, rounds: int | None, plans: bool, as_json: bool
) -> int:
    """Grow, train, evaluate, keep what is better; N times. Resumes an earlier call that was stopped."""
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.hosting.private_prefect import connect
    from malt.improvement.improve import check
    from malt.improvement.report import read_figures

    spec = load_spec(config, [*override, *([f"improve.rounds={rounds}"] if rounds else [])], limit)
    _warn_of_others("round 1", spec, spec.train)
    if plans:
        return _plan_improvement(spec, as_json=as_json)
    check(spec, Settings())
    missing = runs.find_missing()
    if missing:
        terminal.warn(f"this is not recorded in Prefect: that needs {missing}")
    done = _improve_here(spec) if missing else runs.flow_result("improve", spec, connect(Settings().data_dir))
    terminal.emit(done.model_dump(mode="json")) if as_json else _show_improvement(read_figures(done))
    if done.used.failed_branches:
        terminal.warn(f"error: {done.used.failed_branches} failed branches; no version contains their questions")
    return done.exit_code


def _plan_improvement(spec: "RunSpec", *, as_json: bool) -> int:
    """Quote all rounds, and warn of what still prevents them."""
    from malt.config.settings import Settings
    from malt.errors import MaltError
    from malt.improvement.improve import check, plan_improvement
    from malt.llm.store.samples import Store

    settings = Settings()
    with Store(settings.store) as store:
        quoted = plan_improvement(spec, settings, store)
    terminal.show_report(quoted, _show_improvement_plan, as_json=as_json)
    try:
        check(spec, settings)
    except MaltError as error:
        terminal.warn(f"before it can run: {error}")
    return 0


def _show_improvement_plan(quoted: "ImprovementPlan") -> None:
    table = terminal.new_table("", *summaries.QUOTED)
    for when, steps in {"round 1": quoted.first, "each later round": quoted.later, "at the end": quoted.end}.items():
        for step, part in steps.items():
            table.add_row(f"{when}: {step}", *summaries.quoted_figures(part))
    table.add_row(f"{count_noun(quoted.rounds, 'round')} at most", *summaries.quoted_figures(quoted), style="bold")
    terminal.say(table)
    summaries.show_range(quoted)
    terminal.say("time and memory of training: malt train VERSION --plan", style="dim")


def _improve_here(spec: "RunSpec") -> "Improvement":
    from malt.cli.progress import training_progress
    from malt.config.settings import Settings
    from malt.engine import signals
    from malt.improvement.improve import Here, improve_alone

    settings = Settings()
    with training_progress() as tell:
        return signals.run(improve_alone(spec, settings, Here(settings, tell)))


def _show_improvement(figures: "RoundFigures") -> None:
    """Print accuracy by round, the gain from each role's training, and the report's path."""
    from malt.evaluation.card import percent, points

    done, used, votes = figures.done, figures.done.used, f"@{figures.chains}"
    terminal.say(done.sentence, style="bold")
    table = terminal.new_table("", "models.", "SA", f"SA+MV{votes}", "MA", f"MA+MV{votes}", "cut off", "gain", "")
    for line in figures.lines:
        table.add_row(line.title, line.models or "the config's", *line.figures)
    terminal.say(table)
    evaluating.show_legend(figures.chains)
    for of, worth in figures.worths.items():
        terminal.say(f"  training of {of} gave {points(worth.difference, worth.low, worth.high)} points")
    for title, systems in {"at the end": figures.closing, **figures.beside}.items():
        if systems:
            table = terminal.new_table(f"{title}.", *next(iter(systems.values())))
            for name, cells in systems.items():
                table.add_row(name, *map(percent, cells.values()))
            terminal.say(table)
    terminal.say(
        f"{used.requests:,} requests, {used.completions:,} completions, {used.roles_trained} roles trained; this call "
        f"cost {terminal.format_dollars(used.cost_usd)} and took {done.wall_s:.0f} s"
    )
    terminal.say(f"report: {terminal.shorten_path(done.report or '')}")
