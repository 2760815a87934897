"""What there is: folders become names, ``NAME[@VERSION][:SUBSET]`` becomes a descriptor.

Packages and models that ship with scibench-data are found by listing their folders; bigger
simulations derived on this machine lie in the cache. Code is loaded from the installed package
only.
"""

import functools
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from scibench_data.descriptor import DataPackage, read_descriptor
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
_SCALED = re.compile(r"(?P<base>[^+]+)\+scale\.(?P<samples>[1-9][0-9]{0,17})")
_ENTRY = {"version", "date", "commit", "changes", "yanked"}


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
    """

    name: str
    version: str
    folder: Path
    date: str = ""
    commit: str = ""
    changes: str = ""
    yanked: str = ""
    derived: bool = False

    def read(self, *, check: bool = False) -> DataPackage:
        """Read the descriptor; `check` runs both JSON Schema profiles over it.

        One that was derived is always checked: its name and paths say where things are written
        and deleted.

        Raises
        ------
        DescriptorError
            It can't be read, has problems, or is that of another name or version.
        """
        path = self.folder / "datapackage.json"
        package = read_descriptor(path, check=check or self.derived)
        if (package.name, package.version) != (self.name, self.version):
            here = f"{package.name!r} {package.version!r}"
            raise DescriptorError(str(path), [f"expected {self.name} {self.version}, got {here}"])
        return package


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


def _order(version: str) -> tuple[list[int], bool, list[tuple[bool, int, str]]]:
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


def releases(name: str) -> list[Release]:
    """List the released versions of a package, oldest first; there is at least one.

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
        text = path.read_bytes()
    except OSError as error:
        raise DescriptorError(str(path), [f"can't be read: {error.strerror}"]) from error
    entries = _entries(decode(text, str(path)), str(path))
    found = [Release(name=name, folder=folder / entry["version"], **entry) for entry in entries]
    return sorted(found, key=lambda release: _order(release.version))


def _entries(tree: Any, subject: str) -> list[dict[str, Any]]:
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
    match = _SCALED.fullmatch(version)
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
    known = releases(name)
    if version is None:
        usable = [release for release in known if not release.yanked]
        if not usable:
            message = f"{name}: every version is yanked; name one: {name}@{known[-1].version}"
            raise NotFoundError(message)
        return max(usable, key=lambda release: (not _is_preview(release), _order(release.version)))
    for release in known:
        found = release if release.version == version else _derived(home, release, version)
        if found:
            return found
    near = did_you_mean(version, [release.version for release in known])
    scaled = _SCALED.fullmatch(version)
    if scaled and scaled["base"] in [release.version for release in known]:
        near = f"make it: scibench-data get {name}@{scaled['base']} --scale {scaled['samples']}"
    message = f"{name}: no version {version!r}; {near}"
    raise NotFoundError(message)


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
    if release.derived:
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
