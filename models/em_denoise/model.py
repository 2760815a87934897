"""Denoise electron micrographs of graphene with a small U-Net.

The network is EMDenoiseNet of SciML-Bench (github.com/stfc-sciml/sciml-bench, MIT licence, by
Butler, Austin, Thiyagalingam and Hey), a U-Net (Ronneberger et al. 2015, arXiv:1505.04597): the
same layers at the same widths by default. The whole model is in this file; no code is taken. It
differs in how it is trained and scored:

* The learning rate warms up and decays; batches are turned and mirrored, since a micrograph has no
  preferred direction; inputs and targets are brought to mean 0 and standard deviation 1.
* Scores compare with the *clean* image of held-out pairs. The original's inference loads the noisy
  files in place of the truth (a loop over the wrong list), so its numbers say how little the
  network changes its input.
* Beside PSNR there is the MSE over the variance of the clean images, which a constant image can't
  flatter.

Baselines see what the network sees: each image is first divided by a beam profile that is fitted to
it. All their settings are chosen on training pairs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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
Filter: TypeAlias = Callable[[Images], Images]

TOLERANCE = {"psnr": 0.5, "ssim": 0.015, "mse": 15.0, "nmse": 0.03}
"""How far scores may lie apart when a run is repeated elsewhere: there it is like another seed."""

DATA_RANGE = 255.0  # L of PSNR and SSIM: the clean images fill 8 bits [grey levels]
BEAM_GREY, CONTRAST = 128.0, 512.0  # grey level of the beam, and per beam intensity
TUNING = 64  # training pairs that settings of the baselines are chosen on


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation pairs of em_denoise's sample."""

    epochs: int = 12
    batch_size: int = 8
    learning_rate: float = 0.005  # of Adam at its highest; the original has 0.01
    warm_up: float = 0.1  # share of the training in which it rises
    channels: int = 8  # of the first block; doubled three times. The original has 8


# ---- the network


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; the normalisation follows the activation, as in the original."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


