"""What is published can be got by us, and by DataLad without us, from every kind of place."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gitserver import git_server
from objectserver import BUCKET, KEY, SECRET, object_server
from publications import FILES, datalad_get, write_package
from webserver import WebServer

from scibench_data import catalog
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from scibench_data.getting import dataset, holdings
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing.adding import add
from scibench_data.sharing.publishing import publish


@pytest.fixture
def loopback(settings: Settings) -> Settings:
    """Settings that allow this machine's own servers."""
    return replace(settings, allowed_hosts=("127.0.0.1",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package's folder, as a user has it."""
    return write_package(tmp_path / "mini")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "data" / name).read_bytes() for name in FILES}


def _get(place: str | Path, home: Path) -> dataset.Dataset:
    """Add and get in a fresh cache."""
    settings = load_settings(home=home, allowed_hosts=["127.0.0.1"], jobs=2)
    name = add(place, settings=settings).name
    return dataset.get(catalog.resolve(name, home), settings)


def _same_everywhere(place: str, commit: str, tmp_path: Path) -> None:
    ours = _get(place, tmp_path / "other-home")
    theirs = tmp_path / "theirs"

    assert datalad_get(place, theirs) == ours.commit == commit
    assert _contents(ours.folder) == _contents(theirs) == FILES


# --- round trips


def test_a_folder_is_a_sibling(folder: Path, tmp_path: Path, settings: Settings) -> None:
    done = publish(folder, tmp_path / "site", settings=settings)

    assert (done.kind, done.files, done.put) == ("folder", 3, 3)
    shutil.rmtree(folder)  # so that nothing can come from there
    _same_everywhere(str(tmp_path / "site"), done.commit, tmp_path)


def test_a_folder_served_as_files_is_a_web_space(
    folder: Path, tmp_path: Path, settings: Settings, web: WebServer
) -> None:
    done = publish(folder, tmp_path / "site", settings=settings)
    url = web.serve_folder(tmp_path / "site", "/site")
    shutil.rmtree(folder)

    _same_everywhere(url, done.commit, tmp_path)


