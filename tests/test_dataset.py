"""Datasets: the same commit everywhere, verified content, healed damage, nothing half-done."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chains import TINY, Chain

import scibench_data as sbd
from scibench_data import catalog, durable
from scibench_data.annexed import annex, build
from scibench_data.descriptor import parse
from scibench_data.errors import (
    IntegrityError,
    LockedError,
    NetworkError,
    NotFoundError,
    RequirementError,
    ScibenchError,
    SpaceError,
    UsageError,
)
from scibench_data.getting import dataset, holdings, placing, simulating
from scibench_data.settings import Settings, load_settings

PROGRAMS = Path(sys.executable).parent


def _user(chain: Chain) -> dict[str, str]:
    """The environment of somebody who activated the virtual environment."""
    return {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", catalog.package_names())
def test_the_commit_of_every_release_is_pinned(name: str, tmp_path: Path) -> None:
    """Who cites a commit must find it again: built anew, it is the one in releases.json."""
    for release in catalog.releases(name):
        commit = build.import_history(tmp_path / release.version, catalog.history(release))

        assert commit == release.commit


def test_the_commit_does_not_depend_on_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = catalog.history(catalog.find_release("cryoem"))
    one = build.import_history(tmp_path / "one", versions)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    (tmp_path / "gitconfig").write_text("[user]\nname = x\n[core]\nautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))

    assert build.import_history(tmp_path / "two", versions) == one


def test_each_version_is_the_child_of_the_one_before(tmp_path: Path) -> None:
    first = catalog.find_release("cryoem", "1.0.0").read()
    tree = json.loads(first.text)
    tree["version"] = "1.0.1"
    second = parse(json.dumps(tree).encode(), "1.0.1")

    commit = build.import_history(tmp_path / "d", [first, second])

    alone = build.import_history(tmp_path / "e", [first])
    assert annex.git("rev-parse", "v1.0.1", cwd=tmp_path / "d") == commit
    assert annex.git("rev-parse", "v1.0.1^", "v1.0.0", cwd=tmp_path / "d").split() == [alone] * 2


def test_a_new_mirror_is_not_a_new_version(tmp_path: Path) -> None:
    """Where content comes from is on the git-annex branch, not in the version."""
    package = catalog.find_release("cryoem").read()
    one = build.import_history(tmp_path / "one", [package])

    logs = annex.git("ls-tree", "-r", "--name-only", "git-annex", cwd=tmp_path / "one")
    tree = annex.git("ls-tree", "-r", "--name-only", one, cwd=tmp_path / "one").splitlines()

    assert "remote.log" in logs
    assert set(tree) == {
        ".gitattributes",
        ".datalad/.gitattributes",
        ".datalad/config",
        "datapackage.json",
        *(resource.path for resource in package.resources),
    }


def test_get_gives_verified_files_and_datalad_agrees(chain: Chain) -> None:
    found = sbd.get(TINY, settings=chain.settings)

    assert found.swhid == f"swh:1:rev:{found.commit}"
    for resource in found.resources:
        assert (found.folder / resource.path).stat().st_size == resource.bytes
    status = subprocess.run(
        [PROGRAMS / "datalad", "-f", "json", "status", "--annex", "basic"],
        cwd=found.folder, env=_user(chain), capture_output=True, text=True, check=True,
    )  # fmt: skip
    states = {json.loads(line)["state"] for line in status.stdout.splitlines()}
    assert states == {"clean"}


def test_plain_datalad_get_makes_a_dropped_file_again(chain: Chain) -> None:
    sbd.get(TINY, settings=chain.settings)
    path = chain.dataset / "sample" / "particles.star"
    before = path.read_bytes()
    for words in (["git-annex", "drop", "sample/particles.star"], ["datalad", "get", str(path)]):
        subprocess.run(
            [PROGRAMS / words[0], *words[1:]], cwd=chain.dataset, env=_user(chain), check=True,
            capture_output=True,
        )  # fmt: skip

    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["flipped", "emptied", "removed"])
def test_a_damaged_object_is_found_and_healed(
    chain: Chain, damage: str, flip: Callable[..., None]
) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    resource = found.resources[0]
    before = (found.folder / resource.path).read_bytes()
    target = chain.object(resource.path)
    if damage == "flipped":
        flip(target)
    elif damage == "emptied":
        target.write_bytes(b"")
    else:
        target.unlink()

    sbd.get(TINY, settings=chain.settings)

    assert (found.folder / resource.path).read_bytes() == before


def test_silent_rot_is_found_by_check_and_by_verify(chain: Chain) -> None:
    """A byte that changed without a new size or time: only hashing shows it."""
    found = sbd.get(TINY, settings=chain.settings)
    target = chain.object("sample/particles.star")
    before, look = target.read_bytes(), target.stat()
    target.write_bytes(b"X" + before[1:])
    os.utime(target, ns=(look.st_atime_ns, look.st_mtime_ns))

    report = sbd.verify(TINY, settings=chain.settings)
    assert [link.name for link in report.links if link.status == "fails"] == ["files"]

    sbd.get(TINY, settings=chain.settings)
    assert (found.folder / "sample/particles.star").read_bytes() == before


def test_a_second_get_starts_no_process(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    sbd.get(TINY, settings=chain.settings)
    monkeypatch.setattr(subprocess, "Popen", None)

    sbd.get(TINY, settings=chain.settings)


def test_to_places_plain_files_and_overwrites_nothing(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = sbd.get(TINY, to=out, settings=chain.settings)
    placed = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert placed == {resource.path.removeprefix("sample/") for resource in found.resources}
    assert not any(p.is_symlink() for p in out.rglob("*"))

    assert sbd.plan(TINY, settings=chain.settings).nothing_to_do
    sbd.get(TINY, to=out, settings=chain.settings)
    (out / "particles.star").unlink()
    (out / "particles.star").write_text("mine")

    with pytest.raises(IntegrityError, match="in the way"):
        sbd.get(TINY, to=out, settings=chain.settings)
    assert (out / "particles.star").read_text() == "mine"


def _get_in_a_process(home: Path, start: Any, answers: Any) -> None:
    start.wait()
    try:
        answers.put(sbd.get(TINY, settings=load_settings(home=home, jobs=1)).commit)
    except BaseException as error:  # noqa: BLE001  (told to the parent)
        answers.put(repr(error))


def test_eight_processes_at_once_all_end_well(chain: Chain) -> None:
    commit = sbd.get(TINY, settings=chain.settings).commit
    for path in ("sample/particles.star", "sample/truth/states.csv"):
        chain.object(path).unlink()
    context = multiprocessing.get_context("spawn")
    start, answers = context.Event(), context.Queue()
    workers = [
        context.Process(target=_get_in_a_process, args=(chain.settings.home, start, answers))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    start.set()

    found = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()

    assert found == [commit] * 8


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("after", [0.6, 1.2, 2.0])
def test_an_interrupted_get_leaves_nothing_that_is_trusted(
    chain: Chain, name: signal.Signals, after: float
) -> None:
    """Whenever it ends, what is there is whole, and the next get ends well."""
    expected = sbd.get(TINY, settings=chain.settings)
    shutil.rmtree(chain.settings.home / "locks")
    durable.remove_tree(chain.dataset)
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(chain.settings.home)}
    child = subprocess.Popen(
        [sys.executable, "-m", "scibench_data", "get", TINY], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(after)
    child.send_signal(name)
    _, told = child.communicate(timeout=60)

    if name is signal.SIGINT and child.returncode:
        assert child.returncode == 130
        assert b"interrupted" in told
        assert b"Traceback" not in told
    again = sbd.get(TINY, settings=chain.settings)
    assert again.commit == expected.commit
    assert sbd.verify(TINY, settings=chain.settings).exit_code == 0


# --- what others did to a dataset -----------------------------------------------------------------


def _star(chain: Chain) -> Path:
    return chain.dataset / "sample/particles.star"


def _edit(chain: Chain) -> None:
    _star(chain).unlink()
    _star(chain).write_text("mine")


def _lead_elsewhere(chain: Chain) -> None:
    (chain.folder / "other").write_text("other data")
    _star(chain).unlink()
    _star(chain).symlink_to(chain.folder / "other")


def _make_a_folder(chain: Chain) -> None:
    _star(chain).unlink()
    (_star(chain) / "within").mkdir(parents=True)


def _link_the_subset(chain: Chain) -> None:
    (chain.dataset / "sample").rename(chain.dataset / "elsewhere")
    (chain.dataset / "sample").symlink_to("elsewhere", target_is_directory=True)


def _put_a_file_for_the_subset(chain: Chain) -> None:
    shutil.rmtree(chain.dataset / "sample")
    (chain.dataset / "sample").write_text("mine")


@pytest.mark.parametrize(
    "change",
    [
        _edit,
        _lead_elsewhere,
        _make_a_folder,
        _link_the_subset,
        _put_a_file_for_the_subset,
        lambda chain: _star(chain).unlink(),
        lambda chain: shutil.rmtree(chain.dataset / "sample"),
    ],
)
def test_links_that_readers_follow_are_put_back_and_nothing_is_fetched(
    chain: Chain, change: Callable[[Chain], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sbd.get(TINY, settings=chain.settings).path.joinpath("particles.star").read_bytes()
    change(chain)
    monkeypatch.setattr(simulating, "make", None)

    with pytest.raises(NotFoundError, match="not complete"):
        dataset.find(catalog.resolve(TINY, chain.settings.home), chain.settings)
    found = sbd.get(TINY, settings=chain.settings)

    assert build.unlinked(found.folder, found.resources) == []
    assert _star(chain).read_bytes() == before
    assert not (chain.dataset / "sample").is_symlink()


def test_an_edit_in_the_place_of_a_link_is_kept(chain: Chain) -> None:
    for _ in range(2):
        _edit(chain)
        sbd.get(TINY, settings=chain.settings)

    kept = list((chain.dataset / build.NOTES / "aside").glob("*/sample/particles.star"))
    assert [path.read_text() for path in kept] == ["mine"] * 2


def test_foreign_files_are_listed(chain: Chain) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    assert holdings.foreign_files(found.folder, found.package, "sample") == []
    (found.path / "truth/notes.txt").write_text("mine")
    (found.path / "more").symlink_to("/", target_is_directory=True)

    listed = holdings.foreign_files(found.folder, found.package, "sample")

    assert listed == ["sample/more", "sample/truth/notes.txt"]


def _fifo_for(target: Path) -> None:
    target.unlink()
    os.mkfifo(target)


def _folder_above_is_a_file(target: Path) -> None:
    target.unlink()
    target.parent.rmdir()
    target.parent.write_bytes(b"")


@pytest.mark.parametrize(
    "replace",
    [
        _fifo_for,
        lambda target: (target.unlink(), target.symlink_to("/dev/zero")),
        lambda target: (target.unlink(), target.mkdir(), (target / "a").write_bytes(b"")),
        _folder_above_is_a_file,
    ],
)
def test_what_is_no_file_in_the_place_of_an_object_is_replaced(
    chain: Chain, replace: Callable[[Path], object]
) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    star = found.package.resource("sample/particles.star")
    chain.object(star.path)  # made writable
    replace(found.object(star))

    again = sbd.get(TINY, settings=chain.settings)

    assert durable.sha256_file(again.object(star)) == star.sha256


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (".git/scibench-data/commit", b""),
        (".git/scibench-data/commit", b"\xff\xfe"),
        (".git/scibench-data/commit", b"1" * 40),
        (".git/refs/heads/main", b"1" * 40 + b"\n"),
        (".git/refs/heads/git-annex", None),
        (".git/HEAD", None),
        (".git/config", b""),
        (".git/index", None),
        ("datapackage.json", None),
    ],
)
@pytest.mark.parametrize("incomplete", [False, True])
def test_a_damaged_git_part_is_told_with_what_mends_it(
    chain: Chain, path: str, content: bytes | None, incomplete: bool
) -> None:
    sbd.get(TINY, settings=chain.settings)
    if incomplete:
        chain.object("sample/particles.star").unlink()
    (chain.dataset / path).unlink()
    if content is not None:
        (chain.dataset / path).write_bytes(content)

    with pytest.raises(IntegrityError) as caught:
        sbd.get(TINY, settings=chain.settings)

    cure = f"scibench-data remove {TINY}, then scibench-data get cryoem@1.0.0 --scale 640"
    assert cure in str(caught.value)


def test_packed_references_are_read(chain: Chain) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    annex.git("pack-refs", "--all", cwd=chain.dataset)
    assert not (chain.dataset / ".git/refs/heads/main").exists()

    assert sbd.get(TINY, settings=chain.settings).commit == found.commit


def test_a_released_commit_is_compared(chain: Chain) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    release = dataclasses.replace(found.reference.release, commit="1" * 40)
    reference = dataclasses.replace(found.reference, release=release)

    with pytest.raises(IntegrityError, match="released was 1111"):
        dataset.get(reference, chain.settings)


def test_a_copied_cache_that_can_not_be_written_is_used(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying changes what stamps look at, so all is unsure; hashing needs no lock."""
    assert not sbd.plan(TINY, settings=chain.settings).nothing_to_do

    def refuse(*_: object, **__: object) -> None:
        message = "read-only"
        raise SpaceError(message)

    monkeypatch.setattr(durable, "lock", refuse)
    monkeypatch.setattr(durable, "write_whole", refuse)
    monkeypatch.setattr(holdings, "refuse_full", refuse)

    assert sbd.get(TINY, settings=chain.settings).path.is_dir()


