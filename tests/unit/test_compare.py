"""Paired comparison: exact counts on runs with chosen votes, and the score interval against its definition."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as reference

from drbench import stats
from drbench.cli import main
from drbench.comparisons import compare
from drbench.errors import DrbenchError
from tests.runs import make_run


def score(only_a, only_b, n, d):
    """Tango's score, its nuisance parameter found by maximising the likelihood numerically."""

    def minus_log_likelihood(q):
        cells = ((only_a, q + d), (only_b, q), (n - only_a - only_b, 1 - 2 * q - d))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    inside = (max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12)
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=inside, method="bounded", options={"xatol": 1e-12}).x
    return (only_a - only_b - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(12, 5, 100), (5, 12, 100), (3, 0, 40), (30, 20, 60), (1, 1, 500)])
def test_limits_have_a_score_of_z(only_a, only_b, n):
    low, high = stats.paired_interval(only_a, only_b, n)
    assert low < (only_a - only_b) / n < high
    assert score(only_a, only_b, n, low) == pytest.approx(1.959964, abs=1e-3)
    assert score(only_a, only_b, n, high) == pytest.approx(-1.959964, abs=1e-3)


def test_limits_are_antisymmetric_and_never_degenerate():
    low, high = stats.paired_interval(7, 2, 50)
    assert stats.paired_interval(2, 7, 50) == pytest.approx((-high, -low))
    z2 = reference.norm.ppf(0.975) ** 2
    assert stats.paired_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert stats.paired_interval(50, 0, 50)[1] == 1 and stats.paired_interval(50, 0, 50)[0] > 0.85
    with pytest.raises(DrbenchError, match="only_a=3"):
        stats.paired_interval(3, 3, 5)


def test_coverage_by_enumeration():
    """The level of a score interval holds on average; at no point of a grid is it far below."""
    n, cover = 40, []
    for p_a, p_b in ((0.05, 0.05), (0.1, 0.02), (0.2, 0.2), (0.3, 0.1), (0.02, 0.0)):
        inside = 0.0
        for k in range(n + 1):
            for m in range(n - k + 1):
                weight = reference.multinomial.pmf([k, m, n - k - m], n, [p_a, p_b, 1 - p_a - p_b])
                if weight > 1e-6:
                    low, high = stats.paired_interval(k, m, n)
                    inside += weight * (low <= p_a - p_b <= high)
        cover.append(inside)
    assert min(cover) > 0.93 and np.mean(cover) > 0.945


def test_counts_of_two_runs(tmp_path):
    """Votes out of 1,000: 990 certifies radius 1.0 at sigma 0.5, 700 certifies 0.2, 400 is wrong."""
    a = make_run(tmp_path / "runs/a/x", [990, 990, 700, 400, 990], defense="a")
    b = make_run(tmp_path / "runs/b/x", [990, 700, 700, 990, 400], defense="b")
    table = compare.compare([a], [b], radii=[0.0, 0.5])
    assert list(table.only_a) == [1, 2] and list(table.only_b) == [1, 1]
    assert list(table.accuracy_a) == [0.8, 0.6] and list(table.accuracy_b) == [0.8, 0.4]
    assert list(table.difference) == [0.0, 0.2] and list(table.p) == [1.0, 1.0]
    assert (table.a == "a").all() and (table.b == "b").all() and table.same_noise.all()
    assert (table.boot_low <= table.difference).all() and (table.difference <= table.boot_high).all()
    # of 5 images with differences 1, 1, -1, 0, 0 at r = 0.5 a resample has a mean between -1 and 1, of variance 0.128
    assert table.boot_low[1] == pytest.approx(-0.4, abs=0.21) and table.boot_high[1] == pytest.approx(0.8, abs=0.21)
    swapped = compare.compare([b], [a], radii=[0.0, 0.5])
    assert (swapped.a == "b").all() and list(swapped.difference) == [0.0, -0.2]
    assert swapped.acr_low[0] == pytest.approx(-table.acr_high[0], abs=0.05)


def test_runs_are_paired_by_sigma_and_differences_are_named(tmp_path):
    ours = [make_run(tmp_path / f"runs/a/{s}", [990] * 4, defense="a", sigma=s) for s in (0.25, 0.5)]
    theirs = [make_run(tmp_path / f"runs/b/{s}", [1990] * 4, defense="b", sigma=s, n=2000) for s in (0.5, 1.0)]
    table = compare.compare(ours, theirs, [0.0])
    assert list(table.sigma) == [0.5] and table.differs[0] == "n 1000 against 2000"
    text = compare.render(table)
    assert "A = a, B = b, at σ = 0.5" in text and "n 1000 against 2000" in text and "+0.0 [" in text
    # ceilings at sigma 0.5: 1.23 with 1,000 votes, 1.35 with 2,000
    lines = compare.render(compare.compare(ours, theirs, [1.0, 1.3, 1.4])).splitlines()
    assert [line.count("–") for line in lines if line.startswith("| 1")] == [0, 5]
    with pytest.raises(DrbenchError, match="no sigma in common"):
        compare.compare(ours, theirs[1:])
    with pytest.raises(DrbenchError, match="several at"):
        compare.compare(ours + ours[:1], theirs)


def test_only_images_of_both_count(tmp_path):
    a = make_run(tmp_path / "runs/a/x", [990, 990, 990], defense="a", images=5)
    b = make_run(tmp_path / "runs/b/x", [990, 400, 990, 400, 400], defense="b")
    table = compare.compare([a], [b], [0.0])
    assert list(table.images) == [3] and list(table.only_a) == [1] and "partial" in table.marks[0]


def test_command_line(tmp_path, capsys):
    for name in "ab":
        make_run(tmp_path / f"runs/{name}/x", [990] * 3, defense=name)
    sides = [str(tmp_path / "runs" / name) for name in "ab"]
    assert main(["table", "--compare", *sides]) == 0
    assert "Paired comparison" in capsys.readouterr().out
    assert main(["table", "--compare", *sides, "--out", str(tmp_path / "ab")]) == 0
    assert (tmp_path / "ab.md").exists() and (tmp_path / "ab.csv").read_text().startswith("radius,")
    assert main(["table"]) == 2 and main(["table", sides[0], "--compare", *sides]) == 2
    assert main(["table", "--compare", sides[0], sides[0]]) == 2
    assert "two different runs" in capsys.readouterr().err
