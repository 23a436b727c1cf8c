"""Latents without an encoder: drawn from a generator class by class, or optimised for an image."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterlens.classifiers.base import Classifier
from counterlens.errors import UserError
from counterlens.generators.base import Generator
from counterlens.methods.parts.latent_options import InversionOptions, SamplingOptions
from counterlens.runtime import seeding

logger = logging.getLogger(__name__)
LEAST_DUE = 10
"""A class is called too rare once `least_acceptance` would have given so many codes of it."""


@dataclass(frozen=True)
class Bank:
    """Codes of one class (N, d), what they decode to, and the share of the draws that they are."""

    latents: Tensor
    images: Tensor
    acceptance: float


@torch.no_grad()
def draw_banks(
    generator: Generator,
    classifier: Classifier,
    labels: Sequence[int],
    options: SamplingOptions,
    seed: int,
    device: torch.device,
) -> list[Bank]:
    """`options.count` codes of each class, with their images.

    A conditional generator draws them directly, another by rejection: a code is kept if the
    classifier gives its image the class.

    Raises:
        UserError: a class is almost never drawn.
    """
    random = seeding.generator(seed)
    conditional = generator.options.conditional
    banks: dict[int, Bank] = {}
    for group in [(label,) for label in labels] if conditional else [tuple(labels)]:
        codes: dict[int, list[Tensor]] = {label: [] for label in group}
        images: dict[int, list[Tensor]] = {label: [] for label in group}
        kept = dict.fromkeys(group, 0)
        drawn = 0
        while min(kept.values()) < options.count:
            z = generator.draw(options.batch_size, random, group[0]).to(device)
            x = generator.decode(z).clamp(0, 1)
            drawn += len(z)
            for label in group:
                chosen = _is_of(classifier, x, label, options) if not conditional else slice(None)
                codes[label].append(z[chosen])
                images[label].append(x[chosen])
                kept[label] += len(codes[label][-1])
                if kept[label] < (due := options.least_acceptance * drawn) and due >= LEAST_DUE:
                    raise UserError(
                        f"class {label} was drawn {kept[label]} times in {drawn} samples of the "
                        f"generator, {options.count} are wanted; train the generator longer, or "
                        "lower sampling.least_probability or sampling.least_acceptance"
                    )
        for label in group:
            acceptance = kept[label] / drawn
            logger.info("class %d: %.2f %% of %d samples kept", label, 100 * acceptance, drawn)
            banks[label] = Bank(
                torch.cat(codes[label])[: options.count],
                torch.cat(images[label])[: options.count],
                acceptance,
            )
    return [banks[label] for label in labels]


def _is_of(
    classifier: Classifier, x: Tensor, label: int | Tensor, options: SamplingOptions
) -> Tensor:
    """Which images (N,) the classifier gives a class, or each its own, with enough probability."""
    best, answer = classifier(x).softmax(dim=1).max(dim=1)
    return (answer == label) & (best >= options.least_probability)


@torch.inference_mode()
def draw_each(
    generator: Generator,
    classifier: Classifier,
    labels: Tensor,
    randomness: Sequence[torch.Generator],
    options: SamplingOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """One code of each wanted class (N,), each with a generator of its own.

    Returns:
        Codes (N, d), their images (N, C, H, W) in [0, 1], and whether the classifier gives the
        image its class, bool (N,); always true of a conditional generator.
    """
    device = labels.device
    z = torch.zeros(len(labels), generator.latent_dim, device=device)
    x = torch.zeros(len(labels), *generator.shape, device=device)
    found = torch.zeros(len(labels), dtype=torch.bool, device=device)
    for _ in range(math.ceil(LEAST_DUE / options.least_acceptance)):
        waiting = (~found).nonzero().flatten()
        if not len(waiting):
            break
        for rows in waiting.split(options.batch_size):
            each = zip(rows.tolist(), labels[rows].tolist(), strict=True)
            drawn = [generator.draw(1, randomness[row], label) for row, label in each]
            z[rows] = torch.cat(drawn).to(device)
            x[rows] = generator.decode(z[rows]).clamp(0, 1)
            if generator.options.conditional:
                found[rows] = True
            else:
                found[rows] = _is_of(classifier, x[rows], labels[rows], options)
    return z, x, found


def invert(
    generator: Generator,
    classifier: Classifier,
    x: Tensor,
    labels: Tensor,
    randomness: Sequence[torch.Generator],
    options: InversionOptions,
) -> tuple[Tensor, Tensor]:
    """z* = argmin_z of mean|G(z) - x| + feature_weight * sum_l mean|phi_l(G(z)) - phi_l(x)|.

    Images are compared in [-1, 1]; phi_l are the classifier's feature maps. Every restart of every
    image is a row of one batch and has its own Adam state.

    Args:
        x: images (N, C, H, W) in [0, 1].
        labels: their classes (N,), where a conditional generator starts from.
        randomness: one generator per image, for the starting points.

    Returns:
        The best codes (N, d) of all steps and restarts, and their losses (N,).
    """
    if not len(x):
        return x.new_zeros(0, generator.latent_dim), x.new_zeros(0)
    starts = torch.stack(
        [
            generator.draw(options.restarts, random, label)
            for random, label in zip(randomness, labels.tolist(), strict=True)
        ]
    ).to(x.device)
    size = max(1, options.batch_size // options.restarts)
    descended = [
        _descend(generator, classifier, images, codes, options)
        for images, codes in zip(x.split(size), starts.split(size), strict=True)
    ]
    codes, losses = zip(*descended, strict=True)
    return torch.cat(codes), torch.cat(losses)


def _descend(
    generator: Generator,
    classifier: Classifier,
    x: Tensor,
    starts: Tensor,
    options: InversionOptions,
) -> tuple[Tensor, Tensor]:
    """The best code (N, d) of each image and its loss (N,), from starts (N, R, d)."""
    images, restarts, latent_dim = starts.shape
    with torch.no_grad():
        features = classifier.maps(x) if options.feature_weight else []

    def apart(one: Tensor, other: Tensor) -> Tensor:
        """Mean absolute difference (N R,) of the rows (N R, ...) from their image's (N, ...)."""
        return (one.unflatten(0, (images, restarts)) - other[:, None]).abs().flatten(2).mean(2)

    def loss_of(z: Tensor) -> Tensor:
        decoded = generator.decode(z)
        loss = 2 * apart(decoded, x)
        if options.feature_weight:
            maps = classifier.maps(decoded)
            differences = [apart(*pair) for pair in zip(maps, features, strict=True)]
            loss = loss + options.feature_weight * torch.stack(differences).sum(0)
        return loss.flatten()

    def on_sphere(z: Tensor) -> Tensor:
        return z * math.sqrt(latent_dim) / z.norm(dim=1, keepdim=True)

    z = starts.flatten(0, 1).clone()
    z = on_sphere(z) if options.sphere else z
    best, least = z.clone(), torch.full((len(z),), torch.inf, device=z.device)
    z.requires_grad_()
    optimizer = torch.optim.Adam([z], options.lr)
    for step in range(options.steps + 1):
        with torch.enable_grad():
            losses = loss_of(z)
        with torch.no_grad():
            better = losses < least
            least = torch.where(better, losses, least)
            best = torch.where(better[:, None], z, best)
        if step == options.steps:
            break
        (z.grad,) = torch.autograd.grad(losses.sum(), z)
        optimizer.step()
        if options.sphere:
            with torch.no_grad():
                z.copy_(on_sphere(z))
    losses, chosen = least.unflatten(0, (images, restarts)).min(dim=1)
    return best.unflatten(0, (images, restarts))[torch.arange(images), chosen], losses
