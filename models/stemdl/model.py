"""Space groups from CBED patterns: a residual network on polar coordinates.

A sample is three patterns of one crystal along three directions; the answer is the number of its
space group. The whole model is in this file. Sources: ResNet (He et al. 2016,
doi:10.1109/CVPR.2016.90), and the STEMDL benchmark's ResNet-50 (github.com/mlcommons/science,
``benchmarks/stemdl``), of which there are two forms: ORNL's sees one pattern at a time and averages
its answers over the three directions when it is scored; STFC's takes the three as colours. This is
ORNL's form, and the average is taken in training as well. What differs:

* Patterns are resampled to polar coordinates about the beam. A crystal's turn about the beam, which
  says nothing of its space group, is then a cyclic shift of the rows, to which a convolution with
  cyclic padding and a mean over all angles are blind, but for the strides. Not so: ``polar=0``.
* Three stages of one block, 16 channels wide, so that one core trains it in a minute. ``depth=50``
  is ResNet-50 with its bottlenecks, its 7 x 7 stem and pooling.
* Mirrored and turned copies in training; no random erasing, which ORNL has.
* As many outputs as there are space groups in the training split; the original has 231.
* Cross-entropy. STFC's copy trains the squared error of one-hot vectors and computes no score.
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

from scibench_data.errors import UsageError
from scibench_data.loader import Data

Batch = Mapping[str, Tensor]
Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TOLERANCE = {"macro_f1": 0.05, "top1": 0.05}
"""How far scores may lie apart when a run is repeated elsewhere."""

FLOOR = 17.0  # intensities below exp(-17) count as that, as in the original's preprocessing
TOP = 255.0  # its upper bound of 10 (ln intensity + 17)
TREES = 300  # in a forest that the network is compared with


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation split of stemdl's sample."""

    epochs: int = 32
    batch_size: int = 32  # stacks in a step
    learning_rate: float = 0.005  # highest, of AdamW
    weight_decay: float = 0.05  # of AdamW
    warm_up: float = 0.2  # share of the training in which the rate rises; then it falls to zero
    smoothing: float = 0.05  # of the labels
    dropout: float = 0.2  # before the last layer
    depth: int = 8  # layers: 8, 18, 34, or 50 as the original
    polar: int = 1  # 1: polar coordinates; 0: patterns as they are
    angles: int = 48  # samples around the beam, where polar
    mirror: int = 1  # 0: no mirrored copies; they turn P4(1) into P4(3) and the like


@dataclass(frozen=True)
class Shape:
    """Stages of a network: blocks in each, channels of the first, and which kind of block."""

    blocks: tuple[int, ...]
    width: int
    bottleneck: bool = False
    large_stem: bool = True


SHAPES = {
    8: Shape((1, 1, 1), 16, large_stem=False),
    18: Shape((2, 2, 2, 2), 64),
    34: Shape((3, 4, 6, 3), 64),
    50: Shape((3, 4, 6, 3), 64, bottleneck=True),
}


# ---- layers


class Convolution(nn.Sequential):
    """Convolution and batch normalisation; `cyclic` pads the last axis with its other end."""

    def __init__(self, channels: tuple[int, int], size: int, stride: int, *, cyclic: bool) -> None:
        super().__init__(
            nn.Conv2d(*channels, size, stride, bias=False),
            nn.BatchNorm2d(channels[1]),
        )
        self.padding = size // 2
        self.cyclic = cyclic

    def forward(self, x: Tensor) -> Tensor:
        """Keep height and width, but for the stride."""
        p = self.padding
        if p and self.cyclic:
            x = functional.pad(x, (p, p, 0, 0), mode="circular")
        x = functional.pad(x, (0 if self.cyclic else p,) * 2 + (p, p))
        for layer in self:
            x = layer(x)
        return x


