"""Another simulation as a package version of its own: ``cryoem@1.0.0+scale.100000``.

The same recipe with another number of samples, for performance work, or with another seed, to see
how a score varies with the data. Nobody published checksums of it, so they are taken from what was
made here; the recipe gives the same bytes on every machine, and the descriptor that is written goes
through the chain like any other.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scibench_data import catalog, durable
from scibench_data.catalog import Reference, Variant
from scibench_data.descriptor import DataPackage, Recipe, parse
from scibench_data.errors import DescriptorError, NotFoundError, UsageError
from scibench_data.getting import adopting, holdings, simulating
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings


def derive(
    reference: Reference, variant: Variant, settings: Settings, progress: Progress = SILENT
) -> Reference:
    """Make the subset's simulation with other samples, or find the one made before.

    Raises
    ------
    UsageError
        The subset is not simulated, or its recipe has no such parameter.
    SpaceError
        The disk refuses, or is too full for what the samples will about take.
    LockedError
        Another process makes the same for too long.
    """
    package = reference.package
    recipe = check_variant(reference, variant)
    version = f"{package.version}+{variant}"
    name = f"{package.name}@{version}:{reference.subset}"
    if found := _made_before(name, settings):
        return found
    holdings.refuse_full(settings.home, _estimate(reference, recipe, variant))
    lock = holdings.lock_path(settings.home, package.name, version, ".derive")
    with (
        durable.disk_errors(settings.home),
        durable.lock(lock, settings.lock_timeout, work=f"make {name}", told=progress.say),
    ):
        if not _made_before(name, settings):
            _make(reference, version, variant.parameters(recipe), settings, progress)
    return catalog.resolve(name, settings.home)


def check_variant(reference: Reference, variant: Variant) -> Recipe:
    """Return the recipe that can make a variant of a released subset.

    Raises
    ------
    UsageError
        The subset is not simulated, or its recipe has no such parameter.
    """
    package = reference.package
    recipe = package.subsets[reference.subset].recipe
    if recipe is not None and "+" not in package.version:
        scalable = variant.scale is None or recipe.scale
        if scalable and (variant.seed is None or "seed" in recipe.parameters):
            return recipe
    message = (
        f"{reference}: can't be made with {variant.options}; "
        "name a released version and a simulated subset"
    )
    raise UsageError(message)


def _made_before(name: str, settings: Settings) -> Reference | None:
    """Find a derived version; one whose descriptor is damaged is to be made again."""
    try:
        return catalog.resolve(name, settings.home)
    except (NotFoundError, DescriptorError):
        return None


def _estimate(reference: Reference, recipe: Recipe, variant: Variant) -> int:
    """Return about what a variant takes, from what the released samples take. [B]"""
    size = sum(resource.bytes for resource in reference.package.resources_of(reference.subset))
    if variant.scale is None:
        return size
    return size * variant.scale // int(recipe.parameters[recipe.scale])


def _make(
    reference: Reference,
    version: str,
    parameters: Mapping[str, Any],
    settings: Settings,
    progress: Progress,
) -> None:
    package = reference.package
    folder = catalog.derived_folder(settings.home, package.name, version)
    release = catalog.Release(name=package.name, version=version, folder=folder, derived=True)
    with durable.scratch(settings.home / "staging" / f"{package.name}-{version}") as scratch:
        files = simulating.simulate_all(package.name, parameters, scratch, settings.jobs, progress)
        tree = describe_version(reference, version, parameters, files)
        text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
        derived = parse(text, f"{package.name}@{version}")
        scaled = Reference(release=release, package=derived, subset=reference.subset)
        contents = {f"{reference.subset}/{path}": file for path, file in files.items()}
        adopting.adopt(scaled, [derived], contents, settings, move=True)
    durable.write_whole(folder / "datapackage.json", text, replace=True)


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
