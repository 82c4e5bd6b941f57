"""The training loop: it learns, averages, resumes exactly, and refuses what it cannot do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from drbench.errors import DrbenchError
from drbench.recipe import Recipe
from drbench.training import augment, sample, step_rng, train

RECIPE = Recipe(steps=60, batch=16, lr=0.05, warmup=5, ema_halflife=5)


def problem(dropout=0.0):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def loss(rng):
        x = torch.randn(16, 3, generator=rng)
        return (network(x) - x.sum(1, keepdim=True)).square().mean()

    return network, loss


def test_loss_falls_and_average_is_returned():
    network, loss = problem()
    losses = []
    train(network, loss, RECIPE, lambda step, value: losses.append(value))
    assert len(losses) == 60 and sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert not network.training


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_killed_training_ends_with_the_same_weights(dropout, tmp_path, monkeypatch):
    monkeypatch.setattr("drbench.training.SAVE_EVERY", 20)
    network, loss = problem(dropout)
    train(network, loss, RECIPE, lambda *a: None)
    recipe = replace(RECIPE, state=str(tmp_path / "state"))

    def kill(step, value):
        if step == 47:
            raise KeyboardInterrupt

    again, loss = problem(dropout)
    with pytest.raises(KeyboardInterrupt):
        train(again, loss, recipe, kill)
    resumed, loss = problem(dropout)
    steps = []
    train(resumed, loss, recipe, lambda step, value: steps.append(step))
    assert steps[0] == 41
    for a, b in zip(network.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(DrbenchError, match="another recipe"):
        train(resumed, loss, replace(recipe, lr=0.1), lambda *a: None)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list", "other"])
def test_a_damaged_state_is_named(damage, tmp_path, monkeypatch):
    monkeypatch.setattr("drbench.training.SAVE_EVERY", 20)
    network, loss = problem()
    state = tmp_path / "state"
    recipe = replace(RECIPE, state=str(state))
    train(network, loss, recipe, lambda *a: None)
    if damage in ("list", "other"):
        torch.save([1] if damage == "list" else {"step": 20}, state)
    else:
        state.write_bytes({"cut": state.read_bytes()[:-200], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(DrbenchError, match=r"state .*delete it to start anew"):
        train(network, loss, recipe, lambda *a: None)


def test_groups_have_their_own_learning_rate_and_others_stand_still():
    network, loss = problem()
    before = [value.clone() for value in network.state_dict().values()]
    groups = [{"params": [network[0].weight], "scale": 0.1}, {"params": [network[3].weight]}]
    train(network, loss, replace(RECIPE, steps=1, warmup=0, lr=1e-2, clip=1e9), lambda *a: None, groups)
    moved = [float((a - b).abs().max()) for a, b in zip(network.state_dict().values(), before, strict=True)]
    assert moved[1] == moved[3] == 0 and moved[0] == pytest.approx(0.1 * moved[2], rel=1e-2)


def test_divergence_and_bad_recipes():
    network, _ = problem()
    with pytest.raises(DrbenchError, match="training diverged: the loss at step 0 is nan"):
        train(network, lambda rng: network(torch.full((1, 3), torch.nan)).sum(), RECIPE, lambda *a: None)
    with pytest.raises(DrbenchError, match="expected positive values, got steps=0"):
        Recipe(steps=0)


def test_global_generator_is_untouched():
    network, loss = problem(dropout=0.2)
    before = torch.get_rng_state()
    train(network, loss, replace(RECIPE, steps=3), lambda *a: None)
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation():
    x = torch.zeros(2000, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    assert augment(x, RECIPE, step_rng(0, 0)) is x
    moved = augment(x, replace(RECIPE, shift=2.0), step_rng(0, 0))
    grid = torch.arange(9.0)
    for axis in ((1, 2), (1, 3)):  # centre of mass along rows, then columns
        centre = (moved.sum(axis) * grid).sum(1) / moved.sum(axis).sum(1)
        # uniform on [2, 6]: bilinear interpolation keeps the centre of mass
        assert 2.0 <= centre.min() < 2.2 and 5.8 < centre.max() <= 6.0
        assert abs(centre.mean() - 4) < 5 * 4 / (12 * 2000) ** 0.5
    x[:, :, 4, 4], x[:, :, 4, 8] = 0.0, 1.0
    turned = augment(x, replace(RECIPE, rotate=90.0), step_rng(0, 0))
    assert turned[:, 0, :, :4].sum() < 1e-3 * turned.sum()  # never beyond a quarter turn to either side
    assert turned[:, 0, :4].sum() > 0.3 * turned.sum() and turned[:, 0, 5:].sum() > 0.3 * turned.sum()


def test_sample_is_reproducible():
    x, y = torch.arange(50.0).reshape(50, 1, 1, 1), torch.arange(50)
    a, b = (sample(x, y, RECIPE, step_rng(0, 7)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[0].flatten().long(), a[1])
    assert not torch.equal(a[1], sample(x, y, RECIPE, step_rng(0, 8))[1])


def test_a_state_belongs_to_one_training(tmp_path, monkeypatch):
    """Another objective, network or data set never goes on from this state."""
    from drbench import config, data
    from drbench.jobs import fitting

    path = tmp_path / "a.yaml"
    path.write_text("task: train\ndefense: {name: undefended}\ntrain: {checkpoint: m.safetensors}")
    images = {split: data.load("digits", split) for split in ("train", "validation")}

    def name(*overrides, split="train"):
        return fitting._state_file(config.load(path, overrides)[0], images[split])

    others = [name("defense.args.width=8"), name("train.recipe.steps=7"), name("train.checkpoint=other/m.safetensors"),
              name("defense.name=denoised"), name(split="validation")]  # fmt: skip
    assert len({name(), *others}) == 6 and name() == name("run.threads=1")


def test_optimizer_decay_and_flip():
    """RAdam's first steps are those of momentum alone: their size is the learning rate times the gradient."""
    parameter = nn.Linear(1, 1, bias=False)
    parameter.weight.data.fill_(1.0)
    recipe = Recipe(steps=2, batch=1, lr=0.1, warmup=0, ema_halflife=1, clip=1e9, optimizer="radam", decay="constant")
    seen = []
    train(
        parameter,
        lambda rng: 3 * parameter.weight.sum(),
        recipe,
        lambda step, value: seen.append(parameter.weight.item()),
    )
    assert seen == pytest.approx([0.7, 0.4])  # Adam would move by lr alone
    x = torch.arange(8.0).reshape(1, 1, 2, 4).expand(500, -1, -1, -1)
    flipped = augment(x, replace(RECIPE, flip=True), step_rng(0, 0))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ mirrored).all() and 180 < mirrored.sum() < 320
    for wrong in ({"optimizer": "sgd"}, {"decay": "linear"}):
        with pytest.raises(DrbenchError, match="decay is cosine or constant and optimizer is adamw or radam"):
            Recipe(**wrong)
