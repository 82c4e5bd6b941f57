"""What the values of a benchmark file have to fulfil beyond their types."""

from __future__ import annotations

import itertools

from omegaconf import DictConfig, OmegaConf

from drbench import norms
from drbench.attacks.presets import PRESETS
from drbench.config.keys import OWN_KEYS, Certify
from drbench.errors import DrbenchError

PROTOCOLS = ("sound", "paper_code")
LEAST = {  # key -> its smallest value; null, where it is allowed, is none
    "certify.n0": 1, "certify.n": 1, "certify.block": 1,
    "attack.evaluations": 1, "attack.select": 1, "attack.worst_of": 1, "attack.decision_draws": 1,
    "attack.audit": 0, "attack.probe": 0, "attack.sigma": 0,
    "run.threads": 1,
}  # fmt: skip
MAY_BE_OPEN = ("defense.args.", "train.recipe.")  # nothing reads these before defense or training are made
CHOICES = {
    "task": ("certify", "attack", "train"),
    "certify.kind": tuple(OWN_KEYS),
    "certify.mode": ("fixed", "curtailed", "sequential", "hybrid"),
    "certify.select": ("votes", "label"),
    "certify.sequence": ("e-process", "union"),
    "certify.noise": ("gaussian", "uniform", "laplace"),
    "certify.sampler": ("float", "grid", "sound"),
    "certify.bound": ("clopper-pearson", "randomized"),
    "certify.rounding": ("none", "significant3", "decimal4"),
    "run.executor": ("inline", "processes", "ray", "slurm"),
    "run.precision": ("float32", "bfloat16", "float16"),
}


def validate(path, config: DictConfig) -> None:
    """Raise `DrbenchError` for the first mistake in a resolved config of the file at `path`."""
    missing = [key for key in OmegaConf.missing_keys(config) if not key.startswith(MAY_BE_OPEN)]
    if missing:
        raise DrbenchError(f"{path}: expected a value for {', '.join(sorted(missing))}")
    for key in ("certify.radii", "certify.sigmas", "attack.cascade"):
        values = OmegaConf.select(config, key) or []
        if not all(isinstance(value, float) for value in values):  # omegaconf lets lists of lists pass
            raise DrbenchError(f"{path}: {key}: expected a list of numbers, got {values}")
    chosen = ((key, known, OmegaConf.select(config, key)) for key, known in CHOICES.items())
    problems = [(value not in known, f"{key} is {', '.join(known)}, got {value!r}") for key, known, value in chosen]
    given = ((key, least, OmegaConf.select(config, key)) for key, least in LEAST.items())
    problems += [(value is not None and not value >= least, f"{key} >= {least}, got {value}")
                 for key, least, value in given]  # fmt: skip
    problems += [(config.task == "train" and config.train is None, "task train needs the section train")]
    problems += _certify_problems(config.certify) + _cascade_problems(config.certify) + _run_problems(config.run)
    problems += _attack_problems(config.attack) if config.task == "attack" else []
    for wrong, expected in problems:
        if wrong:
            raise DrbenchError(f"{path}: expected: {expected}")


def _certify_problems(certify: DictConfig) -> list[tuple[bool, str]]:
    return [
        (certify.mode != "fixed" and certify.kind != "gaussian", f"kind {certify.kind} has mode fixed only"),
        (not 0 < certify.give_up < 1, f"certify.give_up is in (0, 1), got {certify.give_up}"),
        (min(certify.radii or [0.0]) < 0, f"certify.radii are target radii >= 0, got {certify.radii}"),
        (not certify.sigma > 0 and certify.kind != "lipschitz",
         f"certify.sigma is a noise level > 0 in pixel units, got {certify.sigma}"),
        (not 0 < certify.alpha < 1, f"certify.alpha is in (0, 1), got {certify.alpha}"),
        (not 0 < (certify.tolerance or 0.5) < 1, f"certify.tolerance is a share in (0, 1), got {certify.tolerance}"),
        *((certify[key] != getattr(Certify, key) and not fits, f"certify.{key} needs certify.{what}")
          for key, fits, what in _needs(certify)),
    ]  # fmt: skip


