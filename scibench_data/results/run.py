"""The chain from a reference to an attested result: get, materialize, load, train, record."""

import contextlib
import dataclasses
import datetime as dt
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from scibench_data import catalog, durable, provenance, usage
from scibench_data.annexed import annex
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Task
from scibench_data.errors import IntegrityError, RequirementError, UsageError
from scibench_data.getting import dataset
from scibench_data.getting.dataset import Dataset
from scibench_data.loader import Source, make_source
from scibench_data.progress import SILENT, Progress
from scibench_data.results.result import (
    Checkpoint,
    CodeLink,
    DatasetLink,
    Environment,
    ModelLink,
    Result,
    RunLink,
    Scores,
    SplitLink,
    StoreLink,
    read_result,
    write_result,
)
from scibench_data.sampling import split_digest
from scibench_data.settings import Settings
from scibench_data.storing import store
from scibench_data.storing.store import Layout, Store

CHECKPOINT = "checkpoint.safetensors"
RESULT = "result.json"


def store_identity(data: Dataset, layout: Layout) -> dict[str, Any]:
    """Return what determines a store: its name in the cache follows from this."""
    return {
        "dataset": data.package.name,
        "version": data.package.version,
        "subset": data.subset,
        "commit": data.commit,
        "reader": catalog.reader_digest(data.package.name),
        "layout": layout.to_json(),
    }


def read_raw(data: Dataset) -> xr.Dataset:
    """Read a dataset's files with its package's reader, lazily."""
    read: Callable[[Path], xr.Dataset] = catalog.load_reader(data.package.name).read
    return read(data.path)


def materialize(
    data: Dataset,
    settings: Settings,
    *,
    layout: Layout | None = None,
    scheduler: str = "",
    progress: Progress = SILENT,
) -> Store:
    """Write a dataset as a Zarr store, or find the one written before, here or at the site.

    Raises
    ------
    UsageError
        Only some of the subset's files were asked for.
    IntegrityError
        The subset has files without a published checksum: nothing can be traced to them.
    """
    layout = layout or Layout()
    _refuse_untraceable(data)
    name = f"{data.package.name}-{data.package.version}-{data.subset}"
    identity = store_identity(data, layout)
    if settings.site:
        with contextlib.suppress(IntegrityError):  # then it is written here
            if found := store.find_store(settings.site, name, identity, progress=progress):
                return found
    with usage.using(settings.home, data.folder):
        return store.materialize(
            lambda: read_raw(data),
            settings.home,
            name,
            identity,
            layout=layout,
            progress=progress,
            jobs=settings.jobs,
            lock_timeout=settings.lock_timeout,
            scheduler=scheduler,
        )


def _refuse_untraceable(data: Dataset) -> None:
    reference = data.reference
    if reference.include:
        message = f"{reference}: only some of its files were asked for; get it without --include"
        raise UsageError(message)
    if data.unverified:
        message = (
            f"{reference}: {len(data.unverified)} files have no published checksum, so nothing can "
            f"be traced to them; run scibench-data lock {reference} and use the version it writes"
        )
        raise IntegrityError(message)


def task_of(package: DataPackage) -> Task:
    """Return the package's task.

    Raises
    ------
    UsageError
        It has none, or no rule for splits.
    """
    if package.task is None or package.splits is None:
        message = f"{package.name}@{package.version}: has no task to train on; choose another"
        raise UsageError(message)
    return package.task


def open_source(package: DataPackage, arrays: xr.Dataset) -> Source:
    """Split an opened store by its package's rule; batches hold the task's inputs and targets."""
    task = task_of(package)
    assert package.splits is not None  # noqa: S101  (task_of has seen to it)
    names = (*task.inputs, *task.targets)
    absent = [name for name in task.targets if name not in arrays.variables]
    if absent:
        message = (
            f"{package.name}@{package.version}: this subset has no {', '.join(absent)}, which the "
            "task needs; train on a subset with ground truth, such as sample"
        )
        raise UsageError(message)
    return make_source(arrays, package.splits, names)


