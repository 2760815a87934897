"""The lock file of a paper's repository: which versions, stores and bytes its numbers rest on.

::

    schema = "scibench-data/lock-file/1"

    [[dataset]]
    name = "cryoem"
    version = "1.0.0"
    subset = "sample"
    commit = "..."                 of the DataLad dataset, the same on every machine
    swhid = "swh:1:rev:..."        the same as a Software Hash Identifier (ISO/IEC 18670)
    descriptor_sha256 = "..."      of datapackage.json
    store = {values_sha256 = "...", layout = {...}}    where it was written before
    file = [...]                   path, bytes, sha256 of what its publisher gives no checksum of

TOML 1.0 (https://toml.io/en/v1.0.0), written in one way only: equal pins give equal bytes. A lock
file comes from somebody else's repository, so all of it is checked before any of it is used.
"""

import hashlib
import json
import os
import re
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scibench_data import durable
from scibench_data.errors import DescriptorError, NotFoundError, did_you_mean
from scibench_data.foreign import folded, path_fault
from scibench_data.profile import Problem
from scibench_data.sources import source_fault

LOCK_FILE = "scibench.lock"
SCHEMA = "scibench-data/lock-file/1"
_MAX_BYTES = 16 * 2**20
_MAX_PROBLEMS = 1000
_MAX_NUMBER = 2**53 - 1
_HEAD = f"""\
# What this work rests on. Written by "scibench-data lock"; "scibench-data get --locked" gets it.
schema = "{SCHEMA}"
"""

