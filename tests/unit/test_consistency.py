"""The consistency row: times, metrics by hand, encoders, what is trained and from where."""

import hashlib
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

import drbench
from drbench.api import Draws
from drbench.errors import DrbenchError
from drbench.recipe import Recipe
from methods.consistency import metrics
from methods.consistency.defense import Consistency
from methods.consistency.features import Encoder, fit_encoder, rotated

RECIPE = Recipe(steps=3, batch=4, warmup=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(*shape):
    return torch.randn(*shape, generator=generator(0)), torch.randn(*shape, generator=generator(1))


def tiny(**args):
    return Consistency((1, 8, 8), 3, channels=(8, 16), width=4, **{"metric": "l2", **args})


class Recorder(nn.Module):
    """Stands in for the purifier: halves its input and keeps it."""

    def forward(self, z_net, told):
        self.z_net, self.told = z_net, told
        return z_net / 2


# ---- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, told, randomized",
    [
        ({}, (0.5853, 1.0882, 1.9233), False),
        ({"points": 40}, (0.4700, 1.0717, 1.7672), False),
        ({"time": "exact"}, (0.5, 1.0, 2.0), False),
        ({"time": "inflate"}, (0.5853, 1.0882, 1.9233), True),
    ],
)
def test_told_times(args, told, randomized):
    defense = tiny(**args)
    assert [defense.told(sigma) for sigma in (0.25, 0.5, 1.0)] == pytest.approx(told, abs=5e-5)
    assert defense.randomized == randomized


@pytest.mark.parametrize("time, levels", [("snap", (0.5, 1.0, 2.0)), ("inflate", (0.5853, 1.0882, 2.0))])
def test_noise_that_the_purifier_meets(time, levels):
    """Snapping leaves the noise at 2 sigma; inflating lifts it to the told time where that is above."""
    defense, rows = tiny(time=time), 2000
    defense.denoiser = Recorder()
    for sigma, level in zip((0.25, 0.5, 1.0), levels, strict=True):
        draws = Draws.seeded(0, rows)
        noise = draws.randn(rows, 1, 8, 8)
        purified = defense.purify(0.5 + sigma * noise, sigma, draws)
        z_net = defense.denoiser.z_net  # a grey image is 0 in network units
        assert float(z_net.std()) == pytest.approx(level, rel=5 / (2 * z_net.numel()) ** 0.5)
        assert defense.denoiser.told == defense.told(sigma)
        torch.testing.assert_close(purified, ((z_net / 2).clamp(-1, 1) + 1) / 2)


def test_without_noise_the_classifier_is_alone_and_little_noise_is_left_alone():
    defense = tiny(sigmas=(0.0, 0.001))
    x = torch.rand(4, 1, 8, 8, generator=generator())
    with torch.no_grad():
        assert torch.equal(defense.logits(x, 0.0, None), defense.classifier(x))
        assert defense.nfe(0.0) == {"classifier": 1}
        torch.testing.assert_close(defense.purify(x, 0.001, None), x, rtol=0, atol=1e-6)  # t_min: the identity


