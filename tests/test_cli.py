"""The command line as a person and as a script meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chains import TINY, Chain


def _run(
    *words: str, home: Path, code: int | None = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(home), "COLUMNS": "120", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "scibench_data", *words],
        env=environment, capture_output=True, text=True, check=False, cwd=home.parent,
    )  # fmt: skip
    if code is not None:
        assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_get_prints_the_path_alone_on_standard_output(chain: Chain) -> None:
    done = _run("get", TINY, home=chain.settings.home)

    assert done.stdout.strip() == str(chain.dataset / "sample")
    assert "every SHA-256 as published" in done.stderr
    assert "swh:1:rev:" in done.stderr


def test_json_is_one_object(chain: Chain) -> None:
    for words in (
        ("get", TINY),
        ("get", TINY, "--dry-run"),
        ("info", TINY),
        ("list",),
        ("versions", "cryoem"),
        ("materialize", TINY),
        ("verify", str(chain.result)),
        ("doctor",),
    ):
        done = _run(*words, "--json", home=chain.settings.home, code=None)
        answer = json.loads(done.stdout)

        assert answer["schema"].startswith("scibench-data/"), words
        assert answer["ok"] is (done.returncode == 0), words


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("get", "cyroem"), 3, "did you mean 'cryoem'?"),
        (("get", "cryoem@1.0.1"), 3, "did you mean '1.0.0'?"),
        (("get", "cryoem:sampel"), 3, "did you mean 'sample'?"),
        (("get", "../etc"), 2, "NAME[@VERSION][:SUBSET]"),
        (("get", "-rf"), 2, "-r"),
        (("get", "a\nb"), 2, "NAME[@VERSION][:SUBSET]"),
        (("gte", "cryoem"), 2, "Did you mean"),
        (("train", "cryoem", "--device", "abacus"), 2, "abacus"),
        (("train", "cryoem", "--set", "learning_rat=1"), 2, "learning_rate"),
        (("train", "cryoem", "--set", "x"), 2, "NAME=VALUE"),
        (("train", "cryoem", "--epochs", "0"), 2, "epochs"),
        (("verify", "nowhere/result.json"), 2, "no such file"),
        (("verify", "cryoem@1.0.0"), 3, "scibench-data get"),
        (("path", "cryoem"), 3, "scibench-data get"),
        (("cite", "cryoem", "-f", "word"), 2, "bibtex"),
        (("remove", "cryoem"), 2, "--yes"),
    ],
)
def test_mistakes_get_a_message_and_a_code(
    tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = _run(*words, home=tmp_path / "home", code=code)

    assert told in done.stderr
    assert not done.stdout


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    answer = json.loads(_run("get", "cyroem", "--json", home=tmp_path / "h", code=3).stdout)

    assert answer["ok"] is False
    assert answer["error"]["code"] == 3
    assert "cryoem" in answer["error"]["message"]


def test_a_bad_setting_is_told_with_its_origin(tmp_path: Path) -> None:
    done = _run("list", home=tmp_path / "h", code=None)
    assert done.returncode == 0
    done = _run("get", "cryoem", "-n", home=tmp_path / "h", code=2, SCIBENCH_DATA_JOBS="many")
    assert "SCIBENCH_DATA_JOBS" in done.stderr


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    done = _run("get", "cryoem", "--dry-run", home=tmp_path / "home")

    assert "made here by its recipe" in done.stdout
    assert not (tmp_path / "home").exists()


def test_verify_prints_a_table_and_its_code(chain: Chain, flip: object) -> None:
    done = _run("verify", str(chain.result), home=chain.settings.home)
    assert "verified, all" in done.stderr
    assert "checkpoint" in done.stdout

    (chain.result.parent / "checkpoint.safetensors").write_bytes(b"other")
    done = _run("verify", str(chain.result), home=chain.settings.home, code=9)
    assert "does not verify" in done.stderr


def test_looking_around(chain: Chain) -> None:
    home = chain.settings.home

    assert "cryoem" in _run("list", home=home).stdout
    told = _run("info", TINY, home=home).stdout
    assert "micrograph" in told
    assert "CC0-1.0" in told
    assert "1.0.0" in _run("versions", "cryoem", home=home).stdout
    assert "Dimensions" in _run("open", TINY, home=home).stdout
    assert _run("path", TINY, home=home).stdout.strip() == str(chain.dataset / "sample")
    assert "_SCIBENCH_DATA_COMPLETE" in _run("completion", "bash", home=home).stdout


def test_completion_offers_packages(tmp_path: Path) -> None:
    done = _run(
        home=tmp_path / "h", code=None, _SCIBENCH_DATA_COMPLETE="bash_complete",
        COMP_WORDS="scibench-data get cr", COMP_CWORD="2",
    )  # fmt: skip

    assert "cryoem" in done.stdout


def test_help_is_short_and_shows_the_main_job_first(tmp_path: Path) -> None:
    told = _run("--help", home=tmp_path / "h").stdout

    assert len(told.splitlines()) < 45
    assert told.index("get ") < told.index("train ") < told.index("verify ") < told.index("list ")


def test_without_torch_the_extra_is_named(chain: Chain, tmp_path: Path) -> None:
    """A base install trains nothing, and says what to install; everything else works."""
    (tmp_path / "hide" / "torch").mkdir(parents=True)
    (tmp_path / "hide" / "torch" / "__init__.py").write_text("raise ImportError(name='torch')")
    hidden = str(tmp_path / "hide")
    home = chain.settings.home

    done = _run("train", TINY, home=home, code=1, PYTHONPATH=hidden)
    assert "scibench-data[train]" in done.stderr
    assert _run("get", TINY, home=home, PYTHONPATH=hidden).stdout
    assert _run("materialize", TINY, home=home, PYTHONPATH=hidden).stdout
    done = _run("verify", str(chain.result), home=home, code=1, PYTHONPATH=hidden)
    assert "not fully verified" in done.stderr


def test_a_read_only_cache_is_told(chain: Chain) -> None:
    if os.geteuid() == 0:
        pytest.skip("NOT RUN: root writes where it wants; test_dataset covers refused writes")
    chain.settings.home.chmod(0o500)

    done = _run("get", "cryoem", home=chain.settings.home, code=6)

    assert "SCIBENCH_DATA_HOME" in done.stderr
