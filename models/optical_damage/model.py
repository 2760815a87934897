"""Find damaged laser optics with an autoencoder that has seen sound ones only.

The network is the autoencoder of SciML-Bench (github.com/stfc-sciml/sciml-bench, MIT licence, by
Jackson, Bourgeois and Dann, in Keras), narrower by default: convolutions of 64, 32 and 16 channels
with two poolings, a linear bottleneck, transposed convolutions back. The whole model is in this
file; no code is taken. It differs:

* It codes the difference from the mean training frame, in units of its standard deviation.
* A frame's score is the largest deviation within the beam of its residual, blurred, from what
  residuals of undamaged frames are at that pixel. The original takes single pixels' squared errors.
* The threshold is a percentile of the scores of *validation* frames. The original takes it from the
  pooled pixels of the test frames, damaged ones included, so that its F1 moves with their share.

There is no damage to tune on. Copies of undamaged frames with faint Gaussian spots stand for it
(`implant`): settings of all methods are chosen on them, and they give the validation scores.
"""

import math
from collections.abc import Callable, Mapping
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

Batch = Mapping[str, Tensor]
Images: TypeAlias = npt.NDArray[np.float64]  # (n, y, x)
Residual: TypeAlias = Callable[[Images], Images]

TOLERANCE = {"auc": 0.04, "f1": 0.08, "recall": 0.1, "false_alarms": 0.06}
"""How far scores may lie apart when a run is repeated elsewhere: there it is like another seed."""

FULL_HEIGHT = 492  # rows of the original's frames
CROP_Y, CROP_X, CROP = 150, 270, 200  # the part around the optic [px of such a frame]
PERCENTILE = 95.0  # of the validation scores: the threshold that F1 is taken at
DARK = 0.2  # share of the beam's mean fluence below which a pixel lies outside
LARGEST_SPOT = 0.25  # amplitude of implanted spots, down to a tenth of it


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on implanted spots in optical_damage's sample."""

    epochs: int = 30
    batch_size: int = 8
    learning_rate: float = 0.003  # of Adam at its highest
    warm_up: float = 0.1  # share of the training in which it rises
    channels: int = 16  # of the widest convolution; others have a half or a quarter, but at least
    # 16 where that has so many. The original: 64, then 32 and 16
    latent: int = 96  # numbers that a frame is coded by. The original: 512
    blur: float = 4.0  # of the residual [px of the original's frames]


# ---- frames


def prepare(frames: Tensor) -> Tensor:
    """Scale whole frames to 0 ... 1 and cut out the optic, as the original does, in this order.

    Parameters
    ----------
    frames
        Counts, shape (b, y, x), of any binning of 492 x 656 pixels.

    Returns
    -------
        Float32, shape (b, 200, 200) for frames of the original's size.

    Examples
    --------
    >>> prepare(torch.rand(2, 123, 164)).shape
    torch.Size([2, 50, 50])
    """
    values = frames.float()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    values = (values - low) / (high - low).clamp_min(1.0)
    scale = frames.shape[1] / FULL_HEIGHT
    top, left, size = (math.floor(n * scale + 0.5) for n in (CROP_Y, CROP_X, CROP))
    return values[:, top : top + size, left : left + size]


def read_crops(data: Data, split: str) -> tuple[Images, npt.NDArray[np.bool_]]:
    """Return the crops of a split, shape (n, y, x), and which frames show damage."""
    batches = list(data.batches(split, 64))
    crops = torch.cat([prepare(batch["images"].to(torch.int32)) for batch in batches])
    damaged = torch.cat([batch["damaged"] for batch in batches])
    return crops.double().numpy(), damaged.numpy() > 0


def implant(crops: Images, lit: npt.NDArray[np.bool_]) -> Images:
    """Return copies with one to three faint Gaussian spots each, the same at every call.

    Parameters
    ----------
    crops
        Undamaged, shape (n, y, x).
    lit
        Pixels within the beam, shape (y, x): spots lie there.
    """
    rng = np.random.default_rng(0)
    height, width = crops.shape[1:]
    pixel = CROP / width  # [px of the original's frames]
    rows, columns = np.nonzero(lit)
    y, x = np.ogrid[:height, :width]
    spotted = crops.copy()
    for number in range(len(spotted)):
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(rows.size))
            radius = rng.uniform(3.0, 9.0) / pixel
            amplitude = LARGEST_SPOT * 10.0 ** -rng.uniform()
            square = (y - rows[place]) ** 2 + (x - columns[place]) ** 2
            spot = amplitude * np.exp(-square / (2.0 * radius * radius))
            spotted[number] *= (1.0 - spot) ** 2
    return spotted


