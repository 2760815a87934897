"""Simulate pairs of noisy and clean electron micrographs of graphene, byte for byte the same.

A clean image is the linear image of a weak phase object, which one layer of carbon is (Kirkland
2016, doi:10.1107/S205327331501757X)::

    I = 1 + 2 sigma v * F^-1[sin(chi) E]       1 is the incident beam, * a convolution

with the projected potential v of the atoms, chi = pi lambda k^2 (Cs lambda^2 k^2 / 2 - df) and the
envelope E of a monochromated, aberration-corrected microscope at 80 kV. Cs is negative and the
objective is overfocused: atoms are light. The noise is that of high frame rates, as the original
describes it: a beam profile across the image, Poisson counts, dead pixels::

    counts = Poisson(dose * beam * I), 0 in a dead pixel

Both images are in grey levels of one scale, 128 + 512 (I - 1), on which clean images fill 8 bits;
the noisy ones hold counts / dose for I, so a denoiser has to undo the beam profile too. Each file
is made on its own, from its name; numbers come from `scibench_data.exact` and from what IEEE 754
fixes, nothing else.
"""

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

Flags: TypeAlias = npt.NDArray[np.bool_]

NOISE, CLEAN = "train/graphene_img_noise.h5", "train/graphene_img_clean.h5"

VOLTAGE = 80e3  # [V]
WAVELENGTH = 12.2643247 / math.sqrt(VOLTAGE * (1.0 + 0.978466e-6 * VOLTAGE))  # [Angstrom]
REST = 510_998.95  # rest energy of the electron [eV]
INTERACTION = (2.0 * math.pi / (WAVELENGTH * VOLTAGE)) * ((REST + VOLTAGE) / (2 * REST + VOLTAGE))
"""Phase of the wave for each potential times length. [rad / (V Angstrom)]"""
SPHERICAL_ABERRATION = -1e5  # -10 um [Angstrom]
DEFOCUS_SPREAD = 15.0  # standard deviation over the electrons' energies [Angstrom]
VIBRATION = 0.2  # standard deviation of atoms, stage and detector together [Angstrom]
POTENTIAL = 47.878  # h^2 / (2 pi m e): potential from a scattering factor [V Angstrom^2]
LATTICE = 2.46  # lattice constant of graphene [Angstrom]
POISSON_RATIO = 0.16  # of graphene [1]
DISPLACEMENT = 0.05  # standard deviation of an atom about its site, along x and y [Angstrom]
MARGIN = 24  # pixels simulated around the image and cut off: the field is periodic
DEAD = 0.002  # share of dead pixels
BEAM_GREY = 128.0  # grey level of the incident beam
CONTRAST = 512.0  # grey levels for the intensity of the incident beam
STEP = 1.0 / 16.0  # clean images hold multiples of it [grey levels]

_LN_4 = 1.3862943611198906

