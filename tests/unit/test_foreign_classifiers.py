"""Classifiers of other projects: their own answers behind our preprocessing, through converter and defense."""

import json
import sys

import pytest
import torch

from drbench import classifiers
from drbench.checkpoints import formats, reading
from drbench.checkpoints.reading import tensors
from drbench.classifiers.prepared import prepared
from drbench.classifiers.resnet_cifar import ResNetCIFAR
from drbench.classifiers.wide_resnet import WideResNet
from drbench.errors import DrbenchError
from drbench.files import foreign
from methods.denoised.defense import Denoised
from methods.undefended.defense import Undefended

SHAPE = (3, 32, 32)


def randomised(network):
    """Every parameter random, also the norms', so that no two layers can be mistaken for each other."""
    rng = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.1 * torch.randn(value.shape, generator=rng))
            if "running_var" in name:
                value.abs_().add_(0.5)
    return network.eval()


def through(converted, x, classes):
    """The answers of an `Undefended` that was built from the converted classifier."""
    state = {f"{converted.role}.{key}": value for key, value in converted.state.items()}
    defense = Undefended.from_checkpoint(
        state, input_shape=tuple(x.shape[1:]), num_classes=classes, classifier=converted.spec
    ).eval()
    assert all(torch.equal(value, state[key]) for key, value in defense.state_dict().items())
    return defense.logits(x, 0.0, None)


@torch.no_grad()
@pytest.mark.parametrize("depth", [8, 20])
def test_resnet(tmp_path, depth):
    network = randomised(ResNetCIFAR(depth, 7))
    old = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}  # files of torch 0.4
    torch.save({"state_dict": {f"module.{k}": v for k, v in old.items()}, "best_prec1": 91.7}, tmp_path / "r.th")
    found = formats.convert(tmp_path / "r.th", "resnet_cifar")
    assert found.spec == {"kind": "resnet_cifar", "depth": depth} and found.role == "classifier"
    x = torch.rand(2, *SHAPE)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(through(found, x, 7), network((x - mean) / std))


@torch.no_grad()
def test_wide_resnet(tmp_path):
    network = randomised(WideResNet(10, 2, 7))
    extra = {f"sub_block1.layer.0.{k}": v for k, v in network.block1.layer[0].state_dict().items()}
    torch.save({"state_dict": {**network.state_dict(), **extra}}, tmp_path / "w.pt")
    found = formats.convert(tmp_path / "w.pt", "wide_resnet", mean=[0.5] * 3, std=[0.25] * 3)
    assert found.spec == {"kind": "wide_resnet", "depth": 10, "widen": 2, "mean": [0.5] * 3, "std": [0.25] * 3}
    x = torch.rand(2, *SHAPE)
    assert torch.equal(through(found, x, 7), network((x - 0.5) / 0.25))


def test_published_sizes():
    with torch.device("meta"):
        sizes = [sum(one.numel() for one in network.parameters()) for network in (
            ResNetCIFAR(20), ResNetCIFAR(56), ResNetCIFAR(110), WideResNet(28, 10), WideResNet(70, 16))]  # fmt: skip
    assert sizes == [269_722, 853_018, 1_727_962, 36_479_194, 266_796_506]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_is_that_of_torchvision(mode, antialias):
    from torchvision.transforms.v2.functional import resize

    x = torch.rand(2, 3, 20, 24)
    for size in ([31, 17], [8, 9]):
        spec = {"size": size, "interpolation": mode, "antialias": antialias}
        ours = prepared(torch.nn.Identity(), [0.0] * 3, [1.0] * 3, spec)(x)
        theirs = resize(x, size, interpolation=getattr(__import__("torchvision").transforms.InterpolationMode,
                                                       mode.upper()), antialias=antialias)  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_resize_has_a_gradient():
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    prepared(torch.nn.Identity(), [0.5] * 3, [0.5] * 3, 16)(x).sum().backward()
    assert x.grad.isfinite().all() and (x.grad > 0).all()


