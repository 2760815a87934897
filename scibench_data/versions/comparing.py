"""What differs between two versions: files, schema, terms, changelog and statistics.

A version is compared by its descriptor, which needs nothing on the disk; statistics are taken from
the stores where both are here. Nothing is ever fetched. `diff` of A and B mirrors that of B and A.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from scibench_data import catalog
from scibench_data.catalog import Reference, Release
from scibench_data.descriptor import DataPackage, Resource, Subset
from scibench_data.errors import NotFoundError
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings, load_settings
from scibench_data.sources import parse_source
from scibench_data.versions import locking
from scibench_data.versions.moments import Statistics, describe_values

if TYPE_CHECKING:
    from scibench_data.storing.store import Store

Kind = Literal["added", "removed", "changed", "renamed", "unknown"]
KINDS: tuple[Kind, ...] = ("added", "removed", "changed", "renamed", "unknown")
SECTIONS = (
    "package", "subsets", "arrays", "tables", "splits", "task", "recipe", "licences", "sources",
    "hosts",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two versions.

    Attributes
    ----------
    subsets
        Those that are compared.
    files, bytes
        Of these subsets; where a size is not published, an estimate counts. [1], [B]
    """

    name: str
    version: str
    subsets: tuple[str, ...]
    released: str
    commit: str
    yanked: str
    descriptor: str
    files: int
    bytes: int

    def __str__(self) -> str:
        """Write it as a user would."""
        only = f":{self.subsets[0]}" if len(self.subsets) == 1 else ""
        return f"{self.name}@{self.version}{only}"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of one side; `sha256` is empty and `bytes` None where nobody published them."""

    path: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """A file that is not the same on both sides; None where a side does not have it."""

    before: File | None
    after: File | None

    @property
    def kind(self) -> Kind:
        """What became of it; ``unknown`` where a checksum is missing to tell."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        if self.before.path != self.after.path:
            return "renamed"
        hashes = {self.before.sha256, self.after.sha256}
        sizes = {self.before.bytes, self.after.bytes}
        told = "" not in hashes or (None not in sizes and len(sizes) == 2)
        return "changed" if told else "unknown"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A fact of the descriptor that differs; None where a side does not have it.

    Attributes
    ----------
    section
        One of `SECTIONS`: ``sources`` are works, ``hosts`` are where files come from.
    item
        Which of them: the array, the table and its field, the subset ...
    field
        Which of its facts; empty for the whole.
    """

    section: str
    item: str
    field: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class ArrayChange:
    """A stored array whose values differ; None where a side does not have it.

    `subset` is empty where two of different names are compared.
    """

    subset: str
    name: str
    before: Statistics | None
    after: Statistics | None


@dataclass(frozen=True, kw_only=True)
class Diff:
    """All that differs between two versions.

    Attributes
    ----------
    changelog
        The releases after the older one, up to the newer one, oldest first.
    arrays
        Stored arrays with other values; None where they were not compared, see `notes`.
    notes
        What could not be compared, and what to run so that it can.
    """

    a: Side
    b: Side
    files: tuple[FileChange, ...]
    changes: tuple[Change, ...]
    changelog: tuple[Release, ...]
    arrays: tuple[ArrayChange, ...] | None
    notes: tuple[str, ...]

    @property
    def different(self) -> bool:
        """Files, schema, terms or values differ."""
        return bool(self.files or self.changes or self.arrays)

    def totals(self) -> dict[Kind, tuple[int, int]]:
        """Return files and bytes of each kind of change, as they are after it. [1], [B]"""
        files: Counter[Kind] = Counter()
        size: Counter[Kind] = Counter()
        for change in self.files:
            files[change.kind] += 1
            size[change.kind] += (change.after or change.before or _NONE).bytes or 0
        return {kind: (files[kind], size[kind]) for kind in KINDS if files[kind]}

    def to_json(self) -> dict[str, Any]:
        """Return all of it, as JSON has it; numbers that are not finite as text."""
        told = dataclasses.asdict(dataclasses.replace(self, changelog=()))
        told["different"] = self.different
        told["totals"] = {
            kind: {"files": files, "bytes": size} for kind, (files, size) in self.totals().items()
        }
        for row, change in zip(told["files"], self.files, strict=True):
            row["kind"] = change.kind
        told["changelog"] = [
            {key: getattr(each, key) for key in ("version", "date", "commit", "changes", "yanked")}
            for each in self.changelog
        ]
        finite: dict[str, Any] = json.loads(json.dumps(told), parse_constant=str)
        return finite


_NONE = File(path="", bytes=0, sha256="")


def diff(
    a: str,
    b: str,
    *,
    statistics: bool | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> Diff:
    """Compare two versions of a package, or of two packages.

    Parameters
    ----------
    a, b
        ``NAME[@VERSION][:SUBSET]``. Without a version the one that the lock file pins, else the
        newest that is not yanked. A subset of one side holds for both; without any, all subsets
        are compared.
    statistics
        Whether to compare stored values too: by default where the stores are on this disk.

    Raises
    ------
    NotFoundError
        No such package, version or subset; or `statistics` is true and a store is not here.
    UsageError
        A name has another form.
    IntegrityError
        A store is damaged.
    """
    chosen = settings or load_settings()
    (one, other), named = _resolve_both(a, b, chosen)
    left, right = (_Part(each, (each.subset,) if named else ()) for each in (one, other))
    arrays: tuple[ArrayChange, ...] | None = None
    notes: tuple[str, ...] = ()
    if statistics is not False:
        arrays, notes = _compare_stores(_pairs(left, right), chosen, progress)
        if statistics and notes:
            raise NotFoundError(notes[0])
    return Diff(
        a=left.side,
        b=right.side,
        files=tuple(_file_changes(left.files, right.files)),
        changes=tuple(_changes(_facts(left), _facts(right))),
        changelog=tuple(_changelog(one.release, other.release, chosen)),
        arrays=arrays,
        notes=notes,
    )


def _resolve_both(a: str, b: str, settings: Settings) -> tuple[tuple[Reference, Reference], bool]:
    """Resolve both; tell whether one subset of each is meant."""
    named = [text.partition(":")[2] for text in (a, b)]
    subset = named[0] or named[1]
    texts = [
        text if own or not subset else f"{text}:{subset}"
        for text, own in zip((a, b), named, strict=True)
    ]
    one, other = (locking.resolve(text, settings) for text in texts)
    return (one, other), bool(subset)


@dataclass(frozen=True)
class _Part:
    """What is compared of a version: the `named` subset, whose name then does not count, or all."""

    reference: Reference
    named: tuple[str, ...]

    @property
    def package(self) -> DataPackage:
        return self.reference.package

    @property
    def subsets(self) -> tuple[str, ...]:
        return self.named or tuple(self.package.subsets)

    @functools.cached_property
    def resources(self) -> dict[str, Resource]:
        """Path -> resource; the paths are those within a named subset, else within the dataset."""
        return {
            resource.path.partition("/")[2] if self.named else resource.path: resource
            for resource in self.package.resources
            if resource.subset in self.subsets
        }

    @property
    def files(self) -> dict[str, File]:
        return {
            path: File(
                path=path,
                bytes=resource.bytes if resource.exact else None,
                sha256=resource.sha256,
            )
            for path, resource in self.resources.items()
        }

    @property
    def side(self) -> Side:
        release = self.reference.release
        return Side(
            name=self.package.name,
            version=self.package.version,
            subsets=self.subsets,
            released=self.package.released,
            commit=release.commit,
            yanked=release.yanked,
            descriptor=self.package.digest,
            files=len(self.resources),
            bytes=sum(resource.bytes for resource in self.resources.values()),
        )


# --- files ----------------------------------------------------------------------------------------


def _file_changes(before: Mapping[str, File], after: Mapping[str, File]) -> list[FileChange]:
    """Compare by path; what is on one side only, by SHA-256: it may have been renamed."""
    changes = [
        FileChange(before=before[path], after=after[path])
        for path in before.keys() & after.keys()
        if before[path] != after[path]
    ]
    gone = [before[path] for path in sorted(before.keys() - after.keys())]
    new = [after[path] for path in sorted(after.keys() - before.keys())]
    moved = list(_renamed(gone, new))
    left = {old.path for old, _ in moved}
    came = {file.path for _, file in moved}
    changes += [FileChange(before=old, after=file) for old, file in moved]
    changes += [FileChange(before=old, after=None) for old in gone if old.path not in left]
    changes += [FileChange(before=None, after=file) for file in new if file.path not in came]
    return sorted(changes, key=_place)


def _place(change: FileChange) -> str:
    return min(file.path for file in (change.before, change.after) if file)


def _renamed(gone: Iterable[File], new: Iterable[File]) -> Iterator[tuple[File, File]]:
    """Pair files of the same SHA-256, in the order of their paths: the same from both sides."""
    places: dict[str, list[File]] = {}
    for file in new:
        if file.sha256:
            places.setdefault(file.sha256, []).append(file)
    for old in gone:
        if others := places.get(old.sha256):
            yield old, others.pop(0)


# --- what the descriptors say ---------------------------------------------------------------------

_Facts = dict[tuple[str, str], dict[str, Any]]


def _facts(part: _Part) -> _Facts:
    """Return what a descriptor says, as section and item -> field -> value of JSON."""
    package = part.package
    facts: _Facts = {("package", ""): _of_package(package)}
    for name in part.subsets:
        facts |= _of_subset(package.subsets[name], "" if part.named else name)
    facts |= {("arrays", array.name): _plain(array, "name") for array in package.arrays}
    facts |= {
        ("tables", path): _of_table(resource.schema)
        for path, resource in part.resources.items()
        if resource.schema is not None
    }
    if package.splits:
        facts["splits", ""] = _plain(package.splits)
    if package.task:
        facts["task", ""] = _plain(package.task)
    facts |= {("licences", terms.name or terms.path): _plain(terms) for terms in package.licenses}
    facts |= {("sources", work.path or work.title): _plain(work) for work in package.sources}
    return facts | {("hosts", host): {} for host in _hosts(part.resources.values())}


def _plain(value: Any, *without: str) -> dict[str, Any]:
    """Return the fields of a value that say something, as JSON has them."""
    fields = json.loads(json.dumps(dataclasses.asdict(value)))
    return {k: v for k, v in fields.items() if k not in without and v not in ("", [], {}, None)}


def _of_package(package: DataPackage) -> dict[str, Any]:
    people = [_plain(each) for each in package.contributors]
    texts = {"title": package.title, "description": package.description}
    more = {"homepage": package.homepage, "keywords": list(package.keywords)}
    return {"contributors": people, **texts, **{k: v for k, v in more.items() if v}}


def _of_subset(subset: Subset, item: str) -> _Facts:
    facts: _Facts = {("subsets", item): _plain(subset, "name", "recipe")}
    if subset.recipe:
        scale = {"scale": subset.recipe.scale} if subset.recipe.scale else {}
        facts["recipe", item] = {**subset.recipe.parameters, **scale}
    return facts


def _of_table(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's schema with each of its columns as a fact of its own."""
    rest = {key: value for key, value in schema.items() if key != "fields"}
    columns = schema.get("fields", [])
    named = {f"column {column.get('name')}": dict(column) for column in columns}
    return {**rest, "columns": [column.get("name") for column in columns], **named}


