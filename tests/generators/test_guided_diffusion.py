"""The loader of released checkpoints, against the network as its authors built it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens.errors import UserError
from counterlens.generators import export
from counterlens.generators.base import Training
from counterlens.generators.guided_diffusion import GuidedDiffusion, Options
from counterlens.generators.parts.diffusion import DiffusionFilter
from counterlens.runtime import files
from counterlens.runtime.seeding import generator

WIDTH, MULTIPLIERS, LAYERS, ATTENTION, GROUPS = 8, (1, 2), 1, (2,), 4


class Residual(nn.Module):
    """Scale-shift residual block that may change the resolution."""

    def __init__(self, inputs: int, outputs: int, embedding: int, change: str = "") -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outputs),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        if inputs != outputs:
            self.skip_connection = nn.Conv2d(inputs, outputs, 1)
        self.change = change

    def resize(self, x: Tensor) -> Tensor:
        if self.change == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.change == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.in_layers[2](self.resize(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        hidden = self.out_layers[1:](hidden)
        x = self.resize(x)
        return hidden + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class Attention(nn.Module):
    """Self-attention whose qkv rows are grouped by head (the legacy order)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        count, channels = x.shape[:2]
        flat = x.flatten(2)
        found = self.qkv(self.norm(flat))
        found = found.reshape(count * self.heads, 3 * channels // self.heads, -1)
        q, k, v = found.chunk(3, dim=1)
        weights = (torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1])).softmax(-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(count, channels, -1)
        return (flat + self.proj_out(mixed)).reshape(x.shape)


class Entry(nn.ModuleList):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for part in self:
            x = part(x) if isinstance(part, nn.Conv2d) else part(x, embedding)
        return x


class Released(nn.Module):
    """Two resolutions, the lower with attention; six output channels for three."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        wide, e = 2 * WIDTH, 4 * WIDTH
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, e), nn.SiLU(), nn.Linear(e, e))
        self.input_blocks = nn.ModuleList(
            [
                Entry([nn.Conv2d(3, WIDTH, 3, padding=1)]),
                Entry([Residual(WIDTH, WIDTH, e)]),
                Entry([Residual(WIDTH, WIDTH, e, "down")]),
                Entry([Residual(WIDTH, wide, e), Attention(wide, heads)]),
            ]
        )
        self.middle_block = Entry(
            [Residual(wide, wide, e), Attention(wide, heads), Residual(wide, wide, e)]
        )
        self.output_blocks = nn.ModuleList(
            [
                Entry([Residual(2 * wide, wide, e), Attention(wide, heads)]),
                Entry(
                    [
                        Residual(wide + WIDTH, wide, e),
                        Attention(wide, heads),
                        Residual(wide, wide, e, "up"),
                    ]
                ),
                Entry([Residual(wide + WIDTH, WIDTH, e)]),
                Entry([Residual(2 * WIDTH, WIDTH, e)]),
            ]
        )
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 6, 3, padding=1)
        )

    def forward(self, x: Tensor, step: int) -> Tensor:
        half = WIDTH // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half) / half) * step
        wave = torch.cat([rates.cos(), rates.sin()])[None].expand(len(x), -1)
        embedding = self.time_embed(wave)
        kept = []
        for entry in self.input_blocks:
            x = entry(x, embedding)
            kept.append(x)
        x = self.middle_block(x, embedding)
        for entry in self.output_blocks:
            x = entry(torch.cat([x, kept.pop()], dim=1), embedding)
        return self.out(x)


def options(path: Path, **changes: object) -> Options:
    settings = {
        "kind": "guided-diffusion",
        "file": str(path),
        "sha256": files.sha256(path) if path.is_file() else "0" * 64,
        "width": WIDTH,
        "multipliers": MULTIPLIERS,
        "layers": LAYERS,
        "attention": ATTENTION,
        "groups": GROUPS,
        "heads": 4,
        "steps": 500,
    }
    return Options.model_validate({**settings, **changes})


def training() -> Training:
    images = torch.rand(8, 3, 8, 8, generator=generator(3))
    return Training(images, images, None, {}, torch.device("cpu"), seed=1)


@pytest.fixture
def released(tmp_path: Path) -> tuple[Released, Path]:
    torch.manual_seed(0)
    network = Released(heads=4).eval()
    path = tmp_path / "released.pt"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("by_width", [False, True])
def test_it_is_the_released_network(tmp_path: Path, by_width: bool) -> None:
    torch.manual_seed(0)
    theirs = Released(heads=2 if by_width else 4).eval()
    path = tmp_path / "released.pt"
    torch.save(theirs.state_dict(), path)
    heads = {"heads": None, "head_channels": 8} if by_width else {}
    ours = GuidedDiffusion(options(path, **heads), (3, 8, 8))
    assert ours.fit(training()) == [{"epoch": 1}]
    v = torch.randn(2, 3, 8, 8, generator=generator(1))
    with torch.inference_mode():
        for step in (0, 41, 499):
            expected = theirs(v, step)
            noise, place = ours.predict(v, step)
            assert place is not None
            torch.testing.assert_close(noise, expected[:, :3], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(2 * place - 1, expected[:, 3:], atol=1e-5, rtol=1e-5)


def test_the_filter_runs_on_it(released: tuple[Released, Path]) -> None:
    ours = GuidedDiffusion(options(released[1]), (3, 8, 8))
    ours.fit(training())
    x = torch.rand(2, 3, 8, 8, generator=generator(1)).requires_grad_(True)
    through = DiffusionFilter(ours, 25, 3)
    found = through(x, through.noise([generator(1), generator(2)], x))
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert torch.autograd.grad(found.sum(), x)[0].abs().max() > 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; download the checkpoint"):
        GuidedDiffusion(options(tmp_path / "none.pt"), (3, 8, 8)).fit(training())


def test_another_file(released: tuple[Released, Path]) -> None:
    changed = options(released[1], sha256="a" * 64)
    with pytest.raises(UserError, match="its SHA-256 is"):
        GuidedDiffusion(changed, (3, 8, 8)).fit(training())


def test_a_parameter_that_is_left_over(released: tuple[Released, Path]) -> None:
    path = released[1]
    torch.save({**released[0].state_dict(), "label_emb.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"unexpected parameter label_emb\.weight"):
        GuidedDiffusion(options(path), (3, 8, 8)).fit(training())


def test_equal_heads_at_every_level_cannot_be_exported(
    released: tuple[Released, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = GuidedDiffusion(options(released[1]), (3, 8, 8))
    assert model.options.heads is not None
    monkeypatch.setattr(export.base, "create", lambda *_: model)
    with pytest.raises(UserError, match="would be read as another network"):
        export.run(SimpleNamespace(name="toy"), "guided", "all-classes")  # type: ignore[arg-type]


def test_a_file_that_holds_code(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save({"weight": Path("somewhere")}, path)
    with pytest.raises(UserError, match="holds not tensors alone"):
        GuidedDiffusion(options(path), (3, 8, 8)).fit(training())


@pytest.mark.parametrize("wrong", [{"layers": 2}, {"width": 16}, {"attention": (1, 2)}])
def test_another_shape(released: tuple[Released, Path], wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="does not fit the options of the network"):
        GuidedDiffusion(options(released[1], **wrong), (3, 8, 8)).fit(training())
