"""Follow the links of a result back to the bytes, and say of each whether it still holds.

Every link is reported: it holds, it fails, it can't be checked here and why, or it is only stated
by whoever made the result. Nothing that was not looked at is called verified.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scibench_data import catalog, durable, provenance
from scibench_data.annexed import build
from scibench_data.catalog import Reference
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NotFoundError,
    ScibenchError,
    UsageError,
)
from scibench_data.getting import dataset, derive, holdings
from scibench_data.getting.dataset import Dataset
from scibench_data.loader import Source
from scibench_data.progress import SILENT, Progress
from scibench_data.results import run
from scibench_data.results.links import (
    Link,
    Report,
    absent,
    check_commit,
    check_files,
    judge,
    verify_dataset,
    verify_store,
)
from scibench_data.results.result import Reading, Result, read_result
from scibench_data.settings import Settings
from scibench_data.storing import digest, store
from scibench_data.storing.store import Store

__all__ = [
    "Link",
    "Report",
    "replay",
    "verify",
    "verify_dataset",
    "verify_result",
    "verify_store",
]

_ROOM_SAME = 1e-5
_ROOM_OTHER = 1e-3
"""Relative room for a score recomputed from the same weights, by the same or other libraries."""


@dataclasses.dataclass
class _Chain:
    """What was found on this machine of the things that a result names.

    Attributes
    ----------
    data, store, source, model
        Set by the step that found it sound; None before, and where it is not.
    """

    path: Path
    reading: Reading
    settings: Settings
    progress: Progress
    reference: Reference | None = None
    data: Dataset | None = None
    store: Store | None = None
    source: Source | None = None
    packed: bytes | None = None

    @property
    def result(self) -> Result:
        return self.reading.result

    @property
    def same_libraries(self) -> bool:
        return dict(self.result.environment.libraries) == provenance.library_versions()


def _check_descriptor(chain: _Chain) -> Link:
    stated = chain.result.dataset.descriptor_sha256
    chain.reference = run.reference_of(chain.result, chain.settings)
    found = chain.reference.package.digest
    if not _follows_from_release(chain.reference, chain.settings):
        bad = "differs from the released version in more than its samples"
        return Link("descriptor", "fails", bad)
    where = "made here" if "+" in chain.reference.package.version else "released"
    good = f"sha256 {found}, {where}"
    return judge("descriptor", found == stated, good, f"stated {stated}, {where} {found}")


def _follows_from_release(reference: Reference, settings: Settings) -> bool:
    """Hold a version that was derived here against the released one it says it comes from."""
    package = reference.package
    base, variant = catalog.variant_of(package.version)
    if base == package.version:
        return True
    released = catalog.resolve(f"{package.name}@{base}:{reference.subset}", settings.home)
    recipe = released.package.subsets[reference.subset].recipe
    folder = holdings.dataset_folder(settings.home, package)
    files = {
        resource.path.removeprefix(f"{reference.subset}/"): build.object_path(folder, resource)
        for resource in package.resources_of(reference.subset)
    }
    if recipe is None or not all(path.is_file() for path in files.values()):
        return recipe is not None
    parameters = variant.parameters(recipe)
    expected = derive.describe_version(released, package.version, parameters, files)
    return _without_sums(expected) == _without_sums(json.loads(package.text))


def _without_sums(tree: dict[str, Any]) -> dict[str, Any]:
    """Leave out what `files` is checked against, and nobody published, of a derived version."""
    kept = [
        {key: value for key, value in entry.items() if key not in {"bytes", "hash"}}
        for entry in tree["resources"]
    ]
    return {**tree, "resources": kept}


def _check_commit(chain: _Chain) -> Link:
    if chain.reference is None:
        return absent("commit", "the descriptor is not here")
    link = chain.result.dataset
    if link.swhid != dataset.swhid(link.commit):
        return Link("commit", "fails", f"{link.swhid} does not stand for commit {link.commit}")
    folder = holdings.dataset_folder(chain.settings.home, chain.reference.package)
    return check_commit(chain.reference, folder, link.commit)


def _check_files(chain: _Chain) -> Link:
    reference = chain.reference
    if reference is None:
        return absent("files", "the descriptor is not here")
    keys = {r.path: r.key for r in reference.package.resources_of(reference.subset)}
    if keys != dict(chain.result.dataset.keys):
        return Link("files", "fails", "the result names other keys than the descriptor")
    folder = holdings.dataset_folder(chain.settings.home, reference.package)
    if not holdings.is_built(folder):
        return absent("files", f"not on this machine; run: scibench-data get {reference}")
    link = check_files(reference, folder, chain.progress)
    if link.status == "holds":
        chain.data = Dataset(reference=reference, folder=folder, commit=chain.result.dataset.commit)
    return link


def _check_store(chain: _Chain) -> Iterator[Link]:
    """Check the store itself, and that it is the one which the result names."""
    link, stated = chain.result.dataset, chain.result.store
    name = f"{link.name}-{link.version}-{link.subset}"
    folder = chain.settings.home / "stores" / f"{name}-{stated.id[:12]}"
    if not folder.exists():
        command = f"scibench-data materialize {link.name}@{link.version}:{link.subset}"
        yield absent("store files", f"not on this machine; run: {command}")
        return
    found = [Link(*each) for each in store.check(folder, progress=chain.progress)]
    yield from found
    if any(each.status == "fails" for each in found):
        return
    here = store.read_store(folder)
    wrong = _identity_faults(chain, here)
    if here.digest != stated.sha256:
        wrong.append(f"stated {stated.sha256}, the store has {here.digest}")
    if not wrong:
        chain.store = here
    yield judge(
        "store digest", not wrong, f"sha256 {here.digest} over the values", "; ".join(wrong)
    )


def _identity_faults(chain: _Chain, here: Store) -> list[str]:
    """Compare what determines the store with what the result says of the dataset."""
    link, stated = chain.result.dataset, chain.result.store
    expected = {
        "dataset": link.name,
        "version": link.version,
        "subset": link.subset,
        "commit": link.commit,
        "reader": chain.result.code.reader_sha256,
        "layout": dict(stated.layout),
    }
    wrong = []
    if dict(here.identity) != expected:
        wrong.append("the store was made from something else than the result says")
    if stated.id != store.store_id(expected):
        wrong.append(f"stated id {stated.id}, computed {store.store_id(expected)}")
    return wrong


def _check_origin(chain: _Chain) -> Link:
    """Read the files again and compare their values with the store's."""
    name = "store from files"
    if chain.data is None or chain.store is None:
        return absent(name, "needs sound files and a sound store here")
    if catalog.reader_digest(chain.result.dataset.name) != chain.result.code.reader_sha256:
        return absent(name, "this installation has another reader.py")
    found = digest.logical_digest(run.read_raw(chain.data), chain.settings.jobs)
    holds = found == chain.store.digest
    return judge(name, holds, "the files hold the same values", f"the files give {found}")


