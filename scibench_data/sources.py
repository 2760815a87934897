"""Where a file comes from, as one string: which protocol, which address, which part of it.

::

    https://host/path                              a file
    s3+https://endpoint/bucket/key                 an object, anonymous or with your credentials
    zip+https://host/a.zip#member                  a member of an archive; tar+ likewise
    fdsn+https://host/fdsnws/event/1/query?...     an FDSN event query, as one CSV
    datalad+https://host/repository.git#path       a file of a published DataLad dataset

``http`` and private hosts stand only where the user allows the host. The strings are judged by
their text; where they really lead is for `scibench_data.net.web` to guard.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from scibench_data.foreign import path_fault, url_fault

KINDS = ("file", "s3", "zip", "tar", "fdsn", "datalad")
_WITH_MEMBER = {"zip", "tar", "datalad"}
_PREFIX = re.compile(r"(?:(?P<kind>s3|zip|tar|fdsn|datalad)\+)?(?P<url>https?://.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that has a file's bytes.

    Attributes
    ----------
    kind
        One of `KINDS`.
    url
        Without the prefix and the member.
    member
        The path within an archive or a dataset; empty elsewhere.
    """

    kind: str
    url: str
    member: str = ""

    @property
    def host(self) -> str:
        """The host's name, lower case, without its port."""
        return urlsplit(self.url).hostname or ""

    @property
    def place(self) -> str:
        """The host as the URL has it, with its port: a name for people."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


def parse_source(text: str) -> Source:
    """Take a source string apart; `source_fault` says whether it is sound.

    Examples
    --------
    >>> parse_source("tar+https://a.org/b.tgz#c/d.h5")
    Source(kind='tar', url='https://a.org/b.tgz', member='c/d.h5')
    >>> parse_source("https://a.org/b.h5").kind
    'file'
    """
    match = _PREFIX.fullmatch(text)
    if match is None:
        return Source(kind="file", url=text)
    kind = match["kind"] or "file"
    if kind not in _WITH_MEMBER:
        return Source(kind=kind, url=match["url"])
    url, _, member = match["url"].partition("#")
    return Source(kind=kind, url=url, member=unquote(member))


def source_fault(text: str, allowed: Collection[str] | None = ()) -> str | None:
    """Say why `text` can't be a source; never repeats it, for it may hold a secret.

    Parameters
    ----------
    allowed
        Hosts that may be private and asked by http; None allows every host.
    """
    source = parse_source(text)
    if fault := url_fault(source.url, allowed):
        return fault
    if source.kind in _WITH_MEMBER:
        if not source.member:
            return "an archive or dataset without '#' and the path within it"
        return path_fault(source.member)
    if source.kind == "s3" and urlsplit(source.url).path.count("/") < 2:
        return "an S3 URL without a bucket and a key"
    return None
