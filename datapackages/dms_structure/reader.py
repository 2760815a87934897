"""Read patterns of diffuse multiple scattering from ``training/data-binary.h5``.

The file is the one of sciml-bench's ``dms_sim``: HDF5 with ``train/images``, ``train/labels``,
``test/images`` and ``test/labels``; images have the shape (pattern, row, column, channel). Images
are not loaded; Dask reads them in blocks of patterns. Checks structure (keys, shapes, types), not
what the images show.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

Numbers: TypeAlias = npt.NDArray[Any]

PARTS = ("train", "test")
BLOCK = 64  # patterns in a task: 2 MB of the sample, 18 MB at the detector's full size in 8 bits
TRAIN, VALIDATION, TEST = 0, 1, 2

_TRUTH = {
    "a": ("Angstrom", "edge a of the cell"),
    "b": ("Angstrom", "edge b of the cell"),
    "c": ("Angstrom", "edge c of the cell"),
    "beta": ("degree", "angle between a and c"),
}


def read(folder: Path) -> xr.Dataset:
    """Open the patterns in a folder; images stay on the disk.

    Parameters
    ----------
    folder
        Holds ``training/data-binary.h5`` and, where the truth is known, ``truth/patterns.csv``.

    Returns
    -------
        Data variable ``images`` (pattern, y, x, channel) in the type of the file; coordinates along
        pattern ``label`` (0 monoclinic, 1 tetragonal) and ``split`` (0 train, 1 validation,
        2 test); with the truth also ``a``, ``b``, ``c``, ``beta``. First come the patterns of
        ``train``, then those of ``test``, each in the order of the file.

    Raises
    ------
    IntegrityError
        The file or a key is missing, cut short, or not what it should be.

    Notes
    -----
    The file has no validation patterns, and the original stops its training on the test patterns.
    Here every fifth pair of training patterns (pairs 4, 9, 14, ... from 0) is for validation.
    Labels are numbered in the order of their values, as the original's ``OneHotEncoder`` does.
    """
    path = folder / "training" / "data-binary.h5"
    parts, labels = _open(path)
    images = _Images(path, parts)
    none = np.empty((0,) * 4, images.dtype)
    array = da.from_array(images, chunks=(BLOCK, -1, -1, -1), name=False, meta=none)
    variables = {
        "label": _variable(labels, "1", "phase: 0 monoclinic, 1 tetragonal"),
        "split": _variable(_split(parts), "1", "0 train, 1 validation, 2 test"),
    }
    truth = folder / "truth" / "patterns.csv"
    if truth.exists() or truth.is_symlink():  # a link to nothing is a file that was not fetched
        variables |= _truth(truth, labels)
    attrs = {"units": "1", "long_name": "diffraction patterns, in grey levels"}
    return xr.Dataset(
        {"images": (("pattern", "y", "x", "channel"), array, attrs)},
        variables,
        {"title": "Diffuse multiple scattering of two phases"},
    )


def _variable(values: Numbers, units: str, long_name: str) -> xr.Variable:
    return xr.Variable("pattern", values, {"units": units, "long_name": long_name})


def _split(parts: "tuple[_Part, ...]") -> npt.NDArray[np.int32]:
    """Give each pattern its split."""
    train, test = (part.shape[0] for part in parts)
    pair = np.arange(train) // 2
    within = np.where(pair % 5 == 4, VALIDATION, TRAIN)
    return np.concatenate([within, np.full(test, TEST)]).astype(np.int32)


# ---- the HDF5 file


@dataclass(frozen=True)
class _Part:
    """The images of ``train`` or ``test``: where they lie and what they are."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _open(path: Path) -> tuple[tuple[_Part, ...], npt.NDArray[np.int32]]:
    """Look at both parts and read their labels."""
    try:
        with h5py.File(path, "r") as file:
            parts = tuple(_part(path, file, name) for name in PARTS)
            found = [
                _labels(path, file, name, part.shape[0])
                for name, part in zip(PARTS, parts, strict=True)
            ]
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        message = f"{path}: can't be read as HDF5 ({error}); get the files of the subset again"
        raise IntegrityError(message) from error
    first, second = parts
    if (first.shape[1:], first.dtype) != (second.shape[1:], second.dtype):
        message = (
            f"{path}: {second.key} has {_shown(second)}, but {first.key} has {_shown(first)}; "
            "get the file again"
        )
        raise IntegrityError(message)
    values, number = np.unique(np.concatenate(found), return_inverse=True)
    if values.size != 2:
        message = (
            f"{path}: {values.size} different labels, expected two, monoclinic and tetragonal; "
            "take the binary data set"
        )
        raise IntegrityError(message)
    return parts, number.astype(np.int32)


