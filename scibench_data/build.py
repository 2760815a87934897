"""From descriptors to a DataLad dataset without content, by one ``git fast-import``.

Fixed author, dates and identifiers make the commit the same on every machine, so it can be cited.
``main`` holds the descriptor and one annex link for each resource, one commit for each version;
the ``git-annex`` branch holds where content comes from, so a new mirror is not a new version.
Formats: https://git-scm.com/docs/git-fast-import, https://git-annex.branchable.com/internals/ and
git-annex's "compute special remote interface".
"""

import datetime as dt
import os
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

from scibench_data import annex, durable
from scibench_data.compute import PROGRAM, arguments
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.errors import DescriptorError

NOTES = Path(".git/scibench-data")
"""Our own notes: inside .git, so part of no version."""

_AUTHOR = "scibench-data <noreply@scibench-data.invalid>"
_IN_GIT = (".gitattributes", ".datalad/config", ".datalad/.gitattributes", "datapackage.json")
_ATTRIBUTES = "* annex.backend=SHA256E\n**/.git* annex.largefiles=nothing\n"


def object_path(folder: Path, resource: Resource) -> Path:
    """Return where a dataset keeps the content of a resource."""
    key = resource.key
    return folder / ".git/annex/objects" / annex.object_folder(key) / key / key


def _seconds(package: DataPackage) -> int:
    day = dt.date.fromisoformat(package.released)
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp())


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _file(mode: str, path: str, content: bytes) -> bytes:
    return f"M {mode} inline {_quoted(path)}\ndata {len(content)}\n".encode() + content + b"\n"


def _commit(ref: str, message: str, seconds: int) -> bytes:
    text = message.encode()
    who = f"{_AUTHOR} {seconds} +0000"
    head = f"commit {ref}\nauthor {who}\ncommitter {who}\ndata {len(text)}\n"
    return head.encode() + text + b"\ndeleteall\n"


def _link(resource: Resource) -> bytes:
    up = "../" * resource.path.count("/")
    key = resource.key
    return f"{up}.git/annex/objects/{annex.object_folder(key)}/{key}/{key}".encode()


def _version_stream(package: DataPackage) -> Iterator[bytes]:
    yield _commit("refs/heads/main", f"{package.name} {package.version}\n", _seconds(package))
    yield _file("100644", ".gitattributes", _ATTRIBUTES.encode())
    config = f'[datalad "dataset"]\n\tid = {package.uuid}\n'
    yield _file("100644", ".datalad/config", config.encode())
    yield _file("100644", ".datalad/.gitattributes", b"config annex.largefiles=nothing\n")
    yield _file("100644", "datapackage.json", package.text)
    for resource in package.resources:
        yield _file("120000", resource.path, _link(resource))
    yield f"reset refs/tags/v{package.version}\nfrom refs/heads/main\n\n".encode()


def _remotes(package: DataPackage) -> dict[str, tuple[str, str]]:
    """Map each remote's name to its UUID and its line for ``remote.log``: recipes, then mirrors."""
    found: dict[str, tuple[str, str]] = {}
    if any(subset.recipe for subset in package.subsets.values()):
        number = str(uuid.uuid5(uuid.UUID(package.uuid), "recipe"))
        found["recipe"] = (number, f"autoenable=true name=recipe program={PROGRAM} type=compute")
    hosts = {urlsplit(url).netloc for resource in package.resources for url in resource.urls}
    for host in sorted(hosts):
        number = str(uuid.uuid5(uuid.NAMESPACE_DNS, host))
        line = f"autoenable=true cost=210 name={host} type=web urlinclude=https://{host}/*"
        found[host] = (number, line)
    return found


def _recipe_state(package: DataPackage, resource: Resource) -> str:
    """Write how to make a resource, in the form of git-annex's compute remote."""
    recipe = package.subsets[resource.subset].recipe
    if recipe is None:
        raise DescriptorError(package.name, [f"{resource.path}: its subset has no recipe"])
    inner = resource.path.removeprefix(f"{resource.subset}/")
    words = arguments(package.name, inner, resource.path, dict(recipe.parameters))
    steps = [f"p{quote(word, safe='')}" for word in words]
    steps.append(f"o{quote(resource.path, safe='')}={quote(resource.key, safe='')}")
    return "&".join([*steps, "d="])


