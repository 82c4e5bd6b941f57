"""Wide residual networks. Zagoruyko and Komodakis 2016, arXiv 1605.07146. Names as in xternalz/WideResNet-pytorch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout

from drbench.classifiers.prepared import Prepared, prepared
from drbench.errors import DrbenchError


class Block(nn.Module):
    """Pre-activation: norm, ReLU, convolution, twice. Where widths differ, the shortcut starts after the first ReLU."""

    def __init__(self, before: int, planes: int, stride: int, drop: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = None if before == planes else nn.Conv2d(before, planes, 1, stride, bias=False)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        first = self.bn1(x).relu()
        out = self.bn2(self.conv1(first)).relu()
        out = self.conv2(dropout(out, self.drop, self.training))
        return out + (x if self.convShortcut is None else self.convShortcut(first))


class Stage(nn.Module):
    """Blocks of one width, under the name `layer`."""

    def __init__(self, blocks: int, before: int, planes: int, stride: int, drop: float):
        super().__init__()
        rest = [Block(planes, planes, 1, drop) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(Block(before, planes, stride, drop), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen` channels wide.

    Takes normalised images (B, C, H, W) and returns (B, K) logits. WRN-28-10 has 36.5 million parameters.
    """

    def __init__(self, depth: int = 28, widen: int = 10, num_classes: int = 10, channels: int = 3, drop: float = 0.0):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise DrbenchError(f"wide_resnet: depth is 6 n + 4 (16, 28, 34, 70), got {depth}")
        blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(blocks, widths[0], widths[1], 1, drop)
        self.block2 = Stage(blocks, widths[1], widths[2], 2, drop)
        self.block3 = Stage(blocks, widths[2], widths[3], 2, drop)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    depth: int = 28,
    widen: int = 10,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    resize=None,
    drop: float = 0.0,
) -> Prepared:
    """With preprocessing; by default none, as many robust models are trained. See `prepared`."""
    return prepared(WideResNet(depth, widen, num_classes, input_shape[0], drop), mean, std, resize)
