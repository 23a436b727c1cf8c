"""Horses, zebras and cats: tiny archives in the layout of the mirror."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from counterlens.data.base import Source, load_split
from counterlens.data.formats.fetch import load_dataset
from counterlens.data.formats.prepare import prepare
from counterlens.data.horse2zebra import Horse2Zebra
from counterlens.data.tiny_imagenet_cats import TinyImagenetCats
from counterlens.errors import UserError
from counterlens.experiments import dataset_options
from counterlens.runtime import files

KINDS = {
    "horse2zebra": (Horse2Zebra, "test", 2),
    "tiny-imagenet-cats": (TinyImagenetCats, "val", 4),
}


def write(folder, monkeypatch, kind, columns="file,label,split"):
    """A zip of pictures as bright as their numbers, the last of them grey."""
    dataset, held_out, classes = KINDS[kind]
    path = folder / dataset.sources[0].file
    rows = [columns]
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(2 * classes):
            split = "train" if n < classes else held_out
            grey = n == 2 * classes - 1
            picture = Image.new("L" if grey else "RGB", (64, 64), 20 * n if grey else (20 * n,) * 3)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95)
            archive.writestr(f"{split}/{n}.jpg", buffer.getvalue())
            rows.append(f"{split}/{n}.jpg,{n % classes},{split}")
        archive.writestr("labels.csv", "\n".join(rows))
    monkeypatch.setattr(dataset, "sources", (Source(path.name, (), files.sha256(path)),))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_both_splits_in_colour(tmp_path, monkeypatch, kind):
    write(tmp_path, monkeypatch, kind)
    options = dataset_options(kind, [])
    card = prepare(options, tmp_path, tmp_path / "out")
    classes = len(options.classes)
    assert card.shape == (3, 64, 64) and card.attributes == ()
    for split, start in (("train", 0), ("test", classes)):
        data = load_split(tmp_path / "out" / f"{split}.safetensors")
        assert data.labels.tolist() == list(range(classes)) and data.attributes is None
        brightness = (data.images * 255).mean(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(brightness, 20 * np.arange(start, start + classes), atol=2)


def test_horses_of_another_size(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "horse2zebra")
    options = dataset_options("horse2zebra", ["size=32"])
    assert options.name == "horse2zebra-32" and options.shape == (3, 32, 32)
    assert prepare(options, tmp_path, tmp_path / "out").shape == (3, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_without_its_table(tmp_path, monkeypatch, kind):
    path = write(tmp_path, monkeypatch, kind)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(UserError, match=r"labels\.csv: .*delete the file"):
        load_dataset(dataset_options(kind, [])).read(tmp_path)
