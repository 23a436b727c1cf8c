"""The MedMNIST reader, the blood cells, and a checksum that is an MD5."""

import hashlib
import json

import numpy as np
import pytest

from counterlens.data.base import Source, load_split
from counterlens.data.blood_pbc import BloodPbc
from counterlens.data.bloodmnist import BloodMnist
from counterlens.data.formats.fetch import load_dataset
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import dataset_options
from counterlens.runtime import files

COUNTS = {"train": 12, "val": 3, "test": 8}
KINDS = {"blood-pbc": BloodPbc, "bloodmnist": BloodMnist}


def content(channels: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    """Arrays as MedMNIST publishes them: labels uint8 (N, 1), colours last."""
    rng = np.random.default_rng(0)
    found = {}
    for split, count in COUNTS.items():
        found[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, *channels), np.uint8)
        found[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) * 3 % 8)[:, None]
    return found


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, monkeypatch):
    """One of the datasets, whose source is a small file in the current folder."""
    file = dataset_options(request.param, []).files[0]
    monkeypatch.chdir(tmp_path)
    np.savez(file, **content())
    source = Source(file, (), files.sha256(tmp_path / file))
    monkeypatch.setattr(KINDS[request.param], "sources", (source,))
    return request.param


def test_both_splits_are_the_file_s_own(kind, tmp_path):
    card = prepare(dataset_options(kind, []), tmp_path, tmp_path / "out")
    published = content()
    assert [card.splits[split].images for split in ("train", "test")] == [12, 8]  # without val
    for split in ("train", "test"):
        data = load_split(tmp_path / "out" / f"{split}.safetensors")
        images = (data.images * 255).round().byte().numpy()
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), published[f"{split}_images"])
        assert data.labels.tolist() == published[f"{split}_labels"].flatten().tolist()


def test_grey_images_get_a_channel(tmp_path, monkeypatch):
    np.savez(tmp_path / "grey.npz", **content(()))
    monkeypatch.setattr(BloodPbc, "sources", (Source("grey.npz", (), ""),))
    images, labels, _ = load_dataset(dataset_options("blood-pbc", [])).read(tmp_path)["test"]
    assert images.shape == (8, 1, 28, 28) and labels.dtype == np.int64
    np.testing.assert_array_equal(images[:, 0], content(())["test_images"])


@pytest.mark.parametrize("damage", ["cut", "changed", "packed", "key", "page", "empty"])
def test_a_damaged_file_is_named(kind, tmp_path, damage):
    dataset = load_dataset(dataset_options(kind, []))
    path = tmp_path / dataset.sources[0].file
    whole = path.read_bytes()
    if damage in ("cut", "empty"):
        path.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    elif damage == "changed":
        where = whole.index(content()["test_images"].tobytes())
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 255]) + whole[where + 1 :])
    elif damage == "packed":
        np.savez_compressed(path, **content())
        changed = bytearray(path.read_bytes())
        changed[200:216] = b"\xff" * 16
        path.write_bytes(changed)
    elif damage == "key":
        np.savez(path, **{k: v for k, v in content().items() if k != "test_labels"})
    else:
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=rf"{path.name}: not a readable MedMNIST .*download") as e:
        dataset.read(tmp_path)
    assert "\n" not in str(e.value)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: no such file"):
        dataset.read(tmp_path)


def test_a_right_md5_is_accepted_and_the_card_states_sha256(kind, tmp_path, monkeypatch):
    file = dataset_options(kind, []).files[0]
    digest = hashlib.md5((tmp_path / file).read_bytes()).hexdigest()
    monkeypatch.setattr(KINDS[kind], "sources", (Source(file, (), f"md5:{digest}"),))
    prepare(dataset_options(kind, []), tmp_path, tmp_path / "out")
    (record,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["sources"]
    assert record == {"file": file, "sha256": files.sha256(tmp_path / file)}


def test_a_wrong_md5_is_one_clear_error(kind, tmp_path, monkeypatch):
    file = dataset_options(kind, []).files[0]
    found, wanted = hashlib.md5((tmp_path / file).read_bytes()).hexdigest(), "0" * 32
    monkeypatch.setattr(KINDS[kind], "sources", (Source(file, (), f"md5:{wanted}"),))
    with pytest.raises(UserError) as caught:
        prepare(dataset_options(kind, []), tmp_path, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}: is not the file with MD5 {wanted} ")
    assert found in message and "download it again" in message and "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_options_and_source_agree(name):
    options = dataset_options(name, [])
    (source,) = KINDS[name].sources
    assert (options.name, options.mirror_folder, options.files) == (name, name, (source.file,))
    assert options.shape == (3, 28, 28) and len(options.classes) == 8
    assert options.classes == dataset_options("bloodmnist", []).classes  # the same label numbers
    assert len(source.sha256) in (64, len("md5:") + 32)
