"""Cloud masks of SLSTR scenes: a U-Net from nine channels to the flag of every pixel.

The network is the benchmark's: four levels of two 3 x 3 convolutions with ReLU, max pooling, and
upsampling by repetition (github.com/mlcommons/science, ``benchmarks/cloudmask/model.py``; U-Net:
Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28). ``Config(width=32, patch=256)`` has the
original's widths 32-64-128-256, about 2 million weights, and patch. The whole model is in this
file. It differs:

* A quarter of the width, and patches of 32 pixels from many scenes in a step: what a processor
  trains in a minute.
* Convolutions are followed by batch normalisation.
* Channels are standardised by the training scenes (the original: refs - 0.5, (bts - 270) / 22),
  and the differences S7 - S8 and S8 - S9, in which cloud tests of the field look, are channels
  too.
* Patches lie anywhere in a scene and are turned and mirrored (the original: on a fixed grid).
* The learning rate of AdamW rises and falls along a cosine; that of the original's Adam stays.
* Whole scenes go through the network when masks are made. It is convolutional, so that nothing has
  to be cut up and put together.

The labels are the operational mask ``bayes``, which is wrong here and there: so is every score
against it. Where the truth is known, scores against it stand beside.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scibench_data.loader import Data

Batch = Mapping[str, Tensor]
Array = npt.NDArray[np.float32]

TOLERANCE = {
    "accuracy": 0.012,
    "balanced_accuracy": 0.012,
    "iou": 0.024,
    "true_accuracy": 0.016,
}
"""How far scores may lie apart when a run is repeated elsewhere."""

CHANNELS = 11  # S1 to S9, S7 - S8, S8 - S9
PIXELS = 100_000  # of the training scenes, on which the baselines are fitted
WINDOWS = (3, 9, 25)  # widths of the neighbourhoods that the baselines look at [px]
WARM = 0.2  # share of the training in which the learning rate rises
TREES = (25, 50, 100, 200)  # of the gradient boosting: the validation pixels choose


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation scenes of cloudmask's sample."""

    epochs: int = 80
    batch_size: int = 6  # scenes in a step
    learning_rate: float = 0.01  # at its highest
    weight_decay: float = 0.01
    width: int = 8  # channels of the finest level; doubled at each coarser one
    levels: int = 4
    patch: int = 32  # width of a training patch [px]; smaller where scenes are smaller
    patches: int = 4  # cut from each scene in a step


# ---- the network


def features(batch: Batch) -> Tensor:
    """Return the channels of scenes, shape (b, 11, y, x); a pixel without a number is 0.

    Examples
    --------
    >>> batch = {"refs": torch.zeros(1, 2, 3, 6), "bts": torch.full((1, 2, 3, 3), 270.0)}
    >>> features(batch).shape
    torch.Size([1, 11, 2, 3])
    """
    refs, bts = batch["refs"].float(), batch["bts"].float()
    differences = bts[..., :2] - bts[..., 1:]
    channels = torch.cat([refs, bts, differences], dim=-1)  # (b, y, x, 11)
    return channels.movedim(-1, 1)


def labels(batch: Batch) -> Tensor:
    """Return where the operational mask sees cloud, shape (b, y, x)."""
    return batch["bayes"] > 0


