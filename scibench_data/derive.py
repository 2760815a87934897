"""A bigger simulation as a package version of its own: ``cryoem@1.0.0+scale.100000``.

The same recipe with another number of samples, for performance work. Nobody published checksums of
it, so they are taken from what was made here; the recipe gives the same bytes on every machine, and
the descriptor that is written goes through the chain like any other.
"""

import concurrent.futures
import json
import multiprocessing
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scibench_data import catalog, dataset, durable
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Recipe, parse
from scibench_data.errors import UsageError
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
        The disk refuses.
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
    folder = catalog.derived_folder(settings.home, package.name, version)
    with (
        durable.disk_errors(settings.home),
        durable.lock(settings.home / "locks" / f"{package.name}-{version}.derive.lock"),
    ):
        if not folder.exists():
            _make(reference, recipe, samples, settings, progress)
    return catalog.resolve(name, settings.home)


def _make(
    reference: Reference, recipe: Recipe, samples: int, settings: Settings, progress: Progress
) -> None:
    package = reference.package
    version = f"{package.version}+scale.{samples}"
    parameters = {**recipe.parameters, recipe.scale: samples}
    scratch = settings.home / "staging" / f"{package.name}-{version}"
    if scratch.exists():
        durable.remove_tree(scratch)
    files = simulate_all(package.name, parameters, scratch, settings.jobs, progress)
    tree = _descriptor(reference, version, parameters, files)
    text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
    derived = parse(text, f"{package.name}@{version}")
    folder = catalog.derived_folder(settings.home, package.name, version)
    release = catalog.Release(name=package.name, version=version, folder=folder)
    scaled = Reference(release=release, package=derived, subset=reference.subset)
    contents = {f"{reference.subset}/{path}": file for path, file in files.items()}
    dataset.adopt(scaled, [derived], contents, settings)
    durable.remove_tree(scratch)
    durable.write_whole(folder / "datapackage.json", text, replace=True)


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
    """
    paths = catalog.load_recipe(name).files(**parameters)
    files = {path: scratch / path for path in paths}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with (
        progress.task("simulate", len(files), "files") as task,
        concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool,
    ):
        work = {
            pool.submit(_simulate_one, name, path, file, dict(parameters)): path
            for path, file in files.items()
        }
        for done, finished in enumerate(concurrent.futures.as_completed(work), 1):
            finished.result()
            task.update(done, note=work[finished])
    return files


def _simulate_one(name: str, path: str, output: Path, parameters: dict[str, Any]) -> None:
    catalog.load_recipe(name).simulate(path, output, **parameters)


def _descriptor(
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
