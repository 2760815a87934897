"""The verbs for data of one's own: describe a folder of files, and check what was described."""

import sys
from pathlib import Path
from typing import Any

import click

from scibench_data.commands import present
from scibench_data.commands.options import Folder, json_option, prepare
from scibench_data.commands.terminal import show, size


@click.command(short_help="Describe a folder of files as a data package.")
@click.argument("folder", type=Folder(path_type=Path, file_okay=False))
@click.option("--from", "source", type=Folder(path_type=Path, file_okay=False),
              help="Where the files lie.  [default: in FOLDER]")  # fmt: skip
@click.option("--name", help="Name of the package.  [default: that of FOLDER]")
@click.option("--title", help="What it is, in one line.")
@click.option("--description", help="What it is, from 50 characters on.")
@click.option("--license", metavar="SPDX", help="Terms of use, such as CC-BY-4.0.")
@click.option("--author", "authors", multiple=True, metavar='"GIVEN FAMILY"')
@click.option("--organization", "organizations", multiple=True, metavar="NAME")
@click.option("--keyword", "keywords", multiple=True, metavar="WORD")
@click.option("--subset", metavar="NAME", help="Put all files into this one subset.")
@click.option("--version", help="Version to write.  [default: 0.1.0, then counted up]")
@click.option("--update", is_flag=True, help="Take in what changed; what you wrote stays.")
@click.option("--force", is_flag=True, help="Describe more than 20,000 files.")
@click.option("-J", "--jobs", type=int, help="Files hashed at the same time.")
@click.option("-q", "--quiet", is_flag=True, help="Print the path only, draw no progress.")
@json_option
def init(
    folder: Path,
    source: Path | None,
    *,
    jobs: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Describe the files in FOLDER: write its datapackage.json and print where it is.

    Sizes, checksums, media types and table schemas come from the files. Where the first level is
    folders, each is a subset; else all files are the subset `data`. Files stay where they are.
    """
    from scibench_data.describing import authoring

    settings, progress = prepare(quiet=quiet or as_json, jobs=jobs)
    given = {key: value for key, value in options.items() if value}
    draft = authoring.init(folder, source=source, settings=settings, progress=progress, **given)
    if as_json:
        content = {
            "path": str(draft.path),
            "name": draft.name,
            "version": draft.version,
            "files": draft.files,
            "bytes": draft.bytes,
            "notes": list(draft.notes),
            "needed": list(draft.needed),
        }
        present.answer("init", content)
        return
    if not quiet:
        told = f"{draft.name} {draft.version}  {draft.files:,} files, {size(draft.bytes)}"
        present.say(told, fg="green")
        for note in draft.notes:
            present.say(f"  {show(note, 2000)}")
        for line in draft.needed:
            present.say(f"  still missing, {line}; edit the file, or add --update", fg="yellow")
    present.path(draft.path)


@click.command(short_help="Say everything that is wrong with a package.")
@click.argument("target")
@click.option("--links", is_flag=True, help="Also ask every source whether it is there.")
@click.option("-J", "--jobs", type=int, help="Files hashed, or links asked, at the same time.")
@click.option("-q", "--quiet", is_flag=True, help="Print problems only, draw no progress.")
@json_option
def check(target: str, *, links: bool, jobs: int | None, quiet: bool, as_json: bool) -> None:
    """Say everything that is wrong with TARGET: a descriptor, a package folder, or a NAME.

    The exit code is 1 where there is a problem; warnings fail nothing.
    """
    from scibench_data.describing import checking

    settings, progress = prepare(quiet=quiet or as_json, jobs=jobs)
    findings = checking.check(target, links=links, settings=settings, progress=progress)
    sound = checking.is_sound(findings)
    if as_json:
        entries = [
            {"level": f.level, "file": f.file, "place": f.place, "message": f.message}
            for f in findings
        ]
        present.answer("check", {"target": target, "findings": entries}, ok=sound)
    else:
        colours = {"problem": "red", "warning": "yellow"}
        for each in findings:
            if each.level == "problem" or not quiet:
                told = show(f"{each.level}  {each}", 2000)
                click.secho(told, fg=colours[each.level])
        count = sum(each.level == "problem" for each in findings)
        warnings = f"{len(findings) - count} warnings"
        verdict = f"sound, {warnings}" if sound else f"{count} problems, {warnings}"
        present.say(f"{show(target)}: {verdict}", fg="green" if sound else "red")
    sys.exit(0 if sound else 1)
