"""git and git-annex: the only module that starts processes.

Every child runs in an environment made here: no user or system git configuration, no hooks, https
only, no prompts, a PATH with nothing but the programs it needs. What a foreign dataset may carry
(auto-enabled remotes, hooks, configuration) has therefore nothing to take hold of.
Also the form of git-annex keys: https://git-annex.branchable.com/internals/key_format/ and
https://git-annex.branchable.com/internals/hashing/.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scibench_data.compute import PROGRAM
from scibench_data.errors import RequirementError, ScibenchError, SpaceError

_LETTERS = "0123456789zqjxkmvwgpfZQJXKMVWGPF"
_PASSED_ON = ("TMPDIR", "TZ", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE")
_GIT_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "core.fsync": "all",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.sshCommand": "/bin/false",
    "commit.gpgSign": "false",
    "credential.helper": "",
    "gc.auto": "0",
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "safe.bareRepository": "explicit",
    "submodule.recurse": "false",
    "transfer.fsckObjects": "true",
    "annex.diskreserve": "1MB",  # the default of 100 MB refuses what would fit
    "annex.stalldetection": "10KB/30s",
    "annex.securehashesonly": "true",
    "annex.security.allowed-url-schemes": "https",
}

_DISK_REFUSED = ("not enough free space", "No space left", "Disk quota", "Read-only file system")
"""What git, git-annex and recipes say when the disk refuses."""
_DIE_WITH_PARENT = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM; outlives exec
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def object_folder(key: str) -> str:
    """Return where in ``.git/annex/objects`` a key's object lies (git-annex's mixed hash).

    Examples
    --------
    >>> object_folder("SHA256E-s0--" + "0" * 64)
    'mP/gF'
    """
    (word,) = struct.unpack("<I", hashlib.md5(key.encode(), usedforsecurity=False).digest()[:4])
    a, b, c, d = (_LETTERS[(word >> (6 * i)) & 31] for i in range(4))
    return f"{b}{a}/{d}{c}"


def log_folder(key: str) -> str:
    """Return where in the ``git-annex`` branch a key's logs lie (git-annex's lower hash)."""
    text = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
    return f"{text[:3]}/{text[3:6]}"


def find_program(name: str) -> Path:
    """Find a program beside this Python, where pip puts them, or else on PATH.

    Raises
    ------
    RequirementError
        It is nowhere.
    """
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name)
    if found is None:
        cure = {
            "git": "install git, for example with your system's package manager",
            "git-annex": "run pip install git-annex",
        }.get(name, "run pip install --force-reinstall scibench-data")
        message = f"{name}: not found beside {sys.executable} nor on PATH; {cure}"
        raise RequirementError(message)
    return Path(found)


def _environment() -> dict[str, str]:
    folders = [str(find_program(name).parent) for name in ("git", "git-annex", PROGRAM)]
    who = "scibench-data"
    settings = {f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(_GIT_SETTINGS)}
    settings |= {f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(_GIT_SETTINGS.values())}
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "PATH": ":".join(dict.fromkeys([*folders, "/usr/local/bin", "/usr/bin", "/bin"])),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_DEFAULT_REF_FORMAT": "files",  # so that a commit can be read without a process
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(_GIT_SETTINGS)),
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": who,
        "GIT_AUTHOR_EMAIL": f"{who}@localhost",
        "GIT_COMMITTER_NAME": who,
        "GIT_COMMITTER_EMAIL": f"{who}@localhost",
        **settings,
    }


def disk_refused(told: str) -> bool:
    """Tell from what a program said whether it failed for want of a disk that takes more."""
    return any(sign in told for sign in _DISK_REFUSED)


def _failed(words: Sequence[str], code: int, told: str, cwd: Path) -> ScibenchError:
    command = " ".join(words[:2])
    last = told.strip()[-800:]
    if disk_refused(told):
        cure = "free some space or choose another place with SCIBENCH_DATA_HOME"
        return SpaceError(f"{cwd}: {command} could not write, said {last!r}; {cure}")
    if code < 0:
        by = signal.Signals(-code).name
        cure = "look whether memory ran out, and run the same command again"
        return ScibenchError(f"{command}: killed by {by}, said {last!r}; {cure}")
    return ScibenchError(f"{command}: exit code {code}, said {last!r}; run scibench-data doctor")


def git(*words: str, cwd: Path, stdin: bytes | None = None) -> str:
    """Run git in `cwd` to its end and return what it printed, stripped.

    Raises
    ------
    ScibenchError
        git failed; the message carries what it said.
    SpaceError
        It failed because the disk refused.
    RequirementError
        There is no git.
    """
    done = subprocess.run(  # noqa: S603  (a fixed program, a list of arguments, our environment)
        [find_program("git"), *words],
        cwd=cwd,
        env=_environment(),
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise _failed(("git", *words), done.returncode, done.stderr.decode(errors="replace"), cwd)
    return done.stdout.decode(errors="replace").strip()


def _ending_with_us(program: Path) -> list[str]:
    """Return how to start a program so that it is told to end when this process is killed.

    It would work on with our lock free. Linux only; prctl after fork and before exec, by a Python
    that then becomes the program: code between fork and exec is not safe in a process with threads.
    """
    if not sys.platform.startswith("linux"):
        return [str(program)]
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), str(program)]


def stream_annex(*words: str, cwd: Path) -> Iterator[dict[str, Any]]:
    """Run git-annex in `cwd` and yield the JSON records that it prints, as they come.

    ``--json`` and ``--json-error-messages`` are added. git-annex is started directly, in a process
    group of its own that ends with this generator: after an interrupt nothing goes on in the back.
    A failure of single files is told in their records (``success``, ``error-messages``); then a
    last record, ``said``, has what the program and its children wrote on standard error.

    Raises
    ------
    ScibenchError
        git-annex failed without telling it in a record.
    """
    options = ["--json", "--json-error-messages"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603
            [*_ending_with_us(find_program("git-annex")), words[0], *options, *words[1:]],
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        told = False
        try:
            for line in process.stdout or ():
                record: dict[str, Any] = json.loads(line)
                told = told or record.get("success") is False
                yield record
            code = process.wait()
        finally:
            _end_group(process)
        said.seek(0)
        text = said.read().decode(errors="replace")
        if code and not told:
            raise _failed(("git-annex", *words), code, text, cwd)
        if code and text:
            yield {"said": text}


def annex(*words: str, cwd: Path) -> None:
    """Run a git-annex command that prints no records, such as ``init``."""
    git("annex", *words, cwd=cwd)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.stdout:
        process.stdout.close()
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except ProcessLookupError:
            process.wait()


def code_state(folder: Path) -> dict[str, Any]:
    """Return commit and dirty flag of the checkout that this code runs from.

    An installed wheel has neither: then ``commit`` is None and the digests of the sources speak.
    """
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = git("rev-parse", "HEAD", cwd=folder)
        dirty = bool(git("status", "--porcelain", "--untracked-files=normal", cwd=folder))
    except ScibenchError:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def program_versions() -> dict[str, str]:
    """Return the versions of git and git-annex."""
    here = Path(sys.prefix)
    return {
        "git": git("--version", cwd=here).removeprefix("git version "),
        "git-annex": git("annex", "version", "--raw", cwd=here),
    }
