"""Get files from their sources, several at once; where one source fails, the next is asked.

Bytes are hashed as they come and count only if they are the published ones. What is on this disk
already, in another version of the package or in the folder that it was added from, is not fetched.
What came is kept when something else fails, and a download that was cut goes on where it ended.
"""

import collections
import contextlib
import datetime as dt
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scibench_data import catalog, durable
from scibench_data.build import NOTES, object_path
from scibench_data.catalog import Reference
from scibench_data.copying import share
from scibench_data.descriptor import Resource
from scibench_data.durable import Stamp
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    NotFoundError,
    ScibenchError,
)
from scibench_data.guard import Refusal
from scibench_data.origins import Origin, origins, source_of
from scibench_data.progress import Progress, Task
from scibench_data.settings import Settings
from scibench_data.sources import Source, parse_source
from scibench_data.transfer import put

if TYPE_CHECKING:
    from scibench_data.web import Web

_HOST_LIMITS = {"zenodo.org": 2}  # it answers 429 to more
_SHOWN = 20  # files that an error lists


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """One file that came.

    Attributes
    ----------
    stamp
        What it looked like when it was in its place, with its SHA-256.
    source
        Where it came from.
    left
        The sources that were asked before.
    """

    resource: Resource
    stamp: Stamp
    source: str
    left: tuple["Left", ...] = ()

    def note(self) -> dict[str, Any]:
        """Return what is recorded of a file whose publisher gives no checksum."""
        return {
            "bytes": self.stamp.size,
            "sha256": self.stamp.sha256,
            "source": self.source,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
        }


@dataclass(frozen=True, kw_only=True)
class Left:
    """A source that did not give a file, and why."""

    host: str
    reason: str
    kind: str


class _StoppedError(Exception):
    """The work was given up elsewhere."""


@dataclass
class _Parcel:
    """A file that holds several wanted ones: fetched once, by the first thread that needs it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)


@dataclass
class _Job:
    """What the threads of one `fetch` share."""

    folder: Path
    settings: Settings
    web: "Web"
    task: Task
    wanted: Sequence[Resource]
    origin: Origin | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)
    hosts: dict[str, threading.Semaphore] = field(default_factory=dict)
    parcels: dict[str, _Parcel] = field(default_factory=dict)
    clones: list[Path] = field(default_factory=list)
    total: int = 0

    def host(self, name: str) -> threading.Semaphore:
        """Return what limits the connections to a host."""
        with self.lock:
            limit = _HOST_LIMITS.get(name, self.settings.connections)
            return self.hosts.setdefault(name, threading.Semaphore(limit))

    def parcel(self, url: str) -> _Parcel:
        """Return what is shared of one URL."""
        with self.lock:
            return self.parcels.setdefault(url, _Parcel())

    def ticker(self, name: str) -> Callable[[int], None]:
        """Return what a download of `name` calls with the bytes that came, or were thrown away."""

        def tick(change: int) -> None:
            if self.stopped.is_set():
                raise _StoppedError
            with self.lock:
                self.total += change
                self.task.update(self.total, note=name)

        return tick

    def incoming(self, name: str) -> Path:
        """Return where what comes under `name` is collected; the next run finds it again."""
        short = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / NOTES / "incoming" / short


# --- one file -------------------------------------------------------------------------------------


def _ordered(job: _Job, resource: Resource) -> list[Source]:
    """Return the sources: the user's preferred hosts first, else as the descriptor has them.

    The publication that the package was added from is asked last: it is one server, and the
    sources that its maintainers name may be many.
    """
    rank = {host: number for number, host in enumerate(job.settings.mirrors)}
    sources = list(map(parse_source, resource.sources))
    if job.origin and isinstance(url := source_of(job.origin, resource), str):
        sources.append(Source(kind="file", url=url))
    return sorted(sources, key=lambda source: rank.get(source.host, len(rank)))


def _get(job: _Job, resource: Resource) -> "Arrived | list[Left]":
    """Ask one source after the other; return the file, or why none gave it."""
    left: list[Left] = []
    target = job.incoming(resource.key)
    for source in _ordered(job, resource):
        try:
            with job.host(source.host):
                received = _WAYS[source.kind](job, source, resource, target)
        except Refusal as refusal:
            left.append(Left(host=source.place, reason=refusal.reason, kind=refusal.kind))
            continue
        if resource.sha256 not in {"", received}:
            target.unlink()
            left.append(Left(host=source.place, reason=_OTHER_BYTES, kind="integrity"))
            continue
        stamp = put(job.folder, resource, target, received)
        return Arrived(resource=resource, stamp=stamp, source=source.url, left=tuple(left))
    return left or [Left(host="", reason="it has no source", kind="network")]


_OTHER_BYTES = "its bytes are not the published ones"


def _size(resource: Resource) -> int | None:
    return resource.bytes if resource.exact or resource.recorded else None


def _from_file(job: _Job, source: Source, resource: Resource, target: Path) -> str:
    tick = job.ticker(resource.path)
    return job.web.download(
        source.url, target, size=_size(resource), sha256=resource.sha256, tick=tick
    ).sha256


def _from_s3(job: _Job, source: Source, resource: Resource, target: Path) -> str:
    """Ask for the object as anybody may; where that is forbidden, with the user's credentials."""
    from scibench_data import objectstore

    open_to_all = Source(kind="file", url=objectstore.public_url(source.url))
    try:
        return _from_file(job, open_to_all, resource, target)
    except Refusal as refusal:
        if refusal.kind != "licence":
            raise
        signed = objectstore.signed_url(source.url)
        if signed is None:
            reason = f"{refusal.reason}; {objectstore.NO_CREDENTIALS}"
            raise Refusal(reason, "licence", refusal.status) from refusal
    return _from_file(job, Source(kind="file", url=signed), resource, target)


