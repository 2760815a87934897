"""Pin versions in a lock file, and get exactly what one pins.

A file without a published checksum can't be pinned by its version alone. Its first copy was
recorded when it came; `lock` writes size and SHA-256 into a version of its own,
``1.0.0+locked.<digest>``, which any machine builds again from the released one and the lock file.
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scibench_data import catalog, durable
from scibench_data.annexed import build
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NotFoundError,
    UsageError,
    did_you_mean,
)
from scibench_data.getting import dataset, holdings
from scibench_data.getting.dataset import Dataset
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.versions.lockfile import LOCK_FILE, FilePin, Lock, Pin, StorePin, read_lock
from scibench_data.versions.recorded import describe_locked, recorded_files, write_locked

if TYPE_CHECKING:
    from scibench_data.storing.store import Store


@dataclass(frozen=True, kw_only=True)
class Locked:
    """What `lock` wrote.

    Attributes
    ----------
    path
        The lock file.
    pins
        Those that were asked for; without names, all.
    notes
        What could not be pinned, and what to run so that it can; which pins are yanked, and why.
    """

    path: Path
    pins: tuple[Pin, ...]
    notes: tuple[str, ...]


# --- looking up -----------------------------------------------------------------------------------


def pinned(name: str, folder: Path | None = None) -> str | None:
    """Return the version that ``scibench.lock`` in a folder pins for ``NAME[:SUBSET]``.

    A subset that is not pinned itself has the version of the package's others, where they agree
    on one that was released.

    Parameters
    ----------
    folder
        By default the working directory.

    Raises
    ------
    DescriptorError
        The lock file is damaged.
    """
    pin = _pin_meant(name, folder)
    return pin.version if pin else None


def _pin_meant(name: str, folder: Path | None) -> Pin | None:
    path = (folder or Path()) / LOCK_FILE
    if not os.path.lexists(path):
        return None
    package, _, subset = name.partition(":")
    lock = read_lock(path)
    if own := lock.find(package, subset or "sample"):
        return own
    others = [
        pin for pin in lock.pins if pin.name == package and not (subset and "+" in pin.version)
    ]
    return others[0] if len({pin.version for pin in others}) == 1 else None


def resolve(text: str, settings: Settings, folder: Path | None = None) -> Reference:
    """Turn ``NAME[@VERSION][:SUBSET]`` into a descriptor; a lock file stands in for no version.

    Raises
    ------
    UsageError, NotFoundError
        See `catalog.resolve`.
    DescriptorError
        The lock file is damaged.
    IntegrityError
        It pins other checksums for the version than can be had here.
    """
    name, _, subset = text.partition(":")
    pin = None if "@" in name else _pin_meant(text, folder)
    if pin and "+locked." in pin.version:  # the lock file is all that is needed to make it
        return pinned_reference(pin, settings)
    if pin:
        text = f"{name}@{pin.version}:{subset}" if subset else f"{name}@{pin.version}"
    return catalog.resolve(text, settings.home)


def pin_of(name: str, lock: Lock, path: Path) -> Pin:
    """Find the pin of ``NAME[@VERSION][:SUBSET]``; a version has to be the pinned one.

    Raises
    ------
    NotFoundError
        It is not in the lock file, or more than one subset could be meant.
    """
    package, _, subset = name.partition(":")
    package, _, version = package.partition("@")
    mine = [pin for pin in lock.pins if pin.name == package]
    found = lock.find(package, subset or "sample")
    if not (found or subset) and len(mine) == 1:
        found = mine[0]
    if found and version in {"", found.version}:
        return found
    if found:
        message = (
            f"{name}: {path} pins version {found.version}; leave the version out, or run: "
            f"scibench-data lock {name}"
        )
    elif mine and not subset:
        message = f"{name}: {path} pins several subsets; name one: {', '.join(map(str, mine))}"
    else:
        near = did_you_mean(package, {pin.name for pin in lock.pins})
        message = f"{name}: not in {path} ({near}); run: scibench-data lock {name}"
    raise NotFoundError(message)


def commit_of(reference: Reference) -> str:
    """Return a version's commit: the published one, else the one that its descriptors make."""
    if reference.release.commit:
        return reference.release.commit
    with tempfile.TemporaryDirectory() as scratch:
        history = catalog.history(reference.release, reference.package)
        return build.import_history(Path(scratch), history)


def find_stored(
    reference: Reference, settings: Settings, progress: Progress = SILENT
) -> "Store | None":
    """Return a sound store of a version on this disk, in the default layout where there is one.

    Raises
    ------
    IntegrityError
        It is damaged.
    """
    package = reference.package
    name = glob.escape(f"{package.name}-{package.version}-{reference.subset}-")
    folders = sorted((settings.home / "stores").glob(f"{name}????????????"))
    if not folders:
        return None
    from scibench_data.results import run
    from scibench_data.storing import manifest, store

    folder = holdings.dataset_folder(settings.home, package)
    data = Dataset(reference=reference, folder=folder, commit=commit_of(reference))
    wanted = run.store_identity(data, store.Layout())
    found = []
    for place in folders:
        with contextlib.suppress(IntegrityError):  # what it is can't be told
            identity = manifest.read_manifest(place).identity
            if {**identity, "layout": wanted["layout"]} == wanted:
                found.append((identity != wanted, place))
    return store.read_store(min(found)[1], progress=progress) if found else None


