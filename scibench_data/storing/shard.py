"""How one array lies in files: rows in a chunk and in a shard, codec, and the bytes of a shard.

Zarr v3 (core specification 3.1, ``sharding_indexed`` 1.0 with its index at the end, ``zstd`` and
``blosc`` 1.0). Arrays are cut
along their first axis only, so a sample is one run of bytes. zarr-python writes the metadata; the
shards are put together here, because their bytes are hashed and flushed while they are at hand:
that takes two thirds of the processor time of writing by zarr-python and reading back. A test
holds the two to the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from scibench_data.durable import begin_flush, disk_errors
from scibench_data.errors import ScibenchError, UsageError
from scibench_data.storing import digest

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

Codec = Literal["none", "lz4", "zstd"]

_NO_CHUNK = 2**64 - 1  # offset and length of a chunk that a shard doesn't have
_ZSTD_LEVEL = 1  # level 3 saves hardly more on measured data and packs at half the speed
_LZ4_LEVEL = 5  # lower levels save less and are no faster
_UNPACK = {"none": 0.0, "lz4": 0.4, "zstd": 1.5}  # seconds of a core for a GB of values, measured
_READ = 2.0  # seconds that a shared file system takes for a GB, about
_SHARD_BYTES = (8 << 20, 64 << 20)  # of a file where nobody says: for small arrays, at most [B]
_FILES = 16  # of an array, before they get larger: each is read slowly at its beginning [1]
_PIECE_BYTES = 8 << 20  # of a file's values that are at hand at once, where chunks are smaller [B]
_CALL_BYTES = 4 << 20  # written at once: large pages in the page cache, which map sooner [B]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED = {"add_offset", "coordinates", "dtype", "missing_value", "scale_factor"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a store is asked to be laid out.

    Attributes
    ----------
    chunk_bytes
        Most that is unpacked at once, before packing. [B]
    shard_bytes
        Most that a file holds, before packing; rows are never cut. 0 means 8 MiB, and up to 64 MiB
        for an array that would have more than 16 files. [B]
    codec
        ``"lz4"`` is Blosc's, with the bytes of numbers shuffled: quick, for what is smooth.
        ``"auto"`` packs two chunks of each array in every way and takes the one that would be read
        the soonest from a disk of 500 MB/s: noise stays as it is.
    """

    chunk_bytes: int = 512 << 10
    shard_bytes: int = 0
    codec: Literal["auto", "none", "lz4", "zstd"] = "auto"

    def __post_init__(self) -> None:
        if self.chunk_bytes < 1 or self.shard_bytes < 0:
            message = "layout: a chunk must be above zero and a shard not below; correct them"
            raise UsageError(message)
        if self.codec not in {"auto", *_UNPACK}:
            message = f"layout: no codec {self.codec!r}; known: auto, none, lz4, zstd"
            raise UsageError(message)

    def to_json(self) -> dict[str, Any]:
        """Return the fields; ``Layout(**fields)`` is the way back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How one array is cut: its rows are the places of its first axis.

    Attributes
    ----------
    chunk, shard
        Rows in a chunk and in a file; equal where a file holds one chunk, unsharded. [1]
    block
        Rows in a block of the logical digest. [1]
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int
    block: int
    codec: Codec

    @property
    def rows(self) -> int:
        """Places along the first axis; a scalar is one row. [1]"""
        return self.shape[0] if self.shape else 1

    @property
    def files(self) -> int:
        """Files of the array. [1]"""
        return -(-self.rows // self.shard)

    @property
    def piece(self) -> int:
        """Rows that a file is written by: whole chunks, and whole blocks of the digest. [1]"""
        fitting = digest.rows_within(_PIECE_BYTES, self.shape, self.dtype)
        return min(max(fitting, self.chunk, self.block), self.shard)

    def box(self, rows: int) -> tuple[int, ...]:
        """Return the shape of `rows` rows."""
        return (rows, *self.shape[1:]) if self.shape else ()

    def extent(self, index: int) -> tuple[int, ...]:
        """Return the shape of what file `index` holds."""
        return self.box(min(self.shard, self.rows - index * self.shard))

    def size(self, index: int) -> int:
        """Return the size of what file `index` holds, before packing. [B]"""
        return math.prod(self.extent(index)) * np.dtype(self.dtype).itemsize

    def key(self, index: int) -> str:
        """Return the name of file `index`; flat, since every folder would have to be flushed."""
        places = [index, *(0 for _ in self.shape[1:])] if self.shape else []
        return ".".join(["c", *map(str, places)])


def pack(chunk: npt.NDArray[np.uint8], codec: Codec, itemsize: int) -> Any:
    """Return a chunk's bytes as its codec stores them; `itemsize` is that of its values. [B]"""
    if codec == "none":
        return chunk
    from numcodecs import Blosc, Zstd  # type: ignore[import-untyped]

    if codec == "zstd":
        return Zstd(level=_ZSTD_LEVEL, checksum=True).encode(chunk)
    values = np.ascontiguousarray(chunk).reshape(-1).view(f"V{itemsize}")
    return Blosc("lz4", _LZ4_LEVEL, Blosc.SHUFFLE).encode(values)


