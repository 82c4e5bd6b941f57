"""Gradients through samplers with recomputed steps, against plain autograd: values, gradients and memory."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop

from drbench.diffusion.denoiser import clipped
from drbench.diffusion.networks.unet import small_unet
from drbench.diffusion.precond import EDMDenoiser
from drbench.diffusion.samplers import ddim, heun_pf_ode, stochastic_reverse
from drbench.diffusion.stepwise import recomputed
from drbench.draws import Draws
from methods.denoised.defense import Denoised

SIGMA = 1.0


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    made = EDMDenoiser(small_unet((1, 8, 8), 10, (8, 16)), 0.5, 10).eval().double().requires_grad_(False)
    for parameter in made.parameters():  # as constructed, the last layer is zero: nothing would depend on the rest
        parameter.add_(0.1 * torch.randn_like(parameter))
    return made


class Noise:
    """Standard normals in float64, the same for each new object."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(1)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)


def ancestral(denoise, z, sigma, steps):
    return ddim(clipped(denoise), z, sigma, steps, 1.0, Noise())


def reverse_sde(denoise, z, sigma, steps):
    return stochastic_reverse(denoise, z, sigma, steps, Noise())


SAMPLERS = [heun_pf_ode, ancestral, reverse_sde]


def noisy_images():
    return SIGMA * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def value_and_gradient(sampler, denoise, steps):
    z = noisy_images().requires_grad_()
    out = sampler(denoise, z, SIGMA, steps)
    readout = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad((out * readout + out**2).sum(), z)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_five_steps_equal_plain_autograd(sampler, denoiser):
    plain, slope = value_and_gradient(sampler, denoiser, 5)
    value, again = value_and_gradient(sampler, recomputed(denoiser), 5)
    assert torch.equal(plain, value)
    assert slope.norm() > 0.1 and (again - slope).norm() <= 1e-6 * slope.norm()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recomputation_is_bit_exact(sampler, denoiser):
    """Each call is made twice, the second time in reverse order, with the same input, level and result."""
    calls = []

    def watched(z_net, sigma_net, labels=None):
        x0 = denoiser(z_net, sigma_net, labels)
        calls.append((z_net.detach().clone(), sigma_net, x0.detach().clone()))
        return x0

    with set_checkpoint_early_stop(False):  # else the second call of each pair ends before its last line
        value_and_gradient(sampler, recomputed(watched), 4)
    half = len(calls) // 2
    assert half == (7 if sampler is heun_pf_ode else 4) and len(calls) == 2 * half
    for (z, level, x0), (z_again, level_again, x0_again) in zip(calls[:half], reversed(calls[half:]), strict=True):
        assert level == level_again and torch.equal(z, z_again) and torch.equal(x0, x0_again)


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are still alive: the most so far."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: kept for key, kept in self.storages.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return out


def most_alive(sampler, denoise, steps):
    with LiveBytes() as live:
        value_and_gradient(sampler, denoise, steps)
    return live.most


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_memory_is_that_of_one_step(sampler, denoiser):
    """A step keeps a few images; plain autograd keeps the activations of all steps."""
    image = 8 * noisy_images().numel()
    short, long = (most_alive(sampler, recomputed(denoiser), steps) for steps in (2, 8))
    assert long - short <= 3 * 6 * image  # 6 steps more
    assert most_alive(sampler, denoiser, 8) > 3 * long


def test_without_gradient_it_is_the_denoiser(denoiser):
    assert torch.equal(recomputed(denoiser)(noisy_images(), SIGMA), denoiser(noisy_images(), SIGMA))


@pytest.mark.parametrize(
    "options", [{"sampler": "pf_ode", "steps": 3}, {"sampler": "densepure", "steps": 3, "votes": 2}]
)
def test_denoised_is_attacked_through_all_its_steps(options):
    """The attacker's gradient is plain autograd's of the deployed scores."""
    torch.manual_seed(0)
    defense = Denoised((1, 8, 8), 4, channels=(8, 16), width=4, **options).eval()
    z, slopes = torch.rand(5, 1, 8, 8).requires_grad_(), []
    for scores in (defense.logits, defense.attack_logits):
        out = scores(z, 0.5, Draws.seeded(0, 5))
        slopes.append(torch.autograd.grad(out[:, 1].sum() - out[:, 2].sum(), z)[0])
    assert slopes[0].norm() > 0 and torch.allclose(*slopes, rtol=1e-4, atol=1e-7)
