"""A data package as one frozen value, read from its descriptor.

The values follow Data Package v2 (https://datapackage.org/standard/data-package/); what it lacks
lies under the key ``scibench``. Whether a descriptor is sound is for ``profile.py`` to say.
"""

import csv
import functools
import hashlib
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scibench_data.errors import DescriptorError
from scibench_data.foreign import folded, path_fault
from scibench_data.profile import MAX_BYTES, Problem, decode, problems
from scibench_data.sources import source_fault

MAX_LIST_BYTES = 256 * 2**20


_MAX_KEY = 150  # a key is also the name of a file and of a folder, with its letters escaped
_ROW = ("path", "bytes", "sha256", "url")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One file of one subset."""

    name: str
    path: str  # POSIX, relative, its first folder is the subset's name
    bytes: int  # where it is not `exact`, an estimate, or 0 where nothing is known
    sha256: str  # 64 lower-case hex digits; empty where nobody knows it yet
    subset: str
    mediatype: str = ""
    description: str = ""
    sources: tuple[str, ...] = ()  # places that have exactly these bytes, see `sources`
    schema: Mapping[str, Any] | None = None  # table schema, where the resource is a table
    exact: bool = True  # the size is the published one
    recorded: bool = False  # size and SHA-256 were taken from what came here first

    @property
    def published(self) -> bool:
        """Its publisher says what its bytes are."""
        return bool(self.sha256) and not self.recorded

    @functools.cached_property
    def key(self) -> str:
        """git-annex key (internals/key_format): SHA256E, with the last suffix only.

        Without a published checksum, VURL: git-annex takes what the first source gives.

        Examples
        --------
        >>> Resource(name="a", path="s/a.b.csv", bytes=3, sha256="0" * 64, subset="s").key[-9:]
        '00000.csv'
        """
        if not self.published:
            source = self.sources[0]
            short = source if len(source) <= _MAX_KEY else _digest(source)
            return f"VURL--{short}"
        suffix = PurePosixPath(self.path).suffix
        kept = suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix) else ""
        return f"SHA256E-s{self.bytes}--{self.sha256}{kept}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The subset is made by the package's ``simulate.py`` with these arguments."""

    parameters: Mapping[str, int | float | str]
    scale: str = ""  # the parameter that counts the samples, where their number is free


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A part of the package that is fetched and read on its own; all have the same layout."""

    name: str
    title: str
    description: str = ""
    recipe: Recipe | None = None
    listing: str = ""  # an S3 prefix: its objects are the files, and nobody listed them yet
    about: Mapping[str, int] = field(default_factory=dict)  # "files", "bytes", where not known
    terms: str = ""  # URL of what the user has to accept first
    needs: str = ""  # what it takes beyond a network: an account, a form, a transfer tool


@dataclass(frozen=True, kw_only=True)
class Array:
    """One array or coordinate of what the package's reader gives."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    units: str  # "1" where it has no dimension
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How samples are divided: whole groups go to one split, so that nothing leaks.

    Either by shares of the groups, or as the data have it: then the group's values 0, 1, ... stand
    for the splits in `given`, and a sample with another value is in none.
    """

    group: str  # the coordinate whose equal values stay together
    reason: str
    fractions: Mapping[str, float] = field(default_factory=dict)  # train, validation, test; sum 1
    seed: int = 0
    given: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A further number that is reported beside the main one."""

    name: str
    units: str = "1"
    higher_is_better: bool = True
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is asked for, and how it is scored."""

    description: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    metric: str
    higher_is_better: bool
    units: str = "1"  # of the metric
    target: float | None = None  # quality target, where there is one
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True, kw_only=True)
class License:
    """Terms of use: an identifier such as ``CC-BY-4.0``, or where the text is."""

    name: str = ""
    title: str = ""
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """A person (with a family name) or an organisation (with a title only)."""

    title: str = ""
    given_name: str = ""
    family_name: str = ""
    organization: str = ""
    roles: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A work that the data come from."""

    title: str = ""
    path: str = ""
    authors: tuple[Contributor, ...] = ()
    year: int | None = None
    journal: str = ""


@dataclass(frozen=True, kw_only=True)
class DataPackage:
    """One released version of a data package: everything its descriptor says."""

    name: str
    title: str
    description: str
    version: str  # semver.org
    released: str  # ISO date
    uuid: str
    licenses: tuple[License, ...]
    contributors: tuple[Contributor, ...]
    sources: tuple[Source, ...]
    keywords: tuple[str, ...]
    homepage: str
    resources: tuple[Resource, ...]
    subsets: Mapping[str, Subset]
    arrays: tuple[Array, ...]
    splits: SplitRule | None
    task: Task | None
    text: bytes  # the descriptor file, byte for byte
    lists: Mapping[str, bytes] = field(default_factory=dict)  # path -> the manifest's bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the descriptor file, lower-case hex."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def published_as(self) -> str:
        """The name in the descriptor; `name` is another where it was added by another one."""
        return str(decode(self.text, self.name)["name"])

    @property
    def default_subset(self) -> str:
        """``sample`` where there is one, else the first."""
        return "sample" if "sample" in self.subsets else next(iter(self.subsets))

    def resources_of(self, subset: str) -> tuple[Resource, ...]:
        """Return the files of one subset, in the descriptor's order."""
        return tuple(resource for resource in self.resources if resource.subset == subset)

    def resource(self, path: str) -> Resource:
        """Return the file of that path within the dataset."""
        return next(resource for resource in self.resources if resource.path == path)


