"""Files that are made by a recipe, several at once, in processes of their own.

The processes are new ones that know nothing of the caller's: what runs `get` may be any script.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scibench_data import catalog, durable
from scibench_data.annexed import annex, compute
from scibench_data.annexed.build import NOTES
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.errors import IntegrityError, ScibenchError, SpaceError
from scibench_data.getting.fetching import Arrived
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings


def make(
    folder: Path,
    reference: Reference,
    wanted: Sequence[Resource],
    settings: Settings,
    progress: Progress,
) -> Iterator[Arrived]:
    """Make the content of `wanted`; yield each file that is right: move it before the next.

    Raises
    ------
    IntegrityError
        The recipe gave other bytes than were published; the other files were made.
    SpaceError
        The disk refused.
    ScibenchError
        The recipe failed.
    """
    package = reference.package
    recipe = package.subsets[wanted[0].subset].recipe
    parameters = recipe.parameters if recipe else {}
    resources = {resource.path.partition("/")[2]: resource for resource in wanted}
    bad = []
    with durable.scratch(folder / NOTES / "incoming/made") as scratch:
        files = {path: scratch / path for path in resources}
        for path in _simulate(package.name, parameters, files, settings.jobs, progress):
            resource = resources[path]
            if (sha256 := durable.sha256_file(files[path])) == resource.sha256:
                source = f"the recipe of {package.name}"
                yield Arrived(resource=resource, file=files[path], sha256=sha256, source=source)
            else:
                bad.append(resource.path)
    if bad:
        message = (
            f"{reference}: {len(bad)} files could not be had, {bad[0]} first: its recipe gave "
            "other bytes than were published; nothing of it was kept, report it to the maintainers"
        )
        raise IntegrityError(message)


def simulate_all(
    name: str,
    parameters: Mapping[str, Any],
    scratch: Path,
    jobs: int,
    progress: Progress = SILENT,
) -> dict[str, Path]:
    """Make all files of a recipe below `scratch`.

    Returns
    -------
    dict
        Path within the subset -> file.

    Raises
    ------
    SpaceError
        The disk refused.
    ScibenchError
        The recipe failed, or a process was killed from outside.
    """
    paths = catalog.load_recipe(name).files(**parameters)
    files = {path: scratch / path for path in paths}
    for _ in _simulate(name, parameters, files, jobs, progress):
        pass
    return files


def _simulate(
    name: str,
    parameters: Mapping[str, Any],
    files: Mapping[str, Path],
    jobs: int,
    progress: Progress,
) -> Iterator[str]:
    """Make files, path within the subset -> where; yield the path of each when it is made."""
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    lines = [compute.request(name, path, file, parameters) for path, file in files.items()]
    here = next(iter(files.values())).parent
    with progress.task("simulate", len(files), "files") as task:
        for done, answer in enumerate(annex.stream_compute(lines, here, jobs), 1):
            path, why = compute.read_answer(answer)
            if why:
                raise _explain(name, path, why)
            task.update(done, note=path)
            yield path


def _explain(name: str, path: str, why: str) -> ScibenchError:
    if annex.disk_refused(why):
        return SpaceError(
            f"{name}: {path} could not be made, the disk refused ({why}); free some space "
            "or choose another place with SCIBENCH_DATA_HOME"
        )
    return ScibenchError(f"{name}: {path} could not be made ({why}); see scibench-data doctor")
