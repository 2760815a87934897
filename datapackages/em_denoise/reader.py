"""Read pairs of noisy and clean electron micrographs from HDF5, as SciML-Bench stores them.

Two files hold one array ``images`` each, of shape (N, h, w, 1); row i of one is row i of the other.
Images are not loaded; Dask reads them in blocks of rows. Checks structure (names, shapes, types),
not what the images show. The folder ``inference`` of the original is not read: in which image
format its files are is documented nowhere.
"""

from pathlib import Path
from typing import Any

import dask.array as da
import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

NOISE, CLEAN = "train/graphene_img_noise.h5", "train/graphene_img_clean.h5"

ROWS = 64  # images in a task: 16 MB at the original's 256 x 256, so that memory stays bounded
VALIDATION, TEST = 0.75, 0.875  # shares of the file at which these splits begin

_COLUMNS = {
    "dose": ("electrons per pixel", "electrons on a pixel in the middle of the beam"),
    "pixel_size": ("Angstrom", "width of a pixel"),
}


def read(folder: Path) -> xr.Dataset:
    """Open the pairs in a folder; images stay on the disk.

    Parameters
    ----------
    folder
        Holds ``train/graphene_img_noise.h5`` and ``train/graphene_img_clean.h5``.

    Returns
    -------
        Data variables ``noisy`` and ``clean`` (image, y, x), in the type of the files. Coordinate
        ``split`` along image: 0 training, 1 validation, 2 test, in contiguous parts of the file.
        Where the noisy file has them (the sample does) also ``dose`` and ``pixel_size``.

    Raises
    ------
    IntegrityError
        A file is missing or damaged, or the two do not belong together.
    """
    noisy, clean = _Images(folder / NOISE), _Images(folder / CLEAN)
    if noisy.shape != clean.shape:
        message = (
            f"{clean.path}: images of shape {clean.shape}, but {noisy.path.name} has "
            f"{noisy.shape}, so they can't be paired; get both files again"
        )
        raise IntegrityError(message)
    variables = {
        "noisy": _variable(noisy, "noisy micrographs"),
        "clean": _variable(clean, "clean micrographs"),
    }
    return xr.Dataset(
        variables,
        {"split": _split(noisy.shape[0]), **_columns(noisy.path, noisy.shape[0])},
        {"title": "Noisy and clean electron micrographs of graphene"},
    )


class _Images:
    """The array ``images`` of an HDF5 file as (image, y, x), which Dask cuts lazily."""

    ndim = 3

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                images = file.get("images")
                if not isinstance(images, h5py.Dataset):
                    found = ", ".join(file) or "nothing"
                    message = f"{path}: expected an array images, found {found}; get it again"
                    raise IntegrityError(message)
                shape, self.dtype = images.shape, images.dtype.newbyteorder("=")
        except OSError as error:
            message = f"{path}: can't be read as HDF5 ({error}); get the files of the subset"
            raise IntegrityError(message) from error
        if len(shape) != 4 or shape[3] != 1 or 0 in shape or self.dtype.kind not in "fiu":
            message = (
                f"{path}: images of shape {shape} and type {self.dtype}, expected real numbers of "
                "shape (N, h, w, 1); get it again"
            )
            raise IntegrityError(message)
        self.shape: tuple[int, int, int] = shape[:3]

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        try:
            with h5py.File(self.path, "r") as file:
                values: npt.NDArray[Any] = file["images"][(*key, 0)]
        except (OSError, KeyError) as error:
            message = f"{self.path}: changed while it was read ({error}); get it again"
            raise IntegrityError(message) from error
        return values.astype(self.dtype, copy=False)


def _variable(images: _Images, long_name: str) -> xr.Variable:
    none = np.empty((0, 0, 0), images.dtype)
    array = da.from_array(images, chunks=(ROWS, -1, -1), name=False, meta=none)
    attributes = {"units": "grey levels", "long_name": long_name}
    return xr.Variable(("image", "y", "x"), array, attributes)


def _split(count: int) -> xr.Variable:
    """Cut the file into three contiguous parts.

    The original has no validation set and says nothing about the order of its images. Neighbours
    may be neighbouring frames of one molecular dynamics run, which a random split would part.
    """
    place = np.arange(count) / count
    split = ((place >= VALIDATION).astype(np.int32) + (place >= TEST)).astype(np.int32)
    attributes = {
        "units": "1",
        "long_name": "split",
        "flag_values": [0, 1, 2],
        "flag_meanings": "train validation test",
    }
    return xr.Variable("image", split, attributes)


def _columns(path: Path, count: int) -> dict[str, xr.Variable]:
    """Read the numbers of each image that the noisy file states, if any."""
    columns = {}
    with h5py.File(path, "r") as file:
        for name, (units, long_name) in _COLUMNS.items():
            if name not in file:
                continue
            values = np.asarray(file[name])
            if values.shape != (count,) or values.dtype.kind != "f":
                message = (
                    f"{path}: {name} has shape {values.shape} and type {values.dtype}, expected "
                    f"one float for each of {count} images; get it again"
                )
                raise IntegrityError(message)
            attributes = {"units": units, "long_name": long_name}
            columns[name] = xr.Variable("image", values.astype(np.float64), attributes)
    return columns
