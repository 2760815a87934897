"""A bigger simulation as a package version of its own: ``cryoem@1.0.0+scale.100000``.

The same recipe with another number of samples, for performance work. Nobody published checksums of
it, so they are taken from what was made here; the recipe gives the same bytes on every machine, and
the descriptor that is written goes through the chain like any other.
"""

import concurrent.futures
import json
import multiprocessing
import os
import re
import secrets
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scibench_data import annex, build, catalog, dataset, durable, transfer
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Recipe, Resource, parse
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NotFoundError,
    ScibenchError,
    SpaceError,
    UsageError,
)
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings


def derive(
    reference: Reference, samples: int, settings: Settings, progress: Progress = SILENT
) -> Reference:
    """Make the subset's simulation with `samples` samples, or find the one made before.

    Raises
    ------
    UsageError
        The subset is not simulated, or its recipe has no number of samples.
    SpaceError
        The disk refuses, or is too full for what the samples will about take.
    LockedError
        Another process makes the same for too long.
    """
    package = reference.package
    recipe = package.subsets[reference.subset].recipe
    if recipe is None or not recipe.scale:
        message = f"{reference}: not a simulation that can be scaled; use the sample subset"
        raise UsageError(message)
    if samples < 1 or "+" in package.version:
        message = f"--scale {samples}: expected a number of samples for a released version"
        raise UsageError(message)
    version = f"{package.version}+scale.{samples}"
    name = f"{package.name}@{version}:{reference.subset}"
    if found := _made_before(name, settings):
        return found
    dataset.refuse_full(settings.home, _estimate(reference, recipe, samples))
    lock = dataset.lock_path(settings.home, package.name, version, ".derive")
    with durable.disk_errors(settings.home), durable.lock(lock, settings.lock_timeout):
        if not _made_before(name, settings):
            _make(reference, recipe, samples, settings, progress)
    return catalog.resolve(name, settings.home)


def _made_before(name: str, settings: Settings) -> Reference | None:
    """Find a derived version; one whose descriptor is damaged is to be made again."""
    try:
        return catalog.resolve(name, settings.home)
    except (NotFoundError, DescriptorError):
        return None


def _estimate(reference: Reference, recipe: Recipe, samples: int) -> int:
    """Return about what `samples` samples take, from what the released ones take. [B]"""
    released = reference.package.resources_of(reference.subset)
    size = sum(resource.bytes for resource in released)
    return size * samples // int(recipe.parameters[recipe.scale])


