"""Packages of a few small files, with sources of the test's own, registered in an empty cache."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scibench_data.descriptor import Resource, list_entry, write_list


@dataclass(frozen=True)
class File:
    """A file of a package: what is published of it, and its sources."""

    content: bytes
    sources: Sequence[str] = ()
    known: bool = True  # its size and SHA-256 are published


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A package to be registered, of one subset named ``data`` unless the paths say otherwise."""

    files: Mapping[str, File]
    name: str = "parcel"
    version: str = "1.0.0"
    listed: bool = False  # its files stand in a manifest.csv
    subset: Mapping[str, Any] = field(default_factory=dict)  # more keys of the subset

    def tree(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the descriptor and the lists beside it."""
        lists: dict[str, bytes] = {}
        if self.listed:
            content = write_list(map(self._listed, self.files))
            resources = [list_entry("data", content)]
            lists["data/manifest.csv"] = content
        else:
            resources = list(map(self._resource, self.files))
        tree = {
            "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
            "name": self.name,
            "title": "A parcel",
            "description": "Some files with sources of the test's own.",
            "version": self.version,
            "licenses": [{"name": "CC0-1.0"}],
            "contributors": [{"title": "The tests"}],
            "resources": resources,
            "scibench": {
                "profile": 1,
                "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, self.name)),
                "released": "2026-01-02",
                "subsets": {"data": {"title": "All of it", **self.subset}},
            },
        }
        return tree, lists

    def _resource(self, path: str) -> dict[str, Any]:
        file = self.files[path]
        entry: dict[str, Any] = {"name": path.replace("/", "-"), "path": f"data/{path}"}
        if file.known:
            entry["bytes"] = len(file.content)
            entry["hash"] = f"sha256:{hashlib.sha256(file.content).hexdigest()}"
        return {**entry, "scibench": {"subset": "data", "sources": list(file.sources)}}

    def _listed(self, path: str) -> Resource:
        file = self.files[path]
        return Resource(
            name="",
            path=f"data/{path}",
            bytes=len(file.content) if file.known else 0,
            sha256=hashlib.sha256(file.content).hexdigest() if file.known else "",
            subset="data",
            sources=tuple(file.sources),
            exact=file.known,
        )

    def register(self, home: Path) -> str:
        """Put the package where added ones lie, and return its name."""
        tree, lists = self.tree()
        folder = home / "added" / self.name
        write(folder / self.version, tree, lists)
        path = folder / "releases.json"
        known = json.loads(path.read_bytes())["releases"] if path.exists() else []
        entry = {"version": self.version, "date": "2026-01-02", "changes": "", "yanked": ""}
        path.write_text(json.dumps({"releases": [*known, entry]}))
        return self.name


def write(folder: Path, tree: Mapping[str, Any], lists: Mapping[str, bytes]) -> None:
    """Write a descriptor and its lists of files."""
    folder.mkdir(parents=True)
    (folder / "datapackage.json").write_text(json.dumps(tree))
    for path, content in lists.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
