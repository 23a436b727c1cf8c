"""A finished experiment made of synthetic files, in exactly the formats of the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    ClassifierOptions,
    Column,
    DatasetOptions,
    Evaluation,
    Experiment,
    GeneratorOptions,
    MethodOptions,
    MetricOptions,
    Models,
    Pair,
)
from counterlens.plan import inputs
from counterlens.runtime import files

SIDE = 28


class PairGenerator(GeneratorOptions):
    """A generator that is trained per pair."""

    per_pair: ClassVar[bool] = True


class Trainable(MethodOptions):
    """A method with a latent space."""

    trainable: ClassVar[bool] = True
    generator: str = "dcgan"

    def generators(self) -> tuple[str, ...]:
        return (self.generator, "encoder")


class Walking(MethodOptions):
    """A method whose way goes beyond the counterfactual and intends confidences."""

    trainable: ClassVar[bool] = True

    @property
    def animated(self) -> bool:
        return True


class PerImage(MetricOptions):
    """Validity and COUT, one value per image and its query."""

    def columns(self) -> tuple[Column, ...]:
        return (
            Column(name="validity", label="Val", direction="up"),
            Column(name="cout", label="COUT", direction="up"),
        )


class Unpaired(MetricOptions):
    """IM2, one value per image, of real images too."""

    paired: ClassVar[bool] = False

    def columns(self) -> tuple[Column, ...]:
        return (Column(name="im2", label="IM2", direction="down", scale=10, unit="a|b"),)


class PerSet(MetricOptions):
    """FID and KID, one value per set."""

    paired: ClassVar[bool] = False

    def columns(self) -> tuple[Column, ...]:
        return (
            Column(name="fid", label="FID", direction="down", per="set", decimals=2),
            Column(name="kid_oracle", label="KID", direction="down", per="set", scale=1000),
        )


@dataclass
class Made:
    """The experiment and the values written for it: method, direction, column -> (N,)."""

    experiment: Experiment
    values: dict[tuple[str, Pair, str], np.ndarray]


Make = Callable[..., Made]


def _blob(rng: np.random.Generator, channels: int, label: int) -> np.ndarray:
    """A soft ring whose place depends on the class: looks a little like a digit."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    center = 0.35 + 0.3 * ((label * 7) % 10) / 10
    radius = np.hypot(x - 0.5 + rng.normal(0, 0.02), y - center)
    image = np.exp(-(((radius - 0.16 - 0.01 * label) / 0.06) ** 2))
    tint = np.linspace(1, 0.4 + 0.06 * (label % 10), channels)[:, None, None]
    return (image[None] * tint).clip(0, 1).astype(np.float32)


def _write_set(
    experiment: Experiment,
    method: str,
    direction: Pair,
    images: int,
    steps: int,
    channels: int,
    errors: int,
) -> None:
    source, target = direction
    rng = np.random.default_rng([source, target, len(method)])
    query = np.stack([_blob(rng, channels, source) for _ in range(images)])
    goal = np.stack([_blob(rng, channels, target) for _ in range(images)])
    share = np.linspace(0, 1, steps, dtype=np.float32)
    path = np.stack([query * (1 - s) + goal * s for s in share], axis=1)
    tensors = {"query": query, "counterfactual": path[:, -1]}
    after = rng.uniform(0.4, 1, images)
    along = np.linspace(0.02, after, steps, axis=1)
    if method.startswith("mirror"):
        along = np.linspace(0.02, 0.9 + 0.1 * after, steps, axis=1)
        first = (along > 0.5).argmax(axis=1)
        rows = np.arange(images)
        after = along[rows, first]
        tensors["counterfactual"], tensors["position"] = path[rows, first], share[first]
    table = pd.DataFrame(
        {
            "image": np.arange(images) * 3 + source,
            "label": np.where(np.arange(images) < errors, target, source),
            "source": source,
            "target": target,
            "predicted_query": source,
            "predicted_counterfactual": np.where(after > 0.5, target, source),
            "found": after > 0.45,
            "source_probability_query": 0.97,
            "target_probability_query": 0.02,
            "source_probability_counterfactual": 1 - after,
            "target_probability_counterfactual": after,
        }
    )
    if method != "pgd":
        tensors["path"] = path
        tensors["path_position"] = np.tile(share, (images, 1))
        table["path_target_probability"] = along.tolist()
        table["path_source_probability"] = (0.99 - along).tolist()
        table["path_predicted"] = np.where(along > 0.5, target, source).tolist()
    if method.startswith("c3lt"):
        tensors["latent"] = rng.normal(size=(images, 100)).astype(np.float32)
        change = rng.normal(0.2, 0.05, (images, 100)).astype(np.float32)
        tensors["latent_counterfactual"] = tensors["latent"] + change
    if method.startswith("mirror"):
        intended = np.zeros((images, steps, len(experiment.classes)), np.float32)
        intended[..., target] = 0.05 + 0.9 * share
        intended[..., source] = 1 - intended[..., target]
        tensors["path_intended"] = intended
        tensors["path_features"] = rng.normal(size=(images, steps, 16)).astype(np.float32)
        tensors["latent"] = _features(rng, np.full(images, source))
        tensors["latent_counterfactual"] = _features(rng, np.full(images, target))
    stem = layout.counterfactuals(experiment.name, method, *direction)
    facts = {"experiment": experiment.name, "method": method}
    facts |= {"source": str(source), "target": str(target)}
    files.save_tensors(stem.with_suffix(".safetensors"), tensors, facts)
    files.write_parquet(stem.with_suffix(".parquet"), table)


