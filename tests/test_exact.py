"""The exact kit is accurate, does not depend on how work is cut, and keeps its bits."""

import hashlib
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scibench_data import exact

GRID = np.arange(-4000, 4001) / 97.0


def relative_error(got: float, expected: Decimal) -> float:
    return float(abs((Decimal(got) - expected) / expected)) if expected else abs(got)


@given(st.floats(-700.0, 700.0))
def test_exp_agrees_with_decimal_arithmetic(x: float) -> None:
    with localcontext(prec=40):
        assert relative_error(float(exact.exp(x)), Decimal(x).exp()) < 3e-16


def test_exp_clips_what_would_overflow() -> None:
    got = exact.exp([-1e9, 1e9])

    np.testing.assert_array_equal(got, exact.exp([-700.0, 700.0]))


@given(st.floats(1e-300, 1e300) | st.floats(0.5, 2.0))
def test_log_agrees_with_decimal_arithmetic(x: float) -> None:
    with localcontext(prec=40):
        assert relative_error(float(exact.log(x)), Decimal(x).ln()) < 5e-16


@given(st.floats(-1e6, 1e6))
def test_sincos_agrees_with_libm_after_an_exact_reduction(turns: float) -> None:
    rest = float(Fraction(turns) - round(Fraction(turns)))
    angle = 2.0 * math.pi * rest

    sine, cosine = exact.sincos(turns)

    # the angle itself is rounded in the expected value: half a unit of up to pi
    assert float(sine) == pytest.approx(math.sin(angle), abs=8e-16)
    assert float(cosine) == pytest.approx(math.cos(angle), abs=8e-16)


def test_sincos_of_quarters_and_sixths_is_what_school_teaches() -> None:
    sine, cosine = exact.sincos(np.arange(-8, 9) / 4.0)
    third, _ = exact.sincos(1.0 / 12.0)

    np.testing.assert_array_equal(sine, [0, 1, 0, -1] * 4 + [0])
    np.testing.assert_array_equal(cosine, [1, 0, -1, 0] * 4 + [1])
    assert float(third) == pytest.approx(0.5, abs=2e-16)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_arctan2_agrees_with_libm(y: float, x: float) -> None:
    expected = math.atan2(y + 0.0, x + 0.0) / (2.0 * math.pi)  # -0 is taken as 0

    got = float(exact.arctan2(y, x))

    assert got == pytest.approx(expected, abs=3e-16)


def test_normal_quantile_agrees_with_the_standard_library() -> None:
    probability = np.concatenate([np.arange(1, 512) / 1024.0, [2.0**-21, 1e-4, 0.074, 0.076]])

    got = exact._normal_quantile(probability)

    expected = [NormalDist().inv_cdf(p) for p in probability.tolist()]
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_normal_has_mean_zero_and_variance_one_by_exact_summation() -> None:
    low, width = (
        [round(value * 65536) for value in values.tolist()] for values in exact._normal_cells()
    )
    cells = list(zip(low, width, strict=True))
    n = len(cells)
    mean = Fraction(sum(2 * a + w for a, w in cells), 2 * n)
    square = Fraction(sum(3 * a * a + 3 * a * w + w * w for a, w in cells), 3 * n)

    assert n == 1 << 16
    assert mean == 0
    assert math.sqrt(square) / 65536 == pytest.approx(1.0, abs=3e-5)


def test_normal_sample_has_normal_moments() -> None:
    sample = exact.normal(200_000, "test", "moments")

    assert sample.mean() == pytest.approx(0.0, abs=0.01)
    assert sample.var() == pytest.approx(1.0, abs=0.015)
    assert (sample**4).mean() == pytest.approx(3.0, abs=0.1)
    assert np.abs(sample).max() < 4.91


def test_uniform_sample_fills_the_interval_evenly() -> None:
    sample = exact.uniform(100_000, "test", "uniform")

    counts, _ = np.histogram(sample, bins=10, range=(0.0, 1.0))
    assert sample.min() >= 0.0
    assert sample.max() < 1.0
    np.testing.assert_allclose(counts, 10_000, atol=500)


@pytest.mark.parametrize("draw", [exact.words, exact.uniform, exact.normal])
def test_first_numbers_do_not_depend_on_how_many_follow(draw: Callable[..., np.ndarray]) -> None:
    many = draw(101, "test", 7)

    for count in (0, 1, 2, 50):
        np.testing.assert_array_equal(draw(count, "test", 7), many[:count])


def test_keys_that_differ_give_unrelated_streams() -> None:
    keys: list[tuple[int | str, ...]] = [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("a1",),
        ("a", "1"),
        (1, "a"),
    ]

    heads = {tuple(exact.words(4, *key).tolist()) for key in keys}

    assert len(heads) == len(keys)


