"""scikit-learn's digits: 1,797 real 8x8 scans of handwritten digits, shipped inside scikit-learn.

Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI 1998 (its test part). Writers are not
identified in the data, so the splits share writers.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from drbench.data.source import Source
from drbench.errors import DrbenchError

FILE = "sklearn/datasets/data/digits.csv.gz"
PER_CLASS = {"test": 50, "validation": 20}  # the rest, 1,097 images, trains
# Hash of the 500 test ids in order: the split is a constant of the benchmark, whatever library computes it.
TEST_SHA256 = "1558bfb9aca666e87f4e36e483d4b957a106c7c32dffc41970888c008f2dade9"


def open_split(split: str, root: Path | None = None, name: str = "digits") -> Source:
    """Source of a fixed, stratified split: "train" (1,097), "validation" (200), "test" (500); ids are row numbers.

    The classes take turns, so that `firstN` is balanced for every multiple of ten (in test and validation).
    """
    if root is not None:
        raise DrbenchError(
            f"data 'digits' takes no data.root, scikit-learn has the files; got {str(root)!r}: leave it out"
        )
    # The file that `sklearn.datasets.load_digits` reads, without that import, which takes two seconds in every process.
    table = np.loadtxt(distribution("scikit-learn").locate_file(FILE), delimiter=",")
    pixels, labels = (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32), table[:, -1].astype(int)
    ids = split_ids(labels, split)
    return Source(ids, labels[ids].tolist(), 10, (1, 8, 8), lambda position: pixels[ids[position]])


def split_ids(labels: np.ndarray, split: str) -> list[int]:
    """Row numbers of a split, from a ranking by hash that depends on no library's random numbers."""
    if split not in ("train", *PER_CLASS):
        raise DrbenchError(f"unknown split {split!r} of digits; available: train, validation, test")
    test, validation = PER_CLASS["test"], PER_CLASS["validation"]
    part = {
        "test": slice(0, test),
        "validation": slice(test, test + validation),
        "train": slice(test + validation, None),
    }
    ranked = [sorted(map(int, np.flatnonzero(labels == c)), key=_rank)[part[split]] for c in range(10)]
    turns = range(max(map(len, ranked)))
    ids = [own[turn] for turn in turns for own in ranked if turn < len(own)]
    if split == "test" and hashlib.sha256(repr(ids).encode()).hexdigest() != TEST_SHA256:
        raise DrbenchError(
            "digits: the test split differs from the benchmark's; scikit-learn ships other data than "
            "expected (1,797 images): install the versions of constraints.txt"
        )
    return ids


def _rank(row: int) -> str:
    return hashlib.sha256(f"drbench digits {row}".encode()).hexdigest()
