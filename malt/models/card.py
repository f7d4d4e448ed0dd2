"""The model card: `README.md` of a model version. It says nothing that the manifest does not."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from malt.models.manifest import ModelManifest

CARD_FILE = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_HUB_NAMES = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What a base is called on the Hub, where its name here is another."""


def render_card(manifest: ModelManifest) -> str:
    stages = sorted({stage.stage for entry in manifest.roles.values() for stage in entry.stages})
    return _template().render(
        manifest=manifest,
        stages=stages,
        base_model=_HUB_NAMES.get(manifest.base.name, manifest.base.name),
        dataset=f"{manifest.dataset.name}@v{manifest.dataset.version}",
        has_gguf=any(entry.gguf_sha256 for entry in manifest.roles.values()),
    )


@cache
def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)  # noqa: S701 - Markdown
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
