"""Fill windows of samples from arrays in memory, on this disk, or behind a Dask graph.

A reader knows how to get rows of some arrays. It hands out jobs, each of which writes rows to their
final places, so that a batch is a slice of what was read; jobs may run in any order and at the same
time, so nothing depends on the timing of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from scibench_data.sampling import Indices, Plan
from scibench_data.stored import Stored

if TYPE_CHECKING:
    import dask.array as da
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]
Batch: TypeAlias = "dict[str, torch.Tensor]"
Job = Callable[[], None]
_PART_BYTES = 8 << 20  # read by one job, where less can be [B]
_GATHER_BYTES = 4 << 20  # that it is worth waking another thread for, to copy [B]
_LINE = 64  # of a processor's cache, at which arrays begin [B]


class Reader(Protocol):
    """Gets rows of some arrays."""

    @property
    def names(self) -> Sequence[str]:
        """The arrays' names."""

    @property
    def block(self) -> int:
        """Rows that can only be read together; 1 where each can be read alone. [1]"""

    @property
    def near(self) -> int:
        """Rows that are read sooner together than apart, where the order leaves a choice. [1]"""

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give the work of reading `rows` of each array into ``out[name]``, in this order."""


@dataclass(frozen=True)
class Resident:
    """Arrays that are small enough to be held in memory, copied by this many jobs at once."""

    arrays: Arrays
    parts: int
    block: int = 1
    near: int = 1

    @property
    def names(self) -> Sequence[str]:
        """The arrays' names."""
        return list(self.arrays)

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for each part of the rows."""

        def gather(part: slice) -> None:
            for name, values in self.arrays.items():
                _gather(values, rows[part], out[name][part])

        size = sum(values[:1].nbytes for values in self.arrays.values())
        yield from (partial(gather, part) for part in _cut_up(len(rows), size, self.parts))


@dataclass(frozen=True)
class Rows:
    """An array of which any row can be read by itself, by this many jobs at once."""

    name: str
    stored: Stored
    parts: int
    block: int = 1

    @property
    def near(self) -> int:
        """Rows of a few chunks: they follow each other on the disk. [1]"""
        return self.stored.block

    @property
    def names(self) -> Sequence[str]:
        """The array's name."""
        return [self.name]

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for every few rows, read straight into place.

        Rows that stand alone are copied from the page cache in any order, where the array fits into
        memory; those that follow each other are read together.
        """
        stored, target = self.stored, out[self.name]
        if not _follow_each_other(rows) and (mapped := stored.mapped) is not None:
            octets = target.reshape(len(rows), -1).view(np.uint8)
            for part in _cut_up(len(rows), stored.row_bytes, self.parts):
                yield partial(_gather, mapped, rows[part], octets[part])
            return
        places = np.argsort(rows, kind="stable")
        each = max(_PART_BYTES // max(stored.row_bytes, 1), 1)
        for start in range(0, len(places), each):
            yield partial(stored.read_rows, rows, target, places[start : start + each])


def _cut_up(rows: int, row_bytes: int, parts: int) -> Iterator[slice]:
    """Cut rows that only have to be copied into equal parts, but none too small for a thread."""
    each = max(-(-rows // parts), _GATHER_BYTES // max(row_bytes, 1), 1)
    return (slice(start, start + each) for start in range(0, rows, each))


def _gather(values: npt.NDArray[Any], rows: Indices, out: npt.NDArray[Any]) -> None:
    """Copy ``values[rows]`` to `out`; every row must be one of the array's."""
    np.take(values, rows, axis=0, out=out, mode="clip")  # "raise" would copy through a buffer


def _follow_each_other(rows: Indices) -> bool:
    """Tell whether rows come in runs of four and more, whatever order they are wanted in."""
    ordered = np.sort(rows)
    return 4 * int(np.count_nonzero(ordered[1:] - ordered[:-1] == 1)) >= 3 * len(rows)


