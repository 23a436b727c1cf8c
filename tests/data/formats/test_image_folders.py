"""ImageNet, CelebA-HQ and BDD-OIA: small folders in their layouts."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterlens.data.base import load_split
from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import dataset_options
from counterlens.runtime import files


def save(path: Path, width: int, height: int, brightness: int, mode: str = "RGB") -> None:
    """A picture of one brightness, but black where a centre crop of a square cuts it off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = brightness
    Image.fromarray(pixels).convert(mode).save(path, quality=95)


def prepared(folder: Path, kind: str, *settings: str, attribute: str | None = None):
    options = dataset_options(kind, [f"folder={folder}", *settings])
    card = prepare(options, folder / "raw", folder / "out")
    column = None if attribute is None else options.attributes.index(attribute)
    out = folder / "out"
    return card, {
        split: load_split(out / f"{split}.safetensors", attribute=column)
        for split in ("train", "test")
    }


# ImageNet

PAIR = ("wnids=[n02123394, n02124075]", "names=[Persian cat, Egyptian cat]")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for number, (split, wnid) in enumerate(
        (s, w) for s in ("train", "val") for w in ("n02123394", "n02124075")
    ):
        for place, (width, height) in enumerate([(60, 40), (40, 60), (48, 48)]):
            suffix, mode = (".JPEG", "RGB") if place else (".png", "L")
            name = f"{wnid}_{place}{suffix}"
            save(tmp_path / split / wnid / name, width, height, 20 + 50 * number, mode)
        (tmp_path / split / wnid / "notes.txt").write_text("no picture")
    save(tmp_path / "train/n02981792/ship.JPEG", 40, 40, 255)  # a class that is not asked for
    return tmp_path


def test_two_classes_of_imagenet(imagenet: Path) -> None:
    card, data = prepared(imagenet, "imagenet", *PAIR, "size=32")
    assert card.classes == ("Persian cat", "Egyptian cat") and card.shape == (3, 32, 32)
    assert card.name == "imagenet-n02123394-n02124075-32"
    for split, first in (("train", 20), ("test", 120)):
        assert data[split].labels.tolist() == [0, 0, 0, 1, 1, 1]
        brightness = (data[split].images * 255).mean(dim=(1, 2, 3)).numpy()
        # whole squares: what the crop cuts off was black
        np.testing.assert_allclose(brightness, np.repeat([first, first + 50], 3), atol=2)


def test_a_class_that_imagenet_lacks(imagenet: Path) -> None:
    with pytest.raises(UserError, match=r"train/n02124076 is missing; needed are train/n021233"):
        prepared(imagenet, "imagenet", "wnids=[n02123394, n02124076]", "names=[cat, other]")
    for file in (imagenet / "val/n02124075").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="val/n02124075: has no pictures"):
        prepared(imagenet, "imagenet", *PAIR)


def test_a_damaged_picture(imagenet: Path) -> None:
    path = imagenet / "val/n02124075/n02124075_1.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"n02124075_1\.JPEG: ") as caught:
        prepared(imagenet, "imagenet", *PAIR)
    assert "\n" not in str(caught.value) and not (imagenet / "out").exists()


@pytest.mark.parametrize("names", ["[cat]", "[cat, dog, ship]"])
def test_as_many_names_as_ids(names: str) -> None:
    with pytest.raises(UserError, match="names"):
        dataset_options("imagenet", [PAIR[0], f"names={names}"])


