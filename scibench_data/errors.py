"""Every error that scibench-data raises on purpose, and what the user does next.

::

    ScibenchError                 1  something failed; the message says what to do
    ├── UsageError                2  the call itself is wrong (also a ValueError)
    ├── NotFoundError             3  no such package, version or subset (also a LookupError)
    ├── IntegrityError            4  bytes differ from what was promised: stop
    ├── NetworkError              5  no network, or offline was asked for
    ├── SpaceError                6  not enough disk space or inodes, or a read-only cache
    ├── LicenceError              7  terms to accept or credentials to give
    ├── LockedError               8  another process holds the lock
    ├── VerificationError         9  a result, store or dataset does not verify
    ├── DescriptorError           1  a descriptor is wrong: edit it; carries ``.problems``
    └── RequirementError          1  a program or an optional package is missing: install it

The number is the exit code of the command line.
Messages have one form: ``<subject>: <got and expected>; <what to do>``.
"""

import difflib
from collections.abc import Iterable, Sequence


class ScibenchError(Exception):
    """Base of every error below: catch this to catch them all."""

    exit_code = 1


class UsageError(ScibenchError, ValueError):
    """An argument has a value that can't be meant."""

    exit_code = 2


class NotFoundError(ScibenchError, LookupError):
    """A package, version, subset or model of that name is not known."""

    exit_code = 3


class IntegrityError(ScibenchError):
    """Bytes are there, but they are not the promised ones."""

    exit_code = 4


class NetworkError(ScibenchError):
    """Bytes can't be reached: no network, a dead source, or offline was asked for."""

    exit_code = 5


class SpaceError(ScibenchError):
    """The disk is full, has no inodes left, or may not be written."""

    exit_code = 6


class LicenceError(ScibenchError):
    """The source wants terms accepted or credentials."""

    exit_code = 7


class LockedError(ScibenchError):
    """Another process works on the same thing and did not finish in time."""

    exit_code = 8


class VerificationError(ScibenchError):
    """A result, store or dataset no longer follows from what it names."""

    exit_code = 9


class DescriptorError(ScibenchError):
    """A descriptor breaks the rules; every problem is listed at once.

    Attributes
    ----------
    problems
        What is wrong, one entry for each place.
    """

    def __init__(self, subject: str, problems: Sequence[object]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        plural = "problem" if count == 1 else "problems"
        super().__init__(f"{subject}: {count} {plural}; edit the descriptor{lines}")


class RequirementError(ScibenchError):
    """A program or an optional Python package is missing."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Offer the nearest spellings, or else everything that is known.

    Examples
    --------
    >>> did_you_mean("cyroem", ["cryoem", "uno"])
    "did you mean 'cryoem'?"
    >>> did_you_mean("x", ["cryoem", "uno"])
    'known: cryoem, uno'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + (", ".join(names) or "none")
