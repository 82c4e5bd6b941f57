"""OpenAI's files against what their own code computed, and files of our own making in their layout."""

import os
from pathlib import Path

import pytest
import torch

from drbench.checkpoints import adm_keys, formats
from drbench.diffusion import networks
from drbench.diffusion.networks import adm, adm_network, presets
from drbench.diffusion.schedules import timestep_for
from drbench.diffusion.train import edm_loss
from drbench.errors import DrbenchError

PARITY = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "parity"
CONFIG = {
    "improved_diffusion": {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "num_heads": 4,
                           "learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine"},
    "guided_diffusion": {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1,2,2",
                         "num_head_channels": 16, "resblock_updown": True, "learn_sigma": True},
    "openai_consistency": {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2,1",
                           "num_head_channels": 16, "resblock_updown": True, "class_cond": True},
}  # fmt: skip
FILES = {kind: f"{kind.removeprefix('openai_')}_c32" for kind in CONFIG}
DIMS = {"improved_diffusion": 1, "guided_diffusion": 1, "openai_consistency": 2}  # of the attention's convolutions


def to_original(state, config, legacy, dims):
    """The inverse of `adm_keys.to_ours`; attention weights become convolutions of `dims` (1 or 2) dimensions."""
    names, found, parts = adm_keys.modules(config), {}, {}
    for key, value in state.items():
        theirs, part = adm_keys.origin(key, names)
        if part is None:
            found[theirs] = value
        else:
            parts.setdefault(theirs, {})[part] = value
    found |= {theirs: _joined([three[i] for i in range(3)], config, legacy) for theirs, three in parts.items()}
    return {
        key: value[(..., *[None] * dims)] if key.endswith(adm_keys.POINTWISE) else value for key, value in found.items()
    }


