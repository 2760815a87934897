"""What of a version is on this disk, and what getting the rest would take.

Nothing is changed and nothing is hashed here; sizes, times and notes are looked at.
"""

import dataclasses
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scibench_data import durable
from scibench_data.annexed import build as building
from scibench_data.annexed.build import NOTES, object_path
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.durable import Stamp
from scibench_data.errors import LicenceError, SpaceError
from scibench_data.getting import terms
from scibench_data.settings import Settings

_MARGIN = 8 * 2**20  # git's own files, and what git-annex keeps free [B]
_BLOCK = 4096  # what the smallest file or folder takes [B]
INODES_PER_FILE = 5
"""Link, object, its two hash folders and its own: counted on a built dataset."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `get` would do, decided from a look at the disk.

    Attributes
    ----------
    missing
        Resources with no content, or with content of another size.
    unsure
        Resources with content that nobody hashed since it was last changed.
    unlinked
        Resources whose link in the work tree is gone or leads elsewhere.
    free_bytes, free_inodes
        What the file system of the cache has left.
    """

    reference: Reference
    folder: Path
    built: bool
    missing: tuple[Resource, ...]
    unsure: tuple[Resource, ...]
    unlinked: tuple[Resource, ...]
    free_bytes: int
    free_inodes: int

    @property
    def bytes(self) -> int:
        """What is to be fetched or made. [B]"""
        return sum(resource.bytes for resource in self.missing)

    @property
    def unsized(self) -> int:
        """How many of the missing ones have no published size."""
        return sum(not resource.exact for resource in self.missing)

    @property
    def inodes(self) -> int:
        """About how many files, folders and links that adds."""
        links = 0 if self.built else 2 * len(self.reference.package.resources) + 60
        return links + INODES_PER_FILE * len(self.missing)

    @property
    def nothing_to_do(self) -> bool:
        """Everything is there and was hashed."""
        return self.complete and not self.unsure

    @property
    def complete(self) -> bool:
        """Everything is there, hashed or not."""
        return self.built and not self.missing and not self.unlinked


def inodes(files: int, *, built: bool) -> int:
    """Return about how many files, folders and links a dataset of so many files takes."""
    return (0 if built else 2 * files + 60) + INODES_PER_FILE * files


def dataset_folder(home: Path, package: DataPackage) -> Path:
    """Return where the dataset of a package version lies."""
    return home / "datasets" / package.name / package.version


def lock_path(home: Path, name: str, version: str, what: str = "") -> Path:
    """Return the lock of the work on a version; `what` names work that has a lock of its own."""
    return home / "locks" / f"{name}-{version}{what}.lock"


def is_built(folder: Path) -> bool:
    """Tell whether `folder` is a dataset of ours, with content or without."""
    return (folder / NOTES / "commit").is_file()


# --- looking --------------------------------------------------------------------------------------


def recorded_path(folder: Path) -> Path:
    """Return where a dataset notes sizes and checksums that no publisher gives."""
    return folder / NOTES / "recorded.json"


