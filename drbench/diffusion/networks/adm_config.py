"""What an OpenAI UNet is, in the words of its own training scripts.

Names and defaults are those of openai/improved-diffusion, openai/guided-diffusion and openai/consistency_models: the
flags in a checkpoint's README can be typed as they stand there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from drbench.errors import DrbenchError, did_you_mean

# Width of each resolution over num_channels, where channel_mult is not given: by image_size.
CHANNEL_MULT = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
SCHEDULES = ("linear", "cosine")
UNLABELLED = (None, "zero", "mean")
# Flags of training and of their samplers that leave the network's answer as it is.
OTHER_FLAGS = {
    "use_fp16",
    "use_checkpoint",
    "use_kl",
    "sigma_small",
    "rescale_learned_sigmas",
    "weight_schedule",
    "sigma_max",
}
# Flags that change the answer, and the one value that we build.
ONLY = {"num_heads_upsample": -1, "timestep_respacing": "", "predict_xstart": False}


@dataclass(frozen=True)
class ADMConfig:
    """Architecture and diffusion of one network.

    Parameters
    ----------
    image_size : int
        Side that it was trained on, pixels. It says where attention sits; the network takes other sizes too.
    num_channels, num_res_blocks, channel_mult
        Base width, residual blocks a resolution, width of each resolution over the base (None: by image_size).
    attention_resolutions : tuple of int
        Sides of the feature maps that attend, pixels, of an image of side `image_size`.
    num_heads, num_head_channels : int
        Heads of every attention; or, if num_head_channels > 0, the width of a head.
    use_scale_shift_norm, resblock_updown : bool
        The time scales and shifts the second norm of a block, or is added before it; the resolution changes in residual
        blocks or in convolutions.
    use_new_attention_order : bool
        Order of the rows of qkv in the file: (q, k, v) outside the heads, or inside. Only reading the file needs it.
    learn_sigma, class_cond : bool
        Twice the channels come out, the second half is the variance; labels go in.
    classes : int
        Labels that it knows, if class_cond.
    unlabelled : {None, "zero", "mean"}
        What a class-conditional network is told if nobody gives a label. None: that is an error. "zero": no label
        embedding is added; "mean": the mean of all embeddings. It was trained on neither (ours).
    diffusion_steps, noise_schedule, rescale_timesteps
        The variance-preserving schedule, and whether the network sees t * 1000 / diffusion_steps instead of t.
    sigma_min, sigma_data, distillation
        Of consistency models: time at which f(z, t) = z, std of the data, and whether the file is a consistency
        function (true) or the denoiser that it was distilled from (the `edm_*` files).
    dropout : float
        In training only.
    """

    image_size: int
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] | None = None
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    classes: int = 1000
    unlabelled: str | None = None
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool = False
    sigma_min: float = 0.002
    sigma_data: float = 0.5
    distillation: bool = True
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if self.channel_mult is None:
            if self.image_size not in CHANNEL_MULT:
                sizes = ", ".join(map(str, CHANNEL_MULT))
                raise DrbenchError(f"image_size {self.image_size} has no default channel_mult ({sizes} have); give it")
            object.__setattr__(self, "channel_mult", CHANNEL_MULT[self.image_size])
        self._check()

    def _check(self):
        heads = self.num_head_channels if self.num_head_channels > 0 else self.num_heads
        odd = [width for width in self.widths if width % 32]
        split = [width for width in self.attending if width % heads]
        problems = [
            (self.num_res_blocks < 1, f"num_res_blocks >= 1, got {self.num_res_blocks}"),
            (odd, f"widths num_channels * channel_mult in multiples of 32, the groups of its norms, got {odd}"),
            (heads < 1 or split, f"attention widths {self.attending} that {heads} divides (num_heads or "
                                 "num_head_channels)"),
            (self.noise_schedule not in SCHEDULES,
             f"noise_schedule as one of {', '.join(SCHEDULES)}, got {self.noise_schedule!r}"),
            (self.unlabelled not in UNLABELLED, f"unlabelled as zero, mean or nothing, got {self.unlabelled!r}"),
            (self.unlabelled and not self.class_cond, "unlabelled only with class_cond: this network knows no labels"),
        ]  # fmt: skip
        for wrong, expected in problems:
            if wrong:
                raise DrbenchError(f"OpenAI UNet: expected {expected}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, finest first."""
        return tuple(int(factor * self.num_channels) for factor in self.channel_mult)

    def attends(self, level: int) -> bool:
        return 2**level in {self.image_size // side for side in self.attention_resolutions}

    @property
    def attending(self) -> list[int]:
        """Widths of all attentions; the middle block always has one."""
        return sorted({width for level, width in enumerate(self.widths) if self.attends(level)} | {self.widths[-1]})

    def heads(self, width: int) -> int:
        """Heads of an attention of that width."""
        return width // self.num_head_channels if self.num_head_channels > 0 else self.num_heads


def parse(kind: str, spec: Mapping, image_size: int | None = None, **defaults) -> ADMConfig:
    """The configuration of a spec `{"kind": ..., flag: value, ...}`; `image_size` where the spec has none.

    `defaults` are those of the kind where they are not those of `ADMConfig`. Flags that change the answer and are not
    known here are refused.
    """
    known = {field.name: field for field in dataclasses.fields(ADMConfig)}
    flags = {key: value for key, value in spec.items() if key not in OTHER_FLAGS | {"kind"} | ONLY.keys()}
    for key, value in ONLY.items():
        if spec.get(key, value) != value:
            raise DrbenchError(
                f"{kind}: {key} is supported as {value!r} only, got {spec[key]!r}; use another checkpoint"
            )
    for key, value in flags.items():
        if key not in known:
            raise DrbenchError(f"{kind} has no option {key!r}{did_you_mean(key, known)}")
        _check_type(kind, key, value, str(known[key].type))
    chosen = {**({"image_size": image_size} if image_size else {}), **defaults, **flags}
    if "image_size" not in chosen:
        raise DrbenchError(f"{kind} needs image_size: the side in pixels that the network was trained on")
    return ADMConfig(**chosen)


def _check_type(kind: str, key: str, value, wanted: str) -> None:
    kinds = {"int": int, "bool": bool, "float": (int, float), "str": str, "str | None": (str, type(None))}
    expected = kinds.get(wanted)
    if expected and (not isinstance(value, expected) or (isinstance(value, bool) and wanted != "bool")):
        raise DrbenchError(f"{kind}: expected {key} as {wanted}, got {value!r}")


def _numbers(name: str, value) -> tuple | None:
    """ "16,8" as in a command line, or a list; None and "" are None."""
    if value is None or value == "":
        return None if name == "channel_mult" else ()
    words = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(word) if float(word) == int(float(word)) else float(word) for word in words)
    except (TypeError, ValueError) as error:
        raise DrbenchError(f"{name}: expected numbers such as [1, 2, 2, 2] or '1,2,2,2', got {value!r}") from error
