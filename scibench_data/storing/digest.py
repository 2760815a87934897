r"""The logical digest: one SHA-256 over what a dataset says, however its files lie on the disk.

Equal on every machine and for every chunking, codec, library version and byte order; it is the one
that is cited. The whole of the format, ``scibench-dataset/1``:

1. ``J(value)`` is canonical JSON: keys sorted, no white space, UTF-8, shortest floats, no NaN
   (:func:`scibench_data.provenance.canonical`).
2. An attribute counts unless it only describes: title, history, institution, source, references and
   comment (CF conventions 1.11, section 2.6.2) and long_name don't.
3. An array of shape (n, ...) is cut along its first axis into blocks of ``b`` rows: the largest
   power of two whose rows fill at most 2**20 bytes, but at least 1. The last block may be shorter;
   a scalar is one row. The leaf of a block is the SHA-256, 32 bytes, of its values in C order,
   little-endian, bit by bit: NaN payloads and the sign of zero count.
4. The digest of an array is the SHA-256 of ``"scibench-array/1\n" J(head) "\n" leaf_0 leaf_1 ..``
   where head has the keys ``name``, ``role`` ("data" or "coordinate"), ``dims``, ``shape``,
   ``dtype`` (NumPy's string, little-endian: "<i2", "|b1"), ``block`` (b) and ``attributes`` (those
   that count).
5. The digest of the dataset is the SHA-256 of ``J({"type": "scibench-dataset/1", "arrays": {name:
   digest in hex}, "attributes": those that count})``.

It proves that values are the same, not that they are right.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from scibench_data import provenance

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

BLOCK_BYTES = 1 << 20
_DESCRIPTIVE = frozenset(
    {"title", "history", "institution", "source", "references", "comment", "long_name"}
)
_BLOCKS_AT_ONCE = 8  # read together: enough to keep a disk busy, few enough to stay small


def plain(value: Any) -> Any:
    """Return an attribute's value as JSON has it: NumPy's scalars and arrays, tuples unpacked.

    Examples
    --------
    >>> plain({"flag_values": np.arange(3), "scale": np.float64(0.5)})
    {'flag_values': [0, 1, 2], 'scale': 0.5}
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _that_count(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    return {k: v for k, v in plain(attributes).items() if k not in _DESCRIPTIVE}


def little_endian(dtype: npt.DTypeLike) -> str:
    """Return NumPy's string of a dtype, little-endian: the same on every machine."""
    return np.dtype(dtype).newbyteorder("<").str


def rows_within(limit: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Return the largest power of two of rows that fill at most `limit` bytes, at least 1.

    Examples
    --------
    >>> rows_within(1 << 20, (5120, 48, 48), "int16")
    128
    """
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
    return int(1 << max(limit // row_bytes, 1).bit_length() - 1)


def byte_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return values as bytes, shape (rows, bytes of a row), in C order, little-endian."""
    ordered = np.ascontiguousarray(values, dtype=little_endian(values.dtype))
    return ordered.reshape(len(values) if values.ndim else 1, -1).view(np.uint8)


def leaves(rows: npt.NDArray[np.uint8], block: int) -> bytes:
    """Hash blocks of `block` rows; `rows` starts at a block's start."""
    return b"".join(
        hashlib.sha256(rows[start : start + block].data).digest()
        for start in range(0, len(rows), block)
    )


def array_digest(dataset: xr.Dataset, name: str, all_leaves: bytes) -> str:
    """Return the digest of one array of `dataset` from its leaves, lower-case hex."""
    variable = dataset.variables[name]
    head = {
        "name": name,
        "role": "coordinate" if name in dataset.coords else "data",
        "dims": [str(dim) for dim in variable.dims],
        "shape": list(variable.shape),
        "dtype": little_endian(variable.dtype),
        "block": rows_within(BLOCK_BYTES, variable.shape, variable.dtype),
        "attributes": _that_count(variable.attrs),
    }
    content = b"scibench-array/1\n" + provenance.canonical(head) + b"\n" + all_leaves
    return hashlib.sha256(content).hexdigest()


def combine(dataset: xr.Dataset, arrays: Mapping[str, str]) -> str:
    """Return the digest of `dataset` from the digests of its arrays, lower-case hex."""
    return provenance.digest(
        {
            "type": "scibench-dataset/1",
            "arrays": dict(arrays),
            "attributes": _that_count(dataset.attrs),
        }
    )


def _read_leaves(variable: xr.Variable, pool: ThreadPoolExecutor) -> bytes:
    block = rows_within(BLOCK_BYTES, variable.shape, variable.dtype)
    if not variable.dims:
        return leaves(byte_rows(variable.values), block)
    axis, step = variable.dims[0], block * _BLOCKS_AT_ONCE

    def read(start: int) -> bytes:
        part = variable.isel({axis: slice(start, start + step)})
        return leaves(byte_rows(np.asarray(part.data)), block)

    return b"".join(pool.map(read, range(0, len(variable), step)))


def logical_digest(dataset: xr.Dataset, jobs: int = 2) -> str:
    """Read every value of `dataset`, a few blocks at a time, and return its digest.

    Examples
    --------
    >>> import xarray as xr
    >>> logical_digest(xr.Dataset({"a": ("x", [1, 2, 3], {"units": "m"})}))[:16]
    '190f7fea63d92310'
    """
    with ThreadPoolExecutor(jobs) as pool:
        arrays = {
            str(name): array_digest(dataset, str(name), _read_leaves(variable, pool))
            for name, variable in dataset.variables.items()
        }
    return combine(dataset, arrays)
