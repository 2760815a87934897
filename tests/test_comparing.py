"""What differs between two versions: complete, the same from both sides, and right in numbers."""

import copy
import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from added import Tree, described, register, resource
from chains import TINY, Chain
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from strategies import changed, descriptors, places

import scibench_data as sbd
from scibench_data import catalog
from scibench_data.commands import versions as verbs_versions
from scibench_data.descriptor import parse
from scibench_data.errors import DescriptorError, NotFoundError, UsageError
from scibench_data.getting import derive
from scibench_data.results import run
from scibench_data.settings import Settings, load_settings
from scibench_data.storing.store import open_store, read_store
from scibench_data.versions import comparing, moments
from scibench_data.versions.comparing import Change, Diff, File, FileChange
from scibench_data.versions.moments import Statistics, describe_values


def _kinds(found: Diff) -> dict[str, str]:
    return {
        " -> ".join(dict.fromkeys(f.path for f in (c.before, c.after) if f)): c.kind
        for c in found.files
    }


def _facts(found: Diff) -> dict[str, tuple[Any, Any]]:
    return {
        " ".join(filter(None, (c.section, c.item, c.field))): (c.before, c.after)
        for c in found.changes
    }


# --- files ----------------------------------------------------------------------------------------


def test_files_are_told_apart(settings: Settings) -> None:
    register(
        settings.home,
        described(
            "cells", "1.0.0",
            resource("real/same.bin", b"same"), resource("real/other.bin", b"old"),
            resource("real/gone.bin", b"gone"), resource("real/old/name.bin", b"moved"),
        ),
        described(
            "cells", "1.1.0",
            resource("real/same.bin", b"same"), resource("real/other.bin", b"newer"),
            resource("real/new.bin", b"new"), resource("real/new/name.bin", b"moved"),
        ),
    )  # fmt: skip

    found = comparing.diff("cells@1.0.0", "cells@1.1.0", settings=settings)

    assert _kinds(found) == {
        "real/gone.bin": "removed",
        "real/new.bin": "added",
        "real/old/name.bin -> real/new/name.bin": "renamed",
        "real/other.bin": "changed",
    }
    assert found.totals() == {
        "added": (1, 3), "removed": (1, 4), "changed": (1, 5), "renamed": (1, 5),
    }  # fmt: skip
    assert (found.a.files, found.a.bytes, found.b.bytes) == (4, 16, 17)
    assert found.different


def test_without_a_checksum_nothing_is_claimed(settings: Settings) -> None:
    sized = resource("real/sized.bin", None)
    register(
        settings.home,
        described("cells", "1.0.0", resource("real/a", None), {**sized, "bytes": 3}),
        described("cells", "1.1.0", resource("real/a", b"a"), {**sized, "bytes": 4}),
    )

    found = comparing.diff("cells@1.0.0", "cells@1.1.0", settings=settings)

    assert _kinds(found) == {"real/a": "unknown", "real/sized.bin": "changed"}
    assert not comparing.diff("cells@1.0.0", "cells@1.0.0", settings=settings).different


files = st.dictionaries(
    st.sampled_from("abcdefgh"), st.sampled_from(["", "1" * 64, "2" * 64, "3" * 64])
).map(
    lambda tree: {
        path: File(path=path, bytes=len(sha256) or None, sha256=sha256)
        for path, sha256 in tree.items()
    }
)


def _mirrored(change: FileChange) -> FileChange:
    return FileChange(before=change.after, after=change.before)


@given(files, files)
def test_every_file_is_told_once_and_the_same_from_both_sides(
    before: dict[str, File], after: dict[str, File]
) -> None:
    changes = comparing._file_changes(before, after)

    gone = [change.before.path for change in changes if change.before]
    came = [change.after.path for change in changes if change.after]
    assert len(set(gone)) == len(gone)
    assert len(set(came)) == len(came)
    same = before.keys() - set(gone)
    assert same == after.keys() - set(came)
    assert all(before[path] == after[path] for path in same)
    assert {*map(_mirrored, changes)} == {*comparing._file_changes(after, before)}
    assert comparing._file_changes(before, before) == []
    for change in changes:
        if change.kind == "renamed":
            assert change.before
            assert change.after
            assert change.before.sha256 == change.after.sha256 != ""


# --- descriptors ----------------------------------------------------------------------------------


