"""ImageNet folders, its variants and its 64x64 arrays: small files in the documented layouts, and real ones at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import drbench
from drbench import data
from drbench.cli import main
from drbench.data import folders, imagenet, imagenet64, preprocessing
from drbench.digests import names_digest
from drbench.errors import DrbenchError
from drbench.files import datasets
from drbench.jobs.restricted import Restricted
from drbench.records import record

SAMPLE = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "imagenet-sample"
RANDOM = np.random.default_rng(0)
NAMES = folders.wnids()
CHOSEN = (NAMES[3], NAMES[20], NAMES[999])


def photograph(width=70, height=50, mode="RGB") -> Image.Image:
    """Something smooth, so that JPEG keeps it."""
    small = RANDOM.integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def root(tmp_path):
    """val/ with three classes of two photographs."""
    for wnid in CHOSEN:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for i in (2, 1):
            photograph().save(tmp_path / "val" / wnid / f"ILSVRC2012_val_{i:05d}{NAMES.index(wnid):03d}.JPEG")
    return tmp_path


@pytest.fixture
def counted(monkeypatch):
    """A function that makes the manifest expect so many folders and files of a data set."""
    known = datasets.manifest()

    def expect(name, folders, files, **facts):
        tree = {"path": "val" if name == "imagenet" else name, "folders": folders, "files": files, **facts}
        monkeypatch.setattr(datasets, "manifest", lambda: known | {name: known[name] | {"trees": [tree]}})

    return expect


def engine_config(folder: Path, task: str, images: str) -> Path:
    """A benchmark file that asks little of an untrained classifier."""
    config = folder / "a.yaml"
    config.write_text(
        f"task: {task}\ndefense: {{name: undefended, args: {{width: 4}}}}\ndata: {images}\n"
        "certify: {sigma: 0.25, n0: 10, n: 40, block: 20}\nrun: {batch_rows: 32}\n"
        "attack: {attacks: [{attack: pgd, loss: margin, steps: 2, draws: 1}], evaluations: 2, select: 1, worst_of: 1,"
        " audit: 0}\n"
    )
    return config


def test_wnids_are_those_of_every_program():
    assert len(set(NAMES)) == 1000 and list(NAMES) == sorted(NAMES)
    assert {"n01440764": 0, "n01751748": 65, "n15075141": 999}.items() <= {w: i for i, w in enumerate(NAMES)}.items()
    kit = folders.wnids("imagenet64_wnids.txt")
    assert sorted(kit) == list(NAMES) and kit[0] == "n02119789" and kit != NAMES


def test_folders_become_classes(root):
    images = data.load("imagenet-sample", "val", "all", root)
    assert images.y.tolist() == [3, 3, 20, 20, 999, 999] and images.num_classes == 1000 and images.within is None
    assert images.shape == (3, 224, 224) and images.ids[:2] == ("ILSVRC2012_val_00001003", "ILSVRC2012_val_00002003")
    assert (images.dataset, images.subset) == ("imagenet-sample", "val")
    small = data.load("imagenet-sample", "val", "first2", root, "box64")
    assert small.shape == (3, 64, 64) and small.subset == "val@box64/first2"


def test_a_part_is_not_called_imagenet(root, counted):
    with pytest.raises(DrbenchError, match=r"expected 50,000 images in 1,000 folders .*, got 6 in 3 .*imagenet-sample"):
        data.load("imagenet", "val", root=root)
    counted("imagenet", 3, 6)
    assert len(data.load("imagenet", "val", "first3", root, "box64")) == 3
    counted("imagenet", 3, 7)
    with pytest.raises(DrbenchError, match="expected 7 images in 3 folders"):
        data.load("imagenet", "val", "first3", root)
    counted("imagenet", 3, 6, names_sha256="0" * 64)
    with pytest.raises(DrbenchError, match="not in the folders of their published labels"):
        data.load("imagenet", "val", "first3", root)


def test_a_class_sorted_subset_is_noticed(root):
    few = data.overview("imagenet-sample", "val", "first4", root)
    assert str(few) == "4 images, 2 of 1,000 classes" and not few.few_classes  # too few images to say
    assert data.Overview(500, 10, 1000, "").few_classes and not data.Overview(500, 500, 1000, "").few_classes
    assert not data.Overview(5000, 997, 1000, "").few_classes and not data.Overview(100, 10, 10, "").few_classes


def test_strange_folders(root):
    (root / "val" / "cats").mkdir()
    with pytest.raises(DrbenchError, match="cats is not named by the WordNet id"):
        data.load("imagenet-sample", "val", root=root)
    (root / "val" / "cats").rename(root / "val" / "n00000001")
    with pytest.raises(DrbenchError, match="n00000001 is not named by the WordNet id of one of"):
        data.load("imagenet-sample", "val", root=root)
    (root / "val" / "n00000001").rename(root / "val" / NAMES[5])
    with pytest.raises(DrbenchError, match=f"no image in .*{NAMES[5]}"):
        data.load("imagenet-sample", "val", root=root)
    with pytest.raises(DrbenchError, match="has no folder train"):
        data.load("imagenet-sample", "train", root=root)
    with pytest.raises(DrbenchError, match="name of a folder"):
        data.load("imagenet-sample", "../val", root=root)
    with pytest.raises(DrbenchError, match="available: val, train"):
        data.load("imagenet", "test", root=root)
    with pytest.raises(DrbenchError, match="did you mean 'adm256'"):
        data.load("imagenet-sample", "val", root=root, preprocessing="adm265")
    photograph().save(root / "val" / NAMES[5] / "ILSVRC2012_val_00001003.JPEG")
    with pytest.raises(DrbenchError, match=r"two files below .* have the same name"):
        data.load("imagenet-sample", "val", root=root)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_become_rgb(root, mode):
    path = root / "val" / CHOSEN[0] / "ILSVRC2012_val_00001003.JPEG"
    photograph(mode=mode).save(path, "JPEG")
    images = data.load("imagenet-sample", "val", "first1", root, "box64")
    expected = transforms.ToTensor()(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BOX))
    assert torch.equal(images.x[0], expected) and expected.std() > 0.05
    assert mode != "L" or torch.equal(images.x[0, 0], images.x[0, 2])


def test_hidden_files_are_no_images(root):
    """Such as macOS leaves beside the files that it unpacks."""
    for name in ("._ILSVRC2012_val_00001003.JPEG", ".DS_Store"):
        (root / "val" / CHOSEN[0] / name).write_bytes(b"x")
    assert data.open_split("imagenet-sample", "val", root).ids[0] == "ILSVRC2012_val_00001003"


def test_pixels_of_sixteen_bits_are_refused(root):
    path = root / "val" / CHOSEN[0] / "ILSVRC2012_val_00001003.JPEG"
    Image.fromarray(np.full((80, 80), 30_000, np.uint16)).save(path, "PNG")
    with pytest.raises(DrbenchError, match=r"00001003.JPEG: .*expected pixels of 8 bits, got mode I"):
        data.load("imagenet-sample", "val", "first1", root)


def test_a_png_with_the_name_of_a_jpeg(root):
    photograph(mode="RGBA").save(root / "val" / CHOSEN[0] / "ILSVRC2012_val_00001003.JPEG", "PNG")
    assert data.load("imagenet-sample", "val", "first1", root).shape == (3, 224, 224)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"<html>", lambda b: b""], ids=["cut", "html", "empty"]
)
def test_corrupt_files_are_named_and_only_read_when_chosen(root, damage):
    path = root / "val" / CHOSEN[1] / "ILSVRC2012_val_00001020.JPEG"
    path.write_bytes(damage(path.read_bytes()))
    assert len(data.load("imagenet-sample", "val", "first2", root)) == 2
    with pytest.raises(DrbenchError, match=r"ILSVRC2012_val_00001020.JPEG: not a readable image"):
        data.load("imagenet-sample", "val", "all", root)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (106, 150), (1300, 801), (256, 256), (257, 640)])
def test_preprocessings_are_those_of_the_field(size):
    image = photograph(*size)
    bicubic = transforms.InterpolationMode.BICUBIC
    references = {
        "resize256-crop224": [transforms.Resize(256), transforms.CenterCrop(224)],
        "resize256-crop224-bicubic": [transforms.Resize(256, bicubic), transforms.CenterCrop(224)],
        "resize224-bicubic": [transforms.Resize(224, bicubic), transforms.CenterCrop(224)],
        "resize256": [transforms.Resize(256), transforms.CenterCrop(256)],
    }
    for name, steps in references.items():
        expected = transforms.Compose(steps)(image)
        assert np.array_equal(np.asarray(preprocessing.get(name).make(image)), np.asarray(expected)), name
    for name, known in preprocessing.NAMES.items():
        assert known.make(image).size == (known.side, known.side), name
    assert preprocessing.get(None) is preprocessing.NAMES["resize256-crop224"]


def test_adm_halves_by_boxes_first():
    image = photograph(1300, 1000)
    halved = image.resize((650, 500), Image.Resampling.BOX)
    expected = halved.resize((333, 256), Image.Resampling.BICUBIC).crop((38, 0, 294, 256))
    assert np.array_equal(np.asarray(preprocessing.get("adm256").make(image)), np.asarray(expected))
    twice = halved.resize((325, 250), Image.Resampling.BOX)
    expected = twice.resize((291, 224), Image.Resampling.BICUBIC).crop((33, 0, 257, 224))
    assert np.array_equal(np.asarray(preprocessing.get("adm224").make(image)), np.asarray(expected))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_classes_among_the_thousand(tmp_path, counted, name):
    for wnid in CHOSEN:
        (tmp_path / name / wnid).mkdir(parents=True)
        photograph().save(tmp_path / name / wnid / "0.1_digital clock _ sea_0.8.jpg")
    with pytest.raises(DrbenchError, match=r"expected [\d,]+ images in 200 folders"):
        data.load(name, "test", root=tmp_path)
    counted(name, 3, 3)
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{CHOSEN[2]}/0.1_digital clock _ sea_0.8\n\n{CHOSEN[0]}/0.1_digital clock _ sea_0.8\n")
    images = data.load(name, "test", f"ids:{listed}", tmp_path)
    assert images.y.tolist() == [2, 0] and images.num_classes == 3 and images.within == (3, 20, 999)


def test_superclasses_of_restricted_imagenet(tmp_path, counted):
    """Both ends of each range and their outer neighbours, as folders of one photograph."""
    ends = {c: i for i, range_ in enumerate(imagenet.SUPERCLASSES) for c in range_}
    assert len({c for first, last in imagenet.SUPERCLASSES for c in range(first, last + 1)}) == 203
    for c in sorted({*ends, 0, 29, 38, 79, 101, 117, 122, 150, 269, 286, 299, 320, 383, 398, 999}):
        (tmp_path / "val" / NAMES[c]).mkdir(parents=True)
        photograph().save(tmp_path / "val" / NAMES[c] / f"{c}.JPEG")
    with pytest.raises(DrbenchError, match=r"expected 50,000 images in 1,000 folders"):
        data.load("restricted-imagenet", "val", root=tmp_path)
    counted("restricted-imagenet", 33, 33, path="val")
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(map(str, ends)))
    images = data.load("restricted-imagenet", "val", f"ids:{ids}", tmp_path, "box64")
    assert dict(zip(map(int, images.ids), images.y.tolist(), strict=True)) == ends
    assert images.num_classes == 9 and images.within is None
    assert len(data.open_split("restricted-imagenet", "val", tmp_path).ids) == len(ends) == 18
    with pytest.raises(DrbenchError, match="available: val"):
        data.load("restricted-imagenet", "train", root=tmp_path)


def test_shapes_without_images():
    assert data.shape("imagenet") == (3, 224, 224) and data.shape("imagenet", "adm256") == (3, 256, 256)
    assert data.shape("digits") == (1, 8, 8)


@pytest.mark.parametrize("task", ["certify", "attack"])
def test_a_classifier_of_all_classes_answers_among_some(tmp_path, capsys, counted, task):
    for wnid in CHOSEN:
        (tmp_path / "imagenet-a" / wnid).mkdir(parents=True)
        photograph().save(tmp_path / "imagenet-a" / wnid / "0.jpg")
    counted("imagenet-a", 3, 3)
    config = engine_config(tmp_path, task, f"{{name: imagenet-a, root: {tmp_path}, preprocessing: box64}}")
    assert main(["run", str(config), "--out", str(tmp_path)]) == 0
    (run,) = [record.read(folder) for folder in capsys.readouterr().out.split()]
    assert run.complete and run.header["defense"]["nfe"] == {"classifier": 1.0}
    assert {row.label for row in run.rows.values()} == {0, 1, 2}
    images = data.load("imagenet-a", "test", root=tmp_path, preprocessing="box64")
    defense = drbench.load_defense("undefended", images, width=4)
    draws = drbench.Draws.seeded(0, 3)
    assert isinstance(defense, Restricted) and defense.num_classes == 3 and defense.base.num_classes == 1000
    whole = defense.base.logits(images.x, 0.0, draws)
    for scores in (defense.logits(images.x, 0.0, draws), defense.attack_logits(images.x, 0.0, draws)):
        assert torch.equal(scores, whole[:, [3, 20, 999]])
    purifier = drbench.load_defense("diffpure", images, steps=1, channels=[8, 16], width=4)
    behind = purifier.base.classify(images.x, 0.0, draws)
    assert torch.equal(purifier.classify(images.x, 0.0, draws), behind[:, [3, 20, 999]])
    defense.base.gradient_rows = lambda sigma: 48
    assert defense.gradient_rows(0.0) == 48
    with pytest.raises(DrbenchError, match=r"expected classes of 0..999, got 3..1000"):
        Restricted(defense.base, [3, 1000])
    with pytest.raises(DrbenchError, match=r"takes images .* of 50 classes"):
        drbench.load_defense("undefended", images, width=4, num_classes=50)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def arrays64(request, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet64, "ROWS", 6)
    pixels = RANDOM.integers(0, 256, (6, 3 * 64 * 64), np.uint8)
    request.param(tmp_path / "val_data.npz", data=pixels, labels=np.array([1, 2, 3, 1000, 1, 2]))
    return tmp_path, pixels


def test_imagenet64(arrays64):
    root, pixels = arrays64
    images = data.load("imagenet64", "val", root=root)
    assert np.array_equal((images.x * 255).round().numpy().reshape(6, -1), pixels) and images.shape == (3, 64, 64)
    kit = folders.wnids("imagenet64_wnids.txt")
    assert [NAMES[y] for y in images.y] == [kit[i] for i in (0, 1, 2, 999, 0, 1)]
    listed = root / "ids.txt"
    listed.write_text("4\n0\n2\n")  # backwards
    assert np.array_equal(
        (data.load("imagenet64", "val", f"ids:{listed}", root).x[1] * 255).round().flatten(), pixels[0]
    )


def test_damaged_imagenet64(arrays64):
    root, _ = arrays64
    path = root / "val_data.npz"
    whole = path.read_bytes()

    def refused(message):
        with pytest.raises(DrbenchError, match=message):
            data.load("imagenet64", "val", root=root)

    path.write_bytes(whole[:-100])
    refused("not readable as .npz")
    path.write_bytes(whole[:2000] + bytes(20_000) + whole[22_000:])
    refused("is not readable|ends before row")
    np.savez(path, data=np.zeros((5, 12288), np.uint8), labels=np.ones(5, int))
    refused("expected 6 rows")
    np.savez(path, data=np.zeros((6, 12288), np.uint8), labels=np.zeros(6, int))
    refused("labels in 1..1000, got 0..0")
    np.savez(path, data=np.zeros((6, 3072), np.uint8), labels=np.ones(6, int))
    refused("expected bytes of shape")
    np.savez(path, data=np.zeros((6, 12288), np.uint8))
    refused("labels.npy")
    np.savez(path, data=np.zeros((6, 12288), np.uint8), labels=np.array([None] * 6))
    refused("pickled arrays are not read")
    path.unlink()
    refused("no file val_data.npz")
    with pytest.raises(DrbenchError, match="available: val"):
        data.load("imagenet64", "train", root=root)


needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs $DRBENCH_SHARED/data/imagenet-sample")


@needs_sample
def test_the_sample():
    overview = data.overview("imagenet-sample", "val", "all", SAMPLE)
    assert str(overview) == "50 images, 50 of 1,000 classes"
    images = data.load("imagenet-sample", "val", "every10", SAMPLE)
    assert images.ids[0] == "n01440764_tench" and images.y.tolist() == sorted(images.y.tolist()) and images.grid == 255
    assert 0.3 < images.x.mean() < 0.6


@needs_sample
@pytest.mark.parametrize("task", ["certify", "attack"])
def test_engines_take_larger_images(tmp_path, capsys, task):
    spec = f"{{name: imagenet-sample, split: val, subset: first2, root: {SAMPLE.resolve()}, preprocessing: box64}}"
    config = engine_config(tmp_path, task, spec)
    assert main(["run", str(config), "--out", str(tmp_path)]) == 0
    (run,) = [record.read(folder) for folder in capsys.readouterr().out.split()]
    about = run.header["data"]
    assert run.complete and about["shape"] == [3, 64, 64] and about["subset"] == "val@box64/first2"
    assert about["classes"] == [2, 1000] and about["ids_sha256"] == names_digest(about["ids"])
    assert main(["verify", str(tmp_path)]) == 0
