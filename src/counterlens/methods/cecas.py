"""CECAS: causally guided adversarial steering (Qiao et al., 2025, arXiv 2507.09881).

A variational autoencoder splits the classifier's embedding into causal factors C, which decide its
answer, and spurious factors S (after O'Shaughnessy et al., NeurIPS 2020). The attack through the
diffusion filter pays for what a second classifier reads off S (Eq. 5-6); where an l1-guided attack
edits (Eq. 8), the diffusion model regenerates the result (Eq. 9).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import Identifier, MethodOptions
from counterlens.data.base import ImageSet
from counterlens.methods.base import BarePasses, Explanation, Method, Task
from counterlens.methods.parts.filtered_attack import (
    Attacked,
    FilteredAttack,
    children,
    edit_mask,
)
from counterlens.methods.parts.filtered_attack_options import FilteredAttackOptions
from counterlens.runtime.device import place
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import Checkpoint, History, Losses, batches, train

LEAST_CAUSAL, MOST_SPURIOUS = 0.8, 0.05


class Options(FilteredAttackOptions):
    """Attack and refinement (CECAS Table 5), and the training of the two networks on embeddings.

    Attributes:
        alpha: weight of the spurious-factor loss (Eq. 6).
        pre_explanation: id of an `ace` method of the same attack whose pre-explanation tells where
            to edit; None makes one.
        mask_of: whose changes may be edited, those of the l1-guided pre-explanation or of the
            causally guided explanation (an ablation).
        refine: which of the two is refined; `none` leaves the causally guided one as it is.
        scope: one training for each pair, or one for all.
        spurious: S is the VAE's, the VAE's less what C predicts of it linearly, or the part of the
            embedding that the classifier's last layer does not see.
        causal_dim, spurious_dim: sizes of C and S.
        fidelity: weight of reconstruction and divergence against the influence of C.
        causal_samples, spurious_samples: draws that estimate the influence.
        hidden: width of the hidden layers, at most twice the embedding's.
        epochs, epoch_steps: training of the VAE.
        restarts: at most so many further trainings of the VAE, from other parameters, while the
            influences of C and S miss their gates; the one with the largest of C is kept.
        auxiliary_epochs: training of the classifier of S.
    """

    label: ClassVar[str] = "CECAS"
    trainable: ClassVar[bool] = True
    requires_maps: ClassVar[bool] = True
    explaining: ClassVar[tuple[str, ...]] = (
        "ddpm",
        "schedule",
        "steps",
        "step_size",
        "epsilon",
        "iterations",
        "stochastic",
        "gradient",
        "l1",
        "threshold",
        "dilation",
        "resamplings",
        "stop_at",
        "images",
        "alpha",
        "pre_explanation",
        "mask_of",
        "refine",
    )

    threshold: float = Field(default=0.1, ge=0, lt=1)
    alpha: float = Field(default=0.2, ge=0)
    pre_explanation: Identifier | None = None
    mask_of: Literal["pre-explanation", "causal-explanation"] = "pre-explanation"
    refine: Literal["causal-explanation", "pre-explanation", "none"] = "causal-explanation"
    scope: Literal["pair", "all-pairs"] = "all-pairs"
    spurious: Literal["vae", "vae-decorrelated", "nullspace"] = "vae"
    causal_dim: int = Field(default=4, gt=0)
    spurious_dim: int = Field(default=12, gt=0)
    fidelity: float = Field(default=0.05, gt=0)
    causal_samples: int = Field(default=25, gt=1)
    spurious_samples: int = Field(default=100, gt=1)
    hidden: int = Field(default=512, gt=0)
    epochs: int = Field(default=40, gt=0)
    epoch_steps: int = Field(default=100, gt=0)
    restarts: int = Field(default=3, ge=0)
    batch_size: int = Field(default=64, gt=1)
    lr: float = Field(default=5e-4, gt=0)
    auxiliary_epochs: int = Field(default=20, gt=0)
    auxiliary_batch_size: int = Field(default=128, gt=1)
    auxiliary_lr: float = Field(default=2e-3, gt=0)

    @property
    def joint(self) -> bool:
        """One training for all pairs, unless each has its own."""
        return self.scope == "all-pairs"

    def builds_on(self) -> str | None:
        """The method whose pre-explanation is used."""
        return self.pre_explanation

    def cannot_build_on(self, other: MethodOptions) -> str | None:
        """The other must attack in the same way."""
        if other.kind != "ace":
            return f"is of kind '{other.kind}', not 'ace'"
        ours, theirs = self.model_dump(), other.model_dump()
        shared = FilteredAttackOptions.model_fields.keys() - MethodOptions.model_fields.keys()
        shared -= {"threshold", "dilation", "resamplings", "gradient"}
        different = sorted(key for key in shared if ours[key] != theirs[key])
        if theirs["l2"]:
            different.append("l2")
        return f"attacks with other values of {', '.join(different)}" if different else None


class Factors(nn.Module):
    """The VAE on embeddings (N, d), split into C and S, and the classifier of S.

    Embeddings are standardised inside, by their training images' mean and deviation.
    """

    mean: Tensor
    deviation: Tensor
    seen: Tensor
    predicted: Tensor

    def __init__(self, options: Options, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.options = options
        latent = options.causal_dim + options.spurious_dim
        hidden = min(options.hidden, 2 * embedding_dim)
        self.encoder = nn.Sequential(
            nn.Linear(embedding_dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, embedding_dim)
        )
        inputs = embedding_dim if options.spurious == "nullspace" else options.spurious_dim
        narrow = max(8, inputs // 2)
        layers: list[nn.Module] = [nn.Linear(inputs, narrow), nn.BatchNorm1d(narrow), nn.ReLU()]
        if inputs > 16:
            layers += [nn.Linear(narrow, inputs), nn.ReLU(), nn.Linear(inputs, classes)]
        else:
            layers.append(nn.Linear(narrow, classes))
        self.auxiliary = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("deviation", torch.ones(embedding_dim))
        # the projection on what the classifier's last layer sees, and S as C predicts it
        self.register_buffer("seen", torch.zeros(embedding_dim, embedding_dim))
        self.register_buffer("predicted", torch.zeros(options.causal_dim, options.spurious_dim))

    def standardise(self, features: Tensor) -> Tensor:
        """Embeddings (N, d) as the encoder takes them."""
        return (features - self.mean) / self.deviation

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (N, latent) of embeddings (N, d); C comes first, then S."""
        mean, log_variance = self.encoder(self.standardise(features)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents to embeddings (N, d)."""
        return self.decoder(latent) * self.deviation + self.mean

    def spurious(self, features: Tensor) -> Tensor:
        """S of embeddings (N, d), as the options define it; means, not samples."""
        if self.options.spurious == "nullspace":
            standard = self.standardise(features)
            return standard - standard @ self.seen
        mean, _ = self.encode(features)
        causal, spurious = mean.tensor_split([self.options.causal_dim], dim=1)
        if self.options.spurious == "vae-decorrelated":
            spurious = spurious - causal @ self.predicted
        return spurious


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -(probabilities * (probabilities + 1e-8).log()).sum(dim=-1)


class CECAS(Method):
    """Extras: `causal_explanation` and `pre_explanation` (N, C, H, W), `edit_mask` (N, 1, H, W),
    `attack_probability` and `spurious_loss` (N, iterations)."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.classes = sorted({label for pair in task.pairs for label in pair})
        self.attack = FilteredAttack(options, task)
        with torch.no_grad():
            embedded = task.classifier.embedding(torch.zeros(1, *task.shape, device=task.device))
        self.factors = Factors(options, embedded.shape[1], len(self.classes))
        self.restart = 0
        place(self.factors, task.device)

    def trained(self) -> nn.Module:
        return self.factors

    def probabilities(self, features: Tensor) -> Tensor:
        """The classifier's answers (N, K) from embeddings (N, d), among the K classes trained on.

        In a problem of many classes the others are left out, so that C explains the choice
        between the classes at hand.
        """
        return self.task.classifier.head(features)[:, self.classes].softmax(dim=1)

    @torch.inference_mode()
    def embeddings(self, images: Tensor) -> Tensor:
        """Of images (N, C, H, W): (N, d) on the device."""
        device = self.task.device
        parts = [
            self.task.classifier.embedding(part.to(device, memory_format=torch.channels_last))
            for part in images.split(512)
        ]
        return torch.cat(parts).clone()

    def influence(self, of_causal: bool, outer: int, inner: int, random: torch.Generator) -> Tensor:
        """Information flow from C (or S) to the classifier's answer, in nats.

        O'Shaughnessy et al. 2020, Eq. 3 and Algorithm 1: draws from the prior, `outer` of the
        factors in question, each with `inner` of the others.
        """
        options, device = self.options, self.task.device
        sizes = (options.causal_dim, options.spurious_dim)
        fixed, free = sizes if of_causal else sizes[::-1]
        held = torch.randn(outer, 1, fixed, generator=random).expand(-1, inner, -1)
        drawn = torch.randn(outer, inner, free, generator=random)
        latent = torch.cat([held, drawn] if of_causal else [drawn, held], dim=2).to(device)
        answers = self.probabilities(self.factors.decode(latent.flatten(0, 1)))
        mean = answers.reshape(outer, inner, -1).mean(dim=1)
        return entropy(mean.mean(dim=0)) - entropy(mean).mean()

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """First the VAE on the embeddings of the training images, then the classifier of S.

        The losses are the VAE's; the card tells how well the classifier of S does.
        """
        factors = self.factors
        features = self.embeddings(data.images)
        factors.mean.copy_(features.mean(dim=0))
        factors.deviation.copy_(features.std(dim=0).clamp(min=1e-3))
        most, kept = -1.0, factors.state_dict()
        history: History = []
        for restart in range(1 + self.options.restarts):
            attempt = self.fit_factors(features, restart, None if restart else checkpoint)
            causal, spurious = self.influences(features)
            split = causal >= LEAST_CAUSAL and spurious <= MOST_SPURIOUS
            if split or causal > most:
                most, history, self.restart = causal, attempt, restart
                kept = copy.deepcopy(factors.state_dict())
            if split:
                break
        factors.load_state_dict(kept)
        with torch.no_grad():
            self._relate(features)
        self.fit_auxiliary(features, data.labels)
        factors.eval()
        return history

    def fit_factors(
        self, features: Tensor, restart: int, checkpoint: Checkpoint | None = None
    ) -> History:
        """The VAE on embeddings (N, d), from the parameters that a restart begins with."""
        options, factors = self.options, self.factors
        own = self.task.seed
        if restart:
            own = derive_seed(own, "restart", restart)
        torch.manual_seed(own)
        for module in factors.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()
        factors.train()
        weights = [*factors.encoder.parameters(), *factors.decoder.parameters()]
        optimizer = torch.optim.Adam(weights, options.lr, betas=(0.5, 0.999))

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(own, "epoch", epoch)
            random = generator(derive_seed(seed, "latent"))
            for _ in range(options.epoch_steps):
                chosen = torch.randint(len(features), (options.batch_size,), generator=random)
                batch = features[chosen.to(features.device)]
                mean, log_variance = factors.encode(batch)
                noise = torch.randn(mean.shape, generator=random).to(mean.device)
                decoded = factors.decoder(mean + (log_variance / 2).exp() * noise)
                error = (factors.standardise(batch) - decoded).square().sum(dim=1).mean()
                divergence = mean.square() + log_variance.exp() - 1 - log_variance
                divergence = 0.5 * divergence.sum(dim=1).mean()
                influence = self.influence(
                    True, options.causal_samples, options.spurious_samples, random
                )
                optimizer.zero_grad(set_to_none=True)
                (options.fidelity * (error + divergence) - influence).backward()
                optimizer.step()
                yield {
                    "reconstruction": error.detach(),
                    "divergence": divergence.detach(),
                    "influence": influence.detach(),
                }

        parts = {"factors": factors, "optimizer": optimizer}
        return train("causal VAE", options.epochs, epoch_losses, parts, checkpoint)

    @torch.inference_mode()
    def influences(self, features: Tensor) -> tuple[float, float]:
        """Of C, as a share of the most that embeddings (N, d) allow; and of S, in nats."""
        random = generator(derive_seed(self.task.seed, "quality"))
        bound = float(entropy(self.probabilities(features).mean(dim=0)))
        causal = float(self.influence(True, 200, 100, random)) / bound
        return causal, float(self.influence(False, 200, 100, random))

    def _relate(self, features: Tensor) -> None:
        """What the two alternative definitions of S take from the classifier and from the VAE."""
        factors, classes = self.factors, self.classes
        head = self.task.classifier.head
        if self.options.spurious == "nullspace":
            assert isinstance(head, nn.Linear)
            rows = (head.weight[classes] - head.weight[classes].mean(dim=0)) * factors.deviation
            basis = torch.linalg.svd(rows, full_matrices=False)[2][: len(classes) - 1]
            factors.seen.copy_(basis.T @ basis)
        if self.options.spurious == "vae-decorrelated":
            mean, _ = factors.encode(features)
            causal, spurious = mean.tensor_split([self.options.causal_dim], dim=1)
            factors.predicted.copy_(torch.linalg.lstsq(causal, spurious).solution)

    def fit_auxiliary(self, features: Tensor, labels: Tensor) -> History:
        """Cross-entropy on the labels (N,), from S of the embeddings (N, d)."""
        options, factors = self.options, self.factors
        with torch.no_grad():
            spurious = factors.spurious(features)
        wanted = torch.searchsorted(torch.tensor(self.classes), labels).to(spurious.device)
        optimizer = torch.optim.Adam(
            factors.auxiliary.parameters(), options.auxiliary_lr, weight_decay=1e-4
        )

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(self.task.seed, "auxiliary", epoch)
            size = options.auxiliary_batch_size
            for index in batches(len(wanted), size, seed):
                if len(index) == 1:
                    continue
                chosen = index.to(wanted.device)
                logits = factors.auxiliary(spurious[chosen])
                loss = functional.cross_entropy(logits, wanted[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {"auxiliary": loss.detach()}

        parts = {"auxiliary": factors.auxiliary, "optimizer": optimizer}
        return train("classifier of S", options.auxiliary_epochs, epoch_losses, parts)

    @torch.inference_mode()
    def quality(self, data: ImageSet) -> Quality:
        """Whether the split did what it is for, on held-out images.

        The influence of S says nothing about the encoder: a collapsed S has none either. How well
        the classifier of S does is the informative value: at chance the spurious loss is inert,
        near the classifier's own accuracy it only forbids the flip.
        """
        options, factors = self.options, self.factors
        features = self.embeddings(data.images)
        mean, _ = factors.encode(features)
        answers = self.probabilities(features)
        decoded = self.probabilities(factors.decode(mean))
        causal, spurious = self.influences(features)
        wanted = torch.searchsorted(torch.tensor(self.classes), data.labels).to(mean.device)
        guessed = factors.auxiliary(factors.spurious(features)).argmax(dim=1)
        active = mean.var(dim=0) > 0.01
        values = {
            "answer_kept": float((answers.argmax(1) == decoded.argmax(1)).float().mean()),
            "causal_influence": causal,
            "spurious_influence": spurious,
            "active_causal": float(active[: options.causal_dim].sum()),
            "active_spurious": float(active[options.causal_dim :].sum()),
            "classifier_accuracy": float((answers.argmax(1) == wanted).float().mean()),
            "spurious_accuracy": float((guessed == wanted).float().mean()),
            "largest_class": float(wanted.bincount().max() / len(wanted)),
            "restart": float(self.restart),
        }
        return Quality(
            values,
            at_least={"answer_kept": 0.95, "causal_influence": LEAST_CAUSAL},
            at_most={"spurious_influence": MOST_SPURIOUS},
        )

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        of_causal, of_pre, of_refinement = children(randomness, 3)
        before = self.attack.run(x, target, of_pre, l1=self.options.l1).images
        return self._explain(x, target, before, of_causal, of_refinement)

    def explain_further(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
        earlier: Mapping[str, Tensor],
    ) -> Explanation:
        """As `explain`, with the pre-explanations that `ace` has made already."""
        of_causal, _, of_refinement = children(randomness, 3)
        return self._explain(x, target, earlier["pre_explanation"], of_causal, of_refinement)

    def _explain(
        self,
        x: Tensor,
        target: Tensor,
        before: Tensor,
        of_causal: Sequence[torch.Generator],
        of_refinement: Sequence[torch.Generator],
    ) -> Explanation:
        options = self.options
        causal = self.steer(x, target, of_causal)
        guide = before if options.mask_of == "pre-explanation" else causal.images
        edit = edit_mask(x, guide, options.threshold, options.dilation)
        counterfactual = causal.images
        if options.refine != "none":
            edited = causal.images if options.refine == "causal-explanation" else before
            counterfactual = self.attack.refine(edited, x, edit, of_refinement)
        with torch.inference_mode():
            answered = self.task.classifier(counterfactual).argmax(dim=1)
        extras = {
            "causal_explanation": causal.images,
            "pre_explanation": before,
            "edit_mask": edit,
            "attack_probability": causal.target_probability,
            "spurious_loss": causal.penalty,
        }
        return Explanation(counterfactual, answered == target, extras)

    def bare(self, x: Tensor, target: Tensor) -> BarePasses:
        """Of both attacks, the pre-explanation's and the causally guided one, and a refinement."""
        return self.attack.bare(x, attacks=2)

    def steer(self, x: Tensor, target: Tensor, randomness: Sequence[torch.Generator]) -> Attacked:
        """The first stage: the attack with the spurious-factor loss (Eq. 5-7)."""
        if not self.options.alpha:
            return self.attack.run(x, target, randomness)
        with torch.no_grad():
            reference = self.auxiliary(self.task.classifier.embedding(x)).softmax(dim=1)

        def penalty(features: Tensor, rows: Tensor) -> Tensor:
            return functional.cross_entropy(
                self.auxiliary(features), reference[rows], reduction="none"
            )

        return self.attack.run(
            x, target, randomness, penalty=penalty, penalty_weight=self.options.alpha
        )

    def auxiliary(self, features: Tensor) -> Tensor:
        """Logits (N, K) that the classifier of S reads off embeddings (N, d)."""
        return self.factors.auxiliary(self.factors.spurious(features))
