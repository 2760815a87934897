"""Simulate SLSTR scenes of clouds over sea, land, snow and ice, byte for byte the same.

A scene is a piece of a daylight swath on the 1 km grid of the thermal channels. Its surface, its
clouds and what the weather model got wrong are Gaussian random fields whose spectra fall off as a
power of the wavenumber below an outer scale. From them follow, pixel by pixel:

* reflectances of channels S1 to S6, by two-stream layers of water and ice cloud over the surface;
* brightness temperatures of S7 to S9, by Planck emission of surface and layers, and sunlight in S7;
* ``cloud``, the true mask: is the optical depth of the column above `CLOUDY`;
* ``bayes``, the mask that users get: a Bayesian test of these radiances against a clear sky that
  was predicted with an imperfect weather model, as Merchant et al. 2005 (doi:10.1256/qj.05.15)
  do it. It misses and over-calls where such masks do: thin cirrus, warm low cloud, snow, coast,
  sun glint;
* ``ideal``, what the same test gives where the weather model makes no error.

Two-stream layers: hemispheric mean, in the closed form of Meador and Weaver 1980 (Journal of the
Atmospheric Sciences 37, 630). Optical constants and surface reflectances are round numbers of the
right size, neither fitted to SLSTR nor measured; there is no night, no aerosol but a constant, no
slant view.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Mask: TypeAlias = npt.NDArray[np.bool_]

PIXEL = 1.0  # grid of the thermal channels [km]
MARGIN = 1.25  # period of the random fields over the longer side of a scene
CLOUDY = 0.2  # optical depth at 0.55 um from which a column is cloudy
WAVELENGTH = (3.742, 10.854, 12.0225)  # S7, S8, S9 [um]
NOISE = (0.08, 0.05, 0.05)  # of S7, S8, S9, standard deviation [K]
FREEZING = 271.35  # of sea water [K]
LAPSE = 6.5  # [K/km]

_SUN = 2.1645e-5  # solid angle of the Sun over pi: (solar radius / 1 AU)**2
_SUN_TEMPERATURE = 5770.0  # [K]
_C1, _C2 = 1.191042972e8, 1.438776877e4  # Planck's law [W um^4 m^-2 sr^-1], [um K]

# Channels S1 to S7: 0.554, 0.659, 0.868, 1.375, 1.613, 2.256 and 3.742 um.
_VEGETATION = np.array([0.07, 0.05, 0.40, 0.30, 0.22, 0.11, 0.05])
_SOIL = np.array([0.12, 0.18, 0.26, 0.30, 0.34, 0.30, 0.12])
_SNOW = np.array([0.92, 0.90, 0.84, 0.40, 0.10, 0.06, 0.01])
_SEA_ICE = np.array([0.75, 0.72, 0.62, 0.28, 0.07, 0.04, 0.015])
_SEA = np.array([0.030, 0.020, 0.012, 0.008, 0.006, 0.004, 0.015])
_GLINT = np.array([1.0, 1.0, 1.0, 0.95, 0.9, 0.85, 0.8])  # relative to S3
_PATH = np.array([0.045, 0.022, 0.010, 0.0005, 0.002, 0.001, 0.0])  # air and aerosol, Sun overhead
_WATER = (0.85, np.array([0.99999, 0.99999, 0.99999, 0.998, 0.994, 0.978, 0.88]))
_ICE = (0.78, np.array([0.99999, 0.99999, 0.99999, 0.985, 0.95, 0.92, 0.72]))
_WATER_ABSORPTION = (0.80, 0.55, 0.65)  # optical depth in S7, S8, S9 over that at 0.55 um
_ICE_ABSORPTION = (0.40, 0.48, 0.60)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first scenes stay the same however many there are.

    Parameters
    ----------
    scenes
        Number of scenes, one file each.
    seed
        Chooses surfaces, clouds, weather-model errors and noise.
    rows, columns
        Size of a scene, along and across the track. [px]

    Raises
    ------
    UsageError
        A value out of range.
    """

    scenes: int = 60
    seed: int = 1
    rows: int = 96
    columns: int = 120

    def __post_init__(self) -> None:
        bounds = {
            "scenes": (1, 100_000),
            "seed": (0, (1 << 63) - 1),
            "rows": (16, 1200),
            "columns": (16, 1500),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and low <= value <= high):
                message = f"cloudmask: {name}={value!r}; give an integer from {low} to {high}"
                raise UsageError(message)


