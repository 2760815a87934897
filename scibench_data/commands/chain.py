"""The verbs of the chain and those that look around: each calls the function of its name."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import scibench_data as sbd
from scibench_data.commands import present
from scibench_data.commands.options import (
    Folder,
    complete_name,
    json_option,
    name_argument,
    prepare,
    simulated,
    warn_if_yanked,
    work_options,
)
from scibench_data.commands.terminal import size, table
from scibench_data.progress import Progress

if TYPE_CHECKING:
    from scibench_data.results.run import Run
    from scibench_data.storing.store import Layout

_SEED = click.IntRange(0, 2**32 - 1)  # what torch and NumPy both take
_STYLES = ("bibtex", "apa", "ris", "cff", "csl-json")

# --- the main job ---------------------------------------------------------------------------------


@click.command(short_help="Get a version of a package, every file verified.")
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("--to", type=Folder(path_type=Path, file_okay=False),
              help="Also place plain files in this folder.")  # fmt: skip
@click.option("--include", multiple=True, metavar="PATTERN",
              help="Only these files of the subset, such as 'train/*'.")  # fmt: skip
@click.option("--locked", is_flag=True, help="The version that scibench.lock pins, and no other.")
@click.option("--check", is_flag=True, help="Hash every file again.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@work_options
def get(
    name: str | None,
    to: Path | None,
    include: tuple[str, ...],
    *,
    locked: bool,
    check: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Get NAME, verify every SHA-256, and print where the files lie.

    What a recipe can make is made on this machine; what is published elsewhere is fetched. With
    --locked, NAME may be left out: all that scibench.lock pins.
    """
    as_json, quiet, variant = options.pop("as_json"), options.pop("quiet"), simulated(options)
    settings, progress = prepare(quiet=quiet or as_json, **options)
    if locked:
        if to or include or dry_run or any(variant.values()):
            message = "--locked gets what the lock file says: no --to, --include, --scale ..."
            raise click.UsageError(message)
        _get_locked(name, settings, progress, check=check, as_json=as_json, quiet=quiet)
        return
    if name is None:
        message = "missing argument NAME; scibench-data list shows the packages"
        raise click.UsageError(message)
    reason = warn_if_yanked(name)
    plan = sbd.plan(name, include=include, settings=settings, check=check, **variant)
    if dry_run:
        present.plan(plan, to, reason, as_json=as_json)
        return
    data = sbd.get(
        name, to=to, include=include, check=check, settings=settings, progress=progress, **variant
    )  # fmt: skip
    fresh = present.hashed(data, plan)
    folder = to.absolute() if to else data.path
    licences = [terms.name or terms.path for terms in data.package.licenses]
    content = {
        "name": data.package.name,
        "version": data.package.version,
        "subset": data.subset,
        "commit": data.commit,
        "swhid": data.swhid,
        "files": len(data.resources),
        "hashed": fresh,
        "unverified": [resource.path for resource in data.unverified],
        "bytes": data.bytes,
        "licenses": licences,
        "yanked": reason,
        "path": str(folder),
    }
    if as_json:
        present.answer("get", content)
        return
    if not quiet:
        present.say(
            f"{data.reference}  {size(data.bytes)}, {len(data.resources)} files, ", nl=False
        )
        present.say(present.how_sure(data, fresh), fg="green")
        present.say(f"commit   {data.commit}\nswhid    {data.swhid}")
        present.say(f"licence  {present.licence(data.package, data.subset)}")
        present.unverified(data)
    present.path(folder)


