"""From descriptors to a DataLad dataset without content, by one ``git fast-import``.

Also what such a dataset looks like on the disk, and putting its links back.

Fixed author, dates and identifiers make the commit the same on every machine, so it can be cited.
``main`` holds the descriptor and one annex link for each resource, one commit for each version;
the ``git-annex`` branch holds where content comes from, so a new mirror is not a new version.
Formats: https://git-scm.com/docs/git-fast-import, https://git-annex.branchable.com/internals/ and
git-annex's "compute special remote interface".
"""

import datetime as dt
import re
import secrets
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

from scibench_data import durable
from scibench_data.annexed import annex
from scibench_data.annexed.compute import PROGRAM, arguments
from scibench_data.descriptor import DataPackage, Resource
from scibench_data.errors import DescriptorError
from scibench_data.sources import parse_source

NOTES = Path(".git/scibench-data")
"""Our own notes: inside .git, so part of no version."""

_AUTHOR = "scibench-data <noreply@scibench-data.invalid>"
_IN_GIT = (".gitattributes", ".datalad/config", ".datalad/.gitattributes", "datapackage.json")
_ATTRIBUTES = "* annex.backend=SHA256E\n**/.git* annex.largefiles=nothing\n"


_ESCAPES = str.maketrans({"&": "&a", "%": "&s", ":": "&c", "/": "%"})


def key_file(key: str) -> str:
    """Return a key as the name of a file (git-annex, internals/key_format: its escapes).

    Examples
    --------
    >>> key_file("VURL--https://a.org/b%20c")
    'VURL--https&c%%a.org%b&s20c'
    """
    return key.translate(_ESCAPES)


def object_path(folder: Path, resource: Resource) -> Path:
    """Return where a dataset keeps the content of a resource."""
    return folder / _object(resource.key)


def _object(key: str) -> str:
    """Return where the content of a key lies, from the dataset's folder."""
    name = key_file(key)
    return f".git/annex/objects/{annex.object_folder(key)}/{name}/{name}"


def downloads(folder: Path) -> Path:
    """Return where what comes for a dataset is collected: beside it, for it may not be built."""
    return folder.with_name(f".{folder.name}.incoming")


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


def link_text(resource: Resource) -> str:
    """Return what the link at the resource's path in the work tree points to."""
    return "../" * resource.path.count("/") + _object(resource.key)


def _version_stream(package: DataPackage) -> Iterator[bytes]:
    subject = f"{package.published_as} {package.version}\n"
    yield _commit("refs/heads/main", subject, _seconds(package))
    yield _file("100644", ".gitattributes", _ATTRIBUTES.encode())
    config = f'[datalad "dataset"]\n\tid = {package.uuid}\n'
    yield _file("100644", ".datalad/config", config.encode())
    yield _file("100644", ".datalad/.gitattributes", b"config annex.largefiles=nothing\n")
    yield _file("100644", "datapackage.json", package.text)
    for path, content in package.lists.items():
        yield _file("100644", path, content)
    for resource in package.resources:
        yield _file("120000", resource.path, link_text(resource).encode())
    yield f"reset refs/tags/v{package.version}\nfrom refs/heads/main\n\n".encode()


def _remotes(versions: Sequence[DataPackage]) -> dict[str, tuple[str, str]]:
    """Map each remote's name to its UUID and its line for ``remote.log``: recipes, then mirrors."""
    found: dict[str, tuple[str, str]] = {}
    if any(subset.recipe for package in versions for subset in package.subsets.values()):
        number = str(uuid.uuid5(uuid.UUID(versions[-1].uuid), "recipe"))
        found["recipe"] = (number, f"autoenable=true name=recipe program={PROGRAM} type=compute")
    resources = (resource for package in versions for resource in package.resources)
    urls = {url for resource in resources for url in _web_urls(resource)}
    for scheme, host in sorted({urlsplit(url)[:2] for url in urls}):
        number = str(uuid.uuid5(uuid.NAMESPACE_DNS, host))
        line = f"autoenable=true cost=210 name={host} type=web urlinclude={scheme}://{host}/*"
        found[host] = (number, line)
    return found


