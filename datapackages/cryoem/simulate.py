"""Simulate single-particle cryo-EM of one complex in four conformations, byte for byte the same.

A particle image is what RELION takes it to be::

    image = CTF * projection of the density, rotated by the pose and shifted, + white noise

The density is a sum of Gaussian beads, whose Fourier transform is known in closed form: a
projection is the exact central slice of it, without interpolation, and band-limited to the image.
Poses, shifts and defoci are rounded to the six decimals of the STAR file *before* they are used, so
that the file states exactly what was simulated. Each file is made on its own, from its name.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

import functools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import mrcfile
import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Integers: TypeAlias = npt.NDArray[np.int64]

FIELD = 192.0  # width of a particle image [Angstrom]; `box` pixels share it
BEAD = 3.0  # standard deviation of a Gaussian bead [Angstrom]
VOLTAGE = 300.0  # [kV]
SPHERICAL_ABERRATION = 2.7  # [mm]
AMPLITUDE_CONTRAST = 0.1  # [1]
MICROGRAPH_PIXEL = 1.0  # [Angstrom]
PARTICLES_PER_MICROGRAPH = 64
MICROGRAPHS_PER_STACK = 20
NOISE = 128.0  # standard deviation of the noise [grey levels]
STATES = 4

_VOXEL_UNIT = 1.0 / (1 << 12)  # volumes hold multiples of it, so float32 holds them exactly
_LABEL = "Simulated by scibench-data, package cryoem. Not measured data."


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first particles stay the same however many there are.

    Parameters
    ----------
    particles
        Number of particle images.
    seed
        Chooses states, poses, shifts, defoci and noise; the complex is always the same.
    box
        Width of an image in pixels, even; the pixel is `FIELD` / `box`.
    snr
        Variance of the noise-free images over the variance of the noise, both per pixel of the
        whole box, on average over the particles.

    Raises
    ------
    UsageError
        A value out of range.
    """

    particles: int = 5120
    seed: int = 1
    box: int = 48
    snr: float = 0.05

    def __post_init__(self) -> None:
        bounds = {
            "particles": (1, 10_000_000),
            "seed": (0, (1 << 63) - 1),
            "box": (16, 512),
            "snr": (0.0001, 100.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "snr"
            if not (whole and low <= value <= high) or (name == "box" and value % 2):
                kind = {"snr": "a number", "box": "an even integer"}.get(name, "an integer")
                message = f"cryoem: {name}={value!r}; give {kind} from {low} to {high}"
                raise UsageError(message)

    @property
    def pixel(self) -> float:
        """Pixel of the particle images, as the STAR file states it. [Angstrom]"""
        return float(_as_written(np.float64(FIELD / self.box)))

    @property
    def stacks(self) -> int:
        """Number of particle stacks."""
        return -(-self.particles // (MICROGRAPHS_PER_STACK * PARTICLES_PER_MICROGRAPH))


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    return (
        "particles.star",
        *(_stack_name(number) for number in range(asked.stacks)),
        "truth/states.csv",
        *(f"truth/state_{state}.mrc" for state in range(STATES)),
    )


def simulate(path: str, output: Path, **parameters: int | float) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file with these `Parameters`, or one of them is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    if path not in names:
        message = f"cryoem: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    if path == "particles.star":
        output.write_bytes(_star(asked))
    elif path == "truth/states.csv":
        output.write_bytes(_states(asked))
    elif path.startswith("truth/"):
        state = int(path.removesuffix(".mrc").rpartition("_")[2])
        _write_mrc(output, _volume(asked, state), _VOXEL_UNIT, asked.pixel)
    else:
        number = int(path.removesuffix(".mrcs").rpartition("_")[2]) - 1
        _write_mrc(output, _stack(asked, number), 1, asked.pixel)


# ---- the complex


def _helix(centre: Array, axis: Array, phase: float, residues: int) -> Array:
    """Every second C-alpha of an alpha helix: 1.5 A and 100 degrees a residue, radius 2.3 A."""
    x, y, z = axis
    along = axis / np.sqrt(x * x + y * y + z * z)
    x, y, z = along
    # two normals: along is never near the x axis in a bundle
    across = np.array([0.0, z, -y]) / np.sqrt(y * y + z * z)
    third = np.array([y * across[2] - z * across[1], -x * across[2], x * across[1]])
    residue = np.arange(0.0, residues, 2.0)[:, None]
    sine, cosine = exact.sincos(residue * (100.0 / 360.0) + phase)
    rise = (residue - 0.5 * (residues - 2)) * 1.5
    beads: Array = centre + rise * along + 2.3 * (cosine * across + sine * third)
    return beads


def _bundle(
    name: str, helices: int, residues: int, centre: tuple[float, ...], ring: float
) -> Array:
    """Helices up and down along z on a ring [Angstrom], each tilted a little its own way."""
    chance = exact.uniform(4 * helices, "cryoem", "complex", name).reshape(helices, 4)
    sine, cosine = exact.sincos(np.arange(helices) / helices + 0.04 * chance[:, 0])
    beads = [
        _helix(
            np.array(centre) + np.array([ring * c, ring * s, 8.0 * (u[1] - 0.5)]),
            np.array([0.5 * (u[2] - 0.5), 0.5 * (u[3] - 0.5), 1.0 if h % 2 else -1.0]),
            float(u[0]),
            residues,
        )
        for h, (s, c, u) in enumerate(zip(sine, cosine, chance, strict=True))
    ]
    return np.concatenate(beads)


@functools.cache
def _complex(state: int) -> Array:
    """Positions of the beads of a conformation, shape (bead, 3) as x, y, z. [Angstrom]

    A body, a hinged arm (closed in states 0 and 2, open in 1 and 3) and a subunit that is bound in
    states 2 and 3 only.
    """
    body = np.concatenate(
        [
            _bundle("base", 8, 36, (0.0, 0.0, -20.0), 19.0),
            _bundle("head", 5, 24, (18.0, 4.0, 24.0), 11.0),
        ]
    )
    arm = _bundle("arm", 5, 34, (0.0, 0.0, 29.0), 10.0)
    sine, cosine = exact.sincos((-12.0 if state % 2 == 0 else -62.0) / 360.0)
    x, y, z = arm.T
    hinge = np.array([-14.0, -6.0, 8.0])
    arm = np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=1) + hinge
    subunit = [_bundle("subunit", 5, 24, (24.0, 32.0, -22.0), 10.0)] if state >= 2 else []
    beads = np.concatenate([body, arm, *subunit])
    return np.rint(beads * 1024.0) / 1024.0


# ---- what is written into the STAR file


@dataclass(frozen=True)
class _Views:
    """The particles of one micrograph, one array of float64 per column of the STAR file."""

    state: Integers
    rot: Array
    tilt: Array
    psi: Array
    origin_x: Array
    origin_y: Array
    defocus_u: Array
    defocus_v: Array
    defocus_angle: Array
    coordinate_x: Array
    coordinate_y: Array


def _views(seed: int, micrograph: int) -> _Views:
    """Draw the particles of a micrograph: orientations are uniform on SO(3)."""
    n = PARTICLES_PER_MICROGRAPH

    def draw(name: str, count: int = n) -> Array:
        return exact.uniform(count, "cryoem", seed, name, micrograph)

    u = draw("tilt")  # (1 - cos tilt) / 2 is uniform: tilt = 2 atan2(sqrt(u), sqrt(1 - u))
    middle, astigmatism, angle = draw("micrograph", 3)
    height = 150.0 * exact.normal(n, "cryoem", seed, "height", micrograph)
    defocus = 10_000.0 + 15_000.0 * middle + height
    half = 25.0 + 125.0 * astigmatism
    cell = np.arange(n)  # an 8 x 8 grid of places, so that no two particles overlap
    return _Views(
        state=np.floor(STATES * draw("state")).astype(np.int64),
        rot=_as_written(360.0 * draw("rot") - 180.0),
        tilt=_as_written(720.0 * exact.arctan2(np.sqrt(u), np.sqrt(1.0 - u))),
        psi=_as_written(360.0 * draw("psi") - 180.0),
        origin_x=_as_written(16.0 * draw("origin x") - 8.0),
        origin_y=_as_written(16.0 * draw("origin y") - 8.0),
        defocus_u=_as_written(defocus + half),
        defocus_v=_as_written(defocus - half),
        defocus_angle=_as_written(np.full(n, 180.0 * angle)),
        coordinate_x=np.floor(512.0 * (cell % 8) + 96.0 + 320.0 * draw("coordinate x")),
        coordinate_y=np.floor(512.0 * (cell // 8) + 96.0 + 320.0 * draw("coordinate y")),
    )


def _as_written(value: Array | np.float64) -> Array:
    """Round to six decimals: the double that reads back from the text."""
    return np.rint(value * 1e6) / np.float64(1e6)


# ---- images


def _rotation(views: _Views) -> list[list[Array]]:
    """Give the rows of RELION's Euler matrix for x and y of the view (``src/euler.cpp``)."""
    (sa, ca), (sb, cb), (sg, cg) = (
        exact.sincos(angle / 360.0) for angle in (views.rot, views.tilt, views.psi)
    )
    return [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
    ]


def _frequencies(box: int) -> tuple[Array, Array]:
    """Fourier indices along y (all) and x (the half that a real image needs), below Nyquist."""
    highest = box // 2 - 1
    return np.arange(-highest, highest + 1.0), np.arange(highest + 1.0)


def _waves(place: Array, box: int) -> Array:
    """Cosines, then sines, of 2 pi k x for k below Nyquist, by the angle addition theorem.

    Parameters
    ----------
    place
        Positions in fields of view, shape (..., bead).

    Returns
    -------
        Shape (..., box, bead): `box` / 2 cosines and as many sines.
    """
    half = box // 2
    sine, cosine = exact.sincos(place)
    waves = np.empty((*place.shape[:-1], box, place.shape[-1]))
    waves[..., 0, :], waves[..., half, :] = 1.0, 0.0
    for k in range(half - 1):
        c, s = waves[..., k, :], waves[..., half + k, :]
        waves[..., k + 1, :] = c * cosine - s * sine
        waves[..., half + k + 1, :] = s * cosine + c * sine
    return waves


def _grid_waves(k: Array, box: int) -> tuple[Array, Array]:
    """Sines and cosines, shape (k, box), of frequency `k` at the pixels; pixel `box` // 2 is 0."""
    return exact.sincos(k[:, None] * (np.arange(box) - box // 2) / box)


def _bead_spectrum(k: Array, extent: float) -> Array:
    """Fourier transform of a bead along one axis, 1 at the origin."""
    root = 2.0 * math.pi * BEAD / extent * k
    return exact.exp(-0.5 * (root * root))


def _spectra(views: _Views, extent: float, box: int) -> Array:
    """Fourier transforms of the shifted projections: central slices of the rotated beads.

    Returns
    -------
        Shape (particle, 2, ky, kx): real and imaginary part of the sum of exp(-2 pi i k r).
    """
    half = box // 2
    spectra = np.empty((views.state.size, 2, box - 1, half))
    for state in range(STATES):
        rows = np.flatnonzero(views.state == state)
        beads = _complex(state)
        (xx, xy, xz), (yx, yy, yz) = [
            [element[rows, None] for element in row] for row in _rotation(views)
        ]
        x, y, z = beads.T
        # the particle's centre lies at minus the origin, which is the shift that centres it
        view_x = xx * x + xy * y + xz * z - views.origin_x[rows, None]
        view_y = yx * x + yy * y + yz * z - views.origin_y[rows, None]
        left = _waves(view_y / extent, box)
        right = _waves(view_x / extent, box)
        product = exact.matmul(left, np.swapaxes(right, -1, -2))
        cc, cs = product[:, :half, :half], product[:, :half, half:]
        sc, ss = product[:, half:, :half], product[:, half:, half:]
        spectra[rows, 0, half - 1 :] = cc - ss
        spectra[rows, 1, half - 1 :] = -(sc + cs)
        spectra[rows, 0, : half - 1] = (cc + ss)[:, :0:-1]
        spectra[rows, 1, : half - 1] = (sc - cs)[:, :0:-1]
    return spectra


def _ctf(views: _Views, extent: float, box: int) -> Array:
    """RELION's contrast transfer function, -sin(gamma) (``src/ctf.h``), shape (particle, ky, kx).

    gamma = -pi lambda df u^2 + pi/2 Cs lambda^3 u^4 - asin(Q0), and along the angle theta
    df = (dU + dV) / 2 + (dU - dV) / 2 cos(2 (theta - theta_U)). Positive at low frequency: a
    particle is light on a dark ground. There is no envelope: `BEAD` stands for it.
    """
    ky, kx = _frequencies(box)
    y, x = ky[:, None] / extent, kx[None, :] / extent
    u2 = x * x + y * y
    safe = np.where(u2 == 0.0, 1.0, u2)
    sine, cosine = (f[:, None, None] for f in exact.sincos(views.defocus_angle / 180.0))
    direction = (x * x - y * y) / safe * cosine + 2.0 * x * y / safe * sine
    mean = 0.5 * (views.defocus_u + views.defocus_v)[:, None, None]
    defocus = mean + 0.5 * (views.defocus_u - views.defocus_v)[:, None, None] * direction
    volt = 1e3 * VOLTAGE
    wavelength = 12.2643247 / math.sqrt(volt * (1.0 + 0.978466e-6 * volt))  # [Angstrom]
    phase = wavelength * u2
    turns = -0.5 * phase * defocus + 0.25e7 * SPHERICAL_ABERRATION * wavelength * phase * phase
    sine, cosine = exact.sincos(turns)
    q = AMPLITUDE_CONTRAST
    return np.asarray(q * cosine - math.sqrt(1.0 - q * q) * sine)


def _signal(views: _Views, asked: Parameters) -> Array:
    """Noise-free images in beads per pixel, shape (particle, y, x)."""
    box, extent = asked.box, asked.box * asked.pixel
    ky, kx = _frequencies(box)
    transfer = _ctf(views, extent, box)
    transfer *= _bead_spectrum(ky, extent)[:, None] * _bead_spectrum(kx, extent)
    spectra = _spectra(views, extent, box)
    spectra *= transfer[:, None]
    n = views.state.size
    sine, cosine = _grid_waves(ky, box)
    to_y = np.concatenate([np.concatenate([cosine, -sine]).T, np.concatenate([sine, cosine]).T])
    columns = exact.matmul(to_y, spectra.reshape(n, 2 * ky.size, kx.size))
    columns = np.concatenate([columns[:, :box], columns[:, box:]], axis=2)
    sine, cosine = _half_waves(box)
    return exact.matmul(columns, np.concatenate([cosine, -sine])) / box


def _half_waves(box: int) -> tuple[Array, Array]:
    """Sines and cosines that bring half a spectrum to the pixels of one axis, shape (k, box)."""
    sine, cosine = _grid_waves(_frequencies(box)[1], box)
    twice = np.where(np.arange(box // 2) == 0, 1.0, 2.0)[:, None] / box
    return twice * sine, twice * cosine


@functools.cache
def _grey_levels(asked: Parameters) -> float:
    """Grey levels per bead and pixel that give the signal its share of the noise.

    Four particles from each of the first 16 micrographs stand for all of them, also where fewer
    are asked for: so the scale is the same for every number of particles.
    """
    unit = 1 << 16
    views = [_first(_views(asked.seed, micrograph), 4) for micrograph in range(16)]
    images = np.concatenate([_signal(part, asked) for part in views])
    counts = np.rint(images * unit).astype(np.int64)
    return NOISE * math.sqrt(asked.snr) * unit / _statistics(counts)[1]


def _first(views: _Views, count: int) -> _Views:
    columns = {field.name: getattr(views, field.name)[:count] for field in fields(views)}
    return _Views(**columns)


def _stack(asked: Parameters, number: int) -> npt.NDArray[np.int16]:
    """Images of a stack in grey levels, shape (particle, y, x)."""
    grey = _grey_levels(asked)
    parts = []
    for micrograph in _micrographs(asked, number):
        views = _first(_views(asked.seed, micrograph), _occupancy(asked, micrograph))
        images = grey * _signal(views, asked)
        noise = exact.normal(images.size, "cryoem", asked.seed, "noise", micrograph)
        parts.append(np.rint(images + NOISE * noise.reshape(images.shape)).astype(np.int16))
    return np.concatenate(parts)


def _volume(asked: Parameters, state: int) -> Integers:
    """Density of a conformation, shape (z, y, x), in `_VOXEL_UNIT` grey levels.

    Its sum along z is the noise-free image of the unrotated particle without CTF, in grey levels.
    """
    box, extent = asked.box, asked.box * asked.pixel
    spectrum = _bead_spectrum(_frequencies(box)[1], extent)[:, None]
    sine, cosine = _half_waves(box)
    to_grid = np.concatenate([spectrum * cosine, spectrum * sine])
    x, y, z = (exact.matmul(_waves(place, box).T, to_grid) for place in _complex(state).T / extent)
    x = _grey_levels(asked) / _VOXEL_UNIT * x
    sections = [exact.matmul((y * z[:, section, None]).T, x) for section in range(box)]
    return np.rint(np.stack(sections)).astype(np.int64)


# ---- files


def _stack_name(number: int) -> str:
    return f"stack_{number + 1:03d}.mrcs"


def _micrographs(asked: Parameters, number: int) -> range:
    """Micrographs whose particles are in a stack."""
    first = number * MICROGRAPHS_PER_STACK
    last = -(-asked.particles // PARTICLES_PER_MICROGRAPH)
    return range(first, min(first + MICROGRAPHS_PER_STACK, last))


def _occupancy(asked: Parameters, micrograph: int) -> int:
    """Particles on a micrograph: all places but on the last one."""
    return min(PARTICLES_PER_MICROGRAPH, asked.particles - micrograph * PARTICLES_PER_MICROGRAPH)


def _image_names(asked: Parameters) -> list[str]:
    """RELION's names of all images: the number within the stack, counted from 1, and the stack."""
    per_stack = MICROGRAPHS_PER_STACK * PARTICLES_PER_MICROGRAPH
    places = (divmod(particle, per_stack) for particle in range(asked.particles))
    return [f"{place + 1:06d}@{_stack_name(number)}" for number, place in places]


def _statistics(counts: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Mean and standard deviation of integers, from exact sums."""
    wide = counts.astype(np.int64)
    n, total = wide.size, int(np.sum(wide, dtype=np.int64))
    squares = int(np.sum(wide * wide, dtype=np.int64))
    return total / n, math.sqrt((n * squares - total * total) / (n * n))


def _write_mrc(output: Path, counts: npt.NDArray[np.integer], unit: float, pixel: float) -> None:
    """Write an image stack (int16 counts) or a volume (integer counts of `unit`, as float32).

    mrcfile writes the time into a label and takes the statistics in float32, which depends on the
    machine: both are replaced.
    """
    stack = counts.dtype == np.int16
    with mrcfile.new(output, overwrite=True) as file:
        file.set_data(counts.astype("<i2") if stack else (counts * unit).astype("<f4"))
        if stack:
            file.set_image_stack()
        file.voxel_size = pixel
        mean, deviation = _statistics(counts)
        file.header.dmin, file.header.dmax = counts.min() * unit, counts.max() * unit
        file.header.dmean, file.header.rms = mean * unit, deviation * unit
        file.header.nversion = 20141
        file.header.label[:] = b""
        file.header.label[0] = _LABEL
        file.header.nlabl = 1


def _states(asked: Parameters) -> bytes:
    """Write the conformation of each image as CSV."""
    states = [int(state) for views in _all_views(asked) for state in views.state]
    rows = zip(_image_names(asked), states, strict=True)
    return "".join(["image,state\n", *(f"{name},{state}\n" for name, state in rows)]).encode()


def _all_views(asked: Parameters) -> Iterator[_Views]:
    """Go through the micrographs."""
    for number in range(asked.stacks):
        for micrograph in _micrographs(asked, number):
            yield _first(_views(asked.seed, micrograph), _occupancy(asked, micrograph))


def _star(asked: Parameters) -> bytes:
    """Write the RELION 3.1 tables of optics and particles.

    Numbers are formatted here. starfile's first line, which holds its version and the time, becomes
    RELION's; its blank lines, which differ between its versions, are put where RELION has them.
    """
    import pandas as pd  # type: ignore[import-untyped]  # ships no types
    import starfile

    optics = {
        "rlnOpticsGroup": "1",
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnAmplitudeContrast": f"{AMPLITUDE_CONTRAST:.6f}",
        "rlnSphericalAberration": f"{SPHERICAL_ABERRATION:.6f}",
        "rlnVoltage": f"{VOLTAGE:.6f}",
        "rlnImagePixelSize": f"{asked.pixel:.6f}",
        "rlnMicrographOriginalPixelSize": f"{MICROGRAPH_PIXEL:.6f}",
        "rlnImageSize": str(asked.box),
        "rlnImageDimensionality": "2",
    }
    tables = {"optics": pd.DataFrame([optics]), "particles": pd.DataFrame(_particles(asked))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "particles.star"
        starfile.write(tables, path)
        lines = [" ".join(line.split()) for line in path.read_text("ascii").splitlines()[1:]]
    text = [f"\n{line}\n" if line.startswith("data_") else line for line in lines if line]
    return "\n".join(["# version 30001", *text, "", ""]).encode("ascii")


def _particles(asked: Parameters) -> dict[str, list[str]]:
    """Columns of the particle table, as text."""
    numbers = {
        "rlnCoordinateX": "coordinate_x",
        "rlnCoordinateY": "coordinate_y",
        "rlnDefocusU": "defocus_u",
        "rlnDefocusV": "defocus_v",
        "rlnDefocusAngle": "defocus_angle",
        "rlnAngleRot": "rot",
        "rlnAngleTilt": "tilt",
        "rlnAnglePsi": "psi",
        "rlnOriginXAngst": "origin_x",
        "rlnOriginYAngst": "origin_y",
    }
    every = list(_all_views(asked))
    n = asked.particles
    columns = {
        "rlnImageName": _image_names(asked),
        "rlnMicrographName": [
            f"micrograph_{i // PARTICLES_PER_MICROGRAPH + 1:05d}.mrc" for i in range(n)
        ],
        "rlnOpticsGroup": ["1"] * n,
        "rlnRandomSubset": [str(1 + i % 2) for i in range(n)],
        "rlnPhaseShift": ["0.000000"] * n,
    }
    for label, name in numbers.items():
        values = np.concatenate([getattr(views, name) for views in every])
        columns[label] = [f"{value:.6f}" for value in values.tolist()]
    return columns
