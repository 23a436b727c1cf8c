"""Other implementations of a method, which `bench` times in turn with ours.

A peer is a Python file with one function for each kind of method that it implements, named as the
kind with `_` for `-`. It is given what `Method.explain` is given, after the method itself, and
gives the counterfactuals:

    def pgd(method, x, source, target, randomness): ...

torchattacks is a peer by its name; tests/methods/references.py has the published searches of CEM
and CVE.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterlens.errors import UserError
from counterlens.methods.pgd import PGD

Implementation = Callable[[Any, Tensor, Tensor, Tensor, Sequence[torch.Generator]], Tensor]
"""Method, x (N, C, H, W) in [0, 1], source and target (N,), one generator per image, to
counterfactuals (N, C, H, W)."""


@dataclass(frozen=True)
class Peer:
    """Other implementations, each by the name of its function."""

    name: str
    functions: Mapping[str, Implementation]

    def of(self, kind: str) -> Implementation | None:
        """Its implementation of a kind of method, if it has one."""
        return self.functions.get(Path(kind).stem.replace("-", "_"))


def load(name: str) -> Peer:
    """A peer: `torchattacks`, or the path of a Python file.

    Raises:
        UserError: it is not installed, there is no such file, or the file has no function.
    """
    if name == "torchattacks":
        return torchattacks()
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--peer {name}: no such file; allowed: torchattacks, or path/to/file.py")
    spec = importlib.util.spec_from_file_location(f"counterlens_peer_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = {
        key: function
        for key, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == spec.name and not key.startswith("_")
    }
    if not functions:
        raise UserError(f"--peer {name}: has no function named as a kind of method")
    return Peer(name, functions)


def torchattacks() -> Peer:
    """Its PGD on the same network with the same steps, each time from the same random start."""
    try:
        attacks: Any = importlib.import_module("torchattacks")
    except ImportError:
        raise UserError(
            "--peer torchattacks: is not installed here; envs/bench.sh adds it for one run"
        ) from None

    def pgd(
        method: PGD,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Tensor:
        options, network = method.options, method.task.classifier
        attack = attacks.PGD(
            Unnormalised(network).eval() if options.feed_unnormalised else network,
            eps=options.epsilon,
            alpha=options.step_size,
            steps=options.steps,
            random_start=options.random_start,
        )
        attack.set_mode_targeted_by_label(quiet=True)
        torch.manual_seed(method.task.seed)
        return attack(x, target)

    return Peer(f"torchattacks {attacks.__version__}", {"pgd": pgd})


class Unnormalised(nn.Module):
    """A network that is asked as PGD's `feed_unnormalised` asks it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        return self.network((x + 1) / 2)
