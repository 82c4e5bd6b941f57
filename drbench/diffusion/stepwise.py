"""Exact gradients through a sampler of many steps, in the memory of one step."""

from torch import Tensor, is_grad_enabled
from torch.utils.checkpoint import checkpoint

from drbench.diffusion.denoiser import Denoiser


def recomputed(denoise: Denoiser) -> Denoiser:
    """The same denoiser, whose activations are thrown away and computed again when the gradient is taken.

    Give this to any sampler: `ddim(recomputed(clipped(denoise)), z_net, sigma_net, ...)`. Values are those of
    `denoise`; the gradient of the sampler's result is exact, for any number of steps; and of a step only an image or
    two are kept, not the network's activations, so memory is that of one network call. A call costs one more forward
    pass in the backward pass.

    This is the step-wise scheme of Kang et al. 2023 (DiffAttack, arXiv 2311.16124, section 3.3) with the network call
    as the unit. The noise of a step is added outside of the call and the level is passed as the same number, so both
    passes see the same randomness and the same time without any bookkeeping; `denoise` must draw no noise of its own
    and be in eval mode. It need not be called with gradients: then it is `denoise`.
    """

    def call(z_net: Tensor, sigma_net: float | Tensor, labels: Tensor | None = None) -> Tensor:
        if not (is_grad_enabled() and z_net.requires_grad):
            return denoise(z_net, sigma_net, labels)
        return checkpoint(denoise, z_net, sigma_net, labels, use_reentrant=False, preserve_rng_state=False)

    return call
