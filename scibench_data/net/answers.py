"""What an answer means: whether it can be the file, and what is told of it if it can't.

Pure judgements of status, headers and first bytes (RFC 9110); nothing is asked or written here.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from scibench_data.net.guard import Kind, Refusal, plain, words

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_AGAIN = {"busy": 8, "failed": 3}  # how often a server that says so is asked again
_DRAINED = 1 << 16  # [B] a longer rest of an unwanted body costs more than a new connection


class Later(Refusal):
    """A server that may have a better moment.

    Attributes
    ----------
    wait
        How long it asks to be left alone; None where it does not say. [s]
    """

    wait: float | None = None
    tries = _AGAIN["failed"]


@dataclass(frozen=True)
class Wanted:
    """What is asked for: a size that isn't known [B] is None, an unknown checksum is empty."""

    url: str
    size: int | None
    sha256: str
    limit: int
    headers: Mapping[str, str]

    @property
    def most(self) -> int:
        """The bytes that may come. [B]"""
        return self.limit if self.size is None else self.size

    @property
    def may_be_page(self) -> bool:
        """Whether a web page is what is asked for."""
        path = self.url.partition("#")[0].partition("?")[0]
        return path.lower().endswith((".html", ".htm", ".xhtml"))


@dataclass(frozen=True)
class Headers:
    """What a server says of a file: size [B] or None, media type and entity tag, or empty."""

    size: int | None
    type: str
    etag: str


_STATUS: dict[int, tuple[str, Kind]] = {
    202: ("the server sent a page that tests for a browser (202), not the file", "network"),
    204: ("the server has nothing to send (204)", "network"),
    401: ("its host wants credentials (401)", "licence"),
    403: ("its host forbids it (403)", "licence"),
    404: ("it is not there any more (404)", "network"),
    410: ("it was removed for good (410)", "network"),
    429: ("its host has had too many requests (429)", "network"),
    451: ("its host may not give it for legal reasons (451)", "network"),
    503: ("its host is overloaded or in maintenance (503)", "network"),
}
_PAGES = {"text/html", "application/xhtml+xml"}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to be left alone (RFC 9110 10.2.3), if it says. [s]

    A date is set against the server's own clock where it gives one.
    """
    from email.utils import parsedate_to_datetime

    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        then = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except ValueError:
        now = time.time()
    return then - now if then > now else 0.0


def status_refusal(response: "BaseHTTPResponse") -> Refusal:
    """Return what a status other than the wanted ones means; a `Later` if it may pass."""
    status = response.status
    reason, kind = _STATUS.get(status, (f"its host gave an unexpected answer ({status})", None))
    if kind is None and 400 <= status < 600:
        reason = f"its host {'refuses' if status < 500 else 'failed on'} the request ({status})"
    if status != 429 and status < 500:
        return Refusal(reason, kind or "network", status)
    wait = retry_after(response.headers) if status in {429, 503} else None
    asks = "" if wait is None else f" and asks to wait {wait:.0f} s"
    later = Later(reason + asks, kind or "network", status)
    later.wait = wait
    later.tries = _AGAIN["failed" if wait is None else "busy"]
    return later


def is_page(opening: bytes | bytearray) -> bool:
    """Tell whether a body begins like a web page."""
    start = opening[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html"))


def refuse_page(length: int | None, wanted: Wanted) -> NoReturn:
    """Raise the `Refusal` of a web page of `length`, if that is known. [B]"""
    told = f" ({words(length)})" if length is not None else ""
    meant = f" ({words(wanted.size)})" if wanted.size is not None else ""
    reason = f"the server sent a web page{told}, not the file{meant}"
    raise Refusal(reason)


def judge_headers(response: "BaseHTTPResponse", wanted: Wanted, begin: int) -> None:
    """Refuse a body before it is read, by its kind and its declared length.

    What a checksum can decide it decides: with the right length and a known checksum a wrong media
    type or encoding is a mistake of the server's settings and does no harm.
    """
    length = response.length_remaining
    room = wanted.most - begin
    if wanted.sha256 and wanted.size is not None and length == room:
        return
    media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    wrong = length is not None and (length != room if wanted.size is not None else length > room)
    page = media in _PAGES or (wrong and is_page(response.read(512, decode_content=False)))
    if page and not wanted.may_be_page:
        refuse_page(length, wanted)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        reason = f"the server sent it encoded ({encoding}), though asked not to"
        raise Refusal(reason)
    if wrong and length == 0:
        reason = "the server sent nothing"
        raise Refusal(reason)
    if wrong:
        more = "more than " if wanted.size is None else ""
        has = words(begin + (length or 0))
        sizes = f"{has}, not {more}{words(wanted.most)}"
        if has == words(wanted.most):
            sizes = f"{begin + (length or 0):,} B, not {more}{wanted.most:,} B"
        reason = f"the server's file has another size ({sizes})"
        raise Refusal(reason, "integrity")


def continues(response: "BaseHTTPResponse", begin: int, size: int | None) -> bool:
    """Tell whether an answer holds the rest of the file from byte `begin` (RFC 9110 14.4)."""
    found = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)",
        response.headers.get("Content-Range", ""),
    )
    if response.status != 206 or not found or int(found[1]) != begin:
        return False
    total = size if found[3] == "*" else int(found[3])
    return total is not None and int(found[2]) == total - 1 and size in {None, total}


def validator(headers: Mapping[str, str]) -> str:
    """Return what names this version of the bytes in ``If-Range`` (RFC 9110 13.1.5), or nothing.

    Weak tags don't, and a time only does when the answer is younger (8.8.2.2).
    """
    tag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    strong = tag if tag.startswith('"') else ""
    if not strong and modified and headers.get("Date", modified) != modified:
        strong = modified
    return strong if strong.isascii() and strong.isprintable() else ""


def discard(response: "BaseHTTPResponse") -> None:
    """Free the connection: for the next request if little is left to read, else for good."""
    if response.length_remaining is not None and response.length_remaining <= _DRAINED:
        response.drain_conn()
    response.close()


def read_headers(response: "BaseHTTPResponse") -> Headers:
    """Read the size of the whole file out of an answer to HEAD or to a request for one byte."""
    headers = response.headers
    length = headers.get("Content-Length", "")
    if response.status in {206, 416}:
        length = headers.get("Content-Range", "").rpartition("/")[2]
    size = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    media = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Headers(size, plain(media), plain(headers.get("ETag", "")))
