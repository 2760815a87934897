"""Run Dask tasks on the workers of a cluster that is there already.

Start one by ``dask scheduler`` and ``dask worker``, or by dask-jobqueue under Slurm or PBS. Its
workers need the same file system under the same paths, and the same scibench-data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scibench_data.errors import NetworkError, RequirementError

if TYPE_CHECKING:
    from dask.delayed import Delayed


def compute(tasks: Sequence[Delayed], address: str, count: Callable[[Any], None]) -> list[Any]:
    """Return the tasks' results; `count` is called with the key of each task that has ended.

    Where one fails the others are still done before its error is raised, so that their work
    counts. Only an interrupt leaves what runs at that moment to end by itself.

    Raises
    ------
    RequirementError
        dask.distributed is not installed.
    NetworkError
        No scheduler answers at `address`.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        message = "dask.distributed: not installed; run pip install 'scibench-data[cluster]'"
        raise RequirementError(message) from error
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        message = f"scheduler {address}: no answer; start one with 'dask scheduler'"
        raise NetworkError(message) from error
    with client, client.as_current():
        futures = client.compute(list(tasks))
        try:
            for future in as_completed(futures):
                count(future.key)
            return list(client.gather(futures))
        finally:
            client.cancel(futures)
