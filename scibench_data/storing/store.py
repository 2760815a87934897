"""Zarr v3 stores: written once by Dask, whole or absent, held against their manifest when read.

::

    home/stores/<name>-<id>/            see `scibench_data.storing.manifest`
    home/staging/<name>-<id>/           the same, while it is written
    home/staging/<name>-<id>.journal    its finished files, so that nothing is done twice
    home/quarantine/<name>-<id>.<n>/    stores that were found damaged
    home/locks/<name>-<id>.lock

The order of a write, under the lock: metadata; one Dask task for each file, which hashes and writes
it; each file is flushed, named and entered in the journal; manifest; folders flushed; one rename;
its folder flushed; only then is the journal removed.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from scibench_data import durable, provenance, usage
from scibench_data.errors import IntegrityError, NotFoundError, SpaceError
from scibench_data.progress import SILENT, Progress
from scibench_data.stored import open_stored
from scibench_data.storing import digest
from scibench_data.storing.manifest import (
    GROUP,
    MANIFEST,
    STAMPS,
    SUM,
    File,
    Manifest,
    compare,
    damaged,
    read_manifest,
    write_manifest,
)
from scibench_data.storing.shard import (
    Grid,
    Layout,
    Written,
    codec_name,
    plan_grid,
    write_metadata,
)
from scibench_data.storing.staging import Staging, set_aside
from scibench_data.storing.writing import write_files

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Layout",
    "Store",
    "check",
    "find_store",
    "materialize",
    "open_store",
    "read_store",
    "store_id",
]

Link = tuple[str, Literal["holds", "fails", "not checked"], str]


@dataclass(frozen=True, kw_only=True)
class Store:
    """A complete store on the disk.

    Attributes
    ----------
    path
        The Zarr group.
    digest
        The logical digest: equal wherever the same data were stored; the one to cite.
    manifest_digest
        SHA-256 of the manifest, and so of the bytes on this disk.
    bytes
        Size of the group's files. [B]
    arrays
        How each array lies in its files, as `scibench_data.storing.shard.Grid` has it: the layout
        chosen.
    verified
        ``"hashed"``: every byte was hashed now; ``"stamps"``: some files look as they did when they
        were last hashed, and were not hashed again.
    """

    folder: Path
    path: Path
    identity: Mapping[str, Any]
    digest: str
    manifest_digest: str
    bytes: int
    verified: Literal["hashed", "stamps"]
    arrays: Mapping[str, Any]


def read_store(folder: Path, *, progress: Progress = SILENT) -> Store:
    """Return the store in `folder` if each of its files is what the manifest says.

    A file that still looks as it did when it was last hashed is not hashed again.

    Raises
    ------
    NotFoundError
        There is no such folder.
    IntegrityError
        A file is missing, too many, changed, or not a regular file; the message names it. Or
        `folder` is no folder but something else, such as a link.
    """
    if not os.path.lexists(folder):
        message = f"{folder}: no store there; make one with 'scibench-data materialize'"
        raise NotFoundError(message)
    if folder.is_symlink() or not folder.is_dir():
        raise damaged(folder, ["not a folder"])
    manifest = read_manifest(folder)
    stamps = durable.read_stamps(folder / STAMPS)
    problems, fresh = compare(folder, manifest, stamps, progress)
    if problems:
        raise damaged(folder, problems)
    if fresh:
        with contextlib.suppress(SpaceError):  # a read-only store is hashed each time
            durable.write_stamps(folder / STAMPS, stamps | fresh)
    return Store(
        folder=folder,
        path=folder / GROUP,
        identity=manifest.identity,
        digest=manifest.digest,
        manifest_digest=manifest.sha256,
        bytes=sum(file.size for file in manifest.files),
        verified="hashed" if len(fresh) == len(manifest.files) else "stamps",
        arrays=manifest.arrays,
    )


def store_id(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of all that determines what a store holds."""
    return provenance.digest(identity)


def _folder_name(name: str, identity: Mapping[str, Any]) -> str:
    return f"{name}-{store_id(identity)[:12]}"


def find_store(
    home: Path, name: str, identity: Mapping[str, Any], *, progress: Progress = SILENT
) -> Store | None:
    """Return the store of `identity` below `home`, or None where there is none.

    Raises
    ------
    IntegrityError
        There is one, but it is damaged or another's.
    """
    folder = home / "stores" / _folder_name(name, identity)
    if not os.path.lexists(folder):
        return None
    store = read_store(folder, progress=progress)
    if store.identity != identity:
        raise damaged(folder, [f"{MANIFEST}: expected {identity}, got {store.identity}"])
    return store


def _describe(
    dataset: xr.Dataset, grids: Mapping[str, Grid], written: Mapping[str, Written]
) -> dict[str, Any]:
    """Return the manifest's arrays, each with its logical digest."""
    arrays = {}
    for name, grid in grids.items():
        paths = [f"{GROUP}/{name}/{grid.key(index)}" for index in range(grid.files)]
        leaves = bytes.fromhex("".join(written[path].leaves for path in paths))
        arrays[name] = asdict(grid) | {
            "dims": [str(dim) for dim in dataset.variables[name].dims],
            "digest": digest.array_digest(dataset, name, leaves),
        }
    return arrays


