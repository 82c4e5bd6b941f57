"""OpenAI's files: improved-diffusion, guided-diffusion, consistency models. A flat state dict, `torch.save`d.

`config` are the flags of the file's README, or `preset=` one of `networks/presets.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from drbench.checkpoints import adm_keys, reading
from drbench.checkpoints.formats import Converted
from drbench.diffusion.networks import adm, presets

UNET = "network.unet."


def improved_diffusion(path: Path, **config) -> Converted:
    return _convert("improved_diffusion", path, config)


def guided_diffusion(path: Path, **config) -> Converted:
    return _convert("guided_diffusion", path, config)


def openai_consistency(path: Path, **config) -> Converted:
    return _convert("openai_consistency", path, config)


def _convert(kind: str, path: Path, config: Mapping) -> Converted:
    spec = presets.expanded({"kind": kind, **config})
    state = adm_keys.flat(reading.tensors(path))
    if spec.get("class_cond"):
        spec.setdefault("classes", len(state.get("label_emb.weight", range(1000))))
    chosen = adm.config(kind, spec)
    with torch.device("meta"):
        unet = adm.network(chosen, channels=_channels(state)).unet
    reading.match(adm_keys.shapes(unet.state_dict(), chosen), state, path)
    # The code of consistency models splits q, k and v before the heads, whatever its flag says.
    legacy = kind != "openai_consistency" and not chosen.use_new_attention_order
    ours = adm_keys.to_ours(state, list(unet.state_dict()), chosen, legacy)
    tensors = {UNET + key: value.float() for key, value in ours.items()}
    if kind == "openai_consistency":
        tensors["sigma_data"] = torch.tensor(float(chosen.sigma_data))
    return Converted(tensors, "denoiser", {**spec, "image_size": chosen.image_size})


def _channels(state: Mapping[str, Tensor]) -> int:
    stem = state.get("input_blocks.0.0.weight")
    return 3 if stem is None or stem.ndim != 4 else stem.shape[1]
