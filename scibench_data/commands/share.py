"""The verbs that pass data on: publish, add, forget, bundle, adopt."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from scibench_data.commands import present
from scibench_data.commands.options import Folder, json_option, name_argument, prepare
from scibench_data.commands.terminal import show, size

_SHOWN = 20  # lines of a list that people are shown


def _list(title: str, lines: tuple[str, ...], **style: Any) -> None:
    """Tell a list to a person: its length, and its beginning."""
    if not lines:
        return
    present.say(f"{title}: {len(lines)}", **style)
    for line in lines[:_SHOWN]:
        present.say(f"  {show(line, 500)}")
    if len(lines) > _SHOWN:
        present.say(f"  and {len(lines) - _SHOWN} more")


_quiet = click.option("-q", "--quiet", is_flag=True, help="Draw no progress.")


@click.command(short_help="Publish a package where others can get it.")
@click.argument("subject", metavar="NAME_OR_FOLDER")
@click.option("--to", required=True, metavar="PLACE",
              help="A folder, s3+https://endpoint/bucket/prefix, or a git URL.")  # fmt: skip
@click.option("--content-url", metavar="URL",
              help="Another publication that has the content, for a git server.")  # fmt: skip
@_quiet
@json_option
def publish(subject: str, to: str, content_url: str | None, *, quiet: bool, as_json: bool) -> None:
    """Publish a version and all before it, as a DataLad dataset with its content.

    Others get it with scibench-data add PLACE, or with datalad clone PLACE and datalad get. A
    folder that holds a datapackage.json is added first.
    """
    from scibench_data.sharing.publishing import publish as publish_

    settings, progress = prepare(quiet=quiet or as_json)
    done = publish_(subject, to, content_url=content_url, settings=settings, progress=progress)
    if as_json:
        present.answer("publish", asdict(done))
        return
    present.say(
        f"{done.name}@{done.version}  {size(done.bytes)}, {done.files} files there, {done.put} new"
    )
    present.say(f"commit   {done.commit}")
    if done.note:
        present.say(f"warning: {done.note}", fg="yellow")
    present.text(done.url)


@click.command(short_help="Add a package from a folder or a URL.")
@click.argument("origin", metavar="FOLDER_OR_URL")
@click.option("--as", "name", metavar="NAME", help="Register it by another name.")
@_quiet
@json_option
def add(origin: str, name: str | None, *, quiet: bool, as_json: bool) -> None:
    """Register a package that does not ship with scibench-data, or its new versions.

    FOLDER_OR_URL is a folder with a datapackage.json, a publication, or any DataLad dataset. Only
    data are taken, never code.
    """
    from scibench_data.sharing.adding import add as add_

    settings, progress = prepare(quiet=quiet or as_json)
    done = add_(origin, name=name, settings=settings, progress=progress)
    if as_json:
        present.answer("add", asdict(done))
        return
    _list("note", done.notes, fg="yellow")
    what = f"added {', '.join(done.versions)}" if done.versions else "nothing new"
    present.say(f"{done.name}  {what}")
    present.text(done.name)


@click.command(short_help="Take back an add.")
@name_argument
@json_option
def forget(name: str, *, as_json: bool) -> None:
    """Unregister the package NAME that was added; what was got of it stays in the cache."""
    from scibench_data.sharing.adding import forget as forget_

    settings, _ = prepare(quiet=True)
    forget_(name, settings=settings)
    if as_json:
        present.answer("forget", {"name": name})
    else:
        present.say(f"{name} is forgotten")


@click.command(short_help="Write a package and its content to one file.")
@name_argument
@click.argument("output", type=Folder(path_type=Path))
@_quiet
@json_option
def bundle(name: str, output: Path, *, quiet: bool, as_json: bool) -> None:
    """Write NAME with all its files to OUTPUT, for a machine without a network.

    There: scibench-data adopt OUTPUT.
    """
    from scibench_data.sharing.bundling import bundle as bundle_

    settings, progress = prepare(quiet=quiet or as_json)
    done = bundle_(name, output, settings=settings, progress=progress)
    if as_json:
        present.answer("bundle", {**asdict(done), "path": str(done.path)})
        return
    _list("not carried, for nobody published their checksum", done.left, fg="yellow")
    present.say(f"{done.name}  {done.files} files, {size(done.bytes)}")
    present.path(done.path)


@click.command(short_help="Take in files that are on this disk.")
@click.argument("source", type=Folder(path_type=Path))
@click.argument("name", required=False)
@click.option("--move", is_flag=True, help="Delete there what was taken.")
@_quiet
@json_option
def adopt(source: Path, name: str | None, *, move: bool, quiet: bool, as_json: bool) -> None:
    """Take in a bundle, or the files of a folder that NAME needs, by their checksum.

    Without NAME, what the newest version of any package needs. Files may have other names.
    """
    from scibench_data.sharing.adoption import adopt as adopt_

    settings, progress = prepare(quiet=quiet or as_json)
    done = adopt_(source, name, move=move, settings=settings, progress=progress)
    if as_json:
        present.answer("adopt", asdict(done))
        return
    _list("nobody knows", done.unknown)
    _list("still missing", done.missing, fg="yellow")
    new = f", {done.added} is new here" if done.added else ""
    present.say(f"{done.taken} files taken, {size(done.bytes)}, {done.known} were here{new}")
