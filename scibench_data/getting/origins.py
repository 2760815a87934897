"""Where an added package was found, and where its content lies there.

A publication keeps content where git-annex looks for it in a bare repository, so its objects have
paths and URLs that follow from their keys; in a folder they lie beside their descriptor.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from scibench_data import catalog
from scibench_data.annexed import annex, build
from scibench_data.descriptor import Resource
from scibench_data.errors import DescriptorError, NotFoundError
from scibench_data.profile import decode

_KINDS = ("folder", "publication", "datalad", "bundle")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an added package was found.

    Attributes
    ----------
    kind
        ``folder``: of files beside their descriptor; ``publication``: as `publishing` makes it;
        ``datalad``: any other DataLad dataset; ``bundle``: a file of `bundling`.
    place
        An absolute path, or a URL.
    contents
        URLs of other publications that hold its content, or the folder of its files where that is
        another one.
    """

    kind: str
    place: str
    contents: tuple[str, ...] = ()


def is_url(place: str) -> bool:
    """Tell a URL, whatever its scheme, and git's ``host:path`` from the path of a folder."""
    return "://" in place or re.match(r"[^/]+@[^/]+:|[\w.-]+::", place) is not None


def object_url(base: str, key: str) -> str:
    """Return where a publication serves the content of a key."""
    name = quote(build.key_file(key))
    return f"{base}/annex/objects/{annex.log_folder(key)}/{name}/{name}"


def published_object(folder: Path, key: str) -> Path:
    """Return where a publication on this disk keeps the content of a key."""
    name = build.key_file(key)
    return folder / "annex/objects" / annex.log_folder(key) / name / name


def origins(home: Path, name: str) -> Origin:
    """Read where an added package was found.

    Raises
    ------
    NotFoundError
        No package of that name was added.
    DescriptorError
        The note of it is damaged.
    """
    path = catalog.added_folder(home, name) / "origin.json"
    if not path.is_file():
        message = f"{name}: not a package that was added; see scibench-data list"
        raise NotFoundError(message)
    tree = decode(path.read_bytes(), str(path))
    try:
        origin = Origin(kind=tree["kind"], place=tree["place"], contents=tuple(tree["contents"]))
    except (KeyError, TypeError) as error:
        raise DescriptorError(str(path), [f"damaged: {error}; add the package again"]) from error
    if origin.kind not in _KINDS or not all(map(str.isprintable, [origin.place, *origin.contents])):
        raise DescriptorError(str(path), ["damaged; add the package again"])
    return origin


def source_of(origin: Origin, resource: Resource) -> str | Path | None:
    """Return where the origin has the content of a resource: a URL, or a file that is there."""
    base = origin.contents[0] if origin.contents else origin.place
    if origin.kind == "publication" and is_url(base):
        return object_url(base, resource.key) if resource.published else None
    if is_url(origin.place) or origin.kind == "bundle":
        return None
    folder = Path(base)
    places = _places(origin.kind, folder, resource)
    return next((path for path in places if _is_inside(folder, path)), None)


def _places(kind: str, folder: Path, resource: Resource) -> list[Path]:
    if kind == "publication":
        return [published_object(folder, resource.key)]
    if kind == "datalad":
        return _in_dataset(folder, resource)
    return [folder / resource.path, folder / resource.path.removeprefix(f"{resource.subset}/")]


def _is_inside(folder: Path, path: Path) -> bool:
    """Tell whether a regular file lies there, reached by no link that leads out of `folder`."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.resolve().is_relative_to(folder.resolve())


def annexed_at(folder: Path, key: str) -> list[Path]:
    """Return where a dataset on this disk may keep the content of a key."""
    name = build.key_file(key)
    return [
        base / hashed / name / name
        for base in (folder / ".git/annex/objects", folder / "annex/objects")
        for hashed in (annex.object_folder(key), annex.log_folder(key))
    ]


def _in_dataset(folder: Path, resource: Resource) -> list[Path]:
    """Return where a dataset on this disk may have the content of a resource."""
    if not resource.sha256:
        return []
    path = PurePosixPath(resource.path)
    endings = dict.fromkeys(["", path.suffix, "".join(path.suffixes[-2:])])
    digest = f"-s{resource.bytes}--{resource.sha256}"
    keys = [f"SHA256{digest}", *(f"SHA256E{digest}{ending}" for ending in endings)]
    inside = folder / resource.path.removeprefix(f"{resource.subset}/")
    return [inside, *(place for key in keys for place in annexed_at(folder, key))]
