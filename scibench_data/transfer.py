"""Content into a dataset: put where git-annex keeps it, or made by git-annex with a recipe."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from scibench_data import annex, durable
from scibench_data.build import NOTES, object_path
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.durable import Stamp
from scibench_data.errors import IntegrityError, ScibenchError, SpaceError
from scibench_data.progress import Progress
from scibench_data.settings import Settings

ARGUMENTS = 500
"""File names in one call of git-annex; more, and it is told the whole subset."""

_BUSY_WAITS = (1, 2, 4, 8, 16)  # [s]


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


def simulate(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    progress: Progress,
) -> None:
    """Let git-annex make the content of `wanted` by the recipe, into the dataset at `folder`.

    Raises
    ------
    IntegrityError
        The recipe gave other bytes than were published.
    SpaceError
        The disk refused.
    ScibenchError
        The recipe failed.
    """
    failed = _simulate_once(folder, wanted, settings, progress)
    for wait in _BUSY_WAITS:
        if not failed:
            return
        busy = all("transfer already in progress" in why for why in failed.values())
        if not busy and wait != _BUSY_WAITS[0]:
            break
        if busy:
            time.sleep(wait)
        again = [resource for resource in wanted if resource.path in failed]
        for resource in again:
            _drop_partial(folder, resource)
        failed = _simulate_once(folder, again, settings, progress)
    if failed:
        raise _explain(reference, failed)


def _drop_partial(folder: Path, resource: Resource) -> None:
    """Remove what an interrupted or poisoned transfer left, so that the next begins from zero."""
    partial = folder / ".git/annex/tmp" / resource.key
    if partial.exists() and partial.stat().st_size >= resource.bytes:
        partial.unlink()


def _simulate_once(
    folder: Path, wanted: Sequence[Resource], settings: Settings, progress: Progress
) -> dict[str, str]:
    """Let git-annex make the files; return path -> reason of those that failed."""
    bytes_of = {resource.path: resource.bytes for resource in wanted}
    finished: dict[str, int] = {}
    failed: dict[str, str] = {}
    paths = list(bytes_of) if len(bytes_of) <= ARGUMENTS else sorted({w.subset for w in wanted})
    words = ["get", "-c", "annex.retry=0", f"--jobs={settings.jobs}", "--json-progress"]
    with progress.task("get", sum(bytes_of.values())) as task:
        for record in annex.stream_annex(*words, "--", *paths, cwd=folder):
            path = str(record.get("action", record).get("file", ""))
            if "byte-progress" in record:
                finished[path] = min(int(record["byte-progress"]), bytes_of.get(path, 0))
            elif record.get("success"):
                finished[path] = bytes_of.get(path, 0)
            elif path:
                failed[path] = " ".join([*record.get("error-messages", []), record.get("note", "")])
            elif "said" in record:
                failed = {path: f"{why} {record['said']}" for path, why in failed.items()}
            task.update(sum(finished.values()), note=path)
    return failed


def _explain(reference: Reference, failed: Mapping[str, str]) -> ScibenchError:
    path, why = next(iter(failed.items()))
    reason = " ".join(why.split())[:300] or "no reason given"
    subject = f"{reference}: {len(failed)} files could not be had, {path} first"
    if annex.disk_refused(why):
        return SpaceError(
            f"{subject}: the disk refused ({reason}); free some space "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
    if "erification of content failed" in why:
        return IntegrityError(
            f"{subject}: its recipe gave other bytes than were published; "
            "nothing of it was kept, report it to the maintainers"
        )
    return ScibenchError(f"{subject}: its recipe failed ({reason}); see scibench-data doctor")
