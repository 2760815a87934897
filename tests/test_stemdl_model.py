"""The STEMDL reference model on patterns of spots whose symmetry is known."""

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from scibench_data.errors import UsageError

MODEL = importlib.import_module("scibench_data.models.stemdl.model")

Array = npt.NDArray[np.float64]

WIDTH = 24
FOLD = {10: 2, 150: 3, 100: 4, 190: 6}  # a space group, and how often its spots repeat
TINY = {"epochs": 12, "batch_size": 16, "angles": 24}


def spots(fold: int, turn: float, radius: float = 7.0) -> Array:
    """Draw the beam and `fold` spots about it, turned by `turn` [rad]."""
    y, x = np.mgrid[:WIDTH, :WIDTH] - WIDTH // 2
    angle = turn + 2 * np.pi * np.arange(fold) / fold
    places = [
        (0.0, 0.0, 1.0),
        *zip(radius * np.cos(angle), radius * np.sin(angle), [0.1] * fold, strict=True),
    ]
    pattern = sum(h * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 4.0) for cx, cy, h in places)
    return np.asarray(pattern / pattern.sum())


def dataset(count: int, seed: int = 0, *, turned: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.resize(list(FOLD), count))
    shares = np.array(
        [
            [spots(FOLD[g], turned * rng.uniform(0, 7), rng.uniform(5, 9)) for _ in range(3)]
            for g in groups.tolist()
        ]
    )
    counts = rng.poisson(3000 * shares) / 3000
    return xr.Dataset(
        {"patterns": (("sample", "orientation", "y", "x"), counts.astype(np.float32))},
        {"space_group": ("sample", groups.astype(np.int32))},
    )