class _Share(NamedTuple):
    """The rows that are wanted of one block.

    Attributes
    ----------
    number
        Of the block. [1]
    rows
        Which of its rows, in increasing order; None where it is all of them, once.
    places
        Where each of them goes to.
    """

    number: int
    rows: Indices | None
    places: Indices

    def scatter(self, block: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy them from the block to their places in `out`."""
        out[self.places] = block if self.rows is None else block[self.rows]


def _shares(rows: Indices, block: int) -> Iterator[_Share]:
    """Sort `rows` by the blocks of `block` rows that they are in."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    numbers, within = np.divmod(rows[order], block)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    sizes = np.diff(starts, append=len(rows))
    in_order = within == np.arange(len(rows)) - np.repeat(starts, sizes)
    whole = np.logical_and.reduceat(in_order, starts) & (sizes == block)
    bounds = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
    for number, (start, end), all_of_it in zip(
        numbers[starts].tolist(), bounds, whole.tolist(), strict=True
    ):
        yield _Share(number, None if all_of_it else within[start:end], order[start:end])


class Chunks:
    """An array whose chunks have to be unpacked."""

    def __init__(self, name: str, stored: Stored) -> None:
        self.names = [name]
        self.block = self.near = stored.chunk
        self._stored = stored
        self._scratch = threading.local()

    def __getstate__(self) -> tuple[str, Stored]:
        return self.names[0], self._stored

    def __setstate__(self, state: tuple[str, Stored]) -> None:
        Chunks.__init__(self, *state)

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for every few chunks: unpacked where they stay in the processor's cache."""
        shares = list(_shares(rows, self.block))
        each = max(_PART_BYTES // (self.block * self._stored.row_bytes or 1), 1)
        for start in range(0, len(shares), each):
            yield partial(self._read, shares[start : start + each], out[self.names[0]])

    def _read(self, shares: Sequence[_Share], out: npt.NDArray[Any]) -> None:
        scratch = getattr(self._scratch, "values", None)
        if scratch is None:
            stored = self._stored
            octets = np.frombuffer(_pages(self.block * stored.row_bytes), np.uint8)
            scratch = octets.view(stored.dtype).reshape(self.block, *stored.shape[1:])
            self._scratch.values = scratch
        for share in shares:  # what is done here keeps the other threads from going on
            self._stored.read_chunk(share.number, scratch)
            share.scatter(scratch, out)


class Blocks:
    """Arrays that a Dask graph makes, of equal blocks along their first axis."""

    def __init__(self, arrays: Mapping[str, da.Array]) -> None:
        from dask.base import optimize

        self.names = list(arrays)
        self.block = self.near = max(array.chunks[0][0] for array in arrays.values())
        even = [_even(array, self.block) for array in arrays.values()]
        made = optimize(*even)
        self._keys = [(array.name, *(0 for _ in array.shape[1:])) for array in made]
        self._graph = {key: task for array in made for key, task in array.__dask_graph__().items()}

    def jobs(self, rows: Indices, out: Arrays) -> Iterator[Job]:
        """Give a job for each block, of which all arrays are made together."""
        for share in _shares(rows, self.block):
            yield partial(self._read, share, out)

    def _read(self, share: _Share, out: Arrays) -> None:
        from dask.local import get_sync
        from dask.optimization import cull

        keys = [(name, share.number, *rest) for name, *rest in self._keys]
        graph, _ = cull(self._graph, keys)
        # a block that is one task needs no scheduler, which would take as long as reading it
        alone = len(graph) == len(keys)
        made = [graph[key]() for key in keys] if alone else get_sync(graph, keys)
        for name, values in zip(self.names, made, strict=True):
            share.scatter(np.asarray(values), out[name])


def _even(array: da.Array, rows: int) -> da.Array:
    """Return the array in blocks of `rows` rows, whole along the other axes."""
    even: da.Array = array.rechunk({0: rows, **dict.fromkeys(range(1, array.ndim), -1)})
    return even


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

    @cached_property
    def size(self) -> int:
        """Size of a sample. [B]"""
        return math.prod(self.shape(1)) * self.dtype.itemsize


_INDEX = Field(span=1, row=(), dtype=np.dtype(np.int64))


def _pages(size: int) -> mmap.mmap:
    """Return fresh memory that begins where a page does, as the rows of mapped files do.

    AMD's Zen 3 and 4 copy at a tenth of their speed to where the target is 1 to 31 bytes further
    into its page than the source is, and malloc gives memory at byte 16 (glibc bug 30994).
    """
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Buffers:
    """Memory for windows, used again when no tensor looks at it any more.

    Fresh memory costs more time than filling it, for its pages have to be found. Pinned memory is
    left to torch, which knows when a copy to the GPU has ended.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.fresh = True  # nothing was taken yet
        self._pinned = pinned
        self._free: list[mmap.mmap] = []

    def take(
        self, fields: Mapping[str, Field], samples: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, npt.NDArray[Any]]]:
        """Return a tensor for this many samples of each field, of any content, and as an array."""
        import torch

        self.fresh = False
        if self._pinned:
            pinned = {name: _pinned(field, samples) for name, field in fields.items()}
            return pinned, {name: tensor.numpy() for name, tensor in pinned.items()}
        octets = self._octets(sum(-(-f.size * samples // _LINE) * _LINE for f in fields.values()))
        arrays, start = {}, 0
        for name, field in fields.items():
            end = start + field.size * samples
            arrays[name] = octets[start:end].view(field.dtype).reshape(field.shape(samples))
            start = -(-end // _LINE) * _LINE
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, arrays

    def _octets(self, size: int) -> npt.NDArray[np.uint8]:
        fitting = [place for place, memory in enumerate(self._free) if len(memory) >= size]
        if fitting:
            memory = self._free.pop(min(fitting, key=lambda place: len(self._free[place])))
        else:  # with room for what a batch may leave over
            memory = _pages(1 << max(size - 1, 1).bit_length())
            touched = np.frombuffer(memory, np.uint8)[: size : mmap.PAGESIZE]
            touched[:] = 0  # threads that meet new pages together are slow
        owner = np.frombuffer(memory, np.uint8)  # every view and tensor holds on to it
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return owner


def _pinned(field: Field, samples: int) -> torch.Tensor:
    import torch

    kind = torch.from_numpy(np.empty(0, field.dtype)).dtype
    return torch.empty(field.shape(samples), dtype=kind, pin_memory=True)


class _Window:
    """Samples on their way into memory, with room before them for what was left of those before."""

    def __init__(
        self, left: int, samples: Indices, fields: Mapping[str, Field], buffers: Buffers
    ) -> None:
        self.left, self.size = left, left + len(samples)
        self.tensors, self._arrays = buffers.take({**fields, "index": _INDEX}, self.size)
        self.seconds = 0.0
        self._samples = samples
        self._fields = fields
        self._places = {name: array[left:] for name, array in self._arrays.items()}
        self._places["index"][:] = samples
        self._begun = False
        self._futures: list[Future[None]] = []

    def _jobs(self, readers: Sequence[Reader]) -> Iterator[Job]:
        for reader in readers:
            span = self._fields[reader.names[0]].span
            rows = self._samples
            if span > 1:
                rows = np.add.outer(rows, np.arange(span)).ravel()
            out = {n: self._places[n].reshape(-1, *self._fields[n].row) for n in reader.names}
            yield from reader.jobs(rows, out)

    def begin(self, readers: Sequence[Reader], pool: ThreadPoolExecutor, *, alone: bool) -> None:
        """Read into it in the threads of `pool`, or in one: others are at work on batches."""
        self._begun = True
        jobs = self._jobs(readers)
        if alone:
            self._futures = [pool.submit(_run, list(jobs))]
        else:
            self._futures = [pool.submit(job) for job in jobs]

    def finish(self, readers: Sequence[Reader], pool: ThreadPoolExecutor) -> None:
        """Wait until it is read; read it now, in this thread too, where that was not begun."""
        started = time.perf_counter()
        if not self._begun:
            first, *others = self._jobs(readers)
            self._futures = [pool.submit(job) for job in others]
            first()
        for future in self._futures:
            future.result()
        if not self._begun:
            self._begun, self.seconds = True, time.perf_counter() - started

    def take_over(self, before: _Window) -> None:
        """Copy what is left of the window before, its last samples."""
        if self.left:  # by NumPy: torch would wake its threads for it
            for name, values in self._arrays.items():
                values[: self.left] = before._arrays[name][-self.left :]


def _run(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()


@dataclass(kw_only=True)
class Intake:
    """Reads planned windows and cuts them into batches.

    Attributes
    ----------
    readers
        Each gets arrays of one span.
    threads
        How many jobs run at the same time. [1]
    eager
        Whether a window is always read while the one before is used. Where reading is no more than
        copying, that costs more than it brings unless batches are worked on, which is watched.
    """

    readers: Sequence[Reader]
    fields: Mapping[str, Field]
    threads: int
    eager: bool
    buffers: Buffers
    _ahead: bool = dataclasses.field(default=False, init=False)  # what was seen last
    _cost: float = dataclasses.field(default=math.inf, init=False)  # of reading a sample [s]
    _used: deque[float] = dataclasses.field(  # time samples were worked on; one may be a hiccup [s]
        default_factory=partial(deque, maxlen=3), init=False
    )

    def batches(self, plan: Plan, batch_size: int) -> Iterator[Batch]:
        """Give batches, each a slice of a window.

        Two windows are in memory. The next is begun as soon as nobody looks at the one before any
        more; where that is read ahead, the last batch of the one before is copied, and given while
        the next window is on its way, so that threads are never idle.
        """
        windows = plan.windows()
        pool = ThreadPoolExecutor(self.threads, "scibench-read")
        first: list[Batch] = []
        try:
            window, following = self._start(windows, batch_size, pool)
            while window:
                cut = _cut(window, batch_size)
                whole, left = divmod(window.size, batch_size)
                batches = cut[:whole]
                if not first:
                    window.finish(self.readers, pool)
                    first, batches = batches[:1], batches[1:]
                if not batches:
                    following = following or self._begin(windows, left, pool)
                yield from self._watched(first, window)
                first = []
                following = following or self._begin(windows, left, pool)
                window.finish(self.readers, pool)
                if following:
                    first, batches = [self._copy(batch) for batch in batches[-1:]], batches[:-1]
                yield from self._watched(batches, window)
                following = following or self._next(windows, left)
                if following:
                    following.take_over(window)
                elif left:
                    yield cut[-1]
                window, following = following, None
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(
        self, windows: Iterator[Indices], batch_size: int, pool: ThreadPoolExecutor
    ) -> tuple[_Window | None, _Window | None]:
        """Begin to read the first window where that is done ahead, and in a first pass the second.

        To find fresh memory takes about as long as to fill it. In later passes whoever still holds
        the last batch of the one before also holds the memory that the second window waits for.
        """
        fresh = self.buffers.fresh
        window = self._next(windows, 0)
        if window is None or not self.eager:
            return window, None
        window.begin(self.readers, pool, alone=False)
        return window, self._begin(windows, window.size % batch_size, pool) if fresh else None

    def _watched(self, batches: Sequence[Batch], window: _Window) -> Iterator[Batch]:
        """Give batches, and see whether they are worked on for longer than reading them took."""
        self._cost = window.seconds / window.size or self._cost
        for batch in batches:
            given = time.perf_counter()
            yield batch
            self._used.append((time.perf_counter() - given) / len(batch["index"]))
        if len(self._used) == self._used.maxlen:
            self._ahead = min(self._used) > self._cost

    def _copy(self, batch: Batch) -> Batch:
        tensors, arrays = self.buffers.take({**self.fields, "index": _INDEX}, len(batch["index"]))
        for name, values in arrays.items():
            values[:] = batch[name].numpy()
        return tensors

    def _begin(
        self, windows: Iterator[Indices], left: int, pool: ThreadPoolExecutor
    ) -> _Window | None:
        """Begin to read the next window, if there is one, where that is worth it."""
        window = self._next(windows, left) if self.eager or self._ahead else None
        if window:
            window.begin(self.readers, pool, alone=not self.eager)
        return window

    def _next(self, windows: Iterator[Indices], left: int) -> _Window | None:
        samples = next(windows, None)
        return None if samples is None else _Window(left, samples, self.fields, self.buffers)


def _cut(window: _Window, batch_size: int) -> list[Batch]:
    """Cut a window into batches; what is left over comes last."""
    parts = [values.split(int(batch_size)) for values in window.tensors.values()]  # type: ignore[no-untyped-call]
    return [dict(zip(window.tensors, part, strict=True)) for part in zip(*parts, strict=True)]
