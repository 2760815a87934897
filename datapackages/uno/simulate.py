"""Simulate drug responses of cancer cell lines, byte for byte the same.

A cell line has activities of a few pathways, which its tissue shares in part; the expression of
each gene is a mixture of them. A drug has properties, which drugs of one mechanism share in part;
each molecular descriptor is a mixture of those. Drug and cell line meet in the potency::

    log10 EC50 = middle - potency of the drug - growth of the cell line
                 - sum over pathways of weight * activity * property

The share of cells that live on follows a Hill curve of slope 1 down to 1 - efficacy. The response
is the AUC: that share, averaged over the logarithm of the dose from 10^-10 to 10^-4 mol/l, plus the
noise of the assay. Pathways, mixtures and weights are the same for every seed.

The file has the tables that pandas' HDFStore makes of the CANDLE benchmark Uno's data, written by
h5py without pandas' attributes, which are pickles, and without times. Each response has its own
copy of the features there.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Integers: TypeAlias = npt.NDArray[np.int64]

TABLES = "sample.uno.h5"
TRUTH = "truth/auc.csv"
PARTS = ("train", "val", "test")  # of the original's random split, 8 : 1 : 1

PATHWAYS = 6
TISSUES, MECHANISMS = 8, 10
WEIGHTS = (0.54, 0.41, 0.32, 0.23, 0.16, 0.11)  # of pathways in the potency [decades of dose]
GROWTH = 0.35  # of cells that grow fast, which is seen in the expression too [decades of dose]
LOWEST, HIGHEST = -10.0, -4.0  # log10 of the doses [mol/l]
MIDDLE = -6.5  # log10 of an ordinary EC50 [mol/l]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first responses stay the same however many there are.

    Parameters
    ----------
    responses
        Number of responses. Each cell line is tested with nine tenths of the drugs, one after the
        other, so that more responses are more cell lines.
    seed
        Chooses cell lines, drugs, which are tested, and noise; the biology is always the same.
    drugs
        Number of drugs.
    genes
        Number of genes whose expression is known.
    descriptors
        Number of descriptors of a drug.
    noise
        Standard deviation of the assay's noise, as a multiple of sqrt(AUC (1 - AUC)).

    Raises
    ------
    UsageError
        A value out of range.
    """

    responses: int = 8640
    seed: int = 1
    drugs: int = 80
    genes: int = 300
    descriptors: int = 160
    noise: float = 0.1

    def __post_init__(self) -> None:
        bounds = {
            "responses": (1, 100_000_000),
            "seed": (0, (1 << 63) - 1),
            "drugs": (10, 10_000),
            "genes": (1, 20_000),
            "descriptors": (1, 20_000),
            "noise": (0.0, 1.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "noise"
            if not (whole and low <= value <= high):
                kind = "a number" if name == "noise" else "an integer"
                message = f"uno: {name}={value!r}; give {kind} from {low} to {high}"
                raise UsageError(message)

    @property
    def tested(self) -> int:
        """Number of drugs that a cell line is tested with."""
        return self.drugs * 9 // 10

    @property
    def cells(self) -> int:
        """Number of cell lines."""
        return -(-self.responses // self.tested)


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    return (TABLES, TRUTH)


def simulate(path: str, output: Path, **parameters: int | float) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file, or a parameter is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    if path == TABLES:
        _write_tables(output, asked)
    elif path == TRUTH:
        output.write_bytes(_truth(asked))
    else:
        message = f"uno: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)


# ---- cell lines and drugs


def _normal(count: int, *key: int | str) -> Array:
    return exact.normal(count, "uno", *key)


def _mixture(sources: int, features: int, name: str) -> Array:
    """Return how much of each source is in each feature, shape (source, feature)."""
    values = _normal(sources * features, name).reshape(sources, features)
    return np.asarray(values / np.sqrt(float(sources)))


def _rounded(values: Array) -> Array:
    """Round to multiples of 1/1024, which float32 holds exactly."""
    return np.asarray(np.rint(values * 1024.0) / 1024.0)


@dataclass(frozen=True)
class _Cell:
    """A cell line: its name, pathway activities with growth last, own sensitivity, expression."""

    name: str
    activity: Array
    own: float
    expression: Array


def _cell(asked: Parameters, number: int) -> _Cell:
    """Draw cell line `number`; half of the variance of its activities is its tissue's."""
    tissue = int(TISSUES * float(exact.uniform(1, "uno", asked.seed, "tissue", number)[0]))
    shared = _normal(PATHWAYS + 1, "tissue", tissue)
    activity = 0.7 * shared + 0.7 * _normal(PATHWAYS + 1, asked.seed, "activity", number)
    mixed = exact.matmul(activity[None], _mixture(PATHWAYS + 1, asked.genes, "expression"))[0]
    unexplained = 0.5 * _normal(asked.genes, asked.seed, "expression", number)
    return _Cell(
        name=f"SIM.{number + 1:05d}-TISSUE{tissue}",
        activity=activity,
        own=0.15 * float(_normal(1, asked.seed, "own", number)[0]),
        expression=_rounded(mixed + unexplained),
    )


@dataclass(frozen=True)
class _Drug:
    """A drug: its name, properties, potency [decades], efficacy from 0 to 0.9, descriptors."""

    name: str
    properties: Array
    potency: float
    efficacy: float
    descriptors: Array


@functools.cache
def _drugs(asked: Parameters) -> tuple[_Drug, ...]:
    return tuple(_drug(asked, number) for number in range(asked.drugs))


def _drug(asked: Parameters, number: int) -> _Drug:
    """Draw drug `number`; its descriptors show its properties, and half of its potency.

    Every third descriptor is a count, as of atoms or rings.
    """
    mechanism = int(MECHANISMS * float(exact.uniform(1, "uno", asked.seed, "mechanism", number)[0]))
    shared = _normal(PATHWAYS + 1, "mechanism", mechanism)
    properties = 0.8 * shared + 0.6 * _normal(PATHWAYS + 1, asked.seed, "properties", number)
    hidden, efficacy = (float(v) for v in _normal(2, asked.seed, "potency", number))
    mixed = exact.matmul(
        properties[None], _mixture(PATHWAYS + 1, asked.descriptors, "descriptors")
    )[0]
    unexplained = 0.3 * _normal(asked.descriptors, asked.seed, "descriptors", number)
    counts = np.maximum(np.rint(3.0 * mixed), 0.0)
    is_count = np.arange(asked.descriptors) % 3 == 0
    potency = 0.7 * float(properties[PATHWAYS]) + 0.7 * hidden
    chance = 1.0 / (1.0 + float(exact.exp(-(0.9 * potency + 0.6 * efficacy + 0.4))))
    return _Drug(
        name=f"SIM.{number + 1:04d}",
        properties=properties[:PATHWAYS],
        potency=0.55 * potency,
        efficacy=0.9 * chance,
        descriptors=_rounded(np.where(is_count, counts, mixed + unexplained)),
    )


def auc(log_ec50: Array, efficacy: Array) -> Array:
    """Average the share of living cells over the logarithm of the dose.

    The Hill curve 1 - efficacy / (1 + EC50 / dose) is integrated in closed form.

    Parameters
    ----------
    log_ec50
        log10 of the dose of half the effect. [mol/l]
    efficacy
        Share of the cells that any dose kills at most.
    """
    ten = 2.302585092994046
    above = exact.log(1.0 + exact.exp(ten * (HIGHEST - log_ec50)))
    below = exact.log(1.0 + exact.exp(ten * (LOWEST - log_ec50)))
    return np.asarray(1.0 - efficacy * (above - below) / (ten * (HIGHEST - LOWEST)))


# ---- responses


@dataclass(frozen=True)
class _Responses:
    """Responses of one cell line: part, drug, AUC without and with noise, each of shape (n,)."""

    part: Integers
    drug: Integers
    truth: Array
    measured: Array


def _responses(asked: Parameters, number: int, cell: _Cell) -> _Responses:
    """Test a cell line with drugs in an order of its own; the last line may miss the last ones."""
    count = min(asked.tested, asked.responses - number * asked.tested)
    places = exact.uniform(asked.drugs, "uno", asked.seed, "tested", number)
    drug = np.argsort(places, kind="stable")[:count].astype(np.int64)
    drugs = [_drugs(asked)[index] for index in drug.tolist()]
    growth = GROWTH * float(cell.activity[PATHWAYS]) + cell.own
    log_ec50 = np.array([MIDDLE - each.potency - growth for each in drugs])
    for pathway, weight in enumerate(WEIGHTS):
        properties = np.array([float(each.properties[pathway]) for each in drugs])
        log_ec50 = log_ec50 - weight * float(cell.activity[pathway]) * properties
    truth = auc(log_ec50, np.array([each.efficacy for each in drugs]))
    truth = np.rint(truth * 1e6) / 1e6
    noise = asked.noise * _normal(count, asked.seed, "noise", number)
    measured = truth + noise * np.sqrt(truth * (1.0 - truth))
    chance = exact.uniform(count, "uno", asked.seed, "part", number)
    return _Responses(
        part=(chance >= 0.8).astype(np.int64) + (chance >= 0.9),
        drug=drug,
        truth=truth,
        measured=np.minimum(np.maximum(np.rint(measured * 1e4) / 1e4, 0.0), 1.0),
    )


# ---- files


def _write_tables(output: Path, asked: Parameters) -> None:
    """Write the tables x_<part>_0, x_<part>_1 and y_<part>, a cell line at a time."""
    cells = [_cell(asked, number) for number in range(asked.cells)]
    found = [_responses(asked, number, cell) for number, cell in enumerate(cells)]
    expression = _table_type(("values_block_0", "<f4", (asked.genes,)))
    descriptors = _table_type(("values_block_0", "<f4", (asked.descriptors,)))
    response = _table_type(("values_block_0", "<f4", (1,)), ("values_block_1", "S30", (2,)))
    with h5py.File(output, "w", libver="earliest") as file:
        for part, name in enumerate(PARTS):
            count = int(
                np.sum([(one.part == part).sum(dtype=np.int64) for one in found], dtype=np.int64)
            )
            tables = [
                file.create_dataset(f"{group}/table", (count,), kind)
                for group, kind in (
                    (f"x_{name}_0", expression),
                    (f"x_{name}_1", descriptors),
                    (f"y_{name}", response),
                )
            ]
            start = 0
            for cell, one in zip(cells, found, strict=True):
                here = np.flatnonzero(one.part == part)
                end = start + here.size
                rows = _rows(asked, cell, one, here, start, [t.dtype for t in tables])
                for table, values in zip(tables, rows, strict=True):
                    table[start:end] = values
                start = end


def _table_type(*blocks: tuple[str, str, tuple[int]]) -> np.dtype[Any]:
    """Return the type of a row, as PyTables has it: the index, then blocks of one type each."""
    return np.dtype([("index", "<i8"), *blocks])


def _rows(
    asked: Parameters,
    cell: _Cell,
    one: _Responses,
    here: Integers,
    start: int,
    kinds: list[np.dtype[Any]],
) -> list[npt.NDArray[Any]]:
    """Return rows `start` and following of the three tables, for the responses `here`."""
    expression, descriptors, response = (np.zeros(here.size, kind) for kind in kinds)
    drugs = [_drugs(asked)[index] for index in one.drug[here].tolist()]
    for table in (expression, descriptors, response):
        table["index"] = np.arange(start, start + here.size)
    expression["values_block_0"] = cell.expression
    for row, drug in enumerate(drugs):
        descriptors["values_block_0"][row] = drug.descriptors
        response["values_block_1"][row] = (cell.name.encode(), drug.name.encode())
    response["values_block_0"][:, 0] = one.measured[here]
    return [expression, descriptors, response]


def _truth(asked: Parameters) -> bytes:
    """Write the AUC without noise of each response as CSV."""
    lines = ["Sample,Drug1,AUC\n"]
    for number in range(asked.cells):
        cell = _cell(asked, number)
        one = _responses(asked, number, cell)
        for index, value in zip(one.drug.tolist(), one.truth.tolist(), strict=True):
            lines.append(f"{cell.name},{_drugs(asked)[index].name},{value:.6f}\n")
    return "".join(lines).encode()
