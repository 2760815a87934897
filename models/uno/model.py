"""Drug response from gene expression and molecular descriptors: two towers and a dense stack.

The network is Uno of the CANDLE benchmarks (github.com/ECP-CANDLE/Benchmarks, ``Pilot1/Uno``;
MLCommons Science's benchmark ``uno``): three dense layers for each kind of feature, then dense
layers over both to one number, the AUC. The whole model is in this file. `ORIGINAL` gives the
original's size, 16,224,001 parameters for 942 genes and 5,270 descriptors. It differs:

* Cell lines of validation and test are not seen in training. The original's split is random by
  response, so that each cell line and each drug of its test was seen; its scores are given too.
* Features are standardised by the training responses. Weights start as PyTorch has them.
* AdamW with a rise and a fall of the learning rate takes the place of Adamax. Dropout is 0 at the
  small size, and ends with the training: the original's can stay on in prediction.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scibench_data.descriptor import SplitRule
from scibench_data.loader import Data
from scibench_data.sampling import Indices, split

Batch = Mapping[str, Tensor]
Floats = npt.NDArray[np.floating[Any]]

TOLERANCE = {"r2": 0.03, "mse": 0.0005, "mae": 0.002}
"""How far scores may lie apart when a run is repeated elsewhere."""

ORIGINAL: Mapping[str, Any] = {
    "epochs": 50,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "width": 1000,
    "layers": 5,
    "dropout": 0.1,
}
"""The original's settings, where they are not the defaults."""

MOST = 20_000
"""Responses of each split that `compare` holds in memory; more are thinned out evenly."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation cell lines of the sample."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3  # the highest, of AdamW
    weight_decay: float = 1e-2
    width: int = 64  # units of every dense layer
    tower_layers: int = 3  # dense layers for each kind of feature
    layers: int = 3  # dense layers over both
    dropout: float = 0.0  # after every dense layer


class Uno(nn.Module):
    """A tower for gene expression, a tower for descriptors, dense layers over both."""

    centre: Tensor
    scale: Tensor

    def __init__(self, config: Config, genes: int, descriptors: int, response: float) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0  # share of the training that is done
        self.genes = genes
        self.register_buffer("centre", torch.zeros(genes + descriptors))
        self.register_buffer("scale", torch.ones(genes + descriptors))
        width = config.width
        self.expression = _dense(genes, config.tower_layers, config)
        self.descriptors = _dense(descriptors, config.tower_layers, config)
        self.both = _dense(2 * width, config.layers, config)
        self.response = nn.Linear(width, 1)
        nn.init.constant_(self.response.bias, response)

    def forward(self, expression: Tensor, descriptors: Tensor) -> Tensor:
        """Return the AUC, shape (b,), for features as they are stored, (b, gene) and (b, d)."""
        cell = (expression - self.centre[: self.genes]) / self.scale[: self.genes]
        drug = (descriptors - self.centre[self.genes :]) / self.scale[self.genes :]
        joined = torch.cat([self.expression(cell), self.descriptors(drug)], dim=1)
        auc: Tensor = self.response(self.both(joined))[:, 0]
        return auc

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the mean squared error; `progress` is the share of the training that is done."""
        self.progress = progress
        found = self(batch["expression"].float(), batch["descriptors"].float())
        return functional.mse_loss(found, batch["auc"].float())


def _dense(features: int, layers: int, config: Config) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(nn.Linear(config.width if layer else features, config.width))
        parts += [nn.ReLU(), nn.Dropout(config.dropout)]
    return nn.Sequential(*parts)


def build(config: Config, data: Data) -> Uno:
    """Size the network by the features and learn their mean and spread from the training split.

    Examples
    --------
    >>> import xarray as xr
    >>> class Responses:
    ...     dataset = xr.Dataset(coords={"gene": range(942), "descriptor": range(5270)})
    ...
    ...     def batches(self, split, size, **order):
    ...         features = {"expression": torch.randn(4, 942), "descriptors": torch.randn(4, 5270)}
    ...         return [features | {"auc": torch.rand(4)}]
    >>> original = build(Config(**ORIGINAL), Responses())
    >>> sum(parameter.numel() for parameter in original.parameters())
    16224001
    """
    sizes = data.dataset.sizes
    width = sizes["gene"] + sizes["descriptor"]
    total, squares = torch.zeros(width).double(), torch.zeros(width).double()
    response, count = 0.0, 0
    for batch in data.batches("train", 4096):
        features = torch.cat([batch["expression"], batch["descriptors"]], dim=1).double()
        total += features.sum(0)
        squares += features.square().sum(0)
        response += float(batch["auc"].double().sum())
        count += len(features)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0.0).sqrt()
    model = Uno(config, sizes["gene"], sizes["descriptor"], response / count)
    model.centre.copy_(mean)
    model.scale.copy_(torch.where(deviation > 1e-5, deviation, 1.0))
    return model


