"""Monoclinic or tetragonal, from a pattern of diffuse multiple scattering: a small network.

The network is DMSNet of sciml-bench (github.com/stfc-sciml/sciml-bench, ``dms_structure``, by
K. Butler, P. Austin, J. Thiyagalingam, T. Hey and others): two convolutions of 4 x 4 with pooling
and batch normalisation, then three dense layers with dropout. The whole model is in this file.
`ORIGINAL` gives the original's size, 44,977,866 parameters at 487 x 195 x 3. It differs:

* Each pattern is brought to mean 0 and standard deviation 1, and its channels to their mean.
* Training patterns are moved by up to `Config.shift` pixels: about what a crystal that sits a
  little differently does to them.
* One learning rate for all steps becomes a rise and a cosine fall; there is no early stopping,
  which the original does on the test patterns.
* The loss is the cross entropy of the logits, the original's the binary cross entropy of both
  softmax outputs. Patterns are shuffled, and none is left out at the end of an epoch.
* Accuracy is the share of patterns in the right class. The original's inference code adds up the
  softmax outputs of both classes, which is 1 for every pattern: it reports 100 % always.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scibench_data.loader import Data

Batch = Mapping[str, Tensor]
Floats = npt.NDArray[np.floating[Any]]

TOLERANCE = {"accuracy": 0.03, "roc_auc": 0.02}
"""How far scores may lie apart when a run is repeated elsewhere."""

ORIGINAL: Mapping[str, Any] = {
    "epochs": 30,
    "learning_rate": 1e-4,
    "hidden": 512,
    "channels": 3,
    "shift": 0,
}
"""The original's settings, where they are not the defaults."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation patterns of the sample."""

    epochs: int = 25
    batch_size: int = 32
    learning_rate: float = 1e-3  # the highest, of AdamW
    weight_decay: float = 1e-2
    filters: int = 8  # of the first convolution; the second has twice as many
    hidden: int = 128  # units of the first dense layer; the second has half as many
    dropout: float = 0.5  # after both dense layers
    channels: int = 1  # 1: their mean; 3: as they are
    shift: int = 3  # training patterns are moved by at most so much [px]


