"""A stand-in for the Hugging Face Hub: its HTTP API for repositories of datasets and models, kept in memory.

    with Hub() as hub:
        environment = hub.environment  # for a process that should use it

It stores repositories with commits, branches and tags, small files by git's digest and large files by their SHA-256;
`.parquet`, `.safetensors` and `.gguf` files are large. Paths in `damaged` are stored with one byte changed; uploads of
large files hang from number `stall_at` on, counted from 1; `raced` inserts somebody else's commit before the next.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from huggingface_hub import constants

from tests.serving import Served

OWNER = "someone"
TOKEN = "hf_may_write"
READ_TOKEN = "hf_may_read"


@dataclass(frozen=True)
class Blob:
    """One file in a commit."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's digest of the content, or of the LFS pointer to a large file."""
        return git_sha1(self.pointer if self.is_large else self.content)

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def size(self) -> int:
        return len(self.content)

    def entry(self, path: str) -> dict[str, Any]:
        """Return this file's entry in the Hub's listing of a tree."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return entry | {"lfs": lfs} if self.is_large else entry


Files = dict[str, Blob]


@dataclass
class Repository:
    is_private: bool
    kind: str = "dataset"
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files, message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(json.dumps([len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> Files:
        """Return the files of a branch, a tag or a commit."""
        return self.commits[self.resolved(revision)]

    def resolved(self, revision: str) -> str:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refusal(status: int, message: str, code: str = "") -> web.HTTPException:
    """Return an error response in the Hub's shape."""
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound, 409: web.HTTPConflict}
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    kind = kinds.get(status, web.HTTPPreconditionFailed)
    return kind(text=json.dumps({"error": message}), headers=headers, content_type="application/json")


