"""The diffusion classifier against closed forms, brute force and plain autograd."""

import math
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import drbench
from drbench import config
from drbench.api import Draws, DrbenchError
from drbench.attacks.losses import Loss
from drbench.attacks.views import Direct
from drbench.cost import Evaluations, measured_nfe
from drbench.diffusion import schedules
from drbench.diffusion.exact import ExactDenoiser
from drbench.diffusion.networks.unet import small_unet
from drbench.diffusion.precond import EDMDenoiser, VPDenoiser
from drbench.draws import Span
from drbench.recipe import Recipe
from methods.diffusion_classifier import likelihood, pruning
from methods.diffusion_classifier import terms as terms_of
from methods.diffusion_classifier.defense import DiffusionClassifier
from methods.diffusion_classifier.errors import Pairs, all_pairs, denoising_errors
from methods.diffusion_classifier.likelihood import Ascent, maximize
from methods.diffusion_classifier.multihead import MultiHead
from methods.diffusion_classifier.pruning import Sift

SHARED = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "parity"
SHAPE = (1, 8, 8)
SECOND = {"kind": "small_unet", "channels": [8], "groups": 4}
HALF = {"size": 4, "interpolation": "bilinear", "antialias": True}


def tiny(seed=0, **args):
    """A small classifier with random weights, whose output depends on the label."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        defaults = {"channels": (8,), "levels": (0.5, 3.0), "nodes": 3}
        made = DiffusionClassifier(SHAPE, 4, **{**defaults, **args})
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made.eval()


def images(rows=5, seed=0):
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


# ---- weights and nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "s, scale, released, intended",
    [
        (0.024, 1740.111, 0.138191, 1.50145),
        (0.1, 104.0, 1.385451, 2.179748),
        (0.3, 15.11111, 1.108160, 1.108167),
        (0.5, 8.0, 0.552622, 0.608162),
        (1.0, 5.0, 0.117883, 0.201642),
        (2.0, 4.25, 0.012590, 0.047890),
        (3.0, 4.11111, 0.002469, 0.017695),
    ],
)
def test_weights_of_the_released_code_and_of_edm(s, scale, released, intended):
    s = torch.tensor([s], dtype=torch.float64)
    for kind, density in (("released", released), ("true", intended)):
        assert terms_of.density(kind, s).item() == pytest.approx(density, rel=1e-5, abs=6e-7)
        assert terms_of.weights(kind, s, 0.1, 0.5).item() == pytest.approx(scale * density * 0.1, rel=5e-4)
    assert terms_of.weights("elbo", s, 0.1, 0.5).item() == pytest.approx(0.1 / s.item() ** 3)


@pytest.mark.parametrize("points, released, intended", [(126, 33.42, 118.17), (1001, 33.47, 196.35)])
def test_sums_of_weights(points, released, intended):
    for kind, total in (("released", released), ("true", intended)):
        assert terms_of.plain(1e-4, 3.0, points - 1, kind, 0.5).weight.sum() == pytest.approx(total, abs=0.005)
    assert terms_of.plain(1e-4, 3.0, points - 1, "uniform", 0.5).weight.sum() == pytest.approx(1)


def test_nodes_and_weights_are_those_of_the_official_code():
    file = SHARED / "edm_classifier_t16_io.pt"
    if not file.exists():
        pytest.skip("needs the fixture edm_classifier_t16_io.pt in $DRBENCH_SHARED/data/parity")
    official = torch.load(file, weights_only=True)
    ours = terms_of.plain(1e-4, 3.0, 16, "released", 0.5)
    torch.testing.assert_close(ours.level.float(), official["sigma"])
    torch.testing.assert_close(ours.weight.float(), official["weight"])


def test_the_sum_of_a_vp_network_is_its_error_of_the_noise():
    """Every timestep once, w_t = 1, mean over timesteps and pixels: plain loops over an epsilon network."""
    asked = []

    def network(x_t, time, labels):
        asked.append(time)
        return torch.tanh(x_t * (1 + labels.view(-1, 1, 1, 1)) + time.view(-1, 1, 1, 1) / 1000)

    alphas_bar = schedules.alphas_bar(schedules.linear_betas(1000))
    levels = terms_of.vp(1000).spread[[0, 99, 124, 999]]
    known = torch.tensor([0.9999, 0.897018, 0.846180, 4.03583e-5], dtype=torch.float64)  # of the official code
    torch.testing.assert_close(1 / (1 + levels**2), known, rtol=1e-5, atol=0)
    defense, x = tiny(weight="vp", nodes=1000, logit_scale=1.0), images(2)
    defense.denoiser = VPDenoiser(lambda *given: network(*given), alphas_bar)
    found, noise = defense.logits(x, 0.0, Draws.seeded(0, 2)), Draws.seeded(0, 2).randn(2, 1000, 1, *SHAPE)
    assert sorted(torch.cat(asked).tolist()) == sorted(list(range(1000)) * 8)  # of two images and four classes
    expected = torch.zeros(2, 4)
    for t, abar in enumerate(alphas_bar.float()):
        e = noise[:, t, 0]
        x_t = abar.sqrt() * (2 * x - 1) + (1 - abar).sqrt() * e
        for y in range(4):
            error = network(x_t, torch.full((2,), float(t)), torch.full((2,), y)) - e
            expected[:, y] -= error.square().flatten(1).mean(1) / 1000
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(terms_of.vp(4).level) == 4 and terms_of.vp(4).weight.sum() > 0
    for wrong, words in (({"nodes": 1001}, "1 to 1000 nodes"), ({"noised": "apndc"}, "for clean images")):
        with pytest.raises(DrbenchError, match=words):
            tiny(weight="vp", **wrong)


def test_true_density_is_a_density():
    s = torch.linspace(1e-3, 60, 400_001, dtype=torch.float64)
    for levels in ((-1.2, 1.2), (-0.3, 1.0)):
        assert torch.trapezoid(terms_of.density("true", s, *levels), s) == pytest.approx(1, abs=2e-3)


def test_weights_of_epndc_are_those_of_the_official_code():
    """At sigma 0.25: 119 terms of 126 points; the checked values weigh the difference of the two posterior means."""
    found = terms_of.posterior(0.5, 3.0, 125, "released", 0.5)
    below, _ = terms_of.grid(0.5, 3.0, 125)
    s, above = below[5:-1], found.level
    weight = found.weight / ((above**2 - s**2) / above**2) ** 2
    assert len(weight) == 119 and s[0] == pytest.approx(0.60) and above[0] == pytest.approx(0.62)
    assert weight[0] == pytest.approx(15.662, abs=1e-3) and weight[-1] == pytest.approx(1.21108, abs=1e-5)
    assert weight.sum() == pytest.approx(560.04, abs=0.005)


def test_terms_of_epndc_are_the_distance_of_the_posterior_means():
    tau = 0.7
    found = terms_of.posterior(tau, 3.0, 12, "elbo", 0.5)
    s, _ = terms_of.grid(tau, 3.0, 12)
    s = s[1:-1]
    generator = torch.Generator().manual_seed(0)
    x_tau, guess, noise = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    for i, above in enumerate(found.level):
        later = x_tau + math.sqrt(above**2 - tau**2) * noise
        q = ((above**2 - s[i] ** 2) * x_tau + (s[i] ** 2 - tau**2) * later) / (above**2 - tau**2)
        p = ((above**2 - s[i] ** 2) * guess + s[i] ** 2 * later) / above**2
        derived = (above**2 - tau**2) / (2 * (s[i] ** 2 - tau**2) * (above**2 - s[i] ** 2))
        ours = found.weight[i] * (guess - x_tau - found.shift[i] * noise).square().mean()
        torch.testing.assert_close(ours, derived * (q - p).square().mean())
        torch.testing.assert_close(x_tau + found.spread[i] * noise, later)


def test_epndc_at_no_noise_is_the_evidence_lower_bound():
    found = terms_of.posterior(1e-6, 3.0, 3000, "elbo", 0.5)
    torch.testing.assert_close(found.weight, 1e-3 / found.level**3, rtol=0.02, atol=0)
    assert found.shift.abs().max() < 1e-8


def test_apndc_as_in_the_text_adds_only_the_missing_noise():
    found = terms_of.from_noisy(0.5, 3.0, 10, "released", 0.5)
    torch.testing.assert_close(found.spread**2 + 0.25, found.level**2)


def test_mistakes_are_explained():
    for args, message in (
        ({"weight": "edm"}, "unknown weight 'edm'"),
        ({"levels": (3.0, 0.5)}, "0 < low < high"),
        ({"noised": "epndc", "nodes": 2}, "ask for more nodes"),
        ({"noised": "ndc"}, "noised is one of"),
        ({"likelihood": {"form": "sgd"}}, "likelihood.form is one of"),
        ({"network": "multihead", "sift": {"nodes": 2, "threshold": 1.0, "keep": 2}}, "sift saves nothing"),
        ({"network": "classifier", "likelihood": {}, "resize": 4}, "network classifier is for clean images"),
        ({"purifier": SECOND}, "nothing asks the purifier"),
        ({"purifier": SECOND, "noised": "epndc"}, "nothing asks the purifier"),
        ({"purifier": SECOND, "resize": 4, "noised": "apndc_noisy"}, "the noisy image, which cannot be resized"),
        ({"resize": 4, "noised": "apndc"}, "give a purifier that is for these"),
        ({"resize": 4, "likelihood": {}}, "give a purifier that is for these"),
        ({"labels": [0, 1, 2]}, "expected 4, one for each class, of the 4 that the denoiser knows"),
        ({"labels": [0, 1, 2, 4]}, "expected 4, one for each class, of the 4 that the denoiser knows"),
        ({"labels": [0, 1, 2, 3], "network": "multihead"}, "labels are what network unet is told"),
    ):
        with pytest.raises(DrbenchError, match=message):
            tiny(**args)


# ---- errors and logits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_plain_loops(shared):
    defense, x, draws = tiny(shared_noise=shared), images(3), Draws.seeded(1, 3)
    with torch.no_grad():
        logits = defense.logits(x, 0.0, draws[:])
        noise, u = draws[:].randn(3, 3, 1 if shared else 4, *SHAPE), 2 * x - 1
        plan = terms_of.plain(0.5, 3.0, 3, "released", 0.5)
        for i in range(3):
            for k in range(4):
                total = 0.0
                for t, s in enumerate(plan.level.tolist()):
                    z = u[i : i + 1] + s * noise[i : i + 1, t, 0 if shared else k]
                    total += plan.weight[t] * (defense.denoiser(z, s, torch.tensor([k])) - u[i]).square().mean()
                assert logits[i, k].item() == pytest.approx(-64 * total.item(), rel=1e-4)


def test_chunks_change_nothing():
    whole, parts = tiny(), tiny(chunk=7)
    x = images(4)
    with torch.no_grad():
        first, second = (d.logits(x, 0.0, Draws.seeded(0, 4)) for d in (whole, parts))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_two_gaussians_give_the_log_likelihood_ratio():
    """N(m_k, v) in each class has D = (v z + s^2 m_k) / (v + s^2); without noise the ELBO-weighted errors are its
    log-likelihood up to a constant: the integral of s / (v + s^2)^2 over s is 1 / (2 v)."""
    means, variance = torch.tensor([[0.3], [-0.4]], dtype=torch.float64), 0.2

    def predict(z, level, labels):
        s2 = level.view(-1, 1, 1, 1) ** 2
        return ((variance * z + s2 * means[labels].view(-1, 1, 1, 1)) / (variance + s2))[:, None]

    plan = terms_of.plain(1e-3, 60.0, 60_000, "elbo", 0.5)
    points = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    pairs = all_pairs(5, 2, points.device)
    noise = torch.zeros(5, 60_000, 1, 1, 1, 1, dtype=torch.float64)
    errors = denoising_errors(predict, points, points, noise, plan, pairs, 10**6)
    logits = -(errors[..., 0] * plan.weight).sum(1).view(5, 2)
    log_likelihood = -((points.view(5, 1) - means.view(1, 2)) ** 2) / (2 * variance)
    torch.testing.assert_close(logits.diff(dim=1), log_likelihood.diff(dim=1), rtol=2e-3, atol=2e-3)


def test_fixed_randomness_is_deterministic_and_fresh_is_not():
    x = images(3)
    for randomness, same in (("fixed", True), ("fresh", False)):
        defense = tiny(randomness=randomness, likelihood={"steps": 1})
        with torch.inference_mode():
            first, second = (defense.logits(x, 0.0, Draws.seeded(seed, 3)) for seed in (1, 2))
        assert torch.equal(first, second) is same and defense.randomized is not same


# ---- gradients --------------------------------------------------------------------------------------------------


def margin(logits):
    best = logits.topk(2, 1).values
    return (best[:, 1] - best[:, 0]).sum()


def dlr(logits):
    z = logits.sort(1, descending=True).values
    return (-(z[:, 0] - z[:, 1]) / (z[:, 0] - z[:, 2] + 1e-12)).sum()


def cross_entropy(logits):
    return nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")


def plain_logits(defense, x, sigma, draws):
    """The same function with every operation left to autograd."""
    u, unconditional = 2 * x - 1, defense.denoiser if defense.purifier is None else defense.purifier
    if sigma == 0 and defense.ascent:
        u = plain_maximize(unconditional, defense.ascent, u, draws)
    tau = 2 * sigma
    anchor = u if tau == 0 or defense.noised == "epndc" else unconditional(u, tau)
    if defense.resize is not None:
        anchor = nn.functional.interpolate(anchor, (4, 4), mode="bilinear", antialias=True)
    base = anchor if defense.noised != "apndc_noisy" else u
    plan = defense._terms(sigma, defense.nodes)
    noise, total = defense._noise(draws, plan), 0
    for t in range(len(plan.level)):
        level, spread, shift, weight = (float(field[t]) for field in plan)
        for_class = []
        for k in range(defense.num_classes):
            e = noise[:, t, 0 if defense.shared_noise else k]
            if defense.network == "multihead":
                found = defense.multihead(base + spread * e, level)[:, k]
            else:
                found = defense.denoiser(base + spread * e, level, torch.full((len(x),), k))
            for_class.append((found - anchor - shift * e).square().flatten(1).mean(1))
        total = total - anchor[0].numel() * weight * torch.stack(for_class, 1)
    return total


def plain_maximize(denoiser, ascent, start, draws):
    state = start, torch.zeros_like(start), torch.zeros_like(start)
    low, high = ascent.levels
    for number in range(ascent.steps):
        level = (low + (high - low) * draws.rand(len(start), 1)).flatten()
        noise = draws.randn(*start.shape)
        state = likelihood._step(start, *state, noise.to(start), level.to(start), denoiser, ascent, number)
    return state[0].clamp(-1, 1)


CASES = [
    ({}, 0.0),
    ({"shared_noise": False}, 0.0),
    ({"network": "multihead", "head_channels": (8,)}, 0.0),
    ({"likelihood": {"form": "linf_momentum", "steps": 3, "rate": 0.2, "eta": 0.2}}, 0.0),
    ({"likelihood": {"form": "adam_free", "steps": 3}}, 0.0),
    ({"noised": "apndc"}, 0.25),
    ({"noised": "apndc_noisy"}, 0.25),
    ({"noised": "epndc", "nodes": 5}, 0.25),
    ({"noised": "denoise"}, 0.25),
    ({"noised": "apndc", "purifier": SECOND}, 0.25),
    ({"noised": "apndc", "purifier": SECOND, "resize": HALF}, 0.25),
    ({"likelihood": {"form": "adam_free", "steps": 2}, "purifier": SECOND, "resize": HALF}, 0.0),
    ({"resize": HALF, "network": "multihead", "head_channels": (8,)}, 0.0),
]


@pytest.mark.parametrize("chunk", [11, 12])  # 12 rows are kept, more are evaluated again
@pytest.mark.parametrize("loss", [margin, dlr, cross_entropy])
@pytest.mark.parametrize("args, sigma", CASES, ids=[str(case[0]) for case in CASES])
def test_gradient_is_that_of_plain_autograd(args, sigma, loss, chunk):
    defense, slopes = tiny(chunk=chunk, **args).double(), []  # DLR divides by small differences of logits
    for function in (defense.attack_logits, lambda *given: plain_logits(defense, *given)):
        x = images(4).double().requires_grad_()
        logits = function(x, sigma, Draws.seeded(3, 4))
        slopes.append((torch.autograd.grad(loss(logits), x)[0], logits.detach()))
    (ours, values), (plain, wanted) = slopes
    torch.testing.assert_close(values, wanted, rtol=1e-6, atol=1e-6)
    assert plain.norm() > 1e-2
    assert (ours - plain).norm() <= 1e-6 * plain.norm()


def test_backward_evaluates_only_the_classes_that_the_loss_looks_at():
    defense, counts = tiny(), {}
    for name, loss in (("margin", margin), ("cross-entropy", cross_entropy)):
        x = images(5).requires_grad_()
        logits = defense.attack_logits(x, 0.0, Draws.seeded(0, 5))
        with Evaluations(defense) as evaluations:
            torch.autograd.grad(loss(logits), x)
        counts[name] = evaluations.counts["denoiser"]
    assert counts == {"margin": 5 * 2 * 3, "cross-entropy": 5 * 4 * 3}


@pytest.mark.parametrize("args, again", [({"network": "multihead"}, 2 * 3), ({"likelihood": {"steps": 2}}, 2 * 2)])
def test_what_fits_one_call_is_kept_and_not_evaluated_again(args, again):
    counts = []
    for chunk in (6, 1):
        defense, x = tiny(chunk=chunk, **args), images(2).requires_grad_()
        loss = margin(defense.attack_logits(x, 0.0, Draws.seeded(0, 2)))
        with Evaluations(defense) as evaluations:
            torch.autograd.grad(loss, x)
        counts.append(sum(evaluations.counts.values()))
    assert counts[1] - counts[0] == again


@pytest.mark.parametrize(
    "args, most",
    [
        ({"network": "multihead"}, 20),  # 60 rows // 3 nodes
        ({"network": "multihead", "likelihood": {"steps": 2}}, 20),
        ({"network": "classifier", "likelihood": {"steps": 2}}, 30),
        ({"network": "multihead", "nodes": 4}, None),  # fewer rows than attacks have in a call
        ({}, None),  # classes that the loss looks at are not known before
    ],
)
def test_attacks_ask_for_as_many_rows_as_are_kept(args, most):
    defense, whole = tiny(chunk=60, **args), tiny(chunk=1000, **args)
    assert defense.gradient_rows(0.0) == most
    x, y, spans, counts = images(8), torch.arange(8) % 4, [Span(name, 0, 10) for name in range(8)], []
    for each in (defense, whole):
        with Evaluations(each) as evaluations:
            counts.append((Direct(each).answer(x, y, spans, 10, Loss("margin")), dict(evaluations.counts)))
    (ours, ours_cost), (wanted, wanted_cost) = counts
    torch.testing.assert_close(ours, wanted)
    assert (ours_cost == wanted_cost) or most is None


@pytest.mark.parametrize("args", [{}, {"likelihood": {"steps": 4}}])
def test_the_forward_pass_keeps_no_graph(args):
    """What is saved for the backward pass: inputs, noise and (of likelihood maximisation) one state a step."""

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # with its graph it would keep itself alive
            made.add(self)

    saved = []
    for nodes in (3, 30):
        defense, x, made = tiny(nodes=nodes, chunk=12, **args), images(4).requires_grad_(), weakref.WeakSet()
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            logits = defense.attack_logits(x, 0.0, Draws.seeded(0, 4))
        saved.append(sum(kept.tensor.numel() for kept in made))
        assert logits.requires_grad
    noise = 4 * 64 * 27  # of the further nodes
    assert 0 < saved[1] - saved[0] <= noise + 4 * 4 * 27 * 2  # and their errors and weights
    assert saved[0] < 4 * 64 * 40  # one evaluation of the network alone saves more than that


def test_bpda_has_the_values_of_the_steps_and_the_gradient_of_none():
    exact, bpda = (tiny(likelihood={"steps": 2, "rate": 0.2}, gradient=kind) for kind in ("exact", "bpda"))
    assert (exact.gradient, bpda.gradient) == ("exact", "surrogate")
    x = images(3).requires_grad_()
    for defense in (exact, bpda):
        with torch.inference_mode():
            wanted = exact.logits(x.detach(), 0.0, Draws.seeded(0, 3))
        found = defense.attack_logits(x, 0.0, Draws.seeded(0, 3))
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-4)
    draws = Draws.seeded(0, 3)
    moved = maximize(bpda.denoiser, 2 * x.detach() - 1, bpda.ascent, draws, 256).requires_grad_()
    logits = -64 * bpda._losses(moved, moved, 0.0, draws, attacked=True)
    (at_the_end,) = torch.autograd.grad(margin(logits), moved)
    (straight,) = torch.autograd.grad(margin(bpda.attack_logits(x, 0.0, Draws.seeded(0, 3))), x)
    torch.testing.assert_close(straight, 2 * at_the_end, rtol=1e-4, atol=1e-5)


# ---- likelihood maximisation --------------------------------------------------------------------------------------


def test_adam_free_is_adam():
    defense, start = tiny(), 2 * images(1) - 1
    ascent, draws = Ascent("adam_free", steps=5, rate=0.1), Draws.seeded(0, 1)
    found = maximize(defense.denoiser, start, ascent, draws[:], 256)
    image = start.clone().requires_grad_()
    adam = torch.optim.Adam([image], lr=0.1)
    for _ in range(5):
        level = 0.4 + 0.2 * draws.rand(1, 1).flatten()
        error = defense.denoiser(image + level.view(-1, 1, 1, 1) * draws.randn(*image.shape), level) - image
        adam.zero_grad()
        error.square().mean().backward()
        adam.step()
    torch.testing.assert_close(found, image.detach().clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_linf_momentum_stays_near_the_image_and_in_the_box():
    defense, x = tiny(), images(4)
    found = maximize(defense.denoiser, 2 * x - 1, Ascent(steps=4, rate=0.5, eta=0.03), Draws.seeded(0, 4), 256)
    moved = (found + 1) / 2 - x
    assert found.abs().max() <= 1 and moved.abs().max() <= 0.03 + 1e-6
    assert (moved.abs() > 0.0299).float().mean() > 0.3  # steps are large: many pixels are at the limit


@pytest.mark.parametrize("form", likelihood.FORMS)
def test_likelihood_rises_on_the_shipped_denoiser(form):
    data = drbench.load_data("digits", "validation", subset="first20")
    denoiser = drbench.load_defense("diffusion_classifier", data, "digits/denoiser").denoiser
    start = 2 * data.x - 1 + 0.3 * Draws.seeded(0, 20).randn(20, *SHAPE)
    ascent = Ascent(form, steps=5, rate=0.1, eta=0.2)

    def loss(u):
        draws, total = Draws.seeded(1, 20), 0
        for level in (0.4, 0.5, 0.6):
            with torch.no_grad():
                total += (denoiser(u + level * draws.randn(*u.shape), level) - u).square().mean().item()
        return total

    with torch.inference_mode():
        found = maximize(denoiser, start, ascent, Draws.seeded(2, 20), 256)
    assert loss(found) < 0.8 * loss(start)


# ---- the optimal classifier -----------------------------------------------------------------------------------------


def test_exact_denoiser_is_the_posterior_mean():
    x, labels = 2 * images(6, seed=1) - 1, torch.tensor([0, 0, 1, 1, 2, 2])
    denoiser = ExactDenoiser(SHAPE, 6)
    denoiser.remember(x, labels)
    z, told = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    for level in (1e-4, 0.5, 5.0):
        found, alone = denoiser(z, level), denoiser(z, level, told)
        for i in range(3):
            for members, got in ((range(6), found[i]), ((labels == told[i]).nonzero().flatten().tolist(), alone[i])):
                logs = torch.tensor([-((z[i] - x[j]) ** 2).double().sum() / (2 * level**2) for j in members])
                mean = sum(w * x[j].double() for w, j in zip(logs.softmax(0), members, strict=True))
                torch.testing.assert_close(got.double(), mean, rtol=1e-5, atol=1e-5)
    assert denoiser.sigma_data == pytest.approx(float(x.std(correction=0)))


def test_optimal_classifier_is_robust_on_its_own_support():
    """Chen et al. 2024: 100 %. Signed gradient steps with the exact gradient, eps = 0.15 on 64 pixels."""
    data = drbench.load_data("digits", "train", subset="first300")
    defense = drbench.load_defense(
        "diffusion_classifier", data, network="exact", support=300, levels=[0.5, 3.0], nodes=6
    )
    defense.fit(data.x, data.y, None, None)
    x, y, eps = data.x[:40], data.y[:40], 0.15
    attacked = x.clone()
    for step in range(10):
        attacked.requires_grad_()
        logits = defense.attack_logits(attacked, 0.0, Draws.seeded(step, 40))
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits / 10, y, reduction="sum"), attacked)
        moved = attacked.detach() + 0.03 * slope.sign()
        attacked = torch.maximum(torch.minimum(moved, x + eps), x - eps).clamp(0, 1)
    with torch.inference_mode():
        for z in (x, attacked):
            assert defense.logits(z, 0.0, Draws.seeded(99, 40)).argmax(1).eq(y).all()


# ---- multi-head -----------------------------------------------------------------------------------------------------


def test_multi_head_shapes_and_scalings():
    """With a network of zeros every head is EDM's c_skip z; one call answers for all classes."""
    for shape in (SHAPE, (3, 8, 8)):
        head = MultiHead(shape, 4, (8,))
        z, level = torch.randn(5, *shape), torch.rand(5) + 0.1
        assert head(z, level).shape == (5, 4, *shape)
        nn.init.zeros_(head.network.unet.conv_out.weight)
        nn.init.zeros_(head.network.unet.conv_out.bias)
        reference = EDMDenoiser(small_unet(shape, None, (8,), groups=4), 0.5)
        reference.network.load_state_dict(
            {**reference.network.state_dict(), "unet.conv_out.weight": torch.zeros(shape[0], 8, 3, 3),
             "unet.conv_out.bias": torch.zeros(shape[0])}
        )  # fmt: skip
        torch.testing.assert_close(head(z, level), reference(z, level)[:, None].expand(-1, 4, -1, -1, -1))
    defense = tiny(network="multihead", head_channels=(8,), noised="apndc", likelihood={"steps": 2})
    assert defense.nfe(0.0) == {"denoiser": 2, "multihead": 3} == measured_nfe(defense, 0.0)
    assert defense.nfe(0.25) == {"denoiser": 1, "multihead": 3} == measured_nfe(defense, 0.25)


