"""Files made by recipes: in processes that know nothing of the caller's, each checked and kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import scibench_data as sbd
from scibench_data import catalog
from scibench_data.annexed import annex, compute
from scibench_data.annexed.build import NOTES, object_path
from scibench_data.errors import IntegrityError, ScibenchError
from scibench_data.getting import dataset, holdings, simulating
from scibench_data.progress import SILENT
from scibench_data.settings import Settings


def _line(path: str, output: Path, **parameters: int) -> str:
    return compute.request("cryoem", path, output, {"particles": 64, **parameters})


def test_a_process_makes_one_file_after_the_other_and_tells_what_failed(tmp_path: Path) -> None:
    lines = [
        _line("particles.star", tmp_path / "a"),
        _line("stack_009.mrcs", tmp_path / "b"),
        _line("particles.star", tmp_path / "none" / "c"),
        _line("particles.star", tmp_path / "d"),
    ]

    answers = [json.loads(answer) for answer in annex.stream_compute(lines, tmp_path, 1)]

    assert [path for path, _ in answers] == [json.loads(line)[1] for line in lines]
    whys = [why for _, why in answers]
    assert whys[0] == whys[3] == ""
    assert "no file 'stack_009.mrcs'" in whys[1]
    assert whys[2].startswith("FileNotFoundError: ")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "d").read_bytes()


def test_a_process_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho so much memory >&2\nkill -9 $$\n")
    program.chmod(0o755)
    real = annex.find_program
    monkeypatch.setattr(
        annex, "find_program", lambda name: program if name == compute.PROGRAM else real(name)
    )

    with pytest.raises(ScibenchError, match=r"killed by SIGKILL, said 'so much memory'; .* memory"):
        list(annex.stream_compute([_line("particles.star", tmp_path / "a")], tmp_path, 2))


def test_a_recipe_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScibenchError, match=r"cryoem: truth\.csv could not be made \(.*no file"):
        list(simulating._simulate("cryoem", {}, {"truth.csv": tmp_path / "a"}, 1, SILENT))


def test_get_works_in_a_script_that_is_not_made_to_be_imported(tmp_path: Path) -> None:
    """Worker processes of `multiprocessing` would run it again."""
    script = tmp_path / "script.py"
    home = tmp_path / "home"
    script.write_text(
        "import scibench_data as sbd\n"
        "from scibench_data.settings import load_settings\n"
        f"print(sbd.get('uno', settings=load_settings(home={str(home)!r})).commit)\n"
    )

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [catalog.resolve("uno").release.commit]


def test_what_is_right_is_kept_where_another_file_is_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = catalog.resolve("uno")
    bad, good = reference.resources
    real = annex.stream_compute

    def spoil(lines: list[str], cwd: Path, jobs: int) -> list[str]:
        answers = list(real(lines, cwd, jobs))
        place = next(Path(json.loads(x)[2]) for x in lines if bad.path.endswith(json.loads(x)[1]))
        with place.open("ab") as file:
            file.write(b"x")
        return answers

    monkeypatch.setattr(annex, "stream_compute", spoil)
    with pytest.raises(IntegrityError, match=r"1 files could not be had, .*other bytes than were"):
        dataset.get(reference, settings)

    folder = holdings.dataset_folder(settings.home, reference.package)
    assert object_path(folder, good).is_file()
    assert not object_path(folder, bad).exists()
    assert not (folder / NOTES / "incoming/made").exists()
    assert [each.path for each in holdings.plan(reference, settings).missing] == [bad.path]

    monkeypatch.undo()
    here = annex.git("config", "annex.uuid", cwd=folder)
    sbd.get("uno", settings=settings)
    for resource in (bad, good):
        assert here in annex.git("annex", "whereis", "--", resource.path, cwd=folder)