class Block(nn.Sequential):
    """Two 3 x 3 convolutions, shape (b, i, y, x) -> (b, o, y, x)."""

    def __init__(self, i: int, o: int) -> None:
        layers: list[nn.Module] = []
        for c in (i, o):
            convolution = nn.Conv2d(c, o, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(o), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Log odds of cloud for every pixel, and the loss of patches.

    Examples
    --------
    >>> model = UNet(Config(width=2), torch.zeros(11), torch.ones(11))
    >>> model(torch.randn(1, 11, 20, 30)).shape
    torch.Size([1, 20, 30])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Config, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0  # share of the training that is done
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("deviation", deviation.view(1, -1, 1, 1))
        widths = [config.width << level for level in range(config.levels)]
        self.down = nn.ModuleList(map(Block, [CHANNELS, *widths], widths))
        fine, coarse = widths[-2::-1], widths[:0:-1]
        self.up = nn.ModuleList(Block(f + c, f) for f, c in zip(fine, coarse, strict=True))
        self.head = nn.Conv2d(config.width, 1, 1)

    def forward(self, channels: Tensor) -> Tensor:
        """Return the log odds of cloud, shape (b, 11, y, x) -> (b, y, x)."""
        rows, columns = channels.shape[-2:]
        unit = 1 << (self.config.levels - 1)
        x = torch.nan_to_num((channels - self.mean) / self.deviation)
        x = functional.pad(x, (0, -columns % unit, 0, -rows % unit), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))  # half as fine each time
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        odds: Tensor = self.head(x)[:, 0, :rows, :columns]
        return odds

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the binary cross-entropy per pixel of random patches. [nat]

        Parameters
        ----------
        progress
            Share of the training that is done, from 0 to 1.
        """
        self.progress = progress
        channels, cloudy = self._patches(features(batch), labels(batch).float())
        return functional.binary_cross_entropy_with_logits(self(channels), cloudy)

    def _patches(self, channels: Tensor, cloudy: Tensor) -> tuple[Tensor, Tensor]:
        """Cut patches anywhere, each mirrored and transposed at random."""
        both = torch.cat([channels, cloudy[:, None]], dim=1)  # (b, 12, y, x)
        size = min(self.config.patch, *both.shape[-2:])
        cut = []
        for scene in both:
            for _ in range(self.config.patches):
                top, left = (_draw(length - size + 1) for length in scene.shape[-2:])
                patch = scene[:, top : top + size, left : left + size]
                turn = _draw(8)
                patch = patch.transpose(1, 2) if turn & 1 else patch
                patch = patch.flip([d for d in (1, 2) if turn & (2 * d)])
                cut.append(patch)
        patches = torch.stack(cut)
        return patches[:, :-1], patches[:, -1]


def _draw(count: int) -> int:
    """Draw a number below `count` with torch's global seed."""
    return int(torch.randint(count, ()))


def build(config: Config, data: Data) -> UNet:
    """Size the network by its settings; channels are standardised by the first training scenes.

    Examples
    --------
    >>> class Tiny:
    ...     splits = {"train": np.arange(2)}
    ...
    ...     def batches(self, split, size, **order):
    ...         b = {"refs": torch.rand(2, 16, 16, 6), "bts": 270 + torch.rand(2, 16, 16, 3)}
    ...         return [b | {"bayes": torch.ones(2, 16, 16)}]
    >>> model = build(Config(width=2), Tiny())
    >>> model.loss(Tiny().batches("train", 2)[0], progress=0.0).shape
    torch.Size([])
    """
    model = UNet(config, *_statistics(data))
    # the order of bytes in which a processor's convolutions are a fifth faster
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return model


def _statistics(data: Data, scenes: int = 64) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels over the first training scenes."""
    count = torch.zeros(CHANNELS, dtype=torch.float64)
    total, squares = torch.zeros_like(count), torch.zeros_like(count)
    origin = torch.tensor([0.0] * 6 + [270.0] * 3 + [0.0] * 2)[:, None]  # keeps squares exact
    for batch in itertools.islice(data.batches("train", 1), scenes):
        values = features(batch).transpose(0, 1).flatten(1) - origin  # (11, pixel)
        known = values.isfinite()
        values = torch.where(known, values, 0.0).double()
        count += known.sum(1)
        total += values.sum(1)
        squares += values.square().sum(1)
    count = count.clamp_min(1.0)
    mean = total / count
    variance = (squares / count - mean**2).clamp_min(1e-12)
    return (mean + origin[:, 0]).float(), variance.sqrt().float()


def optimizer(model: UNet, config: Config) -> torch.optim.Optimizer:
    """Return AdamW whose learning rate rises and falls along half cosines over the training."""
    adam = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def anneal(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rise, fall = (model.progress + 0.01) / WARM, (1.0 - model.progress) / (1.0 - WARM)
        rate = 0.5 - 0.5 * math.cos(math.pi * min(rise, fall, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate

    adam.register_step_pre_hook(anneal)
    return adam


# ---- scores


def scores(
    predicted: npt.NDArray[np.bool_],
    cloudy: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Compare a mask with the operational one, pixel by pixel, and with the true one if known.

    Parameters
    ----------
    predicted, cloudy, truth
        Of one shape; true for cloud. All pixels count alike, whatever the scene.

    Returns
    -------
        ``accuracy``; ``balanced_accuracy``, the mean of the shares of cloud and of clear sky that
        are found (of a kind that occurs); ``iou`` of cloud (1 where there is none and none is
        seen); ``true_accuracy``.

    Examples
    --------
    >>> found = scores(np.array([True, True, False, False]), np.array([True, False, False, False]))
    >>> [round(value, 4) for value in found.values()]
    [0.75, 0.8333, 0.5]
    """
    hit = int((predicted & cloudy).sum())
    either = int((predicted | cloudy).sum())
    cloud, clear = int(cloudy.sum()), int((~cloudy).sum())
    rejected = predicted.size - either
    recall = [right / of for right, of in ((hit, cloud), (rejected, clear)) if of]
    found = {
        "accuracy": (hit + rejected) / predicted.size,
        "balanced_accuracy": sum(recall) / len(recall),
        "iou": hit / either if either else 1.0,
    }
    if truth is not None:
        found["true_accuracy"] = float((predicted == truth).mean())
    return found


