"""ResNets for 32x32 images. He et al. 2015, arXiv 1512.03385, section 4.2.

Names of tensors as in akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from drbench.classifiers.prepared import Prepared, prepared
from drbench.errors import DrbenchError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as those weights were trained


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


class ResNetCIFAR(nn.Module):
    """Three stages of (depth - 2) / 6 blocks, 16, 32 and 64 channels wide. 269,722 parameters at depth 20.

    Takes normalised images (B, C, H, W) and returns (B, K) logits.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, channels: int = 3):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise DrbenchError(f"resnet_cifar: depth is 6 n + 2 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, width in enumerate((16, 32, 64), 1):
            before, stride = (width // 2, 2) if number > 1 else (width, 1)
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(Block(before, width, stride), *rest))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build(
    input_shape: tuple[int, int, int], num_classes: int, depth: int = 20, mean=MEAN, std=STD, resize=None
) -> Prepared:
    """With preprocessing; see `prepared`."""
    return prepared(ResNetCIFAR(depth, num_classes, input_shape[0]), mean, std, resize)
