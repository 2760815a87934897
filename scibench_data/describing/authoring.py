"""From a folder of files to a data package: its descriptor, written from what the files are.

Nothing is made up. Sizes, checksums, media types and table schemas come from the files; title,
description, licence and authors come from a person, and what is missing stays missing and is said.
An update keeps what a person wrote and counts the version up (semver.org): files that were added
raise the second number, files that were changed or removed the first.
"""

import datetime as dt
import hashlib
import itertools
import json
import mimetypes
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

from scibench_data import catalog
from scibench_data.describing import tables
from scibench_data.describing.about import About, said
from scibench_data.describing.scanning import (
    BESIDE,
    DESCRIPTOR,
    Measured,
    Scan,
    files_folder,
    measure,
    scan,
)
from scibench_data.describing.stated import (
    Stated,
    is_elsewhere,
    list_paths,
    read_beside,
    resource_entries,
    stated,
)
from scibench_data.descriptor import Resource, list_problems, write_list
from scibench_data.durable import sha256_file, write_whole
from scibench_data.errors import DescriptorError, UsageError
from scibench_data.profile import MAX_BYTES, decode, problems
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings

LISTED = 100
"""A subset of more files than this lists them in a table of its own. [1]"""

COSTLY, TOO_MANY = 2_000, 20_000
"""Files from which on a package is a burden, and from which on it is refused. [1]"""

_INODES_PER_FILE = 5  # of a built dataset, as `holdings.plan` counts them
_FIRST = "0.1.0"
_TOLD = 50  # faults in one message [1]
_SCHEMA = "https://datapackage.org/profiles/2.0/datapackage.json"
_ORDER = (
    "$schema", "name", "title", "description", "version", "licenses", "contributors", "sources",
    "keywords",
)  # fmt: skip
_PLAIN_KEYS = {"name", "path", "mediatype", "bytes", "hash", "scibench"}
_NEEDED = {
    "title": "--title TEXT",
    "description": "--description TEXT",
    "licenses": "--license CC-BY-4.0",
    "contributors": '--author "Given Family"',
}
_LIST_FIELDS = (("path", "string"), ("bytes", "integer"), ("sha256", "string"), ("url", "string"))

# What Python does not know. IANA's registry has the first three, the rest are in common use.
_MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".tif": "image/tiff",
    ".zip": "application/zip",  # .zarr.zip too
    ".h5": "application/x-hdf5",
    ".hdf5": "application/x-hdf5",
    ".nc": "application/x-netcdf",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".star": "text/plain",
    ".mrc": "application/octet-stream",
    ".mrcs": "application/octet-stream",
    ".tsv": "text/tab-separated-values",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
_PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_TYPES = mimetypes.MimeTypes(filenames=())  # not those of this machine: the same everywhere


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What `init` wrote.

    Attributes
    ----------
    path
        The descriptor.
    files, bytes
        How many are described, and their size. [1], [B]
    notes
        What a person should know of it.
    needed
        What a person still has to say, each with the option for it.
    """

    path: Path
    name: str
    version: str
    files: int
    bytes: int
    notes: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What became of the files since the descriptor was written: paths."""

    added: list[str]
    changed: list[str]
    removed: list[str]

    def bump(self, version: str) -> str:
        """Count a version up; a pre-release goes to the release that it comes before."""
        core, _, preview = version.partition("+")[0].partition("-")
        major, minor, patch = map(int, core.split("."))
        if self.changed or self.removed:
            return core if preview and not (minor or patch) else f"{major + 1}.0.0"
        if self.added:
            return core if preview and not patch else f"{major}.{minor + 1}.0"
        return version

    def __str__(self) -> str:
        kinds = {"added": self.added, "changed": self.changed, "removed": self.removed}
        told = [f"{len(paths)} {kind} ({_some(paths)})" for kind, paths in kinds.items() if paths]
        return ", ".join(told) or "the files are the same"