def optimizer(model: Uno, config: Config) -> torch.optim.Optimizer:
    """Return AdamW, whose learning rate follows `rate`."""
    adam = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def pace(current: torch.optim.Optimizer, *_: Any) -> None:
        for group in current.param_groups:
            group["lr"] = config.learning_rate * rate(model.progress)

    adam.register_step_pre_hook(pace)
    return adam


def rate(progress: float) -> float:
    """Return the learning rate as a share of the highest: a rise to 20 %, then half a cosine.

    Examples
    --------
    >>> [round(rate(p), 2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if progress < 0.2:
        return 0.04 + 0.96 * progress / 0.2
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.2) / 0.8)


# ---- scores


def scores(truth: Floats, found: Floats) -> dict[str, float]:
    """Score predicted responses.

    Parameters
    ----------
    truth, found
        Measured and predicted AUC, shape (n,).

    Returns
    -------
    dict
        ``r2``: 1 - squared error / squared deviation of `truth` from its own mean; 1 is perfect,
        0 is what that mean scores, and less is worse. ``mse`` and ``mae``: mean squared and mean
        absolute error. [1]

    Examples
    --------
    >>> scores(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0]))
    {'r2': 0.5, 'mse': 0.3333333333333333, 'mae': 0.3333333333333333}
    """
    true, error = truth.astype(np.float64), found.astype(np.float64) - truth
    squares = float((error**2).sum())
    return {
        "r2": 1.0 - squares / float(((true - true.mean()) ** 2).sum()),
        "mse": squares / error.size,
        "mae": float(np.abs(error).mean()),
    }


@torch.no_grad()
def predict(model: Uno, data: Data, split: str) -> tuple[Floats, Floats]:
    """Return measured and predicted AUC of every response of a split."""
    device = next(model.parameters()).device
    truth, found = [], []
    for batch in data.batches(split, 4096):
        features = (batch[name].to(device).float() for name in ("expression", "descriptors"))
        found.append(model(*features).cpu())
        truth.append(batch["auc"])
    return torch.cat(truth).numpy(), torch.cat(found).numpy()


def evaluate(model: Uno, data: Data, split: str) -> dict[str, float]:
    """Score every response of a split; see `scores`."""
    return scores(*predict(model, data, split))


# ---- other splits


@dataclass(frozen=True)
class _View:
    """The same responses, divided in another way and thinned to `MOST`, held in memory."""

    dataset: Any
    splits: Mapping[str, Indices]
    columns: Mapping[str, Mapping[str, Tensor]]

    def batches(
        self, split: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Iterate once over a split, as `scibench_data.loader.Source` does."""
        columns = self.columns[split]
        order = np.arange(len(columns["auc"]))
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for start in range(0, len(order), batch_size):
            rows = torch.from_numpy(order[start : start + batch_size])
            yield {name: values[rows] for name, values in columns.items()}


def _view(data: Data, splits: Mapping[str, Indices]) -> _View:
    kept = {name: _thinned(rows) for name, rows in splits.items()}
    columns = {name: _columns(data, rows) for name, rows in kept.items()}
    return _View(data.dataset, kept, columns)


