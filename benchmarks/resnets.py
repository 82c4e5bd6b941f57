"""CIFAR-10 ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2) as defenses, with the shared weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from drbench.api import Defense

SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data"
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every other pixel, zeros for new channels (option A)."""

    def __init__(self, before: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.new = (planes - before) // 2 if stride > 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new, self.new)) if self.new else x)).relu()


class ResNet(Defense):
    """A pre-trained classifier of clean images in [0, 1]."""

    citation = "arXiv:1512.03385"

    def __init__(self, depth: int = 20):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = (3, 32, 32), 10, (0.0,)
        blocks, planes = (depth - 2) // 6, (16, 32, 64)
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, width in enumerate(planes, 1):
            before, stride = (width // 2, 2) if number > 1 else (width, 1)
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(Block(before, width, stride), *rest))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def pretrained(cls, depth: int) -> ResNet:
        file = SHARED / "checkpoints" / "pytorch_resnet_cifar10" / FILES[depth]
        saved = torch.load(file, weights_only=True, map_location="cpu")
        network = cls(depth)
        state = {key.removeprefix("module."): value for key, value in saved["state_dict"].items()}
        network.load_state_dict(state, strict=True)
        return network.eval().requires_grad_(False)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        x = self.bn1(self.conv1((z - self.mean) / self.std)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(8)
