"""What the verbs print: results on standard output, everything else on standard error.

Tables and facts are for people. Paths, citations and JSON go out as bytes that no locale changes.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scibench_data.commands.terminal import show, size, table
from scibench_data.sources import parse_source

if TYPE_CHECKING:
    import xarray as xr

    from scibench_data.api import Dataset, Plan
    from scibench_data.descriptor import DataPackage
    from scibench_data.results.result import Result
    from scibench_data.results.verification import Report


def say(text: str, **style: Any) -> None:
    """Tell a person something, on standard error."""
    click.secho(text, err=True, **style)


def answer(verb: str, content: dict[str, Any], *, ok: bool = True) -> None:
    """Print one JSON object, as UTF-8 whatever the locale; bytes of no text come as escapes."""
    told = {"schema": f"scibench-data/{verb}/1", "ok": ok, **content}
    text(json.dumps(told, indent=1, ensure_ascii=False))


def text(content: str) -> None:
    """Print a document as UTF-8, whatever the locale."""
    click.echo(content.encode("utf-8", "backslashreplace"))


def path(place: Path) -> None:
    """Print a path as the bytes that it has on the disk."""
    if "\n" in str(place):
        say("warning: this path holds a line break; --json prints it as one string", fg="yellow")
    click.echo(os.fsencode(place))


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print name and value line by line; what is empty is left out."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if value:
            click.echo(f"{name:<{width}}  {show(value, 2000)}")


def yanked(reason: str, advice: str) -> None:
    """Warn of a version that should not be used any more; silent without a reason."""
    if reason:
        say(show(f"warning: {advice}", 2000), fg="yellow")


# --- get ------------------------------------------------------------------------------------------


def hashed(data: "Dataset", before: "Plan") -> int:
    """Count the files that `get` hashed, by the plan made before it."""
    return len(data.resources) if before.estimated else before.files + len(before.unsure)


def how_sure(data: "Dataset", fresh: int) -> str:
    """Say what the `fresh` checksums taken now were compared with, and what stands for the rest."""
    own = "+" in data.package.version  # nobody published this version: it was made here
    told = "as recorded" if own else "as published"
    if data.unverified:
        told = "as published or recorded"
    if fresh == len(data.resources):
        words = f"SHA-256 {told}" if own else f"every SHA-256 {told}"
    elif fresh:
        words = f"{fresh} SHA-256 {told}, the other files unchanged since theirs were checked"
    else:
        words = "unchanged since its SHA-256 was checked"
    return f"made here, {words}" if own else words


def unverified(data: "Dataset") -> None:
    """Say which files' bytes nobody vouches for."""
    if not data.unverified:
        return
    say(
        f"unverified: {len(data.unverified)} of {len(data.resources)} files, whose publisher gives "
        "no checksum; theirs are recorded here, and a change will be refused",
        fg="yellow",
    )
    say(f"to pin them: scibench-data lock {data.reference}")


def licence(package: "DataPackage", subset: str) -> str:
    """Word the licence: the package's is not that of data which others published."""
    named = ", ".join(terms.name or terms.path for terms in package.licenses)
    simulated = any(each.recipe for each in package.subsets.values())
    if simulated and package.subsets[subset].recipe is None:
        name = f"{package.name}@{package.version}:{subset}"
        return f"that of its publisher, see scibench-data info {name} (the package's is {named})"
    return named


def plan(found: "Plan", to: Path | None, reason: str, *, as_json: bool) -> None:
    """Print what `get` would do; `reason` says why the version was yanked, if it was."""
    package, subset = found.reference.package, found.reference.subset
    if as_json:
        content = {
            "name": str(found.reference),
            "folder": str(found.folder),
            "to": str(to.absolute()) if to else "",
            "estimated": found.estimated,
            "files": found.files,
            "exact": not found.about and not found.unsized,
            "missing": [] if found.estimated else [resource.path for resource in found.missing],
            "unsure": [resource.path for resource in found.unsure],
            "bytes": found.bytes,
            "inodes": found.inodes,
            "free_bytes": found.free_bytes,
            "free_inodes": found.free_inodes,
            "yanked": reason,
        }
        answer("plan", content)
        return
    hosts = sorted({parse_source(text).host for r in found.missing for text in r.sources})
    entry = package.subsets[subset]
    source = "made here by its recipe" if entry.recipe else ", ".join(hosts)
    if entry.listing and found.about:
        source = f"{parse_source(entry.listing).host}, listed when it is got"
    about = "about " if found.estimated or found.about or found.unsized else ""
    amount = f"{found.files:,} files, {size(found.bytes)}, {found.inodes:,} inodes"
    if found.about and "files" not in found.about:
        amount = f"{size(found.bytes)}, in files that nobody counted yet"
    facts(
        [
            ("package", str(found.reference)),
            ("licence", licence(package, subset)),
            ("to get", about + amount),
            ("inodes", _cost(found.inodes) if found.files > MANY_FILES else ""),
            ("unverified", _unpublished(found)),
            ("terms", entry.terms),
            ("needs", entry.needs),
            ("to check", f"{len(found.unsure)} files" if found.unsure else ""),
            ("from", source if found.files or found.about else "everything is here"),
            ("free", f"{size(found.free_bytes)}, {found.free_inodes:,} inodes"),
            ("folder", str(found.folder)),
            ("also to", str(to.absolute()) if to else ""),
        ]
    )


MANY_FILES = 2000
"""Above this a user is told what so many files cost."""


def _cost(inodes: int) -> str:
    return (
        f"{inodes:,}: many small files cost inodes and time, and clusters have quotas of both; "
        "--include takes some of them"
    )