@pytest.mark.parametrize(
    ("wnids", "told"), [("[n02123394, n02123394]", "without repetition"), ("[a/b, cat]", "wnids")]
)
def test_ids_of_wordnet_that_differ(wnids: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        dataset_options("imagenet", [f"wnids={wnids}", "names=[cat, dog]"])


def test_the_card_records_what_was_read(imagenet: Path) -> None:
    names = [
        f"{split}/{wnid}/{wnid}_{place}{'.JPEG' if place else '.png'}"
        for split in ("train", "val")
        for wnid in ("n02123394", "n02124075")
        for place in range(3)
    ]
    listing = "".join(f"{files.sha256(imagenet / name)}  {name}\n" for name in names)
    (record,) = prepared(imagenet, "imagenet", *PAIR, "size=32")[0].sources
    assert record.file == "12 pictures"
    assert record.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    save(imagenet / names[-1], 40, 40, 99)
    (other,) = prepared(imagenet, "imagenet", *PAIR, "size=32")[0].sources
    assert other.sha256 != record.sha256


# CelebA-HQ


@pytest.fixture
def celeba_hq(tmp_path: Path) -> Path:
    partition = {"000007.jpg": 0, "000001.jpg": 2, "000005.jpg": 1, "000003.jpg": 0}
    rows, mapping = [], ["idx  orig_idx  orig_file"]
    for number, name in enumerate(partition):
        save(tmp_path / f"CelebA-HQ-img/{number}.jpg", 64, 64, 60 * number)
        known = [1 if a == "Young" or (a == "Smiling" and number % 2) else -1 for a in ATTRIBUTES]
        rows.append(f"{number}.jpg  {' '.join(map(str, known))}")
        mapping.append(f"{number}     {int(name[:6]) - 1}   {name}")
    lists = {
        "CelebAMask-HQ-attribute-anno.txt": ["4", " ".join(ATTRIBUTES), *rows],
        "CelebA-HQ-to-CelebA-mapping.txt": mapping,
        "list_eval_partition.txt": [f"{name} {code}" for name, code in partition.items()],
    }
    for file, lines in lists.items():
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_hq_has_celeba_s_split_and_attributes(celeba_hq: Path) -> None:
    card, data = prepared(celeba_hq, "celeba-hq", "size=32", attribute="Smiling")
    assert card.classes == () and card.attributes == ATTRIBUTES
    assert card.name == "celeba-hq-32"
    counts = [card.splits[split].per_attribute for split in ("train", "test")]
    assert [[n[ATTRIBUTES.index(a)] for a in ("Young", "Smiling")] for n in counts] == [
        [2, 1],
        [1, 1],
    ]
    assert [sum(n) for n in counts] == [3, 2]
    assert data["train"].labels.tolist() == [0, 1] and data["test"].labels.tolist() == [1]
    brightness = (data["train"].images * 255).mean(dim=(1, 2, 3)).round().tolist()
    assert brightness == [0, 180]  # pictures 0 and 3; number 2 is CelebA's validation split
    attributes = data["train"].attributes
    assert attributes is not None and attributes.shape == (2, 40)
    assert attributes[:, ATTRIBUTES.index("Young")].tolist() == [1, 1]
    assert attributes.sum().item() == 3


def test_another_attribute_of_celeba_hq(celeba_hq: Path) -> None:
    """Of the same prepared files."""
    card, data = prepared(celeba_hq, "celeba-hq", "size=32", attribute="Young")
    assert card.name == "celeba-hq-32" and data["train"].labels.tolist() == [1, 1]
    _, unlabelled = prepared(celeba_hq, "celeba-hq", "size=32")
    assert unlabelled["train"].labels.tolist() == [0, 0]


def test_the_card_of_celeba_hq_records_its_lists(celeba_hq: Path) -> None:
    card, _ = prepared(celeba_hq, "celeba-hq", "size=32")
    *lists, pictures = card.sources
    assert pictures.file == "3 pictures"  # of the two splits that are used
    assert {record.file: record.sha256 for record in lists} == {
        path.name: files.sha256(path) for path in celeba_hq.glob("*.txt")
    }


def test_lists_of_celeba_hq_that_do_not_fit(celeba_hq: Path) -> None:
    with (celeba_hq / "CelebA-HQ-to-CelebA-mapping.txt").open("a") as lines:
        lines.write("4  8  000009.jpg\n")
    with pytest.raises(UserError, match=r"4\.jpg \(000009\.jpg\) stands in no other list"):
        prepared(celeba_hq, "celeba-hq")


HEADER = " ".join(ATTRIBUTES)
DAMAGED_LISTS = {
    "empty": ("CelebAMask-HQ-attribute-anno.txt", "", "its columns are not CelebA's"),
    "columns": ("CelebAMask-HQ-attribute-anno.txt", "4\nSmiling\n", "its columns are not CelebA's"),
    "short row": ("CelebAMask-HQ-attribute-anno.txt", f"1\n{HEADER}\n0.jpg 1", r"0\.jpg: not 40"),
    "values": (
        "CelebAMask-HQ-attribute-anno.txt",
        f"1\n{HEADER}\n0.jpg{' x' * 40}",
        "not 40 times",
    ),
    "bytes": ("CelebAMask-HQ-attribute-anno.txt", "\udcff", "can't decode byte 0xff"),
    "split": ("list_eval_partition.txt", "000007.jpg 3", r"'000007\.jpg 3': not a picture and 0"),
    "no split": ("list_eval_partition.txt", "000007.jpg", "not a picture and 0"),
}


@pytest.mark.parametrize("damage", DAMAGED_LISTS)
def test_damaged_lists_of_celeba_hq(celeba_hq: Path, damage: str) -> None:
    file, content, told = DAMAGED_LISTS[damage]
    (celeba_hq / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"{file}: .*{told}|{file}: {told}") as caught:
        prepared(celeba_hq, "celeba-hq")
    assert "\n" not in str(caught.value)


# BDD-OIA


@pytest.fixture
def bdd_oia(tmp_path: Path) -> Path:
    actions = [[1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 1], [1, 0, 1, 1, 0]]
    for split in ("train", "val"):
        names = [f"{split}_{n}.jpg" for n in range(4)]
        for number, name in enumerate(names):
            save(tmp_path / "data" / name, 80, 45, 60 * number)
        content = {  # the annotations in the order of the ids, the pictures in another
            "images": [{"file_name": name, "id": 3 - n} for n, name in enumerate(names)],
            "annotations": [{"id": n, "category": known} for n, known in enumerate(actions[::-1])],
        }
        (tmp_path / f"{split}_25k_images_actions.json").write_text(json.dumps(content))
    return tmp_path


def test_traffic_scenes_are_twice_as_wide_as_high(bdd_oia: Path) -> None:
    card, data = prepared(bdd_oia, "bdd-oia", "height=32", attribute="forward")
    assert card.shape == (3, 32, 64) and card.name == "bdd-oia-32"
    assert card.classes == () and card.attributes == ("forward", "stop", "left", "right")
    assert card.splits["train"].per_attribute == (2, 1, 1, 1)
    for split in data.values():
        assert split.images.shape == (3, 3, 32, 64)  # the third has the fifth action
        assert split.labels.tolist() == [1, 0, 1]
        assert split.attributes is not None
        assert split.attributes.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]]


