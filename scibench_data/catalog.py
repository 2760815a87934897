"""What there is: folders become names, ``NAME[@VERSION][:SUBSET]`` becomes a descriptor.

Packages and models that ship with scibench-data are found by listing their folders; packages that
the user added and versions derived on this machine lie in the cache. Code is loaded from the
installed package only: what was added is data.
"""

import dataclasses
import fnmatch
import functools
import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from scibench_data.descriptor import DataPackage, Recipe, Resource, read_descriptor
from scibench_data.errors import DescriptorError, NotFoundError, UsageError, did_you_mean
from scibench_data.profile import decode
from scibench_data.provenance import digest_sources

_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9_-]{0,63})(@(?P<version>[0-9A-Za-z.+-]{1,64}))?"
    r"(:(?P<subset>[a-z0-9][a-z0-9_-]{0,63}))?"
)
_NUMBER = "(0|[1-9][0-9]{0,17})"
_WORD = "(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_WORD}(\.{_WORD})*)?")
"""semver.org, section 2 and 9, without build metadata: ``+`` marks what was derived here."""
_COUNT = "[1-9][0-9]{0,17}"
_VARIANT = re.compile(
    rf"(?P<base>[^+]+)\+(?:scale\.(?P<scale>{_COUNT})(?:\.seed\.(?P<more>{_COUNT}))?"
    rf"|seed\.(?P<seed>{_COUNT}))"
)
_NOTED = re.compile(r"(?P<base>[^+]+)\+(?:listed|locked)\.[0-9a-f]{12}")
_ENTRY = {"version", "date", "commit", "changes", "yanked"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a simulation made here has instead of the released one.

    Attributes
    ----------
    scale
        Its number of samples. [1]
    seed
        Its ``seed`` parameter: other random numbers of the same physics.
    """

    scale: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        """Write it as it stands behind the ``+`` of a version."""
        words = [f"scale.{self.scale}"] if self.scale is not None else []
        return ".".join(words + ([f"seed.{self.seed}"] if self.seed is not None else []))

    @property
    def options(self) -> str:
        """The options that ask for it."""
        words = [f"--scale {self.scale}"] if self.scale is not None else []
        return " ".join(words + ([f"--data-seed {self.seed}"] if self.seed is not None else []))

    def parameters(self, recipe: Recipe) -> dict[str, int | float | str]:
        """Return the parameters of a recipe with these in them."""
        changed = {recipe.scale: self.scale, "seed": self.seed}
        return {**recipe.parameters, **{k: v for k, v in changed.items() if v is not None}}


def variant_of(version: str) -> tuple[str, Variant]:
    """Return the released version that a version was simulated after, and what it has instead.

    Examples
    --------
    >>> variant_of("1.0.0+scale.640.seed.2")
    ('1.0.0', Variant(scale=640, seed=2))
    >>> variant_of("1.0.0")
    ('1.0.0', Variant(scale=None, seed=None))
    """
    match = _VARIANT.fullmatch(version)
    if match is None:
        return version, Variant()
    scale, seed = match["scale"], match["more"] or match["seed"]
    return match["base"], Variant(
        scale=int(scale) if scale else None, seed=int(seed) if seed else None
    )


@dataclass(frozen=True, kw_only=True)
class Release:
    """One version of a package, as ``releases.json`` tells of it.

    Attributes
    ----------
    commit
        The dataset's commit, the same on every machine; empty for a version derived here.
    yanked
        Why the version should not be used any more; empty when it may.
    derived
        Made on this machine, so that its descriptor is no more to be trusted than any file.
    added
        Of a package that the user added: the same holds.
    published_as
        The name in its descriptor, where it was added by another one; else empty.
    """

    name: str
    version: str
    folder: Path
    date: str = ""
    commit: str = ""
    changes: str = ""
    yanked: str = ""
    derived: bool = False
    added: bool = False
    published_as: str = ""

    def read(self, *, check: bool = False) -> DataPackage:
        """Read the descriptor; `check` runs both JSON Schema profiles over it.

        One that was derived or added is always checked: its name and paths say where things are
        written and deleted. Its hosts were judged when it was added, and are when they are asked.

        Raises
        ------
        DescriptorError
            It can't be read, has problems, or is that of another name or version.
        """
        path = self.folder / "datapackage.json"
        ours = not (self.derived or self.added)
        package = read_descriptor(path, check=check or not ours, allowed=() if ours else None)
        name = self.published_as or self.name
        if (package.name, package.version) != (name, self.version):
            here = f"{package.name!r} {package.version!r}"
            raise DescriptorError(str(path), [f"expected {name} {self.version}, got {here}"])
        return package if name == self.name else dataclasses.replace(package, name=self.name)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A package version, one of its subsets, and which of its files.

    Attributes
    ----------
    include
        Patterns of paths, within the subset or with its name before them, as the shell has them;
        empty for all files.
    """

    release: Release
    package: DataPackage
    subset: str
    include: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it as a user would."""
        return f"{self.package.name}@{self.package.version}:{self.subset}"

    @functools.cached_property
    def resources(self) -> tuple[Resource, ...]:
        """The files that are meant, in the descriptor's order."""
        whole = self.package.resources_of(self.subset)
        if not self.include:
            return whole
        start = len(self.subset) + 1
        return tuple(
            resource
            for resource in whole
            if any(
                fnmatch.fnmatchcase(path, each)
                for path in (resource.path[start:], resource.path)
                for each in self.include
            )
        )

    def only(self, include: Sequence[str]) -> "Reference":
        """Return the same with the files that match one of the patterns.

        Raises
        ------
        NotFoundError
            No file matches.
        """
        chosen = dataclasses.replace(self, include=tuple(include))
        if include and not chosen.resources:
            files = ", ".join(r.path for r in self.resources[:3]) or "none listed"
            message = f"{self}: no file matches {' or '.join(include)}; there are {files} ..."
            raise NotFoundError(message)
        return chosen


def _shipped(kind: str) -> Path:
    spec = importlib.util.find_spec(f"scibench_data.{kind}")
    if spec is None or not spec.submodule_search_locations:
        message = f"scibench_data.{kind}: not installed; run pip install -e . in the checkout"
        raise NotFoundError(message)
    return Path(next(iter(spec.submodule_search_locations)))


def package_folder(name: str) -> Path:
    """Return the folder of a shipped package, there or not."""
    return _shipped("datapackages") / name


def added_folder(home: Path, name: str) -> Path:
    """Return where an added package is registered, there or not."""
    return home / "added" / name


def _having(kind: str, part: str) -> list[str]:
    return sorted(path.parent.name for path in _shipped(kind).glob(f"*/{part}"))


def shipped_names() -> list[str]:
    """List the data packages that ship with scibench-data, sorted."""
    return _having("datapackages", "releases.json")


def added_names(home: Path | None) -> list[str]:
    """List the data packages that the user added, sorted."""
    found = home.glob("added/*/releases.json") if home else ()
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))


