"""Write the pages of the reference that are made from the code: each key of a config."""

from typing import Any

from mkdocs.structure.files import File, Files

from malt.config.reference import as_markdown


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - as mkdocs calls it
    """Add the generated pages."""
    files.append(File.generated(config, "reference/config.md", content=as_markdown()))
    return files
