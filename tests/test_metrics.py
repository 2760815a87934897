"""Metrics against scikit-learn, SciPy and loops of five lines."""

import doctest
import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score

from scibench_data import metrics
from scibench_data.errors import UsageError

RNG = np.random.default_rng(11)


def test_doctests() -> None:
    outcome = doctest.testmod(metrics)

    assert outcome.attempted >= 8
    assert outcome.failed == 0


def _loop_fsc(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> list[float]:
    """Correlate voxel by voxel, as CryoBench defines its shells."""
    d = len(a)
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    sums = np.zeros((3, d // 2))
    for index in np.ndindex(a.shape):
        radius = math.sqrt(sum(((i + d // 2) % d - d // 2) ** 2 for i in index))
        shell = int(radius) + 1
        if shell < d // 2:
            x, y = fa[index], fb[index]
            sums[:, shell] += (x * y.conjugate()).real, abs(x) ** 2, abs(y) ** 2
    return [1.0, *(sums[0, 1:] / np.sqrt(sums[1, 1:] * sums[2, 1:]))]


def test_the_fsc_is_that_of_a_loop_over_voxels() -> None:
    a = RNG.normal(size=(12, 12, 12))
    b = a + RNG.normal(size=a.shape)

    np.testing.assert_allclose(metrics.fourier_shell_correlation(a, b), _loop_fsc(a, b), atol=1e-12)


def test_the_fsc_of_a_volume_with_itself_is_one() -> None:
    volume = RNG.normal(size=(16, 16, 16)).astype(np.float32)

    curve = metrics.fourier_shell_correlation(volume, 3.0 * volume)

    np.testing.assert_allclose(curve, 1.0)
    assert metrics.fsc_auc(curve) == pytest.approx((16 / 2 - 1) / 16)


def test_an_inverted_volume_is_the_worst_there_is() -> None:
    volume = RNG.normal(size=(16, 16, 16))

    curve = metrics.fourier_shell_correlation(-volume, volume)

    np.testing.assert_allclose(curve[1:], -1.0)
    assert metrics.fsc_auc(curve) < -0.3


def test_the_fsc_of_noise_is_about_zero() -> None:
    curve = metrics.fourier_shell_correlation(
        RNG.normal(size=(32, 32, 32)), RNG.normal(size=(32, 32, 32))
    )

    assert np.abs(curve[4:]).max() < 0.15
    assert abs(curve[4:].mean()) < 0.03


def test_a_volume_of_zeros_scores_zero() -> None:
    curve = metrics.fourier_shell_correlation(np.zeros((8, 8, 8)), RNG.normal(size=(8, 8, 8)))

    assert curve.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("shapes", [((8, 8, 8), (6, 6, 6)), ((8, 8), (8, 8)), ((7,) * 3, (7,) * 3)])
def test_the_fsc_refuses_what_are_not_two_like_cubes(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    with pytest.raises(UsageError, match="even width"):
        metrics.fourier_shell_correlation(*(np.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([1.0, 0.9, 0.6, 0.4], 2 * 4 * 3.0 / 2.5),
        ([1.0, 0.0, 0.9, 0.9], 2 * 4 * 3.0 / 0.5),  # the first crossing counts
        ([1.0, 0.9, 0.9, 0.8], 2 * 4 * 3.0 / 3),  # never falls: the last shell
    ],
)
def test_resolution_is_where_the_curve_crosses(curve: list[float], expected: float) -> None:
    assert metrics.fsc_resolution(np.array(curve), 3.0) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [1, 2, 4, 7])
def test_adjusted_rand_is_that_of_scikit_learn(labels: int) -> None:
    for _ in range(20):
        truth, predicted = RNG.integers(labels, size=60), RNG.integers(5, size=60)

        ours = metrics.adjusted_rand_index(truth, predicted)

        assert ours == pytest.approx(adjusted_rand_score(truth, predicted), abs=1e-12)


def test_adjusted_rand_of_one_sample_is_one() -> None:
    assert metrics.adjusted_rand_index([3], [0]) == adjusted_rand_score([3], [0]) == 1.0


def test_balanced_accuracy_is_that_of_scikit_learn_once_labels_are_matched() -> None:
    truth = RNG.integers(4, size=200)
    noisy = np.where(RNG.random(200) < 0.2, RNG.integers(4, size=200), truth)
    renamed = np.array([2, 0, 3, 1])[noisy]

    ours = metrics.balanced_accuracy(truth, renamed)

    assert ours == pytest.approx(balanced_accuracy_score(truth, noisy))


def test_one_label_for_all_scores_one_of_k() -> None:
    truth = [0, 1, 2, 3] * 5

    assert metrics.balanced_accuracy(truth, [7] * 20) == 0.25
    assert metrics.adjusted_rand_index(truth, [7] * 20) == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 5), (5, 2)])
def test_the_matching_is_the_best_of_all(shape: tuple[int, int]) -> None:
    rows, columns = shape
    for _ in range(20):
        gain = RNG.integers(0, 6, size=shape).astype(float)  # small integers: many ties

        match = metrics.best_matching(gain)

        taken = match[match >= 0]
        assert len(set(taken.tolist())) == len(taken) == min(shape)
        # a column beyond the last stands for none
        padded = np.pad(gain, ((0, 0), (0, rows)))
        every = itertools.permutations(range(columns + rows), rows)
        best = max(sum(padded[r, c] for r, c in enumerate(order)) for order in every)
        assert sum(gain[r, c] for r, c in enumerate(match) if c >= 0) == best


def test_labels_of_different_length_are_refused() -> None:
    with pytest.raises(UsageError, match="one of each"):
        metrics.adjusted_rand_index([0, 1], [0])
