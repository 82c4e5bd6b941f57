"""RCM: the paper's path, network and losses, against the check values of arXiv 2501.13094 and closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from drbench.errors import DrbenchError
from drbench.recipe import Recipe
from drbench.training import step_rng
from methods.rcm import pretrain as pretraining
from methods.rcm import views
from methods.rcm.defense import RCM
from methods.rcm.network import HEAD_STD, Classifier, ViT, projection_head, time_token
from methods.rcm.path import ema_decay, grid, grid_size, snap
from methods.rcm.pretrain import Pretraining, info_nce
from methods.rcm.tune import consistency, groups, tune

RECIPE = Recipe(steps=4, batch=8, warmup=0, ema_halflife=1)


def small(projector=None, seed=0, **shape) -> ViT:
    shape = {"input_shape": (1, 8, 8), "patch": 4, "width": 16, "depth": 2, "heads": 2} | shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViT(**shape, projector=projector, projection=8)


def images(rows=16, shape=(1, 8, 8), seed=0):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


def silent(step, loss):
    pass


# ---- path ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, first", [(81, (80, 74.6976, 69.69934)), (41, (80, 69.69934, 60.55708)), (21, (80, 60.55708, 45.31373))]
)
def test_grid_starts_at_the_noisiest_point(n, first):
    assert [grid(n)[i] for i in range(3)] == pytest.approx(first, rel=1e-6)
    assert grid(n)[n - 1] == pytest.approx(0.002, rel=1e-9)
    levels = [grid(n)[i] for i in range(n)]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    "n, target, index, snapped",
    [(81, 0.5, 53, 0.492707), (81, 1.0, 48, 0.965417), (81, 2.0, 42, 2.003647), (81, 0.002, 80, 0.002),
     (41, 0.5, 26, 0.566635), (41, 1.0, 24, 0.965417), (41, 2.0, 21, 2.003647),
     (21, 0.5, 13, 0.566635), (21, 1.0, 12, 0.965417), (21, 2.0, 11, 1.583984)],
)  # fmt: skip
def test_snapped_levels(n, target, index, snapped):
    assert snap(target, n) == grid(n)[index] == pytest.approx(snapped, abs=5e-7)


@pytest.mark.parametrize("steps, length", [(600_000, 258_406), (300_000, 129_203)])
def test_curriculum_of_the_grid(steps, length):
    sizes = [grid_size(k, steps) for k in (0, 1, length, length + 1, steps)]
    assert sizes == [21, 41, 41, 81, 81]


@pytest.mark.parametrize(
    "sharpness, share, decay",
    [(10, 0, 0.99), (10, 0.05, 0.992436), (10, 0.1, 0.994592), (10, 0.2, 0.997556), (10, 0.4, 0.999548),
     (10, 1, 0.999899), (15, 0.1, 0.996308), (15, 0.2, 0.998972), (15, 0.4, 0.999852)],
)  # fmt: skip
def test_decay_of_the_target(sharpness, share, decay):
    assert ema_decay(round(share * 1000), 1000, 0.99, 0.9999, sharpness) == pytest.approx(decay, abs=5.1e-7)
    assert ema_decay(7, 10, 0.99, 0.99, sharpness) == 0.99


# ---- network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "side, patch, width, depth, heads, hidden, encoder, projector",
    [(224, 16, 768, 12, 12, 4096, 85_771_776, 20_987_904),
     (224, 16, 512, 6, 8, 2048, 19_401_728, 5_775_360),
     (32, 4, 768, 12, 12, 2048, 85_117_440, 6_299_648)],
)  # fmt: skip
def test_parameter_counts_of_the_paper(side, patch, width, depth, heads, hidden, encoder, projector):
    with torch.device("meta"):
        network = ViT((3, side, side), patch, width, depth, heads)
        head = projection_head(width, hidden, 256)
        linear = Classifier(network, 1000).linear_head
    assert [sum(p.numel() for p in part.parameters()) for part in (network, head, linear)] == [
        encoder, projector, 1000 * width + 1000]  # fmt: skip
    assert network.pos_embed.shape[1] == (side // patch) ** 2 + 2


def test_names_and_shapes_of_the_official_files():
    d, h = 16, 24
    wanted = {"cls_token": (1, 1, d), "pos_embed": (1, 6, d), "patch_embed.proj.weight": (d, 1, 4, 4),
              "patch_embed.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,),
              "projection_head.0.weight": (h, d), "projection_head.3.weight": (h, h),
              "projection_head.6.weight": (8, h)}  # fmt: skip
    for k in range(2):
        own = {"norm1.weight": (d,), "norm1.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
               "attn.qkv.weight": (3 * d, d), "attn.proj.weight": (d, d), "attn.proj.bias": (d,),
               "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d),
               "mlp.fc2.bias": (d,)}  # fmt: skip
        wanted |= {f"blocks.{k}.{name}": shape for name, shape in own.items()}
    for i in (1, 4):
        wanted |= {f"projection_head.{i}.{name}": (h,) for name in ("weight", "bias", "running_mean", "running_var")}
        wanted[f"projection_head.{i}.num_batches_tracked"] = ()
    network = small(projector=h)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == wanted
    tuned = set(Classifier(network, 3).state_dict())
    assert tuned == {f"base_model.{name}" for name in wanted} | {"linear_head.weight", "linear_head.bias"}


@pytest.mark.parametrize(
    "index, u, c_in",
    [(53, -176.960, 1.424564), (48, -8.7988, 0.919784), (42, 173.742, 0.484240), (80, -1553.654, 1.999984)],
)
def test_input_scale_and_time_value(index, u, c_in):
    """Both use the level of the grid. The first cosine and sine of the token are those of u itself."""
    t, token = grid(81)[index], time_token(grid(81)[index], 16)
    turns = round((u - math.atan2(token[8], token[0])) / (2 * math.pi))
    assert math.atan2(token[8], token[0]) + 2 * math.pi * turns == pytest.approx(u, abs=3e-3)
    angles = u * 10_000 ** (-torch.arange(8) / 8)
    assert torch.allclose(token, torch.cat((angles.cos(), angles.sin())), atol=3e-3)
    network, seen = small(), []
    network.patch_embed.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.ones(1, 1, 8, 8), t)
    assert seen[0].unique().item() == pytest.approx(c_in, abs=5e-7)


def test_encoder_is_the_plain_pre_norm_vit():
    """The same numbers from torch's own transformer layer, which is given our weights."""
    network, x, t = small(), images(5) * 2 - 1, 0.5
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    patches = network.patch_embed.proj(x / math.sqrt(t**2 + 0.25)).flatten(2).mT
    fixed = torch.cat((network.cls_token[0], time_token(t, 16)[None])).expand(5, 2, 16)
    tokens = torch.cat((fixed, patches), 1) + network.pos_embed
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        names = {"self_attn.in_proj_weight": block.attn.qkv.weight, "self_attn.in_proj_bias": torch.zeros(48),
                 "self_attn.out_proj.weight": block.attn.proj.weight,
                 "self_attn.out_proj.bias": block.attn.proj.bias}  # fmt: skip
        for ours, theirs in ((block.norm1, "norm1"), (block.norm2, "norm2"), (block.mlp.fc1, "linear1"),
                             (block.mlp.fc2, "linear2")):  # fmt: skip
            names |= {f"{theirs}.weight": ours.weight, f"{theirs}.bias": ours.bias}
        layer.load_state_dict(names)
        tokens = layer(tokens)
    assert torch.allclose(network(x, t, normed=False), tokens[:, 0], atol=1e-5)
    assert torch.allclose(network(x, t), network.norm(tokens[:, 0]), atol=1e-5)


