"""One more package and its model are two folders: nothing else is touched, and all of it works."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SIMULATE = '''"""Springs: elongation of a spring under a load, with an error of reading."""

from pathlib import Path

from scibench_data import exact


def files(*, springs: int, seed: int) -> tuple[str, ...]:
    """Name the one file."""
    return ("springs.csv",)


def simulate(path: str, output: Path, *, springs: int, seed: int) -> None:
    """Write loads [N] and elongations [mm]."""
    load = exact.uniform(springs, "springs", "load", seed)
    error = exact.normal(springs, "springs", "error", seed)
    rows = [f"{i},{round(1e4 * x)},{round(3e4 * x + 500 * e)}" for i, (x, e) in
            enumerate(zip(load.tolist(), error.tolist(), strict=True))]
    output.write_text("spring,load,elongation\\n" + "\\n".join(rows) + "\\n", encoding="ascii")
'''

READER = '''"""Read springs.csv."""

from pathlib import Path

import numpy as np
import xarray as xr


def read(folder: Path) -> xr.Dataset:
    """Return load and elongation of every spring."""
    table = np.loadtxt(folder / "springs.csv", delimiter=",", skiprows=1, dtype=np.int64)
    units = {"load": "0.1 mN", "elongation": "um", "spring": "1"}
    names = {name: table[:, i] for i, name in enumerate(("spring", "load", "elongation"))}
    return xr.Dataset(
        {name: ("sample", names[name].astype(np.float32), {"units": units[name], "long_name": name})
         for name in ("load", "elongation")},
        coords={"spring": ("sample", names["spring"].astype(np.int32),
                           {"units": "1", "long_name": "spring"})},
    )
'''

MODEL = '''"""A line through the origin."""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

TOLERANCE = {"mse": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 0.1


class Line(torch.nn.Module):
    """elongation = slope * load.

    Examples
    --------
    >>> Line().slope.item()
    1.0
    """

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch, progress):
        """Mean squared error."""
        return ((self.slope * batch["load"] - batch["elongation"]) / 1e4).square().mean()


def build(config, data):
    """Build the model."""
    return Line()


def optimizer(model, config):
    """Return the optimizer."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate)


def _mse(slope, data, split):
    rows = data.splits[split]
    load = torch.from_numpy(data.dataset["load"].to_numpy()[rows])
    elongation = torch.from_numpy(data.dataset["elongation"].to_numpy()[rows])
    return {"mse": float(((slope * load - elongation) / 1e4).square().mean())}


def evaluate(model, data, split):
    """Score."""
    return _mse(model.slope.detach(), data, split)


def compare(data, config):
    """Compare with no spring at all, and with the true slope."""
    return {"baseline: none": _mse(0.0, data, "test"), "ceiling: true": _mse(3.0, data, "test")}


def figures(model, data, folder):
    """Draw the line."""
    figure = Figure()
    figure.add_subplot().plot([0, 1], [0, model.slope.item()])
    figure.savefig(folder / "line.png")
'''

DESCRIPTOR = {
    "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
    "name": "springs",
    "title": "Springs under a load",
    "description": "Loads and elongations of springs, as an example of a ninth package.",
    "version": "1.0.0",
    "licenses": [{"name": "CC0-1.0"}],
    "contributors": [{"title": "The tests"}],
    "resources": [
        {
            "name": "springs",
            "path": "sample/springs.csv",
            "bytes": 0,
            "hash": "sha256:" + 64 * "0",
            "mediatype": "text/csv",
            "scibench": {"subset": "sample"},
        }
    ],
    "scibench": {
        "profile": 1,
        "uuid": "5f0f9c1c-9a44-5c39-9c5c-0a3b2a1d4e5f",
        "released": "2026-01-02",
        "subsets": {
            "sample": {
                "title": "Simulated springs",
                "recipe": {"parameters": {"springs": 400, "seed": 1}, "scale": "springs"},
            }
        },
        "arrays": [
            {"name": "load", "dtype": "float32", "dims": ["sample"], "units": "0.1 mN"},
            {"name": "elongation", "dtype": "float32", "dims": ["sample"], "units": "um"},
            {"name": "spring", "dtype": "int32", "dims": ["sample"], "units": "1"},
        ],
        "splits": {
            "group": "spring",
            "fractions": {"train": 0.8, "validation": 0.1, "test": 0.1},
            "seed": 0,
            "reason": "each spring is measured once",
        },
        "task": {
            "description": "From load to elongation",
            "inputs": ["load"],
            "targets": ["elongation"],
            "metric": "mse",
            "higher_is_better": False,
        },
    },
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package as a wheel would, with two folders more."""
    folder = tmp_path_factory.mktemp("ninth") / "environment"
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    site.joinpath("others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "scibench_data", site / "scibench_data", ignore=ignored)
    for kind in ("datapackages", "models"):
        shutil.copytree(ROOT / kind, site / "scibench_data" / kind, ignore=ignored)
    package = site / "scibench_data/datapackages/springs"
    (package / "1.0.0").mkdir(parents=True)
    (package / "1.0.0/datapackage.json").write_text(json.dumps(DESCRIPTOR))
    (package / "simulate.py").write_text(SIMULATE)
    (package / "reader.py").write_text(READER)
    model = site / "scibench_data/models/springs"
    model.mkdir()
    (model / "model.py").write_text(MODEL)
    program = folder / "bin/git-annex-compute-scibench-data"
    start = "from scibench_data.annexed.compute import main; main()"
    program.write_text(f"#!{folder}/bin/python\n{start}\n")
    program.chmod(0o755)
    return folder / "bin/python"


def test_a_ninth_package_and_model_work(python: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "SCIBENCH_DATA_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [python, "-m", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    commit = run("scibench_data.seal", "springs", "1.0.0", "First release.").strip()
    assert "springs" in run("scibench_data", "list")
    run("scibench_data", "get", "springs", "-q")
    assert commit in run("scibench_data", "info", "springs")
    conformance = str(ROOT / "tests/test_conformance.py")
    told = run("pytest", conformance, "-k", "springs", "-p", "no:cacheprovider", "--basetemp", "c")
    assert " passed" in told
    assert "skipped" not in told
    run("scibench_data", "train", "springs", "--out", "a", "-q")
    run("scibench_data", "train", "springs", "--data-seed", "2", "--scale", "200", "--out", "b")
    verdict = json.loads(run("scibench_data", "verify", "a", "--json"))
    rows = json.loads(run("scibench_data", "report", "a", "b", "--json"))["rows"]

    assert verdict["ok"], verdict
    assert [row["data"] for row in rows] == [
        "springs@1.0.0+scale.200:sample",
        "springs@1.0.0:sample",
    ]
    assert {row["ahead"] for row in rows} == {"model"}
