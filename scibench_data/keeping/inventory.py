"""What lies in a cache, how much of the disk it takes, who uses it and since when nobody did.

Nothing is changed here. Sizes are those on the disk (stat(2): ``st_blocks``), a file with several
names counted once; blocks that a file shares with another by reflink can't be told, and count for
each. Settings, registered packages, descriptors, locks and runs are not listed.
"""

import contextlib
import datetime as dt
import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scibench_data import catalog, usage
from scibench_data.annexed import build
from scibench_data.annexed.build import NOTES
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.errors import IntegrityError, ScibenchError
from scibench_data.getting import holdings
from scibench_data.storing.manifest import MANIFEST, read_manifest

Kind = Literal["dataset", "derived", "store", "staging", "partial", "quarantine", "leftover"]

_INCOMING = (Path(".git/annex/tmp"), NOTES / "incoming")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing in the cache.

    Attributes
    ----------
    kind
        ``derived``: a dataset of a version made on this machine; ``staging``: work that goes on or
        was cut off; ``partial``: downloads of a dataset that are not finished; ``leftover``: what a
        killed process had begun to delete or to build.
    version
        With the subset, where the entry is of one only.
    bytes
        On the disk; what an entry before it in the list holds too is not counted again. [B]
    files
        Inodes: files, folders and links.
    complete
        It can be used: every subset of a dataset of which something is here is here in full.
    """

    kind: Kind
    name: str
    version: str
    path: Path
    bytes: int
    files: int
    last_used: dt.datetime
    in_use: bool
    complete: bool


# --- sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What a part of the cache takes on the disk.

    Attributes
    ----------
    bytes, files
        Of inodes with one name. [B], [1]
    shared
        Inodes with several names: device and number -> bytes.
    newest
        When one of them was last written, in seconds since 1970. [s]
    """

    bytes: int
    files: int
    shared: Mapping[tuple[int, int], int]
    newest: float


def measure(paths: Iterable[Path], skipped: Iterable[Path] = ()) -> Size:
    """Add up what `paths` and all below them take, without what is below `skipped`."""
    size = files = 0
    newest = 0.0
    shared = {}
    passed = set(map(str, skipped))
    pending = [str(path) for path in paths]
    while pending:
        place = pending.pop()
        if place in passed:
            continue
        with contextlib.suppress(OSError):  # it may go while we look, or be another user's
            look = os.lstat(place)
            newest = max(newest, look.st_mtime)
            folder = stat.S_ISDIR(look.st_mode)
            if look.st_nlink > 1 and not folder:
                shared[look.st_dev, look.st_ino] = look.st_blocks * 512
            else:
                size += look.st_blocks * 512
                files += 1
            if folder:
                with os.scandir(place) as inside:
                    pending += [entry.path for entry in inside]
    return Size(size, files, shared, newest)


# --- things ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing found in the cache at `home`.

    Attributes
    ----------
    paths
        What it consists of; not all of them need exist.
    locks
        File names in ``locks`` of what guards it.
    skipped
        What lies below its paths and is an item of its own.
    """

    home: Path
    kind: Kind
    name: str
    paths: tuple[Path, ...]
    version: str = ""
    subset: str = ""
    locks: tuple[str, ...] = ()
    skipped: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """The folder that stands for it."""
        return self.paths[0]

    @property
    def is_dataset(self) -> bool:
        """It is a dataset, of a released version or of one made here."""
        return self.kind in {"dataset", "derived"}

    @property
    def title(self) -> str:
        """What a user calls it: the argument of a command, where there is one."""
        version = f"@{self.version}" if self.version else ""
        return f"{self.name}{version}" + (f":{self.subset}" if self.subset else "")

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The version that a dataset or store is of; None where nobody knows it any more."""
        try:
            release = catalog.find_release(self.name, self.version, self.home)
            package = release.read()
        except (ScibenchError, OSError):
            return None
        subset = self.subset or package.default_subset
        return Reference(release=release, package=package, subset=subset)

    @functools.cached_property
    def content(self) -> dict[str, tuple[list[Resource], int]]:
        """Of each subset of a dataset, the files that are here, and how many it has."""
        found: dict[str, tuple[list[Resource], int]] = {}
        package = self.reference.package if self.reference else None
        for name in package.subsets if package else ():
            resources = holdings.settled(self.path, package.resources_of(name)) if package else ()
            here = [each for each in resources if self._is_here(each)]
            found[name] = (here, len(resources))
        return found

    def _is_here(self, resource: Resource) -> bool:
        return holdings.size_of(build.object_path(self.path, resource)) is not None

    @property
    def here(self) -> list[Resource]:
        """The files of a dataset that have content."""
        return [resource for resources, _ in self.content.values() for resource in resources]

    @property
    def complete(self) -> bool:
        """See `Entry`."""
        if self.kind == "store":
            return (self.path / MANIFEST).is_file()
        if not self.is_dataset or not holdings.is_built(self.path):
            return False
        whole = all(len(here) in {0, count} for here, count in self.content.values())
        return whole and bool(self.here)

    @property
    def in_use(self) -> bool:
        """A process reads it or works on it."""
        return usage.in_use(self.home, self.path) or any(
            usage.is_locked(self.home / "locks" / name) for name in self.locks
        )

    def entry(self, size: Size, seen: set[tuple[int, int]]) -> Entry:
        """Say of it what a list says; of files in `seen` the size is not counted again."""
        fresh = size.shared.keys() - seen
        seen |= fresh
        used = size.newest
        if self.is_dataset or self.kind == "store":
            used = usage.last_used(self.home, self.path)
        return Entry(
            kind=self.kind,
            name=self.name,
            version=self.version + (f":{self.subset}" if self.subset else ""),
            path=self.path,
            bytes=size.bytes + sum(size.shared[inode] for inode in fresh),
            files=size.files + len(fresh),
            last_used=dt.datetime.fromtimestamp(used, dt.UTC),
            in_use=self.in_use,
            complete=self.complete,
        )


