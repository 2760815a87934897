"""Simulated diffraction has the physics that it states, and the reader reads what is there.

The oracle is a multislice of a few lines of NumPy: complex numbers, FFTs, potentials summed atom by
atom. Space groups are checked by their generators from the International Tables and by counting
all symmetry operations of each structure.
"""

import hashlib
import importlib
import itertools
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # ships no types
import numpy as np
import numpy.typing as npt
import pytest

from scibench_data.errors import IntegrityError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.stemdl.simulate")
READER = importlib.import_module("scibench_data.datapackages.stemdl.reader")

Array = npt.NDArray[np.float64]

TINY = {"samples": 40, "pixels": 16, "cell": 12.0}


def write(folder: Path, **parameters: Any) -> Path:
    for name in SIMULATE.files(**parameters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty stacks of 16 x 16 pixels."""
    return write(tmp_path_factory.mktemp("tiny"), **TINY)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- physics


def kirkland(element: str, k2: Array) -> Array:
    a, b, c, d = np.array(SIMULATE.SCATTERING[element].split(), float).reshape(4, 3, 1, 1)
    return np.asarray((a / (k2 + b) + c * np.exp(-d * k2)).sum(axis=0))


def positions(crystal: Any, view: Any, cell: float) -> tuple[list[int], Array]:
    """All atoms of one period under the probe, by trying every lattice point near it."""
    n = np.arange(-25, 26)
    lattice = np.stack(np.meshgrid(n, n, n, indexing="ij"), axis=-1).reshape(-1, 3)
    species, places = [], []
    for kind, *site in crystal.prototype.sites:
        place = (lattice + site + view.origin) @ crystal.basis @ view.axes.T
        low, high = [-cell / 2, -cell / 2, 0.0], [cell / 2, cell / 2, view.period]
        kept = place[((place >= low) & (place < high)).all(axis=1)]
        species += [kind] * len(kept)
        places.append(kept)
    return species, np.concatenate(places)


def multislice(crystal: Any, view: Any, energy: float, slices: int, asked: Any) -> Array:
    """The same physics by complex FFTs, on a grid whose frequencies are those of the recipe."""
    m, cell = asked.pixels, asked.cell
    n = 3 * m // 2
    momentum = np.sqrt(energy * (energy + 2 * 510.99895))  # c p [keV]
    wavelength = 12.3984198 / momentum
    # relativistic mass times wavelength: sigma = 2 pi / (lambda E) (m c2 + E) / (2 m c2 + E)
    sigma = 2 * np.pi / (wavelength * energy * 1e3)
    sigma *= (510.99895 + energy) / (2 * 510.99895 + energy)
    k = np.fft.fftfreq(n, 1 / n) / cell
    k2 = k[:, None] ** 2 + k**2
    inside = k2 < (m / 2 / cell) ** 2
    species, places = positions(crystal, view, cell)
    layers = max(1, int(view.period / 3.0 + 0.5))
    dz = view.period / layers
    transmission = []
    for layer in range(layers):
        spectrum = np.zeros((n, n), complex)
        for kind, (x, y, z) in zip(species, places, strict=True):
            if int(z / dz) == layer:
                wave = np.exp(-2j * np.pi * (k[:, None] * y + k * x))
                spectrum += kirkland(crystal.elements[kind], k2) * wave
        spectrum *= 47.87801 * np.exp(-0.5 * k2 / 4) * inside / cell**2
        potential = np.fft.ifft2(spectrum).real * n * n
        transmission.append(np.exp(1j * sigma * potential))
    radius = 0.5 / (2 * view.spacing)
    psi = np.clip((radius - np.sqrt(k2)) * cell + 0.5, 0, 1).astype(complex)
    psi /= np.sqrt((np.abs(psi) ** 2).sum())
    # the recipe's probe is at the centre of the cell, that of the FFT at its corner
    propagator = np.exp(-1j * np.pi * wavelength * dz * k2) * inside
    for number in range(slices):
        psi = propagator * np.fft.fft2(transmission[number % layers] * np.fft.ifft2(psi))
    return np.asarray(np.fft.fftshift(np.abs(psi) ** 2)[n // 2 - m // 2 :, n // 2 - m // 2 :])[
        :m, :m
    ]


@pytest.mark.parametrize("number", [0, 4])
def test_patterns_are_those_of_a_plain_multislice(number: int) -> None:
    crystal = SIMULATE._crystal(1, number)
    views = SIMULATE._views(crystal, 1, number)
    energies = SIMULATE._energies(1, number)
    asked = SIMULATE.Parameters(pixels=24, cell=12.0)

    patterns = SIMULATE._intensities(crystal, views, energies, 6, asked)

    for view, both in zip(views, patterns, strict=True):
        expected = multislice(crystal, view, energies[1], 6, asked)
        np.testing.assert_allclose(both[1], expected, atol=2e-6)


def test_scattering_factors_are_kirklands(shared_data: Path) -> None:
    table = np.load(shared_data / "stemdl" / "kirkland_params.npy", allow_pickle=False)
    numbers = {"C": 6, "O": 8, "Si": 14, "Fe": 26, "Cu": 29, "Sr": 38, "Te": 52, "Au": 79, "Pb": 82}
    k2 = np.linspace(0.0, 4.0, 41)

    for element, number in numbers.items():
        a, b, c, d = table[number - 1][..., None]
        expected = (a / (k2 + b) + c * np.exp(-d * k2)).sum(axis=0)
        np.testing.assert_allclose(SIMULATE.scattering(element, k2), expected, rtol=5e-4)


def test_heavier_atoms_scatter_more_to_high_angles() -> None:
    order = ["C", "O", "Si", "Ti", "Cu", "Mo", "Ag", "W", "Pb"]

    far = [float(SIMULATE.scattering(element, np.array([4.0]))[0]) for element in order]

    assert far == sorted(far)
    for element, number in (("C", 6), ("Si", 14)):
        # far outside the electrons' cloud it is Rutherford's, Z / (2 pi^2 a0 k^2)
        rutherford = number / (2 * np.pi**2 * 0.5291772 * 64.0)
        assert SIMULATE.scattering(element, np.array([64.0])) == pytest.approx(rutherford, rel=0.1)


def test_electrons_have_the_wavelength_and_interaction_of_the_tables() -> None:
    # Kirkland 2010, table 2.2 and figure 5.6: 100 and 200 keV
    assert SIMULATE.wavelength(100) == pytest.approx(0.03701, abs=1e-5)
    assert SIMULATE.wavelength(200) == pytest.approx(0.02508, abs=1e-5)
    assert SIMULATE.interaction(200) == pytest.approx(7.29e-4, abs=1e-6)


def test_electrons_are_not_made_and_few_are_lost() -> None:
    for number in range(6):
        crystal = SIMULATE._crystal(1, number)
        views = SIMULATE._views(crystal, 1, number)
        patterns = SIMULATE._intensities(crystal, views, [100, 190], 8, SIMULATE.Parameters())

        total = patterns.sum(axis=(2, 3))
        assert total.max() < 1.0 + 1e-6
        assert total.min() > 0.85


def test_a_turn_of_the_crystal_turns_the_pattern() -> None:
    """A quarter turn moves pixels only: the pattern about the beam is the same."""
    crystal = SIMULATE._crystal(1, 4)
    hkl, spacing = SIMULATE._strongest_reflections(crystal)[0]
    asked, origin = SIMULATE.Parameters(), np.zeros(3) + 0.3
    views = [SIMULATE._view(crystal, hkl, spacing, turns, origin) for turns in (0.1, 0.35)]

    first, second = SIMULATE._intensities(crystal, views, [150], 8, asked)[:, 0, 1:, 1:]

    np.testing.assert_allclose(second, np.rot90(first), atol=3e-6)


def test_a_fourfold_axis_shows_in_the_pattern() -> None:
    prototype = next(p for p in SIMULATE.PROTOTYPES if p.name == "rock-salt")
    crystal = SIMULATE.Crystal(prototype, ("Mg", "O"), np.full(3, 4.21))
    origin = np.array([0.1, 0.0, 0.0])  # a fourfold axis under the probe
    view = SIMULATE._view(crystal, np.array([2.0, 0.0, 0.0]), 2.105, 0.03, origin)

    patterns = SIMULATE._intensities(crystal, [view], [200], 10, SIMULATE.Parameters())
    pattern = patterns[0, 0, 1:, 1:]

    np.testing.assert_allclose(pattern, np.rot90(pattern), atol=2e-6)
    assert np.abs(pattern - pattern[:, ::-1]).max() > 1e-4  # turned off the pixels' mirror line


def test_weak_scattering_is_kinematic() -> None:
    """One thin slice of light atoms: discs as bright as the squared structure factor."""
    prototype = next(p for p in SIMULATE.PROTOTYPES if p.name == "CsCl")
    crystal = SIMULATE.Crystal(prototype, ("Mg", "Al"), np.full(3, 4.0))
    view = SIMULATE._view(crystal, np.array([1.0, 0.0, 0.0]), 4.0, 0.0, np.array([0.1, 0.2, 0.1]))
    asked = SIMULATE.Parameters(cell=40.0, pixels=64)

    pattern = SIMULATE._intensities(crystal, [view], [190], 1, asked)[0, 0]

    def disc(h: int, k: int) -> float:
        y, x = 32 + 10 * k, 32 + 10 * h  # 0.25 / Angstrom are ten pixels
        return float(pattern[y - 4 : y + 5, x - 4 : x + 5].sum())

    k2 = np.array([1.0, 2.0]) / 16.0  # of 01 and 11
    mg, al = (SIMULATE.scattering(e, k2) * np.exp(-0.5 * k2 / 4) for e in crystal.elements)
    expected = ((mg + al)[1] / (mg - al)[0]) ** 2  # h + k + l even and odd
    assert disc(1, 1) / disc(0, 1) == pytest.approx(expected, rel=0.15)


def test_counts_are_poisson() -> None:
    for mean in (0.3, 5.0, 11.9, 12.1, 300.0):
        counts = SIMULATE._poisson(np.full(200_000, mean), "test", str(mean))

        assert np.all(counts == np.rint(counts))
        assert counts.min() >= 0
        assert counts.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / counts.size))
        assert counts.var() == pytest.approx(mean, rel=0.025)


# ---- crystals

# Generators in the setting of the recipe (origin choice 1 where the tables have two), without the
# lattice translations of the cell.
GENERATORS = {
    123: "-x,-y,z; -y,x,z; -x,y,-z; -x,-y,-z",
    129: "-x,-y,z; -y+1/2,x+1/2,z; -x+1/2,y+1/2,-z; -x+1/2,-y+1/2,-z",
    131: "-x,-y,z; -y,x,z+1/2; -x,y,-z; -x,-y,-z",
    136: "-x,-y,z; -y+1/2,x+1/2,z+1/2; -x+1/2,y+1/2,-z+1/2; -x,-y,-z",
    139: "x+1/2,y+1/2,z+1/2; -x,-y,z; -y,x,z; -x,y,-z; -x,-y,-z",
    141: (
        "x+1/2,y+1/2,z+1/2; -x+1/2,-y+1/2,z+1/2; -y,x+1/2,z+1/4; -x+1/2,y,-z+3/4; -x,-y+1/2,-z+1/4"
    ),
    164: "-y,x-y,z; y,x,-z; -x,-y,-z",
    166: "x+2/3,y+1/3,z+1/3; -y,x-y,z; y,x,-z; -x,-y,-z",
    186: "-y,x-y,z; -x,-y,z+1/2; -y,-x,z",
    187: "-y,x-y,z; x,y,-z; -y,-x,z",
    191: "-y,x-y,z; -x,-y,z; y,x,-z; -x,-y,-z",
    194: "-y,x-y,z; -x,-y,z+1/2; y,x,-z; -x,-y,-z",
    198: "-x+1/2,-y,z+1/2; -x,y+1/2,-z+1/2; z,x,y",
    205: "-x+1/2,-y,z+1/2; -x,y+1/2,-z+1/2; z,x,y; -x,-y,-z",
    216: "x,y+1/2,z+1/2; x+1/2,y,z+1/2; -x,-y,z; -x,y,-z; z,x,y; y,x,z",
    221: "-x,-y,z; -x,y,-z; z,x,y; y,x,-z; -x,-y,-z",
    223: "-x,-y,z; -x,y,-z; z,x,y; y+1/2,x+1/2,-z+1/2; -x,-y,-z",
    224: "-x,-y,z; -x,y,-z; z,x,y; y+1/2,x+1/2,-z+1/2; -x+1/2,-y+1/2,-z+1/2",
    225: "x,y+1/2,z+1/2; x+1/2,y,z+1/2; -x,-y,z; -x,y,-z; z,x,y; y,x,-z; -x,-y,-z",
    227: (
        "x,y+1/2,z+1/2; x+1/2,y,z+1/2; -x,-y+1/2,z+1/2; -x+1/2,y+1/2,-z; z,x,y; "
        "y+3/4,x+1/4,-z+3/4; -x+1/4,-y+1/4,-z+1/4"
    ),
    229: "x+1/2,y+1/2,z+1/2; -x,-y,z; -x,y,-z; z,x,y; y,x,-z; -x,-y,-z",
}
# Multiplicity of the general position: all operations of the group within one cell.
ORDER = {
    123: 16, 129: 16, 131: 16, 136: 16, 139: 32, 141: 32, 164: 12, 166: 36, 186: 12, 187: 12,
    191: 24, 194: 24, 198: 12, 205: 24, 216: 96, 221: 48, 223: 48, 224: 48, 225: 192, 227: 192,
    229: 96,
}  # fmt: skip


def operation(text: str) -> tuple[Array, Array]:
    """Read an operation such as -y,x-y,z+1/2 as a matrix and a translation."""
    matrix, shift = np.zeros((3, 3)), np.zeros(3)
    for row, part in enumerate(text.split(",")):
        for sign, axis in re.findall(r"([+-]?)([xyz])", part):
            matrix[row, "xyz".index(axis)] = -1.0 if sign == "-" else 1.0
        for top, bottom in re.findall(r"(\d)/(\d)", part):
            shift[row] += int(top) / int(bottom)
    return matrix, shift


def maps_onto_itself(prototype: Any, matrix: Array, shift: Array) -> bool:
    species = np.array([site[0] for site in prototype.sites])
    places = np.array([site[1:] for site in prototype.sites])
    apart = (places @ matrix.T + shift)[:, None] - places
    near = np.abs(apart - np.rint(apart)).max(axis=2) < 1e-6
    return bool((near & (species[:, None] == species)).any(axis=1).all())


def count_operations(prototype: Any) -> int:
    """Try every matrix that keeps the lattice, with every translation between like atoms."""
    hexagonal, cubic = prototype.system == "hexagonal", prototype.system == "cubic"
    metric = np.array([[1, -0.5, 0], [-0.5, 1, 0], [0, 0, 1]]) if hexagonal else np.eye(3)
    metric[2, 2] = 1.0 if cubic else 2.3
    every = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=9))).reshape(-1, 3, 3)
    kept = np.isclose(np.swapaxes(every, 1, 2) @ metric @ every, metric).all(axis=(1, 2))
    first, *others = (np.array(s[1:]) for s in prototype.sites if s[0] == prototype.sites[0][0])
    return sum(
        maps_onto_itself(prototype, matrix, place - matrix @ first)
        for matrix in every[kept]
        for place in (first, *others)
    )


@pytest.mark.parametrize("prototype", SIMULATE.PROTOTYPES, ids=lambda p: p.name)
def test_a_structure_has_its_space_group_and_no_more_symmetry(prototype: Any) -> None:
    for text in GENERATORS[prototype.group].split(";"):
        assert maps_onto_itself(prototype, *operation(text)), text

    assert count_operations(prototype) == ORDER[prototype.group]


def test_silicon_is_as_the_cif_says(shared_data: Path) -> None:
    text = (shared_data / "stemdl" / "Si.cif").read_text()
    operations = re.findall(r"^\s+'(.*[xyz].*,.*,.*)'", text, re.MULTILINE)
    prototype = next(p for p in SIMULATE.PROTOTYPES if p.name == "diamond")
    a = float(re.search(r"_cell_length_a\s+([\d.]+)", text)[1])  # type: ignore[index]
    silicon = SIMULATE.Crystal(prototype, ("Si",), np.full(3, a))

    assert int(re.search(r"_IT_number\s+(\d+)", text)[1]) == prototype.group  # type: ignore[index]
    assert len(operations) == ORDER[227]
    for each in operations:
        assert maps_onto_itself(prototype, *operation(each.replace(" ", ""))), each
    nearest = silicon.basis @ [0.25, 0.25, 0.25]
    assert np.linalg.norm(nearest) == pytest.approx(2.352, abs=0.001)  # bond of silicon
    found = SIMULATE._strongest_reflections(silicon)
    assert {tuple(np.abs(hkl).astype(int)) for hkl, _ in found} <= {
        (2, 2, 0),
        (1, 1, 1),
        (3, 1, 1),
        (4, 2, 2),
    }
    assert {round(d, 3) for _, d in found} >= {1.92}  # 220


def test_no_combination_of_elements_is_in_two_splits() -> None:
    for prototype in SIMULATE.PROTOTYPES:
        pools = [set(SIMULATE._elements(prototype.name, 1, split)) for split in range(3)]

        assert all(pools)
        assert sum(map(len, pools)) == len(set.union(*pools))


def test_space_groups_are_equally_frequent_in_every_split() -> None:
    count = len(SIMULATE.GROUPS) * len(SIMULATE._PATTERN)
    table = np.zeros((3, len(SIMULATE.GROUPS)), int)
    for number in range(count):
        table[SIMULATE._split_of(number), number % len(SIMULATE.GROUPS)] += 1

    assert table.tolist() == [[n] * len(SIMULATE.GROUPS) for n in (12, 3, 5)]


# ---- files

DIGESTS = {
    "train/batch_train_0.h5": "4c38c7676c1d6fcac5e40c459160a3f6a37a3c19a39abdbefe4be80e0618ad2c",
    "dev/batch_dev_0.h5": "0e6330add641a5aa20c6a39eaf1734417398c0b90a77b8c72b742eec6e49f870",
    "test/batch_test_0.h5": "73596a48eb78954abca8b21ee1bce60a670598be1315340fd414a27d5d1d8660",
}


@pytest.mark.parametrize("name", SIMULATE.files(**TINY))
def test_every_file_has_its_published_bytes(tiny: Path, name: str) -> None:
    assert sha256(tiny / name) == DIGESTS[name]


def test_a_file_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    SIMULATE._elements.cache_clear()
    SIMULATE._fourier.cache_clear()

    SIMULATE.simulate("dev/batch_dev_0.h5", tmp_path / "alone.h5", **TINY)

    assert sha256(tmp_path / "alone.h5") == DIGESTS["dev/batch_dev_0.h5"]


def test_first_samples_do_not_depend_on_how_many_follow(tiny: Path, tmp_path: Path) -> None:
    few = write(tmp_path, **{**TINY, "samples": 3})

    with (
        h5py.File(few / "train/batch_train_0.h5") as short,
        h5py.File(tiny / "train/batch_train_0.h5") as long,
    ):
        assert list(short) == ["sample_0_0", "sample_0_1"]
        np.testing.assert_array_equal(short["sample_0_1/cbed_stack"], long["sample_0_1/cbed_stack"])


def test_seeds_give_other_crystals(tiny: Path) -> None:
    names = [{SIMULATE._crystal(seed, n).name for n in range(60)} for seed in (1, 2)]

    assert len(names[0] & names[1]) < 15
    assert SIMULATE._energies(1, 5) != SIMULATE._energies(2, 5)


def test_files_are_added_with_the_number_of_samples() -> None:
    assert SIMULATE.files(samples=1) == ("train/batch_train_0.h5",)
    assert len(SIMULATE.files(samples=1680)) == 12
    assert SIMULATE.files(samples=1680)[-1] == "test/batch_test_3.h5"


@pytest.mark.parametrize(
    "parameters",
    [{"samples": 0}, {"samples": 1.5}, {"pixels": 17}, {"cell": 1.0}, {"dose": 1}, {"seed": -1}],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'train/batch_train_0\.h5'"):
        SIMULATE.simulate("train/batch_train_1.h5", tmp_path / "x", **TINY)


def test_groups_and_attributes_are_those_of_the_original(tiny: Path) -> None:
    with h5py.File(tiny / "train/batch_train_0.h5") as file:
        group = file["sample_0_1"]
        stack, attributes = group["cbed_stack"], dict(group.attrs)

        assert stack.shape == (3, 16, 16)
        assert stack.dtype == np.float32
        assert stack[()].min() >= 0.0
    assert set(attributes) == {
        "space_group", "material", "energy_keV", "z_dirs", "y_dirs", "semi_angles_rad",
        "d_hkls_angstrom", "abc_angstrom", "angles_degree", "formula",
    }  # fmt: skip
    crystal = SIMULATE._crystal(1, 0)
    assert attributes["space_group"] == str(crystal.prototype.group).encode()
    assert attributes["material"] == crystal.name.encode()
    assert attributes["z_dirs"].shape == attributes["y_dirs"].shape == (1, 3, 3)
    for i in range(3):
        beam = attributes["z_dirs"][0, :, i] @ crystal.basis
        up = attributes["y_dirs"][0, :, i] @ crystal.basis
        assert np.dot(beam, up) == pytest.approx(0.0, abs=1e-9)
        assert np.linalg.norm(up) == pytest.approx(1.0)


# ---- reader


def test_reader_gives_back_what_was_written(tiny: Path) -> None:
    samples = READER.read(tiny)

    assert dict(samples.sizes) == {"sample": 40, "orientation": 3, "y": 16, "x": 16, "axis": 3}
    row = 0
    for name in ("dev/batch_dev_0", "test/batch_test_0", "train/batch_train_0"):
        with h5py.File(tiny / f"{name}.h5") as file:
            for key in sorted(file, key=lambda key: [int(n) for n in key.split("_")[1:]]):
                group = file[key]
                np.testing.assert_array_equal(samples.patterns[row], group["cbed_stack"])
                assert samples.space_group[row] == int(group.attrs["space_group"])
                assert samples.energy[row] == group.attrs["energy_keV"]
                np.testing.assert_array_equal(
                    samples.semi_angle[row], group.attrs["semi_angles_rad"]
                )
                names = samples.material.attrs["flag_meanings"].split()
                assert names[int(samples.material[row])] == group.attrs["material"].decode()
                row += 1
    assert row == 40
    counts = np.bincount(samples.split.values)
    assert counts.tolist() == [
        2 * [SIMULATE._split_of(n) for n in range(20)].count(s) for s in range(3)
    ]


def test_patterns_come_in_blocks(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = READER.read(tiny).patterns.values
    monkeypatch.setattr(READER, "BLOCK", 7 * 3 * 16 * 16 * 4)

    patterns = READER.read(tiny).patterns

    assert patterns.chunks[0] == (7, 7, 7, 7, 7, 5)
    np.testing.assert_array_equal(patterns[11:30:3, 1], whole[11:30:3, 1])
    np.testing.assert_array_equal(patterns[[9, 0, 39]], whole[[9, 0, 39]])


def write_npz(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def test_npz_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stacks = {n: rng.random((3, 8, 8), np.float32) for n in (2, 10, 1)}
    for n, stack in stacks.items():
        write_npz(tmp_path / "testing" / f"sample-{n}.npz", data=stack, label=np.array([200 + n]))

    samples = READER.read(tmp_path)

    assert samples.space_group.values.tolist() == [201, 202, 210]
    assert samples.split.values.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(samples.patterns, [stacks[n] for n in (1, 2, 10)])
    assert samples.patterns.attrs["scale"].startswith("clip")
    assert READER.read(tmp_path / "testing").split.values.tolist() == [2, 2, 2]


def test_npz_files_with_python_objects_are_refused(tmp_path: Path) -> None:
    write_npz(
        tmp_path / "training/sample-1.npz", data=np.array([print], object), label=np.array([5])
    )

    with pytest.raises(IntegrityError, match=r"sample-1.npz.*objects"):
        READER.read(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((3, 8, 8))}, "data and label"),
        ({"label": np.array([5])}, "data and label"),
        ({"data": np.zeros((3, 8, 9)), "label": np.array([5])}, r"\(3, 8, 9\), expected"),
        ({"data": np.zeros((3, 8, 8)), "label": np.array([5, 6])}, "2 labels"),
        ({"data": np.zeros((3, 8, 8)), "label": np.array([231])}, "space group '231'"),
        ({"data": np.zeros((3, 8, 8)), "label": np.array([0.5])}, r"space group '0\.5'"),
    ],
)
def test_a_wrong_npz_file_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    write_npz(tmp_path / "training" / "sample-1.npz", **arrays)

    with pytest.raises(IntegrityError, match=message):
        READER.read(tmp_path)


def test_a_cut_npz_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training" / "sample-1.npz"
    write_npz(path, data=np.zeros((3, 8, 8)), label=np.array([5]))
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(IntegrityError, match=r"sample-1.npz.*get it again"):
        READER.read(tmp_path)
    assert not zipfile.is_zipfile(path)


def _drop(name: str) -> Any:
    def edit(file: Any) -> None:
        del file["sample_0_0"].attrs[name]

    return edit


def _replace(value: Any) -> Any:
    def edit(file: Any) -> None:
        del file["sample_0_0/cbed_stack"]
        file["sample_0_0/cbed_stack"] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop("space_group"), "space_group"),
        (_drop("material"), "material"),
        (_drop("energy_keV"), "energy_keV"),
        (_drop("abc_angstrom"), "abc_angstrom"),
        (
            lambda f: f["sample_0_0"].attrs.create("space_group", b"Fm-3m"),
            "'Fm-3m', expected a num",
        ),
        (lambda f: f["sample_0_0"].attrs.create("angles_degree", [90.0]), "1 numbers, expected 3"),
        (lambda f: f["sample_0_0"].__delitem__("cbed_stack"), "expected a dataset cbed_stack"),
        (_replace(np.zeros((3, 16, 16), np.int16)), "expected a dataset cbed_stack"),
        (_replace(np.zeros((2, 16, 16))), r"shape \(2, 16, 16\)"),
        (
            _replace(np.zeros((3, 8, 8))),
            "patterns of 16 pixels, but those before have 8|of 8 pixels",
        ),
    ],
)
def test_a_wrong_hdf5_file_is_refused(copy: Path, edit: Any, message: str) -> None:
    with h5py.File(copy / "train" / "batch_train_0.h5", "r+") as file:
        edit(file)

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_cut_hdf5_file_is_refused(copy: Path, size: int) -> None:
    path = copy / "test" / "batch_test_0.h5"
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(IntegrityError, match=r"batch_test_0.h5.*can't be read"):
        READER.read(copy)


def test_a_file_that_goes_away_is_noticed(copy: Path) -> None:
    patterns = READER.read(copy).patterns
    (copy / "test" / "batch_test_0.h5").unlink()

    with pytest.raises(IntegrityError, match=r"batch_test_0.h5.*get it again"):
        patterns.load()


def test_links_of_git_annex_are_followed(copy: Path, tmp_path: Path) -> None:
    path = copy / "test" / "batch_test_0.h5"
    path.rename(tmp_path / "object")
    path.symlink_to(tmp_path / "object")

    assert READER.read(copy).sizes["sample"] == 40


@pytest.mark.parametrize("kinds", [(), ("batch_train_0.h5", "sample-1.npz")])
def test_a_folder_needs_files_of_one_kind(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    for name in kinds:
        (tmp_path / name).touch()

    with pytest.raises(IntegrityError, match="expected either batch"):
        READER.read(tmp_path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    h5py.File(tmp_path / "batch_train_0.h5", "w").close()

    with pytest.raises(IntegrityError, match="hold no sample"):
        READER.read(tmp_path)
