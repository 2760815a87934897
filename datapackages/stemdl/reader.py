"""Read CBED patterns as STEMDL stores them: HDF5 batches of stacks, or one NPZ file for each stack.

HDF5 is the form of the simulation: ``{train,dev,test}/batch_{split}_{rank}.h5``, in it groups
``sample_{material}_{energy}`` with the dataset ``cbed_stack`` and attributes. NPZ is the form of
the copy that the benchmark trains on: ``sample-<n>.npz`` with the arrays ``data``, a logarithm of
the intensity, and ``label``, below ``training``, ``validation``, ``testing`` and ``inference``.

Patterns are not loaded; Dask reads them in blocks. Checks structure (names, shapes, attributes),
not what the patterns show. NPZ files that hold Python objects are refused: those would be code.
"""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

Patterns: TypeAlias = npt.NDArray[np.float32]

BLOCK = 8 << 20  # bytes of patterns in a task, so that memory stays bounded whatever the size

_SPLITS = {
    "train": 0, "training": 0, "dev": 1, "validation": 1, "test": 2, "testing": 2, "inference": 3,
}  # fmt: skip
_SPLIT_NAMES = "train validation test inference"
_SAMPLE = re.compile(r"sample_(\d{1,12})_(\d{1,12})")
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class _Sample:
    """Where a stack of three patterns lies, and what the file says of it."""

    path: Path
    group: str
    split: int
    width: int
    space_group: int
    material: str
    energy: float = np.nan
    semi_angles: tuple[float, ...] = (np.nan,) * 3
    spacings: tuple[float, ...] = (np.nan,) * 3
    lengths: tuple[float, ...] = (np.nan,) * 3
    angles: tuple[float, ...] = (np.nan,) * 3


def read(folder: Path) -> xr.Dataset:
    """Open the stacks below a folder; patterns stay on the disk.

    Parameters
    ----------
    folder
        Holds ``batch_*.h5`` or ``*.npz`` in folders named by their split, or in none.

    Returns
    -------
        Data variable ``patterns`` (sample, orientation, y, x) float32. Coordinates along sample:
        ``space_group`` (1 to 230), ``split`` (0 training, 1 validation, 2 test, 3 inference, -1
        where no folder says it). From HDF5 also ``material``, ``energy``, ``semi_angle``
        (sample, orientation), ``spacing`` (sample, orientation), and ``cell_length`` and
        ``cell_angle`` (sample, axis). Samples are in the order of files and of the numbers in
        their names. Patterns of HDF5 are shares of the electrons, those of NPZ
        ``clip(10 (max(-17, ln share) + 17), 0, 255)``; the attribute ``scale`` says which.

    Raises
    ------
    IntegrityError
        No files, files of both kinds, or one that is not what it should be.
    """
    batches, stacks = (
        sorted(folder.rglob(pattern), key=lambda path: _natural(path.relative_to(folder)))
        for pattern in ("batch_*.h5", "*.npz")
    )
    if bool(batches) == bool(stacks):
        found = "both" if batches else "neither"
        message = (
            f"{folder}: expected either batch_<split>_<rank>.h5 or sample-<n>.npz, found {found}; "
            "get the files of one subset"
        )
        raise IntegrityError(message)
    if stacks:
        return _dataset([_stack_sample(path, folder) for path in stacks], measured=False)
    samples = [sample for path in batches for sample in _batch_samples(path, folder)]
    if not samples:
        message = f"{folder}: the HDF5 files hold no sample_<material>_<energy>; get them again"
        raise IntegrityError(message)
    return _dataset(samples, measured=True)


def _natural(path: Path | str) -> list[tuple[int, str, int]]:
    """Order names by the numbers in them: batch_10 comes after batch_9."""
    parts = _NUMBER.split(str(path))
    return [(1, "", int(part)) if part.isdigit() else (0, part, 0) for part in parts]


def _split(path: Path, folder: Path) -> int:
    """Take the split from the innermost folder that names one, else from the file's own name."""
    parts = path.relative_to(folder.parent).parts
    names = [*reversed(parts[:-1]), *path.stem.split("_")[1:2]]
    return next((_SPLITS[name] for name in names if name in _SPLITS), -1)


# ---- HDF5


