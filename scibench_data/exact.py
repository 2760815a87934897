"""Arithmetic that gives the same bits on every IEEE-754 machine, for simulated data.

A sample is accepted only by its SHA-256, so the last bit counts. ``np.exp``, ``np.sin``, BLAS and
``np.fft`` differ in it between processors, libraries and thread counts, and NumPy promises the
streams of its random *distributions* for one build only (NEP 19). What the standards do fix is

* ``+ - * /``, ``sqrt``, rounding to integers and scaling by powers of two, of float64;
* integer arithmetic, hence sums and products of integer-valued float64 below 2**53, in any order;
* the raw words of a NumPy bit generator.

Everything here is made of those and nothing else. Each function is elementwise or keyed, so a
result does not depend on how the caller cuts the work. Products and sums are separate NumPy
calls, which no compiler can fuse into one rounding.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

_BLOCK = 1 << 14  # elements at a time: the temporaries of one block stay in the cache

_WITHOUT_THREADS = 1 << 18  # multiplications in one call of BLAS

_LOG2_E = 1.44269504088896338700
_LN2_HIGH = 6.93147180369123816490e-01  # 33 bits, so that small integers times it are exact
_LN2_LOW = 1.90821492927058770002e-10
_TWO_PI = 6.283185307179586
_SQRT_HALF = 0.7071067811865476


def _factorial(n: int) -> int:
    product = 1
    for k in range(2, n + 1):
        product *= k
    return product


# Taylor coefficients, highest power first, each the double nearest to an integer's reciprocal.
_EXP = [1.0 / _factorial(k) for k in range(13, -1, -1)]
_SIN = [(-1) ** (k // 2) / _factorial(k) for k in range(17, 0, -2)]
_COS = [(-1) ** (k // 2) / _factorial(k) for k in range(18, -1, -2)]
_ATANH = [1.0 / k for k in range(21, 0, -2)]
_ATAN = [(-1) ** (k // 2) / k for k in range(23, 0, -2)]


def words(count: int, *key: int | str) -> npt.NDArray[np.uint64]:
    """Draw raw 64-bit words from the Philox stream that `key` names.

    One key for each purpose and item (``"cryoem", seed, "noise", micrograph``): items can then be
    made in any order, by any process, and the first `n` words are the same however many follow.

    Parameters
    ----------
    count
        Number of words.
    *key
        What the numbers are for. The Philox key is the head of its SHA-256, so that different
        names give unrelated streams.

    Notes
    -----
    Philox4x64-10: Salmon et al. 2011, doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> [hex(word) for word in words(2, "example", 1)]
    ['0x5f02e1d0fc33813e', '0xc29de33c19820c9']
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.asarray(stream.random_raw(count), np.uint64)


def uniform(count: int, *key: int | str) -> Array:
    """Draw from the uniform distribution on [0, 1), in multiples of 2**-53."""
    return (words(count, *key) >> np.uint64(11)).astype(np.float64) / (1 << 53)


