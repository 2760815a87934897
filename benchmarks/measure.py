"""Interleaved timing of several things, and the table and file that come of it."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scibench_data import provenance
from scibench_data.annexed import annex


def make_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    return parser


def options(description: str, repeats: int) -> argparse.Namespace:
    """Parse what every benchmark takes."""
    return make_parser(description, repeats).parse_args()


def interleave(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Run every case once to warm up, then in turn `repeats` times; return wall times. [s]"""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            started = time.perf_counter()
            case()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def surroundings() -> dict[str, Any]:
    """Return what a measurement was made with and on."""
    return {
        "version": provenance.package_version(),
        "hardware": provenance.hardware(),
        "libraries": provenance.library_versions(),
        "programs": annex.program_versions(),
    }


def report(times: Mapping[str, list[float]], reference: str, target: Path | None) -> None:
    """Print medians and ratios to the reference, and write them where asked."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'case':<44}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}")
    for name, values in times.items():
        ratio = medians[name] / medians[reference]
        print(
            f"{name:<44}{medians[name]:>10.3f}{min(values):>9.3f}{max(values):>9.3f}{ratio:>8.2f}"
        )
    if target is None:
        return
    content = {
        "seconds": {name: [round(value, 5) for value in values] for name, values in times.items()},
        "ratio_of_medians": {n: round(m / medians[reference], 4) for n, m in medians.items()},
        "reference": reference,
        **surroundings(),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
