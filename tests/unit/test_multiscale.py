"""Fine-tuning of the multi-scale rows: the losses by hand, what is trained and what is not, where it starts."""

import pytest
import torch

import drbench
from drbench import config, weights
from drbench.errors import DrbenchError
from drbench.jobs import fitting
from drbench.training import Recipe
from methods.multiscale.defense import MultiScale
from methods.multiscale.losses import calibration_losses


def test_losses_by_hand():
    """Two copies of four images: agreed and right, right on average, agreed on a wrong class, unsure and wrong."""
    q = torch.tensor([
        [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.8, 0.2, 0.0], [0.4, 0.3, 0.3]],
        [[0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.6, 0.4, 0.0], [0.4, 0.3, 0.3]],
    ])  # fmt: skip
    brier, agreement = calibration_losses(q, torch.tensor([0, 0, 1, 1]))
    first = 0.01 + 0.01
    second = (0.4**2 + 0.4**2 + 0.6**2 + 0.5**2 + 0.1**2) / 2
    assert brier.item() == pytest.approx((first + second) / 4)
    assert agreement.item() == pytest.approx((0.8 * 0.6 + 0.2 * 0.4) / 4)  # <q_1, q_2> of the third image alone
    assert calibration_losses(q, torch.tensor([0, 0, 1, 1]), p0=0.75)[1].item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("tuned, frozen", [("denoiser", "classifier"), ("classifier", "denoiser")])
def test_only_one_part_is_trained(tuned, frozen):
    defense = MultiScale((1, 8, 8), 3, channels=(8, 16), width=4, tuned=tuned)
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    x, y = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    modes, losses = set(), []

    def log(step, loss):
        modes.add(getattr(defense, frozen).training)
        losses.append(loss)

    defense.fit(x, y, Recipe(steps=3, batch=4, warmup=0), log)
    changed = {
        name.partition(".")[0] for name, value in defense.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {tuned} == set(defense.trained()) and modes == {False}
    assert len(set(losses)) == 3 and all(parameter.requires_grad for parameter in defense.parameters())
    assert not any(parameter.grad is not None for parameter in getattr(defense, frozen).parameters())


def test_one_shot_rows_of_denoised_and_multiscale_answer_alike():
    images = drbench.load_data("digits", subset="first8")
    names = ["digits/classifier", "digits/denoiser"]
    ours, theirs = (drbench.load_defense(name, images, names) for name in ("multiscale", "denoised"))
    draws = drbench.Draws.seeded(0, 8)
    z = images.x + 0.5 * draws.randn(8, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(ours.logits(z, 0.5, draws), theirs.logits(z, 0.5, draws))
        assert torch.equal(ours.logits(images.x, 0.0, draws), theirs.logits(images.x, 0.0, draws))


@pytest.mark.parametrize("args, message", [({"tuned": "both"}, "can tune"), ({"copies": 1}, "at least 2 noisy copies")])
def test_arguments_are_checked(args, message):
    with pytest.raises(DrbenchError, match=message):
        MultiScale(**args)


TUNING = """
task: train
defense: {name: multiscale, args: {tuned: classifier}, checkpoint: [digits/denoiser, out.safetensors]}
train: {checkpoint: out.safetensors, start: [digits/classifier], recipe: {steps: 1, lr: 1e-9, batch: 2, warmup: 0}}
"""


def test_training_starts_from_given_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(TUNING)
    fitting.train(config.load("a.yaml")[0], "test")
    begun = weights.read([weights.resolve("digits/classifier")])
    ended = weights.read([weights.resolve("out.safetensors")])
    assert begun.keys() == ended.keys()
    assert all(torch.allclose(begun[key], ended[key], atol=1e-6) for key in begun)


@pytest.mark.parametrize("start", ["[digits/denoiser]", "[digits/classifier,digits/denoiser]"])
def test_a_start_must_fit_what_is_trained(tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(TUNING)
    with pytest.raises(DrbenchError, match="must give the weights of what is trained"):
        fitting.train(config.load("a.yaml", [f"train.start={start}"])[0], "test")