def parse(
    text: bytes,
    subject: str,
    *,
    check: bool = True,
    allowed: Collection[str] | None = (),
    beside: Callable[[str], bytes] | None = None,
) -> DataPackage:
    """Read a descriptor from the bytes of its file; `subject` names it in errors.

    `check=False` skips `problems`, which costs more than all the rest: only for the descriptors
    that ship inside this package, which its tests check. A shape that can't be read is still
    refused, with all its problems.

    Parameters
    ----------
    allowed
        Hosts that may be private and asked by http; None allows every host.
    beside
        Returns the bytes of a list of files that lies beside the descriptor.

    Raises
    ------
    DescriptorError
        The text is not strict JSON, or the descriptor or a list of files has problems.
    """
    tree = decode(text, subject)
    found = problems(tree, allowed) if check else []
    if found:
        raise DescriptorError(subject, found)
    try:
        lists = _read_lists(tree, subject, beside)
        return _package(tree, text, lists, check=check, allowed=allowed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = problems(tree, allowed)
        if not found:
            raise
        raise DescriptorError(subject, found) from error


def read_descriptor(
    path: Path, *, check: bool = True, allowed: Collection[str] | None = ()
) -> DataPackage:
    """Read a descriptor file and the lists of files beside it; see `parse`.

    Raises
    ------
    DescriptorError
        A file can't be read, or is not a sound descriptor.
    """

    def beside(relative: str) -> bytes:
        return _read(path.parent / relative, MAX_LIST_BYTES)

    return parse(_read(path, MAX_BYTES + 1), str(path), check=check, allowed=allowed, beside=beside)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise DescriptorError(
            str(path), [Problem("", f"can't be read: {error.strerror}")]
        ) from error


# --- lists of files -------------------------------------------------------------------------------


def _read_lists(tree: Any, subject: str, beside: Callable[[str], bytes] | None) -> dict[str, bytes]:
    """Read the lists that a descriptor names, each with its published size and SHA-256."""
    lists, found = {}, []
    for index, entry in enumerate(tree["resources"]):
        if "lists" not in entry["scibench"]:
            continue
        place, path = f"resources[{index}]", entry["path"]
        if fault := path_fault(path):
            found.append(Problem(f"{place}.path", fault))
            continue
        content = b"" if beside is None else beside(path)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != entry["hash"]:
            found.append(Problem(f"{place}.hash", f"{path}: its bytes have another SHA-256"))
        lists[path] = content
    if found:
        raise DescriptorError(subject, found)
    return lists


def list_problems(content: bytes, allowed: Collection[str] | None = ()) -> list[Problem]:
    """List what is wrong with a list of files: CSV with the columns path, bytes, sha256, url."""
    try:
        rows = list(csv.reader(io.StringIO(content.decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        return [Problem("", f"not CSV in UTF-8: {error}")]
    if not rows or tuple(rows[0]) != _ROW:
        return [Problem("line 1", f"expected the columns {','.join(_ROW)}")]
    seen: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows[1:], 2):
        fault = _row_fault(row, allowed)
        if not fault and seen.setdefault(folded(row[0]), number) != number:
            fault = f"the same path as in line {seen[folded(row[0])]}"
        if fault:
            found.append(Problem(f"line {number}", fault))
    return found[:1000]


def _row_fault(row: Sequence[str], allowed: Collection[str] | None) -> str | None:
    if len(row) != len(_ROW):
        return f"expected {len(_ROW)} columns, got {len(row)}"
    path, size, sha256, urls = row
    if fault := path_fault(path):
        return fault
    if size and not re.fullmatch("0|[1-9][0-9]{0,15}", size):
        return "bytes: expected a whole number"
    if sha256 and not (size and re.fullmatch("[0-9a-f]{64}", sha256)):
        return "sha256: expected 64 lower-case hex digits, and the bytes with them"
    if not sha256 and not urls:
        return "expected a sha256 or a url"
    faults = (source_fault(url, allowed) for url in urls.split())
    return next((f"url: {fault}" for fault in faults if fault), None)


@functools.lru_cache(maxsize=4)
def _read_list(
    content: bytes, path: str, subset: str, *, check: bool, allowed: Collection[str] | None
) -> tuple[Resource, ...]:
    """Read the files of a subset from their list; one verb reads the same list several times."""
    if check and (found := list_problems(content, allowed)):
        raise DescriptorError(path, found)
    rows = csv.reader(io.StringIO(content.decode()))
    next(rows)
    return tuple(
        Resource(
            name=re.sub(r"[^a-z0-9._-]+", "-", f"{subset}-{inner}".lower())[:128],
            path=f"{subset}/{inner}",
            bytes=int(size or 0),
            sha256=sha256,
            subset=subset,
            sources=tuple(urls.split()),
            exact=bool(size),
        )
        for inner, size, sha256, urls in rows
    )


def write_list(resources: Iterable[Resource]) -> bytes:
    """Write the list of the files of one subset, as CSV: the other side of `parse`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_ROW)
    for resource in resources:
        inner = resource.path.removeprefix(f"{resource.subset}/")
        size = resource.bytes if resource.exact else ""
        rows.writerow([inner, size, resource.sha256, " ".join(resource.sources)])
    return text.getvalue().encode()


def list_entry(subset: str, content: bytes) -> dict[str, Any]:
    """Return the resource that stands in a descriptor for a subset's list of files."""
    return {
        "name": f"{subset}-manifest",
        "path": f"{subset}/manifest.csv",
        "bytes": len(content),
        "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "mediatype": "text/csv",
        "description": "Every file of the subset: path within it, size, SHA-256, where it lies",
        "type": "table",
        "schema": {
            "fields": [
                {"name": "path", "type": "string"},
                {"name": "bytes", "type": "integer"},
                {"name": "sha256", "type": "string"},
                {"name": "url", "type": "string"},
            ],
            "primaryKey": ["path"],
        },
        "scibench": {"subset": subset, "lists": "files"},
    }


# --- from JSON to values --------------------------------------------------------------------------


def _resources(
    tree: Any, lists: Mapping[str, bytes], *, check: bool, allowed: Collection[str] | None
) -> Iterator[Resource]:
    hosts = None if allowed is None else frozenset(allowed)
    for entry in tree["resources"]:
        path, subset = entry["path"], entry["scibench"]["subset"]
        if path in lists:
            yield from _read_list(lists[path], path, subset, check=check, allowed=hosts)
        else:
            yield _resource(entry)


def _package(
    tree: Any,
    text: bytes,
    lists: Mapping[str, bytes],
    *,
    check: bool,
    allowed: Collection[str] | None,
) -> DataPackage:
    ours = tree["scibench"]
    splits, task = ours.get("splits"), ours.get("task")
    return DataPackage(
        name=tree["name"],
        title=tree["title"],
        description=tree["description"],
        version=tree["version"],
        released=ours["released"],
        uuid=ours["uuid"],
        licenses=tuple(
            License(**{key: entry.get(key, "") for key in ("name", "title", "path")})
            for entry in tree["licenses"]
        ),
        contributors=tuple(map(_contributor, tree["contributors"])),
        sources=tuple(map(_source, tree.get("sources", ()))),
        keywords=tuple(tree.get("keywords", ())),
        homepage=tree.get("homepage", ""),
        resources=tuple(_resources(tree, lists, check=check, allowed=allowed)),
        subsets={name: _subset(name, entry) for name, entry in ours["subsets"].items()},
        arrays=tuple(
            Array(**{**entry, "dims": tuple(entry["dims"])}) for entry in ours.get("arrays", ())
        ),
        splits=_split_rule(splits) if splits is not None else None,
        task=_task(task) if task is not None else None,
        text=text,
        lists=lists,
    )


def _resource(entry: Mapping[str, Any]) -> Resource:
    ours = entry["scibench"]
    return Resource(
        name=entry["name"],
        path=entry["path"],
        bytes=entry.get("bytes", ours.get("about_bytes", 0)),
        sha256=entry.get("hash", "").removeprefix("sha256:"),
        subset=ours["subset"],
        mediatype=entry.get("mediatype", ""),
        description=entry.get("description", ""),
        sources=tuple(ours.get("sources", ())),
        schema=entry.get("schema"),
        exact="bytes" in entry,
    )


def _subset(name: str, entry: Mapping[str, Any]) -> Subset:
    recipe = entry.get("recipe")
    return Subset(
        name=name,
        title=entry["title"],
        description=entry.get("description", ""),
        recipe=Recipe(**recipe) if recipe is not None else None,
        listing=entry.get("listing", ""),
        about=entry.get("about", {}),
        terms=entry.get("terms", ""),
        needs=entry.get("needs", ""),
    )


def _split_rule(entry: Mapping[str, Any]) -> SplitRule:
    return SplitRule(**{**entry, "given": tuple(entry.get("given", ()))})


def _task(entry: Mapping[str, Any]) -> Task:
    lists = {key: tuple(entry[key]) for key in ("inputs", "targets")}
    metrics = tuple(Metric(**metric) for metric in entry.get("metrics", ()))
    return Task(**{**entry, **lists, "metrics": metrics})


def _contributor(entry: Mapping[str, Any]) -> Contributor:
    return Contributor(
        title=entry.get("title", ""),
        given_name=entry.get("givenName", ""),
        family_name=entry.get("familyName", ""),
        organization=entry.get("organization", ""),
        roles=tuple(entry.get("roles", ())),
        path=entry.get("path", ""),
    )


def _source(entry: Mapping[str, Any]) -> Source:
    ours = entry.get("scibench", {})
    return Source(
        title=entry.get("title", ""),
        path=entry.get("path", ""),
        authors=tuple(map(_contributor, ours.get("authors", ()))),
        year=ours.get("year"),
        journal=ours.get("journal", ""),
    )
