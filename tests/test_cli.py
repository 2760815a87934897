"""The command line as a person and as a script meet it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chains import TINY, Chain

import scibench_data as sbd
from scibench_data import catalog, cli, durable
from scibench_data.commands import present
from scibench_data.errors import UsageError
from scibench_data.keeping import browsing


def _run(
    *words: str, home: Path, code: int | None = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SCIBENCH_DATA_HOME": str(home), "COLUMNS": "120", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "scibench_data", *words],
        env=environment, capture_output=True, text=True, check=False, cwd=home.parent,
    )  # fmt: skip
    if code is not None:
        assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_get_prints_the_path_alone_on_standard_output(chain: Chain) -> None:
    done = _run("get", TINY, home=chain.settings.home)

    assert done.stdout.strip() == str(chain.dataset / "sample")
    assert "made here, SHA-256 as recorded" in done.stderr
    assert "swh:1:rev:" in done.stderr
    again = _run("get", TINY, home=chain.settings.home)
    assert "made here, unchanged since its SHA-256 was checked" in again.stderr


def test_the_layout_is_told_and_can_be_chosen(chain: Chain) -> None:
    plain = _run("materialize", TINY, home=chain.settings.home)
    assert "array    images: <i2 " in plain.stderr

    words = ("--codec", "zstd", "--chunk", "64KiB", "--shard", "1MiB")
    chosen = _run("materialize", TINY, *words, home=chain.settings.home)
    assert "array    images: <i2 640 x 48 x 48; 8 in a chunk, " in chosen.stderr
    assert "codec zstd\n" in chosen.stderr
    assert chosen.stdout != plain.stdout

    wrong = _run("materialize", TINY, "--chunk", "much", home=chain.settings.home, code=2)
    assert "'much': expected a size" in wrong.stderr


def test_json_is_one_object(chain: Chain) -> None:
    for words in (
        ("get", TINY),
        ("get", TINY, "--dry-run"),
        ("info", TINY),
        ("list",),
        ("versions", "cryoem"),
        ("materialize", TINY),
        ("verify", str(chain.result)),
        ("doctor",),
        ("path", TINY),
        ("open", TINY),
        ("cite", TINY),
        ("remove", TINY, "--yes"),
    ):
        done = _run(*words, "--json", home=chain.settings.home, code=None)
        answer = json.loads(done.stdout)

        assert answer["schema"].startswith("scibench-data/"), words
        assert answer["ok"] is (done.returncode == 0), words


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("get", "cyroem"), 3, "did you mean 'cryoem'?"),
        (("get", "cryoem@1.0.1"), 3, "did you mean '1.0.0' or"),
        (("get", "cryoem:sampel"), 3, "did you mean 'sample'?"),
        (("get", "../etc"), 2, "NAME[@VERSION][:SUBSET]"),
        (("get", "-rf"), 2, "-r"),
        (("get", "a\nb"), 2, "NAME[@VERSION][:SUBSET]"),
        (("gte", "cryoem"), 2, "Did you mean"),
        (("train", "cryoem", "--device", "abacus"), 2, "abacus"),
        (("train", "cryoem", "--set", "learning_rat=1"), 2, "learning_rate"),
        (("train", "cryoem", "--set", "x"), 2, "NAME=VALUE"),
        (("train", "cryoem", "--epochs", "0"), 2, "epochs"),
        (("verify", "nowhere/result.json"), 2, "no such file"),
        (("verify", "cryoem@1.0.0"), 3, "scibench-data get"),
        (("path", "cryoem"), 3, "scibench-data get"),
        (("cite", "cryoem", "-f", "word"), 2, "bibtex"),
        (("remove", "cryoem"), 2, "--yes"),
        (("train", "cryoem", "--seed", "-1"), 2, "not in the range"),
        (("train", "cryoem", "--seed", "4294967296"), 2, "not in the range"),
        (("train", "cryoem", "--set", "learning_rate=nan"), 2, "learning_rate"),
        (("get", "cryoem", "--to", ""), 2, "expected a folder"),
        (("train", "cryoem", "--out", ""), 2, "expected a folder"),
        (("get", "cryoem:experimental", "--scale", "10", "-n"), 2, "can't be made with --scale 10"),
    ],
)
def test_mistakes_get_a_message_and_a_code(
    tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = _run(*words, home=tmp_path / "home", code=code)

    assert told in done.stderr
    assert not done.stdout


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    answer = json.loads(_run("get", "cyroem", "--json", home=tmp_path / "h", code=3).stdout)

    assert answer["ok"] is False
    assert answer["error"]["code"] == 3
    assert "cryoem" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("get", "cyroem", "--json"), True),
        (("get", "cyroem", "--json", "--bogus"), True),
        (("get", "--bogus", "cyroem", "--json"), True),
        (("gte", "cyroem", "--json"), True),
        (("get", "--", "--json"), False),
        (("get", "cyroem", "--to", "--json"), False),
        (("get", "cyroem", "-J", "--json"), False),
        (("get", "cyroem", "--to=--json"), False),
    ],
)
def test_json_is_asked_for_by_the_option_alone(
    tmp_path: Path, words: tuple[str, ...], wanted: bool
) -> None:
    done = _run(*words, home=tmp_path / "h", code=None)

    assert done.returncode in {2, 3}
    assert bool(done.stdout) is wanted
    assert not wanted or json.loads(done.stdout)["error"]["code"] == done.returncode


def test_nothing_asked_is_helped_not_blamed(tmp_path: Path) -> None:
    done = _run(home=tmp_path / "h", code=2)

    assert "The main job" in done.stderr
    assert "error" not in done.stderr


def test_a_bad_setting_is_told_with_its_origin(tmp_path: Path) -> None:
    done = _run("list", home=tmp_path / "h", code=None)
    assert done.returncode == 0
    done = _run("get", "cryoem", "-n", home=tmp_path / "h", code=2, SCIBENCH_DATA_JOBS="many")
    assert "SCIBENCH_DATA_JOBS" in done.stderr


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    done = _run("get", "cryoem", "--dry-run", home=tmp_path / "home")

    assert "made here by its recipe" in done.stdout
    assert not (tmp_path / "home").exists()


def test_dry_run_of_another_size_is_an_estimate(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = ("get", "cryoem@1.0.0", "--dry-run", "--to", "out")
    released = json.loads(_run(*words, "--json", home=home).stdout)
    doubled = json.loads(_run(*words, "--json", "--scale", "10240", home=home).stdout)

    assert doubled["name"] == "cryoem@1.0.0+scale.10240:sample"
    assert (released["estimated"], doubled["estimated"]) == (False, True)
    for amount in ("bytes", "files", "inodes"):
        assert doubled[amount] == 2 * released[amount]
    assert doubled["to"] == str(tmp_path / "out")
    told = _run(*words, "--scale", "1000000000000", home=home).stdout
    assert "about 1,953,125,000 files" in told
    assert str(tmp_path / "out") in told
    assert sorted(tmp_path.iterdir()) == []


def test_dry_run_of_what_was_derived_is_exact(chain: Chain) -> None:
    words = ("get", "cryoem@1.0.0", "--dry-run", "--scale", "640", "--json")
    plan = json.loads(_run(*words, home=chain.settings.home).stdout)

    assert plan["name"] == f"{TINY}:sample"
    assert (plan["estimated"], plan["files"], plan["bytes"]) == (False, 0, 0)


def test_get_says_how_sure_it_is(chain: Chain) -> None:
    home = chain.settings.home

    assert "SHA-256 as recorded" in _run("get", TINY, "--check", home=home).stderr
    again = json.loads(_run("get", TINY, "--json", home=home).stdout)
    assert (again["hashed"], again["files"]) == (0, 7)
    (chain.dataset / "sample/particles.star").touch()
    one = _run("get", TINY, home=home).stderr
    assert "made here, 1 SHA-256 as recorded, the other files unchanged" in one


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        (3, "every SHA-256 as published"),
        (1, "1 SHA-256 as published, the other files unchanged since theirs were checked"),
        (0, "unchanged since its SHA-256 was checked"),
    ],
)
def test_only_a_published_version_is_as_published(fresh: int, told: str) -> None:
    data: Any = SimpleNamespace(
        package=SimpleNamespace(version="1.0.0"), resources=(1, 2, 3), unverified=()
    )

    assert present.how_sure(data, fresh) == told


def test_verify_prints_a_table_and_its_code(chain: Chain, flip: object) -> None:
    done = _run("verify", str(chain.result), home=chain.settings.home)
    assert "links hold" in done.stderr
    assert "checkpoint" in done.stdout

    (chain.result.parent / "checkpoint.safetensors").write_bytes(b"other")
    done = _run("verify", str(chain.result), home=chain.settings.home, code=9)
    assert "does not verify" in done.stderr


def test_looking_around(chain: Chain) -> None:
    home = chain.settings.home

    assert "cryoem" in _run("list", home=home).stdout
    told = _run("info", TINY, home=home).stdout
    assert "micrograph" in told
    assert "CC0-1.0" in told
    assert "1.0.0" in _run("versions", "cryoem", home=home).stdout
    assert "Dimensions" in _run("open", TINY, home=home).stdout
    assert _run("path", TINY, home=home).stdout.strip() == str(chain.dataset / "sample")
    assert "_SCIBENCH_DATA_COMPLETE" in _run("completion", "bash", home=home).stdout


def test_completion_offers_packages(tmp_path: Path) -> None:
    done = _run(
        home=tmp_path / "h", code=None, _SCIBENCH_DATA_COMPLETE="bash_complete",
        COMP_WORDS="scibench-data get cr", COMP_CWORD="2",
    )  # fmt: skip

    assert "cryoem" in done.stdout


def test_help_is_short_and_shows_the_main_job_first(tmp_path: Path) -> None:
    told = _run("--help", home=tmp_path / "h").stdout

    assert len(told.splitlines()) < 55
    assert told.index("get ") < told.index("train ") < told.index("verify ") < told.index("list ")


def test_without_torch_the_extra_is_named(chain: Chain, tmp_path: Path) -> None:
    """A base install trains nothing, and says what to install; everything else works."""
    (tmp_path / "hide" / "torch").mkdir(parents=True)
    (tmp_path / "hide" / "torch" / "__init__.py").write_text("raise ImportError(name='torch')")
    hidden = str(tmp_path / "hide")
    home = chain.settings.home

    done = _run("train", TINY, home=home, code=1, PYTHONPATH=hidden)
    assert "scibench-data[train]" in done.stderr
    assert _run("get", TINY, home=home, PYTHONPATH=hidden).stdout
    assert _run("materialize", TINY, home=home, PYTHONPATH=hidden).stdout
    done = _run("verify", str(chain.result), home=home, code=1, PYTHONPATH=hidden)
    assert "not fully verified" in done.stderr


def test_a_read_only_cache_is_told(chain: Chain) -> None:
    if os.geteuid() == 0:
        pytest.skip("NOT RUN: root writes where it wants; test_dataset covers refused writes")
    chain.settings.home.chmod(0o500)

    done = _run("get", "cryoem", home=chain.settings.home, code=6)

    assert "SCIBENCH_DATA_HOME" in done.stderr


# --- in this process, where the catalogue can be bent ---------------------------------------------


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Return a function that runs `main` and gives its exit code, output and messages."""
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(tmp_path / "home"))
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scibench-data", *words])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one shipped package with its first version, to be changed."""
    shelf = tmp_path / "shelf"
    shipped = catalog._shipped
    shutil.copytree(shipped("datapackages") / "cryoem", shelf / "cryoem")
    shutil.rmtree(shelf / "cryoem" / "1.1.0")
    path = shelf / "cryoem" / "releases.json"
    path.write_text(json.dumps({"releases": json.loads(path.read_bytes())["releases"][:1]}))
    monkeypatch.setattr(
        catalog, "_shipped", lambda kind: shelf if kind == "datapackages" else shipped(kind)
    )
    return shelf


