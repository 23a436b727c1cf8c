"""ScoreCAM (Wang et al., CVPR workshops 2020) by the grad-cam package, in batches.

The package's `ScoreCAM` goes image by image and reads one number at a time back from the device,
takes the raw logit as the score, and hooks a layer by module. Here all channels of all images go
through the classifier in batches, the score is a choice, and `TappedClassifier` offers any of the
classifier's feature maps as a layer; activations, weighted sum, ReLU, resizing and normalisation
are the package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pytorch_grad_cam.score_cam import ScoreCAM
from torch import Tensor, nn
from torch.nn import functional

from counterlens.classifiers.base import Classifier
from counterlens.errors import UserError

BATCH = 512


class TappedClassifier(nn.Module):
    """A classifier of images less a blank one, so that times 0 means blank.

    One of its feature maps passes through `tap`, for a hook.
    """

    def __init__(self, classifier: Classifier, layer: int, blank: float) -> None:
        super().__init__()
        self.classifier, self.layer, self.blank = classifier, layer, blank
        self.tap = nn.Identity()

    def forward(self, v: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] - blank to logits (N, classes)."""
        maps = self.classifier.maps(v + self.blank)
        if -self.layer > len(maps):
            raise UserError(f"layer: {self.layer}, but the classifier has {len(maps)} feature maps")
        self.tap(maps[self.layer])
        return self.classifier.classify(maps[-1])


class BatchedScoreCAM(ScoreCAM):
    """`targets` of a call are class indices; `entropy` (N,) is that of the last call's weights.

    The entropy is in units of that of equal weights: 0 is one channel alone, 1 all alike.
    """

    def __init__(self, model: TappedClassifier, score: Literal["prob_increase", "logit"]) -> None:
        super().__init__(model, [model.tap])
        self.classifier, self.blank, self.score = model.classifier, model.blank, score
        self.entropy = torch.empty(0)

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: Any,
        targets: Sequence[int],
        activations: np.ndarray,
        grads: Any,
    ) -> np.ndarray:
        """Softmax over the channels of the score of the image seen through each: (N, K)."""
        with torch.inference_mode():
            maps = torch.from_numpy(activations).to(input_tensor.device)
            count, channels = maps.shape[:2]
            low, high = maps.amin(dim=(2, 3)), maps.amax(dim=(2, 3))
            wanted = torch.as_tensor(targets, device=input_tensor.device)
            place = torch.arange(count * channels, device=input_tensor.device)
            scores = torch.cat(
                [
                    self.scored(
                        input_tensor[part // channels]
                        * seen_through(maps.flatten(0, 1)[part], input_tensor.shape[-2:]),
                        wanted[part // channels],
                    )
                    for part in place.split(BATCH)
                ]
            )
            if self.score == "prob_increase":
                blank = self.scored(torch.zeros_like(input_tensor), wanted)
                scores = scores - blank.repeat_interleave(channels)
            scores = scores.unflatten(0, (count, channels))
            weights = scores.masked_fill(high == low, -torch.inf).softmax(dim=1).nan_to_num(0.0)
            spread = -torch.special.xlogy(weights, weights).sum(dim=1)
            self.entropy = spread / np.log(max(2, channels))
            return weights.cpu().numpy()

    def scored(self, v: Tensor, wanted: Tensor) -> Tensor:
        """The score (n,) of the wanted classes on images less the blank one."""
        logits = self.classifier(v + self.blank)
        if self.score == "prob_increase":
            logits = logits.softmax(dim=1)
        return logits.gather(1, wanted[:, None])[:, 0]


def seen_through(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Feature maps (n, h, w) in the size of the images, (n, 1, H, W), each scaled to [0, 1]."""
    wide = functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=True)
    low, high = wide.amin(dim=(2, 3), keepdim=True), wide.amax(dim=(2, 3), keepdim=True)
    return (wide - low) / (high - low + 1e-8)
