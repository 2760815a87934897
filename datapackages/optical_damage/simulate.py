"""Simulate camera frames of a laser beam behind an optic, sound or damaged, byte for byte the same.

A diagnostic camera sees the near field of each laser shot. The optic's own dust and the beam's own
structure are in every frame; energy, pointing and smooth modulations change from shot to shot. A
damage site is a small absorbing spot on the optic that only the frame of a damaged optic has::

    fluence = energy * beam * (1 + structure + modulation) * product of |1 - spot|^2
    counts  = offset + fluence + noise          shot noise and read-out noise, 12 bits

A spot is a Gaussian absorber seen out of focus, in the Fresnel approximation: with amplitude a,
radius r and defocus z in units of k r^2, at distance d from it,

    spot = a / (1 + i z) exp(-d^2 / (2 r^2 (1 + i z)))

Lengths are in pixels of the unbinned camera, 656 x 492, whatever the `binning`. How the originals
were taken is not published: the magnitudes are plausible choices, not a calibration.

Each file is made on its own, from its name. Numbers come from `scibench_data.exact` and from what
IEEE 754 fixes, nothing else.
"""

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Frame: TypeAlias = npt.NDArray[np.uint16]  # (y, x)

HEIGHT, WIDTH = 492, 656  # of the unbinned camera [px]
CENTRE_Y, CENTRE_X = 250.0, 370.0  # middle of the optic, and of the crop [150:350, 270:470]
BEAM = 84.0  # radius at which the fluence is half [px]
POINTING = 2.0  # standard deviation of the beam's place from shot to shot, along x and y [px]
PEAK = 2000.0  # counts of the beam without structure
OFFSET = 96.0  # counts of the camera in the dark
READ = 4.0  # standard deviation of the read-out noise [counts]
GAIN = 0.3  # variance of the shot noise over the signal [counts]
LARGEST = 4095  # of a 12-bit camera [counts]
STATIC_DUST = 24  # spots on the optic that every frame shows

_LN_2, _LN_8 = 0.6931471805599453, 2.0794415416798357

