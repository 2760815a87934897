"""The verbs about versions: what differs between two, and which ones a lock file pins."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scibench_data.commands import present
from scibench_data.commands.options import complete_name, json_option, prepare
from scibench_data.commands.terminal import show, size, table

if TYPE_CHECKING:
    from scibench_data.versions.comparing import ArrayChange, Diff, FileChange, Side
    from scibench_data.versions.locking import Locked

_SHOWN = 20  # rows of a table for people; --json has all
_LONG = 60  # letters of a value in a table
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")


# --- diff -----------------------------------------------------------------------------------------


@click.command(short_help="Say what differs between two versions.")
@click.argument("a", shell_complete=complete_name)
@click.argument("b", shell_complete=complete_name)
@click.option("--statistics/--no-statistics", default=None,
              help="Compare stored values too.  [default: where both stores are here]")  # fmt: skip
@click.option("--exit-code", is_flag=True, help="End with 1 where they differ.")
@_QUIET
@json_option
def diff(
    a: str, b: str, *, statistics: bool | None, exit_code: bool, quiet: bool, as_json: bool
) -> None:
    """Compare the versions A and B: files, schema, terms, changelog and statistics.

    Each is NAME[@VERSION][:SUBSET], of the same package or of two. Nothing is fetched.
    """
    from scibench_data.versions.comparing import diff as compare

    settings, progress = prepare(quiet=quiet or as_json)
    found = compare(a, b, statistics=statistics, settings=settings, progress=progress)
    if as_json:
        present.answer("diff", found.to_json())
    else:
        _show(found)
    sys.exit(1 if exit_code and found.different else 0)


def _show(found: "Diff") -> None:
    amounts = [
        f"{files:,} {'not known' if kind == 'unknown' else kind} ({size(amount)})"
        for kind, (files, amount) in found.totals().items()
    ]
    present.facts(
        [
            ("from", _side(found.a)),
            ("to", _side(found.b)),
            ("files", ", ".join(amounts) or "the same"),
            ("facts", _sections(found)),
            ("values", _values(found)),
        ]
    )
    if found.changelog:
        rows = [
            [each.version, each.date, each.changes, f"yanked: {each.yanked}" if each.yanked else ""]
            for each in found.changelog
        ]
        _table(["version", "date", "what changed", ""], rows)
    if found.files:
        _table(["file", "what", "before", "after"], [_file(each) for each in found.files])
    if found.changes:
        rows = [
            [
                " ".join(filter(None, (c.section, c.item, c.field))),
                _short(c.before),
                _short(c.after),
            ]
            for c in found.changes
        ]
        _table(["fact", "before", "after"], rows)
    if found.arrays:
        rows = [row for each in found.arrays for row in _array(each)]
        heads = ["array", "side", "count", "min", "max", "mean", "deviation", "NaN"]
        _table(heads, rows)
    for note in found.notes:
        present.say(show(note, 2000), fg="yellow")


def _side(side: "Side") -> str:
    yanked = f"yanked: {side.yanked}" if side.yanked else ""
    amount = f"{side.files:,} files, {size(side.bytes)}"
    return "  ".join(filter(None, (str(side), side.released, side.commit[:12], amount, yanked)))


def _sections(found: "Diff") -> str:
    counts = Counter(change.section for change in found.changes)
    return ", ".join(f"{count:,} of {name}" for name, count in counts.items()) or "the same"


def _values(found: "Diff") -> str:
    if found.arrays is None:
        return "not compared"
    return f"{len(found.arrays)} arrays differ" if found.arrays else "the same"


def _table(headings: list[str], rows: list[list[str]]) -> None:
    click.echo()
    table(headings, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        click.echo(f"... and {len(rows) - _SHOWN:,} more; --json has all")


def _file(change: "FileChange") -> list[str]:
    before, after = change.before, change.after
    path = " -> ".join(dict.fromkeys(file.path for file in (before, after) if file))
    kind = "no checksum to tell" if change.kind == "unknown" else change.kind
    told = [
        "" if file is None else "size not known" if file.bytes is None else size(file.bytes)
        for file in (before, after)
    ]
    return [path, kind, *told]


def _short(value: Any) -> str:
    if value is None:
        return ""
    if value == {}:
        return "there"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def _array(change: "ArrayChange") -> Iterator[list[str]]:
    name = "/".join(filter(None, (change.subset, change.name)))
    for side, told in (("before", change.before), ("after", change.after)):
        if told is None:
            yield [name, side, "not there", "", "", "", "", ""]
            continue
        numbers = [_number(value) for value in (told.min, told.max, told.mean, told.std)]
        yield [name, side, f"{told.count:,}", *numbers, f"{told.nan:.2%}" if told.nan else ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# --- lock -----------------------------------------------------------------------------------------


@click.command(short_help="Pin versions for a paper's repository.")
@click.argument("names", nargs=-1, shell_complete=complete_name)
@click.option("--file", "path", type=click.Path(path_type=Path, dir_okay=False),
              default="scibench.lock", show_default=True, help="The lock file.")  # fmt: skip
@_QUIET
@json_option
def lock(names: tuple[str, ...], path: Path, *, quiet: bool, as_json: bool) -> None:
    """Pin version, commit and store digest of each of NAMES in a lock file.

    Other entries of the file stay. Without NAMES, each entry is looked at again: what can be told
    by now is added, and nothing else may differ. "get --locked" gets exactly what is pinned.
    """
    from scibench_data.versions.locking import lock as pin

    settings, progress = prepare(quiet=quiet or as_json)
    written = pin(names, path=path, settings=settings, progress=progress)
    if as_json:
        present.answer("lock", lock_json(written))
        return
    rows = [
        [
            str(each),
            each.commit,
            each.store.values[:16] if each.store else "not pinned",
            f"{len(each.files)} recorded" if each.files else "as published",
        ]
        for each in written.pins
    ]
    if not quiet:
        table(["version", "commit", "store", "checksums"], rows)
    for note in written.notes:
        present.say(show(note, 2000), fg="yellow")
    present.path(written.path)


def lock_json(written: "Locked") -> dict[str, Any]:
    """Return what `lock` wrote, as JSON has it."""
    return {
        "path": str(written.path.absolute()),
        "pins": [dataclasses.asdict(pin) for pin in written.pins],
        "notes": list(written.notes),
    }
