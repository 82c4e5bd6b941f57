"""CIFAR in each published layout: small files in the documented formats, damaged ones, and real files where at hand."""

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drbench import data
from drbench.data import cifar, pickled, subsets
from drbench.errors import DrbenchError
from drbench.files import datasets

SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data"
REAL = SHARED / "cifar10-jpeg"
PARQUET = "plain_text/{}-00000-of-00001.parquet"
RANDOM = np.random.default_rng(0)
PIXELS = {"train": RANDOM.integers(0, 256, (50, 3072), np.uint8), "test": RANDOM.integers(0, 256, (20, 3072), np.uint8)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fifty training and twenty test images; and no hashes of files and subsets, which small ones cannot have."""
    monkeypatch.setattr(subsets, "known", lambda name, split: {})
    monkeypatch.setattr(cifar, "ROWS", {part: len(pixels) for part, pixels in PIXELS.items()})
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    known = datasets.manifest()
    monkeypatch.setattr(datasets, "manifest", lambda: {name: entry | {"files": []} for name, entry in known.items()})


def encoded(pixels: np.ndarray, codec: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, codec)
    return stream.getvalue()


def square(row: np.ndarray) -> np.ndarray:
    return row.reshape(3, 32, 32).transpose(1, 2, 0)


def write(root: Path, part: str, images: list, labels=None, file=PARQUET, column="label") -> None:
    path = root / file.format(part)
    path.parent.mkdir(exist_ok=True, parents=True)
    cells = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    labels = [i % 10 for i in range(len(images))] if labels is None else labels
    pq.write_table(pa.table({"img": cells, column: pa.array(labels, pa.int64())}), path)


@pytest.fixture
def root(tmp_path):
    for part, pixels in PIXELS.items():
        write(tmp_path, part, [encoded(square(row)) for row in pixels])
    return tmp_path


def old_pickle(batch: dict) -> bytes:
    """A dictionary as Python 2 and its numpy pickled it: byte strings, and arrays as `_reconstruct` and state."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content

    def item(value) -> bytes:
        if isinstance(value, np.ndarray):
            shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"t"
            kind = (
                b"cnumpy\ndtype\n("
                + text(b"u1")
                + b"K\x00K\x01tR(K\x03"
                + text(b"|")
                + b"NNN"
                + 2 * b"J\xff\xff\xff\xff"
            )
            kind += b"K\x00tb"
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
            return made + b"(K\x01" + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(b"J" + struct.pack("<i", n) for n in value) + b"e"
        return text(value)

    return b"\x80\x02}(" + b"".join(text(key.encode()) + item(value) for key, value in batch.items()) + b"u."


def batches(name: str, kind: str) -> dict[str, bytes]:
    """Files of a layout, small: five training batches of 10 for CIFAR-10, one of 50 for CIFAR-100."""
    layout, files = cifar.LAYOUTS[name], {}
    for part, pixels in PIXELS.items():
        names = layout.batches[part]
        for i, file in enumerate(names):
            own = pixels[i * len(pixels) // len(names) : (i + 1) * len(pixels) // len(names)]
            labels = [(i * len(own) + j) % layout.classes for j in range(len(own))]
            if kind == "binary":
                coarse = [np.zeros((len(own), 1), np.uint8)] * (layout.label_bytes - 1)
                table = np.concatenate([*coarse, np.array(labels, np.uint8)[:, None], own], axis=1)
                files[f"{layout.binary}/{file}.bin"] = table.tobytes()
            else:
                batch = {"batch_label": b"x", layout.key: labels, "data": own, "coarse_labels": [0] * len(own)}
                files[f"{layout.python}/{file}"] = old_pickle(batch)
    return files


def unpack(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(content)


def pack(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_every_layout_holds_the_same_images(root, tmp_path, kind, packed):
    other = tmp_path / "other"
    other.mkdir()
    if packed:
        pack(other / f"cifar-10-{kind}.tar.gz", {"cifar-10-batches-bin/readme.html": b"x", **batches("cifar10", kind)})
    else:
        unpack(other, batches("cifar10", kind))
    for split in ("train", "validation", "test"):
        a, b = (data.load("cifar10", split, root=place) for place in (root, other))
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.ids == b.ids and a.sha256 == b.sha256


@pytest.mark.parametrize("kind", ["binary", "python", "parquet"])
def test_cifar100(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(cifar.LAYOUTS, "cifar100", cifar.LAYOUTS["cifar100"]._replace(classes=20))
    if kind == "parquet":
        labels = [i % 20 for i in range(20)]
        images = [encoded(square(row)) for row in PIXELS["test"]]
        write(tmp_path, "test", images, labels, "cifar100/{}-00000-of-00001.parquet", "fine_label")
    else:
        unpack(tmp_path, batches("cifar100", kind))
    images = data.load("cifar100", root=tmp_path)
    assert images.num_classes == 20 and images.y.tolist() == list(range(20))
    assert np.array_equal((images.x * 255).round().numpy().reshape(20, -1), PIXELS["test"])


def test_splits_share_no_row(root):
    train, validation = (data.load("cifar10", split, root=root) for split in ("train", "validation"))
    test = data.load("cifar10", "test", "first5", root)
    assert validation.ids == (9, 19, 29, 39, 49) and len(train) == 45 and not set(train.ids) & set(validation.ids)
    assert test.shape == (3, 32, 32) and test.y.tolist() == [0, 1, 2, 3, 4] and test.subset == "test/first5"
    assert np.array_equal((train.x[1] * 255).round().numpy(), PIXELS["train"][1].reshape(3, 32, 32))


def test_the_environment_names_the_folder(root, monkeypatch):
    monkeypatch.setenv("DRBENCH_DATA", str(root.parent))
    (root.parent / "cifar10").symlink_to(root)
    assert data.load("cifar10").sha256 == data.load("cifar10", root=root).sha256
    monkeypatch.setenv("DRBENCH_DATA", str(root / "elsewhere"))
    with pytest.raises(DrbenchError, match=r"no folder .*elsewhere/cifar10 \(DRBENCH_DATA="):
        data.load("cifar10")


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
    with pytest.raises(DrbenchError, match="no folder"):
        data.load("cifar10", root=root / "elsewhere")
    (root / "empty").mkdir()
    with pytest.raises(DrbenchError, match=r"empty has no file of the test images.\nExpected"):
        data.load("cifar10", root=root / "empty")
    with pytest.raises(DrbenchError, match="unknown split 'dev'"):
        data.load("cifar10", "dev", root=root)
    with pytest.raises(DrbenchError, match=r"takes no data.preprocessing, got 'box64'"):
        data.load("cifar10", root=root, preprocessing="box64")
    good = encoded(np.zeros((32, 32, 3), np.uint8))
    for images, labels, message in (
        ([good] * 19, None, "expected 20 images of the classes 0-9, got 19"),
        ([good] * 20, [0] * 20, "of the classes 0-9"),
        ([None] * 20, None, "images or labels are missing"),
        (["x"] * 20, None, "not bytes and integers"),
        ([good[:60]] * 20, None, "row 0: not a readable image"),
        ([encoded(np.zeros((32, 32), np.uint8))] * 20, None, "expected 32x32 RGB, got 32x32 L"),
        ([encoded(np.zeros((28, 32, 3), np.uint8))] * 20, None, "got 32x28 RGB"),
    ):
        write(root, "test", images, labels)
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10", root=root)
    path, labels = root / PARQUET.format("test"), [i % 10 for i in range(20)]
    for table, message in (
        ({"img": [{"bytes": good}] * 20, "label": [float(label) for label in labels]}, "not bytes and integers"),
        ({"img": [good] * 20, "label": labels}, "not readable as images in parquet"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10", root=root)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DrbenchError, match="not readable as images in parquet"):
        data.load("cifar10", root=root)


def test_damaged_batches(tmp_path):
    good = batches("cifar10", "binary")
    test = "cifar-10-batches-bin/test_batch.bin"
    unpack(tmp_path, good | {test: good[test][:-1]})
    with pytest.raises(DrbenchError, match=r"test_batch.bin: expected 20 records of 3,073 bytes, got 61,459"):
        data.load("cifar10", root=tmp_path)
    unpack(tmp_path, {test: b"\x0b" + good[test][1:]})  # label 11
    with pytest.raises(DrbenchError, match="expected 20 images of the classes 0-9"):
        data.load("cifar10", root=tmp_path)


def test_oversize_batches_are_not_read(tmp_path):
    unpack(tmp_path, {"cifar-10-batches-py/test_batch": b""})
    with (tmp_path / "cifar-10-batches-py/test_batch").open("r+b") as stream:
        stream.truncate(2**40)  # takes no space
    with pytest.raises(DrbenchError, match="no batch of CIFAR is so large"):
        data.load("cifar10", root=tmp_path)


def member(name: str, **facts) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    "more, message",
    [
        (member("../../evil"), "leaves the archive's folder"),
        (member("/etc/evil"), "leaves the archive's folder"),
        (member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain file"),
        (member("cifar-10-batches-bin/data_batch_1.bin"), "occurs twice"),
    ],
    ids=["up", "absolute", "link", "twice"],
)
def test_archives_with_traps_are_refused(tmp_path, more, message):
    files = batches("cifar10", "binary")
    del files["cifar-10-batches-bin/data_batch_5.bin"]  # so that the reader looks at all members
    pack(tmp_path / "cifar-10-binary.tar.gz", files, more)
    with pytest.raises(DrbenchError, match=message):
        data.load("cifar10", "train", root=tmp_path)


def test_damaged_archives(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-binary.tar.gz"
    pack(path, {"cifar-10-batches-bin/readme.html": b"x"})
    with pytest.raises(DrbenchError, match=r"expected the member cifar-10-batches-bin/test_batch.bin"):
        data.load("cifar10", root=tmp_path)
    pack(path, {f"cifar-10-batches-bin/{i}": b"x" for i in range(101)})
    with pytest.raises(DrbenchError, match="one of more than 100"):
        data.load("cifar10", root=tmp_path)
    pack(path, batches("cifar10", "binary"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DrbenchError, match="truncated or damaged"):
        data.load("cifar10", root=tmp_path)
    path.write_bytes(b"<html>quota</html>")
    with pytest.raises(DrbenchError, match="truncated or damaged"):
        data.load("cifar10", root=tmp_path)
    monkeypatch.undo()  # the real manifest: an archive of another size or hash is not parsed
    with pytest.raises(DrbenchError, match=r"expected 170,052,171 bytes, got 18"):
        data.load("cifar10", root=tmp_path)
    path.rename(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(DrbenchError, match="expected md5 c58f30108f718f92721af3b95e74349a, got"):
        data.load("cifar10", root=tmp_path)


def test_old_pickles_are_read_as_python_reads_them():
    content = old_pickle({"data": PIXELS["test"], "labels": [1, 2]})
    trusted = pickle.loads(content.replace(b"numpy.core.", b"numpy._core."), encoding="bytes")
    ours = pickled.read(io.BytesIO(content), "x")
    assert np.array_equal(trusted[b"data"], PIXELS["test"]) and np.array_equal(ours["data"], PIXELS["test"])
    assert ours["labels"] == trusted[b"labels"] == [1, 2]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps({"data": Evil()}, 2), r"it asks for (posix|nt)\.mkdir"),
        (old_pickle({"data": PIXELS["test"]}).replace(b"\x02\x00\x00\x00u1", b"\x02\x00\x00\x00O8"), "not of bytes"),
        (pickle.dumps([1], 2), "expected a dictionary"),
        (old_pickle({"data": PIXELS["test"]})[:-100], "not readable as a batch"),
        (b"", "not readable as a batch"),
        (
            old_pickle({"data": PIXELS["test"][:9], "labels": [0] * 20}),
            r"expected data \(20, 3,072\) and as many labels",
        ),
        (old_pickle({"data": PIXELS["test"], "labels": [0] * 19}), "expected data"),
    ],
    ids=["evil", "objects", "list", "truncated", "empty", "shape", "labels"],
)
def test_pickles_with_anything_else_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    unpack(tmp_path, {"cifar-10-batches-py/test_batch": content})
    with pytest.raises(DrbenchError, match=message):
        data.load("cifar10", root=tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_shuffled_test_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ROWS", {"test": 10_000})
    table = np.zeros((10_000, 3073), np.uint8)
    table[:, 0] = np.arange(10_000) % 10
    unpack(tmp_path, {"cifar-10-batches-bin/test_batch.bin": table.tobytes()})
    with pytest.raises(DrbenchError, match="not in the published order"):
        data.load("cifar10", root=tmp_path)


@pytest.mark.skipif(not (SHARED / "logs").is_dir(), reason="needs the logs in $DRBENCH_SHARED/data/logs/cohen")
def test_the_published_order_is_that_of_the_logs():
    lines = (SHARED / "logs/cohen/cifar10/resnet110/noise_0.25/test/sigma_0.25").read_text().splitlines()[1:]
    labels = [0] * 10_000
    for line in lines:
        row, label = line.split("\t")[:2]
        labels[int(row)] = int(label)
    cifar.check_order("cifar10", labels)
    labels[0], labels[20] = labels[20], labels[0]
    with pytest.raises(DrbenchError, match="not in the published order"):
        cifar.check_order("cifar10", labels)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 files in $DRBENCH_SHARED/data/cifar10-jpeg")
def test_real_files(monkeypatch):
    monkeypatch.undo()
    images = data.load("cifar10-jpeg", "test", "first100", REAL)
    assert images.shape == (3, 32, 32) and len(set(images.y.tolist())) == 10
    assert 0.4 < images.x.mean() < 0.55 and images.x.std() > 0.2  # CIFAR-10 has 0.473 and 0.25
    with pytest.raises(DrbenchError, match="cifar10"):  # shuffled rows are found before the first pixel
        data.load("cifar10", "test", "first1", REAL)
