"""Packages that a test registers in its cache, with the versions and files that it needs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tree = dict[str, Any]
SOURCE = "https://data.example.org/"


def resource(path: str, content: bytes | None, **more: Any) -> Tree:
    """Describe a file; without content its publisher tells neither size nor checksum."""
    subset = path.partition("/")[0]
    facts: Tree = {}
    if content is not None:
        facts = {
            "bytes": len(content),
            "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
        }
    return {
        "name": path.replace("/", "."),
        "path": path,
        **facts,
        **more,
        "scibench": {"subset": subset, "sources": [f"{SOURCE}{path}"]},
    }


def described(name: str, version: str, *resources: Tree, **ours: Any) -> Tree:
    """Return a sound descriptor; `ours` goes under ``scibench``."""
    subsets = dict.fromkeys(each["scibench"]["subset"] for each in resources)
    return {
        "name": name,
        "title": "Cells",
        "description": "Cells of a test",
        "version": version,
        "licenses": [{"name": "CC0-1.0"}],
        "contributors": [{"title": "The tester"}],
        "resources": list(resources),
        "scibench": {
            "profile": 1,
            "uuid": "4d168784-89f3-522e-a373-a51ad0ba940d",
            "released": "2026-01-02",
            "subsets": {subset: {"title": subset} for subset in subsets},
            **ours,
        },
    }


def register(
    home: Path, *trees: Tree, yanked: Mapping[str, str] | None = None, lists: bytes = b""
) -> None:
    """Register descriptors of one name as its versions; `lists` is the last one's list of files."""
    folder = home / "added" / trees[0]["name"]
    entries = []
    for tree in trees:
        version = tree["version"]
        (folder / version).mkdir(parents=True, exist_ok=True)
        (folder / version / "datapackage.json").write_text(json.dumps(tree))
        why = (yanked or {}).get(version, "")
        entries.append({"version": version, "changes": f"made {version}", "yanked": why})
    if lists:
        path = next(r["path"] for r in trees[-1]["resources"] if "lists" in r["scibench"])
        place = folder / trees[-1]["version"] / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(lists)
    (folder / "releases.json").write_text(json.dumps({"releases": entries}))
