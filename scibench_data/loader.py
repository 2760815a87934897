"""From a store to batches: splits and order are integers first, reading comes after.

`split` and `epoch_plan` touch no data and can be tested in microseconds; `Source` turns their
integers into torch tensors, a window of whole Dask blocks at a time, with no work per sample.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute

from scibench_data.descriptor import SplitRule
from scibench_data.errors import (
    IntegrityError,
    NotFoundError,
    RequirementError,
    UsageError,
    did_you_mean,
)
from scibench_data.provenance import digest

if TYPE_CHECKING:
    import torch

Indices = npt.NDArray[np.int64]
WINDOW_BYTES = 256 * 2**20
"""How much is held for shuffling: a split below this size is shuffled uniformly. [B]"""


def split(groups: npt.NDArray[Any], rule: SplitRule) -> dict[str, Indices]:
    """Divide samples so that samples of one group stay together.

    Groups are ordered by the SHA-256 of ``"<seed>:<group>"`` and cut at the cumulative fractions:
    no random generator is involved, so the split is the same everywhere and for ever, and a group
    keeps its place in the order when others are added. Where the rule says that the data give the
    split, the groups' values are taken at their word.

    Parameters
    ----------
    groups
        The group of each sample, shape (n,).

    Returns
    -------
    dict
        Split name -> increasing sample indices; disjoint, and together all samples, but for those
        that a given split leaves out.

    Examples
    --------
    >>> rule = SplitRule(group="g", fractions={"train": 0.5, "test": 0.5}, seed=0, reason="")
    >>> {name: part.tolist() for name, part in split(np.array([7, 7, 8, 8]), rule).items()}
    {'train': [0, 1], 'test': [2, 3]}
    """
    if rule.given:
        return {name: np.flatnonzero(groups == i) for i, name in enumerate(rule.given)}
    labels, member = np.unique(groups, return_inverse=True)
    places = [hashlib.sha256(f"{rule.seed}:{label}".encode()).digest() for label in labels.tolist()]
    order = sorted(range(len(labels)), key=places.__getitem__)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels))
    shares = np.cumsum(list(rule.fractions.values()))
    ends = np.rint(shares * len(labels)).astype(np.int64)
    part = np.searchsorted(ends, rank, side="right")
    return {
        name: np.flatnonzero(part[member] == number).astype(np.int64)
        for number, name in enumerate(rule.fractions)
    }


def split_digest(splits: Mapping[str, Indices]) -> str:
    """Return the SHA-256 over names and indices of all parts."""
    return digest(
        {
            name: hashlib.sha256(np.ascontiguousarray(part, "<i8").tobytes()).hexdigest()
            for name, part in splits.items()
        }
    )


@dataclass(frozen=True)
class Window:
    """What is read at once, and the batches cut from it.

    Attributes
    ----------
    blocks
        Numbers of the blocks to read, in this order.
    rows
        Rows of the read blocks that belong to the split, in the order of the batches.
    """

    blocks: tuple[int, ...]
    rows: Indices


def epoch_plan(
    indices: Indices,
    block_rows: int,
    window_blocks: int,
    rng: np.random.Generator | None,
) -> Iterator[Window]:
    """Plan one pass over `indices`: which blocks, and which of their rows in which order.

    Parameters
    ----------
    indices
        Samples of the split, increasing.
    block_rows
        Samples in a block (the last may be shorter).
    window_blocks
        Blocks held at once; the shuffle is uniform within a window, and over everything when one
        window holds all blocks.
    rng
        Gives the order; None keeps the stored order.
    """
    blocks = np.unique(indices // block_rows)
    if rng is not None:
        blocks = rng.permutation(blocks)
    for start in range(0, len(blocks), window_blocks):
        chosen = blocks[start : start + window_blocks]
        rows = []
        for position, block in enumerate(chosen.tolist()):
            first, last = np.searchsorted(indices, [block * block_rows, (block + 1) * block_rows])
            rows.append(indices[first:last] - block * block_rows + position * block_rows)
        together = np.concatenate(rows)
        yield Window(tuple(chosen.tolist()), together if rng is None else rng.permutation(together))


class Data(Protocol):
    """What a model sees of a dataset."""

    @property
    def dataset(self) -> xr.Dataset:
        """Every array, lazy."""

    @property
    def splits(self) -> Mapping[str, Indices]:
        """Sample indices of ``train``, ``validation`` and ``test``."""

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterable["dict[str, torch.Tensor]"]:
        """Iterate once over a split."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Batches of the named arrays of a dataset, split by a rule.

    Attributes
    ----------
    dataset
        Lazy arrays as a store gives them; the first axis of every named array counts samples.
    names
        Arrays and coordinates that a batch holds.
    """

    dataset: xr.Dataset
    splits: Mapping[str, Indices]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in self.dataset.variables]
        if unknown:
            here = ", ".join(map(str, self.dataset.variables))
            message = f"arrays {unknown}: not in the store, which has {here}; correct the task"
            raise IntegrityError(message)

    @property
    def sample_dim(self) -> str:
        """The axis that counts samples."""
        return str(self.dataset[self.names[0]].dims[0])

    def _indices(self, name: str) -> Indices:
        if name not in self.splits:
            message = f"no split named {name!r}; {did_you_mean(name, self.splits)}"
            raise NotFoundError(message)
        return self.splits[name]

    def _blocks(self) -> tuple[dict[str, Any], int, int]:
        """Return the arrays cut alike, the rows of a block, and the blocks of a window."""
        chunked = {name: self.dataset[name] for name in self.names}
        sizes = [
            array.chunks[0][0] for array in chunked.values() if array.chunks and array.ndim > 1
        ]
        samples = self.dataset.sizes[self.sample_dim]
        rows = int(sizes[0]) if sizes else samples
        arrays = {
            name: array.chunk({self.sample_dim: rows}).data for name, array in chunked.items()
        }
        row_bytes = sum(array.nbytes for array in arrays.values()) / max(samples, 1)
        return arrays, rows, max(1, int(WINDOW_BYTES / max(rows * row_bytes, 1)))

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator["dict[str, torch.Tensor]"]:
        """Iterate once over a split.

        The next window is read while this one is consumed. The order follows from `seed` and
        `epoch` alone.

        Yields
        ------
        dict
            Name -> tensor, first axis at most `batch_size`, dtypes as stored; ``index`` holds the
            samples' positions in the dataset. The last batch may be shorter.

        Raises
        ------
        NotFoundError
            No such split.
        UsageError
            `batch_size` is not a number above zero.
        """
        check_batch_size(batch_size)
        arrays, rows, window_blocks = self._blocks()
        samples = self.dataset.sizes[self.sample_dim]
        rng = np.random.default_rng([seed, epoch]) if shuffle else None
        plan = epoch_plan(self._indices(split), rows, window_blocks, rng)
        pieces = _read_ahead(plan, arrays, rows, samples)
        yield from _cut(pieces, batch_size)


def _read(window: Window, arrays: Mapping[str, Any], rows: int, samples: int) -> dict[str, Any]:
    """Read a window's blocks with Dask and gather its rows."""
    parts = [[array.blocks[block] for block in window.blocks] for array in arrays.values()]
    read = compute(parts, scheduler="threads")[0]
    positions = [np.arange(b * rows, min((b + 1) * rows, samples)) for b in window.blocks]
    starts = np.cumsum([0, *map(len, positions)])[:-1]
    # only the last block of the array may be short: rows count as if all were whole
    local = starts[window.rows // rows] + window.rows % rows
    piece = {
        name: np.concatenate(blocks)[local] if len(blocks) > 1 else blocks[0][local]
        for name, blocks in zip(arrays, read, strict=True)
    }
    return piece | {"index": np.concatenate(positions)[local].astype(np.int64)}


def _read_ahead(
    plan: Iterator[Window], arrays: Mapping[str, Any], rows: int, samples: int
) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(1) as reader:
        upcoming = None
        for window in plan:
            following = reader.submit(_read, window, arrays, rows, samples)
            if upcoming is not None:
                yield upcoming.result()
            upcoming = following
        if upcoming is not None:
            yield upcoming.result()


def _cut(pieces: Iterator[dict[str, Any]], batch_size: int) -> Iterator["dict[str, torch.Tensor]"]:
    """Cut windows into batches; what is left of one window begins the next batch."""
    torch = import_torch()
    rest: dict[str, Any] = {}
    for piece in pieces:
        pool = {
            name: np.concatenate([rest[name], values]) if rest else values
            for name, values in piece.items()
        }
        whole = len(pool["index"]) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            yield {
                name: torch.from_numpy(values[start : start + batch_size])
                for name, values in pool.items()
            }
        rest = {name: values[whole:] for name, values in pool.items()}
    if rest and len(rest["index"]):
        yield {name: torch.from_numpy(values) for name, values in rest.items()}


def check_batch_size(batch_size: Any) -> None:
    """Refuse what can't be a number of samples.

    Raises
    ------
    UsageError
        It is not a whole number above zero.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        message = f"batch_size: expected a whole number above zero, got {batch_size!r}; correct it"
        raise UsageError(message)


def import_torch() -> Any:
    """Import torch, or say which extra to install."""
    try:
        import torch
    except ImportError as error:
        message = "torch: not installed; run pip install 'scibench-data[train]'"
        raise RequirementError(message) from error
    return torch


def make_source(dataset: xr.Dataset, rule: SplitRule, names: tuple[str, ...]) -> Source:
    """Split a dataset by its descriptor's rule and name what its batches hold.

    Raises
    ------
    IntegrityError
        The store lacks the rule's group or a named array.
    UsageError
        There are too few groups for a part to get one.
    """
    if rule.group not in dataset.variables:
        message = (
            f"split by {rule.group!r}: no such coordinate in the store; correct the split rule"
        )
        raise IntegrityError(message)
    splits = split(dataset[rule.group].to_numpy(), rule)
    empty = [name for name, part in splits.items() if not len(part)]
    if empty:
        count = len(np.unique(dataset[rule.group].to_numpy()))
        message = (
            f"split {', '.join(empty)}: {count} groups of {rule.group!r} leave it empty; "
            "take more samples"
        )
        raise UsageError(message)
    return Source(dataset=dataset, splits=splits, names=names)


def torch_dataset(source: Source, split: str, batch_size: int, *, seed: int = 0) -> Any:
    """Return a `torch.utils.data.IterableDataset` of whole batches.

    Pass it to a DataLoader with ``batch_size=None``, or iterate over it. ``train`` is shuffled
    anew in every epoch; call ``set_epoch(n)`` to choose the epoch. In a DataLoader each worker
    gives its share of the batches.

    Raises
    ------
    NotFoundError
        No such split.
    UsageError
        `batch_size` is not a number above zero.
    """
    check_batch_size(batch_size)  # fail now, not in a worker
    import_torch()
    from torch.utils.data import IterableDataset, get_worker_info

    source._indices(split)  # noqa: SLF001  (the same)

    class Batches(IterableDataset["dict[str, torch.Tensor]"]):
        """Whole batches of one split."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            """Choose the epoch whose order the next iteration has."""
            self.epoch = epoch

        def __iter__(self) -> Iterator["dict[str, torch.Tensor]"]:
            worker = get_worker_info()
            number, of = (worker.id, worker.num_workers) if worker else (0, 1)
            batches = source.batches(
                split, batch_size, shuffle=split == "train", seed=seed, epoch=self.epoch
            )
            self.epoch += 1
            yield from (batch for i, batch in enumerate(batches) if i % of == number)

    return Batches()
