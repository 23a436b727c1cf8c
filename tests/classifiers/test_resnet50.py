"""torchvision's ResNet-50 with random weights saved in the published format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterlens import layout
from counterlens.classifiers import adopt, base, resnet50
from counterlens.classifiers.resnet50 import WEIGHT, Options, ResNet50
from counterlens.data.base import load_split
from counterlens.data.formats.weights import WEIGHTS
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.device import freeze

CPU = torch.device("cpu")
CHOSEN = (7, 999, 0)


def model(shape: tuple[int, int, int] = (3, 40, 48), crop: int = 32, classes: int = 3) -> ResNet50:
    options = Options.model_validate({"kind": "resnet50", "imagenet": CHOSEN, "crop": crop})
    return ResNet50(options, shape, classes)


@pytest.fixture(scope="module")
def released() -> torch.nn.Module:
    """The network of torchvision itself, with weights that are not torch's initial ones."""
    from torchvision.models import resnet50

    torch.manual_seed(4)
    network = resnet50(weights=None).train()
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 64))
    return network.eval()


@pytest.fixture
def record(released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weight as it lies in a project once it is fetched."""
    monkeypatch.chdir(tmp_path)
    file = layout.WEIGHTS / WEIGHTS[WEIGHT].source.file
    file.parent.mkdir(parents=True)
    torch.save(released.state_dict(), file)
    path = layout.weight(WEIGHT)
    fetched = {"name": WEIGHT, "available": True, "file": file.as_posix(), "reason": None}
    files.write_json(path, {**fetched, "sha256": files.sha256(file)})
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(2))


def test_answers_are_torchvision_s_for_the_classes(record, released, images: Tensor) -> None:
    from torchvision.transforms.functional import center_crop, normalize

    made = model()
    made.read_weights()
    seen = normalize(center_crop(images, [32, 32]), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = released(seen)[:, list(CHOSEN)]
        torch.testing.assert_close(made.eval()(images), expected)
        freeze(made, CPU)
        torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=1e-4)
        maps = made.maps(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, 8, 8),
        (512, 4, 4),
        (1024, 2, 2),
        (2048, 1, 1),
    ]
    torch.testing.assert_close(made.head(maps[-1].mean((2, 3))), expected, atol=1e-4, rtol=1e-4)


def test_images_below_the_crop_are_seen_whole(record, released) -> None:
    made = model(crop=224)
    made.read_weights()
    x = torch.rand(1, 3, 33, 35)
    with torch.no_grad():
        found = made.eval()(x)
        expected = released((x - made.mean) / made.deviation)[:, list(CHOSEN)]
    torch.testing.assert_close(found, expected)


def test_a_weight_that_cannot_be_had(record: Path) -> None:
    content = files.read_json(record)
    files.write_json(record, {**content, "file": None, "available": False, "reason": "no route"})
    with pytest.raises(UserError) as caught:
        model().read_weights()
    words = str(caught.value)
    assert words.startswith("resnet50-imagenet is not available: no route; put resnet50-")
    assert "COUNTERLENS_MIRROR" in words and "\n" not in words


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_another_network(record: Path, released, damage: str) -> None:
    content = files.read_json(record)
    state = dict(released.state_dict())
    if damage == "missing":
        del state["fc.bias"]
    else:
        state["conv1.weight"] = torch.zeros(3)
    torch.save(state, content["file"])
    files.write_json(record, {**content, "sha256": files.sha256(Path(content["file"]))})
    with pytest.raises(UserError, match="is no ResNet-50 of torchvision"):
        model().read_weights()


@pytest.mark.parametrize(("shape", "classes"), [((1, 40, 40), 3), ((3, 40, 40), 4)])
def test_another_dataset(shape: tuple[int, int, int], classes: int) -> None:
    with pytest.raises(UserError, match=f"each of the {classes} classes; there are 3, and"):
        model(shape, classes=classes)


def test_the_stage_reads_and_does_not_train(record, make_experiment) -> None:
    experiment = make_experiment(
        dataset=_rgb(), classifier={"kind": "resnet50", "imagenet": CHOSEN, "crop": 32}
    )
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 4), ("test", 6)):
        tensors = {
            "images": torch.randint(0, 256, (count, 3, 40, 48), generator=generator).byte().numpy(),
            "labels": (torch.arange(count) % 3).numpy(),
        }
        files.save_tensors(layout.prepared("rgb", split), tensors)
    adopt.run(experiment.models, experiment.classifier, CPU)
    card = files.read_json(layout.classifier("tiny", "resnet50") / "card.json")
    assert card["epochs"] == 0 and card["parameters"] == 23_508_032 + 3 * 2049
    loaded = base.load(experiment.models, experiment.classifier, CPU)
    assert isinstance(loaded, resnet50.ResNet50)
    test = load_split(layout.prepared("rgb", "test"))
    expected = model()
    expected.read_weights()
    torch.testing.assert_close(
        loaded.probabilities(test.images),
        expected.eval().probabilities(test.images),
        atol=1e-4,
        rtol=1e-4,
    )


def _rgb():
    from typing import ClassVar

    from counterlens.config import DatasetOptions

    class Rgb(DatasetOptions):
        classes: ClassVar[tuple[str, ...]] = ("cock", "tissue", "tench")
        shape: ClassVar[tuple[int, int, int]] = (3, 40, 48)
        licence: ClassVar[str] = "none"

    return Rgb(kind="rgb")
