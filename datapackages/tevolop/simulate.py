"""Simulate the earthquakes of a region by a space-time ETAS model, byte for byte the same.

The epidemic-type aftershock sequence model (Ogata 1998, doi:10.1023/A:1003403601725) is a
self-exciting point process: every earthquake, whatever made it, triggers others. The rate at time
t and place x, given all earthquakes i before t, is::

    lambda(t, x) = mu(x) + sum_i k(m_i) g(t - t_i) f(x - x_i; m_i)

    k(m)    = A 10^(alpha (m - Mc))                       earthquakes triggered on average
    g(t)    ~ (t + c)^(-p), 0 < t < T                     Omori and Utsu
    f(r; m) ~ (r^2 + D 10^(gamma (m - Mc)))^(-q)          farther from larger earthquakes

and magnitudes follow Gutenberg and Richter, cut at `MAX_MAGNITUDE`. It is simulated generation by
generation: background earthquakes first, then those that they trigger, and so on. Nothing is
triggered from or into the outside of the region, nor after `TRIGGERING` days: who has the catalogue
and the parameters (``truth/``) knows the rate exactly.

Every decade of background earthquakes has its own random numbers, and its aftershocks are followed
to their end before the record is cut: a longer record begins with the same earthquakes. Times,
places and magnitudes are rounded to the digits of the file *before* they trigger anything.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Integers: TypeAlias = npt.NDArray[np.int64]

WEST, NORTH, COLUMNS, ROWS = -120, 36, 60, 40  # of the grid; pixels of 0.1 degree
START = datetime(1950, 1, 1, tzinfo=UTC)
EARLY = 3  # days before the first fortnight: 25,567 days of the original are 3 + 1,826 x 14
DAY = 86_400_000  # [ms]

BACKGROUND = 1.2  # earthquakes a day above `MAGNITUDE` that nothing triggered
OFF_FAULT = 0.1  # share of them that lies anywhere, not at a fault
ACROSS = 0.05  # standard deviation of the others from their fault [degree]
MAGNITUDE, MAX_MAGNITUDE = 2.0, 7.6
B = 0.9  # decades of earthquakes for each magnitude
BRANCHING = 0.75  # earthquakes that one triggers, on average over magnitudes and the plane
ALPHA = 0.8  # decades of triggered earthquakes for each magnitude
C, P, TRIGGERING = 0.1, 1.05, 3652.0  # [d], [1], [d]
D, GAMMA, Q = 0.06, 0.9, 1.6  # [km^2], decades of area for each magnitude, [1]
KILOMETRES, LATITUDE_SCALE = 111.19, 0.829  # of a degree; the cosine of 34 degrees

_DECADE = 3652  # days of background earthquakes that share their random numbers
_BEFORE = 2  # decades before the record: by then the rate has settled
_LN10 = 2.302585092994046

FAULTS = (  # from (longitude, latitude) to, and the background rate along it [1]
    ((-119.9, 35.9), (-118.0, 34.75), 5.0),
    ((-118.0, 34.75), (-116.6, 34.0), 4.0),
    ((-116.6, 34.0), (-115.4, 32.9), 6.0),
    ((-117.5, 34.1), (-116.0, 32.8), 4.0),
    ((-117.0, 33.6), (-115.6, 32.4), 3.0),
    ((-116.9, 34.9), (-116.1, 34.1), 4.0),
    ((-118.6, 35.0), (-117.6, 35.6), 3.0),
    ((-117.9, 35.9), (-117.6, 35.3), 4.0),
    ((-118.7, 34.3), (-118.2, 34.2), 2.0),
    ((-118.4, 33.8), (-117.9, 33.4), 1.5),
    ((-119.6, 34.4), (-118.9, 34.35), 1.5),
    ((-115.6, 33.1), (-115.3, 32.3), 4.0),
)
"""Twelve straight segments, loosely after the large faults of Southern California."""

HEADER = (
    "time,latitude,longitude,depth,mag,magType,nst,gap,dmin,rms,net,id,updated,place,type,"
    "horizontalError,depthError,magError,magNst,status,locationSource,magSource"
)
"""Of a CSV that ComCat gives."""

FAULT_GROUPS = "pix_faults_SmallJan21.csv"
LOCATIONS = "ValidationEARTHQN-Transformer3"
"""The original's names of its files."""

