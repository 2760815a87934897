"""A store gives back what went in, has one logical digest everywhere, and shows every change."""

import functools
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.codecs import ZstdCodec

from scibench_data import durable
from scibench_data.errors import (
    IntegrityError,
    LockedError,
    NotFoundError,
    ScibenchError,
    SpaceError,
    UsageError,
)
from scibench_data.progress import Task
from scibench_data.storing import digest, shard, store, writing
from scibench_data.storing.staging import Staging
from scibench_data.storing.store import Layout, Store

SMALL = Layout(chunk_bytes=1 << 18, shard_bytes=1 << 20)  # 32 and 128 images


def particles(count: int = 300) -> xr.Dataset:
    """Return images of noise in blocks that fit no shard, coordinates, and odds and ends."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 3000, (count, 64, 64)).astype(np.int16)
    return xr.Dataset(
        {
            "images": (
                ("particle", "y", "x"),
                da.from_array(images, chunks=(70, 40, 64), name=False),
                {"units": "1", "long_name": "particle images"},
            ),
            "volumes": (("conformation", "z", "y", "x"), np.zeros((2, 64, 64, 64), "f4")),
            "phases": ("conformation", np.array([1j, complex("nan")])),
        },
        {
            "defocus": ("particle", rng.uniform(1e4, 2e4, count), {"units": "Angstrom"}),
            "state": (
                "particle",
                np.arange(count, dtype=np.int32) % 2,
                {"flag_values": np.arange(2), "flag_meanings": "open closed"},
            ),
            "voltage": ("optics_group", np.array([300.0]), {"units": "kV"}),
            "conformation": ("conformation", np.array([0, 1])),
            "simulated": ((), np.True_),
        },
        {"title": "noise", "Conventions": "CF-1.11", "sign": np.float64(-1)},
    )


def write(
    home: Path, dataset: xr.Dataset | None = None, layout: Layout = SMALL, **more: Any
) -> Store:
    source = particles() if dataset is None else dataset
    identity = {"dataset": "noise", "commit": "c" * 40, "layout": layout.to_json()}
    return store.materialize(lambda: source, home, "noise", identity, layout=layout, **more)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Store, home: Path) -> Path:
    """A copy of a store, as `write` would make it in `home`."""
    copy = home / "stores" / original.folder.name
    shutil.copytree(original.folder, copy)
    return copy


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    """Let small arrays have several digest blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "BLOCK_BYTES", size)
        yield


# --- values ---------------------------------------------------------------------------------------


def test_a_store_gives_back_every_value_dtype_name_and_attribute(home: Path) -> None:
    expected = particles()

    opened = store.open_store(write(home))

    assert {name: v.dtype for name, v in opened.variables.items()} == {
        name: v.dtype for name, v in expected.variables.items()
    }
    assert opened.images.chunks == ((128, 128, 44), (64,), (64,))
    assert opened.defocus.chunks is None
    xr.testing.assert_identical(opened.compute(), expected.compute())


@pytest.mark.parametrize(
    "layout", [SMALL, Layout(codec="lz4"), Layout(codec="zstd")], ids=["raw", "lz4", "zstd"]
)
def test_other_readers_open_it_without_a_warning(home: Path, layout: Layout) -> None:
    path = write(home, layout=layout).path

    plain = xr.open_zarr(path)
    group = zarr.open_group(path, mode="r")

    xr.testing.assert_identical(plain.compute(), particles().compute())
    assert set(group.array_keys()) == set(particles().variables)
    assert plain.defocus.attrs["units"] == "Angstrom"


def test_it_says_how_it_is_laid_out(home: Path) -> None:
    group = zarr.open_group(write(home).path, mode="r")
    images, defocus = group["images"], group["defocus"]

    assert isinstance(images, zarr.Array)
    assert isinstance(defocus, zarr.Array)
    assert (images.chunks, images.shards) == ((32, 64, 64), (128, 64, 64))
    assert images.compressors == ()
    assert (defocus.chunks, defocus.shards) == ((300,), None)


