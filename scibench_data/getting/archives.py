"""Single files out of tar and zip archives, without ever using the archive's own names as paths.

A member is found by its name in the archive and written to a path of the caller's. Links, devices,
names that are there twice and archives that are damaged or swell beyond reason are errors. What
the bytes mean, and whether they are the promised ones, is the caller's to check.

Formats: POSIX.1-2017 ``pax`` and ``ustar``, GNU tar (plain, gzip, bzip2, xz) and PKWARE APPNOTE
6.3.10 (zip; stored, deflate, bzip2, LZMA; no encryption). The first bytes tell which, not the name.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

from scibench_data import durable
from scibench_data.errors import IntegrityError
from scibench_data.foreign import path_fault

Tick = Callable[[int], None]
"""Told how many bytes were just written. [B]"""

MAX_MEMBERS = 2_000_000
MAX_RATIO = 2_000
"""How far an archive may swell: gzip ends at 1,032, and a real catalogue in xz reaches 530. [1]"""
SMALL = 256 * 2**20
"""What any archive may swell to, whatever its own size. [B]"""

_CHUNK = 2**20
_BLOCK = 512  # POSIX.1-2017 pax, ustar: everything comes in blocks of this size
_MAX_HEADER = 2**20  # long names and pax records; tarfile reads them whole into memory
_MAX_DIRECTORY = 128 * 2**20  # zipfile reads the central directory whole, 46 B or more per member
_OPENERS: Mapping[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    RecursionError,  # headers before headers before headers
    EOFError,
    IndexError,
    ValueError,
    OverflowError,
    NotImplementedError,
)
"""What the standard library raises at bytes that are no sound archive."""


@dataclass(frozen=True)
class Member:
    """One regular file of an archive: its path there, without a leading ``./``, and size. [B]"""

    path: str
    bytes: int


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    Attributes
    ----------
    members
        The regular files that can be had, in the archive's order.
    left_out
        Name -> why it can't be had, of everything else but folders.
    """

    members: tuple[Member, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    """One name in an archive; `fault` says why it is not a plain file, `read` gives its bytes."""

    path: str
    size: int
    fault: str
    read: Callable[[], Iterator[bytes]]


def members(archive: Path) -> Contents:
    """List the regular files of an archive; compressed tars are read through to their end.

    Raises
    ------
    IntegrityError
        The archive is damaged, cut short, of another format, or swells beyond reason.
    """
    found, left_out, times = [], {}, Counter[str]()
    with _reading(archive), _entries(archive) as entries:
        for entry in entries:
            fault = entry.fault or path_fault(entry.path)
            times[entry.path] += 1
            if fault:
                left_out[entry.path] = fault
            else:
                found.append(Member(entry.path, entry.size))
    left_out |= {path: "a name that is there twice" for path, n in times.items() if n > 1}
    return Contents(
        tuple(member for member in found if member.path not in left_out),
        MappingProxyType(left_out),
    )


@dataclass
class _Extraction:
    """Which members one pass writes where, and what it has written so far."""

    wanted: Mapping[str, Path]
    sizes: Mapping[str, int | None]
    tick: Tick
    made: list[Path] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)

    def take(self, entry: _Entry) -> None:
        """Write `entry` to its place, or say why it can't be the wanted file."""
        if entry.path in self.sha256:
            message = f"{entry.path!r} is in it twice, and which one is meant can't be known"
            raise _BadArchiveError(message)
        if entry.fault:
            message = f"{entry.path!r} is {entry.fault}, not a plain file"
            raise _BadArchiveError(message)
        expected = self.sizes.get(entry.path)
        if expected not in {None, entry.size}:
            message = f"{entry.path!r} has {entry.size} bytes, expected {expected}"
            raise _BadArchiveError(message)
        self.sha256[entry.path] = self._write(entry, self.wanted[entry.path])

    def finish(self) -> None:
        """Name what never came."""
        if missing := self.wanted.keys() - self.sha256.keys():
            others = f" and {len(missing) - 1} others are" if len(missing) > 1 else " is"
            message = f"{min(missing)!r}{others} not in it"
            raise _BadArchiveError(message)

    def _write(self, entry: _Entry, target: Path) -> str:
        digest, written = hashlib.sha256(), 0
        with durable.disk_errors(target):
            file = target.open("xb")
        self.made.append(target)
        with file:
            for chunk in entry.read():
                written += len(chunk)
                if written > entry.size:
                    break
                digest.update(chunk)
                with durable.disk_errors(target):
                    file.write(chunk)
                self.tick(len(chunk))
            with durable.disk_errors(target):
                file.flush()
        if written != entry.size:
            some = "more" if written > entry.size else f"only {written}"
            message = f"{entry.path!r} says {entry.size} bytes and has {some}"
            raise _BadArchiveError(message)
        return digest.hexdigest()