SINGLE, GROUPED = 7.1, 34.1  # earthquakes above 3.29 of an active place, and of its 3 x 3, in
CUT_DAYS = 25_567  # so many days


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first fortnights stay the same however many there are.

    Parameters
    ----------
    fortnights
        Length of the record, from 1950-01-04 on; three days come before.
    seed
        Chooses the earthquakes; faults and rates are always the same.

    Raises
    ------
    UsageError
        A value out of range.
    """

    fortnights: int = 1826
    seed: int = 3

    def __post_init__(self) -> None:
        bounds = {"fortnights": (1, 100_000), "seed": (0, (1 << 63) - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and low <= value <= high):
                message = f"tevolop: {name}={value!r}; give an integer from {low} to {high}"
                raise UsageError(message)

    @property
    def days(self) -> int:
        """Length of the record. [d]"""
        return EARLY + 14 * self.fortnights

    @property
    def catalogue(self) -> str:
        """Name of the catalogue: the first and the last day of the record are part of it."""
        last = START + timedelta(days=self.days - 1)
        return f"catalog_{START:%Y-%m-%d}_{last:%Y-%m-%d}.csv"


def files(**parameters: int) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    catalogue = Parameters(**parameters).catalogue
    return (catalogue, FAULT_GROUPS, LOCATIONS, "truth/etas.csv", "truth/faults.csv")


def simulate(path: str, output: Path, **parameters: int) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file with these `Parameters`, or one of them is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)
    if path not in names:
        message = f"tevolop: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    if path == FAULT_GROUPS:
        text = _fault_groups()
    elif path == LOCATIONS:
        text = _locations(asked)
    elif path == "truth/etas.csv":
        text = _parameters()
    elif path == "truth/faults.csv":
        text = _faults()
    else:
        text = _comcat(asked)
    output.write_bytes(text.encode("ascii"))


# ---- the process


@dataclass(frozen=True)
class _Quakes:
    """Earthquakes in the units of the file, as integers; each array has shape (n,)."""

    time: Integers  # [ms] since the start of the record
    latitude: Integers  # [1e-4 degree]
    longitude: Integers  # [1e-4 degree]
    magnitude: Integers  # [0.01]
    depth: Integers  # [10 m]

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "_Quakes":
        """Choose some of them."""
        return _Quakes(
            self.time[rows],
            self.latitude[rows],
            self.longitude[rows],
            self.magnitude[rows],
            self.depth[rows],
        )


def _join(parts: list[_Quakes]) -> _Quakes:
    return _Quakes(
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.latitude for part in parts]),
        np.concatenate([part.longitude for part in parts]),
        np.concatenate([part.magnitude for part in parts]),
        np.concatenate([part.depth for part in parts]),
    )


@functools.lru_cache(maxsize=2)
def _quakes(parameters: Parameters) -> _Quakes:
    """Return all earthquakes of the record, in order of time."""
    days = parameters.days
    decades = range(-_BEFORE, -(-days // _DECADE))
    everything = _join([_family(parameters.seed, decade) for decade in decades])
    inside = (everything.time >= 0) & (everything.time < days * DAY)
    kept = everything.take(inside)
    order = np.argsort(kept.longitude, kind="stable")
    order = order[np.argsort(kept.latitude[order], kind="stable")]
    order = order[np.argsort(kept.time[order], kind="stable")]
    return kept.take(order)


def _family(seed: int, decade: int) -> _Quakes:
    """Return the background earthquakes of a decade and all that came of them."""
    generations = [_background(seed, decade)]
    while generations[-1].time.size:
        generations.append(_triggered(generations[-1], (seed, decade, len(generations))))
    return _join(generations)


def _background(seed: int, decade: int) -> _Quakes:
    """Draw the background: uniform in time, along the faults and a little beside them."""
    key = ("tevolop", seed, "background", decade)
    n = int(_poisson(np.full(1, BACKGROUND * _DECADE), *key, "number")[0])
    time, along, off, east, north = exact.uniform(5 * n, *key).reshape(5, n)
    across_x, across_y = ACROSS * exact.normal(2 * n, *key, "across").reshape(2, n)
    start, stop, weight = _segments()
    bounds = np.array(_running(weight))
    choice = exact.uniform(n, *key, "fault") * bounds[-1]
    fault = np.minimum(np.searchsorted(bounds, choice, side="right"), len(weight) - 1)
    place = start[fault] + (stop - start)[fault] * along[:, None]
    anywhere = off < OFF_FAULT
    longitude = np.where(anywhere, WEST + 0.1 * COLUMNS * east, place[:, 0] + across_x)
    latitude = np.where(anywhere, NORTH - 0.1 * ROWS * north, place[:, 1] + across_y)
    return _rounded(_DECADE * (decade + time), latitude, longitude, key)


def _segments() -> tuple[Array, Array, Array]:
    """Return ends of the faults, shape (fault, 2), and their background rates, shape (fault,)."""
    start = np.array([fault[0] for fault in FAULTS])
    stop = np.array([fault[1] for fault in FAULTS])
    x, y = (stop - start).T
    return start, stop, np.array([fault[2] for fault in FAULTS]) * np.sqrt(x * x + y * y)


def _running(values: Array) -> list[float]:
    """Sum from the left, in this order."""
    sums, total = [], 0.0
    for value in values.tolist():
        total += value
        sums.append(total)
    return sums


def _triggered(parents: _Quakes, place: tuple[int, int, int]) -> _Quakes:
    """Draw what earthquakes trigger, by inversion of k, g and f; what leaves the region is lost."""
    key = ("tevolop", place[0], "triggered", *place[1:])
    above = parents.magnitude / 100.0 - MAGNITUDE
    number = _poisson(productivity() * exact.exp(_LN10 * ALPHA * above), *key, "number")
    parent = np.repeat(np.arange(number.size), number)
    n = parent.size
    later, farther, towards = exact.uniform(3 * n, *key).reshape(3, n)
    # G(t) = (1 - (1 + t / c)^(1 - p)) / (1 - (1 + T / c)^(1 - p))
    whole = 1.0 - _power(1.0 + TRIGGERING / C, 1.0 - P)
    delay = C * (exact.exp(exact.log(1.0 - whole * later) / (1.0 - P)) - 1.0)
    # F(r) = 1 - (1 + r^2 / (D 10^(gamma (m - Mc))))^(1 - q)
    area = D * exact.exp(_LN10 * GAMMA * above)[parent]
    distance = np.sqrt(area * (exact.exp(exact.log(1.0 - farther) / (1.0 - Q)) - 1.0))
    sine, cosine = exact.sincos(towards)
    latitude = parents.latitude[parent] / 1e4 + distance * sine / KILOMETRES
    longitude = parents.longitude[parent] / 1e4 + distance * cosine / (KILOMETRES * LATITUDE_SCALE)
    return _rounded(parents.time[parent] / DAY + delay, latitude, longitude, key)


def productivity() -> float:
    """Return A: earthquakes that one of the smallest magnitude triggers.

    BRANCHING is the mean of A 10^(ALPHA (m - Mc)) over the magnitudes.
    """
    span = MAX_MAGNITUDE - MAGNITUDE
    left = B - ALPHA
    numbers = 1.0 - _power(10.0, -B * span)
    return BRANCHING * numbers * left / (B * (1.0 - _power(10.0, -left * span)))


def _rounded(days: Array, latitude: Array, longitude: Array, key: tuple[int | str, ...]) -> _Quakes:
    """Round to the digits of the file, give magnitudes and depths, and drop what lies outside."""
    n = days.size
    share = 1.0 - _power(10.0, -B * (MAX_MAGNITUDE - MAGNITUDE))
    above = -exact.log(1.0 - share * exact.uniform(n, *key, "magnitude")) / (B * _LN10)
    depth = 2.0 + 14.0 * exact.uniform(n, *key, "depth")
    quakes = _Quakes(
        time=np.floor(days * DAY).astype(np.int64),
        latitude=np.floor(latitude * 1e4).astype(np.int64),
        longitude=np.floor(longitude * 1e4).astype(np.int64),
        magnitude=np.rint((MAGNITUDE + above) * 100.0).astype(np.int64),
        depth=np.rint(depth * 100.0).astype(np.int64),
    )
    row, column = _pixel(quakes)
    return quakes.take((row >= 0) & (row < ROWS) & (column >= 0) & (column < COLUMNS))


def _pixel(quakes: _Quakes) -> tuple[Integers, Integers]:
    """Return row and column: row 0 ends at 36 N, column 0 begins at 120 W."""
    return (NORTH * 10_000 - 1 - quakes.latitude) // 1000, (
        quakes.longitude - WEST * 10_000
    ) // 1000


def _power(base: float, exponent: float) -> float:
    return float(exact.exp(exact.log(base) * exponent))


def _poisson(mean: Array, *key: int | str) -> Integers:
    """Draw Poisson numbers: by inversion below 12, above by Cornish and Fisher's expansion.

    The expansion, floor(mean + sqrt(mean) z + (z^2 - 1) / 6 + 1/2), has the right mean, a variance
    that is 1.4 % too large at 12 and less above, and no loop whose length depends on the draw.
    """
    u = exact.uniform(mean.size, *key)
    z = exact.normal(mean.size, *key, "normal")
    expanded = np.floor(mean + np.sqrt(mean) * z + (z * z - 1.0) / 6.0 + 0.5)
    number = np.where(mean < 12.0, 0.0, np.maximum(expanded, 0.0)).astype(np.int64)
    rows = np.flatnonzero(mean < 12.0)
    term = exact.exp(-mean[rows])
    below = term  # the probability of at most `count`
    count = 0
    while rows.size and count < 100:
        rest = u[rows] >= below
        rows, term, below = rows[rest], term[rest], below[rest]
        count += 1
        number[rows] = count
        term = term * mean[rows] / count
        below = below + term
    return number


# ---- the files


def _comcat(parameters: Parameters) -> str:
    """Write the catalogue as ComCat does; what a simulation can't know stays empty."""
    quakes = _quakes(parameters)
    lines = [HEADER]
    columns = (quakes.time, quakes.latitude, quakes.longitude, quakes.depth, quakes.magnitude)
    for number, (time, *rest) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        when = START + timedelta(milliseconds=time)
        latitude, longitude, depth, magnitude = map(_decimal, rest, (10_000, 10_000, 100, 100))
        lines.append(
            f"{when:%Y-%m-%dT%H:%M:%S}.{time % 1000:03d}Z,{latitude},{longitude},{depth},"
            f"{magnitude},mw,,,,,sim,sim{number + 1:08d},,,earthquake,,,,,,,"
        )
    return "\n".join(lines) + "\n"