def _check_split(chain: _Chain) -> Link:
    if chain.store is None or chain.reference is None:
        return absent("split", "no sound store here")
    source = run.open_source(chain.reference.package, store.open_store(chain.store))
    found, stated = run.split_link(chain.reference.package, source), chain.result.split
    if found == stated:
        chain.source = source
    sizes = ", ".join(f"{name} {size}" for name, size in found.sizes.items())
    return judge(
        "split",
        found == stated,
        f"by {found.group}: {sizes}",
        f"stated {stated.sha256} {dict(stated.sizes)}, computed {found.sha256} {dict(found.sizes)}",
    )


def _check_code(chain: _Chain) -> Link:
    stated, model = chain.result.code, chain.result.model
    if model.name != chain.result.dataset.name or model.name not in catalog.model_names():
        return Link("code", "fails", f"no reference model named {model.name!r} for this package")
    here = {
        "the core": (provenance.core_digest(), stated.core_sha256),
        "reader.py": (catalog.reader_digest(model.name), stated.reader_sha256),
        "model.py": (catalog.model_digest(model.name), model.source_sha256),
    }
    other = [part for part, (found, told) in here.items() if found != told]
    made = f"version {stated.version}" + (f", commit {stated.commit}" if stated.commit else "")
    if other:
        why = f"made by {made}; here {', '.join(other)} differs: install that version"
        return absent("code", why)
    return Link("code", "holds", f"the same sources as here (stated: {made})")


