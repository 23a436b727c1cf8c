"""Stage `generator`: train one generator on its scope, check it, and write its files."""

from __future__ import annotations

import pandas as pd
import torch

from counterlens import __version__, layout
from counterlens.classifiers import base as classifiers_base
from counterlens.config import ALL_CLASSES, Experiment, parse_pair
from counterlens.data.base import load_split
from counterlens.generators import base
from counterlens.runtime import files
from counterlens.runtime.images import write_grid
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, save_model


def run(experiment: Experiment, name: str, scope: str, device: torch.device) -> None:
    """Train the generator `name` on `all-classes` or on a pair such as `4-9`."""
    options = experiment.generators[name]
    dataset = experiment.dataset.name
    pair = None if scope == ALL_CLASSES else parse_pair(scope)
    train_file, test_file = (layout.prepared(dataset, split) for split in ("train", "test"))
    inputs = [train_file, test_file]
    classifier = None
    if options.uses_classifier:
        classifier = classifiers_base.load(experiment, device)
        inputs.append(classifiers_base.model_file(experiment))
    needed = {}
    for other in options.requires():
        other_scope = ALL_CLASSES if pair is None else base.scope(experiment, other, pair)
        needed[other] = base.load(experiment, other, other_scope, device)
        inputs.append(base.model_file(experiment, other, other_scope))

    settings = {**experiment.settings("generators", name), "scope": scope}
    seed = derive_seed(experiment.seed, experiment.name, "generator", name, scope)
    train_images, test_images = load_split(train_file, pair), load_split(test_file, pair)
    training = base.Training(
        images=train_images.images,
        test_images=test_images.images,
        classifier=classifier,
        generators=needed,
        device=device,
        seed=seed,
        checkpoint=Checkpoint(settings, inputs),
        labels=train_images.labels,
        test_labels=test_images.labels,
        left_out=experiment.classifier.left_out,
    )
    torch.manual_seed(seed)
    model = base.create(experiment, name)
    history = model.fit(training)
    quality = model.quality(training)

    folder = layout.generator(experiment.name, name, scope)
    files.write_csv(folder / "training.csv", pd.DataFrame(history))
    write_grid(folder / "samples.png", model.sheet(training), columns=8)
    card = {
        "kind": options.kind,
        "dataset": dataset,
        "scope": scope,
        "options": options.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": experiment.seed,
        "scale": experiment.scale,
        "epochs": len(history),
        "training": history[-1],
        "quality": quality.values,
        "gates": quality.gates(),
        "version": __version__,
    }
    files.write_json(folder / "card.json", card)
    save_model(folder / "model.safetensors", model)
    assert training.checkpoint is not None
    training.checkpoint.remove()
