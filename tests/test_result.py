"""A result has all its links or does not exist; what is written comes back, and only once."""

import dataclasses
import json
from pathlib import Path

import pytest
from chains import Chain

from scibench_data.errors import UsageError, VerificationError
from scibench_data.results.result import Checkpoint, Result, Scores, read_result, write_result


def test_reading_gives_what_was_written(chain: Chain, tmp_path: Path) -> None:
    reading = read_result(chain.result)
    write_result(tmp_path / "again.json", reading.result)

    again = read_result(tmp_path / "again.json")

    assert again.result == reading.result
    assert again.touched == ()
    assert (tmp_path / "again.json").read_bytes() == chain.result.read_bytes()


def test_a_result_is_never_overwritten(chain: Chain) -> None:
    before = chain.result.read_bytes()

    with pytest.raises(UsageError, match="never overwritten"):
        write_result(chain.result, read_result(chain.result).result)

    assert chain.result.read_bytes() == before


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Result)])
def test_no_section_can_be_left_out(chain: Chain, name: str) -> None:
    result = read_result(chain.result).result
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(Result) if f.name != name}

    with pytest.raises(TypeError, match=name):
        Result(**values)

    content = json.loads(chain.result.read_bytes())
    del content[name]
    chain.result.write_text(json.dumps(content))
    with pytest.raises(VerificationError):
        read_result(chain.result)


def test_no_field_of_a_section_can_be_left_out(chain: Chain) -> None:
    content = json.loads(chain.result.read_bytes())
    for section, entry in content.items():
        if section in {"schema", "digests", "history"}:
            continue
        for key in entry:
            cut = {**content, section: {k: v for k, v in entry.items() if k != key}}
            chain.result.write_text(json.dumps(cut))

            with pytest.raises(VerificationError, match=key):
                read_result(chain.result)


def test_empty_and_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        Checkpoint(file="a", bytes=1, sha256="abc")
    with pytest.raises(ValueError, match="empty string"):
        Checkpoint(file="", bytes=1, sha256="0" * 64)
    with pytest.raises(ValueError, match="finite"):
        Scores(headline="a", split="test", values={"a": float("nan")}, comparisons={}, tolerance={})


def test_a_result_names_no_user_host_or_path(chain: Chain) -> None:
    import getpass
    import platform

    text = chain.result.read_text()

    assert str(chain.folder) not in text
    assert str(Path.home()) not in text
    for word in (platform.node(), getpass.getuser()):
        assert f'"{word}"' not in text


def test_everything_that_design_asks_for_is_in_it(chain: Chain) -> None:
    result = json.loads(chain.result.read_bytes())

    assert result["dataset"]["name"] == "cryoem"
    assert len(result["dataset"]["commit"]) == 40
    assert all(key.startswith("SHA256E-s") for key in result["dataset"]["keys"].values())
    assert {"numpy", "torch", "zarr", "dask", "python"} <= result["environment"]["libraries"].keys()
    assert {"git", "git-annex"} == result["environment"]["programs"].keys()
    assert result["model"]["config"]["epochs"] == 2
    assert result["environment"]["hardware"]["cores"] >= 1
    assert result["store"]["verified"] in {"hashed", "stamps"}
    assert len(result["history"]) == 2
    assert any("consensus" in name for name in result["metrics"]["comparisons"])