def _seal(
    staging: Staging,
    identity: Mapping[str, Any],
    logical: str,
    arrays: Mapping[str, Any],
    shards: Iterable[Written],
) -> None:
    """Write manifest and stamps, and let the store appear."""
    folder = staging.folder
    files = {written.path: written.sha256 for written in shards}
    for path in (f"{GROUP}/zarr.json", *(f"{GROUP}/{name}/zarr.json" for name in arrays)):
        with durable.disk_errors(folder):
            durable.flush_file(folder / path)
        files[path] = durable.sha256_file(folder / path)
    stamps = {path: durable.stamp(folder / path, sha256) for path, sha256 in files.items()}
    entries = [
        File(path=path, size=stamps[path].size, sha256=files[path])
        for path in sorted(files, key=str.encode)
    ]
    manifest = Manifest(identity=identity, digest=logical, arrays=arrays, files=tuple(entries))
    with durable.disk_errors(folder):
        write_manifest(folder, manifest)
        durable.write_stamps(folder / STAMPS, stamps)
    staging.commit([*files, MANIFEST, SUM, STAMPS])


def _build(
    dataset: xr.Dataset,
    identity: Mapping[str, Any],
    layout: Layout,
    staging: Staging,
    write_all: Callable[..., list[Written]],
) -> None:
    grids = {
        str(name): plan_grid(str(name), variable, layout)
        for name, variable in dataset.variables.items()
    }
    staging = replace(
        staging, plan=provenance.digest({name: asdict(grid) for name, grid in grids.items()})
    )
    shards = staging.take_up()
    with durable.disk_errors(staging.folder):
        write_metadata(staging.folder / GROUP, dataset, grids)
    shards |= {file.path: file for file in write_all(dataset, grids, staging, done=shards)}
    arrays = _describe(dataset, grids, shards)
    logical = digest.combine(dataset, {name: array["digest"] for name, array in arrays.items()})
    _seal(staging, identity, logical, arrays, shards.values())


class Work(TypedDict, total=False):
    """How much is done at once, and how long is waited.

    ``jobs``: files that are read, packed, hashed and written at the same time, by default 2. [1]
    ``lock_timeout``: how long to wait for another process that writes the store, by default an
    hour. [s]
    ``scheduler``: address of a running Dask scheduler, whose workers see the same file system and
    do the same work; by default threads of this process do.
    """

    jobs: int
    lock_timeout: float
    scheduler: str


def materialize(
    source: Callable[[], xr.Dataset],
    home: Path,
    name: str,
    identity: Mapping[str, Any],
    *,
    layout: Layout,
    progress: Progress = SILENT,
    **work: Unpack[Work],
) -> Store:
    """Return the store of `identity` below `home`; write it first where it isn't there.

    Memory stays at a few shards for each job, whatever the size of the data, if `source` gives Dask
    arrays of small chunks. A store that turns out damaged is moved to ``home/quarantine`` and
    written again, which the progress notes.

    Parameters
    ----------
    source
        Gives the dataset to store; called only if there is something to write.
    name
        Beginning of the folder's name.
    identity
        All that determines what the store holds, `layout` included, as JSON has it.
    work
        See `Work`.

    Raises
    ------
    ScibenchError
        The dataset has arrays that a store can't hold, or not what it promises.
    SpaceError
        The disk is full or may not be written; what is finished is taken up by the next call.
    LockedError
        Another process still writes it after ``lock_timeout``.
    """
    folder = home / "stores" / _folder_name(name, identity)
    staging = Staging(folder=home / "staging" / folder.name, final=folder, plan="")
    with contextlib.suppress(IntegrityError):  # met again below, under the lock
        if store := find_store(home, name, identity, progress=progress):
            staging.forget()
            usage.touch(home, folder)
            return store
    note = ""
    timeout = work.get("lock_timeout", 3600.0)
    lock = home / "locks" / f"{folder.name}.lock"
    with durable.lock(lock, timeout, work=f"materialize {name}", told=progress.say):
        try:
            if store := find_store(home, name, identity, progress=progress):
                return store
        except IntegrityError:
            aside = set_aside(folder, home / "quarantine")
            note = f"the damaged store was moved to {aside}"
        with progress.task(f"materialize {name}") as task:
            task.update(0, note=note)
            jobs, scheduler = work.get("jobs", 2), work.get("scheduler", "")
            run = functools.partial(write_files, jobs=jobs, scheduler=scheduler, task=task)
            _build(source(), identity, layout, staging, run)
        store = read_store(folder, progress=progress)
    return replace(store, verified="hashed")  # its bytes were hashed on their way to the disk


