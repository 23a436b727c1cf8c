"""SEAN in a small version: an image from a map of its regions and one style code per region.

Zhu et al., SEAN: Image Synthesis with Semantic Region-Adaptive Normalization, CVPR 2020, the
generator of STEEX. Where no segmentation network is at hand the regions are clusters of pixels. The
regions of an image and its codes determine the drawing: the decoder sees no pixel, and there is no
noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.generators.base import Training
from counterlens.generators.beta_tcvae import halved
from counterlens.generators.parts.region_options import RegionGeneratorOptions
from counterlens.generators.parts.regions import RegionGenerator, one_hot
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import History, Losses, batches, cosine_decay, train

SMALLEST_SIDE = 8
CLUSTERED_PIXELS = 100_000
EXACT = "donot_use_mm_for_euclid_dist"


class Options(RegionGeneratorOptions):
    """Regions, network and training.

    Attributes:
        segmentation: `clusters` are k-means clusters of all training images' pixels by colour,
            blurred colour and, weakly, position; `strokes` splits grey images by intensity into
            background, rim and core of the strokes.
        regions: number of clusters.
        position: weight of the two coordinates, in [-1, 1], against standardised colours.
        blur: side in pixels, odd, of the square whose mean is the blurred colour.
        rim, core: least intensity of the two parts of a stroke.
        code_dim: size of a region's style code; 512 in the paper.
        width: channels at the highest resolution; four times as many at the lowest.
        adversarial: weight of a hinge loss against a discriminator of (regions, image).
        images: at most so many training images, the first; None is all.
        flip: mirror every second training image, for classes that look the same mirrored.
    """

    segmentation: Literal["clusters", "strokes"] = "clusters"
    regions: int = Field(default=8, gt=1)
    position: float = Field(default=0.5, ge=0)
    blur: int = Field(default=7, gt=0)
    rim: float = Field(default=0.1, gt=0, lt=1)
    core: float = Field(default=0.6, gt=0, lt=1)
    code_dim: int = Field(default=64, gt=0)
    width: int = Field(default=32, gt=0)
    adversarial: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=60, gt=0)
    batch_size: int = Field(default=32, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    images: int | None = Field(default=None, gt=1)
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"

    def region_count(self) -> int:
        """`regions`, or the three parts of strokes."""
        return 3 if self.segmentation == "strokes" else self.regions


class StyleEncoder(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to style maps (N, d, H / 2, W / 2) in [-1, 1]."""

    def __init__(self, channels: int, width: int, code_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, code_dim, 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Normalisation(nn.Module):
    """Instance normalisation with a scale and a shift from the map of regions and from the codes.

    A region's code goes through a linear layer of that region's own and is painted onto the
    region. `styled=False` leaves the codes out: SPADE (Park et al., CVPR 2019).
    """

    def __init__(self, channels: int, regions: int, code_dim: int, styled: bool) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Conv2d(regions, channels, 3, 1, 1)
        self.of_map = nn.Conv2d(channels, 2 * channels, 3, 1, 1)
        self.styled = styled
        if styled:
            self.per_region = nn.Parameter(torch.randn(regions, code_dim, channels) / code_dim**0.5)
            self.per_region_bias = nn.Parameter(torch.zeros(regions, channels))
            self.of_style = nn.Conv2d(channels, 2 * channels, 3, 1, 1)
            self.blend = nn.Parameter(torch.zeros(2))

    def forward(self, h: Tensor, layout: Tensor, codes: Tensor) -> Tensor:
        """Feature maps (N, channels, h, w); regions (N, R, h, w); codes (N, R, d)."""
        scale, shift = self.of_map(functional.relu(self.hidden(layout))).chunk(2, dim=1)
        if self.styled:
            style = torch.einsum("nrd,rdc->nrc", codes, self.per_region) + self.per_region_bias
            painted = torch.einsum("nrc,nrhw->nchw", style.relu(), layout)
            styled_scale, styled_shift = self.of_style(painted).chunk(2, dim=1)
            of_scale, of_shift = self.blend.sigmoid()
            scale = of_scale * styled_scale + (1 - of_scale) * scale
            shift = of_shift * styled_shift + (1 - of_shift) * shift
        return functional.group_norm(h, self.channels) * (1 + scale) + shift


class Block(nn.Module):
    """Residual block with a region-adaptive normalisation at the old and one at the new size."""

    def __init__(
        self, inputs: int, outputs: int, regions: int, code_dim: int, styled: bool
    ) -> None:
        super().__init__()
        self.before = Normalisation(inputs, regions, code_dim, styled)
        self.first = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.between = Normalisation(outputs, regions, code_dim, styled)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, h: Tensor, before: Tensor, after: Tensor, codes: Tensor) -> Tensor:
        """Feature maps; the regions at their size and at that of the result; the codes."""
        size = after.shape[2:]
        moved = self.first(functional.leaky_relu(self.before(h, before, codes), 0.2))
        moved = functional.interpolate(moved, size)
        moved = self.second(functional.leaky_relu(self.between(moved, after, codes), 0.2))
        return functional.interpolate(self.shortcut(h), size) + moved


