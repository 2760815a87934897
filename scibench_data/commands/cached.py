"""The verbs that look after the cache: each calls the function of its name in `cache`."""

import sys
from typing import TYPE_CHECKING, Any

import click

from scibench_data.commands import present
from scibench_data.commands.options import complete_name, json_option, prepare
from scibench_data.commands.terminal import size, table

if TYPE_CHECKING:
    from scibench_data.keeping.cache import Collected
    from scibench_data.keeping.inventory import Entry

_DAMAGED = 4  # the exit code of an IntegrityError


@click.group(short_help="List, check and shrink the cache.")
def cache() -> None:
    """Look after what lies in the cache: see what is there, prove its bytes, free space."""


def _described(entry: "Entry") -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "version": entry.version,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "inodes": entry.files,
        "last_used": entry.last_used.isoformat(timespec="seconds"),
        "in_use": entry.in_use,
        "complete": entry.complete,
    }


def _title(entry: "Entry") -> str:
    return f"{entry.name}@{entry.version}" if entry.version else entry.name


@cache.command("ls", short_help="List what the cache holds.")
@json_option
def ls(*, as_json: bool) -> None:
    """List datasets, stores and unfinished work: size on the disk, inodes, last use."""
    from scibench_data.keeping import cache as whole

    settings, _ = prepare(quiet=True)
    entries = whole.ls(settings=settings)
    total, inodes = sum(e.bytes for e in entries), sum(e.files for e in entries)
    if as_json:
        content = {
            "home": str(settings.home),
            "bytes": total,
            "inodes": inodes,
            "entries": [_described(entry) for entry in entries],
        }
        present.answer("cache-ls", content)
        return
    rows = [
        [
            entry.kind,
            _title(entry),
            size(entry.bytes),
            f"{entry.files:,}",
            f"{entry.last_used.astimezone():%Y-%m-%d %H:%M}",
            ", ".join(_remarks(entry)),
        ]
        for entry in sorted(entries, key=lambda entry: -entry.bytes)
    ]
    table(["what", "name", "size", "inodes", "last used", ""], rows)
    present.say(f"{size(total)}, {inodes:,} inodes in {settings.home}")


def _remarks(entry: "Entry") -> list[str]:
    usable = entry.kind in {"dataset", "derived", "store"}
    incomplete = ["incomplete"] if usable and not entry.complete else []
    return [*incomplete, *(["in use"] if entry.in_use else [])]


@cache.command("verify", short_help="Hash everything in the cache again.")
@click.argument("names", nargs=-1, shell_complete=complete_name)
@click.option("-J", "--jobs", type=int, help="Files hashed at the same time.")
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
@json_option
def verify(names: tuple[str, ...], *, jobs: int | None, quiet: bool, as_json: bool) -> None:
    """Hash every file of datasets and stores, of NAMES only if some are given.

    All that is damaged is told, with the command that heals it; the exit code is then 4.
    """
    from scibench_data.keeping import cache as whole

    settings, progress = prepare(quiet=quiet or as_json, jobs=jobs)
    verdicts = whole.verify(names, settings=settings, progress=progress)
    damaged = [verdict for verdict in verdicts if verdict.problems]
    if as_json:
        content = [
            {
                "name": verdict.name,
                "path": str(verdict.path),
                "files": verdict.files,
                "problems": list(verdict.problems),
                "cure": verdict.cure,
            }
            for verdict in verdicts
        ]
        present.answer("cache-verify", {"verdicts": content}, ok=not damaged)
    else:
        for verdict in damaged:
            lines = "".join(f"\n  {problem}" for problem in verdict.problems)
            cure = f"\n  run: {verdict.cure}" if verdict.cure else ""
            present.say(f"{verdict.name} in {verdict.path}: damaged{lines}{cure}", fg="red")
        files, sound = sum(v.files for v in verdicts), len(verdicts) - len(damaged)
        present.say(f"{files:,} files hashed; {sound} of {len(verdicts)} entries are sound")
    sys.exit(_DAMAGED if damaged else 0)


@cache.command("gc", short_help="Remove what was not used for longest.")
@click.option("--keep", default="50GB", show_default=True, metavar="SIZE",
              help="How big the cache may be: 50GB, 500MiB, 0.")  # fmt: skip
@click.option("--older-than", metavar="AGE", help="Only what was not used for 12h, 30d, 2w.")
@click.option("--force", is_flag=True, help="Also what could not be had again.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def gc(
    keep: str, older_than: str | None, *, force: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove what killed processes left, then datasets and stores until the cache is small enough.

    What was not used for longest goes first, stores before datasets of the same age. Nothing in use
    is removed, and nothing that could not be had again; runs and results are never touched.
    """
    from scibench_data.keeping import cache as whole

    settings, progress = prepare(quiet=as_json)
    chosen: dict[str, Any] = {"older_than": older_than, "force": force, "settings": settings}
    if not (yes or dry_run):
        _ask(whole.gc(keep, dry_run=True, **chosen), force=force)
    found = whole.gc(keep, dry_run=dry_run, progress=progress, **chosen)
    if as_json:
        content = {
            "dry_run": dry_run,
            "keep": found.keep,
            "before": found.before,
            "after": found.after,
            "removed": [_described(entry) for entry in found.removed],
            "kept": [{**_described(entry), "reason": reason} for entry, reason in found.kept],
        }
        present.answer("cache-gc", content)
    else:
        _tell(found, "would go" if dry_run else "removed")


def _ask(found: "Collected", *, force: bool) -> None:
    """Ask a person; elsewhere only what could not be had again needs to be confirmed."""
    if not found.removed:
        return
    if sys.stdin.isatty():
        _tell(found, "would go")
        click.confirm("remove this from the cache?", abort=True, err=True)
    elif force:
        message = "not a terminal: add --yes to remove what could not be had again"
        raise click.UsageError(message)


def _tell(found: "Collected", verb: str) -> None:
    rows = [[verb, entry.kind, _title(entry), f"{entry.bytes:,}", ""] for entry in found.removed]
    rows += [["kept", entry.kind, _title(entry), "", reason] for entry, reason in found.kept]
    if rows:
        styles = [""] * len(found.removed) + ["yellow"] * len(found.kept)
        table(["", "what", "name", "bytes", "why"], rows, styles)
    present.say(
        f"cache {found.before:,} B before, {found.after:,} B after; {found.keep:,} B may be kept"
    )
