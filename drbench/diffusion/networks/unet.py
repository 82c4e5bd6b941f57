"""A small UNet without attention, for 8x8 digits on a CPU and quick runs on 32x32 images."""

from torch import Tensor, nn

from drbench.diffusion.consistency import preconditioned
from drbench.diffusion.precond import EDMDenoiser
from drbench.errors import DrbenchError

# UNet2DModel embeds its time input by sines of angular frequency 10000^(-2k/n), k = 0 .. n/2 - 1, with
# n = channels[0]. c_noise = ln(sigma)/4 spans only about [-1.6, 1.1], where most of these are constant.
# Scaled by 100 and with n = 16, the periods in ln(sigma) are 0.25, 0.8, 2.5, 8, 25, ...: the fastest tells
# levels one per cent apart, the fourth spans the training levels without ambiguity. The code of Song et al.
# 2023, "Consistency Models", has 1000: on digits that trained no better, and its fastest period is 0.025, so
# the network would vary much faster with sigma than the denoiser it approximates.
C_NOISE_SCALE = 100.0


class SmallUNet(nn.Module):
    """Adapts diffusers' `UNet2DModel` to the call `network(x, c_noise, labels)`; built by `small_unet`."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map x (B, C, H, W), c_noise = ln(sigma_net)/4 (B,), labels (B,) int64 or None to (B, heads C, H, W)."""
        return self.unet(x, C_NOISE_SCALE * c_noise, class_labels=labels, return_dict=False)[0]


def small_unet(
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    channels: tuple[int, ...] = (16, 32),
    layers: int = 1,
    groups: int = 8,
    heads: int = 1,
) -> SmallUNet:
    """Build an untrained UNet of residual blocks, one resolution for each entry of `channels`.

    Parameters
    ----------
    image_shape : tuple
        (C, H, W); H and W must be multiples of 2^(len(channels) - 1).
    num_classes : int, optional
        K for a conditional network; it knows K + 1 labels, the last is the null class.
    channels : tuple of int
        Width at each resolution, multiples of `groups`.
    layers : int
        Residual blocks per resolution on the way down (one more on the way up).
    groups : int
        Groups of the group norms.
    heads : int
        Images that are put out for each image, one after the other along the channels.

    Returns
    -------
    SmallUNet
        About 160k parameters with the default sizes.

    References
    ----------
    Ho et al. 2020, appendix B (the architecture, here without attention).
    """
    from diffusers import UNet2DModel  # takes seconds to import

    _check_sizes(image_shape, channels, groups)
    unet = UNet2DModel(
        sample_size=tuple(image_shape[1:]),
        in_channels=image_shape[0],
        out_channels=heads * image_shape[0],
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        norm_num_groups=groups,
        add_attention=False,
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )
    return SmallUNet(unet)


def _check_sizes(image_shape: tuple[int, int, int], channels: tuple[int, ...], groups: int) -> None:
    factor = 2 ** (len(channels) - 1)
    if any(side % factor for side in image_shape[1:]):
        raise DrbenchError(
            f"small_unet with {len(channels)} resolutions needs image sides that are multiples of {factor}, "
            f"got {image_shape[1]}x{image_shape[2]}. Pad the images, or use fewer channels"
        )
    if any(width % groups for width in channels):
        raise DrbenchError(f"small_unet needs channels in multiples of groups={groups}, got {channels}")


def small(
    input_shape: tuple[int, int, int],
    num_classes: int | None,
    sigma_data: float = 0.5,
    t_min: float | None = None,
    **config,
) -> EDMDenoiser:
    """The denoiser around a `small_unet` of these arguments; a consistency function if it has a `t_min`."""
    network = small_unet(input_shape, num_classes, **{"channels": tuple(config.pop("channels", (16, 32))), **config})
    return preconditioned(network, sigma_data, num_classes, t_min)
