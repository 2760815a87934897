"""Buckets of S3-compatible services: what URL to download from, what lies there, who may ask.

Path-style addresses only (``https://endpoint/bucket/key``), so that any service and port will do.
boto3 only signs: listings and downloads go through `scibench_data.net.web`, which judges each
address as it connects and each answer as it comes (boto3 would take one of any length). Listings
are those of the S3 API 2006-03-01, ``ListObjectsV2``.

Credentials are the user's own, from the environment or the AWS profile files; the metadata
services of cloud machines are not asked. They are used only after an anonymous request was denied.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, unquote_plus, urlencode, urlsplit

from scibench_data.errors import LicenceError, NetworkError, ScibenchError, UsageError
from scibench_data.net.guard import Refusal, plain, shown

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from scibench_data.net.web import Web

MAX_KEYS = 5_000_000
"""Objects that one listing may have: a service could go on for ever. [1]"""

_MAX_PAGES = 50_000  # of 1,000 keys each, unless the service is a small one
_PAGE = 16 * 2**20  # 1,000 keys of at most 1,024 bytes, with what belongs to them [B]
_REGION = re.compile(r"s3[.-]([a-z0-9-]+)\.amazonaws\.com")
NO_CREDENTIALS = (
    "no credentials were found to try: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or AWS_PROFILE"
)
_SOURCE_OF = {
    "env": "in the environment (AWS_ACCESS_KEY_ID ...)",
    "shared-credentials-file": "in the AWS credentials file",
    "config-file": "in the AWS configuration file",
}


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its whole key, size [B] and ETag without quotes."""

    key: str
    bytes: int
    etag: str


@dataclass(frozen=True)
class Place:
    """A key, or what keys begin with, in a bucket of an endpoint."""

    endpoint: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return plain(f"{self.endpoint}/{self.bucket}/{self.key}")

    @property
    def host(self) -> str:
        """The endpoint's name, without its port."""
        return (urlsplit(self.endpoint).hostname or "").rstrip(".")

    @property
    def folder(self) -> str:
        """The key as a folder's: what a listing must begin with, or "a" would also find "ab"."""
        return f"{self.key.rstrip('/')}/" if self.key.strip("/") else ""


def parse_place(url: str) -> Place:
    """Take a URL apart, with ``s3+`` before it or not."""
    try:
        parts = urlsplit(url.removeprefix("s3+"))
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    bucket, _, key = parts.path.removeprefix("/").partition("/")
    odd = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in {"http", "https"} or not host or not bucket or odd:
        message = f"{shown(url)!r}: not an S3 URL; write s3+https://endpoint/bucket/key"
        raise UsageError(message)
    return Place(f"{parts.scheme}://{parts.netloc}", unquote(bucket), unquote(key))


def _object(url: str) -> Place:
    place = parse_place(url)
    if not place.key:
        message = f"{place}: a whole bucket; name an object in it"
        raise UsageError(message)
    return place


def public_url(url: str) -> str:
    """Return where anyone can download an object from, if its bucket is public.

    Examples
    --------
    >>> public_url("s3+https://s3.echo.stfc.ac.uk/sciml-datasets/ms/a.h5")
    'https://s3.echo.stfc.ac.uk/sciml-datasets/ms/a.h5'

    Raises
    ------
    UsageError
        It is not the URL of an object.
    """
    place = _object(url)
    return f"{place.endpoint}/{quote(place.bucket)}/{quote(place.key)}"


def signed_url(url: str, expires: int = 3600) -> str | None:
    """Return a URL that lets whoever has it download an object; None without credentials.

    It is a secret for as long as it lasts: show it to nobody. No connection is opened.

    Parameters
    ----------
    url
        The object's.
    expires
        How long it lasts. [s]

    Raises
    ------
    UsageError
        It is not the URL of an object.
    LicenceError
        The AWS configuration can't be used, such as a profile that is not there.
    """
    place = _object(url)
    access = own_access(place)
    if access is None:
        return None
    parameters = {"Bucket": place.bucket, "Key": place.key}
    with explained(place, access):
        return access.presigned("get_object", parameters, expires)


