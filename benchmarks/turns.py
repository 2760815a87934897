"""Cases that each have a process of their own and take turns, so that noise meets all alike.

A round starts a fresh process for every case, waits until each has imported and opened what it
needs, and then lets one after the other do its first turn, its second, and so on: what stands side
by side in a ratio ran within the same second or two, and no case meets another's memory, threads
or settings.
"""

import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from measure import surroundings

Reading = dict[str, Any]
"""``bytes`` done in ``seconds``, ``processor_seconds``, ``peak_mib`` above what was there before
the first turn, and what else the case or `take_turns`'s caller tells of the turn."""

Job = Callable[[int, list[Any]], Iterator[int]]
"""Does turn n, yielding the bytes of each step; it may stop being asked at any step.

Where samples know their numbers it appends those of each batch to the list.
"""

Round = dict[str, list[Reading]]


def take_turns(
    cases: Mapping[str, Callable[[], Job]],
    turns: int,
    *,
    longest: float = 60.0,
    before: Callable[[], Reading] = dict,
) -> Round:
    """Run one round.

    Parameters
    ----------
    cases
        Name -> what makes the job, in the new process and untimed; must pickle.
    longest
        A turn is cut short between two steps after this time. [s]
    before
        Is called before each turn; what it returns is added to the reading.
    """
    context = multiprocessing.get_context("spawn")
    started = {}
    for name, prepare in cases.items():
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, prepare, longest))
        process.start()
        there.close()
        started[name] = process, here
    readings: Round = {name: [] for name in cases}
    try:
        for name, (_, connection) in started.items():  # noqa: B007  (the message below names it)
            connection.recv()  # it is ready
        for turn in range(turns):
            for name, (_, connection) in started.items():
                told = before()
                connection.send(turn)
                readings[name].append(connection.recv() | told)
    except EOFError as error:
        message = f"{name}: its process ended early; what it said stands above"
        raise RuntimeError(message) from error
    finally:
        for process, connection in started.values():
            connection.close()
            process.join(20)
            process.kill()
    return readings


def _serve(connection: Connection, prepare: Callable[[], Job], longest: float) -> None:
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, for a case's workers
    job = prepare()
    base, own = _memory("VmRSS"), _Watch()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now (proc_pid_clear_refs)
    connection.send("ready")
    while True:
        try:
            turn = connection.recv()
        except (EOFError, ConnectionError):
            return
        reading = _time(job, turn, longest)
        peaks = {"peak_mib": _memory("VmHWM") - base, "own_peak_mib": own.highest - own.base}
        connection.send(reading | peaks)


class _Watch(threading.Thread):
    """Looks every few milliseconds at how much memory is the process's own.

    The system notes the highest of all resident pages only, those of mapped files among them, which
    it takes back whenever it wants to.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.highest = _memory("RssAnon")
        self.start()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.highest = max(self.highest, _memory("RssAnon"))
            time.sleep(0.01)


def _time(job: Job, turn: int, longest: float) -> Reading:
    order: list[Any] = []
    done, processor, started = 0, _processor_time(), time.perf_counter()
    for size in job(turn, order):
        done += size
        if time.perf_counter() - started > longest:
            break
    seconds = time.perf_counter() - started
    return {
        "bytes": done,
        "seconds": round(seconds, 5),
        "processor_seconds": round(_processor_time() - processor, 3),
        **_judge(order),
    }


def _judge(order: list[Any]) -> Reading:
    """Say how many samples came, how many different ones, and how well they were shuffled.

    ``spread`` is the variance of the batches' mean number, as a multiple of what drawing without
    replacement gives: 1 is a uniform shuffle, the size of a batch is none.
    """
    if not order:
        return {}
    parts = [np.asarray(part, np.float64) for part in order]
    numbers = np.concatenate(parts)
    found: Reading = {"samples": len(numbers), "distinct": len(np.unique(numbers))}
    size, total = len(parts[0]), len(numbers)
    whole = [part.mean() for part in parts if len(part) == size]
    if found["distinct"] == numbers.max() + 1 and len(whole) > 3 and size < total:
        drawn = (total**2 - 1) / 12 / size * (1 - (size - 1) / (total - 1))
        off = np.square(np.array(whole) - (total - 1) / 2).mean()
        found["spread"] = round(float(off / drawn), 2)
    return found


def _processor_time() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _memory(field: str) -> float:
    """Return a field of this process's status. [MiB]"""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(field)


