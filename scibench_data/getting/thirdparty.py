"""A descriptor for a DataLad dataset that has none of ours: from its tree and its annex keys.

The tree is read from a bare clone: links to annexed content, git-annex's pointer files, and small
files that git itself holds. A key of SHA256 or SHA256E gives size and checksum; of another, the
checksum stays unknown. Key format: https://git-annex.branchable.com/internals/key_format/; pointer
files: https://git-annex.branchable.com/internals/pointer_file/.
"""

import datetime as dt
import hashlib
import ipaddress
import json
import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from scibench_data import durable
from scibench_data.annexed import annex
from scibench_data.annexed.annex import Reach
from scibench_data.descriptor import DataPackage, Resource, parse, write_list
from scibench_data.errors import NetworkError, NotFoundError, ScibenchError
from scibench_data.foreign import folded, path_fault
from scibench_data.getting.origins import annexed_at
from scibench_data.settings import Settings

SUBSET = "files"

_LISTED = 100  # more files than this go into a list
_POINTER = 32 * 1024  # the largest pointer file that git-annex takes for one [B]
_IN_GIT = 16 * 2**20  # the largest file in git itself that is taken [B]
_KEY = re.compile(
    r"(?P<backend>[A-Z0-9_]{1,16})(-s(?P<size>[0-9]{1,15}))?(-[mSC][0-9]+)*--(?P<name>.+)"
)
_LINK = re.compile(r"(\.\./)*\.git/annex/objects/[^/]+/[^/]+/(?P<key>[^/]+)/(?P=key)", re.DOTALL)
_UNESCAPES = {"&a": "&", "&s": "%", "&c": ":", "%": "/"}
_LICENCES = {
    "cc0": "CC0-1.0", "cc0-1.0": "CC0-1.0", "pddl": "PDDL-1.0", "pddl-1.0": "PDDL-1.0",
    "cc-by-4.0": "CC-BY-4.0", "cc by 4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "odbl-1.0": "ODbL-1.0", "odc-by-1.0": "ODC-By-1.0",
}  # fmt: skip
"""What ``License`` of a BIDS ``dataset_description.json`` says without a doubt."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file of the tree."""

    path: str
    key: str = ""  # where it is annexed
    sha256: str = ""  # where git itself holds it
    bytes: int | None = None


def _unescaped(name: str) -> str:
    return re.sub("&[asc]|%", lambda found: _UNESCAPES[found[0]], name)


