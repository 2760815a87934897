"""Sound descriptors are read, and hostile ones refused with every problem and its place."""

import copy
import json
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import descriptors, json_values, mutants

from scibench_data.descriptor import DataPackage, parse, read_descriptor
from scibench_data.errors import DescriptorError
from scibench_data.profile import MAX_BYTES, decode, problems

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def sound() -> dict[str, Any]:
    """Give a descriptor in which every key that we know is used."""
    file = {"bytes": 4, "hash": f"sha256:{SHA256}", "mediatype": "text/csv"}
    table = {"type": "table", "schema": {"fields": [{"name": "state", "type": "integer"}]}}
    return {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": "uno",
        "title": "A title",
        "description": "First line.\n\nSecond.",
        "version": "1.2.0-rc.1+scale.9",
        "homepage": "https://example.org/uno",
        "licenses": [{"name": "CC-BY-4.0", "path": "https://example.org/by"}, {"path": "LICENSE"}],
        "contributors": [
            {
                "givenName": "Ada",
                "familyName": "Curie",
                "organization": "A Lab",
                "roles": ["creator"],
            },
            {"title": "A Lab", "path": "https://example.org/lab"},
        ],
        "sources": [
            {
                "title": "A work",
                "path": "https://doi.org/10.1000/x(1)",
                "scibench": {"authors": [{"familyName": "Doe"}], "year": 2020, "journal": "J"},
            }
        ],
        "keywords": ["one", "two"],
        "resources": [
            {
                "name": "a",
                "path": "sample/a.csv",
                "scibench": {"subset": "sample"},
                **file,
                **table,
            },
            {
                "name": "b",
                "path": "full/a.csv",
                "scibench": {"subset": "full", "sources": ["https://data.example.org:8443/b?v=1"]},
                **file,
            },
        ],
        "scibench": {
            "profile": 1,
            "uuid": "2c4b9f5e-7f2d-5a51-9d0e-3a0b6c1d2e3f",
            "released": "2024-02-29",
            "subsets": {
                "full": {"title": "Real", "description": "From afar."},
                "sample": {
                    "title": "Small",
                    "recipe": {"parameters": {"n": 3, "snr": 0.1, "kind": "x"}, "scale": "n"},
                },
            },
            "arrays": [
                {"name": "images", "dtype": "int16", "dims": ["particle", "y", "x"], "units": "1"},
                {"name": "micrograph", "dtype": "int32", "dims": ["particle"], "units": "1"},
            ],
            "splits": {
                "group": "micrograph",
                "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2},
                "seed": 0,
                "reason": "they share ice",
            },
            "task": {
                "description": "Guess.",
                "inputs": ["images"],
                "targets": ["micrograph"],
                "metric": "score",
                "higher_is_better": True,
                "units": "1",
                "target": 0.5,
                "metrics": [{"name": "resolution", "units": "Angstrom", "higher_is_better": False}],
            },
        },
    }


def encode(tree: object) -> bytes:
    return json.dumps(tree).encode()


def put(tree: dict[str, Any], place: str, value: object) -> None:
    """Set the entry at a place written as problems write it; `...` takes it away."""
    parts = [int(n) if n else key for key, n in re.findall(r"([\w$-]+)|\[(\d+)\]", place)]
    parent: Any = tree
    for part in parts[:-1]:
        parent = parent[part]
    if value is ...:
        del parent[parts[-1]]
    else:
        parent[parts[-1]] = value


def ascii_id(value: object) -> str:
    return ascii(value)[:40]


def refusal(text: bytes) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        parse(text, "bad.json")

    assert str(caught.value).startswith("bad.json: ")
    assert str(caught.value).replace("\n  ", "").isprintable()
    return [str(problem) for problem in caught.value.problems]


