"""From a reference to a DataLad dataset with verified content.

Decide, then act: `plan` looks at the disk, `get` does what is missing. Content comes through
git-annex and is hashed once more here before it is called verified.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scibench_data import build as building
from scibench_data import durable, transfer
from scibench_data.build import NOTES, build, object_path
from scibench_data.catalog import Reference, derived_folder, history
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.durable import Stamp
from scibench_data.errors import (
    IntegrityError,
    NetworkError,
    NotFoundError,
    SpaceError,
)
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings
from scibench_data.transfer import has_recipe

_MARGIN = 8 * 2**20  # git's own files, and what git-annex keeps free [B]
_BLOCK = 4096  # what the smallest file or folder takes [B]
_INODES_PER_FILE = 5  # link, object, its two hash folders and its own: counted on a built dataset


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A version of a package on this disk, and one of its subsets with its content.

    Attributes
    ----------
    folder
        The DataLad dataset.
    commit
        Its commit, the same on every machine.
    """

    reference: Reference
    folder: Path
    commit: str

    @property
    def package(self) -> DataPackage:
        """The descriptor."""
        return self.reference.package

    @property
    def subset(self) -> str:
        """The subset that was asked for."""
        return self.reference.subset

    @property
    def path(self) -> Path:
        """The folder with the subset's files."""
        return self.folder / self.subset

    @property
    def swhid(self) -> str:
        """The commit as a Software Hash Identifier (ISO/IEC 18670)."""
        return swhid(self.commit)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """The subset's resources."""
        return self.package.resources_of(self.subset)

    @property
    def bytes(self) -> int:
        """Size of the subset. [B]"""
        return sum(resource.bytes for resource in self.resources)

    def object(self, resource: Resource) -> Path:
        """Return where the content of `resource` lies, there or not."""
        return object_path(self.folder, resource)


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
    def inodes(self) -> int:
        """About how many files, folders and links that adds."""
        links = 0 if self.built else 2 * len(self.reference.package.resources) + 60
        return links + _INODES_PER_FILE * len(self.missing)

    @property
    def nothing_to_do(self) -> bool:
        """Everything is there and was hashed."""
        return self.complete and not self.unsure

    @property
    def complete(self) -> bool:
        """Everything is there, hashed or not."""
        return self.built and not self.missing and not self.unlinked


def swhid(commit: str) -> str:
    """Write a commit as a Software Hash Identifier."""
    return f"swh:1:rev:{commit}"


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


def _look(
    folder: Path, resources: Iterable[Resource], stamps: Mapping[str, Stamp]
) -> tuple[list[Resource], list[Resource]]:
    missing: list[Resource] = []
    unsure: list[Resource] = []
    for resource in resources:
        path = object_path(folder, resource)
        known = stamps.get(resource.key)
        if known and known.sha256 == resource.sha256 and known.still(path):
            continue
        there = size_of(path) == resource.bytes
        (unsure if there else missing).append(resource)
    return missing, unsure


def plan(reference: Reference, settings: Settings, *, check: bool = False) -> Plan:
    """Look at the disk and decide what `get` has to do; nothing is changed.

    Parameters
    ----------
    check
        Count all content as not yet hashed.
    """
    package = reference.package
    folder = dataset_folder(settings.home, package)
    resources = package.resources_of(reference.subset)
    with durable.disk_errors(settings.home):
        built = is_built(folder)
        stamps = {} if check else durable.read_stamps(stamps_path(folder))
        missing, unsure = _look(folder, resources, stamps)
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
    known = {resource.path for resource in package.resources}
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


