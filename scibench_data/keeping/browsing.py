"""Looking around: which packages there are, what a version holds, which versions are to be avoided.

Nothing here opens a connection or imports what is slow.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from scibench_data import catalog
from scibench_data.annexed.build import read_commit
from scibench_data.catalog import Release
from scibench_data.descriptor import DataPackage
from scibench_data.errors import NotFoundError, ScibenchError
from scibench_data.getting import holdings, terms
from scibench_data.getting.dataset import swhid
from scibench_data.settings import Settings, load_settings
from scibench_data.versions import locking


def _settings(settings: Settings | None) -> Settings:
    return settings or load_settings()


def yanked(name: str, *, settings: Settings | None = None) -> tuple[str, str]:
    """Return why a version should not be used any more, and that with what to use instead.

    Both are empty when it may be used. A derived version shares the fate of the released one.

    Raises
    ------
    NotFoundError
        No such package, version or subset.
    """
    package = locking.resolve(name, _settings(settings)).package
    released = package.version.partition("+")[0]
    home = _settings(settings).home
    known = catalog.releases(package.name, home)
    reason = next((each.yanked for each in known if each.version == released), "")
    if not reason:
        return "", ""
    try:
        cure = f"use {package.name}@{catalog.find_release(package.name, None, home).version}"
    except NotFoundError:
        cure = "no version of it is left to use"
    return reason, f"{package.name}@{package.version}: yanked ({reason}); {cure}"


def list_packages(*, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Return one entry for each data package: its newest version, title, subsets and sizes.

    ``note`` says what is the matter with a package that is damaged or wholly yanked, else nothing.
    """
    home = _settings(settings).home
    return [_listed(name, home) for name in catalog.package_names(home)]


def search(words: str, *, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Return the entries of the packages that speak of all `words`, as `list_packages` has them.

    Looked at are name, title, description, keywords, subsets and the titles of the sources.
    """
    wanted = words.lower().split()
    home = _settings(settings).home
    found = []
    for name in catalog.package_names(home):
        with contextlib.suppress(ScibenchError):
            told = _text(catalog.find_release(name, None, home).read())
            if all(word in told for word in wanted):
                found.append(_listed(name, home))
    return found


def _text(package: DataPackage) -> str:
    subsets = [f"{each.name} {each.title} {each.description}" for each in package.subsets.values()]
    sources = [source.title for source in package.sources]
    told = [package.name, package.title, package.description, *package.keywords]
    return " ".join([*told, *subsets, *sources]).lower()


def accept(name: str, *, settings: Settings | None = None) -> str:
    """Note that the user accepts a subset's terms, and return their URL; empty if it has none."""
    chosen = _settings(settings)
    reference = locking.resolve(name, chosen)
    url = reference.package.subsets[reference.subset].terms
    if url:
        terms.note(url, chosen)
    return url


def _listed(name: str, home: Path) -> dict[str, Any]:
    try:
        newest = catalog.releases(name, home)[-1]
        try:
            return {**_entry(catalog.find_release(name, None, home)), "note": ""}
        except NotFoundError:
            return {**_entry(newest), "note": f"every version is yanked: {newest.yanked}"}
    except (ScibenchError, OSError, IndexError) as error:
        problem = " ".join(str(error).split()) or "has no version"
        unknown: dict[str, Any] = {"version": "", "title": "", "subsets": {}, "licenses": []}
        note = f"damaged: {problem}; install scibench-data again"
        return {"name": name, **unknown, "model": name in catalog.model_names(), "note": note}


def _entry(release: Release) -> dict[str, Any]:
    package = release.read()
    return {
        "name": package.name,
        "version": package.version,
        "title": package.title,
        "subsets": {name: _subset(package, name) for name in package.subsets},
        "licenses": [terms.name or terms.path for terms in package.licenses],
        "model": package.name in catalog.model_names(),
    }


def _subset(package: DataPackage, name: str) -> dict[str, Any]:
    resources, subset = package.resources_of(name), package.subsets[name]
    about = {} if resources else subset.about
    return {
        "title": subset.title,
        "description": subset.description,
        "files": about.get("files", len(resources)),
        "bytes": about.get("bytes", sum(resource.bytes for resource in resources)),
        "exact": bool(resources) and all(resource.exact for resource in resources),
        "simulated": subset.recipe is not None,
        "unverified": sum(not resource.published for resource in resources),
        "listing": subset.listing,
        "terms": subset.terms,
        "needs": subset.needs,
    }


def info(name: str, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return what the descriptor says of a version, and what of it is on this disk."""
    chosen = _settings(settings)
    reference = locking.resolve(name, chosen)
    package, release = reference.package, reference.release
    look = holdings.plan(reference, chosen)
    commit = release.commit or (read_commit(look.folder) if look.built else "")
    return {
        **_entry(release),
        "subset": reference.subset,
        "description": package.description,
        "released": package.released,
        "yanked": release.yanked,
        "commit": commit,
        "swhid": swhid(commit) if commit else "",
        "descriptor_sha256": package.digest,
        "arrays": [dataclasses.asdict(array) for array in package.arrays],
        "splits": dataclasses.asdict(package.splits) if package.splits else None,
        "task": dataclasses.asdict(package.task) if package.task else None,
        "sources": [dataclasses.asdict(source) for source in package.sources],
        "files": [
            {
                "path": r.path,
                "bytes": r.bytes if r.exact or r.recorded else None,
                "sha256": r.sha256,
                "published": r.published,
                "sources": list(r.sources),
                "here": r not in look.missing,
            }
            for r in holdings.settled(look.folder, reference.resources)
        ],
        "folder": str(look.folder) if look.built else "",
    }


def versions(name: str, *, settings: Settings | None = None) -> list[dict[str, str]]:
    """Return every released version of a package, oldest first."""
    return [
        {
            "version": release.version,
            "date": release.date,
            "commit": release.commit,
            "changes": release.changes,
            "yanked": release.yanked,
        }
        for release in catalog.releases(name, _settings(settings).home)
    ]