def test_a_sound_descriptor_is_read_whole() -> None:
    text = encode(sound())

    package = parse(text, "uno")

    assert package.text == text
    assert (package.name, package.version, package.released) == (
        "uno",
        "1.2.0-rc.1+scale.9",
        "2024-02-29",
    )
    assert package.default_subset == "sample"
    assert list(package.subsets) == ["full", "sample"]
    assert [resource.name for resource in package.resources_of("full")] == ["b"]
    assert package.resources[1].sources == ("https://data.example.org:8443/b?v=1",)
    assert package.resources[0].schema == {"fields": [{"name": "state", "type": "integer"}]}
    assert package.resources[0].key == f"SHA256E-s4--{SHA256}.csv"
    recipe = package.subsets["sample"].recipe
    assert recipe is not None
    assert recipe.parameters == {"n": 3, "snr": 0.1, "kind": "x"}
    assert recipe.scale == "n"
    assert package.subsets["full"].recipe is None
    assert package.arrays[0].dims == ("particle", "y", "x")
    assert package.task is not None
    assert package.task.metrics[0].higher_is_better is False
    assert package.sources[0].authors[0].family_name == "Doe"
    assert parse(text, "uno", check=False) == package


def test_what_is_optional_may_be_absent() -> None:
    tree = sound()
    for place in ("splits", "task", "arrays"):
        put(tree, f"scibench.{place}", ...)
    for place in (
        "$schema",
        "sources",
        "keywords",
        "homepage",
        "resources[1]",
        "scibench.subsets.full",
    ):
        put(tree, place, ...)

    package = parse(encode(tree), "uno")

    assert package.splits is None
    assert package.task is None
    assert package.arrays == ()


def test_a_package_survives_pickling() -> None:
    package = parse(encode(sound()), "uno")

    assert pickle.loads(pickle.dumps(package)) == package  # noqa: S301  (our own bytes)


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("s/a.csv", ".csv"),
        ("s/a.nii.gz", ".gz"),
        ("s/a", ""),
        ("s/a.b/c", ""),
        ("s/a.abcdefgh", ".abcdefgh"),
        ("s/a.abcdefghi", ""),
        ("s/a.x-y", ""),
        ("s/a.é", ""),
    ],
)
def test_an_annex_key_keeps_only_a_short_plain_suffix(path: str, suffix: str) -> None:
    tree = sound()
    tree["resources"] = tree["resources"][:1]
    tree["resources"][0]["path"] = path.replace("s/", "sample/")
    del tree["scibench"]["subsets"]["full"]

    assert parse(encode(tree), "uno").resources[0].key == f"SHA256E-s4--{SHA256}{suffix}"


def test_every_dtype_of_the_profile_is_one_of_numpy() -> None:
    profile = json.loads(
        Path(problems.__globals__["__file__"]).with_name("profile.json").read_text()
    )

    for dtype in profile["definitions"]["array"]["properties"]["dtype"]["enum"]:
        assert np.dtype(dtype).name == dtype


# --- one wrong entry: (where it is put, what is put, where the problem is, part of its message)

