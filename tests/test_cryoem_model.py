"""The cryo-EM reference model against an independent simulation of Gaussian beads in NumPy."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from scibench_data.errors import UsageError
from scibench_data.metrics import fourier_shell_correlation

MODEL = importlib.import_module("scibench_data.models.cryoem.model")

Array = npt.NDArray[np.float64]

WIDTH, PIXEL, BEAD = 16, 5.0, 6.0  # [px], [Angstrom], [Angstrom]
BODY = np.array([[0.0, 0, -12], [9, 4, -6], [-8, 3, 0], [2, -9, 6], [0, 6, 12]])
ARMS = np.array([[[14.0, 0, 10], [18, 0, 12]], [[-14, 2, 10], [-18, 2, 12]]])  # one per state
TINY = {"states": 2, "epochs": 10, "batch_size": 32, "start_resolution": 40.0}


def _simulate(n: int, noise: float, seed: int = 0) -> xr.Dataset:
    """Project beads bead by bead in real space; CTF by the full Fourier transform."""
    rng = np.random.default_rng(seed)
    beads = [np.concatenate([BODY, arm]) for arm in ARMS]
    x = (np.arange(WIDTH) - WIDTH // 2) * PIXEL
    columns = {
        "rot": rng.uniform(-180, 180, n),
        "tilt": np.degrees(np.arccos(rng.uniform(-1, 1, n))),
        "psi": rng.uniform(-180, 180, n),
        "origin_x": rng.uniform(-5, 5, n),
        "origin_y": rng.uniform(-5, 5, n),
        "defocus_u": rng.uniform(10_300, 25_300, n),
        "defocus_angle": rng.uniform(0, 180, n),
        "phase_shift": rng.uniform(0, 90, n),
    }
    columns["defocus_v"] = columns["defocus_u"] - 300.0
    group, state = rng.integers(2, size=n), rng.integers(2, size=n)
    images = np.stack(
        [
            _image({name: values[i] for name, values in columns.items()}, beads[s], g)
            for i, (s, g) in enumerate(zip(state, group, strict=True))
        ]
    )
    images += noise * images.std() * rng.normal(size=images.shape)
    volumes = [
        sum(np.einsum("i,j,k", *(_gauss(x - c) for c in bead[::-1])) for bead in b) for b in beads
    ]
    return xr.Dataset(
        {
            "images": (("particle", "y", "x"), np.rint(1000 * images).astype(np.int16)),
            "volumes": (("conformation", "z", "y", "x"), np.float32(1000 * np.stack(volumes))),
        },
        {
            **{name: ("particle", values) for name, values in columns.items()},
            "optics_group": ("particle", group.astype(np.int32)),
            "state": ("particle", state.astype(np.int32)),
            "voltage": ("optics_group", [300.0, 200.0]),
            "spherical_aberration": ("optics_group", [2.7, 2.0]),
            "amplitude_contrast": ("optics_group", [0.1, 0.07]),
            "pixel_size": ("optics_group", [PIXEL, PIXEL]),
        },
    )


def _gauss(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * (x / BEAD) ** 2))


def _turn(axis: int, degrees: float) -> Array:
    """Turn the coordinate system, so clockwise what is in it, as RELION does."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    a, b = [(0, 1), (2, 0)][axis]
    turn[[a, a, b, b], [a, b, a, b]] = c, s, -s, c
    return turn