def _batch_samples(path: Path, folder: Path) -> list[_Sample]:
    """List the samples of an HDF5 file."""
    split = _split(path, folder)
    try:
        with h5py.File(path, "r") as file:
            names = sorted((name for name in file if _SAMPLE.fullmatch(name)), key=_natural)
            return [_batch_sample(path, name, file[name], split) for name in names]
    except OSError as error:
        message = f"{path}: can't be read as HDF5 ({error}); get the files of the subset again"
        raise IntegrityError(message) from error


def _batch_sample(path: Path, name: str, group: Any, split: int) -> _Sample:
    """Read the attributes of one sample."""
    where = f"{path}: {name}"
    stack = group.get("cbed_stack") if isinstance(group, h5py.Group) else None
    if not isinstance(stack, h5py.Dataset) or stack.dtype.kind != "f" or stack.ndim != 3:
        message = f"{where}: expected a dataset cbed_stack (3, n, n) of floats; get the file again"
        raise IntegrityError(message)
    _check_shape(where, stack.shape)
    attributes = dict(group.attrs)
    try:
        material = _text(attributes["material"])
        label = _text(attributes["space_group"])
        energy = float(attributes["energy_keV"])
        vectors = [
            _three(attributes[key])
            for key in ("semi_angles_rad", "d_hkls_angstrom", "abc_angstrom", "angles_degree")
        ]
    except (KeyError, ValueError, TypeError) as error:
        message = f"{where}: an attribute is missing or wrong ({error}); get the file again"
        raise IntegrityError(message) from error
    number, width = _group_number(where, label), int(stack.shape[-1])
    return _Sample(path, name, split, width, number, material, energy, *vectors)