def test_a_bucket_is_a_web_space(
    folder: Path, tmp_path: Path, loopback: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with object_server() as server:
        done = publish(folder, server.url("some/mini"), settings=loopback)
        again = publish(folder, server.url("some/mini"), settings=loopback)
        write_package(folder, {**FILES, "a.csv": b"x,y\n3,4\n"}, "1.1.0")
        newer = publish(folder, server.url("some/mini"), settings=loopback)
        server.publish()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        place = f"{server.endpoint}/{BUCKET}/some/mini"
        ours = _get(place, tmp_path / "other-home")
        theirs = datalad_get(place, tmp_path / "theirs")

    assert (done.kind, done.put, again.put, newer.put) == ("bucket", 3, 0, 1)
    assert done.url == place
    assert "nobody without credentials" in done.note
    assert again.commit == done.commit
    assert theirs == ours.commit == newer.commit != done.commit
    assert (tmp_path / "theirs/data/a.csv").read_bytes() == b"x,y\n3,4\n"
    assert (ours.folder / "data/a.csv").read_bytes() == b"x,y\n3,4\n"


def test_a_git_server_with_content_elsewhere(
    folder: Path, tmp_path: Path, loopback: Settings, web: WebServer
) -> None:
    publish(folder, tmp_path / "site", settings=loopback)
    content = web.serve_folder(tmp_path / "site", "/site")
    with git_server(tmp_path / "git") as server:
        place = server.make("mini.git")
        done = publish("mini", place, content_url=content, settings=loopback)
        again = publish("mini", place, content_url=content, settings=loopback)
        shutil.rmtree(folder)
        ours = _get(place, tmp_path / "other-home")
        theirs = datalad_get(place, tmp_path / "theirs")

    assert done.kind == "server"
    assert theirs == ours.commit == done.commit == again.commit
    assert _contents(ours.folder) == _contents(tmp_path / "theirs") == FILES


# --- what is refused


def test_nothing_is_pushed_that_nobody_could_get(
    folder: Path, tmp_path: Path, loopback: Settings
) -> None:
    with git_server(tmp_path / "git") as server:
        place = server.make("mini.git")
        with pytest.raises(NotFoundError) as caught:
            publish(folder, place, settings=loopback)

        assert not [each for each in server.requests if "receive-pack" in each]
    assert all(f"data/{name}" in str(caught.value) for name in FILES)


def test_a_file_that_is_gone_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    (folder / "a.csv").unlink()

    with pytest.raises(NotFoundError, match=r"1\.0\.0: data/a\.csv"):
        publish(folder, tmp_path / "site", settings=settings)
    assert not (tmp_path / "site").exists()


def test_a_file_that_changed_is_not_published(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    (folder / "a.csv").write_bytes(b"x,y\n9,9\n")

    with pytest.raises(IntegrityError, match=r"a\.csv: not the published bytes"):
        publish(folder, tmp_path / "site", settings=settings)
    with pytest.raises(NetworkError):
        add(tmp_path / "site", settings=settings)  # nothing to clone


def test_another_history_is_not_overwritten(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    other = write_package(tmp_path / "other", {"a.csv": b"something else\n"})
    elsewhere = replace(settings, home=tmp_path / "home2")

    with pytest.raises(IntegrityError, match="another history"):
        publish(other, tmp_path / "site", settings=elsewhere)
    assert datalad_get(str(tmp_path / "site"), tmp_path / "theirs")


def test_an_older_version_does_not_replace_a_newer_one(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    write_package(folder, version="1.1.0")
    publish(folder, tmp_path / "site", settings=settings)

    with pytest.raises(IntegrityError, match="a newer one"):
        publish("mini@1.0.0", tmp_path / "site", settings=settings)


@pytest.mark.parametrize(
    "to",
    ["ssh://host/repo.git", "git@host:repo.git", "ext::sh -c touch% x", "http://example.org/r.git",
     "https://user:secret@example.org/r.git", "file:///srv/x", "s3+https://10.0.0.1/bucket/key",
     "https://127.0.0.1/r.git"],
)  # fmt: skip
def test_places_that_may_not_be_asked(folder: Path, settings: Settings, to: str) -> None:
    with pytest.raises(UsageError) as caught:
        publish(folder, to, settings=settings)
    assert "secret" not in str(caught.value)


def test_a_folder_with_other_things_in_it(folder: Path, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/mine.txt").write_text("mine")

    with pytest.raises(UsageError, match="neither empty nor a publication"):
        publish(folder, tmp_path / "site", settings=settings)
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]


def test_offline_opens_no_connection(folder: Path, loopback: Settings) -> None:
    with pytest.raises(NetworkError, match="offline"):
        publish(folder, "https://example.org/r.git", settings=replace(loopback, offline=True))


def test_a_server_that_wants_a_password(
    folder: Path, tmp_path: Path, loopback: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, tmp_path / "site", settings=loopback)
    user = tmp_path / "user"
    user.mkdir()
    with WebServer() as web, git_server(tmp_path / "git", "tester:secret") as server:
        content = web.serve_folder(tmp_path / "site", "/site")
        place = server.make("mini.git")
        with pytest.raises(LicenceError, match="credential"):
            publish("mini", place, content_url=content, settings=loopback)
        (user / ".netrc").write_text("machine 127.0.0.1 login tester password secret\n")
        monkeypatch.setenv("HOME", str(user))
        done = publish("mini", place, content_url=content, settings=loopback)

    assert done.commit


def test_a_bare_repository_that_is_there(folder: Path, tmp_path: Path, settings: Settings) -> None:
    site = tmp_path / "site.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "trunk", site], check=True)
    done = publish(folder, site, settings=settings)

    assert datalad_get(str(site), tmp_path / "theirs") == done.commit
    assert _contents(tmp_path / "theirs") == FILES


# --- again


def test_publishing_again_changes_nothing(folder: Path, tmp_path: Path, settings: Settings) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    before = _snapshot(tmp_path / "site")

    again = publish("mini", tmp_path / "site", settings=settings)

    assert again.put == 0
    assert _snapshot(tmp_path / "site") == before


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_newer_version_is_a_fast_forward_and_the_old_one_stays(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    first = publish(folder, tmp_path / "site", settings=settings)
    write_package(folder, {**FILES, "a.csv": b"x,y\n3,4\n"}, "1.1.0")
    second = publish(folder, tmp_path / "site", settings=settings)
    shutil.rmtree(folder)
    home = tmp_path / "other-home"
    other = load_settings(home=home)
    add(tmp_path / "site", settings=other)

    old = dataset.get(catalog.resolve("mini@1.0.0", home), other)
    new = dataset.get(catalog.resolve("mini", home), other)

    assert (old.commit, new.commit) == (first.commit, second.commit)
    assert (old.folder / "data/a.csv").read_bytes() == FILES["a.csv"]
    assert (new.folder / "data/a.csv").read_bytes() == b"x,y\n3,4\n"
    assert second.put == 1


def test_why_a_version_was_yanked_goes_along(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    releases = settings.home / "added/mini/releases.json"
    tree = json.loads(releases.read_text())
    tree["releases"][0] |= {"yanked": "wrong units", "changes": "first"}
    releases.write_text(json.dumps(tree))
    publish("mini@1.0.0", tmp_path / "site", settings=settings)
    other = load_settings(home=tmp_path / "other-home")
    add(tmp_path / "site", settings=other)

    (release,) = catalog.releases("mini", other.home)

    assert (release.yanked, release.changes) == ("wrong units", "first")


def test_content_of_the_cache_is_shared_and_stays_known(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    add(folder, settings=settings)
    data = dataset.get(catalog.resolve("mini", settings.home), settings)
    shutil.rmtree(folder)

    publish("mini", tmp_path / "site", settings=settings)

    assert holdings.plan(data.reference, settings).nothing_to_do


_KILLED = """
import sys
from pathlib import Path
from scibench_data.sharing import publishing
from scibench_data.settings import load_settings
place = publishing._place_object
def slow(*given):
    place(*given)
    print("placed", flush=True)
    sys.stdin.readline()
publishing._place_object = slow
publishing.publish(Path(sys.argv[1]), sys.argv[2], settings=load_settings(home=sys.argv[3]))
"""


@pytest.mark.parametrize("placed", [1, 3])
def test_a_kill_leaves_nothing_half_published(
    folder: Path, tmp_path: Path, settings: Settings, placed: int
) -> None:
    site = tmp_path / "site"
    words = [sys.executable, "-c", _KILLED, str(folder), str(site), str(settings.home)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(placed):
            assert process.stdout.readline() == "placed\n"
            if number + 1 < placed:
                process.stdin.write("\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    with pytest.raises(NetworkError):
        add(site, settings=load_settings(home=tmp_path / "other-home"))

    done = publish(folder, site, settings=settings)

    assert done.put == 3 - placed
    shutil.rmtree(folder)
    _same_everywhere(str(site), done.commit, tmp_path)
