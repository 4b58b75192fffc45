"""A small hub on this machine: the parts of its HTTP interface that fetching and uploading a model
use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"
Files = dict[str, bytes]


@dataclass
class Repository:
    """The commits and branches of one model."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch; returns its hash."""
        merged = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        text = repr(
            (
                len(self.commits),
                sorted((name, hashlib.sha1(data).hexdigest()) for name, data in merged.items()),
            )
        )
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = merged
        self.refs[branch] = commit
        return commit


class Hub:
    """The server, its models, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cards: list[str] = []
        self.corrupt = False
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, files: Files, *, private: bool = False) -> str:
        """Put a model there; returns its commit."""
        return self.repositories.setdefault(name, Repository(private)).commit(files)

    def fetched(self) -> set[str]:
        """Names of the files that were downloaded."""
        return {
            line.rpartition("/")[2]
            for line in self.requests
            if line.startswith("GET") and "/resolve/" in line
        }

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_POST(self) -> None:
        hub, body = self.server_hub, self._body()
        hub.requests.append(f"POST {self.path}")
        if self.path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            return self._json({"errors": [], "warnings": []})
        if not self._allowed():
            return self._error(401, "", "Invalid username or password.")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+)", self.path
        )
        if found:
            return getattr(self, f"_{found[2]}")(
                hub.repositories[found[1]], found[1], found[3], body
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{hub.address}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._json(
                {"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json"
            )
        return self._error(404, "", "not here")

    def do_PUT(self) -> None:
        body = self._body()
        self.server_hub.requests.append(f"PUT {self.path}")
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server_hub.blobs[oid] = body
        self._json({})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        there = name in self.server_hub.repositories
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.server_hub.repositories.setdefault(name, Repository(private)).refs.setdefault(
            "main", ""
        )
        answer = {"url": f"{self.server_hub.address}/{name}", "name": name}
        self._json(answer, status=409 if there else 200)

    def _preupload(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        files = [
            {
                "path": entry["path"],
                "uploadMode": "lfs" if is_large(entry["path"]) else "regular",
                "shouldIgnore": False,
            }
            for entry in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _branch(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        repository.refs[branch] = repository.refs["main"]
        self._json({})

    def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        files: Files = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server_hub.blobs[entry["value"]["oid"]]
        commit = repository.commit(files, branch)
        self._json(
            {
                "commitUrl": f"{self.server_hub.address}/{name}/commit/{commit}",
                "commitOid": commit,
                "pullRequestUrl": None,
            }
        )

    def _read(self) -> None:
        hub = self.server_hub
        hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path
        ) or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if found is None and (short := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)):
            name, kind, revision = short[1], "revision", "main"
        elif found is not None:
            name, kind, revision = found[1], found[2], found[3]
        else:
            return self._error(404, "", "not here")
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and not self._allowed()):
            return self._error(401, "RepoNotFound", "Repository not found")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        files = repository.commits[commit]
        if kind == "revision":
            return self._json(
                {
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "siblings": [{"rfilename": file} for file in files],
                }
            )
        if kind == "tree":
            return self._json([_describe(file, data) for file, data in files.items()])
        assert found is not None
        return self._file(files, found[4], commit)

    def _file(self, files: Files, file: str, commit: str) -> None:
        if file not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        data = files[file]
        head = {"X-Repo-Commit": commit, "ETag": f'"{_describe(file, data)["oid"]}"'}
        if is_large(file):
            head |= {
                "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
            }
        if self.server_hub.corrupt and is_large(file):
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(200, data, "application/octet-stream", head)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, values: Any, kind: str = "application/json", status: int = 200) -> None:
        self._send(status, json.dumps(values).encode(), kind, {})

    def _error(self, status: int, code: str, message: str) -> None:
        head = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), "application/json", head)

    def _send(self, status: int, data: bytes, kind: str, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **head}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _describe(file: str, data: bytes) -> dict[str, Any]:
    """An entry of the list of files, as the hub gives it."""
    entry: dict[str, Any] = {
        "type": "file",
        "path": file,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if is_large(file):
        entry["lfs"] = {
            "oid": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "pointerSize": 130,
        }
    return entry
