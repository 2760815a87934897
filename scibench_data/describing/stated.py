"""What a descriptor says of its files, whether or not it is sound.

`descriptor.read_descriptor` gives values that can be relied on, or refuses. Who writes or checks a
descriptor needs what there is of one that is not finished yet.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scibench_data.descriptor import MAX_LIST_BYTES, Resource, list_problems
from scibench_data.durable import open_regular
from scibench_data.errors import DescriptorError
from scibench_data.foreign import path_fault


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A file as a descriptor tells of it, sound or not.

    Attributes
    ----------
    place
        Where it does: of the descriptor, or of the list of files.
    entry
        The resource's entry; empty where a list names the file.
    """

    resource: Resource
    place: str
    entry: Mapping[str, Any] = field(default_factory=dict)


def stated(tree: Any, folder: Path) -> Iterator[Stated]:
    """Go through the files that a descriptor tells of, those in its lists too.

    What is too broken to speak of a file is left out: `problems` and `list_problems` tell of it.
    """
    for place, entry in resource_entries(tree):
        path, ours = entry.get("path"), entry.get("scibench")
        if not isinstance(path, str) or path_fault(path) or not isinstance(ours, dict):
            continue
        if ours.get("lists") == "files":
            yield from _listed(folder, path)
            continue
        size, digest, sources = entry.get("bytes"), entry.get("hash"), ours.get("sources")
        known = isinstance(digest, str) and re.fullmatch("sha256:[0-9a-f]{64}", digest)
        resource = Resource(
            name=str(entry.get("name", "")),
            path=path,
            bytes=size if isinstance(size, int) else 0,
            sha256=str(digest).removeprefix("sha256:") if known else "",
            subset=path.split("/")[0],
            sources=tuple(map(str, sources)) if isinstance(sources, list) else (),
            exact=isinstance(size, int),
        )
        yield Stated(resource=resource, place=place, entry=entry)


def resource_entries(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the resources of a decoded descriptor that are objects, each with its place."""
    entries = tree.get("resources") if isinstance(tree, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            yield f"resources[{index}]", entry


def list_paths(tree: Any) -> list[str]:
    """Name the lists of files of a decoded descriptor, which may be unsound."""
    found = []
    for _, entry in resource_entries(tree):
        ours, path = entry.get("scibench"), entry.get("path")
        if isinstance(ours, dict) and ours.get("lists") == "files":
            found += [path] if isinstance(path, str) and not path_fault(path) else []
    return found


def is_elsewhere(subset: Mapping[str, Any]) -> bool:
    """Tell whether a subset, by its entry, has files that need not lie beside the descriptor."""
    return any(key in subset for key in ("recipe", "listing", "needs"))


def read_beside(path: Path) -> bytes:
    """Read a list of files.

    Raises
    ------
    DescriptorError
        It can't be read.
    """
    try:
        with open_regular(path) as file:
            return file.read(MAX_LIST_BYTES)
    except OSError as error:
        raise DescriptorError(str(path), [f"can't be read: {error.strerror}"]) from error


def _listed(folder: Path, path: str) -> Iterator[Stated]:
    try:
        content = read_beside(folder / path)
    except DescriptorError:
        return
    if list_problems(content, None):
        return
    subset = path.partition("/")[0]
    for number, row in enumerate(csv.DictReader(io.StringIO(content.decode())), 2):
        resource = Resource(
            name="",
            path=f"{subset}/{row['path']}",
            bytes=int(row["bytes"] or 0),
            sha256=row["sha256"],
            subset=subset,
            sources=tuple(row["url"].split()),
            exact=bool(row["bytes"]),
        )
        yield Stated(resource=resource, place=f"{path} line {number}")