@pytest.mark.parametrize("content", [b"\xff", b"", b"another boot"])
def test_a_note_of_another_boot_is_cleared(chain: Chain, content: bytes) -> None:
    busy = chain.dataset / build.NOTES / "busy"
    busy.write_bytes(content)
    (chain.dataset / ".git/annex/journal").mkdir(exist_ok=True)
    (chain.dataset / ".git/annex/journal/a.log").write_bytes(b"")
    chain.object("sample/particles.star").unlink()

    sbd.get(TINY, settings=chain.settings)

    assert not busy.exists()


# --- plain files elsewhere


def _fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "block",
    [
        _fifo,
        Path.mkdir,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("mine"),
    ],
)
def test_what_is_in_the_way_is_told_before_anything_is_placed(
    chain: Chain, tmp_path: Path, block: Callable[[Path], object]
) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    last = found.resources[-1].path.removeprefix("sample/")
    (tmp_path / "out" / last).parent.mkdir(parents=True)
    block(tmp_path / "out" / last)
    before = sorted((tmp_path / "out").rglob("*"))

    with pytest.raises(IntegrityError, match="in the way"):
        placing.place(found, tmp_path / "out")

    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize(
    "block",
    [
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to("../elsewhere", target_is_directory=True),
    ],
)
def test_a_folder_that_leads_out_is_not_followed(
    chain: Chain, tmp_path: Path, block: Callable[[Path], object]
) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    block(tmp_path / "out/truth")

    with pytest.raises(IntegrityError, match=r"truth: in the way"):
        placing.place(found, tmp_path / "out")

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_destination_that_is_none_is_refused(chain: Chain, tmp_path: Path) -> None:
    found = sbd.get(TINY, settings=chain.settings)
    (tmp_path / "file").write_text("mine")

    for destination in (tmp_path / "file", found.path, found.folder / "new"):
        with pytest.raises(UsageError):
            placing.place(found, destination)


