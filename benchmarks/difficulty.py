"""When can a model be told from its baseline? cryoem at several noise levels and sizes, seed 0."""

import json
import tempfile
from pathlib import Path

from measure import options, surroundings

from scibench_data import catalog
from scibench_data.getting import simulating
from scibench_data.loader import make_source
from scibench_data.results import training
from scibench_data.results.run import task_of

CASES = [
    (0.03, 5120),
    (0.05, 3072),
    (0.05, 5120),
    (0.05, 8192),
    (0.1, 3072),
    (0.1, 5120),
    (0.1, 8192),
    (0.2, 5120),
]


def scores(snr: float, particles: int) -> dict[str, dict[str, float]]:
    """Simulate, train with the defaults and seed 0, and score on the test micrographs."""
    package = catalog.find_release("cryoem").read()
    task, module = task_of(package), catalog.load_model("cryoem")
    assert package.splits is not None
    with tempfile.TemporaryDirectory() as scratch:
        parameters = {"particles": particles, "snr": snr}
        simulating.simulate_all("cryoem", parameters, Path(scratch), jobs=2)
        raw = catalog.load_reader("cryoem").read(Path(scratch))
        source = make_source(raw, package.splits, (*task.inputs, *task.targets))
        device = training.choose_device(None)
        fitted = training.fit(module, module.Config(), source, seed=0, device=device)
    return {"model": dict(fitted.metrics), **{k: dict(v) for k, v in fitted.comparisons.items()}}


def main() -> None:
    """Measure and report."""
    asked = options(__doc__ or "", repeats=1)
    rows = []
    for snr, particles in CASES:
        found = scores(snr, particles)
        rows.append({"snr": snr, "particles": particles, "scores": found})
        curves = "  ".join(f"{name} {values['fsc_auc']:.3f}" for name, values in found.items())
        accuracy = found["model"]["balanced_accuracy"]
        print(
            f"SNR {snr:<5} {particles:>6} particles  {curves}  accuracy {accuracy:.3f}", flush=True
        )
    if asked.json:
        content = {"rows": rows, **surroundings()}
        asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
