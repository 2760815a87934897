"""One flipped byte in any link, and `verify` names that link; a whole chain verifies."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chains import TINY, Chain

import scibench_data as sbd
from scibench_data.errors import NotFoundError, UsageError, VerificationError
from scibench_data.provenance import digest
from scibench_data.results import training
from scibench_data.results.verification import Report
from scibench_data.sampling import split_digest


@pytest.fixture(autouse=True)
def _compare_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score the baselines once for all tests: they follow from the store's values alone."""
    real = training.compare

    def once(module: Any, config: Any, data: Any) -> Any:
        key = split_digest(data.splits)
        if key not in _COMPARED:
            _COMPARED[key] = real(module, config, data)
        return _COMPARED[key]

    monkeypatch.setattr(training, "compare", once)


_COMPARED: dict[str, Any] = {}


def _broken(report: Report) -> set[str]:
    return {link.name for link in report.links if link.status == "fails"}


def _edit(path: Path, change: Callable[[dict[str, Any]], None], *, seal: bool = False) -> None:
    """Edit a result as a forger would; with `seal` also recompute its digests."""
    content = json.loads(path.read_bytes())
    change(content)
    if seal:
        content["digests"] = {name: digest(content[name]) for name in content["digests"]}
    path.write_text(json.dumps(content, indent=1))


def test_a_whole_chain_verifies(chain: Chain) -> None:
    for target in (str(chain.result), TINY, str(chain.store), str(chain.dataset)):
        report = sbd.verify(target, settings=chain.settings)

        others = {link.name: link.status for link in report.links if link.status != "holds"}
        assert others == ({"training": "stated"} if report.kind == "result" else {}), report
        assert report.exit_code == 0


def _flip_object(chain: Chain, flip: Callable[..., None]) -> None:
    flip(chain.object("sample/stack_001.mrcs"), 5000)


def _flip_descriptor(chain: Chain, flip: Callable[..., None]) -> None:
    flip(chain.settings.home / "packages/cryoem/1.0.0+scale.640/datapackage.json", 40)


def _flip_dataset_descriptor(chain: Chain, flip: Callable[..., None]) -> None:
    flip(chain.dataset / "datapackage.json", 40)


def _flip_chunk(chain: Chain, flip: Callable[..., None]) -> None:
    files = (chain.store / "data.zarr" / "images").rglob("*")
    flip(max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size), 999)


def _flip_manifest(chain: Chain, flip: Callable[..., None]) -> None:
    manifest = chain.store / "manifest.json"
    text = manifest.read_bytes()
    flip(manifest, text.index(b'"sha256":"') + 12)


def _flip_split(chain: Chain, flip: Callable[..., None]) -> None:
    text = chain.result.read_bytes()
    where = text.index(b'"sha256": "', text.index(b'"split": {'))
    flip(chain.result, where + 12)


def _flip_checkpoint(chain: Chain, flip: Callable[..., None]) -> None:
    flip(chain.result.parent / "checkpoint.safetensors", -1)


def _flip_metric(chain: Chain, flip: Callable[..., None]) -> None:
    text = chain.result.read_bytes()
    where = text.index(b'"fsc_auc": 0.', text.index(b'"metrics": {'))
    flip(chain.result, where + len(b'"fsc_auc": 0.') + 3)


@pytest.mark.parametrize(
    ("damage", "link"),
    [
        (_flip_object, "files"),
        (_flip_descriptor, "descriptor"),
        (_flip_chunk, "store files"),
        (_flip_manifest, "store manifest"),
        (_flip_split, "split"),
        (_flip_checkpoint, "checkpoint"),
        (_flip_metric, "metrics"),
    ],
)
def test_one_flipped_byte_is_named(
    chain: Chain,
    flip: Callable[..., None],
    damage: Callable[[Chain, Callable[..., None]], None],
    link: str,
) -> None:
    damage(chain, flip)

    report = sbd.verify(str(chain.result), settings=chain.settings)

    assert link in _broken(report), report
    assert report.exit_code == 9