def _decimal(value: int, unit: int) -> str:
    """Write `value` / `unit`, a power of ten, with all its digits."""
    whole, part = divmod(abs(value), unit)
    return f"{'-' if value < 0 else ''}{whole}.{part + unit}".replace(".1", ".", 1)


def _fault_groups() -> str:
    """Label each pixel with its nearest fault, from 1, and with 0 farther than 0.25 degrees."""
    y, x = np.meshgrid(
        NORTH - 0.1 * (np.arange(ROWS) + 0.5),
        WEST + 0.1 * (np.arange(COLUMNS) + 0.5),
        indexing="ij",
    )
    start, stop, _ = _segments()
    nearest, label = np.full((ROWS, COLUMNS), 0.25 * 0.25), np.zeros((ROWS, COLUMNS), np.int64)
    for number, ((ax, ay), (bx, by)) in enumerate(zip(start, stop, strict=True)):
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)
        along = np.minimum(np.maximum(along, 0.0), 1.0)
        east, north = x - ax - along * dx, y - ay - along * dy
        squared = east * east + north * north
        label = np.where(squared < nearest, number + 1, label)
        nearest = np.minimum(nearest, squared)
    return "".join(",".join(map(str, row)) + "\n" for row in label.tolist())


def _locations(parameters: Parameters) -> str:
    """Divide the active places, counted in row-major order, 4 to 1 at random.

    The original's three lines: share of the validation places, numbers of training and validation
    places; training places; validation places.
    """
    quakes = _quakes(parameters)
    row, column = _pixel(quakes.take(quakes.magnitude > 329))
    count = np.bincount(row * COLUMNS + column, minlength=ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    places = int(np.count_nonzero(active(count, parameters.days)))
    chance = exact.words(places, "tevolop", parameters.seed, "locations")
    order = np.argsort(chance, kind="stable").tolist()
    training = -(-4 * places // 5)
    lists = (order[:training], order[training:])
    lines = [f"0.2,{training},{places - training}", *(",".join(map(str, part)) for part in lists)]
    return "\n".join(lines) + "\n"


def active(count: Integers, days: int) -> npt.NDArray[np.bool_]:
    """Choose places by the earthquakes above 3.29 in `days`, there or in the 3 x 3 around them.

    The original's rule, whose bounds are for 25,567 days. At the border the 3 x 3 pixels lie inside
    the grid, not around the place.

    Parameters
    ----------
    count
        Shape (row, column).
    """
    padded = np.pad(count, 1)
    grouped = np.zeros_like(count)
    for y in range(3):
        for x in range(3):
            grouped += padded[y : y + ROWS, x : x + COLUMNS]
    inner = np.pad(grouped[1:-1, 1:-1], 1, mode="edge")
    share = days / CUT_DAYS
    chosen: npt.NDArray[np.bool_] = (count >= SINGLE * share) | (inner >= GROUPED * share)
    return chosen


def _parameters() -> str:
    """Write what the rate is made of, one value a line."""
    rows = (
        ("background", BACKGROUND, "1/d", "background earthquakes of the region"),
        ("off_fault", OFF_FAULT, "1", "share of the background that is uniform over the region"),
        ("across", ACROSS, "degree", "standard deviation of the rest from its fault"),
        ("magnitude", MAGNITUDE, "1", "smallest magnitude Mc"),
        ("max_magnitude", MAX_MAGNITUDE, "1", "largest magnitude"),
        ("b", B, "1", "Gutenberg-Richter"),
        ("productivity", productivity(), "1", "A"),
        ("alpha", ALPHA, "1", "growth of productivity with magnitude"),
        ("c", C, "d", "Omori-Utsu"),
        ("p", P, "1", "Omori-Utsu"),
        ("triggering", TRIGGERING, "d", "end of triggering T"),
        ("d", D, "km2", "area at Mc"),
        ("gamma", GAMMA, "1", "growth of the area with magnitude"),
        ("q", Q, "1", "decay with distance"),
        ("kilometres", KILOMETRES, "km", "a degree of latitude"),
        ("latitude_scale", LATITUDE_SCALE, "1", "a degree of longitude over one of latitude"),
    )
    lines = ["name,value,units,description", *(",".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def _faults() -> str:
    """Write the segments that the background lies along."""
    lines = ["longitude_1,latitude_1,longitude_2,latitude_2,rate"]
    lines += [f"{a[0]},{a[1]},{b[0]},{b[1]},{rate}" for a, b, rate in FAULTS]
    return "\n".join(lines) + "\n"