def _hosts(resources: Iterable[Resource]) -> set[str]:
    sources = (source for resource in resources for source in resource.sources)
    return {urlsplit(parse_source(source).url).netloc for source in sources}


def _changes(before: _Facts, after: _Facts) -> Iterator[Change]:
    """Compare facts: items that one side lacks as a whole, others field by field."""
    for section, item in sorted(before.keys() | after.keys(), key=_section_first):
        key = (section, item)
        make = functools.partial(Change, section=section, item=item)
        if key not in before or key not in after:
            yield make(field="", before=before.get(key), after=after.get(key))
            continue
        old, new = before[key], after[key]
        for field in sorted(old.keys() | new.keys()):
            if old.get(field) != new.get(field):
                yield make(field=field, before=old.get(field), after=new.get(field))


def _section_first(key: tuple[str, str]) -> tuple[int, str]:
    return SECTIONS.index(key[0]), key[1]


def _changelog(a: Release, b: Release, settings: Settings) -> list[Release]:
    """Return the releases between two of one package; of derived versions, between their bases."""
    if a.name != b.name:
        return []
    known = catalog.releases(a.name, settings.home)
    order = {release.version: place for place, release in enumerate(known)}
    first, last = sorted(order[each.version.partition("+")[0]] for each in (a, b))
    return known[first + 1 : last + 1]


