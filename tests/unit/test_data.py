"""Digits, subsets, and the loader interface on images of other shapes."""

import numpy as np
import pytest
import torch

from drbench import data
from drbench.data import Images, Source, from_source
from drbench.data.digits import split_ids
from drbench.data.subsets import choose
from drbench.errors import DrbenchError


def test_digits_splits_are_disjoint_stratified_and_fixed():
    parts = {split: data.load("digits", split) for split in ("train", "validation", "test")}
    assert {split: len(images) for split, images in parts.items()} == {"train": 1097, "validation": 200, "test": 500}
    ids = [image_id for images in parts.values() for image_id in images.ids]
    assert sorted(ids) == list(range(1797))
    assert torch.bincount(parts["test"].y).tolist() == [50] * 10
    assert torch.bincount(parts["validation"].y).tolist() == [20] * 10
    # A change of these hashes would make every published number of this benchmark another number.
    assert parts["test"].sha256[:16] == "90cce4426af2f36b"
    assert parts["train"].sha256[:8] == "88a45935"


def test_digits_pixels_and_labels_are_scikit_learns():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = data.load("digits", "test", "first20")
    assert images.shape == (1, 8, 8) and images.x.min() == 0 and images.x.max() == 1
    for x, y, row in zip(images.x, images.y, images.ids, strict=True):
        assert np.array_equal(x.numpy().ravel() * 16, pixels[row]) and y == labels[row]
    assert torch.bincount(images.y).tolist() == [2] * 10


def test_subset_is_a_prefix_and_named():
    whole, part = data.load("digits", "test"), data.load("digits", "test", "first30")
    assert part.ids == whole.ids[:30] and torch.equal(part.x, whole.x[:30])
    assert (whole.subset, part.subset) == ("test", "test/first30")
    assert data.load("digits", "test", "every20").ids == whole.ids[::20]


def test_subset_rules(tmp_path):
    ids = ["a", "b", "c", "d", "e"]
    assert choose("all", ids) == [0, 1, 2, 3, 4]
    assert choose("first2", ids) == [0, 1]
    assert choose("every2", ids) == [0, 2, 4]
    assert choose("1to4", ids) == [1, 2, 3]
    listed = tmp_path / "ids.txt"
    listed.write_text("d\nb\n")
    assert choose(f"ids:{listed}", ids) == [3, 1]
    for text, message in (("d\nz\n", "1 ids are not in the split, first: z"), ("", "empty"), ("a\na\n", "repeats")):
        listed.write_text(text)
        with pytest.raises(DrbenchError, match=message):
            choose(f"ids:{listed}", ids)
    for rule, message in (
        ("first9", "asks for 9 images, the split has 5"),
        ("frist2", "expected all, firstN"),
        ("first0", "expected all"),
        ("3to9", "expected positions A < B <= 5"),
        ("2to2", "expected positions A < B"),
        (f"ids:{tmp_path}/no", "cannot read the list"),
    ):
        with pytest.raises(DrbenchError, match=message):
            choose(rule, ids)


def test_a_file_of_ids_is_named_without_its_path(tmp_path):
    ids = data.load("digits", "test", "first3").ids
    listed = tmp_path / "mine.txt"
    listed.write_text("\n".join(map(str, ids)))
    images = data.load("digits", "test", f"ids:{listed}")
    assert images.ids == ids and images.subset.startswith("test/ids:mine-") and str(tmp_path) not in images.subset


def test_unknown_names():
    with pytest.raises(DrbenchError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(DrbenchError, match="available: train, validation, test"):
        data.load("digits", "tset")
    with pytest.raises(DrbenchError, match=r"takes no data.root, .*got .here."):
        data.load("digits", root="here")


def test_changed_data_is_refused():
    with pytest.raises(DrbenchError, match="test split differs"):
        split_ids(np.arange(1797) % 10, "test")


def test_large_images_are_decoded_only_when_chosen():
    decoded = []

    def read(position):
        decoded.append(position)
        return np.full((3, 224, 224), position / 50_000, np.float32)

    ids = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 50_001)]
    source = Source(ids, [i // 50 for i in range(50_000)], 1000, (3, 224, 224), read)
    images = from_source(source, "imagenet", "val", "every10000")
    assert decoded == [0, 10_000, 20_000, 30_000, 40_000]
    assert images.ids[1] == "ILSVRC2012_val_00010001" and images.y.tolist() == [0, 200, 400, 600, 800]
    assert images.shape == (3, 224, 224) and images.subset == "val/every10000"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.rand(2, 1, 8, 8) * 2 - 1}, r"produced pixels in \[-.*drbench images are in \[0, 1\]"),
        ({"x": torch.full((2, 1, 8, 8), float("nan"))}, "produced pixels"),
        ({"x": torch.zeros(2, 1, 8, 8, dtype=torch.float64)}, "expected float32"),
        ({"x": torch.zeros(2, 8, 8)}, "expected float32 images"),
        ({"ids": (1, 1)}, "unique ids"),
        ({"y": torch.tensor([0])}, "1 labels"),
        ({"y": torch.tensor([0, 10])}, r"labels in 0..9, got 0..10"),
    ],
)
def test_images_are_checked(changes, message):
    good = {
        "x": torch.zeros(2, 1, 8, 8),
        "y": torch.tensor([0, 1]),
        "ids": (1, 2),
        "dataset": "d",
        "subset": "s",
        "num_classes": 10,
    }
    Images(**good)
    with pytest.raises(DrbenchError, match=message):
        Images(**good | changes)
