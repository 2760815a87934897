"""Forecast the next fortnight of earthquakes on a grid from the fortnights before it.

The network is a small temporal fusion transformer (Lim et al. 2021,
doi:10.1016/j.ijforecast.2021.03.012), one of the three architectures of the original (Fox et al.
2022, doi:10.3390/geohazards3020011; github.com/mlcommons/science, TensorFlow): variable selection,
an LSTM over the last 26 fortnights of a place, masked attention with one value for all heads, gated
skip connections. The whole model is in this file. It differs:

* Sizes: width 16 and one layer of attention, not 160 and two; `ORIGINAL` has the original's.
* Inputs also tell of neighbours, of the region, and of the last days of a fortnight: aftershocks
  decay within days, so when a shock came in its fortnight matters.
* A linear path beside the network starts at the ridge regression that is its baseline.
* The loss is the squared error of places and of their sum, which the headline is about.
* One step ahead, not 26; no decoder of known future inputs, which earthquakes don't have.

Row t is forecast from rows before t only. The original's targets "3 months back", "6 months back"
and "year back" are windows that *end* with the forecast fortnight: 6 of 7, 12 of 13 and 25 of 26
fortnights are known to every method, and persistence alone scores well. They are given beside the
headline, for comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scibench_data.errors import UsageError
from scibench_data.loader import Data

Array: TypeAlias = npt.NDArray[np.float64]
Batch: TypeAlias = Mapping[str, Tensor]

TOLERANCE = {
    "nnse_summed": 0.01,
    "nnse_mean": 0.003,
    "nnse_3_months": 0.005,
    "nnse_6_months": 0.005,
    "nnse_year": 0.005,
}
"""How far scores may lie apart when a run is repeated elsewhere."""

WINDOWS = (1, 7, 13, 26)  # fortnights of the targets, all end with the forecast one
BACK = (2, 4, 7, 13, 26)  # fortnights of the windows that are inputs
HISTORY = 26  # fortnights that a forecast looks back on
FLOOR = float(np.log10(14.0) / 1.5)  # magnitude of a fortnight without earthquakes
PENALTIES = (1.0, 1e2, 1e3, 1e4, 1e5)  # of the ridge regression: tried on the validation split
RUNS = 400  # forward simulations of a fortnight


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults were chosen for a short training, not searched."""

    epochs: int = 2
    batch_size: int = 8  # windows in a step, each of all chosen places
    learning_rate: float = 0.002  # of AdamW, at its highest
    weight_decay: float = 0.01
    places: int = 96  # places in a step, drawn at random
    supervised: int = 13  # last fortnights of a window whose forecasts count
    width: int = 16
    heads: int = 4
    attention_layers: int = 1
    dropout: float = 0.1
    sum_weight: float = 1.0  # of the squared error of the sum over places


ORIGINAL = Config(
    epochs=2, batch_size=64, learning_rate=5e-7, width=160, attention_layers=2, places=500
)
"""Sizes of the original: ``--set width=160`` and so on."""


# ---- what is known at the end of each fortnight


@dataclass(frozen=True)
class Series:
    """The record at the scored places, in order of time.

    Attributes
    ----------
    targets
        Magnitude of the windows that end with a fortnight, shape (time, place, window).
    inputs
        What is known at the end of a fortnight, shape (time, place, input).
    """

    targets: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.float32]


def window(energy: Array, length: int) -> Array:
    """Return the magnitude of the last `length` rows of energies; at the start, of fewer.

    Examples
    --------
    >>> window(np.array([[1.0], [999.0], [1.0]]), 2).round(3).tolist()
    [[0.0], [2.0], [2.0]]
    """
    sums = np.concatenate([np.zeros_like(energy[:1]), np.cumsum(energy, axis=0)])
    first = np.maximum(np.arange(len(energy)) + 1 - length, 0)
    # a difference of large sums loses a quiet window; no window has less than its quiet days
    quiet = np.minimum(energy.min(), 14.0) * (np.arange(len(energy)) + 1 - first)
    magnitude: Array = np.log10(np.maximum(sums[1:] - sums[first], quiet[:, None])) / 1.5
    return magnitude


