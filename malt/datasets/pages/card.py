"""The dataset card: `README.md` of a version. It says nothing that the manifest does not; its text is card.md.jinja."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from malt.config.spec import PLAYERS, DatasetSpec, EvaluatorSpec, Role
from malt.datasets.manifest import Cost, LengthBias, Manifest
from malt.datasets.pages.front_matter import config_files, front_matter, rows_of
from malt.datasets.rows.tables import KINDS
from malt.datasets.stats.findings import findings, losses
from malt.questions.screening import SPLITS, Split

TEMPLATE = Path(__file__).with_name("card.md.jinja")

Cells = tuple[object, ...]


def render_card(manifest: Manifest) -> str:
    """Write a version's card."""
    spec = manifest.spec
    return template().render(
        front_matter=front_matter(manifest),
        manifest=manifest,
        spec=spec,
        leaves=leaves_sentence(manifest),
        run=run_table(manifest),
        cost=cost_sentence(manifest),
        losses=losses_table(manifest),
        gates=gates_table(manifest),
        test_sets=test_sets_table(manifest),
        lengths=lengths_table(manifest),
        counted_by=counted_by(spec.dataset),
        bias=" ".join(bias_sentence(role, bias) for role, bias in manifest.length_bias.items() if bias.pairs),
        findings=table(("of", "found"), findings(manifest.diagnostics)),
        files=files_table(manifest),
        leaves_each=leaves_below(manifest),
        grader=grader(spec.evaluator),
        licence="not declared" if spec.dataset.license == "unknown" else f"`{spec.dataset.license}`, as declared",
    )


@cache
def template() -> Template:
    """Read the card's text."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)  # noqa: S701 - Markdown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def leaves_sentence(manifest: Manifest) -> str:
    """Say what became of the leaves, and who graded them."""
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in manifest.counts.outcomes.items())
    return f"Leaves: {outcomes}; graded by: {', '.join(manifest.spec.evaluator.kind)}."


def run_table(manifest: Manifest) -> str:
    """Write who played what, what came of it, and what it cost."""
    head = ("role", "model", "n", "temperature", "nodes", "right", "wrong", "no label", "tokens", "cost")
    return table(head, [role_cells(manifest, role) for role in PLAYERS])


def role_cells(manifest: Manifest, role: Role) -> Cells:
    """One role's line."""
    spec, labels, tokens = manifest.spec.roles[role], manifest.counts.labels[role], manifest.tokens[role]
    temperature = "default" if spec.temperature is None else f"{spec.temperature:g}"
    known = tokens.prompt_tokens is not None and tokens.completion_tokens is not None
    used = (tokens.prompt_tokens or 0) + (tokens.completion_tokens or 0) if known else "unknown"
    counts = manifest.counts.nodes[role], labels.right, labels.wrong, labels.none
    return role, spec.model, spec.samples, temperature, *counts, used, price(manifest.cost[role])


def price(cost: Cost) -> str:
    """Write a cost; one that is unknown is never zero."""
    return "unknown" if cost.cost_usd is None else f"${cost.cost_usd:.4f}"


def cost_sentence(manifest: Manifest) -> str:
    """Say what all of it cost, the judge's part included."""
    total = manifest.total_cost_usd
    worth = "an unknown sum" if total is None else f"${total:.4f}"
    return f"All completions in it, the judge's too, cost {worth}, whichever run paid for them."


def grader(evaluator: EvaluatorSpec) -> str:
    """Name the graders, and the model that judges."""
    kinds = ", ".join(evaluator.kind)
    return f"{kinds}, judged by `{evaluator.model}`" if "llm" in evaluator.kind else kinds


def losses_table(manifest: Manifest) -> str:
    """Write what was left out of each file."""
    rows = [(f"`{file}`", candidates, kept, dropped or "none") for file, candidates, kept, dropped in losses(manifest)]
    return table(("rows", "candidates", "kept", "left out"), rows)


