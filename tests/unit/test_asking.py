"""What a defense answers is a tensor of the right shape, and what it raises says what it was asked."""

import pytest
import torch

from drbench.api import Draws
from drbench.asking import ask
from drbench.attacks.presets import member
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.errors import DrbenchError
from tests.attacked import two_classes

DEFENSE, X, Y, *_ = two_classes(4)


@pytest.mark.parametrize("method, shape", [("logits", (4, 2)), ("attack_logits", (4, 2)), ("purify", (4, 1, 4, 4))])
@pytest.mark.parametrize("answer, got", [(None, "NoneType"), ((X,), "tuple"), (X[:, 0], r"\(4, 4, 4\)")])
def test_an_answer_that_cannot_be_used_is_named(method, shape, answer, got, monkeypatch):
    monkeypatch.setattr(DEFENSE, method, lambda z, sigma, draws: answer, raising=False)
    with pytest.raises(DrbenchError, match=rf"Linear.{method}: expected .* \({str(shape)[1:-1]}\) .*, got {got};"):
        ask(DEFENSE, method, X, 0.0, Draws.seeded(0, 4))


@pytest.mark.parametrize("method, view", [("attack_logits", "exact"), ("logits", "logits"), ("purify", "identity")])
def test_attacks_look_at_answers(method, view, monkeypatch):
    monkeypatch.setattr(DEFENSE, method, lambda z, sigma, draws: None, raising=False)
    suite = Suite(DEFENSE, threat("linf", 0.1), [member("pgd", view, loss="margin", steps=2)], sigma=0.25)
    with pytest.raises(DrbenchError, match=rf"Linear.{method}: expected .*, got NoneType"):
        suite.run(X, Y, range(4))


def test_what_a_defense_raises_says_what_it_was_asked(monkeypatch):
    assert torch.equal(ask(DEFENSE, "attack_logits", X, 0.0, None), DEFENSE.logits(X, 0.0, None))
    monkeypatch.setattr(DEFENSE, "logits", lambda z, sigma, draws: {}[z])
    with pytest.raises(KeyError) as caught:
        ask(DEFENSE, "logits", X, 0.25, Draws.seeded(0, 4))
    assert caught.value.__notes__ == ["raised by Linear.logits, asked about images (4, 1, 4, 4) at sigma = 0.25"]
