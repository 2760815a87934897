"""Write a store, beside copying and hashing the same bytes, or beside the codec alone."""

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from limits import warm
from making import Data, codecs_of, default_folder, particles, smooth
from measure import make_parser
from turns import Job, Reading, report, take_turns

from scibench_data.storing.store import Layout, Store

KINDS = {"raw": particles, "packed": smooth}
OURS = "scibench-data materialize"


def ours(data: Data, scratch: Path, layout: Layout) -> Job:
    """Return materialize, whole: read, packed, hashed, written, flushed and entered."""
    Data(kind=data.kind, rows=4, folder=scratch / "small").store()  # its imports are not timed

    def write(turn: int, order: list[Any]) -> Iterator[int]:  # noqa: ARG001
        data.store(home=scratch / "store", layout=layout)
        yield data.path.stat().st_size

    return write


def copy(data: Data, scratch: Path, *, flushed: bool = False) -> Job:
    """Return cp and then sha256sum of what it wrote."""
    words = 'cp "$1" "$2" && sync "$2" && sha256sum "$2"'
    if not flushed:
        words = words.replace('sync "$2" && ', "")

    def write(turn: int, order: list[Any]) -> Iterator[int]:  # noqa: ARG001
        command = ["sh", "-c", words, "sh", str(data.path), str(scratch / "copy")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield data.path.stat().st_size

    return write


def encode(data: Data, store: Store, *, hashed: bool = False) -> Job:
    """Return the limit for packed data: the store's codecs alone, in two threads.

    Where `hashed`, with SHA-256 of the values and of what they are packed to, as a store needs it.
    """
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False  # the two threads are ours
    codecs = codecs_of(store)
    values, rows = data.open(), zarr.open_array(store.path / "x", mode="r").chunks[0]

    def pack(start: int) -> int:
        chunk = values[start : start + rows]
        packed = functools.reduce(lambda content, codec: codec.encode(content), codecs, chunk)
        if hashed:
            hashlib.sha256(chunk)
            hashlib.sha256(packed)
        return int(chunk.nbytes)

    def work(turn: int, order: list[Any]) -> Iterator[int]:  # noqa: ARG001
        with ThreadPoolExecutor(2) as threads:
            yield from threads.map(pack, range(0, len(values), rows))

    return work


def clear(scratch: Path) -> Reading:
    """Remove what a turn wrote, and let the disk come to rest."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.sync()
    return {}


def choose(case: str, data: Data, scratch: Path, layout: Layout) -> dict[str, Callable[[], Job]]:
    """Return what is compared, the limit first."""
    own = {OURS: partial(ours, data, scratch, layout)}
    if case == "packed":
        store = data.store(layout=layout)
        return {
            "the codec alone, two threads": partial(encode, data, store),
            "the codec and SHA-256": partial(encode, data, store, hashed=True),
            **own,
        }
    return {
        "cp, then sha256sum": partial(copy, data, scratch),
        "cp, sync, then sha256sum": partial(copy, data, scratch, flushed=True),
        **own,
    }


def measure(asked: argparse.Namespace) -> None:
    """Make the data, run the rounds and report."""
    kind = KINDS[asked.case]
    rows = int(asked.bytes // kind(0, 1).nbytes)
    data = Data(kind=kind, rows=rows, folder=asked.data)
    data.open()
    scratch = asked.data / f"scratch-{os.getpid()}"
    rounds = []
    try:
        cases = choose(asked.case, data, scratch, Layout(codec=asked.codec))
        for number in range(asked.repeats + 1):
            warm([data.path])
            found = take_turns(cases, asked.turns, before=partial(clear, scratch))
            rounds += [found] if number else []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(rounds, next(iter(cases)), asked.json, size=data.path.stat().st_size)


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "", repeats=3)
    parser.add_argument("case", choices=KINDS)
    parser.add_argument("--bytes", type=float, default=2e9, help="size of the data")
    parser.add_argument("--turns", type=int, default=2, help="times that one process writes it")
    parser.add_argument("--data", type=Path, default=default_folder(), help="keeps the data")
    parser.add_argument("--codec", default="auto", help="of the store")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
