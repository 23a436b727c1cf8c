"""The embedded digits, preparation, and reading a prepared dataset."""

import gzip
import hashlib
import json
import struct

import numpy as np
import pytest

from counterlens.data.base import Arrays, DatasetCard, Source, load_split
from counterlens.data.digits import Digits, Options
from counterlens.data.formats import fetch
from counterlens.data.formats.prepare import prepare
from counterlens.data.mnist import Mnist
from counterlens.errors import UserError
from counterlens.experiments import dataset_options
from counterlens.runtime import files

DIGITS, MNIST = (dataset_options(kind, []) for kind in ("digits", "mnist"))
NAMES = ("dataset.json", "test.safetensors", "train.safetensors")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    prepare(DIGITS, folder / "raw", folder / "prepared")
    return folder / "prepared"


def read_card(folder):
    return DatasetCard.model_validate_json((folder / "dataset.json").read_bytes())


def test_digits_are_grey_and_16x16(digits):
    for split in ("train", "test"):
        tensors = files.load_tensors(digits / f"{split}.safetensors")
        images, labels = tensors["images"], tensors["labels"]
        assert sorted(tensors) == ["images", "labels"]
        assert images.dtype == np.uint8 and images.shape[1:] == (1, 16, 16)
        assert labels.dtype == np.int64 and len(labels) == len(images)
        assert images.max() == 255 and images.min() == 0
        assert (images.reshape(len(images), -1).max(1) > 200).all()


def test_digits_keep_their_picture(digits):
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    train, test = (files.load_tensors(digits / f"{s}.safetensors") for s in ("train", "test"))
    assert len(train["labels"]) + len(test["labels"]) == len(labels) == 1797
    # Averages over squares of 2x2 pixels give the original back, about.
    images = np.concatenate([train["images"], test["images"]])[:, 0] / 255
    back = images.reshape(-1, 8, 2, 8, 2).mean((2, 4))
    original = small.reshape(-1, 8, 8) / 16
    # Every original has exactly one nearest neighbour among ours: itself, with its label.
    distances = ((back[:, None] - original[None, :400]) ** 2).sum((2, 3))
    nearest = distances.argmin(0)
    assert len(set(nearest.tolist())) == 400
    assert np.sqrt(distances.min(0) / 64).max() < 0.1
    found_labels = np.concatenate([train["labels"], test["labels"]])
    np.testing.assert_array_equal(found_labels[nearest], labels[:400])


def test_digits_split_is_stratified_and_disjoint(digits):
    card = read_card(digits)
    train, test = (np.array(card.splits[s].per_class) for s in ("train", "test"))
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (np.abs(test / (train + test) - 0.3) < 0.003).all()
    images = [files.load_tensors(digits / f"{s}.safetensors")["images"] for s in ("train", "test")]
    seen = [{image.tobytes() for image in split} for split in images]
    assert not seen[0] & seen[1]


def test_digits_need_no_download():
    assert Options.files == () and Digits.sources == ()


def test_card_has_the_agreed_content(digits):
    content = json.loads((digits / "dataset.json").read_text())
    keys = ["attributes", "classes", "licence", "name", "shape", "sources", "splits"]
    assert sorted(content) == keys and content["attributes"] == []
    assert content["name"] == "digits" and content["classes"] == list("0123456789")
    assert content["shape"] == [1, 16, 16] and content["sources"] == []
    for split, record in content["splits"].items():
        labels = files.load_tensors(digits / f"{split}.safetensors")["labels"]
        assert record == {
            "images": len(labels),
            "per_class": np.bincount(labels).tolist(),
            "per_attribute": [],
        }


def test_preparing_twice_gives_the_same_bytes(digits, tmp_path):
    prepare(DIGITS, tmp_path / "raw", tmp_path)
    assert sorted(path.name for path in digits.iterdir()) == list(NAMES)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (digits / name).read_bytes()


