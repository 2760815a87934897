"""Write the files of a store by Dask: one task for each, in threads or on the workers of a cluster.

A task gets a file's values in pieces, which are packed, hashed and written one after the other and
never put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from scibench_data.storing import cluster
from scibench_data.storing.manifest import GROUP
from scibench_data.storing.shard import Grid, Written, write_shard
from scibench_data.storing.staging import Staging

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr
    from dask.delayed import Delayed

    from scibench_data.progress import Task

_UNFLUSHED = 8  # files that wait for the disk at most: they stay open [1]


def write_files(
    dataset: xr.Dataset,
    grids: Mapping[str, Grid],
    staging: Staging,
    *,
    done: Container[str],
    jobs: int,
    scheduler: str,
    task: Task,
) -> list[Written]:
    """Write every file that is not `done`, on `jobs` threads or on a cluster; `task` is told.

    All work has ended when this returns or raises: nothing is written after the lock is given up.

    Raises
    ------
    ScibenchError
        The dataset has not what it promises.
    SpaceError
        The disk refuses.
    """
    folder = staging.folder
    write: Callable[..., Any] = functools.partial(write_shard, folder=folder)
    if scheduler:
        write = functools.partial(_write_and_finish, staging=staging)
    tasks = _tasks(dataset, grids, done, write)
    sizes = {write.key: size for write, size in tasks.items()}
    total = sum(grid.size(index) for grid in grids.values() for index in range(grid.files))
    written = total - sum(sizes.values())
    task.update(written, total)

    def count(key: Any) -> None:
        nonlocal written
        written += sizes.get(key, 0)
        task.update(written)

    if scheduler:
        return cluster.compute(list(tasks), scheduler, count)
    return _compute(tasks, staging, jobs, count)


def _write_and_finish(
    values: Sequence[npt.NDArray[Any]], path: str, grid: Grid, index: int, *, staging: Staging
) -> Written:
    """Write, flush and enter one file: a task that can run in any process."""
    return staging.finish(write_shard(values, path, grid, index, folder=staging.folder))


def _tasks(
    dataset: xr.Dataset,
    grids: Mapping[str, Grid],
    done: Container[str],
    write: Callable[..., Any],
) -> dict[Delayed, int]:
    """Return a task for each file that isn't done, and the bytes it holds."""
    from dask.delayed import delayed

    tasks = {}
    for name, grid in grids.items():
        variable = dataset.variables[name].to_base_variable()
        rows = {dim: -1 if axis else grid.piece for axis, dim in enumerate(variable.dims)}
        pieces = variable.chunk(rows).data.to_delayed().ravel().tolist()
        each = -(-grid.shard // grid.piece)
        for index in range(grid.files):
            path = f"{GROUP}/{name}/{grid.key(index)}"
            if path not in done:
                values = pieces[index * each : (index + 1) * each]
                file = delayed(write, pure=False)(values, path, grid, index)
                tasks[file] = grid.size(index)
    return tasks


def _compute(
    tasks: Mapping[Delayed, int], staging: Staging, jobs: int, count: Callable[[Any], None]
) -> list[Written]:
    """Run the tasks in threads; another one flushes what they wrote, and they needn't wait."""
    from dask.base import compute
    from dask.callbacks import Callback

    keys = {file.key for file in tasks}
    flushed: list[Future[Written]] = []
    with ThreadPoolExecutor(1) as flushing, ThreadPoolExecutor(jobs) as pool:

        def ended(key: Any, result: Any, *_: Any) -> None:
            if key in keys:
                flushed.append(flushing.submit(staging.finish, result))
                count(key)
                if len(flushed) > _UNFLUSHED:
                    flushed[-1 - _UNFLUSHED].result()  # a full disk is met soon, too

        with Callback(posttask=ended):
            compute(*tasks, scheduler=pool)
        return [file.result() for file in flushed]