def list_prefix(web: "Web", url: str, *, most: int = MAX_KEYS) -> Iterator[Entry]:
    """List the objects below ``s3+https://endpoint/bucket/prefix``, taken as a folder.

    Asked without credentials first, then with the user's. Empty objects that stand for folders are
    left out. Keys are as the service gives them: judge them before they become paths.

    Parameters
    ----------
    web
        Asks the service.
    url
        A folder of a bucket, or a bucket.
    most
        More objects than this are an error. [1]

    Raises
    ------
    NetworkError
        Nothing lies there (a folder that was moved answers like an empty one), there is no such
        bucket, or no S3 service answers at an address that may be asked.
    LicenceError
        Access was denied.
    """
    place = parse_place(url)
    count = 0
    for page in _pages(web, place):
        count += len(page)
        if count > most:
            message = f"{place}: over {most} objects; list a folder further down"
            raise NetworkError(message)
        yield from page
    if not count:
        message = (
            f"{place}: no object lies there; check the bucket and the prefix, "
            "its owner may have moved or closed it"
        )
        raise NetworkError(message)


def _pages(web: "Web", place: Place) -> Iterator[list[Entry]]:
    """List as whoever may; the first page tells who that is."""
    access: Access | None = None
    parameters = {"Bucket": place.bucket, "Prefix": place.folder, "EncodingType": "url"}
    for _ in range(_MAX_PAGES):
        try:
            answer = web.read(_page_url(place, parameters, access), _PAGE)
        except Refusal as refusal:
            if access is not None or refusal.kind != "licence":
                raise _refused(place, access, refusal) from refusal
            access = own_access(place)
            if access is None:
                raise _refused(place, access, refusal) from refusal
            continue
        entries, token = _read_page(place, answer)
        yield entries
        if not token:
            return
        parameters["ContinuationToken"] = token
    message = f"{place}: its listing does not end after {_MAX_PAGES} pages; check the endpoint"
    raise NetworkError(message)


def _page_url(place: Place, parameters: Mapping[str, str], access: "Access | None") -> str:
    if access is not None:
        return access.presigned("list_objects_v2", parameters, 900)
    names = {"Prefix": "prefix", "ContinuationToken": "continuation-token"}
    query = {names[name]: value for name, value in parameters.items() if name in names}
    query = {"list-type": "2", "encoding-type": "url", **query}
    return f"{place.endpoint}/{quote(place.bucket)}?{urlencode(query)}"


def _refused(place: Place, tried: "Access | None", refusal: Refusal) -> ScibenchError:
    if refusal.kind == "licence":
        advice = tried.advice if tried else NO_CREDENTIALS
        return LicenceError(f"{place}: {refusal.reason}; {advice}")
    if refusal.status == 404:
        return NetworkError(f"{place}: there is no such bucket; check its name and the endpoint")
    return NetworkError(f"{place}: {refusal.reason}; check the endpoint")


def _read_page(place: Place, answer: bytes) -> tuple[list[Entry], str]:
    """Read one page of a listing and the token for the next, empty after the last."""
    try:
        root = _parse_xml(answer)
        coded = root.findtext("EncodingType") == "url"
        entries = [_read_entry(item, coded=coded) for item in root.iterfind("Contents")]
        return [e for e in entries if e.bytes or not e.key.endswith("/")], (
            root.findtext("NextContinuationToken", "")
        )
    except (ValueError, SyntaxError) as error:  # ElementTree's ParseError is a SyntaxError
        message = f"{place}: no S3 service answers there; check the endpoint"
        raise NetworkError(message) from error


