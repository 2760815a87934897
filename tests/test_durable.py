"""Files appear whole or not at all, locks exclude and die with their holder, stamps see changes."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scibench_data import durable
from scibench_data.errors import LockedError, SpaceError

# --- locks ----------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from scibench_data import durable
with durable.lock(Path(sys.argv[1]), work="get cryoem"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_excludes_other_processes_and_is_freed_when_its_holder_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "locks" / "a.lock"
    process = holder(path)

    held = rf"a\.lock: held by process {process.pid} on .* for \d s \(get cryoem\), waited 0\.05 s"
    with pytest.raises(LockedError, match=held), durable.lock(path, timeout=0.05):
        pytest.fail("two held it")
    process.kill()
    process.communicate()
    start = time.monotonic()
    with durable.lock(path):
        waited = time.monotonic() - start

    assert waited < 1
    assert path.exists()


def test_a_long_wait_is_told_once_and_no_wait_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_QUIET", 0.05)
    path, told = tmp_path / "a.lock", list[str]()
    process = holder(path)

    with (
        pytest.raises(LockedError, match=r"waited 0\.3 s"),
        durable.lock(path, 0.3, told=told.append),
    ):
        pytest.fail("two held it")
    start = time.monotonic()
    with pytest.raises(LockedError, match="waited 0 s"), durable.lock(path, 0, told=told.append):
        pytest.fail("two held it")
    at_once = time.monotonic() - start
    process.kill()
    process.communicate()

    assert len(told) == 1
    assert told[0].startswith(f"waiting for process {process.pid} on ")
    assert told[0].endswith(" s (get cryoem), which holds a.lock")
    assert at_once < 0.05


@pytest.mark.parametrize("quiet", [0.05, 10])
def test_a_lock_that_is_freed_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: float
) -> None:
    monkeypatch.setattr(durable, "_QUIET", quiet)
    process = holder(tmp_path / "a.lock")
    threading.Timer(0.2, process.kill).start()

    with durable.lock(tmp_path / "a.lock", 30):
        process.communicate()


def test_the_note_of_a_dead_process_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    process = holder(path)
    process.kill()
    process.communicate()
    stale = path.read_bytes()

    with durable.lock(path):
        path.write_bytes(stale)
        with pytest.raises(LockedError) as caught, durable.lock(path, 0):
            pytest.fail("two held it")

    assert str(process.pid).encode() in stale
    assert str(process.pid) not in str(caught.value)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "note", [b"", b"[", b"[1]", b"{}", b"\xff", b'["a", 1, "b", ""]', b"[" * 9999]
)
def test_a_damaged_note_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: bytes
) -> None:
    monkeypatch.setattr(durable, "holders", lambda _path: [])
    path = tmp_path / "a.lock"

    with durable.lock(path):
        path.write_bytes(note)
        with pytest.raises(LockedError, match="held by another process"), durable.lock(path, 0):
            pytest.fail("two held it")


def test_a_holder_on_another_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "holders", lambda _path: [])
    path = tmp_path / "a.lock"

    with durable.lock(path):
        path.write_text(f'[1, "node7", {time.time() - 60}, "get"]')
        with (
            pytest.raises(LockedError, match=r"process 1 on node7 for 6\d s \(get\)"),
            durable.lock(path, 0),
        ):
            pytest.fail("two held it")


def test_a_lock_excludes_threads(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with durable.lock(tmp_path / "a.lock"):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))

    assert most == 1


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), durable.lock(tmp_path / "a.lock"):
        raise KeyError

    with durable.lock(tmp_path / "a.lock", timeout=0.05):
        pass


def test_an_error_of_the_work_inside_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), durable.lock(tmp_path / "a.lock"):
        raise PermissionError(errno.EACCES, "raw file")


def test_a_lock_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError), durable.lock(tmp_path / "a.lock", timeout=0.05):  # noqa: PT011
        pytest.fail("held through a link")

    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_is_a_file_gives_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "locks").write_bytes(b"")

    refused = r"locks: Not a directory; choose another place"
    with pytest.raises(SpaceError, match=refused), durable.lock(tmp_path / "locks" / "a.lock"):
        pytest.fail("held")
    with pytest.raises(SpaceError, match=refused):
        durable.write_whole(tmp_path / "locks" / "a", b"1")


# --- whole files ----------------------------------------------------------------------------------


def test_a_file_is_written_once_or_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"

    durable.write_whole(path, b"1")
    with pytest.raises(FileExistsError):
        durable.write_whole(path, b"2")
    kept = path.read_bytes()
    durable.write_whole(path, b"3", replace=True)

    assert (kept, path.read_bytes()) == (b"1", b"3")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "link", "replace"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_refused_step_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, replace: bool
) -> None:
    path = tmp_path / "a"
    if replace:
        path.write_bytes(b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    if (step, replace) in {("link", True), ("replace", False)}:
        durable.write_whole(path, b"new", replace=replace)  # not a step of this way
        return

    with pytest.raises(SpaceError, match="No space left on device; free some space"):
        durable.write_whole(path, b"new", replace=replace)

    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == (
        [("a", b"old")] if replace else []
    )


def test_threads_of_one_process_write_the_same_file_at_once(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(8)]

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(
                pool.map(
                    lambda content: durable.write_whole(tmp_path / "a", content, replace=True),
                    contents,
                )
            )

    assert (tmp_path / "a").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_a_link_can_be_written_and_flushed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    home = tmp_path / "home"
    home.symlink_to("disk", target_is_directory=True)

    durable.write_whole(home / "a", b"1")
    durable.flush_file(home)
    durable.flush_filesystem(home)

    assert (tmp_path / "disk" / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable or choose another place"),
        (errno.EACCES, "make it writable or choose another place"),
        (errno.ENOTDIR, "choose another place"),
        (errno.ENAMETOOLONG, "choose another place"),
    ],
)
def test_a_refusal_says_where_why_and_what_to_do(tmp_path: Path, code: int, cure: str) -> None:
    with pytest.raises(SpaceError) as caught, durable.disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))

    assert str(caught.value).startswith(f"{tmp_path}: {os.strerror(code)}; {cure}")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), durable.disk_errors(tmp_path):
        (tmp_path / "absent").read_bytes()


# --- hashes and stamps ----------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"1")
    path.symlink_to(target)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_pipe, _link, _device, Path.mkdir])
def test_only_regular_files_are_hashed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")

    with pytest.raises(OSError, match="not a regular file"):
        durable.sha256_file(tmp_path / "a")


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)

    assert durable.sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert durable.stamp(tmp_path / "a") == durable.stamp(
        tmp_path / "a", hashlib.sha256(content).hexdigest()
    )


def _write_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _exchange(path: Path) -> None:
    before = path.stat()
    other = path.with_name("b")
    other.write_bytes(b"2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        _write_and_set_the_time_back,
        _exchange,
        Path.unlink,
        lambda path: path.write_bytes(b"2"),
        lambda path: path.write_bytes(b"12"),
    ],
)
def test_a_stamp_sees_every_change(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    stamp = durable.stamp(path)
    assert stamp.still(path)
    time.sleep(0.02)  # longer than the clock of the file system ticks

    change(path)

    assert not stamp.still(path)


def test_stamps_come_back_and_a_damaged_list_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    stamps = {"a": durable.stamp(tmp_path / "a")}
    path = tmp_path / "stamps.json"

    durable.write_stamps(path, stamps)
    read = durable.read_stamps(path)
    damaged = []
    for content in (b"", b"[]", b"1", b'{"a": 1}', b'{"a": [1, 2]}', b"\xff"):
        path.write_bytes(content)
        damaged.append(durable.read_stamps(path))

    assert read == stamps
    assert damaged == [{}] * 6
    assert durable.read_stamps(tmp_path / "absent") == {}


def test_a_write_protected_tree_is_removed_and_what_it_links_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_bytes(b"1")
    folder = tmp_path / "tree" / "object"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    (folder / "a").chmod(0o444)
    folder.chmod(0o555)

    durable.remove_tree(tmp_path / "tree")

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "a").read_bytes() == b"1"


def test_of_a_link_to_a_tree_only_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o555)
    (tmp_path / "link").symlink_to("kept", target_is_directory=True)

    durable.remove_tree(tmp_path / "link")

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o555