def around(grid: Array, reach: int) -> Array:
    """Sum a (time, y, x) grid over the square that reaches so far from each pixel."""
    padded = np.pad(grid, ((0, 0), (reach + 1, reach), (reach + 1, reach))).cumsum(1).cumsum(2)
    side = 2 * reach + 1
    total: Array = padded[:, side:, side:] - padded[:, :-side, side:]
    total -= padded[:, side:, :-side] - padded[:, :-side, :-side]
    return total


def read_series(data: Data) -> Series:
    """Compute targets and inputs; each row uses nothing after its fortnight."""
    dataset = data.dataset
    names = ("log_energy", "multiplicity", "multiplicity_large")
    level, count, large = (dataset[name].values.astype(np.float64) for name in names)
    day, three = _last_days(data)
    chosen = dataset["scored"].values.astype(bool)
    energy = 10.0 ** (1.5 * level[:, chosen])
    magnitude = level[:, chosen]
    grids = [
        magnitude - FLOOR,
        *(count[:, chosen] ** 0.25, large[:, chosen] ** 0.25),
        *(window(energy, length) for length in BACK),
        10.0 ** (0.375 * (magnitude - 3.29)),
        *(around(count, reach)[:, chosen] ** 0.25 for reach in (1, 3)),
        around(large, 1)[:, chosen] ** 0.25,
        np.cumsum(magnitude, axis=0) / np.arange(1.0, len(level) + 1.0)[:, None],
        *(days[:, chosen] ** 0.25 for days in (day, three)),
        *(around(days, 2)[:, chosen] ** 0.25 for days in (day, three)),
    ]
    region = [
        *(np.log10(1.0 + grid.sum((1, 2))) for grid in (count, day, three)),
        level.max((1, 2)),
        np.log10((10.0 ** (0.75 * level)).sum((1, 2))),
        magnitude.mean(1),
    ]
    wide = [np.broadcast_to(values[:, None], magnitude.shape) for values in region]
    targets = [window(energy, length) for length in WINDOWS]
    return Series(
        np.stack(targets, axis=-1).astype(np.float32),
        np.stack([*grids, *wide], axis=-1).astype(np.float32),
    )


def _last_days(data: Data) -> tuple[Array, Array]:
    """Count the earthquakes of the last day, and of the last three, of each fortnight."""
    daily = data.dataset["daily_multiplicity"].data
    fortnights = data.dataset.sizes["fortnight"]
    first = len(daily) - 14 * fortnights
    counts = [
        np.asarray(daily[first + 14 * start : first + 14 * (start + 64)]).reshape(
            -1, 14, *daily.shape[1:]
        )
        for start in range(0, fortnights, 64)
    ]
    day = np.concatenate([part[:, -1] for part in counts]).astype(np.float64)
    three = np.concatenate([part[:, -3:].sum(1) for part in counts]).astype(np.float64)
    return day, three


# ---- ridge regression


@dataclass(frozen=True)
class Linear:
    """Targets of the next row from standardised inputs: ``inputs @ weight + bias``."""

    centre: Array  # (input,)
    scale: Array  # (input,)
    weight: Array  # (input, window)
    bias: Array  # (window,)

    def forecast(self, inputs: npt.NDArray[np.float32]) -> Array:
        """Return forecasts, shape (..., window)."""
        forecast: Array = (inputs - self.centre) / self.scale @ self.weight + self.bias
        return forecast


