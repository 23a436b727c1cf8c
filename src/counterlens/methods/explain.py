"""Stages `explain`, `gather` and `original-data`: counterfactual sets of one direction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterlens import layout
from counterlens.classifiers import base as classifiers
from counterlens.classifiers.base import Classifier
from counterlens.config import ORIGINAL_DATA, Experiment
from counterlens.data.base import ImageSet, load_split
from counterlens.errors import UserError
from counterlens.methods import base
from counterlens.runtime import device as devices
from counterlens.runtime import files, images
from counterlens.runtime.progress import progress
from counterlens.runtime.seeding import image_generators

PREVIEWED = 12


def test_split(experiment: Experiment, classes: Sequence[int]) -> ImageSet:
    """All test images of some classes, as the explained classifier tells them apart."""
    models = experiment.models
    path = layout.prepared(models.dataset.name, "test")
    return load_split(path, classes, models.attribute_index(experiment.classifier))


def test_images(experiment: Experiment, label: int) -> ImageSet:
    """The first test images of a class, as many as are evaluated."""
    data = test_split(experiment, [label])
    return data.select(torch.arange(min(len(data), experiment.evaluation.images)))


def queries(
    experiment: Experiment,
    source: int,
    target: int,
    number: int = 1,
    of: int = 1,
    most: int | None = None,
) -> ImageSet:
    """The test images of a direction that are explained (see `Evaluation`), or one shard of them.

    The classifier's errors come first; the last shard takes all that is left. `most` is a
    method's own limit.
    """
    evaluation = experiment.evaluation
    if evaluation.queries == "label" and not evaluation.errors:
        data = test_images(experiment, source)
    else:
        data = test_split(experiment, [source, target])
        folder = layout.classifier(experiment.models.name, experiment.classifier)
        answers = pd.read_parquet(folder / "predictions.parquet")
        as_source = torch.tensor(answers["predicted"].to_numpy())[data.index] == source
        errors = torch.nonzero(as_source & (data.labels == target)).flatten()
        wanted = data.labels == source
        if evaluation.queries == "predicted":
            wanted &= as_source
        chosen = torch.nonzero(wanted).flatten()[: evaluation.images]
        data = data.select(torch.cat([errors[: evaluation.errors], chosen]))
    data = data.select(torch.arange(min(len(data), most or len(data))))
    ends = [*(min(n * evaluation.shard_size, len(data)) for n in range(of)), len(data)]
    return data.select(torch.arange(ends[number - 1], ends[number]))


def run(
    experiment: Experiment,
    name: str,
    source: int,
    target: int,
    device: torch.device,
    number: int = 1,
    of: int = 1,
) -> None:
    """Explain all queries of a direction, or shard `number` of `of`."""
    method = base.load(experiment, name, experiment.pair_of(source, target), device)
    options = experiment.methods[name]
    data = queries(experiment, source, target, number, of, options.images)
    earlier = earlier_explanation(experiment, options.builds_on(), source, target, data)
    randomness = image_generators(
        experiment.seed, experiment.name, f"explain {name} {target}", data.index.tolist()
    )
    size = experiment.evaluation.batch_size
    explanations: list[base.Explanation] = []
    elapsed = 0.0
    starts = range(0, len(data), size)
    for start in progress(starts, len(starts), f"{name} {source} to {target}"):
        x = data.images[start : start + size].to(device, memory_format=torch.channels_last)
        sources = torch.full((len(x),), source, device=device)
        targets = torch.full((len(x),), target, device=device)
        began = time.perf_counter()
        given = (x, sources, targets, randomness[start : start + size])
        if earlier is None:
            answer = method.explain(*given)
        else:
            rows = {key: part[start : start + size].to(device) for key, part in earlier.items()}
            answer = method.explain_further(*given, rows)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed += time.perf_counter() - began
        explanations.append(answer)

    made = [answer.query for answer in explanations if answer.query is not None]
    if made:
        data = dataclasses.replace(data, images=collect(made, data.images))
    counterfactual = collect([answer.counterfactual for answer in explanations], data.images)
    tensors = {"query": data.images, "counterfactual": counterfactual}
    for extra in explanations[0].extras if explanations else {}:
        tensors[extra] = torch.cat([answer.extras[extra].float().cpu() for answer in explanations])
    table = answers(method.task.classifier, data, counterfactual, source, target)
    table["found"] = (
        torch.cat([answer.found.cpu() for answer in explanations]).numpy()
        if explanations
        else np.array([], bool)
    )
    before = (number - 1) * experiment.evaluation.shard_size
    shown = data.images[: max(0, experiment.evaluation.paths - before)]
    if len(shown):
        sources = torch.full((len(shown),), source, device=device)
        placed = shown.to(device, memory_format=torch.channels_last)
        walk = method.path(placed, sources, torch.full_like(sources, target))
        if walk is not None:
            tensors |= path_tensors(walk)
            add_path_probabilities(table, method.task.classifier, tensors["path"], source, target)

    whole = layout.counterfactuals(experiment.name, name, source, target)
    place = whole if of == 1 else layout.shard(experiment.name, name, source, target, number, of)
    timing = {
        "seconds_per_image": elapsed / max(1, len(data)),
        "images": len(data),
        "device": devices.describe(),
        "threads": torch.get_num_threads(),
    }
    timing_file = layout.timing(experiment.name, name, source, target)
    if of > 1:
        timing_file = timing_file.with_suffix(f".{number}-of-{of}.json")
    files.write_json(timing_file, timing)
    metadata = describe(experiment, name, source, target)
    write(place, {k: v.numpy() for k, v in tensors.items()}, table, metadata, preview=of == 1)


def earlier_explanation(
    experiment: Experiment, method: str | None, source: int, target: int, data: ImageSet
) -> dict[str, Tensor] | None:
    """What a method that is built on made of the queries; None where there is no such method.

    Raises:
        UserError: its counterfactual set lacks a query.
    """
    if method is None:
        return None
    place = layout.counterfactuals(experiment.name, method, source, target)
    file = place.with_name(f"{place.name}.safetensors")
    images = pd.read_parquet(place.with_name(f"{place.name}.parquet"))["image"]
    rows = pd.Index(images).get_indexer(pd.Index(data.index.numpy()))
    if (rows < 0).any():
        raise UserError(f"{file}: lacks {int((rows < 0).sum())} of the queries; make it again")
    return {
        key: torch.from_numpy(value[rows])
        for key, value in files.load_tensors(file).items()
        if not key.startswith("path")
    }


def collect(parts: list[Tensor], like: Tensor) -> Tensor:
    """Batches of images joined on the CPU; an empty set keeps the images' shape."""
    if not parts:
        return torch.empty_like(like)
    return torch.cat([part.float().cpu().contiguous() for part in parts])