def test_the_multi_head_network_of_the_paper():
    """Its last convolution has 3 K channels; shrunk, it answers for all classes, each image by itself."""
    about = config.load(Path(__file__).parents[2] / "benchmarks/cifar10/attack/rdc-multihead.yaml")[0].defense.args
    with torch.device("meta"):
        head = MultiHead((3, 32, 32), 10, (8,), about.head_network)
    last = head.network.dec["32x32_aux_conv"]
    assert (last.weight.shape, last.bias.shape) == ((30, 128, 3, 3), (30,))
    head = MultiHead((3, 8, 8), 4, (8,), {"model_channels": 32, "channel_mult": [1], "num_blocks": 1}).eval()
    z, level = torch.randn(3, 3, 8, 8), torch.rand(3) + 0.1
    nn.init.normal_(head.network.dec["8x8_aux_conv"].weight)
    found = head(z, level)
    assert found.shape == (3, 4, 3, 8, 8) and found.std(1).min() > 0
    torch.testing.assert_close(head(z[1:2], level[1:2]), found[1:2], rtol=1e-4, atol=1e-5)


# ---- class pruning --------------------------------------------------------------------------------------------------


def sifted(threshold, keep, **args):
    return tiny(sift={"nodes": 3, "threshold": threshold, "keep": keep}, **args)


