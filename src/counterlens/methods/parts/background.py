"""Phase 2 of ECED: what lies outside the region is reproduced faithfully (Algorithm 2).

For each image its background latent and a copy of the decoder are tuned together, with the noise
present that the last blending of phase 3 leaves behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from counterlens.generators.parts.diffusion import draw
from counterlens.generators.parts.latent import LatentDecoder, LatentDiffusion
from counterlens.methods.parts.eced_options import BackgroundOptions, SamplerOptions


class Decoders:
    """One decoder for all images, or a copy for each; the copies run as one batch.

    Args:
        decoder: latents (N, c, h, w) to images (N, C, H, W).
        copies: for each parameter's name its values (N, ...) by image; None shares the decoder.
    """

    def __init__(self, decoder: LatentDecoder, copies: Mapping[str, Tensor] | None) -> None:
        self.decoder, self.copies = decoder, copies

    def __call__(self, z: Tensor, rows: Tensor) -> Tensor:
        """Images of latents (n, c, h, w) by the decoders of the images `rows` (n,)."""
        if self.copies is None:
            return self.decoder(z)

        def decode(weights: dict[str, Tensor], one: Tensor) -> Tensor:
            return functional_call(self.decoder, weights, one[None])[0]

        return vmap(decode)({name: value[rows] for name, value in self.copies.items()}, z)


@dataclass(frozen=True)
class Background:
    """The end of phase 2 on N images.

    Attributes:
        query: z^F (N, c, h, w), the encoded queries.
        latent: z^bg, equal to z^F where the mask is 1.
        decoders: D*.
    """

    query: Tensor
    latent: Tensor
    decoders: Decoders

    def initial(self, mask: Tensor) -> Tensor:
        """z^init: the query in the region (N, 1, h, w), the background latent outside."""
        return torch.where(mask.bool(), self.query, self.latent)


class BackgroundKeeper:
    """Adam on z^bg and on the weights of D*, both from the same pass."""

    def __init__(
        self, model: LatentDiffusion, options: BackgroundOptions, sampler: SamplerOptions
    ) -> None:
        self.model, self.options = model, options
        self.noisy = sampler.background_level == "t"

    def fit(
        self, x: Tensor, mask: Tensor, region: Tensor, randomness: Sequence[torch.Generator]
    ) -> Background:
        """Tune the background of images.

        The losses are summed over the images, and each has its own parameters: one image's
        result depends on no other's.

        Args:
            x: queries (N, C, H, W) in [0, 1].
            mask: the region in the latents, (N, 1, h, w) of 0 and 1.
            region: the same in pixels, (N, 1, H, W).
            randomness: one generator per image.
        """
        options = self.options
        with torch.no_grad():
            query = self.model.encode(x)
        decoder = self.model.decoder()
        latent = query.clone()
        if options.background == "off":
            return Background(query, latent, Decoders(decoder, None))
        groups: list[dict[str, object]] = []
        copies: dict[str, Tensor] | None = None
        if options.background in ("z", "both"):
            latent.requires_grad_(True)
            groups.append({"params": [latent], "lr": options.latent_lr})
        if options.background in ("decoder", "both"):
            copies = {
                name: value.detach().expand(len(x), *value.shape).clone().requires_grad_(True)
                for name, value in decoder.named_parameters()
            }
            groups.append({"params": [*copies.values()], "lr": options.decoder_lr})
        decoders = Decoders(decoder, copies)
        optimizer = torch.optim.Adam(groups)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(options.background_updates):
            initial = query * mask + latent * (1 - mask)
            seen = self.seen(initial, randomness)
            error = (decoders(seen, rows) - x).square().mean(dim=1, keepdim=True)
            loss = masked_mean(error, 1 - region)
            loss = loss + options.foreground_weight * masked_mean(error, region)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
        if copies is not None:
            copies = {name: value.detach() for name, value in copies.items()}
        return Background(query, latent.detach(), Decoders(decoder, copies))

    def seen(self, z: Tensor, randomness: Sequence[torch.Generator]) -> Tensor:
        """Latents as phase 3 will hand them to the decoder: with the noise of level 0."""
        if not self.noisy:
            return z
        return self.model.noised(z, draw(randomness, z.shape[1:], z), 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (N, 1, H, W) where a mask of 0 and 1 is 1, (N,); 0 where it is 1 nowhere."""
    total = (values * mask).flatten(1).sum(dim=1)
    return total / mask.flatten(1).sum(dim=1).clamp(min=1)
