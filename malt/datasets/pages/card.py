"""Dataset card (`README.md` of a version), and the report's figures as Markdown; both render the manifest alone."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, StrictUndefined, Template

from malt.config.roles import PLAYERS, Role
from malt.config.spec import DatasetSpec, EvaluatorSpec
from malt.datasets.manifest import Manifest
from malt.datasets.measures import Cost, LengthBias, LengthCounts, Tokens
from malt.datasets.pages.page import render_picture
from malt.datasets.rows.tables import KINDS, ROLE_FILES, SCHEMAS
from malt.datasets.stats import figures
from malt.datasets.stats.diagnostics import percent
from malt.datasets.stats.figures import (
    describe_diagnostics,
    describe_losses,
    format_count,
    format_dollars,
    format_share,
)
from malt.questions.screening import SPLITS, Split
from malt.sanitize import Markdown, code_span, escape_controls, escape_markdown, markdown_table
from malt.text import draw_bar

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
"""The Hub's size categories, each ten times the one before."""


def render_card(manifest: Manifest) -> str:
    spec = manifest.spec
    return _template().render(
        front_matter=_front_matter(manifest),
        manifest=manifest,
        spec=spec,
        run=_run_table(manifest),
        cost=_cost_sentence(manifest),
        losses=_losses_table(manifest),
        gates=_gates_table(manifest),
        test_sets=_test_sets_table(manifest),
        lengths=_lengths_table(manifest),
        bias=" ".join(_bias_sentence(role, bias) for role, bias in manifest.length_bias.items() if bias.pairs),
        findings=markdown_table(("of", "found"), describe_diagnostics(manifest.diagnostics)),
        files=_files_table(manifest),
        leaves_each=_leaves_below(manifest),
        grader=_name_grader(spec.evaluator),
    )


@cache
def _template() -> Template:
    environment = Environment(  # noqa: S701 - the output is Markdown: `finalize` escapes the values
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        finalize=lambda value: escape_markdown(value) if isinstance(value, str) else value,
    )
    environment.filters |= {"count": format_count, "code": code_span}
    return environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))


def _front_matter(manifest: Manifest) -> Markdown:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=f"{manifest.name} v{manifest.version}",
        license=escape_controls(manifest.spec.dataset.license),
        task_categories=["text-generation"],
        size_categories=[_size_category(_count_rows(manifest, ROLE_FILES))],
        tags=["malt", "synthetic", "sft", "dpo", "trl"],
        configs=[_config_entry(manifest, config, files) for config, files in config_files().items()],
    )
    return Markdown(f"---\n{data.to_yaml()}\n{_dataset_info()}\n---")


@cache
def _dataset_info() -> str:
    """Describe the columns as YAML, the same for all datasets. Splits are left out: `datasets` would want their
    size in memory, and the configs give the row counts.
    """
    from huggingface_hub import DatasetCardData

    columns = {config: _features(SCHEMAS[files["train"]]) for config, files in config_files().items()}
    info = [{"config_name": config, "features": features} for config, features in columns.items()]
    return str(DatasetCardData(dataset_info=info).to_yaml())


def config_files() -> dict[str, dict[Split, str]]:
    """Return the files of each `load_dataset` config, by split: `sft-generator` … `trajectories`, `questions`."""
    found: dict[str, dict[Split, str]] = {}
    for path in SCHEMAS:
        file = ROLE_FILES.get(path)
        config, split = (file.config, file.split) if file else (path.removesuffix(".parquet"), SPLITS[0])
        found.setdefault(config, {})[split] = path
    return found


def _count_rows(manifest: Manifest, paths: Iterable[str]) -> int:
    return sum(manifest.files[path].rows or 0 for path in paths)


def _size_category(rows: int) -> str:
    return _SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]


def _config_entry(manifest: Manifest, config: str, files: Mapping[Split, str]) -> dict[str, Any]:
    """Describe one config. A validation split without rows is left out, since `datasets` cannot load it.

    The description holds the rows' digest because `datasets` keys its cache by this block alone: without the digest,
    two folders both called `v1` would load each other's rows.
    """
    listed = {split: path for split, path in files.items() if split == "train" or _count_rows(manifest, [path])}
    entries = [manifest.files[path] for path in listed.values()]
    return {
        "config_name": config,
        "description": ", ".join(f"{entry.rows} rows, sha256 {entry.rows_sha256}" for entry in entries),
        "data_files": [{"split": split, "path": path} for split, path in listed.items()],
    }


