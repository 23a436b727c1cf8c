"""Named pretrained weights: what each file is, where it comes from, and whether it is here.

A weight that cannot be had is not an error: its record says so with the reason, and the metric
that needs it is reported as not available.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from counterlens.config import Model
from counterlens.data.base import Source
from counterlens.data.formats.fetch import FetchError, fetch
from counterlens.errors import UserError
from counterlens.runtime import files

MIRROR_FOLDER = "weights"


@dataclass(frozen=True)
class Weight:
    """A named weight: the file and the licence it is published under."""

    source: Source
    licence: str


WEIGHTS = {
    # The 2015 TensorFlow Inception used by FID and KID, converted to PyTorch. The two releases
    # carry the same bytes (95,628,359) under two names.
    "inception-v3-fid": Weight(
        Source(
            "weights-inception-2015-12-05-6726825d.pth",
            (
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth",
            ),
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
        "Apache-2.0",
    ),
    # torchvision's ResNet-50, its first weights (IMAGENET1K_V1): the classifier of ImageNet pairs.
    "resnet50-imagenet": Weight(
        Source(
            "resnet50-0676ba61.pth",
            ("https://download.pytorch.org/models/resnet50-0676ba61.pth",),
            "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        "BSD-3-Clause",
    ),
    # torchvision's SqueezeNet 1.1, the smallest of the networks that LPIPS is published for.
    "squeezenet-1.1-imagenet": Weight(
        Source(
            "squeezenet1_1-b8a52dc0.pth",
            ("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",),
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        ),
        "BSD-3-Clause",
    ),
}


class WeightRecord(Model):
    """The content of `data/weights/<weight>.json`; `file` and `reason` exclude each other."""

    name: str
    available: bool
    file: str | None
    sha256: str
    reason: str | None


def fetch_weight(name: str, output: Path, mirror: str | None = None) -> WeightRecord:
    """Fetch a named weight into the folder of `output` and record there whether it is to be had.

    Args:
        name: a name in `WEIGHTS`.
        output: the record to write, normally `data/weights/<name>.json`.
        mirror: a mirror folder or URL; `COUNTERLENS_MIRROR` wins over it.

    Raises:
        UserError: there is no weight of that name, or the folder cannot be written.
    """
    if name not in WEIGHTS:
        raise UserError(f"weight '{name}' is unknown; allowed: {', '.join(sorted(WEIGHTS))}")
    source = WEIGHTS[name].source
    file: str | None = None
    reason: str | None = None
    try:
        file = fetch(source, MIRROR_FOLDER, output.parent / source.file, mirror).as_posix()
    except FetchError as error:
        reason = "; ".join(error.reasons)
    record = WeightRecord(
        name=name, available=file is not None, file=file, sha256=source.sha256, reason=reason
    )
    files.write_json(output, record.model_dump(mode="json"))
    return record


def load_weight_record(path: Path) -> WeightRecord:
    """Read `data/weights/<weight>.json`.

    Raises:
        UserError: the record is missing or damaged, or names a file that is not there or has
            the wrong SHA-256.
    """
    content = files.read_json(path)
    try:
        record = WeightRecord.model_validate(content)
    except ValidationError:
        raise UserError(f"{path}: not a weight record; delete it and fetch again") from None
    if record.file is not None:
        file = Path(record.file)
        if not file.is_file() or files.sha256(file) != record.sha256:
            raise UserError(
                f"{file}: missing or changed, though {path} records it; delete {path} and fetch "
                "the weight again"
            )
    return record
