"""Every ImageNet row of the papers runs, on two made images: its own architecture, shrunk, with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from drbench import config, registry
from drbench.data import folders, imagenet64
from drbench.files import datasets
from drbench.planning import plan
from tests import shrinking

ROOT = Path(__file__).parents[1] / "benchmarks" / "imagenet"
DIFFUSION_CLASSIFIERS = [ROOT / "ndc.yaml", ROOT / "attack" / "rdc-restricted.yaml"]  # sum and purifier differ in size
OTHERS = sorted(set(ROOT.rglob("*.yaml")) - set(DIFFUSION_CLASSIFIERS))
CLASSES = {"imagenet": (3, 999), "restricted-imagenet": (151, 300), "imagenet-a": (6, 130), "imagenet-r": (6, 130)}
UNET = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1]}
ADM = UNET | {"num_head_channels": 32}
SMALL = {"improved_diffusion": UNET, "guided_diffusion": ADM, "openai_consistency": ADM, "timm": {"depth": 1}}
OPEN = {"dds-vit": "classifier.arch=vit_tiny_patch16_224", "densepure-vit": "classifier.arch=vit_tiny_patch16_224",
        "rcm-deep": "depth=1"}  # fmt: skip
pytestmark = pytest.mark.slow


def shrink_diffusion_classifier(cell, side):
    """Networks of a few thousand parameters, for images of this side that are resized to 8; few calls of them."""
    args = cell.defense.args
    args.denoiser = {**args.denoiser, "img_resolution": 8, "model_channels": 64, "num_blocks": 1,
                     "channel_mult": [1], "attn_resolutions": []}  # fmt: skip
    args.resize.size, args.nodes = 8, 2
    if "purifier" in args:
        args.purifier = {**args.purifier, **ADM, "image_size": side, "attention_resolutions": [8]}
    if "sift" in args:
        args.sift = {"nodes": 1, "threshold": 1.0, "keep": 2}
    shrinking.few(cell)
    cell.certify.n, cell.run.batch_rows = 10, 2
    return cell


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A function that makes two images of a data set, and its manifest expect no more."""

    def make(name):
        if name == "imagenet64":
            monkeypatch.setattr(imagenet64, "ROWS", 2)
            pixels = np.random.default_rng(0).integers(0, 256, (2, 3 * 64 * 64), np.uint8)
            np.savez(tmp_path / "val_data.npz", data=pixels, labels=np.array([1, 1000]))
            return str(tmp_path)
        top = datasets.manifest()[name]["trees"][0]["path"]
        for c in CLASSES[name]:
            folder = tmp_path / name / top / folders.wnids()[c]
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(c).integers(0, 256, (70, 90, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{c}.png")
        known = datasets.manifest()
        tree = {"path": top, "folders": 2, "files": 2}
        monkeypatch.setattr(datasets, "manifest", lambda: known | {name: known[name] | {"trees": [tree]}})
        return str(tmp_path / name)

    return make


def parts(cell, folder):
    """Files of random weights as `drbench weights` makes them: each of a "denoiser", and the config says of which."""
    about = {"input_shape": (3, 64, 64), "num_classes": datasets.entry(cell.data.name)["classes"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = registry.find("diffusion_classifier")(**about, **config.OmegaConf.to_container(cell.defense.args))
    names = []
    for name, network in made.networks().items():
        path = folder / f"{name}.safetensors"
        save_file({f"denoiser.{key}": value.contiguous() for key, value in network.state_dict().items()}, path)
        names.append(str(path) + (" as purifier" if name == "purifier" else ""))
    return names


@pytest.mark.parametrize("file", OTHERS, ids=lambda path: path.stem)
def test_every_row_runs(file, tmp_path, photographs):
    rows = {}
    for cell in config.load(file, [f"defense.args.{OPEN[file.stem]}"] if file.stem in OPEN else []):
        rows.setdefault((cell.defense.variant, cell.data.name), cell)  # one noise level of each row
    roots = {name: photographs(name) for name in {name for _, name in rows}}
    for cell in rows.values():
        shrinking.shrink(cell, SMALL)
        cell.data.root, cell.data.subset = roots[cell.data.name], "first2"
        if cell.data.name != "imagenet64":  # a quarter of the side, or so
            cell.data.preprocessing = "box64"
            if "denoiser" in cell.defense.args:
                cell.defense.args.denoiser.image_size = 64 + 2 * cell.defense.args.denoiser.get("pad", 0)
    (planned,) = plan.measure([cell])
    assert planned.images == 2 and planned.seconds > 0
    shrinking.run(list(rows.values()), tmp_path / "out")


@pytest.mark.parametrize("file", DIFFUSION_CLASSIFIERS, ids=lambda path: path.stem)
def test_every_row_of_a_diffusion_classifier_runs(file, tmp_path, photographs):
    rows = {}
    for cell in config.load(file):  # one noise level of each row
        rows.setdefault(cell.defense.variant, shrink_diffusion_classifier(cell, 64))
    root = photographs(cell.data.name)
    for cell in rows.values():
        cell.data.root, cell.data.subset, cell.data.preprocessing = root, "first2", "box64"
        cell.defense.checkpoint = parts(cell, tmp_path)
    for cell, run in zip(rows.values(), shrinking.run(list(rows.values()), tmp_path / "out"), strict=True):
        assert run.header["data"]["shape"] == [3, 64, 64] and not run.header["flags"]
        assert ("purifier" in run.header["defense"]["nfe"]) is ("purifier" in cell.defense.args)


def test_a_plan_is_at_the_size_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DRBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("DRBENCH_WEIGHTS", str(tmp_path))
    for variant in ("apndc-sift", "apndc-100"):
        cell = next(cell for cell in config.load(DIFFUSION_CLASSIFIERS[0]) if cell.defense.variant == variant)
        (cost,) = plan.measure([shrink_diffusion_classifier(cell, 256)])
        assert cost.images == 512 and cost.random == "data and weights" and cost.seconds > 0
