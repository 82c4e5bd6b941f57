"""The deployed cascade, its two routes, SmoothAdv and StAdv: decisions by hand, known optima, bounds, records."""

from pathlib import Path

import numpy as np
import pytest
import torch

import drbench
from drbench.api import Defense, Draws
from drbench.attacks.cascade import Cascade
from drbench.attacks.losses import Loss
from drbench.attacks.names import VIEWS
from drbench.attacks.presets import member
from drbench.attacks.problem import Problem
from drbench.attacks.smoothadv import smoothadv
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.attacks.views import Direct
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.records import examples, record, verify

ROOT = Path(__file__).parents[2]


class ByBrightness(Defense):
    """Three classes, decided by the mean pixel: at 0.8 sharply by class 0; at 0.2 softly by class 1; clean, class 2.

    Scores at a level are (a, b, 0) with a and b affine in the mean pixel, so that every decision is known by hand.
    """

    input_shape, num_classes, sigmas, citation = (1, 4, 4), 3, (0.0, 0.2, 0.8), "arXiv:2310.16779"

    def logits(self, z, sigma, draws):
        self.require(sigma)
        mean = z.flatten(1).mean(1)
        slope = {0.8: (mean - 0.7, 0 * mean - 1e9), 0.2: (0 * mean - 1e9, mean - 0.4), 0.0: (mean - 9, mean - 8)}
        return 100 * torch.stack([*slope[sigma], 0 * mean], 1)

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls()


