"""The benchmarks run: every case gives every sample once, and its file says what was measured."""

import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from scibench_data import catalog
from scibench_data.loader import Source

ROOT = Path(__file__).parent.parent
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a script of the benchmarks' folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from numcodecs import blosc  # type: ignore[import-untyped]

    monkeypatch.setattr(blosc, "use_threads", blosc.use_threads)  # set by the scripts
    return importlib.import_module


@pytest.fixture
def measured(scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a script on tiny data, all its cases in this process, and return what it wrote."""
    turns = scripts("turns")

    def at_once(
        cases: Any, count: int, *, longest: float = 60.0, before: Callable[[], Any] = dict
    ) -> Any:
        jobs = {name: prepare() for name, prepare in cases.items()}
        return {
            name: [
                before() | turns._time(job, turn, longest) | {"peak_mib": 0.0, "own_peak_mib": 0.0}
                for turn in range(count)
            ]
            for name, job in jobs.items()
        }

    def run(script: str, *words: str) -> dict[str, Any]:
        module = scripts(script)
        monkeypatch.setattr(module, "take_turns", at_once)
        told = ["--repeats", "1", "--data", tmp_path / "data", "--json", tmp_path / "found.json"]
        monkeypatch.setattr(sys, "argv", [script, *words, *map(str, told)])
        module.main()
        assert (tmp_path / "found.png").stat().st_size
        content: dict[str, Any] = json.loads((tmp_path / "found.json").read_bytes())
        return content

    return run


@pytest.mark.parametrize(
    ("case", "size"),
    [
        ("particles", 65536),
        ("transform", 65536),
        ("smooth", 32768),
        ("int8", 16384),
        ("cold", 65536),
    ],
)
def test_loading_is_measured_on_every_kind_of_data(
    measured: Run,
    scripts: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    size: int,
) -> None:
    monkeypatch.setattr(scripts("loading"), "evict", lambda _: {"resident": 0})  # mapped here
    codec = "lz4" if case == "smooth" else "auto"

    found = measured("loading", case, "--bytes", str(150 * size), "--epochs", "2", "--codec", codec)

    assert found.keys() >= {"reference", "summary", "rounds", "hardware", "libraries", "version"}
    turns = 1 if case == "cold" else 2
    part = "once" if case == "cold" else "later"
    assert found["summary"][found["reference"]][part]["ratio"] == 1
    assert any(name.startswith("scibench-data") for name in found["summary"])
    for name, readings in found["rounds"][0].items():
        least = size * 128 if "codec" in name else size * 150
        assert [reading["bytes"] >= least for reading in readings] == [True] * turns, name
        if case == "particles" or (case == "cold" and "scibench-data" in name):
            assert [reading["distinct"] for reading in readings] == [150] * turns, name
        if case == "cold":
            assert readings[0]["resident"] == 0


def test_pages_that_stay_in_the_cache_are_seen(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(40960))

    limits = scripts("limits")

    with file.open("rb") as opened:
        assert limits.resident(opened.fileno()) == 10
        mapped = np.memmap(file, np.uint8, "r")
        assert not mapped.any()
        with pytest.raises(SystemExit, match="stayed"):
            limits.evict([file])


def test_windows_are_measured_beside_numpys(
    measured: Run, scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts("loading"), "PASSES", 1)

    found = measured("loading", "windows", "--epochs", "1")

    sizes = {readings[0]["bytes"] for readings in found["rounds"][0].values()}
    assert sizes == {(1826 - 25) * 26 * 500 * 4}


def test_samples_and_trainings_are_timed(
    scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    samples = scripts("samples")
    asked = []

    def run(home: Path, *words: Any) -> float:
        asked.append([str(word) for word in words])
        if "--out" in words:
            result = {"model": {"name": "uno"}, "run": {"seconds": {"training": 4.0}}}
            words[-1].joinpath("uno").mkdir(parents=True)
            words[-1].joinpath("uno/result.json").write_text(json.dumps(result))
        return 2.0

    monkeypatch.setattr(samples, "run", run)
    monkeypatch.setattr(sys, "argv", ["samples", "--train", "--json", str(tmp_path / "found.json")])
    samples.main()
    found = json.loads((tmp_path / "found.json").read_bytes())["seconds"][0]

    assert [words[-1] for words in asked[:-1]] == catalog.package_names()
    assert found["get, together"] == 2.0 * len(catalog.package_names())
    assert found["training"] == 4.0
    assert found["train --all"] == 2.0


@pytest.mark.parametrize(("case", "codec"), [("raw", "none"), ("packed", "lz4")])
def test_materialize_is_measured_beside_its_limit(measured: Run, case: str, codec: str) -> None:
    found = measured("storing", case, "--bytes", "2e6", "--codec", codec)

    assert found["reference"] in found["summary"]
    assert found["summary"]["scibench-data materialize"]["later"]["ratio"] > 0


def test_cases_take_turns_in_processes_of_their_own(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    case = functools.partial(scripts("limits").dd, [file])
    told = iter(range(4))

    found = scripts("turns").take_turns(
        {"a": case, "b": case}, 2, before=lambda: {"place": next(told)}
    )

    assert {name: [r["place"] for r in rows] for name, rows in found.items()} == {
        "a": [0, 2],
        "b": [1, 3],
    }
    assert [reading["bytes"] for reading in found["a"]] == [1000, 1000]


def test_a_case_whose_process_fails_is_named(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    case = functools.partial(scripts("limits").gather, tmp_path / "absent.npy")

    with pytest.raises(RuntimeError, match="gone: its process ended early"):
        scripts("turns").take_turns({"gone": case}, 1)


def test_the_spread_tells_a_shuffle_from_none(scripts: Callable[[str], Any]) -> None:
    judge = scripts("turns")._judge
    numbers = np.arange(6400)
    shuffled = np.random.default_rng(0).permutation(numbers)

    assert judge(list(shuffled.reshape(100, 64)))["spread"] < 1.5
    assert judge(list(numbers.reshape(100, 64)))["spread"] > 60
    assert judge([numbers[:64], numbers[:64]])["distinct"] == 64


def test_the_share_of_waiting_counts_every_step(scripts: Callable[[str], Any]) -> None:
    class Model(torch.nn.Linear):
        def loss(self, batch: dict[str, torch.Tensor], progress: float) -> torch.Tensor:
            assert 0 <= progress < 1
            return torch.square(self(batch["x"])).mean()

    module = SimpleNamespace(
        Config=lambda: SimpleNamespace(batch_size=4),
        build=lambda *_: Model(3, 1),
        optimizer=lambda model, *_: torch.optim.SGD(model.parameters()),
    )
    dataset = xr.Dataset({"x": (("sample", "place"), np.ones((10, 3), np.float32))})
    source = Source(dataset=dataset, splits={"train": np.arange(10)}, names=("x",))

    readings = scripts("training_share").epochs(module, source, 2, 60.0)

    assert [reading["steps"] for reading in readings] == [3, 3]
    assert all(0 < reading["waited"] < reading["seconds"] for reading in readings)


def _formats() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        peers: ModuleType = importlib.import_module("peers")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return peers.FORMATS


@pytest.mark.filterwarnings("default")  # the peers' own affair
@pytest.mark.parametrize("form", _formats(), ids=lambda form: f"{form.needs}-{form.name}")
def test_a_peer_gives_every_sample_once(
    form: Any, scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    if importlib.util.find_spec(form.needs) is None:
        pytest.skip(f"NOT RUN: {form.needs} is not installed; it is one of the extra peers")
    making, limits, turns = map(scripts, ("making", "limits", "turns"))
    data = making.Data(kind=making.particles, rows=192, folder=tmp_path)
    data.open()
    folder = form.folder(data.path)

    for name, loader in form.loaders.items():
        if "2 workers" not in name:
            job = limits.job(functools.partial(loader, folder), numbered=True)
            reading = turns._time(job, 0, 60.0)
            assert (reading["samples"], reading["distinct"]) == (192, 192), name
