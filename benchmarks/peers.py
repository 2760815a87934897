"""The loaders that people use today, each with its own format, called as its documentation advises.

All give shuffled batches of 64 particles, as far as their kind of shuffling goes; where the
documentation advises worker processes there is a case without and one with two. Formats are written
once and kept.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from limits import BATCH, Epoch
from making import PIXELS, Values

ROWS = 1024
"""Samples in a file of the formats that cut data into files: 64 MiB, as most of them advise."""
Loader = Callable[[Path], Epoch]
"""Opens a format, in the process that is measured."""


def blocks(values: Values) -> Iterator[Values]:
    """Yield the samples, so many at a time as a file takes."""
    for start in range(0, len(values), ROWS):
        yield np.ascontiguousarray(values[start : start + ROWS])


def samples(path: Path) -> Iterator[dict[str, Values]]:
    """Yield one sample after the other as a flat list and as an image."""
    for block in blocks(np.load(path, mmap_mode="r")):
        for row in block:
            yield {"x": row}


def flat_samples(path: Path) -> Iterator[dict[str, Values]]:
    """Yield the samples as flat lists."""
    for sample in samples(path):
        yield {"x": sample["x"].ravel()}


def write_npy(source: Path, folder: Path) -> None:
    """Keep the NumPy file as it is."""
    folder.mkdir()
    (folder / "x.npy").hardlink_to(source)


def write_hdf5(source: Path, folder: Path) -> None:
    """Write one contiguous HDF5 dataset, h5py's default."""
    import h5py

    folder.mkdir()
    values = np.load(source, mmap_mode="r")
    with h5py.File(folder / "x.h5", "w") as file:
        stored = file.create_dataset("x", values.shape, values.dtype)
        for number, block in enumerate(blocks(values)):
            stored[number * ROWS : number * ROWS + len(block)] = block


def write_zarr(source: Path, folder: Path, *, rows: int) -> None:
    """Write an uncompressed Zarr v3 array with `rows` samples in a chunk, 1,024 in a shard."""
    import zarr

    values = np.load(source, mmap_mode="r")
    stored = zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(rows, *PIXELS),
        shards=(ROWS, *PIXELS),
        compressors=None,
    )
    for number, block in enumerate(blocks(values)):
        stored[number * ROWS : number * ROWS + len(block)] = block


def write_hf(source: Path, folder: Path, *, flat: bool) -> None:
    """Write a Hugging Face dataset of fixed-size lists or of ``Array2D``."""
    import datasets

    datasets.disable_progress_bars()
    number = datasets.Value("float32")
    pixels = PIXELS[0] * PIXELS[1]
    kind = datasets.List(number, length=pixels) if flat else datasets.Array2D(PIXELS, "float32")
    scratch = folder.with_suffix(".cache")
    made = datasets.Dataset.from_generator(
        flat_samples if flat else samples,
        gen_kwargs={"path": source},
        features=datasets.Features({"x": kind}),
        cache_dir=str(scratch),
        writer_batch_size=256,
    )
    made.save_to_disk(folder)
    del made
    shutil.rmtree(scratch)