def read_recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Read path -> ``bytes``, ``sha256``, ``source``, ``date``; empty where nothing is noted."""
    try:
        entries = json.loads(recorded_path(folder).read_bytes())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def settled(folder: Path, resources: Iterable[Resource]) -> tuple[Resource, ...]:
    """Fill in the sizes and checksums that were recorded when the files came here first."""
    resources = tuple(resources)
    if all(resource.sha256 for resource in resources):
        return resources
    recorded = read_recorded(folder)
    return tuple(_settle(resource, recorded.get(resource.path)) for resource in resources)


def _settle(resource: Resource, entry: Any) -> Resource:
    """Fill in what was recorded; an entry that is damaged counts as none."""
    size, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (0, "")
    if resource.sha256 or type(size) is not int or not isinstance(sha256, str) or not sha256:
        return resource
    return dataclasses.replace(resource, bytes=size, sha256=sha256, recorded=True)


def stamps_path(folder: Path) -> Path:
    """Return where a dataset notes which objects were hashed, and what they looked like then."""
    return folder / NOTES / "stamps.json"


def size_of(path: Path) -> int | None:
    """Return the size of a regular file; what else may lie there has none. [B]"""
    try:
        look = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return look.st_size if stat.S_ISREG(look.st_mode) else None


def absent_and_unsure(
    folder: Path, resources: Iterable[Resource], stamps: Mapping[str, Stamp]
) -> tuple[list[Resource], list[Resource]]:
    """Return the resources without content, and those with content that nobody hashed since."""
    missing: list[Resource] = []
    unsure: list[Resource] = []
    for resource in resources:
        path = object_path(folder, resource)
        known = stamps.get(resource.key)
        if known and known.sha256 == resource.sha256 and known.still(path):
            continue
        there = size_of(path) == resource.bytes and resource.sha256
        (unsure if there else missing).append(resource)
    return missing, unsure


def plan(reference: Reference, settings: Settings, *, check: bool = False) -> Plan:
    """Look at the disk and decide what `get` has to do; nothing is changed.

    Parameters
    ----------
    check
        Count all content as not yet hashed.
    """
    folder = dataset_folder(settings.home, reference.package)
    with durable.disk_errors(settings.home):
        built = is_built(folder)
        resources = settled(folder, reference.resources)
        stamps = {} if check else durable.read_stamps(stamps_path(folder))
        missing, unsure = absent_and_unsure(folder, resources, stamps)
        free_bytes, free_inodes = _free(settings.home)
        return Plan(
            reference=reference,
            folder=folder,
            built=built,
            missing=tuple(missing),
            unsure=tuple(unsure),
            unlinked=tuple(building.unlinked(folder, resources)) if built else (),
            free_bytes=free_bytes,
            free_inodes=free_inodes,
        )


def _free(place: Path) -> tuple[int, int]:
    """Return the bytes and inodes that are free where `place` is or will be."""
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else 1 << 62


def foreign_files(folder: Path, package: DataPackage, subset: str) -> list[str]:
    """List what lies in a subset's folder of a dataset and is not in its descriptor.

    Returns
    -------
    list
        Paths within the dataset, sorted; folders count only as what is in them.
    """
    known = {*package.lists, *(resource.path for resource in package.resources)}
    found = []
    for parent, folders, files in os.walk(folder / subset):
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder).as_posix() for name in [*links, *files]]
    return sorted(path for path in found if path not in known)


def refuse_full(place: Path, needed: int) -> None:
    """Raise where the disk has not `needed` bytes free, and a little more, for what git notes.

    Raises
    ------
    SpaceError
        It has not; the message tells both numbers.
    """
    free, _ = _free(place)
    if needed + _MARGIN > free:
        message = (
            f"{place}: {needed + _MARGIN:,} bytes to write, {free:,} free; free some space "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
        raise SpaceError(message)


def refuse_impossible(plan: Plan, settings: Settings) -> None:
    """Raise where what is missing can't be got here at all, before anything is done.

    Raises
    ------
    SpaceError
        The disk has too little space or too few inodes.
    LicenceError
        Terms are to be accepted first, or only people can get the files.
    """
    place, subset = settings.home, plan.reference.package.subsets[plan.reference.subset]
    if plan.missing:
        terms.require(plan.reference, settings)
    if not plan.reference.resources:
        how = subset.needs or "its files are not listed"
        message = f"{plan.reference}: no files that this program can get: {how}; get them there"
        raise LicenceError(message)
    if plan.built and not plan.missing:
        return
    refuse_full(place, plan.bytes + _BLOCK * plan.inodes)
    if plan.inodes > plan.free_inodes:
        message = (
            f"{place}: {plan.inodes:,} inodes needed, {plan.free_inodes:,} free; free some files "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
        raise SpaceError(message)