def _schema(**columns: str) -> Tree:
    fields = [{"name": name, "type": kind} for name, kind in columns.items()]
    return {"type": "table", "schema": {"fields": fields}}


def _with_everything(version: str) -> Tree:
    return described(
        "cells",
        version,
        resource("real/t.csv", b"x", **_schema(x="integer", y="number")),
        arrays=[
            {"name": "x", "dtype": "int32", "dims": ["n"], "units": "m"},
            {"name": "y", "dtype": "int32", "dims": ["n"], "units": "m"},
        ],
        splits={
            "group": "x",
            "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2},
            "seed": 1,
            "reason": "r",
        },
        task={
            "description": "d",
            "inputs": ["x"],
            "targets": ["y"],
            "metric": "m",
            "higher_is_better": True,
        },
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda tree: tree["scibench"]["arrays"][0].update(dtype="int64"),
            {"arrays x dtype": ("int32", "int64")},
        ),
        (
            lambda tree: tree["scibench"]["arrays"][0].update(dims=["m", "n"], units="km"),
            {"arrays x dims": (["n"], ["m", "n"]), "arrays x units": ("m", "km")},
        ),
        (
            lambda tree: tree["scibench"]["arrays"].append(
                {"name": "z", "dtype": "bool", "dims": [], "units": "1"}
            ),
            {"arrays z": (None, {"dtype": "bool", "units": "1"})},
        ),
        (
            lambda tree: tree["resources"][0].update(_schema(x="string", z="number")),
            {
                "tables real/t.csv columns": (["x", "y"], ["x", "z"]),
                "tables real/t.csv column x": (
                    {"name": "x", "type": "integer"},
                    {"name": "x", "type": "string"},
                ),
                "tables real/t.csv column y": ({"name": "y", "type": "number"}, None),
                "tables real/t.csv column z": (None, {"name": "z", "type": "number"}),
            },
        ),
        (
            lambda tree: tree["scibench"]["splits"].update(seed=2),
            {"splits seed": (1, 2)},
        ),
        (
            lambda tree: tree["scibench"]["task"].update(metric="n", target=0.5),
            {"task metric": ("m", "n"), "task target": (None, 0.5)},
        ),
        (
            lambda tree: tree["scibench"]["subsets"]["real"].update(
                recipe={"parameters": {"seed": 3}}
            ),
            {"recipe real": (None, {"seed": 3})},
        ),
        (
            lambda tree: tree.update(licenses=[{"name": "CC-BY-4.0"}]),
            {
                "licences CC-BY-4.0": (None, {"name": "CC-BY-4.0"}),
                "licences CC0-1.0": ({"name": "CC0-1.0"}, None),
            },
        ),
        (
            lambda tree: tree.update(sources=[{"title": "Work"}]),
            {"sources Work": (None, {"title": "Work"})},
        ),
        (
            lambda tree: tree["resources"][0]["scibench"].update(
                sources=["https://mirror.example.org/t.csv"]
            ),
            {"hosts data.example.org": ({}, None), "hosts mirror.example.org": (None, {})},
        ),
        (lambda tree: tree.update(title="Others"), {"package title": ("Cells", "Others")}),
    ],
)
def test_each_fact_is_told(
    settings: Settings, change: Callable[[Tree], None], told: dict[str, tuple[Any, Any]]
) -> None:
    tree = _with_everything("1.1.0")
    change(tree)
    register(settings.home, _with_everything("1.0.0"), tree)

    found = comparing.diff("cells@1.0.0", "cells@1.1.0", settings=settings)

    assert _facts(found) == told
    assert found.files == ()


