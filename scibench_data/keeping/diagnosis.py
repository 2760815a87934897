"""Look at this machine: is everything there that the chain needs, and in a version that is safe."""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from packaging.version import Version

from scibench_data import catalog, provenance
from scibench_data.annexed import annex
from scibench_data.annexed.compute import PROGRAM
from scibench_data.errors import RequirementError, ScibenchError
from scibench_data.settings import Settings

_SAFE = {"numcodecs": "0.16.5", "filelock": "4.2", "zarr": "3.1"}
_ROOM = 2**30  # less free space than this is worth a warning [B]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at; `cure` says what to do where it is not well."""

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    cure: str = ""


def _program(name: str, version: Callable[[], str]) -> Finding:
    try:
        path = annex.find_program(name)
        return Finding(name, "ok", f"{version()} ({path})")
    except RequirementError as error:
        detail, _, cure = str(error).partition("; ")
        return Finding(name, "problem", detail, cure)
    except (ScibenchError, OSError) as error:
        return Finding(name, "problem", str(error), "install it again")


def _programs() -> list[Finding]:
    return [
        _program("git", lambda: annex.program_versions()["git"]),
        _program("git-annex", lambda: annex.program_versions()["git-annex"]),
        _program(PROGRAM, provenance.package_version),
    ]


def _on_path() -> Finding:
    if shutil.which(PROGRAM):
        return Finding("PATH", "ok", "plain datalad get can regenerate samples")
    return Finding(
        "PATH",
        "warning",
        f"{PROGRAM} is not on PATH: scibench-data works, plain datalad get can't make samples",
        f"activate the environment, or add {Path(sys.executable).parent} to PATH",
    )


def _libraries() -> list[Finding]:
    findings = []
    for name, oldest in _SAFE.items():
        found = importlib.metadata.version(name)
        well = Version(found) >= Version(oldest)
        cure = "" if well else f"run pip install '{name}>={oldest}'"
        findings.append(Finding(name, "ok" if well else "problem", found, cure))
    return findings


def _training() -> Finding:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        cure = "run pip install 'scibench-data[train]'"
        return Finding("torch", "warning", "not installed: train and torch() can't run", cure)
    return Finding("torch", "ok", version)


def _cache(settings: Settings) -> list[Finding]:
    home = settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            missing = _missing_abilities(Path(scratch))
    except OSError as error:
        cure = "choose another place with SCIBENCH_DATA_HOME"
        return [Finding("cache", "problem", f"{home}: {error.strerror}", cure)]
    disk = os.statvfs(home)
    free = disk.f_bavail * disk.f_frsize
    room = Finding(
        "space",
        "ok" if free > _ROOM else "warning",
        f"{free / 2**30:.1f} GiB and {disk.f_favail:,} inodes free",
        "" if free > _ROOM else "free some space, or set SCIBENCH_DATA_HOME",
    )
    if missing:
        cure = "choose a local file system with SCIBENCH_DATA_HOME"
        return [Finding("cache", "problem", f"{home}: no {', no '.join(missing)}", cure), room]
    return [Finding("cache", "ok", str(home)), room]


def _missing_abilities(folder: Path) -> list[str]:
    target = folder / "file"
    target.write_bytes(b"x")
    tries: dict[str, Callable[[], object]] = {
        "symbolic links": lambda: (folder / "link").symlink_to("file"),
        "hard links": lambda: os.link(target, folder / "hard"),
    }
    missing = []
    for name, attempt in tries.items():
        try:
            attempt()
        except OSError:
            missing.append(name)
    return missing


def _packages() -> Finding:
    broken = []
    for name in catalog.package_names():
        try:
            for release in catalog.releases(name):
                release.read(check=True)
        except (ScibenchError, OSError) as error:
            broken.append(str(error))
    if broken:
        return Finding("packages", "problem", "; ".join(broken), "install scibench-data again")
    return Finding("packages", "ok", ", ".join(catalog.package_names()))


def examine(settings: Settings) -> list[Finding]:
    """Look at everything and report it, well or not; nothing is changed."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        Finding("scibench-data", "ok", provenance.package_version()),
        Finding("python", "ok", system),
        *_programs(),
        _on_path(),
        *_libraries(),
        _training(),
        *_cache(settings),
        _packages(),
    ]
