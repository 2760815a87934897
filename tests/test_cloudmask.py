"""Simulated SLSTR scenes obey the physics that they state, and reader and model do their work."""

import hashlib
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
import torch
import xarray as xr

from scibench_data.errors import IntegrityError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.cloudmask.simulate")
READER = importlib.import_module("scibench_data.datapackages.cloudmask.reader")
MODEL = importlib.import_module("scibench_data.models.cloudmask.model")

TINY = {"scenes": 2, "rows": 20, "columns": 24}
SMALL = {"width": 4, "levels": 3, "patch": 16, "patches": 1, "batch_size": 3}


def write(folder: Path, **parameters: int) -> Path:
    for name in SIMULATE.files(**parameters):
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small scenes."""
    return write(tmp_path_factory.mktemp("tiny"), **TINY)


@pytest.fixture(scope="session")
def scenes() -> list[tuple[Any, Any]]:
    """Twelve scenes: what is there, and what is seen."""
    asked = SIMULATE.Parameters(scenes=12, rows=48, columns=60)
    numbers = range(asked.scenes)
    return [
        (SIMULATE._scene(SIMULATE._Canvas(asked, i)), SIMULATE._observe(asked, i)) for i in numbers
    ]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep to one thread: tiny tensors gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- bytes

DIGESTS = (
    "9fada270b41d3ac655cdb4ba7db495b66d41d193519d0a6ad07e69b22758b27a",
    "f04dc56b14c4974fd275c7ade94a4fe244034065483a81bd9bc0eff2ac4955be",
)


def test_files_have_their_published_bytes(tiny: Path) -> None:
    assert tuple(sha256(tiny / name) for name in SIMULATE.files(**TINY)) == DIGESTS


def test_a_file_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    name = SIMULATE.files(**TINY)[1]

    SIMULATE.simulate(name, tmp_path / "alone.hdf", **TINY | {"scenes": 7})

    assert sha256(tmp_path / "alone.hdf") == DIGESTS[1]


def test_seeds_give_other_scenes_under_the_same_names(tiny: Path, tmp_path: Path) -> None:
    other = write(tmp_path, **TINY, seed=2)

    names = [sorted(path.name for path in folder.iterdir()) for folder in (tiny, other)]
    assert names[0] == names[1] == list(SIMULATE.files(**TINY))
    assert not np.array_equal(READER.read(tiny).bts, READER.read(other).bts)


def test_names_are_those_of_products_in_order_of_time() -> None:
    names = SIMULATE.files(scenes=100)

    assert list(names) == sorted(names)
    assert all(name.startswith("S3A_SL_1_RBT____2018") for name in names)
    assert len(set(READER._orbits([Path(name) for name in names]))) == 100


@pytest.mark.parametrize(
    "parameters", [{"scenes": 0}, {"scenes": 1.5}, {"rows": 8}, {"columns": 1501}, {"seed": -1}]
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file 'S3A\.hdf'"):
        SIMULATE.simulate("S3A.hdf", tmp_path / "x", **TINY)


# ---- physics


def test_fields_have_variance_one_and_the_spectrum_asked_for() -> None:
    canvases = [
        SIMULATE._Canvas(SIMULATE.Parameters(rows=64, columns=64), number) for number in range(60)
    ]

    fields = np.stack([canvas.field("test", 8.0) for canvas in canvases])

    assert fields.var() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(fields.var(axis=0).std(), 0.0, atol=0.25)
    # structure function 2 (1 - correlation), from the sum over the spectrum
    k = np.arange(40) / 80.0
    power = (k[:, None] ** 2 + k**2 + 1 / 64) ** (-4 / 3)
    for lag in (1, 3, 10):
        expected = 2.0 - 2.0 * (power.sum(0) * np.cos(2 * np.pi * k * lag)).sum() / power.sum()
        across = np.mean((fields[:, :, lag:] - fields[:, :, :-lag]) ** 2)
        down = np.mean((fields[:, lag:] - fields[:, :-lag]) ** 2)
        assert across == pytest.approx(expected, rel=0.15)
        assert down == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("wavelength", SIMULATE.WAVELENGTH)
def test_planck_is_plancks_law_and_brightness_its_inverse(wavelength: float) -> None:
    temperature = np.linspace(200.0, 330.0, 20)
    h, c, k = 6.62607015e-34, 299792458.0, 1.380649e-23
    metres = wavelength * 1e-6

    got = SIMULATE._planck(temperature, wavelength)

    expected = 2 * h * c**2 / metres**5 / np.expm1(h * c / (metres * k * temperature)) * 1e-6
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    np.testing.assert_allclose(SIMULATE._brightness(got, wavelength), temperature, rtol=1e-12)


def test_layers_keep_the_limits_of_two_streams() -> None:
    surface = np.array([[[0.0], [0.3], [0.9]]])
    thin, thick = np.zeros((1, 3)), np.full((1, 3), 1e5)
    lossless = (0.85, np.array([1.0 - 1e-12]))
    depth = np.array([[0.5, 5.0, 50.0]])

    kept = SIMULATE._layer(surface, thin, 0.5, SIMULATE._WATER)[..., :1]
    covered = SIMULATE._layer(surface, thick, 0.5, lossless)
    black = SIMULATE._layer(np.zeros((1, 3, 1)), depth, 0.5, lossless)[0, :, 0]
    mirror = SIMULATE._layer(np.ones((1, 3, 1)), depth, 0.5, lossless)

    np.testing.assert_allclose(kept, surface, atol=1e-12)  # no layer
    np.testing.assert_allclose(covered, 1.0, atol=1e-3)  # all that comes goes back
    gamma = 0.15 * depth[0]
    np.testing.assert_allclose(black, gamma / (1 + gamma), atol=1e-5)  # conservative two-stream
    np.testing.assert_allclose(mirror, 1.0, atol=1e-4)  # energy is kept


def test_ice_absorbs_more_of_s5_than_water_does() -> None:
    dark, depth = np.zeros((1, 1, 7)), np.full((1, 1), 20.0)

    water, ice = (
        SIMULATE._layer(dark, depth, 0.6, matter)[0, 0]
        for matter in (SIMULATE._WATER, SIMULATE._ICE)
    )

    assert water[2] == pytest.approx(water[0], rel=1e-3)
    assert ice[4] / ice[0] < water[4] / water[0] - 0.1


def test_the_true_mask_is_the_optical_depth(scenes: list[tuple[Any, Any]]) -> None:
    for scene, seen in scenes:
        np.testing.assert_array_equal(seen.cloud[..., 0], scene.water + scene.ice > 0.2)
    share = np.mean([seen.cloud.mean() for _, seen in scenes])
    assert 0.3 < share < 0.7


def test_clouds_are_bright_and_cold_over_the_open_sea(scenes: list[tuple[Any, Any]]) -> None:
    for scene, seen in scenes:
        sea = ~scene.land & ~scene.frozen & (scene.glint < 0.001)
        clear = sea & (scene.water + scene.ice == 0.0)
        thick = sea & (scene.water + scene.ice > 10.0)
        if clear.sum() > 50 and thick.sum() > 50:
            assert seen.refs[thick, 2].mean() > seen.refs[clear, 2].mean() + 0.3
            assert seen.bts[thick, 1].mean() < seen.bts[clear, 1].mean()
            np.testing.assert_allclose(seen.bts[clear, 1], scene.temperature[clear], atol=8.0)


def test_s4_sees_cirrus_only_where_the_air_is_moist(scenes: list[tuple[Any, Any]]) -> None:
    for scene, seen in scenes:
        clear = (scene.ice == 0.0) & (scene.vapour > 1.5) & (scene.water == 0.0)
        assert not clear.any() or np.abs(seen.refs[clear, 3]).max() < 0.02


def test_masks_disagree_where_cloud_is_thin(scenes: list[tuple[Any, Any]]) -> None:
    right = [np.mean(seen.bayes == seen.cloud) for _, seen in scenes]
    ideal = [np.mean(seen.bayes == seen.ideal) for _, seen in scenes]
    depth = np.concatenate([(scene.water + scene.ice).ravel() for scene, _ in scenes])
    missed = np.concatenate([((s.cloud > s.bayes)[..., 0]).ravel() for _, s in scenes])

    assert 0.85 < np.mean(right) < 0.98
    assert np.mean(right) < np.mean(ideal) < 0.99
    assert missed[(depth > 0.2) & (depth < 1.0)].mean() > 4 * missed[depth > 5.0].mean()


def test_texture_is_the_standard_deviation_of_nine_pixels() -> None:
    image = np.random.default_rng(0).normal(280.0, 2.0, (7, 9))

    texture = SIMULATE._texture(image)

    assert texture[3, 4] == pytest.approx(image[2:5, 3:6].std(ddof=1))
    assert SIMULATE._texture(np.zeros((4, 4))).max() == pytest.approx(0.05)


# ---- reader


def test_reader_gives_back_what_was_written(tiny: Path) -> None:
    data = READER.read(tiny)

    asked = SIMULATE.Parameters(**TINY)
    assert dict(data.sizes) == {
        "scene": 2, "y": 20, "x": 24, "solar_channel": 6, "thermal_channel": 3,
    }  # fmt: skip
    for number in range(2):
        seen = SIMULATE._observe(asked, number)
        np.testing.assert_array_equal(data.refs[number], seen.refs)
        np.testing.assert_array_equal(data.bts[number], seen.bts)
        for name in ("bayes", "cloud", "ideal"):
            np.testing.assert_array_equal(data[name][number], getattr(seen, name)[..., 0])
    assert data.orbit.values.tolist() == [386, 393]
    assert data["product"].attrs["flag_meanings"].split()[0].startswith("S3A_SL_1_RBT____2018")


def test_the_originals_files_are_read(tmp_path: Path) -> None:
    """Folders below, other datasets, doubles, packed, no truth, two frames of an orbit."""
    names = [
        "S3A_SL_1_RBT____20190306T080000_20190306T080300_20190307T000000_0179_042_135_1980_LN2_O_NT_003",
        "S3A_SL_1_RBT____20190306T080300_20190306T080600_20190307T000000_0179_042_135_2160_LN2_O_NT_003",
        "S3A_renamed",
    ]
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "day").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "day" / f"{name}.hdf", "w") as file:
            for key, channels in (("refs", 6), ("bts", 3), ("rads", 6)):
                file.create_dataset(key, data=rng.random((8, 10, channels)), compression="gzip")
            for key in ("bayes", "summary"):
                file[key] = rng.integers(0, 5, (8, 10, 1)).astype(np.uint8)

    data = READER.read(tmp_path)

    assert data.sizes["scene"] == 3
    assert data.refs.dtype == np.float32
    assert set(data.data_vars) == {"refs", "bts", "bayes"}
    assert data.orbit.values.tolist() == [385 * 42 + 135, 385 * 42 + 135, -3]
    assert data.bayes.values.max() > 1
    assert data.refs.values.max() > 0.5


def rewrite(path: Path, name: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("refs", None, "lacks the dataset refs"),
        ("bayes", None, "lacks the dataset bayes"),
        ("bts", np.zeros((20, 24, 4), np.float32), r"bts has shape \(20, 24, 4\)"),
        ("bts", np.zeros((20, 24), np.float32), r"bts has shape \(20, 24\)"),
        ("refs", np.zeros((20, 24, 6), np.int16), "int16, expected .* real numbers"),
        ("bayes", np.zeros((20, 24, 1)), "float64, expected .* integers"),
        ("refs", np.zeros((21, 24, 6), np.float32), "put scenes of one size"),
        ("bayes", np.zeros((20, 24, 1), np.int16), "put scenes of one size"),
    ],
)
def test_a_wrong_file_is_refused(
    copy: Path, name: str, values: np.ndarray | None, message: str
) -> None:
    rewrite(copy / SIMULATE.files(**TINY)[1], name, values)

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[: len(content) // 2],
        lambda _: b"no HDF5 " * 100,
    ],
)
def test_a_damaged_file_is_refused(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    path = copy / SIMULATE.files(**TINY)[0]
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(IntegrityError, match=r"h5py can't read it .*; get it again"):
        READER.read(copy)


def test_a_file_that_was_not_fetched_is_named(copy: Path) -> None:
    path = copy / SIMULATE.files(**TINY)[0]
    path.unlink()
    path.symlink_to(copy / "absent")

    with pytest.raises(IntegrityError, match=r"hdf: not there; get the files"):
        READER.read(copy)


def test_a_folder_without_scenes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"expected S3A\*\.hdf, found none"):
        READER.read(tmp_path)


# ---- model


class Scenes:
    """What a model sees of a dataset."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset
        self.splits = {
            "train": np.arange(6), "validation": np.arange(6, 9), "test": np.arange(9, 12)
        }  # fmt: skip

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate once over a split."""
        rows = self.splits[split]
        if shuffle:
            rows = np.random.default_rng([seed, epoch]).permutation(rows)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            names = ("refs", "bts", "bayes")
            yield {name: torch.from_numpy(self.dataset[name].values[part]) for name in names}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Twelve scenes of 40 x 50 pixels."""
    folder = write(tmp_path_factory.mktemp("scenes"), scenes=12, rows=40, columns=50)
    return Scenes(READER.read(folder).load())


