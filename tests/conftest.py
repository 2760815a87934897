"""Every test has a home of its own, and neither the user's git configuration nor a network."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from chains import Chain

from scibench_data.settings import Settings, load_settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere
# a shell starts what runs in the background deaf to it, and so would be all that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run, so that a change is what a failure is about; to look for new ones:
# python -m pytest --hypothesis-profile=search
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point home, caches and git's configuration into a scratch folder for all tests."""
    scratch = tmp_path_factory.mktemp("home")
    real = Path("~/.gitconfig").expanduser()
    before = real.read_bytes() if real.is_file() else None
    kept = {name: value for name, value in os.environ.items() if not _leaks(name)}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - kept.keys():
            patch.delenv(name)
        for name, value in {
            "HOME": str(scratch),
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "XDG_CONFIG_HOME": str(scratch / "config"),
            "SCIBENCH_DATA_HOME": str(scratch / "scibench-data"),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
        }.items():
            patch.setenv(name, value)
        yield
    after = real.read_bytes() if real.is_file() else None

    assert after == before, f"a test changed {real}; undo it and find out which"


def _leaks(name: str) -> bool:
    return name.startswith(("SCIBENCH_DATA_", "GIT_", "DATALAD_", "ZARR_", "DASK_", "AWS_"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {
            "127.0.0.1",
            "::1",
            "localhost",
        }:
            message = f"a test opened a connection to {address}"
            raise AssertionError(message)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty cache."""
    return tmp_path / "home"


@pytest.fixture
def settings(home: Path) -> Settings:
    """Settings with an empty cache."""
    return load_settings(home=home, jobs=2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real files beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"NOT RUN: the real files in {folder} are not there")
    return folder


@pytest.fixture(scope="session")
def _whole_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Get, materialize and train the tiny version once for all tests."""
    import scibench_data as sbd

    folder = tmp_path_factory.mktemp("chain")
    chosen = load_settings(home=folder / "home", jobs=2)
    sbd.train(
        "cryoem@1.0.0",
        scale=640,
        epochs=2,
        seed=0,
        device="cpu",
        out=folder / "runs" / "a",
        settings=chosen,
    )
    return folder


@pytest.fixture
def chain(_whole_chain: Path, tmp_path: Path) -> Chain:
    folder = tmp_path / "chain"
    shutil.copytree(_whole_chain, folder, symlinks=True)
    return Chain(folder)


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, int], None]:
    """Return a function that flips one bit of one byte of a file."""

    def flip_byte(path: Path, position: int = -1) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)

    return flip_byte