@examples(max_examples=25)
@given(st.data(), descriptors())
def test_diff_mirrors_and_a_version_equals_itself(data: st.DataObject, tree: Tree) -> None:
    other = copy.deepcopy(tree)
    for _ in range(3):
        place = data.draw(st.sampled_from(places(other)))
        smaller = changed(other, place, lambda parent, key: parent.pop(key))
        try:
            parse(json.dumps(smaller).encode(), "x")
        except DescriptorError:
            continue
        other = smaller
    if other["name"] == "cryoem":
        return
    tree["version"], other["version"] = "1.0.0", "2.0.0"
    name = tree["name"]
    with tempfile.TemporaryDirectory() as folder:
        chosen = load_settings(home=Path(folder))
        register(chosen.home, tree, other)

        there = comparing.diff(f"{name}@1.0.0", f"{name}@2.0.0", settings=chosen)
        back = comparing.diff(f"{name}@2.0.0", f"{name}@1.0.0", settings=chosen)
        same = comparing.diff(f"{name}@1.0.0", f"{name}@1.0.0", settings=chosen)

    assert (back.a, back.b, back.changelog) == (there.b, there.a, there.changelog)
    assert {*map(_mirrored, there.files)} == {*back.files}
    assert [dataclasses.replace(c, before=c.after, after=c.before) for c in there.changes] == [
        *back.changes
    ]
    assert there.different is back.different
    assert (same.files, same.changes, same.changelog) == ((), (), ())
    without = {k: v for k, v in tree.items() if k != "version"}
    if without == {k: v for k, v in other.items() if k != "version"}:
        assert not there.different
    json.dumps(there.to_json(), allow_nan=False)


# --- versions and subsets -------------------------------------------------------------------------


def _three(home: Path) -> None:
    register(
        home,
        *(
            described("cells", v, resource("real/a", v.encode()), resource("more/b", b"b"))
            for v in ("1.0.0", "1.1.0", "2.0.0")
        ),
        yanked={"1.1.0": "labels leaked"},
    )


def test_the_changelog_leads_from_one_to_the_other(settings: Settings) -> None:
    _three(settings.home)

    found = comparing.diff("cells@1.0.0", "cells", settings=settings)

    assert [(r.version, r.changes, r.yanked) for r in found.changelog] == [
        ("1.1.0", "made 1.1.0", "labels leaked"),
        ("2.0.0", "made 2.0.0", ""),
    ]
    assert str(found.b) == "cells@2.0.0"
    assert comparing.diff("cells@1.1.0", "cells", settings=settings).a.yanked == "labels leaked"


def test_a_subset_of_one_side_holds_for_both(settings: Settings) -> None:
    _three(settings.home)

    for a, b in (("", ":more"), (":more", ""), (":more", ":more")):
        found = comparing.diff(f"cells@1.0.0{a}", f"cells@1.1.0{b}", settings=settings)

        assert (found.a.subsets, found.b.subsets) == (("more",), ("more",))
        assert not found.different
    with pytest.raises(NotFoundError, match=r"cells@1\.1\.0: no subset 'mroe'"):
        comparing.diff("cells@1.1.0:mroe", "cells@1.0.0", settings=settings)


def test_two_subsets_are_compared_by_the_paths_within_them(settings: Settings) -> None:
    one, other = resource("real/a/b", b"1"), resource("more/a/b", b"1")
    register(settings.home, described("cells", "1.0.0", one, other))

    found = comparing.diff("cells:real", "cells:more", settings=settings)

    assert found.files == ()
    assert _facts(found) == {"subsets title": ("real", "more")}


def test_two_packages_are_compared_too(settings: Settings) -> None:
    _three(settings.home)
    register(settings.home, described("tissue", "1.0.0", resource("real/a", b"1.0.0")))

    found = comparing.diff("cells@1.0.0", "tissue", settings=settings)

    assert _kinds(found) == {"more/b": "removed"}
    assert found.changelog == ()
    assert "subsets more" in _facts(found)


def test_a_lock_file_stands_in_for_a_version(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scibench_data.versions import locking

    _three(settings.home)
    monkeypatch.chdir(tmp_path)
    locking.lock("cells@1.0.0:real", settings=settings)

    assert comparing.diff("cells", "cells@2.0.0", settings=settings).a.version == "1.0.0"


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ("cells@9.0.0", "cells", NotFoundError),
        ("cells", "cell", NotFoundError),
        ("../x", "cells", UsageError),
        ("cells", "cells:real:more", UsageError),
    ],
)
def test_what_can_not_be_meant_is_told(
    settings: Settings, a: str, b: str, kind: type[Exception]
) -> None:
    _three(settings.home)

    with pytest.raises(kind):
        comparing.diff(a, b, settings=settings)


# --- statistics -----------------------------------------------------------------------------------


def _expected(values: Any) -> Statistics:
    """Say with NumPy, from all values at once, what the blocks should add up to."""
    nan = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    numbers = values[~nan].astype(np.float64)
    if not numbers.size:
        return Statistics(count=values.size, nan=float(nan.mean()) if values.size else 0.0)
    return Statistics(
        count=values.size,
        nan=float(nan.mean()),
        min=numbers.min().item(),
        max=numbers.max().item(),
        mean=numbers.mean().item(),
        std=numbers.std().item(),
    )


