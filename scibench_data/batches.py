"""A split's batches as torch has datasets: endless in epochs, resumable, shared out to workers."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from scibench_data.errors import UsageError
from scibench_data.loader import Source, check_batch_size
from scibench_data.provenance import digest
from scibench_data.sampling import Order, Shuffle, split_digest


class Batches(IterableDataset[dict[str, Tensor]]):
    """Whole batches of one split.

    Iterate over it, or pass it to a DataLoader with ``batch_size=None``: the batches and their
    order are the same for any number of workers. Each pass is an epoch, and the next pass the next
    one; under `torch.distributed` each rank has its own share of every epoch, all of one length.
    Plain iteration reads ahead in threads, so workers are worth their cost only where transforms
    hold Python.

    Parameters
    ----------
    shuffle
        As `Source.plan` takes it; by default only ``train`` is shuffled.
    rank, ranks
        Which of how many processes this is; by default as `torch.distributed` has it.

    Raises
    ------
    NotFoundError
        No such split.
    UsageError
        `batch_size` is not a number above zero, or this store can't be shuffled so.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool | Shuffle | None = None,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        check_batch_size(batch_size)  # fail now, not in a worker
        grouped = distributed.is_available() and distributed.is_initialized()
        self._source = source
        self._split = split
        self._batch_size = int(batch_size)
        self._order: Order = {
            "shuffle": split == "train" if shuffle is None else shuffle,
            "seed": seed,
            "rank": rank if rank is not None else distributed.get_rank() if grouped else 0,
            "ranks": ranks or (distributed.get_world_size() if grouped else 1),
        }
        samples = len(source.plan(split, self._batch_size, **self._order).order)
        self._length = math.ceil(samples / self._batch_size)
        self.epoch = 0
        self._batch = 0

    def __len__(self) -> int:
        """Batches of this rank's whole epoch."""
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass has, from its first batch on."""
        self.epoch, self._batch = epoch, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        first, size = self._batch, self._batch_size
        order: Order = {**self._order, "epoch": self.epoch}
        plan = self._source.plan(self._split, size, **order)
        mine = plan.after(first * size).every(number, of, size)
        epoch = self.epoch
        for count, batch in enumerate(self._source.read(mine, size)):
            self.epoch, self._batch = epoch, first + number + count * of + 1
            yield batch
        self.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration is: `load_state_dict` goes on with the very next batch."""
        return {"epoch": self.epoch, "batch": self._batch, "order": self._order_digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another iteration of the same batches was.

        Raises
        ------
        UsageError
            The state is of another split, seed, batch size, rank or kind of shuffle.
        """
        if state.get("order") != self._order_digest():
            message = (
                "state: of batches of another split, seed, batch size, shuffle or rank; "
                "make the batches as they were when it was taken"
            )
            raise UsageError(message)
        self.epoch, self._batch = int(state["epoch"]), int(state["batch"])

    def _order_digest(self) -> str:
        samples = split_digest({self._split: self._source.indices(self._split)})
        return digest({"samples": samples, "batch_size": self._batch_size, **self._order})