def test_sifting_without_dropping_is_the_full_classifier():
    x, draws = images(4), Draws.seeded(0, 4)
    with torch.no_grad():
        loose = sifted(1e9, 4).logits(x, 0.0, draws[:])
        full, rest = tiny(), draws[:]
        full._noise(rest, full._terms(0.0, 3))  # the sift levels draw first
        u = 2 * x - 1
        torch.testing.assert_close(loose, -64 * full._losses(u, u, 0.0, rest, attacked=False), rtol=1e-5, atol=1e-5)


def test_sifting_by_brute_force():
    """Losses accumulate; a class goes when it exceeds the best of those left; at `keep` classes sifting stops."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(30, 3, 6, generator=generator)  # images, levels, classes

    def predict(z, level, labels):  # the image holds its number, the level its own
        row, step = z[:, 0, 0, 0].round().long(), level.long()
        return table[row, step, labels].sqrt().view(-1, 1, 1, 1, 1) + z[:, None]

    base = torch.arange(30.0).view(-1, 1, 1, 1)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    plan = terms_of.Terms(torch.arange(3.0), zero, zero, one)
    found = pruning.sift(predict, base, base, torch.zeros(30, 3, 1, 1, 1, 1), plan, Sift(3, 0.4, 2), 6, 7)
    for i in range(30):
        left, loss = set(range(6)), dict.fromkeys(range(6), 0.0)
        for step in range(3):
            if len(left) <= 2:
                break
            for k in left:
                loss[k] += table[i, step, k].item()
            best = min(loss[k] for k in left)
            left = {k for k in left if loss[k] <= best + 0.4}
        left = set(sorted(left, key=loss.get)[:2])
        assert set(found.alive[i].nonzero().flatten().tolist()) == left
    assert (found.alive.sum(1) >= 1).all() and (found.excess >= 0).all()


def test_pruned_classes_are_below_the_survivors_and_cost_less():
    defense, x = sifted(0.0, 2, nodes=9), images(6)
    assert defense.gradient == "surrogate" and defense.nfe_varies
    with torch.inference_mode(), Evaluations(defense) as evaluations:
        logits = defense.logits(x, 0.0, Draws.seeded(0, 6))
    assert logits.isfinite().all()
    assert evaluations.counts["denoiser"] <= 6 * defense.nfe(0.0)["denoiser"] < 6 * tiny(nodes=9).nfe(0.0)["denoiser"]
    tracked = x.clone().requires_grad_()
    attacked = defense.attack_logits(tracked, 0.0, Draws.seeded(0, 6))
    torch.testing.assert_close(attacked.detach(), logits, rtol=1e-5, atol=1e-5)
    for k in range(4):  # no class is hidden from an attacker
        (slope,) = torch.autograd.grad(attacked[:, k].sum(), tracked, retain_graph=True)
        assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_sifting_behind_a_purifier_at_another_size():
    """ImageNet's form: noise and purifier at the size of the data, the sum over classes at that of the denoiser."""
    args = {"noised": "apndc", "purifier": SECOND, "resize": HALF, "nodes": 9}
    defense, x = sifted(0.0, 2, **args), images(6)
    with torch.inference_mode(), Evaluations(defense) as evaluations:
        logits = defense.logits(x, 0.25, Draws.seeded(0, 6))
    assert logits.isfinite().all() and evaluations.counts["purifier"] == 6 * defense.nfe(0.25)["purifier"] == 6
    most = 6 * defense.nfe(0.25)["denoiser"]
    assert evaluations.counts["denoiser"] <= most < 6 * tiny(**args).nfe(0.25)["denoiser"]
    loose, draws = sifted(1e9, 4, **args), Draws.seeded(0, 6)
    with torch.no_grad():
        found = loose.logits(x, 0.25, draws[:])
        draws.randn(6, 3, 1, 1, 4, 4)  # the sift levels draw first, at the smaller size
        torch.testing.assert_close(found, plain_logits(loose, x, 0.25, draws), rtol=1e-4, atol=1e-4)


