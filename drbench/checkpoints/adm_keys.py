"""Names of OpenAI's UNets and of `UNet2DModel`, and the tensors of the first under the names of the other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size, Tensor

from drbench.diffusion.networks.adm_config import ADMConfig

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
PARTS = {"to_q": 0, "to_k": 1, "to_v": 2}
POINTWISE = ("qkv.weight", "proj_out.weight")  # 1x1 convolutions in the files, linear layers in diffusers


def modules(config: ADMConfig) -> dict[str, str]:
    """Module of `UNet2DModel` -> module of the original network. May name modules that neither has."""
    n, last = config.num_res_blocks, len(config.widths) - 1
    found = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        **_residual("mid_block.resnets.0", "middle_block.0"),
        **_attention("mid_block.attentions.0", "middle_block.1"),
        **_residual("mid_block.resnets.1", "middle_block.2"),
    }
    for level in range(last + 1):
        for j in range(n):
            theirs = f"input_blocks.{1 + level * (n + 1) + j}"
            found |= _residual(f"down_blocks.{level}.resnets.{j}", f"{theirs}.0")
            found |= _attention(f"down_blocks.{level}.attentions.{j}", f"{theirs}.1")
        found |= _resample(
            config, f"down_blocks.{level}.downsamplers.0", f"input_blocks.{(level + 1) * (n + 1)}.0", "op"
        )
        up = last - level
        for j in range(n + 1):
            theirs = f"output_blocks.{up * (n + 1) + j}"
            found |= _residual(f"up_blocks.{up}.resnets.{j}", f"{theirs}.0")
            found |= _attention(f"up_blocks.{up}.attentions.{j}", f"{theirs}.1")
        place = 2 if config.attends(level) else 1
        found |= _resample(config, f"up_blocks.{up}.upsamplers.0", f"{theirs}.{place}", "conv")
    return found


def _residual(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in RESIDUAL.items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in ATTENTION.items()}


def _resample(config: ADMConfig, ours: str, theirs: str, convolution: str) -> dict[str, str]:
    return _residual(ours, theirs) if config.resblock_updown else {f"{ours}.conv": f"{theirs}.{convolution}"}


def origin(key: str, names: Mapping[str, str]) -> tuple[str, int | None]:
    """Original key of a key of `UNet2DModel`, and which third of it: q, k, v, or None for all of it."""
    module, _, leaf = key.rpartition(".")
    return f"{names[module]}.{leaf}", PARTS.get(module.rpartition(".")[2])


def flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with every 1x1 convolution of an attention, of one or two dimensions, as a matrix."""
    return {key: value.flatten(1) if key.endswith(POINTWISE) else value for key, value in state.items()}


def shapes(ours: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Size]:
    """Shapes that `flat(original state dict)` has, for a `UNet2DModel` with state dict `ours`."""
    names, found = modules(config), {}
    for key, value in ours.items():
        theirs, part = origin(key, names)
        found[theirs] = value.shape if part is None else Size((3 * len(value), *value.shape[1:]))
    return found


def to_ours(state: Mapping[str, Tensor], keys: list[str], config: ADMConfig, legacy: bool) -> dict[str, Tensor]:
    """The tensors of an original state dict, as `flat` gives it, under the names of `UNet2DModel`.

    `legacy` is the order of the rows of qkv: (head, q/k/v, channel of the head), against (q/k/v, head, channel). Either
    has the right shape, so a wrong choice loads without complaint and computes nonsense.
    """
    names, found = modules(config), {}
    for key in keys:
        theirs, part = origin(key, names)
        value = state[theirs]
        found[key] = value if part is None else _thirds(value, config, legacy)[part]
    return found


def _thirds(qkv: Tensor, config: ADMConfig, legacy: bool) -> list[Tensor]:
    """qkv (3 C, ...) as q, k, v, each (C, ...)."""
    width = len(qkv) // 3
    if not legacy:
        return list(qkv.split(width))
    heads = config.heads(width)
    grouped = qkv.view(heads, 3, width // heads, *qkv.shape[1:])
    return [grouped[:, part].reshape(width, *qkv.shape[1:]) for part in range(3)]
