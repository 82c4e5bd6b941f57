"""The verdict: the deployed decision rule on randomness that no attack has seen, and the selection before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from drbench.attacks.losses import Loss
from drbench.attacks.oracle import ROWS, Keys, oracle
from drbench.attacks.views import View
from drbench.draws import Span
from drbench.errors import DrbenchError, did_you_mean
from drbench.evidence import ABSTAIN

RULES = ("single", "majority", "mean_prob")


@dataclass(frozen=True)
class Decision:
    """How the deployed defense turns draws into one answer.

    Parameters
    ----------
    rule : {"single", "majority", "mean_prob"}
        The class of one draw; the most frequent class of several (ties: the lowest); the class of the largest mean
        probability over several.
    draws : int
        Of one answer; 1 for "single".
    """

    rule: str = "single"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise DrbenchError(f"unknown decision {self.rule!r}{did_you_mean(self.rule, RULES)}")
        if self.draws < 1 or (self.rule == "single" and self.draws != 1):
            raise DrbenchError(f"decision {self.rule}: expected draws >= 1 (1 for single), got {self.draws}")

    def __call__(self, logits: Tensor) -> Tensor:
        """(A, n, K) logits of n draws -> (A,) classes."""
        if self.rule == "mean_prob":
            return logits.softmax(-1).mean(1).argmax(-1)
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        return votes.sum(1).argmax(-1)


@torch.no_grad()
def evaluate(view: View, decision: Decision, x: Tensor, keys: Keys, evaluations: int, rows: int = ROWS) -> Tensor:
    """(B, N) classes that the defense answers in N independent evaluations of each image.

    Answers of one image share one stream: evaluation j reads its rows from j * decision.draws on, so they do not depend
    on N. Where logits are not finite the answer is `ABSTAIN`, which is never right.
    """
    need = decision.draws
    answers = []
    for images, spans in _batches(keys.spans(0, evaluations * need), max(need, rows // need * need)):
        logits = view.rows(x[images], spans)
        logits = logits.view(-1, need, logits.shape[-1])
        answers.append(decision(logits).where(logits.isfinite().all(-1).all(-1), ABSTAIN))
    return torch.cat(answers).view(len(x), evaluations)


def _batches(spans: list[Span], rows: int) -> Iterator[tuple[list[int], list[Span]]]:
    """All rows of all spans, in order and at most `rows` at once, with the number of the image of each row."""
    images, parts = [], []
    for number, (key, at, stop) in enumerate(spans):
        while at < stop:
            take = min(stop - at, rows - len(images))
            parts.append(Span(key, at, at + take))
            images += [number] * take
            at += take
            if len(images) == rows:
                yield images, parts
                images, parts = [], []
    if images:
        yield images, parts


def judge(view: View, x: Tensor, y: Tensor, keys: Keys, draws: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """(B,) failures among `draws` single answers, and (B,) mean margins that break their ties."""
    answer = oracle(view, x, y, Loss("margin"), keys, draws=draws, gradient=False, rows=rows)
    return answer.failures, answer.loss