def files(**parameters: int) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    asked = Parameters(**parameters)
    return tuple(_name(scene) for scene in range(asked.scenes))


def simulate(path: str, output: Path, **parameters: int) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file with these `Parameters`, or one of them is out of range.
    """
    names = files(**parameters)
    if path not in names:
        message = f"cloudmask: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    scene = names.index(path)
    _write(output, _observe(Parameters(**parameters), scene))


def _name(scene: int) -> str:
    """Name a scene as Sentinel-3 names products, every one from another orbit.

    Mission, instrument, level and product; start, stop and creation time; duration, cycle,
    relative orbit and frame; centre (``SIM``: no centre of Copernicus), mode and timeliness.
    """
    cycle, orbit = divmod(7 * scene, 385)  # 385 orbits in a cycle of 27 days
    day, minute = divmod(27 * 1440 * (7 * scene) // 385, 1440)
    start = f"2018{1 + day // 28 % 12:02d}{1 + day % 28:02d}T{minute // 60:02d}{minute % 60:02d}"
    frame = 900 + 180 * (scene % 12)
    return (
        f"S3A_SL_1_RBT____{start}00_{start}59_20260101T000000_"
        f"0059_{cycle + 1:03d}_{orbit + 1:03d}_{frame:04d}_SIM_O_NT_{scene + 1:06d}.hdf"
    )


# ---- random fields


@dataclass(frozen=True)
class _Canvas:
    """Draws the random fields of one scene."""

    asked: Parameters
    scene: int

    def uniform(self, name: str, count: int) -> list[float]:
        """Draw numbers from 0 to 1 for the whole scene."""
        drawn = exact.uniform(count, "cloudmask", self.asked.seed, name, self.scene)
        return [float(value) for value in drawn]

    def normal(self, name: str, channels: int) -> Array:
        """Draw white noise, shape (y, x, channel)."""
        shape = (self.asked.rows, self.asked.columns, channels)
        count = shape[0] * shape[1] * channels
        key = ("cloudmask", self.asked.seed, name, self.scene)
        return exact.normal(count, *key).reshape(shape)

    def field(self, name: str, outer: float, slope: float = 8.0 / 3.0) -> Array:
        """Draw a Gaussian field of mean 0 and variance 1, stationary and isotropic.

        Parameters
        ----------
        outer
            Scale above which the spectrum is flat. [km]
        slope
            Minus the exponent of the two-dimensional power spectrum below it; 8/3 is Kolmogorov's
            5/3 of a cut along a line.

        Returns
        -------
            Shape (y, x).
        """
        asked = self.asked
        period = int(MARGIN * max(asked.rows, asked.columns))
        count = period // 2  # wavenumbers 0, 1 ... in units of 1 / period
        k = np.arange(float(count)) / (period * PIXEL)
        power = exact.exp(-0.5 * slope * exact.log(_squares(k, k) + 1.0 / (outer * outer)))
        power = power / power[0, 0]
        unit = float(1 << 40)
        total = int(np.sum(np.rint(power * unit).astype(np.int64), dtype=np.int64)) / unit
        amplitude = np.sqrt(power / total)
        key = ("cloudmask", asked.seed, name, self.scene)
        drawn = exact.normal(4 * count * count, *key).reshape(2 * count, 2 * count)
        drawn = drawn * np.tile(amplitude, (2, 2))
        down, across = _waves(asked.rows, count, period), _waves(asked.columns, count, period)
        return _product(_product(down, drawn), across.T)


def _product(left: Array, right: Array) -> Array:
    """Multiply in bands of eight rows, a size at which `exact.matmul` is fast for wide scenes."""
    padded = np.pad(left, ((0, -len(left) % 8), (0, 0)))
    bands = exact.matmul(padded.reshape(-1, 8, left.shape[1]), right)
    return bands.reshape(-1, right.shape[1])[: len(left)]


def _squares(y: Array, x: Array) -> Array:
    """Squared distance from the origin of the points of a grid."""
    return np.asarray((y * y)[:, None] + (x * x)[None, :])


def _waves(length: int, count: int, period: int) -> Array:
    """Cosines, then sines, of `count` wavenumbers at `length` pixels, shape (pixel, 2 count)."""
    sine, cosine = exact.sincos(np.arange(length)[:, None] * np.arange(count)[None, :] / period)
    return np.concatenate([cosine, sine], axis=1)


# ---- surface and clouds


@dataclass(frozen=True)
class _Scene:
    """What is there, arrays of shape (y, x) unless something else is said."""

    land: Mask
    frozen: Mask  # snow on land, ice on the sea
    temperature: Array  # of the surface [K]
    reflectance: Array  # of the surface, (y, x, S1 to S7), without glint
    glint: Array  # reflectance of the sea that sun glint adds in S3
    vapour: Array  # column of water vapour [cm]
    water: Array  # optical depth of the water cloud at 0.55 um
    water_height: Array  # of its top [km]
    water_temperature: Array  # [K]
    ice: Array  # optical depth of the cirrus at 0.55 um
    ice_temperature: Array  # [K]
    sun: float  # cosine of the solar zenith angle


def _scene(canvas: _Canvas) -> _Scene:
    """Draw a scene, from the tropics to the edge of the ice."""
    warm, coast, sunny, day, bright, centre, moist, strength = canvas.uniform("scene", 8)
    mean = 260.0 + 42.0 * warm  # [K]
    land = canvas.field("land", 150.0, 3.2) > 3.6 * coast - 1.8
    sea = mean + 1.5 * canvas.field("sea temperature", 120.0, 3.0)
    # the line of snow or ice wanders within 8 K of freezing
    frozen = np.where(land, mean - 2.0, mean + 1.0) + 4.0 * canvas.field("frost", 60.0, 3.0) < 271.0
    ground = mean + 20.0 * day - 6.0 + 3.0 * canvas.field("land temperature", 60.0)
    temperature = np.where(land, ground, np.maximum(sea, FREEZING))
    cold = np.minimum(np.where(land, ground, sea - 2.0), np.where(land, 273.0, 270.0))
    temperature = np.where(frozen, cold, temperature)
    leaves = np.clip(0.45 + 0.28 * canvas.field("leaves", 40.0), 0.0, 1.0)[..., None]
    bare = _SOIL * (0.6 + 1.0 * bright)
    age = (1.0 - 0.12 * np.abs(canvas.field("snow age", 40.0)))[..., None]
    ground_reflectance = leaves * _VEGETATION + (1.0 - leaves) * bare
    melted = np.where(land[..., None], ground_reflectance, _SEA)
    white = np.where(land[..., None], _SNOW, _SEA_ICE) * np.maximum(age, 0.4)
    x = (np.arange(canvas.asked.columns) * PIXEL - 400.0 * (2.0 * centre - 1.0)) / 120.0
    glint = 0.3 * max(strength - 0.5, 0.0) * exact.exp(-0.5 * x * x)
    humid = (0.4 + moist) * float(exact.exp(0.062 * (mean - 300.0))) * 4.0
    vapour = np.maximum(humid * (1.0 + 0.12 * canvas.field("vapour", 100.0, 3.0)), 0.05)
    height, water_temperature, water = _water_cloud(canvas, mean)
    ice, ice_temperature = _cirrus(canvas)
    return _Scene(
        land=land,
        frozen=frozen,
        temperature=temperature,
        reflectance=np.where(frozen[..., None], white, melted),
        glint=np.where(land | frozen, 0.0, glint),
        vapour=vapour,
        water=water,
        water_height=height,
        water_temperature=water_temperature,
        ice=ice,
        ice_temperature=ice_temperature,
        sun=0.3 + 0.65 * sunny,
    )


def _water_cloud(canvas: _Canvas, mean: float) -> tuple[Array, Array, Array]:
    """Draw height [km], temperature [K] and optical depth of a layer of water cloud.

    From fields of small cumulus to closed decks; below freezing the air near the ground is stably
    stratified, so that low cloud is as warm as the surface.
    """
    cover, size, high = canvas.uniform("water cloud", 3)
    outer = 12.0 * float(exact.exp(2.5 * size))  # 12 to 146 km
    shape = canvas.field("water cloud", outer)
    above = shape - (3.2 * cover - 1.4)
    thick = exact.exp(0.2 + 1.2 * above + 0.5 * canvas.field("water content", 30.0))
    depth = np.where(above > 0.0, thick * np.minimum(3.0 * above, 1.0), 0.0)
    top = 0.6 + 4.5 * high * high + 0.35 * canvas.field("water height", 40.0)
    height = np.maximum(top, 0.2)
    inversion = 6.0 * min(max((275.0 - mean) / 10.0, 0.0), 1.0)
    return height, mean + inversion - LAPSE * height, depth


def _cirrus(canvas: _Canvas) -> tuple[Array, Array]:
    """Draw optical depth and temperature [K] of a layer of ice cloud, thin for the most part."""
    cover, cold = canvas.uniform("cirrus", 2)
    above = canvas.field("cirrus", 80.0, 3.0) - (3.0 * cover - 0.6)
    thick = exact.exp(-1.5 + 1.1 * above + 0.3 * canvas.field("ice content", 20.0))
    depth = np.where(above > 0.0, thick * np.minimum(2.5 * above, 1.0), 0.0)
    return depth, 212.0 + 26.0 * cold + 3.0 * canvas.field("ice temperature", 60.0)


# ---- radiation


def _layer(below: Array, depth: Array, sun: float, matter: tuple[float, Array]) -> Array:
    """Add a two-stream layer to what reflects below it.

    Parameters
    ----------
    below
        Reflectance of what is below, shape (y, x, channel).
    depth
        Optical depth of the layer, shape (y, x).
    sun
        Cosine of the solar zenith angle: the path through the layer is 1 / (2 `sun`) times that of
        diffuse light.
    matter
        Asymmetry factor, and single-scattering albedo of each channel.
    """
    asymmetry, albedo = matter
    loss = 2.0 - albedo * (1.0 + asymmetry)
    gain = albedo * (1.0 - asymmetry)
    k = np.sqrt(loss * loss - gain * gain)
    fade = exact.exp(-(depth / (2.0 * sun))[..., None] * k)
    bottom = k + loss + (k - loss) * (fade * fade)
    reflected = gain * (1.0 - fade * fade) / bottom
    passed = 2.0 * k * fade / bottom
    return np.asarray(reflected + passed * passed * below / (1.0 - below * reflected))


def _reflectances(scene: _Scene) -> Array:
    """Reflectances at the top of the atmosphere, shape (y, x, S1 to S7)."""
    surface = scene.reflectance + scene.glint[..., None] * _GLINT
    # S4 lies in a band of water vapour: it sees cirrus, high ground and the dry poles
    above = scene.vapour * exact.exp(-scene.water_height / 2.0)
    surface = _dim_s4(surface, scene.vapour - above)
    low = _layer(surface, scene.water, scene.sun, _WATER)
    top = _layer(_dim_s4(low, above), scene.ice, scene.sun, _ICE)
    return np.asarray(top + _PATH / scene.sun * 0.6)


def _dim_s4(reflectance: Array, vapour: Array) -> Array:
    """Take from S4 what a column of vapour [cm] absorbs on the way down and up."""
    through = np.ones_like(reflectance)
    through[..., 3] = exact.exp(-4.0 * vapour)
    return reflectance * through


def _planck(temperature: Array | float, wavelength: float) -> Array:
    """Radiance of a black body. [W m^-2 sr^-1 um^-1]"""
    top = _C1 / (wavelength * wavelength * wavelength * wavelength * wavelength)
    return np.asarray(top / (exact.exp(_C2 / (wavelength * np.asarray(temperature))) - 1.0))


def _brightness(radiance: Array, wavelength: float) -> Array:
    """Temperature of the black body of a radiance. [K]"""
    top = _C1 / (wavelength * wavelength * wavelength * wavelength * wavelength)
    return np.asarray(_C2 / (wavelength * exact.log(1.0 + top / radiance)))


def _absorbed(vapour: Array, channel: int) -> Array:
    """How much colder a column of vapour [cm] makes a surface look in S7, S8 or S9. [K]"""
    base, rate = ((0.3, 0.30), (0.2, 0.55), (0.3, 0.95))[channel]
    return np.asarray(base + rate * vapour)


def _temperatures(scene: _Scene, reflected: Array) -> Array:
    """Brightness temperatures of S7 to S9, shape (y, x, channel); `reflected` is that of S7. [K]"""
    above = scene.vapour * exact.exp(-scene.water_height / 2.0)
    found = []
    for channel, wavelength in enumerate(WAVELENGTH):
        clear = scene.temperature - _absorbed(scene.vapour, channel)
        emissivity = np.where(
            scene.land & ~scene.frozen, (0.95, 0.97, 0.975)[channel], (0.98, 0.99, 0.985)[channel]
        )
        radiance = emissivity * _planck(clear, wavelength)
        covered = 1.0 - exact.exp(-scene.water * _WATER_ABSORPTION[channel])
        cloud = _planck(scene.water_temperature - _absorbed(above, channel), wavelength)
        radiance = radiance + covered * (cloud - radiance)
        covered = 1.0 - exact.exp(-scene.ice * _ICE_ABSORPTION[channel])
        radiance = radiance + covered * (_planck(scene.ice_temperature, wavelength) - radiance)
        if channel == 0:
            sunlight = _SUN * scene.sun * _planck(_SUN_TEMPERATURE, wavelength)
            radiance = radiance + sunlight * reflected
        found.append(_brightness(radiance, wavelength))
    return np.stack(found, axis=-1)


# ---- the masks


@dataclass(frozen=True)
class _Errors:
    """What a weather model got wrong, fields of shape (y, x); all are 0 for a perfect one."""

    temperature: Array  # of the surface, over its standard deviation
    vapour: Array  # relative
    snow: Array  # beyond 1.1 there is snow that it has not, below -1.1 the other way round
    reflectance: Array  # of the ground, relative
    wind: Array  # sun glint, relative


def _errors(canvas: _Canvas) -> _Errors:
    return _Errors(
        temperature=canvas.field("model temperature", 60.0),
        vapour=0.15 * canvas.field("model vapour", 100.0, 3.0),
        snow=0.55 * canvas.field("model snow", 40.0),
        reflectance=0.2 * canvas.field("model reflectance", 30.0),
        wind=0.5 * canvas.field("model wind", 100.0),
    )


def _bayes(scene: _Scene, errors: _Errors, refs: Array, bts: Array) -> Mask:
    """Test each pixel against the clear sky that a weather model led to expect.

    Log odds of cloud from features taken as independent: S8, the split window S8 - S9, the texture
    of S8 in 3 x 3 pixels, and reflectance: S3 over the sea, S2 over land, both S2 and S5 over what
    the weather model takes for snow and ice. Clear skies are Gaussian about what is expected,
    clouds are spread widely. S1, S4, S6 and S7 are not used.
    """
    land, white = scene.land, scene.frozen
    rough = land | white
    vapour = scene.vapour * (1.0 + errors.vapour)
    expected = scene.temperature + np.where(rough, 3.0, 0.6) * errors.temperature
    departure = bts[..., 1] - (expected - _absorbed(vapour, 1))
    odds = _evidence(departure, np.where(rough, 3.5, 0.9), -18.0, 22.0)
    window = _absorbed(vapour, 2) - _absorbed(vapour, 1)
    departure = bts[..., 1] - bts[..., 2] - window
    odds = odds + _evidence(departure, np.where(land, 0.45, 0.3), 0.2, 1.3)
    white = np.where(white, errors.snow > -1.1, errors.snow > 1.1)
    ground = np.where(scene.frozen, 0.12, scene.reflectance[..., 1])
    dark = np.where(land, ground, _SEA[2]) * (1.0 + errors.reflectance)
    dark = dark + scene.glint * (1.0 + errors.wind)
    clear = np.where(white, np.where(land, _SNOW[1], _SEA_ICE[1]), dark)
    seen = np.where(land | white, refs[..., 1], refs[..., 2]) - 0.6 * _PATH[2] / scene.sun
    width = np.where(white, 0.12, np.where(land, 0.05, 0.02 + 0.4 * scene.glint))
    odds = odds + _evidence(seen - clear, width, 0.3, 0.3)
    infrared = _evidence(refs[..., 4] - _SNOW[4], np.full_like(seen, 0.05), 0.2, 0.2)
    odds = odds + np.where(white, infrared, 0.0)
    usual = np.where(rough, -0.7, -2.2)  # logarithm of the texture of clear skies [K]
    texture = exact.log(_texture(bts[..., 1])) - usual
    odds = odds + _evidence(texture, np.where(land, 0.7, 0.5), -0.6 - usual, 1.0)
    return np.asarray(odds > 0.0)


def _evidence(seen: Array, clear: Array, offset: float | Array, spread: float) -> Array:
    """Log of the likelihood of cloud over that of clear sky for a departure from the clear sky.

    Clear skies have mean 0 and standard deviation `clear`, clouds `offset` and `spread`. A tail
    that no Gaussian has keeps one feature from overruling all others.
    """
    gap = seen / clear
    away = (seen - offset) / spread
    sky = exact.exp(-0.5 * gap * gap) / clear + 0.003 / spread
    cloud = exact.exp(-0.5 * away * away) / spread + 0.003 / spread
    return np.asarray(exact.log(cloud / sky))


def _texture(image: Array) -> Array:
    """Take the standard deviation in 3 x 3 pixels, at least that of the noise, edges repeated."""
    rows, columns = image.shape
    padded = np.pad(image, 1, mode="edge")
    total, squares = np.zeros_like(image), np.zeros_like(image)
    for row in range(3):
        for column in range(3):
            part = padded[row : row + rows, column : column + columns] - image
            total = total + part
            squares = squares + part * part
    variance = (squares - total * total / 9.0) / 8.0
    return np.sqrt(np.maximum(variance, 0.05 * 0.05))


# ---- files


@dataclass(frozen=True)
class _Observed:
    """The arrays of a file, shape (y, x, channel)."""

    refs: npt.NDArray[np.float32]
    bts: npt.NDArray[np.float32]
    bayes: npt.NDArray[np.uint8]
    cloud: npt.NDArray[np.uint8]
    ideal: npt.NDArray[np.uint8]


def _observe(asked: Parameters, number: int) -> _Observed:
    """Make a scene as the satellite sees it."""
    canvas = _Canvas(asked, number)
    scene = _scene(canvas)
    light = _reflectances(scene)
    noise = canvas.normal("reflectance noise", 12)
    refs = light[..., :6] * (1.0 + 0.005 * noise[..., :6]) + 0.001 * noise[..., 6:]
    bts = _temperatures(scene, light[..., 6]) + np.array(NOISE) * canvas.normal("thermal noise", 3)
    # multiples of powers of two, which float32 holds exactly
    refs, bts = np.rint(refs * 8192.0) / 8192.0, np.rint(bts * 256.0) / 256.0
    perfect = _Errors(*[np.zeros_like(scene.water)] * 5)
    return _Observed(
        refs=refs.astype("<f4"),
        bts=bts.astype("<f4"),
        bayes=_as_stored(_bayes(scene, _errors(canvas), refs, bts)),
        cloud=_as_stored(scene.water + scene.ice > CLOUDY),
        ideal=_as_stored(_bayes(scene, perfect, refs, bts)),
    )


def _as_stored(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return a mask of shape (y, x, 1), 1 for cloud."""
    return mask[..., None].astype(np.uint8)


def _write(output: Path, seen: _Observed) -> None:
    """Write HDF5 of the oldest format, unpacked and without times: the same bytes everywhere."""
    with h5py.File(output, "w", libver="earliest") as file:
        file.attrs["title"] = "Simulated by scibench-data, package cloudmask. Not measured data."
        for name in ("refs", "bts", "bayes", "cloud", "ideal"):
            values: npt.NDArray[Any] = getattr(seen, name)
            file.create_dataset(name, data=values, track_times=False)