def _annex_stream(package: DataPackage) -> Iterator[bytes]:
    seconds = _seconds(package)
    remotes = _remotes(package)
    yield _commit("refs/heads/git-annex", "where content comes from\n", seconds)
    for log, lines in (
        ("uuid.log", [f"{number} {name}" for name, (number, _) in remotes.items()]),
        ("remote.log", [f"{number} {line}" for number, line in remotes.values()]),
    ):
        text = "".join(f"{line} timestamp={seconds}s\n" for line in sorted(lines))
        yield _file("100644", log, text.encode())
    for resource in {resource.key: resource for resource in package.resources}.values():
        yield from _key_stream(package, resource, remotes, seconds)


def _key_stream(
    package: DataPackage, resource: Resource, remotes: Mapping[str, tuple[str, str]], seconds: int
) -> Iterator[bytes]:
    base = f"{annex.log_folder(resource.key)}/{resource.key}.log"
    holders = []
    if package.subsets[resource.subset].recipe:
        number = remotes["recipe"][0]
        holders.append(number)
        state = f"{seconds}s {number}:t1s +{_recipe_state(package, resource)}\n"
        yield _file("100644", f"{base}.rmet", state.encode())
    if resource.urls:
        holders += [remotes[urlsplit(url).netloc][0] for url in resource.urls]
        urls = "".join(f"{seconds}s 1 {url}\n" for url in resource.urls)
        yield _file("100644", f"{base}.web", urls.encode())
    where = "".join(f"{seconds}s 1 {number}\n" for number in sorted(set(holders)))
    yield _file("100644", base, where.encode())


def import_stream(versions: Sequence[DataPackage]) -> bytes:
    """Write the whole dataset, history and sources, as one ``git fast-import`` stream."""
    parts = [part for package in versions for part in _version_stream(package)]
    return b"".join([*parts, *_annex_stream(versions[-1])])


def _local_settings(package: DataPackage) -> str:
    """Write the part of ``.git/config`` that lets plain ``datalad get`` work in this clone."""
    sections = [
        "[annex]\n\tprivate = true\n",
        f'[annex "security"]\n\tallowed-compute-programs = {PROGRAM}\n',
    ]
    for name, (number, line) in _remotes(package).items():
        kind = "annex-compute" if "type=compute" in line else "annex-web"
        cost = "\tannex-cost = 210\n" if kind == "annex-web" else ""
        sections.append(
            f'[remote "{name}"]\n\t{kind} = true\n\tannex-uuid = {number}\n{cost}'
            "\tannex-verified = verified\n\tskipFetchAll = true\n"
        )
    return "".join(sections)


def import_history(folder: Path, versions: Sequence[DataPackage]) -> str:
    """Make a git repository at `folder` with the whole history and return its newest commit.

    Nothing is checked out and nothing is fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    annex.git("init", "--quiet", "--template=", "--object-format=sha1", "-b", "main", cwd=folder)
    annex.git(
        "fast-import", "--quiet", "--done", cwd=folder, stdin=import_stream(versions) + b"done\n"
    )
    return annex.git("rev-parse", "refs/heads/main", cwd=folder)


def _place_links(folder: Path, package: DataPackage) -> None:
    for parent in sorted({resource.path.rpartition("/")[0] for resource in package.resources}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for resource in package.resources:
        (folder / resource.path).symlink_to(os.fsdecode(_link(resource)))


def build(folder: Path, versions: Sequence[DataPackage]) -> None:
    """Build a dataset without content beside `folder`, then give it its name.

    The links are placed while git imports, and git only takes note of them: ``git checkout`` of
    20,000 links took longer than all the rest together.
    """
    for stale in folder.parent.glob(f".{folder.name}.building-*"):
        durable.remove_tree(stale)
    # a name of its own: the git of a killed process may still be at work in the old folder
    beside = folder.with_name(f".{folder.name}.building-{secrets.token_hex(4)}")
    with ThreadPoolExecutor(1) as worker:
        importing = worker.submit(import_history, beside, versions)
        _place_links(beside, versions[-1])
        commit = importing.result()
    with (beside / ".git/config").open("a", encoding="utf-8") as config:
        config.write(_local_settings(versions[-1]))
    annex.annex("init", "--quiet", "--no-autoenable", "scibench-data", cwd=beside)
    annex.git("read-tree", "main", cwd=beside)
    annex.git("checkout-index", "--quiet", "--", *_IN_GIT, cwd=beside)
    annex.git("update-index", "-q", "--refresh", cwd=beside)
    durable.write_whole(beside / NOTES / "commit", f"{commit}\n".encode())
    durable.flush_filesystem(beside)
    beside.rename(folder)
    durable.flush_file(folder.parent)


def read_commit(folder: Path) -> str:
    """Return the commit that `build` noted."""
    return (folder / NOTES / "commit").read_text(encoding="ascii").strip()