def _check_checkpoint(chain: _Chain) -> Link:
    stated = chain.result.checkpoint
    path = chain.path.parent / Path(stated.file).name
    try:
        with durable.open_regular(path) as file:
            content = file.read()
    except OSError as error:
        return absent("checkpoint", f"{path.name}: {error.strerror}")
    found = hashlib.sha256(content).hexdigest()
    if found == stated.sha256 and len(content) == stated.bytes:
        chain.packed = content
        return Link("checkpoint", "holds", f"sha256 {found}")
    return Link("checkpoint", "fails", f"stated {stated.sha256}, found {found}")


def _check_metrics(chain: _Chain) -> Iterator[Link]:
    """Score the checkpoint and what it is compared with again, on the task's split and metric."""
    scores, comparisons = "metrics", "comparisons"
    why = ""
    if chain.source is None or chain.packed is None or chain.reference is None:
        why = "needs a sound store and checkpoint here"
    elif catalog.model_digest(chain.result.dataset.name) != chain.result.model.source_sha256:
        why = "this installation has another model.py"
    if why or chain.source is None or chain.packed is None or chain.reference is None:
        yield from (absent(scores, why), absent(comparisons, why))
        return
    stated = chain.result.metrics
    training = run.import_training()
    module = catalog.load_model(chain.result.model.name)
    config = training.make_config(module, chain.result.model.config)
    try:
        model = training.restore(module, config, chain.source, chain.packed)
    except IntegrityError as error:
        yield from (Link(scores, "fails", str(error)), absent(comparisons, "the model failed"))
        return
    wrong = _claims(chain, model, module.TOLERANCE)
    found = training.score(module, model, chain.source, "test")
    wrong += _differences(stated.values, found, chain)
    headline = run.task_of(chain.reference.package).metric
    good = f"{headline} {found[headline]:.6g} recomputed from the checkpoint"
    yield judge(scores, not wrong, good, "; ".join(wrong))
    again = training.compare(module, config, chain.source)
    wrong = [
        f"{name}: {difference}"
        for name in sorted(again.keys() | stated.comparisons.keys())
        for difference in _differences(stated.comparisons.get(name, {}), again.get(name, {}), chain)
    ]
    yield judge(comparisons, not wrong, f"{', '.join(again)}: the same again", "; ".join(wrong))


def _claims(chain: _Chain, model: Any, tolerance: Mapping[str, float]) -> list[str]:
    """Hold what the result says about its scores against the task and the model."""
    assert chain.reference is not None  # noqa: S101  (the caller has seen to it)
    stated, task = chain.result.metrics, run.task_of(chain.reference.package)
    pairs = {
        "split": (stated.split, "test"),
        "headline": (stated.headline, task.metric),
        "tolerance": (dict(stated.tolerance), dict(tolerance)),
        "parameters": (chain.result.model.parameters, run.count_parameters(model)),
    }
    return [
        f"{name}: stated {told}, expected {due}"
        for name, (told, due) in pairs.items()
        if told != due
    ]


def _differences(
    stated: Mapping[str, float], found: Mapping[str, float], chain: _Chain
) -> list[str]:
    room = _ROOM_SAME if chain.same_libraries else _ROOM_OTHER
    return [
        f"{name}: stated {stated.get(name)}, recomputed {found.get(name)}"
        for name in sorted(found.keys() | stated.keys())
        if name not in stated
        or name not in found
        or not abs(stated[name] - found[name]) <= room * max(1.0, abs(stated[name]))
    ]


def _check_training(chain: _Chain) -> Link:
    """Say what only a replay can check; fail where it can't be true."""
    result, here = chain.result, provenance.library_versions()
    libraries = result.environment.libraries
    if len(result.history) != result.model.config.get("epochs"):
        told = result.model.config.get("epochs")
        return Link("training", "fails", f"{told} epochs, and {len(result.history)} in the history")
    other = [
        f"{name} {libraries.get(name)} (here {here.get(name)})"
        for name in sorted(libraries.keys() | here.keys())
        if libraries.get(name) != here.get(name)
    ]
    made = f"with {', '.join(other)}" if other else "with the library versions of this machine"
    how = f"seed {result.model.seed} on {result.model.device}, {made}"
    why = "history, hardware and times are stated by whoever ran it: --replay trains again"
    return Link("training", "stated", f"{how}; {why}")


_SECTIONS: dict[str, tuple[str, ...]] = {
    "descriptor": ("dataset",),
    "store digest": ("store",),
    "split": ("split",),
    "code": ("code", "model"),
    "checkpoint": ("checkpoint",),
    "metrics": ("metrics",),
    "training": ("run", "history", "environment"),
}
"""Which sections of the file stand behind a link: one that was edited makes its link fail."""

