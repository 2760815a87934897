"""Names that appear when the thing is whole: locks, flushed writes, stamps of hashed files.

The protocol (write beside, check, flush, rename, flush the folder) is the one that databases use;
its order is what keeps a killed or powerless machine from showing a half-written file as a whole
one. POSIX only.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scibench_data.errors import LockedError, SpaceError

if TYPE_CHECKING:
    import filelock

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PLACE = {errno.ENOTDIR, errno.ENAMETOOLONG}  # a file where a folder should be
_WRITE_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG} | _FULL | _NO_PLACE


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a refused write below `path` into a `SpaceError` that says why.

    Raises
    ------
    SpaceError
        The disk is full, over quota, read-only, not ours to write, or has no such place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_REFUSED:
            raise
        where = error.filename or path
        cure = "make it writable or choose another place with SCIBENCH_DATA_HOME"
        if error.errno in _FULL:
            cure = "free some space"
        elif error.errno in _NO_PLACE:
            cure = "choose another place with SCIBENCH_DATA_HOME"
        message = f"{where}: {error.strerror}; {cure}"
        raise SpaceError(message) from error


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; a file in its place is told like one further up."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        code = errno.ENOTDIR
        raise NotADirectoryError(code, os.strerror(code), str(path)) from error


# --- locks ----------------------------------------------------------------------------------------

_QUIET = 2.0  # how long is waited before anybody is told [s]
_NOTE_BYTES = 4096


@dataclass(frozen=True)
class _Holder:
    """What a lock file says of the process that took the lock; it may have died since."""

    pid: int
    host: str
    since: float
    work: str

    def __str__(self) -> str:
        age = max(0.0, time.time() - self.since)
        here = (self.pid, self.host) == (os.getpid(), os.uname().nodename)
        who = "another thread of this process" if here else f"process {self.pid} on {self.host}"
        return f"{who} for {age:.0f} s" + (f" ({self.work})" if self.work else "")

    @classmethod
    def read(cls, path: Path) -> "_Holder | None":
        """Read the note in a lock file; None where there is none or it is damaged."""
        try:
            with open_regular(path) as file:
                pid, host, since, work = json.loads(file.read(_NOTE_BYTES))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        typed = isinstance(pid, int) and isinstance(since, int | float)
        return cls(pid, str(host)[:64], since, str(work)[:100]) if typed else None


def holders(path: Path) -> list[int]:
    """List the processes of this machine that hold a lock on the file `path` now.

    Empty where nobody does and where the system doesn't tell. Format: proc_locks(5).
    """
    try:
        look = path.stat()
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    place = f"{os.major(look.st_dev):02x}:{os.minor(look.st_dev):02x}:{look.st_ino}"
    rows = [line.split() for line in lines]
    held = {int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == place}
    return sorted(pid for pid in held if pid > 0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _holder(path: Path) -> str:
    """Say who holds a lock that is held: a note of a process that has died is not quoted."""
    note, pids = _Holder.read(path), holders(path)
    host = os.uname().nodename
    if note and note.host == host:
        right = note.pid in pids if pids else _is_alive(note.pid)
    else:
        right = not pids  # on another machine, which can't be asked
    if note and right:
        return str(note)
    return f"process {pids[0]} on {host}" if pids else "another process"


def _sign(path: Path, note: bytes) -> None:
    """Write into a lock file that is held; the lock holds without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(descriptor, note)
        finally:
            os.close(descriptor)


def _acquire(
    held: "filelock.BaseFileLock", path: Path, timeout: float, told: Callable[[str], None] | None
) -> None:
    import filelock

    with contextlib.suppress(filelock.Timeout):
        held.acquire(timeout=min(timeout, _QUIET))
        return
    if timeout > _QUIET:
        if told:
            told(f"waiting for {_holder(path)}, which holds {path.name}")
        with contextlib.suppress(filelock.Timeout):
            held.acquire(timeout=timeout - _QUIET)
            return
    message = f"{path}: held by {_holder(path)}, waited {timeout:g} s; wait for it or end it"
    raise LockedError(message)


