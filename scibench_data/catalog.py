"""What there is: folders become names, ``NAME[@VERSION][:SUBSET]`` becomes a descriptor.

Packages and models that ship with scibench-data are found by listing their folders; bigger
simulations derived on this machine lie in the cache. Code is loaded from the installed package
only.
"""

import functools
import importlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.version import InvalidVersion, Version

from scibench_data.descriptor import DataPackage, read_descriptor
from scibench_data.errors import DescriptorError, NotFoundError, UsageError, did_you_mean
from scibench_data.provenance import digest_sources

_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9_-]{0,63})(@(?P<version>[0-9A-Za-z.+-]{1,64}))?"
    r"(:(?P<subset>[a-z0-9][a-z0-9_-]{0,63}))?"
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
    """

    name: str
    version: str
    folder: Path
    date: str = ""
    commit: str = ""
    changes: str = ""
    yanked: str = ""

    def read(self, *, check: bool = False) -> DataPackage:
        """Read the descriptor; `check` runs both JSON Schema profiles over it."""
        return read_descriptor(self.folder / "datapackage.json", check=check)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A package version and one of its subsets."""

    release: Release
    package: DataPackage
    subset: str

    def __str__(self) -> str:
        """Write it as a user would."""
        return f"{self.package.name}@{self.package.version}:{self.subset}"


def _shipped(kind: str) -> Path:
    spec = importlib.util.find_spec(f"scibench_data.{kind}")
    if spec is None or not spec.submodule_search_locations:
        message = f"scibench_data.{kind}: not installed; run pip install -e . in the checkout"
        raise NotFoundError(message)
    return Path(next(iter(spec.submodule_search_locations)))


def package_folder(name: str) -> Path:
    """Return the folder of a shipped package, there or not."""
    return _shipped("datapackages") / name


def _having(kind: str, part: str) -> list[str]:
    return sorted(path.parent.name for path in _shipped(kind).glob(f"*/{part}"))


def package_names() -> list[str]:
    """List the data packages, sorted."""
    return _having("datapackages", "releases.json")


def model_names() -> list[str]:
    """List the reference models, sorted; a model has the name of the package it learns from."""
    return _having("models", "model.py")


def _order(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion as error:
        message = f"version: expected something like 1.0.0, got {version!r}; correct it"
        raise UsageError(message) from error


def releases(name: str) -> list[Release]:
    """List the released versions of a package, oldest first.

    Raises
    ------
    NotFoundError
        No package has that name; the nearest spellings are offered.
    DescriptorError
        ``releases.json`` is damaged.
    """
    folder = package_folder(name)
    path = folder / "releases.json"
    if not path.is_file():
        message = f"no data package named {name!r}; {did_you_mean(name, package_names())}"
        raise NotFoundError(message)
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_bytes())["releases"]
        found = [Release(name=name, folder=folder / entry["version"], **entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise DescriptorError(str(path), [error]) from error
    return sorted(found, key=lambda release: _order(release.version))


def derived_folder(home: Path, name: str, version: str) -> Path:
    """Return where the descriptor of a version derived on this machine lies."""
    return home / "packages" / name / version


def _derived(home: Path | None, name: str, version: str) -> Release | None:
    if home is None or "+" not in version:
        return None
    folder = derived_folder(home, name, version)
    return Release(name=name, version=version, folder=folder) if folder.is_dir() else None


def find_release(name: str, version: str | None = None, home: Path | None = None) -> Release:
    """Find a version: the one named, or the newest that is not yanked.

    Raises
    ------
    NotFoundError
        No such package or version.
    """
    known = releases(name)
    if version is None:
        usable = [release for release in known if not release.yanked]
        if not usable:
            message = f"{name}: every version is yanked; name one: {name}@{known[-1].version}"
            raise NotFoundError(message)
        return usable[-1]
    found = _derived(home, name, version)
    for release in known:
        if release.version == version:
            found = release
    if found is None:
        near = did_you_mean(version, [release.version for release in known])
        message = f"{name}: no version {version!r}; {near}"
        raise NotFoundError(message)
    return found


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


def history(release: Release) -> list[DataPackage]:
    """Read the descriptors of a version and all before it, oldest first.

    A derived version stands alone.
    """
    if "+" in release.version:
        return [release.read()]
    earlier = [
        other
        for other in releases(release.name)
        if _order(other.version) <= _order(release.version)
    ]
    return [other.read() for other in earlier]


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


def model_digest(name: str) -> str:
    """Return the digest of a model's ``model.py``."""
    return digest_sources([_shipped("models") / name / "model.py"])
