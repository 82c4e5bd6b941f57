"""Networks of denoisers, and `build`, which makes a denoiser of a dict: {"kind": name, ...its configuration}.

A raw network is called as `network(x, c_noise, labels) -> tensor` and knows nothing of noise levels;
`drbench.diffusion.precond` turns it into a denoiser. What `build` returns fulfils the contract of
`drbench.diffusion.denoiser.Denoiser`.

unet         a small UNet, without attention
edm          networks of NVlabs/edm, as denoisers
edm_song, edm_dhariwal, edm_blocks
             its two U-Nets, and what they are built of
adm          networks of OpenAI, as denoisers
adm_config, adm_network
             what such a network is, in OpenAI's words; the network, as diffusers' `UNet2DModel`
diffusers_unet
             networks of diffusers' pipelines, as denoisers
presets      public checkpoints by name, instead of a configuration
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from drbench import specs
from drbench.diffusion.networks import presets

# kind -> "module:function"; called as function(input_shape, num_classes, **configuration)
KINDS = {
    "diffusers": "drbench.diffusion.networks.diffusers_unet:denoiser",
    "edm_dhariwal": "drbench.diffusion.networks.edm:dhariwal",
    "edm_song": "drbench.diffusion.networks.edm:song",
    "guided_diffusion": "drbench.diffusion.networks.adm:guided_diffusion",
    "improved_diffusion": "drbench.diffusion.networks.adm:improved_diffusion",
    "openai_consistency": "drbench.diffusion.networks.adm:openai_consistency",
    "small_unet": "drbench.diffusion.networks.unet:small",
}


def build(spec: Mapping | None, input_shape: tuple[int, int, int], num_classes: int, **default) -> nn.Module:
    """An untrained denoiser, called as `denoiser(z_net, sigma_net, labels=None)`.

    Parameters
    ----------
    spec : mapping or None
        "kind", one of `KINDS`, and the network's configuration by the names of its own project; or "preset", the name
        of a public checkpoint (`presets.yaml`). None: the small UNet with the arguments `default`, which no other kind
        sees.
    input_shape : tuple of int
        (C, H, W) of the images; a network for other images is refused.
    num_classes : int
        K of the data. A network that knows no classes, or others, says so in its configuration.

    Returns
    -------
    Module
        With the attributes `sigma_data` (std of its training images in [-1, 1]) and `num_classes` (None: it takes no
        labels).
    """
    config = {"kind": "small_unet", **default} if spec is None else presets.expanded(spec)
    return specs.make("denoiser", KINDS, config, tuple(input_shape), num_classes)
