"""Folders of diffusers: `unet/` with config.json and weights and `scheduler/` beside it, or config.json and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from drbench.checkpoints import reading
from drbench.checkpoints.adm import UNET
from drbench.checkpoints.formats import Converted
from drbench.diffusion.networks import diffusers_unet
from drbench.errors import DrbenchError

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Attention of uploads before diffusers 0.14
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert(path: Path, scheduler: Mapping | None = None, unlabelled: str | None = None) -> Converted:
    """Read a folder.

    `scheduler` replaces scheduler/scheduler_config.json, for folders that have none; `unlabelled` goes into the spec.
    """
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    unet = _json(folder / "config.json")
    beside = path / "scheduler" / "scheduler_config.json"
    scheduler = dict(scheduler) if scheduler else (_json(beside) if beside.exists() else None)
    spec = {"kind": "diffusers", "unet": unet, **({"scheduler": scheduler} if scheduler else {})}
    if unlabelled:
        spec["unlabelled"] = unlabelled
    channels = unet.get("in_channels", 3)
    with torch.device("meta"):
        built = diffusers_unet.denoiser((channels, 0, 0), None, **{k: v for k, v in spec.items() if k != "kind"})
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise DrbenchError(f"{folder}: expected {' or '.join(WEIGHTS)}, in one piece; got {_listing(folder)}")
    expected = {key: value.shape for key, value in built.network.unet.state_dict().items()}
    state = {_renamed(key): value for key, value in reading.tensors(weights).items()}
    state = {key: _linear(key, value, expected) for key, value in state.items()}
    reading.match(expected, state, weights)
    tensors = {UNET + key: value.float() for key, value in state.items()}
    if "sigma_data" in built.state_dict():
        tensors["sigma_data"] = torch.tensor(float((scheduler or {}).get("sigma_data", 0.5)))
    return Converted(tensors, "denoiser", spec)


def _renamed(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    parent, _, name = module.rpartition(".")
    return f"{parent}.{OLD_NAMES[name]}.{leaf}" if ".attentions." in f".{key}" and name in OLD_NAMES else key


def _linear(key: str, value: Tensor, expected: Mapping) -> Tensor:
    """Old attention weights are 1x1 convolutions."""
    wanted = expected.get(key)
    return value.flatten(1) if wanted is not None and len(wanted) == 2 and value.ndim > 2 else value


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DrbenchError(f"{path}: expected the JSON file of a diffusers folder: {error}") from error
    if not isinstance(found, dict):
        raise DrbenchError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