def _shown(part: _Part) -> str:
    return f"{' x '.join(map(str, part.shape[1:]))} {part.dtype.name}"


def _dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """Return the dataset of that key, which must lie in this file."""
    if not isinstance(file.get(key), h5py.Dataset):
        names = ", ".join(sorted(file)) or "nothing"
        message = f"{path}: no dataset {key}, it holds {names}; get the file again"
        raise IntegrityError(message)
    dataset = file[key]
    if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
        message = f"{path}: {key} lies in another file; don't use this file"
        raise IntegrityError(message)
    return dataset


def _part(path: Path, file: h5py.File, name: str) -> _Part:
    key = f"{name}/images"
    images = _dataset(path, file, key)
    if images.ndim != 4 or images.dtype.kind not in "uif" or min(images.shape) < 1:
        message = (
            f"{path}: {key} has the shape {images.shape} and type {images.dtype}, expected "
            "numbers of shape (pattern, row, column, channel); get the file again"
        )
        raise IntegrityError(message)
    end, size = images.id.get_offset(), math.prod(images.shape) * images.dtype.itemsize
    if end is not None and path.stat().st_size < end + size:
        message = f"{path}: cut short, {key} ends at byte {end + size}; get the file again"
        raise IntegrityError(message)
    return _Part(key, images.shape, images.dtype.newbyteorder("="))


def _labels(path: Path, file: h5py.File, name: str, count: int) -> Numbers:
    key = f"{name}/labels"
    labels = _dataset(path, file, key)
    if labels.size != count or labels.dtype.kind not in "uifSO":
        message = (
            f"{path}: {key} has the shape {labels.shape} and type {labels.dtype}, expected one "
            f"label for each of {count} patterns; get the file again"
        )
        raise IntegrityError(message)
    values = labels.asstr()[()] if labels.dtype.kind in "SO" else labels[()]
    flat: Numbers = np.asarray(values).reshape(-1)
    return flat


class _Images:
    """Both parts one after the other as one array, which Dask cuts lazily."""

    def __init__(self, path: Path, parts: tuple[_Part, ...]) -> None:
        self._path, self._parts = path, parts
        self.dtype = parts[0].dtype
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self.ndim = 4

    def __getitem__(self, key: tuple[Any, ...]) -> Numbers:
        asked = np.asarray(np.arange(self.shape[0])[key[0]])  # of one number where one is asked for
        wanted = asked.reshape(-1)
        values = np.empty((wanted.size, *self.shape[1:]), self.dtype)
        start = 0
        try:
            with h5py.File(self._path, "r") as file:
                for part in self._parts:
                    rows = wanted - start
                    here = np.flatnonzero((rows >= 0) & (rows < part.shape[0]))
                    if here.size:
                        low, high = int(rows[here].min()), int(rows[here].max()) + 1
                        values[here] = file[part.key][low:high][rows[here] - low]
                    start += part.shape[0]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            message = f"{self._path}: can't be read any more ({error}); get it again"
            raise IntegrityError(message) from error
        return values.reshape(*asked.shape, *self.shape[1:])[(..., *key[1:])]


# ---- the truth


def _truth(path: Path, labels: npt.NDArray[np.int32]) -> Mapping[str, xr.Variable]:
    """Read the lattice of each pattern; rows are in the order of the HDF5 file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lattice = np.array([[float(row[name]) for name in _TRUTH] for row in rows])
        same = np.array_equal([int(row["label"]) for row in rows], labels)
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: no lattice for every pattern ({error}); get it again"
        raise IntegrityError(message) from error
    if not same or not np.isfinite(lattice).all():
        message = f"{path}: does not fit the labels of the patterns; get the files again"
        raise IntegrityError(message)
    return {
        name: _variable(column, units, long_name)
        for (name, (units, long_name)), column in zip(_TRUTH.items(), lattice.T, strict=True)
    }
