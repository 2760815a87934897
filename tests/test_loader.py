"""Batches equal the data, whichever way they are read, and their order follows the seed."""

import dataclasses
import mmap
from typing import Any

import numpy as np
import pytest
import xarray as xr

from scibench_data.batches import Batches
from scibench_data.descriptor import SplitRule
from scibench_data.errors import IntegrityError, NotFoundError, UsageError
from scibench_data.loader import Source, make_source
from scibench_data.reading import Buffers, Field

RULE = SplitRule(
    group="micrograph", fractions={"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3, reason=""
)


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


@pytest.mark.parametrize("shuffle", [False, True, "block"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_blocks_of_a_graph_are_read_a_window_at_a_time(
    source: Source,
    arrays: xr.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    shuffle: Any,
    batch_size: int,
) -> None:
    monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", 0)
    monkeypatch.setattr("scibench_data.loader.MIXED_BYTES", 800)
    expected = arrays["images"].to_numpy() * 2 + 1
    doubled = arrays["images"].copy(data=arrays["images"].data.map_blocks(lambda x: x * 2 + 1))
    changed = dataclasses.replace(source, dataset=arrays.assign(images=doubled))

    seen = []
    for batch in changed.batches("train", batch_size, shuffle=shuffle):
        index = batch["index"].numpy()
        np.testing.assert_array_equal(batch["images"].numpy(), expected[index])
        np.testing.assert_array_equal(batch["rot"].numpy(), arrays["rot"].to_numpy()[index])
        seen += index.tolist()

    assert sorted(seen) == source.splits["train"].tolist()
    assert (seen == sorted(seen)) is not bool(shuffle)


def test_a_failing_graph_fails_the_iteration(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", 0)

    def fail(block: Any, block_info: Any = None) -> Any:
        message = "no such block"
        raise OSError(message) if block_info else RuntimeError

    images = source.dataset["images"]
    broken = images.copy(data=images.data.map_blocks(fail, dtype=images.dtype))
    changed = dataclasses.replace(source, dataset=source.dataset.assign(images=broken))

    with pytest.raises(OSError, match="no such block"):
        list(changed.batches("train", 16))


def test_passes_hold_two_windows(
    source: Source, arrays: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", 0)
    monkeypatch.setattr("scibench_data.loader.MIXED_BYTES", 2000)
    doubled = arrays["images"].copy(data=arrays["images"].data.map_blocks(lambda x: x * 2))
    changed = dataclasses.replace(
        source, dataset=arrays.assign(images=doubled), splits={"train": np.arange(200)}
    )

    batch = None
    for epoch in range(3):
        for batch in changed.batches("train", 7, shuffle=True, epoch=epoch):
            assert len(batch["index"])
    del batch

    *batches, one, other = sorted(len(memory) for memory in changed._intake.buffers._free)
    assert one == other
    assert sum(batches) < one


def test_windows_begin_with_a_page_and_arrays_with_a_line() -> None:
    field = Field(span=1, row=(3,), dtype=np.dtype(np.int16))
    _, arrays = Buffers(pinned=False).take({"a": field, "b": field}, 7)

    assert arrays["a"].ctypes.data % mmap.PAGESIZE == 0
    assert arrays["b"].ctypes.data % 64 == 0


def test_a_batch_that_is_kept_never_changes(source: Source) -> None:
    kept = list(source.batches("train", 16, shuffle=True))
    before = [batch["images"].numpy().copy() for batch in kept]

    for _ in range(3):
        list(source.batches("train", 16, shuffle=True, epoch=1))

    for batch, images in zip(kept, before, strict=True):
        np.testing.assert_array_equal(batch["images"].numpy(), images)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_spans_are_windows_of_a_series(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", held)
    series = np.arange(60 * 3, dtype=np.float32).reshape(60, 3)
    data = xr.Dataset({"energy": (("time", "place"), series)}).chunk(time=8)
    source = Source(
        dataset=data, splits={"train": np.arange(40)}, names=("energy",), spans={"energy": 20}
    )

    for batch in source.batches("train", 16, shuffle=True):
        for window, start in zip(batch["energy"].numpy(), batch["index"].tolist(), strict=True):
            np.testing.assert_array_equal(window, series[start : start + 20])

    with pytest.raises(UsageError, match="span of 'energy'"):
        dataclasses.replace(source, splits={"train": np.arange(42)})


def test_a_kind_of_shuffle_that_cannot_be_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.loader.RESIDENT_BYTES", 0)
    for kind in ("uniform", "blocks"):
        with pytest.raises(UsageError, match=f"shuffle='{kind}'"):
            source.batches("train", 4, shuffle=kind)  # type: ignore[arg-type]


def test_order_follows_seed_and_epoch_alone(source: Source) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = source.batches("train", 16, shuffle=True, seed=seed, epoch=epoch)
        return [int(i) for batch in batches for i in batch["index"]]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", None])
def test_a_batch_size_that_cannot_be_meant_is_refused(source: Source, batch_size: Any) -> None:
    with pytest.raises(UsageError, match="batch_size: expected a whole number above zero"):
        Batches(source, "train", batch_size)
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
