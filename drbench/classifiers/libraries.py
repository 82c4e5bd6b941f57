"""Classifiers of timm and of Hugging Face transformers (extra `models`). Architectures only: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from drbench.classifiers.prepared import Prepared, prepared
from drbench.errors import DrbenchError

NOT_SHAPE = ("auto_map", "id2label", "label2id", "num_labels")  # of a config.json: code of others, and the classes
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # numbers of PIL in preprocessor_config.json


def library(name: str):
    """Import timm or transformers, or say how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise DrbenchError(
            f"classifier: {name} is not installed; install it with: pip install 'drbench[models]' ({error})"
        ) from error


def timm(
    input_shape: tuple[int, int, int], num_classes: int, arch: str, mean=None, std=None, resize=None, **config
) -> Prepared:
    """An architecture of timm, without weights. `mean`, `std`, `resize` are by default those of its own settings.

    `config` goes to `timm.create_model`.
    """
    models = library("timm")
    if not models.is_model(arch.partition(".")[0]):
        close = ", ".join(models.list_models(f"*{arch.partition('_')[0]}*")[:5])
        raise DrbenchError(f"classifier: timm has no architecture {arch!r}; near it: {close or 'none'}")
    network = models.create_model(arch, pretrained=False, num_classes=num_classes, in_chans=input_shape[0], **config)
    own = network.pretrained_cfg
    if resize is None and tuple(input_shape[1:]) != tuple(own["input_size"][1:]):
        resize = {"size": list(own["input_size"][1:]), "interpolation": own["interpolation"]}
    return prepared(network, mean or own["mean"], std or own["std"], resize)


class Logits(nn.Module):
    """A transformers model called with images alone, that answers with logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def huggingface(
    input_shape: tuple[int, int, int], num_classes: int, config: str | Mapping, mean=None, std=None, resize=None
) -> Prepared:
    """An image classifier of transformers, without weights.

    Parameters
    ----------
    config : str or mapping
        A local folder with config.json (and preprocessor_config.json, from which `mean`, `std` and `resize` then
        come), or the content of config.json. Needs "model_type".
    """
    found = folder_facts(config) if isinstance(config, str) else {"config": dict(config)}
    models = library("transformers")
    plain = {key: value for key, value in found["config"].items() if key not in NOT_SHAPE}
    kind = plain.pop("model_type", None)
    try:
        settings = models.AutoConfig.for_model(kind, **plain, num_labels=num_classes)
        network = models.AutoModelForImageClassification.from_config(settings, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise DrbenchError(
            f"classifier: transformers has no image classifier {kind!r} of this config: {error}"
        ) from error
    half = [0.5] * input_shape[0]
    side = getattr(settings, "image_size", None)
    if "resize" not in found and isinstance(side, int) and tuple(input_shape[1:]) != (side, side):
        found["resize"] = {"size": side, "interpolation": "bilinear"}  # as processors do by default
    return prepared(
        Logits(network),
        mean or found.get("mean", half),
        std or found.get("std", half),
        resize or found.get("resize"),
    )


def folder_facts(folder: str | Path) -> dict:
    """`config`, and if the folder says so `mean`, `std`, `resize`, of a model saved by transformers."""
    folder = Path(folder)
    try:
        found = {"config": json.loads((folder / "config.json").read_text())}
        place = folder / "preprocessor_config.json"
        given = json.loads(place.read_text()) if place.exists() else {}
    except (OSError, ValueError) as error:
        raise DrbenchError(
            f"classifier: expected a local folder with config.json, got {folder}: {error}; "
            "nothing is downloaded: fetch the model's files yourself"
        ) from error
    if given.get("do_normalize", True) and "image_mean" in given:
        found |= {"mean": given["image_mean"], "std": given["image_std"]}
    if given.get("do_resize", True) and "size" in given:
        size = given["size"]
        if isinstance(size, Mapping):
            size = [size["height"], size["width"]] if "height" in size else size["shortest_edge"]
        mode = INTERPOLATIONS.get(given.get("resample", 2), "bilinear")
        found["resize"] = {"size": size, "interpolation": mode, "antialias": True}
    return found
