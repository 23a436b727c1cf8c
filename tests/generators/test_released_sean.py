"""The loader of SEAN's and STEEX's checkpoints, against the network as its authors built it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm
from torchvision.models import segmentation

from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.released_sean import Options, ReleasedSEAN
from counterlens.methods.base import Task
from counterlens.methods.steex import STEEX
from counterlens.methods.steex import Options as SteexOptions
from counterlens.runtime import files
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator

SHAPE, REGIONS, WIDTH, STYLE, ENCODER, HIDDEN = (3, 64, 32), 4, 2, 6, 2, 3
CPU = torch.device("cpu")


class Theirs(nn.Module):
    """One normalisation under the names of the release, with its loops over images and regions."""

    def __init__(self, channels: int, styled: bool) -> None:
        super().__init__()
        self.styled = styled
        self.Spade = nn.Module()
        self.Spade.param_free_norm = nn.BatchNorm2d(channels, affine=False)  # built, never used
        self.Spade.mlp_shared = nn.Sequential(nn.Conv2d(REGIONS, HIDDEN, 3, padding=1), nn.ReLU())
        self.Spade.mlp_gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.Spade.mlp_beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.blending_gamma = nn.Parameter(torch.randn(1))
        self.blending_beta = nn.Parameter(torch.randn(1))
        self.noise_var = nn.Parameter(torch.randn(channels))
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.param_free_norm.running_mean = torch.randn(channels)
        self.param_free_norm.running_var = torch.rand(channels) + 0.5
        if styled:
            for region in range(REGIONS):
                self.add_module(f"fc_mu{region}", nn.Linear(STYLE, STYLE))
            self.conv_gamma = nn.Conv2d(STYLE, channels, 3, padding=1)
            self.conv_beta = nn.Conv2d(STYLE, channels, 3, padding=1)

    def forward(self, x: Tensor, layout: Tensor, codes: Tensor) -> Tensor:
        plain = self.param_free_norm(x)
        layout = functional.interpolate(layout, x.shape[2:], mode="nearest")
        shared = self.Spade.mlp_shared(layout)
        gamma, beta = self.Spade.mlp_gamma(shared), self.Spade.mlp_beta(shared)
        if self.styled:
            painted = torch.zeros(len(x), STYLE, *x.shape[2:])
            for image in range(len(x)):
                for region in range(REGIONS):
                    place = layout[image, region].bool()
                    code = self.get_submodule(f"fc_mu{region}")(codes[image, region]).relu()
                    painted[image][:, place] = code[:, None]
            a, b = self.blending_gamma.sigmoid(), self.blending_beta.sigmoid()
            gamma = a * self.conv_gamma(painted) + (1 - a) * gamma
            beta = b * self.conv_beta(painted) + (1 - b) * beta
        return plain * (1 + gamma) + beta


class TheirBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, styled: bool) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.conv_0 = spectral_norm(nn.Conv2d(inputs, middle, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(middle, outputs, 3, padding=1))
        self.ace_0, self.ace_1 = Theirs(inputs, styled), Theirs(middle, styled)
        if inputs != outputs:
            self.conv_s = spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.ace_s = Theirs(inputs, styled)

    def forward(self, x: Tensor, layout: Tensor, codes: Tensor) -> Tensor:
        other = x
        if hasattr(self, "conv_s"):
            other = self.conv_s(self.ace_s(x, layout, codes))
        x = self.conv_0(functional.leaky_relu(self.ace_0(x, layout, codes), 0.2))
        return other + self.conv_1(functional.leaky_relu(self.ace_1(x, layout, codes), 0.2))


class Released(nn.Module):
    """Encoder and generator under the names of the release, without the noise."""

    def __init__(self) -> None:
        super().__init__()
        e = ENCODER
        self.Zencoder = nn.Module()
        self.Zencoder.model = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, e, 3), nn.InstanceNorm2d(e), nn.LeakyReLU(0.2),
            nn.Conv2d(e, 2 * e, 3, 2, 1), nn.InstanceNorm2d(2 * e), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * e, 4 * e, 3, 2, 1), nn.InstanceNorm2d(4 * e), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(4 * e, 8 * e, 3, 2, 1, 1), nn.InstanceNorm2d(8 * e),
            nn.LeakyReLU(0.2), nn.ReflectionPad2d(1), nn.Conv2d(8 * e, STYLE, 3), nn.Tanh(),
        )  # fmt: skip
        w = WIDTH
        self.fc = nn.Conv2d(REGIONS, 16 * w, 3, padding=1)
        self.head_0 = TheirBlock(16 * w, 16 * w, True)
        self.G_middle_0 = TheirBlock(16 * w, 16 * w, True)
        self.G_middle_1 = TheirBlock(16 * w, 16 * w, True)
        self.up_0 = TheirBlock(16 * w, 8 * w, True)
        self.up_1 = TheirBlock(8 * w, 4 * w, True)
        self.up_2 = TheirBlock(4 * w, 2 * w, True)
        self.up_3 = TheirBlock(2 * w, w, False)
        self.conv_img = nn.Conv2d(w, 3, 3, padding=1)

    def codes(self, x: Tensor, layout: Tensor) -> Tensor:
        style = self.Zencoder.model(x)
        layout = functional.interpolate(layout, style.shape[2:], mode="nearest").bool()
        found = torch.zeros(len(x), REGIONS, STYLE)
        for image in range(len(x)):
            for region in range(REGIONS):
                if layout[image, region].any():
                    found[image, region] = style[image][:, layout[image, region]].mean(dim=1)
        return found

    def forward(self, layout: Tensor, codes: Tensor) -> Tensor:
        up = nn.Upsample(scale_factor=2)
        x = self.fc(functional.interpolate(layout, [side // 32 for side in layout.shape[2:]]))
        x = up(self.head_0(x, layout, codes))
        x = self.G_middle_1(self.G_middle_0(x, layout, codes), layout, codes)
        for block in (self.up_0, self.up_1, self.up_2, self.up_3):
            x = block(up(x), layout, codes)
        return self.conv_img(functional.leaky_relu(x, 0.2)).tanh()


class TinySegmenter(nn.Module):
    """What the package's DeepLabv3 gives: a dictionary."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 5, padding=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layer(x)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(weights: None, weights_backbone: None, num_classes: int) -> nn.Module:
        return TinySegmenter(num_classes)

    monkeypatch.setattr(segmentation, "deeplabv3_resnet101", build)


