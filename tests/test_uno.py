"""Drug responses: curves that integrate to their AUC, an HDFStore's tables, and no pickles."""

import hashlib
import importlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
import torch
import xarray as xr

from scibench_data.errors import IntegrityError, RequirementError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.uno.simulate")
READER = importlib.import_module("scibench_data.datapackages.uno.reader")
MODEL = importlib.import_module("scibench_data.models.uno.model")

TINY = {"responses": 100, "drugs": 10, "genes": 7, "descriptors": 5}
FILE = "sample.uno.h5"


def write(folder: Path, **parameters: float) -> Path:
    for name in SIMULATE.files(**parameters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), **TINY)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- bytes

DIGESTS = {
    "sample.uno.h5": "65bcb544c84b8196deb758138c2ad7e987f66f9248ab2e09ee10f35de29bb375",
    "truth/auc.csv": "cfda5b0f3ee3abdd546fd2ca45cad3557425e886fbcb4992521b1589cd52cd4e",
}


@pytest.mark.parametrize("name", SIMULATE.files(**TINY))
def test_every_file_has_its_published_bytes(tiny: Path, name: str) -> None:
    assert hashlib.sha256((tiny / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_a_file_does_not_depend_on_the_other(tmp_path: Path) -> None:
    for name in reversed(SIMULATE.files(**TINY)):
        SIMULATE._drugs.cache_clear()
        SIMULATE.simulate(name, tmp_path / "alone", **TINY)

        assert hashlib.sha256((tmp_path / "alone").read_bytes()).hexdigest() == DIGESTS[name]


def _rows(data: xr.Dataset) -> dict[tuple[int, int], tuple[Any, ...]]:
    return {
        (int(c), int(d)): (int(p), float(a), e.tolist(), x.tolist())
        for c, d, p, a, e, x in zip(
            data.cell.values,
            data.drug.values,
            data.part.values,
            data.auc.values,
            data.expression.values,
            data.descriptors.values,
            strict=True,
        )
    }


def test_first_responses_do_not_depend_on_how_many_follow(tiny: Path, tmp_path: Path) -> None:
    few = _rows(READER.read(write(tmp_path, **{**TINY, "responses": 58})))
    many = _rows(READER.read(tiny))

    assert len(few) == 58
    assert all(many[pair] == row for pair, row in few.items())


def test_seeds_give_other_cell_lines_of_the_same_biology() -> None:
    first, second = (SIMULATE._cell(SIMULATE.Parameters(seed=s), 0) for s in (1, 2))

    assert first.activity[0] != second.activity[0]
    np.testing.assert_array_equal(SIMULATE._mixture(7, 5, "x"), SIMULATE._mixture(7, 5, "x"))


@pytest.mark.parametrize(
    "parameters",
    [{"responses": 0}, {"drugs": 2}, {"genes": 0}, {"noise": -0.1}, {"descriptors": 1.5}],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'truth/auc\.csv'"):
        SIMULATE.simulate("truth/auc", tmp_path / "x", **TINY)


# ---- biology


def test_auc_is_the_mean_of_the_hill_curve() -> None:
    rng = np.random.default_rng(0)
    log_ec50, efficacy = rng.uniform(-13, -1, 50), rng.uniform(0, 0.9, 50)
    log_dose = np.linspace(-10, -4, 20_001)[:, None]

    curve = 1 - efficacy / (1 + 10.0 ** (log_ec50 - log_dose))

    expected = np.trapezoid(curve, log_dose, axis=0) / 6
    np.testing.assert_allclose(SIMULATE.auc(log_ec50, efficacy), expected, atol=1e-9)


def test_auc_has_its_limits() -> None:
    """A dose far below the EC50 does nothing, one far above it all; in between half and half."""
    found = SIMULATE.auc(np.array([5.0, -20.0, -7.0]), np.array([0.8, 0.8, 0.8]))

    np.testing.assert_allclose(found, [1.0, 0.2, 0.6], atol=1e-8)


def test_cell_lines_of_a_tissue_and_drugs_of_a_mechanism_are_alike() -> None:
    asked = SIMULATE.Parameters()
    cells = [SIMULATE._cell(asked, number) for number in range(60)]
    tissue = np.array([cell.name.partition("-")[2] for cell in cells])
    like = np.corrcoef([cell.expression for cell in cells])
    same = (tissue[:, None] == tissue) & ~np.eye(60, dtype=bool)

    assert like[same].mean() > like[tissue[:, None] != tissue].mean() + 0.2


def test_noise_has_its_standard_deviation_and_parts_their_shares(tmp_path: Path) -> None:
    data = READER.read(write(tmp_path, responses=7200, genes=1, descriptors=1))

    truth = data.true_auc.values
    inside = (data.auc > 0.0) & (data.auc < 1.0)
    noise = (data.auc.values - truth) / np.sqrt(truth * (1 - truth))
    assert noise[inside].std() == pytest.approx(0.1, rel=0.05)
    assert abs(noise.mean()) < 0.005
    np.testing.assert_allclose(np.bincount(data.part), [5760, 720, 720], atol=90)
    assert 0.1 < truth.std() < 0.2
    pairs = np.stack([data.cell.values, data.drug.values], axis=1)
    assert len(np.unique(pairs, axis=0)) == 7200


# ---- reader


def test_reader_gives_back_what_was_written(tiny: Path) -> None:
    data = READER.read(tiny)

    assert dict(data.sizes) == {"response": 100, "gene": 7, "descriptor": 5}
    assert data.expression.chunks is not None
    for name in data.variables:
        assert set(data[name].attrs) >= {"units", "long_name"}, name
    asked = SIMULATE.Parameters(**TINY)
    names = data.cell.attrs["flag_meanings"].split()
    assert names == sorted(names)
    for row in (0, 41, 99):
        number = int(data.cell[row])
        cell = SIMULATE._cell(asked, number)
        drug = SIMULATE._drugs(asked)[int(data.drug[row])]
        assert names[number] == cell.name
        np.testing.assert_array_equal(data.expression[row], cell.expression)
        np.testing.assert_array_equal(data.descriptors[row], drug.descriptors)
        one = SIMULATE._responses(asked, number, cell)
        here = one.drug == int(data.drug[row])
        assert one.truth[here] == float(data.true_auc[row])
        assert np.float32(one.measured[here][0]) == data.auc.values[row]


def test_features_come_in_blocks_of_rows(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = READER.read(tiny).expression.values
    monkeypatch.setattr(READER, "BLOCK", 30)

    expression = READER.read(tiny).expression

    assert expression.chunks[0] == (30, 30, 30, 10)
    np.testing.assert_array_equal(expression[70:95], whole[70:95])
    np.testing.assert_array_equal(expression[[98, 3, 3]], whole[[98, 3, 3]])
    np.testing.assert_array_equal(expression[81, 2:4], whole[81, 2:4])


class _Bomb:
    """Leaves a file behind when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _as_pandas(folder: Path, bomb: Path, columns: tuple[str, str]) -> None:
    """Write tables as the original has them: chunked, compressed, with pickles for attributes."""
    folder.mkdir()
    with h5py.File(folder / "top_21_auc_1fold.uno.h5", "w") as file:
        file.create_group("model").attrs["input_features"] = np.void(pickle.dumps(_Bomb(bomb)))
        for part, count in (("train", 8), ("val", 3), ("test", 2)):
            for group, blocks in {
                f"x_{part}_0": [("values_block_0", "<f4", (942,))],
                f"x_{part}_1": [("values_block_0", "<f4", (5270,))],
                f"y_{part}": [("values_block_0", "<f4", (1,)), ("values_block_1", "S30", (2,))],
            }.items():
                rows = np.zeros(count, [("index", "<i8"), *blocks])
                rows["values_block_0"] = np.arange(count)[:, None] / 10
                if group.startswith("y"):
                    row = {"Sample": b"CCLE.22RV1", "Drug1": b"CCLE.1"}
                    rows["values_block_1"] = [row[name] for name in columns]
                table = file.create_dataset(f"{group}/table", data=rows, compression="gzip")
                pickled = pickle.dumps([*columns, _Bomb(bomb)], protocol=0)
                table.attrs["values_block_1_kind"] = np.bytes_(pickled)
                table.attrs["values_block_0_kind"] = np.void(pickled)


@pytest.mark.parametrize("columns", [("Sample", "Drug1"), ("Drug1", "Sample")])
def test_the_originals_layout_is_read_and_no_pickle_is_loaded(
    tmp_path: Path, columns: tuple[str, str]
) -> None:
    bomb = tmp_path / "bomb"
    _as_pandas(tmp_path / "original", bomb, columns)

    data = READER.read(tmp_path / "original")

    assert dict(data.sizes) == {"response": 13, "gene": 942, "descriptor": 5270}
    np.testing.assert_allclose(data.auc, [*np.arange(8) / 10, 0, 0.1, 0.2, 0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(data.descriptors[10], 0.2, rtol=1e-6)
    assert data.part.values.tolist() == [0] * 8 + [1] * 3 + [2] * 2
    assert data.cell.attrs["flag_meanings"] == "CCLE.22RV1"
    assert data.drug.attrs["flag_meanings"] == "CCLE.1"
    assert "true_auc" not in data.variables
    assert not bomb.exists()


def test_a_filter_that_is_not_there_is_named(copy: Path) -> None:
    with h5py.File(copy / FILE, "r+") as file:
        kind = file["x_val_1/table"].dtype
        rows = file["x_val_1/table"][()]
        del file["x_val_1/table"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((4,))
        creation.set_filter(READER.BLOSC, h5py.h5z.FLAG_OPTIONAL, (2, 2, 4, 64, 9, 1, 4))
        space = h5py.h5s.create_simple(rows.shape)
        h5py.h5d.create(file.id, b"x_val_1/table", h5py.h5t.py_create(kind), space, creation)
    if h5py.h5z.filter_avail(READER.BLOSC):
        pytest.skip("NOT RUN: this HDF5 library has Blosc")

    with pytest.raises(RequirementError, match=r"filter 32001 \(Blosc\).*pip install hdf5plugin"):
        READER.read(copy)


def _replace(key: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[key]
        if values is not None:
            file[key] = values

    return edit


def _block(count: int, *blocks: tuple[Any, ...]) -> np.ndarray:
    return np.zeros(count, [("index", "<i8"), *blocks])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_replace("x_val_1", None), "no table x_val_1"),
        (_replace("y_test/table", None), "no table y_test"),
        (_replace("x_train_0/table", np.zeros(4)), "x_train_0 is no table"),
        (_replace("x_train_0/table", _block(4, ("b", "f4", (7,)))), "4 rows.*expected"),
        (_replace("y_train/table", _block(4, ("b", "f4", (1,)))), "y_train.*blocks b, expected"),
        (_replace("x_train_0/table", h5py.ExternalLink("/etc/passwd", "x")), "x_train_0|HDF5"),
    ],
)
def test_a_wrong_file_is_refused(copy: Path, edit: Callable[..., None], message: str) -> None:
    with h5py.File(copy / FILE, "r+") as file:
        edit(file)

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


def test_an_auc_that_is_no_number_is_refused(copy: Path) -> None:
    with h5py.File(copy / FILE, "r+") as file:
        rows = file["y_val/table"][()]
        rows["values_block_0"][0] = np.nan
        file["y_val/table"][...] = rows

    with pytest.raises(IntegrityError, match="y_val/table has an AUC that is no number"):
        READER.read(copy)


@pytest.mark.parametrize("size", [0, 100, 2048, 8000])
def test_a_cut_file_is_refused(copy: Path, size: int) -> None:
    content = (copy / FILE).read_bytes()
    assert size < len(content)
    (copy / FILE).write_bytes(content[:size])

    with pytest.raises(IntegrityError, match=r"uno.h5.*get "):
        READER.read(copy)


@pytest.mark.parametrize("name", [FILE, "truth/auc.csv"])
def test_a_file_that_was_not_fetched_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).symlink_to(copy / "absent")

    with pytest.raises(IntegrityError, match=f"{name}.*get the files"):
        READER.read(copy)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "landmark_genes").write_text("AARS\nABCB6\n")

    with pytest.raises(IntegrityError, match=r"expected one file \*\.h5 with tables, found none"):
        READER.read(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("SIM.0003", "SIM.9999"), ("0.", "x"), ("AUC", "auc")])
def test_a_wrong_truth_is_refused(copy: Path, old: str, new: str) -> None:
    path = copy / "truth" / "auc.csv"
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(IntegrityError, match=r"auc.csv.*get it again"):
        READER.read(copy)


# ---- model


class Responses:
    """What a model sees of a dataset."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset
        cell = dataset["cell"].values
        ends = np.searchsorted([0.7, 0.8], cell / (cell.max() + 1), side="right")
        names = enumerate(("train", "validation", "test"))
        self.splits = {name: np.flatnonzero(ends == number) for number, name in names}

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, torch.Tensor]]:
        order = self.splits[split]
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = {
                name: torch.from_numpy(self.dataset[name].values[rows])
                for name in ("expression", "descriptors", "auc")
            }
            yield batch | {"index": torch.from_numpy(rows)}


@pytest.fixture(scope="module")
def responses() -> Responses:
    """Cell lines and drugs with an interaction that both kinds of feature show."""
    rng = np.random.default_rng(0)
    cell, drug = (a.ravel() for a in np.indices((50, 20)))
    z, w = rng.normal(size=(50, 2)), rng.normal(size=(20, 2))
    truth = 0.5 + 0.1 * z[cell, 0] * w[drug, 0] + 0.1 * w[drug, 1]
    auc = truth + 0.03 * rng.normal(size=truth.size)
    expression = z @ rng.normal(size=(2, 10)) + 0.1 * rng.normal(size=(50, 10))
    descriptors = w @ rng.normal(size=(2, 8))
    part = np.searchsorted([0.8, 0.9], rng.random(truth.size))
    return Responses(
        xr.Dataset(
            {
                "expression": (("response", "gene"), expression[cell].astype(np.float32)),
                "descriptors": (("response", "descriptor"), descriptors[drug].astype(np.float32)),
            },
            {
                "auc": ("response", auc.astype(np.float32)),
                "true_auc": ("response", truth),
                "cell": ("response", cell.astype(np.int32)),
                "drug": ("response", drug.astype(np.int32)),
                "part": ("response", part.astype(np.int32)),
            },
        )
    )


SMALL = {"epochs": 12, "width": 24, "batch_size": 32}


def _train(data: Responses, seed: int = 0, **settings: Any) -> tuple[Any, list[float]]:
    """Train as `scibench_data.results.training` does."""
    config = MODEL.Config(**{**SMALL, **settings})
    torch.manual_seed(seed)
    model = MODEL.build(config, data)
    optimizer = MODEL.optimizer(model, config)
    steps = -(-len(data.splits["train"]) // config.batch_size) * config.epochs
    losses: list[float] = []
    for epoch in range(config.epochs):
        for batch in data.batches("train", config.batch_size, shuffle=True, seed=seed, epoch=epoch):
            loss = model.train().loss(batch, len(losses) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model.eval(), losses


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(responses: Responses) -> Any:
    return _train(responses)[0]


def test_it_learns_and_the_baselines_are_not_crippled(
    responses: Responses, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODEL, "TREES", 100)
    state = torch.get_rng_state()
    compared = MODEL.compare(responses, MODEL.Config(**SMALL))
    scores = MODEL.evaluate(trained, responses, "test")

    r2 = {name: found["r2"] for name, found in compared.items()}
    ceiling = r2["ceiling: AUC without noise"]
    assert scores["r2"] > 0.75
    assert scores["r2"] < ceiling
    assert 0.6 < r2["baseline: gradient boosting"] < ceiling
    assert 0.2 < r2["baseline: drug mean + cell line mean"] < 0.7
    assert r2["baseline: ridge"] > 0.2
    assert r2["random split: this network"] > 0.75
    assert r2["random split, baseline: gradient boosting"] > 0.7
    assert r2["drug-blind split, ceiling: AUC without noise"] > 0.9
    assert len(compared) == 14
    assert {frozenset(s) for s in [scores, *compared.values()]} == {frozenset(MODEL.TOLERANCE)}
    assert torch.equal(torch.get_rng_state(), state)


def test_means_are_those_of_what_was_seen(responses: Responses) -> None:
    """Unseen cell lines get the drug's mean; in the random split both means count."""
    view = MODEL._view(responses, responses.splits)
    train = view.columns["train"]["auc"].double().numpy()
    found = MODEL._means(responses, view, train)

    rows = responses.splits["test"]
    drug, seen = responses.dataset["drug"].values, responses.splits["train"]
    expected = [train[drug[seen] == drug[row]].mean() for row in rows]
    np.testing.assert_allclose(found, expected)


def test_other_splits_keep_what_they_promise(responses: Responses) -> None:
    splits = MODEL.other_splits(responses)
    drug = responses.dataset["drug"].values

    assert {len(np.concatenate(list(s.values()))) for s in splits.values()} == {50 * 20}
    seen, asked = (set(drug[splits["drug-blind"][part]]) for part in ("train", "test"))
    assert not seen & asked
    assert len(asked) == 4


def test_more_responses_than_memory_are_thinned_out(
    responses: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODEL, "MOST", 100)

    view = MODEL._view(responses, responses.splits)

    assert max(len(rows) for rows in view.splits.values()) <= 100
    assert set(view.splits["train"]) < set(responses.splits["train"])


def test_features_are_standardised_by_the_training_split(responses: Responses) -> None:
    model = MODEL.build(MODEL.Config(**SMALL), responses)

    train = responses.dataset["descriptors"].values[responses.splits["train"]]
    np.testing.assert_allclose(model.centre[10:], train.mean(0), atol=1e-5)
    np.testing.assert_allclose(model.scale[10:], train.std(0), rtol=1e-4)


def test_scores_are_scikit_learns() -> None:
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    rng = np.random.default_rng(0)
    truth = rng.random(200).astype(np.float32)
    found = truth + 0.1 * rng.normal(size=200).astype(np.float32)

    assert MODEL.scores(truth, found) == pytest.approx(
        {
            "r2": r2_score(truth, found),
            "mse": mean_squared_error(truth, found),
            "mae": mean_absolute_error(truth, found),
        },
        rel=1e-5,
    )


def test_it_learns_one_batch_by_heart(responses: Responses) -> None:
    torch.manual_seed(0)
    model = MODEL.build(MODEL.Config(**SMALL, dropout=0.0), responses)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batch = next(responses.batches("train", 32))
    loss = model.loss(batch, 0.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = model.loss(batch, 0.0)

    assert loss.item() < 0.02 * float(batch["auc"].var())
