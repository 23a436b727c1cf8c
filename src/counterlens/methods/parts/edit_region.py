"""Phase 1 of ECED: which part of an image may be edited (Algorithm 1)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from counterlens.classifiers.base import Classifier
from counterlens.generators.parts.latent import LatentDiffusion
from counterlens.methods.parts.eced_options import RegionOptions

LEAST_SHARE, MOST_SHARE = 0.05, 0.9
BLANKS = {"grey": 0.5, "black": 0.0}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """What may be edited of N images; masks are float32 of 0 and 1, 1 may be edited.

    Attributes:
        latent: M' (N, 1, h, w).
        image: M (N, 1, H, W), M' enlarged, so that loss, blending and metrics see one region.
    """

    latent: Tensor
    image: Tensor


class EditRegion:
    """ScoreCAM of the query's class, thresholded and brought to the size of the latents."""

    def __init__(
        self, model: LatentDiffusion, classifier: Classifier, options: RegionOptions
    ) -> None:
        self.model, self.classifier, self.options = model, classifier, options

    def activation(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """The map U (N, 1, H, W) in [0, 1], and the entropy of ScoreCAM's weights (N,).

        Args:
            x: queries (N, C, H, W) in [0, 1].
            source: int64 (N,), the classes that are explained.
        """
        if self.options.region == "all":
            return torch.ones_like(x[:, :1]), x.new_ones(len(x))
        from counterlens.methods.parts.score_cam import BatchedScoreCAM, TappedClassifier

        blank = BLANKS[self.options.blank]
        with torch.inference_mode():
            tapped = TappedClassifier(self.classifier, self.options.layer, blank)
            cam = BatchedScoreCAM(tapped.eval(), self.options.score)
            activation = torch.from_numpy(cam(x - blank, source.tolist()))
        logger.info("ScoreCAM: entropy of the weights %.3f of 1", float(cam.entropy.mean()))
        return activation[:, None].clamp(0, 1).to(x), cam.entropy.to(x)

    def choose(self, activation: Tensor, threshold: float | None = None) -> Region:
        """Threshold a map; `threshold` replaces that of the options (and their `area`).

        An empty latent mask becomes the 5 % of cells with the largest activation.
        """
        options = self.options
        if options.region == "all":
            everywhere = activation.new_ones(len(activation), 1, *self.model.latent_size)
            return Region(everywhere, torch.ones_like(activation))
        bound = activation.new_full(
            (len(activation), 1, 1, 1), options.threshold if threshold is None else threshold
        )
        if threshold is None and options.area is not None:
            flat = activation.flatten(1)
            bound = flat.quantile(1 - options.area, dim=1)[:, None, None, None]
        height, width = self.model.latent_size
        mask = self.above(activation, bound)
        cells = functional.adaptive_avg_pool2d(self.enlarge(activation), (height, width)).flatten(1)
        least = max(1, round(LEAST_SHARE * height * width))
        top = torch.zeros_like(cells).scatter(1, cells.topk(least, dim=1).indices, 1.0)
        empty = mask.flatten(1).amax(dim=1) == 0
        mask = torch.where(empty[:, None, None, None], top.unflatten(1, (1, height, width)), mask)
        for _ in range(options.dilate):
            mask = functional.max_pool2d(mask, 3, stride=1, padding=1)
        wide = int((mask.flatten(1).mean(dim=1) > MOST_SHARE).sum())
        if wide:
            logger.warning("%d of %d regions cover more than 90 %% of the image", wide, len(mask))
        return Region(mask, self.in_pixels(mask))

    def above(self, activation: Tensor, bound: Tensor | float) -> Tensor:
        """Latent masks (N, 1, h, w) of where maps (N, 1, H, W) lie above a bound; may be empty.

        Those of a larger bound lie inside those of a smaller one.
        """
        return self.shrunk(self.enlarge((activation > bound).to(activation)))

    def enlarge(self, values: Tensor) -> Tensor:
        """Values (N, 1, H, W) in [0, 1] in the size of the autoencoder; 0 where it is padded."""
        return (self.model.to_model(2 * values - 1)[:, :1] + 1) / 2

    def shrunk(self, mask: Tensor) -> Tensor:
        """A mask in the size of the autoencoder to one in that of the latents, 0 and 1."""
        size = self.model.latent_size
        if self.options.downsample == "maxpool":
            resized = functional.adaptive_max_pool2d(mask, size)
        elif self.options.downsample == "area":
            resized = functional.adaptive_avg_pool2d(mask, size)
        else:
            resized = functional.interpolate(mask, size, mode="nearest")
        return (resized > 0.5).to(mask)

    def in_pixels(self, mask: Tensor) -> Tensor:
        """A latent mask enlarged to the size of the images (N, 1, H, W)."""
        wide = functional.interpolate(mask, self.model.inner_size, mode="nearest")
        return ((self.model.from_model(2 * wide - 1) + 1) / 2 > 0.5).to(mask)
