"""CelebA and its subset: tiny archives in the published layout."""

import io
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterlens.data.base import Source, load_split
from counterlens.data.celeba import Celeba
from counterlens.data.celeba_subset import CelebaSubset
from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.fetch import load_dataset
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import dataset_options
from counterlens.runtime import files

SPLITS = ("train", "val", "test", "train", "test", "train")  # of the images, in order
OPEN, SMILING = (1, 0, 0, 1, 1, 0), (0, 1, 1, 1, 0, 1)


def attributes_of(n: int) -> list[int]:
    """All 40 of a picture: two that vary, and one that all have."""
    known = {"Mouth_Slightly_Open": OPEN[n], "Smiling": SMILING[n], "Young": 1}
    return [known.get(name, 0) for name in ATTRIBUTES]


def jpeg(pixels: np.ndarray) -> bytes:
    """A picture (H, W, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def faces(height: int, width: int) -> list[bytes]:
    """Smooth pictures, each of its own colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    return [
        jpeg(np.stack([rows + 5 * n, columns + 3 * n, 20 * n + 0 * rows], axis=-1).clip(0, 255))
        for n in range(6)
    ]


# The subset


def write_subset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The zip of six pictures with `labels.csv`, and its checksum."""
    pictures = faces(64, 64)
    rows = ["file,split," + ",".join(ATTRIBUTES)]
    with zipfile.ZipFile(folder / "celeba_subset_64.zip", "w") as archive:
        for n, picture in enumerate(pictures):
            member = f"{SPLITS[n]}/{n:06}.jpg"
            archive.writestr(member, picture)
            rows.append(f"{member},{SPLITS[n]},{','.join(map(str, attributes_of(n)))}")
        archive.writestr("labels.csv", "\n".join(rows) + "\n")
    state_checksum(folder, monkeypatch)
    return pictures


def state_checksum(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "celeba_subset_64.zip"
    source = Source(path.name, (), files.sha256(path))
    monkeypatch.setattr(CelebaSubset, "sources", (source,))


@pytest.mark.parametrize(
    ("attribute", "labels"), [("Mouth_Slightly_Open", OPEN), ("Smiling", SMILING)]
)
def test_any_attribute_of_the_subset_may_be_the_label(tmp_path, monkeypatch, attribute, labels):
    pictures = write_subset(tmp_path, monkeypatch)
    card = prepare(dataset_options("celeba-subset", []), tmp_path, tmp_path / "out")
    assert card.classes == () and card.name == "celeba-subset"
    assert card.attributes == ATTRIBUTES
    for split in ("train", "test"):  # val is left out
        path = tmp_path / "out" / f"{split}.safetensors"
        data = load_split(path, attribute=ATTRIBUTES.index(attribute))
        numbers = [n for n in range(6) if SPLITS[n] == split]
        assert data.labels.tolist() == [labels[n] for n in numbers]
        assert set(load_split(path).labels.tolist()) == {0}
        known = np.array([attributes_of(n) for n in numbers])
        assert card.splits[split].per_attribute == tuple(known.sum(axis=0).tolist())
        assert card.splits[split].per_class == () and card.splits[split].images == len(numbers)
        assert data.attributes is not None
        assert data.attributes.tolist() == [attributes_of(n) for n in numbers]
        found = (data.images * 255).round().byte().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(found, [decoded(pictures[n]) for n in numbers])


@pytest.mark.parametrize("kind", ["celeba", "celeba-hq", "celeba-subset", "bdd-oia"])
def test_the_attribute_is_no_option_of_the_dataset(kind):
    """Two names for the same prepared files would be two folders: a classifier names it."""
    with pytest.raises(UserError, match=r"^--set: attribute: unknown key; allowed: .*kind"):
        dataset_options(kind, ["attribute=Smiling"])


def replaced_member(path: Path, content: bytes | None) -> None:
    """The archive with other content for one picture, or without it."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept.pop("train/000003.jpg")
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in kept.items():
            archive.writestr(name, old)
        if content is not None:
            archive.writestr("train/000003.jpg", content)


