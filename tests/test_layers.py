"""One direction: a module imports only from modules before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "scibench_data"

ORDER = """
errors progress durable usage exact provenance settings
foreign sources profile descriptor catalog scanning stated tables about authoring compute annex
build copying transfer guard answers web objectstore uploading archives events checking
origins thirdparty adding fetching simulating terms holdings dataset placing adopting derive seal
listing digest cluster shard sampling stored staging manifest store
reading loader batches metrics training result pictures reporting run
lockfile recorded locking moments comparing inventory cache assembling publishing bundling adoption
links verification citation diagnosis browsing api
terminal present options
verbs verbs_own verbs_versions verbs_cache verbs_share verbs_results cli __main__
""".split()  # noqa: SIM905  (it reads as the chain does)


def _imported(path: Path) -> set[str]:
    """Return the modules of the core that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "scibench_data":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("scibench_data."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1] for a in node.names if a.name.startswith("scibench_data.")
            }
    return found


def test_every_module_has_a_place() -> None:
    modules = {path.stem for path in CORE.glob("*.py")} - {"__init__"}

    assert modules == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_the_left(module: str) -> None:
    imported = _imported(CORE / f"{module}.py")

    assert imported <= set(ORDER[: ORDER.index(module)]), f"{module} imports from its right"


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("models/*/*.py"), *ROOT.glob("datapackages/*/*.py")]), ids=str
)
def test_items_import_from_the_core_and_never_from_each_other(path: Path) -> None:
    assert not _imported(path) & {"models", "datapackages", "api", "cli", "dataset", "annex"}


def test_only_one_module_starts_processes_and_only_one_prints() -> None:
    for path in CORE.glob("*.py"):
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
        for path in CORE.glob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 550
    }

    assert not long
