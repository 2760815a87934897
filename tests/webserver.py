"""A web server on loopback that serves well, or misbehaves in each of the known ways."""

import contextlib
import email.utils
import gzip
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

PAGE = b"<!DOCTYPE html>\n<html><title>Please log in</title><p>Not your file.</p></html>\n"


@dataclass(frozen=True)
class Request:
    """What a client asked; the names of headers are in title case."""

    method: str
    path: str
    range: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One path and how it behaves.

    Attributes
    ----------
    first
        How many GET requests meet the behaviour before all is well; 0: every one.
    pause
        How long to wait before each answer. [s]
    options
        ``retry_after``, ``location``, ``headers``, ``type``: what the behaviour needs.
    """

    content: bytes
    behaviour: str
    first: int = 0
    pause: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


class WebServer:
    """A threaded HTTP/1.1 server with kept-alive connections; use it in a ``with``.

    Behaviours: ``ok no_range wrong_bytes flipped_rest html untyped_html page_as_type challenge
    empty truncated truncated_from_zero short longer longer_chunked endless chunked unsized
    not_found gone forbidden unauthorised teapot too_many unavailable error stall silent drip
    drip_headers reset redirect redirect_loop gzip wrong_range garbage no_head``.

    Parameters
    ----------
    host
        The address to listen at.
    latency
        How long to wait before each answer. [s]
    tls
        The certificate, for an https server.
    upstream
        For use as a proxy: where every CONNECT leads, whatever host it names.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        latency: float = 0.0,
        tls: ssl.SSLContext | None = None,
        upstream: tuple[str, int] | None = None,
    ) -> None:
        self.host = host
        self.latency = latency
        self.tls = tls
        self.upstream = upstream
        self.log: list[Request] = []
        self.connections = 0
        self.stopping = threading.Event()
        self.entries: dict[str, Entry] = {}
        self.folders: dict[str, Path] = {}
        self.met: Counter[str] = Counter()
        self._server = _Server((host, 0), _Handler)
        self._server.site = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def serve(
        self,
        path: str,
        content: bytes,
        behaviour: str = "ok",
        *,
        first: int = 0,
        pause: float = 0.0,
        **options: Any,
    ) -> str:
        """Serve `content` at `path` from now on; return its URL."""
        if not hasattr(_Handler, f"do_{behaviour}"):
            message = f"no behaviour {behaviour!r}"
            raise ValueError(message)
        path = "/" + path.lstrip("/")
        self.met[path] = 0
        self.entries[path] = Entry(content, behaviour, first, pause, options)
        return self.url + path

    def serve_folder(self, folder: Path, prefix: str = "/") -> str:
        """Serve the files below `folder` as they are on the disk; return the URL of the folder."""
        prefix = "/" + prefix.strip("/")
        self.folders[prefix.rstrip("/")] = folder
        return self.url + prefix.rstrip("/")

    def asked(self, path: str) -> list[Request]:
        """Return the requests for one path."""
        path = "/" + path.lstrip("/")
        return [request for request in self.log if request.path.partition("?")[0] == path]

    def find(self, path: str) -> Entry | None:
        if path in self.entries:
            return self.entries[path]
        for prefix, folder in self.folders.items():
            inner = Path(unquote(path[len(prefix) :]).lstrip("/"))
            if path.startswith(f"{prefix}/") and ".." not in inner.parts:
                file = folder / inner
                return Entry(file.read_bytes(), "ok") if file.is_file() else None
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined in server_close
    block_on_close = True
    request_queue_size = 128
    site: WebServer

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in arguments[0][0]:
            self.address_family = socket.AF_INET6
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        opened, address = super().get_request()
        if self.site.tls:  # the handshake is the handler's: here it would hold up all others
            opened = self.site.tls.wrap_socket(
                opened, server_side=True, do_handshake_on_connect=False
            )
        return opened, address

    def process_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(request)
            self.site.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """Wake every handler that waits for its client."""
        with self._lock:
            for request in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(request, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    entry: Entry

    def setup(self) -> None:
        super().setup()
        self.wfile = self.request.makefile("wb", -1)  # one packet for headers and small bodies

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        site = self.server.site
        path = urlsplit(self.path).path
        asked = self.headers.get("Range", "")
        site.log.append(Request(self.command, self.path, asked, self._told()))
        entry = site.find(path) or Entry(b"", "not_found")
        self._wait(site.latency + entry.pause)
        self.entry = entry
        behaviour = entry.behaviour
        if entry.first and self.command == "GET":
            site.met[path] += 1
            behaviour = behaviour if site.met[path] <= entry.first else "ok"
        getattr(self, f"do_{behaviour}")()
        self.wfile.flush()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        site = self.server.site
        site.log.append(Request("CONNECT", self.path, "", self._told()))
        self.entry = Entry(b"", "ok")
        self.close_connection = True
        if site.upstream is None:
            self.answer(403, b"")
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        with socket.create_connection(site.upstream) as there:
            back = threading.Thread(target=_pump, args=(there, self.connection))
            back.start()
            _pump(self.connection, there)
            back.join()

    def _told(self) -> dict[str, str]:
        return {name.title(): value for name, value in self.headers.items()}

    def _wait(self, seconds: float) -> None:
        if seconds:
            self.server.site.stopping.wait(seconds)

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: Any) -> None:
        """Send an answer; a length of -1 is not told."""
        self.send_response(status)
        told = len(body) if length is None else length
        if told >= 0:
            self.send_header("Content-Length", str(told))
        if "etag" in self.entry.options and status in {200, 206}:
            self.send_header("ETag", self.entry.options["etag"])
        for name, value in {**headers, **self.entry.options.get("headers", {})}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break_off(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    # --- behaviours -------------------------------------------------------------------------------

    def do_ok(self) -> None:
        content, options = self.entry.content, self.entry.options
        headers: dict[str, Any] = {"Accept_Ranges": "bytes"}
        headers["Content_Type"] = options.get("type", "application/octet-stream")
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        given = {options.get("etag"), options.get("headers", {}).get("Last-Modified")}
        if found is None or (condition and condition not in given):
            self.answer(200, content, **headers)
        elif int(found[1]) >= len(content):
            self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
        else:
            last = min(int(found[2] or len(content)), len(content) - 1)
            part = content[int(found[1]) : last + 1]
            headers["Content_Range"] = f"bytes {found[1]}-{last}/{len(content)}"
            self.answer(206, part, **headers)

    def do_no_range(self) -> None:
        self.answer(200, self.entry.content)

    def do_wrong_bytes(self) -> None:
        self.entry = Entry(bytes(b ^ 1 for b in self.entry.content), "ok")
        self.do_ok()

    def do_flipped_rest(self) -> None:
        """Serve the whole well, and other bytes to whoever asks for a rest."""
        if "Range" in self.headers:
            self.do_wrong_bytes()
        else:
            self.do_ok()

    def do_html(self) -> None:
        self.answer(200, PAGE, Content_Type="text/html; charset=utf-8")

    def do_untyped_html(self) -> None:
        self.answer(200, PAGE)

    def do_page_as_type(self) -> None:
        self.answer(200, self.entry.content, Content_Type="text/html")

    def do_challenge(self) -> None:
        self.answer(202, PAGE, Content_Type="text/html", x_amzn_waf_action="challenge")

    def do_empty(self) -> None:
        self.answer(200, b"")

    def do_truncated(self) -> None:
        """Close half-way through what was asked for."""
        content = self.entry.content
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        half = content[start : start + (len(content) - start) // 2]
        headers: dict[str, Any] = {}
        if found:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if found else 200, half, len(content) - start, **headers)
        self._break_off()

    def do_truncated_from_zero(self) -> None:
        self.answer(
            200, self.entry.content[: len(self.entry.content) // 2], len(self.entry.content)
        )
        self._break_off()

    def do_short(self) -> None:
        self.answer(200, self.entry.content[: len(self.entry.content) // 2])

    def do_longer(self) -> None:
        self.answer(200, self.entry.content + b"more")

    def _chunks(self, *parts: bytes, end: bool = True) -> None:
        self.answer(200, b"", -1, Transfer_Encoding="chunked")
        if self.command == "HEAD":
            return
        for part in parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def do_chunked(self) -> None:
        half = len(self.entry.content) // 2
        self._chunks(self.entry.content[:half], self.entry.content[half:])

    def do_longer_chunked(self) -> None:
        self._chunks(self.entry.content, b"more")

    def do_unsized(self) -> None:
        self.answer(200, self.entry.content, -1, Connection="close")
        self._break_off()

    def do_endless(self) -> None:
        self.answer(200, b"", -1, Connection="close")
        block = bytes(1 << 16)
        while not self.server.site.stopping.is_set():
            self.wfile.write(block)
        self._break_off()

    def do_not_found(self) -> None:
        self.answer(404, PAGE, Content_Type="text/html")

    def do_gone(self) -> None:
        self.answer(410, b"")

    def do_forbidden(self) -> None:
        self.answer(403, PAGE, Content_Type="text/html")

    def do_unauthorised(self) -> None:
        self.answer(401, b"", WWW_Authenticate="Basic")

    def do_teapot(self) -> None:
        self.answer(418, b"")

    def _later(self, status: int) -> None:
        wait = self.entry.options.get("retry_after")
        self.answer(status, b"later", **({} if wait is None else {"Retry_After": wait}))

    def do_too_many(self) -> None:
        self._later(429)

    def do_unavailable(self) -> None:
        self._later(503)

    def do_error(self) -> None:
        self.answer(500, PAGE)

    def do_stall(self) -> None:
        """Send half, then nothing until someone closes."""
        self.answer(
            200, self.entry.content[: len(self.entry.content) // 2], len(self.entry.content)
        )
        self.wfile.flush()
        self._until_closed()

    def do_silent(self) -> None:
        """Accept the request and say nothing at all."""
        self._until_closed()

    def _until_closed(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def _drip(self, content: bytes) -> None:
        every = self.entry.options.get("every", 1.0)
        enough = self.entry.options.get("lasting", 20.0)  # [s] so that a test fails, not hangs
        for byte in content[: int(enough / every)]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.site.stopping.wait(every):
                break
        self._break_off()

    def do_drip(self) -> None:
        """Send one byte a second, or `every` so many seconds."""
        self.answer(200, b"", len(self.entry.content))
        self._drip(self.entry.content)

    def do_drip_headers(self) -> None:
        self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 60000)

    def do_reset(self) -> None:
        """Send half and reset the connection."""
        self.answer(
            200, self.entry.content[: len(self.entry.content) // 2], len(self.entry.content)
        )
        self._break_off()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def do_redirect(self) -> None:
        status = self.entry.options.get("status", 302)
        self.answer(status, b"elsewhere", Location=self.entry.options["location"])

    def do_redirect_loop(self) -> None:
        self.answer(302, b"", Location=self.path)

    def do_gzip(self) -> None:
        self.answer(200, gzip.compress(self.entry.content), Content_Encoding="gzip")

    def do_wrong_range(self) -> None:
        """Answer a range with a part that begins elsewhere."""
        if "Range" not in self.headers:
            self.do_ok()
            return
        content = self.entry.content
        headers: dict[str, Any] = {"Content_Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
        self.answer(206, content, **headers)

    def do_garbage(self) -> None:
        self.wfile.write(b"\x1b]0;owned\x07 no HTTP\r\n\r\n")
        self._break_off()

    def do_no_head(self) -> None:
        if self.command == "HEAD":
            self.answer(405, b"")
        else:
            self.do_ok()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            sink.sendall(block)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def http_date(seconds: float) -> str:
    """Return the moment in so many seconds as HTTP writes it."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
