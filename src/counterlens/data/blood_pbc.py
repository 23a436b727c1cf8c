"""Blood cells of the PBC set (Acevedo et al., Data in Brief 30, 2020), prepared like BloodMNIST.

28x28, the 8 classes and label numbers of BloodMNIST, 1,200 images of each, and a split of its own:
numbers on it are not comparable with published ones on BloodMNIST.
"""

from __future__ import annotations

from typing import ClassVar

from counterlens.config import DatasetOptions
from counterlens.data.base import Source
from counterlens.data.formats.medmnist import MedMnistDataset


class Options(DatasetOptions):
    """Nothing to choose. The file comes from a mirror; no public source has it."""

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
    files: ClassVar[tuple[str, ...]] = ("blood_pbc_28.npz",)
    licence: ClassVar[str] = "CC BY 4.0 (Acevedo et al., Data in Brief 30, 2020)"


class BloodPbc(MedMnistDataset):
    """A file of the MedMNIST format."""

    sources = (
        Source(
            "blood_pbc_28.npz",
            (),
            "ab43836ede246014b089a21de17325ff16ef56b445d10bc14ef48e02c54a38b3",
        ),
    )
