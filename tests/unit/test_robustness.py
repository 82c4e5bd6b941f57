"""Statistics of attack runs against enumeration and hand-made answers."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Answers, Attacked, Tried
from drbench.stats import interval
from drbench.stats.robustness import majority, robustness, worst_of_m
from drbench.tables import robust_tables
from tests.runs import make_attack


@pytest.mark.parametrize(("n", "m"), [(5, 1), (6, 3), (7, 7)])
def test_worst_of_m_is_the_mean_over_all_subsets(n, m):
    """Of m evaluations drawn from the n that were made, without replacement: the share in which none failed."""
    for failures in range(n + 1):
        wrong = [True] * failures + [False] * (n - failures)
        exact = np.mean([not any(part) for part in itertools.combinations(wrong, m)])
        assert worst_of_m(np.array([failures]), n, m)[0] == pytest.approx(exact, abs=1e-12)


def test_worst_of_m_is_unbiased():
    """Exact expectation over Binomial(n, p) failures equals (1 - p)^m; the plug-in is too high."""
    n, m = 20, 10
    for p in (0.03, 0.2, 0.6):
        chance = np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
        assert chance @ worst_of_m(np.arange(n + 1), n, m) == pytest.approx((1 - p) ** m, rel=1e-9)
        assert chance @ (1 - np.arange(n + 1) / n) ** m > (1 - p) ** m


def test_the_four_numbers():
    answers = [Answers.of(text) for text in ([1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0], [ABSTAIN, 0, 0, 1])]
    found = robustness(answers, [1, 1, 1, 1], worst_of=2)
    assert found.average.value == (1 + 0.75 + 0.5 + 0.25) / 4
    assert found.majority.value == 0.5  # the tie of the third image is wrong
    assert found.worst.value == pytest.approx((1 + 3 / 6 + 1 / 6 + 0) / 4)
    assert found.one_shot.value == 0.5
    assert (found.majority.low, found.majority.high) == interval(2, 4)
    assert found.average.low < found.average.value < found.average.high


def test_one_evaluation_of_a_deterministic_defense():
    found = robustness([Answers.of([c]) for c in (0, 0, 0, 1)], [0, 0, 0, 0], worst_of=10)
    assert {each.value for each in found} == {0.75} and {(each.low, each.high) for each in found} == {interval(3, 4)}


def test_majority_of_a_tie_is_nobody():
    assert majority(Answers(0, {0: 2, 3: 2})) is None
    assert majority(Answers(0, {0: 2, 3: 3})) == 3


def test_unequal_numbers_of_answers_are_refused():
    with pytest.raises(DrbenchError, match="equally many"):
        robustness([Answers.of([1]), Answers.of([1, 1])], [1, 1])
    with pytest.raises(DrbenchError, match="worst_of between"):
        worst_of_m(np.array([1]), 5, 6)


def test_evidence_survives_json():
    evidence = Attacked(
        Answers.of([3, 3, ABSTAIN]), Answers.of([5, 3, 5]), (Tried("pgd", 2, 100, 7),), "pgd", 0.25, "ab"
    )
    assert Attacked.from_json(evidence.to_json()) == evidence
    assert evidence.adversarial.wrong(3) == 2 and evidence.adversarial.first == 5 and evidence.clean.count == 3


def test_answers_that_are_no_scores_mark_a_run(tmp_path):
    run = make_attack(tmp_path / "a", [10, 10])
    assert run.marks == []
    seen = replace(run.rows[1].evidence, adversarial=Answers.of([1] * 9 + [ABSTAIN]))
    overflowing = replace(run, rows=run.rows | {1: replace(run.rows[1], evidence=seen)})
    assert overflowing.marks == ["not finite"] and "not finite" in robust_tables.frame([overflowing])["marks"].item()
