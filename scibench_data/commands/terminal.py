"""What a person sees: progress bars, tables, sizes, and foreign text made harmless."""

import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from scibench_data.progress import SILENT, Progress, Task

_PLAIN_EVERY = 10.0  # between lines where there is no terminal [s]


def show(text: str, limit: int = 400) -> str:
    r"""Make foreign text safe for a terminal: no control, bidirectional or private characters.

    Examples
    --------
    >>> show("a\x1b]52;c;x\x07b")
    'a\\x1b]52;c;x\\x07b'
    """
    kept = [
        char
        if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        else char.encode("unicode_escape").decode("ascii")
        for char in unicodedata.normalize("NFC", text)
    ]
    safe = "".join(kept)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def size(number: float) -> str:
    """Write a number of bytes for people.

    Examples
    --------
    >>> size(23_592_960), size(512)
    ('22.5 MiB', '512 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Print a table on standard output, as wide as the terminal, without lines between rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for number, row in enumerate(rows):
        style = styles[number] if styles else ""
        drawn.add_row(*(Text(show(cell, 2000)) for cell in row), style=style)
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    with console.capture() as capture:
        console.print(drawn)
    for line in capture.get().splitlines():
        if line.strip():
            click.echo(line.rstrip())


class _Bars:
    """Bars on a terminal, on standard error, that go when their work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=Console(stderr=True),
            transient=True,
        )

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        """Draw one bar; nested tasks are drawn below each other."""
        if not self._bars.live.is_started:
            self._bars.start()
        number = self._bars.add_task(label, total=total, amount="", note="")
        try:
            yield _Bar(self._bars, number, total, unit)
        finally:
            self._bars.remove_task(number)
            if not self._bars.tasks:
                self._bars.stop()

    def say(self, text: str) -> None:
        """Write a line above the bars."""
        from rich.text import Text

        self._bars.console.print(Text(show(text, 2000)), style="yellow")


class _Bar:
    def __init__(self, bars: Any, number: Any, total: int | None, unit: str) -> None:
        self._bars, self._number, self._total, self._unit = bars, number, total, unit
        self._started = time.monotonic()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Move the bar."""
        total = total or self._total
        amount = _amount(done, total, self._unit, time.monotonic() - self._started)
        self._bars.update(
            self._number, completed=done, total=total, amount=amount, note=show(note, 48)
        )


def _amount(done: int, total: int | None, unit: str, seconds: float) -> str:
    if unit != "B":
        return f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
    rate = f"  {size(done / seconds)}/s" if seconds > 0.2 else ""
    return f"{size(done)} of {size(total)}{rate}" if total else f"{size(done)}{rate}"


class _Lines:
    """A plain line every few seconds, for logs of batch jobs."""

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        """Write lines for one piece of work."""
        yield _Line(label, total, unit)

    def say(self, text: str) -> None:
        """Write a line."""
        print(show(text, 2000), file=sys.stderr, flush=True)  # noqa: T201


class _Line:
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = self._last = time.monotonic()
        self._lock = threading.Lock()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Write a line when the last one is old enough."""
        now = time.monotonic()
        with self._lock:
            if now - self._last < _PLAIN_EVERY:
                return
            self._last = now
        amount = _amount(done, total or self._total, self._unit, now - self._started)
        print(f"{self._label}: {amount}  {show(note, 80)}", file=sys.stderr, flush=True)  # noqa: T201


def choose_progress(*, wanted: bool) -> Progress:
    """Return bars on a terminal, lines elsewhere, silence where it is wished."""
    if not wanted:
        return SILENT
    return _Bars() if sys.stderr.isatty() else _Lines()
