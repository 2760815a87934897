"""The command line: each verb parses, calls the Python function of its name, and prints.

Results go to standard output, everything else to standard error. One place, `main`, turns errors
into messages and exit codes.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import scibench_data as sbd  # its names load their modules when they are used: --help stays quick
from scibench_data import present
from scibench_data.errors import DescriptorError, ScibenchError
from scibench_data.progress import SILENT, Progress
from scibench_data.terminal import choose_progress, show, size, table

_SECTIONS = {
    "The main job": ("get", "train", "verify", "cite"),
    "Look around": ("list", "info", "versions", "path"),
    "Work with arrays": ("materialize", "open"),
    "Housekeeping": ("remove", "doctor", "completion"),
}
_SEED = click.IntRange(0, 2**32 - 1)  # what torch and NumPy both take
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
    return settings, choose_progress(wanted=True)


class _Folder(click.Path):
    """A path that is not empty: an empty text would mean the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty text."""
        if value == "":
            self.fail("expected a folder, got an empty text; '.' is the current one", param, ctx)
        return super().convert(value, param, ctx)


def _warn_if_yanked(name: str) -> str:
    """Warn of a version that should not be used any more, and return the reason."""
    from scibench_data.api import yanked

    reason, advice = yanked(name)
    present.yanked(reason, advice)
    return reason


# --- the main job ---------------------------------------------------------------------------------


@cli.command(short_help="Get a version of a package, every file verified.")
@_name
@click.option("--to", type=_Folder(path_type=Path, file_okay=False),
              help="Also place plain files in this folder.")  # fmt: skip
@click.option("--check", is_flag=True, help="Hash every file again.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@_work
def get(name: str, to: Path | None, *, check: bool, dry_run: bool, **options: Any) -> None:
    """Get NAME, verify every SHA-256, and print where the files lie.

    What a recipe can make is made on this machine; what is published elsewhere is fetched.
    """
    as_json, scale, quiet = options.pop("as_json"), options.pop("scale"), options.pop("quiet")
    settings, progress = _prepare(quiet=quiet or as_json, **options)
    reason = _warn_if_yanked(name)
    plan = sbd.plan(name, scale=scale, settings=settings, check=check)
    if dry_run:
        present.plan(plan, to, reason, as_json=as_json)
        return
    data = sbd.get(name, to=to, scale=scale, check=check, settings=settings, progress=progress)
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
        present.say(f"licence  {', '.join(licences)}")
    present.path(folder)


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
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")
@click.option("--out", type=_Folder(path_type=Path), help="Folder of the run.  [default: runs/ID]")
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
    reason = _warn_if_yanked(name)
    run = sbd.train(
        name, seed=seed, device=device, out=out, scale=scale, settings=settings,
        progress=progress, **chosen,
    )  # fmt: skip
    if as_json:
        content = {"path": str(run.path), "yanked": reason, "result": run.result.to_json()}
        present.answer("train", content)
        return
    if not quiet:
        present.scores(run.result)
    present.path(run.path)


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
        present.answer("verify", content, ok=report.exit_code == 0)
    else:
        colours = {"holds": "", "fails": "red", "not checked": "yellow", "stated": "dim"}
        rows = [[link.name, link.status, link.detail] for link in report.links]
        table(["link", "status", "what was found"], rows, [colours[x.status] for x in report.links])
        present.verdict(report)
    sys.exit(report.exit_code)


@cli.command(short_help="Cite a version or a result.")
@click.argument("target", shell_complete=_complete_name)
@click.option(
    "-f", "--format", "style", type=click.Choice(_STYLES), default="bibtex", show_default=True
)
@_json
def cite(target: str, style: str, *, as_json: bool) -> None:
    """Print the citation of TARGET, a package NAME or a result.json, and of what it comes from."""
    from scibench_data.api import cited_version

    reason = _warn_if_yanked(cited_version(target))
    told = sbd.cite(target, style).rstrip("\n")
    if as_json:
        present.answer("cite", {"style": style, "text": told, "yanked": reason})
    else:
        present.text(told)


# --- looking around -------------------------------------------------------------------------------


@cli.command("list", short_help="List the packages.")
@_json
def list_(*, as_json: bool) -> None:
    """List the data packages, their subsets and sizes."""
    entries = sbd.list_packages()
    if as_json:
        present.answer("list", {"packages": entries})
    else:
        present.packages(entries)


@cli.command(short_help="Describe a version.")
@_name
@_json
def info(name: str, *, as_json: bool) -> None:
    """Say what NAME holds, where it comes from, and what of it is here."""
    entry = sbd.info(name)
    entry["yanked"] = _warn_if_yanked(name)
    if as_json:
        present.answer("info", entry)
    else:
        present.info(entry)


@cli.command(short_help="List the versions of a package.")
@_name
@_json
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


@cli.command(short_help="Print where a version's files lie.")
@_name
@_json
def path(name: str, *, as_json: bool) -> None:
    """Print the folder of NAME's files, which must be here."""
    folder = sbd.path(name)
    if as_json:
        present.answer("path", {"path": str(folder)})
    else:
        present.path(folder)


