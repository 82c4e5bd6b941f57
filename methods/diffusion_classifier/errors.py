"""Denoising errors of images x classes x nodes in full batches, with an exact gradient at bounded memory.

The logits are sums of errors, so nothing need be kept: the forward pass stores no graph. The backward pass evaluates
again, with the same noise, and only what its incoming gradient asks for: a margin loss looks at two classes of K. Where
a network answers for all classes at once and one call takes all rows, there is nothing to save: autograd keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.diffusion_classifier.terms import Terms

CHUNK = 512  # network rows per call: the fastest on a CPU; bounds the memory of both passes


class Pairs(NamedTuple):
    """P pairs of an image and the class that the network is told; no classes for a network that answers for all."""

    image: Tensor  # (P,) int64, rows of the batch
    label: Tensor | None  # (P,) int64


def all_pairs(images: int, classes: int | None, device: torch.device) -> Pairs:
    """Every image with every class, images slowest; every image once if `classes` is None."""
    rows = torch.arange(images, device=device)
    if classes is None:
        return Pairs(rows, None)
    return Pairs(rows.repeat_interleave(classes), torch.arange(classes, device=device).repeat(images))


def denoising_errors(
    predict: Callable, base: Tensor, anchor: Tensor, noise: Tensor, terms: Terms, pairs: Pairs, chunk: int = CHUNK
) -> Tensor:
    """Mean square over pixels of prediction minus target (see `terms`), for all pairs and terms; not weighted.

    Parameters
    ----------
    predict : callable
        (z (R, C, H, W), level (R,), labels (R,) or None) -> (R, heads, C, H, W): clean images, one for each class that
        the network answers for at once. Row i depends on row i alone.
    base, anchor : Tensor (B, C, H, W)
        Network units. Differentiable.
    noise : Tensor (B, T, 1 or K, C, H, W)
        Standard normals: one for all classes of an image and node, or one for each.
    chunk : int
        Rows of a network call.

    Returns
    -------
    Tensor (P, T, heads)
        Its gradient in `base` and `anchor` is exact for this noise, and costs evaluations for those (pair, term) alone
        whose incoming gradient is not zero. It is for the images: neither for the network's weights, nor to be
        differentiated again.
    """
    rows = torch.arange(len(pairs.image) * len(terms.level), device=base.device)
    tracked = torch.is_grad_enabled() and (base.requires_grad or anchor.requires_grad)
    if tracked and pairs.label is None and len(rows) <= chunk:
        work = _Work.of(rows, terms, pairs, noise, base.dtype)
        errors = work.errors(predict, base[work.image], anchor[work.image])
        return errors.unflatten(0, (len(pairs.image), len(terms.level)))
    return _Errors.apply(base, anchor, noise, terms, pairs, predict, chunk)


def class_losses(
    predict: Callable,
    base: Tensor,
    anchor: Tensor,
    noise: Tensor,
    terms: Terms,
    classes: int | None,
    chunk: int = CHUNK,
) -> Tensor:
    """(B, K) weighted sum of the errors of every class; `classes` is None if the network answers for all at once."""
    pairs = all_pairs(len(base), classes, base.device)
    errors = denoising_errors(predict, base, anchor, noise, terms, pairs, chunk)  # (P, T, heads)
    losses = (errors * terms.weight.to(errors)[:, None]).sum(1)
    return losses if classes is None else losses.view(-1, classes)


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, anchor, noise, terms, pairs, predict, chunk):
        ctx.save_for_backward(base, anchor, noise)
        ctx.rest = terms, pairs, predict, chunk
        size, parts = len(pairs.image) * len(terms.level), []
        for flat in torch.arange(size, device=base.device).split(chunk):
            work = _Work.of(flat, terms, pairs, noise, base.dtype)
            parts.append(work.errors(predict, base[work.image], anchor[work.image]))
        return torch.cat(parts).unflatten(0, (len(pairs.image), len(terms.level)))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (base, anchor, noise), (terms, pairs, predict, chunk) = ctx.saved_tensors, ctx.rest
        gradient = gradient.flatten(0, 1)  # (P * T, heads)
        slopes = torch.zeros_like(base), torch.zeros_like(anchor)
        for flat in gradient.any(dim=1).nonzero().flatten().split(chunk):
            work = _Work.of(flat, terms, pairs, noise, base.dtype)
            with torch.enable_grad():
                ends = [part[work.image].detach().requires_grad_() for part in (base, anchor)]
                value = (work.errors(predict, *ends) * gradient[flat]).sum()
                for slope, part in zip(slopes, torch.autograd.grad(value, ends), strict=True):
                    slope.index_add_(0, work.image, part)
        return *slopes, None, None, None, None, None


class _Work(NamedTuple):
    """R rows of network calls, each for one image, class and term."""

    image: Tensor  # (R,)
    label: Tensor | None
    noise: Tensor  # (R, C, H, W)
    terms: Terms  # its fields are (R,)

    @classmethod
    def of(cls, flat: Tensor, terms: Terms, pairs: Pairs, noise: Tensor, dtype: torch.dtype) -> _Work:
        """The rows with these numbers in (pair, term) order."""
        count = len(terms.level)
        pair, term = flat // count, flat % count
        image, label = pairs.image[pair], None if pairs.label is None else pairs.label[pair]
        own = label if noise.shape[2] > 1 else torch.zeros_like(term)
        return cls(
            image, label, noise[image, term, own], Terms(*(field.to(noise.device, dtype)[term] for field in terms))
        )

    def errors(self, predict: Callable, base: Tensor, anchor: Tensor) -> Tensor:
        """(R, heads)."""
        level, spread, shift = (field.view(-1, 1, 1, 1) for field in self.terms[:3])
        found = predict(base + spread * self.noise, level.flatten(), self.label)
        return (found - (anchor + shift * self.noise)[:, None]).square().flatten(2).mean(2)
