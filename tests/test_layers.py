"""One direction: a module imports only from modules before it, and so does a folder."""

import ast
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "scibench_data"

# as the chain goes: what all stand on, a description, its files, their store, batches, results
ORDER = [
    f"{folder.strip()}.{name}".lstrip(".")
    for folder, _, names in (
        line.partition(":")
        for line in """
        : errors progress durable usage exact metrics provenance settings
        : foreign sources profile descriptor catalog
        annexed: compute annex build copying transfer
        net: guard answers web objectstore uploading
        describing: about scanning stated tables authoring checking
        getting: archives events origins thirdparty fetching simulating terms holdings dataset
        getting: placing adopting derive listing
        : seal sampling stored
        storing: digest cluster shard staging manifest writing store
        : reading loader batches
        results: training result pictures reporting run links verification citation
        versions: lockfile recorded locking moments comparing
        keeping: inventory cache diagnosis browsing
        sharing: adding assembling publishing bundling adoption
        : api
        commands: terminal present options chain own versions cached share results
        : cli __main__
        """.strip().splitlines()
    )
    for name in names.split()
]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(CORE).with_suffix("").parts)


def _modules() -> list[Path]:
    return [path for path in CORE.rglob("*.py") if path.name != "__init__.py"]


def _imported(path: Path) -> set[str]:
    """Return the modules of the core that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.removeprefix("scibench_data").lstrip(".")
            if node.module.startswith("scibench_data") and package not in ORDER:
                found |= {f"{package}.{alias.name}".lstrip(".") for alias in node.names}
            elif node.module.startswith("scibench_data"):
                found.add(package)
        elif isinstance(node, ast.Import):
            names = [alias.name.partition("scibench_data.") for alias in node.names]
            found |= {name for before, _, name in names if name and not before}
    return found


def test_every_module_has_a_place() -> None:
    assert {_name(path) for path in _modules()} == set(ORDER)


def test_a_folder_stands_in_one_place() -> None:
    """So folders import in one direction too."""
    folders = [key for key, _ in groupby(name.rpartition(".")[0] for name in ORDER) if key]

    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_the_left(module: str) -> None:
    imported = _imported(CORE / f"{module.replace('.', '/')}.py")

    assert imported <= set(ORDER[: ORDER.index(module)]), f"{module} imports from its right"


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("models/*/*.py"), *ROOT.glob("datapackages/*/*.py")]), ids=str
)
def test_items_import_from_the_core_and_never_from_each_other(path: Path) -> None:
    inner = {"models", "datapackages", "api", "cli", "getting.dataset", "annexed.annex"}

    assert not _imported(path) & inner


def test_only_one_module_starts_processes_and_only_one_prints() -> None:
    for path in _modules():
        text = path.read_text(encoding="utf-8")
        if path.stem != "annex":
            assert "import subprocess" not in text, path
        if path.stem not in {"cli", "terminal", "compute", "seal", "__main__"}:
            tree = ast.parse(text)
            calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
            assert not [c for c in calls if getattr(c.func, "id", "") == "print"], path


def test_files_stay_small_enough_to_tell_one_story() -> None:
    long = {
        path.name: count
        for path in _modules()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 550
    }

    assert not long
