"""NVlabs/edm networks (`EDMPrecond` around `SongUNet` or `DhariwalUNet`): network snapshots, and their state dicts.

The architecture is read off the names and shapes of the tensors, so a state dict needs no configuration.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from drbench.checkpoints import persistence, reading
from drbench.checkpoints.formats import Converted
from drbench.diffusion import networks
from drbench.diffusion.networks.edm import DhariwalUNet, SongUNet
from drbench.errors import DrbenchError

CLASSES = {"SongUNet": "edm_song", "DhariwalUNet": "edm_dhariwal"}
NETWORKS = {"edm_song": SongUNet, "edm_dhariwal": DhariwalUNet}


def convert(path: Path, **config) -> Converted:
    """A denoiser. `config` holds what differs from the file's own: `sigma_data` (0.5), `dropout`, or `t_min` for a
    consistency function in this architecture.
    """
    state, said = _read(path)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    spec = {**said, **architecture(state, path), **config}  # what tensors show needs no word
    shape = (spec["img_channels"], spec["img_resolution"], spec["img_resolution"])
    with torch.device("meta"):
        denoiser = networks.build(spec, shape, spec["label_dim"])
    state = {f"network.{key}": value for key, value in state.items()}
    state["sigma_data"] = torch.tensor(float(spec.setdefault("sigma_data", 0.5)))
    reading.match({key: value.shape for key, value in denoiser.state_dict().items()}, state, path)
    return Converted(state, "denoiser", spec)


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, and the configuration that a snapshot states."""
    if reading.sniff(path) != "pickle":
        return reading.tensors(path), {}
    found = persistence.snapshot(path)
    inner = found.kwargs.get("model_type", "SongUNet")
    if found.class_name != "EDMPrecond" or inner not in CLASSES:
        raise DrbenchError(
            f"{path}: expected EDMPrecond around {' or '.join(CLASSES)}, got {found.class_name} around {inner}; "
            "snapshots of other preconditionings are not supported"
        )
    reading.check(found.state, path)
    kind = CLASSES[inner]
    known = inspect.signature(NETWORKS[kind]).parameters.keys() | {"sigma_data"}
    return found.state, {"kind": kind, **{key: value for key, value in found.kwargs.items() if key in known}}


def architecture(state: Mapping[str, Tensor], where: str | Path) -> dict:
    """The spec of the network that has these tensors (names without `model.`)."""
    try:
        return _architecture(state)
    except (KeyError, ValueError, IndexError) as error:
        raise DrbenchError(
            f"{where}: not the tensors of an EDM network: {error} is missing or odd; expected names such as "
            "model.map_layer0.weight and model.enc.32x32_conv.weight"
        ) from error


def _architecture(state: Mapping[str, Tensor]) -> dict:
    width, noise = state["map_layer0.weight"].shape
    sides = sorted({int(found[1]) for key in state if (found := re.match(r"enc\.(\d+)x", key))}, reverse=True)
    blocks = {int(found[1]) for key in state if (found := re.match(rf"enc\.{sides[0]}x{sides[0]}_block(\d+)\.", key))}
    stem = state[f"enc.{sides[0]}x{sides[0]}_conv.weight"]
    adm = "out_conv.weight" in state
    base = noise if adm else stem.shape[0]

    def inputs(name: str) -> int:
        return state[f"{name}.weight"].shape[1] if f"{name}.weight" in state else 0

    spec = {
        "kind": "edm_dhariwal" if adm else "edm_song",
        "img_resolution": sides[0],
        "img_channels": stem.shape[1],
        "label_dim": inputs("map_label"),
        "augment_dim": inputs("map_augment"),
        "model_channels": base,
        "channel_mult": [state[f"enc.{side}x{side}_block0.conv1.weight"].shape[0] // base for side in sides],
        "channel_mult_emb": width // base,
        "num_blocks": len(blocks),
        "attn_resolutions": [side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in state],
    }
    return spec if adm else spec | _song(state, noise // base)


def _song(state: Mapping[str, Tensor], noise_mult: int) -> dict:
    def have(part: str) -> bool:
        return any(part in key for key in state)

    taps = next((value[0, 0] for key, value in state.items() if key.endswith("resample_filter")), torch.ones(2, 2))
    return {
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": noise_mult,
        "encoder_type": "residual" if have("aux_residual") else "skip" if have("aux_skip") else "standard",
        "decoder_type": "skip" if have("aux_up") else "standard",
        "resample_filter": [round(float(one)) for one in taps[0] / taps[0, 0]],
    }
