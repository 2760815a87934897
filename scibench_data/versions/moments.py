"""What the values of arrays are like: extremes, mean, deviation, share of NaN, in one pass.

Every block is read once, by Dask, and its moments are joined with those of the others. It describes
values; it never decides whether they are right.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scibench_data.progress import SILENT, Progress, Task

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What an array's values are like.

    Attributes
    ----------
    count
        Values, NaN included. [1]
    nan
        Share of NaN. [1]
    min, max, mean, std
        Of the others, in the array's units; None where there are none, or they are no numbers.
        ``std`` divides by their count, not by one less.
    """

    count: int
    nan: float = 0.0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Moments:
    """Of a block: values, NaN among them, extremes, and mean and squared deviations of the rest."""

    count: int
    nan: int = 0
    low: float | None = None
    high: float | None = None
    mean: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "_Moments") -> "_Moments":
        """Join two blocks without going back to their values.

        Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, equation 1.5.
        """
        mine, theirs = self.count - self.nan, other.count - other.nan
        if not mine or not theirs:
            filled = self if mine else other
            return dataclasses.replace(
                filled, count=self.count + other.count, nan=self.nan + other.nan
            )
        total, apart = mine + theirs, other.mean - self.mean
        lows = [each.low for each in (self, other) if each.low is not None]
        highs = [each.high for each in (self, other) if each.high is not None]
        return _Moments(
            count=self.count + other.count,
            nan=self.nan + other.nan,
            low=min(lows, default=None),
            high=max(highs, default=None),
            mean=self.mean + apart * (theirs / total),
            squares=self.squares + other.squares + apart * apart * mine * (theirs / total),
        )

    @property
    def statistics(self) -> Statistics:
        numbers = self.count - self.nan
        if self.low is None:
            return Statistics(count=self.count, nan=self.nan / self.count if self.count else 0.0)
        return Statistics(
            count=self.count,
            nan=self.nan / self.count,
            min=self.low,
            max=self.high,
            mean=self.mean,
            std=(self.squares / numbers) ** 0.5,
        )


def _moments(values: "npt.NDArray[Any]") -> _Moments:
    import numpy as np

    if values.dtype.kind not in "biuf" or not values.size:
        return _Moments(count=values.size)
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    numbers = values[~np.isnan(values)] if values.dtype.kind == "f" else values.ravel()
    nan = values.size - numbers.size
    if not numbers.size:
        return _Moments(count=values.size, nan=nan)
    with np.errstate(all="ignore"):  # infinities make infinities, and that is told
        exact = numbers.astype(np.float64)
        mean = float(exact.mean())
        exact -= mean
        squares = float(np.dot(exact, exact))
    low, high = numbers.min().item(), numbers.max().item()
    return _Moments(count=values.size, nan=nan, low=low, high=high, mean=mean, squares=squares)


def describe_values(
    arrays: "xr.Dataset", jobs: int = 2, progress: Progress = SILENT
) -> dict[str, Statistics]:
    """Return the statistics of every array and coordinate, each block read once.

    Blocks are joined in their order, so that the numbers are the same however many run at once.

    Examples
    --------
    >>> import xarray as xr
    >>> describe_values(xr.Dataset({"a": ("x", [1.0, 3.0, float("nan")])}))["a"].mean
    2.0
    """
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    work = {
        str(name): [delayed(_moments, pure=False)(block) for block in _blocks(variable)]
        for name, variable in arrays.variables.items()
    }
    keys = {each.key for blocks in work.values() for each in blocks}
    with progress.task("statistics", len(keys), "blocks") as task:
        count = _Counter(keys, task)
        with Callback(posttask=count), ThreadPoolExecutor(jobs) as pool:
            (found,) = compute(work, scheduler=pool)
    return {name: sum(parts, _Moments(count=0)).statistics for name, parts in found.items()}


class _Counter:
    """Counts finished blocks; Dask calls it from one thread."""

    def __init__(self, keys: set[str], task: Task) -> None:
        self._keys, self._task, self._done = keys, task, 0

    def __call__(self, key: Any, *_: Any) -> None:
        self._done += key in self._keys
        self._task.update(self._done)


def _blocks(variable: "xr.Variable") -> list[Any]:
    """Return an array's parts: those of Dask, or the one that is loaded."""
    if variable.chunks is None:
        return [variable.values]
    return list(variable.data.to_delayed().ravel())
