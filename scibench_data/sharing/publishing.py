"""A package where others can get it: with this program, with DataLad alone, or with a browser.

One format for every place: a bare git repository (``main``, ``git-annex``, a tag for each version)
with content in ``annex/objects`` and ``git update-server-info`` done. As a folder it is a sibling;
served as files it is a web space, which git clones (its dumb protocol) and git-annex gets from; in
a bucket it is both. A git server takes the git part, and content lies elsewhere.

Content is put first and references last: what can be cloned is complete. The ``git-annex`` branch
says that this publication, by a UUID of its own, has the content.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.annexed.annex import LOCAL, Reach
from scibench_data.annexed.copying import share
from scibench_data.catalog import Reference
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    SpaceError,
    UsageError,
)
from scibench_data.getting import holdings
from scibench_data.getting.origins import is_url, published_object
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing.adding import add, place_of, scratch
from scibench_data.sharing.assembling import (
    Content,
    Job,
    assemble,
    find_content,
    held_elsewhere,
    merged,
    mirror_logs,
    place_logs,
    push,
    refuse_unreachable,
)
from scibench_data.sources import parse_source, source_fault

if TYPE_CHECKING:
    from scibench_data.net.web import Web

_CLOSED = "nobody without credentials can read there; let everybody read that part of the bucket"
_BUCKET = ("s3+https://", "s3+http://")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What `publish` did.

    Attributes
    ----------
    kind
        ``folder``, ``bucket`` or ``server``.
    url
        What others clone: the place, or the web space that a bucket is.
    note
        What keeps others from getting it; empty where nothing does.
    files, bytes
        How many files' content lies there now, and their size. [B]
    put
        How many of them were put by this call.
    """

    name: str
    version: str
    commit: str
    place: str
    kind: str
    files: int
    bytes: int
    put: int
    url: str = ""
    note: str = ""