def _references(data: Data, split: str) -> tuple[npt.NDArray[np.bool_], ...]:
    """Return the operational mask of a split's scenes and, where it is known, the true one."""
    rows = data.splits[split]
    names = [name for name in ("bayes", "cloud") if name in data.dataset.variables]
    return tuple(np.asarray(data.dataset[name][rows].values) > 0 for name in names)


@torch.no_grad()
def predict(model: UNet, data: Data, split: str) -> npt.NDArray[np.bool_]:
    """Return the cloud masks of whole scenes, shape (scene, y, x)."""
    model.eval()
    odds = [
        model(features(batch).to(model.mean.device)).cpu().numpy()
        for batch in data.batches(split, _scenes_at_once(data))
    ]
    return np.concatenate(odds) > 0.0


def _scenes_at_once(data: Data) -> int:
    """Return how many scenes fit well into memory."""
    return max(1, 2**18 // (data.dataset.sizes["y"] * data.dataset.sizes["x"]))


def evaluate(model: UNet, data: Data, split: str) -> dict[str, float]:
    """Score the masks of a split's scenes."""
    return scores(predict(model, data, split), *_references(data, split))


# ---- what it is compared with


def neighbourhoods(channels: Tensor) -> Tensor:
    """Return channels with mean and standard deviation around each pixel, (b, 77, y, x).

    Examples
    --------
    >>> neighbourhoods(torch.ones(1, 11, 5, 6))[0, 11:14, 2, 2].tolist()  # means in 3 x 3 pixels
    [1.0, 1.0, 1.0]
    """
    parts = [channels]
    for window in WINDOWS:
        mean, square = (_box_mean(values, window) for values in (channels, channels.square()))
        parts += [mean, (square - mean.square()).clamp_min(0.0).sqrt()]
    return torch.cat(parts, dim=1)


def _box_mean(values: Tensor, window: int) -> Tensor:
    """Average over windows; at the edge over what lies within the scene."""
    return functional.avg_pool2d(
        values, window, stride=1, padding=window // 2, count_include_pad=False
    )


@dataclass(frozen=True)
class Table:
    """Pixels as rows: features (pixel, 77) and the operational flag (pixel,)."""

    features: Array
    cloudy: npt.NDArray[np.bool_]


def _tables(data: Data, split: str) -> Iterator[Table]:
    """Give the pixels of each scene, temperatures from 270 K so that squares stay exact."""
    for batch in data.batches(split, 1):
        channels = torch.nan_to_num(features(batch))
        channels[:, 6:9] -= 270.0
        rows = neighbourhoods(channels)[0].flatten(1).T.numpy()  # (pixel, 77)
        yield Table(rows, labels(batch).flatten().numpy())


def _sample(data: Data, split: str) -> Table:
    """Draw about `PIXELS` pixels of a split, equally many of each scene."""
    each = -(-PIXELS // len(data.splits[split]))
    parts = []
    for number, table in enumerate(_tables(data, split)):
        rng = np.random.default_rng([0, number])
        chosen = rng.permutation(len(table.cloudy))[:each]
        parts.append(Table(table.features[chosen], table.cloudy[chosen]))
    return Table(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.cloudy for part in parts]),
    )


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Score thresholds, two classifiers of pixels and the masks that a simulation knows.

    All are fitted on training pixels; where there is a choice, the validation pixels make it.

    * ``baseline: thresholds``: cloud is bright in S3 and cold in S8, or bright in S4.
    * ``baseline: logistic regression`` on a pixel's channels.
    * ``baseline: gradient boosting`` on channels and neighbourhoods (scikit-learn's histogram
      gradient boosting), with the number of trees that suits the validation pixels best.
    * ``ceiling: perfect weather model``: the operational test without the errors of the weather
      model. What they change can't be known from the scene, or hardly.
    * ``reference: true mask``: what a perfect cloud mask scores against the operational one. No
      ceiling: a model may learn the habits of the operational mask too.
    """
    train, validation = _sample(data, "train"), _sample(data, "validation")
    masks = {
        f"baseline: {name}": fitted(train, validation)
        for name, fitted in {
            "thresholds": _thresholds,
            "logistic regression": _logistic_regression,
            "gradient boosting": _boosting,
        }.items()
    }
    shape = _references(data, "test")[0].shape
    found: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in masks}
    for table in _tables(data, "test"):
        for name, mask in masks.items():
            found[name].append(mask(table.features))
    known = {name: np.concatenate(parts).reshape(shape) for name, parts in found.items()}
    for name, array in {
        "ceiling: perfect weather model": "ideal",
        "reference: true mask": "cloud",
    }.items():
        if array in data.dataset.variables:
            known[name] = np.asarray(data.dataset[array][data.splits["test"]].values) > 0
    references = _references(data, "test")
    return {name: scores(mask, *references) for name, mask in known.items()}


Classify: TypeAlias = Callable[[Array], npt.NDArray[np.bool_]]
"""From features (pixel, 77) to cloud (pixel,)."""


def _thresholds(train: Table, _: Table) -> Classify:
    """Find the best of a grid of thresholds: cloud is bright in S3 and cold in S8, or in S4."""

    def classify(rows: Array, limits: tuple[float, ...]) -> npt.NDArray[np.bool_]:
        bright, cold, high = limits
        return ((rows[:, 2] > bright) & (rows[:, 7] < cold - 270.0)) | (rows[:, 3] > high)

    part = slice(None, None, 8)  # of the pixels: a few numbers need no more
    grid = itertools.product(
        (0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5),
        (262.0, 268.0, 272.0, 276.0, 280.0, 285.0, 290.0, 295.0, 320.0),
        (0.005, 0.01, 0.02, 0.04, 0.1, 0.2, 1.0),
    )

    def right(limits: tuple[float, ...]) -> float:
        return float((classify(train.features[part], limits) == train.cloudy[part]).mean())

    best = max(grid, key=right)
    return lambda rows: classify(rows, best)


def _logistic_regression(train: Table, validation: Table) -> Classify:
    """Fit a pixel's own channels, standardised, with the penalty that suits the validation best."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def own(rows: Array) -> Array:
        return rows[:, :CHANNELS]

    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300)).fit(
            own(train.features), train.cloudy
        )
        for c in (0.001, 0.1, 10.0)
    ]
    best = max(fits, key=lambda fit: fit.score(own(validation.features), validation.cloudy))
    return lambda rows: np.asarray(best.predict(own(rows)), np.bool_)


