"""Members come out whole under the caller's names; what hostile archives try is told plainly."""

import bz2
import gzip
import hashlib
import io
import lzma
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scibench_data.errors import IntegrityError, SpaceError
from scibench_data.getting import archives
from scibench_data.getting.archives import Member, extract, members

FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)) * 5_000, "empty": b""}
SUFFIXES = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def tar_bytes(entries: Iterable[tuple[tarfile.TarInfo, bytes]], **options: int) -> bytes:
    """Write a tar with exactly these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Make a header with any lie in it."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def zip_bytes(files: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files:
            opened.writestr(name, content)
    return buffer.getvalue()


def packed(suffix: str, files: dict[str, bytes]) -> bytes:
    """Pack files as `suffix` says, with a folder before them."""
    if suffix == "zip":
        return zip_bytes([("deep/", b""), *files.items()])
    folder = entry("deep", type=tarfile.DIRTYPE)
    plain = tar_bytes([folder, *(entry(name, content) for name, content in files.items())])
    squeeze: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes,
        "tar.gz": gzip.compress,
        "tar.bz2": bz2.compress,
        "tar.xz": lzma.compress,
    }
    return squeeze[suffix](plain)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    """Return a function that writes an archive."""

    def write(content: bytes) -> Path:
        path = tmp_path / "archive"
        path.write_bytes(content)
        return path

    return write


Put = Callable[[bytes], Path]


def refused(archive: Path, name: str = "a.txt", sizes: dict[str, int] | None = None) -> str:
    """Extract one member in vain; nothing may be left of it, wherever."""
    before = {path for path in archive.parent.rglob("*") if path.is_file()}
    with pytest.raises(IntegrityError) as caught:
        extract(archive, {name: archive.parent / "x"}, sizes=sizes or {})
    assert {path for path in archive.parent.rglob("*") if path.is_file()} == before
    return str(caught.value)


# --- what should work -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_are_listed_and_come_out_under_the_callers_names(
    put: Put, tmp_path: Path, suffix: str
) -> None:
    archive = put(packed(suffix, FILES))
    ticks: list[int] = []

    contents = members(archive)
    digests = extract(
        archive,
        {"deep/er/b.bin": tmp_path / "one", "empty": tmp_path / "two"},
        sizes={"deep/er/b.bin": len(FILES["deep/er/b.bin"])},
        tick=ticks.append,
    )

    assert contents.members == tuple(Member(name, len(data)) for name, data in FILES.items())
    assert not contents.left_out
    assert (tmp_path / "one").read_bytes() == FILES["deep/er/b.bin"]
    assert (tmp_path / "two").read_bytes() == b""
    assert digests == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in ("deep/er/b.bin", "empty")
    }
    assert sum(ticks) == len(FILES["deep/er/b.bin"])


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,9}x(/[a-z0-9]{1,120}x){0,2}", fullmatch=True),
        st.binary(max_size=2000) | st.integers(510, 1026).map(bytes),
        max_size=6,
    ),
    data=st.data(),
)
def test_any_choice_of_members_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    files: dict[str, bytes],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    archive = folder / "archive"
    archive.write_bytes(packed(suffix, files))
    chosen = data.draw(st.lists(st.sampled_from(sorted(files)), unique=True)) if files else []
    wanted = {name: folder / f"out{i}" for i, name in enumerate(chosen)}

    listed = members(archive)
    extract(archive, wanted)

    assert {m.path: m.bytes for m in listed.members} == {n: len(c) for n, c in files.items()}
    assert all(path.read_bytes() == files[name] for name, path in wanted.items())


def test_a_leading_dot_and_slash_counts_for_nothing(put: Put, tmp_path: Path) -> None:
    archive = put(tar_bytes([entry("./a.txt", b"alpha")]))

    digests = extract(archive, {"a.txt": tmp_path / "x"})

    assert members(archive).members == (Member("a.txt", 5),)
    assert list(digests) == ["a.txt"]
    assert extract(archive, {"./a.txt": tmp_path / "y"}) == {"./a.txt": digests["a.txt"]}


# --- names and kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../a.txt", "'..'"),
        ("/etc/passwd", "absolute"),
        ("a/../../b", "'..'"),
        (".git/hooks/post-checkout", "starts with '.'"),
        ("a\\b", "one of"),
        ("con.txt", "Windows device"),
        ("a\x1b[2Jb", "can't be printed"),
    ],
)
@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_hostile_names_are_left_out_and_told(put: Put, suffix: str, name: str, why: str) -> None:
    contents = members(put(packed(suffix, {name: b"evil", "a.txt": b"good"})))

    assert contents.members == (Member("a.txt", 4),)
    assert why in contents.left_out[name]


def test_a_hostile_name_is_still_only_a_name(put: Put, tmp_path: Path) -> None:
    extract(put(packed("tar", {"../../evil": b"evil"})), {"../../evil": tmp_path / "x"})

    assert (tmp_path / "x").read_bytes() == b"evil"
    assert not (tmp_path.parent.parent / "evil").exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b.txt"}, "a link"),
        ({"type": tarfile.CHRTYPE}, "a device or pipe"),
        ({"type": tarfile.FIFOTYPE}, "a device or pipe"),
        ({"type": b"Z"}, "of a kind of its own"),
    ],
)
def test_links_and_devices_of_a_tar_are_no_files(
    put: Put, fields: dict[str, Any], why: str
) -> None:
    archive = put(tar_bytes([entry("b.txt", b"b"), entry("a.txt", **fields)]))

    assert members(archive).left_out == {"a.txt": why}
    assert f"'a.txt' is {why}, not a plain file" in refused(archive)


def test_links_and_encrypted_members_of_a_zip_are_no_files(put: Put) -> None:
    link = zipfile.ZipInfo("a.txt")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = put(zip_bytes([(link, b"/etc/passwd")]))
    assert "is a link" in refused(archive)

    locked = bytearray(zip_bytes([("a.txt", b"alpha")]))
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    assert "is encrypted" in refused(put(bytes(locked)))


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_name_that_is_there_twice_is_refused(put: Put, suffix: str) -> None:
    if suffix == "tar":
        archive = put(tar_bytes([entry("a.txt", b"one"), entry("./a.txt", b"two")]))
    else:
        with pytest.warns(UserWarning, match="Duplicate"):
            archive = put(zip_bytes([("a.txt", b"one"), ("a.txt", b"two")]))

    assert members(archive).members == ()
    assert members(archive).left_out == {"a.txt": "a name that is there twice"}
    assert "'a.txt' is in it twice" in refused(archive)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_missing_member_is_named(put: Put, suffix: str) -> None:
    assert "'b.txt' is not in it" in refused(put(packed(suffix, FILES)), "b.txt")


# --- sizes and bombs ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_another_size_than_expected_is_refused_before_a_byte(put: Put, suffix: str) -> None:
    said = refused(put(packed(suffix, FILES)), sizes={"a.txt": 6})

    assert "'a.txt' has 5 bytes, expected 6" in said


@pytest.mark.parametrize("lie", [3, 7])
def test_a_zip_that_lies_about_a_size_is_refused(put: Put, lie: int) -> None:
    content = bytearray(zip_bytes([("a.txt", b"alpha")]))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", lie)

    said = refused(put(bytes(content)))

    assert "a.txt" in said
    assert "Bad CRC" in said or "says 7 bytes and has only 5" in said


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_bomb_is_refused_without_filling_memory_or_disk(
    put: Put, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    archive = put(packed(suffix, {"bomb": bytes(30_000_000), "a.txt": b"alpha"}))
    monkeypatch.setattr(archives, "SMALL", 2**20)
    monkeypatch.setattr(archives, "MAX_RATIO", 20)

    tracemalloc.start()
    said = refused(archive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert "it swells to" in said
    assert peak < 2**24  # xz keeps 8 MiB to look back at
    with pytest.raises(IntegrityError, match="it swells to"):
        members(archive)


def test_a_zip_that_names_the_same_bytes_again_and_again_is_refused(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zip_bytes([("a.txt", bytes(2**20))])
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = b"".join(
        content[start:end].replace(b"a.txt", f"{i:05}".encode()) for i in range(1000)
    )
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(directory), start, 0)
    monkeypatch.setattr(archives, "SMALL", 2**20)

    with pytest.raises(IntegrityError, match="it swells to 1048576000 bytes"):
        members(put(content[:start] + directory + tail))


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_too_many_members_are_refused(
    put: Put, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)

    with pytest.raises(IntegrityError, match="over 3 members"):
        members(put(packed(suffix, {f"{i}x": b"" for i in range(4)})))


def test_a_header_of_megabytes_is_refused(put: Put) -> None:
    info, content = entry("a.txt", b"alpha", pax_headers={"comment": "x" * 3_000_000})

    archive = put(gzip.compress(tar_bytes([(info, content)], format=tarfile.PAX_FORMAT)))

    assert "a header of" in refused(archive)


def test_a_directory_of_megabytes_is_refused(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_DIRECTORY", 100)

    assert "its directory has over 100 bytes" in refused(put(packed("zip", FILES)))


def test_headers_before_headers_do_not_overflow_the_stack(put: Put) -> None:
    one = tar_bytes([entry("x", b"15 comment=abcd\n", type=tarfile.XHDTYPE)])[:1024]

    assert "damaged" in refused(put(one * 3000 + tar_bytes([entry("a.txt", b"alpha")])))


def test_a_member_of_negative_size_does_not_turn_in_circles(put: Put) -> None:
    header = bytearray(tar_bytes([entry("a.txt", b"alpha")]))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])

    assert "negative size" in refused(put(bytes(header)))
    with pytest.raises(IntegrityError, match="damaged"):
        members(put(bytes(header)))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_an_archive_that_is_cut_short_is_refused(put: Put, suffix: str, share: float) -> None:
    content = packed(suffix, FILES)

    archive = put(content[: int(len(content) * share)])

    assert refused(archive, "deep/er/b.bin").startswith("archive: ")
    with pytest.raises(IntegrityError):
        members(archive)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_the_checksum_behind_the_last_member_is_heeded(put: Put, suffix: str) -> None:
    content = bytearray(packed(suffix, FILES))
    content[-8 if suffix == "tar.gz" else -12] ^= 1

    assert "damaged" in refused(put(bytes(content)))


def test_a_tar_that_is_cut_between_two_members_is_refused(put: Put) -> None:
    content = tar_bytes([entry("a.txt", b"alpha"), entry("b.txt", b"beta")])

    assert "cut short" in refused(put(content[:1024]))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><title>log in</title>", bytes(9)])
def test_what_is_no_archive_is_refused(put: Put, content: bytes) -> None:
    assert "neither a tar nor a zip archive" in refused(put(content))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_never_passes_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    files = {"a.txt": b"alpha" * 300, "b.txt": b"beta" * 300}
    content = bytearray(packed(suffix, files))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive = tmp_path_factory.mktemp("bad") / "archive"
    archive.write_bytes(content)
    target = archive.with_name("x")

    try:
        members(archive)
        digest = extract(archive, {"a.txt": target})["a.txt"]
    except IntegrityError:
        assert not target.exists()
    else:  # a plain tar has no checksum of its content, so the promised one must decide
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
        assert suffix == "tar" or target.read_bytes() == files["a.txt"]


# --- places ---------------------------------------------------------------------------------------


def test_what_is_already_there_is_not_overwritten(put: Put, tmp_path: Path) -> None:
    mine = tmp_path / "x"
    mine.write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        extract(put(packed("tar", FILES)), {"empty": tmp_path / "y", "a.txt": mine})

    assert mine.read_bytes() == b"mine"
    assert not (tmp_path / "y").exists()


def test_a_link_where_a_member_should_go_is_not_followed(put: Put, tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FileExistsError):
        extract(put(packed("zip", FILES)), {"a.txt": tmp_path / "x"})

    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_refuses_is_told_as_such(put: Put, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SpaceError, match="Not a directory"):
        extract(put(packed("tar", FILES)), {"a.txt": tmp_path / "file" / "x"})
