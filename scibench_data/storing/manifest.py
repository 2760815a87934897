"""What the folder of a store holds: every file with its SHA-256, and whether it is still so.

::

    <name>-<id>/data.zarr/       the group; any Zarr v3 reader opens it
                manifest.json    canonical JSON: identity, digest, arrays, files
                manifest.sha256  the manifest's SHA-256, as ``sha256sum -c`` reads it
                stamps.json      size, inode and time of each file when it was last hashed

A manifest shows that bytes are those that were written, not that they were right.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scibench_data import durable, provenance
from scibench_data.durable import Stamp
from scibench_data.errors import IntegrityError
from scibench_data.progress import Progress

GROUP = "data.zarr"
MANIFEST = "manifest.json"
SUM = "manifest.sha256"
STAMPS = "stamps.json"
_TYPE = "scibench-store-manifest/1"
_NAMED = 5  # damaged files that a message names


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the group; `path` is relative to the store's folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The list of what a store holds, and from what it was made.

    Attributes
    ----------
    identity
        All that determines what the store holds: dataset, version, commit, layout and the like.
    digest
        The logical digest of all arrays.
    arrays
        Of each array: dims, shape, dtype, logical digest, rows in a chunk and in a shard, codec.
    files
        Sorted by the bytes of their paths, each once.
    """

    identity: Mapping[str, Any]
    digest: str
    arrays: Mapping[str, Any]
    files: tuple[File, ...]

    @property
    def content(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return provenance.canonical(
            {
                "type": _TYPE,
                "identity": self.identity,
                "digest": self.digest,
                "arrays": self.arrays,
                "files": [vars(file) for file in self.files],
            }
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of ``manifest.json``: the digest of all bytes of the store."""
        return hashlib.sha256(self.content).hexdigest()


def damaged(folder: Path, problems: Iterable[str]) -> IntegrityError:
    """Return the error of a store that isn't what its manifest says."""
    found = list(problems)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return IntegrityError(
        f"{folder}: {', '.join(found[:_NAMED])}{more}; run 'scibench-data materialize' again, "
        f"which sets a damaged store aside and writes it anew, or remove it with 'rm -r {folder}'"
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest and sum, whole and flushed."""
    durable.write_whole(folder / MANIFEST, manifest.content)
    durable.write_whole(folder / SUM, f"{manifest.sha256}  {MANIFEST}\n".encode())


def _parse(content: bytes) -> Manifest:
    tree = json.loads(content)
    files = tuple(File(**file) for file in tree["files"])
    typed = (
        isinstance(tree["identity"], dict)
        and isinstance(tree["digest"], str)
        and isinstance(tree["arrays"], dict)
        and all(isinstance(array, dict) for array in tree["arrays"].values())
        and all(isinstance(text, str) for file in files for text in (file.path, file.sha256))
        and all(type(file.size) is int and file.size >= 0 for file in files)
    )
    if not typed:
        message = "a value of another type"
        raise TypeError(message)
    paths = [file.path.encode() for file in files]
    if any(one >= next_one for one, next_one in itertools.pairwise(paths)):
        message = "files not in order"
        raise ValueError(message)
    return Manifest(
        identity=tree["identity"], digest=tree["digest"], arrays=tree["arrays"], files=files
    )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store.

    Raises
    ------
    IntegrityError
        It or its sum is missing, changed, or not a manifest.
    """
    content = {}
    for name in (MANIFEST, SUM):
        try:
            with durable.open_regular(folder / name) as file:
                content[name] = file.read()
        except OSError as error:
            raise damaged(folder, [f"{name}: {error.strerror}"]) from error
    sha256 = hashlib.sha256(content[MANIFEST]).hexdigest()
    if content[SUM] != f"{sha256}  {MANIFEST}\n".encode():
        raise damaged(folder, [f"{MANIFEST}: got SHA-256 {sha256}, {SUM} has another"])
    try:
        manifest = _parse(content[MANIFEST])
        canonical = manifest.content == content[MANIFEST]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(folder, [f"{MANIFEST}: not readable ({error})"]) from error
    if not canonical:
        raise damaged(folder, [f"{MANIFEST}: expected canonical JSON of type {_TYPE!r}"])
    return manifest


def _walk(folder: Path) -> set[str]:
    """Return the paths of all that a store's folder holds; follows no link.

    Folders count where they are empty, with a ``/`` at their end. At the top only the group is
    entered, and what belongs there is left out; hidden files there are writes that broke off.
    """
    found: set[str] = set()
    ours = {MANIFEST, SUM, STAMPS}
    folders = [""]
    while folders:
        below = folders.pop()
        empty = True
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / below) as entries:
            for entry in entries:
                empty = False
                path = f"{below}{entry.name}"
                if not below and (path in ours or path.startswith(".")):
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    found.add(path)
                elif below or path == GROUP:
                    folders.append(f"{path}/")
                else:
                    found.add(f"{path}/")
        if below and empty:
            found.add(below)
    return found


def _hash(folder: Path, files: Mapping[str, File], progress: Progress) -> dict[str, Stamp | str]:
    """Hash files now; one that can't be read gives the reason."""

    def look(path: str) -> Stamp | str:
        try:
            return durable.stamp(folder / path)
        except OSError as error:
            return error.strerror or str(error)

    looks: dict[str, Stamp | str] = {}
    done, total = 0, sum(file.size for file in files.values())
    with progress.task(f"check {folder.name}", total) as task, ThreadPoolExecutor() as pool:
        for file, seen in zip(files.values(), pool.map(look, files), strict=True):
            looks[file.path] = seen
            done += file.size
            task.update(done)
    return looks


def compare(
    folder: Path, manifest: Manifest, stamps: Mapping[str, Stamp], progress: Progress
) -> tuple[list[str], dict[str, Stamp]]:
    """Hold the files against the manifest; hash those whose stamp doesn't vouch for them.

    Returns what is wrong, each with the file's path, and new stamps of the files that were hashed.
    """
    promised = {file.path: file for file in manifest.files}
    for place, name in ((folder, folder.name), (folder / GROUP, GROUP)):
        if place.is_symlink():
            return [f"{name}: not a folder but a link"], {}
    found = _walk(folder)
    problems = [f"{path}: missing" for path in promised if path not in found]
    problems += [f"{path}: not in the manifest" for path in sorted(found) if path not in promised]

    def known(file: File) -> bool:
        seen = stamps.get(file.path)
        alike = seen is not None and (seen.sha256, seen.size) == (file.sha256, file.size)
        return alike and seen is not None and seen.still(folder / file.path)

    unsure = {path: file for path, file in promised.items() if path in found and not known(file)}
    looks = _hash(folder, unsure, progress) if unsure else {}
    for path, seen in looks.items():
        if isinstance(seen, str):
            problems.append(f"{path}: {seen}")
        elif seen.sha256 != promised[path].sha256:
            problems.append(f"{path}: got SHA-256 {seen.sha256}, expected {promised[path].sha256}")
        elif seen.size != promised[path].size:
            problems.append(f"{path}: got {seen.size} bytes, expected {promised[path].size}")
    return problems, {path: seen for path, seen in looks.items() if isinstance(seen, Stamp)}
