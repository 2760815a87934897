"""Which samples, in which order, how many read at once: integers only, tested in microseconds."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from scibench_data.descriptor import SplitRule
from scibench_data.provenance import digest

Indices = npt.NDArray[np.int64]
Shuffle = Literal["uniform", "block"]


class Order(TypedDict, total=False):
    """What the order of one pass follows from, and which share of it one of several processes has.

    ``shuffle`` is ``"uniform"`` (every order as likely), ``"block"`` (randomly chosen blocks, the
    samples of some at a time mixed), True (the first where a store can do it, else the second) or
    False: stored order.
    """

    shuffle: bool | Shuffle
    seed: int
    epoch: int
    rank: int
    ranks: int


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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What decides how much of a dataset is read at once.

    Attributes
    ----------
    block
        Samples that can only be read together, 1 where each can be read alone. [1]
    window
        Samples held at once. A block shuffle mixes the samples of this many. [1]
    first
        Samples of the first window where each can be read alone: few, so that a pass soon gives its
        first batch, and the others come while that is worked on; 0 means no fewer. [1]
    """

    block: int
    window: int
    first: int = 0


@dataclass(frozen=True)
class Plan:
    """One pass over a split, or what is left of it.

    Attributes
    ----------
    order
        Positions of the samples in the dataset, in the order of the batches, shape (n,).
    ends
        Where each window, that is what is read at once, ends in `order`; increasing, the last is n.
    """

    order: Indices
    ends: Indices

    def windows(self) -> Iterator[Indices]:
        """Give the samples of one window after the other."""
        start = 0
        for end in self.ends.tolist():
            yield self.order[start:end]
            start = end

    def after(self, samples: int) -> "Plan":
        """Return what is left when this many samples are through."""
        ends = self.ends[self.ends > samples] - samples
        return Plan(self.order[samples:], ends)

    def every(self, number: int, of: int, batch_size: int) -> "Plan":
        """Return every `of`-th batch from batch `number` on: what one of several workers reads.

        Only the last batch of all can be short, so each worker's batches are those of the plan.
        """
        mine = np.arange(len(self.order)) // batch_size % of == number
        ends = np.unique(np.concatenate([[0], np.cumsum(mine)])[self.ends])
        return Plan(self.order[mine], ends[ends > 0])


def plan(
    indices: Indices,
    reading: Reading,
    *,
    shuffle: Shuffle | None,
    rng: np.random.Generator,
    rank: int = 0,
    ranks: int = 1,
) -> Plan:
    """Plan one pass of one rank over `indices`.

    Ranks get disjoint shares. When shuffled all are of one length, so that no rank waits for
    another's batch for ever: up to ``ranks - 1`` samples, others in every epoch, are left out. In
    stored order nothing is left out, and shares differ by one sample at most.

    Parameters
    ----------
    indices
        Samples of the split, increasing.
    shuffle
        ``"uniform"``: every order is as likely; ``"block"``: blocks in random order, and the
        samples of a window's blocks mixed, so that no block is read twice; None: stored order.
    rng
        Gives the order; the same on every rank.
    """
    if shuffle is None:
        order = np.array_split(indices, ranks)[rank]
    else:
        mixed = rng.permutation(indices)
        if shuffle == "block":
            mixed = _by_block(indices, reading.block, rng)
        share = len(indices) // ranks
        order = mixed[rank * share : (rank + 1) * share]
    ends = _ends(order, reading, 1 if shuffle == "uniform" else reading.block)
    if shuffle == "block" and len(order):
        order = np.concatenate([rng.permutation(part) for part in Plan(order, ends).windows()])
    return Plan(order, ends)


def _by_block(indices: Indices, block: int, rng: np.random.Generator) -> Indices:
    """Return the samples with their blocks in random order, in stored order within each."""
    numbers, member = np.unique(indices // block, return_inverse=True)
    place = rng.permutation(len(numbers))
    return indices[np.argsort(place[member], kind="stable")]


def _ends(order: Indices, reading: Reading, block: int) -> Indices:
    """Cut an order into windows that end where a block does."""
    if block == 1:
        ends = np.arange(reading.first or reading.window, len(order), reading.window)
    else:
        blocks = np.flatnonzero(np.diff(order // block)) + 1
        each = max(1, reading.window // block)
        ends = blocks[each - 1 :: each]
    return np.append(ends, len(order)).astype(np.int64)[: len(order) and None]
