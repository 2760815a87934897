"""Our reader and zarr-python give the same values, and damage is named."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from scibench_data import stored
from scibench_data.errors import IntegrityError
from scibench_data.stored import Stored, open_stored

CODECS: dict[str, Any] = {
    "none": None,
    "zstd": zarr.codecs.ZstdCodec(level=1, checksum=True),
    "blosc": zarr.codecs.BloscCodec(cname="lz4", shuffle="shuffle", typesize=4),
}


def written(path: Path, values: npt.NDArray[Any], chunk: int, **options: Any) -> Stored:
    """Write an array by zarr-python and open it by ours."""
    array = zarr.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *values.shape[1:]),
        filters=None,
        **{"compressors": None, "fill_value": 7, **options},
    )
    array[:] = values
    found = open_stored(path)
    assert found is not None
    return found


@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 40), codec=st.sampled_from(sorted(CODECS)))
def test_any_rows_equal_those_of_zarr_python(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int, codec: str
) -> None:
    chunk = data.draw(st.integers(1, 12))
    per_file = data.draw(st.none() | st.integers(1, 4))
    dtype = data.draw(st.sampled_from(["|b1", "|i1", "<u2", "<f4", "<c16"]))
    values = np.random.default_rng(rows).integers(0, 2, (rows, 3, 2)).astype(dtype)
    path = tmp_path_factory.mktemp("array") / "a"
    options: dict[str, Any] = {"compressors": CODECS[codec]}
    if per_file:
        location = data.draw(st.sampled_from(["start", "end"]))
        options["shards"] = {"shape": (chunk * per_file, 3, 2), "index_location": location}
    array = written(path, values, chunk, **options)
    object.__setattr__(array, "fits", data.draw(st.booleans()))
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    wanted = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1)))

    out = np.empty((len(wanted), 3, 2), dtype)

    np.testing.assert_array_equal(array.to_dask().compute(), values)
    np.testing.assert_array_equal(array[start:stop, :, :], values[start:stop])
    if codec == "none":
        array.read_rows(wanted, out, np.argsort(wanted, kind="stable"))
        np.testing.assert_array_equal(out, values[wanted])


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("shards", [None, (8, 4)])
def test_what_was_never_written_is_fill_value(tmp_path: Path, codec: str, shards: Any) -> None:
    array = zarr.create_array(
        tmp_path / "a",
        shape=(32, 4),
        dtype="f4",
        chunks=(4, 4),
        shards=shards,
        filters=None,
        compressors=CODECS[codec],
        fill_value=np.nan,
    )
    array[4:8] = 1.0
    expected = np.full((32, 4), np.nan, "f4")
    expected[4:8] = 1.0

    found = open_stored(tmp_path / "a")

    assert found is not None
    np.testing.assert_array_equal(found.to_dask().compute(), expected)
    if codec == "none":
        out = np.empty_like(expected)
        found.read_rows(np.arange(32), out, np.arange(32))
        np.testing.assert_array_equal(out, expected)


def test_long_runs_and_short_ones_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((64, 32)).astype("f4")
    array = written(tmp_path / "a", values, 4, shards=(16, 32))
    rows = np.concatenate([np.arange(3, 40), [1, 60], np.arange(10)])

    for places in (1, 3, 1024):
        monkeypatch.setattr(stored, "_PLACES", places)
        for order in (rows, np.sort(rows), rows[::-1], rows[:38], rows[38:40]):
            out = np.empty((len(order), 32), "f4")
            array.read_rows(order, out, np.argsort(order, kind="stable"))
            np.testing.assert_array_equal(out, values[order])


def test_rows_of_whole_pages_are_gathered_from_all_files_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((75, 1024)).astype("f4")
    array = written(tmp_path / "a", values, 4, shards=(16, 1024))
    rows = np.random.default_rng(1).permutation(75)
    out = np.empty_like(values)

    assert array.mapped is not None
    assert array.mapped.shape == (75, 4096)
    assert array.mapped.ctypes.data % (2 << 20) == 0  # where large pages can be
    np.testing.assert_array_equal(array.mapped[rows].view("f4"), values[rows])

    out[:] = 0
    places = np.argsort(rows)[::3]
    array.read_rows(rows, out, places)
    np.testing.assert_array_equal(out[places], values[rows[places]])
    np.testing.assert_array_equal(np.delete(out, places, 0), 0)
    np.testing.assert_array_equal(array.to_dask().compute(), values)

    view = array[30:70, :]
    for file in sorted((tmp_path / "a/c").glob("*/*")):
        file.unlink()  # which takes nothing from those who look at it
    del array
    np.testing.assert_array_equal(view, values[30:70])


def test_a_file_cut_short_is_not_mapped(tmp_path: Path) -> None:
    array = written(tmp_path / "a", np.ones((8, 1024), "f4"), 4)
    (tmp_path / "a/c/1/0").write_bytes(b"\0" * 5000)

    with pytest.raises(IntegrityError, match="c/1/0: ends before byte 8192"):
        array.read_rows(np.array([0, 2, 5, 7]), np.empty((4, 1024), "f4"), np.arange(4))


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_OPEN_FILES", 2)
    values = np.arange(80, dtype="i4").reshape(20, 4)
    array = written(tmp_path / "a", values, 2)
    rows = np.random.default_rng(0).integers(0, 20, 200)
    out = np.empty((200, 4), "i4")

    array.read_rows(rows, out, np.argsort(rows, kind="stable"))

    np.testing.assert_array_equal(out, values[rows])


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (4, 2)},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"compressors": zarr.codecs.GzipCodec()},
        {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
        {"zarr_format": 2},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_formats_are_left_to_zarr_python(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = {
        "shape": (8, 4),
        "dtype": "i4",
        "chunks": (4, 4),
        "compressors": None,
        "filters": None,
    }
    array = zarr.create_array(tmp_path / "a", **{**wanted, **options})
    assert array.shape == (8, 4)

    assert open_stored(tmp_path / "a") is None
    assert open_stored(tmp_path) is None


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_cut_short_is_named(tmp_path: Path, mapped: bool) -> None:
    array = written(tmp_path / "a", np.ones((8, 4), "f4"), 4)
    object.__setattr__(array, "fits", mapped)
    (tmp_path / "a/c/1/0").write_bytes(b"\0" * 10)

    with pytest.raises(IntegrityError, match="c/1/0: ends before byte"):
        array.read_rows(np.array([0, 2, 5, 7]), np.empty((4, 4), "f4"), np.arange(4))


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_a_chunk_that_cannot_be_unpacked_is_named(tmp_path: Path, codec: str) -> None:
    array = written(tmp_path / "a", np.ones((8, 4), "f4"), 4, compressors=CODECS[codec])
    (tmp_path / "a/c/1/0").write_bytes(b"\1" * 40)

    with pytest.raises(IntegrityError, match="chunk 0 can't be unpacked"):
        array.to_dask().compute(scheduler="sync")


def test_a_damaged_table_of_chunks_is_named(tmp_path: Path) -> None:
    array = written(tmp_path / "a", np.ones((8, 4), "f4"), 4, shards=(8, 4))
    file = tmp_path / "a/c/0/0"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)

    with pytest.raises(IntegrityError, match="its table of chunks is damaged"):
        array.to_dask().compute(scheduler="sync")
