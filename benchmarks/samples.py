"""Get all samples in an empty home, one after the other; with ``--train`` train every model too."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import make_parser, surroundings

from scibench_data import catalog

PROGRAM = Path(sys.executable).parent / "scibench-data"


def run(home: Path, *words: str | Path) -> float:
    """Run a command in this home and return how long it took. [s]"""
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(home)}
    started = time.perf_counter()
    subprocess.run([PROGRAM, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


def train_all(home: Path, out: Path) -> dict[str, Any]:
    """Run ``train --all``; return its time and those that the results tell of. [s]"""
    whole = run(home, "train", "--all", "-q", "--out", out)
    results = [json.loads(file.read_bytes()) for file in sorted(out.rglob("result.json"))]
    parts = {result["model"]["name"]: result["run"]["seconds"] for result in results}
    training = round(sum(seconds["training"] for seconds in parts.values()), 1)
    return {"train --all": whole, "training": training, "parts": parts}


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "", repeats=1)
    parser.add_argument("--train", action="store_true", help="run train --all as well")
    asked = parser.parse_args()
    rounds = []
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "home"
            got = {name: run(home, "get", "-q", name) for name in catalog.package_names()}
            found: dict[str, Any] = {"get": got, "get, together": round(sum(got.values()), 1)}
            if asked.train:
                found |= train_all(home, Path(folder) / "runs")
            rounds.append(found)
        print(*(f"{what}: {seconds}" for what, seconds in found.items()), sep="\n", flush=True)
    if asked.json:
        content = {"seconds": rounds, **surroundings()}
        asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