def test_the_default_layout_cuts_the_sample_into_several_files_of_some_chunks() -> None:
    images = xr.Variable(
        ("n", "y", "x"), da.zeros((5120, 48, 48), dtype="i2", chunks=(512, 48, 48))
    )
    stacks = xr.Variable(("n", "y", "x"), da.zeros((100_000, 128, 128), dtype="f4"))

    small = shard.plan_grid("images", images, Layout(codec="none"))
    large = shard.plan_grid("images", stacks, Layout(codec="none"))

    assert (small.chunk, small.shard, small.files) == (64, 1024, 5)
    assert (large.chunk, large.shard, large.files) == (8, 1024, 98)


def test_noise_stays_raw_and_what_shrinks_is_packed() -> None:
    rng = np.random.default_rng(0)
    noise = xr.Variable("n", rng.normal(size=5000))
    labels = xr.Variable("n", np.arange(5000) // 100)

    assert shard.plan_grid("noise", noise, Layout()).codec == "none"
    assert shard.plan_grid("labels", labels, Layout()).codec == "lz4"


def _pieces(values: Any, grid: shard.Grid, index: int) -> list[Any]:
    held = values[index * grid.shard :][: grid.shard]
    return [held[start : start + grid.piece] for start in range(0, len(held), grid.piece)]


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["|b1", "<i2", ">f4", "<c16"])
@pytest.mark.parametrize("rows", [1, 5, 16, 37])
def test_files_are_byte_for_byte_those_of_zarr_python(
    tmp_path: Path, codec: Any, dtype: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(rows).integers(0, 9, (rows, 3, 2)).astype(dtype)
    variable = xr.Variable(("n", "y", "x"), values)
    size = 6 * values.itemsize
    layout = Layout(chunk_bytes=4 * size, shard_bytes=16 * size, codec=codec)
    monkeypatch.setattr(shard, "_PIECE_BYTES", 1)  # two pieces of a block make up a file
    with small_blocks(8 * size):
        grid = shard.plan_grid("a", variable, layout)
    shard.write_metadata(tmp_path / "theirs", xr.Dataset({"a": variable}), {"a": grid})
    theirs = zarr.open_group(tmp_path / "theirs")["a"].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]

    theirs[...] = values
    written = [
        shard.write_shard(_pieces(values, grid, i), grid.key(i), grid, i, folder=tmp_path).flush()
        for i in range(grid.files)
    ]

    for file in written:
        content = (tmp_path / file.path).read_bytes()
        assert content == (tmp_path / "theirs" / "a" / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    leaves = digest.leaves(digest.byte_rows(values), grid.block)
    assert "".join(file.leaves for file in written) == leaves.hex()


def test_zstd_frames_carry_a_checksum() -> None:
    packed = bytearray(shard.pack(np.arange(400).astype("u1").reshape(1, -1), "zstd", 1))
    codec = ZstdCodec(level=1, checksum=True)._zstd_codec
    packed[-20] ^= 1

    with pytest.raises(RuntimeError):
        codec.decode(bytes(packed))


# --- the logical digest ---------------------------------------------------------------------------


def independent_digest(dataset: xr.Dataset, block_bytes: int = 2**20) -> str:
    """Follow the words of `scibench_data.storing.digest` with nothing but json and hashlib."""

    def canonical(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def counted(attributes: Any) -> dict[str, Any]:
        silent = "title history institution source references comment long_name".split()  # noqa: SIM905
        return {
            k: v.tolist() if hasattr(v, "tolist") else v
            for k, v in attributes.items()
            if k not in silent
        }

    arrays = {}
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.data)
        values = values.astype(values.dtype.newbyteorder("<"))
        row = values.itemsize * math.prod(values.shape[1:])
        block = 1
        while 2 * block * row <= block_bytes:
            block *= 2
        data = values.tobytes(order="C")
        head = canonical(
            {
                "name": name,
                "role": "coordinate" if name in dataset.coords else "data",
                "dims": list(variable.dims),
                "shape": list(values.shape),
                "dtype": values.dtype.str,
                "block": block,
                "attributes": counted(variable.attrs),
            }
        )
        whole = hashlib.sha256(b"scibench-array/1\n" + head + b"\n")
        for start in range(0, len(data), block * row):
            whole.update(hashlib.sha256(data[start : start + block * row]).digest())
        arrays[name] = whole.hexdigest()
    attributes = counted(dataset.attrs)
    tree = {"type": "scibench-dataset/1", "arrays": arrays, "attributes": attributes}
    return hashlib.sha256(canonical(tree)).hexdigest()


layouts = st.builds(
    Layout,
    chunk_bytes=st.integers(1, 2000),
    shard_bytes=st.integers(1, 4000),
    codec=st.sampled_from(["auto", "none", "lz4", "zstd"]),
)
dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=20)))


