"""Certification and attacks without config files, for notebooks and scripts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from drbench import norms, stats, weights
from drbench.api import Defense, DrbenchError
from drbench.attacks import presets
from drbench.attacks.evaluate import Decision
from drbench.attacks.oracle import ROWS
from drbench.attacks.parallel import in_parts
from drbench.attacks.suite import Found, Suite, check, traits
from drbench.attacks.threat import threat
from drbench.certifiers import gaussian, kinds
from drbench.certifiers.batch_size import find_batch_rows
from drbench.certifiers.batching import workers
from drbench.certifiers.noise import sampling
from drbench.data import Images
from drbench.evidence import ABSTAIN, Certificate
from drbench.jobs import build
from drbench.progress import Progress
from drbench.stats import noises, stopping
from drbench.stats.robustness import Robustness, robustness

COLUMNS = ("id", "label", "prediction", "radius", "correct")
DETAIL = {"gaussian": {"p_lower": math.nan, "radius_multiclass": 0.0}, "cascade": {"sigma": math.nan, "reason": None}}


def load_defense(name: str, images: Images, checkpoint=(), seed: int = 0, **args) -> Defense:
    """A registered defense for these images, with weights by manifest name or path, in eval mode.

    Warns where there are weights and no checkpoint: they are random.
    """
    names = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint)
    spec = DictConfig({"name": name, "args": args})
    made = build.defense(spec, images, [weights.resolve(found) for found in names], seed)
    if not names and next(made.parameters(), None) is not None:
        warnings.warn(f"defense {name!r} has random weights: expected a checkpoint, got none", stacklevel=2)
    return made


def certify(
    defense: Defense,
    images: Images | tuple[Tensor, Tensor],
    sigma: float | Sequence[float],
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    mode: str = "fixed",
    protocol: str = "sound",
    noise: str = "gaussian",
    sampler: str = "float",
    seed: int = 0,
    block: int = 100,
    batch_rows: int | None = None,
) -> pd.DataFrame:
    """Certify images and return one row per image: by Cohen's CERTIFY, or by a cascade over several noise levels.

    Parameters
    ----------
    defense : Defense
    images : Images, or a pair (x, y)
        Tensors or arrays: x (M, C, H, W) in [0, 1], y (M,) labels; ids are then positions.
    sigma : float, or sequence of float
        Noise level, pixel units; several are the scales of a cascade.
    n0, n, alpha : int, int, float
        Selection draws, estimation draws (of each scale), failure probability of each certificate.
    mode : {"fixed", "curtailed", "sequential", "hybrid"}
        Of one noise level: whether n draws are made, or at most n (see `stats.stopping`); targets are the quarters.
    protocol : {"sound", "paper_code"}
        Of a cascade: see `stats.decide_cascade`.
    noise : {"gaussian", "uniform", "laplace"}
        Of one noise level: smoothing distribution, of standard deviation sigma; radii of the last two are l1.
    sampler : {"float", "grid", "sound"}
        See `drbench.certifiers.noise`; the last two are for images on a grid, as 8-bit images are.
    seed, block : int
        Key of the random streams.
    batch_rows : int, optional
        Rows per network call; found by a short search if not given. Does not change the counts.

    Returns
    -------
    DataFrame
        Columns id, label, prediction (-1: abstained), radius (pixel units), correct, error; for one noise level
        p_lower, radius_multiclass (NaN in modes that stop early, and for other than Gaussian noise); for a cascade
        sigma (where it stopped), reason (of an abstention), and without a certificate fallback, mixed (see
        `stats.empirical`).

    Examples
    --------
    >>> import drbench
    >>> images = drbench.load_data("digits", subset="first20")
    >>> defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    >>> frame = drbench.certify(defense, images, sigma=0.25)
    >>> frame = drbench.certify(defense, images, sigma=[0.25, 0.5, 1.0])
    """
    sigma = sigma.tolist() if hasattr(sigma, "tolist") else sigma  # of numpy or torch
    scales = list(sigma) if isinstance(sigma, Iterable) and not isinstance(sigma, str) else [sigma]
    if not all(isinstance(level, Real) and level > 0 for level in scales):
        raise DrbenchError(f"expected noise levels sigma > 0, numbers in pixel units, got {sigma!r}")
    engine = {"n0": n0, "n": n, "alpha": alpha, "seed": seed, "block": block}
    engine |= (
        {"certifier": "gaussian", "sigma": sigma} if isinstance(sigma, Real) else _cascade(defense, scales, protocol)
    )
    if mode != "fixed":
        if mode not in stats.MODES or not isinstance(sigma, Real):
            raise DrbenchError(f"expected mode fixed, or for one sigma {', '.join(stats.MODES)}; got {mode!r}")
        engine |= stopping.plan(mode, sigma, n, alpha, noise=noise)
    if noise != "gaussian":
        if noise not in noises.NOISES or not isinstance(sigma, Real):
            raise DrbenchError(f"expected noise gaussian, or for one sigma {', '.join(noises.NOISES)}; got {noise!r}")
        engine["options"] = engine.get("options", {}) | {"noise": noise}
    stats.check_budget(n, alpha / len(scales))
    stats.check_reach(engine)
    images = _images(images, defense)
    engine |= {"sampling": sampling(sampler, images, noise)} if sampler != "float" else {}
    defense.eval()
    for level in scales:
        defense.require(level)
    gaussian.check_images(defense, images.x)
    gaussian.check_draws(n0, n, block)
    if batch_rows is None:
        batch_rows = find_batch_rows(defense, max(scales), len(images) * (n0 + n) // workers(defense.device))
    observations = kinds.observe(engine, defense, images.x, images.ids, images.y.tolist(), batch_rows=batch_rows)
    found: dict[int, dict] = {}  # images may be settled in another order than they were given
    with Progress(f"{type(defense).__name__} sigma {', '.join(map(str, scales))}", len(images), "images") as bar:
        for seen in observations:
            found[seen.index] = _tidy(images.ids[seen.index], int(images.y[seen.index]), seen, engine)
            bar.advance(lambda: f"certified {sum(row['correct'] for row in found.values()) / len(found):.3f} at r=0")
    free = stats.Empirical._fields[1:] if engine["certifier"] == "cascade" else ()
    return pd.DataFrame(
        [found[i] for i in sorted(found)], columns=[*COLUMNS, *DETAIL[engine["certifier"]], *free, "error"]
    )


class AttackResult(NamedTuple):
    """What `attack` found.

    frame : one row per image; examples : (M, C, H, W) adversarial images; robust, clean : accuracies with intervals,
    after the attack and of the clean images; notes : odd things that happened, e.g. zero gradients.
    """

    frame: pd.DataFrame
    examples: Tensor
    robust: Robustness
    clean: Robustness
    notes: dict[str, int]

    def __repr__(self) -> str:
        values = self._asdict() | {"frame": self.frame.shape, "examples": tuple(self.examples.shape)}
        return f"AttackResult({', '.join(f'{name}={value}' for name, value in values.items())})"


def attack(
    defense: Defense,
    images: Images | tuple[Tensor, Tensor],
    *,
    norm: str = "linf",
    eps: float | str = "8/255",
    preset: str = "standard",
    attacks: Sequence[dict] | None = None,
    sigma: float = 0.0,
    decision: str = "single",
    decision_draws: int = 1,
    evaluations: int = 100,
    select: int = 50,
    worst_of: int = 10,
    sources: Mapping[str, Defense] | None = None,
    seed: int = 0,
    batch_rows: int = ROWS,
) -> AttackResult:
    """Attack images and evaluate what is found on fresh randomness.

    Parameters
    ----------
    defense : Defense
    images : Images, or a pair (x, y)
        As for `certify`.
    norm, eps : {"linf", "l2", "l1"}, float or str
        Allowed perturbations, pixel units; "8/255" is a number too.
    preset : {"smoke", "fast", "standard", "thorough", "autoattack"}
    attacks : sequence of dict, optional
        Instead of the preset, e.g. [{"attack": "pgd", "loss": "margin", "steps": 100, "draws": 16}].
    sigma : float
        Noise at which the defense is deployed, pixel units.
    decision, decision_draws : {"single", "majority", "mean_prob"}, int
        How the deployed defense turns draws into an answer.
    evaluations, select : int
        Of a randomised defense: answers to each image at the end; draws that choose among candidates before.
    worst_of : int
        M of worst-of-M.
    sources : mapping, optional
        Other defenses by name, to transfer from; every preset tries them all, own attacks name them as
        {"attack": "pgd", "view": "from NAME"}.
    seed, batch_rows : int
        Key of the random streams; rows of one call, which do not change the outcome.

    Examples
    --------
    >>> import drbench
    >>> images = drbench.load_data("digits", subset="first20")
    >>> defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    >>> found = drbench.attack(defense, images, norm="linf", eps=1 / 16)
    >>> found.robust.average.value, found.clean.average.value
    """
    images = _images(images, defense)
    gaussian.check_images(defense, images.x)
    if not (isinstance(sigma, Real) and sigma >= 0):
        raise DrbenchError(f"expected a noise level sigma >= 0 in pixel units, got {sigma!r}")
    deterministic = sigma == 0 and not defense.randomized
    _check_evaluation(attacks, evaluations, select, worst_of, deterministic)
    names = list(sources or {})
    planned = presets.preset(preset, norm, **traits(defense, sigma)) + presets.transfer(preset, norm, names)
    members = planned if attacks is None else [presets.member(**each) for each in attacks]
    suite = Suite(
        defense.eval(), threat(norm, norms.number(eps)), [check(each, norm, names) for each in members], sigma,
        Decision(decision, decision_draws), evaluations, select, seed, batch_rows, sources or {},
    )  # fmt: skip
    found: list[Found] = []
    with Progress(f"{type(defense).__name__} {norm} {eps}", len(images), "images") as bar:
        for part, outcomes in in_parts(suite, images.x, images.y, images.ids, range(len(images))):
            found += outcomes
            for _ in part:
                bar.advance(str)
    labels, seen = images.y.tolist(), [each.evidence for each in found]
    rows = [
        (name, label, 1 - e.clean.wrong(label) / e.clean.count, 1 - e.adversarial.wrong(label) / e.adversarial.count,
         e.kept, e.distance)
        for name, label, e in zip(images.ids, labels, seen, strict=True)
    ]  # fmt: skip
    return AttackResult(
        pd.DataFrame(rows, columns=["id", "label", "clean", "robust", "attack", "distance"]),
        torch.stack([each.example for each in found]),
        robustness([e.adversarial for e in seen], labels, worst_of),
        robustness([e.clean for e in seen], labels, worst_of),
        dict(suite.notes),
    )


def _check_evaluation(attacks, evaluations: int, select: int, worst_of: int, deterministic: bool) -> None:
    """Raise `DrbenchError` where an accuracy would not be what it is called."""
    if attacks is not None and not attacks:
        raise DrbenchError("expected at least one attack, got none: clean accuracy would be called robust")
    if not all(isinstance(each, Mapping) and isinstance(each.get("attack"), str) for each in attacks or []):
        raise DrbenchError(f'expected attacks such as {{"attack": "pgd", "steps": 100}}, got {attacks}')
    positive = all(isinstance(count, Integral) and count > 0 for count in (evaluations, select, worst_of))
    if not positive or (worst_of > evaluations and not deterministic):
        raise DrbenchError(
            "expected evaluations, select and worst_of > 0, and worst_of at most evaluations, got "
            f"{evaluations!r}, {select!r} and {worst_of!r}"
        )


def _images(images: Images | tuple[Tensor, Tensor], defense: Defense) -> Images:
    if isinstance(images, Images):
        return images
    if not isinstance(images, tuple | list) or len(images) != 2:
        shape = f" of shape {tuple(images.shape)}" if isinstance(images, Tensor) else ""
        raise DrbenchError(f"expected Images or a pair (x, y), images and labels, got {type(images).__name__}{shape}")
    try:
        x, y = (torch.as_tensor(part).detach().cpu() for part in images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DrbenchError(f"expected a pair (x, y) of tensors or arrays of numbers: {error}") from error
    y = y.reshape(-1)
    if (y != y.long()).any():
        raise DrbenchError(f"expected labels that are whole numbers, got {float(y[y != y.long()][0]):g}")
    return Images(x.float(), y.long(), tuple(range(len(x))), "given", "all", defense.num_classes)


def _cascade(defense: Defense, scales: list[float], protocol: str) -> dict:
    if protocol not in stats.PROTOCOLS:
        raise DrbenchError(f"unknown protocol {protocol!r}; available: {', '.join(stats.PROTOCOLS)}")
    stats.check_cascade(scales, p0=0.5)
    options = {"sigmas": scales, "p0": 0.5, "classes": defense.num_classes, **stats.PROTOCOLS[protocol]}
    return {"certifier": "cascade", "options": options}


def _tidy(image_id, label: int, seen: gaussian.Observation, engine: dict) -> dict:
    found = stats.decide_as(engine, seen.evidence) if seen.evidence else Certificate(ABSTAIN, 0.0)
    free = stats.empirical(seen.evidence, found) if seen.evidence else None
    detail = dict(DETAIL[engine["certifier"]])
    if {"mode", "noise"} & set(engine.get("options", {})):
        detail["radius_multiclass"] = math.nan
    return {
        "id": image_id,
        "label": label,
        "prediction": found.prediction,
        "radius": found.radius,
        "correct": found.prediction == label,
        **{name: found.detail.get(name, default) for name, default in detail.items()},
        **(free._asdict() if free else {}),
        "error": seen.error,
    }
