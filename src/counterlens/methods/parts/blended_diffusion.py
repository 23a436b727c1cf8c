"""Phase 3 of ECED without its attack: truncated blended latent diffusion (Algorithm 3).

Blended Latent Diffusion: Avrahami et al., SIGGRAPH 2023. The step down is DDIM with eta = 1
(ECED Eq. 10), taken from diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterlens.generators.parts.diffusion import draw
from counterlens.generators.parts.latent import LatentDiffusion, steps_from
from counterlens.methods.parts.eced_options import SamplerOptions


class BlendedSampler:
    """Noises latents to `start` and denoises them, the background put back at every step.

    Attributes:
        steps: the noise levels, highest first, down to 0.
    """

    def __init__(self, model: LatentDiffusion, options: SamplerOptions) -> None:
        self.model, self.options = model, options
        self.scheduler = model.sampling_scheduler(options.grid)
        self.steps = steps_from(self.scheduler, options.start)

    def noise(self, randomness: Sequence[torch.Generator], z: Tensor) -> Tensor:
        """What one rendering of latents (N, c, h, w) takes: (N, 1 + 2 x steps, c, h, w)."""
        return draw(randomness, (1 + 2 * len(self.steps), *z.shape[1:]), z)

    def conditions(self, source: Tensor, target: Tensor) -> Tensor:
        """What the noise prediction is told, for classes (N,)."""
        of = {"target": target, "source": source, "null": torch.full_like(target, -1)}
        return self.model.condition(of[self.options.condition])

    def render(
        self, initial: Tensor, background: Tensor, mask: Tensor, condition: Tensor, noise: Tensor
    ) -> Tensor:
        """The latents (N, c, h, w) at the end; differentiable in `initial`.

        Args:
            initial: where the foreground starts from, without noise.
            background: what is blended in outside the mask.
            mask: (N, 1, h, w) of 0 and 1; 1 is foreground.
            condition: one row per image.
            noise: from `noise`; the noise of a step is drawn here and not inside `checkpoint`.
        """
        if not self.options.diffusion:
            return initial
        z = self.model.noised(initial, noise[:, 0], self.steps[0])
        below = [*self.steps[1:], -1]
        for place, (step, next_step) in enumerate(zip(self.steps, below, strict=True)):
            foreground = self.denoised(z, step, condition, noise[:, 2 * place + 1])
            level = step if self.options.background_level == "t" else next_step
            behind = background
            if level >= 0:
                behind = self.model.noised(background, noise[:, 2 * place + 2], level)
            z = foreground * mask + behind * (1 - mask)
        return z

    def denoised(self, z: Tensor, step: int, condition: Tensor, noise: Tensor) -> Tensor:
        """One step down (Eq. 10); at step 0 the predicted clean latent."""
        if self.options.checkpoint and torch.is_grad_enabled():
            # by value: with late binding the recomputation would use the loop's last step
            predicted = checkpoint(
                self.model.guided, z, step, condition, self.options.guidance, use_reentrant=False
            )
        else:
            predicted = self.model.guided(z, step, condition, self.options.guidance)
        stepped = self.scheduler.step(predicted, step, z, eta=1.0, variance_noise=noise)
        return stepped.prev_sample
