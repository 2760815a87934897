"""Packages from outside: what is taken, what is refused, and that nothing of them ever runs."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from gitserver import git_server
from publications import FILES, clean_room, describe, write_package
from webserver import WebServer

from scibench_data import catalog
from scibench_data.annexed import annex
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from scibench_data.getting import dataset, thirdparty
from scibench_data.getting.origins import Origin, origins, source_of
from scibench_data.settings import Settings, load_settings
from scibench_data.sharing.adding import add, forget
from scibench_data.sharing.publishing import publish


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "mini")


def _releases(home: Path, name: str = "mini") -> list[str]:
    return [release.version for release in catalog.releases(name, home)]


# --- a folder


def test_a_folder_with_a_descriptor(folder: Path, settings: Settings) -> None:
    done = add(folder, settings=settings)
    data = dataset.get(catalog.resolve("mini", settings.home), settings)

    assert (done.name, done.versions) == ("mini", ("1.0.0",))
    assert data.commit == catalog.releases("mini", settings.home)[0].commit
    for name, content in FILES.items():
        assert (data.folder / "data" / name).read_bytes() == content


def test_content_may_lie_below_the_subsets_folder(tmp_path: Path, settings: Settings) -> None:
    write_package(tmp_path / "mini/data")
    (tmp_path / "mini/data/datapackage.json").rename(tmp_path / "mini/datapackage.json")
    add(tmp_path / "mini", settings=settings)
    package = catalog.resolve("mini", settings.home).package

    found = source_of(origins(settings.home, "mini"), package.resources[0])

    assert found == tmp_path / "mini/data/a.csv"


def test_a_link_out_of_the_folder_is_no_source(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/b.bin").write_bytes(FILES["deep/b.bin"])
    shutil.rmtree(folder / "deep")
    (folder / "deep").symlink_to(tmp_path / "secret")
    (folder / "a.csv").unlink()
    (folder / "a.csv").symlink_to("zero")
    add(folder, settings=settings)
    package, origin = (
        catalog.resolve("mini", settings.home).package,
        Origin(kind="folder", place=str(folder)),
    )

    assert [source_of(origin, each) for each in package.resources] == [None, None, folder / "zero"]


def test_adding_again_takes_new_versions_only(folder: Path, settings: Settings) -> None:
    add(folder, settings=settings)
    assert add(folder, settings=settings).versions == ()
    write_package(folder, version="1.1.0")

    assert add(folder, settings=settings).versions == ("1.1.0",)
    assert _releases(settings.home) == ["1.0.0", "1.1.0"]


def test_a_version_that_changed_is_refused(folder: Path, settings: Settings) -> None:
    add(folder, settings=settings)
    write_package(folder, {"a.csv": b"other\n"})
    before = catalog.releases("mini", settings.home)

    with pytest.raises(IntegrityError, match=r"mini@1\.0\.0.*never changes"):
        add(folder, settings=settings)
    assert catalog.releases("mini", settings.home) == before


def test_versions_beside_their_releases(tmp_path: Path, settings: Settings) -> None:
    top = tmp_path / "mini"
    entries = []
    for version in ("1.0.0", "1.1.0"):
        (top / version).mkdir(parents=True)
        text = json.dumps(describe(FILES, version))
        (top / version / "datapackage.json").write_text(text)
        entries.append({"version": version, "changes": f"about {version}"})
    (top / "releases.json").write_text(json.dumps({"releases": entries}))
    add(top, settings=settings)

    told = {each.version: each.changes for each in catalog.releases("mini", settings.home)}
    assert told == {"1.0.0": "about 1.0.0", "1.1.0": "about 1.1.0"}

    entries[0]["commit"] = "0" * 40
    (top / "releases.json").write_text(json.dumps({"releases": entries}))
    with pytest.raises(IntegrityError, match="its descriptors give"):
        add(top, settings=settings)


def test_every_problem_is_told_at_once(tmp_path: Path, settings: Settings) -> None:
    tree = describe({**FILES, "../../evil": b"x"}, "1.0")
    tree["resources"][0]["hash"] = "md5:0"
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))

    with pytest.raises(DescriptorError) as caught:
        add(tmp_path, settings=settings)

    told = str(caught.value)
    assert all(part in told for part in ("version", "resources[0].hash", "resources[3].path"))
    assert not (settings.home / "added").exists()


def test_code_is_left_out_and_said(folder: Path, settings: Settings) -> None:
    (folder / "reader.py").write_text("raise SystemExit")

    assert "reader.py" in add(folder, settings=settings).notes[0]
    assert not list(settings.home.rglob("*.py"))


def test_nothing_to_add(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="scibench-data init"):
        add(tmp_path, settings=settings)


# --- names


def test_a_shipped_name_is_refused(tmp_path: Path, settings: Settings) -> None:
    write_package(tmp_path / "x", name="cryoem")

    with pytest.raises(UsageError, match=r"ships with scibench-data.*--as"):
        add(tmp_path / "x", settings=settings)


def test_a_name_from_elsewhere_is_refused(folder: Path, tmp_path: Path, settings: Settings) -> None:
    add(folder, settings=settings)
    other = write_package(tmp_path / "other", {"b.csv": b"b\n"})

    with pytest.raises(UsageError, match=rf"added from {folder} before.*--as"):
        add(other, settings=settings)


def test_another_name_leaves_bytes_and_commit_as_they_are(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    published = publish(folder, tmp_path / "site", settings=settings)
    other = load_settings(home=tmp_path / "other-home")
    write_package(tmp_path / "taken", {"b.csv": b"b\n"})
    add(tmp_path / "taken", settings=other)

    assert add(tmp_path / "site", name="theirs", settings=other).name == "theirs"
    data = dataset.get(catalog.resolve("theirs", other.home), other)

    assert data.commit == published.commit
    assert data.folder == other.home / "datasets/theirs/1.0.0"
    assert {"mini", "theirs"} <= set(catalog.package_names(other.home))
    assert add(tmp_path / "site", name="theirs", settings=other).versions == ()


@pytest.mark.parametrize("name", ["../x", "-x", "X", "", "a" * 65, "a/b"])
def test_names_that_are_none(folder: Path, settings: Settings, name: str) -> None:
    if name:
        with pytest.raises(UsageError, match="not a name"):
            add(folder, name=name, settings=settings)


def test_forget(folder: Path, settings: Settings) -> None:
    add(folder, settings=settings)
    forget("mini", settings=settings)

    assert "mini" not in catalog.package_names(settings.home)
    with pytest.raises(NotFoundError):
        forget("mini", settings=settings)
    with pytest.raises(NotFoundError):
        forget("cryoem", settings=settings)
    assert add(folder, settings=settings).versions == ("1.0.0",)


# --- a publication


def _git(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *words], cwd=cwd, env=clean_room(cwd.parent / "room"), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_publication_that_was_rewritten(folder: Path, tmp_path: Path, settings: Settings) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    tree = _git("--git-dir=.", "rev-parse", "main^{tree}", cwd=tmp_path / "site")
    other = _git("--git-dir=.", "commit-tree", "-m", "x", tree, cwd=tmp_path / "site")
    _git("--git-dir=.", "update-ref", "refs/heads/main", other, cwd=tmp_path / "site")

    with pytest.raises(IntegrityError, match=f"main is at {other}"):
        add(tmp_path / "site", settings=load_settings(home=tmp_path / "other-home"))


def test_a_version_that_vanished_from_a_publication(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "a", settings=settings)
    first = shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_package(folder, version="1.1.0")
    publish(folder, tmp_path / "a", settings=settings)
    other = load_settings(home=tmp_path / "other-home")
    add(tmp_path / "a", settings=other)
    shutil.rmtree(tmp_path / "a")
    first.rename(tmp_path / "a")

    with pytest.raises(IntegrityError, match=r"version 1\.1\.0 is gone"):
        add(tmp_path / "a", settings=other)


def test_where_a_publication_has_its_content(folder: Path, settings: Settings) -> None:
    add(folder, settings=settings)
    resource = catalog.resolve("mini", settings.home).package.resources[0]
    base = "https://example.org/mini"
    held = Origin(kind="publication", place="https://git.example.org/r.git", contents=(base,))

    url = source_of(held, resource)

    assert url == (
        f"{base}/annex/objects/{annex.log_folder(resource.key)}/{resource.key}/{resource.key}"
    )
    assert source_of(Origin(kind="datalad", place=base), resource) is None


@pytest.mark.parametrize(
    "place",
    ["http://example.org/x", "https://127.0.0.1/x", "ssh://h/x", "git@h:x", "ext::touch x",
     "file:///etc", "https://u:secret@example.org/x", "https://2130706433/x"],
)  # fmt: skip
def test_urls_that_may_not_be_asked(settings: Settings, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        add(place, settings=settings)
    assert "secret" not in str(caught.value)


def test_offline(settings: Settings) -> None:
    with pytest.raises(NetworkError, match="offline"):
        add("https://example.org/x", settings=replace(settings, offline=True))


def test_a_redirect_is_not_followed(folder: Path, tmp_path: Path, settings: Settings) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    other = load_settings(home=tmp_path / "other-home", allowed_hosts=["127.0.0.1"])
    with WebServer() as inner, WebServer() as outer:
        inner.serve_folder(tmp_path / "site", "/site")
        url = outer.serve(
            "/site/info/refs", b"", "redirect", location=f"{inner.url}/site/info/refs"
        )
        with pytest.raises(NetworkError):
            add(url.removesuffix("/info/refs"), settings=other)
        assert not inner.log


def test_a_cut_off_clone_registers_nothing(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    victim = max((tmp_path / "site/objects").glob("??/*"), key=lambda path: path.stat().st_size)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-20])
    other = load_settings(home=tmp_path / "other-home", allowed_hosts=["127.0.0.1"])
    with WebServer() as web:
        url = web.serve_folder(tmp_path / "site", "/site")
        with pytest.raises(NetworkError):
            add(url, settings=other)
    assert not (other.home / "added").exists()


# --- DataLad datasets that know nothing of us


def _annexed(folder: Path, backend: str = "SHA256E") -> Path:
    """Make a dataset as its makers do, with files in the annex and in git."""
    folder.mkdir(parents=True)
    _git("init", "-q", "-b", "master", ".", cwd=folder)
    _git("annex", "init", "-q", "them", cwd=folder)
    _git("config", "annex.backend", backend, cwd=folder)
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    about = {"Name": "Their \x1b[31mdata", "License": "CC0", "Authors": ["A. Author"]}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    (folder / ".hidden").write_text("x")
    (folder / "elsewhere").symlink_to("/etc/passwd")
    _git("annex", "add", "-q", *FILES, cwd=folder)
    _git("-c", "annex.largefiles=nothing", "add", "-A", cwd=folder)
    _git("commit", "-q", "-m", "data", cwd=folder)
    return folder


def test_a_datalad_dataset_on_this_disk(tmp_path: Path, settings: Settings) -> None:
    theirs = _annexed(tmp_path / "their-data")
    commit = _git("rev-parse", "HEAD", cwd=theirs)

    done = add(theirs, settings=settings)
    data = dataset.get(catalog.resolve("their_data", settings.home), settings)

    assert done.versions == (f"0.0.0-1.g{commit[:12]}",)
    assert any("hidden" in note for note in done.notes)
    assert any("elsewhere" in note for note in done.notes)
    assert data.package.licenses[0].name == "CC0-1.0"
    assert data.package.title == "Their [31mdata"
    for name, content in FILES.items():
        assert (data.folder / "files" / name).read_bytes() == content


def test_a_datalad_dataset_on_a_server(tmp_path: Path, settings: Settings) -> None:
    theirs = _annexed(tmp_path / "theirs", "MD5E")
    allowed = replace(settings, allowed_hosts=("127.0.0.1",))
    with git_server(tmp_path / "git") as server:
        url = server.make("their-data.git")
        _git("push", "-q", url, "master", "git-annex", cwd=theirs)
        (tmp_path / "git/their-data.git/HEAD").write_text("ref: refs/heads/master\n")
        done = add(url, settings=allowed)
        (theirs / "a.csv").unlink()
        _git("commit", "-q", "-am", "less", cwd=theirs)
        _git("push", "-q", url, "master", cwd=theirs)
        newer = add(url, settings=allowed)
    package = catalog.resolve("their_data", settings.home).package

    assert len(newer.versions) == 1
    assert package.version == newer.versions[0] > done.versions[0]
    assert any("no SHA-256" in note for note in done.notes)
    by_path = {resource.path: resource for resource in package.resources}
    assert "files/a.csv" not in by_path
    binary = by_path["files/deep/b.bin"]
    assert (binary.sha256, binary.bytes, binary.exact) == ("", len(FILES["deep/b.bin"]), True)
    assert binary.sources == (f"datalad+{url}#deep/b.bin",)
    assert by_path["files/dataset_description.json"].sha256


def test_a_large_dataset_gets_a_list(tmp_path: Path, settings: Settings) -> None:
    theirs = tmp_path / "many"
    theirs.mkdir()
    _git("init", "-q", "-b", "main", ".", cwd=theirs)
    for number in range(150):
        (theirs / f"f{number}.txt").write_text(str(number))
    _git("add", "-A", cwd=theirs)
    _git("commit", "-q", "-m", "x", cwd=theirs)
    done = add(theirs, settings=settings)

    package = catalog.resolve("many", settings.home).package

    assert len(package.resources) == 150
    assert list(package.lists) == ["files/manifest.csv"]
    assert any("licence is unknown" in note for note in done.notes)


def test_an_md5_key_without_content_is_told(tmp_path: Path, settings: Settings) -> None:
    theirs = _annexed(tmp_path / "theirs", "MD5E")
    for path in (theirs / ".git/annex/objects").rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(theirs / ".git/annex/objects")

    with pytest.raises(NotFoundError, match=r"a\.csv: neither a SHA-256 nor its content"):
        add(theirs, settings=settings)


def test_files_of_a_published_dataset_by_git_annex(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    publish(folder, tmp_path / "site", settings=settings)
    wanted = ["data/a.csv", "data/deep/b.bin", "datapackage.json", "../evil", "data/absent"]
    with WebServer() as web:
        url = web.serve_folder(tmp_path / "site", "/site")
        found = thirdparty.fetch_files(url, wanted, tmp_path / "there", ["127.0.0.1"])
        alone = thirdparty.fetch_files(url, wanted, tmp_path / "other", ["localhost"])

    assert sorted(found) == ["data/a.csv", "data/deep/b.bin", "datapackage.json"]
    assert found["data/deep/b.bin"].read_bytes() == FILES["deep/b.bin"]
    assert sorted(alone) == ["datapackage.json"]  # git-annex may not ask private addresses


# --- hostile ones

_CONFIG = """\
[datalad "result-hook.x"]
	match-json = {{"type":["dataset","file"]}}
	call-json = run {{"cmd":"{canary}","dataset":"{{dsarg}}"}}