def write_webdataset(source: Path, folder: Path) -> None:
    """Write tar files of ``.npy`` members."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=ROWS, verbose=0) as writer:
        for number, sample in enumerate(samples(source)):
            writer.write({"__key__": f"{number:08d}", "x.npy": sample["x"]})


def write_mosaic(source: Path, folder: Path) -> None:
    """Write MosaicML shards of the default 64 MiB."""
    streaming = import_streaming()

    columns = {"x": f"ndarray:float32:{PIXELS[0]},{PIXELS[1]}"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples(source):
            writer.write(sample)


def read_row(number: int, source: Path) -> Any:
    """Return one sample as a tensor; litdata calls this in processes of its own."""
    import torch

    return torch.from_numpy(np.load(source, mmap_mode="r")[number].copy())


def write_litdata(source: Path, folder: Path) -> None:
    """Write litdata chunks of 64 MB."""
    import litdata

    litdata.optimize(
        fn=partial(read_row, source=source),
        inputs=list(range(len(np.load(source, mmap_mode="r")))),
        output_dir=str(folder),
        num_workers=1,
        chunk_bytes="64MB",
        verbose=False,
    )


def import_streaming() -> Any:
    """Import MosaicML streaming without the image datasets, for which it needs torchvision."""
    import sys
    from types import ModuleType

    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    import streaming

    return streaming


def repeated(loader: Any, pick: Callable[[Any], Any] = lambda batch: batch) -> Epoch:
    """Return the epochs of a loader that is iterated anew for each."""

    def epoch(number: int) -> Iterator[Any]:  # noqa: ARG001  (such loaders count by themselves)
        for batch in loader:
            yield pick(batch).reshape(-1, *PIXELS)

    return epoch


def data_loader(rows: Any, workers: int, **more: Any) -> Any:
    """Return a shuffling DataLoader whose workers stay from one epoch to the next."""
    from torch.utils.data import DataLoader

    settings = {"batch_size": BATCH, "shuffle": True, **more}
    return DataLoader(rows, num_workers=workers, persistent_workers=workers > 0, **settings)


class Rows:
    """A map-style dataset over anything that is indexed by row, opened where it is first read."""

    def __init__(self, path: Path, open_rows: Callable[[Path], Any]) -> None:
        self.path, self.open_rows = path, open_rows
        self.length = open_rows(path).shape[0]
        self.rows: Any = None

    def __len__(self) -> int:
        return self.length

    def _opened(self) -> Any:
        if self.rows is None:
            self.rows = self.open_rows(self.path)
        return self.rows

    def __getitem__(self, number: int) -> Any:
        import torch

        return torch.from_numpy(np.array(self._opened()[number]))


class Batches(Rows):
    """The same, which takes the rows of a batch at once."""

    def __getitems__(self, numbers: list[int]) -> Any:
        import torch

        return torch.from_numpy(self._opened()[np.asarray(numbers)])


class SortedBatches(Rows):
    """The same for libraries that want the rows in increasing order."""

    def __getitems__(self, numbers: list[int]) -> Any:
        import torch

        return torch.from_numpy(self._opened()[np.sort(numbers)])


def open_npy(folder: Path) -> Any:
    """Map the NumPy file."""
    return np.load(folder / "x.npy", mmap_mode="r")


def open_hdf5(folder: Path) -> Any:
    """Open the HDF5 dataset."""
    import h5py

    return h5py.File(folder / "x.h5", "r")["x"]


def open_zarr(folder: Path) -> Any:
    """Open the Zarr array."""
    import zarr

    return zarr.open_array(folder, mode="r")


def as_is(batch: Any) -> Any:
    """Collate a batch that is one already."""
    return batch


def map_style(
    folder: Path, *, open_rows: Callable[[Path], Any], workers: int = 0, kind: type[Rows] = Rows
) -> Epoch:
    """Load through torch's DataLoader."""
    more = {} if kind is Rows else {"collate_fn": as_is}
    return repeated(data_loader(kind(folder, open_rows), workers, **more))


def dask_rows(folder: Path) -> Epoch:
    """Index a Dask array with the rows of each batch."""
    import dask.array as da
    import torch

    stored = da.from_zarr(folder)

    def epoch(number: int) -> Iterator[Any]:
        order = np.random.default_rng(number).permutation(len(stored))
        for start in range(0, len(order), BATCH):
            yield torch.from_numpy(stored[np.sort(order[start : start + BATCH])].compute())

    return epoch


def hf_iter(folder: Path, *, form: str) -> Epoch:
    """Shuffle a Hugging Face dataset and iterate over its batches."""
    import datasets
    import torch

    stored = datasets.load_from_disk(folder)

    def epoch(number: int) -> Iterator[Any]:
        shuffled = stored.shuffle(seed=number, keep_in_memory=True).with_format(form)
        for batch in shuffled.iter(batch_size=BATCH):
            yield torch.as_tensor(batch["x"]).reshape(-1, *PIXELS)

    return epoch


def hf_loader(folder: Path, *, workers: int) -> Epoch:
    """Load a Hugging Face dataset in torch format through a DataLoader."""
    import datasets

    stored = datasets.load_from_disk(folder).with_format("torch")
    return repeated(data_loader(stored, workers), lambda batch: batch["x"])


def webdataset_loader(folder: Path, *, workers: int) -> Epoch:
    """Shuffle tar files and then 1,000 samples, and batch inside the pipeline."""
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    pipeline = (
        webdataset.WebDataset(files, shardshuffle=len(files), seed=0, empty_check=False)
        .shuffle(1000)
        .decode()
        .to_tuple("x.npy")
        .batched(BATCH)
    )
    loader = webdataset.WebLoader(
        pipeline, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )

    import torch

    return repeated(loader, lambda batch: torch.as_tensor(batch[0]))


