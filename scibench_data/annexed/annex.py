"""git and git-annex: the only module that starts processes.

Every child runs in an environment made here: no user or system git configuration, no hooks, https
only, no prompts, a PATH with nothing but the programs it needs. What a foreign dataset may carry
(auto-enabled remotes, hooks, configuration) has therefore nothing to take hold of.
Also the form of git-annex keys: https://git-annex.branchable.com/internals/key_format/ and
https://git-annex.branchable.com/internals/hashing/.
"""

import contextlib
import hashlib
import itertools
import json
import os
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from scibench_data.annexed.compute import PROGRAM, SERVE
from scibench_data.errors import NetworkError, RequirementError, ScibenchError, SpaceError

_LETTERS = "0123456789zqjxkmvwgpfZQJXKMVWGPF"
_PASSED_ON = ("TMPDIR", "TZ", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE")
_OF_THE_USER = ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL")
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
    "http.followRedirects": "false",  # nor alternates of a repository served as files
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "protocol.allow": "never",
    "safe.bareRepository": "explicit",
    "submodule.recurse": "false",
    "transfer.fsckObjects": "true",
    "annex.diskreserve": "1MB",  # the default of 100 MB refuses what would fit
    "annex.stalldetection": "10KB/30s",
    "annex.securehashesonly": "true",
    "annex.security.allowed-url-schemes": "https",
}


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What a command of git may talk to.

    Attributes
    ----------
    protocols
        As ``GIT_ALLOW_PROTOCOL`` has them.
    signed_in
        With the user's own configuration of git and its credentials; it still never asks.
    addresses
        Private IP addresses that git-annex may ask.
    """

    protocols: tuple[str, ...] = ("https",)
    signed_in: bool = False
    addresses: tuple[str, ...] = ()


HTTPS = Reach()
LOCAL = Reach(protocols=("file",))

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


def _configuration(reach: Reach) -> dict[str, str]:
    """Return our settings of git as variables: so the programs that git starts get them too."""
    chosen = _GIT_SETTINGS | {f"protocol.{name}.allow": "always" for name in reach.protocols}
    if reach.signed_in:
        del chosen["credential.helper"]
    if reach.addresses:
        chosen["annex.security.allowed-ip-addresses"] = " ".join(reach.addresses)
        chosen["annex.security.allowed-url-schemes"] = " ".join({"https", *reach.protocols})
    names = {f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(chosen)}
    values = {f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(chosen.values())}
    return {"GIT_CONFIG_COUNT": str(len(chosen)), **names, **values}


def _identity(reach: Reach) -> dict[str, str]:
    """Return whose configuration is read: nobody's, or the user's."""
    if not reach.signed_in:
        return {"HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null"}
    return {name: os.environ[name] for name in _OF_THE_USER if name in os.environ}


def _environment(reach: Reach = HTTPS) -> dict[str, str]:
    folders = [str(find_program(name).parent) for name in (PROGRAM, "git", "git-annex")]
    who = "scibench-data"
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **_identity(reach),
        "PATH": ":".join(dict.fromkeys([*folders, "/usr/local/bin", "/usr/bin", "/bin"])),
        "LC_ALL": "C.UTF-8",
        "GIT_ALLOW_PROTOCOL": ":".join(reach.protocols),
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_DEFAULT_REF_FORMAT": "files",  # so that a commit can be read without a process
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": who,
        "GIT_AUTHOR_EMAIL": f"{who}@localhost",
        "GIT_COMMITTER_NAME": who,
        "GIT_COMMITTER_EMAIL": f"{who}@localhost",
        **_configuration(reach),
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


def git(*words: str, cwd: Path, stdin: bytes | None = None, reach: Reach = HTTPS) -> str:
    """Run git in `cwd` to its end and return what it printed, stripped; see `read_git`."""
    return read_git(*words, cwd=cwd, stdin=stdin, reach=reach).decode(errors="replace").strip()


def read_git(*words: str, cwd: Path, stdin: bytes | None = None, reach: Reach = HTTPS) -> bytes:
    """Run git in `cwd` to its end and return what it printed, byte for byte.

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
        env=_environment(reach),
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise _failed(("git", *words), done.returncode, done.stderr.decode(errors="replace"), cwd)
    return done.stdout


