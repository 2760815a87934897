"""Terms that a user has to accept before a publisher's files may be fetched.

Acceptance is noted in the cache, by the URL of the terms: other terms are to be accepted anew.
"""

import datetime as dt
import json
from pathlib import Path
from typing import Any

from scibench_data import durable
from scibench_data.catalog import Reference
from scibench_data.errors import LicenceError
from scibench_data.settings import Settings


def _path(home: Path) -> Path:
    return home / "accepted.json"


def read_accepted(home: Path) -> dict[str, Any]:
    """Read URL of terms -> when they were accepted; empty where nothing was."""
    try:
        found = json.loads(_path(home).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require(reference: Reference, settings: Settings) -> None:
    """Refuse a subset whose terms were not accepted.

    Raises
    ------
    LicenceError
        They were not; the message names them and the command that accepts them.
    """
    url = reference.package.subsets[reference.subset].terms
    if url and url not in read_accepted(settings.home):
        message = (
            f"{reference}: its publisher wants terms accepted, {url}; read them, "
            f"then run: scibench-data accept {reference}"
        )
        raise LicenceError(message)


def note(url: str, settings: Settings) -> None:
    """Note that the user accepts the terms at `url`."""
    accepted = read_accepted(settings.home) | {url: dt.datetime.now(dt.UTC).isoformat()}
    text = json.dumps(accepted, indent=1, sort_keys=True)
    durable.write_whole(_path(settings.home), text.encode(), replace=True)
