"""Bigger simulations: made once, whole or not at all, and clear about what stops them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chains import TINY, Chain

from scibench_data import annex, catalog, dataset, derive, durable
from scibench_data.catalog import Reference
from scibench_data.errors import IntegrityError, LockedError, ScibenchError, SpaceError
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

    assert str(derive.derive(released, 640, chain.settings)) == f"{TINY}:sample"


@pytest.mark.parametrize("left", [None, b"", b"{}"])
def test_a_version_that_was_left_half_made_is_made_again(
    chain: Chain, released: Reference, left: bytes | None
) -> None:
    """A kill can leave the folder without the descriptor, somebody's editor a damaged one."""
    before = _descriptor(chain).read_bytes()
    _descriptor(chain).unlink()
    if left is not None:
        _descriptor(chain).write_bytes(left)

    found = derive.derive(released, 640, chain.settings)

    assert found.package.text == before
    assert dataset.get(found, chain.settings).path.is_dir()


def test_a_dataset_that_is_not_sound_is_put_into_quarantine(
    chain: Chain, released: Reference
) -> None:
    (chain.dataset / ".git/config").write_bytes(b"")
    _descriptor(chain).unlink()

    found = derive.derive(released, 640, chain.settings)

    assert dataset.get(found, chain.settings).path.is_dir()
    assert len(list((chain.settings.home / "quarantine").iterdir())) == 1


def test_a_folder_that_is_no_dataset_is_not_used(chain: Chain, released: Reference) -> None:
    durable.remove_tree(chain.dataset)
    chain.dataset.mkdir()
    (chain.dataset / "mine").write_text("mine")
    _descriptor(chain).unlink()

    with pytest.raises(IntegrityError, match="not a dataset of ours"):
        derive.derive(released, 640, chain.settings)

    assert [path.name for path in chain.dataset.iterdir()] == ["mine"]
    assert list((chain.settings.home / "staging").iterdir()) == []


def test_the_wait_for_another_process_is_the_set_one(home: Path, released: Reference) -> None:
    impatient = load_settings(home=home, lock_timeout=0.1)

    with (
        durable.lock(dataset.lock_path(home, "cryoem", "1.0.0+scale.640", ".derive")),
        pytest.raises(LockedError, match=r"for 0\.1 s"),
    ):
        derive.derive(released, 640, impatient)


def test_too_little_space_is_said_before_anything_is_made(
    settings: Settings, released: Reference
) -> None:
    with pytest.raises(SpaceError, match=r"bytes to write, .* free"):
        derive.derive(released, 10**12, settings)

    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("told", "kind"),
    [("No space left on device", SpaceError), ("something else", ScibenchError)],
)
def test_good_bytes_are_not_blamed(
    settings: Settings,
    released: Reference,
    monkeypatch: pytest.MonkeyPatch,
    told: str,
    kind: type[ScibenchError],
) -> None:
    real = annex.stream_annex

    def failing(*words: str, cwd: Path) -> Iterator[dict[str, Any]]:
        if words[0] == "reinject":
            yield {"success": False, "error-messages": [told]}
        else:
            yield from real(*words, cwd=cwd)

    monkeypatch.setattr(annex, "stream_annex", failing)

    with pytest.raises(ScibenchError, match=told) as caught:
        derive.derive(released, 32, settings)

    assert type(caught.value) is kind
    assert list((settings.home / "staging").iterdir()) == []


def test_other_bytes_are_blamed(tmp_path: Path, released: Reference) -> None:
    (tmp_path / "a").write_bytes(b"other")
    resource = released.package.resources[0]

    error = derive._not_adopted(tmp_path / "a", resource, "")

    assert isinstance(error, IntegrityError)


def test_a_worker_that_is_killed_is_told() -> None:
    with (
        pytest.raises(ScibenchError, match="cryoem: a process of its recipe was killed"),
        derive._workers("cryoem", 1) as pool,
    ):
        pool.submit(os._exit, 1).result()


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
