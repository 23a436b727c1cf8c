"""The project folder, small networks and a way to kill a training half-way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    from counterlens.config import DatasetOptions, Experiment
    from counterlens.data.base import ImageSet

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, as the current folder."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture
def copied_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of `config/`, as the current folder."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Killed(BaseException):
    """Stands for a signal: nothing in the package may catch it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, int], type[BaseException]]:
    """Make a module's training die inside an epoch (from 1), after its first step."""

    def arm(module: ModuleType, epoch: int) -> type[BaseException]:
        seeds: list[int] = []

        def batches(count: int, size: int, seed: int) -> Iterator:
            if seed not in seeds:
                seeds.append(seed)
            number = seeds.index(seed) + 1
            for step, index in enumerate(original(count, size, seed)):
                if number == epoch and step == 1:
                    monkeypatch.setattr(module, "batches", original)
                    raise Killed
                yield index

        original = module.batches
        monkeypatch.setattr(module, "batches", batches)
        return Killed

    return arm


@pytest.fixture(scope="session")
def shapes() -> Callable[..., ImageSet]:
    """Noisy 28x28 images with a bright square whose place and stripes are the label's."""

    def make(count: int, labels: Sequence[int] = (0, 1, 2), seed: int = 0) -> ImageSet:
        import torch

        from counterlens.data.base import ImageSet

        random = torch.Generator().manual_seed(seed)
        y = torch.tensor([labels[number % len(labels)] for number in range(count)])
        images = torch.randint(0, 50, (count, 1, 28, 28), generator=random)
        for image, label in zip(images, y.tolist(), strict=True):
            top, left = 6 * (label // 4) + 2, 6 * (label % 4)
            rows, columns = ((2, 1), (1, 2), (1, 1))[label % 3]
            image[:, top : top + 10 : rows, left : left + 10 : columns] += 200
        return ImageSet(images / 255, y, torch.arange(count))

    return make


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """An experiment with its own models on MNIST's shape, as a test asks for it.

    `classifier` is the options of the only one, or the id of one of `classifiers`.
    """

    def make(**sections: Any) -> Experiment:
        from counterlens import plugins
        from counterlens.config import Experiment, MethodOptions, Models
        from counterlens.experiments import with_only_classifier

        def options(section: str, value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return plugins.options_class(section, value["kind"]).model_validate(value)

        def named(section: str) -> dict[str, Any]:
            return {name: options(section, v) for name, v in sections.pop(section, {}).items()}

        name = sections.pop("name", "tiny")
        classifier = sections.pop("classifier", {"kind": "lenet", "epochs": 1})
        classifiers = named("classifiers")
        if not classifiers:
            only = options("classifiers", classifier)
            classifiers, classifier = {only.kind: only}, only.kind
        models = Models(
            name=name,
            scale=sections.pop("scale", "small"),
            seed=sections.pop("seed", 85),
            dataset=sections.pop("dataset", options("data", {"kind": "mnist"})),
            classifiers=classifiers,
            generators=named("generators"),
            oracles=named("oracles"),
        )
        return Experiment(
            name=name,
            models=with_only_classifier(models),
            classifier=classifier,
            methods=named("methods") or {"none": MethodOptions(kind="none")},
            **{"pairs": [(4, 9)], "evaluation": {"images": 60}, **sections},
        )

    return make


@pytest.fixture
def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: Callable[..., ImageSet]
) -> Callable[..., None]:
    """Prepare square images as MNIST, in an empty folder that becomes the current."""
    monkeypatch.chdir(tmp_path)

    def write(train: int, test: int, labels: Sequence[int] = (4, 9)) -> None:
        from counterlens import layout
        from counterlens.runtime import files

        for split, count in (("train", train), ("test", test)):
            data = shapes(count, labels, seed=len(split))
            tensors = {
                "images": (data.images * 255).round().byte().numpy(),
                "labels": data.labels.numpy(),
            }
            files.save_tensors(layout.prepared("mnist", split), tensors)

    return write


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetOptions:
    """Left or right squares, dark or bright, prepared in an empty folder: attributes, no classes.

    A quarter of the images has each combination of `right` and `bright`; `left` is not `right`.
    """
    import numpy as np

    from counterlens import layout
    from counterlens.config import DatasetOptions
    from counterlens.runtime import files

    class Squares(DatasetOptions):
        attributes: ClassVar[tuple[str, ...]] = ("right", "left", "bright")
        shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
        licence: ClassVar[str] = "none"

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 40)):
        right, bright = np.arange(count) % 2, np.arange(count) // 2 % 2
        images = random.integers(0, 30, (count, 1, 28, 28))
        for row in range(count):
            start = 14 * right[row]
            images[row, :, 6:22, start : start + 12] += 100 + 100 * bright[row]
        tensors = {
            "images": images.astype(np.uint8),
            "labels": np.zeros(count, np.int64),
            "attributes": np.stack([right, 1 - right, bright], axis=1).astype(np.uint8),
        }
        files.save_tensors(layout.prepared("squares", split), tensors)
    return Squares(kind="squares")


@pytest.fixture
def digests() -> Callable[[], dict[str, str]]:
    """SHA-256 of every file under `results`, timings aside, and that no checkpoint is left."""

    def read() -> dict[str, str]:
        from counterlens import layout
        from counterlens.runtime import files

        kept = layout.CHECKPOINTS
        assert not (kept.exists() and list(kept.iterdir())), "a checkpoint is left"
        return {
            str(path): files.sha256(path)
            for path in sorted(layout.RESULTS.rglob("*"))
            if path.is_file() and layout.TIMINGS not in path.parents
        }

    return read


@pytest.fixture(scope="session")
def frozen() -> Callable[..., Any]:
    """Freeze a network with batch statistics as if it had been trained on the given input."""

    def make(model: Any, run: Callable[[], object] | None = None) -> Any:
        import torch

        from counterlens.runtime.device import freeze

        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        if run is not None:
            for norm in norms:
                norm.momentum = 1.0
            model.train()
            with torch.no_grad():
                run()
            for norm in norms:
                norm.momentum = 0.1
        return freeze(model, torch.device("cpu"))

    return make
