"""Accuracy against cost, from runs with chosen votes. No torch."""

import pandas as pd
import pytest

from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.plots import pareto_plot
from drbench.records import record
from drbench.tables import pareto
from tests.runs import make_cascade, make_run


@pytest.fixture
def runs(tmp_path):
    """Four images at sigma = 0.5; radii of 990, 900 and 700 of 1,000 votes are about 1.0, 0.57 and 0.22."""
    cheap = make_run(tmp_path / "a", [990, 700, 400, 400], defense="rcm", nfe={"vit": 1.0})
    dear = make_run(tmp_path / "b", [990, 900, 700, 400], defense="denoised", nfe={"denoiser": 5.0, "classifier": 1.0})
    waste = make_run(tmp_path / "c", [990, 900, 400, 400], defense="diffpure", nfe={"denoiser": 9.0, "classifier": 1.0})
    other = make_run(tmp_path / "d", [400] * 4, defense="rcm", sigma=1.0)
    cascade = make_cascade(tmp_path / "e", [[990], [400, 900], None, [500]])
    return [cheap, dear, waste, other, cascade]


def test_evaluations(runs):
    assert [pareto.evaluations(run) for run in runs[:4]] == [1100, 6600, 11000, 1100]
    # three images with evidence: one scale, two scales, one scale, each of 1,100 draws of two calls
    assert pareto.evaluations(runs[4]) == pytest.approx(4 * 2 * 1100 / 3)
    drawn = pareto.frame(runs).drop_duplicates("run").set_index("run").all_draws
    assert sorted(drawn) == pytest.approx([1100] * 4 + [4 * 1100 / 3])  # each scale with a selection of its own


def test_front(runs):
    table = pareto.frame(runs)
    front = {
        (row.defense, row.radius): row.front for row in table[(table.sigma == 0.5) & (table.radius <= 1)].itertuples()
    }
    assert {key for key, found in front.items() if found} == {
        ("rcm", 0.0), ("denoised", 0.0), ("rcm", 0.25), ("denoised", 0.25), ("rcm", 0.5), ("denoised", 0.5),
        ("rcm", 0.75),
    }  # fmt: skip
    assert not table[(table.sigma == 1.0) & (table.certifier == "gaussian")].front.any()  # nothing certified
    assert table[table.certifier == "cascade"].front.any()
    accuracy = table[(table.defense == "denoised") & (table.radius == 0.25)].certified_accuracy.item()
    assert accuracy == 0.5 and table.groupby("run").radius.nunique().eq(5).all()


def test_front_by_brute_force(tmp_path):
    votes = [[990] * k + [400] * (8 - k) for k in (3, 5, 5, 6, 1, 6)]
    calls = [1.0, 2.0, 3.0, 4.0, 0.0, 4.0]
    runs = [
        make_run(tmp_path / f"{i}", v, variant=f"{i}", nfe={"net": c})
        for i, (v, c) in enumerate(zip(votes, calls, strict=True))
    ]
    table = pareto.frame(runs, [0.0]).sort_values("variant")
    points = list(zip(table.certified_accuracy, table.evaluations, strict=True))
    expected = [not any(a >= b and c <= d and (a > b or c < d) for a, c in points) for b, d in points]
    assert table.front.tolist() == expected == [True, True, False, True, True, True]


def test_written_table(runs, tmp_path, capsys):
    folders = [str(run.folder) for run in runs]
    assert main(["table", "--cost", *folders]) == 0
    text = capsys.readouterr().out
    assert "| rcm | 1,100 | 1 | 1,100 | 0.5 | **50.0** | **25.0** | **25.0** | **25.0** |" in text
    assert "over σ = 1, 0.25" in text and "at σ = 1\n" in text
    assert main(["table", "--cost", *folders, "--out", str(tmp_path / "cost")]) == 0
    assert (tmp_path / "cost.md").read_text() == text.rstrip("\n") + "\n"
    written = pd.read_csv(tmp_path / "cost.csv")
    assert set(written.evaluations.round()) == {1100, 6600, 11000, 2933}
    assert main(["table", "--cost", *folders[::-1], "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again.md").read_bytes() == (tmp_path / "cost.md").read_bytes()


def test_plot_is_reproducible(runs, tmp_path):
    folders = [str(run.folder) for run in runs]
    for name in ("one", "two"):
        assert main(["plot", "--cost", *folders, "--out", str(tmp_path / name)]) == 0
    for suffix in (".png", ".svg", "-seconds.png", "-seconds.svg"):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second and len(first) > 10_000


def test_a_defense_looks_the_same_in_both_plots(runs, tmp_path, monkeypatch):
    free = make_run(tmp_path / "free", [990, 700, 400, 400], defense="constant", nfe={})
    drawn = []
    monkeypatch.setattr(pareto_plot.saving, "save", lambda draw, stem: drawn.append(draw()) or [])
    pareto_plot.cost_curves([free, *runs], tmp_path / "cost")
    by_calls, by_seconds = ({handle.get_label(): (handle.get_color(), handle.get_marker()) for handle in
                             figure.legends[0].legend_handles} for figure in drawn)  # fmt: skip
    assert by_seconds.keys() - by_calls.keys() == {"constant"} and len(by_calls) == len(set(by_calls.values())) == 4
    assert by_calls.items() <= by_seconds.items()
    symbols = [line for figure in drawn for axes in figure.axes for line in axes.lines if line.get_marker() != "None"]
    assert symbols and not any(line.get_clip_on() for line in symbols)  # whole at 100 %, too


def test_runs_without_costs_are_left_out(runs, tmp_path):
    imported = record.read(runs[0].folder)
    imported.header["engine"]["certifier"] = "imported"
    assert len(pareto.frame([imported, runs[1]]).run.unique()) == 1
    with pytest.raises(DrbenchError, match="runs with measured costs"):
        pareto.frame([imported])


def test_a_plot_of_runs_that_cost_nothing_says_so(tmp_path, capsys):
    free = make_run(tmp_path / "a", [990, 700], defense="constant", nfe={})
    assert main(["plot", str(free.folder), "--cost", "--out", str(tmp_path / "cost")]) == 2
    assert "none of these runs has a cost" in capsys.readouterr().err and not list(tmp_path.glob("cost*"))
