"""What a sound descriptor is: strict JSON, Data Package v2, our profile, and entries that agree.

It names every problem at once, each with its place. It checks the descriptor, never the data, and
opens nothing but the two profiles: a schema, dialect or profile given as a URL is a problem, not
a download. Implements https://datapackage.org/standard/data-package/ and security (paths).
"""

import functools
import importlib.util
import itertools
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scibench_data.errors import DescriptorError, RequirementError, did_you_mean
from scibench_data.foreign import folded, link_fault, path_fault, url_fault
from scibench_data.sources import source_fault

if TYPE_CHECKING:
    import jsonschema

MAX_BYTES = 16 * 2**20
_MAX_DEPTH = 32
_MAX_PROBLEMS = 1000
_MAX_NUMBER = 2**53 - 1  # RFC 8259 section 6: every JSON reader holds integers so far exactly

_T = TypeVar("_T")
_Where = tuple[str | int, ...]
_Found = Iterator[tuple[_Where, str]]
_Rows = list[tuple[_Where, dict[str, Any]]]

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where: ``resources[2].bytes``, or empty for the whole descriptor."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


def problems(tree: object, allowed: Collection[str] | None = ()) -> list[Problem]:
    """List everything that is wrong with a decoded descriptor, at most one problem a place.

    Three sieves: what JSON readers disagree on, what the entries mean together, and the official
    profile with ours on top. Where several object to one place, the first one speaks. A hostile
    file does not get more than a thousand lines.

    Parameters
    ----------
    allowed
        Hosts that may be private and asked by http; None allows every host.

    Examples
    --------
    >>> [problem.place for problem in problems({"name": "Uno"})][:3]
    ['contributors', 'description', 'licenses']
    """
    if _too_deep(tree):
        return [Problem("", f"nested deeper than {_MAX_DEPTH} levels")]
    first: dict[_Where, str] = {}
    meaning = functools.partial(_meaning_problems, allowed=allowed)
    for sieve in (_json_problems, meaning, _profile_problems):
        for where, message in sieve(tree):
            first.setdefault(where, message)
            if len(first) >= _MAX_PROBLEMS:
                break
    in_order = sorted(first, key=lambda where: [(isinstance(part, str), part) for part in where])
    return [Problem(_place(where), first[where]) for where in in_order[:_MAX_PROBLEMS]]


def _too_deep(tree: object) -> bool:
    """Look level by level: everything after this may recurse."""
    level = [tree]
    for _ in range(_MAX_DEPTH):
        nodes = (
            node.values() if isinstance(node, dict) else node
            for node in level
            if isinstance(node, dict | list)
        )
        level = [entry for entries in nodes for entry in entries]
    return any(isinstance(node, dict | list) for node in level)


def _place(where: _Where) -> str:
    place = ""
    for part in where:
        if isinstance(part, int):
            place += f"[{part}]"
        elif re.fullmatch(r"[\w$-]{1,64}", part, re.ASCII):
            place += f".{part}" if place else part
        else:
            place += f"[{_SHORT.repr(part)}]"
    return place


# --- strict JSON


