"""The CIFAR-10 checkpoints of openai/consistency_models_cifar10 (JAX): NCSN++ as NVlabs/edm's `SongUNet`.

What is known of these files is deduced: the names are those that flax gives to the modules of Song et al. 2021 (arXiv
2011.13456) in the order in which they are called, and the architecture is that of the released configurations. No
official file was at hand. So the converter maps all tensors or none: names or shapes that it does not expect are an
error that lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from drbench.checkpoints import flax, reading
from drbench.checkpoints.formats import Converted
from drbench.diffusion import networks
from drbench.errors import DrbenchError

CIFAR10 = {"model_channels": 128, "channel_mult": (2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,)}
FIXED = {"channel_mult_noise": 2, "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard",
         "resample_filter": [1, 3, 3, 1], "label_dim": 0, "dropout": 0.0}  # fmt: skip
TIME, BLOCK, ATTENTION, DOWN = "GaussianFourierProjection_0", "ResnetBlockBigGANpp", "AttnBlockpp", "Downsample"
NORM = {"scale": "weight", "bias": "bias"}
KERNEL = {"kernel": "weight", "bias": "bias"}
INSIDE = {  # part of a residual block -> ours
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


def convert(
    path: Path,
    params: str = "params_ema",
    img_resolution: int = 32,
    img_channels: int = 3,
    sigma_data: float = 0.5,
    t_min: float | None = 0.002,
    **config,
) -> Converted:
    """Read a file.

    `params` is the tree in it: the averaged weights. `t_min: null` for the denoiser that the functions were distilled
    from. `config` are arguments of `SongUNet` that differ from the released configuration.
    """
    config = {**CIFAR10, **config}
    unknown = config.keys() - CIFAR10.keys()
    if unknown:
        raise DrbenchError(
            f"jax_consistency has no option {', '.join(sorted(unknown))}; it takes params, img_resolution, "
            f"img_channels, sigma_data, t_min, {', '.join(CIFAR10)}"
        )
    spec = {"kind": "edm_song", "img_resolution": img_resolution, "img_channels": img_channels, **config, **FIXED,
            "sigma_data": sigma_data}  # fmt: skip
    if t_min is not None:
        spec["t_min"] = t_min
    spec = {key: list(value) if isinstance(value, tuple) else value for key, value in spec.items()}
    arrays = _arrays(path, params)
    with torch.device("meta"):
        denoiser = networks.build(spec, (img_channels, img_resolution, img_resolution), 0)
    state = {f"network.{key}": value.float() for key, value in _renamed(arrays, spec, path).items()}
    state["sigma_data"] = torch.tensor(float(sigma_data))
    taps = torch.tensor(spec["resample_filter"], dtype=torch.float32)
    for key in denoiser.state_dict():
        if key.endswith(".resample_filter"):  # a constant of the code, not in the file
            state[key] = (taps.outer(taps) / taps.sum() ** 2)[None, None]
    reading.check(state, path)
    reading.match({key: value.shape for key, value in denoiser.state_dict().items()}, state, path)
    return Converted(state, "denoiser", spec)


def _arrays(path: Path, params: str) -> dict[str, Tensor]:
    tree = flax.tree(path)
    if not isinstance(tree.get(params), Mapping):
        raise DrbenchError(f"{path}: expected the weights under {params!r}, found {', '.join(map(str, tree))}")
    return flax.flattened(tree[params])


def _renamed(arrays: Mapping[str, Tensor], spec: Mapping, where: Path) -> dict[str, Tensor]:
    """Tensors under the names of `SongUNet`; all arrays are used, and all that are wanted are there."""
    left, found = dict(arrays), {}

    def take(theirs: str, leaves: Mapping[str, str], ours: str, change: Callable[[Tensor], Tensor] = lambda a: a):
        for leaf, name in leaves.items():
            if f"{theirs}/{leaf}" in left:
                found[f"{ours}.{name}"] = change(left.pop(f"{theirs}/{leaf}"))

    sides = [spec["img_resolution"] >> level for level in range(len(spec["channel_mult"]))]
    finest = f"{sides[0]}x{sides[0]}"
    take(TIME, {"W": "freqs"}, "map_noise")
    for i in range(2):
        take(f"Dense_{i}", KERNEL, f"map_layer{i}", _transposed)
    take("Conv_0", KERNEL, f"enc.{finest}_conv", _transposed)
    for i, side in enumerate(sides[1:]):
        ours = f"enc.{side}x{side}_aux_residual"
        take(f"{DOWN}_{i}/Conv2d_0", {"weight": "weight", "bias": "bias"}, ours, _transposed)
    for i, ours in enumerate(blocks(sides, spec["num_blocks"])):
        for part, name in INSIDE.items():
            norm = part.startswith("GroupNorm")
            take(f"{BLOCK}_{i}/{part}", NORM if norm else KERNEL, f"{ours}.{name}", _transposed)
    for i, ours in enumerate(attentions(sides, spec["num_blocks"], spec["attn_resolutions"])):
        theirs = f"{ATTENTION}_{i}"
        take(f"{theirs}/GroupNorm_0", NORM, f"{ours}.norm2")
        take(f"{theirs}/NIN_3", {"W": "weight", "b": "bias"}, f"{ours}.proj", _pointwise)
        found |= _qkv(left, theirs, f"{ours}.qkv")
    take("GroupNorm_0", NORM, f"dec.{finest}_aux_norm")
    take("Conv_1", KERNEL, f"dec.{finest}_aux_conv", _transposed)
    if left:
        names = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(left.items())[:20])
        raise DrbenchError(
            f"{where}: {len(left)} of {len(arrays)} arrays are not of the NCSN++ that is expected here and cannot be "
            f"mapped: {names}{' and others' if len(left) > 20 else ''}. Give its configuration, or use another file"
        )
    return found


def blocks(sides: Sequence[int], n: int) -> list[str]:
    """Residual blocks of `SongUNet` in the order of their call: encoder, middle, decoder."""
    names, last = [], len(sides) - 1
    for level, side in enumerate(sides):
        names += [f"enc.{side}x{side}_down"] if level else []
        names += [f"enc.{side}x{side}_block{i}" for i in range(n)]
    names += [f"dec.{sides[last]}x{sides[last]}_in{i}" for i in range(2)]
    for level, side in reversed(list(enumerate(sides))):
        names += [f"dec.{side}x{side}_up"] if level < last else []
        names += [f"dec.{side}x{side}_block{i}" for i in range(n + 1)]
    return names


def attentions(sides: Sequence[int], n: int, resolutions: Sequence[int]) -> list[str]:
    """Blocks of `SongUNet` that attend, in the order of their call."""
    encoder = [f"enc.{side}x{side}_block{i}" for side in sides if side in resolutions for i in range(n)]
    decoder = [f"dec.{side}x{side}_block{n}" for side in reversed(sides) if side in resolutions]
    return [*encoder, f"dec.{sides[-1]}x{sides[-1]}_in0", *decoder]


def _qkv(left: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Three 1x1 layers as one: output channel 3 c + (0 query, 1 key, 2 value)."""
    three = [{leaf: left.pop(f"{theirs}/NIN_{i}/{leaf}", None) for leaf in "Wb"} for i in range(3)]
    if any(value is None for part in three for value in part.values()):
        return {}
    weight = torch.stack([_pointwise(part["W"]) for part in three], dim=1).flatten(0, 1)
    return {f"{ours}.weight": weight, f"{ours}.bias": torch.stack([part["b"] for part in three], dim=1).flatten()}


def _transposed(a: Tensor) -> Tensor:
    """Kernels of flax have inputs and outputs last: (in, out) or (height, width, in, out)."""
    return a.permute(-1, -2, *range(a.ndim - 2)).contiguous() if a.ndim > 1 else a


def _pointwise(a: Tensor) -> Tensor:
    """Weights (in, out) of a 1x1 layer as those of a convolution (out, in, 1, 1)."""
    return a.T[:, :, None, None].contiguous() if a.ndim > 1 else a
