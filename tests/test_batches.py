"""Epochs, workers, ranks and a new start in mid-epoch: always the batches of one order."""

import dataclasses
import itertools
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from chains import TINY, Chain

import scibench_data as sbd
from scibench_data.batches import Batches
from scibench_data.errors import UsageError
from scibench_data.loader import Source
from scibench_data.storing import store
from scibench_data.storing.store import Layout

IMAGES = np.random.default_rng(0).integers(-9, 9, (203, 4, 4), dtype=np.int16)


@pytest.fixture(scope="module", params=["none", "lz4"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    """A store of 203 samples, in which none is small enough to be held."""
    home = tmp_path_factory.mktemp("home")
    dataset = xr.Dataset({"images": (("n", "y", "x"), IMAGES)}).chunk(n=50)
    layout = Layout(chunk_bytes=128, shard_bytes=512, codec=request.param)
    stored = store.materialize(lambda: dataset, home, "s", {"c": request.param}, layout=layout)
    splits = {"train": np.arange(0, 203, 2), "test": np.arange(1, 203, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scibench_data.loader.RESIDENT_BYTES", 0)
        patch.setattr("scibench_data.loader.MIXED_BYTES", 1024)
        patch.setattr("scibench_data.loader.COPIED_BYTES", 1024)
        yield Source(dataset=store.open_store(stored), splits=splits, names=("images",))


def order(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    """Return the samples of each batch, having compared their values."""
    found = []
    for batch in batches:
        np.testing.assert_array_equal(batch["images"].numpy(), IMAGES[batch["index"].numpy()])
        found.append(batch["index"].tolist())
    return found


def test_each_pass_is_an_epoch_and_any_can_be_chosen(source: Source) -> None:
    batches = Batches(source, "train", 16, seed=1)

    first, second = order(batches), order(batches)
    batches.set_epoch(0)

    assert first != second
    assert order(batches) == first
    assert len(batches) == len(first) == 7
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second))
    assert sorted(itertools.chain(*first)) == list(range(0, 203, 2))
    assert order(Batches(source, "test", 16)) == order(Batches(source, "test", 16, seed=9))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(
    source: Source, workers: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "spawn":  # a new process has the usual limits, so this one has to have them too
        monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", 1 << 20)
        source = dataclasses.replace(source)
    batches = Batches(source, "train", 16, seed=1)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=workers, multiprocessing_context=method
    )

    assert order(loader) == order(Batches(source, "train", 16, seed=1))
    assert len(loader) == 7


@pytest.mark.parametrize("stop", [0, 1, 6, 7])
def test_a_new_start_goes_on_with_the_very_next_batch(source: Source, stop: int) -> None:
    whole = Batches(source, "train", 16, seed=1)
    both = order(whole) + order(whole)
    begun = Batches(source, "train", 16, seed=1)
    before = order(itertools.islice(begun, stop))
    state = pickle.loads(pickle.dumps(begun.state_dict()))  # noqa: S301  (our own)

    again = Batches(source, "train", 16, seed=1)
    again.load_state_dict(state)

    assert before + order(again) == both[:7]
    assert order(again) == both[7:]


def test_the_state_of_other_batches_is_refused(source: Source) -> None:
    state = Batches(source, "train", 16, seed=1).state_dict()

    for other in (
        Batches(source, "train", 16, seed=2),
        Batches(source, "train", 8, seed=1),
        Batches(source, "test", 16, seed=1),
        Batches(source, "train", 16, seed=1, rank=0, ranks=2),
    ):
        with pytest.raises(UsageError, match="state: of batches of another split, seed"):
            other.load_state_dict(state)


def test_ranks_have_disjoint_samples_and_equally_many_batches(source: Source) -> None:
    shares = [order(Batches(source, "train", 16, seed=1, rank=rank, ranks=4)) for rank in range(4)]

    seen = [sample for share in shares for batch in share for sample in batch]
    assert len(set(seen)) == len(seen) == 100
    assert {len(share) for share in shares} == {2}


def test_what_is_held_stays_behind_when_it_is_pickled(source: Source, tmp_path: Path) -> None:
    batches = Batches(source, "train", 16, seed=1)
    expected = order(batches)

    copied = pickle.dumps(batches)

    assert len(copied) < 20_000
    again = pickle.loads(copied)  # noqa: S301  (our own)
    again.set_epoch(0)
    assert order(again) == expected


def test_a_package_takes_a_transform_and_a_share(chain: Chain) -> None:
    data = sbd.get(TINY, settings=chain.settings)
    images = data.open()["images"].values

    batches = data.torch(
        "train",
        64,
        transform=lambda arrays: arrays.assign(images=arrays["images"].astype("f4") * 2),
        rank=1,
        ranks=2,
    )

    seen = 0
    for batch in batches:
        assert batch["images"].dtype == torch.float32
        np.testing.assert_array_equal(batch["images"].numpy(), images[batch["index"]] * 2.0)
        seen += len(batch["index"])
    assert seen == len(data.torch("train", 1)) // 2
