"""Fill in what a new version can't know before it is made: sizes, checksums, the commit.

For maintainers, once for each release: ``python -m scibench_data.seal NAME VERSION "what changed"``
runs the recipes of the version's simulated subsets, writes their files' sizes and SHA-256 into its
``datapackage.json``, computes the dataset's commit and adds the version to ``releases.json``.
A version that is in ``releases.json`` never changes and is refused.
"""

import datetime as dt
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from scibench_data import catalog, durable
from scibench_data.annexed import build
from scibench_data.descriptor import parse
from scibench_data.errors import ScibenchError, UsageError
from scibench_data.getting import derive, simulating


def _fill_in(tree: dict[str, Any], name: str, scratch: Path) -> None:
    for subset, entry in tree["scibench"]["subsets"].items():
        if "recipe" not in entry:
            continue
        parameters = entry["recipe"]["parameters"]
        files = simulating.simulate_all(name, parameters, scratch / subset, jobs=2)
        mine = [r for r in tree["resources"] if r["scibench"]["subset"] == subset]
        others = [r for r in tree["resources"] if r["scibench"]["subset"] != subset]
        tree["resources"] = [*derive.describe_all(mine, subset, files), *others]


def seal(folder: Path, version: str, changes: str) -> str:
    """Finish a version in its package's folder and return its commit.

    Raises
    ------
    UsageError
        The version was sealed before.
    DescriptorError
        What came out is not a sound descriptor.
    """
    releases_path = folder / "releases.json"
    known: list[dict[str, Any]] = []
    if releases_path.exists():
        known = json.loads(releases_path.read_bytes())["releases"]
    if any(entry["version"] == version for entry in known):
        message = f"{folder.name} {version}: released, and never changes; make a new version"
        raise UsageError(message)
    path = folder / version / "datapackage.json"
    tree = json.loads(path.read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        _fill_in(tree, folder.name, Path(scratch))
        text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
        package = parse(text, str(path))
        history = [
            catalog.Release(name=folder.name, folder=folder / e["version"], **e) for e in known
        ]
        versions = [*(release.read() for release in history), package]
        commit = build.import_history(Path(scratch) / "dataset", versions)
    durable.write_whole(path, text, replace=True)
    date = dt.date.fromisoformat(package.released).isoformat()
    entry = {"version": version, "date": date, "commit": commit, "changes": changes, "yanked": ""}
    content = json.dumps({"releases": [*known, entry]}, indent=2, ensure_ascii=False)
    durable.write_whole(releases_path, content.encode() + b"\n", replace=True)
    return commit


if __name__ == "__main__":
    try:
        package_name, new_version, what_changed = sys.argv[1:]
        print(seal(catalog.package_folder(package_name), new_version, what_changed))  # noqa: T201
    except ValueError:
        sys.exit(__doc__)
    except ScibenchError as failure:
        sys.exit(str(failure))
