"""Citations in five styles, each read back by a library that we did not write."""

import dataclasses
import json
import re
import warnings
from typing import Any

import pytest
import yaml
from bibtexparser.entrypoint import parse_string as parse_bibtex
from hypothesis import given, settings
from hypothesis import strategies as st
from pybtex.database import parse_string
from pybtex.richtext import Text
from pylatexenc.latex2text import (
    LatexNodes2Text,
    MacroTextSpec,
    get_default_latex_context_db,
)
from strategies import titles

from scibench_data.descriptor import Contributor, DataPackage, License, Source, Subset
from scibench_data.errors import UsageError
from scibench_data.results.citation import (
    Author,
    Citation,
    citation_of_package,
    citation_of_result,
    cite,
)

COMMIT = "94a9ed024d3859793618152ea559a168bbcbb5e2"
STYLES = ["bibtex", "apa", "ris", "cff", "csl-json"]
FEW = settings(max_examples=50)

PACKAGE = DataPackage(
    name="cryoem",
    title="Particles of {CTF} & 100% of Å-scale $x_1^2$ ~ #1 \\input{x}",
    description="Made.",
    version="1.2.0",
    released="2026-11-03",
    uuid="2c4b9f5e-7f2d-5a51-9d0e-3a0b6c1d2e3f",
    licenses=(License(name="CC0-1.0"),),
    contributors=(
        Contributor(family_name="Müller", given_name="Zoë Jean-Paul", roles=("creator",)),
        Contributor(title="Rand and Co, {Ltd} & Sons", roles=("creator",)),
        Contributor(family_name="Helper", given_name="Ida", roles=("editor",)),
        Contributor(title="A Press", roles=("publisher",)),
    ),
    sources=(
        Source(
            title="CryoDRGN: reconstruction",
            path="https://doi.org/10.1038/s41592-020-01049-4",
            authors=(
                Contributor(family_name="Zhong", given_name="Ellen D."),
                Contributor(family_name="van der Berg", given_name="Jan"),
            ),
            year=2021,
            journal="Nature Methods",
        ),
        Source(title="A web page", path="https://example.org/a_b%20c#d"),
        Source(title="A file", path="docs/notes.txt"),
    ),
    keywords=(),
    homepage="https://example.org/cryoem",
    resources=(),
    subsets={"sample": Subset(name="sample", title="Small")},
    arrays=(),
    splits=None,
    task=None,
    text=b"{}",
)
RESULT: dict[str, Any] = {
    "dataset": {"name": "cryoem", "version": "1.2.0", "subset": "sample", "commit": COMMIT},
    "model": {"name": "cryoem"},
    "run": {"id": "20261103T101112-ab12", "finished": "2026-11-03T10:12:00+00:00"},
    "metrics": {"headline": "fsc_auc", "values": {"fsc_auc": 0.48421}},
    "checkpoint": {"sha256": "a" * 64},
}


def latex_reader() -> LatexNodes2Text:
    """Give a reader of LaTeX, with commands of its kernel that the library lacks."""
    known = get_default_latex_context_db()
    commands = {
        "textbraceleft": "{", "textbraceright": "}", "textasciicircum": "^",
        "textasciitilde": "~", "textless": "<", "textgreater": ">", "textbar": "|",
    }  # fmt: skip
    macros = [MacroTextSpec(name, letter) for name, letter in commands.items()]
    known.add_context_category("kernel", prepend=True, macros=macros)
    return LatexNodes2Text(latex_context=known, strict_latex_spaces=True)


READER = latex_reader()


def plain(latex: str) -> str:
    return str(READER.latex_to_text(latex))


def as_latex_reads(text: str) -> str:
    """Apply the one ligature of TeX that our titles can form; it is typography, not text."""
    return text.replace("--", "–")


def bibtex(text: str) -> list[dict[str, str]]:
    library = parse_bibtex(text)
    assert not library.failed_blocks
    return [
        {"ID": entry.key, "TYPE": entry.entry_type}
        | {field.key: field.value for field in entry.fields}
        for entry in library.entries
    ]


def ris(text: str) -> list[dict[str, list[str]]]:
    """Read RIS as its specification says: a tag of two letters, two spaces, '- ', a value."""
    records: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        if not line:
            continue
        tag, value = re.fullmatch(r"([A-Z][A-Z0-9])  - (.*)", line).groups()  # type: ignore[union-attr]
        if tag == "TY":
            records.append({})
        records[-1].setdefault(tag, []).append(value)
    assert all(next(iter(record)) == "TY" and list(record)[-1] == "ER" for record in records)
    return records


