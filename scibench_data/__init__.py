"""Benchmark data for scientific machine learning, every result traceable to its bytes.

>>> import scibench_data as sbd
>>> data = sbd.get("cryoem")                                    # doctest: +SKIP
>>> arrays = data.open()                                        # doctest: +SKIP
>>> batches = data.torch(split="train", batch_size=64)          # doctest: +SKIP
>>> run = sbd.train("cryoem", seed=0)                           # doctest: +SKIP
>>> sbd.verify(run.path).exit_code                              # doctest: +SKIP
0

The functions have the names and the defaults of the commands. Importing this package imports
neither arrays nor torch nor DataLad.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; `_ORIGINS` says the same to Python
    from scibench_data.api import (
        Dataset,
        cite,
        doctor,
        get,
        materialize,
        open,  # noqa: A004
        path,
        plan,
        remove,
        torch,
        train,
        train_all,
        verify,
    )
    from scibench_data.describing.authoring import init
    from scibench_data.describing.checking import check
    from scibench_data.errors import ScibenchError
    from scibench_data.keeping import cache
    from scibench_data.keeping.browsing import accept, info, list_packages, search, versions
    from scibench_data.results.reporting import report
    from scibench_data.settings import Settings, load_settings
    from scibench_data.sharing.adding import add, forget
    from scibench_data.sharing.adoption import adopt
    from scibench_data.sharing.bundling import bundle
    from scibench_data.sharing.publishing import publish
    from scibench_data.storing.store import Layout
    from scibench_data.versions.comparing import diff
    from scibench_data.versions.locking import lock

_ORIGINS = {
    "Dataset": "api",
    "Layout": "storing.store",
    "ScibenchError": "errors",
    "Settings": "settings",
    "accept": "keeping.browsing",
    "add": "sharing.adding",
    "adopt": "sharing.adoption",
    "bundle": "sharing.bundling",
    "check": "describing.checking",
    "cite": "api",
    "diff": "versions.comparing",
    "doctor": "api",
    "forget": "sharing.adding",
    "get": "api",
    "info": "keeping.browsing",
    "init": "describing.authoring",
    "list_packages": "keeping.browsing",
    "load_settings": "settings",
    "lock": "versions.locking",
    "materialize": "api",
    "open": "api",
    "path": "api",
    "plan": "api",
    "publish": "sharing.publishing",
    "remove": "api",
    "report": "results.reporting",
    "search": "keeping.browsing",
    "torch": "api",
    "train": "api",
    "train_all": "api",
    "verify": "api",
    "versions": "keeping.browsing",
}

_MODULES = {"cache": "keeping.cache"}  # sbd.cache.ls(), as the command has verbs of its own

__all__ = [
    "Dataset",
    "Layout",
    "ScibenchError",
    "Settings",
    "accept",
    "add",
    "adopt",
    "bundle",
    "cache",
    "check",
    "cite",
    "diff",
    "doctor",
    "forget",
    "get",
    "info",
    "init",
    "list_packages",
    "load_settings",
    "lock",
    "materialize",
    "open",
    "path",
    "plan",
    "publish",
    "remove",
    "report",
    "search",
    "torch",
    "train",
    "train_all",
    "verify",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _ORIGINS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{_ORIGINS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
