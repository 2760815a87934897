"""From a reference to a DataLad dataset with verified content.

Decide, then act: `plan` looks at the disk, `get` does what is missing. Content comes through
git-annex and is hashed once more here before it is called verified.
"""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scibench_data import durable, usage
from scibench_data.annexed import build as building
from scibench_data.annexed import transfer
from scibench_data.annexed.build import build, downloads, object_path
from scibench_data.annexed.transfer import has_recipe
from scibench_data.catalog import Reference, derived_folder, history, variant_of
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.durable import Stamp
from scibench_data.errors import (
    IntegrityError,
    NetworkError,
    NotFoundError,
    SpaceError,
)
from scibench_data.getting.holdings import (
    Plan,
    absent_and_unsure,
    dataset_folder,
    is_built,
    lock_path,
    plan,
    read_recorded,
    recorded_path,
    refuse_impossible,
    settled,
    size_of,
    stamps_path,
)
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings

if TYPE_CHECKING:
    from scibench_data.getting import fetching


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

    @functools.cached_property
    def resources(self) -> tuple[Resource, ...]:
        """The files that were asked for; unpublished ones as they were recorded here."""
        return settled(self.folder, self.reference.resources)

    @property
    def unverified(self) -> tuple[Resource, ...]:
        """The files whose publisher gives no checksum: theirs was recorded here."""
        return tuple(resource for resource in self.resources if not resource.published)

    @property
    def bytes(self) -> int:
        """Size of the files. [B]"""
        return sum(resource.bytes for resource in self.resources)

    def object(self, resource: Resource) -> Path:
        """Return where the content of `resource` lies, there or not."""
        return object_path(self.folder, resource)


def swhid(commit: str) -> str:
    """Write a commit as a Software Hash Identifier."""
    return f"swh:1:rev:{commit}"


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
    if there := at_site(reference, settings, check=check, progress=progress):
        return there
    folder = dataset_folder(settings.home, reference.package)
    with usage.using(settings.home, folder):
        return _get(reference, folder, settings, check=check, progress=progress)


def _get(
    reference: Reference, folder: Path, settings: Settings, *, check: bool, progress: Progress
) -> Dataset:
    first = plan(reference, settings, check=check)
    if not first.nothing_to_do and not _only_hashed(first, progress):
        refuse_impossible(first, settings)
        with (
            durable.disk_errors(settings.home),
            locked(reference, settings, progress),
            usage.using(settings.home, folder),  # again: before the first get there is no home
        ):
            with _building(reference, folder, settings, progress) as coming:
                again = check and not first.complete
                _complete(reference, settings, coming, check=again, progress=progress)
            return _existing(reference, folder)
    return _existing(reference, folder)


@contextlib.contextmanager
def _building(
    reference: Reference, folder: Path, settings: Settings, progress: Progress
) -> "Iterator[Iterator[fetching.Arrived] | None]":
    """Build the dataset where it is not built; where all of it has to be fetched, do that at once.

    Gives what then comes, or None where it is still to be asked for.
    """
    from scibench_data.getting import fetching

    wanted = reference.resources
    recipe = any(has_recipe(reference, resource) for resource in wanted)
    if is_built(folder) or recipe or settings.offline:
        ahead = False
    else:
        ahead = fetching.is_all_away(folder, reference, settings)
    with contextlib.ExitStack() as stack:
        coming = None
        if ahead:
            begun = fetching.fetching(folder, reference, wanted, settings, progress)
            coming = stack.enter_context(begun)
        ensure_built(reference, folder)
        yield coming


def at_site(
    reference: Reference,
    settings: Settings,
    *,
    check: bool = False,
    progress: Progress = SILENT,
) -> Dataset | None:
    """Return the dataset of the site's cache, where it is complete there and its bytes are right.

    The site's cache is only read; what was hashed is noted in the user's own.
    """
    if settings.site is None or is_built(dataset_folder(settings.home, reference.package)):
        return None
    there = dataclasses.replace(settings, home=settings.site, site=None)
    seen = plan(reference, there, check=True)
    if not seen.complete:
        return None
    note = settings.home / "site" / f"{reference.package.name}-{reference.package.version}.json"
    stamps = {} if check else durable.read_stamps(note)
    _, unsure = absent_and_unsure(seen.folder, seen.unsure, stamps)
    if _hash(seen.folder, unsure, stamps, progress):
        progress.say(f"{seen.folder}: left, a file there has not its published SHA-256")
        return None
    if unsure:
        with contextlib.suppress(SpaceError):
            durable.write_stamps(note, stamps)
    return _existing(reference, seen.folder)


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


