"""Files come from whichever source has the right bytes, or the error lists what is missing."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parcels import File, Parcel
from webserver import WebServer, wait_until

import scibench_data as sbd
from scibench_data.errors import (
    IntegrityError,
    LicenceError,
    NetworkError,
    NotFoundError,
    ScibenchError,
    SpaceError,
)
from scibench_data.getting import dataset, fetching
from scibench_data.keeping import cache
from scibench_data.settings import Settings, load_settings

CONTENT = bytes(range(256)) * 400  # [B]


@pytest.fixture
def one() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def two() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings(home=home, allowed_hosts="127.0.0.1", connections=4)


class Told:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[int] = []

    def task(self, *_: object, **__: object) -> Any:
        from contextlib import nullcontext

        return nullcontext(self)

    def update(self, done: int, *_: object, **__: object) -> None:
        self.done.append(done)

    def say(self, text: str) -> None:
        self.lines.append(text)


def _content(data: sbd.Dataset) -> dict[str, bytes]:
    return {
        r.path.removeprefix("data/"): (data.folder / r.path).read_bytes() for r in data.resources
    }


BAD = {
    "wrong_bytes": "not the published one",
    "html": "web page",
    "empty": "sent nothing",
    "truncated": "broke the connection off",
    "not_found": "404",
    "forbidden": "403",
    "too_many": "429",
    "unavailable": "503",
    "error": "500",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_mirror_that_fails_is_left_for_the_next_and_named(
    behaviour: str, one: WebServer, two: WebServer, settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _hurry(monkeypatch)
    bad = one.serve("/a.bin", CONTENT, behaviour, pause=0, retry_after=600)
    good = two.serve("/a.bin", CONTENT)
    name = Parcel(files={"a.bin": File(CONTENT, [bad, good])}).register(settings.home)
    told = Told()

    data = sbd.get(name, settings=settings, progress=told)

    assert _content(data) == {"a.bin": CONTENT}
    assert len(told.lines) == 1
    assert one.url.removeprefix("http://") in told.lines[0]
    assert BAD[behaviour] in told.lines[0]
    assert not data.unverified


KINDS: dict[str, type[ScibenchError]] = {
    "wrong_bytes": IntegrityError,
    "html": NetworkError,
    "not_found": NetworkError,
    "forbidden": LicenceError,
    "unavailable": NetworkError,
}


@pytest.mark.parametrize("behaviour", KINDS)
def test_with_no_good_mirror_the_error_lists_what_is_missing_and_the_next_run_ends_well(
    behaviour: str, one: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    urls = {path: one.serve(path, CONTENT + path.encode()) for path in ("a.bin", "b.bin")}
    files = {path: File(CONTENT + path.encode(), [url]) for path, url in urls.items()}
    one.serve("b.bin", CONTENT + b"b.bin", behaviour)
    name = Parcel(files=files).register(settings.home)

    with pytest.raises(ScibenchError) as caught:
        sbd.get(name, settings=settings)
    told = str(caught.value)
    first, _, rest = told.partition("\n")

    if behaviour != "html":  # whether a page counts as wrong bytes is not the matter here
        assert type(caught.value) is KINDS[behaviour]
    assert first.startswith("parcel@1.0.0:data: 1 of 2 files could not be had; ")
    assert "data/b.bin" in rest
    assert "data/a.bin" not in rest
    assert sbd.plan(name, settings=settings).files == 1  # what came is kept

    one.serve("b.bin", CONTENT + b"b.bin")
    asked = len(one.asked("a.bin"))
    data = sbd.get(name, settings=settings)
    assert _content(data) == {path: CONTENT + path.encode() for path in urls}
    assert len(one.asked("a.bin")) == asked  # and not fetched again


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a failing server be left at once instead of after a minute."""
    from scibench_data.net import web

    class Impatient(web.Web):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, patience=0.2, delay=0.01, stall=2.0)

    monkeypatch.setattr(web, "Web", Impatient)


