"""Tables in files: a schema inferred from the first rows, and the rows that break a schema.

frictionless reads them from an open file or from values; it never gets a path or a URL, which it
would follow out of the package.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scibench_data.durable import open_regular

SUFFIXES = {".csv", ".tsv", ".json"}
MAX_ROWS = 1_000_000
"""Most rows of a table that are compared with its schema: some 20 s. [1]"""

_SAMPLE = 1000  # rows that a type is inferred from [1]
_LOOK = 10_000  # rows that must keep to the inferred schema [1]
_MAX_JSON = 16 * 2**20  # JSON can't be read in part [B]
_MAX_TABLE = 4 * 2**30  # [B]
_ENCODINGS = {"utf-8", "ascii", "iso-8859-1", "latin-1", "windows-1252", "cp1252"}
_SCHEMA = {"fields", "fieldsMatch", "missingValues", "primaryKey"}
_CONSTRAINTS = {
    "required", "unique", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "enum",
}  # fmt: skip
_DIALECT = {
    "commentChar", "delimiter", "doubleQuote", "escapeChar", "header", "lineTerminator",
    "nullSequence", "quoteChar", "skipInitialSpace",
}  # fmt: skip


class UncheckedError(Exception):
    """A table that is left alone, however it may be."""


def infer(path: Path) -> tuple[dict[str, Any], str]:
    """Infer what a resource says of its table: `type`, `schema` and, where it needs one, `dialect`.

    Only the first rows are read; every one of them keeps to the schema.

    Returns
    -------
    keys
        For the resource's entry; empty where it is no table that a schema fits.
    reason
        Why not.
    """
    try:
        with _open(path, {}, sample=True) as table:
            table.infer(stats=False)
            schema, dialect = table.schema.to_descriptor(), table.dialect.to_descriptor()
    except Exception as error:  # noqa: BLE001  (what frictionless raises on odd tables has no end)
        return {}, _reason(error)
    if fault := _label_fault([field["name"] for field in schema["fields"]]):
        return {}, fault
    keys: dict[str, Any] = {"type": "table", "schema": {"fields": schema["fields"]}}
    delimiter = dialect.get("csv", {}).get("delimiter", ",")
    if path.suffix.lower() == ".tsv":
        keys["format"] = "tsv"
    elif delimiter == "\t":
        return {}, "its columns are divided by tabs; name it .tsv"
    elif delimiter != ",":
        keys["dialect"] = {"delimiter": delimiter}
    faults, _ = table_faults(path, keys, rows=_LOOK, most=1)
    return ({}, faults[0]) if faults else (keys, "")


def table_faults(
    path: Path, entry: Mapping[str, Any], *, rows: int = MAX_ROWS, most: int = 20
) -> tuple[list[str], str]:
    """Say where a table breaks the schema of its resource.

    Parameters
    ----------
    entry
        The resource, whose shape was judged before.
    rows
        Most rows to read. [1]
    most
        Most faults to tell. [1]

    Returns
    -------
    faults
        In words, each with its row and field.
    unchecked
        What was not looked at; empty where everything was.
    """
    try:
        with _open(path, entry) as table:
            report = table.validate(limit_rows=rows, limit_errors=most)
    except UncheckedError as error:
        return [], str(error)
    except Exception as error:  # noqa: BLE001  (as above; a schema may be odd too)
        return [_reason(error)], ""
    found = [*report.errors, *(error for task in report.tasks for error in task.errors)]
    read = max((task.stats.get("rows") or 0 for task in report.tasks), default=0)
    rest = f"only its first {rows:,} rows were compared with the schema" if read >= rows else ""
    return [_plain(error.message) for error in found[:most]], rest


def _plain(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _reason(error: Exception) -> str:
    told = getattr(error, "error", None)
    return _plain(getattr(told, "note", "") or getattr(told, "message", "") or str(error))


def _label_fault(labels: list[str]) -> str:
    if not labels:
        return "it is empty"
    if not all(label.isprintable() and 0 < len(label) <= 500 for label in labels):
        return "its first row has names that are empty or can't be printed"
    if all(map(_is_number, labels)):
        return "its first row is numbers, not the names of the columns"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _open(path: Path, entry: Mapping[str, Any], *, sample: bool = False) -> Iterator[Any]:
    """Hand out a table as frictionless has it, over a file that is closed afterwards."""
    from frictionless import Detector, Dialect, Schema
    from frictionless.resources import TableResource

    given: dict[str, Any] = {}
    schema = {key: value for key, value in entry.get("schema", {}).items() if key in _SCHEMA}
    if schema:
        fields = [_harmless(each) for each in schema.get("fields", ())]
        given["schema"] = Schema.from_descriptor({**schema, "fields": fields})
    dialect = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
    dialect |= {key: value for key, value in entry.get("dialect", {}).items() if key in _DIALECT}
    if dialect:
        given["dialect"] = Dialect.from_descriptor(dialect)
    if sample:
        given["detector"] = Detector(sample_size=_SAMPLE, field_confidence=1)
    if path.suffix.lower() == ".json":
        yield TableResource(data=_rows(path), **given)
        return
    given["encoding"] = _encoding(path, str(entry.get("encoding", "utf-8")).lower())
    with open_regular(path) as file:
        yield TableResource(data=file, scheme="stream", format="csv", **given)


def _harmless(field: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a field what could keep a check busy for ever, or lead elsewhere."""
    rules = {k: v for k, v in field.get("constraints", {}).items() if k in _CONSTRAINTS}
    return (
        {**field, "constraints": rules}
        if rules
        else {key: value for key, value in field.items() if key != "constraints"}
    )


def _rows(path: Path) -> list[Any]:
    with open_regular(path) as file:
        text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        message = f"not read: JSON of more than {_MAX_JSON} bytes"
        raise UncheckedError(message)
    rows = json.loads(text)
    kind = type(rows[0]) if isinstance(rows, list) and rows else None
    if kind not in {dict, list} or not all(isinstance(row, kind) for row in rows):
        message = "JSON, but not rows of a table"
        raise ValueError(message)
    return list(rows)


def _encoding(path: Path, told: str) -> str:
    """Return the encoding to read a table with, after a look at its head."""
    with open_regular(path) as file:
        head, size = file.read(2**16), path.stat().st_size
    if told not in _ENCODINGS:
        message = f"not read: encoded as {told!r:.40}"
        raise UncheckedError(message)
    if b"\0" in head or (size > len(head) and b"\n" not in head and b"\r" not in head):
        message = "not text in lines"
        raise ValueError(message)
    if size > _MAX_TABLE:
        message = f"not read: a table of more than {_MAX_TABLE} bytes"
        raise UncheckedError(message)
    return "utf-8-sig" if told == "utf-8" and head.startswith(b"\xef\xbb\xbf") else told
