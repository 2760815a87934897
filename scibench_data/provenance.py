"""What a result was made from and on: canonical JSON, digests, versions, hardware.

It describes; it never decides whether something is right.
"""

import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "dask", "datalad", "git-annex", "mrcfile", "numcodecs", "numpy", "safetensors", "starfile",
    "torch", "xarray", "zarr",
)  # fmt: skip


def canonical(value: Any) -> bytes:
    """Return the one byte string that stands for a JSON value.

    Keys sorted, no white space, UTF-8, no NaN or infinity: equal values give equal bytes on every
    machine. Floats are written by Python's shortest `repr`, as RFC 8785 writes them but for the
    exponent's form.

    Examples
    --------
    >>> canonical({"b": 1, "a": [0.5, "Å"]}).decode()
    '{"a":[0.5,"Å"],"b":1}'
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical form, lower-case hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_sources(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the names and bytes of source files, in the order of their names."""
    return _digest_named({file.name: file for file in files})


def _digest_named(files: Mapping[str, Path]) -> str:
    return digest(
        [[name, hashlib.sha256(files[name].read_bytes()).hexdigest()] for name in sorted(files)]
    )


@functools.cache
def core_digest() -> str:
    """Return the digest of this package's own source files, without those of models and data."""
    core = Path(__file__).parent
    others = {"datapackages", "models"}
    files = {path.relative_to(core).as_posix(): path for path in core.rglob("*.py")}
    return _digest_named(
        {name: path for name, path in files.items() if name.partition("/")[0] not in others}
    )


def package_version() -> str:
    """Return the installed version of scibench-data."""
    import importlib.metadata

    return importlib.metadata.version("scibench-data")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of every library that touches the numbers."""
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory [B] and system; no host name, no user name."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def torch_state() -> dict[str, Any]:
    """Return what changes the last bits of a training: threads, instruction set, accelerator."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(0) if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
    }


def array_configuration() -> dict[str, Any]:
    """Return the settings of Zarr that come from files and environment variables, not from us."""
    zarr = sys.modules.get("zarr")
    if zarr is None:
        return {}
    changed = zarr.config.get("codec_pipeline", {})
    return {"zarr.codec_pipeline": json.loads(json.dumps(changed, default=str))}