_Step = Callable[[_Chain], Link | Iterator[Link]]
_STEPS: dict[str, _Step] = {
    "descriptor": _check_descriptor,
    "commit": _check_commit,
    "files": _check_files,
    "store digest": _check_store,
    "store from files": _check_origin,
    "split": _check_split,
    "code": _check_code,
    "checkpoint": _check_checkpoint,
    "metrics": _check_metrics,
    "training": _check_training,
}


def _take(name: str, step: _Step, chain: _Chain) -> list[Link]:
    """Run one step; what it can't do here is a link that was not checked, not the end of it all."""
    try:
        found = step(chain)
        return [found] if isinstance(found, Link) else list(found)
    except (IntegrityError, DescriptorError) as error:
        return [Link(name, "fails", str(error))]
    except (ScibenchError, OSError) as error:
        return [absent(name, str(error))]


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
    links = [link for name, step in _STEPS.items() for link in _take(name, step, chain)]
    names = {link.name for link in links}
    links += [absent(name, "not reached") for name in _SECTIONS if name not in names]
    return Report(
        "result", str(path), tuple(_with_edits(link, chain.reading.touched) for link in links)
    )


def replay(report: Report, settings: Settings, progress: Progress = SILENT) -> Report:
    """Train again and compare every score within the tolerance that the model states.

    A result of which a link fails is not trained again.

    Raises
    ------
    UsageError
        The report is not of a result.
    """
    if report.kind != "result":
        message = f"{report.subject}: a {report.kind} can't be replayed; name a result.json"
        raise UsageError(message)
    if report.count("fails"):
        again = absent("training", "not trained again, for a link fails")
    else:
        again = _replayed(Path(report.subject), settings, progress)
    kept = [link for link in report.links if link.name != "training"]
    return dataclasses.replace(report, links=(*kept, again))


def _replayed(path: Path, settings: Settings, progress: Progress) -> Link:
    old, new = run.replay(path, settings, progress)
    stated, found = old.metrics.values, new.result.metrics.values
    room = catalog.load_model(old.model.name).TOLERANCE
    differing = [
        f"{name}: stated {value:.4f} ± {room.get(name, 0.0):g}, again {found.get(name)}"
        for name, value in stated.items()
        if name not in found or not abs(found[name] - value) <= room.get(name, 0.0)
    ]
    headline = old.metrics.headline
    good = f"trained again: {headline} {found[headline]:.4f}, stated {stated[headline]:.4f}"
    return judge("training", not differing, f"{good}, in {new.folder}", "; ".join(differing))


# --- anything -------------------------------------------------------------------------------------


def verify(target: str, settings: Settings, progress: Progress = SILENT) -> Report:
    """Verify whatever `target` names: a package, a dataset folder, a store, a run or its result.

    Raises
    ------
    UsageError
        It is none of these.
    """
    path = Path(target)
    if (path / run.RESULT).is_file():
        return verify_result(path / run.RESULT, settings, progress)
    if path.suffix == ".json":
        return verify_result(path, settings, progress)
    folder = path.parent if path.name == "data.zarr" else path
    if (folder / "manifest.json").is_file() or (folder / "data.zarr").is_dir():
        return verify_store(folder, progress)
    if (path / "datapackage.json").is_file():
        return verify_dataset(_reference_of_folder(path, settings), settings, progress)
    try:
        reference = catalog.resolve(target, settings.home)
    except (UsageError, NotFoundError) as error:
        if not path.exists():
            raise
        message = f"{target}: neither a dataset, a store nor a result; name one of these"
        raise UsageError(message) from error
    return verify_dataset(reference, settings, progress)


def _reference_of_folder(path: Path, settings: Settings) -> Reference:
    try:
        tree: Any = json.loads((path / "datapackage.json").read_bytes())
        name = f"{tree['name']}@{tree['version']}"
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}/datapackage.json: not readable ({error}); verify it by its name instead"
        raise UsageError(message) from error
    reference = catalog.resolve(name, settings.home)
    home = holdings.dataset_folder(settings.home, reference.package)
    if path.resolve() != home.resolve():
        message = f"{path}: not in this cache, where {name} lies in {home}; set SCIBENCH_DATA_HOME"
        raise UsageError(message)
    return reference
