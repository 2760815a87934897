"""One training loop for every reference model.

A model's file gives ``Config``, ``build``, ``optimizer``, ``evaluate``, ``compare`` and
``figures``, and its module a ``loss``; seeds, device, epochs, progress and timing are here, once.
"""

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from scibench_data.errors import IntegrityError, ScibenchError, UsageError, did_you_mean
from scibench_data.loader import Data
from scibench_data.progress import SILENT, Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model and how it got there.

    Attributes
    ----------
    history
        One entry for each epoch: ``epoch``, ``loss`` (mean over the batches) and the validation
        metrics.
    metrics
        Scores on the test split.
    comparisons
        Scores of baselines and ceilings on the same split.
    seconds
        Wall time of ``training``, ``evaluation`` and ``comparison``. [s]
    """

    model: torch.nn.Module
    history: tuple[Mapping[str, float], ...]
    metrics: Mapping[str, float]
    comparisons: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]


def settle_threads() -> None:
    """Use one thread on the processor, unless ``OMP_NUM_THREADS`` says otherwise.

    The reference models are small: on a busy machine two threads wait for each other and take three
    times as long as one. The number of threads also changes the last bits, and so is fixed.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def choose_device(name: str | None) -> torch.device:
    """Return the device named, or the accelerator where there is one, else the processor.

    Raises
    ------
    UsageError
        torch knows no such device, or this machine has none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        message = (
            f"device {name!r}: {str(error).splitlines()[0]}; use cpu, or cuda where there is a GPU"
        )
        raise UsageError(message) from error
    return device


def make_config(module: ModuleType, overrides: Mapping[str, Any]) -> Any:
    """Return the model's ``Config`` with some fields replaced; texts become the field's type.

    Raises
    ------
    UsageError
        The model has no such setting, or the value is not of its type.
    """
    default = module.Config()
    fields = {field.name: field for field in dataclasses.fields(default)}
    values = {}
    for name, value in overrides.items():
        if name not in fields:
            message = f"no setting named {name!r}; {did_you_mean(name, fields)}"
            raise UsageError(message)
        kind = type(getattr(default, name))
        try:
            values[name] = kind(value)
        except (TypeError, ValueError) as error:
            message = f"{name}: expected {kind.__name__}, got {value!r}; correct it"
            raise UsageError(message) from error
        if isinstance(values[name], float) and not math.isfinite(values[name]):
            message = f"{name}: expected a finite number, got {value!r}; correct it"
            raise UsageError(message)
    config = dataclasses.replace(default, **values)
    for name in ("epochs", "batch_size"):
        if getattr(config, name) < 1:
            message = f"{name}: expected at least 1, got {getattr(config, name)}; correct it"
            raise UsageError(message)
    return config


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copy a batch to where the model is; without waiting for it where the batch is pinned."""
    if device.type == "cpu":
        return dict(batch)
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


def fit(
    module: ModuleType,
    config: Any,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = SILENT,
) -> Fitted:
    """Train a reference model, score it on the test split, and score what it is compared with.

    The same seed, data, machine, thread count and library versions give the same weights.

    Raises
    ------
    ScibenchError
        The loss stopped being a number.
    """
    torch.manual_seed(seed)
    model = module.build(config, data).to(device)
    started = time.perf_counter()
    history = _train(module, model, config, data, seed=seed, progress=progress)
    trained = time.perf_counter()
    with progress.task("evaluate", 1, "steps"):
        metrics = score(module, model.eval(), data, "test")
    evaluated = time.perf_counter()
    with progress.task("compare with baselines", 1, "steps"):
        comparisons = compare(module, config, data)
    ended = time.perf_counter()
    return Fitted(
        model=model,
        history=tuple(history),
        metrics=metrics,
        comparisons=comparisons,
        seconds={
            "training": round(trained - started, 3),
            "evaluation": round(evaluated - trained, 3),
            "comparison": round(ended - evaluated, 3),
        },
    )


def _scores(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


def _train(
    module: ModuleType,
    model: torch.nn.Module,
    config: Any,
    data: Data,
    *,
    seed: int,
    progress: Progress,
) -> list[dict[str, float]]:
    optimizer = module.optimizer(model, config)
    device = next(model.parameters()).device
    per_epoch = math.ceil(len(data.splits["train"]) / config.batch_size)
    total = per_epoch * config.epochs
    history: list[dict[str, float]] = []
    with progress.task("train", total, "steps") as task:
        for epoch in range(config.epochs):
            model.train()
            losses = torch.zeros((), device=device)
            batches = data.batches("train", config.batch_size, shuffle=True, seed=seed, epoch=epoch)
            for number, batch in enumerate(batches):
                step = epoch * per_epoch + number
                loss = cast("Any", model).loss(to_device(batch, device), step / total)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses += loss.detach()
                task.update(step + 1, note=_note(epoch, history))
            history.append(_epoch(module, model, data, epoch, float(losses) / per_epoch))
            task.update((epoch + 1) * per_epoch, note=_note(epoch, history))
    return history


def _epoch(
    module: ModuleType, model: torch.nn.Module, data: Data, epoch: int, loss: float
) -> dict[str, float]:
    if not math.isfinite(loss):
        message = f"epoch {epoch + 1}: the loss is {loss}; try a smaller learning_rate"
        raise ScibenchError(message)
    scores = score(module, model.eval(), data, "validation")
    return {"epoch": epoch + 1, "loss": loss, **scores}


def _note(epoch: int, history: list[dict[str, float]]) -> str:
    if not history:
        return f"epoch {epoch + 1}"
    name, value = list(history[-1].items())[2]
    return f"epoch {epoch + 1}  loss {history[-1]['loss']:.4g}  {name} {value:.4f}"


def pack_weights(model: torch.nn.Module) -> bytes:
    """Return the weights in safetensors form: tensors only, no code to run on loading."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    packed: bytes = save(weights)
    return packed


def restore(module: ModuleType, config: Any, data: Data, packed: bytes) -> torch.nn.Module:
    """Build a model anew and give it the weights of a checkpoint, on the processor.

    Raises
    ------
    IntegrityError
        The bytes are no safetensors file, or do not fit the model in names, shapes or dtypes.
    """
    torch.manual_seed(0)
    model: torch.nn.Module = module.build(config, data)
    try:
        weights = load(packed)
        for name, value in model.state_dict().items():
            if name in weights and weights[name].dtype != value.dtype:
                message = f"{name}: expected {value.dtype}, got {weights[name].dtype}"
                raise RuntimeError(message)  # noqa: TRY301  (as load_state_dict tells the rest)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        message = f"checkpoint: does not fit the model ({reason}); take this run's checkpoint"
        raise IntegrityError(message) from error
    return model.eval()


@torch.no_grad()
def score(module: ModuleType, model: torch.nn.Module, data: Data, split: str) -> dict[str, float]:
    """Score a model on a split."""
    return _scores(module.evaluate(model, data, split))


@torch.no_grad()
def compare(module: ModuleType, config: Any, data: Data) -> dict[str, dict[str, float]]:
    """Score what the model is compared with, on the test split."""
    return {name: _scores(scores) for name, scores in module.compare(data, config).items()}
