"""Read drug responses with their features from the tables of a pandas HDFStore, through h5py.

The file is the one of the CANDLE benchmark Uno, ``top_21_auc_1fold.uno.h5``, or one of its layout:
for each part of a random split a table of gene expression (``x_train_0``), one of drug descriptors
(``x_train_1``) and one of responses (``y_train``), row by row. A table is a PyTables table: rows of
an index and of blocks, one for each type of column. Features are not loaded; Dask reads them in
blocks of rows.

pandas keeps the names of columns in attributes, as pickles. A pickle from a file can run any code
when it is loaded: none is loaded here. Only whether "Drug1" comes before "Sample" is looked up, as
text.
"""

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import xarray as xr

from scibench_data.errors import IntegrityError, RequirementError

Numbers: TypeAlias = npt.NDArray[Any]

PARTS = ("train", "val", "test")
BLOCK = 1024  # responses in a task: 1 MB of the sample's features, 25 MB of the original's
BLOSC = 32001  # number of the filter in HDF5's registry


def read(folder: Path) -> xr.Dataset:
    """Open the responses in a folder; features stay on the disk.

    Parameters
    ----------
    folder
        Holds one file ``*.h5`` and, where the truth is known, ``truth/auc.csv``.

    Returns
    -------
        Data variables ``expression`` (response, gene) and ``descriptors`` (response, descriptor);
        coordinates along response ``auc``, ``cell``, ``drug`` (numbers of the names in the
        attribute ``flag_meanings``, in their alphabetical order), ``part`` (0 train, 1 val, 2 test
        of the file's random split); with the truth also ``true_auc``. First come the responses of
        ``train``, then those of ``val``, then those of ``test``, each in the order of the file.

    Raises
    ------
    IntegrityError
        The file or a table is missing, or is not what it should be.
    RequirementError
        The tables are compressed with a filter that this HDF5 library lacks.
    """
    path = _store(folder)
    try:
        with h5py.File(path, "r") as file:
            tables = {
                name: [_table(path, file, name.format(part)) for part in PARTS]
                for name in ("x_{}_0", "x_{}_1", "y_{}")
            }
            responses = [_responses(path, file, table) for table in tables["y_{}"]]
            expression = _features(path, tables["x_{}_0"], tables["y_{}"])
            descriptors = _features(path, tables["x_{}_1"], tables["y_{}"])
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        message = f"{path}: can't be read as HDF5 ({error}); get the files of the subset again"
        raise IntegrityError(message) from error
    auc = np.concatenate([one.auc for one in responses])
    cells = [name for one in responses for name in one.cells]
    drugs = [name for one in responses for name in one.drugs]
    part = np.repeat(np.arange(3), [len(one.auc) for one in responses]).astype(np.int32)
    variables = {
        "auc": _variable(auc, "area under the dose-response curve: share of living cells"),
        "cell": _named(cells, "cell line, by the alphabetical order of names"),
        "drug": _named(drugs, "drug, by the alphabetical order of names"),
        "part": _variable(part, "part of the file's random split: 0 train, 1 val, 2 test"),
    }
    truth = folder / "truth" / "auc.csv"
    if truth.exists() or truth.is_symlink():  # a link to nothing is a file that was not fetched
        variables["true_auc"] = _truth(truth, cells, drugs)
    return xr.Dataset(
        {
            "expression": _lazy(expression, "gene", "expression of genes, scaled"),
            "descriptors": _lazy(descriptors, "descriptor", "molecular descriptors of the drug"),
        },
        variables,
        {"title": "Responses of cancer cell lines to drugs"},
    )


