"""Options of every metric of the package, and the oracles that they ask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from counterlens import plugins
from counterlens.config import MetricOptions
from counterlens.metrics.base import CounterfactualSet

CONFIGURED: dict[str, dict[str, object]] = {
    "validity": {},
    "proximity": {},
    "cout": {"steps": 7},
    "im": {},
    "fid": {"extractor": "pixels"},
    "kid": {"extractor": "pixels", "subset_size": 6, "subsets": 5},
    "lpips": {"extractor": "pixels"},
    "denoised-validity": {},
    "faithfulness": {},
    "flip-rate": {},
    "s3": {"extractor": "pixels"},
    "mnac": {},
    "cd": {},
    "sfid": {"extractor": "pixels"},
    "oracle-validity": {"classifier": "pixels"},
    "norms": {},
}
OF_PAIRS = ("cd", "sfid")


def options_of(kind: str) -> MetricOptions:
    model = plugins.options_class("metrics", kind)
    options = model.model_validate({"kind": kind, **CONFIGURED[kind]})
    assert isinstance(options, MetricOptions)
    return options


def with_path(cf: CounterfactualSet, kept: int = 4) -> CounterfactualSet:
    """The set with a path of five steps of its first images, and what is intended along it."""
    if cf.query is None:
        return cf
    share = torch.linspace(0, 1, 5)[:, None, None, None]
    path = torch.lerp(cf.query[:kept, None], cf.counterfactual[:kept, None], share)
    intended = torch.tensor([0.3, 0.6, 0.1]).expand(len(path), 5, 3)
    features = path.mean((2, 3, 4))[..., None] + 0.25
    found = {"path": path, "path_intended": intended, "path_features": features}
    return replace(cf, extras={**cf.extras, **found})


class FirstPixels:
    """An image has attribute a if its pixel a is bright; attributes are as they come by chance."""

    correlations = torch.eye(3, dtype=torch.float64)

    def answers(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.flatten(1)[:, :3] > 127


class Halves:
    def reconstruct(self, images: Tensor, label: int | None) -> Tensor:
        return (2 * images - 1) * (0.5 if label is None else 0.2 + 0.5 * label)