# ---- the network


def _convolution(inputs: int, outputs: int, *, up: bool = False) -> nn.Sequential:
    """Convolution, activation, normalisation, in the original's order."""
    layer: nn.Module
    if up:
        layer = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    else:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(layer, nn.ReLU(), nn.BatchNorm2d(outputs))


class Autoencoder(nn.Module):
    """Code a crop by a few numbers and rebuild it.

    Parameters
    ----------
    config
        Widths.
    mean
        Mean training crop, shape (y, x).
    deviation
        Standard deviation of training crops about it.

    Examples
    --------
    >>> net = Autoencoder(Config(channels=64, latent=2000), torch.zeros(200, 200), 1.0)
    >>> round(sum(p.numel() for p in net.parameters()) / 1e6)  # what the original's pages state
    160
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Config, mean: Tensor, deviation: float) -> None:
        super().__init__()
        wide = config.channels
        middle, narrow = (max(wide // n, min(wide, 16)) for n in (2, 4))
        self.config = config
        self.progress = 0.0
        self.small = tuple(-(-size // 4) for size in mean.shape)
        numbers = narrow * self.small[0] * self.small[1]
        self.encoder = nn.Sequential(
            _convolution(1, wide),
            nn.MaxPool2d(2),
            _convolution(wide, middle),
            nn.MaxPool2d(2),
            _convolution(middle, narrow),
            nn.Flatten(),
            nn.Linear(numbers, config.latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, numbers),
            nn.Unflatten(1, (narrow, *self.small)),
            nn.BatchNorm2d(narrow),
            _convolution(narrow, narrow),
            _convolution(narrow, middle, up=True),
            _convolution(middle, middle),
            _convolution(middle, wide, up=True),
            _convolution(wide, wide),
            nn.Conv2d(wide, 1, 1),
        )
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, crops: Tensor) -> Tensor:
        """Rebuild crops, shape (b, y, x)."""
        height, width = crops.shape[1:]
        x = ((crops - self.mean) / self.deviation)[:, None]  # (b, 1, y, x)
        missing = (0, 4 * self.small[1] - width, 0, 4 * self.small[0] - height)
        code = self.encoder(functional.pad(x, missing, mode="replicate"))  # (b, latent)
        rebuilt: Tensor = self.decoder(code)[:, 0, :height, :width]
        return rebuilt * self.deviation + self.mean

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the mean squared error of rebuilt crops over the variance of crops.

        Parameters
        ----------
        batch
            ``images``, whole frames of undamaged optics, shape (b, y, x).
        progress
            Share of the training that is done; the learning rate follows it.
        """
        self.progress = progress
        crops = prepare(batch["images"].to(torch.int32))
        return functional.mse_loss(self(crops), crops) / self.deviation**2


def build(config: Config, data: Data) -> Autoencoder:
    """Size the network by the frames and measure their mean and spread.

    Examples
    --------
    >>> class Tiny:
    ...     splits = {"train": np.arange(4)}
    ...
    ...     def batches(self, split, size, **order):
    ...         frames = torch.randint(0, 4095, (4, 123, 164))
    ...         return [{"images": frames, "damaged": torch.zeros(4)}]
    >>> _ = torch.manual_seed(0)
    >>> net = build(Config(channels=4, latent=2), Tiny())
    >>> net.loss(Tiny().batches("train", 4)[0], progress=0.5).shape
    torch.Size([])
    """
    crops, damaged = read_crops(data, "train")
    if damaged.any():
        message = (
            f"optical_damage model: {damaged.sum()} training frames show damage; train on frames "
            "of undamaged optics only"
        )
        raise UsageError(message)
    mean = crops.mean(axis=0)
    deviation = float((crops - mean).std())
    return Autoencoder(config, torch.from_numpy(mean).float(), max(deviation, 1e-6))


def optimizer(model: Autoencoder, config: Config) -> torch.optim.Optimizer:
    """Return Adam, whose rate rises linearly and falls as a cosine with the model's progress."""
    adam = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def follow(chosen: torch.optim.Optimizer, *_: Any) -> None:
        done, warm = model.progress, config.warm_up
        share = (done + 1e-3) / warm if done < warm else _cosine((done - warm) / (1.0 - warm))
        for group in chosen.param_groups:
            group["lr"] = config.learning_rate * min(share, 1.0)

    adam.register_step_pre_hook(follow)
    return adam


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


# ---- from residuals to scores


