"""Simulated earthquakes follow their model, the reader reads what is there, the model forecasts."""

import csv
import hashlib
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from scibench_data.descriptor import SplitRule
from scibench_data.errors import IntegrityError, UsageError
from scibench_data.loader import Source, make_source

SIMULATE = importlib.import_module("scibench_data.datapackages.tevolop.simulate")
READER = importlib.import_module("scibench_data.datapackages.tevolop.reader")
MODEL = importlib.import_module("scibench_data.models.tevolop.model")

TINY = {"fortnights": 200, "seed": 5}
CATALOGUE = "catalog_1950-01-01_1957-09-03.csv"
SMALL = {"width": 8, "heads": 2, "places": 16, "epochs": 1, "batch_size": 8}


def write(folder: Path, **parameters: int) -> Path:
    for name in SIMULATE.files(**parameters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight years."""
    return write(tmp_path_factory.mktemp("tiny"), **TINY)


@pytest.fixture(scope="module")
def dataset(tiny: Path) -> xr.Dataset:
    """What the reader gives, in memory."""
    read: xr.Dataset = READER.read(tiny)
    assert all(read[name].chunks for name in READER.QUANTITIES)
    return read.load()


@pytest.fixture(scope="module")
def data(dataset: xr.Dataset) -> Source:
    given = ("train", "validation", "test")
    return make_source(dataset, SplitRule(group="split", reason="", given=given), ("time",))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- bytes

DIGESTS = {
    CATALOGUE: "48dd93947a97ffd96d3f11cd72ef28ce40160ffa5454f45b7c5673e0c2cd8012",
    SIMULATE.FAULT_GROUPS: "5645a6da0b26ad8fcbd041e563abc2be4df3818df595e174a137146537f39074",
    SIMULATE.LOCATIONS: "2ddb8fe0831e950cb64423426d2329a9cb88eb1366d896708fbd80c2877c4314",
    "truth/etas.csv": "f2b7ad7df1dc47f9add2654dbbded3e89b6bcaca8e4e03ba7a3eca47cb645173",
    "truth/faults.csv": "676b091556aef522e724ee51cf72873168d1c07767a1e76174bc706f9e1db35c",
}


@pytest.mark.parametrize("name", SIMULATE.files(**TINY))
def test_every_file_has_its_published_bytes(tiny: Path, name: str) -> None:
    assert sha256(tiny / name) == DIGESTS[name]


def test_a_file_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    SIMULATE._quakes.cache_clear()

    SIMULATE.simulate(SIMULATE.LOCATIONS, tmp_path / "alone", **TINY)

    assert sha256(tmp_path / "alone") == DIGESTS[SIMULATE.LOCATIONS]


def test_a_longer_record_begins_with_the_same_earthquakes(tiny: Path, tmp_path: Path) -> None:
    longer = write(tmp_path, fortnights=300, seed=5)
    few = (tiny / CATALOGUE).read_text().splitlines()
    many = next(longer.glob("catalog_*")).read_text().splitlines()

    assert many[: len(few)] == few
    assert len(many) > len(few)


@pytest.mark.parametrize("wrong", [{"fortnights": 0}, {"seed": -1}, {"fortnights": 2.5}])
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SIMULATE.files(**wrong)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean .truth/etas\.csv"):
        SIMULATE.simulate("truth/eta.csv", tmp_path / "x", **TINY)


# ---- physics


@pytest.mark.parametrize("mean", [0.0, 0.3, 5.0, 11.9, 12.0, 400.0])
def test_poisson_numbers_have_their_mean_and_variance(mean: float) -> None:
    draws = SIMULATE._poisson(np.full(40_000, mean), "test", str(mean))

    assert draws.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / 40_000))
    assert draws.var() == pytest.approx(mean, rel=0.05, abs=0.01)


def test_magnitudes_follow_gutenberg_and_richter(dataset: xr.Dataset) -> None:
    above = dataset["event_magnitude"].values - (SIMULATE.MAGNITUDE - 0.005)

    b = 1 / (np.log(10) * above.mean())  # Aki 1965, Utsu 1966

    assert b == pytest.approx(SIMULATE.B, abs=4 * SIMULATE.B / np.sqrt(above.size))


def test_an_earthquake_triggers_as_many_as_the_branching_ratio_says() -> None:
    above = np.linspace(0.0, SIMULATE.MAX_MAGNITUDE - SIMULATE.MAGNITUDE, 200_001)
    density = 10.0 ** (-SIMULATE.B * above)

    mean = np.trapezoid(density * SIMULATE.productivity() * 10.0 ** (SIMULATE.ALPHA * above))

    assert mean / np.trapezoid(density) == pytest.approx(SIMULATE.BRANCHING, rel=1e-6)


def test_aftershocks_follow_omori_and_utsu_and_the_kernel_of_distance() -> None:
    n = 400
    middle = [np.full(n, value, np.int64) for value in (0, 340_000, -1_170_000, 550, 800)]

    found = SIMULATE._triggered(SIMULATE._Quakes(*middle), (0, 0, 1))

    days = found.time / SIMULATE.DAY
    x = SIMULATE.C

    def share(day: float) -> float:
        return float(1.0 - (1.0 + day / x) ** (1.0 - SIMULATE.P))

    for day in (0.1, 1.0, 14.0, 365.0):
        expected = share(day) / share(SIMULATE.TRIGGERING)
        assert np.mean(days < day) == pytest.approx(expected, abs=0.01)
    north = (found.latitude / 1e4 - 34.0) * SIMULATE.KILOMETRES
    east = (found.longitude / 1e4 + 117.0) * SIMULATE.KILOMETRES * SIMULATE.LATITUDE_SCALE
    area = SIMULATE.D * 10.0 ** (SIMULATE.GAMMA * (5.5 - SIMULATE.MAGNITUDE))
    median = np.sqrt(area * (2.0 ** (1.0 / (SIMULATE.Q - 1.0)) - 1.0))
    assert np.mean(np.hypot(north, east) < median) == pytest.approx(0.5, abs=0.02)


# ---- the reader


def test_grids_hold_what_the_catalogue_holds(tiny: Path, dataset: xr.Dataset) -> None:
    with (tiny / CATALOGUE).open() as file:
        rows = list(csv.DictReader(file))
    level = np.full((2803, 40, 60), 0.0)
    count = np.zeros((2803, 40, 60))
    for row in rows:
        day = (np.datetime64(row["time"][:10]) - np.datetime64("1950-01-01")).astype(int)
        y = int(np.ceil((36 - float(row["latitude"])) * 10 - 1e-9)) - 1
        x = int(np.floor((float(row["longitude"]) + 120) * 10 + 1e-9))
        level[day, y, x] += 10.0 ** (1.5 * float(row["mag"]))
        count[day, y, x] += 1
    fortnights = count[3:].reshape(200, 14, 40, 60).sum(1)
    energy = np.where(level > 0, level, 1.0)[3:].reshape(200, 14, 40, 60).sum(1)

    np.testing.assert_array_equal(dataset["daily_multiplicity"], count)
    np.testing.assert_array_equal(dataset["multiplicity"], fortnights)
    np.testing.assert_allclose(dataset["log_energy"], np.log10(energy) / 1.5, rtol=1e-6)
    assert float(dataset["log_energy"].min()) == pytest.approx(0.764, abs=5e-4)
    deep = dataset["depth"].values[fortnights > 0]
    assert deep.min() >= 2.0
    assert deep.max() <= 16.0


def test_parts_follow_in_time_with_gaps_of_a_year(dataset: xr.Dataset) -> None:
    split = dataset["split"].values
    train, validation, test = (np.flatnonzero(split == number) for number in range(3))

    assert train[0] == 26
    assert validation[0] - train[-1] > 26
    assert test[0] - validation[-1] > 26
    assert test[-1] == 199


def test_places_are_split_as_the_file_says(tiny: Path, dataset: xr.Dataset) -> None:
    with (tiny / SIMULATE.LOCATIONS).open() as file:
        _, training, validation = csv.reader(file)
    split = dataset["location_split"].values

    assert (split == 0).sum() == len(training)
    assert (split == 1).sum() == len(validation)
    np.testing.assert_array_equal(split >= 0, dataset["active"].values == 1)
    place = np.flatnonzero(dataset["active"].values)[int(validation[0])]
    assert split.ravel()[place] == 1


def test_dense_grids_of_the_original_are_the_same(dataset: xr.Dataset, tmp_path: Path) -> None:
    days = 31
    folder = tmp_path / "1950start"
    folder.mkdir()
    names = ("log_eng", "w_depth", "n_shock", "n_shock-mag-3.29")
    for name, quantity in zip(names, READER.QUANTITIES, strict=True):
        values = dataset[f"daily_{quantity}"].values[:days].reshape(days, -1)
        lines = ["," + ",".join(map(str, range(2400)))]
        lines += [f"{i}," + ",".join(str(float(v)) for v in row) for i, row in enumerate(values)]
        (folder / f"SC_1950-2019.freq-D-{days}x2400-{name}.multi.csv").write_text(
            "\n".join(lines) + "\n"
        )

    read = READER.read(tmp_path)

    assert dict(read.sizes)["fortnight"] == 2
    for quantity in READER.QUANTITIES:
        expected = dataset[f"daily_{quantity}"].values
        np.testing.assert_array_equal(read[f"daily_{quantity}"], expected[:days])
        np.testing.assert_array_equal(read[f"daily_{quantity}"][17:19], expected[17:19])
        np.testing.assert_allclose(read[quantity], dataset[quantity][:2], rtol=1e-5)
    with next(folder.glob("*log_eng*")).open("a") as file:
        file.write("40,1\n")
    with pytest.raises(IntegrityError, match="different length"):
        READER.read(tmp_path)


def test_measured_earthquakes_are_read(shared_data: Path) -> None:
    read = READER.read(shared_data / "earthquake")

    assert read.sizes["fortnight"] == 1
    assert int(read["multiplicity"].sum()) == read.sizes["event"] == 721
    assert 5.4 < float(read["log_energy"].max()) < 5.7
    assert (read["split"] == -1).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("time,latitude", "when,latitude", "columns"),
        ("1950-01-0", "1950-13-0", "line 2 is not an earthquake"),
        ("1950-01-0", "1949-01-0", "outside of the days"),
    ],
)
def test_a_damaged_catalogue_is_told(copy: Path, old: str, new: str, message: str) -> None:
    path = copy / CATALOGUE
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


def test_damaged_places_are_told(copy: Path) -> None:
    path = copy / SIMULATE.LOCATIONS
    path.write_text(path.read_text().replace(",", ",9", 1))
    with pytest.raises(IntegrityError, match="active ones"):
        READER.read(copy)
    (copy / SIMULATE.FAULT_GROUPS).write_text("1,2\n")
    with pytest.raises(IntegrityError, match="40 rows of 60"):
        READER.read(copy)


def test_an_empty_folder_and_an_archive_are_told(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="get the files"):
        READER.read(tmp_path)
    (tmp_path / "fixed-data.tar.gz").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"unpack fixed-data\.tar\.gz"):
        READER.read(tmp_path)


# ---- the model


def model_of(data: Source, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return MODEL.build(MODEL.Config(**{**SMALL, **settings}), data)


def train(data: Source, seed: int, steps: int, rows: torch.Tensor) -> tuple[Any, list[float]]:
    model = model_of(data, seed, learning_rate=0.01, dropout=0.0)
    optimizer, losses = MODEL.optimizer(model, model.config), []
    for _ in range(steps):
        torch.manual_seed(seed)  # the same places
        loss = model.loss({"index": rows}, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_nnse_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    observed, forecast = np.random.default_rng(0).normal(size=(2, 50))

    expected = 1.0 / (2.0 - metrics.r2_score(observed, forecast))

    assert float(MODEL.nnse(observed, forecast)) == pytest.approx(expected)
    assert np.isnan(MODEL.nnse(np.ones(3), forecast[:3]))


def test_it_starts_at_the_ridge_regression(data: Source) -> None:
    series, model = MODEL.read_series(data), model_of(data).eval()
    rows = data.splits["test"]

    ridge = MODEL.fit_ridge(series, data.splits).forecast(series.inputs[rows - 1])

    np.testing.assert_allclose(model.forecast(rows), ridge, atol=1e-4)


def test_forecasts_use_nothing_of_the_forecast_fortnight_or_later(data: Source) -> None:
    model = model_of(data).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        before = model.forecast(np.array([100]))
        model.inputs[100:] += 100.0

    np.testing.assert_array_equal(model.forecast(np.array([100])), before)
    series = MODEL.read_series(data)
    changed = data.dataset.copy()
    for name in ("log_energy", "multiplicity", "multiplicity_large"):
        changed[name] = changed[name].where(changed["fortnight"] < 100, 3).astype(float)
    late = changed["daily_multiplicity"]
    changed["daily_multiplicity"] = late.where(late["day"] < 3 + 14 * 100, 3)
    others = MODEL.read_series(Source(dataset=changed, splits=data.splits, names=("time",)))
    np.testing.assert_array_equal(series.inputs[:100], others.inputs[:100])
    assert not np.array_equal(series.inputs[100], others.inputs[100])


def test_known_windows_flatter_persistence_and_baselines_are_sound(
    data: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODEL, "RUNS", 100)

    compared = MODEL.compare(data, MODEL.Config())

    persistence = compared["baseline: persistence"]
    assert persistence["nnse_year"] > 0.8
    assert persistence["nnse_mean"] < 0.55
    truth, ridge, climatology = (
        compared[name]
        for name in (
            "ceiling: true ETAS model",
            "baseline: ridge",
            "baseline: climatology of the place",
        )
    )
    # forty fortnights can't tell forecasts of the next one apart; of a year 25 of 26 are known
    assert truth["nnse_year"] > persistence["nnse_year"]
    assert ridge["nnse_year"] > climatology["nnse_year"] + 0.1
    assert set(truth) == set(MODEL.TOLERANCE) == set(MODEL.evaluate(model_of(data), data, "test"))


def test_the_true_model_forecasts_as_many_earthquakes_as_come(data: Source) -> None:
    etas, time = MODEL.Etas(data), data.dataset["event_time"].values
    starts = np.arange(1400.0, 2800.0, 14.0)

    forecast = sum(etas.runs(start, 14.0, 20).shape[1] / 20 for start in starts)

    assert forecast == pytest.approx(np.sum(time >= 1400.0), rel=0.25)


def test_a_width_that_heads_do_not_divide_is_refused(data: Source) -> None:
    with pytest.raises(UsageError, match="multiple of heads"):
        model_of(data, width=9)


def test_it_learns_one_batch_by_heart(data: Source) -> None:
    _, losses = train(data, 0, 60, torch.arange(60, 64))

    assert losses[-1] < 0.7 * losses[0]
