"""The CIFAR-10 configurations, end to end on real images: small networks, a few steps, a few draws."""

import os
from pathlib import Path

import pytest

from drbench import data, weights
from drbench.cli import main
from drbench.jobs import fitting
from drbench.records import record, verify

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "cifar10-jpeg"
HERE = ["data.name=cifar10-jpeg", f"data.root={DATA.resolve()}"]
SMALL = ["defense.args.denoiser=null", "defense.args.classifier=null"]  # our small networks instead of the papers'
LEVELS = [0.5]  # a protocol's levels are for its own data sets: a re-encoding has the level of the shared base
TINY = ["data.subset=first3", "certify.n0=10", "certify.n=40", "certify.block=20", "run.batch_rows=64"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs CIFAR-10 files in $DRBENCH_SHARED/data/cifar10-jpeg"),
]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def certified(capsys, *words) -> list[record.Run]:
    assert main(["run", *words]) == 0
    runs = [record.read(folder) for folder in capsys.readouterr().out.split()]
    for run in runs:
        assert verify.problems(run) == [] and run.complete and run.header["data"]["name"] == "cifar10-jpeg"
    return runs


def test_rcm(tmp_path, capsys):
    sizes = [f"defense.args.{key}" for key in ("width=96", "depth=3", "heads=4", "projector=[128,64]")]
    stage = "{steps: 4, batch: 64, lr: 1e-3, warmup: 1}"
    words = [*HERE, *sizes, f"defense.args.pretraining_recipe={stage}", f"train.recipe={stage}"]
    checkpoint = tmp_path / "rcm.safetensors"
    assert main(["train", "benchmarks/cifar10/train/rcm.yaml", *words, f"train.checkpoint={checkpoint}"]) == 0
    state = weights.read([weights.resolve(str(checkpoint))])
    assert state["classifiers.2.base_model.pos_embed"].shape == (1, 66, 96)
    capsys.readouterr()
    words = [*HERE, *TINY, *sizes[:3], f"defense.checkpoint=[{checkpoint}]", "--out", str(tmp_path)]
    runs = certified(capsys, "benchmarks/cifar10/rcm.yaml", *words)
    assert [run.header["engine"]["sigma"] for run in runs] == LEVELS
    assert all(list(run.header["defense"]["nfe"].values()) == [1.0] for run in runs)


def test_multiscale(tmp_path, capsys):
    words = [*HERE, *TINY, *SMALL, "defense.args.channels=[16,32]", "defense.checkpoint=[]", "--out", str(tmp_path)]
    runs = certified(capsys, "benchmarks/cifar10/multiscale.yaml", *words)
    assert [len(run.header["engine"]["options"]["sigmas"]) for run in runs] == [2, 2, 3]
    assert all(run.header["engine"]["protocol"] == "paper_code" for run in runs)


@pytest.fixture
def few_images(monkeypatch):
    """Trainings read and are measured on 32 images: all of a split take a minute each time."""
    load = data.load

    def load_few(name, split, subset, root, preprocessing):
        return load(name, split, "first32" if subset == "all" else subset, root, preprocessing)

    monkeypatch.setattr(data, "load", load_few)
    monkeypatch.setattr(fitting, "VALIDATION_ROWS", 32)


def test_consistency(tmp_path, capsys, few_images):
    """Classifier, teacher, distillation, training without teacher, fine-tuning, certification: each a few steps."""
    sizes = [*SMALL, "defense.args.channels=[8,16]", "defense.args.width=4"]
    recipe = "train.recipe={steps: 3, batch: 8, warmup: 1, state: null}"
    file = {
        name: tmp_path / f"cifar10-{name}.safetensors"
        for name in ("classifier", "denoiser", "distilled", "trained", "tuned")
    }

    def train(config, name, *words, start=None):
        given = [] if name == "classifier" else [f"defense.checkpoint=[{file['classifier']}]"]
        given += [] if start is None else [f"train.start=[{file[start]}]"]
        words = [*HERE, recipe, f"train.checkpoint={file[name]}", *given, *words]
        assert main(["train", f"benchmarks/cifar10/train/{config}.yaml", *words]) == 0

    train("classifier", "classifier", sizes[-1])
    train("denoiser", "denoiser", *sizes)
    own = [*sizes, "defense.variant=mine", "defense.args.metric=feat_ssl", "defense.args.encoder_width=4"]
    train("consistency", "distilled", *own, start="denoiser")
    train("consistency-training", "trained", *own)
    train("consistency-tuned", "tuned", *own, start="distilled")
    states = {name: weights.read([weights.resolve(str(path))]) for name, path in file.items()}
    assert states["denoiser"].keys() == states["distilled"].keys() == states["tuned"].keys() == states["trained"].keys()
    assert states["distilled"]["denoiser.sigma_data"] == states["denoiser"]["denoiser.sigma_data"] > 0.4
    capsys.readouterr()
    for name in ("distilled", "trained", "tuned"):
        words = [*HERE, *TINY, *own, f"defense.checkpoint=[{file['classifier']},{file[name]}]", "--out", str(tmp_path)]
        runs = certified(capsys, "benchmarks/cifar10/consistency.yaml", *words)
        assert [run.header["engine"]["sigma"] for run in runs] == LEVELS
        assert all(run.header["defense"]["nfe"] == {"denoiser": 1.0, "classifier": 1.0} for run in runs)
        assert all(run.header["defense"]["args"]["metric"] == "feat_ssl" for run in runs)
    words = [*HERE, *TINY, *sizes, f"defense.checkpoint=[{file['classifier']},{file['denoiser']}]"]
    (run,) = certified(
        capsys, "benchmarks/cifar10/diffpure.yaml", *words, "defense.args.steps=5", "--out", str(tmp_path)
    )
    assert run.header["defense"]["nfe"] == {"denoiser": 5.0, "classifier": 1.0} and run.header["defense"]["randomized"]


