"""Simulate diffuse multiple scattering of two phases of a perovskite, byte for byte the same.

In a crystal some X-rays of a monochromatic beam are scattered diffusely, in every direction. Those
that then fulfil Bragg's law for a reflection G leave on a cone about G::

    2 k.G = |G|^2,    |k| = 1 / wavelength

and each cone draws a conic on a flat detector (Nisbet et al. 2015, Acta Cryst. A71, 20-25, with the
simulator doi:10.5281/zenodo.12866; Estradiote et al. 2025, doi:10.1107/S1600576725003553). Cones of
reflections that are equivalent in a tetragonal lattice part in a monoclinic one, by about the width
of a line: that is what tells the phases apart.

The lattice and the geometry of a pattern are rounded to the six decimals of ``truth/patterns.csv``
*before* they are used. Each pattern is made from its number alone.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Integers: TypeAlias = npt.NDArray[np.integer]
Pattern: TypeAlias = npt.NDArray[np.uint8]

IMAGES = "training/data-binary.h5"
TRUTH = "truth/patterns.csv"
MONOCLINIC, TETRAGONAL = 0, 1  # the labels of the original's inference code

ROWS, COLUMNS = 487, 195  # pixels of the detector
PIXEL = 0.172  # [mm]
DISTANCE = 180.0  # from the crystal to the middle of the detector [mm]
ELEVATION = 40.0  # of the middle of the detector above the beam [degree]
WAVELENGTH = 0.9  # [Angstrom]
HIGHEST = 4  # reflections have Miller indices from -HIGHEST to HIGHEST
CHARGES = (82.0, 31.0, 8.0)  # electrons of A, B and O in a perovskite ABO3: lead; zirconium and
# titanium in equal parts; oxygen
FALL_OFF = 12.0  # of form factors with thermal motion, exp(-FALL_OFF sin^2 theta / lambda^2) [A^2]
REACH = 5.0  # standard deviations to which a line is drawn
WEAKEST = 0.02  # reflections below this share of the strongest are left out
BRIGHTEST = 30.0  # photons that make 255, at exposure 1


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first patterns stay the same however many there are.

    Parameters
    ----------
    patterns
        Number of patterns, even: half of each phase.
    seed
        Chooses lattices, orientations, exposures and photons; the atoms are always the same.
    binning
        Detector pixels that are added along each axis; 1 gives the detector's 487 x 195.
    exposure
        Photons in a pattern, as a multiple of the sample's; the grey levels follow it.

    Raises
    ------
    UsageError
        A value out of range.
    """

    patterns: int = 1000
    seed: int = 1
    binning: int = 3
    exposure: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            "patterns": (2, 1_000_000),
            "seed": (0, (1 << 63) - 1),
            "binning": (1, 8),
            "exposure": (0.01, 100.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "exposure"
            if not (whole and low <= value <= high) or (name == "patterns" and value % 2):
                kind = {"exposure": "a number", "patterns": "an even integer"}
                message = (
                    f"dms_structure: {name}={value!r}; "
                    f"give {kind.get(name, 'an integer')} from {low} to {high}"
                )
                raise UsageError(message)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a pattern."""
        return ROWS // self.binning, COLUMNS // self.binning


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    return (IMAGES, TRUTH)


def simulate(path: str, output: Path, **parameters: int | float) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file, or a parameter is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    if path == IMAGES:
        _write_images(output, asked)
    elif path == TRUTH:
        output.write_bytes(_truth(asked))
    else:
        message = f"dms_structure: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)


# ---- crystal, beam and exposure of one pattern


@dataclass(frozen=True)
class Conditions:
    """What a pattern was made with; the columns of ``truth/patterns.csv``.

    Attributes
    ----------
    label
        `MONOCLINIC` (0) or `TETRAGONAL` (1).
    a, b, c
        Edges of the cell. [Angstrom]
    beta
        Angle between a and c. [degree]
    wavelength
        [Angstrom]
    turn_x, turn_y, turn_z
        Misorientation of the crystal about the axes of the laboratory, applied in this order.
        [degree]
    width
        Standard deviation of a line: divergence, band width and mosaic spread. [mrad]
    background
        Diffuse scattering in the first row, where it is weakest. [photons per binned pixel]
    lines
        The same of the brightest line.
    """

    label: int
    a: float
    b: float
    c: float
    beta: float
    wavelength: float
    turn_x: float
    turn_y: float
    turn_z: float
    width: float
    background: float
    lines: float


def conditions(asked: Parameters, number: int) -> Conditions:
    """Draw the conditions of pattern `number`; each pair of patterns has one of each phase.

    The cells are of the size and the distortion of lead perovskites near their morphotropic phase
    boundary: tetragonal c / a from 1.01 to 1.04; the monoclinic cell is primitive, its unique axis
    b, with beta from 90.2 to 90.7 degrees and a and b apart by 0.3 to 1.0 %.
    """
    u = [float(v) for v in exact.uniform(12, "dms_structure", asked.seed, "conditions", number)]
    label = number % 2
    a = 4.0 * (1.0 + 0.01 * (u[0] - 0.5))
    apart = (0.003 + 0.007 * u[1]) * (1.0 if u[2] < 0.5 else -1.0)
    return Conditions(
        label=label,
        a=_as_written(a),
        b=_as_written(a if label == TETRAGONAL else a * (1.0 + apart)),
        c=_as_written(a * (1.01 + 0.03 * u[3])),
        beta=90.0 if label == TETRAGONAL else _as_written(90.2 + 0.5 * u[4]),
        wavelength=_as_written(WAVELENGTH * (1.0 + 0.002 * (u[5] - 0.5))),
        turn_x=_as_written(0.6 * (u[6] - 0.5)),
        turn_y=_as_written(0.6 * (u[7] - 0.5)),
        turn_z=_as_written(0.6 * (u[8] - 0.5)),
        width=_as_written(1.5 + 1.0 * u[9]),
        background=_as_written(asked.exposure * (1.5 + 2.0 * u[10])),
        lines=_as_written(asked.exposure * (6.0 + 4.0 * u[11])),
    )


def _as_written(value: float) -> float:
    """Round to six decimals: the double that reads back from the text."""
    return float(np.rint(value * 1e6)) / 1e6


# ---- reciprocal space


@functools.cache
def _miller() -> Array:
    """Miller indices of the reflections that are not too weak, shape (reflection, 3)."""
    h = np.arange(-HIGHEST, HIGHEST + 1.0)
    grid = np.stack(np.meshgrid(h, h, h, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = np.asarray(grid[(grid != 0.0).any(axis=1)])
    return np.asarray(grid[_brightness(grid) >= WEAKEST])


def _brightness(miller: Array) -> Array:
    """Brightness of the lines, 1 for the strongest: the modulus of the structure factor.

    That of the undistorted perovskite (A at the corner, B in the middle, O in the middles of the
    faces) in both phases: they differ by their lattice alone.
    """
    a, b, oxygen = CHARGES
    h, k, l = miller.T  # noqa: E741  (the third Miller index has this name)
    odd = [np.mod(sum_, 2.0) for sum_ in (h + k + l, h + k, k + l, h + l)]
    whole, *faces = [1.0 - 2.0 * each for each in odd]
    factor = a + b * whole + oxygen * (faces[0] + faces[1] + faces[2])
    s2 = (h * h + k * k + l * l) / (4.0 * 4.0 * 4.0)  # sin^2 theta / lambda^2 for an edge of 4 A
    return np.asarray(np.abs(factor) * exact.exp(-FALL_OFF * s2) / _strongest())


@functools.cache
def _strongest() -> float:
    """Modulus of the largest structure factor, that of (1, 1, 0)."""
    a, b, oxygen = CHARGES
    return (a + b - oxygen) * float(exact.exp(-FALL_OFF * 2.0 / 64.0))


def _reflections(state: Conditions) -> tuple[Array, Array]:
    """Reciprocal lattice vectors in the laboratory, shape (reflection, 3) [1/A], and brightness.

    The unturned crystal has a along x, b along y and c in the plane of x and z, near the beam.
    """
    h, k, l = _miller().T  # noqa: E741
    sine, cosine = (float(v) for v in exact.sincos(state.beta / 360.0))
    gx = h / state.a
    gy = k / state.b
    gz = (l / state.c - h / state.a * cosine) / sine
    vectors = _turn(gx, gy, gz, (state.turn_x, state.turn_y, state.turn_z))
    return np.stack(vectors, axis=1), _brightness(_miller())


def _turn(
    x: Array, y: Array, z: Array, degrees: tuple[float, float, float]
) -> tuple[Array, Array, Array]:
    """Rotate vectors about x, then y, then z."""
    (sx, cx), (sy, cy), (sz, cz) = (
        tuple(float(v) for v in exact.sincos(angle / 360.0)) for angle in degrees
    )
    y, z = cx * y - sx * z, sx * y + cx * z
    z, x = cy * z - sy * x, sy * z + cy * x
    x, y = cz * x - sz * y, sz * x + cz * y
    return x, y, z


# ---- what the detector sees


@functools.cache
def _directions(binning: int) -> Array:
    """Return unit vectors from the crystal to the pixels, shape (row, column, 3).

    The beam runs along z, x is horizontal, y points up. Columns run along x, rows upwards, so that
    the first row has the smallest angle to the beam. The detector faces the crystal.
    """
    rows, columns = ROWS // binning, COLUMNS // binning
    up = ((np.arange(rows) - 0.5 * (rows - 1)) * (PIXEL * binning))[:, None]
    across = ((np.arange(columns) - 0.5 * (columns - 1)) * (PIXEL * binning))[None, :]
    sine, cosine = (float(v) for v in exact.sincos(ELEVATION / 360.0))
    x = across + 0.0 * up
    y = (DISTANCE * sine + cosine * up) + 0.0 * across
    z = (DISTANCE * cosine - sine * up) + 0.0 * across
    length = np.sqrt(x * x + y * y + z * z)
    return np.stack([x / length, y / length, z / length], axis=-1)


@functools.cache
def _planes(binning: int) -> tuple[Array, Array, Array]:
    """Return the components of `_directions`, each of all pixels in one row of memory."""
    x, y, z = _directions(binning).reshape(-1, 3).T.copy()
    return x, y, z


def expected(state: Conditions, binning: int) -> Array:
    """Mean photons of a pattern, shape (row, column), in multiples of 1/1024.

    A line is a Gaussian in the distance of a direction from the cone; the size of a pixel adds to
    its width.
    """
    directions = _directions(binning)
    vectors, brightness = _reflections(state)
    pixel = 1e3 * PIXEL * binning / DISTANCE  # [mrad]
    width = 1e-3 * math.sqrt(state.width * state.width + pixel * pixel / 12.0)  # [rad]
    length = _length(vectors)
    unit = vectors / length[:, None]
    sine = 0.5 * state.wavelength * length  # of the Bragg angle
    slope_of_sine = np.sqrt(np.maximum(1.0 - sine * sine, 0.0))
    crossing = _crossing(directions, unit, sine, REACH * width * slope_of_sine)
    total = np.zeros(directions.shape[:2])
    x, y, z = _planes(binning)
    for n in crossing.tolist():
        # a cone's distance is the difference of sines over the slope of the sine
        slope = slope_of_sine[n] * width
        gap = x * unit[n, 0]
        gap += y * unit[n, 1]
        gap += z * unit[n, 2]
        gap -= sine[n]
        near = np.flatnonzero(np.abs(gap) < 1.001 * REACH * slope)
        off = gap[near] / slope
        near, off = near[np.abs(off) < REACH], off[np.abs(off) < REACH]
        total.ravel()[near] += brightness[n] * exact.exp(-0.5 * (off * off))
    gradient = 1.0 + 0.3 * (directions[..., 1] - directions[..., 1].min())
    mean = state.background * gradient + state.lines * total
    return np.asarray(np.rint(mean * 1024.0) / 1024.0)


def _length(vectors: Array) -> Array:
    x, y, z = vectors.T
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def _along(directions: Array, unit: Array) -> Array:
    """Cosine between directions (..., 3) and unit vectors that broadcast with them."""
    x, y, z = (directions[..., axis] * unit[..., axis] for axis in range(3))
    return np.asarray(x + y + z)


def _crossing(directions: Array, unit: Array, sine: Array, reach: Array) -> Integers:
    """Find the reflections whose lines can reach the detector, from every eighth pixel.

    A cosine changes by less than the direction, so that none is missed. Lines of back scattering
    (a sine near or above 1) are left out.
    """
    coarse = directions[::8, ::8].reshape(-1, 1, 3)
    margin = 8.0 * math.sqrt(2.0) * float(_length(directions[1:, 0] - directions[:-1, 0]).max())
    off = np.abs(_along(coarse, unit) - sine)
    return np.flatnonzero((sine < 0.99) & (off.min(axis=0) < reach + margin))


def _pattern(asked: Parameters, number: int) -> Pattern:
    """Pattern `number` in 8 bits, shape (row, column, 3): three equal channels."""
    mean = expected(conditions(asked, number), asked.binning)
    photons = _poisson(mean, asked.seed, number)
    grey = np.rint(photons * (255.0 / (BRIGHTEST * asked.exposure)))
    grey = np.minimum(grey, 255.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _poisson(mean: Array, seed: int, number: int) -> Array:
    """Draw photon counts: by inversion where few are expected, else from the normal distribution.

    From 12 photons on the Cornish-Fisher expansion gives the skewness; the variance is then high by
    1.4 % at 12 and by 0.5 % at 40.
    """
    flat = mean.ravel()
    few = flat < 12.0
    chance = exact.uniform(flat.size, "dms_structure", seed, "few photons", number)[few]
    deviate = exact.normal(flat.size, "dms_structure", seed, "many photons", number)
    root = np.sqrt(flat) * deviate
    counts = np.floor(flat + root + (deviate * deviate - 1.0) / 6.0 + 0.5)
    counts = np.maximum(counts, 0.0)
    rate = flat[few]
    probability = exact.exp(-rate)
    reached = probability.copy()
    drawn = np.zeros(rate.size)
    for count in range(1, 60):
        more = chance >= reached
        if not more.any():
            break
        drawn += more
        probability = probability * rate / count
        reached += probability
    counts[few] = drawn
    return counts.reshape(mean.shape)


# ---- files


def _test(number: int) -> bool:
    """Every fourth pair of patterns is for the test."""
    return number // 2 % 4 == 3


def _write_images(output: Path, asked: Parameters) -> None:
    """Write the HDF5 file: contiguous, in the earliest version of the format, without times."""
    parts: dict[str, list[int]] = {"train": [], "test": []}
    for number in range(asked.patterns):
        parts["test" if _test(number) else "train"].append(number)
    with h5py.File(output, "w", libver="earliest") as file:
        for part, numbers in parts.items():
            shape = (len(numbers), *asked.shape, 3)
            images = file.create_dataset(f"{part}/images", shape, np.dtype("u1"))
            for row, number in enumerate(numbers):
                images[row] = _pattern(asked, number)
            labels = np.array([number % 2 for number in numbers], "<i8")
            file.create_dataset(f"{part}/labels", data=labels)


def _truth(asked: Parameters) -> bytes:
    """Write the conditions of each pattern as CSV, in the order of the HDF5 file."""
    names = [name for name in Conditions.__dataclass_fields__ if name != "label"]
    lines = [",".join(["part", "row", "label", *names]) + "\n"]
    for part, wanted in (("train", False), ("test", True)):
        numbers = [n for n in range(asked.patterns) if _test(n) is wanted]
        for row, number in enumerate(numbers):
            state = conditions(asked, number)
            values = ",".join(f"{getattr(state, name):.6f}" for name in names)
            lines.append(f"{part},{row},{state.label},{values}\n")
    return "".join(lines).encode()