def _assert_close(found: Statistics, expected: Statistics) -> None:
    scale = max(abs(expected.min or 0.0), abs(expected.max or 0.0), 1e-300)
    for field in dataclasses.fields(Statistics):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert (mine is None) is (theirs is None), field.name
        if mine is not None:
            assert math.isclose(mine, theirs, rel_tol=1e-12, abs_tol=1e-9 * scale), field.name


@examples(max_examples=60)
@given(
    arrays_of.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8, np.int64, np.bool_]),
        arrays_of.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9),
    ),
    st.integers(1, 4),
)
def test_blocks_add_up_to_the_whole(values: Any, rows: int) -> None:
    with np.errstate(all="ignore"):
        large = values.dtype.kind == "f" and not np.all(np.abs(values[~np.isnan(values)]) < 1e150)
        expected = _expected(values)
    if large:
        return
    dims = [f"d{axis}" for axis in range(values.ndim)]
    data = xr.Dataset({"a": (dims, values)})
    if values.size:
        data = data.chunk({"d0": rows})

    _assert_close(describe_values(data, 2)["a"], expected)


def test_the_share_of_nan_is_that_of_all_blocks() -> None:
    values = np.array([np.nan, 1.0, 3.0, np.nan, np.nan, 5.0, 7.0, 9.0])

    found = describe_values(xr.Dataset({"a": ("x", values)}).chunk({"x": 3}))["a"]

    assert (found.count, found.nan, found.mean) == (8, 3 / 8, 5.0)
    assert found.std is not None
    assert math.isclose(found.std, 8**0.5)


def test_files_without_checksums_are_no_renames() -> None:
    old = File(path="a", bytes=1, sha256="")
    new = File(path="b", bytes=1, sha256="")

    changes = comparing._file_changes({"a": old}, {"b": new})

    assert [change.kind for change in changes] == ["removed", "added"]


def test_what_is_no_number_is_counted_only() -> None:
    data = xr.Dataset(
        {
            "text": ("x", np.array(["a", "b"])),
            "none": ("y", np.array([np.nan, np.nan])),
            "far": ("z", np.array([-np.inf, 1.0, np.inf])),
            "scalar": ((), np.float32(2.0)),
        }
    )

    found = describe_values(data)

    assert found["text"] == Statistics(count=2)
    assert found["none"] == Statistics(count=2, nan=1.0)
    assert (found["far"].min, found["far"].max) == (-math.inf, math.inf)
    assert found["scalar"] == Statistics(count=1, min=2.0, max=2.0, mean=2.0, std=0.0)


def test_the_order_of_the_blocks_and_the_number_of_threads_do_not_show() -> None:
    values = np.random.default_rng(0).normal(1e6, 1.0, 10_000)
    data = xr.Dataset({"a": ("x", values)}).chunk({"x": 97})

    found = [describe_values(data, jobs)["a"] for jobs in (1, 2, 4)]

    assert found[0] == found[1] == found[2]
    assert found[0].std is not None
    assert math.isclose(found[0].std, values.std(), rel_tol=1e-9)


def test_the_values_of_a_store_are_those_of_numpy(chain: Chain) -> None:
    arrays = open_store(read_store(chain.store))

    found = describe_values(arrays, 2)

    assert found.keys() == {str(name) for name in arrays.variables}
    for name, variable in arrays.variables.items():
        _assert_close(found[str(name)], _expected(variable.values))


def test_without_a_store_it_says_what_to_run(settings: Settings) -> None:
    found = comparing.diff("cryoem@1.0.0:sample", "cryoem@1.0.0:sample", settings=settings)

    assert found.arrays is None
    assert found.notes == (
        "cryoem@1.0.0:sample: no store of it here, so its values are not compared; run: "
        "scibench-data materialize cryoem@1.0.0:sample",
    )
    assert not settings.home.exists()  # nothing is fetched or made
    with pytest.raises(NotFoundError, match="no store of it here"):
        comparing.diff("cryoem", "cryoem", statistics=True, settings=settings)
    without = comparing.diff("cryoem", "cryoem", statistics=False, settings=settings)
    assert (without.arrays, without.notes) == (None, ())


