"""The U-Net of Song et al. 2021, arXiv 2011.13456, in the form of Karras et al. 2022, arXiv 2206.00364, Table 7."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from drbench.diffusion.networks.edm_blocks import Block, Conv, Fourier, Positional, group_norm, labels_of, with_skip
from drbench.errors import DrbenchError


class SongUNet(nn.Module):
    """DDPM++ (positional embedding, standard encoder) and NCSN++ (Fourier embedding, residual encoder).

    Called as `network(x, c_noise, labels)`; label `label_dim` is "none", a zero vector. Arguments as in NVlabs/edm,
    and `out_channels`, by default as many as come in.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        out_channels: int | None = None,
    ):
        super().__init__()
        _choose("embedding_type", embedding_type, ("positional", "fourier"))
        _choose("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _choose("decoder_type", decoder_type, ("standard", "skip"))
        width, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        block = {
            "embedding": width, "taps": resample_filter, "scale": math.sqrt(0.5), "eps": 1e-6,
            "adaptive": False, "project": True, "drop": dropout,
        }  # fmt: skip
        self.label_dim = label_dim
        self.map_noise = Positional(noise, endpoint=True) if embedding_type == "positional" else Fourier(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None  # not used here
        self.map_layer0, self.map_layer1 = nn.Linear(noise, width), nn.Linear(width, width)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sides = [img_resolution >> level for level in range(len(channel_mult))]
        widths, last_width = [model_channels * mult for mult in channel_mult], out_channels or img_channels

        now, aux, skips = model_channels, img_channels, []
        for level, side in enumerate(sides):
            at = f"{side}x{side}"
            if level == 0:
                self.enc[f"{at}_conv"] = Conv(img_channels, now, 3)
            else:
                self.enc[f"{at}_down"] = Block(now, now, resample="down", **block)
                if encoder_type == "skip":
                    self.enc[f"{at}_aux_down"] = Conv(aux, aux, 0, "down", resample_filter)
                    self.enc[f"{at}_aux_skip"] = Conv(aux, now, 1)
                if encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Conv(aux, now, 3, "down", resample_filter, fused=True)
                    aux = now
            skips.append(now)
            for index in range(num_blocks):
                heads = int(side in attn_resolutions)
                self.enc[f"{at}_block{index}"] = Block(now, widths[level], heads=heads, **block)
                now = widths[level]
                skips.append(now)
        for level, side in reversed(list(enumerate(sides))):
            at, last = f"{side}x{side}", level == len(sides) - 1
            if last:
                self.dec[f"{at}_in0"] = Block(now, now, heads=1, **block)
                self.dec[f"{at}_in1"] = Block(now, now, **block)
            else:
                self.dec[f"{at}_up"] = Block(now, now, resample="up", **block)
            for index in range(num_blocks + 1):
                heads = int(index == num_blocks and side in attn_resolutions)
                self.dec[f"{at}_block{index}"] = Block(now + skips.pop(), widths[level], heads=heads, **block)
                now = widths[level]
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and not last:
                    self.dec[f"{at}_aux_up"] = Conv(last_width, last_width, 0, "up", resample_filter)
                self.dec[f"{at}_aux_norm"] = group_norm(now, 1e-6)
                self.dec[f"{at}_aux_conv"] = Conv(now, last_width, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.map_noise(c_noise).unflatten(1, (2, -1)).flip(1).flatten(1)  # sines come first
        if self.map_label is not None:
            embedding = embedding + self.map_label(math.sqrt(self.label_dim) * labels_of(labels, self.label_dim, x))
        embedding = silu(self.map_layer1(silu(self.map_layer0(embedding))))

        aux, skips = x, []
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        out = None
        for name, layer in self.dec.items():
            if "aux_up" in name:
                out = layer(out)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                new = layer(silu(normed))
                out = new if out is None else out + new
            else:
                x = layer(with_skip(x, layer, skips), embedding)
        return out


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise DrbenchError(f"denoiser: {name} is one of {', '.join(known)}, got {value!r}")
