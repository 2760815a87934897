"""Graphene micrographs: exact bytes, their physics, what the reader accepts, and the U-Net.

Oracles are independent: images by NumPy's FFT of a potential summed in real space, structural
similarity by a loop over windows.
"""

import hashlib
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from scibench_data.errors import IntegrityError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.em_denoise.simulate")
READER = importlib.import_module("scibench_data.datapackages.em_denoise.reader")
MODEL = importlib.import_module("scibench_data.models.em_denoise.model")

Array = npt.NDArray[np.float64]

TINY = {"pairs": 16, "size": 32}
NOISE, CLEAN = SIMULATE.NOISE, SIMULATE.CLEAN
DIGESTS = {
    NOISE: "f998f18b305074d68c30dbe850e7ba1aa7d9c0c6915311128f544e1ab1c684d9",
    CLEAN: "c1cdf759772b77bcef51109a25f23a56f0252c10fca9eb1cfa0188c3b5133dde",
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
    """Sixteen small pairs."""
    return write(tmp_path_factory.mktemp("tiny"), **TINY)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- files


@pytest.mark.parametrize("name", DIGESTS)
def test_every_file_has_its_published_bytes(tiny: Path, name: str) -> None:
    assert sha256(tiny / name) == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_file_is_made_by_itself(tmp_path: Path, name: str) -> None:
    SIMULATE.simulate(name, tmp_path / "alone.h5", **TINY)

    assert sha256(tmp_path / "alone.h5") == DIGESTS[name]


def test_first_pairs_do_not_depend_on_how_many_follow(tiny: Path, tmp_path: Path) -> None:
    few, many = READER.read(write(tmp_path, pairs=3, size=32)), READER.read(tiny)

    np.testing.assert_array_equal(few.noisy, many.noisy[:3])
    np.testing.assert_array_equal(few.clean, many.clean[:3])


def test_seeds_give_other_pairs(tiny: Path, tmp_path: Path) -> None:
    first, second = READER.read(tiny), READER.read(write(tmp_path, pairs=2, size=32, seed=2))

    assert not np.isin(second.dose, first.dose).all()
    assert np.abs(second.clean.values - first.clean.values[:2]).mean() > 1.0


@pytest.mark.parametrize(
    "parameters",
    [{"pairs": 0}, {"pairs": 1.5}, {"size": 33}, {"size": 8}, {"dose": 0}, {"seed": -1}],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'train/graphene_img_noise\.h5'"):
        SIMULATE.simulate("train/graphene_img_noisy.h5", tmp_path / "x", **TINY)


# ---- physics


def test_scattering_factor_is_kirklands(shared_data: Path) -> None:
    table = np.load(shared_data / "stemdl" / "kirkland_params.npy")
    (a, b, c, d) = table[5]  # carbon
    q2 = np.linspace(0.0, 4.0, 50)

    got = SIMULATE.scattering_factor(q2)

    expected = (a / (q2[:, None] + b)).sum(1) + (c * np.exp(-d * q2[:, None])).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_constants_of_the_electron() -> None:
    assert pytest.approx(0.04176, abs=1e-5) == SIMULATE.WAVELENGTH
    assert pytest.approx(1.0087e-3, rel=1e-3) == SIMULATE.INTERACTION  # rad/(V A) at 80 kV
    assert SIMULATE.scattering_factor(np.zeros(1))[0] == pytest.approx(2.51, abs=0.01)


def test_an_atom_looks_as_fourier_optics_has_it() -> None:
    """One atom in the middle: the inverse FFT of its transfer on a field much wider."""
    size, pixel, defocus = 32, 0.2, -70.0
    sheet = SIMULATE._Sheet(np.array([[0.3, -0.5]]), np.ones(1))

    got = SIMULATE._intensity(sheet, size, pixel, defocus)

    width = size + 2 * SIMULATE.MARGIN
    k = np.fft.fftfreq(width, pixel)
    k2 = k[:, None] ** 2 + k**2
    lam = SIMULATE.WAVELENGTH
    chi = np.pi * lam * k2 * (0.5 * SIMULATE.SPHERICAL_ABERRATION * lam**2 * k2 - defocus)
    envelope = np.exp(-0.5 * (np.pi * lam * SIMULATE.DEFOCUS_SPREAD * k2) ** 2)
    envelope *= np.exp(-2 * (np.pi * SIMULATE.VIBRATION) ** 2 * k2)
    potential = SIMULATE.POTENTIAL * SIMULATE.scattering_factor(k2)
    middle = (width - 1) / 2 * pixel
    place = np.exp(-2j * np.pi * (k[:, None] * (middle - 0.5) + k * (middle + 0.3)))
    spectrum = 2 * SIMULATE.INTERACTION * potential * np.sin(chi) * envelope * place
    spectrum[width // 2], spectrum[:, width // 2] = 0, 0
    expected = 1 + np.fft.ifft2(spectrum).real / pixel**2
    inner = slice(SIMULATE.MARGIN, SIMULATE.MARGIN + size)
    np.testing.assert_allclose(got, expected[inner, inner], atol=1e-5)
    assert got.max() > 1.1  # light atoms


def test_the_lattice_of_graphene_is_there() -> None:
    """The strongest frequency of a sheet is its first reflection, 1 / 2.13 Angstrom."""
    asked = SIMULATE.Parameters(pairs=1, size=96)
    pixel = 0.2
    sheet = SIMULATE._sheet(asked, 0, pixel)

    image = SIMULATE._intensity(sheet, 96, pixel, -70.0)

    power = np.abs(np.fft.fft2((image - 1) * np.outer(np.hanning(96), np.hanning(96)))) ** 2
    k = np.fft.fftfreq(96, pixel)
    strongest = np.hypot(k[:, None], k).ravel()[power.argmax()]
    assert strongest == pytest.approx(1 / 2.13, abs=0.04)
    atoms = sheet.atoms.sum() / (144 * pixel) ** 2
    assert atoms == pytest.approx(0.382, rel=0.06)  # atoms in a square Angstrom


def test_noise_is_beam_poisson_and_dead_pixels() -> None:
    asked = SIMULATE.Parameters(pairs=1, size=96, dose=400.0)
    exposure = SIMULATE._exposure(asked, 0)
    clean = np.full((96, 96), SIMULATE.BEAM_GREY)

    noisy = np.stack([SIMULATE._noisy(asked, n, exposure, clean) for n in range(40)])

    counts = (1 + (noisy - SIMULATE.BEAM_GREY) / SIMULATE.CONTRAST) * exposure.dose
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-6)
    expected = exposure.dose * SIMULATE._beam(96, exposure)
    alive = counts > 0
    assert 1 - alive.mean() == pytest.approx(SIMULATE.DEAD, rel=0.2)
    residual = ((counts - expected) / np.sqrt(expected))[alive]
    assert residual.mean() == pytest.approx(0.0, abs=0.01)
    assert residual.std() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("mean", [0.3, 5.0, 29.0, 31.0, 150.0])
def test_counts_are_poisson(mean: float) -> None:
    counts = SIMULATE._poisson(np.full(60_000, mean), 1, 0)

    assert counts.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / 60_000) + 0.001 * mean)
    assert counts.var() == pytest.approx(mean, rel=0.03)
    skewness = ((counts - mean) ** 3).mean() / mean**1.5
    assert skewness == pytest.approx(mean**-0.5, abs=0.06)


