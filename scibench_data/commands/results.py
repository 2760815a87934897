"""Verbs that look at many results at once."""

from pathlib import Path

import click

import scibench_data as sbd
from scibench_data.commands import present
from scibench_data.commands.options import json_option
from scibench_data.commands.terminal import table


@click.command(short_help="Draw up the table of all results.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--metrics", is_flag=True, help="Print every metric, as one table for each package.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also draw it.")  # fmt: skip
@json_option
def report(
    paths: tuple[Path, ...], plot: Path | None, *, markdown: bool, metrics: bool, as_json: bool
) -> None:
    """Compare models with the strongest baseline and the ceiling of their data.

    PATHS are result files, runs, or folders of them; without any, the results that ship with the
    reference models.
    """
    from scibench_data.results import reporting

    rows = sbd.report(paths)
    if plot:
        reporting.draw(rows, plot)
    if as_json:
        present.answer("report", {"rows": [row.to_json() for row in rows]})
    elif metrics:
        present.text("\n".join(map(reporting.metrics_markdown, rows)).rstrip("\n"))
    elif markdown:
        present.text(reporting.markdown(rows).rstrip("\n"))
    else:
        styles = {"model": "", "baseline": "yellow", "neither": "dim"}
        told = [styles.get(row.ahead, "") for row in rows]
        table(reporting.HEADINGS, [reporting.cells(row) for row in rows], told)