def test_a_derived_version_must_follow_from_the_released_one(chain: Chain) -> None:
    """Whoever derives may choose the number of samples, and nothing else."""
    path = chain.settings.home / "packages/cryoem/1.0.0+scale.640/datapackage.json"
    content = json.loads(path.read_bytes())
    content["scibench"]["splits"]["fractions"] = {"train": 0.5, "validation": 0.25, "test": 0.25}
    path.write_text(json.dumps(content, indent=2) + "\n")
    changed = hashlib.sha256(path.read_bytes()).hexdigest()
    _edit(chain.result, lambda r: r["dataset"].update(descriptor_sha256=changed), seal=True)

    report = sbd.verify(str(chain.result), settings=chain.settings)

    (link,) = (each for each in report.links if each.name == "descriptor")
    assert link.status == "fails"
    assert "in more than its samples" in link.detail


def test_a_dataset_with_another_descriptor_fails(chain: Chain, flip: Callable[..., None]) -> None:
    _flip_dataset_descriptor(chain, flip)

    assert "descriptor" in _broken(sbd.verify(TINY, settings=chain.settings))


@pytest.mark.parametrize(
    ("change", "link"),
    [
        (lambda r: r["metrics"]["values"].update(fsc_auc=0.49), "metrics"),
        (lambda r: r["metrics"]["values"].pop("resolution"), "metrics"),
        (lambda r: r["metrics"].update(headline="resolution"), "metrics"),
        (lambda r: r["metrics"].update(split="train"), "metrics"),
        (lambda r: r["metrics"]["tolerance"].update(fsc_auc=1e9), "metrics"),
        (lambda r: r["model"].update(parameters=1), "metrics"),
        (lambda r: r["metrics"]["comparisons"]["baseline: consensus"].update(fsc_auc=0.01),
         "comparisons"),
        (lambda r: r["metrics"].update(comparisons={}), "comparisons"),
        (lambda r: r["model"]["config"].update(epochs=1000), "training"),
        (lambda r: r["history"].pop(), "training"),
        (lambda r: r["model"].update(name="other"), "code"),
        (lambda r: r["dataset"].update(commit="0" * 40, swhid=f"swh:1:rev:{'0' * 40}"), "commit"),
        (lambda r: r["dataset"].update(descriptor_sha256="0" * 64), "descriptor"),
        (lambda r: r["dataset"]["keys"].popitem(), "files"),
        (lambda r: r["store"].update(sha256="0" * 64), "store digest"),
        (lambda r: r["store"].update(id=r["store"]["id"][:12] + "0" * 52), "store digest"),
        (lambda r: r["store"]["layout"].update(codec="zstd"), "store digest"),
        (lambda r: r["code"].update(reader_sha256="0" * 64), "store digest"),
        (lambda r: r["split"].update(sha256="0" * 64), "split"),
        (lambda r: r["checkpoint"].update(sha256="0" * 64), "checkpoint"),
    ],
)  # fmt: skip
def test_a_forger_who_seals_again_is_caught_by_the_links(
    chain: Chain, change: Callable[[dict[str, Any]], None], link: str
) -> None:
    _edit(chain.result, change, seal=True)

    assert link in _broken(sbd.verify(str(chain.result), settings=chain.settings))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["metrics"]["values"].update(fsc_auc="0.43"),
        lambda r: r["metrics"]["values"].update(fsc_auc=None),
        lambda r: r["metrics"]["values"].update(fsc_auc=float("nan")),
        lambda r: r["metrics"].update(headline="glory"),
        lambda r: r["store"].update(verified="blessed"),
        lambda r: r["run"]["seconds"].update(training="fast"),
        lambda r: r.update(history=[[1]]),
        lambda r: r.update(evil=1),
        lambda r: r["dataset"].update(keys=["a"]),
    ],
)
def test_impossible_values_are_refused(
    chain: Chain, change: Callable[[dict[str, Any]], None]
) -> None:
    _edit(chain.result, change)

    with pytest.raises(VerificationError):
        sbd.verify(str(chain.result), settings=chain.settings)


