"""Benchmark files: flat YAML recipes, checked against dataclasses; `extends` one parent, `sweep` over lists.

Every key maps to a field below; `defense.args.*` to keyword arguments of the defense. An unknown key or a wrong type
is an error that names the key. Nothing in a file chooses code: names are looked up in `drbench.registry`. `???` is the
value of what a paper did not publish: such a file can be shown, and runs when the command line gives the value.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drbench import norms, protocols
from drbench.attacks.presets import PRESETS
from drbench.errors import DrbenchError, did_you_mean
from drbench.recipe import Recipe


@dataclass
class Data:
    name: str = "digits"
    split: str = "test"
    subset: str = "all"  # all | firstN | everyN | AtoB | randomNseedS | ids:FILE | a name of drbench/data/subsets.yaml
    root: str | None = None  # folder of the data set's files; null: its sub-folder of DRBENCH_DATA
    preprocessing: str | None = None  # ImageNet: how photographs become squares; null: resize256-crop224


@dataclass
class DefenseSpec:
    name: str = "???"
    variant: str = ""  # printed in tables beside the name
    args: dict[str, Any] = field(default_factory=dict)
    checkpoint: list[str] = field(default_factory=list)  # names, or files, of weights, see `drbench.weights`


@dataclass
class Certify:
    kind: str = "gaussian"  # gaussian | cascade | lipschitz
    mode: str = "fixed"  # fixed | curtailed | sequential | hybrid, see `drbench.stopping`
    radii: list[float] | None = None  # targets of the other modes, pixel units; null: 0, 0.25, ... to the ceiling
    give_up: float = 0.01  # sequential, hybrid: a target is given up when n draws would reach it with less chance
    sigma: float = 0.5  # pixel units; of a cascade its largest scale, filled in
    sigmas: list[float] | None = None  # cascade: scales, increasing
    p0: float = 0.5  # cascade: the first scale with a class above p0 decides
    protocol: str = "sound"  # cascade: sound | paper_code, see `stats.decide_cascade`
    n0: int = 100  # selection draws
    n: int = 100_000  # estimation draws; lipschitz: calls whose logits are averaged
    alpha: float = 0.001  # failure probability of each certificate
    block: int = 100  # draws per random stream; part of the identity of the noise
    select: str = "votes"  # votes: class by n0 draws | label: the true class is tested, without selection draws
    sequence: str = "e-process"  # sequential, hybrid: e-process | union, see `stats.decide_gaussian`
    tolerance: float | None = None  # other modes than fixed: stop all images when no column can move by more; a share
    noise: str = "gaussian"  # gaussian | uniform | laplace, of standard deviation sigma, see `drbench.noises`
    sampler: str = "float"  # float | grid | sound, see `drbench.certifiers.noise`
    bound: str = "clopper-pearson"  # clopper-pearson | randomized, see `stats.randomized_upper`
    rounding: str = "none"  # none | significant3 | decimal4: radii as the protocol's program prints them


@dataclass
class Attack:
    norm: str = "linf"  # linf | l2 | l1 | stadv
    eps: Any = "8/255"  # pixel units, a number or a fraction; of stadv the displacement in pixels
    preset: str = "standard"  # smoke | fast | standard | thorough | autoattack
    attacks: list[Any] | None = None  # instead of the preset: [{attack: pgd, loss: margin, steps: 100, draws: 16}, ...]
    sigma: float = 0.0  # noise at which the defense is deployed, pixel units; 0: clean images
    decision: str = "single"  # single | majority | mean_prob
    decision_draws: int = 1  # of one answer
    evaluations: int = 100  # answers to each image in the final evaluation, of a randomised defense
    select: int = 50  # draws that choose among candidates, of a randomised defense
    cascade: list[float] | None = None  # noise levels of a cascade, deployed with `decision_draws` votes at each
    sources: dict[str, Any] | None = (
        None  # other defenses to transfer from: {cnn: {name: undefended, checkpoint: [..]}}
    )
    audit: int | None = None  # images on which attacks are compared, to check them; null: by preset
    probe: int | None = None  # images on which the defense is probed, cheaply; null: 8, if attacks are compared on any
    worst_of: int = 10  # tries of the attacker in worst-of-M; at most `evaluations`


@dataclass
class Train:
    checkpoint: str = "???"  # name under which the weights are written
    start: list[str] = field(default_factory=list)  # weights to start from; none: from scratch
    recipe: Recipe = field(default_factory=Recipe)


@dataclass
class Run:
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch_rows: Any = "auto"  # rows per network call; auto: found by a short measured search
    threads: int | None = None  # CPU threads; null: torch's default
    channels_last: bool = False
    precision: str = "float32"  # float32 | bfloat16 | float16: autocast of the networks
    compile: bool = False  # torch.compile of the networks
    cuda_graphs: bool = False  # with compile, on CUDA: replayed as graphs
    executor: str = "inline"  # inline | processes | ray | slurm: who does the work, see `drbench.executors`
    workers: Any = "auto"  # of the other executors; auto: one for each accelerator, else one for each core
    timeout: float | None = None  # seconds without an answer after which a worker is replaced; null: never
    slurm: dict[str, Any] = field(default_factory=dict)  # parameters of the jobs, as submitit names them
    fsync: bool = True  # every row is on disk before the next
    listeners: list[str] = field(default_factory=list)  # tensorboard | wandb | mlflow | of other packages


@dataclass
class Config:
    """One benchmark file, resolved."""

    title: str = ""
    protocol: str = ""  # constants of a paper's evaluation, see `drbench.protocols`; keys of this file win
    task: str = "certify"  # certify | attack | train
    data: Data = field(default_factory=Data)
    defense: DefenseSpec = field(default_factory=DefenseSpec)
    certify: Certify = field(default_factory=Certify)
    attack: Attack = field(default_factory=Attack)
    train: Train | None = None
    run: Run = field(default_factory=Run)
    sweep: dict[str, Any] = field(default_factory=dict)


SECTIONS = {"certify": Certify, "data": Data, "run": Run}
PROTOCOLS = ("sound", "paper_code")
UNREAD = {"attack": "certify", "certify": "attack"}  # task -> the section that it does not look at
# What does not change the numbers that are being estimated, and so is not part of a run's identity.
NOT_IDENTITY = (
    "title",
    "protocol",
    "task",
    "train",
    "sweep",
    "data.root",
    "run.device",
    "run.batch_rows",
    "run.threads",
    "run.channels_last",
    "run.compile",
    "run.cuda_graphs",
    "attack.audit",
    "attack.probe",
    "run.executor",
    "run.workers",
    "run.timeout",
    "run.slurm",
    "run.fsync",
    "run.listeners",
)
# Keys that are part of the identity only if they are not at their default: runs from before them keep theirs.
LATER = {
    "certify": ("select", "sequence", "tolerance", "noise", "sampler", "bound", "rounding"),
    "data": ("preprocessing",),
    "run": ("precision",),
}
# certify.kind -> keys of `certify` that belong to it alone; those of the other kinds are not part of its identity.
OWN_KEYS = {"gaussian": ("sigma",), "cascade": ("sigmas", "p0", "protocol"), "lipschitz": ()}
ADAPTIVE_KEYS = ("radii", "give_up")  # belong to all modes but fixed
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


def load(path: str | Path, overrides: Sequence[str] = ()) -> list[DictConfig]:
    """Read a benchmark file, apply `key=value` overrides, and expand its sweep: one resolved config per cell."""
    merged = _merge(Path(path), overrides)
    sweep = OmegaConf.to_container(merged.sweep)
    # An override of a swept key replaces the sweep: the user named one value.
    named = [override.partition("=")[0] for override in overrides]
    sweep = {key: _unnamed(key, values, named) for key, values in sweep.items() if key not in named}
    merged.sweep = {}
    cells, known = [], []
    for values in itertools.product(*(_listed(path, key, values) for key, values in sweep.items())):
        cell = merged.copy()
        for key, value in zip(sweep, values, strict=True):
            _guarded(
                path,
                lambda cell=cell, key=key, value=value: OmegaConf.update(
                    cell, key, value, merge=isinstance(value, dict)
                ),
            )
        _validate(path, cell)
        if cell.task != "attack":
            cell.certify.sigma = levels(cell)[0]
        # An attack has no draws to certify, so that noise levels of `certify`, swept, would be one attack again.
        asked = {key: value for key, value in OmegaConf.to_container(cell).items() if key != UNREAD.get(cell.task)}
        if asked not in known:
            known.append(asked)
            cells.append(cell)
    return cells


def levels(config: DictConfig) -> list[float]:
    """Noise levels at which the defense is asked, in the order in which they are tried."""
    if config.task == "attack":
        return sorted(config.attack.cascade, reverse=True) if config.attack.cascade else [config.attack.sigma]
    if config.certify.kind == "lipschitz":
        return [0.0]
    return sorted(config.certify.sigmas, reverse=True) if config.certify.kind == "cascade" else [config.certify.sigma]


def selection_draws(config: DictConfig) -> int:
    """Noisy draws that select the class of an image: none where it is named in advance, or not voted for."""
    return config.certify.n0 if config.certify.kind != "lipschitz" and config.certify.select == "votes" else 0


def draws(config: DictConfig) -> int:
    """Noisy draws of an image at each noise level, at most."""
    return selection_draws(config) + config.certify.n


def identity(config: DictConfig, checkpoints: Sequence[str]) -> str:
    """Hash of everything that changes the numbers of a run: its config and the hashes of its weights."""
    plain = OmegaConf.to_container(config)
    others = [UNREAD.get(config.task, "attack")]
    plain["attack"] = {key: value for key, value in plain["attack"].items() if value is not None}
    plain["attack"]["eps"] = norms.number(config.attack.eps)
    others += [f"certify.{key}" for kind, keys in OWN_KEYS.items() if kind != config.certify.kind for key in keys]
    others += [f"certify.{key}" for key in ADAPTIVE_KEYS if config.certify.mode == "fixed"]
    others += [f"{part}.{key}" for part, keys in LATER.items() for key in keys
               if plain[part][key] == getattr(SECTIONS[part], key)]  # fmt: skip
    for key in (*NOT_IDENTITY, *others):
        *parents, last = key.split(".")
        place = plain
        for parent in parents:
            place = place.get(parent, {})
        place.pop(last, None)
    text = json.dumps({"config": plain, "checkpoints": list(checkpoints)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def title(path: str | Path) -> str:
    """Title of a benchmark file, whose other keys are not looked at."""
    return next((str(layer.title) for layer in reversed(_layers(Path(path))) if "title" in layer), "")


@cache
def _schema() -> DictConfig:
    """All keys with their defaults and types; to be merged with, which copies it."""
    return OmegaConf.structured(Config)


@cache
def _sections() -> dict:
    return OmegaConf.to_container(OmegaConf.structured(Config(train=Train())))


def _layers(path: Path) -> list[DictConfig]:
    """A file below those that it extends."""
    layers, place = [_read(path)], path
    while "extends" in layers[0]:
        if len(layers) == 3:
            raise DrbenchError(f"{place}: expected at most two levels of 'extends', so that a file stays readable")
        place = place.parent / str(layers[0].pop("extends"))
        layers.insert(0, _read(place))
    return layers


def _merge(path: Path, overrides: Sequence[str]) -> DictConfig:
    layers = _layers(path)
    for override in overrides:
        if "=" not in override:
            raise DrbenchError(f"expected an override of the form key=value, got {override!r}")
    if any("${" in text for text in (*overrides, *(OmegaConf.to_yaml(layer) for layer in layers))):
        raise DrbenchError(f"{path}: interpolation (${{...}}) is not allowed in benchmark files; write the value")
    layers.append(_guarded(path, lambda: OmegaConf.from_dotlist(list(overrides))))
    for layer in layers:
        _check_sections(path, OmegaConf.to_container(layer), _sections())
    merged = _stacked(path, layers)
    if not merged.protocol:
        return merged
    # The preset lies right under the layer that names it.
    at = max(i for i, layer in enumerate(layers) if "protocol" in layer)
    part, above = protocols.preset(merged.protocol, merged.data.name), layers[at:]
    part["sweep"] = {key: values for key, values in part["sweep"].items()
                     if not any(OmegaConf.select(layer, key) is not None for layer in above)}  # fmt: skip
    part = OmegaConf.create({key: values for key, values in part.items() if values})
    return _stacked(path, [*layers[:at], part, *above])


def _stacked(path: Path, layers: Sequence[DictConfig]) -> DictConfig:
    """The layers, merged; merging would not notice an empty sweep, which takes away those below it."""
    empty = max((i for i, layer in enumerate(layers) if layer.get("sweep") == {}), default=0)
    kept = [OmegaConf.masked_copy(layer, [key for key in layer if key != "sweep"]) for layer in layers[:empty]]
    merged = _guarded(path, lambda: OmegaConf.merge(_schema(), *kept, *layers[empty:]))
    for key in _left_open(layers):  # merging took the value below it
        if key.startswith("sweep"):
            raise DrbenchError(f"{path}: ??? is not for a sweep: leave the key itself open, outside of it")
        OmegaConf.update(merged, key, "???")
    return merged


def _left_open(layers: Sequence[DictConfig]) -> set[str]:
    """Keys that a layer leaves open (???) and none above it gives a value."""
    found: set[str] = set()
    for layer in layers:
        given = {key for key in found if OmegaConf.select(layer, key, default="???") != "???"}
        found = (found - given) | OmegaConf.missing_keys(layer)
    return found


def _check_sections(path: Path, layer: dict, schema: dict, above: str = "") -> None:
    """Raise `DrbenchError` if a section is given anything but a mapping: omegaconf would speak of our classes."""
    for key, keys in schema.items():
        if not isinstance(keys, dict) or key not in layer or (key, layer[key]) == ("train", None):
            continue
        if not isinstance(layer[key], dict):
            raise DrbenchError(
                f"{path}: {above}{key} has keys of its own: expected a mapping, as in "
                f"{above}{key}={{{next(iter(keys), 'KEY')}: VALUE}}, got {layer[key]!r}"
            )
        _check_sections(path, layer[key], keys, f"{above}{key}.")


def _read(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = did_you_mean(str(path), near) if near else "; expected a path such as benchmarks/digits/rcm.yaml"
        raise DrbenchError(f"no benchmark file {path}{hint}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DrbenchError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise DrbenchError(f"{path}: expected a YAML mapping of keys to values")
    return loaded


def _guarded(path, action):
    """Run an omegaconf step; its errors already name the full key and near misses."""
    try:
        return action()
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise DrbenchError(f"{path}: {str(error).strip()}") from error
    except TypeError as error:  # omegaconf has no error of its own for this, and names no key
        raise DrbenchError(f"{path}: {error}: a list is given where a mapping is expected, or the reverse") from error


def _unnamed(key: str, values, named: Sequence[str]):
    """Swept mappings, e.g. {norm: l2, eps: 0.5} of `attack`, without the keys that overrides name; each once."""
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        return values
    left = [_without(key, value, named) for value in values]
    return [value for i, value in enumerate(left) if value not in left[:i]]


def _without(key: str, value: dict, named: Sequence[str]) -> dict:
    kept = {k: _without(f"{key}.{k}", v, named) if isinstance(v, dict) else v for k, v in value.items()}
    return {k: v for k, v in kept.items() if f"{key}.{k}" not in named and v != {}}


def _listed(path, key: str, values) -> list:
    if not isinstance(values, list) or not values:
        raise DrbenchError(f"{path}: expected a list of values under sweep '{key}', got {values!r}")
    return values


def _validate(path, config: DictConfig) -> None:
    missing = [key for key in OmegaConf.missing_keys(config) if not key.startswith(MAY_BE_OPEN)]
    if missing:
        raise DrbenchError(f"{path}: expected a value for {', '.join(sorted(missing))}")
    certify, rows, workers = config.certify, config.run.batch_rows, config.run.workers
    problems = [
        (
            OmegaConf.select(config, key) not in known,
            f"{key} is {', '.join(known)}, got {OmegaConf.select(config, key)!r}",
        )
        for key, known in CHOICES.items()
    ]
    problems += [
        (config.task == "train" and config.train is None, "task train needs the section train"),
        (certify.mode != "fixed" and certify.kind != "gaussian", f"kind {certify.kind} has mode fixed only"),
        (not 0 < certify.give_up < 1, f"certify.give_up is in (0, 1), got {certify.give_up}"),
        (min(certify.radii or [0.0]) < 0, f"certify.radii are target radii >= 0, got {certify.radii}"),
        (
            not certify.sigma > 0 and certify.kind != "lipschitz",
            f"certify.sigma is a noise level > 0 in pixel units, got {certify.sigma}",
        ),
        (not 0 < certify.alpha < 1, f"certify.alpha is in (0, 1), got {certify.alpha}"),
        (min(certify.n0, certify.n, certify.block) < 1, "certify.n0, n and block are positive"),
        (not 0 < (certify.tolerance or 0.5) < 1, f"certify.tolerance is a share in (0, 1), got {certify.tolerance}"),
        *(
            (certify[key] != getattr(Certify, key) and not fits, f"certify.{key} needs certify.{what}")
            for key, fits, what in _needs(certify)
        ),
        (config.run.cuda_graphs and not config.run.compile, "run.cuda_graphs needs run.compile"),
        (rows != "auto" and not (type(rows) is int and rows > 0), f"run.batch_rows is auto or > 0, got {rows!r}"),
        (
            workers != "auto" and not (type(workers) is int and workers > 0),
            f"run.workers is auto or > 0, got {workers!r}",
        ),
    ]
    if certify.kind == "cascade":
        scales, sigma, known = list(certify.sigmas or []), certify.sigma, " or ".join(PROTOCOLS)
        rising = all(a < b for a, b in itertools.pairwise([0.0, *scales]))
        problems += [
            (len(scales) < 2 or not rising, f"certify.sigmas are two or more rising noise levels > 0, got {scales}"),
            (sigma not in (Certify.sigma, max(scales, default=sigma)),
             f"kind cascade takes certify.sigmas, not certify.sigma, got {sigma}"),
            (not 0.5 <= certify.p0 < 1, f"certify.p0 is in [1/2, 1), below two classes could halt, got {certify.p0}"),
            (certify.protocol not in PROTOCOLS, f"certify.protocol is {known}, got {certify.protocol!r}"),
            (certify.protocol != "sound" and certify.p0 != 0.5, "protocol paper_code has certify.p0 = 0.5"),
        ]  # fmt: skip
    else:
        given = [key for key in OWN_KEYS["cascade"] if certify[key] != getattr(Certify, key)]
        problems.append((bool(given), f"certify.{', '.join(given)} only with certify.kind: cascade"))
    problems += _attack_problems(config.attack) if config.task == "attack" else []
    for wrong, expected in problems:
        if wrong:
            raise DrbenchError(f"{path}: expected: {expected}")


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
        ((attack.audit or 0) < 0, f"attack.audit is a number of images, got {attack.audit}"),
        ((attack.probe or 0) < 0, f"attack.probe is a number of images, got {attack.probe}"),
        (attack.sigma < 0, f"attack.sigma is a noise level >= 0 in pixel units, got {attack.sigma}"),
        (min(attack.evaluations, attack.select, attack.worst_of, attack.decision_draws) < 1,
         "attack.evaluations, select, worst_of and decision_draws are positive"),
        (attack.worst_of > attack.evaluations,
         f"attack.worst_of is at most attack.evaluations, got {attack.worst_of} of {attack.evaluations}"),
    ]  # fmt: skip