def ridge(inputs: npt.NDArray[Any], targets: npt.NDArray[Any], penalty: float) -> Linear:
    """Fit by least squares with a penalty on the weights of standardised inputs.

    Parameters
    ----------
    inputs, targets
        Shapes (n, input) and (n, window).

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> ridge(x, 2.0 * x + 1.0, 1e-9).forecast(np.array([[5.0]])).round(6).tolist()
    [[11.0]]
    """
    x, y = inputs.astype(np.float64), targets.astype(np.float64)
    centre, scale = x.mean(0), x.std(0) + 1e-9
    x = (x - centre) / scale
    bias = y.mean(0)
    weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - bias))
    return Linear(centre, scale, weight, bias)


def fit_ridge(series: Series, splits: Mapping[str, npt.NDArray[np.int64]]) -> Linear:
    """Fit one linear model for all places; the penalty is the best on the validation split."""
    train, validation = splits["train"], splits["validation"]
    x, y = series.inputs[train - 1], series.targets[train]
    fits = [ridge(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), p) for p in PENALTIES]
    return max(fits, key=lambda fit: _summed(series, fit.forecast, validation))


def fit_ridge_of_sum(series: Series, splits: Mapping[str, npt.NDArray[np.int64]]) -> Linear:
    """Fit the mean over places from the means of their inputs, with the best penalty."""
    train, validation = splits["train"], splits["validation"]
    x, y = series.inputs.mean(1), series.targets.mean(1)
    fits = [ridge(x[train - 1], y[train], penalty) for penalty in (1e-3, 1e-1, 1.0, 10.0, 100.0)]

    def score(fit: Linear) -> float:
        return float(nnse(y[validation, 0], fit.forecast(x[validation - 1])[:, 0]))

    return max(fits, key=score)


def _summed(series: Series, forecast: Any, rows: npt.NDArray[np.int64]) -> float:
    observed = series.targets[rows, :, 0].sum(1)
    return float(nnse(observed, forecast(series.inputs[rows - 1])[..., 0].sum(1)))


# ---- the network


class Gate(nn.Module):
    """A gated skip connection: norm(x + sigmoid(a) * b), with a and b linear in y."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add y to x, both of shape (..., width)."""
        normed: Tensor = self.norm(x + functional.glu(self.linear(self.dropout(y)), dim=-1))
        return normed


class Residual(nn.Module):
    """The gated residual network of the temporal fusion transformer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, width))
        self.gate = Gate(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x, shape (..., width)."""
        out: Tensor = self.gate(x, self.inner(x))
        return out