class _Twice(dict[str, Any]):
    """A JSON object in which some keys came more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.names = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    return tree if len(tree) == len(pairs) else _Twice(pairs)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 17 else math.inf


def decode(text: bytes, subject: str) -> Any:
    """Read JSON as RFC 8259 has it; what is doubtful within it is for `problems` to say.

    Raises
    ------
    DescriptorError
        Too large, not UTF-8, or not JSON.
    """
    if len(text) > MAX_BYTES:
        message = f"larger than {MAX_BYTES} bytes; list many files in a table instead"
        raise DescriptorError(subject, [Problem("", message)])
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        problem = Problem(f"byte {error.start}", "not UTF-8")
    except json.JSONDecodeError as error:
        problem = Problem(f"line {error.lineno} column {error.colno}", f"not JSON: {error.msg}")
    except RecursionError:
        problem = Problem("", f"nested deeper than {_MAX_DEPTH} levels")
    raise DescriptorError(subject, [problem])


_PROSE = {"description", "reason", "delimiter"}  # may have line breaks and tabs
_UNSAFE = re.compile(
    r"[^\t\n -~\xa0-\ud7ff\ue000-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_UNSAFE_LINE = re.compile(rf"{_UNSAFE.pattern}|[\t\n]")
_UNSAFE_FAULT = "has control, direction or unpaired surrogate characters; remove them"


def _json_problems(tree: object) -> _Found:
    """Find what JSON readers disagree on, and what deceives the eye."""
    rest: list[tuple[_Where, object]] = [((), tree)]
    while rest:
        where, value = rest.pop()
        if isinstance(value, dict):
            rest += [((*where, key), entry) for key, entry in value.items()]
            yield from _key_problems(where, value)
        elif isinstance(value, list):
            rest += [((*where, index), entry) for index, entry in enumerate(value)]
        elif fault := _scalar_fault(where, value):
            yield where, fault


def _scalar_fault(where: _Where, value: object) -> str | None:
    if isinstance(value, str):
        unsafe = _UNSAFE if where and where[-1] in _PROSE else _UNSAFE_LINE
        return _UNSAFE_FAULT if unsafe.search(value) else None
    if isinstance(value, int | float) and not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        return f"not a number from -{_MAX_NUMBER} to {_MAX_NUMBER}"
    return None


def _key_problems(where: _Where, value: dict[str, Any]) -> _Found:
    if isinstance(value, _Twice):
        yield from (((*where, name), "given more than once; keep one") for name in value.names)
    yield from (((*where, key), _UNSAFE_FAULT) for key in value if _UNSAFE_LINE.search(key))


# --- entries that agree


def _get(tree: object, kind: type[_T], *keys: str) -> _T:
    """Follow `keys`; where the shape is another, give an empty one: the profile speaks of that."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, kind) else kind()


def _rows(tree: object, *keys: str) -> _Rows:
    rows = enumerate(_get(tree, list, *keys))
    return [((*keys, index), row) for index, row in rows if isinstance(row, dict)]


def _meaning_problems(tree: object, allowed: Collection[str] | None) -> _Found:
    resources = _rows(tree, "resources")
    arrays = _rows(tree, "scibench", "arrays")
    for rows in (resources, arrays, _rows(tree, "scibench", "task", "metrics")):
        yield from _repeated(rows, "name")
    yield from _path_problems(resources)
    subsets = _get(tree, dict, "scibench", "subsets")
    yield from _subset_problems(resources, subsets)
    yield from _recipe_problems(subsets)
    yield from _source_problems(resources, subsets, allowed)
    yield from _link_problems(tree)
    yield from _author_problems(tree)
    yield from _array_problems(tree, dict.fromkeys(_get(row, str, "name") for _, row in arrays))
    yield from _number_problems(tree, resources)


def _repeated(rows: _Rows, key: str) -> _Found:
    seen: dict[str, _Where] = {}
    for where, row in rows:
        if (value := _get(row, str, key)) and seen.setdefault(value, where) != where:
            yield (*where, key), f"the same as in {_place(seen[value])}"


def _path_problems(resources: _Rows) -> _Found:
    files: dict[str, _Where] = {}
    for where, row in resources:
        if not isinstance(path := row.get("path"), str):
            continue
        if fault := path_fault(path):
            yield (*where, "path"), f"{fault}; expected a relative POSIX path"
        elif (first := files.setdefault(folded(path), where)) != where:
            yield (*where, "path"), f"the same file as {_place(first)} where case is ignored"
    for path, where in files.items():
        for end in (index for index, letter in enumerate(path) if letter == "/"):
            if path[:end] in files:
                yield (*where, "path"), f"below {_place(files[path[:end]])}, which is a file"


