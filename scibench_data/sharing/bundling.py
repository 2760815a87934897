"""One file that carries a package and its content to machines without a network.

A bundle is an uncompressed tar of plain files in a fixed order, with no times or owners, so that
equal content makes equal bytes::

    scibench-bundle.json              name, version, subset, and the objects it carries
    releases.json                     the versions and their commits
    versions/VERSION/datapackage.json and the lists of files beside it
    dataset.bundle                    git bundle of main, git-annex and the tags: git can clone it
    objects/SHA256                    content

Nothing of a bundle is taken before all of it was checked.
"""

import hashlib
import json
import os
import re
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.catalog import read_releases
from scibench_data.descriptor import MAX_LIST_BYTES, DataPackage, Resource, parse
from scibench_data.errors import (
    IntegrityError,
    NotFoundError,
    UsageError,
)
from scibench_data.getting import dataset, holdings
from scibench_data.getting.origins import Origin
from scibench_data.profile import MAX_BYTES, decode
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing.adding import Found, register, scratch

_SCHEMA = "scibench-data/bundle/1"
_INDEX = "scibench-bundle.json"
_BLOCK = 1 << 20
_MAX_GIT = 1 << 32
_LIMITS = (
    (re.compile(r"scibench-bundle\.json|releases\.json"), MAX_BYTES),
    (re.compile(r"versions/[0-9A-Za-z.-]{1,64}/datapackage\.json"), MAX_BYTES),
    (re.compile(r"versions/[0-9A-Za-z.-]{1,64}/[^/]+(/[^/]+)*\.csv"), MAX_LIST_BYTES),
    (re.compile(r"dataset\.bundle"), _MAX_GIT),
    (re.compile(r"objects/[0-9a-f]{64}"), 1 << 50),
)
"""What a bundle may hold, and how large that may be. [B]"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What `bundle` wrote.

    Attributes
    ----------
    left
        Files that nobody published a checksum of: they are not carried.
    """

    path: Path
    name: str
    files: int
    bytes: int
    left: tuple[str, ...] = ()


# --- writing --------------------------------------------------------------------------------------


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.digest.update(content)
        return content


