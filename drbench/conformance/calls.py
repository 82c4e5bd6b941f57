"""The contract of one `logits` call: values, state, randomness and rows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from threading import Event, get_ident

import torch
from torch import Tensor

from drbench.api import Defense
from drbench.conformance.case import TOLERANCE, Case, ends, expect, gaps, global_seed, global_states, scores
from drbench.draws import Draws
from drbench.errors import DrbenchError

PATIENCE = 5  # seconds for the other call: one that waits for a lock of the held call, or failed, never comes

# ---- values ------------------------------------------------------------------------------------------------


def check_shape_dtype(case: Case) -> None:
    """(B, K) float32, finite, for B = 8 and B = 1, at every declared level."""
    defense = case.fresh()
    for sigma in defense.sigmas:
        for rows in (8, 1):
            logits = scores(defense, case.noisy(rows, sigma), sigma)
            expect(
                isinstance(logits, Tensor),
                f"sigma {sigma:g}: expected logits, a tensor, got {type(logits).__name__}: return the scores, and "
                "nothing beside them",
            )
            wanted, got = ((rows, case.num_classes), torch.float32), (tuple(logits.shape), logits.dtype)
            expect(got == wanted, f"sigma {sigma:g}: expected logits of (shape, dtype) {wanted}, got {got}")
            bad = int((~logits.isfinite()).any(1).sum())
            expect(
                bad == 0,
                f"sigma {sigma:g}: {bad} of {rows} rows hold NaN or infinite logits: find the overflow, log(0) or 0/0",
            )
    if 0 in defense.sigmas:
        black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, *case.shape)
        bad = int((~scores(defense, black_and_white, 0.0).isfinite()).any(1).sum())
        expect(
            bad == 0,
            f"sigma 0: {bad} of 2 flat images, black and white, give NaN or infinite logits: look for a norm or a "
            "deviation of the image in a denominator, and for log(0)",
        )


def check_logits_not_probabilities(case: Case) -> None:
    """Rows do not look like softmax outputs, whose margins starve attacks of gradient."""
    defense = case.fresh()
    for sigma in ends(defense):
        logits = scores(defense, case.noisy(8, sigma), sigma)
        looks = bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())
        expect(
            not looks,
            f"sigma {sigma:g}: every row is non-negative and sums to 1, like softmax outputs; return "
            "unnormalised log-scores (drop the softmax, or take its log)",
        )


def check_undeclared_sigma(case: Case) -> None:
    """A level that is not accepted is refused with `DrbenchError`, which names the declared levels."""
    defense = case.fresh()
    levels = defense.sigmas
    expect(
        not defense.accepts(-0.1),
        "accepts(-0.1) is true, but a noise level cannot be negative: `accepts` must say which levels are declared",
    )
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    for sigma in (-0.1, *middles, 2 * levels[-1] + 0.1):
        if defense.accepts(sigma):
            continue
        for name in ("logits", "attack_logits"):
            message = _refusal(getattr(defense, name), case.noisy(1, 0.0), sigma)
            expect(
                message is not None,
                f"{name} at the undeclared level {sigma:g}: expected DrbenchError, got an answer; begin "
                "`logits` with `self.require(sigma)`",
            )
            expect(
                all(f"{level:g}" in message for level in levels),
                f"{name} at the undeclared level {sigma:g}: expected DrbenchError that names the declared "
                f"levels, got {message!r}; begin `logits` with `self.require(sigma)`",
            )


def _refusal(call: Callable, z: Tensor, sigma: float) -> str | None:
    try:
        with torch.inference_mode():
            call(z, sigma, Draws.seeded(0, len(z)))
    except DrbenchError as error:
        return str(error)
    except Exception as error:  # a crash is no refusal, and its text seldom names the levels
        return f"{type(error).__name__}: {error}"
    return None


# ---- state and randomness ----------------------------------------------------------------------------------


def check_pure(case: Case) -> None:
    """A call changes neither its input nor the defense, and the next identical call gives the same logits."""
    defense = case.fresh()
    for sigma in ends(defense):
        z, calls = case.noisy(8, sigma), []
        before, state = z.clone(), {name: value.clone() for name, value in defense.state_dict().items()}
        modes, kept = [module.training for module in defense.modules()], []
        for _ in range(2):
            # The same global seed for both calls: a use of the global generators is for `rng_only` to report.
            with global_seed(0), torch.inference_mode():
                calls.append(defense.logits(z, sigma, Draws.seeded(0, len(z))).clone())
            kept.append(_containers(defense))
        expect(
            torch.equal(z, before),
            f"sigma {sigma:g}: `logits` edits its input in place: clone it, or avoid `*_` and `+=`",
        )
        changed = [name for name, value in defense.state_dict().items() if not torch.equal(value, state[name])]
        expect(
            not changed,
            f"sigma {sigma:g}: `logits` changes the state entries {', '.join(changed)}: a call may not "
            "train (BatchNorm in training mode? a running average?)",
        )
        expect(
            modes == [module.training for module in defense.modules()],
            f"sigma {sigma:g}: `logits` switches modules between train and eval mode: leave the mode to the caller",
        )
        gap = float(gaps(calls[1], calls[0]).max())
        expect(
            gap <= TOLERANCE,
            f"sigma {sigma:g}: a second identical call differs by {gap:.2g}: do not count calls or keep "
            "results between them",
        )
        growing = [name for name, size in kept[1].items() if size != kept[0].get(name)]
        expect(
            not growing,
            f"sigma {sigma:g}: {', '.join(growing)} grows with every call, and a run makes millions: a call keeps "
            "nothing in the defense",
        )


def _containers(defense: Defense) -> dict[str, int]:
    """The sizes of all lists, dicts and the like that are attributes of a module. A table for a level may be kept."""
    return {
        f"{name}.{attribute}".lstrip("."): len(value)
        for name, module in defense.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, list | dict | set | deque)
    }


def check_side_by_side(case: Case) -> None:
    """A call that is overtaken by another one, in another thread, gives the same logits: the engine works like this."""
    defense = case.fresh()
    for sigma in ends(defense):
        z, other = case.noisy(8, sigma), case.noisy(8, sigma).flip(0)
        alone = [scores(defense, images, sigma) for images in (z, other)]
        with _Overtaken(defense) as overtaken, ThreadPoolExecutor(1) as thread:
            first = thread.submit(overtaken.call, lambda sigma=sigma, z=z: scores(defense, z, sigma))
            overtaken.wait_until_inside(first)
            second = scores(defense, other, sigma)
            overtaken.go_on.set()
            gap = max(float(gaps(a, b).max()) for a, b in zip((first.result(), second), alone, strict=True))
        expect(
            gap <= TOLERANCE,
            f"sigma {sigma:g}: two calls at the same time change each other's logits by {gap:.2g}: keep nothing of a "
            "call in the defense (`self.z = z`); pass it on as an argument",
        )


class _Overtaken:
    """Holds the first network call of one thread until `go_on` is set."""

    def __init__(self, defense: Defense):
        self.inside, self.go_on, self.thread = Event(), Event(), None
        self._hooks = [network.register_forward_pre_hook(self._hold) for network in defense.networks().values()]

    def _hold(self, module, args) -> None:
        if get_ident() == self.thread and not self.inside.is_set():
            self.inside.set()
            self.go_on.wait(PATIENCE)

    def call(self, work: Callable) -> Tensor:
        self.thread = get_ident()
        return work()

    def wait_until_inside(self, future: Future) -> None:
        while not (future.done() or self.inside.wait(0.01)):
            pass

    def __enter__(self) -> _Overtaken:
        return self

    def __exit__(self, *exception) -> None:
        self.go_on.set()
        for hook in self._hooks:
            hook.remove()


def check_rng_only(case: Case) -> None:
    """The same `draws` give the same logits under any global seed; global generators are not touched."""
    defense = case.fresh()
    for sigma in ends(defense):
        z, outputs = case.noisy(8, sigma), []
        for seed in (1, 2, 3):
            with global_seed(seed):
                before = global_states()
                outputs.append(scores(defense, z, sigma))
                touched = [name for name, state in global_states().items() if state != before[name]]
            expect(
                not touched,
                f"sigma {sigma:g}: `logits` uses the global generator of {' and '.join(touched)}: take all "
                "randomness from `draws` (draws.randn(*z.shape), not torch.randn_like)",
            )
        gap = max(float(gaps(output, outputs[0]).max()) for output in outputs)
        expect(
            gap <= TOLERANCE,
            f"sigma {sigma:g}: the same draws give logits that differ by {gap:.2g}: some randomness does "
            "not come from `draws` (an own generator? the clock? os.urandom?)",
        )


def check_randomized_flag(case: Case) -> None:
    """Two seeds of `draws` give different logits at some level if and only if `randomized` is declared."""
    defense = case.fresh()
    differing = [sigma for sigma in defense.sigmas if _varies(defense, case.noisy(8, sigma), sigma)]
    if defense.randomized:
        expect(
            bool(differing),
            "`randomized` is True, but two seeds of `draws` give the same logits at every declared level: "
            "declare randomized = False",
        )
    levels = ", ".join(f"{sigma:g}" for sigma in differing)
    expect(
        defense.randomized or not differing,
        f"`randomized` is False, but two seeds of `draws` give different logits at sigma {levels}: declare "
        "randomized = True",
    )


def _varies(defense: Defense, z: Tensor, sigma: float) -> bool:
    with global_seed(0):
        first = scores(defense, z, sigma, 0)
    with global_seed(0):
        return bool((gaps(scores(defense, z, sigma, 1), first) > 1e-6).any())


# ---- rows --------------------------------------------------------------------------------------------------


def check_rows_independent(case: Case) -> None:
    """A row and its draws give the same logits alone and in a batch; rows use independent draws."""
    defense = case.fresh()
    for sigma in ends(defense):
        z, draws = case.noisy(8, sigma), Draws.seeded(0, 8)
        together = scores(defense, z, sigma, draws)
        alone = torch.cat([scores(defense, z[i : i + 1], sigma, draws[i : i + 1]) for i in range(len(z))])
        change, row = gaps(together, alone).max(0)
        expect(
            float(change) <= TOLERANCE,
            f"sigma {sigma:g}: row {int(row)} changes by {float(change):.2g} when its neighbours change: do "
            "not share statistics or draws over the batch (BatchNorm in training mode? a batch mean? one "
            "draw for all rows?)",
        )
        if _varies(defense, z, sigma):
            _expect_independent_draws(case, defense, sigma)


def _expect_independent_draws(case: Case, defense: Defense, sigma: float) -> None:
    image, rows, repeats = case.noisy(1, sigma), 8, 32
    spread = scores(defense, image.repeat(64, 1, 1, 1), sigma).std(0).max()
    expect(
        float(spread) > 0,
        f"sigma {sigma:g}: 64 copies of one image in one batch get the same logits: each row needs its own "
        "draws, draws.randn(len(z), ...)",
    )
    values = torch.stack([scores(defense, image.repeat(rows, 1, 1, 1), sigma, seed) for seed in range(repeats)])
    values = (values - values.mean((0, 1))) / values.std((0, 1)).clamp_min(1e-12)
    pairs = rows * (rows - 1)
    correlation = float((((values.sum(1) ** 2 - (values**2).sum(1)) / pairs).mean(0)).abs().max())
    # The product of two independent standardised rows has mean 0, variance 1; each pair is counted twice.
    limit = 5 * math.sqrt(2 / pairs / repeats)
    expect(
        correlation <= limit,
        f"sigma {sigma:g}: rows of one batch correlate by {correlation:.2f} (limit {limit:.2f}): they share "
        "a draw; votes must be independent, so ask `draws` for numbers per row",
    )