def _features(fields: Iterable[pa.Field]) -> list[dict[str, Any]]:
    return [{"name": field.name, **_feature(field.type)} for field in fields]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if not pa.types.is_list(kind):
        return {"dtype": _name_type(kind)}
    item = kind.value_type
    return {"list": _features(item) if pa.types.is_struct(item) else _name_type(item)}


def _name_type(kind: pa.DataType) -> str:
    return "float64" if kind == pa.float64() else str(kind)


def _run_table(manifest: Manifest) -> Markdown:
    head = ("role", "model", "n", "temperature", "nodes", "positive", "negative", "no label", "tokens", "cost")
    return markdown_table(head, [_role_cells(manifest, role) for role in PLAYERS])


def _role_cells(manifest: Manifest, role: Role) -> tuple[object, ...]:
    spec, labels, tokens = manifest.spec.roles[role], manifest.counts.labels[role], manifest.tokens[role]
    temperature = "default" if spec.temperature is None else f"{spec.temperature:g}"
    parts = [part for part in (tokens.prompt_tokens, tokens.completion_tokens) if part is not None]
    counts = manifest.counts.nodes[role], labels.right, labels.wrong, labels.none
    used = format_count(sum(parts) if len(parts) == 2 else None)
    cost = Markdown(format_dollars(manifest.cost[role].cost_usd))
    return role, spec.model, spec.samples, temperature, *counts, used, cost


def _cost_sentence(manifest: Manifest) -> Markdown:
    total = manifest.total_cost_usd
    worth = "an unknown sum" if total is None else format_dollars(total)
    return Markdown(f"All completions in it, the judge's too, cost {worth}, whichever run paid for them.")


def _name_grader(evaluator: EvaluatorSpec) -> Markdown:
    kinds = escape_markdown(", ".join(evaluator.kind))
    return Markdown(f"{kinds}, judged by {code_span(evaluator.model)}") if "llm" in evaluator.kind else kinds


def _losses_table(manifest: Manifest) -> Markdown:
    rows = [(code_span(file), *counts, gates or "none") for file, *counts, gates in describe_losses(manifest)]
    return markdown_table(("rows", "candidates", "kept", "left out"), rows)


def _gates_table(manifest: Manifest) -> Markdown:
    counted = (rows.dropped for kinds in manifest.selection.values() for rows in kinds.values())
    gates = dict.fromkeys(gate for dropped in counted for gate in dropped)
    head = ("gate", "setting", "what it is for", *KINDS)
    return markdown_table(head, [_gate_cells(manifest, gate) for gate in gates])


def _gate_cells(manifest: Manifest, gate: str) -> tuple[object, ...]:
    """Return one gate's table row; the config field's docstring says what the gate is for."""
    setting = getattr(manifest.spec.dataset, gate)
    about = Markdown(DatasetSpec.model_fields[gate].description)
    return code_span(gate), _show_setting(setting), about, *(_count_dropped(manifest, gate, kind) for kind in KINDS)


def _count_dropped(manifest: Manifest, gate: str, kind: str) -> int | str:
    """Count the rows that a gate left out, over all roles; empty where this kind of row has no such gate."""
    counted = [kinds[kind].dropped for kinds in manifest.selection.values()]
    return sum(dropped[gate] for dropped in counted) if all(gate in dropped for dropped in counted) else ""


def _show_setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower()


def _test_sets_table(manifest: Manifest) -> Markdown:
    sets = [(code_span(each.source), each.rows, code_span(each.sha256[:12])) for each in manifest.screening.test_sets]
    return markdown_table(("test set", "rows", "sha256"), sets) if sets else Markdown()


def _lengths_table(manifest: Manifest) -> Markdown:
    found = [(f"{kind}/{role}", each) for role, kinds in manifest.lengths.items() for kind, each in kinds.items()]
    rows = [_length_cells(file, lengths) for file, lengths in found]
    return markdown_table(("rows", "number", "mean", "median", "95 %", "longest"), rows)


