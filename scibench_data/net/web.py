"""Downloads over HTTP(S) that trust no server: size, checksum, pace, kind and address are judged.

One `Web` shares its kept-alive connections among threads. It asks one URL and either has the file
or says plainly why not; which source is asked next is its caller's business.
Ranges as in RFC 9110 section 14.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin

from scibench_data.durable import disk_errors
from scibench_data.net import answers
from scibench_data.net.answers import Headers, Later, Wanted
from scibench_data.net.guard import Broken, Connections, Refusal, plain, shown, words

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["Headers", "Received", "Refusal", "Web"]

BLOCK = 1 << 20
"""Most bytes read, hashed and written at once. [B]"""

REDIRECTS = 5
RESUMES = 4
"""How often a body that broke off is taken up again, as long as each time brings something."""

_NOTED = 1 << 20  # [B] shorter bodies aren't worth a note on the disk for a later resume


@dataclass(frozen=True)
class Received:
    """What arrived: size [B], SHA-256 in lower-case hex, and the server's words for the version."""

    bytes: int
    sha256: str
    etag: str
    modified: str


# --- the file that grows --------------------------------------------------------------------------


class _Partial:
    """The file on the disk so far, its running checksum, and where it came from.

    `tick` is told every change of the size, a negative one where bytes are thrown away.
    """

    def __init__(self, target: Path, tick: Callable[[int], None]) -> None:
        self._path = target
        self._note = target.with_name(f"{target.name}.source")
        self._tick = tick
        self._fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._digest = hashlib.sha256()
        self.count = 0
        self.whole = False
        self.pieced = False
        self._noted = True  # perhaps, by an earlier run
        self.etag = ""
        self.modified = ""
        self._source = ""
        self._validator = ""

    def close(self) -> None:
        os.close(self._fd)
        if not self.count and not self.whole:
            self.remove()

    def remove(self) -> None:
        self._tick(-self.count)
        self.count = 0
        self._path.unlink(missing_ok=True)
        self._forget()

    def load(self, wanted: Wanted) -> None:
        """Hash what is there if it can be continued and judged later, else throw it away."""
        there = os.fstat(self._fd).st_size
        if not there:
            self._noted = False
            return
        self._read_note(wanted.url)
        if there > wanted.most or not (wanted.sha256 or self._validator):
            os.ftruncate(self._fd, 0)
            return
        while block := os.read(self._fd, BLOCK):
            self._digest.update(block)
            self.count += len(block)
        self.pieced = True
        self._tick(self.count)

    def _read_note(self, url: str) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(self._note.read_bytes())
            if note["url"] == hashlib.sha256(url.encode()).hexdigest():
                self._source, self._validator = url, str(note["version"])

    def begin(self, wanted: Wanted, response: "BaseHTTPResponse") -> None:
        """Take an answer as the next piece; note what would let a later run continue it."""
        headers = response.headers
        self.pieced = self.count > 0
        self.etag, self.modified = plain(headers.get("ETag", "")), headers.get("Last-Modified", "")
        self._source, self._validator = wanted.url, answers.validator(headers)
        if self._validator and (response.length_remaining or _NOTED) >= _NOTED:
            # A digest: the URL itself may hold a secret.
            url = hashlib.sha256(wanted.url.encode()).hexdigest()
            self._note.write_text(json.dumps({"url": url, "version": self._validator}))
            self._noted = True
        else:
            self._forget()

    def _forget(self) -> None:
        if self._noted:
            self._note.unlink(missing_ok=True)
        self._noted = False

    def range_headers(self, wanted: Wanted) -> dict[str, str]:
        """Return what asks for the rest: only of the same version, where that has a name."""
        if not self.count:
            return {}
        asked = {"Range": f"bytes={self.count}-"}
        if self._source == wanted.url and self._validator:
            asked["If-Range"] = self._validator
        return asked

    def append(self, block: bytes) -> None:
        self._digest.update(block)
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self.count += len(block)
        self._tick(len(block))

    def restart(self) -> None:
        if self.count:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._tick(-self.count)
        self._digest = hashlib.sha256()
        self.count = 0
        self.pieced = False

    @property
    def is_page(self) -> bool:
        return answers.is_page(os.pread(self._fd, 512, 0))

    def received(self) -> Received:
        """Return what is there now, and forget the note: the file is whole."""
        self._forget()
        modified = plain(self.modified)
        return Received(self.count, self._digest.hexdigest(), self.etag, modified)