def mosaic_loader(folder: Path, *, workers: int) -> Epoch:
    """Load MosaicML shards in the library's own shuffle."""
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    stored = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = streaming.StreamingDataLoader(
        stored, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return repeated(loader, lambda batch: batch["x"])


def litdata_loader(folder: Path, *, workers: int) -> Epoch:
    """Load litdata chunks in the library's own shuffle."""
    import litdata

    stored = litdata.StreamingDataset(str(folder), shuffle=True)
    loader = litdata.StreamingDataLoader(
        stored, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return repeated(loader)


def xbatcher_loader(folder: Path, *, workers: int) -> Epoch:
    """Give batches of neighbours in random order: one sample at a time is 30 times slower."""
    import dask.array as da
    import xarray as xr
    import xbatcher
    from xbatcher.loaders.torch import MapDataset

    array = xr.DataArray(da.from_zarr(folder), dims=("sample", "y", "x"))
    sizes = {"sample": BATCH, "y": PIXELS[0], "x": PIXELS[1]}
    generator = xbatcher.BatchGenerator(array, input_dims=sizes, preload_batch=False)
    return repeated(data_loader(MapDataset(generator), workers, batch_size=None))


def tensorstore_rows(folder: Path) -> Epoch:
    """Read the rows of each batch by one indexed read, four batches ahead."""
    from collections import deque

    import tensorstore
    import torch

    stored = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    ).result()

    def epoch(number: int) -> Iterator[Any]:
        order = np.random.default_rng(number).permutation(stored.shape[0])
        ahead: deque[Any] = deque()
        for start in range(0, len(order), BATCH):
            ahead.append(stored[order[start : start + BATCH]].read())
            if len(ahead) > 4:
                yield torch.from_numpy(ahead.popleft().result())
        for read in ahead:
            yield torch.from_numpy(read.result())

    return epoch


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a peer reads.

    Attributes
    ----------
    needs
        The module without which it is left out.
    loaders
        Name of each case -> how it loads.
    """

    name: str
    needs: str
    write: Callable[[Path, Path], None]
    loaders: dict[str, Loader]

    def folder(self, source: Path) -> Path:
        """Return where the format of `source` lies; write it first where it isn't there."""
        folder = source.with_name(f"{source.stem}-{self.name}")
        if not folder.exists():
            beside = folder.with_name(f"{folder.name}-partial")
            shutil.rmtree(beside, ignore_errors=True)
            self.write(source, beside)
            beside.rename(folder)
        return folder


def with_workers(name: str, loader: Callable[..., Epoch], **settings: Any) -> dict[str, Loader]:
    """Return the case without workers and the case with two."""
    return {
        f"{name}, {workers or 'no'} workers": partial(loader, workers=workers, **settings)
        for workers in (0, 2)
    }


FORMATS = (
    Format(
        name="npy",
        needs="numpy",
        write=write_npy,
        loaders={
            **with_workers("memmap, DataLoader", map_style, open_rows=open_npy),
            "memmap, DataLoader, __getitems__": partial(
                map_style, open_rows=open_npy, kind=Batches
            ),
        },
    ),
    Format(
        name="hdf5",
        needs="h5py",
        write=write_hdf5,
        loaders={
            **with_workers("h5py, DataLoader", map_style, open_rows=open_hdf5),
            "h5py, DataLoader, __getitems__": partial(
                map_style, open_rows=open_hdf5, kind=SortedBatches
            ),
        },
    ),
    Format(
        name="hf-list",
        needs="datasets",
        write=partial(write_hf, flat=True),
        loaders={
            "HF datasets, list, numpy .iter": partial(hf_iter, form="numpy"),
            "HF datasets, list, torch .iter": partial(hf_iter, form="torch"),
            **with_workers("HF datasets, list, DataLoader", hf_loader),
        },
    ),
    Format(
        name="hf-array2d",
        needs="datasets",
        write=partial(write_hf, flat=False),
        loaders={
            "HF datasets, Array2D, torch .iter": partial(hf_iter, form="torch"),
            **with_workers("HF datasets, Array2D, DataLoader", hf_loader),
        },
    ),
    Format(
        name="webdataset",
        needs="webdataset",
        write=write_webdataset,
        loaders=with_workers("WebDataset", webdataset_loader),
    ),
    Format(
        name="mosaic",
        needs="streaming",
        write=write_mosaic,
        loaders=with_workers("MosaicML streaming", mosaic_loader),
    ),
    Format(
        name="litdata",
        needs="litdata",
        write=write_litdata,
        loaders=with_workers("litdata", litdata_loader),
    ),
    Format(
        name="zarr-1",
        needs="zarr",
        write=partial(write_zarr, rows=1),
        loaders={
            **with_workers("zarr-python, DataLoader", map_style, open_rows=open_zarr),
            "Dask, rows of a batch": dask_rows,
        },
    ),
    Format(
        name="zarr-1",
        needs="tensorstore",
        write=partial(write_zarr, rows=1),
        loaders={"tensorstore, rows of a batch": tensorstore_rows},
    ),
    Format(
        name="zarr-64",
        needs="xbatcher",
        write=partial(write_zarr, rows=BATCH),
        loaders=with_workers("xbatcher, 64 neighbours", xbatcher_loader),
    ),
)


def installed() -> Iterator[Format]:
    """Yield the formats whose library is here; name those that are not."""
    for form in FORMATS:
        if find_spec(form.needs):
            yield form
        else:
            print(f"{', '.join(form.loaders)}: left out, for {form.needs} is not installed")
