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
    ],
)
def test_a_bad_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scibench.toml").write_text(text)

    with pytest.raises(UsageError, match=told):
        load_settings()