# --- statistics -----------------------------------------------------------------------------------


def _pairs(a: _Part, b: _Part) -> list[tuple[Reference, Reference]]:
    """Pair the subsets whose values can be compared: the named ones, or those of one name."""
    if a.named:
        return [(a.reference, b.reference)]
    return [
        (dataclasses.replace(a.reference, subset=s), dataclasses.replace(b.reference, subset=s))
        for s in a.subsets
        if s in b.subsets
    ]


def _compare_stores(
    pairs: Sequence[tuple[Reference, Reference]], settings: Settings, progress: Progress
) -> tuple[tuple[ArrayChange, ...] | None, tuple[str, ...]]:
    """Compare the stores that are here on both sides; say what to run for the others."""
    changes: list[ArrayChange] = []
    notes: list[str] = []
    compared = False
    for one, other in pairs:
        before = locking.find_stored(one, settings, progress)
        after = locking.find_stored(other, settings, progress)
        notes += [
            f"{each}: no store of it here, so its values are not compared; run: "
            f"scibench-data materialize {each}"
            for each, found in ((one, before), (other, after))
            if found is None and locking.has_reader(each.package.name)
        ]
        if before and after:
            compared = True
            subset = one.subset if one.subset == other.subset else ""
            changes += _compare_values(subset, before, after, settings, progress)
    return (tuple(changes) if compared else None), tuple(dict.fromkeys(notes))


def _compare_values(
    subset: str, before: "Store", after: "Store", settings: Settings, progress: Progress
) -> Iterator[ArrayChange]:
    """Compare arrays whose digests differ: the others hold the same values."""
    from scibench_data.storing.manifest import read_manifest

    if before.digest == after.digest:
        return
    old, new = (read_manifest(each.folder).arrays for each in (before, after))
    same = {name for name in old.keys() & new.keys() if old[name]["digest"] == new[name]["digest"]}
    was = _described(before, old.keys() - same, settings, progress)
    now = _described(after, new.keys() - same, settings, progress)
    for name in sorted(was.keys() | now.keys()):
        yield ArrayChange(subset=subset, name=name, before=was.get(name), after=now.get(name))


def _described(
    stored: "Store", names: Collection[str], settings: Settings, progress: Progress
) -> dict[str, Statistics]:
    from scibench_data.storing.store import open_store

    arrays = open_store(stored)
    left_out = [name for name in arrays.variables if name not in names]
    return describe_values(arrays.drop_vars(left_out), settings.jobs, progress)
