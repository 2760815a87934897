"""Get files from their sources, several at once; where one source fails, the next is asked.

Bytes are hashed as they come and count only if they are the published ones. What is on this disk
already, in another version of the package or in the folder that it was added from, is not fetched.
It is collected beside the dataset, so it can come while that is built; who asked puts it there.
What came is kept when something else fails, and a download that was cut goes on where it ended.
"""

import collections
import contextlib
import dataclasses
import datetime as dt
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scibench_data import catalog, durable
from scibench_data.annexed.build import downloads, object_path
from scibench_data.annexed.copying import share
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    NotFoundError,
    ScibenchError,
)
from scibench_data.getting.origins import Origin, origins, source_of
from scibench_data.net.guard import Refusal
from scibench_data.progress import Progress, Task
from scibench_data.settings import Settings
from scibench_data.sources import Source, parse_source

if TYPE_CHECKING:
    from scibench_data.net.web import Web

_HOST_LIMITS = {"zenodo.org": 2}  # it answers 429 to more
_SHOWN = 20  # files that an error lists


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """One file that came.

    Attributes
    ----------
    file
        Where it lies, to be moved to its place.
    sha256
        Of its bytes, which were hashed as they came.
    source
        Where it came from.
    left
        The sources that were asked before.
    """

    resource: Resource
    file: Path
    sha256: str
    source: str
    left: tuple["Left", ...] = ()

    def note(self, size: int) -> dict[str, Any]:
        """Return what is recorded of a file of `size` whose publisher gives no checksum. [B]"""
        return {
            "bytes": size,
            "sha256": self.sha256,
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
        return self.folder / short


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
        return Arrived(
            resource=resource, file=target, sha256=received, source=source.url, left=tuple(left)
        )
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
    from scibench_data.net import objectstore

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
    from scibench_data.getting import events

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
    from scibench_data.getting import archives

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
    from scibench_data.getting import thirdparty

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


def _nearby(
    folder: Path, reference: Reference, settings: Settings
) -> Callable[[Resource], Iterator[tuple[Path, bool]]]:
    """Return what finds files on this disk that may be a resource, and says which may be linked.

    They are in other versions, in the site's cache, or in the folder the package was added from.
    """
    name = reference.package.name
    homes = filter(None, (settings.home, settings.site))
    found = [other for home in homes for other in (home / "datasets" / name).glob("[!.]*")]
    others = sorted(other for other in found if other != folder)
    origin = _origin(reference, settings)

    def places(resource: Resource) -> Iterator[tuple[Path, bool]]:
        if not resource.published:
            return
        known = [(object_path(other, resource), True) for other in others]
        if origin and isinstance(place := source_of(origin, resource), Path):
            known.append((place, False))  # somebody's own file: never linked, it may be edited
        for place, link in known:
            with contextlib.suppress(OSError):
                if place.lstat().st_size == resource.bytes:
                    yield place, link

    return places


def is_all_away(folder: Path, reference: Reference, settings: Settings) -> bool:
    """Tell whether no file that was asked for can be taken from this disk."""
    places = _nearby(folder, reference, settings)
    return not any(True for resource in reference.resources for _ in places(resource))


def take_local(
    folder: Path, reference: Reference, wanted: Iterable[Resource], settings: Settings
) -> Iterator[Arrived]:
    """Take what is on this disk already, one after the other: move each before the next."""
    places = _nearby(folder, reference, settings)
    target = downloads(folder) / "local"
    for resource in wanted:
        for place, link in places(resource):
            if _take(place, target, resource.sha256, link=link):
                yield Arrived(
                    resource=resource, file=target, sha256=resource.sha256, source=str(place)
                )
                break
    _tidy(target.parent)


def _take(place: Path, target: Path, sha256: str, *, link: bool) -> bool:
    """Take one file; tell whether it has the published bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with contextlib.suppress(PermissionError):
        share(place, target, link=link)
        if durable.sha256_file(target) == sha256:
            return True
    target.unlink(missing_ok=True)
    return False


def _tidy(place: Path) -> None:
    """Remove a folder of downloads, if nothing to go on with is in it."""
    with contextlib.suppress(OSError):
        place.rmdir()


# --- all of them ----------------------------------------------------------------------------------


@contextlib.contextmanager
def fetching(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    progress: Progress,
) -> Iterator[Iterator[Arrived]]:
    """Begin to get the content of `wanted` for the dataset at `folder`, which need not be there.

    Gives each file that came, in the order of `wanted`. Leaving it ends what still goes on.

    Raises
    ------
    IntegrityError
        No source of a file has the published bytes.
    LicenceError
        A source wants credentials or terms accepted.
    NetworkError
        A file can't be reached.
    """
    from scibench_data.net.web import Web

    place = downloads(folder)
    place.mkdir(parents=True, exist_ok=True)
    size = sum(resource.bytes for resource in wanted)
    with (
        progress.task("get", size or None) as task,
        Web(allowed_hosts=settings.allowed_hosts, connections=settings.connections) as web,
        ThreadPoolExecutor(settings.connections) as pool,
    ):
        origin = _origin(reference, settings)
        job = _Job(
            folder=place, settings=settings, web=web, task=task, wanted=wanted, origin=origin
        )
        once = {resource.key: resource for resource in wanted}
        work = {key: pool.submit(_get, job, resource) for key, resource in once.items()}
        try:
            yield _arrivals(reference, wanted, work, progress)
        except BaseException:
            job.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            for clone in job.clones:
                durable.remove_tree(clone)
            _tidy(place)


def _arrivals(
    reference: Reference,
    wanted: Sequence[Resource],
    work: Mapping[str, Future[Arrived | list[Left]]],
    progress: Progress,
) -> Iterator[Arrived]:
    missed: dict[str, list[Left]] = {}
    left: collections.Counter[Left] = collections.Counter()
    for resource in wanted:
        outcome = work[resource.key].result()
        if isinstance(outcome, Arrived):
            left.update(outcome.left)
            yield dataclasses.replace(outcome, resource=resource)
        else:
            missed[resource.path] = outcome
    for each, count in left.items():
        progress.say(f"{each.host}: left for another source, {each.reason} ({count} files)")
    if missed:
        raise _explain(reference, missed, len(wanted))


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
