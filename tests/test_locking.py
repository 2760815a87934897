"""The lock file: read back as written, refused when tampered with, and got exactly as pinned."""

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from added import SOURCE, described, register, resource
from chains import TINY, Chain
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from scibench_data import catalog, durable
from scibench_data.annexed import build
from scibench_data.commands import versions as verbs_versions
from scibench_data.descriptor import parse, write_list
from scibench_data.errors import (
    DescriptorError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from scibench_data.getting import dataset, holdings
from scibench_data.settings import Settings
from scibench_data.versions import locking
from scibench_data.versions.lockfile import (
    LOCK_FILE,
    FilePin,
    Lock,
    Pin,
    StorePin,
    locked_version,
    parse_lock,
    read_lock,
)
from scibench_data.versions.recorded import describe_locked

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,9}", fullmatch=True)
sha256s = st.binary(min_size=32, max_size=32).map(bytes.hex)
numbers = st.integers(0, 2**53 - 1)
stores = st.builds(
    StorePin,
    values=sha256s,
    layout=st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}", fullmatch=True), numbers | st.sampled_from(["auto", "zstd"])
    ),
)
parts = st.text(
    st.characters(categories=["L", "N"], include_characters="_~+&%=é"), min_size=1, max_size=9
).map(lambda text: f"x{text}x")


@st.composite
def pins(draw: st.DrawFn) -> Pin:
    subset = draw(names)
    inner = draw(st.lists(parts, max_size=3, unique_by=str.casefold))
    files = tuple(
        FilePin(
            path=f"{subset}/{part}",
            bytes=draw(numbers),
            sha256=draw(sha256s),
            sources=draw(st.sampled_from([(), ("https://a.example.org/b%20c",)])),
        )
        for part in sorted(inner)
    )
    released = draw(st.sampled_from(["1.0.0", "2.1.0-rc.1"]))
    return Pin(
        name=draw(names),
        version=locked_version(released, files) if files else released,
        subset=subset,
        commit=draw(sha256s)[:40],
        descriptor=draw(sha256s),
        store=draw(st.none() | stores),
        files=files,
    )


# --- the file -------------------------------------------------------------------------------------


@given(st.lists(pins(), max_size=4))
def test_what_is_written_is_read_back(some: list[Pin]) -> None:
    lock = Lock().with_pins(some)

    assert parse_lock(lock.content, "x") == lock


@given(st.lists(pins(), max_size=4, unique_by=lambda pin: (pin.name, pin.subset)), st.randoms())
def test_the_bytes_do_not_depend_on_the_order(some: list[Pin], random: Any) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)

    assert Lock().with_pins(some).content == Lock().with_pins(shuffled).content


PIN = Pin(
    name="cells",
    version="1.0.0",
    subset="real",
    commit="0" * 40,
    descriptor="1" * 64,
    store=StorePin(values="2" * 64, layout={"chunk_bytes": 1, "codec": "auto"}),
)
FILE = FilePin(path="real/a.bin", bytes=3, sha256="3" * 64)
LOCKED = dataclasses.replace(PIN, version=locked_version("1.0.0", [FILE]), files=(FILE,))