@pytest.fixture
def theirs() -> Released:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the release's spectral norm
        made = Released()
        made.train()
        x = torch.rand(2, *SHAPE, generator=generator(3))
        layout = functional.one_hot(torch.randint(REGIONS, (2, *SHAPE[1:])), REGIONS)
        for _ in range(5):  # the spectral norms settle
            made(layout.movedim(3, 1).float(), made.codes(x, layout.movedim(3, 1).float()))
    return made.eval()


@pytest.fixture
def options(theirs: Released, tmp_path: Path) -> Options:
    torch.save(theirs.state_dict(), tmp_path / "latest_net_G.pth")
    torch.manual_seed(1)
    segmenter = TinySegmenter(REGIONS)
    content = {"model_state_dict": segmenter.state_dict(), "epoch": 3, "loss": 0.5}
    torch.save(content, tmp_path / "checkpoint.tar")
    return Options.model_validate(settings(tmp_path))


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    both = [folder / name for name in ("latest_net_G.pth", "checkpoint.tar")]
    content: dict[str, Any] = {"kind": "released-sean", "file": str(both[0])}
    content |= {"segmenter": str(both[1])}
    content |= dict(zip(("sha256", "segmenter_sha256"), map(files.sha256, both), strict=True))
    content |= {"regions": REGIONS, "width": WIDTH, "code_dim": STYLE}
    return {**content, "encoder_width": ENCODER, "hidden": HIDDEN, **changes}


def training() -> Training:
    images = torch.rand(4, *SHAPE, generator=generator(4))
    return Training(images, images, None, {}, CPU, seed=1)


def read(options: Options) -> ReleasedSEAN:
    made = ReleasedSEAN(options, SHAPE)
    assert made.fit(training()) == [{"epoch": 1}]
    freeze(made, CPU)
    return made


def test_it_is_the_released_network(theirs: Released, options: Options) -> None:
    ours = read(options)
    x = torch.rand(3, *SHAPE, generator=generator(5))
    with torch.inference_mode():
        layout = ours.layout(x)
        assert layout.shape == (3, REGIONS, *SHAPE[1:]) and (layout.sum(dim=1) == 1).all()
        layout[0, 0] += layout[0, 1]  # a region that is absent
        layout[0, 1] = 0
        codes = ours.codes(x, layout)
        torch.testing.assert_close(codes, theirs.codes(2 * x - 1, layout))
        drawn = ours.synthesise(layout, codes)
        expected = (theirs(layout, codes) + 1) / 2
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-4)
    assert drawn.std() > 1e-3


def test_regions_are_what_the_segmenter_sees(options: Options, tmp_path: Path) -> None:
    x = torch.rand(2, *SHAPE, generator=generator(6))
    plain = read(options)
    with torch.inference_mode():
        labels = plain.segmenter(2 * x - 1)["out"].argmax(dim=1)
        assert torch.equal(plain.layout(x).argmax(dim=1), labels)
        shifted = read(Options.model_validate(settings(tmp_path, unlabelled_first=True)))
        assert torch.equal(shifted.layout(x).argmax(dim=1), (labels - 1) % REGIONS)
        larger = read(Options.model_validate(settings(tmp_path, segmenter_size=(128, 64))))
        assert larger.layout(x).shape == (2, REGIONS, *SHAPE[1:])


def test_steex_moves_its_codes(options: Options) -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = 40 * (x.mean(dim=(1, 2, 3)) - 0.5)
            return torch.stack([-bright, bright], dim=1)

    task = Task(Brightness(), {"sean": read(options)}, SHAPE, ((0, 1),), CPU, 1)  # type: ignore[arg-type]
    chosen = SteexOptions.model_validate({"kind": "steex", "steps": 4, "regions": [1, 2]})
    assert chosen.conflict({"sean": options}) is None
    wrong = chosen.model_copy(update={"regions": (4,)})
    assert wrong.conflict({"sean": options}) == "regions: 4, but 'sean' has 0..3"
    x = torch.rand(2, *SHAPE, generator=generator(7))
    answer = STEEX(chosen, task).explain(x, torch.tensor([0, 1]), torch.tensor([1, 0]))
    change = answer.extras["code_change"]
    assert (change[:, [0, 3]] == 0).all() and (change[:, [1, 2]] > 0).all()


def test_what_does_not_fit_is_told(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        read(options.model_copy(update={"file": "gone.pth"}))
    with pytest.raises(UserError, match="its SHA-256 is"):
        read(options.model_copy(update={"segmenter_sha256": "0" * 64}))
    with pytest.raises(UserError, match="do not fit the options of the networks"):
        read(options.model_copy(update={"width": 3}))
    path = tmp_path / "latest_net_G.pth"
    more = {**torch.load(path, weights_only=True), "up_4.conv_0.bias": torch.zeros(1)}
    torch.save(more, path)
    with pytest.raises(UserError, match=r"unexpected parameter up_4\.conv_0\.bias"):
        read(Options.model_validate(settings(tmp_path)))