@torch.no_grad()
def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    network = randomised(timm.create_model("resnet18", num_classes=5))
    torch.save(network.state_dict(), tmp_path / "t.pt")
    x = torch.rand(1, *SHAPE)
    found = formats.convert(tmp_path / "t.pt", "timm", arch="resnet18", mean=[0.5] * 3, std=[0.5] * 3, resize=64)
    big = torch.nn.functional.interpolate(x, (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(through(found, x, 5), network((big - 0.5) / 0.5))
    own = classifiers.build({"kind": "timm", "arch": "resnet18"}, SHAPE, 5)
    assert own.resize.size == (224, 224) and own.resize.how["mode"] == "bicubic"
    torch.testing.assert_close(own.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    with pytest.raises(DrbenchError, match="timm has no architecture 'resnet19'"):
        formats.convert(tmp_path / "t.pt", "timm", arch="resnet19")
    with pytest.raises(DrbenchError, match="cannot be read with"):
        formats.convert(tmp_path / "t.pt", "timm")


def vit(kind):
    models = pytest.importorskip("transformers")
    sizes = {"image_size": 24, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 24, "num_labels": 7}  # fmt: skip
    if kind == "vit":
        return randomised(models.ViTForImageClassification(models.ViTConfig(**sizes)))
    more = {"use_relative_position_bias": True, "use_mean_pooling": True, "layer_scale_init_value": 0.1}
    return randomised(models.BeitForImageClassification(models.BeitConfig(**sizes, **more)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_huggingface(tmp_path, kind):
    """A folder as transformers saves it: ViT (CIFAR-10) and BEiT (ImageNet), with the processor's resizing."""
    network = vit(kind)
    network.save_pretrained(tmp_path)
    processor = {"do_resize": True, "size": {"height": 24, "width": 24}, "resample": 3, "do_normalize": True,
                 "image_mean": [0.4] * 3, "image_std": [0.3] * 3}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = formats.convert(tmp_path, "huggingface")
    assert "id2label" not in found.spec["config"] and json.loads(json.dumps(found.spec)) == found.spec
    x = torch.rand(2, *SHAPE)
    small = torch.nn.functional.interpolate(x, (24, 24), mode="bicubic", antialias=True)
    torch.testing.assert_close(through(found, x, 7), network(pixel_values=(small - 0.4) / 0.3).logits)


@torch.no_grad()
def test_one_file_of_huggingface(tmp_path):
    """A file of weights alone, with the content of its config.json; also under the names of older files."""
    network = vit("vit")
    shape = {"model_type": "vit", "image_size": 24, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip
    old = {"vit.layers.": "vit.encoder.layer.", "attention.q_proj": "attention.attention.query",
           "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
           "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
           "mlp.fc2": "output.dense"}  # fmt: skip

    def renamed(key):
        for ours, theirs in old.items():
            key = key.replace(ours, theirs)
        return key

    x = torch.rand(2, 3, 24, 24)
    for name in (str, renamed):
        torch.save({name(key): value for key, value in network.state_dict().items()}, tmp_path / "net.bin")
        found = formats.convert(tmp_path / "net.bin", "huggingface", config=shape)
        assert found.spec == {"kind": "huggingface", "config": shape}
        torch.testing.assert_close(through(found, x, 7), network(pixel_values=(x - 0.5) / 0.5).logits)
    with pytest.raises(DrbenchError, match=r"net.bin: transformers cannot load"):
        formats.convert(tmp_path / "net.bin", "huggingface", config=shape | {"hidden_size": 32})


LISTED = {
    name: about
    for name, about in foreign.manifest().items()
    if about.get("format") in ("timm", "wide_resnet") and "???" not in about["config"].values()  # nobody said which
}


@pytest.mark.parametrize("name", LISTED)
def test_listed_files_can_be_converted(monkeypatch, name):
    """What the manifest says of a file is what its format takes."""
    if LISTED[name]["format"] == "timm":
        pytest.importorskip("timm")
    config, classes = LISTED[name]["config"], 1000 if "cifar10" not in name and "wrn" not in name else 10
    with torch.device("meta"):
        built = classifiers.build({"kind": LISTED[name]["format"], **config}, SHAPE, classes)
    state = {key.removeprefix("network."): value for key, value in built.state_dict().items()}
    monkeypatch.setattr(reading, "tensors", lambda path: state)
    found = formats.convert(name, LISTED[name]["format"], **config)
    assert found.spec == {"kind": LISTED[name]["format"], **config}


def test_huggingface_folders_that_are_not_complete(tmp_path):
    with pytest.raises(DrbenchError, match=r"local folder with config.json.*nothing is downloaded"):
        formats.convert(tmp_path / "google" / "vit", "huggingface")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(DrbenchError, match=r"weights must be in model.safetensors|trust"):
        formats.convert(tmp_path, "huggingface")
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(DrbenchError, match=r"format 'huggingface' cannot be read"):
        formats.convert(tmp_path, "huggingface")
    with pytest.raises(DrbenchError, match="no image classifier 'llama9'"):
        classifiers.build({"kind": "huggingface", "config": {"model_type": "llama9"}}, SHAPE, 5)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_libraries_that_are_not_installed(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    more = {"arch": "resnet18"} if name == "timm" else {"config": {"model_type": "vit"}}
    kind = {"timm": "timm", "transformers": "huggingface"}[name]
    with pytest.raises(
        DrbenchError, match=rf"{name} is not installed; install it with: pip install 'drbench\[models\]'"
    ):
        classifiers.build({"kind": kind, **more}, SHAPE, 5)


def test_refusals(tmp_path):
    for spec, message in (
        ({"kind": "resnet"}, "unknown kind 'resnet'"),
        ({"kind": "resnet_cifar", "depth": 21}, r"depth is 6 n \+ 2"),
        ({"kind": "wide_resnet", "depth": 20}, r"depth is 6 n \+ 4"),
        ({"kind": "resnet_cifar", "deep": 20}, "cannot be built with"),
        ({"kind": "resnet_cifar", "resize": {"side": 3}}, "resize takes size"),
        ({"kind": "resnet_cifar", "std": [1, 0, 1]}, "a positive std"),
    ):
        with pytest.raises(DrbenchError, match=message):
            classifiers.build(spec, SHAPE, 10)
    state = ResNetCIFAR(8).state_dict()
    torch.save(state, tmp_path / "r.pt")
    with pytest.raises(DrbenchError, match="do not fit the network"):
        formats.convert(tmp_path / "r.pt", "resnet_cifar", depth=14)
    with pytest.raises(DrbenchError, match=r"expected names that begin with 'block1.layer.0.', got 'bn1.bias'"):
        formats.convert(tmp_path / "r.pt", "wide_resnet")
    torch.save({key: value for key, value in state.items() if "linear" not in key}, tmp_path / "r.pt")
    with pytest.raises(DrbenchError, match="whose last layer is one of"):
        formats.convert(tmp_path / "r.pt", "resnet_cifar")


@torch.no_grad()
def test_saved_and_used_beside_a_denoiser(tmp_path):
    """Two files in one defense: ours for the denoiser, a converted one for the classifier."""
    from drbench import weights

    torch.save(randomised(ResNetCIFAR(8)).state_dict(), tmp_path / "r.pt")
    found = formats.convert(tmp_path / "r.pt", "resnet_cifar")
    sha = weights.sha256_of(tmp_path / "r.pt")
    first = formats.save(found, tmp_path / "c.safetensors", sha, "resnet_cifar", source=tmp_path / "r.pt")
    content = first.path.read_bytes()
    assert formats.save(found, tmp_path / "c.safetensors", sha, "resnet_cifar", source="r.pt").sha256 == first.sha256
    facts = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["facts"])
    assert facts == {"source": "r.pt", "source_sha256": sha, "format": "resnet_cifar", "converter": 1,
                     "role": "classifier", "spec": found.spec}  # fmt: skip
    made = Denoised(SHAPE, 10, classifier=found.spec)
    rest = {key: value for key, value in made.state_dict().items() if key.startswith("denoiser.")}
    second = weights.write(str(tmp_path / "d.safetensors"), rest, {})
    defense = Denoised.from_checkpoint(weights.read([first, second]), input_shape=SHAPE, classifier=found.spec).eval()
    assert tensors(first.path).keys() | rest.keys() == defense.state_dict().keys()
    assert defense.logits(torch.rand(2, *SHAPE), 0.25, None).shape == (2, 10)
    with pytest.raises(DrbenchError, match="Missing key"):
        Denoised.from_checkpoint(weights.read([first]), input_shape=SHAPE, classifier=found.spec)
