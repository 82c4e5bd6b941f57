"""Classifiers of pixels in [0, 1], and `build`, which makes one of a dict: {"kind": name, ...its configuration}.

Normalisation and resizing are inside, in `prepared`; so a defense gives every classifier the same pixels.

prepared     resizing and normalisation, before a network
small        the small CNN of several methods, and its training
resnet_cifar, wide_resnet
             residual networks, and wide ones
libraries    architectures of timm and transformers
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from drbench import specs
from drbench.classifiers.small import SmallCNN, fit_classifier, mixup

__all__ = ["KINDS", "SmallCNN", "build", "fit_classifier", "mixup"]

# kind -> "module:function"; called as function(input_shape, num_classes, **configuration)
KINDS = {
    "huggingface": "drbench.classifiers.libraries:huggingface",
    "resnet_cifar": "drbench.classifiers.resnet_cifar:build",
    "small_cnn": "drbench.classifiers.small:SmallCNN",
    "timm": "drbench.classifiers.libraries:timm",
    "wide_resnet": "drbench.classifiers.wide_resnet:build",
}


def build(spec: Mapping | None, input_shape: tuple[int, int, int], num_classes: int, **default) -> nn.Module:
    """An untrained classifier, (B, C, H, W) pixels in [0, 1] to (B, K) logits.

    Parameters
    ----------
    spec : mapping or None
        "kind", one of `KINDS`, its configuration (`depth`, `widen`, `arch`, ...), and for all kinds but "small_cnn"
        the fields of `prepared.prepared`: `mean`, `std`, `resize`. None: the small CNN with the arguments `default`,
        which no other kind sees.
    input_shape, num_classes
        Of the data.
    """
    config = {"kind": "small_cnn", **default} if spec is None else spec
    return specs.make("classifier", KINDS, config, tuple(input_shape), num_classes)