def _refuse_impossible(plan: Plan, settings: Settings) -> None:
    place = settings.home
    if plan.built and not plan.missing:
        return
    refuse_full(place, plan.bytes + _BLOCK * plan.inodes)
    if plan.inodes > plan.free_inodes:
        message = (
            f"{place}: {plan.inodes:,} inodes needed, {plan.free_inodes:,} free; free some files "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
        raise SpaceError(message)
    remote = [resource for resource in plan.missing if not has_recipe(plan.reference, resource)]
    if settings.offline and remote:
        message = (
            f"{plan.reference}: {len(remote)} files are only to be had from the network, and "
            f"offline was asked for ({remote[0].path} first); get them without --offline"
        )
        raise NetworkError(message)


# --- getting --------------------------------------------------------------------------------------


def get(
    reference: Reference,
    settings: Settings,
    *,
    check: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """Build the dataset if need be, fetch or make what is missing, hash what nobody hashed.

    Returns only when every file of the subset has its published SHA-256 and lies on the disk.
    What stands in the place of a link or of an object is moved to ``.git/scibench-data/aside``.

    Parameters
    ----------
    check
        Hash everything again, also what has not changed since it was hashed.

    Raises
    ------
    SpaceError
        Too little disk space or inodes, or a cache that can't be written.
    NetworkError
        A file can't be reached, or only the network has it and offline was asked for.
    IntegrityError
        What came is not what was published.
    LockedError
        Another process works on the same version for too long.
    """
    folder = dataset_folder(settings.home, reference.package)
    first = plan(reference, settings, check=check)
    if not first.nothing_to_do and not _only_hashed(first, progress):
        _refuse_impossible(first, settings)
        with durable.disk_errors(settings.home), locked(reference, settings):
            if not first.built:
                ensure_built(reference, folder)
            _complete(reference, settings, check=check and not first.complete, progress=progress)
    return _existing(reference, folder)


def _only_hashed(look: Plan, progress: Progress) -> bool:
    """Hash what is unsure where nothing else is to do; tell whether all of it is right.

    This takes no lock and needs nothing to be written: a cache can be a copy on a read-only disk.
    """
    if not look.complete:
        return False
    path = stamps_path(look.folder)
    stamps = durable.read_stamps(path)
    bad = _hash(look.folder, look.unsure, stamps, progress)
    with contextlib.suppress(SpaceError):
        durable.write_stamps(path, stamps)
    return not bad


def locked(reference: Reference, settings: Settings) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a version's dataset."""
    package = reference.package
    path = lock_path(settings.home, package.name, package.version)
    return durable.lock(path, settings.lock_timeout)


def ensure_built(reference: Reference, folder: Path, versions: Sequence[DataPackage] = ()) -> None:
    """Build the dataset where it is not built.

    Raises
    ------
    IntegrityError
        Something else has its place.
    """
    if is_built(folder):
        return
    if os.path.lexists(folder):
        message = (
            f"{folder}: not a dataset of ours, but it has the place of {reference}; "
            "move it away and try again"
        )
        raise IntegrityError(message)
    folder.parent.mkdir(parents=True, exist_ok=True)
    build(folder, versions or history(reference.release))


def _existing(reference: Reference, folder: Path) -> Dataset:
    _must_be_sound(reference, folder)
    return Dataset(reference=reference, folder=folder, commit=building.read_commit(folder))


def _must_be_sound(reference: Reference, folder: Path) -> None:
    package = reference.package
    what = building.fault(folder, package, reference.release.commit)
    if what:
        name, (base, _, scale) = package.name, package.version.partition("+scale.")
        again = f"scibench-data get {name}@{base} --scale {scale}" if scale else "get it again"
        message = (
            f"{folder}: {what}; run: scibench-data remove {name}@{package.version}, then {again}"
        )
        raise IntegrityError(message)


def find(reference: Reference, settings: Settings) -> Dataset:
    """Return the dataset with its content as it lies on the disk.

    Raises
    ------
    NotFoundError
        It, or part of its content, is not there.
    """
    look = plan(reference, settings)
    if not look.complete:
        message = f"{reference}: not complete in {look.folder}; run: scibench-data get {reference}"
        raise NotFoundError(message)
    return _existing(reference, look.folder)


def _complete(reference: Reference, settings: Settings, *, check: bool, progress: Progress) -> None:
    now = plan(reference, settings, check=check)
    _must_be_sound(reference, now.folder)
    transfer.recover(now.folder)
    for resource in now.unlinked:
        building.restore_link(now.folder, resource)
    stamps = durable.read_stamps(stamps_path(now.folder))
    wanted = [*now.missing, *_hash(now.folder, now.unsure, stamps, progress)]
    if wanted:
        objects = now.folder / ".git/annex/objects"
        for resource in wanted:
            building.set_aside(now.folder, objects, object_path(now.folder, resource))
        with transfer.noted(now.folder):
            transfer.fetch(now.folder, reference, wanted, settings, progress)
            _must_be_right(_hash(now.folder, wanted, stamps, progress))
    durable.write_stamps(stamps_path(now.folder), stamps)


def _must_be_right(bad: Sequence[Resource]) -> None:
    if bad:
        message = (
            f"{bad[0].path}: content differs from its published SHA-256 {bad[0].sha256}; "
            "report it: this version can't be had from its sources"
        )
        raise IntegrityError(message)


def _hash(
    folder: Path, resources: Sequence[Resource], stamps: dict[str, Stamp], progress: Progress
) -> list[Resource]:
    """Hash content into `stamps`; return the resources whose content is absent or wrong."""
    bad = []
    done = 0
    with progress.task("check", sum(resource.bytes for resource in resources)) as task:
        for resource in resources:
            path = object_path(folder, resource)
            stamp = durable.stamp(path) if size_of(path) is not None else None
            if stamp and stamp.sha256 == resource.sha256:
                stamps[resource.key] = stamp
            else:
                stamps.pop(resource.key, None)
                bad.append(resource)
            done += resource.bytes
            task.update(done, note=resource.path)
    return bad


def forget_stamp(folder: Path, resource: Resource) -> None:
    """Make the next `get` hash a resource again, whatever its size and time say."""
    stamps = durable.read_stamps(stamps_path(folder))
    if stamps.pop(resource.key, None):
        durable.write_stamps(stamps_path(folder), stamps)


def remove(reference: Reference, settings: Settings) -> int:
    """Delete a version's dataset from the cache and return the bytes that were in it.

    Of a version that was derived here, the descriptor goes too.

    Raises
    ------
    NotFoundError
        It is not there.
    """
    package = reference.package
    folder = dataset_folder(settings.home, package)
    places = [folder]
    if reference.release.derived:
        places.append(derived_folder(settings.home, package.name, package.version))
    with durable.disk_errors(settings.home):
        _must_be_there(places)  # before the lock too: no lock file for what was never here
        with locked(reference, settings):
            _must_be_there(places)
            size = sum(path.lstat().st_size for path in folder.rglob("*"))
            for place in filter(os.path.lexists, places):
                gone = place.with_name(f".{place.name}.removed-{secrets.token_hex(4)}")
                place.rename(gone)
            for place in places:
                for gone in place.parent.glob(f".{place.name}.removed*"):
                    durable.remove_tree(gone)
    return size


def _must_be_there(places: Sequence[Path]) -> None:
    if not any(map(os.path.lexists, places)):
        message = f"{places[0]}: not in the cache; nothing to do"
        raise NotFoundError(message)
