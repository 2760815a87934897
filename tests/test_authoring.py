"""A folder of files becomes a sound package, and what is wrong with one is said all at once."""

import contextlib
import csv
import hashlib
import http.server
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategies import mutants

from scibench_data.commands import own as verbs_own
from scibench_data.describing import authoring, scanning, tables
from scibench_data.describing.about import spdx
from scibench_data.describing.authoring import Draft, init
from scibench_data.describing.checking import Finding, check, is_sound
from scibench_data.describing.scanning import BESIDE, content_path
from scibench_data.descriptor import DataPackage, read_descriptor
from scibench_data.durable import open_regular, sha256_file
from scibench_data.errors import DescriptorError, NetworkError, NotFoundError, UsageError
from scibench_data.foreign import folded, path_fault
from scibench_data.settings import Settings, load_settings

ABOUT: dict[str, Any] = {
    "title": "Measured things",
    "description": "Things that were measured in the laboratory on two days in spring, with care.",
    "license": "CC-BY-4.0",
    "authors": ["Ada B. Curie", "Doe, Joan"],
    "keywords": ["things"],
}
FORM = re.compile(r"[^\n]+: [^\n]+; [^\n]+(\n  [^\n]+)*")
FEW = hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def lay(root: Path, **files: str | bytes) -> Path:
    """Write files; in a keyword, two underscores are a slash and one is a point."""
    for name, content in files.items():
        put(root, name.replace("__", "/").replace("_", "."), content)
    return root


def put(root: Path, name: str, content: str | bytes = "x") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def describe(folder: Path, **options: Any) -> Draft:
    return init(folder, **{**ABOUT, **options})


def told(folder: Path) -> Any:
    return json.loads((folder / "datapackage.json").read_bytes())


def read(folder: Path) -> DataPackage:
    return read_descriptor(folder / "datapackage.json", check=True)


def wrong(target: Path | str, **options: Any) -> list[str]:
    return [
        f"{each.place}: {each.message}"
        for each in check(target, **options)
        if each.level == "problem"
    ]


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        describe(folder, **options)
    message = str(caught.value)
    assert FORM.fullmatch(message), message
    return message


# --- whatever the files are -----------------------------------------------------------------------

_letters = st.sampled_from("abzAZ019_- +=%é東.#&'()[]{}~@,")
_names = st.text(_letters, min_size=1, max_size=8).filter(lambda name: path_fault(name) is None)
_trees = st.dictionaries(
    st.lists(_names, min_size=1, max_size=3).map("/".join),
    st.one_of(st.binary(max_size=40), st.sampled_from([b"a,b\n1,2\n", b"a;b\n1,x\n", b"[1]"])),
    min_size=1,
    max_size=8,
)


def _spread(root: Path, tree: dict[str, bytes]) -> dict[str, bytes]:
    """Write what fits together on every file system, and return it."""
    kept: dict[str, bytes] = {}
    for name, content in tree.items():
        known = {folded(other) for other in kept}
        ends = {folded(name[: m.start()]) for m in re.finditer("/", name)} | {folded(name)}
        below = any(other.startswith(folded(name) + "/") for other in known)
        if not (ends & known or below):
            put(root, name, content)
            kept[name] = content
    return kept


