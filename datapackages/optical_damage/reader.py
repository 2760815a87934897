"""Read the frames of a laser's diagnostic camera: TIFF files in folders that say what they show.

The folders are SciML-Bench's: ``training/undamaged``, ``validation/undamaged``,
``inference/undamaged``, ``inference/damaged``. Frames are baseline TIFF (Aldus 1992, revision 6.0):
one image of one channel, 8 or 16 bit, uncompressed. They are not loaded; Dask reads them in blocks.
Only the header of each file is read at first. Checks structure, not what the frames show.
"""

import csv
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError

ROWS = 32  # frames in a task: 21 MB of the original's 492 x 656, so that memory stays bounded

_FOLDERS = {  # folder -> number of the split, damaged
    "training/undamaged": (0, 0),
    "validation/undamaged": (1, 0),
    "inference/undamaged": (2, 0),
    "inference/damaged": (2, 1),
}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _CHANNELS, _BYTES = (
    256,
    257,
    258,
    259,
    273,
    277,
    279,
)
_DEFAULTS = {_BITS: (1,), _COMPRESSION: (1,), _CHANNELS: (1,)}
_TYPES = {1: "B", 3: "H", 4: "I"}  # of tags whose values are whole numbers


def read(folder: Path) -> xr.Dataset:
    """Open the frames in a folder; they stay on the disk.

    Parameters
    ----------
    folder
        Holds the four folders of frames, ``*.TIFF`` or ``*.tif``, and, where the truth is known,
        ``truth/damage.csv``.

    Returns
    -------
        Data variable ``images`` (frame, y, x) in the type of the files, whole frames as the camera
        gave them; coordinates along frame ``split`` (0 training, 1 validation, 2 inference),
        ``damaged`` (0 or 1, what the folder is called) and, where the truth is known,
        ``detectability`` (0 in frames without damage). Frames are in the order of their paths
        within each folder.

    Raises
    ------
    IntegrityError
        There are no frames, or a file is not such a TIFF, or not like the others.
    """
    paths, split, damaged = _find(folder)
    frames = _Frames([_open(path) for path in paths])
    none = np.empty((0, 0, 0), frames.dtype)
    images = da.from_array(frames, chunks=(ROWS, -1, -1), name=False, meta=none)
    coordinates = {
        "split": _flags(split, "split", "train validation test"),
        "damaged": _flags(damaged, "whether the optic is damaged", "undamaged damaged"),
    }
    truth = folder / "truth" / "damage.csv"
    if truth.exists() or truth.is_symlink():  # a link to nothing is a file that was not fetched
        names = [path.relative_to(folder).as_posix() for path in paths]
        coordinates["detectability"] = _detectability(truth, names, damaged)
    attributes = {"units": "counts", "long_name": "camera frames"}
    return xr.Dataset(
        {"images": xr.Variable(("frame", "y", "x"), images, attributes)},
        coordinates,
        {"title": "Camera frames of a laser beam behind sound and damaged optics"},
    )


def _find(folder: Path) -> tuple[list[Path], list[int], list[int]]:
    """List the frames of every folder, with their split and label."""
    paths: list[Path] = []
    split: list[int] = []
    damaged: list[int] = []
    for name, (number, label) in _FOLDERS.items():
        found = [p for p in (folder / name).glob("*") if p.suffix.lower() in {".tif", ".tiff"}]
        if not found:
            message = f"{folder / name}: expected TIFF files, found none; get the whole subset"
            raise IntegrityError(message)
        paths += sorted(found)
        split += [number] * len(found)
        damaged += [label] * len(found)
    return paths, split, damaged


def _flags(values: list[int], long_name: str, meanings: str) -> xr.Variable:
    attributes = {
        "units": "1",
        "long_name": long_name,
        "flag_values": list(range(len(meanings.split()))),
        "flag_meanings": meanings,
    }
    return xr.Variable("frame", np.array(values, np.int32), attributes)


# ---- TIFF


