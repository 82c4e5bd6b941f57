"""A `UNet2DModel` with the configuration of a diffusers pipeline, and the denoiser that its scheduler makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from drbench.diffusion import schedules
from drbench.diffusion.networks.adm import TIMES_OF_C_NOISE, consistency, vp
from drbench.diffusion.networks.adm_network import ADMNetwork, LabelEmbedding
from drbench.errors import DrbenchError, did_you_mean

# Schedulers that say the same of the network: epsilon at a timestep of a variance-preserving schedule.
VP_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
CONSISTENCY = "CMStochasticIterativeScheduler"
VP_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
               "trained_betas": None, "prediction_type": "epsilon"}  # fmt: skip
CM_DEFAULTS = {"sigma_min": 0.002, "sigma_data": 0.5}


def denoiser(
    input_shape, num_classes: int | None, unet: Mapping, scheduler: Mapping | None = None, unlabelled: str | None = None
) -> nn.Module:
    """The untrained denoiser of a pipeline.

    Parameters
    ----------
    input_shape, num_classes
        The network's own are in `unet`; images of other channels are refused.
    unet, scheduler : dict
        The files unet/config.json and scheduler/scheduler_config.json. Without `scheduler`: diffusers' `DDPMScheduler`
        as it is by default (linear schedule, 1000 steps, epsilon).
    unlabelled : {None, "zero", "mean"}
        As in `ADMConfig`.
    """
    scheduler = {"_class_name": VP_SCHEDULERS[0], **(scheduler or {})}
    built = network(unet, unlabelled)
    channels = built.unet.config.in_channels
    if channels != input_shape[0]:
        raise DrbenchError(f"this network takes images of {channels} channels, got {input_shape[0]}")
    name = scheduler["_class_name"]
    if name == CONSISTENCY:
        built.time_scale = TIMES_OF_C_NOISE
        facts = _chosen(scheduler, CM_DEFAULTS)
        return consistency(built, facts["sigma_data"], facts["sigma_min"])
    if name not in VP_SCHEDULERS:
        known = ", ".join((*VP_SCHEDULERS, CONSISTENCY))
        raise DrbenchError(f"scheduler {name!r}: expected one of {known}; this network's noise levels are not known")
    facts = _chosen(scheduler, VP_DEFAULTS)
    if facts["prediction_type"] != "epsilon":
        raise DrbenchError(f"scheduler: expected a network that predicts epsilon, got {facts['prediction_type']!r}")
    return vp(built, _betas(facts))


def network(config: Mapping, unlabelled: str | None = None) -> ADMNetwork:
    """The untrained network of a unet/config.json."""
    from diffusers import UNet2DModel  # takes seconds to import

    known = inspect.signature(UNet2DModel).parameters
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise DrbenchError(f"expected the config.json of a UNet2DModel, got one of {config['_class_name']!r}")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in arguments:
        if key not in known:
            raise DrbenchError(f"UNet2DModel of this diffusers has no option {key!r}{did_you_mean(key, known)}")
    if arguments.get("time_embedding_type", "positional") != "positional":
        raise DrbenchError(
            "expected time_embedding_type positional; networks of the variance-exploding SDE are not read"
        )
    try:
        unet = UNet2DModel(**arguments)
    except (TypeError, ValueError) as error:
        raise DrbenchError(f"UNet2DModel cannot be built from this config.json: {error}") from error
    if isinstance(unet.class_embedding, nn.Embedding):
        unet.class_embedding = LabelEmbedding(*unet.class_embedding.weight.shape, unlabelled)
    elif unet.class_embedding is not None or unlabelled:
        raise DrbenchError(
            "labels are known to networks with num_class_embeds only; leave out class_embed_type, unlabelled"
        )
    return ADMNetwork(unet)


def _chosen(scheduler: Mapping, defaults: Mapping) -> dict:
    return {key: scheduler.get(key, value) for key, value in defaults.items()}


def _betas(facts: Mapping) -> Tensor:
    """In float64, where diffusers has float32: the noise levels differ by about 1e-6 of themselves."""
    start, end, steps = facts["beta_start"], facts["beta_end"], facts["num_train_timesteps"]
    if facts["trained_betas"] is not None:
        return torch.tensor(facts["trained_betas"], dtype=torch.float64)
    name = facts["beta_schedule"]
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":
        return schedules.cosine_betas(steps)
    raise DrbenchError(f"scheduler: expected beta_schedule linear, scaled_linear or squaredcos_cap_v2, got {name!r}")


def make_twice_differentiable(network: nn.Module) -> None:
    """Attention by matrix products: the fused kernel, which diffusers takes by default, has no second derivative."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    for module in network.modules():
        if isinstance(getattr(module, "processor", None), AttnProcessor2_0):
            module.set_processor(AttnProcessor())
