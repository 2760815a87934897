"""Every verb as a Python function; the command line calls these and nothing else.

``name`` is always ``NAME[@VERSION][:SUBSET]``: without a version the newest that is not yanked,
without a subset the sample. ``settings`` defaults to what `load_settings` finds.
Arrays, torch and the rest of what is slow to import are imported by the verbs that need them.
"""

import dataclasses
import math
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scibench_data import catalog, dataset, placing
from scibench_data.build import read_commit
from scibench_data.catalog import Reference, Release
from scibench_data.dataset import swhid
from scibench_data.descriptor import DataPackage
from scibench_data.errors import NotFoundError, ScibenchError, UsageError
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings

if TYPE_CHECKING:
    import xarray as xr

    from scibench_data.diagnosis import Finding
    from scibench_data.result import Result
    from scibench_data.run import Run
    from scibench_data.store import Layout, Store
    from scibench_data.verification import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(dataset.Dataset):
    """A version of a package with its content on this disk: what `get` returns."""

    settings: Settings

    def materialize(
        self, *, layout: "Layout | None" = None, progress: Progress = SILENT
    ) -> "Store":
        """Write the Zarr store, or find the one that was written before."""
        from scibench_data import run

        return run.materialize(self, self.settings, layout=layout, progress=progress)

    def open(self) -> "xr.Dataset":
        """Open the store as lazy Dask arrays with dims, units and coordinates."""
        from scibench_data import store

        return store.open_store(self.materialize())

    def torch(self, split: str = "train", batch_size: int = 64, *, seed: int = 0) -> Any:
        """Return a `torch.utils.data.IterableDataset` of whole batches of one split."""
        from scibench_data import loader, run

        _check_whole("seed", seed, 0, MAX_SEED)
        loader.check_batch_size(batch_size)  # before anything is written
        source = run.open_source(self.package, self.open())
        return loader.torch_dataset(source, split, batch_size, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(dataset.Plan):
    """What `get` would do, decided from a look at the disk.

    Attributes
    ----------
    estimated
        Nobody made a simulation of this size here: `missing` lists the files of the released one,
        and numbers of files, bytes and inodes are `share` times theirs.
    """

    estimated: bool = False
    share: float = 1.0

    @property
    def files(self) -> int:
        """How many files are to be fetched or made."""
        return math.ceil(len(self.missing) * self.share)

    @property
    def bytes(self) -> int:
        """What is to be fetched or made. [B]"""
        return math.ceil(super().bytes * self.share)

    @property
    def inodes(self) -> int:
        """About how many files, folders and links that adds."""
        return math.ceil(super().inodes * self.share)


MAX_SEED = 2**32 - 1


def _settings(settings: Settings | None) -> Settings:
    return settings or load_settings()


def _check_whole(subject: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise a UsageError for what is not a whole number in the range."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        message = f"{subject}: expected a whole number from {low}{upper}, got {value!r}; correct it"
        raise UsageError(message)


def _resolve(
    name: str, scale: int | None, settings: Settings, progress: Progress = SILENT
) -> Reference:
    reference = catalog.resolve(name, settings.home)
    if scale is None:
        return reference
    from scibench_data import derive

    _check_whole("scale", scale, 1)
    return derive.derive(reference, scale, settings, progress)


def plan(
    name: str, *, scale: int | None = None, settings: Settings | None = None, check: bool = False
) -> Plan:
    """Say what `get` would do, without doing it; see `get` for `scale` and `check`.

    A simulation of another size that was not made here yet is estimated from the released one.

    Raises
    ------
    NotFoundError
        No such package, version or subset.
    UsageError
        The subset can't be scaled.
    """
    chosen = _settings(settings)
    reference = catalog.resolve(name, chosen.home)
    share = None
    if scale is not None:
        reference, share = _scaled(reference, scale, chosen)
    look = vars(dataset.plan(reference, chosen, check=check))
    return Plan(**look) if share is None else Plan(**look, estimated=True, share=share)


def _scaled(
    reference: Reference, samples: int, settings: Settings
) -> tuple[Reference, float | None]:
    """Return the version with `samples` samples; if it isn't here, with the released files.

    The second value is then the share of the released samples that it would have, else None.
    """
    _check_whole("scale", samples, 1)
    package = reference.package
    recipe = package.subsets[reference.subset].recipe
    if recipe is None or not recipe.scale or "+" in package.version:
        message = f"{reference}: can't be scaled; name a released version and a simulated subset"
        raise UsageError(message)
    version = f"{package.version}+scale.{samples}"
    folder = catalog.derived_folder(settings.home, package.name, version)
    if (folder / "datapackage.json").is_file():
        return catalog.resolve(f"{package.name}@{version}:{reference.subset}", settings.home), None
    release = dataclasses.replace(reference.release, version=version, folder=folder, commit="")
    foreseen = dataclasses.replace(package, version=version)
    share = samples / float(recipe.parameters[recipe.scale])
    return Reference(release=release, package=foreseen, subset=reference.subset), share


def get(
    name: str,
    *,
    to: Path | str | None = None,
    scale: int | None = None,
    check: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Get a version of a package: every file with its published SHA-256, on this disk.

    Parameters
    ----------
    to
        Also place the files there, as plain files.
    scale
        Make the simulation with this many samples instead of the published number. [1]
    check
        Hash every file again, also what has not changed since it was hashed.

    Raises
    ------
    NotFoundError
        No such package, version or subset.
    IntegrityError, NetworkError, SpaceError, LockedError, RequirementError
        See `scibench_data.errors`.
    """
    chosen = _settings(settings)
    if to == "":
        message = "to: expected a folder, got an empty text; name one, '.' for the current one"
        raise UsageError(message)
    reference = _resolve(name, scale, chosen, progress)
    found = dataset.get(reference, chosen, check=check, progress=progress)
    if to is not None:
        placing.place(found, Path(to), progress)
    return Dataset(
        reference=found.reference, folder=found.folder, commit=found.commit, settings=chosen
    )


def path(name: str, *, settings: Settings | None = None) -> Path:
    """Return the folder with a subset's files.

    Raises
    ------
    NotFoundError
        They are not all on this disk.
    """
    chosen = _settings(settings)
    return dataset.find(catalog.resolve(name, chosen.home), chosen).path


def materialize(
    name: str,
    *,
    layout: "Layout | None" = None,
    scale: int | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> "Store":
    """Get a version and write it as a Zarr v3 store, or find the one that was written before."""
    data = get(name, scale=scale, settings=settings, progress=progress)
    return data.materialize(layout=layout, progress=progress)


def open(  # noqa: A001  (the verb that zarr, xarray and h5py use)
    name: str, *, settings: Settings | None = None, progress: Progress = SILENT
) -> "xr.Dataset":
    """Open a version as lazy Dask arrays with dims, units and coordinates.

    What is missing on the way is fetched and written first.
    """
    from scibench_data import store

    return store.open_store(materialize(name, settings=settings, progress=progress))


def torch(
    name: str,
    split: str = "train",
    batch_size: int = 64,
    *,
    seed: int = 0,
    settings: Settings | None = None,
) -> Any:
    """Return a `torch.utils.data.IterableDataset` of whole batches of one split.

    Raises
    ------
    UsageError
        `batch_size` or `seed` is not a number that can be meant.
    """
    from scibench_data import loader

    _check_whole("seed", seed, 0, MAX_SEED)
    loader.check_batch_size(batch_size)  # before anything is fetched
    return get(name, settings=settings).torch(split, batch_size, seed=seed)


def train(
    name: str,
    *,
    seed: int = 0,
    device: str | None = None,
    out: Path | str | None = None,
    scale: int | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    **overrides: Any,
) -> "Run":
    """Get, materialize, train the reference model, and record the result.

    Parameters
    ----------
    seed
        Of the initial weights and the order of samples, from 0 to 2**32 - 1.
    device
        By default the accelerator where there is one, else ``cpu``.
    out
        Folder of the run, by default ``runs/<id>``; it must not exist.
    overrides
        Fields of the model's ``Config``, such as ``epochs`` and ``batch_size``.
    """
    from scibench_data import run

    chosen = _settings(settings)
    _check_whole("seed", seed, 0, MAX_SEED)
    if out == "":
        message = "out: expected a folder, got an empty text; name one, or leave it out"
        raise UsageError(message)
    options = run.Options(
        seed=seed, device=device, out=Path(out) if out else None, overrides=overrides
    )
    run.check(catalog.resolve(name, chosen.home).package, options)
    data = get(name, scale=scale, settings=chosen, progress=progress)
    materialized = data.materialize(progress=progress)
    return run.train(data, materialized, options, progress)


def verify(
    target: str,
    *,
    replay: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> "Report":
    """Follow the links of a dataset, a store or a result; see `scibench_data.verification`.

    Parameters
    ----------
    target
        ``NAME[@VERSION][:SUBSET]``, the folder of a dataset, a store or a run, or a result file.
    replay
        For a result: also train again and compare within the result's tolerance.
    """
    from scibench_data import verification

    chosen = _settings(settings)
    report = verification.verify(target, chosen, progress)
    if replay:
        report = verification.replay(report, chosen, progress)
    return report


def cite(target: str, style: str = "bibtex", *, settings: Settings | None = None) -> str:
    """Cite a version of a package, or a result and the version that it rests on.

    Parameters
    ----------
    target
        ``NAME[@VERSION]``, a run's folder or its result file.
    style
        ``bibtex``, ``apa``, ``ris``, ``cff`` or ``csl-json``.
    """
    from scibench_data import citation

    chosen = _settings(settings)
    result = _result_of(target)
    if result is not None:
        package = catalog.resolve(f"{result.dataset.name}@{result.dataset.version}", chosen.home)
        cited = citation.citation_of_result(result.to_json(), package.package)
        return citation.cite(cited, style)
    reference = catalog.resolve(target, chosen.home)
    commit = reference.release.commit or dataset.find(reference, chosen).commit
    return citation.cite(citation.citation_of_package(reference.package, commit), style)


def _result_of(target: str) -> "Result | None":
    """Read the result that `target` names: a ``.json`` file, or the folder of a run.

    The name of a package stands for the package, also beside a file or folder of that name.
    """
    from scibench_data.result import read_result

    path = Path(target)
    if path.suffix == ".json":
        return read_result(path).result
    if (path / "result.json").is_file():
        return read_result(path / "result.json").result
    package = target.partition(":")[0].partition("@")[0]
    if package in catalog.package_names() or not path.exists():
        return None
    return read_result(path / "result.json" if path.is_dir() else path).result


def cited_version(target: str) -> str:
    """Return ``NAME@VERSION`` of what `cite` cites for `target`; a package's name as it is."""
    result = _result_of(target)
    return target if result is None else f"{result.dataset.name}@{result.dataset.version}"


def yanked(name: str, *, settings: Settings | None = None) -> tuple[str, str]:
    """Return why a version should not be used any more, and that with what to use instead.

    Both are empty when it may be used. A derived version shares the fate of the released one.

    Raises
    ------
    NotFoundError
        No such package, version or subset.
    """
    package = catalog.resolve(name, _settings(settings).home).package
    released = package.version.partition("+")[0]
    known = catalog.releases(package.name)
    reason = next((each.yanked for each in known if each.version == released), "")
    if not reason:
        return "", ""
    try:
        cure = f"use {package.name}@{catalog.find_release(package.name).version}"
    except NotFoundError:
        cure = "no version of it is left to use"
    return reason, f"{package.name}@{package.version}: yanked ({reason}); {cure}"


def list_packages() -> list[dict[str, Any]]:
    """Return one entry for each data package: its newest version, title, subsets and sizes.

    ``note`` says what is the matter with a package that is damaged or wholly yanked, else nothing.
    """
    return [_listed(name) for name in catalog.package_names()]


def _listed(name: str) -> dict[str, Any]:
    try:
        newest = catalog.releases(name)[-1]
        try:
            return {**_entry(catalog.find_release(name)), "note": ""}
        except NotFoundError:
            return {**_entry(newest), "note": f"every version is yanked: {newest.yanked}"}
    except (ScibenchError, OSError, IndexError) as error:
        problem = " ".join(str(error).split()) or "has no version"
        unknown: dict[str, Any] = {"version": "", "title": "", "subsets": {}, "licenses": []}
        note = f"damaged: {problem}; install scibench-data again"
        return {"name": name, **unknown, "model": name in catalog.model_names(), "note": note}


def _entry(release: Release) -> dict[str, Any]:
    package = release.read()
    return {
        "name": package.name,
        "version": package.version,
        "title": package.title,
        "subsets": {name: _subset(package, name) for name in package.subsets},
        "licenses": [terms.name or terms.path for terms in package.licenses],
        "model": package.name in catalog.model_names(),
    }


def _subset(package: DataPackage, name: str) -> dict[str, Any]:
    resources = package.resources_of(name)
    return {
        "title": package.subsets[name].title,
        "files": len(resources),
        "bytes": sum(resource.bytes for resource in resources),
        "simulated": package.subsets[name].recipe is not None,
    }


def info(name: str, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return what the descriptor says of a version, and what of it is on this disk."""
    chosen = _settings(settings)
    reference = catalog.resolve(name, chosen.home)
    package, release = reference.package, reference.release
    look = dataset.plan(reference, chosen)
    commit = release.commit or (read_commit(look.folder) if look.built else "")
    return {
        **_entry(release),
        "subset": reference.subset,
        "description": package.description,
        "released": package.released,
        "yanked": release.yanked,
        "commit": commit,
        "swhid": swhid(commit) if commit else "",
        "descriptor_sha256": package.digest,
        "arrays": [dataclasses.asdict(array) for array in package.arrays],
        "splits": dataclasses.asdict(package.splits) if package.splits else None,
        "task": dataclasses.asdict(package.task) if package.task else None,
        "sources": [dataclasses.asdict(source) for source in package.sources],
        "files": [
            {"path": r.path, "bytes": r.bytes, "sha256": r.sha256, "here": r not in look.missing}
            for r in package.resources_of(reference.subset)
        ],
        "folder": str(look.folder) if look.built else "",
    }


def versions(name: str) -> list[dict[str, str]]:
    """Return every released version of a package, oldest first."""
    return [
        {
            "version": release.version,
            "date": release.date,
            "commit": release.commit,
            "changes": release.changes,
            "yanked": release.yanked,
        }
        for release in catalog.releases(name)
    ]


def remove(name: str, *, settings: Settings | None = None) -> int:
    """Delete a version's files from the cache and return the bytes freed; stores stay.

    Raises
    ------
    NotFoundError
        The version is not in the cache.
    """
    chosen = _settings(settings)
    return dataset.remove(catalog.resolve(name, chosen.home), chosen)


def doctor(*, settings: Settings | None = None) -> "list[Finding]":
    """Look at this machine and say what is missing and what to do about it."""
    from scibench_data import diagnosis

    return diagnosis.examine(_settings(settings))
