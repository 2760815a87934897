"""Read any rows of a Zarr array of this disk, with no copy on the way to where they are wanted.

For arrays that are cut along their first axis only, uncompressed or packed with zstd or Blosc, in
files of one chunk or of many: Zarr core specification 3.1, codecs ``bytes``, ``zstd``, ``blosc``
and ``sharding_indexed`` 1.0. Whatever else a store holds is left to zarr-python; a test holds the
two to the same values.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
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
_LONG = 256 << 10  # a system call is the quicker way for longer runs, a mapped page for shorter [B]
_BLOCK_BYTES = 2 << 20  # a block of a Dask graph: small to a processor's cache, large to a task [B]
_PACKED = {"zstd", "blosc"}


class _File:
    """An open file of an array, and where in it each of its chunks lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[tuple[int, int]] = []
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    @functools.cached_property
    def mapped(self) -> npt.NDArray[np.uint8]:
        """The file's bytes, read when they are looked at; all of them are asked for now."""
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        return np.frombuffer(
            mmap.mmap(self.descriptor, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ),
            np.uint8,
        )

    def read(self, offset: int, into: memoryview) -> None:
        """Read as many bytes as `into` has."""
        got = os.preadv(self.descriptor, [into], offset)
        while 0 < got < into.nbytes:  # a call gives 2 GiB at most
            more = os.preadv(self.descriptor, [into[got:]], offset + got)
            got = got + more if more else 0
        if got != into.nbytes:
            message = (
                f"{self.path}: ends before byte {offset + into.nbytes}, damaged since it was "
                "verified; run the same again"
            )
            raise IntegrityError(message)


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
    def fits(self) -> bool:
        """Whether the array can stay in the machine's memory, so that mapping it is worth it."""
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return self.shape[0] * self.row_bytes <= pages // 2

    @functools.cached_property
    def name(self) -> str:
        """Name of the Dask array of this; another when the array is written anew."""
        look = (self.path / "zarr.json").stat()
        what = f"{self.path.absolute()}:{look.st_ino}:{look.st_ctime_ns}:{self.shard}"
        return f"stored-{hashlib.sha256(what.encode()).hexdigest()[:32]}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: another process opens its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def to_dask(self) -> da.Array:
        """Return a Dask array of blocks of about 2 MiB, which are whole chunks."""
        import dask.array as da

        each = max(_BLOCK_BYTES // (self.chunk * self.row_bytes), 1) * self.chunk
        chunks = (min(each, self.shard), *self.shape[1:])
        array: da.Array = da.from_array(
            self, chunks, name=self.name, asarray=False, fancy=False, inline_array=True
        )
        return array

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Return rows ``key[0]``, a slice without a step; the other axes are whole.

        Values may be those of the file itself, which can't be written to.
        """
        start, stop, _ = key[0].indices(self.shape[0])
        if (view := self._view(start, stop)) is not None:
            return view
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if self.codec == "none":
            self.read_rows(np.arange(start, stop), out)
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

    def _view(self, start: int, stop: int) -> npt.NDArray[Any] | None:
        """Return rows as they lie in a mapped file; None where they don't lie there in a row."""
        number, within = divmod(start, self.shard)
        one_file = start < stop <= (number + 1) * self.shard
        file = self._file(number) if one_file and self.codec == "none" and self.fits else None
        if file is None:
            return None
        first, last = within // self.chunk, (stop - 1 - number * self.shard) // self.chunk
        size = self.chunk * self.row_bytes
        offset = file.places[first][0]
        if file.places[first : last + 1] != [
            (offset + place * size, size) for place in range(last + 1 - first)
        ]:
            return None
        begin = offset + within % self.chunk * self.row_bytes
        octets: npt.NDArray[Any] = file.mapped[begin : begin + (stop - start) * self.row_bytes]
        return octets.view(self.dtype).reshape(stop - start, *self.shape[1:])

    def read_rows(self, rows: Indices, out: npt.NDArray[Any]) -> None:
        """Read any rows of an array that isn't packed, in the order asked for.

        Parameters
        ----------
        out
            Where to, C-contiguous, shape (len(rows), ...).
        """
        size = self.row_bytes
        octets = out.reshape(-1).view(np.uint8)
        into, mapped = octets.data, self.fits
        starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (rows % self.chunk == 0))
        ends = [*starts[1:].tolist(), len(rows)]
        files, within = np.divmod(rows[starts], self.shard)
        chunks, first = np.divmod(within, self.chunk)
        runs = zip(
            starts.tolist(), ends, files.tolist(), chunks.tolist(), first.tolist(), strict=True
        )
        for start, end, number, chunk, row in runs:
            file = self._file(number)
            place = file.places[chunk] if file else None
            if not file or not place or place[0] == _ABSENT:
                out[start:end] = self.fill
                continue
            offset, length = place[0] + row * size, (end - start) * size
            if mapped and length < _LONG and offset + length <= len(file.mapped):
                octets[start * size : end * size] = file.mapped[offset : offset + length]
            else:
                file.read(offset, into[start * size : end * size])

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
        packed = bytearray(size)
        file.read(offset, memoryview(packed))
        try:
            _unpack(self.codec, packed, out)
        except (RuntimeError, ValueError) as error:
            message = (
                f"{file.path}: chunk {within} can't be unpacked ({error}), damaged since it was "
                "verified; run the same again"
            )
            raise IntegrityError(message) from error

    @functools.cached_property
    def _file(self) -> Any:
        """Return a file by its number, None where all of it is fill value; a few stay open."""
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
        file.read(max(size - len(read), 0) if self.at_end else 0, memoryview(read))
        _check_index(path, bytes(read[:table]), bytes(read[table:]))
        file.places.extend(map(tuple, np.frombuffer(read[:table], "<u8").reshape(-1, 2).tolist()))
        return file


def _check_index(path: Path, table: bytes, checksum: bytes) -> None:
    import google_crc32c

    if checksum and google_crc32c.value(table).to_bytes(4, "little") != checksum:
        message = f"{path}: its table of chunks is damaged; run the same again"
        raise IntegrityError(message)


def _unpack(codec: str, packed: bytearray, out: npt.NDArray[Any]) -> None:
    from numcodecs import blosc, zstd  # type: ignore[import-untyped]

    {"zstd": zstd.decompress, "blosc": blosc.decompress}[codec](packed, out)


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
