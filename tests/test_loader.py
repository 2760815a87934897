"""Splits don't leak, every sample comes once, order follows the seed, batches equal the store."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from scibench_data.descriptor import SplitRule
from scibench_data.errors import IntegrityError, NotFoundError, UsageError
from scibench_data.loader import (
    Indices,
    Source,
    epoch_plan,
    make_source,
    split,
    split_digest,
    torch_dataset,
)

RULE = SplitRule(
    group="micrograph", fractions={"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3, reason=""
)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(0, 9))
def test_splits_are_disjoint_complete_and_keep_groups_together(
    groups: list[int], seed: int
) -> None:
    rule = SplitRule(group="g", fractions=RULE.fractions, seed=seed, reason="")
    labels = np.array(groups)

    parts = split(labels, rule)

    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(labels)))
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(labels[parts[one]].tolist()) & set(labels[parts[other]].tolist())


def test_the_split_is_pinned() -> None:
    """A published split must never move: this digest may not change."""
    parts = split(np.repeat(np.arange(50), 4), RULE)

    assert [len(part) for part in parts.values()] == [160, 20, 20]
    assert split_digest(parts) == (
        "662bf8f78d407761b2376cb81d76f47991b6ca8383d4ea8c691006705dd033a2"
    )


def test_the_order_of_samples_does_not_move_a_group() -> None:
    groups = np.repeat(np.arange(50), 4)
    shuffled = np.random.default_rng(0).permutation(groups)

    one, other = split(groups, RULE), split(shuffled, RULE)

    for name in one:
        assert set(groups[one[name]].tolist()) == set(shuffled[other[name]].tolist())


@given(
    st.sets(st.integers(0, 199), min_size=1),
    st.integers(1, 70),
    st.integers(1, 9),
    st.none() | st.integers(0, 5),
)
def test_a_plan_gives_every_sample_once(
    chosen: set[int], rows: int, window: int, seed: int | None
) -> None:
    indices: Indices = np.array(sorted(chosen), dtype=np.int64)
    rng = None if seed is None else np.random.default_rng(seed)

    found = []
    for step in epoch_plan(indices, rows, window, rng):
        assert len(step.blocks) <= window
        blocks = np.array(step.blocks)
        found.append(blocks[step.rows // rows] * rows + step.rows % rows)
    order = np.concatenate(found)

    assert sorted(order.tolist()) == indices.tolist()
    if seed is None:
        assert order.tolist() == indices.tolist()


@pytest.fixture
def arrays() -> xr.Dataset:
    """203 numbered samples on 20 micrographs, in blocks that do not divide them."""
    images = np.arange(203 * 6, dtype=np.int16).reshape(203, 2, 3)
    return xr.Dataset(
        {"images": (("particle", "y", "x"), images)},
        coords={
            "micrograph": ("particle", np.arange(203, dtype=np.int32) // 11),
            "rot": ("particle", np.linspace(0, 1, 203)),
        },
    ).chunk(particle=50)


@pytest.fixture
def source(arrays: xr.Dataset) -> Source:
    return make_source(arrays, RULE, ("images", "rot"))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_equal_the_store(
    source: Source, arrays: xr.Dataset, batch_size: int, shuffle: bool
) -> None:
    raw = arrays["images"].to_numpy()

    seen = []
    for batch in source.batches("train", batch_size, shuffle=shuffle, seed=1):
        index = batch["index"].numpy()
        assert len(index) <= batch_size
        assert batch["images"].numpy().dtype == np.int16
        np.testing.assert_array_equal(batch["images"].numpy(), raw[index])
        np.testing.assert_array_equal(batch["rot"].numpy(), arrays["rot"].to_numpy()[index])
        seen += index.tolist()

    assert sorted(seen) == source.splits["train"].tolist()
    assert (seen == sorted(seen)) is not shuffle


def test_a_small_window_gives_the_same_samples(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.loader.WINDOW_BYTES", 1)

    seen = [int(i) for batch in source.batches("train", 16, shuffle=True) for i in batch["index"]]

    assert sorted(seen) == source.splits["train"].tolist()


def test_order_follows_seed_and_epoch_alone(source: Source) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = source.batches("train", 16, shuffle=True, seed=seed, epoch=epoch)
        return [int(i) for batch in batches for i in batch["index"]]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_the_torch_dataset_moves_on_by_itself_and_splits_over_workers(source: Source) -> None:
    import torch

    batches = torch_dataset(source, "train", 16)
    first = [batch["index"].tolist() for batch in batches]
    second = [batch["index"].tolist() for batch in batches]
    assert first != second

    loader = torch.utils.data.DataLoader(
        torch_dataset(source, "train", 16), batch_size=None, num_workers=2
    )
    seen = [int(i) for batch in loader for i in batch["index"]]
    assert sorted(seen) == source.splits["train"].tolist()


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", None])
def test_a_batch_size_that_cannot_be_meant_is_refused(source: Source, batch_size: Any) -> None:
    with pytest.raises(UsageError, match="batch_size: expected a whole number above zero"):
        torch_dataset(source, "train", batch_size)
    with pytest.raises(UsageError, match="batch_size: expected a whole number above zero"):
        next(source.batches("train", batch_size))


def test_a_batch_size_of_numpy_is_a_number(source: Source) -> None:
    batch = next(source.batches("train", np.int64(4)))  # type: ignore[arg-type]

    assert len(batch["index"]) == 4


def test_unknown_names_are_told(source: Source, arrays: xr.Dataset) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'train'"):
        next(source.batches("trian", 4))
    with pytest.raises(IntegrityError, match="'pose'"):
        make_source(arrays, RULE, ("images", "pose"))
    with pytest.raises(UsageError, match="more samples"):
        make_source(arrays.isel(particle=slice(20)), RULE, ("images",))
    with pytest.raises(IntegrityError, match="'grid'"):
        make_source(
            arrays,
            SplitRule(group="grid", fractions={"train": 1.0}, seed=0, reason=""),
            ("images",),
        )
