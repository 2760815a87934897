"""Scores that more than one model needs: volumes against a truth, labels against labels.

Pure functions of NumPy arrays. Nothing here aligns volumes or rotates them: what is compared shares
one frame.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from scibench_data.errors import UsageError

Array: TypeAlias = npt.NDArray[np.float64]


def fourier_shell_correlation(
    volume: npt.NDArray[np.floating[Any]], truth: npt.NDArray[np.floating[Any]]
) -> Array:
    """Correlate two volumes in shells of spatial frequency, with the sign.

    As CryoBench does (arXiv:2408.05526, ``metrics/fsc/utils/volumes.py``): shell i holds the
    frequencies i - 1 <= r < i in units of 1 / width, and shell 0 is 1 by definition. Unlike its
    per-image script, which takes the absolute value and so calls an inverted volume perfect, the
    sign is kept. Scaling a volume changes nothing; a shell without power scores 0.

    Parameters
    ----------
    volume, truth
        Densities in one frame, shape (d, d, d), d even. Mask both alike before.

    Returns
    -------
        Shape (d // 2,), each from -1 to 1.

    Examples
    --------
    >>> truth = np.random.default_rng(0).normal(size=(8, 8, 8))
    >>> fourier_shell_correlation(-2.0 * truth, truth).round(6).tolist()
    [1.0, -1.0, -1.0, -1.0]
    """
    width = truth.shape[0]
    if volume.shape != truth.shape or truth.shape != (width,) * 3 or width % 2 or not width:
        message = (
            f"fourier_shell_correlation: got shapes {volume.shape} and {truth.shape}; "
            "give two cubes of one even width"
        )
        raise UsageError(message)
    left, right = np.fft.fftn(volume), np.fft.fftn(truth)
    squares = (np.fft.fftfreq(width) * width) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    shell = np.floor(radius).astype(np.int64).ravel() + 1

    def total(values: Array) -> Array:
        return np.bincount(shell, weights=values.ravel())[: width // 2].astype(np.float64)

    cross = total((left * right.conj()).real)
    power = np.sqrt(total(np.abs(left) ** 2) * total(np.abs(right) ** 2))
    curve = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0.0)
    curve[0] = 1.0
    return curve


def fsc_auc(curve: Array) -> float:
    """Integrate a Fourier shell correlation over frequency in cycles per pixel.

    The trapezoidal rule over i / d for the shells i = 0 ... d / 2 - 1, as CryoBench does: a perfect
    volume scores (d / 2 - 1) / d, just under a half.

    Parameters
    ----------
    curve
        Of `fourier_shell_correlation`, shape (d // 2,).

    Examples
    --------
    >>> round(fsc_auc(np.ones(24)), 6)  # (24 - 1) / 48
    0.479167
    """
    return float(np.trapezoid(curve) / (2 * curve.size))


def fsc_resolution(curve: Array, pixel_size: float, threshold: float = 0.5) -> float:
    """Return the resolution at which a Fourier shell correlation first falls below a threshold.

    Linear between shells; shell i stands for the frequency i / (d * `pixel_size`).

    Parameters
    ----------
    curve
        Of `fourier_shell_correlation`, shape (d // 2,).
    pixel_size
        Width of a voxel. [Angstrom]

    Returns
    -------
        Resolution [Angstrom]; that of the last shell where the curve never falls.

    Examples
    --------
    >>> fsc_resolution(np.array([1.0, 1.0, 0.75, 0.25]), pixel_size=2.0)  # 16 / 2.5
    6.4
    """
    below = np.flatnonzero(curve < threshold)
    position = float(curve.size - 1)
    if below.size:
        after = max(int(below[0]), 1)
        high, low = float(curve[after - 1]), float(curve[after])
        position = after - 1 + (high - threshold) / (high - low)
    return 2 * curve.size * pixel_size / position


def contingency(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Count samples by true label (row) and predicted label (column).

    Only labels that occur have a row or column, in increasing order.

    Examples
    --------
    >>> contingency([0, 0, 1], [5, 7, 7]).tolist()
    [[1, 1], [0, 1]]
    """
    rows, row = np.unique(np.asarray(truth), return_inverse=True)
    columns, column = np.unique(np.asarray(predicted), return_inverse=True)
    if row.size != column.size or not row.size:
        message = (
            f"contingency: got {row.size} true and {column.size} predicted labels; "
            "give one of each for every sample"
        )
        raise UsageError(message)
    cells = np.bincount(row * columns.size + column, minlength=rows.size * columns.size)
    return cells.reshape(rows.size, columns.size).astype(np.int64)


def adjusted_rand_index(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Compare two partitions: 1 the same, about 0 by chance, whatever the labels are called.

    Hubert and Arabie 1985, doi:10.1007/BF01908075.

    Examples
    --------
    >>> adjusted_rand_index([0, 0, 1, 1], [9, 9, 3, 3])
    1.0
    """
    table = contingency(truth, predicted).astype(np.float64)

    def pairs(counts: Array) -> float:
        return float((counts * (counts - 1.0)).sum() / 2.0)

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    every = pairs(np.array([table.sum()]))
    expected = rows * columns / every if every else 0.0
    largest = (rows + columns) / 2.0
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def balanced_accuracy(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Return the mean recall of the true labels under the best matching of labels.

    Each predicted label stands for at most one true label and each true label is stood for by at
    most one, so that the mean is largest. One label for everything scores 1 / (true labels).

    Examples
    --------
    >>> balanced_accuracy([0, 0, 1, 1], [1, 1, 0, 1])
    0.75
    """
    table = contingency(truth, predicted)
    recall = table / table.sum(axis=1, keepdims=True)
    matched = best_matching(recall)
    return float(sum(recall[r, c] for r, c in enumerate(matched) if c >= 0) / len(recall))


def best_matching(gain: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Match rows to columns, one to one, so that the sum of `gain` is largest.

    Parameters
    ----------
    gain
        Shape (rows, columns).

    Returns
    -------
        Column of each row, -1 for a row that has none, shape (rows,).

    Examples
    --------
    >>> best_matching(np.array([[3.0, 2.0], [3.0, 0.0]])).tolist()
    [1, 0]
    """
    rows, columns = linear_sum_assignment(gain, maximize=True)
    match = np.full(len(gain), -1, np.int64)
    match[rows] = columns
    return match
