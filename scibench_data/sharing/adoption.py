"""Files that are on this disk already, taken in by their SHA-256, whatever they are called.

From a folder, a single file, or a bundle. Files of a size that nothing missing has are not read;
what is taken is shared with the user's file where the disk can, else copied. The user's own files
stay as they are, unless they are to be moved.
"""

import os
import secrets
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scibench_data import catalog, durable
from scibench_data.annexed import build, transfer
from scibench_data.annexed.copying import share
from scibench_data.catalog import Reference
from scibench_data.descriptor import Resource
from scibench_data.durable import Stamp
from scibench_data.errors import DescriptorError, IntegrityError, NotFoundError
from scibench_data.getting import dataset, holdings
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing import bundling
from scibench_data.sharing.adding import scratch


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What `adopt` found.

    Attributes
    ----------
    taken, bytes
        Files taken in, and their size. [B]
    known
        Files whose content was in the cache already.
    missing
        Files that are still missing, as ``NAME@VERSION: PATH``.
    unknown
        What lay there that nobody knows, or that could not be read.
    added
        The package that a bundle brought, if it was not known before.
    """

    taken: int
    bytes: int
    known: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    added: str = ""


@dataclass(frozen=True)
class _Match:
    """A file whose bytes are those of a resource."""

    reference: Reference
    resource: Resource
    file: Path
    stamp: Stamp
    ours: bool = False  # nobody else can have changed it


def adopt(
    source: str | Path,
    name: str | None = None,
    *,
    move: bool = False,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Adopted:
    """Take in files that are on this disk, by their checksum: from a folder, a file, or a bundle.

    Parameters
    ----------
    source
        Links in a folder are not followed. Files of another size than any that is missing are
        not read.
    name
        ``NAME[@VERSION][:SUBSET]``; without it, the newest version of every package.
    move
        Delete what was taken from where it lay.

    Raises
    ------
    NotFoundError
        There is nothing, or no such package.
    IntegrityError, DescriptorError
        A bundle is damaged or hostile: nothing of it was taken.
    SpaceError
        The disk refuses.
    """
    settings, source = settings or load_settings(), Path(source).absolute()
    if not source.exists():
        message = f"{source}: not there; name a bundle, or a folder with files"
        raise NotFoundError(message)
    with durable.disk_errors(settings.home):
        if source.is_file() and tarfile.is_tarfile(source):
            return _adopt_bundle(source, settings, progress)
        return _adopt_files(source, _references(name, settings), settings, progress, move=move)


def _adopt_bundle(source: Path, settings: Settings, progress: Progress) -> Adopted:
    with scratch(settings.home, "adopt") as folder:
        folder.mkdir()
        unpacked = bundling.unpack(source, folder, settings, progress)
        added = bundling.make_known(unpacked.found, settings)
        own = next(iter(unpacked.found.packages.values())).name
        text = f"{own}@{unpacked.version}:{unpacked.subset}"
        references = [catalog.resolve(text, settings.home)]
        files = [(path, durable.stamp(path, name)) for name, path in unpacked.objects.items()]
        wanted, known = _wanted(references, settings)
        matches = [
            _Match(reference, resource, path, stamp, ours=True)
            for path, stamp in files
            for reference, resource in wanted.get(stamp.sha256, ())
        ]
        _take_all(matches, settings, move=True)
        odd = [stamp.sha256 for _, stamp in files if stamp.sha256 not in {*wanted, *known}]
        held = len([stamp for _, stamp in files if stamp.sha256 in known])
    return _summary(matches, references, settings, known=held, unknown=odd, added=added)


def _references(name: str | None, settings: Settings) -> list[Reference]:
    """Return the subsets that are meant: all of a version where none is named."""
    names = [name] if name else catalog.package_names(settings.home)
    found = []
    for each in names:
        try:
            reference = catalog.resolve(each, settings.home)
        except (NotFoundError, DescriptorError):
            if name:
                raise
            continue  # it is another package that is damaged, or all of it is yanked
        subsets = [reference.subset] if ":" in each else list(reference.package.subsets)
        found += [
            Reference(release=reference.release, package=reference.package, subset=subset)
            for subset in subsets
        ]
    return found


def _wanted(
    references: Iterable[Reference], settings: Settings
) -> tuple[dict[str, list[tuple[Reference, Resource]]], set[str]]:
    """Return what is missing, by SHA-256, and the SHA-256 of what is here."""
    wanted: dict[str, list[tuple[Reference, Resource]]] = {}
    here: set[str] = set()
    for reference in references:
        missing = {resource.key for resource in holdings.plan(reference, settings).missing}
        for resource in (each for each in reference.resources if each.published):
            if resource.key in missing:
                wanted.setdefault(resource.sha256, []).append((reference, resource))
            else:
                here.add(resource.sha256)
    return wanted, here


def _walk(source: Path) -> Iterator[Path]:
    """Yield the plain files below a folder; no link is followed."""
    if not source.is_dir():
        yield source
        return
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file():
                yield path


def _adopt_files(
    source: Path,
    references: Sequence[Reference],
    settings: Settings,
    progress: Progress,
    *,
    move: bool,
) -> Adopted:
    wanted, here = _wanted(references, settings)
    sizes = {r.bytes for pairs in wanted.values() for _, r in pairs}
    sizes |= {r.bytes for each in references for r in each.resources if r.sha256 in here}
    files = list(_walk(source))
    candidates = [path for path in files if holdings.size_of(path) in sizes]
    likely = set(candidates)
    unknown = [path for path in files if path not in likely]
    matches: list[_Match] = []
    known = done = 0
    with progress.task("check", sum(path.lstat().st_size for path in candidates)) as task:
        for path in candidates:
            stamp = _stamp(path)
            if stamp is not None and stamp.sha256 in wanted:
                pairs = wanted.pop(stamp.sha256)
                here.add(stamp.sha256)
                matches += [_Match(*pair, path, stamp) for pair in pairs]
            elif stamp is not None and stamp.sha256 in here:
                known += 1
            else:
                unknown.append(path)
            done += stamp.size if stamp else 0
            task.update(done, note=path.name)
    _take_all(matches, settings, move=move)
    odd = [str(p.relative_to(source)) for p in sorted(unknown) if ".git" not in p.parts]
    return _summary(matches, references, settings, known=known, unknown=odd)


def _stamp(path: Path) -> Stamp | None:
    """Hash a file; None where it can't be read."""
    try:
        return durable.stamp(path)
    except OSError:
        return None


