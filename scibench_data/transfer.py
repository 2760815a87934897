"""Let git-annex get content, watch it, and say plainly why something did not come."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scibench_data import annex, durable
from scibench_data.build import NOTES
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.errors import IntegrityError, NetworkError, ScibenchError, SpaceError
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


def recover(folder: Path) -> None:
    """Clear what a power cut during a transfer can leave: empty journal files, locks, partials."""
    busy = folder / NOTES / "busy"
    if not busy.exists() or busy.read_bytes() == _boot().encode():
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


def has_recipe(reference: Reference, resource: Resource) -> bool:
    """Tell whether this machine can make the file itself."""
    return reference.package.subsets[resource.subset].recipe is not None


def fetch(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    progress: Progress,
) -> None:
    """Get the content of `wanted` into the dataset at `folder`.

    Raises
    ------
    IntegrityError
        A source gave other bytes than were published.
    NetworkError
        A file can't be reached.
    SpaceError
        The disk refused.
    ScibenchError
        A recipe failed.
    """
    failed = _fetch_once(folder, wanted, settings, progress)
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
        failed = _fetch_once(folder, again, settings, progress)
    if failed:
        raise _explain(reference, failed)


def _drop_partial(folder: Path, resource: Resource) -> None:
    """Remove what an interrupted or poisoned transfer left, so that the next begins from zero."""
    partial = folder / ".git/annex/tmp" / resource.key
    if partial.exists() and partial.stat().st_size >= resource.bytes:
        partial.unlink()


def _fetch_once(
    folder: Path, wanted: Sequence[Resource], settings: Settings, progress: Progress
) -> dict[str, str]:
    """Let git-annex get the files; return path -> reason of those that failed."""
    bytes_of = {resource.path: resource.bytes for resource in wanted}
    finished: dict[str, int] = {}
    failed: dict[str, str] = {}
    paths = list(bytes_of) if len(bytes_of) <= ARGUMENTS else sorted({w.subset for w in wanted})
    retries = 4 if any(resource.urls for resource in wanted) else 0  # a recipe has no bad days
    words = ["get", "-c", f"annex.retry={retries}", f"--jobs={settings.jobs}", "--json-progress"]
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


_PLAIN = {
    "getAddrInfo": "its host was not found",
    "Connection refused": "its host refused the connection",
    "ConnectionRestricted": "its address is not a public one",
    "Not Found": "it is not there any more (404)",
    "Forbidden": "its host forbids it (403)",
    "erification of content failed": "it is not the published content",
}
"""What git-annex says of a failed transfer, and what that means."""


def _plainly(why: str) -> str:
    """Say in a few words why a file did not come; what is not known is quoted."""
    url = re.search(r"https?://[^\s?]+", why)
    known = [plain for sign, plain in _PLAIN.items() if sign in why]
    reason = known[0] if known else " ".join(why.split())[:300] or "no reason given"
    return f"{url.group()}: {reason}" if url and known else reason


def _explain(reference: Reference, failed: Mapping[str, str]) -> ScibenchError:
    path, why = next(iter(failed.items()))
    reason = _plainly(why)
    subject = f"{reference}: {len(failed)} files could not be had, {path} first"
    if annex.disk_refused(why):
        return SpaceError(
            f"{subject}: the disk refused ({reason}); free some space "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
    if "erification of content failed" in why:
        return IntegrityError(
            f"{subject}: the source gave other bytes than were published ({reason}); "
            "nothing of it was kept, report it to the maintainers"
        )
    if has_recipe(reference, reference.package.resource(path)):
        return ScibenchError(f"{subject}: its recipe failed ({reason}); see scibench-data doctor")
    return NetworkError(f"{subject}: {reason}; check the network and run the same command again")
