"""Weights that state their network are not loaded into another one whose tensors have the same shapes."""

import pytest
import torch
from omegaconf import OmegaConf

from drbench import weights
from drbench.checkpoints import formats
from drbench.data.images import Images
from drbench.diffusion import networks
from drbench.errors import DrbenchError
from drbench.jobs import build
from methods.rcm.defense import RCM
from methods.undefended.defense import Undefended

SPEC = {"kind": "guided_diffusion", "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1],
        "attention_resolutions": [8], "num_heads": 4}  # fmt: skip
IMAGES = Images(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), (0, 1), "cifar10", "test", 10)


@pytest.fixture
def files(tmp_path):
    """Names of weights of a denoiser that states `SPEC`, of a classifier that states nothing."""
    state = networks.build(SPEC, (3, 8, 8), 10).state_dict()
    converted = formats.Converted(state, "denoiser", SPEC)
    denoiser = formats.save(converted, tmp_path / "denoiser.safetensors", "0" * 64, "guided_diffusion")
    state = Undefended((3, 8, 8), 10, width=4).state_dict()
    return [str(denoiser.path), str(weights.write(str(tmp_path / "classifier.safetensors"), state, {}).path)]


def load(name, files, **args):
    spec = OmegaConf.create({"name": name, "args": args})
    return build.defense(spec, IMAGES, [weights.resolve(file) for file in files], 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 2}, "num_heads = 4, defense.args.denoiser says 2"),
        ({"num_head_channels": 16}, "num_head_channels = -1, defense.args.denoiser says 16"),
        ({"use_new_attention_order": True}, "use_new_attention_order = False, .* says True"),
        ({"noise_schedule": "cosine"}, "noise_schedule = 'linear', .* says 'cosine'"),
        ({"kind": "improved_diffusion"}, "kind = 'guided_diffusion', .* says 'improved_diffusion'"),
    ],
)
def test_another_network_of_the_same_shapes_is_refused(files, change, message):
    with pytest.raises(DrbenchError, match=f"denoiser.safetensors: its network has {message}"):
        load("denoised", files, width=4, denoiser=SPEC | change)


def test_what_the_user_may_choose_and_defaults_are_no_difference(files):
    defaults = {"diffusion_steps": 1000, "channel_mult": "1", "dropout": 0.1, "pad": 4, "use_fp16": True}
    load("denoised", files, width=4, denoiser=SPEC | defaults)
    del (short := dict(SPEC))["num_heads"], short["image_size"]
    load("denoised", files, width=4, denoiser=short)


def test_whole_defenses_are_held_to_their_defaults_too(tmp_path):
    args = {"width": 32, "heads": 2, "depth": 1, "sigmas": [0.25], "kl_weights": [0.0]}
    state, own = RCM((3, 8, 8), 10, **args).state_dict(), {key: args[key] for key in ("width", "depth", "sigmas")}
    file = formats.save(formats.Converted(state, "defense", args), tmp_path / "rcm.safetensors", "0" * 64, "rrcm").path
    load("rcm", [str(file)], **own, heads=2, kl_weights=[1.0])
    with pytest.raises(DrbenchError, match=r"heads = 2, defense\.args says 4"):
        load("rcm", [str(file)], **own, kl_weights=[1.0])