def _take_all(matches: Sequence[_Match], settings: Settings, *, move: bool) -> None:
    """Put all matches into their datasets, and only then delete what is to be moved."""
    by_dataset: dict[Path, list[_Match]] = {}
    for match in matches:
        folder = holdings.dataset_folder(settings.home, match.reference.package)
        by_dataset.setdefault(folder, []).append(match)
    if matches:
        holdings.refuse_full(settings.home, 0 if move else sum(m.resource.bytes for m in matches))
    for folder, group in by_dataset.items():
        reference = group[0].reference
        with dataset.locked(reference, settings):
            dataset.ensure_built(reference, folder)
            stamps = durable.read_stamps(holdings.stamps_path(folder))
            with transfer.noted(folder):
                for match in group:
                    stamps[match.resource.key] = _take(folder, match, move=move)
                transfer.register(folder, [match.resource for match in group])
            durable.write_stamps(holdings.stamps_path(folder), stamps)
    if move:
        for file in {match.file for match in matches}:
            file.unlink(missing_ok=True)


def _take(folder: Path, match: _Match, *, move: bool) -> Stamp:
    """Put a file into a dataset; a hard link only where nobody will write to it any more."""
    beside = folder / build.NOTES / "incoming" / secrets.token_hex(4)
    beside.parent.mkdir(parents=True, exist_ok=True)
    protected = match.file.lstat().st_mode & 0o222 == 0
    try:
        how = share(match.file, beside, link=move or protected)
        if how == "link":  # which changes what the stamp looks at
            same = match.ours or durable.sha256_file(beside) == match.stamp.sha256
        else:
            same = match.stamp.still(match.file)
        if not same:
            message = f"{match.file}: changed while it was read; run the same command again"
            raise IntegrityError(message)
        return transfer.put(folder, match.resource, beside, match.resource.sha256)
    finally:
        beside.unlink(missing_ok=True)


def _summary(
    matches: Sequence[_Match],
    references: Sequence[Reference],
    settings: Settings,
    *,
    known: int,
    unknown: Sequence[str],
    added: str = "",
) -> Adopted:
    """Say what came of it; what is missing only of versions that something came for or is named."""
    meant = {str(m.reference) for m in matches}
    named = len({reference.package.name for reference in references}) == 1
    missing = [
        f"{each.package.name}@{each.package.version}: {resource.path}"
        for each in references
        if named or str(each) in meant
        for resource in holdings.plan(each, settings).missing
    ]
    files = {match.file: match.resource.bytes for match in matches}
    return Adopted(
        taken=len(files),
        bytes=sum(files.values()),
        known=known,
        missing=tuple(missing),
        unknown=tuple(unknown),
        added=added,
    )