# --- arrays ---------------------------------------------------------------------------------------


@cli.command(short_help="Write a version as a Zarr store.")
@_name
@_work
def materialize(name: str, **options: Any) -> None:
    """Write NAME as a Zarr v3 store and print its path."""
    as_json, scale, quiet = options.pop("as_json"), options.pop("scale"), options.pop("quiet")
    settings, progress = _prepare(quiet=quiet or as_json, **options)
    reason = _warn_if_yanked(name)
    store = sbd.materialize(name, scale=scale, settings=settings, progress=progress)
    if as_json:
        content = {
            "path": str(store.path),
            "sha256": store.digest,
            "manifest_sha256": store.manifest_digest,
            "bytes": store.bytes,
            "identity": dict(store.identity),
            "yanked": reason,
        }
        present.answer("materialize", content)
        return
    if not quiet:
        present.say(f"store    {size(store.bytes)}\nvalues   sha256 {store.digest}")
    present.path(store.path)


@cli.command("open", short_help="Show a version's arrays.")
@_name
@click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")
@_json
def open_(name: str, *, quiet: bool, as_json: bool) -> None:
    """Show the arrays of NAME as xarray sees them: axes, types, units, coordinates."""
    settings, progress = _prepare(quiet=quiet or as_json)
    reason = _warn_if_yanked(name)
    arrays = sbd.open(name, settings=settings, progress=progress)
    if as_json:
        present.answer("open", {**present.describe(arrays), "yanked": reason})
    else:
        click.echo(arrays)


# --- housekeeping ---------------------------------------------------------------------------------


@cli.command(short_help="Delete a version's files from the cache.")
@_name
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_json
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
        present.answer("doctor", {"findings": entries}, ok=not broken)
    else:
        colours = {"ok": "", "warning": "yellow", "problem": "red"}
        rows = [
            [f.name, f.status, f"{f.detail}; {f.cure}" if f.cure else f.detail] for f in findings
        ]
        table(["what", "status", "found"], rows, [colours[f.status] for f in findings])
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

_EXPECTED = (click.ClickException, ScibenchError, OSError)
_STOPPED = (click.Abort, KeyboardInterrupt)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: everything is cleaned up as after Ctrl-C."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _stop(error: BaseException) -> tuple[str, int]:
    """Word an interrupt and return its exit code; click turns it into an Abort."""
    terminated = isinstance(error, _Terminated) or isinstance(error.__cause__, _Terminated)
    word, code = ("terminated", 143) if terminated else ("interrupted", 130)
    return f"{word}; what was finished is kept, run it again to go on", code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what to tell of an error, and the exit code."""
    if isinstance(error, _STOPPED):
        return _stop(error)
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, ScibenchError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}; check the disk and try again", 1
    told = " ".join(str(error).split())
    return (
        f"internal error: {type(error).__name__}: {told}; report it, with the traceback that "
        "SCIBENCH_DATA_TRACEBACK=1 shows"
    ), 1


def _json_wanted(words: Sequence[str]) -> bool:
    """Tell whether ``--json`` is given as an option, also where the words can't all be parsed.

    It is none after ``--``, nor as the value of another option.
    """
    verb = next((cli.commands[word] for word in words if word in cli.commands), cli)
    options = [option for option in verb.params if isinstance(option, click.Option)]
    takes = {name for option in options if not option.is_flag for name in option.opts}
    rest = iter(words)
    for word in rest:
        if word in {"--", "--json"}:
            return word == "--json"
        if word in takes:
            next(rest, None)
    return False


def _fail(error: BaseException) -> NoReturn:
    """Tell what went wrong, in red and, where it was asked for, as JSON, and end."""
    message, code = _explain(error)
    if _json_wanted(sys.argv[1:]):
        told: dict[str, Any] = {"code": code, "kind": type(error).__name__, "message": message}
        if isinstance(error, DescriptorError):
            told["problems"] = [str(problem) for problem in error.problems]
        present.answer("error", {"error": told}, ok=False)
    if os.environ.get("SCIBENCH_DATA_TRACEBACK") and not isinstance(error, _EXPECTED + _STOPPED):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        present.say(message)
        sys.exit(code)
    if isinstance(error, click.UsageError) and error.ctx:
        present.say(error.ctx.get_usage())
    first, *more = message.splitlines() or [""]
    title = "" if first.startswith("internal error") else "error: "
    for line in [f"{title}{first}", *more]:
        present.say(show(line, 2000), fg="red")
    sys.exit(code)


def _run() -> None:
    try:
        signal.signal(signal.SIGTERM, _terminate)
        cli.main(prog_name="scibench-data", standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the last place to be told)
        _fail(error)


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except BrokenPipeError:  # the reader of our output has gone, as head does
        gone = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(gone, stream.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
