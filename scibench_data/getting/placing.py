"""Plain files out of a dataset: shared with the cache where the disk can, else copied."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from scibench_data import durable
from scibench_data.annexed.copying import share
from scibench_data.descriptor import Resource
from scibench_data.errors import IntegrityError, SpaceError, UsageError
from scibench_data.getting.dataset import Dataset
from scibench_data.getting.holdings import stamps_path
from scibench_data.progress import SILENT, Progress


def place(dataset: Dataset, destination: Path, progress: Progress = SILENT) -> list[Path]:
    """Put the subset's files into `destination` as plain files: reflink, else hard link, else copy.

    A hard link shares its bytes with the cache and is write-protected. A file that is already
    there with the right bytes is left alone. All places are looked at before the first is filled.

    Raises
    ------
    UsageError
        `destination` is a file, or lies within the dataset.
    IntegrityError
        Something else of that name is in the way; it is not overwritten.
    """
    _refuse_destination(dataset, destination)
    targets = {
        destination / resource.path.removeprefix(f"{dataset.subset}/"): resource
        for resource in dataset.resources
    }
    with (
        durable.disk_errors(destination),
        _keeping_stamps(dataset),
        progress.task("place", dataset.bytes) as task,
    ):
        empty = {t: r for t, r in targets.items() if _is_free(t, destination, r)}
        done = dataset.bytes - sum(resource.bytes for resource in empty.values())
        for target, resource in empty.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(dataset.object(resource), target)
            done += resource.bytes
            task.update(done, note=target.name)
    return list(targets)


def _refuse_destination(dataset: Dataset, destination: Path) -> None:
    if os.path.lexists(destination) and not destination.is_dir():
        message = f"{destination}: not a folder; choose another place for the files"
        raise UsageError(message)
    if destination.resolve().is_relative_to(dataset.folder.resolve()):
        message = f"{destination}: within the dataset itself; choose a folder outside of the cache"
        raise UsageError(message)


def _is_free(target: Path, destination: Path, resource: Resource) -> bool:
    """Tell whether a file is still to be placed; what else is in its place is an error."""
    for parent in target.relative_to(destination).parents:
        folder = destination / parent
        outside = not folder.resolve().is_relative_to(destination.resolve())
        if outside or (os.path.lexists(folder) and not folder.is_dir()):
            raise _in_the_way(folder, "it is not a folder of its own")
    if not os.path.lexists(target):
        return True
    if not stat.S_ISREG(target.lstat().st_mode):
        raise _in_the_way(target, "it is not a plain file")
    if durable.sha256_file(target) != resource.sha256:
        raise _in_the_way(target, "it has other content")
    return False


def _in_the_way(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path}: in the way, {why}; move it away or choose another folder")


@contextlib.contextmanager
def _keeping_stamps(dataset: Dataset) -> Iterator[None]:
    """Renew stamps after what only adds a name to an object, as a hard link does."""
    stamps = durable.read_stamps(stamps_path(dataset.folder))
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
            durable.write_stamps(stamps_path(dataset.folder), stamps | renewed)


def _place(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        share(source, beside)
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)