PATHS = [
    "/etc/passwd", "../x", "sample/../../x", "sample\\..\\x", "..", ".", "", "sample/", "sample//x",
    "file:///etc/passwd", "FILE:///x", "https://example.org/x", "s3://b/x", "sqlite:///x",
    "data:x,y", "stream://x", "multipart:x", "//host/x", "C:/x", "c:x", "sample/a:b", "sample/./x",
    "sample/.hidden",
    "sample/.git/config", ".GIT/x", "sample/git~1/x", "sample/GIT~1", "sample/con",
    "sample/CON.txt",
    "sample/com1.tar.gz", "sample/LPT\xb9", "sample/nul ", "sample/x.", "sample/x /y", "sample/a?b",
    "sample/a\x00b", "sample/a\nb", "sample/a\x1b[2J", "sample/a\u202eb", "sample/.g\u200cit",
    "sample/a\ud800", "sample/" + "x" * 5000, "sample/" + "x" * 256, "~/x",
]  # fmt: skip
URLS = [
    "http://data.example.org/x", "ftp://data.example.org/x", "file:///etc/passwd", "s3://bucket/x",
    "javascript:alert(1)", "https://", "https:///x", "x", "", "https://data.example.org/x y",
    "https://data.example.org/\n", "https://data.example.org\\@evil.example.org/", "https://[::1/x",
    "https://user:pw@data.example.org/x", "https://user@data.example.org/x",
    "https://data.example.org/x?token=hunter2", "https://data.example.org/x?a=1&X-Amz-Signature=hunter2",
    "https://data.example.org/x?api_key=hunter2", "https://data.example.org/x?sig=hunter2",
    "https://data.example.org/x?a=1;password=hunter2", "https://data.example.org/x?%74oken=hunter2",
    "https://data.example.org/x#access_token=hunter2", "https://data.example.org:99999/x",
    "https://data.example.org:0/x", "https://127.0.0.1/x", "https://127.1/x", "https://127.0.0.1./x",
    "https://0177.0.0.1/x", "https://0x7f.0.0.1/x", "https://2130706433/x", "https://0x7f000001/x",
    "https://0/x", "https://localhost/x", "https://localhost./x", "https://LOCALHOST/x",
    "https://x.localhost/x", "https://printer.local/x", "https://x.internal/x", "https://10.0.0.1/x",
    "https://169.254.169.254/latest", "https://[::1]/x", "https://[::ffff:127.0.0.1]/x",
    "https://[64:ff9b::7f00:1]/x", "https://[2002:7f00:1::]/x", "https://8.8.8.8/x",
    "https://１２７.0.0.1/x", "https://%31%32%37.0.0.1/x", "https://127。0。0。1/x", "https://host/x",
    "https://data.example.org/" + "x" * 2048,
]  # fmt: skip
RECIPE = "scibench.subsets.sample.recipe"
EVIL = "https://evil.example.org/x.json"
WRONG = [
    ("name", "Uno", "name", "lower-case letters"),
    ("name", "../x", "name", "lower-case letters"),
    ("name", 3, "name", "got 3"),
    ("title", "a\x1b]52;c;x\x07", "title", "control"),
    ("title", "a\rverified OK", "title", "control"),
    ("title", "a\nb", "title", "control"),
    ("title", "a\u202eb", "title", "direction"),
    ("title", "a\udc80b", "title", "surrogate"),
    ("title", "", "title", "one line"),
    ("description", "a\x1bb", "description", "control"),
    ("version", "1.0", "version", "semver.org"),
    ("version", "v1.0.0", "version", "semver.org"),
    ("version", "01.0.0", "version", "semver.org"),
    ("version", "1.0.0\n", "version", "control"),
    ("version", 1.0, "version", "semver.org"),
    ("licenses", ..., "licenses", "missing"),
    ("licenses", [], "licenses", "at least one licence"),
    ("licenses[0]", {"title": "Free"}, "licenses[0]", "one of name, path"),
    ("licenses[0].path", "http://example.org/by", "licenses[0].path", "not https"),
    ("licenses[0].path", "../../etc/passwd", "licenses[0].path", "'..'"),
    ("licenses[0].path", "https://u:hunter2@example.org", "licenses[0].path", "credentials"),
    ("contributors", ..., "contributors", "missing"),
    ("contributors[0]", {"email": "x@example.org"}, "contributors[0]", "familyName"),
    ("contributors[0].path", "javascript:alert(1)", "contributors[0].path", "not https"),
    ("sources[0].scibench.year", "2020", "sources[0].scibench.year", "four digits"),
    ("sources[0].scibench.authors[0]", {}, "sources[0].scibench.authors[0]", "familyName"),
    ("homepage", "https://127.0.0.1/", "homepage", "public host"),
    ("$schema", EVIL, "$schema", "const"),
    ("profile", EVIL, "profile", "no profile key"),
    ("resources", [], "resources", "minItems"),
    ("resources", {}, "resources", "array"),
    ("resources[0]", "x", "resources[0]", "object"),
    ("resources[0].name", "b", "resources[1].name", "the same as in resources[0]"),
    ("resources[0].name", "a b", "resources[0].name", "letters, digits"),
    ("resources[0].path", ["sample/a", "sample/b"], "resources[0].path", "one file for each"),
    ("resources[0].path", 3, "resources[0].path", "as a string"),
    ("resources[0].path", "other/a", "resources[0].path", "start with 'sample/'"),
    ("resources[0].path", "samples/a", "resources[0].path", "start with 'sample/'"),
    ("resources[0].data", [1], "resources[0].data", "no inline data"),
    ("resources[0].bytes", ..., "resources[0].bytes", "missing"),
    ("resources[0].bytes", -1, "resources[0].bytes", "0 or more"),
    ("resources[0].bytes", 4.0, "resources[0].bytes", "without a point"),
    ("resources[0].bytes", True, "resources[0].bytes", "a size in bytes"),
    ("resources[0].bytes", "4", "resources[0].bytes", "a size in bytes"),
    ("resources[0].bytes", 2**53, "resources[0].bytes", "not a number from"),
    ("resources[0].bytes", 10**400, "resources[0].bytes", "not a number from"),
    ("resources[0].bytes", float("nan"), "resources[0].bytes", "not a number from"),
    ("resources[0].bytes", float("inf"), "resources[0].bytes", "not a number from"),
    ("resources[0].hash", ..., "resources[0].hash", "missing"),
    ("resources[0].hash", SHA256, "resources[0].hash", "'sha256:'"),
    ("resources[0].hash", f"sha256:{SHA256.upper()}", "resources[0].hash", "lower-case hex"),
    ("resources[0].hash", f"sha256:{SHA256[:-1]}", "resources[0].hash", "64"),
    ("resources[0].hash", f"md5:{SHA256[:32]}", "resources[0].hash", "sha256"),
    ("resources[0].type", "file", "resources[0].type", "'table'"),
    ("resources[0].type", ..., "resources[0].type", "missing"),
    ("resources[0].schema", EVIL, "resources[0].schema", "never followed"),
    ("resources[0].schema", "../schema.json", "resources[0].schema", "never followed"),
    ("resources[0].schema", {"fields": []}, "resources[0].schema.fields", "minItems"),
    (
        "resources[0].schema.fields[0].constraints", {"pattern": "(a+)+$"},
        "resources[0].schema.fields[0].constraints.pattern", "busy for ever",
    ),
    ("resources[0].dialect", EVIL, "resources[0].dialect", "never followed"),
    ("resources[0].profile", "x", "resources[0].profile", "no profile key"),
    ("resources[0].compression", "zip", "resources[0].compression", "not unpacked"),
    ("resources[0].innerpath", "../x", "resources[0].innerpath", "not unpacked"),
    ("resources[0].extrapaths", ["x"], "resources[0].extrapaths", "one file"),
    ("resources[0].scibench", ..., "resources[0].scibench", "missing"),
    ("resources[0].scibench.subset", "smaple", "resources[0].scibench.subset", "mean 'sample'?"),
    ("resources[0].scibench.url", "x", "resources[0].scibench.url", "not a known key"),
    ("resources[0].hash", ..., "resources[0].hash", "what a recipe makes has a published SHA-256"),
    ("resources[1].bytes", ..., "resources[1].bytes", "missing"),
    ("resources[1].scibench.sources", [3], "resources[1].scibench.sources[0]", "an https URL"),
    ("scibench", ..., "scibench", "missing"),
    ("scibench.profile", 2, "scibench.profile", "the profile that this scibench-data knows"),
    ("scibench.uuid", "x", "scibench.uuid", "a UUID"),
    ("scibench.released", "2023-02-29", "scibench.released", "calendar"),
    ("scibench.released", "20230228", "scibench.released", "YYYY-MM-DD"),
    ("scibench.taks", {}, "scibench.taks", "did you mean 'task'"),
    ("scibench.subsets", {}, "scibench.subsets", "at least one"),
    ("scibench.subsets.unused", {"title": "x"}, "scibench.subsets.unused", "has no resource"),
    (f"{RECIPE}.parameters.n", [1], f"{RECIPE}.parameters.n", "a number"),
    (f"{RECIPE}.parameters.n", None, f"{RECIPE}.parameters.n", "null"),
    (f"{RECIPE}.parameters.n", True, f"{RECIPE}.parameters.n", "true"),
    (f"{RECIPE}.scale", "m", f"{RECIPE}.scale", "no parameter is named 'm'"),
    (f"{RECIPE}.program", "rm", f"{RECIPE}.program", "not a known key"),
    ("scibench.arrays[0].dtype", "float33", "scibench.arrays[0].dtype", "NumPy"),
    ("scibench.arrays[0].dtype", "O", "scibench.arrays[0].dtype", "NumPy"),
    ("scibench.arrays[0].units", ..., "scibench.arrays[0].units", "missing"),
    ("scibench.arrays[0].name", "micrograph", "scibench.arrays[1].name", "the same as"),
    ("scibench.task.inputs[0]", "image", "scibench.task.inputs[0]", "did you mean 'images'"),
    ("scibench.task.targets[0]", "volumes", "scibench.task.targets[0]", "no array is named"),
    ("scibench.task.metric", "FSC AUC", "scibench.task.metric", "lower-case"),
    ("scibench.task.higher_is_better", "yes", "scibench.task.higher_is_better", "boolean"),
    ("scibench.splits.group", "micrographs", "scibench.splits.group", "did you mean 'micrograph'"),
    ("scibench.splits.fractions.test", 0.3, "scibench.splits.fractions", "sum of 1, got 1.1"),
    ("scibench.splits.fractions.test", -0.2, "scibench.splits.fractions.test", "from 0 to 1"),
    ("scibench.splits.fractions.test", ..., "scibench.splits.fractions.test", "missing"),
    ("scibench.splits.seed", 1.0, "scibench.splits.seed", "without a point"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "expected", "message"), WRONG, ids=ascii_id)
