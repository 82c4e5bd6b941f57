"""The adapter of torchattacks: costs counted, global generators untouched, refusals with a reason."""

import sys

import pytest
import torch

import drbench
from drbench.attacks.crosscheck import library_attack
from drbench.attacks.problem import Problem
from drbench.attacks.threat import threat
from drbench.attacks.views import Direct
from drbench.errors import DrbenchError

IMAGES = drbench.load_data("digits", subset="first5")


def problem(sigma=0.0, norm="linf"):
    defense = drbench.load_defense("undefended", IMAGES, "digits/classifier")
    return Problem.of(
        Direct(defense, sigma), threat(norm, 0.1 if norm == "linf" else 0.5), IMAGES.x, IMAGES.y, IMAGES.ids, "test"
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_of_the_library(norm):
    pytest.importorskip("torchattacks", reason="needs torchattacks, see `make setup`")
    task, state = problem(norm=norm), torch.get_rng_state()
    found = library_attack(task, name="APGD", steps=10)
    assert found.shape == (5, 1, 1, 8, 8) and torch.equal(torch.get_rng_state(), state)
    _, refused = task.threat.repair(found[:, 0], IMAGES.x)
    assert not refused.any() and (found[:, 0] != IMAGES.x).any()
    assert task.cost.gradients.sum() == 5 * 11  # the start and ten iterations, of every image


def test_refusals(monkeypatch):
    with pytest.raises(DrbenchError, match="did you mean 'APGD'"):
        library_attack(problem(), name="APDG")
    for odd in (problem(sigma=0.25), problem(norm="l1")):
        with pytest.raises(DrbenchError, match="deterministic defenses in linf and l2"):
            library_attack(odd, name="APGD")
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(DrbenchError, match="pip install --no-deps torchattacks"):
        library_attack(problem(), name="APGD")