def _image(at: dict[str, float], beads: Array, group: int) -> Array:
    x = (np.arange(WIDTH) - WIDTH // 2) * PIXEL
    rotation = _turn(0, at["psi"]) @ _turn(1, at["tilt"]) @ _turn(0, at["rot"])
    places = beads @ rotation.T - [at["origin_x"], at["origin_y"], 0.0]
    depth = np.sqrt(2 * np.pi) * BEAD / PIXEL  # a bead summed along z
    projection = sum(np.outer(_gauss(x - py), _gauss(x - px)) for px, py, _ in places) * depth
    volt, cs, q = [(3e5, 2.7e7, 0.1), (2e5, 2.0e7, 0.07)][group]
    k = np.fft.fftfreq(WIDTH, PIXEL)
    u = np.hypot(k[None], k[:, None])
    wavelength = 12.2643247 / np.sqrt(volt * (1 + 0.978466e-6 * volt))
    towards = 2 * (np.arctan2(k[:, None], k[None]) - np.radians(at["defocus_angle"]))
    mean, half = (at["defocus_u"] + at["defocus_v"]) / 2, (at["defocus_u"] - at["defocus_v"]) / 2
    gamma = (
        -np.pi * wavelength * (mean + half * np.cos(towards)) * u**2
        + np.pi / 2 * cs * wavelength**3 * u**4
        - np.radians(at["phase_shift"])
        - np.arctan(q / np.sqrt(1 - q**2))
    )
    return np.asarray(np.fft.ifft2(np.fft.fft2(projection) * -np.sin(gamma)).real)


class Particles:
    """What a model sees of a dataset."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset
        n = dataset.sizes["particle"]
        self.splits = {
            "train": np.arange(0, n * 3 // 4),
            "validation": np.arange(n * 3 // 4, n * 7 // 8),
            "test": np.arange(n * 7 // 8, n),
        }

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate once over a split."""
        order = self.splits[split]
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        along = [k for k, v in self.dataset.variables.items() if v.dims[0] == "particle"]
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {str(k): torch.from_numpy(self.dataset[k].values[rows]) for k in along}
            yield batch | {"index": torch.from_numpy(rows)}


def _train(data: Particles, seed: int = 0, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{**TINY, **settings})
    torch.manual_seed(seed)
    model = MODEL.build(config, data)
    optimizer = MODEL.optimizer(model, config)
    steps = -(-len(data.splits["train"]) // config.batch_size) * config.epochs
    losses: list[float] = []
    for epoch in range(config.epochs):
        for batch in data.batches("train", config.batch_size, shuffle=True, seed=seed, epoch=epoch):
            loss = model.loss(batch, len(losses) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep to one thread: tiny tensors gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clean() -> Particles:
    """Particles without noise."""
    return Particles(_simulate(480, noise=0.0))


@pytest.fixture(scope="module")
def noisy() -> Particles:
    """Particles with three times as much noise as signal."""
    return Particles(_simulate(960, noise=1.7))


@pytest.fixture(scope="module")
def trained(noisy: Particles) -> Any:
    """A model of the noisy particles."""
    return _train(noisy)[0]


def test_slices_of_the_true_volumes_are_the_images(clean: Particles) -> None:
    imaging = MODEL.Imaging(clean, 3.0)
    imaging.grey.copy_(torch.tensor([0.0, 1.0]))
    m = imaging.count(5.0)  # beads are cut off at the box, and images at Nyquist
    batch = next(clean.batches("train", 64))
    table = imaging.table(torch.from_numpy(clean.dataset["volumes"].values))

    views = imaging.slices(table, MODEL.rotations(batch), m) * imaging.transfer(batch, m)[:, None]

    seen = imaging.observe(batch, m)
    shown = views[torch.arange(64), batch["state"].long()]
    error = (shown - seen).abs().square().sum() / seen.abs().square().sum()
    assert float(error.sqrt()) < 0.02


def test_a_noise_free_reconstruction_is_the_truth_and_has_its_sign(clean: Particles) -> None:
    imaging = MODEL.Imaging(clean, 2.0)
    power = MODEL.signal_power(imaging, MODEL.half_sets(imaging, clean))
    sums = MODEL.back_project(imaging, clean, lambda batch: batch["state"], 2)
    truth = MODEL.read_truth(clean)

    volumes = MODEL.reconstruct(imaging, sums, power, mean=1e4, deviation=1e3)

    for volume, true in zip(volumes, truth.volumes, strict=True):
        curve = fourier_shell_correlation(volume * truth.mask, true * truth.mask)
        assert curve[:6].min() > 0.97


def test_interpolation_has_the_gradient_that_indexing_has() -> None:
    torch.manual_seed(0)
    table = torch.randn(30, 4, requires_grad=True)
    index, weight = torch.randint(30, (50, 8)), torch.rand(50, 8)
    upstream = torch.randn(50, 4)

    ours = MODEL._Interpolate.apply(table, index, weight)
    plain = (table[index] * weight[..., None]).sum(1)

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, table, upstream)[0],
        torch.autograd.grad(plain, table, upstream)[0],
    )


def test_the_linear_misfit_is_that_of_the_dense_gaussian(noisy: Particles) -> None:
    model = MODEL.build(MODEL.Config(**TINY, start_deviation=1.0), noisy)
    batch = next(noisy.batches("train", 3))
    m = 40
    with torch.no_grad():
        found = model._linear(batch, m)
        volumes = model._density(torch.cat([model.mean[None], model.deviation]))
        images, views = model._project(batch, model.imaging.table(volumes), m)

    for particle in range(3):
        axes = views[particle, 1:]
        dense = torch.distributions.MultivariateNormal(
            views[particle, 0], torch.eye(2 * m) + axes.T @ axes
        )
        constant = m * np.log(2 * np.pi)
        expected = -dense.log_prob(images[particle]) - constant  # type: ignore[no-untyped-call]
        assert float(found[particle]) == pytest.approx(float(expected), rel=1e-4)


def test_it_learns_noise_free_particles_by_heart(clean: Particles) -> None:
    model, losses = _train(clean, epochs=12)

    scores = MODEL.evaluate(model, clean, "train")

    assert losses[-1] < losses[0] - 1.0
    assert scores["balanced_accuracy"] > 0.99
    assert scores["adjusted_rand"] > 0.98


def test_it_beats_the_consensus_and_stays_under_the_ceiling(noisy: Particles, trained: Any) -> None:
    scores = MODEL.evaluate(trained, noisy, "test")
    compared = MODEL.compare(noisy, MODEL.Config(**TINY))

    baseline, ceiling = compared["baseline: consensus"], compared["ceiling: true states"]
    assert baseline["fsc_auc"] + 0.01 < scores["fsc_auc"] < ceiling["fsc_auc"] + 0.01
    assert scores["balanced_accuracy"] > 0.9
    assert baseline["balanced_accuracy"] == 0.5
    assert baseline["adjusted_rand"] == 0.0
    assert ceiling["adjusted_rand"] == 1.0
    assert set(scores) == set(baseline) == set(ceiling) == set(MODEL.TOLERANCE)


def test_scores_do_not_depend_on_the_order_of_states(noisy: Particles, trained: Any) -> None:
    before = MODEL.evaluate(trained, noisy, "test")
    with torch.no_grad():
        trained.deviation.copy_(trained.deviation.flip(0))
        trained.log_share.copy_(trained.log_share.flip(0))

    after = MODEL.evaluate(trained, noisy, "test")

    assert after == pytest.approx(before)
    assert after == MODEL.evaluate(trained, noisy, "test")


def test_every_particle_of_a_split_is_scored(noisy: Particles, trained: Any) -> None:
    found, true = MODEL.assign(trained, noisy, "validation")

    expected = noisy.dataset["state"].values[noisy.splits["validation"]]
    np.testing.assert_array_equal(true, expected)
    assert len(found) == len(true)


def test_data_without_truth_cannot_be_scored(noisy: Particles, trained: Any) -> None:
    blind = Particles(noisy.dataset.drop_vars(["volumes", "state"]))

    with pytest.raises(UsageError, match="ground truth"):
        MODEL.evaluate(trained, blind, "test")


def test_one_pixel_size_is_asked_for(noisy: Particles) -> None:
    mixed = noisy.dataset.assign_coords(pixel_size=("optics_group", [5.0, 4.0]))

    with pytest.raises(UsageError, match="rescale"):
        MODEL.build(MODEL.Config(**TINY), Particles(mixed))
