"""One flipped byte in any link, and `verify` names that link; a whole chain verifies."""

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
from scibench_data.verification import Report


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

        assert {link.status for link in report.links} == {"holds"}, report
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


def test_a_dataset_with_another_descriptor_fails(chain: Chain, flip: Callable[..., None]) -> None:
    _flip_dataset_descriptor(chain, flip)

    assert "descriptor" in _broken(sbd.verify(TINY, settings=chain.settings))


@pytest.mark.parametrize(
    ("change", "link"),
    [
        (lambda r: r["metrics"]["values"].update(fsc_auc=0.49), "metrics"),
        (lambda r: r["dataset"].update(commit="0" * 40, swhid=f"swh:1:rev:{'0' * 40}"), "commit"),
        (lambda r: r["dataset"].update(descriptor_sha256="0" * 64), "descriptor"),
        (lambda r: r["dataset"]["keys"].popitem(), "files"),
        (lambda r: r["store"].update(sha256="0" * 64), "store digest"),
        (lambda r: r["split"].update(sha256="0" * 64), "split"),
        (lambda r: r["checkpoint"].update(sha256="0" * 64), "checkpoint"),
    ],
)
def test_a_forger_who_seals_again_is_caught_by_the_links(
    chain: Chain, change: Callable[[dict[str, Any]], None], link: str
) -> None:
    _edit(chain.result, change, seal=True)

    assert _broken(sbd.verify(str(chain.result), settings=chain.settings)) == {link}


@pytest.mark.parametrize(
    "section", ["run", "dataset", "store", "split", "model", "code", "metrics", "checkpoint"]
)
def test_every_edited_section_is_noticed(chain: Chain, section: str) -> None:
    _edit(chain.result, lambda r: r["digests"].update({section: "0" * 64}))

    assert sbd.verify(str(chain.result), settings=chain.settings).exit_code == 9


def test_other_code_is_said_and_not_called_verified(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scibench_data.catalog.model_digest", lambda _name: "0" * 64)

    report = sbd.verify(str(chain.result), settings=chain.settings)

    unchecked = {link.name for link in report.links if link.status == "not checked"}
    assert unchecked == {"code", "metrics"}
    assert report.exit_code == 1


def test_what_is_not_here_is_not_checked(chain: Chain) -> None:
    sbd.remove(TINY, settings=chain.settings)
    shutil.rmtree(chain.settings.home / "stores")

    report = sbd.verify(str(chain.result), settings=chain.settings)

    assert report.count("fails") == 0
    assert {"files", "split", "metrics"} <= {x.name for x in report.links if x.status != "holds"}
    assert report.exit_code == 1


def test_a_replay_comes_within_the_tolerance(chain: Chain) -> None:
    report = sbd.verify(str(chain.result.parent), replay=True, settings=chain.settings)

    assert report.links[-1].name == "replay"
    assert report.exit_code == 0, report


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
