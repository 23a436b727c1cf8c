"""BigGAN-deep (Brock et al., ICLR 2019) through the package `pytorch-pretrained-biggan`.

A latent is the conditioning vector [z; e] of noise and class embedding, so that a method can move
both. Nothing is trained: the released weights are read from a folder. There is no discriminator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens.config import DatasetOptions, GeneratorOptions
from counterlens.errors import UserError
from counterlens.generators.base import Generator, Quality, Training
from counterlens.runtime import files
from counterlens.runtime.seeding import generator
from counterlens.runtime.training import History

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"
SAMPLES = 32
"""Of each class, for the quality gate."""


class Options(GeneratorOptions):
    """Which weights, of which classes.

    Attributes:
        folder: has `config.json` and `pytorch_model.bin`, the release's two files.
        sha256: of `pytorch_model.bin`; None leaves it unchecked.
        imagenet: the index in ImageNet, 0 to 999, of each class of the dataset, in its order.
        truncation: noise is this times a normal cut at -2 and 2; it also chooses the statistics
            of the batch normalisations.
        least_recognised: gate on the share of samples that the classifier gives their own class.
    """

    uses_classifier: ClassVar[bool] = True
    conditional: ClassVar[bool] = True

    folder: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    imagenet: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = Field(min_length=2)
    truncation: float = Field(default=0.4, gt=0, le=1)
    least_recognised: float = 0.5

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """The releases draw square colour images of three sizes."""
        channels, height, width = dataset.shape
        if channels == 3 and height == width and height in (128, 256, 512):
            return None
        return (
            f"BigGAN-deep draws colour images of 128x128, 256x256 or 512x512; those of "
            f"'{dataset.name}' are {height}x{width} with {channels} channels"
        )


class BigGAN(Generator):
    """The package's network behind the latents [z; e]."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        package = _package()
        file = Path(options.folder) / CONFIG
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; download a release of BigGAN-deep, {CONFIG} and {WEIGHTS}, "
                "and name their folder under `folder`"
            )
        try:
            config = package.BigGANConfig.from_json_file(str(file))
        except ValueError as error:
            raise UserError(f"{file}: is no configuration of BigGAN ({error})") from None
        if shape != (3, config.output_dim, config.output_dim):
            raise UserError(
                f"{file}: draws RGB images of {config.output_dim} pixels, but the dataset's have "
                f"the shape {shape}; choose another `size` of the dataset or another release"
            )
        self.model: Any = package.BigGAN(config)
        self.noise_dim = int(config.z_dim)
        self.latent_dim = self.noise_dim + self.model.embeddings.out_features

    @property
    def latent_parts(self) -> tuple[int, ...]:
        """Noise and class embedding."""
        return (self.noise_dim, self.latent_dim - self.noise_dim)

    def draw(self, count: int, random: torch.Generator, label: int) -> Tensor:
        noise = nn.init.trunc_normal_(
            torch.empty(count, self.noise_dim), a=-2, b=2, generator=random
        )
        embedding = self.model.embeddings.weight.detach()[:, self.options.imagenet[label]].cpu()
        return torch.cat([self.options.truncation * noise, embedding.expand(count, -1)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return (self.model.generator(z, self.options.truncation) + 1) / 2

    def fit(self, training: Training) -> History:
        """Read the weights; one row, without losses.

        Raises:
            UserError: they are missing, changed, or those of another network.
        """
        path = Path(self.options.folder) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path}: no such file; download it to the place of {CONFIG}")
        digest = files.sha256(path)
        if self.options.sha256 not in (None, digest):
            raise UserError(f"{path}: its SHA-256 is {digest}, not {self.options.sha256}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path}: holds not tensors alone, or is damaged ({error})") from None
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: does not fit {CONFIG} beside it: {reason}") from None
        self.to(training.device)
        self.eval()
        return [{"epoch": 1}]

    @torch.inference_mode()
    def samples(self, label: int, count: int, training: Training) -> Tensor:
        """Images (count, 3, H, W) of a class, on the CPU."""
        z = self.draw(count, generator(training.seed), label)
        return torch.cat([self.decode(part.to(training.device)).cpu() for part in z.split(8)])

    def quality(self, training: Training) -> Quality:
        """Share of samples that the classifier gives the class they were drawn of."""
        assert training.classifier is not None
        shares = []
        for label in range(len(self.options.imagenet)):
            answers = training.classifier.probabilities(self.samples(label, SAMPLES, training))
            shares.append(float((answers.argmax(dim=1) == label).float().mean()))
        values = {"recognised": sum(shares) / len(shares), "least_recognised_class": min(shares)}
        return Quality(values, at_least={"recognised": self.options.least_recognised})

    def sheet(self, training: Training) -> Tensor:
        """A row of samples for each class."""
        return torch.cat(
            [self.samples(label, 8, training) for label in range(len(self.options.imagenet))]
        )


def _package() -> Any:
    try:
        import pytorch_pretrained_biggan  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(
            "generator 'biggan' needs the package pytorch-pretrained-biggan, which the environment "
            "leaves out; install it there: pip install pytorch-pretrained-biggan"
        ) from None
    return pytorch_pretrained_biggan
