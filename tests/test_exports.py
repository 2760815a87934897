"""The public face: what is exported exists, is documented, and is cheap to import."""

import inspect
import subprocess
import sys

import pytest

import scibench_data as sbd

HEAVY = ("torch", "dask", "zarr", "xarray", "numpy", "datalad", "frictionless", "matplotlib")


def test_all_names_are_there_and_documented() -> None:
    for name in sbd.__all__:
        assert inspect.getdoc(getattr(sbd, name)), name
    assert list(sbd.__all__) == sorted(sbd.__all__)
    assert set(dir(sbd)) == set(sbd.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = sbd.nothing_like_it


def test_help_imports_neither_the_verbs_nor_what_draws() -> None:
    code = (
        "import sys; from scibench_data.cli import cli;"
        "cli.main(['--help'], standalone_mode=False);"
        "slow = {'scibench_data.api', 'rich'} & sys.modules.keys();"
        "print(slow, file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == "set()\n"


@pytest.mark.parametrize(
    "code",
    [
        "import scibench_data",
        "import scibench_data.api",
        "import scibench_data.cli; scibench_data.cli.cli.main(['--help'], standalone_mode=False)",
        "import scibench_data.cli; scibench_data.cli.cli.main(['list'], standalone_mode=False)",
        "from scibench_data.cli import cli; cli.main(['info', 'cryoem'], standalone_mode=False)",
    ],
)
def test_light_things_import_nothing_heavy(code: str) -> None:
    check = (
        f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}"], capture_output=True, text=True, check=False
    )

    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_every_verb_of_the_command_line_has_its_function() -> None:
    from scibench_data.cli import cli

    without_function = {"completion"}
    for verb in set(cli.commands) - without_function:
        name = {"list": "list_packages"}.get(verb, verb)
        assert name in sbd.__all__, verb