def init(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    update: bool = False,
    force: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    **about: Unpack[About],
) -> Draft:
    """Describe files as a data package: write ``datapackage.json``, and long lists beside it.

    Parameters
    ----------
    folder
        The package folder.
    source
        Where the files lie; None: in `folder` itself.
    update
        Take in what was added, changed and removed since; what a person wrote stays.
    force
        Describe more than 20,000 files.
    **about
        See `About`. An update changes what is given and keeps the rest.

    Raises
    ------
    UsageError
        No folder, nothing in it, files that can't go into a package, or a descriptor that is there
        without `update`; every file is named at once.
    DescriptorError
        What would be written, or is to be updated, is not sound.
    SpaceError
        The disk refuses.
    """
    package = Path(folder)
    chosen = settings or load_settings()
    before = _before(package, update=update)
    root = _root(package, source)
    old = {each.resource.path: each for each in stated(before, package)}
    found = _look(root, package, before, about.get("subset", ""))
    _refuse(root, _number_faults(found, force=force) or found.faults)
    measured, faults = measure(found.files, chosen.jobs, progress)
    _refuse(root, faults)
    resources, change = _merge(before, old, measured)
    tree = _tree(package, before, about, change)
    away = [] if _same(root, package) else [f"the files lie in {root}"]
    notes = [*away, *_left_out(found), *_remarks(tree, before, change, resources)]
    lists = _describe(tree, resources, old, found, notes)
    missing = _unsound(package / DESCRIPTOR, tree)
    _write(package, tree, before, lists)
    notes += _drop_lists(package, before, lists)
    _note_root(package, root)
    return Draft(
        path=package / DESCRIPTOR,
        name=tree["name"],
        version=tree["version"],
        files=len(resources),
        bytes=sum(resource.bytes for resource in resources),
        notes=tuple(notes),
        needed=tuple(f"{key}: {_NEEDED[key]}" for key in missing),
    )


# --- what is there --------------------------------------------------------------------------------