def _thinned(rows: Indices) -> Indices:
    step = max(1, -(-len(rows) // MOST))
    return rows[::step]


def _columns(data: Data, rows: Indices) -> dict[str, Tensor]:
    """Read what the model needs of some responses."""
    names = ("expression", "descriptors", "auc")
    chosen = data.dataset[list(names)].isel(response=rows)
    return {name: torch.from_numpy(np.array(chosen[name].values, np.float32)) for name in names}


def other_splits(data: Data) -> dict[str, Mapping[str, Indices]]:
    """Divide the responses in two other ways.

    ``random``: the file's own split, by response. ``drug-blind``: seven tenths of the drugs for
    training, a tenth for validation, two tenths for the test.
    """
    part = np.asarray(data.dataset["part"].values)
    drug = np.asarray(data.dataset["drug"].values)
    names = ("train", "validation", "test")
    rule = SplitRule(
        group="drug",
        fractions=dict(zip(names, (0.7, 0.1, 0.2), strict=True)),
        seed=0,
        reason="drugs that were not seen",
    )
    return {
        "random": {name: np.flatnonzero(part == number) for number, name in enumerate(names)},
        "drug-blind": split(drug, rule),
    }


def _fit(config: Config, view: _View) -> Uno:
    """Train on another split as the harness does, with seed 0; torch's own state is left alone."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = build(config, view)
        steps = optimizer(model, config)
        total = config.epochs * -(-len(view.splits["train"]) // config.batch_size)
        done = 0
        for epoch in range(config.epochs):
            for batch in view.batches("train", config.batch_size, shuffle=True, epoch=epoch):
                loss = model.loss(batch, done / total)
                steps.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # of torch
                steps.step()
                done += 1
        return model.eval()


# ---- baselines


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:
    """Score baselines on the test split, and all of it, with the network, on two other splits.

    Settings are those with which a baseline does best on the validation split.

    * gradient boosting on the same features, with the best number of trees
    * ridge regression on the same features
    * mean per drug and, where the cell line was seen, its mean deviation
    * the ceiling: the AUC without noise, where it is known
    """
    compared = _baselines(data, _view(data, data.splits), "")
    for name, splits in other_splits(data).items():
        if min(len(rows) for rows in splits.values()) == 0:
            continue
        view = _view(data, splits)
        compared[f"{name} split: this network"] = scores(*predict(_fit(config, view), view, "test"))
        compared |= _baselines(data, view, f"{name} split, ")
    return compared


def _baselines(data: Data, view: _View, before: str) -> dict[str, dict[str, float]]:
    """Score the baselines on one split; `before` stands in front of their names."""
    x: dict[str, Floats] = {}
    y: dict[str, Floats] = {}
    for name, columns in view.columns.items():
        x[name] = np.concatenate([columns["expression"], columns["descriptors"]], axis=1)
        y[name] = columns["auc"].numpy().astype(np.float64)
    centre, scale = x["train"].mean(0), np.maximum(x["train"].std(0), 1e-6)
    x = {name: (values - centre) / scale for name, values in x.items()}
    found = {
        "baseline: gradient boosting": _boosting(x, y, LEAVES[:1] if before else LEAVES),
        "baseline: ridge": _ridge(x, y),
        "baseline: drug mean + cell line mean": _means(data, view, y["train"]),
    }
    if "true_auc" in data.dataset.variables:
        rows = view.splits["test"]
        found["ceiling: AUC without noise"] = np.asarray(data.dataset["true_auc"].values)[rows]
    return {f"{before}{name}": scores(y["test"], values) for name, values in found.items()}


TREES = 300  # of the boosting at most
LEAVES = (31, 63)  # of a tree; both are tried on the headline's split, the first on the others


def _boosting(x: Mapping[str, Floats], y: Mapping[str, Floats], leaves: Sequence[int]) -> Floats:
    """Predict the test split by gradient-boosted trees, with the best size and number of them."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    best = math.inf
    chosen: Floats = np.zeros(0)
    for most in leaves:
        forest = HistGradientBoostingRegressor(
            max_iter=TREES,
            learning_rate=0.1,
            max_leaf_nodes=most,
            early_stopping=False,
            random_state=0,
        ).fit(x["train"], y["train"])
        staged = [np.asarray(p) for p in _staged(forest, x["validation"])]
        errors = [float(((p - y["validation"]) ** 2).mean()) for p in staged]
        trees = int(np.argmin(errors))
        if errors[trees] < best:
            best = errors[trees]
            chosen = next(p for n, p in enumerate(_staged(forest, x["test"])) if n == trees)
    return chosen


def _staged(forest: Any, x: Floats) -> Iterator[Floats]:
    predictions: Iterator[Floats] = forest.staged_predict(x)
    return predictions


def _ridge(x: Mapping[str, Floats], y: Mapping[str, Floats]) -> Floats:
    """Predict the test split by ridge regression."""
    from sklearn.linear_model import Ridge

    penalties: Sequence[float] = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4)
    fitted = [Ridge(alpha).fit(x["train"], y["train"]) for alpha in penalties]
    errors = [((f.predict(x["validation"]) - y["validation"]) ** 2).mean() for f in fitted]
    predicted: Floats = fitted[int(np.argmin(errors))].predict(x["test"])
    return predicted


def _means(data: Data, view: _View, train: Floats) -> Floats:
    """Predict by the drug's mean and the cell line's mean deviation; what was not seen adds 0."""
    found = np.full(len(view.splits["test"]), train.mean())
    rest = train - train.mean()
    for name in ("drug", "cell"):
        numbers = np.asarray(data.dataset[name].values)
        seen, asked = (numbers[view.splits[part]] for part in ("train", "test"))
        size = int(numbers.max()) + 1
        count = np.bincount(seen, minlength=size)
        mean = np.bincount(seen, weights=rest, minlength=size) / np.maximum(count, 1)
        rest = rest - mean[seen]
        found = found + mean[asked]
    return found


# ---- pictures


def figures(model: Uno, data: Data, folder: Path) -> None:
    """Draw ``responses.png``, predicted over measured AUC, and ``cells.png``, R2 of each line."""
    from matplotlib.figure import Figure

    truth, found = predict(model, data, "test")
    figure = Figure(figsize=(3.6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", ls=":")
    axes.plot(truth, found, ".", ms=2, alpha=0.4, color="#4477aa")
    axes.set(
        xlabel="measured AUC", ylabel="predicted AUC", title=f"R2 {scores(truth, found)['r2']:.3f}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "responses.png", dpi=130)
    cell = np.asarray(data.dataset["cell"].values)[data.splits["test"]]
    lines = [cell == number for number in np.unique(cell) if (cell == number).sum() > 2]
    each = sorted(scores(truth[rows], found[rows])["r2"] for rows in lines)
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(each)), each, color="#4477aa")
    axes.set(xlabel="cell lines of the test, sorted", ylabel="R2 over its drugs", xticks=[])
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "cells.png", dpi=130)
