"""The dataset card: `README.md` of a version, with the front matter that makes `load_dataset(path, config)` work."""

import json

from malt.datasets.findings import findings, losses
from malt.datasets.manifest import Cost, Manifest
from malt.datasets.tables import SCHEMAS
from malt.spec import PLAYERS, Role

CITATION = """@misc{motwani2024malt,
  title={MALT: Improving Reasoning with Multi-Agent LLM Training},
  author={Motwani, Sumeet Ramesh and others},
  year={2024},
  eprint={2412.01928},
  archivePrefix={arXiv},
}"""


def config_names() -> dict[str, str]:
    """The name under which `load_dataset` finds each parquet file: `sft-generator` … `trajectories`, `questions`."""
    return {path.removesuffix(".parquet").replace("/", "-"): path for path in SCHEMAS}


def render_card(manifest: Manifest) -> str:
    """Write a version's card. It says nothing that the manifest does not."""
    counts = manifest.counts
    return f"""{front_matter(manifest)}
# {manifest.name} v{manifest.version}

Training data for three cooperating roles, made as in MALT (Motwani et al., arXiv 2412.01928): a generator answers, a
verifier criticises, a refiner answers again. Each node of a question's tree is worth the mean of its graded leaves; it
is labelled right when that is above {manifest.spec.credit.threshold:g}.

{counts.questions:,} questions from `{manifest.questions.source}`; {counts.complete:,} have a complete tree.
{leaves_sentence(manifest)}

{roles_table(manifest)}

## What was left out

Every text labelled right is a candidate for `sft`, every labelled one for `kto`, every right and wrong sibling for
`dpo`. Candidates = kept + left out.

{losses_table(manifest)}

## Diagnostics

{findings_table(manifest)}

Generations and refinements are graded alike here, without the judge where there are other graders. That is for
diagnosis: the credit comes from the leaves' grades alone.

## Files

{files_table(manifest)}

The three `*_training.json` files hold every valued text with its scores. `manifest.json` names every input by digest.

```python
from datasets import load_dataset

load_dataset("path/to/this/folder", "sft-generator", split="train")  # as it is for TRL's SFTTrainer
load_dataset("path/to/this/folder", "dpo-refiner", split="train")  # as it is for TRL's DPOTrainer
```

A config without rows has the same columns, and loads with `streaming=True`; without that, `datasets` (as of 5.2)
refuses to load a split that is empty.

## Citation

```bibtex
{CITATION}
```

Made {manifest.created_at:%Y-%m-%d} with malt {manifest.code.version}. Content digest `{manifest.content_sha256}`.
"""


def leaves_sentence(manifest: Manifest) -> str:
    """Say what became of the leaves, and who graded them."""
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in manifest.counts.outcomes.items())
    return f"Leaves: {outcomes}; graded by: {', '.join(manifest.spec.evaluator.kind)}."


def front_matter(manifest: Manifest) -> str:
    """Write the YAML block that names every config."""
    title = json.dumps(f"{manifest.name} v{manifest.version}")
    configs = [config_entry(manifest, config) for config in config_names()]
    return "\n".join(["---", f"pretty_name: {title}", "tags:", "- malt", "configs:", *configs, "---"])


def config_entry(manifest: Manifest, config: str) -> str:
    """Write one config. Its description holds the rows' digest because `datasets` keys its cache by this block alone.

    Without it, two folders both called `v1` would load each other's rows from the cache.
    """
    path = config_names()[config]
    entry = manifest.files[path]
    return f"""- config_name: {config}
  description: {entry.rows} rows, sha256 {entry.rows_sha256}
  data_files:
  - split: train
    path: {path}"""


def roles_table(manifest: Manifest) -> str:
    """Write who played what, what came of it, and what it cost."""
    return table(
        ("role", "model", "samples", "temperature", "nodes", "right", "wrong", "no label", "cost"),
        [role_row(manifest, role) for role in PLAYERS],
    )


def role_row(manifest: Manifest, role: Role) -> tuple[object, ...]:
    """One role's line."""
    spec, labels = manifest.spec.roles[role], manifest.counts.labels[role]
    temperature = "default" if spec.temperature is None else f"{spec.temperature:g}"
    nodes = manifest.counts.nodes[role]
    cost = price(manifest.cost[role])
    return role, spec.model, spec.samples, temperature, nodes, labels.right, labels.wrong, labels.none, cost


def price(cost: Cost) -> str:
    """Write a cost; one that is unknown is never zero."""
    return "unknown" if cost.cost_usd is None else f"${cost.cost_usd:.4f}"


def losses_table(manifest: Manifest) -> str:
    """Write what the gates left out."""
    rows: list[tuple[object, ...]] = [
        (f"`{file}`", candidates, kept, dropped or "none") for file, candidates, kept, dropped in losses(manifest)
    ]
    return table(("rows", "candidates", "kept", "left out"), rows)


def findings_table(manifest: Manifest) -> str:
    """Write the diagnostics."""
    return table(("of", "found"), [tuple(found) for found in findings(manifest.diagnostics)])


def files_table(manifest: Manifest) -> str:
    """Write every config with its file and rows."""
    return table(
        ("config", "file", "rows"),
        [(f"`{config}`", f"`{path}`", manifest.files[path].rows) for config, path in config_names().items()],
    )


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Lay out a Markdown table."""
    return "\n".join(line(cells) for cells in [head, ("---",) * len(head), *rows])


def line(cells: tuple[object, ...]) -> str:
    """Lay out one line; a bar in a model's name stays part of the name."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