def _get_locked(
    name: str | None,
    settings: sbd.Settings,
    progress: Progress,
    *,
    check: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from scibench_data.versions.locking import get_locked

    names = [name] if name else []
    found = get_locked(names, check=check, settings=settings, progress=progress)
    if as_json:
        entries = [
            {"name": str(data.reference), "commit": data.commit, "path": str(data.path)}
            for data in found
        ]
        present.answer("get-locked", {"datasets": entries})
        return
    for data in found:
        if not quiet:
            present.say(f"{data.reference}  {size(data.bytes)}, as pinned", fg="green")
        present.path(data.path)


def _overrides(
    _ctx: click.Context, _param: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        message = f"expected NAME=VALUE, got {wrong[0]!r}"
        raise click.BadParameter(message)
    return dict(pair.split("=", 1) for pair in pairs)


@click.command(short_help="Train the reference model and record the result.")
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("--all", "everything", is_flag=True, help="Every reference model, on its sample.")
@click.option("--epochs", type=int, help="Passes over the training split.")
@click.option("--batch-size", type=int, help="Samples in a batch.")
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")
@click.option("--out", type=Folder(path_type=Path), help="Folder of the run.  [default: runs/ID]")
@click.option("--set", "overrides", multiple=True, callback=_overrides, metavar="NAME=VALUE",
              help="Another setting of the model.")  # fmt: skip
@work_options
def train(
    name: str | None,
    seed: int,
    device: str | None,
    out: Path | None,
    overrides: dict[str, Any],
    *,
    everything: bool,
    **options: Any,
) -> None:
    """Train the reference model of NAME and record what every number rests on.

    What is missing on the way is fetched and written first.
    """
    as_json, quiet, variant = options.pop("as_json"), options.pop("quiet"), simulated(options)
    given = {key: options.pop(key) for key in ("epochs", "batch_size")}
    settings, progress = prepare(quiet=quiet or as_json, **options)
    chosen = overrides | {key: value for key, value in given.items() if value is not None}
    if everything == bool(name) or (everything and (chosen or any(variant.values()))):
        message = "expected NAME, or --all without NAME and without settings of one model"
        raise click.UsageError(message)
    if name is None:
        runs = sbd.train_all(
            seed=seed, device=device, out=out, settings=settings, progress=progress
        )
        _tell_all(runs, as_json=as_json, quiet=quiet)
        return
    reason = warn_if_yanked(name)
    run = sbd.train(
        name, seed=seed, device=device, out=out, settings=settings, progress=progress,
        **{**variant, **chosen},
    )  # fmt: skip
    if as_json:
        content = {"path": str(run.path), "yanked": reason, "result": run.result.to_json()}
        present.answer("train", content)
        return
    if not quiet:
        present.scores(run.result)
    present.path(run.path)


def _tell_all(runs: "Sequence[Run]", *, as_json: bool, quiet: bool) -> None:
    if as_json:
        entries = [{"path": str(run.path), "result": run.result.to_json()} for run in runs]
        present.answer("train-all", {"runs": entries})
        return
    for run in runs:
        if not quiet:
            present.scores(run.result)
        present.path(run.path)


@click.command(short_help="Check a dataset, a store or a result, link by link.")
@click.argument("target")
@click.option("--replay", is_flag=True, help="Also train again and compare.")
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
@json_option
def verify(target: str, *, replay: bool, quiet: bool, as_json: bool) -> None:
    """Follow the links of TARGET and say of each whether it holds.

    TARGET is a package NAME, the folder of a dataset, a store or a run, or a result.json. The exit
    code is 0 where all links hold, 9 where one fails, 1 where one could not be checked here.
    """
    settings, progress = prepare(quiet=quiet or as_json)
    report = sbd.verify(target, replay=replay, settings=settings, progress=progress)
    if as_json:
        links = [{"name": x.name, "status": x.status, "detail": x.detail} for x in report.links]
        content = {"kind": report.kind, "subject": report.subject, "links": links}
        present.answer("verify", content, ok=report.exit_code == 0)
    else:
        colours = {"holds": "", "fails": "red", "not checked": "yellow", "stated": "dim"}
        rows = [[link.name, link.status, link.detail] for link in report.links]
        table(["link", "status", "what was found"], rows, [colours[x.status] for x in report.links])
        present.verdict(report)
    sys.exit(report.exit_code)


@click.command(short_help="Cite a version or a result.")
@click.argument("target", shell_complete=complete_name)
@click.option(
    "-f", "--format", "style", type=click.Choice(_STYLES), default="bibtex", show_default=True
)
@json_option
def cite(target: str, style: str, *, as_json: bool) -> None:
    """Print the citation of TARGET, a package NAME or a result.json, and of what it comes from."""
    from scibench_data.api import cited_version

    reason = warn_if_yanked(cited_version(target))
    told = sbd.cite(target, style).rstrip("\n")
    if as_json:
        present.answer("cite", {"style": style, "text": told, "yanked": reason})
    else:
        present.text(told)


# --- looking around -------------------------------------------------------------------------------


@click.command("list", short_help="List the packages.")
@json_option
def list_(*, as_json: bool) -> None:
    """List the data packages, their subsets and sizes."""
    entries = sbd.list_packages()
    if as_json:
        present.answer("list", {"packages": entries})
    else:
        present.packages(entries)


@click.command(short_help="List the packages that speak of something.")
@click.argument("words", nargs=-1, required=True)
@json_option
def search(words: tuple[str, ...], *, as_json: bool) -> None:
    """List the packages whose name, title, description, keywords or subsets hold all WORDS."""
    entries = sbd.search(" ".join(words))
    if as_json:
        present.answer("search", {"words": list(words), "packages": entries})
    elif entries:
        present.packages(entries)
    else:
        present.say("no package speaks of that; scibench-data list shows them all")


@click.command(short_help="Accept the terms of a subset.")
@name_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def accept(name: str, *, yes: bool, as_json: bool) -> None:
    """Note that you accept the terms that the publisher of NAME wants accepted."""
    entry = sbd.info(name)
    url = entry["subsets"][entry["subset"]]["terms"]
    if url and not yes:
        if not sys.stdin.isatty():
            message = f"not a terminal: read {url}, and add --yes to accept it"
            raise click.UsageError(message)
        click.confirm(f"do you accept the terms at {url}?", abort=True, err=True)
    sbd.accept(name)
    if as_json:
        present.answer("accept", {"name": name, "terms": url})
    else:
        present.say(f"accepted: {url}" if url else "it has no terms to accept")


@click.command(short_help="Describe a version.")
@name_argument
@json_option
def info(name: str, *, as_json: bool) -> None:
    """Say what NAME holds, where it comes from, and what of it is here."""
    entry = sbd.info(name)
    entry["yanked"] = warn_if_yanked(name)
    if as_json:
        present.answer("info", entry)
    else:
        present.info(entry)


@click.command(short_help="List the versions of a package.")
@name_argument
@json_option
def versions(name: str, *, as_json: bool) -> None:
    """List every released version of NAME, newest first."""
    entries = sbd.versions(name)[::-1]
    if as_json:
        present.answer("versions", {"name": name, "versions": entries})
        return
    rows = [
        [
            e["version"],
            e["date"],
            e["commit"],
            f"yanked: {e['yanked']}" if e["yanked"] else e["changes"],
        ]
        for e in entries
    ]
    table(["version", "date", "commit", "what changed"], rows)


@click.command(short_help="Print where a version's files lie.")
@name_argument
@json_option
def path(name: str, *, as_json: bool) -> None:
    """Print the folder of NAME's files, which must be here."""
    folder = sbd.path(name)
    if as_json:
        present.answer("path", {"path": str(folder)})
    else:
        present.path(folder)


# --- arrays ---------------------------------------------------------------------------------------


@click.command(short_help="Write a version as a Zarr store.")
@name_argument
@click.option(
    "--codec",
    type=click.Choice(["auto", "none", "lz4", "zstd"]),
    help="How chunks are packed; auto measures a sample of each array.",
)
@click.option("--chunk", "chunk_bytes", metavar="SIZE", help="Most of an array in a chunk: 512KiB.")
@click.option("--shard", "shard_bytes", metavar="SIZE", help="Most of an array in a file: 64MiB.")
@click.option(
    "--scheduler", metavar="ADDRESS", default="", help="Work on the cluster of this Dask scheduler."
)
@work_options
def materialize(name: str, **options: Any) -> None:
    """Write NAME as a Zarr v3 store and print its path.

    How each array is cut and packed is chosen from its size and values, unless options say it.
    """
    as_json, quiet, variant = options.pop("as_json"), options.pop("quiet"), simulated(options)
    how = {"layout": _layout(options), "scheduler": options.pop("scheduler")}
    settings, progress = prepare(quiet=quiet or as_json, **options)
    reason = warn_if_yanked(name)
    store = sbd.materialize(name, settings=settings, progress=progress, **how, **variant)
    if as_json:
        content = {
            "path": str(store.path),
            "sha256": store.digest,
            "manifest_sha256": store.manifest_digest,
            "bytes": store.bytes,
            "identity": dict(store.identity),
            "arrays": {array: dict(layout) for array, layout in store.arrays.items()},
            "yanked": reason,
        }
        present.answer("materialize", content)
        return
    if not quiet:
        for array, grid in store.arrays.items():
            if len(grid["shape"]) > 1:  # --json has the short ones too
                shape = " x ".join(map(str, grid["shape"]))
                cut = f"{grid['chunk']} in a chunk, {grid['shard']} in a file"
                codec = f"codec {grid['codec']}"
                present.say(f"array    {array}: {grid['dtype']} {shape}; {cut}, {codec}")
        present.say(f"store    {size(store.bytes)}\nvalues   sha256 {store.digest}")
    present.path(store.path)


def _layout(options: dict[str, Any]) -> "Layout":
    """Take the layout of a store out of the options of a verb."""
    from scibench_data.keeping.cache import parse_size
    from scibench_data.storing.store import Layout

    asked = {name: options.pop(name) for name in ("codec", "chunk_bytes", "shard_bytes")}
    sizes = {name: parse_size(text) for name, text in asked.items() if text and name != "codec"}
    return Layout(**sizes, codec=asked["codec"] or "auto")


@click.command("open", short_help="Show a version's arrays.")
@name_argument
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
@json_option
def open_(name: str, *, quiet: bool, as_json: bool) -> None:
    """Show the arrays of NAME as xarray sees them: axes, types, units, coordinates."""
    settings, progress = prepare(quiet=quiet or as_json)
    reason = warn_if_yanked(name)
    arrays = sbd.open(name, settings=settings, progress=progress)
    if as_json:
        present.answer("open", {**present.describe(arrays), "yanked": reason})
    else:
        click.echo(arrays)


# --- housekeeping ---------------------------------------------------------------------------------


@click.command(short_help="Delete a version's files from the cache.")
@name_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(name: str, *, yes: bool, as_json: bool) -> None:
    """Delete NAME's dataset from the cache; stores and runs stay."""
    if not yes:
        if not sys.stdin.isatty():
            message = "not a terminal: add --yes to delete without being asked"
            raise click.UsageError(message)
        click.confirm(f"delete {name} from the cache?", abort=True, err=True)
    freed = sbd.remove(name)
    if as_json:
        present.answer("remove", {"name": name, "bytes": freed})
    else:
        present.say(f"{size(freed)} freed")


@click.command(short_help="Look for what is missing on this machine.")
@json_option
def doctor(*, as_json: bool) -> None:
    """Check programs, libraries, cache and packages."""
    findings = sbd.doctor()
    broken = any(finding.status == "problem" for finding in findings)
    if as_json:
        entries = [
            {"name": f.name, "status": f.status, "detail": f.detail, "cure": f.cure}
            for f in findings
        ]
        present.answer("doctor", {"findings": entries}, ok=not broken)
    else:
        colours = {"ok": "", "warning": "yellow", "problem": "red"}
        rows = [
            [f.name, f.status, f"{f.detail}; {f.cure}" if f.cure else f.detail] for f in findings
        ]
        table(["what", "status", "found"], rows, [colours[f.status] for f in findings])
    sys.exit(1 if broken else 0)