def test_one_wrong_entry_is_named_with_its_place(
    place: str, value: object, expected: str, message: str
) -> None:
    tree = sound()
    put(tree, place, value)

    said = refusal(encode(tree))

    assert any(line.startswith(f"{expected}: ") and message in line for line in said), said


@pytest.mark.parametrize("path", PATHS, ids=ascii_id)
def test_a_path_that_is_unsafe_somewhere_is_refused(path: str) -> None:
    tree = sound()
    tree["resources"][0]["path"] = path

    assert [line for line in refusal(encode(tree)) if line.startswith("resources[0].path: ")]


@pytest.mark.parametrize("url", URLS, ids=ascii_id)
def test_a_url_that_is_not_public_https_is_refused_and_never_repeated(url: str) -> None:
    tree = sound()
    tree["resources"][1]["scibench"]["sources"] = ["https://data.example.org/x", url]

    said = refusal(encode(tree))

    assert len(said) == 1
    assert said[0].startswith("resources[1].scibench.sources[1]: ")
    assert "hunter2" not in said[0]
    assert "pw" not in said[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sample/a.csv", "sample/a.csv"),
        ("sample/a.csv", "sample/A.CSV"),
        ("sample/\u00e9", "sample/e\u0301"),
        ("sample/stra\u00dfe", "sample/STRASSE"),
        ("sample/a", "sample/a/b"),
        ("sample/a/b/c", "sample/A"),
    ],
)
def test_paths_that_meet_on_some_file_system_are_refused(first: str, second: str) -> None:
    tree = sound()
    extra = {**tree["resources"][0], "name": "c", "path": second}
    tree["resources"][0]["path"] = first
    tree["resources"].append(extra)

    said = refusal(encode(tree))

    assert len(said) == 1
    assert re.match(r"resources\[[02]\]\.path: ", said[0])


