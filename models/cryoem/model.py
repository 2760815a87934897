"""Heterogeneous reconstruction at given poses: from particle images to the density of each state.

Every particle shows one of a few states of a molecule. Poses, shifts and CTFs are given; states
are not. The model is a mixture of volumes, fitted by gradient to the likelihood of the images'
Fourier transforms, as in RELION's regularised-likelihood 3-D classification (Scheres 2012,
doi:10.1016/j.jmb.2011.11.010; github.com/3dem/relion). The whole model is in this file. It differs:

* A state is the common mean plus a deviation, each with a Gaussian prior that takes its spectrum
  from the half-maps. States then share the data where they agree; RELION's are independent.
* It starts as a linear model: mean + sum_j z_j deviation_j with z ~ N(0, I) integrated out, which
  is probabilistic PCA (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196) of volumes, as 3-D
  variability analysis does it (Punjani and Fleet 2021, doi:10.1016/j.jsb.2021.107702). A linear
  model has no wrong optimum to end in, a mixture has many. The particles' z are clustered, and the
  clusters are the states that the mixture starts from.
* Adam on mini-batches takes the place of expectation maximisation, with frequencies from coarse
  to fine.

CryoDRGN (Zhong et al. 2021, doi:10.1038/s41592-020-01049-4) amortises z with an encoder network.
With a few thousand particles an encoder over-fits; here z is integrated out in closed form.

Conventions are RELION's: image = CTF * projection along z of the density at the pose + noise, light
particles; R = Rz(psi) Ry(tilt) Rz(rot) takes coordinates of the molecule to those of the view; a
particle lies at minus its origin. Volumes are indexed z, y, x; voxel d // 2 is the origin. No
B-factor is undone: an envelope of the images becomes part of the density, whose FSC it changes
little, since the FSC does not see how power falls off from shell to shell.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from scibench_data.metrics import (
    adjusted_rand_index,
    balanced_accuracy,
    best_matching,
    contingency,
    fourier_shell_correlation,
    fsc_auc,
    fsc_resolution,
)

Batch = Mapping[str, Tensor]
Volumes = npt.NDArray[np.float32]

TOLERANCE = {
    "fsc_auc": 0.002,
    "resolution": 0.1,
    "adjusted_rand": 0.03,
    "balanced_accuracy": 0.02,
}
"""How far scores may lie apart when a run is repeated elsewhere."""

MASK_BLUR = 10.0  # standard deviation of the Gaussian that makes the scoring mask [Angstrom]
MASK_LEVEL = 0.05  # blurred density, as a share of its maximum, from which the mask is 1
MEAN_VARIANCES = (10.0, 100.0, 1000.0)  # of the mean over the consensus's power, and of
DEVIATION_VARIANCES = (1.0, 3.0, 10.0)  # deviations: all are tried for baseline and ceiling


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are tuned on the validation micrographs of cryoem's sample."""

    states: int = 4  # volumes in the mixture
    epochs: int = 6
    batch_size: int = 128  # particles in a step
    learning_rate: float = 0.02  # of Adam, in standard deviations of the prior
    linear: float = 0.4  # share of the training in which the model is linear
    coarse: float = 0.6  # share of the training in which frequencies are added
    start_resolution: float = 24.0  # finest detail at the start [Angstrom]
    oversampling: float = 1.5  # zero padding in front of the Fourier transform of volumes
    mean_prior: float = 10.0  # standard deviation of the mean over that of the consensus
    deviation_prior: float = 2.0  # standard deviation of a deviation over that of the consensus
    start_deviation: float = 0.1  # that of the random start, in the same unit as learning_rate


# ---- image formation


class _Interpolate(torch.autograd.Function):
    """Weighted sums of rows of a table, several times as fast as autograd's own on a processor."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)
        return functional.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, weight = ctx.saved_tensors
        values = gradients[0]
        table = values.new_zeros(ctx.rows, values.shape[1])
        return _spread(table, values, index, weight), None, None


def _spread(table: Tensor, values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Add `weight` (n, 8) times `values` (n, c) to the rows `index` (n, 8) of `table` in place."""
    pieces = (weight[..., None] * values[:, None]).flatten(0, 1)  # (n, c) -> (8 n, c)
    return table.index_add_(0, index.flatten(), pieces)