def test_labels_say_what_the_denoiser_is_told():
    x, draws, order = images(3), Draws.seeded(0, 3), [2, 0, 3, 3]
    with torch.inference_mode():
        whole = tiny().logits(x, 0.0, draws[:])
        found = tiny(labels=order).logits(x, 0.0, draws[:])
    torch.testing.assert_close(found, whole[:, order])
    assert "labels" not in tiny(labels=order).state_dict()  # of the configuration, not of the weights


def test_training_leaves_the_purifier_alone_and_heeds_size_and_labels():
    args = {"noised": "apndc", "purifier": SECOND, "resize": HALF, "labels": [1, 0, 3, 2]}
    defense, x, y = tiny(**args), images(8), torch.arange(8) % 4
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    seen = []
    defense.denoiser.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[2:], given[2])))
    defense.fit(x[y == 1], y[y == 1], Recipe(steps=2, batch=4, lr=1e-3), lambda step, loss: None)
    moved = {name.partition(".")[0] for name, value in defense.state_dict().items() if not value.equal(before[name])}
    assert moved == {"denoiser"} and {tuple(shape) for shape, _ in seen} == {(4, 4)}
    assert {int(label) for _, labels in seen for label in labels} <= {0, 4}  # class 1 is told as 0; 4 is no label