def import_training() -> ModuleType:
    """Import what needs torch, or say which extra to install."""
    try:
        from scibench_data.results import training
    except ImportError as error:
        message = f"training: {error.name} is not installed; run pip install 'scibench-data[train]'"
        raise RequirementError(message) from error
    training.settle_threads()
    return training


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


@contextlib.contextmanager
def _run_folder(folder: Path) -> Iterator[Path]:
    """Reserve `folder` and give one beside it to write in, which takes its place with its result.

    A run that has its result is kept, whatever fails after that; one without is removed.

    Raises
    ------
    UsageError
        `folder` exists or can't be made.
    """
    beside = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    with durable.disk_errors(folder):
        try:
            folder.mkdir(parents=True)
        except (FileExistsError, NotADirectoryError) as error:
            message = f"{folder}: exists, and a run is never overwritten; choose another --out"
            raise UsageError(message) from error
        beside.mkdir()
        try:
            yield beside
        finally:
            if (beside / RESULT).exists():
                durable.flush_filesystem(beside)
                beside.rename(folder)  # onto the empty folder that holds its place
            else:
                durable.remove_tree(beside)
                folder.rmdir()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder and its record."""

    folder: Path
    result: Result

    @property
    def path(self) -> Path:
        """The result file."""
        return self.folder / RESULT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to train.

    Attributes
    ----------
    seed
        Of the initial weights and of the order of samples.
    device
        ``cpu``, ``cuda``, ``cuda:1`` ...; by default the accelerator where there is one.
    out
        Folder of the run; by default ``runs/<id>``. It must not exist.
    overrides
        Fields of the model's ``Config`` to replace.
    """

    seed: int = 0
    device: str | None = None
    out: Path | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check(package: DataPackage, options: Options) -> None:
    """Refuse what can't be trained before anything is fetched.

    Raises
    ------
    RequirementError
        torch or another part of ``scibench-data[train]`` is not installed.
    NotFoundError
        The package has no reference model.
    UsageError
        No task, a setting the model does not have, an unknown device, or an `out` that exists.
    """
    task_of(package)
    training = import_training()
    training.make_config(catalog.load_model(package.name), options.overrides)
    training.choose_device(options.device)
    if options.out is not None and options.out.exists():
        message = f"{options.out}: exists, and a run is never overwritten; choose another --out"
        raise UsageError(message)


def train(data: Dataset, materialized: Store, options: Options, progress: Progress = SILENT) -> Run:
    """Train the reference model of a package on its store and record the result.

    Parameters
    ----------
    data, materialized
        A complete dataset and its store.

    Raises
    ------
    RequirementError
        torch or another part of ``scibench-data[train]`` is not installed.
    UsageError
        A setting the model does not have, an unknown device, or an `out` that exists.
    """
    training = import_training()
    module = catalog.load_model(data.package.name)
    config = training.make_config(module, options.overrides)
    where = training.choose_device(options.device)
    started = _now()
    number = (
        f"{data.package.name}-{started:%Y%m%dT%H%M%S}-seed{options.seed}-{secrets.token_hex(2)}"
    )
    source = open_source(data.package, store.open_store(materialized))
    source = dataclasses.replace(source, pinned=where.type == "cuda")
    links = _links(data, materialized, source)  # before training: of the code that is running
    model_source = catalog.model_digest(data.package.name)
    final = options.out or Path("runs") / number
    with _run_folder(final) as folder:
        fitted = training.fit(
            module, config, source, seed=options.seed, device=where, progress=progress
        )
        result = Result(
            **links,
            run=RunLink(
                id=number,
                started=started.isoformat(),
                finished=_now().isoformat(),
                seconds=fitted.seconds,
            ),
            model=ModelLink(
                name=data.package.name,
                source_sha256=model_source,
                config=dataclasses.asdict(config),
                seed=options.seed,
                device=str(where),
                parameters=count_parameters(fitted.model),
            ),
            metrics=Scores(
                headline=task_of(data.package).metric,
                split="test",
                values=fitted.metrics,
                comparisons=fitted.comparisons,
                tolerance=module.TOLERANCE,
            ),
            history=fitted.history,
            checkpoint=_save(fitted.model, folder / CHECKPOINT),
        )
        write_result(folder / RESULT, result)
        _draw(module, fitted, source, result, folder)
    return Run(folder=final, result=result)


