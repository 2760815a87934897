"""A version is sealed once: sizes, checksums and commit are filled in, and never change again."""

import json
import shutil
from pathlib import Path

import pytest

from scibench_data import catalog
from scibench_data.errors import UsageError
from scibench_data.seal import seal


def test_a_draft_becomes_a_release_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "cryoem"
    shutil.copytree(catalog.package_folder("cryoem"), folder)
    (folder / "releases.json").unlink()
    path = folder / "1.0.0" / "datapackage.json"
    tree = json.loads(path.read_bytes())
    tree["scibench"]["subsets"]["sample"]["recipe"]["parameters"]["particles"] = 64
    for resource in tree["resources"]:
        if resource["scibench"]["subset"] == "sample":
            resource.update(bytes=0, hash=f"sha256:{'0' * 64}")
    path.write_text(json.dumps(tree))

    commit = seal(folder, "1.0.0", "First release.")

    (entry,) = json.loads((folder / "releases.json").read_bytes())["releases"]
    sealed = json.loads(path.read_bytes())
    assert entry["commit"] == commit
    assert entry["changes"] == "First release."
    assert all(resource["bytes"] > 0 for resource in sealed["resources"])
    assert len([r for r in sealed["resources"] if r["path"].endswith(".mrcs")]) == 2
    with pytest.raises(UsageError, match="never changes"):
        seal(folder, "1.0.0", "Again.")
    assert json.loads(path.read_bytes()) == sealed
