"""Frames of a laser beam: exact bytes, their optics, what the reader accepts, and the detectors.

Oracles are independent: a spot by numerical Fresnel propagation, TIFF by Pillow, scores by
scikit-learn.
"""

import csv
import hashlib
import importlib
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from scibench_data.errors import IntegrityError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.optical_damage.simulate")
READER = importlib.import_module("scibench_data.datapackages.optical_damage.reader")
MODEL = importlib.import_module("scibench_data.models.optical_damage.model")


GOOD, BAD = "inference/undamaged", "inference/damaged"
DIGESTS = {
    "training/undamaged/frame_00001.TIFF": (
        "23e285c9f18a64dd3ce9f3d4b6e310da92d60a0f1edd70f761bf74b2cd5539b2"
    ),
    "inference/damaged/frame_00004.TIFF": (
        "57fce8a1e9494c9d1fbb5d32ab998fbcb020652b965b94e30a0998c072e86736"
    ),
    "truth/damage.csv": ("6aaadeb9a6b1735df83a3be00f16bcb16d2dc7e1db0b7d6d35e800ad64fd1db3"),
}


def write(folder: Path, **parameters: float) -> Path:
    for name in SIMULATE.files(**parameters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep to one thread: tiny tensors gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames."""
    return write(tmp_path_factory.mktemp("tiny"), frames=20)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- files


@pytest.mark.parametrize("name", DIGESTS)
def test_a_file_is_made_by_itself(tmp_path: Path, name: str) -> None:
    SIMULATE._optic.cache_clear()

    SIMULATE.simulate(name, tmp_path / "alone", frames=20)

    assert sha256(tmp_path / "alone") == DIGESTS[name]


def test_frames_are_shared_out_to_the_originals_folders() -> None:
    names = SIMULATE.files(frames=480)

    counts = {folder: sum(name.startswith(folder) for name in names) for folder in SIMULATE.FOLDERS}
    assert counts == {"training/undamaged": 228, "validation/undamaged": 60, GOOD: 96, BAD: 96}
    assert len(set(names)) == 481


def test_first_frames_do_not_depend_on_how_many_follow(tiny: Path, tmp_path: Path) -> None:
    name = f"{BAD}/frame_00002.TIFF"

    SIMULATE.simulate(name, tmp_path / "x", frames=1000)

    assert (tmp_path / "x").read_bytes() == (tiny / name).read_bytes()


def test_seeds_give_another_optic() -> None:
    first, second = (SIMULATE._optic(seed, 4) for seed in (1, 2))

    assert np.abs(first.dust - second.dust).max() > 0.05


@pytest.mark.parametrize(
    "parameters",
    [
        {"frames": 10},
        {"frames": 20.5},
        {"binning": 3},
        {"binning": 8},
        {"amplitude": 0},
        {"seed": -1},
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file 'inference/damaged/frame_00005"):
        SIMULATE.simulate(f"{BAD}/frame_00005.TIFF", tmp_path / "x", frames=20)


def test_pillow_reads_the_frames(tiny: Path) -> None:
    image = pytest.importorskip("PIL.Image")

    with image.open(tiny / f"{BAD}/frame_00004.TIFF") as file:
        pixels = np.asarray(file)

    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, READER.read(tiny).images[-1])


@pytest.mark.parametrize(("binning", "shape"), [(1, (492, 656)), (2, (246, 328)), (4, (123, 164))])
def test_binning_keeps_the_scene(binning: int, shape: tuple[int, int]) -> None:
    asked = SIMULATE.Parameters(frames=20, binning=binning)

    fluence = SIMULATE._undamaged(asked, GOOD, 0)

    assert fluence.shape == shape
    y, x = np.indices(shape)
    centre = [(fluence * (axis + 0.5) * binning - 0.5).sum() / fluence.sum() for axis in (y, x)]
    np.testing.assert_allclose(centre, [250, 370], atol=8)


# ---- physics


def test_a_spot_is_a_gaussian_absorber_propagated_by_fresnel() -> None:
    """Against the angular spectrum of the same absorber, exp(-i pi lambda z k^2)."""
    size, radius, amplitude, z = 256, 6.0, 0.3, 1.7
    x = np.arange(size) - size / 2
    square = x**2 + x[:, None] ** 2
    field = amplitude * np.exp(-square / (2 * radius**2))
    k = np.fft.fftfreq(size)
    phase = 2 * np.pi**2 * radius**2 * z * (k**2 + k[:, None] ** 2)
    spot = np.fft.ifft2(np.fft.fft2(field) * np.exp(-1j * phase))

    got = SIMULATE.spot_transmission(x, x, SIMULATE._Spot(0.0, 0.0, radius, amplitude, z))

    np.testing.assert_allclose(got, np.abs(1 - spot) ** 2, atol=1e-9)


def test_a_spot_in_focus_only_absorbs() -> None:
    x = np.arange(-20.0, 21.0)

    got = SIMULATE.spot_transmission(x, x, SIMULATE._Spot(0.0, 0.0, 3.0, 0.5, 0.0))

    assert got.max() <= 1.0
    assert got[20, 20] == pytest.approx(0.25)


def test_waves_have_their_deviation() -> None:
    x = np.arange(1000.0)

    patterns = [SIMULATE._waves(64, 14.0, 160.0, 0.07, (n, "x")).at(x, x[:400]) for n in range(3)]

    for pattern in patterns:
        assert pattern.std() == pytest.approx(0.07, rel=0.1)


def test_noise_is_that_of_shots_and_read_out() -> None:
    asked = SIMULATE.Parameters(frames=400)
    residuals = []
    for number in range(10):
        expected = SIMULATE._undamaged(asked, GOOD, number)
        frame = SIMULATE._frame(asked, GOOD, number) - SIMULATE.OFFSET
        residuals.append((frame - expected) / np.sqrt(4.0**2 + 0.3 * expected))
    together = np.stack(residuals)

    assert together.mean() == pytest.approx(0.0, abs=0.01)
    assert together.std() == pytest.approx(1.0, abs=0.02)
    assert abs(np.corrcoef(together[:, :, 1:].ravel(), together[:, :, :-1].ravel())[0, 1]) < 0.02


def test_only_damaged_optics_have_sites() -> None:
    asked = SIMULATE.Parameters(frames=400)
    sites = [SIMULATE._sites(asked, BAD, number) for number in range(80)]

    assert all(not SIMULATE._sites(asked, GOOD, number) for number in range(20))
    assert {len(found) for found in sites} == {1, 2, 3}
    every = [site for found in sites for site in found]
    amplitudes = np.log([site.amplitude for site in every])
    assert math.log(0.015) <= amplitudes.min() <= amplitudes.max() <= math.log(0.12)
    away = [math.hypot(site.x - 370, site.y - 250) for site in every]
    assert max(away) < 84


def test_truth_is_the_distance_between_with_and_without(tiny: Path) -> None:
    asked = SIMULATE.Parameters(frames=20)
    with (tiny / "truth/damage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    for number, row in enumerate(rows):
        before, after = (f(asked, BAD, number) for f in (SIMULATE._undamaged, SIMULATE._expected))
        distance = math.sqrt(((after - before) ** 2 / (16 + 0.3 * before)).sum())
        assert float(row["detectability"]) == pytest.approx(distance, abs=0.02)
        assert int(row["sites"]) == len(SIMULATE._sites(asked, BAD, number))
    assert len(rows) == 4


def test_damage_is_fainter_than_what_changes_from_shot_to_shot() -> None:
    asked = SIMULATE.Parameters(frames=400)
    shots = np.stack([SIMULATE._undamaged(asked, GOOD, number) for number in range(20)])
    change = [
        np.abs(SIMULATE._expected(asked, BAD, n) - SIMULATE._undamaged(asked, BAD, n)).max()
        for n in range(20)
    ]

    inside = shots.mean(axis=0) > 1500
    assert np.median(change) < 2 * shots.std(axis=0)[inside].mean()


# ---- reader


def test_reader_is_lazy_and_says_what_it_gives(tiny: Path) -> None:
    data = READER.read(tiny)

    assert data.images.dims == ("frame", "y", "x")
    assert data.images.chunks is not None
    assert data.images.shape == (20, 123, 164)
    assert data.images.dtype == np.uint16
    assert data.split.values.tolist() == [0] * 10 + [1] * 2 + [2] * 8
    assert data.damaged.values.tolist() == [0] * 16 + [1] * 4
    assert (data.detectability.values[16:] > 0).all()
    assert not data.detectability.values[:16].any()
    assert all({"units", "long_name"} <= set(data[name].attrs) for name in data.variables)
    expected = SIMULATE._frame(SIMULATE.Parameters(frames=20), GOOD, 2)
    np.testing.assert_array_equal(data.images[14], expected)


def test_real_data_have_no_truth(copy: Path) -> None:
    shutil.rmtree(copy / "truth")

    assert set(READER.read(copy).coords) == {"split", "damaged"}


def _other_tiff(frame: npt.NDArray[np.uint16], rows: int) -> bytes:
    """Write a big-endian TIFF in strips of some rows, with the directory in front."""
    height, width = frame.shape
    strips = [frame[at : at + rows].astype(">u2").tobytes() for at in range(0, height, rows)]
    count, directory = len(strips), 8
    tables = directory + 2 + 9 * 12 + 4
    first = tables + 8 * count
    sizes = [len(strip) for strip in strips]
    offsets = [first + sum(sizes[:i]) for i in range(count)]
    tags = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, 1, 16 << 16)]
    tags += [(259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16), (273, 4, count, tables)]
    tags += [(277, 3, 1, 1 << 16), (278, 3, 1, rows << 16), (279, 4, count, tables + 4 * count)]
    head = struct.pack(">2sHIH", b"MM", 42, directory, len(tags))
    body = b"".join(struct.pack(">HHII", *tag) for tag in tags) + struct.pack(">I", 0)
    return head + body + struct.pack(f">{2 * count}I", *offsets, *sizes) + b"".join(strips)


def test_reader_takes_either_byte_order_and_strips(copy: Path) -> None:
    path = copy / f"{GOOD}/frame_00001.TIFF"
    frame = READER.read(copy).images[12].values
    path.unlink()
    path.with_suffix(".tif").write_bytes(_other_tiff(frame, 10))

    again = READER.read(copy).images[12].values

    np.testing.assert_array_equal(again, frame)


def _tag(path: Path, tag: int, value: int) -> None:
    """Set the value of a tag of a frame as the simulation writes it."""
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0] + 2
    for entry in range(9):
        if struct.unpack_from("<H", content, start + 12 * entry)[0] == tag:
            struct.pack_into("<I", content, start + 12 * entry + 8, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:500]), "get it again"),
        (lambda p: p.write_bytes(b""), "not a TIFF file"),
        (lambda p: p.write_text("no picture"), "not a TIFF file"),
        (lambda p: _tag(p, 277, 3), "3 channels"),
        (lambda p: _tag(p, 259, 5), "compression 5"),
        (lambda p: _tag(p, 258, 32), "32 bit"),
        (lambda p: _tag(p, 256, 9999), "bytes for 123 x 9999"),
        (lambda p: _tag(p, 256, 163), "123 x 163 uint16, but frame_00001.TIFF has 123 x 164"),
        (lambda p: _tag(p, 273, 40_000), "bytes, expected at least"),
    ],
    ids=["short", "empty", "foreign", "channels", "packed", "bits", "wide", "other", "offset"],
)
def test_reader_refuses_what_is_damaged(
    copy: Path, damage: Callable[[Path], Any], complaint: str
) -> None:
    damage(copy / f"{BAD}/frame_00002.TIFF")

    with pytest.raises(IntegrityError, match=complaint):
        READER.read(copy)


def test_reader_asks_for_the_whole_subset(copy: Path) -> None:
    shutil.rmtree(copy / "validation")

    with pytest.raises(IntegrityError, match="validation/undamaged: expected TIFF files"):
        READER.read(copy)


def test_reader_refuses_a_truth_that_lacks_a_frame(copy: Path) -> None:
    (copy / "truth/damage.csv").write_text("path,sites,detectability\n")

    with pytest.raises(IntegrityError, match="frame_00001"):
        READER.read(copy)


# ---- model


class Frames:
    """What a model sees of a dataset."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset.load()
        names = ("train", "validation", "test")
        split = dataset.split.values
        self.splits = {name: np.flatnonzero(split == i) for i, name in enumerate(names)}

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate once over a split."""
        order = self.splits[split]
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            names = ("images", "damaged")
            yield {name: torch.from_numpy(self.dataset[name].values[rows]) for name in names}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Frames with damage that is easy to see."""
    folder = write(tmp_path_factory.mktemp("frames"), frames=120, amplitude=0.8)
    return Frames(READER.read(folder))


def _train(data: Frames, seed: int = 0, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{"epochs": 8, "batch_size": 8, "channels": 8, "latent": 8, **settings})
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
    return model.eval(), losses


@pytest.fixture(scope="module")
def trained(frames: Frames) -> Any:
    return _train(frames)[0]


def test_crops_are_the_originals() -> None:
    frames = torch.randint(100, 4000, (2, 492, 656), dtype=torch.int32)

    got = MODEL.prepare(frames)

    for crop, frame in zip(got, frames.numpy().astype(np.float64), strict=True):
        expected = (frame - frame.min()) / (frame.max() - frame.min())
        np.testing.assert_allclose(crop, expected[150:350, 270:470], atol=1e-6)


def test_the_original_is_one_argument_away() -> None:
    """41 million parameters at its latent size of 512; its pages' 160 million belong to 2,000."""
    net = MODEL.Autoencoder(MODEL.Config(channels=64, latent=512), torch.zeros(200, 200), 1.0)

    assert net.encoder[-1].in_features == 16 * 50 * 50
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(41.1e6, rel=0.01)
    assert net.small == (50, 50)


def test_easy_damage_is_found(frames: Frames, trained: Any) -> None:
    found = MODEL.evaluate(trained, frames, "test")
    compared = MODEL.compare(frames, MODEL.Config())

    assert found["auc"] > 0.8
    assert compared["baseline: PCA"]["auc"] > 0.9
    assert compared["baseline: difference of Gaussians"]["auc"] > 0.9
    assert compared["ceiling: shot and damage known"]["auc"] > 0.99
    assert all(set(scores) == set(found) == set(MODEL.TOLERANCE) for scores in compared.values())


def test_validation_is_scored_on_implanted_spots(frames: Frames, trained: Any) -> None:
    crops, damaged = MODEL.read_crops(frames, "validation")
    lit = MODEL.lit_pixels(crops.mean(axis=0))

    spotted = MODEL.implant(crops, lit)

    assert not damaged.any()
    assert (spotted <= crops).all()
    assert ((spotted < crops - 0.001).any(axis=(1, 2))).all()
    np.testing.assert_array_equal(spotted, MODEL.implant(crops, lit))
    assert 0.4 < MODEL.evaluate(trained, frames, "validation")["auc"] <= 1.0


def test_the_threshold_does_not_depend_on_the_test_frames(frames: Frames, trained: Any) -> None:
    """The original's does: with fewer damaged frames its percentile falls."""
    fewer = Frames(frames.dataset)
    test = frames.splits["test"]
    fewer.splits["test"] = test[: len(test) * 3 // 4]

    whole, part = (MODEL.evaluate(trained, data, "test") for data in (frames, fewer))

    assert whole["false_alarms"] == part["false_alarms"]


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    good, bad = np.rint(rng.normal(0, 3, 70)), np.rint(rng.normal(2, 3, 50))
    label = np.r_[np.zeros(70), np.ones(50)]
    score = np.r_[good, bad]

    got = MODEL.scores(good, bad, 2.0)

    assert got["auc"] == pytest.approx(metrics.roc_auc_score(label, score))
    assert got["f1"] == pytest.approx(metrics.f1_score(label, score > 2.0))
    assert got["recall"] == pytest.approx(metrics.recall_score(label, score > 2.0))


def test_the_ideal_observer_is_that_of_two_gaussians() -> None:
    distance, rng = 1.3, np.random.default_rng(0)

    got = MODEL.ideal_observer(np.array([distance]), 1)

    good, bad = rng.normal(0, 1, 200_000), rng.normal(distance, 1, 200_000)
    assert got["auc"] == pytest.approx(MODEL.area_under_curve(good, bad), abs=0.003)
    limit = np.percentile(good, MODEL.PERCENTILE)
    assert got["recall"] == pytest.approx((bad > limit).mean(), abs=0.005)


def test_training_on_damage_is_refused(frames: Frames) -> None:
    mixed = Frames(frames.dataset)
    mixed.splits["train"] = frames.splits["test"]

    with pytest.raises(UsageError, match="24 training frames show damage"):
        MODEL.build(MODEL.Config(), mixed)


def test_it_learns_one_batch_by_heart(frames: Frames) -> None:
    torch.manual_seed(0)
    model = MODEL.build(MODEL.Config(), frames)
    batch = next(frames.batches("train", 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for _ in range(60):
        loss = model.loss(batch, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.2 * losses[0]
