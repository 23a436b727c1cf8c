"""Stage `fit`: train a method on one pair, or on all pairs together."""

from __future__ import annotations

import torch

from counterlens import layout
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.generators import base as generators
from counterlens.methods import base
from counterlens.runtime.training import Checkpoint, write_trained


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
    pairs, models = scopes[scope], experiment.models
    train_file, test_file = (
        layout.prepared(models.dataset.name, split) for split in ("train", "test")
    )
    needed = [
        generators.model_file(models, other, models.scope(other, pairs[0]))
        for other in options.generators()
    ]
    settings = {"options": options.training(), "pairs": [list(pair) for pair in pairs]}
    settings |= {"seed": experiment.seed, "experiment": experiment.name}
    inputs = [train_file, classifiers.model_file(models, experiment.classifier), *needed]
    checkpoint = Checkpoint(settings, inputs)
    method = base.create(experiment, name, scope, device)
    classes = sorted({label for pair in pairs for label in pair})
    attribute = models.attribute_index(experiment.classifier)
    history = method.fit(load_split(train_file, classes, attribute), checkpoint)
    quality = method.quality(load_split(test_file, classes, attribute))
    about = {**models.about(options), "options": options.training(), "scope": scope}
    folder = layout.method(experiment.name, name, scope)
    write_trained(folder, method.trained(), history, about, quality)
    checkpoint.remove()