def test_diffusion_classifier(tmp_path, capsys, few_images):
    """A tiny network, trained for a few steps, certified by APNDC and attacked as RDC."""
    checkpoint, sizes = tmp_path / "denoiser.safetensors", "defense.args.channels=[8,16]"
    plain = ["defense.args.denoiser=null", "defense.args.purifier=null", "defense.variant=mine"]
    words = [
        *HERE,
        sizes,
        "defense.args.nodes=1",
        "train.recipe={steps: 4, batch: 32, lr: 1e-3, warmup: 1}",
        f"train.checkpoint={checkpoint}",
    ]
    assert main(["train", "benchmarks/cifar10/train/rdc.yaml", *words]) == 0
    capsys.readouterr()
    few = [sizes, *plain, "defense.args.nodes=2", f"defense.checkpoint=[{checkpoint}]", "--out", str(tmp_path)]
    words = [*HERE, *TINY, "certify.n=20", "certify.n0=5", "data.subset=first2", *few]
    runs = certified(capsys, "benchmarks/cifar10/ndc.yaml", "defense.args.noised=apndc", *words)
    assert [run.header["defense"]["nfe"] for run in runs] == [{"denoiser": 21.0}]
    words = [*HERE, "data.subset=first2", "attack.attacks=[{attack: pgd, loss: margin, steps: 2, draws: 1}]",
             "defense.args.likelihood={steps: 1}", "defense.args.levels=[0.5,3.0]", "defense.args.gradient=exact",
             "attack.evaluations=10", "attack.select=2", "attack.audit=0", *few]  # fmt: skip
    runs = certified(capsys, "benchmarks/cifar10/attack/rdc.yaml", *words)
    assert [run.header["engine"]["norm"] for run in runs] == ["linf", "l2"]


def test_multi_head(tmp_path, few_images):
    """Distilled from a small teacher, with the settings that nobody published; its network keeps the paper's form."""
    teacher, heads = tmp_path / "denoiser.safetensors", tmp_path / "heads.safetensors"
    own = [*HERE, "defense.args.channels=[8,16]", "train.recipe.steps=2", "train.recipe.batch=8"]
    assert main(["train", "benchmarks/cifar10/train/rdc.yaml", *own, f"train.checkpoint={teacher}"]) == 0
    small = [f"defense.args.head_network.{key}" for key in ("model_channels=32", "num_blocks=1", "channel_mult=[1,2]")]
    words = [*own, *small, "defense.args.denoiser=null", f"defense.checkpoint=[{teacher}]", "train.recipe.lr=1e-3",
             "defense.args.nodes=2"]  # fmt: skip
    assert main(["train", "benchmarks/cifar10/train/rdc-multihead.yaml", *words, f"train.checkpoint={heads}"]) == 0
    state = weights.read([weights.resolve(str(heads))])
    assert state["multihead.network.dec.32x32_aux_conv.weight"].shape == (30, 32, 3, 3)


def test_a_denoiser_tuned_for_a_cascade(tmp_path, few_images):
    """Our variant of the losses, with the settings that nobody published, from a small denoiser."""
    file = {name: tmp_path / f"{name}.safetensors" for name in ("classifier", "denoiser", "tuned")}
    recipe = "train.recipe={steps: 2, batch: 4, lr: 1e-3, state: null}"
    words = [*HERE, recipe, *SMALL[1:], f"train.checkpoint={file['classifier']}"]
    assert main(["train", "benchmarks/cifar10/train/classifier.yaml", *words]) == 0
    own = [*HERE, recipe, *SMALL, "defense.args.channels=[8,16]", "defense.args.width=64",
           f"defense.checkpoint=[{file['classifier']}]"]  # fmt: skip
    assert main(["train", "benchmarks/cifar10/train/denoiser.yaml", *own, f"train.checkpoint={file['denoiser']}"]) == 0
    own += ["defense.args.brier=1", "defense.args.anti_consistency=1", f"train.start=[{file['denoiser']}]"]
    words = ["benchmarks/cifar10/train/multiscale-denoiser.yaml", *own, f"train.checkpoint={file['tuned']}"]
    assert main(["train", *words]) == 0
    before, after = (weights.read([weights.resolve(str(file[name]))]) for name in ("denoiser", "tuned"))
    assert before.keys() == after.keys() and any(not after[key].equal(before[key]) for key in before)
