"""Animations: names, numbers, what stands on a frame, and the files written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import ImageColor

from counterlens import layout
from counterlens.errors import UserError
from counterlens.reports import animations
from counterlens.reports.animations import Shown
from counterlens.runtime import files

Make = Callable[..., Any]
CLASSES = ("T-shirt/top", "Ankle boot", "Bag")
STEPS = 5


def video(path: Path) -> tuple[dict[str, Any], int]:
    """What a video says of itself, and how many frames it has."""
    reader = imageio_ffmpeg.read_frames(path)
    about = next(reader)
    reader.close()
    return about, imageio_ffmpeg.count_frames_and_secs(path)[0]


@pytest.fixture
def shown() -> Shown:
    """Five steps of a path; the fourth is the first that is of the target class."""
    rng = np.random.default_rng(1)
    position = np.linspace(0, 1, STEPS, dtype=np.float32)
    intended = np.stack([0.9 - 0.8 * position, 0.1 + 0.8 * position], axis=1)
    return Shown(
        query=rng.random((1, 28, 28), dtype=np.float32),
        images=rng.random((STEPS, 1, 28, 28), dtype=np.float32),
        position=position,
        intended=intended,
        predicted=np.array([[0.95, 0.02], [0.6, 0.4], [0.5, 0.4], [0.218, 0.801], [0, 1]]),
        answers=[0, 0, 2, 1, 1],
        first=3,
    )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[Shown], list[list[str]]]:
    """The texts that are drawn: those of all frames, then those of each frame."""

    def read(path: Shown) -> list[list[str]]:
        texts: list[list[str]] = [[]]

        def record(draw: object, center: tuple[int, int], text: str, *_: object) -> None:
            texts[-1].append(text)

        monkeypatch.setattr(animations, "_text", record)
        drawn = animations.frames(path, 0, CLASSES)
        first = texts[0]
        for _ in drawn:
            texts.append([])
        # the first frame is drawn right after what all frames share
        shared = first[: first.index("K") - 1]
        return [shared, first[len(shared) :], *texts[1:-1]]

    return read


@pytest.mark.parametrize(
    ("predicted", "label", "target", "name"),
    [
        ("Bag", "Bag", "Ankle boot", "no6_Bag(GT_Bag)_to_Ankle boot_correct.mp4"),
        ("Bag", "Ankle boot", "Ankle boot", "no6_Bag(GT_Ankle boot)_to_Ankle boot_error.mp4"),
        ("Bag", "Shirt", "Ankle boot", "no6_Bag(GT_Shirt)_to_Ankle boot_error.mp4"),
        ("T-shirt/top", "T-shirt/top", "A/b", "no6_T-shirt(GT_T-shirt)_to_A_correct.mp4"),
    ],
    ids=["correct", "error", "error of a class outside the pair", "names with a slash"],
)
def test_file_names(predicted: str, label: str, target: str, name: str) -> None:
    assert animations.file_name("no6", predicted, label, target) == name
    assert Path(name).name == name


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        (0.22, 0.8, "K(S:0.22, T:0.8)"),
        (0.2249, 0.7951, "K(S:0.22, T:0.8)"),
        (np.float32(0.22), np.float32(0.8), "K(S:0.22, T:0.8)"),
        (1.0, 0.0, "K(S:1, T:0)"),
        (0.999, 0.00001, "K(S:1, T:0)"),
        (0.1, 0.05, "K(S:0.1, T:0.05)"),
    ],
)
def test_numbers_have_two_decimals_at_most(source: float, target: float, text: str) -> None:
    assert animations.numbers(source, target, name="K") == text
    assert animations.numbers(source, target) == text[1:]


def test_titles_and_numbers_of_every_frame(shown: Shown, written: Callable) -> None:
    shared, *frames = written(shown)
    assert shared[0] == "Source (T-shirt)"
    assert [texts[0] for texts in frames] == [
        "SFE (T-shirt)",
        "SFE (T-shirt)",
        "SFE (Bag)",
        "CFE (Ankle boot)",
        "Reflection (Ankle boot)",
    ]
    assert frames[3][1:] == ["K", "K(S:0.3, T:0.7)", "K(S:0.22, T:0.8)"]  # intended, predicted
    # the fixed points, each with what is intended and what is found there
    assert shared[1:] == [
        *("Source", "(S:0.9, T:0.1)", "(S:0.95, T:0.02)"),
        *("1st CFE point", "(S:0.3, T:0.7)", "(S:0.22, T:0.8)"),
        *("Reflection", "(S:0.1, T:0.9)", "(S:0, T:1)"),
    ]


def test_a_path_that_never_flips(shown: Shown, written: Callable) -> None:
    shared, *frames = written(replace(shown, answers=[0] * STEPS, first=None))
    assert [texts[0].split()[0] for texts in frames] == ["SFE"] * (STEPS - 1) + ["Reflection"]
    assert "1st CFE point" not in shared and "Source" in shared


def enlarged(image: np.ndarray) -> np.ndarray:
    """(C, 27, 27) in [0, 1] to uint8 (270, 270, 3), each pixel a square."""
    pixels = np.rint(image * 255).astype(np.uint8).repeat(10, axis=1).repeat(10, axis=2)
    return np.broadcast_to(pixels, (3, 270, 270)).transpose(1, 2, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_where_everything_stands(shown: Shown, channels: int) -> None:
    rng = np.random.default_rng(2)
    shown = replace(
        shown,
        query=rng.random((channels, 27, 27), dtype=np.float32),
        images=rng.random((STEPS, channels, 27, 27), dtype=np.float32),
    )
    frames = list(animations.frames(shown, 0, CLASSES))
    assert len(frames) == STEPS
    top, size, line = animations.TOP, animations.PICTURE, animations.LINE
    places = [110, 255, 400, 545, 690]
    fixed = {0: animations.STATIC, 3: animations.FIRST, 4: animations.STATIC}
    for step, frame in enumerate(frames):
        assert frame.shape == (800, 800, 3) and frame.dtype == np.uint8
        rows = slice(top, top + size)
        for left, image in (
            (animations.LEFT, shown.query),
            (animations.RIGHT, shown.images[step]),
        ):
            np.testing.assert_array_equal(frame[rows, left : left + size], enlarged(image))
        for other, place in enumerate(places):
            color = animations.CURRENT if other == step else fixed.get(other)
            if color is not None:
                assert tuple(frame[line, place]) == ImageColor.getrgb(color)
    # below, only the dashed marker of the step moves, from left to right
    moved = [
        np.flatnonzero((before != after)[520:].any(axis=(0, 2)))
        for before, after in pairwise(frames)
    ]
    assert all(0 < len(columns) < 20 for columns in moved)
    centers = [columns.mean() for columns in moved]
    assert centers == sorted(centers) and centers[-1] - centers[0] > 400


def test_both_directions_are_written_the_same_twice(make: Make) -> None:
    made = make(
        classes=CLASSES, pairs=((0, 1),), images=4, steps=STEPS, errors=1, mirror=True, channels=3
    )
    animations.run(made.experiment, "mirror-cfe", (0, 1))
    folder = layout.animations("toy", "mirror-cfe", "toy", "0-1")
    assert folder == Path("results/toy/animations/mirror-cfe/toy/0-1")
    videos = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # two correct queries of each direction, the first above the others, and its error
    assert {str(path.relative_to(folder)) for path in videos} == {
        "no3_T-shirt(GT_T-shirt)_to_Ankle boot_correct.mp4",
        "additional_samples/no6_T-shirt(GT_T-shirt)_to_Ankle boot_correct.mp4",
        "additional_samples/no0_T-shirt(GT_Ankle boot)_to_Ankle boot_error.mp4",
        "no4_Ankle boot(GT_Ankle boot)_to_T-shirt_correct.mp4",
        "additional_samples/no7_Ankle boot(GT_Ankle boot)_to_T-shirt_correct.mp4",
        "additional_samples/no1_Ankle boot(GT_T-shirt)_to_T-shirt_error.mp4",
    }
    for path in videos:
        about, count = video(path)
        assert (about["size"], about["fps"], about["codec"]) == ((800, 800), 10, "h264")
        assert count == STEPS
    assert len({*videos.values()}) == len(videos)
    animations.run(made.experiment, "mirror-cfe", (0, 1))
    assert {path: path.read_bytes() for path in videos} == videos


def test_a_hundred_steps_are_a_hundred_frames(tmp_path: Path) -> None:
    picture = np.zeros((800, 800, 3), np.uint8)
    animations.write_video(tmp_path / "a.mp4", iter([picture] * 100))
    assert video(tmp_path / "a.mp4")[1] == 100


def test_a_video_is_whole_or_not_there(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((800, 800, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animations.write_video(tmp_path / "a.mp4", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "rows"), [(0, [0, 1]), (1, [0, 1, 2]), (9, [0, 1, 2, 3, 4, 5])])
def test_the_errors_and_some_correct_queries_are_shown(
    make: Make, limit: int, rows: list[int]
) -> None:
    made = make(pairs=((4, 9),), images=6, errors=2, mirror=True)
    evaluation = made.experiment.evaluation.model_copy(update={"animations": limit})
    experiment = made.experiment.model_copy(update={"evaluation": evaluation})
    paths = list(animations.load_paths(experiment, "mirror-cfe", (4, 9)))
    assert [facts["image"] for facts, _ in paths] == [3 * row + 4 for row in rows]
    stem = layout.counterfactuals("toy", "mirror-cfe", 4, 9)
    tensors = files.load_tensors(stem.with_suffix(".safetensors"))
    for row, (_, path) in zip(rows, paths, strict=True):
        np.testing.assert_array_equal(path.query, tensors["query"][row])
        np.testing.assert_array_equal(path.images, tensors["path"][row])
        np.testing.assert_array_equal(path.position, tensors["path_position"][row])
        np.testing.assert_array_equal(path.intended, tensors["path_intended"][row][:, [4, 9]])
        assert path.predicted[0].tolist() == pytest.approx([0.97, 0.02])
        assert path.first is not None
        assert path.position[path.first] == tensors["position"][row]
        assert path.answers == [9 if target > 0.5 else 4 for target in path.predicted[:, 1]]


def test_a_set_without_intended_confidences_is_refused(make: Make) -> None:
    made = make(pairs=((4, 9),), images=3)
    for method in ("c3lt", "pgd"):  # a path without them, and none at all
        with pytest.raises(UserError, match=f"{method} keeps no intended confidences") as caught:
            animations.run(made.experiment, method, (4, 9))
        assert "4_to_9.safetensors" in str(caught.value)