class Hub(Served):
    """The server; its fields may be read while it runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        """Contents of large files, by the SHA-256 in the upload's URL."""
        self.uploads: list[str] = []
        """SHA-256 of every uploaded large file, in order."""
        self.requests: list[str] = []
        """Method and path of every request."""
        self.damaged: set[str] = set()
        self.stall_at: int | None = None
        self.stalled = threading.Event()
        self.raced = False
        self._begun = 0

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point Hugging Face's libraries at this server."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def use_here(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process at the server too: its `huggingface_hub` read the environment when it was imported."""
        for name, value in {**self.environment, "HF_HOME": str(folder / "hf"), "TMPDIR": str(folder)}.items():
            monkeypatch.setenv(name, value)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", self.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf" / "token"))

    def sent(self, method: str) -> list[str]:
        """The paths of the requests with one method."""
        return [path for verb, _, path in (line.partition(" ") for line in self.requests) if verb == method]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**40, middlewares=[self._noted])
        app.add_routes(self._routes())
        return app

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/whoami-v2", self._whoami),
            web.post("/api/repos/create", self._create),
            web.post("/api/validate-yaml", self._validate),
            web.put("/large/{sha256}", self._upload),
            web.get("/large/{sha256}", self._download),
            web.post("/large/{sha256}/verify", self._verify),
            *self._routes_below("datasets", "/datasets"),
            *self._routes_below("models", ""),
        ]

    def _routes_below(self, kind: str, folder: str) -> list[web.RouteDef]:
        api, git = f"/api/{kind}" + "/{id:[^/]+/[^/]+}", folder + "/{id:[^/]+/[^/]+}"
        return [
            web.get(api, self._info),
            web.get(api + "/revision/{revision}", self._info),
            web.get(api + "/refs", self._refs),
            web.get(api + "/tree/{revision}", self._tree),
            web.get(api + "/tree/{revision}/{path:.+}", self._tree),
            web.post(api + "/paths-info/{revision}", self._paths_info),
            web.post(api + "/preupload/{revision}", self._preupload),
            web.post(git + ".git/info/lfs/objects/batch", self._batch),
            web.post(api + "/commit/{revision}", self._commit),
            web.post(api + "/tag/{revision}", self._tag),
            web.post(api + "/branch/{revision}", self._branch),
            web.delete(api + "/branch/{revision}", self._unbranch),
            web.get(git + "/resolve/{revision}/{path:.+}", self._resolve),
        ]

    @web.middleware
    async def _noted(self, request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401
        self.requests.append(f"{request.method} {request.path}")
        authorization = request.headers.get("Authorization", f"Bearer {TOKEN}" if "/large/" in request.path else "")
        if authorization.removeprefix("Bearer ") not in ("", TOKEN, READ_TOKEN):
            raise refusal(401, "Invalid credentials in Authorization header")
        response: web.StreamResponse = await handler(request)
        return response

    def _read(self, request: web.Request) -> Repository:
        repository = self.repositories.get(request.match_info["id"])
        is_dataset = request.path.startswith(("/datasets/", "/api/datasets/"))
        if (
            repository is None
            or is_dataset != (repository.kind == "dataset")
            or (repository.is_private and "Authorization" not in request.headers)
        ):
            raise refusal(404 if "Authorization" in request.headers else 401, "Repository not found", "RepoNotFound")
        return repository

    def _write(self, request: web.Request, owner: str) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}" or owner != OWNER:
            raise refusal(403, f"You don't have the rights to write under the namespace {owner!r}")

    def _written(self, request: web.Request) -> Repository:
        self._write(request, request.match_info["id"].split("/")[0])
        return self._read(request)

    async def _whoami(self, _request: web.Request) -> web.Response:
        return web.json_response({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self._write(request, asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            raise refusal(409, "You already created this dataset repo")
        kind = asked.get("type", "model")
        repository = Repository(is_private=asked.get("visibility") == "private", kind=kind)
        repository.commit("main", {".gitattributes": Blob(b"*.parquet filter=lfs\n", is_large=False)}, "initial commit")
        self.repositories[name] = repository
        folder = "datasets/" if kind == "dataset" else ""
        return web.json_response({"url": f"{self.address}/{folder}{name}", "name": name, "id": name})

    async def _validate(self, _request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})

    async def _info(self, request: web.Request) -> web.Response:
        repository = self._read(request)
        commit = repository.resolved(request.match_info.get("revision", "main"))
        name = request.match_info["id"]
        told = {"_id": "1", "id": name, "author": OWNER, "sha": commit, "private": repository.is_private}
        siblings = [{"rfilename": path} for path in repository.files(commit)]
        return web.json_response(told | {"gated": False, "disabled": False, "tags": [], "siblings": siblings})

    async def _refs(self, request: web.Request) -> web.Response:
        repository = self._read(request)

        def told(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        branches, tags = told("heads", repository.branches), told("tags", repository.tags)
        return web.json_response({"branches": branches, "tags": tags, "converts": []})

    async def _tree(self, request: web.Request) -> web.Response:
        files = self._read(request).files(request.match_info["revision"])
        below = unquote(request.match_info.get("path", ""))
        entries = entries_below(files, f"{below}/" if below else "", deep=request.query.get("recursive") == "true")
        if below and not entries:
            raise refusal(404, f"{below} does not exist", "EntryNotFound")
        return web.json_response(entries)

    async def _paths_info(self, request: web.Request) -> web.Response:
        files = self._read(request).files(request.match_info["revision"])
        paths = [str(path) for path in (await request.post()).getall("paths", [])]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        told = [files[path].entry(path) for path in paths if path in files]
        return web.json_response(told + [folder_entry(path) for path in folders])

    async def _preupload(self, request: web.Request) -> web.Response:
        files = self._written(request).files(request.match_info["revision"])

        def told(path: str) -> dict[str, Any]:
            is_large, held = path.endswith((".parquet", ".safetensors", ".gguf")), files.get(path)
            oid = None if held is None else held.sha256 if held.is_large else held.oid
            return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

        asked = (await request.json())["files"]
        return web.json_response({"files": [told(file["path"]) for file in asked]})

    async def _batch(self, request: web.Request) -> web.Response:
        self._written(request)

        def told(asked: dict[str, Any]) -> dict[str, Any]:
            href = f"{self.address}/large/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            return asked | ({} if asked["oid"] in self.large else {"actions": actions})

        objects = [told(asked) for asked in (await request.json())["objects"]]
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _upload(self, request: web.Request) -> web.Response:
        content = await request.read()
        self._begun += 1
        if self.stall_at is not None and self._begun >= self.stall_at:
            self.stalled.set()
            await self._stopped.wait()
        sha256 = request.match_info["sha256"]
        self.uploads.append(sha256)
        self.large[sha256] = content
        return web.Response()

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.large[request.match_info["sha256"]])

    async def _verify(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["sha256"] in self.large else 404)

    async def _commit(self, request: web.Request) -> web.Response:
        repository, branch = self._written(request), request.match_info["revision"]
        if self.raced:
            self.raced = False
            repository.commit(branch, repository.files(branch), "someone else's")
        header, *operations = [json.loads(line) for line in (await request.read()).splitlines()]
        if header["value"].get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files(branch))
        for operation in operations:
            self._apply(operation["key"], operation["value"], files)
        oid = repository.commit(branch, files, header["value"]["summary"])
        url = f"{self.address}/datasets/{request.match_info['id']}/commit/{oid}"
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": url})

    def _apply(self, key: str, value: dict[str, Any], files: Files) -> None:
        path = value["path"]
        if key == "deletedFile":
            del files[path]
        elif key == "file":
            files[path] = self._stored(path, Blob(base64.b64decode(value["content"]), is_large=False))
        else:
            assert key == "lfsFile"
            files[path] = self._stored(path, Blob(self.large[value["oid"]], is_large=True))

    def _stored(self, path: str, blob: Blob) -> Blob:
        if path not in self.damaged:
            return blob
        return replace(blob, content=blob.content[:-1] + bytes([blob.content[-1] ^ 1]))

    async def _tag(self, request: web.Request) -> web.Response:
        repository, tag = self._written(request), (await request.json())["tag"]
        if tag in repository.tags:
            raise refusal(409, "Tag reference exists already")
        repository.tags[tag] = repository.resolved(request.match_info["revision"])
        return web.Response()

    async def _branch(self, request: web.Request) -> web.Response:
        repository = self._written(request)
        repository.branches[request.match_info["revision"]] = repository.branches["main"]
        return web.Response()

    async def _unbranch(self, request: web.Request) -> web.Response:
        del self._written(request).branches[request.match_info["revision"]]
        return web.Response()

    async def _resolve(self, request: web.Request) -> web.Response:
        """Serves GET and HEAD."""
        repository, path = self._read(request), request.match_info["path"]
        commit = repository.resolved(request.match_info["revision"])
        if path not in repository.files(commit):
            raise refusal(404, f"{path} does not exist", "EntryNotFound")
        blob = repository.files(commit)[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.sha256 if blob.is_large else blob.oid}"'}
        return web.Response(body=blob.content, headers=headers)


def entries_below(files: Files, prefix: str, *, deep: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder; with `deep`, of all folders below it too."""
    below = [path for path in files if path.startswith(prefix)]
    folders = {path[: place + len(prefix)] for path in below if (place := path[len(prefix) :].find("/")) >= 0}
    shown = [path for path in below if deep or "/" not in path[len(prefix) :]]
    return [folder_entry(folder) for folder in sorted(folders)] + [files[path].entry(path) for path in shown]


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Stand-in Hub for this process and for the processes that it starts."""
    with Hub() as server:
        server.use_here(tmp_path, monkeypatch)
        yield server
