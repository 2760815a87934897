"""The verbs that pass data on: what they print where, and their exit codes."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from publications import FILES, write_package

from scibench_data import catalog
from scibench_data.commands import share as verbs_share
from scibench_data.errors import UsageError


@pytest.fixture
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(home))
    return home


def _run(verb: click.Command, *words: object) -> tuple[str, str]:
    done = CliRunner().invoke(verb, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def _json(verb: click.Command, *words: object) -> dict[str, Any]:
    out, _ = _run(verb, *words, "--json")
    tree: dict[str, Any] = json.loads(out)
    return tree


def test_from_a_folder_to_another_machine_without_a_network(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_package(tmp_path / "mini")
    out, said = _run(verbs_share.publish, folder, "--to", tmp_path / "site")
    assert out == f"{tmp_path / 'site'}\n"
    assert "3 files there, 3 new" in said

    out, said = _run(verbs_share.adopt, folder, "mini")
    assert out == ""
    assert "3 files taken" in said
    assert "nobody knows: 1" in said

    out, _ = _run(verbs_share.bundle, "mini", tmp_path / "mini.tar")
    assert out == f"{tmp_path / 'mini.tar'}\n"

    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(tmp_path / "island"))
    monkeypatch.setenv("SCIBENCH_DATA_OFFLINE", "1")
    told = _json(verbs_share.adopt, tmp_path / "mini.tar")
    assert (told["schema"], told["taken"], told["added"]) == ("scibench-data/adopt/1", 3, "mini")
    assert told["bytes"] == sum(map(len, FILES.values()))


def test_add_and_forget(own_home: Path, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "mini")
    (folder / "reader.py").write_text("")
    out, said = _run(verbs_share.add, folder)
    assert out == "mini\n"
    assert "reader.py" in said
    assert _json(verbs_share.add, folder)["versions"] == []

    _run(verbs_share.forget, "mini")
    assert "mini" not in catalog.package_names(own_home)


def test_what_is_carried_is_said_as_json(own_home: Path, tmp_path: Path) -> None:
    told = _json(verbs_share.publish, write_package(tmp_path / "mini"), "--to", tmp_path / "site")

    assert (told["kind"], told["files"], told["put"]) == ("folder", 3, 3)
    told = _json(verbs_share.publish, "mini", "--to", tmp_path / "site")
    assert told["put"] == 0


def test_a_wrong_place_is_a_usage_error(own_home: Path, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "mini")
    words = [str(folder), "--to", "ssh://host/repo"]
    done = CliRunner().invoke(verbs_share.publish, words)

    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