# --- locking --------------------------------------------------------------------------------------


def lock(
    names: str | Sequence[str] = (),
    *,
    path: Path | str = LOCK_FILE,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Locked:
    """Pin versions in a lock file, beside those that it pins already.

    Parameters
    ----------
    names
        ``NAME[@VERSION][:SUBSET]``; without a version the newest that is not yanked. Without names
        every pin is looked at again: what can be told now is added, nothing else may differ.
    path
        The lock file; it is made where it isn't there.

    Raises
    ------
    NotFoundError
        No such package, version or subset; no lock file and no names; or files without a published
        checksum that never came to this machine.
    IntegrityError
        Without names: a pin is not what the catalogue or the disk has.
    DescriptorError
        The lock file is damaged.
    """
    chosen = settings or load_settings()
    place = Path(path)
    wanted = [names] if isinstance(names, str) else list(names)
    guard = hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:16]
    with durable.lock(chosen.home / "locks" / f"lockfile-{guard}.lock", chosen.lock_timeout):
        known = read_lock(place) if os.path.lexists(place) or not wanted else Lock()
        if wanted:
            made = [_pin(catalog.resolve(name, chosen.home), chosen, progress) for name in wanted]
            made = [(_keep_store(pin, known), notes) for pin, notes in made]
        else:
            made = [(_refreshed(pin, chosen, progress), []) for pin in known.pins]
        pins = [pin for pin, _ in made]
        _refuse_twice(pins)
        durable.write_whole(place, known.with_pins(pins).content, replace=True)
    notes = [note for _, some in made for note in some]
    notes += [
        f"{pin}: no store of it here, so its digest is not pinned; run: scibench-data materialize "
        f"{pin}, then lock again"
        for pin in pins
        if pin.store is None and has_reader(pin.name)
    ]
    return Locked(path=place, pins=tuple(pins), notes=tuple(notes))


def has_reader(name: str) -> bool:
    """Tell whether a package's files can be read into a store."""
    return (catalog.package_folder(name) / "reader.py").is_file()


def _refuse_twice(pins: Sequence[Pin]) -> None:
    first: dict[tuple[str, str], Pin] = {}
    for pin in pins:
        other = first.setdefault((pin.name, pin.subset), pin)
        if other != pin:
            message = f"{pin}: {other} was named too; a lock file pins one version of a subset"
            raise UsageError(message)


def _keep_store(pin: Pin, known: Lock) -> Pin:
    """Keep the store's digest of an equal pin where this machine has no store to tell it."""
    old = known.find(pin.name, pin.subset)
    same = old is not None and old.commit == pin.commit and old.descriptor == pin.descriptor
    return dataclasses.replace(pin, store=old.store) if old and same and not pin.store else pin


def _pin(reference: Reference, settings: Settings, progress: Progress) -> tuple[Pin, list[str]]:
    """Pin a version; one with files of unknown bytes becomes a version of its own first."""
    notes: list[str] = []
    reference = _listed(reference, settings)
    if why := reference.release.yanked:
        notes.append(f"{reference}: yanked ({why}); see scibench-data versions for another")
    files: tuple[FilePin, ...] = ()
    unknown = {resource.path for resource in reference.resources if not resource.sha256}
    if "+locked." in reference.package.version:
        files = recorded_files(reference, _released(reference, settings), settings)
    elif unknown:
        base = _released(reference, settings)
        files = recorded_files(reference, base, settings)
        if left_out := unknown - {file.path for file in files}:
            notes.append(
                f"{reference}: {len(left_out)} files without a published checksum never came here "
                "and are left out; get them and lock again to have them too"
            )
        text, lists = describe_locked(base, reference.subset, files)
        new = write_locked(base, reference.subset, text, lists, settings)
        _adopt(reference, new, settings)
        reference = new
    found = find_stored(reference, settings, progress)
    pin = Pin(
        name=reference.package.name,
        version=reference.package.version,
        subset=reference.subset,
        commit=commit_of(reference),
        descriptor=reference.package.digest,
        store=_store_pin(found) if found else None,
        files=files,
    )
    return pin, notes


def _listed(reference: Reference, settings: Settings) -> Reference:
    """Return the version with the files of a subset that only a listing knows."""
    if not reference.package.subsets[reference.subset].listing:
        return reference
    from scibench_data.getting import listing

    if not listing.is_unlisted(reference):
        return reference
    found = listing.find_listed(reference, settings)
    if found is None:
        message = f"{reference}: its files were not listed here; run: scibench-data get {reference}"
        raise NotFoundError(message)
    return found


def _released(reference: Reference, settings: Settings) -> DataPackage:
    """Read the released version that a version derives from, or itself."""
    package = reference.package
    version = package.version.partition("+")[0]
    return catalog.find_release(package.name, version, settings.home).read()