def train(data: Scenes, seed: int = 0, epochs: int = 2, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{**SMALL, **settings}, epochs=epochs)
    torch.manual_seed(seed)
    model = MODEL.build(config, data)
    optimizer = MODEL.optimizer(model, config)
    losses: list[float] = []
    steps = -(-len(data.splits["train"]) // config.batch_size) * epochs
    for epoch in range(epochs):
        model.train()
        for batch in data.batches("train", config.batch_size, shuffle=True, seed=seed, epoch=epoch):
            loss = model.loss(batch, len(losses) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model.eval(), losses


def test_the_originals_size_is_one_argument_away() -> None:
    config = MODEL.Config(width=32, patch=256)

    model = MODEL.UNet(config, torch.zeros(11), torch.ones(11))

    widths = [block[0].out_channels for block in model.down]
    assert widths == [32, 64, 128, 256]
    assert 1.9e6 < sum(p.numel() for p in model.parameters()) < 2.2e6


def test_patches_keep_channels_and_mask_together(data: Scenes) -> None:
    torch.manual_seed(0)
    model = MODEL.build(MODEL.Config(**SMALL | {"patches": 20}), data)
    place = torch.arange(2000.0).view(1, 1, 40, 50)

    channels, cloudy = model._patches(place.expand(1, 11, 40, 50), place[0])

    assert channels.shape == (20, 11, 16, 16)
    assert torch.equal(channels[:, 0], cloudy)
    steps = {int(p[0, 1] - p[0, 0]) for p in cloudy}
    assert steps == {1, -1, 50, -50}


def test_pixels_without_a_number_do_no_harm(data: Scenes) -> None:
    model = train(data)[0]
    batch = next(data.batches("test", 3))
    batch["bts"][:, :5] = torch.nan

    odds = model(MODEL.features(batch))

    assert torch.isfinite(odds).all()
    holed = Scenes(data.dataset.copy(deep=True))
    holed.dataset["bts"].values[:6, :3] = np.nan
    assert torch.isfinite(MODEL.build(MODEL.Config(**SMALL), holed).deviation).all()


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    truth, cloudy, predicted = (rng.random((3, 20, 30)) < p for p in (0.4, 0.3, 0.6))

    found = MODEL.scores(predicted, cloudy, truth)

    flat = cloudy.ravel(), predicted.ravel()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(*flat))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(*flat))
    assert found["iou"] == pytest.approx(metrics.jaccard_score(*flat))
    assert found["true_accuracy"] == pytest.approx((predicted == truth).mean())
    assert MODEL.scores(predicted & False, cloudy & False)["iou"] == 1.0


