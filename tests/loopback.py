"""A hub on this machine: repositories of models and data sets in the protocol that `huggingface_hub` speaks.

What it does not have is answered with the hub's own error codes (`X-Error-Code`), large files have the headers of those in LFS, and
a download can be cut in the middle. Who has the token may make repositories and commit to them; cards are checked.
Source of the protocol: `huggingface_hub` 2.4, `file_download.py`, `hf_api.py`, `_commit_api.py`, `lfs.py`, `utils/_http.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = 10_000  # bytes from which a file is in LFS
SLOW = 1_000  # bytes of a piece, where it is slow
TOKEN = "hf_of_this_test"
PIPELINES = {
    "visual-question-answering", "image-to-text", "zero-shot-image-classification", "image-classification", "image-segmentation",
    "image-text-to-text", "zero-shot-object-detection",
}  # fmt: skip
LICENSES = {"apache-2.0", "mit", "unknown", "other"}


@dataclass
class Repository:
    """One repository.

    Attributes:
        commits: by commit, the folder with its files.
        refs: by branch or tag, the commit.
        gated: only who has asked for access may have its files; private: only who has a token knows of it.
        hidden: files that are listed, and not there.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    hidden: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """The server's state.

    Attributes:
        address: where it answers.
        repositories: by `models/OWNER/NAME` and `datasets/OWNER/NAME`.
        asked: what it was asked for, as `METHOD PATH`.
        sent: bytes of files that it has sent, by their name.
        cut: bytes after which the next download of a file breaks off, by its name.
        stalls: bytes after which every download of a file falls silent, by its name.
        pace: seconds that it rests after each piece of a file.
        silent: how the paths begin that it takes requests for and answers none, as `/api`.
        objects: large files that were uploaded, by their SHA-256.
        over: whether it is to end.
        folder: where it keeps what is uploaded.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    pace: float = 0.0
    silent: tuple[str, ...] = ()
    objects: dict[str, bytes] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    folder: Path = Path()

    def add(self, name: str, folder: Path, kind: str = "models", revision: str = "main", **about: Any) -> str:
        """A commit with the files of a folder, on a branch. Returns it."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        commit = hashlib.sha1(f"{name} {revision} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit], repository.refs[revision] = folder, commit
        for key, value in about.items():
            setattr(repository, key, value)
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        posted = self._body().decode()
        path = unquote(urlsplit(self.path).path)
        writes = re.fullmatch(
            r"/api/(repos/create|validate-yaml|models/([^/]+/[^/]+)/(preupload|commit)/[^/]+)|/([^/]+/[^/]+)\.git/info/lfs/.*",
            path,
        )
        if not writes:
            return self._answer(body=True, posted=posted)
        self.hub.asked.append(f"POST {path}")
        if writes[1] == "validate-yaml":
            return self._checked_card(json.loads(posted)["content"])
        if not self._has_token():
            return self._error(401, "", "Invalid username or password.")
        if writes[1] == "repos/create":
            return self._make_repository(json.loads(posted))
        if (name := f"models/{writes[2] or writes[4]}") not in self.hub.repositories:
            return self._error(404, "RepoNotFound", "Repository not found")
        if writes[3] == "preupload":
            files = json.loads(posted)["files"]
            modes = {True: "lfs", False: "regular"}
            told = [{"path": f["path"], "uploadMode": modes[f["size"] >= LARGE], "shouldIgnore": False} for f in files]
            return self._json({"files": told})
        if writes[3] == "commit":
            return self._commit(name, [json.loads(line) for line in posted.splitlines()])
        wanted = [one for one in json.loads(posted)["objects"] if one["oid"] not in self.hub.objects]
        for one in wanted:
            one["actions"] = {"upload": {"href": f"{self.hub.address}/objects/{one['oid']}"}}
        return self._json({"transfer": "basic", "objects": wanted})

    def do_PUT(self) -> None:
        name, content = self.path.rpartition("/")[2], self._body()
        if hashlib.sha256(content).hexdigest() != name:
            return self._error(400, "", "not what was announced")
        self.hub.objects[name] = content
        return self._json({})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _make_repository(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if f"models/{name}" in self.hub.repositories:
            known = {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}
            return self._json(known, 409)
        folder = Path(tempfile.mkdtemp(dir=self.hub.folder))
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.hub.add(name, folder, private=wanted.get("private", wanted.get("visibility") == "private"))
        return self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": "1"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        folder = Path(tempfile.mkdtemp(dir=self.hub.folder))
        shutil.copytree(repository.commits[repository.refs["main"]], folder, dirs_exist_ok=True)
        for line in lines:
            file = folder / line["value"].get("path", "")
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                file.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                file.write_bytes(self.hub.objects[line["value"]["oid"]])
            elif line["key"] == "deletedFile":
                file.unlink()
        commit = self.hub.add(name.partition("/")[2], folder)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _checked_card(self, content: str) -> None:
        """What is wrong with what a card says of itself, as far as the hub's own rules are known here."""
        about = yaml.safe_load(content.split("---")[1])
        bases = about.get("base_model") or []
        named = [bases] if isinstance(bases, str) else bases
        wrong = [f'"base_model" {one} is no model id' for one in named if not re.fullmatch(r"[\w.-]+/[\w.-]+", one)]
        wrong += [] if about.get("license") in LICENSES else ['"license" must be one of the list']
        wrong += [] if about.get("pipeline_tag") in {None, *PIPELINES} else ['"pipeline_tag" is unknown']
        for result in (one for model in about.get("model-index", []) for one in model["results"]):
            whole = {"task", "dataset", "metrics"} <= {*result} and {"type", "name"} <= {*result["dataset"]}
            wrong += [] if whole and all({"type", "value"} <= {*m} for m in result["metrics"]) else ['"model-index"']
        answer = {"errors": [{"message": one} for one in wrong], "warnings": []}
        self._json(answer, 400 if wrong else 200)

    def _answer(self, body: bool, posted: str = "") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith(self.hub.silent or "//"):
            return self._fall_silent()
        words = [word for word in path.split("/") if word]
        api = words[:1] == ["api"]
        words = words[api:]
        kind = "datasets" if words[:1] == ["datasets"] else "models"
        words = words[1:] if words[:1] in (["datasets"], ["models"]) else words
        if len(words) < 2:
            return self._json([], 200 if not words else 404)
        repository, rest = self.hub.repositories.get(f"{kind}/{words[0]}/{words[1]}"), words[2:]
        has_token = self._has_token()
        if repository is None or (repository.private and not has_token):
            # as of a repository that is not there, so of one that is private
            return self._error(404 if has_token else 401, "RepoNotFound", "Repository not found")
        verb, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        commit = repository.commit(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = {
            str(file.relative_to(repository.commits[commit])): file
            for file in sorted(repository.commits[commit].rglob("*"))
            if file.is_file()
        }
        if verb == "resolve" and not api:
            if repository.gated and not has_token:
                return self._error(401, "GatedRepo", "Access to this repository is restricted")
            return self._file(files, "/".join(rest[2:]), commit, repository, body)
        if verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "/".join(words[:2]), "sha": commit, "siblings": siblings, "private": repository.private}
            return self._json(
                {**about, "gated": "auto" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0}
            )
        if verb == "tree":
            below = "/".join(rest[2:])
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            return self._json(_tree(files, below, recursive), 200)
        if verb == "paths-info":
            try:
                paths = json.loads(posted)["paths"]
            except ValueError:
                paths = parse_qs(posted)["paths"]
            entries = _tree(files, "", recursive=True)
            return self._json([entry for entry in entries if entry["path"] in paths])
        return self._error(404, "", f"no {verb}")

    def _file(self, files: dict[str, Path], name: str, commit: str, repository: Repository, body: bool) -> None:
        if name not in files or name in repository.hidden:
            self._error(404, "EntryNotFound", f"Entry not found: {name}", commit)
            return
        content = files[name].read_bytes()
        asked = self.headers.get("Range", "")
        bounds = asked.removeprefix("bytes=").split("-") if asked else ["", ""]
        first, end = int(bounds[0] or 0), min(int(bounds[1] or len(content)) + 1, len(content))
        self.send_response(206 if asked else 200)
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if len(content) >= LARGE:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        for key, value in {**headers, "Content-Length": str(end - first)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            there, stalls = content[first:end], name in self.hub.stalls
            if (most := self.hub.cut.pop(name, None)) is not None:
                there, self.close_connection = there[:most], True
            if stalls:
                there = there[: max(0, self.hub.stalls[name] - first)]
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(there)
            for start in range(0, len(there), SLOW) if self.hub.pace else ():
                self.wfile.write(there[start : start + SLOW])
                time.sleep(self.hub.pace)
            self.wfile.write(b"" if self.hub.pace else there)
            if stalls:
                self._fall_silent()

    def _fall_silent(self) -> None:
        self.wfile.flush()
        self.hub.over.wait(120)
        self.close_connection = True

    def _error(self, status: int, code: str, message: str, commit: str = "") -> None:
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit, "Content-Length": "0"}
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.end_headers()

    def _json(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: dict[str, Path], below: str, recursive: bool) -> list[dict[str, Any]]:
    """What is in a folder of a repository, as the hub lists it."""
    found: dict[str, dict[str, Any]] = {}
    start = f"{below}/" if below else ""
    for name, file in files.items():
        if not name.startswith(start):
            continue
        folders = name.removeprefix(start).split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            path = start + "/".join(folders[:depth])
            if recursive or depth == 1:
                found[path] = {
                    "type": "directory",
                    "path": path,
                    "oid": hashlib.sha1(path.encode()).hexdigest(),
                    "size": 0,
                }
        if folders and not recursive:
            continue
        content = file.read_bytes()
        entry = {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        if len(content) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        found[name] = entry
    return list(found.values())


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at 127.0.0.1 while inside."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _serving(Hub(folder=Path(folder)))


def _serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()


def environment(address: str, home: Path) -> dict[str, str]:
    """The variables by which the client finds a hub, and keeps what it fetches in a folder."""
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


def client_of(hub: Hub, home: Path, patch: Any) -> None:
    """Let the client in this process, which has read its variables, use a hub and a cache of its own."""
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_api

    for key, value in environment(hub.address, home).items():
        patch.setenv(key, value)
    for key in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        patch.delenv(key, raising=False)
    settings = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }
    for key, value in settings.items():
        patch.setattr(constants, key, value)
    # objects made once: PEFT asks the first whether a file is there, transformers lists templates by the second
    patch.setattr(hf_api.api, "endpoint", hub.address)
    if (loaded := sys.modules.get("transformers.utils.hub")) is not None:
        patch.setattr(loaded, "_hf_api", None, raising=False)


def copy(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint, to change something in."""
    shutil.copytree(source, folder)
    return folder
