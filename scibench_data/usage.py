"""Who uses what: nothing that a process reads is deleted, and what nobody read for long goes first.

::

    home/usage/datasets/<name>/<version>   locked, shared, by every process that reads the dataset;
    home/usage/stores/<name>-<id>          the time of the file is that of the last use

The files stay empty and are never removed. The locks are flock(2)'s: the operating system frees
them when their holder dies. Where the cache is not ours to write, nothing is noted and no error
raised: what can't be written can't be removed either.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scibench_data import durable
from scibench_data.errors import LockedError

_PATIENCE = 10.0  # a removal holds its lock for one rename [s]
_POLL = 0.02  # [s]
_KEPT: dict[Path, int] = {}  # descriptors whose locks end with this process
_GUARD = threading.Lock()


def _marker(home: Path, folder: Path) -> Path | None:
    """Return the file that stands for `folder`; None outside of the cache, or without one."""
    if not home.is_dir():
        return None
    try:
        return home / "usage" / folder.relative_to(home)
    except ValueError:
        return None


def _open(path: Path | None) -> int | None:
    """Open a marker, made if need be; None where it is not there and can't be made."""
    if path is None:
        return None
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.suppress(OSError):
        return os.open(path, flags | os.O_RDONLY)
    return None


def _flock(descriptor: int, kind: int) -> bool:
    """Take a lock without waiting; tell whether it is ours."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int, kind: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not _flock(descriptor, kind):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def _share(home: Path, folder: Path) -> int | None:
    """Lock a marker, shared, and note the time; None where that can't be done."""
    path = _marker(home, folder)
    descriptor = _open(path)
    if path is None or descriptor is None:
        return None
    with contextlib.suppress(OSError):  # another user's file
        os.utime(descriptor)
    try:
        shared = _wait(descriptor, fcntl.LOCK_SH, _PATIENCE)
    except OSError:  # a file system without locks
        shared = True
    if not shared:
        os.close(descriptor)
        message = f"{folder}: {_users(path)} removes it; wait for that and get it again"
        raise LockedError(message)
    return descriptor


def _users(path: Path) -> str:
    """Name the processes that hold a marker, as far as the system tells."""
    ours = os.getpid()
    names = ["this process" if pid == ours else f"process {pid}" for pid in durable.holders(path)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or "another process"


@contextlib.contextmanager
def using(home: Path, folder: Path) -> Iterator[None]:
    """Keep a dataset or a store of the cache at `home` from being removed meanwhile.

    Look whether `folder` is there only inside: it may have gone just before.

    Raises
    ------
    LockedError
        It is being removed, and that takes unusually long.
    """
    descriptor = _share(home, folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def keep(home: Path, folder: Path) -> bool:
    """Do as `using` until this process ends; tell whether `folder` is there.

    This is for lazy arrays, which read at times that nobody knows.
    """
    path = _marker(home, folder)
    with _GUARD:
        if path is not None and path not in _KEPT:
            descriptor = _share(home, folder)
            if descriptor is not None:
                _KEPT[path] = descriptor
    return os.path.lexists(folder)


@contextlib.contextmanager
def idle(home: Path, folder: Path, *, ours: bool = False) -> Iterator[None]:
    """Rename or delete a dataset or a store while no process reads it, and none can begin to.

    Parameters
    ----------
    ours
        What this process itself holds by `keep` doesn't count: it asked for the removal.

    Raises
    ------
    LockedError
        A process reads it; the message names it.
    """
    path = _marker(home, folder)
    kept = _let_go(path) if ours and path is not None else False
    descriptor = _open(path)
    if path is None or descriptor is None:
        yield
        return
    try:
        if not _wait(descriptor, fcntl.LOCK_EX, 2 * _POLL):  # `in_use` may be looking just now
            message = f"{folder}: in use by {_users(path)}; end it, or remove this later"
            if kept:
                keep(home, folder)
            raise LockedError(message)
        yield
    finally:
        os.close(descriptor)


def _let_go(path: Path) -> bool:
    with _GUARD:
        descriptor = _KEPT.pop(path, None)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def in_use(home: Path, folder: Path) -> bool:
    """Tell whether a process reads a dataset or a store just now."""
    path = _marker(home, folder)
    if path is None:
        return False
    return is_locked(path)


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock, shared or not, on a file; nothing is made or changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # locks of this file system need more than reading
        return False
    finally:
        os.close(descriptor)


def touch(home: Path, folder: Path) -> None:
    """Note that a dataset or a store is used now."""
    descriptor = _open(_marker(home, folder))
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        os.close(descriptor)


def last_used(home: Path, folder: Path) -> float:
    """Return when a dataset or a store was last used; else when its folder changed. [s]

    Seconds since 1970; 0 where there is neither.
    """
    path = _marker(home, folder)
    for place in (path, folder):
        if place is not None:
            with contextlib.suppress(OSError):
                return place.lstat().st_mtime
    return 0.0
