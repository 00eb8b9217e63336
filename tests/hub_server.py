"""A model hub on 127.0.0.1: the part of the protocol that downloading a snapshot takes, with a log of every request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

MAIN_COMMIT = "a" * 40


@dataclass
class Repository:
    """One repository: its files by path, its revisions, and how it misbehaves.

    :param revisions: commits by branch or tag; every commit has the same files.
    :param answer: status and headers that every request gets instead of an answer.
    :param failing: files whose download is answered with 500.
    """

    files: Mapping[str, bytes]
    revisions: Mapping[str, str] = field(default_factory=lambda: {"main": MAIN_COMMIT})
    answer: tuple[int, Mapping[str, str]] | None = None
    failing: frozenset[str] = frozenset()


class HubServer:
    """A context manager that serves `repositories` (a dict that tests may change) at ``url``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str | None] = set()
        self._server: ThreadingHTTPServer | None = None
        self.url = ""

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away; further requests are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def downloads(self) -> list[str]:
        """The files whose bytes were fetched, in order."""
        return [path.partition("/resolve/")[2].split("/", 1)[1] for method, path in self.requests
                if method == "GET" and "/resolve/" in path]  # fmt: skip

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def log_message(self, format: str, *args: object) -> None:
                return

            def _answer(self, with_body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                hub.authorizations.add(self.headers.get("authorization"))
                status, headers, body = _respond(hub.repositories, self.command, path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        return Handler


Response = tuple[int, Mapping[str, str], bytes]


def _respond(repositories: Mapping[str, Repository], method: str, path: str) -> Response:
    name = path.removeprefix("/api/models").strip("/")
    for identity, repository in repositories.items():
        if name == identity or name.startswith(identity + "/"):
            if repository.answer is not None:
                return repository.answer[0], repository.answer[1], b""
            return _from_repository(identity, repository, method, name.removeprefix(identity).strip("/"))
    return 404, {"X-Error-Code": "RepoNotFound"}, b""


def _from_repository(identity: str, repository: Repository, method: str, rest: str) -> Response:
    kind, _, rest = rest.partition("/")
    commits = {**repository.revisions, **{commit: commit for commit in repository.revisions.values()}}
    revision = max(
        (known for known in commits if rest == known or rest.startswith(known + "/")), key=len, default="main"
    )
    if rest and revision == "main" and not rest.startswith("main"):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    commit = commits[revision]
    if kind in ("", "revision"):
        siblings = [{"rfilename": file} for file in repository.files]
        return _json({"id": identity, "sha": commit, "siblings": siblings})
    if kind == "tree":
        return _json([
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in repository.files.items()
        ])  # fmt: skip
    file = rest.removeprefix(revision).strip("/")
    if kind != "resolve" or file not in repository.files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    if method == "GET" and file in repository.failing:
        return 500, {}, b""
    data = repository.files[file]
    return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}, data


def _json(content: object) -> Response:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