def test_noise_level_is_an_input():
    network, x = small(), images(3)
    assert not torch.allclose(network(x, 0.5), network(x * math.sqrt(1.25 / 0.5), 1.0), atol=1e-3)


def test_head_starts_at_the_official_scale():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Classifier(small(width=64), 1000).linear_head
    # 64,000 draws of a normal cut at 2 standard deviations, whose own deviation is 0.8796
    assert head.weight.std().item() == pytest.approx(0.8796 * HEAD_STD, rel=0.02)
    assert head.weight.abs().max() <= 2 * HEAD_STD and not head.bias.any()


# ---- pre-training -------------------------------------------------------------------------------------------------


def test_info_nce_is_cross_entropy_with_diagonal_targets():
    q, k = torch.randn(2, 6, 5, generator=step_rng(0, 0))
    cos = nn.functional.cosine_similarity(q[:, None], k[None], dim=2)
    wanted = (cos / 0.2).logsumexp(1) - cos.diagonal() / 0.2
    assert info_nce(q, k).item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert info_nce(3 * q, 7 * k).item() == pytest.approx(info_nce(q, k).item(), rel=1e-5)
    assert info_nce(q[:1].expand(6, -1), k[:1].expand(6, -1)).item() == pytest.approx(math.log(6), rel=1e-5)