def rotations(batch: Batch) -> Tensor:
    """Return RELION's Euler matrices, shape (b, 3, 3): view coordinates = R @ coordinates."""
    rot, tilt, psi = (torch.deg2rad(batch[name].float()) for name in ("rot", "tilt", "psi"))
    zero, one = torch.zeros_like(rot), torch.ones_like(rot)

    def matrix(*elements: Tensor) -> Tensor:
        return torch.stack(elements, dim=-1).view(-1, 3, 3)

    def around_z(angle: Tensor) -> Tensor:
        c, s = angle.cos(), angle.sin()
        return matrix(c, s, zero, -s, c, zero, zero, zero, one)

    c, s = tilt.cos(), tilt.sin()
    around_y = matrix(c, zero, -s, zero, one, zero, s, zero, c)
    rotation: Tensor = around_z(psi) @ around_y @ around_z(rot)
    return rotation


def shells(width: int) -> Tensor:
    """Return the rounded radius of each coefficient of ``rfftn``, shape (width, width, half)."""
    k: Tensor = torch.fft.fftfreq(width) * width
    half = torch.arange(width // 2 + 1.0)
    radius = (k[:, None, None] ** 2 + k[:, None] ** 2 + half**2).sqrt()
    return radius.round().long()


def shell_mean(values: Tensor) -> Tensor:
    """Average ``rfftn`` coefficients over each shell and give every one its shell's mean."""
    shell = shells(values.shape[-2]).flatten()
    flat = values.reshape(-1, shell.numel())  # (..., w, w, half) -> (n, w * w * half)
    total = flat.new_zeros(len(flat), int(shell.max()) + 1).index_add_(1, shell, flat)
    mean = total / torch.bincount(shell)
    return mean[:, shell].view_as(values)


class Imaging(nn.Module):
    """What the microscope makes of a volume, at the frequencies that the images hold.

    Images are real, so half of their frequencies say all: m points with kx >= 0, sorted by radius,
    so that the first few are the coarse ones. Fourier coefficients are divided by the width d of
    the image: white noise of variance 1 has power 1.
    """

    points: Tensor
    shell: Tensor
    optics: Tensor
    support: Tensor
    gridding: Tensor
    corner: Tensor
    grey: Tensor

    def __init__(self, data: Data, oversampling: float) -> None:
        super().__init__()
        d = data.dataset.sizes["x"]
        self.width = d
        self.padded = 2 * round(d * max(oversampling, 1.0) / 2)
        self.pixel_size = _pixel_size(data)
        names = ("voltage", "spherical_aberration", "amplitude_contrast")
        optics = np.stack([data.dataset[name].values for name in names], axis=1)
        ky, kx = torch.meshgrid(
            torch.arange(-(d // 2), d // 2), torch.arange(d // 2 + 1), indexing="ij"
        )
        radius = (kx**2 + ky**2).sqrt()
        chosen = (radius <= d // 2 - 1) & ((kx > 0) | (ky >= 0))
        order = torch.argsort(radius[chosen], stable=True)
        self.radii: list[float] = radius[chosen][order].tolist()
        g = torch.arange(d) - d // 2.0
        distance = (g[:, None, None] ** 2 + g[:, None] ** 2 + g**2).sqrt()
        edge = ((0.48 * d - distance) / (0.1 * d)).clamp(0.0, 1.0)
        sinc = torch.sinc(g / self.padded) ** 2
        p, h = self.padded, self.padded // 2 + 1
        for name, value in {
            "points": torch.stack([kx[chosen], ky[chosen]], dim=1)[order],  # (m, 2)
            "shell": radius[chosen][order].round().long(),  # (m,)
            "optics": torch.from_numpy(optics).float(),  # (g, 3)
            "support": 0.5 - 0.5 * torch.cos(math.pi * edge),  # (d, d, d), a soft sphere
            # linear interpolation multiplies the volume by it: (d, d, d)
            "gridding": sinc[:, None, None] * sinc[:, None] * sinc,
            "corner": torch.tensor(
                [(z * p + y) * h + x for z, y, x in itertools.product((0, 1), repeat=3)]
            ),  # (8,), rows from one corner of a cell to the others
            "grey": _grey_levels(data, distance[d // 2]),  # (2,)
        }.items():
            self.register_buffer(name, value, persistent=name in {"optics", "grey"})

    def count(self, radius: float) -> int:
        """Return how many points lie within `radius`. [1 / field of view]"""
        return bisect.bisect_right(self.radii, radius)

    @property
    def batch_size(self) -> int:
        """Particles whose slices fit well into memory where the size of a batch is free."""
        return max(1, 2**17 // len(self.radii))

    def observe(self, batch: Batch, m: int) -> Tensor:
        """Return the centred images' Fourier coefficients, complex, shape (b, m)."""
        d = self.width
        kx, ky = self.points[:m].T
        offset, scale = self.grey
        images = (batch["images"].float() - offset) / scale
        spectra: Tensor = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        turns = kx * batch["origin_x"].float()[:, None] + ky * batch["origin_y"].float()[:, None]
        phase = -2.0 * math.pi / (d * self.pixel_size) * turns
        return spectra[:, ky % d, kx] / d * torch.polar(torch.ones_like(phase), phase)

    def transfer(self, batch: Batch, m: int) -> Tensor:
        """Return RELION's CTF, -sin(gamma), shape (b, m); positive at the lowest frequencies.

        gamma = -pi lambda df u^2 + pi/2 Cs lambda^3 u^4 - phase shift - atan(Q0 / sqrt(1 - Q0^2)),
        df = (dU + dV) / 2 + (dU - dV) / 2 cos(2 (theta - theta_U)); ``src/ctf.h``.
        """
        kx, ky = self.points[:m].T.float()
        u2 = (kx**2 + ky**2) / (self.width * self.pixel_size) ** 2  # [1 / Angstrom^2]
        columns = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
        u, v, angle, shift = (batch[name].float()[:, None] for name in columns)
        kilovolt, millimetre, q = self.optics[batch["optics_group"].long()].T[..., None]
        volt, aberration = 1e3 * kilovolt, 1e7 * millimetre
        wavelength = 12.2643247 / torch.sqrt(volt * (1.0 + 0.978466e-6 * volt))  # [Angstrom]
        direction = torch.cos(2.0 * (torch.atan2(ky, kx) - torch.deg2rad(angle)))
        defocus = 0.5 * (u + v) + 0.5 * (u - v) * direction
        gamma = (
            -math.pi * wavelength * defocus * u2
            + 0.5 * math.pi * aberration * wavelength**3 * u2**2
            - torch.deg2rad(shift)
            - torch.asin(q)
        )
        return -torch.sin(gamma)

    def table(self, volumes: Tensor) -> Tensor:
        """Return the volumes' Fourier transforms as rows to interpolate in.

        Parameters
        ----------
        volumes
            Shape (k, d, d, d).

        Returns
        -------
            Shape (p * p * (p // 2 + 1), 2 k): one row per frequency of the padded grid, z and y
            from negative to positive, real and imaginary part of each volume.
        """
        d, p = self.width, self.padded
        before = p // 2 - d // 2
        padded = functional.pad(volumes / self.gridding, (before, p - d - before) * 3)
        spectra = torch.fft.rfftn(torch.fft.ifftshift(padded, dim=(1, 2, 3)), dim=(1, 2, 3)) / d
        spectra = torch.fft.fftshift(spectra, dim=(1, 2))  # (k, p, p, p // 2 + 1)
        return torch.view_as_real(spectra.movedim(0, -1)).reshape(-1, 2 * len(volumes))

    def locate(self, rotation: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """Find the points of central slices in the padded grid.

        Returns
        -------
            Rows of the eight corners around each point, shape (b * m, 8), their trilinear weights,
            and, shape (b * m, 1), whether the point lies in the half that is not kept, so that its
            value is the conjugate.
        """
        p = self.padded
        views = self.points[:m].float() * (p / self.width)
        # R^T takes the view's frequencies to the molecule's; kz = 0 in a slice
        place = (views @ rotation[:, :2]).reshape(-1, 3)  # (b, m, 3) -> (b * m, 3) as x, y, z
        mirrored = place[:, :1] < 0
        place = torch.where(mirrored, -place, place)
        low = place.floor()
        part = place - low
        x, y, z = low.long().T
        first = ((z + p // 2) * p + y + p // 2) * (p // 2 + 1) + x
        share = torch.stack([1.0 - part, part], dim=-1)  # (b * m, 3, 2)
        of_x, of_y, of_z = share.unbind(1)
        weight = of_z[:, :, None, None] * of_y[:, None, :, None] * of_x[:, None, None, :]
        return first[:, None] + self.corner, weight.flatten(1), mirrored

    def slices(self, table: Tensor, rotation: Tensor, m: int) -> Tensor:
        """Cut the central slices of k volumes at b poses, complex, shape (b, k, m)."""
        index, weight, mirrored = self.locate(rotation, m)
        flat = _Interpolate.apply(table, index, weight)  # type: ignore[no-untyped-call]
        values = torch.view_as_complex(flat.view(len(index), -1, 2))  # (b * m, k)
        values = torch.where(mirrored, values.conj(), values)
        slices: Tensor = values.view(len(rotation), m, -1).transpose(1, 2)
        return slices

    def volumes(self, spectra: Tensor) -> Tensor:
        """Turn Fourier transforms on the padded grid, (k, p, p, p // 2 + 1), into (k, d, d, d)."""
        d, p = self.width, self.padded
        shifted = torch.fft.irfftn(spectra * d, s=(p, p, p), dim=(1, 2, 3))
        cut = slice(p // 2 - d // 2, p // 2 - d // 2 + d)
        volumes: Tensor = torch.fft.fftshift(shifted, dim=(1, 2, 3))[:, cut, cut, cut]
        return volumes * self.support / self.gridding


def _pixel_size(data: Data) -> float:
    """Return the one pixel size of all optics groups. [Angstrom]"""
    sizes = np.unique(data.dataset["pixel_size"].values)
    if sizes.size != 1:
        message = (
            f"cryoem model: pixel sizes {sizes.tolist()}; rescale the images to one pixel size"
        )
        raise UsageError(message)
    return float(sizes[0])


def _grey_levels(data: Data, distance: Tensor) -> Tensor:
    """Return mean outside the particles and standard deviation of the first training images."""
    images = next(iter(data.batches("train", 512)))["images"].float()
    outside = distance > 0.48 * len(distance)
    return torch.stack([images[:, outside].mean(), images.std().clamp_min(1e-12)])


# ---- reconstruction with known states, by back-projection


@dataclass(frozen=True)
class Sums:
    """What images say about k volumes, on the padded Fourier grid.

    Attributes
    ----------
    numerator
        Sum of CTF * image, complex, shape (k, p, p, p // 2 + 1).
    weight
        Sum of CTF^2, the same shape: the inverse variance, as the noise has about power 1.
    """

    numerator: Tensor
    weight: Tensor


def back_project(
    imaging: Imaging, data: Data, labels: Callable[[Batch], Tensor], count: int
) -> Sums:
    """Sum the training images into the volumes that `labels` gives them, from 0 to `count`."""
    p, m = imaging.padded, len(imaging.radii)
    rows = p * p * (p // 2 + 1)
    table = torch.zeros(count * rows, 3)
    for batch in data.batches("train", imaging.batch_size):
        ctf = imaging.transfer(batch, m)
        values = torch.view_as_real(imaging.observe(batch, m) * ctf).view(-1, 2)  # (b * m, 2)
        index, weight, mirrored = imaging.locate(rotations(batch), m)
        values = torch.where(mirrored, values * values.new_tensor([1.0, -1.0]), values)
        index += rows * labels(batch).long().repeat_interleave(m)[:, None]
        values = torch.cat([values, ctf.view(-1, 1) ** 2], dim=1)  # (b * m, 3)
        _spread(table, values, index, weight)
    grid = torch.fft.ifftshift(table.view(count, p, p, -1, 3), dim=(1, 2))
    numerator = torch.view_as_complex(grid[..., :2].contiguous())
    weight = grid[..., 2].clone()
    # each point has a mirror image; only those with kx = 0 fall into the half that is kept
    mirror = numerator[..., 0].flip(1, 2).roll((1, 1), dims=(1, 2))
    numerator[..., 0] += mirror.conj()
    weight[..., 0] += weight[..., 0].flip(1, 2).roll((1, 1), dims=(1, 2))
    return Sums(numerator, weight)


def signal_power(imaging: Imaging, halves: Sums) -> Tensor:
    """Estimate the power of the density from two half-maps, as ``rfftn`` coefficients / d.

    What the half-maps have in common is signal: the mean of their cross spectrum over a shell. At
    least a hundredth of their power is granted, so that no shell is fixed at zero.

    Returns
    -------
        Shape (d, d, d // 2 + 1).
    """
    weight = halves.weight + 0.1 * shell_mean(halves.weight) + 1e-6
    maps = imaging.volumes(halves.numerator / weight)
    first, second = torch.fft.rfftn(maps, dim=(1, 2, 3)) / imaging.width
    cross = shell_mean((first * second.conj()).real)
    power = shell_mean(0.5 * (first.abs() ** 2 + second.abs() ** 2))
    return torch.maximum(cross, 0.01 * power).clamp_min(1e-12)


def reconstruct(
    imaging: Imaging, sums: Sums, power: Tensor, mean: float = 100.0, deviation: float = 3.0
) -> Volumes:
    """Estimate volumes whose images are known: a Wiener filter towards the mean of the volumes.

    Each coefficient of a volume is mean + deviation, Gaussian of variance `mean` * `power` and
    `deviation` * `power`; the posterior mean is in closed form. For one volume it is RELION's
    numerator / (weight + 1 / tau^2).

    Parameters
    ----------
    power
        Of `signal_power`.

    Returns
    -------
        Densities, shape (k, d, d, d).
    """
    p, d = imaging.padded, imaging.width
    # the padded grid has (p / d)^3 times as many cells, each with so much less weight
    nearest = (shells(p) * (d / p)).round().long().clamp_max(d // 2)
    unit = power[0, 0][nearest] * (p / d) ** 3  # along an axis lie the shells from 0 to d / 2
    precision = 1.0 / (deviation * unit)
    known = precision / (sums.weight + precision)  # how far the mean counts in each volume
    common = (sums.numerator * known).sum(0) / ((sums.weight * known).sum(0) + 1.0 / (mean * unit))
    spectra = (sums.numerator + common * precision) / (sums.weight + precision)
    return np.asarray(imaging.volumes(spectra).numpy(), np.float32)


# ---- the model


class Mixture(nn.Module):
    """Volumes mean + deviation_k, the share of each state, and the noise in each shell.

    Volumes are kept as ``rfftn`` coefficients in units of their prior's standard deviation, so that
    Adam's steps suit all frequencies alike.
    """

    prior: Tensor
    formed: Tensor

    def __init__(
        self, imaging: Imaging, config: Config, power: Tensor, start: Tensor, particles: int
    ) -> None:
        super().__init__()
        d = imaging.width
        self.imaging = imaging
        self.config = config
        self.particles = particles  # over which the prior is shared out
        self.register_buffer("prior", power.sqrt())  # (d, d, d // 2 + 1)
        self.register_buffer("formed", torch.tensor(float(config.linear <= 0.0)))  # 1 with states
        spectrum = torch.fft.rfftn(torch.fft.ifftshift(start)) / d / self.prior
        shape = (config.states, *spectrum.shape, 2)
        self.mean = nn.Parameter(torch.view_as_real(spectrum).contiguous())
        self.deviation = nn.Parameter(config.start_deviation * torch.randn(shape))
        self.log_share = nn.Parameter(torch.zeros(config.states))
        self.log_noise = nn.Parameter(torch.zeros(d // 2))  # of each shell's power
        self._coordinates: list[Tensor] = []  # the latest z, for the clusters

    def _density(self, coefficients: Tensor) -> Tensor:
        d = self.imaging.width
        spectra = torch.view_as_complex(coefficients) * self.prior * d
        shifted = torch.fft.irfftn(spectra, s=(d, d, d), dim=(1, 2, 3))
        density: Tensor = torch.fft.fftshift(shifted, dim=(1, 2, 3))
        return density * self.imaging.support

    def volumes(self) -> Tensor:
        """Return the density of each state, shape (k, d, d, d); all the mean while it is linear."""
        return self._density(self.mean + self.formed * self.deviation)

    def _project(self, batch: Batch, table: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Return images (b, 2 m) and views of the volumes (b, k, 2 m) in standard deviations.

        Real and imaginary part share the noise's power.
        """
        scale = torch.exp(-0.5 * self.log_noise[self.imaging.shell[:m]]) * math.sqrt(2.0)
        images = self.imaging.observe(batch, m) * scale
        views = self.imaging.slices(table, rotations(batch), m)
        views = views * (self.imaging.transfer(batch, m) * scale)[:, None]
        return torch.view_as_real(images).flatten(1), torch.view_as_real(views).flatten(2)

    def score(self, batch: Batch, table: Tensor, m: int) -> Tensor:
        """Return the log probability of each particle with each state, up to a constant, (b, k)."""
        images, views = self._project(batch, table, m)
        misfit = 0.5 * (views - images[:, None]).square().sum(2)
        return torch.log_softmax(self.log_share, 0) - misfit

    def loss(self, batch: Batch, progress: float) -> Tensor:
        """Return the negative log posterior per particle and Fourier coefficient.

        Parameters
        ----------
        progress
            Share of the training that is done, from 0 to 1: the model becomes a mixture at
            ``config.linear``, and has all frequencies at ``config.coarse``.
        """
        m = self._frequencies(progress)
        if progress < self.config.linear:
            misfit = self._linear(batch, m)
        else:
            if self._coordinates:
                self._form_states()
            misfit = -torch.logsumexp(self.score(batch, self.imaging.table(self.volumes()), m), 1)
        prior = (
            self.mean.square().sum() / self.config.mean_prior**2
            + self.deviation.square().sum() / self.config.deviation_prior**2
        )
        noise = self.log_noise[self.imaging.shell[:m]].sum()
        return (misfit.mean() + noise + prior / self.particles) / m

    def _frequencies(self, progress: float) -> int:
        """Return how many points are used: the radius grows evenly."""
        last = self.imaging.radii[-1]
        field = self.imaging.width * self.imaging.pixel_size
        first = min(field / self.config.start_resolution, last)
        done = min(progress / self.config.coarse, 1.0) if self.config.coarse > 0 else 1.0
        return self.imaging.count(first + (last - first) * done + 1e-6)

    def _linear(self, batch: Batch, m: int) -> Tensor:
        """Return the misfit with the coordinates z ~ N(0, I) integrated out, shape (b,)."""
        volumes = self._density(torch.cat([self.mean[None], self.deviation]))
        images, views = self._project(batch, self.imaging.table(volumes), m)
        residual = images - views[:, 0]  # (b, 2 m)
        axes = views[:, 1:]  # (b, k, 2 m)
        precision = axes @ axes.transpose(1, 2) + torch.eye(axes.shape[1], device=axes.device)
        pull = axes @ residual[..., None]  # (b, k, 1)
        factor = torch.linalg.cholesky(precision)
        z = torch.cholesky_solve(pull, factor)  # the posterior mean of the coordinates
        self._remember(z.detach()[..., 0])
        log_determinant = 2.0 * torch.diagonal(factor, dim1=1, dim2=2).log().sum(1)
        explained = (pull * z).sum((1, 2))
        return 0.5 * (residual.square().sum(1) - explained + log_determinant)

    def _remember(self, z: Tensor) -> None:
        """Keep the coordinates of the last particles: one epoch's, at most 4096."""
        keep = max(1, min(self.particles, 4096) // len(z))
        self._coordinates = [*self._coordinates, z][-keep:]

    @torch.no_grad()
    def _form_states(self) -> None:
        """Turn the axes of the linear model into the states at the clusters' centres."""
        coordinates = torch.cat(self._coordinates).cpu()  # once in a training
        centres = cluster(coordinates, self.config.states).to(self.deviation.device)
        self.deviation.copy_(torch.einsum("kj,jzyxc->kzyxc", centres, self.deviation))
        self.formed.fill_(1.0)
        self._coordinates = []


def cluster(points: Tensor, count: int, *, starts: int = 20, steps: int = 30) -> Tensor:
    """Return the centres of the best of several k-means clusterings.

    Starts are those of k-means++ (Arthur and Vassilvitskii 2007), drawn with torch's global seed.

    Parameters
    ----------
    points
        Shape (n, c).

    Returns
    -------
        Shape (count, c).

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> cluster(points, 2).flatten().sort().values.tolist()
    [0.5, 10.5]
    """
    best, centres = math.inf, points[:1].expand(count, -1)
    for _ in range(starts):
        trial = points[torch.randint(len(points), (1,))]
        while len(trial) < count:
            nearest = torch.cdist(points, trial).square().amin(1) + 1e-12
            trial = torch.cat([trial, points[torch.multinomial(nearest, 1)]])
        for _ in range(steps):
            member = functional.one_hot(torch.cdist(points, trial).argmin(1), count).to(points)
            size = member.sum(0)[:, None]
            trial = torch.where(size > 0, member.T @ points / size.clamp_min(1.0), trial)
        spread = float(torch.cdist(points, trial).square().amin(1).sum())
        if spread < best:
            best, centres = spread, trial
    return centres


def build(config: Config, data: Data) -> Mixture:
    """Size the model by the data and start it at the consensus of the training images.

    Examples
    --------
    >>> import xarray as xr
    >>> class Tiny:
    ...     dataset = xr.Dataset(
    ...         coords={
    ...             "x": range(8),
    ...             "voltage": ("optics_group", [300.0]),
    ...             "spherical_aberration": ("optics_group", [2.7]),
    ...             "amplitude_contrast": ("optics_group", [0.1]),
    ...             "pixel_size": ("optics_group", [4.0]),
    ...         }
    ...     )
    ...     splits = {"train": np.arange(16)}
    ...
    ...     def batches(self, split, size, **order):
    ...         b = {"index": torch.arange(16), "images": torch.randn(16, 8, 8)}
    ...         views = ["rot", "tilt", "psi", "origin_x", "origin_y", "phase_shift"]
    ...         views += ["defocus_u", "defocus_v", "defocus_angle", "optics_group"]
    ...         return [b | {name: torch.rand(16) for name in views}]
    >>> _ = torch.manual_seed(0)
    >>> model = build(Config(states=2), Tiny())
    >>> tuple(model.volumes().shape)
    (2, 8, 8, 8)
    >>> model.loss(Tiny().batches("train", 16)[0], progress=0.9).shape
    torch.Size([])
    """
    imaging = Imaging(data, config.oversampling)
    halves = half_sets(imaging, data)
    power = signal_power(imaging, halves)
    both = Sums(halves.numerator.sum(0, keepdim=True), halves.weight.sum(0, keepdim=True))
    start = torch.from_numpy(reconstruct(imaging, both, power)[0])
    return Mixture(imaging, config, power, start, len(data.splits["train"]))


def half_sets(imaging: Imaging, data: Data) -> Sums:
    """Sum the training images into two volumes, every other particle into each."""
    return back_project(imaging, data, lambda batch: batch["index"] % 2, 2)


def optimizer(model: Mixture, config: Config) -> torch.optim.Optimizer:
    """Return Adam; its second moments forget sooner than usual, as the objective changes."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))


# ---- scores


@dataclass(frozen=True)
class Truth:
    """True volumes, shape (s, d, d, d), the mask that all are scored under, and the voxel [A]."""

    volumes: Volumes
    mask: Volumes
    pixel_size: float


def read_truth(data: Data) -> Truth:
    """Read the true volumes and make the mask.

    The mask is made from the truth, the same for every method: the largest density over the states,
    blurred by `MASK_BLUR`, rises to 1 at `MASK_LEVEL` of its maximum.

    Raises
    ------
    UsageError
        The subset has no ground truth.
    """
    if "volumes" not in data.dataset or "state" not in data.dataset.variables:
        message = "cryoem model: this subset has no true volumes; score it on one with ground truth"
        raise UsageError(message)
    volumes = np.asarray(data.dataset["volumes"].values, np.float32)
    pixel_size = _pixel_size(data)
    squares = np.fft.fftfreq(volumes.shape[-1], pixel_size) ** 2
    u2 = squares[:, None, None] + squares[:, None] + squares
    spectrum = np.fft.fftn(volumes.max(axis=0)) * np.exp(-2.0 * (math.pi * MASK_BLUR) ** 2 * u2)
    blurred = np.fft.ifftn(spectrum).real
    mask = np.clip(blurred / (MASK_LEVEL * blurred.max()), 0.0, 1.0)
    return Truth(volumes, mask.astype(np.float32), pixel_size)


@torch.no_grad()
def assign(model: Mixture, data: Data, split: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the most probable state and the true state of every particle of a split."""
    device, m = model.mean.device, len(model.imaging.radii)
    table = model.imaging.table(model.volumes())
    found, true = [], []
    for batch in data.batches(split, model.imaging.batch_size):
        here = {name: values.to(device) for name, values in batch.items()}
        found.append(model.score(here, table, m).argmax(1).cpu())
        true.append(batch["state"])
    return torch.cat(found).numpy(), torch.cat(true).numpy()


def scores(
    volumes: Volumes, found: npt.NDArray[Any], true: npt.NDArray[Any], truth: Truth
) -> dict[str, float]:
    """Score each particle's volume against that of its true state, and the states themselves.

    Parameters
    ----------
    volumes
        Shape (k, d, d, d).
    found, true
        Row of `volumes` and of ``truth.volumes`` for each particle, shape (n,).
    """
    pairs, counts = np.unique(np.stack([found, true], axis=1), axis=0, return_counts=True)
    curves = [
        fourier_shell_correlation(volumes[k] * truth.mask, truth.volumes[s] * truth.mask)
        for k, s in pairs
    ]
    resolutions = [fsc_resolution(curve, truth.pixel_size) for curve in curves]
    return {
        "fsc_auc": float(np.average([fsc_auc(curve) for curve in curves], weights=counts)),
        "resolution": float(np.average(resolutions, weights=counts)),
        "adjusted_rand": adjusted_rand_index(true, found),
        "balanced_accuracy": balanced_accuracy(true, found),
    }


def evaluate(model: Mixture, data: Data, split: str) -> dict[str, float]:
    """Score every particle of a split.

    Returns
    -------
    dict
        ``fsc_auc``: area under the signed FSC between the volume that the model assigns to a
        particle and the true one, `scibench_data.metrics.fsc_auc`, mean over particles.
        ``resolution``: where that FSC falls below 0.5, mean over particles. [Angstrom]
        ``adjusted_rand`` and ``balanced_accuracy`` of the states.

    Raises
    ------
    UsageError
        The subset has no ground truth.
    """
    truth = read_truth(data)
    found, true = assign(model, data, split)
    with torch.no_grad():
        volumes = model.volumes().cpu().numpy()
    return scores(volumes, found, true, truth)


@torch.no_grad()
def compare(data: Data, config: Config) -> dict[str, dict[str, float]]:
    """Score what is possible without states, and with the true ones, on the test split.

    Both are `reconstruct` of the training images, with the priors that do best on the validation
    split: one consensus volume for all, and one volume for each true state.
    """
    truth = read_truth(data)
    imaging = Imaging(data, config.oversampling)
    power = signal_power(imaging, half_sets(imaging, data))
    count = len(truth.volumes)
    states = back_project(imaging, data, lambda batch: batch["state"], count)
    consensus = Sums(states.numerator.sum(0, keepdim=True), states.weight.sum(0, keepdim=True))

    def score(volumes: Volumes, split: str) -> dict[str, float]:
        """Give each particle the volume of its true state, or the only one."""
        true = np.asarray(data.dataset["state"].values)[data.splits[split]]
        return scores(volumes, np.minimum(true, len(volumes) - 1), true, truth)

    def best(sums: Sums) -> dict[str, float]:
        priors = itertools.product(MEAN_VARIANCES, DEVIATION_VARIANCES)
        tried = [reconstruct(imaging, sums, power, *prior) for prior in priors]
        return score(max(tried, key=lambda v: score(v, "validation")["fsc_auc"]), "test")

    return {"baseline: consensus": best(consensus), "ceiling: true states": best(states)}


# ---- pictures


def figures(model: Mixture, data: Data, folder: Path) -> None:
    """Draw ``fsc.png``, curves of each state, and ``volumes.png``, volumes beside the truth."""
    truth = read_truth(data)
    found, true = assign(model, data, "test")
    with torch.no_grad():
        volumes = model.volumes().cpu().numpy() * truth.mask
    # the states that occur in the test split, and the volume that best stands for each
    present = np.unique(true)
    taken = np.unique(found)
    match = best_matching(contingency(true, found).astype(np.float64))
    pairs = [(s, taken[c]) for s, c in zip(present, match, strict=True) if c >= 0]
    imaging = Imaging(data, model.config.oversampling)
    halves = half_sets(imaging, data)
    both = Sums(halves.numerator.sum(0, keepdim=True), halves.weight.sum(0, keepdim=True))
    power = signal_power(imaging, halves)
    consensus = reconstruct(imaging, both, power)[0] * truth.mask
    _draw_curves(pairs, volumes, consensus, truth, folder / "fsc.png")
    _draw_volumes(pairs, volumes, truth, folder / "volumes.png")


def _draw_curves(
    pairs: Sequence[tuple[int, int]],
    volumes: Volumes,
    consensus: Volumes,
    truth: Truth,
    path: Path,
) -> None:
    """Draw the FSC of the model and of the consensus with the truth, one panel for each state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0 + 2.6 * len(pairs), 3.0), layout="constrained")
    panels: Iterable[Any] = np.atleast_1d(figure.subplots(1, len(pairs), sharey=True))
    for axes, (state, k) in zip(panels, pairs, strict=True):
        target = truth.volumes[state] * truth.mask
        for name, color, volume in (
            ("consensus", "#ee6677", consensus),
            ("model", "#4477aa", volumes[k]),
        ):
            curve = fourier_shell_correlation(volume, target)
            frequency = np.arange(curve.size) / (2 * curve.size * truth.pixel_size)
            axes.plot(frequency, curve, color=color, label=f"{name}, AUC {fsc_auc(curve):.3f}")
        axes.axhline(0.5, color="0.6", ls=":")
        axes.set(title=f"state {state}", xlabel="frequency [1/Å]", ylim=(-0.1, 1.02))
        axes.legend(fontsize="x-small", loc="lower left")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("FSC with the truth")
    figure.savefig(path, dpi=130)


def _draw_volumes(
    pairs: Sequence[tuple[int, int]], volumes: Volumes, truth: Truth, path: Path
) -> None:
    """Draw projection along y and central section of truth and model, one row for each state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.9 * len(pairs) + 0.3), layout="constrained")
    rows: Iterable[Any] = figure.subplots(len(pairs), 4, squeeze=False)
    middle = volumes.shape[-1] // 2
    titles = ("projection: truth", "model", "section: truth", "model")
    for number, (row, (state, k)) in enumerate(zip(rows, pairs, strict=True)):
        both = (truth.volumes[state] * truth.mask, volumes[k])
        pictures = [v.sum(axis=1) for v in both] + [v[:, middle] for v in both]
        for column, (axes, picture) in enumerate(zip(row, pictures, strict=True)):
            # each in its own grey scale: a reconstruction knows the density up to a factor
            axes.imshow(picture, cmap="gray", origin="lower", vmin=0.0, vmax=picture.max())
            axes.set(xticks=[], yticks=[])
            if number == 0:
                axes.set_title(titles[column], fontsize="small")
        row[0].set_ylabel(f"state {state}", fontsize="small")
    figure.savefig(path, dpi=130)
