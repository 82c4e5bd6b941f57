"""The denoisers that OpenAI's networks are: improved-diffusion, guided-diffusion, consistency models."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor

from drbench.diffusion import schedules
from drbench.diffusion.consistency import ConsistencyFunction
from drbench.diffusion.networks.adm_config import ADMConfig, parse
from drbench.diffusion.networks.adm_network import ADMNetwork, network
from drbench.diffusion.precond import EDMDenoiser, VPDenoiser

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
    """Labels go to the network as they are, None too: it knows what to say about absent ones, or that it cannot."""

    def _labels(self, labels, z_net):
        return labels


class _Denoiser(_OwnLabels, EDMDenoiser):
    pass


class _Consistency(_OwnLabels, ConsistencyFunction):
    def teacher(self) -> EDMDenoiser:
        return _Denoiser(deepcopy(self.network), float(self.sigma_data), self.num_classes)
