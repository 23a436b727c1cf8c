"""The gallery of a report: queries with every method's counterfactual, each picture once."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from counterlens import layout
from counterlens.config import ORIGINAL_DATA, Experiment, Pair
from counterlens.plan.inputs import methods_on
from counterlens.reports import aggregate
from counterlens.runtime import files

DIFFERENCE_LIMIT = 0.5
DARKER, BRIGHTER = (33, 102, 172), (200, 50, 40)


def png(image: np.ndarray) -> bytes:
    """Encode an image.

    Args:
        image: (C, H, W) float in [0, 1] with 1 or 3 channels, or (H, W, 4) uint8.
    """
    if image.dtype == np.uint8:
        picture = Image.fromarray(image, "RGBA")
    else:
        pixels = np.rint(image.astype(np.float64) * 255).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def difference_map(query: np.ndarray, counterfactual: np.ndarray) -> np.ndarray:
    """What changed: blue where darker, red where brighter, clear where equal.

    Args:
        query, counterfactual: (C, H, W) float in [0, 1]; colour channels are averaged.

    Returns:
        (H, W, 4) uint8 RGBA; opaque from a change of 0.5 on.
    """
    change = (counterfactual.astype(np.float64) - query.astype(np.float64)).mean(0)
    strength = np.clip(np.abs(change) / DIFFERENCE_LIMIT, 0, 1)
    out = np.zeros((*change.shape, 4), dtype=np.uint8)
    out[..., :3] = np.where(change[..., None] < 0, DARKER, BRIGHTER)
    out[..., 3] = np.rint(strength * 255)
    out[out[..., 3] == 0] = 0
    return out


@dataclass
class Pictures:
    """Every distinct image of the page, embedded once.

    The first use of an image carries its bytes, later uses name its id and are filled in by the
    script; frames of a path that stand nowhere else go to the script's own list, after all
    images of the page are known.
    """

    ids: dict[str, str] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)
    bytes: int = 0

    def inline(self, content: bytes) -> dict[str, str | None]:
        """`id` and `src` of a first use, or `same_as` of a later one."""
        key = hashlib.sha256(content).hexdigest()
        if key in self.ids:
            return {"id": None, "src": None, "same_as": self.ids[key]}
        self.ids[key] = f"i{len(self.ids)}"
        self.bytes += len(content) * 4 // 3
        return {"id": self.ids[key], "src": data_uri(content), "same_as": None}

    def frame(self, content: bytes) -> str:
        """A reference the script understands: `i…` an image of the page, `f…` a frame."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self.ids:
            self.ids[key] = f"f{len(self.frames)}"
            self.frames.append(base64.b64encode(content).decode())
            self.bytes += len(content) * 4 // 3
        return self.ids[key]