[datalad "procedures.evil"]
	call-format = {canary}
[datalad "ssh"]
	executable = {canary}
[datalad "get"]
	subdataset-source-candidate-evil = ext::{canary}
[datalad "clone"]
	url-substitute-1 = ,^https?://.*$,ext::{canary}
"""
_LOCAL = """\
	fsmonitor = {canary}
	sshCommand = {canary}
	hooksPath = {hooks}
	alternateRefsCommand = {canary}
[uploadpack]
	packObjectsHook = {canary}
[filter "evil"]
	smudge = {canary}
	clean = {canary}
[remote "origin"]
	url = ext::{canary}
	promisor = true
	uploadpack = {canary}
[remote "evil"]
	annex-externaltype = evil
	annex-uuid = 11111111-1111-4111-8111-111111111111
"""
_SUBMODULES = """\
[submodule "s1"]
	path = s1
	url = ext::sh -c {canary}
[submodule "s2"]
	path = s2
	url = ssh://-oProxyCommand={canary}
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program that leaves a mark on PATH, under all the names that could be started."""
    bin_folder, mark = tmp_path / "bin", tmp_path / "mark"
    bin_folder.mkdir()
    names = ("canary", "git-annex-remote-evil", "git-annex-compute-evil", "ssh")
    for name in names:
        program = bin_folder / name
        program.write_text(f"#!/bin/sh\necho {name} >> {mark}\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    return mark


def _hostile(folder: Path, canary: Path) -> Path:
    """Make a dataset that tries to start programs in every way that is known."""
    theirs = _annexed(folder)
    program = canary.with_name("bin") / "canary"
    (theirs / ".datalad/procedures").mkdir(parents=True)
    (theirs / ".datalad/config").write_text(_CONFIG.format(canary=program))
    procedure = theirs / ".datalad/procedures/cfg_evil.sh"
    shutil.copy(program, procedure)
    (theirs / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (theirs / ".gitmodules").write_text(_SUBMODULES.format(canary=program))
    (theirs / "rootlink").symlink_to("/")
    _git("-c", "annex.largefiles=nothing", "add", "-A", cwd=theirs)
    _git("commit", "-q", "-m", "hostile", cwd=theirs)
    commit = _git("rev-parse", "HEAD", cwd=theirs)
    _git("update-index", "--add", "--cacheinfo", f"160000,{commit},s1", cwd=theirs)
    _git("commit", "-q", "--no-verify", "-m", "submodule", cwd=theirs)
    remotes = "".join(
        f"{number:08d}-1111-4111-8111-111111111111 {line} timestamp=1700000000s\n"
        for number, line in enumerate(
            [
                "autoenable=true encryption=none externaltype=evil name=ev type=external",
                "autoenable=true name=cmp type=compute program=git-annex-compute-evil",
                "autoenable=true encryption=none name=hk type=hook hooktype=evil",
                "autoenable=true encryption=none name=dir type=directory directory=/etc",
                "autoenable=true name=gt type=git location=ssh://-oProxyCommand=canary/x",
                "autoenable=true name=content-0a type=web urlinclude=http://127.0.0.1/*",
                "autoenable=true name=content-0b type=web urlinclude=file:///etc/*",
            ]
        )
    )
    annex.commit_files(
        theirs, "refs/heads/git-annex", {"remote.log": remotes.encode()}, seconds=1_700_000_000
    )
    hooks = theirs / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "post-upload-pack", "reference-transaction", "post-index-change"):
        shutil.copy(program, hooks / name)
    with (theirs / ".git/config").open("a") as config:
        config.write("[core]\n" + _LOCAL.format(canary=program, hooks=hooks))
    return theirs


def test_the_hostile_dataset_is_hostile(tmp_path: Path, canary: Path) -> None:
    theirs = _hostile(tmp_path / "evil", canary)
    config = theirs / ".git/config"
    config.write_text(config.read_text().partition("[core]\n\tfsmonitor")[0])
    canary.unlink(missing_ok=True)
    room = clean_room(tmp_path / "room")
    room["PATH"] = f"{tmp_path / 'bin'}:{room['PATH']}"
    for words in (["clone", "-q", str(theirs), "clone"], ["-C", "clone", "annex", "init", "-q"]):
        subprocess.run(["git", *words], cwd=tmp_path, env=room, capture_output=True, check=False)

    assert "git-annex-remote-evil" in canary.read_text()


def test_a_hostile_dataset_runs_nothing(tmp_path: Path, settings: Settings, canary: Path) -> None:
    theirs = _hostile(tmp_path / "evil", canary)
    canary.unlink(missing_ok=True)  # what making it has run does not count

    done = add(theirs, settings=settings)
    dataset.get(catalog.resolve("evil", settings.home), settings)

    assert any("subdatasets" in note for note in done.notes)
    assert not canary.exists(), canary.read_text()


def test_a_hostile_dataset_from_a_server_runs_nothing(
    tmp_path: Path, settings: Settings, canary: Path
) -> None:
    theirs = _hostile(tmp_path / "evil", canary)
    allowed = replace(settings, allowed_hosts=("127.0.0.1",))
    with git_server(tmp_path / "git") as server:
        url = server.make("evil.git")
        config = theirs / ".git/config"
        config.write_text(config.read_text().partition("[core]\n\tfsmonitor")[0])
        shutil.rmtree(theirs / ".git/hooks")
        _git("push", "-q", url, "master", "git-annex", cwd=theirs)
        (tmp_path / "git/evil.git/HEAD").write_text("ref: refs/heads/master\n")
        canary.unlink(missing_ok=True)
        assert add(url, settings=allowed).versions
        assert not thirdparty.fetch_files(url, ["a.csv", "rootlink"], tmp_path / "f", ["127.0.0.1"])
    assert not canary.exists(), canary.read_text()


@pytest.mark.parametrize("path", ["../evil", ".git/hooks/x", "a/../../x", "CON", "a\tb"])
def test_hostile_paths_are_left_out(tmp_path: Path, settings: Settings, path: str) -> None:
    theirs = tmp_path / "evil"
    theirs.mkdir()
    _git("init", "-q", "-b", "main", ".", cwd=theirs)
    stream = "commit refs/heads/main\ncommitter a <a@b> 1700000000 +0000\ndata 0\n"
    quoted = path.replace("\t", "\\t")
    for each in (quoted, "good.txt"):
        stream += f'M 100644 inline "{each}"\ndata 3\nabc\n'
    annex.git("fast-import", "--quiet", cwd=theirs, stdin=stream.encode())
    try:
        done = add(theirs, settings=settings)
    except NetworkError as error:  # git's own check of what it fetched
        assert "fsck" in str(error) or "fetch" in str(error)  # noqa: PT017
    else:
        package = catalog.resolve("evil", settings.home).package
        assert [each.path for each in package.resources] == ["files/good.txt"]
        assert any("left out" in note for note in done.notes)
