"""The program that makes the files of samples: ``git-annex-compute-scibench-data``.

git-annex starts it in an empty folder and talks to it over standard input and output; the protocol
is git-annex's "compute special remote interface". Arguments: the package, the file within the
subset, the file within the dataset, then the recipe's parameters as ``name=value``. Only recipes of
installed packages run; what is written is checked by git-annex against the published SHA-256.

scibench-data itself makes many files with one start: with the one argument `SERVE` it makes what
each line of standard input asks for, and answers with a line.
"""

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scibench_data import durable
from scibench_data.catalog import load_recipe
from scibench_data.errors import ScibenchError, UsageError

PROGRAM = "git-annex-compute-scibench-data"
SERVE = "serve"

Parameters = dict[str, int | float | str]


def arguments(name: str, path: str, output: str, parameters: Parameters) -> list[str]:
    """Return the arguments that make the file `output` of a dataset."""
    settings = [f"{key}={value!r}" for key, value in sorted(parameters.items())]
    return [name, path, output, *settings]


def parse_arguments(words: Sequence[str]) -> tuple[str, str, str, Parameters]:
    """Read back what `arguments` wrote.

    Examples
    --------
    >>> parse_arguments(arguments("cryoem", "a.star", "sample/a.star", {"seed": 1}))
    ('cryoem', 'a.star', 'sample/a.star', {'seed': 1})
    """
    try:
        name, path, output, *settings = words
        parameters = {
            key: ast.literal_eval(value)
            for key, value in (setting.split("=", 1) for setting in settings)
        }
    except (ValueError, SyntaxError) as error:
        message = (
            f"{PROGRAM}: expected PACKAGE PATH OUTPUT [name=value ...], got {list(words)!r}; "
            "it is started by git-annex, not by hand"
        )
        raise UsageError(message) from error
    return name, path, output, parameters


def request(name: str, path: str, output: Path, parameters: Mapping[str, int | float | str]) -> str:
    """Return the line that asks for a file of the package `name`, to be written to `output`."""
    return json.dumps([name, path, str(output), dict(parameters)])


def read_answer(line: str) -> tuple[str, str]:
    """Return the path of the file that was asked for, and why it was not made, or nothing."""
    path, why = json.loads(line)
    return path, why


def _answer(line: str) -> str:
    """Make the file that a `request` asks for, whatever a recipe does, and say how it went."""
    name, path, output, parameters = json.loads(line)
    try:
        load_recipe(name).simulate(path, Path(output), **parameters)
    except ScibenchError as error:
        return json.dumps([path, str(error)])
    except Exception as error:  # noqa: BLE001  (a recipe's; the next line is another file)
        return json.dumps([path, f"{type(error).__name__}: {error}"])
    return json.dumps([path, ""])


def main() -> None:
    """Make one file as git-annex asks for it, or many as scibench-data does."""
    if sys.argv[1:] == [SERVE]:
        for line in sys.stdin:
            print(_answer(line), flush=True)  # noqa: T201
        return
    try:
        name, path, output, parameters = parse_arguments(sys.argv[1:])
        simulate = load_recipe(name).simulate
        print("REPRODUCIBLE", flush=True)  # noqa: T201  (the protocol's line)
        print(f"OUTPUT {output}", flush=True)  # noqa: T201
        destination = sys.stdin.readline().rstrip("\n")
        if not destination:
            sys.exit(1)  # git-annex refused the name
        with durable.disk_errors(Path(destination)):
            Path(destination).parent.mkdir(parents=True, exist_ok=True)
            simulate(path, Path(destination), **parameters)
    except ScibenchError as error:
        sys.exit(str(error))