def test_an_edit_of_the_work_tree_is_noticed(chain: Chain) -> None:
    """The reader follows the links of the work tree: a file in their place is not the data."""
    path = chain.dataset / "sample" / "truth" / "states.csv"
    content = path.read_text()
    path.unlink()
    path.write_text(content.replace(",1", ",0"))
    (chain.dataset / "sample" / "extra.star").write_text("data_")

    report = sbd.verify(TINY, settings=chain.settings)

    (files,) = (link for link in report.links if link.name == "files")
    assert files.status == "fails"
    assert "states.csv" in files.detail
    assert "extra.star" in files.detail


def test_a_forged_store_is_not_the_files(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is sound in itself, but holds other values than the files."""
    from scibench_data.results import run

    real = run.read_raw
    shutil.rmtree(chain.settings.home / "stores")
    monkeypatch.setattr(
        run, "read_raw", lambda data: real(data).assign(volumes=real(data).volumes * 2)
    )
    forged = sbd.materialize(TINY, settings=chain.settings)
    monkeypatch.setattr(run, "read_raw", real)
    _edit(
        chain.result,
        lambda r: r["store"].update(sha256=forged.digest, manifest_sha256=forged.manifest_digest),
        seal=True,
    )

    broken = _broken(sbd.verify(str(chain.result), settings=chain.settings))

    assert "store from files" in broken


@pytest.mark.parametrize(
    "section",
    ["run", "dataset", "store", "split", "model", "code", "metrics", "checkpoint", "history",
     "environment"],
)  # fmt: skip
def test_every_edited_section_is_noticed(chain: Chain, section: str) -> None:
    _edit(chain.result, lambda r: r["digests"].update({section: "0" * 64}))

    assert sbd.verify(str(chain.result), settings=chain.settings).exit_code == 9


def test_other_code_is_said_and_not_called_verified(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.catalog.model_digest", lambda _name: "0" * 64)

    report = sbd.verify(str(chain.result), settings=chain.settings)

    unchecked = {link.name for link in report.links if link.status == "not checked"}
    assert unchecked == {"code", "metrics", "comparisons"}
    assert report.exit_code == 1


def test_a_checkpoint_that_is_not_there_is_not_checked(chain: Chain) -> None:
    (chain.result.parent / "checkpoint.safetensors").unlink()

    report = sbd.verify(str(chain.result), settings=chain.settings)

    unchecked = {link.name for link in report.links if link.status == "not checked"}
    assert unchecked == {"checkpoint", "metrics", "comparisons"}


def test_a_failing_result_is_not_trained_again(chain: Chain, flip: Callable[..., None]) -> None:
    _flip_checkpoint(chain, flip)

    report = sbd.verify(str(chain.result), replay=True, settings=chain.settings)

    assert report.links[-1].detail.startswith("not trained again")


def test_what_is_not_here_is_not_checked(chain: Chain) -> None:
    sbd.remove(TINY, settings=chain.settings)
    shutil.rmtree(chain.settings.home / "stores")

    report = sbd.verify(str(chain.result), settings=chain.settings)

    assert report.count("fails") == 0
    unchecked = {link.name for link in report.links if link.status == "not checked"}
    assert {"files", "store files", "store from files", "split", "metrics"} <= unchecked
    assert report.exit_code == 1


def test_a_replay_comes_within_the_tolerance(chain: Chain) -> None:
    report = sbd.verify(str(chain.result.parent), replay=True, settings=chain.settings)

    assert [(x.name, x.status) for x in report.links][-1] == ("training", "holds"), report
    assert report.exit_code == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema": "scibench-data/result/1"}',
        '{"schema": "scibench-data/result/99"}',
        '{"schema": "scibench-data/result/1", "schema": "scibench-data/result/1"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_result_is_refused(chain: Chain, text: str) -> None:
    chain.result.write_text(text)

    with pytest.raises(VerificationError):
        sbd.verify(str(chain.result), settings=chain.settings)


def test_targets_that_are_nothing_are_told(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither"):
        sbd.verify(str(tmp_path), settings=chain.settings)
    with pytest.raises(UsageError, match="no such file"):
        sbd.verify(str(tmp_path / "result.json"), settings=chain.settings)
    with pytest.raises(NotFoundError, match="scibench-data get"):
        sbd.verify("cryoem@1.0.0", settings=chain.settings)
    with pytest.raises(UsageError, match="can't be replayed"):
        sbd.verify(TINY, replay=True, settings=chain.settings)