class Spy(nn.Module):
    """An encoder that keeps its calls, and is linear, so that the gradient of each branch can be told apart."""

    def __init__(self, pixels=64):
        super().__init__()
        self.body, self.calls = nn.Linear(pixels, 8), []
        self.projection_head = nn.Linear(8, 4)

    def forward(self, x, t):
        out = self.body(x.flatten(1))
        self.calls.append((x, t, out))
        return out


def test_both_branches_of_the_path_share_their_noise_and_only_the_noisier_one_learns():
    stage = Pretraining(Spy(), "consistency", 100, (0.99, 0.999, 10))
    x = images()
    for step in range(3):
        stage.loss(x, step_rng(0, step)).backward()
    for (cleaner, low, key), (noisier, high, query) in zip(*[iter(stage.online.calls)] * 2, strict=True):
        assert low < high and query.requires_grad and not key.requires_grad
        noise = (noisier - cleaner) / (high - low)
        assert torch.allclose(noisier - high * noise, 2 * x - 1, atol=2e-4 * high)
        assert torch.allclose(cleaner - low * noise, 2 * x - 1, atol=2e-4 * high)
        assert noise.std().item() == pytest.approx(1, abs=0.1) and not torch.allclose(noise[0], noise[1])
    assert len(stage.online.calls) == 6 and stage.target.calls == []


def test_one_pair_of_neighbours_for_the_whole_batch():
    stage, grids = Pretraining(Spy(), "consistency", 100, (0.99, 0.999, 10)), []
    for step in range(100):
        stage.loss(images(2), step_rng(0, step))
        points = grid_size(step, 100)
        low, high = (call[1] for call in stage.online.calls[-2:])
        (n,) = (i for i in range(points - 1) if grid(points)[i] == high)
        assert low == grid(points)[n + 1]
        grids.append(n / (points - 2))
    assert min(grids) < 0.05 and max(grids) > 0.95 and abs(sum(grids) / 100 - 0.5) < 5 * 12**-0.5 / 10


def test_contrastive_term_is_symmetric_with_keys_of_the_target():
    stage = Pretraining(Spy(), "contrastive", 100, (0.99, 0.999, 10))
    with torch.no_grad():
        stage.target.body.weight.add_(1.0)
    a, b = images(6, seed=1), images(6, seed=2)

    def project(network, x):
        return network.projection_head(network.body(x.flatten(1)))

    wanted = info_nce(project(stage.online, a), project(stage.target, b))
    wanted = wanted + info_nce(project(stage.online, b), project(stage.target, a))
    found = stage.contrastive(a, b)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert stage.contrastive(b, a).item() == pytest.approx(found.item(), rel=1e-6)
    found.backward()
    assert stage.online.body.weight.grad.abs().sum() > 0 and stage.target.body.weight.grad is None
    assert {t for _, t, _ in stage.online.calls + stage.target.calls} == {0.002}


