"""Files that nobody published a checksum of: what came first is what is pinned.

Size and SHA-256 of the first copy are noted in the dataset. From these and the released descriptor
follows a version with checksums, ``1.0.0+locked.<digest>``, the same on every machine.
"""

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scibench_data import catalog, durable
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Resource, parse, write_list
from scibench_data.errors import DescriptorError, NotFoundError
from scibench_data.getting import holdings
from scibench_data.settings import Settings
from scibench_data.versions.lockfile import FilePin, locked_version

_LIST_SCHEMA = {
    "fields": [
        {"name": "path", "type": "string"},
        {"name": "bytes", "type": "integer"},
        {"name": "sha256", "type": "string"},
        {"name": "url", "type": "string"},
    ]
}


def _noted(folder: Path) -> dict[str, FilePin]:
    """Read what a dataset notes of the files that came without a published checksum.

    An entry that is damaged counts as absent; content is hashed before it is adopted.
    """
    noted: dict[str, Any] = holdings.read_recorded(folder)
    files = (_file_pin(path, entry) for path, entry in noted.items())
    return {file.path: file for file in files if file}


def _file_pin(path: str, entry: Any) -> FilePin | None:
    facts = entry if isinstance(entry, dict) else {}
    size, sha256 = facts.get("bytes"), str(facts.get("sha256"))
    if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    return FilePin(path=path, bytes=size, sha256=sha256)


def recorded_files(
    reference: Reference, base: DataPackage, settings: Settings
) -> tuple[FilePin, ...]:
    """Return the files of a subset whose bytes only this machine knows, sorted by path.

    Raises
    ------
    NotFoundError
        None of them ever came here.
    """
    folder = holdings.dataset_folder(settings.home, reference.package)
    noted = _noted(folder)
    released = {r.path: r for r in base.resources_of(reference.subset)}
    files = []
    for resource in reference.resources:
        old = released.get(resource.path)
        if old and old.sha256:
            continue
        fact: FilePin | Resource | None = resource if resource.sha256 else None
        if fact := fact or noted.get(resource.path):
            sources = () if old else resource.sources
            files.append(
                FilePin(path=resource.path, bytes=fact.bytes, sha256=fact.sha256, sources=sources)
            )
    if not files:
        message = (
            f"{reference}: its publisher gives no checksum of its files, and none came here yet; "
            f"run: scibench-data get {reference}, then lock again"
        )
        raise NotFoundError(message)
    return tuple(sorted(files, key=lambda file: file.path))


def describe_locked(
    package: DataPackage, subset: str, files: Sequence[FilePin]
) -> tuple[bytes, dict[str, bytes]]:
    """Write the descriptor of one subset with the checksums of `files`, and its list of files.

    The same on every machine. A file that neither the released version nor `files` has a checksum
    of is left out.

    Parameters
    ----------
    package
        The released version.

    Returns
    -------
    tuple
        The bytes of ``datapackage.json``, and path -> bytes of the list where there is one.

    Raises
    ------
    DescriptorError
        A file has a published checksum, or is none of the subset's.
    """
    known = {file.path: file for file in files}
    released = package.resources_of(subset)
    _refuse_foreign(package, subset, released, files)
    version = locked_version(package.version, files)
    tree: dict[str, Any] = json.loads(package.text)
    ours = tree["scibench"]
    kept = {k: v for k, v in ours["subsets"][subset].items() if k not in {"listing", "about"}}
    tree["version"] = version
    ours["uuid"] = str(uuid.uuid5(uuid.UUID(package.uuid), version))
    ours["subsets"] = {subset: kept}
    mine = [entry for entry in tree["resources"] if entry["scibench"]["subset"] == subset]
    plain = [entry for entry in mine if "lists" not in entry["scibench"]]
    tree["resources"] = [*_with_checksums(plain, known)]
    lists = {}
    if listed := [*_listed(released, known, {entry["path"] for entry in plain})]:
        base: dict[str, Any] = next((e for e in mine if "lists" in e["scibench"]), {})
        content = write_list(listed)
        entry = _list_entry(subset, base, content)
        tree["resources"].append(entry)
        lists[entry["path"]] = content
    return json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n", lists


def _refuse_foreign(
    package: DataPackage, subset: str, released: Sequence[Resource], files: Sequence[FilePin]
) -> None:
    by_path = {resource.path: resource for resource in released}
    problems = []
    for file in files:
        resource = by_path.get(file.path)
        if resource is None and not (file.sources and package.subsets[subset].listing):
            problems.append(f"{file.path}: not a file of {package.name} {package.version}")
        elif resource is not None and resource.sha256:
            problems.append(f"{file.path}: has a published SHA-256 {resource.sha256}")
    if problems:
        subject = f"{package.name}@{package.version}:{subset}"
        raise DescriptorError(subject, problems)


def _with_checksums(
    entries: Sequence[dict[str, Any]], known: Mapping[str, FilePin]
) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if "hash" in entry:
            yield entry
        elif file := known.get(entry["path"]):
            ours = {k: v for k, v in entry["scibench"].items() if k != "about_bytes"}
            facts = {"bytes": file.bytes, "hash": f"sha256:{file.sha256}"}
            yield {**entry, **facts, "scibench": ours}


def _listed(
    released: Sequence[Resource], known: Mapping[str, FilePin], plain: set[str]
) -> Iterator[Resource]:
    """Return the files that stand in a list: those that did, then those that nobody listed."""
    for resource in released:
        file = known.get(resource.path)
        if resource.path in plain:
            continue
        if file:
            yield dataclasses.replace(resource, bytes=file.bytes, sha256=file.sha256, exact=True)
        elif resource.sha256:
            yield resource
    there = {resource.path for resource in released}
    for path in sorted(known.keys() - there):
        file, subset = known[path], path.partition("/")[0]
        yield Resource(
            name="", path=path, bytes=file.bytes, sha256=file.sha256, subset=subset,
            sources=file.sources,
        )  # fmt: skip


def _list_entry(subset: str, base: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    return {
        "name": f"{subset}-manifest",
        "path": f"{subset}/manifest.csv",
        "type": "table",
        "mediatype": "text/csv",
        "schema": _LIST_SCHEMA,
        **base,
        "bytes": len(content),
        "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "scibench": {"subset": subset, "lists": "files"},
    }


def write_locked(
    base: DataPackage, subset: str, text: bytes, lists: Mapping[str, bytes], settings: Settings
) -> Reference:
    """Write what `describe_locked` gave where it is not there yet, and return the version.

    Raises
    ------
    SpaceError
        The disk refuses.
    LockedError
        Another process writes the same for too long.
    """
    package = parse(text, f"{base.name}:{subset}", allowed=None, beside=lists.__getitem__)
    folder = catalog.derived_folder(settings.home, base.name, package.version)
    files = {**lists, "datapackage.json": text}  # that comes last: a folder with it is whole
    if any(_there(folder / path) != content for path, content in files.items()):
        own = holdings.lock_path(settings.home, base.name, package.version, ".derive")
        with durable.disk_errors(folder), durable.lock(own, settings.lock_timeout):
            for path, content in files.items():
                durable.write_whole(folder / path, content, replace=True)
    return catalog.resolve(f"{base.name}@{package.version}:{subset}", settings.home)


def _there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
