"""Downloads end with the right bytes or a plain reason, whatever the server does."""

import errno
import hashlib
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webserver import PAGE, WebServer, http_date, wait_until

from scibench_data.errors import SpaceError
from scibench_data.net import answers
from scibench_data.net.answers import Headers
from scibench_data.net.guard import Refusal, is_public, shown
from scibench_data.net.web import Received, Web

CONTENT = random.Random(0).randbytes(200_000)  # noqa: S311  (not for secrets)
LARGE = CONTENT * 16
"""Large enough for a note on the disk: 3.2 MB."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SHA256 = sha256(CONTENT)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as started:
        yield started


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(allowed_hosts=["127.0.0.1"], stall=0.6, patience=2.5, delay=0.005) as opened:
        yield opened


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.partial"


def refused(web: Web, url: str, target: Path, **options: Any) -> Refusal:
    """Download what must be refused; return the refusal."""
    wanted: dict[str, Any] = {"size": len(CONTENT), "sha256": SHA256} | options
    with pytest.raises(Refusal) as caught:
        web.download(url, target, **wanted)
    return caught.value


# --- what goes well -------------------------------------------------------------------------------


def test_a_file_arrives_with_its_checksum_version_and_progress(
    server: WebServer, web: Web, target: Path
) -> None:
    modified = "Mon, 05 Jan 2026 10:00:00 GMT"
    url = server.serve("a.bin", CONTENT, etag='"v1"', headers={"Last-Modified": modified})
    steps: list[int] = []

    received = web.download(url, target, size=len(CONTENT), sha256=SHA256, tick=steps.append)

    assert received == Received(len(CONTENT), SHA256, '"v1"', modified)
    assert target.read_bytes() == CONTENT
    assert sum(steps) == len(CONTENT)
    (request,) = server.log
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("scibench-data/")
    assert "Cookie" not in request.headers
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("behaviour", ["ok", "no_range", "chunked", "unsized"])
@pytest.mark.parametrize("known", [True, False])
def test_size_and_checksum_may_be_unknown(
    server: WebServer, web: Web, target: Path, behaviour: str, known: bool
) -> None:
    url = server.serve("a.bin", CONTENT, behaviour)

    received = web.download(url, target, size=len(CONTENT) if known else None)

    assert received.sha256 == SHA256
    assert target.read_bytes() == CONTENT


def test_an_empty_file_is_a_file_where_it_is_expected(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", b"", "empty")

    received = web.download(url, target, size=0, sha256=sha256(b""))

    assert received.bytes == 0
    assert target.read_bytes() == b""


def test_a_web_page_is_a_file_where_its_url_says_so(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("index.html", PAGE, "html")

    assert web.download(url, target, size=None).sha256 == sha256(PAGE)


def test_a_checksum_overrules_a_wrong_media_type(server: WebServer, web: Web, target: Path) -> None:
    url = server.serve("a.csv", CONTENT, "page_as_type")

    assert web.download(url, target, size=len(CONTENT), sha256=SHA256).sha256 == SHA256


def test_connections_are_kept_and_shared(server: WebServer, web: Web, tmp_path: Path) -> None:
    urls = [server.serve(f"{n}.bin", CONTENT[: 100 * n], pause=0.001) for n in range(64)]

    def get(n: int) -> bool:
        wanted = sha256(CONTENT[: 100 * n])
        return web.download(urls[n], tmp_path / str(n), size=100 * n).sha256 == wanted

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(get, range(1, 64)))

    assert server.connections <= 8
    assert len(server.log) == 63


def test_a_kept_connection_that_the_server_gave_up_is_opened_again(
    web: Web, tmp_path: Path
) -> None:
    with WebServer() as first:
        url = first.serve("a.bin", CONTENT)
        web.download(url, tmp_path / "a", size=len(CONTENT))
        first._server.end_connections()

        received = web.download(url, tmp_path / "b", size=len(CONTENT))

    assert received.sha256 == SHA256


# --- every misbehaviour: the reason, what is left, and that the next source ends it well ----------

HALF = len(CONTENT) // 2
SIZE = r"195\.3 KiB"

FAULTS = {
    "wrong_bytes": ("integrity", "checksum differs", 0),
    "html": ("network", rf"sent a web page \(79 B\), not the file \({SIZE}\)", 0),
    "untyped_html": ("network", rf"sent a web page \(79 B\), not the file \({SIZE}\)", 0),
    "challenge": ("network", r"tests for a browser \(202\)", 0),
    "empty": ("network", "the server sent nothing", 0),
    "truncated": ("network", "broke the connection off", 193_750),
    "truncated_from_zero": ("network", "broke the connection off", HALF),
    "short": ("integrity", rf"another size \(97\.7 KiB, not {SIZE}\)", 0),
    "longer": ("integrity", r"another size \(200,004 B, not 200,000 B\)", 0),
    "longer_chunked": ("integrity", f"sends more than {SIZE}", 0),
    "endless": ("integrity", f"sends more than {SIZE}", 0),
    "not_found": ("network", r"not there any more \(404\)", 0),
    "gone": ("network", r"removed for good \(410\)", 0),
    "forbidden": ("licence", r"forbids it \(403\)", 0),
    "unauthorised": ("licence", r"wants credentials \(401\)", 0),
    "teapot": ("network", r"refuses the request \(418\)", 0),
    "too_many": ("network", r"too many requests \(429\)", 0),
    "unavailable": ("network", r"overloaded or in maintenance \(503\)", 0),
    "error": ("network", r"failed on the request \(500\)", 0),
    "stall": ("network", "fell silent", HALF),
    "silent": ("network", "fell silent", 0),
    "drip": ("network", "too slowly", None),
    "drip_headers": ("network", "too slowly", 0),
    "reset": ("network", "broke the connection off", None),
    "redirect_loop": ("network", "sends on more than 5 times", 0),
    "gzip": ("network", r"encoded \(gzip\)", 0),
    "garbage": ("network", "does not speak HTTP", 0),
}


@pytest.mark.parametrize("behaviour", FAULTS)
def test_a_fault_is_told_plainly_and_the_next_source_ends_it(
    server: WebServer, web: Web, target: Path, behaviour: str
) -> None:
    kind, reason, left = FAULTS[behaviour]
    bad = server.serve("bad/a.bin", CONTENT, behaviour, every=0.02)
    good = server.serve("good/a.bin", CONTENT)

    start = time.monotonic()
    refusal = refused(web, f"{bad}?token=secret", target)
    assert time.monotonic() - start < 1.5
    there = target.stat().st_size if target.exists() else 0
    received = web.download(good, target, size=len(CONTENT), sha256=SHA256)

    assert refusal.kind == kind
    assert str(refusal).startswith(f"{bad}: ")
    assert re.search(reason, refusal.reason), refusal.reason
    assert "secret" not in str(refusal)
    assert str(refusal).isprintable()
    assert left is None or there == left
    assert received.sha256 == SHA256
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    "behaviour", ["truncated", "reset", "too_many", "unavailable", "error", "truncated_from_zero"]
)
def test_a_server_with_a_bad_moment_is_asked_again(
    server: WebServer, web: Web, target: Path, behaviour: str
) -> None:
    url = server.serve("a.bin", CONTENT, behaviour, first=1, etag='"v1"')

    received = web.download(url, target, size=len(CONTENT), sha256=SHA256)

    assert received.sha256 == SHA256
    assert len(server.log) == 2


def test_only_what_is_missing_of_a_broken_body_is_asked_for(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", CONTENT, "truncated", first=2, etag='"v1"')

    web.download(url, target, size=len(CONTENT), sha256=SHA256)

    assert [r.range for r in server.log] == ["", "bytes=100000-", "bytes=150000-"]
    assert server.log[1].headers["If-Range"] == '"v1"'


def test_a_page_does_not_destroy_what_was_already_there(
    server: WebServer, web: Web, target: Path
) -> None:
    target.write_bytes(CONTENT[:HALF])

    for behaviour in ("html", "untyped_html", "short", "not_found", "gzip", "silent"):
        refused(web, server.serve(behaviour, CONTENT, behaviour), target)

    assert target.read_bytes() == CONTENT[:HALF]


def test_a_page_is_seen_by_its_first_bytes_where_nothing_else_is_known(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.zip", PAGE)

    refusal = refused(web, url, target, size=None, sha256="")

    assert refusal.reason == "the server sent a web page (79 B), not the file"
    assert not target.exists()


def test_a_page_of_the_right_size_is_told_as_a_page(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.zip", PAGE)

    refusal = refused(web, url, target, size=len(PAGE))

    assert "sent a web page (79 B)" in refusal.reason
    assert not target.exists()


@pytest.mark.parametrize("behaviour", ["ok", "chunked", "endless"])
def test_a_file_of_unknown_size_ends_at_the_limit(
    server: WebServer, web: Web, target: Path, behaviour: str
) -> None:
    url = server.serve("a.bin", CONTENT, behaviour)

    refusal = refused(web, url, target, size=None, sha256="", limit=1000)

    assert "more than 1000 B" in refusal.reason
    assert not target.exists()


@pytest.mark.parametrize("behaviour", ["empty", "chunked"])
def test_nothing_is_no_file_where_the_size_is_not_known(
    server: WebServer, web: Web, target: Path, behaviour: str
) -> None:
    url = server.serve("a.bin", b"", behaviour)

    refusal = refused(web, url, target, size=None, sha256="")

    assert refusal.reason == "the server sent nothing"
    assert not target.exists()


def test_a_full_disk_is_not_the_servers_fault(
    server: WebServer, web: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.serve("a.bin", CONTENT)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(SpaceError, match="free some space"):
            web.download(url, target, size=len(CONTENT), sha256=SHA256)

    assert web.download(url, target, size=len(CONTENT), sha256=SHA256).sha256 == SHA256


def test_a_link_at_the_target_is_never_followed(server: WebServer, web: Web, target: Path) -> None:
    precious = target.with_name("precious")
    precious.write_bytes(b"mine")
    target.symlink_to(precious)

    with pytest.raises(OSError, match="symbolic links"):
        web.download(server.serve("a.bin", CONTENT), target, size=len(CONTENT))

    assert precious.read_bytes() == b"mine"


def test_a_dead_port_and_an_unknown_host_are_told(
    web: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    def unknown(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    dead = refused(web, f"http://127.0.0.1:{port}/a", target)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    lost = refused(web, "https://data.example.org/a", target)

    assert (dead.kind, dead.reason) == ("network", "its host refused the connection")
    assert (lost.kind, lost.reason) == ("network", "its host was not found")
    assert not target.exists()


# --- waiting for a server -------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["too_many", "unavailable"])
def test_the_wait_that_a_server_asks_for_is_kept(
    server: WebServer, web: Web, target: Path, behaviour: str
) -> None:
    url = server.serve("a.bin", CONTENT, behaviour, first=1, retry_after=1)

    start = time.monotonic()
    web.download(url, target, size=len(CONTENT), sha256=SHA256)

    assert 1.0 <= time.monotonic() - start < 1.5


@pytest.mark.parametrize("as_date", [False, True])
def test_a_longer_wait_than_there_is_patience_is_told_at_once(
    server: WebServer, web: Web, target: Path, *, as_date: bool
) -> None:
    wait = http_date(121) if as_date else "120"
    url = server.serve("a.bin", CONTENT, "too_many", retry_after=wait)

    start = time.monotonic()
    refusal = refused(web, url, target)

    assert time.monotonic() - start < 0.5
    assert "too many requests (429) and asks to wait 1" in refusal.reason
    assert refusal.status == 429


def test_a_server_that_always_says_come_back_now_is_given_up(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", CONTENT, "unavailable", retry_after=0)

    refused(web, url, target)

    assert len(server.log) == 9


LATER = "Mon, 05 Jan 2026 10:00:09 GMT"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": LATER, "Date": "Mon, 05 Jan 2026 10:00:00 GMT"}, 9),
        ({"Retry-After": LATER}, 0),
    ],
)
def test_the_wait_is_read_as_seconds_or_as_a_date(
    headers: dict[str, str], wait: float | None
) -> None:
    assert answers.retry_after(headers) == wait


def test_closing_ends_what_other_threads_wait_for(server: WebServer, tmp_path: Path) -> None:
    urls = [
        server.serve("stall", CONTENT, "stall"),
        server.serve("silent", CONTENT, "silent"),
        server.serve("busy", CONTENT, "too_many", retry_after=30),
    ]
    web = Web(allowed_hosts=["127.0.0.1"])
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(refused, web, url, tmp_path / str(n)) for n, url in enumerate(urls)]
        wait_until(lambda: len(server.log) == 3)
        time.sleep(0.05)
        start = time.monotonic()
        web.close()
        reasons = {wait.result().reason for wait in waits}

    assert time.monotonic() - start < 1
    assert reasons == {"it was stopped"}
    assert refused(web, urls[0], tmp_path / "later").reason == "it was stopped"


# --- going on where a broken download ended -------------------------------------------------------


@pytest.fixture(scope="module")
def kept() -> Iterator[tuple[WebServer, Web]]:
    with WebServer() as server, Web(allowed_hosts=["127.0.0.1"], delay=0.0) as web:
        yield server, web


@pytest.mark.parametrize("behaviour", ["ok", "no_range", "wrong_range", "truncated_from_zero"])
@settings(max_examples=60)
@given(
    length=st.integers(0, 5000),
    corrupt=st.booleans(),
    size_known=st.booleans(),
)
def test_any_partial_ends_in_the_right_bytes(
    kept: tuple[WebServer, Web],
    tmp_path_factory: pytest.TempPathFactory,
    behaviour: str,
    length: int,
    corrupt: bool,
    size_known: bool,
) -> None:
    server, web = kept
    content = CONTENT[:4000]
    target = tmp_path_factory.getbasetemp() / f"property-{behaviour}"
    before = (content + b"tail" * 1000)[:length]
    target.write_bytes(bytes(b ^ 1 for b in before) if corrupt else before)
    url = server.serve(f"p/{behaviour}", content, behaviour, first=1)
    ticks: list[int] = []

    received = web.download(
        url,
        target,
        size=len(content) if size_known else None,
        sha256=sha256(content),
        tick=ticks.append,
    )

    assert received.sha256 == sha256(content)
    assert target.read_bytes() == content
    assert sum(ticks) == len(content)


def test_a_whole_partial_with_the_right_checksum_needs_no_server(web: Web, target: Path) -> None:
    target.write_bytes(CONTENT)

    received = web.download("https://localhost/gone", target, size=len(CONTENT), sha256=SHA256)

    assert received.sha256 == SHA256


def test_a_later_run_goes_on_with_the_same_version(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", LARGE, "stall", etag='"v1"')
    refused(web, url, target, size=len(LARGE), sha256="")
    left = target.stat().st_size
    server.serve("a.bin", LARGE, etag='"v1"')

    received = web.download(url, target, size=len(LARGE))

    assert received.sha256 == sha256(LARGE)
    assert left == len(LARGE) // 2
    assert server.log[-1].range == f"bytes={left}-"
    assert server.log[-1].headers["If-Range"] == '"v1"'
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_later_run_begins_anew_with_a_new_version(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", LARGE, "stall", etag='"v1"')
    refused(web, url, target, size=len(LARGE), sha256="")
    newer = LARGE[::-1]
    server.serve("a.bin", newer, etag='"v2"')

    received = web.download(url, target, size=len(newer))

    assert received.sha256 == sha256(newer)
    assert target.read_bytes() == newer


def test_bytes_of_unknown_version_are_not_trusted_without_a_checksum(
    server: WebServer, web: Web, target: Path
) -> None:
    target.write_bytes(CONTENT[:HALF])

    web.download(server.serve("a.bin", CONTENT), target, size=len(CONTENT))

    assert [request.range for request in server.log] == [""]


def test_a_partial_of_the_right_size_is_not_the_file_without_a_checksum(
    server: WebServer, web: Web, target: Path
) -> None:
    url = server.serve("a.bin", LARGE, "stall", etag='"v1"')
    refused(web, url, target, size=len(LARGE), sha256="")
    with target.open("r+b") as file:
        file.truncate(len(LARGE))
    server.serve("a.bin", LARGE, etag='"v1"')

    assert web.download(url, target, size=len(LARGE)).sha256 == sha256(LARGE)


def test_another_source_goes_on_where_the_first_broke_off(
    server: WebServer, web: Web, target: Path
) -> None:
    first = server.serve("first.bin", LARGE, "stall", etag='"v1"')
    second = server.serve("second.bin", LARGE, etag='"other"')
    refused(web, first, target, size=len(LARGE), sha256=sha256(LARGE))

    received = web.download(second, target, size=len(LARGE), sha256=sha256(LARGE))

    assert received.sha256 == sha256(LARGE)
    assert server.log[-1].range == f"bytes={len(LARGE) // 2}-"
    assert "If-Range" not in server.log[-1].headers


def test_a_rest_that_does_not_fit_is_thrown_away_once(
    server: WebServer, web: Web, target: Path
) -> None:
    target.write_bytes(CONTENT[:HALF])

    received = web.download(
        server.serve("a.bin", CONTENT, "flipped_rest"), target, size=len(CONTENT), sha256=SHA256
    )

    assert received.sha256 == SHA256
    assert [request.range for request in server.log] == [f"bytes={HALF}-", ""]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"url": 3}', b"\xff"])
def test_a_damaged_note_counts_as_none(
    server: WebServer, web: Web, target: Path, note: bytes
) -> None:
    target.write_bytes(CONTENT[:HALF])
    target.with_name(f"{target.name}.source").write_bytes(note)

    received = web.download(server.serve("a.bin", CONTENT), target, size=len(CONTENT))

    assert received.sha256 == SHA256
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"v1"'}, '"v1"'),
        ({"ETag": 'W/"v1"'}, ""),
        ({"ETag": '"v\x9b1"'}, ""),
        ({"Last-Modified": "a", "Date": "b"}, "a"),
        ({"Last-Modified": "a", "Date": "a"}, ""),
        ({"Last-Modified": "a"}, ""),
    ],
)
def test_only_strong_validators_name_a_version(headers: dict[str, str], version: str) -> None:
    assert answers.validator(headers) == version


# --- where a request may go -----------------------------------------------------------------------

PRIVATE = [
    "https://127.0.0.1:{port}/a",
    "https://2130706433:{port}/a",
    "https://0x7f000001:{port}/a",
    "https://0177.0.0.1:{port}/a",
    "https://127.1:{port}/a",
    "https://localhost:{port}/a",
    "https://LOCALHOST:{port}/a",
    "https://[::1]:{port}/a",
    "https://[::ffff:127.0.0.1]:{port}/a",
    "https://[::127.0.0.1]:{port}/a",
    "https://[64:ff9b::7f00:1]:{port}/a",
    "https://[2002:7f00:1::]:{port}/a",
    "https://0.0.0.0:{port}/a",
    "https://10.0.0.1/a",
    "https://169.254.169.254/latest/meta-data",
    "https://[fe80::1%25lo]/a",
    "https://224.0.0.1/a",
    "http://127.0.0.1:{port}/a",
    "http://example.org/a",
    "file:///etc/passwd",
    "ftp://127.0.0.1/a",
    "data:text/plain,a",
    "//127.0.0.1/a",
    "https:///a",
    "https://me:secret@example.org/a",
    "https://\\@127.0.0.1/a",
    "https://example.org/a\r\nX: y",
    "https://exa mple.org/a",
    "https://example.org:99999999/a",
    "",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_what_is_not_public_is_refused_before_a_byte_is_sent(
    server: WebServer, target: Path, url: str
) -> None:
    server.serve("a", CONTENT)
    with Web() as web:
        refusal = refused(web, url.format(port=server.port), target)
        with pytest.raises(Refusal):
            web.read(url.format(port=server.port), 10)
        with pytest.raises(Refusal):
            web.head(url.format(port=server.port))

    assert refusal.kind == "address"
    assert server.connections == 0
    assert "secret" not in str(refusal)
    assert str(refusal).isprintable()
    assert not target.exists()


@pytest.mark.parametrize("url", [*PRIVATE[:17], *PRIVATE[18:22], "http://localhost:{port}/a"])
@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_is_judged_like_the_first_address(
    server: WebServer, web: Web, target: Path, url: str, status: int
) -> None:
    place = url.format(port=server.port)
    there = server.serve("r.bin", b"", "redirect", location=place, status=status)

    refusal = refused(web, there, target)

    assert refusal.kind == "address" or "127.0.0.1" in place
    assert "sent on to" in refusal.reason
    assert [request.path for request in server.log] == ["/r.bin"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_may_be_relative(
    server: WebServer, web: Web, target: Path, status: int
) -> None:
    server.serve("there/a.bin", CONTENT)
    url = server.serve("r.bin", b"", "redirect", location="there/a.bin", status=status)

    assert web.download(url, target, size=len(CONTENT), sha256=SHA256).sha256 == SHA256
    assert server.connections == 1


def test_a_fault_behind_a_redirect_names_the_place(
    server: WebServer, web: Web, target: Path
) -> None:
    place = server.serve("b.bin", CONTENT, "html")
    url = server.serve("a.bin", b"", "redirect", location=f"{place}?signature=secret")

    refusal = refused(web, url, target)

    assert str(refusal).startswith(f"{url}: sent on to {place}: the server sent a web page")
    assert "secret" not in str(refusal)


def test_credentials_stay_with_the_host_they_are_for(
    server: WebServer, web: Web, target: Path
) -> None:
    with WebServer() as other:
        other.serve("a.bin", CONTENT)
        near = server.serve("near", b"", "redirect", location="/far")
        server.serve("far", b"", "redirect", location=f"{other.url}/a.bin")

        web.download(near, target, size=len(CONTENT), headers={"Authorization": "Bearer x"})

    assert [r.headers.get("Authorization") for r in server.log] == ["Bearer x", "Bearer x"]
    assert [r.headers.get("Authorization") for r in other.log] == [None]


def answered(*addresses: str, port: int = 443) -> Any:
    """Return a name service that gives these addresses for every name."""

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    return getaddrinfo


def test_a_public_name_of_a_private_address_is_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answered("10.0.0.7", "127.0.0.1"))

    with Web(allowed_hosts=["127.0.0.1"]) as web:
        refusal = refused(web, "https://data.example.org/a", target)

    assert refusal.kind == "address"
    assert refusal.reason == "its address is not a public one (10.0.0.7, 127.0.0.1)"


def test_of_several_addresses_only_public_ones_are_tried(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def connect(_: socket.socket, address: tuple[str, int]) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(socket, "getaddrinfo", answered("10.0.0.7", "8.8.8.8", "1.1.1.1"))
    monkeypatch.setattr(socket.socket, "connect", connect)

    with Web() as web:
        refused(web, "https://data.example.org/a", target)

    assert set(tried) == {"8.8.8.8", "1.1.1.1"}


def test_an_allowed_name_may_have_a_private_address(
    server: WebServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve("a.bin", CONTENT)
    monkeypatch.setattr(socket, "getaddrinfo", answered("127.0.0.1", port=server.port))

    with Web(allowed_hosts=["Data.Example.org"]) as web:
        received = web.download("http://data.example.org/a.bin", target, size=len(CONTENT))

    assert received.sha256 == SHA256


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("100.64.0.1", False),
        ("192.88.99.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("2001::1", False),
        ("::", False),
    ],
)
def test_public_addresses_are_told_from_all_others(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://u:p@h.org/a?b=c#d") == "https://h.org/a"
    assert shown("https://h.org/\x1b[31m@x") == "https://h.org/�[31m@x"


# --- TLS and proxies ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a new key and its certificate, which only this test trusts."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:data.example.org,IP:127.0.0.1"
    key = path.with_name("key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-days", "2", "-subj", "/CN=data.example.org", "-addext", names]
    try:
        subprocess.run([*words, "-keyout", key, "-out", path], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("NOT RUN: there is no openssl program to make a certificate")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_encrypted_file_arrives_when_its_certificate_is_trusted(
    tls: ssl.SSLContext, certificate: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebServer(tls=tls) as server:
        url = server.serve("a.bin", LARGE)
        with Web(allowed_hosts=["127.0.0.1"]) as web:
            refusal = refused(web, url, target, size=len(LARGE))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Web(allowed_hosts=["127.0.0.1"]) as web:
            received = web.download(url, target, size=len(LARGE))
            other = refused(web, url.replace("127.0.0.1", "localhost"), target)

    assert refusal.reason.startswith("its certificate does not verify (self")
    assert received.sha256 == sha256(LARGE)
    assert other.kind == "address"


def test_a_slow_encrypted_server_is_given_up_too(
    tls: ssl.SSLContext, certificate: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with WebServer(tls=tls) as server, Web(allowed_hosts=["127.0.0.1"], stall=0.2) as web:
        slow = refused(web, server.serve("a", CONTENT, "drip", every=0.02), target)
        silent = refused(web, server.serve("b", CONTENT, "stall"), target)

    assert slow.reason == "the server sends too slowly"
    assert silent.reason == "the server fell silent"


def test_a_server_without_tls_is_told(server: WebServer, web: Web, target: Path) -> None:
    url = server.serve("a.bin", CONTENT).replace("http:", "https:")

    refusal = refused(web, url, target)

    assert "no encrypted connection came about" in refusal.reason


def test_a_proxy_of_the_environment_is_used_for_public_hosts_only(
    tls: ssl.SSLContext, certificate: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        WebServer(tls=tls) as server,
        WebServer(upstream=("127.0.0.1", server.port)) as proxy,
        WebServer() as near,
    ):
        server.serve("a.bin", CONTENT)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:pass%20word@"))
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "direct.example.org")
        monkeypatch.setattr(socket, "getaddrinfo", _numeric_only(socket.getaddrinfo))
        with Web(allowed_hosts=["127.0.0.1"]) as web:
            received = web.download(
                "https://data.example.org/a.bin", target, size=len(CONTENT), sha256=SHA256
            )
            web.read(near.serve("b", b"b"), 10)
            lost = refused(web, "https://direct.example.org/a", target.with_name("b"))
            own = refused(web, "https://localhost/a", target.with_name("c"))
            inner = refused(web, "https://0x7f000001/a", target.with_name("d"))

    assert received.sha256 == SHA256
    assert [request.path for request in proxy.log] == ["data.example.org:443"]
    assert proxy.log[0].headers["Proxy-Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert lost.reason == "its host was not found"
    assert own.kind == inner.kind == "address"


def _numeric_only(real: Any) -> Any:
    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith("example.org"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    return getaddrinfo


def test_a_proxy_that_refuses_or_is_none_is_told_without_its_password(
    server: WebServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = []
    for proxy in (server.url, server.url.replace("http://", ""), "socks5://u:secret@127.0.0.1:1"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with Web() as web:
            reasons.append(refused(web, "https://data.example.org/a", target).reason)

    assert "the proxy could not be used" in reasons[0]
    assert "403" in reasons[0]
    assert reasons[1] == reasons[0]
    assert "the proxy socks5://127.0.0.1:1 is not one" in reasons[2]


# --- small documents and what is said of a file ---------------------------------------------------


def test_a_small_document_is_read_whole(server: WebServer, web: Web) -> None:
    url = server.serve("a.json", b'{"a": 1}', "truncated", first=1)

    assert web.read(f"{url}?q=1", 8) == b'{"a": 1}'
    assert server.log[-1].path == "/a.json?q=1"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("ok", "more than 1000 B"),
        ("chunked", "more than 1000 B"),
        ("endless", "more than 1000 B"),
        ("html", "web page"),
        ("untyped_html", "web page"),
        ("not_found", "404"),
        ("truncated_from_zero", "another size"),
        ("stall", "another size"),
        ("gzip", "another size|encoded"),
    ],
)
def test_a_document_is_judged_like_a_file(
    server: WebServer, web: Web, behaviour: str, reason: str
) -> None:
    url = server.serve("a.json", CONTENT, behaviour)

    with pytest.raises(Refusal, match=reason):
        web.read(url, 1000)


def test_the_headers_of_a_file_are_known_without_it(server: WebServer, web: Web) -> None:
    url = server.serve("a.csv", CONTENT, type="text/csv; charset=utf-8", etag='"v1"')

    assert web.head(url) == Headers(len(CONTENT), "text/csv", '"v1"')
    assert [request.method for request in server.log] == ["HEAD"]


@pytest.mark.parametrize(
    ("behaviour", "size"),
    [("no_head", len(CONTENT)), ("chunked", None), ("no_range", len(CONTENT))],
)
def test_a_server_without_head_is_asked_for_a_byte(
    server: WebServer, web: Web, behaviour: str, size: int | None
) -> None:
    url = server.serve("a.bin", CONTENT, behaviour)

    assert web.head(url).size == size


def test_a_dead_link_is_refused(server: WebServer, web: Web) -> None:
    with pytest.raises(Refusal, match="404"):
        web.head(server.serve("a.bin", b"", "not_found"))


def test_a_folder_is_served_as_it_lies_on_the_disk(
    server: WebServer, web: Web, target: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "site" / "sub"
    folder.mkdir(parents=True)
    (folder / "a b.bin").write_bytes(CONTENT)
    target.write_bytes(CONTENT[:HALF])
    url = server.serve_folder(folder.parent, "data")

    received = web.download(f"{url}/sub/a%20b.bin", target, size=len(CONTENT), sha256=SHA256)

    assert received.sha256 == SHA256
    assert server.log[-1].range == f"bytes={HALF}-"
    for outside in ("data/../file.partial", "data/%2e%2e/file.partial", "data/sub", "site/sub"):
        assert refused(web, f"{server.url}/{outside}", tmp_path / "no").status == 404


# --- many at once ---------------------------------------------------------------------------------


def test_sixteen_threads_share_one_web_on_a_bad_day(
    server: WebServer, web: Web, tmp_path: Path
) -> None:
    kinds = ["ok", "no_range", "truncated", "too_many", "error", "chunked", "html", "wrong_bytes"]
    contents = [CONTENT[n : n + 20_000 + n] for n in range(160)]
    urls = [
        server.serve(f"{n}.bin", content, kinds[n % 8], first=int(n % 8 < 6))
        for n, content in enumerate(contents)
    ]

    def get(n: int) -> str:
        wanted = sha256(contents[n])
        try:
            web.download(urls[n], tmp_path / str(n), size=len(contents[n]), sha256=wanted)
        except Refusal as refusal:
            return refusal.kind
        return "ok" if (tmp_path / str(n)).read_bytes() == contents[n] else "other bytes"

    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(get, range(160)))

    assert ends == (["ok"] * 6 + ["network", "integrity"]) * 20


def test_importing_it_imports_no_http_library() -> None:
    libraries = {"urllib3", "ssl", "http.client"}
    code = f"import sys, scibench_data.net.web; print({libraries} & {{*sys.modules}})"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout == "set()\n"


def test_no_thread_or_connection_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    with WebServer() as server, Web(allowed_hosts=["127.0.0.1"], stall=0.1) as web:
        web.download(server.serve("ok", CONTENT), tmp_path / "ok", size=len(CONTENT))
        for behaviour in ("stall", "silent"):
            refused(web, server.serve(behaviour, CONTENT, behaviour), tmp_path / behaviour)

    assert threading.active_count() == before
