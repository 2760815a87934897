"""Load batches of 64 from a store, beside the machine's limit and, with ``--peers``, the peers."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from limits import BATCH, SPAN, Epoch, Transform, dd, decode, evict, gather, job, warm, windows
from making import (
    Data,
    Values,
    default_folder,
    int8,
    particles,
    series,
    smooth,
)
from measure import make_parser
from turns import Job, Round, report, take_turns

from scibench_data.loader import MIXED_BYTES
from scibench_data.storing.store import Layout, Store

LIMIT = "memmap gather"
DECODE = "the codec alone, two threads"
TO_MEMORY = f"{DECODE}, to memory"
VIEW = "gather from NumPy's strided view"
DD = "dd of the same bytes"
OURS = "scibench-data"
KINDS = {
    "particles": particles,
    "transform": particles,
    "smooth": smooth,
    "int8": int8,
    "windows": series,
    "cold": particles,
}
FORTNIGHTS = 1826
PASSES = 20
"""Times that all windows are given in one turn, for one pass takes a fiftieth of a second."""


def scaled(values: Values) -> Values:
    """Return values as a model wants them: the transform of the case of that name."""
    return (values - np.float32(0.1)) * np.float32(0.5)


def ours(
    store: Store,
    *,
    shuffle: Any = True,
    transform: Transform | None = None,
    span: int = 1,
) -> Epoch:
    """Return this package's loader as anyone would call it."""
    import torch  # noqa: F401  (its import is nobody's first epoch)

    from scibench_data.loader import Source
    from scibench_data.storing.store import open_store

    dataset = open_store(store)
    if transform is not None:
        changed = dataset["x"].data.map_blocks(transform, dtype=dataset["x"].dtype)
        dataset = dataset.assign(x=dataset["x"].copy(data=changed))
    places = np.arange(dataset.sizes["sample"] - span + 1)
    source = Source(dataset=dataset, splits={"train": places}, names=("x",), spans={"x": span})

    def epoch(number: int) -> Iterator[Any]:
        for batch in source.batches("train", BATCH, shuffle=shuffle, seed=0, epoch=number):
            yield batch["x"]

    return epoch


Cases = dict[str, Callable[[], Job]]


def plain(data: Data, store: Store, transform: Transform | None = None) -> Cases:
    """Return memmap gather and ours, with the same transform."""
    numbered = data.kind is particles and transform is None
    made = partial(job, numbered=numbered)
    return {
        LIMIT: partial(made, partial(gather, data.path, transform=transform)),
        OURS: partial(made, partial(ours, store, transform=transform)),
    }


def packed(store: Store) -> Cases:
    """Return the codec's decoding, to the cache and to as much memory as we use, and ours."""
    return {
        DECODE: partial(decode, store),
        TO_MEMORY: partial(decode, store, room=MIXED_BYTES),
        OURS: partial(job, partial(ours, store)),
    }


def spans(data: Data, store: Store) -> Cases:
    """Return NumPy's windows and ours."""
    return {
        VIEW: partial(job, partial(windows, data.path), passes=PASSES),
        OURS: partial(job, partial(ours, store, span=SPAN), passes=PASSES),
    }


def cold(data: Data, files: list[Path], store: Store) -> Cases:
    """Return dd and the two orders of ours that read forwards."""
    made = partial(job, numbered=True)
    return {
        DD: partial(dd, [data.path]),
        f"{DD}, in the store's files": partial(dd, files),
        f"{OURS}, block shuffle": partial(made, partial(ours, store, shuffle="block")),
        f"{OURS}, in order": partial(made, partial(ours, store, shuffle=False)),
    }


def choose(case: str, data: Data, store: Store, files: list[Path]) -> Cases:
    """Return what is compared, the limit first."""
    if case == "smooth":
        return packed(store)
    if case == "windows":
        return spans(data, store)
    if case == "cold":
        return cold(data, files, store)
    return plain(data, store, scaled if case == "transform" else None)


def take_cold_turns(cases: Cases, files: list[Path]) -> Round:
    """Run a round of one turn each, none beside another: pages that one maps are not dropped."""
    before = partial(evict, files)
    return {
        name: take_turns({name: prepare}, 1, before=before)[name] for name, prepare in cases.items()
    }


def measure(case: str, data: Data, asked: argparse.Namespace) -> list[Round]:
    """Run the rounds, and one before them that does not count."""
    store = data.store(layout=Layout(codec=asked.codec))
    files = sorted((store.path / "x").glob("c*"))
    cases = choose(case, data, store, files)
    rounds = []
    for _ in range(asked.repeats + 1):
        warm([data.path, *files])
        rounds.append(
            take_cold_turns(cases, [data.path, *files])
            if case == "cold"
            else take_turns(cases, asked.epochs)
        )
    return rounds[1:]


def compare_peers(data: Data, asked: argparse.Namespace) -> list[Round]:
    """Run each peer beside the limit and ours; one round before does not count."""
    store = data.store(layout=Layout(codec=asked.codec))
    ours_and_limit = plain(data, store)
    own = [data.path, *(store.path / "x").glob("c*")]
    formats = [
        (form.folder(data.path), form.loaders)
        for form in peers.installed()
        if asked.only in form.needs
    ]
    rounds = []
    for number in range(asked.repeats + 1):
        for folder, loaders in formats:
            for name, loader in loaders.items():
                warm([*own, *(file for file in folder.rglob("*") if file.is_file())])
                peer = partial(job, partial(loader, folder), numbered=True)
                cases = {**ours_and_limit, name: peer}
                readings = take_turns(cases, asked.epochs, longest=asked.seconds)
                rounds += [readings] if number else []
    return rounds


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "", repeats=5)
    parser.add_argument("case", choices=KINDS)
    parser.add_argument("--bytes", type=float, default=2e9, help="size of the data")
    parser.add_argument("--epochs", type=int, default=4, help="passes of one process over the data")
    parser.add_argument("--data", type=Path, default=default_folder(), help="keeps the data")
    parser.add_argument("--codec", default="auto", help="of the store")
    parser.add_argument("--peers", action="store_true", help="measure the peers, on particles")
    parser.add_argument("--only", default="", help="of the peers, those that need this library")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest epoch of a peer")
    asked = parser.parse_args()
    kind = KINDS[asked.case]
    rows = FORTNIGHTS if kind is series else int(asked.bytes // kind(0, 1).nbytes)
    data = Data(kind=kind, rows=rows, folder=asked.data)
    data.open()
    rounds = compare_peers(data, asked) if asked.peers else measure(asked.case, data, asked)
    report(rounds, next(iter(rounds[0])), asked.json, size=data.path.stat().st_size)


if __name__ == "__main__":
    main()
