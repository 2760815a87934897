"""Simulated particles follow the conventions that they state, and the reader reads what is there.

The oracle knows only the files: it rotates the true volume of a particle by the pose in the STAR
file with NumPy, applies the CTF that the STAR file describes, shifts, and compares.
"""

import csv
import hashlib
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mrcfile
import numpy as np
import pytest
import starfile

from scibench_data.errors import IntegrityError, UsageError

SIMULATE = importlib.import_module("scibench_data.datapackages.cryoem.simulate")
READER = importlib.import_module("scibench_data.datapackages.cryoem.reader")

Edit = Callable[[str], str]


def write(folder: Path, **parameters: float) -> Path:
    for name in SIMULATE.files(**parameters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        SIMULATE.simulate(name, folder / name, **parameters)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four particles as the sample has them."""
    return write(tmp_path_factory.mktemp("tiny"), particles=64)


@pytest.fixture(scope="session")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles with hardly any noise."""
    return write(tmp_path_factory.mktemp("bright"), particles=4, snr=100.0)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- bytes

DIGESTS = {
    "particles.star": "45568f304116603e87d2782eeb955808c7b662ab90252ac2ee5f134ccab4b2ab",
    "stack_001.mrcs": "eaf889bd0eed6d1e0003eb4bfdda4906f0a28f85aa1c96e8bff8fdbf03cf0b7e",
    "truth/states.csv": "96e1955bd2627fb591515bfe3830eaedfd935cd16e29671c0bfa6af7f619977f",
    "truth/state_0.mrc": "1cd7483b539357a02ec0b18f172d291351f7a9e913931077059e446f5fd702ef",
    "truth/state_1.mrc": "72c62d90c506298a90c77439e06d5a2b647de0315b1e497035a8c66e9084870b",
    "truth/state_2.mrc": "7e63b8ecc801d41be98c59cfc05ba479792127a3655759fe64b25a955917b3ca",
    "truth/state_3.mrc": "6f0f4cabaf020b3725a312dcf7d9cccf426f281d34070ee1a3fa671bd613fde7",
}


def test_a_file_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    SIMULATE._grey_levels.cache_clear()

    SIMULATE.simulate("stack_001.mrcs", tmp_path / "alone.mrcs", particles=64)

    assert sha256(tmp_path / "alone.mrcs") == DIGESTS["stack_001.mrcs"]


def test_first_particles_do_not_depend_on_how_many_follow(tiny: Path, tmp_path: Path) -> None:
    few, many = READER.read(write(tmp_path, particles=40)), READER.read(tiny)

    np.testing.assert_array_equal(few.images, many.images[:40])
    np.testing.assert_array_equal(few.rot, many.rot[:40])
    np.testing.assert_array_equal(few.volumes, many.volumes)


def test_seeds_give_other_particles_of_the_same_complex(tiny: Path, tmp_path: Path) -> None:
    first, second = READER.read(tiny), READER.read(write(tmp_path, particles=64, seed=2))

    assert not np.isin(second.rot, first.rot).any()
    scale = float(second.volumes.max() / first.volumes.max())
    np.testing.assert_allclose(second.volumes, scale * first.volumes, atol=1e-3)


def test_stacks_are_added_with_the_number_of_particles() -> None:
    names = SIMULATE.files(particles=100_000)

    assert [name for name in names if name.startswith("stack")][-1] == "stack_079.mrcs"
    assert SIMULATE.files(particles=64) == (
        "particles.star",
        "stack_001.mrcs",
        "truth/states.csv",
        "truth/state_0.mrc",
        "truth/state_1.mrc",
        "truth/state_2.mrc",
        "truth/state_3.mrc",
    )


@pytest.mark.parametrize(
    "parameters",
    [{"particles": 0}, {"particles": 1.5}, {"box": 33}, {"box": 8}, {"snr": 0.0}, {"seed": -1}],
)
def test_a_parameter_out_of_range_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SIMULATE.files(**parameters)


def test_a_file_that_the_simulation_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'stack_001\.mrcs'"):
        SIMULATE.simulate("stack_002.mrcs", tmp_path / "x", particles=64)


# ---- formats


@pytest.mark.parametrize("name", [n for n in SIMULATE.files(particles=64) if ".mrc" in n])
def test_mrcfile_finds_the_files_valid(
    tiny: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mrcfile.validate(tiny / name), capsys.readouterr().out

    with mrcfile.open(tiny / name) as file:
        assert file.is_image_stack() == name.endswith(".mrcs")
        assert float(file.voxel_size.x) == 4.0
        assert float(file.header.rms) == pytest.approx(file.data.std(dtype=np.float64), rel=1e-6)


def test_starfile_reads_the_tables(tiny: Path) -> None:
    tables = starfile.read(tiny / "particles.star")

    assert set(tables) == {"optics", "particles"}
    assert tables["optics"]["rlnVoltage"].tolist() == [300.0]
    assert tables["particles"]["rlnImageName"].iloc[-1] == "000064@stack_001.mrcs"
    assert set(tables["particles"]["rlnRandomSubset"]) == {1, 2}


def test_image_range_leaves_room(tiny: Path) -> None:
    images = READER.read(tiny).images.values

    assert images.dtype == np.int16
    assert np.abs(images.astype(int)).max() < 2000


# ---- physics


def rotation(rot: float, tilt: float, psi: float) -> np.ndarray:
    """Turn the axes about z by rot, about the new y by tilt, about the new z by psi: RELION's."""

    def turn(first: int, second: int, degrees: float) -> np.ndarray:
        matrix, angle = np.eye(3), np.radians(degrees)
        matrix[first, first] = matrix[second, second] = np.cos(angle)
        matrix[first, second], matrix[second, first] = np.sin(angle), -np.sin(angle)
        return matrix

    return np.asarray(turn(0, 1, psi) @ turn(2, 0, tilt) @ turn(0, 1, rot))


def transfer(row: Any, optics: Any, u: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """RELION's CTF, from the STAR file's numbers, at frequencies in polar coordinates [1/A]."""
    volt = 1e3 * optics.rlnVoltage
    wavelength = 12.2643247 / np.sqrt(volt * (1 + 0.978466e-6 * volt))
    defocus = (row.rlnDefocusU + row.rlnDefocusV) / 2
    defocus = defocus + (row.rlnDefocusU - row.rlnDefocusV) / 2 * np.cos(
        2 * (angle - np.radians(row.rlnDefocusAngle))
    )
    q = optics.rlnAmplitudeContrast
    gamma = -np.pi * wavelength * defocus * u**2
    gamma += np.pi / 2 * optics.rlnSphericalAberration * 1e7 * wavelength**3 * u**4
    gamma -= np.radians(row.rlnPhaseShift) + np.arctan(q / np.sqrt(1 - q**2))
    return np.asarray(-np.sin(gamma))


def expected_image(volume: np.ndarray, row: Any, optics: Any) -> np.ndarray:
    """Project a volume by its Fourier transform at the frequencies of the rotated plane."""
    box, pixel = volume.shape[0], optics.rlnImagePixelSize
    k = np.fft.fftfreq(box) * box
    ky, kx = np.meshgrid(k, k, indexing="ij")
    plane = np.stack([kx.ravel(), ky.ravel(), np.zeros(box * box)], axis=1)
    # the rows of the matrix are the view's axes in the frame of the object
    plane = plane @ rotation(row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi)
    place = (np.arange(box) - box // 2) / box
    wave_x, wave_y, wave_z = (np.exp(-2j * np.pi * np.outer(f, place)) for f in plane.T)
    spectrum = np.einsum("zyx,fx->fzy", volume, wave_x, optimize=True)
    spectrum = np.einsum("fzy,fy,fz->f", spectrum, wave_y, wave_z, optimize=True)
    u, angle = np.hypot(kx, ky) / (box * pixel), np.arctan2(ky, kx)
    spectrum = spectrum.reshape(box, box) * transfer(row, optics, u, angle)
    # a particle's centre lies at minus its origin
    shift = -(row.rlnOriginXAngst * kx + row.rlnOriginYAngst * ky) / (box * pixel)
    spectrum = spectrum * np.exp(-2j * np.pi * shift)
    spectrum[box // 2], spectrum[:, box // 2] = 0, 0
    return np.fft.fftshift(np.fft.ifft2(spectrum).real)


def rows_and_volumes(folder: Path) -> tuple[list[Any], Any, list[np.ndarray], np.ndarray]:
    tables = starfile.read(folder / "particles.star")
    with (folder / "truth" / "states.csv").open(newline="") as file:
        states = [int(row["state"]) for row in csv.DictReader(file)]
    volumes = [mrcfile.read(folder / "truth" / f"state_{state}.mrc") for state in states]
    optics = next(tables["optics"].itertuples())
    return (
        list(tables["particles"].itertuples()),
        optics,
        volumes,
        mrcfile.read(folder / "stack_001.mrcs"),
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_images_are_what_the_star_file_says_of_the_true_volumes(bright: Path) -> None:
    rows, optics, volumes, images = rows_and_volumes(bright)

    for row, volume, image in zip(rows, volumes, images, strict=True):
        expected = expected_image(volume, row, optics)
        assert correlation(image, expected) > 0.99
        assert np.vdot(image, expected) / np.vdot(expected, expected) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda row: row._replace(rlnOriginXAngst=-row.rlnOriginXAngst),
        lambda row: row._replace(rlnOriginYAngst=-row.rlnOriginYAngst),
        lambda row: row._replace(rlnAngleRot=-row.rlnAngleRot),
        lambda row: row._replace(rlnAngleTilt=-row.rlnAngleTilt),
        lambda row: row._replace(rlnAnglePsi=-row.rlnAnglePsi),
        lambda row: row._replace(rlnAngleRot=row.rlnAnglePsi, rlnAnglePsi=row.rlnAngleRot),
        lambda row: row._replace(rlnDefocusU=-row.rlnDefocusU, rlnDefocusV=-row.rlnDefocusV),
        lambda row: row._replace(rlnDefocusU=row.rlnDefocusU / 2, rlnDefocusV=row.rlnDefocusV / 2),
        lambda row: row._replace(rlnPhaseShift=180.0),
    ],
    ids=["origin x", "origin y", "rot", "tilt", "psi", "order", "sign", "size", "contrast"],
)
def test_a_wrong_convention_would_be_seen(bright: Path, wrong: Callable[[Any], Any]) -> None:
    rows, optics, volumes, images = rows_and_volumes(bright)

    right = [
        correlation(image, expected_image(volume, wrong(row), optics))
        for row, volume, image in zip(rows, volumes, images, strict=True)
    ]

    assert np.mean(right) < 0.95


def test_contrast_transfer_is_relions_in_sign_astigmatism_and_units() -> None:
    views, box, extent = SIMULATE._views(1, 3), 48, 192.0
    optics = SimpleNamespace(rlnVoltage=300.0, rlnSphericalAberration=2.7, rlnAmplitudeContrast=0.1)
    ky, kx = np.meshgrid(np.arange(-23, 24), np.arange(24), indexing="ij")

    got = SIMULATE._ctf(views, extent, box)

    for particle in range(len(got)):
        row = SimpleNamespace(
            rlnDefocusU=views.defocus_u[particle],
            rlnDefocusV=views.defocus_v[particle],
            rlnDefocusAngle=views.defocus_angle[particle],
            rlnPhaseShift=0.0,
        )
        expected = transfer(row, optics, np.hypot(kx, ky) / extent, np.arctan2(ky, kx))
        np.testing.assert_allclose(got[particle], expected, atol=1e-9)
    assert (views.defocus_u - views.defocus_v > 40.0).all()
    np.testing.assert_allclose(got[:, 23, 0], 0.1)  # the amplitude contrast: light particles
    assert (got[:, 23, 1:3] > 0.0).all()


def test_volume_is_in_the_units_of_the_images(bright: Path) -> None:
    """Its sum is that of a projection; its origin is voxel 24 of 48."""
    volume = mrcfile.read(bright / "truth" / "state_2.mrc").astype(np.float64)
    asked = SIMULATE.Parameters(particles=4, snr=100.0)
    beads = SIMULATE._complex(2) / asked.pixel

    centre = [(volume.sum(axis=axes) * np.arange(-24, 24)).sum() for axes in ((0, 1), (0, 2))]

    expected = SIMULATE._grey_levels(asked) * len(beads)
    np.testing.assert_allclose(volume.sum(), expected, rtol=1e-4)
    np.testing.assert_allclose(centre / volume.sum(), beads.mean(axis=0)[:2], atol=0.05)


def test_states_differ_by_a_hinge_and_a_subunit() -> None:
    beads = [SIMULATE._complex(state) for state in range(4)]
    body, arm = 204, 85

    assert [len(b) for b in beads] == [body + arm, body + arm, body + arm + 60, body + arm + 60]
    np.testing.assert_array_equal(beads[0][:body], beads[1][:body])
    assert np.linalg.norm(beads[0][body : body + arm] - beads[1][body:], axis=1).mean() > 20.0
    # with the largest shift and three standard deviations of a bead it fits into the image
    assert max(np.linalg.norm(b, axis=1).max() for b in beads) < 96.0 - 8.0 - 9.0


@pytest.mark.parametrize("snr", [0.05, 0.1, 1.0])
def test_signal_to_noise_ratio_is_the_one_asked_for(snr: float) -> None:
    asked = SIMULATE.Parameters(particles=640, snr=snr)

    signal = [SIMULATE._signal(SIMULATE._views(1, micrograph), asked) for micrograph in range(10)]

    variance = np.var(np.concatenate(signal)) * SIMULATE._grey_levels(asked) ** 2
    assert variance / SIMULATE.NOISE**2 == pytest.approx(snr, rel=0.05)


def test_noise_is_white_and_has_its_standard_deviation(tiny: Path) -> None:
    noisy = mrcfile.read(tiny / "stack_001.mrcs")
    asked = SIMULATE.Parameters(particles=64)

    signal = SIMULATE._grey_levels(asked) * SIMULATE._signal(SIMULATE._views(1, 0), asked)

    noise = (noisy - signal) / SIMULATE.NOISE
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0) / 48**2
    assert noise.std() == pytest.approx(1.0, abs=0.01)
    assert power.min() > 0.4
    assert power.max() < 2.0


def test_orientations_are_uniform_and_states_equally_frequent() -> None:
    views = [SIMULATE._views(1, micrograph) for micrograph in range(100)]
    rot, tilt, psi = (
        np.concatenate([getattr(v, n) for v in views]) for n in ("rot", "tilt", "psi")
    )
    state = np.concatenate([v.state for v in views])

    for uniform in (rot / 180.0, psi / 180.0, np.cos(np.radians(tilt))):
        counts, _ = np.histogram(uniform, bins=8, range=(-1.0, 1.0))
        np.testing.assert_allclose(counts, 800, atol=110)
    np.testing.assert_allclose(np.bincount(state), 1600, atol=140)


def test_particles_of_a_micrograph_do_not_overlap() -> None:
    views = SIMULATE._views(1, 5)

    x, y = views.coordinate_x, views.coordinate_y
    distance = np.hypot(x[:, None] - x, y[:, None] - y) + 1e6 * np.eye(len(x))

    assert distance.min() >= SIMULATE.FIELD / SIMULATE.MICROGRAPH_PIXEL
    assert np.ptp(views.defocus_u) < 1500.0


# ---- reader


def test_reader_gives_back_what_was_written(tiny: Path) -> None:
    particles = READER.read(tiny)

    views = SIMULATE._views(1, 0)
    assert dict(particles.sizes) == {
        "particle": 64, "y": 48, "x": 48, "optics_group": 1, "conformation": 4, "z": 48,
    }  # fmt: skip
    for name in ("rot", "tilt", "psi", "origin_x", "defocus_u", "defocus_v", "defocus_angle"):
        np.testing.assert_array_equal(particles[name], getattr(views, name))
    np.testing.assert_array_equal(particles.state, views.state)
    np.testing.assert_array_equal(particles.images, mrcfile.read(tiny / "stack_001.mrcs"))
    np.testing.assert_array_equal(
        particles.volumes[3], mrcfile.read(tiny / "truth" / "state_3.mrc")
    )
    assert particles.pixel_size.values.tolist() == [4.0]
    assert particles.micrograph.attrs["flag_meanings"] == "micrograph_00001.mrc"


def test_images_come_in_blocks_of_rows(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READER, "ROWS", 24)
    expected = mrcfile.read(tiny / "stack_001.mrcs")

    images = READER.read(tiny).images

    assert images.chunks[0] == (24, 24, 16)
    np.testing.assert_array_equal(images[30], expected[30])
    np.testing.assert_array_equal(images[10:50:7, 3], expected[10:50:7, 3])
    np.testing.assert_array_equal(images[[50, 3, 3]], expected[[50, 3, 3]])
    assert images[:0].values.shape == (0, 48, 48)


def test_rows_are_found_by_name_in_any_order_and_stack(copy: Path) -> None:
    images = mrcfile.read(copy / "stack_001.mrcs")
    (copy / "more").mkdir()
    with mrcfile.new(copy / "more" / "big_endian.mrcs", images[::-1].astype(">i2")) as file:
        file.set_image_stack()
    tables = starfile.read(copy / "particles.star")
    order = np.random.default_rng(0).permutation(64)
    tables["particles"] = tables["particles"].iloc[order]
    tables["particles"]["rlnImageName"] = [
        f"{64 - i:06d}@more/big_endian.mrcs" if i % 3 else f"{i + 1}@stack_001.mrcs" for i in order
    ]
    starfile.write(tables, copy / "particles.star")
    shutil.rmtree(copy / "truth")

    particles = READER.read(copy)

    np.testing.assert_array_equal(particles.images, images[order])
    np.testing.assert_array_equal(particles.rot, SIMULATE._views(1, 0).rot[order])
    assert "state" not in particles.variables


def test_columns_that_may_be_absent_are_zero(copy: Path) -> None:
    tables = starfile.read(copy / "particles.star")
    gone = ["rlnPhaseShift", "rlnOriginXAngst", "rlnOriginYAngst", "rlnCoordinateX"]
    tables["particles"] = tables["particles"].drop(columns=gone)
    starfile.write(tables, copy / "particles.star")

    particles = READER.read(copy)

    for name in ("phase_shift", "origin_x", "origin_y"):
        assert not particles[name].values.any()


def test_links_of_git_annex_are_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "stack_001.mrcs").rename(tmp_path / "object")
    (copy / "stack_001.mrcs").symlink_to(tmp_path / "object")

    assert READER.read(copy).images[5].values.any()


def test_optics_groups_are_told_apart(copy: Path) -> None:
    tables = starfile.read(copy / "particles.star")
    optics = tables["optics"]
    second = optics.assign(rlnOpticsGroup=7, rlnVoltage=200.0)
    tables["optics"] = type(optics)({c: [*second[c], *optics[c]] for c in optics.columns})
    tables["particles"].loc[::2, "rlnOpticsGroup"] = 7
    starfile.write(tables, copy / "particles.star")

    particles = READER.read(copy)

    assert particles.voltage.values.tolist() == [200.0, 300.0]
    assert particles.optics_group[:4].values.tolist() == [0, 1, 0, 1]


def _edit(path: Path, edit: Edit) -> None:
    path.write_text(edit(path.read_text()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("rlnDefocusU ", "rlnOther "), "lacks rlnDefocusU"),
        (lambda text: text.replace("rlnVoltage", "rlnVolt"), "data_optics lacks rlnVoltage"),
        (lambda text: text.replace("data_optics", "data_o"), "expected the tables data_optics"),
        (lambda text: text.replace("000064@", "000065@"), "000065@stack_001.mrcs.*1 to 64"),
        (lambda text: text.replace("000064@", "000000@"), "000000@stack_001.mrcs.*1 to 64"),
        (lambda text: text.replace("000064@stack", "stack"), "expected number@stack"),
        (lambda text: text.replace("64@stack_001", "64@stack_002"), "stack_002.mrcs.*get the file"),
        (lambda text: text.replace("64@stack", "64@../stack"), "lies outside the folder"),
        (lambda text: text.replace("64@stack", "64@/etc/stack"), "lies outside the folder"),
        (lambda text: text.replace(".mrc 1 1 ", ".mrc 3 1 ", 1), "optics group 3"),
        (lambda text: text.replace(" 0.000000 ", " none ", 1), "is 'none', expected a finite"),
        (lambda text: text.replace(" 0.000000 ", " inf ", 1), "is 'inf', expected a finite"),
        (lambda text: text.replace(" 0.000000 ", " nan ", 1), "is 'nan', expected a finite"),
        (lambda _: "", "expected the tables"),
        (lambda _: "data_optics\n\nloop_\n", "STAR|star"),
        (lambda text: text.partition("000001@")[0], "no rows|can't read"),
    ],
)
def test_a_wrong_star_file_is_refused(copy: Path, edit: Edit, message: str) -> None:
    _edit(copy / "particles.star", edit)

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


@pytest.mark.parametrize("size", [0, 100, 1024, 200_000])
def test_a_cut_stack_is_refused(copy: Path, size: int) -> None:
    content = (copy / "stack_001.mrcs").read_bytes()
    (copy / "stack_001.mrcs").write_bytes(content[:size])

    with pytest.raises(IntegrityError, match=r"stack_001.mrcs.*get it again"):
        READER.read(copy)


def test_a_stack_cut_after_it_was_opened_is_noticed(copy: Path) -> None:
    images = READER.read(copy).images
    content = (copy / "stack_001.mrcs").read_bytes()
    (copy / "stack_001.mrcs").write_bytes(content[:-1])

    with pytest.raises(IntegrityError, match="became shorter"):
        images.load()


def test_stacks_of_different_boxes_are_refused(copy: Path) -> None:
    with mrcfile.new(copy / "other.mrcs", np.zeros((1, 8, 8), np.int16)) as file:
        file.set_image_stack()
    _edit(copy / "particles.star", lambda text: text.replace("000064@stack_001", "000001@other"))

    with pytest.raises(IntegrityError, match=r"8 x 8 int16, but stack_001.mrcs has 48 x 48 int16"):
        READER.read(copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("000009@", "000099@"), "no state for '000009@stack_001.mrcs'"),
        (lambda text: text.replace(".mrcs,0", ".mrcs,7", 1), "0 to 7, but there are 4 volumes"),
        (lambda text: text.replace(".mrcs,0", ".mrcs,x", 1), "'x'"),
    ],
)
def test_wrong_states_are_refused(copy: Path, edit: Edit, message: str) -> None:
    _edit(copy / "truth" / "states.csv", edit)

    with pytest.raises(IntegrityError, match=message):
        READER.read(copy)


@pytest.mark.parametrize("name", ["particles.star", "stack_001.mrcs", "truth/states.csv"])
def test_a_file_that_was_not_fetched_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).symlink_to(copy / "absent")

    with pytest.raises(IntegrityError, match=f"{name}.* get "):
        READER.read(copy)


def test_a_folder_without_a_star_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"expected particles.star, found no STAR file"):
        READER.read(tmp_path)


def test_real_particles_are_read_although_their_header_is_wrong(shared_data: Path) -> None:
    particles = READER.read(shared_data / "cryoem")

    images = particles.images.values
    assert particles.sizes["particle"] == 5
    assert images.shape == (5, 256, 256)
    assert images.dtype == np.float32
    # normalised as RELION does: the background has mean 0 and standard deviation 1
    assert images.mean() == pytest.approx(0.0, abs=0.2)
    assert images.std() == pytest.approx(1.0, abs=0.2)
    assert particles.pixel_size.values.tolist() == [2.806]
    assert particles.defocus_u.values[0] == 13108.082418
    assert particles.tilt.values[4] == 84.493794
    assert particles.origin_x.values.tolist() == [0.019324, -0.25248, -0.65323, -0.00755, -0.33773]
    assert len(set(particles.micrograph.values.tolist())) == 1