def gates_table(manifest: Manifest) -> str:
    """Write every gate with its setting, what it is for, and how much it left out."""
    head = ("gate", "setting", "what it is for", *KINDS)
    return table(head, [gate_cells(manifest, gate) for gate in gate_names(manifest)])


def gate_cells(manifest: Manifest, gate: str) -> Cells:
    """One gate's line; what its key is for is said in the words of the config."""
    value = getattr(manifest.spec.dataset, gate)
    described = DatasetSpec.model_fields[gate].description
    return f"`{gate}`", setting(value), described, *(dropped_by(manifest, gate, kind) for kind in KINDS)


def gate_names(manifest: Manifest) -> list[str]:
    """The gates of all kinds of rows."""
    counted = (rows.dropped for kinds in manifest.selection.values() for rows in kinds.values())
    return list(dict.fromkeys(gate for dropped in counted for gate in dropped))


def dropped_by(manifest: Manifest, gate: str, kind: str) -> int | str:
    """How many candidates a gate left out, all roles together; nothing where this kind of row has no such gate."""
    counted = [kinds[kind].dropped for kinds in manifest.selection.values()]
    return sum(dropped[gate] for dropped in counted) if all(gate in dropped for dropped in counted) else ""


def setting(value: object) -> str:
    """Write a gate's setting."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value).lower()


def test_sets_table(manifest: Manifest) -> str:
    """Write what the questions were compared with; nothing where that was nothing."""
    sets = [(f"`{each.source}`", each.rows, f"`{each.sha256[:12]}`") for each in manifest.screening.test_sets]
    return table(("test set", "rows", "sha256"), sets) if sets else ""


def lengths_table(manifest: Manifest) -> str:
    """Write how long the rows of each file are."""
    rows = [
        (f"`{kind}/{role}`", found.rows, f"{found.mean:g}", found.median, found.p95, found.longest)
        for role, kinds in manifest.lengths.items()
        for kind, found in kinds.items()
    ]
    return table(("rows", "number", "mean", "median", "95 %", "longest"), rows)


def counted_by(spec: DatasetSpec) -> str:
    """Say how tokens were counted."""
    return f"counted with `{spec.tokenizer}`" if spec.tokenizer else "four characters taken for one"


def bias_sentence(role: str, bias: LengthBias) -> str:
    """Say how far lengths alone tell chosen from rejected."""
    longer, shorter = (100 * count / bias.pairs for count in (bias.chosen_longer, bias.chosen_shorter))
    means = f"{bias.chosen_characters:,.0f} and {bias.rejected_characters:,.0f} characters on average"
    share = f"longer in {longer:.0f} %, shorter in {shorter:.0f} %"
    return f"Of {bias.pairs:,} {role} pairs the chosen text is {share} ({means})."


def leaves_below(manifest: Manifest) -> str:
    """How many leaves a whole tree has below a generation, and below a critique."""
    _, critiques, refinements = manifest.spec.roles.branching
    return f"{critiques * refinements} leaves below a generation and {refinements} below a critique"


def files_table(manifest: Manifest) -> str:
    """Write every config with its files, and how many rows each split has."""
    rows = [file_cells(manifest, config, files) for config, files in config_files().items()]
    return table(("config", "files", *SPLITS), rows)


def file_cells(manifest: Manifest, config: str, files: Mapping[Split, str]) -> Cells:
    """One config's line; trajectories and questions have no validation split."""
    counts = (rows_of(manifest, [files[split]]) if split in files else "" for split in SPLITS)
    return f"`{config}`", ", ".join(f"`{path}`" for path in files.values()), *counts


def table(head: tuple[str, ...], rows: Sequence[Cells]) -> str:
    """Lay out a Markdown table."""
    return "\n".join(line(cells) for cells in [head, ("---",) * len(head), *rows])


def line(cells: Cells) -> str:
    """Lay out one line; a bar in a model's name stays part of the name, and a number gets its commas."""
    written = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in written) + " |"
