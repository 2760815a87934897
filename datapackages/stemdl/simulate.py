"""Simulate convergent-beam electron diffraction (CBED) of crystals, byte for byte the same.

A sample is what the STEMDL data hold: three patterns of one crystal along three directions, at one
energy. They are dynamical: a focused probe goes through the slab slice by slice (the multislice
method, Kirkland 2010, doi:10.1007/978-1-4419-6533-2)::

    psi <- propagate * F(transmit * F^-1(psi))
    transmit = exp(i sigma v),   propagate = exp(-i pi lambda dz k^2)

with v the projected potential of a slice, the sum of the electron scattering factors of its atoms.
Crystals are prototypes of `GROUPS` with elements and cell lengths drawn at random: most of these
compounds do not exist. Directions, convergence and file layout follow NAMSA, which simulated the
original (doi:10.11578/dc.20201001.90). Two things make the task harder than the original: every
pattern is turned at random about the beam, which costs nothing and is exact because the crystal is
turned before it is sampled, and it is counted with a finite dose of electrons.

Numbers come from `scibench_data.exact` and from what IEEE 754 fixes, nothing else.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt

from scibench_data import exact
from scibench_data.errors import UsageError, did_you_mean
from scibench_data.exact import Array

Integers: TypeAlias = npt.NDArray[np.int64]
Site: TypeAlias = tuple[int, float, float, float]  # species, fractional coordinates

ENERGIES = 2  # of the ten below, for each material
ALL_ENERGIES = range(100, 200, 10)  # [keV]
SLICES = (8, 20)  # fewest and most slices in a slab
SLICE = 3.0  # what the thickness of a slice is near to [Angstrom]
OVERLAP = 0.5  # semi-angle of the probe over the Bragg angle of the reflection along the beam
SPACINGS = (1.0, 5.0)  # of the reflections that choose the directions [Angstrom]
DEBYE_WALLER = 0.5  # B of every atom [Angstrom^2]
MATERIALS_PER_RANK = 210
SPLITS = ("train", "dev", "test")
_PATTERN = "02010020102001020020"  # splits of successive materials: 12 train, 3 dev, 5 test
_SHARES = (0.6, 0.75)  # the elements of a prototype are cut here into those of each split

_KILOVOLT_REST = 510.99895  # rest energy of the electron [keV]
_HC = 12.3984198  # Planck's constant times the speed of light [keV Angstrom]
_VOLT = 47.87801  # h^2 / (2 pi m e), of a scattering factor to a potential [V Angstrom^2]

# Kirkland 2010, appendix C (doi:10.1007/978-1-4419-6533-2), to four digits:
# f(k) = sum_i a_i / (k^2 + b_i) + c_i exp(-d_i k^2) [Angstrom], k in 1 / Angstrom;
# a_1..3, b_1..3, c_1..3, d_1..3.
SCATTERING = {
    "Mg": "0.1002 0.3031 0.7588 30.56 0.08346 1.636 0.9598 0.03459 0.1201 12.07 0.2176 0.5624",
    "Al": "0.4262 0.7796 0.05723 0.09114 2.724 79.76 0.1137 0.03274 0.7859 0.4508 0.1797 8.646",
    "Ca": "0.6584 0.8719 0.3708 8.004 0.5866 0.06135 0.4932 0.02211 1.789 1.331 0.09087 21.06",
    "Ti": "0.9963 0.7373 0.3554 0.497 8.326 0.07266 1.422 0.01634 0.3602 15.85 0.07317 0.9572",
    "V": "0.7446 0.3404 1.099 8.943 0.07729 0.5049 1.305 0.0142 0.3275 14.36 0.06568 0.8382",
    "Cr": "1.347 0.3921 0.5393 1.128 0.07353 11.44 0.338 0.4855 0.01197 0.6749 1.588 0.05977",
    "Fe": "0.3358 1.449 0.6902 0.09303 0.6386 13.19 0.971 0.01051 0.2542 11.28 0.04823 0.6061",
    "Co": "1.577 0.3395 0.6583 0.7043 0.09833 15.87 0.8768 0.2345 9.936e-3 10.56 0.5533 0.04383",
    "Ni": "0.345 1.704 0.6269 0.1038 0.7757 19.57 0.7893 0.2169 9.595e-3 9.92 0.5077 0.03998",
    "Cu": "0.3439 1.77 0.6455 0.1027 0.9782 15.64 0.1796 0.2157 7.690e-3 0.3945 0.8689 0.0387",
    "Zn": "0.571 2.001 0.3042 0.1266 2.196 46.57 0.2374 0.398 7.267e-3 0.3687 0.8697 0.03302",
    "Sr": "0.01682 1.592 1.978 0.01865 0.2232 6.419 0.1741 4.599 1.563e-3 0.2016 25.29 0.01608",
    "Zr": "0.7644 2.633 0.61 0.07684 2.199 199.1 0.9482 6.427e-3 0.0996 1.541 0.016 0.1755",
    "Nb": "0.5658 1.354 1.865 0.07332 0.5774 6.262 0.6934 2.260e-3 0.1254 1.656 8.422e-3 0.1663",
    "Mo": "0.5153 1.404 1.959 0.07446 0.4892 6.369 0.6417 2.170e-3 0.1172 1.493 8.006e-3 0.1548",
    "Pd": "0.8518 1.4 2.139 0.2182 0.569 9.237 0.3362 0.1016 0.5482 2.043 0.1202 0.9709",
    "Ag": "1.979 2.065 0.4449 0.6487 10.03 0.105 0.09428 0.6057 0.4797 0.1124 0.8971 2.023",
    "Ba": "0.1501 1.992 3.192 0.03517 0.2292 9.323 0.06762 0.5416 4.365 0.07303 0.408 29.44",
    "W": "0.8356 3.319 2.833 0.1146 13.52 0.74 0.9172 0.3316 0.02114 12.44 0.1979 0.03412",
    "Pt": "3.679 2.952 0.7145 12.85 0.6351 0.1259 0.2429 0.307 0.01568 1.501 0.17 0.02878",
    "Au": "3.73 0.8702 2.839 13 0.1628 0.653 0.2828 0.0149 0.2984 1.385 0.02759 0.1633",
    "Pb": "0.9947 3.131 3.606 0.1154 0.8805 15.25 0.01419 0.4046 0.264 0.02462 1.05 0.1428",
    "C": "0.167 0.2531 0.1603 5.698 0.2088 0.2088 8.662e-4 0.1416 0.3602 0.04122 1.341 3.817",
    "N": "0.1463 0.2816 0.2508 10.5 0.2832 0.2832 0.2491 9.212e-4 0.107 2.749 0.03567 0.9949",
    "O": "0.1329 0.3686 0.2771 19.4 0.3675 0.3675 1.053e-3 0.08393 0.1816 0.03125 0.7584 2.044",
    "F": "0.1272 0.3914 0.3651 41.65 0.4709 0.4709 0.06968 1.349e-3 0.1451 0.5919 0.02684 1.573",
    "Si": "1.065 0.1201 0.1823 1.046 70.63 0.08689 1.583 0.03061 1.109 9.931 0.2148 3.692",
    "P": "0.1183 0.3097 1.044 109.2 0.1248 1.345 1.341 0.0266 0.9433 7.55 0.1831 2.883",
    "S": "0.1273 0.4574 1.003 193.9 0.1685 1.745 0.808 0.02368 1.134 2.316 0.1582 5.933",
    "Cl": "0.3832 0.3122 0.9418 9.48 9.48 0.2357 0.7794 0.05597 0.0109 2.981 0.1687 0.06758",
    "Ge": "2.012 0.5883 0.5561 1.395 0.1167 81.25 0.7434 9.935e-3 0.1838 6.918 0.0267 0.3653",
    "Se": "0.5933 0.9367 1.924 179.9 0.1753 2.109 0.8928 0.1728 8.687e-3 4.917 0.2995 0.0216",
    "Te": "1.628 1.273 2.073 1.214 0.1578 12.88 0.0696 0.5583 0.9565 0.08281 0.6203 7.498",
}
_NONMETALS = ("C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "Se", "Te")
_METALS = tuple(element for element in SCATTERING if element not in _NONMETALS)


# ---- structure types


@dataclass(frozen=True, kw_only=True)
class Prototype:
    """A structure type: a space group and the sites of its conventional cell.

    Attributes
    ----------
    group
        Number of the space group, in the setting of the International Tables.
    system
        ``cubic``, ``tetragonal`` or ``hexagonal``: what the cell's lengths and angles are.
    a, ratio
        Range of the cell's length a [Angstrom], and of c / a.
    species
        What each species of the sites may be: ``M`` a metal, ``X`` a non-metal.
    """

    name: str
    group: int
    system: str
    a: tuple[float, float]
    species: str
    sites: tuple[Site, ...]
    ratio: tuple[float, float] = (1.0, 1.0)


_FACES = ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
_BODY = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))


def _centred(centring: tuple[tuple[float, float, float], ...], *sites: Site) -> tuple[Site, ...]:
    """Repeat sites at every point of a centred lattice."""
    return tuple(
        (species, (x + dx) % 1.0, (y + dy) % 1.0, (z + dz) % 1.0)
        for species, x, y, z in sites
        for dx, dy, dz in centring
    )


def _threefold(species: int, x: float, *, inverted: bool) -> tuple[Site, ...]:
    """Wyckoff position (x, x, x) of P2(1)3 (4a), with inversion of Pa-3 (8c)."""
    first = ((x, x, x), (0.5 - x, -x, 0.5 + x), (-x, 0.5 + x, 0.5 - x), (0.5 + x, 0.5 - x, -x))
    signs = (1.0, -1.0) if inverted else (1.0,)
    return tuple(
        (species, s * u % 1.0, s * v % 1.0, s * w % 1.0) for s in signs for u, v, w in first
    )


_CENTRE = (0.0, 0.0, 0.0)
_RHOMBOHEDRAL = (_CENTRE, (2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0), (1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0))
_LEFT, _RIGHT = (1.0 / 3.0, 2.0 / 3.0), (2.0 / 3.0, 1.0 / 3.0)  # the threefold axes off the origin
_EDGES = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5))
_QUARTERS = ((0.25, 0.25, 0.25), (0.25, 0.75, 0.75), (0.75, 0.25, 0.75), (0.75, 0.75, 0.25))
_CHAINS = (
    (0.25, 0.0, 0.5), (0.75, 0.0, 0.5), (0.5, 0.25, 0.0),
    (0.5, 0.75, 0.0), (0.0, 0.5, 0.25), (0.0, 0.5, 0.75),
)  # fmt: skip
_LAVES = (
    (0.625, 0.625, 0.625),
    (0.625, 0.875, 0.875),
    (0.875, 0.625, 0.875),
    (0.875, 0.875, 0.625),
)


def _cubic(name: str, group: int, species: str, a: tuple[float, float], *sites: Site) -> Prototype:
    return Prototype(name=name, group=group, system="cubic", a=a, species=species, sites=sites)


PROTOTYPES = (
    Prototype(
        name="CuAu", group=123, system="tetragonal", a=(2.6, 3.6), ratio=(0.8, 1.5), species="MM",
        sites=((0, *_CENTRE), (1, 0.5, 0.5, 0.5)),
    ),
    Prototype(
        name="litharge", group=129, system="tetragonal", a=(3.5, 4.4), ratio=(1.1, 1.8),
        species="MX",
        sites=((0, 0.0, 0.5, 0.24), (0, 0.5, 0.0, 0.76), (1, *_CENTRE), (1, 0.5, 0.5, 0.0)),
    ),
    Prototype(
        name="PtS", group=131, system="tetragonal", a=(3.2, 4.2), ratio=(1.5, 1.9), species="MX",
        sites=((0, 0.0, 0.5, 0.0), (0, 0.5, 0.0, 0.5), (1, 0.0, 0.0, 0.25), (1, 0.0, 0.0, 0.75)),
    ),
    Prototype(
        name="rutile", group=136, system="tetragonal", a=(4.1, 5.2), ratio=(0.6, 0.72),
        species="MX",
        sites=(
            *_centred(_BODY, (0, *_CENTRE)),
            (1, 0.305, 0.305, 0.0), (1, 0.695, 0.695, 0.0),
            (1, 0.195, 0.805, 0.5), (1, 0.805, 0.195, 0.5),
        ),
    ),
    Prototype(
        name="indium", group=139, system="tetragonal", a=(2.8, 4.0), ratio=(0.8, 1.7), species="M",
        sites=_centred(_BODY, (0, *_CENTRE)),
    ),
    Prototype(
        name="MoSi2", group=139, system="tetragonal", a=(2.9, 3.9), ratio=(2.1, 2.9), species="MM",
        sites=_centred(_BODY, (0, *_CENTRE), (1, 0.0, 0.0, 0.335), (1, 0.0, 0.0, 0.665)),
    ),
    Prototype(
        name="ThCr2Si2", group=139, system="tetragonal", a=(3.6, 4.3), ratio=(2.2, 2.8),
        species="MMX",
        sites=_centred(
            _BODY,
            (0, *_CENTRE), (1, 0.0, 0.5, 0.25), (1, 0.5, 0.0, 0.25),
            (2, 0.0, 0.0, 0.37), (2, 0.0, 0.0, 0.63),
        ),
    ),
    Prototype(
        name="anatase", group=141, system="tetragonal", a=(3.5, 4.4), ratio=(2.2, 2.8),
        species="MX",
        sites=_centred(
            _BODY,
            (0, *_CENTRE), (0, 0.0, 0.5, 0.25),
            (1, 0.0, 0.0, 0.208), (1, 0.0, 0.0, 0.792), (1, 0.0, 0.5, 0.458), (1, 0.0, 0.5, 0.042),
        ),
    ),
    Prototype(
        name="CdI2", group=164, system="hexagonal", a=(3.1, 4.6), ratio=(1.2, 1.8), species="MX",
        sites=((0, *_CENTRE), (1, *_LEFT, 0.25), (1, *_RIGHT, 0.75)),
    ),
    Prototype(
        name="arsenic", group=166, system="hexagonal", a=(3.3, 4.5), ratio=(2.2, 2.9), species="A",
        sites=_centred(_RHOMBOHEDRAL, (0, 0.0, 0.0, 0.23), (0, 0.0, 0.0, 0.77)),
    ),
    Prototype(
        name="wurtzite", group=186, system="hexagonal", a=(2.8, 4.6), ratio=(1.55, 1.7),
        species="MX",
        sites=((0, *_LEFT, 0.0), (0, *_RIGHT, 0.5), (1, *_LEFT, 0.377), (1, *_RIGHT, 0.877)),
    ),
    Prototype(
        name="WC", group=187, system="hexagonal", a=(2.7, 3.8), ratio=(0.8, 1.3), species="MX",
        sites=((0, *_CENTRE), (1, *_LEFT, 0.5)),
    ),
    Prototype(
        name="AlB2", group=191, system="hexagonal", a=(2.8, 4.2), ratio=(0.8, 1.3), species="MX",
        sites=((0, *_CENTRE), (1, *_LEFT, 0.5), (1, *_RIGHT, 0.5)),
    ),
    Prototype(
        name="hcp", group=194, system="hexagonal", a=(2.4, 4.0), ratio=(1.5, 1.9), species="M",
        sites=((0, *_LEFT, 0.25), (0, *_RIGHT, 0.75)),
    ),
    Prototype(
        name="NiAs", group=194, system="hexagonal", a=(3.1, 4.6), ratio=(1.2, 1.8), species="MX",
        sites=((0, *_CENTRE), (0, 0.0, 0.0, 0.5), (1, *_LEFT, 0.25), (1, *_RIGHT, 0.75)),
    ),
    _cubic(
        "FeSi", 198, "MX", (4.2, 5.8),
        *_threefold(0, 0.137, inverted=False), *_threefold(1, 0.842, inverted=False),
    ),
    _cubic(
        "pyrite", 205, "MX", (5.0, 6.8),
        *_centred(_FACES, (0, *_CENTRE)), *_threefold(1, 0.385, inverted=True),
    ),
    _cubic(
        "zinc-blende", 216, "MX", (3.8, 6.8),
        *_centred(_FACES, (0, *_CENTRE), (1, 0.25, 0.25, 0.25)),
    ),
    _cubic(
        "half-Heusler", 216, "MMX", (5.2, 6.8),
        *_centred(_FACES, (0, *_CENTRE), (1, 0.25, 0.25, 0.25), (2, 0.5, 0.5, 0.5)),
    ),
    _cubic("CsCl", 221, "MM", (2.8, 4.5), (0, *_CENTRE), (1, 0.5, 0.5, 0.5)),
    _cubic("ReO3", 221, "MX", (3.6, 4.5), (0, *_CENTRE), *((1, *edge) for edge in _EDGES)),
    _cubic(
        "perovskite", 221, "MMX", (3.6, 4.7),
        (0, *_CENTRE), (1, 0.5, 0.5, 0.5), *((2, *face) for face in _FACES[1:]),
    ),
    _cubic("Cu3Au", 221, "MM", (3.5, 5.0), (0, *_CENTRE), *((1, *face) for face in _FACES[1:])),
    _cubic(
        "Cr3Si", 223, "MX", (4.4, 5.6),
        (1, *_CENTRE), (1, 0.5, 0.5, 0.5),
        *((0, *place) for place in _CHAINS),
    ),
    _cubic(
        "cuprite", 224, "MX", (4.2, 5.6),
        *((0, *quarter) for quarter in _QUARTERS), *_centred(_BODY, (1, *_CENTRE)),
    ),
    _cubic("fcc", 225, "M", (3.4, 5.6), *_centred(_FACES, (0, *_CENTRE))),
    _cubic(
        "rock-salt", 225, "MX", (4.1, 7.0), *_centred(_FACES, (0, *_CENTRE), (1, 0.5, 0.5, 0.5))
    ),
    _cubic(
        "fluorite", 225, "MX", (4.8, 7.0),
        *_centred(_FACES, (0, *_CENTRE), (1, 0.25, 0.25, 0.25), (1, 0.75, 0.75, 0.75)),
    ),
    _cubic(
        "Heusler", 225, "MMX", (5.2, 6.8),
        *_centred(
            _FACES,
            (0, 0.25, 0.25, 0.25), (0, 0.75, 0.75, 0.75), (1, *_CENTRE), (2, 0.5, 0.5, 0.5),
        ),
    ),
    _cubic(
        "diamond", 227, "A", (3.6, 6.8), *_centred(_FACES, (0, *_CENTRE), (0, 0.25, 0.25, 0.25))
    ),
    _cubic(
        "Laves-C15", 227, "MM", (6.4, 8.0),
        *_centred(
            _FACES, (0, *_CENTRE), (0, 0.25, 0.25, 0.25), *((1, *place) for place in _LAVES)
        ),
    ),
    _cubic("bcc", 229, "M", (2.7, 5.2), *_centred(_BODY, (0, *_CENTRE))),
)  # fmt: skip
GROUPS = tuple(sorted({prototype.group for prototype in PROTOTYPES}))


# ---- parameters and files


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What can be chosen; the first samples stay the same however many there are.

    Parameters
    ----------
    samples
        Number of stacks of three patterns; `ENERGIES` of them show one material.
    seed
        Chooses elements, cells, directions about the beam, slabs, energies, noise and splits.
    pixels
        Width of a pattern, even. The original has 512.
    cell
        Width of the simulated cell, and so the reciprocal of a pixel. The original has 100.
        [Angstrom]
    dose
        Electrons that make a pattern.

    Raises
    ------
    UsageError
        A value out of range.
    """

    samples: int = 1680
    seed: int = 1
    pixels: int = 36
    cell: float = 20.0
    dose: int = 50_000

    def __post_init__(self) -> None:
        bounds = {
            "samples": (1, 10_000_000),
            "seed": (0, (1 << 63) - 1),
            "pixels": (16, 1024),
            "cell": (10.0, 200.0),
            "dose": (100, 10**12),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name == "cell"
            if not (whole and low <= value <= high) or (name == "pixels" and value % 2):
                kind = {"cell": "a number", "pixels": "an even integer"}.get(name, "an integer")
                message = f"stemdl: {name}={value!r}; give {kind} from {low} to {high}"
                raise UsageError(message)


def files(**parameters: int | float) -> tuple[str, ...]:
    """Return the paths of the files of a simulation with these `Parameters`."""
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    return tuple(sorted({_file_of(m) for m in range(-(-asked.samples // ENERGIES))}, key=_order))


def simulate(path: str, output: Path, **parameters: int | float) -> None:
    """Write the file that `files` calls `path` to `output`.

    Raises
    ------
    UsageError
        There is no such file with these `Parameters`, or one of them is out of range.
    """
    names = files(**parameters)
    asked = Parameters(**parameters)  # type: ignore[arg-type]  # checked there
    if path not in names:
        message = f"stemdl: no file {path!r} in the simulation; {did_you_mean(path, names)}"
        raise UsageError(message)
    first = _order(path)[1] * MATERIALS_PER_RANK
    # HDF5's earliest format has no time stamps, and numbers lie in it as they are
    with h5py.File(output, "w", libver="earliest") as file:
        for number in range(first, first + MATERIALS_PER_RANK):
            wanted = min(asked.samples - number * ENERGIES, ENERGIES)
            if wanted > 0 and _file_of(number) == path:
                _write_material(file, number, wanted, asked)


def _split_of(number: int) -> int:
    """Split of a material: every space group runs through the same cycle of twenty."""
    return int(_PATTERN[(number % len(GROUPS) + number // len(GROUPS)) % len(_PATTERN)])


def _file_of(number: int) -> str:
    split = SPLITS[_split_of(number)]
    return f"{split}/batch_{split}_{number // MATERIALS_PER_RANK}.h5"


def _order(path: str) -> tuple[int, int]:
    """Split and rank of a file."""
    split, _, rest = path.partition("/")
    return SPLITS.index(split), int(rest.removesuffix(".h5").rpartition("_")[2])


def _write_material(file: h5py.File, number: int, wanted: int, asked: Parameters) -> None:
    """Write the samples of a material, one group for each energy, as NAMSA's scripts do."""
    crystal = _crystal(asked.seed, number)
    views = _views(crystal, asked.seed, number)
    energies = _energies(asked.seed, number)
    slices = _slices(asked.seed, number)
    intensity = _intensities(crystal, views, energies, slices, asked)
    for k, energy in enumerate(energies[:wanted]):
        expected = asked.dose * intensity[:, k]
        counts = _poisson(expected, "stemdl", asked.seed, "electrons", number, k)
        group = file.create_group(f"sample_{number}_{k}")
        group.create_dataset(
            "cbed_stack", data=(counts / asked.dose).astype("<f4"), track_times=False
        )
        group.attrs["space_group"] = np.array(str(crystal.prototype.group).encode())
        group.attrs["material"] = np.array(crystal.name.encode())
        group.attrs["energy_keV"] = np.float64(energy)
        # three vectors along the last axis, as numpy.dstack lays them
        group.attrs["z_dirs"] = np.stack([view.reflection for view in views], axis=-1)[None]
        group.attrs["y_dirs"] = np.stack([view.up for view in views], axis=-1)[None]
        group.attrs["semi_angles_rad"] = _semi_angles(views, energy)
        group.attrs["d_hkls_angstrom"] = np.array([view.spacing for view in views])
        group.attrs["abc_angstrom"] = crystal.lengths
        group.attrs["angles_degree"] = np.array([90.0, 90.0, crystal.gamma])
        group.attrs["formula"] = crystal.formula


# ---- materials


@dataclass(frozen=True)
class Crystal:
    """A material: a prototype with its elements and cell."""

    prototype: Prototype
    elements: tuple[str, ...]
    lengths: Array

    @property
    def name(self) -> str:
        """Prototype and elements: two crystals of one name are one material."""
        return "-".join([self.prototype.name, *self.elements])

    @property
    def formula(self) -> str:
        """Elements and how many of each are in the cell, as pymatgen writes them."""
        species = [site[0] for site in self.prototype.sites]
        return " ".join(f"{e}{species.count(s)}" for s, e in enumerate(self.elements))

    @property
    def gamma(self) -> float:
        """Angle between a and b. [degree]"""
        return 120.0 if self.prototype.system == "hexagonal" else 90.0

    @property
    def basis(self) -> Array:
        """Rows are the vectors a, b, c in a Cartesian frame with a along x. [Angstrom]"""
        a, b, c = self.lengths
        if self.prototype.system == "hexagonal":
            return np.array([[a, 0.0, 0.0], [-0.5 * b, math.sqrt(0.75) * b, 0.0], [0.0, 0.0, c]])
        return np.diag(self.lengths)


@functools.cache
def _elements(name: str, seed: int, split: int) -> tuple[tuple[str, ...], ...]:
    """Return the combinations of elements that a prototype may have in this split only."""
    prototype = next(each for each in PROTOTYPES if each.name == name)
    kinds = {"M": _METALS, "X": _NONMETALS, "A": (*_METALS, *_NONMETALS)}
    every = [
        combination
        for combination in itertools.product(*(kinds[kind] for kind in prototype.species))
        if len(set(combination)) == len(combination)
    ]
    chance = exact.uniform(len(every), "stemdl", seed, "elements", name)
    order = np.argsort(chance, kind="stable").tolist()
    ends = [0, *(math.floor(share * len(every)) for share in _SHARES), len(every)]
    return tuple(every[place] for place in order[ends[split] : ends[split + 1]])


def _crystal(seed: int, number: int) -> Crystal:
    """Draw a material: space groups take turns, so that all are equally frequent."""
    u = exact.uniform(4, "stemdl", seed, "material", number)
    group = GROUPS[number % len(GROUPS)]
    prototypes = [prototype for prototype in PROTOTYPES if prototype.group == group]
    prototype = prototypes[math.floor(u[0] * len(prototypes))]
    pool = _elements(prototype.name, seed, _split_of(number))
    a, ratio = (
        low + share * (high - low)
        for share, (low, high) in zip(u[2:], (prototype.a, prototype.ratio), strict=True)
    )
    # rounded as the attributes of a file would be quoted
    lengths = np.rint(np.array([a, a, a * ratio]) * 1e4) / 1e4
    return Crystal(prototype, pool[math.floor(u[1] * len(pool))], lengths)


def _energies(seed: int, number: int) -> list[int]:
    """Draw different energies of a material. [keV]"""
    chance = exact.uniform(len(ALL_ENERGIES), "stemdl", seed, "energy", number)
    return [ALL_ENERGIES[i] for i in np.argsort(chance, kind="stable")[:ENERGIES]]


# ---- directions


@dataclass(frozen=True)
class View:
    """How a crystal lies in the microscope.

    Attributes
    ----------
    reflection
        Indices of the reflection whose numbers are those of the direction along the beam.
    spacing
        Its lattice spacing. [Angstrom]
    axes
        Rows are the unit vectors x, y, z (along the beam) of the pattern in the crystal's
        Cartesian frame.
    up
        The y axis in lattice coordinates, a vector of 1 Angstrom.
    period
        After which the crystal repeats along the beam. [Angstrom]
    origin
        Where the crystal lies under the probe, in lattice coordinates.
    """

    reflection: Array
    spacing: float
    axes: Array
    up: Array
    period: float
    origin: Array

    @property
    def layers(self) -> int:
        """Slices in a period."""
        return max(1, math.floor(self.period / SLICE + 0.5))


def scattering(element: str, k2: Array) -> Array:
    """Electron scattering factor of an atom at rest. [Angstrom]

    Parameters
    ----------
    element
        One of `SCATTERING`.
    k2
        Squared spatial frequency, (2 sin(theta) / lambda)^2. [1 / Angstrom^2]
    """
    numbers = [float(number) for number in SCATTERING[element].split()]
    factor = np.zeros_like(k2)
    for a, b, c, d in zip(*(numbers[i : i + 3] for i in range(0, 12, 3)), strict=True):
        factor += a / (k2 + b) + c * exact.exp(-d * k2)
    return factor


def _views(crystal: Crystal, seed: int, number: int) -> list[View]:
    """Look along three directions, each turned about the beam at random."""
    angle = exact.uniform(3, "stemdl", seed, "rotation", number)
    origin = exact.uniform(9, "stemdl", seed, "origin", number).reshape(3, 3)
    strongest = _strongest_reflections(crystal)
    return [
        _view(crystal, hkl, spacing, float(angle[i]), origin[i])
        for i, (hkl, spacing) in enumerate(strongest)
    ]


def _view(crystal: Crystal, hkl: Array, spacing: float, turns: float, origin: Array) -> View:
    """Put the direction with the indices `hkl` along the beam and turn the crystal about it."""
    basis = crystal.basis
    direction = hkl / math.gcd(*(int(index) for index in hkl))
    along = _combine(direction, basis)
    period = math.sqrt(_dot(along, along))
    z = along / period
    # any vector that is not along z gives a first x axis
    start = basis[0] if _dot(basis[0], z) ** 2 < 0.8 * _dot(basis[0], basis[0]) else basis[1]
    across = start - _dot(start, z) * z
    across = across / math.sqrt(_dot(across, across))
    third = _cross(z, across)
    sine, cosine = exact.sincos(turns)
    x, y = cosine * across + sine * third, cosine * third - sine * across
    up = np.array([_dot(y, row) for row in _reciprocal(basis)])
    return View(hkl, spacing, np.stack([x, y, z]), up, period, origin)


def _strongest_reflections(crystal: Crystal) -> list[tuple[Array, float]]:
    """Find the three families of reflections that scatter most, no two along one line.

    As in NAMSA, which takes the indices of strong kinematic reflections with spacings in `SPACINGS`
    for those of the directions of view; here by the squared structure factor for electrons, summed
    over the family, and without a family that is a multiple of one chosen before.

    Returns
    -------
        Indices, shape (3,), and spacing [Angstrom] of each.
    """
    reach = [math.floor(length / SPACINGS[0]) for length in crystal.lengths]
    axes = np.meshgrid(*(np.arange(-n, n + 1.0) for n in reach), indexing="ij")
    hkl = np.stack([axis.ravel() for axis in axes], axis=1)[::-1]  # the largest indices first
    vectors = [_combine(hkl.T, column) for column in _reciprocal(crystal.basis).T]
    k2 = vectors[0] ** 2 + vectors[1] ** 2 + vectors[2] ** 2
    inside = (k2 > 1.0 / SPACINGS[1] ** 2) & (k2 < 1.0 / SPACINGS[0] ** 2)
    hkl, k2 = hkl[inside], k2[inside]
    # rounding tells equal spacings from different ones: those differ by more
    family, first, member = np.unique(
        np.rint(k2 * 1e7).astype(np.int64), return_index=True, return_inverse=True
    )
    power = np.bincount(member, _squared_structure_factor(crystal, hkl, k2), family.size)
    chosen: list[tuple[Array, float]] = []
    for place in np.argsort(-power, kind="stable"):
        indices, squared = hkl[first[place]], float(k2[first[place]])
        if all(np.any(_cross(indices, other)) for other, _ in chosen):
            chosen.append((indices, 1.0 / math.sqrt(squared)))
        if len(chosen) == 3:
            break
    return chosen


def _squared_structure_factor(crystal: Crystal, hkl: Array, k2: Array) -> Array:
    """Return |F|^2 of reflections, shape (n,), with the Debye-Waller factor. [Angstrom^2]"""
    real, imaginary = np.zeros(len(hkl)), np.zeros(len(hkl))
    damping = exact.exp(-0.25 * DEBYE_WALLER * k2)
    factors = [damping * scattering(element, k2) for element in crystal.elements]
    for species, *place in crystal.prototype.sites:
        sine, cosine = exact.sincos(_combine(hkl.T, np.array(place)))
        real += factors[species] * cosine
        imaginary += factors[species] * sine
    return np.asarray(real * real + imaginary * imaginary)


def _combine(coefficients: Array, terms: Array) -> Array:
    """Sum of three products, in this order."""
    return np.asarray(
        coefficients[0] * terms[0] + coefficients[1] * terms[1] + coefficients[2] * terms[2]
    )


def _dot(left: Array, right: Array) -> float:
    return float(_combine(left, right))


def _cross(left: Array, right: Array) -> Array:
    (a, b, c), (x, y, z) = left, right
    return np.array([b * z - c * y, c * x - a * z, a * y - b * x])


def _reciprocal(basis: Array) -> Array:
    """Rows are the reciprocal vectors, without 2 pi. [1 / Angstrom]"""
    a, b, c = basis
    volume = _dot(a, _cross(b, c))
    return np.stack([_cross(b, c), _cross(c, a), _cross(a, b)]) / volume


# ---- multislice


def wavelength(energy: float) -> float:
    """Relativistic wavelength of electrons of `energy` [keV]. [Angstrom]

    Examples
    --------
    >>> round(wavelength(200), 5)
    0.02508
    """
    return _HC / math.sqrt(energy * (2.0 * _KILOVOLT_REST + energy))


def interaction(energy: float) -> float:
    """Phase that a projected potential gives to electrons of `energy` [keV]. [rad / (V Angstrom)]

    2 pi m e lambda / h^2 with the relativistic mass.

    Examples
    --------
    >>> round(interaction(200), 7)
    0.0007288
    """
    return 2e-3 * math.pi * (_KILOVOLT_REST + energy) * wavelength(energy) / _HC**2


def _semi_angles(views: list[View], energy: float) -> Array:
    """Semi-angle of the probe for each view: a share of the Bragg angle. [rad]"""
    spacing = np.array([view.spacing for view in views])
    return np.asarray(OVERLAP * wavelength(energy) / 2.0 / spacing)


def _slices(seed: int, number: int) -> int:
    """Draw the number of slices of a material's slabs."""
    low, high = SLICES
    chance = exact.uniform(1, "stemdl", seed, "slab", number)
    return low + math.floor(float(chance[0]) * (high - low + 1))


def _intensities(
    crystal: Crystal, views: list[View], energies: list[int], slices: int, asked: Parameters
) -> Array:
    """Return noise-free patterns, the share of the electrons in each pixel.

    Returns
    -------
        Shape (view, energy, ky, kx), the beam in pixel (`pixels` // 2, `pixels` // 2).
    """
    k2 = _squared_frequencies(asked)
    wavelengths = np.array([wavelength(energy) for energy in energies])
    radius = np.stack([_semi_angles(views, energy) for energy in energies], axis=1) / wavelengths
    psi = _probe(radius, k2, asked)
    thickness = np.array([view.period / view.layers for view in views])
    turns = -0.5 * thickness[:, None, None, None] * wavelengths[:, None, None] * k2
    # a circle, so that a turn of the crystal does nothing but turn the pattern
    propagate = _phase(turns) * (k2 < _limit(asked))
    sigma = np.array([interaction(energy) for energy in energies]) / math.tau
    transmit = [
        _phase(_potentials(crystal, view, asked)[:, None] * sigma[:, None, None]) for view in views
    ]
    for number in range(slices):
        layers = [each[:, number % each.shape[1]] for each in transmit]
        psi = _to_grid(psi, asked)
        psi = _multiply(psi, np.stack(layers, axis=1))
        psi = _to_frequencies(psi, asked)
        psi = _multiply(psi, propagate)
    return np.asarray(psi[0] * psi[0] + psi[1] * psi[1])


def _phase(turns: Array) -> Array:
    """Real and imaginary part, along a new first axis, of exp(2 pi i turns)."""
    sine, cosine = exact.sincos(turns)
    return np.stack([cosine, sine])


def _multiply(left: Array, right: Array) -> Array:
    """Multiply complex numbers whose real and imaginary parts lie along the first axis."""
    (a, b), (c, d) = left, right
    return np.stack([a * c - b * d, a * d + b * c])


def _squared_frequencies(asked: Parameters) -> Array:
    """Squared spatial frequencies of a pattern's pixels, shape (ky, kx). [1 / Angstrom^2]"""
    k = (np.arange(asked.pixels) - asked.pixels // 2) / asked.cell
    return np.asarray(k[:, None] * k[:, None] + k * k)


def _limit(asked: Parameters) -> float:
    """Square of the frequency at the edge of a pattern; what lies beyond is lost. [1/Angstrom^2]"""
    return (asked.pixels // 2 / asked.cell) ** 2


def _probe(radius: Array, k2: Array, asked: Parameters) -> Array:
    """Fill apertures evenly; a pixel on the rim is let through in part.

    Parameters
    ----------
    radius
        Of the apertures, shape (view, energy). [1 / Angstrom]

    Returns
    -------
        Shape (2, view, energy, ky, kx), of one electron in all; the probe is in focus.
    """
    rim = (radius[:, :, None, None] - np.sqrt(k2)) * asked.cell + 0.5
    opening = np.minimum(np.maximum(rim, 0.0), 1.0)
    counts = np.rint(opening * opening * (1 << 30)).astype(np.int64)
    total = np.sum(counts, axis=(2, 3), dtype=np.int64) / (1 << 30)
    amplitude = opening / np.sqrt(total)[:, :, None, None]
    return np.stack([amplitude, np.zeros_like(amplitude)])


@functools.cache
def _fourier(pixels: int) -> Array:
    """Unitary transform from `pixels` frequencies to 3/2 as many places, as a real matrix.

    Returns
    -------
        Shape (2 frequencies, 2 places): what [Re | Im] of rows is multiplied with from the right;
        its transpose, from the left, takes [Re ; Im] of columns the other way, and both turned
        round invert it.
    """
    places = 3 * pixels // 2
    k = np.arange(pixels) - pixels // 2
    sine, cosine = exact.sincos(k[:, None] * (np.arange(places) - places // 2) / places)
    both = np.concatenate(
        [np.concatenate([cosine, sine], axis=1), np.concatenate([-sine, cosine], axis=1)]
    )
    return np.asarray(both / math.sqrt(places))


def _beside(psi: Array) -> Array:
    return np.concatenate([psi[0], psi[1]], axis=-1)


def _below(psi: Array) -> Array:
    return np.concatenate([psi[0], psi[1]], axis=-2)


def _to_grid(psi: Array, asked: Parameters) -> Array:
    """Transform waves (2, ..., ky, kx) to (2, ..., y, x)."""
    wide = _fourier(asked.pixels)
    half = exact.matmul(_beside(psi), wide)
    columns = _below(np.stack(np.split(half, 2, axis=-1)))
    return np.stack(np.split(exact.matmul(wide.T, columns), 2, axis=-2))


def _to_frequencies(psi: Array, asked: Parameters) -> Array:
    """Transform waves (2, ..., y, x) to (2, ..., ky, kx), without the frequencies beyond these."""
    wide = _fourier(asked.pixels)
    half = exact.matmul(wide, _below(psi))
    rows = _beside(np.stack(np.split(half, 2, axis=-2)))
    return np.stack(np.split(exact.matmul(rows, wide.T), 2, axis=-1))


def _atoms(crystal: Crystal, view: View, cell: float) -> tuple[Integers, Array]:
    """Species, and positions x, y, z (3, atom), of one period of the slab under the probe.

    The lateral cell is `cell` wide with the probe in its middle; z is from 0 to the period.
    """
    basis = np.stack(
        [np.array([_dot(row, axis) for axis in view.axes]) for row in crystal.basis]
    )  # lattice vectors in the frame of the view
    reciprocal = _reciprocal(basis)
    half = 0.5 * cell
    corners = np.array(list(itertools.product((-half, half), (-half, half), (0.0, view.period)))).T
    # a site lies up to two cells from its lattice point: its own coordinates, and the origin
    ranges = []
    for row in reciprocal:
        place = _combine(corners, row)
        ranges.append(np.arange(np.floor(place.min()) - 2.0, np.ceil(place.max()) + 1.0))
    grid = [axis.ravel() for axis in np.meshgrid(*ranges, indexing="ij")]
    species, positions = [], []
    for kind, *site in crystal.prototype.sites:
        u, v, w = (
            axis + offset + shift
            for axis, offset, shift in zip(grid, site, view.origin, strict=True)
        )
        place = np.stack([_combine(np.stack([u, v, w]), basis[:, i]) for i in range(3)])
        x, y, z = place
        kept = (x >= -half) & (x < half) & (y >= -half) & (y < half)
        kept &= (z >= 0.0) & (z < view.period)
        positions.append(place[:, kept])
        species.append(np.full(positions[-1].shape[1], kind, np.int64))
    return np.concatenate(species), np.concatenate(positions, axis=1)


def _waves(place: Array, count: int) -> Array:
    """Cosines, then sines, of 2 pi k x for k below `count`, by the angle addition theorem.

    Parameters
    ----------
    place
        Positions in cells, shape (n,).

    Returns
    -------
        Shape (2 `count`, n).
    """
    sine, cosine = exact.sincos(place)
    waves = np.empty((2 * count, place.size))
    waves[0], waves[count] = 1.0, 0.0
    for k in range(count - 1):
        c, s = waves[k], waves[count + k]
        waves[k + 1] = c * cosine - s * sine
        waves[count + k + 1] = s * cosine + c * sine
    return waves


def _potentials(crystal: Crystal, view: View, asked: Parameters) -> Array:
    """Projected potentials of the slices of one period, shape (layer, y, x). [V Angstrom]

    Each atom is moved to the middle of its slice. Frequencies are kept below those at the edge of
    the pattern, on a grid of 3/2 as many places.
    """
    count = asked.pixels // 2
    species, (x, y, z) = _atoms(crystal, view, asked.cell)
    layer = np.minimum(np.floor(z * (view.layers / view.period)), view.layers - 1)
    waves_x, waves_y = _waves(x / asked.cell, count), _waves(y / asked.cell, count)
    k = np.arange(count) / asked.cell
    k2 = k[:, None] * k[:, None] + k * k
    twice = np.where(np.arange(count) == 0, 1.0, 2.0)  # for the negative frequencies
    weight = twice[:, None] * twice * exact.exp(-0.25 * DEBYE_WALLER * k2)
    weight *= (k2 < _limit(asked)) * (_VOLT / (asked.cell * asked.cell))
    factors = [np.tile(weight * scattering(e, k2), (2, 2)) for e in crystal.elements]
    places = 3 * count
    grid = _waves((np.arange(places) - places // 2) / places, count)
    potentials = []
    for number in range(view.layers):
        spectrum = np.zeros((2 * count, 2 * count))
        for kind, factor in enumerate(factors):
            here = (layer == number) & (species == kind)
            spectrum += factor * exact.matmul(waves_y[:, here], waves_x[:, here].T)
        potentials.append(exact.matmul(exact.matmul(grid.T, spectrum), grid))
    return np.stack(potentials)


# ---- counting


def _poisson(mean: Array, *key: int | str) -> Array:
    """Draw Poisson counts: by inversion below 12, by a rounded Cornish-Fisher expansion above.

    There is no rejection, and so nothing that one last bit could put out of step. Above 12 the mean
    is right and the variance by less than 1.5 % too large.
    """
    u = exact.uniform(mean.size, *key).reshape(mean.shape)
    z = exact.normal(mean.size, *key, "many").reshape(mean.shape)
    many = np.floor(mean + np.sqrt(mean) * z + (z * z - 1.0) / 6.0 + 0.5)
    few = np.zeros_like(mean)
    mean_of_few = np.minimum(mean, 12.0)
    term = exact.exp(-mean_of_few)
    below = term.copy()  # the probability of a count up to `number` - 1
    number = 1
    while number < 64 and np.any(above := u >= below):
        few += above
        term = term * mean_of_few / number
        below += term
        number += 1
    return np.where(mean < 12.0, few, np.maximum(many, 0.0))
