"""Modes that stop early, from the command line to the table: same decisions, resume, verification, marks."""

import os
import re
from pathlib import Path

import pytest

import drbench
from drbench import config
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.jobs import runner
from drbench.records import record, verify
from drbench.tables import certified_tables, summary

ROOT = Path(__file__).parents[1]
UNDEFENDED = ROOT / "benchmarks" / "digits" / "undefended.yaml"
SMALL = ["certify.sigma=0.5", "certify.n=2000", "certify.n0=50", "data.subset=first30", "run.batch_rows=256"]


def run(out, *overrides, limit=None):
    os.chdir(ROOT)
    (folder,) = runner.run(config.load(UNDEFENDED, [*SMALL, *overrides]), out, limit)
    return record.read(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("modes")
    return {mode: run(out, f"certify.mode={mode}") for mode in ("fixed", "curtailed", "sequential", "hybrid")}


def test_curtailed_gives_the_fixed_table_with_fewer_draws(runs):
    fixed, curtailed = (summary.frame([runs[mode]]) for mode in ("fixed", "curtailed"))
    assert list(curtailed.certified_accuracy) == list(fixed.certified_accuracy)
    assert list(curtailed.abstention) == list(fixed.abstention)
    assert curtailed.draws[0] < 0.95 * fixed.draws[0] == 0.95 * 2000


@pytest.mark.parametrize("mode", ["sequential", "hybrid"])
def test_sequential_modes_save_draws_and_stay_near(runs, mode):
    fixed, early = summary.frame([runs["fixed"]]), summary.frame([runs[mode]])
    assert early.draws[0] < 0.7 * 2000
    assert abs(early.certified_accuracy - fixed.certified_accuracy).max() <= 2 / 30 + 1e-9


def test_runs_verify_and_a_changed_number_of_draws_is_found(runs):
    for mode, found in runs.items():
        assert verify.problems(found) == [], mode
    row = next(row for row in runs["hybrid"].rows.values() if row.evidence.stages[0].n == 300)
    stage = row.evidence.stages[0]
    votes = {c: k - (c == max(stage.votes, key=stage.votes.get)) for c, k in stage.votes.items()}
    object.__setattr__(row, "evidence", type(row.evidence)((type(stage)(0.5, stage.select, 50, votes, 299),)))
    assert any("other draws" in problem for problem in verify.problems(runs["hybrid"]))


def test_tables_mark_them(runs):
    text = certified_tables.render_markdown(summary.frame(list(runs.values())))
    for sign in "°⋄△":
        assert re.search(rf"undefended\S*{sign} \| ≤ 2,000, mean [\d,]+ \|", text)
    assert "curtailed: draws stop" in text and re.search(r"undefended\S* \| 2,000 \|", text)


def test_identity_of_fixed_runs_does_not_know_the_modes(runs):
    (plain,) = config.load(UNDEFENDED, SMALL)
    (other,) = config.load(UNDEFENDED, [*SMALL, "certify.give_up=0.05"])
    assert config.identity(plain, []) == config.identity(other, [])
    (adaptive,) = config.load(UNDEFENDED, [*SMALL, "certify.mode=hybrid"])
    (given,) = config.load(UNDEFENDED, [*SMALL, "certify.mode=hybrid", "certify.give_up=0.05"])
    assert len({config.identity(cell, []) for cell in (plain, adaptive, given)}) == 3


def test_a_partial_run_goes_on(runs, tmp_path):
    part = run(tmp_path, "certify.mode=hybrid", limit=7)
    assert len(part.rows) == 7
    whole = run(tmp_path, "certify.mode=hybrid")
    again = run(tmp_path / "again", "certify.mode=hybrid")
    assert {i: row.evidence for i, row in whole.rows.items()} == {i: row.evidence for i, row in again.rows.items()}


def test_targets_may_be_given(tmp_path):
    few = run(tmp_path, "certify.mode=sequential", "certify.radii=[0.5]")
    assert few.header["engine"]["radii"] == [0.5]
    assert summary.frame([few]).draws[0] < 900  # one target is settled sooner than six
    assert "few targets" in summary.frame([few]).marks[0]  # the other radii of the table are lower bounds
    assert "few targets" not in summary.frame([few], radii=[0.5]).marks[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify.mode=sequentail"], "certify.mode is fixed, curtailed, sequential, hybrid"),
        (["certify.mode=hybrid", "certify.give_up=1"], "give_up is in"),
        (["certify.mode=hybrid", "certify.radii=[-1]"], "target radii >= 0"),
    ],
)
def test_bad_modes_are_explained(words, message, capsys):
    assert main(["run", str(UNDEFENDED), *words]) == 2
    assert message in capsys.readouterr().err


def test_notebook(runs):
    images = drbench.load_data("digits", subset="first30")
    defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    found = drbench.certify(defense, images, 0.5, n=2000, n0=50, mode="curtailed").set_index("id")
    stored = {row.id: row.certificate.radius for row in runs["curtailed"].rows.values()}
    assert found.radius.to_dict() == pytest.approx(stored)
    assert tuple(found.index) == images.ids and found.radius_multiclass.isna().all()
    with pytest.raises(DrbenchError, match=r"n=10 draws can certify nothing under this protocol .*sequential"):
        drbench.certify(defense, images, 0.5, n=10, mode="sequential")
    with pytest.raises(DrbenchError, match="expected mode fixed, or"):
        drbench.certify(defense, images, 0.5, mode="fast")