def test_calibrated_threshold_keeps_the_true_class():
    generator = torch.Generator().manual_seed(0)
    losses, labels = torch.rand(400, 3, 5, generator=generator), torch.arange(400) % 5
    losses[torch.arange(400), :, labels] -= 0.3
    for miss in (0.0, 0.05):
        threshold, lost = pruning.calibrate(losses, labels, miss), 0
        total = losses.cumsum(1)
        for i in range(400):
            lost += bool((total[i, :, labels[i]] > total[i].amin(1) + threshold + 1e-6).any())
        assert lost <= miss * 400
    assert lost == 20  # and no tighter one would do


# ---- the Lipschitz constant -----------------------------------------------------------------------------------------


def test_constant_of_the_paper_and_of_the_derivation():
    """NDC's script: (1 + sqrt(2 / pi)) mean(1 / s) = 1.3006 in its units; the mean of 1/s is what both share."""
    plan = terms_of.plain(0.5, 3.0, 125, "uniform", 0.5)
    nodes = torch.linspace(0.5, 3, 126, dtype=torch.float64)[:-1]
    assert ((1 + math.sqrt(2 / math.pi)) / nodes).mean() == pytest.approx(1.3006, abs=1e-4)
    expected = 4 * (2 / (plan.level * math.sqrt(2 * math.pi)) + 2 / math.sqrt(3072)).mean()
    assert terms_of.lipschitz(plan, 3072) == pytest.approx(float(expected))


