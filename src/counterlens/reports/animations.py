"""Animations of counterfactual paths: one MP4 per query, as in the supplement of Mirror-CFE.

800x800 pixels, 10 frames per second, one frame per step of the path. Above: the query and the image
at k. Middle: the way from source to reflection, the first counterfactual, and the confidences that
the method intends (orange) and the classifier gives (blue). Below: the target's confidence and the
change of the image along k. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from counterlens import layout
from counterlens.config import Experiment, Pair, pair_name
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.images import to_uint8
from counterlens.runtime.progress import progress

SIZE = 800
FRAMES_PER_SECOND = 10
INTENDED, PREDICTED, CHANGE = "#e07b00", "#1f5fbf", "#1a8a3a"
STATIC, FIRST, CURRENT = "#d62728", "#2ca02c", "#1f5fbf"
PICTURE, LEFT, RIGHT, TOP = 270, 90, 440, 44
LINE, LINE_START, LINE_END = 452, 110, 690
"""The middle section: height of the way and where it starts and ends, in pixels."""


@dataclass(frozen=True)
class Shown:
    """One query's path of K steps.

    Attributes:
        query: (C, H, W) in [0, 1].
        images: (K, C, H, W) in [0, 1].
        position: (K,) in [0, 1].
        intended, predicted: (K, 2), confidences of the source and of the target class.
        answers: K class indices, what the classifier says of each step.
        first: the step of the first counterfactual, or None.
    """

    query: np.ndarray
    images: np.ndarray
    position: np.ndarray
    intended: np.ndarray
    predicted: np.ndarray
    answers: list[int]
    first: int | None


def display_name(name: str) -> str:
    """A class name as it stands in titles and file names: `T-shirt` for `T-shirt/top`."""
    return name.split("/")[0]


def file_name(prefix: str, predicted: str, label: str, target: str) -> str:
    """`no6_Sneaker(GT_Sneaker)_to_Ankle boot_correct.mp4`, as the paper names its files."""
    kind = "correct" if predicted == label else "error"
    names = [display_name(name) for name in (predicted, label, target)]
    return f"{prefix}_{names[0]}(GT_{names[1]})_to_{names[2]}_{kind}.mp4"


def numbers(source: float, target: float, name: str = "") -> str:
    """`K(S:0.22, T:0.8)`: two decimals, trailing zeros dropped."""
    return f"{name}(S:{round(source, 2):g}, T:{round(target, 2):g})"


def frame_title(path: Shown, step: int) -> str:
    """`SFE` until the classifier first answers with the target, then `CFE`; the end is named."""
    if step == len(path.images) - 1:
        return "Reflection"
    return "CFE" if path.first is not None and step >= path.first else "SFE"


def frames(path: Shown, source: int, classes: tuple[str, ...]) -> Iterator[np.ndarray]:
    """The pictures of an animation, uint8 (800, 800, 3) each; `source` is the predicted class."""
    background, lines = _background(path)
    base = Image.fromarray(background)
    draw = ImageDraw.Draw(base)
    base.paste(_enlarged(path.query), (LEFT, TOP))
    title = f"Source ({display_name(classes[source])})"
    _text(draw, (LEFT + PICTURE // 2, TOP - 18), title, "black", 20)
    _middle(draw, path)
    for step in range(len(path.images)):
        frame = base.copy()
        draw = ImageDraw.Draw(frame)
        frame.paste(_enlarged(path.images[step]), (RIGHT, TOP))
        answer = display_name(classes[path.answers[step]])
        title = f"{frame_title(path, step)} ({answer})"
        _text(draw, (RIGHT + PICTURE // 2, TOP - 18), title, "black", 20)
        x = _place(float(path.position[step]))
        _dot(draw, x, CURRENT)
        _text(draw, (x, LINE + 22), "K", "black", 16)
        for row, (values, color) in enumerate(
            ((path.intended, INTENDED), (path.predicted, PREDICTED))
        ):
            text = numbers(*values[step], name="K")
            _text(draw, (min(max(x, 90), SIZE - 90), LINE + 42 + 20 * row), text, color, 15)
        across, top, bottom = lines[step]
        for y in range(top, bottom, 9):
            draw.line((across, y, across, min(y + 5, bottom)), fill=STATIC, width=2)
        yield np.asarray(frame)


def _background(path: Shown) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The static curves below, and where the marker of each step stands: (x, top, bottom)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        canvas = Figure(figsize=(8, 8), dpi=100, facecolor="white")
        axes = canvas.add_axes((0.09, 0.07, 0.82, 0.25))
        axes.set_title("Target Class Confidence", fontsize=11)
        axes.plot(path.position, path.intended[:, 1], color=INTENDED, label="intended")
        axes.plot(path.position, path.predicted[:, 1], color=PREDICTED, label="predicted")
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.04), xlabel="step, k", ylabel="confidence")
        axes.legend(loc="upper left")
        change = np.abs(path.images - path.query[None]).mean(axis=(1, 2, 3))
        other = axes.twinx()
        other.plot(path.position, change, color=CHANGE)
        other.set_ylabel("mean |change|", color=CHANGE)
        other.tick_params(axis="y", colors=CHANGE)
        other.set_ylim(bottom=0)
        agg = FigureCanvasAgg(canvas)
        agg.draw()
        picture = np.asarray(agg.buffer_rgba())[..., :3].copy()
        places: Any = axes.transData.transform([(value, 0.0) for value in path.position])
        low, high = axes.get_window_extent().y0, axes.get_window_extent().y1
    return picture, [(round(x), round(SIZE - high), round(SIZE - low)) for x, _ in places]


def _middle(draw: ImageDraw.ImageDraw, path: Shown) -> None:
    """The way with its fixed points and their confidences."""
    for x in range(LINE_START, LINE_END, 14):
        draw.line((x, LINE, min(x + 8, LINE_END), LINE), fill="#555555", width=2)
    fixed = [(0, "Source", STATIC), (len(path.images) - 1, "Reflection", STATIC)]
    if path.first is not None:
        fixed.insert(1, (path.first, "1st CFE point", FIRST))
    for step, label, color in fixed:
        x = _place(float(path.position[step]))
        # the middle label stands higher, so that it cannot meet its neighbours
        height = LINE - 62 - (54 if label == "1st CFE point" else 0)
        if height != LINE - 62:
            draw.line((x, height + 52, x, LINE - 8), fill="#bbbbbb")
        _dot(draw, x, color)
        within = min(max(x, 90), SIZE - 90)
        _text(draw, (within, height), label, "black", 15)
        _text(draw, (within, height + 19), numbers(*path.intended[step]), INTENDED, 15)
        _text(draw, (within, height + 38), numbers(*path.predicted[step]), PREDICTED, 15)


def _place(position: float) -> int:
    return round(LINE_START + position * (LINE_END - LINE_START))


def _dot(draw: ImageDraw.ImageDraw, x: int, color: str) -> None:
    draw.ellipse((x - 7, LINE - 7, x + 7, LINE + 7), fill=color)


def _text(
    draw: ImageDraw.ImageDraw, center: tuple[int, int], text: str, color: str, size: int
) -> None:
    draw.text(center, text, fill=color, font=_font(size), anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships, so that every machine has it."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _enlarged(image: np.ndarray) -> Image.Image:
    pixels = to_uint8(image)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((PICTURE, PICTURE), Image.Resampling.NEAREST)


def write_video(path: Path, pictures: Iterator[np.ndarray]) -> None:
    """Write frames as H.264 (yuv420p), whole or not at all."""
    from imageio_ffmpeg import write_frames

    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    with files.atomic_path(path) as temporary:
        writer = write_frames(
            temporary,
            (SIZE, SIZE),
            fps=FRAMES_PER_SECOND,
            codec="libx264",
            macro_block_size=16,
            output_params=["-threads", "1", *exact],
        )
        with closing(writer):  # ffmpeg must have ended before the temporary file goes
            writer.send(None)
            for picture in pictures:
                writer.send(np.ascontiguousarray(picture))


def load_paths(
    experiment: Experiment, method: str, direction: Pair
) -> Iterator[tuple[dict[str, Any], Shown]]:
    """The paths that are shown of a direction: the classifier's errors, then correct queries.

    Each comes with its row of the table.

    Raises:
        UserError: the method keeps no path, or intends no confidences along it.
    """
    stem = layout.counterfactuals(experiment.name, method, *direction)
    tensors = files.load_tensors(stem.with_suffix(".safetensors"))
    table = pd.read_parquet(stem.with_suffix(".parquet"))
    if "path_intended" not in tensors:
        raise UserError(f"{stem}.safetensors: {method} keeps no intended confidences to animate")
    correct = 0
    for row in range(len(tensors["path"])):
        facts: dict[str, Any] = table.iloc[row].to_dict()
        if facts["predicted_query"] != facts["source"]:
            continue  # the path starts at a class that the classifier does not see
        if facts["label"] == facts["source"]:
            correct += 1
            if correct > experiment.evaluation.animations:
                return
        intended = tensors["path_intended"][row][:, list(direction)]
        predicted = np.stack(
            [np.asarray(facts[f"path_{role}_probability"]) for role in ("source", "target")], axis=1
        )
        answers = [int(answer) for answer in facts["path_predicted"]]
        hits = [step for step, answer in enumerate(answers) if answer == direction[1]]
        yield (
            facts,
            Shown(
                tensors["query"][row],
                tensors["path"][row],
                tensors["path_position"][row],
                intended,
                predicted,
                answers,
                hits[0] if hits else None,
            ),
        )


def run(experiment: Experiment, method: str, pair: Pair) -> None:
    """Stage `animations`: the directions of a pair.

    The first correct query of each direction stands in the folder itself, the others in
    `additional_samples`.
    """
    folder = layout.animations(experiment.name, method, experiment.dataset.name, pair_name(pair))
    classes = experiment.classes
    folder.mkdir(parents=True, exist_ok=True)
    for direction in experiment.pair_directions(pair):
        source, target = direction
        main = True
        paths = load_paths(experiment, method, direction)
        for facts, path in progress(paths, None, f"{source} to {target}"):
            names = [classes[facts[key]] for key in ("predicted_query", "label")]
            name = file_name(f"no{facts['image']}", names[0], names[1], classes[target])
            shown_first = main and names[0] == names[1]
            main = main and not shown_first
            place = folder / name if shown_first else folder / "additional_samples" / name
            write_video(place, frames(path, source, classes))
