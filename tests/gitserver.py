"""A git server on a port of this machine: git's own smart HTTP, with and without a password."""

import base64
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass
class GitServer:
    """A running server and its repositories.

    Attributes
    ----------
    password
        What a push has to know, as ``user:password``; empty where anyone may push.
    requests
        Method and path of every request.
    """

    root: Path
    url: str = ""
    password: str = ""
    requests: list[str] = field(default_factory=list)

    def make(self, name: str) -> str:
        """Make an empty repository, and return its URL."""
        folder = self.root / name
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", folder], check=True)
        for setting in ("http.receivepack", "http.uploadpack"):
            subprocess.run(["git", "--git-dir", folder, "config", setting, "true"], check=True)
        return f"{self.url}/{name}"


class _Handler(BaseHTTPRequestHandler):
    """Hands each request to ``git http-backend``, a CGI program (RFC 3875)."""

    protocol_version = "HTTP/1.1"
    server: "_Listening"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _denied(self, parts: Any) -> bool:
        wanted = self.server.ours.password
        pushes = "git-receive-pack" in f"{parts.path}?{parts.query}"
        told = base64.b64encode(wanted.encode()).decode()
        return bool(wanted) and pushes and self.headers.get("Authorization") != f"Basic {told}"

    def _answer(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        self.server.ours.requests.append(f"{self.command} {self.path}")
        if self._denied(parts):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "GIT_PROJECT_ROOT": str(self.server.ours.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_NOSYSTEM": "1",
                "HOME": "/nonexistent",
                "REMOTE_USER": "tester",
                "REMOTE_ADDR": "127.0.0.1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        headers.pop("Content-Length", None)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    ours: GitServer


@contextlib.contextmanager
def git_server(root: Path, password: str = "") -> Iterator[GitServer]:
    """Serve the repositories below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    with _Listening(("127.0.0.1", 0), _Handler) as listening:
        listening.ours = GitServer(root, f"http://127.0.0.1:{listening.server_port}", password)
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield listening.ours
        finally:
            listening.shutdown()
            thread.join()
