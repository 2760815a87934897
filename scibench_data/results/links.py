"""What a link is, what a report is, and the links of a dataset and of a store.

Nothing is fetched or repaired; a file found wrong is only marked, so that the next `get` looks at
it again.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.errors import NotFoundError, ScibenchError, SpaceError
from scibench_data.getting import dataset, holdings
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings
from scibench_data.storing import store

Status = Literal["holds", "fails", "not checked", "stated"]


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


def judge(name: str, holds: bool, good: str, bad: str) -> Link:
    """Return a link that holds, with `good` said of it, or fails, with `bad`."""
    return Link(name, "holds", good) if holds else Link(name, "fails", bad)


def absent(name: str, why: str) -> Link:
    """Return a link that could not be checked here, and why."""
    return Link(name, "not checked", why)


# --- a dataset ------------------------------------------------------------------------------------


def _descriptor(reference: Reference, folder: Path) -> Link:
    try:
        found = (folder / "datapackage.json").read_bytes()
    except OSError as error:
        return Link("descriptor", "fails", f"datapackage.json: {error.strerror}")
    return judge(
        "descriptor",
        found == reference.package.text,
        f"sha256 {reference.package.digest}",
        "datapackage.json in the dataset is not the released one",
    )


def check_commit(reference: Reference, folder: Path, stated: str) -> Link:
    """Build the history again from the released descriptors and compare the commits."""
    with tempfile.TemporaryDirectory() as scratch:
        again = build.import_history(Path(scratch) / "again", catalog.history(reference.release))
    try:
        here = annex.git("rev-parse", "refs/heads/main", cwd=folder) if folder.exists() else again
    except ScibenchError:
        here = "nothing that git can read"
    released = reference.release.commit or again
    same = again == here == released == stated
    return judge(
        "commit",
        same,
        f"{stated}, built again from the descriptor",
        f"stated {stated}, released {released}, built again {again}, in the dataset {here}",
    )


def check_files(reference: Reference, folder: Path, progress: Progress) -> Link:
    """Hash the content of every file, and look for files that are not part of the subset."""
    resources = reference.package.resources_of(reference.subset)
    wrong, done = [], 0
    unlinked = build.unlinked(folder, resources)
    with progress.task("verify files", sum(resource.bytes for resource in resources)) as task:
        for resource in resources:
            if fault := _fault(folder, resource, resource in unlinked):
                wrong.append(f"{resource.path} {fault}")
                with contextlib.suppress(
                    SpaceError
                ):  # a cache that can't be written stays as it is
                    dataset.forget_stamp(folder, resource)
            done += resource.bytes
            task.update(done, note=resource.path)
    foreign = holdings.foreign_files(folder, reference.package, reference.subset)
    wrong += [f"{path} is not part of it" for path in foreign]
    by_whom = "recorded when it was made here" if "+" in reference.package.version else "published"
    good = f"{len(resources)} files, {done:,} bytes, every SHA-256 as {by_whom}"
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    bad = f"{', '.join(wrong[:5])}{more}; run: scibench-data get {reference}"
    return judge("files", not wrong, good, bad)


def _fault(folder: Path, resource: Resource, unlinked: bool) -> str:
    """Say what is wrong with a file of a dataset; empty where it is the published one."""
    if unlinked:
        return "is not the dataset's link to its content"
    try:
        found = durable.sha256_file(build.object_path(folder, resource))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return "" if found == resource.sha256 else "has other content"


def verify_dataset(reference: Reference, settings: Settings, progress: Progress = SILENT) -> Report:
    """Check descriptor, commit and every file of a subset.

    Raises
    ------
    NotFoundError
        The dataset is not on this machine.
    """
    folder = holdings.dataset_folder(settings.home, reference.package)
    if not holdings.is_built(folder):
        message = f"{reference}: not in {folder}; run: scibench-data get {reference}"
        raise NotFoundError(message)
    links = (
        _descriptor(reference, folder),
        check_commit(reference, folder, build.read_commit(folder)),
        check_files(reference, folder, progress),
    )
    return Report("dataset", str(reference), links)


# --- a store --------------------------------------------------------------------------------------


def verify_store(folder: Path, progress: Progress = SILENT) -> Report:
    """Check the manifest, every shard, and the digest over the decoded values."""
    links = tuple(Link(*found) for found in store.check(folder, progress=progress))
    return Report("store", str(folder), links)
