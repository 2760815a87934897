"""Plain files out of a dataset: shared with the cache where the disk can, else copied."""

import fcntl
import os
import shutil
from pathlib import Path

from scibench_data import durable
from scibench_data.dataset import Dataset, keeping_stamps
from scibench_data.descriptor import Resource
from scibench_data.errors import IntegrityError
from scibench_data.progress import SILENT, Progress

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one of them changes


def place(dataset: Dataset, destination: Path, progress: Progress = SILENT) -> list[Path]:
    """Put the subset's files into `destination` as plain files: reflink, else hard link, else copy.

    A hard link shares its bytes with the cache and is write-protected. A file that is already
    there with the right bytes is left alone.

    Raises
    ------
    IntegrityError
        A file of that name with other bytes is in the way; it is not overwritten.
    """
    placed = []
    done = 0
    with (
        durable.disk_errors(destination),
        keeping_stamps(dataset),
        progress.task("place", dataset.bytes) as task,
    ):
        for resource in dataset.resources:
            target = destination / resource.path.removeprefix(f"{dataset.subset}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() or target.is_symlink():
                _must_be_same(target, resource)
            else:
                _place(dataset.object(resource), target)
            placed.append(target)
            done += resource.bytes
            task.update(done, note=target.name)
    return placed


def _must_be_same(target: Path, resource: Resource) -> None:
    if target.is_symlink() or durable.sha256_file(target) != resource.sha256:
        message = f"{target}: in the way with other content; move it away or choose another folder"
        raise IntegrityError(message)


def _place(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if not _reflink(source, beside):
            try:
                os.link(source, beside)
            except OSError:
                shutil.copyfile(source, beside)
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)


def _reflink(source: Path, target: Path) -> bool:
    with source.open("rb") as read, target.open("wb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError:
            shared = False
        else:
            shared = True
    if not shared:
        target.unlink()
    return shared
