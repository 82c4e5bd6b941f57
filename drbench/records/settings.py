"""What run.json says of a run's settings, from its config alone: all but what the defense and its images add. No torch.

Jobs write it, `drbench verify` compares it with what was written.
"""

from __future__ import annotations

from omegaconf import DictConfig

from drbench import config, norms, stats
from drbench.config.keys import Certify
from drbench.stats import robustness, stopping


def certification(cell: DictConfig, classes: int) -> dict:
    """Section `engine` of a certification; for a Lipschitz certificate less `options`, which its defense knows."""
    spec = cell.certify
    about = {
        "certifier": spec.kind,
        "version": stats.VERSIONS.get(spec.kind),
        "n0": config.selection_draws(cell),
        **{key: spec[key] for key in ("mode", "sigma", "n", "alpha", "block")},
        "seed": cell.run.seed,
    }
    if spec.mode != "fixed":
        about |= stopping.plan(spec.mode, spec.sigma, spec.n, spec.alpha, spec.radii, spec.give_up, spec.noise)
        about |= {"tolerance": spec.tolerance} if spec.tolerance is not None else {}
    about |= {"sigma": 0.0} if spec.kind == "lipschitz" else {}
    if spec.kind == "cascade":
        options = {"sigmas": list(spec.sigmas), "classes": classes, "p0": spec.p0}
        about |= {"protocol": spec.protocol, "options": options | stats.PROTOCOLS[spec.protocol]}
    own = {key: spec[key] for key in ("noise", "bound") if spec[key] != getattr(Certify, key)}
    own |= {"sequence": spec.sequence, "block": spec.block} if spec.sequence != Certify.sequence else {}
    about |= {"options": about.get("options", {}) | own} if own else {}
    about |= {"select": "label"} if spec.select == "label" else {}
    return about | ({"rounding": spec.rounding} if spec.rounding != "none" else {})


def attack(cell: DictConfig, randomized: bool) -> dict:
    """Section `engine` of an attack on such a defense, less the attacks themselves."""
    spec = cell.attack
    deterministic = spec.sigma == 0 and not spec.cascade and not randomized
    return {
        "version": robustness.VERSION,
        "norm": spec.norm,
        "eps": norms.number(spec.eps),
        "eps_text": str(spec.eps),
        "preset": spec.preset if spec.attacks is None else "own",
        "sigma": spec.sigma,
        "deterministic": deterministic,
        "decision": "single" if deterministic else _rule(spec),
        "decision_draws": 1 if deterministic else spec.decision_draws,
        "evaluations": 1 if deterministic else spec.evaluations,
        "select": 1 if deterministic else spec.select,
        "worst_of": spec.worst_of,
        "seed": cell.run.seed,
    }


def _rule(spec: DictConfig) -> str:
    """The decision rule in words; a cascade's names its levels."""
    levels = sorted(spec.cascade or [], reverse=True)
    return f"cascade {' > '.join(f'{level:g}' for level in levels)}" if levels else spec.decision