def _joined(parts, config, legacy):
    if not legacy:
        return torch.cat(parts)
    width, rest = len(parts[0]), parts[0].shape[1:]
    heads = config.heads(width)
    return torch.stack([part.view(heads, width // heads, *rest) for part in parts], dim=1).reshape(3 * width, *rest)


def fixture(kind):
    path = PARITY / f"{FILES[kind]}.pt"
    if not path.exists():
        pytest.skip(f"needs the fixture {path.name} in $DRBENCH_SHARED/data/parity")
    return path, torch.load(PARITY / f"{FILES[kind]}_io.pt", weights_only=True)


def built(converted, classes=10):
    size = converted.spec["image_size"]
    denoiser = networks.build(converted.spec, (3, size, size), classes)
    denoiser.load_state_dict(converted.state, strict=True)
    return denoiser.eval().requires_grad_(False)


def read(kind, **other):
    path, recorded = fixture(kind)
    return built(formats.convert(path, kind, **CONFIG[kind] | other)), recorded


def worst(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", ["improved_diffusion", "guided_diffusion"])
def test_network_computes_what_the_official_code_does(kind):
    denoiser, recorded = read(kind)
    assert worst(denoiser.network(recorded["x"], recorded["timesteps"]), recorded["out"]) <= 1e-4


@pytest.mark.parametrize("kind", ["improved_diffusion", "guided_diffusion"])
def test_the_other_order_of_qkv_loads_and_is_wrong(kind):
    denoiser, recorded = read(kind, use_new_attention_order=True)
    assert worst(denoiser.network(recorded["x"], recorded["timesteps"]), recorded["out"]) >= 5e-4


def test_order_of_qkv_in_consistency_files_is_the_new_one_whatever_the_flag():
    path, recorded = fixture("openai_consistency")
    one, two = (formats.convert(path, "openai_consistency", **CONFIG["openai_consistency"],
                                use_new_attention_order=flag).state for flag in (False, True))  # fmt: skip
    assert all(torch.equal(one[key], two[key]) for key in one)
    config = adm.config("openai_consistency", CONFIG["openai_consistency"])
    denoiser, _ = read("openai_consistency")
    state = adm_keys.flat(torch.load(path, weights_only=True))
    denoiser.network.unet.load_state_dict(
        adm_keys.to_ours(state, list(denoiser.network.unet.state_dict()), config, True)
    )
    assert worst(denoiser(recorded["x_t"], recorded["sigmas"], recorded["y"]), recorded["denoised"]) >= 5e-4


@pytest.mark.parametrize("level", ["0.25", "0.5"])
def test_one_shot_denoising(level):
    """The official code adds noise up to the level of its timestep, sigma_t; given that image we agree with it."""
    denoiser, recorded = read("improved_diffusion")
    of = {key: recorded[f"sigma{level}_{key}"] for key in ("t", "sigma_t", "noisy01", "x_t", "denoised")}
    alphas_bar, t = denoiser.alphas_bar, int(of["t"])
    assert int(timestep_for(2 * float(level), alphas_bar)) == t
    sigma_t = torch.sqrt(1 / alphas_bar[t] - 1)
    assert abs(sigma_t / 2 - of["sigma_t"]) <= 1e-10
    noisy = recorded["image01"] + of["sigma_t"] * recorded["noise"]
    assert worst(noisy, of["noisy01"]) <= 1e-4
    z_net = 2 * of["noisy01"] - 1
    assert worst(alphas_bar[t].sqrt() * z_net, of["x_t"]) <= 1e-4
    # theirs, from x_t: (x_t - sqrt(1 - abar) eps) / sqrt(abar)
    eps = denoiser.network(of["x_t"], torch.full((3,), t / 4))[:, :3]
    x0 = (of["x_t"] - (1 - alphas_bar[t]).sqrt() * eps) / alphas_bar[t].sqrt()
    assert worst(x0, recorded[f"sigma{level}_denoised_unclipped"]) <= 1e-4
    assert worst(x0.clamp(-1, 1), of["denoised"]) <= 1e-4
    # ours: the same timestep for the nominal level, and the same estimate of the same image
    ours = denoiser(z_net, 2 * float(level))
    assert worst(ours, recorded[f"sigma{level}_denoised_unclipped"]) <= 1e-4
    # the noise that our engines add is exactly sigma, below sigma_t by less than a step of the schedule
    exact = denoiser(2 * (recorded["image01"] + float(level) * recorded["noise"]) - 1, 2 * float(level))
    assert 1e-4 < worst(exact, ours) < 0.02


def test_consistency_function():
    denoiser, recorded = read("openai_consistency")
    z, sigmas, labels = recorded["x_t"], recorded["sigmas"], recorded["y"]
    scaled = z / (sigmas**2 + 0.25).sqrt().view(-1, 1, 1, 1)
    assert worst(denoiser.network(scaled, sigmas.log() / 4, labels), recorded["model_output"]) <= 1e-4
    assert worst(denoiser(z, sigmas, labels), recorded["denoised"]) <= 1e-4
    assert torch.equal(denoiser(z[:1], sigmas[:1], labels[:1]), z[:1])
    assert worst(denoiser(z, sigmas, labels.roll(1)), recorded["denoised"]) >= 5e-4


def test_the_teacher_has_other_scalings():
    teacher, recorded = read("openai_consistency", distillation=False)
    z, sigmas, labels = recorded["x_t"], recorded["sigmas"], recorded["y"]
    sigma = sigmas.view(-1, 1, 1, 1)
    skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
    assert worst(teacher(z, sigmas, labels), skip * z + out * recorded["model_output"]) <= 1e-4
    assert worst(teacher(z, sigmas, labels), recorded["denoised"]) >= 5e-4


@pytest.mark.parametrize("kind", list(CONFIG))
def test_fixture_round_trip(kind):
    path, _ = fixture(kind)
    original = torch.load(path, weights_only=True)
    converted = formats.convert(path, kind, **CONFIG[kind])
    prefix = "network.unet."
    ours = {key.removeprefix(prefix): value for key, value in converted.state.items() if key.startswith(prefix)}
    config = adm.config(kind, converted.spec)
    back = to_original(ours, config, kind != "openai_consistency", DIMS[kind])
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


# Files of our own making: no fixture is needed

TINY = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (4,)}
VARIANTS = {
    "improved": ("improved_diffusion", {"num_heads": 2, "learn_sigma": True}),
    "updown": ("guided_diffusion", {"resblock_updown": True, "num_head_channels": 16}),
    "half": ("guided_diffusion", {"num_channels": 64, "channel_mult": (0.5, 1), "use_new_attention_order": True}),
    "labels": ("openai_consistency", {"class_cond": True, "classes": 5, "use_scale_shift_norm": False}),
}


def made(kind, config, seed=0):
    """A random original state dict of that configuration."""
    chosen = adm.config(kind, config)
    with torch.device("meta"):
        unet = adm_network.network(chosen).unet
    rng = torch.Generator().manual_seed(seed)
    shapes = adm_keys.shapes(unet.state_dict(), chosen)
    flat = {key: 0.1 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    return {key: value[..., None] if key.endswith(adm_keys.POINTWISE) else value for key, value in flat.items()}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_round_trip(variant, tmp_path):
    kind, config = VARIANTS[variant]
    config = TINY | config
    original = made(kind, config)
    torch.save(original, tmp_path / "file.pt")
    converted = formats.convert(tmp_path / "file.pt", kind, **config)
    ours = {key.removeprefix("network.unet."): value for key, value in converted.state.items() if key != "sigma_data"}
    chosen = adm.config(kind, converted.spec)
    legacy = kind != "openai_consistency" and not chosen.use_new_attention_order
    back = to_original(ours, chosen, legacy, 1)
    assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in original)
    denoiser = built(converted, 5)
    assert denoiser.num_classes == (5 if variant == "labels" else None)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 4]) if variant == "labels" else None
    out = denoiser(z, 0.5, labels)
    assert out.shape == z.shape and out.isfinite().all()
    assert torch.allclose(out[1:], denoiser(z[1:], 0.5, None if labels is None else labels[1:]), atol=1e-5)


def test_saved_weights_and_spec_rebuild_the_network(tmp_path):
    from drbench import weights

    kind, config = VARIANTS["improved"]
    torch.save(made(kind, TINY | config), tmp_path / "file.pt")
    converted = formats.convert(tmp_path / "file.pt", kind, **TINY | config)
    saved = formats.save(converted, tmp_path / "out.safetensors", "0" * 64, kind, tmp_path / "file.pt")
    state = {key.removeprefix("denoiser."): value for key, value in weights.read([saved]).items()}
    z = torch.zeros(1, 3, 8, 8)
    assert torch.equal(built(converted._replace(state=state))(z, 0.5), built(converted)(z, 0.5))


def test_files_of_distributed_runs_are_read(tmp_path):
    kind, config = VARIANTS["improved"]
    original = made(kind, TINY | config)
    torch.save({f"module.{key}": value for key, value in original.items()}, tmp_path / "file.pt")
    torch.save(original, tmp_path / "plain.pt")
    one, two = (formats.convert(tmp_path / name, kind, **TINY | config) for name in ("file.pt", "plain.pt"))
    assert all(torch.equal(one.state[key], two.state[key]) for key in one.state)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"num_res_blocks": 2}, r"missing, first 'input_blocks.*unexpected"),
     ({"learn_sigma": False}, r"first 'out.2.weight': expected \(3, 32, 3, 3\), got \(6, 32, 3, 3\)"),
     ({"class_cond": True}, "1 tensors missing, first 'label_emb.weight'"),
     ({"use_scale_shift_norm": False}, "of another shape, first .*emb_layers.1.weight"),
     ({"resblock_updown": True}, "missing"),
     ({"attention_resolutions": [8, 4]}, r"missing, first 'input_blocks.1.1")],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_configuration_is_reported_in_the_words_of_the_file(other, said, tmp_path):
    kind, config = VARIANTS["improved"]
    torch.save(made(kind, TINY | config), tmp_path / "file.pt")
    with pytest.raises(DrbenchError, match=said):
        formats.convert(tmp_path / "file.pt", kind, **TINY | config | other)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"num_chanels": 32}, "no option 'num_chanels'; did you mean 'num_channels'"),
     ({"num_channels": "32"}, "expected num_channels as int, got '32'"),
     ({"learn_sigma": 1}, "expected learn_sigma as bool"),
     ({"num_channels": 40}, r"multiples of 32.*\[40, 80\]"),
     ({"num_heads": 3}, r"attention widths \[64\] that 3 divides"),
     ({"num_res_blocks": 0}, "num_res_blocks >= 1"),
     ({"channel_mult": "1,two"}, "channel_mult: expected numbers"),
     ({"channel_mult": None}, "image_size 8 has no default channel_mult"),
     ({"pad": -1}, "pad >= 0"),
     ({"noise_schedule": "sigmoid"}, "noise_schedule as one of linear, cosine"),
     ({"unlabelled": "mean"}, "only with class_cond"),
     ({"class_cond": True, "unlabelled": "random"}, "unlabelled as zero, mean or nothing"),
     ({"predict_xstart": True}, "predict_xstart is supported as False only"),
     ({"timestep_respacing": "250"}, "timestep_respacing is supported as '' only"),
     ({"num_heads_upsample": 4}, "num_heads_upsample is supported as -1 only")],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_options_are_named(options, said):
    with pytest.raises(DrbenchError, match=said):
        networks.build({"kind": "improved_diffusion", **TINY, **options}, (3, 8, 8), 10)