# Kirkland's scattering factor of carbon: sum of a / (q^2 + b) and c exp(-d q^2), q in 1 / Angstrom.
_LORENTZIANS = (
    (1.66953010e-01, 5.69804854e00),
    (2.53148417e-01, 2.08761775e-01),
    (1.60250013e-01, 2.08774166e-01),
)
_GAUSSIANS = (
    (8.66192838e-04, 4.12204523e-02),
    (1.41633354e-01, 1.34112859e00),
    (3.60244465e-01, 3.81665326e00),
)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first pairs stay the same however many there are.

    Parameters
    ----------
    pairs
        Number of pairs of images.
    seed
        Chooses sheets, defects, optics, doses and noise.
    size
        Width of an image in pixels, a multiple of 8; the original has 256.
    dose
        Electrons that fall on a pixel of about 0.2 Angstrom, in the middle of the beam. Each image
        has its own, from a half to twice as many.

    Raises
    ------
    UsageError
        A value out of range.
    """

    pairs: int = 320
    seed: int = 1
    size: int = 96
    dose: float = 60.0

    def __post_init__(self) -> None:
        bounds = {
            "pairs": (1, 1_000_000),
            "seed": (0, (1 << 63) - 1),
            "size": (32, 512),
            "dose": (0.5, 10_000.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "dose"
            if not (whole and low <= value <= high) or (name == "size" and value % 8):
                kind = {"dose": "a number", "size": "a multiple of 8"}.get(name, "an integer")
                message = f"em_denoise: {name}={value!r}; give {kind} from {low} to {high}"
                raise UsageError(message)


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    return (NOISE, CLEAN)


def simulate(path: str, output: Path, **parameters: int | float) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file, or a parameter is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    if path not in names:
        message = f"em_denoise: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    images = np.empty((asked.pairs, asked.size, asked.size, 1), "<f4")
    exposures = [_exposure(asked, number) for number in range(asked.pairs)]
    for number, exposure in enumerate(exposures):
        clean = _clean(asked, number, exposure)
        pixels = clean if path == CLEAN else _noisy(asked, number, exposure, clean)
        images[number, :, :, 0] = pixels
    # libver and track_times: nothing in the file tells when or with which HDF5 it was written
    with h5py.File(output, "w", libver="earliest") as file:
        file.create_dataset("images", data=images, track_times=False)
        if path == NOISE:
            columns = {
                "dose": [exposure.dose for exposure in exposures],
                "pixel_size": [exposure.pixel for exposure in exposures],
            }
            for name, values in columns.items():
                file.create_dataset(name, data=np.array(values, "<f8"), track_times=False)


# ---- how an image is taken


@dataclass(frozen=True)
class _Exposure:
    """Optics and beam of one image; lengths of the beam are in widths of the image."""

    pixel: float  # [Angstrom]
    defocus: float  # [Angstrom]
    dose: float  # electrons on a pixel in the middle of the beam
    beam_x: float
    beam_y: float
    beam_width: float


def _exposure(asked: Parameters, number: int) -> _Exposure:
    u = exact.uniform(6, "em_denoise", asked.seed, "exposure", number)
    factor = float(exact.exp(_LN_4 * (u[2] - 0.5)))  # from a half to twice
    return _Exposure(
        pixel=float(np.rint((0.18 + 0.04 * u[0]) * 1e4) / 1e4),
        defocus=-(50.0 + 40.0 * float(u[1])),
        dose=float(np.rint(asked.dose * factor * 16.0) / 16.0),
        beam_x=0.4 * float(u[3]) - 0.2,
        beam_y=0.4 * float(u[4]) - 0.2,
        beam_width=0.4 + 0.4 * float(u[5]),
    )


# ---- the sheet


@dataclass(frozen=True)
class _Sheet:
    """Atoms as columns: place, shape (atom, 2) as x, y [Angstrom], and atoms in a column."""

    place: Array
    atoms: Array


def _sheet(asked: Parameters, number: int, pixel: float) -> _Sheet:
    """Draw a sheet of graphene: turned, strained, with defects, as large as the field."""
    field = (asked.size + 2 * MARGIN) * pixel
    chance = exact.uniform(5, "em_denoise", asked.seed, "sheet", number)
    cells = math.ceil(field / LATTICE) + 2
    i, j = (k.ravel() - cells for k in np.indices((2 * cells + 1, 2 * cells + 1)))
    height = LATTICE * math.sqrt(3.0)
    x = np.concatenate([LATTICE * (i + 0.5 * j), LATTICE * (i + 0.5 * j + 0.5)])
    y = np.concatenate([height * 0.5 * j, height * (0.5 * j + 1.0 / 6.0)])
    x, y = x + LATTICE * chance[0], y + height * chance[1]
    strain = 0.02 * (chance[2] - 0.5)
    x, y = x * (1.0 + strain), y * (1.0 - POISSON_RATIO * strain)
    sine, cosine = exact.sincos(chance[3] / 6.0)  # the lattice repeats after 60 degrees
    place = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)
    place = place[(np.abs(place) < 0.5 * field).all(axis=1)]
    shake = exact.normal(place.size, "em_denoise", asked.seed, "displacement", number)
    sheet = _Sheet(place + DISPLACEMENT * shake.reshape(place.shape), np.ones(len(place)))
    inner = 0.5 * asked.size * pixel
    for defect in range(math.floor(9.0 * chance[4])):
        sheet = _with_defect(
            sheet, exact.uniform(4, "em_denoise", asked.seed, "defect", number, defect), inner
        )
    return sheet


def _with_defect(sheet: _Sheet, chance: Array, inner: float) -> _Sheet:
    """Add a defect: vacancy, divacancy, Stone-Wales rotation, atom on top, or pore.

    Parameters
    ----------
    chance
        Four numbers from 0 to 1: place, kind and size.
    inner
        Half the width of the image. [Angstrom]
    """
    offset = sheet.place - inner * (2.0 * chance[:2] - 1.0)
    square = np.rint((offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1]) * 1e6)
    nearest = np.argsort(square, kind="stable")
    first = nearest[0]
    gap = sheet.place - sheet.place[first]
    distance = np.rint((gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1]) * 1e6)
    second = np.argsort(distance, kind="stable")[1]
    kind = math.floor(5.0 * chance[2])
    place, atoms = sheet.place.copy(), sheet.atoms.copy()
    keep = np.ones(len(place), np.bool_)
    if kind == 0:
        keep[first] = False
    elif kind == 1:
        keep[[first, second]] = False
    elif kind == 2:  # the bond of two neighbours turns by 90 degrees about its middle
        x, y = 0.5 * (place[second] - place[first])
        middle = 0.5 * (place[second] + place[first])
        place[first], place[second] = middle + np.array([y, -x]), middle + np.array([-y, x])
    elif kind == 3:
        atoms[first] += 1.0
    else:
        radius = 2.0 + 3.0 * chance[3]
        keep = square > radius * radius * 1e6
    return _Sheet(place[keep], atoms[keep])


# ---- the image


def scattering_factor(q2: Array) -> Array:
    """Electron scattering factor of carbon (Kirkland's fit) at q^2 in 1 / Angstrom^2. [Angstrom]"""
    value = np.zeros_like(q2)
    for a, b in _LORENTZIANS:
        value += a / (q2 + b)
    for c, d in _GAUSSIANS:
        value += c * exact.exp(-d * q2)
    return value


def _transfer(q2: Array, defocus: float) -> Array:
    """Contrast transfer sin(chi) with its envelopes; `defocus` is negative: overfocus."""
    phase = WAVELENGTH * q2
    turns = 0.5 * phase * (0.5 * SPHERICAL_ABERRATION * WAVELENGTH * phase - defocus)
    spread = math.pi * DEFOCUS_SPREAD * phase
    blur = 2.0 * math.pi * math.pi * VIBRATION * VIBRATION * q2
    return exact.sincos(turns)[0] * exact.exp(-0.5 * spread * spread - blur)


def _intensity(sheet: _Sheet, size: int, pixel: float, defocus: float) -> Array:
    """Intensity over that of the beam, shape (size, size) as y, x.

    Fourier coefficients of the field of `size` + 2 `MARGIN` pixels, all below Nyquist along each
    axis, from the places of the atoms; then brought to the pixels of the image.
    """
    width = size + 2 * MARGIN
    field = width * pixel
    highest = width // 2 - 1
    ky, kx = np.arange(-highest, highest + 1.0), np.arange(highest + 1.0)
    x, y = sheet.place[:, 0] / field, sheet.place[:, 1] / field
    (sx, cx), (sy, cy) = exact.sincos(kx[:, None] * x), exact.sincos(ky[:, None] * y)
    left = np.concatenate([cy, sy]) * sheet.atoms
    product = exact.matmul(left, np.concatenate([cx, sx]).T)
    rows, columns = ky.size, kx.size
    cc, cs = product[:rows, :columns], product[:rows, columns:]
    sc, ss = product[rows:, :columns], product[rows:, columns:]
    q2 = (ky[:, None] * ky[:, None] + kx * kx) / (field * field)
    scale = 2.0 * INTERACTION * POTENTIAL / (field * field)
    factor = scale * scattering_factor(q2) * _transfer(q2, defocus)
    factor *= np.where(kx == 0.0, 1.0, 2.0)  # the half with kx < 0 is the conjugate
    real, imaginary = factor * (cc - ss), -factor * (sc + cs)
    grid = (np.arange(size) - 0.5 * (size - 1)) / width
    (sx, cx), (sy, cy) = exact.sincos(kx[:, None] * grid), exact.sincos(ky[:, None] * grid)
    along_y = np.concatenate([cy, sy]).T  # (size, 2 rows)
    both = np.concatenate(
        [
            np.concatenate([real, imaginary], axis=1),
            np.concatenate([-imaginary, real], axis=1),
        ]
    )
    half = exact.matmul(along_y, both)
    return 1.0 + exact.matmul(half, np.concatenate([cx, -sx]))


def _clean(asked: Parameters, number: int, exposure: _Exposure) -> Array:
    """Grey levels of the clean image, in multiples of `STEP`, shape (size, size)."""
    sheet = _sheet(asked, number, exposure.pixel)
    intensity = _intensity(sheet, asked.size, exposure.pixel, exposure.defocus)
    bright = np.maximum(intensity, 0.0)
    return np.rint((BEAM_GREY + CONTRAST * (bright - 1.0)) / STEP) * STEP


def _beam(size: int, exposure: _Exposure) -> Array:
    """Profile of the beam, a Gaussian that is 1 in its middle, shape (size, size)."""
    grid = (np.arange(size) - 0.5 * (size - 1)) / size
    x = (grid - exposure.beam_x) / exposure.beam_width
    y = (grid - exposure.beam_y) / exposure.beam_width
    return exact.exp(-0.5 * (x * x + y[:, None] * y[:, None]))


def _noisy(asked: Parameters, number: int, exposure: _Exposure, clean: Array) -> Array:
    """Grey levels of the noisy image: what is counted, over the dose."""
    intensity = 1.0 + (clean - BEAM_GREY) / CONTRAST
    mean = exposure.dose * _beam(asked.size, exposure) * intensity
    counts = _poisson(mean, asked.seed, number)
    dead = exact.uniform(clean.size, "em_denoise", asked.seed, "dead", number) < DEAD
    counts = np.where(dead.reshape(clean.shape), 0.0, counts)
    return BEAM_GREY + CONTRAST * (counts / exposure.dose - 1.0)


def _poisson(mean: Array, seed: int, number: int) -> Array:
    """Draw Poisson counts: by inversion below 30, above it by the normal quantile.

    The latter with the first Cornish-Fisher term, floor(m + z sqrt(m) + (z^2 - 1) / 6 + 1/2):
    mean and skewness are right within 1 %, the variance within 0.6 %.
    """
    u = exact.uniform(mean.size, "em_denoise", seed, "poisson", number).reshape(mean.shape)
    z = exact.normal(mean.size, "em_denoise", seed, "shot", number).reshape(mean.shape)
    large = np.floor(mean + z * np.sqrt(mean) + (z * z - 1.0) / 6.0 + 0.5)
    few = mean < 30.0
    small, chance = mean[few], u[few]
    counts = np.zeros_like(small)
    term = exact.exp(-small)
    total = term.copy()
    for k in range(1, 120):
        counts += chance >= total
        term *= small / k
        total += term
    result = np.maximum(large, 0.0)
    result[few] = counts
    return result
