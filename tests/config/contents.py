"""Small files that are right, one edit of which makes the mistake of a test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterlens.errors import UserError
from counterlens.experiments import load_experiment

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "seed": 1,
    "pairs": [[3, 8], [4, 9]],
    "classifier": {"kind": "lenet", "epochs": 2},
    "generators": {
        "dcgan": {"kind": "dcgan", "width": 4},
        "encoder": {"kind": "dcgan-encoder", "generator": "dcgan", "width": 4},
        "vae": {"kind": "vae", "width": 4},
    },
    "oracles": {"autoencoders": {"kind": "autoencoders"}},
    "methods": {
        "c3lt": {"kind": "c3lt", "generator": "dcgan", "encoder": "encoder"},
        "pgd": {"kind": "pgd", "epsilon": "64/255"},
    },
    "metrics": [{"kind": "validity"}, {"kind": "im", "autoencoders": "autoencoders"}],
    "evaluation": {"images": 10},
}

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    content = copy.deepcopy(TINY)
    change(content)
    return content


def error_of(write: Callable[..., Path], content: dict[str, Any] | str) -> str:
    """The one line that an experiment file is refused with, after the file's name."""
    path = write(content)
    with pytest.raises(UserError) as caught:
        load_experiment("tiny", "small")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


SHARED: dict[str, Any] = {
    "dataset": "digits",
    "seed": 7,
    "classifiers": {"lenet": {"epochs": 2}, "second": {"kind": "gap-resnet", "widths": [4]}},
    "generators": {
        "dcgan": {"width": 4, "classifier": "lenet"},
        "encoder": {
            "kind": "dcgan-encoder",
            "generator": "dcgan",
            "width": 4,
            "classifier": "lenet",
        },
        "vae": {"width": 4, "classifier": "second"},
        "cem-autoencoder": {},
    },
    "oracles": {"autoencoders": {}, "judge": {"kind": "feature-extractor", "classifier": "lenet"}},
}
NAMING: dict[str, Any] = {
    "name": "tiny",
    "models": "shared",
    "classifier": "lenet",
    "pairs": [[3, 8], [4, 9]],
    "methods": {
        "c3lt": {"generator": "dcgan", "encoder": "encoder"},
        "pgd": {"epsilon": "64/255"},
    },
    "metrics": ["validity", {"kind": "im"}],
    "evaluation": {"images": 10},
}
FACES: dict[str, Any] = {
    "dataset": "celeba-subset",
    "seed": 7,
    "classifiers": {
        "smile": {"kind": "gap-resnet", "attribute": "Smiling", "widths": [4]},
        "smile-again": {"kind": "lenet", "attribute": "Smiling"},
        "age": {"kind": "gap-resnet", "attribute": "Young", "widths": [4]},
    },
    "generators": {
        "latent-diffusion": {"classes": [0, 1], "classifier": "smile"},
        "beta-tcvae": {"classifier": "smile"},
    },
    "oracles": {
        "judge": {"kind": "feature-extractor", "classifier": "smile"},
        "autoencoders": {},
    },
}


def of_faces(classifier: str, *methods: str, metrics: tuple[Any, ...] = ()) -> dict[str, Any]:
    """An experiment on faces."""
    return {
        "name": "tiny",
        "models": "shared",
        "classifier": classifier,
        "pairs": [[0, 1]],
        "methods": {name: {} for name in methods},
        "metrics": list(metrics),
        "evaluation": {"images": 10},
    }
