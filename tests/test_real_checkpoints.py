"""Published and large checkpoints, end to end: from the file of another project to rows of a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import drbench
from benchmarks.resnets import FILES, SHARED, pretrained
from drbench import data, weights
from drbench.checkpoints import formats
from drbench.cli import main
from drbench.records import record, verify
from tests.parity import PARITY, needs_parity

CIFAR = (SHARED / "cifar10-jpeg").resolve()
RESNETS = SHARED / "checkpoints" / "pytorch_resnet_cifar10"
GIB = 2**30
# three times as wide as EDM's network for CIFAR-10, with a block more a level
LARGE = {"kind": "edm_song", "img_resolution": 32, "model_channels": 384, "channel_mult": [2, 2, 2], "label_dim": 10,
         "num_blocks": 5, "attn_resolutions": [16]}  # fmt: skip
pytestmark = pytest.mark.slow
needs_resnets = pytest.mark.skipif(
    not (CIFAR.is_dir() and RESNETS.is_dir()), reason="needs cifar10-jpeg and checkpoints in $DRBENCH_SHARED/data"
)


@needs_resnets
@pytest.mark.parametrize("depth, accuracy", [(20, 81.4), (56, 82.95)])
def test_accuracy_of_published_resnets(depth, accuracy):
    """The README of the data states 81.4 % for ResNet-20; ResNet-56 is to be better, and to stay what it was."""
    images = data.load("cifar10-jpeg", "test", "first2000", CIFAR)
    defense = pretrained(depth)
    with torch.inference_mode():
        found = torch.cat([defense.logits(part, 0.0, None).argmax(1) for part in images.x.split(250)])
    assert 100 * found.eq(images.y).double().mean() == pytest.approx(accuracy, abs=0.051)


@needs_resnets
@needs_parity
@pytest.mark.parametrize("name", ["denoised", "undefended"])
def test_a_run_with_converted_files(tmp_path, capsys, name):
    """Two converted files in one config: a random EDM denoiser and a published ResNet. Certified, then verified."""
    args, files = {"sigmas": [0.0, 0.25]}, []
    sources = {"denoiser": (PARITY / "edm_ddpmpp_c16.pkl", "edm"), "classifier": (RESNETS / FILES[20], "resnet_cifar")}
    if name == "undefended":
        del sources["denoiser"]
    for role, (path, format) in sources.items():
        found = formats.convert(path, format)
        files.append(str(tmp_path / f"{role}.safetensors"))
        formats.save(found, files[-1], weights.sha256_of(path), format, source=path)
        assert found.role == role
        args[role] = found.spec
    config = {
        "title": name,
        "data": {"name": "cifar10-jpeg", "root": str(CIFAR), "subset": "first3"},
        "defense": {"name": name, "args": args, "checkpoint": files},
        "certify": {"sigma": 0.25, "n0": 10, "n": 40, "block": 20},
        "run": {"batch_rows": 20},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 0
    (folder,) = capsys.readouterr().out.split()
    run = record.read(Path(folder))
    assert run.complete and verify.problems(run) == []
    assert run.header["defense"]["nfe"] == ({"denoiser": 1.0, "classifier": 1.0} if "denoiser" in args
                                            else {"classifier": 1.0})  # fmt: skip
    assert sorted(run.header["defense"]["checkpoints"].values()) == sorted(weights.resolve(one).sha256 for one in files)


LOAD = """
import json, sys
import drbench
from drbench.data import Images
import torch

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

spec, path = json.loads(sys.argv[1]), sys.argv[2]
images = Images(torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), (0, 1), "given", "all", 10)
before = memory("VmRSS")
defense = drbench.load_defense("denoised", images, path, denoiser=spec, width=4)
after = memory("VmHWM")
count = sum(one.numel() for one in defense.parameters())
print(json.dumps({"bytes": after - before, "parameters": count, "device": {str(one.device) for one in
      defense.parameters()} == {"cpu"}}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_a_large_file_is_held_once(tmp_path):
    """594 million parameters, 2.4 GB: the peak of building and loading stays below 1.3 times the file."""
    with open("/proc/meminfo") as info:
        free = next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    if free < 10 * GIB or shutil.disk_usage(tmp_path).free < 5 * GIB:
        pytest.skip("needs 10 GiB of memory and 5 GiB of disk")
    defense = drbench.load_defense("denoised", _images(), (), denoiser=LARGE, width=4)
    path = weights.write(str(tmp_path / "large.safetensors"), defense.state_dict(), {}).path
    del defense
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LOAD, json.dumps(LARGE), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=root)
    size = path.stat().st_size
    path.unlink()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] > 590e6 and size > 2.3e9 and found["device"]
    assert size <= found["bytes"] < 1.3 * size


def _images():
    x = torch.rand(2, 3, 32, 32)
    return data.Images(x, torch.zeros(2, dtype=torch.long), (0, 1), "given", "all", 10)