@settings(max_examples=60)
@given(values=arrays, layout=layouts, block=st.integers(1, 300), rows=st.integers(1, 20))
def test_any_array_in_any_layout_comes_back_with_one_digest(
    tmp_path_factory: pytest.TempPathFactory,
    values: npt.NDArray[Any],
    layout: Layout,
    block: int,
    rows: int,
) -> None:
    home = tmp_path_factory.mktemp("any")
    dims = [f"axis_{i}" for i in range(values.ndim)]
    chunks = (rows, *values.shape[1:])[: values.ndim]
    source = xr.Dataset({"a": (dims, da.from_array(values, chunks=chunks), {"units": "m"})})

    with small_blocks(block):
        written = write(home, source, layout)
        opened = store.open_store(written)
        again = digest.logical_digest(opened)

    assert written.digest == again == independent_digest(source, block)
    assert opened.a.dtype == values.dtype.newbyteorder("=")
    assert opened.a.to_numpy().tobytes() == values.astype(opened.a.dtype).tobytes()


def test_the_digest_is_pinned(home: Path) -> None:
    values = np.arange(600_000, dtype=np.int32).reshape(-1, 6)
    dataset = xr.Dataset(
        {"a": (("n", "k"), values, {"units": "m", "long_name": "a"})},
        {"b": ("n", np.arange(100_000) / 8, {"units": "Å"})},
        {"title": "t", "sign": -1},
    )

    pinned = "242e83f995349844183bc215f916fbdab8d1f6748c9944e842bbdae0c8373a98"

    assert digest.logical_digest(dataset) == pinned
    assert independent_digest(dataset) == pinned
    assert write(home, dataset).digest == pinned


def _rolled(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(images=dataset.images.roll(particle=1))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (_rolled, True),
        (lambda d: d.assign(images=d.images.astype("i4")), True),
        (lambda d: d.rename(state="conformation_index"), True),
        (lambda d: d.rename(particle="sample"), True),
        (lambda d: d.reset_coords("state"), True),
        (lambda d: d.assign_coords(voltage=d.voltage.assign_attrs(units="V")), True),
        (lambda d: d.assign_attrs(sign=1), True),
        (lambda d: d.drop_vars("volumes"), True),
        (lambda d: d.assign_attrs(title="other", history="made"), False),
        (lambda d: d.assign(images=d.images.assign_attrs(long_name="other")), False),
        (lambda d: d.chunk(particle=7), False),
        (lambda d: d.assign(images=d.images.astype(">i2")), False),
        (lambda d: d[sorted(d.variables, reverse=True)], False),
    ],
)
def test_the_digest_changes_with_what_is_said_and_with_nothing_else(
    change: Callable[[xr.Dataset], xr.Dataset], counts: bool
) -> None:
    dataset = particles()

    same = digest.logical_digest(change(dataset)) == digest.logical_digest(dataset)

    assert same is not counts


def test_jobs_and_order_of_work_change_no_byte(tmp_path: Path) -> None:
    stores = [write(tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2, 7)]

    assert len({s.manifest_digest for s in stores}) == 1
    assert len({s.digest for s in stores}) == 1


# --- finding, checking, healing -------------------------------------------------------------------