def test_load_split_gives_floats_with_their_place_in_the_split(digits):
    import torch

    whole = load_split(digits / "test.safetensors")
    stored = files.load_tensors(digits / "test.safetensors")
    assert whole.images.dtype == torch.float32
    assert whole.labels.dtype == torch.int64 and whole.index.dtype == torch.int64
    assert float(whole.images.min()) == 0.0 and float(whole.images.max()) == 1.0
    np.testing.assert_array_equal((whole.images * 255).round().byte().numpy(), stored["images"])
    assert whole.index.tolist() == list(range(len(whole)))

    some = load_split(digits / "test.safetensors", classes=[9, 4])
    assert set(some.labels.tolist()) == {4, 9}
    assert some.index.tolist() == np.flatnonzero(np.isin(stored["labels"], [4, 9])).tolist()
    assert torch.equal(some.images, whole.images[some.index])
    assert torch.equal(some.labels, whole.labels[some.index])


def test_load_split_errors(digits, tmp_path):
    with pytest.raises(UserError, match=r"train\.safetensors: no such file"):
        load_split(tmp_path / "train.safetensors")
    with pytest.raises(UserError, match=r"test\.safetensors: has no image of the classes \[12\]"):
        load_split(digits / "test.safetensors", classes=[12])


def small_mnist(folder, monkeypatch):
    """Two 28x28 images per split under MNIST's names, with their checksums."""
    sources = []
    for source in Mnist.sources:
        body = bytes((0, 0, 8, 1)) + struct.pack(">I", 2) + bytes((3, 8))
        if "images" in source.file:
            body = bytes((0, 0, 8, 3)) + struct.pack(">III", 2, 28, 28) + bytes(2 * 28 * 28)
        packed = gzip.compress(body, mtime=0)
        (folder / source.file).write_bytes(packed)
        sources.append(Source(source.file, (), hashlib.sha256(packed).hexdigest()))
    monkeypatch.setattr(Mnist, "sources", tuple(sources))