def _subset_problems(resources: _Rows, subsets: dict[str, Any]) -> _Found:
    used = set()
    for where, row in resources:
        if not (name := _get(row, str, "scibench", "subset")):
            continue
        used.add(name)
        path = row.get("path")
        if name not in subsets:
            yield (*where, "scibench", "subset"), _unknown("subset", name, subsets)
        elif isinstance(path, str) and not path.startswith(f"{name}/"):
            yield (*where, "path"), f"expected to start with '{name}/', the name of its subset"
        if _get(subsets, dict, name, "recipe") and "hash" not in row:
            yield (*where, "hash"), "missing; what a recipe makes has a published SHA-256"
    for name in subsets.keys() - used:
        if not (_get(subsets, str, name, "listing") or _get(subsets, str, name, "needs")):
            yield ("scibench", "subsets", name), "has no resource, listing or needs"


def _recipe_problems(subsets: dict[str, Any]) -> _Found:
    for name, subset in subsets.items():
        parameters = _get(subset, dict, "recipe", "parameters")
        if (scale := _get(subset, str, "recipe", "scale")) and scale not in parameters:
            place = ("scibench", "subsets", name, "recipe", "scale")
            yield place, _unknown("parameter", scale, parameters)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    plain = [k for k in itertools.islice(known, 50) if re.fullmatch(r"[\w-]{1,64}", k, re.ASCII)]
    return f"no {kind} is named {_SHORT.repr(name)}; {did_you_mean(name[:64], plain)}"


def _source_problems(
    resources: _Rows, subsets: dict[str, Any], allowed: Collection[str] | None
) -> _Found:
    for where, row in resources:
        sources = _get(row, list, "scibench", "sources")
        for index, url in enumerate(sources):
            if isinstance(url, str) and (fault := source_fault(url, allowed)):
                yield (*where, "scibench", "sources", index), f"{fault}; expected a public one"
        if "hash" not in row and (not sources or _get(row, str, "scibench", "lists")):
            yield (*where, "hash"), "missing; only a file with a source may be without a SHA-256"
    for name in subsets:
        place = ("scibench", "subsets", name)
        listing, terms = _get(subsets, str, name, "listing"), _get(subsets, str, name, "terms")
        if listing and (fault := source_fault(listing, allowed)):
            yield (*place, "listing"), f"{fault}; expected the s3+https URL of a prefix"
        if terms and (fault := url_fault(terms)):
            yield (*place, "terms"), f"{fault}; expected an https URL"


def _link_problems(tree: object) -> _Found:
    links: dict[_Where, str] = {("homepage",): _get(tree, str, "homepage")}
    for where, row in itertools.chain(
        _rows(tree, "licenses"), _people(tree), _rows(tree, "sources")
    ):
        links[*where, "path"] = _get(row, str, "path")
    for place, link in links.items():
        if link and (fault := link_fault(link)):
            yield place, f"{fault}; expected an https URL or a relative POSIX path"


def _people(tree: object) -> _Rows:
    people = _rows(tree, "contributors")
    for where, row in _rows(tree, "sources"):
        people += [((*where, *rest), author) for rest, author in _rows(row, "scibench", "authors")]
    return people


def _author_problems(tree: object) -> _Found:
    for where, row in _people(tree):
        if not (row.get("title") or row.get("familyName")):
            yield where, "needs a familyName, or a title where it is an organisation"


def _array_problems(tree: object, names: dict[str, None]) -> _Found:
    ours = _get(tree, dict, "scibench")
    wanted: list[tuple[_Where, Any]] = [(("splits", "group"), _get(ours, str, "splits", "group"))]
    for key in ("inputs", "targets"):
        entries = enumerate(_get(ours, list, "task", key))
        wanted += [(("task", key, index), name) for index, name in entries]
    for where, name in wanted:
        if name and isinstance(name, str) and name not in names:
            yield ("scibench", *where), _unknown("array", name, names)


