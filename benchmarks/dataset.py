"""Build a dataset of 20,000 resources, next to ``git fast-import`` of the very same stream."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

from measure import interleave, options, report

from scibench_data import catalog
from scibench_data.annexed import annex, build
from scibench_data.descriptor import DataPackage, parse

COUNT = 20_000


def many_resources() -> DataPackage:
    """Return cryoem's descriptor with 20,000 small remote files instead of its own."""
    tree = json.loads(catalog.find_release("cryoem").read().text)
    base = next(r for r in tree["resources"] if r["scibench"].get("sources"))
    subset = base["scibench"]["subset"]
    tree["resources"] = [
        {
            **base,
            "name": f"f{number}",
            "path": f"{subset}/part{number // 1000:03d}/f{number:05d}.bin",
            "bytes": 4096,
            "hash": f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}",
            "scibench": {"subset": subset, "sources": [f"https://data.example.org/{number}"]},
        }
        for number in range(COUNT)
    ]
    tree["scibench"]["subsets"] = {subset: tree["scibench"]["subsets"][subset]}
    return parse(json.dumps(tree).encode(), "many", check=False)


def main() -> None:
    """Measure and report."""
    asked = options(__doc__ or "", repeats=5)
    package = many_resources()
    stream = build.import_stream([package])
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch) / str(number) for number in itertools.count())

        def fast_import() -> None:
            folder = next(folders)
            folder.mkdir()
            annex.git("init", "--quiet", "--template=", cwd=folder)
            annex.git("fast-import", "--quiet", cwd=folder, stdin=stream)

        def history() -> None:
            build.import_history(next(folders), [package])

        def whole() -> None:
            build.build(next(folders), [package])

        cases = {
            "git fast-import of the stream": fast_import,
            "ours: descriptor to commit": history,
            "ours: the same, annexed and checked out": whole,
        }
        times = interleave(cases, asked.repeats)
    report(times, "git fast-import of the stream", asked.json)


if __name__ == "__main__":
    main()
