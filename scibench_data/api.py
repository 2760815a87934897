"""Every verb as a Python function; the command line calls these and nothing else.

``name`` is always ``NAME[@VERSION][:SUBSET]``: without a version the newest that is not yanked,
without a subset the sample. ``settings`` defaults to what `load_settings` finds.
Arrays, torch and the rest of what is slow to import are imported by the verbs that need them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scibench_data import catalog, usage
from scibench_data.catalog import Reference, Variant
from scibench_data.errors import UsageError
from scibench_data.getting import dataset, holdings, placing
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.versions import locking

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from scibench_data.keeping.diagnosis import Finding
    from scibench_data.results.result import Result
    from scibench_data.results.run import Run
    from scibench_data.results.verification import Report
    from scibench_data.storing.store import Layout, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(dataset.Dataset):
    """A version of a package with its content on this disk: what `get` returns."""

    settings: Settings

    def materialize(
        self,
        *,
        layout: "Layout | None" = None,
        scheduler: str = "",
        progress: Progress = SILENT,
    ) -> "Store":
        """Write the Zarr store, or find the one that was written before."""
        from scibench_data.results import run

        return run.materialize(
            self, self.settings, layout=layout, scheduler=scheduler, progress=progress
        )

    def open(self) -> "xr.Dataset":
        """Open the store as lazy Dask arrays with dims, units and coordinates."""
        from scibench_data.storing import store

        return store.open_store(self.materialize())

    def torch(
        self,
        split: str = "train",
        batch_size: int = 64,
        *,
        seed: int = 0,
        transform: "Callable[[xr.Dataset], xr.Dataset] | None" = None,
        **share: Any,
    ) -> Any:
        """Return a `torch.utils.data.IterableDataset` of whole batches of one split.

        Parameters
        ----------
        transform
            Changes the arrays before they are read, lazily: what it does runs block by block in
            threads, while the batches before are used.
        share
            ``shuffle``, ``rank`` and ``ranks`` as `scibench_data.batches.Batches` takes them.
        """
        from scibench_data import loader
        from scibench_data.results import run

        _check_whole("seed", seed, 0, MAX_SEED)
        loader.check_batch_size(batch_size)  # before anything is written
        loader.import_torch()
        from scibench_data.batches import Batches

        arrays = transform(self.open()) if transform else self.open()
        source = run.open_source(self.package, arrays)
        return Batches(source, split, batch_size, seed=seed, **share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(holdings.Plan):
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
    def about(self) -> Mapping[str, int]:
        """What its publisher says of a subset whose files are not known: ``files``, ``bytes``."""
        reference = self.reference
        known = reference.package.resources_of(reference.subset)
        return {} if known else reference.package.subsets[reference.subset].about

    @property
    def files(self) -> int:
        """How many files are to be fetched or made."""
        return self.about.get("files", math.ceil(len(self.missing) * self.share))

    @property
    def bytes(self) -> int:
        """What is to be fetched or made. [B]"""
        return self.about.get("bytes", math.ceil(super().bytes * self.share))

    @property
    def inodes(self) -> int:
        """About how many files, folders and links that adds."""
        if self.about:
            return holdings.inodes(self.files, built=False)
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


def _variant(scale: int | None, data_seed: int | None) -> Variant | None:
    """Return what was asked of a simulation; None where it is the released one."""
    if scale is not None:
        _check_whole("scale", scale, 1)
    if data_seed is not None:
        _check_whole("data_seed", data_seed, 1)
    found = Variant(scale=scale, seed=data_seed)
    return found if str(found) else None


def _resolve(
    name: str, variant: Variant | None, settings: Settings, progress: Progress = SILENT
) -> Reference:
    """Resolve a name to files that are known: simulate another size, or list what nobody listed."""
    reference = locking.resolve(name, settings)
    if variant is not None:
        from scibench_data.getting import derive

        return derive.derive(reference, variant, settings, progress)
    if reference.package.subsets[reference.subset].listing:
        from scibench_data.getting import listing

        if listing.is_unlisted(reference):
            return listing.list_files(reference, settings, progress)
    return reference


def plan(
    name: str,
    *,
    include: Sequence[str] = (),
    scale: int | None = None,
    data_seed: int | None = None,
    settings: Settings | None = None,
    check: bool = False,
) -> Plan:
    """Say what `get` would do, without doing it; see `get` for its options.

    A simulation of another size that was not made here yet is estimated from the released one. No
    connection is opened: of a subset whose files nobody listed here, the numbers are its
    publisher's.

    Raises
    ------
    NotFoundError
        No such package, version or subset.
    UsageError
        The subset can't be scaled.
    """
    chosen = _settings(settings)
    reference = locking.resolve(name, chosen)
    share = None
    if variant := _variant(scale, data_seed):
        reference, share = _foreseen(reference, variant, chosen)
    elif reference.package.subsets[reference.subset].listing:
        from scibench_data.getting import listing

        reference = listing.find_listed(reference, chosen) or reference
    if reference.resources:
        reference = reference.only(include)
    look = vars(holdings.plan(reference, chosen, check=check))
    return Plan(**look) if share is None else Plan(**look, estimated=True, share=share)


def _foreseen(
    reference: Reference, variant: Variant, settings: Settings
) -> tuple[Reference, float | None]:
    """Return the version that is a variant; if it isn't here, with the released files.

    The second value is then the share of the released samples that it would have, else None.
    """
    from scibench_data.getting import derive

    package = reference.package
    recipe = derive.check_variant(reference, variant)
    version = f"{package.version}+{variant}"
    folder = catalog.derived_folder(settings.home, package.name, version)
    if (folder / "datapackage.json").is_file():
        return catalog.resolve(f"{package.name}@{version}:{reference.subset}", settings.home), None
    release = dataclasses.replace(reference.release, version=version, folder=folder, commit="")
    foreseen = dataclasses.replace(package, version=version)
    released = 1.0 if variant.scale is None else float(recipe.parameters[recipe.scale])
    share = (variant.scale or 1) / released
    return Reference(release=release, package=foreseen, subset=reference.subset), share


def _folder_meant(name: str, variant: Variant | None, settings: Settings) -> Path:
    """Return where the dataset will lie, before it is there: nobody may remove it from now on."""
    package = locking.resolve(name, settings).package
    version = f"{package.version}+{variant}" if variant else package.version
    return holdings.dataset_folder(settings.home, dataclasses.replace(package, version=version))


def get(  # noqa: PLR0913  (the options of a verb)
    name: str,
    *,
    to: Path | str | None = None,
    include: Sequence[str] = (),
    scale: int | None = None,
    data_seed: int | None = None,
    check: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Get a version of a package: every file with its published SHA-256, on this disk.

    Parameters
    ----------
    to
        Also place the files there, as plain files.
    include
        Patterns of paths within the subset, as the shell has them, such as ``train/*``: only these
        files. `get` without it adds the rest.
    scale
        Make the simulation with this many samples instead of the published number. [1]
    data_seed
        Make it with other random numbers, from 1 on: another sample of the same physics.
    check
        Hash every file again, also what has not changed since it was hashed.

    Raises
    ------
    NotFoundError
        No such package, version, subset or file.
    IntegrityError, NetworkError, LicenceError, SpaceError, LockedError, RequirementError
        See `scibench_data.errors`.
    """
    chosen = _settings(settings)
    if to == "":
        message = "to: expected a folder, got an empty text; name one, '.' for the current one"
        raise UsageError(message)
    variant = _variant(scale, data_seed)
    with usage.using(chosen.home, _folder_meant(name, variant, chosen)):
        reference = _resolve(name, variant, chosen, progress).only(include)
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
    return dataset.find(locking.resolve(name, chosen), chosen).path