def _links(data: Dataset, materialized: Store, source: Source) -> dict[str, Any]:
    """Return the sections of a result that stand before the training."""
    return {
        "dataset": dataset_link(data),
        "store": store_link(materialized),
        "split": split_link(data.package, source),
        "code": code_link(data.package.name),
        "environment": environment(),
    }


def count_parameters(model: Any) -> int:
    """Count a model's trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def _save(model: Any, path: Path) -> Checkpoint:
    content = import_training().pack_weights(model)
    durable.write_whole(path, content)
    return Checkpoint(file=path.name, bytes=len(content), sha256=durable.sha256_file(path))


def _draw(module: ModuleType, fitted: Any, source: Source, result: Result, folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from scibench_data.results.pictures import learning_curve

    learning_curve(result, folder / "learning-curve.png")
    module.figures(fitted.model, source, folder)


def dataset_link(data: Dataset) -> DatasetLink:
    """Return a dataset as a result names it."""
    return DatasetLink(
        name=data.package.name,
        version=data.package.version,
        subset=data.subset,
        commit=data.commit,
        swhid=data.swhid,
        descriptor_sha256=data.package.digest,
        keys={resource.path: resource.key for resource in data.resources},
    )


def store_link(materialized: Store) -> StoreLink:
    """Return a store as a result names it."""
    return StoreLink(
        id=store.store_id(materialized.identity),
        sha256=materialized.digest,
        manifest_sha256=materialized.manifest_digest,
        layout=materialized.identity["layout"],
        verified=materialized.verified,
    )


def split_link(package: DataPackage, source: Source) -> SplitLink:
    """Return a split as a result names it."""
    assert package.splits is not None  # noqa: S101  (there is a source)
    return SplitLink(
        group=package.splits.group,
        sha256=split_digest(source.splits),
        sizes={name: len(part) for name, part in source.splits.items()},
    )


def code_link(name: str) -> CodeLink:
    """Return the running code as a result names it."""
    state = annex.code_state(Path(provenance.__file__).parent.parent)
    return CodeLink(
        version=provenance.package_version(),
        commit=state["commit"],
        dirty=state["dirty"],
        core_sha256=provenance.core_digest(),
        reader_sha256=catalog.reader_digest(name),
    )


def environment() -> Environment:
    """Return libraries, programs and hardware as a result names them."""
    return Environment(
        libraries=provenance.library_versions(),
        programs=annex.program_versions(),
        hardware=provenance.hardware(),
        torch=provenance.torch_state(),
        arrays=provenance.array_configuration(),
    )


def reference_of(result: Result, settings: Settings) -> Reference:
    """Return the package version and subset that a result names."""
    link = result.dataset
    return catalog.resolve(f"{link.name}@{link.version}:{link.subset}", settings.home)


def replay(path: Path, settings: Settings, progress: Progress = SILENT) -> tuple[Result, Run]:
    """Train again as a result says it was trained; the new run lies beside the old one."""
    path = path.resolve()
    old = read_result(path).result
    data = dataset.get(reference_of(old, settings), settings, progress=progress)
    layout = Layout(**old.store.layout)
    materialized = materialize(data, settings, layout=layout, progress=progress)
    out = path.parent.with_name(f"{path.parent.name}-replay-{secrets.token_hex(2)}")
    options = Options(
        seed=old.model.seed, device=old.model.device, out=out, overrides=old.model.config
    )
    return old, train(data, materialized, options, progress)