def test_every_problem_is_listed_at_once_in_order() -> None:
    tree = sound()
    for place, value in {
        "version": "one",
        "licenses": ...,
        "resources[0].bytes": -1,
        "resources[0].path": "../x",
        "resources[1].hash": "md5:0",
        "scibench.task.inputs[0]": "x",
        "title": "\x1b",
    }.items():
        put(tree, place, value)

    said = refusal(encode(tree))

    assert [line.split(": ")[0] for line in said] == [
        "licenses",
        "resources[0].bytes",
        "resources[0].path",
        "resources[1].hash",
        "scibench.task.inputs[0]",
        "title",
        "version",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"name": 1} x', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested deeper"),
        (b'{"name": NaN}', "name: not a number"),
        (b'{"name": 1e400}', "name: not a number"),
        (b'{"name": ' + b"9" * 5000 + b"}", "name: not a number"),
        (b'{"name": "a", "x": {"b": 1, "b": 2}}', "x.b: given more than once"),
        (b"{" + b" " * MAX_BYTES + b"}", "larger than"),
        (b'{"a\\u001b": 1}', "control"),
        (b"!!python/object/apply:os.system [id]", "not JSON"),
    ],
)  # fmt: skip
def test_doubtful_json_is_refused(text: bytes, message: str) -> None:
    assert any(message in line for line in refusal(text))