def _codec(variable: xr.Variable, chunk: int) -> Codec:
    """Return the codec by which an array would be read the soonest, from two of its chunks."""
    middle = len(variable) // 2 // chunk * chunk if variable.ndim else 0
    parts = [
        variable[start : start + chunk] if variable.ndim else variable for start in (0, middle)
    ]
    rows = [digest.byte_rows(np.asarray(part.data)) for part in parts]
    whole = sum(part.nbytes for part in rows)

    def seconds(codec: Codec) -> float:
        packed = sum(memoryview(pack(part, codec, variable.dtype.itemsize)).nbytes for part in rows)
        return _READ * packed / whole + _UNPACK[codec]

    kinds: tuple[Codec, ...] = ("none", "lz4", "zstd")
    return min(kinds, key=seconds)


def _refuse(name: str, variable: xr.Variable) -> None:
    """Raise a ScibenchError for an array that would not come back as it went in."""
    problem = ""
    reserved = [key for key in map(str, variable.attrs) if key in _RESERVED or key.startswith("_")]
    if variable.dtype.kind not in "biufc" or 0 in variable.shape:
        problem = f"expected numbers, got {variable.dtype} of shape {variable.shape}"
    elif not _NAME.fullmatch(name):
        problem = "expected a name of letters, digits and _"
    elif reserved:
        problem = f"the attributes {reserved} make readers change values or roles"
    if problem:
        message = f"array {name!r}: {problem}; correct the reader"
        raise ScibenchError(message)


