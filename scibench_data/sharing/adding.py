"""Packages from outside: a folder, a publication, or a DataLad dataset that knows nothing of us.

What is added is data only. Descriptors are checked as strangers' descriptors are, the dataset's
commit is computed from them and compared with what was published, and nothing of a repository is
checked out. What is registered in the cache, below ``added/NAME``::

    releases.json                    the versions and their commits
    origin.json                      where they were found, and where their content lies
    VERSION/datapackage.json         and the lists of files beside it
"""

import functools
import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.annexed.annex import LOCAL, Reach
from scibench_data.catalog import order, read_releases
from scibench_data.describing.scanning import files_folder
from scibench_data.descriptor import MAX_LIST_BYTES, DataPackage, parse, read_descriptor
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    ScibenchError,
    UsageError,
)
from scibench_data.foreign import url_fault
from scibench_data.getting import thirdparty
from scibench_data.getting.origins import Origin, is_url, origins
from scibench_data.profile import MAX_BYTES
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sources import parse_source

RELEASES = "releases"
"""The branch of a publication that holds ``releases.json``: what changed, and what was yanked."""

_MAX_VERSIONS = 1000


@dataclass(frozen=True, kw_only=True)
class Added:
    """What `add` did.

    Attributes
    ----------
    versions
        The versions that were new, oldest first.
    notes
        What was left out, and what is not known.
    """

    name: str
    versions: tuple[str, ...]
    origin: Origin
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies at an origin, checked by itself: versions, and what is told of each."""

    origin: Origin
    packages: Mapping[str, DataPackage]
    entries: Mapping[str, Mapping[str, Any]]  # of releases.json, as far as there is one
    tip: str = ""  # the commit of the publication's newest version
    notes: tuple[str, ...] = ()


# --- places ---------------------------------------------------------------------------------------


def place_of(text: str | Path, settings: Settings) -> tuple[str, Reach]:
    """Return a place in its one spelling, an https URL or an absolute path, and how to reach it.

    An ``s3+https`` URL is the web space that the bucket is too.

    Raises
    ------
    UsageError
        It is a URL that may not be asked.
    NetworkError
        It is a URL, and offline was asked for.
    """
    place = str(text)
    if not is_url(place):
        return str(Path(place).expanduser().absolute()), LOCAL
    url = parse_source(place).url.rstrip("/")
    if fault := url_fault(url, settings.allowed_hosts):
        message = f"the place: {fault}; name an https URL or a folder"
        raise UsageError(message)
    if settings.offline:
        message = f"{url}: in the network, and offline was asked for; try it without --offline"
        raise NetworkError(message)
    return url, Reach(protocols=(urlsplit(url).scheme,))


# --- looking at an origin -------------------------------------------------------------------------


def _read_folder(folder: Path, settings: Settings) -> Found:
    """Read ``datapackage.json``, or each version's, and look for what is not data."""
    listed = folder / "releases.json"
    entries: dict[str, Mapping[str, Any]] = {}
    paths = [folder / "datapackage.json"]
    if listed.is_file():
        told = read_releases(listed.read_bytes(), str(listed))
        entries = {entry["version"]: entry for entry in told}
        paths = [folder / version / "datapackage.json" for version in entries]
    allowed = settings.allowed_hosts
    read = [functools.partial(read_descriptor, path, allowed=allowed) for path in paths]
    packages = _collect(str(folder), read)
    code = sorted(path.name for path in folder.glob("*.py"))
    notes = (f"left out, for code is never taken: {', '.join(code)}",) if code else ()
    files = files_folder(folder)
    contents = () if files == folder else (str(files),)
    origin = Origin(kind="folder", place=str(folder), contents=contents)
    return Found(origin=origin, packages=packages, entries=entries, notes=notes)