def lit_pixels(mean: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return the pixels within the beam, by the mean training crop, both of shape (y, x)."""
    lit: npt.NDArray[np.bool_] = mean > DARK * mean.mean()
    return lit


def blurred(images: Images, blur: float) -> Images:
    """Blur images by a Gaussian of that standard deviation. [px of the original's frames]"""
    from scipy import ndimage

    sigma = blur * images.shape[-1] / CROP
    smooth: Images = ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")
    return smooth


@dataclass(frozen=True)
class Detector:
    """Score frames by the largest deviation of their residual from that of undamaged frames."""

    residual: Residual
    centre: npt.NDArray[Any]
    spread: npt.NDArray[Any]
    lit: npt.NDArray[np.bool_]

    @classmethod
    def calibrate(
        cls, residual: Residual, mean: npt.NDArray[Any], validation: Images
    ) -> "Detector":
        """Measure what residuals of undamaged validation frames are at each pixel.

        Parameters
        ----------
        mean
            Mean training crop: it shows where the beam is.
        """
        usual = residual(validation)
        centre = usual.mean(axis=0)
        spread = np.sqrt(blurred(((usual - centre) ** 2).mean(axis=0)[None], 8.0)[0])
        return cls(residual, centre, np.maximum(spread, 1e-9), lit_pixels(mean))

    def score(self, crops: Images) -> npt.NDArray[Any]:
        """Return one number for each crop; the larger, the more likely damaged."""
        deviation = np.abs(self.residual(crops) - self.centre) / self.spread
        largest: npt.NDArray[Any] = deviation[:, self.lit].max(axis=1)
        return largest


def area_under_curve(good: npt.NDArray[Any], bad: npt.NDArray[Any]) -> float:
    """Return the area under the ROC curve: how often a bad score exceeds a good one.

    Ties count a half (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).

    Examples
    --------
    >>> area_under_curve(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, side="left")
    up_to = np.searchsorted(ordered, bad, side="right")
    return float((below + up_to).mean() / (2 * good.size))


def scores(good: npt.NDArray[Any], bad: npt.NDArray[Any], threshold: float) -> dict[str, float]:
    """Score the scores of undamaged (`good`) and damaged (`bad`) frames.

    Returns
    -------
    dict
        ``auc``: area under the ROC curve. ``f1``, ``recall`` of damage and ``false_alarms`` (share
        of undamaged frames) where scores above `threshold` are called damaged.
    """
    found, alarms = int((bad > threshold).sum()), int((good > threshold).sum())
    return {
        "auc": area_under_curve(good, bad),
        "f1": 2.0 * found / max(found + alarms + bad.size, 1),
        "recall": found / bad.size,
        "false_alarms": alarms / good.size,
    }


def rebuilding(model: Autoencoder) -> Residual:
    """Return the blurred difference of crops from what the network rebuilds."""

    def residual(crops: Images) -> Images:
        device = model.mean.device
        parts = torch.split(torch.from_numpy(crops).float(), 64)
        with torch.no_grad():
            rebuilt = torch.cat([model(part.to(device)).cpu() for part in parts])
        return blurred(crops - rebuilt.double().numpy(), model.config.blur)

    return residual


def judge(residual: Residual, mean: npt.NDArray[Any], data: Data, split: str) -> dict[str, float]:
    """Calibrate a residual on validation frames and score a split; see `evaluate`."""
    validation, _ = read_crops(data, "validation")
    detector = Detector.calibrate(residual, mean, validation)
    threshold = float(np.percentile(detector.score(validation), PERCENTILE))
    crops, damaged = read_crops(data, split)
    bad = crops[damaged] if damaged.any() else implant(crops, detector.lit)
    return scores(detector.score(crops[~damaged]), detector.score(bad), threshold)


def evaluate(model: Autoencoder, data: Data, split: str) -> dict[str, float]:
    """Score every frame of a split; see `scores`.

    The threshold is the `PERCENTILE` of the scores of validation frames. In a split without damage
    the damaged frames are copies with implanted spots.
    """
    return judge(rebuilding(model), model.mean.double().cpu().numpy(), data, split)


# ---- baselines


def difference_of_gaussians(inner: float, outer: float) -> Residual:
    """Return the difference of two blurs. [px of the original's frames]"""
    return lambda crops: blurred(crops, inner) - blurred(crops, outer)


def from_mean(train: Images, blur: float) -> Residual:
    """Return the blurred difference from the mean training crop."""
    mean = train.mean(axis=0)
    return lambda crops: blurred(crops - mean, blur)


def from_components(train: Images, count: int, blur: float) -> Residual:
    """Return the blurred difference from the nearest sum of principal components."""
    mean = train.mean(axis=0)
    flat = (train - mean).reshape(len(train), -1)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:count]

    def residual(crops: Images) -> Images:
        rest = (crops - mean).reshape(len(crops), -1)
        rest = rest - rest @ axes.T @ axes
        return blurred(rest.reshape(crops.shape), blur)

    return residual


def candidates(train: Images) -> dict[str, list[Residual]]:
    """Return each baseline with every setting that is tried."""
    blurs = (2.0, 3.0, 4.0, 6.0)
    counts = [count for count in (2, 5, 10, 20, 40, 80, 120) if count < len(train)]
    return {
        "mean image": [from_mean(train, blur) for blur in blurs],
        "difference of Gaussians": [
            difference_of_gaussians(blur, ratio * blur)
            for blur in blurs
            for ratio in (1.6, 2.5, 4.0)
        ],
        "PCA": [from_components(train, count, blur) for count in counts for blur in blurs],
    }


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001  (protocol)
    """Score classical detectors on the test split, their settings chosen on implanted spots.

    Where the simulation's truth is there, the ceiling is an observer who knows the undamaged shot
    and the damage, and decides by the likelihood ratio whether it is there.
    """
    train, _ = read_crops(data, "train")
    validation, _ = read_crops(data, "validation")
    mean = train.mean(axis=0)
    spotted = implant(validation, lit_pixels(mean))

    def tell(residual: Residual) -> float:
        detector = Detector.calibrate(residual, mean, validation)
        return area_under_curve(detector.score(validation), detector.score(spotted))

    results = {
        f"baseline: {name}": judge(max(tried, key=tell), mean, data, "test")
        for name, tried in candidates(train).items()
    }
    if "detectability" in data.dataset.variables:
        distance = np.asarray(data.dataset["detectability"].values)[data.splits["test"]]
        damaged = np.asarray(data.dataset["damaged"].values)[data.splits["test"]] > 0
        results["ceiling: shot and damage known"] = ideal_observer(
            distance[damaged], int((~damaged).sum())
        )
    return results


def ideal_observer(distance: npt.NDArray[Any], undamaged: int) -> dict[str, float]:
    """Return the expected scores of deciding between two known frames in Gaussian noise.

    Parameters
    ----------
    distance
        Between each damaged frame and the same frame without damage, in standard deviations.
    undamaged
        Number of undamaged frames.

    Examples
    --------
    >>> round(ideal_observer(np.zeros(3), 3)["auc"], 3)
    0.5
    """
    alarm = 1.0 - PERCENTILE / 100.0
    limit = 1.6448536269514722  # the normal quantile of PERCENTILE
    recall = float(np.mean([_normal(d - limit) for d in distance]))
    expected = recall * distance.size
    return {
        "auc": float(np.mean([_normal(d / math.sqrt(2.0)) for d in distance])),
        "f1": 2.0 * expected / (expected + alarm * undamaged + distance.size),
        "recall": recall,
        "false_alarms": alarm,
    }


def _normal(value: float) -> float:
    """Return the normal distribution function."""
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


# ---- pictures


def figures(model: Autoencoder, data: Data, folder: Path) -> None:
    """Draw ``residuals.png``: crops of the test split, and where they deviate."""
    from matplotlib.figure import Figure

    validation, _ = read_crops(data, "validation")
    crops, damaged = read_crops(data, "test")
    mean = model.mean.double().cpu().numpy()
    detector = Detector.calibrate(rebuilding(model), mean, validation)
    score = detector.score(crops)
    # the least and the most conspicuous frames of both kinds
    sound, bad = (np.flatnonzero(kind)[np.argsort(score[kind])] for kind in (~damaged, damaged))
    chosen = [sound[0], sound[-1], bad[0], bad[len(bad) // 2], bad[-1]]
    figure = Figure(figsize=(2.0 * len(chosen), 4.4), layout="constrained")
    panels = figure.subplots(2, len(chosen), squeeze=False)
    for column, row in zip(panels.T, chosen, strict=True):
        deviation = (detector.residual(crops[row : row + 1])[0] - detector.centre) / detector.spread
        kind = "damaged" if damaged[row] else "undamaged"
        column[0].imshow(crops[row], cmap="gray")
        column[0].set_title(f"{kind}, score {score[row]:.1f}", fontsize="small")
        column[1].imshow(np.where(detector.lit, deviation, 0.0), cmap="RdBu", vmin=-8.0, vmax=8.0)
        for axes in column:
            axes.set(xticks=[], yticks=[])
    figure.savefig(folder / "residuals.png", dpi=130)
