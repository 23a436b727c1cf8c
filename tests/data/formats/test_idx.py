"""The IDX reader: round trips, and one clear error for every kind of damage."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from counterlens.config import DatasetOptions
from counterlens.data.fashion_mnist import FashionMnist
from counterlens.data.fashion_mnist import Options as FashionOptions
from counterlens.data.formats.idx import read_idx
from counterlens.data.mnist import Mnist
from counterlens.data.mnist import Options as MnistOptions
from counterlens.errors import UserError


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)),
    st.booleans(),
)
def test_round_trip(tmp_path_factory, array, packed):
    path = tmp_path_factory.mktemp("idx") / ("file.gz" if packed else "file")
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path, array.ndim)
    assert found.dtype == np.uint8 and found.shape == array.shape and found.flags.writeable
    np.testing.assert_array_equal(found, array)


@given(cut=st.integers(min_value=0), extra=st.binary(min_size=1, max_size=3))
def test_any_other_length_is_rejected(tmp_path_factory, cut, extra):
    path = tmp_path_factory.mktemp("idx") / "file"
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    for content in (whole[: cut % len(whole)], whole + extra):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"file: .*download it again"):
            read_idx(path, 3)


GOOD = idx(np.zeros((2, 3), np.uint8))


PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (PACKED[:-9], "cut short"),
        (PACKED[:15], "cut short"),
        (b"<html>404</html>", "not a readable gzip"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 40, "not a readable gzip"),
        (PACKED[:-8] + b"\0" * 8, "not a readable gzip"),
        (gzip.compress(b"\0\0\x0d" + GOOD[3:], mtime=0), "magic number 0x00000d02"),
        (gzip.compress(idx(np.zeros(12, np.uint8)), mtime=0), "magic number 0x00000801"),
        (gzip.compress(b"\0\0", mtime=0), "too few"),
    ],
    ids=[
        "without its end",
        "first bytes",
        "a web page",
        "damaged at once",
        "wrong checksum",
        "wrong type",
        "labels with images' shape",
        "nearly empty",
    ],
)
def test_damaged_file_is_named_with_its_problem(tmp_path, content, problem):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"labels\.gz: .*{problem}.*download it again"):
        read_idx(path, 2)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"labels\.gz: no such file"):
        read_idx(tmp_path / "labels.gz", 1)


def write_mnist(folder, images=4, labels=4, side=28, highest=9):
    for prefix in ("train", "t10k"):
        pixels = np.arange(images * side * side).reshape(images, side, side) % 256
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(idx(pixels.astype(np.uint8)))
        )
        values = np.linspace(0, highest, labels).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(values)))


def test_dataset_is_nchw_uint8_with_int64_labels(tmp_path):
    write_mnist(tmp_path)
    splits = Mnist(MnistOptions(kind="mnist")).read(tmp_path)
    assert list(splits) == ["train", "test"]
    for images, labels, _ in splits.values():
        assert images.shape == (4, 1, 28, 28) and images.dtype == np.uint8
        assert images[0, 0, 0, :3].tolist() == [0, 1, 2] and images[0, 0, 1, 0] == 28
        assert labels.dtype == np.int64 and labels.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": 3}, "labels-idx1-ubyte.gz: 3 labels for the 4 images"),
        ({"side": 27}, r"images-idx3-ubyte.gz: images of shape \(1, 27, 27\)"),
        ({"highest": 10}, "labels-idx1-ubyte.gz: label 10 is not one of the 10 classes"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, change, problem):
    write_mnist(tmp_path, **change)
    with pytest.raises(UserError, match=problem):
        Mnist(MnistOptions(kind="mnist")).read(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "options"), [(Mnist, MnistOptions), (FashionMnist, FashionOptions)]
)
def test_options_and_sources_name_the_same_files(dataset, options: type[DatasetOptions]):
    assert tuple(source.file for source in dataset.sources) == options.files
    assert len(options.classes) == 10
    for source in dataset.sources:
        assert len(source.sha256) == 64
        assert len(source.urls) >= 2 and all(u.endswith(f"/{source.file}") for u in source.urls)