def extract(
    archive: Path,
    wanted: Mapping[str, Path],
    sizes: Mapping[str, int | None] = MappingProxyType({}),
    tick: Tick = lambda _: None,
) -> dict[str, str]:
    """Write the members named in `wanted` to its paths; return member -> SHA-256.

    One pass, to the archive's end: only there is it sure that no name comes twice. When it fails,
    nothing that it wrote is left. The new files are not flushed onto the disk.

    Parameters
    ----------
    archive
        A local tar or zip file.
    wanted
        Name in the archive (a leading ``./`` counts for nothing) -> a path that is still free,
        in a folder that exists.
    sizes
        Name -> size, or None where it isn't known; another one is an error, told before a byte of
        that member is written. [B]
    tick
        Told how many bytes were just written.

    Raises
    ------
    IntegrityError
        A member is missing, twice there, a link or device, encrypted, or not of the expected size;
        or the archive is damaged, cut short, of another format, or swells beyond reason.
    FileExistsError
        Something is already where a member should go.
    SpaceError
        The disk refuses.
    """
    plain = {_plain(name): target for name, target in wanted.items()}
    known = {_plain(name): size for name, size in sizes.items()}
    extraction = _Extraction(plain, known, tick)
    try:
        with _reading(archive), _entries(archive) as entries:
            for entry in entries:
                if entry.path in plain:
                    extraction.take(entry)
            extraction.finish()
    except BaseException:
        for path in extraction.made:
            path.unlink(missing_ok=True)
        raise
    return {name: extraction.sha256[_plain(name)] for name in wanted}


def _plain(name: str) -> str:
    """Drop the ``./`` that ``tar -c .`` puts before every name."""
    return name.removeprefix("./")


class _BadArchiveError(Exception):
    """What is wrong with the archive, without its name."""


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Tell of damage in plain words; the disk's own errors stay what they are."""
    try:
        yield
    except _BadArchiveError as error:
        why, cause = str(error), error.__cause__
    except OSError as error:
        if error.errno is not None:  # gzip and bz2 raise it without one at damaged bytes
            raise
        why, cause = f"it is damaged or cut short ({_brief(error)})", error
    except _DAMAGE as error:
        why, cause = f"it is damaged or cut short ({_brief(error)})", error
    else:
        return
    message = f"{archive.name}: {why}; get the archive again or report it to its maintainers"
    raise IntegrityError(message) from cause


def _brief(error: Exception) -> str:
    said = " ".join(str(error).split())[:100]
    return said if said.isprintable() and said else type(error).__name__


@contextlib.contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    """Open an archive of either kind and give its entries, folders left out."""
    with durable.open_regular(archive) as file:
        start = file.peek(8)[:8]
        size = archive.stat().st_size
        allowed = max(SMALL, MAX_RATIO * size)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x00\x00PK")):
            with zipfile.ZipFile(cast(BinaryIO, _Guarded(file))) as opened:
                yield _zip_entries(opened, allowed)
            return
        openers = [opener for magic, opener in _OPENERS.items() if start.startswith(magic)]
        inner = openers[0](file) if openers else cast(BinaryIO, file)
        yield _tar_entries(_Forward(inner, allowed))


# --- tar ------------------------------------------------------------------------------------------