class Decoder(nn.Module):
    """Regions (N, R, H, W) and codes (N, R, d) to images (N, C, H, W) in [-1, 1].

    The last block, at full resolution, takes no codes, as in the paper's network.
    """

    def __init__(
        self,
        options: Options,
        regions: int,
        sizes: list[tuple[int, int]],
        channels: int,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        widths = [options.width * min(4, 2**level) for level in reversed(range(len(sizes)))]
        self.first = nn.Conv2d(regions, widths[0], 3, 1, 1)
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, regions, options.code_dim, styled=number < len(sizes) - 1)
            for number, (inputs, outputs) in enumerate(pairwise([widths[0], *widths]))
        )
        self.image = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, layout: Tensor, codes: Tensor) -> Tensor:
        layouts = [functional.adaptive_avg_pool2d(layout, size) for size in self.sizes]
        h = self.first(layouts[0])
        for block, before, after in zip(self.blocks, [layouts[0], *layouts], layouts, strict=False):
            h = block(h, before, after, codes)
        return self.image(functional.leaky_relu(h, 0.2)).tanh()


class SEAN(RegionGenerator):
    """Regions without a segmentation network; that of `layout` may be replaced by part labels."""

    centroids: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.code_dim = options.code_dim
        sizes = [shape[1:]]
        while min(sizes[-1]) > SMALLEST_SIDE:
            sizes.append(halved(sizes[-1]))
        self.encoder = StyleEncoder(shape[0], options.width, options.code_dim)
        self.decoder = Decoder(options, self.regions, sizes[::-1], shape[0])
        if options.segmentation == "clusters":
            size = 2 * shape[0] + 2
            self.register_buffer("centroids", torch.randn(self.regions, size))
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("deviation", torch.ones(size))

    def layout(self, x: Tensor) -> Tensor:
        if self.options.segmentation == "strokes":
            intensity = x.mean(dim=1)
            labels = (intensity >= self.options.rim).long() + (intensity >= self.options.core)
            return one_hot(labels, self.regions)
        features = (self.pixel_features(x) - self.mean) / self.deviation
        # without matrix products, whose rounding depends on the batch
        distances = torch.cdist(features, self.centroids, compute_mode=EXACT)
        return majority(one_hot(distances.argmin(dim=3), self.regions))

    def pixel_features(self, x: Tensor) -> Tensor:
        """Colour, blurred colour and position (N, H, W, 2 C + 2) of every pixel."""
        radius = self.options.blur // 2
        padded = functional.pad(x, [radius] * 4, mode="replicate")
        blurred = functional.avg_pool2d(padded, self.options.blur, 1)
        height, width = (torch.linspace(-1, 1, side, device=x.device) for side in x.shape[2:])
        places = torch.stack(torch.meshgrid(height, width, indexing="ij"))
        places = places.expand(len(x), -1, -1, -1)
        return torch.cat([x, blurred, places], dim=1).movedim(1, 3)

    def codes(self, x: Tensor, layout: Tensor) -> Tensor:
        """Style codes (N, R, d): the style map's mean over each region; 0 where it is absent."""
        style = self.encoder(2 * x - 1)
        share = functional.adaptive_avg_pool2d(layout, style.shape[2:])
        total = torch.einsum("ndhw,nrhw->nrd", style, share.to(style.dtype))
        return total / share.sum(dim=(2, 3))[:, :, None].clamp(min=1e-6)

    def synthesise(self, layout: Tensor, codes: Tensor) -> Tensor:
        return (self.decoder(layout, codes) + 1) / 2

    def fit(self, training: Training) -> History:
        """First the clusters, then the networks: L1 in [-1, 1] and, if wished, a hinge loss."""
        device, options = training.device, self.options
        place(self, device).train()
        images = training.images[: options.images]
        images = images.to(device, memory_format=torch.channels_last)
        if options.segmentation == "clusters":
            self.cluster(images, training.seed)
        with torch.no_grad():
            labels = [self.layout(part).argmax(dim=1).byte() for part in images.split(512)]
        labels = torch.cat(labels)
        betas = (0.0, 0.9) if options.adversarial else (0.9, 0.999)
        optimizer = torch.optim.Adam(self.parameters(), options.lr, betas, fused=True)
        scheduler = cosine_decay(optimizer, options.epochs)
        parts = {"model": self, "optimizer": optimizer, "scheduler": scheduler}
        critic, for_critic = None, None
        if options.adversarial:
            torch.manual_seed(derive_seed(training.seed, "critic"))
            critic = place(discriminator(self.shape[0] + self.regions, options.width), device)
            for_critic = torch.optim.Adam(critic.parameters(), options.lr, betas, fused=True)
            parts |= {"critic": critic, "critic_optimizer": for_critic}

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            random = generator(derive_seed(seed, "flip"))
            for index in batches(len(images), options.batch_size, seed):
                index = index.to(device)
                x, layout = images[index], one_hot(labels[index].long(), self.regions)
                if options.flip:
                    mirrored = (torch.rand(len(x), generator=random) < 0.5).to(device)
                    mirrored = mirrored[:, None, None, None]
                    x = torch.where(mirrored, x.flip(3), x)
                    layout = torch.where(mirrored, layout.flip(3), layout)
                with autocast(device, options.precision):
                    made = self.synthesise(layout, self.codes(x, layout)).float()
                pixels = 2 * (x - made).abs().mean()
                losses, loss = {"pixels": pixels.detach()}, pixels
                if critic is not None and for_critic is not None:
                    real, fake = (torch.cat([image, layout], dim=1) for image in (x, made))
                    with autocast(device, options.precision):
                        on_real, on_fake = critic(real).float(), critic(fake.detach()).float()
                    hinge = (1 - on_real).relu().mean() + (1 + on_fake).relu().mean()
                    for_critic.zero_grad(set_to_none=True)
                    hinge.backward()
                    for_critic.step()
                    critic.requires_grad_(False)
                    with autocast(device, options.precision):
                        fooled = -critic(fake).float().mean()
                    critic.requires_grad_(True)
                    loss = loss + options.adversarial * fooled
                    losses |= {"discriminator": hinge.detach(), "adversarial": fooled.detach()}
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield losses

        history = train(
            "sean", options.epochs, epoch_losses, parts, training.checkpoint, [scheduler]
        )
        self.eval()
        return history

    @torch.no_grad()
    def cluster(self, images: Tensor, seed: int) -> None:
        """Shared centroids of the pixels of all training images (N, C, H, W)."""
        from sklearn.cluster import KMeans

        pixels = images.shape[2] * images.shape[3]
        random = generator(derive_seed(seed, "pixels"))
        chosen = torch.randint(len(images), (-(-CLUSTERED_PIXELS // pixels),), generator=random)
        features = self.pixel_features(images[chosen.to(images.device)]).flatten(0, 2).cpu()
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp(min=1e-3))
        self.deviation[-2:] = 1 / max(self.options.position, 1e-6)
        self.mean[-2:] = 0
        scaled = (features - self.mean.cpu()) / self.deviation.cpu()
        state = derive_seed(seed, "clusters") % 2**32
        clustering = KMeans(self.regions, n_init=2, random_state=state)  # pyright: ignore[reportArgumentType]
        means = clustering.fit(scaled.numpy())
        self.centroids.copy_(torch.from_numpy(means.cluster_centers_))


def majority(layout: Tensor) -> Tensor:
    """The region that most pixels of each 3x3 square belong to; its own where there are several."""
    counts = 9 * functional.avg_pool2d(functional.pad(layout, [1] * 4, mode="replicate"), 3, 1)
    return one_hot((counts.round() + 0.5 * layout).argmax(dim=1), layout.shape[1])


def discriminator(channels: int, width: int) -> nn.Sequential:
    """Images beside their regions (N, channels, H, W) to patches of logits."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.GroupNorm(2 * width, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, 1, 1),
    )
