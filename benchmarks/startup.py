"""Start the command line: ``--help``, ``list``, ``info``, and ``get`` of what is here already."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import interleave, options, report

PROGRAM = Path(sys.executable).parent / "scibench-data"


def main() -> None:
    """Measure and report."""
    asked = options(__doc__ or "", repeats=15)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "SCIBENCH_DATA_HOME": home}

        def command(*words: str | Path) -> Callable[[], object]:
            return lambda: subprocess.run(words, env=environment, capture_output=True, check=True)

        cases = {
            "python -c pass": command(sys.executable, "-c", "pass"),
            "scibench-data --help": command(PROGRAM, "--help"),
            "scibench-data list": command(PROGRAM, "list"),
            "scibench-data info cryoem": command(PROGRAM, "info", "cryoem"),
            "scibench-data get cryoem, again": command(PROGRAM, "get", "cryoem"),
        }
        times = interleave(cases, asked.repeats)
    report(times, "python -c pass", asked.json)


if __name__ == "__main__":
    main()