def _boosting(train: Table, validation: Table) -> Classify:
    """Boost trees on all features; the validation pixels choose how many trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    forest = HistGradientBoostingClassifier(warm_start=True, early_stopping=False, random_state=0)
    stages = []
    for trees in TREES:
        forest.set_params(max_iter=trees).fit(train.features, train.cloudy)
        stages.append(copy.deepcopy(forest))
    best = max(stages, key=lambda fit: fit.score(validation.features, validation.cloudy))
    return lambda rows: np.asarray(best.predict(rows), np.bool_)


# ---- pictures


def figures(model: UNet, data: Data, folder: Path) -> None:
    """Draw ``masks.png``: test scenes beside the masks, from the worst to the best."""
    from matplotlib.figure import Figure

    found = predict(model, data, "test")
    references = _references(data, "test")
    right = (found == references[0]).mean(axis=(1, 2))
    order = np.argsort(right, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(5, len(order))).round().astype(int)]
    titles = ["S3", "S8 [K]", "model", "operational mask", "true mask"][: 3 + len(references)]
    figure = Figure(figsize=(2.0 * len(titles), 1.7 * len(chosen)), layout="constrained")
    rows = figure.subplots(len(chosen), len(titles), squeeze=False)
    for number, (row, scene) in enumerate(zip(rows, chosen, strict=True)):
        place = data.splits["test"][scene]
        refs, bts = (np.asarray(data.dataset[name][place].values) for name in ("refs", "bts"))
        pictures = [refs[..., 2], bts[..., 1], found[scene], *(mask[scene] for mask in references)]
        for column, (axes, picture) in enumerate(zip(row, pictures, strict=True)):
            limits = (0.0, 1.0) if column != 1 else (None, None)
            axes.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1])
            axes.set(xticks=[], yticks=[])
            if number == 0:
                axes.set_title(titles[column], fontsize="small")
        row[0].set_ylabel(f"accuracy {right[scene]:.3f}", fontsize="small")
    figure.savefig(folder / "masks.png", dpi=130)