class _Forward:
    """A tar's bytes, read once from front to back, whatever ``tarfile`` asks for.

    It may ask for the byte before the place it has reached (that is how it looks for the end of a
    member), and never for more than a header at a time: that keeps a header of gigabytes out of the
    memory, and a member of negative size from turning it in circles (CVE-2025-8194).
    """

    def __init__(self, inner: BinaryIO, allowed: int) -> None:
        self._inner = inner
        self._allowed = allowed
        self._position = 0  # where `tarfile` believes to be
        self._reached = 0
        self._tail = b""  # the byte before
        self.header = b""  # the last that was read whole; zeros mark the archive's end

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._reached - len(self._tail):
            message = "it is damaged (a header gives a size that can't be)"
            raise _BadArchiveError(message)
        while self._reached < position and self._next(min(position - self._reached, _CHUNK)):
            pass
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """Give a header of `size` bytes, or what is left."""
        if not 0 < size <= _MAX_HEADER:
            message = f"it has a header of {size} bytes, and {_MAX_HEADER} are plenty"
            raise _BadArchiveError(message)
        read = self._tail if self._position < self._reached else b""
        while len(read) < size and (chunk := self._next(size - len(read))):
            read += chunk
        self._position += len(read)
        self.header = read
        return read

    def chunks(self, size: int) -> Iterator[bytes]:
        """Give the next `size` bytes piece by piece."""
        while size and (chunk := self._next(min(size, _CHUNK))):
            size -= len(chunk)
            self._position = self._reached
            yield chunk

    def drain(self) -> None:
        """Read to the end, where compressed formats keep their checksum."""
        while self._next(_CHUNK):
            pass

    def _next(self, size: int) -> bytes:
        chunk = self._inner.read(size)
        self._reached += len(chunk)
        if self._reached > self._allowed:
            message = f"it swells to over {self._allowed} bytes, as one does that is made to harm"
            raise _BadArchiveError(message)
        self._tail = chunk[-1:] or self._tail
        return chunk


def _tar_entries(file: _Forward) -> Iterator[_Entry]:
    try:
        tar = tarfile.TarFile(fileobj=cast(BinaryIO, file), mode="r", encoding="utf-8")
    except tarfile.ReadError as error:
        message = "it is neither a tar nor a zip archive"
        raise _BadArchiveError(message) from error
    count = 0
    while (info := tar.next()) is not None:
        count += 1
        _check_count(count)
        if not info.isdir():
            yield _tar_entry(info, file)
        cast(Any, tar).members.clear()  # a list of everything would fill the memory
    if file.header != bytes(_BLOCK):  # `tarfile` takes a bad header for the end, too
        message = "it is damaged or cut short (a header can't be read, or the end mark is missing)"
        raise _BadArchiveError(message)
    file.drain()


def _check_count(count: int) -> None:
    if count > MAX_MEMBERS:
        message = f"it has over {MAX_MEMBERS} members, as one does that is made to harm"
        raise _BadArchiveError(message)


def _tar_entry(info: tarfile.TarInfo, file: _Forward) -> _Entry:
    kinds = {
        "a link": info.issym() or info.islnk(),
        "a device or pipe": info.isdev(),
        "a sparse file": info.issparse(),
        "of a kind of its own": not info.isreg(),
        "of negative size": info.size < 0,
    }

    def read() -> Iterator[bytes]:
        file.seek(info.offset_data)
        return file.chunks(info.size)

    fault = next((kind for kind, true in kinds.items() if true), "")
    return _Entry(_plain(info.name), info.size, fault, read)


# --- zip ------------------------------------------------------------------------------------------


class _Guarded(io.BufferedIOBase):
    """A zip's bytes; what says that its directory alone is gigabytes is not read into memory."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._file.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            message = f"its directory has over {_MAX_DIRECTORY} bytes"
            raise _BadArchiveError(message)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == os.SEEK_SET and offset < 0:
            message = "an offset before the file"
            raise zipfile.BadZipFile(message)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _zip_entries(opened: zipfile.ZipFile, allowed: int) -> Iterator[_Entry]:
    infos = opened.infolist()
    total = sum(info.file_size for info in infos)
    _check_count(len(infos))
    if total > allowed:  # also what names the same bytes again and again
        message = f"it swells to {total} bytes, as one does that is made to harm"
        raise _BadArchiveError(message)
    for info in infos:
        if not info.is_dir():
            yield _zip_entry(opened, info)


def _zip_entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)  # Unix keeps its mode there, others nothing
    kinds = {
        "encrypted": bool(info.flag_bits & 0x1),
        "a link": kind == stat.S_IFLNK,
        "a device, pipe or folder": kind not in {0, stat.S_IFREG},
    }

    def read() -> Iterator[bytes]:
        with opened.open(info) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    fault = next((kind for kind, true in kinds.items() if true), "")
    return _Entry(_plain(info.orig_filename), info.file_size, fault, read)