class Stacks:
    """What a model sees of a dataset."""

    def __init__(self, data: xr.Dataset) -> None:
        self.dataset = data
        n = data.sizes["sample"]
        self.splits = {
            "train": np.arange(0, n // 2),
            "validation": np.arange(n // 2, n * 3 // 4),
            "test": np.arange(n * 3 // 4, n),
        }

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate once over a split."""
        order = self.splits[split]
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {
                name: torch.from_numpy(self.dataset[name].values[rows])
                for name in ("patterns", "space_group")
            }
            yield batch | {"index": torch.from_numpy(rows)}


def train(data: Stacks, seed: int = 0, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{**TINY, **settings})
    torch.manual_seed(seed)
    model = MODEL.build(config, data)
    optimizer = MODEL.optimizer(model, config)
    steps = math.ceil(len(data.splits["train"]) / config.batch_size) * config.epochs
    losses: list[float] = []
    for epoch in range(config.epochs):
        for batch in data.batches("train", config.batch_size, shuffle=True, seed=seed, epoch=epoch):
            loss = model.loss(batch, len(losses) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model.eval(), losses


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Keep to one thread and to small forests: tiny data gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL, "TREES", 40)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> Stacks:
    """Two hundred stacks of four symmetries."""
    return Stacks(dataset(200))


@pytest.fixture(scope="module")
def trained(data: Stacks) -> Any:
    """A model of them."""
    return train(data)[0]


def test_macro_f1_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for classes in (2, 5, 30):  # of thirty some do not occur
        truth, found = rng.integers(classes, size=(2, 40))

        expected = metrics.f1_score(truth, found, average="macro")

        assert MODEL.macro_f1(truth, found) == pytest.approx(expected)
        assert MODEL.scores(truth, found)["top1"] == metrics.accuracy_score(truth, found)


@pytest.mark.parametrize(("polar", "depth"), [(0, 8), (1, 8), (1, 18)])
def test_every_parameter_gets_a_finite_gradient(data: Stacks, polar: int, depth: int) -> None:
    model = MODEL.build(MODEL.Config(**TINY, polar=polar, depth=depth), data)

    loss = model.loss(next(data.batches("train", 8)), 0.0)
    loss.backward()

    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)]
)
def test_the_originals_network_is_one_argument_away(
    data: Stacks, depth: int, published: int
) -> None:
    """Parameters of torchvision's networks, less two colours of the stem and 1,000 classes."""
    channels = 2048 if depth == 50 else 512
    expected = published - 2 * 64 * 7 * 7 + (channels + 1) * (len(FOLD) - 1000)

    model = MODEL.build(MODEL.Config(depth=depth), data)

    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_an_unknown_depth_is_refused(data: Stacks) -> None:
    with pytest.raises(UsageError, match="depth=9; choose 8, 18, 34, 50"):
        MODEL.build(MODEL.Config(depth=9), data)


def test_polar_coordinates_turn_a_turn_into_a_shift() -> None:
    patterns = np.stack([spots(3, 0.3), spots(3, 0.3 + np.pi / 6)])[:, None]  # 2 of 24 angles

    first, second = MODEL.Polar(WIDTH, 24)(torch.from_numpy(patterns).float())[:, 0]

    assert float((first.roll(2, 1) - second).abs().max()) < 0.08 * float(first.max())
    assert float((first - second).abs().max()) > 0.05 * float(first.max())
    torch.testing.assert_close(first[0], torch.full((24,), float(patterns[0].max())))


def test_a_cyclic_shift_by_the_stride_changes_no_answer(data: Stacks, trained: Any) -> None:
    prepared = trained.prepare(next(data.batches("test", 8))["patterns"])

    with torch.no_grad():
        before, after = trained(prepared), trained(prepared.roll(8, -1))

    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("polar", [0, 1])
def test_copies_are_turned_and_mirrored_and_nothing_else(data: Stacks, polar: int) -> None:
    config = MODEL.Config(**TINY, polar=polar)
    prepared = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    torch.manual_seed(0)

    copies = [MODEL.turn(prepared, config) for _ in range(40)]

    kept = prepared.flatten(2).sort(-1).values
    for copy in copies:
        torch.testing.assert_close(copy.flatten(2).sort(-1).values, kept)
    assert len({tuple(copy[0, 0].flatten().tolist()) for copy in copies}) == 8
    torch.manual_seed(0)
    plain = MODEL.turn(prepared, MODEL.Config(**TINY, polar=polar, mirror=0))
    assert plain.shape == prepared.shape


def test_logarithmic_files_give_the_same_input(data: Stacks) -> None:
    values = np.clip(10 * (np.log(np.maximum(data.dataset["patterns"], np.exp(-17))) + 17), 0, 255)
    logarithmic = data.dataset.assign(patterns=values)
    logarithmic["patterns"].attrs["scale"] = "clip(10 (max(-17, ln share) + 17), 0, 255)"
    config = MODEL.Config(**TINY)

    models = [MODEL.build(config, each) for each in (data, Stacks(logarithmic))]
    inputs = [
        model.prepare(next(each.batches("test", 4))["patterns"])
        for model, each in zip(models, (data, Stacks(logarithmic)), strict=True)
    ]

    torch.testing.assert_close(inputs[0], inputs[1], atol=1e-5, rtol=1e-5)
    assert inputs[0].min() >= 0.0
    assert inputs[0].max() <= 1.0


def test_the_rate_rises_and_falls(data: Stacks) -> None:
    config = MODEL.Config(**TINY)
    model = MODEL.build(config, data)
    optimizer = MODEL.optimizer(model, config)
    rates = []
    for progress in (0.0, 0.1, 0.2, 0.6, 0.99):
        model.progress = progress
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"] / config.learning_rate)

    assert rates[0] < rates[1] < rates[2] == pytest.approx(1.0)
    assert rates[3] == pytest.approx(0.5)
    assert 0.0 < rates[4] < 0.01


def test_features_do_not_see_a_turn_but_see_the_symmetry() -> None:
    patterns = np.log(np.array([[spots(f, t)] * 3 for f in (4, 6) for t in (0.0, 0.4)]) + 1e-6)

    features = MODEL.symmetry_features(torch.from_numpy(patterns).float())

    folds = features[:, :4]  # 2, 3, 4 and 6
    np.testing.assert_allclose(folds[0], folds[1], atol=0.05)
    np.testing.assert_allclose(folds[2], folds[3], atol=0.05)
    assert folds[0, 2] > 0.95 > folds[0, 3] + 0.3
    assert folds[2, 3] > 0.95 > folds[2, 2] + 0.3


def test_the_network_and_symmetry_features_see_through_a_turn(data: Stacks, trained: Any) -> None:
    pytest.importorskip("sklearn")

    compared = MODEL.compare(data, MODEL.Config(**TINY))
    scores = MODEL.evaluate(trained, data, "test")

    assert scores["macro_f1"] > 0.9
    assert compared["baseline: symmetry features + forest"]["macro_f1"] > 0.9
    assert compared["baseline: symmetry features + logistic regression"]["macro_f1"] > 0.9
    for each in (scores, *compared.values()):
        assert set(each) == set(MODEL.TOLERANCE)


def test_no_baseline_is_crippled() -> None:
    """Where crystals are not turned, pixels are enough."""
    pytest.importorskip("sklearn")

    compared = MODEL.compare(Stacks(dataset(160, turned=False)), MODEL.Config(**TINY))

    assert len(compared) == 4
    for name, each in compared.items():
        assert each["macro_f1"] > 0.9, name


def test_scores_repeat_and_every_sample_counts(data: Stacks, trained: Any) -> None:
    found, true = MODEL.predict(trained, data, "test")

    np.testing.assert_array_equal(true, data.dataset["space_group"].values[data.splits["test"]])
    assert len(found) == len(true)
    assert MODEL.evaluate(trained, data, "test") == MODEL.scores(true, found)


def test_it_learns_a_batch_by_heart() -> None:
    few = Stacks(dataset(32, seed=1))

    model, losses = train(few, epochs=40, smoothing=0.0, dropout=0.0)

    assert losses[-1] < 0.05 * losses[0]
    assert MODEL.evaluate(model, few, "train") == {"macro_f1": 1.0, "top1": 1.0}
