"""Tables against counts made by hand: what counts as certified, marks, envelope, formats, determinism."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.records import record, verify
from drbench.tables import certified_tables, halting, saving, summary
from drbench.tables.frames import first_row, named_rows
from tests.runs import make_cascade, make_run

N, ALPHA = 1000, 0.001
WRONG, ABSTAINS, ALL = 0, 500, N
ORDER = [
    "dataset", "subset", "defense", "variant", "certifier", "mode", "protocol", "preset", "noise", "norm", "sigma",
    "sigmas", "n0", "n", "draws", "alpha", "ceiling", "images", "radius", "certified_accuracy", "ci_low", "ci_high",
    "wilson_low", "wilson_high", "certified_accuracy_high_probability", "certified_accuracy_multiclass", "acr",
    "acr_low", "acr_high", "acr_constant", "acr_easiest", "radius_median", "p_10", "p_25", "p_50", "p_75", "p_90",
    "abstention", "errors", "nfe", "nfe_detail", "seconds_per_image", "weights", "partial", "marks", "run",
]  # fmt: skip


def ceiling(sigma: float) -> float:
    return stats.ceiling_radius(N, ALPHA, sigma)


def at(table: pd.DataFrame, radius: float, column: str = "certified_accuracy"):
    return table.loc[table["radius"] == radius, column].item()


def test_rows_are_those_of_pandas():
    table = pd.DataFrame({"n": [3, 4], "share": [0.5, float("inf")], "mode": ["fixed", None], "marks": [[1], ()]})[::-1]
    rows, wanted = list(named_rows(table)), list(table.itertuples(index=False))
    assert [row._asdict() for row in rows] == [row._asdict() for row in wanted] and first_row(table) == rows[0]
    assert [type(cell) for cell in rows[0]] == [type(cell) for cell in wanted[0]]


def test_certified_accuracy_by_hand(tmp_path):
    """5 images at sigma 0.5: two unanimous (radius 1.23), one at 900 of 1000 votes (0.55), one wrong, one abstains."""
    run = make_run(tmp_path / "a", [ALL, ALL, 900, WRONG, ABSTAINS], sigma=0.5)
    table = summary.frame([run], radii=[0, 0.5, 0.75, 1.0, 1.25])
    assert table["certified_accuracy"].tolist() == [0.6, 0.6, 0.4, 0.4, 0.0]
    # Clopper-Pearson limits of 3 of 5, from the beta distribution
    assert at(table, 0, "ci_low") == pytest.approx(0.146633, abs=1e-6)
    assert at(table, 0, "ci_high") == pytest.approx(0.947255, abs=1e-6)
    assert (table["abstention"] == 0.2).all() and (table["errors"] == 0).all() and (table["images"] == 5).all()


def test_an_abstention_is_wrong_at_radius_zero_too(tmp_path):
    run = make_run(tmp_path / "a", [ABSTAINS, ABSTAINS])
    assert at(summary.frame([run]), 0.0) == 0.0
    assert at(summary.frame([run]), 0.0, "abstention") == 1.0


def test_a_wrong_image_with_a_large_radius_is_not_certified(tmp_path):
    run = make_run(tmp_path / "a", [WRONG])
    assert summary.certified(run)["radius"].item() == ceiling(0.5)
    assert at(summary.frame([run]), 0.0) == 0.0 and at(summary.frame([run]), 0.0, "acr") == 0.0


def test_errors_count_as_not_certified_and_not_as_abstentions(tmp_path):
    table = summary.frame([make_run(tmp_path / "a", [ALL, None, None, ABSTAINS])])
    assert at(table, 0.0) == 0.25
    assert at(table, 0.0, "errors") == 2 and at(table, 0.0, "abstention") == 0.25 and at(table, 0.0, "images") == 4
    assert "Errors, counted as not certified: 2 of 4 images, rcm at σ = 0.5" in certified_tables.render_markdown(table)


def test_radius_just_below_a_column_does_not_count_there(tmp_path):
    """A radius of 0.4995, which 0.500 would stand for if radii were stored with three decimals."""
    sigma = 0.4995 / stats.gaussian_radius(900, N, ALPHA, 1.0)
    table = summary.frame([make_run(tmp_path / "a", [900], sigma=sigma)], radii=[0.499, 0.5])
    assert table["certified_accuracy"].tolist() == [1.0, 0.0]


def test_a_radius_equal_to_the_column_counts(tmp_path):
    radius = stats.gaussian_radius(900, N, ALPHA, 0.5)
    table = summary.frame([make_run(tmp_path / "a", [900])], radii=[radius, np.nextafter(radius, 9)])
    assert table["certified_accuracy"].tolist() == [1.0, 0.0]


def test_area_under_the_curve_is_the_acr_and_the_curve_never_rises(tmp_path):
    hits = np.random.default_rng(0).integers(300, N + 1, 40).tolist()
    run = make_run(tmp_path / "a", hits)
    steps = np.unique(np.r_[0.0, summary.certified(run)["radius"]])
    table = summary.frame([run], radii=steps)
    share = table["certified_accuracy"].to_numpy()
    acr = table["acr"].iat[0]
    assert np.sum(np.diff(steps) * share[1:]) == pytest.approx(acr, rel=1e-12) and acr > 0.1
    assert (np.diff(share) <= 0).all() and share[0] > share[-1]
    assert table["acr_low"].iat[0] < acr < table["acr_high"].iat[0]


def test_certificates_are_recomputed_never_read(tmp_path):
    run = make_run(tmp_path / "a", [600])
    path = next((tmp_path / "a").glob("rows-*.jsonl"))
    payload = record.decode(path.read_bytes())
    payload["certificate"]["radius"] = 99.0
    path.write_bytes(record.encode(payload))
    forged = record.read(tmp_path / "a")
    assert next(forged.ordered()).radius == 99.0
    assert summary.frame([forged]).equals(summary.frame([run]))


def test_cost_columns(tmp_path):
    run = make_run(tmp_path / "a", [ALL, ALL], nfe={"denoiser": 9.0, "classifier": 1.0}, seconds=1.5)
    first = summary.frame([run]).iloc[0]
    assert first[["nfe", "nfe_detail", "seconds_per_image"]].tolist() == [10, "denoiser 9 + classifier 1", 1.5]


def test_default_radii_are_exact_quarters_up_to_the_largest_ceiling(tmp_path):
    small, large = make_run(tmp_path / "a", [ALL], sigma=0.25), make_run(tmp_path / "b", [ALL], sigma=1.0)
    assert sorted(set(summary.frame([small])["radius"])) == [0, 0.25, 0.5, 0.75, 1.0]
    assert sorted(set(summary.frame([small, large])["radius"])) == [i / 4 for i in range(10)]
    assert 2.25 <= ceiling(1.0) < 2.5


def test_runs_without_rows_are_left_out_and_alone_are_an_error(tmp_path):
    empty, full = make_run(tmp_path / "a", [], images=3), make_run(tmp_path / "b", [ALL])
    assert set(summary.frame([empty, full])["run"]) == {"b"}
    with pytest.raises(DrbenchError, match="recorded image"):
        summary.frame([empty])


@pytest.mark.parametrize("radii", [[], [-0.1], [math.nan], [math.inf]])
def test_radii_that_are_none_are_refused(tmp_path, radii):
    with pytest.raises(DrbenchError, match="radii"):
        summary.frame([make_run(tmp_path / "a", [ALL])], radii=radii)


def test_the_same_run_twice_is_refused(tmp_path):
    run = make_run(tmp_path / "runs" / "rcm" / "s", [ALL])
    with pytest.raises(DrbenchError, match="rcm/s came twice"):
        summary.frame([run, run])


def test_order_is_floors_then_names_and_does_not_depend_on_the_input(tmp_path):
    names = ["rcm", "adversarial", "undefended", "constant"]
    runs = [make_run(tmp_path / name, [ALL], defense=name) for name in names]
    assert summary.frame(runs)["defense"].unique().tolist() == ["constant", "undefended", "adversarial", "rcm"]
    assert summary.frame(runs).equals(summary.frame(runs[::-1]))


def test_the_run_column_never_holds_an_absolute_path(tmp_path):
    runs = [make_run(tmp_path / "runs" / "rcm" / "sigma0.5-ab", [ALL]), make_run(tmp_path / "elsewhere", [ALL])]
    assert summary.frame(runs)["run"].unique().tolist() == ["elsewhere", "rcm/sigma0.5-ab"]


def three_levels(folder: Path, **more) -> list[record.Run]:
    """At r = 0: 3, 2, 2 of 4 images; at 0.5: 2, 2, 2; at 1: 0, 1, 2; at 2: 0, 0, 2."""
    hits = {0.25: [ALL, ALL, 600, 0], 0.5: [ALL, 900, 0, 0], 1.0: [ALL, ALL, 0, 0]}
    return [make_run(folder / f"s{sigma:g}", votes, sigma=sigma, **more) for sigma, votes in hits.items()]


def test_envelope_takes_the_best_and_names_it(tmp_path):
    table = summary.frame(three_levels(tmp_path), radii=[0, 0.5, 1, 2, 3])
    best = summary.envelope(table)
    assert best["certified_accuracy"].tolist() == [0.75, 0.5, 0.5, 0.5, 0.0]
    assert best["sigma"].tolist()[:4] == [0.25, 0.25, 1.0, 1.0]  # at 0.5 all three tie: the smallest
    assert math.isnan(best["sigma"].iat[4])
    own = table[(table["sigma"] == 1.0) & (table["radius"] == 2)]
    assert (at(best, 2, "ci_low"), at(best, 2, "ci_high")) == (own["ci_low"].item(), own["ci_high"].item())


def test_envelope_is_per_method(tmp_path):
    runs = [*three_levels(tmp_path / "x"), make_run(tmp_path / "y", [0, ALL], defense="constant", sigma=0.25)]
    best = summary.envelope(summary.frame(runs, radii=[0.0]))
    assert best[["defense", "certified_accuracy"]].to_numpy().tolist() == [["constant", 0.5], ["rcm", 0.75]]


def test_markdown_names_the_winner_and_the_oracle(tmp_path):
    text = certified_tables.render_markdown(summary.frame(three_levels(tmp_path), radii=[0, 0.5, 1, 2, 2.4, 3]))
    assert "## digits test, upper envelope over σ: an oracle, not one classifier" in text
    assert "| rcm | 75.0 (0.25) | 50.0 (0.25) | 50.0 (1) | 50.0 (1) | 50.0 (1) |" in text
    assert "r = 3" not in text  # beyond every ceiling


def test_markdown_section_by_hand(tmp_path):
    run = make_run(tmp_path / "a", [ALL, ALL, 900, WRONG, ABSTAINS], sigma=0.5, seconds=2)
    text = certified_tables.render_markdown(summary.frame([run]))
    line = next(line for line in text.splitlines() if line.startswith("| rcm | 1,000"))
    assert line.startswith(f"| rcm | 1,000 | 5 |{3 * ' 60.0 [14.7, 94.7] |'}{2 * ' 40.0 [5.3, 85.3] |'} ")
    assert line.endswith("| 20.0 | 1 | 2 |")
    assert "data digits; subset test; n0 = 100 selection draws; alpha = 0.001; certifier gaussian (fixed)" in text
    assert f"{ceiling(0.5):.4f} at σ = 0.5, n = 1,000, alpha = 0.001" in text


def test_every_markdown_row_has_as_many_cells_as_its_head(tmp_path):
    runs = [*three_levels(tmp_path / "x"), make_run(tmp_path / "y", [100, 0], variant="a|b", n=100)]
    lines = certified_tables.render_markdown(summary.frame(runs)).splitlines()
    counts, seen = None, 0
    for line in lines:
        cells = len(re.findall(r"(?<!\\)\|", line))
        counts = None if not line.startswith("|") else counts or cells
        assert counts is None or cells == counts
        seen += counts is not None
    assert seen == 3 + 4 + 3 + 4 + 6  # heads, rules, rows: two methods at sigma 0.5, in the envelopes; all beside ACR


def test_a_dash_only_beyond_the_ceiling_and_zero_in_the_csv(tmp_path):
    """n = 20 reaches 0.27 at sigma 0.5, n = 1000 reaches 1.23: only the first row has dashes from r = 0.5 on."""
    runs = [make_run(tmp_path / "a", [20], n=20, defense="few"), make_run(tmp_path / "b", [WRONG], defense="none")]
    table = summary.frame(runs)
    text = certified_tables.render_markdown(table)
    assert re.search(r"\| few \| 20 \| 1 \| 100.0 \[[^]]*\] \| 100.0 \[[^]]*\] \| – \| – \| – \|", text)
    assert re.search(r"\| none \| 1,000 \| 1(?: \| 0.0 \[0.0, 97.5\]){5} \|", text)
    few = table[(table["defense"] == "few") & (table["radius"] >= 0.5)]
    assert (few["certified_accuracy"] == 0).all() and len(few) == 3
    assert "Not the same n in all rows, compare with care: 1000, but 20, few at σ = 0.5 (test)." in text


def test_marks_show_in_all_formats_and_only_where_they_belong(tmp_path):
    runs = [
        make_run(tmp_path / "a", [ALL], images=2, defense="half"),
        make_run(tmp_path / "b", [ALL, ALL], defense="sound"),
        make_run(tmp_path / "c", [ALL, ALL], defense="edited", dirty=True),
        make_run(tmp_path / "d", [ALL, ALL], defense="raw", flags=["weights as constructed: no checkpoint"]),
    ]
    table = summary.frame(runs)
    marks = table.drop_duplicates("run").set_index("defense")["marks"].to_dict()
    assert marks == {"half": "partial", "sound": "", "edited": "dirty", "raw": "weights as constructed"}
    assert set(table[table["partial"]]["defense"]) == {"half"}
    markdown, tex = certified_tables.render_markdown(table), certified_tables.render_latex(table)
    for shown in ("| half† |", "| sound |", r"| edited\* |", "| raw‡ |", "- † partial", r"- \* dirty", "0 (0.5)†"):
        assert shown in markdown
    for shown in (r"half$^\dagger$ &", "sound &", r"edited$^\ast$ &", r"raw$^\ddagger$ &", r"(0.5)$^\dagger$"):
        assert shown in tex
    assert r"\footnotesize $^\dagger$ partial: " in tex
    assert "Not the same images in all rows, compare with care: 2, but 1, half at σ = 0.5 (test)." in markdown
    alone = summary.frame([runs[1]])
    assert not re.search(
        r"[†‡§¶]|\\\*|dagger", certified_tables.render_markdown(alone) + certified_tables.render_latex(alone)
    )


def test_a_damaged_line_is_marked_and_a_torn_last_line_is_not(tmp_path):
    make_run(tmp_path / "a", [ALL, ALL])
    path = next((tmp_path / "a").glob("rows-*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert summary.frame([record.read(tmp_path / "a")])["marks"].iat[0] == ""
    path.write_bytes(whole.replace(b'"label":1', b'"label":0', 1))
    assert summary.frame([record.read(tmp_path / "a")])["marks"].iat[0] == "partial, damaged"


def test_an_unknown_flag_speaks_for_itself(tmp_path):
    text = certified_tables.render_markdown(summary.frame([make_run(tmp_path / "a", [ALL], flags=["odd_thing: why"])]))
    assert "| rcm¶ |" in text and "- ¶ odd_thing" in text


def test_latex_escapes_names(tmp_path):
    run = make_run(tmp_path / "a", [ALL], defense="noise_augmented", variant="100%_&")
    text = certified_tables.render_latex(summary.frame([run]))
    assert r"noise\_augmented (100\%\_\&) & 1000 &" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 2 + 2 + 1 and text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    widths = {len(re.findall(r"(?<!\\)&", line)) for line in body if "multicolumn" not in line}
    assert widths == {len(re.search(r"\{tabular\}\{(l?r*)\}", text)[1]) - 1}
    assert not re.search(r"(?<!\\)[%_#]", text.split("\n", 1)[1])  # the first line is a comment
    every = r"\{}$&#^_~%<>|"
    assert every.translate(saving.TEX) == (
        r"\textbackslash{}\{\}\$\&\#\textasciicircum{}\_\textasciitilde{}\%\textless{}\textgreater{}\textbar{}"
    )


def test_latex_bolds_the_best_all_ties_and_no_zero_and_no_partial_row(tmp_path):
    runs = [
        make_run(tmp_path / "a", [ALL, 600], defense="a"),
        make_run(tmp_path / "b", [ALL, 0], defense="b"),
        make_run(tmp_path / "c", [ALL], defense="c", images=2),
    ]
    lines = certified_tables.render_latex(summary.frame(runs, radii=[0, 1, 2])).splitlines()[1:]
    bold = r"\textbf{"
    assert lines[5].startswith(f"a & 1000 & 2 & {bold}100.0}} & {bold}50.0}} & -- &")
    assert lines[6].startswith(f"b & 1000 & 2 & 50.0 & {bold}50.0}} & -- &")
    assert lines[7].startswith(r"c$^\dagger$ & 1000 & 1 & 100.0 & 100.0 & -- &")
    nothing = summary.frame([make_run(tmp_path / "d", [WRONG])])
    assert bold not in certified_tables.render_latex(nothing) and "0.0" in certified_tables.render_latex(nothing)


def test_csv_has_the_promised_columns_and_parses_back_exactly(tmp_path):
    table = summary.frame(three_levels(tmp_path / "in", variant="a, b"))
    path = certified_tables.write(table, tmp_path / "out" / "t.v1")[1]
    assert path.name == "t.v1.csv"
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ORDER == list(table.columns) and len(rows) == len(table)
    again = pd.DataFrame(rows, columns=head).astype({"partial": str} | table.dtypes.drop("partial").to_dict())
    pd.testing.assert_frame_equal(again, table.astype({"partial": str}), check_exact=True)


def test_the_same_records_give_the_same_bytes(tmp_path):
    three_levels(tmp_path / "in")
    written = []
    for stem, order in (("x", 1), ("y", -1)):
        runs = [record.read(folder) for folder in record.find([tmp_path / "in"])][::order]
        written.append([path.read_bytes() for path in certified_tables.write(summary.frame(runs), tmp_path / stem)])
    assert written[0] == written[1] and all(written[0])
    assert str(tmp_path).encode() not in b"".join(written[0])


def test_an_unwritable_place_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    table = summary.frame([make_run(tmp_path / "a", [ALL])])
    with pytest.raises(DrbenchError, match="cannot write table"):
        certified_tables.write(table, tmp_path / "file" / "t")


def test_repeated_runs_are_told_apart(tmp_path):
    """Two seeds of one row: both lines are marked and named by their folders."""
    runs = [make_run(tmp_path / "runs" / "rcm" / name, [990, 900]) for name in ("sigma0.5-aaaa", "sigma0.5-bbbb")]
    table = summary.frame([*runs, make_run(tmp_path / "runs" / "other" / "sigma0.5-cccc", [990, 900], defense="other")])
    assert set(table[table.defense == "rcm"].marks) == {"repeat"} and set(table[table.defense == "other"].marks) == {""}
    text = certified_tables.render_markdown(table)
    assert "| rcm sigma0.5-aaaa‖ |" in text and "| rcm sigma0.5-bbbb‖ |" in text and "| other |" in text


def test_multiclass_column(tmp_path):
    """Three classes: below half of the votes the binary bound abstains, the multi-class one need not."""
    run = make_run(tmp_path / "run", [900, 400])
    writer = record.Writer(run.folder)
    votes = {1: 450, 0: 300, 2: 250}
    evidence = Evidence((Stage(0.5, {1: 100}, 100, votes, 1000),))
    writer.write(record.Row(7, 1, evidence, stats.decide("gaussian", evidence, 0.001), 0.5))
    writer.close()
    header = run.header | {"data": run.header["data"] | {"ids": [0, 1, 7]}}
    record.write_header(run.folder, header)
    table = summary.frame([record.read(run.folder)], radii=[0.0, 0.03])
    # image 0 is certified by both (900 votes), image 1 by none (400 of two classes), image 7 by the second alone
    assert table.certified_accuracy.tolist() == pytest.approx([1 / 3, 1 / 3])
    radius = stats.multiclass_radius(450, 300, 1000, 0.001, 0.5)
    assert radius > 0.03 and stats.gaussian_radius(450, 1000, 0.001, 0.5) == 0
    assert table.certified_accuracy_multiclass.tolist() == pytest.approx([2 / 3, 2 / 3])


# ---- cascades -----------------------------------------------------------------------------------------------------

STOPS = [[900], [400, 900], [400, 560], [500], [400, 400], [400, 500], None, [900]]


def test_cascades_by_hand(tmp_path):
    """Halt at 1, at 0.25 (twice), undecided at 1, none halts, undecided at 0.25, error, halt at 1."""
    run = make_cascade(tmp_path / "a", STOPS)
    assert verify.problems(run) == []
    table = summary.frame([run], radii=[0.0, 1.0])
    level, first = 0.0005, table.iloc[0]
    radii = [stats.gaussian_radius(900, N, level, sigma) for sigma in (1.0, 0.25)]
    assert table.certified_accuracy.tolist() == [4 / 8, 2 / 8] and radii[0] > 1 > radii[1]
    assert (first.sigma, first.sigmas, first.protocol, first.errors, first.abstention) == (
        1.0,
        "1, 0.25",
        "sound",
        1,
        3 / 8,
    )
    assert first.ceiling == stats.ceiling_radius(N, level, 1.0)
    # 3 of 8 are certified by their own scale; at 560 votes of 0.25 too: 300 of 1000 at sigma = 1 for each rival is far
    assert first.acr == pytest.approx((2 * radii[0] + radii[1] + stats.gaussian_radius(560, N, level, 0.25)) / 8)
    assert np.isnan(first.certified_accuracy_multiclass)
    (found,) = halting.frame([run, make_run(tmp_path / "b", [ALL])]).itertuples()
    assert (found.halted, found.undecided) == ([2 / 8, 2 / 8], [1 / 8, 1 / 8])
    assert (found.none_halted, found.no_radius, found.earlier) == (1 / 8, 0, 0)
    assert (found.draws, found.most_draws) == (11 * 1100 / 8, 2200)
    assert (found.evaluations, found.most_evaluations) == (2 * found.draws, 4400)
    assert found.certified_cascade == found.cascade_fallback == 4 / 8  # clean images are taken for class 0
    # log(0.9 p + 0.1 / 3) of class 1 must exceed that of class 0 by 1: at 900 votes, not at 560
    assert (found.prior_mixed, found.clean) == (3 / 8, 0)


def test_a_cascade_whose_radius_an_earlier_scale_limits(tmp_path):
    far, near = make_cascade(tmp_path / "a", [[400, ALL]]), make_cascade(tmp_path / "b", [[40, ALL]])
    first, second = halting.frame([far, near]).itertuples()
    assert (first.earlier, first.no_radius, first.halted) == (1, 0, [0, 1])  # 300 of 1000 for each rival
    assert (second.earlier, second.no_radius, second.halted) == (1, 1, [0, 1])  # 480
    limit = -reference.norm.ppf(stats.cp_upper(300, N, ALPHA / 4))
    assert limit == pytest.approx(summary.certified(far).radius.item()) and limit < 0.25 * 2
    assert not summary.certified(near).correct.item()


def test_cascades_have_a_group_of_their_own(tmp_path):
    runs = [
        make_run(tmp_path / "a", [ALL] * 8, sigma=1.0),
        make_cascade(tmp_path / "b", STOPS),
        make_cascade(tmp_path / "c", STOPS, protocol="paper_code", variant="code"),
        make_cascade(tmp_path / "d", STOPS, sigmas=(0.5, 1.0)),
    ]
    table = summary.frame(runs)
    assert set(table.marks) == {""}  # no two are repeats of each other
    text = certified_tables.render_markdown(table, halting.frame(runs))
    titles = [line for line in text.splitlines() if line.startswith("## digits test")]
    assert titles == [
        "## digits test, σ = 1",
        "## digits test, cascade over σ = 1, 0.25: one classifier",
        "## digits test, cascade over σ = 1, 0.5: one classifier",
        "## digits test, upper envelope over σ: an oracle, not one classifier",
    ]
    oracle = text.partition("upper envelope")[2].partition("## ")[0]
    assert "| rcm |" in oracle and "multiscale" not in oracle
    ceilings = f"{stats.ceiling_radius(N, 0.0005, 1.0):.4f} over σ = 1, 0.25, n = 1,000, alpha = 0.001"
    assert ceilings in text and "over σ = 1, 0.25, protocol paper_code, n = 1,000" in text
    line = (
        "| multiscale over σ = 1, 0.25 (test) | 25.0 / 25.0 | 12.5 / 12.5 | 12.5 | 0.0 | 0.0 | 1,512, at most 2,200 |"
    )
    assert line in text
    tex = certified_tables.render_latex(table)
    assert r"digits test, cascade over $\sigma = 1, 0.25$: one classifier" in tex and "σ" not in tex
    alone = certified_tables.render_markdown(summary.frame(runs[1:2]))
    assert "upper envelope" not in alone and "Cascades: where" not in alone


# ---- beside the averages ---------------------------------------------------------------------------------------------


def test_what_stands_beside_the_acr_by_hand(tmp_path):
    """Radii 1.23, 1.23, 0.55 and 0 of four right images; two labels would be needed for another constant answer."""
    run = make_run(tmp_path / "a", [ALL, ALL, 900, ABSTAINS], sigma=0.5)
    first = summary.frame([run]).iloc[0]
    radius = stats.gaussian_radius(900, N, ALPHA, 0.5)
    assert first.acr_constant == pytest.approx(ceiling(0.5))  # every label is 1
    assert first.acr_easiest == pytest.approx(ceiling(0.5) / (2 * ceiling(0.5) + radius))
    assert first.radius_median == pytest.approx((radius + ceiling(0.5)) / 2)
    assert first[["p_10", "p_50", "p_90"]].tolist() == pytest.approx(np.quantile([1, 1, 0.9, 0.5], [0.1, 0.5, 0.9]))
    wilson = reference.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert (first.wilson_low, first.wilson_high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    text = certified_tables.render_markdown(summary.frame([run]))
    line = next(line for line in text.splitlines() if line.startswith("| rcm at σ = 0.5 (test) |"))
    assert line.split(" | ")[1] == f"{first.acr:.3f}" and line.endswith(" 50.0 |")  # one of four may be false


def test_high_probability_takes_off_what_may_be_false(tmp_path):
    table = summary.frame([make_run(tmp_path / "a", [ALL] * 500)], radii=[0.0, 1.0])
    assert table.certified_accuracy_high_probability.tolist() == [0.992, 0.992]  # 4 of 500
    unsound = make_cascade(tmp_path / "b", [[990], [400, 900]], protocol="paper_code")
    assert summary.frame([unsound], radii=[0.0]).certified_accuracy_high_probability.isna().all()
    assert summary.frame([unsound], radii=[0.0]).p_50.isna().all()


def test_protocols_are_named_with_what_differs(tmp_path):
    run = make_run(tmp_path / "a", [ALL])
    record.write_header(run.folder, run.header | {"protocol": {"name": "cohen2019", "differs": ["certify.n = 1000"]}})
    table = summary.frame([record.read(run.folder)])
    assert set(table.preset) == {"cohen2019, except certify.n = 1000"}
    assert "Protocol cohen2019, except certify.n = 1000: rcm at σ = 0.5 (test)." in certified_tables.render_markdown(
        table
    )


def test_radii_in_another_norm(tmp_path):
    run = make_run(tmp_path / "a", [ALL, 900], sigma=0.5)
    linf = summary.frame([run], norm="linf")
    assert linf.ceiling[0] == pytest.approx(ceiling(0.5) / 8)
    assert linf.radius.tolist() == pytest.approx([i * 4 / 255 for i in range(10)])  # about ten columns
    assert linf[linf.radius > linf.ceiling[0]].certified_accuracy.eq(0).all()
    assert "r = 4/255" in certified_tables.render_markdown(linf) and "linf radii" in certified_tables.render_markdown(
        linf
    )
    unknown = make_run(tmp_path / "b", [ALL], dataset="elsewhere")
    with pytest.raises(DrbenchError, match="does not say the shape of its images"):
        summary.frame([unknown], norm="linf")
    assert summary.frame([unknown], norm="l2").ceiling[0] == ceiling(0.5)


def test_distribution_of_the_votes(tmp_path):
    from drbench.plots import share_plot

    runs = [make_run(tmp_path / "a", [ALL, 900, 900, None]), make_cascade(tmp_path / "b", [[990]])]
    written = share_plot.share_curves(runs, tmp_path / "votes")
    assert [path.suffix for path in written] == [".png", ".svg", ".csv"]
    corners = pd.read_csv(written[2], keep_default_na=False)
    assert corners.p.tolist() == [0.9, 1.0] and corners.share_of_images.tolist() == pytest.approx([2 / 3, 1.0])
    with pytest.raises(DrbenchError, match="cascades and logs have no such share"):
        share_plot.share_curves(runs[1:], tmp_path / "none")
