"""The command line: each verb parses, calls the Python function of its name, and prints.

Results go to standard output, everything else to standard error. One place, `main`, turns errors
into messages and exit codes.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import scibench_data as sbd  # its names load their modules when they are used: --help stays quick
from scibench_data.errors import DescriptorError, ScibenchError
from scibench_data.progress import SILENT, Progress

_SECTIONS = {
    "The main job": ("get", "train", "verify", "cite"),
    "Look around": ("list", "info", "versions", "path"),
    "Work with arrays": ("materialize", "open"),
    "Housekeeping": ("remove", "doctor", "completion"),
}
_STYLES = ("bibtex", "apa", "ris", "cff", "csl-json")


class _Sections(click.Group):
    """A group whose help shows the commands by section, the main job first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for names in _SECTIONS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(60)) for name in names]
                )


@click.group(
    cls=_Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="NAME is a package such as cryoem, cryoem@1.0.0 or cryoem@1.0.0:sample.",
)
@click.version_option(package_name="scibench-data")
def cli() -> None:
    """Benchmark data whose every result can be traced to its bytes."""


# --- what the verbs share -------------------------------------------------------------------------


def _complete_name(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    from scibench_data.catalog import package_names

    return [name for name in package_names() if name.startswith(typed)]


def _name(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=_complete_name)(function)


def _json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def _work(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of verbs that may take a while."""
    for option in (
        click.option("--scale", type=click.IntRange(1), help="Simulate this many samples instead."),
        click.option("-J", "--jobs", type=int, help="Files and shards made at the same time."),
        click.option("--offline", is_flag=True, default=None, help="Open no connection."),
        click.option("-q", "--quiet", is_flag=True, help="Print paths only, draw no progress."),
    ):
        function = option(function)
    return _json(function)


def _prepare(
    *, quiet: bool, jobs: int | None = None, offline: bool | None = None
) -> "tuple[sbd.Settings, Progress]":
    settings = sbd.load_settings(jobs=jobs, offline=offline)
    if quiet or not settings.progress:
        return settings, SILENT
    from scibench_data.terminal import choose_progress

    return settings, choose_progress(wanted=True)


def _say(text: str, **style: Any) -> None:
    click.secho(text, err=True, **style)


def _answer(verb: str, content: dict[str, Any], *, ok: bool = True) -> None:
    answer = {"schema": f"scibench-data/{verb}/1", "ok": ok, **content}
    click.echo(json.dumps(answer, indent=1, ensure_ascii=False))


def _size(number: float) -> str:
    from scibench_data.terminal import size

    return size(number)


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    from scibench_data.terminal import table

    table(headings, rows, styles)


def _facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print name and value line by line; what is empty is left out."""
    from scibench_data.terminal import show

    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if value:
            click.echo(f"{name:<{width}}  {show(value, 2000)}")


# --- the main job ---------------------------------------------------------------------------------


@cli.command(short_help="Get a version of a package, every file verified.")
@_name
@click.option(
    "--to", type=click.Path(path_type=Path), help="Also place plain files in this folder."
)
@click.option("--check", is_flag=True, help="Hash every file again.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@_work
def get(name: str, to: Path | None, *, check: bool, dry_run: bool, **options: Any) -> None:
    """Get NAME, verify every SHA-256, and print where the files lie.

    What a recipe can make is made on this machine; what is published elsewhere is fetched.
    """
    as_json, scale, quiet = options.pop("as_json"), options.pop("scale"), options.pop("quiet")
    settings, progress = _prepare(quiet=quiet or as_json, **options)
    if dry_run:
        _print_plan(sbd.plan(name, settings=settings, check=check), as_json=as_json)
        return
    data = sbd.get(name, to=to, scale=scale, check=check, settings=settings, progress=progress)
    folder = to.absolute() if to else data.path
    licences = [terms.name or terms.path for terms in data.package.licenses]
    content = {
        "name": data.package.name,
        "version": data.package.version,
        "subset": data.subset,
        "commit": data.commit,
        "swhid": data.swhid,
        "files": len(data.resources),
        "bytes": data.bytes,
        "licenses": licences,
        "path": str(folder),
    }
    if as_json:
        _answer("get", content)
        return
    if not quiet:
        _say(f"{data.reference}  {_size(data.bytes)}, {len(data.resources)} files, ", nl=False)
        _say("every SHA-256 as published", fg="green")
        _say(f"commit   {data.commit}\nswhid    {data.swhid}")
        _say(f"licence  {', '.join(licences)}")
    click.echo(folder)


def _print_plan(plan: Any, *, as_json: bool) -> None:
    content = {
        "name": str(plan.reference),
        "folder": str(plan.folder),
        "missing": [resource.path for resource in plan.missing],
        "unsure": [resource.path for resource in plan.unsure],
        "bytes": plan.bytes,
        "inodes": plan.inodes,
        "free_bytes": plan.free_bytes,
        "free_inodes": plan.free_inodes,
    }
    if as_json:
        _answer("plan", content)
        return
    package, subset = plan.reference.package, plan.reference.subset
    hosts = sorted({url.split("/")[2] for r in plan.missing for url in r.urls})
    source = "made here by its recipe" if package.subsets[subset].recipe else ", ".join(hosts)
    licences = [terms.name or terms.path for terms in package.licenses]
    _facts(
        [
            ("package", str(plan.reference)),
            ("licence", ", ".join(licences)),
            ("to get", f"{len(plan.missing)} files, {_size(plan.bytes)}, {plan.inodes} inodes"),
            ("to check", f"{len(plan.unsure)} files" if plan.unsure else ""),
            ("from", source if plan.missing else "everything is here"),
            ("free", f"{_size(plan.free_bytes)}, {plan.free_inodes:,} inodes"),
            ("folder", str(plan.folder)),
        ]
    )


def _overrides(
    _ctx: click.Context, _param: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        message = f"expected NAME=VALUE, got {wrong[0]!r}"
        raise click.BadParameter(message)
    return dict(pair.split("=", 1) for pair in pairs)


@cli.command(short_help="Train the reference model and record the result.")
@_name
@click.option("--epochs", type=int, help="Passes over the training split.")
@click.option("--batch-size", type=int, help="Samples in a batch.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/ID]"
)
@click.option("--set", "overrides", multiple=True, callback=_overrides, metavar="NAME=VALUE",
              help="Another setting of the model.")  # fmt: skip
@_work
def train(
    name: str,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    device: str | None,
    out: Path | None,
    overrides: dict[str, str],
    **options: Any,
) -> None:
    """Train the reference model of NAME and record what every number rests on.

    What is missing on the way is fetched and written first.
    """
    as_json, scale, quiet = options.pop("as_json"), options.pop("scale"), options.pop("quiet")
    settings, progress = _prepare(quiet=quiet or as_json, **options)
    given = {"epochs": epochs, "batch_size": batch_size}
    chosen = overrides | {key: value for key, value in given.items() if value is not None}
    run = sbd.train(
        name, seed=seed, device=device, out=out, scale=scale, settings=settings,
        progress=progress, **chosen,
    )  # fmt: skip
    if as_json:
        _answer("train", {"path": str(run.path), "result": run.result.to_json()})
        return
    if not quiet:
        _print_scores(run.result)
    click.echo(run.path)


def _print_scores(result: Any) -> None:
    names = list(result.metrics.values)
    model = f"{result.model.name} (this run, seed {result.model.seed})"
    scores = {model: result.metrics.values, **result.metrics.comparisons}
    rows = [
        [title, *(f"{values[name]:.4f}" if name in values else "" for name in names)]
        for title, values in scores.items()
    ]
    _table([f"{result.metrics.split} split", *names], rows, ["bold", *[""] * (len(rows) - 1)])
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.run.seconds.items())
    link = result.dataset
    _say(f"{link.name}@{link.version}:{link.subset}  {link.swhid}")
    _say(f"store {result.store.sha256[:16]}…  split {result.split.sha256[:16]}…  {seconds}")


@cli.command(short_help="Check a dataset, a store or a result, link by link.")
@click.argument("target")
@click.option("--replay", is_flag=True, help="Also train again and compare.")
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
@_json
def verify(target: str, *, replay: bool, quiet: bool, as_json: bool) -> None:
    """Follow the links of TARGET and say of each whether it holds.

    TARGET is a package NAME, the folder of a dataset, a store or a run, or a result.json. The exit
    code is 0 where all links hold, 9 where one fails, 1 where one could not be checked here.
    """
    settings, progress = _prepare(quiet=quiet or as_json)
    report = sbd.verify(target, replay=replay, settings=settings, progress=progress)
    if as_json:
        links = [{"name": x.name, "status": x.status, "detail": x.detail} for x in report.links]
        content = {"kind": report.kind, "subject": report.subject, "links": links}
        _answer("verify", content, ok=report.exit_code == 0)
    else:
        colours = {"holds": "", "fails": "red", "not checked": "yellow"}
        rows = [[link.name, link.status, link.detail] for link in report.links]
        _table(
            ["link", "status", "what was found"], rows, [colours[x.status] for x in report.links]
        )
        _verdict(report)
    sys.exit(report.exit_code)


def _verdict(report: Any) -> None:
    subject = f"{report.kind} {report.subject}"
    if report.count("fails"):
        _say(f"{subject}: does not verify, {report.count('fails')} links fail", fg="red")
    elif report.count("not checked"):
        count = report.count("not checked")
        _say(f"{subject}: not fully verified, {count} links could not be checked", fg="yellow")
    else:
        _say(f"{subject}: verified, all {len(report.links)} links hold", fg="green")


@cli.command(short_help="Cite a version or a result.")
@click.argument("target", shell_complete=_complete_name)
@click.option(
    "-f", "--format", "style", type=click.Choice(_STYLES), default="bibtex", show_default=True
)
def cite(target: str, style: str) -> None:
    """Print the citation of TARGET, a package NAME or a result.json, and of what it comes from."""
    click.echo(sbd.cite(target, style).rstrip("\n"))


# --- looking around -------------------------------------------------------------------------------


@cli.command("list", short_help="List the packages.")
@_json
def list_(*, as_json: bool) -> None:
    """List the data packages, their subsets and sizes."""
    entries = sbd.list_packages()
    if as_json:
        _answer("list", {"packages": entries})
        return
    rows = [
        [
            entry["name"],
            entry["version"],
            ", ".join(f"{name} {_size(s['bytes'])}" for name, s in entry["subsets"].items()),
            ", ".join(entry["licenses"]),
            entry["title"],
        ]
        for entry in entries
    ]
    _table(["package", "version", "subsets", "licence", "title"], rows)


@cli.command(short_help="Describe a version.")
@_name
@_json
def info(name: str, *, as_json: bool) -> None:
    """Say what NAME holds, where it comes from, and what of it is here."""
    entry = sbd.info(name)
    if as_json:
        _answer("info", entry)
        return
    task = entry["task"] or {}
    here = sum(file["here"] for file in entry["files"])
    split = entry["splits"] or {}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in split.get("fractions", {}).items())
    _facts(
        [
            ("package", f"{entry['name']}@{entry['version']}:{entry['subset']}"),
            ("title", entry["title"]),
            ("released", entry["released"]),
            ("yanked", entry["yanked"]),
            ("commit", entry["commit"]),
            ("swhid", entry["swhid"]),
            ("licence", ", ".join(entry["licenses"])),
            (
                "subsets",
                ", ".join(f"{n} ({_size(s['bytes'])})" for n, s in entry["subsets"].items()),
            ),
            ("task", task.get("description", "")),
            ("metric", task.get("metric", "")),
            ("split", f"by {split['group']}: {parts}" if split else ""),
            ("here", f"{here} of {len(entry['files'])} files"),
            ("folder", entry["folder"]),
        ]
    )
    click.echo()
    arrays = [
        [a["name"], a["dtype"], ", ".join(a["dims"]), a["units"], a["description"]]
        for a in entry["arrays"]
    ]
    _table(["array", "dtype", "axes", "unit", "what it is"], arrays)


@cli.command(short_help="List the versions of a package.")
@_name
@_json
def versions(name: str, *, as_json: bool) -> None:
    """List every released version of NAME, newest first."""
    entries = sbd.versions(name)[::-1]
    if as_json:
        _answer("versions", {"name": name, "versions": entries})
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
    _table(["version", "date", "commit", "what changed"], rows)


@cli.command(short_help="Print where a version's files lie.")
@_name
def path(name: str) -> None:
    """Print the folder of NAME's files, which must be here."""
    click.echo(sbd.path(name))


# --- arrays ---------------------------------------------------------------------------------------


@cli.command(short_help="Write a version as a Zarr store.")
@_name
@_work
def materialize(name: str, **options: Any) -> None:
    """Write NAME as a Zarr v3 store and print its path."""
    as_json, scale, quiet = options.pop("as_json"), options.pop("scale"), options.pop("quiet")
    settings, progress = _prepare(quiet=quiet or as_json, **options)
    store = sbd.materialize(name, scale=scale, settings=settings, progress=progress)
    if as_json:
        content = {
            "path": str(store.path),
            "sha256": store.digest,
            "manifest_sha256": store.manifest_digest,
            "bytes": store.bytes,
            "identity": dict(store.identity),
        }
        _answer("materialize", content)
        return
    if not quiet:
        _say(f"store    {_size(store.bytes)}\nvalues   sha256 {store.digest}")
    click.echo(store.path)


@cli.command("open", short_help="Show a version's arrays.")
@_name
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
def open_(name: str, *, quiet: bool) -> None:
    """Show the arrays of NAME as xarray sees them: axes, types, units, coordinates."""
    settings, progress = _prepare(quiet=quiet)
    click.echo(sbd.open(name, settings=settings, progress=progress))


# --- housekeeping ---------------------------------------------------------------------------------


@cli.command(short_help="Delete a version's files from the cache.")
@_name
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(name: str, *, yes: bool) -> None:
    """Delete NAME's dataset from the cache; stores and runs stay."""
    if not yes:
        if not sys.stdin.isatty():
            message = "not a terminal: add --yes to delete without being asked"
            raise click.UsageError(message)
        click.confirm(f"delete {name} from the cache?", abort=True, err=True)
    _say(f"{_size(sbd.remove(name))} freed")


@cli.command(short_help="Look for what is missing on this machine.")
@_json
def doctor(*, as_json: bool) -> None:
    """Check programs, libraries, cache and packages."""
    findings = sbd.doctor()
    broken = any(finding.status == "problem" for finding in findings)
    if as_json:
        entries = [
            {"name": f.name, "status": f.status, "detail": f.detail, "cure": f.cure}
            for f in findings
        ]
        _answer("doctor", {"findings": entries}, ok=not broken)
    else:
        colours = {"ok": "", "warning": "yellow", "problem": "red"}
        rows = [
            [f.name, f.status, f"{f.detail}; {f.cure}" if f.cure else f.detail] for f in findings
        ]
        _table(["what", "status", "found"], rows, [colours[f.status] for f in findings])
    sys.exit(1 if broken else 0)


@cli.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options and package names.

    For bash: scibench-data completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        message = f"no completion for {shell}"
        raise click.UsageError(message)
    click.echo(kind(cli, {}, "scibench-data", "_SCIBENCH_DATA_COMPLETE").source())


# --- the one place for errors ---------------------------------------------------------------------


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted; what was finished is kept, run it again to go on"
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}; check the disk and try again"
    return str(error)


def _code(error: BaseException) -> int:
    interrupted = isinstance(error, click.Abort | KeyboardInterrupt)
    return 130 if interrupted else getattr(error, "exit_code", 1)


def _fail(error: BaseException) -> NoReturn:
    """Tell what went wrong, in red and, where it was asked for, as JSON, and end."""
    from scibench_data.terminal import show

    message, code = _message(error), _code(error)
    if "--json" in sys.argv:
        told: dict[str, Any] = {"code": code, "kind": type(error).__name__, "message": message}
        if isinstance(error, DescriptorError):
            told["problems"] = [str(problem) for problem in error.problems]
        _answer("error", {"error": told}, ok=False)
    if isinstance(error, click.UsageError) and error.ctx:
        _say(error.ctx.get_usage())
    first, *more = message.splitlines() or [""]
    for line in [f"error: {first}", *more]:
        _say(show(line, 2000), fg="red")
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    try:
        cli.main(prog_name="scibench-data", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (
        click.ClickException, click.Abort, KeyboardInterrupt, ScibenchError, OSError
    ) as error:  # fmt: skip
        _fail(error)


if __name__ == "__main__":
    main()