def test_a_second_call_reads_nothing(home: Path) -> None:
    def explode() -> xr.Dataset:
        pytest.fail("the source was read again")

    first = write(home)
    identity = dict(first.identity)

    again = store.materialize(explode, home, "noise", identity, layout=SMALL)

    assert (first.verified, again.verified) == ("hashed", "stamps")
    assert again.manifest_digest == first.manifest_digest
    assert store.find_store(home, "noise", identity) == again
    assert store.find_store(home, "noise", {**identity, "commit": "d"}) is None


def test_check_proves_every_link(home: Path) -> None:
    written = write(home)

    links = store.check(written.folder)

    assert [(name, status) for name, status, _ in links] == [
        ("store manifest", "holds"),
        ("store files", "holds"),
        ("store values", "holds"),
    ]
    assert written.digest in links[-1][2]


def test_sha256sum_knows_the_manifest(home: Path) -> None:
    written = write(home)

    line = (written.folder / "manifest.sha256").read_text()

    assert line == f"{written.manifest_digest}  manifest.json\n"
    content = (written.folder / "manifest.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == written.manifest_digest


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _fill(path: Path) -> None:
    path.write_bytes(b"")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    elsewhere = path.parents[4] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


SHARD, META = "data.zarr/images/c.1.0.0", "data.zarr/images/zarr.json"


@pytest.mark.parametrize("harm", [_flip, _fill, _pipe, _link, Path.unlink])
@pytest.mark.parametrize(
    "file", [SHARD, META, "data.zarr/zarr.json", "manifest.json", "manifest.sha256"]
)
def test_a_damaged_file_is_named(folder: Path, harm: Callable[[Path], None], file: str) -> None:
    store.read_store(folder)  # from here on there are stamps
    harm(folder / file)

    with pytest.raises(IntegrityError, match=re.escape(file)):
        store.read_store(folder)
    assert "fails" in {status for _, status, _ in store.check(folder)}


def test_a_damaged_store_is_set_aside_and_written_again(home: Path) -> None:
    sound = write(home)
    _flip(sound.folder / SHARD)

    healed = write(home)

    assert healed == sound
    assert [aside.name for aside in (home / "quarantine").iterdir()] == [f"{sound.folder.name}.1"]


def test_bytes_that_changed_between_two_shards_are_named(folder: Path) -> None:
    one, other = folder / SHARD, folder / "data.zarr/images/c.0.0.0"
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)

    _, (name, status, detail), _ = store.check(folder)

    assert (name, status) == ("store files", "fails")
    assert "images/c.0.0.0" in detail
    assert "images/c.1.0.0" in detail


@pytest.mark.parametrize(
    "extra", ["data.zarr/images/c.9.0.0", "data.zarr/.zgroup", "data.zarr/b/c"]
)
def test_a_file_too_many_is_named(folder: Path, extra: str) -> None:
    (folder / extra).parent.mkdir(exist_ok=True)
    (folder / extra).write_bytes(b"0")

    with pytest.raises(IntegrityError, match=rf"{extra}: not in the manifest"):
        store.read_store(folder)


def test_a_linked_folder_is_refused(folder: Path, home: Path) -> None:
    (folder / "data.zarr").rename(home / "elsewhere")
    (folder / "data.zarr").symlink_to(home / "elsewhere")

    with pytest.raises(IntegrityError, match=r"data\.zarr: not a folder but a link"):
        store.read_store(folder)


def test_a_link_instead_of_the_store_is_refused_and_set_aside(folder: Path, home: Path) -> None:
    folder.rename(home / "elsewhere")
    folder.symlink_to(home / "elsewhere")

    with pytest.raises(IntegrityError, match="not a folder"):
        store.read_store(folder)
    assert "fails" in {status for _, status, _ in store.check(folder)}
    assert store.check(write(home).folder)[-1][1] == "holds"
    assert (home / "elsewhere").is_dir()


@pytest.mark.parametrize("below", ["data.zarr", "data.zarr/images", "."])
def test_an_empty_folder_too_many_is_named(folder: Path, below: str) -> None:
    store.read_store(folder)
    (folder / below / "extra").mkdir()

    with pytest.raises(IntegrityError, match=r"extra/: not in the manifest"):
        store.read_store(folder)


