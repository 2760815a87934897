"""Get files from a web server on loopback: ours, beside curl, a plain pool, and ``datalad get``."""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import urllib3
from measure import interleave, report

import scibench_data as sbd
from scibench_data import catalog, durable
from scibench_data.annexed import build
from scibench_data.descriptor import Resource, list_entry, write_list
from scibench_data.settings import Settings, load_settings

CASES = {
    "large": (4, 256 * 10**6, 0.0),
    "small": (1000, 100_000, 0.0),
    "far": (1000, 100_000, 0.02),
}
"""Number of files, bytes of each, and pause before each answer. [s]"""


@contextlib.contextmanager
def serving(folder: Path, pause: float) -> Iterator[str]:
    """Serve `folder` by a process of its own; yield the URL."""
    words = [sys.executable, str(Path(__file__).with_name("server.py")), str(folder), str(pause)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def register(home: Path, folder: Path, url: str) -> None:
    """Register a package whose files are those of `folder`, at `url`."""
    files = [
        Resource(
            name="",
            path=f"data/{file.name}",
            bytes=file.stat().st_size,
            sha256=durable.sha256_file(file),
            subset="data",
            sources=(f"{url}/{file.name}",),
        )
        for file in sorted(folder.iterdir())
    ]
    content = write_list(files)
    tree: dict[str, Any] = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": "bench",
        "title": "Files of a benchmark",
        "description": "Random bytes, to be got from a web server on this machine.",
        "version": "1.0.0",
        "licenses": [{"name": "CC0-1.0"}],
        "contributors": [{"title": "The benchmark"}],
        "resources": [list_entry("data", content)],
        "scibench": {
            "profile": 1,
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "bench")),
            "released": "2026-01-01",
            "subsets": {"data": {"title": "All of them"}},
        },
    }
    place = catalog.added_folder(home, "bench")
    (place / "1.0.0/data").mkdir(parents=True)
    (place / "1.0.0/data/manifest.csv").write_bytes(content)
    (place / "1.0.0/datapackage.json").write_text(json.dumps(tree))
    entry = {"version": "1.0.0", "date": "2026-01-01", "changes": "", "yanked": ""}
    (place / "releases.json").write_text(json.dumps({"releases": [entry]}))


def ours(settings: Settings) -> Callable[[], None]:
    """Return the whole of `get`, the building of the dataset included."""

    def run() -> None:
        durable.remove_tree(settings.home / "datasets")
        sbd.get("bench", settings=settings)

    return run


def curl(urls: list[str], target: Path, check: str) -> Callable[[], None]:
    """Return curl on all the files, and then sha256sum over them."""

    def run() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        words = [word for url in urls for word in ("-O", url)]
        subprocess.run(["curl", "-sS", *words], cwd=target, check=True)
        subprocess.run(
            ["sha256sum", "--check", "--quiet"], cwd=target, input=check, text=True, check=True
        )

    return run


def pool(urls: list[str], target: Path) -> Callable[[], None]:
    """Return eight threads over one pool of connections that hash what they write."""
    manager = urllib3.PoolManager(maxsize=8)

    def one(url: str) -> str:
        digest = hashlib.sha256()
        with manager.request("GET", url, preload_content=False) as response:
            with (target / url.rpartition("/")[2]).open("wb") as file:
                for block in response.stream(1 << 20):
                    file.write(block)
                    digest.update(block)
            response.release_conn()
        return digest.hexdigest()

    def run() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, urls))

    return run


def datalad(settings: Settings, folder: Path) -> Callable[[], None]:
    """Return ``datalad get -J8`` in a dataset that is built already, as its best case."""
    package = catalog.find_release("bench", None, settings.home).read()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "annex.security.allowed-ip-addresses",
        "GIT_CONFIG_VALUE_0": "127.0.0.1",
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
    }

    def run() -> None:
        durable.remove_tree(folder)
        build.build(folder, [package])
        words = ["datalad", "-f", "disabled", "get", "-J8", "."]
        subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)

    return run


def measure(case: str, scratch: Path, repeats: int, *, peers: bool) -> dict[str, list[float]]:
    """Time one case; the files are made anew."""
    count, size, pause = CASES[case]
    source = scratch / "source"
    source.mkdir()
    for number in range(count):
        (source / f"f{number:04d}.bin").write_bytes(os.urandom(size))
    with serving(source, pause) as url:
        home = scratch / "home"
        register(home, source, url)
        settings = load_settings(home=home, allowed_hosts="127.0.0.1")
        names = sorted(file.name for file in source.iterdir())
        check = "".join(f"{durable.sha256_file(source / name)}  {name}\n" for name in names)
        urls = [f"{url}/{name}" for name in names]
        cases = {
            "curl, then sha256sum": curl(urls, scratch / "curl", check),
            "pool of 8 connections, hashing": pool(urls, scratch / "pool"),
            "scibench-data get": ours(settings),
        }
        if peers:
            cases["dataset built, then datalad get -J8"] = datalad(settings, scratch / "datalad")
        return interleave(cases, repeats)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to be measured")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        try:
            times = measure(asked.case, Path(scratch), asked.repeats, peers=asked.case != "large")
        finally:
            durable.remove_tree(Path(scratch) / "home")
            durable.remove_tree(Path(scratch) / "datalad")
    report(times, "scibench-data get", asked.json)


if __name__ == "__main__":
    main()
