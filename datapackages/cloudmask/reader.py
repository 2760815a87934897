"""Read SLSTR scenes as the cloudmask benchmark stores them: one HDF5 file ``S3A*.hdf`` each.

A file holds ``refs`` (y, x, 6), ``bts`` (y, x, 3) and ``bayes`` (y, x, 1); a simulated one also
the true mask ``cloud`` and the mask ``ideal``. Other datasets, such as ``rads`` and ``summary`` of
the original, are left alone. Arrays are not loaded; Dask reads them a scene at a time. Checks
structure (names, shapes, number types), not what the scenes show.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dask.array as da
import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

Read = TypeVar("Read")

ORBITS = 385  # in a repeat cycle of Sentinel-3

_SOLAR = np.array([0.554, 0.659, 0.868, 1.375, 1.613, 2.256])  # nominal centres of S1 to S6 [um]
_THERMAL = np.array([3.742, 10.854, 12.0225])  # of S7 to S9 [um]
# name -> last axis and its length, kinds of NumPy type, unit, long name
_ARRAYS = {
    "refs": ("solar_channel", 6, "f", "1", "reflectance of S1 to S6 at the top of the atmosphere"),
    "bts": ("thermal_channel", 3, "f", "K", "brightness temperature of S7 to S9"),
    "bayes": ("", 1, "iub", "1", "Bayesian cloud flag, above 0 is cloud"),
    "cloud": ("", 1, "iub", "1", "true cloud mask, above 0 is cloud"),
    "ideal": ("", 1, "iub", "1", "Bayesian cloud mask with a perfect weather model"),
}
_TRUTH = ("cloud", "ideal")  # only where scenes are simulated
_ORBIT = re.compile(r"_\d{4}_(\d{3})_(\d{3})_[\d_]{4}_")  # duration, cycle, orbit, frame


def read(folder: Path) -> xr.Dataset:
    """Open the scenes in a folder and the folders below it; the arrays stay on the disk.

    Parameters
    ----------
    folder
        Holds ``S3A*.hdf`` (or ``S3B*.hdf``), all of one size.

    Returns
    -------
        Data variables ``refs`` (scene, y, x, solar_channel), ``bts`` (scene, y, x,
        thermal_channel), both float32, and ``bayes`` (scene, y, x) in the type of the files; where
        every file has them also ``cloud`` and ``ideal`` (scene, y, x). Coordinates along scene:
        ``orbit``, equal for scenes that one orbit took, and ``product``, the file. Scenes are in
        the order of their names.

    Raises
    ------
    IntegrityError
        There is no scene, or a file is missing, damaged or not what it should be.
    """
    paths = sorted(folder.glob("**/S3[AB]*.hdf"), key=lambda path: path.relative_to(folder).parts)
    if not paths:
        message = f"{folder}: expected S3A*.hdf, found none; get the files of the subset"
        raise IntegrityError(message)
    found = [_open(path) for path in paths]
    names = [name for name in _ARRAYS if all(name in arrays for arrays in found)]
    variables = {name: _stack(name, [arrays[name] for arrays in found]) for name in names}
    coordinates = {
        "orbit": _variable("scene", _orbits(paths), "1", "number of the orbit"),
        "product": _products(paths),
        "solar_wavelength": _variable("solar_channel", _SOLAR, "um", "centre of the channel"),
        "thermal_wavelength": _variable("thermal_channel", _THERMAL, "um", "centre of the channel"),
    }
    return xr.Dataset(variables, coordinates, {"title": "SLSTR scenes with cloud masks"})


def _variable(dims: str | tuple[str, ...], values: Any, units: str, long_name: str) -> xr.Variable:
    return xr.Variable(dims, values, {"units": units, "long_name": long_name})


# ---- names


def _orbits(paths: Sequence[Path]) -> npt.NDArray[np.int32]:
    """Count orbits over the cycles; a name that tells no orbit has one of its own, below 0."""
    orbits = np.empty(len(paths), np.int32)
    for row, path in enumerate(paths):
        match = _ORBIT.search(path.stem)
        orbits[row] = ORBITS * int(match[1]) + int(match[2]) if match else -1 - row
    return orbits


def _products(paths: Iterable[Path]) -> xr.Variable:
    """Give each file a number and list their names."""
    names = [path.stem.replace(" ", "_") for path in paths]
    variable = _variable("scene", np.arange(len(names), dtype=np.int32), "1", "file of the scene")
    variable.attrs["flag_values"] = list(range(len(names)))
    variable.attrs["flag_meanings"] = " ".join(names)
    return variable


# ---- arrays


@dataclass(frozen=True)
class _Stored:
    """A dataset of an HDF5 file, opened anew for each read: handles don't travel to workers."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        def get(file: h5py.File) -> npt.NDArray[Any]:
            values = np.asarray(file[self.name][key])
            return values.astype(self.dtype, copy=False)

        return _with_file(self.path, get)


def _with_file(path: Path, use: Callable[[h5py.File], Read]) -> Read:
    """Open an HDF5 file, use it and close it.

    Raises
    ------
    IntegrityError
        It can't be read.
    """
    try:
        with h5py.File(path, "r") as file:
            return use(file)
    except FileNotFoundError as error:
        message = f"{path}: not there; get the files of the subset"
        raise IntegrityError(message) from error
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        message = f"{path}: h5py can't read it ({reason}); get it again"
        raise IntegrityError(message) from error


def _open(path: Path) -> dict[str, _Stored]:
    """Read where a scene's arrays lie and check their shapes and types."""

    def describe(file: h5py.File) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        entries = {name: file.get(name) for name in _ARRAYS}
        return {
            name: (entry.shape, entry.dtype)
            for name, entry in entries.items()
            if isinstance(entry, h5py.Dataset)
        }

    found = _with_file(path, describe)
    missing = [name for name in _ARRAYS if name not in found and name not in _TRUTH]
    if missing:
        message = f"{path}: lacks the dataset {', '.join(missing)}; get it again"
        raise IntegrityError(message)
    return {name: _checked(path, name, *described) for name, described in found.items()}


def _checked(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Stored:
    _, length, kinds, _, _ = _ARRAYS[name]
    if len(shape) != 3 or min(shape) < 1 or shape[2] != length or dtype.kind not in kinds:
        kind = "real numbers" if kinds == "f" else "integers"
        message = (
            f"{path}: {name} has shape {shape} of {dtype}, expected (y, x, {length}) of {kind}; "
            "get it again"
        )
        raise IntegrityError(message)
    native = np.dtype(np.float32) if kinds == "f" else dtype.newbyteorder("=")
    return _Stored(path, name, shape, native)


def _stack(name: str, scenes: Sequence[_Stored]) -> xr.Variable:
    """Join an array of all scenes along a new first axis, one Dask chunk a scene."""
    first = scenes[0]
    for other in scenes:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            message = (
                f"{other.path}: {name} has shape {other.shape} of {other.dtype}, but "
                f"{first.path.name} has {first.shape} of {first.dtype}; put scenes of one size "
                "and type into a subset"
            )
            raise IntegrityError(message)
    empty = np.empty((0, 0, 0), first.dtype)
    parts = [da.from_array(s, chunks=first.shape, name=False, meta=empty) for s in scenes]
    values = da.stack(parts)
    channel, _, _, units, long_name = _ARRAYS[name]
    if not channel:
        return _variable(("scene", "y", "x"), values[..., 0], units, long_name)
    return _variable(("scene", "y", "x", channel), values, units, long_name)