def test_both_terms_add_up_with_weight_one():
    losses, x = {}, images()
    for kind in ("contrastive", "consistency", "both"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses[kind] = Pretraining(Spy(), kind, 100, (0.99, 0.999, 10)).loss(x, step_rng(0, 0)).item()
    assert losses["both"] == pytest.approx(losses["contrastive"] + losses["consistency"], rel=1e-6)


def test_views_share_the_noise_of_the_path(monkeypatch):
    """With augmentation switched off, what both views carry beyond the image is the noise of the path."""
    monkeypatch.setattr(views, "strong", lambda x, rng: x)
    stage, x = Pretraining(Spy(), "both", 100, (0.99, 0.999, 10)), images()
    stage.loss(x, step_rng(0, 0))
    first, second, cleaner, noisier = (call[0] for call in stage.online.calls)
    low, high = (call[1] for call in stage.online.calls[2:])
    noise = (noisier - cleaner) / (high - low)
    for view in (first, second):
        assert torch.allclose((view - (2 * x - 1)) / 0.002, noise, atol=1e-3)


def test_target_follows_the_online_network():
    stage = Pretraining(Spy(), "both", 10, (0.9, 0.99, 10))
    before = stage.target.body.weight.clone()
    stage.loss(images(), step_rng(0, 0))
    assert torch.equal(stage.target.body.weight, before)  # nothing was learned yet
    with torch.no_grad():
        stage.online.body.weight.add_(1.0)
    stage.loss(images(), step_rng(0, 1))
    moved = (stage.target.body.weight - before).mean().item()
    assert moved == pytest.approx(1 - ema_decay(1, 10, 0.9, 0.99, 10), rel=1e-4)


def test_pretraining_lowers_its_loss_and_leaves_no_projector():
    encoder, losses = small(), []
    before = torch.get_rng_state()
    recipe = Recipe(steps=60, batch=32, lr=3e-3, warmup=3, ema_halflife=1)
    pretraining.pretrain(encoder, images(32), recipe, lambda step, loss: losses.append(loss), projector=(16, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # measured: 0.80
    assert encoder.state_dict().keys() == small().state_dict().keys()
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_views_are_images_and_independent(shape):
    x = images(200, shape).clamp(0.2, 0.8)
    first, second = (views.strong(x, step_rng(0, 0)) for _ in range(2))
    other = views.strong(x, step_rng(0, 1))
    assert torch.equal(first, second) and first.shape == x.shape and first.min() >= 0 and first.max() <= 1
    assert ((first - x).flatten(1).abs().amax(1) > 1e-3).all()
    assert ((first - other).flatten(1).abs().amax(1) > 1e-3).all()


def test_light_view_flips_colour_images_only():
    x = images(200, (3, 4, 4))
    flipped = [bool(torch.equal(a, b.flip(2))) for a, b in zip(views.light(x, step_rng(0, 0)), x, strict=True)]
    assert 65 < sum(flipped) < 135  # five standard deviations of 200 coins
    grey = images(4)
    assert views.light(grey, step_rng(0, 0)) is grey


# ---- tuning -------------------------------------------------------------------------------------------------------


def test_consistency_vanishes_for_equal_predictions_and_entropy_is_log_k_for_uniform_ones():
    logits = torch.randn(1, 6, 10, generator=step_rng(0, 0)).expand(2, -1, -1)
    assert consistency(logits, 20.0, 0.0).item() == pytest.approx(0, abs=1e-5)
    entropy = torch.distributions.Categorical(logits=logits[0]).entropy().mean()
    assert consistency(logits, 20.0, 0.5).item() == pytest.approx(0.5 * entropy.item(), rel=1e-5)
    assert consistency(torch.zeros(2, 6, 10), 20.0, 1.0).item() == pytest.approx(math.log(10), rel=1e-6)


def test_consistency_of_different_predictions():
    a, b = torch.randn(2, 6, 10, generator=step_rng(0, 0))
    p, q = a.softmax(1), b.softmax(1)
    mean = (p + q) / 2
    kl = sum((mean * (mean / r).log()).sum(1) for r in (p, q)) / 2
    wanted = (20 * kl - 0.5 * (mean * mean.log()).sum(1)).mean()
    assert consistency(torch.stack((a, b)), 20.0, 0.5).item() == pytest.approx(wanted.item(), rel=1e-5)
    extreme = torch.tensor([[[0.0, -200.0]], [[0.0, -200.0]]])  # exp(-200) is 0 in float32: its log is clamped
    assert consistency(extreme, 20.0, 0.5).isfinite()


def test_layers_decay_from_the_head_down():
    network = Classifier(small(depth=3), 4)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)]: group["scale"] for group in groups(network, 0.5, True) for p in group["params"]}
    assert found.keys() == set(names.values())
    for name, scale in found.items():
        layer = int(name.split(".")[2]) + 1 if ".blocks." in name else 4 * ("norm" in name or "head" in name)
        assert scale == 0.5 ** (4 - layer), name
    without = {id(p) for group in groups(network, 0.5, False) for p in group["params"]}
    assert {names[key] for key in names.keys() - without} == {"linear_head.weight", "linear_head.bias"}


