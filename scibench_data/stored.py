"""Read any rows of a Zarr array of this disk, with no copy on the way to where they are wanted.

For arrays that are cut along their first axis only, uncompressed or packed with zstd or Blosc, in
files of one chunk or of many: Zarr core specification 3.1, codecs ``bytes``, ``zstd``, ``blosc``
and ``sharding_indexed`` 1.0. Whatever else a store holds is left to zarr-python; a test holds the
two to the same values.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import mmap
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scibench_data.errors import IntegrityError

if TYPE_CHECKING:
    import dask.array as da
    import numpy.typing as npt

    from scibench_data.sampling import Indices

_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard doesn't have
_OPEN_FILES = 512  # of one array; systems allow a process 1,024 of all kinds
_PLACES = 1024  # of one system call: IOV_MAX of Linux
_BLOCK_BYTES = 2 << 20  # a block of a Dask graph: small to a processor's cache, large to a task [B]
_PACKED = {"zstd", "blosc"}
_HUGE = 2 << 20  # of a large page: a file's beginning is mapped by such where it lies at one [B]
_MAP_FIXED = 0x10  # Linux, every architecture; Python's mmap module has no name for it


class _File:
    """An open file of an array, and where in it each of its chunks lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[tuple[int, int]] = []
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, offset: int, size: int, into: Sequence[memoryview]) -> None:
        """Read `size` bytes, which `into` has room for, in one system call."""
        if os.preadv(self.descriptor, into, offset) != size:
            raise self._cut_short(offset + size)

    def look(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Return bytes as they lie in the page cache, without copying them."""
        if offset + size > len(self._octets):
            raise self._cut_short(offset + size)
        return self._octets[offset : offset + size]

    @functools.cached_property
    def _octets(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ), np.uint8)

    def _cut_short(self, end: int) -> IntegrityError:
        what = f"{self.path}: ends before byte {end}, damaged since it was verified"
        message = f"{what}; run the same again"
        return IntegrityError(message)


def _map_together(parts: Sequence[tuple[_File, int]], size: int) -> npt.NDArray[np.uint8]:
    """Map the beginnings of files as one run of memory, `size` bytes from one to the next. [B]

    A gather over all files is then one call. The room is reserved first, so that nothing else is in
    the place; it is given back as a whole when the last array over it is gone (mmap(2), MAP_FIXED).
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # that can't be written to takes no memory
    whole = size * len(parts)
    room = np.frombuffer(mmap.mmap(-1, whole + _HUGE, flags, mmap.PROT_READ), np.uint8)
    room = room[-room.ctypes.data % _HUGE :][:whole]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for number, (file, length) in enumerate(parts):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)  # it will all be looked at
        place, how = room.ctypes.data + number * size, mmap.MAP_SHARED | _MAP_FIXED
        if libc.mmap(place, length, mmap.PROT_READ, how, file.descriptor, 0) != place:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(file.path))
    return room