def answers(
    classifier: Classifier, data: ImageSet, counterfactual: Tensor, source: int, target: int
) -> pd.DataFrame:
    """One row per image: what the classifier says before and after."""
    columns: dict[str, object] = {
        "image": data.index.numpy(),
        "label": data.labels.numpy(),
        "source": np.full(len(data), source),
        "target": np.full(len(data), target),
    }
    for kind, shown in (("query", data.images), ("counterfactual", counterfactual)):
        answers = classifier.probabilities(shown).numpy()
        answers = answers if len(shown) else np.zeros((0, max(source, target) + 1), np.float32)
        columns[f"predicted_{kind}"] = answers.argmax(axis=1)
        columns[f"source_probability_{kind}"] = answers[:, source]
        columns[f"target_probability_{kind}"] = answers[:, target]
    return pd.DataFrame(columns)


def path_tensors(walk: base.Walk) -> dict[str, Tensor]:
    """What is kept of a walk, one row per query, on the CPU."""
    tensors = {
        "path": walk.images,
        "path_position": walk.position.expand(len(walk.images), -1),
        "path_intended": walk.intended,
        "path_features": walk.features,
    }
    return {name: tensor.float().cpu() for name, tensor in tensors.items() if tensor is not None}


def add_path_probabilities(
    table: pd.DataFrame, classifier: Classifier, path: Tensor, source: int, target: int
) -> None:
    """List columns with the classifier's answers along the path of the first images."""
    count, steps = path.shape[:2]
    answers = classifier.probabilities(path.flatten(0, 1)).numpy().reshape(count, steps, -1)
    empty: list[object] = [None] * (len(table) - count)
    for kind, index in (("source", source), ("target", target)):
        table[f"path_{kind}_probability"] = [*answers[:, :, index].tolist(), *empty]
    table["path_predicted"] = [*answers.argmax(axis=2).tolist(), *empty]


