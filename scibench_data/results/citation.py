"""How to cite a version of a data package, or a result: BibTeX, APA, RIS, CFF and CSL-JSON.

It words what is known and invents nothing: what has no value is left out. The works that the data
come from follow as entries of their own.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote

from scibench_data.descriptor import Contributor, DataPackage, Source
from scibench_data.errors import UsageError, did_you_mean

PUBLISHER = "scibench-data"  # where no contributor has the role "publisher"


@dataclass(frozen=True, kw_only=True)
class Author:
    """A person by family and given name, or an organisation by `name`."""

    family: str = ""
    given: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.name or ", ".join(filter(None, [self.family, self.given]))


@dataclass(frozen=True, kw_only=True)
class Citation:
    """What a reference says, in no style yet; what is not known is empty."""

    key: str
    kind: Literal["dataset", "result", "article", "work"]
    title: str
    authors: tuple[Author, ...] = ()
    date: str = ""  # ISO 8601: a day, or only a year
    version: str = ""
    publisher: str = ""
    journal: str = ""
    url: str = ""
    doi: str = ""
    commit: str = ""
    note: str = ""
    references: tuple["Citation", ...] = ()  # the works that this one comes from

    @property
    def swhid(self) -> str:
        """The commit as ISO/IEC 18670 names it (SWHID, object type ``rev``)."""
        return f"swh:1:rev:{self.commit}" if self.commit else ""

    @property
    def link(self) -> str:
        """The DOI as a URL, or else the URL."""
        return f"https://doi.org/{quote(self.doi, safe='/:;()')}" if self.doi else self.url

    @property
    def remarks(self) -> str:
        """What styles have no field for, as one line."""
        commit = f"commit {self.commit}" if self.commit else ""
        return "; ".join(filter(None, [self.note, commit, self.swhid]))


def cite(citation: Citation, style: str = "bibtex") -> str:
    r"""Word a citation in ``bibtex``, ``apa``, ``ris``, ``cff`` or ``csl-json``.

    Raises
    ------
    UsageError
        There is no such style.

    Examples
    --------
    >>> work = Citation(key="a", kind="work", title="On {braces} & CTFs", date="2020")
    >>> print(cite(work, "apa"))
    On {braces} & CTFs. (2020).
    >>> print(cite(work))
    @misc{a,
      title = {{On} {\textbraceleft}braces{\textbraceright} \& {CTFs}},
      year = {2020},
    }
    """
    if style not in _STYLES:
        message = f"style {style!r}: not known; {did_you_mean(style, _STYLES)}"
        raise UsageError(message)
    return _STYLES[style](_in_one_line(citation)).rstrip("\n")


def citation_of_package(package: DataPackage, commit: str) -> Citation:
    """Cite one version of a data package; `commit` is that of its DataLad dataset, or empty."""
    people = package.contributors
    publisher = next((each for each in people if "publisher" in each.roles), None)
    doi = _doi(package.homepage)
    return Citation(
        key=_slug(f"{package.name}-{package.version}"),
        kind="dataset",
        title=package.title,
        authors=_authors(people),
        date=package.released,
        version=package.version,
        publisher=_name(publisher) if publisher else PUBLISHER,
        url="" if doi else package.homepage,
        doi=doi,
        commit=commit,
        references=tuple(map(_citation_of_source, package.sources)),
    )


def citation_of_result(result: Mapping[str, Any], package: DataPackage | None = None) -> Citation:
    """Cite a result and the data that it rests on; the record does not say who made it.

    Parameters
    ----------
    result
        The content of a ``result.json``.
    package
        The data package that it names; without it the data are cited by what the result knows.
    """
    data, model, run, metrics, checkpoint = (
        _section(result, name) for name in ("dataset", "model", "run", "metrics", "checkpoint")
    )
    name, version, subset = (str(data.get(key, "")) for key in ("name", "version", "subset"))
    of_data = Citation(
        key=_slug(f"{name}-{version}"),
        kind="dataset",
        title=name,
        version=version,
        publisher=PUBLISHER,
        commit=str(data.get("commit", "")),
    )
    if package is not None:
        of_data = citation_of_package(package, of_data.commit)
    headline = str(metrics.get("headline", ""))
    value = _section(metrics, "values").get(headline)
    score = f", {headline} {value:.4g}" if isinstance(value, int | float) else ""
    finished = re.match(r"\d{4}-\d{2}-\d{2}", str(run.get("finished", "")))
    facts = {"run": run.get("id"), "checkpoint SHA-256": checkpoint.get("sha256")}
    return Citation(
        key=_slug(f"result-{run.get('id', '')}"),
        kind="result",
        title=f"Model {model.get('name', '')} trained on {name}@{version}:{subset}{score}",
        date=finished.group() if finished else "",
        publisher=PUBLISHER,
        note="; ".join(f"{fact} {value}" for fact, value in facts.items() if value),
        references=(dataclasses.replace(of_data, references=()), *of_data.references),
    )


def _section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = record.get(name)
    return section if isinstance(section, Mapping) else {}


def _citation_of_source(source: Source) -> Citation:
    doi = _doi(source.path)
    first = source.authors[0] if source.authors else Contributor()
    word = re.search(r"\w+", source.title)
    year = str(source.year or "")
    return Citation(
        key=_slug(f"{first.family_name or first.title}{year}{word.group() if word else ''}"),
        kind="article" if source.journal else "work",
        title=source.title or source.path,
        authors=_authors(source.authors),
        date=year,
        journal=source.journal,
        doi=doi,
        url=source.path if source.path.startswith("https:") and not doi else "",
    )


def _authors(people: Iterable[Contributor]) -> tuple[Author, ...]:
    """Take creators and authors; where no one is called so, everyone but the publisher."""
    known = [each for each in people if set(each.roles) != {"publisher"}]
    makers = [each for each in known if {"creator", "author"} & set(each.roles)]
    return tuple(
        Author(family=each.family_name, given=each.given_name)
        if each.family_name
        else Author(name=_name(each))
        for each in makers or known
    )


def _name(person: Contributor) -> str:
    return person.title or f"{person.given_name} {person.family_name}".strip()


def _doi(url: str) -> str:
    found = re.fullmatch(r"https?://(?:dx\.)?doi\.org/(10\.\d{4,9}/.+)", url)
    return unquote(found.group(1)) if found else ""


def _slug(text: str) -> str:
    """Make a key of letters that every program takes: ``[a-z0-9-]``, at most 60."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:60].strip("-") or "work"