def test_a_deep_tree_too_many_is_named(folder: Path) -> None:
    place = os.open(folder / "data.zarr", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)

    try:
        with pytest.raises(IntegrityError, match="not in the manifest"):
            store.read_store(folder)
    finally:  # pytest, which tidies up with shutil.rmtree, can't go so deep
        subprocess.run(["rm", "-r", folder / "data.zarr/d"], check=True)


@pytest.mark.parametrize("occupy", [Path.touch, os.mkfifo, lambda p: p.symlink_to("nowhere")])
def test_what_takes_a_store_s_place_is_set_aside(
    home: Path, occupy: Callable[[Path], object]
) -> None:
    sound = write(home)
    shutil.rmtree(sound.folder)
    occupy(sound.folder)

    with pytest.raises(IntegrityError, match="not a folder"):
        store.find_store(home, "noise", sound.identity)
    assert write(home).digest == sound.digest
    assert [each.name for each in (home / "quarantine").iterdir()] == [f"{sound.folder.name}.1"]


def test_waiting_for_another_writer_ends(home: Path, original: Store) -> None:
    with (
        durable.lock(home / "locks" / f"{original.folder.name}.lock"),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(LockedError, match=r"0\.1 s"),
    ):
        pool.submit(write, home, lock_timeout=0.1).result()


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("size", "x"),
        ("size", True),
        ("size", -1),
        ("path", 3),
        ("sha256", None),
        ("files", 5),
        ("files", {"a": 1}),
        ("files", ["a"]),
        ("arrays", []),
        ("arrays", {"images": 3}),
        ("identity", "me"),
        ("digest", 1),
    ],
)
def test_a_manifest_of_other_types_is_set_aside(
    folder: Path, home: Path, entry: str, wrong: object
) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if entry in manifest:
        manifest[entry] = wrong
    else:
        manifest["files"][0][entry] = wrong
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)

    with pytest.raises(IntegrityError, match=r"manifest\.json: "):
        store.read_store(folder)
    assert store.check(folder)[0][1] == "fails"
    assert store.check(write(home).folder)[-1][1] == "holds"


def test_a_size_that_is_not_the_file_s_is_named(folder: Path) -> None:
    store.read_store(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][0]["size"] += 1
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)

    with pytest.raises(IntegrityError, match=r"bytes, expected"):
        store.read_store(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"identity":{},"files":[{"path":1}]}', b"[" * 100_000],
    ids=["empty", "object", "list", "null", "wrong", "deep"],
)
def test_a_foreign_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)

    with pytest.raises(IntegrityError, match=r"manifest\.json: "):
        store.read_store(folder)


def test_a_store_of_something_else_under_the_right_name_is_refused(home: Path) -> None:
    ours, theirs = write(home), write(home, layout=Layout())
    ours.folder.rename(home / "away")
    theirs.folder.rename(ours.folder)

    with pytest.raises(IntegrityError, match=r"manifest\.json: expected"):
        store.find_store(home, "noise", ours.identity)


def _sign(folder: Path, manifest: dict[str, Any]) -> None:
    """Make a manifest that agrees with itself, as a forger would."""
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)


@pytest.mark.parametrize(
    ("file", "of_manifest"),
    [
        (SHARD, "holds"),
        (META, "fails"),
        ("data.zarr/volumes/c.0.0.0.0", "holds"),
        (None, "fails"),
    ],
)
def test_values_that_no_longer_follow_are_found_though_every_file_matches(
    folder: Path, file: str | None, of_manifest: str
) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if file == META:
        text = (folder / META).read_text().replace("int16", "uint16")
        (folder / META).write_text(text)
        root = folder / "data.zarr/zarr.json"
        root.write_text(root.read_text().replace("int16", "uint16"))
    elif file:
        _flip(folder / file)
    else:
        manifest["digest"] = "0" * 64
    _sign(folder, manifest)

    assert [status for _, status, _ in store.check(folder)] == [of_manifest, "holds", "fails"]