def test_stores_are_compared_where_both_are_here(chain: Chain) -> None:
    settings, mine = chain.settings, chain.store
    assert comparing.diff(TINY, TINY, statistics=True, settings=settings).arrays == ()
    released = catalog.resolve("cryoem@1.0.0", settings.home)
    derived = derive.derive(released, catalog.Variant(scale=320), settings)
    data = sbd.get(str(derived), settings=settings)
    other = run.materialize(data, settings)

    found = comparing.diff(TINY, str(derived), statistics=True, settings=settings)

    assert found.arrays
    assert found.changes == (
        Change(section="recipe", item="", field="particles", before=640, after=320),
    )
    old, new = open_store(read_store(mine)), open_store(other)
    told = {each.name: each for each in found.arrays}
    assert "images" in told
    for name, each in told.items():
        assert each.before is not None
        assert each.after is not None
        _assert_close(each.before, _expected(old[name].values))
        _assert_close(each.after, _expected(new[name].values))
    for same in old.variables.keys() - told.keys():
        np.testing.assert_array_equal(old[same].values, new[same].values)
    back = comparing.diff(str(derived), TINY, settings=settings)
    assert back.arrays is not None
    mirrored = [dataclasses.replace(c, before=c.after, after=c.before) for c in back.arrays]
    assert [*found.arrays] == mirrored


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(home))

    def invoke(*words: str) -> Any:
        return CliRunner().invoke(verbs_versions.diff, words)

    return invoke


def test_the_verb_tells_a_person(cli: Callable[..., Any], home: Path) -> None:
    _three(home)

    done = cli("cells@1.0.0", "cells@2.0.0")

    assert done.exit_code == 0
    for line in ("from", "cells@1.0.0", "1 changed (5 B)", "yanked: labels leaked", "real/a"):
        assert line in done.stdout
    assert "values  not compared" in done.stdout


def test_foreign_text_and_long_lists_stay_readable(cli: Callable[..., Any], home: Path) -> None:
    many = [resource(f"real/{i:03}", str(i).encode()) for i in range(90)]
    register(
        home,
        described("cells", "1.0.0", *many),
        {**described("cells", "1.1.0", many[0]), "description": "x" * 500},
    )

    done = cli("cells@1.0.0", "cells@1.1.0")

    assert "... and 69 more; --json has all" in done.stdout
    assert "x" * 100 not in done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("cells@1.0.0", "cells@2.0.0"), 0),
        (("cells@1.0.0", "cells@2.0.0", "--exit-code"), 1),
        (("cells@1.0.0", "cells@1.0.0", "--exit-code"), 0),
        (("cells@1.0.0:more", "cells@2.0.0", "--exit-code"), 0),
    ],
)
def test_the_exit_code_tells_only_where_asked(
    cli: Callable[..., Any], home: Path, words: tuple[str, ...], code: int
) -> None:
    _three(home)

    assert cli(*words).exit_code == code


def test_the_verb_answers_in_json(cli: Callable[..., Any], home: Path) -> None:
    _three(home)

    told = json.loads(cli("cells@1.0.0", "cells@2.0.0", "--json").stdout)

    assert told["schema"] == "scibench-data/diff/1"
    assert told["different"] is True
    assert told["totals"] == {"changed": {"files": 1, "bytes": 5}}
    assert told["files"][0]["kind"] == "changed"
    assert told["files"][0]["after"]["sha256"] == hashlib.sha256(b"2.0.0").hexdigest()
    assert [each["version"] for each in told["changelog"]] == ["1.1.0", "2.0.0"]
    assert told["arrays"] is None


def test_numbers_that_json_lacks_are_text(settings: Settings) -> None:
    _three(settings.home)
    found = comparing.diff("cells@1.0.0", "cells@1.0.0", settings=settings)
    far = Statistics(count=2, min=-math.inf, max=math.inf, mean=math.nan, std=math.nan)
    change = comparing.ArrayChange(subset="real", name="a", before=far, after=None)

    told = dataclasses.replace(found, arrays=(change,)).to_json()

    assert told["arrays"][0]["before"]["min"] == "-Infinity"
    json.dumps(told, allow_nan=False)


def test_the_moments_of_nothing_add_nothing() -> None:
    some = moments._moments(np.array([1.0, 2.0, np.nan]))

    assert moments._Moments(count=0) + some == some
    assert some + moments._Moments(count=0) == some