def _collect(subject: str, read: Sequence[Callable[[], DataPackage]]) -> dict[str, DataPackage]:
    """Read all versions; tell the problems of all of them at once."""
    packages: dict[str, DataPackage] = {}
    found: list[str] = []
    for each in read:
        try:
            package = each()
        except DescriptorError as error:
            found += [f"{str(error).partition(': ')[0]}: {problem}" for problem in error.problems]
            continue
        if "+" in package.version:
            found.append(f"{package.version}: a version derived on a machine; release it first")
        if packages.setdefault(package.version, package) is not package:
            found.append(f"{package.version}: more than one descriptor has this version")
    for what, values in (
        ("name", {package.name for package in packages.values()}),
        ("scibench.uuid", {package.uuid for package in packages.values()}),
    ):
        if len(values) > 1:
            found.append(f"{what}: differs between the versions: {', '.join(sorted(values))}")
    if found:
        raise DescriptorError(subject, found)
    return packages


def _blob(bare: Path, name: str, limit: int) -> bytes:
    """Read a file of a commit; empty where there is none, or it is larger than a descriptor."""
    try:
        size = int(annex.git("--git-dir=.", "cat-file", "-s", name, cwd=bare))
    except ScibenchError:
        return b""
    if size > limit:
        return b""
    return annex.read_git("--git-dir=.", "cat-file", "blob", name, cwd=bare)


def _refs(bare: Path, pattern: str) -> dict[str, str]:
    shape = "--format=%(refname) %(objectname)"
    told = annex.git("--git-dir=.", "for-each-ref", shape, pattern, cwd=bare)
    rows = (line.split() for line in told.splitlines())
    return {ref: commit for ref, commit, *_ in rows}


def read_publication(bare: Path, place: str, settings: Settings) -> Found | None:
    """Read the versions of a publication from a bare clone; None where it is none of ours.

    Raises
    ------
    DescriptorError
        A version's descriptor has problems.
    """
    tags = {ref.removeprefix("refs/tags/"): sha for ref, sha in _refs(bare, "refs/tags/v*").items()}
    main = _blob(bare, "refs/heads/main:datapackage.json", MAX_BYTES)
    if b'"scibench"' not in main or not 0 < len(tags) <= _MAX_VERSIONS:
        return None

    def reader(tag: str) -> Callable[[], DataPackage]:
        def read() -> DataPackage:
            return parse(
                _blob(bare, f"{tag}:datapackage.json", MAX_BYTES),
                f"{place} {tag}",
                allowed=settings.allowed_hosts,
                beside=lambda path: _blob(bare, f"{tag}:{path}", MAX_LIST_BYTES),
            )

        return read

    packages = _collect(place, [reader(tag) for tag in tags])
    told = _blob(bare, f"{RELEASES}:releases.json", MAX_BYTES)
    listed = read_releases(told, f"{place} releases.json") if told else []
    entries: dict[str, dict[str, Any]] = {version: {} for version in packages}
    entries |= {entry["version"]: entry for entry in listed if entry["version"] in packages}
    for version in packages:
        entries[version] = {**entries[version], "commit": tags.get(f"v{version}", "")}
    origin = Origin(kind="publication", place=place, contents=_contents(bare, settings))
    tip = _refs(bare, "refs/heads/main").get("refs/heads/main", "")
    return Found(origin=origin, packages=packages, entries=entries, tip=tip)


def _contents(bare: Path, settings: Settings) -> tuple[str, ...]:
    """Return the further publications that the ``git-annex`` branch names (`publishing`)."""
    log = _blob(bare, "refs/heads/git-annex:remote.log", MAX_BYTES).decode("utf-8", "replace")
    found = re.findall(r"\bname=content-[0-9a-f]+ type=web urlinclude=(\S+)/\*", log)
    return tuple(
        dict.fromkeys(url for url in found if url_fault(url, settings.allowed_hosts) is None)
    )


def _read_repository(place: str, reach: Reach, settings: Settings, name: str | None) -> Found:
    with tempfile.TemporaryDirectory(prefix="scibench-data-") as scratch:
        bare = Path(scratch) / "clone"
        branch = annex.fetch_all(place, bare, reach)
        found = read_publication(bare, place, settings)
        if found:
            return found
        package, notes = thirdparty.describe(bare, branch, place, name, settings)
    origin = Origin(kind="datalad", place=place)
    return Found(origin=origin, packages={package.version: package}, entries={}, notes=notes)


