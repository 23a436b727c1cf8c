"""Progressive GAN: grown from 4x4 to the images' size, one doubling after the other.

Karras et al., ICLR 2018: equalised learning rate, pixelwise feature normalisation, the standard
deviation of the minibatch, WGAN-GP with drift, a moving average of the decoder. C3LT uses one on
Fashion-MNIST, whose sizes are unpublished; these are small.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from counterlens.config import GeneratorOptions
from counterlens.generators.base import Generator, Training, draw_samples, sample_quality
from counterlens.runtime.device import autocast, place
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.sizes import Padding
from counterlens.runtime.training import History, Losses, batches, moving_average, train

LOWEST = 4  # side of the first stage


class Options(GeneratorOptions):
    """Hyper-parameters of the progressive GAN.

    Attributes:
        width: channels at full size; each smaller size has twice as many, at most four times.
        last_stage: share of the training that is spent at full size; the smaller sizes share the
            rest equally. The first `fade_in` of each stage blends it in.
        penalty, drift: weights of the gradient penalty and of the squared answers on real images.
        ema: decay of the decoder's moving average, less in the first steps.
        precision: of all passes but the gradient penalty and the critic's last layers, which are
            in float32.
    """

    uses_classifier: ClassVar[bool] = True
    has_discriminator: ClassVar[bool] = True

    latent_dim: int = Field(default=128, gt=0)
    width: int = Field(default=32, gt=0)
    epochs: int = Field(default=100, gt=0)
    batch_size: int = Field(default=64, gt=1)
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.0, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    last_stage: float = Field(default=0.4, gt=0, lt=1)
    fade_in: float = Field(default=0.5, ge=0, lt=1)
    penalty: float = Field(default=10.0, ge=0)
    drift: float = Field(default=1e-3, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"


# Layers


class EqualisedConv2d(nn.Conv2d):
    """A convolution of stride 1 whose weights N(0, 1) are scaled by He's constant when used."""

    def __init__(self, inputs: int, outputs: int, size: int, gain: float = math.sqrt(2)) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.scale = gain / math.sqrt(inputs * size**2)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.scale, self.bias)


class EqualisedLinear(nn.Linear):
    """A linear layer whose weights N(0, 1) are scaled by He's constant when used."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2)) -> None:
        super().__init__(inputs, outputs)
        self.scale = gain / math.sqrt(inputs)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    """Every pixel's feature vector, or every latent, is brought to a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MinibatchDeviation(nn.Module):
    """One more channel: the features' standard deviation over the batch, averaged.

    In evaluation mode the mean of the training's batches takes its place, so that an answer does
    not depend on the batch.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            deviation = (x.float().var(dim=0, correction=0) + 1e-8).sqrt().mean()
            with torch.no_grad():
                self.mean.lerp_(deviation, 0.01)
        else:
            deviation = self.mean
        return torch.cat([x, deviation.to(x.dtype).expand(len(x), 1, *x.shape[2:])], dim=1)


def twice(x: Tensor) -> Tensor:
    """Every pixel as four; unlike `interpolate` its gradient repeats exactly on a GPU."""
    count, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    grown = rows.expand(count, height, 2, width, 2, channels)
    return grown.reshape(count, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def leaky() -> nn.LeakyReLU:
    """The activation of every layer."""
    return nn.LeakyReLU(0.2)


def initialise(module: nn.Module) -> None:
    """Weights N(0, 1), biases 0."""
    if isinstance(module, EqualisedConv2d | EqualisedLinear):
        nn.init.normal_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# Networks, grown to `stage` (0 is the smallest size) of which `share` has faded in


class Decoder(nn.Module):
    """Latents (N, d) to images in [-1, 1] of the stage's size."""

    def __init__(
        self, latent_dim: int, widths: list[int], lowest: tuple[int, int], channels: int
    ) -> None:
        super().__init__()
        first = widths[0]
        self.start = nn.Sequential(
            PixelNorm(),
            EqualisedLinear(latent_dim, first * lowest[0] * lowest[1], math.sqrt(2) / 4),
            nn.Unflatten(1, (first, *lowest)),
            leaky(),
            PixelNorm(),
            *self.layer(first, first),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*self.layer(inputs, outputs), *self.layer(outputs, outputs))
            for inputs, outputs in pairwise(widths)
        )
        self.to_image = nn.ModuleList(EqualisedConv2d(width, channels, 1, 1.0) for width in widths)

    @staticmethod
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        """3x3 convolution, activation, normalisation."""
        return [EqualisedConv2d(inputs, outputs, 3), leaky(), PixelNorm()]

    def forward(self, z: Tensor, stage: int, share: float) -> Tensor:
        hidden = before = self.start(z)
        for block in self.blocks[:stage]:
            before, hidden = hidden, block(twice(hidden))
        image = self.to_image[stage](hidden).float().tanh()
        if stage and share < 1:
            smaller = self.to_image[stage - 1](before).float().tanh()
            image = torch.lerp(twice(smaller), image, share)
        return image