@dataclass(frozen=True)
class _Tiff:
    """Where the pixels of a frame lie: strips of (offset, bytes) one below the other."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, int]
    strips: tuple[tuple[int, int], ...]

    def pixels(self) -> npt.NDArray[Any]:
        """Read the frame, shape (y, x)."""
        with self.path.open("rb") as file:
            content = b"".join(_take(file, offset, size) for offset, size in self.strips)
        height, width = self.shape
        if len(content) < height * width * self.dtype.itemsize:
            message = f"{self.path}: became shorter while it was read; get it again"
            raise IntegrityError(message)
        return np.frombuffer(content, self.dtype, height * width).reshape(self.shape)


class _Frames:
    """Frames of several files as one array of shape (frame, y, x), which Dask cuts lazily."""

    ndim = 3

    def __init__(self, frames: list[_Tiff]) -> None:
        self._frames = frames
        first = frames[0]
        self.dtype = first.dtype.newbyteorder("=")
        self.shape = (len(frames), *first.shape)
        for other in frames:
            if (other.shape, other.dtype.newbyteorder("=")) != (first.shape, self.dtype):
                got, expected = (
                    f"{one.shape[0]} x {one.shape[1]} {one.dtype.name}" for one in (other, first)
                )
                message = (
                    f"{other.path}: {got}, but {first.path.name} has {expected}; put frames of one "
                    "camera into a subset"
                )
                raise IntegrityError(message)

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        wanted = np.arange(len(self._frames))[key[0]]
        values = np.empty((*wanted.shape, *self.shape[1:]), self.dtype)
        for place, number in np.ndenumerate(wanted):
            values[place] = self._frames[number].pixels()
        return values[(..., *key[1:])]


def _open(path: Path) -> _Tiff:
    """Read where the pixels of a TIFF file lie."""
    try:
        size = path.stat().st_size  # follows git-annex's links
        with path.open("rb") as file:
            order, tags = _tags(file)
        tiff = _layout(path, order, tags)
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    except (struct.error, ValueError, LookupError) as error:
        message = f"{path}: not a TIFF file of one 8 or 16 bit channel ({error}); get it again"
        raise IntegrityError(message) from error
    end = max(offset + length for offset, length in tiff.strips)
    if size < end:
        message = f"{path}: {size} bytes, expected at least {end}; get it again"
        raise IntegrityError(message)
    return tiff


def _take(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _tags(file: BinaryIO) -> tuple[str, dict[int, tuple[int, ...]]]:
    """Read the byte order and the whole-number tags of the first image of a TIFF file."""
    mark = _take(file, 0, 4)
    if mark not in {b"II*\0", b"MM\0*"}:
        message = f"begins with {mark!r}"
        raise ValueError(message)
    order = "<" if mark[:1] == b"I" else ">"
    (start,) = struct.unpack(f"{order}I", _take(file, 4, 4))
    (count,) = struct.unpack(f"{order}H", _take(file, start, 2))
    table = _take(file, start + 2, 12 * count)
    tags = {}
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", table):
        if kind not in _TYPES or number > 1 << 16:
            continue
        layout = f"{order}{number}{_TYPES[kind]}"
        length = struct.calcsize(layout)
        (place,) = struct.unpack(f"{order}I", value)
        content = value[:length] if length <= 4 else _take(file, place, length)
        tags[tag] = struct.unpack(layout, content)
    return order, tags


def _layout(path: Path, order: str, tags: dict[int, tuple[int, ...]]) -> _Tiff:
    """Turn the tags of an image into the place of its pixels."""
    tags = _DEFAULTS | tags
    (bits, *others), (compression,), (channels,) = tags[_BITS], tags[_COMPRESSION], tags[_CHANNELS]
    if others or channels != 1 or compression != 1 or bits not in {8, 16}:
        message = f"{channels} channels of {bits} bit, compression {compression}"
        raise ValueError(message)
    (width,), (height,) = tags[_WIDTH], tags[_HEIGHT]
    dtype = np.dtype(f"{order}u{bits // 8}")
    strips = tuple(zip(tags[_OFFSETS], tags[_BYTES], strict=True))
    total = sum(length for _, length in strips)
    if width < 1 or height < 1 or total < width * height * dtype.itemsize:
        message = f"{total} bytes for {height} x {width} pixels"
        raise ValueError(message)
    return _Tiff(path, dtype, (height, width), strips)


# ---- the truth


def _detectability(path: Path, names: list[str], damaged: list[int]) -> xr.Variable:
    """Look up how far each damaged frame lies from the same frame without damage."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            known = {row["path"]: float(row["detectability"]) for row in csv.DictReader(file)}
        values = [known[name] if label else 0.0 for name, label in zip(names, damaged, strict=True)]
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: no detectability for {error}, expected one for every damaged frame; "
        message += "get it again"
        raise IntegrityError(message) from error
    attributes = {"units": "1", "long_name": "distance from the frame without damage, in noise"}
    return xr.Variable("frame", np.array(values, np.float64), attributes)