def test_layer_decay_slows_the_early_layers():
    """One Adam step moves each weight by its learning rate, whatever its gradient; the average goes half of the way."""
    network = Classifier(small(), 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recipe = replace(RECIPE, steps=1, lr=2e-3, clip=1e9)
    tune(network, images(), torch.arange(16) % 4, 0.5, 0.5, recipe, silent, kl_weight=0.0, entropy_weight=0.0,
         layer_decay=0.1)  # fmt: skip
    moved = {name: (value - before[name]).abs().max().item() for name, value in network.state_dict().items()}
    assert moved["linear_head.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["base_model.blocks.1.mlp.fc2.bias"] == pytest.approx(1e-4, rel=1e-1)
    assert moved["base_model.blocks.0.mlp.fc2.bias"] == pytest.approx(1e-5, rel=1e-1)
    assert moved["base_model.patch_embed.proj.bias"] == pytest.approx(1e-6, rel=1e-1)


@pytest.mark.parametrize("head", [False, True])
def test_frozen_head_stays_bit_identical(head):
    network = Classifier(small(), 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recipe = replace(RECIPE, ema_halflife=3, weight_decay=0.1)
    tune(network, images(), torch.arange(16) % 4, 0.5, 0.5, recipe, silent, kl_weight=1.0, entropy_weight=0.5,
         head=head)  # fmt: skip
    same = {name: torch.equal(value, before[name]) for name, value in network.state_dict().items()}
    assert not any(value for name, value in same.items() if name.startswith("base_model"))
    assert same["linear_head.weight"] is same["linear_head.bias"] is not head


class Recorder(Classifier):
    def forward(self, x, t):
        self.seen = [*getattr(self, "seen", []), (x, t)]
        return super().forward(x, t)


def test_tuning_noise_is_twice_sigma_and_differs_between_the_copies():
    network, x = Recorder(small(), 4), torch.full((1, 1, 8, 8), 0.25)
    recipe = replace(RECIPE, steps=2, batch=256)
    tune(network, x, torch.zeros(1, dtype=torch.long), 1.0, snap(1.0, 81), recipe, silent, kl_weight=1.0,
         entropy_weight=0.5)  # fmt: skip
    z, t = network.seen[0]
    noise = z - (2 * 0.25 - 1)
    assert len(z) == 512 and t == snap(1.0, 81) != 1.0
    assert noise.std().item() == pytest.approx(2 * 0.5, rel=5 / (2 * noise.numel()) ** 0.5)
    a, b = noise.unflatten(0, (2, 256)).flatten(1)
    assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


# ---- defense ------------------------------------------------------------------------------------------------------


def test_noise_in_pixels_is_twice_as_large_inside():
    """x' = p + sigma eps, x~ = 2 x' - 1: pure noise of level sigma arrives with deviation 2 sigma, unclipped."""
    defense, seen = RCM.tiny((1, 8, 8), 10).eval(), []
    defense.classifiers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    noise = torch.randn(2000, 1, 8, 8, generator=step_rng(0, 0))
    defense.logits(0.5 + 0.5 * noise, 0.5, None)
    (x, t), = seen  # fmt: skip
    assert x.std().item() == pytest.approx(1.0, rel=5 / (2 * noise.numel()) ** 0.5) and x.max() > 4
    assert t == grid(81)[48]


def test_training_is_set_by_the_seed_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("drbench.training.SAVE_EVERY", 2)
    x, y = images(), torch.arange(16) % 10

    def fitted(recipe, log=silent, **args):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            defense = RCM(patch=4, width=16, heads=2, projector=(16, 8), pretraining_recipe={"steps": 6}, **args)
        defense.fit(x, y, recipe, log)
        return defense.state_dict()

    def equal(a, b):
        return all(torch.equal(a[key], b[key]) for key in a)

    first = fitted(RECIPE)
    assert equal(first, fitted(RECIPE))
    assert not equal(first, fitted(replace(RECIPE, seed=1)))
    for stop in (5, 6 + 3, 6 + 4 + 3):  # in pre-training, in each tuning
        recipe, calls = replace(RECIPE, state=str(tmp_path / f"state{stop}")), []

        def kill(step, loss, calls=calls, stop=stop):
            calls.append(step)
            if len(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted(recipe, kill)
        assert equal(first, fitted(recipe))


def test_ablations_differ_and_networks_start_from_one_encoder():
    x, y, states = images(), torch.arange(16) % 10, {}
    for kind in ("none", "contrastive", "consistency", "both"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            defense = RCM.tiny((1, 8, 8), 10)
        defense.pretraining = kind
        # a learning rate of nearly zero in tuning shows the encoders that it starts from
        defense.pretraining_recipe = {"lr": 1e-2}
        defense.fit(x, y, replace(RECIPE, lr=1e-12), silent)
        states[kind] = [network.base_model.norm.weight for network in defense.classifiers]
        states[kind] += [network.base_model.patch_embed.proj.weight for network in defense.classifiers]
    for kind, (_, _, first, second) in states.items():
        assert torch.allclose(first, second, atol=1e-6) is (kind != "none")
    patches = torch.stack([state[2] for state in states.values()]).flatten(1)
    assert (torch.pdist(patches) > 1e-3).all()


@pytest.mark.parametrize(
    "args, message",
    [({"patch": 3}, "divides the image"), ({"width": 30}, "multiple of heads"),
     ({"pretraining": "moco"}, "consistency, both, got 'moco'"), ({"head": "linear"}, "frozen, got 'linear'"),
     ({"kl_weights": (1.0,)}, "one of kl_weights"), ({"pretraining_recipe": {"epochs": 3}}, "got epochs")],
)  # fmt: skip
def test_arguments_are_checked(args, message):
    with pytest.raises(DrbenchError, match=message):
        RCM(**args)


def test_unknown_pretraining():
    with pytest.raises(DrbenchError, match="unknown pre-training 'none'"):
        pretraining.pretrain(small(), images(), RECIPE, silent, kind="none")


def test_paired_differences_of_the_ablation():
    from benchmarks.rcm_ablation import difference

    same = torch.rand(3, 500, generator=step_rng(0, 0)).numpy() < 0.5
    assert difference(same, same) == "+0.0 [+0.0, +0.0]"
    worse = same.copy()
    worse[:, :100] = False  # lost by every seed: the images alone vary, and in pairs
    lost = 100 * same[:, :100].sum() / 1500
    mean, low, high = (float(word.strip("[],")) for word in difference(worse, same).split())
    assert mean == pytest.approx(-lost, abs=0.06) and low < mean < high
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * (same[:, :100].mean(0) ** 2).sum() ** 0.5 / 500, rel=0.15)


@pytest.mark.slow
def test_colour_images_of_32_pixels_from_training_to_certificate():
    """Three classes that differ in colour and are shown under noise: learned, certified, and shipped as weights."""
    from drbench import certify

    y = torch.arange(96) % 3
    x = 0.3 * images(96, (3, 32, 32))
    x[torch.arange(96), y] += 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense = RCM((3, 32, 32), 3, sigmas=(0.5,), kl_weights=(5.0,), patch=4, width=32, depth=2, heads=4,
                      layernorm=False, projector=(32, 16), pretraining_recipe={"steps": 20})  # fmt: skip
    losses = []
    defense.fit(x[:64], y[:64], Recipe(steps=60, batch=32, warmup=5, ema_halflife=1), lambda *a: losses.append(a))
    assert [step for step, _ in losses] == [*range(1, 21), *range(1, 61)]
    frame = certify(defense, (x[64:], y[64:]), 0.5, n=200, batch_rows=550)
    assert (frame.correct & (frame.radius > 0.25)).mean() > 0.9
    again = RCM.from_checkpoint(defense.state_dict(), input_shape=(3, 32, 32), num_classes=3, sigmas=(0.5,),
                                kl_weights=(5.0,), patch=4, width=32, heads=4, layernorm=False)  # fmt: skip
    with torch.no_grad():
        assert torch.equal(again.eval().logits(x, 0.5, None), defense.logits(x, 0.5, None))
