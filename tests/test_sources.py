"""Source strings, and `get` from each kind of source that is not a plain URL."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objectserver import object_server
from parcels import File, Parcel
from webserver import WebServer

import scibench_data as sbd
from scibench_data.errors import LicenceError, NetworkError
from scibench_data.settings import Settings, load_settings
from scibench_data.sources import KINDS, parse_source, source_fault

CONTENT = b"content " * 1000


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings(home=home, allowed_hosts="127.0.0.1")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def _files(data: sbd.Dataset) -> dict[str, bytes]:
    return {r.path: (data.folder / r.path).read_bytes() for r in data.resources}


# --- the strings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "url", "member"),
    [
        ("https://a.org/b", "file", "https://a.org/b", ""),
        ("s3+https://s3.a.org/bucket/key", "s3", "https://s3.a.org/bucket/key", ""),
        ("tar+https://a.org/b.tgz#c/d%20e", "tar", "https://a.org/b.tgz", "c/d e"),
        ("zip+https://a.org/b.zip#c", "zip", "https://a.org/b.zip", "c"),
        ("datalad+https://a.org/r.git#x/y", "datalad", "https://a.org/r.git", "x/y"),
    ],
)
def test_a_source_is_taken_apart(text: str, kind: str, url: str, member: str) -> None:
    source = parse_source(text)

    assert (source.kind, source.url, source.member) == (kind, url, member)
    assert source.kind in KINDS
    assert source_fault(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "http://a.org/b",
        "file:///etc/passwd",
        "ftp://a.org/b",
        "https://127.0.0.1/b",
        "s3+https://localhost/bucket/key",
        "s3+https://a.org/bucket",
        "tar+https://a.org/b.tar",
        "tar+https://a.org/b.tar#../x",
        "zip+https://a.org/b.zip#/etc/passwd",
        "datalad+ssh://a.org/r#x",
        "datalad+https://user:word@a.org/r#x",
        "exec+https://a.org/x",
    ],
)
def test_what_is_no_public_source_is_refused(text: str) -> None:
    assert source_fault(text)


def test_the_user_can_allow_a_host() -> None:
    assert source_fault("http://127.0.0.1:8000/x", ["127.0.0.1"]) is None
    assert source_fault("http://127.0.0.1:8000/x", ["localhost"])
    assert source_fault("file:///x", None)


@given(st.text(max_size=80))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    parse_source(text)
    source_fault(text)


# --- S3 -------------------------------------------------------------------------------------------


def test_objects_come_anonymously_or_with_the_users_credentials(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objectserver import KEY, SECRET

    with object_server() as server:
        server.fill({"open/a b.bin": CONTENT})
        public = server.url("open/a%20b.bin")
        server.publish()
        data = sbd.get(
            Parcel(files={"a.bin": File(CONTENT, [public])}, name="open").register(settings.home),
            settings=settings,
        )
        assert _files(data) == {"data/a.bin": CONTENT}

    with object_server() as server:
        server.fill({"shut/a.bin": CONTENT})
        name = Parcel(
            files={"a.bin": File(CONTENT, [server.url("shut/a.bin")])}, name="shut"
        ).register(settings.home)
        with pytest.raises(LicenceError, match="credentials"):
            sbd.get(name, settings=settings)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        assert _files(sbd.get(name, settings=settings)) == {"data/a.bin": CONTENT}
        log = json.dumps([str(request) for request in server.requests])
        assert SECRET not in log


def test_a_prefix_is_listed_once_fetched_by_pattern_and_locked(
    settings: Settings, tmp_path: Path
) -> None:
    with object_server() as server:
        for number in range(5):
            server.fill({f"set/train/{number}.npz": b"%d" % number})
        server.fill({"set/test/0.npz": b"test"})
        server.publish()
        parcel = Parcel(files={"readme.txt": File(CONTENT, ["https://a.example.org/readme"])})
        name = parcel.register(settings.home)
        path = settings.home / "added/parcel/1.0.0/datapackage.json"
        tree = json.loads(path.read_bytes())
        tree["scibench"]["subsets"]["raw"] = {
            "title": "All objects",
            "listing": server.url("set"),
            "about": {"files": 6, "bytes": 60},
        }
        path.write_text(json.dumps(tree))

        foreseen = sbd.plan(f"{name}:raw", settings=settings)
        assert (foreseen.files, foreseen.bytes) == (6, 60)
        part = sbd.get(f"{name}:raw", include=["train/*"], settings=settings)

        assert part.package.version.startswith("1.0.0+listed.")
        assert sorted(_files(part)) == [f"raw/train/{n}.npz" for n in range(5)]
        assert len(part.unverified) == 5
        server.fill({"set/train/9.npz": b"new"})  # the listing stays what it was
        whole = sbd.get(f"{name}:raw", settings=settings)
        assert sorted(_files(whole)) == [
            "raw/test/0.npz", *(f"raw/train/{n}.npz" for n in range(5))
        ]  # fmt: skip

        locked = sbd.lock([f"{name}:raw"], path=tmp_path / "scibench.lock", settings=settings)
        (pin,) = locked.pins
        pinned = sbd.get(f"{name}@{pin.version}:raw", settings=settings)
        assert not pinned.unverified
        assert _files(pinned) == _files(whole)


def test_an_empty_prefix_is_an_error_not_an_empty_dataset(settings: Settings) -> None:
    with object_server() as server:
        server.fill({"other/x": b"x"})
        server.publish()
        name = Parcel(files={"a": File(b"a", ["https://a.example.org/a"])}).register(settings.home)
        path = settings.home / "added/parcel/1.0.0/datapackage.json"
        tree = json.loads(path.read_bytes())
        subset = {"title": "All objects", "listing": server.url("set")}
        tree["scibench"]["subsets"]["raw"] = subset
        path.write_text(json.dumps(tree))

        with pytest.raises(NetworkError, match="no object lies there"):
            sbd.get(f"{name}:raw", settings=settings)


# --- an event query, a DataLad dataset ------------------------------------------------------------


def test_an_event_query_becomes_one_file(web: WebServer, settings: Settings) -> None:
    header = "time,latitude,longitude,depth,mag,id\n"
    rows = "2019-07-06T03:19:53.040Z,35.77,-117.599,8,7.1,ci38457511\n"
    web.serve("/fdsnws/event/1/count", b"1")
    web.serve("/fdsnws/event/1/query", (header + rows).encode())
    query = f"{web.url}/fdsnws/event/1/query?format=csv&starttime=2019-07-01&endtime=2019-08-01"
    files = {"events.csv": File(b"", [f"fdsn+{query}"], known=False)}
    name = Parcel(files=files).register(settings.home)

    data = sbd.get(name, settings=settings)

    assert _files(data)["data/events.csv"].decode() == header + rows
    assert len(data.unverified) == 1


def test_files_of_a_published_datalad_dataset(
    web: WebServer, settings: Settings, tmp_path: Path
) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
    }  # fmt: skip
    source, bare = tmp_path / "source", tmp_path / "bare.git"

    def run(*words: str, cwd: Path) -> None:
        subprocess.run(words, cwd=cwd, env=environment, check=True, capture_output=True)

    source.mkdir()
    run("git", "init", "-q", "-b", "main", cwd=source)
    run("git", "annex", "init", "-q", cwd=source)
    (source / "x.bin").write_bytes(CONTENT)
    run("git", "annex", "add", "-q", "x.bin", cwd=source)
    run("git", "commit", "-qm", "x", cwd=source)
    run("git", "clone", "-q", "--bare", str(source), str(bare), cwd=tmp_path)
    run("git", "annex", "init", "-q", cwd=bare)
    run("git", "remote", "add", "bare", str(bare), cwd=source)
    run("git", "annex", "copy", "-q", "--to", "bare", cwd=source)
    run("git", "annex", "sync", "-q", "--no-content", "bare", cwd=source)
    run("git", "update-server-info", cwd=bare)
    url = web.serve_folder(bare, "/bare.git")
    files = {"y.bin": File(CONTENT, [f"datalad+{url}#x.bin"])}
    name = Parcel(files=files).register(settings.home)

    data = sbd.get(name, settings=settings)

    assert _files(data) == {"data/y.bin": CONTENT}
    assert [path.name for path in data.folder.parent.iterdir()] == ["1.0.0"]


# --- a site's cache, no network -------------------------------------------------------------------


def _protect(folder: Path, *, writable: bool) -> None:
    for place, _, _ in os.walk(folder):
        Path(place).chmod(stat.S_IRWXU if writable else stat.S_IRUSR | stat.S_IXUSR)


def test_a_site_cache_is_used_as_it_is_and_never_written(
    web: WebServer, home: Path, tmp_path: Path
) -> None:
    url = web.serve("/a.bin", CONTENT)
    parcel = Parcel(files={"a.bin": File(CONTENT, [url])})
    site = tmp_path / "site"
    filler = load_settings(home=site, allowed_hosts="127.0.0.1")
    sbd.get(parcel.register(site), settings=filler)
    name = parcel.register(home)
    user = load_settings(home=home, site=site, offline=True)
    before = {path: path.lstat() for path in site.rglob("*")}
    _protect(site, writable=False)
    try:
        data = sbd.get(name, settings=user)
        assert data.folder.is_relative_to(site)
        assert _files(data) == {"data/a.bin": CONTENT}
        assert sbd.path(name, settings=user) == data.path
    finally:
        _protect(site, writable=True)
    assert {p: s.st_mtime_ns for p, s in before.items() if p.is_file()} == {
        path: path.lstat().st_mtime_ns for path in site.rglob("*") if path.is_file()
    }
    assert not (home / "datasets").exists()


def test_a_site_cache_with_other_bytes_is_left(web: WebServer, home: Path, tmp_path: Path) -> None:
    url = web.serve("/a.bin", CONTENT)
    parcel = Parcel(files={"a.bin": File(CONTENT, [url])})
    site = tmp_path / "site"
    filler = load_settings(home=site, allowed_hosts="127.0.0.1")
    there = sbd.get(parcel.register(site), settings=filler)
    target = there.object(there.resources[0])
    target.chmod(0o644)
    target.write_bytes(CONTENT[::-1])
    user = load_settings(home=home, site=site, allowed_hosts="127.0.0.1")

    data = sbd.get(parcel.register(home), settings=user)

    assert data.folder.is_relative_to(home)
    assert _files(data) == {"data/a.bin": CONTENT}


@pytest.mark.skipif(shutil.which("unshare") is None, reason="NOT RUN: there is no unshare")
def test_a_site_cache_on_a_read_only_mount(web: WebServer, home: Path, tmp_path: Path) -> None:
    """Mounted so that not even root writes there; get, store and verify work from it."""
    site = tmp_path / "site"
    filler = load_settings(home=site)
    sbd.get("cryoem@1.0.0", scale=32, settings=filler).materialize()
    name = "cryoem@1.0.0+scale.32"
    shutil.copytree(site / "packages", home / "packages")
    steps = " && ".join(
        f"{sys.executable} -m scibench_data {words}"
        for words in (f"get {name} -q", f"materialize {name} -q", f"path {name}")
    )
    mounted = f"mount --bind {site} {site} && mount -o remount,ro,bind {site} && {steps}"
    environment = {
        **os.environ,
        "SCIBENCH_DATA_HOME": str(home),
        "SCIBENCH_DATA_SITE": str(site),
        "SCIBENCH_DATA_OFFLINE": "1",
    }

    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"NOT RUN: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert [Path(line).is_relative_to(site) for line in done.stdout.split()] == [True] * 3
    assert not (home / "datasets").exists()
    assert not (home / "stores").exists()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="NOT RUN: there is no unshare")
def test_the_whole_of_get_works_without_a_network_interface(tmp_path: Path) -> None:
    words = [
        "unshare", "--net", "--map-root-user", sys.executable, "-m", "scibench_data", "get",
        "cryoem@1.0.0", "--scale", "32", "--offline", "-q",
    ]  # fmt: skip
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(tmp_path / "home")}

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    if "unshare:" in done.stderr:
        pytest.skip(f"NOT RUN: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "particles.star").is_file()


# --- many files -----------------------------------------------------------------------------------


def test_a_pinned_version_is_got_on_another_machine_by_its_lock_file(
    web: WebServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.serve("/a.csv", b"x\n1\n")
    parcel = Parcel(files={"a.csv": File(b"", [url], known=False)})
    here = load_settings(home=home, allowed_hosts="127.0.0.1")
    name = parcel.register(home)
    sbd.get(name, settings=here)
    monkeypatch.chdir(tmp_path)
    sbd.lock([name], settings=here)
    there = load_settings(home=tmp_path / "there", allowed_hosts="127.0.0.1")
    parcel.register(there.home)

    from scibench_data.versions.locking import get_locked

    (data,) = get_locked(settings=there)
    assert not data.unverified
    assert (data.path / "a.csv").read_bytes() == b"x\n1\n"

    web.serve("/a.csv", b"x\n2\n")
    elsewhere = load_settings(home=tmp_path / "elsewhere", allowed_hosts="127.0.0.1")
    parcel.register(elsewhere.home)
    with pytest.raises(sbd.ScibenchError, match="not the published one") as caught:
        get_locked(settings=elsewhere)
    assert caught.value.exit_code == 4


def test_the_key_of_a_file_without_a_checksum_is_git_annexs_own(
    web: WebServer, settings: Settings
) -> None:
    url = web.serve("/a b&c.csv".replace(" ", "%20"), b"x")
    files = {"a.csv": File(b"", [url], known=False)}
    data = sbd.get(Parcel(files=files).register(settings.home), settings=settings)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/nonexistent",
    }  # fmt: skip
    told = subprocess.run(
        ["git", "annex", "find", "--in", "here", "--format=${key}\n"],
        cwd=data.folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert told.stdout.strip() == data.resources[0].key
    assert hashlib.sha256((data.path / "a.csv").read_bytes()).hexdigest() == (
        data.resources[0].sha256
    )
