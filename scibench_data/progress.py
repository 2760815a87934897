"""How long work tells of its progress: a protocol, and the silent default.

Only the command line draws; everything else reports to whatever it was given.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar: work with a known or unknown end."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report that `done` of `total` units are finished.

        Safe to call from several threads.
        """


class Progress(Protocol):
    """Where tasks are announced."""

    def task(
        self, label: str, total: int | None = None, unit: str = "B"
    ) -> AbstractContextManager[Task]:
        """Announce work of `total` units; `unit` is ``"B"`` for bytes or a plural noun."""

    def say(self, text: str) -> None:
        """Tell of something that did not stop the work, such as a mirror that was left."""


class _Silence:
    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say nothing."""

    @contextmanager
    def task(self, *_: object, **__: object) -> Iterator[Task]:
        """Hand out a task that says nothing."""
        yield self

    def say(self, text: str) -> None:
        """Say nothing."""


SILENT: Progress = _Silence()
