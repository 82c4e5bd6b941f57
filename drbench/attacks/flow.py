"""Images moved by a flow field: the perturbation of spatial attacks, its size and its smoothness.

Xiao et al. 2018, "Spatially transformed adversarial examples", arXiv 1801.02612. A flow (B, H, W, 2) says, in pixels,
how far to the right and down of its own place each pixel of the new image reads the old one. Its size is the largest
displacement along an axis: 0.05 in the [-1, 1] coordinates of other code is 0.05 * W / 2 pixels (0.8 at 32 x 32, 0.2 at
8 x 8).
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of `x` (B, C, H, W) at each pixel's place plus its flow; 0 beyond the border.

    Places outside the image are moved to its outermost edge, as in the attack's usual code. A flow of 0 gives `x`, and
    the result stays in the range of `x` and 0.
    """
    height, width = x.shape[2:]
    # Without `align_corners` the coordinates -1 and 1 are the outer edges of the corner pixels.
    across = (2 * torch.arange(width, dtype=x.dtype, device=x.device) + 1) / width - 1
    down = (2 * torch.arange(height, dtype=x.dtype, device=x.device) + 1) / height - 1
    still = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    scale = torch.tensor([2 / width, 2 / height], dtype=x.dtype, device=x.device)
    return grid_sample(x, (still + flow * scale).clamp(-1, 1), align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """(B,) sum over pixels p and their up to four neighbours q of sqrt(||flow_p - flow_q||^2 + 1e-10), eq. 4."""
    steps = ((flow[:, 1:] - flow[:, :-1]), (flow[:, :, 1:] - flow[:, :, :-1]))
    return sum(2 * (step.square().sum(-1) + 1e-10).sqrt().flatten(1).sum(1) for step in steps)