def test_no_expected_logit_is_steeper_than_the_constant():
    """The steepest denoiser we know: all pixels jump together on a plane. One level, averaged over many noises."""
    level, dimension = 1.0, 64
    plan = terms_of.plain(level, level + 1, 1, "uniform", 0.5)
    bound = terms_of.lipschitz(plan, dimension)

    def predict(z, s, labels):
        return z.mean((1, 2, 3)).sign().view(-1, 1, 1, 1, 1).expand(-1, 1, *SHAPE)

    noise, ratio = Draws.seeded(0, 1).randn(1, 20_000 * 64).view(20_000, 1, 1, *SHAPE), 0.0
    for start in (torch.zeros(1, *SHAPE), torch.full((1, *SHAPE), 1.0 - 0.1), torch.full((1, *SHAPE), 0.1)):
        u = torch.cat([start, start + 0.1])  # network units: a distance of 0.4 in pixel units
        values = []
        for end in u:
            ends = end.expand(20_000, *SHAPE)
            pairs = Pairs(torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64))
            values.append(denoising_errors(predict, ends, ends, noise, plan, pairs, 20_000).mean())
        ratio = max(ratio, abs(values[1] - values[0]).item() / 0.4)
    assert 0.05 * bound < ratio <= bound


def test_lipschitz_is_declared_where_the_theorem_holds():
    args = {"clip": True, "weight": "uniform"}
    defense = tiny(**args)
    assert defense.lipschitz > 0 and defense.logit_span == pytest.approx(64 * 4)
    for further in ({"clip": False}, {"randomness": "fixed"}, {"likelihood": {}}, {"noised": "apndc"}, {"resize": 4}):
        assert tiny(**{**args, **further}).lipschitz is None and tiny(**{**args, **further}).logit_span is None