def identity(store: Path) -> Mapping[str, Any]:
    """Return what a store says it was made of; empty where that can't be read."""
    try:
        return read_manifest(store).identity
    except (IntegrityError, OSError):
        return {}


# --- finding --------------------------------------------------------------------------------------


def items(home: Path) -> list[Item]:
    """Find everything that a cache is known to hold; nothing is opened but stores' manifests."""
    datasets = [item for path in _visible(home, "datasets/*/*") for item in _dataset(home, path)]
    stores = [_store(home, path) for path in _visible(home, "stores/*")]
    unfinished = [*_downloads(home), *_unfinished(home)]
    return [*datasets, *stores, *unfinished, *_set_aside(home), *_leftovers(home)]


def _visible(home: Path, pattern: str) -> list[Path]:
    return sorted(path for path in home.glob(pattern) if not path.name.startswith("."))


def _dataset(home: Path, path: Path) -> Iterator[Item]:
    name, version = path.parent.name, path.name
    locks = (f"{name}-{version}.lock",)
    incoming = tuple(path / part for part in _INCOMING if any((path / part).glob("*")))
    yield Item(
        home=home,
        kind="derived" if "+" in version else "dataset",
        name=name,
        version=version,
        paths=(path,),
        locks=locks,
        skipped=incoming,
    )
    if incoming:
        yield Item(
            home=home, kind="partial", name=name, version=version, paths=incoming, locks=locks
        )


def _downloads(home: Path) -> Iterator[Item]:
    for path in sorted(home.glob("datasets/*/.*.incoming")):
        name, version = path.parent.name, path.name[1:].removesuffix(".incoming")
        locks = (f"{name}-{version}.lock",)
        yield Item(
            home=home, kind="partial", name=name, version=version, paths=(path,), locks=locks
        )


def _store(home: Path, path: Path) -> Item:
    made_of = identity(path)
    return Item(
        home=home,
        kind="store",
        name=str(made_of.get("dataset") or path.name.rpartition("-")[0] or path.name),
        version=str(made_of.get("version", "")),
        subset=str(made_of.get("subset", "")),
        paths=(path,),
        locks=(f"{path.name}.lock",),
    )


def _unfinished(home: Path) -> Iterator[Item]:
    staging = home / "staging"
    for name in sorted({path.name.removesuffix(".journal") for path in _visible(staging, "*")}):
        paths = (staging / name, staging / f"{name}.journal")
        locks = (f"{name}.lock", f"{name}.derive.lock")
        yield Item(home=home, kind="staging", name=name, paths=paths, locks=locks)


def _set_aside(home: Path) -> Iterator[Item]:
    for path in _visible(home, "quarantine/*"):
        yield Item(home=home, kind="quarantine", name=path.name, paths=(path,))


def _leftovers(home: Path) -> Iterator[Item]:
    for pattern in ("datasets/*", "packages/*", "stores", "staging", "quarantine"):
        for path in sorted(home.glob(f"{pattern}/.*")):
            match = re.fullmatch(r"\.(.+?)\.(removed|building)(-.*)?", path.name)
            if match:
                whole = f"{path.parent.name}-{match[1]}" if "*" in pattern else match[1]
                locks = (f"{whole}.lock", f"{whole}.derive.lock")
                yield Item(home=home, kind="leftover", name=whole, paths=(path,), locks=locks)