def data_uri(content: bytes) -> str:
    """A PNG as a `data:` URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class _Set:
    """A counterfactual set in memory."""

    tensors: dict[str, np.ndarray]
    table: pd.DataFrame

    def images(self) -> set[int]:
        """The images that can be shown, with their path where the method has one."""
        shown = self.table["image"].to_numpy()
        return {int(image) for image in shown[: len(self.tensors.get("path", shown))]}

    def row(self, image: int) -> int:
        """Where an image of the test split stands in the set."""
        return int(np.flatnonzero(self.table["image"].to_numpy() == image)[0])


def _load_set(experiment: str, method: str, direction: Pair) -> _Set:
    stem = layout.counterfactuals(experiment, method, *direction)
    return _Set(
        files.load_tensors(stem.with_suffix(".safetensors")),
        pd.read_parquet(stem.with_suffix(".parquet")),
    )


def choose(sets: Sequence[_Set], count: int) -> list[int]:
    """At most `count` images that every set explains, evenly spread over the test split.

    A set with paths keeps them for its first images only; the choice is among those.
    """
    shared = sorted(set.intersection(*(each.images() for each in sets)))
    if len(shared) <= count:
        return shared
    places = np.linspace(0, len(shared) - 1, count).round().astype(int)
    return [shared[place] for place in places]


def gallery(
    experiment: Experiment, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any], Pictures]:
    """The queries of every direction with every method's counterfactual; most methods first.

    Args:
        experiment: its counterfactual sets must exist.
        count: queries per direction.

    Returns:
        The directions for the template, the paths for the script, the pictures of both.
    """
    classes = experiment.classes
    pictures, directions = Pictures(), []
    pending: dict[str, tuple[_Set, int]] = {}
    methods_of = {d: methods_on(experiment, d) for d in experiment.directions(ORIGINAL_DATA)}
    for direction, methods in sorted(methods_of.items(), key=lambda item: -len(item[1])):
        if not methods:
            continue
        sets = {m: _load_set(experiment.name, m, direction) for m in methods}
        chosen = choose(list(sets.values()), count)
        source, target = direction
        queries = []
        for image in chosen:
            first = sets[methods[0]]
            row = first.row(image)
            facts = first.table.iloc[row]
            query = first.tensors["query"][row]
            shown = {
                "image": image,
                "label": classes[int(facts["label"])],
                "predicted": classes[int(facts["predicted_query"])],
                "source": float(facts["source_probability_query"]),
                "target": float(facts["target_probability_query"]),
                "picture": pictures.inline(png(query)),
                "answers": [],
            }
            for method in methods:
                answers = sets[method]
                answer = _answer(answers, method, image, direction, classes, pictures)
                if "path" in answers.tensors:
                    key = f"p{len(pending)}"
                    pending[key] = (answers, answers.row(image))
                    answer |= {"path": key, "steps": answers.tensors["path"].shape[1]}
                    answer |= {"step": _step(answers, answers.row(image))}
                shown["answers"].append(answer)
            queries.append(shown)
        directions.append(
            {
                "id": f"{source}_to_{target}",
                "name": aggregate.direction_name(experiment, direction, " → "),
                "source": classes[source],
                "target": classes[target],
                "methods": list(methods),
                "images": len(sets[methods[0]].table),
                "queries": queries,
            }
        )
    paths = {key: _path(*place, pictures) for key, place in pending.items()}
    return directions, {"frames": pictures.frames, "paths": paths}, pictures


def _answer(
    answers: _Set,
    method: str,
    image: int,
    direction: Pair,
    classes: Sequence[str],
    pictures: Pictures,
) -> dict[str, Any]:
    """One method's counterfactual of one query."""
    row = answers.row(image)
    facts = answers.table.iloc[row]
    query, counterfactual = answers.tensors["query"][row], answers.tensors["counterfactual"][row]
    predicted = int(facts["predicted_counterfactual"])
    return {
        "method": method,
        "found": bool(facts["found"]),
        "valid": predicted == direction[1],
        "predicted": classes[predicted],
        "source": float(facts["source_probability_counterfactual"]),
        "target": float(facts["target_probability_counterfactual"]),
        "picture": pictures.inline(png(counterfactual)),
        "difference": pictures.inline(png(difference_map(query, counterfactual))),
        "change": float(np.abs(counterfactual - query).mean()),
        "path": None,
        "steps": 0,
        "step": 0,
    }


def _step(answers: _Set, row: int) -> int:
    """The step of a path that the counterfactual stands at: the last, if nothing else is said."""
    steps = answers.tensors["path_position"][row]
    if "position" not in answers.tensors:
        return len(steps) - 1
    return int(np.abs(steps - answers.tensors["position"][row]).argmin())


def _path(answers: _Set, row: int, pictures: Pictures) -> dict[str, Any]:
    """A path for the script: pictures, positions, found and, where there are any, intended."""
    facts = answers.table.iloc[row]
    path: dict[str, Any] = {
        "frames": [pictures.frame(png(frame)) for frame in answers.tensors["path"][row]],
        "source": _probabilities(facts["path_source_probability"]),
        "target": _probabilities(facts["path_target_probability"]),
        "at": _step(answers, row),
        "position": None,
        "intended": None,
    }
    if "path_intended" in answers.tensors:
        intended = answers.tensors["path_intended"][row]
        path["position"] = _probabilities(answers.tensors["path_position"][row])
        path["intended"] = {
            role: _probabilities(intended[:, int(facts[role])]) for role in ("source", "target")
        }
    return path


def _probabilities(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
