"""From downloaded files to `train.safetensors`, `test.safetensors` and `dataset.json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from counterlens.config import DatasetOptions
from counterlens.data.base import (
    SPLITS,
    Arrays,
    Dataset,
    DatasetCard,
    SplitRecord,
)
from counterlens.data.formats.fetch import load_dataset
from counterlens.errors import UserError
from counterlens.runtime import files


def prepare(dataset: DatasetOptions, raw: Path, out: Path) -> DatasetCard:
    """Read a dataset's raw files, check them and write its two splits and its card.

    Equal raw files give equal bytes. The tensors are `images` uint8 (N, C, H, W), `labels`
    int64 (N,) and, where the dataset names any, `attributes` uint8 (N, A), in its own order.

    Args:
        dataset: the dataset.
        raw: the folder of downloaded files, normally `data/raw/<dataset>`.
        out: the folder to write to, normally `data/prepared/<dataset>`.

    Raises:
        UserError: a raw file is missing, has the wrong SHA-256 or cannot be read, or a split is
            not what the dataset's options promise.
    """
    chosen = load_dataset(dataset)
    for source in chosen.sources:
        file = raw / source.file
        if not file.is_file():
            raise UserError(f"{file}: no such file; download the dataset first")
        found = source.found(file)
        if found != source.sha256:
            raise UserError(
                f"{file}: is not the file with {source.checksum} (found {found}); "
                "delete it and download it again"
            )
    splits = chosen.read(raw)
    card = DatasetCard(
        name=chosen.name,
        classes=chosen.classes,
        attributes=chosen.attributes,
        shape=chosen.shape,
        licence=chosen.licence,
        sources=chosen.records(raw),
        splits={name: _check(chosen, name, splits[name]) for name in SPLITS},
    )
    for name in SPLITS:
        tensors = {key: array for key, array in splits[name]._asdict().items() if array is not None}
        files.save_tensors(out / f"{name}.safetensors", tensors)
    files.write_json(out / "dataset.json", card.model_dump(mode="json"))
    return card


def _check(dataset: Dataset, name: str, split: Arrays) -> SplitRecord:
    images, labels, attributes = split

    def wrong(problem: str) -> UserError:
        return UserError(f"dataset {dataset.name}: {name} split: {problem}; correct its read()")

    if images.dtype != np.uint8 or images.shape[1:] != dataset.shape:
        raise wrong(f"images are {images.dtype} {images.shape[1:]}, not uint8 {dataset.shape}")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise wrong(f"labels are {labels.dtype} {labels.shape}, not int64 {images.shape[:1]}")
    if len(labels) == 0:
        raise wrong("has no images")
    if labels.min() < 0 or labels.max() >= max(1, len(dataset.classes)):
        raise wrong(f"labels run from {labels.min()} to {labels.max()}, not 0 to K-1")
    known = np.empty((len(labels), 0), np.uint8) if attributes is None else attributes
    named = (len(labels), len(dataset.attributes))
    if known.dtype != np.uint8 or known.shape != named:
        raise wrong(f"attributes are {known.dtype} {known.shape}, not uint8 {named}")
    if known.max(initial=0) > 1:
        raise wrong(f"attributes run to {known.max()}, not to 1")
    per_class = np.bincount(labels, minlength=len(dataset.classes))[: len(dataset.classes)]
    return SplitRecord(
        images=len(labels),
        per_class=tuple(per_class.tolist()),
        per_attribute=tuple(known.sum(axis=0, dtype=np.int64).tolist()),
    )