def package_names(home: Path | None = None) -> list[str]:
    """List the data packages, sorted; with a `home`, those that were added too."""
    return sorted({*shipped_names(), *added_names(home)})


def model_names() -> list[str]:
    """List the reference models, sorted; a model has the name of the package it learns from."""
    return _having("models", "model.py")


def order(version: str) -> tuple[list[int], bool, list[tuple[bool, int, str]]]:
    """Return what sorts versions as semver.org, section 11, has it."""
    numbers, _, before = version.partition("-")
    parts = before.split(".") if before else []
    return (
        [int(number) for number in numbers.split(".")],
        not before,
        [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts],
    )


def _is_preview(release: Release) -> bool:
    return "-" in release.version


def releases(name: str, home: Path | None = None) -> list[Release]:
    """List the released versions of a package, oldest first; there is at least one.

    A shipped package goes before an added one of the same name.

    Raises
    ------
    NotFoundError
        No package has that name; the nearest spellings are offered.
    DescriptorError
        ``releases.json`` is damaged.
    """
    folder, added = package_folder(name), False
    if home and not (folder / "releases.json").is_file():
        folder, added = added_folder(home, name), True
    path = folder / "releases.json"
    if not path.is_file():
        message = f"no data package named {name!r}; {did_you_mean(name, package_names(home))}"
        raise NotFoundError(message)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DescriptorError(str(path), [f"can't be read: {error.strerror}"]) from error
    entries = read_releases(text, str(path))
    called = decode(text, str(path)).get("package", "")
    found = [
        Release(
            name=name, folder=folder / entry["version"], added=added, published_as=called, **entry
        )
        for entry in entries
    ]
    return sorted(found, key=lambda release: order(release.version))


def read_releases(text: bytes, subject: str) -> list[dict[str, Any]]:
    """Read the entries of a ``releases.json``; `subject` names it in errors.

    Raises
    ------
    DescriptorError
        It is damaged.
    """
    tree = decode(text, subject)
    entries = tree.get("releases") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DescriptorError(subject, ["releases: expected a list with at least one version"])
    faults = [(i, _entry_fault(entry)) for i, entry in enumerate(entries)]
    problems = [f"releases[{i}]: {fault}" for i, fault in faults if fault]
    if not problems and len({entry["version"] for entry in entries}) < len(entries):
        problems = ["releases: a version is listed twice; keep one"]
    if problems:
        raise DescriptorError(subject, problems)
    return entries


def _entry_fault(entry: Any) -> str:
    """Say what is wrong with an entry of ``releases.json``; empty where it is sound."""
    if not isinstance(entry, dict):
        return "expected an object"
    if unknown := sorted(entry.keys() - _ENTRY):
        return f"unknown key {unknown[0]!r}"
    if wrong := [key for key, value in entry.items() if not isinstance(value, str)]:
        return f"{wrong[0]}: expected text, got {entry[wrong[0]]!r:.80}"
    version, commit = entry.get("version", ""), entry.get("commit", "")
    if len(version) > 64 or not _VERSION.fullmatch(version):
        return f"version: expected one as semver.org has it, such as 1.0.0, got {version!r:.80}"
    if commit and not re.fullmatch("[0-9a-f]{40}", commit):
        return f"commit: expected 40 hexadecimal digits, got {commit!r:.80}"
    return ""


