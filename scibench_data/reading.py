"""Fill windows of samples from arrays in memory, on this disk, or behind a Dask graph.

A reader knows how to get rows of some arrays. It hands out jobs, each of which writes rows to their
final places, so that a batch is a slice of what was read; jobs may run in any order and at the same
time, so nothing depends on the timing of threads.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from scibench_data.sampling import Indices, Plan
from scibench_data.stored import Stored

if TYPE_CHECKING:
    import dask.array as da
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]
Job = Callable[[], None]
_LARGE_ROW = 4096  # copying rows one by one costs less than a copy of them all from here on [B]


class Reader(Protocol):
    """Gets rows of some arrays."""

    @property
    def names(self) -> Sequence[str]:
        """The arrays' names."""

    @property
    def block(self) -> int:
        """Rows that can only be read together; 1 where each can be read alone. [1]"""

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give the work of reading `rows` of each array into ``out[name]``, in this order."""


@dataclass(frozen=True)
class Resident:
    """Arrays that are small enough to be held in memory."""

    arrays: Arrays
    block: int = 1

    @property
    def names(self) -> Sequence[str]:
        """The arrays' names."""
        return list(self.arrays)

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give one job: a gather of rows that are at hand."""

        def gather() -> None:
            for name, values in self.arrays.items():
                # every row is one of the array's; "clip" writes to `out` without a buffer between
                np.take(values, rows, axis=0, out=out[name], mode="clip")

        yield gather


@dataclass(frozen=True)
class Rows:
    """An array of which any row can be read by itself."""

    name: str
    stored: Stored
    block: int = 1

    @property
    def names(self) -> Sequence[str]:
        """The array's name."""
        return [self.name]

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give one job, which reads straight into place."""
        yield partial(self.stored.read_rows, rows, out[self.name])


class Chunks:
    """An array whose chunks have to be unpacked."""

    def __init__(self, name: str, stored: Stored) -> None:
        self.names = [name]
        self.block = stored.chunk
        self._stored = stored
        self._scratch = threading.local()

    def __getstate__(self) -> tuple[str, Stored]:
        return self.names[0], self._stored

    def __setstate__(self, state: tuple[str, Stored]) -> None:
        Chunks.__init__(self, *state)

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for each chunk: unpacked where it stays in the processor's cache."""
        values = out[self.names[0]]
        for number, places in _grouped(rows, self.block):
            yield partial(self._read, number, places, rows, values)

    def _read(self, number: int, places: Indices, rows: Indices, out: npt.NDArray[Any]) -> None:
        scratch = getattr(self._scratch, "values", None)
        if scratch is None:
            shape = (self.block, *self._stored.shape[1:])
            scratch = self._scratch.values = np.empty(shape, self._stored.dtype)
        self._stored.read_chunk(number, scratch)
        scatter(scratch, rows[places] - number * self.block, out, places)