@pytest.mark.parametrize(
    ("key", "lie"),
    [
        ("shape", [299, 64, 64]),
        ("dtype", "<i4"),
        ("dims", ["image", "y", "x"]),
        ("chunk", 64),
        ("shard", 256),
        ("block", 1),
        ("codec", "zstd"),
        ("digest", "0" * 64),
        ("colour", "red"),
        (None, None),
    ],
)
def test_a_lie_of_the_manifest_on_an_array_is_found(
    folder: Path, key: str | None, lie: object
) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if key is None:
        del manifest["arrays"]["images"]
    else:
        manifest["arrays"]["images"][key] = lie
    _sign(folder, manifest)

    links = store.check(folder)

    assert [status for _, status, _ in links] == ["fails", "holds", "holds"]
    assert "digests" in links[0][2] if key == "digest" else "images" in links[0][2]


def test_a_store_under_a_foreign_name_does_not_verify(folder: Path) -> None:
    moved = folder.rename(folder.with_name("noise-000000000000"))

    name, status, detail = store.check(moved)[0]

    assert (name, status) == ("store manifest", "fails")
    assert folder.name.rpartition("-")[2] in detail


def test_a_copied_store_is_hashed_once(original: Store, folder: Path) -> None:
    first, second = store.read_store(folder), store.read_store(folder)

    assert (first.verified, second.verified) == ("hashed", "stamps")
    assert first.manifest_digest == original.manifest_digest


def test_no_store_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no store there"):
        store.read_store(tmp_path / "absent")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        (("n", np.array(["a"])), "expected numbers"),
        (("n", np.array(["2020-01-01"], "M8[ns]")), "expected numbers"),
        (("n", np.zeros(0)), r"of shape \(0,\)"),
        (("n", np.zeros(1), {"scale_factor": 2.0}), "scale_factor"),
        (("n", np.zeros(1), {"_FillValue": 0.0}), "_FillValue"),
    ],
)
def test_what_would_not_come_back_as_it_is_is_refused(
    home: Path, variable: Any, problem: str
) -> None:
    with pytest.raises(ScibenchError, match=problem):
        write(home, xr.Dataset({"a": variable}))

    assert not list((home / "stores").glob("*"))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".a", "zarr.json"])
def test_a_name_that_is_no_folder_is_refused(home: Path, name: str) -> None:
    with pytest.raises(ScibenchError, match="expected a name of letters"):
        write(home, xr.Dataset({name: ("n", np.zeros(1))}))


def test_a_reader_that_breaks_its_promise_is_named(home: Path) -> None:
    lies = da.from_array(np.zeros((8, 2), "f4"), chunks=(8, 2)).map_blocks(
        lambda block: block.astype("f8"), dtype="f4"
    )

    with pytest.raises(ScibenchError, match=r"images/c\.0\.0: expected <f4 .* got <f8"):
        write(home, xr.Dataset({"images": (("n", "k"), lies)}))


@pytest.mark.parametrize("fields", [{"chunk_bytes": 0}, {"shard_bytes": -1}, {"codec": "gzip"}])
def test_a_layout_that_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="layout: "):
        Layout(**fields)


def test_an_error_of_the_reader_is_passed_on_as_it_is(home: Path) -> None:
    def broken(_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "stack_1.mrcs")

    images = da.map_blocks(broken, da.zeros((4, 2), chunks=2), dtype="f8", meta=np.zeros((0, 0)))

    with pytest.raises(PermissionError, match=r"stack_1\.mrcs"):
        write(home, xr.Dataset({"images": (("n", "k"), images)}), Layout(codec="none"))


