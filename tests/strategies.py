"""Hypothesis strategies for descriptors: sound ones, and sound ones with one thing changed."""

import copy
import functools
import string
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Tree = dict[str, Any]

identifiers = st.from_regex(r"[a-z][a-z0-9_]{0,15}", fullmatch=True)
lines = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=60
)
# Every group that needs care in BibTeX, RIS, YAML or JSON, beside ordinary words.
titles = st.lists(
    st.one_of(
        st.sampled_from(list("\\{}%#$&_^~\"'<>:,;=@-|`*!")),
        st.sampled_from(
            ["Å", "é", "ß", "α", "東京", "🧬", "--", "ER  -", "{{", "\\input{x}", "no"]
        ),
        st.text(string.ascii_letters + string.digits, min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
).map(" ".join)
mirrors = st.builds(
    "https://{}.example.org/{}".format,
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True),
    st.text(string.ascii_letters + string.digits + "-._~", max_size=12),
)
_parts = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,7}z", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def people() -> st.SearchStrategy[Tree]:
    """Give persons and organisations."""
    person = st.fixed_dictionaries({"familyName": lines}, optional={"givenName": lines})
    return person | st.fixed_dictionaries({"title": lines})


def _resource(subset: str, recipe: bool, stem: str) -> st.SearchStrategy[Tree]:
    sources = st.lists(mirrors, min_size=0 if recipe else 1, max_size=2)
    return st.fixed_dictionaries(
        {
            "name": st.just(f"{subset}.{stem}"),
            "path": st.just(f"{subset}/{stem}.bin"),
            "bytes": st.integers(0, 2**53 - 1),
            "hash": st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
            "scibench": st.fixed_dictionaries({"subset": st.just(subset), "sources": sources}),
        },
        optional={"description": lines, "mediatype": st.just("application/octet-stream")},
    )


@st.composite
def descriptors(draw: st.DrawFn) -> Tree:
    """Draw a sound descriptor, as decoded JSON."""
    subsets = draw(st.dictionaries(identifiers, st.booleans(), min_size=1, max_size=3))
    resources = [
        draw(_resource(name, recipe, stem))
        for name, recipe in subsets.items()
        for stem in draw(st.lists(_parts, min_size=1, max_size=3, unique=True))
    ]
    arrays = draw(st.lists(identifiers, min_size=1, max_size=4, unique=True))
    array = {"dtype": "float32", "dims": ["n"], "units": "1"}
    parameters = draw(st.dictionaries(identifiers, st.integers(0, 10**6) | lines, max_size=2))
    return {
        "name": draw(identifiers),
        "title": draw(titles),
        "description": draw(lines),
        "version": "{}.{}.{}".format(*draw(st.tuples(*[st.integers(0, 99)] * 3))),
        "licenses": [{"name": "CC-BY-4.0"}],
        "contributors": draw(st.lists(people(), min_size=1, max_size=3)),
        "sources": draw(st.lists(st.fixed_dictionaries({"title": titles}), max_size=2)),
        "resources": resources,
        "scibench": {
            "profile": 1,
            "uuid": str(draw(st.uuids())),
            "released": draw(st.dates()).isoformat(),
            "subsets": {
                name: {
                    "title": draw(lines),
                    **({"recipe": {"parameters": parameters}} if recipe else {}),
                }
                for name, recipe in subsets.items()
            },
            "arrays": [{"name": name, **array} for name in arrays],
            "splits": {
                "group": arrays[0],
                "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2},
                "seed": draw(st.integers(0, 2**31)),
                "reason": "groups share their noise",
            },
            "task": {
                "description": draw(lines),
                "inputs": arrays[:1],
                "targets": arrays[1:],
                "metric": "score",
                "higher_is_better": draw(st.booleans()),
            },
        },
    }


def places(tree: object) -> list[tuple[str | int, ...]]:
    """List the path of every entry below `tree`."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(tree, dict | list):
        entries = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    return [(key, *rest) for key, entry in entries for rest in [(), *places(entry)]]


def changed(tree: Tree, place: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> Tree:
    """Copy `tree` and apply `change(parent, key)` at `place`."""
    copied = copy.deepcopy(tree)
    parent: Any = copied
    for part in place[:-1]:
        parent = parent[part]
    change(parent, place[-1])
    return copied


def _put(value: object, parent: Any, key: Any) -> None:
    parent[key] = value


@st.composite
def mutants(draw: st.DrawFn) -> Tree:
    """Draw a sound descriptor with some entries replaced or taken away."""
    tree = draw(descriptors())
    for _ in range(draw(st.integers(1, 3))):
        known = places(tree)
        if not known:
            break
        place = draw(st.sampled_from(known))
        if draw(st.booleans()):
            tree = changed(tree, place, lambda parent, key: parent.pop(key))
        else:
            value = draw(json_values)
            tree = changed(tree, place, functools.partial(_put, value))
    return tree