def test_evaluation_is_deterministic_and_covers_whole_scenes(data: Scenes) -> None:
    model = train(data)[0]

    masks = MODEL.predict(model, data, "test")

    assert masks.shape == (3, 40, 50)
    assert MODEL.evaluate(model, data, "test") == MODEL.evaluate(model, data, "test")
    assert set(MODEL.evaluate(model, data, "test")) == set(MODEL.TOLERANCE)


def test_data_without_the_truth_is_scored_against_the_operational_mask(data: Scenes) -> None:
    blind = Scenes(data.dataset.drop_vars(["cloud", "ideal"]))

    scores = MODEL.evaluate(train(data)[0], blind, "test")

    assert set(scores) == set(MODEL.TOLERANCE) - {"true_accuracy"}


def test_baselines_are_no_straw_men(data: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(MODEL, "TREES", (5, 20))

    found = MODEL.compare(data, MODEL.Config())

    cloudy = data.dataset["bayes"][data.splits["test"]].values > 0
    floor = max(cloudy.mean(), 1 - cloudy.mean())
    for name in ("logistic regression", "gradient boosting"):
        assert found[f"baseline: {name}"]["accuracy"] > floor, name
    table = MODEL._sample(data, "train")  # six scenes are too few to set thresholds for others
    right = (MODEL._thresholds(table, table)(table.features) == table.cloudy).mean()
    assert right > max(table.cloudy.mean(), 1 - table.cloudy.mean()) + 0.02
    assert found["reference: true mask"]["true_accuracy"] == 1.0
    ceiling = found["ceiling: perfect weather model"]["accuracy"]
    assert found["reference: true mask"]["accuracy"] < ceiling < 1.0
    assert all(set(scores) == set(MODEL.TOLERANCE) for scores in found.values())


def test_neighbourhoods_are_means_and_deviations_within_the_scene() -> None:
    channels = torch.randn(1, 11, 8, 9)

    features = MODEL.neighbourhoods(channels)

    assert features.shape == (1, 77, 8, 9)
    corner = channels[0, 4, :2, :2]
    assert features[0, 11 + 4, 0, 0] == pytest.approx(float(corner.mean()), abs=1e-5)
    assert features[0, 22 + 4, 0, 0] == pytest.approx(float(corner.std(correction=0)), abs=1e-4)


def test_it_learns_one_batch_by_heart(data: Scenes) -> None:
    torch.manual_seed(0)
    model = MODEL.build(MODEL.Config(**SMALL | {"width": 8}), data)
    batch = next(data.batches("train", 3))
    channels = MODEL.features(batch)[..., :24, :24]
    cloudy = MODEL.labels(batch)[..., :24, :24].float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(channels), cloudy)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    assert ((model(channels) > 0) == (cloudy > 0)).float().mean() > 0.97