class Blocks:
    """Arrays that a Dask graph makes, of equal blocks along their first axis."""

    def __init__(self, arrays: Mapping[str, da.Array]) -> None:
        from dask.base import optimize

        self.names = list(arrays)
        self.block = max(array.chunks[0][0] for array in arrays.values())
        even = [_even(array, self.block) for array in arrays.values()]
        made = optimize(*even)
        self._keys = [(array.name, *(0 for _ in array.shape[1:])) for array in made]
        self._graph = {key: task for array in made for key, task in array.__dask_graph__().items()}

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for each block, of which all arrays are made together."""
        for number, places in _grouped(rows, self.block):
            yield partial(self._read, number, places, rows, out)

    def _read(self, number: int, places: Indices, rows: Indices, out: Arrays) -> None:
        from dask.local import get_sync
        from dask.optimization import cull

        keys = [(name, number, *rest) for name, *rest in self._keys]
        graph, _ = cull(self._graph, keys)
        # a block that is one task needs no scheduler, which would take as long as reading it
        alone = len(graph) == len(keys)
        made = [graph[key]() for key in keys] if alone else get_sync(graph, keys)
        local = rows[places] - number * self.block
        for name, values in zip(self.names, made, strict=True):
            scatter(np.asarray(values), local, out[name], places)


def _even(array: da.Array, rows: int) -> da.Array:
    """Return the array in blocks of `rows` rows, whole along the other axes."""
    even: da.Array = array.rechunk({0: rows, **dict.fromkeys(range(1, array.ndim), -1)})
    return even


def _grouped(rows: Indices, block: int) -> Iterator[tuple[int, Indices]]:
    """Give the number of each block that `rows` touch, and the places of its rows."""
    numbers = rows // block
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    for places in np.split(order, starts[1:]):
        yield int(numbers[places[0]]), places


def scatter(
    values: npt.NDArray[Any], rows: Indices, out: npt.NDArray[Any], places: Indices
) -> None:
    """Copy ``values[rows]`` to ``out[places]``."""
    if values[:1].nbytes < _LARGE_ROW:
        out[places] = values[rows]
        return
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        out[place] = values[row]


class Buffers:
    """Memory for windows, used again when no tensor looks at it any more.

    Fresh memory costs more time than filling it, for its pages have to be found. Pinned memory is
    left to torch, which knows when a copy to the GPU has ended.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free: dict[int, list[memoryview]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
        """Return a tensor of any content, C-contiguous, on the processor."""
        import torch

        if self._pinned:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            return torch.empty(shape, dtype=kind, pin_memory=True)
        size = math.prod(shape) * dtype.itemsize
        room = 1 << max(size - 1, 1).bit_length()  # windows differ by what a batch left over
        free = self._free.setdefault(room, [])
        memory = free.pop() if free else np.empty(room, np.uint8).data
        owner = np.frombuffer(memory, np.uint8)  # every view and tensor holds on to it
        weakref.finalize(owner, free.append, memory).atexit = False
        return torch.from_numpy(owner[:size].view(dtype).reshape(shape))


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a sample has of one array.

    Attributes
    ----------
    span
        Rows of the array in a sample, from its position on; 1 means its row, without an axis. [1]
    row
        Shape of one row.
    """

    span: int
    row: tuple[int, ...]
    dtype: np.dtype[Any]

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of this many samples."""
        return (samples, self.span, *self.row) if self.span > 1 else (samples, *self.row)


class _Window:
    """Samples on their way into memory, with room before them for what a batch left over."""

    def __init__(
        self, left: int, samples: Indices, fields: Mapping[str, Field], buffers: Buffers
    ) -> None:
        index = Field(span=1, row=(), dtype=samples.dtype)
        self.size = left + len(samples)
        self.tensors = {
            name: buffers.take(field.shape(self.size), field.dtype)
            for name, field in {**fields, "index": index}.items()
        }
        self._samples = samples
        self._fields = fields
        self._places = {name: tensor.numpy()[left:] for name, tensor in self.tensors.items()}
        self._places["index"][:] = samples
        self._futures: list[Future[None]] = []

    def begin(self, readers: Sequence[Reader], pool: ThreadPoolExecutor | None) -> None:
        """Read into it, in the threads of `pool` or here and now."""
        for reader in readers:
            span = self._fields[reader.names[0]].span
            rows = self._samples
            if span > 1:
                rows = np.add.outer(rows, np.arange(span)).ravel()
            out = {n: self._places[n].reshape(-1, *self._fields[n].row) for n in reader.names}
            for job in reader.jobs(rows, out):
                if pool:
                    self._futures.append(pool.submit(job))
                else:
                    job()

    def finish(self, before: _Window | None, left: int) -> None:
        """Wait until it is read, and take over the last `left` samples of the window before."""
        for future in self._futures:
            future.result()
        if before and left:
            for name, values in self.tensors.items():
                values[:left] = before.tensors[name][before.size - left :]

    def cancel(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        for future in self._futures:
            future.cancel()


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Reads planned windows and cuts them into batches.

    Attributes
    ----------
    readers
        Each gets arrays of one span.
    threads
        How many jobs run at the same time; 0 reads when asked, without a thread. [1]
    """

    readers: Sequence[Reader]
    fields: Mapping[str, Field]
    threads: int
    buffers: Buffers

    def batches(self, plan: Plan, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Give batches, each a slice of a window; while one window is used up the next is read."""
        if not self.threads:
            yield from self._cut(plan, batch_size, None)
            return
        with ThreadPoolExecutor(self.threads, "scibench-read") as pool:
            yield from self._cut(plan, batch_size, pool)

    def _cut(
        self, plan: Plan, batch_size: int, pool: ThreadPoolExecutor | None
    ) -> Iterator[dict[str, torch.Tensor]]:
        windows = self._begun(plan, batch_size, pool)
        before, left = None, 0
        window = next(windows, None)
        try:
            while window:
                window.finish(before, left)
                left = window.size % batch_size
                # the memory of the one before is free from here on, and the next is begun in it
                before, window = window, next(windows, None)
                for start in range(0, before.size - left, batch_size):
                    stop = start + batch_size
                    yield {name: values[start:stop] for name, values in before.tensors.items()}
            if before and left:
                yield {n: values[before.size - left :] for n, values in before.tensors.items()}
        finally:
            if window:
                window.cancel()

    def _begun(
        self, plan: Plan, batch_size: int, pool: ThreadPoolExecutor | None
    ) -> Iterator[_Window]:
        left = 0
        for samples in plan.windows():
            window = _Window(left, samples, self.fields, self.buffers)
            window.begin(self.readers, pool)
            left = window.size % batch_size
            yield window
