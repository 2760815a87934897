"""Paths and URLs that strangers wrote: which may be unpacked here, and which may be asked.

They are judged by their text alone; nothing is opened and no name is resolved.
"""

import re
import unicodedata
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

_PATH_FAULTS = tuple(
    (re.compile(pattern, re.IGNORECASE), fault)
    for pattern, fault in (
        (r"^[a-z][a-z0-9+.-]+:|^//", "a URL; name a file here and its URLs in scibench.sources"),
        (r"^/|^[a-z]:", "an absolute path"),
        (r"(^|/)\.{0,2}(/|$)", "a path with an empty part, '.' or '..'"),
        (r"(^|/)(\.|git~[0-9])", "a path with a part that starts with '.' or is Git's own"),
        (r'[\\:*?"<>|]', r'a path with one of \ : * ? " < > |'),
        (r"[. ](/|$)", "a path with a part that ends in '.' or a space"),
        (
            r"(^|/)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.[^/]*)?(/|$)",
            "a path with the name of a Windows device",
        ),
        (r"^(?=.{1025})|[^/]{256}", "a path longer than 1024 characters, or 255 in one part"),
    )
)


def path_fault(path: str) -> str | None:
    """Say why `path` can't be unpacked safely everywhere (Git, Windows, macOS)."""
    if not path.isprintable():
        return "a path with characters that can't be printed"
    return next((fault for pattern, fault in _PATH_FAULTS if pattern.search(path)), None)


def folded(path: str) -> str:
    """Fold `path` as file systems do that ignore case and normalise Unicode."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


_URL_LETTERS = re.compile(r"[\w.~:/?#\[\]@!$&'()*+,;=%-]{1,2048}", re.ASCII)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}\.)+(?![0-9]){_LABEL}")
_LOCAL = re.compile(
    r"\.(localhost|local|localdomain|internal|intranet|private|lan|home|corp|arpa)\Z"
)
_SECRET = re.compile(
    r"token|signature|secret|passw|auth|credential|key$|^(sig|pwd|s[eprv])$|^x-(amz|goog)-",
    re.IGNORECASE,
)


def url_fault(url: str, allowed: Collection[str] | None = ()) -> str | None:
    """Say why `url` can't be a public mirror; never repeats it, for it may hold a secret.

    A host must be a name: every spelling of an address that some resolver takes (``0x7f.1``,
    ``2130706433``, ``[::1]``, full-width digits) fails as a name.

    Parameters
    ----------
    allowed
        Hosts that may be private and asked by http; None allows every host.
    """
    try:
        parts = urlsplit(url if _URL_LETTERS.fullmatch(url) else "[")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "not a URL of at most 2048 plain characters"
    free = bool(host) and (allowed is None or host in allowed)
    query = parse_qsl(parts.query.replace(";", "&"), keep_blank_values=True)
    schemes = {"https", "http"} if free else {"https"}
    unless = "" if allowed is None else ", and allowed_hosts doesn't name its host"
    faults = {
        f"a URL that is not https{unless}": parts.scheme not in schemes,
        "a URL with credentials, and a descriptor is public": "@" in parts.netloc,
        "a URL with a secret in its query, and a descriptor is public": any(
            _SECRET.search(name) for name, _ in query
        ),
        "a URL with a fragment": bool(parts.fragment),
        "a URL without a public host name": not (free or _is_public(host)) or port == 0,
    }
    return next((fault for fault, true in faults.items() if true), None)


def _is_public(host: str) -> bool:
    return _HOST.fullmatch(host) is not None and _LOCAL.search(host) is None


def link_fault(link: str) -> str | None:
    """Judge what Data Package calls a "URL or path"."""
    return url_fault(link) if _PATH_FAULTS[0][0].search(link) else path_fault(link)