def plan_grid(name: str, variable: xr.Variable, layout: Layout) -> Grid:
    """Choose rows and codec for an array; reads its first chunk where the codec is "auto".

    Raises
    ------
    ScibenchError
        The array has no elements, a dtype other than booleans and numbers, a name that is not fit
        for a folder, or an attribute by which xarray would decode it to something else.
    """
    _refuse(name, variable)
    shape, dtype = variable.shape, variable.dtype
    rows = shape[0] if shape else 1
    chunk = min(digest.rows_within(layout.chunk_bytes, shape, dtype), rows)
    block = digest.rows_within(digest.BLOCK_BYTES, shape, dtype)
    shard = max(digest.rows_within(_shard_bytes(variable, layout), shape, dtype), block, chunk)
    codec = _codec(variable, chunk) if layout.codec == "auto" else layout.codec
    return Grid(
        shape=shape,
        dtype=digest.little_endian(dtype),
        chunk=chunk,
        shard=min(shard, -(-rows // chunk) * chunk),
        block=block,
        codec=codec,
    )


def _shard_bytes(variable: xr.Variable, layout: Layout) -> int:
    small, large = _SHARD_BYTES
    while small < large and variable.nbytes > _FILES * small:
        small *= 2
    return layout.shard_bytes or small


def _compressors(codec: Codec, itemsize: int) -> list[Any] | None:
    """Return what zarr-python calls a codec."""
    from zarr.codecs import BloscCodec, ZstdCodec

    if codec == "zstd":
        return [ZstdCodec(level=_ZSTD_LEVEL, checksum=True)]
    if codec == "lz4":
        return [BloscCodec(typesize=itemsize, cname="lz4", clevel=_LZ4_LEVEL, shuffle="shuffle")]
    return None


def codec_name(compressors: Sequence[Any]) -> str:
    """Return the codec that zarr-python's compressors are; the manifest has nothing else."""
    names = {"ZstdCodec": "zstd", "BloscCodec": "lz4"}
    return names[type(compressors[0]).__name__] if compressors else "none"


def write_metadata(path: Path, dataset: xr.Dataset, grids: Mapping[str, Grid]) -> None:
    """Write every ``zarr.json`` of a new group; no values.

    The consolidated metadata that zarr-python reads is put into the group's, so that a plain
    ``xarray.open_zarr(path)`` has nothing to warn of.
    """
    import zarr
    from xarray.conventions import encode_dataset_coordinates

    variables, attributes = encode_dataset_coordinates(dataset)
    group = zarr.create_group(path, zarr_format=3, attributes=digest.plain(attributes))
    inside = {}
    for name, grid in grids.items():
        group.create_array(
            name,
            shape=grid.shape,
            dtype=grid.dtype,
            chunks=grid.box(grid.chunk),
            shards=grid.box(grid.shard) if grid.shard > grid.chunk else None,
            filters=None,
            compressors=_compressors(grid.codec, np.dtype(grid.dtype).itemsize),
            fill_value=0,
            attributes=digest.plain(variables[name].attrs),
            dimension_names=[str(dim) for dim in variables[name].dims],
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        inside[name] = json.loads((path / name / "zarr.json").read_bytes())
    root = json.loads((path / "zarr.json").read_bytes())
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": inside}
    (path / "zarr.json").write_text(json.dumps(root, indent=2), encoding="utf-8")


def _chunks(rows: npt.NDArray[np.uint8], grid: Grid) -> Iterator[tuple[int, Any]]:
    """Pack chunks, of which the last is filled up; give how many come together, and their bytes."""
    size = grid.chunk * rows.shape[1]
    step = grid.chunk
    if grid.codec == "none":  # chunks as they are can be written together
        step *= max(_CALL_BYTES // max(size, 1), 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if missing := -len(part) % grid.chunk:  # Zarr stores whole chunks
            part = np.concatenate([part, np.zeros((missing, rows.shape[1]), "u1")])
        yield len(part) // grid.chunk, pack(part, grid.codec, np.dtype(grid.dtype).itemsize)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that is whole, and what was hashed on its way.

    Attributes
    ----------
    leaves
        The leaves of the logical digest of what it holds, hex.
    """

    path: str
    size: int
    sha256: str
    leaves: str


@dataclass(frozen=True, kw_only=True)
class Unflushed:
    """A file that is written, but may not be on the disk, and doesn't have its name yet."""

    file: BinaryIO
    beside: Path
    target: Path
    written: Written

    def flush(self) -> Written:
        """Wait until it is on the disk and give it its name.

        Raises
        ------
        SpaceError
            The disk refuses.
        """
        with disk_errors(self.target):
            with self.file:
                os.fsync(self.file.fileno())
            self.beside.replace(self.target)
        return self.written


class _Shard:
    """One file on its way: what is written to it, hashed, and entered in its table of chunks."""

    def __init__(self, file: BinaryIO, grid: Grid) -> None:
        self.sha256, self.size, self.leaves = hashlib.sha256(), 0, b""
        self._file, self._grid = file, grid
        self._index = np.full((grid.shard // grid.chunk, 2), _NO_CHUNK, "<u8")
        self._place = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Append values: whole chunks and whole blocks of the digest, but for the file's last."""
        rows = digest.byte_rows(values)
        for count, packed in _chunks(rows, self._grid):
            size = memoryview(packed).nbytes // count
            entries = self._index[self._place : self._place + count]
            entries[:, 0] = self.size + size * np.arange(count)
            entries[:, 1] = size
            self._place += count
            self._write(packed)
        self.leaves += digest.leaves(rows, self._grid.block)

    def end(self) -> None:
        """Append the table of chunks, where a file has one, and let the disk begin."""
        import google_crc32c

        if self._grid.shard > self._grid.chunk:
            table = self._index.tobytes()
            self._write(table + google_crc32c.value(table).to_bytes(4, "little"))
        self._file.flush()
        begin_flush(self._file.fileno())

    def _write(self, content: Any) -> None:
        self.sha256.update(content)
        self.size += self._file.write(content)


def _refuse_other_values(
    values: Sequence[npt.NDArray[Any]], path: str, grid: Grid, index: int
) -> None:
    expected = f"{grid.dtype} of shape {grid.extent(index)}"
    rows = sum(len(part) if part.ndim else 1 for part in values)
    for part in values:
        shape = (rows, *part.shape[1:]) if part.ndim else ()
        got = f"{digest.little_endian(part.dtype)} of shape {shape}"
        if got != expected:
            message = f"{path}: expected {expected}, got {got}; correct the reader"
            raise ScibenchError(message)


def write_shard(
    values: Sequence[npt.NDArray[Any]], path: str, grid: Grid, index: int, *, folder: Path
) -> Unflushed:
    """Write file `index` of an array, to be flushed and then named ``folder/path``.

    Parameters
    ----------
    values
        What it holds, in pieces of `Grid.piece` rows: they are not put together first.

    Raises
    ------
    ScibenchError
        The values aren't of the shape and dtype that the reader promised.
    SpaceError
        The disk refuses.
    """
    _refuse_other_values(values, path, grid, index)
    beside = folder / f"{path}.{uuid.uuid4().hex}.partial"
    with disk_errors(folder / path), contextlib.ExitStack() as broken:
        file = broken.enter_context(beside.open("xb"))
        shard = _Shard(file, grid)
        for part in values:
            shard.add(part)
        shard.end()
        broken.pop_all()  # it stays open until it is flushed: an error of the disk is told once
    written = Written(
        path=path, size=shard.size, sha256=shard.sha256.hexdigest(), leaves=shard.leaves.hex()
    )
    return Unflushed(file=file, beside=beside, target=folder / path, written=written)
