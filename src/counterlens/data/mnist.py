"""MNIST handwritten digits (LeCun, Bottou, Bengio and Haffner, 1998): 60,000 + 10,000 images."""

from __future__ import annotations

from typing import ClassVar

from counterlens.config import DatasetOptions
from counterlens.data.base import Source
from counterlens.data.formats.idx import IdxDataset


class Options(DatasetOptions):
    """MNIST as published; nothing to choose."""

    classes: ClassVar[tuple[str, ...]] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    files: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    licence: ClassVar[str] = "CC BY-SA 3.0 (as commonly cited; the files carry no licence)"


def _source(file: str, sha256: str) -> Source:
    hosts = (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        "https://raw.githubusercontent.com/fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e",
        "http://yann.lecun.com/exdb/mnist",
    )
    return Source(file, tuple(f"{host}/{file}" for host in hosts), sha256)


class Mnist(IdxDataset):
    """The four IDX files, in the official order."""

    sources = (
        _source(
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        _source(
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        _source(
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        _source(
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