@pytest.mark.parametrize(("kind", "change"), [(0, -1), (1, -2), (2, 0), (3, 1)])
def test_defects_change_the_number_of_atoms(kind: int, change: int) -> None:
    sheet = SIMULATE._sheet(SIMULATE.Parameters(pairs=1, seed=5), 0, 0.2)

    other = SIMULATE._with_defect(sheet, np.array([0.5, 0.5, (kind + 0.5) / 5, 0.5]), 9.0)

    assert other.atoms.sum() - sheet.atoms.sum() == change
    if kind == 2:
        moved = np.flatnonzero((other.place != sheet.place).any(axis=1))
        before, after = (np.diff(s.place[moved], axis=0)[0] for s in (sheet, other))
        assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before))
        assert before @ after == pytest.approx(0.0, abs=1e-9)


def test_clean_images_fill_eight_bits(tiny: Path) -> None:
    clean = READER.read(tiny).clean.values

    assert clean.min() > 0
    assert clean.max() < 255
    assert 10 < clean.std() < 40


# ---- reader


def test_reader_is_lazy_and_says_what_it_gives(tiny: Path) -> None:
    data = READER.read(tiny)

    assert data.noisy.dims == ("image", "y", "x")
    assert data.noisy.chunks is not None
    assert data.noisy.dtype == data.clean.dtype == np.float32
    assert data.noisy.shape == (16, 32, 32)
    assert data.split.values.tolist() == [0] * 12 + [1] * 2 + [2] * 2
    assert all({"units", "long_name"} <= set(data[name].attrs) for name in data.variables)
    with h5py.File(tiny / SIMULATE.NOISE) as file:
        np.testing.assert_array_equal(data.noisy, file["images"][..., 0])


def test_original_files_hold_images_only(copy: Path) -> None:
    with h5py.File(copy / SIMULATE.NOISE, "a") as file:
        del file["dose"], file["pixel_size"]

    assert set(READER.read(copy).coords) == {"split"}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def _replace(path: Path, name: str, values: Any) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = values


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / SIMULATE.CLEAN).unlink(), "get the files of the subset"),
        (lambda f: _cut(f / SIMULATE.NOISE), "can't be read as HDF5"),
        (lambda f: (f / SIMULATE.NOISE).write_text("no"), "can't be read as HDF5"),
        (lambda f: _replace(f / SIMULATE.CLEAN, "images", np.zeros((15, 32, 32, 1))), "paired"),
        (lambda f: _replace(f / SIMULATE.CLEAN, "images", np.zeros((16, 32, 32))), "shape"),
        (lambda f: _replace(f / SIMULATE.NOISE, "images", np.zeros((16, 9, 9, 1), bool)), "type"),
        (lambda f: _replace(f / SIMULATE.NOISE, "dose", np.zeros(3)), "dose"),
    ],
    ids=["missing", "short", "foreign", "count", "shape", "type", "dose"],
)
def test_reader_refuses_what_is_damaged(
    copy: Path, damage: Callable[[Path], Any], complaint: str
) -> None:
    damage(copy)

    with pytest.raises(IntegrityError, match=complaint):
        READER.read(copy)


