"""What every metric receives (`CounterfactualSet`, `MetricContext`) and gives (`Metric`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from counterlens.config import MetricOptions
from counterlens.errors import UserError
from counterlens.runtime import files

__all__ = [
    "STANDARD_EXTRACTOR",
    "CounterfactualSet",
    "FeatureExtractor",
    "Metric",
    "MetricContext",
    "NotAvailable",
    "quantise",
    "require_query",
]

STANDARD_EXTRACTOR = "inception"
"""The only oracle id whose FID and KID carry the standard names."""


class NotAvailable(Exception):
    """A metric cannot be computed here (e.g. a named weight is missing); the reason is printed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class CounterfactualSet:
    """The output of one method on one direction.

    Attributes:
        query: (N, C, H, W) float32 in [0, 1], or None when the set is unpaired ("original-data").
        counterfactual: (N, C, H, W) float32 in [0, 1].
        extras: further tensors with N rows, e.g. `mask` (N, 1, H, W); those named `path...` are
            kept for the first images only.
        table: one row per image.
    """

    experiment: str
    method: str
    source: int
    target: int
    counterfactual: Tensor
    query: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        images = self.counterfactual
        if images.ndim != 4 or images.dtype != torch.float32:
            raise ValueError(
                f"counterfactual must be float32 (N, C, H, W), "
                f"not {images.dtype} {tuple(images.shape)}"
            )
        if self.query is not None and (
            self.query.shape != images.shape or self.query.dtype != images.dtype
        ):
            raise ValueError(
                f"query is {self.query.dtype} {tuple(self.query.shape)}, counterfactual "
                f"{images.dtype} {tuple(images.shape)}"
            )
        for name, tensor in self.extras.items():
            shorter = name.startswith("path") and len(tensor) < len(images)
            if len(tensor) != len(images) and not shorter:
                raise ValueError(f"{name} has {len(tensor)} rows for {len(images)} images")
        if len(self.table.columns) and len(self.table) != len(images):
            raise ValueError(f"the table has {len(self.table)} rows for {len(images)} images")
        for name, tensor in (("query", self.query), ("counterfactual", images)):
            if tensor is None or not tensor.numel():
                continue
            low, high = (value.item() for value in tensor.aminmax())
            # written so that NaN fails too
            if not (low >= 0 and high <= 1):
                raise ValueError(f"{name} leaves [0, 1]: minimum {low}, maximum {high}")

    def __len__(self) -> int:
        return len(self.counterfactual)

    def errors(self) -> np.ndarray:
        """Which rows, bool (N,), explain an error of the classifier: not of the source class."""
        if self.query is None or "label" not in self.table:
            return np.zeros(len(self), bool)
        return self.table["label"].to_numpy() != self.source

    def select(self, rows: np.ndarray) -> CounterfactualSet:
        """The rows of a mask (N,), in order; of a path as many as are kept."""
        mask = torch.from_numpy(rows)
        return replace(
            self,
            counterfactual=self.counterfactual[mask],
            query=None if self.query is None else self.query[mask],
            extras={name: tensor[mask[: len(tensor)]] for name, tensor in self.extras.items()},
            table=self.table[rows].reset_index(drop=True) if len(self.table) else self.table,
        )

    @property
    def paired(self) -> bool:
        """Whether each counterfactual has a query of its own."""
        return self.query is not None

    @classmethod
    def load(cls, path: Path | str) -> CounterfactualSet:
        """Reads `<path>.safetensors` and `<path>.parquet` (path without suffix).

        Raises:
            UserError: one of the files is missing or the content contradicts itself.
        """
        arrays_path = Path(f"{path}.safetensors")
        table_path = Path(f"{path}.parquet")
        for needed in (arrays_path, table_path):
            if not needed.is_file():
                raise UserError(f"{needed}: not found; make the counterfactuals first")
        tensors = {
            name: torch.from_numpy(np.array(array))
            for name, array in files.load_tensors(arrays_path).items()
        }
        try:
            metadata = files.read_metadata(arrays_path)
            return cls(
                experiment=metadata["experiment"],
                method=metadata["method"],
                source=int(metadata["source"]),
                target=int(metadata["target"]),
                counterfactual=tensors.pop("counterfactual"),
                query=tensors.pop("query", None),
                extras=tensors,
                table=pd.read_parquet(table_path),
            )
        except (KeyError, ValueError) as error:
            problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise UserError(
                f"{arrays_path}: {problem}; delete it and make the counterfactuals again"
            ) from error


class FeatureExtractor(Protocol):
    """What FID and KID compare images with: an oracle that gives features.

    `standard` is true of the network that the metric's standard name stands for (Inception-v3 of
    the FID paper). `fingerprint` changes whenever the features of an image would. Features of
    training images are kept between jobs where `cache_references` is true. `unavailable` is the
    reason why the extractor cannot be used, None if it can.
    """

    standard: bool
    cache_references: bool

    @property
    def fingerprint(self) -> str: ...

    @property
    def unavailable(self) -> str | None: ...

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, D) float32 on the CPU."""
        ...


def quantise(images: Tensor) -> Tensor:
    """float [0, 1] -> uint8 0…255, rounded to nearest; an uint8 image / 255 comes back exactly."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass
class MetricContext:
    """Everything outside the counterfactual set that a metric may use.

    Attributes:
        classifier: the explained classifier, (N, C, H, W) in [0, 1] -> logits (N, K). Only for what
            is a question to the classifier (validity, COUT).
        oracles: loaded oracles by id.
        reference: training images of a class, (N, C, H, W) uint8.
        device: where the networks are.
        batch_size: images per forward pass.
        class_names: by label.
        attribute: index of the dataset's attribute that is the label; None where its classes are.
        cache: folder for features kept between jobs; None keeps nothing.
    """

    classifier: nn.Module
    oracles: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[[int], Tensor] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 2048
    class_names: tuple[str, ...] = ()
    attribute: int | None = None
    cache: Path | None = None
    _features: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax answers of the classifier: (N, C, H, W) in [0, 1] -> (N, K) float32, CPU."""
        answers = [
            self.classifier(batch.to(self.device, memory_format=torch.channels_last))
            .softmax(1)
            .cpu()
            for batch in images.split(self.batch_size)
        ]
        return torch.cat(answers)

    def flipped(self, cf: CounterfactualSet) -> np.ndarray:
        """Which counterfactuals, bool (N,), reach the target class as 8-bit images."""
        shown = quantise(cf.counterfactual).float() / 255
        if not len(shown):
            return np.zeros(0, bool)
        return (self.probabilities(shown).argmax(1) == cf.target).numpy()

    def counted(self, cf: CounterfactualSet, options: MetricOptions) -> np.ndarray:
        """Which rows, bool (N,), a metric of these options counts."""
        rows = np.ones(len(cf), bool) if options.errors else ~cf.errors()
        return rows & self.flipped(cf) if options.flipped else rows

    def oracle(self, name: str) -> Any:
        """The loaded oracle `name`."""
        try:
            return self.oracles[name]
        except KeyError:
            raise UserError(
                f"oracle {name}: not loaded; name it under `oracles:` of the experiment"
            ) from None

    def extractor(self, name: str, standard: str = STANDARD_EXTRACTOR) -> FeatureExtractor:
        """The oracle `name` as a feature extractor.

        Args:
            standard: the id that the metric's standard name belongs to.

        Raises:
            NotAvailable: its weights cannot be had.
            UserError: it has the standard id and is not of that kind, or the reverse.
        """
        judge: FeatureExtractor = self.oracle(name)
        if judge.standard != (name == standard):
            raise UserError(
                f"oracle {name}: only an oracle of kind '{standard}' may have the id "
                f"'{standard}', and it must, so that the metric's name keeps its meaning"
            )
        if judge.unavailable is not None:
            raise NotAvailable(judge.unavailable)
        return judge

    def features(self, extractor: str, images: Tensor) -> Tensor:
        """Features of float images in [0, 1], quantised to uint8 first; computed once per content.

        Returns:
            (N, D) float32 on the CPU.
        """
        return self._cached_features(extractor, quantise(images), keep=False)

    def reference_features(self, extractor: str, label: int) -> Tensor:
        """Features of the training images of class `label`: (N, D) float32 on the CPU."""
        if self.reference is None:
            raise ValueError("this context has no reference images")
        self.extractor(extractor)  # an extractor that is not available costs no reading
        return self._cached_features(extractor, self.reference(label), keep=True)

    def _cached_features(self, extractor: str, images: Tensor, keep: bool) -> Tensor:
        judge: FeatureExtractor = self.oracle(extractor)
        content = hashlib.sha256(repr(tuple(images.shape)).encode())
        content.update(images.contiguous().numpy().tobytes())
        key = (extractor, content.hexdigest())
        if key in self._features:
            return self._features[key]
        stored = None
        if keep and self.cache is not None and judge.cache_references:
            parts = (judge.fingerprint, self.device.type, torch.__version__, key[1])
            name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            stored = self.cache / f"{name}.safetensors"
        if stored is not None and stored.is_file():
            features = torch.from_numpy(np.array(files.load_tensors(stored)["features"]))
        else:
            features = judge.features(images)
            if stored is not None:
                stored.parent.mkdir(parents=True, exist_ok=True)
                files.save_tensors(stored, {"features": features.numpy()}, None)
        self._features[key] = features
        return features


class Metric:
    """A judgement of a counterfactual set.

    A subclass overrides `per_image`, `per_set` or both, and gives exactly the columns that its
    `Options` declare.
    """

    def __init__(self, options: Any, context: MetricContext) -> None:
        self.options = options
        self.context = context

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """Columns with one value per image, (N,) float64; a curve is (N, T+1).

        Raises:
            NotAvailable: with the reason that the table prints.
        """
        return {}

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """Columns with one value for the whole set.

        Raises:
            NotAvailable: with the reason that the table prints.
        """
        return {}

    def per_pair(self, sets: Sequence[CounterfactualSet]) -> dict[str, float]:
        """Columns with one value for all directions of a pair together.

        Raises:
            NotAvailable: with the reason that the table prints.
        """
        return {}

    def notes(self, cf: CounterfactualSet) -> dict[str, str]:
        """What a reader of a column must know about this set, by column; usually nothing."""
        return {}


def require_query(cf: CounterfactualSet) -> Tensor:
    """The queries of a paired set; asking an unpaired set for them is a bug."""
    if cf.query is None:
        raise ValueError(f"{cf.method} {cf.source}_to_{cf.target} has no queries")
    return cf.query
