"""Bigger simulations: made once, whole or not at all, and clear about what stops them."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chains import TINY, Chain

from scibench_data import catalog, durable
from scibench_data.annexed import transfer
from scibench_data.catalog import Reference, Variant
from scibench_data.errors import IntegrityError, LockedError, SpaceError
from scibench_data.getting import adopting, dataset, derive, holdings
from scibench_data.settings import Settings, load_settings


@pytest.fixture
def released() -> Reference:
    return catalog.resolve("cryoem@1.0.0")


def _descriptor(chain: Chain) -> Path:
    folder = catalog.derived_folder(chain.settings.home, "cryoem", "1.0.0+scale.640")
    return folder / "datapackage.json"


def test_what_was_made_before_is_found_without_a_lock(
    chain: Chain, released: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "lock", None)

    assert str(derive.derive(released, Variant(scale=640), chain.settings)) == f"{TINY}:sample"


@pytest.mark.parametrize("left", [None, b"", b"{}"])
def test_a_version_that_was_left_half_made_is_made_again(
    chain: Chain, released: Reference, left: bytes | None
) -> None:
    """A kill can leave the folder without the descriptor, somebody's editor a damaged one."""
    before = _descriptor(chain).read_bytes()
    _descriptor(chain).unlink()
    if left is not None:
        _descriptor(chain).write_bytes(left)

    found = derive.derive(released, Variant(scale=640), chain.settings)

    assert found.package.text == before
    assert dataset.get(found, chain.settings).path.is_dir()


def test_a_dataset_that_is_not_sound_is_put_into_quarantine(
    chain: Chain, released: Reference
) -> None:
    (chain.dataset / ".git/config").write_bytes(b"")
    _descriptor(chain).unlink()

    found = derive.derive(released, Variant(scale=640), chain.settings)

    assert dataset.get(found, chain.settings).path.is_dir()
    assert len(list((chain.settings.home / "quarantine").iterdir())) == 1


def test_a_folder_that_is_no_dataset_is_not_used(chain: Chain, released: Reference) -> None:
    durable.remove_tree(chain.dataset)
    chain.dataset.mkdir()
    (chain.dataset / "mine").write_text("mine")
    _descriptor(chain).unlink()

    with pytest.raises(IntegrityError, match="not a dataset of ours"):
        derive.derive(released, Variant(scale=640), chain.settings)

    assert [path.name for path in chain.dataset.iterdir()] == ["mine"]
    assert list((chain.settings.home / "staging").iterdir()) == []


def test_the_wait_for_another_process_is_the_set_one(home: Path, released: Reference) -> None:
    impatient = load_settings(home=home, lock_timeout=0.1)

    with (
        durable.lock(holdings.lock_path(home, "cryoem", "1.0.0+scale.640", ".derive")),
        pytest.raises(LockedError, match=r"waited 0\.1 s"),
    ):
        derive.derive(released, Variant(scale=640), impatient)


def test_too_little_space_is_said_before_anything_is_made(
    settings: Settings, released: Reference
) -> None:
    with pytest.raises(SpaceError, match=r"bytes to write, .* free"):
        derive.derive(released, Variant(scale=10**12), settings)

    assert not settings.home.exists()


def test_a_full_disk_is_told_and_nothing_half_made_is_left(
    settings: Settings, released: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr(transfer, "put", refuse)

    with pytest.raises(SpaceError, match="No space left"):
        derive.derive(released, Variant(scale=32), settings)

    assert list((settings.home / "staging").iterdir()) == []
    monkeypatch.undo()
    made = derive.derive(released, Variant(scale=32), settings)
    assert made.package.version == "1.0.0+scale.32"


def test_other_bytes_are_blamed(tmp_path: Path, settings: Settings, released: Reference) -> None:
    (tmp_path / "a").write_bytes(b"other")
    path = released.package.resources[0].path

    with pytest.raises(IntegrityError, match=f"a: not the bytes of {path}"):
        adopting.adopt(released, (), {path: tmp_path / "a"}, settings)


def test_another_seed_gives_other_bytes_of_the_same_layout(
    settings: Settings, released: Reference
) -> None:
    one = derive.derive(released, Variant(scale=32), settings).package
    two = derive.derive(released, Variant(scale=32, seed=2), settings).package

    assert two.version == "1.0.0+scale.32.seed.2"
    assert [r.path for r in one.resources] == [r.path for r in two.resources]
    assert one.resources[0].sha256 != two.resources[0].sha256


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_the_workers_without_a_traceback(
    home: Path, name: signal.Signals
) -> None:
    """A terminal sends it to the whole group; a kill reaches only the parent."""
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(home)}
    child = subprocess.Popen(
        [sys.executable, "-m", "scibench_data", "get", "cryoem", "--scale", "20000"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    staging = home / "staging"
    end = time.monotonic() + 60
    while not (staging.is_dir() and any(path.is_file() for path in staging.rglob("*"))):
        assert time.monotonic() < end
        assert child.poll() is None
    if name is signal.SIGINT:
        os.killpg(child.pid, name)
    else:
        child.kill()
    _, told = child.communicate(timeout=10)  # ends when the last worker has closed it

    assert b"Traceback" not in told
    if name is signal.SIGINT:
        assert child.returncode == 130
        assert list(staging.iterdir()) == []
