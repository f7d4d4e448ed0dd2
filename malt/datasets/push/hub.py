"""Push of a version to the Hugging Face Hub: one commit, then a tag. `main` holds the newest version pushed.

The token comes from the environment (`HF_TOKEN`) or from `hf auth login`; it is never an argument.
"""

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import ValidationError

from malt.datasets.manifest import CARD_FILE, MANIFEST_FILE, VersionManifest
from malt.datasets.push.files import Bundle, BundledFile, Pushed, push_errors
from malt.errors import InputError, PushDamaged, PushError
from malt.sanitize import fold_lines
from malt.text import list_first

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FOLDERS = {"dataset": "datasets/", "model": ""}
"""Prefix of a repository's name in addresses, by kind."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MAIN = "main"


class Blob(NamedTuple):
    """Digests of one file on the Hub."""

    git_sha1: str
    sha256: str | None
    """SHA-256 of a large file (LFS); None for other files, which have git's digest only."""

    def is_of(self, file: BundledFile) -> bool:
        return self.git_sha1 == _git_sha1(file) if self.sha256 is None else self.sha256 == file.sha256


_CommitFiles = Mapping[str, Blob]
"""Files of a commit, by path."""
_Placed = tuple[str, Sequence[BundledFile]]
"""Commit that holds a version, and the files sent for it."""


@dataclass(frozen=True)
class Repository:
    """Hub repository that holds versions of one dataset, evaluation or model."""

    id: str
    """`OWNER/NAME`."""
    kind: str
    """`dataset` or `model`."""

    @classmethod
    def named(cls, dest: str, kind: str) -> Self:
        """Parse a destination. Raises `InputError` if it names no repository of that kind."""
        name = dest.removeprefix(f"hf://{_FOLDERS[kind]}").removesuffix("/")
        if not _NAME.fullmatch(name) or name.startswith("datasets/"):
            raise InputError(f"{dest} names no {kind} repository; write hf://{_FOLDERS[kind]}OWNER/NAME")
        return cls(name, kind)

    @property
    def dest(self) -> str:
        return f"hf://{_FOLDERS[self.kind]}{self.id}"

    @cached_property
    def api(self) -> "HfApi":
        """Client of the Hub with the user's token. Raises `PushError` without a token."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        if get_token() is None:
            raise PushError(f"{self.dest}: no token; set HF_TOKEN, or log in with: hf auth login")
        return HfApi()

    def push(self, bundle: Bundle, *, public: bool = False, card: str | None = None) -> Pushed:
        """Commit the missing files, check every digest, and tag the commit. An existing tag is never moved."""
        with push_errors(self.dest, _explain):
            is_private = self._open(public=public)
            commit, sent = self._place(bundle)
            card_commit = None if card is None else self._replace_card(bundle, card.encode())
        url = f"{self.api.endpoint}/{_FOLDERS[self.kind]}{self.id}/tree/{bundle.tag}"
        on_the_hub = {"commit": commit, "card": card_commit, "private": is_private}
        return Pushed.of(bundle, self.dest, url, sent).model_copy(update=on_the_hub)

    def _replace_card(self, bundle: Bundle, card: bytes) -> str | None:
        """Put a card on `main` if that holds this version; return the commit with the card, else None."""
        head = str(self.api.repo_info(self.id, revision=_MAIN, repo_type=self.kind).sha)
        tree = self._list_files(head)
        if MANIFEST_FILE not in tree or not tree[MANIFEST_FILE].is_of(bundle.manifest):
            return None
        if CARD_FILE in tree and tree[CARD_FILE].git_sha1 == _hash_blob(len(card), [card]):
            return head
        return self._commit_card(card, f"{bundle.reference}: results of evaluations", head)

    def _commit_card(self, card: bytes, message: str, head: str) -> str:
        from huggingface_hub import CommitOperationAdd

        return self.api.create_commit(
            self.id,
            [CommitOperationAdd(CARD_FILE, card)],
            commit_message=message,
            repo_type=self.kind,
            revision=_MAIN,
            parent_commit=head,
        ).oid

    def _open(self, *, public: bool) -> bool:
        """Create the repository if it does not exist; return whether it is private."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            is_private = bool(self.api.repo_info(self.id, repo_type=self.kind).private)
        except RepositoryNotFoundError:
            self.api.create_repo(self.id, repo_type=self.kind, private=not public)
            return not public
        if not is_private and not public:
            raise PushError(f"{self.dest} is public; nothing was sent. If anyone may read this version, add --public")
        return is_private

    def _place(self, bundle: Bundle) -> _Placed:
        refs = self.api.list_repo_refs(self.id, repo_type=self.kind)
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        if bundle.tag not in tags:
            return self._commit(bundle, {branch.name: branch.target_commit for branch in refs.branches})
        commit = tags[bundle.tag]
        if different := _find_missing(bundle, self._list_files(commit)):
            raise PushError(
                f"{self.dest} has a tag {bundle.tag} with other content ({list_first(different)}); nothing was sent. "
                "Push to another repository, or delete that tag"
            )
        return commit, ()

    def _commit(self, bundle: Bundle, branches: Mapping[str, str]) -> _Placed:
        """Commit to `main`, or to a temporary branch if `main` holds a newer version; check the commit, and tag it."""
        head, tree = branches[_MAIN], self._list_files(branches[_MAIN])
        newest = self._read_manifest(head) if MANIFEST_FILE in tree else None
        branch = f"malt-{bundle.tag}" if newest and newest.version > bundle.number else _MAIN
        if branch != _MAIN and branch in branches:
            head, tree = branches[branch], self._list_files(branches[branch])
        missing = _find_missing(bundle, tree)
        self._refuse_another(bundle, newest, [path for path in missing if path in tree])
        if branch not in branches:
            self.api.create_branch(self.id, branch=branch, repo_type=self.kind)
        if missing:
            stale = newest.files.keys() & tree.keys() - {file.path for file in bundle.files} if newest else ()
            head = self._send(bundle, [*missing.values()], sorted(stale), branch, head)
        self.api.create_tag(self.id, tag=bundle.tag, revision=head, repo_type=self.kind)
        if branch != _MAIN:
            self.api.delete_branch(self.id, branch=branch, repo_type=self.kind)
        return head, [*missing.values()]

    def _send(
        self, bundle: Bundle, files: Sequence[BundledFile], stale: Sequence[str], branch: str, parent: str
    ) -> str:
        """Add `files` and delete `stale` in one commit; return it once every digest in it is right."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        added = [CommitOperationAdd(file.path, file.local) for file in files]
        commit = self.api.create_commit(
            self.id,
            [*added, *map(CommitOperationDelete, stale)],
            commit_message=f"{bundle.reference}",
            repo_type=self.kind,
            revision=branch,
            parent_commit=parent,
        ).oid
        if damaged := _find_missing(bundle, self._list_files(commit)):
            raise PushDamaged(
                f"{self.dest}: damaged on the way, by the Hub's own digests: {list_first(damaged)}; there is no "
                f"tag {bundle.tag} yet. Push again to send them again"
            )
        return commit

    def _refuse_another(self, bundle: Bundle, newest: VersionManifest | None, others: Sequence[str]) -> None:
        """Raise `PushError` if the repository holds other files, another dataset, or another version of this number."""
        if newest is None and others:
            raise PushError(
                f"{self.dest} holds files that malt did not push ({list_first(others)}); nothing was sent. "
                "Push to another repository, or delete them there"
            )
        if newest is not None and newest.name_on_shelf != bundle.name:
            raise PushError(
                f"{self.dest} holds versions of {newest.name_on_shelf!r}, not of {bundle.name!r}; nothing was sent. "
                "Push to another repository"
            )
        if newest is not None and newest.version == bundle.number and MANIFEST_FILE in others:
            raise PushError(
                f"{self.dest} holds another {bundle.reference}, not tagged yet; nothing was sent. "
                "Let its push end, or push to another repository"
            )

    def _list_files(self, commit: str) -> _CommitFiles:
        from huggingface_hub import RepoFile

        entries = self.api.list_repo_tree(self.id, recursive=True, revision=commit, repo_type=self.kind)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path: Blob(file.blob_id, file.lfs.sha256 if file.lfs else None) for file in files}

    def _read_manifest(self, commit: str) -> VersionManifest:
        """Read the manifest that a commit holds."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.api.hf_hub_download(
                self.id, MANIFEST_FILE, repo_type=self.kind, revision=commit, local_dir=folder
            )
            try:
                return VersionManifest.model_validate_json(Path(path).read_bytes())
            except ValidationError as error:
                raise PushError(
                    f"{self.dest} holds a {MANIFEST_FILE} that this release cannot read; nothing was sent. "
                    "Push to another repository, or with the release that pushed there last"
                ) from error