def grey(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


def cascade(votes=101):
    return Cascade(ByBrightness(), [0.2, 0.8], votes)


def test_cascade_answers_by_its_first_confident_level():
    """Class 2 wins the votes of a level unless the mean is above its threshold; so the first level always answers."""
    scores = cascade().logits(grey(0.99, 0.3), 0.0, Draws.seeded(0, 2))
    assert scores.argmax(1).tolist() == [0, 2]
    # The share of class 0 at the first level is P(0.99 + 0.8/4 n > 0.7), 0.926.
    share = float(scores[0, 0].exp() - 0.1 / 101)
    assert abs(share - 0.926) < 4 * (0.926 * 0.074 / 101) ** 0.5


class Undecided(ByBrightness):
    """Each class has a third of the votes at every level: the clean scores decide."""

    def logits(self, z, sigma, draws):
        mean = z.flatten(1).mean(1)
        if sigma == 0:
            return torch.stack([mean, 0 * mean + 0.5, 0 * mean], 1)
        return z.flatten(1)[:, :3] - mean[:, None]


def test_without_a_confident_level_the_clean_classifier_answers():
    x = grey(0.9, 0.1)
    deployed = Cascade(Undecided(), [0.2, 0.8], votes=60)
    assert torch.equal(deployed.logits(x, 0.0, Draws.seeded(0, 2)), Undecided().logits(x, 0.0, None))


def test_rows_of_a_cascade_are_independent_and_cost_is_declared():
    x, draws = torch.rand(6, 1, 8, 8), Draws.seeded(3, 6)
    images = drbench.load_data("digits", subset="first2")
    base = drbench.load_defense("multiscale", images, ["digits/classifier", "digits/denoiser"])
    deployed = Cascade(base, [0.25, 1.0], votes=5)
    assert not any(module.training for module in deployed.modules())  # as the defense inside: the audit looks
    with torch.no_grad():
        whole = deployed.logits(x, 0.0, draws[:])
        parts = torch.cat([deployed.logits(x[:4], 0.0, draws[:4]), deployed.logits(x[4:], 0.0, draws[4:])])
    assert torch.allclose(whole, parts, atol=1e-4)
    assert deployed.nfe(0.0) == {"classifier": 11, "denoiser": 10}


def test_votes_fill_network_calls_up_to_the_rows_that_are_given():
    calls = []

    class Counted(ByBrightness):
        def logits(self, z, sigma, draws):
            calls.append(len(z) if sigma else 0)
            return super().logits(z, sigma, draws)

    x, found = grey(0.7, 0.3, 0.5), []
    for rows, largest in ((1, 3), (8, 6), (1000, 150)):  # three images, fifty votes
        calls.clear()
        found.append(Cascade(Counted(), [0.2, 0.8], 50, rows=rows).logits(x, 0.0, Draws.seeded(1, 3)))
        assert max(calls) == largest
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_routes_are_of_a_cascade_and_bad_cascades_are_refused():
    for name in ("halt1", "pass"):
        with pytest.raises(DrbenchError, match=r"views halt1, halt2, \.\.\. and pass are of a deployed cascade"):
            VIEWS[name](ByBrightness(), 0.0)
    with pytest.raises(DrbenchError, match="view halt3: the cascade has 2 levels"):
        VIEWS["halt3"](cascade(), 0.0)
    for levels, votes, p0 in (([0.0], 10, 0.5), ([0.2], 0, 0.5), ([0.2], 10, 0.4), ([0.3], 10, 0.5)):
        with pytest.raises(DrbenchError):
            Cascade(ByBrightness(), levels, votes, p0)


def test_pass_route_rewards_silent_levels():
    """At every level a class is far above p0: the gradient lowers that; with silent levels it is the clean loss's."""
    view, x, y = VIEWS["pass"](cascade(), 0.0), grey(0.95), torch.tensor([2])
    problem = Problem.of(view, threat("l2", 1.0), x, y, [0], "test")
    answer = problem.query(x, Loss("margin"), draws=64)
    clean = Loss("margin")(ByBrightness().logits(x, 0.0, None)[:, None], y)
    assert float(answer.loss) < float(clean) - 0.5 and int(answer.failures) == 0
    silent = VIEWS["pass"](Cascade(Undecided(), [0.2], 10), 0.0)
    problem = Problem.of(silent, threat("l2", 1.0), grey(0.2), torch.tensor([0]), [0], "test")
    answer = problem.query(grey(0.2), Loss("margin"), draws=2000)
    assert abs(float(answer.loss) - 0.3) < 1e-5 and int(answer.failures) == 2000


def test_both_routes_break_a_cascade_that_one_level_cannot_save(tmp_path, capsys, monkeypatch):
    """The record says how the cascade is deployed and which route was strongest; it can be verified."""
    monkeypatch.chdir(ROOT)
    words = ["data.subset=first2", "attack.preset=smoke", "attack.cascade=[0.25,1.0]", "attack.evaluations=10"]
    words += ["attack.decision_draws=10", "sweep={attack.eps: [2.0]}", "attack.norm=l2", "--out", str(tmp_path)]
    assert main(["run", "benchmarks/digits/attack/multiscale-cascade.yaml", *words]) == 0
    run = record.read(capsys.readouterr().out.split("\n")[0])
    assert run.header["engine"]["decision"] == "cascade 1 > 0.25" and verify.problems(run) == []
    assert list(run.header["engine"]["attacks"]) == [
        "pgd margin 10x4 (halt1)",
        "pgd margin 10x4 (halt2)",
        "pgd margin 10x4 (pass)",
    ]
    wrong = sum(row.evidence.adversarial.wrong(row.label) for row in run.ordered())
    clean = sum(row.evidence.clean.wrong(row.label) for row in run.ordered())
    assert wrong > clean + 5


# ---- SmoothAdv ----------------------------------------------------------------------------------------------------


def test_smoothadv_finds_the_boundary_of_a_linear_smoothed_classifier():
    """The smoothed classifier falls with the mean pixel alone: the worst image of an l2 ball is x + eps / 4."""
    view = Direct(ByBrightness(), 0.8)
    x, y = grey(0.5), torch.tensor([2])
    problem = Problem.of(view, threat("l2", 0.8), x, y, [0], "test")
    candidates = smoothadv(problem, steps=20, draws=32, redraw=5)
    assert torch.allclose(candidates[:, -1], x + 0.8 / 4, atol=1e-4)
    assert problem.cost.gradients.tolist() == [20 * 32] and problem.cost.forwards.tolist() == [32]


# ---- StAdv --------------------------------------------------------------------------------------------------------


def test_stadv_stays_in_its_bound_and_beats_a_random_flow(tmp_path):
    images = drbench.load_data("digits", split="validation", subset="first24")
    defense = drbench.load_defense("undefended", images, "digits/classifier")
    bound = threat("stadv", 0.4)
    found = Suite(defense, bound, [member("stadv", steps=30)]).run(images.x, images.y, images.ids)
    flow = torch.stack([each.example for each in found])
    assert flow.shape == (24, 8, 8, 2) and flow.abs().max() <= 0.4
    assert [each.evidence.distance for each in found] == flow.double().abs().flatten(1).amax(1).tolist()
    moved = bound.image(flow, images.x)
    with torch.no_grad():
        right = defense.logits(moved, 0.0, None).argmax(1) == images.y
        noise = 0.4 * (2 * torch.rand(flow.shape, generator=torch.Generator().manual_seed(0)) - 1)
        still_right = defense.logits(bound.image(noise, images.x), 0.0, None).argmax(1) == images.y
    assert right.tolist() == [
        each.evidence.adversarial.wrong(int(y)) == 0 for each, y in zip(found, images.y, strict=True)
    ]
    assert right.sum() < still_right.sum() - 8


def test_flows_are_recorded_verified_and_tampering_is_found(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["data.subset=first5", "attack.preset=smoke", "--out", str(tmp_path)]
    assert main(["run", "benchmarks/digits/attack/adversarial_training.yaml", *words]) == 0
    folder = next(Path(line) for line in capsys.readouterr().out.split("\n") if "stadv" in line)
    run = record.read(folder)
    assert verify.problems(run) == []
    stored = examples.read(folder)
    assert all(flow.shape == (8, 8, 2) and x.shape == (1, 8, 8) for _, x, flow in stored.values())
    with np.load(folder / examples.WHOLE) as arrays:
        changed = dict(arrays)
    changed["x_adv"] = changed["x_adv"] * 1.5
    np.savez(folder / examples.WHOLE, **changed)
    assert any("example" in problem for problem in verify.problems(run))
    assert main(["table", str(folder)]) == 0 and "StAdv, displacement in pixels ≤ 0.2" in capsys.readouterr().out
