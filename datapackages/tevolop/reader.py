"""Read earthquakes as daily and fortnightly grids, from catalogues or from grids of the original.

A catalogue is one or more CSV files as ComCat gives them, or in pycsep's columns. Their days are

* those in the name, both included, where it ends in ``_<first>_<last>.csv`` (ISO dates); several
  files may follow one another;
* else, from the day of the first earthquake on, as many whole fortnights as reach the last one.

The original (Fox et al. 2022, doi:10.3390/geohazards3020011) has one dense CSV for each quantity, a
row a day. Of either kind only what is asked for is binned or read: Dask does it in blocks of days.

A pixel is 0.1 degree wide; row 0 ends at 36 N, column 0 begins at 120 W. Earthquakes outside of the
40 x 60 pixels are left out. Checks structure (columns, numbers, days), not whether it is true.
"""

import csv
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

Array: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

WEST, NORTH, COLUMNS, ROWS = -120.0, 36.0, 60, 40
EPOCH = date(1950, 1, 1)
FORTNIGHT = 14  # [d]
BLOCK = 64  # fortnights in a task: a few MB
HISTORY = 26  # fortnights, a year: what a forecast looks back on, and the gap between two splits
SHARES = (0.64, 0.80)  # of the record, at which validation and test begin
SINGLE, GROUPED = 7.1, 34.1  # earthquakes above 3.29 of an active place, and of its 3 x 3, in
CUT_DAYS = 25_567  # so many days
LARGE = 3.29

QUANTITIES = {
    "log_energy": ("float32", "1", "magnitude of the summed energy: log10(sum 10^(1.5 m)) / 1.5"),
    "depth": ("float32", "km", "depth, weighted by energy; 0 without earthquakes"),
    "multiplicity": ("uint16", "1", "number of earthquakes"),
    "multiplicity_large": ("uint16", "1", "number of earthquakes above magnitude 3.29"),
}
_DENSE = (  # how the original's files are told apart
    ("multiplicity_large", "mag-3.29"),
    ("depth", "w_depth"),
    ("multiplicity", "n_shock"),
    ("multiplicity", "num_evts"),
    ("log_energy", ""),
)
_COMCAT = ("time", "latitude", "longitude", "depth", "mag")
_PYCSEP = ("time_string", "lat", "lon", "depth", "M")
_EVENTS = {
    "event_time": ("d", "time since 1950-01-01T00:00:00Z"),
    "event_latitude": ("degree", "latitude, north"),
    "event_longitude": ("degree", "longitude, east"),
    "event_depth": ("km", "depth"),
    "event_magnitude": ("1", "magnitude"),
}
_DAYS = re.compile(r"_(\d{4}-\d\d-\d\d)_(\d{4}-\d\d-\d\d)\.csv")
_GRID = re.compile(r"SC_(\d{4})-\d{4}\.freq-D-.*\.csv")
_FAULT_GROUPS, _LOCATIONS = "pix_faults_SmallJan21.csv", "ValidationEARTHQN-Transformer3"


