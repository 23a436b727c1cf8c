"""What every denoising diffusion model offers: noising, the reverse step, filter and inpainting.

Denoising diffusion: Ho et al., NeurIPS 2020. Re-spaced steps and learned variances: Nichol and
Dhariwal, ICML 2021. The filter that explains by a few low steps: ACE (Jeanneret et al., CVPR 2023,
section 3.1). Inpainting: RePaint (Lugmayr et al., CVPR 2022), as CECAS (Eq. 9) uses it.

Inside, images v are in [-1, 1]; every public boundary is in [0, 1].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterlens.generators.base import Generator, Training
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import image_generators


@dataclass(frozen=True)
class Level:
    """One noise level of a re-spaced schedule.

    Attributes:
        step: index in the training schedule; what the network is told.
        kept: share of the image's variance that is left there (alpha-bar).
        below: the same of the next lower level; 1 below the lowest.
    """

    step: int
    kept: float
    below: float

    @property
    def beta(self) -> float:
        """Variance of the noise added from the level below to this one."""
        return 1 - self.kept / self.below

    @property
    def least_variance(self) -> float:
        """Variance of the level below given the image and this level (beta-tilde)."""
        return self.beta * (1 - self.below) / (1 - self.kept)


def respace(steps: int, kept: int) -> list[int]:
    """`kept` of the training steps 0 ... steps-1, evenly spaced; halves are rounded to even."""
    if not 2 <= kept <= steps:
        raise ValueError(f"{kept} of {steps} steps cannot be kept: at least 2, at most all")
    return [round(k * (steps - 1) / (kept - 1)) for k in range(kept)]


def linear_schedule(steps: int) -> Tensor:
    """Alpha-bar (steps,) float64 of the linear schedule, scaled so that its end is all noise.

    beta runs from 1e-4 to 2e-2 at 1000 steps, and times 1000 / steps otherwise.
    """
    scale = 1000 / steps
    betas = torch.linspace(1e-4 * scale, 2e-2 * scale, steps, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def draw(randomness: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise (N, *shape), each image's from its own generator, where `like` is."""
    if not randomness:
        return like.new_empty(0, *shape)
    noise = torch.stack([torch.randn(tuple(shape), generator=one) for one in randomness])
    return noise.to(like.device)


