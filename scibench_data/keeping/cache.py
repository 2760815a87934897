"""The cache as a whole: list it, prove its bytes, and make it smaller.

What `gc` decides: leftovers of killed processes go in any case; then what was not used for longest,
where things that cost more to have again count as used later than they were. Nothing that a process
uses is removed, and nothing that could not be had again.
"""

import contextlib
import dataclasses
import datetime as dt
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scibench_data import durable, usage
from scibench_data.annexed import build
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.durable import Stamp
from scibench_data.errors import LockedError, NotFoundError, SpaceError, UsageError
from scibench_data.getting import holdings
from scibench_data.keeping.inventory import Entry, Item, Size, identity, items, measure
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.storing.manifest import MANIFEST, STAMPS, read_manifest

_DAY = 86_400.0  # [s]
_MADE_HERE = 7 * _DAY
_FETCHED = 30 * _DAY
"""What costs more to have again counts as used so much later than it was. A store is made of its
dataset in minutes, a recipe takes longer, and a source may be slow or gone one day."""

_OURS = {".git", ".datalad", ".gitattributes", "datapackage.json"}


# --- sizes and ages as people write them ----------------------------------------------------------

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgtp", 1)
    for ending, base in (("b", 1000), ("ib", 1024))
}
_SPANS = {"h": 3600.0, "d": _DAY, "w": 7 * _DAY}


def parse_size(text: str | int) -> int:
    """Read a size such as ``50GB``, ``1.5 TB`` or ``500MiB``; without a unit, bytes. [B]

    Raises
    ------
    UsageError
        It has another form.

    Examples
    --------
    >>> parse_size("50GB"), parse_size("1.5 KiB"), parse_size("0")
    (50000000000, 1536, 0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*", str(text))
    if match is None or match[2].lower() not in _UNITS:
        message = f"{text!r}: expected a size; write it as 50GB, 500MiB or 0"
        raise UsageError(message)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_age(text: str) -> dt.timedelta:
    """Read an age in hours, days or weeks, such as ``12h``, ``30d`` or ``2w``.

    Raises
    ------
    UsageError
        It has another form.

    Examples
    --------
    >>> parse_age("30d").days
    30
    """
    match = re.fullmatch(r"\s*([0-9]{1,5})\s*([hdw])\s*", text)
    if match is None:
        message = f"{text!r}: expected an age; write it as 12h, 30d or 2w"
        raise UsageError(message)
    return dt.timedelta(seconds=int(match[1]) * _SPANS[match[2]])


# --- what lies there ------------------------------------------------------------------------------


def ls(*, settings: Settings | None = None) -> list[Entry]:
    """List what the cache holds; nothing is changed."""
    home = (settings or load_settings()).home
    seen: set[tuple[int, int]] = set()
    with durable.disk_errors(home):
        return [item.entry(measure(item.paths, item.skipped), seen) for item in items(home)]


# --- are the bytes right --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of hashing one dataset or store.

    Attributes
    ----------
    files
        How many were hashed.
    problems
        All that is wrong, each with its path; empty when nothing is.
    cure
        The commands that heal it; empty when nothing is to be healed.
    """

    name: str
    path: Path
    files: int
    problems: tuple[str, ...]
    cure: str = ""


def verify(
    names: Sequence[str] = (), *, settings: Settings | None = None, progress: Progress = SILENT
) -> list[Verdict]:
    """Hash every file of every dataset and store of the cache again, whatever was noted of it.

    What is damaged is noted as such, so that the next `get` or `materialize` replaces it.

    Parameters
    ----------
    names
        ``NAME`` or ``NAME@VERSION``: only these; by default all.

    Raises
    ------
    NotFoundError
        Nothing of one of the `names` is in the cache.
    LockedError
        Another process works on a dataset for too long.
    """
    chosen = settings or load_settings()
    with durable.disk_errors(chosen.home):
        found = [each for each in items(chosen.home) if each.is_dataset or each.kind == "store"]
        for name in names:
            if not any(_is_meant(item, [name]) for item in found):
                message = f"{name}: not in the cache {chosen.home}; see scibench-data cache ls"
                raise NotFoundError(message)
        meant = [item for item in found if not names or _is_meant(item, names)]
        return [
            _check_dataset(item, chosen, progress)
            if item.is_dataset
            else _check_store(item, chosen, progress)
            for item in meant
        ]