def _before(package: Path, *, update: bool) -> dict[str, Any]:
    """Return the descriptor to update, which must be sound but for what a person still owes."""
    path = package / DESCRIPTOR
    if update != path.exists():
        cure = "leave out --update" if update else "add --update to take in what changed"
        message = f"{path}: {'not there yet' if update else 'there already'}; {cure}"
        raise UsageError(message)
    there = next(each for each in (package, *package.absolute().parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        message = f"{there}: can't be written; describe into another folder and add --from"
        raise UsageError(message)
    if not update:
        return {}
    with path.open("rb") as file:
        tree = decode(file.read(MAX_BYTES + 1), str(path))
    _unsound(path, tree)
    for name in list_paths(tree):
        if found := list_problems(read_beside(package / name), None):
            raise DescriptorError(str(package / name), found)
    return dict(tree)


def _unsound(path: Path, tree: Any) -> list[str]:
    """Refuse a descriptor with problems; return what a person still has to say."""
    found = problems(tree, None)
    missing = [each.place for each in found if each.place in _NEEDED and each.message == "missing"]
    if rest := [each for each in found if each.place not in missing]:
        raise DescriptorError(str(path), rest)
    return missing


def _root(package: Path, source: str | Path | None) -> Path:
    root = Path(source) if source is not None else files_folder(package)
    if not root.is_dir():
        cure = "name the folder of your files" if source else "make it, or add --from and a folder"
        message = f"{root}: no such folder; {cure}"
        raise UsageError(message)
    return root


def _look(root: Path, package: Path, before: Mapping[str, Any], subset: str) -> Scan:
    known = [
        name
        for name, entry in before.get("scibench", {}).get("subsets", {}).items()
        if not is_elsewhere(entry)
    ]
    return scan(root, package=package, subset=subset, known=known, lists=list_paths(before))


def _number_faults(found: Scan, *, force: bool) -> list[str]:
    count = len(found.files)
    if not count and not found.faults:
        links = f", only links: {_some(found.links)}" if found.links else ""
        return [f"no files{links}; put files there, or name their folder with --from"]
    if count > TOO_MANY and not force:
        inodes = f"{count:,} files, {count * _INODES_PER_FILE:,} inodes on every machine"
        return [f"{inodes}; pack them into fewer files, or add --force"]
    return []


def _refuse(root: Path, faults: Sequence[str]) -> None:
    if not faults:
        return
    if len(faults) == 1:
        message = f"{root}: {faults[0]}"
        raise UsageError(message)
    more = f"\n  and {len(faults) - _TOLD:,} more" if len(faults) > _TOLD else ""
    lines = "".join(f"\n  {fault}" for fault in faults[:_TOLD])
    message = f"{root}: {len(faults):,} things keep it from being a package; put them right{lines}"
    raise UsageError(message + more)


# --- what a person should know --------------------------------------------------------------------


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(path if path.isprintable() else repr(path) for path in paths[:3])
    return f"{shown}, ..." if len(paths) > 3 else shown


def _left_out(found: Scan) -> Iterator[str]:
    hidden = [name for name in found.hidden if name != BESIDE]
    for what, names in {
        "hidden": hidden,
        "links or devices, which are not followed": found.links,
        "about the whole, not data": found.documents,
    }.items():
        if names:
            yield f"left out, {what}: {_some(names)} ({len(names):,})"


def _remarks(
    tree: Mapping[str, Any],
    before: Mapping[str, Any],
    change: _Change,
    resources: Sequence[Resource],
) -> Iterator[str]:
    counted: dict[str, int] = {}
    for resource in resources:
        counted[resource.subset] = counted.get(resource.subset, 0) + 1
    for subset, count in counted.items():
        listed = f", listed in {subset}/manifest.csv" if count > LISTED else ""
        yield f"subset {subset}: {count:,} files{listed}"
    if before:
        was, now = before["version"], tree["version"]
        yield f"version {was}{f' -> {now}' if now != was else ' stays'}: {change}"
    if len(resources) > COSTLY:
        inodes = f"{len(resources) * _INODES_PER_FILE:,} inodes on every machine that gets them"
        yield f"{len(resources):,} files cost {inodes}; fewer, larger files are faster to get"
    if tree["name"] in catalog.shipped_names():
        yield f"{tree['name']} is the name of a package that ships with scibench-data; use another"


# --- what is written ------------------------------------------------------------------------------


def _merge(
    before: Mapping[str, Any],
    old: Mapping[str, Stated],
    measured: Mapping[str, Measured],
) -> tuple[list[Resource], _Change]:
    """Put together the files that are here and those that only have a source."""
    subsets = before.get("scibench", {}).get("subsets", {})
    change = _Change(added=[path for path in measured if path not in old], changed=[], removed=[])
    resources = []
    for path, each in old.items():
        new = measured.get(path)
        if new is None:
            if each.resource.sources or is_elsewhere(subsets.get(each.resource.subset, {})):
                resources.append(each.resource)
            else:
                change.removed.append(path)
            continue
        known = each.resource.sha256 or new.sha256  # unknown before is not changed now
        if known != new.sha256:
            change.changed.append(path)
        resources.append(replace(each.resource, bytes=new.bytes, sha256=new.sha256, exact=True))
    change.added.sort()
    for path in change.added:
        new = measured[path]
        subset = path.split("/")[0]
        resources.append(
            Resource(name="", path=path, bytes=new.bytes, sha256=new.sha256, subset=subset)
        )
    return resources, change


def _tree(
    package: Path, before: Mapping[str, Any], about: About, change: _Change
) -> dict[str, Any]:
    """Write all of the descriptor but its resources."""
    told = said(about)
    if before:
        version = told.pop("version", change.bump(before["version"]))
        tree = {**before, **told, "version": version}
        ours = dict(before["scibench"])
    else:
        name = told.get("name") or _name(package)
        tree = {"$schema": _SCHEMA, "version": _FIRST, **told, "name": name}
        ours = {"profile": 1, "uuid": str(uuid.uuid4()), "released": "", "subsets": {}}
    if tree["version"] != before.get("version"):
        ours["released"] = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return {**{key: tree[key] for key in _ORDER if key in tree}, **tree, "scibench": ours}


def _name(package: Path) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", package.resolve().name.lower()).strip("_")[:64]
    name = re.sub(r"^[0-9_]+", "", plain)
    if not name:
        message = f"{package}: its name can't be that of a package; add --name"
        raise UsageError(message)
    return name


def _describe(
    tree: dict[str, Any],
    resources: Sequence[Resource],
    old: Mapping[str, Stated],
    found: Scan,
    notes: list[str],
) -> dict[str, bytes]:
    """Write resources and subsets into the descriptor; return the lists of files."""
    before = tree["scibench"]["subsets"]
    by_subset: dict[str, list[Resource]] = {
        name: [] for name, entry in before.items() if is_elsewhere(entry)
    }
    for resource in sorted(resources, key=lambda each: each.subset):
        by_subset.setdefault(resource.subset, []).append(resource)
    order = [*(name for name in before if name in by_subset), *sorted(by_subset.keys() - before)]
    tree["scibench"]["subsets"] = {name: before.get(name, {"title": name}) for name in order}
    entries, lists = [], {}
    for name in order:
        alone, listed = _divide(by_subset[name], old)
        entries += [_entry(each, old, found.files.get(each.path), notes) for each in alone]
        if listed:
            path = f"{name}/manifest.csv"
            lists[path] = write_list(sorted(listed, key=lambda each: each.path))
            entries.append(_list_entry(name, path, lists[path]))
    _refuse(found.root, [f"{path!r}: the name of the list of files; rename it"
                         for path in lists if path in found.files])  # fmt: skip
    _give_names(entries)
    tree["resources"] = entries
    tree["scibench"] = tree.pop("scibench")
    return lists


def _divide(
    files: Sequence[Resource], old: Mapping[str, Stated]
) -> tuple[Sequence[Resource], Sequence[Resource]]:
    """Put many files into a list, but those of which a person said more than a list can hold."""
    if len(files) <= LISTED:
        return files, ()
    alone = [r for r in files if r.path in old and old[r.path].entry.keys() - _PLAIN_KEYS]
    kept = {resource.path for resource in alone}
    return alone, [resource for resource in files if resource.path not in kept]


def _entry(
    resource: Resource, old: Mapping[str, Stated], file: Path | None, notes: list[str]
) -> dict[str, Any]:
    before = old[resource.path].entry if resource.path in old else {}
    facts: dict[str, Any] = {"bytes": resource.bytes} if resource.exact else {}
    if resource.sha256:
        facts["hash"] = f"sha256:{resource.sha256}"
    if before:
        if before.get("hash") not in {None, facts.get("hash")} and resource.sources:
            notes.append(f"{resource.path}: changed; its sources may still have the old bytes")
        return {**before, **facts}
    entry = {"name": "", "path": resource.path, "mediatype": mediatype(resource.path), **facts}
    if file is not None and file.suffix.lower() in tables.SUFFIXES:
        keys, reason = tables.infer(file)
        entry |= keys
        if reason:
            notes.append(f"{resource.path}: left without a table schema: {reason}")
    sources = {"sources": list(resource.sources)} if resource.sources else {}
    return {**entry, "scibench": {"subset": resource.subset, **sources}}


def mediatype(path: str) -> str:
    """Return the media type that a file's name tells of, the same on every machine.

    Examples
    --------
    >>> mediatype("a/b.csv"), mediatype("a.csv.gz"), mediatype("a.zarr.zip")
    ('text/csv', 'application/gzip', 'application/zip')
    """
    own = _MEDIA_TYPES.get(PurePosixPath(path).suffix.lower())
    kind, packed = _TYPES.guess_type(PurePosixPath(path).name)
    return own or _PACKED.get(packed or "") or kind or "application/octet-stream"


def _list_entry(subset: str, path: str, content: bytes) -> dict[str, Any]:
    return {
        "name": f"{subset}-manifest",
        "path": path,
        "type": "table",
        "mediatype": "text/csv",
        "bytes": len(content),
        "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "schema": {"fields": [{"name": name, "type": kind} for name, kind in _LIST_FIELDS]},
        "scibench": {"subset": subset, "lists": "files"},
    }


def _give_names(entries: Sequence[dict[str, Any]]) -> None:
    """Name the new resources after their paths, each differently."""
    taken = {entry["name"] for entry in entries}
    for entry in entries:
        if entry["name"]:
            continue
        plain = re.sub(r"[^a-z0-9._-]+", "-", entry["path"].lower().replace("/", "-"))[:120]
        choices = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
        entry["name"] = next(name for name in choices if name not in taken)
        taken.add(entry["name"])


def _write(
    package: Path, tree: dict[str, Any], before: Mapping[str, Any], lists: Mapping[str, bytes]
) -> None:
    """Write lists and descriptor, the descriptor last; what is the same stays untouched."""
    for path, content in lists.items():
        if not _has(package / path, hashlib.sha256(content).hexdigest()):
            write_whole(package / path, content, replace=True)
    if tree == before:
        return
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    try:
        write_whole(package / DESCRIPTOR, text.encode(), replace=bool(before))
    except FileExistsError as error:
        message = f"{package / DESCRIPTOR}: appeared meanwhile; look at it, then use --update"
        raise UsageError(message) from error


def _has(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(path) == sha256
    except OSError:
        return False


def _drop_lists(
    package: Path, before: Mapping[str, Any], lists: Mapping[str, bytes]
) -> Iterator[str]:
    """Delete lists that nobody names any more; one that a person edited is left."""
    for _, entry in resource_entries(before):
        path = entry["path"]
        if "lists" not in entry["scibench"] or path in lists or not (package / path).exists():
            continue
        if _has(package / path, entry["hash"].removeprefix("sha256:")):
            (package / path).unlink()
        else:
            yield f"{path}: a list that is not used any more and was edited; delete it"


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _note_root(package: Path, root: Path) -> None:
    """Note where the files lie, for `add` and the next update."""
    if _same(root, package):
        (package / BESIDE).unlink(missing_ok=True)
        return
    inner = os.path.relpath(root.resolve(), package.resolve())
    write_whole(package / BESIDE, json.dumps({"files": inner}).encode(), replace=True)
