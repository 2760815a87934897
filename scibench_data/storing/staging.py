"""A folder that is filled file by file, is taken up after a crash, and appears when it is whole.

Beside it lies a journal, one line for each finished file. A line counts only if its own digest is
right, and its file only if it still has the SHA-256 that the line claims; everything else in the
folder is deleted before work goes on. The journal goes last: removed any earlier, a crash between
would cost all that was done.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from scibench_data import durable, provenance
from scibench_data.errors import IntegrityError, SpaceError
from scibench_data.storing.shard import Unflushed, Written


@dataclass(frozen=True, kw_only=True)
class Staging:
    """One folder in the making; the caller holds its lock.

    Attributes
    ----------
    folder
        Where it is filled.
    final
        Where it appears; on the same file system.
    plan
        Digest of how the files are cut and packed: lines of another plan don't count.
    """

    folder: Path
    final: Path
    plan: str

    @property
    def journal(self) -> Path:
        """The list of finished files."""
        return self.folder.with_name(f"{self.folder.name}.journal")

    def enter(self, written: Written) -> None:
        """Append a finished file to the journal.

        The line starts with a new line, so that one torn by a crash spoils no other.
        """
        text = provenance.canonical([self.plan, asdict(written)])
        line = b"\n" + hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"
        with durable.disk_errors(self.journal), self.journal.open("ab", buffering=0) as file:
            file.write(line)

    def finish(self, shard: Unflushed) -> Written:
        """Flush a file, give it its name and enter it in the journal.

        Raises
        ------
        SpaceError
            The disk refuses.
        """
        written = shard.flush()
        self.enter(written)
        return written

    def take_up(self) -> dict[str, Written]:
        """Return the files that an earlier run finished, hashed again; delete all others.

        Raises
        ------
        SpaceError
            The disk refuses, or the final place is on another file system.
        """
        with durable.disk_errors(self.folder):
            for folder in (self.folder, self.final.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if self.folder.stat().st_dev != self.final.parent.stat().st_dev:
                message = f"{self.folder}: not on the file system of {self.final}; put both on one"
                raise SpaceError(message)
            claims = self._claims()
            with ThreadPoolExecutor() as pool:
                held = list(pool.map(self._holds, claims))
            done = {claim.path: claim for claim, good in zip(claims, held, strict=True) if good}
            self._clear(done)
        return done

    def _claims(self) -> list[Written]:
        claims = {}
        lines = self.journal.read_bytes().split(b"\n") if self.journal.exists() else []
        for line in lines:
            mark, _, text = line.partition(b" ")
            if mark == hashlib.sha256(text).hexdigest().encode():
                plan, fields = json.loads(text)
                if plan == self.plan:
                    claims[fields["path"]] = Written(**fields)
        return list(claims.values())

    def _holds(self, claim: Written) -> bool:
        try:
            return durable.sha256_file(self.folder / claim.path) == claim.sha256
        except OSError:
            return False

    def _clear(self, keep: Iterable[str]) -> None:
        kept = {self.folder / path for path in keep}
        for folder, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                if Path(folder, name) not in kept:
                    Path(folder, name).unlink()
            with contextlib.suppress(OSError):  # not empty
                Path(folder).rmdir()

    def commit(self, files: Iterable[str]) -> None:
        """Let the folder appear at its final place, with exactly these files, flushed already.

        Raises
        ------
        IntegrityError
            One of `files` isn't there.
        SpaceError
            The disk refuses.
        """
        with durable.disk_errors(self.folder):
            files = list(files)
            self._clear(files)
            for path in files:
                if not (self.folder / path).is_file():
                    message = f"{self.folder / path}: gone while the store was written; try again"
                    raise IntegrityError(message)
            for inside, _, _ in os.walk(self.folder, topdown=False):
                durable.flush_file(Path(inside))
            self.folder.rename(self.final)
            for parent in (self.final.parent, self.final.parent.parent, self.folder.parent):
                durable.flush_file(parent)
        self.forget()

    def forget(self) -> None:
        """Remove the journal, which a finished store has no use for; a read-only home keeps it."""
        with contextlib.suppress(OSError):
            self.journal.unlink(missing_ok=True)
            durable.flush_file(self.journal.parent)


def set_aside(folder: Path, quarantine: Path) -> Path:
    """Move a damaged folder into `quarantine` under a new number; nothing is deleted."""
    with durable.disk_errors(quarantine):
        quarantine.mkdir(parents=True, exist_ok=True)
        number = 1
        while (aside := quarantine / f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(aside)
        durable.flush_file(quarantine)
        durable.flush_file(folder.parent)
    return aside
