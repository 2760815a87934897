"""The command line: each verb parses, calls the Python function of its name, and prints.

Results go to standard output, everything else to standard error. One place, `main`, turns errors
into messages and exit codes.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from scibench_data.commands import cached, chain, own, present, results, share, versions
from scibench_data.commands.terminal import show
from scibench_data.errors import DescriptorError, ScibenchError

_SECTIONS = {
    "The main job": ("get", "train", "report", "verify", "cite", "lock"),
    "Look around": ("list", "search", "info", "versions", "diff", "path"),
    "Work with arrays": ("materialize", "open"),
    "Your own data": ("init", "check", "add", "forget", "publish"),
    "Without a network": ("bundle", "adopt"),
    "Housekeeping": ("accept", "cache", "remove", "doctor", "completion"),
}


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


for _command in (
    chain.get, chain.train, chain.verify, chain.cite, chain.list_, chain.search, chain.info,
    chain.versions, chain.path, chain.materialize, chain.open_, chain.accept, chain.remove,
    chain.doctor, versions.diff, versions.lock, own.init, own.check,
    cached.cache, share.add, share.forget, share.publish,
    share.bundle, share.adopt, results.report,
):  # fmt: skip
    cli.add_command(_command)


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


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C came.

    Where a plain KeyboardInterrupt leaves an ``exec``, which makes dataclasses, ``python -m`` ends
    by the signal in the end, whatever exit code it is asked for.
    """


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupted


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
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is not wanted
            signal.signal(signal.SIGINT, _interrupt)
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
