"""Every generator that is trained here, on square and other images: shapes, ranges, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterlens import plugins
from counterlens.config import GeneratorOptions
from counterlens.generators.base import Generator
from counterlens.generators.dcgan import decoder, encoder
from counterlens.generators.parts.diffusion import Diffusion, DiffusionFilter
from counterlens.generators.parts.regions import RegionGenerator

SIZES = [(16, 16), (17, 23), (28, 28), (28, 40), (32, 32), (64, 48)]
FROM_IMAGES: dict[str, dict[str, Any]] = {
    "vae": {"width": 4, "latent_dim": 8},
    "beta-tcvae": {"width": 4, "latent_dim": 8},
    "cem-autoencoder": {"width": 4},
    "latent-diffusion": {"classes": (0, 1), "widths": (8, 8), "channels": (8, 8), "groups": 8},
    "ddpm": {"channels": (8, 8, 8), "steps": 50},
    "sean": {"width": 4, "code_dim": 8},
}
FROM_LATENTS: dict[str, dict[str, Any]] = {
    "dcgan": {"width": 4, "latent_dim": 8},
    "pgan": {"width": 4, "latent_dim": 8},
}
ENCODER: dict[str, Any] = {"width": 4, "latent_dim": 8, "generator": "dcgan"}
RELEASED = {"biggan", "guided-diffusion", "released-sean", "stable-diffusion"}


def made(kind: str, size: tuple[int, int], content: dict[str, Any]) -> Generator:
    """A tiny generator of colour images that its options say it can make."""
    options = plugins.options_class("generators", kind).model_validate({"kind": kind, **content})
    assert isinstance(options, GeneratorOptions)
    assert options.unsuited(SimpleNamespace(shape=(3, *size))) is None  # type: ignore[arg-type]
    torch.manual_seed(1)
    return plugins.create("generators", options, Generator, (3, *size)).eval()


def drawn_again(model: Generator, x: Tensor) -> Tensor:
    """decode(encode(x)), or what a diffusion filter or a SEAN makes of x."""
    if isinstance(model, RegionGenerator):
        layout = model.layout(x)
        return model.synthesise(layout, model.codes(x, layout))
    if isinstance(model, Diffusion):
        through = DiffusionFilter(model, 10, 2)
        return through(x, torch.zeros(len(x), 2, *x.shape[1:])).clamp(0, 1)
    return model.decode(model.encode(x)).clamp(0, 1)


def test_every_generator_is_here() -> None:
    here = {*FROM_IMAGES, *FROM_LATENTS, "dcgan-encoder"}
    assert here | RELEASED == {*plugins.known("generators")}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FROM_IMAGES)
def test_from_images(kind: str, size: tuple[int, int]) -> None:
    model = made(kind, size, FROM_IMAGES[kind])
    x = torch.rand(2, 3, *size, requires_grad=True)
    found = drawn_again(model, x)
    assert found.shape == x.shape and ((found >= 0) & (found <= 1)).all()
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", FROM_LATENTS)
def test_from_latents_and_to_answers(kind: str, size: tuple[int, int]) -> None:
    model = made(kind, size, FROM_LATENTS[kind])
    z = torch.randn(2, 8, requires_grad=True)
    found = model.decode(z)
    assert found.shape == (2, 3, *size) and ((found >= 0) & (found <= 1)).all()
    answers = model.discriminate(found)
    assert answers.shape == (2,)
    (gradient,) = torch.autograd.grad(answers.sum(), z)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dcgan_s_encoder_sees_the_whole_image(size: tuple[int, int]) -> None:
    model = made("dcgan-encoder", size, ENCODER)
    x = torch.rand(2, 3, *size, requires_grad=True)
    z = model.encode(x)
    assert z.shape == (2, 8)
    (gradient,) = torch.autograd.grad(z.square().sum(), x)
    assert (gradient.abs().sum(dim=(0, 1)) > 0).all()


def maps(stack: nn.Sequential, x: Tensor, kind: type) -> list[tuple[int, ...]]:
    """Channels, height and width after each convolution."""
    found = []
    for layer in stack:
        x = layer(x)
        if isinstance(layer, kind):
            found.append(tuple(x.shape[1:]))
    return found


@pytest.mark.parametrize(
    ("size", "up", "down"),
    [
        # Radford et al., Figure 1, at width 1
        (
            (64, 64),
            [(8, 4, 4), (8, 8, 8), (4, 16, 16), (2, 32, 32), (1, 64, 64)],
            [(1, 32, 32), (2, 16, 16), (4, 8, 8), (8, 4, 4)],
        ),
        (
            (16, 23),
            [(8, 2, 3), (4, 4, 6), (2, 8, 12), (1, 16, 24)],
            [(1, 8, 11), (2, 4, 5), (4, 2, 2)],
        ),
    ],
)
def test_the_layers_of_dcgan_at_other_sizes(
    size: tuple[int, int], up: list[tuple[int, ...]], down: list[tuple[int, ...]]
) -> None:
    shape = (3, *size)
    z, x = torch.randn(2, 5, 1, 1), torch.rand(2, *shape)
    found = maps(decoder(5, 1, shape), z, nn.ConvTranspose2d)
    assert found[:-1] == up and found[-1] == (3, *up[-1][1:])
    assert maps(encoder(7, 1, shape), x, nn.Conv2d) == [*down, (7, 1, 1)]