def open_store(store: Store) -> xr.Dataset:
    """Return the stored dataset: data variables as Dask arrays of whole shards, coordinates loaded.

    Shards are read by `scibench_data.stored`, and by zarr-python where that doesn't know them.

    Values are as they were stored; nothing is masked, scaled or turned into times. Until this
    process ends nobody removes the store.

    Raises
    ------
    NotFoundError
        Another process removed it meanwhile.
    """
    if not usage.keep(store.folder.parent.parent, store.folder):
        message = f"{store.folder}: removed by another process meanwhile; run the same again"
        raise NotFoundError(message)
    dataset = _open(store.path)
    for name, array in dataset.data_vars.items():
        if found := open_stored(store.path / str(name)):
            values: Any = found.to_dask()
            dataset[name] = array.variable.copy(data=values)
            dataset[name].encoding["stored"] = found
    return dataset


def _open(path: Path) -> xr.Dataset:
    import xarray as xr

    dataset: xr.Dataset = xr.open_zarr(
        path,
        chunks=None,
        consolidated=True,
        zarr_format=3,
        mask_and_scale=False,
        decode_times=False,
    )
    for coordinate in dataset.coords.values():
        coordinate.load()
    shards = {}
    for name, array in dataset.data_vars.items():
        rows = array.encoding.get("shards") or array.encoding["chunks"]
        shards[name] = array.variable.chunk(dict(zip(array.dims, rows, strict=True)))
    return dataset.assign(shards)


def check(folder: Path, *, jobs: int = 2, progress: Progress = SILENT) -> list[Link]:
    """Prove a store from its bytes, trusting no stamp: manifest, every file, every value.

    The manifest holds if its folder has the name of its identity, what it says of each array is
    what the group says, and the arrays' digests make up its own.

    Returns name, status and detail of each link.
    """
    files, values = "store files", "store values"
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        later: list[Link] = [(link, "not checked", "no manifest") for link in (files, values)]
        return [("store manifest", "fails", str(error)), *later]
    problems = _misnamed(folder, manifest)
    harmed, _ = compare(folder, manifest, {}, progress)
    if harmed:
        return [
            _manifest_link(manifest, problems),
            (files, "fails", ", ".join(harmed)),
            (values, "not checked", "the files differ"),
        ]
    whole: Link = (files, "holds", f"{len(manifest.files)} files")
    try:
        arrays = _open(folder / GROUP)
        problems += _misdescribed(folder / GROUP, manifest, arrays)
        logical = digest.logical_digest(arrays, jobs)
    except (
        ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        unread: Link = (values, "fails", f"can't be read ({error})")
        return [_manifest_link(manifest, problems), whole, unread]
    links = [_manifest_link(manifest, problems), whole]
    if logical != manifest.digest:
        detail = f"got logical digest {logical}, expected {manifest.digest}"
        return [*links, (values, "fails", detail)]
    return [*links, (values, "holds", f"logical digest {logical}")]


def _manifest_link(manifest: Manifest, problems: list[str]) -> Link:
    if problems:
        return "store manifest", "fails", ", ".join(problems)
    return "store manifest", "holds", f"SHA-256 {manifest.sha256}"


def _misnamed(folder: Path, manifest: Manifest) -> list[str]:
    expected = store_id(manifest.identity)[:12]
    name = folder.absolute().name
    if name.rpartition("-")[2] == expected:
        return []
    return [f"{name}: a store of this identity is named …-{expected}"]


def _misdescribed(group: Path, manifest: Manifest, arrays: xr.Dataset) -> list[str]:
    """Name the arrays of which the manifest says something else than the group's own metadata."""
    import zarr

    root = zarr.open_group(group, mode="r", use_consolidated=False)
    found = {name: _describe_stored(array) for name, array in root.arrays()}
    told = {
        name: {key: value for key, value in array.items() if key != "digest"}
        for name, array in manifest.arrays.items()
    }
    problems = [
        f"array {name!r}: got {found.get(name, 'nothing')}, the manifest has {told.get(name)}"
        for name in sorted(found.keys() | told.keys())
        if found.get(name) != told.get(name)
    ]
    digests = {name: array.get("digest") for name, array in manifest.arrays.items()}
    if not problems and digest.combine(arrays, digests) != manifest.digest:
        problems = ["the digests of the arrays do not make up the store's"]
    return problems


def _describe_stored(array: Any) -> dict[str, Any]:
    """Say of an array of the group what `_describe` said when it was written, less its digest."""
    shape, chunks = array.shape, array.chunks
    chunk = chunks[0] if chunks else 1
    return {
        "shape": list(shape),
        "dtype": digest.little_endian(array.dtype),
        "dims": list(array.metadata.dimension_names or ()),
        "chunk": chunk,
        "shard": array.shards[0] if array.shards else chunk,
        "block": digest.rows_within(digest.BLOCK_BYTES, shape, array.dtype),
        "codec": codec_name(array.compressors),
    }
