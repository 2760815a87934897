"""A data package as one frozen value, read from its descriptor.

The values follow Data Package v2 (https://datapackage.org/standard/data-package/); what it lacks
lies under the key ``scibench``. Whether a descriptor is sound is for ``profile.py`` to say.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scibench_data.errors import DescriptorError
from scibench_data.profile import MAX_BYTES, Problem, decode, problems


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One file of one subset."""

    name: str
    path: str  # POSIX, relative, its first folder is the subset's name
    bytes: int
    sha256: str  # 64 lower-case hex digits
    subset: str
    mediatype: str = ""
    description: str = ""
    urls: tuple[str, ...] = ()  # mirrors of exactly these bytes
    schema: Mapping[str, Any] | None = None  # table schema, where the resource is a table

    @property
    def key(self) -> str:
        """git-annex key: backend SHA256E, with the last suffix only (internals/key_format).

        Examples
        --------
        >>> Resource(name="a", path="s/a.b.csv", bytes=3, sha256="0" * 64, subset="s").key[-9:]
        '00000.csv'
        """
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
    """How samples are divided: whole groups go to one split, so that nothing leaks."""

    group: str  # the coordinate whose equal values stay together
    fractions: Mapping[str, float]  # train, validation, test; sum 1
    seed: int
    reason: str


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

    @property
    def digest(self) -> str:
        """SHA-256 of the descriptor file, lower-case hex."""
        return hashlib.sha256(self.text).hexdigest()

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


def parse(text: bytes, subject: str, *, check: bool = True) -> DataPackage:
    """Read a descriptor from the bytes of its file; `subject` names it in errors.

    `check=False` skips `problems`, which costs more than all the rest: only for the descriptors
    that ship inside this package, which its tests check. A shape that can't be read is still
    refused, with all its problems.

    Raises
    ------
    DescriptorError
        The text is not strict JSON, or the descriptor has problems.
    """
    tree = decode(text, subject)
    found = problems(tree) if check else []
    if found:
        raise DescriptorError(subject, found)
    try:
        return _package(tree, text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = problems(tree)
        if not found:
            raise
        raise DescriptorError(subject, found) from error


def read_descriptor(path: Path, *, check: bool = True) -> DataPackage:
    """Read a descriptor file; see `parse`.

    Raises
    ------
    DescriptorError
        The file can't be read, or is not a sound descriptor.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DescriptorError(
            str(path), [Problem("", f"can't be read: {error.strerror}")]
        ) from error
    return parse(text, str(path), check=check)


def _package(tree: Any, text: bytes) -> DataPackage:
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
        resources=tuple(map(_resource, tree["resources"])),
        subsets={name: _subset(name, entry) for name, entry in ours["subsets"].items()},
        arrays=tuple(
            Array(**{**entry, "dims": tuple(entry["dims"])}) for entry in ours.get("arrays", ())
        ),
        splits=SplitRule(**splits) if splits is not None else None,
        task=_task(task) if task is not None else None,
        text=text,
    )


def _resource(entry: Mapping[str, Any]) -> Resource:
    ours = entry["scibench"]
    return Resource(
        name=entry["name"],
        path=entry["path"],
        bytes=entry["bytes"],
        sha256=entry["hash"].removeprefix("sha256:"),
        subset=ours["subset"],
        mediatype=entry.get("mediatype", ""),
        description=entry.get("description", ""),
        urls=tuple(ours.get("sources", ())),
        schema=entry.get("schema"),
    )


def _subset(name: str, entry: Mapping[str, Any]) -> Subset:
    recipe = entry.get("recipe")
    return Subset(
        name=name,
        title=entry["title"],
        description=entry.get("description", ""),
        recipe=Recipe(**recipe) if recipe is not None else None,
    )


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