def _web_urls(resource: Resource) -> list[str]:
    """Return the URLs that anybody can ask for exactly these bytes: objects of S3 count too."""
    sources = map(parse_source, resource.sources)
    return [source.url for source in sources if source.kind in {"file", "s3"}]


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


def _annex_stream(versions: Sequence[DataPackage]) -> Iterator[bytes]:
    """Write where the content of every version comes from, as the newest that has it says."""
    seconds = _seconds(versions[-1])
    remotes = _remotes(versions)
    yield _commit("refs/heads/git-annex", "where content comes from\n", seconds)
    for log, lines in (
        ("uuid.log", [f"{number} {name}" for name, (number, _) in remotes.items()]),
        ("remote.log", [f"{number} {line}" for number, line in remotes.values()]),
    ):
        text = "".join(f"{line} timestamp={seconds}s\n" for line in sorted(lines))
        yield _file("100644", log, text.encode())
    owners = {r.key: (package, r) for package in versions for r in package.resources}
    for package, resource in owners.values():
        yield from _key_stream(package, resource, remotes, seconds)


def _key_stream(
    package: DataPackage, resource: Resource, remotes: Mapping[str, tuple[str, str]], seconds: int
) -> Iterator[bytes]:
    base = f"{annex.log_folder(resource.key)}/{key_file(resource.key)}.log"
    holders = []
    if package.subsets[resource.subset].recipe:
        number = remotes["recipe"][0]
        holders.append(number)
        state = f"{seconds}s {number}:t1s +{_recipe_state(package, resource)}\n"
        yield _file("100644", f"{base}.rmet", state.encode())
    if urls := _web_urls(resource):
        holders += [remotes[urlsplit(url).netloc][0] for url in urls]
        lines = "".join(f"{seconds}s 1 {url}\n" for url in urls)
        yield _file("100644", f"{base}.web", lines.encode())
    where = "".join(f"{seconds}s 1 {number}\n" for number in sorted(set(holders)))
    yield _file("100644", base, where.encode())


def import_stream(versions: Sequence[DataPackage]) -> bytes:
    """Write the whole dataset, history and sources, as one ``git fast-import`` stream."""
    parts = [part for package in versions for part in _version_stream(package)]
    return b"".join([*parts, *_annex_stream(versions)])


def _local_settings(versions: Sequence[DataPackage]) -> str:
    """Write the part of ``.git/config`` that lets plain ``datalad get`` work in this clone."""
    sections = [
        "[annex]\n\tprivate = true\n",
        f'[annex "security"]\n\tallowed-compute-programs = {PROGRAM}\n',
    ]
    for name, (number, line) in _remotes(versions).items():
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
        (folder / resource.path).symlink_to(link_text(resource))


def build(folder: Path, versions: Sequence[DataPackage]) -> None:
    """Build a dataset without content beside `folder`, then give it its name.

    The links are placed while git imports, and git only takes note of them: ``git checkout`` of
    20,000 links took longer than all the rest together. git-annex comes last: git would ask its
    filter for each file that is no link.
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
        config.write(_local_settings(versions))
    annex.git("read-tree", "main", cwd=beside)
    annex.git("checkout-index", "--quiet", "--", *_IN_GIT, *versions[-1].lists, cwd=beside)
    annex.git("update-index", "-q", "--refresh", cwd=beside)
    annex.annex("init", "--quiet", "--no-autoenable", "scibench-data", cwd=beside)
    durable.write_whole(beside / NOTES / "commit", f"{commit}\n".encode())
    durable.flush_filesystem(beside)
    beside.rename(folder)
    durable.flush_file(folder.parent)


# --- what was built -------------------------------------------------------------------------------


def _kind(path: Path) -> int | None:
    """Return the file type of `path` itself, links not followed; None where nothing is."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _folders_above(base: Path, path: Path) -> list[Path]:
    """Return the folders between `base` and `path`, outermost first."""
    return [base / parent for parent in path.relative_to(base).parents][-2::-1]


