"""The cache knows what it holds, proves it, and gives up only what nobody uses or would miss."""

import contextlib
import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chains import TINY, Chain
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import scibench_data as sbd
from scibench_data import durable, usage
from scibench_data.catalog import resolve
from scibench_data.commands.cached import cache as cache_command
from scibench_data.errors import LockedError, NotFoundError, UsageError
from scibench_data.getting import holdings
from scibench_data.keeping import cache, inventory
from scibench_data.settings import Settings, load_settings

DAY = 86_400.0

_HOLD = """
import sys
from pathlib import Path
from scibench_data import usage
with usage.using(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def reader(home: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that uses `folder` until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, home, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def put_store(home: Path, name: str, *sizes: int, age: float = 0.0) -> Path:
    """Make a folder in the place of a store, last used `age` seconds ago."""
    folder = home / "stores" / name
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        (folder / str(number)).write_bytes(os.urandom(size))
    set_age(home, folder, age)
    return folder


def set_age(home: Path, folder: Path, age: float) -> None:
    usage.touch(home, folder)
    then = time.time() - age
    os.utime(home / "usage" / folder.relative_to(home), (then, then))


def allocated(*folders: Path) -> int:
    """Return what folders take on the disk, counted as du(1) does."""
    inodes = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            look = path.lstat()
            inodes[look.st_dev, look.st_ino] = look.st_blocks * 512
    return sum(inodes.values())


# --- who uses what --------------------------------------------------------------------------------


def test_what_a_process_uses_is_not_removed_until_the_process_dies(settings: Settings) -> None:
    home = settings.home
    folder = put_store(home, "a-1", 10)

    with reader(home, folder) as process:
        assert usage.in_use(home, folder)
        used = rf"in use by process {process.pid}; end it"
        with pytest.raises(LockedError, match=used), usage.idle(home, folder):
            pytest.fail("idle")
        found = cache.gc(0, settings=settings)
        kept = [reason for _, reason in found.kept]
        process.kill()
        process.wait()
        again = cache.gc(0, settings=settings)

    assert f"in use by process {process.pid}" in kept[0]
    assert found.before == found.after > 0
    assert [entry.path for entry in again.removed] == [folder]
    assert not folder.exists()


def test_many_read_at_once(home: Path) -> None:
    folder = put_store(home, "a-1")

    with usage.using(home, folder), usage.using(home, folder), reader(home, folder):
        pass

    assert not usage.in_use(home, folder)


def test_a_reader_waits_for_a_rename_and_sees_that_it_is_gone(home: Path) -> None:
    folder = put_store(home, "a-1")
    script = _HOLD.replace('print("held"', "print(Path(sys.argv[2]).exists()")

    with usage.idle(home, folder):
        process = subprocess.Popen(
            [sys.executable, "-c", script, home, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(0.3)
        folder.rename(home / "gone")
    out, _ = process.communicate("\n")

    assert out == "False\n"


def test_a_process_may_remove_what_only_it_keeps(home: Path) -> None:
    folder = put_store(home, "a-1")

    kept = usage.keep(home, folder)
    with pytest.raises(LockedError, match="in use by this process"), usage.idle(home, folder):
        pytest.fail("idle")
    with (
        reader(home, folder),
        pytest.raises(LockedError, match=r"in use by process \d+"),
        usage.idle(home, folder, ours=True),
    ):
        pytest.fail("idle")
    still = usage.in_use(home, folder)
    with usage.idle(home, folder, ours=True):
        shutil.rmtree(folder)

    assert kept
    assert still
    assert not usage.keep(home, folder)


def test_a_cache_that_cannot_be_written_is_used_without_a_note(home: Path) -> None:
    folder = put_store(home, "a-1")
    shutil.rmtree(home / "usage")
    (home / "usage").write_bytes(b"")

    usage.touch(home, folder)
    with usage.using(home, folder), usage.idle(home, folder):
        pass

    assert usage.keep(home, folder)
    assert not usage.in_use(home, folder)
    assert usage.last_used(home, folder) == folder.stat().st_mtime


def test_what_lies_elsewhere_is_left_alone_and_no_cache_is_made(home: Path, tmp_path: Path) -> None:
    with usage.using(home, home / "stores" / "a-1"), usage.using(home, tmp_path):
        pass
    made = home.exists()
    home.mkdir()
    with usage.idle(home, tmp_path):
        pass

    assert usage.keep(home, tmp_path)
    assert not made
    assert list(home.iterdir()) == []


def test_the_last_use_is_noted(home: Path) -> None:
    folder = put_store(home, "a-1", age=5 * DAY)
    before = usage.last_used(home, folder)

    with usage.using(home, folder):
        pass

    assert time.time() - before > 4 * DAY
    assert time.time() - usage.last_used(home, folder) < 60


# --- what lies there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("12", 12),
        (7, 7),
        ("50GB", 50 * 10**9),
        ("500MiB", 500 * 2**20),
        ("1.5 tb", 15 * 10**11),
        ("2kib", 2048),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert cache.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GB", "5G", "5 XB", "1e9", "nan", "1.B.", -3])
def test_other_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="expected a size; write it as 50GB"):
        cache.parse_size(text)


@pytest.mark.parametrize("text", ["", "5", "d", "5m", "-1d"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected an age"):
        cache.parse_age(text)


def test_an_empty_cache_holds_nothing_and_is_not_made(settings: Settings) -> None:
    assert cache.ls(settings=settings) == []
    assert cache.verify(settings=settings) == []
    assert cache.gc(0, settings=settings).removed == ()
    assert not settings.home.exists()


def test_a_chain_is_listed_with_its_sizes(chain: Chain) -> None:
    with reader(chain.settings.home, chain.store):
        entries = cache.ls(settings=chain.settings)
    of = {(entry.kind, entry.version): entry for entry in entries}
    derived = of["derived", "1.0.0+scale.640"]
    store = of["store", "1.0.0+scale.640:sample"]

    assert derived.complete
    assert not derived.in_use
    assert store.complete
    assert store.in_use
    assert store.bytes == allocated(chain.store)
    assert sum(entry.bytes for entry in entries) == allocated(*(entry.path for entry in entries))
    assert derived.files > 50


def test_placed_files_are_not_counted_twice(chain: Chain, tmp_path: Path) -> None:
    before = sum(entry.bytes for entry in cache.ls(settings=chain.settings))

    sbd.get(TINY, to=tmp_path / "out", settings=chain.settings)
    sbd.get(TINY, to=chain.settings.home / "stores" / "copy-1", settings=chain.settings)
    after = cache.ls(settings=chain.settings)

    added = sum(entry.bytes for entry in after) - before
    assert added < sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.mrcs"))


def test_a_dataset_without_a_part_is_not_complete(chain: Chain) -> None:
    chain.object("sample/particles.star").unlink()

    derived = next(e for e in cache.ls(settings=chain.settings) if e.kind == "derived")

    assert not derived.complete


# --- are the bytes right --------------------------------------------------------------------------


def test_all_that_is_damaged_is_found_and_healed(
    chain: Chain, flip: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = cache.verify(settings=chain.settings)
    flip(chain.object("sample/particles.star"), 100)
    shard = next(chain.store.glob("data.zarr/images/c.*"))
    flip(shard, 100)

    damaged = cache.verify([TINY], settings=chain.settings)
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(chain.settings.home))
    told = CliRunner().invoke(cache_command, ["verify", "--json"])
    sbd.get(TINY, settings=chain.settings)
    sbd.materialize(TINY, settings=chain.settings)
    healed = cache.verify([TINY], settings=chain.settings)

    assert [verdict.problems for verdict in sound if verdict.problems] == []
    assert sum(verdict.files for verdict in sound) > 2
    first, second = [verdict for verdict in damaged if verdict.problems]
    assert first.problems[0].startswith("sample/particles.star: got SHA-256 ")
    assert first.cure == f"scibench-data get {TINY}:sample"
    assert "images" in second.problems[0]
    assert second.cure == f"scibench-data materialize {TINY}:sample"
    assert told.exit_code == 4
    answer = json.loads(told.stdout)
    assert not answer["ok"]
    assert sum(bool(verdict["problems"]) for verdict in answer["verdicts"]) == 2
    assert [verdict.problems for verdict in healed if verdict.problems] == []


def test_damage_that_no_stamp_shows_is_found_and_healed(chain: Chain) -> None:
    """A disk that rots changes no time; only hashing again shows it."""
    path = chain.object("sample/particles.star")
    expected = path.read_bytes()
    path.write_bytes(expected[:-1] + b"?")
    stamps_path = holdings.stamps_path(chain.dataset)
    stamps = durable.read_stamps(stamps_path)
    key = path.name
    durable.write_stamps(stamps_path, stamps | {key: durable.stamp(path, stamps[key].sha256)})
    sbd.get(TINY, settings=chain.settings)
    unseen = path.read_bytes()

    found = cache.verify([TINY], settings=chain.settings)
    sbd.get(TINY, settings=chain.settings)

    assert unseen != expected
    assert any(verdict.problems for verdict in found)
    assert path.read_bytes() == expected


def test_a_cache_that_is_only_read_is_verified(chain: Chain) -> None:
    home = chain.settings.home
    for name in ("locks", "usage"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).write_bytes(b"")

    assert not any(verdict.problems for verdict in cache.verify(settings=chain.settings))
    assert cache.ls(settings=chain.settings)


def test_an_unknown_name_is_told(chain: Chain) -> None:
    with pytest.raises(NotFoundError, match="uno: not in the cache"):
        cache.verify(["uno"], settings=chain.settings)


# --- what may go ----------------------------------------------------------------------------------

_STORES = st.lists(
    st.tuples(
        st.integers(0, 40_000),  # bytes of its own
        st.integers(0, 400),  # age in days
        st.sampled_from(["idle", "idle", "idle", "used"]),
        st.booleans(),  # holds the file that several share
    ),
    max_size=7,
    unique_by=lambda each: each[1],
)


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stores=_STORES, keep=st.integers(0, 200_000), oldest=st.none() | st.integers(0, 300))
def test_the_least_recently_used_go_until_the_cache_is_small(
    tmp_path: Path,
    stores: list[tuple[int, int, str, bool]],
    keep: int,
    oldest: int | None,
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch, contextlib.ExitStack() as held:
        home = Path(scratch)
        common = home / "common"
        common.write_bytes(b"x" * 30_000)
        folders = {}
        for number, (size, days, state, shares) in enumerate(stores):
            folder = put_store(home, f"s-{number}", size)
            if shares:
                os.link(common, folder / "common")
            if state == "used":
                held.enter_context(usage.using(home, folder))
            set_age(home, folder, days * DAY + 3600)
            folders[folder] = (days, state)
        expected, total = [], allocated(*folders)
        left = dict(folders)
        for folder, (days, state) in sorted(folders.items(), key=lambda item: -item[1][0]):
            if allocated(*left) > keep and state == "idle" and (oldest is None or days >= oldest):
                expected.append(folder)
                del left[folder]
        rest = allocated(*left)
        chosen = load_settings(home=home)
        age = None if oldest is None else f"{oldest}d"

        foreseen = cache.gc(keep, older_than=age, dry_run=True, settings=chosen)
        found = cache.gc(keep, older_than=age, settings=chosen)

        assert [entry.path for entry in found.removed] == expected
        assert [entry.path for entry in foreseen.removed] == expected
        assert (found.before, found.after) == (total, rest)
        assert (foreseen.before, foreseen.after) == (total, rest)
        assert sum(entry.bytes for entry in found.removed) == total - rest
        assert sorted(home.glob("stores/*")) == sorted(left)
        assert sum(entry.bytes for entry in cache.ls(settings=chosen)) == rest


def test_stores_go_before_datasets_of_the_same_age(chain: Chain) -> None:
    home = chain.settings.home
    set_age(home, chain.store, DAY)
    set_age(home, chain.dataset, 5 * DAY)

    near = cache.gc(0, dry_run=True, settings=chain.settings)
    set_age(home, chain.dataset, 100 * DAY)
    far = cache.gc(0, dry_run=True, settings=chain.settings)

    assert [entry.kind for entry in near.removed][:2] == ["store", "derived"]
    assert [entry.kind for entry in far.removed][:2] == ["derived", "store"]


def test_write_protected_content_goes_and_comes_back(chain: Chain) -> None:
    found = cache.gc(0, settings=chain.settings)
    left = list(chain.settings.home.glob("datasets/*/*"))
    data = sbd.get(TINY, settings=chain.settings)

    assert found.after == 0
    assert left == []
    assert chain.result.is_file()
    assert len(data.resources) > 1


def test_what_could_not_be_had_again_stays_unless_forced(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = resolve(TINY, chain.settings.home)
    package = reference.package
    subsets = {n: dataclasses.replace(s, recipe=None) for n, s in package.subsets.items()}
    lone = dataclasses.replace(package, subsets=subsets)
    alone = dataclasses.replace(reference, package=lone)
    monkeypatch.setattr(inventory.Item, "reference", property(lambda _: alone))

    spared = cache.gc(0, settings=chain.settings)
    entries = cache.ls(settings=chain.settings)
    forced = cache.gc(0, force=True, settings=chain.settings)

    kept = {entry.kind: reason for entry, reason in spared.kept}
    assert kept["derived"].endswith("is to be had nowhere else")
    assert "derived" in {entry.kind for entry in entries}
    assert "derived" in {entry.kind for entry in forced.removed}


def test_a_store_whose_dataset_is_gone_for_ever_stays(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory.Item, "reference", None)
    durable.remove_tree(chain.dataset)

    found = cache.gc(0, settings=chain.settings)

    assert any(entry.path == chain.store for entry, _ in found.kept)
    assert chain.store.exists()


@pytest.mark.parametrize("place", ["notes.txt", "sample/mine.star"])
def test_a_dataset_that_somebody_works_in_stays(chain: Chain, place: str) -> None:
    (chain.dataset / place).write_text("my work")

    found = cache.gc(0, settings=chain.settings)

    assert (chain.dataset / place).read_text() == "my work"
    assert [reason for entry, reason in found.kept if entry.kind == "derived"] == [
        f"{place} in it is not of this version"
    ]


def test_what_killed_processes_left_goes_in_any_case(settings: Settings) -> None:
    home = settings.home
    old, new = time.time() - 2 * DAY, time.time()
    for path, when in {
        "staging/a-1/data": old,
        "staging/a-1.journal": old,
        "staging/b-1/data": new,
        "staging/c-1/data": old,
        "stores/.d-1.removed-0f/data": new,
        "datasets/x/.1.0.0.removed-0f/data": new,
        "datasets/x/.2.0.0.building-0f/data": new,
        "datasets/x/3.0.0/.git/annex/tmp/key": old,
        "datasets/x/3.0.0/.git/scibench-data/incoming/key": old,
        "datasets/x/4.0.0/.git/annex/tmp/key": new,
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(b"1" * 5000)
        for place in (home / path, (home / path).parent):
            os.utime(place, (when, when))

    with durable.lock(home / "locks" / "c-1.lock"):
        found = cache.gc("1TB", settings=settings)

    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert {path for path in left if not path.startswith(("locks/", "usage/"))} == {
        "staging/b-1/data",
        "staging/c-1/data",
        "datasets/x/4.0.0/.git/annex/tmp/key",
    }
    assert len(found.removed) == 5
    assert [entry.name for entry, _ in found.kept] == ["c-1"]


def test_damaged_stores_set_aside_go_first_and_datasets_stay(settings: Settings) -> None:
    home = settings.home
    put_store(home, "a-1", 5000, age=99 * DAY)
    for path in ("quarantine/a-1.1/manifest.json", "quarantine/x-1.0.0-0f/.git/config"):
        (home / path).parent.mkdir(parents=True)
        (home / path).write_bytes(b"1")

    found = cache.gc(0, settings=settings)

    assert [entry.name for entry in found.removed] == ["a-1.1", "a"]
    assert [entry.name for entry, _ in found.kept] == ["x-1.0.0-0f"]


_VICTIM = """
import os, signal, sys
from pathlib import Path
from scibench_data import cache
from scibench_data.settings import load_settings
home, at = Path(sys.argv[1]), 0
def trial(number):
    calls = 0
    def counted(call):
        def wrapped(*arguments, **more):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)
        return wrapped
    for name in ("rename", "unlink", "rmdir", "fsync", "write"):
        setattr(os, name, counted(getattr(os, name)))
    cache.gc(0, settings=load_settings(home=home))
