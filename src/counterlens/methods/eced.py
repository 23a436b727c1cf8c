"""ECED: from visual explanations to counterfactuals with latent diffusion.

Luu, Le, Le and Le, WACV 2025. ScoreCAM of the query's class gives the region that may be edited;
the background is kept by tuning its latent and a copy of the decoder for each image; then the
region's initial latent is moved by the classifier's gradient through truncated blended diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from counterlens.errors import UserError
from counterlens.generators.parts.latent import LatentDiffusion
from counterlens.methods.base import Explanation, Method, Task
from counterlens.methods.parts.background import Background, BackgroundKeeper
from counterlens.methods.parts.blended_diffusion import BlendedSampler
from counterlens.methods.parts.eced_options import THRESHOLDS, ECEDOptions
from counterlens.methods.parts.edit_region import EditRegion, Region
from counterlens.methods.parts.filtered_attack import children

RENDERINGS_TO_STOP = 2


class Options(ECEDOptions):
    """See `ECEDOptions`: the regions, the background, the sampler and the attack."""

    label: ClassVar[str] = "ECED"


@dataclass(frozen=True)
class Attack:
    """The end of phase 3 on N images.

    Attributes:
        images: the last rendering (N, C, H, W), not clamped.
        initial: z^init (N, c, h, w) that it was made from.
        target_probability: (N, updates + 1), the classifier's on each rendering; the last one's
            from there on where an image was finished earlier.
        angle: (N, updates) in degrees, between the gradient and its part in the region
            (Proposition 1).
        gradient: (N, c, h, w), of the first update, not pruned; zeros without updates.
        updates: (N,), how many were made.
    """

    images: Tensor
    initial: Tensor
    target_probability: Tensor
    angle: Tensor
    gradient: Tensor
    updates: Tensor


class ECED(Method):
    """Extras, with H, W of the image and c, h, w of the latent.

    `activation_map`, `edit_mask` (N, 1, H, W) and `latent_mask` (N, 1, h, w): U, M and M'.
    `weight_entropy` (N,): of ScoreCAM's channel weights, 1 where all weigh the same.
    `query_latent` (N, c, h, w): z^F.
    `reconstruction`, `reconstruction_clean` (N, C, H, W): D* of z^init with fresh noise of the
    lowest level, and without, before the attack.
    `attack_probability` (N, updates + 1), `angle` (N, updates), `updates` (N,): see `Attack`.
    `angle_by_threshold` (N, len(THRESHOLDS)): degrees between the gradient of the first update and
        its part in the region that each threshold would give (Proposition 2); 90 for an empty one.
    `variants` (N, V, C, H, W), `variant_masks` (N, V, 1, H, W), `variant_found` (N, V): of the
        options' `sweep`.
    """

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        model = task.generators[options.generator]
        if not isinstance(model, LatentDiffusion):
            raise UserError(f"generator '{options.generator}' is no latent diffusion model")
        self.model = model
        self.region = EditRegion(model, task.classifier, options)
        self.keeper = BackgroundKeeper(model, options, options)
        self.sampler = BlendedSampler(model, options)

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        if not len(x):
            return Explanation(x.clone(), torch.zeros_like(target, dtype=torch.bool))
        options = self.options
        own, *others = children(randomness, 1 + len(options.sweep))
        activation, entropy = self.region.activation(x, source)
        explanation, gradient = self.explain_region(
            x, source, target, self.region.choose(activation), own
        )
        extras = {"activation_map": activation, "weight_entropy": entropy, **explanation.extras}
        if options.updates:
            extras["angle_by_threshold"] = torch.stack(
                [
                    degrees_between(gradient, gradient * self.region.above(activation, threshold))
                    for threshold in THRESHOLDS
                ],
                dim=1,
            )
        if options.sweep:
            variants = [
                self.explain_region(
                    x, source, target, self.region.choose(activation, threshold), random
                )[0]
                for threshold, random in zip(options.sweep, others, strict=True)
            ]
            extras["variants"] = torch.stack([each.counterfactual for each in variants], dim=1)
            masks = [each.extras["edit_mask"] for each in variants]
            extras["variant_masks"] = torch.stack(masks, dim=1)
            extras["variant_found"] = torch.stack([each.found for each in variants], dim=1)
        return replace(explanation, extras=extras)

    def explain_region(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        region: Region,
        randomness: Sequence[torch.Generator],
    ) -> tuple[Explanation, Tensor]:
        """Phases 2 and 3 for given regions, and the gradient of the first update."""
        of_background, of_check, of_attack = children(randomness, 3)
        background = self.keeper.fit(x, region.latent, region.image, of_background)
        everyone = torch.arange(len(x), device=x.device)
        initial = background.initial(region.latent)
        with torch.no_grad():
            seen = self.keeper.seen(initial, of_check)
            noisy = background.decoders(seen, everyone).clamp(0, 1)
            clean = background.decoders(initial, everyone).clamp(0, 1)
        attack = self.attack(background, region.latent, source, target, of_attack)
        counterfactual = attack.images.clamp(0, 1)
        with torch.inference_mode():
            answered = self.task.classifier(counterfactual).argmax(dim=1)
        extras = {
            "edit_mask": region.image,
            "latent_mask": region.latent,
            "query_latent": background.query,
            "reconstruction": noisy,
            "reconstruction_clean": clean,
            "attack_probability": attack.target_probability,
            "angle": attack.angle,
            "updates": attack.updates,
        }
        return Explanation(counterfactual, answered == target, extras), attack.gradient

    def attack(
        self,
        background: Background,
        mask: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Attack:
        """Algorithm 3: Adam on z^init, in the region alone.

        The cross-entropy is summed over the images; Adam works number by number, so that one
        image's updates depend on no other's. A finished image leaves the batch.
        """
        options = self.options
        condition = self.sampler.conditions(source, target)
        initial = background.initial(mask).requires_grad_(True)
        optimizer = torch.optim.Adam([initial], options.lr)
        count = len(mask)
        ends: Tensor = initial.detach().clone()
        images: Tensor | None = None
        probability = mask.new_zeros(count, options.updates + 1)
        angle = mask.new_zeros(count, options.updates)
        first = torch.zeros_like(ends)
        updates = torch.zeros(count, device=mask.device)
        active = torch.arange(count, device=mask.device)
        fixed = self.sampler.noise(randomness, initial) if options.fixed_noise else None
        for number in range(options.updates + 1):
            chosen = [randomness[row] for row in active.tolist()]
            noise = self.sampler.noise(chosen, initial) if fixed is None else fixed[active]
            now = initial.detach()[active].requires_grad_(True)
            with torch.set_grad_enabled(number < options.updates):
                z = self.sampler.render(
                    now, background.latent[active], mask[active], condition[active], noise
                )
                rendered = background.decoders(z, active)
                logits = self.task.classifier(rendered)
                loss = functional.cross_entropy(logits, target[active], reduction="sum")
            images = torch.zeros_like(rendered) if images is None else images
            images[active] = rendered.detach()
            ends[active] = now.detach()
            updates[active] = number
            said = logits.detach().softmax(dim=1).gather(1, target[active][:, None])[:, 0]
            probability[active, number:] = said[:, None]
            if number == options.updates:
                break
            (gradient,) = torch.autograd.grad(loss, now)
            if number == 0:
                first = gradient
            pruned = gradient * mask[active]
            angle[active, number:] = degrees_between(gradient, pruned)[:, None]
            step = torch.zeros_like(initial)
            step[active] = pruned if options.prune else gradient
            initial.grad = step
            optimizer.step()
            active = active[~self.finished(probability[active], number)]
            if not len(active):
                break
        assert images is not None
        return Attack(images, ends, probability, angle, first, updates)

    def finished(self, probability: Tensor, number: int) -> Tensor:
        """Which images (n,) need no further update after rendering `number`."""
        if self.options.stop_at is None or number + 1 < RENDERINGS_TO_STOP:
            return torch.zeros(len(probability), dtype=torch.bool, device=probability.device)
        recent = probability[:, number + 1 - RENDERINGS_TO_STOP : number + 1]
        return (recent >= self.options.stop_at).all(dim=1)


def degrees_between(gradient: Tensor, pruned: Tensor) -> Tensor:
    """Angle of a gradient (N, ...) and its part in the region, (N,) in [0, 90]; 0 where it is 0.

    cos = |pruned| / |gradient|, since the rest is orthogonal (ECED, Proposition 1).
    """
    whole, part = (each.flatten(1).double().norm(dim=1) for each in (gradient, pruned))
    cosine = torch.where(whole > 0, part / whole.clamp(min=1e-300), 1.0)
    return torch.rad2deg(torch.arccos(cosine.clamp(0, 1))).to(gradient.dtype)
