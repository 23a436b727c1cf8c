"""BloodMNIST (MedMNIST v2, Yang et al., Scientific Data 2023): 28x28 blood cells, 8 classes."""

from __future__ import annotations

from typing import ClassVar

from counterlens.config import DatasetOptions
from counterlens.data.base import Source
from counterlens.data.formats.medmnist import MedMnistDataset


class Options(DatasetOptions):
    """BloodMNIST as published, at 28x28; nothing to choose."""

    classes: ClassVar[tuple[str, ...]] = (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
    shape: ClassVar[tuple[int, int, int]] = (3, 28, 28)
    files: ClassVar[tuple[str, ...]] = ("bloodmnist.npz",)
    licence: ClassVar[str] = "CC BY 4.0 (MedMNIST v2; Acevedo et al., Data in Brief 30, 2020)"


class BloodMnist(MedMnistDataset):
    """The official file; MedMNIST publishes its MD5."""

    sources = (
        Source(
            "bloodmnist.npz",
            ("https://zenodo.org/records/10519652/files/bloodmnist.npz",),
            "md5:7053d0359d879ad8a5505303e11de1dc",
        ),
    )
