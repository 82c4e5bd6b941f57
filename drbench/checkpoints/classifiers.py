"""Classifiers of other projects. What the tensors show is not asked for; preprocessing is: `mean`, `std`, `resize`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from drbench import classifiers
from drbench.checkpoints import reading
from drbench.checkpoints.formats import Converted
from drbench.classifiers.libraries import NOT_SHAPE, folder_facts, library
from drbench.errors import DrbenchError
from drbench.memory import parameters_elsewhere

HEADS = ("fc", "linear", "classifier", "head", "head.fc")  # last layers
COUNTER = ".num_batches_tracked"


def resnet_cifar(path: Path, **config) -> Converted:
    """Files of akamaster/pytorch_resnet_cifar10: normalised with ImageNet's mean and std, shortcuts of option A."""
    state = reading.tensors(path)
    return _fitted(path, state, {"kind": "resnet_cifar", "depth": 6 * _count(state, "layer1.{}.", path) + 2, **config})


def wide_resnet(path: Path, **config) -> Converted:
    """Wide ResNets of xternalz/WideResNet-pytorch, TRADES and RobustBench (whose unused `sub_block1` is left out).

    Without `mean` and `std` the network sees pixels in [0, 1].
    """
    state = {key: value for key, value in reading.tensors(path).items() if not key.startswith("sub_block1.")}
    spec = {"kind": "wide_resnet", "depth": 6 * _count(state, "block1.layer.{}.", path) + 4}
    if "bn1.weight" in state:
        spec["widen"] = len(state["bn1.weight"]) // 64
    return _fitted(path, state, {**spec, **config})


def timm(path: Path, arch: str, **config) -> Converted:
    """A state dict of the architecture `arch` of timm, for its own input size, mean and std unless others are given."""
    return _fitted(path, reading.tensors(path), {"kind": "timm", "arch": arch, **config})


def huggingface(path: Path, config: Mapping | None = None, **preprocessing) -> Converted:
    """A local folder of transformers: config.json, model.safetensors, and preprocessor_config.json if there is one.

    Or one file of weights out of such a folder, with `config`, the content of its config.json.
    """
    if config is None:
        return _of_folder(path, path, preprocessing)
    from safetensors.torch import save_file

    state = reading.tensors(path)
    with TemporaryDirectory() as folder:  # transformers loads folders alone
        facts = {**config, "num_labels": _num_classes(state, path)}
        (Path(folder) / "config.json").write_text(json.dumps(facts), encoding="utf-8")
        plain = {key: value.contiguous() for key, value in state.items()}
        save_file(plain, Path(folder) / "model.safetensors", {"format": "pt"})
        return _of_folder(Path(folder), path, preprocessing)


def _of_folder(folder: Path, where: Path, preprocessing: Mapping) -> Converted:
    """transformers loads it, because the names in files and in its modules differ, from version to version."""
    facts = folder_facts(folder)
    for file in folder.glob("*.safetensors"):
        reading.sniff(file)
    models = library("transformers")
    try:
        network, report = models.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the library names no exceptions
        raise DrbenchError(
            f"{where}: transformers cannot load an image classifier from it (of a folder, the weights must be in "
            f"model.safetensors): {str(error).strip().splitlines()[0]}"
        ) from error
    odd = {kind: sorted(map(str, names))[0] for kind, names in report.items() if names}
    if odd:
        raise DrbenchError(f"{where}: the weights do not fit config.json: {odd}")
    state = network.state_dict()
    reading.check(state, where)
    plain = {key: value for key, value in facts.pop("config").items() if key not in NOT_SHAPE}
    spec = {"kind": "huggingface", "config": plain, **facts, **preprocessing}
    return _fitted(where, {f"model.{key}": value for key, value in state.items()}, spec, network.config.num_labels)


def _fitted(path: Path, state: Mapping[str, Tensor], spec: dict, num_classes: int | None = None) -> Converted:
    """Check that the classifier of `spec` has these tensors; by default the last layer says how many classes."""
    if num_classes is None:
        num_classes = _num_classes(state, path)
    state = {f"network.{key}": value for key, value in state.items()}
    with parameters_elsewhere():
        network = classifiers.build(spec, (3, 32, 32), num_classes)
    wanted = network.state_dict()
    # Files of old torch lack the counters of batch norms, which evaluation does not use.
    state |= {key: value for key, value in wanted.items() if key.endswith(COUNTER) and key not in state}
    reading.match({key: value.shape for key, value in wanted.items()}, state, path)
    return Converted(state, "classifier", spec)


def _num_classes(state: Mapping[str, Tensor], path: Path) -> int:
    ends = [len(state[f"{name}.weight"]) for name in HEADS if f"{name}.weight" in state]
    if not ends:
        raise DrbenchError(f"{path}: expected a classifier whose last layer is one of {', '.join(HEADS)}")
    return ends[0]


def _count(state: Mapping[str, Tensor], name: str, path: Path) -> int:
    """How many of the names with a number in the place of {} there are, from 0 on."""
    number = 0
    while any(key.startswith(name.format(number)) for key in state):
        number += 1
    if number == 0:
        raise DrbenchError(
            f"{path}: expected names that begin with {name.format(0)!r}, got {sorted(state)[0]!r} and others"
        )
    return number
