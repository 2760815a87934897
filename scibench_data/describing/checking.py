"""Everything that is wrong with a data package at once: descriptor, lists, releases, files, links.

A problem makes the package unsound. A warning makes it harder to find, reach or use again
(FAIR, doi:10.1038/sdata.2016.18), and fails nothing.
"""

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scibench_data import catalog
from scibench_data.describing import tables
from scibench_data.describing.about import spdx
from scibench_data.describing.scanning import DESCRIPTOR, content_path, files_folder, measure, scan
from scibench_data.describing.stated import (
    Stated,
    is_elsewhere,
    list_paths,
    read_beside,
    resource_entries,
    stated,
)
from scibench_data.descriptor import list_problems
from scibench_data.errors import DescriptorError, NetworkError, NotFoundError, UsageError
from scibench_data.profile import MAX_BYTES, decode, problems
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sources import Source, parse_source

if TYPE_CHECKING:
    from scibench_data.net.web import Web

_RELEASES = "releases.json"
_ASKED = {"file", "s3", "zip", "tar"}  # kinds of sources that answer to HEAD
_ALONE = {"file", "s3"}  # of these, those whose size is the file's own


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes
    ----------
    file
        The descriptor, list or folder that was looked at.
    place
        Where in it, or which file; may be empty.
    """

    level: Literal["problem", "warning"]
    file: str
    place: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.file, self.place, self.message]))


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A descriptor, and the folder that may hold its files."""

    path: Path
    root: Path | None = None
    name: str = ""  # that it must have
    version: str = ""


