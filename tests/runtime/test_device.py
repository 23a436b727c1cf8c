from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from counterlens.runtime.device import fold_normalisation, freeze

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.BatchNorm2d(3),
    )
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
    return layers.eval()


def test_folded_is_the_same_function() -> None:
    layers, x = network(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = layers(x)
        fold_normalisation(layers)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
        torch.testing.assert_close(layers(x), wanted, rtol=1e-5, atol=1e-5)


def test_frozen_lets_gradients_through_to_the_input_alone() -> None:
    model = freeze(network(), CPU)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_what_is_no_convolution_is_placed_as_it_is() -> None:
    module = nn.Conv2d(2, 3, 3)
    module.register_buffer("bank", torch.rand(2, 4, 1, 5, 5))
    freeze(module, CPU)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.get_buffer("bank").is_contiguous()


def test_setup_flushes_denormals_in_every_thread() -> None:
    code = """
import torch
from counterlens.runtime.device import setup
setup(2)
assert torch.get_num_threads() == 2
x = torch.full((1 << 22,), 1e-30)
assert not (x * 1e-12).any()  # 1e-42 is denormal; the work is shared between both threads
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_normalises_groups_stays_contiguous_on_a_cpu() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    freeze(module, CPU)
    assert module[0].weight.is_contiguous()
    assert not module[0].weight.is_contiguous(memory_format=torch.channels_last)
