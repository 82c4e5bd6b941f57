"""The U-Net of Dhariwal and Nichol 2021, arXiv 2105.05233 (ADM), as Karras et al. 2022, arXiv 2206.00364, have it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from drbench.diffusion.networks.edm_blocks import Block, Conv, Positional, group_norm, labels_of, with_skip
from drbench.errors import DrbenchError


class DhariwalUNet(nn.Module):
    """ADM: attention with 64 channels a head, norms that the embedding scales and shifts.

    Called as `network(x, c_noise, labels)`; label `label_dim` is "none", a zero vector. Arguments as in NVlabs/edm.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ):
        super().__init__()
        if model_channels * min(channel_mult) < 64:
            raise DrbenchError(
                f"edm_dhariwal: attention has 64 channels a head, so all levels need as many; got model_channels "
                f"{model_channels} times {tuple(channel_mult)}"
            )
        width = model_channels * channel_mult_emb
        block = {"embedding": width, "drop": dropout}
        self.label_dim = label_dim
        self.map_noise = Positional(model_channels, endpoint=False)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None  # not used here
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, width), nn.Linear(width, width)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sides = [img_resolution >> level for level in range(len(channel_mult))]
        widths = [model_channels * mult for mult in channel_mult]

        now, skips = widths[0], []
        for level, side in enumerate(sides):
            at = f"{side}x{side}"
            if level == 0:
                self.enc[f"{at}_conv"] = Conv(img_channels, now, 3)
            else:
                self.enc[f"{at}_down"] = Block(now, now, resample="down", **block)
            skips.append(now)
            for index in range(num_blocks):
                heads = widths[level] // 64 if side in attn_resolutions else 0
                self.enc[f"{at}_block{index}"] = Block(now, widths[level], heads=heads, **block)
                now = widths[level]
                skips.append(now)
        for level, side in reversed(list(enumerate(sides))):
            at = f"{side}x{side}"
            if level == len(sides) - 1:
                self.dec[f"{at}_in0"] = Block(now, now, heads=now // 64, **block)
                self.dec[f"{at}_in1"] = Block(now, now, **block)
            else:
                self.dec[f"{at}_up"] = Block(now, now, resample="up", **block)
            for index in range(num_blocks + 1):
                heads = widths[level] // 64 if side in attn_resolutions else 0
                self.dec[f"{at}_block{index}"] = Block(now + skips.pop(), widths[level], heads=heads, **block)
                now = widths[level]
        self.out_norm, self.out_conv = group_norm(now, 1e-5), Conv(now, img_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.map_layer1(silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None:
            embedding = embedding + self.map_label(labels_of(labels, self.label_dim, x))
        embedding, skips = silu(embedding), []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(with_skip(x, layer, skips), embedding)
        return self.out_conv(silu(self.out_norm(x)))
