"""The data that the benchmarks of loading and storing are run on: simulated, made once, kept.

Each kind is one NumPy file and, for loading, one store written by `materialize`, in a folder that
may be removed at any time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data import provenance
from scibench_data.settings import load_settings
from scibench_data.storing import shard
from scibench_data.storing.store import Layout, Store, materialize

Values = npt.NDArray[Any]
PIXELS = (128, 128)


def particles(start: int, rows: int) -> Values:
    """Return particles that are nearly all noise; the first pixel of each is its number."""
    rng = np.random.default_rng([0, start])
    values = rng.standard_normal((rows, *PIXELS), dtype=np.float32)
    values[:, 0, 0] = np.arange(start, start + rows)
    return values


def smooth(start: int, rows: int) -> Values:
    """Return images of a few slow waves with four counts of noise, as a detector counts them."""
    rng = np.random.default_rng([1, start])
    angle = np.linspace(0, np.pi, PIXELS[0], dtype=np.float32)
    waves = np.array([np.cos(k * angle) for k in range(4)])
    basis = (waves[:, None, :, None] * waves[None, :, None, :]).reshape(16, -1)
    weights = rng.standard_normal((rows, 16), dtype=np.float32) * 500
    counts = np.clip(weights @ basis + 20_000, 0, 60_000).astype(np.uint16)
    counts += rng.integers(0, 4, counts.shape, np.uint8)
    return counts.reshape(rows, *PIXELS)


def int8(start: int, rows: int) -> Values:
    """Return particles as microscopes write them: noise in steps of a twenty-fifth of it."""
    noise = np.random.default_rng([2, start]).standard_normal((rows, *PIXELS), dtype=np.float32)
    return np.clip(noise * 25, -128, 127).astype(np.int8)


def series(start: int, rows: int) -> Values:
    """Return fortnights of a slow random walk at 500 places."""
    steps = np.random.default_rng([3, start]).standard_normal((rows, 500), dtype=np.float32)
    return np.cumsum(steps, axis=0, dtype=np.float32)


class Rows:
    """A NumPy file that is read, and not mapped: the pages of a map would count as our memory."""

    def __init__(self, mapped: Any) -> None:
        self.path, self.begin = mapped.filename, mapped.offset
        self.shape, self.dtype, self.ndim = mapped.shape, mapped.dtype, mapped.ndim
        self.row_bytes = mapped[0].nbytes

    def __getitem__(self, places: tuple[slice, ...]) -> Values:
        first, end, _ = places[0].indices(self.shape[0])
        count = (end - first) * self.row_bytes // self.dtype.itemsize
        begin = self.begin + first * self.row_bytes
        values = np.fromfile(self.path, self.dtype, count, offset=begin)
        return values.reshape(-1, *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Data:
    """One kind of data, of so many rows, in a folder."""

    kind: Callable[[int, int], Values]
    rows: int
    folder: Path

    @property
    def path(self) -> Path:
        """The NumPy file."""
        return self.folder / f"{self.kind.__name__}-{self.rows}.npy"

    def open(self) -> Any:
        """Map the NumPy file; make it first where it isn't there."""
        if not self.path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".partial")
            example = self.kind(0, 1)
            shape = (self.rows, *example.shape[1:])
            values = np.lib.format.open_memmap(beside, "w+", example.dtype, shape)
            for start in range(0, self.rows, 2048):
                values[start : start + 2048] = self.kind(start, min(2048, self.rows - start))
            values.flush()
            beside.rename(self.path)
        return np.load(self.path, mmap_mode="r")

    def dataset(self) -> xr.Dataset:
        """Return the NumPy file as a reader would give it."""
        import dask.array as da

        file = Rows(self.open())
        rows = max(1, (8 << 20) // file.row_bytes)
        blocks = da.from_array(
            file, chunks=(rows, *file.shape[1:]), asarray=False, inline_array=True
        )
        names = ("sample", *(f"axis{axis}" for axis in range(1, file.ndim)))
        return xr.Dataset({"x": (names, blocks)})

    def store(self, home: Path | None = None, layout: Layout | None = None) -> Store:
        """Return the store; write it first where it isn't there, or the way to write changed."""
        chosen = layout or Layout()
        identity = {
            "kind": self.kind.__name__,
            "rows": self.rows,
            "layout": chosen.to_json(),
            "writer": provenance.digest_sources([Path(shard.__file__)]),
        }
        home = home or self.folder
        return materialize(self.dataset, home, "bench", identity, layout=chosen)


def default_folder() -> Path:
    """Return where data are kept unless told otherwise."""
    return load_settings().home / "benchmarks"


def chunks_of(store: Store) -> Iterator[tuple[Path, int, int]]:
    """Yield file, offset and length of every stored chunk of ``x``, by Zarr's own index."""
    import zarr

    array = zarr.open_array(store.path / "x", mode="r")
    sharded = array.shards is not None
    for file in sorted((store.path / "x").glob("c*")):
        if not sharded:
            yield file, 0, file.stat().st_size
            continue
        count = array.shards[0] // array.chunks[0]
        index = np.fromfile(
            file, "<u8", offset=file.stat().st_size - 16 * count - 4, count=2 * count
        )
        for offset, length in index.reshape(-1, 2).tolist():
            if offset != 2**64 - 1:
                yield file, offset, length


def codecs_of(store: Store) -> list[Any]:
    """Return the codecs of ``x`` as numcodecs has them, in the order of encoding."""
    import zarr
    from numcodecs import get_codec

    array = zarr.open_array(store.path / "x", mode="r")
    codecs = []
    for told in (codec.to_dict() for codec in (*array.filters, *array.compressors)):
        settings = dict(told.get("configuration", {}))
        if told["name"] == "blosc":
            settings.pop("typesize")  # numcodecs takes it from the array
            settings["shuffle"] = ["noshuffle", "shuffle", "bitshuffle"].index(settings["shuffle"])
        codecs.append(get_codec({"id": told["name"].removeprefix("numcodecs."), **settings}))
    return codecs
