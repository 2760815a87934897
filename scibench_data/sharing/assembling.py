"""What is to be published: content on this disk, and a git repository with history and places.

The repository is made anew from the descriptors, takes in what was published at the place before,
and says in its ``git-annex`` branch where content lies: in the publication itself, by a UUID of its
own, or in another one that is served on the web.
"""

import datetime as dt
import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.annexed.annex import LOCAL, Reach
from scibench_data.catalog import Release
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    NotFoundError,
    ScibenchError,
)
from scibench_data.getting import holdings
from scibench_data.getting.origins import object_url, origins, source_of
from scibench_data.progress import Progress
from scibench_data.settings import Settings
from scibench_data.sharing.adding import RELEASES

ABOUT = "scibench-data publication"
"""What ``uuid.log`` calls a publication."""

_SHOWN = 50  # files that an error lists
_DENIED = ("could not read Username", "Authentication failed", "403", "Permission")


@dataclass(frozen=True, kw_only=True)
class Content:
    """Content that is on this disk."""

    resource: Resource
    path: Path
    dataset: Path | None = None  # whose object it is
    sure: bool = False  # it has not changed since it was hashed


@dataclass(frozen=True, kw_only=True)
class Job:
    """One package on its way to one place."""

    release: Release
    versions: Sequence[DataPackage]
    content: Mapping[str, Content]  # by key
    place: str
    scratch: Path
    settings: Settings
    progress: Progress
    content_url: str = ""

    @property
    def package(self) -> DataPackage:
        """The newest version."""
        return self.versions[-1]

    @property
    def seconds(self) -> int:
        """Noon of the day of release: equal for who publishes the same. [s]"""
        day = dt.date.fromisoformat(self.package.released)
        return int(dt.datetime(day.year, day.month, day.day, 12, tzinfo=dt.UTC).timestamp())

    def by_key(self) -> dict[str, Resource]:
        """Return the files of all versions that have a published SHA-256, by key."""
        found = (r for package in self.versions for r in package.resources if r.published)
        return {resource.key: resource for resource in found}


# --- what there is --------------------------------------------------------------------------------


def find_content(versions: Sequence[DataPackage], settings: Settings) -> dict[str, Content]:
    """Find content on this disk: in the datasets of all versions, or where it was added from."""
    found: dict[str, Content] = {}
    for package in versions:
        for home in filter(None, (settings.home, settings.site)):
            folder = holdings.dataset_folder(home, package)
            stamps = durable.read_stamps(holdings.stamps_path(folder))
            for resource in (r for r in package.resources if r.published):
                path = build.object_path(folder, resource)
                if resource.key in found or holdings.size_of(path) != resource.bytes:
                    continue
                stamp = stamps.get(resource.key)
                sure = stamp is not None and stamp.sha256 == resource.sha256 and stamp.still(path)
                found[resource.key] = Content(
                    resource=resource, path=path, dataset=folder, sure=sure
                )
    for key, content in _beside(versions, settings):
        found.setdefault(key, content)
    return found


def _beside(versions: Sequence[DataPackage], settings: Settings) -> Iterable[tuple[str, Content]]:
    name = versions[-1].name
    if name in catalog.shipped_names() or name not in catalog.added_names(settings.home):
        return
    origin = origins(settings.home, name)
    for resource in (r for package in versions for r in package.resources if r.published):
        path = source_of(origin, resource)
        if isinstance(path, Path) and holdings.size_of(path) == resource.bytes:
            yield resource.key, Content(resource=resource, path=path)


def refuse_unreachable(job: Job, there: Collection[str]) -> None:
    """Refuse to publish files that nobody could get; `there` are keys that lie somewhere."""
    lost = [
        f"{package.version}: {resource.path}"
        for package in job.versions
        for resource in package.resources
        if not (resource.sources or package.subsets[resource.subset].recipe)
        and resource.key not in job.content
        and resource.key not in there
    ]
    if lost:
        shown = "".join(f"\n  {each}" for each in lost[:_SHOWN])
        more = f"\n  and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        message = (
            f"{job.place}: not published, for nobody could get {len(lost)} files from there; get "
            f"them here first, or name a publication that has them{shown}{more}"
        )
        raise NotFoundError(message)