def _store(folder: Path) -> Path:
    """Find the one HDF5 file of a folder."""
    found = sorted(folder.glob("*.h5"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    message = f"{folder}: expected one file *.h5 with tables, found {names}; get the subset's files"
    raise IntegrityError(message)


def _variable(values: Numbers, long_name: str) -> xr.Variable:
    return xr.Variable("response", values, {"units": "1", "long_name": long_name})


def _named(names: Sequence[str], long_name: str) -> xr.Variable:
    """Give names numbers in alphabetical order: rows in another order change none."""
    labels, number = np.unique(np.array(names), return_inverse=True)
    variable = _variable(number.astype(np.int32), long_name)
    variable.attrs["flag_values"] = list(range(len(labels)))
    variable.attrs["flag_meanings"] = " ".join(str(name).replace(" ", "_") for name in labels)
    return variable


def _lazy(features: "_Features", dim: str, long_name: str) -> xr.Variable:
    none = np.empty((0, 0), features.dtype)
    array = da.from_array(features, chunks=(BLOCK, -1), name=False, meta=none)
    return xr.Variable(("response", dim), array, {"units": "1", "long_name": long_name})


# ---- tables of an HDFStore


@dataclass(frozen=True)
class _Table:
    """A PyTables table: where it lies, its rows, and the type and shape of each block."""

    key: str
    rows: int
    blocks: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _table(path: Path, file: h5py.File, group: str) -> _Table:
    """Look at one table of the store."""
    key = f"{group}/table"
    if not isinstance(file.get(key), h5py.Dataset):
        names = ", ".join(sorted(file)) or "nothing"
        message = (
            f"{path}: no table {group}, it holds {names}; take a file with x_train_0, x_train_1, "
            "y_train and the same of val and test"
        )
        raise IntegrityError(message)
    table = file[key]
    if table.file.filename != file.filename or table.external or table.is_virtual:
        message = f"{path}: {group} lies in another file; don't use this file"
        raise IntegrityError(message)
    if table.ndim != 1 or table.dtype.names is None or not table.size:
        message = f"{path}: {group} is no table with rows; get the file again"
        raise IntegrityError(message)
    _refuse_filters(path, table)
    _refuse_cut(path, table)
    kinds = {name: table.dtype[name] for name in table.dtype.names if name != "index"}
    return _Table(key, table.size, {name: (k.base, k.shape) for name, k in kinds.items()})


def _refuse_filters(path: Path, table: h5py.Dataset) -> None:
    """See that every filter is there; Blosc comes with the Python package hdf5plugin."""
    creation = table.id.get_create_plist()
    for number in range(creation.get_nfilters()):
        code = creation.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            with contextlib.suppress(ImportError):
                import hdf5plugin  # type: ignore[import-not-found]  # noqa: F401  (not required)
        if not h5py.h5z.filter_avail(code):
            name = " (Blosc)" if code == BLOSC else ""
            message = (
                f"{path}: compressed with the HDF5 filter {code}{name}, which this HDF5 library "
                "lacks; pip install hdf5plugin"
            )
            raise RequirementError(message)


def _refuse_cut(path: Path, table: h5py.Dataset) -> None:
    """See that a table in one piece ends within the file."""
    start, size = table.id.get_offset(), table.size * table.dtype.itemsize
    if start is not None and path.stat().st_size < start + size:
        message = f"{path}: cut short, {table.name} ends at byte {start + size}; get it again"
        raise IntegrityError(message)


@dataclass(frozen=True)
class _Answers:
    """The responses of one part."""

    auc: Numbers
    cells: list[str]
    drugs: list[str]


def _responses(path: Path, file: h5py.File, table: _Table) -> _Answers:
    """Read AUC, cell line and drug: a block of one number and a block of two texts."""
    numbers = [n for n, (kind, shape) in table.blocks.items() if (kind.kind, shape) == ("f", (1,))]
    texts = [n for n, (kind, shape) in table.blocks.items() if (kind.kind, shape) == ("S", (2,))]
    if len(numbers) != 1 or len(texts) != 1:
        message = (
            f"{path}: {table.key} has the blocks {', '.join(table.blocks)}, expected one of a "
            "number, the AUC, and one of two texts, cell line and drug; get the file again"
        )
        raise IntegrityError(message)
    rows = file[table.key][()]
    auc = rows[numbers[0]][:, 0].astype(np.float32)
    if not np.isfinite(auc).all():
        message = f"{path}: {table.key} has an AUC that is no number; get the file again"
        raise IntegrityError(message)
    cell, drug = (1, 0) if _drug_first(file[table.key], texts[0]) else (0, 1)
    names = np.char.decode(rows[texts[0]], "utf-8", "replace")
    return _Answers(auc, names[:, cell].tolist(), names[:, drug].tolist())


def _drug_first(table: h5py.Dataset, block: str) -> bool:
    """Look up the order of two columns in the text of a pickle, which is not loaded."""
    text = b""
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
        text = np.asarray(table.attrs[f"{block}_kind"]).tobytes()
    drug, sample = text.find(b"Drug1"), text.find(b"Sample")
    return 0 <= drug < sample


# ---- features


@dataclass(frozen=True)
class _Part:
    """Features of one part: the block of a table."""

    key: str
    block: str
    rows: int


def _features(path: Path, tables: Sequence[_Table], answers: Sequence[_Table]) -> "_Features":
    """Find the block of features in each table, as many rows as there are responses."""
    parts, kinds = [], set()
    for table, answer in zip(tables, answers, strict=True):
        blocks = [(name, *kind) for name, kind in table.blocks.items()]
        if len(blocks) != 1 or blocks[0][1].kind != "f" or table.rows != answer.rows:
            message = (
                f"{path}: {table.key} has {table.rows} rows of the blocks "
                f"{', '.join(table.blocks)}, expected {answer.rows} rows, as {answer.key} has, of "
                "one block of real numbers; get the file again"
            )
            raise IntegrityError(message)
        parts.append(_Part(table.key, blocks[0][0], table.rows))
        kinds.add((blocks[0][1].newbyteorder("="), math.prod(blocks[0][2])))
    if len(kinds) != 1:
        message = (
            f"{path}: {tables[0].key} and those of val and test differ in width or type; "
            "get the file again"
        )
        raise IntegrityError(message)
    ((dtype, width),) = kinds
    return _Features(path, tuple(parts), dtype, width)


class _Features:
    """The features of all parts one after the other as one array, which Dask cuts lazily."""

    ndim = 2

    def __init__(
        self, path: Path, parts: tuple[_Part, ...], dtype: np.dtype[Any], width: int
    ) -> None:
        self._path, self._parts, self.dtype = path, parts, dtype
        self.shape = (sum(part.rows for part in parts), width)

    def __getitem__(self, key: tuple[Any, ...]) -> Numbers:
        asked = np.asarray(np.arange(self.shape[0])[key[0]])  # of one number where one is asked for
        wanted = asked.reshape(-1)
        values = np.empty((wanted.size, self.shape[1]), self.dtype)
        start = 0
        try:
            with h5py.File(self._path, "r") as file:
                for part in self._parts:
                    rows = wanted - start
                    here = np.flatnonzero((rows >= 0) & (rows < part.rows))
                    if here.size:
                        low, high = int(rows[here].min()), int(rows[here].max()) + 1
                        read = file[part.key].fields(part.block)[low:high]
                        values[here] = read.reshape(high - low, -1)[rows[here] - low]
                    start += part.rows
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            message = f"{self._path}: can't be read any more ({error}); get it again"
            raise IntegrityError(message) from error
        return values.reshape(*asked.shape, self.shape[1])[(..., *key[1:])]


# ---- the truth


def _truth(path: Path, cells: Sequence[str], drugs: Sequence[str]) -> xr.Variable:
    """Look up the AUC without noise of each pair of cell line and drug."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            known = {(r["Sample"], r["Drug1"]): float(r["AUC"]) for r in csv.DictReader(file)}
        values = np.array([known[pair] for pair in zip(cells, drugs, strict=True)])
    except OSError as error:
        message = f"{path}: can't be read ({error.strerror}); get the files of the subset"
        raise IntegrityError(message) from error
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: no AUC for {error}, expected one for every response; get it again"
        raise IntegrityError(message) from error
    return _variable(values, "AUC without the noise of the assay")
