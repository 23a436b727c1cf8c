"""torchvision's ResNet-50 on ImageNet (He et al., CVPR 2016), a named weight (BSD-3-Clause).

Nothing is trained. Of its 1000 logits those of the dataset's classes are kept, so that a softmax
is over these alone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens import layout
from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions
from counterlens.data.formats.weights import WEIGHTS, load_weight_record
from counterlens.errors import UserError
from counterlens.runtime.images import IMAGENET_DEVIATION, IMAGENET_MEAN

WEIGHT = "resnet50-imagenet"


class Options(ClassifierOptions):
    """`imagenet`: the index in ImageNet, 0 to 999, of each class of the dataset, in its order.

    `crop`: of larger images only the centre of this size is seen. The options of training have no
    effect.
    """

    has_gap: ClassVar[bool] = True
    named_weights: ClassVar[tuple[str, ...]] = ("resnet50-imagenet",)
    trained: ClassVar[bool] = False

    imagenet: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = Field(min_length=2)
    crop: int = Field(default=224, ge=32)


class ResNet50(Classifier):
    """Feature maps: the outputs of the four stages; embedding: the last one's spatial mean."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, options: Options, shape: tuple[int, int, int], classes: int) -> None:
        from torchvision.models import resnet50

        super().__init__()
        if shape[0] != 3 or len(options.imagenet) != classes:
            raise UserError(
                f"classifier.imagenet: resnet50 sees RGB images and needs one index for each of "
                f"the {classes} classes; there are {len(options.imagenet)}, and {shape[0]} channels"
            )
        self.options = options
        network = resnet50(weights=None)
        self.head = nn.Linear(network.fc.in_features, classes)
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def read_weights(self) -> None:
        """Load torchvision's weights and keep the rows of the last layer that are asked for.

        Raises:
            UserError: they are not here, or are those of another network.
        """
        record = load_weight_record(layout.weight(WEIGHT))
        if record.file is None:
            raise UserError(
                f"{WEIGHT} is not available: {record.reason}; put {WEIGHTS[WEIGHT].source.file} "
                "into the folder `weights` of a mirror and name that under COUNTERLENS_MIRROR"
            )
        state = torch.load(record.file, map_location="cpu", weights_only=True)
        chosen = list(self.options.imagenet)
        try:
            last = {name: state.pop(f"fc.{name}")[chosen] for name in ("weight", "bias")}
            self.network.load_state_dict(state)
            self.head.load_state_dict(last)
        except (KeyError, IndexError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{record.file}: is no ResNet-50 of torchvision: {reason}") from None

    def maps(self, x: Tensor) -> list[Tensor]:
        network = self.network
        top, left = (max(0, size - self.options.crop) // 2 for size in x.shape[2:])
        x = x[:, :, top : top + self.options.crop, left : left + self.options.crop]
        hidden = network.relu(network.bn1(network.conv1((x - self.mean) / self.deviation)))
        hidden = network.maxpool(hidden)
        maps = []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.mean(dim=(2, 3))
