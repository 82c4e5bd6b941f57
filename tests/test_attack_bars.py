"""The attack engine against others: AutoAttack `rand` on a noisy model, torchattacks on deterministic ones."""

import pytest
import torch

import drbench
from benchmarks.autoattack import both
from benchmarks.resnets import SHARED, pretrained
from drbench import data
from drbench.api import Defense
from drbench.attacks import evaluate, views
from drbench.attacks.autoattack_rand import autoattack_rand
from drbench.attacks.oracle import Keys
from drbench.attacks.pgd import noise, pgd
from drbench.attacks.problem import Problem
from drbench.attacks.threat import threat
from drbench.attacks.views import Direct

pytestmark = pytest.mark.slow


class Noisy(Defense):
    """A light adversarially trained CNN behind Gaussian noise of its own."""

    input_shape, num_classes, sigmas, randomized, citation = (1, 8, 8), 10, (0.0,), True, "arXiv:1706.06083"

    def __init__(self, base, level):
        super().__init__()
        self.base, self.level = base, level

    def logits(self, z, sigma, draws):
        return self.base.logits(z + self.level * draws.randn(*z.shape), 0.0, draws)

    def nfe(self, sigma):
        return {"base": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        raise NotImplementedError


class Toy:
    """Attacks on the noisy model and what their examples come to on 200 fresh draws."""

    def __init__(self, eps, count):
        self.images = drbench.load_data("digits", subset=f"first{count}")
        self.base = drbench.load_defense("adversarial_training", self.images, "digits/adversarial_training")
        self.view, self.eps = Direct(Noisy(self.base, 0.15)), eps

    def run(self, attack, view=None, **settings):
        """(average accuracy in %, mean gradient evaluations, notes) of an attack; candidates chosen on own draws."""
        x, y, ids = self.images.x, self.images.y, self.images.ids
        problem = Problem.of(view or self.view, threat("linf", self.eps), x, y, ids, attack.__name__)
        candidates = attack(problem, **settings)
        judged = [self.judge(each, "select", 50) for each in candidates.unbind(1)]
        best = candidates[torch.arange(len(x)), torch.stack(judged, 1).argmin(1)]
        average = 100 * float(self.judge(best, "fresh", 200).mean())
        return average, problem.cost.gradients.mean(), problem.cost.notes

    def judge(self, x, stage, draws):
        failures, _ = evaluate.judge(self.view, x, self.images.y, Keys(0, self.images.ids, stage), draws)
        return 1 - failures.double() / draws


def test_eot_beats_autoattack_rand_at_a_third_of_its_cost():
    """And `rand`'s own verdict is far below what its examples do; noise and transfer do not beat EOT."""
    toy = Toy(eps=0.15, count=60)
    rand, rand_cost, notes = toy.run(autoattack_rand)
    ours, our_cost, _ = toy.run(pgd, loss="margin", steps=100, draws=8)
    assert ours <= rand - 5 and our_cost <= rand_cost / 3
    assert notes["robust by its own verdict"] <= rand - 5
    transfer, _, _ = toy.run(pgd, view=Direct(toy.base, own=False), loss="margin", steps=100)
    assert ours <= min(transfer, toy.run(noise)[0])


@pytest.mark.parametrize(
    "name, weights, norm, eps",
    [("undefended", "classifier", "linf", 0.1), ("adversarial_training", "adversarial_training", "l2", 0.5)],
)
def test_autoattack_is_as_strong_as_torchattacks_on_digits(name, weights, norm, eps):
    pytest.importorskip("torchattacks", reason="needs torchattacks, see `make setup`")
    images = drbench.load_data("digits", subset="first10")
    defense = drbench.load_defense(name, images, f"digits/{weights}")
    ours, theirs = both(defense, images, norm, eps, queries=300)
    assert ours.robust <= theirs.robust + 1 and ours.gradients <= theirs.gradients
    assert 0 < theirs.robust < 10


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs networks and images in $DRBENCH_SHARED/data")
def test_autoattack_is_as_strong_as_torchattacks_on_a_resnet(monkeypatch):
    pytest.importorskip("torchattacks", reason="needs torchattacks, see `make setup`")
    monkeypatch.setattr(views, "SMALLEST", 1)  # without padding: of two images it would be most of the work
    images = data.load("cifar10-jpeg", "test", "first2", str(SHARED / "cifar10-jpeg"))
    ours, theirs = both(pretrained(20), images, "linf", 1 / 255, queries=50)
    assert ours.robust <= theirs.robust + 1 and ours.gradients <= theirs.gradients