def _length_cells(file: str, lengths: LengthCounts) -> tuple[object, ...]:
    return code_span(file), lengths.rows, f"{lengths.mean:g}", lengths.median, lengths.p95, lengths.longest


def _bias_sentence(role: str, bias: LengthBias) -> str:
    longer, shorter = (100 * number / bias.pairs for number in (bias.chosen_longer, bias.chosen_shorter))
    means = f"{bias.chosen_characters:,.0f} and {bias.rejected_characters:,.0f} characters on average"
    share = f"longer in {longer:.0f} %, shorter in {shorter:.0f} %"
    return f"Of {bias.pairs:,} {role} pairs the chosen text is {share} ({means})."


def _leaves_below(manifest: Manifest) -> str:
    _, *further = manifest.spec.roles.branching
    return f"{prod(further)} leaves below a generation and {further[-1]} below a critique"


def _files_table(manifest: Manifest) -> Markdown:
    """Return a table with a row per config; trajectories and questions have no validation split."""
    rows = [
        (
            code_span(config),
            Markdown(", ".join(map(code_span, files.values()))),
            *(_count_rows(manifest, [files[split]]) if split in files else "" for split in SPLITS),
        )
        for config, files in config_files().items()
    ]
    return markdown_table(("config", "files", *SPLITS), rows)


_GRADES = {"right": "correct", "wrong": "incorrect"}
_KINDS = {"all right": "all positive", "all wrong": "all negative"}


def figures_markdown(manifest: Manifest) -> str:
    """Render the report's figures as Markdown: the picture as an embedded image, then a table for each figure."""
    parts = {
        "Accuracy of the answers": _accuracy_table(manifest),
        "Effect of critique and refinement": _flips_table(manifest),
        "Questions by outcome": _mix_table(manifest),
        "Training rows": _yields_table(manifest),
        "Tokens and cost": _usage_table(manifest),
    }
    picture = b64encode(render_picture(manifest).encode()).decode()
    tables = (f"## {title}\n\n{table}" for title, table in parts.items() if table)
    return "\n\n".join([f"![the figures](data:image/svg+xml;base64,{picture})", *tables])


def _accuracy_table(manifest: Manifest) -> Markdown:
    found = figures.measure_accuracy(manifest)
    rows = [(each.measure, format_share(each.percent), each.known, _interval(each)) for each in found]
    return markdown_table(("of", "correct", "of", "95 % interval"), rows)


def _interval(measure: figures.Measure) -> str:
    return "" if measure.low is None or measure.high is None else f"{measure.low:.1f} to {measure.high:.1f} %"


def _flips_table(manifest: Manifest) -> Markdown:
    flips = figures.list_flips(manifest)
    rows = [(f"{_GRADES[one.before]} → {_GRADES[one.after]}", one.leaves, format_share(one.percent)) for one in flips]
    return markdown_table(("generation → refinement", "refinements", "share"), rows) if rows else Markdown()


def _mix_table(manifest: Manifest) -> Markdown:
    return markdown_table(("questions", "", "", "share"), map(_mix_cells, figures.list_mix(manifest)))


def _mix_cells(mix: figures.Mix) -> tuple[object, ...]:
    return _KINDS.get(mix.kind, mix.kind), draw_bar(mix.percent), mix.questions, format_share(mix.percent)


def _yields_table(manifest: Manifest) -> Markdown:
    return markdown_table(
        ("rows", "", "kept", "candidates", "left out by"), map(_yield_cells, describe_losses(manifest))
    )


def _yield_cells(found: figures.FileLosses) -> tuple[object, ...]:
    file, candidates, kept, gates = found
    return file, draw_bar(percent(kept, candidates)), kept, candidates, gates or "nothing"


def _usage_table(manifest: Manifest) -> Markdown:
    rows = [_usage_cells(role, used, manifest.cost[role]) for role, used in manifest.tokens.items()]
    return markdown_table(("role", "completions", "prompt tokens", "completion tokens", "cost"), rows)


def _usage_cells(role: str, used: Tokens, cost: Cost) -> tuple[object, ...]:
    tokens = map(format_count, (used.prompt_tokens, used.completion_tokens))
    return role, used.completions, *tokens, Markdown(format_dollars(cost.cost_usd))
