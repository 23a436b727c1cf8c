"""BigGAN-deep, with a stub of the package's interface in its place."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.biggan import BigGAN, Options
from counterlens.methods.base import Task
from counterlens.methods.c3lt import C3LT
from counterlens.methods.c3lt import Options as C3LTOptions
from counterlens.runtime import files
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator, image_generators
from counterlens.runtime.training import load_model, save_model

CPU = torch.device("cpu")
SIDE, NOISE, CLASSES = 8, 6, 12
INDICES = (3, 11)


class Config:
    """As the package's `BigGANConfig`: attributes read from a JSON file."""

    output_dim: int
    z_dim: int
    num_classes: int

    def __init__(self, **content: Any) -> None:
        self.__dict__.update(content)

    @classmethod
    def from_json_file(cls, path: str) -> Config:
        return cls(**json.loads(Path(path).read_text()))


class Network(nn.Module):
    """As its `generator`: (conditioning vector, truncation) to images in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.utils.spectral_norm(nn.Linear(2 * config.z_dim, 3 * config.output_dim**2))
        self.side = config.output_dim
        self.asked: list[float] = []

    def forward(self, cond_vector: Tensor, truncation: float) -> Tensor:
        self.asked.append(truncation)
        return self.layers(cond_vector).reshape(-1, 3, self.side, self.side).tanh()


class Released(nn.Module):
    """As its `BigGAN`: (noise, one-hot class, truncation) to images in [-1, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = nn.Linear(config.num_classes, config.z_dim, bias=False)
        self.generator = Network(config)

    def forward(self, z: Tensor, class_label: Tensor, truncation: float) -> Tensor:
        assert 0 < truncation <= 1
        return self.generator(torch.cat((z, self.embeddings(class_label)), dim=1), truncation)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stub = ModuleType("pytorch_pretrained_biggan")
    stub.__dict__.update(BigGAN=Released, BigGANConfig=Config)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return stub


@pytest.fixture
def released(tmp_path: Path) -> Released:
    """A release in `tmp_path`, and the network that it holds."""
    config = {"output_dim": SIDE, "z_dim": NOISE, "num_classes": CLASSES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    network = Released(Config(**config)).train()
    with torch.no_grad():
        network.embeddings.weight.mul_(5)
        network.generator(torch.randn(4, 2 * NOISE), 0.4)  # moves the vectors of spectral norm
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    return network.eval()


@pytest.fixture
def create(package, tmp_path: Path) -> Callable[..., BigGAN]:
    def make(shape: tuple[int, int, int] = (3, SIDE, SIDE), **changes: Any) -> BigGAN:
        content = {"kind": "biggan", "folder": str(tmp_path), "imagenet": INDICES, **changes}
        torch.manual_seed(9)
        return BigGAN(Options.model_validate(content), shape)

    return make


class Judge(nn.Module):
    """Says of every image the class whose mean image is nearer."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = centres

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x, x.square(), x.abs()]

    def forward(self, x: Tensor) -> Tensor:
        return -50 * (x[:, None] - self.centres).square().mean((2, 3, 4))

    def probabilities(self, x: Tensor) -> Tensor:
        return self(x).softmax(dim=1)


def training(classifier: Any) -> Training:
    nothing = torch.zeros(0, 3, SIDE, SIDE)
    return Training(nothing, nothing, classifier, {}, CPU, 3)


@pytest.fixture
def judge(released: Released) -> Judge:
    one_hot = torch.eye(CLASSES)[list(INDICES)]
    with torch.no_grad():
        return Judge((released(torch.zeros(2, NOISE), one_hot, 0.4) + 1) / 2)


def test_a_decoded_latent_is_the_package_s_image(create, released, judge) -> None:
    made = create()
    assert made.fit(training(judge)) == [{"epoch": 1}]
    z = made.draw(5, generator(1), 1)
    assert z.shape == (5, made.latent_dim) == (5, 2 * NOISE) and made.latent_parts == (NOISE, NOISE)
    one_hot = torch.eye(CLASSES)[INDICES[1]].expand(5, -1)
    with torch.no_grad():
        expected = released(z[:, :NOISE], one_hot, 0.4)
        torch.testing.assert_close(made.decode(z), (expected + 1) / 2)
    assert made.model.generator.asked[-1] == 0.4
    # the other class has another embedding
    assert (made.draw(5, generator(1), 0)[:, NOISE:] - z[:, NOISE:]).abs().max() > 0.1
    torch.testing.assert_close(made.draw(5, generator(1), 0)[:, :NOISE], z[:, :NOISE])


@pytest.mark.parametrize("truncation", [0.4, 1.0])
def test_noise_is_a_truncated_normal(create, released, truncation: float) -> None:
    """As the package's: truncation x truncnorm(-2, 2), of standard deviation 0.8796."""
    noise = create(truncation=truncation).draw(20_000, generator(2), 0)[:, :NOISE]
    assert noise.abs().max() <= 2 * truncation and noise.abs().max() > 1.9 * truncation
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    from scipy.stats import truncnorm

    assert float(noise.std()) == pytest.approx(truncation * truncnorm.std(-2, 2), rel=0.01)
    quantiles = np.quantile(noise.numpy() / truncation, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, truncnorm.ppf([0.1, 0.5, 0.9], -2, 2), atol=0.02)


def test_saved_loaded_and_frozen_it_draws_the_same(create, released, judge, tmp_path) -> None:
    made = create()
    made.fit(training(judge))
    z = made.draw(3, generator(1), 0)
    with torch.no_grad():
        expected = made.decode(z)
    save_model(tmp_path / "model.safetensors", made)
    loaded = create()
    load_model(tmp_path / "model.safetensors", loaded)
    freeze(loaded, CPU)
    torch.testing.assert_close(loaded.decode(z), expected)
    assert not loaded.decode(z.requires_grad_()).detach().isnan().any()
    assert torch.autograd.grad(loaded.decode(z).sum(), z)[0].abs().max() > 0


def test_quality_and_sheet(create, released, judge) -> None:
    made = create()
    made.fit(training(judge))
    quality = made.quality(training(judge))
    assert quality.values == {"recognised": 1, "least_recognised_class": 1}
    wrong = Judge(judge.centres.flip(0))
    assert not made.quality(training(wrong)).gates()["recognised"]["passed"]
    sheet = made.sheet(training(judge))
    assert sheet.shape == (16, 3, SIDE, SIDE) and ((sheet >= 0) & (sheet <= 1)).all()


def test_the_package_is_missing(create, released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_pretrained_biggan", None)
    with pytest.raises(UserError) as caught:
        create()
    words = str(caught.value)
    assert "needs the package pytorch-pretrained-biggan" in words and "pip install" in words
    assert "\n" not in words


def test_missing_changed_and_unfit_files(create, released, judge, tmp_path: Path) -> None:
    weights = tmp_path / "pytorch_model.bin"
    with pytest.raises(UserError, match=r"draws RGB images of 8 pixels, but .* \(3, 16, 16\)"):
        create((3, 16, 16))
    create(sha256=files.sha256(weights)).fit(training(judge))
    with pytest.raises(UserError, match=r"pytorch_model\.bin: its SHA-256 is .*, not 000"):
        create(sha256="0" * 64).fit(training(judge))
    torch.save({"embeddings.weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(UserError, match=r"pytorch_model\.bin: does not fit config\.json"):
        create().fit(training(judge))
    torch.save(SimpleNamespace(), weights)
    with pytest.raises(UserError, match="holds not tensors alone"):
        create().fit(training(judge))
    weights.unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin: no such file; download"):
        create().fit(training(judge))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is no configuration"):
        create()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file; download a release"):
        create()


# C3LT on the conditioning vectors


@pytest.fixture
def method(create, released, judge) -> C3LT:
    made = create()
    made.fit(training(judge))
    freeze(made, CPU)
    options = C3LTOptions.model_validate(
        {
            "kind": "c3lt",
            "generator": "biggan",
            "encoder": None,
            "queries": "sampled",
            "sampling": {"count": 32, "batch_size": 8},
            "gamma": 0,
            "cycle_maps": 2,
            "epochs": 30,
            "batch_size": 8,
            "lr": 0.003,
            "precision": "fp32",
        }
    )
    assert options.conflict({"biggan": made.options}) is None
    return C3LT(options, Task(judge, {"biggan": made}, (3, SIDE, SIDE), ((0, 1),), CPU, 5))  # type: ignore[arg-type]


def test_c3lt_moves_noise_and_class_and_keeps_both_lengths(method: C3LT, judge: Judge) -> None:
    history = method.fit(None)  # type: ignore[arg-type]
    assert history[-1]["classification"] < history[0]["classification"] / 2
    assert method.quality(None).values == {"acceptance_0": 1, "acceptance_1": 1}  # type: ignore[arg-type]
    source = torch.tensor([0, 1, 0, 1])
    given = torch.zeros(4, 3, SIDE, SIDE)
    answer = method.explain(
        given, source, 1 - source, image_generators(1, "tiny", "explain", range(4))
    )
    z, moved = answer.extras["latent"], answer.extras["latent_counterfactual"]
    assert answer.query is not None and answer.found.all()
    torch.testing.assert_close(method.generator.decode(z), answer.query)
    torch.testing.assert_close(method.generator.decode(moved), answer.counterfactual)
    assert (judge(answer.query).argmax(dim=1) == source).all()
    assert (judge(answer.counterfactual).argmax(dim=1) == 1 - source).all()
    for part in (slice(0, NOISE), slice(NOISE, None)):
        assert (moved[:, part] - z[:, part]).abs().max() > 0.01
        torch.testing.assert_close(moved[:, part].norm(dim=1), z[:, part].norm(dim=1))


def test_the_cycle_compares_the_first_maps(method: C3LT) -> None:
    """Two maps and the pixels: with the third, another loss."""
    from counterlens.methods.c3lt import Objective

    (x, y), (z_x, z_y) = method.training_codes(None)  # type: ignore[arg-type]
    images, latents = torch.cat([x[:4], y[:4]]), torch.cat([z_x[:4], z_y[:4]])
    two = Objective(method)(images, latents)["cycle"]
    method.options = method.options.model_copy(update={"cycle_maps": None})
    assert (Objective(method)(images, latents)["cycle"] - two).abs() > 1e-4