@contextlib.contextmanager
def lock(
    path: Path,
    timeout: float = 3600.0,
    *,
    work: str = "",
    told: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; wait up to `timeout` for another process, 0 does not wait. [s]

    The file is never removed; the operating system frees the lock when its holder dies. While it is
    held the file says by whom, for the messages of those who wait.

    Parameters
    ----------
    work
        What the lock is taken for, in a few words.
    told
        Is called once, with who holds the lock, where this takes longer than two seconds.

    Raises
    ------
    LockedError
        Another process still held the lock after `timeout`; the message names it.
    SpaceError
        The lock file can't be written.
    """
    import filelock

    with disk_errors(path):
        _make_folder(path.parent)
        held = filelock.FileLock(path, fallback_to_soft=False)
        _acquire(held, path, timeout, told)
    try:
        note = [os.getpid(), os.uname().nodename, time.time(), work]
        _sign(path, json.dumps(note).encode())
        yield
    finally:
        _sign(path, b"")
        held.release()


# --- files ----------------------------------------------------------------------------------------


def flush_file(path: Path) -> None:
    """Force the bytes of a file, or the entries of a folder, onto the disk.

    Links are followed: a home may be a link to a bigger disk.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_flush(descriptor: int) -> None:
    """Have the system begin to write an open file to the disk, so that flushing it waits less.

    Only a hint, by Linux's sync_file_range(2): nothing is promised before the file is flushed.
    """
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin:
        write = 2  # SYNC_FILE_RANGE_WRITE; from 0 for 0 bytes means all of it
        begin(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(write))


def flush_filesystem(path: Path) -> None:
    """Force everything written to the file system of `path` onto the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that is either absent or complete, and on the disk when this returns.

    Raises
    ------
    FileExistsError
        `path` exists and `replace` is false.
    SpaceError
        The disk refuses.
    """
    with disk_errors(path):
        _make_folder(path.parent)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                beside.replace(path)
            else:
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        flush_file(path.parent)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a link, a pipe or a device is an `OSError`, never a wait."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a regular file, lower-case hex.

    Raises
    ------
    OSError
        `path` can't be read, or is a link, a pipe or a device: those could lead elsewhere or never
        end.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Delete a folder, write-protected annex objects included; of a link, only the link.

    What a process that is just ending still changes in it is left for the next time.
    """
    if path.is_symlink():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(folder, 0o700)  # noqa: PTH101  (os.walk gives strings)
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is gone afterwards, whatever happens; only a kill leaves it."""
    remove_tree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove_tree(folder)


@dataclass(frozen=True)
class Stamp:
    """What a file looked like when its bytes were hashed.

    The time is that of the last change of the inode: unlike the time of the last write it can't be
    set back.
    """

    size: int
    inode: int
    ctime_ns: int
    sha256: str

    def still(self, path: Path) -> bool:
        """Tell whether `path` looks as it did when it was hashed."""
        try:
            now = path.lstat()
        except OSError:
            return False
        return (now.st_size, now.st_ino, now.st_ctime_ns) == (self.size, self.inode, self.ctime_ns)


def stamp(path: Path, sha256: str | None = None) -> Stamp:
    """Note size, inode and time of a file and its SHA-256, hashed now where it isn't known.

    The look is taken before the hash, so a change during hashing shows later.
    """
    look = path.lstat()
    return Stamp(look.st_size, look.st_ino, look.st_ctime_ns, sha256 or sha256_file(path))


def read_stamps(path: Path) -> dict[str, Stamp]:
    """Read a stamp file; one that is absent or damaged counts as empty: all is hashed again."""
    try:
        entries = json.loads(path.read_bytes())
        return {name: Stamp(*values) for name, values in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def write_stamps(path: Path, stamps: dict[str, Stamp]) -> None:
    """Write a stamp file, whole."""
    entries = {name: [s.size, s.inode, s.ctime_ns, s.sha256] for name, s in sorted(stamps.items())}
    write_whole(path, json.dumps(entries).encode(), replace=True)