def _number_problems(tree: object, resources: _Rows) -> _Found:
    whole = [((*where, "bytes"), row.get("bytes")) for where, row in resources]
    splits = _get(tree, dict, "scibench", "splits")
    whole.append((("scibench", "splits", "seed"), splits.get("seed")))
    for where, value in whole:
        if isinstance(value, float):
            yield where, f"expected an integer without a point, got {value!r}"
    if splits and ("given" in splits) == ("fractions" in splits):
        wish = "fractions and a seed, or given, which names the splits of the group's values"
        yield ("scibench", "splits", "fractions"), f"expected either {wish}"
    shares = _get(splits, dict, "fractions").values()
    if all(isinstance(share, int | float) for share in shares):
        total = math.fsum(shares)
        if shares and not math.isclose(total, 1, abs_tol=1e-9):
            yield ("scibench", "splits", "fractions"), f"expected a sum of 1, got {total:g}"
    try:
        date.fromisoformat(_get(tree, str, "scibench", "released") or "2000-01-01")
    except ValueError:
        yield ("scibench", "released"), "expected a date YYYY-MM-DD of the calendar"


# --- the profiles


@functools.cache
def _validator() -> "jsonschema.protocols.Validator":
    """Compile both profiles; the registry has no way to fetch, so a missing one is an error."""
    import jsonschema
    from referencing import Registry
    from referencing.jsonschema import DRAFT7

    found = importlib.util.find_spec("dplib")
    if found is None or not found.submodule_search_locations:
        message = (
            "dplib: not installed, and it carries the Data Package profile; pip install dplib-py"
        )
        raise RequirementError(message)
    folder = Path(found.submodule_search_locations[0])
    official = json.loads((folder / "profiles/2.0/datapackage.json").read_bytes())
    ours = json.loads(Path(__file__).with_name("profile.json").read_bytes())
    registry = Registry().with_resource(ours["allOf"][0]["$ref"], DRAFT7.create_resource(official))
    return jsonschema.Draft7Validator(ours, registry=registry)


def _profile_problems(tree: Any) -> _Found:
    for error in _validator().iter_errors(tree):
        yield from _said_plainly(error)


def _said_plainly(error: Any) -> _Found:
    """Word an error of jsonschema, whose own message repeats values however long or secret."""
    where, value, rule = tuple(error.absolute_path), error.instance, error.validator_value
    match error.validator:
        case "required":
            yield from (((*where, key), "missing") for key in rule if key not in value)
        case "dependencies":
            needed = {key for name, keys in rule.items() if name in value for key in keys}
            yield from (((*where, key), "missing") for key in needed if key not in value)
        case "additionalProperties":
            known = error.schema["properties"]
            for key in value.keys() - known.keys():
                yield (*where, key), f"not a known key; {did_you_mean(key[:64], known)}"
        case "anyOf" | "oneOf":
            yield from _best_of(error)
        case _:
            place = (*where, value) if "propertyNames" in error.absolute_schema_path else where
            yield place, f"expected {_expected(error)}, got {_shown(value)}"


def _best_of(error: Any) -> _Found:
    """Pick, of several forms that all failed, the one that came nearest."""
    from jsonschema.exceptions import best_match

    best = best_match([error])
    if best is not error:
        yield from _said_plainly(best)
        return
    asked = {
        key
        for each in error.context
        if each.validator == "required"
        for key in each.validator_value
    }
    wish = "one of " + ", ".join(sorted(asked)) if asked else "exactly one of the allowed forms"
    yield tuple(error.absolute_path), f"expected {wish}"


def _expected(error: Any) -> str:
    if error.absolute_schema_path[0] == "allOf":
        return f"{error.validator} {error.validator_value!r} (Data Package v2)"
    wish: str = error.schema.get("description", f"{error.validator} {error.validator_value!r}")
    return wish


def _shown(value: object) -> str:
    if isinstance(value, list | dict):
        return f"{'' if value else 'an empty '}{'list' if isinstance(value, list) else 'object'}"
    return _SHORT.repr(value) if isinstance(value, str) else json.dumps(value)