def test_bibtex_says_all_and_is_read_by_two_libraries() -> None:
    text = cite(citation_of_package(PACKAGE, COMMIT))

    entries = bibtex(text)
    second = parse_string(text, "bibtex").entries

    assert [entry["ID"] for entry in entries] == [
        "cryoem-1-2-0", "zhong2021cryodrgn", "a", "a-2",
    ]  # fmt: skip
    data, article, page, file = entries
    assert (data["TYPE"], data["year"], data["version"]) == ("misc", "2026", "1.2.0")
    assert data["publisher"] == "A Press"
    assert data["url"] == "https://example.org/cryoem"
    assert data["swhid"] == f"swh:1:rev:{COMMIT}"
    assert COMMIT in data["note"]
    assert plain(data["title"]) == PACKAGE.title
    assert (article["TYPE"], article["journal"]) == ("article", "Nature Methods")
    assert article["doi"] == "10.1038/s41592-020-01049-4"
    assert page["url"] == "https://example.org/a_b%20c#d"
    assert "url" not in file
    authors = second["cryoem-1-2-0"].persons["author"]
    assert [str(Text.from_latex(name)) for name in authors[0].last_names] == ["Müller"]
    given_names = authors[0].first_names + authors[0].middle_names
    assert [str(Text.from_latex(name)) for name in given_names] == ["Zoë", "Jean-Paul"]
    assert plain(str(authors[1])) == "Rand and Co, {Ltd} & Sons"
    assert len(authors) == 2
    berg = second["zhong2021cryodrgn"].persons["author"][1]
    assert (berg.prelast_names, berg.last_names) == (["van", "der"], ["Berg"])


def test_styles_that_lower_titles_keep_protected_capitals() -> None:
    text = cite(Citation(key="a", kind="work", title="The Fourier shell correlation of CryoDRGN"))

    title = Text.from_latex(parse_string(text, "bibtex").entries["a"].fields["title"])

    assert str(title.lower()) == "The Fourier shell correlation of CryoDRGN"


def test_apa_follows_the_seventh_edition() -> None:
    data, article, page, file = cite(citation_of_package(PACKAGE, COMMIT), "apa").split("\n\n")

    assert data == (
        "Müller, Z. J.-P., & Rand and Co, {Ltd} & Sons. (2026). "
        "Particles of {CTF} & 100% of Å-scale $x_1^2$ ~ #1 \\input{x} (Version 1.2.0) [Data set]. "
        f"A Press. https://example.org/cryoem swh:1:rev:{COMMIT}"
    )
    assert article == (
        "Zhong, E. D., & van der Berg, J. (2021). CryoDRGN: reconstruction. Nature Methods. "
        "https://doi.org/10.1038/s41592-020-01049-4"
    )
    assert page == "A web page. (n.d.). https://example.org/a_b%20c#d"
    assert file == "A file. (n.d.)."


def test_apa_shortens_a_list_of_more_than_twenty_authors() -> None:
    many = tuple(Author(family=f"N{index}", given="A") for index in range(1, 23))

    text = cite(Citation(key="a", kind="work", title="T", authors=many), "apa")

    assert text.startswith("N1, A., N2, A., ")
    assert "N19, A., . . . N22, A. (n.d.)" in text
    assert "N20" not in text


def test_ris_has_one_record_for_each_work() -> None:
    data, article, page, file = ris(cite(citation_of_package(PACKAGE, COMMIT), "ris"))

    assert data["TY"] == ["DATA"]
    assert data["AU"] == ["Müller, Zoë Jean-Paul", "Rand and Co, {Ltd} & Sons"]
    assert (data["TI"], data["PY"], data["DA"]) == ([PACKAGE.title], ["2026"], ["2026/11/03"])
    assert (data["ET"], data["PB"]) == (["1.2.0"], ["A Press"])
    assert COMMIT in data["N1"][0]
    assert (article["TY"], article["JO"]) == (["JOUR"], ["Nature Methods"])
    assert article["DO"] == ["10.1038/s41592-020-01049-4"]
    assert page["UR"] == ["https://example.org/a_b%20c#d"]
    assert file["TI"] == ["A file"]


# Citation File Format 1.2.0, schema-guide.md: keys of the file, and of a reference.
CFF_KEYS = """abstract authors cff-version commit contact date-released doi identifiers keywords
license license-url message preferred-citation references repository repository-artifact
repository-code title type url version""".split()  # noqa: SIM905  (as the guide lists them)
CFF_REFERENCE_KEYS = [*CFF_KEYS, "year", "journal"]


def test_cff_keeps_the_rules_of_its_schema() -> None:
    content = yaml.safe_load(cite(citation_of_package(PACKAGE, COMMIT), "cff"))

    assert content["cff-version"] == "1.2.0"
    assert content["type"] == "dataset"
    assert content.keys() <= set(CFF_KEYS)
    assert content["title"] == PACKAGE.title
    assert content["version"] == "1.2.0"
    assert content["date-released"] == "2026-11-03"
    assert content["authors"] == [
        {"family-names": "Müller", "given-names": "Zoë Jean-Paul"},
        {"name": "Rand and Co, {Ltd} & Sons"},
    ]
    assert content["commit"] == COMMIT
    [swhid] = content["identifiers"]
    assert swhid["type"] == "swh"
    # the pattern of the schema's definition "swh-identifier"
    assert re.fullmatch(r"swh:1:(snp|rel|rev|dir|cnt):[0-9a-fA-F]{40}", swhid["value"])
    for reference in content["references"]:
        assert reference.keys() <= {*CFF_REFERENCE_KEYS}
        assert {"type", "title", "authors"} <= reference.keys()
        assert reference["type"] in {"article", "generic", "dataset"}
    article = content["references"][0]
    assert (article["year"], article["journal"]) == (2021, "Nature Methods")
    assert re.fullmatch(r"10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-\.\(\)\[\]\\]+", article["doi"])


