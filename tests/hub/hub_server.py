"""A hub on loopback: the routes of Hugging Face that a download uses, over real HTTP, with the failures that happen.

The list of a repository, HEAD and GET of a file with commit, size and ETag, the redirect to another origin (a second
server, as a content network is), ranges, tokens, gated repositories, rate limits, broken transfers and Xet's headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repo:
    """A repository and how it behaves."""

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False
    large: bool = True
    """Whether files are large ones, with a SHA-256 and a redirect; else Git's own, answered at once."""
    xet: bool = False
    break_after: list[int] = field(default_factory=list)
    """For each coming transfer the bytes after which the connection is cut."""
    refuse: list[int] = field(default_factory=list)
    """Status codes of the coming transfers, before any succeeds."""
    damaged: int = 0
    """Coming transfers that send other bytes."""
    no_range: bool = False
    slow: float = 0.0
    """Seconds between two pieces."""
    no_etag: bool = False
    lie: bool = False
    """Whether the list gives another checksum than the file."""
    list_status: int = 200


@dataclass
class Asked:
    """A request as it came."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub:
    """Two servers: the hub, and the content network that it redirects to."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.sent = 0
        self._servers = [_server(self, name) for name in ("hub", "content")]
        self._threads = [threading.Thread(target=each.serve_forever, daemon=True) for each in self._servers]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def content_url(self) -> str:
        return f"http://localhost:{self._servers[1].server_address[1]}"

    def transfers(self) -> list[Asked]:
        """Return the requests for bytes of files."""
        return [each for each in self.asked if each.method == "GET" and each.path.startswith("/content/")]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _server(hub: Hub, name: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = True
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(
            Asked(self.name, self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.name == "content":
            assert path.startswith("/content/")
            user, repo, name = path.removeprefix("/content/").split("/", 2)
            self._bytes(self.hub.repos[f"{user}/{repo}"], name)
        elif path.startswith("/api/models/"):
            self._list(path.removeprefix("/api/models/"))
        else:
            self._resolve(path.removeprefix("/"))

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _let_in(self, repo: Repo | None) -> bool:
        if repo is None or (repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            self._say(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif repo.gated:
            self._say(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        else:
            return True
        return False

    def _list(self, rest: str) -> None:
        words = rest.split("/")
        name, revision = "/".join(words[:2]), "/".join(words[3:]) or "main"
        repo = self.hub.repos.get(name)
        if not self._let_in(repo) or repo is None:
            return
        if repo.list_status != 200:
            self._say(repo.list_status, b"{}", Retry_After="7")
            return
        if revision not in ("main", COMMIT):
            self._say(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        siblings = []
        for file, data in repo.files.items():
            row: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
            if repo.large:
                digest = hashlib.sha256(b"x" + data if repo.lie else data).hexdigest()
                row["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(row)
        body = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        self._say(200, json.dumps(body).encode(), Content_Type="application/json")

    def _resolve(self, rest: str) -> None:
        user, repo_name, _, revision, file = rest.split("/", 4)
        repo = self.hub.repos.get(f"{user}/{repo_name}")
        if not self._let_in(repo) or repo is None:
            return
        if revision not in ("main", COMMIT) or file not in repo.files:
            self._say(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        data = repo.files[file]
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not repo.large:
            if not repo.no_etag:
                headers["ETag"] = f'"{git_sha1(data)}"'
            self._bytes(repo, file, headers)
            return
        headers["Location"] = f"{self.hub.content_url}/content/{user}/{repo_name}/{file}"
        headers["X-Linked-Size"] = str(len(data))
        if not repo.no_etag:
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        if repo.xet:
            headers["X-Xet-Hash"] = hashlib.sha256(b"xet" + data).hexdigest()
            headers["X-Xet-Cas-Url"] = f"{self.hub.content_url}/cas"
            headers["Link"] = f'<{self.hub.url}/api/models/{user}/{repo_name}/xet-read-token/{COMMIT}>; rel="xet-auth"'
        self._say(302, **{name.replace("-", "_"): value for name, value in headers.items()})

    def _bytes(self, repo: Repo, file: str, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET" and repo.refuse:
            self._say(repo.refuse.pop(0), b"{}", Retry_After="1")
            return
        data = repo.files[file]
        start = 0
        asked = self.headers.get("Range")
        if asked and not repo.no_range:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self._say(416)
                return
        if self.command == "GET" and repo.damaged:
            repo.damaged -= 1
            data = bytes(byte ^ 1 for byte in data)
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = repo.break_after.pop(0) if repo.break_after else len(body)
        try:
            step = max(4096, len(body) // 64)
            for at in range(0, min(cut, len(body)), step):
                piece = body[at : min(at + step, cut)]
                self.wfile.write(piece)
                self.hub.sent += len(piece)
                if repo.slow:
                    time.sleep(repo.slow)
        except OSError:
            pass


def git_sha1(data: bytes) -> str:
    """Return the name that Git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