def _in_one_line(value: Any) -> Any:
    """Make every text one printable line, all the way down."""
    if isinstance(value, str):
        return "".join(letter for letter in " ".join(value.split()) if letter.isprintable())
    if isinstance(value, tuple):
        return tuple(map(_in_one_line, value))
    fields = dataclasses.fields(value)
    return dataclasses.replace(
        value, **{f.name: _in_one_line(getattr(value, f.name)) for f in fields}
    )


def _entries(citation: Citation) -> list[Citation]:
    """List the work and those that it comes from, under keys of their own."""
    keys: dict[str, int] = {}
    entries = []
    for each in (citation, *citation.references):
        keys[each.key] = count = keys.get(each.key, 0) + 1
        key = each.key if count == 1 else f"{each.key}-{count}"
        entries.append(dataclasses.replace(each, key=key))
    return entries


def _kept(**fields: Any) -> dict[str, Any]:
    """Leave out what has no value; ``_`` in a name stands for ``-``."""
    return {name.replace("_", "-"): value for name, value in fields.items() if value}


def _people(
    authors: tuple[Author, ...], name: str, family: str, given: str
) -> list[dict[str, str]]:
    return [
        _kept(**{name: author.name, family: author.family, given: author.given})
        for author in authors
    ]


# --- BibTeX. It counts braces even behind a backslash, so a brace in a text becomes a command.

_LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "%#$&_"}
    | {
        "\\": r"{\textbackslash}",
        "{": r"{\textbraceleft}",
        "}": r"{\textbraceright}",
        "^": r"{\textasciicircum}",
        "~": r"{\textasciitilde}",
        "<": r"{\textless}",
        ">": r"{\textgreater}",
        "|": r"{\textbar}",
    }
)
_MEDIUM = {"dataset": "Data set", "result": "Machine learning result", "article": "", "work": ""}


def _latex_title(title: str) -> str:
    """Escape, and brace each word with a capital: styles put the rest into lower case."""
    words = ((word, word.translate(_LATEX)) for word in title.split(" "))
    return " ".join(
        escaped if word == word.lower() else f"{{{escaped}}}" for word, escaped in words
    )


def _bibtex_name(author: Author) -> str:
    if not author.given:
        return f"{{{(author.name or author.family).translate(_LATEX)}}}"
    parts = [author.family, author.given]
    split = re.compile(r",|(^|\s)and(\s|$)", re.IGNORECASE)  # what separates names in BibTeX
    latex = [(split.search(part), part.translate(_LATEX)) for part in parts]
    return ", ".join(f"{{{part}}}" if splits else part for splits, part in latex)


def _bibtex_entry(citation: Citation) -> str:
    edition = f"version {citation.version}" if citation.version else ""
    how = ", ".join(filter(None, [_MEDIUM[citation.kind], edition]))
    verbatim = "%/:?#[]@!$&'()*+,;=~<>"  # url and doi are read as they are; braces would end them
    fields = _kept(
        author=" and ".join(map(_bibtex_name, citation.authors)),
        title=_latex_title(citation.title),
        year=citation.date[:4],
        journal=citation.journal.translate(_LATEX),
        howpublished=how.translate(_LATEX),
        version=citation.version.translate(_LATEX),
        publisher=citation.publisher.translate(_LATEX),
        doi=quote(citation.doi, safe=verbatim),
        url=quote(citation.url, safe=verbatim),
        swhid=citation.swhid,
        note=citation.remarks.translate(_LATEX),
    )
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{'article' if citation.kind == 'article' else 'misc'}{{{citation.key},\n{lines}}}"


