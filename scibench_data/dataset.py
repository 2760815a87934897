"""From a reference to a DataLad dataset with verified content.

Decide, then act: `plan` looks at the disk, `get` does what is missing. Content comes through
git-annex and is hashed once more here before it is called verified.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scibench_data import annex, durable, transfer
from scibench_data.build import NOTES, build, object_path, read_commit
from scibench_data.catalog import Reference, history
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
    free_bytes, free_inodes
        What the file system of the cache has left.
    """

    reference: Reference
    folder: Path
    built: bool
    missing: tuple[Resource, ...]
    unsure: tuple[Resource, ...]
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
        return self.built and not self.missing and not self.unsure


def swhid(commit: str) -> str:
    """Write a commit as a Software Hash Identifier."""
    return f"swh:1:rev:{commit}"


def dataset_folder(home: Path, package: DataPackage) -> Path:
    """Return where the dataset of a package version lies."""
    return home / "datasets" / package.name / package.version


# --- looking --------------------------------------------------------------------------------------


def _stamps_path(folder: Path) -> Path:
    return folder / NOTES / "stamps.json"


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
        there = path.is_file() and path.stat().st_size == resource.bytes
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
    stamps = {} if check else durable.read_stamps(_stamps_path(folder))
    missing, unsure = _look(folder, resources, stamps)
    place = settings.home
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    return Plan(
        reference=reference,
        folder=folder,
        built=(folder / NOTES / "commit").is_file(),
        missing=tuple(missing),
        unsure=tuple(unsure),
        free_bytes=disk.f_bavail * disk.f_frsize,
        free_inodes=disk.f_favail if disk.f_files else 1 << 62,
    )