def describe(experiment: Experiment, name: str, source: int, target: int) -> dict[str, str]:
    """The metadata of a counterfactual set."""
    return {
        "experiment": experiment.name,
        "method": name,
        "source": str(source),
        "target": str(target),
    }


def write(
    place: Path,
    tensors: dict[str, np.ndarray],
    table: pd.DataFrame,
    metadata: dict[str, str],
    preview: bool,
) -> None:
    """Write `.safetensors`, `.parquet` and, for a whole set, the preview `.png`."""
    files.save_tensors(place.with_name(f"{place.name}.safetensors"), tensors, metadata)
    files.write_parquet(place.with_name(f"{place.name}.parquet"), table)
    if preview:
        counterfactual = tensors["counterfactual"][:PREVIEWED]
        rows = [counterfactual]
        if "query" in tensors:
            query = tensors["query"][:PREVIEWED]
            rows = [query, counterfactual, np.abs(counterfactual - query)]
        picture = images.grid(images.to_uint8(np.concatenate(rows)), max(1, len(counterfactual)))
        images.write_png(place.with_name(f"{place.name}.png"), picture, zoom=2)


def gather(experiment: Experiment, name: str, source: int, target: int, of: int) -> None:
    """Join the shards of a direction, in order, and their timings."""
    shards = [
        layout.shard(experiment.name, name, source, target, number, of)
        for number in range(1, of + 1)
    ]
    parts = [files.load_tensors(shard.with_name(f"{shard.name}.safetensors")) for shard in shards]
    parts = [part for part in parts if len(part["counterfactual"])] or parts[:1]
    tensors = {
        key: np.concatenate([part[key] for part in parts if key in part]) for key in parts[0]
    }
    tables = [pd.read_parquet(shard.with_name(f"{shard.name}.parquet")) for shard in shards]
    table = pd.concat([part for part in tables if len(part)] or tables[:1], ignore_index=True)
    whole = layout.counterfactuals(experiment.name, name, source, target)
    write(whole, tensors, table, describe(experiment, name, source, target), preview=True)
    timing_file = layout.timing(experiment.name, name, source, target)
    timings = [
        files.read_json(timing_file.with_suffix(f".{number}-of-{of}.json"))
        for number in range(1, of + 1)
    ]
    count = sum(timing["images"] for timing in timings)
    seconds = sum(timing["seconds_per_image"] * timing["images"] for timing in timings)
    merged = {**timings[0], "images": count, "seconds_per_image": seconds / max(1, count)}
    files.write_json(timing_file, merged)


def original_data(experiment: Experiment, source: int, target: int, device: torch.device) -> None:
    """The reference row of the tables: real test images of the target class, unpaired."""
    data = test_images(experiment, target)
    classifier = classifiers.load(experiment.models, experiment.classifier, device)
    table = answers(classifier, data, data.images, source, target)
    table = table.drop(columns=[name for name in table if str(name).endswith("_query")])
    table["found"] = True
    metadata = describe(experiment, ORIGINAL_DATA, source, target)
    place = layout.counterfactuals(experiment.name, ORIGINAL_DATA, source, target)
    write(place, {"counterfactual": data.images.numpy()}, table, metadata, preview=True)