TRUTH = "truth/damage.csv"
FOLDERS = (
    "training/undamaged",
    "validation/undamaged",
    "inference/undamaged",
    "inference/damaged",
)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first frames of a folder stay the same however many there are.

    Parameters
    ----------
    frames
        Number of frames in all: an eighth for validation, a fifth each of sound and of damaged
        optics for inference, the rest for training.
    seed
        Chooses the optic, the beam, every shot and the damage.
    binning
        Camera pixels that are read as one, along x and y: 1, 2 or 4. The original has 1.
    amplitude
        Largest amplitude of a damage site; they are log-uniform from an eighth of it.

    Raises
    ------
    UsageError
        A value out of range.
    """

    frames: int = 480
    seed: int = 1
    binning: int = 4
    amplitude: float = 0.12

    def __post_init__(self) -> None:
        bounds = {
            "frames": (20, 1_000_000),
            "seed": (0, (1 << 63) - 1),
            "binning": (1, 4),
            "amplitude": (0.001, 1.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "amplitude"
            if not (whole and low <= value <= high) or (name == "binning" and value == 3):
                kind = {"amplitude": "a number", "binning": "1, 2 or 4,"}.get(name, "an integer")
                message = f"optical_damage: {name}={value!r}; give {kind} from {low} to {high}"
                raise UsageError(message)

    @property
    def counts(self) -> dict[str, int]:
        """Number of frames in each folder."""
        validation, inference = self.frames // 8, self.frames // 5
        training = self.frames - validation - 2 * inference
        return dict(zip(FOLDERS, (training, validation, inference, inference), strict=True))


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    frames = (
        f"{folder}/frame_{number + 1:05d}.TIFF"
        for folder, count in asked.counts.items()
        for number in range(count)
    )
    return (*frames, TRUTH)


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
        message = f"optical_damage: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    if path == TRUTH:
        output.write_bytes(_truth(asked))
    else:
        folder, _, name = path.rpartition("/")
        number = int(name.removesuffix(".TIFF").rpartition("_")[2]) - 1
        output.write_bytes(_tiff(_frame(asked, folder, number)))


# ---- what the camera sees


@dataclass(frozen=True)
class _Spot:
    """A Gaussian absorber: place and radius [px], amplitude, defocus in units of k r^2."""

    x: float
    y: float
    radius: float
    amplitude: float
    defocus: float


def spot_transmission(x: Array, y: Array, spot: _Spot) -> Array:
    """Fluence behind a spot over that without it, |1 - spot|^2, shape (y, x).

    Parameters
    ----------
    x, y
        Columns and rows. [px]
    """
    square = (x - spot.x) * (x - spot.x) + ((y - spot.y) * (y - spot.y))[:, None]
    z = spot.defocus
    q = 1.0 + z * z
    reduced = square / (2.0 * spot.radius * spot.radius * q)
    size = spot.amplitude / q * exact.exp(-reduced)
    sine, cosine = exact.sincos(reduced * (z / (2.0 * math.pi)))
    real, imaginary = size * (cosine + z * sine), size * (sine - z * cosine)
    rest = 1.0 - real
    return rest * rest + imaginary * imaginary


@dataclass(frozen=True)
class _Waves:
    """A pattern as a sum of cosines, one element of each array for one wave."""

    kx: Array  # [1 / px]
    ky: Array
    phase: Array  # [turns]
    size: Array

    def at(self, x: Array, y: Array) -> Array:
        """Evaluate the pattern on a grid, shape (y, x)."""
        (sx, cx), (sy, cy) = (
            exact.sincos(self.kx[:, None] * x + self.phase[:, None]),
            exact.sincos(self.ky[:, None] * y),
        )
        left = np.concatenate([cy, -sy]) * np.concatenate([self.size, self.size])[:, None]
        return exact.matmul(left.T, np.concatenate([cx, sx]))


def _waves(
    count: int, shortest: float, longest: float, deviation: float, key: Sequence[int | str]
) -> _Waves:
    """Draw waves of any direction, their lengths log-uniform, as strong as they are long."""
    u = exact.uniform(4 * count, "optical_damage", *key).reshape(4, count)
    length = shortest * exact.exp(float(exact.log(longest / shortest)) * u[0])
    sine, cosine = exact.sincos(u[1])
    weight = length * (0.5 + u[3])
    power = (
        float(np.sum(np.rint(weight * weight * 1024.0).astype(np.int64), dtype=np.int64)) / 1024.0
    )
    size = weight * (deviation * math.sqrt(2.0 / power))
    return _Waves(cosine / length, sine / length, u[2], size)


@dataclass(frozen=True)
class _Optic:
    """What every frame of a simulation shows."""

    structure: _Waves  # of the fluence; it moves with the beam
    dust: Array  # transmission, shape (y, x); it stays where it is


@functools.cache
def _optic(seed: int, binning: int) -> _Optic:
    x, y = _grid(binning)
    dust = np.ones((y.size, x.size))
    chance = exact.uniform(5 * STATIC_DUST, "optical_damage", seed, "dust").reshape(-1, 5)
    for u, v, radius, amplitude, defocus in chance.tolist():
        place = _place(u, v, 1.05 * BEAM)
        spot = _Spot(*place, 3.0 + 6.0 * radius, 0.03 + 0.22 * amplitude, 0.5 + 3.0 * defocus)
        dust *= spot_transmission(x, y, spot)
    return _Optic(_waves(64, 14.0, 160.0, 0.07, (seed, "structure")), dust)


def _place(u: float, v: float, radius: float) -> tuple[float, float]:
    """Turn two numbers from 0 to 1 into a place on the optic, uniform within a radius."""
    sine, cosine = exact.sincos(u)
    distance = radius * math.sqrt(v)
    return CENTRE_X + distance * float(cosine), CENTRE_Y + distance * float(sine)


def _grid(binning: int) -> tuple[Array, Array]:
    """Columns and rows of the middles of the pixels that are read. [px]"""
    return tuple(  # type: ignore[return-value]  # two of them
        (np.arange(size // binning) + 0.5) * binning - 0.5 for size in (WIDTH, HEIGHT)
    )


def _undamaged(asked: Parameters, folder: str, number: int) -> Array:
    """Return the expected counts of a shot without damage and offset, shape (y, x)."""
    x, y = _grid(asked.binning)
    key = (asked.seed, folder, number)
    u = exact.uniform(12, "optical_damage", *key, "shot").tolist()
    move = POINTING * exact.normal(2, "optical_damage", *key, "pointing")
    optic = _optic(asked.seed, asked.binning)
    beam_x, beam_y = x - float(move[0]), y - float(move[1])
    width = BEAM * (1.0 + 0.03 * (u[0] - 0.5))
    column, row = (beam_x - CENTRE_X) / width, (beam_y - CENTRE_Y) / width
    square = np.minimum(column * column + (row * row)[:, None], 4.0)
    fourth = square * square
    beam = exact.exp(-_LN_2 * fourth * fourth)
    modulation = _waves(10, 50.0, 250.0, 0.04, (*key, "modulation")).at(x, y)
    modulation += _waves(16, 16.0, 40.0, 0.006, (*key, "ripple")).at(x, y)
    fluence = PEAK * (0.9 + 0.2 * u[1]) * beam
    fluence *= np.maximum(1.0 + optic.structure.at(beam_x, beam_y) + modulation, 0.05)
    fluence *= optic.dust
    for spot in _passing(u[2:]):
        fluence *= spot_transmission(x, y, spot)
    return np.asarray(fluence)


def _passing(u: Sequence[float]) -> list[_Spot]:
    """Draw dust in the beam far from the optic, none to two: large and faint, no damage."""
    return [
        _Spot(
            *_place(u[5 * i], u[5 * i + 1], BEAM),
            10.0 + 12.0 * u[5 * i + 2],
            0.1 * u[5 * i + 3],
            1.0 + 2.0 * u[5 * i + 4],
        )
        for i in range(2)
        if u[5 * i + 4] < 0.6
    ]


def _sites(asked: Parameters, folder: str, number: int) -> list[_Spot]:
    """Damage of a frame: one to three sites on the lit part of a damaged optic, else none."""
    if not folder.endswith("/damaged"):
        return []
    u = exact.uniform(16, "optical_damage", asked.seed, folder, number, "damage").tolist()
    return [
        _Spot(
            *_place(u[5 * i + 1], u[5 * i + 2], 0.92 * BEAM),
            3.0 + 5.0 * u[5 * i + 3],
            asked.amplitude * float(exact.exp(-_LN_8 * u[5 * i + 4])),
            1.2 * u[5 * i + 5],
        )
        for i in range(1 + math.floor(3.0 * u[0]))
    ]


def _expected(asked: Parameters, folder: str, number: int) -> Array:
    """Return the expected counts of a frame without offset, shape (y, x)."""
    fluence = _undamaged(asked, folder, number)
    x, y = _grid(asked.binning)
    for site in _sites(asked, folder, number):
        fluence = fluence * spot_transmission(x, y, site)
    return fluence


def _variance(fluence: Array) -> Array:
    """Variance of the counts where that fluence falls."""
    return READ * READ + GAIN * fluence


def _frame(asked: Parameters, folder: str, number: int) -> Frame:
    """Draw the counts of a frame, shape (y, x)."""
    fluence = _expected(asked, folder, number)
    key = ("optical_damage", asked.seed, folder, number, "camera")
    noise = exact.normal(fluence.size, *key).reshape(fluence.shape)
    counts = np.rint(OFFSET + fluence + np.sqrt(_variance(fluence)) * noise)
    return np.clip(counts, 0, LARGEST).astype(np.uint16)


def _detectability(asked: Parameters, folder: str, number: int) -> float:
    """Distance of a damaged frame from the same frame without damage, in standard deviations.

    The root of the sum over pixels of (change of the expected counts)^2 / variance: what an
    observer has who knows the undamaged shot and the damage, and only has to decide if it is there.
    """
    before = _undamaged(asked, folder, number)
    change = _expected(asked, folder, number) - before
    share = np.rint(change * change / _variance(before) * (1 << 20)).astype(np.int64)
    return math.sqrt(int(np.sum(share, dtype=np.int64)) / (1 << 20))


def _truth(asked: Parameters) -> bytes:
    """Write sites and detectability of the damaged frames as CSV."""
    folder = FOLDERS[-1]
    rows = ["path,sites,detectability\n"]
    for number in range(asked.counts[folder]):
        sites = len(_sites(asked, folder, number))
        distance = _detectability(asked, folder, number)
        rows.append(f"{folder}/frame_{number + 1:05d}.TIFF,{sites},{distance:.3f}\n")
    return "".join(rows).encode()


def _tiff(frame: Frame) -> bytes:
    """Return a frame as baseline TIFF: one strip, 16 bit, uncompressed, no time, no program."""
    height, width = frame.shape
    pixels = frame.astype("<u2").tobytes()
    long, short = 4, 3
    tags = (
        (256, long, width),
        (257, long, height),
        (258, short, 16),  # bits of a sample
        (259, short, 1),  # no compression
        (262, short, 1),  # 0 is black
        (273, long, 8),  # where the strip begins
        (277, short, 1),  # samples of a pixel
        (278, long, height),  # rows of the strip
        (279, long, len(pixels)),
    )
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
