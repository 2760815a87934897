"""Follow the links of a dataset, a store or a result, and say of each whether it still holds.

Every link is reported: it holds, it fails, or it can't be checked here, and why. Nothing that was
not looked at is called verified, and nothing is fetched or repaired.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from scibench_data import annex, build, catalog, dataset, durable, provenance, run, store
from scibench_data.catalog import Reference
from scibench_data.dataset import Dataset
from scibench_data.errors import NotFoundError, RequirementError, ScibenchError, UsageError
from scibench_data.loader import Source
from scibench_data.progress import SILENT, Progress
from scibench_data.result import Reading, Result, read_result
from scibench_data.settings import Settings
from scibench_data.store import Store

Status = Literal["holds", "fails", "not checked"]

_RECOMPUTED = 1e-3
"""Relative and absolute room for a metric recomputed from the same weights on another machine."""


@dataclasses.dataclass(frozen=True)
class Link:
    """One link and what became of it."""

    name: str
    status: Status
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All links of one thing.

    Attributes
    ----------
    kind
        ``dataset``, ``store`` or ``result``.
    """

    kind: str
    subject: str
    links: tuple[Link, ...]

    def count(self, status: Status) -> int:
        """Count the links with this status."""
        return sum(link.status == status for link in self.links)

    @property
    def exit_code(self) -> int:
        """0 where every link holds, 9 where one fails, 1 where one could not be checked."""
        if self.count("fails"):
            return 9
        return 1 if self.count("not checked") else 0


def _link(name: str, holds: bool, good: str, bad: str) -> Link:
    return Link(name, "holds", good) if holds else Link(name, "fails", bad)


# --- a dataset ------------------------------------------------------------------------------------


def _descriptor(reference: Reference, folder: Path) -> Link:
    try:
        found = (folder / "datapackage.json").read_bytes()
    except OSError as error:
        return Link("descriptor", "fails", f"datapackage.json: {error.strerror}")
    return _link(
        "descriptor",
        found == reference.package.text,
        f"sha256 {reference.package.digest}",
        "datapackage.json in the dataset is not the released one",
    )


def _commit(reference: Reference, folder: Path, stated: str) -> Link:
    """Build the history again from the released descriptors and compare the commits."""
    with tempfile.TemporaryDirectory() as scratch:
        again = build.import_history(Path(scratch) / "again", catalog.history(reference.release))
    try:
        here = annex.git("rev-parse", "refs/heads/main", cwd=folder) if folder.exists() else again
    except ScibenchError:
        here = "nothing that git can read"
    released = reference.release.commit or again
    same = again == here == released == stated
    return _link(
        "commit",
        same,
        f"{stated}, built again from the descriptor",
        f"stated {stated}, released {released}, built again {again}, in the dataset {here}",
    )


def _objects(reference: Reference, folder: Path, progress: Progress) -> Link:
    """Hash the content of every file, whatever is known of it."""
    resources = reference.package.resources_of(reference.subset)
    wrong, done = [], 0
    with progress.task("verify files", sum(resource.bytes for resource in resources)) as task:
        for resource in resources:
            path = build.object_path(folder, resource)
            if not path.is_file():
                wrong.append(f"{resource.path} is missing")
            elif durable.sha256_file(path) != resource.sha256:
                wrong.append(f"{resource.path} has other content")
                dataset.forget_stamp(folder, resource)
            done += resource.bytes
            task.update(done, note=resource.path)
    cure = f"; run: scibench-data get {reference}"
    good = f"{len(resources)} files, {done:,} bytes, every SHA-256 as published"
    return _link("files", not wrong, good, ", ".join(wrong[:5]) + cure)