class Diffusion(Generator):
    """An unconditional diffusion model.

    Attributes:
        from_noise: whether it was trained on all noise levels, so that it can sample.
        alpha_bar: float64 (steps,), share of the image's variance left at each training step.
    """

    latent_dim = 0
    from_noise: bool = True
    alpha_bar: Tensor

    def __init__(self, options: DiffusionOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.alpha_bar = linear_schedule(options.steps)
        self.gate: DiffusionOptions = options

    @abstractmethod
    def predict(self, v: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """The noise in images (N, C, H, W) of a training step, and the variance's place.

        The second is in [0, 1] between the logarithms of `Level.least_variance` and `Level.beta`,
        (N, C, H, W), or None where the variance is fixed to beta.
        """

    def levels(self, kept: int, count: int) -> list[Level]:
        """The `count` lowest levels of a schedule of `kept` steps, lowest first."""
        steps = respace(len(self.alpha_bar), kept)[:count]
        shares = [float(self.alpha_bar[step]) for step in steps]
        return [
            Level(step, share, below)
            for step, share, below in zip(steps, shares, [1.0, *shares], strict=False)
        ]

    def statistics(self, v: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the level below, given v (N, C, H, W) at a level.

        CECAS Eq. 2, with the predicted image clamped to [-1, 1] as ACE does. The deviation is
        (1, 1, 1, 1) where it is fixed.
        """
        noise, place = self.predict(v, level.step)
        clean = (v - math.sqrt(1 - level.kept) * noise) / math.sqrt(level.kept)
        clean = clean.clamp(-1, 1)
        rest = 1 - level.kept
        mean = (math.sqrt(level.below) * level.beta / rest) * clean
        mean = mean + (math.sqrt(1 - level.beta) * (1 - level.below) / rest) * v
        if place is None:
            return mean, v.new_full((1, 1, 1, 1), math.sqrt(level.beta))
        low = math.log(max(level.least_variance, 1e-20))
        return mean, (0.5 * (low + place * (math.log(level.beta) - low))).exp()

    def reverse(self, v: Tensor, level: Level, noise: Tensor | None) -> Tensor:
        """One step down from a level; `noise` (N, C, H, W) is None at the lowest."""
        mean, deviation = self.statistics(v, level)
        return mean if noise is None else mean + deviation * noise

    @torch.inference_mode()
    def sample(
        self, v: Tensor, levels: Sequence[Level], randomness: Sequence[torch.Generator]
    ) -> Tensor:
        """All the way down from v (N, C, H, W) at the highest of the levels, to [-1, 1]."""
        for level in reversed(levels):
            last = level.below == 1
            v = self.reverse(v, level, None if last else draw(randomness, v.shape[1:], v))
        return v

    def filtered(self, x: Tensor, training: Training) -> Tensor:
        """Images (N, C, H, W) in [0, 1] after the filter of the quality gate, on the CPU."""
        through = DiffusionFilter(self, self.gate.filter_schedule, self.gate.filter_steps)
        images = []
        for part, chosen in zip(x.split(64), torch.arange(len(x)).split(64), strict=True):
            random = image_generators(training.seed, "filter", "quality", chosen.tolist())
            shown = part.to(training.device, memory_format=torch.channels_last)
            with torch.inference_mode():
                images.append(through(shown, through.noise(random, shown)).cpu())
        return torch.cat(images)

    def quality(self, training: Training) -> Quality:
        """Whether the filter leaves the classifier's answer, on at most 256 test images."""
        assert training.classifier is not None
        x = training.test_images[:: max(1, len(training.test_images) // 256)][:256]
        filtered = self.filtered(x, training)
        before, after = (training.classifier.probabilities(s).argmax(1) for s in (x, filtered))
        values = {
            "filter_class_kept": float((before == after).float().mean()),
            "filter_l1": float((x - filtered).abs().mean()),
        }
        return Quality(values, at_least={"filter_class_kept": self.gate.least_class_kept})

    def sheet(self, training: Training) -> Tensor:
        """Two rows of test images, two of them filtered, two of samples (50 levels) if it can."""
        x = training.test_images[:: max(1, len(training.test_images) // 16)][:16]
        rows = [x, self.filtered(x, training)]
        if self.from_noise:
            random = image_generators(training.seed, "sheet", "samples", range(16))
            start = draw(random, self.shape, torch.empty(0, device=training.device))
            steps = len(self.alpha_bar)
            drawn = self.sample(start, self.levels(min(50, steps), steps), random)
            rows.append(((drawn.cpu() + 1) / 2).clamp(0, 1))
        return torch.cat(rows)


def diffuse(v: Tensor, level: Level, noise: Tensor) -> Tensor:
    """Clean images in [-1, 1] brought to a noise level."""
    return math.sqrt(level.kept) * v + math.sqrt(1 - level.kept) * noise


class DiffusionFilter:
    """F of ACE and CECAS: noise an image a little, then denoise it; keeps it near the data.

    Args:
        network: the diffusion model, frozen.
        kept, steps: the lowest `steps` levels of a schedule re-spaced to `kept`.
        recompute: keep no activations of the denoising steps but compute them again for the
            gradient: the memory of one step, the time of one more forward pass.
    """

    def __init__(self, network: Diffusion, kept: int, steps: int, recompute: bool = False) -> None:
        self.network = network
        self.levels = network.levels(kept, steps)
        self.recompute = recompute

    @property
    def top(self) -> Level:
        """The level that images are noised to."""
        return self.levels[-1]

    def noise(self, randomness: Sequence[torch.Generator], x: Tensor) -> Tensor:
        """What one pass over images (N, C, H, W) takes: (N, steps, C, H, W)."""
        return draw(randomness, (len(self.levels), *x.shape[1:]), x)

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """Filtered images: (N, C, H, W) in [0, 1] to the same; differentiable in x.

        Args:
            x: images.
            noise: from `noise`; zeros make the filter deterministic.
        """
        v = diffuse(2 * x - 1, self.top, noise[:, 0])
        for place, level in enumerate(reversed(self.levels), start=1):
            step_noise = None if place == len(self.levels) else noise[:, place]
            if self.recompute and torch.is_grad_enabled():
                v = checkpoint(self.network.reverse, v, level, step_noise, use_reentrant=False)
            else:
                v = self.network.reverse(v, level, step_noise)
        return (v + 1) / 2

    @torch.inference_mode()
    def inpaint(
        self,
        edited: Tensor,
        original: Tensor,
        keep: Tensor,
        randomness: Sequence[torch.Generator],
        resamplings: int = 1,
    ) -> Tensor:
        """Regenerate `edited` where `keep` is 0; where it is 1 the original stays, bit for bit.

        Args:
            edited, original: (N, C, H, W) in [0, 1].
            keep: (N, 1, H, W) of 0 and 1.
            resamplings: how often each level is visited; RePaint's harmonisation from 2 on.
        """
        known, kept = 2 * original - 1, keep.bool()

        def fresh() -> Tensor:
            return draw(randomness, original.shape[1:], original)

        v = diffuse(2 * edited - 1, self.top, fresh())
        for level in reversed(self.levels):
            last = level.below == 1
            for visit in range(resamplings):
                v = torch.where(kept, diffuse(known, level, fresh()), v)
                v = self.network.reverse(v, level, None if last else fresh())
                if visit + 1 < resamplings:
                    v = math.sqrt(1 - level.beta) * v + math.sqrt(level.beta) * fresh()
        return torch.where(kept, original, ((v + 1) / 2).clamp(0, 1))