# --- bad circumstances ----------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def full(path: Any) -> os.statvfs_result:
        values = list(real(path))
        values[3] = values[4] = 3  # f_bfree, f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", full)

    with pytest.raises(SpaceError, match="free some space"):
        sbd.get("cryoem", settings=settings)
    assert not settings.home.exists()


def test_a_cache_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SpaceError, match="Not a directory; choose another place"):
        sbd.get("cryoem", settings=load_settings(home=tmp_path / "file" / "home"))


def test_offline_refuses_only_what_needs_the_network(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.getting.holdings._free", lambda _: (10**15, 10**9))
    offline = load_settings(home=settings.home, offline=True)
    remote = [n for n in catalog.find_release("cryoem").read().subsets if n != "sample"]

    for subset in remote:
        with pytest.raises(NetworkError, match="without --offline"):
            sbd.get(f"cryoem:{subset}", settings=offline)


def test_a_missing_program_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(RequirementError, match="git: not found"):
        sbd.get("cryoem", settings=settings)


def test_a_held_lock_is_told(chain: Chain) -> None:
    from scibench_data.durable import lock

    impatient = load_settings(home=chain.settings.home, lock_timeout=0.2)
    chain.object("sample/particles.star").unlink()

    with (
        lock(chain.settings.home / "locks" / "cryoem-1.0.0+scale.640.lock"),
        pytest.raises(LockedError, match="held by"),
    ):
        sbd.get(TINY, settings=impatient)


def test_a_recipe_that_gives_other_bytes_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recipe makes is never accepted unless it is what was published."""
    release = catalog.find_release("cryoem", "1.0.0")
    tree = json.loads(release.read().text)
    star = next(r for r in tree["resources"] if r["path"].endswith(".star"))
    tree["resources"] = [{**star, "hash": f"sha256:{'0' * 64}"}]
    del tree["scibench"]["subsets"]["experimental"]
    package = parse(json.dumps(tree).encode(), "forged")
    unpinned = dataclasses.replace(release, commit="")
    reference = catalog.Reference(release=unpinned, package=package, subset="sample")
    monkeypatch.setattr(dataset, "history", lambda *_: [package])

    with pytest.raises(IntegrityError, match="other bytes than were published"):
        dataset.get(reference, settings)

    assert not build.object_path(
        holdings.dataset_folder(settings.home, package), package.resources[0]
    ).exists()


def test_a_dataset_of_another_descriptor_is_refused(chain: Chain) -> None:
    sbd.get(TINY, settings=chain.settings)
    (chain.dataset / "datapackage.json").write_text("{}")

    with pytest.raises(IntegrityError, match="differs from the released descriptor"):
        sbd.get(TINY, settings=chain.settings)


def test_path_needs_the_files(chain: Chain, settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="scibench-data get"):
        sbd.path("cryoem", settings=settings)
    sbd.get(TINY, settings=chain.settings)
    assert sbd.path(TINY, settings=chain.settings) == chain.dataset / "sample"


def test_remove_frees_the_files(chain: Chain) -> None:
    assert sbd.remove(TINY, settings=chain.settings) > 1_000_000
    assert not chain.dataset.exists()
    with pytest.raises(NotFoundError):
        sbd.remove(TINY, settings=chain.settings)


def test_children_see_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_SSH_COMMAND", "PYTHONPATH", "LD_PRELOAD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hostile")

    environment = annex._environment()

    assert "hostile" not in environment.values()
    assert environment["GIT_ALLOW_PROTOCOL"] == "https"


def test_git_annex_keeps_little_of_the_disk_free() -> None:
    environment = annex._environment()
    names = {v: k.replace("KEY", "VALUE") for k, v in environment.items() if "CONFIG_KEY" in k}

    assert environment[names["annex.diskreserve"]] == "1MB"


def test_what_is_needed_has_a_margin(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for the files and nothing else does not do."""
    star = chain.object("sample/particles.star")
    size = star.stat().st_size
    star.unlink()
    monkeypatch.setattr(holdings, "_free", lambda _place: (size, 1 << 62))

    with pytest.raises(SpaceError, match=rf"bytes to write, {size:,} free"):
        sbd.get(TINY, settings=chain.settings)


@pytest.mark.parametrize(
    "told",
    [
        "not enough free space, need 95.3 MB more",
        "write: No space left on device",
        "write: Disk quota exceeded",
        "createDirectory: Read-only file system",
    ],
)
def test_a_disk_that_refuses_is_told_as_that(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str
) -> None:
    answer = json.dumps(["particles.star", told])
    monkeypatch.setattr(annex, "stream_compute", lambda *_: iter([answer]))

    with pytest.raises(SpaceError, match=told):
        sbd.get("cryoem", settings=settings)
    assert isinstance(annex._failed(("git", "x"), 4, told, tmp_path), SpaceError)


def test_a_killed_program_is_told_as_that(tmp_path: Path) -> None:
    error = annex._failed(("git-annex", "get"), -9, "", tmp_path)

    assert type(error) is ScibenchError
    assert "killed by SIGKILL" in str(error)
    assert "memory" in str(error)


def _working_in(folder: Path) -> list[str]:
    """Return the command lines of the processes that work below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: needs /proc and prctl")
@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_works_on_after_a_kill(settings: Settings, name: signal.Signals) -> None:
    """Its lock is free then: what worked on would meet the next holder's children."""
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(settings.home)}
    child = subprocess.Popen(
        [sys.executable, "-m", "scibench_data", "get", "cryoem"], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = settings.home / "datasets"
    end = time.monotonic() + 60
    while not any("compute" in line for line in _working_in(folder)):
        assert time.monotonic() < end
        assert child.poll() is None
    child.send_signal(name)
    child.wait()
    end = time.monotonic() + 3
    while _working_in(folder) and time.monotonic() < end:
        time.sleep(0.05)

    assert _working_in(folder) == []


def test_four_remove_the_same_and_one_of_them_does_it(chain: Chain) -> None:
    reference = catalog.resolve(TINY, chain.settings.home)

    def remove(_: int) -> int | NotFoundError:
        try:
            return dataset.remove(reference, chain.settings)
        except NotFoundError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(remove, range(4)))

    assert [type(answer) for answer in answers].count(NotFoundError) == 3
    assert list(chain.dataset.parent.iterdir()) == []


def test_with_a_derived_version_its_descriptor_goes(chain: Chain) -> None:
    sbd.remove(TINY, settings=chain.settings)

    assert list((chain.settings.home / "packages/cryoem").iterdir()) == []
    with pytest.raises(NotFoundError, match=r"get cryoem@1\.0\.0 --scale 640"):
        sbd.get(TINY, settings=chain.settings)