def verify_dataset(reference: Reference, settings: Settings, progress: Progress = SILENT) -> Report:
    """Check descriptor, commit and every file of a subset.

    Raises
    ------
    NotFoundError
        The dataset is not on this machine.
    """
    folder = dataset.dataset_folder(settings.home, reference.package)
    if not (folder / build.NOTES / "commit").is_file():
        message = f"{reference}: not in {folder}; run: scibench-data get {reference}"
        raise NotFoundError(message)
    links = (
        _descriptor(reference, folder),
        _commit(reference, folder, build.read_commit(folder)),
        _objects(reference, folder, progress),
    )
    return Report("dataset", str(reference), links)


# --- a store --------------------------------------------------------------------------------------


def verify_store(folder: Path, progress: Progress = SILENT) -> Report:
    """Check the manifest, every shard, and the digest over the decoded values."""
    links = tuple(Link(*found) for found in store.check(folder, progress=progress))
    return Report("store", str(folder), links)


# --- a result -------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Chain:
    """What was found on this machine of the things that a result names."""

    path: Path
    reading: Reading
    settings: Settings
    progress: Progress
    reference: Reference | None = None
    data: Dataset | None = None
    store: Store | None = None
    source: Source | None = None

    @property
    def result(self) -> Result:
        return self.reading.result


def _absent(name: str, why: str) -> Link:
    return Link(name, "not checked", why)


def _check_descriptor(chain: _Chain) -> Link:
    stated = chain.result.dataset.descriptor_sha256
    try:
        chain.reference = run.reference_of(chain.result, chain.settings)
    except ScibenchError as error:
        return _absent("descriptor", str(error))
    found = chain.reference.package.digest
    holds = found == stated
    return _link("descriptor", holds, f"sha256 {found}", f"stated {stated}, released {found}")


def _check_commit(chain: _Chain) -> Link:
    if chain.reference is None:
        return _absent("commit", "the descriptor is not here")
    link = chain.result.dataset
    if link.swhid != dataset.swhid(link.commit):
        return Link("commit", "fails", f"{link.swhid} does not stand for commit {link.commit}")
    folder = dataset.dataset_folder(chain.settings.home, chain.reference.package)
    return _commit(chain.reference, folder, link.commit)


def _check_files(chain: _Chain) -> Link:
    reference = chain.reference
    if reference is None:
        return _absent("files", "the descriptor is not here")
    stated = chain.result.dataset.keys
    keys = {r.path: r.key for r in reference.package.resources_of(reference.subset)}
    if keys != dict(stated):
        return Link("files", "fails", "the result names other keys than the descriptor")
    folder = dataset.dataset_folder(chain.settings.home, reference.package)
    if not (folder / build.NOTES / "commit").is_file():
        return _absent("files", f"not on this machine; run: scibench-data get {reference}")
    return _objects(reference, folder, chain.progress)


def _check_store(chain: _Chain) -> Iterator[Link]:
    stated = chain.result.store
    name = f"{chain.result.dataset.name}-{chain.result.dataset.version}"
    subset = chain.result.dataset.subset
    folder = chain.settings.home / "stores" / f"{name}-{subset}-{stated.id[:12]}"
    if not folder.exists():
        link = chain.result.dataset
        command = f"scibench-data materialize {link.name}@{link.version}:{subset}"
        yield _absent("store", f"not on this machine; run: {command}")
        return
    found = [Link(*link) for link in store.check(folder, progress=chain.progress)]
    yield from found
    if any(link.status == "fails" for link in found):
        return
    chain.store = store.read_store(folder)
    yield _link(
        "store digest",
        chain.store.digest == stated.sha256,
        f"sha256 {stated.sha256} over the values",
        f"stated {stated.sha256}, the store has {chain.store.digest}",
    )


def _check_split(chain: _Chain) -> Link:
    if chain.store is None or chain.reference is None:
        return _absent("split", "no sound store here")
    chain.source = run.open_source(chain.reference.package, store.open_store(chain.store))
    found = run.split_link(chain.reference.package, chain.source)
    stated = chain.result.split
    sizes = ", ".join(f"{name} {size}" for name, size in found.sizes.items())
    return _link(
        "split",
        found == stated,
        f"by {found.group}: {sizes}",
        f"stated {stated.sha256} {dict(stated.sizes)}, computed {found.sha256} {dict(found.sizes)}",
    )


