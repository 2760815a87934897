"""Content into a dataset: put where git-annex keeps it, and git-annex told of it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scibench_data import durable
from scibench_data.annexed import annex
from scibench_data.annexed.build import NOTES, object_path
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.durable import Stamp


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


@contextlib.contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Note that content is on its way, flush it, and take the note back when all is well."""
    busy = folder / NOTES / "busy"
    durable.write_whole(busy, _boot().encode(), replace=True)
    yield
    durable.flush_filesystem(folder)
    busy.unlink()


def recover(folder: Path) -> bool:
    """Clear what a power cut during a transfer can leave: empty journal files, locks, partials.

    Returns
    -------
    bool
        A transfer was cut off: content may be here that git-annex was not told of.
    """
    busy = folder / NOTES / "busy"
    if not busy.exists():
        return False
    if busy.read_bytes() == _boot().encode():
        return True
    for path in (folder / ".git/annex/journal").glob("*"):
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
    for path in (folder / ".git").rglob("*.lock"):
        path.unlink()
    for path in (folder / ".git/annex/tmp").glob("*"):
        if path.is_file():
            path.unlink()
    busy.unlink()
    return True


def has_recipe(reference: Reference, resource: Resource) -> bool:
    """Tell whether this machine can make the file itself."""
    return reference.package.subsets[resource.subset].recipe is not None


def put(folder: Path, resource: Resource, file: Path, sha256: str) -> Stamp:
    """Move a file whose bytes were just hashed to where the dataset keeps the resource's content.

    It is write-protected, as git-annex has it; `noted` sees to it that it is on the disk, and
    `register` tells git-annex afterwards.
    """
    place = object_path(folder, resource)
    try:
        place.parent.mkdir(parents=True)
    except FileExistsError:
        place.parent.chmod(0o755)
    file.chmod(0o444)
    file.replace(place)
    place.parent.chmod(0o555)
    return durable.stamp(place, sha256)


@contextlib.contextmanager
def registering(folder: Path) -> Iterator[Callable[[Resource], None]]:
    """Give a function that tells git-annex that a resource's content is here.

    One git-annex is told of all of them, while others still come; it starts with the first.
    """
    with contextlib.ExitStack() as stack:
        feed: Callable[[str], None] | None = None
        ours = ""

        def register(resource: Resource) -> None:
            nonlocal feed, ours
            if feed is None:
                ours = annex.git("config", "annex.uuid", cwd=folder)
                feed = stack.enter_context(annex.feeding("setpresentkey", "--batch", cwd=folder))
            feed(f"{resource.key} {ours} 1")

        yield register


def register(folder: Path, resources: Iterable[Resource]) -> None:
    """Tell git-annex that the content of `resources` is here."""
    with registering(folder) as tell:
        for resource in resources:
            tell(resource)
