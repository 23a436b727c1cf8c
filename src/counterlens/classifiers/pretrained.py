"""A user's classifier that is already trained: Python code with weights, ONNX or TorchScript.

A TorchScript archive holds code that runs when it is loaded: open only files that you trust. ONNX
is a description without code, and is to be preferred.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions
from counterlens.errors import UserError
from counterlens.runtime import files

OPSET = 17
"""The newest ONNX operators that onnx2torch knows."""


class Options(ClassifierOptions):
    """The user's network, and what is known of it.

    Attributes:
        network: `path/to/file.py:factory` (a function without arguments that gives the network),
            `path/to/file.onnx` or `path/to/file.pt` (TorchScript).
        weights: a safetensors file with the parameters of what a factory gives.
        mean, std: of each channel or of all; the network sees (x - mean) / std of x in [0, 1].
        outputs: logits (or logarithms of probabilities), or probabilities.
        maps: names of the factory's modules whose outputs are the feature maps (N, C, h, w), first
            to last.
        head: name of its one linear layer, on the average of the last map over space.
    """

    trained: ClassVar[bool] = False

    network: str = Field(pattern=r"\.py:[A-Za-z_]\w*$|\.onnx$|\.pt$")
    weights: str | None = Field(default=None, pattern=r"\.safetensors$")
    mean: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    std: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    outputs: Literal["logits", "probabilities"] = "logits"
    maps: tuple[str, ...] = ()
    head: str | None = None

    @model_validator(mode="after")
    def _fits_the_format(self):
        if self.has_factory != (self.weights is not None):
            raise ValueError("`weights` belongs to a factory, and a factory needs it")
        if self.maps and not self.has_factory:
            raise ValueError("`maps` names modules of a factory's network; others have none")
        if bool(self.maps) != (self.head is not None):
            raise ValueError("`maps` and `head` belong together: the head stands on the last map")
        if self.head is not None and self.outputs != "logits":
            raise ValueError("`head` gives logits; the network gives probabilities")
        if min(self.std) <= 0:
            raise ValueError("`std` must be positive")
        return self

    @property
    def has_factory(self) -> bool:
        """Whether Python code gives the network."""
        return ".py:" in self.network

    @property
    def has_maps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the feature maps are named."""
        return bool(self.maps)

    @property
    def has_gap(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the head is named."""
        return self.head is not None

    @property
    def retrainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the architecture, and how it is split, are known."""
        return self.has_gap

    @property
    def files(self) -> tuple[str, ...]:
        """The network and its weights."""
        code = self.network.rpartition(":")[0] if self.has_factory else self.network
        return (code,) if self.weights is None else (code, self.weights)


class Pretrained(Classifier):
    """The user's network behind the interface of all classifiers.

    Without `maps` its logits (N, K, 1, 1) stand for the last feature map, so that whatever asks
    only for logits, gradients or an embedding has them; methods with `requires_maps` are refused.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, options: Options, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.options = options
        for name in ("mean", "std"):
            values = getattr(options, name)
            if len(values) not in (1, shape[0]):
                raise UserError(f"classifier.{name}: {len(values)} values for {shape[0]} channels")
            value = torch.tensor(values).reshape(1, -1, 1, 1)
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.network = _network(options)
        self.head = nn.Identity() if options.head is None else self._module(options.head)
        for name in options.maps:
            self._module(name)

    def read_weights(self) -> None:
        """Give a factory's network the user's weights; other formats come with theirs.

        Raises:
            UserError: the file does not fit the network.
        """
        if self.options.weights is None:
            return
        path = Path(self.options.weights)
        state = {key: torch.from_numpy(value) for key, value in files.load_tensors(path).items()}
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: does not fit {self.options.network}: {first}") from None

    def train(self, mode: bool = True) -> Pretrained:
        """As of every module, but of a network without a factory there is nothing to train."""
        if mode and not self.options.has_factory:
            raise UserError(f"{self.options.network}: is trained and cannot be trained again")
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.network((x - self.mean) / self.std)
        if self.options.outputs == "probabilities":
            outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        return outputs

    def maps(self, x: Tensor) -> list[Tensor]:
        if not self.options.maps:
            return [self(x)[:, :, None, None]]
        maps: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self.options.maps:
                keep = partial(_keep, maps, name)
                hooks.enter_context(self._module(name).register_forward_hook(keep))
            self(x)
        return [maps[name] for name in self.options.maps]

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.mean(dim=(2, 3))

    def _module(self, name: str) -> nn.Module:
        try:
            return self.network.get_submodule(name)
        except AttributeError:
            known = ", ".join(key for key, _ in self.network.named_children())
            message = f"{self.options.network}: has no module '{name}'; it has {known}"
            raise UserError(message) from None


def _keep(
    maps: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    maps[name] = output


def _from_onnx(path: str) -> nn.Module:
    """The network of an ONNX file, rewritten in older operators where it uses newer ones."""
    import onnx
    import onnx2torch
    from onnx import version_converter

    model = onnx.load(path)
    newest = max((each.version for each in model.opset_import if not each.domain), default=0)
    if newest > OPSET:
        model = version_converter.convert_version(model, OPSET)
    return onnx2torch.convert(model)


def _network(options: Options) -> nn.Module:
    """The network as its file describes it.

    Raises:
        UserError: the file cannot be read, or gives no network.
    """
    path = options.files[0]
    try:
        if path.endswith(".onnx"):
            return _from_onnx(path)
        if path.endswith(".pt"):
            return torch.jit.load(path, map_location="cpu")
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read: {first}") from None
    factory = options.network.rpartition(":")[2]
    name = f"counterlens_plugin_network_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, factory):
        raise UserError(f"{path}: defines no '{factory}'")
    made = getattr(module, factory)()
    if not isinstance(made, nn.Module):
        raise UserError(f"{options.network}: gives {type(made).__name__}, not a torch module")
    return made
