"""The function that an attacker differentiates: its values, its parts, its gradient and its Lipschitz constant."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drbench.api import Defense
from drbench.conformance.case import TOLERANCE, Case, Skip, ends, expect, gaps, repeated, scores
from drbench.draws import Draws

STEP = 0.02  # of central differences, l2, pixel units: not so tiny that rounding of the input stays unseen
DIRECTIONS = 8  # for each of four images


def check_one_function(case: Case) -> None:
    """`attack_logits`, and `logits` with gradients enabled, give the values of `logits` in inference mode."""
    defense = case.fresh()
    white_box = defense.gradient != "none"
    for sigma in ends(defense):
        z = case.noisy(8, sigma)
        reference = scores(defense, z, sigma)
        for name in ("logits", "attack_logits") if white_box else ("logits",):
            with torch.enable_grad():
                values = getattr(defense, name)(
                    z.clone().requires_grad_(white_box), sigma, Draws.seeded(0, len(z))
                ).detach()
            gap = float(gaps(values, reference).max())
            expect(
                gap <= TOLERANCE,
                f"sigma {sigma:g}: {name} with gradients enabled differs by {gap:.2g} from logits without: "
                "an attack must see the function that is deployed; use one code path, one grid and the "
                "same draws",
            )


def check_two_parts(case: Case) -> None:
    """`purify` gives images in [0, 1], and `classify` of them what `logits` gives."""
    defense = case.fresh()
    if not hasattr(defense, "purify"):
        raise Skip("there is no `purify`: nothing to look behind")
    for sigma in ends(defense):
        z = case.noisy(8, sigma)
        draws = Draws.seeded(0, len(z))
        with torch.inference_mode():
            images = defense.purify(z.clone(), sigma, draws)
            inside = images.shape == z.shape and bool(((images >= 0) & (images <= 1)).all())
            expect(
                inside,
                f"sigma {sigma:g}: purify gives {tuple(images.shape)} in [{float(images.min()):.3g}, "
                f"{float(images.max()):.3g}], expected {tuple(z.shape)} in [0, 1]: the images that are classified",
            )
            if hasattr(defense, "classify"):
                again, what = defense.classify(images, sigma, draws), "classify"
            elif sigma > 0 and defense.accepts(0.0) and defense.gradient == "exact":  # not of votes
                again, what = defense.logits(images, 0.0, draws), "logits at sigma 0, for want of `classify`,"
            else:
                continue
            gap = float(gaps(again, scores(defense, z, sigma)).max())
        expect(
            gap <= TOLERANCE,
            f"sigma {sigma:g}: {what} of purify differs by {gap:.2g} from logits: attacks that look behind the "
            "purifier would attack another function; let logits call purify and classify, with the same draws",
        )


# ---- gradient ----------------------------------------------------------------------------------------------


def check_gradient(case: Case) -> None:
    """An exact gradient agrees with differences in >= 90 % of 32 directions; a surrogate is non-zero."""
    defense = case.fresh()
    if defense.gradient == "none":
        raise Skip("the gradient is declared 'none': there is none to check, and white-box attacks refuse to run")
    for sigma in ends(defense):
        z = case.noisy(4, sigma)
        readout = torch.from_numpy(np.random.default_rng(1).standard_normal(case.num_classes, np.float32))
        slope = _slope(defense, z, sigma, readout)
        if defense.gradient == "exact":
            _expect_exact(defense, z, sigma, readout, slope)
        else:
            zero = int((slope.flatten(1).norm(dim=1) == 0).sum())
            expect(
                zero == 0,
                f"sigma {sigma:g}: {zero} of {len(z)} rows have a surrogate gradient of zero: let "
                "`attack_logits` replace the flat part by a smooth stand-in, or declare gradient = 'none'",
            )


def _slope(defense: Defense, z: Tensor, sigma: float, readout: Tensor) -> Tensor:
    """Gradient in z of the read-out of `attack_logits`, summed over rows."""
    z = z.clone().requires_grad_()
    with torch.enable_grad():
        value = (defense.attack_logits(z, sigma, Draws.seeded(0, len(z))) @ readout).sum()
        slope = torch.autograd.grad(value, z, allow_unused=True)[0] if value.requires_grad else None
    expect(
        slope is not None,
        f"sigma {sigma:g}: `attack_logits` is not connected to its input: remove detach() and no_grad(), or "
        "declare gradient = 'none'",
    )
    expect(
        bool(slope.isfinite().all()),
        f"sigma {sigma:g}: the gradient holds NaN or infinite values: look for sqrt or norm at 0, or 0/0 in a `where`",
    )
    return slope


def _expect_exact(defense: Defense, z: Tensor, sigma: float, readout: Tensor, slope: Tensor) -> None:
    rows, shape = len(z), z.shape[1:]
    units = torch.from_numpy(np.random.default_rng(2).standard_normal((rows, DIRECTIONS, *shape), np.float32))
    units /= units.flatten(2).norm(dim=2).reshape(rows, DIRECTIONS, 1, 1, 1)
    moves = torch.cat([STEP * units, -STEP * units], 1)
    draws = Draws.seeded(0, rows)
    logits = torch.stack(
        [scores(defense, z[i] + moves[i], sigma, repeated(draws, i, len(moves[i]))) for i in range(rows)]
    )
    up, down = (logits @ readout).chunk(2, dim=1)
    measured = (up - down) / (2 * STEP)
    claimed = (slope[:, None] * units).flatten(2).sum(2)
    typical = slope.flatten(1).norm(dim=1, keepdim=True) / units[0, 0].numel() ** 0.5
    rounding = torch.finfo(torch.float32).eps * float((logits.abs() @ readout.abs()).max()) / STEP
    off = (measured - claimed).abs() - (0.05 * measured.abs() + 0.1 * typical + rounding)
    share = float((off <= 0).float().mean())
    worst = int(off.argmax())
    expect(
        share >= 0.9,
        f"sigma {sigma:g}: {share:.0%} of {measured.numel()} directional derivatives agree with central "
        f"differences, expected at least 90% (worst: autograd {claimed.flatten()[worst]:.3g}, differences "
        f"{measured.flatten()[worst]:.3g}): look for detach(), no_grad() or rounding on the path from the "
        "input, or declare gradient = 'surrogate'",
    )


# ---- Lipschitz constant ------------------------------------------------------------------------------------


def check_lipschitz(case: Case) -> None:
    """No score changes faster than the declared constant: 1,000 random pairs, then ascent on the ratio."""
    defense = case.fresh()
    if defense.lipschitz is None:
        raise Skip("no Lipschitz constant is declared")
    for sigma in ends(defense):
        z = case.noisy(500, sigma)
        near = z + 0.05 * torch.from_numpy(np.random.default_rng(3).standard_normal(z.shape, np.float32))
        near = near.clamp(0, 1) if sigma == 0 else near
        logits, logits_near = (scores(defense, rows, sigma, repeated(Draws.seeded(0, 1), 0, 500)) for rows in (z, near))
        found = [_ratio(logits, logits_near, z, near), _ratio(logits, logits.roll(1, 0), z, z.roll(1, 0))]
        top = found[0].topk(4).indices
        if defense.gradient != "none":
            found.append(_ascend(defense, z[top], near[top], sigma))
        steepest = max(float(ratio.max()) for ratio in found)
        expect(
            steepest <= defense.lipschitz * 1.001,
            f"sigma {sigma:g}: two images were found with |difference of a logit| / l2 distance = "
            f"{steepest:.4g}, above the declared lipschitz = {defense.lipschitz:.4g} (pixel units): "
            "certificates from it would be false; raise it, or declare None",
        )


def _ratio(first: Tensor, second: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B,) largest change of a logit over l2 distance, less what float32 rounding may have added."""
    rounding = 4 * torch.finfo(torch.float32).eps * first.abs().amax(1)
    change = (first - second).abs().amax(1) - rounding
    return change.clamp_min(0) / (x - y).flatten(1).norm(dim=1).clamp_min(1e-6)


def _ascend(defense: Defense, x: Tensor, y: Tensor, sigma: float, steps: int = 20) -> Tensor:
    """The ratios seen while both ends of each pair climb. A step is a part of the pair's length."""
    pair, seen = torch.stack([x, y]), []
    draws = repeated(Draws.seeded(0, 1), 0, 2 * len(x))
    for _ in range(steps):
        pair.requires_grad_()
        with torch.enable_grad():
            logits = defense.attack_logits(pair.flatten(0, 1), sigma, draws[:]).unflatten(0, (2, len(x)))
            ratio = _ratio(*logits, *pair)
            (slope,) = torch.autograd.grad(ratio.clamp_min(1e-12).log().sum(), pair)
        seen.append(ratio.detach())
        length = (pair[0] - pair[1]).detach().flatten(1).norm(dim=1)
        scale = 0.3 * length / slope.flatten(2).norm(dim=2).clamp_min(1e-12)
        pair = (pair + scale[:, :, None, None, None] * slope).detach()
        pair = pair.clamp(0, 1) if sigma == 0 else pair
    return torch.cat(seen)
