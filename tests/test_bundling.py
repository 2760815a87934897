"""Data to machines without a network: bundles, and files that lie there under any name."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from publications import FILES, clean_room, write_package

from scibench_data import catalog
from scibench_data.durable import Stamp
from scibench_data.errors import IntegrityError, NotFoundError, ScibenchError, UsageError
from scibench_data.getting import dataset, holdings
from scibench_data.getting.dataset import Dataset
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing import adoption
from scibench_data.sharing.adding import add
from scibench_data.sharing.adoption import adopt
from scibench_data.sharing.bundling import bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "mini")


@pytest.fixture
def here(folder: Path, settings: Settings) -> Dataset:
    """The package, added and got."""
    add(folder, settings=settings)
    return dataset.get(catalog.resolve("mini", settings.home), settings)


@pytest.fixture
def island(tmp_path: Path) -> Settings:
    """A machine without a network, and with nothing on it."""
    return load_settings(home=tmp_path / "island", offline=True, jobs=2)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "data" / name).read_bytes() for name in FILES}


def _nothing_taken(island: Settings) -> bool:
    left = [path for path in island.home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return not left


# --- bundles


def test_a_bundle_carries_all(
    here: Dataset, folder: Path, tmp_path: Path, settings: Settings, island: Settings
) -> None:
    done = bundle("mini", tmp_path / "mini.tar", settings=settings)
    shutil.rmtree(folder)

    came = adopt(tmp_path / "mini.tar", settings=island)
    data = dataset.get(catalog.resolve("mini", island.home), island)

    assert (done.files, came.taken, came.missing, came.added) == (3, 3, (), "mini")
    assert data.commit == here.commit
    assert _contents(data.folder) == FILES
    again = adopt(tmp_path / "mini.tar", settings=island)
    assert (again.taken, again.known, again.unknown) == (0, 3, ())


def test_equal_content_makes_equal_bytes(
    here: Dataset, folder: Path, tmp_path: Path, settings: Settings
) -> None:
    other = load_settings(home=tmp_path / "other-home")
    add(folder, settings=other)
    dataset.get(catalog.resolve("mini", other.home), other)
    bundle("mini", tmp_path / "a.tar", settings=settings)
    bundle("mini", tmp_path / "b.tar", settings=other)

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_git_alone_reads_the_git_part(here: Dataset, tmp_path: Path, settings: Settings) -> None:
    bundle("mini", tmp_path / "mini.tar", settings=settings)
    with tarfile.open(tmp_path / "mini.tar") as tar:
        tar.extract("dataset.bundle", tmp_path, filter="data")
    room = clean_room(tmp_path / "room")
    words = ["git", "clone", "-q", "-b", "main", "dataset.bundle", "clone"]
    subprocess.run(words, cwd=tmp_path, env=room, check=True)

    assert (tmp_path / "clone/.git/refs/heads/main").read_text().strip() == here.commit


def test_a_shipped_package_needs_no_adding(tmp_path: Path, settings: Settings) -> None:
    known = catalog.shipped_names()
    assert "cryoem" in known
    reference = catalog.resolve("cryoem", settings.home)
    with pytest.raises(NotFoundError, match="not complete"):
        bundle(str(reference), tmp_path / "x.tar", settings=settings)
    assert not (tmp_path / "x.tar").exists()


def test_what_exists_is_not_overwritten(here: Dataset, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "mine").write_text("mine")

    with pytest.raises(UsageError, match="exists"):
        bundle("mini", tmp_path / "mine", settings=settings)
    assert (tmp_path / "mine").read_text() == "mine"


def test_damaged_content_is_not_bundled(
    here: Dataset, tmp_path: Path, settings: Settings, flip: Callable[[Path, int], None]
) -> None:
    flip(here.object(here.resources[1]), 5)

    with pytest.raises(IntegrityError, match="not the published bytes"):
        bundle("mini", tmp_path / "x.tar", settings=settings)
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob(".*.partial"))


# --- hostile bundles


@pytest.fixture(scope="module")
def mini_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the package, made once."""
    folder = tmp_path_factory.mktemp("bundle")
    settings = load_settings(home=folder / "home")
    add(write_package(folder / "mini"), settings=settings)
    dataset.get(catalog.resolve("mini", settings.home), settings)
    return bundle("mini", folder / "mini.tar", settings=settings).path


