"""Every verb as a Python function; the command line calls these and nothing else.

``name`` is always ``NAME[@VERSION][:SUBSET]``: without a version the newest that is not yanked,
without a subset the sample. ``settings`` defaults to what `load_settings` finds.
Arrays, torch and the rest of what is slow to import are imported by the verbs that need them.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scibench_data import catalog, dataset, placing
from scibench_data.build import read_commit
from scibench_data.catalog import Reference, Release
from scibench_data.dataset import swhid
from scibench_data.descriptor import DataPackage
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings

if TYPE_CHECKING:
    import xarray as xr

    from scibench_data.diagnosis import Finding
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

        source = run.open_source(self.package, self.open())
        return loader.torch_dataset(source, split, batch_size, seed=seed)


def _settings(settings: Settings | None) -> Settings:
    return settings or load_settings()


def _resolve(
    name: str, scale: int | None, settings: Settings, progress: Progress = SILENT
) -> Reference:
    reference = catalog.resolve(name, settings.home)
    if scale is None:
        return reference
    from scibench_data import derive

    return derive.derive(reference, scale, settings, progress)


def plan(name: str, *, settings: Settings | None = None, check: bool = False) -> dataset.Plan:
    """Say what `get` would do, without doing it."""
    chosen = _settings(settings)
    return dataset.plan(catalog.resolve(name, chosen.home), chosen, check=check)


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
    """Return a `torch.utils.data.IterableDataset` of whole batches of one split."""
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
        Of the initial weights and the order of samples.
    device
        By default the accelerator where there is one, else ``cpu``.
    out
        Folder of the run, by default ``runs/<id>``; it must not exist.
    overrides
        Fields of the model's ``Config``, such as ``epochs`` and ``batch_size``.
    """
    from scibench_data import run

    chosen = _settings(settings)
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
        again = verification.replay(report, chosen, progress)
        report = dataclasses.replace(report, links=(*report.links, again))
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
    from scibench_data.result import read_result

    chosen = _settings(settings)
    file = Path(target)
    if file.is_dir():
        file /= "result.json"
    if file.is_file() or file.suffix == ".json":
        result = read_result(file).result
        package = catalog.resolve(f"{result.dataset.name}@{result.dataset.version}", chosen.home)
        cited = citation.citation_of_result(result.to_json(), package.package)
        return citation.cite(cited, style)
    reference = catalog.resolve(target, chosen.home)
    commit = reference.release.commit or dataset.find(reference, chosen).commit
    return citation.cite(citation.citation_of_package(reference.package, commit), style)


def list_packages() -> list[dict[str, Any]]:
    """Return one entry for each data package: its newest version, title, subsets and sizes."""
    return [_entry(catalog.find_release(name)) for name in catalog.package_names()]


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
