"""The wheel holds exactly what the tree says it should, and no data."""

import zipfile
from pathlib import Path

import build
import pytest

ROOT = Path(__file__).parent.parent


def _expected() -> set[str]:
    files = [*ROOT.glob("scibench_data/**/*.py"), *ROOT.glob("scibench_data/*.json")]
    core = {path.relative_to(ROOT).as_posix() for path in files}
    items = set()
    for kind, patterns in {
        "datapackages": (
            "*.py",
            "*/*.py",
            "*/README.md",
            "*/releases.json",
            "*/*/datapackage.json",
            "*/*/*/manifest.csv",
        ),
        "models": ("*.py", "*/*.py", "*/README.md", "*/results/*.json"),
    }.items():
        for pattern in patterns:
            items |= {
                f"scibench_data/{kind}/{p.relative_to(ROOT / kind).as_posix()}"
                for p in (ROOT / kind).glob(pattern)
            }
    return core | items | {"scibench_data/py.typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True, check=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, files):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    (copy / "datapackages" / "cryoem" / "big.mrcs").write_bytes(b"data that must not ship")
    builder = build.ProjectBuilder(copy, python_executable=sys.executable)
    return Path(builder.build("wheel", folder))


def test_the_wheel_holds_exactly_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert names == _expected()


def test_the_wheel_offers_both_programs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(name).decode()

    assert "scibench-data = scibench_data.cli:main" in text
    assert "git-annex-compute-scibench-data = scibench_data.annexed.compute:main" in text