class Critic(nn.Module):
    """Images in [-1, 1] of the stage's size to logits (N,)."""

    def __init__(self, widths: list[int], lowest: tuple[int, int], channels: int) -> None:
        super().__init__()
        first = widths[0]
        self.from_image = nn.ModuleList(
            nn.Sequential(EqualisedConv2d(channels, width, 1), leaky()) for width in widths
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                EqualisedConv2d(outputs, outputs, 3),
                leaky(),
                EqualisedConv2d(outputs, inputs, 3),
                leaky(),
                nn.AvgPool2d(2),
            )
            for inputs, outputs in pairwise(widths)
        )
        self.end = nn.Sequential(
            MinibatchDeviation(),
            EqualisedConv2d(first + 1, first, 3),
            leaky(),
            nn.Flatten(),
            EqualisedLinear(first * lowest[0] * lowest[1], first),
            leaky(),
            EqualisedLinear(first, 1, 1.0),
        )

    def forward(self, x: Tensor, stage: int, share: float) -> Tensor:
        hidden = self.from_image[stage](x)
        for number in range(stage, 0, -1):
            hidden = self.blocks[number - 1](hidden)
            if number == stage and share < 1:
                smaller = self.from_image[stage - 1](functional.avg_pool2d(x, 2))
                hidden = torch.lerp(smaller, hidden, share)
        with autocast(x.device, "fp32"):  # bfloat16 would round the answers, which have no bound
            return self.end(hidden.float()).flatten()