def _from_query(job: _Job, source: Source, resource: Resource, target: Path) -> str:
    from scibench_data import events

    target.unlink(missing_ok=True)  # what a killed run left
    try:
        found = events.fetch_events(job.web, source.url, target, job.ticker(resource.path))
    except IntegrityError as error:
        raise Refusal(str(error), "integrity") from error
    return found.sha256


def _from_archive(job: _Job, source: Source, resource: Resource, target: Path) -> str:
    """Fetch the archive once for all its wanted members, and read them in one pass."""
    parcel = job.parcel(source.url)
    with parcel.lock:
        if resource.path not in parcel.files:
            _open_archive(job, source, parcel)
    file, sha256 = parcel.files[resource.path]
    file.replace(target)
    return sha256


def _open_archive(job: _Job, source: Source, parcel: _Parcel) -> None:
    from scibench_data import archives

    members = _members(job, source)
    files = {name: job.incoming(f"{source.url}#{name}") for name in members}
    archive = job.incoming(source.url)
    tick = job.ticker(source.url.rpartition("/")[2])
    job.web.download(source.url, archive, size=None, tick=tick)
    for file in files.values():
        file.unlink(missing_ok=True)  # what a killed run left
    try:
        sizes = {name: _size(resource) for name, resource in members.items()}
        hashes = archives.extract(archive, files, sizes)
    except IntegrityError as error:
        raise Refusal(str(error), "integrity") from error
    finally:
        archive.unlink(missing_ok=True)
    parcel.files |= {members[name].path: (file, hashes[name]) for name, file in files.items()}


def _from_dataset(job: _Job, source: Source, resource: Resource, target: Path) -> str:
    """Clone the dataset once for all its wanted files, and let git-annex get them there."""
    parcel = job.parcel(source.url)
    with parcel.lock:
        if not parcel.files:
            _open_dataset(job, source, parcel)
    if resource.path not in parcel.files:
        reason = "its content is not to be had from the dataset's sources"
        raise Refusal(reason)
    file, sha256 = parcel.files[resource.path]
    share(file, target, link=False)
    return sha256


def _open_dataset(job: _Job, source: Source, parcel: _Parcel) -> None:
    from scibench_data import thirdparty

    members = _members(job, source)
    clone = job.incoming(source.url)
    durable.remove_tree(clone)  # what a killed run left
    clone.mkdir()
    job.clones.append(clone)
    try:
        found = thirdparty.fetch_files(source.url, list(members), clone, job.settings.allowed_hosts)
    except ScibenchError as error:
        raise Refusal(str(error)) from error
    for name, file in found.items():
        parcel.files[members[name].path] = (file, durable.sha256_file(file))


def _members(job: _Job, source: Source) -> dict[str, Resource]:
    """Return the wanted files that lie in the same archive or dataset, by their paths within it."""
    return {
        each.member: resource
        for resource in job.wanted
        for each in map(parse_source, resource.sources)
        if each.kind == source.kind and each.url == source.url
    }


_WAYS: dict[str, Callable[[_Job, Source, Resource, Path], str]] = {
    "file": _from_file,
    "s3": _from_s3,
    "fdsn": _from_query,
    "zip": _from_archive,
    "tar": _from_archive,
    "datalad": _from_dataset,
}