class EMDenoiseNet(nn.Module):
    """U-Net of four levels; width and height of an image are multiples of 8.

    Parameters
    ----------
    channels
        Of the first level.
    grey
        Mean and standard deviation of noisy and of clean training images, four numbers.

    Examples
    --------
    >>> net = EMDenoiseNet(8, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    >>> net(torch.zeros(2, 32, 32)).shape
    torch.Size([2, 32, 32])
    >>> sum(p.numel() for p in net.parameters())
    122737
    """

    grey: Tensor

    def __init__(self, channels: int, grey: Tensor) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(4)]
        self.down = nn.ModuleList(
            _block(inputs, outputs) for inputs, outputs in zip([1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(below + here, here)
            for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(channels, 1, 3, padding=1)
        self.progress = 0.0
        self.register_buffer("grey", grey)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise images, shape (b, y, x), in grey levels."""
        x = (noisy[:, None] - self.grey[0]) / self.grey[1]  # (b, 1, y, x)
        levels: list[Tensor] = []
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        levels.pop()
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([x, levels.pop()], dim=1))
        denoised: Tensor = self.last(x)[:, 0] * self.grey[3] + self.grey[2]
        return denoised

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the mean squared error over the variance of clean images.

        Parameters
        ----------
        batch
            ``noisy`` and ``clean``, shape (b, y, x).
        progress
            Share of the training that is done; the learning rate follows it.
        """
        self.progress = progress
        noisy, clean = batch["noisy"].float(), batch["clean"].float()
        turns, mirrored = torch.randint(4, ()).item(), torch.randint(2, ()).item()
        if noisy.shape[-1] != noisy.shape[-2]:
            turns = turns // 2 * 2
        noisy, clean = (torch.rot90(x, int(turns), (1, 2)) for x in (noisy, clean))
        if mirrored:
            noisy, clean = noisy.flip(2), clean.flip(2)
        return functional.mse_loss(self(noisy), clean) / self.grey[3] ** 2


def build(config: Config, data: Data) -> EMDenoiseNet:
    """Size the network and measure the grey levels of the training images.

    Examples
    --------
    >>> class Tiny:
    ...     splits = {"train": np.arange(4)}
    ...
    ...     def batches(self, split, size, **order):
    ...         return [{"noisy": torch.randn(4, 16, 16), "clean": torch.rand(4, 16, 16)}]
    >>> _ = torch.manual_seed(0)
    >>> net = build(Config(channels=4), Tiny())
    >>> net.loss(Tiny().batches("train", 4)[0], progress=0.5).shape
    torch.Size([])
    """
    batch = next(iter(data.batches("train", 256)))
    height, width = batch["noisy"].shape[1:]
    if height % 8 or width % 8:
        message = (
            f"em_denoise model: images of {height} x {width} pixels, expected multiples of 8; "
            "crop or pad them"
        )
        raise UsageError(message)
    noisy, clean = batch["noisy"].double(), batch["clean"].double()
    grey = torch.stack([noisy.mean(), noisy.std(), clean.mean(), clean.std()]).float()
    net = EMDenoiseNet(config.channels, grey)
    # a quarter faster on a processor; the weights are the same
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lag
    return net


def optimizer(model: EMDenoiseNet, config: Config) -> torch.optim.Optimizer:
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


# ---- scores


def structural_similarity(image: Images, truth: Images, data_range: float) -> npt.NDArray[Any]:
    """Mean structural similarity of each image (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    With the paper's window, a Gaussian of standard deviation 1.5 cut to 11 x 11, wherever it lies
    wholly within the image, K1 = 0.01 and K2 = 0.03.

    Parameters
    ----------
    image, truth
        Shape (n, y, x).
    data_range
        Largest minus smallest possible value.

    Returns
    -------
        Shape (n,), at most 1.

    Examples
    --------
    >>> picture = np.random.default_rng(0).uniform(0, 255, (1, 16, 16))
    >>> structural_similarity(picture, picture, 255.0).round(6).tolist()
    [1.0]
    """
    taps = torch.exp(-0.5 * (torch.arange(-5.0, 6.0).double() / 1.5) ** 2)
    taps = taps / taps.sum()
    x, y = (torch.from_numpy(np.asarray(a, np.float64))[:, None] for a in (image, truth))

    def mean(values: Tensor) -> Tensor:
        rows = functional.conv2d(values, taps.view(1, 1, 11, 1))
        return functional.conv2d(rows, taps.view(1, 1, 1, 11))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    means: npt.NDArray[Any] = index.mean(dim=(1, 2, 3)).numpy()
    return means


def scores(image: Images, truth: Images) -> dict[str, float]:
    """Score denoised images against the clean ones, shape (n, y, x), in grey levels.

    Returns
    -------
    dict
        ``psnr``: 10 log10(L^2 / MSE) with L = `DATA_RANGE`, mean over images. [dB]
        ``ssim``: `structural_similarity`, mean over images.
        ``mse``: mean squared error over all pixels. [grey levels^2]
        ``nmse``: that over the mean variance of a clean image, so that the best constant for each
        image scores 1.
    """
    squared = ((image - truth) ** 2).mean(axis=(1, 2))
    variance = truth.var(axis=(1, 2)).mean()
    return {
        "psnr": float((10.0 * np.log10(DATA_RANGE**2 / np.maximum(squared, 1e-12))).mean()),
        "ssim": float(structural_similarity(image, truth, DATA_RANGE).mean()),
        "mse": float(squared.mean()),
        "nmse": float(squared.mean() / variance),
    }


@torch.no_grad()
def denoise(model: EMDenoiseNet, data: Data, split: str) -> tuple[Images, Images, Images]:
    """Return noisy, denoised and clean images of a split, each of shape (n, y, x)."""
    device = model.grey.device
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in data.batches(split, 32):
        noisy = batch["noisy"].float()
        parts.append((noisy, model(noisy.to(device)).cpu(), batch["clean"]))
    columns = (torch.cat(part).double().numpy() for part in zip(*parts, strict=True))
    noisy_images, denoised, clean = columns
    return noisy_images, denoised, clean


def evaluate(model: EMDenoiseNet, data: Data, split: str) -> dict[str, float]:
    """Score every pair of a split; see `scores`."""
    _, denoised, clean = denoise(model, data, split)
    return scores(denoised, clean)


# ---- baselines


def read_pairs(data: Data, split: str) -> tuple[Images, Images]:
    """Return noisy and clean images of a split, shape (n, y, x)."""
    batches = list(data.batches(split, 64))
    noisy, clean = (
        torch.cat([batch[name] for batch in batches]).double().numpy()
        for name in ("noisy", "clean")
    )
    return noisy, clean


def flatten(noisy: Images, blocks: int = 8) -> Images:
    """Divide each image by its beam: a Gaussian profile fitted to the means of blocks.

    The logarithm of a Gaussian is a quadratic form, which least squares finds from `blocks` x
    `blocks` means, each weighted by its counts.
    """
    count, height, width = noisy.shape
    intensity = np.maximum(1.0 + (noisy - BEAM_GREY) / CONTRAST, 0.0)
    rows, columns = (np.array_split(np.arange(size), blocks) for size in (height, width))
    means = np.array([[intensity[:, r][:, :, c].mean((1, 2)) for c in columns] for r in rows])
    y = np.array([r.mean() for r in rows]) / height - 0.5
    x = np.array([c.mean() for c in columns]) / width - 0.5
    terms = _quadratic(y, x).reshape(-1, 6)
    everywhere = _quadratic(np.arange(height) / height - 0.5, np.arange(width) / width - 0.5)
    flat = np.empty_like(intensity)
    for i in range(count):
        mean = np.maximum(means[:, :, i].ravel(), 1e-3)
        root = np.sqrt(mean)[:, None]
        fit = np.linalg.lstsq(terms * root, np.log(mean) * root[:, 0], rcond=None)[0]
        beam = np.exp(everywhere @ fit)
        flat[i] = intensity[i] / np.maximum(beam, 1e-3)
        flat[i] /= flat[i].mean()
    return BEAM_GREY + CONTRAST * (flat - 1.0)


def _quadratic(y: npt.NDArray[Any], x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    one = np.ones((y.size, x.size))
    return np.stack(
        [one, one * y[:, None], one * x, one * (y * y)[:, None], one * x * x, y[:, None] * x],
        axis=-1,
    )


def _radius(shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Spatial frequency of each coefficient of ``rfft2``, in cycles per pixel."""
    return np.asarray(np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])))


def _apply(images: Images, response: npt.NDArray[Any]) -> Images:
    """Filter images about `BEAM_GREY` by multiplying their Fourier coefficients."""
    spectra = np.fft.rfft2(images - BEAM_GREY) * response
    return BEAM_GREY + np.fft.irfft2(spectra, s=images.shape[-2:])


def gaussian(sigma: float) -> Filter:
    """Return convolution with a Gaussian of that standard deviation. [px]"""

    def run(images: Images) -> Images:
        from scipy import ndimage

        filtered: Images = ndimage.gaussian_filter(images, (0, sigma, sigma), mode="mirror")
        return filtered

    return run


def median(width: int) -> Filter:
    """Return the median over squares of that width. [px]"""

    def run(images: Images) -> Images:
        from scipy import ndimage

        filtered: Images = ndimage.median_filter(images, (1, width, width), mode="mirror")
        return filtered

    return run


def wiener(flat: Images, clean: Images) -> Filter:
    """Return the linear filter with radial response that is best on the training pairs."""
    radius = _radius(flat.shape)
    shell = np.rint(radius * max(flat.shape[-2:])).astype(np.int64)
    left, right = np.fft.rfft2(flat - BEAM_GREY), np.fft.rfft2(clean - BEAM_GREY)
    cross = np.bincount(shell.ravel(), (right * left.conj()).real.mean(0).ravel())
    power = np.bincount(shell.ravel(), (np.abs(left) ** 2).mean(0).ravel())
    response = (cross / np.maximum(power, 1e-12))[shell]
    return lambda images: _apply(images, response)


def noise_power(spectra: npt.NDArray[Any], radius: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Estimate the noise's mean power of each image beyond what the microscope transfers."""
    power: npt.NDArray[Any] = (np.abs(spectra[:, radius > 0.35]) ** 2).mean(axis=1)
    return power


def bragg(threshold: float, cut: float, blur: float) -> Filter:
    """Return a filter that keeps what stands out of each image's own spectrum: the lattice.

    The empirical Wiener filter max(0, 1 - `threshold` noise / power), with the power averaged over
    `blur` coefficients, and nothing beyond `cut` cycles per pixel.
    """

    def run(images: Images) -> Images:
        from scipy import ndimage

        spectra = np.fft.fft2(images - BEAM_GREY)
        frequency = [np.fft.fftfreq(size) for size in images.shape[-2:]]
        radius = np.hypot(frequency[0][:, None], frequency[1])
        noise = noise_power(spectra, radius)[:, None, None]
        power = ndimage.gaussian_filter(np.abs(spectra) ** 2, (0, blur, blur), mode="wrap")
        share = np.maximum(1.0 - threshold * noise / np.maximum(power, 1e-12), 0.0)
        return BEAM_GREY + np.fft.ifft2(spectra * share * (radius < cut)).real

    return run


def non_local_means(strength: float, patch: int, reach: int, before: float) -> Filter:
    """Return non-local means (Buades et al. 2005, doi:10.1109/CVPR.2005.38).

    A pixel becomes the mean of the pixels up to `reach` away, weighted by exp(-d / h^2), where d is
    the mean squared difference of the squares of width `patch` around both in the image blurred by
    `before` pixels, less what noise alone gives, and h is `strength` times that noise.
    """

    def run(images: Images) -> Images:
        from scipy import ndimage

        guide = ndimage.gaussian_filter(images, (0, before, before), mode="mirror")
        total, weights = np.zeros_like(images), np.zeros_like(images)
        noise = _noise_left(images, before)[:, None, None]
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                other = np.roll(guide, (dy, dx), axis=(1, 2))
                distance = ndimage.uniform_filter(
                    (guide - other) ** 2, (0, patch, patch), mode="mirror"
                )
                excess = np.maximum(distance - 2.0 * noise, 0.0)
                weight = np.exp(-excess / (strength * strength * noise))
                total += weight * np.roll(images, (dy, dx), axis=(1, 2))
                weights += weight
        return total / weights

    return run


def _noise_left(images: Images, blur: float) -> npt.NDArray[Any]:
    """Variance of each image's noise after a blur of that standard deviation."""
    radius = _radius(images.shape)
    white = noise_power(np.fft.rfft2(images), radius) / images[0].size
    full = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in images.shape[-2:]), indexing="ij"))
    gain: float = (np.exp(-2.0 * (math.pi * blur * full) ** 2) ** 2).mean()
    return np.asarray(white * gain)


def best(filters: Sequence[Filter], flat: Images, clean: Images) -> Filter:
    """Return the filter with the smallest squared error on training pairs."""
    errors = [float(((run(flat) - clean) ** 2).mean()) for run in filters]
    return filters[int(np.argmin(errors))]


def tuned_baselines(flat: Images, clean: Images) -> dict[str, Filter]:
    """Choose the settings of every baseline on training pairs."""
    few = flat[:TUNING], clean[:TUNING]
    fewer = flat[: TUNING // 8], clean[: TUNING // 8]  # the slowest by far
    return {
        "Gaussian": best([gaussian(s) for s in (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)], *few),
        "median": best([median(w) for w in (3, 5, 7, 9)], *few),
        "non-local means": best(
            [non_local_means(h, p, 11, b) for h in (0.5, 1.0) for p in (9, 13) for b in (1.5, 2.0)],
            *fewer,
        ),
        "Wiener": wiener(flat, clean),
        "Bragg": best(
            [
                bragg(t, c, b)
                for t in (0.5, 1.0, 1.5, 2.0, 3.0)
                for c in (0.2, 0.25, 0.3)
                for b in (0.5, 0.75, 1.0)
            ],
            *few,
        ),
    }


def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:  # noqa: ARG001  (protocol)
    """Score classical filters, tuned on training pairs, on the test split.

    The oracle is the best linear shift-invariant filter for each image, which knows the power
    spectrum of the clean one; what is not linear may do better.
    """
    noisy, clean = read_pairs(data, "train")
    baselines = tuned_baselines(flatten(noisy), clean)
    noisy, clean = read_pairs(data, "test")
    flat = flatten(noisy)
    results = {"baseline: constant image": scores(np.full_like(clean, BEAM_GREY), clean)}
    for name, run in baselines.items():
        results[f"baseline: {name}"] = scores(run(flat), clean)
    power = np.abs(np.fft.rfft2(clean - BEAM_GREY)) ** 2
    noise = np.abs(np.fft.rfft2(flat - clean)) ** 2
    flat_noise = noise.mean(axis=(1, 2), keepdims=True)
    results["oracle: linear filter, spectrum known"] = scores(
        _apply(flat, power / (power + flat_noise)), clean
    )
    return results


# ---- pictures


@torch.no_grad()
def figures(model: EMDenoiseNet, data: Data, folder: Path) -> None:
    """Draw ``images.png``: noisy, denoised and clean images of the test split, and the error."""
    from matplotlib.figure import Figure

    noisy, denoised, clean = (images[:4] for images in denoise(model, data, "test"))
    figure = Figure(figsize=(8.0, 2.0 * len(clean) + 0.3), layout="constrained")
    rows = figure.subplots(len(clean), 4, squeeze=False)
    span = {"vmin": clean.min(), "vmax": clean.max()}
    for number, (given, found, true) in enumerate(zip(noisy, denoised, clean, strict=True)):
        panels = (
            ("noisy", given, {"vmin": BEAM_GREY - CONTRAST, "vmax": np.percentile(given, 99.5)}),
            ("denoised", found, span),
            ("clean", true, span),
            ("denoised - clean", found - true, {"vmin": -60.0, "vmax": 60.0}),
        )
        for axes, (title, picture, limits) in zip(rows[number], panels, strict=True):
            axes.imshow(picture, cmap="gray", **limits)
            axes.set(xticks=[], yticks=[])
            if number == 0:
                axes.set_title(title, fontsize="small")
    figure.savefig(folder / "images.png", dpi=130)
