"""Small packages of a user's own, and a clean room with DataLad but without us."""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = {"a.csv": b"x,y\n1,2\n", "deep/b.bin": bytes(range(256)) * 8, "zero": b""}
UUID = "6c1d5a40-0000-4000-8000-000000000001"


def describe(
    files: Mapping[str, bytes], version: str = "1.0.0", name: str = "mini", **more: Any
) -> dict[str, Any]:
    """Return the descriptor of a package of one subset, ``data``."""
    resources = [
        {
            "name": path.replace("/", "-"),
            "path": f"data/{path}",
            "bytes": len(content),
            "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "scibench": {"subset": "data"},
        }
        for path, content in files.items()
    ]
    return {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": name,
        "title": "A small package",
        "description": "Three files to try things with.",
        "version": version,
        "licenses": [{"name": "CC0-1.0"}],
        "contributors": [{"title": "The testers"}],
        "resources": resources,
        "scibench": {
            "profile": 1,
            "uuid": UUID,
            "released": "2026-01-01",
            "subsets": {"data": {"title": "All"}},
        },
        **more,
    }


def write_package(
    folder: Path, files: Mapping[str, bytes] = FILES, version: str = "1.0.0", **more: Any
) -> Path:
    """Write files and a descriptor beside them, as a user's folder is."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    text = json.dumps(describe(files, version, **more), indent=1)
    (folder / "datapackage.json").write_text(text, encoding="utf-8")
    return folder


def clean_room(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of ours is known, and loopback is allowed."""
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "user.name": "somebody",
        "user.email": "somebody@example.org",
        "annex.security.allowed-ip-addresses": "127.0.0.1",
        "protocol.file.allow": "always",
    }
    sections = "".join(
        f"[{_section(name)}]\n\t{name.rpartition('.')[2]} = {value}\n"
        for name, value in settings.items()
    )
    (home / ".gitconfig").write_text(sections, encoding="utf-8")
    return {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": tempfile.gettempdir(),
    }


def _section(name: str) -> str:
    parts = name.split(".")[:-1]
    return parts[0] if len(parts) == 1 else f'{parts[0]} "{".".join(parts[1:])}"'


def datalad_get(place: str, folder: Path) -> str:
    """Run ``datalad clone`` and ``datalad get .`` in a clean room; return the clone's commit."""
    room = clean_room(folder.with_name(f"{folder.name}-home"))
    datalad = [str(Path(sys.executable).with_name("datalad")), "-l", "error"]
    for words, where in ((["clone", place, str(folder)], folder.parent), (["get", "."], folder)):
        done = subprocess.run(
            [*datalad, *words], cwd=where, env=room, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return (folder / ".git/refs/heads/main").read_text().strip()