def check(
    target: str | Path,
    *,
    links: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> list[Finding]:
    """Look for everything that is wrong with a data package, and say all of it at once.

    Parameters
    ----------
    target
        A descriptor file, a package folder, or ``NAME[@VERSION]``; without a version, every one.
        Files are hashed where they lie in the folder.
    links
        Also ask every source whether it is there, and whether its size is right.

    Raises
    ------
    NotFoundError
        There is no such file, folder or package.
    NetworkError
        `links`, though offline was asked for.
    """
    chosen = settings or load_settings()
    if links and chosen.offline:
        message = "links: offline was asked for; leave out one of the two"
        raise NetworkError(message)
    found: list[Finding] = []
    for each in _targets(target, chosen, found):
        found += _Check(each, chosen, progress).findings(links=links)
    return sorted(found, key=lambda finding: finding.level != "problem")


# --- what is meant --------------------------------------------------------------------------------


def _targets(target: str | Path, settings: Settings, found: list[Finding]) -> list[_Target]:
    path = Path(target)
    if (path / DESCRIPTOR).is_file() or (path / _RELEASES).is_file():
        described = [path / DESCRIPTOR] if (path / DESCRIPTOR).is_file() else []
        return [_with_files(each, found) for each in described] + _released(path, found)
    if path.is_file():
        return [_with_files(path, found)]
    text = str(target)
    if os.sep in text or text.startswith(".") or path.is_dir():
        cure = f"write one: scibench-data init {text}" if path.is_dir() else "correct the path"
        message = f"{text}: no {DESCRIPTOR} there; {cure}"
        raise NotFoundError(message)
    name, _, version = text.partition(":")[0].partition("@")
    try:
        known = catalog.releases(name, settings.home)
    except DescriptorError as error:
        found += _told(Path(name), error)
        return []
    if version:
        known = [catalog.find_release(name, version, settings.home)]
    return [
        _Target(path=each.folder / DESCRIPTOR, name=name, version=each.version) for each in known
    ]


def _with_files(path: Path, found: list[Finding]) -> _Target:
    try:
        return _Target(path=path, root=files_folder(path.parent))
    except UsageError as error:
        found.append(_problem(path.parent, "", str(error)))
        return _Target(path=path)


def _released(folder: Path, found: list[Finding]) -> list[_Target]:
    """Find the versions that ``releases.json`` names; there need not be one."""
    path = folder / _RELEASES
    if not path.is_file():
        return []
    try:
        entries = catalog.read_releases(path.read_bytes(), str(path))
    except DescriptorError as error:
        found += _told(path, error)
        return []
    except OSError as error:
        found.append(_problem(path, "", f"can't be read: {error.strerror}"))
        return []
    return [
        _Target(path=folder / entry["version"] / DESCRIPTOR, version=entry["version"])
        for entry in entries
    ]


def _problem(file: Path, place: str, message: str) -> Finding:
    return Finding(level="problem", file=str(file), place=place, message=message)


def _told(path: Path, error: DescriptorError) -> Iterator[Finding]:
    for each in error.problems:
        place = getattr(each, "place", "")
        yield _problem(path, place, getattr(each, "message", str(each)))


# --- one descriptor -------------------------------------------------------------------------------


class _Check:
    """The checks of one descriptor, in the order in which they are told."""

    def __init__(self, target: _Target, settings: Settings, progress: Progress) -> None:
        self._target, self._settings, self._progress = target, settings, progress
        self._path, self._folder = target.path, target.path.parent
        self._tree: Any = {}
        self._stated: list[Stated] = []
        self._unsound: set[str] = set()  # places of which nothing more can be said

    def findings(self, *, links: bool) -> list[Finding]:
        """Look at everything; each step goes as far as the one before it allows."""
        try:
            with self._path.open("rb") as file:
                self._tree = decode(file.read(MAX_BYTES + 1), str(self._path))
        except OSError as error:
            return [_problem(self._path, "", f"can't be read: {error.strerror}")]
        except DescriptorError as error:
            return list(_told(self._path, error))
        self._stated = list(stated(self._tree, self._folder))
        steps = [self._descriptor(), self._lists(), self._files(), self._fair()]
        if links:
            steps.append(self._links())
        return list(itertools.chain.from_iterable(steps))

    def _warning(self, place: str, message: str) -> Finding:
        return Finding(level="warning", file=str(self._path), place=place, message=message)

    def _get(self, key: str, kind: type[Any]) -> Any:
        value = self._tree.get(key) if isinstance(self._tree, dict) else None
        return value if isinstance(value, kind) else kind()

    def _descriptor(self) -> Iterator[Finding]:
        for each in problems(self._tree, self._settings.allowed_hosts):
            self._unsound.add(each.place.partition(".")[0])
            yield _problem(self._path, each.place, each.message)
        for key in ("name", "version"):
            wanted, got = getattr(self._target, key), self._get(key, str)
            if wanted and got and got != wanted:
                yield _problem(self._path, key, f"expected {wanted!r}, got {got!r}; make them one")

    def _lists(self) -> Iterator[Finding]:
        hashes = {
            str(entry.get("path")): entry.get("hash") for _, entry in resource_entries(self._tree)
        }
        for name in list_paths(self._tree):
            path = self._folder / name
            try:
                content = read_beside(path)
            except DescriptorError as error:
                yield from _told(path, error)
                continue
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if hashes[name] != digest:
                cure = "take it in: scibench-data init --update"
                yield _problem(path, "", f"another SHA-256 than the descriptor says; {cure}")
            for each in list_problems(content, self._settings.allowed_hosts):
                yield _problem(path, each.place, each.message)

    # --- files

    def _files(self) -> Iterator[Finding]:
        root = self._target.root
        if root is None:
            return
        here, faults = self._here(root)
        yield from (_problem(root, path, fault) for path, fault in faults)
        seen = here.keys() | {path for path, _ in faults}
        absent = [each for each in self._local() if each.resource.path not in seen]
        if absent and not here and not faults:
            told = f"none of its {len(absent):,} files is there: only the descriptor was checked"
            yield self._warning("", told)
        else:
            for each in absent:
                yield _problem(root, each.resource.path, "missing; put it back, or name a source")
            yield from self._contents(root, here)
            yield from self._undescribed(root)
        yield from self._tables(root, here)

    def _local(self) -> list[Stated]:
        """Return the files that must be here: nothing else has or makes them."""
        subsets = _dict(self._get("scibench", dict).get("subsets"))
        away = {name for name, entry in subsets.items() if is_elsewhere(_dict(entry))}
        return [
            each
            for each in self._stated
            if not each.resource.sources and each.resource.subset not in away
        ]

    def _here(self, root: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
        here, faults = {}, []
        inside = root.resolve()
        for each in self._stated:
            path = each.resource.path
            file = content_path(root, path)
            try:
                real = file.resolve(strict=True)
                regular = stat.S_ISREG(real.lstat().st_mode)
            except (OSError, RuntimeError):
                continue  # absent, or a link to content that is not here
            if regular and real.is_relative_to(inside):
                here[path] = real
            else:
                faults.append((path, "leads out of the folder or is no file; put the file there"))
        return here, faults

    def _contents(self, root: Path, here: Mapping[str, Path]) -> Iterator[Finding]:
        cure = "put the file back, or take it in: scibench-data init --update"
        right = {}
        for each in self._stated:
            path, wanted = each.resource.path, each.resource
            if path not in here:
                continue
            size = here[path].stat().st_size
            if wanted.exact and size != wanted.bytes:
                yield _problem(root, path, f"{size} bytes, expected {wanted.bytes}; {cure}")
            elif wanted.sha256:
                right[path] = wanted.sha256
        files = {path: here[path] for path in right}
        measured, faults = measure(files, self._settings.jobs, self._progress)
        yield from (_problem(root, "", fault) for fault in faults)
        for path, got in measured.items():
            if got.sha256 != right[path]:
                told = f"SHA-256 {got.sha256[:16]}..., expected {right[path][:16]}..."
                yield _problem(root, path, f"{told}; {cure}")

    def _undescribed(self, root: Path) -> Iterator[Finding]:
        subsets = {each.resource.subset for each in self._stated}
        lists = list_paths(self._tree)
        found = scan(root, package=self._folder, known=sorted(subsets), lists=lists)
        yield from (_problem(root, "", fault) for fault in found.faults)
        described = {each.resource.path for each in self._stated}
        for path in found.files.keys() - described:
            cure = "take it in: scibench-data init --update"
            yield _problem(root, path, f"not described; {cure}")

    def _tables(self, root: Path, here: Mapping[str, Path]) -> Iterator[Finding]:
        found = [
            each
            for each in self._stated
            if each.entry.get("type") == "table"
            and each.resource.path in here
            and each.place not in self._unsound
            and Path(each.resource.path).suffix.lower() in tables.SUFFIXES
        ]
        if not found:
            return
        with self._progress.task("tables", len(found), "tables") as task:
            for count, each in enumerate(found):
                path = each.resource.path
                task.update(count, note=path)
                faults, unchecked = tables.table_faults(here[path], each.entry)
                yield from (_problem(root, path, fault) for fault in faults)
                if unchecked:
                    yield self._warning(path, unchecked)

    # --- what makes it hard to find and to use again

    def _fair(self) -> Iterator[Finding]:
        for index, entry in enumerate(self._get("licenses", list)):
            yield from self._licence(f"licenses[{index}]", _dict(entry))
        if not self._get("keywords", list):
            yield self._warning("keywords", "none; name some that people search for")
        works = [str(_dict(entry).get("path", "")) for entry in self._get("sources", list)]
        if not any("doi.org/10." in work for work in works):
            yield self._warning("sources", "no DOI; name the work that the data come from")
        description = self._get("description", str)
        if description and not 50 <= len(description) <= 5000:
            told = f"{len(description)} characters; Google Dataset Search takes 50 to 5,000"
            yield self._warning("description", told)

    def _licence(self, place: str, entry: Mapping[str, Any]) -> Iterator[Finding]:
        if not spdx(str(entry.get("name", ""))):
            told = "no SPDX identifier, so that no program knows the terms; see spdx.org/licenses"
            yield self._warning(f"{place}.name", told)
        if not entry.get("path"):
            yield self._warning(f"{place}.path", "missing; link to the text of the terms")

    def _links(self) -> Iterator[Finding]:
        from scibench_data.net.web import Web

        uses: dict[str, list[tuple[Stated, Source]]] = {}
        for each in self._stated:
            for source in map(parse_source, each.resource.sources):
                if source.kind in _ASKED:
                    uses.setdefault(source.url, []).append((each, source))
        with (
            Web(allowed_hosts=self._settings.allowed_hosts) as web,
            ThreadPoolExecutor(self._settings.jobs) as pool,
            self._progress.task("links", len(uses), "links") as task,
        ):
            try:
                for count, found in enumerate(
                    pool.map(lambda u: self._link(web, u), uses.values())
                ):
                    task.update(count)
                    yield from found
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _link(self, web: "Web", uses: Sequence[tuple[Stated, Source]]) -> list[Finding]:
        """Ask one address for all files that come from it; `web` judges where it leads."""
        from scibench_data.net.guard import Refusal

        first, source = uses[0]
        more = f" and {len(uses) - 1:,} more" if len(uses) > 1 else ""
        place = f"{first.resource.path}{more} from {source.host}"
        try:
            size = web.head(source.url).size
        except Refusal as refusal:
            if refusal.kind == "licence":
                return [self._warning(place, refusal.reason)]
            return [_problem(self._path, place, f"{refusal.reason}; take the source out")]
        return [
            _problem(
                self._path,
                f"{each.resource.path} from {source.host}",
                f"{size} bytes, expected {each.resource.bytes}; take the source out",
            )
            for each, source in uses
            if source.kind in _ALONE
            and each.resource.exact
            and size not in {None, each.resource.bytes}
        ]


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_sound(findings: Sequence[Finding]) -> bool:
    """Tell whether there is no problem, however many warnings there are."""
    return all(finding.level != "problem" for finding in findings)