def read(folder: Path) -> xr.Dataset:
    """Open the earthquakes in a folder.

    Parameters
    ----------
    folder
        Holds catalogues, or the original's ``SC_<years>.freq-D-*.csv`` (here or one folder below);
        maybe ``pix_faults_SmallJan21.csv``, ``ValidationEARTHQN-Transformer3``, ``truth/``.

    Returns
    -------
        ``log_energy``, ``depth``, ``multiplicity``, ``multiplicity_large`` (fortnight, y, x) and
        ``daily_...`` (day, y, x), lazy; ``time`` (fortnight), ``split`` (fortnight): 0 training, 1
        validation, 2 test, -1 none; ``active`` and ``scored`` (y, x). Of a catalogue also
        ``event_...`` (event). Where the files are there ``fault_group``, ``location_split`` (y, x),
        and of a simulation ``etas`` (parameter) and ``faults`` (fault, column).

    Raises
    ------
    IntegrityError
        There is nothing to read, or a file is not what it should be.
    """
    dense = sorted(path for path in folder.rglob("SC_*.csv") if _GRID.fullmatch(path.name))
    days: _Days = _Grids.open(dense) if dense else _Catalogue.open(_catalogues(folder))
    first = days.count % FORTNIGHT  # the original drops days at the start
    fortnights = days.count // FORTNIGHT
    variables = _grids(days, first, fortnights)
    split = _splits(fortnights)
    starts = days.start + first + FORTNIGHT * np.arange(fortnights, dtype=np.int64)
    variables |= {
        "time": _variable("fortnight", starts.astype(np.int32), "d", "first day, since 1950-01-01"),
        "split": _variable("fortnight", split, "1", "0 training, 1 validation, 2 test, -1 none"),
        "latitude": _variable("y", NORTH - 0.1 * (np.arange(ROWS) + 0.5), "degree", "of centres"),
        "longitude": _variable(
            "x", WEST + 0.1 * (np.arange(COLUMNS) + 0.5), "degree", "of centres"
        ),
        **_places(days, first, split, folder),
        **(days.events() if isinstance(days, _Catalogue) else {}),
        **_truth(folder / "truth"),
    }
    data = {*(f"{p}{q}" for q in QUANTITIES for p in ("", "daily_")), "etas", "faults"}
    return xr.Dataset(
        {name: variable for name, variable in variables.items() if name in data},
        {name: variable for name, variable in variables.items() if name not in data},
        {"title": "Earthquakes on a grid of 0.1 degree", "comment": days.comment},
    )


def _variable(dims: str | tuple[str, ...], values: Any, units: str, long_name: str) -> xr.Variable:
    return xr.Variable(dims, values, {"units": units, "long_name": long_name})


class _Days(Protocol):
    """Days of a record, one grid of each quantity a day."""

    @property
    def start(self) -> int:
        """First day, since 1950-01-01. [d]"""

    @property
    def count(self) -> int:
        """Number of days."""

    @property
    def comment(self) -> str:
        """What has to be said about them."""

    def block(self, name: str, first: int, last: int) -> Array:
        """Return a quantity of the days from `first` up to `last`, shape (day, ROWS, COLUMNS)."""

    def large(self, first: int, last: int) -> Integers:
        """Count the earthquakes above `LARGE` in these days, shape (ROWS, COLUMNS)."""


# ---- catalogues


def _catalogues(folder: Path) -> list[Path]:
    """Find the CSV files that may be catalogues."""
    found = [path for path in sorted(folder.glob("*.csv")) if path.name != _FAULT_GROUPS]
    if found:
        return found
    archives = sorted(path.name for path in folder.glob("*.tar.*"))
    advice = f"unpack {archives[0]} and read that folder" if archives else "get the files again"
    message = f"{folder}: expected a catalogue or SC_*.csv, found neither; {advice}"
    raise IntegrityError(message)