_Members = list[tuple[tarfile.TarInfo, bytes]]
_NOBODYS = "objects/" + "0" * 64


def _members(path: Path) -> _Members:
    with tarfile.open(path) as tar:
        return [(member, _read(tar, member)) for member in tar]


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _write(path: Path, members: _Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _extra(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> Callable[[_Members], None]:
    def change(members: _Members) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        members.insert(3, (member, b""))

    return change


def _twice(members: _Members) -> None:
    members.append(members[-1])


def _missing_object(members: _Members) -> None:
    del members[-1]


def _wrong_bytes(members: _Members) -> None:
    member, content = members[-1]
    members[-1] = (member, bytes(len(content)) + b"x")


def _unlisted_object(members: _Members) -> None:
    content = b"contraband"
    members.append((tarfile.TarInfo(f"objects/{hashlib.sha256(content).hexdigest()}"), content))


def _other_descriptor(members: _Members) -> None:
    for number, (member, content) in enumerate(members):
        if member.name.endswith("datapackage.json"):
            members[number] = (member, content.replace(b"A small package", b"Another package"))


def _other_index(members: _Members) -> None:
    member, content = members[0]
    members[0] = (member, json.dumps({**json.loads(content), "subset": "../.."}).encode())


def _other_commit(members: _Members) -> None:
    for number, (member, content) in enumerate(members):
        if member.name == "dataset.bundle":
            head, _, rest = content.partition(b" refs/heads/main")
            members[number] = (member, head[:-40] + b"0" * 40 + b" refs/heads/main" + rest)


@pytest.mark.parametrize(
    "change",
    [
        _extra("../../evil"), _extra("/etc/evil"), _extra("versions/../../x.csv"),
        _extra("objects/link", tarfile.SYMTYPE, "/etc/passwd"),
        _extra(_NOBODYS, tarfile.SYMTYPE, "/etc/passwd"), _extra("objects", tarfile.DIRTYPE),
        _extra(_NOBODYS, tarfile.LNKTYPE, "releases.json"), _extra(_NOBODYS),
        _extra(_NOBODYS, tarfile.CHRTYPE), _extra(_NOBODYS, tarfile.FIFOTYPE),
        _twice, _missing_object, _wrong_bytes, _unlisted_object, _other_descriptor, _other_index,
        _other_commit,
    ],
)  # fmt: skip
def test_nothing_of_a_hostile_bundle_is_taken(
    mini_tar: Path,
    tmp_path: Path,
    island: Settings,
    change: Callable[[_Members], None],
) -> None:
    members = _members(mini_tar)
    change(members)
    _write(tmp_path / "evil.tar", members)

    with pytest.raises(ScibenchError) as caught:
        adopt(tmp_path / "evil.tar", settings=island)

    assert caught.value.exit_code in {1, 4}
    assert _nothing_taken(island)
    assert not (tmp_path / "evil").exists()


def test_a_bundle_cut_anywhere_is_refused(mini_tar: Path, tmp_path: Path, island: Settings) -> None:
    whole = mini_tar.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in (600, 1024, end // 2, end - 600, end - 1):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(ScibenchError):
            adopt(tmp_path / "cut.tar", "mini", settings=island)
        assert _nothing_taken(island)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_packed_bundle_is_no_bundle(
    mini_tar: Path, tmp_path: Path, island: Settings, mode: str
) -> None:
    _write(tmp_path / "packed.tar", _members(mini_tar), mode)

    with pytest.raises(IntegrityError, match="damaged or no bundle"):
        adopt(tmp_path / "packed.tar", settings=island)
    assert _nothing_taken(island)


def test_a_bundle_of_another_package_of_that_name(
    mini_tar: Path, tmp_path: Path, island: Settings
) -> None:
    other = write_package(tmp_path / "other", {"a.csv": b"other\n"})
    add(other, settings=island)

    with pytest.raises(IntegrityError, match="never changes"):
        adopt(mini_tar, settings=island)


# --- files that lie there


@pytest.fixture
def known(folder: Path, island: Settings) -> Settings:
    """The package is known, its files are not there any more."""
    add(folder, settings=island)
    for name in FILES:
        (folder / name).unlink()
    return island


def _scatter(place: Path, *left_out: str) -> Path:
    place.mkdir()
    for number, (name, content) in enumerate(FILES.items()):
        if name not in left_out:
            (place / f"renamed-{number}").write_bytes(content)
    return place


def test_renamed_files_are_known_by_their_checksum(known: Settings, tmp_path: Path) -> None:
    place = _scatter(tmp_path / "stick")
    (place / "holiday.jpg").write_bytes(b"unknown")
    (place / "same-size").write_bytes(b"x,y\n9,9\n")

    came = adopt(place, "mini", settings=known)
    data = dataset.get(catalog.resolve("mini", known.home), known)

    assert (came.taken, came.missing) == (3, ())
    assert came.unknown == ("holiday.jpg", "same-size")
    assert _contents(data.folder) == FILES
    for number, content in enumerate(FILES.values()):
        path = place / f"renamed-{number}"
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o200, "the user's own file was write-protected"
        path.write_bytes(b"changed")
    assert _contents(data.folder) == FILES


def test_what_is_missing_is_told(known: Settings, tmp_path: Path) -> None:
    came = adopt(_scatter(tmp_path / "stick", "deep/b.bin"), "mini", settings=known)

    assert came.missing == ("mini@1.0.0: data/deep/b.bin",)
    assert holdings.plan(catalog.resolve("mini", known.home), known).missing


def test_without_a_name_every_package_is_looked_at(known: Settings, tmp_path: Path) -> None:
    came = adopt(_scatter(tmp_path / "stick"), settings=known)

    assert (came.taken, came.missing) == (3, ())


def test_only_files_of_a_size_that_is_missing_are_read(
    known: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _scatter(tmp_path / "stick")
    (place / "big").write_bytes(bytes(12345))
    read: list[str] = []
    stamp = adoption._stamp

    def noted(path: Path) -> Stamp | None:
        read.append(path.name)
        return stamp(path)

    monkeypatch.setattr(adoption, "_stamp", noted)

    adopt(place, "mini", settings=known)

    assert sorted(read) == ["renamed-0", "renamed-1", "renamed-2"]


def test_moved_files_are_gone_where_they_lay(known: Settings, tmp_path: Path) -> None:
    place = _scatter(tmp_path / "stick")
    (place / "other").write_bytes(b"unknown")

    came = adopt(place, "mini", move=True, settings=known)

    assert came.taken == 3
    assert [path.name for path in place.iterdir()] == ["other"]


def test_links_are_not_followed(known: Settings, tmp_path: Path) -> None:
    place = _scatter(tmp_path / "elsewhere")
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick/folder").symlink_to(place)
    (tmp_path / "stick/file").symlink_to(place / "renamed-1")

    assert adopt(tmp_path / "stick", "mini", settings=known).taken == 0


def test_another_dataset_on_a_stick(
    here: Dataset, folder: Path, tmp_path: Path, settings: Settings
) -> None:
    stick = shutil.copytree(here.folder, tmp_path / "stick", symlinks=True)
    other = load_settings(home=tmp_path / "other-home", offline=True)
    add(folder, settings=other)
    shutil.rmtree(folder / "deep")

    came = adopt(stick, "mini", settings=other)

    assert (came.taken, came.missing) == (3, ())
    assert not [name for name in came.unknown if name.startswith(".git/")]


def test_one_content_under_two_names(tmp_path: Path, island: Settings) -> None:
    folder = write_package(tmp_path / "mini", {"a.csv": b"same\n", "b.txt": b"same\n"})
    add(folder, settings=island)
    shutil.rmtree(folder)
    (tmp_path / "one").write_bytes(b"same\n")

    came = adopt(tmp_path / "one", "mini", settings=island)
    data = dataset.get(catalog.resolve("mini", island.home), island)

    assert (came.taken, came.missing) == (1, ())
    assert (data.folder / "data/b.txt").read_bytes() == b"same\n"


def test_nothing_there(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="not there"):
        adopt(tmp_path / "absent", settings=settings)


def test_a_site_cache_is_not_written(known: Settings, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir(mode=0o555)

    came = adopt(_scatter(tmp_path / "stick"), "mini", settings=replace(known, site=site))

    assert came.taken == 3
    assert not list(site.iterdir())
