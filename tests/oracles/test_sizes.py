"""Every oracle that is trained here, on square and other images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from counterlens.data.base import ImageSet
from counterlens.experiments import dataset_options
from counterlens.oracles import base
from counterlens.oracles.attributes import AttributeNetwork
from counterlens.oracles.attributes import Options as AttributeOptions
from counterlens.oracles.autoencoders import Autoencoders
from counterlens.oracles.feature_extractor import FeatureExtractor
from counterlens.oracles.simsiam import SimSiam

CPU = torch.device("cpu")
SHORT = {"class_epochs": 1, "all_epochs": 1}
ORACLES: dict[str, dict[str, Any]] = {
    "fc64": {"kind": "autoencoders", **SHORT},
    "vl": {"kind": "autoencoders", "family": "vl", **SHORT},
    "feature-extractor": {"kind": "feature-extractor", "epochs": 1},
    "simsiam": {"kind": "simsiam", "widths": (4, 8, 8), "dim": 8, "epochs": 1},
}


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (28, 40)], ids=str)
def test_oracles(size: tuple[int, int], experiment) -> None:
    settings = ["folder=f", "names=[a, b]", "grey=true", f"size={list(size)}"]
    dataset = dataset_options("image-folder", settings)
    models = experiment(ORACLES).models.model_copy(update={"dataset": dataset})
    random = torch.Generator().manual_seed(1)
    x = torch.rand(24, 1, *size, generator=random)
    data = ImageSet(x, torch.arange(24) % 2, torch.arange(24))
    seen = (x * 255).round().byte()
    for name in ORACLES:
        oracle = base.create(models, name)
        assert isinstance(oracle, base.TrainedOracle)
        oracle.fit(data, data, 2, CPU, None)
        if isinstance(oracle, Autoencoders):
            assert oracle.reconstruct(x, 1).shape == oracle.reconstruct(x, None).shape == x.shape
        else:
            assert isinstance(oracle, FeatureExtractor | SimSiam)
            assert oracle.features(seen).isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (28, 40)], ids=str)
def test_attributes(size: tuple[int, int]) -> None:
    options = AttributeOptions(kind="attributes", widths=(4, 8, 8))
    network = AttributeNetwork(options, (3, *size), 5)
    assert network(torch.rand(2, 3, *size)).shape == (2, 5)