def test_a_person_can_read_it() -> None:
    text = Lock((LOCKED,)).content.decode()

    assert text.startswith("# What this work rests on.")
    assert 'name = "cells"\n' in text
    assert f'  {{ path = "real/a.bin", bytes = 3, sha256 = "{"3" * 64}" }},\n' in text
    assert tomllib.loads(text)["dataset"][0]["store"]["layout"] == PIN.store.layout  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'schema = "scibench-data/lock-file/1"',
            'schema = "scibench-data/lock-file/2"',
            "schema: expected",
        ),
        ("schema = ", "scheme = ", "scheme: not a known key; did you mean 'schema'?"),
        ('name = "cells"', "", "dataset[0].name: missing"),
        ('name = "cells"', 'name = "../../etc"', "dataset[0].name: expected a name"),
        ('name = "cells"', 'name = "cells\\n"', "dataset[0].name: expected a name"),
        ('name = "cells"', "name = 1", "dataset[0].name: expected a name"),
        ('name = "cells"', 'nmae = "cells"', "dataset[0].nmae: not a known key; did you mean"),
        (f'commit = "{"0" * 40}"', 'commit = "main"', "dataset[0].commit: expected 40"),
        (f'commit = "{"0" * 40}"', f'commit = "{"9" * 40}"', "dataset[0].swhid: not that"),
        ("1" * 64, "1" * 63, "dataset[0].descriptor_sha256: expected 64"),
        ("2" * 64, "x", "dataset[0].store.values_sha256: expected 64"),
        ('codec = "auto"', "codec = [1]", "dataset[0].store.layout: expected a table"),
        ("chunk_bytes = 1", "chunk_bytes = -1", "dataset[0].store.layout: expected a table"),
        ("bytes = 3", "bytes = 3.0", "dataset[0].file[0].bytes: expected a whole number"),
        ("bytes = 3", "bytes = true", "dataset[0].file[0].bytes: expected a whole number"),
        ("bytes = 3", "bytes = 4", "dataset[0].version: expected 1.0.0+locked."),
        ("3" * 64, "4" * 64, "dataset[0].version: expected 1.0.0+locked."),
        ("+locked.", "+locked.f", "dataset[0].version: expected 1.0.0+locked."),
        ("real/a.bin", "real/../../a.bin", "dataset[0].file[0].path: a path with"),
        ("real/a.bin", "/etc/passwd", "dataset[0].file[0].path: an absolute path"),
        ("real/a.bin", "real/.git/hooks/x", "dataset[0].file[0].path: a path with a part"),
        ("real/a.bin", "other/a.bin", "dataset[0].file[0].path: expected to start with 'real/'"),
        ("bytes = 3,", 'bytes = 3, sources = ["file:///etc/passwd"],', "file[0].sources: a URL"),
        ("bytes = 3,", "bytes = 3, sources = 1,", "file[0].sources: expected a list of URLs"),
        ("file = [", "file = [ 1,", "dataset[0].file[0]: expected a table, got 1"),
        ("[[dataset]]", "[dataset]", "dataset: expected [[dataset]] tables"),
        ("[[dataset]]", "[[dataset", "not TOML"),
    ],
)
def test_a_tampered_file_is_refused_with_its_place(old: str, new: str, told: str) -> None:
    text = Lock((LOCKED,)).content.decode()
    assert old in text

    with pytest.raises(DescriptorError) as caught:
        parse_lock(text.replace(old, new).encode(), "scibench.lock")

    assert told in str(caught.value)
    assert str(caught.value).startswith("scibench.lock: ")


def test_all_problems_are_told_at_once() -> None:
    text = Lock((LOCKED,)).content.decode()
    broken = text.replace('name = "cells"', "name = 1").replace("bytes = 3", "bytes = -3")
    other = text.replace(LOCK_HEAD, "").replace("1" * 64, "")

    with pytest.raises(DescriptorError) as caught:
        parse_lock(f"{broken}\n{other}".encode(), "x")

    told = [str(problem).partition(": ")[0] for problem in caught.value.problems]
    assert told == ["dataset[0].name", "dataset[1].descriptor_sha256"]


LOCK_HEAD = Lock().content.decode()


