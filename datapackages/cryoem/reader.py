"""Read single particles as RELION 3.1 stores them: a STAR file that names images in MRC stacks.

The STAR file is right where an MRC header disagrees: headers of published stacks often lack the
"MAP " mark or state a pixel size of 0 or 1 Angstrom. Images are not loaded; Dask reads them in
blocks of rows. Checks structure (columns, names, sizes), not what the images show.

Conventions are RELION's, kept as they are: Euler angles ZYZ, shifts that centre the particle,
defocus positive for underfocus, CTF = -sin(gamma), light particles on a dark ground.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import dask.array as da
import mrcfile
import numpy as np
import numpy.typing as npt
import starfile
import xarray as xr

from scibench_data.errors import IntegrityError

Columns: TypeAlias = Mapping[str, Sequence[str]]  # of a STAR table: label -> one text per row

ROWS = 1024  # images in a task: a few MB, so that memory stays bounded whatever the data

_PARTICLE_COLUMNS = {
    "rot": ("rlnAngleRot", "degree", "first Euler angle (ZYZ)"),
    "tilt": ("rlnAngleTilt", "degree", "second Euler angle (ZYZ)"),
    "psi": ("rlnAnglePsi", "degree", "third Euler angle (ZYZ), in the image plane"),
    "origin_x": ("rlnOriginXAngst", "Angstrom", "shift along x that centres the particle"),
    "origin_y": ("rlnOriginYAngst", "Angstrom", "shift along y that centres the particle"),
    "defocus_u": ("rlnDefocusU", "Angstrom", "defocus along the defocus angle, positive = under"),
    "defocus_v": ("rlnDefocusV", "Angstrom", "defocus across the defocus angle, positive = under"),
    "defocus_angle": ("rlnDefocusAngle", "degree", "angle from the x axis to defocus_u"),
    "phase_shift": ("rlnPhaseShift", "degree", "phase shift of a phase plate"),
}
_OPTIONAL = {"rlnOriginXAngst", "rlnOriginYAngst", "rlnPhaseShift"}  # 0 where they are absent
_OPTICS_COLUMNS = {
    "voltage": ("rlnVoltage", "kV", "acceleration voltage"),
    "spherical_aberration": ("rlnSphericalAberration", "mm", "spherical aberration"),
    "amplitude_contrast": ("rlnAmplitudeContrast", "1", "fraction of amplitude contrast"),
    "pixel_size": ("rlnImagePixelSize", "Angstrom", "pixel of the particle images"),
}
_IMAGE_NAME = re.compile(r"(\d{1,12})@(.+)")


def read(folder: Path) -> xr.Dataset:
    """Open the particles in a folder; images and volumes stay on the disk.

    Parameters
    ----------
    folder
        Holds ``particles.star`` (or one STAR file of another name), the stacks that it names, and,
        where the truth is known, ``truth/states.csv`` and ``truth/state_<k>.mrc``.

    Returns
    -------
        Data variable ``images`` (particle, y, x), in the type of the stacks; coordinates along
        particle ``micrograph``, ``optics_group``, ``rot``, ``tilt``, ``psi``, ``origin_x``,
        ``origin_y``, ``defocus_u``, ``defocus_v``, ``defocus_angle``, ``phase_shift``; along
        optics_group ``voltage``, ``spherical_aberration``, ``amplitude_contrast``, ``pixel_size``.
        With the truth also ``volumes`` (conformation, z, y, x) and the coordinate ``state``.
        Particles are in the order of the STAR file.

    Raises
    ------
    IntegrityError
        A file, column or image that is named is missing, or is not what it should be.
    """
    star = _star_file(folder)
    optics, particles = _read_tables(star)
    groups = _optics_groups(star, optics, particles)
    names = particles["rlnImageName"]
    variables = {
        "images": _images(star, names),
        "micrograph": _micrograph(particles["rlnMicrographName"]),
        "optics_group": _variable("particle", groups, "1", "row of the optics table"),
        **_numbers(star, particles, _PARTICLE_COLUMNS, "particle"),
        **_numbers(star, optics, _OPTICS_COLUMNS, "optics_group"),
    }
    truth = folder / "truth" / "states.csv"
    if truth.exists() or truth.is_symlink():  # a link to nothing is a file that was not fetched
        variables |= _truth(folder / "truth", names, variables["images"].shape[-1])
    coordinates = {name for name in variables if name not in {"images", "volumes"}}
    return xr.Dataset(
        {name: variables[name] for name in variables if name not in coordinates},
        {name: variables[name] for name in variables if name in coordinates},
        {
            "title": "Single particles of cryo-EM with poses and CTF",
            "conventions": "RELION 3.1: Euler angles ZYZ, CTF = -sin(gamma), light particles",
        },
    )


def _variable(dims: str | tuple[str, ...], values: Any, units: str, long_name: str) -> xr.Variable:
    return xr.Variable(dims, values, {"units": units, "long_name": long_name})


# ---- the STAR file


def _star_file(folder: Path) -> Path:
    """Find the STAR file of a folder."""
    usual = folder / "particles.star"
    if usual.exists():
        return usual
    found = sorted(folder.glob("*.star"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "no STAR file"
    message = f"{folder}: expected particles.star, found {names}; get the files of the subset"
    raise IntegrityError(message)


def _read_tables(star: Path) -> tuple[Columns, Columns]:
    """Read the optics and particle tables, every value as text: Python rounds numbers correctly."""
    particle = {label for label, _, _ in _PARTICLE_COLUMNS.values()}
    particle |= {"rlnImageName", "rlnMicrographName", "rlnOpticsGroup"}
    optics = {label for label, _, _ in _OPTICS_COLUMNS.values()} | {"rlnOpticsGroup"}
    try:
        blocks = starfile.read(star, always_dict=True, parse_as_string=[*particle, *optics])
    except (ValueError, LookupError, TypeError, OSError) as error:
        message = f"{star}: starfile can't read it ({error}); get it again"
        raise IntegrityError(message) from error
    return (
        _columns(star, blocks, "optics", optics),
        _columns(star, blocks, "particles", particle),
    )


def _columns(star: Path, blocks: Mapping[str, Any], name: str, wanted: set[str]) -> Columns:
    """Take the wanted columns of one table; a table without a loop has one row."""
    if name not in blocks:
        found = ", ".join(blocks) or "none"
        message = (
            f"{star}: expected the tables data_optics and data_particles of RELION 3.1, found "
            f"{found}; convert it with relion_convert_star"
        )
        raise IntegrityError(message)
    block = blocks[name]
    table = {key: [v] for key, v in block.items()} if isinstance(block, dict) else block
    missing = sorted(wanted - _OPTIONAL - set(table))
    if missing:
        message = f"{star}: data_{name} lacks {', '.join(missing)}; add it to the STAR file"
        raise IntegrityError(message)
    columns = {label: [str(v) for v in table[label]] for label in wanted if label in table}
    if not columns["rlnOpticsGroup"]:
        message = f"{star}: data_{name} has no rows; get the file again"
        raise IntegrityError(message)
    return columns


def _numbers(
    star: Path, table: Columns, wanted: Mapping[str, tuple[str, str, str]], dim: str
) -> dict[str, xr.Variable]:
    """Turn columns into float64 variables."""
    zeros = ["0"] * len(table["rlnOpticsGroup"])
    return {
        name: _variable(dim, _floats(star, label, table.get(label, zeros)), units, long_name)
        for name, (label, units, long_name) in wanted.items()
    }


def _floats(star: Path, label: str, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    values = np.empty(len(texts), np.float64)
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            values[row] = np.nan
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        message = (
            f"{star}: {label} of row {bad[0] + 1} is {texts[bad[0]]!r}, expected a finite number; "
            "correct the STAR file"
        )
        raise IntegrityError(message)
    return values


def _optics_groups(star: Path, optics: Columns, particles: Columns) -> npt.NDArray[np.int32]:
    """Row of the optics table for each particle."""
    row = {group: index for index, group in enumerate(optics["rlnOpticsGroup"])}
    unknown = sorted(set(particles["rlnOpticsGroup"]) - set(row))
    if unknown:
        message = (
            f"{star}: particles of optics group {', '.join(unknown)}, but data_optics has "
            f"{', '.join(row)}; add the group to data_optics"
        )
        raise IntegrityError(message)
    return np.array([row[group] for group in particles["rlnOpticsGroup"]], np.int32)


def _micrograph(names: Sequence[str]) -> xr.Variable:
    """Give each micrograph a number, in order of appearance."""
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    values = np.array([index[name] for name in names], np.int32)
    variable = _variable("particle", values, "1", "micrograph that the particle is from")
    variable.attrs["flag_values"] = list(index.values())
    variable.attrs["flag_meanings"] = " ".join(name.replace(" ", "_") for name in index)
    return variable


# ---- images and volumes


@dataclass(frozen=True)
class _Stack:
    """Where the sections of an MRC file lie: shape (z, y, x) of `dtype` from byte `offset` on."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, int, int]

    def sections(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read sections in the order asked for, each run of neighbours at once."""
        size = self.shape[1] * self.shape[2]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        parts = []
        with self.path.open("rb") as file:
            for run in runs:
                file.seek(self.offset + int(run[0]) * size * self.dtype.itemsize)
                parts.append(np.fromfile(file, self.dtype, run.size * size))
        values = np.concatenate(parts)
        if values.size != wanted.size * size:
            message = f"{self.path}: became shorter while it was read; get it again"
            raise IntegrityError(message)
        return values.reshape(-1, *self.shape[1:])


class _Sections:
    """Sections of several stacks as one array of shape (section, y, x), which Dask cuts lazily."""

    ndim = 3

    def __init__(
        self,
        stacks: Sequence[_Stack],
        stack: npt.NDArray[np.int64],
        section: npt.NDArray[np.int64],
    ) -> None:
        self._stacks, self._stack, self._section = stacks, stack, section
        self.dtype = stacks[0].dtype.newbyteorder("=")
        self.shape = (section.size, *stacks[0].shape[1:])
        for other in stacks:
            if (other.shape[1:], other.dtype.newbyteorder("=")) != (self.shape[1:], self.dtype):
                got, expected = (
                    f"{one.shape[1]} x {one.shape[2]} {one.dtype.name}"
                    for one in (other, stacks[0])
                )
                message = (
                    f"{other.path}: {got}, but {stacks[0].path.name} has {expected}; put images of "
                    "one size and type into a subset"
                )
                raise IntegrityError(message)

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        stack, section = self._stack[key[0]], self._section[key[0]]
        values = np.empty((*stack.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(stack):
            rows = stack == number
            values[rows] = self._stacks[number].sections(section[rows])
        return values[(..., *key[1:])]


def _open_mrc(path: Path) -> _Stack:
    """Read where the numbers lie from an MRC header; what else it says is forgiven."""
    try:
        size = path.stat().st_size  # follows git-annex's links
        with path.open("rb") as file:
            raw = file.read(1024)
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    try:
        layout = mrcfile.dtypes.HEADER_DTYPE
        header = np.frombuffer(raw, layout.newbyteorder("<"), count=1)[0]
        swapped = not 0 < header["nx"] < 1 << 16  # the machine stamp is often wrong
        if swapped:
            header = np.frombuffer(raw, layout.newbyteorder(">"), count=1)[0]
        dtype = mrcfile.utils.dtype_from_mode(header["mode"])
        stored = np.dtype(dtype).newbyteorder(">" if swapped else "<")
    except ValueError as error:
        message = f"{path}: not an MRC file ({error}); get it again"
        raise IntegrityError(message) from error
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    offset = 1024 + int(header["nsymbt"])
    expected = offset + math.prod(shape) * stored.itemsize
    if min(shape) < 1 or offset < 1024 or stored.kind == "c" or size < expected:
        message = (
            f"{path}: {size} bytes, expected {expected} for {shape[0]} sections of {shape[1]} x "
            f"{shape[2]} real numbers; get it again"
        )
        raise IntegrityError(message)
    return _Stack(path, stored, offset, shape)


def _images(star: Path, names: Sequence[str]) -> xr.Variable:
    """Find each image: row order is the STAR file's, the stacks may be in any."""
    found: dict[str, int] = {}
    stacks: list[_Stack] = []
    stack = np.empty(len(names), np.int64)
    section = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        number, path = _parse_image_name(star, name)
        if path not in found:
            found[path] = len(stacks)
            stacks.append(_open_mrc(star.parent / path))
        last = stacks[found[path]].shape[0]
        if not 1 <= number <= last:
            message = (
                f"{star}: image {name!r}, but the stack has images 1 to {last}; get the stack "
                "again or correct the STAR file"
            )
            raise IntegrityError(message)
        stack[row], section[row] = found[path], number - 1
    sections = _Sections(stacks, stack, section)
    images = da.from_array(sections, chunks=(ROWS, -1, -1), name=False, meta=_none_of(sections))
    return _variable(("particle", "y", "x"), images, "1", "particle images, in grey levels")


def _parse_image_name(star: Path, name: str) -> tuple[int, str]:
    """Split ``number@stack``; the stack must lie below the folder of the STAR file."""
    match = _IMAGE_NAME.fullmatch(name)
    if match is None:
        message = f"{star}: image name {name!r}, expected number@stack; correct the STAR file"
        raise IntegrityError(message)
    path = PurePosixPath(match[2])
    if path.is_absolute() or ".." in path.parts or "\0" in match[2]:
        message = f"{star}: image {name!r} lies outside the folder; don't use this STAR file"
        raise IntegrityError(message)
    return int(match[1]), match[2]


def _none_of(sections: _Sections) -> npt.NDArray[Any]:
    return np.empty((0, 0, 0), sections.dtype)


# ---- the truth


def _truth(folder: Path, names: Sequence[str], box: int) -> dict[str, xr.Variable]:
    """Read the state of each particle and the density of each state."""
    volumes = [_open_mrc(path) for path in _volume_paths(folder)]
    for volume in volumes:
        if volume.shape != (box, box, box):
            message = f"{volume.path}: {volume.shape} voxels, expected {box} each way; get it again"
            raise IntegrityError(message)
    states = _states(folder / "states.csv", names, len(volumes))
    number, section = np.divmod(np.arange(len(volumes) * box), box)
    sections = _Sections(volumes, number, section)
    density = da.from_array(sections, chunks=(box, -1, -1), name=False, meta=_none_of(sections))
    return {
        "state": _variable("particle", states, "1", "conformation of the particle"),
        "volumes": _variable(
            ("conformation", "z", "y", "x"),
            density.reshape(len(volumes), box, box, box),
            "1",
            "density of each conformation, in grey levels",
        ),
    }


def _volume_paths(folder: Path) -> list[Path]:
    """Find ``state_0.mrc``, ``state_1.mrc`` and so on."""
    count = len(list(folder.glob("state_*.mrc")))
    if not count:
        message = f"{folder}: states.csv but no state_0.mrc; get the files of the subset"
        raise IntegrityError(message)
    return [folder / f"state_{state}.mrc" for state in range(count)]


def _states(path: Path, names: Sequence[str], count: int) -> npt.NDArray[np.int32]:
    """Look up the state of each image name."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            state_of = {row["image"]: int(row["state"]) for row in csv.DictReader(file)}
        states = np.array([state_of[name] for name in names], np.int32)
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        message = f"{path}: no state for {error}, expected one for every image; get it again"
        raise IntegrityError(message) from error
    if states.min() < 0 or states.max() >= count:
        message = (
            f"{path}: states {states.min()} to {states.max()}, but there are {count} volumes; get "
            "the files of the subset again"
        )
        raise IntegrityError(message)
    return states
