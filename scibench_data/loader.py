"""From a store to batches: what is read how, and in which order.

Small arrays are held in memory. Of a store's uncompressed arrays exactly the rows of a batch are
read, in any order; packed chunks and blocks of a Dask graph are read whole, a window of them at a
time. No work is done per sample.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
import xarray as xr

from scibench_data.descriptor import SplitRule
from scibench_data.errors import (
    IntegrityError,
    NotFoundError,
    RequirementError,
    UsageError,
    did_you_mean,
)
from scibench_data.reading import Blocks, Buffers, Chunks, Field, Intake, Reader, Resident, Rows
from scibench_data.sampling import Indices, Order, Plan, Reading, Shuffle, plan, split
from scibench_data.stored import Stored

if TYPE_CHECKING:
    import torch

RESIDENT_BYTES = 128 << 20
"""How much of a dataset's arrays is held in memory, the smallest first. [B]"""
MIXED_BYTES = 64 << 20
"""What is mixed at once where blocks are shuffled; another such window is read meanwhile. [B]"""
COPIED_BYTES = 8 << 20
"""What is read at once where each row can be: little enough to stay in a processor's cache. [B]"""
THREADS = 4  # more of them only wait for the memory [1]


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
        Lazy arrays as a store gives them, or a Dask graph over them: transforms run block by block
        while the batches before are used. The first axis of every named array counts samples.
    names
        Arrays and coordinates that a batch holds.
    spans
        Array -> rows of it in a sample. A sample of position i has rows i to i + n - 1, so that
        windows of a time series need no copy of it; splits then hold the windows' first rows. [1]
    pinned
        Batches lie where a GPU can copy them from without waiting.
    """

    dataset: xr.Dataset
    splits: Mapping[str, Indices]
    names: tuple[str, ...]
    spans: Mapping[str, int] = field(default_factory=dict)
    pinned: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in self.dataset.variables]
        if unknown:
            here = ", ".join(map(str, self.dataset.variables))
            message = f"arrays {unknown}: not in the store, which has {here}; correct the task"
            raise IntegrityError(message)
        for name, span in self.spans.items():
            last = max((int(part[-1]) for part in self.splits.values() if len(part)), default=-1)
            if name not in self.names or last + span > self.dataset[name].shape[0]:
                message = (
                    f"span of {name!r}: no {span} rows from sample {last} on; "
                    "correct spans or splits"
                )
                raise UsageError(message)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is held in memory: another process reads its own."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def sample_dim(self) -> str:
        """The axis that counts samples."""
        return str(self.dataset[self.names[0]].dims[0])

    def indices(self, name: str) -> Indices:
        """Return the samples of a split.

        Raises
        ------
        NotFoundError
            No such split.
        """
        if name not in self.splits:
            message = f"no split named {name!r}; {did_you_mean(name, self.splits)}"
            raise NotFoundError(message)
        return self.splits[name]

    @cached_property
    def _fields(self) -> dict[str, Field]:
        arrays = {name: self.dataset.variables[name] for name in self.names}
        return {
            name: Field(span=self.spans.get(name, 1), row=array.shape[1:], dtype=array.dtype)
            for name, array in arrays.items()
        }

    @cached_property
    def _readers(self) -> list[Reader]:
        """Choose how each array is read: held, by rows, by chunks or through its graph."""
        readers: list[Reader] = []
        held: dict[int, dict[str, Any]] = {}
        graphs: dict[int, dict[str, Any]] = {}
        room = RESIDENT_BYTES
        for name in sorted(self.names, key=lambda name: self.dataset.variables[name].nbytes):
            variable, span = self.dataset.variables[name], self._fields[name].span
            room -= variable.nbytes
            if room >= 0 or not variable.chunks:
                held.setdefault(span, {})[name] = variable
            elif stored := stored_of(variable):
                rows = stored.codec == "none"
                readers.append(Rows(name, stored, _threads()) if rows else Chunks(name, stored))
            else:
                graphs.setdefault(span, {})[name] = variable.data
        readers += [Resident(_load(variables), _threads()) for variables in held.values()]
        return readers + [Blocks(arrays) for arrays in graphs.values()]

    @cached_property
    def _intake(self) -> Intake:
        return Intake(
            readers=self._readers,
            fields=self._fields,
            threads=_threads(),
            eager=any(reader.block > 1 for reader in self._readers),
            buffers=Buffers(pinned=self.pinned),
        )

    def plan(self, split: str, batch_size: int, **order: Unpack[Order]) -> Plan:
        """Plan one pass over a split, or one rank's share of it.

        A block shuffle mixes `MIXED_BYTES` at a time.

        Raises
        ------
        NotFoundError
            No such split.
        UsageError
            `batch_size` is not a number above zero, or `shuffle` not what this store can do.
        """
        check_batch_size(batch_size)
        block = max(reader.block for reader in self._readers)
        sample = sum(field.size for field in self._fields.values())
        kind = _kind(order.get("shuffle", False), block)
        if kind == "block":
            block = max(reader.near for reader in self._readers)
        window = (COPIED_BYTES if block == 1 else MIXED_BYTES) // max(sample, 1)
        return plan(
            self.indices(split),
            Reading(
                block=block,
                window=max(window // batch_size, 1) * batch_size,
                first=int(batch_size),
            ),
            shuffle=kind,
            rng=np.random.default_rng([order.get("seed", 0), order.get("epoch", 0)]),
            rank=order.get("rank", 0),
            ranks=order.get("ranks", 1),
        )

    def read(self, plan: Plan, batch_size: int) -> Iterator["dict[str, torch.Tensor]"]:
        """Read what was planned with this batch size; see `batches`."""
        import_torch()
        return self._intake.batches(plan, batch_size)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle: bool | Shuffle = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> Iterator["dict[str, torch.Tensor]"]:
        """Iterate once over a split.

        What comes next is read while a batch is used. The order follows from `seed` and `epoch`
        alone; `scibench_data.sampling.Order` has the kinds of `shuffle`.

        Yields
        ------
        dict
            Name -> tensor, first axis at most `batch_size`, dtypes as stored; ``index`` holds the
            samples' positions in the dataset. Tensors are yours to keep or change. The last batch
            may be shorter.

        Raises
        ------
        NotFoundError
            No such split.
        UsageError
            `batch_size` is not a number above zero.
        """
        planned = self.plan(split, batch_size, shuffle=shuffle, seed=seed, epoch=epoch)
        return self.read(planned, batch_size)


def _threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)))


def _kind(shuffle: bool | Shuffle, block: int) -> Shuffle | None:
    if isinstance(shuffle, bool):
        best: Shuffle = "uniform" if block == 1 else "block"
        return best if shuffle else None
    if shuffle not in {"uniform", "block"} or (shuffle == "uniform" and block > 1):
        message = (
            f"shuffle={shuffle!r}: expected True, False, 'block' or, for an uncompressed store "
            "without transforms, 'uniform'; choose one of them"
        )
        raise UsageError(message)
    return shuffle


def stored_of(variable: xr.Variable) -> Stored | None:
    """Return the stored array that a variable is, whole and as it is; None for anything else."""
    stored = variable.encoding.get("stored")
    same = isinstance(stored, Stored) and stored.name == getattr(variable.data, "name", None)
    return stored if same else None


def _load(variables: Mapping[str, xr.Variable]) -> dict[str, Any]:
    """Read arrays into memory, those behind one graph together."""
    from dask.threaded import get  # by its name, "threads", dask would import distributed first

    loaded = xr.Dataset(dict(variables)).compute(scheduler=get).variables
    return {name: np.ascontiguousarray(loaded[name].values) for name in variables}


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
