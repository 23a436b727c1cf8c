"""Options of C3LT without an encoder, read without torch."""

from __future__ import annotations

from pydantic import Field

from counterlens.config import Model


class SamplingOptions(Model):
    """How latents of a class are drawn from a generator (C3LT, CVPR 2022, section 3).

    Attributes:
        count: codes kept per class.
        batch_size: codes drawn at a time.
        least_probability: of the class, for a code to be kept; the class must be the classifier's
            answer in any case.
        least_acceptance: a class that is a smaller share of the draws than this counts as never
            drawn, which is an error.
    """

    count: int = Field(default=6000, gt=0)
    batch_size: int = Field(default=512, gt=0)
    least_probability: float = Field(default=0.0, ge=0, lt=1)
    least_acceptance: float = Field(default=0.001, gt=0, lt=1)


class InversionOptions(Model):
    """How the latent of an image is optimised: Adam on |G(z) - x| and the classifier's features.

    Attributes:
        restarts: starting points of each image; the code with the smallest loss is taken.
        feature_weight: of the features against the pixels.
        sphere: bring each code back to the length sqrt(d) after every step.
        batch_size: codes optimised at a time, all restarts of an image together.
    """

    steps: int = Field(default=500, gt=0)
    lr: float = Field(default=0.05, gt=0)
    restarts: int = Field(default=4, gt=0)
    feature_weight: float = Field(default=0.1, ge=0)
    sphere: bool = False
    batch_size: int = Field(default=256, gt=0)
