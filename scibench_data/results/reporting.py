"""All results in one table: each model beside the strongest baseline and the ceiling of its data.

Runs are grouped by package, version and number of samples. A score is the mean over all runs of a
group, with the standard deviation; who is ahead is judged run by run.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from scibench_data import catalog
from scibench_data.catalog import Variant, variant_of
from scibench_data.errors import NotFoundError
from scibench_data.results.result import Result, read_result
from scibench_data.settings import Settings, load_settings

RESULT = "result.json"
_BASELINE, _CEILING = "baseline", "ceiling"  # how titles begin; others are of another split


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one model, baseline or ceiling reached in the runs of a group."""

    title: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the runs; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        """Write mean and spread, the latter where there is any."""
        return f"{self.mean:.4f} ± {self.spread:.4f}" if self.spread > 1e-9 else f"{self.mean:.4f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one package, version and number of samples.

    Attributes
    ----------
    data
        ``NAME@VERSION:SUBSET``, of a scaled version with its number of samples.
    samples
        How many samples all parts of the split have together. [1]
    higher_is_better
        Of the metric.
    others
        Baselines and ceilings, best first within each kind.
    scores
        Title -> metric -> scores: all that the runs measured, the model first.
    seconds
        Median time of a training. [s]
    """

    name: str
    data: str
    samples: int
    metric: str
    higher_is_better: bool
    model: Score
    others: tuple[Score, ...]
    scores: Mapping[str, Mapping[str, Score]]
    seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]
    seconds: float
    hardware: str

    @property
    def baseline(self) -> Score | None:
        """The strongest baseline of the task's own split: the one with the best mean."""
        return next((each for each in self.others if each.title.startswith(_BASELINE)), None)

    @property
    def ceiling(self) -> Score | None:
        """What could be reached at most, where somebody computed it."""
        return next((each for each in self.others if each.title.startswith(_CEILING)), None)

    @property
    def ahead(self) -> str:
        """Who is ahead in every single run: ``model``, ``baseline``, or ``neither``."""
        if self.baseline is None:
            return ""
        sign = 1 if self.higher_is_better else -1
        gaps = [
            sign * (a - b) for a, b in zip(self.model.values, self.baseline.values, strict=True)
        ]
        if all(gap > 0 for gap in gaps):
            return "model"
        return "baseline" if all(gap < 0 for gap in gaps) else "neither"

    def to_json(self) -> dict[str, Any]:
        """Return what is printed with ``--json``."""
        return {
            "name": self.name,
            "data": self.data,
            "samples": self.samples,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "scores": {
                title: {metric: list(score.values) for metric, score in scores.items()}
                for title, scores in self.scores.items()
            },
            "ahead": self.ahead,
            "seeds": list(self.seeds),
            "data_seeds": list(self.data_seeds),
            "seconds": self.seconds,
            "hardware": self.hardware,
        }


def report(paths: Iterable[Path | str] = (), *, settings: Settings | None = None) -> list[Row]:
    """Read results and return one row for each package, version and number of samples.

    Parameters
    ----------
    paths
        Result files, folders of runs, or folders that hold such; without any, the results that
        ship with the reference models.

    Raises
    ------
    NotFoundError
        There is no result.
    DescriptorError, VerificationError
        A file is not a sound result.
    """
    chosen = settings or load_settings()
    files = [file for path in paths for file in _files(Path(path))] or _shipped(paths)
    if not files:
        message = "no result there; run: scibench-data train NAME"
        raise NotFoundError(message)
    groups: dict[str, list[Result]] = {}
    for file in files:
        result = read_result(file).result
        groups.setdefault(_data(result), []).append(result)
    rows = [_row(data, results, chosen) for data, results in groups.items()]
    return sorted(rows, key=lambda row: (row.name, row.samples, row.data))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob(RESULT)) or sorted(path.rglob("*.json"))
    if not found:
        message = f"{path}: no result there; name a result.json or a folder of runs"
        raise NotFoundError(message)
    return found


def _shipped(paths: Iterable[Path | str]) -> list[Path]:
    if list(paths):
        return []
    folders = [catalog.model_folder(name) / "results" for name in catalog.model_names()]
    return [file for folder in folders for file in sorted(folder.glob("*.json"))]


def _data(result: Result) -> str:
    """Name the data of a result but for their seed, by which runs are not told apart."""
    base, variant = variant_of(result.dataset.version)
    scaled = str(Variant(scale=variant.scale))
    version = f"{base}+{scaled}" if scaled else base
    return f"{result.dataset.name}@{version}:{result.dataset.subset}"