def _parse_xml(answer: bytes) -> "Element":
    """Read the XML of a listing, without the namespace: services differ in it.

    A document type is refused: no service needs one, and attacks do.
    """
    from xml.etree import ElementTree as ET

    root = ET.fromstring(answer) if b"<!" not in answer else ET.Element("")  # noqa: S314
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "ListBucketResult":
        message = "not a listing"
        raise ValueError(message)
    return root


def _read_entry(item: "Element", *, coded: bool) -> Entry:
    key, size = item.findtext("Key", ""), int(item.findtext("Size", ""))
    if not key or size < 0:
        message = "an object without a key or of negative size"
        raise ValueError(message)
    etag = item.findtext("ETag", "").strip('"')
    return Entry(unquote_plus(key) if coded else key, size, etag)


# --- who asks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """A boto3 client and, for messages, where its credentials come from."""

    client: Any
    source: str

    @property
    def advice(self) -> str:
        """What to do when this was denied; never the credentials themselves."""
        return f"the credentials {self.source} were tried: check them, or ask the bucket's owner"

    def presigned(self, method: str, parameters: Mapping[str, str], expires: int) -> str:
        """Return a URL that anyone who has it can ask for `expires`. [s]"""
        url: str = self.client.generate_presigned_url(method, parameters, expires)
        return url


_LOCK = threading.Lock()


def own_access(place: Place) -> Access | None:
    """Return access with the user's credentials, or None where there are none."""
    from botocore.exceptions import BotoCoreError

    asked = frozenset(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("AWS_") or name == "HOME"
    )
    try:
        with _LOCK:  # a session is not made for threads, a client is
            return _own_of(place.endpoint, asked)
    except BotoCoreError as error:
        message = (
            f"{place}: the AWS configuration can't be used ({type(error).__name__}); "
            "correct AWS_PROFILE, the other AWS_ variables or the files in ~/.aws"
        )
        raise LicenceError(message) from error


@functools.lru_cache(maxsize=16)
def _own_of(endpoint: str, _: Collection[tuple[str, str]]) -> Access | None:
    import botocore.session

    core = botocore.session.Session()
    resolver = core.get_component("credential_provider")
    for provider in ("iam-role", "container-role"):  # asked over the network, of private addresses
        resolver.remove(provider)
    found = core.get_credentials()
    if found is None:
        return None
    source = _SOURCE_OF.get(found.method, f"of the AWS configuration ({found.method})")
    profile = core.get_config_variable("profile")
    named = f", profile {profile!r}" if profile and found.method != "env" else ""
    return Access(_client(core, endpoint), source + named)


def _client(core: Any, endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=32,
        # Trailing checksums are new, and services other than Amazon's refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    named = _REGION.fullmatch(urlsplit(endpoint).netloc)
    region = named[1] if named else core.get_config_variable("region") or "us-east-1"
    session = boto3.Session(botocore_session=core, region_name=region)
    return session.client("s3", endpoint_url=endpoint, config=config)


@contextlib.contextmanager
def explained(place: Place, access: Access) -> Iterator[None]:
    """Tell plainly what boto3 means; of what a server says, only its code."""
    from botocore import exceptions as known

    try:
        yield
    except known.ClientError as error:
        raise _explain(place, access, error) from error
    except (known.NoCredentialsError, known.CredentialRetrievalError) as error:
        message = f"{place}: the credentials can't be had; {access.advice}"
        raise LicenceError(message) from error
    except known.BotoCoreError as error:
        message = (
            f"{place}: no S3 service answers there ({type(error).__name__}); "
            "check the endpoint and the network"
        )
        raise NetworkError(message) from error


def _explain(place: Place, access: Access, error: Any) -> ScibenchError:
    code = plain(str(error.response.get("Error", {}).get("Code", "")))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return NetworkError(f"{place}: there is no such bucket; make it, or check its name")
    if status in {401, 403}:
        return LicenceError(f"{place}: access was denied ({code}); {access.advice}")
    return NetworkError(f"{place}: the service answers {code!r} ({status}); check the endpoint")