def test_a_cut_download_goes_on_where_it_ended(
    one: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    url = one.serve("/a.bin", CONTENT, "truncated")
    name = Parcel(files={"a.bin": File(CONTENT, [url])}).register(settings.home)
    with pytest.raises(NetworkError):
        sbd.get(name, settings=settings)
    one.serve("/a.bin", CONTENT)
    before = len(one.asked("/a.bin"))

    sbd.get(name, settings=settings)

    (last,) = one.asked("/a.bin")[before:]
    assert last.range.startswith("bytes=")
    assert last.range != "bytes=0-"


def test_the_users_mirror_is_asked_first(one: WebServer, settings: Settings) -> None:
    url = one.serve("/a.bin", CONTENT)
    other = url.replace("127.0.0.1", "localhost")
    name = Parcel(files={"a.bin": File(CONTENT, [url, other])}).register(settings.home)
    chosen = load_settings(
        home=settings.home, allowed_hosts="127.0.0.1 localhost", mirrors="localhost"
    )

    sbd.get(name, settings=chosen)

    assert [request.headers["Host"].partition(":")[0] for request in one.log] == ["localhost"]


def test_a_private_address_is_refused_unless_it_is_allowed(one: WebServer, home: Path) -> None:
    url = one.serve("/a.bin", CONTENT)
    name = Parcel(files={"a.bin": File(CONTENT, [url])}).register(home)

    with pytest.raises(NetworkError, match=r"127\.0\.0\.1"):
        sbd.get(name, settings=load_settings(home=home))

    assert not one.log


def test_offline_opens_no_socket(
    one: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    url = one.serve("/a.bin", CONTENT)
    name = Parcel(files={"a.bin": File(CONTENT, [url])}).register(settings.home)
    offline = load_settings(home=settings.home, allowed_hosts="127.0.0.1", offline=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(NetworkError, match="offline was asked for"):
        sbd.get(name, settings=offline)


# --- files without a published checksum -----------------------------------------------------------


def test_an_unknown_checksum_is_recorded_and_told_and_a_change_is_refused(
    one: WebServer, settings: Settings
) -> None:
    url = one.serve("/a.csv", b"x\n1\n")
    name = Parcel(files={"a.csv": File(b"", [url], known=False)}).register(settings.home)

    data = sbd.get(name, settings=settings)
    recorded = json.loads((data.folder / ".git/scibench-data/recorded.json").read_bytes())

    assert [resource.path for resource in data.unverified] == ["data/a.csv"]
    assert recorded["data/a.csv"]["sha256"] == hashlib.sha256(b"x\n1\n").hexdigest()
    assert sbd.plan(name, settings=settings).nothing_to_do
    with pytest.raises(IntegrityError, match="no published checksum"):
        data.materialize()

    found = data.object(data.resources[0])
    found.parent.chmod(0o755)
    found.unlink()
    one.serve("/a.csv", b"x\n2\n")
    with pytest.raises(IntegrityError, match="not the"):
        sbd.get(name, settings=settings)


# --- other kinds of sources -----------------------------------------------------------------------


def _tar(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return held.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return held.getvalue()


@pytest.mark.parametrize(("kind", "pack"), [("tar", _tar), ("zip", _zip)])
def test_members_of_an_archive_come_with_one_download(
    kind: str, pack: Any, one: WebServer, settings: Settings
) -> None:
    members = {f"deep/{n}.bin": CONTENT + bytes([n]) for n in range(5)}
    url = one.serve("/all", pack(members | {"other": b"not wanted"}))
    files = {
        f"{n}.bin": File(members[f"deep/{n}.bin"], [f"{kind}+{url}#deep/{n}.bin"]) for n in range(5)
    }
    name = Parcel(files=files).register(settings.home)

    data = sbd.get(name, settings=settings)

    assert _content(data) == {path: file.content for path, file in files.items()}
    assert len(one.asked("/all")) == 1
    assert [path.name for path in data.folder.parent.iterdir()] == ["1.0.0"]


def test_an_archive_without_the_member_or_with_other_bytes_is_refused(
    one: WebServer, settings: Settings
) -> None:
    url = one.serve("/all.tar", _tar({"a": b"other"}))
    files = {"a": File(b"bytes", [f"tar+{url}#a"]), "b": File(b"b", [f"tar+{url}#b"])}
    name = Parcel(files=files).register(settings.home)

    with pytest.raises(IntegrityError, match="2 of 2 files could not be had"):
        sbd.get(name, settings=settings)


def test_what_another_version_has_is_not_fetched(one: WebServer, settings: Settings) -> None:
    url = one.serve("/a.bin", CONTENT)
    files = {"a.bin": File(CONTENT, [url])}
    first = Parcel(files=files)
    sbd.get(first.register(settings.home), settings=settings)
    asked = len(one.log)

    Parcel(files=files, version="1.1.0").register(settings.home)
    data = sbd.get("parcel@1.1.0", settings=settings)

    assert _content(data) == {"a.bin": CONTENT}
    assert len(one.log) == asked


# --- parts, many, big -----------------------------------------------------------------------------


def test_only_the_files_that_match_come(one: WebServer, settings: Settings) -> None:
    paths = ["train/1.bin", "train/2.bin", "test/1.bin"]
    files = {path: File(path.encode(), [one.serve(path, path.encode())]) for path in paths}
    name = Parcel(files=files).register(settings.home)

    part = sbd.get(name, include=["train/*"], settings=settings)

    assert sorted(_content(part)) == ["train/1.bin", "train/2.bin"]
    assert not one.asked("test/1.bin")
    with pytest.raises(NotFoundError, match="no file matches"):
        sbd.get(name, include=["valid/*"], settings=settings)
    named = sbd.get(name, include=["data/train/*"], settings=settings)
    assert named.resources == part.resources
    assert sorted(_content(sbd.get(name, settings=settings))) == sorted(paths)
    assert len(one.asked("train/1.bin")) == 1


def test_a_list_of_files_is_part_of_the_version(one: WebServer, settings: Settings) -> None:
    files = {
        f"{n:03}.bin": File(f"{n}".encode(), [one.serve(f"{n}", f"{n}".encode())])
        for n in range(150)
    }
    name = Parcel(files=files, listed=True).register(settings.home)

    data = sbd.get(name, settings=settings)

    assert _content(data) == {path: file.content for path, file in files.items()}
    assert (data.path / "manifest.csv").is_file()
    assert not (data.path / "manifest.csv").is_symlink()
    changed = settings.home / "added/parcel/1.0.0/data/manifest.csv"
    changed.write_bytes(changed.read_bytes().replace(b"000.bin", b"zzz.bin"))
    with pytest.raises(ScibenchError, match="another SHA-256"):
        sbd.get(name, settings=settings)


def test_what_the_disk_cannot_hold_is_refused_before_the_first_byte(
    one: WebServer, settings: Settings
) -> None:
    url = one.serve("/a.bin", CONTENT)
    parcel = Parcel(files={"a.bin": File(CONTENT, [url])})
    name = parcel.register(settings.home)
    path = settings.home / "added/parcel/1.0.0/datapackage.json"
    tree = json.loads(path.read_bytes())
    tree["resources"][0]["bytes"] = 1 << 50
    path.write_text(json.dumps(tree))

    with pytest.raises(SpaceError, match="bytes to write"):
        sbd.get(name, settings=settings)

    assert not one.log


def test_terms_are_accepted_first(one: WebServer, settings: Settings) -> None:
    url = one.serve("/a.bin", CONTENT)
    subset = {"terms": "https://data.example.org/terms"}
    name = Parcel(files={"a.bin": File(CONTENT, [url])}, subset=subset).register(settings.home)

    with pytest.raises(LicenceError, match=r"scibench-data accept parcel@1\.0\.0:data"):
        sbd.get(name, settings=settings)
    assert not one.log

    assert sbd.accept(name, settings=settings) == subset["terms"]
    assert _content(sbd.get(name, settings=settings)) == {"a.bin": CONTENT}


def test_what_only_people_can_get_is_said(settings: Settings) -> None:
    parcel = Parcel(files={}, subset={"needs": "a Globus account"})
    tree, _ = parcel.tree()
    del tree  # a package needs a file at least, so another subset has one
    other = Parcel(files={"a.bin": File(CONTENT, ["https://data.example.org/a"])})
    name = other.register(settings.home)
    path = settings.home / "added/parcel/1.0.0/datapackage.json"
    changed = json.loads(path.read_bytes())
    changed["scibench"]["subsets"]["raw"] = {
        "title": "Raw files", "needs": "a Globus account", "about": {"files": 7, "bytes": 10**12},
    }  # fmt: skip
    path.write_text(json.dumps(changed))

    assert sbd.plan(f"{name}:raw", settings=settings).bytes == 10**12
    with pytest.raises(LicenceError, match="a Globus account"):
        sbd.get(f"{name}:raw", settings=settings)


def test_files_come_while_the_dataset_is_built(
    one: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [one.serve(f"/{n}", CONTENT + bytes([n])) for n in range(3)]
    files = {f"{n}.bin": File(CONTENT + bytes([n]), [url]) for n, url in enumerate(urls)}
    name = Parcel(files=files).register(settings.home)

    def stopped(*_: object) -> None:
        sizes = sorted(len(file.content) for file in files.values())
        wait_until(lambda: sorted(path.stat().st_size for path in coming.iterdir()) == sizes)
        raise KeyboardInterrupt

    coming = settings.home / "datasets/parcel/.1.0.0.incoming"
    with monkeypatch.context() as patched:
        patched.setattr(dataset, "build", stopped)
        with pytest.raises(KeyboardInterrupt):
            sbd.get(name, settings=settings)
    assert [(e.kind, e.version, e.path) for e in cache.ls(settings=settings)] == [
        ("partial", "1.0.0", coming)
    ]

    data = sbd.get(name, settings=settings)

    assert _content(data) == {path: file.content for path, file in files.items()}
    assert len(one.log) == 3  # none was asked for again
    assert not coming.exists()


def test_two_paths_with_the_same_bytes_come_once(one: WebServer, settings: Settings) -> None:
    url = one.serve("/a.bin", CONTENT)
    files = {f"{n}.bin": File(CONTENT, [url]) for n in "abc"}
    name = Parcel(files=files).register(settings.home)

    data = sbd.get(name, settings=settings)

    assert _content(data) == dict.fromkeys(files, CONTENT)
    assert len(one.log) == 1


# --- at the command line --------------------------------------------------------------------------


def test_the_command_line_names_files_and_reasons(one: WebServer, home: Path) -> None:
    good, bad = one.serve("/a.bin", CONTENT), one.serve("/b.bin", CONTENT, "not_found")
    Parcel(files={"a.bin": File(CONTENT, [good]), "b.bin": File(b"b", [bad])}).register(home)
    environment = {
        **os.environ,
        "SCIBENCH_DATA_HOME": str(home),
        "SCIBENCH_DATA_ALLOWED_HOSTS": "127.0.0.1",
    }
    words = [sys.executable, "-m", "scibench_data", "get", "parcel"]

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert "1 of 2 files could not be had" in done.stderr
    assert f"data/b.bin: 127.0.0.1:{one.port}: " in done.stderr
    assert "404" in done.stderr
    assert not done.stdout


def test_the_bytes_that_come_are_counted(one: WebServer, settings: Settings) -> None:
    urls = [one.serve(f"/{n}", CONTENT) for n in range(3)]
    files = {f"{n}.bin": File(CONTENT + bytes([n]), [one.serve(f"/{n}", CONTENT + bytes([n]))])
             for n in range(len(urls))}  # fmt: skip
    name = Parcel(files=files).register(settings.home)
    told = Told()

    sbd.get(name, settings=settings, progress=told)

    assert max(told.done) == sum(len(file.content) for file in files.values())


def test_hosts_that_bear_little_are_asked_little(
    one: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: set[str] = set()
    most = 0

    def watched(job: Any, source: Any, resource: Any, target: Path) -> str:
        nonlocal most
        at_once.add(resource.path)
        most = max(most, len(at_once))
        try:
            return fetching._from_file(job, source, resource, target)
        finally:
            at_once.remove(resource.path)

    monkeypatch.setitem(fetching._WAYS, "file", watched)
    monkeypatch.setitem(fetching._HOST_LIMITS, "127.0.0.1", 1)
    urls = {f"{n}.bin": one.serve(f"/{n}", bytes([n]) * 9, latency=0.02) for n in range(6)}
    files = {path: File(bytes([n]) * 9, [url]) for n, (path, url) in enumerate(urls.items())}
    name = Parcel(files=files).register(settings.home)

    sbd.get(name, settings=settings)

    assert most == 1