def test_flags_of_training_are_no_obstacle():
    spec = {
        "kind": "guided_diffusion",
        **TINY,
        "use_fp16": True,
        "rescale_learned_sigmas": True,
        "predict_xstart": False,
    }
    assert networks.build(spec, (3, 8, 8), 10).time_scale == 1


def test_the_network_sees_rescaled_time_where_it_was_trained_so():
    spec = {**TINY, "diffusion_steps": 4000, "noise_schedule": "cosine"}
    assert networks.build({"kind": "improved_diffusion", **spec}, (3, 8, 8), 10).time_scale == 0.25
    assert networks.build({"kind": "guided_diffusion", **spec}, (3, 8, 8), 10).time_scale == 1


def test_images_that_cannot_be_halved_are_refused():
    denoiser = networks.build({"kind": "improved_diffusion", **TINY}, (3, 7, 8), 10)
    with pytest.raises(DrbenchError, match="multiples of 2, got 7x8"):
        denoiser(torch.zeros(1, 3, 7, 8), 0.5)


def test_padding_mirrors_and_cuts_back():
    spec = {"kind": "improved_diffusion", **TINY, "learn_sigma": True}
    plain, padded = networks.build(spec, (3, 8, 8), 10).eval(), networks.build({**spec, "pad": 3}, (3, 8, 8), 10).eval()
    padded.load_state_dict(plain.state_dict())
    z = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    rows, columns = [3, 2, 1, *range(6), 4, 3, 2], [3, 2, 1, *range(8), 6, 5, 4]
    with torch.no_grad():
        expected = plain(z[:, :, rows][:, :, :, columns], 0.5)[:, :, 3:-3, 3:-3]
        assert torch.allclose(padded(z, 0.5), expected, atol=1e-6)
    with pytest.raises(DrbenchError, match="pad 3 on either side"):
        padded(torch.zeros(1, 3, 2, 8), 0.5)


