"""Stage `fit`: train a method on one pair."""

from __future__ import annotations

import pandas as pd
import torch

from counterlens import layout
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, Pair, pair_name
from counterlens.data.base import load_split
from counterlens.generators import base as generators
from counterlens.methods import base
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint, save_model


def run(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> None:
    """Train the method `name` and write `model.safetensors` and `training.csv`."""
    options = experiment.methods[name]
    train_file = layout.prepared(experiment.dataset.name, "train")
    models = [
        generators.model_file(experiment, other, generators.scope(experiment, other, pair))
        for other in options.generators()
    ]
    settings = {"options": options.model_dump(mode="json", exclude={"pairs"}), "pair": list(pair)}
    settings |= {"seed": experiment.seed, "experiment": experiment.name}
    inputs = [train_file, classifiers.model_file(experiment), *models]
    checkpoint = Checkpoint(settings, inputs)
    method = base.create(experiment, name, pair, device)
    history = method.fit(load_split(train_file, pair), checkpoint)
    folder = layout.method(experiment.name, name, pair_name(pair))
    files.write_csv(folder / "training.csv", pd.DataFrame(history))
    save_model(folder / "model.safetensors", method.trained())
    checkpoint.remove()
