"""The objects below an S3 prefix as a package version of its own: ``stemdl@0.1.0+listed.<digest>``.

A bucket is not a version: what lies there changes without a word. So it is listed once, on first
use, and the listing becomes a descriptor with every path and size, named by its digest. Checksums
are not in a listing: files are unverified until ``lock`` writes them down.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from scibench_data import catalog, durable
from scibench_data.catalog import Reference
from scibench_data.descriptor import DataPackage, Resource, list_entry, parse, write_list
from scibench_data.errors import IntegrityError, NetworkError
from scibench_data.foreign import path_fault
from scibench_data.getting import holdings
from scibench_data.net.objectstore import Entry, parse_place
from scibench_data.progress import SILENT, Progress
from scibench_data.settings import Settings


def is_unlisted(reference: Reference) -> bool:
    """Tell whether the files of a subset are not known before somebody lists them."""
    return bool(reference.package.subsets[reference.subset].listing) and not (
        reference.package.resources_of(reference.subset)
    )


def find_listed(reference: Reference, settings: Settings) -> Reference | None:
    """Return the newest listing of a subset that was made here, or None."""
    release = reference.release
    folder = catalog.derived_folder(settings.home, release.name, "_").parent
    found = sorted(
        folder.glob(f"{release.version}+listed.*/datapackage.json"),
        key=lambda path: path.stat().st_mtime,
    )
    for path in reversed(found):
        version = path.parent.name
        listed = catalog.find_release(release.name, version, settings.home)
        package = listed.read()
        if reference.subset in package.subsets:
            return Reference(release=listed, package=package, subset=reference.subset)
    return None


def list_files(reference: Reference, settings: Settings, progress: Progress = SILENT) -> Reference:
    """Return the version with the files that lie below the subset's prefix, listed now or before.

    Raises
    ------
    NetworkError
        The service can't be asked, offline was wanted, or nothing lies there.
    LicenceError
        Access was denied.
    IntegrityError
        A key can't be a path on every machine.
    """
    if found := find_listed(reference, settings):
        return found
    url = reference.package.subsets[reference.subset].listing
    if settings.offline:
        message = f"{reference}: its files are listed at {parse_place(url)}; run it once online"
        raise NetworkError(message)
    from scibench_data.net import objectstore
    from scibench_data.net.web import Web

    entries = []
    with (
        progress.task("list", None, "files") as task,
        Web(allowed_hosts=settings.allowed_hosts) as web,
    ):
        for entry in objectstore.list_prefix(web, url):
            entries.append(entry)
            task.update(len(entries), note=entry.key)
    resources = _resources(reference.subset, url, entries)
    progress.say(f"{reference}: {len(resources):,} files listed at {parse_place(url)}")
    return _write(reference, resources, settings)


def _resources(subset: str, url: str, entries: Iterable[Entry]) -> list[Resource]:
    place = parse_place(url)
    found = []
    for entry in sorted(entries, key=lambda entry: entry.key):
        inner = entry.key.removeprefix(place.folder)
        if fault := path_fault(inner):
            message = f"{place}: an object with the key {inner!r:.200}, {fault}; report it"
            raise IntegrityError(message)
        source = f"s3+{place.endpoint}/{quote(place.bucket)}/{quote(entry.key)}"
        found.append(
            Resource(
                name="",
                path=f"{subset}/{inner}",
                bytes=entry.bytes,
                sha256="",
                subset=subset,
                sources=(source,),
            )
        )
    return found


def describe_listed(
    package: DataPackage, subset: str, resources: Sequence[Resource]
) -> tuple[bytes, dict[str, bytes]]:
    """Write the descriptor of one subset with the files that were listed, and its list of files."""
    content = write_list(resources)
    version = f"{package.version}+listed.{hashlib.sha256(content).hexdigest()[:12]}"
    tree: dict[str, Any] = json.loads(package.text)
    ours = tree["scibench"]
    kept = {k: v for k, v in ours["subsets"][subset].items() if k not in {"listing", "about"}}
    tree["version"] = version
    ours["uuid"] = str(uuid.uuid5(uuid.UUID(package.uuid), version))
    ours["subsets"] = {subset: kept}
    entry = list_entry(subset, content)
    tree["resources"] = [entry]
    text = json.dumps(tree, indent=2, ensure_ascii=False).encode() + b"\n"
    return text, {entry["path"]: content}


def _write(reference: Reference, resources: Sequence[Resource], settings: Settings) -> Reference:
    text, lists = describe_listed(reference.package, reference.subset, resources)
    package = parse(text, str(reference), allowed=None, beside=lists.__getitem__)
    folder = catalog.derived_folder(settings.home, package.name, package.version)
    lock = holdings.lock_path(settings.home, package.name, package.version, ".derive")
    with durable.disk_errors(folder), durable.lock(lock, settings.lock_timeout):
        for path, content in lists.items():
            durable.write_whole(folder / path, content, replace=True)
        durable.write_whole(folder / "datapackage.json", text, replace=True)  # last: it is whole
    return catalog.resolve(f"{package.name}@{package.version}:{reference.subset}", settings.home)