def _make(
    reference: Reference, recipe: Recipe, samples: int, settings: Settings, progress: Progress
) -> None:
    package = reference.package
    version = f"{package.version}+scale.{samples}"
    parameters = {**recipe.parameters, recipe.scale: samples}
    folder = catalog.derived_folder(settings.home, package.name, version)
    release = catalog.Release(name=package.name, version=version, folder=folder, derived=True)
    with _scratch(settings.home / "staging" / f"{package.name}-{version}") as scratch:
        files = simulate_all(package.name, parameters, scratch, settings.jobs, progress)
        tree = describe_version(reference, version, parameters, files)
        text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
        derived = parse(text, f"{package.name}@{version}")
        scaled = Reference(release=release, package=derived, subset=reference.subset)
        contents = {f"{reference.subset}/{path}": file for path, file in files.items()}
        _adopt(scaled, [derived], contents, settings)
    durable.write_whole(folder / "datapackage.json", text, replace=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is gone afterwards, whatever happens; only a kill leaves it."""
    if folder.exists():
        durable.remove_tree(folder)
    try:
        yield folder
    finally:
        durable.remove_tree(folder)


def _adopt(
    reference: Reference,
    versions: Sequence[DataPackage],
    contents: Mapping[str, Path],
    settings: Settings,
) -> None:
    """Build a dataset and move files that are already on this disk into it, by their checksum.

    A dataset that is in the place but is not sound is moved to ``quarantine`` in the cache.

    Parameters
    ----------
    versions
        The dataset's history, oldest first.
    contents
        Resource path -> file, which must have the resource's bytes.

    Raises
    ------
    IntegrityError
        A file is not what the descriptor says, or something else has the dataset's place.
    """
    package = reference.package
    folder = dataset.dataset_folder(settings.home, package)
    with dataset.locked(reference, settings):
        if dataset.is_built(folder) and build.fault(folder, package, reference.release.commit):
            kept = settings.home / "quarantine" / f"{package.name}-{package.version}"
            kept.parent.mkdir(exist_ok=True)
            folder.rename(f"{kept}-{secrets.token_hex(4)}")
        dataset.ensure_built(reference, folder, versions)
        told = _reinject(folder, list(contents.values()))
        for path, file in contents.items():
            resource = package.resource(path)
            if dataset.size_of(build.object_path(folder, resource)) != resource.bytes:
                raise _not_adopted(file, resource, told)
        durable.flush_filesystem(folder)


def _reinject(folder: Path, files: Sequence[Path]) -> str:
    """Let git-annex take the files whose checksums it knows; return what it complained of."""
    told = []
    for start in range(0, len(files), transfer.ARGUMENTS):
        batch = map(str, files[start : start + transfer.ARGUMENTS])
        for record in annex.stream_annex("reinject", "--known", "--", *batch, cwd=folder):
            told += [*record.get("error-messages", []), record.get("said", "")]
    return " ".join(" ".join(told).split())


def _not_adopted(file: Path, resource: Resource, told: str) -> ScibenchError:
    if dataset.size_of(file) is not None and durable.sha256_file(file) != resource.sha256:
        message = f"{file}: not the bytes of {resource.path}; take the right file"
        return IntegrityError(message)
    message = f"{file}: not taken as {resource.path}, git-annex said {told[:300]!r}; "
    if annex.disk_refused(told):
        cure = "free some space or choose another place with SCIBENCH_DATA_HOME"
        return SpaceError(message + cure)
    return ScibenchError(message + "see scibench-data doctor")


def simulate_all(
    name: str,
    parameters: Mapping[str, Any],
    scratch: Path,
    jobs: int,
    progress: Progress = SILENT,
) -> dict[str, Path]:
    """Make all files of a recipe below `scratch`, several at once, in processes of their own.

    Returns
    -------
    dict
        Path within the subset -> file.

    Raises
    ------
    ScibenchError
        A process was killed from outside.
    """
    paths = catalog.load_recipe(name).files(**parameters)
    files = {path: scratch / path for path in paths}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    with progress.task("simulate", len(files), "files") as task, _workers(name, jobs) as pool:
        work = {
            pool.submit(_simulate_one, name, path, file, dict(parameters)): path
            for path, file in files.items()
        }
        for done, finished in enumerate(concurrent.futures.as_completed(work), 1):
            finished.result()
            task.update(done, note=work[finished])
    return files


@contextmanager
def _workers(name: str, jobs: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Give a pool whose processes end at once where the work with it fails or is interrupted."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=_begin_worker
    ) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                message = (
                    f"{name}: a process of its recipe was killed; "
                    "look whether memory ran out, and use fewer jobs or samples"
                )
                raise ScibenchError(message) from error
            raise


def _begin_worker() -> None:
    """Leave an interrupt, which goes to the whole group, to the parent; end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _simulate_one(name: str, path: str, output: Path, parameters: dict[str, Any]) -> None:
    catalog.load_recipe(name).simulate(path, output, **parameters)


def describe_version(
    reference: Reference, version: str, parameters: Mapping[str, Any], files: Mapping[str, Path]
) -> dict[str, Any]:
    """Return the released descriptor with the new version, parameters and files."""
    package: DataPackage = reference.package
    tree: dict[str, Any] = json.loads(package.text)
    ours = tree["scibench"]
    subset = ours["subsets"][reference.subset]
    tree["version"] = version
    ours["uuid"] = str(uuid.uuid5(uuid.UUID(package.uuid), version))
    ours["subsets"] = {
        reference.subset: {**subset, "recipe": {**subset["recipe"], "parameters": dict(parameters)}}
    }
    tree["resources"] = describe_all(tree["resources"], reference.subset, files)
    return tree


def describe_all(
    entries: Sequence[Mapping[str, Any]], subset: str, files: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Describe the files of a simulated subset as resources, with their sizes and SHA-256.

    What `entries` say of a file of the same path is kept; else what they say of the first with the
    same suffix.
    """
    known = {entry["path"]: entry for entry in entries}
    return [_describe(known, f"{subset}/{path}", file) for path, file in files.items()]


def _describe(known: Mapping[str, Mapping[str, Any]], path: str, file: Path) -> dict[str, Any]:
    alike = [entry for other, entry in known.items() if Path(other).suffix == file.suffix]
    base = known.get(path) or alike[0]
    return {
        **base,
        "name": re.sub(r"[^a-z0-9]+", "-", path.lower()),
        "path": path,
        "bytes": file.stat().st_size,
        "hash": f"sha256:{durable.sha256_file(file)}",
    }
