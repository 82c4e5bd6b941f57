"""Building blocks of the EDM networks: Karras et al. 2022, arXiv 2206.00364, appendix F.2 and Table 7.

Names and shapes of tensors are those of NVlabs/edm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, dropout, one_hot, scaled_dot_product_attention, silu


class Conv(nn.Module):
    """A convolution, at most with a change of resolution by two; `kernel` 0 is the change alone.

    Up: zeros are put between pixels, then the filter times 4. Down: the filter, then every other pixel. Both come
    before the convolution; with `fused`, going down, after it.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        fused: bool = False,
    ):
        super().__init__()
        self.out_channels, self.resample, self.fused = after, resample, fused
        self.weight = self.bias = None
        if kernel:
            made = nn.Conv2d(before, after, kernel)  # for its initial weights
            self.weight, self.bias = made.weight, made.bias
        if resample:
            row = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (row.outer(row) / row.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        pad = 0 if self.weight is None else self.weight.shape[-1] // 2
        around = (self.resample_filter.shape[-1] - 1) // 2 if self.resample else 0
        if self.resample == "down" and self.fused:
            return self._filtered(conv2d(x, self.weight, padding=pad + around), 0) + self.bias.view(1, -1, 1, 1)
        if self.resample:
            x = self._filtered(x, around)
        return x if self.weight is None else conv2d(x, self.weight, self.bias, padding=pad)

    def _filtered(self, x: Tensor, padding: int) -> Tensor:
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        if self.resample == "up":
            return conv_transpose2d(x, 4 * taps, groups=x.shape[1], stride=2, padding=padding)
        return conv2d(x, taps, groups=x.shape[1], stride=2, padding=padding)


class Block(nn.Module):
    """A residual block that knows the noise level, with self-attention where `heads` > 0.

    Parameters
    ----------
    before, after, embedding : int
        Channels that come in, that go out, and those of the embedding.
    heads : int
        Of the attention; 0: none.
    scale : float
        What the sums of branch and shortcut are multiplied by.
    adaptive : bool
        Whether the embedding scales and shifts the second norm, or is only added before it.
    project : bool
        Whether a shortcut that changes resolution has a 1x1 convolution although the channels stay.
    """

    def __init__(
        self,
        before: int,
        after: int,
        embedding: int,
        heads: int = 0,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        scale: float = 1.0,
        eps: float = 1e-5,
        adaptive: bool = True,
        project: bool = False,
        drop: float = 0.0,
    ):
        super().__init__()
        self.in_channels, self.out_channels = before, after
        self.heads, self.scale, self.adaptive, self.drop = heads, scale, adaptive, drop
        self.norm0 = group_norm(before, eps)
        self.conv0 = Conv(before, after, 3, resample, taps)
        self.affine = nn.Linear(embedding, after * (2 if adaptive else 1))
        self.norm1 = group_norm(after, eps)
        self.conv1 = Conv(after, after, 3)
        self.skip = None
        if before != after or resample:
            self.skip = Conv(before, after, 1 if project or before != after else 0, resample, taps)
        if heads:
            self.norm2, self.qkv, self.proj = group_norm(after, eps), Conv(after, 3 * after, 1), Conv(after, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out = self.conv0(silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, 1)
            out = silu(shift + self.norm1(out) * (scale + 1))
        else:
            out = silu(self.norm1(out + told))
        out = self.conv1(dropout(out, self.drop, self.training))
        out = self.scale * (out + (x if self.skip is None else self.skip(x)))
        return self.scale * (out + self._attention(out)) if self.heads else out

    def _attention(self, x: Tensor) -> Tensor:
        """Rows of qkv: one head after the other, in a head the channels, of each q, k, v."""
        parts = self.qkv(self.norm2(x)).view(len(x), self.heads, -1, 3, x[0, 0].numel())
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))  # each (B, heads, pixels, c)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Fourier(nn.Module):
    """Cosines, then sines of 2 pi f c with random frequencies f, stored with the weights. NCSN++."""

    def __init__(self, width: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", torch.randn(width // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * (2 * math.pi * self.freqs)
        return torch.cat((angles.cos(), angles.sin()), 1)


class Positional(nn.Module):
    """Cosines, then sines of c f_i, f_i = 10000^(-i / (n - 1)) for `endpoint`, 10000^(-i / n) else; n = width / 2."""

    def __init__(self, width: int, endpoint: bool):
        super().__init__()
        self.half, self.last = width // 2, width // 2 - int(endpoint)

    def forward(self, c_noise: Tensor) -> Tensor:
        place = torch.arange(self.half, dtype=torch.float32, device=c_noise.device) / self.last
        angles = c_noise[:, None] * (1 / 10000) ** place
        return torch.cat((angles.cos(), angles.sin()), 1)


def labels_of(labels: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """One-hot rows (B, classes) like `x`; zeros for label `classes` and for None."""
    if labels is None:
        return x.new_zeros(len(x), classes)
    return one_hot(labels, classes + 1)[:, :classes].to(x)


def with_skip(x: Tensor, layer: Block, skips: list[Tensor]) -> Tensor:
    """`x`, beside the last of the encoder's outputs where the layer of the decoder expects it."""
    return x if x.shape[1] == layer.in_channels else torch.cat((x, skips.pop()), 1)