def test_reader_names_the_missing_array(copy: Path) -> None:
    with h5py.File(copy / SIMULATE.NOISE, "a") as file:
        del file["images"]

    with pytest.raises(IntegrityError, match="expected an array images, found dose, pixel_size"):
        READER.read(copy)


# ---- model


class Pairs:
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
            names = ("noisy", "clean")
            yield {name: torch.from_numpy(self.dataset[name].values[rows]) for name in names}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(READER.read(write(tmp_path_factory.mktemp("pairs"), pairs=64, size=48)))


def _train(data: Pairs, seed: int = 0, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{"epochs": 8, "batch_size": 4, **settings})
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


def test_every_setting_is_used(pairs: Pairs) -> None:
    model = MODEL.build(MODEL.Config(channels=4), pairs)
    optimizer = MODEL.optimizer(model, MODEL.Config(learning_rate=0.5, warm_up=0.5))
    rates = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.progress = progress
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])

    assert model.last.in_channels == 4
    np.testing.assert_allclose(rates, [0.001, 0.251, 0.5, 0.0], atol=1e-9)


def test_training_and_baselines_beat_a_constant(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODEL, "TUNING", 16)
    model, losses = _train(pairs)

    found = MODEL.evaluate(model, pairs, "test")
    compared = MODEL.compare(pairs, MODEL.Config())

    constant = compared["baseline: constant image"]
    assert losses[-1] < 0.8 * losses[0]
    assert found["nmse"] < 0.9
    assert constant["nmse"] == pytest.approx(1.0, abs=0.02)
    for name in ("Gaussian", "Wiener", "Bragg", "non-local means"):
        assert compared[f"baseline: {name}"]["psnr"] > constant["psnr"] + 0.2, name
    assert compared["oracle: linear filter, spectrum known"]["psnr"] > max(
        scores["psnr"] for name, scores in compared.items() if name.startswith("baseline")
    )
    assert all(set(scores) == set(found) == set(MODEL.TOLERANCE) for scores in compared.values())


def test_scores_compare_with_the_clean_image(pairs: Pairs) -> None:
    """Not with the noisy one, as the original's inference does."""
    model, _ = _train(pairs, epochs=1)

    noisy, denoised, clean = MODEL.denoise(model, pairs, "test")

    np.testing.assert_array_equal(clean, pairs.dataset.clean.values[pairs.splits["test"]])
    np.testing.assert_array_equal(noisy, pairs.dataset.noisy.values[pairs.splits["test"]])
    error = float(((denoised - clean) ** 2).mean())
    assert MODEL.evaluate(model, pairs, "test")["mse"] == pytest.approx(error)


def test_scores_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 255, (2, 20, 17))
    image = truth + rng.normal(0, 20, truth.shape)
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()

    def index(x: Array, y: Array) -> float:
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        ratio = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        return float(ratio)

    expected = np.mean(
        [
            index(image[n, i : i + 11, j : j + 11], truth[n, i : i + 11, j : j + 11])
            for n in range(2)
            for i in range(10)
            for j in range(7)
        ]
    )
    got = MODEL.scores(image, truth)
    mse = [((a - b) ** 2).mean() for a, b in zip(image, truth, strict=True)]
    assert got["ssim"] == pytest.approx(expected, rel=1e-6)
    assert got["psnr"] == pytest.approx(np.mean([20 * np.log10(255 / np.sqrt(m)) for m in mse]))
    assert got["nmse"] == pytest.approx(np.mean(mse) / np.mean([t.var() for t in truth]))


def test_the_beam_is_fitted() -> None:
    asked = SIMULATE.Parameters(pairs=1, size=96)
    exposure = SIMULATE._exposure(asked, 3)
    clean = np.full((96, 96), 128.0)
    noisy = SIMULATE._noisy(asked, 3, exposure, clean)[None]

    flat = MODEL.flatten(noisy)

    shape = np.array([block.mean() for block in np.array_split(flat[0], 6)])
    np.testing.assert_allclose(shape, 128.0, atol=8.0)


def test_odd_sizes_are_refused(pairs: Pairs) -> None:
    odd = Pairs(pairs.dataset.isel(x=slice(0, 45)))

    with pytest.raises(UsageError, match="48 x 45 pixels, expected multiples of 8"):
        MODEL.build(MODEL.Config(), odd)


def test_it_learns_one_batch_by_heart(pairs: Pairs) -> None:
    torch.manual_seed(0)
    model = MODEL.build(MODEL.Config(), pairs)
    batch = {name: values[:1] for name, values in next(pairs.batches("train", 8)).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        x, y = batch["noisy"], batch["clean"]
        loss = torch.nn.functional.mse_loss(model(x), y) / model.grey[3] ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.1