def _needs(certify: DictConfig) -> list[tuple[str, bool, str]]:
    """Keys that only mean something, or are only sound, beside others: key, whether these are so, which they are."""
    single, early = certify.kind == "gaussian", certify.mode != "fixed"
    return [
        ("select", single, "kind: gaussian"),
        ("noise", single, "kind: gaussian"),
        ("bound", single and not early and certify.noise == "gaussian", "kind, noise: gaussian and mode: fixed"),
        ("sequence", certify.mode in ("sequential", "hybrid"), "mode: sequential or hybrid"),
        ("tolerance", early, "mode: curtailed, sequential or hybrid"),
        ("sampler", certify.sampler != "sound" or certify.noise == "gaussian", "noise: gaussian"),
    ]


def _cascade_problems(certify: DictConfig) -> list[tuple[bool, str]]:
    if certify.kind != "cascade":
        given = [key for key in OWN_KEYS["cascade"] if certify[key] != getattr(Certify, key)]
        return [(bool(given), f"certify.{', '.join(given)} only with certify.kind: cascade")]
    scales, sigma, known = list(certify.sigmas or []), certify.sigma, " or ".join(PROTOCOLS)
    rising = all(a < b for a, b in itertools.pairwise([0.0, *scales]))
    return [
        (len(scales) < 2 or not rising, f"certify.sigmas are two or more rising noise levels > 0, got {scales}"),
        (sigma not in (Certify.sigma, max(scales, default=sigma)),
         f"kind cascade takes certify.sigmas, not certify.sigma, got {sigma}"),
        (not 0.5 <= certify.p0 < 1, f"certify.p0 is in [1/2, 1), below two classes could halt, got {certify.p0}"),
        (certify.protocol not in PROTOCOLS, f"certify.protocol is {known}, got {certify.protocol!r}"),
        (certify.protocol != "sound" and certify.p0 != 0.5, "protocol paper_code has certify.p0 = 0.5"),
    ]  # fmt: skip


def _run_problems(run: DictConfig) -> list[tuple[bool, str]]:
    counts = ("batch_rows", "workers")
    return [
        (run.timeout is not None and not run.timeout > 0, f"run.timeout > 0 seconds, or null, got {run.timeout}"),
        (run.cuda_graphs and not run.compile, "run.cuda_graphs needs run.compile"),
        *((run[key] != "auto" and not (type(run[key]) is int and run[key] > 0),
           f"run.{key} is auto or > 0, got {run[key]!r}") for key in counts),
    ]  # fmt: skip


def _attack_problems(attack: DictConfig) -> list[tuple[bool, str]]:
    norms.check(attack.norm, norms.number(attack.eps))
    listed = attack.attacks
    named = listed is None or all(isinstance(each, DictConfig) and "attack" in each for each in listed)
    sources = (attack.sources or {}).values()
    return [
        (any(not isinstance(each, DictConfig) or not {"name"} <= set(each) <= {"name", "args", "checkpoint"}
             for each in sources), f"attack.sources maps names to {{name, args, checkpoint}}, got {attack.sources}"),
        (attack.preset not in PRESETS, f"attack.preset is {', '.join(PRESETS)}, got {attack.preset!r}"),
        (not named or listed == [], f"attack.attacks is a list of mappings with a key attack each, got {listed}"),
        (attack.cascade is not None and (attack.sigma != 0 or attack.decision != "single"),
         "attack.cascade is the decision rule: attack.sigma stays 0 and attack.decision single"),
        (attack.worst_of > attack.evaluations,
         f"attack.worst_of is at most attack.evaluations, got {attack.worst_of} of {attack.evaluations}"),
    ]  # fmt: skip