@dataclass(frozen=True)
class _Catalogue:
    """Earthquakes in order of time."""

    start: int
    count: int
    comment: str
    columns: tuple[Array, ...]  # as `_EVENTS`

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "_Catalogue":
        tables = [_read_catalogue(path) for path in paths]
        joined = [np.concatenate(columns) for columns in zip(*tables, strict=True)]
        time, latitude, longitude = joined[:3]
        inside = (latitude >= NORTH - 0.1 * ROWS) & (latitude < NORTH)
        inside &= (longitude >= WEST) & (longitude < WEST + 0.1 * COLUMNS)
        named = [_named_days(path) for path in paths]
        if any(span is None for span in named):
            start = math.floor(time.min())
            fortnights = -(-(math.floor(time.max()) + 1 - start) // FORTNIGHT)
            span = (start, start + FORTNIGHT * fortnights)
            comment = (
                "no days in the file names: quiet from the last earthquake to the fortnight's end"
            )
        else:
            span = _follow(paths, [span for span in named if span is not None])
            comment = ""
        early, late = np.flatnonzero(time < span[0]), np.flatnonzero(time >= span[1])
        if early.size or late.size:
            message = (
                f"{paths[0].parent}: {early.size + late.size} earthquakes outside of the days that "
                "the file names state; correct the names, or get the files again"
            )
            raise IntegrityError(message)
        order = np.flatnonzero(inside)[np.argsort(time[inside], kind="stable")]
        return cls(span[0], span[1] - span[0], comment, tuple(c[order] for c in joined))

    def events(self) -> dict[str, xr.Variable]:
        """Return the earthquakes themselves."""
        return {
            name: _variable("event", column, *about)
            for (name, about), column in zip(_EVENTS.items(), self.columns, strict=True)
        }

    @cached_property
    def _cell(self) -> Integers:
        """Day, row and column of each earthquake as one number."""
        time, latitude, longitude = self.columns[:3]
        # files have four or more decimals, and a border belongs to the pixel north or east of it
        row = np.floor(np.round((NORTH - latitude) * 10.0, 6) - 1e-9).astype(np.int64)
        column = np.floor(np.round((longitude - WEST) * 10.0, 6)).astype(np.int64)
        day = np.floor(time).astype(np.int64) - self.start
        pixel = np.clip(row, 0, ROWS - 1) * COLUMNS + np.clip(column, 0, COLUMNS - 1)
        cell: Integers = day * (ROWS * COLUMNS) + pixel
        return cell

    def _sum(self, first: int, last: int, weight: Array | None) -> Array:
        size = ROWS * COLUMNS
        day = self._cell // size
        rows = slice(*np.searchsorted(day, [first, last]))
        chosen = None if weight is None else weight[rows]
        total = np.bincount(
            self._cell[rows] - first * size, weights=chosen, minlength=(last - first) * size
        )
        return total.reshape(last - first, ROWS, COLUMNS).astype(np.float64)

    def block(self, name: str, first: int, last: int) -> Array:
        depth, magnitude = self.columns[3:]
        if name == "multiplicity":
            return self._sum(first, last, None)
        if name == "multiplicity_large":
            return self._sum(first, last, (magnitude > LARGE).astype(np.float64))
        energy = 10.0 ** (1.5 * magnitude)
        total = self._sum(first, last, energy)
        some = total > 0.0
        if name == "log_energy":
            return np.where(some, np.log10(np.where(some, total, 1.0)) / 1.5, 0.0)
        return np.where(
            some, self._sum(first, last, energy * depth) / np.where(some, total, 1), 0.0
        )

    def large(self, first: int, last: int) -> Integers:
        day, pixel = np.divmod(self._cell, ROWS * COLUMNS)
        chosen = (self.columns[4] > LARGE) & (day >= first) & (day < last)
        count = np.bincount(pixel[chosen], minlength=ROWS * COLUMNS)
        return count.reshape(ROWS, COLUMNS).astype(np.int64)


def _named_days(path: Path) -> tuple[int, int] | None:
    """Return the first day and the one after the last, where the name of a file states them."""
    match = _DAYS.search(path.name)
    if match is None:
        return None
    try:
        first, last = ((date.fromisoformat(text) - EPOCH).days for text in match.groups())
    except ValueError:
        first, last = 1, 0
    if last < first:
        message = f"{path}: no days {match[1]} to {match[2]}; name it after its first and last day"
        raise IntegrityError(message)
    return first, last + 1


def _follow(paths: Sequence[Path], spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Join the days of files that must follow one another."""
    ordered = sorted(zip(spans, paths, strict=True))
    for ((_, end), before), ((start, _), after) in itertools.pairwise(ordered):
        if start != end:
            message = (
                f"{after}: begins {start - end} days after the end of {before.name}; files must "
                "follow one another, get those that are missing"
            )
            raise IntegrityError(message)
    return ordered[0][0][0], ordered[-1][0][1]


def _read_catalogue(path: Path) -> tuple[Array, ...]:
    """Read time [d since 1950], latitude, longitude [degree], depth [km] and magnitude."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            names = next((n for n in (_COMCAT, _PYCSEP) if set(n) <= set(header)), None)
            if names is None:
                message = (
                    f"{path}: expected the columns {', '.join(_COMCAT)} of ComCat, got "
                    f"{', '.join(header)[:80]!r}; get it again"
                )
                raise IntegrityError(message)
            place = [header.index(name) for name in names]
            table = [_event(path, rows.line_num, row, place) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path}: can't be read as CSV ({error}); get it again"
        raise IntegrityError(message) from error
    values = np.array([row for row in table if row is not None], np.float64).reshape(-1, 5)
    if not len(values):
        message = f"{path}: no earthquakes in it; get it again"
        raise IntegrityError(message)
    return tuple(values.T)


def _event(
    path: Path, line: int, row: Sequence[str], place: Sequence[int]
) -> tuple[float, ...] | None:
    """Read one row; None where ComCat has no magnitude. A depth that is not given is 0."""
    try:
        time, *texts = (row[column] for column in place)
        if not texts[3]:
            return None
        latitude, longitude, depth, magnitude = (float(text or "0") for text in texts)
        moment = datetime.fromisoformat(time)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime(EPOCH.year, EPOCH.month, EPOCH.day, tzinfo=UTC)
        values = (
            since.days + (since.seconds + since.microseconds / 1e6) / 86_400.0,
            latitude,
            longitude,
            depth,
            magnitude,
        )
        if abs(latitude) > 90.0 or abs(longitude) > 360.0 or not all(map(math.isfinite, values)):
            raise ValueError(texts)  # noqa: TRY301  (told as the others are)
    except (ValueError, IndexError, OverflowError) as error:
        message = f"{path}: line {line} is not an earthquake ({error}); get it again"
        raise IntegrityError(message) from error
    return values


# ---- the original's grids


@dataclass(frozen=True)
class _Grids:
    """Dense CSV files: a header that begins with an empty cell, then ``day,2400 numbers``."""

    start: int
    count: int
    comment: str
    files: Mapping[str, Path]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "_Grids":
        years = sorted({path.name[:7] for path in paths})
        if len(years) > 1:
            message = f"{paths[0].parent}: grids of {years}; keep those of one start in a folder"
            raise IntegrityError(message)
        files: dict[str, Path] = {}
        for path in paths:
            name = next(name for name, part in _DENSE if part in path.name)
            files.setdefault(name, path)
        missing = sorted(set(QUANTITIES) - set(files))
        if missing:
            message = f"{paths[0].parent}: no grid of {', '.join(missing)}; get the files again"
            raise IntegrityError(message)
        counts = {path: _count_rows(path) for path in files.values()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{path.name} {count}" for path, count in counts.items())
            message = f"{paths[0].parent}: grids of different length ({told}); get them again"
            raise IntegrityError(message)
        start = (date(int(years[0][3:]), 1, 1) - EPOCH).days
        return cls(start, next(iter(counts.values())), "", files)

    def block(self, name: str, first: int, last: int) -> Array:
        path = self.files[name]
        with path.open("rb") as file:
            _seek_row(file, path, first)
            rows = [_parse_row(path, file.readline(), day) for day in range(first, last)]
        return np.array(rows, np.float64).reshape(-1, ROWS, COLUMNS)

    def large(self, first: int, last: int) -> Integers:
        total = np.zeros((ROWS, COLUMNS), np.int64)
        for start in range(first, last, BLOCK * FORTNIGHT):
            end = min(start + BLOCK * FORTNIGHT, last)
            total += self.block("multiplicity_large", start, end).sum(0).astype(np.int64)
        return total


def _parse_row(path: Path, line: bytes, day: int) -> list[float]:
    try:
        index, *values = line.split(b",")
        if int(index) != day or len(values) != ROWS * COLUMNS:
            raise ValueError(f"{len(values)} numbers of day {index.decode()}")  # noqa: EM102, TRY301
        return [float(value) for value in values]
    except ValueError as error:
        message = (
            f"{path}: expected {ROWS * COLUMNS} numbers of day {day}, got {error}; get it again"
        )
        raise IntegrityError(message) from error


def _count_rows(path: Path) -> int:
    """Return the number of the last row plus one, from the end of the file."""
    with path.open("rb") as file:
        if not file.readline(1 << 20).startswith(b","):
            message = f"{path}: the header does not begin with an empty cell; get it again"
            raise IntegrityError(message)
        size = file.seek(0, 2)
        file.seek(max(size - (1 << 18), 0))
        lines = file.read().splitlines()
    last = lines[-1].split(b",", 1)[0]
    if len(lines) < 2 or not last.isdigit():
        message = f"{path}: the last line is not a day; get it again"
        raise IntegrityError(message)
    return int(last) + 1


def _seek_row(file: BinaryIO, path: Path, row: int) -> None:
    """Go to the start of a row, by bisection: rows are numbered, so no index is needed."""
    file.readline()
    low, high = file.tell(), path.stat().st_size  # `row` begins in [low, high)
    while low < high:
        middle = (low + high) // 2
        file.seek(middle - 1)
        file.readline()  # to the first row that begins at or after `middle`
        start = file.tell()
        number = file.readline().split(b",", 1)[0]
        if number.isdigit() and int(number) < row:
            low = start + 1
        else:
            high = middle
    file.seek(low - 1)
    file.readline()


# ---- days to fortnights


@dataclass(frozen=True)
class _Lazy:
    """A quantity of all days, or of all fortnights, as an array that Dask cuts."""

    days: _Days
    name: str
    first: int
    length: int
    step: int  # days of a row

    ndim = 3

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(QUANTITIES[self.name][0])

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.length, ROWS, COLUMNS)

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        start, stop, _ = key[0].indices(self.length)
        low, high = self.first + self.step * start, self.first + self.step * stop
        values = self.days.block(self.name, low, high)
        if self.step > 1:
            energy = None
            if self.name == "depth":
                energy = self.days.block("log_energy", low, high)
            values = gather(self.name, values, energy, self.step)
        return values.astype(self.dtype)[(slice(None), *key[1:])]


def gather(name: str, daily: Array, log_energy: Array | None, step: int) -> Array:
    """Turn days into fortnights.

    Energies are summed, where a day without earthquakes counts as magnitude 0, as in the original:
    a fortnight without any has log10(14) / 1.5 = 0.764. Multiplicities are summed, depths averaged
    with the energies as weights.

    Parameters
    ----------
    daily
        Shape (days, y, x), whole fortnights of it.
    log_energy
        Of the same days, where `daily` are depths.
    """
    days = daily.reshape(-1, step, *daily.shape[1:])
    if name == "log_energy":
        magnitude: Array = np.log10((10.0 ** (1.5 * days)).sum(1)) / 1.5
        return magnitude
    if log_energy is None:
        total: Array = days.sum(1)
        return total
    level = log_energy.reshape(days.shape)
    weight = np.where(level != 0.0, 10.0 ** (1.5 * level), 0.0)
    sums = weight.sum(1)
    mean: Array = (weight * days).sum(1) / np.where(sums > 0.0, sums, 1.0)
    return mean


def _grids(days: _Days, first: int, fortnights: int) -> dict[str, xr.Variable]:
    """Return every quantity, of fortnights and of days."""
    variables = {}
    for name, (_, units, long_name) in QUANTITIES.items():
        for prefix, dim, start, length, step in (
            ("", "fortnight", first, fortnights, FORTNIGHT),
            ("daily_", "day", 0, days.count, 1),
        ):
            lazy = _Lazy(days, name, start, length, step)
            rows = BLOCK * FORTNIGHT // step
            meta = np.empty((0, 0, 0), lazy.dtype)
            array = da.from_array(lazy, chunks=(rows, -1, -1), name=False, meta=meta)
            variables[prefix + name] = _variable((dim, "y", "x"), array, units, long_name)
    return variables


# ---- splits and places


def _splits(fortnights: int) -> npt.NDArray[np.int32]:
    """Divide the record in time, with a gap of a year before validation and before test.

    The first year is history only: every sample has `HISTORY` fortnights before it. A record that
    is too short for three parts has none.
    """
    split = np.full(fortnights, -1, np.int32)
    starts = [HISTORY, *(math.floor(share * fortnights) for share in SHARES)]
    ends = [starts[1] - HISTORY, starts[2] - HISTORY, fortnights]
    if all(start < end for start, end in zip(starts, ends, strict=True)):
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            split[start:end] = number
    return split


def active(count: Integers, days: int) -> npt.NDArray[np.bool_]:
    """Choose places by the earthquakes above 3.29 in `days`, there or in the 3 x 3 around them.

    The original's rule, whose bounds are for 25,567 days. At the border the 3 x 3 pixels lie inside
    the grid, not around the place.

    Examples
    --------
    >>> count = np.zeros((40, 60), np.int64)
    >>> count[10, 10], count[0, 0] = 35, 8
    >>> int(active(count, 25_567).sum())
    10
    """
    padded = np.pad(count, 1)
    grouped = sum(padded[y : y + ROWS, x : x + COLUMNS] for y in range(3) for x in range(3))
    inner = np.pad(np.asarray(grouped)[1:-1, 1:-1], 1, mode="edge")
    share = days / CUT_DAYS
    chosen: npt.NDArray[np.bool_] = (count >= SINGLE * share) | (inner >= GROUPED * share)
    return chosen


def _places(
    days: _Days, first: int, split: npt.NDArray[np.int32], folder: Path
) -> dict[str, xr.Variable]:
    """Choose places, by the whole record and by the training fortnights, and read their labels."""
    chosen = active(days.large(0, days.count), days.count)
    training = np.flatnonzero(split == 0)
    scored = chosen
    if training.size:
        low, high = (first + FORTNIGHT * edge for edge in (int(training[0]), int(training[-1]) + 1))
        scored = active(days.large(low, high), high - low)
    here = {
        "active": (chosen, "chosen by the original's rule, from all days"),
        "scored": (scored, "chosen by the same rule from the training fortnights"),
    }
    variables = {
        name: _variable(("y", "x"), values.astype(np.int8), "1", long_name)
        for name, (values, long_name) in here.items()
    }
    faults, locations = (
        next(iter(sorted(folder.rglob(name))), None) for name in (_FAULT_GROUPS, _LOCATIONS)
    )
    if faults is not None:
        variables["fault_group"] = _variable(
            ("y", "x"), _integers(faults, [COLUMNS] * ROWS), "1", "group of faults"
        )
    if locations is not None:
        variables["location_split"] = _variable(
            ("y", "x"), _location_split(locations, chosen), "1", "0 training, 1 validation, -1 none"
        )
    return variables


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path}: can't be read as CSV ({error}); get it again"
        raise IntegrityError(message) from error


def _integers(path: Path, lengths: Iterable[int]) -> npt.NDArray[np.int32]:
    """Read rows of so many whole numbers each."""
    rows, expected = _rows(path), list(lengths)
    try:
        if [len(row) for row in rows] != expected:
            raise ValueError(f"{len(rows)} rows")  # noqa: EM102, TRY301
        return np.array([[int(cell) for cell in row] for row in rows], np.int32)
    except ValueError as error:
        message = (
            f"{path}: expected {len(expected)} rows of {expected[0]} whole numbers, got {error}; "
            "get it again"
        )
        raise IntegrityError(message) from error


def _location_split(path: Path, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Read which of the active places, counted in row-major order, are held out."""
    rows = _rows(path)
    places = np.flatnonzero(chosen)
    split = np.full(ROWS * COLUMNS, -1, np.int32)
    try:
        header, training, validation = rows
        parts = [np.array(part, np.int64) for part in (training, validation)]
        sizes = [int(text) for text in header[1:]]
        together = np.sort(np.concatenate(parts))
        if sizes != [len(part) for part in parts] or not np.array_equal(
            together, np.arange(len(places))
        ):
            raise ValueError(f"{header}")  # noqa: EM102, TRY301
        for number, part in enumerate(parts):
            split[places[part]] = number
    except ValueError as error:
        message = (
            f"{path}: expected share and numbers, training and validation places of "
            f"{len(places)} active ones, got {error}; get it again"
        )
        raise IntegrityError(message) from error
    return split.reshape(ROWS, COLUMNS)


# ---- the truth of a simulation


def _truth(folder: Path) -> dict[str, xr.Variable]:
    """Read the parameters and faults that a simulation was made from."""
    path = folder / "etas.csv"
    if not (path.exists() or path.is_symlink()):
        return {}
    table, faults = _rows(path)[1:], _rows(folder / "faults.csv")[1:]
    try:
        values = np.array([float(row[1]) for row in table])
        segments = np.array([[float(cell) for cell in row] for row in faults]).reshape(-1, 5)
    except (ValueError, IndexError) as error:
        message = f"{folder}: not the parameters of a simulation ({error}); get the files again"
        raise IntegrityError(message) from error
    etas = _variable("parameter", values, "1", "ETAS parameters, in the units of etas.csv")
    etas.attrs["flag_meanings"] = " ".join(row[0] for row in table)
    long_name = "longitude, latitude of both ends [degree], background rate along it"
    return {"etas": etas, "faults": _variable(("fault", "column"), segments, "1", long_name)}