def look(place: str, reach: Reach, settings: Settings, name: str | None = None) -> Found:
    """Read what lies at a place.

    Raises
    ------
    NotFoundError
        There is nothing that can be added.
    DescriptorError
        Descriptors have problems; all are told at once.
    NetworkError
        It can't be reached.
    """
    folder = Path(place)
    if is_url(place):
        return _read_repository(place, reach, settings, name)
    if (folder / "HEAD").is_file() or (folder / ".git").exists():
        return _read_repository(place, reach, settings, name)
    if (folder / "datapackage.json").is_file() or (folder / "releases.json").is_file():
        return _read_folder(folder, settings)
    message = (
        f"{place}: neither a folder with a datapackage.json nor a repository; "
        "make a descriptor with scibench-data init"
    )
    raise NotFoundError(message)


# --- registering ----------------------------------------------------------------------------------


def add(
    origin: str | Path,
    *,
    name: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Added:
    """Register a package from outside, or the new versions of one that was added before.

    Parameters
    ----------
    origin
        A folder with a ``datapackage.json``, or with ``releases.json`` and a folder for each
        version; or the URL or path of a publication or of a DataLad dataset.
    name
        The name to register it by, where its own is taken.

    Raises
    ------
    UsageError
        Its name is taken, or the URL may not be asked.
    DescriptorError
        Descriptors have problems; all are told at once.
    IntegrityError
        A version that was released has changed, or the commits are not those of the descriptors.
    NetworkError
        It can't be reached.
    """
    settings = settings or load_settings()
    place, reach = place_of(origin, settings)
    with progress.task("look", None, "files"):
        found = look(place, reach, settings, name)
    return register(found, name, settings)


def register(found: Found, name: str | None, settings: Settings) -> Added:
    """Check what was found against what is registered, and write what is new.

    Raises
    ------
    UsageError
        The name is taken.
    IntegrityError
        A released version has changed, or a commit is not that of its descriptor.
    """
    own = next(iter(found.packages.values())).name
    chosen = name or own
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", chosen):
        message = f"{chosen!r}: not a name; use lower-case letters, digits and '_', a letter first"
        raise UsageError(message)
    home = settings.home
    with durable.disk_errors(home), durable.lock(_lock(home, chosen), settings.lock_timeout):
        _refuse_taken(chosen, found.origin, home)
        before = _registered(chosen, home)
        packages = {version: package for version, (package, _) in before.items()} | dict(
            found.packages
        )
        _refuse_changed(found, before)
        ordered = sorted(packages.values(), key=lambda package: order(package.version))
        commits = _commits(ordered, home)
        _refuse_other_commits(found, commits)
        entries = [_entry(package, commits[package.version], found, before) for package in ordered]
        new = tuple(p.version for p in ordered if p.version not in before)
        _write(home, chosen, found, ordered, entries)
    return Added(name=chosen, versions=new, origin=found.origin, notes=found.notes)


def _lock(home: Path, name: str) -> Path:
    return home / "locks" / f"{name}.added.lock"


def _refuse_taken(name: str, origin: Origin, home: Path) -> None:
    cure = "choose another name with --as"
    if name in catalog.shipped_names():
        message = f"{name}: a package of that name ships with scibench-data; {cure}"
        raise UsageError(message)
    if name in catalog.added_names(home):
        known = origins(home, name)
        if "bundle" not in {known.kind, origin.kind} and known.place != origin.place:
            message = f"{name}: added from {known.place} before; {cure}, or forget it first"
            raise UsageError(message)


def _registered(name: str, home: Path) -> dict[str, tuple[DataPackage, dict[str, Any]]]:
    """Read what is registered by that name: version -> package, entry of ``releases.json``."""
    folder = catalog.added_folder(home, name)
    path = folder / "releases.json"
    if not path.is_file():
        return {}
    entries = read_releases(path.read_bytes(), str(path))
    return {
        entry["version"]: (
            read_descriptor(folder / entry["version"] / "datapackage.json", allowed=None),
            entry,
        )
        for entry in entries
    }


def _refuse_changed(
    found: Found, before: Mapping[str, tuple[DataPackage, Mapping[str, Any]]]
) -> None:
    for version, package in found.packages.items():
        known = before.get(version)
        if known and known[0].text != package.text:
            message = (
                f"{package.name}@{version}: its descriptor has changed since it was added, and a "
                f"version never changes; make a new version, or forget {package.name} first"
            )
            raise IntegrityError(message)
    gone = sorted(before.keys() - found.packages.keys())
    if gone and found.origin.kind == "publication":
        message = (
            f"{found.origin.place}: version {gone[0]} is gone from it, so its history was "
            "rewritten; ask its publisher why"
        )
        raise IntegrityError(message)


def _commits(packages: Sequence[DataPackage], home: Path) -> dict[str, str]:
    """Compute the commit of every version, as it is on every machine."""
    with scratch(home, "added") as folder:
        build.import_history(folder, packages)
        shape = "--format=%(refname:strip=2) %(objectname)"
        told = annex.git("for-each-ref", shape, "refs/tags/v*", cwd=folder)
    return {line.split()[0][1:]: line.split()[1] for line in told.splitlines()}


def _refuse_other_commits(found: Found, commits: Mapping[str, str]) -> None:
    wrong = [
        f"{version}: its commit is {entry['commit']}, its descriptors give {commits[version]}"
        for version, entry in found.entries.items()
        if entry.get("commit") and entry["commit"] != commits[version]
    ]
    newest = list(commits.values())
    if found.tip and found.tip not in newest:
        wrong.append(f"main is at {found.tip}, which is none of its versions")
    if wrong:
        message = f"{found.origin.place}: {'; '.join(wrong)}; report it to its publisher"
        raise IntegrityError(message)


def _entry(
    package: DataPackage,
    commit: str,
    found: Found,
    before: Mapping[str, tuple[DataPackage, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Write a version's entry of ``releases.json``: its origin says what was yanked."""
    known = before[package.version][1] if package.version in before else {}
    told = {**known, **found.entries.get(package.version, {})}
    return {
        "version": package.version,
        "date": package.released,
        "commit": commit,
        "changes": told.get("changes", ""),
        "yanked": told.get("yanked", ""),
    }


def _write(
    home: Path,
    name: str,
    found: Found,
    packages: Sequence[DataPackage],
    entries: Sequence[Mapping[str, Any]],
) -> None:
    """Write versions first and ``releases.json``, which makes them visible, last."""
    folder = catalog.added_folder(home, name)
    for package in packages:
        place = folder / package.version
        for path, content in {"datapackage.json": package.text, **package.lists}.items():
            if not (place / path).is_file():
                durable.write_whole(place / path, content, replace=True)
    known = origins(home, name) if (folder / "origin.json").is_file() else None
    origin = known if known and found.origin.kind == "bundle" else found.origin
    written = {"origin.json": asdict(origin), "releases.json": {"releases": list(entries)}}
    for path, tree in written.items():
        if path == "releases.json" and packages[0].name != name:
            tree["package"] = packages[0].name
        text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
        durable.write_whole(folder / path, text, replace=True)


@contextmanager
def scratch(home: Path, what: str) -> Iterator[Path]:
    """Give the name of a folder in the cache that is gone afterwards; only a kill leaves it."""
    folder = home / "staging" / f"{what}-{secrets.token_hex(4)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        durable.remove_tree(folder)


def forget(name: str, *, settings: Settings | None = None) -> None:
    """Take back an `add`; datasets that were got from it stay in the cache.

    Raises
    ------
    NotFoundError
        No package of that name was added.
    """
    settings = settings or load_settings()
    if name in catalog.shipped_names() or name not in catalog.added_names(settings.home):
        message = f"{name}: not a package that was added; see scibench-data list"
        raise NotFoundError(message)
    folder = catalog.added_folder(settings.home, name)
    with (
        durable.disk_errors(settings.home),
        durable.lock(_lock(settings.home, name), settings.lock_timeout),
    ):
        gone = folder.with_name(f".{name}.removed-{secrets.token_hex(4)}")
        folder.rename(gone)
        durable.remove_tree(gone)
