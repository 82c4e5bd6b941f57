"""Supervised tuning for one noise level: two noisy copies, cross-entropy, and consistency of their predictions.

Lei et al. 2025, arXiv 2501.13094 (eq. 9); regulariser: Jeong and Shin 2020, "Consistency regularization for certified
robustness of smoothed classifiers", arXiv 2006.04062.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from drbench.classifiers import mixup
from drbench.training import Recipe, sample, train
from methods.rcm.network import Classifier

COPIES = 2


def consistency(logits: Tensor, kl_weight: float, entropy_weight: float) -> Tensor:
    """Regulariser of logits (copies, B, K): spread of the copies' predictions, and entropy of their mean.

    kl_weight * mean over copies of KL(mean || copy) + entropy_weight * H(mean), averaged over the images.
    """
    logs = logits.log_softmax(2)
    mean = logs.exp().mean(0)
    log_mean = mean.clamp(min=1e-20).log()
    entropy = -(mean * log_mean).sum(1)
    spread = (mean * (log_mean - logs)).sum(2).mean(0)
    return (kl_weight * spread + entropy_weight * entropy).mean()


def groups(network: Classifier, decay: float, head: bool) -> list[dict]:
    """Parameters by depth: each layer below the head trains `decay` times slower; the head only if `head`."""
    depth = len(network.base_model.blocks)
    layers: dict[int, list] = {}
    for name, parameter in network.named_parameters():
        if name.startswith("linear_head") and not head:
            continue
        if name.startswith("base_model.blocks."):
            layer = int(name.split(".")[2]) + 1
        else:
            layer = depth + 1 if name.startswith(("base_model.norm", "linear_head")) else 0
        layers.setdefault(layer, []).append(parameter)
    return [{"params": found, "scale": decay ** (depth + 1 - layer)} for layer, found in sorted(layers.items())]


def tune(
    network: Classifier,
    x: Tensor,
    y: Tensor,
    t: float,
    t_snapped: float,
    recipe: Recipe,
    log: Callable[[int, float], None],
    *,
    kl_weight: float,
    entropy_weight: float,
    layer_decay: float = 1.0,
    head: bool = True,
) -> None:
    """Tune on images `x` in [0, 1] with labels `y` under noise of exactly `t` (network units).

    The network is told the grid level `t_snapped`. A share `recipe.mixup` of each batch is mixed.
    """
    classes = torch.eye(network.linear_head.out_features, device=x.device)

    def loss(rng: Generator) -> Tensor:
        images, labels = sample(x, y, recipe, rng)
        images, targets = mixup(2 * images - 1, classes[labels], recipe.mixup, rng)
        images = images.repeat(COPIES, 1, 1, 1)
        noisy = images + t * torch.randn(images.shape, generator=rng).to(images.device)
        logits = network(noisy, t_snapped)
        fit = nn.functional.cross_entropy(logits, targets.repeat(COPIES, 1))
        return fit + consistency(logits.unflatten(0, (COPIES, -1)), kl_weight, entropy_weight)

    train(network, loss, recipe, log, groups(network, layer_decay, head))
