"""What converted weights state of their network, beside what a config says: shapes tell no heads and no schedule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from drbench import weights
from drbench.errors import DrbenchError

# The user's to choose for the same weights, of training alone, or told by shapes.
FREE = {"classes", "dropout", "kl_weights", "mean", "pad", "resize", "std", "unlabelled"}


def check(checkpoints: Sequence[weights.Weights], args: Mapping, input_shape, num_classes: int) -> None:
    """Raise `DrbenchError` if the constructor's arguments describe another network than that of the weights."""
    for checkpoint in checkpoints:
        facts = weights.facts(checkpoint)
        part = checkpoint.part or facts.get("role", "")
        given, key = (args, "defense.args") if part == "defense" else (args.get(part), f"defense.args.{part}")
        if isinstance(given, Mapping) and isinstance(facts.get("spec"), Mapping):
            both = (_whole(each, input_shape, num_classes) for each in (given, facts["spec"]))
            for name, ours, theirs in _differences(*both):
                raise DrbenchError(
                    f"checkpoint {checkpoint.name}: its network has {name} = {theirs!r}, {key} says {ours!r}; as the "
                    f"shapes agree, it would answer otherwise without a word. Correct {key}, or convert the file with "
                    "the options that are right"
                )


def _whole(spec: Mapping, input_shape, num_classes: int) -> dict:
    """The configuration with its preset written out, and with the defaults of the kinds that have a table of them."""
    from drbench.diffusion.networks import adm, presets

    spec = presets.expanded(spec)
    if spec.get("kind") in adm.KIND_DEFAULTS:
        spec |= dataclasses.asdict(adm.config(spec["kind"], spec, input_shape, num_classes))
    return json.loads(json.dumps(spec, default=str))  # no tuples, which files do not know


def _differences(ours: Mapping, theirs: Mapping, above: str = "") -> Iterator[tuple[str, object, object]]:
    """Name and both values of what both state, and state otherwise; a path stands for what lies there."""
    for key in [key for key in ours if key in theirs and key not in FREE and not key.startswith("_")]:
        mine, other = ours[key], theirs[key]
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from _differences(mine, other, f"{above}{key}.")
        elif mine != other and isinstance(mine, dict) == isinstance(other, dict):
            yield f"{above}{key}", mine, other