class Block(nn.Module):
    """Residual block: two 3 x 3 convolutions, or three with a bottleneck (factor 4)."""

    def __init__(
        self, channels: tuple[int, int], stride: int, *, bottleneck: bool, cyclic: bool
    ) -> None:
        super().__init__()
        first, last = channels
        inner = last // 4 if bottleneck else last
        plan = [((first, inner), 3, stride), ((inner, last), 3, 1)]
        if bottleneck:
            plan = [((first, inner), 1, 1), ((inner, inner), 3, stride), ((inner, last), 1, 1)]
        self.layers = nn.ModuleList(
            Convolution(pair, size, step, cyclic=cyclic) for pair, size, step in plan
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or first != last:
            self.shortcut = Convolution(channels, 1, stride, cyclic=cyclic)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's change to its input."""
        change = x
        for layer in self.layers[:-1]:
            change = functional.relu(layer(change))
        out: Tensor = functional.relu(self.layers[-1](change) + self.shortcut(x))
        return out


class Polar(nn.Module):
    """Resample square patterns about their centre, pixel n // 2, by linear interpolation.

    Examples
    --------
    >>> Polar(8, 12)(torch.ones(2, 1, 8, 8)).shape  # radii 0 to 3 pixels
    torch.Size([2, 1, 4, 12])
    """

    grid: Tensor

    def __init__(self, width: int, angles: int) -> None:
        super().__init__()
        radius = torch.arange(width // 2.0)[:, None]
        turn = 2.0 * math.pi * torch.arange(angles) / angles
        place = torch.stack([radius * turn.cos(), radius * turn.sin()], dim=-1)  # x, y [pixel]
        # grid_sample counts from -1 to 1 over the edges of the pixels
        self.register_buffer(
            "grid", (2.0 * (place + width // 2) + 1.0) / width - 1.0, persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Turn (b, c, n, n) into (b, c, radius, angle)."""
        grid = self.grid.expand(len(x), -1, -1, -1)
        return functional.grid_sample(x, grid, align_corners=False, padding_mode="border")


class Classifier(nn.Module):
    """The network; it answers with a logit for each space group of the training split."""

    groups: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, config: Config, width: int, groups: Labels, *, logarithmic: bool) -> None:
        super().__init__()
        shape = SHAPES[config.depth]
        cyclic = bool(config.polar)
        self.config = config
        self.logarithmic = logarithmic
        self.progress = 0.0
        self.coordinates: nn.Module = nn.Identity()
        if config.polar:
            self.coordinates = Polar(width, config.angles)
        size = 7 if shape.large_stem else 5
        layers: list[nn.Module] = [
            Convolution((1, shape.width), size, 2, cyclic=cyclic),
            nn.ReLU(),
        ]
        if shape.large_stem:
            layers.append(nn.MaxPool2d(3, 2, 1))
        channels = shape.width
        for stage, count in enumerate(shape.blocks):
            wanted = shape.width * 2**stage * (4 if shape.bottleneck else 1)
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(
                    Block((channels, wanted), stride, bottleneck=shape.bottleneck, cyclic=cyclic)
                )
                channels = wanted
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, len(groups)))
        self.register_buffer("groups", torch.from_numpy(groups))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def prepare(self, patterns: Tensor) -> Tensor:
        """Take logarithms and polar coordinates: (b, 3, n, n) -> (b, 3, h, w)."""
        values = patterns.float()
        if not self.logarithmic:
            values = 10.0 * (values.clamp_min(math.exp(-FLOOR)).log() + FLOOR)
        prepared: Tensor = self.coordinates(values.clamp(0.0, TOP) / TOP)
        return prepared

    def forward(self, prepared: Tensor) -> Tensor:
        """Average the logits of the three patterns, (b, 3, h, w) -> (b, space group)."""
        b, views = prepared.shape[:2]
        x = (prepared.flatten(0, 1)[:, None] - self.offset) / self.scale  # (3 b, 1, h, w)
        # one processor core is a third faster with the channels last
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        logits = self.head(x.mean(dim=(2, 3)))  # (3 b, space group)
        average: Tensor = logits.view(b, views, -1).mean(1)
        return average

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Cross-entropy of randomly turned and mirrored copies."""
        self.progress = progress
        copies = turn(self.prepare(batch["patterns"]), self.config)
        target = torch.searchsorted(self.groups, batch["space_group"].long())
        return functional.cross_entropy(self(copies), target, label_smoothing=self.config.smoothing)


def turn(prepared: Tensor, config: Config) -> Tensor:
    """Turn and mirror each pattern at random, by moving pixels only.

    Patterns in polar coordinates are turned by any number of their angles, others by quarters.
    """
    flat = prepared.flatten(0, 1)  # (b, 3, h, w) -> (3 b, h, w)
    n, _, w = flat.shape
    sign = 1 - 2 * torch.randint(2, (n, 1), device=flat.device) * config.mirror
    if config.polar:
        shift = torch.randint(w, (n, 1), device=flat.device)
        index = (sign * torch.arange(w, device=flat.device) + shift) % w
        return flat.take_along_dim(index[:, None], 2).view_as(prepared)
    flat = torch.where(sign[..., None] < 0, flat.flip(-1), flat)
    quarter = torch.randint(4, (n,), device=flat.device)
    turned = torch.stack([flat.rot90(k, (1, 2)) for k in range(4)])  # (4, 3 b, h, w)
    return turned[quarter, torch.arange(n, device=flat.device)].view_as(prepared)


# ---- building and training


def build(config: Config, data: Data) -> Classifier:
    """Size the model by the data; the mean and deviation of its input are those of the training.

    Raises
    ------
    UsageError
        A depth that there is no network of.

    Examples
    --------
    >>> import xarray as xr
    >>> class Tiny:
    ...     dataset = xr.Dataset(
    ...         {"patterns": (("sample", "orientation", "y", "x"), np.ones((4, 3, 16, 16)))},
    ...         {"space_group": ("sample", [221, 225, 221, 227])},
    ...     )
    ...     splits = {"train": np.arange(4)}
    ...
    ...     def batches(self, split, size, **order):
    ...         patterns = torch.rand(4, 3, 16, 16)
    ...         yield {"patterns": patterns, "space_group": torch.tensor([221, 225, 221, 227])}
    >>> _ = torch.manual_seed(0)
    >>> model = build(Config(), Tiny())
    >>> model.groups.tolist()
    [221, 225, 227]
    >>> model.loss(next(Tiny().batches("train", 4)), progress=0.5).shape
    torch.Size([])
    """
    if config.depth not in SHAPES:
        message = f"stemdl model: depth={config.depth}; choose {', '.join(map(str, SHAPES))}"
        raise UsageError(message)
    groups = np.unique(_labels(data, "train"))
    model = Classifier(config, data.dataset.sizes["x"], groups, logarithmic=_is_logarithmic(data))
    first = model.prepare(next(iter(data.batches("train", 512)))["patterns"])
    model.offset.copy_(first.mean())
    model.scale.copy_(first.std().clamp_min(1e-6))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _is_logarithmic(data: Data) -> bool:
    """Tell NPZ files, which hold a logarithm, from HDF5, which holds shares of electrons."""
    return str(data.dataset["patterns"].attrs.get("scale", "")).startswith("clip")


def _labels(data: Data, split: str) -> Labels:
    """Space groups of the samples of a split."""
    every = np.asarray(data.dataset["space_group"].values, np.int64)
    return every[data.splits[split]]


class AnnealedAdamW(torch.optim.AdamW):
    """AdamW whose rate rises linearly and falls as a cosine with the model's progress."""

    def __init__(self, model: Classifier, config: Config) -> None:
        super().__init__(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._model, self._settings = model, config

    def step(self, closure: Any = None) -> Any:
        """Set the rate, then take the step."""
        progress, warm = self._model.progress, self._settings.warm_up
        rate = (progress + 0.01) / (warm + 0.01)
        if progress > warm:
            rate = 0.5 + 0.5 * math.cos(math.pi * (progress - warm) / (1.0 - warm))
        for group in self.param_groups:
            group["lr"] = self._settings.learning_rate * rate
        return super().step(closure)


def optimizer(model: Classifier, config: Config) -> torch.optim.Optimizer:
    """Return AdamW with a rate that is annealed."""
    return AnnealedAdamW(model, config)


# ---- scores


def macro_f1(truth: Labels, predicted: Labels) -> float:
    """Average the F1 of the classes that occur, in the truth or in the answers, without weights.

    Examples
    --------
    >>> round(macro_f1(np.array([1, 1, 2, 2]), np.array([1, 1, 2, 3])), 4)  # (1 + 2/3 + 0) / 3
    0.5556
    """
    scores = []
    for label in np.union1d(truth, predicted):
        true, found = truth == label, predicted == label
        scores.append(2.0 * np.sum(true & found) / (np.sum(true) + np.sum(found)))
    return float(np.mean(scores))


def scores(truth: Labels, predicted: Labels) -> dict[str, float]:
    """Score answers over a whole split at once; the original averages F1 over batches."""
    return {
        "macro_f1": macro_f1(truth, predicted),
        "top1": float(np.mean(truth == predicted)),
    }


@torch.no_grad()
def predict(model: Classifier, data: Data, split: str) -> tuple[Labels, Labels]:
    """Return the space group found and the true one for every sample of a split.

    Where the model was trained on mirrored copies, it is asked for both and the logits are added.
    """
    device = model.groups.device
    found, true = [], []
    for batch in data.batches(split, model.config.batch_size):
        prepared = model.prepare(batch["patterns"].to(device))
        logits = model(prepared)
        if model.config.mirror:
            logits = logits + model(prepared.flip(-1))
        found.append(model.groups[logits.argmax(1)].cpu())
        true.append(batch["space_group"].long())
    return torch.cat(found).numpy(), torch.cat(true).numpy()


def evaluate(model: Classifier, data: Data, split: str) -> dict[str, float]:
    """Score every sample of a split.

    Returns
    -------
    dict
        ``macro_f1``: mean over space groups of F1. ``top1``: share of right answers.
    """
    found, true = predict(model, data, split)
    return scores(true, found)


# ---- what it is compared with


def symmetry_features(patterns: Tensor) -> Array:
    """Describe stacks by numbers that do not change when a crystal turns about the beam.

    For each pattern, in polar coordinates: its correlation with itself turned by 180, 120, 90 and
    60 degrees and by the best angle from 30 to 180; with its mirror image in the best axes; the
    mean intensity on each ring; and on each ring the strength of its 2-, 3-, 4- and 6-fold part.

    Parameters
    ----------
    patterns
        Logarithms of the intensity, shape (n, 3, width, width).

    Returns
    -------
        Shape (n, 3 * features), the same features for each pattern.
    """
    angles = 72
    width = patterns.shape[-1]
    polar = Polar(width, angles)(patterns.flatten(0, 1)[:, None])[:, 0, 1:]  # without the centre
    rings = polar.numpy().astype(np.float64)  # (3 n, radius, angle)
    area = np.arange(1.0, width // 2)[:, None]
    waves = np.fft.rfft(rings - rings.mean(axis=2, keepdims=True), axis=2)
    power = np.sum(area * rings.var(axis=2)[..., None], axis=(1, 2))[:, None] * angles + 1e-9
    turned = np.fft.irfft(np.sum(area * np.abs(waves) ** 2, axis=1), angles) / power
    mirrored = np.fft.irfft(np.sum(area * waves**2, axis=1), angles) / power
    mirrored = -np.sort(-mirrored, axis=1)
    folds = [angles // fold for fold in (2, 3, 4, 6)]
    columns = [
        turned[:, folds],
        turned[:, angles // 12 : angles // 2 + 1].max(axis=1, keepdims=True),
        mirrored[:, [0, 6, 12]],
        rings.mean(axis=2),
        np.abs(waves[:, :, [2, 3, 4, 6]]).reshape(len(rings), -1) / angles,
    ]
    return np.asarray(np.concatenate(columns, axis=1).reshape(len(patterns), -1))


def _logarithms(data: Data, split: str) -> Tensor:
    """Return all patterns of a split as the network is given them, but not yet in polar form."""
    plain = Classifier(
        Config(polar=0), data.dataset.sizes["x"], np.zeros(1, np.int64),
        logarithmic=_is_logarithmic(data),
    )  # fmt: skip
    return torch.cat([plain.prepare(batch["patterns"]) for batch in data.batches(split, 256)])


def _baselines(count: int) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """Yield name, input and candidates of each baseline for `count` training samples."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def regression(strength: float, *first: Any) -> Any:
        return make_pipeline(*first, LogisticRegression(C=strength, max_iter=400))

    def components(wanted: int) -> Any:
        return PCA(min(wanted, count), random_state=0)

    forests = [
        kind(TREES, max_features=share, random_state=0)
        for kind in (RandomForestClassifier, ExtraTreesClassifier)
        for share in ("sqrt", 0.2)
    ]
    on_features = [regression(c, StandardScaler()) for c in (0.003, 0.01, 0.03, 0.1)]
    # standardised components count alike, and those of the noise are many: so both ways
    on_pixels = [
        regression(c, components(wanted), *scaler)
        for wanted in (30, 100)
        for scaler in ((), (StandardScaler(),))
        for c in (0.01, 0.1)
    ]
    neighbours = [
        make_pipeline(components(100), KNeighborsClassifier(min(k, count), weights="distance"))
        for k in (1, 3, 5, 9)
    ]
    yield "baseline: symmetry features + forest", "features", forests
    yield "baseline: symmetry features + logistic regression", "features", on_features
    yield "baseline: PCA + logistic regression", "pixels", on_pixels
    yield "baseline: nearest neighbours", "pixels", neighbours


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Score classical classifiers on the test split, each as it does best on the validation split.

    ``forest`` is the better of a random forest and extremely randomised trees.
    """
    splits = ("train", "validation", "test")
    truth = {split: _labels(data, split) for split in splits}
    logarithms = {split: _logarithms(data, split) for split in splits}
    inputs = {
        "features": {split: symmetry_features(x) for split, x in logarithms.items()},
        "pixels": {split: x.flatten(1).numpy() for split, x in logarithms.items()},
    }
    compared = {}
    for name, kind, candidates in _baselines(len(truth["train"])):
        x = inputs[kind]
        fitted = [candidate.fit(x["train"], truth["train"]) for candidate in candidates]
        best = max(
            fitted,
            key=lambda each: macro_f1(truth["validation"], each.predict(x["validation"])),
        )
        compared[name] = scores(truth["test"], best.predict(x["test"]))
    return compared


# ---- pictures


def figures(model: Classifier, data: Data, folder: Path) -> None:
    """Draw ``confusion.png``, true against found groups, and ``patterns.png``, some of the data."""
    found, true = predict(model, data, "test")
    _draw_confusion(found, true, folder / "confusion.png")
    batch = next(iter(data.batches("test", len(true))))
    _draw_patterns(batch["patterns"].numpy(), found, true, folder / "patterns.png")


def _draw_confusion(found: Labels, true: Labels, path: Path) -> None:
    """Draw what share of each true space group was found to be which."""
    from matplotlib.figure import Figure

    groups = np.union1d(found, true)
    table = np.zeros((len(groups), len(groups)))
    np.add.at(table, (np.searchsorted(groups, true), np.searchsorted(groups, found)), 1.0)
    table /= np.maximum(table.sum(axis=1, keepdims=True), 1.0)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, cmap="Blues", vmin=0.0, vmax=1.0)
    ticks = range(len(groups))
    axes.set_xticks(ticks, groups.tolist(), rotation=90, fontsize="small")
    axes.set_yticks(ticks, groups.tolist(), fontsize="small")
    axes.set(xlabel="space group found", ylabel="true space group")
    figure.colorbar(image, label="share of the true group")
    figure.savefig(path, dpi=130)


def _draw_patterns(patterns: Any, found: Labels, true: Labels, path: Path) -> None:
    """Draw one stack of each space group, its three directions below each other."""
    from matplotlib.figure import Figure

    groups, first = np.unique(true, return_index=True)
    groups, first = groups[:12], first[:12]
    figure = Figure(figsize=(1.1 * len(groups) + 0.2, 3.6), layout="constrained")
    panels = figure.subplots(3, len(groups), squeeze=False)
    for column, (group, sample) in enumerate(zip(groups, first, strict=True)):
        for row in range(3):
            axes = panels[row, column]
            values = np.maximum(patterns[sample, row], math.exp(-FLOOR))
            axes.imshow(np.log(values), cmap="inferno", origin="lower")
            axes.set(xticks=[], yticks=[])
        right = "" if found[sample] == group else f"\nfound {found[sample]}"
        panels[0, column].set_title(f"{group}{right}", fontsize="small")
    figure.savefig(path, dpi=130)