@pytest.mark.parametrize("function", [exact.exp, exact.sincos, lambda x: exact.arctan2(x, 0.3)])
def test_elementwise_functions_do_not_depend_on_the_cut(function: Callable[..., object]) -> None:
    x = np.linspace(-30.0, 30.0, 40_001)

    whole = np.asarray(function(x))
    parts = [np.asarray(function(part)) for part in np.array_split(x, 7)]

    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=-1))


def test_functions_keep_shapes() -> None:
    assert exact.exp(1.0).shape == ()
    assert exact.log(np.ones((0, 3))).shape == (0, 3)
    assert exact.sincos(np.ones((2, 3)))[1].shape == (2, 3)
    assert exact.arctan2(np.ones((2, 1)), np.ones(3)).shape == (2, 3)


def integers_as_fractions(matrix: np.ndarray, bits: int) -> list[list[int]]:
    """Round as `matmul` says it does, in Python integers."""
    exponent = bits - math.frexp(float(np.abs(matrix).max()))[1]
    return [[round(Fraction(v) * Fraction(2) ** exponent) for v in row] for row in matrix.tolist()]


def test_matmul_is_the_exact_product_of_the_rounded_operands() -> None:
    a = exact.normal(6 * 50, "test", "a").reshape(6, 50)
    b = 1e-3 * exact.normal(50 * 4, "test", "b").reshape(50, 4)
    left, right = integers_as_fractions(a, 23), integers_as_fractions(b, 24)
    scale = Fraction(2) ** sum(
        bits - math.frexp(float(np.abs(m).max()))[1] for m, bits in ((a, 23), (b, 24))
    )

    got = exact.matmul(a, b)

    for i, row in enumerate(left):
        for j in range(4):
            total = sum(x * y[j] for x, y in zip(row, right, strict=True))
            assert abs(total) < 1 << 53
            assert got[i, j] == float(total / scale)


@pytest.mark.parametrize("exponent", [-40, 0, 40])
@pytest.mark.parametrize("k", [1, 2, 3, 64, 300])
def test_matmul_stays_within_its_bound(k: int, exponent: int) -> None:
    a = exact.normal(3 * k, "test", "left", k).reshape(3, k) * 2.0**exponent
    b = exact.normal(2 * k, "test", "right", k).reshape(k, 2)
    p = (53 - math.ceil(math.log2(k))) // 2
    bound = 2 * k * np.abs(a).max() * np.abs(b).max() / 2.0**p

    expected = [[math.fsum((row * column).tolist()) for column in b.T] for row in a]

    assert np.abs(exact.matmul(a, b) - expected).max() <= bound


def test_matmul_of_a_stack_equals_matmul_of_its_parts() -> None:
    a = exact.normal(5 * 12, "test", "stack").reshape(5, 3, 4) * np.arange(5.0)[:, None, None]
    b = exact.normal(4 * 2, "test", "matrix").reshape(4, 2)

    whole = exact.matmul(a, b)

    np.testing.assert_array_equal(whole, [exact.matmul(part, b) for part in a])
    assert not whole[0].any()


# The bits of today are the bits for ever: published SHA-256 sums of samples follow from them.
GOLDEN: dict[str, Callable[[], object]] = {
    "words": lambda: exact.words(1000, "golden", 1),
    "uniform": lambda: exact.uniform(1000, "golden", 2),
    "normal": lambda: exact.normal(1001, "golden", 3),
    "exp": lambda: exact.exp(GRID),
    "log": lambda: exact.log(exact.exp(GRID)),
    "sincos": lambda: exact.sincos(GRID),
    "arctan2": lambda: exact.arctan2(GRID, GRID[::-1] + 0.25),
    "matmul": lambda: exact.matmul(GRID[:4000].reshape(40, 100), GRID[:2000].reshape(100, 20)),
}
DIGESTS = {
    "words": "c0a787101d80eb1ab6cf38bdef72f974fbc8109b7fa9e61209d4345dabb7cec2",
    "uniform": "606f6c74067b0584583011458703628f4a6ca915312ea7a6bdec473be7d2e6a8",
    "normal": "cf9cd58a394848ac74dd8562c4203be0d0016444c279d1c48a8bb611b3247870",
    "exp": "4784124bceef71c9374055e0c191c4b21b5b413ae0513dca6d2d091d929e31b3",
    "log": "8147f64cf75dbcb22d7bcf1fbc8eb8d9e19ffe3e77970c31afd7c38ab079d2b5",
    "sincos": "95d23575fe4a8c25a497a020223f882a265ec289cf950d23e3d97c871ccd46b8",
    "arctan2": "609d28e6e64114bff796f31d884674a79287db044729a928c52c075a82d55cd4",
    "matmul": "0ecc9b6a1418d861d3849b58ddd5f990c9a216b3145efc6a80979e7403f72a3c",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bits_are_the_published_ones(name: str) -> None:
    values = np.asarray(GOLDEN[name]())

    little_endian = values.astype(values.dtype.newbyteorder("<")).tobytes()

    assert hashlib.sha256(little_endian).hexdigest() == DIGESTS[name]