def _yank(shelf: Path, *, newer: bool) -> None:
    path = shelf / "cryoem" / "releases.json"
    tree = json.loads(path.read_bytes())
    old = tree["releases"][0]
    old["yanked"] = "wrong CTF"
    if newer:
        shutil.copytree(shelf / "cryoem" / "1.0.0", shelf / "cryoem" / "1.1.0")
        tree["releases"].append({**old, "version": "1.1.0", "yanked": ""})
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    "words",
    [
        ("get", "cryoem@1.0.0", "--dry-run"),
        ("get", "cryoem@1.0.0", "--dry-run", "--scale", "640"),
        ("info", "cryoem@1.0.0"),
        ("cite", "cryoem@1.0.0"),
    ],
)
def test_a_yanked_version_is_warned_of(call: Call, shelf: Path, words: tuple[str, ...]) -> None:
    assert "yanked" not in call(*words)[2]

    _yank(shelf, newer=True)
    code, _, told = call(*words)
    answer = json.loads(call(*words, "--json")[1])

    assert code == 0
    assert "warning: cryoem@1.0.0: yanked (wrong CTF); use cryoem@1.1.0" in told
    assert answer["yanked"] == "wrong CTF"


def test_verbs_that_work_warn_of_a_yanked_version_too(
    call: Call, shelf: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version derived from a yanked one, and a result on it, are no better."""
    _yank(shelf, newer=False)
    monkeypatch.setenv("SCIBENCH_DATA_HOME", str(chain.settings.home))
    told = f"{TINY}: yanked (wrong CTF); no version of it is left to use"

    for words in (
        ("get", TINY),
        ("materialize", TINY),
        ("open", TINY),
        ("train", TINY, "--device", "abacus"),
        ("cite", str(chain.result)),
    ):
        assert told in call(*words)[2], words
    assert json.loads(call("materialize", TINY, "--json")[1])["yanked"] == "wrong CTF"


@pytest.mark.parametrize("content", ["{", "[]", '{"releases": []}', '{"releases": [{}]}'])
def test_list_shows_what_is_damaged_and_goes_on(call: Call, shelf: Path, content: str) -> None:
    shutil.copytree(shelf / "cryoem", shelf / "broken")
    (shelf / "broken" / "releases.json").write_text(content)

    code, out, _ = call("list")
    entries = {each["name"]: each for each in json.loads(call("list", "--json")[1])["packages"]}

    assert code == 0
    assert "damaged" in out
    assert entries["broken"]["note"]
    assert entries["cryoem"]["version"] == "1.0.0"
    assert not entries["cryoem"]["note"]


def test_list_shows_a_package_without_a_usable_version(call: Call, shelf: Path) -> None:
    _yank(shelf, newer=False)

    code, out, _ = call("list")

    assert code == 0
    assert "1.0.0" in out
    assert "every version is yanked:" in out
    assert "wrong CTF" in out


def test_an_error_that_nobody_expected_is_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode() -> None:
        message = "no\nsuch luck"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(browsing, "list_packages", explode)

    code, out, told = call("list")
    assert (code, out) == (1, "")
    assert told.startswith("internal error: ZeroDivisionError: no such luck; report it")
    assert len(told.splitlines()) == 1
    answer = json.loads(call("list", "--json")[1])
    assert answer["error"]["kind"] == "ZeroDivisionError"
    monkeypatch.setenv("SCIBENCH_DATA_TRACEBACK", "1")
    assert "Traceback" in call("list")[2]
    assert "Traceback" not in call("get", "cyroem")[2]


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda: sbd.get("cryoem", scale="7"), "scale: expected a whole number from 1"),  # type: ignore[arg-type]
        (lambda: sbd.get("cryoem", scale=0), "scale: "),
        (lambda: sbd.plan("cryoem", scale=True), "scale: "),
        (lambda: sbd.get("cryoem", to=""), "to: expected a folder"),
        (lambda: sbd.torch("cryoem", batch_size=0), "batch_size: "),
        (lambda: sbd.torch("cryoem", batch_size=-1), "batch_size: "),
        (lambda: sbd.torch("cryoem", seed=-1), "seed: expected a whole number from 0"),
        (lambda: sbd.train("cryoem", seed=2**32), "seed: "),
        (lambda: sbd.train("cryoem", out=""), "out: expected a folder"),
    ],
)
def test_python_refuses_what_cannot_be_meant(use: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        use()


# --- names, locales, signals, pipes ---------------------------------------------------------------


def test_a_file_or_folder_of_its_name_hides_no_package(chain: Chain, tmp_path: Path) -> None:
    place = chain.settings.home.parent
    expected = _run("cite", "cryoem", home=chain.settings.home).stdout
    (place / "cryoem").mkdir()
    assert _run("cite", "cryoem", home=chain.settings.home).stdout == expected
    (place / "cryoem").rmdir()
    (place / "cryoem").write_text("notes")
    assert _run("cite", "cryoem", home=chain.settings.home).stdout == expected
    (place / "cryoem").unlink()
    shutil.copytree(chain.result.parent, place / "cryoem")
    assert "trained on" in _run("cite", "cryoem", home=chain.settings.home).stdout
    renamed = shutil.copy(chain.result, place / "mine")
    assert "trained on" in _run("cite", str(renamed), home=chain.settings.home).stdout


@pytest.mark.parametrize("name", [b"h\xc3\xa9", b"h\xff", b"h\nh"])
def test_a_path_is_printed_as_its_bytes_in_every_locale(chain: Chain, name: bytes) -> None:
    home = chain.settings.home.parent / os.fsdecode(name)
    chain.settings.home.rename(home)
    environment = {
        **os.environ, "SCIBENCH_DATA_HOME": str(home), "PYTHONIOENCODING": "ascii", "LC_ALL": "C",
    }  # fmt: skip
    expected = home / "datasets/cryoem/1.0.0+scale.640/sample"

    for words in (("path", TINY), ("get", TINY, "-q")):
        line = [sys.executable, "-m", "scibench_data", *words]
        plain = subprocess.run(line, env=environment, capture_output=True, check=True)
        told = subprocess.run([*line, "--json"], env=environment, capture_output=True, check=True)

        assert plain.stdout == os.fsencode(expected) + b"\n"
        assert (b"line break" in plain.stderr) is (b"\n" in name)
        assert json.loads(told.stdout)["path"] == str(expected)


def _catches(process: "subprocess.Popen[str]", number: int) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGTERM, 143, "terminated; "), (signal.SIGINT, 130, "interrupted; ")],
)
def test_a_signal_ends_it_with_a_message(
    tmp_path: Path, number: signal.Signals, code: int, told: str
) -> None:
    home = tmp_path / "home"
    with durable.lock(home / "locks" / "cryoem-1.0.0.lock"):
        process = subprocess.Popen(
            [sys.executable, "-m", "scibench_data", "get", "cryoem", "--json"],
            env={**os.environ, "SCIBENCH_DATA_HOME": str(home)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not _catches(process, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert told in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["code"] == code


def test_an_interrupt_within_exec_ends_it_with_the_code_too(tmp_path: Path) -> None:
    lines = (
        "from scibench_data import cli",
        "within = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'",
        "cli.cli.main = lambda **_: exec(within)",
        "cli.main()",
    )
    (tmp_path / "within.py").write_text("\n".join(lines), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "within"], cwd=tmp_path, capture_output=True, check=False
    )

    assert done.returncode == 130
    assert b"interrupted; " in done.stderr


@pytest.mark.parametrize(
    "words", [("list",), ("list", "--json"), ("cite", "cryoem"), ("get", "cyroem", "--json")]
)
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_gone_is_no_reason_to_complain(
    tmp_path: Path, words: tuple[str, ...], both: bool
) -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "scibench_data", *words],
        env={**os.environ, "SCIBENCH_DATA_HOME": str(tmp_path)}, check=False,
        stdout=written, stderr=written if both else subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(written)

    assert done.returncode == 1
    assert not done.stderr
