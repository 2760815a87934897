"""Pictures that every run has, whatever its model."""

from pathlib import Path

from scibench_data.results.result import Result


def learning_curve(result: Result, path: Path) -> None:
    """Draw loss and validation metric over the epochs, and what the metric is compared with."""
    from matplotlib.figure import Figure

    epochs = [entry["epoch"] for entry in result.history]
    headline = result.metrics.headline
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry["loss"] for entry in result.history], color="#4477aa")
    left.set(xlabel="epoch", ylabel="training loss", title="loss")
    right.plot(
        epochs,
        [entry[headline] for entry in result.history],
        color="#4477aa",
        label="model, validation",
    )
    value = result.metrics.values[headline]
    right.axhline(value, color="#228833", ls="--", label=f"model, test {value:.3f}")
    for color, (name, scores) in zip(
        ["#ee6677", "#ccbb44", "#aa3377", "#66ccee"],
        result.metrics.comparisons.items(),
        strict=False,
    ):
        right.axhline(scores[headline], color=color, ls=":", label=f"{name} {scores[headline]:.3f}")
    right.set(xlabel="epoch", ylabel=headline, title=f"{result.dataset.name}: {headline}")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
