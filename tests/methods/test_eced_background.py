"""ECED, phase 2: how the rest of the image is kept."""

from __future__ import annotations

import copy

import pytest
import torch

from counterlens.methods.eced import ECED
from counterlens.methods.parts.background import masked_mean
from counterlens.runtime.seeding import generator

from .eced_setup import randomness


@pytest.mark.parametrize("mode", ["z", "decoder", "both"])
def test_the_background_is_reproduced_better(create, queries, mode: str) -> None:
    """Eq. 12, on noise that was not seen; the networks stay as they are."""
    x = queries[0]
    method: ECED = create("eced", background=mode, background_updates=30, decoder_lr=1e-3)
    before = copy.deepcopy(method.model.state_dict())
    mask = torch.zeros(6, 1, 8, 8)
    mask[:, :, 2:5, 2:5] = 1
    region = method.region.in_pixels(mask)
    background = method.keeper.fit(x, mask, region, randomness(6))
    rows = torch.arange(6)
    losses = []
    for initial, decode in (
        (background.query, lambda z: method.model.decode(z)),
        (background.initial(mask), lambda z: background.decoders(z, rows)),
    ):
        with torch.no_grad():
            seen = method.keeper.seen(initial, randomness(6, seed=1))
            error = (decode(seen) - x).square().mean(dim=1, keepdim=True)
            losses.append(masked_mean(error, 1 - region))
    assert (losses[1] < 0.9 * losses[0]).all()
    for key, value in method.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(background.latent * mask, background.query * mask)
    assert (mode == "decoder") == torch.equal(background.latent, background.query)
    assert (mode == "z") == (background.decoders.copies is None)


def test_copies_decode_as_the_decoder_does(create, queries) -> None:
    method: ECED = create("eced", background_updates=1, decoder_lr=1e-12, latent_lr=1e-12)
    mask = torch.zeros(6, 1, 8, 8)
    background = method.keeper.fit(queries[0], mask, mask.new_zeros(6, 1, 28, 28), randomness(6))
    z = torch.randn(2, 4, 8, 8, generator=generator(4))
    rows = torch.tensor([4, 1])
    found = background.decoders(z, rows)
    torch.testing.assert_close(found, method.model.decode(z), atol=1e-5, rtol=1e-4)
    # each image has a copy of its own
    assert background.decoders.copies is not None
    with torch.no_grad():
        for value in background.decoders.copies.values():
            value[4].zero_()
    changed = background.decoders(z, rows)
    assert (changed[0] - found[0]).abs().max() > 1e-4
    assert torch.equal(changed[1], found[1])


def test_a_masked_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[None, None].repeat(2, 1, 1, 1)
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None].repeat(2, 1, 1, 1)
    mask[1] = 0
    assert masked_mean(values, mask).tolist() == [2.5, 0]
