"""What only a person can say of a data package, as the command line takes it."""

import re
from collections.abc import Sequence
from typing import Any, TypedDict

from scibench_data.errors import UsageError


class About(TypedDict, total=False):
    """What only a person knows of a package."""

    name: str
    title: str
    description: str
    license: str  # an SPDX identifier
    authors: Sequence[str]  # "Given Family" or "Family, Given"
    organizations: Sequence[str]
    keywords: Sequence[str]
    version: str
    subset: str  # the one for all files


def said(about: About) -> dict[str, Any]:
    """Return it as the keys of a descriptor.

    Raises
    ------
    UsageError
        The licence is not known, or an author has no two names.
    """
    keys = {"name", "title", "description", "version"}
    told: dict[str, Any] = {key: value for key, value in about.items() if key in keys and value}
    if about.get("license"):
        told["licenses"] = [_licence(about["license"])]
    people = [_person(name) for name in about.get("authors", ())]
    people += [{"title": name, "roles": ["author"]} for name in about.get("organizations", ())]
    if people:
        told["contributors"] = people
    if about.get("keywords"):
        told["keywords"] = list(about["keywords"])
    return told


def _licence(text: str) -> dict[str, str]:
    name = spdx(text)
    if not name:
        known = "CC0-1.0, CC-BY-4.0, CC-BY-SA-4.0, ODbL-1.0, MIT, Apache-2.0"
        message = (
            f"license: expected an SPDX identifier such as {known}, got {text!r:.80}; see "
            "https://spdx.org/licenses, or take LicenseRef- and a name of your own"
        )
        raise UsageError(message)
    if name.startswith("LicenseRef-"):
        return {"name": name}
    return {"name": name, "path": f"https://spdx.org/licenses/{name}.html"}


def spdx(text: str) -> str:
    """Return the SPDX identifier that `text` means, in its own spelling; empty where none is.

    Examples
    --------
    >>> spdx("cc-by-4.0"), spdx("free")
    ('CC-BY-4.0', '')
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return canonicalize_license_expression(text) if re.fullmatch(r"[\w.-]+", text) else ""
    except InvalidLicenseExpression:
        return ""


def _person(text: str) -> dict[str, Any]:
    family, comma, given = text.partition(",")
    if not comma:
        given, _, family = text.strip().rpartition(" ")
    given, family = given.strip(), family.strip()
    if not (given and family):
        message = (
            f'author: expected "Given Family" or "Family, Given", got {text!r:.80}; '
            "for an organisation take --organization"
        )
        raise UsageError(message)
    return {"givenName": given, "familyName": family, "roles": ["author"]}