# --- what is on this disk -------------------------------------------------------------------------


def _origin(reference: Reference, settings: Settings) -> Origin | None:
    """Return where the package was added from; None for one that ships with scibench-data."""
    name = reference.package.name
    if name in catalog.shipped_names():
        return None
    with contextlib.suppress(NotFoundError):
        return origins(settings.home, name)
    return None


def take_local(
    folder: Path, reference: Reference, wanted: Iterable[Resource], settings: Settings
) -> list[Arrived]:
    """Take what is on this disk already: in other versions, the site's cache, or its own folder."""
    name = reference.package.name
    homes = filter(None, (settings.home, settings.site))
    others = [other for home in homes for other in (home / "datasets" / name).glob("[!.]*")]
    origin = _origin(reference, settings)
    arrived = []
    for resource in wanted:
        if not resource.published:
            continue
        places = [(object_path(o, resource), True) for o in sorted(others) if o != folder]
        if origin and isinstance(place := source_of(origin, resource), Path):
            places.append((place, False))  # somebody's own file: never linked, it may be edited
        for place, link in places:
            if stamp := _take(folder, resource, place, link=link):
                arrived.append(Arrived(resource=resource, stamp=stamp, source=str(place)))
                break
    return arrived


def _take(folder: Path, resource: Resource, place: Path, *, link: bool) -> Stamp | None:
    """Take one file if it is there and has the published bytes."""
    try:
        if place.lstat().st_size != resource.bytes:
            return None
    except OSError:
        return None
    beside = folder / NOTES / "incoming" / "local"
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)
    with contextlib.suppress(PermissionError):
        share(place, beside, link=link)
        if (sha256 := durable.sha256_file(beside)) == resource.sha256:
            return put(folder, resource, beside, sha256)
    beside.unlink(missing_ok=True)
    return None


# --- all of them ----------------------------------------------------------------------------------


def fetch(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    progress: Progress,
) -> Iterator[Arrived]:
    """Get the content of `wanted` into the dataset at `folder`; yield each file that came.

    Raises
    ------
    IntegrityError
        No source of a file has the published bytes.
    LicenceError
        A source wants credentials or terms accepted.
    NetworkError
        A file can't be reached.
    """
    from scibench_data.web import Web

    missed: dict[str, list[Left]] = {}
    left: collections.Counter[Left] = collections.Counter()
    size = sum(resource.bytes for resource in wanted)
    with (
        progress.task("get", size or None) as task,
        Web(allowed_hosts=settings.allowed_hosts, connections=settings.connections) as web,
    ):
        (folder / NOTES / "incoming").mkdir(exist_ok=True)
        origin = _origin(reference, settings)
        job = _Job(
            folder=folder, settings=settings, web=web, task=task, wanted=wanted, origin=origin
        )
        try:
            for resource, outcome in _in_threads(job):
                if isinstance(outcome, Arrived):
                    left.update(outcome.left)
                    yield outcome
                else:
                    missed[resource.path] = outcome
        finally:
            for clone in job.clones:
                durable.remove_tree(clone)
    for each, count in left.items():
        progress.say(f"{each.host}: left for another source, {each.reason} ({count} files)")
    if missed:
        raise _explain(reference, missed, len(wanted))


def _in_threads(job: _Job) -> "Iterator[tuple[Resource, Arrived | list[Left]]]":
    with ThreadPoolExecutor(job.settings.connections) as pool:
        work = [(resource, pool.submit(_get, job, resource)) for resource in job.wanted]
        try:
            for resource, future in work:
                yield resource, future.result()
        except BaseException:
            job.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _explain(reference: Reference, missed: dict[str, list[Left]], wanted: int) -> ScibenchError:
    kinds = {each.kind for reasons in missed.values() for each in reasons}
    if "licence" in kinds:
        kind: type[ScibenchError] = LicenceError
        cure = "ask the host for access, give credentials, and run the same command again"
    elif kinds == {"integrity"}:
        kind, cure = IntegrityError, "nothing of it was kept, report it to the maintainers"
    else:
        kind, cure = NetworkError, "what came is kept, run the same command again to go on"
    lines = [f"{reference}: {len(missed)} of {wanted} files could not be had; {cure}"]
    for path, reasons in list(missed.items())[:_SHOWN]:
        told = "; ".join(f"{each.host}: {each.reason}".removeprefix(": ") for each in reasons)
        lines.append(f"  {path}: {told}")
    if len(missed) > _SHOWN:
        lines.append(f"  and {len(missed) - _SHOWN} more")
    return kind("\n".join(lines))