@FEW
@given(tree=_trees, apart=st.booleans())
@example(tree={"data/a.csv": b"1", "b/data/a.csv": b"2", "c": b"3"}, apart=False)
@example(tree={"Train/a": b"1", "data/data/a": b"2", "data/x": b"4"}, apart=True)
@example(tree={"[ab].csv": b"a,b\n1,2\n", "a.csv": b"a\n1\n"}, apart=False)
@example(tree={"README.md": b"1", "train/x.tsv": b"a\tb\n1\t2\n"}, apart=False)
def test_whatever_is_described_is_sound_and_found_again(
    tree: dict[str, bytes], apart: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, package = Path(scratch) / "files", Path(scratch) / ("mine" if apart else "files")
        kept = _spread(root, tree)
        draft = describe(package, source=root, name="mine")

        assert wrong(package) == []
        resources = read(package).resources
        assert draft.files == len(resources)
        measured = {content_path(root, r.path): (r.bytes, r.sha256) for r in resources}
        expected = {
            root / name: (len(content), hashlib.sha256(content).hexdigest())
            for name, content in kept.items()
            if len(resources) == len(kept) or "/" in name
        }
        assert measured == expected
        again = (package / "datapackage.json").read_bytes()
        init(package, update=True)
        assert (package / "datapackage.json").read_bytes() == again


@FEW
@given(first=_trees, second=_trees)
@example(first={"a/x": b"1", "b/x": b"1"}, second={"a/x": b"1", "b/x": b"1", "loose": b"2"})
@example(first={"x": b"1"}, second={"x": b"1", "data/y": b"1"})
@example(first={"a/x": b"1"}, second={"a/x": b"1", "b/x": b"1"})
def test_an_update_is_sound_and_counts_by_what_became_of_the_paths(
    first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, package = Path(scratch) / "files", Path(scratch) / "mine"
        _spread(root, first)
        describe(package, source=root)
        before = {r.path: r.sha256 for r in read(package).resources}
        shutil.rmtree(root)
        _spread(root, second)
        draft: Draft | None = None
        with contextlib.suppress(UsageError):
            draft = init(package, update=True)
        if draft is None:
            message = refusal(package, update=True)
            assert "beside the subsets" in message or "keep one of the two" in message
            return
        after = {r.path: r.sha256 for r in read(package).resources}

        kept = before.items() <= after.items()
        expected = "0.1.0" if before == after else "0.2.0" if kept else "1.0.0"
        assert draft.version == read(package).version == expected
        assert wrong(package) == []


def test_the_result_is_valid_by_the_official_profile_and_by_frictionless(tmp_path: Path) -> None:
    import dplib
    import frictionless

    lay(tmp_path, a_csv="n,when\n1,2020-01-01\n", b_tsv="n\tx\n1\t0.5\n", c_h5=b"\x89HDF")
    describe(tmp_path, name="mine", subset="data")
    official = Path(dplib.__file__).parent / "profiles/2.0/datapackage.json"
    jsonschema.Draft7Validator(json.loads(official.read_bytes())).validate(told(tmp_path))

    fields = {r["path"]: r.get("schema", {}).get("fields") for r in told(tmp_path)["resources"]}
    assert fields == {
        "data/a.csv": [{"name": "n", "type": "integer"}, {"name": "when", "type": "date"}],
        "data/b.tsv": [{"name": "n", "type": "integer"}, {"name": "x", "type": "number"}],
        "data/c.h5": None,
    }
    (tmp_path / "data").mkdir()
    for name in ("a.csv", "b.tsv", "c.h5"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    report = frictionless.Package(str(tmp_path / "datapackage.json")).validate()
    assert report.valid, report.flatten(["message"])


def test_an_interrupt_ends_the_hashing(tmp_path: Path) -> None:
    for number in range(500):
        put(tmp_path, f"s/{number}", str(number))
    seen: list[int] = []

    class Impatient:
        @contextlib.contextmanager
        def task(self, *_: object, **__: object) -> Iterator["Impatient"]:
            yield self

        def update(self, done: int, *_: object, **__: object) -> None:
            seen.append(done)
            time.sleep(0.01)  # until the main thread has heard of it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe(tmp_path, name="mine", progress=Impatient())
    assert len(seen) < 50
    assert not (tmp_path / "datapackage.json").exists()


# --- the layout -----------------------------------------------------------------------------------


def test_folders_are_subsets_and_texts_about_the_whole_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, train__a_csv="a\n1\n", test__a_csv="a\n2\n", README_md="# x", LICENSE="y")
    draft = describe(tmp_path, name="mine")

    assert [r.path for r in read(tmp_path).resources] == ["test/a.csv", "train/a.csv"]
    assert "left out, about the whole, not data: LICENSE, README.md (2)" in draft.notes
    assert wrong(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        (["x.csv", "deep/y.csv"], ["data/deep/y.csv", "data/x.csv"]),
        (["Train Set/x", "test/y"], ["data/Train Set/x", "data/test/y"]),
        (["data/x", "loose"], ["data/loose", "data/x"]),
        (["data/data/x", "x"], ["data/data/x", "data/x"]),
        (["README.md"], ["data/README.md"]),
    ],
)
def test_loose_files_are_one_subset(tmp_path: Path, files: list[str], paths: list[str]) -> None:
    for name in files:
        put(tmp_path, name, name)
    describe(tmp_path, name="mine")

    assert [r.path for r in read(tmp_path).resources] == paths
    for resource in read(tmp_path).resources:
        content = content_path(tmp_path, resource.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == resource.sha256


def test_a_link_does_not_hide_the_file_that_is_described(tmp_path: Path) -> None:
    put(tmp_path, "x", "1")
    put(tmp_path, "data/y", "2")
    (tmp_path / "data/x").symlink_to("y")
    describe(tmp_path, name="mine")

    assert content_path(tmp_path, "data/x") == tmp_path / "x"
    assert wrong(tmp_path) == []


def test_one_subset_can_be_asked_for(tmp_path: Path) -> None:
    lay(tmp_path, images__a="1", labels__a="2")
    describe(tmp_path, name="mine", subset="all")

    assert list(read(tmp_path).subsets) == ["all"]
    assert [r.path for r in read(tmp_path).resources] == ["all/images/a", "all/labels/a"]
    assert wrong(tmp_path) == []


def test_the_folder_of_the_files_is_remembered(tmp_path: Path) -> None:
    lay(tmp_path / "files", a_csv="a\n1\n")
    package = tmp_path / "mine"
    describe(package, source=tmp_path / "files")

    assert json.loads((package / BESIDE).read_bytes()) == {"files": "../files"}
    assert sorted(path.name for path in package.iterdir()) == [BESIDE, "datapackage.json"]
    assert scanning.files_folder(package) == tmp_path / "files"
    put(tmp_path / "files", "a.csv", "a\n2\n")
    assert "SHA-256" in wrong(package)[0]
    (tmp_path / "files").rename(tmp_path / "elsewhere")
    assert "the folder of the files is gone; name the new one" in wrong(package)[0]
    assert "is gone; name the new one" in refusal(package, update=True)
    describe(package, source=tmp_path / "elsewhere", update=True)
    assert wrong(package) == []


def test_a_package_folder_within_the_files_is_not_described(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    describe(tmp_path / "mine", source=tmp_path)
    describe(tmp_path / "mine", update=True)

    assert [r.path for r in read(tmp_path / "mine").resources] == ["data/a.bin"]


# --- what can't be described ----------------------------------------------------------------------


def test_every_hostile_name_is_told_at_once(tmp_path: Path) -> None:
    names = ["a:b.csv", "con.txt", "end.", "tab\tname", "a\\b", "A", "a", "\u202ex", "git~1"]
    for name in names:
        put(tmp_path, f"s/{name}")
    (tmp_path / os.fsdecode(b"s/not-\xff-utf8")).write_bytes(b"")
    message = refusal(tmp_path)

    assert "9 things keep it from being a package; put them right" in message
    for name in (*names[:5], *names[7:], "not-\udcff-utf8"):
        assert repr(f"s/{name}") in message
    assert "'s/a': the same as 's/A' where case is ignored; rename one" in message
    assert message.replace("\n  ", "").isprintable()
    assert not (tmp_path / "datapackage.json").exists()


def test_a_file_above_a_folder_where_case_is_ignored(tmp_path: Path) -> None:
    lay(tmp_path, s__a="1", s__A__b="2")

    assert "below 's/a', a file, where case is ignored" in refusal(tmp_path)


def test_links_and_hidden_files_are_left_out_and_said(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    files = lay(tmp_path / "files", s__a="1", s__b="2")
    put(files, "s/.DS_Store")
    put(files, ".git/config")
    (files / "s/link").symlink_to(secret)
    (files / "s/folder").symlink_to(tmp_path)
    os.mkfifo(files / "s/pipe")
    draft = describe(files)

    assert [r.path for r in read(files).resources] == ["s/a", "s/b"]
    assert "left out, hidden: .git, s/.DS_Store (2)" in draft.notes
    links = "links or devices, which are not followed: s/folder, s/link, s/pipe (3)"
    assert f"left out, {links}" in draft.notes


def test_nothing_to_describe(tmp_path: Path) -> None:
    assert "no such folder; make it, or add --from" in refusal(tmp_path / "absent")
    assert "no such folder; name the folder of" in refusal(tmp_path, source=tmp_path / "absent")
    assert "no files; put files there" in refusal(tmp_path)
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert "no files, only links: link;" in refusal(tmp_path)
    assert not (tmp_path / "absent").exists()


def test_unreadable_folders_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, s__a="1", t__b="2", u__c="3")
    real = os.scandir

    def failing(path: Path) -> Any:
        if path.name in {"t", "u"}:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    message = refusal(tmp_path)

    assert "2 things keep it from being a package" in message
    assert "'t': Permission denied; make it readable" in message
    assert "'u': Permission denied; make it readable" in message


def test_a_file_that_vanishes_or_fails_while_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, s__a="1", s__b="2", s__c="3")
    real = open_regular

    def failing(path: Path) -> Any:
        if path.name in {"a", "c"}:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(scanning, "open_regular", failing)
    message = refusal(tmp_path)

    assert "'s/a': Permission denied; make it a readable file" in message
    assert "'s/c': Permission denied" in message


def test_a_zarr_folder_is_refused_with_its_cure(tmp_path: Path) -> None:
    lay(tmp_path, s__x_csv="a\n1\n")
    put(tmp_path, "s/a.zarr/.zarray", "{}")
    put(tmp_path, "s/a.zarr/0.0", "1")

    assert "a Zarr store as a folder (.zarray); pack it into one file" in refusal(tmp_path)


def test_two_files_that_would_get_one_path(tmp_path: Path) -> None:
    put(tmp_path, "data/x", "1")
    put(tmp_path, "x", "2")

    assert "'x': there is 'data/x' too; keep one of the two" in refusal(tmp_path)


# --- what a person says ---------------------------------------------------------------------------


def test_nothing_is_made_up(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    draft = init(tmp_path, name="mine")

    assert [line.partition(":")[0] for line in draft.needed] == [
        "contributors", "description", "licenses", "title",
    ]  # fmt: skip
    assert wrong(tmp_path) == [
        "contributors: missing", "description: missing", "licenses: missing", "title: missing",
    ]  # fmt: skip
    with pytest.raises(DescriptorError):
        read(tmp_path)
    draft = init(tmp_path, update=True, **ABOUT)
    assert draft.needed == ()
    assert draft.version == "0.1.0"
    assert wrong(tmp_path) == []


def test_what_is_said_is_written(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    describe(tmp_path, name="mine", license="cc-by-4.0", organizations=["The Lab"], version="3.0.0")
    package = read(tmp_path)

    assert (package.name, package.version, package.keywords) == ("mine", "3.0.0", ("things",))
    assert package.licenses[0].name == "CC-BY-4.0"
    assert package.licenses[0].path == "https://spdx.org/licenses/CC-BY-4.0.html"
    people = [(p.given_name, p.family_name, p.title) for p in package.contributors]
    assert people == [("Ada B.", "Curie", ""), ("Joan", "Doe", ""), ("", "", "The Lab")]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"license": "free"}, "license: expected an SPDX identifier such as CC0-1.0"),
        ({"license": "MIT OR Apache-2.0"}, "license: expected an SPDX identifier"),
        ({"authors": ["Plato"]}, 'author: expected "Given Family"'),
    ],
)
def test_what_can_not_be_meant_is_refused(
    tmp_path: Path, option: dict[str, Any], message: str
) -> None:
    put(tmp_path, "a.bin")

    assert message in refusal(tmp_path, **option)


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ({"name": "No name"}, "name"),
        ({"version": "1"}, "version"),
        ({"title": "a\nb"}, "title"),
        ({"subset": "No"}, "scibench.subsets.No"),
    ],
)
def test_what_would_not_be_sound_is_not_written(
    tmp_path: Path, option: dict[str, Any], place: str
) -> None:
    put(tmp_path, "a.bin")
    with pytest.raises(DescriptorError) as caught:
        describe(tmp_path, **{"name": "mine", **option})

    assert any(str(problem).startswith(f"{place}: ") for problem in caught.value.problems)
    assert not (tmp_path / "datapackage.json").exists()


