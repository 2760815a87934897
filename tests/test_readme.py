"""What the README says is what happens: its commands run, its numbers come from files."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import scibench_data as sbd
from scibench_data import catalog
from scibench_data.cli import cli
from scibench_data.results import reporting
from scibench_data.results.result import read_result

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = Path(sys.executable).parent


def _session() -> list[tuple[str, str]]:
    """Return the commands of the README's console sessions, each with the output shown for it."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    parts = [part for b in blocks for part in re.split(r"^\$ ", b, flags=re.MULTILINE)[1:]]
    return [(command.strip(), shown) for command, _, shown in (p.partition("\n") for p in parts)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Play the session in order, in an empty home, as a user with an activated environment."""
    folder = tmp_path_factory.mktemp("readme")
    environment = {
        **os.environ,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "SCIBENCH_DATA_HOME": str(folder / "home"),
    }
    told = {}
    for command, _ in _session():
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        told[command] = done.stdout + done.stderr
    return told


def test_the_session_shows_the_main_job() -> None:
    verbs = [shlex.split(command)[1] for command, _ in _session()]

    assert verbs[:4] == ["get", "train", "verify", "cite"]


def test_every_command_of_the_session_gives_what_is_shown(played: dict[str, str]) -> None:
    """Digests, names and statuses must be those shown; times, scores and paths may differ.

    So may what depends on the machine's arithmetic, its codecs or the newest commit of the code,
    and the commit of a package that was made just now, which has an identifier of its own.
    """
    for command, shown in _session():
        if "survey" in command:
            shown = re.sub(r"(swh:1:rev:)?[0-9a-f]{40}", "", shown)  # noqa: PLW2901
        shown = re.sub(r"^ (checkpoint|code|store manifest) .*$", "", shown, flags=re.MULTILINE)  # noqa: PLW2901
        for word in re.findall(r"[0-9a-f]{40,64}|swh:1:rev:\w+|\bholds\b|CC0-1\.0", shown):
            assert word in played[command], f"{command}: the README shows {word}"


@pytest.mark.parametrize("name", catalog.model_names())
def test_scores_in_a_card_come_from_result_files(name: str) -> None:
    card = (ROOT / "models" / name / "README.md").read_text(encoding="utf-8")

    rows = sbd.report([ROOT / "models" / name / "results"])
    released = [reporting.metrics_markdown(row) for row in rows if "+scale" not in row.data]
    for table in [*released, reporting.markdown(rows)]:
        for line in table.splitlines():
            assert line in card, f"the model card lacks the row\n{line}"


def test_the_table_of_results_is_what_report_prints() -> None:
    for line in reporting.markdown(sbd.report()).splitlines():
        assert line in README, f"the README lacks the row\n{line}"


@pytest.mark.parametrize("name", catalog.model_names())
def test_results_are_of_released_versions_and_clean_code(name: str) -> None:
    files = sorted((ROOT / "models" / name / "results").glob("*.json"))
    assert len(files) >= 3
    for path in files:
        result = read_result(path).result
        base, variant = catalog.variant_of(result.dataset.version)
        release = catalog.find_release(name, base)
        assert str(variant) or result.dataset.commit == release.commit
        assert result.code.dirty is False


@pytest.mark.parametrize("name", catalog.model_names())
def test_a_card_says_so_where_the_model_is_not_ahead(name: str) -> None:
    card = (ROOT / "models" / name / "README.md").read_text(encoding="utf-8").lower()

    for row in sbd.report([ROOT / "models" / name / "results"]):
        if row.ahead == "baseline":
            assert "baseline wins" in card
        if row.ahead == "neither":
            assert "neither" in card or "baseline wins" in card


def test_the_difficulty_table_comes_from_its_file() -> None:
    card = (ROOT / "models" / "cryoem" / "README.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "benchmarks" / "results" / "difficulty.json").read_bytes())
    for row in measured["rows"]:
        scores = row["scores"]
        names = ("baseline: consensus", "model", "ceiling: true states")
        cells = [f"{scores[name]['fsc_auc']:.3f}" for name in names]
        cells.append(f"{scores['model']['balanced_accuracy']:.3f}")
        line = f"| {row['snr']} | {row['particles']:,} | {' | '.join(cells)} |"
        assert line in card, line


def test_every_command_and_package_is_named() -> None:
    for verb in cli.commands:
        assert f"`{verb}`" in README or f"scibench-data {verb}" in README, verb
    for name in catalog.package_names():
        assert name in README


def test_the_gate_runs_the_readme_test_line() -> None:
    lines = re.findall(r"^python3 -m venv .*pytest$", README, re.MULTILINE)

    assert len(lines) == 1
    assert "grep -E '^python3 -m venv .*pytest$' README.md" in (ROOT / ".ci/run").read_text()


def test_every_link_to_a_file_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nothing_names_a_path_of_a_machine() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
    ).stdout.decode()  # fmt: skip
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".json", ".toml"} and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w./])/(home|root|work|Users)/\w", text), name
