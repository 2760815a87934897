"""What the machine can do: the limits that loading is measured against, and its page cache."""

import ctypes
import functools
import itertools
import math
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from making import Values, chunks_of, codecs_of
from turns import Job, Reading

from scibench_data.storing.store import Store

BATCH = 64
SPAN = 26
"""Fortnights in a window."""

Epoch = Callable[[int], Iterator[Any]]
"""Gives the batches of epoch n, as torch tensors."""
Transform = Callable[[Values], Values]


def job(prepare: Callable[[], Epoch], *, numbered: bool = False, passes: int = 1) -> Job:
    """Return the job of taking all batches; `numbered` samples begin with their number."""
    epoch = prepare()

    def take(turn: int, order: list[Any]) -> Iterator[int]:
        for part in range(passes):
            for batch in epoch(turn * passes + part):
                if numbered:
                    order.append(batch[:, 0, 0].clone())
                yield batch.nbytes

    return take


def gather(path: Path, *, transform: Transform | None = None) -> Epoch:
    """Return the limit: rows of a file, mapped once, gathered into a small ring of buffers."""
    import torch

    values = np.load(path, mmap_mode="r")
    ring = [np.empty((BATCH, *values.shape[1:]), values.dtype) for _ in range(3)]

    def epoch(number: int) -> Iterator[Any]:
        order = np.random.default_rng(number).permutation(len(values))
        for turn, start in enumerate(range(0, len(order), BATCH)):
            rows = order[start : start + BATCH]
            batch = np.take(values, rows, axis=0, out=ring[turn % 3][: len(rows)], mode="clip")
            yield torch.from_numpy(transform(batch) if transform else batch)

    return epoch


def windows(path: Path) -> Epoch:
    """Return the limit for windows: NumPy's gather from a strided view of the mapped file."""
    import torch

    values = np.load(path, mmap_mode="r")
    view = np.lib.stride_tricks.sliding_window_view(values, SPAN, axis=0).transpose(0, 2, 1)

    def epoch(number: int) -> Iterator[Any]:
        order = np.random.default_rng(number).permutation(len(view))
        for start in range(0, len(order), BATCH):
            yield torch.from_numpy(view[order[start : start + BATCH]])

    return epoch


def decode(store: Store, room: int = 0) -> Job:
    """Return the limit for packed data: the codecs alone, in two threads, into reused memory.

    Each thread unpacks to one place again and again, which stays in the processor's cache, or to
    place after place of `room` bytes. [B]
    """
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False  # the two threads are ours
    codecs = codecs_of(store)[::-1]
    if not codecs:
        sys.exit("the store is not packed; name a codec with --codec")
    *before, last = codecs
    example = zarr.open_array(store.path / "x", mode="r")
    size = math.prod(example.chunks) * example.dtype.itemsize
    files: dict[Path, list[memoryview]] = {}
    for file, offset, length in chunks_of(store):
        if file not in files:
            files[file] = []
            mapped = memoryview(np.memmap(file, np.uint8, "r"))
        files[file].append(mapped[offset : offset + length])
    own = threading.local()

    def work(chunks: list[memoryview]) -> int:
        if not hasattr(own, "places"):
            places = np.zeros((max(room // size, 1), size), np.uint8)
            own.places = itertools.cycle(places)
        for chunk in chunks:
            packed = functools.reduce(lambda v, codec: codec.decode(v), before, chunk)
            last.decode(packed, next(own.places))
        return size * len(chunks)

    def take(turn: int, order: list[Any]) -> Iterator[int]:  # noqa: ARG001
        with ThreadPoolExecutor(2) as threads:
            yield from threads.map(work, files.values())

    return take


def dd(files: list[Path]) -> Job:
    """Return the limit of a cold page cache: dd of files, one after the other."""
    words = "for file; do dd if=$file of=/dev/null bs=1M status=none; done"

    def take(turn: int, order: list[Any]) -> Iterator[int]:  # noqa: ARG001
        subprocess.run(["sh", "-c", words, "sh", *map(str, files)], check=True)
        yield sum(file.stat().st_size for file in files)

    return take


def warm(files: Iterable[Path]) -> None:
    """Read files, so that they are in the page cache."""
    subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)], check=True)


def evict(files: list[Path]) -> Reading:
    """Drop files from the page cache; return the share of their pages that stayed."""
    held = pages = 0
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            held, pages = held + resident(opened.fileno()), pages + -(-file.stat().st_size // 4096)
    if held > pages / 100:
        sys.exit("page cache: a hundredth or more stayed; close what has the files open or mapped")
    return {"resident": round(held / pages, 4)}


def resident(number: int) -> int:
    """Count the pages of an open file that are in memory, by mincore(2)."""
    size = os.fstat(number).st_size
    with mmap.mmap(number, size, flags=mmap.MAP_PRIVATE) as mapped:  # writable: it has an address
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), pages
        )
        del first
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(np.frombuffer(pages, np.uint8) & 1))