def test_a_link_instead_of_a_home_works(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    home = tmp_path / "home"
    home.symlink_to(tmp_path / "scratch", target_is_directory=True)

    assert store.check(write(home).folder)[-1][1] == "holds"


def test_places_on_two_file_systems_are_refused(home: Path) -> None:
    other = Path("/dev/shm")  # noqa: S108
    if not other.is_dir() or other.stat().st_dev == home.parent.stat().st_dev:
        pytest.skip("NOT RUN: no second file system")
    home.mkdir()
    target = other / f"scibench-{os.getpid()}"
    target.mkdir()
    (home / "staging").symlink_to(target, target_is_directory=True)
    try:
        with pytest.raises(SpaceError, match="not on the file system of"):
            write(home)
    finally:
        subprocess.run(["rm", "-r", target], check=True)


# --- many at once, little memory ------------------------------------------------------------------


class _Report:
    """Remembers what a progress was told; safe to call from several threads."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, int | None, str]] = []
        self._lock = threading.Lock()
        self._label = ""

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        self._label = label
        self.update(0, total, unit)
        yield self

    def say(self, text: str) -> None:
        """Take what a person would be told."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        with self._lock:
            self.said.append((self._label, done, total, note))


def test_progress_counts_every_byte_and_tells_of_healing(home: Path) -> None:
    size = particles().nbytes
    _flip(write(home).folder / SHARD)
    report = _Report()

    write(home, progress=report)

    written = [(done, total) for label, done, total, _ in report.said if "materialize" in label]
    assert (0, size) in written
    assert written[-1] == (size, None)
    assert any("moved to" in note for *_, note in report.said)


def test_a_task_travels_to_another_process(tmp_path: Path) -> None:
    staging = Staging(folder=tmp_path / "a", final=tmp_path / "b", plan="p")
    values = np.arange(6, dtype="<i4").reshape(3, 2)
    grid = shard.plan_grid("n", xr.Variable(("n", "k"), values), SMALL)
    (tmp_path / "a").mkdir()
    task = functools.partial(writing._write_and_finish, staging=staging)

    written = pickle.loads(pickle.dumps(task))([values], "c.0.0", grid, 0)  # noqa: S301

    assert written.sha256 == hashlib.sha256((tmp_path / "a/c.0.0").read_bytes()).hexdigest()


def test_threads_at_once_write_once(home: Path) -> None:
    calls = []

    def source() -> xr.Dataset:
        calls.append(1)
        return particles()

    identity = {"dataset": "noise"}
    with ThreadPoolExecutor(6) as pool:
        stores = [
            future.result()
            for future in [
                pool.submit(store.materialize, source, home, "noise", identity, layout=SMALL)
                for _ in range(6)
            ]
        ]

    assert len(calls) == 1
    assert len({(s.manifest_digest, s.digest) for s in stores}) == 1


_AT_ONCE = """
import sys, time
import numpy as np, xarray as xr
from pathlib import Path
from scibench_data.storing import store

def source():
    print("wrote", flush=True)
    return xr.Dataset({"a": (("n", "k"), np.arange(40000.0).reshape(-1, 4))})

print("ready", flush=True)
sys.stdin.readline()
layout = store.Layout(chunk_bytes=8192, shard_bytes=65536)
print(store.materialize(source, Path(sys.argv[1]), "a", {"x": 1}, layout=layout).manifest_digest)
"""


def test_processes_at_once_write_once(home: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _AT_ONCE, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    words = [word for process in processes for word in process.communicate()[0].split()]

    assert [process.returncode for process in processes] == [0] * 4
    assert words.count("wrote") == 1
    assert len(set(words)) == 2
    assert not list((home / "staging").iterdir())


_MEMORY = """
import resource, sys
import dask.array as da, numpy as np, xarray as xr, zarr, google_crc32c, numcodecs
from pathlib import Path
from scibench_data.storing import store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def block(block_info=None):
    first, last = block_info[None]["array-location"][0]
    rows = np.arange(first, last, dtype="u4")[:, None, None] * np.uint32(2654435761)
    return (rows + np.arange(1 << 14, dtype="u4").reshape(128, 128)).view("f4")

images = da.map_blocks(block, chunks=((100,) * 64, 128, 128), dtype="f4", meta=np.zeros((0,) * 3))
before = peak()
dataset = xr.Dataset({"images": (("n", "y", "x"), images)})
layout = store.Layout(codec="none")
written = store.materialize(lambda: dataset, Path(sys.argv[1]), "a", {}, layout=layout, jobs=2)
print(written.bytes, peak() - before)
"""


def test_memory_stays_at_a_few_shards(home: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", _MEMORY, home], check=True, capture_output=True, text=True
    ).stdout

    size, grown = map(int, output.split())

    assert size > 400 << 20
    assert grown < 160