def test_the_control_is_the_one_shot_denoiser():
    images, names = drbench.load_data("digits", subset="first8"), ["digits/classifier", "digits/denoiser"]
    ours = drbench.load_defense(
        "consistency", images, names, function="denoiser", objective="tuning", metric="l2", time="exact"
    )
    theirs = drbench.load_defense("denoised", images, names)
    z = images.x + 0.5 * Draws.seeded(0, 8).randn(8, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(ours.logits(z, 0.5, None), theirs.logits(z, 0.5, None))


@pytest.mark.parametrize(
    "args, message",
    [({"metric": "lpips"}, "unknown metric 'lpips'"), ({"time": "snapped"}, "time as one of"),
     ({"objective": "all"}, "objective as one of"), ({"function": "edm"}, "function as one of"),
     ({"function": "denoiser"}, "objective tuning"), ({"points": 1}, "points >= 2"), ({"ema": 1.0}, r"ema in \[0, 1\)"),
     ({"encoder_recipe": {"step": 1}}, "got step")],
)  # fmt: skip
def test_arguments_are_checked(args, message):
    with pytest.raises(DrbenchError, match=message):
        tiny(**args)


# ---- metrics -----------------------------------------------------------------------------------------------


def test_pixel_metrics_by_hand():
    a = torch.zeros(2, 1, 4, 4)
    b = torch.zeros(2, 1, 4, 4)
    b[0] = 1.0
    b[1, 0, 0, 0] = 16.0
    assert metrics.l1(a, b).tolist() == [1, 1] and metrics.l2(a, b).tolist() == [1, 16]
    # a constant difference has no gradient, and is 1 in each of the three pools
    # a spike: pools 16/16, 4/4, 1/1; gradients of 16 in one of 12 places an axis, of 4 in one of 2, none at 1x1
    gradients = 2 * 16 / 12 + 2 * 4 / 2
    assert metrics.multiscale_l1(a, b).tolist() == pytest.approx([3, 3 + gradients])


def test_feature_distance_by_hand():
    encoder = Encoder(1, 3, width=4)
    distance, (a, b) = metrics.FeatureDistance(encoder), pair(5, 1, 8, 8)
    found = distance(a, b)
    assert found.shape == (5,) and torch.equal(distance(b, a), found) and not distance(a, a).any()
    expected = torch.zeros(5)
    for p, q in zip(encoder.maps(a), encoder.maps(b), strict=True):
        p, q = (m.double() / m.double().norm(dim=1, keepdim=True) for m in (p, q))
        expected += (p - q).square().sum(1).mean((1, 2)).float()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    blank = torch.zeros(1, 1, 8, 8, requires_grad=True)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    (slope,) = torch.autograd.grad(distance(blank, a[:1]).sum(), blank)
    assert slope.isfinite().all()  # where all channels are zero there is no direction


@pytest.mark.parametrize("name", [name for name in metrics.METRICS if name != "lpips_vgg"])
def test_metrics_are_distances_of_rows(name):
    x, y = torch.rand(12, 1, 8, 8, generator=generator()), torch.arange(12) % 3
    distance, (a, b) = metrics.metric(name, x, y, 3, RECIPE, width=4), pair(6, 1, 8, 8)
    found = distance(a.requires_grad_(), b)
    assert found.shape == (6,) and (found > 0).all() and not distance(b, b).any()
    torch.testing.assert_close(distance(a[2:3], b[2:3]), found[2:3])
    (slope,) = torch.autograd.grad(found[0], a)
    assert slope[0].any() and not slope[1:].any()


def test_lpips_is_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DrbenchError, match=rf"needs torchvision's VGG16 weights at {tmp_path}.*nothing is downloaded"):
        metrics.metric("lpips_vgg", torch.zeros(1, 1, 8, 8), torch.zeros(1), 3, RECIPE)
    with pytest.raises(DrbenchError, match="choose one of feat_aux"):
        tiny(objective="tuning", metric="lpips_vgg").fit(torch.rand(4, 1, 8, 8), torch.zeros(4).long(), RECIPE, None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics.VGG).write_bytes(b"not these weights")
    with pytest.raises(DrbenchError, match="VGG16 weights, whose sha256 begins with 397923af, got "):
        metrics.lpips_vgg(torch.device("cpu"))


