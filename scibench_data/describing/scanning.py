"""A folder of files as a data package sees it: which path each gets, and what can't go in.

Every path of a package begins with the name of a subset. Where the first level of the folder is
folders, these are the subsets; else all files are one subset, and ``x.csv`` gets the path
``data/x.csv`` without being moved. `content_path` goes the way back. Links are never followed.
"""

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scibench_data.durable import open_regular
from scibench_data.errors import UsageError
from scibench_data.foreign import folded, path_fault
from scibench_data.progress import SILENT, Progress

DESCRIPTOR = "datapackage.json"
DEFAULT_SUBSET = "data"
BESIDE = ".scibench-data.json"
"""Names, as ``{"files": "../files"}``, the folder of the files where that is not its own."""

_OWN = {DESCRIPTOR, "releases.json"}
_SUBSET = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors)([._-].*)?", re.IGNORECASE
)
_ZARR_V2 = {".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_BLOCK = 2**20  # [B]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What lies in a folder.

    Attributes
    ----------
    files
        Path within the package -> the file, sorted.
    faults
        What must be put right first, each with what to do.
    hidden, links, documents
        What was left out: names with a dot first, links and devices, and the texts about the whole
        (README, LICENSE) that lie beside folders of data.
    """

    root: Path
    files: Mapping[str, Path]
    subsets: tuple[str, ...]
    faults: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Size and SHA-256 of a file, taken in one reading."""

    bytes: int
    sha256: str


def files_folder(package: Path) -> Path:
    """Return where the files of a package folder lie: in itself, or where ``init --from`` said.

    Only for folders that the user named; in what came from elsewhere `BESIDE` has no say.

    Raises
    ------
    UsageError
        The folder that it names is not there.
    """
    try:
        with open_regular(package / BESIDE) as file:
            told = json.loads(file.read(2**16))["files"]
    except FileNotFoundError:
        return package
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{package / BESIDE}: can't be read; name the files again: init --update --from"
        raise UsageError(message) from error
    root = Path(os.path.normpath(package / str(told)))
    if not root.is_dir():
        message = f"{root}: the folder of the files is gone; name the new one: init --update --from"
        raise UsageError(message)
    return root


def content_path(root: Path, path: str) -> Path:
    """Return the file below `root` that has the bytes of a resource's path.

    ``root/data/x.csv`` where it is a file, else ``root/x.csv`` where that is there: `scan` refuses
    a folder in which both are files.
    """
    whole, inner = root / path, root / path.partition("/")[2]
    plain = whole.is_file() and not whole.is_symlink()
    return inner if not plain and os.path.lexists(inner) else whole


def scan(
    root: Path,
    *,
    package: Path | None = None,
    subset: str = "",
    known: Sequence[str] = (),
    lists: Collection[str] = (),
) -> Scan:
    """List the files below `root`, and everything that keeps one out of a package.

    Parameters
    ----------
    package
        The package folder, which is left out where it lies within `root`.
    subset
        The one subset for all files; empty: decide by the first level.
    known
        The subsets that the package has by now, so that a new file does not turn all around.
    lists
        Paths of lists of files, which are no data.
    """
    found = _walk(root, package or root)
    names = [name for name in found.files if name not in _OWN and name not in lists]
    documents = {name for name in names if "/" not in name and _DOCUMENT.fullmatch(name)}
    data = set(names) - documents
    subsets = (subset,) if subset else _subsets(data, known)
    folders = not subset and bool(data) and _are_folders(data, subsets)
    if folders or len(subsets) > 1:
        names = list(data)
    files: dict[str, Path] = {}
    faults = list(found.faults)
    for name in sorted(names):
        inside = name.partition("/")[0] in subsets and "/" in name
        path = name if inside else f"{subsets[0]}/{name}"
        if len(subsets) > 1 and not inside:
            faults.append(f"{name!r}: beside the subsets {', '.join(subsets)}; move it into one")
        elif path in files:
            faults.append(f"{name!r}: there is {path!r} too; keep one of the two")
        else:
            files[path] = root / name
    faults += _path_faults(files)
    return Scan(
        root=root,
        files=dict(sorted(files.items())),
        subsets=tuple(sorted({path.split("/")[0] for path in files})),
        faults=tuple(faults),
        hidden=tuple(sorted(found.hidden)),
        links=tuple(sorted(found.links)),
        documents=tuple(sorted(documents - set(names))),
    )


def _are_folders(names: Collection[str], subsets: Sequence[str]) -> bool:
    return all(name.partition("/")[0] in subsets and "/" in name for name in names)


def _subsets(names: Collection[str], known: Sequence[str]) -> tuple[str, ...]:
    """Choose the subsets: the folders, or what the package has by now, or one for all."""
    first = tuple(sorted({name.partition("/")[0] for name in names}))
    sound = all(map(_SUBSET.fullmatch, first)) and _are_folders(names, first)
    if first and sound and set(first) >= set(known):
        return first
    if len(known) > 1:
        return tuple(known) + tuple(
            name for name in first if _is_new_subset(name, names) and name not in known
        )
    return tuple(known) or (DEFAULT_SUBSET,)


def _is_new_subset(name: str, names: Collection[str]) -> bool:
    return _SUBSET.fullmatch(name) is not None and name not in names


@dataclass
class _Found:
    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _walk(root: Path, package: Path) -> _Found:
    found = _Found()
    rest = [""]
    while rest:
        inner = rest.pop()
        try:
            entries = list(os.scandir(root / inner))
        except OSError as error:
            found.faults.append(f"{(inner or '.')!r}: {error.strerror}; make it readable")
            continue
        if marks := _ZARR_V2 & {entry.name for entry in entries}:
            what = f"a Zarr store as a folder ({min(marks)})"
            found.faults.append(f"{(inner or '.')!r}: {what}; pack it into one file, .zarr.zip")
            continue
        for entry in entries:
            _sort(entry, f"{inner}/{entry.name}" if inner else entry.name, found, rest)
    if package != root:
        _leave_out(found, os.path.relpath(package.resolve(), root.resolve()))
    return found


def _sort(entry: os.DirEntry[str], name: str, found: _Found, rest: list[str]) -> None:
    if entry.name.startswith("."):
        found.hidden.append(name)
    elif entry.is_dir(follow_symlinks=False):
        rest.append(name)
    elif entry.is_file(follow_symlinks=False):
        found.files.append(name)
    else:
        found.links.append(name)


def _leave_out(found: _Found, inner: str) -> None:
    found.files = [name for name in found.files if not name.startswith(f"{inner}/")]


def _path_faults(files: Collection[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for path in files:
        if fault := path_fault(path):
            yield f"{path!r}: {fault}; rename it"
        elif (other := seen.setdefault(folded(path), path)) != path:
            yield f"{path!r}: the same as {other!r} where case is ignored; rename one"
    for path in seen.values():
        for end in (index for index, letter in enumerate(path) if letter == "/"):
            if above := seen.get(folded(path[:end])):
                yield f"{path!r}: below {above!r}, a file, where case is ignored; rename one"


def measure(
    files: Mapping[str, Path], jobs: int, progress: Progress = SILENT
) -> tuple[dict[str, Measured], list[str]]:
    """Hash files in several threads; return what was measured, and what could not be read."""
    lock, stop = threading.Lock(), threading.Event()
    done = 0
    measured: dict[str, Measured] = {}
    faults: list[str] = []
    total = sum(_size(file) for file in files.values())

    def advance(name: str, count: int) -> None:
        nonlocal done
        if stop.is_set():
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR), name)
        with lock:
            done += count
            now = done
        task.update(now, note=name)

    def one(name: str) -> None:
        try:
            measured[name] = _measure(files[name], lambda count: advance(name, count))
        except OSError as error:
            faults.append(f"{name!r}: {error.strerror}; make it a readable file")

    with progress.task("hashing", total) as task, ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(one, files))
        except BaseException:  # Ctrl-C: the threads are to end before the last file
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return measured, sorted(faults)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _measure(path: Path, advance: Callable[[int], None]) -> Measured:
    digest, count = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            count += len(block)
            advance(len(block))
    return Measured(count, digest.hexdigest())