def _refuse_impossible(plan: Plan, settings: Settings) -> None:
    place = settings.home
    if plan.bytes > plan.free_bytes:
        message = (
            f"{place}: {plan.bytes:,} bytes to write, {plan.free_bytes:,} free; free some space "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
        raise SpaceError(message)
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
    if not first.nothing_to_do:
        _refuse_impossible(first, settings)
        name = f"{reference.package.name}-{reference.package.version}.lock"
        with (
            durable.disk_errors(settings.home),
            durable.lock(settings.home / "locks" / name, settings.lock_timeout),
        ):
            if not first.built:
                _ensure_built(reference, folder)
            _complete(reference, settings, check=check, progress=progress)
    return _existing(reference, folder)


def adopt(
    reference: Reference,
    versions: Sequence[DataPackage],
    contents: Mapping[str, Path],
    settings: Settings,
) -> None:
    """Build a dataset and move files that are already on this disk into it, by their checksum.

    Parameters
    ----------
    versions
        The dataset's history, oldest first.
    contents
        Resource path -> file, which must have the resource's bytes.

    Raises
    ------
    IntegrityError
        A file is not what the descriptor says.
    """
    folder = dataset_folder(settings.home, reference.package)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        build(folder, versions)
    files = [str(path) for path in contents.values()]
    for start in range(0, len(files), transfer.ARGUMENTS):
        words = ("reinject", "--known", "--", *files[start : start + transfer.ARGUMENTS])
        for _ in annex.stream_annex(*words, cwd=folder):
            pass
    refused, _ = _look(folder, [reference.package.resource(path) for path in contents], {})
    absent = [r.path for r in refused if not object_path(folder, r).is_file()]
    if absent:
        message = f"{contents[absent[0]]}: not the bytes of {absent[0]}; take the right file"
        raise IntegrityError(message)
    durable.flush_filesystem(folder)


def _ensure_built(reference: Reference, folder: Path) -> None:
    if (folder / NOTES / "commit").is_file():
        return
    if folder.exists():
        message = (
            f"{folder}: not a dataset of ours, but it has the place of {reference}; "
            "move it away and try again"
        )
        raise IntegrityError(message)
    folder.parent.mkdir(parents=True, exist_ok=True)
    build(folder, history(reference.release))


def _existing(reference: Reference, folder: Path) -> Dataset:
    if (folder / "datapackage.json").read_bytes() != reference.package.text:
        name = f"{reference.package.name}@{reference.package.version}"
        message = (
            f"{folder / 'datapackage.json'}: differs from the released descriptor of {name}; "
            f"run: scibench-data remove {name}, then get it again"
        )
        raise IntegrityError(message)
    return Dataset(reference=reference, folder=folder, commit=read_commit(folder))


def find(reference: Reference, settings: Settings) -> Dataset:
    """Return the dataset with its content as it lies on the disk.

    Raises
    ------
    NotFoundError
        It, or part of its content, is not there.
    """
    look = plan(reference, settings)
    if not look.built or look.missing:
        message = f"{reference}: not complete in {look.folder}; run: scibench-data get {reference}"
        raise NotFoundError(message)
    return _existing(reference, look.folder)


def _complete(reference: Reference, settings: Settings, *, check: bool, progress: Progress) -> None:
    now = plan(reference, settings, check=check)
    _recover(now.folder)
    stamps = durable.read_stamps(_stamps_path(now.folder))
    wanted = [*now.missing, *_hash(now.folder, now.unsure, stamps, progress)]
    if wanted:
        for resource in wanted:
            _set_aside(now.folder, resource)
        busy = now.folder / NOTES / "busy"
        durable.write_whole(busy, _boot().encode(), replace=True)
        transfer.fetch(now.folder, reference, wanted, settings, progress)
        still_bad = _hash(now.folder, wanted, stamps, progress)
        if still_bad:
            message = (
                f"{still_bad[0].path}: content differs from its published SHA-256 "
                f"{still_bad[0].sha256}; report it: this version can't be had from its sources"
            )
            raise IntegrityError(message)
        durable.flush_filesystem(now.folder)
        busy.unlink()
    durable.write_stamps(_stamps_path(now.folder), stamps)


def _hash(
    folder: Path, resources: Sequence[Resource], stamps: dict[str, Stamp], progress: Progress
) -> list[Resource]:
    """Hash content into `stamps`; return the resources whose content is absent or wrong."""
    bad = []
    done = 0
    with progress.task("check", sum(resource.bytes for resource in resources)) as task:
        for resource in resources:
            path = object_path(folder, resource)
            stamp = durable.stamp(path) if path.is_file() else None
            if stamp and stamp.sha256 == resource.sha256:
                stamps[resource.key] = stamp
            else:
                stamps.pop(resource.key, None)
                bad.append(resource)
            done += resource.bytes
            task.update(done, note=resource.path)
    return bad


@contextlib.contextmanager
def keeping_stamps(dataset: Dataset) -> Iterator[None]:
    """Renew stamps after what only adds a name to an object, as a hard link does."""
    stamps = durable.read_stamps(_stamps_path(dataset.folder))
    known = [(r.key, dataset.object(r)) for r in dataset.resources if r.key in stamps]
    sure = [(key, path) for key, path in known if stamps[key].still(path)]
    yield
    renewed = {
        key: durable.stamp(path, stamps[key].sha256)
        for key, path in sure
        if not stamps[key].still(path)
    }
    if renewed:
        with contextlib.suppress(SpaceError):
            durable.write_stamps(_stamps_path(dataset.folder), stamps | renewed)


def forget_stamp(folder: Path, resource: Resource) -> None:
    """Make the next `get` hash a resource again, whatever its size and time say."""
    stamps = durable.read_stamps(_stamps_path(folder))
    if stamps.pop(resource.key, None):
        durable.write_stamps(_stamps_path(folder), stamps)


def _set_aside(folder: Path, resource: Resource) -> None:
    """Move a damaged object, if there is one, to ``.git/annex/bad``, as ``git annex fsck`` does."""
    path = object_path(folder, resource)
    if not path.exists():
        return
    path.parent.chmod(0o755)
    aside = folder / ".git/annex/bad" / resource.key
    aside.parent.mkdir(exist_ok=True)
    path.replace(aside)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _recover(folder: Path) -> None:
    """Clear what a power cut during `get` can leave: empty journal files, dead locks, partials."""
    busy = folder / NOTES / "busy"
    if not busy.exists() or busy.read_text(encoding="ascii") == _boot():
        return
    for path in (folder / ".git/annex/journal").glob("*"):
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
    for path in (folder / ".git").rglob("*.lock"):
        path.unlink()
    for path in (folder / ".git/annex/tmp").glob("*"):
        if path.is_file():
            path.unlink()
    busy.unlink()


def remove(reference: Reference, settings: Settings) -> int:
    """Delete a version's dataset from the cache and return the bytes that were in it.

    Raises
    ------
    NotFoundError
        It is not there.
    """
    folder = dataset_folder(settings.home, reference.package)
    if not folder.exists():
        message = (
            f"{reference.package.name}@{reference.package.version}: not in {folder}; nothing to do"
        )
        raise NotFoundError(message)
    name = f"{reference.package.name}-{reference.package.version}.lock"
    with durable.lock(settings.home / "locks" / name, settings.lock_timeout):
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        gone = folder.with_name(f".{folder.name}.removed")
        if gone.exists():
            durable.remove_tree(gone)
        folder.rename(gone)
        durable.remove_tree(gone)
    return size