class _Patience:
    """How long and how often one file is waited for. [s]"""

    def __init__(self, total: float, delay: float) -> None:
        self._left = total
        self._delay = delay
        self._tried = 0

    def wait_for(self, refusal: Later) -> float:
        """Return how long to wait before the next request, or raise: that is too much."""
        pause: float = self._delay * 2**self._tried
        if refusal.wait is not None:
            pause = max(refusal.wait, self._delay)
        self._tried += 1
        if self._tried > refusal.tries or pause > self._left:
            raise refusal
        self._left -= pause
        return pause


class Web:
    """Kept-alive connections to many hosts, shared by threads; use it in a ``with``.

    Leaving it ends what other threads still wait for. A proxy named in the environment
    (``HTTPS_PROXY``, ``NO_PROXY``) is used for all hosts but the allowed ones; it resolves names
    itself. Certificates are those of the system, or of ``SSL_CERT_FILE``.

    Parameters
    ----------
    allowed_hosts
        Hosts, as written in URLs and without port, that may have private addresses and be asked
        without encryption.
    connections
        Connections kept open to each host. [1]
    stall
        How long a server may send nothing, or less than `SLOWEST`. [s]
    patience
        How long to wait, all in all, for a server that asks to come back later. [s]
    delay
        The wait before the second try of a server that failed; it doubles each time. [s]
    """

    def __init__(
        self,
        *,
        allowed_hosts: Collection[str] = (),
        connections: int = 8,
        stall: float = 30.0,
        patience: float = 60.0,
        delay: float = 1.0,
    ) -> None:
        self._connections = Connections(allowed_hosts, connections, stall)
        self._patience = patience
        self._delay = delay

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; what other threads still do here ends with a `Refusal`."""
        self._connections.close()

    def download(
        self,
        url: str,
        target: Path,
        *,
        size: int | None,
        sha256: str = "",
        tick: Callable[[int], None] = lambda _: None,
        headers: Mapping[str, str] | None = None,
        limit: int = 1 << 40,
    ) -> Received:
        """Get one file into `target`; what is there already is continued where it can be.

        What a broken download leaves stays for the next source; wrong bytes are removed. Nothing
        is flushed to the disk.

        Parameters
        ----------
        size
            The file's size, or None if it isn't known. [B]
        sha256
            Its checksum in lower-case hex; empty if it isn't known.
        tick
            Told every change of the size of `target`, negative where bytes are thrown away. [B]
        headers
            Sent along; not to another host that the server sends on to.
        limit
            The most to take if the size isn't known. [B]

        Raises
        ------
        Refusal
            This source does not give the file.
        SpaceError
            The disk refused.
        """
        wanted = Wanted(url, size, sha256, limit, headers or {})
        with _named(url), disk_errors(target):
            partial = _Partial(target, tick)
            try:
                partial.load(wanted)
                return self._whole(wanted, partial)
            finally:
                partial.close()

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        """Return a small document of at most `limit` bytes.

        Raises
        ------
        Refusal
            This source does not give it, or it is longer.
        """
        wanted = Wanted(url, None, "", limit, headers or {})
        patience = _Patience(self._patience, self._delay)
        with _named(url):
            try:
                return self._read_once(wanted, patience)
            except Broken:
                return self._read_once(wanted, patience)

    def head(self, url: str, headers: Mapping[str, str] | None = None) -> Headers:
        """Ask what a server says of a file, without the file.

        A server that does not answer HEAD, or not with a size, is asked for the first byte.

        Raises
        ------
        Refusal
            The file can't be had there.
        """
        wanted = Wanted(url, None, "", 0, headers or {})
        patience = _Patience(self._patience, self._delay)
        with _named(url):
            with contextlib.suppress(Refusal):
                response, _ = self._answer("HEAD", wanted, {}, patience)
                answers.discard(response)
                if "Content-Length" in response.headers:
                    return answers.read_headers(response)
            response, _ = self._answer("GET", wanted, {"Range": "bytes=0-0"}, patience)
            try:
                return answers.read_headers(response)
            finally:
                answers.discard(response)

    def _whole(self, wanted: Wanted, partial: _Partial) -> Received:
        """Fill the file, check it, and begin again once if it was pieced together wrongly."""
        patience = _Patience(self._patience, self._delay)
        for again in (True, False):
            if not (partial.count and wanted.sha256 and partial.count == wanted.size):
                self._fill(wanted, partial, patience)
            received = partial.received()
            if wanted.sha256 in {"", received.sha256}:
                partial.whole = True
                return received
            if not again or not partial.pieced:
                break
            partial.restart()
        length, page = partial.count, partial.is_page
        partial.remove()
        if page:
            answers.refuse_page(length, wanted)
        reason = "its content is not the published one (the checksum differs)"
        raise Refusal(reason, "integrity")

    def _fill(self, wanted: Wanted, partial: _Partial, patience: _Patience) -> None:
        """Ask for the file, and for the rest of it when it breaks off."""
        for left in range(RESUMES, -1, -1):
            before = partial.count
            try:
                self._append(wanted, partial, patience)
            except Broken:
                # The first may be a kept connection that the server had just given up.
                if not left or (partial.count <= before and left < RESUMES):
                    raise
            else:
                return

    def _append(self, wanted: Wanted, partial: _Partial, patience: _Patience) -> None:
        """Ask for the rest of the file, or all of it where the server can't continue it."""
        asked = partial.range_headers(wanted)
        response, via = self._answer("GET", wanted, asked, patience)
        begin = 0
        if asked and answers.continues(response, partial.count, wanted.size):
            begin = partial.count
        elif response.status != 200:
            answers.discard(response)
            response, via = self._answer("GET", wanted, {}, patience)
        with _read_from(response, via):
            self._receive(response, wanted, partial, begin)

    def _receive(
        self, response: "BaseHTTPResponse", wanted: Wanted, partial: _Partial, begin: int
    ) -> None:
        """Write a body behind byte `begin`; nothing on the disk changes before it was judged."""
        answers.judge_headers(response, wanted, begin)
        certain = wanted.sha256 and wanted.size == begin + (response.length_remaining or 0)
        length, room = response.length_remaining, wanted.most - begin
        block = self._connections.read(response, min(BLOCK, room + 1))
        if not begin and not certain and not wanted.may_be_page and answers.is_page(block):
            answers.refuse_page(length, wanted)
        if not begin:
            partial.restart()
        partial.begin(wanted, response)
        while block:
            room -= len(block)
            if room < 0:
                partial.remove()
                reason = f"the server sends more than {words(wanted.most)}"
                raise Refusal(reason, "integrity")
            partial.append(block)
            block = self._connections.read(response, min(BLOCK, room + 1))
        if not partial.count and wanted.size != 0:
            reason = "the server sent nothing"
            raise Refusal(reason)
        if room and wanted.size is not None:
            reason = f"the server ended after {words(partial.count)} of {words(wanted.size)}"
            raise Broken(reason)

    def _read_once(self, wanted: Wanted, patience: _Patience) -> bytes:
        response, via = self._answer("GET", wanted, {}, patience)
        content = bytearray()
        with _read_from(response, via):
            answers.judge_headers(response, wanted, 0)
            while block := self._connections.read(response, wanted.limit + 1 - len(content)):
                content += block
                if len(content) > wanted.limit:
                    reason = f"the server sends more than {words(wanted.limit)}"
                    raise Refusal(reason, "integrity")
            if answers.is_page(content) and not wanted.may_be_page:
                answers.refuse_page(len(content), wanted)
        return bytes(content)

    def _answer(
        self, method: str, wanted: Wanted, asked: Mapping[str, str], patience: _Patience
    ) -> "tuple[BaseHTTPResponse, str]":
        """Return a good answer and the words for the way that led to it.

        A server that is busy is waited for.
        """
        while True:
            try:
                return self._follow(method, wanted, asked)
            except Later as refusal:
                self._connections.closed.wait(patience.wait_for(refusal))
                self._connections.stop_if_closed()

    def _follow(
        self, method: str, wanted: Wanted, asked: Mapping[str, str]
    ) -> "tuple[BaseHTTPResponse, str]":
        """Ask, and go where the server sends on to; every address is judged like the first."""
        url, headers, via = self._connections.judged(wanted.url), wanted.headers, ""
        good = {200, 206, 416} if asked else {200}
        try:
            for _ in range(REDIRECTS + 1):
                response = self._connections.request(method, url, {**headers, **asked})
                if response.status in good:
                    return response, via
                answers.discard(response)
                place = response.headers.get("Location", "")
                if response.status not in {301, 302, 303, 307, 308} or not place:
                    raise answers.status_refusal(response)
                there = urljoin(url.url, place)
                via = f"sent on to {shown(there)}: "
                before, url = url, self._connections.judged(there)
                if url[:1] + url[2:4] != before[:1] + before[2:4]:  # scheme, host and port
                    headers = {}
        except Refusal as refusal:
            refusal.reason = via + refusal.reason
            raise
        reason = f"the server sends on more than {REDIRECTS} times"
        raise Refusal(reason)


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Add to a refusal the URL that was asked."""
    try:
        yield
    except Refusal as refusal:
        refusal.url = shown(url)
        raise


@contextlib.contextmanager
def _read_from(response: "BaseHTTPResponse", via: str) -> Iterator[None]:
    """Free the connection in the end; add to a refusal the way that led to the answer."""
    try:
        yield
    except Refusal as refusal:
        refusal.reason = via + refusal.reason
        raise
    finally:
        answers.discard(response)