class Attention(nn.Module):
    """Masked attention whose heads share one value, so that their weights can be averaged."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            message = f"tevolop model: width {width}, {heads} heads; make width a multiple of heads"
            raise UsageError(message)
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width // heads)
        self.out = nn.Linear(width // heads, width)

    def forward(self, x: Tensor, last: int) -> Tensor:
        """Attend from the `last` fortnights of x, shape (n, time, width), to those before each."""
        n, time, width = x.shape
        query = self.query(x[:, -last:]).view(n, last, self.heads, -1).transpose(1, 2)
        key = self.key(x).view(n, time, self.heads, -1).transpose(1, 2)
        logits = query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5
        later = torch.ones(last, time, dtype=torch.bool, device=x.device).triu(time - last + 1)
        weight = logits.masked_fill(later, -torch.inf).softmax(-1).mean(1)  # (n, last, time)
        attended: Tensor = self.out(weight @ self.value(x))
        return attended


class Forecaster(nn.Module):
    """Windows of inputs of a place to the targets of the row after each fortnight."""

    targets: Tensor
    inputs: Tensor
    linear: Tensor
    unit: Tensor
    sum_unit: Tensor

    def __init__(self, config: Config, series: Series, splits: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        fit = fit_ridge(series, splits)
        train = splits["train"]
        count, width = series.inputs.shape[-1], config.width
        self.first = int(train[0])  # rows before are history only
        y = series.targets[train].astype(np.float64)
        error = y.mean(1) - fit.forecast(series.inputs[train - 1]).mean(1)
        for name, value, kept in (
            # the record is not part of the weights
            ("inputs", ((series.inputs - fit.centre) / fit.scale).astype(np.float32), False),
            ("targets", series.targets, False),
            ("unit", y.std((0, 1)).astype(np.float32), True),
            ("sum_unit", error.std(0).astype(np.float32), True),
        ):
            self.register_buffer(name, torch.from_numpy(np.asarray(value)), persistent=kept)
        self.path = nn.Linear(count, len(WINDOWS))
        with torch.no_grad():
            self.path.weight.copy_(torch.from_numpy(fit.weight.T))
            self.path.bias.copy_(torch.from_numpy(fit.bias))
        self.select = nn.Sequential(nn.Linear(count, width), nn.ELU(), nn.Linear(width, count))
        self.embed = nn.Linear(count, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.after_lstm = Gate(width, config.dropout)
        layers = range(config.attention_layers)
        self.attention = nn.ModuleList(Attention(width, config.heads) for _ in layers)
        self.after_attention = nn.ModuleList(Gate(width, config.dropout) for _ in layers)
        self.last = Residual(width, config.dropout)
        self.head = nn.Linear(width, len(WINDOWS))
        nn.init.zeros_(self.head.weight)  # training starts at the ridge regression
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, last: int) -> Tensor:
        """Forecast the rows after the `last` fortnights of each window.

        Parameters
        ----------
        inputs
            Standardised, shape (n, time, input).

        Returns
        -------
            Magnitudes, shape (n, last, window).
        """
        bounded = inputs.clamp(-8.0, 8.0)
        chosen = self.select(bounded).softmax(-1) * bounded.shape[-1]
        x = self.embed(chosen * bounded)
        x = self.after_lstm(x, self.lstm(x)[0])
        for attend, gate in zip(self.attention, self.after_attention, strict=True):
            length = x.shape[1] if attend is not self.attention[-1] else last
            x = gate(x[:, -length:], attend(x, length))
        out: Tensor = self.path(inputs[:, -last:]) + self.unit * self.head(self.last(x[:, -last:]))
        return out

    def windows(self, rows: Tensor, places: Tensor) -> Tensor:
        """Return the inputs of the fortnights before each row, (row * place, HISTORY, input)."""
        time = rows[:, None] + torch.arange(-HISTORY, 0, device=rows.device)
        return self.inputs[time[:, None, :], places[None, :, None]].flatten(0, 1)

    def loss(self, batch: Batch, progress: float) -> Tensor:  # noqa: ARG002  (the loop gives it)
        """Return the squared errors of places and of their mean, in units of their spread."""
        rows, last = batch["index"], self.config.supervised
        count = self.targets.shape[1]
        places = torch.randperm(count)[: self.config.places].to(rows.device)
        forecast = self(self.windows(rows, places), last)
        forecast = forecast.view(len(rows), len(places), last, -1)
        time = rows[:, None] + torch.arange(1 - last, 1, device=rows.device)
        observed = self.targets[time[:, None, :], places[None, :, None]]
        counts = (time >= self.first).to(forecast)[..., None]  # (row, last, 1)
        error = observed - forecast
        alone = (error / self.unit).square().mean(1)
        together = (error.mean(1) / self.sum_unit).square()
        both = counts * (alone + self.config.sum_weight * together)
        loss: Tensor = both.sum() / (counts.sum() * both.shape[-1])
        return loss

    @torch.no_grad()
    def forecast(self, rows: npt.NDArray[np.int64]) -> Array:
        """Forecast rows from those before them, shape (row, place, window)."""
        places = torch.arange(self.targets.shape[1], device=self.inputs.device)
        parts = [
            self(self.windows(part.to(places.device), places), 1).view(
                len(part), len(places), len(WINDOWS)
            )
            for part in torch.split(torch.from_numpy(rows), 8)
        ]
        return torch.cat(parts).cpu().numpy().astype(np.float64)


def build(config: Config, data: Data) -> Forecaster:
    """Read the record and start at the ridge regression.

    Raises
    ------
    UsageError
        No place has enough earthquakes.
    """
    if not data.dataset["scored"].values.any():
        message = "tevolop model: no place has enough earthquakes; take a longer record"
        raise UsageError(message)
    return Forecaster(config, read_series(data), data.splits)


def optimizer(model: Forecaster, config: Config) -> torch.optim.Optimizer:
    """Return AdamW; the linear path learns ten times as slowly, as it starts fitted."""
    path = list(model.path.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("path.")]
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": path, "lr": 0.1 * config.learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


# ---- scores


def nnse(observed: npt.NDArray[Any], forecast: npt.NDArray[Any]) -> Array:
    """Return the normalised Nash-Sutcliffe efficiency along the first axis.

    NNSE = 1 / (2 - NSE), NSE = 1 - sum (O - P)^2 / sum (O - mean O)^2: 1 is perfect and 0.5 what
    the mean of the observations scores. NaN where these never change.

    Examples
    --------
    >>> observed = np.array([1.0, 2.0, 3.0])
    >>> [float(nnse(observed, np.array(p))) for p in ([1, 2, 3], [2, 2, 2], [3, 2, 1])]
    [1.0, 0.5, 0.2]
    """
    observed, forecast = observed.astype(np.float64), forecast.astype(np.float64)
    spread = ((observed - observed.mean(0)) ** 2).sum(0)
    error = ((observed - forecast) ** 2).sum(0)
    return np.where(spread > 0.0, spread / np.where(spread > 0.0, spread + error, 1.0), np.nan)


def scores(observed: npt.NDArray[Any], forecast: npt.NDArray[Any]) -> dict[str, float]:
    """Score forecasts of shape (time, place, window) by the names of the task."""
    each = np.nanmean(nnse(observed, forecast), axis=0)
    return {
        "nnse_summed": float(nnse(observed[..., 0].sum(1), forecast[..., 0].sum(1))),
        "nnse_mean": float(each[0]),
        "nnse_3_months": float(each[1]),
        "nnse_6_months": float(each[2]),
        "nnse_year": float(each[3]),
    }


def evaluate(model: Forecaster, data: Data, split: str) -> dict[str, float]:
    """Score the forecasts of a split's fortnights.

    Returns
    -------
    dict
        ``nnse_summed``: NNSE of the next fortnight's magnitudes summed over the scored places.
        ``nnse_mean``: NNSE of each place, mean over places. ``nnse_3_months``, ``nnse_6_months``,
        ``nnse_year``: the same of the original's windows, which end with the next fortnight.
    """
    rows = data.splits[split]
    return scores(model.targets.cpu().numpy()[rows], model.forecast(rows))


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Score the test split by persistence, climatology, ridge regression and the true model."""
    series, train, test = read_series(data), data.splits["train"], data.splits["test"]
    observed = series.targets[test]
    climatology = np.broadcast_to(series.targets[train].mean(0), observed.shape)
    linear = fit_ridge(series, data.splits).forecast(series.inputs[test - 1])
    total = fit_ridge_of_sum(series, data.splits).forecast(series.inputs[test - 1].mean(1))
    shifted = linear + (total - linear.mean(1))[:, None]
    compared = {
        "baseline: persistence": scores(observed, series.targets[test - 1]),
        "baseline: climatology of the place": scores(observed, climatology),
        "baseline: ridge": scores(observed, linear),
        "baseline: ridge, sum fitted apart": scores(observed, shifted),
    }
    if "etas" in data.dataset:
        compared["ceiling: true ETAS model"] = scores(observed, forecast_truly(data, test))
    return compared