def unlinked(folder: Path, resources: Iterable[Resource]) -> list[Resource]:
    """Return the resources whose place in the work tree is not the link that `build` made.

    Readers go through these links: another target, or a folder that is a link, is other data.
    """
    real = {"": True}

    def is_real(parent: str) -> bool:
        if parent not in real:
            above = parent.rpartition("/")[0]
            real[parent] = is_real(above) and _kind(folder / parent) == stat.S_IFDIR
        return real[parent]

    def linked(resource: Resource) -> bool:
        path = folder / resource.path
        if not is_real(resource.path.rpartition("/")[0]) or _kind(path) != stat.S_IFLNK:
            return False
        return str(path.readlink()) == link_text(resource)

    return [resource for resource in resources if not linked(resource)]


def restore_link(folder: Path, resource: Resource) -> None:
    """Put a resource's link back; what is in its place is kept in ``.git/scibench-data/aside``."""
    path = folder / resource.path
    set_aside(folder, folder, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(link_text(resource))


def set_aside(folder: Path, base: Path, path: Path) -> None:
    """Move what lies at `path`, or in place of a folder between `base` and it, out of the way.

    It may be somebody's work: it is moved under a name of its own, and nothing is deleted.
    """
    for place in [*_folders_above(base, path), path]:
        kind = _kind(place)
        if kind is None or (kind == stat.S_IFDIR and place != path):
            continue
        place.parent.chmod(0o755)  # git-annex protects the folders of objects
        if kind == stat.S_IFDIR:
            place.chmod(0o755)
        parts = [part for part in place.relative_to(folder).parts if part != ".git"]
        aside = (folder / NOTES / "aside" / secrets.token_hex(4)).joinpath(*parts)
        aside.parent.mkdir(parents=True)
        place.rename(aside)
        return


def _read(path: Path) -> bytes:
    """Read one of git's small files; empty where it is gone or is no regular file."""
    try:
        with durable.open_regular(path) as file:
            return file.read()
    except OSError:
        return b""


def _word(path: Path) -> str:
    return _read(path).decode("ascii", "replace").strip()


def read_commit(folder: Path) -> str:
    """Return the commit that `build` noted; empty where the note is gone."""
    return _word(folder / NOTES / "commit")


def _read_ref(folder: Path, ref: str) -> str:
    """Read a reference as git keeps it in files, without starting a process; empty if absent."""
    if loose := _word(folder / ".git" / ref):
        return loose
    packed = _read(folder / ".git/packed-refs").decode("utf-8", "replace")
    found = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", packed, re.MULTILINE)
    return found[1] if found else ""


def fault(folder: Path, package: DataPackage, commit: str) -> str:
    """Say what is wrong with the git part of a dataset; empty where it is as it was built.

    Parameters
    ----------
    commit
        The released commit; empty for a version that was derived here.
    """
    git, noted, main = folder / ".git", read_commit(folder), _read_ref(folder, "refs/heads/main")
    config = _read(git / "config")
    checks = {
        "the note of its commit is damaged": re.fullmatch("[0-9a-f]{40}", noted),
        f"noted is commit {noted}, but main is at {main or 'none'}": noted == main,
        f"its commit is {noted}, released was {commit}": commit in {"", noted},
        "its branch git-annex is gone": _read_ref(folder, "refs/heads/git-annex"),
        ".git/HEAD is damaged": re.match(rb"ref: refs/|[0-9a-f]{40}", _read(git / "HEAD")),
        ".git/config is damaged": b"[core]" in config and b"\tuuid = " in config,
        ".git/index is gone": (git / "index").is_file(),
        "datapackage.json differs from the released descriptor": package.text
        == _read(folder / "datapackage.json"),
        "a list of files differs from the released one": all(
            content == _read(folder / path) for path, content in package.lists.items()
        ),
    }
    return next((what for what, holds in checks.items() if not holds), "")