def _bibtex(citation: Citation) -> str:
    return "\n\n".join(map(_bibtex_entry, _entries(citation)))


# --- APA, 7th edition


def _initials(given: str) -> str:
    """Shorten given names.

    Examples
    --------
    >>> _initials("Jean-Paul Émile")
    'J.-P. É.'
    """
    names = (re.findall(r"[^\s.-]+", name) for name in given.replace(".", ". ").split())
    return " ".join("-".join(f"{part[0].upper()}." for part in name) for name in names if name)


def _apa_authors(authors: tuple[Author, ...]) -> str:
    names = [str(dataclasses.replace(author, given=_initials(author.given))) for author in authors]
    if len(names) > 20:
        return f"{', '.join(names[:19])}, . . . {names[-1]}"
    return ", & ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _apa_entry(citation: Citation) -> str:
    edition = f"(Version {citation.version})" if citation.version else ""
    medium = f"[{_MEDIUM[citation.kind]}]" if _MEDIUM[citation.kind] else ""
    title = " ".join(filter(None, [citation.title, edition, medium]))
    who, when = _apa_authors(citation.authors), f"({citation.date[:4] or 'n.d.'})"
    publisher = "" if citation.publisher in map(str, citation.authors) else citation.publisher
    sentences = [*([who, when, title] if who else [title, when]), citation.journal, publisher]
    text = " ".join(part if part[-1] in ".?!" else f"{part}." for part in sentences if part)
    return " ".join(filter(None, [text, citation.link, citation.swhid]))


def _apa(citation: Citation) -> str:
    return "\n\n".join(map(_apa_entry, _entries(citation)))


# --- RIS


def _ris_entry(citation: Citation) -> str:
    kinds = {"dataset": "DATA", "result": "DATA", "article": "JOUR", "work": "GEN"}
    fields = [
        ("TY", kinds[citation.kind]),
        ("ID", citation.key),
        *(("AU", str(author)) for author in citation.authors),
        ("TI", citation.title),
        ("PY", citation.date[:4]),
        ("DA", citation.date.replace("-", "/")),
        ("JO", citation.journal),
        ("ET", citation.version),
        ("PB", citation.publisher),
        ("DO", citation.doi),
        ("UR", citation.link),
        ("N1", citation.remarks),
    ]
    return "".join(f"{tag}  - {value}\n" for tag, value in fields if value) + "ER  - \n"


def _ris(citation: Citation) -> str:
    return "\n".join(map(_ris_entry, _entries(citation)))


# --- Citation File Format 1.2.0, https://doi.org/10.5281/zenodo.5171937


def _cff_work(citation: Citation) -> dict[str, Any]:
    """Fill the keys of a work; the format asks for at least one author."""
    whole = len(citation.date) == 10
    swhid = {"type": "swh", "value": citation.swhid, "description": "the dataset's commit"}
    return _kept(
        title=citation.title,
        authors=_people(citation.authors, "name", "family_names", "given_names")
        or [{"name": "anonymous"}],
        version=citation.version,
        date_released=citation.date if whole else "",
        year=0 if whole or not citation.date else int(citation.date),
        journal=citation.journal,
        doi=citation.doi,
        url=citation.url,
        commit=citation.commit,
        identifiers=[swhid] if citation.swhid else [],
        abstract=citation.note,
    )


def _cff(citation: Citation) -> str:
    import yaml

    kinds = {"article": "article", "work": "generic"}
    content = {
        "cff-version": "1.2.0",
        "message": "If you use this, please cite it and the works that it comes from.",
        "type": "dataset",
        **_cff_work(citation),
        **_kept(
            references=[
                {"type": kinds.get(each.kind, "dataset"), **_cff_work(each)}
                for each in citation.references
            ]
        ),
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return text


# --- CSL-JSON, https://github.com/citation-style-language/schema


def _csl_item(citation: Citation) -> dict[str, Any]:
    kinds = {"article": "article-journal", "work": "document"}
    date = [int(part) for part in citation.date.split("-") if part]
    return _kept(
        id=citation.key,
        type=kinds.get(citation.kind, "dataset"),
        title=citation.title,
        author=_people(citation.authors, "literal", "family", "given"),
        issued={"date-parts": [date]} if date else {},
        version=citation.version,
        container_title=citation.journal,
        publisher=citation.publisher,
        DOI=citation.doi,
        URL=citation.url,
        note=citation.remarks,
    )


def _csl(citation: Citation) -> str:
    items = list(map(_csl_item, _entries(citation)))
    return json.dumps(items, indent=1, ensure_ascii=False)


_STYLES: Mapping[str, Callable[[Citation], str]] = {
    "bibtex": _bibtex,
    "apa": _apa,
    "ris": _ris,
    "cff": _cff,
    "csl-json": _csl,
}