def derived_folder(home: Path, name: str, version: str) -> Path:
    """Return where the descriptor of a version derived on this machine lies."""
    return home / "packages" / name / version


def _derived(home: Path | None, release: Release, version: str) -> Release | None:
    match = _VARIANT.fullmatch(version) or _NOTED.fullmatch(version)
    if home is None or match is None or match["base"] != release.version:
        return None
    folder = derived_folder(home, release.name, version)
    if not (folder / "datapackage.json").is_file():
        return None  # a folder without it is what a kill left
    return Release(name=release.name, version=version, folder=folder, derived=True)


def find_release(name: str, version: str | None = None, home: Path | None = None) -> Release:
    """Find a version: the one named, or the newest that is not yanked.

    A pre-release such as ``2.0.0-rc.1`` is taken only if it is named, or there is nothing else.

    Raises
    ------
    NotFoundError
        No such package or version.
    """
    known = releases(name, home)
    if version is None:
        usable = [release for release in known if not release.yanked]
        if not usable:
            message = f"{name}: every version is yanked; name one: {name}@{known[-1].version}"
            raise NotFoundError(message)
        return max(usable, key=lambda release: (not _is_preview(release), order(release.version)))
    for release in known:
        found = release if release.version == version else _derived(home, release, version)
        if found:
            return found
    near = _how_to_derive(name, version, [release.version for release in known])
    message = f"{name}: no version {version!r}; {near}"
    raise NotFoundError(message)


def _how_to_derive(name: str, version: str, known: Sequence[str]) -> str:
    base, variant = variant_of(version)
    if base != version and base in known:
        return f"make it: scibench-data get {name}@{base} {variant.options}"
    noted = _NOTED.fullmatch(version)
    if noted is None or noted["base"] not in known:
        return did_you_mean(version, known)
    verb = "lock" if "+locked." in version else "get"
    return f"it was derived on another machine; run: scibench-data {verb} {name}@{noted['base']}"


def resolve(text: str, home: Path | None = None) -> Reference:
    """Turn ``NAME[@VERSION][:SUBSET]`` into a descriptor and a subset.

    Parameters
    ----------
    text
        Without a version: the newest that is not yanked. Without a subset: ``sample``.
    home
        The cache, for versions that were derived on this machine.

    Raises
    ------
    UsageError
        The text has another form.
    NotFoundError
        No such package, version or subset; the nearest spellings are offered.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        message = f"{text!r}: expected NAME[@VERSION][:SUBSET]; try for example cryoem@1.0.0:sample"
        raise UsageError(message)
    release = find_release(match["name"], match["version"], home)
    package = release.read()
    subset = match["subset"] or package.default_subset
    if subset not in package.subsets:
        near = did_you_mean(subset, package.subsets)
        message = f"{package.name}@{package.version}: no subset {subset!r}; {near}"
        raise NotFoundError(message)
    return Reference(release=release, package=package, subset=subset)


def history(release: Release, package: DataPackage | None = None) -> list[DataPackage]:
    """Return the descriptors of a version and of all before it, oldest first.

    A derived version stands alone.

    Parameters
    ----------
    package
        The version's own descriptor, where it was read already.
    """
    package = package or release.read()
    if release.derived:
        return [package]
    home = release.folder.parents[2] if release.added else None
    earlier = [
        other
        for other in releases(release.name, home)
        if order(other.version) < order(release.version)
    ]
    return [*(other.read() for other in earlier), package]


def _load(kind: str, name: str, part: str) -> ModuleType:
    known = _having(kind, f"{part}.py")
    if name not in known:
        message = f"no {part} for {name!r}; {did_you_mean(name, known)}"
        raise NotFoundError(message)
    return importlib.import_module(f"scibench_data.{kind}.{name}.{part}")


@functools.cache
def load_reader(name: str) -> ModuleType:
    """Import a package's ``reader.py``."""
    return _load("datapackages", name, "reader")


@functools.cache
def load_recipe(name: str) -> ModuleType:
    """Import a package's ``simulate.py``."""
    return _load("datapackages", name, "simulate")


@functools.cache
def load_model(name: str) -> ModuleType:
    """Import a model's ``model.py``."""
    return _load("models", name, "model")


def reader_digest(name: str) -> str:
    """Return the digest of a package's ``reader.py``: part of a store's identity."""
    return digest_sources([package_folder(name) / "reader.py"])


def model_folder(name: str) -> Path:
    """Return the folder of a reference model, there or not."""
    return _shipped("models") / name


def model_digest(name: str) -> str:
    """Return the digest of a model's ``model.py``."""
    return digest_sources([model_folder(name) / "model.py"])
