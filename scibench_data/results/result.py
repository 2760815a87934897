"""The record of one run: everything a number depends on, in one JSON that is written once.

A `Result` can't be constructed without all of it. Each section of the file carries its SHA-256
under ``digests``, so that a change of any byte shows which link was touched. That is evidence
against accidents and careless edits. Who recomputes the digests is caught by
`scibench_data.results.verification` wherever a link can be followed: to data, store, split, code,
checkpoint and scores. What is only stated (how the training went, on what, when) is shown by a
replay.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scibench_data import durable
from scibench_data.errors import UsageError, VerificationError
from scibench_data.provenance import digest

SCHEMA = "scibench-data/result/1"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 16 * 2**20


def _require(subject: str, value: Any) -> None:
    if isinstance(value, str) and not value:
        message = f"{subject}: expected a value, got an empty string; a result names all its links"
        raise ValueError(message)
    if isinstance(value, float) and not math.isfinite(value):
        message = f"{subject}: expected a finite number, got {value}; the run has failed"
        raise ValueError(message)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require(f"{subject}.{key}", inner)


class _Link:
    """Refuses empty texts, numbers that are none, and digests that are no SHA-256."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            subject = f"{type(self).__name__}.{field.name}"
            _require(subject, value)
            if field.name.endswith("sha256") and not _SHA256.fullmatch(value):
                message = f"{subject}: expected 64 hex digits, got {value!r}"
                raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetLink(_Link):
    """The data package version, its commit, and the annex keys of the files that were used."""

    name: str
    version: str
    subset: str
    commit: str
    swhid: str
    descriptor_sha256: str
    keys: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreLink(_Link):
    """The store: its logical digest (values), its manifest's (bytes), and how it was verified.

    ``verified`` is ``hashed`` where every file was hashed for this run, and ``stamps`` where size,
    inode and time of every file were still those of the last hash.
    """

    id: str
    sha256: str
    manifest_sha256: str
    layout: Mapping[str, Any]
    verified: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.verified not in {"hashed", "stamps"}:
            message = f"StoreLink.verified: expected hashed or stamps, got {self.verified!r}"
            raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitLink(_Link):
    """The rule, the digest over all indices, and the size of each part."""

    group: str
    sha256: str
    sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelLink(_Link):
    """The reference model, its source's digest, and the whole resolved configuration."""

    name: str
    source_sha256: str
    config: Mapping[str, Any]
    seed: int
    device: str
    parameters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeLink(_Link):
    """The code: version, commit and dirty flag of its checkout (None in a wheel), digests."""

    version: str
    commit: str | None
    dirty: bool | None
    core_sha256: str
    reader_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment(_Link):
    """Libraries, programs, hardware, and the settings that touch the last bits."""

    libraries: Mapping[str, str]
    programs: Mapping[str, str]
    hardware: Mapping[str, Any]
    torch: Mapping[str, Any]
    arrays: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLink(_Link):
    """When and for how long; times are UTC, ISO 8601. [s]"""

    id: str
    started: str
    finished: str
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores(_Link):
    """What came out, on which split, and how far a repetition may differ.

    Attributes
    ----------
    headline
        The metric of the task.
    tolerance
        Metric -> absolute difference within which a replay counts as the same.
    """

    headline: str
    split: str
    values: Mapping[str, float]
    comparisons: Mapping[str, Mapping[str, float]]
    tolerance: Mapping[str, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.headline not in self.values:
            message = f"Scores.values: expected the headline {self.headline!r} among them"
            raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(_Link):
    """The weights, as a safetensors file beside the result."""

    file: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Every link from a number back to the bytes it came from."""

    run: RunLink
    dataset: DatasetLink
    store: StoreLink
    split: SplitLink
    model: ModelLink
    code: CodeLink
    environment: Environment
    metrics: Scores
    history: tuple[Mapping[str, float], ...]
    checkpoint: Checkpoint

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, with a digest for each section."""
        sections = {
            field.name: json.loads(json.dumps(_plain(getattr(self, field.name)), allow_nan=False))
            for field in dataclasses.fields(self)
        }
        digests = {name: digest(section) for name, section in sections.items()}
        return {"schema": SCHEMA, **sections, "digests": digests}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _is_a(value: Any, kind: Any) -> bool:
    """Tell whether a JSON value has an annotated type, entries included."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is types.UnionType:
        return any(_is_a(value, option) for option in inner)
    if origin is Mapping:
        entry = inner[1] if inner else Any
        return isinstance(value, dict) and all(_is_a(each, entry) for each in value.values())
    if origin is tuple:
        return isinstance(value, list) and all(_is_a(each, inner[0]) for each in value)
    plain: dict[Any, bool] = {Any: True, float: number, int: number and isinstance(value, int)}
    return plain[origin] if origin in plain else isinstance(value, origin)


def _as(kind: type, name: str, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    message = f"{name}: expected a {kind.__name__}, got {type(value).__name__}"
    raise ValueError(message)


def _section(name: str, kind: Any, value: Any) -> Any:
    """Rebuild one section; raises ValueError with what is wrong."""
    if not dataclasses.is_dataclass(kind):
        if not _is_a(value, kind):
            message = f"{name}: of a wrong type"
            raise ValueError(message)
        return tuple(value)
    value = _as(dict, name, value)
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    wrong = sorted(fields.keys() ^ value.keys())
    wrong += [key for key, hint in fields.items() if key in value and not _is_a(value[key], hint)]
    if wrong:
        message = f"{name}: missing, unknown or of a wrong type: {', '.join(wrong)}"
        raise ValueError(message)
    return typing.cast("Any", kind)(**value)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A result file as it was read.

    Attributes
    ----------
    result
        The record.
    touched
        Sections whose content no longer has the SHA-256 that the file states.
    """

    result: Result
    touched: tuple[str, ...]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a key stands twice in one object"
        raise ValueError(message)
    return found


def _load(path: Path) -> dict[str, Any]:
    with durable.open_regular(path) as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        message = f"larger than {_MAX_BYTES} bytes"
        raise ValueError(message)
    content = json.loads(text, object_pairs_hook=_no_duplicates)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        message = f"expected schema {SCHEMA!r}, got {found!r}"
        raise ValueError(message)
    known = {"schema", "digests", *(field.name for field in dataclasses.fields(Result))}
    if unknown := sorted(content.keys() - known):
        message = f"unknown sections {', '.join(unknown)}"
        raise ValueError(message)
    return content


def _section_digests(value: Any, sections: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(value, dict) or value.keys() != sections.keys():
        message = "digests: expected one for each section"
        raise ValueError(message)
    return value


def read_result(path: Path) -> Reading:
    """Read a result file.

    Raises
    ------
    VerificationError
        It is not a result file of a known schema, or lacks a link.
    UsageError
        There is no such file.
    """
    try:
        content = _load(path)
        kinds = typing.get_type_hints(Result)
        sections = {
            field.name: _section(field.name, kinds[field.name], content.get(field.name))
            for field in dataclasses.fields(Result)
        }
        stated = _section_digests(content.get("digests"), sections)
        touched = tuple(name for name in sections if digest(content[name]) != stated[name])
        return Reading(Result(**sections), touched)
    except FileNotFoundError as error:
        message = f"{path}: no such file; name the result.json of a run"
        raise UsageError(message) from error
    except (ValueError, RecursionError, OSError) as error:
        message = f"{path}: not a result that can be verified ({error}); take it from the run again"
        raise VerificationError(message) from error


def write_result(path: Path, result: Result) -> None:
    """Write a result once; an existing file is never overwritten.

    Raises
    ------
    UsageError
        `path` exists.
    """
    text = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        durable.write_whole(path, text.encode() + b"\n")
    except FileExistsError as error:
        message = f"{path}: exists and is never overwritten; choose another --out"
        raise UsageError(message) from error
