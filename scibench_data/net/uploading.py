"""Putting a folder's files into a bucket of an S3-compatible service, those that are not there yet.

The endpoint is the user's own choice, and still its addresses are judged before the first request.
boto3 resolves the name once more, so one that changes its address just then is not noticed; it
follows no redirects, nor to the endpoint of another region while it is given one.
"""

import base64
import contextlib
import hashlib
import mimetypes
import os
import socket
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

from scibench_data.errors import LicenceError, NetworkError, UsageError
from scibench_data.net.guard import is_public
from scibench_data.net.objectstore import NO_CREDENTIALS, Place, explained, own_access, parse_place

PART = 16 * 2**20
"""Bigger files are uploaded in parts of this size; each part passes through memory. [B]"""

_MAX_PARTS = 10_000
_ALLOW = "allow its host with SCIBENCH_DATA_ALLOWED_HOSTS={}"
_TYPES = mimetypes.MimeTypes()  # the built-in ones: the system's differ from machine to machine
_TYPE_OF_CODING = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}


@dataclass(frozen=True)
class Uploaded:
    """What an upload did: files put, files that were already there, and bytes put. [B]"""

    put: int
    kept: int
    bytes: int


def upload_tree(
    folder: Path,
    url: str,
    tick: Callable[[int], None] = lambda _: None,
    *,
    allowed: Collection[str] = (),
    jobs: int = 8,
) -> Uploaded:
    """Put all files of a folder below ``s3+https://endpoint/bucket/prefix``.

    What is already there with the same bytes is left alone, what differs is replaced, nothing is
    removed. The service checks what arrives by its MD5, part by part where it takes parts; the
    SHA-256 is noted as ``x-amz-meta-sha256``. Links are followed within the folder, as annexed
    files are.

    Parameters
    ----------
    folder
        A local folder.
    url
        Where in which bucket; the bucket must be there.
    tick
        Told how many bytes are newly in place, those that already were included. [B]
    allowed
        Hosts that may have private addresses and be asked by http.
    jobs
        Files at the same time. [1]

    Raises
    ------
    UsageError
        A link leads out of the folder, or something is neither file nor folder.
    LicenceError
        There are no credentials, or they do not suffice.
    NetworkError
        There is no such bucket, or no S3 service answers at an address that may be asked.
    """
    place = parse_place(url)
    _judge(place, allowed)
    files = _files(folder)
    access = own_access(place)
    if access is None:
        message = f"{place}: nobody may write there without credentials; {NO_CREDENTIALS}"
        raise LicenceError(message)
    with explained(place, access):
        upload = _Upload(access.client, place, _existing(access.client, place), tick)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                sizes = list(pool.map(upload.put, files.values(), files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    put = [size for size in sizes if size is not None]
    return Uploaded(len(put), len(sizes) - len(put), sum(put))


def _files(folder: Path) -> dict[str, Path]:
    """Map keys below the prefix to files; nothing outside of `folder` may slip in by a link."""
    root, found = folder.resolve(), {}
    for where, folders, names in os.walk(folder):
        for name in sorted(folders + names):
            path = Path(where, name)
            key = path.relative_to(folder).as_posix()
            if name in folders and not path.is_symlink():
                continue
            if not path.resolve().is_relative_to(root) or not path.is_file():
                message = f"{path}: a link that leads out, or no plain file; move it away"
                raise UsageError(message)
            if not key.isprintable():
                message = f"{str(path)!r}: a name with characters that can't be printed; rename it"
                raise UsageError(message)
            found[key] = path
    return found


@dataclass(frozen=True)
class _Upload:
    """Puts files beside those that are there (key -> size and ETag); safe in threads."""

    client: Any
    place: Place
    there: Mapping[str, tuple[int, str]]
    tick: Callable[[int], None]

    def put(self, path: Path, name: str) -> int | None:
        """Put a file unless it is there; return its size if it was put. [B]"""
        size = path.stat().st_size
        where = {"Bucket": self.place.bucket, "Key": self.place.folder + name}
        if size <= PART:
            content = path.read_bytes()
            md5, sha256 = _md5(content), hashlib.sha256(content).hexdigest()
            if self._is_there(where, len(content), md5.hex(), sha256):
                return None
            checked = {"ContentMD5": base64.b64encode(md5).decode()}
            self.client.put_object(Body=content, **where, **checked, **_headers(name, sha256))
            self.tick(len(content))
            return len(content)
        etag, sha256 = _digests(path)
        if self._is_there(where, size, etag, sha256):
            return None
        self._put_parts(path, where, _headers(name, sha256))
        return size

    def _is_there(self, where: Mapping[str, str], size: int, etag: str, sha256: str) -> bool:
        """Compare with the listing, and with our own note where the ETag is of another kind."""
        found_size, found_etag = self.there.get(where["Key"], (-1, ""))
        same = found_size == size and found_etag == etag
        if found_size == size and not same:
            same = self.client.head_object(**where)["Metadata"].get("sha256") == sha256
        if same:
            self.tick(size)
        return same

    def _put_parts(self, path: Path, where: Mapping[str, str], headers: Mapping[str, Any]) -> None:
        """Upload in parts; one that fails leaves none behind, for they would be paid for."""
        upload = self.client.create_multipart_upload(**where, **headers)["UploadId"]
        part_size = max(PART, -(-path.stat().st_size // _MAX_PARTS))
        parts: list[dict[str, Any]] = []
        try:
            with path.open("rb") as file:
                while content := file.read(part_size):
                    answer = self.client.upload_part(
                        **where,
                        UploadId=upload,
                        PartNumber=len(parts) + 1,
                        Body=content,
                        ContentMD5=base64.b64encode(_md5(content)).decode(),
                    )
                    parts.append({"ETag": answer["ETag"], "PartNumber": len(parts) + 1})
                    self.tick(len(content))
            self.client.complete_multipart_upload(
                **where, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            with contextlib.suppress(Exception):
                self.client.abort_multipart_upload(**where, UploadId=upload)
            raise


def _existing(client: Any, place: Place) -> dict[str, tuple[int, str]]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=place.bucket, Prefix=place.folder
    )
    return {
        item["Key"]: (item["Size"], item.get("ETag", "").strip('"'))
        for page in pages
        for item in page.get("Contents", [])
    }


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()  # what S3 calls an ETag


def _digests(path: Path) -> tuple[str, str]:
    """Return the ETag that a file has in parts of `PART`, and its SHA-256."""
    parts, sha256 = [], hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(PART):
            parts.append(_md5(content))
            sha256.update(content)
    return f"{_md5(b''.join(parts)).hex()}-{len(parts)}", sha256.hexdigest()


def _headers(name: str, sha256: str) -> dict[str, Any]:
    """Return the media type and our note; packed files are not to be unpacked by browsers."""
    kind, coding = _TYPES.guess_type(name)
    if coding is not None:
        kind = _TYPE_OF_CODING.get(coding)
    return {"ContentType": kind or "application/octet-stream", "Metadata": {"sha256": sha256}}


# --- where boto3 may go ---------------------------------------------------------------------------


def _judge(place: Place, allowed: Collection[str]) -> None:
    """Refuse an endpoint that may not be asked, before it is."""
    host = place.host.lower()
    if host in {name.strip("[]").rstrip(".").lower() for name in allowed}:
        return
    if not place.endpoint.startswith("https:"):
        message = f"{place}: not encrypted; use s3+https, or {_ALLOW.format(host)}"
        raise NetworkError(message)
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        if getproxies_environment().get("https"):
            return  # only the proxy can resolve names of the world
        message = f"{place}: its host was not found; check the endpoint and the network"
        raise NetworkError(message) from error
    if private := sorted(address for address in found if not is_public(address)):
        message = f"{place}: its address is not a public one ({private[0]}); {_ALLOW.format(host)}"
        raise NetworkError(message)
