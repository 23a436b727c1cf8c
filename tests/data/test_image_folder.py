"""A user's folder of pictures: what is read, how it is split, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from counterlens import plugins
from counterlens.data.base import Dataset
from counterlens.data.formats.labelled_pictures import Labelled
from counterlens.data.formats.prepare import prepare
from counterlens.data.image_folder import ImageFolder, Options
from counterlens.errors import UserError
from counterlens.experiments import dataset_options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten red pictures and five blue ones, of many sizes and formats; one lies deeper."""
    for number in range(10):
        path = tmp_path / "My pics" / "red" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), (255, 0, 0)).save(path)
    for number, suffix in enumerate((".png", ".bmp", ".gif", ".PNG", ".webp")):
        path = tmp_path / "My pics" / "blue" / "deep" / f"b{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 16), (0, 0, 255)).save(path)
    (tmp_path / "My pics" / "red" / "notes.txt").write_text("no picture")
    return tmp_path / "My pics"


def dataset(folder: Path, **changes: Any) -> ImageFolder:
    content = {"kind": "image-folder", "folder": str(folder), "names": ("red", "blue")}
    options = Options.model_validate({**content, **changes})
    return plugins.create("data", options, Dataset)


def pictures(folder: Path, **changes: Any) -> list[Labelled]:
    return list(dataset(folder, **changes).pictures(folder))


def test_both_splits_are_resized_and_labelled(folder: Path) -> None:
    splits = dataset(folder, size=(12, 16)).read(folder)
    assert splits["train"].images.shape == (12, 3, 12, 16)
    assert np.bincount(splits["train"].labels).tolist() == [8, 4]
    assert np.bincount(splits["test"].labels).tolist() == [2, 1]
    for arrays in splits.values():
        for image, label in zip(arrays.images, arrays.labels, strict=True):
            assert (image[2 * label] > 250).all() and (image[1] < 5).all()


def test_pictures_are_turned_as_their_exif_data_say(folder: Path) -> None:
    picture = Image.new("RGB", (16, 12), (255, 0, 0))
    picture.paste((0, 255, 0), (0, 0, 8, 12))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the left of the file is the top of the scene
    for number in range(2):
        path = folder / "green" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, exif=exif)
    splits = dataset(folder, names=("red", "green"), size=(16, 12)).read(folder)
    (image,) = splits["test"].images[splits["test"].labels == 1]
    assert (image[1, :7] > 250).all() and (image[1, 9:] < 5).all()


def test_grey_is_the_luma(folder: Path) -> None:
    splits = dataset(folder, grey=True, size=(8, 8)).read(folder)
    assert splits["train"].images.shape == (12, 1, 8, 8)
    red = splits["train"].images[splits["train"].labels == 0]
    assert (red == 76).all()  # 0.299 * 255
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    grey.save(folder / "blue" / "deep" / "grey.png")
    splits = dataset(folder, grey=True, size=(8, 8)).read(folder)
    both = np.concatenate([arrays.images for arrays in splits.values()])
    assert (both[:, 0] == np.arange(64).reshape(8, 8)).all(axis=(1, 2)).sum() == 1


def test_proportions_are_kept_unless_stretched(folder: Path) -> None:
    """A 40x16 picture with a black left and right quarter loses them when it is cut to a square."""
    wide = np.full((16, 40, 3), 255, np.uint8)
    wide[:, :10] = wide[:, 30:] = 0
    Image.fromarray(wide).save(folder / "blue" / "deep" / "wide.png")
    for stretch, dark in ((False, False), (True, True)):
        splits = dataset(folder, size=(16, 16), stretch=stretch).read(folder)
        images = np.concatenate([splits["train"].images, splits["test"].images])
        white = images[(images[:, :, 8, 8] > 200).all(axis=1)]
        assert len(white) == 1
        assert bool((white[0, :, 8, 0] < 60).all()) is dark


def test_the_split_follows_names_and_seed(folder: Path) -> None:
    first = pictures(folder)
    assert pictures(folder) == first
    assert pictures(folder, split_seed=1) != first
    tested = {p.name for p in first if p.split == "test"}
    Image.new("RGB", (9, 9)).save(folder / "red" / "another.png")
    after = {p.name: p.split for p in pictures(folder)}
    moved = [p.name for p in first if after[p.name] != p.split]
    assert len(moved) <= 1, "one picture more moves at most the last one that is tested with"
    assert len(tested) == 3


def test_the_first_pictures_are_of_all_classes(folder: Path) -> None:
    labels = [p.label for p in pictures(folder)]
    for first in (3, 6, 9):
        assert np.bincount(labels[:first]).tolist() == [2 * first // 3, first // 3]


def test_the_share_of_the_test_split(folder: Path) -> None:
    for share, counts in ((0.5, [5, 3]), (0.01, [1, 1]), (0.99, [9, 4])):
        labels = [p.label for p in pictures(folder, test_share=share) if p.split == "test"]
        assert np.bincount(labels).tolist() == counts


def test_names_in_paths(folder: Path) -> None:
    assert dataset(folder).name == "my-pics-28x28"
    assert dataset(folder, size=(8, 9)).name == "my-pics-8x9"
    assert dataset(Path("/"), title="mine").name == "mine"
    assert dataset(Path("/äö/")).name.isascii()


def test_a_card_tells_what_was_read(folder: Path, tmp_path: Path) -> None:
    options = dataset(folder).options
    card = prepare(options, tmp_path / "raw", tmp_path / "out")
    assert card.classes == ("red", "blue") and card.splits["train"].per_class == (8, 4)
    assert card.sources[-1].file == "15 pictures"


def test_the_command_line_takes_its_options(folder: Path) -> None:
    import shlex

    options = dataset(folder, size=(8, 9), grey=True).options
    kind, *words = shlex.split(options.arguments())
    found = dataset_options(kind, [word for word in words if word != "--set"])
    assert found.model_dump() == options.model_dump()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"names": ("red", "red")}, "stands twice"),
        ({"names": ("red",)}, "at least 2"),
        ({"size": (4, 8)}, "greater than or equal to 8"),
        ({"test_share": 1.0}, "less than 1"),
        ({"title": "My Pics"}, "match pattern"),
    ],
)
def test_options_are_checked(folder: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataset(folder, **changes)


def test_folders_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UserError, match=r"green is missing; needed are red, green"):
        dataset(folder, names=("red", "green")).read(folder)
    (folder / "green").mkdir()
    with pytest.raises(UserError, match="green: has 0 pictures; at least two"):
        dataset(folder, names=("red", "green")).read(folder)
    (folder / "red" / "0.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"0\.png"):
        dataset(folder).read(folder)