# ---- the true model


class Etas:
    """The process that made a simulated catalogue; the data card has its formulae."""

    def __init__(self, data: Data, seed: int = 0) -> None:
        dataset = data.dataset
        names = dataset["etas"].attrs["flag_meanings"].split()
        self.p = dict(zip(names, dataset["etas"].values.tolist(), strict=True))
        self.faults: Array = dataset["faults"].values
        columns = ("time", "latitude", "longitude", "magnitude")
        self.catalogue: Array = np.stack([dataset[f"event_{name}"].values for name in columns])
        self.random = np.random.default_rng(seed)
        self.whole = 1.0 - (1.0 + self.p["triggering"] / self.p["c"]) ** (1.0 - self.p["p"])

    def productivity(self, magnitude: Array) -> Array:
        """Return how many earthquakes one triggers on average."""
        above = self.p["alpha"] * (magnitude - self.p["magnitude"])
        return np.asarray(self.p["productivity"] * 10.0**above)

    def share(self, days: Array) -> Array:
        """Return the share of triggered earthquakes that come within so many days."""
        days = np.clip(days, 0.0, self.p["triggering"])
        return np.asarray((1.0 - (1.0 + days / self.p["c"]) ** (1.0 - self.p["p"])) / self.whole)

    def delay(self, share: Array) -> Array:
        """Invert `share`. [d]"""
        p = self.p
        return np.asarray(p["c"] * ((1.0 - self.whole * share) ** (1.0 / (1.0 - p["p"])) - 1.0))

    def trigger(self, parents: Array, end: float, number: npt.NDArray[Any], start: Array) -> Array:
        """Draw earthquakes that `parents` trigger until `end`, `number` of each, as columns.

        Parameters
        ----------
        parents, number
            Rows as `catalogue` and the run, shape (5, n), and how many each triggers, shape (n,).
        start
            Share of the triggered earthquakes that came before the forecast, shape (n,).
        """
        p = self.p
        one = np.repeat(np.arange(number.size), number.astype(np.int64))
        time, latitude, longitude, magnitude, run = parents[:, one]
        low, high = start[one], self.share(end - time)
        later, farther, towards = self.random.random((3, one.size))
        area = p["d"] * 10.0 ** (p["gamma"] * (magnitude - p["magnitude"]))
        distance = np.sqrt(area * ((1.0 - farther) ** (1.0 / (1.0 - p["q"])) - 1.0))
        degrees, angle = distance / p["kilometres"], 2.0 * np.pi * towards
        return self._inside(
            time + self.delay(low + (high - low) * later),
            latitude + degrees * np.sin(angle),
            longitude + degrees * np.cos(angle) / p["latitude_scale"],
            run,
        )

    def background(self, start: float, days: float, runs: int) -> Array:
        """Draw the earthquakes that nothing triggered in so many runs, as columns."""
        p = self.p
        n = int(self.random.poisson(runs * days * p["background"]))
        x, y, x_end, y_end, rate = self.faults.T
        weight = rate * np.hypot(x_end - x, y_end - y)
        fault = self.random.choice(len(weight), n, p=weight / weight.sum())
        along, off, east, north, when = self.random.random((5, n))
        across = p["across"] * self.random.standard_normal((2, n))
        anywhere = off < p["off_fault"]
        longitude = x[fault] + (x_end - x)[fault] * along + across[0]
        latitude = y[fault] + (y_end - y)[fault] * along + across[1]
        return self._inside(
            start + days * when,
            np.where(anywhere, 32.0 + 4.0 * north, latitude),
            np.where(anywhere, -120.0 + 6.0 * east, longitude),
            np.floor(runs * self.random.random(n)),
        )

    def _inside(self, time: Array, latitude: Array, longitude: Array, run: Array) -> Array:
        """Give magnitudes and drop what lies outside of the region."""
        p = self.p
        share = 1.0 - 10.0 ** (-p["b"] * (p["max_magnitude"] - p["magnitude"]))
        above = -np.log10(1.0 - share * self.random.random(time.size)) / p["b"]
        inside = (latitude >= 32.0) & (latitude < 36.0) & (longitude >= -120.0) & (longitude < -114)
        rows = np.stack([time, latitude, longitude, np.round(p["magnitude"] + above, 2), run])
        return np.asarray(rows[:, inside])

    def runs(self, start: float, days: float, runs: int) -> Array:
        """Simulate the days after `start` so many times, given all earthquakes before it.

        Returns
        -------
            Time, latitude, longitude, magnitude and run of the earthquakes, shape (5, n).
        """
        end, time = start + days, self.catalogue[0]
        near = slice(*np.searchsorted(time, [start - self.p["triggering"], start]))
        past = np.concatenate([self.catalogue[:, near], np.zeros((1, near.stop - near.start))])
        before = self.share(start - past[0])
        mean = self.productivity(past[3]) * (self.share(end - past[0]) - before)
        children = self.trigger(past, end, self.random.poisson(runs * mean), before)
        children[4] = np.floor(runs * self.random.random(children.shape[1]))
        newest = np.concatenate([children, self.background(start, days, runs)], axis=1)
        every = [newest]
        while newest.shape[1]:
            mean = self.productivity(newest[3]) * self.share(end - newest[0])
            number = self.random.poisson(mean)
            newest = self.trigger(newest, end, number, np.zeros(number.size))
            every.append(newest)
        return np.concatenate(every, axis=1)