def held_elsewhere(job: Job) -> set[str]:
    """Return the keys whose content another publication has, as its ``git-annex`` branch says."""
    if not job.content_url:
        return set()
    bare = job.scratch / "elsewhere"
    annex.fetch_all(job.content_url, bare, Reach(protocols=(urlsplit(job.content_url).scheme,)))
    branch = "refs/heads/git-annex"
    keys = list(job.by_key())
    names = [f"{branch}:uuid.log", *(f"{branch}:{_log(key)}" for key in keys)]
    known, *logs = annex.read_blobs(bare, names)
    ours = {line.split()[0] for line in known.splitlines() if ABOUT.encode() in line}
    lines = [[line.split() for line in log.splitlines()] for log in logs]
    return {
        key
        for key, log in zip(keys, lines, strict=True)
        if any(len(words) == 3 and words[1] == b"1" and words[2] in ours for words in log)
    }


# --- the git part ---------------------------------------------------------------------------------


def _log(key: str) -> str:
    return f"{annex.log_folder(key)}/{build.key_file(key)}.log"


def place_logs(job: Job, number: str, keys: Iterable[str]) -> dict[str, bytes]:
    """Write the logs of a ``git-annex`` branch that say that `number` has the content of `keys`."""
    when = f"{job.seconds}s"
    files = {"uuid.log": f"{number} {ABOUT} timestamp={when}\n".encode()}
    for key in keys:
        files[_log(key)] = f"{when} 1 {number}\n".encode()
    return files


def mirror_logs(job: Job, keys: Iterable[str]) -> dict[str, bytes]:
    """Write the logs that say that `content_url` has content, as a web remote of its own."""
    if not job.content_url:
        return {}
    number = str(uuid.uuid5(uuid.NAMESPACE_URL, job.content_url))
    name, when = f"content-{number[:8]}", f"{job.seconds}s"
    about = f"autoenable=true cost=220 name={name} type=web urlinclude={job.content_url}/*"
    files = {
        "uuid.log": f"{number} {name} timestamp={when}\n".encode(),
        "remote.log": f"{number} {about} timestamp={when}\n".encode(),
    }
    for key in keys:
        files[_log(key)] = f"{when} 1 {number}\n".encode()
        files[f"{_log(key)}.web"] = f"{when} 1 {object_url(job.content_url, key)}\n".encode()
    return files


