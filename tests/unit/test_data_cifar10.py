"""CIFAR-10 in parquet: small files in the documented layout, and real files where they are at hand."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from drbench import data
from drbench.data import cifar10
from drbench.errors import DrbenchError

REAL = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "cifar10-jpeg"


def encoded(pixels: np.ndarray, codec: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, codec)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Forty training and twenty test images; image i has the grey value i."""
    monkeypatch.setattr(cifar10, "ROWS", {"train": 40, "test": 20})
    for file, rows in cifar10.ROWS.items():
        write(tmp_path, file, [encoded(np.full((32, 32, 3), i, np.uint8)) for i in range(rows)])
    return tmp_path


def write(root: Path, file: str, images: list, labels=None) -> None:
    path = root / cifar10.FILE.format(file)
    path.parent.mkdir(exist_ok=True)
    cells = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    labels = [i % 10 for i in range(len(images))] if labels is None else labels
    pq.write_table(pa.table({"img": cells, "label": pa.array(labels, pa.int64())}), path)


def test_splits_share_no_row(root):
    train, validation = (data.load("cifar10", split, root=root) for split in ("train", "validation"))
    test = data.load("cifar10", "test", "first5", root)
    assert validation.ids == (9, 19, 29, 39) and len(train) == 36 and not set(train.ids) & set(validation.ids)
    assert test.shape == (3, 32, 32) and test.y.tolist() == [0, 1, 2, 3, 4] and test.subset == "test/first5"
    assert (train.x * 255).round().amax((1, 2, 3)).tolist() == list(train.ids)


def test_pixels_keep_their_place(root):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    write(root, "test", [encoded(pixels)] * 20)
    assert np.array_equal((data.load("cifar10", root=root).x[7] * 255).round().numpy(), pixels.transpose(2, 0, 1))


def test_re_encoded_images_are_not_called_cifar10(root):
    write(root, "test", [encoded(np.zeros((32, 32, 3), np.uint8), "JPEG")] * 20)
    with pytest.raises(DrbenchError, match=r"row 0: expected a PNG image; ask for data.name=cifar10-jpeg"):
        data.load("cifar10", root=root)
    assert data.load("cifar10-jpeg", root=root).dataset == "cifar10-jpeg"
    write(root, "test", [b"GIF89a"] * 20)
    with pytest.raises(DrbenchError, match="not of this data set"):
        data.load("cifar10", root=root)


def test_what_is_wrong_with_a_file_is_said(root):
    with pytest.raises(DrbenchError, match=r"needs data.root.*nothing is downloaded"):
        data.load("cifar10")
    with pytest.raises(DrbenchError, match="no file"):
        data.load("cifar10", root=root / "elsewhere")
    with pytest.raises(DrbenchError, match="unknown split 'dev'"):
        data.load("cifar10", "dev", root=root)
    good = encoded(np.zeros((32, 32, 3), np.uint8))
    for images, labels, message in (
        ([good] * 19, None, "expected 20 images of the classes 0-9, got 19"),
        ([good] * 20, [0] * 20, "of the classes 0-9"),
        ([good[:60]] * 20, None, "row 0: not a readable image"),
        ([encoded(np.zeros((32, 32), np.uint8))] * 20, None, "expected 32x32 RGB, got 32x32 L"),
        ([encoded(np.zeros((28, 32, 3), np.uint8))] * 20, None, "got 32x28 RGB"),
    ):
        write(root, "test", images, labels)
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10", root=root)
    path = root / cifar10.FILE.format("test")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DrbenchError, match="not readable as CIFAR-10 in parquet"):
        data.load("cifar10", root=root)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 files in $DRBENCH_SHARED/data/cifar10-jpeg")
def test_real_files():
    images = data.load("cifar10-jpeg", "test", "first100", REAL)
    assert images.shape == (3, 32, 32) and len(set(images.y.tolist())) == 10
    assert 0.4 < images.x.mean() < 0.55 and images.x.std() > 0.2  # CIFAR-10 has 0.473 and 0.25
    with pytest.raises(DrbenchError, match="cifar10-jpeg"):
        data.load("cifar10", "test", "first1", REAL)
