"""`make bench`: the gradient of a margin loss through the diffusion classifier, and its batched evaluation.

    ours       forward pass without a graph, then backward for the two classes that the loss looks at (any batch size)
    jacobian   the class-by-class scheme of the official code: d logit_k / dx for every class k. "batched" gives it our
               chunks of images and nodes; "single" is the official form, one image and one class at a time

Rows are evaluations of the denoiser on noisy images; a row with a gradient costs about twice one without (forward and
backward in the input). The ratios are medians over rounds of neighbouring measurements.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from drbench import load_data, load_defense
from drbench.api import Draws
from drbench.memory import keep_freed_memory
from methods.diffusion_classifier.errors import Pairs, all_pairs, denoising_errors

IMAGES, NODES, ROUNDS, LIMIT = 16, 16, 5, 0.6


class Setting:
    """A diffusion classifier on a few digits, and counts of evaluations without and with a gradient."""

    def __init__(self):
        images = load_data("digits", "validation", subset=f"first{IMAGES}")
        args = {"levels": [0.5, 3.0], "nodes": NODES}
        self.defense = load_defense("diffusion_classifier", images, "digits/denoiser", **args).requires_grad_(False)
        self.x, self.y, self.draws = images.x, images.y, Draws.seeded(0, IMAGES)
        self.plain = self.tracked = 0
        self.defense.denoiser.register_forward_pre_hook(self._count)

    def _count(self, module, args) -> None:
        rows = len(args[0])
        self.plain, self.tracked = (
            (self.plain, self.tracked + rows) if args[0].requires_grad else (self.plain + rows, self.tracked)
        )

    def ours(self) -> Tensor:
        x = self.x.clone().requires_grad_()
        loss = margin(self.defense.attack_logits(x, 0.0, self.draws[:]), self.y).sum()
        return torch.autograd.grad(loss, x)[0]

    def jacobian(self, images: int) -> Tensor:
        """The gradient from all K rows of the Jacobian, for `images` images and one class at a time."""
        defense, terms = self.defense, self.defense._terms(0.0, NODES)
        noise, slopes = defense._noise(self.draws[:], terms), []
        for rows in torch.arange(IMAGES).split(images):
            logits, jacobian = [], []
            for label in range(defense.num_classes):
                x = self.x[rows].clone().requires_grad_()
                total, slope = torch.zeros(len(rows)), torch.zeros_like(x)
                for nodes in torch.arange(NODES).split(max(1, defense.chunk // len(rows))):
                    value = self._part(2 * x - 1, noise[rows][:, nodes], nodes, label)
                    slope += torch.autograd.grad(value.sum(), x)[0]
                    total += value.detach()
                logits.append(total)
                jacobian.append(slope)
            logits = torch.stack(logits, 1).requires_grad_()
            (weights,) = torch.autograd.grad(margin(logits, self.y[rows]).sum(), logits)
            slopes.append(torch.einsum("bk,kbchw->bchw", weights, torch.stack(jacobian)))
        return torch.cat(slopes)

    def _part(self, u: Tensor, noise: Tensor, nodes: Tensor, label: int) -> Tensor:
        """(images,) part of the logit of one class, by plain autograd."""
        terms = self.defense._terms(0.0, NODES)
        level = terms.level[nodes].float()
        z = u[:, None] + level.view(1, -1, 1, 1, 1) * noise[:, :, 0]
        labels = torch.full((z.shape[0] * z.shape[1],), label)
        found = self.defense.denoiser(z.flatten(0, 1), level.repeat(len(u)), labels).view_as(z)
        errors = (found - u[:, None]).square().flatten(2).mean(2)
        return -self.defense.logit_scale * (errors * terms.weight[nodes].float()).sum(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus that of the label: two classes have a gradient."""
    right = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True) - right).flatten()


@torch.no_grad()
def evaluate(setting: Setting, single: bool) -> Tensor:
    """Logits of all images at once; or of one image and one class at a time."""
    defense, terms = setting.defense, setting.defense._terms(0.0, NODES)
    u, noise = 2 * setting.x - 1, setting.defense._noise(setting.draws[:], terms)
    if not single:
        pairs = all_pairs(IMAGES, defense.num_classes, u.device)
        return denoising_errors(defense._predict, u, u, noise, terms, pairs, defense.chunk)
    parts = [Pairs(torch.tensor([i]), torch.tensor([k])) for i in range(IMAGES) for k in range(defense.num_classes)]
    return torch.cat([denoising_errors(defense._predict, u, u, noise, terms, pair, defense.chunk) for pair in parts])


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    setting = Setting()
    ways = {
        "ours": setting.ours,
        "jacobian, batched": lambda: setting.jacobian(IMAGES),
        "jacobian, single": lambda: setting.jacobian(1),
        "logits, batched": lambda: evaluate(setting, single=False),
        "logits, one image and class": lambda: evaluate(setting, single=True),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    results, rows = {}, {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            setting.plain = setting.tracked = 0
            start = time.perf_counter()
            results[name] = way()
            spent[name].append(time.perf_counter() - start)
            rows[name] = setting.plain, setting.tracked
    gap = float((results["ours"] - results["jacobian, batched"]).norm() / results["ours"].norm())
    print(f"{IMAGES} digits, {NODES} nodes, 10 classes, margin loss, one thread; gradients agree to {gap:.1e}")
    for name, seconds in spent.items():
        print(
            f"  {name:28} {statistics.median(seconds):6.2f} s, rows {rows[name][0]:,}, with gradient {rows[name][1]:,}"
        )

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))

    units = [plain + 3 * tracked for plain, tracked in (rows["ours"], rows["jacobian, batched"])]
    print(f"  ours / jacobian, batched       {ratio('ours', 'jacobian, batched'):.3f} of the time (limit {LIMIT})")
    print(f"                                 {units[0] / units[1]:.3f} of the evaluations, forward + backward = 3")
    print(f"  ours / jacobian, single        {ratio('ours', 'jacobian, single'):.3f} of the time (limit {LIMIT})")
    slower = ratio("logits, one image and class", "logits, batched")
    print(f"  logits one by one / batched    {slower:.2f} of the time (bar: 3)")


if __name__ == "__main__":
    main()