def materialize(
    name: str,
    *,
    layout: "Layout | None" = None,
    scheduler: str = "",
    scale: int | None = None,
    data_seed: int | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> "Store":
    """Get a version and write it as a Zarr v3 store, or find the one that was written before.

    Parameters
    ----------
    layout
        How arrays are cut and packed; by default chosen from their sizes and values.
    scheduler
        Address of a running Dask scheduler whose workers do it; by default threads here.
    """
    data = get(name, scale=scale, data_seed=data_seed, settings=settings, progress=progress)
    return data.materialize(layout=layout, scheduler=scheduler, progress=progress)


def open(  # noqa: A001  (the verb that zarr, xarray and h5py use)
    name: str, *, settings: Settings | None = None, progress: Progress = SILENT
) -> "xr.Dataset":
    """Open a version as lazy Dask arrays with dims, units and coordinates.

    What is missing on the way is fetched and written first.
    """
    from scibench_data.storing import store

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


def train(  # noqa: PLR0913  (the options of a verb)
    name: str,
    *,
    seed: int = 0,
    device: str | None = None,
    out: Path | str | None = None,
    scale: int | None = None,
    data_seed: int | None = None,
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
    from scibench_data.results import run

    chosen = _settings(settings)
    _check_whole("seed", seed, 0, MAX_SEED)
    if out == "":
        message = "out: expected a folder, got an empty text; name one, or leave it out"
        raise UsageError(message)
    options = run.Options(
        seed=seed, device=device, out=Path(out) if out else None, overrides=overrides
    )
    run.check(locking.resolve(name, chosen).package, options)
    data = get(name, scale=scale, data_seed=data_seed, settings=chosen, progress=progress)
    materialized = data.materialize(progress=progress)
    return run.train(data, materialized, options, progress)


def train_all(
    *,
    seed: int = 0,
    device: str | None = None,
    out: Path | str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> "list[Run]":
    """Train every reference model on its sample, one after the other; see `train`.

    Parameters
    ----------
    out
        Folder of the runs, one for each package in it, by default ``runs``.
    """
    runs = []
    for name in catalog.model_names():
        progress.say(f"train {name}")
        folder = Path(out) / name if out else None
        run = train(
            name, seed=seed, device=device, out=folder, settings=settings, progress=progress
        )
        runs.append(run)
    return runs


def verify(
    target: str,
    *,
    replay: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> "Report":
    """Follow the links of a dataset, a store or a result; see `scibench_data.results.verification`.

    Parameters
    ----------
    target
        ``NAME[@VERSION][:SUBSET]``, the folder of a dataset, a store or a run, or a result file.
    replay
        For a result: also train again and compare within the result's tolerance.
    """
    from scibench_data.results import verification

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
    from scibench_data.results import citation

    chosen = _settings(settings)
    result = _result_of(target)
    if result is not None:
        package = catalog.resolve(f"{result.dataset.name}@{result.dataset.version}", chosen.home)
        cited = citation.citation_of_result(result.to_json(), package.package)
        return citation.cite(cited, style)
    reference = locking.resolve(target, chosen)
    commit = reference.release.commit or dataset.find(reference, chosen).commit
    return citation.cite(citation.citation_of_package(reference.package, commit), style)


def _result_of(target: str) -> "Result | None":
    """Read the result that `target` names: a ``.json`` file, or the folder of a run.

    The name of a package stands for the package, also beside a file or folder of that name.
    """
    from scibench_data.results.result import read_result

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


def remove(name: str, *, settings: Settings | None = None) -> int:
    """Delete a version's files from the cache and return the bytes freed; stores stay.

    Raises
    ------
    NotFoundError
        The version is not in the cache.
    """
    chosen = _settings(settings)
    return dataset.remove(locking.resolve(name, chosen), chosen)


def doctor(*, settings: Settings | None = None) -> "list[Finding]":
    """Look at this machine and say what is missing and what to do about it."""
    from scibench_data.keeping import diagnosis

    return diagnosis.examine(_settings(settings))