def _adopt(old: Reference, new: Reference, settings: Settings) -> None:
    """Take what came of the files without checksums over into the locked version."""
    from scibench_data.getting import adopting

    folder = holdings.dataset_folder(settings.home, old.package)
    here = {resource.path: build.object_path(folder, resource) for resource in old.resources}
    contents = {
        resource.path: here[resource.path]
        for resource in new.resources
        if resource.path in here and holdings.size_of(here[resource.path]) == resource.bytes
    }
    if contents and not holdings.plan(new, settings).complete:
        adopting.adopt(new, [new.package], contents, settings)


def _store_pin(store: "Store") -> StorePin:
    return StorePin(values=store.digest, layout=dict(store.identity["layout"]))


def _refreshed(pin: Pin, settings: Settings, progress: Progress) -> Pin:
    reference = pinned_reference(pin, settings, progress)
    found = find_stored(reference, settings, progress)
    if found is None:
        return pin
    check_store(pin, found)
    return dataclasses.replace(pin, store=pin.store or _store_pin(found))


# --- getting what is pinned -----------------------------------------------------------------------


def pinned_reference(pin: Pin, settings: Settings, progress: Progress = SILENT) -> Reference:
    """Return the version that a pin means, if it is what the pin says; build it where derived.

    Raises
    ------
    IntegrityError
        The catalogue has another descriptor or commit for it.
    NotFoundError
        The catalogue has no such version.
    """
    released, variant = catalog.variant_of(pin.version)
    base = f"{pin.name}@{released.partition('+')[0]}:{pin.subset}"
    if "+locked." in pin.version:
        reference = _from_files(pin, catalog.resolve(base, settings.home).package, settings)
    elif variant != catalog.Variant():
        from scibench_data.getting import derive

        reference = derive.derive(catalog.resolve(base, settings.home), variant, settings, progress)
    else:
        reference = catalog.resolve(str(pin), settings.home)
    _must_equal(pin, "descriptor", reference.package.digest, pin.descriptor)
    _must_equal(pin, "commit", commit_of(reference), pin.commit)
    return reference


def _from_files(pin: Pin, base: DataPackage, settings: Settings) -> Reference:
    """Build a locked version from the released one and the pinned checksums, if it is the pinned.

    Raises
    ------
    IntegrityError
        The released version is another one here; nothing is written.
    """
    try:
        text, lists = describe_locked(base, pin.subset, pin.files)
    except DescriptorError as error:
        message = (
            f"{pin}: {base.name}@{base.version} is not the version here that it was locked with "
            f"({error.problems[0]}); use the packages it was locked with"
        )
        raise IntegrityError(message) from error
    _must_equal(pin, "descriptor", hashlib.sha256(text).hexdigest(), pin.descriptor)
    return write_locked(base, pin.subset, text, lists, settings)


def _must_equal(pin: Pin, what: str, here: str, wanted: str) -> None:
    if here != wanted:
        message = (
            f"{pin}: its {what} is {here} here, and the lock file pins {wanted}; use the "
            f"scibench-data and the packages it was locked with, or pin what is here: "
            f"scibench-data lock {pin.name}@{pin.version.partition('+')[0]}:{pin.subset}"
        )
        raise IntegrityError(message)


def check_store(pin: Pin, store: "Store") -> None:
    """Raise where a store does not hold the pinned values.

    Raises
    ------
    IntegrityError
        Its digest is another.
    """
    if pin.store:
        _must_equal(pin, "store's digest", store.digest, pin.store.values)


def check_locked(pin: Pin, data: Dataset, settings: Settings, progress: Progress = SILENT) -> None:
    """Raise where a dataset, or its store where there is one here, is not what a pin says.

    Raises
    ------
    IntegrityError
        Commit, descriptor or store have another digest.
    """
    _must_equal(pin, "descriptor", data.package.digest, pin.descriptor)
    _must_equal(pin, "commit", data.commit, pin.commit)
    if pin.store and (found := find_stored(data.reference, settings, progress)):
        check_store(pin, found)


def get_locked(
    names: str | Sequence[str] = (),
    *,
    path: Path | str = LOCK_FILE,
    check: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> list[Dataset]:
    """Get exactly what a lock file pins; without names, all of it.

    Parameters
    ----------
    check
        Hash every file again, also what has not changed since it was hashed.

    Raises
    ------
    NotFoundError
        No lock file, a name that is not in it, or a version that the catalogue does not have.
    IntegrityError
        Something is not what is pinned.
    DescriptorError
        The lock file is damaged.
    """
    chosen = settings or load_settings()
    known = read_lock(Path(path))
    wanted = [names] if isinstance(names, str) else names
    pins = [pin_of(name, known, Path(path)) for name in wanted] if wanted else known.pins
    references = [pinned_reference(pin, chosen, progress) for pin in pins]
    found = []
    for pin, reference in zip(pins, references, strict=True):
        data = dataset.get(reference, chosen, check=check, progress=progress)
        check_locked(pin, data, chosen, progress)
        found.append(data)
    return found