def test_a_subset_is_pinned_once_and_a_file_once() -> None:
    twice = (
        Lock((PIN,)).content.decode() + "\n" + Lock((PIN,)).content.decode().replace(LOCK_HEAD, "")
    )
    upper = dataclasses.replace(FILE, path="real/A.BIN")
    files = (FILE, upper)
    same = dataclasses.replace(LOCKED, version=locked_version("1.0.0", files), files=files)

    with pytest.raises(DescriptorError, match=r"dataset\[1\]\.subset: the same as in dataset\[0\]"):
        parse_lock(twice.encode(), "x")
    with pytest.raises(DescriptorError, match="the same file as in"):
        parse_lock(Lock((same,)).content, "x")


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"a = " + b"[" * 5000,
        b"#" * (2**24 + 1),
        b"a = " + b"9" * 5000,
        f'schema = "scibench-data/lock-file/1"\ndataset = [{", ".join(["1"] * 5000)}]'.encode(),
    ],
)
def test_a_hostile_file_is_one_short_error(text: bytes) -> None:
    with pytest.raises(DescriptorError) as caught:
        parse_lock(text, "x")

    assert len(caught.value.problems) <= 1000


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "real").write_bytes(Lock((PIN,)).content)
    (tmp_path / "link").symlink_to("real")

    for name in ("pipe", "loop", "."):
        with pytest.raises(DescriptorError, match="can't be read"):
            read_lock(tmp_path / name)
    assert read_lock(tmp_path / "link").pins == (PIN,)
    with pytest.raises(NotFoundError, match="no such lock file; write one: scibench-data lock"):
        read_lock(tmp_path / "nothing")


# --- versions with published checksums ------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A paper's repository, as the working directory."""
    folder = tmp_path / "paper"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _cells(home: Path) -> None:
    versions = (("1.0.0", b"one"), ("1.1.0", b"two"), ("2.0.0", b"three"))
    more = resource("more/b.bin", b"b")
    register(
        home, *(described("cells", v, resource("real/a.bin", text), more) for v, text in versions)
    )


def test_lock_pins_what_the_catalogue_has(settings: Settings, work: Path) -> None:
    _cells(settings.home)

    written = locking.lock(["cells@1.0.0:real"], settings=settings)

    (pin,) = read_lock(work / LOCK_FILE).pins
    reference = catalog.resolve("cells@1.0.0:real", settings.home)
    assert (pin.version, pin.descriptor) == ("1.0.0", reference.package.digest)
    folder = settings.home / "again"
    assert pin.commit == build.import_history(folder, catalog.history(reference.release))
    assert written.pins == (pin,)
    assert written.notes == ()  # no reader, so no store to ask for


def test_others_stay_and_the_same_is_replaced(settings: Settings, work: Path) -> None:
    _cells(settings.home)

    locking.lock(["cells@1.0.0:real", "cells@1.0.0:more"], settings=settings)
    locking.lock("cells:real", settings=settings)

    pins = {pin.subset: pin.version for pin in read_lock(work / LOCK_FILE).pins}
    assert pins == {"real": "2.0.0", "more": "1.0.0"}


def test_two_locks_of_the_same_are_equal(settings: Settings, work: Path) -> None:
    _cells(settings.home)

    locking.lock(["cells:real", "cells:more"], settings=settings)
    locking.lock(["cells:more", "cells:real"], path="other.lock", settings=settings)

    assert (work / LOCK_FILE).read_bytes() == (work / "other.lock").read_bytes()
    assert sorted(path.name for path in work.iterdir()) == ["other.lock", LOCK_FILE]


def test_a_yanked_version_can_be_pinned_and_is_told(settings: Settings, work: Path) -> None:
    tree = described("cells", "1.0.0", resource("real/a.bin", b"a"))
    register(settings.home, tree, yanked={"1.0.0": "labels leaked"})

    written = locking.lock("cells@1.0.0", settings=settings)

    assert written.pins[0].version == "1.0.0"
    assert "yanked (labels leaked)" in written.notes[0]


