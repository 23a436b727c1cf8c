"""Mirror-CFE: reflection of the classifier's features across its decision boundary.

Looking in the Mirror, ICCV 2025. The boundary between two classes is a plane in the space of the
pooled features z. Moving z to its mirror image behind that plane exchanges the two classes; a
generator turns every point of the way into an image, using the feature maps of the query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from counterlens.classifiers.base import Classifier
from counterlens.config import MethodOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.methods.base import Explanation, Method, Task, Walk
from counterlens.methods.parts.mirror_generator import MirrorGenerator, patch_discriminator
from counterlens.methods.parts.reflection import lift, reflect, spatial_prior
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import (
    Checkpoint,
    History,
    Losses,
    batches,
    cosine_decay,
    moving_average,
    train,
)

RATIOS = (1e-3, 1e3)
"""Bounds of the ratio of latent distances: the source's own distance vanishes at k = 0."""


class Options(MethodOptions):
    """Hyper-parameters of Mirror-CFE.

    Attributes:
        point: where on the path the counterfactual stands. `first-cfe`: the first step whose image
            the classifier assigns to the target; `semi-factual`: the step before it;
            `projection`: k = 0.5; `reflection`: k = 1.
        grid: steps of the path, k from 0 to 1.
        scope: one generator for each pair of classes, or one for all pairs.
        reflection: `pairwise` mirrors at the boundary of the two classes (Eq. 1); `multi-class`
            exchanges their logits and keeps all others (supplement, section 7), in closed form;
            `multi-class-lbfgs` is its iterative solution.
        lift: add the change of z at every location (Eq. 16-17), or mirror each location by itself.
        ssc: the skip connections get edited features inside the mask (`full`), everywhere
            (`no-csp`), or the query's own features (`skip`).
        least_threshold, most_threshold: bounds of the mask's threshold 1 - k (Eq. 13).
        normalisation: of the class activation maps.
        alpha: tolerance of the triangulation loss.
        classification, adversarial, reconstruction, feature, triangulation: weights of the losses
            (Eq. 2-11).
        divergence: KL of the intended from the predicted probabilities, or the reverse.
        feature_norm: `scaled-l1` is the mean absolute error over the features' mean deviation.
        at_reflection: share of training samples at k = 1; the others are uniform in [0, 1].
        ema: decay of the generator's moving average, which makes the counterfactuals; less in the
            first steps.
        least_width: channels of a generator's stage, or as many as the classifier's if more.
    """

    label: ClassVar[str] = "Mirror-CFE"
    trainable: ClassVar[bool] = True
    requires_gap: ClassVar[bool] = True
    explaining: ClassVar[tuple[str, ...]] = ("point", "grid")

    point: Literal["first-cfe", "semi-factual", "projection", "reflection"] = "first-cfe"
    grid: int = Field(default=100, gt=1)
    scope: Literal["pair", "all-pairs"] = "pair"
    reflection: Literal["pairwise", "multi-class", "multi-class-lbfgs"] = "pairwise"
    lift: Literal["uniform", "per-location"] = "uniform"
    ssc: Literal["full", "no-csp", "skip"] = "full"
    least_threshold: float = Field(default=0.1, ge=0, le=1)
    most_threshold: float = Field(default=0.9, ge=0, le=1)
    normalisation: Literal["relu-max", "min-max"] = "relu-max"
    alpha: float = Field(default=0.2, ge=0, le=1)
    classification: float = Field(default=1.0, ge=0)
    adversarial: float = Field(default=1.0, ge=0)
    reconstruction: float = Field(default=1.0, ge=0)
    feature: float = Field(default=1.0, ge=0)
    triangulation: float = Field(default=1.0, ge=0)
    divergence: Literal["intended-predicted", "predicted-intended"] = "intended-predicted"
    feature_norm: Literal["scaled-l1", "l2"] = "scaled-l1"
    at_reflection: float = Field(default=0.1, ge=0, le=1)
    ema: float = Field(default=0.999, ge=0, lt=1)
    least_width: int = Field(default=24, gt=0)
    epochs: int = Field(default=30, gt=0)
    batch_size: int = Field(default=64, gt=0)
    lr: float = Field(default=2e-4, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"

    @property
    def joint(self) -> bool:
        """Whether one generator serves all pairs."""
        return self.scope == "all-pairs"

    @property
    def animated(self) -> bool:
        """The way to the first counterfactual."""
        return self.point == "first-cfe"


@dataclass
class Mirror:
    """N queries before their mirrors.

    Attributes:
        maps: the classifier's feature maps.
        z, end: (N, d), the pooled features and their reflection.
        end_map: (N, d, h, w), the lifted reflection.
        evidence: rows of the head of the source and of the target class, each (N, d).
        inward: what the generator computes once for all k; None until it is asked for.
    """

    maps: list[Tensor]
    z: Tensor
    end: Tensor
    end_map: Tensor
    evidence: tuple[Tensor, Tensor]
    inward: list[Tensor] | None = None

    def select(self, index: Tensor) -> Mirror:
        """Some of the queries."""
        return Mirror(
            [part[index] for part in self.maps],
            self.z[index],
            self.end[index],
            self.end_map[index],
            (self.evidence[0][index], self.evidence[1][index]),
            None if self.inward is None else [part[index] for part in self.inward],
        )


class MirrorCFE(Method):
    """Both directions of a pair, or of all pairs, by one generator."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.classifier: Classifier = task.classifier
        head = self.classifier.head
        self.weight, self.bias = head.weight.detach(), head.bias.detach()  # type: ignore[union-attr, operator]
        with torch.no_grad():
            maps = self.classifier.maps(torch.zeros(1, *task.shape, device=task.device))
        channels = [part.shape[1] for part in maps]
        sizes = [(part.shape[2], part.shape[3]) for part in maps]
        torch.manual_seed(task.seed)
        self.generator = MirrorGenerator(
            channels, sizes, task.shape, options.ssc, options.least_width
        )
        place(self.generator, task.device)

    def trained(self) -> nn.Module:
        return self.generator

    def mirror(self, maps: Sequence[Tensor], source: Tensor, target: Tensor) -> Mirror:
        """The reflections of queries whose feature maps the classifier gave."""
        options = self.options
        maps = [part.float() for part in maps]
        z = self.classifier.embed(maps[-1])
        end = reflect(z, source, target, self.weight, self.bias, options.reflection)
        evidence = (self.weight[source], self.weight[target])
        normal, offset = evidence[1] - evidence[0], self.bias[target] - self.bias[source]
        end_map = lift(maps[-1], end, normal, offset, options.lift)
        return Mirror(maps, z, end, end_map, evidence)

    def draw(self, mirror: Mirror, k: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] at positions k (N,) of the way."""
        options = self.options
        moved_map = torch.lerp(mirror.maps[-1], mirror.end_map, k[:, None, None, None])
        with torch.no_grad():
            threshold = (1 - k).clamp(options.least_threshold, options.most_threshold)
            mask = spatial_prior(moved_map, mirror.evidence, threshold, options.normalisation)
        inward = mirror.inward if mirror.inward is not None else self.generator.inward(mirror.maps)
        return self.generator(moved_map, mirror.maps[:-1], inward, mask)

    def intended(self, z: Tensor) -> Tensor:
        """Probabilities (..., classes) of features (..., d)."""
        return (z @ self.weight.T + self.bias).softmax(dim=-1)

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """The point of the path that the options ask for; `position` tells its k."""
        with torch.inference_mode():
            mirror = self.mirror(self.classifier.maps(x), source, target)
            mirror.inward = self.generator.inward(mirror.maps)
            if self.options.point in ("first-cfe", "semi-factual"):
                k, found = self.first_flip(mirror, target)
            else:
                k = torch.full_like(
                    mirror.z[:, 0], 0.5 if self.options.point == "projection" else 1
                )
                found = torch.ones(len(x), dtype=torch.bool, device=x.device)
            if self.options.point == "semi-factual":
                k = (k - 1 / (self.options.grid - 1)).clamp(min=0)
            images = self.draw(mirror, k)
        extras = {"position": k, "latent": mirror.z, "latent_counterfactual": mirror.end}
        return Explanation(images, found, extras)

    def first_flip(self, mirror: Mirror, target: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest k of the grid whose image is of the target class, and whether there is one.

        Queries that have flipped leave the batch; without a flip k is 1.
        """
        k = torch.ones_like(mirror.z[:, 0])
        found = torch.zeros_like(k, dtype=torch.bool)
        waiting = torch.arange(len(k), device=k.device)
        for step in torch.linspace(0, 1, self.options.grid).tolist():
            if not len(waiting):
                break
            images = self.draw(mirror, torch.full((len(waiting),), step, device=k.device))
            flipped = self.classifier(images).argmax(dim=1) == target[waiting]
            k[waiting[flipped]] = step
            found[waiting[flipped]] = True
            left = torch.nonzero(~flipped).flatten()
            if len(left) < len(waiting):
                mirror, waiting = mirror.select(left), waiting[left]
        return k, found

    def path(self, x: Tensor, source: Tensor, target: Tensor) -> Walk | None:
        """The whole way on the grid, from reconstruction (k = 0) to reflection (k = 1).

        It belongs to the first counterfactual; the other points lie on the same way and have none.
        """
        if self.options.point != "first-cfe":
            return None
        with torch.inference_mode():
            mirror = self.mirror(self.classifier.maps(x), source, target)
            mirror.inward = self.generator.inward(mirror.maps)
            position = torch.linspace(0, 1, self.options.grid, device=x.device)
            images = [self.draw(mirror, step.expand(len(x))) for step in position]
            features = torch.lerp(mirror.z[:, None], mirror.end[:, None], position[None, :, None])
            return Walk(torch.stack(images, dim=1), position, self.intended(features), features)

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Train the generator against the frozen classifier and a discriminator."""
        options, task = self.options, self.task
        training = Training(self, data)
        averaged = AveragedModel(
            self.generator, multi_avg_fn=moving_average(options.ema), use_buffers=True
        )
        betas = (0.5, 0.999)
        optimizer = torch.optim.Adam(self.generator.parameters(), options.lr, betas, fused=True)
        scheduler = cosine_decay(optimizer, options.epochs)
        parts = {
            "generator": self.generator,
            "averaged": averaged,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        critic = patch_discriminator(task.shape) if options.adversarial else None
        critic_optimizer = None
        if critic is not None:
            place(critic, task.device).train()
            critic_optimizer = torch.optim.Adam(critic.parameters(), options.lr, betas, fused=True)
            parts |= {"critic": critic, "critic_optimizer": critic_optimizer}

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            random = generator(derive_seed(task.seed, "epoch", epoch))
            order = batches(len(training), options.batch_size, derive_seed(task.seed, epoch))
            for step, index in enumerate(order):
                batch = training.batch(index, random, from_target=bool(step % 2))
                losses = training.losses(batch, critic)
                loss = sum(getattr(options, name) * value for name, value in losses.items())
                assert isinstance(loss, Tensor)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                averaged.update_parameters(self.generator)
                if critic is not None and critic_optimizer is not None:
                    losses["discriminator"] = training.critic_step(batch, critic, critic_optimizer)
                yield {name: value.detach() for name, value in losses.items()}

        self.generator.train()
        history = train("mirror-cfe", options.epochs, epoch_losses, parts, checkpoint, [scheduler])
        self.generator.load_state_dict(averaged.module.state_dict())
        self.generator.requires_grad_(False).eval()
        return history


@dataclass
class Batch:
    """What one step is computed from; images are float32 (N, C, H, W) in [0, 1].

    Attributes:
        x, source, target: queries, the classes predicted for them and the classes to reach.
        k: (N,) positions.
        anchor, anchor_z: a real image of the target class, and its features.
        own_anchor, own_anchor_z: another real image of the source class, and its features.
        rebuilt, rebuilt_source, rebuilt_target: the images to reconstruct at k = 0.
        drawn: images at k, after the step has drawn them.
    """

    x: Tensor
    source: Tensor
    target: Tensor
    k: Tensor
    anchor: Tensor
    anchor_z: Tensor
    own_anchor: Tensor
    own_anchor_z: Tensor
    rebuilt: Tensor
    rebuilt_source: Tensor
    rebuilt_target: Tensor
    drawn: Tensor | None = None


class Training:
    """The training images with the classifier's answers, and the losses of a step.

    Images that the classifier assigns to a class outside the pairs are left out. The source of a
    query is the class predicted for it, since the explanation is of the classifier; anchors are
    correctly predicted images.

    Raises:
        UserError: the classifier gets hardly any image of a class right.
    """

    def __init__(self, method: MirrorCFE, data: ImageSet) -> None:
        self.method = method
        pairs = method.task.pairs
        device = method.task.device
        partners: dict[int, list[int]] = {}
        for first, second in pairs:
            partners.setdefault(first, []).append(second)
            partners.setdefault(second, []).append(first)
        embedded: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for part in data.images.split(512):
                z = method.classifier.embedding(
                    part.to(device, memory_format=torch.channels_last)
                ).float()
                embedded.append((z, method.intended(z).argmax(dim=1).cpu()))
        z = torch.cat([part for part, _ in embedded])
        predicted = torch.cat([part for _, part in embedded])
        kept = torch.isin(predicted, torch.tensor(sorted(partners)))
        labels = data.labels[kept]
        self.anchors = {
            label: torch.nonzero((labels == label) & (predicted[kept] == label)).flatten()
            for label in partners
        }
        for label, rows in self.anchors.items():
            if len(rows) < 2:
                raise UserError(
                    f"mirror-cfe: the classifier gets {len(rows)} training images of class {label} "
                    "right, at least 2 are needed; train it longer, or name other pairs"
                )
        self.images = data.images[kept].to(device, memory_format=torch.channels_last)
        self.z = z[kept.to(device)].clone()
        self.predicted = predicted[kept].clone()
        self.deviation = self.z.std(dim=0).mean()
        self.partners = {label: torch.tensor(others) for label, others in partners.items()}

    def __len__(self) -> int:
        return len(self.predicted)

    def batch(self, index: Tensor, random: torch.Generator, *, from_target: bool) -> Batch:
        """Targets, positions and anchors of some training images, drawn with `random`.

        Args:
            index: int64 (N,), which images.
            random: a CPU generator.
            from_target: reconstruct the anchors of the target class instead of the queries.
        """
        device, options = self.method.task.device, self.method.options
        source = self.predicted[index]
        target = pick(source, self.partners, random)
        k = torch.rand(len(index), generator=random)
        k[torch.rand(len(index), generator=random) < options.at_reflection] = 1.0
        anchor = pick(target, self.anchors, random).to(device)
        own_anchor = pick(source, self.anchors, random).to(device)
        x, source, target = self.images[index.to(device)], source.to(device), target.to(device)
        real = self.images[anchor]
        return Batch(
            x,
            source,
            target,
            k.to(device),
            real,
            self.z[anchor],
            self.images[own_anchor],
            self.z[own_anchor],
            real if from_target else x,
            target if from_target else source,
            source if from_target else target,
        )

    def losses(self, batch: Batch, critic: nn.Module | None) -> Losses:
        """The unweighted losses of the generator (Eq. 2-11); images are compared in [-1, 1]."""
        method, options = self.method, self.method.options
        count = len(batch.x)
        images = torch.cat([batch.x, batch.rebuilt])
        k = torch.cat([batch.k, torch.zeros_like(batch.k)])
        with torch.no_grad():
            with autocast(images.device, options.precision):
                maps = method.classifier.maps(images)
            source = torch.cat([batch.source, batch.rebuilt_source])
            target = torch.cat([batch.target, batch.rebuilt_target])
            mirror = method.mirror(maps, source, target)
        with autocast(images.device, options.precision):
            drawn = method.draw(mirror, k)
            z_drawn = method.classifier.embedding(drawn).float()
        z_k = torch.lerp(mirror.z, mirror.end, k[:, None]).float()
        batch.drawn = drawn[:count]
        losses = {
            "classification": self.classification(z_k, z_drawn),
            "reconstruction": 2 * (drawn[count:] - batch.rebuilt).abs().mean(),
            "feature": self.feature(z_k[:count], z_drawn[:count]),
        }
        if options.triangulation:
            losses["triangulation"] = self.triangulation(batch, mirror.z[:count], z_k[:count])
        if critic is not None:
            critic.requires_grad_(False)
            with autocast(images.device, options.precision):
                logits = critic(batch.drawn).float()
            losses["adversarial"] = functional.softplus(-logits).mean()
        return losses

    def classification(self, z: Tensor, z_drawn: Tensor) -> Tensor:
        """KL divergence between intended and predicted probabilities (Eq. 2)."""
        wanted, said = (
            (part @ self.method.weight.T + self.method.bias).log_softmax(dim=1)
            for part in (z, z_drawn)
        )
        if self.method.options.divergence == "predicted-intended":
            wanted, said = said, wanted
        return functional.kl_div(said, wanted, reduction="batchmean", log_target=True)

    def feature(self, z: Tensor, z_drawn: Tensor) -> Tensor:
        """Distance between intended and actual features (Eq. 5)."""
        if self.method.options.feature_norm == "l2":
            return (z - z_drawn).norm(dim=1).mean()
        return (z - z_drawn).abs().mean() / self.deviation

    def triangulation(self, batch: Batch, z: Tensor, z_k: Tensor) -> Tensor:
        """Distances of images in the ratio of the distances of their features (Eq. 6-11).

        The anchor is of the target class from k = 0.5 on, of the source class before.
        """
        assert batch.drawn is not None
        beyond = batch.k >= 0.5
        anchor_z = torch.where(beyond[:, None], batch.anchor_z, batch.own_anchor_z)
        anchor = torch.where(beyond[:, None, None, None], batch.anchor, batch.own_anchor)
        ratio = (z_k - anchor_z).norm(dim=1) / (z - z_k).norm(dim=1).clamp(min=1e-12)
        ratio = ratio.clamp(*RATIOS)
        moved = 2 * (batch.drawn - batch.x).abs().mean(dim=(1, 2, 3))
        expected = 2 * (batch.drawn - anchor).abs().mean(dim=(1, 2, 3)) / ratio
        alpha = self.method.options.alpha
        too_near = ((1 - alpha) * expected - moved).clamp(min=0)
        too_far = (moved - (1 + alpha) * expected).clamp(min=0)
        return (too_near + too_far).mean()

    def critic_step(
        self, batch: Batch, critic: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        """One step of the discriminator: queries and anchors against drawn images."""
        assert batch.drawn is not None
        critic.requires_grad_(True)
        with autocast(batch.x.device, self.method.options.precision):
            logits = critic(torch.cat([batch.x, batch.anchor, batch.drawn.detach()])).float()
        real, fake = logits[: 2 * len(batch.x)], logits[2 * len(batch.x) :]
        loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()


def pick(labels: Tensor, choices: dict[int, Tensor], random: torch.Generator) -> Tensor:
    """For each label (N,) one of its choices, all equally likely."""
    where = torch.rand(len(labels), generator=random)
    picked = torch.empty(len(labels), dtype=torch.long)
    for label, options in choices.items():
        mine = labels == label
        picked[mine] = options[(where[mine] * len(options)).long()]
    return picked