@pytest.mark.parametrize("labels", [{}, {"class_cond": True, "unlabelled": "zero"}], ids=["unconditional", "labels"])
def test_an_epsilon_network_can_be_tuned(labels):
    """As in the tuning of multi-scale smoothing; an unconditional network leaves the labels of the data aside."""
    denoiser = networks.build({"kind": "improved_diffusion", **TINY, "learn_sigma": True, **labels}, (3, 8, 8), 10)
    x, rng = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    loss = edm_loss(denoiser, 2 * x - 1, rng, torch.tensor([0, 1, 2, 3]), label_dropout=0.5)
    loss.backward()
    assert loss.isfinite() and all(value.grad is not None for value in denoiser.network.unet.conv_in.parameters())


def test_dropped_labels_need_a_meaning():
    denoiser = networks.build({"kind": "improved_diffusion", **TINY, "class_cond": True}, (3, 8, 8), 10).train()
    with pytest.raises(DrbenchError, match="unlabelled: zero"):
        edm_loss(denoiser, torch.zeros(2, 3, 8, 8), torch.Generator(), torch.tensor([0, 1]), label_dropout=1.0)


@pytest.mark.parametrize("kind", ["guided_diffusion", "openai_consistency"])
def test_absent_labels(kind):
    """A conditional network says what it needs; "zero" and "mean" are what they say."""
    spec = {"kind": kind, **TINY, "class_cond": True, "classes": 3}
    z, labels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    refusing = networks.build(spec, (3, 8, 8), 3).eval()
    with pytest.raises(DrbenchError, match="unlabelled: zero"):
        refusing(z, 0.5)
    for unlabelled, embedding in (("zero", lambda w: 0 * w[0]), ("mean", lambda w: w.mean(0))):
        told = networks.build({**spec, "unlabelled": unlabelled}, (3, 8, 8), 3).eval()
        told.load_state_dict(refusing.state_dict())
        with torch.no_grad():
            assert torch.equal(told(z, 0.5, labels), refusing(z, 0.5, labels))
            answer = told(z, 0.5)
            weight = refusing.network.unet.class_embedding.weight
            kept = weight.clone()
            weight[:] = embedding(weight)
            assert torch.allclose(refusing(z, 0.5, labels), answer, atol=1e-6)
            weight[:] = kept
    unconditional = networks.build({"kind": kind, **TINY}, (3, 8, 8), 3)
    with pytest.raises(DrbenchError, match="unconditional network"):
        unconditional(z, 0.5, labels)