def test_a_failed_lock_leaves_the_file_as_it_was(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    locking.lock("cells@1.0.0:real", settings=settings)
    before = (work / LOCK_FILE).read_bytes()

    with pytest.raises(NotFoundError, match="no data package named 'cell'"):
        locking.lock(["cells:real", "cell"], settings=settings)
    with pytest.raises(UsageError, match="one version of a subset"):
        locking.lock(["cells@2.0.0:real", "cells@1.0.0:real"], settings=settings)

    assert (work / LOCK_FILE).read_bytes() == before


def test_a_damaged_file_is_not_overwritten(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    (work / LOCK_FILE).write_text("mine")

    with pytest.raises(DescriptorError, match="not TOML"):
        locking.lock("cells:real", settings=settings)

    assert (work / LOCK_FILE).read_text() == "mine"


def test_a_name_without_version_is_the_pinned_one(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    assert locking.pinned("cells") is None
    assert locking.resolve("cells:real", settings).package.version == "2.0.0"

    locking.lock("cells@1.0.0:real", settings=settings)

    assert locking.pinned("cells:real", work) == "1.0.0"
    assert locking.pinned("cells:more") == "1.0.0"
    assert locking.pinned("cells") == "1.0.0"
    assert locking.pinned("other") is None
    assert str(locking.resolve("cells:real", settings)) == "cells@1.0.0:real"
    assert str(locking.resolve("cells:more", settings)) == "cells@1.0.0:more"
    assert str(locking.resolve("cells@1.1.0:real", settings)) == "cells@1.1.0:real"


def test_subsets_of_two_versions_need_to_be_named(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    locking.lock(["cells@1.0.0:real", "cells@1.1.0:more"], settings=settings)
    lock = read_lock(work / LOCK_FILE)

    assert locking.pinned("cells:real") == "1.0.0"
    assert locking.pinned("cells") is None
    assert locking.pin_of("cells:more", lock, work).version == "1.1.0"
    with pytest.raises(NotFoundError, match=r"pins several subsets; name one: cells@1\.1\.0:more"):
        locking.pin_of("cells", lock, work)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cell", r"cell: not in .*did you mean 'cells'.*; run: scibench-data lock cell"),
        ("cells:more", "cells:more: not in .*run: scibench-data lock cells:more"),
        ("cells@2.0.0:real", "pins version 1.0.0; leave the version out, or run: scibench-data"),
    ],
)
def test_a_name_that_is_not_pinned_says_to_lock_it(
    settings: Settings, work: Path, name: str, told: str
) -> None:
    _cells(settings.home)
    locking.lock("cells@1.0.0:real", settings=settings)

    with pytest.raises(NotFoundError, match=told):
        locking.get_locked(name, settings=settings)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("commit", lambda pin: dataclasses.replace(pin, commit="0" * 40)),
        ("descriptor", lambda pin: dataclasses.replace(pin, descriptor="0" * 64)),
    ],
)
def test_what_is_not_as_pinned_is_refused(
    settings: Settings, work: Path, field: str, change: Callable[[Pin], Pin]
) -> None:
    _cells(settings.home)
    other = change(locking.lock("cells@1.0.0:real", settings=settings).pins[0])
    durable.write_whole(work / LOCK_FILE, Lock((other,)).content, replace=True)

    for act in (locking.get_locked, locking.lock):
        with pytest.raises(IntegrityError, match=f"its {field} is .* here, and the lock file pins"):
            act(settings=settings)


