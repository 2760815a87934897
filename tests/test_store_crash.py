"""Killed at any call, refused by the disk at any call: a store is absent or whole.

Run as a program, this file is the victim: it imports everything once and forks for each trial.
Calls are counted, not timed, so that every step of the protocol is hit.
"""

import builtins
import errno
import gc
import importlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from scibench_data.errors import ScibenchError, SpaceError
from scibench_data.storing import digest, shard, store, writing
from scibench_data.storing.staging import Staging

WATCHED = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")
LAYOUT = store.Layout(chunk_bytes=512, shard_bytes=2048, codec="none")
OK, REFUSED, FAILED = 0, 3, 4


def dataset() -> xr.Dataset:
    """Return three files of images and one of a coordinate."""
    images = np.arange(40 * 64, dtype=np.int16).reshape(40, 8, 8)
    return xr.Dataset(
        {"images": (("particle", "y", "x"), images)},
        {"defocus": ("particle", np.linspace(1, 2, 40), {"units": "Angstrom"})},
    )


def build(home: Path, jobs: int = 1) -> store.Store:
    return store.materialize(dataset, home, "a", {"is": "a"}, layout=LAYOUT, jobs=jobs)


# --- the victim -----------------------------------------------------------------------------------


class _Saboteur:
    """Counts what changes the disk below `home`; at number `at` it does harm, once."""

    def __init__(self, home: Path, at: int, harm: Callable[[str], None]) -> None:
        self.home, self.at, self.harm, self.calls = str(home), at, harm, 0
        for name in WATCHED:
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._open = io.open
        io.open = builtins.open = self._open_counted

    def count(self, name: str) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.harm(name)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.count(name)
            return call(*arguments, **more)

        return counted

    def _open_counted(self, file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode in {"r", "rb"} or not str(file).startswith(self.home):
            return self._open(file, mode, *arguments, **more)
        self.count("open")
        return _TornFile(self._open(file, mode, *arguments, **more), self)


class _TornFile:
    """A file whose writes are counted, and harmed in the middle."""

    def __init__(self, file: Any, saboteur: _Saboteur) -> None:
        self._file, self._saboteur = file, saboteur

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_TornFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        half = len(content) // 2
        written = self._file.write(content[:half])
        if self._saboteur.calls + 1 == self._saboteur.at:
            self._file.flush()
        self._saboteur.count("write")
        return int(written + self._file.write(content[half:]))


def _forked(action: Callable[[], int]) -> int:
    """Run in a child; return its exit code, negative if it was killed."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            code = action()
        except SpaceError:
            code = REFUSED
        except OSError:
            code = FAILED
        except BaseException as error:  # noqa: BLE001  (the parent must hear of it)
            print(repr(error), file=sys.stderr, flush=True)  # noqa: T201
            code = 9
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _note_finished(home: Path) -> None:
    """Keep a list of finished files that no crash of `home` can touch."""
    enter = Staging.enter

    def noted(staging: Staging, written: shard.Written) -> None:
        enter(staging, written)
        log = os.open(f"{home}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, written.path.encode() + b"\n")
        os.close(log)

    setattr(Staging, "enter", noted)  # noqa: B010


def _finished(home: Path) -> set[str]:
    log = Path(f"{home}.log")
    return set(log.read_text().split()) if log.exists() else set()


def _attempt(home: Path, at: int, harm: Callable[[str], None]) -> int:
    def action() -> int:
        _note_finished(home)
        saboteur = _Saboteur(home, at, harm)
        build(home)
        return OK if saboteur.calls < at else 1  # 1: harmed, and nevertheless done

    return _forked(action)


def _recover(home: Path, expected: str) -> int:
    """Check what is there, finish it, check again; 0 if all is well."""

    def action() -> int:
        final = next(iter(home.glob("stores/*")), None)
        if final and {status for _, status, _ in store.check(final)} != {"holds"}:
            return 11
        written = []
        write = shard.write_shard

        def noted(values: Any, path: str, *more: Any, folder: Path) -> Any:
            written.append(path)
            return write(values, path, *more, folder=folder)

        setattr(writing, "write_shard", noted)  # noqa: B010  (mypy: not exported)
        done = build(home)
        if _finished(home) & set(written):
            return 12
        if done.digest != expected or store.check(done.folder)[-1][1] != "holds":
            return 13
        litter = [*(home / "staging").iterdir(), *done.folder.glob("**/*partial*")]
        return 14 if litter else OK

    return _forked(action)


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(at: int) -> Callable[[str], None]:
    code = errno.ENOSPC if at % 4 < 2 else errno.EIO

    def harm(_: str) -> None:
        raise OSError(code, os.strerror(code))

    return harm


def _each_call(
    scratch: Path, expected: str, harm_at: Callable[[int], Callable[[str], None]], step: int = 1
) -> Counter[str]:
    """Do harm at the first call, the second and so on until a run comes through unharmed."""
    count: Counter[str] = Counter()
    for at in itertools.count(1, step):
        home = scratch / str(at)
        code = _attempt(home, at, harm_at(at))
        if code == OK:
            return count
        count[f"harmed, exit {code}"] += 1
        count["final there" if list(home.glob("stores/*")) else "final absent"] += 1
        count[f"recovered, exit {_recover(home, expected)}"] += 1
    raise AssertionError


def _killed_twice(scratch: Path, expected: str) -> Counter[str]:
    """Kill at some calls, and kill the run that takes it up at some calls."""
    count: Counter[str] = Counter()
    for first, second in itertools.product(range(9, 112, 25), range(4, 112, 23)):
        home = scratch / f"{first}-{second}"
        _attempt(home, first, _die)
        if _attempt(home, second, _die) < 0:
            count["killed twice"] += 1
        count[f"recovered, exit {_recover(home, expected)}"] += 1
    return count


def _killed_in_time(scratch: Path, expected: str) -> Counter[str]:
    """Kill two threads at work at random moments."""
    count: Counter[str] = Counter()
    chance = random.Random(0)  # noqa: S311
    usual = 1.0
    for trial in range(20):
        home = scratch / str(trial)
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            _note_finished(home)
            build(home, 2)
            os._exit(OK)
        if trial:
            time.sleep(chance.uniform(0, usual))
            os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0:
            count["killed"] += 1
        else:
            usual = min(usual, time.perf_counter() - start)
        count[f"recovered, exit {_recover(home, expected)}"] += 1
    return count


def main(scratch: Path, trial: str) -> None:
    for name in ("dask.array", "google_crc32c", "numcodecs", "zarr.codecs"):
        importlib.import_module(name)  # now: a trial would import it anew; no thread starts here
    xr.backends.list_engines()
    dataset().chunk()
    gc.disable()  # collecting would copy every page that a fork shares
    digest.BLOCK_BYTES = 512
    expected = digest.logical_digest(dataset())
    trials: dict[str, Callable[[], Counter[str]]] = {
        "kill": lambda: _each_call(scratch, expected, lambda _: _die),
        "refuse": lambda: _each_call(scratch, expected, _refuse, 3),
        "twice": lambda: _killed_twice(scratch, expected),
        "time": lambda: _killed_in_time(scratch, expected),
    }
    print(json.dumps(trials[trial]()))  # noqa: T201


# --- the tests ------------------------------------------------------------------------------------


def sabotage(trial: str) -> dict[str, int]:
    """Run a trial in memory where there is such a file system: flushing costs nothing there."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        done = subprocess.run(
            [sys.executable, __file__, scratch, trial], check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    count: dict[str, int] = json.loads(done.stdout)
    return count


def test_killed_at_any_call_the_store_is_absent_or_whole_and_nothing_is_done_twice() -> None:
    count = sabotage("kill")

    kills = count.pop(f"harmed, exit {-signal.SIGKILL}")
    absent, there = count.pop("final absent"), count.pop("final there")
    assert kills > 80
    assert absent > there > 0
    assert count == {"recovered, exit 0": kills}


def test_refused_at_any_call_it_says_so_and_the_next_run_succeeds() -> None:
    count = sabotage("refuse")

    no_space, broken = count.pop(f"harmed, exit {REFUSED}"), count.pop(f"harmed, exit {FAILED}")
    let_go = count.pop(
        "harmed, exit 1", 0
    )  # a folder that is there, a folder not empty, the journal
    absent, there = count.pop("final absent"), count.pop("final there")
    assert min(no_space, broken) > 10
    assert let_go < 10
    assert absent > there > 0
    assert count == {"recovered, exit 0": no_space + broken + let_go}


def test_killed_while_it_is_taken_up_it_is_taken_up_again() -> None:
    count = sabotage("twice")

    assert count.pop("killed twice") > 10
    assert list(count) == ["recovered, exit 0"]


def test_killed_at_random_moments_with_two_threads_at_work() -> None:
    count = sabotage("time")

    assert count.pop("killed") > 0
    assert count == {"recovered, exit 0": 20}


def test_everything_is_on_the_disk_before_the_name_appears(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        order.append(("flushed", os.fstat(descriptor).st_ino))

    def noted_rename(source: Any, target: Any) -> None:
        rename(source, target)
        order.append(("named", os.stat(target).st_ino))  # noqa: PTH116

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)

    folder = build(home).folder

    named = order.index(("named", folder.stat().st_ino))
    before = {inode for what, inode in order[:named] if what == "flushed"}
    after = [inode for what, inode in order[named:] if what == "flushed"]
    everything = {path.stat().st_ino: path for path in [folder, *folder.rglob("*")]}
    assert not [path for inode, path in everything.items() if inode not in before]
    assert (home / "stores").stat().st_ino in after


def python(script: str, *arguments: Path) -> list[str]:
    """Run a script that has this module as `crash`; return what it printed."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}import test_store_crash as crash\n{script}", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


_QUOTA = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 1000, 3000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        crash.build(crash.Path(sys.argv[1]))
    except crash.SpaceError as error:
        print(error)
"""


def test_a_quota_is_a_space_error(home: Path) -> None:
    said = python(_QUOTA, home)

    assert len(said) == 3
    assert all("File too large; " in line for line in said)
    assert not list(home.glob("stores/*"))
    assert store.check(build(home).folder)[-1][1] == "holds"


_READ_ONLY = """
import ctypes, struct
libc, head = ctypes.CDLL(None), struct.pack("Ii", 0x20080522, 0)
sets = ctypes.create_string_buffer(24)
libc.capget(head, sets)  # even root shall be held by permissions: give up CAP_DAC_OVERRIDE
effective, *others = struct.unpack("6I", sets.raw)
libc.capset(head, struct.pack("6I", effective & ~2, *others))
home = crash.Path(sys.argv[1])
built = crash.build(home)
crash.store.open_store(built)
print(built.manifest_digest, built.verified)
try:
    crash.store.materialize(crash.dataset, home, "b", {}, layout=crash.LAYOUT)
except crash.SpaceError as error:
    print(error)
"""


@pytest.mark.parametrize("verified", ["stamps", "hashed"])
def test_a_read_only_home_serves_its_stores_and_refuses_new_ones(home: Path, verified: str) -> None:
    built = build(home)
    if verified == "hashed":
        (built.folder / "stamps.json").unlink()
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        first, second = python(_READ_ONLY, home)
    finally:
        for folder in folders:
            folder.chmod(0o755)

    assert first == f"{built.manifest_digest} {verified}"
    assert "make it writable" in second


def test_a_torn_or_foreign_journal_claims_nothing(home: Path) -> None:
    staging = Staging(folder=home / "staging" / "a", final=home / "stores" / "a", plan="p")
    written = shard.Written(path="x", size=1, sha256="0" * 64, leaves="")
    staging.folder.mkdir(parents=True)
    staging.enter(written)
    line = staging.journal.read_bytes()

    claims = {}
    for content in (line, line[:-20], line[:-20] + line, line.replace(b'"x"', b'"y"'), b"\0" * 99):
        staging.journal.write_bytes(content)
        claims[content] = staging._claims()

    assert list(claims.values()) == [[written], [], [written], [], []]
    other = Staging(folder=staging.folder, final=staging.final, plan="q")
    staging.journal.write_bytes(line)
    assert other._claims() == []


@pytest.fixture
def interrupted(home: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Stop at the second of three files; return what was finished."""
    written: set[str] = set()

    def failing(values: Any, path: str, *more: Any, folder: Path) -> Any:
        if len(written) == 2:
            message = "stop"
            raise ScibenchError(message)
        written.add(path)
        return shard.write_shard(values, path, *more, folder=folder)

    with monkeypatch.context() as patch:
        patch.setattr(digest, "BLOCK_BYTES", 512)
        patch.setattr(writing, "write_shard", failing)
        with pytest.raises(ScibenchError, match="stop"):
            build(home)
    monkeypatch.setattr(digest, "BLOCK_BYTES", 512)
    return written


@pytest.mark.parametrize("harm", [None, "changed", "gone", "linked"])
def test_only_what_is_not_finished_is_done_again(
    home: Path, interrupted: set[str], harm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = next(path for path in (home / "staging").iterdir() if path.is_dir())
    victim = min(interrupted)
    if harm == "changed":
        (staging / victim).write_bytes(b"0" * (staging / victim).stat().st_size)
    elif harm:
        (staging / victim).rename(home / "elsewhere")
        if harm == "linked":
            (staging / victim).symlink_to(home / "elsewhere")
    (staging / "data.zarr" / "images" / "c.9.0.0").write_bytes(b"litter")
    (staging / "data.zarr" / "zarr.json").write_bytes(b"")
    again = []

    def noted(values: Any, path: str, *more: Any, folder: Path) -> Any:
        again.append(path)
        return shard.write_shard(values, path, *more, folder=folder)

    monkeypatch.setattr(writing, "write_shard", noted)
    built = build(home)

    assert interrupted & set(again) == ({victim} if harm else set())
    assert len(again) == (3 if harm else 2)
    assert [status for _, status, _ in store.check(built.folder)] == ["holds"] * 3


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