def test_a_class_conditional_network_without_a_count_knows_the_classes_of_the_data():
    assert networks.build({"kind": "guided_diffusion", **TINY, "class_cond": True}, (3, 8, 8), 7).num_classes == 7


# Presets


def count(name):
    spec = presets.expanded({"preset": name})
    size = spec["image_size"]
    with torch.device("meta"):
        return sum(value.numel() for value in networks.build(spec, (3, size, size), 10).parameters())


@pytest.mark.parametrize("name", [name for name, entry in presets.table().items() if "image_size" in entry])
def test_preset_has_the_parameters_that_it_says(name):
    assert count(name) == presets.table()[name]["parameters"]


def test_presets_have_the_parameters_of_the_papers():
    """The two files of multi-scale smoothing to the last parameter, the others as rounded in papers and file names."""
    assert count("improved_diffusion/cifar10_uncond_50M_500K") == 52_546_438
    assert count("guided_diffusion/256x256_diffusion_uncond") == 552_814_086
    millions = {"guided_diffusion/64x64_diffusion": 296, "guided_diffusion/128x128_diffusion": 422,
                "guided_diffusion/256x256_diffusion": 554, "guided_diffusion/512x512_diffusion": 559,
                "openai_consistency/cd_imagenet64_lpips": 296}  # fmt: skip
    assert {name: round(count(name) / 1e6) for name in millions} == millions


def test_preset_in_a_spec():
    spec = presets.expanded({"preset": "openai_consistency/cd_imagenet64_l2", "unlabelled": "zero"})
    assert spec["kind"] == "openai_consistency" and spec["unlabelled"] == "zero" and "source" not in spec
    with pytest.raises(DrbenchError, match="did you mean 'improved_diffusion/cifar10_uncond_50M_500K'"):
        presets.expanded({"preset": "improved_diffusion/cifar10_uncond_50M"})
    with pytest.raises(DrbenchError, match="is of kind 'guided_diffusion'"):
        presets.expanded({"preset": "guided_diffusion/64x64_diffusion", "kind": "improved_diffusion"})