def _row(data: str, results: Sequence[Result], settings: Settings) -> Row:
    results = sorted(
        results, key=lambda r: (variant_of(r.dataset.version)[1].seed or 0, r.model.seed)
    )
    first = results[0]
    metric = first.metrics.headline
    higher = _higher_is_better(first, settings)
    titles = dict.fromkeys(title for r in results for title in r.metrics.comparisons)
    scores = {
        title: _scores(title, [r.metrics.comparisons.get(title, {}) for r in results])
        for title in titles
    }
    others = [found[metric] for found in scores.values() if metric in found]
    others.sort(key=lambda score: score.mean, reverse=higher)
    own = _scores("model", [r.metrics.values for r in results])
    return Row(
        name=first.model.name,
        data=data,
        samples=sum(first.split.sizes.values()),
        metric=metric,
        higher_is_better=higher,
        model=own[metric],
        others=tuple(others),
        scores={"model": own, **scores},
        seeds=tuple(sorted({r.model.seed for r in results})),
        data_seeds=tuple(sorted({_data_seed(result) for result in results})),
        seconds=statistics.median(r.run.seconds.get("training", 0.0) for r in results),
        hardware=str(first.environment.hardware.get("processor", "")),
    )


def _scores(title: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """Return the metrics that every run of a group has."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {n: Score(title=title, values=tuple(run[n] for run in runs)) for n in names}


def _data_seed(result: Result) -> int:
    """Return the seed of a simulated sample; 0 stands for the released one."""
    return variant_of(result.dataset.version)[1].seed or 0


def _higher_is_better(result: Result, settings: Settings) -> bool:
    base, _ = variant_of(result.dataset.version)
    name = f"{result.dataset.name}@{base}:{result.dataset.subset}"
    task = catalog.resolve(name, settings.home).package.task
    return task.higher_is_better if task else True


# --- as text and as a picture ---------------------------------------------------------------------

HEADINGS = (
    "data", "samples", "metric", "model", "strongest baseline", "ceiling", "ahead", "runs", "time"
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """Return a row as the words of a table."""
    baseline, ceiling = row.baseline, row.ceiling
    arrow = "↑" if row.higher_is_better else "↓"
    seeds = "1 seed" if len(row.seeds) == 1 else f"{len(row.seeds)} seeds"
    others = f" × {len(row.data_seeds)} data seeds" if len(row.data_seeds) > 1 else ""
    return [
        row.data,
        f"{row.samples:,}",
        f"{row.metric} {arrow}",
        str(row.model),
        f"{baseline} {_short(baseline.title)}" if baseline else "",
        f"{ceiling} {_short(ceiling.title)}" if ceiling else "",
        row.ahead,
        f"{seeds}{others}",
        f"{row.seconds:.0f} s",
    ]


def _short(title: str) -> str:
    return f"({title.partition(': ')[2] or title})"


def markdown(rows: Sequence[Row]) -> str:
    """Write the table as Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)]) + "\n"


def metrics_markdown(row: Row) -> str:
    """Write all metrics of a row's runs as a table: the model, the baselines, the ceilings."""
    names = list(row.scores["model"])
    head = f"| {row.data}, {cells(row)[-2]} | {' | '.join(names)} |"
    lines = [head, f"|{'---|' * (len(names) + 1)}"]
    for title, scores in row.scores.items():
        told = [str(scores[name]) if name in scores else "" for name in names]
        lines.append(f"| {title} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw every run, baseline and ceiling: an axis for each package, a line for each size."""
    from matplotlib.figure import Figure

    packages = [list(found) for _, found in groupby(rows, key=lambda row: row.name)]
    lines = [len(found) for found in packages]
    size = (9, 0.5 + 0.6 * len(packages) + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(packages), 1, squeeze=False, height_ratios=[n + 1.5 for n in lines]
    )
    for axes, found in zip(panels[:, 0], packages, strict=True):
        for place, row in enumerate(found):
            _draw_row(axes, place, row)
        axes.set(yticks=range(len(found)), ylim=(-0.6, len(found) - 0.4), ylabel=found[0].name)
        axes.set_yticklabels([f"{row.samples:,}" for row in found])
        axes.yaxis.label.set(rotation=0, ha="right", va="center")
        better = "→" if found[0].higher_is_better else "←"
        axes.set_xlabel(f"{found[0].metric} {better} better", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    title = (
        "runs (blue), baselines (red, the strongest solid), ceiling (green), by number of samples"
    )
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_row(axes: Any, place: int, row: Row) -> None:
    for other in row.others:
        ceiling = other.title.startswith(_CEILING)
        if ceiling or other.title.startswith(_BASELINE):
            first = ceiling or other is row.baseline
            colour = "#228833" if ceiling else "#ee6677"
            style = {"color": colour, "lw": 2 if first else 1, "ls": "-" if first else ":"}
            axes.vlines(other.mean, place - 0.4, place + 0.4, **style)
    values = row.model.values
    axes.plot(values, [place] * len(values), "o", color="#4477aa", alpha=0.6)
