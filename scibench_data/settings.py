"""Where things live and how much may be done at once.

Order of precedence: argument or flag, environment, ``scibench.toml`` or ``[tool.scibench-data]`` of
``pyproject.toml`` in the working directory, the user's configuration, the default.
Keys: ``home``, ``site``, ``offline``, ``jobs``, ``progress``, ``lock_timeout``, ``connections``,
``mirrors``, ``allowed_hosts``. In the environment: ``SCIBENCH_DATA_`` and the key in capitals.
"""

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from scibench_data.errors import UsageError, did_you_mean

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One resolved set of settings.

    Attributes
    ----------
    home
        The cache: datasets, stores, locks.
    offline
        Open no connection.
    jobs
        Files made or fetched, and shards written, at the same time. [1]
    progress
        Draw progress on a terminal.
    lock_timeout
        How long to wait for another process; 0 does not wait. [s]
    site
        A cache that others fill, of the same layout as `home`: only read.
    connections
        Files fetched at the same time; from one host no more than it bears. [1]
    mirrors
        Hosts that are asked first, in this order.
    allowed_hosts
        Hosts, as names or addresses, that may be private and may be asked by plain http, and
        ``file`` where local folders may be a source.
    """

    home: Path
    offline: bool = False
    jobs: int = 2
    progress: bool = True
    lock_timeout: float = 3600.0
    site: Path | None = None
    connections: int = 12
    mirrors: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()


_NAMES = tuple(field.name for field in fields(Settings))


def _switch(subject: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        message = f"{subject}: expected a yes or no, got {value!r}; use 1 or 0"
        raise UsageError(message)
    return text in _TRUE


def _number(subject: str, value: Any, kind: type[int] | type[float]) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = kind(0)
    cut = isinstance(value, bool) or (isinstance(value, float) and number != value)
    if cut or not number > 0:  # NaN is neither above zero nor below
        message = f"{subject}: expected a number above zero, got {value!r}; correct it"
        raise UsageError(message)
    return number


def _hosts(subject: str, value: Any) -> tuple[str, ...]:
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        message = f"{subject}: expected host names, got {value!r}; write them with spaces between"
        raise UsageError(message)
    for word in words:
        if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", word) or "//" in word:
            message = (
                f"{subject}: expected a host such as data.example.org, got {word!r}; correct it"
            )
            raise UsageError(message)
    return tuple(word.lower() for word in words)


def _folder(subject: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(value):
        message = f"{subject}: expected a folder, got {value!r}; correct it"
        raise UsageError(message)
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        message = f"{subject}: no home folder is known for {str(value)!r}; write the path out"
        raise UsageError(message) from error


def _typed(name: str, value: Any, subject: str) -> Any:
    if name in {"home", "site"}:
        return _folder(subject, value)
    if name in {"offline", "progress"}:
        return _switch(subject, value)
    if name in {"mirrors", "allowed_hosts"}:
        return _hosts(subject, value)
    if name == "lock_timeout" and str(value) in {"0", "0.0"}:
        return 0.0
    return _number(subject, value, int if name in {"jobs", "connections"} else float)


def _table(subject: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        message = f"{subject}: expected a table, got {values!r}; correct it"
        raise UsageError(message)
    return values


def _from_file(path: Path, *table: str) -> dict[str, Any]:
    try:
        values: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        message = f"{path}: not valid TOML ({error}); correct it"
        raise UsageError(message) from error
    for key in table:
        values = _table(f"{path}: {key}", values.get(key, {}))
    for name in values:
        if name not in _NAMES:
            message = f"{path}: no setting named {name!r}; {did_you_mean(name, _NAMES)}"
            raise UsageError(message)
    return {name: _typed(name, value, f"{path}: {name}") for name, value in values.items()}


def _from_environment() -> dict[str, Any]:
    found = {}
    for name in _NAMES:
        variable = f"SCIBENCH_DATA_{name.upper()}"
        if name != "progress" and os.environ.get(variable):
            found[name] = _typed(name, os.environ[variable], variable)
    if os.environ.get("SCIBENCH_DATA_NO_PROGRESS"):
        found["progress"] = not _switch(
            "SCIBENCH_DATA_NO_PROGRESS", os.environ["SCIBENCH_DATA_NO_PROGRESS"]
        )
    return found


def load_settings(**given: Any) -> Settings:
    """Resolve the settings; an argument that is None counts as not given.

    Raises
    ------
    UsageError
        A value can't be meant, or there is no such setting.
    """
    if unknown := given.keys() - set(_NAMES):
        message = f"no setting named {min(unknown)!r}; {did_you_mean(min(unknown), _NAMES)}"
        raise UsageError(message)
    values: dict[str, Any] = {
        "home": platformdirs.user_cache_path("scibench-data"),
        "jobs": os.cpu_count() or 1,
    }
    values |= _from_file(platformdirs.user_config_path("scibench-data") / "config.toml")
    values |= _from_file(Path("pyproject.toml"), "tool", "scibench-data")
    values |= _from_file(Path("scibench.toml"))
    values |= _from_environment()
    values |= {
        name: _typed(name, value, name) for name, value in given.items() if value is not None
    }
    return Settings(**values)
