"""OpenAI's UNets as diffusers' `UNet2DModel`.

Nichol & Dhariwal 2021 (improved-diffusion), Dhariwal & Nichol 2021 (guided-diffusion, "ADM") and Song et al. 2023
(consistency models) share one network. `UNet2DModel` computes it exactly, but for three things, set here after it is
built: a number of heads that does not follow the width, a time embedding that does not follow the first width, and
class labels that may be absent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drbench.diffusion.networks.adm_config import ADMConfig
from drbench.errors import DrbenchError

GROUPS = 32


class ADMNetwork(nn.Module):
    """Adapts `UNet2DModel` to the call `network(x, time, labels)` and says what it cannot take.

    Parameters
    ----------
    unet : UNet2DModel
    time_scale : float
        Factor from the time that comes to the time that the network was trained on.
    pad : int
        Pixels by which images are mirrored outwards on each side; what comes out is cut back.
    """

    def __init__(self, unet: nn.Module, time_scale: float = 1.0, pad: int = 0):
        super().__init__()
        self.unet, self.time_scale, self.pad = unet, time_scale, pad

    @property
    def num_classes(self) -> int | None:
        """Labels that it knows; None if it is unconditional."""
        return None if self.unet.class_embedding is None else self.unet.class_embedding.num_embeddings

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) float, labels (B,) int64 or None -> (B, C or 2 C, H, W)."""
        factor, pad = 2 ** (len(self.unet.down_blocks) - 1), self.pad
        if any((side + 2 * pad) % factor or side <= pad for side in x.shape[2:]):
            raise DrbenchError(
                f"this network halves its images {len(self.unet.down_blocks) - 1} times: expected sides that are, with "
                f"pad {pad} on either side, multiples of {factor}, got {x.shape[2]}x{x.shape[3]}. Set `pad`, or resize"
            )
        if pad:
            x = nn.functional.pad(x, (pad, pad, pad, pad), mode="reflect")
        out = self.unet(x, time * self.time_scale, class_labels=self._labels(labels, x), return_dict=False)[0]
        return out[:, :, pad : out.shape[2] - pad, pad : out.shape[3] - pad]

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        embedding = self.unet.class_embedding
        if embedding is None and labels is not None:
            raise DrbenchError("an unconditional network (class_cond: false) got labels; pass labels=None")
        if embedding is None or labels is not None:
            return labels
        embedding.require_unlabelled()
        return torch.full((len(x),), embedding.num_embeddings, dtype=torch.int64, device=x.device)


class LabelEmbedding(nn.Embedding):
    """A class embedding that knows what to say for label K = num_classes, which means: none."""

    def __init__(self, num_classes: int, width: int, unlabelled: str | None):
        super().__init__(num_classes, width)
        self.unlabelled = unlabelled

    def forward(self, labels: Tensor) -> Tensor:
        missing = labels >= self.num_embeddings
        if self.unlabelled is None:
            if self.training and missing.any():  # looked for in training alone: it waits for an accelerator
                self.require_unlabelled()
            return super().forward(labels)
        instead = self.weight.mean(0) if self.unlabelled == "mean" else torch.zeros_like(self.weight[0])
        return torch.where(missing[:, None], instead, super().forward(labels.clamp_max(self.num_embeddings - 1)))

    def require_unlabelled(self) -> None:
        """Raise `DrbenchError` if nobody said what no label means."""
        if self.unlabelled is None:
            raise DrbenchError(
                "this network is class-conditional and got no labels: set `unlabelled: zero` (no label embedding) or "
                "`unlabelled: mean` (the mean embedding) in its spec, or use an unconditional network"
            )


def network(config: ADMConfig, channels: int = 3, time_scale: float = 1.0) -> ADMNetwork:
    """Build the untrained network.

    Its weights have the names of `UNet2DModel`; `drbench.checkpoints.adm` reads OpenAI's files into them.
    """
    from diffusers import UNet2DModel  # takes seconds to import
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    widths, embedded = config.widths, 4 * config.num_channels
    attends = [config.attends(level) for level in range(len(widths))]
    plain = "Resnet{}sampleBlock2D" if config.resblock_updown else "{}Block2D"
    unet = UNet2DModel(
        sample_size=config.image_size,
        in_channels=channels,
        out_channels=channels * (2 if config.learn_sigma else 1),
        down_block_types=["AttnDownBlock2D" if here else plain.format("Down") for here in attends],
        up_block_types=["AttnUpBlock2D" if here else plain.format("Up") for here in reversed(attends)],
        block_out_channels=widths,
        layers_per_block=config.num_res_blocks,
        downsample_type="resnet" if config.resblock_updown else "conv",
        upsample_type="resnet" if config.resblock_updown else "conv",
        time_embedding_dim=embedded,
        flip_sin_to_cos=True,
        freq_shift=0,
        norm_eps=1e-5,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,  # left out, the middle attention would have no norm
        attention_head_dim=GROUPS,  # divides every width; the heads are set below
        resnet_time_scale_shift="scale_shift" if config.use_scale_shift_norm else "default",
        dropout=config.dropout,
    )
    if widths[0] != config.num_channels:
        unet.time_proj = Timesteps(config.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(config.num_channels, embedded)
    if config.class_cond:
        unet.class_embedding = LabelEmbedding(config.classes, embedded, config.unlabelled)
    _set_heads(unet, config)
    return ADMNetwork(unet, time_scale, config.pad)


def _set_heads(unet: nn.Module, config: ADMConfig) -> None:
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = module.sliceable_head_dim = config.heads(module.inner_dim)
            module.scale = (module.inner_dim / module.heads) ** -0.5