def test_a_hostile_flood_of_problems_ends_soon() -> None:
    many = encode({"resources": [{}] * 200_000, "scibench": {"subsets": {}}})
    started = time.monotonic()

    said = refusal(many)

    assert len(said) == 1000
    assert time.monotonic() - started < 10


def test_an_error_of_any_size_is_short() -> None:
    tree = sound()
    tree["resources"][0]["hash"] = "x" * 1_000_000
    tree["scibench"]["y" * 1_000_000] = 1
    tree["resources"][0]["scibench"]["subset"] = "z" * 1_000_000

    assert all(len(line) < 400 for line in refusal(encode(tree)))


def test_twenty_thousand_resources_are_checked_in_seconds() -> None:
    tree = sound()
    plain = tree["resources"][1]
    tree["resources"] += [
        {**plain, "name": f"f{index}", "path": f"full/part{index // 100:03d}/f{index}.h5"}
        for index in range(20_000)
    ]
    text = encode(tree)
    started = time.process_time()

    package = parse(text, "many")

    assert len(package.resources) == 20_002
    assert time.process_time() - started < 8  # 3 s on an idle machine


def test_an_unchecked_read_still_refuses_a_shape_it_cannot_hold() -> None:
    tree = sound()
    del tree["resources"][0]["scibench"]
    tree["version"] = "one"

    with pytest.raises(DescriptorError) as caught:
        parse(encode(tree), "uno", check=False)

    places = [str(problem).split(":")[0] for problem in caught.value.problems]
    assert "resources[0].scibench" in places
    assert "version" in places


def test_a_file_is_read_and_its_path_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "datapackage.json"
    path.write_bytes(encode(sound()))
    assert isinstance(read_descriptor(path), DataPackage)

    path.write_bytes(b"{}")
    with pytest.raises(DescriptorError, match=re.escape(str(path))):
        read_descriptor(path)
    with pytest.raises(DescriptorError, match="No such file"):
        read_descriptor(tmp_path / "absent.json")
    with pytest.raises(DescriptorError, match="directory"):
        read_descriptor(tmp_path)


def test_an_unchecked_read_imports_neither_jsonschema_nor_numpy() -> None:
    code = (
        "import sys; from scibench_data.descriptor import parse;"
        "parse(sys.stdin.buffer.read(), 'x', check=False);"
        "print(sorted({'jsonschema', 'numpy', 'dplib', 'frictionless'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], input=encode(sound()), capture_output=True, check=True
    )

    assert done.stdout.strip() == b"[]"


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    tree = sound()
    tree["$schema"] = tree["profile"] = EVIL
    tree["resources"][0]["schema"] = EVIL
    tree["resources"][0]["$schema"] = {"$ref": EVIL}

    assert len(refusal(encode(tree))) == 4


# --- properties


@FEW
@given(descriptors())
def test_every_sound_descriptor_is_read_and_its_bytes_kept(tree: dict[str, Any]) -> None:
    text = encode(tree)

    package = parse(text, "drawn")

    assert package.text == text
    assert [r.path for r in package.resources] == [r["path"] for r in tree["resources"]]
    assert sum(len(package.resources_of(name)) for name in package.subsets) == len(
        package.resources
    )
    assert parse(json.dumps(tree, indent=2).encode(), "drawn").digest != package.digest


@FEW
@given(mutants())
def test_a_mutant_is_read_or_refused_never_more(tree: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    found = problems(tree)

    if found:
        refusal(encode(tree))
    else:
        assert parse(encode(tree), "mutant").name == tree["name"]
    assert repr(tree) == repr(before)


@FEW
@given(json_values)
def test_any_json_at_all_has_problems(value: object) -> None:
    assert problems(decode(encode(value), "any"))