def _file(path: str, mode: str, content: bytes) -> _File | None:
    """Tell what an entry of the tree is; None for a link that is none of git-annex's."""
    if mode == "120000":
        link = _LINK.fullmatch(content.decode("utf-8", "replace"))
        return _File(path=path, key=_unescaped(link["key"])) if link else None
    first = content[:_POINTER].split(b"\n", 1)[0].decode("utf-8", "replace")
    if first.startswith("/annex/objects/") and len(content) <= _POINTER:
        return _File(path=path, key=_unescaped(first.removeprefix("/annex/objects/")))
    return _File(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _files(bare: Path, commit: str) -> tuple[list[_File], list[str]]:
    """List the files of a commit, and what of it is left out and why."""
    told = annex.read_git("--git-dir=.", "ls-tree", "-r", "-z", "--long", commit, cwd=bare)
    wanted: list[tuple[str, str, str]] = []
    left: dict[str, list[str]] = {}
    seen: set[str] = set()
    for line in told.decode("utf-8", "replace").split("\0")[:-1]:
        about, path = line.split("\t", 1)
        mode, _, name, size = about.split()
        if reason := _why_left_out(path, mode, size, seen):
            left.setdefault(reason, []).append(path)
        else:
            seen.add(folded(path))
            wanted.append((path, mode, name))
    found = []
    for (path, mode, _), content in zip(
        wanted, annex.read_blobs(bare, [name for *_, name in wanted]), strict=True
    ):
        if file := _file(path, mode, content):
            found.append(file)
        else:
            left.setdefault("links that lead elsewhere", []).append(path)
    return found, [_told(reason, paths) for reason, paths in left.items()]


def _why_left_out(path: str, mode: str, size: str, seen: set[str]) -> str:
    if mode == "160000":
        return "subdatasets"
    if any(part.startswith(".") for part in path.split("/")):
        return "hidden files"
    if fault := path_fault(path):
        return fault
    if folded(path) in seen:
        return "paths that differ only in case"
    return "files in git itself that are too large" if int(size) > _IN_GIT else ""


def _told(reason: str, paths: Sequence[str]) -> str:
    shown = ", ".join(repr(path)[1:-1] for path in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"left out ({reason}): {shown}{more}"


# --- describing -----------------------------------------------------------------------------------


def _resource(file: _File, source: str, folder: Path) -> Resource:
    """Say what is known of a file.

    Raises
    ------
    NotFoundError
        Nobody could say what its bytes are.
    """
    size, sha256 = file.bytes, file.sha256
    parts = _KEY.fullmatch(file.key)
    if parts:
        size = int(parts["size"]) if parts["size"] else None
        digest = parts["name"].partition(".")[0]
        known = parts["backend"] in {"SHA256", "SHA256E"} and size is not None
        sha256 = digest if known and re.fullmatch("[0-9a-f]{64}", digest) else ""
    sources = (f"{source}#{quote(file.path)}",) if source else ()
    if not sha256 and not source:
        here = [place for place in annexed_at(folder, file.key) if place.is_file()]
        if not here:
            message = f"{file.path}: neither a SHA-256 nor its content is there; get it there first"
            raise NotFoundError(message)
        size, sha256 = here[0].stat().st_size, durable.sha256_file(here[0])
    return Resource(
        name=re.sub(r"[^a-z0-9._-]+", "-", file.path.lower()).strip("-.")[:100] or "file",
        path=f"{SUBSET}/{file.path}",
        bytes=size or 0,
        sha256=sha256,
        subset=SUBSET,
        sources=sources,
        exact=size is not None,
    )


def _entries(resources: Iterable[Resource]) -> list[dict[str, Any]]:
    """Write resources as a descriptor has them, with names that differ."""
    taken: set[str] = set()
    entries = []
    for number, resource in enumerate(resources):
        name = resource.name if resource.name not in taken else f"{resource.name}-{number}"
        taken.add(name)
        ours: dict[str, Any] = {"subset": SUBSET}
        if resource.sources:
            ours["sources"] = list(resource.sources)
        entry: dict[str, Any] = {"name": name, "path": resource.path}
        if resource.exact:
            entry["bytes"] = resource.bytes
        if resource.sha256:
            entry["hash"] = f"sha256:{resource.sha256}"
        entries.append({**entry, "scibench": ours})
    return entries


def _as_list(resources: Sequence[Resource]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Write resources as one list of files, and return its entry and its bytes."""
    content = write_list(resources)
    taken = {resource.path for resource in resources}
    names = (f"{SUBSET}/manifest{n}.csv" for n in ("", *range(len(taken) + 1)))
    path = next(name for name in names if name not in taken)
    kinds = {"path": "string", "bytes": "integer", "sha256": "string", "url": "string"}
    entry = {
        "name": f"{SUBSET}-manifest",
        "path": path,
        "type": "table",
        "mediatype": "text/csv",
        "bytes": len(content),
        "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "schema": {"fields": [{"name": name, "type": kind} for name, kind in kinds.items()]},
        "scibench": {"subset": SUBSET, "lists": "files"},
    }
    return [entry], {path: content}


def _line(text: object) -> str:
    """Return a foreign text as one line that deceives nobody; empty where it is no text."""
    kept = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return " ".join(kept.split())[:400] if isinstance(text, str) else ""


def _bids(bare: Path, commit: str) -> dict[str, Any]:
    """Read BIDS' own description, as far as it can be trusted to be one."""
    try:
        name = f"{commit}:dataset_description.json"
        tree = json.loads(annex.read_git("--git-dir=.", "cat-file", "blob", name, cwd=bare))
    except (ScibenchError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _short_name(place: str) -> str:
    word = PurePosixPath(place.rstrip("/")).name.removesuffix(".git").lower()
    name = re.sub("[^a-z0-9_]+", "_", word).strip("_")
    return (name if re.match("[a-z]", name) else f"dataset_{name}".rstrip("_"))[:64]


def _licence(bids: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return the licence, and what is to be said of it."""
    told = _line(bids.get("License"))
    if known := _LICENCES.get(told.lower()):
        return {"name": known}, ""
    about = f"; dataset_description.json has {told!r}" if told else ""
    note = f"its licence is unknown{about}: ask its authors before you use it"
    return {"name": "unknown", "title": "Unknown: ask the authors"}, note


def describe(
    bare: Path, branch: str, place: str, name: str | None, settings: Settings
) -> tuple[DataPackage, tuple[str, ...]]:
    """Describe the newest commit of a DataLad dataset as a data package of one subset.

    Parameters
    ----------
    bare
        A bare clone of it.
    place
        Its URL, or where it lies on this disk.

    Returns
    -------
    tuple
        The package, whose version is ``0.0.0-N.gCOMMIT`` for the N-th commit, and what was left
        out or isn't known.

    Raises
    ------
    NetworkError
        It has no commit.
    NotFoundError
        It has no file that can be taken.
    """
    try:
        commit = annex.git("--git-dir=.", "rev-parse", f"refs/heads/{branch}^0", cwd=bare)
    except ScibenchError as error:
        message = f"{place}: a repository without a commit; check the address"
        raise NetworkError(message) from error
    count = annex.git("--git-dir=.", "rev-list", "--count", "--first-parent", commit, cwd=bare)
    seconds = annex.git("--git-dir=.", "show", "-s", "--format=%ct", commit, cwd=bare)
    files, notes = _files(bare, commit)
    source = f"datalad+{place}" if "://" in place else ""
    resources = [_resource(file, source, Path(place)) for file in files]
    if not resources:
        why = "; ".join(notes) or "it is empty"
        message = f"{place}: no file of it can be taken; {why}"
        raise NotFoundError(message)
    bids = _bids(bare, commit)
    licence, unknown = _licence(bids)
    entries, lists = _entries(resources), dict[str, bytes]()
    if len(resources) > _LISTED:
        entries, lists = _as_list(resources)
    called = place if source else Path(place).name
    authors = [_line(author) for author in bids.get("Authors") or () if _line(author)]
    tree = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": name or _short_name(place),
        "title": _line(bids.get("Name")) or _line(called),
        "description": f"The files of the DataLad dataset {_line(called)} at commit {commit}.",
        "version": f"0.0.0-{count}.g{commit[:12]}",
        "licenses": [licence],
        "contributors": [{"title": title} for title in authors[:100] or ["Its authors, not named"]],
        "resources": entries,
        "scibench": {
            "profile": 1,
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, called)),
            "released": dt.datetime.fromtimestamp(int(seconds), dt.UTC).date().isoformat(),
            "subsets": {SUBSET: {"title": "All files"}},
        },
    }
    text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
    package = parse(text, place, allowed=settings.allowed_hosts, beside=lists.__getitem__)
    unsure = sum(not resource.sha256 for resource in resources)
    notes += [f"{unsure} files have no SHA-256: it is recorded when they come"] if unsure else []
    return package, tuple(filter(None, [*notes, unknown]))


# --- getting --------------------------------------------------------------------------------------


def reach_of(place: str, allowed: Collection[str]) -> Reach:
    """Return how a dataset and its content may be reached: by https, and by http where allowed."""
    addresses = []
    for host in allowed:
        try:
            addresses.append(str(ipaddress.ip_address(host)))
        except ValueError:
            continue  # a name: git-annex knows only addresses
    return Reach(protocols=(urlsplit(place).scheme,), addresses=tuple(addresses))


def fetch_files(
    place: str, paths: Sequence[str], folder: Path, allowed: Collection[str] = ()
) -> dict[str, Path]:
    """Let git-annex get files of a published dataset's newest commit.

    Only these files' links are checked out; no remote that the dataset wants enabled is. git-annex
    checks content against its keys.

    Parameters
    ----------
    place
        The dataset's URL.
    folder
        Where to clone to; the files lie in it.

    Returns
    -------
    dict
        Path -> file, for those that came.

    Raises
    ------
    NetworkError
        The dataset can't be cloned.
    """
    reach = reach_of(place, allowed)
    bare, clone = folder / "bare", folder / "clone"
    branch = annex.fetch_all(place, bare, reach)
    clone.mkdir()
    annex.git("init", "--quiet", "--template=", "--object-format=sha1", "-b", "main", cwd=clone)
    refs = ("+refs/heads/*:refs/remotes/origin/*",)
    annex.git("fetch", "--quiet", "--no-tags", str(bare), *refs, cwd=clone, reach=annex.LOCAL)
    annex.git("remote", "add", "origin", place, cwd=clone)
    annex.git("config", "annex.private", "true", cwd=clone)
    annex.git("read-tree", f"refs/remotes/origin/{branch}", cwd=clone)
    annex.annex("init", "--quiet", "--no-autoenable", "fetching", cwd=clone)
    listed = annex.read_git("ls-files", "-z", cwd=clone).decode("utf-8", "replace").split("\0")
    there = sorted({path for path in paths if path_fault(path) is None} & set(listed))
    for start in range(0, len(there), 500):
        some = there[start : start + 500]
        annex.git("checkout-index", "--quiet", "--force", "--", *some, cwd=clone)
        for _ in annex.stream_annex("get", "--", *some, cwd=clone, reach=reach):
            pass
    found = {path: (clone / path).resolve() for path in there}
    inside = clone.resolve()
    return {
        path: file for path, file in found.items() if file.is_relative_to(inside) and file.is_file()
    }
