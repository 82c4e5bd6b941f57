"""Every CIFAR-10 row of the papers runs on real images: its own architecture, shrunk, with random weights."""

import os
from pathlib import Path

import pytest

from drbench import config
from tests import shrinking

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data"
FILES = sorted(path for path in (ROOT / "benchmarks" / "cifar10").rglob("*.yaml") if "train" not in path.parts)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason="needs $DRBENCH_SHARED/data/cifar10-jpeg"),
]
# What of each kind of network is small here; the rest of its configuration stays the paper's.
SMALL = {
    "improved_diffusion": {"num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1]},
    "edm": {"model_channels": 8, "num_blocks": 1, "channel_mult": [1, 1]},
    "consistency_models_cifar10": {"model_channels": 32, "num_blocks": 1, "channel_mult": [1, 1]},
    "huggingface": {"config": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                               "intermediate_size": 16}},
    "timm": {"arch": "vit_tiny_patch16_224", "depth": 1},
    "wide_resnet": {"depth": 10, "widen": 1},
}  # fmt: skip
HEADS = {"model_channels": 32, "num_blocks": 1, "channel_mult": [1, 1]}
# three nodes: EPNDC sums over none of two
SETTINGS = shrinking.SETTINGS | {"head_network": HEADS, "nodes": 3}


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_row_runs(file, tmp_path):
    rows = {}
    for cell in config.load(file):  # one noise level of each row
        rows.setdefault((cell.defense.variant, cell.certify.kind, str(cell.attack.norm)), cell)
    for cell in rows.values():
        shrinking.shrink(cell, SMALL, SETTINGS)
        cell.data.name, cell.data.split = "cifar10-jpeg", "test"
        cell.data.subset = "first1" if cell.task == "attack" else "first2"
        cell.data.root = str((SHARED / "cifar10-jpeg").resolve())
    shrinking.run(list(rows.values()), tmp_path)
