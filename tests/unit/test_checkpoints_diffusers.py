"""Folders of diffusers, against what diffusers itself computes with them."""

import json

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel

from drbench.checkpoints import formats
from drbench.diffusion import networks
from drbench.diffusion.schedules import sigma_net_of
from drbench.errors import DrbenchError

SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
         "attention_head_dim": 8}  # fmt: skip


def folder(path, scheduler=None, safe=True, **unet):
    """A pipeline's folder, written by diffusers; its network in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(**SMALL | unet).eval().requires_grad_(False)
    network.save_pretrained(path / "unet", safe_serialization=safe)
    if scheduler is not None:
        scheduler.save_pretrained(path / "scheduler")
    return network


def built(path, channels=3, **config):
    converted = formats.convert(path, "diffusers", **config)
    denoiser = networks.build(converted.spec, (channels, 8, 8), 10)
    denoiser.load_state_dict(converted.state, strict=True)
    return denoiser.eval().requires_grad_(False)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_epsilon_network_of_a_ddpm(schedule, tmp_path):
    scheduler = DDPMScheduler(beta_schedule=schedule, clip_sample=False)
    network = folder(tmp_path, scheduler, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
    denoiser, t = built(tmp_path), 300
    x_t = noise(1, 2, 3, 8, 8)
    theirs = scheduler.step(network(x_t, t).sample, t, x_t).pred_original_sample
    sigma_net = float(sigma_net_of(t, denoiser.alphas_bar))
    ours = denoiser(x_t / float(denoiser.alphas_bar[t].sqrt()), sigma_net)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert float(denoiser.alphas_bar[t]) == pytest.approx(float(scheduler.alphas_cumprod[t]), rel=1e-5)


def test_consistency_pipeline_with_classes(tmp_path):
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_data=0.4, clip_denoised=False)
    network = folder(tmp_path, scheduler, num_class_embeds=4, resnet_time_scale_shift="scale_shift",
                     attn_norm_num_groups=4)  # fmt: skip
    denoiser, labels = built(tmp_path), torch.tensor([1, 3])
    scheduler.set_timesteps(timesteps=[20])
    t, sigma = scheduler.timesteps[0], float(scheduler.sigmas[0])
    z = sigma * noise(2, 2, 3, 8, 8)
    raw = network(scheduler.scale_model_input(z, t), t, class_labels=labels).sample
    theirs = scheduler.step(raw, t, z).prev_sample  # of a single step: no noise is added
    assert torch.allclose(denoiser(z, sigma, labels), theirs, atol=1e-4)
    assert torch.allclose(denoiser(z, 0.002, labels), z, atol=1e-6)
    with pytest.raises(DrbenchError, match="got no labels"):
        denoiser(z, sigma)
    assert built(tmp_path, unlabelled="mean")(z, sigma).isfinite().all()


def test_a_folder_of_the_network_alone_and_weights_as_bin(tmp_path):
    network = folder(tmp_path, safe=False)
    x = noise(3, 1, 3, 8, 8)
    denoiser = built(tmp_path / "unet")
    assert len(denoiser.alphas_bar) == 1000
    assert torch.allclose(denoiser.network(x, torch.tensor([7.0])), network(x, 7).sample, atol=1e-5)


def test_names_of_old_uploads(tmp_path):
    """Before version 0.14 the attention was query, key, value, proj_attn, possibly as 1x1 convolutions."""
    from safetensors.torch import load_file, save_file

    network = folder(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in load_file(path).items():
        for new, name in names.items():
            if f".{new}." in key:
                key = key.replace(f".{new}.", f".{name}.")
                value = value[..., None, None] if key.endswith("weight") else value
        old[key] = value
    assert any("proj_attn" in key for key in old)
    save_file(old, path)
    x = noise(4, 1, 3, 8, 8)
    assert torch.allclose(built(tmp_path).network(x, torch.tensor([5.0])), network(x, 5).sample, atol=1e-5)


def edited(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("where", "changes", "said"),
    [("unet", {"_class_name": "UNet2DConditionModel"}, "expected the config.json of a UNet2DModel"),
     ("unet", {"layers_per_bloc": 1}, "no option 'layers_per_bloc'; did you mean 'layers_per_block'"),
     ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type positional"),
     ("unet", {"layers_per_block": 2}, "do not fit the network: .*missing"),
     ("unet", {"block_out_channels": [8]}, "cannot be built"),
     ("scheduler", {"prediction_type": "v_prediction"}, "predicts epsilon, got 'v_prediction'"),
     ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule linear, scaled_linear or squaredcos_cap_v2")],
)  # fmt: skip
def test_what_cannot_be_read_is_named(where, changes, said, tmp_path):
    folder(tmp_path, DDPMScheduler())
    edited(tmp_path / where / ("config.json" if where == "unet" else "scheduler_config.json"), **changes)
    with pytest.raises(DrbenchError, match=said):
        built(tmp_path)


def test_unknown_scheduler_and_missing_files(tmp_path):
    folder(tmp_path, EulerDiscreteScheduler())
    with pytest.raises(DrbenchError, match="scheduler 'EulerDiscreteScheduler': expected one of DDPMScheduler"):
        built(tmp_path)
    assert len(built(tmp_path, scheduler={"num_train_timesteps": 500}).alphas_bar) == 500
    with pytest.raises(DrbenchError, match="takes images of 3 channels, got 1"):
        built(tmp_path, channels=1, scheduler={"num_train_timesteps": 500})
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DrbenchError, match=r"expected diffusion_pytorch_model.safetensors.*got config.json"):
        built(tmp_path, scheduler={"num_train_timesteps": 500})
    with pytest.raises(DrbenchError, match=r"config.json: expected the JSON file"):
        built(tmp_path / "nowhere")
