"""Names of defenses: a table of our own, and the entry-point group `drbench.defenses` for other packages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import metadata
from pkgutil import resolve_name

from drbench.errors import DrbenchError, did_you_mean

DEFENSES = {
    "adversarial_training": "methods.adversarial_training.defense:AdversarialTraining",
    "consistency": "methods.consistency.defense:Consistency",
    "constant": "methods.constant.defense:Constant",
    "denoised": "methods.denoised.defense:Denoised",
    "diffpure": "methods.diffpure.defense:DiffPure",
    "diffusion_classifier": "methods.diffusion_classifier.defense:DiffusionClassifier",
    "multiscale": "methods.multiscale.defense:MultiScale",
    "noise_augmented": "methods.noise_augmented.defense:NoiseAugmented",
    "rcm": "methods.rcm.defense:RCM",
    "undefended": "methods.undefended.defense:Undefended",
}
GROUP = "drbench.defenses"


def available() -> dict[str, str]:
    """name -> "module:Class". Defenses of other packages are named `package/name`. Imports none of them."""
    others = {f"{entry.dist.name}/{entry.name}": entry.value for entry in metadata.entry_points(group=GROUP)}
    return {**others, **DEFENSES}


def find(name: str) -> type:
    """The class of a defense."""
    known = available()
    if name not in known:
        raise DrbenchError(f"unknown defense {name!r}{did_you_mean(name, known)}")
    try:
        found = resolve_name(known[name])
    except Exception as error:  # another package's module may fail in any way
        raise DrbenchError(
            f"defense {name!r} is registered as {known[name]} but cannot be imported: {error}; "
            "reinstall its package, or correct the entry point"
        ) from error
    if not hasattr(found, "from_checkpoint"):  # of `api.Defense`, which loads torch: this file does not
        raise DrbenchError(
            f"defense {name!r} is registered as {known[name]}, which is a {type(found).__name__}; expected a class "
            "derived from drbench.api.Defense, as MODULE:CLASS: correct the entry point"
        )
    return found


def check_args(name: str, cls: type, args: Mapping) -> None:
    """Raise `DrbenchError` if the constructor takes no such argument."""
    known = inspect.signature(cls).parameters
    for arg in args:
        if arg not in known:
            raise DrbenchError(
                f"defense {name!r} takes no argument {arg!r} (config key defense.args.{arg}){did_you_mean(arg, known)}"
            )