def _is_meant(item: Item, names: Sequence[str]) -> bool:
    return any(name in {item.name, f"{item.name}@{item.version}", item.title} for name in names)


def _check_dataset(item: Item, settings: Settings, progress: Progress) -> Verdict:
    home, folder = settings.home, item.path
    reference = item.reference
    if reference is None:
        unknown = "no package of that name and version is known, so nothing to compare with"
        return Verdict(name=item.title, path=folder, files=0, problems=(unknown,))
    package = reference.package
    with contextlib.ExitStack() as held:
        held.enter_context(usage.using(home, folder))
        with contextlib.suppress(SpaceError):  # a read-only cache is only read
            held.enter_context(
                durable.lock(
                    home / "locks" / item.locks[0],
                    settings.lock_timeout,
                    work="cache verify",
                    told=progress.say,
                )
            )
        resources = [resource for resource in item.here if resource.sha256]
        problems = _hash(folder, item.title, resources, settings, progress)
    subsets = sorted({resource.subset for resource in resources if resource.path in problems})
    cures = [f"scibench-data get {item.title}:{subset}" for subset in subsets]
    if fault := build.fault(folder, package, reference.release.commit):
        problems["the dataset"] = fault
        cures = [f"scibench-data remove {item.title}", f"scibench-data get {item.title}"]
    return Verdict(
        name=item.title,
        path=folder,
        files=len(resources),
        problems=tuple(f"{path}: {what}" for path, what in problems.items()),
        cure=" && ".join(cures),
    )


def _hash(
    folder: Path, title: str, resources: Sequence[Resource], settings: Settings, progress: Progress
) -> dict[str, str]:
    """Hash content and note its stamps; return path -> what is wrong with it."""
    stamps = durable.read_stamps(holdings.stamps_path(folder))
    problems: dict[str, str] = {}
    done = 0
    total = sum(resource.bytes for resource in resources)
    with (
        progress.task(f"check {title}", total) as task,
        ThreadPoolExecutor(settings.jobs) as pool,
    ):
        looks = pool.map(_look, (build.object_path(folder, each) for each in resources))
        for resource, look in zip(resources, looks, strict=True):
            what = look if isinstance(look, str) else _difference(resource, look)
            if isinstance(look, str) or what:
                problems[resource.path] = what
                stamps.pop(resource.key, None)
            else:
                stamps[resource.key] = look
            done += resource.bytes
            task.update(done, note=resource.path)
    with contextlib.suppress(SpaceError):
        durable.write_stamps(holdings.stamps_path(folder), stamps)
    return problems


def _look(path: Path) -> Stamp | str:
    try:
        return durable.stamp(path)
    except OSError as error:
        return f"can't be read ({error.strerror or error})"


def _difference(resource: Resource, look: Stamp) -> str:
    if look.size != resource.bytes:
        return f"got {look.size:,} bytes, expected {resource.bytes:,}"
    if look.sha256 != resource.sha256:
        return f"got SHA-256 {look.sha256}, expected {resource.sha256}"
    return ""


def _check_store(item: Item, settings: Settings, progress: Progress) -> Verdict:
    from scibench_data.storing import store

    with usage.using(settings.home, item.path):
        links = store.check(item.path, jobs=settings.jobs, progress=progress)
        problems = tuple(f"{name}: {detail}" for name, status, detail in links if status == "fails")
        files = len(read_manifest(item.path).files) if identity(item.path) else 0
    if problems:
        with contextlib.suppress(OSError):  # no stamp may vouch for what is damaged
            (item.path / STAMPS).unlink()
    cure = f"scibench-data materialize {item.title}" if problems and item.version else ""
    return Verdict(name=item.title, path=item.path, files=files, problems=problems, cure=cure)


