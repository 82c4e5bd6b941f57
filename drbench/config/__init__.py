"""Benchmark files: flat YAML recipes, checked against dataclasses; `extends` one parent, `sweep` over lists.

Every key maps to a field of `config.keys`; `defense.args.*` to keyword arguments of the defense. An unknown key or a
wrong type is an error that names the key. Nothing in a file chooses code: names are looked up in `drbench.registry`.
`???` is the value of what a paper did not publish: such a file can be shown, and runs when the command line gives it.

keys         all keys, with their types and defaults
checks       what their values have to fulfil
words        what is wrong with a key, in words
protocols    presets of published evaluations
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drbench import norms
from drbench.config import protocols, words
from drbench.config.checks import validate
from drbench.config.keys import OWN_KEYS, Certify, Config, Data, Run, Train
from drbench.errors import DrbenchError, did_you_mean

SECTIONS = {"certify": Certify, "data": Data, "run": Run}
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
ADAPTIVE_KEYS = ("radii", "give_up")  # belong to all modes but fixed


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
                [{key: value}],
            )
        validate(path, cell)
        if cell.task != "attack":
            cell.certify.sigma = levels(cell)[0]
        # An attack has no draws to certify, so that noise levels of `certify`, swept, would be one attack again.
        asked = {key: value for key, value in OmegaConf.to_container(cell).items() if key != UNREAD.get(cell.task)}
        if asked not in known:
            known.append(asked)
            cells.append(cell)
    return cells


def recorded(path: Path) -> DictConfig:
    """The resolved config of a run folder, of one cell: nothing in it is to be extended, swept or looked up."""
    layer = _read(path)
    cell = _guarded(path, lambda: OmegaConf.merge(_schema(), layer), [OmegaConf.to_container(layer)])
    validate(path, cell)
    if cell.sweep:
        raise DrbenchError(f"{path}: expected the config of one run, got a sweep over {', '.join(cell.sweep)}")
    return cell


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
        _refuse_interpolation(path, override)
        try:
            OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, ValueError) as error:
            raise DrbenchError(f"expected a YAML value, as in certify.radii=[0,0.5], got {override!r}") from error
    layers.append(_guarded(path, lambda: OmegaConf.from_dotlist(list(overrides)), []))
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
    plain = (OmegaConf.to_container(layer) for layer in layers)
    merged = _guarded(path, lambda: OmegaConf.merge(_schema(), *kept, *layers[empty:]), plain)
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
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DrbenchError(f"{path}: not readable as YAML: {_first(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise DrbenchError(f"{path}: expected a YAML mapping of keys to values")
    _refuse_interpolation(path, OmegaConf.to_yaml(loaded))
    return loaded


def _refuse_interpolation(path: Path, text: str) -> None:
    if "${" in text:
        raise DrbenchError(f"{path}: interpolation (${{...}}) is not allowed in benchmark files; write the value")


def _guarded(path, action, given: Iterable[dict]):
    """Run an omegaconf step; `given` are the parts of a config that it reads."""
    try:
        return action()
    except (OmegaConfBaseException, TypeError) as error:
        raise DrbenchError(f"{path}: {words.mistake(given) or _first(error)}") from error


def _first(error: Exception) -> str:
    """What an error says, without the names of classes that omegaconf writes below it."""
    return str(error).partition("\n    full_key:")[0].strip()


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
