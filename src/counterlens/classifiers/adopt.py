"""Stage `classifier` where it is trained already: check it, judge it and write its five files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from counterlens import layout
from counterlens.classifiers import base
from counterlens.classifiers.pretrained import Pretrained
from counterlens.classifiers.train import predictions, write
from counterlens.config import Models
from counterlens.data.base import ImageSet, load_split
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.device import freeze, place

TOLERANCE = 1e-4
CHECKED = 8


def run(models: Models, name: str, device: torch.device) -> None:
    """Write what training writes; `training.csv` has no rows, since nothing is trained.

    Raises:
        UserError: the network is not a classifier of the dataset's images and classes, or its
            named layers are not what they are said to be.
    """
    model = base.create(models, name)
    model.read_weights()
    place(model.eval().requires_grad_(False), device)
    test_file = layout.prepared(models.dataset.name, "test")
    test_set = load_split(test_file, attribute=models.attribute_index(name))
    if isinstance(model, Pretrained):
        check(model, test_set, len(models.class_names(name)), device)
    # The checksums let all that follows run again when only the code of the network changes.
    sums = {Path(f).name: files.sha256(Path(f)) for f in models.classifiers[name].files}
    gate = {"test_accuracy": better_than_guessing(predictions(model, test_set))}
    about = {"files": sums, "gates": gate}
    write(models, name, model, [], test_set, device, about, sums)


def better_than_guessing(table: pd.DataFrame) -> dict[str, float | bool | str]:
    """The gate that wrong classes or a wrong normalisation do not pass.

    The accuracy must be above the share of the largest class.
    """
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    accuracy = float(np.mean(labels == predicted))
    largest = float(np.bincount(labels).max()) / len(labels)
    return {
        "value": accuracy,
        "threshold": largest,
        "bound": "above",
        "passed": accuracy > largest,
    }


@torch.inference_mode()
def check(model: Pretrained, data: ImageSet, classes: int, device: torch.device) -> None:
    """Whether the network answers as a classifier of the data, one image at a time or several."""
    name = model.options.network
    x = data.images[:CHECKED].to(device)
    try:
        logits = model(x)
        single = torch.cat([model(image) for image in x.split(1)])
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{name}: cannot take images {tuple(x.shape)} (export it for any batch): {first}"
        ) from None
    if logits.shape != (len(x), classes) or not logits.isfinite().all():
        raise UserError(
            f"{name}: gives {tuple(logits.shape)} for {len(x)} images, not finite numbers "
            f"({len(x)}, {classes}), one for each class"
        )
    if not torch.allclose(logits, single, rtol=TOLERANCE, atol=TOLERANCE):
        raise UserError(
            f"{name}: answers depend on the other images of a batch; export it in eval mode"
        )
    maps = model.maps(x)
    if any(each.ndim != 4 for each in maps):
        raise UserError(f"{name}: `maps` must give feature maps (N, C, h, w)")
    frozen = freeze(copy.deepcopy(model), device) if maps and model.options.has_factory else model
    assert isinstance(frozen, Pretrained)
    for layer, each, later in zip(model.options.maps, maps, frozen.maps(x), strict=False):
        if not torch.allclose(each, later, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                f"{name}: '{layer}' is merged with the normalisation behind it; name that one"
            )
    if model.options.head is not None:
        entered = model.classify(maps[-1])
        if not torch.allclose(logits, entered, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                f"{name}: '{model.options.head}' on the average of '{model.options.maps[-1]}' does "
                "not give the network's logits; name other layers, or no head"
            )
