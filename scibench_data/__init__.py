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
        info,
        list_packages,
        materialize,
        open,  # noqa: A004
        path,
        plan,
        remove,
        torch,
        train,
        verify,
        versions,
    )
    from scibench_data.errors import ScibenchError
    from scibench_data.settings import Settings, load_settings
    from scibench_data.store import Layout

_ORIGINS = {
    "Dataset": "api",
    "Layout": "store",
    "ScibenchError": "errors",
    "Settings": "settings",
    "cite": "api",
    "doctor": "api",
    "get": "api",
    "info": "api",
    "list_packages": "api",
    "load_settings": "settings",
    "materialize": "api",
    "open": "api",
    "path": "api",
    "plan": "api",
    "remove": "api",
    "torch": "api",
    "train": "api",
    "verify": "api",
    "versions": "api",
}

__all__ = [
    "Dataset",
    "Layout",
    "ScibenchError",
    "Settings",
    "cite",
    "doctor",
    "get",
    "info",
    "list_packages",
    "load_settings",
    "materialize",
    "open",
    "path",
    "plan",
    "remove",
    "torch",
    "train",
    "verify",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{_ORIGINS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