_Found = Iterator[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class StorePin:
    """A store as its digest names it.

    Attributes
    ----------
    values
        The logical digest: the same for every layout.
    layout
        How it was laid out, as `scibench_data.storing.store.Layout` has it.
    """

    values: str
    layout: Mapping[str, int | str]


@dataclass(frozen=True, kw_only=True)
class FilePin:
    """A file of which only this machine's first copy says what its bytes are.

    Attributes
    ----------
    path
        Within the dataset.
    bytes
        [B]
    sources
        Where it came from, if the released descriptor does not list the file; else empty.
    """

    path: str
    bytes: int
    sha256: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One subset of one version, and what it must be."""

    name: str
    version: str
    subset: str
    commit: str
    descriptor: str  # SHA-256
    store: StorePin | None = None
    files: tuple[FilePin, ...] = ()

    def __str__(self) -> str:
        """Write it as a user would."""
        return f"{self.name}@{self.version}:{self.subset}"


@dataclass(frozen=True)
class Lock:
    """The pins of one file, in its order; at most one for each subset of a package."""

    pins: tuple[Pin, ...] = ()

    def find(self, name: str, subset: str) -> Pin | None:
        """Return the pin of a subset."""
        return next((p for p in self.pins if (p.name, p.subset) == (name, subset)), None)

    def with_pins(self, new: Iterable[Pin]) -> "Lock":
        """Return the same with pins added, or put in the place of those of the same subset."""
        pins = {(pin.name, pin.subset): pin for pin in (*self.pins, *new)}
        return Lock(tuple(pins[key] for key in sorted(pins)))

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return "\n".join([_HEAD, *map(_pin_text, self.pins)]).encode()


def locked_version(released: str, files: Iterable[FilePin]) -> str:
    """Name the version that adds the checksums of `files` to a released one.

    Examples
    --------
    >>> locked_version("1.0.0", [FilePin(path="s/a", bytes=0, sha256="0" * 64)])
    '1.0.0+locked.e8ac5a83d614'
    """
    lines = sorted(f"{file.path} {file.bytes} {file.sha256}\n" for file in files)
    return f"{released}+locked.{hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}"


# --- writing --------------------------------------------------------------------------------------


def _value(value: Any) -> str:
    """Write a value: JSON's strings are TOML's, but for DEL, and its numbers too."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _pin_text(pin: Pin) -> str:
    rows: dict[str, Any] = {
        "name": pin.name,
        "version": pin.version,
        "subset": pin.subset,
        "commit": pin.commit,
        "swhid": f"swh:1:rev:{pin.commit}",
        "descriptor_sha256": pin.descriptor,
    }
    if pin.store:
        layout = {key: pin.store.layout[key] for key in sorted(pin.store.layout)}
        rows["store"] = {"values_sha256": pin.store.values, "layout": layout}
    lines = ["[[dataset]]", *(f"{key} = {_value(value)}" for key, value in rows.items())]
    if pin.files:
        lines += ["file = [", *map(_file_line, pin.files), "]"]
    return "".join(f"{line}\n" for line in lines)


def _file_line(file: FilePin) -> str:
    row: dict[str, Any] = {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
    return f"  {_value(row | ({'sources': file.sources} if file.sources else {}))},"


# --- reading --------------------------------------------------------------------------------------


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises
    ------
    NotFoundError
        There is none.
    DescriptorError
        It can't be read, or has problems: all are listed.
    """
    if not os.path.lexists(path):
        message = f"{path}: no such lock file; write one: scibench-data lock NAME[@VERSION]"
        raise NotFoundError(message)
    try:
        with durable.open_regular(path.resolve()) as file:  # a link is fine, a pipe is not
            text = file.read(_MAX_BYTES + 1)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DescriptorError(str(path), [Problem("", f"can't be read: {why}")]) from error
    return parse_lock(text, str(path))


def parse_lock(text: bytes, subject: str) -> Lock:
    """Read a lock file's bytes; `subject` names it in errors.

    Raises
    ------
    DescriptorError
        It has problems: all are listed.
    """
    if len(text) > _MAX_BYTES:
        raise DescriptorError(subject, [Problem("", f"larger than {_MAX_BYTES} bytes")])
    try:
        tree = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DescriptorError(subject, [Problem("", f"not TOML: {error}")]) from error
    first: dict[str, str] = {}
    for place, fault in _problems(tree):
        first.setdefault(place, fault)
    if first:
        problems = [Problem(*each) for each in first.items()]
        raise DescriptorError(subject, problems[:_MAX_PROBLEMS])
    return Lock().with_pins(map(_pin, tree.get("dataset", [])))


def _pin(entry: Mapping[str, Any]) -> Pin:
    store = entry.get("store")
    files = (
        FilePin(**{**row, "sources": tuple(row.get("sources", ()))})
        for row in entry.get("file", ())
    )
    return Pin(
        **{key: entry[key] for key in ("name", "version", "subset", "commit")},
        descriptor=entry["descriptor_sha256"],
        store=StorePin(values=store["values_sha256"], layout=store["layout"]) if store else None,
        files=tuple(sorted(files, key=lambda file: file.path)),
    )


_NAME = ("[a-z0-9][a-z0-9_-]{0,63}", "a name in lower case")
_SHA256 = ("[0-9a-f]{64}", "64 lower-case hexadecimal digits")
_NUMBER = ("whole number", f"a whole number from 0 to {_MAX_NUMBER}")
_ANY = ("", "")
_PIN = {
    "name": _NAME,
    "version": ("[0-9A-Za-z.+-]{1,64}", "a version such as 1.0.0"),
    "subset": _NAME,
    "commit": ("[0-9a-f]{40}", "40 lower-case hexadecimal digits"),
    "swhid": ("swh:1:rev:[0-9a-f]{40}", "swh:1:rev: and the commit"),
    "descriptor_sha256": _SHA256,
}
_MORE = {"store": _ANY, "file": _ANY}
_FILE = {"path": ("(?s:.+)", "a path"), "bytes": _NUMBER, "sha256": _SHA256}
_STORE = {"values_sha256": _SHA256, "layout": _ANY}

_Rules = Mapping[str, tuple[str, str]]


def _table_problems(
    place: str, table: object, needed: _Rules, optional: _Rules | None = None
) -> _Found:
    """Hold a table against the keys that it needs and may have, and what their values match."""
    rules = {**needed, **(optional or {})}
    if not isinstance(table, dict):
        yield place, f"expected a table, got {reprlib.repr(table)}"
        return
    for key in table.keys() - rules.keys():
        shown = key if re.fullmatch(r"[\w-]{1,64}", key, re.ASCII) else reprlib.repr(key)
        yield _below(place, shown), f"not a known key; {did_you_mean(key[:64], rules)}"
    for key, rule in rules.items():
        if key in table:
            if fault := _value_fault(table[key], rule):
                yield _below(place, key), fault
        elif key in needed:
            yield _below(place, key), "missing"


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _value_fault(value: object, rule: tuple[str, str]) -> str | None:
    pattern, wish = rule
    if rule is _ANY:
        return None
    if rule is _NUMBER:
        right = type(value) is int and 0 <= value <= _MAX_NUMBER
    else:
        right = isinstance(value, str) and re.fullmatch(pattern, value) is not None
    return None if right else f"expected {wish}, got {reprlib.repr(value)}"


def _problems(tree: Mapping[str, Any]) -> _Found:
    yield from _table_problems("", tree, {"schema": _ANY}, {"dataset": _ANY})
    if tree.get("schema") != SCHEMA:
        yield "schema", f"expected {SCHEMA!r}, got {reprlib.repr(tree.get('schema'))}"
    entries = tree.get("dataset", [])
    if not isinstance(entries, list):
        yield "dataset", "expected [[dataset]] tables"
        return
    seen: dict[tuple[Any, Any], str] = {}
    for index, entry in enumerate(entries):
        place = f"dataset[{index}]"
        found = [*_table_problems(place, entry, _PIN, _MORE)]
        yield from found or _pin_problems(place, entry)
        if not found and seen.setdefault((entry["name"], entry["subset"]), place) != place:
            first = seen[entry["name"], entry["subset"]]
            yield f"{place}.subset", f"the same as in {first}; keep one"


def _pin_problems(place: str, entry: Mapping[str, Any]) -> _Found:
    """Look into a pin whose keys are right."""
    if entry["swhid"] != f"swh:1:rev:{entry['commit']}":
        yield f"{place}.swhid", "not that of its commit"
    if "store" in entry:
        yield from _store_problems(f"{place}.store", entry["store"])
    files = entry.get("file", [])
    if not isinstance(files, list):
        yield f"{place}.file", "expected a list of tables"
        return
    found = [*_files_problems(f"{place}.file", files, entry["subset"])]
    yield from found
    released, _, how = entry["version"].partition("+")
    if found or not (files or how.startswith("locked.")):
        return
    own = locked_version(released, [_file_pin(row) for row in files])
    if not files or entry["version"] != own:
        wish = own if files else "its files, from which it is made"
        yield f"{place}.version", f"expected {wish}, got {entry['version']!r}"


def _file_pin(row: Mapping[str, Any]) -> FilePin:
    return FilePin(path=row["path"], bytes=row["bytes"], sha256=row["sha256"])


def _store_problems(place: str, store: object) -> _Found:
    yield from _table_problems(place, store, _STORE)
    layout = store.get("layout") if isinstance(store, dict) else None
    if layout is None:
        return
    right = isinstance(layout, dict) and all(
        re.fullmatch("[a-z_]{1,32}", key) and _layout_value(value) for key, value in layout.items()
    )
    if not right:
        yield (
            f"{place}.layout",
            f"expected a table of numbers and words, got {reprlib.repr(layout)}",
        )


def _layout_value(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch("[a-z0-9_-]{1,32}", value) is not None
    return _value_fault(value, _NUMBER) is None


def _files_problems(place: str, files: Sequence[object], subset: str) -> _Found:
    seen: dict[str, int] = {}
    for index, row in enumerate(files):
        where = f"{place}[{index}]"
        found = [*_table_problems(where, row, _FILE, {"sources": _ANY})]
        yield from found
        if found or not isinstance(row, dict):
            continue
        path = row["path"]
        if fault := path_fault(path):
            yield f"{where}.path", fault
        elif not path.startswith(f"{subset}/"):
            yield f"{where}.path", f"expected to start with '{subset}/', the name of its subset"
        elif (first := seen.setdefault(folded(path), index)) != index:
            yield f"{where}.path", f"the same file as in {place}[{first}] where case is ignored"
        if fault := _sources_fault(row.get("sources", [])):
            yield f"{where}.sources", fault


def _sources_fault(sources: object) -> str | None:
    if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
        return "expected a list of URLs"
    faults = (source_fault(each, None) for each in sources)  # hosts are judged when they are asked
    return next((fault for fault in faults if fault), None)
