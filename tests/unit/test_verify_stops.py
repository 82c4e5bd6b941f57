"""Verification of modes that stop early: stops where the rule does not stop, or after it did, are found."""

import pytest

from drbench import stats
from drbench.evidence import Evidence, Stage
from drbench.records import record, verify
from drbench.stats import stopping
from tests.runs import make_run

BUDGET, ALPHA, RADII = 2000, 0.001, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def adaptive_run(folder, ends, mode="hybrid", **changes):
    """A complete run whose images stopped at (votes for class 1, draws)."""
    run = make_run(folder, [], images=len(ends), n=BUDGET)
    engine = run.header["engine"] | {"mode": mode, **stopping.plan(mode, 0.5, BUDGET, ALPHA, RADII)} | changes
    writer = record.Writer(folder)
    for image_id, (votes, draws) in enumerate(ends):
        select = {1: 0} if "select" in changes else {1: 100}
        kept = {c: k for c, k in ((0, draws - votes), (1, votes)) if k}
        evidence = Evidence((Stage(0.5, select, sum(select.values()), kept, draws),))
        writer.write(record.Row(image_id, 1, evidence, stats.decide_as(engine, evidence), 0.5, {}))
    writer.close()
    run = record.read(folder)
    header = run.header | {"engine": engine, "status": "complete", "evidence_sha256": record.evidence_sha256(run)}
    record.write_header(folder, header)
    return record.read(folder)


def test_right_stops_are_right(tmp_path):
    for mode in ("curtailed", "sequential", "hybrid"):
        stop = stopping.rule(mode, [r / 0.5 for r in RADII], BUDGET, ALPHA)
        ends = [stopping.simulate(stop, share, rng) for share, rng in shares()]
        assert verify.problems(adaptive_run(tmp_path / mode, ends, mode)) == []


def shares():
    import numpy as np

    return [(share, np.random.default_rng(i)) for i, share in enumerate((0.1, 0.4, 0.5, 0.55, 0.8, 0.95, 1.0) * 5)]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ((60, 100), "image 0: stopped after 100 draws with open targets"),
        ((0, 2000), r"image 0: drawn on after 1900 draws, although all targets were settled"),
        ((99, 150), "image 0: evidence of other draws"),
    ],
)
def test_wrong_stops_are_found(tmp_path, end, message):
    problems = verify.problems(adaptive_run(tmp_path / "a", [end, (0, 100)]))
    assert len(problems) == 1 and problems[0].startswith(message)


def test_a_tolerance_explains_open_images_at_the_last_checkpoint_only(tmp_path):
    ends = [(0, 100)] * 7 + [(440, 800)] * 2
    assert len(verify.problems(adaptive_run(tmp_path / "a", ends))) == 2
    assert verify.problems(adaptive_run(tmp_path / "b", ends, tolerance=0.25)) == []
    (problem,) = verify.problems(adaptive_run(tmp_path / "c", ends, tolerance=0.15))
    assert "a column may still rise by 0.2" in problem and "the tolerance is 0.15" in problem
    early = verify.problems(adaptive_run(tmp_path / "d", [*ends, (382, 700)], tolerance=0.5))
    assert early == ["image 9: stopped after 700 draws with open targets"]


def test_a_label_that_was_not_tested_is_found(tmp_path):
    run = adaptive_run(tmp_path / "a", [(2, 100), (0, 100)], select="label", n0=0)
    assert verify.problems(run) == []
    object.__setattr__(run.rows[0], "label", 2)
    assert any("class 1 was tested, not the label 2" in problem for problem in verify.problems(run))