def _check_code(chain: _Chain) -> Link:
    stated = chain.result.code
    name = chain.result.model.name
    try:
        here = {
            "the core": (provenance.core_digest(), stated.core_sha256),
            "reader.py": (catalog.reader_digest(chain.result.dataset.name), stated.reader_sha256),
            "model.py": (catalog.model_digest(name), chain.result.model.source_sha256),
        }
    except (NotFoundError, OSError) as error:
        return _absent("code", str(error))
    other = [part for part, (found, told) in here.items() if found != told]
    made = f"version {stated.version}" + (f", commit {stated.commit}" if stated.commit else "")
    if not other:
        dirty = " (from a checkout with uncommitted changes)" if stated.dirty else ""
        return Link("code", "holds", f"{made}{dirty}: the same sources as here")
    return _absent("code", f"made by {made}; here {', '.join(other)} differs: install that version")


def _checkpoint_path(chain: _Chain) -> Path:
    return chain.path.parent / Path(chain.result.checkpoint.file).name


def _check_checkpoint(chain: _Chain) -> Link:
    stated = chain.result.checkpoint
    path = _checkpoint_path(chain)
    if not path.is_file() or path.is_symlink():
        return _absent("checkpoint", f"{path.name} is not beside the result")
    found = durable.sha256_file(path)
    holds = found == stated.sha256 and path.stat().st_size == stated.bytes
    return _link("checkpoint", holds, f"sha256 {found}", f"stated {stated.sha256}, found {found}")


def _check_metrics(chain: _Chain) -> Link:
    """Score the checkpoint again on the split that the result names."""
    stated = chain.result.metrics
    if chain.source is None:
        return _absent("metrics", "no sound store here to score the checkpoint on")
    if catalog.model_digest(chain.result.model.name) != chain.result.model.source_sha256:
        return _absent("metrics", "this installation has another model.py")
    try:
        found = _score(chain, chain.source)
    except RequirementError as error:
        return _absent("metrics", str(error))
    except ScibenchError as error:
        return Link("metrics", "fails", str(error))
    differing = [
        f"{name}: stated {stated.values.get(name)}, recomputed {found.get(name)}"
        for name in sorted(found.keys() | stated.values.keys())
        if not _close(stated.values.get(name), found.get(name))
    ]
    good = f"{stated.headline} {stated.values[stated.headline]:.4f} recomputed from the checkpoint"
    return _link("metrics", not differing, good, "; ".join(differing))


