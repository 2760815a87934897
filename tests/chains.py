"""A finished chain of a tiny version, to be looked at and damaged."""

from pathlib import Path

from scibench_data.settings import load_settings

TINY = "cryoem@1.0.0+scale.640"
"""A derived version that is made in about a second; the whole chain is tested on it."""


class Chain:
    """A private copy of a finished chain, to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = load_settings(home=folder / "home", jobs=2)
        self.name = TINY

    @property
    def dataset(self) -> Path:
        return self.settings.home / "datasets" / "cryoem" / "1.0.0+scale.640"

    @property
    def store(self) -> Path:
        return next((self.settings.home / "stores").iterdir())

    @property
    def result(self) -> Path:
        return self.folder / "runs" / "a" / "result.json"

    def object(self, path: str) -> Path:
        """Return the annexed object behind a file of the dataset, made writable."""
        found = (self.dataset / path).resolve()
        found.parent.chmod(0o755)
        found.chmod(0o644)
        return found
