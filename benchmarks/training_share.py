"""Train each reference model for a few epochs: which share of a step is waiting for its batch?"""

import json
import statistics
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from making import default_folder
from measure import make_parser, surroundings

from scibench_data import catalog
from scibench_data.getting import dataset
from scibench_data.loader import Source
from scibench_data.results import run, training
from scibench_data.settings import load_settings
from scibench_data.storing import store


def open_sample(name: str, home: Path) -> Source:
    """Get and materialize the package's sample and open it as training does."""
    settings = load_settings(home=home)
    data = dataset.get(catalog.resolve(name, home), settings)
    return run.open_source(data.package, store.open_store(run.materialize(data, settings)))


def epochs(module: ModuleType, source: Source, count: int, longest: float) -> list[dict[str, Any]]:
    """Train, with one thread as training does; return the seconds of each epoch, and those waited.

    Parameters
    ----------
    longest
        An epoch is cut short after this time. [s]
    """
    torch.manual_seed(0)
    config = module.Config()
    model: Any = module.build(config, source).train()
    optimizer = module.optimizer(model, config)
    readings = []
    for epoch in range(count):
        waited, steps, started = 0.0, 0, time.perf_counter()
        batches = iter(
            source.batches("train", config.batch_size, shuffle=True, seed=0, epoch=epoch)
        )
        while time.perf_counter() - started < longest:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            loss = model.loss(batch, epoch / count)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        seconds = time.perf_counter() - started
        readings.append({"seconds": seconds, "waited": waited, "steps": steps})
    return readings


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "", repeats=3)
    parser.add_argument("models", nargs="*", help="by default all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="longest epoch")
    parser.add_argument("--data", type=Path, default=default_folder(), help="keeps the data")
    asked = parser.parse_args()
    training.settle_threads()
    names = asked.models or catalog.model_names()
    sources = {name: open_sample(name, asked.data) for name in names}
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for _ in range(asked.repeats):
        for name, source in sources.items():
            module = catalog.load_model(name)
            found[name].append(epochs(module, source, asked.epochs, asked.seconds))
    print(f"{'model':<20}{'ms a step':>12}{'waited':>10}{'first epoch':>14}{'(worst)':>10}")
    shares = {}
    for name, rounds in found.items():
        later = [reading for readings in rounds for reading in readings[1:] or readings]
        first = [readings[0]["waited"] / readings[0]["seconds"] for readings in rounds]
        share = [reading["waited"] / reading["seconds"] for reading in later]
        step = statistics.median(reading["seconds"] / reading["steps"] for reading in later)
        shares[name] = {
            "share": round(statistics.median(share), 5),
            "share_first_epoch": round(statistics.median(first), 5),
            "worst": round(max(share), 5),
            "seconds_per_step": round(step, 6),
        }
        print(
            f"{name:<20}{step * 1e3:>12.2f}{statistics.median(share):>10.2%}"
            f"{statistics.median(first):>14.2%}{max(share):>10.2%}"
        )
    if asked.json:
        content = {"summary": shares, "rounds": found, **surroundings()}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
