"""The inner maximisation on linear losses, where the worst image is known, and the baseline's options."""

import pytest
import torch

from drbench.errors import DrbenchError
from methods.adversarial_training.defense import AdversarialTraining
from methods.adversarial_training.pgd import worst_nearby

EPS = {"linf": 0.1, "l2": 0.4}


@pytest.mark.parametrize("norm", EPS)
def test_linear_loss_reaches_its_maximum(norm):
    """Far from the box, the maximum of <w, x'> over the ball is <w, x> + eps ||w||, dual norm."""
    rng = torch.Generator().manual_seed(0)
    x, w = torch.full((3, 1, 8, 8), 0.5), torch.randn(3, 1, 8, 8, generator=rng)
    found = worst_nearby(lambda z: (w * z).sum(), x, norm, EPS[norm], 50, rng)
    gain = ((found - x) * w).flatten(1).sum(1)
    dual = w.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    assert torch.allclose(gain, EPS[norm] * dual, rtol=0.02)  # l2: the angle ends near 2 atan(exp(-2.5))


@pytest.mark.parametrize("norm", EPS)
def test_result_is_in_ball_and_box(norm):
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(5, 2, 8, 8, generator=rng)
    found = worst_nearby(lambda z: (z**2).sum(), x, norm, EPS[norm], 5, rng)
    size = (found - x).flatten(1).norm(p=float("inf") if norm == "linf" else 2, dim=1)
    assert size.max() <= EPS[norm] + 1e-6 and size.min() > 0.5 * EPS[norm]
    assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad


def test_zero_gradient_and_options():
    x = torch.rand(2, 1, 8, 8)
    assert worst_nearby(lambda z: 0 * z.sum(), x, "l2", 0.1, 2, torch.Generator()).isfinite().all()
    for options in ({"norm": "l1"}, {"eps": 0.0}, {"attack_steps": 0}):
        with pytest.raises(DrbenchError, match="adversarial_training needs norm linf or l2"):
            AdversarialTraining(**options)
