"""What the verbs of the command line share: options, settings from them, warnings."""

from collections.abc import Callable
from typing import Any

import click

import scibench_data as sbd  # its names load their modules when they are used: --help stays quick
from scibench_data.commands import present
from scibench_data.commands.terminal import choose_progress
from scibench_data.progress import SILENT, Progress


def complete_name(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """Offer the packages whose names begin so, for the shell's completion."""
    from scibench_data.catalog import package_names

    home = sbd.load_settings().home
    return [name for name in package_names(home) if name.startswith(typed)]


def name_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument NAME."""
    return click.argument("name", shell_complete=complete_name)(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option for one JSON object as the answer."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def work_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of verbs that may take a while."""
    for option in (
        click.option(
            "--data-seed",
            type=click.IntRange(1),
            metavar="SEED",
            help="Simulate with other random numbers.",
        ),
        click.option("--scale", type=click.IntRange(1), help="Simulate this many samples instead."),
        click.option(
            "-J",
            "--jobs",
            type=int,
            help="Files fetched or made, and shards written, at the same time.",
        ),
        click.option("--no-wait", is_flag=True, help="Fail where another process holds the lock."),
        click.option("--offline", is_flag=True, default=None, help="Open no connection."),
        click.option("-q", "--quiet", is_flag=True, help="Print paths only, draw no progress."),
    ):
        function = option(function)
    return json_option(function)


def simulated(options: dict[str, Any]) -> dict[str, Any]:
    """Take what is asked of a simulation out of the options of a verb."""
    return {name: options.pop(name) for name in ("scale", "data_seed")}


def prepare(
    *,
    quiet: bool,
    jobs: int | None = None,
    offline: bool | None = None,
    no_wait: bool = False,
) -> "tuple[sbd.Settings, Progress]":
    """Return the settings with the options in them, and what draws progress."""
    settings = sbd.load_settings(
        jobs=jobs, connections=jobs, offline=offline, lock_timeout=0.0 if no_wait else None
    )
    if quiet or not settings.progress:
        return settings, SILENT
    return settings, choose_progress(wanted=True)


class Folder(click.Path):
    """A path that is not empty: an empty text would mean the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty text."""
        if value == "":
            self.fail("expected a folder, got an empty text; '.' is the current one", param, ctx)
        return super().convert(value, param, ctx)


def warn_if_yanked(name: str) -> str:
    """Warn of a version that should not be used any more, and return the reason.

    Where a lock file in the working directory chose the version, that is told too.
    """
    from scibench_data.keeping.browsing import yanked
    from scibench_data.versions.locking import pinned

    if "@" not in name and (version := pinned(name)):
        present.say(f"{name.partition(':')[0]}@{version}: pinned in scibench.lock", fg="cyan")
    reason, advice = yanked(name)
    present.yanked(reason, advice)
    return reason