def merged(*parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Join logs: their lines have no order."""
    files: dict[str, bytes] = {}
    for part in parts:
        for path, lines in part.items():
            files[path] = files.get(path, b"") + lines
    return files


def assemble(job: Job, before: str, reach: Reach, logs: Mapping[str, bytes]) -> Path:
    """Make the repository that is to be pushed: the history, and what was published there before.

    Parameters
    ----------
    before
        The repository that is published there; empty where there is none.
    logs
        What its ``git-annex`` branch has to say besides.
    """
    folder = job.scratch / "history"
    commit = build.import_history(folder, job.versions)
    if job.release.commit not in {"", commit}:
        message = (
            f"{job.release.name}@{job.release.version}: its commit is {job.release.commit}, but "
            f"its descriptors give {commit}; add or install it again"
        )
        raise IntegrityError(message)
    if before:
        refs = ("+refs/heads/*:refs/remotes/before/*", "+refs/tags/*:refs/before/*")
        quiet = ("--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
        _asked(job, "fetch", *quiet, "--", before, *refs, cwd=folder, reach=reach)
        _refuse_rewritten(job, folder)
    if logs:
        annex.commit_files(folder, "refs/remotes/here/git-annex", logs, seconds=job.seconds)
    _write_releases(job, folder)
    annex.git("config", "annex.private", "true", cwd=folder)
    annex.annex("init", "--quiet", "--no-autoenable", "publishing", cwd=folder)
    annex.annex("merge", "--quiet", cwd=folder)
    return folder


def _refs(folder: Path, pattern: str) -> dict[str, str]:
    told = annex.git("for-each-ref", "--format=%(refname) %(objectname)", pattern, cwd=folder)
    rows = (line.split() for line in told.splitlines())
    return {ref: commit for ref, commit, *_ in rows}


def _refuse_rewritten(job: Job, folder: Path) -> None:
    """Let pass only what is a beginning of our history."""
    tip = _refs(folder, "refs/remotes/before/main").get("refs/remotes/before/main")
    ours = annex.git("rev-list", "refs/heads/main", cwd=folder).split()
    if tip and tip not in ours:
        message = (
            f"{job.place}: what is published there is at {tip}, which is no version of "
            f"{job.release.name} up to {job.release.version}: a newer one, or another history; "
            "publish to another place"
        )
        raise IntegrityError(message)
    tags = _refs(folder, "refs/tags/v*")
    for ref, commit in _refs(folder, "refs/before/v*").items():
        own = tags.get(ref.replace("refs/before/", "refs/tags/"))
        if own != commit:
            message = (
                f"{job.place}: its version {ref.rpartition('/v')[2]} is at {commit}, ours at "
                f"{own or 'none'}; a version never changes, publish to another place"
            )
            raise IntegrityError(message)


def _write_releases(job: Job, folder: Path) -> None:
    """Make the branch that tells what changed and what was yanked, if that has changed."""
    before = f"refs/remotes/before/{RELEASES}"
    known = {package.version for package in job.versions}
    entries = [
        {name: getattr(each, name) for name in ("version", "date", "commit", "changes", "yanked")}
        for each in catalog.releases(job.release.name, job.settings.home)
        if each.version in known
    ]
    text = json.dumps({"releases": entries}, indent=2, ensure_ascii=False).encode() + b"\n"
    parent = before if _refs(folder, before) else ""
    if parent and annex.read_git("cat-file", "blob", f"{before}:releases.json", cwd=folder) == text:
        annex.git("update-ref", f"refs/heads/{RELEASES}", before, cwd=folder)
        return
    annex.commit_files(
        folder,
        f"refs/heads/{RELEASES}",
        {"releases.json": text},
        seconds=job.seconds,
        parent=parent,
    )


def push(job: Job, folder: Path, to: str, reach: Reach) -> str:
    """Push everything in one step and return the commit of the newest version."""
    wanted = {*_refs(folder, "refs/heads"), *_refs(folder, "refs/tags/v*")}
    refs = [f"{ref}:{ref}" for ref in sorted(wanted)]
    _asked(job, "push", "--quiet", "--atomic", "--no-verify", "--", to, *refs,
           cwd=folder, reach=reach)  # fmt: skip
    return annex.git("rev-parse", "refs/heads/main", cwd=folder)


def _asked(job: Job, *words: str, cwd: Path, reach: Reach) -> None:
    """Run a command of git that talks to the place, and say plainly why it could not.

    Raises
    ------
    LicenceError
        It wants credentials.
    NetworkError
        It can't be reached.
    """
    try:
        annex.git(*words, cwd=cwd, reach=reach)
    except ScibenchError as error:
        if reach == LOCAL or type(error) is not ScibenchError:
            raise
        if any(sign in str(error) for sign in _DENIED):
            cure = "let git know them, by a credential helper or ~/.netrc"
            message = f"{job.place}: it wants credentials that allow to push; {cure}"
            raise LicenceError(message) from error
        message = f"{job.place}: can't be reached ({error}); check the address"
        raise NetworkError(message) from error
