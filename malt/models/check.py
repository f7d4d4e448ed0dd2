"""Verifying a model version: every file by its digest, and what the manifest says of itself."""

from collections.abc import Iterator

from malt.canonical_json import file_sha256
from malt.datasets.manifest import MANIFEST_FILE, content_digest, seal_holds
from malt.datasets.stats.counts import code_version
from malt.models.card import CARD_FILE, render_card
from malt.models.manifest import GGUF_FILE
from malt.models.publishing import describe_role
from malt.models.report import REPORT_FILE, render_report
from malt.models.version import ModelVersion


def verify(version: ModelVersion) -> list[str]:
    """Return what does not hold, a sentence each, naming the file; nothing where all is as it was published."""
    return [*_check_manifest(version), *_check_files(version), *_check_pages(version)]


def _check_manifest(version: ModelVersion) -> Iterator[str]:
    manifest = version.manifest
    if not seal_holds(version.path):
        yield f"{MANIFEST_FILE}: was edited; it no longer has the digest it was sealed with"
    if content_digest(manifest.files) != manifest.content_sha256:
        yield f"{MANIFEST_FILE}: content_sha256 is not the digest of the weights"
    if version.path.parent.name == manifest.name and version.path.name != f"v{manifest.version}":
        yield f"{MANIFEST_FILE}: says version {manifest.version}, but stands in {version.path.name}"
    for role, entry in manifest.roles.items():
        digests = describe_role(role, manifest.files)
        if digests != (entry.adapter_sha256, entry.gguf_sha256):
            yield f"{MANIFEST_FILE}: the {role}'s digests are not those of its files"


def _check_files(version: ModelVersion) -> Iterator[str]:
    known = version.manifest.files
    present = {path.relative_to(version.path).as_posix() for path in version.path.rglob("*") if not path.is_dir()}
    for file in sorted(present - known.keys() - {MANIFEST_FILE}):
        yield f"{file}: is not in the manifest"
    for file in sorted(known):
        if file not in present:
            yield f"{file}: is missing"
        elif file_sha256(version.path / file) != known[file].sha256:
            yield f"{file}: its bytes changed since it was published"
    for role, entry in version.manifest.roles.items():
        if entry.gguf_sha256 and f"{role}/{GGUF_FILE}" not in known:
            yield f"{role}/{GGUF_FILE}: is not in the manifest"


def _check_pages(version: ModelVersion) -> Iterator[str]:
    """Write card and report again, with the code that wrote them."""
    if version.manifest.code != code_version():
        return
    for file, text in {CARD_FILE: render_card(version.manifest), REPORT_FILE: render_report(version.manifest)}.items():
        path = version.path / file
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            yield f"{file}: does not say what the manifest says"
