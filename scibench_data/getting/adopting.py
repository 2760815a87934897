"""Files that are on this disk already become the content of a dataset, by their checksum."""

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from scibench_data import durable
from scibench_data.annexed import build, transfer
from scibench_data.annexed.build import NOTES
from scibench_data.annexed.copying import share
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.durable import Stamp
from scibench_data.errors import IntegrityError
from scibench_data.getting import dataset, holdings
from scibench_data.settings import Settings


def adopt(
    reference: Reference,
    versions: Sequence[DataPackage],
    contents: Mapping[str, Path],
    settings: Settings,
    *,
    move: bool = False,
) -> None:
    """Build a dataset if need be, and give it the content of files that are on this disk.

    A dataset that is in the place but is not sound is moved to ``quarantine`` in the cache.

    Parameters
    ----------
    versions
        The dataset's history, oldest first; empty for that of the catalogue.
    contents
        Resource path -> file, which must have the resource's bytes.
    move
        Move the files instead of sharing or copying them.

    Raises
    ------
    IntegrityError
        A file is not what the descriptor says, or something else has the dataset's place.
    """
    package = reference.package
    folder = holdings.dataset_folder(settings.home, package)
    with durable.disk_errors(settings.home), dataset.locked(reference, settings):
        if holdings.is_built(folder) and build.fault(folder, package, reference.release.commit):
            kept = settings.home / "quarantine" / f"{package.name}-{package.version}"
            kept.parent.mkdir(exist_ok=True)
            folder.rename(f"{kept}-{secrets.token_hex(4)}")
        dataset.ensure_built(reference, folder, versions)
        stamps = durable.read_stamps(holdings.stamps_path(folder))
        known = {resource.path: resource for resource in package.resources}
        with transfer.noted(folder), transfer.registering(folder) as register:
            for path, file in contents.items():
                stamps[known[path].key] = _take(folder, known[path], file, move=move)
                register(known[path])
        durable.write_stamps(holdings.stamps_path(folder), stamps)


def _take(folder: Path, resource: Resource, file: Path, *, move: bool) -> Stamp:
    """Put one file in its place, hashed there: what is hashed is what is kept."""
    beside = folder / NOTES / "incoming" / secrets.token_hex(8)
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        if move:
            file.rename(beside)
        else:
            share(file, beside, link=False)
        sha256 = durable.sha256_file(beside)
        if sha256 != resource.sha256:
            message = f"{file}: not the bytes of {resource.path}; take the right file"
            raise IntegrityError(message)
        objects = folder / ".git/annex/objects"
        build.set_aside(folder, objects, build.object_path(folder, resource))
        return transfer.put(folder, resource, beside, sha256)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
