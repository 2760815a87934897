"""The same graph on the workers of a Dask cluster gives the same store."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster

from scibench_data.errors import NetworkError, ScibenchError
from scibench_data.storing import store
from scibench_data.storing.store import Layout

LAYOUT = Layout(chunk_bytes=256, shard_bytes=1024)
VALUES = np.random.default_rng(0).standard_normal((300, 8)).astype("f4")


def values() -> xr.Dataset:
    return xr.Dataset({"x": (("n", "k"), VALUES)}).chunk(n=64)


def fail(block: np.ndarray) -> np.ndarray:
    message = "no such file"
    raise OSError(message)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


def test_the_store_is_that_of_one_machine(tmp_path: Path, scheduler: str) -> None:
    here = store.materialize(values, tmp_path / "a", "s", {}, layout=LAYOUT)
    there = store.materialize(values, tmp_path / "b", "s", {}, layout=LAYOUT, scheduler=scheduler)

    assert there.manifest_digest == here.manifest_digest
    assert [status for _, status, _ in store.check(there.folder)] == ["holds"] * 3


def test_a_reader_that_fails_on_a_worker_fails_here(tmp_path: Path, scheduler: str) -> None:
    def broken() -> xr.Dataset:
        data = values()
        return data.assign(x=data["x"].copy(data=data["x"].data.map_blocks(fail, dtype="f4")))

    layout = Layout(chunk_bytes=256, shard_bytes=1024, codec="none")
    with pytest.raises((ScibenchError, OSError), match="no such file"):
        store.materialize(broken, tmp_path, "s", {}, layout=layout, scheduler=scheduler)
    assert not list(tmp_path.glob("stores/*"))

    store.materialize(values, tmp_path, "s", {}, layout=layout, scheduler=scheduler)


def test_a_scheduler_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NetworkError, match=re.escape("scheduler nowhere:1x: no answer; start one")):
        store.materialize(values, tmp_path, "s", {}, layout=LAYOUT, scheduler="nowhere:1x")