def locked(
    reference: Reference, settings: Settings, progress: Progress = SILENT
) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a version's dataset; who waits for another is told whom for."""
    package = reference.package
    path = lock_path(settings.home, package.name, package.version)
    work = f"get {package.name}@{package.version}"
    return durable.lock(path, settings.lock_timeout, work=work, told=progress.say)


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
    build(folder, versions or history(reference.release, reference.package))


def _existing(reference: Reference, folder: Path) -> Dataset:
    _must_be_sound(reference, folder)
    return Dataset(reference=reference, folder=folder, commit=building.read_commit(folder))


def _must_be_sound(reference: Reference, folder: Path) -> None:
    package = reference.package
    what = building.fault(folder, package, reference.release.commit)
    if what:
        name, (base, variant) = package.name, variant_of(package.version)
        made_here = base != package.version
        again = (
            f"scibench-data get {name}@{base} {variant.options}" if made_here else "get it again"
        )
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
    if there := at_site(reference, settings):
        return there
    look = plan(reference, settings)
    if not look.complete:
        message = f"{reference}: not complete in {look.folder}; run: scibench-data get {reference}"
        raise NotFoundError(message)
    return _existing(reference, look.folder)


def _complete(
    reference: Reference,
    settings: Settings,
    coming: "Iterator[fetching.Arrived] | None",
    *,
    check: bool,
    progress: Progress,
) -> None:
    now = plan(reference, settings, check=check)
    folder = now.folder
    _must_be_sound(reference, folder)
    cut_off = transfer.recover(folder)
    for resource in now.unlinked:
        building.restore_link(folder, resource)
    stamps = durable.read_stamps(stamps_path(folder))
    wanted = [*now.missing, *_hash(folder, now.unsure, stamps, progress)]
    if wanted or cut_off:
        objects = folder / ".git/annex/objects"
        for resource in wanted:
            building.set_aside(folder, objects, object_path(folder, resource))
            stamps.pop(resource.key, None)
        with transfer.noted(folder), transfer.registering(folder) as register:
            for resource in reference.resources if cut_off else ():
                if resource.key in stamps:
                    register(resource)
            try:
                obtained = _obtain(folder, reference, wanted, settings, stamps, progress)
                for each in coming or obtained:
                    _keep(folder, each, stamps)
                    register(each.resource)
            finally:  # what came is kept, whatever else did not
                durable.write_stamps(stamps_path(folder), stamps)
    durable.write_stamps(stamps_path(folder), stamps)


def _obtain(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    stamps: dict[str, Stamp],
    progress: Progress,
) -> "Iterator[fetching.Arrived]":
    """Get what is wanted from this disk, by its recipe, or from its sources."""
    from scibench_data.getting import fetching, simulating

    yield from fetching.take_local(folder, reference, wanted, settings)
    absent = [resource for resource in wanted if resource.key not in stamps]
    if made := [resource for resource in absent if has_recipe(reference, resource)]:
        yield from simulating.make(folder, reference, made, settings, progress)
    remote = [resource for resource in absent if not has_recipe(reference, resource)]
    if remote and settings.offline:
        message = (
            f"{reference}: {len(remote)} files are only to be had from the network, and "
            f"offline was asked for ({remote[0].path} first); get them without --offline"
        )
        raise NetworkError(message)
    if remote:
        with fetching.fetching(folder, reference, remote, settings, progress) as coming:
            yield from coming


def _keep(folder: Path, arrived: "fetching.Arrived", stamps: dict[str, Stamp]) -> None:
    """Put what came in its place; record what nobody published."""
    resource = arrived.resource
    if resource.key not in stamps:  # two paths may have the same content
        stamps[resource.key] = transfer.put(folder, resource, arrived.file, arrived.sha256)
    if not resource.published:
        note = arrived.note(stamps[resource.key].size)
        entries = read_recorded(folder) | {resource.path: note}
        text = json.dumps(entries, indent=1, sort_keys=True)
        durable.write_whole(recorded_path(folder), text.encode(), replace=True)


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
            with usage.idle(settings.home, folder, ours=True):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                for place in filter(os.path.lexists, places):
                    gone = place.with_name(f".{place.name}.removed-{secrets.token_hex(4)}")
                    place.rename(gone)
            for place in places:
                for gone in place.parent.glob(f".{place.name}.removed*"):
                    durable.remove_tree(gone)
            durable.remove_tree(downloads(folder))
    return size


def _must_be_there(places: Sequence[Path]) -> None:
    if not any(map(os.path.lexists, places)):
        message = f"{places[0]}: not in the cache; nothing to do"
        raise NotFoundError(message)
