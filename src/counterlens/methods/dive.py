"""DiVE: diverse valuable explanations (Rodriguez et al., Beyond Trivial Counterfactual
Explanations with Diverse Valuable Explanations, ICCV 2021).

Several perturbations of an image's code are optimised together. Each may change its own cluster of
code dimensions only; the clusters come from the Fisher information of the classifier's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import GeneratorOptions, MethodOptions, latents_differ
from counterlens.data.base import ImageSet
from counterlens.methods.base import Explanation, Method, Task
from counterlens.runtime.device import place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import Checkpoint, History, Losses, train

INITIAL_DEVIATION = 0.01


class Options(MethodOptions):
    """Hyper-parameters; the defaults are the release's.

    Attributes:
        generator: id of the experiment's encoder and decoder.
        explanations: how many are made of each image.
        mask: the code dimensions that each explanation may change: one cluster of the Fisher matrix
            each, all but that cluster, a random part of equal size, or all (`none`).
        fisher_images: at most so many training images enter the Fisher matrix; None is all.
        batch_size: images per batch of the Fisher matrix.
        iterations: 20 is DiVE, 100 is DiVE^100.
        sparsity, diversity, reconstruction: weights of the L1 norm of the perturbations, of the
            squared cosine between them, and of the distance to the query.
        stop_at: share of an image's explanations that must reach the target for it to be finished.
    """

    label: ClassVar[str] = "DiVE"
    trainable: ClassVar[bool] = True
    explaining: ClassVar[tuple[str, ...]] = (
        "iterations",
        "lr",
        "sparsity",
        "diversity",
        "reconstruction",
        "stop_at",
    )

    generator: str = "beta-tcvae"
    explanations: int = Field(default=8, gt=0)
    mask: Literal["fisher-spectral", "fisher-spectral-inverse", "random", "none"] = (
        "fisher-spectral"
    )
    fisher_images: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=256, gt=0)
    iterations: int = Field(default=20, gt=0)
    lr: float = Field(default=0.01, gt=0)
    sparsity: float = Field(default=1.0, ge=0)
    diversity: float = Field(default=1.0, ge=0)
    reconstruction: float = Field(default=10.0, ge=0)
    stop_at: float = Field(default=0.9, gt=0, le=1)

    def generators(self) -> tuple[str, ...]:
        """The encoder and decoder."""
        return (self.generator,)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """One generator does both, with more code dimensions than there are clusters of them."""
        if reason := latents_differ(generators, self.generator, self.generator):
            return reason
        size = getattr(generators[self.generator], "latent_dim", 0)
        if self.mask != "none" and self.explanations >= size:
            return (
                f"explanations: {self.explanations} parts of a code cannot be made of the {size} "
                f"dimensions of '{self.generator}'; use fewer, or mask: none"
            )
        return None


class Masks(nn.Module):
    """The Fisher matrix (d, d) and the masks (n, d) of 0 and 1 of the explanations."""

    fisher: Tensor
    masks: Tensor

    def __init__(self, explanations: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("fisher", torch.zeros(latent_dim, latent_dim))
        self.register_buffer("masks", torch.ones(explanations, latent_dim))


class DiVE(Method):
    """Of each image's explanations one is returned: of those that reach the target the one with the
    smallest perturbation in L1; if none does, that of the largest target probability.

    Extras: `latent` and `latent_counterfactual` (N, d); `target_probabilities` (N, n) of all
    explanations.
    """

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.generator = task.generators[options.generator]
        self.learnt = Masks(options.explanations, self.generator.latent_dim)
        place(self.learnt, task.device)

    def trained(self) -> nn.Module:
        return self.learnt

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Sum J J^T over the training images of the pair, then cut the code into parts.

        J is the gradient of the pair's log-odds at the code. Each epoch of the history is one
        batch of images, with the mean of |J|^2.
        """
        options, learnt = self.options, self.learnt
        learnt.fisher.zero_()
        parts = data.images[: options.fisher_images].split(options.batch_size)

        def batch(number: int) -> Iterator[Losses]:
            gradient = self.log_odds_gradient(parts[number].to(self.task.device))
            learnt.fisher += gradient.T @ gradient
            yield {"squared_gradient": gradient.square().sum(dim=1).mean()}

        history = train("dive", len(parts), batch, {"learnt": learnt}, checkpoint)
        seed = derive_seed(self.task.seed, "masks")
        learnt.masks.copy_(latent_masks(learnt.fisher, options.explanations, options.mask, seed))
        return history

    def log_odds_gradient(self, x: Tensor) -> Tensor:
        """Of the second class of the pair against the first, at the codes of x: (N, d)."""
        first, second = self.task.pair
        with torch.no_grad():
            z = self.generator.encode(x)
        z.requires_grad_(True)
        logits = self.task.classifier(self.generator.decode(z))
        return torch.autograd.grad((logits[:, second] - logits[:, first]).sum(), z)[0]

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Adam on all perturbations at once; finished images leave the batch."""
        options = self.options
        with torch.no_grad():
            z = self.generator.encode(x)
        size = (options.explanations, z.shape[1])
        drawn = [torch.randn(size, generator=one) for one in randomness]
        start = torch.stack(drawn).to(z) if drawn else z.new_zeros(0, *size)
        moved = (INITIAL_DEVIATION * start * self.learnt.masks).requires_grad_(True)
        optimizer = torch.optim.Adam([moved], options.lr)
        perturbation = torch.zeros_like(moved)
        probability = z.new_zeros(len(x), options.explanations)
        reached = torch.zeros_like(probability, dtype=torch.bool)
        left = torch.arange(len(x), device=x.device)
        for iteration in range(options.iterations + 1):
            if not len(left):
                break
            last = iteration == options.iterations
            with torch.set_grad_enabled(not last):
                decoded = self.decode(z[left], moved[left])
                logits = self.classify(decoded)
            with torch.no_grad():
                perturbation[left] = moved[left]
                answers = logits.softmax(dim=2)
                wanted = target[left][:, None].expand(-1, options.explanations)
                probability[left] = answers.gather(2, wanted[:, :, None]).squeeze(2)
                reached[left] = answers.argmax(dim=2) == wanted
                going = reached[left].float().mean(dim=1) < options.stop_at
            if last or not going.any():
                break
            loss = self.losses(x[left], moved[left], decoded, logits, wanted)[going].sum()
            (gradient,) = torch.autograd.grad(loss, moved)
            moved.grad = gradient * self.learnt.masks
            optimizer.step()
            left = left[going]
        chosen = choose(perturbation.abs().sum(dim=2), probability, reached)
        rows = torch.arange(len(x), device=x.device)
        code = z + perturbation[rows, chosen].detach()
        with torch.inference_mode():
            counterfactual = self.generator.decode(code).clamp(0, 1)
        extras = {"latent": z, "latent_counterfactual": code, "target_probabilities": probability}
        return Explanation(counterfactual, reached.any(dim=1), extras)

    def decode(self, z: Tensor, moved: Tensor) -> Tensor:
        """Images (N, n, C, H, W) of codes (N, d) moved by perturbations (N, n, d)."""
        images = self.generator.decode((z[:, None] + moved).flatten(0, 1))
        return images.reshape(len(z), -1, *images.shape[1:])

    def classify(self, decoded: Tensor) -> Tensor:
        """Logits (N, n, classes) of images (N, n, C, H, W)."""
        logits = self.task.classifier(decoded.flatten(0, 1))
        return logits.reshape(*decoded.shape[:2], -1)

    def losses(
        self, x: Tensor, moved: Tensor, decoded: Tensor, logits: Tensor, target: Tensor
    ) -> Tensor:
        """Of each image (N,), from its n explanations.

        Mean cross-entropy; then sparsity, diversity and reconstruction, summed over explanations
        and divided by the number of code dimensions that these may change. The release divides
        the batch's sum by the batch's number, which is the same and keeps images apart. Images are
        compared in [-1, 1].
        """
        options = self.options
        count = target.shape[1]
        entropy = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        sparsity = moved.abs().sum(dim=(1, 2))
        units = functional.normalize(moved, dim=2)
        cosine = (units @ units.transpose(1, 2)).square()
        diversity = cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(dim=1)
        distance = 2 * (x[:, None] - decoded).abs().mean(dim=(3, 4)).sum(dim=(1, 2))
        total = (
            options.sparsity * sparsity
            + options.diversity * diversity
            + options.reconstruction * distance
        )
        return entropy.reshape(-1, count).mean(dim=1) + total / self.learnt.masks.sum()


def latent_masks(fisher: Tensor, explanations: int, mask: str, seed: int) -> Tensor:
    """Masks (n, d) of 0 and 1: the code dimensions that each explanation may change.

    Args:
        fisher: (d, d), the affinity of the dimensions.
        mask: as in the options.
    """
    size = len(fisher)
    if mask == "none" or explanations == 1:
        return torch.ones(explanations, size)
    if mask == "random":
        labels = torch.arange(size)[torch.randperm(size, generator=generator(seed))] % explanations
    else:
        labels = spectral_labels(fisher, explanations, seed)
    masks = functional.one_hot(labels, explanations).T.float()
    return 1 - masks if mask == "fisher-spectral-inverse" else masks


def spectral_labels(fisher: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster (d,) of each dimension of a Fisher matrix (d, d)."""
    from sklearn.cluster import SpectralClustering

    affinity = fisher - fisher.min()
    affinity = affinity / affinity.max().clamp(min=1e-12)
    clustering = SpectralClustering(
        clusters,
        affinity="precomputed",
        assign_labels="discretize",
        eigen_solver="arpack",
        random_state=seed % 2**32,
    )
    return torch.from_numpy(clustering.fit_predict(affinity.double().cpu().numpy())).long()


def choose(length: Tensor, probability: Tensor, reached: Tensor) -> Tensor:
    """The explanation (N,) that is returned, from lengths, target probabilities and whether the
    target is reached, each (N, n)."""
    shortest = length.masked_fill(~reached, torch.inf).argmin(dim=1)
    return torch.where(reached.any(dim=1), shortest, probability.argmax(dim=1))