def _find_missing(bundle: Bundle, tree: _CommitFiles) -> dict[str, BundledFile]:
    """Return the files that a commit lacks, or holds with other content, by path."""
    return {file.path: file for file in bundle.files if file.path not in tree or not tree[file.path].is_of(file)}


def _git_sha1(file: BundledFile) -> str:
    with file.local.open("rb") as opened:
        return _hash_blob(file.bytes, iter(lambda: opened.read(2**20), b""))


def _hash_blob(size: int, chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _explain(raised: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    error = raised.__cause__ or raised if isinstance(raised, RuntimeError) else raised  # failed uploads come wrapped
    if not isinstance(error, HfHubHTTPError):
        return (
            f"the Hub cannot be used ({type(error).__name__}: {fold_lines(str(error))}); "
            "check network and HF_ENDPOINT, then push again: what has arrived is not sent again"
        )
    return _explain_status(error.response.status_code, fold_lines(str(error.server_message or error)))


def _explain_status(status: int, detail: str) -> str:
    match status:
        case 401:
            return f"the Hub does not accept this token ({detail}); set HF_TOKEN to a valid one, or run: hf auth login"
        case 403:
            return f"this token may not write there ({detail}); it needs write access to the repository's owner"
        case 409 | 412:
            return f"something else changed there meanwhile ({detail}); push again"
    return f"the Hub refused ({status}: {detail})"
