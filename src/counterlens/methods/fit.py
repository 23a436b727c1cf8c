"""Stage `fit`: train a method on one pair, or on all pairs together."""

from __future__ import annotations

import pandas as pd
import torch

from counterlens import __version__, layout
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.generators import base as generators
from counterlens.methods import base
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint, save_model


def run(experiment: Experiment, name: str, scope: str, device: torch.device) -> None:
    """Train the method `name` and write `model.safetensors`, `card.json` and `training.csv`.

    Args:
        scope: a pair such as `4-9`, or `all-pairs`.

    Raises:
        UserError: the method has no such training.
    """
    options = experiment.methods[name]
    scopes = experiment.training_scopes(name) if name in experiment.trained_methods() else {}
    if scope not in scopes:
        known = ", ".join(scopes) or "none"
        raise UserError(f"{experiment.name}: {name} is not trained on '{scope}'; known: {known}")
    pairs = scopes[scope]
    train_file, test_file = (
        layout.prepared(experiment.dataset.name, split) for split in ("train", "test")
    )
    models = [
        generators.model_file(experiment, other, generators.scope(experiment, other, pairs[0]))
        for other in options.generators()
    ]
    settings = {"options": options.training(), "pairs": [list(pair) for pair in pairs]}
    settings |= {"seed": experiment.seed, "experiment": experiment.name}
    inputs = [train_file, classifiers.model_file(experiment), *models]
    checkpoint = Checkpoint(settings, inputs)
    method = base.create(experiment, name, scope, device)
    classes = sorted({label for pair in pairs for label in pair})
    history = method.fit(load_split(train_file, classes), checkpoint)
    quality = method.quality(load_split(test_file, classes))
    folder = layout.method(experiment.name, name, scope)
    files.write_csv(folder / "training.csv", pd.DataFrame(history))
    card = {
        "kind": options.kind,
        "dataset": experiment.dataset.name,
        "scope": scope,
        "options": options.training(),
        "parameters": sum(parameter.numel() for parameter in method.trained().parameters()),
        "seed": experiment.seed,
        "scale": experiment.scale,
        "epochs": len(history),
        "training": history[-1],
        "quality": quality.values,
        "gates": quality.gates(),
        "version": __version__,
    }
    files.write_json(folder / "card.json", card)
    save_model(folder / "model.safetensors", method.trained())
    checkpoint.remove()