def summarise(rounds: Sequence[Round], reference: str) -> dict[str, dict[str, Any]]:
    """Return for each case its rates and its ratios to the reference within the same round.

    The first turn of a round and the later ones stand apart: a first one meets fresh memory.
    """
    names = dict.fromkeys(name for readings in rounds for name in readings)
    return {
        name: _summary([readings for readings in rounds if name in readings], name, reference)
        for name in names
    }


def _summary(rounds: Sequence[Round], name: str, reference: str) -> dict[str, Any]:
    parts = {"first": slice(0, 1), "later": slice(1, None)}
    if len(rounds[0][name]) == 1:
        parts = {"once": slice(None)}
    summary: dict[str, Any] = {}
    for part, which in parts.items():
        rates = [_rate(readings[name][which]) for readings in rounds]
        against = [_rate(readings[reference][which]) for readings in rounds]
        ratios = [ours / theirs for ours, theirs in zip(rates, against, strict=True)]
        summary[part] = {
            "gb_per_second": round(statistics.median(rates), 4),
            "ratio": round(statistics.median(ratios), 4),
            "lowest": round(min(ratios), 4),
            "highest": round(max(ratios), 4),
        }
    readings = [reading for round_ in rounds for reading in round_[name]]
    summary["processor_seconds_per_gb"] = round(
        statistics.median(r["processor_seconds"] / r["bytes"] * 1e9 for r in readings), 3
    )
    spreads = [reading["spread"] for reading in readings if "spread" in reading]
    if spreads:
        summary["spread"] = statistics.median(spreads)
    for key in ("peak_mib", "own_peak_mib"):
        summary[key] = max(reading[key] for reading in readings)
    return summary


def _rate(readings: Sequence[Reading]) -> float:
    return statistics.median(reading["bytes"] / reading["seconds"] / 1e9 for reading in readings)


def report(
    rounds: Sequence[Round], reference: str, target: Path | None, **more: Any
) -> dict[str, dict[str, Any]]:
    """Print a table; where asked write it with every reading to `target`, and a plot beside it."""
    summary = summarise(rounds, reference)
    parts = [part for part in ("first", "later", "once") if part in summary[reference]]
    columns = "".join(f"{part + ' GB/s':>12}{'ratio':>7}{'(range)':>13}" for part in parts)
    print(f"{'case':<46}{columns}{'cpu s/GB':>10}{'own MiB':>10}{'peak MiB':>10}")
    for name, row in summary.items():
        cells = "".join(
            f"{row[part]['gb_per_second']:>12.3f}{row[part]['ratio']:>7.2f}"
            f"{row[part]['lowest']:>7.2f}-{row[part]['highest']:<5.2f}"
            for part in parts
        )
        cost = f"{row['processor_seconds_per_gb']:>10.2f}{row['own_peak_mib']:>10.0f}"
        cost += f"{row['peak_mib']:>10.0f}"
        print(f"{name:<46}{cells}{cost}", flush=True)
    if target is not None:
        content = {
            "command": [Path(word).name for word in sys.argv],
            "reference": reference,
            "summary": summary,
            "rounds": rounds,
            **more,
            **surroundings(),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draw(summary, reference, target.with_suffix(".png"))
    return summary


def draw(summary: Mapping[str, Mapping[str, Any]], reference: str, target: Path) -> None:
    """Draw ratios as bars with their range over the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(summary)[::-1]
    parts = [part for part in ("first", "later", "once") if part in summary[reference]]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(names)), layout="constrained")
    height = 0.8 / len(parts)
    for number, part in enumerate(parts):
        rows = [summary[name][part] for name in names]
        places = [place + (len(parts) - 1 - number) * height - 0.2 for place in range(len(names))]
        ratios = [row["ratio"] for row in rows]
        below = [row["ratio"] - row["lowest"] for row in rows]
        above = [row["highest"] - row["ratio"] for row in rows]
        axes.barh(places, ratios, height, label=part, xerr=(below, above))
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"speed, as a multiple of: {reference}")
    figure.legend(loc="outside upper right", ncols=len(parts))
    figure.savefig(target, dpi=120)
    plt.close(figure)