def _text(value: Any) -> str:
    """Text of an attribute: h5py gives bytes of fixed length as numpy.bytes_."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _three(value: Any) -> tuple[float, ...]:
    numbers = np.asarray(value, np.float64).ravel()
    if numbers.size != 3:
        message = f"{numbers.size} numbers, expected 3"
        raise ValueError(message)
    return tuple(numbers.tolist())


# ---- NPZ


def _stack_sample(path: Path, folder: Path) -> _Sample:
    """Read the label of an NPZ file and look at the header of its patterns."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            label = np.asarray(arrays["label"]).ravel()
        shape, _ = _npz_header(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        message = f"{path}: can't be read as NPZ with data and label ({error}); get it again"
        raise IntegrityError(message) from error
    _check_shape(str(path), shape)
    if label.size != 1:
        message = f"{path}: {label.size} labels, expected 1; get it again"
        raise IntegrityError(message)
    number = _group_number(str(path), str(label[0]))
    return _Sample(path, "", _split(path, folder), shape[-1], number, "")


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type of ``data`` without its numbers."""
    with zipfile.ZipFile(path) as archive, archive.open("data.npy") as member:
        version = np.lib.format.read_magic(member)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = reader(member)
    if dtype.hasobject:
        message = "data holds Python objects"
        raise ValueError(message)
    return shape, dtype


# ---- both


def _check_shape(where: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2] or shape[1] < 1:
        message = f"{where}: patterns of shape {shape}, expected (3, n, n); get the file again"
        raise IntegrityError(message)


def _group_number(where: str, text: str) -> int:
    """Read the number of a space group."""
    number = int(text) if re.fullmatch(r"\d{1,3}", text) else 0
    if not 1 <= number <= 230:
        message = f"{where}: space group {text!r}, expected a number from 1 to 230; get it again"
        raise IntegrityError(message)
    return number


def _load(samples: Sequence[_Sample], width: int) -> Patterns:
    """Read stacks in their order, each file opened once for a run of its samples."""
    values = np.empty((len(samples), 3, width, width), np.float32)
    row = 0
    while row < len(samples):
        path = samples[row].path
        run = 1
        while row + run < len(samples) and samples[row + run].path == path:
            run += 1
        here = samples[row : row + run]
        try:
            values[row : row + run] = _load_file(path, [sample.group for sample in here])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            message = f"{path}: its patterns can't be read ({error}); get it again"
            raise IntegrityError(message) from error
        row += run
    return values


def _load_file(path: Path, groups: Sequence[str]) -> npt.NDArray[Any]:
    """Read stacks of one file, (n, 3, y, x); numpy.load leaves files that it opened itself open."""
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            return np.stack([file[group]["cbed_stack"][()] for group in groups])
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return np.asarray(arrays["data"])[None]


def _patterns(samples: Sequence[_Sample]) -> Any:
    """Make a Dask array whose blocks are read when they are needed."""
    width = samples[0].width
    for sample in samples:
        if sample.width != width:
            message = (
                f"{sample.path}: patterns of {sample.width} pixels, but those before have {width}; "
                "put patterns of one size into a subset"
            )
            raise IntegrityError(message)
    rows = max(1, BLOCK // (3 * width * width * 4))
    lazy = _Lazy(tuple(samples), width)
    return da.from_array(
        lazy, chunks=(rows, -1, -1, -1), name=False, meta=np.empty((0, 0, 0, 0), np.float32)
    )


class _Lazy:
    """Stacks as one array of shape (sample, orientation, y, x), which Dask cuts."""

    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, samples: tuple[_Sample, ...], width: int) -> None:
        self._samples, self._width = samples, width
        self.shape = (len(samples), 3, width, width)

    def __getitem__(self, key: tuple[Any, ...]) -> Patterns:
        rows = np.arange(len(self._samples))[key[0]]
        values = _load([self._samples[row] for row in rows.ravel()], self._width)
        return values.reshape(*rows.shape, *self.shape[1:])[(..., *key[1:])]


def _dataset(samples: list[_Sample], *, measured: bool) -> xr.Dataset:
    """Name everything. `measured` samples are shares of electrons, the others a logarithm."""
    scale = "share of the electrons" if measured else "clip(10 (max(-17, ln share) + 17), 0, 255)"
    patterns = xr.Variable(
        ("sample", "orientation", "y", "x"),
        _patterns(samples),
        {"units": "1", "long_name": "convergent-beam diffraction patterns", "scale": scale},
    )
    coordinates = {
        "space_group": _variable(
            "sample", np.array([s.space_group for s in samples], np.int32), "1",
            "number of the space group, International Tables",
        ),
        "split": _variable(
            "sample", np.array([s.split for s in samples], np.int32), "1",
            "which folder the sample is in: 0 training, 1 validation, 2 test, 3 inference",
        ),
    }  # fmt: skip
    coordinates["split"].attrs |= {"flag_values": [0, 1, 2, 3], "flag_meanings": _SPLIT_NAMES}
    if measured:
        coordinates |= _measured(samples)
    title = "Convergent-beam electron diffraction patterns of crystals along three directions"
    return xr.Dataset({"patterns": patterns}, coordinates, {"title": title})


def _variable(dims: str | tuple[str, ...], values: Any, units: str, long_name: str) -> xr.Variable:
    return xr.Variable(dims, values, {"units": units, "long_name": long_name})


def _measured(samples: Sequence[_Sample]) -> dict[str, xr.Variable]:
    """Turn the attributes of HDF5 samples into coordinates."""
    index = {name: number for number, name in enumerate(dict.fromkeys(s.material for s in samples))}
    material = _variable(
        "sample", np.array([index[s.material] for s in samples], np.int32), "1",
        "material that the sample is of",
    )  # fmt: skip
    material.attrs["flag_values"] = list(index.values())
    material.attrs["flag_meanings"] = " ".join(name.replace(" ", "_") for name in index)
    views, axes = ("sample", "orientation"), ("sample", "axis")
    return {
        "material": material,
        "energy": _variable(
            "sample", np.array([s.energy for s in samples]), "keV", "energy of the electrons"
        ),
        "semi_angle": _variable(
            views, np.array([s.semi_angles for s in samples]), "rad", "semi-angle of the probe"
        ),
        "spacing": _variable(
            views, np.array([s.spacings for s in samples]), "Angstrom",
            "spacing of the reflection whose indices are those of the direction along the beam",
        ),
        "cell_length": _variable(
            axes, np.array([s.lengths for s in samples]), "Angstrom", "lengths a, b, c of the cell"
        ),
        "cell_angle": _variable(
            axes, np.array([s.angles for s in samples]), "degree",
            "angles alpha, beta, gamma of the cell",
        ),
    }  # fmt: skip
