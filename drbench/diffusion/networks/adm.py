"""OpenAI's UNets as diffusers' `UNet2DModel`, and the denoisers that they are.

Nichol & Dhariwal 2021 (improved-diffusion), Dhariwal & Nichol 2021 (guided-diffusion, "ADM") and Song et al. 2023
(consistency models) share one network. `UNet2DModel` computes it exactly, but for three things, set here after it is
built: a number of heads that does not follow the width, a time embedding that does not follow the first width, and
class labels that may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from drbench.diffusion import schedules
from drbench.diffusion.consistency import ConsistencyFunction
from drbench.diffusion.networks.adm_config import ADMConfig, parse
from drbench.diffusion.precond import EDMDenoiser, VPDenoiser
from drbench.errors import DrbenchError

GROUPS = 32
NO_LABEL = -1
# A denoiser of Karras et al. hands over ln(sigma) / 4; a consistency model was trained on 250 ln(sigma).
TIMES_OF_C_NOISE = 1000.0

KIND_DEFAULTS = {
    "improved_diffusion": {"rescale_timesteps": True},
    "guided_diffusion": {},
    "openai_consistency": {"attention_resolutions": (32, 16, 8)},
}


def config(kind: str, spec: Mapping, input_shape=None, num_classes: int | None = None) -> ADMConfig:
    """The configuration of a spec of one of the three kinds; the data fill in image_size and classes."""
    defaults = dict(KIND_DEFAULTS[kind])
    if num_classes is not None:
        defaults["classes"] = num_classes
    return parse(kind, spec, input_shape[1] if input_shape else None, **defaults)


def improved_diffusion(input_shape, num_classes: int | None, **spec) -> VPDenoiser:
    """The untrained denoiser of a network of openai/improved-diffusion."""
    return _vp("improved_diffusion", input_shape, num_classes, spec)


def guided_diffusion(input_shape, num_classes: int | None, **spec) -> VPDenoiser:
    """The untrained denoiser of a network of openai/guided-diffusion."""
    return _vp("guided_diffusion", input_shape, num_classes, spec)


def openai_consistency(input_shape, num_classes: int | None, **spec) -> EDMDenoiser:
    """A consistency function, or with `distillation: false` the denoiser that it was distilled from, untrained."""
    chosen = config("openai_consistency", spec, input_shape, num_classes)
    unet = network(chosen, input_shape[0], TIMES_OF_C_NOISE)
    return consistency(unet, chosen.sigma_data, chosen.sigma_min if chosen.distillation else None)


def _vp(kind: str, input_shape, num_classes: int | None, spec: Mapping) -> VPDenoiser:
    chosen = config(kind, spec, input_shape, num_classes)
    betas = {"linear": schedules.linear_betas, "cosine": schedules.cosine_betas}[chosen.noise_schedule]
    scale = 1000 / chosen.diffusion_steps if chosen.rescale_timesteps else 1.0
    return vp(network(chosen, input_shape[0]), betas(chosen.diffusion_steps), scale)


def vp(network: ADMNetwork, betas: Tensor, time_scale: float = 1.0) -> VPDenoiser:
    """A `VPDenoiser` that says how many classes it knows."""
    denoiser = VPDenoiser(network, schedules.alphas_bar(betas), time_scale)
    denoiser.num_classes = network.num_classes
    return denoiser


def consistency(network: ADMNetwork, sigma_data: float, t_min: float | None) -> EDMDenoiser:
    """A consistency function that is exact at `t_min`; without it a denoiser. The network minds its labels itself."""
    if t_min is None:
        return _Denoiser(network, sigma_data, network.num_classes)
    return _Consistency(network, sigma_data, network.num_classes, t_min)


class _OwnLabels:
    """Labels go to the network as they are, None too: it has no null class."""

    def _labels(self, labels, z_net):
        return labels


class _Denoiser(_OwnLabels, EDMDenoiser):
    pass


class _Consistency(_OwnLabels, ConsistencyFunction):
    def teacher(self) -> EDMDenoiser:
        return _Denoiser(deepcopy(self.network), float(self.sigma_data), self.num_classes)


class ADMNetwork(nn.Module):
    """Adapts `UNet2DModel` to the call `network(x, time, labels)` and says what it cannot take.

    Parameters
    ----------
    unet : UNet2DModel
    time_scale : float
        Factor from the time that comes to the time that the network was trained on.
    """

    def __init__(self, unet: nn.Module, time_scale: float = 1.0):
        super().__init__()
        self.unet, self.time_scale = unet, time_scale

    @property
    def num_classes(self) -> int | None:
        """Labels that it knows; None if it is unconditional."""
        return None if self.unet.class_embedding is None else self.unet.class_embedding.num_embeddings

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) float, labels (B,) int64 or None -> (B, C or 2 C, H, W)."""
        factor = 2 ** (len(self.unet.down_blocks) - 1)
        if any(side % factor for side in x.shape[2:]):
            raise DrbenchError(
                f"this network halves its images {len(self.unet.down_blocks) - 1} times: expected sides in multiples "
                f"of {factor}, got {x.shape[2]}x{x.shape[3]}. Pad or resize them"
            )
        if self.unet.class_embedding is None and labels is not None:
            raise DrbenchError("an unconditional network (class_cond: false) got labels; pass labels=None")
        if self.unet.class_embedding is not None and labels is None:
            labels = torch.full((len(x),), NO_LABEL, dtype=torch.int64, device=x.device)
        return self.unet(x, time * self.time_scale, class_labels=labels, return_dict=False)[0]


class LabelEmbedding(nn.Embedding):
    """A class embedding that knows what to say where there is no label (`NO_LABEL`)."""

    def __init__(self, num_classes: int, width: int, unlabelled: str | None):
        super().__init__(num_classes, width)
        self.unlabelled = unlabelled

    def forward(self, labels: Tensor) -> Tensor:
        missing = labels < 0
        if self.unlabelled is None:
            if missing.any():
                raise DrbenchError(
                    "this network is class-conditional and got no labels: set `unlabelled: zero` (no label embedding) "
                    "or `unlabelled: mean` (the mean embedding) in its spec, or use an unconditional network"
                )
            return super().forward(labels)
        instead = self.weight.mean(0) if self.unlabelled == "mean" else torch.zeros_like(self.weight[0])
        return torch.where(missing[:, None], instead, super().forward(labels.clamp_min(0)))


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
    return ADMNetwork(unet, time_scale)


def _set_heads(unet: nn.Module, config: ADMConfig) -> None:
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = module.sliceable_head_dim = config.heads(module.inner_dim)
            module.scale = (module.inner_dim / module.heads) ** -0.5