def test_a_version_that_was_changed_in_place_is_refused(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    locking.lock("cells@1.0.0:real", settings=settings)
    path = catalog.added_folder(settings.home, "cells") / "1.0.0/datapackage.json"
    path.write_text(path.read_text() + "\n")

    with pytest.raises(IntegrityError, match=r"cells@1\.0\.0:real: its descriptor is"):
        locking.get_locked(settings=settings)


def test_a_pinned_version_that_is_gone_is_told(settings: Settings, work: Path) -> None:
    _cells(settings.home)
    locking.lock("cells@1.0.0:real", settings=settings)
    register(settings.home, described("cells", "3.0.0", resource("real/a.bin", b"x")))

    with pytest.raises(NotFoundError, match=r"no version '1\.0\.0'"):
        locking.get_locked(settings=settings)


# --- stores ---------------------------------------------------------------------------------------


def test_the_store_is_pinned_and_held_against_the_pin(
    chain: Chain, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = chain.settings

    (pin,) = locking.lock(TINY, settings=settings).pins

    manifest = json.loads((chain.store / "manifest.json").read_bytes())
    assert pin.store is not None
    assert pin.store.values == manifest["digest"]
    assert pin.store.layout == manifest["identity"]["layout"]
    (data,) = locking.get_locked(settings=settings)
    assert (data.commit, data.swhid) == (pin.commit, f"swh:1:rev:{pin.commit}")
    wrong = StorePin(values="0" * 64, layout=pin.store.layout)
    other = Lock((dataclasses.replace(pin, store=wrong),))
    durable.write_whole(work / LOCK_FILE, other.content, replace=True)
    with pytest.raises(IntegrityError, match="its store's digest is"):
        locking.get_locked(settings=settings)
    with pytest.raises(IntegrityError, match="its store's digest is"):
        locking.lock(settings=settings)


def test_without_a_store_it_is_said_and_added_later(chain: Chain, work: Path) -> None:
    aside = chain.folder / "aside"
    store = chain.store
    store.rename(aside)

    without = locking.lock(TINY, settings=chain.settings)

    assert without.pins[0].store is None
    assert without.notes == (
        f"{TINY}:sample: no store of it here, so its digest is not pinned; run: "
        f"scibench-data materialize {TINY}:sample, then lock again",
    )
    aside.rename(store)
    (refreshed,) = locking.lock(settings=chain.settings).pins
    assert refreshed.store is not None
    store.rename(aside)
    assert locking.lock(settings=chain.settings).pins == (refreshed,)
    assert locking.lock(TINY, settings=chain.settings).pins == (refreshed,)


def test_a_scaled_version_is_made_again_on_another_machine(
    chain: Chain, work: Path, settings: Settings
) -> None:
    locking.lock(TINY, settings=chain.settings)

    (data,) = locking.get_locked(settings=settings)

    assert data.folder.is_relative_to(settings.home)
    assert data.commit == read_lock(work / LOCK_FILE).pins[0].commit


# --- files without a published checksum -----------------------------------------------------------

CONTENT = {"real/a.bin": b"first", "real/b.csv": b"x\n1\n"}


def _unpublished(home: Path, *extra: dict[str, Any]) -> None:
    known = resource("real/known.bin", b"known", description="its publisher tells")
    unknown = [resource(path, None) for path in CONTENT]
    unknown[0]["scibench"]["about_bytes"] = 17
    register(home, described("cells", "1.0.0", known, *unknown, resource("more/c", b"c"), *extra))


def _come(settings: Settings, contents: dict[str, bytes], name: str = "cells:real") -> None:
    """Leave what `get` leaves of files without a published checksum."""
    reference = catalog.resolve(name, settings.home)
    folder = holdings.dataset_folder(settings.home, reference.package)
    dataset.ensure_built(reference, folder)
    for path, content in contents.items():
        place = build.object_path(folder, reference.package.resource(path))
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    entries = {
        path: {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": f"{SOURCE}{path}",
            "date": "2026-01-02",
        }
        for path, content in contents.items()
    }
    holdings.recorded_path(folder).write_text(json.dumps(entries))


def _files(contents: dict[str, bytes]) -> list[FilePin]:
    return [
        FilePin(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    ]


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Note what would be adopted, instead of doing it."""
    found: dict[str, Path] = {}
    monkeypatch.setattr(
        locking, "_adopt", lambda _old, new, _settings: found.update({str(new): Path()})
    )
    return found  # fmt: skip


def test_the_locked_descriptor_has_every_checksum_and_only_its_subset(settings: Settings) -> None:
    _unpublished(settings.home)
    package = catalog.resolve("cells:real", settings.home).package

    text, lists = describe_locked(package, "real", _files(CONTENT))

    locked = parse(text, "x")
    assert lists == {}
    assert locked.version == locked_version("1.0.0", _files(CONTENT))
    assert list(locked.subsets) == ["real"]
    assert [resource.path for resource in locked.resources] == ["real/known.bin", *CONTENT]
    for path, content in CONTENT.items():
        found = locked.resource(path)
        assert (found.bytes, found.exact) == (len(content), True)
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.sources == (f"{SOURCE}{path}",)
    assert locked.resource("real/known.bin") == package.resource("real/known.bin")
    assert locked.uuid != package.uuid
    assert describe_locked(package, "real", _files(CONTENT)[::-1]) == (text, lists)


@given(st.dictionaries(st.sampled_from(sorted(CONTENT)), st.binary(max_size=9), min_size=1))
def test_other_bytes_are_another_version(contents: dict[str, bytes]) -> None:
    tree = described("cells", "1.0.0", *(resource(path, None) for path in CONTENT))
    package = parse(json.dumps(tree).encode(), "x")

    text, _ = describe_locked(package, "real", _files(contents))

    locked = parse(text, "x")
    lines = sorted(
        f"{path} {len(content)} {hashlib.sha256(content).hexdigest()}\n"
        for path, content in contents.items()
    )
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
    assert locked.version == f"1.0.0+locked.{expected}"
    assert {resource.path for resource in locked.resources} == contents.keys()


def _list_of(content: bytes) -> dict[str, Any]:
    entry = resource(
        "real/manifest.csv", content, type="table", schema={"fields": [{"name": "path"}]}
    )
    return {**entry, "scibench": {"subset": "real", "lists": "files"}}  # fmt: skip


def test_a_list_of_files_gets_its_checksums(settings: Settings) -> None:
    rows = parse(
        json.dumps(described("cells", "1.0.0", *(resource(p, None) for p in CONTENT))).encode(), "x"
    ).resources
    known = dataclasses.replace(rows[0], path="real/k", sha256="0" * 64, exact=True, bytes=1)
    content = write_list([*rows, known])
    register(settings.home, described("cells", "1.0.0", _list_of(content)), lists=content)
    package = catalog.resolve("cells:real", settings.home).package

    text, lists = describe_locked(package, "real", _files(CONTENT))

    locked = parse(text, "x", beside=lists.__getitem__)
    assert {r.path: r.sha256 for r in locked.resources} == {
        "real/k": "0" * 64,
        **{file.path: file.sha256 for file in _files(CONTENT)},
    }


def test_a_locked_list_of_files_is_built_again_elsewhere(
    settings: Settings, work: Path, tmp_path: Path, adopted: dict[str, Path]
) -> None:
    tree = described("cells", "1.0.0", *(resource(path, None) for path in CONTENT))
    content = write_list(parse(json.dumps(tree).encode(), "x").resources)
    elsewhere = dataclasses.replace(settings, home=tmp_path / "elsewhere")
    for home in (settings.home, elsewhere.home):
        register(home, described("cells", "1.0.0", _list_of(content)), lists=content)
    _come(settings, CONTENT)

    locking.lock("cells", settings=settings)

    here, there = (locking.resolve("cells", each) for each in (settings, elsewhere))
    assert here.package.lists == there.package.lists
    assert {r.path: r.sha256 for r in there.resources} == {
        file.path: file.sha256 for file in _files(CONTENT)
    }


def test_files_that_nobody_listed_come_with_their_sources(settings: Settings) -> None:
    listing = {"real": {"title": "r", "listing": "s3+https://s3.example.org/bucket/prefix/"}}
    tree = described("cells", "1.0.0", resource("more/c", b"c"))
    tree["scibench"]["subsets"] |= listing
    register(settings.home, tree)
    package = catalog.resolve("cells:real", settings.home).package
    source = "s3+https://s3.example.org/bucket/prefix/a.bin"
    files = [dataclasses.replace(file, sources=(source,)) for file in _files(CONTENT)]

    text, lists = describe_locked(package, "real", files)

    locked = parse(text, "x", beside=lists.__getitem__)
    assert [r.path for r in locked.resources] == sorted(CONTENT)
    assert {r.sources for r in locked.resources} == {(source,)}
    assert locked.subsets["real"].listing == ""


def test_a_listed_version_is_locked_on_the_released_one(
    settings: Settings, work: Path, tmp_path: Path, adopted: dict[str, Path]
) -> None:
    """What was listed here is not to be had elsewhere; the lock file carries it."""
    tree = described("cells", "1.0.0", resource("more/c", b"c"))
    prefix = "s3+https://s3.example.org/bucket/prefix/"
    tree["scibench"]["subsets"]["real"] = {"title": "r", "listing": prefix}
    elsewhere = dataclasses.replace(settings, home=tmp_path / "elsewhere")
    for home in (settings.home, elsewhere.home):
        register(home, tree)
    listed = described(
        "cells", "1.0.0+listed.0123456789ab", *(resource(path, None) for path in CONTENT)
    )
    folder = catalog.derived_folder(settings.home, "cells", "1.0.0+listed.0123456789ab")
    durable.write_whole(folder / "datapackage.json", json.dumps(listed).encode())
    _come(settings, CONTENT, "cells@1.0.0+listed.0123456789ab:real")

    (pin,) = locking.lock("cells@1.0.0+listed.0123456789ab:real", settings=settings).pins

    assert pin.version == locked_version("1.0.0", _files(CONTENT))
    there = locking.resolve("cells:real", elsewhere)
    assert there.package.digest == pin.descriptor
    assert {r.path: r.sources for r in there.resources} == {
        path: (f"{SOURCE}{path}",) for path in CONTENT
    }


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("real/known.bin", "has a published SHA-256"),
        ("real/foreign.bin", "not a file of cells 1.0.0"),
        ("more/c", "not a file of cells 1.0.0"),
    ],
)
def test_a_lock_changes_no_published_file_and_adds_none(
    settings: Settings, path: str, told: str
) -> None:
    _unpublished(settings.home)
    package = catalog.resolve("cells:real", settings.home).package
    file = FilePin(path=path, bytes=1, sha256="0" * 64, sources=(f"{SOURCE}x",))

    with pytest.raises(DescriptorError, match=told):
        describe_locked(package, "real", [file])


def test_what_never_came_is_told(settings: Settings, work: Path) -> None:
    _unpublished(settings.home)

    with pytest.raises(NotFoundError, match=r"none came here yet; run: scibench-data get cells@1"):
        locking.lock("cells:real", settings=settings)


@pytest.mark.parametrize(
    "entry", [None, 1, {}, {"bytes": -1, "sha256": "0" * 64}, {"bytes": 1, "sha256": "x"}]
)
def test_a_damaged_note_counts_as_none(settings: Settings, work: Path, entry: Any) -> None:
    _unpublished(settings.home)
    _come(settings, CONTENT)
    folder = settings.home / "datasets/cells/1.0.0"
    holdings.recorded_path(folder).write_text(json.dumps(dict.fromkeys(CONTENT, entry)))

    with pytest.raises(NotFoundError, match="none came here yet"):
        locking.lock("cells:real", settings=settings)


def test_another_machine_builds_the_same_version_from_the_lock_file(
    settings: Settings, work: Path, tmp_path: Path, adopted: dict[str, Path]
) -> None:
    _unpublished(settings.home)
    _come(settings, CONTENT)

    (pin,) = locking.lock("cells:real", settings=settings).pins

    assert pin.version == locked_version("1.0.0", _files(CONTENT))
    assert list(pin.files) == _files(CONTENT)
    assert list(adopted) == [str(pin)]
    elsewhere = dataclasses.replace(settings, home=tmp_path / "elsewhere")
    _unpublished(elsewhere.home)
    reference = locking.resolve("cells:real", elsewhere)
    assert str(reference) == str(pin)
    assert reference.package.digest == pin.descriptor
    assert locking.pinned_reference(pin, elsewhere).package.text == reference.package.text
    assert locking.lock(settings=elsewhere).pins == (pin,)
    assert locking.lock(str(pin), settings=elsewhere).pins == (pin,)


def test_another_base_is_not_the_pinned_one(
    settings: Settings, work: Path, tmp_path: Path, adopted: dict[str, Path]
) -> None:
    _unpublished(settings.home)
    _come(settings, CONTENT)
    locking.lock("cells:real", settings=settings)
    elsewhere = dataclasses.replace(settings, home=tmp_path / "elsewhere")

    with pytest.raises(NotFoundError, match="no data package named 'cells'"):
        locking.get_locked(settings=elsewhere)
    _unpublished(elsewhere.home, resource("real/new.bin", b"new"))
    with pytest.raises(IntegrityError, match="its descriptor is"):
        locking.get_locked(settings=elsewhere)
    register(elsewhere.home, described("cells", "1.0.0", resource("real/a.bin", b"published")))
    with pytest.raises(IntegrityError, match=r"real/a\.bin: has a published SHA-256"):
        locking.get_locked(settings=elsewhere)
    assert not (elsewhere.home / "packages").exists()  # nothing was written of what was refused


def test_files_that_never_came_are_left_out_and_told(
    settings: Settings, work: Path, adopted: dict[str, Path]
) -> None:
    _unpublished(settings.home)
    _come(settings, {"real/a.bin": b"first"})

    written = locking.lock("cells:real", settings=settings)

    assert [file.path for file in written.pins[0].files] == ["real/a.bin"]
    assert (
        "1 files without a published checksum never came here and are left out" in written.notes[0]
    )


def test_content_that_came_is_taken_over(settings: Settings, work: Path) -> None:
    """Nothing is fetched again, and the first dataset keeps its own."""
    register(
        settings.home, described("cells", "1.0.0", *(resource(path, None) for path in CONTENT))
    )
    _come(settings, CONTENT)

    (pin,) = locking.lock("cells:real", settings=settings).pins

    found = dataset.find(locking.resolve("cells:real", settings), settings)
    assert found.commit == pin.commit
    for path, content in CONTENT.items():
        assert (found.folder / path).read_bytes() == content
    old = catalog.resolve("cells@1.0.0:real", settings.home)
    folder = holdings.dataset_folder(settings.home, old.package)
    assert all(build.object_path(folder, each).is_file() for each in old.resources)


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def run(home: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(home))

    def invoke(*words: str) -> Any:
        return CliRunner().invoke(verbs_versions.lock, words, catch_exceptions=True)

    return invoke


def test_the_verb_prints_what_it_pinned(run: Callable[..., Any], home: Path, work: Path) -> None:
    _cells(home)

    done = run("cells:real", "--file", "my.lock")

    assert done.exit_code == 0, done.exception
    pin = read_lock(work / "my.lock").pins[0]
    assert "cells@2.0.0:real" in done.stdout
    assert pin.commit in done.stdout
    assert done.stdout.splitlines()[-1] == "my.lock"
    assert run("--file", "my.lock", "--quiet").stdout == "my.lock\n"


def test_the_verb_answers_in_json(run: Callable[..., Any], home: Path, work: Path) -> None:
    _cells(home)

    told = json.loads(run("cells:real", "--json").stdout)

    assert told["schema"] == "scibench-data/lock/1"
    assert told["path"] == str(work / LOCK_FILE)
    assert told["pins"][0]["version"] == "2.0.0"
    assert isinstance(run("nothing").exception, NotFoundError)