class DMSNet(nn.Module):
    """Two convolutions and three dense layers; gives a logit for each class."""

    def __init__(self, config: Config, rows: int, columns: int) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0  # share of the training that is done
        first, second, hidden = config.filters, 2 * config.filters, config.hidden
        self.features = nn.Sequential(
            *_convolution(config.channels, first), *_convolution(first, second), nn.Flatten()
        )
        left = [((size - 3) // 2 - 3) // 2 for size in (rows, columns)]
        self.head = nn.Sequential(
            nn.Linear(second * math.prod(left), hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden // 2, 2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (b, 2), of patterns (b, y, x, channel) as they are stored."""
        logits: Tensor = self.head(self.features(self._normalise(images)))
        return logits

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the cross entropy; `progress` is the share of the training that is done."""
        self.progress = progress
        images = moved(batch["images"], self.config.shift)
        return functional.cross_entropy(self(images), batch["label"].long())

    def _normalise(self, images: Tensor) -> Tensor:
        """Turn patterns into (b, channel, y, x) with mean 0 and standard deviation 1."""
        values = images.float().movedim(-1, 1)
        if self.config.channels == 1:
            values = values.mean(1, keepdim=True)
        deviation, mean = torch.std_mean(values, dim=(1, 2, 3), keepdim=True)
        return (values - mean) / deviation.clamp_min(1e-6)


def _convolution(channels: int, filters: int) -> tuple[nn.Module, ...]:
    """Return the original's order: convolution, ReLU, pooling, batch normalisation."""
    return (
        nn.Conv2d(channels, filters, kernel_size=4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(filters),
    )


def moved(images: Tensor, shift: int) -> Tensor:
    """Move each pattern by up to `shift` whole pixels along each axis; edges are repeated.

    Drawn with torch's global seed, so that a run is repeatable.

    Parameters
    ----------
    images
        Shape (b, y, x, channel).

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> moved(torch.arange(9.0).view(1, 3, 3, 1), 0).flatten().tolist()[:3]
    [0.0, 1.0, 2.0]
    """
    if not shift:
        return images
    count, rows, columns, _ = images.shape
    by = torch.randint(-shift, shift + 1, (2, count)).to(images.device)
    row = (torch.arange(rows, device=images.device) + by[0, :, None]).clamp(0, rows - 1)
    column = (torch.arange(columns, device=images.device) + by[1, :, None]).clamp(0, columns - 1)
    sample = torch.arange(count, device=images.device)
    return images[sample[:, None, None], row[:, :, None], column[:, None, :]]


def build(config: Config, data: Data) -> DMSNet:
    """Size the network by the patterns.

    Examples
    --------
    >>> import xarray as xr
    >>> class Detector:
    ...     dataset = xr.Dataset(coords={"y": range(487), "x": range(195)})
    >>> original = build(Config(**ORIGINAL), Detector())
    >>> sum(parameter.numel() for parameter in original.parameters())
    44977866
    """
    return DMSNet(config, data.dataset.sizes["y"], data.dataset.sizes["x"])


def optimizer(model: DMSNet, config: Config) -> torch.optim.Optimizer:
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


def scores(truth: npt.NDArray[np.integer[Any]], margin: Floats) -> dict[str, float]:
    """Score how patterns are told apart.

    Parameters
    ----------
    truth
        True labels, 0 or 1, shape (n,).
    margin
        Evidence for label 1, which is chosen above 0, shape (n,).

    Returns
    -------
    dict
        ``accuracy``: share of patterns with the right label. ``roc_auc``: probability that a
        pattern of label 1 has the larger margin (Mann-Whitney), 0.5 by chance.

    Examples
    --------
    >>> scores(np.array([0, 0, 1, 1]), np.array([-2.0, 1.0, 0.5, 3.0]))
    {'accuracy': 0.75, 'roc_auc': 0.75}
    """
    one, zero = margin[truth == 1], margin[truth == 0]
    above = (one[:, None] > zero).mean() + 0.5 * (one[:, None] == zero).mean()
    return {
        "accuracy": float(((margin > 0) == (truth == 1)).mean()),
        "roc_auc": float(above),
    }


@torch.no_grad()
def predict(model: DMSNet, data: Data, split: str) -> tuple[npt.NDArray[Any], Floats]:
    """Return true labels and the logits' difference for every pattern of a split."""
    device = next(model.parameters()).device
    labels, margins = [], []
    for batch in data.batches(split, 64):
        logits = model(batch["images"].to(device)).double().cpu()
        margins.append(logits[:, 1] - logits[:, 0])
        labels.append(batch["label"])
    return torch.cat(labels).numpy(), torch.cat(margins).numpy()


def evaluate(model: DMSNet, data: Data, split: str) -> dict[str, float]:
    """Score every pattern of a split; see `scores`."""
    return scores(*predict(model, data, split))


# ---- baselines


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Score classical classifiers on the principal components of the patterns, on the test split.

    Patterns are normalised as for the network. The number of components and all settings of a
    classifier are those with which it does best on the validation patterns: by accuracy, then by
    the area under the curve.

    The ceiling knows the lattice: labels have no noise.
    """
    (train, label), (validation, valid), (test, tested) = (
        _vectors(data, split) for split in ("train", "validation", "test")
    )
    parts, spread = _components(train, [train, validation, test])
    compared = {}
    for name, candidates in (("SVM", _support_vectors), ("logistic regression", _logistic)):
        best, chosen = (-1.0, -1.0), np.zeros(len(test))
        for count in COMPONENTS:
            for scale in (np.ones_like(spread), spread):
                a, b, c = (part[:, :count] / scale[:count] for part in parts)
                for classifier in candidates(float(a.var() * count)):
                    fitted = classifier.fit(a, label)
                    found = scores(valid, fitted.decision_function(b))
                    if (found["accuracy"], found["roc_auc"]) > best:
                        best = (found["accuracy"], found["roc_auc"])
                        chosen = fitted.decision_function(c)
        compared[f"baseline: PCA + {name}"] = scores(tested, chosen)
    return compared | _ceiling(data, tested)


COMPONENTS = (20, 40, 80, 160, 320)  # numbers of principal components that are tried


def _support_vectors(variance: float) -> list[Any]:
    """Return machines with a Gaussian kernel; `variance` is that of a whole vector."""
    from sklearn.svm import SVC

    return [
        SVC(C=c, gamma=width / variance)
        for c in (1.0, 3.0, 10.0, 30.0, 100.0)
        for width in (0.1, 0.3, 1.0, 3.0)
    ]


def _logistic(_: float) -> list[Any]:
    """Return logistic regressions from strong to weak regularisation."""
    from sklearn.linear_model import LogisticRegression

    return [LogisticRegression(C=c, max_iter=3000) for c in (0.001, 0.01, 0.1, 1.0)]


def _vectors(data: Data, split: str) -> tuple[Floats, npt.NDArray[Any]]:
    """Read the normalised patterns of a split as rows, and their labels."""
    rows, labels = [], []
    for batch in data.batches(split, 64):
        values = batch["images"].float().mean(-1).flatten(1)
        deviation, mean = torch.std_mean(values, dim=1, keepdim=True)
        rows.append((values - mean) / deviation.clamp_min(1e-6))
        labels.append(batch["label"])
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()


def _components(train: Floats, parts: list[Floats]) -> tuple[list[Floats], Floats]:
    """Project onto the principal components of `train`; return their standard deviations too.

    From the eigenvectors of the matrix of scalar products: there are fewer patterns than pixels.
    """
    mean = train.mean(axis=0)
    centred = (train - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    order = np.argsort(values)[::-1][: min(max(COMPONENTS), len(train) - 1)]
    axes = centred.T @ vectors[:, order] / np.sqrt(np.maximum(values[order], 1e-12))
    spread = np.sqrt(values[order] / len(train))
    # one unit for all: the first component's standard deviation
    return [(part - mean) @ axes / spread[0] for part in parts], spread / spread[0]


def _ceiling(data: Data, tested: npt.NDArray[Any]) -> dict[str, dict[str, float]]:
    """Tell the phases apart by their true angle beta, where it is known."""
    if "beta" not in data.dataset.variables:
        return {}
    beta = np.asarray(data.dataset["beta"].values)[data.splits["test"]]
    return {"ceiling: true lattice": scores(tested, 90.1 - beta)}


# ---- pictures


def figures(model: DMSNet, data: Data, folder: Path) -> None:
    """Draw ``patterns.png``, right and wrong answers, and ``roc.png``, the curve behind the AUC."""
    from matplotlib.figure import Figure

    truth, margin = predict(model, data, "test")
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-margin, kind="stable")
    hits, misses = (np.cumsum(truth[order] == label) for label in (1, 0))
    axes.plot([0, *misses / misses[-1]], [0, *hits / hits[-1]], color="#4477aa")
    axes.plot([0, 1], [0, 1], color="0.6", ls=":")
    axes.set(
        xlabel="monoclinic called tetragonal",
        ylabel="tetragonal called so",
        title=f"AUC {scores(truth, margin)['roc_auc']:.3f}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "roc.png", dpi=130)
    _draw_patterns(truth, margin, data, folder / "patterns.png")


def _draw_patterns(truth: npt.NDArray[Any], margin: Floats, data: Data, path: Path) -> None:
    """Draw the surest pattern of each phase, one near the border, and the worst mistake."""
    from matplotlib.figure import Figure

    signed = np.where(truth == 1, margin, -margin)  # positive where right
    sure = [int(np.argmax(np.where(truth == label, signed, -np.inf))) for label in (0, 1)]
    shown = [*sure, int(np.argmin(np.abs(margin))), int(np.argmin(signed))]
    images = data.dataset["images"][data.splits["test"][shown]].mean("channel").values
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    titles = ("surest", "surest", "at the border", "least right")
    phases = ("monoclinic", "tetragonal")
    for panel, image, title, row in zip(figure.subplots(1, 4), images, titles, shown, strict=True):
        panel.imshow(image, cmap="gray", vmax=np.percentile(image, 99.5))
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"{title}\n{phases[int(truth[row])]}, {margin[row]:+.1f}", fontsize="small")
    figure.savefig(path, dpi=130)