def fetch_all(place: str, folder: Path, reach: Reach) -> str:
    """Fetch all branches and tags of a repository into a new bare one at `folder`, and check them.

    Nothing is checked out, and no remote, hook or submodule is set up.

    Returns
    -------
    str
        The branch that its ``HEAD`` names; ``main`` where that isn't told.

    Raises
    ------
    NetworkError
        It can't be fetched, or what came is damaged.
    """
    folder.mkdir(parents=True)
    new = ("--quiet", "--bare", "--template=", "--object-format=sha1", "-b", "main")
    quiet = ("--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
    refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    bare = "--git-dir=."
    git("init", *new, cwd=folder)
    try:
        git(bare, "fetch", *quiet, "--", place, *refs, cwd=folder, reach=reach)
        # the empty tree, with which every git-annex branch begins, does not come over dumb HTTP
        git(bare, "hash-object", "-w", "-t", "tree", "--stdin", cwd=folder, stdin=b"")
        git(bare, "fsck", "--no-progress", "--no-dangling", cwd=folder)
        told = git(bare, "ls-remote", "--symref", "--", place, "HEAD", cwd=folder, reach=reach)
    except (SpaceError, RequirementError):
        raise
    except ScibenchError as error:
        message = f"{place}: no repository that can be cloned ({error}); check the address"
        raise NetworkError(message) from error
    head = told.split()
    return head[1].removeprefix("refs/heads/") if head[:1] == ["ref:"] else "main"


def read_blobs(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """Read files of a bare repository's commits; one that isn't there is empty.

    A name is that of an object, or as ``main:folder/file``.
    """
    for start in range(0, len(names), 500):
        asked = "".join(f"{name}\n" for name in names[start : start + 500]).encode()
        told = read_git("--git-dir=.", "cat-file", "--batch", cwd=folder, stdin=asked)
        place = 0
        while place < len(told):
            end = told.index(b"\n", place)
            absent = told[place:end].endswith(b" missing")
            size = 0 if absent else int(told[place:end].split()[2])
            yield told[end + 1 : end + 1 + size]
            place = end + (1 if absent else size + 2)


def commit_files(
    folder: Path, ref: str, files: Mapping[str, bytes], *, seconds: int, parent: str = ""
) -> None:
    """Make `ref` of a repository a commit of exactly these files, by ``git fast-import``.

    Parameters
    ----------
    seconds
        Its date, since 1970. [s]
    parent
        The reference that it follows; without one it follows nothing.
    """
    who = f"scibench-data <noreply@scibench-data.invalid> {seconds} +0000"
    parts = [f"commit {ref}\ncommitter {who}\ndata 0\n".encode()]
    parts += [f"from {parent}^0\n".encode()] if parent else []
    parts.append(b"deleteall\n")
    for path, content in files.items():
        parts += [f'M 100644 inline "{path}"\ndata {len(content)}\n'.encode(), content, b"\n"]
    stream = b"".join([*parts, b"done\n"])
    git("fast-import", "--quiet", "--done", "--force", cwd=folder, stdin=stream)


def _ending_with_us(program: Path) -> list[str]:
    """Return how to start a program so that it is told to end when this process is killed.

    It would work on with our lock free. Linux only; prctl after fork and before exec, by a Python
    that then becomes the program: code between fork and exec is not safe in a process with threads.
    """
    if not sys.platform.startswith("linux"):
        return [str(program)]
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), str(program)]


def stream_annex(*words: str, cwd: Path, reach: Reach = HTTPS) -> Iterator[dict[str, Any]]:
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
            env=_environment(reach),
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


@contextlib.contextmanager
def feeding(*words: str, cwd: Path) -> Iterator[Callable[[str], None]]:
    """Run a git-annex command that works on lines, and give a function that sends it one.

    It works while lines still come, and has done them all when this ends.

    Raises
    ------
    ScibenchError
        git-annex failed.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603
            [*_ending_with_us(find_program("git-annex")), *words],
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        lines = cast("IO[bytes]", process.stdin)

        def feed(line: str) -> None:
            lines.write(f"{line}\n".encode())

        try:
            with contextlib.suppress(BrokenPipeError):  # told below, with what it said
                yield feed
                lines.close()
            code = process.wait()
        finally:
            with contextlib.suppress(BrokenPipeError):
                lines.close()
            _end_group(process)
        said.seek(0)
        if code:
            text = said.read().decode(errors="replace")
            raise _failed(("git-annex", *words), code, text, cwd)


def stream_compute(lines: Sequence[str], cwd: Path, jobs: int) -> Iterator[str]:
    """Share lines among `jobs` processes of the compute program; yield its answers as they come.

    A process gets its next line when it has answered the last. All of them end with this generator.

    Raises
    ------
    ScibenchError
        One of them ended before it answered.
    """
    rest = iter(lines)
    with (
        tempfile.TemporaryFile() as said,
        selectors.DefaultSelector() as ready,
        contextlib.ExitStack() as stack,
    ):
        for line in itertools.islice(rest, jobs):
            process = stack.enter_context(_serving(cwd, said))
            _send(process, line)
            ready.register(cast("IO[bytes]", process.stdout), selectors.EVENT_READ, process)
        while ready.get_map():
            for key, _ in ready.select():
                answer = key.data.stdout.readline()
                if not answer.endswith(b"\n"):
                    said.seek(0)
                    told = said.read().decode(errors="replace")
                    raise _failed((PROGRAM,), key.data.wait(), told, cwd)
                if line := next(rest, ""):
                    _send(key.data, line)
                else:
                    ready.unregister(key.fileobj)
                yield answer.decode()


@contextlib.contextmanager
def _serving(cwd: Path, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the compute program in a process group of its own."""
    process = subprocess.Popen(  # noqa: S603
        [*_ending_with_us(find_program(PROGRAM)), SERVE],
        cwd=cwd,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end_group(process)
        with contextlib.suppress(BrokenPipeError):
            cast("IO[bytes]", process.stdin).close()


def _send(process: subprocess.Popen[bytes], line: str) -> None:
    lines = cast("IO[bytes]", process.stdin)
    with contextlib.suppress(BrokenPipeError):  # told where its answer is missed
        lines.write(f"{line}\n".encode())
        lines.flush()


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
