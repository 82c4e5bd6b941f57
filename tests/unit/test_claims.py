"""Claims on planted runs: verdicts, refusals, equal draws, seeds, tables that names cannot break. No torch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import yaml

from drbench.comparisons import claim_tables, claims
from drbench.errors import DrbenchError
from drbench.records import record
from tests.runs import make_attack, make_cascade, make_run

CLAIM = {"claim": "ours is better", "source": "abstract", "measure": "certified", "a": "ours*", "b": "theirs",
         "sigmas": [0.5], "radii": [0, 0.25]}  # fmt: skip


@pytest.fixture
def judge(tmp_path):
    """Judge one claim, `CLAIM` with other fields; the row of the only data set."""

    def judged(*runs, **fields):
        claim = {key: value for key, value in (CLAIM | fields).items() if value is not None}
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump({"A paper (2024)": {"one": claim}}))
        (row,) = claims.judge(runs, path).itertuples()
        return row

    return judged


def pair(folder, ours, theirs, **common):
    return (
        make_run(folder / "a", ours, defense="ours", **common),
        make_run(folder / "b", theirs, defense="theirs", **common),
    )


def test_holds_fails_and_undecided(judge, tmp_path):
    good, bad = [990] * 40, [990] * 20 + [400] * 20
    ours, theirs = pair(tmp_path, good, bad)
    row = judge(ours, theirs)
    assert (row.verdict, row.effect, row.up, row.down, row.images, row.seeds) == ("holds", 50.0, 20, 0, 40, "1 / 1")
    assert row.p == pytest.approx(2**-19, rel=1e-3) and row.p_holm == row.p and row.low > 0
    assert (row.key, row.paper, row.dataset, row.unit) == ("one", "A paper (2024)", "digits", "points")
    assert row.runs == "a b" and row.cost == "A 1 call, 0.45 ms; B 1 call, 0.45 ms"
    assert judge(ours, theirs, a="theirs", b="ours").verdict == "fails"
    assert judge(ours, theirs, relation="below").verdict == "fails"
    assert judge(ours, theirs, a="theirs", b="ours", relation="below").verdict == "holds"
    close = make_run(tmp_path / "c", [990] * 38 + [400] * 2, defense="close")
    row = judge(ours, close, b="close")
    assert row.verdict == "undecided" and row.effect == 5.0 and row.p == 0.5


def test_margins(judge, tmp_path):
    ours, theirs = pair(tmp_path, [990] * 198 + [400] * 2, [990] * 200)
    assert judge(ours, theirs, relation="close", margin=5).verdict == "holds"
    assert judge(ours, theirs, relation="close", margin=1).verdict == "undecided"
    assert judge(ours, theirs, relation="no_worse", margin=5).verdict == "holds"
    much = make_run(tmp_path / "c", [400] * 100 + [990] * 100, defense="much")
    assert judge(much, theirs, a="much", relation="no_worse", margin=5).verdict == "fails"
    assert judge(much, theirs, a="much", relation="close", margin=5).verdict == "fails"


def test_what_cannot_be_tested_says_why(judge, tmp_path):
    ours, theirs = pair(tmp_path, [990] * 5, [400] * 5)
    row = judge(ours, theirs, sigmas=[0.5, 1.0])
    assert row.verdict == "not tested" and row.note == "no certification of ours*: σ 1"
    assert judge(ours).note == "no certification of theirs: σ 0.5"
    assert judge(ours, theirs, sigmas={"cifar10": [0.5]}).note == "the claim names no sigmas for digits"
    assert "no radius is within reach" in judge(ours, theirs, radii=[9]).note
    row = judge(ours, theirs, missing="no such images", measure=None, a=None, b=None)
    assert (row.verdict, row.dataset, row.note) == ("not tested", "", "no such images") and math.isnan(row.effect)
    assert judge(ours, theirs, measure="robust", threats=["l2 0.5"]).note == "no attack on ours*: l2 0.5"


def test_runs_of_other_images_are_refused(judge, tmp_path):
    ours, theirs = pair(tmp_path, [990] * 5, [400] * 5)
    relabelled = replace(theirs, rows={i: replace(row, label=0) for i, row in theirs.rows.items()})
    with pytest.raises(DrbenchError, match="not of the same images"):
        judge(ours, relabelled)
    moved = replace(theirs, rows={i + 90: replace(row, id=i + 90) for i, row in theirs.rows.items()})
    moved.header["data"]["ids"] = list(moved.rows)
    assert judge(ours, moved).note == "the runs have no recorded image in common"
    # data sets never meet: each has rows of its own
    other = make_run(tmp_path / "c", [990] * 5, defense="theirs", dataset="cifar10")
    path = tmp_path / "claims.yaml"
    assert [row.dataset for row in claims.judge([ours, other], path).itertuples()] == ["cifar10", "digits"]


def test_equal_draws(judge, tmp_path):
    """The same defense with ten times the draws is ahead as recorded, and no better at equal draws."""
    many = make_run(tmp_path / "a", [9000] * 200, n=10_000, defense="ours")
    counts = np.random.default_rng(0).hypergeometric(9000, 1000, 1000, 200)
    few = make_run(tmp_path / "b", counts.tolist(), n=1000, defense="theirs")
    row = judge(many, few, measure="radius", draws="recorded")
    assert row.verdict == "holds" and "as recorded, draws 1,000 and 10,000" in row.note
    row = judge(many, few, measure="radius")
    assert row.verdict == "undecided" and row.low < 0 < row.high and "at 1,000 draws of 1,000 and 10,000" in row.note
    assert judge(many, few, radii=[0, 1.5]).note.startswith("above; σ 0.5, r 0, at 1,000")  # 1.5 is out of reach


def test_a_cascade_is_compared_at_its_draws(judge, tmp_path):
    """Its votes cannot be thinned, those of one noise level can: to the draws of each of its levels."""
    sides = {"a": {"rows": "ours", "sigma": "cascade"}, "b": {"rows": "theirs", "sigma": 0.5}, "measure": "radius"}
    cascade = make_cascade(tmp_path / "a", [[990]] * 9, defense="ours", sigmas=(0.25, 0.5))
    many, few = (make_run(tmp_path / str(n), [99 * n // 100] * 9, n=n, defense="theirs") for n in (10_000, 200))
    assert "at 1,000 draws of 1,000 and 10,000" in judge(cascade, many, **sides).note
    assert "as recorded, draws 200 and 1,000" in judge(cascade, few, **sides).note


def test_other_protocols_are_named_or_refused(judge, tmp_path):
    ours = make_run(tmp_path / "a", [990] * 9, defense="ours")
    odd = make_run(tmp_path / "c", [400] * 9, defense="theirs", alpha=0.05, n0=10)
    note = judge(ours, odd).note
    assert "alpha: A 0.001, B 0.05" in note and "selection draws: A 100, B 10" in note
    laplace = odd.header["engine"] | {"options": {"noise": "laplace"}}
    assert "different norms, l1 and l2" in judge(ours, replace(odd, header=odd.header | {"engine": laplace})).note


def test_seeds_are_resampled_and_named(judge, tmp_path):
    theirs = make_run(tmp_path / "b", [990] * 50 + [400] * 50, defense="theirs")
    ours = [
        make_run(tmp_path / f"{seed}", [990] * (50 + 10 * seed) + [400] * (50 - 10 * seed), defense="ours",
                 variant=f"seed {seed}")
        for seed in range(3)
    ]  # fmt: skip
    row = judge(*ours, theirs)
    assert row.seeds == "3 / 1" and row.effect == 10.0 and "by seed +0.00, +10.00, +20.00" in row.note
    alone = judge(ours[1], theirs)
    assert alone.effect == 10.0 and row.high - row.low > alone.high - alone.low  # training is part of the interval


def test_of_alternatives_the_first_with_runs_counts(judge, tmp_path):
    ours, theirs = pair(tmp_path, [990] * 40, [400] * 40)
    assert judge(ours, theirs, a="ours (B) | ours | theirs").verdict == "holds"
    assert judge(ours, theirs, a="x | y").note == "no certification of x | y: σ 0.5"


def test_costs_are_factors_of_counted_calls_and_seconds(judge, tmp_path):
    ours = make_run(tmp_path / "a", [990] * 5, defense="ours", seconds=1.0)
    theirs = [
        make_run(tmp_path / f"{steps}", [990] * 5, defense="theirs", variant=f"{steps}",
                 nfe={"denoiser": steps, "classifier": 1}, seconds=2.0 * steps)
        for steps in (1, 9)
    ]  # fmt: skip
    rows = ["theirs (1)", "theirs (9)"]
    row = judge(ours, *theirs, measure="calls", b=rows)
    assert (row.verdict, row.effect, row.low, row.high, row.unit) == ("holds", 6.0, 2.0, 10.0, "times")
    assert judge(ours, *theirs, measure="seconds", b=rows).effect == 10.0
    assert judge(ours, *theirs, measure="calls", b=rows, reference=85).verdict == "fails"
    assert judge(ours, *theirs, measure="calls", b=rows, reference=6).verdict == "undecided"
    free = make_run(tmp_path / "f", [990] * 5, defense="free", nfe={})
    assert "costs nothing" in judge(free, *theirs, a="free", measure="calls", b=rows).note
    with pytest.raises(DrbenchError, match="one row a side"):
        judge(ours, *theirs, b=rows)


def test_attacks(judge, tmp_path):
    ours = make_attack(tmp_path / "a", [10] * 12, defense="ours", preset="own")
    theirs = make_attack(tmp_path / "b", [5] * 12 + [0] * 8, defense="theirs")
    row = judge(ours, theirs, measure="robust", threats={"digits": ["linf 2/16"]})
    assert (row.verdict, row.effect, row.images) == (
        "holds",
        50.0,
        12,
    ) and "attack preset: A own, B standard" in row.note
    assert judge(ours, theirs, measure="clean", threats=["linf 1/8"], relation="close", margin=25).verdict == "holds"
    assert judge(ours, theirs, measure="robust", threats=["linf 1/16"]).verdict == "not tested"


@pytest.mark.parametrize("flags", [[], ["audit gradient-check: off"]])
def test_of_attacks_on_a_row_the_strongest_counts(judge, tmp_path, flags):
    """Whatever their folders are called; a weaker one only leaves a higher upper bound, without flags too."""
    theirs, runs = make_attack(tmp_path / "t", [5] * 12, defense="theirs"), {}
    for name, steps, right in (("a", 100, 2), ("b", 10, 9)):
        run = make_attack(tmp_path / name, [right] * 12, defense="ours")
        attacks = {"pgd": {"attack": "pgd", "steps": steps, "draws": 4}}
        runs[name] = replace(run, header=run.header | {"engine": run.header["engine"] | {"attacks": attacks}})
    runs["a"].header["flags"] = flags
    row = judge(*runs.values(), theirs, measure="robust", threats=["linf 2/16"])
    assert (row.runs, row.verdict) == ("a t", "fails") and "passed over: b" in row.note


def test_attacks_on_a_row_at_several_noise_levels(judge, tmp_path):
    ours = [make_attack(tmp_path / f"{sigma}", [right] * 12, defense="ours", sigma=sigma)
            for sigma, right in ((0.25, 9), (0.5, 2))]  # fmt: skip
    theirs = make_attack(tmp_path / "b", [5] * 12, defense="theirs")
    fields = {"measure": "robust", "threats": ["linf 2/16"]}
    row = judge(*ours, theirs, **fields)
    assert row.note == "ours*: attacked at σ 0.25 and at σ 0.5; give the side a sigma"
    assert judge(*ours, theirs, **fields, a={"rows": "ours", "sigma": 0.25}).effect == pytest.approx(40)
    assert judge(*ours, theirs, **fields, a={"rows": "ours", "sigma": 0.5}).effect == pytest.approx(-30)


def test_gaussian_noise_stands_before_other_noise(judge, tmp_path):
    ours, theirs = pair(tmp_path, [990] * 40, [400] * 40)
    uniform = make_run(tmp_path / "u", [1980] * 40, defense="ours", n=2000)
    engine = uniform.header["engine"] | {"options": {"noise": "uniform"}}
    row = judge(ours, theirs, replace(uniform, header=uniform.header | {"engine": engine}))
    assert row.verdict == "holds" and row.runs == "a b" and "passed over: u" in row.note


def test_cascades(judge, tmp_path):
    """60 images: 20 halt at sigma = 1, 20 pass on to 0.25, 10 are undecided, 10 halt nowhere."""
    stops = [[900]] * 20 + [[350, 350, 900]] * 20 + [[500]] * 10 + [[60, 60, 60]] * 10
    runs = [
        make_cascade(tmp_path / "a", stops, defense="ours", sigmas=(0.25, 0.5, 1.0), clean=(0.0, 9.0, 0.0)),
        make_run(tmp_path / "b", [900] * 20 + [350] * 20 + [0] * 20, defense="theirs", sigma=1.0),
    ]
    cascade, single = {"rows": "ours", "sigma": "cascade"}, {"rows": "theirs", "sigma": 1}
    row = judge(*runs, a=cascade, b=single, radii=[0])
    assert row.verdict == "holds" and row.effect == pytest.approx(100 / 3) and "A all noise levels, B σ 1" in row.note
    row = judge(*runs, a=cascade, b=2, measure="levels", relation="close", margin=0.5)
    assert (row.verdict, row.effect, row.reference, row.seeds) == ("holds", 2.0, 2.0, "1")
    plain, right = (cascade | {"measure": measure} for measure in ("plain", "right"))
    row = judge(*runs, a=right, b=plain, relation="close", margin=10)
    assert (row.verdict, row.effect, row.up, row.down) == ("holds", 0.0, 0, 0)
    passed, wrong = (cascade | {"measure": measure} for measure in ("passed", "wrong"))
    row = judge(*runs, a=passed, b=wrong)
    assert (row.verdict, row.effect, row.up) == ("holds", 50.0, 30)


def test_marks_are_seen(judge, tmp_path):
    ours = make_run(tmp_path / "a", [990] * 5, defense="ours", images=9, dirty=True)
    theirs = make_run(tmp_path / "b", [400] * 9, defense="theirs", flags=["mixed code: other sources"])
    row = judge(ours, theirs)
    assert row.marks == "A: dirty, partial; B: mixed code" and row.images == 5
    assert claim_tables.verdict(row) == "undecided [A: dirty, partial; B: mixed code]"
    for key, value, mark in (("mode", "sequential", "sequential"), ("certifier", "imported", "imported")):
        odd = replace(ours, header=ours.header | {"engine": ours.header["engine"] | {key: value, "reach": 1.0}})
        assert mark in judge(odd, theirs).marks
    whole = make_run(tmp_path / "c", [990] * 5, defense="ours")  # the better of two runs of a row stands for it
    row = judge(ours, whole, theirs)
    assert row.marks == "B: mixed code" and "passed over: a" in row.note


def test_holm():
    found = claims._holm([0.01, math.nan, 0.04, 0.03, 0.005])
    assert found[0::2][0] == pytest.approx(0.03) and math.isnan(found[1])
    assert [found[i] for i in (4, 0, 3, 2)] == pytest.approx([0.02, 0.03, 0.06, 0.06])


def test_many_claims_need_more_evidence(tmp_path):
    """A difference that counts alone is undecided among twenty."""
    runs = pair(tmp_path, [990] * 40, [990] * 33 + [400] * 7)
    path = tmp_path / "claims.yaml"
    for count, verdict in ((1, "holds"), (20, "undecided")):
        path.write_text(yaml.safe_dump({"A paper": {f"c{i}": CLAIM for i in range(count)}}))
        table = claims.judge(runs, path)
        assert set(table.verdict) == {verdict} and set(table.p) == {0.01562}  # 2 / 2^7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 1}, "unknown field 'sigma'; did you mean 'sigmas'"),
        ({"measure": "certifed"}, "unknown measure 'certifed'; did you mean 'certified'"),
        ({"relation": "better"}, "expected a relation"),
        ({"draws": "all"}, "expected a relation"),
        ({"b": None}, "expected the sides a and b"),
        ({"claim": None}, "expected papers, each with claims by key"),
        ({"radii": ["x"]}, "expected numbers"),
        ({"measure": "robust", "threats": ["linf"]}, "threats as 'linf 2/16'"),
    ],
)
def test_mistakes_in_the_file(judge, tmp_path, fields, message):
    with pytest.raises(DrbenchError, match=message):
        judge(*pair(tmp_path, [990], [400]), **fields)


def test_a_file_that_is_none(tmp_path):
    for text in ("- a\n- b\n", "a: {b: [}"):
        (tmp_path / "claims.yaml").write_text(text)
        with pytest.raises(DrbenchError, match="expected papers"):
            claims.load(tmp_path / "claims.yaml")
    with pytest.raises(DrbenchError, match=r"no file of claims .*none.yaml; expected a path such as"):
        claims.load(tmp_path / "none.yaml")


EVIL = "x|y <script>alert(1)</script> [a](javascript:b) `c` \\input{/etc/passwd} $d$ & % #\n| e | *f*"


def test_names_cannot_break_tables(judge, tmp_path):
    variant = EVIL.replace("[", "(").replace("*", "+")
    runs = [
        make_run(tmp_path / "a", [990] * 9, defense="ours", variant=variant),
        make_run(tmp_path / "b", [400] * 9, defense="theirs", flags=[f"{EVIL}: x"]),
    ]
    row = judge(*runs, claim=EVIL, source=EVIL, published=EVIL, a="ours (*)")
    assert row.verdict == "holds"
    table = claims.judge(runs, tmp_path / "claims.yaml")
    table.paper = EVIL
    for text in (claim_tables.render_markdown(table), claim_tables.render_short(table)):
        lines = [line for line in text.split("\n") if line.startswith("|")]
        bare = [line.replace("\\\\", "").replace("\\|", "") for line in lines]
        assert len({line.count("|") for line in bare}) == 1
        assert "<script" not in text.replace("\\<", "") and "[a](" not in text.replace("\\[", "")
    tex = claim_tables.render_latex(table)
    assert "\\input" not in tex and "\\textbackslash{}input" in tex and " & \\% \\#" not in tex
    body = [line for line in tex.split("\n") if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in body} == {4}


def test_tables_are_made_again_byte_for_byte(judge, tmp_path):
    runs = pair(tmp_path, [990, 900, 400] * 9, [990, 400, 400] * 9)
    judge(*runs)
    texts = []
    for order in (runs, runs[::-1]):
        table = claims.judge([record.read(run.folder) for run in order], tmp_path / "claims.yaml")
        texts.append([path.read_text() for path in claim_tables.write(table, tmp_path / "t")])
        assert claim_tables.render_short(claim_tables.read(tmp_path / "t.csv")) == claim_tables.render_short(table)
    assert texts[0] == texts[1] and [len(text) > 99 for text in texts[0]] == [True] * 3


def test_the_shipped_claims():
    """Every paper has its claims, keys are unique, and the README's choice is short."""
    found = claims.load()
    papers = [claim.paper for claim in found]
    assert len({claim.key for claim in found}) == len(found) and sum(claim.main for claim in found) <= 15
    assert {papers.count(paper) >= 4 for paper in papers} == {True} and len(set(papers)) == 5
    assert all(claim.statement and claim.source and (claim.missing or claim.a) for claim in found)
    assert np.isfinite([claim.margin for claim in found]).all()