def _close(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return False
    return abs(stated - found) <= _RECOMPUTED * max(1.0, abs(stated))


def _score(chain: _Chain, source: Source) -> dict[str, float]:
    training = run.import_training()
    module = catalog.load_model(chain.result.model.name)
    config = training.make_config(module, chain.result.model.config)
    scores: dict[str, float] = training.score(
        module, config, source, _checkpoint_path(chain), chain.result.metrics.split
    )
    return scores


_SECTIONS: dict[str, tuple[str, ...]] = {
    "descriptor": ("dataset",),
    "store digest": ("store",),
    "split": ("split",),
    "code": ("code", "model"),
    "checkpoint": ("checkpoint",),
    "metrics": ("metrics",),
    "run": ("run", "history", "environment"),
}
"""Which sections of the file stand behind a link: one that was edited makes its link fail."""


def _check_run(chain: _Chain) -> Link:
    libraries = provenance.library_versions()
    stated = chain.result.environment.libraries
    other = [
        f"{n} {v} (here {libraries.get(n)})" for n, v in stated.items() if libraries.get(n) != v
    ]
    note = f"made with {', '.join(other)}" if other else "made with the same library versions"
    return Link("run", "holds", f"{chain.result.run.id}; {note}; stated by whoever ran it")


def _with_edits(link: Link, touched: tuple[str, ...]) -> Link:
    edited = [section for section in _SECTIONS.get(link.name, ()) if section in touched]
    if not edited:
        return link
    return Link(link.name, "fails", f"{', '.join(edited)} in the file was edited; {link.detail}")


def verify_result(path: Path, settings: Settings, progress: Progress = SILENT) -> Report:
    """Follow every link of a result back to the bytes.

    Raises
    ------
    VerificationError
        The file is not a result.
    UsageError
        There is no such file.
    """
    chain = _Chain(path, read_result(path), settings, progress)
    steps: tuple[Callable[[_Chain], Link | Iterator[Link]], ...] = (
        _check_run, _check_descriptor, _check_commit, _check_files, _check_store, _check_split,
        _check_code, _check_checkpoint, _check_metrics,
    )  # fmt: skip
    links: list[Link] = []
    for step in steps:
        found = step(chain)
        links += [found] if isinstance(found, Link) else list(found)
    names = {link.name for link in links}
    links += [_absent(name, "not reached") for name in _SECTIONS if name not in names]
    return Report(
        "result", str(path), tuple(_with_edits(link, chain.reading.touched) for link in links)
    )


def replay(report: Report, settings: Settings, progress: Progress = SILENT) -> Link:
    """Train again and compare every metric within the tolerance that the result states.

    Raises
    ------
    UsageError
        The report is not of a result.
    """
    if report.kind != "result":
        message = f"{report.subject}: a {report.kind} can't be replayed; name a result.json"
        raise UsageError(message)
    old, new = run.replay(Path(report.subject), settings, progress)
    differing = []
    for name, value in old.metrics.values.items():
        room = old.metrics.tolerance.get(name, 0.0)
        again = new.result.metrics.values.get(name)
        if again is None or abs(again - value) > room:
            differing.append(f"{name}: stated {value:.4f} ± {room:g}, again {again}")
    headline = old.metrics.headline
    good = (
        f"{headline} {new.result.metrics.values[headline]:.4f} again, stated "
        f"{old.metrics.values[headline]:.4f}, in {new.folder}"
    )
    return _link("replay", not differing, good, "; ".join(differing))


# --- anything -------------------------------------------------------------------------------------


def verify(target: str, settings: Settings, progress: Progress = SILENT) -> Report:
    """Verify whatever `target` names: a package, a dataset folder, a store, a run or its result.

    Raises
    ------
    UsageError
        It is none of these.
    """
    path = Path(target)
    if path.is_dir() and (path / "result.json").is_file():
        path /= "result.json"
    if path.is_file() or path.suffix == ".json":
        return verify_result(path, settings, progress)
    folder = path.parent if path.name == "data.zarr" else path
    if (folder / "manifest.json").is_file() or (folder / "data.zarr").is_dir():
        return verify_store(folder, progress)
    if (path / "datapackage.json").is_file():
        return verify_dataset(_reference_of_folder(path, settings), settings, progress)
    if path.exists():
        message = f"{target}: neither a dataset, a store nor a result; name one of these"
        raise UsageError(message)
    return verify_dataset(catalog.resolve(target, settings.home), settings, progress)


def _reference_of_folder(path: Path, settings: Settings) -> Reference:
    try:
        tree: Any = json.loads((path / "datapackage.json").read_bytes())
        name = f"{tree['name']}@{tree['version']}"
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}/datapackage.json: not readable ({error}); verify it by its name instead"
        raise UsageError(message) from error
    reference = catalog.resolve(name, settings.home)
    home = dataset.dataset_folder(settings.home, reference.package)
    if path.resolve() != home.resolve():
        message = f"{path}: not in this cache, where {name} lies in {home}; set SCIBENCH_DATA_HOME"
        raise UsageError(message)
    return reference