def _features(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Features in a cluster for each class, float32 (N, 16)."""
    return (6 * np.eye(16)[labels % 16] + rng.normal(0, 0.5, (len(labels), 16))).astype(np.float32)


def _write_metrics(made: Made, method: str, direction: Pair, images: int) -> None:
    rng = np.random.default_rng([direction[0], direction[1], len(method), 7])
    stem = layout.metrics(made.experiment.name, method, *direction)
    paired = method != ORIGINAL_DATA
    table = pd.DataFrame({"image": np.arange(images) * 3 + direction[0]})
    columns = {"im2": rng.uniform(0.02, 0.06, images)}
    if paired:
        columns["validity"] = (rng.uniform(size=images) < 0.9).astype(np.float64)
        columns["cout"] = rng.uniform(-1, 1, images)
    for name, values in columns.items():
        table[name] = values
        made.values[method, direction, name] = values
    if paired:
        table["aupc_source"] = table["aupc_target"] = 0.5
        table["curve_source"] = [np.linspace(1, 0, 54).tolist()] * images
        table["curve_target"] = [np.linspace(0, 1, 54).tolist()] * images
    kid = float(rng.uniform(0.01, 0.05))
    made.values[method, direction, "kid_oracle"] = np.array([kid])
    files.write_parquet(stem.with_suffix(".parquet"), table)
    files.write_json(
        stem.with_suffix(".json"),
        {
            "experiment": made.experiment.name,
            "method": method,
            "source": direction[0],
            "target": direction[1],
            "images": images,
            "per_image": {name: float(values.mean()) for name, values in columns.items()},
            "per_set": {"kid_oracle": kid},
            "not_available": {"fid": "weight inception: <no source> answered"},
            "notes": {"kid_oracle": "subset size <13>"},
        },
    )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a finished experiment below a fresh current folder."""
    monkeypatch.chdir(tmp_path)

    def write(
        *,
        name: str = "toy",
        classes: tuple[str, ...] = tuple("0123456789"),
        pairs: tuple[Pair, ...] = ((3, 8), (4, 9), (5, 6)),
        images: int = 14,
        steps: int = 4,
        channels: int = 1,
        errors: int = 0,
        mirror: bool = False,
    ) -> Made:
        class Toy(DatasetOptions):
            shape: ClassVar[tuple[int, int, int]] = (channels, SIDE, SIDE)
            licence: ClassVar[str] = "none"

        Toy.classes = classes
        experiment = Experiment(
            name=name,
            description="Synthetic rings that stand in for digits.",
            models=Models(
                name=name,
                scale="small",
                seed=85,
                dataset=Toy(kind="toy"),
                classifiers={"lenet": ClassifierOptions(kind="lenet")},
                generators={
                    "dcgan": GeneratorOptions(kind="dcgan"),
                    "encoder": PairGenerator(kind="dcgan-encoder"),
                },
            ),
            classifier="lenet",
            pairs=pairs,
            methods={
                "c3lt": Trainable(kind="c3lt"),
                "pgd": MethodOptions(kind="pgd"),
                "c3lt-cls": Trainable(kind="c3lt", pairs=(pairs[-1],)),
                **({"mirror-cfe": Walking(kind="mirror-cfe")} if mirror else {}),
            },
            metrics=(PerImage(kind="validity"), Unpaired(kind="im"), PerSet(kind="fid")),
            evaluation=Evaluation(images=images),
        )
        made = Made(experiment, {})
        for method in experiment.methods:
            for direction in experiment.directions(method):
                _write_set(experiment, method, direction, images, steps, channels, errors)
                timing = {"seconds_per_image": 0.5, "images": images, "threads": 1}
                files.write_json(
                    layout.timing(name, method, *direction), {**timing, "device": "A | CPU"}
                )
        for path in {*inputs.cost_inputs(experiment)} - {*inputs.timing_inputs(experiment)}:
            seconds = 3.0 if "models" in path.parts else 2.0
            files.write_json(path, {"seconds": seconds, "device": "A | CPU", "threads": 1})
        for method in (*experiment.methods, ORIGINAL_DATA):
            for direction in experiment.directions(method):
                _write_metrics(made, method, direction, images)
        for path in inputs.curve_files(experiment):
            epochs = np.arange(1, 31)
            loss = np.exp(-epochs / 9) + 0.03 * np.sin(epochs * len(str(path)))
            frame = pd.DataFrame({"epoch": epochs, "loss": loss, "proximity": loss / 3 + 0.1})
            files.write_csv(path, frame)
        for path in inputs.sample_sheets(experiment):
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(3)
            rows = [
                np.hstack([_blob(rng, channels, row + column)[0] for column in range(8)])
                for row in range(8)
            ]
            Image.fromarray((np.vstack(rows) * 255).astype(np.uint8)).save(path)
        for path in inputs.cards(experiment):
            gate = {"value": 0.5, "threshold": 0.6, "bound": "at least", "passed": False}
            fine = {"value": 0.99, "threshold": 0.97, "bound": "at least", "passed": True}
            card = {"gates": {"class_kept": fine}}
            if path.parent.name == "all-classes":
                card = {"gates": {"confident_samples": gate}}
            files.write_json(path, card)
        labels = np.arange(200) % len(classes)
        predicted = labels.copy()
        predicted[:3] = (predicted[:3] + 1) % len(classes)
        files.write_parquet(
            inputs.predictions(experiment),
            pd.DataFrame({"image": np.arange(200), "label": labels, "predicted": predicted}),
        )
        files.save_tensors(
            inputs.embeddings(experiment),
            {"features": _features(np.random.default_rng(5), labels), "labels": labels},
        )
        files.write_json(
            inputs.dataset_card(experiment),
            {"name": "toy", "classes": list(classes), "licence": "none", "shape": [1, 28, 28]},
        )
        return made

    return write