# --- what may go ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `gc` did, or would do.

    Attributes
    ----------
    before, after
        Size of the cache. [B]
    removed
        What went, with the bytes that the cache is smaller by.
    kept
        What had to stay though the cache is too big, and why.
    """

    keep: int
    before: int
    after: int
    removed: tuple[Entry, ...]
    kept: tuple[tuple[Entry, str], ...]


class _Ledger:
    """How big the cache is; a file with several names goes with the last of them."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        self._owners = Counter(inode for size in sizes for inode in size.shared)
        alone = sum(size.bytes for size in sizes)
        self.total = alone + sum({k: v for s in sizes for k, v in s.shared.items()}.values())

    def drop(self, size: Size) -> int:
        """Take a part out; return how much smaller the cache is. [B]"""
        self._owners.subtract(size.shared.keys())
        freed = size.bytes + sum(
            count for inode, count in size.shared.items() if not self._owners[inode]
        )
        self.total -= freed
        return freed


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """What may go: `due` orders them, `always` goes in any case, `bound` says why it must stay."""

    item: Item
    size: Size
    entry: Entry
    due: float
    always: bool = False
    bound: str = ""


def gc(
    keep: str | int = "50GB",
    *,
    older_than: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Collected:
    """Remove what was not used for longest and is cheap to have again, until the cache is small.

    What killed processes left goes in any case. What a process uses stays in any case, and without
    `force` so does what could not be had again: files with neither source nor recipe, and datasets
    that somebody changed.

    Parameters
    ----------
    keep
        How big the cache may be, such as ``50GB``.
    older_than
        Remove only what was not used for so long, such as ``30d``.
    dry_run
        Only say what would go.

    Raises
    ------
    UsageError
        A size or an age has another form.
    SpaceError
        The cache is not ours to write.
    """
    home = (settings or load_settings()).home
    limit = parse_size(keep)
    age = parse_age(older_than) if older_than else dt.timedelta(0)
    latest = dt.datetime.now(dt.UTC) - age
    candidates, ledger = _candidates(home)
    before = ledger.total
    removed, kept = [], []
    with progress.task("gc", len(candidates), "entries") as task:
        for number, each in enumerate(candidates, 1):
            if not each.always and (ledger.total <= limit or each.entry.last_used > latest):
                continue
            task.update(number, note=each.item.title)
            why = "" if force else each.bound
            why = why or _try(home, each, dry_run=dry_run)
            if why:
                kept.append((each.entry, why))
            else:
                freed = ledger.drop(each.size)
                removed.append(dataclasses.replace(each.entry, bytes=freed))
    return Collected(
        keep=limit, before=before, after=ledger.total, removed=tuple(removed), kept=tuple(kept)
    )


def _candidates(home: Path) -> tuple[list[_Candidate], _Ledger]:
    """Return what may go, in this order, and the size of all that lies there."""
    seen: set[tuple[int, int]] = set()
    with durable.disk_errors(home):
        there = [(item, measure(item.paths, item.skipped)) for item in items(home)]
        judged = [_judge(item, size, item.entry(size, seen)) for item, size in there]
    chosen = [each for each in judged if each]
    order = sorted(chosen, key=lambda each: (not each.always, each.due))
    return order, _Ledger([size for _, size in there])


def _judge(item: Item, size: Size, entry: Entry) -> _Candidate | None:
    """Say when something is due, and what binds it; None for work that may still go on."""
    due, always, bound = entry.last_used.timestamp(), item.kind == "leftover", ""
    if item.kind in {"staging", "partial"}:
        if dt.datetime.now(dt.UTC).timestamp() - size.newest < _DAY:
            return None
        always = True
    elif item.kind == "quarantine":
        due = 0.0  # damaged, and another has its place
        if not (item.path / MANIFEST).is_file():
            bound = "it was set aside and may hold somebody's work"
    elif item.kind == "store":
        due += 0.0 if _has_dataset(item) else _FETCHED
        bound = _store_bound(item)
    elif item.is_dataset:
        due += _MADE_HERE if _is_made(item) else _FETCHED
        bound = _dataset_bound(item)
    return _Candidate(item=item, size=size, entry=entry, due=due, always=always, bound=bound)


def _has_dataset(store: Item) -> bool:
    return holdings.is_built(store.home / "datasets" / store.name / store.version)


def _is_made(item: Item) -> bool:
    """Tell whether this machine made all that is here of a dataset, and could again."""
    subsets = item.reference.package.subsets if item.reference else {}
    return all(subsets[resource.subset].recipe is not None for resource in item.here)


def _store_bound(item: Item) -> str:
    """Say why a store could not be made again; empty where it can."""
    if not identity(item.path):
        return ""  # nothing can be done with it as it is
    if item.reference is None:
        return "no package that it could be made of again is known"
    package = item.reference.package
    if _has_dataset(item):
        return ""
    return _irreplaceable(package, package.resources_of(item.subset))


def _irreplaceable(package: DataPackage, resources: Iterable[Resource]) -> str:
    for resource in resources:
        if not resource.sources and package.subsets[resource.subset].recipe is None:
            return f"{resource.path} is to be had nowhere else"
    return ""


def _dataset_bound(item: Item) -> str:
    """Say why a dataset could not be had again; empty where it can."""
    if item.reference is None:
        return "no package of that name and version is known"
    package = item.reference.package
    return (
        _irreplaceable(package, item.here)
        or build.fault(item.path, package, item.reference.release.commit)
        or _changed(item.path, package)
    )


def _changed(folder: Path, package: DataPackage) -> str:
    """Name what somebody put into a dataset; damaged content that was replaced is nobody's work."""
    aside = sorted(folder.glob(f"{build.NOTES}/aside/*/*"))
    work = [path.name for path in aside if path.name != "annex"]
    known = {*_OURS, *package.subsets, *(path.partition("/")[0] for path in package.lists)}
    work += sorted(path.name for path in folder.glob("*") if path.name not in known)
    for subset in package.subsets:
        work += holdings.foreign_files(folder, package, subset)
    return f"{work[0]} in it is not of this version" if work else ""


def _try(home: Path, candidate: _Candidate, *, dry_run: bool) -> str:
    """Remove something, or only look whether that can be; return why not."""
    if dry_run:
        return "in use" if candidate.entry.in_use else ""
    try:
        _remove(home, candidate.item)
    except LockedError as error:
        return str(error).partition("; ")[0]
    return ""


def _remove(home: Path, item: Item) -> None:
    """Delete something under its locks: renamed first, so that a crash leaves it whole or gone.

    Raises
    ------
    LockedError
        It is in use.
    SpaceError
        It is not ours to delete.
    """
    with contextlib.ExitStack() as held, durable.disk_errors(home):
        for name in item.locks:
            held.enter_context(durable.lock(home / "locks" / name, 0.0, work="cache gc"))
        if item.is_dataset or item.kind == "store":
            with usage.idle(home, item.path):
                gone = _put_away([item.path])
        elif item.kind == "partial":
            gone = [path for folder in item.paths for path in folder.glob("*")]
        else:
            gone = _put_away(item.paths)
        for path in gone:
            _delete(path)


def _put_away(paths: Iterable[Path]) -> list[Path]:
    """Give what is to be deleted a name that nobody looks for; what has one keeps it."""
    gone = []
    for path in filter(os.path.lexists, paths):
        away = path
        if not path.name.startswith("."):
            away = path.with_name(f".{path.name}.removed-{secrets.token_hex(4)}")
            path.rename(away)
            durable.flush_file(path.parent)
        gone.append(away)
    return gone


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        durable.remove_tree(path)
    else:
        path.unlink(missing_ok=True)