def forecast_truly(data: Data, rows: npt.NDArray[np.int64]) -> Array:
    """Forecast by forward simulation of the model that made the data, its history given.

    The mean over `RUNS` simulations of each fortnight is the best forecast of any method, in the
    expected squared error, but for the error of the mean.

    Returns
    -------
        Shape (row, place, window).
    """
    dataset, etas = data.dataset, Etas(data)
    chosen = np.flatnonzero(dataset["scored"].values)
    place = np.full(40 * 60, -1)
    place[chosen] = np.arange(chosen.size)
    level = dataset["log_energy"].values.reshape(-1, 2400)[:, chosen].astype(np.float64)
    energy = 10.0 ** (1.5 * level)
    forecast = np.empty((rows.size, chosen.size, len(WINDOWS)))
    for number, row in enumerate(rows):
        start = float(dataset["time"].values[row])
        _, latitude, longitude, magnitude, run = etas.runs(start, 14.0, RUNS)
        y = np.minimum((36.0 - latitude) * 10.0, 39.0).astype(np.int64)
        x = np.minimum((longitude + 120.0) * 10.0, 59.0).astype(np.int64)
        here = place[60 * y + x]
        key = (run.astype(np.int64) * chosen.size + here)[here >= 0]
        cell, inverse = np.unique(key, return_inverse=True)
        # a day with earthquakes is no quiet one; that two may share a day changes 1e-4 at most
        new = 13.0 + np.bincount(inverse, weights=10.0 ** (1.5 * magnitude[here >= 0]))
        where = cell % chosen.size
        for w, length in enumerate(WINDOWS):
            known = energy[row - length + 1 : row].sum(0)
            quiet = np.log10(known + 14.0) / 1.5
            more = np.log10(known[where] + new) / 1.5 - quiet[where]
            total = np.bincount(where, weights=more, minlength=chosen.size)
            forecast[number, :, w] = quiet + total / RUNS
    return forecast


# ---- pictures


def figures(model: Forecaster, data: Data, folder: Path) -> None:
    """Draw ``forecast.png``: the sum over places in the test years, observed and forecast."""
    from matplotlib.figure import Figure

    rows = data.splits["test"]
    years = 1950.0 + data.dataset["time"].values[rows] / 365.25
    observed = model.targets.cpu().numpy()[rows, :, 0].sum(1)
    lines = [
        ("observed", "0.6", observed),
        ("model", "#4477aa", model.forecast(rows)[..., 0].sum(1)),
    ]
    if "etas" in data.dataset:
        truth = forecast_truly(data, rows)[..., 0].sum(1)
        lines.append(("true ETAS model", "#ee6677", truth))
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, color, values in lines:
        axes.plot(years, values, color=color, lw=0.9, label=name)
    axes.set(xlabel="year", ylabel="magnitude of the fortnight,\nsummed over places")
    axes.legend(fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "forecast.png", dpi=130)