def _unpublished(found: "Plan") -> str:
    count = sum(not resource.published for resource in found.missing)
    return f"{count:,} files have no published checksum" if count else ""


# --- the other verbs ------------------------------------------------------------------------------


def scores(result: "Result") -> None:
    """Print the scores of a run beside those of the baselines."""
    names = list(result.metrics.values)
    model = f"{result.model.name} (this run, seed {result.model.seed})"
    lines = {model: result.metrics.values, **result.metrics.comparisons}
    rows = [
        [title, *(f"{values[name]:.4f}" if name in values else "" for name in names)]
        for title, values in lines.items()
    ]
    table([f"{result.metrics.split} split", *names], rows, ["bold", *[""] * (len(rows) - 1)])
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.run.seconds.items())
    link = result.dataset
    say(f"{link.name}@{link.version}:{link.subset}  {link.swhid}")
    say(f"store {result.store.sha256[:16]}…  split {result.split.sha256[:16]}…  {seconds}")


def verdict(report: "Report") -> None:
    """Say in one line what came of verifying."""
    subject = f"{report.kind} {show(report.subject)}"
    fails, absent = report.count("fails"), report.count("not checked")
    if fails:
        say(f"{subject}: does not verify, {fails} links fail", fg="red")
    elif absent:
        say(f"{subject}: not fully verified, {absent} links could not be checked", fg="yellow")
    else:
        say(f"{subject}: verified, {report.count('holds')} links hold", fg="green")
    if report.count("stated"):
        say("what is only stated can be checked with --replay, which trains again")


def packages(entries: Sequence[dict[str, Any]]) -> None:
    """Print the packages; a note says what is the matter with one."""
    rows = [
        [
            entry["name"],
            entry["version"],
            ", ".join(f"{name} {_size(s)}" for name, s in entry["subsets"].items()),
            ", ".join(entry["licenses"]),
            "; ".join(filter(None, [entry["title"], entry["note"]])),
        ]
        for entry in entries
    ]
    styles = ["yellow" if entry["note"] else "" for entry in entries]
    table(["package", "version", "subsets", "licence", "title"], rows, styles)


def info(entry: dict[str, Any]) -> None:
    """Print what a version holds, and its arrays."""
    task = entry["task"] or {}
    here = sum(file["here"] for file in entry["files"])
    split = entry["splits"] or {}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in split.get("fractions", {}).items())
    subsets = ", ".join(f"{n} ({_size(s)})" for n, s in entry["subsets"].items())
    mine = entry["subsets"][entry["subset"]]
    facts(
        [
            ("package", f"{entry['name']}@{entry['version']}:{entry['subset']}"),
            ("title", entry["title"]),
            ("subset", f"{mine['title']}: {mine['description']}".removesuffix(": ")),
            ("released", entry["released"]),
            ("yanked", entry["yanked"]),
            ("commit", entry["commit"]),
            ("swhid", entry["swhid"]),
            ("licence", ", ".join(entry["licenses"]) + _not_of(entry, mine)),
            ("subsets", subsets),
            ("task", task.get("description", "")),
            ("metric", task.get("metric", "")),
            ("split", f"by {split['group']}: {parts}" if split else ""),
            ("files", f"{mine['files']:,}, {_size(mine)}"),
            ("here", f"{here} of {mine['files']:,} files"),
            ("from", ", ".join(_hosts(entry, mine))),
            ("unverified", _without_checksum(mine)),
            ("terms", mine["terms"]),
            ("needs", mine["needs"]),
            ("folder", entry["folder"]),
        ]
    )
    click.echo()
    arrays = [
        [a["name"], a["dtype"], ", ".join(a["dims"]), a["units"], a["description"]]
        for a in entry["arrays"]
    ]
    table(["array", "dtype", "axes", "unit", "what it is"], arrays)


def _size(subset: dict[str, Any]) -> str:
    """Word the size of a subset: what its publisher doesn't give is not made up."""
    if subset["exact"]:
        return size(subset["bytes"])
    return f"about {size(subset['bytes'])}" if subset["bytes"] else "size not known"


def _not_of(entry: dict[str, Any], subset: dict[str, Any]) -> str:
    """Say that the package's licence is not that of a subset which others published."""
    simulated = any(each["simulated"] for each in entry["subsets"].values())
    theirs = simulated and not subset["simulated"]
    return " is the package's; this subset has that of its publisher" if theirs else ""


def _hosts(entry: dict[str, Any], subset: dict[str, Any]) -> list[str]:
    if subset["simulated"]:
        return ["its recipe, on this machine"]
    texts = [text for file in entry["files"] for text in file["sources"]]
    return sorted({parse_source(text).host for text in [*texts, subset["listing"]] if text})


def _without_checksum(subset: dict[str, Any]) -> str:
    if subset["listing"]:
        return "its files have no published checksum, and are listed when they are got"
    count = subset["unverified"]
    return f"{count:,} files have no published checksum" if count else ""


def describe(arrays: "xr.Dataset") -> dict[str, Any]:
    """Return the axes of a dataset and what it says of each array, as JSON has it."""
    return {
        "dims": {str(dim): length for dim, length in arrays.sizes.items()},
        "arrays": {
            str(name): {
                "role": "coordinate" if name in arrays.coords else "data",
                "dims": [str(dim) for dim in variable.dims],
                "shape": list(variable.shape),
                "dtype": str(variable.dtype),
                "units": str(variable.attrs.get("units", "")),
                "long_name": str(variable.attrs.get("long_name", "")),
            }
            for name, variable in arrays.variables.items()
        },
    }