def bundle(
    name: str,
    output: str | Path,
    *,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Write one file that carries a subset, its dataset and its content.

    Parameters
    ----------
    name
        ``NAME[@VERSION][:SUBSET]``; all its files must be here.
    output
        The file, which must not be there yet.

    Raises
    ------
    NotFoundError
        Some of its files are not here.
    UsageError
        `output` exists.
    IntegrityError
        A file here has not its published bytes.
    SpaceError
        The disk refuses.
    """
    settings, output = settings or load_settings(), Path(output).absolute()
    if os.path.lexists(output):
        message = f"{output}: exists; choose another name"
        raise UsageError(message)
    data = dataset.find(catalog.resolve(name, settings.home), settings)
    carried = {r.sha256: r for r in data.resources if r.published}
    size = sum(resource.bytes for resource in carried.values())
    beside = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    with durable.disk_errors(output), scratch(settings.home, "bundle") as folder:
        folder.mkdir()
        texts = _texts(data, list(carried.values()))
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with progress.task("bundle", size) as task, beside.open("xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                    for path, text in texts.items():
                        _put_text(tar, path, text)
                    _put_git(tar, catalog.history(data.reference.release, data.package), folder)
                    done = 0
                    for sha256, resource in sorted(carried.items()):
                        _put_object(tar, sha256, data.object(resource))
                        done += resource.bytes
                        task.update(done, note=resource.path)
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, output)
        finally:
            beside.unlink(missing_ok=True)
    left = tuple(resource.path for resource in data.resources if not resource.published)
    return Bundle(path=output, name=str(data.reference), files=len(carried), bytes=size, left=left)


def _texts(data: dataset.Dataset, carried: Sequence[Resource]) -> dict[str, bytes]:
    release = data.reference.release
    if release.derived:
        message = f"{data.reference}: derived on this machine; only releases are bundled"
        raise UsageError(message)
    versions = catalog.history(data.reference.release, data.package)
    known = {package.version for package in versions}
    home = release.folder.parents[2] if release.added else None
    entries = [
        {name: getattr(each, name) for name in ("version", "date", "commit", "changes", "yanked")}
        for each in catalog.releases(release.name, home)
        if each.version in known
    ]
    index = {
        "schema": _SCHEMA,
        "name": json.loads(data.package.text)["name"],  # not what it is called here
        "version": data.package.version,
        "subset": data.subset,
        "objects": {resource.sha256: resource.bytes for resource in carried},
    }
    texts = {
        _INDEX: json.dumps(index, indent=1, sort_keys=True).encode() + b"\n",
        "releases.json": json.dumps({"releases": entries}, indent=1).encode() + b"\n",
    }
    for package in versions:
        for path, text in {"datapackage.json": package.text, **package.lists}.items():
            texts[f"versions/{package.version}/{path}"] = text
    return texts


def _head(path: str, size: int) -> tarfile.TarInfo:
    head = tarfile.TarInfo(path)
    head.size, head.mode = size, 0o644
    return head


def _put_text(tar: tarfile.TarFile, path: str, text: bytes) -> None:
    import io

    tar.addfile(_head(path, len(text)), io.BytesIO(text))


def _put_git(tar: tarfile.TarFile, versions: Sequence[DataPackage], folder: Path) -> None:
    history, file = folder / "history", folder / "dataset.bundle"
    build.import_history(history, versions)
    refs = ("main", "git-annex", "--tags")
    annex.git("-c", "pack.threads=1", "bundle", "create", "-q", str(file), *refs, cwd=history)
    with file.open("rb") as content:
        tar.addfile(_head("dataset.bundle", file.stat().st_size), content)


def _put_object(tar: tarfile.TarFile, sha256: str, path: Path) -> None:
    with durable.open_regular(path) as file:
        hashing = _Hashing(file)
        tar.addfile(_head(f"objects/{sha256}", path.stat().st_size), hashing)  # type: ignore[arg-type]
    if hashing.digest.hexdigest() != sha256:
        message = f"{path}: not the published bytes any more; run scibench-data get --check"
        raise IntegrityError(message)


# --- reading a bundle -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A bundle that was checked, its objects beside the cache."""

    found: Found
    version: str
    subset: str
    objects: Mapping[str, Path] = field(default_factory=dict)


def unpack(file: Path, folder: Path, settings: Settings, progress: Progress) -> Unpacked:
    """Check all of a bundle, its objects put into `folder` on the way.

    Raises
    ------
    IntegrityError
        It is cut off, or holds something that does not belong there.
    DescriptorError
        Its descriptors have problems.
    """
    size = file.stat().st_size
    holdings.refuse_full(settings.home, size)
    texts: dict[str, bytes] = {}
    objects: dict[str, Path] = {}
    try:
        with tarfile.open(file, "r:") as tar, progress.task("check", size) as task:
            for member in tar:
                _refuse_member(file, member, {*texts, *objects})
                if member.name.startswith("objects/"):
                    objects[member.name] = _unpack_object(file, tar, member, folder)
                else:
                    texts[member.name] = _unpack_text(file, tar, member)
                task.update(member.offset_data + member.size, note=member.name)
    except (tarfile.TarError, EOFError, ValueError) as error:
        message = f"{file}: damaged or no bundle ({error}); copy it again"
        raise IntegrityError(message) from error
    index = _read_index(file, texts, objects)
    found = _read_texts(file, index["name"], texts, settings)
    if index["version"] not in found.packages:
        raise _odd(file, "it does not hold the version that it names")
    if index["subset"] not in found.packages[index["version"]].subsets:
        raise _odd(file, "it does not hold the subset that it names")
    by_digest = {name.rpartition("/")[2]: path for name, path in objects.items()}
    return Unpacked(
        found=found, version=index["version"], subset=index["subset"], objects=by_digest
    )


def _odd(file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file}: {what}; nothing of it was taken, get it from its maker again")


def _refuse_member(file: Path, member: tarfile.TarInfo, seen: set[str]) -> None:
    """Let pass plain files of known names and bounded size."""
    shown = repr(member.name[:200])
    if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.pax_headers:
        raise _odd(file, f"{shown} is not a plain file")
    if member.name in seen:
        raise _odd(file, f"{shown} is there twice")
    limits = [limit for pattern, limit in _LIMITS if pattern.fullmatch(member.name)]
    if not limits or ".." in member.name.split("/"):
        raise _odd(file, f"{shown} has no place in a bundle")
    if not 0 <= member.size <= max(limits):
        raise _odd(file, f"{shown} is too large")


def _unpack_text(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a small file; of git's, which is only for others, no more than its head."""
    source = tar.extractfile(member)
    content = source.read(MAX_LIST_BYTES) if source else b""
    if len(content) != min(member.size, MAX_LIST_BYTES):
        raise _odd(file, f"{member.name} is cut off")
    return content


def _unpack_object(file: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    """Write an object to `folder` and see that it has the bytes that it is named by."""
    target = folder / member.name.rpartition("/")[2]
    source = tar.extractfile(member)
    digest = hashlib.sha256()
    with target.open("xb") as written:
        while source and (block := source.read(_BLOCK)):
            digest.update(block)
            written.write(block)
    if target.stat().st_size != member.size or digest.hexdigest() != target.name:
        raise _odd(file, f"{member.name} has other bytes")
    return target


def _read_index(
    file: Path, texts: Mapping[str, bytes], objects: Mapping[str, Path]
) -> dict[str, Any]:
    index = decode(texts.get(_INDEX, b"null"), f"{file} {_INDEX}")
    known = {"name": str, "version": str, "subset": str, "objects": dict}
    if not isinstance(index, dict) or index.get("schema") != _SCHEMA:
        raise _odd(file, "not a bundle that this scibench-data knows")
    if any(not isinstance(index.get(key), kind) for key, kind in known.items()):
        raise _odd(file, f"{_INDEX} is damaged")
    there = {path.name: path.stat().st_size for path in objects.values()}
    if index["objects"] != there or {"releases.json", "dataset.bundle"} - texts.keys():
        raise _odd(file, "cut off, or its objects are not those that it lists")
    return index


def _read_texts(file: Path, name: str, texts: Mapping[str, bytes], settings: Settings) -> Found:
    """Read releases and descriptors, and compare with the head of the git bundle."""
    entries = read_releases(texts["releases.json"], f"{file} releases.json")
    packages = {}
    for version in (entry["version"] for entry in entries):
        start = f"versions/{version}/"
        packages[version] = parse(
            texts.get(f"{start}datapackage.json", b""),
            f"{file} {version}",
            allowed=settings.allowed_hosts,
            beside=lambda path, start=start: texts.get(start + path, b""),  # type: ignore[misc]
        )
    if any((p.name, p.version) != (name, version) for version, p in packages.items()):
        raise _odd(file, "its descriptors are those of another package")
    head = texts["dataset.bundle"][: 1 << 20].partition(b"\n\n")[0].decode("ascii", "replace")
    main = re.search(r"^([0-9a-f]{40}) refs/heads/main$", head, re.MULTILINE)
    if not head.startswith("# v2 git bundle\n") or main is None:
        raise _odd(file, "its dataset.bundle is none")
    return Found(
        origin=Origin(kind="bundle", place=str(file)),
        packages=packages,
        entries={entry["version"]: entry for entry in entries},
        tip=main[1],
    )


def make_known(found: Found, settings: Settings) -> str:
    """See that the package is known, or add it; return its name if it is new.

    Raises
    ------
    IntegrityError
        A version of that name is known and has another descriptor.
    """
    name = next(iter(found.packages.values())).name
    if name not in catalog.shipped_names():
        return name if register(found, None, settings).versions else ""
    known = {release.version: release for release in catalog.releases(name)}
    for version, package in found.packages.items():
        if version not in known:
            message = f"{name}@{version}: newer than this scibench-data; install a newer one"
            raise NotFoundError(message)
        if known[version].read().text != package.text:
            raise _odd(Path(found.origin.place), f"its {name}@{version} is not the released one")
    return ""
