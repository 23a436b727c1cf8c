"""The one training loop: epochs, checkpoints outside the outputs, and a stop on NaN."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import nn

from counterlens import __version__, layout
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.progress import progress
from counterlens.runtime.quality import Quality

Losses = dict[str, torch.Tensor]
History = list[dict[str, float]]


class Stateful(Protocol):
    """Anything with a state: modules, optimisers, schedulers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Checkpoint:
    """Resumable state of one training, in a folder named by all that determines its result.

    The folder's name is the hash of the settings, the inputs' content and the code loaded when
    the training starts, so that it never continues from a state that belongs to another one.
    """

    def __init__(self, settings: object, inputs: Iterable[Path], seconds: float = 30.0) -> None:
        self.settings = settings
        self.inputs = list(inputs)
        self.seconds = seconds
        self._saved_at = time.monotonic()

    @cached_property
    def folder(self) -> Path:
        """Where the state lies."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for path in [*self.inputs, *loaded_code()]:
            digest.update(files.sha256(path).encode())
        return layout.CHECKPOINTS / digest.hexdigest()[:32]

    @property
    def path(self) -> Path:
        """The state itself."""
        return self.folder / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """The last state, or None at the start."""
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state, whole."""
        with files.atomic_path(self.path) as temporary:
            torch.save(state, temporary)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Forget the state: the outputs are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def loaded_code() -> list[Path]:
    """The source files of the package and of users' plugins that this process has imported."""
    return sorted(
        Path(file)
        for name, module in list(sys.modules.items())
        if name.startswith("counterlens") and (file := getattr(module, "__file__", None))
    )


def train(
    name: str,
    epochs: int,
    epoch_losses: Callable[[int], Iterable[Losses]],
    parts: Mapping[str, Stateful],
    checkpoint: Checkpoint | None = None,
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
) -> History:
    """Train for `epochs` epochs and return the mean losses of each.

    Args:
        name: shown in the progress bar and in errors.
        epoch_losses: does one epoch and yields the detached scalar losses of each step. All its
            randomness must derive from the epoch's number, so that a resumed run ends the same.
        parts: everything whose state must survive a kill: modules, optimisers, schedulers.
        checkpoint: where that state is kept; None keeps nothing.
        schedulers: stepped once per epoch (they must be among `parts`).

    Raises:
        UserError: a loss is not finite; names the step and the last good checkpoint.
    """
    history: History = []
    state = checkpoint.load() if checkpoint else None
    if state is not None:
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        history = state["history"]
    for epoch in progress(range(len(history), epochs), epochs - len(history), name):
        steps = list(epoch_losses(epoch))
        names = list(steps[0])
        values = torch.stack([torch.stack([step[key].float() for key in names]) for step in steps])
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            step = int((~finite).nonzero()[0])
            kept = checkpoint.path if checkpoint and checkpoint.path.exists() else "none"
            raise UserError(
                f"{name}: loss is not finite at epoch {epoch + 1}, step {step + 1}; "
                f"last good checkpoint: {kept}; lower the learning rate"
            )
        means = values.mean(dim=0).tolist()
        history.append({"epoch": epoch + 1, **dict(zip(names, means, strict=True))})
        for scheduler in schedulers:
            scheduler.step()
        if checkpoint and checkpoint.due() and epoch + 1 < epochs:
            checkpoint.save(
                {
                    "parts": {key: part.state_dict() for key, part in parts.items()},
                    "history": history,
                }
            )
    return history


def batches(count: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices 0..count-1 in a random order fixed by `seed`, `size` at a time, last one short."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return iter(order.split(size))


def step_decay(
    optimizer: torch.optim.Optimizer, every: int, factor: float = 0.5
) -> torch.optim.lr_scheduler.LRScheduler:
    """Multiply the learning rate by `factor` every `every` epochs."""
    return torch.optim.lr_scheduler.StepLR(optimizer, max(1, every), factor)


def cosine_decay(
    optimizer: torch.optim.Optimizer, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Bring the learning rate to zero along half a cosine over `epochs` epochs."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))
    )


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average for `AveragedModel` that forgets its beginnings faster.

    After n steps the decay is (1 + n) / (10 + n), at most `decay`.
    """

    @torch.no_grad()
    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor
    ) -> None:
        steps = int(count)
        weight = 1 - min(decay, (1 + steps) / (10 + steps))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    return update


def write_trained(
    folder: Path,
    module: nn.Module,
    history: History,
    about: Mapping[str, Any],
    quality: Quality | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `training.csv`, `card.json` and, last, `model.safetensors`.

    Args:
        history: the mean losses of each epoch; empty where nothing was trained here.
        about: what the card says besides: kind, dataset, options, seed, scale.
        quality: measured values and their gates.
        metadata: of the model file.
    """
    columns = None if history else pd.Index(["epoch"])
    files.write_csv(folder / "training.csv", pd.DataFrame(history, columns=columns))
    measured = {"quality": quality.values, "gates": quality.gates()} if quality else {}
    card = {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "epochs": len(history),
        "training": history[-1] if history else {},
        "version": __version__,
    }
    files.write_json(folder / "card.json", {**card, **measured, **about})
    save_model(folder / "model.safetensors", module, metadata)


def save_model(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write a module's parameters and buffers as safetensors."""
    state = {key: value.detach().cpu().numpy() for key, value in module.state_dict().items()}
    files.save_tensors(path, state, metadata)


def load_model(path: Path, module: nn.Module) -> None:
    """Load what `save_model` wrote.

    Raises:
        UserError: the file does not fit the architecture.
    """
    state = {key: torch.from_numpy(value) for key, value in files.load_tensors(path).items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit {type(module).__name__}: {first}") from None