def normal(count: int, *key: int | str) -> Array:
    """Draw from the standard normal distribution, in multiples of 2**-32.

    By inversion: 16 bits choose one of 65,536 cells of equal probability, 16 more interpolate
    within it. The tails end at 4.9 standard deviations; the mean is 0 and the variance 1.0003.
    """
    low, step = _normal_cells()
    halves = words((count + 1) // 2, *key).astype("<u8", copy=False).view("<u4")[:count]
    cell = (halves >> np.uint32(16)).astype(np.intp)
    place = (halves & np.uint32(0xFFFF)).astype(np.float64)
    place /= 1 << 16
    place *= step[cell]
    place += low[cell]
    return place


@functools.cache
def _normal_cells() -> tuple[Array, Array]:
    """Lower bound and width of each cell of the normal quantile, in multiples of 2**-16."""
    probability = np.arange(32769, dtype=np.float64) / 65536.0
    probability[0] = 1.0 / (1 << 21)  # the outermost cell ends here, not at minus infinity
    lower_half = np.rint(_normal_quantile(probability) * 65536.0) / 65536.0
    lower_half[-1] = 0.0
    bounds = np.concatenate([lower_half, -lower_half[-2::-1]])
    return bounds[:-1], bounds[1:] - bounds[:-1]


# Wichura 1988, Algorithm AS 241 (PPND16), doi:10.2307/2347330; highest power first.
_CENTRE = (
    [2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608],
    [5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0],
)  # fmt: skip
_TAIL = (
    [7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
     4.6303378461565452959, 1.42343711074968357734],
    [1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
     2.05319162663775882187, 1.0],
)  # fmt: skip


def _normal_quantile(probability: Array) -> Array:
    """Invert the normal distribution for probabilities from exp(-25) to 1/2."""
    centred = probability - 0.5
    r = np.maximum(0.180625 - centred * centred, 0.0)
    centre = centred * _horner(r, _CENTRE[0]) / _horner(r, _CENTRE[1])
    r = np.sqrt(-log(probability)) - 1.6
    tail = -(_horner(r, _TAIL[0]) / _horner(r, _TAIL[1]))
    return np.where(centred < -0.425, tail, centre)


def exp(x: npt.ArrayLike) -> Array:
    """Exponential, relative error below 3e-16; arguments are clipped to ±700."""
    return _in_blocks(_exp, x)[0]


def _exp(x: Array) -> tuple[Array]:
    x = np.minimum(np.maximum(x, -700.0), 700.0)
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    return (np.ldexp(_horner(r, _EXP), n.astype(np.int32)),)


def log(x: npt.ArrayLike) -> Array:
    """Natural logarithm of positive finite numbers, relative error below 5e-16."""
    return _in_blocks(_log, x)[0]


def _log(x: Array) -> tuple[Array]:
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    f = np.where(small, mantissa + mantissa, mantissa) - 1.0
    n = (exponent - small).astype(np.float64)
    s = f / (2.0 + f)
    # log(1 + f) = 2 atanh(s), and |s| < 0.172
    return ((2.0 * s) * _horner(s * s, _ATANH) + n * _LN2_LOW + n * _LN2_HIGH,)


def sincos(turns: npt.ArrayLike) -> tuple[Array, Array]:
    """Sine and cosine of angles in turns (1 turn = 2 pi rad), absolute error below 3e-16.

    Turns, because their reduction to a quarter is exact whatever their size.

    Examples
    --------
    >>> [round(float(value), 15) for value in sincos(30.0 / 360.0)]
    [0.5, 0.866025403784439]
    """
    sine, cosine = _in_blocks(_sincos, turns)
    return sine, cosine


def _sincos(turns: Array) -> tuple[Array, Array]:
    quarter = np.rint(turns * 4.0)
    r = (turns - quarter * 0.25) * _TWO_PI
    z = r * r
    sine, cosine = r * _horner(z, _SIN), _horner(z, _COS)
    quarter -= 4.0 * np.floor(quarter * 0.25)
    odd = (quarter == 1.0) | (quarter == 3.0)
    sine, cosine = np.where(odd, cosine, sine), np.where(odd, sine, cosine)
    sine *= np.where(quarter >= 2.0, -1.0, 1.0)
    cosine *= np.where((quarter == 1.0) | (quarter == 2.0), -1.0, 1.0)
    return sine, cosine


def arctan2(y: npt.ArrayLike, x: npt.ArrayLike) -> Array:
    """Angle of the point (x, y) in turns, in [-1/2, 1/2], absolute error below 3e-16; -0 is 0.

    The angle is halved twice by ``atan(t) = 2 atan(t / (1 + sqrt(1 + t*t)))``, which needs no
    table; the series does the rest.

    Examples
    --------
    >>> float(arctan2(1.0, 0.0))
    0.25
    """
    return _in_blocks(_arctan2, y, x)[0]


def _arctan2(y: Array, x: Array) -> tuple[Array]:
    height, width = np.abs(y), np.abs(x)
    longer = np.maximum(height, width)
    t = np.minimum(height, width) / np.where(longer == 0.0, 1.0, longer)
    for _ in range(2):
        t = t / (1.0 + np.sqrt(1.0 + t * t))
    turns = t * _horner(t * t, _ATAN) * (4.0 / _TWO_PI)
    turns = np.where(height > width, 0.25 - turns, turns)
    turns = np.where(x < 0.0, 0.5 - turns, turns)
    return (np.where(y < 0.0, -turns, turns),)


def matmul(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Multiply matrices of shape (..., m, k) and (..., k, n); stacks broadcast as in NumPy.

    Both are first rounded to integers times a power of two, as finely as keeps every partial sum
    of the product below 2**53. That product is exact, so BLAS may add in any order, fuse and use
    any number of threads. An entry is off by less than ``2 k max|a| max|b| / 2**p``, with the
    maxima over the two matrices and ``p = (53 - log2(k)) / 2``, rounded down (23 for k = 100).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    bits = 53 - (a.shape[-1] - 1).bit_length()
    left, left_exponent = _integers(a, bits // 2)
    right, right_exponent = _integers(b, bits - bits // 2)
    # Pieces of the inner axis that OpenBLAS finds too small for threads: those spin on busy cores
    # and made a simulation ten times slower. The sum is exact, so the cut does not show.
    piece = max(_WITHOUT_THREADS // max(a.shape[-2] * b.shape[-1], 1), 1)
    product: Array = np.matmul(left[..., :piece], right[..., :piece, :])
    for start in range(piece, a.shape[-1], piece):
        product += np.matmul(left[..., start : start + piece], right[..., start : start + piece, :])
    product *= np.ldexp(1.0, -(left_exponent + right_exponent))
    return product


def _integers(x: Array, bits: int) -> tuple[Array, npt.NDArray[np.int32]]:
    """Round matrices to integers up to 2**bits; return these and the exponents of their units."""
    largest = np.max(np.abs(x), axis=(-2, -1), keepdims=True, initial=0.0)
    exponent = bits - np.frexp(largest)[1]
    scaled = x * np.ldexp(1.0, exponent)
    return np.rint(scaled, out=scaled), exponent


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _in_blocks(
    function: Callable[..., tuple[Array, ...]], *arguments: npt.ArrayLike
) -> tuple[Array, ...]:
    """Apply an elementwise function to a cacheful of elements at a time."""
    arrays = np.broadcast_arrays(*(np.asarray(argument, np.float64) for argument in arguments))
    flat = [array.ravel() for array in arrays]
    results: list[tuple[Array, ...]] = [
        function(*(array[start : start + _BLOCK] for array in flat))
        for start in range(0, max(flat[0].size, 1), _BLOCK)
    ]
    joined = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return tuple(part.reshape(arrays[0].shape) for part in joined)