def test_sources_are_recorded_with_their_checksums(tmp_path, monkeypatch):
    small_mnist(tmp_path, monkeypatch)
    card = prepare(MNIST, tmp_path, tmp_path / "out")
    assert card == read_card(tmp_path / "out")
    assert card.splits["test"].per_class == (0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    assert [(s.file, s.sha256) for s in card.sources] == [
        (source.file, files.sha256(tmp_path / source.file)) for source in Mnist.sources
    ]


def test_changed_or_missing_raw_file_is_rejected_before_anything_is_written(tmp_path, monkeypatch):
    small_mnist(tmp_path, monkeypatch)
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(b"other"))
    with pytest.raises(UserError, match=r"labels-idx1-ubyte\.gz: is not the file with SHA-256 "):
        prepare(MNIST, tmp_path, tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz: no such file"):
        prepare(MNIST, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (np.zeros((2, 1, 16, 16), np.float32), np.zeros(2, np.int64), "images are float32"),
        (np.zeros((2, 16, 16), np.uint8), np.zeros(2, np.int64), "images are uint8"),
        (np.zeros((2, 1, 16, 16), np.uint8), np.zeros(3, np.int64), "labels are int64"),
        (np.zeros((2, 1, 16, 16), np.uint8), np.zeros(2, np.uint8), "labels are uint8"),
        (np.zeros((2, 1, 16, 16), np.uint8), np.array([0, 10]), "labels run from 0 to 10"),
        (np.zeros((0, 1, 16, 16), np.uint8), np.zeros(0, np.int64), "has no images"),
    ],
)
def test_reader_that_breaks_its_promise(tmp_path, monkeypatch, images, labels, problem):
    split = Arrays(images, labels)
    monkeypatch.setattr(Digits, "read", lambda self, raw: {"train": split, "test": split})
    with pytest.raises(UserError, match=f"dataset digits: train split: {problem}"):
        prepare(DIGITS, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def described(monkeypatch):
    """The digits with two attributes, and the way to make `read` give them."""
    monkeypatch.setattr(Options, "attributes", ("even", "round"))

    def give(attributes, labels=(0, 1, 2, 3)):
        split = Arrays(np.zeros((4, 1, 16, 16), np.uint8), np.array(labels), attributes)
        monkeypatch.setattr(Digits, "read", lambda self, raw: {"train": split, "test": split})

    return give


def test_attributes_stay_in_step_with_the_images(tmp_path, described):
    known = np.array([[1, 1], [0, 0], [1, 0], [0, 1]], np.uint8)
    described(known)
    card = prepare(DIGITS, tmp_path, tmp_path / "out")
    assert card.attributes == ("even", "round") and card == read_card(tmp_path / "out")
    assert card.splits["train"].per_attribute == (2, 2)
    path = tmp_path / "out" / "test.safetensors"
    assert files.load_tensors(path)["attributes"].dtype == np.uint8
    some = load_split(path, classes=[3, 1])
    assert some.index.tolist() == [1, 3]
    assert some.attributes is not None and some.attributes.tolist() == known[[1, 3]].tolist()
    chosen = some.select(some.labels == 3).attributes
    assert chosen is not None and chosen.tolist() == [[0, 1]]


def test_an_attribute_may_be_the_label(tmp_path, described):
    known = np.array([[1, 1], [0, 0], [1, 0], [0, 1]], np.uint8)
    described(known)
    prepare(DIGITS, tmp_path, tmp_path / "out")
    path = tmp_path / "out" / "test.safetensors"
    for column in (0, 1):
        whole = load_split(path, attribute=column)
        assert whole.labels.tolist() == known[:, column].tolist()
        assert str(whole.labels.dtype) == "torch.int64"
    # `classes` then choose by the attribute, and the places stay those of the split
    without = load_split(path, [0], attribute=1)
    assert without.index.tolist() == [1, 2] and without.labels.tolist() == [0, 0]
    assert without.attributes is not None and without.attributes.tolist() == [[0, 0], [1, 0]]
    with pytest.raises(UserError, match=r"test\.safetensors: has no image of the classes \[2\]"):
        load_split(path, [2], attribute=1)


def test_an_attribute_of_data_without_any(digits):
    with pytest.raises(UserError, match=r"test\.safetensors: has no attributes; delete it and"):
        load_split(digits / "test.safetensors", attribute=0)


def test_labels_of_a_dataset_without_classes(tmp_path, monkeypatch, described):
    """Attributes alone: every label is 0, and no class is counted."""
    monkeypatch.setattr(Options, "classes", ())
    known = np.eye(4, 2, dtype=np.uint8)
    described(known, (0, 0, 0, 0))
    card = prepare(DIGITS, tmp_path, tmp_path / "out")
    record = card.splits["test"]
    assert (record.images, record.per_class, record.per_attribute) == (4, (), (1, 1))
    described(known, (0, 1, 0, 0))
    with pytest.raises(UserError, match="train split: labels run from 0 to 1"):
        prepare(DIGITS, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        (None, r"uint8 \(4, 0\), not uint8 \(4, 2\)"),
        (np.zeros((4, 3), np.uint8), r"uint8 \(4, 3\), not"),
        (np.zeros((3, 2), np.uint8), r"uint8 \(3, 2\), not"),
        (np.zeros(4, np.uint8), r"uint8 \(4,\), not"),
        (np.zeros((4, 2), bool), r"bool \(4, 2\), not"),
        (np.full((4, 2), 255, np.uint8), "255, not to 1"),
    ],
    ids=["none", "one more", "too few rows", "flat", "bool", "not 0 or 1"],
)
def test_attributes_that_break_the_promise(tmp_path, described, attributes, problem):
    described(attributes)
    with pytest.raises(UserError, match=f"dataset digits: train split: attributes .*{problem}"):
        prepare(DIGITS, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


COUNTS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion-mnist": ([6000] * 10, [1000] * 10),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_public_datasets_have_their_published_counts(public_mirror, tmp_path, name):
    dataset = dataset_options(name, [])
    for file in dataset.files:
        fetch.fetch_dataset_file(dataset, file, tmp_path / "raw" / file)
    card = prepare(dataset, tmp_path / "raw", tmp_path / "prepared")
    train, test = COUNTS[name]
    assert card.splits["train"].images == 60_000 and card.splits["test"].images == 10_000
    assert list(card.splits["train"].per_class) == train
    assert list(card.splits["test"].per_class) == test
