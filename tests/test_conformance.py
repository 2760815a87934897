"""What every package and model of the catalogue has to keep: a new folder is tested by being there.

Each sample is made and stored once. Nothing here knows a package by its name; what is particular to
one (its physics, its metrics' oracles, hostile files) is in tests of its own.
"""

import doctest
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
import xarray as xr

from scibench_data import catalog, durable
from scibench_data.getting import dataset
from scibench_data.getting.dataset import Dataset
from scibench_data.loader import Source
from scibench_data.results import run, training
from scibench_data.settings import load_settings
from scibench_data.storing import store

BATCH = 7  # no number of classes or states shares it equally: gradients would vanish
STEPS = 40
PURE_NUMBERS = {"grey levels"}
EARLY = 3  # steps after which two trainings are compared


@dataclass(frozen=True)
class Sample:
    """A package's sample on this disk: its files, what its reader gives, its store in batches."""

    data: Dataset
    raw: xr.Dataset
    source: Source


@dataclass(frozen=True)
class Trained:
    """A model that saw one batch again and again."""

    model: torch.nn.Module
    losses: list[float]
    early: dict[str, torch.Tensor]
    reached: set[str]  # parameters with a gradient other than zero, in some step


@pytest.fixture(scope="module", params=catalog.shipped_names())
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    settings = load_settings(home=tmp_path_factory.mktemp(request.param), jobs=2)
    data = dataset.get(catalog.resolve(request.param), settings)
    arrays = store.open_store(run.materialize(data, settings))
    return Sample(data, run.read_raw(data), run.open_source(data.package, arrays))


@pytest.fixture(scope="module")
def module(sample: Sample) -> ModuleType:
    name = sample.data.package.name
    if name not in catalog.model_names():
        pytest.skip(f"{name} has no model")
    return catalog.load_model(name)


def _train(
    module: ModuleType, source: Source, steps: int, seed: int = 0
) -> Iterator[tuple[Any, float]]:
    """Train on one batch, with the same random numbers in each step; yield model and loss."""
    torch.manual_seed(seed)
    config = module.Config()
    model = module.build(config, source)
    optimizer = module.optimizer(model, config)
    batch = next(source.batches("train", min(config.batch_size, BATCH), shuffle=True, seed=seed))
    for step in range(steps):
        torch.manual_seed(seed)
        loss = model.train().loss(batch, step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.shape == ()
        yield model, loss.item()


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def trained(sample: Sample, module: ModuleType) -> Trained:
    losses: list[float] = []
    early: dict[str, torch.Tensor] = {}
    reached: set[str] = set()
    model = None
    for model, loss in _train(module, sample.source, STEPS):
        losses.append(loss)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), name
                reached |= {name} if parameter.grad.any() else set()
        early = _weights(model) if len(losses) == EARLY else early
    return Trained(cast("torch.nn.Module", model), losses, early, reached)


# ---- the package


def test_the_recipe_makes_the_published_files(sample: Sample) -> None:
    """`get` accepts nothing else, so this is about what it did not accept as well."""
    data = sample.data
    recipe = data.package.subsets[data.subset].recipe
    assert recipe is not None

    made = catalog.load_recipe(data.package.name).files(**recipe.parameters)

    assert {f"{data.subset}/{path}" for path in made} == {each.path for each in data.resources}
    for resource in data.resources:
        assert durable.sha256_file(data.object(resource)) == resource.sha256
        assert data.object(resource).stat().st_size == resource.bytes


def test_the_dataset_has_its_published_commit(sample: Sample) -> None:
    assert sample.data.commit == sample.data.reference.release.commit


def test_the_reader_gives_what_the_descriptor_says(sample: Sample) -> None:
    for array in sample.data.package.arrays:
        found = sample.raw[array.name]
        assert found.dtype == np.dtype(array.dtype), array.name
        assert found.dims == array.dims, array.name

    assert set(sample.raw.variables) == {array.name for array in sample.data.package.arrays}


def test_units_are_those_of_the_descriptor(sample: Sample) -> None:
    """A descriptor may have a word for a pure number, which a reader gives the unit 1."""
    said = {array.name: array.units for array in sample.data.package.arrays}
    found = {name: sample.raw[name].attrs["units"] for name in said}

    for name, units in found.items():
        assert units == said[name] or (units == "1" and said[name] in PURE_NUMBERS), name


def test_every_variable_says_what_it_is_and_arrays_stay_on_the_disk(sample: Sample) -> None:
    for name, variable in sample.raw.variables.items():
        assert set(variable.attrs) >= {"units", "long_name"}, name

    large = [v for v in sample.raw.data_vars.values() if v.nbytes > 2**20]
    assert all(variable.chunks for variable in large)


def test_the_store_holds_what_the_reader_gives(sample: Sample) -> None:
    stored = sample.source.dataset

    assert set(stored.variables) == set(sample.raw.variables)
    for name, variable in sample.raw.variables.items():
        np.testing.assert_array_equal(stored[name][-2:].values, variable[-2:].values)


def test_no_group_is_in_two_splits(sample: Sample) -> None:
    rule = sample.data.package.splits
    assert rule is not None
    groups = sample.raw[rule.group].values
    parts = {name: set(groups[rows].tolist()) for name, rows in sample.source.splits.items()}

    assert {"train", "validation", "test"} <= {name for name, part in parts.items() if part}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))


def test_examples_are_right(sample: Sample) -> None:
    name = sample.data.package.name
    for module in (catalog.load_recipe(name), catalog.load_reader(name)):
        assert doctest.testmod(module).failed == 0, module


# ---- the model


def test_examples_of_the_model_are_right(module: ModuleType) -> None:
    outcome = doctest.testmod(module)

    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_every_parameter_gets_a_finite_gradient(trained: Trained) -> None:
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert trained.reached == {name for name, _ in trained.model.named_parameters()}


def test_one_batch_is_learned(trained: Trained) -> None:
    """Noise that no model can know leaves a loss, so how much is left is not asked for."""
    assert np.mean(trained.losses[-5:]) < 0.8 * trained.losses[0]


def test_the_same_seed_gives_the_same_weights(
    sample: Sample, module: ModuleType, trained: Trained
) -> None:
    *_, (model, loss) = _train(module, sample.source, EARLY)

    assert loss == trained.losses[EARLY - 1]
    for name, value in _weights(model).items():
        assert torch.equal(value, trained.early[name]), name


def test_another_seed_gives_other_weights(
    sample: Sample, module: ModuleType, trained: Trained
) -> None:
    *_, (model, _) = _train(module, sample.source, EARLY, seed=1)

    pairs = [(value, trained.early[name]) for name, value in _weights(model).items()]
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_scores_are_finite_and_among_them_is_the_headline(
    sample: Sample, module: ModuleType, trained: Trained
) -> None:
    task = sample.data.package.task
    assert task is not None

    scores = training.score(module, trained.model.eval(), sample.source, "validation")

    assert scores.keys() == module.TOLERANCE.keys()
    assert task.metric in scores
    assert all(math.isfinite(score) for score in scores.values())


def test_weights_survive_a_checkpoint(sample: Sample, module: ModuleType, trained: Trained) -> None:
    packed = training.pack_weights(trained.model)

    restored = training.restore(module, module.Config(), sample.source, packed)

    assert training.pack_weights(restored) == packed


def test_pictures_are_drawn(
    sample: Sample, module: ModuleType, trained: Trained, tmp_path: Path
) -> None:
    module.figures(trained.model.eval(), sample.source, tmp_path)

    drawn = list(tmp_path.iterdir())
    assert drawn
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)
