"""Stage `generator`: train one generator on its scope, check it, and write its files."""

from __future__ import annotations

import torch

from counterlens import layout
from counterlens.classifiers import base as classifiers
from counterlens.config import ALL_CLASSES, Models, parse_pair
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.generators import base
from counterlens.runtime.images import write_grid
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, write_trained


def run(models: Models, name: str, scope: str, device: torch.device) -> None:
    """Train the generator `name` on `all-classes` or on a pair such as `4-9`.

    Raises:
        UserError: it is not trained on this scope.
    """
    options = models.generators[name]
    if (scope == ALL_CLASSES) == options.per_pair:
        wanted = "a pair such as 4-9" if options.per_pair else f"'{ALL_CLASSES}'"
        raise UserError(f"--scope {scope}: generator {name} is trained on {wanted}")
    pair = None if scope == ALL_CLASSES else parse_pair(scope)
    train_file, test_file = (
        layout.prepared(models.dataset.name, split) for split in ("train", "test")
    )
    inputs = [train_file, test_file]
    classifier, left_out = None, ()
    if options.classifier is not None:
        classifier = classifiers.load(models, options.classifier, device)
        left_out = models.classifiers[options.classifier].left_out
        inputs.append(classifiers.model_file(models, options.classifier))
    needed = {}
    for other in options.requires():
        other_scope = ALL_CLASSES if pair is None else models.scope(other, pair)
        needed[other] = base.load(models, other, other_scope, device)
        inputs.append(base.model_file(models, other, other_scope))

    settings = {**models.settings("generators", name), "scope": scope}
    seed = derive_seed(models.seed, "generators", name, scope)
    attribute = models.attribute_index(options.classifier)
    train_set, test_set = (load_split(file, pair, attribute) for file in (train_file, test_file))
    checkpoint = Checkpoint(settings, inputs)
    training = base.Training(
        images=train_set.images,
        test_images=test_set.images,
        classifier=classifier,
        generators=needed,
        device=device,
        seed=seed,
        checkpoint=checkpoint,
        labels=train_set.labels,
        test_labels=test_set.labels,
        left_out=left_out,
    )
    torch.manual_seed(seed)
    model = base.create(models, name)
    history = model.fit(training)
    quality = model.quality(training)
    folder = layout.generator(models.name, name, scope)
    write_grid(folder / "samples.png", model.sheet(training), columns=8)
    write_trained(folder, model, history, {**models.about(options), "scope": scope}, quality)
    checkpoint.remove()