@pytest.mark.slow
def test_lpips_with_weights_on_disk(tmp_path, monkeypatch):
    """Random VGG16 weights in place of the real ones: the formula of the paper with the package's heads."""
    import torchvision

    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}  # the classifier is not used
    for name in state:
        if name.startswith("features"):
            state[name] = 0.05 * torch.randn(shapes[name].shape, generator=generator())
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / metrics.VGG
    torch.save(state, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(metrics, "VGG_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    distance, (a, b) = metrics.lpips_vgg(torch.device("cpu")), pair(2, 1, 8, 8)
    found = distance(a.requires_grad_(), b)
    assert found.shape == (2,) and torch.autograd.grad(found.sum(), a)[0].any() and not distance(b, b).any()

    import lpips

    heads = torch.load(f"{lpips.__path__[0]}/weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    maps = []
    for image in (a, b):
        x = nn.functional.interpolate(image.expand(-1, 3, -1, -1), (224, 224), mode="bilinear", align_corners=False)
        x, kept = (x - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        for layer in range(30):
            if layer in (4, 9, 16, 23):
                kept.append(x)
                x = nn.functional.max_pool2d(x, 2)
            elif f"features.{layer}.weight" in state:
                x = nn.functional.conv2d(
                    x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], padding=1
                )
            else:
                x = x.relu()
        maps.append([*kept, x])
    expected = 0
    for i, (p, q) in enumerate(zip(*maps, strict=True)):
        p, q = (m / m.norm(dim=1, keepdim=True) for m in (p, q))
        expected = expected + (heads[f"lin{i}.model.1.weight"] * (p - q) ** 2).sum(1).mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


# ---- encoders ----------------------------------------------------------------------------------------------


def test_rotations():
    x = torch.arange(4.0).reshape(1, 1, 2, 2).expand(200, -1, -1, -1)
    turned, quarters = rotated(x, generator())
    assert set(quarters.tolist()) == {0, 1, 2, 3}
    for image, k in zip(turned, quarters, strict=True):
        assert torch.equal(image, x[0].rot90(int(k), (1, 2)))


@pytest.mark.parametrize("kind, outputs", [("feat_aux", 10), ("feat_ssl", 4)])
def test_encoders_learn(kind, outputs):
    """Far above chance on held-out digits within seconds, the same weights each time; labels reach feat_aux alone."""
    train, held = (drbench.load_data("digits", split) for split in ("train", "validation"))
    recipe = Recipe(steps=150, batch=128, lr=5e-3, warmup=10, ema_halflife=10, seed=3)
    encoder = fit_encoder(kind, train.x, train.y, 10, recipe)
    x, y = rotated(held.x, generator()) if kind == "feat_ssl" else (held.x, held.y)
    with torch.no_grad():
        right = encoder(2 * x - 1).argmax(1).eq(y).float().mean()
    assert encoder.head.out_features == outputs and right > 0.6
    short = replace(recipe, steps=2)
    same, other = (fit_encoder(kind, train.x, labels, 10, short) for labels in (train.y, train.y.roll(1)))
    assert torch.equal(fit_encoder(kind, train.x, train.y, 10, short).head.weight, same.head.weight)
    assert torch.equal(same.head.weight, other.head.weight) == (kind == "feat_ssl")


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [{}, {"ema": 0.5}, {"objective": "training", "ema": 0.9, "points": 11}, {"objective": "tuning"},
     {"objective": "tuning", "function": "denoiser"},
     {"objective": "tuning", "metric": "feat_ssl", "encoder_width": 4}],
)  # fmt: skip
def test_only_the_purifier_is_trained(args):
    defense = tiny(**args)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    x, y, losses = torch.rand(8, 1, 8, 8, generator=generator()), torch.arange(8) % 3, []
    defense.fit(x, y, RECIPE, lambda step, loss: losses.append(loss))
    after = defense.state_dict()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"denoiser"} == set(defense.trained()) and len(set(losses)) == 3
    assert after.keys() == before.keys()  # neither teacher nor target nor encoder stays
    scratch = args.get("objective") == "training"
    std = (2 * x - 1).double().std(correction=0).item()
    assert after["denoiser.sigma_data"].item() == pytest.approx(std if scratch else 0.5)
    with torch.no_grad():
        z = 2 * x - 1
        if args.get("function") != "denoiser":
            assert torch.equal(defense.denoiser(z, 0.002), z)  # the boundary holds after training


def test_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """The target network and the step of the schedules are part of the saved state."""
    monkeypatch.setattr("drbench.training.SAVE_EVERY", 3)
    x, y, recipe = torch.rand(8, 1, 8, 8, generator=generator()), torch.arange(8) % 3, replace(RECIPE, steps=8)
    ends = []
    for state in (None, str(tmp_path / "state")):
        torch.manual_seed(0)
        defense = tiny(objective="training", ema=0.9, points=9)
        start = {name: value.clone() for name, value in defense.state_dict().items()}

        def kill(step, loss, state=state):
            if state and step == 5:
                raise KeyboardInterrupt

        own = replace(recipe, state=state)
        if state:
            with pytest.raises(KeyboardInterrupt):
                defense.fit(x, y, own, kill)
            defense = tiny(objective="training", ema=0.9, points=9)
            defense.load_state_dict(start)
        defense.fit(x, y, own, lambda step, loss: None)
        ends.append(defense.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_distillation_keeps_the_teacher_near_the_clean_end():
    """The student starts as the teacher: before the first step both give almost the same image."""
    images, names = drbench.load_data("digits", subset="first8"), ["digits/classifier", "digits/denoiser"]
    student = drbench.load_defense("consistency", images, names, metric="l2", time="exact")
    teacher = drbench.load_defense("denoised", images, names)
    z = images.x + 0.5 * Draws.seeded(0, 8).randn(8, 1, 8, 8)
    with torch.inference_mode():
        gap = (student.purify(z, 0.5, None) - teacher.purify(z, 0.5, None)).abs().max()
    assert 0 < gap < 0.01 and math.isfinite(gap)


# ---- networks of other projects ----------------------------------------------------------------------------

OPENAI = {"kind": "openai_consistency", "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1], "num_heads": 2,
          "attention_resolutions": [4], "class_cond": True, "unlabelled": "zero"}  # fmt: skip


def foreign(denoiser, **args):
    return Consistency((3, 8, 8), 3, width=4, **{"metric": "l2", "denoiser": denoiser, **args}).eval()


def test_purifier_of_another_project_is_told_the_snapped_time():
    defense, z = foreign(OPENAI), torch.rand(2, 3, 8, 8, generator=generator())
    purified = defense.purify(z, 0.5, Draws.seeded(0, 2))
    expected = defense.denoiser(2 * z - 1, torch.full((2,), defense.told(0.5))).clamp(-1, 1)
    assert torch.allclose(purified, (expected + 1) / 2, atol=1e-6)


def test_purifier_that_does_not_fit_is_named():
    with pytest.raises(DrbenchError, match="function 'consistency' got a denoiser"):
        foreign({**OPENAI, "distillation": False})
    with pytest.raises(DrbenchError, match="function 'denoiser' got a consistency function"):
        foreign(OPENAI, function="denoiser", objective="tuning")
    with pytest.raises(DrbenchError, match=r"exact at time 0.01.*set t_min: 0.01"):
        foreign({**OPENAI, "sigma_min": 0.01})


@pytest.mark.parametrize("objective", ["distillation", "training", "tuning"])
def test_purifier_of_another_project_trains(objective):
    defense, x = foreign(OPENAI, objective=objective), torch.rand(8, 3, 8, 8, generator=generator())
    before = {key: value.clone() for key, value in defense.denoiser.state_dict().items()}
    defense.fit(x, torch.arange(8) % 3, replace(RECIPE, steps=2), lambda step, loss: None)
    assert defense.denoiser.state_dict().keys() == before.keys()
    assert any(not torch.equal(value, before[key]) for key, value in defense.denoiser.state_dict().items())


def test_teacher_of_another_project_has_the_scalings_of_a_denoiser():
    defense = foreign(OPENAI)
    teacher = defense.denoiser.teacher()
    z, labels = torch.randn(2, 3, 8, 8, generator=generator()), torch.tensor([0, 2])
    raw = defense.denoiser.network(z / (0.25 + 1) ** 0.5, torch.zeros(2), labels)
    expected = 0.25 / 1.25 * z + 0.5 / 1.25**0.5 * raw
    assert torch.allclose(teacher(z, 1.0, labels), expected, atol=1e-5)


def test_cells_of_the_ablation():
    """Four of 100 images lost, 20 shortened by 0.1; a wrong class (-1) has no radius."""
    from benchmarks.consistency_ablation import acr_cell, cell

    base = pd.Series([0.5] * 80 + [-1.0] * 20)
    own = base.copy()
    own[:4], own[4:24] = -1.0, 0.4
    assert (cell(base, None, 0.0), acr_cell(base, None)) == ("80.0", "0.400")
    assert cell(own, base, 0.0).startswith("76.0 (-4.0 [") and cell(own, base, 0.5).startswith("56.0 (-24.0 [")
    own_acr, gap, low, high = (float(word.strip("()[],")) for word in acr_cell(own, base).split())
    assert (own_acr, gap) == (0.36, -0.04)
    spread = 1.96 * (own.clip(lower=0) - base.clip(lower=0)).std() / 10
    assert (low, high) == pytest.approx((gap - spread, gap + spread), abs=0.1 * spread)
