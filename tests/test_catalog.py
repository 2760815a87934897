"""Versions: which is the default, what a damaged list says, whose descriptors are trusted."""

import json
from pathlib import Path
from typing import Any

import pytest
from chains import TINY, Chain

from scibench_data import catalog
from scibench_data.errors import DescriptorError, NotFoundError
from scibench_data.getting import dataset


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the shipped packages."""
    folder = tmp_path / "datapackages"
    (folder / "cells").mkdir(parents=True)
    monkeypatch.setattr(catalog, "_shipped", lambda _kind: folder)
    return folder


def _write(shipped: Path, releases: Any) -> None:
    (shipped / "cells/releases.json").write_text(json.dumps({"releases": releases}))


@pytest.mark.parametrize(
    ("versions", "default"),
    [
        (["1.0.0", "2.0.0-rc1"], "1.0.0"),
        (["1.0.0", "2.0.0-rc.1", "1.10.0", "1.9.0"], "1.10.0"),
        (["1.0.0-alpha.2", "1.0.0-alpha.10", "1.0.0-alpha.beta"], "1.0.0-alpha.beta"),
        (["2.0.0-rc1", "2.0.0"], "2.0.0"),
    ],
)
def test_the_default_is_the_newest_that_is_no_preview(
    shipped: Path, versions: list[str], default: str
) -> None:
    _write(shipped, [{"version": version} for version in versions])

    assert catalog.find_release("cells").version == default


def test_versions_are_in_the_order_of_semver(shipped: Path) -> None:
    order = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    order += ["1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0"]
    _write(shipped, [{"version": version} for version in reversed(order)])

    assert [release.version for release in catalog.releases("cells")] == order


@pytest.mark.parametrize(
    "releases",
    [
        [],
        None,
        {},
        [1],
        [{}],
        [{"version": "1.0"}],
        [{"version": "1.0.0\n"}],
        [{"version": "01.0.0"}],
        [{"version": "../1.0.0"}],
        [{"version": "1.0.0-" + "a" * 99}],
        [{"version": "1.0.0+scale.5"}],
        [{"version": 1}],
        [{"version": "1.0.0", "commit": 3}],
        [{"version": "1.0.0", "commit": "abc"}],
        [{"version": "1.0.0", "yanked": None}],
        [{"version": "1.0.0", "derived": "yes"}],
        [{"version": "1.0.0", "folder": "/"}],
        [{"version": "1.0.0"}, {"version": "1.0.0"}],
    ],
)
def test_a_damaged_list_of_releases_is_told(shipped: Path, releases: Any) -> None:
    _write(shipped, releases)

    with pytest.raises(DescriptorError, match=r"releases\.json"):
        catalog.find_release("cells")


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{", b"[" * 100_000])
def test_a_list_of_releases_that_is_none_is_told(shipped: Path, text: bytes) -> None:
    (shipped / "cells/releases.json").write_bytes(text)

    with pytest.raises(DescriptorError, match=r"releases\.json"):
        catalog.releases("cells")


def test_a_descriptor_of_another_version_is_refused(shipped: Path) -> None:
    text = (Path(__file__).parent.parent / "datapackages/cryoem/1.0.0/datapackage.json").read_text()
    _write(shipped, [{"version": "1.0.0"}])
    (shipped / "cells/1.0.0").mkdir()
    (shipped / "cells/1.0.0/datapackage.json").write_text(text)

    with pytest.raises(DescriptorError, match=r"expected cells 1\.0\.0, got 'cryoem'"):
        catalog.resolve("cells")


# --- versions derived on this machine


def _rewrite(chain: Chain, **changes: Any) -> None:
    version = TINY.partition("@")[2]
    path = catalog.derived_folder(chain.settings.home, "cryoem", version) / "datapackage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../victim"},
        {"name": "victim"},
        {"version": "1.0.0+scale.641"},
        {"version": "../../.."},
        {"resources": [{"path": "../../victim"}]},
    ],
)
def test_a_derived_descriptor_can_not_lead_elsewhere(chain: Chain, changes: Any) -> None:
    victim = chain.settings.home / "victim"
    victim.mkdir()
    _rewrite(chain, **changes)

    with pytest.raises(DescriptorError):
        dataset.remove(catalog.resolve(TINY, chain.settings.home), chain.settings)

    assert victim.is_dir()
    assert chain.dataset.is_dir()


@pytest.mark.parametrize(
    "version", ["1.0.0+x", "9.0.0+scale.5", "1.0.0+scale.05", "1.0.0+scale.5.6", "..+scale.5"]
)
def test_only_scaled_versions_of_a_released_one_are_looked_for(home: Path, version: str) -> None:
    folder = catalog.derived_folder(home, "cryoem", version)
    folder.mkdir(parents=True)
    (folder / "datapackage.json").write_text("{}")

    with pytest.raises(NotFoundError, match="no version"):
        catalog.find_release("cryoem", version, home)


def test_a_folder_without_a_descriptor_is_no_version(home: Path) -> None:
    catalog.derived_folder(home, "cryoem", "1.0.0+scale.5").mkdir(parents=True)

    with pytest.raises(NotFoundError, match=r"get cryoem@1\.0\.0 --scale 5"):
        catalog.find_release("cryoem", "1.0.0+scale.5", home)