class PGAN(Generator):
    """Decoder and critic; images are padded with black to 4 x 2^k and work in [-1, 1] inside.

    Latents are brought to the sphere of radius sqrt(d) before they are decoded, so that only their
    direction counts.
    """

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.latent_dim = options.latent_dim
        channels, *size = shape
        self.stages = max(0, math.ceil(math.log2(max(size) / LOWEST)))
        self.padding = Padding(size, 2**self.stages)
        height, width = self.padding.padded
        lowest = (height >> self.stages, width >> self.stages)
        widths = [
            options.width * min(4, 2 ** (self.stages - stage)) for stage in range(self.stages + 1)
        ]
        self.decoder = Decoder(options.latent_dim, widths, lowest, channels).apply(initialise)
        self.critic = Critic(widths, lowest, channels).apply(initialise)

    def decode(self, z: Tensor) -> Tensor:
        return (self.padding.crop(self.decoder(z, self.stages, 1.0)) + 1) / 2

    def discriminate(self, x: Tensor) -> Tensor:
        return self.critic(self.padded(x), self.stages, 1.0)

    def padded(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] as the critic sees them, in [-1, 1]."""
        return self.padding.pad(2 * x - 1, value=-1.0)

    def growth(self, progress: float) -> tuple[int, float]:
        """Stage, and how much of it has faded in, after a share of the training."""
        growing = 1 - self.options.last_stage
        if self.stages == 0 or progress >= growing:
            stage, within = self.stages, (progress - growing) / self.options.last_stage
        else:
            stage, within = divmod(progress / growing * self.stages, 1)
        if stage == 0 or within >= self.options.fade_in:
            return int(stage), 1.0
        return int(stage), within / self.options.fade_in

    def fit(self, training: Training) -> History:
        """Alternate one step of the critic and one of the decoder per batch, growing meanwhile."""
        device, options = training.device, self.options
        torch.manual_seed(derive_seed(training.seed, "initial"))
        self.apply(initialise)
        place(self, device).train()
        decoder = copy.deepcopy(self.decoder)
        averaged = AveragedModel(decoder, multi_avg_fn=moving_average(options.ema))
        images = training.images.to(device, memory_format=torch.channels_last)
        betas = (options.beta1, options.beta2)
        for_decoder = torch.optim.Adam(decoder.parameters(), options.lr, betas, fused=True)
        for_critic = torch.optim.Adam(self.critic.parameters(), options.lr, betas, fused=True)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            noise = generator(derive_seed(seed, "latent"))
            drawn = list(batches(len(images), options.batch_size, seed))
            for step, index in enumerate(drawn):
                if len(index) == 1:
                    continue
                stage, share = self.growth((epoch + step / len(drawn)) / options.epochs)
                real = shrink(self.padded(images[index.to(device)]), self.stages - stage, share)
                z = torch.randn(len(index), self.latent_dim, generator=noise).to(device)
                mixture = torch.rand(len(index), 1, 1, 1, generator=noise).to(device)
                with autocast(device, options.precision):
                    fake = decoder(z, stage, share)
                    on_real = self.critic(real, stage, share)
                    on_fake = self.critic(fake.detach(), stage, share)
                mixed = torch.lerp(real, fake.detach(), mixture)
                penalty = gradient_penalty(self.critic, mixed, stage, share)
                distance = on_real.mean() - on_fake.mean()
                critic = options.penalty * penalty - distance
                critic = critic + options.drift * on_real.square().mean()
                for_critic.zero_grad(set_to_none=True)
                critic.backward()
                for_critic.step()
                self.critic.requires_grad_(False)
                with autocast(device, options.precision):
                    loss = -self.critic(fake, stage, share).mean()
                for_decoder.zero_grad(set_to_none=True)
                loss.backward()
                for_decoder.step()
                self.critic.requires_grad_(True)
                averaged.update_parameters(decoder)
                yield {
                    "distance": distance.detach(),
                    "penalty": penalty.detach(),
                    "generator": loss.detach(),
                }

        parts = {"critic": self.critic, "decoder": decoder, "averaged": averaged}
        parts |= {"critic_optimizer": for_critic, "decoder_optimizer": for_decoder}
        history = train("pgan", options.epochs, epoch_losses, parts, training.checkpoint)
        self.decoder.load_state_dict(averaged.module.state_dict())
        self.eval()
        return history

    def quality(self, training: Training) -> Quality:
        """Share of samples the classifier is sure of, and how evenly they cover the classes."""
        return sample_quality(draw_samples(self, 1024, training), training)

    def sheet(self, training: Training) -> Tensor:
        return draw_samples(self, 64, training)


def shrink(x: Tensor, halvings: int, share: float) -> Tensor:
    """Real images of a smaller stage; while it fades in, blended with those of the one before."""
    if halvings:
        x = functional.avg_pool2d(x, 2**halvings)
    if share < 1:
        x = torch.lerp(twice(functional.avg_pool2d(x, 2)), x, share)
    return x


def gradient_penalty(critic: nn.Module, x: Tensor, *grown: float) -> Tensor:
    """Mean of (||d critic(x) / dx|| - 1)^2 over images (N, C, H, W) (Gulrajani et al., Eq. 3)."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x, *grown).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