@dataclass(frozen=True)
class Stored:
    """A Zarr array as a file system has it.

    Attributes
    ----------
    chunk, shard
        Rows in a chunk and in a file. [1]
    codec
        Name of the codec that packs a chunk, or "none".
    separator
        What stands between the numbers of a file's name.
    index
        Size of a file's table of chunks and of its checksum; (0, 0) where a file is one chunk. [B]
    at_end
        Whether that table is at the file's end.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int
    shard: int
    codec: str
    separator: str
    index: tuple[int, int]
    at_end: bool
    fill: Any

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @functools.cached_property
    def row_bytes(self) -> int:
        """Size of a row. [B]"""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @functools.cached_property
    def block(self) -> int:
        """Rows of whole chunks, about 2 MiB, that are worth reading together. [1]"""
        each = max(_BLOCK_BYTES // max(self.chunk * self.row_bytes, 1), 1) * self.chunk
        return min(each, self.shard)

    @functools.cached_property
    def fits(self) -> bool:
        """Whether the array can stay in the machine's memory, so that mapping it is worth it."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        files = -(-self.shape[0] // self.shard)
        return self.shape[0] * self.row_bytes <= memory // 2 and files <= _OPEN_FILES

    @functools.cached_property
    def name(self) -> str:
        """Name of the Dask array of this; another when the array is written anew."""
        look = (self.path / "zarr.json").stat()
        what = f"{self.path.absolute()}:{look.st_ino}:{look.st_ctime_ns}:{self.shard}"
        return f"stored-{hashlib.sha256(what.encode()).hexdigest()[:32]}"

    def __repr__(self) -> str:
        """Return its name: Dask sorts tasks by what they look like."""
        return f"<Stored {self.name}>"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: another process opens its own."""
        kept = self.__dict__.keys() - {"_file", "_unpack", "mapped"}
        return {key: self.__dict__[key] for key in kept}

    def to_dask(self) -> da.Array:
        """Return a Dask array of blocks of about 2 MiB, which are whole chunks."""
        import dask.array as da

        chunks = (self.block, *self.shape[1:])
        array: da.Array = da.from_array(
            self, chunks, name=self.name, asarray=False, fancy=False, inline_array=True
        )
        return array

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Return rows ``key[0]``, a slice without a step; the other axes are whole.

        Values may be those of the file itself, which can't be written to.
        """
        start, stop, _ = key[0].indices(self.shape[0])
        if self.codec == "none" and (mapped := self.mapped) is not None:
            values: npt.NDArray[Any] = mapped[start:stop].reshape(-1).view(self.dtype)
            return values.reshape(stop - start, *self.shape[1:])
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if self.codec == "none":
            self.read_rows(np.arange(start, stop), out, np.arange(stop - start))
            return out
        for number in range(start // self.chunk, -(-stop // self.chunk)):
            first = number * self.chunk
            rows = slice(max(start, first), min(stop, first + self.chunk))
            place = out[rows.start - start : rows.stop - start]
            if len(place) == self.chunk:
                self.read_chunk(number, place)
            else:
                whole = np.empty((self.chunk, *self.shape[1:]), self.dtype)
                self.read_chunk(number, whole)
                place[:] = whole[rows.start - first : rows.stop - first]
        return out

    @functools.cached_property
    def mapped(self) -> npt.NDArray[np.uint8] | None:
        """Every row as it lies in the page cache, shape (rows, bytes of a row), for reading only.

        None where the array is packed, larger than half the machine's memory, or where a file's
        rows don't follow each other from its beginning and fill whole pages.
        """
        size, chunk = self.shard * self.row_bytes, self.chunk * self.row_bytes
        if self.codec != "none" or not self.fits or not size or size % mmap.PAGESIZE:
            return None
        parts = []
        for number in range(-(-self.shape[0] // self.shard)):
            rows = min(self.shard, self.shape[0] - number * self.shard)
            in_a_row = [(at * chunk, chunk) for at in range(-(-rows // self.chunk))]
            file = self._file(number)
            if file is None or file.places[: len(in_a_row)] != in_a_row:
                return None
            parts.append((file, len(in_a_row) * chunk))
        room = _map_together(parts, size)
        self._file.cache_clear()
        return room[: self.shape[0] * self.row_bytes].reshape(-1, self.row_bytes)

    def read_rows(self, rows: Indices, out: npt.NDArray[Any], places: Indices) -> None:
        """Read ``rows[places]`` to ``out[places]``; the array must not be packed.

        Rows that follow each other in a file are read by one system call, wherever they go to.

        Parameters
        ----------
        out
            C-contiguous, shape (len(rows), ...).
        places
            In increasing order of their rows.
        """
        wanted = rows[places]
        starts = np.flatnonzero((np.diff(wanted, prepend=-2) != 1) | (wanted % self.chunk == 0))
        octets = out.reshape(len(rows), -1).view(np.uint8)
        targets = places.tolist()
        ends = [*starts[1:].tolist(), len(wanted)]
        size = self.row_bytes
        for start, end, row in zip(starts.tolist(), ends, wanted[starts].tolist(), strict=True):
            number, within = divmod(row, self.shard)
            file = self._file(number)
            offset = file.places[within // self.chunk][0] if file else _ABSENT
            if file is None or offset == _ABSENT:
                out[places[start:end]] = self.fill
                continue
            offset += within % self.chunk * size
            _scatter(file, offset, octets, targets[start:end])

    def read_chunk(self, number: int, out: npt.NDArray[Any]) -> None:
        """Read and unpack a chunk; rows after the array's end are whatever the file has.

        Parameters
        ----------
        out
            Where to, C-contiguous, shape (chunk, ...).
        """
        file_number, within = divmod(number, self.shard // self.chunk)
        file = self._file(file_number)
        offset, size = file.places[within] if file else (_ABSENT, 0)
        if file is None or offset == _ABSENT:
            out[:] = self.fill
            return
        try:
            self._unpack(self._packed(file, offset, size), out)
        except (RuntimeError, ValueError) as error:
            message = (
                f"{file.path}: chunk {within} can't be unpacked ({error}), damaged since it was "
                "verified; run the same again"
            )
            raise IntegrityError(message) from error

    def _packed(self, file: _File, offset: int, size: int) -> npt.NDArray[np.uint8]:
        if self.fits:
            return file.look(offset, size)
        packed = np.empty(size, np.uint8)
        file.read(offset, size, [packed.data])
        return packed

    @functools.cached_property
    def _unpack(self) -> Any:
        """Give what unpacks a chunk's bytes into an array of its size."""
        from numcodecs import blosc, zstd  # type: ignore[import-untyped]

        return {"zstd": zstd.decompress, "blosc": blosc.decompress}[self.codec]

    @functools.cached_property
    def _file(self) -> Any:
        """Give a file, a `_File`, by its number, None where all is fill value; some stay open."""
        return functools.lru_cache(_OPEN_FILES)(self._open)

    def _open(self, number: int) -> _File | None:
        key = self.separator.join(["c", str(number), *("0" for _ in self.shape[1:])])
        path = self.path / key
        try:
            file = _File(path)
        except FileNotFoundError:
            return None
        size = os.fstat(file.descriptor).st_size
        table, checksum = self.index
        if not table:
            file.places.append((0, size))
            return file
        read = bytearray(table + checksum)
        place = max(size - len(read), 0) if self.at_end else 0
        file.read(place, len(read), [memoryview(read)])
        _check_index(path, bytes(read[:table]), bytes(read[table:]))
        file.places.extend(map(tuple, np.frombuffer(read[:table], "<u8").reshape(-1, 2).tolist()))
        return file


def _scatter(
    file: _File, offset: int, octets: npt.NDArray[np.uint8], places: Sequence[int]
) -> None:
    """Read rows that lie in a row to rows `places` of `octets`."""
    size = octets.shape[1]
    if places[-1] - places[0] == len(places) - 1 and all(map(operator.lt, places, places[1:])):
        file.read(offset, size * len(places), [octets[places[0] : places[-1] + 1].reshape(-1).data])
        return
    for start in range(0, len(places), _PLACES):
        part = [octets[place].data for place in places[start : start + _PLACES]]
        file.read(offset + start * size, len(part) * size, part)


def _check_index(path: Path, table: bytes, checksum: bytes) -> None:
    import google_crc32c

    if checksum and google_crc32c.value(table).to_bytes(4, "little") != checksum:
        message = f"{path}: its table of chunks is damaged; run the same again"
        raise IntegrityError(message)


def open_stored(path: Path) -> Stored | None:
    """Return the array in the folder `path`, or None where this module doesn't know its format."""
    try:
        meta = json.loads((path / "zarr.json").read_bytes())
        return _parse(path, meta)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _parse(path: Path, meta: Any) -> Stored | None:
    shape = tuple(meta["shape"])
    shard = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = meta["codecs"]
    chunk, index, at_end = shard, (0, 0), True
    known = (meta["zarr_format"], meta["node_type"], meta["chunk_grid"]["name"]) == (
        3,
        "array",
        "regular",
    )
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        known = known and len(codecs) == 1
        chunk, codecs = tuple(inner["chunk_shape"]), inner["codecs"]
        names = [codec["name"] for codec in inner["index_codecs"]]
        known = known and names in (["bytes"], ["bytes", "crc32c"])
        index = (16 * (shard[0] // chunk[0]), 4 * (len(names) - 1))
        at_end = inner.get("index_location", "end") == "end"
    known = known and shape[1:] == shard[1:] == chunk[1:] and not meta.get("storage_transformers")
    known = known and meta["chunk_key_encoding"]["name"] == "default" and len(shape) > 0
    codec = _codec(codecs)
    if not known or codec is None or 0 in shape:
        return None
    return Stored(
        path=path,
        shape=shape,
        dtype=np.dtype(meta["data_type"]),
        chunk=chunk[0],
        shard=shard[0],
        codec=codec,
        separator=meta["chunk_key_encoding"].get("configuration", {}).get("separator", "/"),
        index=index,
        at_end=at_end,
        fill=_fill(meta["fill_value"]),
    )


def _codec(codecs: list[Any]) -> Literal["none", "zstd", "blosc"] | None:
    """Return what packs a chunk; None for a chain of codecs that isn't known."""
    order = codecs[0].get("configuration", {}).get("endian", "little")
    names = [codec["name"] for codec in codecs]
    if names[0] != "bytes" or order != "little" or len(names) > 2 or not {*names[1:]} <= _PACKED:
        return None
    return names[1] if len(names) == 2 else "none"


def _fill(value: Any) -> Any:
    """Return a fill value: a number, NaN or an infinity by name, a pair of them if complex."""
    if isinstance(value, list):
        real, imaginary = map(_fill, value)
        return complex(real, imaginary)
    return float(value.replace("Infinity", "inf")) if isinstance(value, str) else value
