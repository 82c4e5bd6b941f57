"""The networks of EDM (NVlabs/edm), with its configurations and names of tensors, as denoisers."""

from __future__ import annotations

from drbench.diffusion.consistency import preconditioned
from drbench.diffusion.networks.edm_dhariwal import DhariwalUNet
from drbench.diffusion.networks.edm_song import SongUNet
from drbench.diffusion.precond import EDMDenoiser
from drbench.errors import DrbenchError


def song(input_shape, num_classes, **config) -> EDMDenoiser:
    """The denoiser around a `SongUNet`. With `t_min`, the consistency function: see `preconditioned`."""
    return _denoiser(SongUNet, input_shape, **config)


def dhariwal(input_shape, num_classes, **config) -> EDMDenoiser:
    """The denoiser around a `DhariwalUNet`. With `t_min`, the consistency function: see `preconditioned`."""
    return _denoiser(DhariwalUNet, input_shape, **config)


def _denoiser(network, input_shape, sigma_data: float = 0.5, t_min: float | None = None, **config) -> EDMDenoiser:
    wanted = (config.get("img_channels", 3), *[config.get("img_resolution")] * 2)
    if tuple(input_shape) != wanted:
        raise DrbenchError(f"denoiser: an EDM network for images {wanted}, but the data are {tuple(input_shape)}")
    return preconditioned(network(**config), sigma_data, config.get("label_dim", 0) or None, t_min)
