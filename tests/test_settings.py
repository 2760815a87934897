"""Settings come from the nearest place, and a bad one is told with its origin."""

from pathlib import Path

import pytest

from scibench_data.errors import UsageError
from scibench_data.settings import load_settings


def test_the_nearest_place_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCIBENCH_DATA_HOME")
    user = tmp_path / "config" / "scibench-data"
    user.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    (user / "config.toml").write_text('home = "/user"\njobs = 3\noffline = true\n')
    assert load_settings().home == Path("/user")
    (tmp_path / "pyproject.toml").write_text('[tool.scibench-data]\nhome = "/project"\n')
    assert load_settings().home == Path("/project")
    (tmp_path / "scibench.toml").write_text('home = "/file"\n')
    assert load_settings().home == Path("/file")
    monkeypatch.setenv("SCIBENCH_DATA_HOME", "/variable")
    assert load_settings().home == Path("/variable")
    assert load_settings(home="/given").home == Path("/given")
    assert load_settings().jobs == 3
    assert load_settings().offline is True
    assert load_settings(offline=False).offline is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("jobs = 0", "jobs: expected a number above zero"),
        ('offline = "perhaps"', "offline: expected a yes or no"),
        ("job = 3", "did you mean 'jobs'"),
        ("jobs = ", "not valid TOML"),
        ("home = 3", "home: expected a folder, got 3"),
        ('home = ""', "home: expected a folder"),
        ('home = "a\\u0000b"', "home: expected a folder"),
        ('home = "~nosuchuser/x"', "no home folder is known"),
        ("lock_timeout = nan", "lock_timeout: expected a number above zero"),
        ("jobs = true", "jobs: expected a number above zero"),
        ("jobs = 1.5", "jobs: expected a number above zero"),
        ("jobs = inf", "jobs: expected a number above zero"),
    ],
)
def test_a_bad_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scibench.toml").write_text(text)

    with pytest.raises(UsageError, match=told):
        load_settings()


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nscibench-data = 5", "tool = []"])
def test_a_table_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(UsageError, match=r"pyproject\.toml: .*expected a table"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HOME", "~nosuchuser/x"), ("LOCK_TIMEOUT", "nan"), ("JOBS", "9" * 5000), ("OFFLINE", "?")],
)
def test_a_bad_variable_is_told(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"SCIBENCH_DATA_{variable}", value)

    with pytest.raises(UsageError, match=f"SCIBENCH_DATA_{variable}: "):
        load_settings()


def test_an_unknown_argument_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean 'jobs'"):
        load_settings(job=3)