def publish(
    subject: str | Path,
    to: str | Path,
    *,
    content_url: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Publication:
    """Publish a version and all before it; again, it adds what is new.

    Content that is on this disk goes along, but not to a git server. What is not on this disk must
    be reachable: by its sources, its recipe, or `content_url`.

    Parameters
    ----------
    subject
        ``NAME[@VERSION]``, or a folder with a ``datapackage.json``, which is added first.
    to
        A folder, which may be a bare repository already; ``s3+https://endpoint/bucket/prefix``; or
        the https URL of a repository that exists on a git server.
    content_url
        URL of another publication that has the content.

    Raises
    ------
    NotFoundError
        Nobody could get some files from there: they are listed, and nothing was published.
    IntegrityError
        What is published there has another history, or content here has wrong bytes.
    UsageError
        The place can't be published to.
    NetworkError, LicenceError, SpaceError
        The place can't be reached, does not let us in, or is full.
    """
    settings = settings or load_settings()
    place, kind = _place(to, settings)
    reference = _reference(subject, settings, progress)
    release, versions = reference.release, catalog.history(reference.release, reference.package)
    lock = settings.home / "locks" / f"{release.name}.publish.lock"
    with (
        durable.disk_errors(settings.home),
        durable.lock(lock, settings.lock_timeout),
        scratch(settings.home, "publish") as folder,
    ):
        folder.mkdir()
        job = Job(
            release=release, versions=versions, place=place, scratch=folder, settings=settings,
            progress=progress, content={} if kind == "server" else find_content(versions, settings),
            content_url=_base(content_url, settings),
        )  # fmt: skip
        return {"folder": _to_folder, "bucket": _to_bucket, "server": _to_server}[kind](job)


def _place(to: str | Path, settings: Settings) -> tuple[str, str]:
    """Return the place's one spelling and its kind."""
    text = str(to)
    if not text.startswith(_BUCKET):
        place, _ = place_of(text, settings)
        return place, "server" if is_url(text) else "folder"
    url = text.rstrip("/")
    if fault := source_fault(url, settings.allowed_hosts):
        message = f"the place: {fault}; write s3+https://endpoint/bucket/prefix"
        raise UsageError(message)
    place_of(text, settings)  # refuses it where offline was asked for
    return url, "bucket"


def _base(content_url: str | None, settings: Settings) -> str:
    if not content_url:
        return ""
    if not is_url(content_url):
        message = f"{content_url}: others can't get content from there; give the URL of a web space"
        raise UsageError(message)
    return place_of(content_url, settings)[0]


def _reference(subject: str | Path, settings: Settings, progress: Progress) -> Reference:
    """Find a version; a folder is told from a name by a '/', or by not being one."""
    named = str(subject).partition("@")[0] in catalog.package_names(settings.home)
    given = isinstance(subject, Path) or "/" in subject or not named
    if given and (Path(subject) / "datapackage.json").is_file():
        name = add(subject, settings=settings, progress=progress).name
        return catalog.resolve(name, settings.home)
    reference = catalog.resolve(str(subject), settings.home)
    if reference.release.derived:
        message = (
            f"{subject}: derived on this machine, and only releases are published; "
            "make a package of your own of it with scibench-data init"
        )
        raise UsageError(message)
    return reference


# --- a folder -------------------------------------------------------------------------------------


def _is_repository(folder: Path) -> bool:
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir()


def _to_folder(job: Job, folder: Path | None = None, there: Collection[str] = ()) -> Publication:
    """Publish to a folder.

    Parameters
    ----------
    folder
        Where, if it isn't the place itself.
    there
        Keys whose content lies at the place already, beside what lies in the folder.
    """
    place = Path(job.place) if folder is None else folder
    if os.path.lexists(place) and not _is_repository(place) and any(_entries(place)):
        message = f"{place}: neither empty nor a publication; choose a folder of its own"
        raise UsageError(message)
    with durable.disk_errors(place):
        lying = {
            key: resource
            for key, resource in job.by_key().items()
            if holdings.size_of(published_object(place, key)) == resource.bytes or key in there
        }
        held = held_elsewhere(job)
        refuse_unreachable(job, {*lying, *held})
        number = _number(job, place)
        carried = lying | {key: content.resource for key, content in job.content.items()}
        before = str(place) if _is_repository(place) else ""
        logs = merged(place_logs(job, number, sorted(carried)), mirror_logs(job, sorted(held)))
        history = assemble(job, before, LOCAL, logs)
        _make_repository(place, number)
        put = _place_objects(job, place, [k for k in job.content if k not in lying])
        commit = push(job, history, str(place), LOCAL)
        annex.git("--git-dir=.", "update-server-info", cwd=place)
        durable.flush_filesystem(place)
    return Publication(
        name=job.release.name,
        version=job.release.version,
        commit=commit,
        place=job.place,
        kind="folder",
        files=len(carried),
        bytes=sum(resource.bytes for resource in carried.values()),
        put=put,
        url=job.place,
    )


def _entries(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else [str(folder)]  # noqa: PTH208


def _number(job: Job, folder: Path) -> str:
    """Return the publication's UUID: the one that it has, or one that follows from its place."""
    if _is_repository(folder):
        told = annex.git("--git-dir=.", "config", "--default", "", "annex.uuid", cwd=folder)
        if told:
            return told
    return str(uuid.uuid5(uuid.UUID(job.package.uuid), f"publication {job.place}"))


def _make_repository(folder: Path, number: str) -> None:
    """Make an empty one where there is none, and let git-annex know it by its UUID."""
    folder.mkdir(parents=True, exist_ok=True)
    new = ("--quiet", "--bare", "--template=", "--object-format=sha1", "-b", "main")
    annex.git("init", *new, cwd=folder)
    annex.git("--git-dir=.", "symbolic-ref", "HEAD", "refs/heads/main", cwd=folder)
    annex.git("--git-dir=.", "config", "annex.uuid", number, cwd=folder)
    annex.git("--git-dir=.", "config", "annex.version", "10", cwd=folder)


def _place_objects(job: Job, folder: Path, keys: Sequence[str]) -> int:
    """Put content where git-annex looks for it; each file appears when it is whole and right."""
    incoming = folder / "annex/tmp/publishing"
    if incoming.exists():
        durable.remove_tree(incoming)
    done = 0
    wanted = [job.content[key] for key in keys]
    total = sum(content.resource.bytes for content in wanted)
    if folder.stat().st_dev != job.scratch.stat().st_dev:
        holdings.refuse_full(folder, total)  # elsewhere nothing can be shared with the cache
    with job.progress.task("publish", total) as task:
        for content in wanted:
            incoming.mkdir(parents=True, exist_ok=True)
            _place_object(content, incoming / "object", folder)
            done += content.resource.bytes
            task.update(done, note=content.resource.path)
    if incoming.exists():
        durable.remove_tree(incoming)
    _renew_stamps(wanted)
    durable.flush_filesystem(folder)
    return len(wanted)


def _place_object(content: Content, beside: Path, folder: Path) -> None:
    resource = content.resource
    target = published_object(folder, resource.key)
    how = share(content.path, beside, link=content.dataset is not None)
    known = content.sure and holdings.size_of(beside) == resource.bytes
    if not known and durable.sha256_file(beside) != resource.sha256:
        message = f"{content.path}: not the published bytes of {resource.path}; get it again"
        raise IntegrityError(message)
    if how != "link":  # an object is protected already, and may be another user's
        beside.chmod(0o444)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.replace(target)


def _renew_stamps(contents: Iterable[Content]) -> None:
    """Note that objects which got one more name are the ones that were hashed."""
    by_dataset: dict[Path, list[Content]] = {}
    for content in contents:
        if content.dataset is not None and content.sure:
            by_dataset.setdefault(content.dataset, []).append(content)
    for folder, linked in by_dataset.items():
        path = holdings.stamps_path(folder)
        stamps = durable.read_stamps(path)
        for each in linked:
            stamps[each.resource.key] = durable.stamp(each.path, each.resource.sha256)
        with contextlib.suppress(SpaceError):  # the site's cache is only read
            durable.write_stamps(path, stamps)


# --- a bucket -------------------------------------------------------------------------------------


def _to_bucket(job: Job) -> Publication:
    """Publish to a bucket: the same folder, made beside the cache and uploaded."""
    from scibench_data.net.uploading import upload_tree
    from scibench_data.net.web import Web

    tree, content = job.scratch / "tree", job.scratch / "content"
    with Web(allowed_hosts=job.settings.allowed_hosts) as web:
        there = _download_git(web, job.place, tree)
    done = _to_folder(job, tree, {key for key in job.by_key() if build.key_file(key) in there})
    annex.git("--git-dir=.", "repack", "-a", "-d", "-q", cwd=tree)
    annex.git("--git-dir=.", "pack-refs", "--all", cwd=tree)
    annex.git("--git-dir=.", "update-server-info", cwd=tree)
    content.mkdir()
    for name in ("annex", "objects"):
        if (tree / name).is_dir():
            (tree / name).rename(content / name)
    size = sum(path.stat().st_size for path in job.scratch.glob("content/**/*") if path.is_file())
    with job.progress.task("upload", size) as task:
        tick = _counted(task.update)
        for part in (content, tree):  # what the references lead to goes first
            upload_tree(part, job.place, tick, allowed=job.settings.allowed_hosts)
    url = parse_source(job.place).url
    with Web(allowed_hosts=job.settings.allowed_hosts, patience=0.0) as web:
        note = "" if _is_open(web, f"{url}/HEAD") else _CLOSED
    return replace(done, kind="bucket", url=url, note=note)


def _is_open(web: "Web", url: str) -> bool:
    """Tell whether anybody may read there."""
    from scibench_data.net.guard import Refusal

    try:
        web.read(url, 1 << 20)
    except Refusal:
        return False
    return True


def _counted(update: Callable[[int], None]) -> Callable[[int], None]:
    done = [0]

    def tick(more: int) -> None:
        done[0] += more
        update(done[0])

    return tick


def _download_git(web: "Web", url: str, tree: Path) -> set[str]:
    """Copy the git part of a bucket's publication to `tree`; return its keys, as file names."""
    from scibench_data.net.objectstore import list_prefix, parse_place, public_url, signed_url

    if not _is_there(web, f"{url}/HEAD"):
        return set()
    place, keys = parse_place(url), set[str]()
    for entry in list_prefix(web, url):
        within = entry.key.removeprefix(place.folder)
        if within.startswith("annex/"):
            keys.add(within.rpartition("/")[2])
        else:
            target = tree / within
            target.parent.mkdir(parents=True, exist_ok=True)
            address = f"{url}/{quote(within)}"
            address = signed_url(address) or public_url(address)
            web.download(address, target, size=entry.bytes)
    for name in ("objects", "refs/heads"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    return keys


def _is_there(web: "Web", url: str) -> bool:
    """Tell whether an object lies in a bucket.

    Raises
    ------
    LicenceError, NetworkError
        That can't be found out.
    """
    from scibench_data.net.guard import Refusal
    from scibench_data.net.objectstore import public_url, signed_url

    told = None
    for address in filter(None, (signed_url(url), public_url(url))):
        try:
            web.read(address, 1 << 20)
        except Refusal as refusal:
            if refusal.status == 404:
                return False
            told = refusal
        else:
            return True
    kind = LicenceError if told and told.kind == "licence" else NetworkError
    message = f"{url}: can't be asked ({told}); check bucket and credentials"
    raise kind(message)


# --- a git server ---------------------------------------------------------------------------------


def _to_server(job: Job) -> Publication:
    """Push the git part to a git server; content has to be elsewhere."""
    held = held_elsewhere(job)
    refuse_unreachable(job, held)
    scheme = urlsplit(job.place).scheme
    reach = Reach(protocols=(scheme,), signed_in=True)
    history = assemble(job, job.place, reach, mirror_logs(job, sorted(held)))
    with job.progress.task("push", None, "files"):
        commit = push(job, history, job.place, reach)
    return Publication(
        name=job.release.name,
        version=job.release.version,
        commit=commit,
        place=job.place,
        kind="server",
        files=0,
        bytes=0,
        put=0,
        url=job.place,
    )