def test_csl_json_is_formatted_by_a_citation_processor() -> None:
    from citeproc import Citation as Cited
    from citeproc import CitationItem, CitationStylesBibliography, CitationStylesStyle, formatter
    from citeproc.source.json import CiteProcJSON

    items = json.loads(cite(citation_of_package(PACKAGE, COMMIT), "csl-json"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about its own style file
        style = CitationStylesStyle("harvard-cite-them-right", validate=False)
        shelf = CitationStylesBibliography(style, CiteProcJSON(items), formatter.plain)
        for item in items:
            shelf.register(Cited([CitationItem(item["id"])]))
        formatted = [str(entry) for entry in shelf.bibliography()]

    assert [item["type"] for item in items] == [
        "dataset", "article-journal", "document", "document",
    ]  # fmt: skip
    assert items[0]["title"] == PACKAGE.title
    assert items[0]["issued"] == {"date-parts": [[2026, 11, 3]]}
    assert items[0]["author"][1] == {"literal": "Rand and Co, {Ltd} & Sons"}
    assert any("Müller" in entry and "(2026)" in entry for entry in formatted)
    assert any("Zhong" in entry and "Nature Methods" in entry for entry in formatted)


@pytest.mark.parametrize("style", STYLES)
def test_a_result_is_cited_with_the_data_that_it_rests_on(style: str) -> None:
    alone = cite(citation_of_result(RESULT), style)
    whole = cite(citation_of_result(RESULT, PACKAGE), style)

    for text in (alone, whole):
        assert "0.4842" in text
        assert COMMIT in text
        assert "2026" in text
    assert ("Zhong" in whole, "Zhong" in alone) == (True, False)
    if style != "apa":
        assert "20261103T101112-ab12" in alone
        assert "a" * 64 in alone


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "result",
    [
        {},
        {"dataset": None, "model": [], "run": "x", "metrics": {"headline": None, "values": 3}},
        {"run": {"finished": "yesterday"}, "metrics": {"headline": "a", "values": {"a": "1"}}},
    ],
)
def test_a_damaged_record_never_ends_in_a_traceback(style: str, result: dict[str, Any]) -> None:
    assert cite(citation_of_result(result), style)


def test_a_version_without_a_commit_claims_no_identifier() -> None:
    for style in STYLES:
        assert "swh" not in cite(citation_of_package(PACKAGE, ""), style)


def test_a_homepage_that_is_a_doi_is_cited_as_one() -> None:
    package = dataclasses.replace(PACKAGE, homepage="https://doi.org/10.5281/zenodo.1%3C2")

    citation = citation_of_package(package, COMMIT)

    assert (citation.doi, citation.url) == ("10.5281/zenodo.1<2", "")
    assert citation.link == "https://doi.org/10.5281/zenodo.1%3C2"


def test_an_unknown_style_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'bibtex'"):
        cite(citation_of_package(PACKAGE, COMMIT), "bibtek")


# --- properties: whatever a title or a name holds, it comes back as it was

nasty = st.builds(
    lambda title, name: Citation(
        key="k",
        kind="dataset",
        title=title,
        authors=(Author(family=name, given=title), Author(name=title)),
        date="2026-11-03",
        version=name,
        publisher=title,
        note=name,
    ),
    titles,
    titles,
)


def flat(text: str) -> str:
    return " ".join(text.split())


@FEW
@given(nasty)
def test_nasty_texts_survive_bibtex(citation: Citation) -> None:
    text = cite(citation)

    [entry] = bibtex(text)
    [second] = parse_string(text, "bibtex").entries.values()

    assert flat(plain(entry["title"])) == flat(as_latex_reads(citation.title))
    assert flat(plain(second.fields["publisher"])) == flat(as_latex_reads(citation.publisher))
    assert len(second.persons["author"]) == 2
    assert text.count("{") == text.count("}")


@FEW
@given(nasty)
def test_nasty_texts_survive_the_other_styles(citation: Citation) -> None:
    [record] = ris(cite(citation, "ris"))
    content = yaml.safe_load(cite(citation, "cff"))
    [item] = json.loads(cite(citation, "csl-json"))

    assert record["TI"] == [flat(citation.title)]
    assert content["title"] == item["title"] == flat(citation.title)
    assert content["authors"][0]["family-names"] == item["author"][0]["family"]
    assert content["version"] == item["version"] == record["ET"][0] == flat(citation.version)


@FEW
@given(st.text(max_size=30), st.sampled_from(STYLES))
def test_any_text_is_one_printable_line(text: str, style: str) -> None:
    citation = Citation(
        key="k",
        kind="work",
        title=f"a{text}",
        authors=(Author(family=text, given=text), Author(name=text)),
        journal=text,
        url=f"https://example.org/{text}",
        doi=f"10.1000/{text}",
    )

    words = cite(citation, style)

    assert all(line.isprintable() for line in words.split("\n"))
    words.encode()
