"""CIFAR-10-C and CIFAR-10.1: sparse files of the published sizes, damaged ones."""

import hashlib
import io
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from drbench import data
from drbench.data import arrays, cifar, shifts
from drbench.errors import DrbenchError
from drbench.files import datasets

LABELS = (np.arange(10_000) % 7).astype(np.uint8)


def sparse(path, shape, dtype=np.uint8):
    """A .npy of any size that takes no space: zeros, to be written into."""
    path.parent.mkdir(exist_ok=True, parents=True)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """CIFAR-10-C unpacked, with the corruption fog: image i at severity s has the grey value 10 s + i for i < 5."""
    pixels = sparse(tmp_path / "CIFAR-10-C" / "fog.npy", (50_000, 32, 32, 3))
    for severity in range(5):
        for i in range(5):
            pixels[severity * 10_000 + i] = 10 * (severity + 1) + i
    sparse(tmp_path / "CIFAR-10-C" / "labels.npy", (50_000,))[:] = np.tile(LABELS, 5)
    monkeypatch.setitem(cifar.ORDER, "cifar10-c", hashlib.sha256(LABELS[::20].tobytes()).hexdigest())
    return tmp_path


def test_severities_are_blocks_of_an_array(root):
    for severity in (1, 5):
        images = data.load("cifar10-c", f"fog/{severity}", "first5", root)
        assert (images.x[:, 0, 3, 3] * 255).round().tolist() == [10 * severity + i for i in range(5)]
        assert images.y.tolist() == [0, 1, 2, 3, 4] and images.ids == (0, 1, 2, 3, 4) and images.shape == (3, 32, 32)
        assert (images.dataset, images.subset) == ("cifar10-c", f"fog/{severity}/first5")
    assert len(data.load("cifar10-c", "fog/2", "every20", root)) == 500


def test_only_chosen_images_are_read(root):
    tracemalloc.start()
    data.load("cifar10-c", "fog/5", "first5", root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # the array has 154 million bytes


def test_splits_of_cifar10_c(root):
    for split, message in (
        ("fgo/3", "did you mean 'fog'"),
        ("fog", "with a severity 1-5"),
        ("fog/6", "with a severity 1-5"),
        ("snow/1", r"has no CIFAR-10-C.tar or CIFAR-10-C/snow.npy"),
    ):
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c", split, root=root)


def test_damaged_arrays(root):
    path = root / "CIFAR-10-C" / "fog.npy"

    def refused(message):
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c", "fog/1", "first1", root)

    with path.open("r+b") as stream:
        stream.truncate(1000)
    refused("truncated or damaged")
    path.write_bytes(b"<html>")
    refused("not readable as .npy")
    np.save(path, np.array([{}] * 3, object), allow_pickle=True)
    refused("pickled arrays are not read")
    np.save(path, np.zeros((9, 32, 32, 3), np.uint8))
    refused(r"expected 50,000 rows, got an array of shape \(9, 32, 32, 3\)")
    sparse(path, (50_000, 3, 32, 32))
    refused(r"expected bytes of shape \(N, 32, 32, 3\), got uint8")
    sparse(path, (50_000, 32, 32, 3), np.float32)
    refused("expected bytes or integers, got float32")
    sparse(path, (50_000, 32, 32, 3))
    labels = sparse(root / "CIFAR-10-C" / "labels.npy", (50_000,))
    labels[0] = 1
    labels.flush()
    with pytest.raises(DrbenchError, match="labels of CIFAR-10-C to repeat"):
        data.load("cifar10-c", "fog/2", "first1", root)


def test_labels_of_another_set(root):
    path = root / "CIFAR-10-C" / "labels.npy"
    good = np.tile(LABELS, 5)
    for labels, message in (
        (good[:, None], r"expected labels 0-9, one an image, got \(50000, 1\)"),
        (np.where(good == 3, 77, good), "expected labels 0-9, .* of 0-77"),
        (np.tile(LABELS[::-1], 5), "cifar10-c: the test images are not in the published order"),
    ):
        np.save(path, labels)
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c", "fog/1", "first5", root)


@pytest.mark.parametrize("header", [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3",
    "(" * 9000,
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -2), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 99999999999999999999999), }",
])  # fmt: skip
def test_headers_that_say_nonsense(tmp_path, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"ab")
    with pytest.raises(DrbenchError, match=r"a.npy: .*get it again"):
        arrays.mapped(arrays.alone(path))


def test_members_that_cannot_be_opened(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, data=np.zeros(3, np.uint8))
    content = bytearray(path.read_bytes())
    for at, value in ((8, 1), (10, 99)):  # encrypted; a compression that nobody knows
        odd, entry = bytearray(content), content.index(b"PK\x01\x02")
        odd[entry + at] = odd[at - 2] = value
        path.write_bytes(odd)
        with pytest.raises(DrbenchError, match=r"a.npz: not readable as .npz with data.npy"):
            arrays.Zipped(path, "data")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_the_archive_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(shifts, "ROWS", 4)
    monkeypatch.delitem(cifar.ORDER, "cifar10-c")
    known = datasets.manifest()
    monkeypatch.setattr(datasets, "manifest", lambda: {name: entry | {"files": []} for name, entry in known.items()})
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    contents = {"labels.npy": npy(np.arange(20, dtype=np.uint8) % 4), "frost.npy": npy(pixels)}
    with tarfile.open(tmp_path / "CIFAR-10-C.tar", "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"CIFAR-10-C/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = data.from_source(shifts.open_split("frost/3", tmp_path, "cifar10-c"), "x", "y")
    assert np.array_equal((images.x * 255).round().numpy().transpose(0, 2, 3, 1), pixels[8:12])
    with pytest.raises(DrbenchError, match=r"expected a member snow\.npy"):
        data.load("cifar10-c", "snow/1", root=tmp_path)
    path = tmp_path / "CIFAR-10-C.tar"
    path.write_bytes(path.read_bytes()[:-30_000])
    with pytest.raises(DrbenchError, match="truncated or damaged"):
        data.load("cifar10-c", "frost/1", root=tmp_path)
    monkeypatch.undo()
    with pytest.raises(DrbenchError, match="expected 2,918,471,680 bytes"):
        data.load("cifar10-c", "frost/1", root=tmp_path)


def test_cifar10_1(tmp_path, monkeypatch):
    for version, rows in shifts.VERSIONS.items():
        sparse(tmp_path / f"cifar10.1_{version}_data.npy", (rows, 32, 32, 3))[1] = 255
        sparse(tmp_path / f"cifar10.1_{version}_labels.npy", (rows,), np.int32)[1] = 9
    with pytest.raises(DrbenchError, match="expected sha256 2997188e5816"):  # of the right size, but not the published
        data.load("cifar10.1", "v6", root=tmp_path)
    known = datasets.manifest()
    monkeypatch.setattr(datasets, "manifest", lambda: {name: entry | {"files": []} for name, entry in known.items()})
    for version, rows in shifts.VERSIONS.items():
        images = data.load("cifar10.1", version, root=tmp_path)
        assert len(images) == rows and images.x[1].min() == 1 and images.y[:3].tolist() == [0, 9, 0]
    with pytest.raises(DrbenchError, match="available: v4"):
        data.load("cifar10.1", "v5", root=tmp_path)


def test_arrays_by_column_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(np.zeros((4, 5), np.uint8)))
    with pytest.raises(DrbenchError, match="row by row"):
        arrays.mapped(arrays.alone(tmp_path / "a.npy"))