@pytest.mark.parametrize(
    ("folder", "name"), [("My-Data 2", "my_data_2"), ("2024 run", "run"), ("UPPER", "upper")]
)
def test_the_name_comes_from_the_folder(tmp_path: Path, folder: str, name: str) -> None:
    put(tmp_path / folder, "a.bin")

    assert describe(tmp_path / folder).name == name


def test_a_folder_without_letters_needs_a_name(tmp_path: Path) -> None:
    put(tmp_path / "2024", "a.bin")

    assert "its name can't be that of a package; add --name" in refusal(tmp_path / "2024")
    assert describe(tmp_path / "2024", name="mine").name == "mine"


def test_a_name_that_ships_is_warned_of(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")

    assert any(
        "ships with scibench-data" in note for note in describe(tmp_path, name="cryoem").notes
    )


def test_spdx_knows_single_identifiers() -> None:
    assert spdx("cc0-1.0") == "CC0-1.0"
    assert spdx("LicenseRef-mine") == "LicenseRef-mine"
    assert spdx("") == spdx("MIT AND ISC") == spdx("../x") == ""


def test_media_types_do_not_depend_on_the_machine() -> None:
    names = [
        "a.h5", "a.mrc", "a.mrcs", "a.star", "a.zarr.zip", "a.npz", "a.npy", "a.parquet", "a.tif",
        "a.csv", "a.csv.gz", "a",
    ]  # fmt: skip
    types = [authoring.mediatype(name) for name in names]

    assert types == [
        "application/x-hdf5", "application/octet-stream", "application/octet-stream", "text/plain",
        "application/zip", "application/x-npz", "application/x-npy",
        "application/vnd.apache.parquet", "image/tiff", "text/csv", "application/gzip",
        "application/octet-stream",
    ]  # fmt: skip


# --- many files -----------------------------------------------------------------------------------


def test_more_than_100_files_go_into_a_list(tmp_path: Path) -> None:
    for number in range(150):
        put(tmp_path, f"many/{number:03}.csv", f"a\n{number}\n")
    put(tmp_path, "few/a.csv", "a\n1\n")
    draft = describe(tmp_path, name="mine")

    entries = told(tmp_path)["resources"]
    assert [entry["path"] for entry in entries] == ["few/a.csv", "many/manifest.csv"]
    assert "schema" in entries[0]
    assert len(read(tmp_path).resources) == draft.files == 151
    assert "subset many: 150 files, listed in many/manifest.csv" in draft.notes
    assert wrong(tmp_path) == []
    with (tmp_path / "many/manifest.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 150
    faults, unchecked = tables.table_faults(tmp_path / "many/manifest.csv", entries[1])
    assert (faults, unchecked) == ([], "")


def test_a_list_comes_and_goes_with_the_number_of_files(tmp_path: Path) -> None:
    for number in range(101):
        put(tmp_path, f"{number:03}")
    describe(tmp_path, name="mine")
    assert [entry["path"] for entry in told(tmp_path)["resources"]] == ["data/manifest.csv"]
    (tmp_path / "100").unlink()
    draft = init(tmp_path, update=True)

    assert len(told(tmp_path)["resources"]) == 100
    assert not (tmp_path / "data/manifest.csv").exists()
    assert draft.version == "1.0.0"
    put(tmp_path, "100")
    assert init(tmp_path, update=True).version == "1.1.0"
    assert wrong(tmp_path) == []


def test_the_name_of_the_list_is_taken(tmp_path: Path) -> None:
    for number in range(101):
        put(tmp_path, f"s/{number}")
    put(tmp_path, "s/manifest.csv", "mine")

    assert "'s/manifest.csv': the name of the list of files; rename it" in refusal(tmp_path)
    assert (tmp_path / "s/manifest.csv").read_text() == "mine"


def test_what_a_person_wrote_of_a_file_stays_when_the_others_are_listed(tmp_path: Path) -> None:
    for number in range(100):
        put(tmp_path, f"s/{number:03}")
    describe(tmp_path, name="mine")
    tree = told(tmp_path)
    tree["resources"][7]["description"] = "the seventh"
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    put(tmp_path, "s/100")
    init(tmp_path, update=True)

    entries = told(tmp_path)["resources"]
    assert [entry["path"] for entry in entries] == ["s/007", "s/manifest.csv"]
    assert entries[0]["description"] == "the seventh"
    assert len(read(tmp_path).resources) == 101
    assert wrong(tmp_path) == []


def test_2100_files_cost_inodes_and_this_is_said(tmp_path: Path) -> None:
    for number in range(2100):
        put(tmp_path, f"s/{number % 10}/{number}", str(number))
    started = time.monotonic()
    draft = describe(tmp_path, name="mine")

    assert time.monotonic() - started < 20
    assert any("2,100 files cost 10,500 inodes" in note for note in draft.notes)
    assert wrong(tmp_path) == []


def test_too_many_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoring, "TOO_MANY", 3)
    for number in range(4):
        put(tmp_path, f"s/{number}")
    with monkeypatch.context() as patch:
        patch.setattr(authoring, "measure", None)
        message = refusal(tmp_path)

    assert "4 files, 20 inodes on every machine; pack them into fewer files" in message
    assert describe(tmp_path, name="mine", force=True).files == 4


# --- updates --------------------------------------------------------------------------------------


def test_a_descriptor_is_never_overwritten(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    assert "not there yet; leave out --update" in refusal(tmp_path, update=True)
    describe(tmp_path)
    before = (tmp_path / "datapackage.json").read_bytes()

    assert "there already; add --update to take in what changed" in refusal(tmp_path)
    assert (tmp_path / "datapackage.json").read_bytes() == before


def test_a_descriptor_that_appears_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.bin")
    real = scanning.measure

    def slow(*words: Any) -> Any:
        put(tmp_path, "datapackage.json", "{}")
        return real(*words)

    monkeypatch.setattr(authoring, "measure", slow)

    assert "appeared meanwhile; look at it" in refusal(tmp_path)
    assert (tmp_path / "datapackage.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("version", "deed", "expected"),
    [
        ("0.1.0", "none", "0.1.0"),
        ("0.1.0", "added", "0.2.0"),
        ("0.1.0", "changed", "1.0.0"),
        ("1.2.3", "removed", "2.0.0"),
        ("1.2.3", "added", "1.3.0"),
        ("2.0.0-rc.1", "changed", "2.0.0"),
        ("1.3.0-rc.1", "added", "1.3.0"),
        ("1.2.3-rc.1", "added", "1.3.0"),
        ("1.3.0-rc.1", "removed", "2.0.0"),
    ],
)
def test_the_version_counts_up(tmp_path: Path, version: str, deed: str, expected: str) -> None:
    lay(tmp_path, a="1", b="2")
    describe(tmp_path, name="mine", version=version)
    tree = told(tmp_path)
    tree["scibench"]["released"] = "2020-02-02"
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    if deed == "added":
        put(tmp_path, "c", "3")
    elif deed == "changed":
        put(tmp_path, "b", "4")
    elif deed == "removed":
        (tmp_path / "b").unlink()
    draft = init(tmp_path, update=True)

    assert draft.version == read(tmp_path).version == expected
    note = next(note for note in draft.notes if note.startswith("version"))
    why = {"none": "the files are the same", "added": "1 added (data/c)"}
    assert why.get(deed, f"1 {deed} (data/b)") in note
    assert (read(tmp_path).released == "2020-02-02") == (deed == "none")
    assert wrong(tmp_path) == []


def test_an_update_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    lay(tmp_path, a_csv="n\n1\n", b_csv="n\n1\n")
    describe(tmp_path, name="mine")
    tree = told(tmp_path)
    schema = {"fields": [{"name": "n", "type": "number", "title": "Energy", "unit": "eV"}]}
    tree |= {"homepage": "https://example.org", "extra": {"mine": [1, 2.5]}}
    tree["resources"][1] |= {"schema": schema, "description": "the second", "name": "B"}
    tree["resources"].reverse()
    tree["scibench"]["subsets"]["data"]["title"] = "All of it"
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    put(tmp_path, "b.csv", "n\n2.5\n")
    put(tmp_path, "c.csv", "n\n3\n")
    init(tmp_path, update=True, keywords=["new"])
    new = told(tmp_path)

    assert new["resources"][0] == {
        **tree["resources"][0],
        "bytes": 6,
        "hash": f"sha256:{sha256_file(tmp_path / 'b.csv')}",
    }
    assert [entry["path"] for entry in new["resources"]] == [
        "data/b.csv", "data/a.csv", "data/c.csv",
    ]  # fmt: skip
    assert {key: new[key] for key in ("homepage", "extra", "keywords", "title")} == {
        "homepage": "https://example.org",
        "extra": {"mine": [1, 2.5]},
        "keywords": ["new"],
        "title": ABOUT["title"],
    }
    assert new["scibench"]["subsets"] == {"data": {"title": "All of it"}}
    assert new["scibench"]["uuid"] == tree["scibench"]["uuid"]


def test_an_update_keeps_files_that_lie_elsewhere(tmp_path: Path) -> None:
    lay(tmp_path, s__a="1")
    describe(tmp_path, name="mine")
    tree = told(tmp_path)
    away = {"name": "far", "path": "s/far", "scibench": {"subset": "s"}}
    away["scibench"]["sources"] = ["https://data.example.org/far"]  # type: ignore[index]
    tree["resources"].append(away)
    tree["scibench"]["subsets"]["real"] = {"title": "Real", "needs": "an account"}
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    init(tmp_path, update=True)

    assert told(tmp_path) == tree
    assert wrong(tmp_path) == []


def test_a_new_folder_is_a_new_subset_and_a_loose_file_beside_subsets_a_fault(
    tmp_path: Path,
) -> None:
    lay(tmp_path, train__a="1", test__a="2")
    describe(tmp_path, name="mine")
    put(tmp_path, "more/a", "3")
    assert init(tmp_path, update=True).version == "0.2.0"
    assert list(read(tmp_path).subsets) == ["test", "train", "more"]
    put(tmp_path, "loose", "4")

    assert "'loose': beside the subsets test, train, more; move it into one" in refusal(
        tmp_path, update=True
    )


def test_a_broken_descriptor_is_not_updated(tmp_path: Path) -> None:
    put(tmp_path, "a")
    describe(tmp_path)
    path = tmp_path / "datapackage.json"
    path.write_text(path.read_text().replace('"uuid"', '"uid"'))
    before = path.read_bytes()

    with pytest.raises(DescriptorError, match="uuid: missing"):
        init(tmp_path, update=True)
    assert path.read_bytes() == before


# --- tables ---------------------------------------------------------------------------------------

_cells = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(str),
    st.dates().map(str),
    st.sampled_from(["", "true", "NA", "x y", "1e5", "00", "12:30", "2020-13-01"]),
)


@FEW
@given(
    rows=st.lists(st.lists(_cells, min_size=3, max_size=3), min_size=1, max_size=6),
    kind=st.sampled_from([(".csv", ","), (".csv", ";"), (".csv", "|"), (".tsv", "\t")]),
    bom=st.booleans(),
)
def test_an_inferred_schema_holds_by_frictionless_itself(
    rows: list[list[str]], kind: tuple[str, str], bom: bool
) -> None:
    from frictionless import Resource

    suffix, delimiter = kind
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"t{suffix}"
        with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
        keys, reason = tables.infer(path)

        assert bool(keys) != bool(reason)
        if not keys:
            assert any(not any(row) for row in rows) or len(rows) == 1 or "cell" in reason, reason
            return
        entry = {"name": "t", "path": path.name, "encoding": "utf-8-sig" if bom else "utf-8"}
        report = Resource.from_descriptor({**entry, **keys}, basepath=scratch).validate()
        assert report.valid, report.flatten(["message"])
        assert tables.table_faults(path, keys) == ([], "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "it is empty"),
        ("a.csv", b"1,2\n3,4\n", "its first row is numbers, not the names of the columns"),
        ("a.csv", b"a,b\n1\n", 'Row at position "2" has a missing cell'),
        ("a.csv", b"a,a\n1,2\n", 'Label "a" in the header at position "2" is duplicated'),
        ("a.csv", b"a\tb\n1\t2\n", "its columns are divided by tabs; name it .tsv"),
        ("a.csv", b"a\n\xff\xfe\n", "'utf-8' codec can't decode byte"),
        ("a.csv", b"a\0b\n", "not text in lines"),
        ("a.csv", b"x" * 2**17, "not text in lines"),
        ("a.json", b'{"a": 1}', "JSON, but not rows of a table"),
        ("a.json", b"[" * 10**5, "recursion"),
        ("a.json", b"{", "Expecting property name"),
        ("a.json", b"[{}, []]", "JSON, but not rows of a table"),
    ],
)
def test_what_is_no_table_has_no_schema_and_this_is_said(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    put(tmp_path, name, content)
    keys, found = tables.infer(tmp_path / name)
    draft = describe(tmp_path, name="mine")

    assert keys == {}
    assert reason in found
    assert any(f"data/{name}: left without a table schema: " in note for note in draft.notes)
    assert wrong(tmp_path) == []


def test_only_a_sample_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n\n" + "1\n" * 20_000 + "x\n")
    keys, reason = tables.infer(path)

    assert (keys["schema"]["fields"][0]["type"], reason) == ("integer", "")
    faults, unchecked = tables.table_faults(path, keys)
    assert unchecked == ""
    assert len(faults) == 1
    assert '"x"' in faults[0]
    assert 'row "20002"' in faults[0]
    assert "only its first 100 rows" in tables.table_faults(path, keys, rows=100)[1]


def test_a_table_never_leads_elsewhere(tmp_path: Path) -> None:
    """A schema with foreign keys, a URL or an odd encoding opens nothing."""
    path = tmp_path / "a.csv"
    path.write_text("n\n1\n")
    hostile = {
        "schema": {
            "$schema": "http://127.0.0.1:9/x",
            "fields": [{"name": "n", "type": "integer"}],
            "foreignKeys": [
                {"fields": ["n"], "reference": {"resource": "/etc/passwd", "fields": ["n"]}}
            ],
        },
        "dialect": {"delimiter": ",", "csv": "http://127.0.0.1:9/x"},
        "scheme": "http",
        "path": "http://127.0.0.1:9/x",
        "compression": "zip",
    }

    assert tables.table_faults(path, hostile) == ([], "")
    assert tables.table_faults(path, {"encoding": "idna"}) == ([], "not read: encoded as 'idna'")


# --- check ----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sound package of two files, one of them a table."""
    folder = lay(tmp_path / "mine", s__a_csv="n\n1\n", s__b_bin="bytes")
    describe(folder)
    return folder


def test_every_problem_is_told_at_once(package: Path) -> None:
    put(package, "s/a.csv", "n\nx\n")
    (package / "s/b.bin").unlink()
    put(package, "s/c.bin")
    tree = told(package)
    del tree["title"]
    tree["version"] = "one"
    (package / "datapackage.json").write_text(json.dumps(tree))
    put(package, "releases.json", '{"releases": [{"version": "1"}]}')
    found = wrong(package)

    for part in (
        "title: missing",
        "version: expected a version as semver.org has it",
        "s/a.csv: SHA-256 ",
        's/a.csv: Type error in the cell "x"',
        "s/b.bin: missing; put it back, or name a source",
        "s/c.bin: not described; take it in: scibench-data init --update",
        "releases[0]: version: expected one as semver.org has it",
    ):
        assert any(part in line for line in found), part
    assert len(found) == 7


def test_a_changed_size_is_told_without_hashing(package: Path) -> None:
    put(package, "s/b.bin", "more bytes")

    assert "s/b.bin: 10 bytes, expected 5; put the file back, or take it in" in wrong(package)[0]


def test_a_described_file_that_leads_out_is_not_read(package: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("bytes")
    (package / "s/b.bin").unlink()
    (package / "s/b.bin").symlink_to(secret)

    assert wrong(package) == [
        "s/b.bin: leads out of the folder or is no file; put the file there",
    ]


def test_a_descriptor_without_its_files_is_still_checked(package: Path) -> None:
    for path in (package / "s").iterdir():
        path.unlink()
    found = check(package)

    assert is_sound(found)
    assert any("none of its 2 files is there: only the descriptor" in f.message for f in found)


def test_lists_are_checked_line_by_line(tmp_path: Path) -> None:
    for number in range(101):
        put(tmp_path, f"s/{number:03}")
    describe(tmp_path, name="mine")
    path = tmp_path / "s/manifest.csv"
    path.write_text(path.read_text().replace("\n007,1,", "\n../007,1,"))
    found = wrong(tmp_path)

    assert any("another SHA-256 than the descriptor says; take it in" in line for line in found)
    assert any(line.startswith("line 9: a path with an empty part, '.' or '..'") for line in found)
    path.unlink()
    assert any("can't be read: No such file" in line for line in wrong(tmp_path))


def test_what_is_no_descriptor_is_one_problem(tmp_path: Path) -> None:
    for content, message in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got an empty list"),
        ('{"resources": [1, {"path": 3}, {"path": "a/b", "scibench": []}], "scibench": 2}', ""),
        ('{"resources": {"a": 1}, "licenses": 3, "sources": [4], "keywords": "x"}', ""),
        ('{"licenses": [1], "scibench": {"subsets": [1]}, "resources": "x"}', ""),
    ):
        put(tmp_path, "datapackage.json", content)
        found = wrong(tmp_path)
        assert found
        assert any(message in line for line in found)


def test_warnings_fail_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    init(tmp_path, name="mine", title="T", description="Short.", authors=["A B"], license="MIT")
    tree = told(tmp_path)
    tree["licenses"] = [{"name": "own-terms"}]
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    found = check(tmp_path)

    assert is_sound(found)
    assert [finding.place for finding in found] == [
        "licenses[0].name", "licenses[0].path", "keywords", "sources", "description",
    ]  # fmt: skip
    tree["sources"] = [{"title": "A work", "path": "https://doi.org/10.1000/x"}]
    tree |= {k: v for k, v in ABOUT.items() if k in {"description", "keywords"}}
    tree["licenses"] = [{"name": "MIT", "path": "https://spdx.org/licenses/MIT.html"}]
    (tmp_path / "datapackage.json").write_text(json.dumps(tree))
    assert check(tmp_path) == []


def test_a_name_is_checked_with_all_its_versions(settings: Settings) -> None:
    assert is_sound(check("cryoem", settings=settings))
    assert is_sound(check("cryoem@1.0.0", settings=settings))


def test_an_added_package_of_another_name_is_a_problem(package: Path, settings: Settings) -> None:
    folder = settings.home / "added/other"
    put(folder, "releases.json", '{"releases": [{"version": "0.2.0"}]}')
    put(folder, "0.2.0/datapackage.json", (package / "datapackage.json").read_bytes())

    assert wrong("other", settings=settings) == [
        "name: expected 'other', got 'mine'; make them one",
        "version: expected '0.2.0', got '0.1.0'; make them one",
    ]


def test_a_target_that_is_not_there(tmp_path: Path, settings: Settings) -> None:
    for target in (tmp_path, tmp_path / "absent", "./absent", "absent"):
        with pytest.raises(NotFoundError) as caught:
            check(target, settings=settings)
        assert str(target) in str(caught.value)


@FEW
@given(content=st.binary(max_size=200) | st.sampled_from([b"{}", b"null", b'{"resources":[{}]}']))
def test_no_descriptor_breaks_the_check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        put(Path(scratch), "datapackage.json", content)

        assert not is_sound(check(scratch, settings=load_settings(home=Path(scratch) / "h")))


@FEW
@given(tree=mutants())
def test_no_mutant_breaks_the_check(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        put(Path(scratch), "datapackage.json", json.dumps(tree))
        put(Path(scratch), "a/b.csv", "n\n1\n")

        for finding in check(scratch, settings=load_settings(home=Path(scratch) / "h")):
            assert "\n" not in str(finding)


@pytest.mark.parametrize("path", [["s/a.csv"], {"s": 1}, 3, None, "../a", "/etc/passwd", "s"])
def test_a_path_of_another_shape_is_a_problem(package: Path, path: Any) -> None:
    tree = told(package)
    tree["resources"][0]["path"] = path
    (package / "datapackage.json").write_text(json.dumps(tree))

    assert any("resources[0].path" in line for line in wrong(package))


def test_a_described_table_is_checked_without_what_its_schema_may_not_ask(package: Path) -> None:
    """A pattern is refused by the profile, and would not be run either."""
    tree = told(package)
    rule = {"pattern": "(a+)+$", "jsonSchema": {"$ref": "http://127.0.0.1:9/x"}, "maximum": 0}
    tree["resources"][0]["schema"]["fields"][0]["constraints"] = rule
    put(package, "s/a.csv", "n\n1\n" + "a" * 40 + "!\n")
    faults, _ = tables.table_faults(package / "s/a.csv", tree["resources"][0])

    assert [("maximum" in fault, "type is" in fault) for fault in faults] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_a_link_within_the_folder_is_followed(package: Path) -> None:
    """As in a DataLad dataset, where every file is a link to its content."""
    put(package, ".git/annex/objects/key", "bytes")
    (package / "s/b.bin").unlink()
    (package / "s/b.bin").symlink_to("../.git/annex/objects/key")
    assert wrong(package) == []
    put(package, ".git/annex/objects/key", "other")

    assert "s/b.bin: SHA-256" in wrong(package)[0]


# --- links ----------------------------------------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, size = {"/good": (200, 5), "/long": (200, 9), "/closed": (403, 0)}.get(
            self.path, (404, 0)
        )
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_links_are_asked(package: Path, server: str, home: Path) -> None:
    pytest.importorskip("scibench_data.net.web")
    tree = told(package)
    entry = next(entry for entry in tree["resources"] if entry["path"] == "s/b.bin")
    entry["scibench"]["sources"] = [
        f"{server}/{name}" for name in ("good", "long", "gone", "closed")
    ]
    (package / "datapackage.json").write_text(json.dumps(tree))
    allowed = load_settings(home=home, jobs=2, allowed_hosts=["127.0.0.1"])
    found = {f.message: f for f in check(package, links=True, settings=allowed)}

    dead = [f for f in found.values() if f.place == "s/b.bin from 127.0.0.1"]
    assert [f.level for f in dead] == ["problem", "problem", "warning"]
    assert dead[0].message == "9 bytes, expected 5; take the source out"
    assert "404" in dead[1].message
    assert "403" in dead[2].message
    entry["scibench"]["sources"] = []
    for member in ("a", "b"):
        gone = f"zip+{server}/gone#{member}"
        tree["resources"].append({**entry, "scibench": {"subset": "s", "sources": [gone]}})
        tree["resources"][-1] |= {"path": f"s/{member}", "name": member}
    (package / "datapackage.json").write_text(json.dumps(tree))
    places = [f.place for f in check(package, links=True, settings=allowed) if "404" in f.message]
    assert places == ["s/a and 1 more from 127.0.0.1"]
    with pytest.raises(NetworkError):
        check(package, links=True, settings=load_settings(home=home, offline=True))


# --- the command line -----------------------------------------------------------------------------


def _run(*words: str | Path) -> tuple[int, str, str]:
    command = {"init": verbs_own.init, "check": verbs_own.check}[str(words[0])]
    done = CliRunner().invoke(command, [str(word) for word in words[1:]])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_init_and_check_on_the_command_line(tmp_path: Path) -> None:
    put(tmp_path / "files", "a.csv", "n\n1\n")
    mine = tmp_path / "mine"
    code, out, err = _run("init", mine, "--from", tmp_path / "files", "--title", "T")

    assert (code, out) == (0, f"{mine / 'datapackage.json'}\n")
    assert "mine 0.1.0  1 files, 4 B" in err
    assert "still missing, licenses: --license CC-BY-4.0; edit the file, or add --update" in err
    code, out, err = _run("check", mine)
    assert code == 1
    assert f"problem  {mine / 'datapackage.json'}: licenses: missing" in out
    assert "3 problems, 2 warnings" in err
    code, out, err = _run(
        "init", mine, "--update", "--license", "MIT", "--author", "A B", "--author", "C D",
        "--keyword", "x", "--description", "Short.", "-q",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert len(read(mine).contributors) == 2
    code, out, err = _run("check", "-q", mine)
    assert (code, out) == (0, "")
    assert "sound, 2 warnings" in err


def test_both_answer_in_json(tmp_path: Path) -> None:
    put(tmp_path / "mine", "a.csv", "n\n1\n")
    code, out, err = _run("init", tmp_path / "mine", "--json")
    answer = json.loads(out)

    assert (code, err, answer["ok"]) == (0, "", True)
    assert answer["schema"] == "scibench-data/init/1"
    assert (answer["version"], answer["files"], answer["bytes"]) == ("0.1.0", 1, 4)
    assert len(answer["needed"]) == 4
    code, out, err = _run("check", tmp_path / "mine", "--json")
    answer = json.loads(out)
    assert (code, err, answer["ok"]) == (1, "", False)
    assert {f["level"] for f in answer["findings"]} == {"problem", "warning"}
    assert set(answer["findings"][0]) == {"level", "file", "place", "message"}


def test_findings_are_one_line_each(package: Path) -> None:
    put(package, "s/a.csv", "n\n\x1b[31mx\n")
    for finding in check(package):
        assert isinstance(finding, Finding)
        assert "\n" not in str(finding)
    _, out, _ = _run("check", package)
    assert "\x1b" not in out


def test_a_folder_that_can_not_be_written_is_told_before_anything_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "file")
    monkeypatch.setattr(authoring, "measure", None)

    message = refusal(tmp_path / "file/mine", source=tmp_path)
    assert "can't be written; describe into another folder and add --from" in message