def broken_byte(path: Path, compressed: bool) -> None:
    """The archive with one byte of a picture's stored form changed."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, old in kept.items():
            archive.writestr(name, old)
        start = archive.getinfo("train/000003.jpg").header_offset + 30 + len("train/000003.jpg")
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


DAMAGES = {
    "cut short": lambda path: replaced_member(path, faces(64, 64)[3][:300]),
    "not a picture": lambda path: replaced_member(path, b"<html>404</html>"),
    "missing": lambda path: replaced_member(path, None),
    "stored, changed": lambda path: broken_byte(path, False),
    "compressed, changed": lambda path: broken_byte(path, True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_member_is_named(tmp_path, monkeypatch, damage):
    write_subset(tmp_path, monkeypatch)
    DAMAGES[damage](tmp_path / "celeba_subset_64.zip")
    state_checksum(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"celeba_subset_64\.zip: train/000003\.jpg: ") as caught:
        prepare(dataset_options("celeba-subset", []), tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_zip_that_is_none_or_absent(tmp_path):
    dataset = load_dataset(dataset_options("celeba-subset", []))
    with pytest.raises(UserError, match=r"subset_64\.zip: no such file"):
        dataset.read(tmp_path)
    (tmp_path / "celeba_subset_64.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"subset_64\.zip: not a readable zip file"):
        dataset.read(tmp_path)


# The official files


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Six faces of 178x218 with the two lists as CelebA publishes them."""
    pictures = faces(218, 178)
    names = [f"{n + 1:06}.jpg" for n in range(6)]
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/", b"")
        for name, picture in zip(names, pictures, strict=True):
            archive.writestr(f"img_align_celeba/{name}", picture)
    rows = [
        f"{name} {' '.join(f'{2 * present - 1:2}' for present in attributes_of(n))}"
        for n, name in enumerate(names)
    ]
    lists = {
        "list_attr_celeba.txt": ["6", " ".join(ATTRIBUTES) + " ", *rows],
        "list_eval_partition.txt": [
            f"{name} {('train', 'val', 'test').index(split)}"
            for name, split in zip(names, SPLITS, strict=True)
        ],
    }
    for file, lines in lists.items():
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    sources = [Source(s.file, (), files.sha256(tmp_path / s.file)) for s in Celeba.sources]
    monkeypatch.setattr(Celeba, "sources", tuple(sources))
    return tmp_path, pictures


def test_official_split_labels_and_centre_crop(official):
    folder, pictures = official
    prepare(dataset_options("celeba", ["size=178"]), folder, folder / "out")
    for split in ("train", "test"):
        path = folder / "out" / f"{split}.safetensors"
        data = load_split(path, attribute=ATTRIBUTES.index("Mouth_Slightly_Open"))
        numbers = [n for n in range(6) if SPLITS[n] == split]
        assert data.labels.tolist() == [OPEN[n] for n in numbers]
        assert data.attributes is not None
        assert data.attributes.tolist() == [attributes_of(n) for n in numbers]
        found = (data.images * 255).round().byte().numpy().transpose(0, 2, 3, 1)
        # 218 rows: 20 above and 20 below are cut off, all 178 columns stay
        np.testing.assert_array_equal(found, [decoded(pictures[n])[20:198] for n in numbers])


def test_the_crop_is_resized_as_a_whole(official):
    folder, _ = official
    splits = load_dataset(dataset_options("celeba", ["size=89"])).read(folder)
    first, labels, attributes = splits["train"]
    assert attributes is not None and attributes.shape == (3, 40)
    assert first.shape == (3, 3, 89, 89) and first.dtype == np.uint8
    smiling = attributes[:, ATTRIBUTES.index("Smiling")]
    assert smiling.tolist() == [SMILING[n] for n in range(6) if SPLITS[n] == "train"]
    assert labels.tolist() == [0, 0, 0]
    # the first picture's red is its row, its green its column: each pixel stands for two
    expected = 2 * np.arange(89) + 0.5
    np.testing.assert_allclose(first[0, 0].mean(1), 20 + expected, atol=1)
    np.testing.assert_allclose(first[0, 1].mean(0), expected, atol=1)


def test_a_picture_that_the_official_list_does_not_have(official):
    folder, _ = official
    with (folder / "list_eval_partition.txt").open("a") as lines:
        lines.write("000007.jpg 0\n")
    with pytest.raises(UserError, match=r"has no row for 000007\.jpg"):
        load_dataset(dataset_options("celeba", [])).read(folder)


# Options

CHOICES = [
    ("celeba-subset", [], "celeba-subset", 64),
    ("celeba", [], "celeba-128", 128),
    ("celeba", ["size=32"], "celeba-32", 32),
]


@pytest.mark.parametrize(("kind", "settings", "name", "side"), CHOICES)
def test_each_choice_has_its_own_folder_and_one_mirror(kind, settings, name, side):
    options = dataset_options(kind, settings)
    dataset = load_dataset(options)
    assert options.name == dataset.name == name
    assert options.classes == dataset.classes == ()
    assert options.attributes == dataset.attributes == ATTRIBUTES
    assert options.shape == dataset.shape == (3, side, side)
    assert options.mirror_folder == "celeba"
    assert tuple(source.file for source in dataset.sources) == options.files
    words = shlex.split(options.arguments())
    assert words == [kind, *(word for setting in settings for word in ("--set", setting))]
    assert dataset_options(words[0], words[2::2]) == options


@pytest.mark.parametrize(
    ("attribute", "names"),
    [
        ("Smiling", ("not smiling", "smiling")),
        ("Mouth_Slightly_Open", ("not mouth slightly open", "mouth slightly open")),
        ("5_o_Clock_Shadow", ("not 5 o clock shadow", "5 o clock shadow")),
        (None, ()),
    ],
)
def test_what_a_classifier_of_an_attribute_tells_apart(attribute, names):
    assert dataset_options("celeba-subset", []).class_names(attribute) == names


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["size"], "--set size: write KEY=VALUE"),
        (["sise=64"], "sise: unknown key; allowed: kind, size"),
        (["size=179"], "size: .*less than or equal to 178"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(settings, told):
    with pytest.raises(UserError, match=told) as caught:
        dataset_options("celeba", settings)
    assert "\n" not in str(caught.value)