for number in range(1, 10_000):
    if not (child := os.fork()):
        trial(number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    for store in (home / "stores").glob("[!.]*"):
        files = sorted(path.name for path in store.iterdir())
        assert files == ["0", "1", "2"], (number, store, files)
    if status == 0:
        print(number)
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_killed_at_any_call_it_leaves_what_is_whole_or_gone(home: Path) -> None:
    for number in range(3):
        put_store(home, f"a-{number}", 1, 2, 3)

    done = subprocess.run(
        [sys.executable, "-c", _VICTIM, home], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
    assert list((home / "stores").iterdir()) == []


# --- the commands ---------------------------------------------------------------------------------


def test_the_commands_list_and_shrink(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(chain.settings.home))
    run = CliRunner()

    table = run.invoke(cache_command, ["ls"])
    listed = json.loads(run.invoke(cache_command, ["ls", "--json"]).stdout)
    dry = json.loads(run.invoke(cache_command, ["gc", "--keep", "0", "-n", "--json"]).stdout)
    refused = run.invoke(cache_command, ["gc", "--keep", "0", "--force"])
    wet = json.loads(run.invoke(cache_command, ["gc", "--keep", "0", "-y", "--json"]).stdout)
    empty = json.loads(run.invoke(cache_command, ["ls", "--json"]).stdout)

    assert table.exit_code == 0
    assert TINY in table.stdout
    assert listed["bytes"] == sum(entry["bytes"] for entry in listed["entries"]) == dry["before"]
    assert dt.datetime.fromisoformat(listed["entries"][0]["last_used"]).tzinfo is not None
    assert refused.exit_code == 2
    assert [entry["name"] for entry in dry["removed"]] == [e["name"] for e in wet["removed"]]
    assert (wet["after"], empty["entries"]) == (0, [])


# --- many at once ---------------------------------------------------------------------------------

_WORKER = """
import random, sys
from pathlib import Path
import scibench_data as sbd
from scibench_data import cache
from scibench_data.errors import LockedError, NotFoundError
from scibench_data.settings import load_settings
chosen = load_settings(home=Path(sys.argv[1]), jobs=1, lock_timeout=60)
dice = random.Random(int(sys.argv[2]))
def get():
    sbd.get("cryoem", scale=640, settings=chosen)
def remove():
    try:
        sbd.remove(sys.argv[3], settings=chosen)
    except NotFoundError:
        pass
def gc():
    cache.gc(0, settings=chosen)
for _ in range(3):
    try:
        dice.choice([get, get, remove, gc])()
    except LockedError:
        pass
"""


def test_eight_processes_get_and_remove_the_same_version(chain: Chain) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, chain.settings.home, str(number), TINY],
            stderr=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    told = [worker.communicate(timeout=120)[1] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * 8, "\n".join(told)
    sbd.get("cryoem", scale=640, settings=chain.settings)
    assert not any(v.problems for v in cache.verify(settings=chain.settings))
    kinds = {entry.kind for entry in cache.ls(settings=chain.settings)}
    assert kinds <= {"derived", "store", "dataset"}
