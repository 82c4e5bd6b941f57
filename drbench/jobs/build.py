"""From a resolved config to objects: images, device, and a defense with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from drbench import data, registry, weights
from drbench.api import Defense
from drbench.data import Images
from drbench.errors import DrbenchError
from drbench.jobs import stated
from drbench.jobs.restricted import Restricted


def images(config: DictConfig, split: str | None = None) -> Images:
    """The images of the config; with `split`, all images of another split of the same data set."""
    spec = config.data
    subset = "all" if split else spec.subset
    return data.load(spec.name, split or spec.split, subset, spec.root, spec.preprocessing)


def device(name: str, worker: int = 0) -> torch.device:
    """ "auto" is a CUDA device, in turn for each worker, or the CPU if there is none."""
    if name == "auto":
        devices = torch.cuda.device_count()
        return torch.device("cuda", worker % devices) if devices else torch.device("cpu")
    try:
        chosen = torch.device(name)
        if chosen.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{chosen.type} is not supported")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise DrbenchError(f"run.device: expected auto, cpu, cuda or cuda:N, got {name!r}: {error}") from error
    return chosen


def arguments(name: str, args: Mapping, images: Images) -> dict:
    """Constructor arguments: those of the config, and the images' shape and classes where it takes them."""
    cls = registry.find(name)
    registry.check_args(name, cls, args)
    known = inspect.signature(cls).parameters
    from_data = {"input_shape": images.shape, "num_classes": images.classifier_classes}
    return {**{key: value for key, value in from_data.items() if key in known}, **args}


def defense(spec: DictConfig, images: Images, checkpoints: Sequence[weights.Weights], seed: int) -> Defense:
    """The defense of a config section, in eval mode, on the CPU.

    Without checkpoints it is built as its constructor leaves it, under `seed`.
    """
    args = arguments(spec.name, OmegaConf.to_container(spec.args), images)
    cls = registry.find(spec.name)
    # The constructors of layers draw from the global generator: it is seeded here, for them alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            built = cls.from_checkpoint(weights.read(checkpoints), **args) if checkpoints else cls(**args)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise DrbenchError(
                f"defense {spec.name!r} cannot be built with {args}: {type(error).__name__}: {error}; "
                "check defense.args and defense.checkpoint"
            ) from error
    defaults = {key: value.default for key, value in inspect.signature(cls).parameters.items()}
    stated.check(checkpoints, defaults | args, images.shape, images.classifier_classes)
    if images.within and built.num_classes == images.classifier_classes:
        built = Restricted(built, images.within)
    check_fit(spec.name, built, images)
    return built.eval()


def check_fit(name: str, built: Defense, images: Images) -> None:
    """Raise `DrbenchError` if images and defense differ in shape or number of classes."""
    ours, theirs = (tuple(built.input_shape), built.num_classes), (images.shape, images.num_classes)
    if ours != theirs:
        raise DrbenchError(
            f"defense {name!r} takes images {ours[0]} of {ours[1]} classes; {images.dataset} has "
            f"{theirs[0]} and {theirs[1]}: set defense.args.input_shape and num_classes, or other weights"
        )