def test_a_list_that_is_not_of_actions(bdd_oia: Path) -> None:
    path = bdd_oia / "val_25k_images_actions.json"
    path.write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        prepared(bdd_oia, "bdd-oia")
    for content in ([], {"images": [{"file_name": "a.jpg", "id": 0}], "annotations": []}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="not BDD-OIA's list of actions"):
            prepared(bdd_oia, "bdd-oia")


@pytest.mark.parametrize("actions", [[1, 0, 0], [1, 0, 0, 2], [1, 0, 0, 0, 0, 0]])
def test_wrong_actions_are_told_with_their_picture(bdd_oia: Path, actions: list[int]) -> None:
    content = {
        "images": [{"file_name": "val_0.jpg", "id": 0}],
        "annotations": [{"category": actions}],
    }
    (bdd_oia / "val_25k_images_actions.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"json: val_0\.jpg: its actions are not 4 or 5"):
        prepared(bdd_oia, "bdd-oia")


def test_a_picture_of_the_list_that_is_missing(bdd_oia: Path) -> None:
    (bdd_oia / "data/val_1.jpg").unlink()
    with pytest.raises(UserError, match=r"data/val_1\.jpg: .*No such file"):
        prepared(bdd_oia, "bdd-oia")


def test_traffic_scenes_are_stretched_not_cut(bdd_oia: Path) -> None:
    _, data = prepared(bdd_oia, "bdd-oia", "height=32", attribute="stop")
    assert data["train"].labels.tolist() == [0, 1, 0]
    last = (data["train"].images[2] * 255).round()  # 80x45: black beside the central square
    assert last[:, :, :12].max() < 10 and last[:, :, -12:].max() < 10
    np.testing.assert_allclose(last[:, :, 20:44], 180, atol=2)


# All

KINDS = {"imagenet": PAIR, "celeba-hq": (), "bdd-oia": ()}


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_folder_it_says_what_to_do(kind: str, tmp_path: Path) -> None:
    options = dataset_options(kind, KINDS[kind])
    assert options.files == ()
    with pytest.raises(UserError, match=r"name the folder with .* under `dataset\.folder`"):
        prepare(options, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is missing; needed are"):
        prepared(tmp_path, kind, *KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_tells_the_same_dataset(kind: str) -> None:
    options = dataset_options(kind, [*KINDS[kind], "folder=some where"])
    words = shlex.split(options.arguments())
    assert dataset_options(words[0], words[2::2]) == options
