"""The engine's options from the command line to the table: each records what it did, verifies, and is marked."""

import os
from pathlib import Path

import pytest

import drbench
from drbench import config
from drbench.attacks import audit
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.jobs import runner
from drbench.planning import plan
from drbench.records import record, verify
from drbench.tables import certified_tables, summary

ROOT = Path(__file__).parents[1]
UNDEFENDED = ROOT / "benchmarks" / "digits" / "undefended.yaml"
SMALL = ["certify.sigma=0.5", "certify.n=1000", "certify.n0=50", "data.subset=first30", "run.batch_rows=256"]
LATER = {
    "label": ["certify.select=label"],
    "uniform": ["certify.noise=uniform"],
    "laplace": ["certify.noise=laplace", "certify.mode=sequential"],
    "grid": ["certify.sampler=grid"],
    "sound": ["certify.sampler=sound"],
    "randomized": ["certify.bound=randomized"],
    "rounded": ["certify.rounding=significant3"],
    "union": ["certify.mode=hybrid", "certify.sequence=union"],
    "tolerance": ["certify.mode=hybrid", "certify.tolerance=0.2"],
}


def run(out, *overrides, limit=None):
    os.chdir(ROOT)
    (folder,) = runner.run(config.load(UNDEFENDED, [*SMALL, *overrides]), out, limit)
    return record.read(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("options")
    return {"plain": run(out)} | {name: run(out, *words) for name, words in LATER.items()}


def test_all_have_folders_of_their_own_and_verify(runs):
    assert len({found.folder for found in runs.values()}) == len(runs)
    for name, found in runs.items():
        assert found.complete and verify.problems(found) == [], name


def test_defaults_are_not_in_the_header(runs):
    engine = runs["plain"].header["engine"]
    assert set(engine) == {"certifier", "version", "mode", "sigma", "n0", "n", "alpha", "block", "seed"}
    assert runs["plain"].header["data"]["shape"] == [1, 8, 8]


def test_header_says_what_was_done(runs):
    engines = {name: found.header["engine"] for name, found in runs.items()}
    assert (engines["label"]["select"], engines["label"]["n0"]) == ("label", 0)
    assert engines["uniform"]["options"] == {"noise": "uniform"}
    assert engines["sound"]["sampling"] == {"sampler": "sound", "grid": 16}
    assert engines["randomized"]["options"] == {"bound": "randomized"}
    assert engines["union"]["options"]["sequence"] == "union" and engines["tolerance"]["tolerance"] == 0.2


def test_statements_agree_where_they_must(runs):
    def votes(name):
        return {i: (row.label, row.evidence.stages[0], row.certificate) for i, row in runs[name].rows.items()}

    plain, label, randomized = votes("plain"), votes("label"), votes("randomized")
    for i, (truth, stage, certificate) in plain.items():
        assert label[i][1].votes == stage.votes and randomized[i][1] == stage  # the same draws
        if certificate.prediction == truth:
            assert label[i][2] == certificate or label[i][2].radius == certificate.radius
        assert label[i][2].prediction in (truth, -1)
        assert randomized[i][2].radius >= certificate.radius
    assert len({row.evidence.uniform for row in runs["randomized"].rows.values()}) == 30
    assert all(row.evidence.uniform is None for row in runs["plain"].rows.values())


def test_rounding_is_for_the_table_alone(runs):
    plain, rounded = (summary.certified(runs[name]) for name in ("plain", "rounded"))
    assert [float(f"{r:.3}") for r in plain.radius] == rounded.radius.tolist()
    assert runs["plain"].rows[runs["plain"].wanted[0]].certificate == runs["rounded"].rows[
        runs["plain"].wanted[0]
    ].certificate  # fmt: skip


def test_marks_and_norms_in_tables(runs):
    with pytest.raises(DrbenchError, match="different norms, l1 and l2: choose one with --norm"):
        summary.frame(list(runs.values()))
    table = summary.frame(list(runs.values()), norm="l1")
    marks = dict(zip(table.run, table.marks, strict=True))
    for name in ("label", "randomized", "rounded", "tolerance"):
        assert name in marks["/".join(runs[name].folder.parts[-2:])]
    text = certified_tables.render_markdown(table)
    assert "undefended, uniform noise" in text and "undefended, gaussian, sound noise" in text
    assert "l1 radii in pixel units" in text and "Not the same noise in all rows" in text


def test_linf_is_l2_over_the_root_of_the_dimension(runs):
    l2, linf = (summary.frame([runs["plain"]], radii, norm) for radii, norm in (([0.25], "l2"), ([0.25 / 8], "linf")))
    assert l2.certified_accuracy.tolist() == linf.certified_accuracy.tolist()
    assert linf.ceiling[0] == pytest.approx(l2.ceiling[0] / 8) and linf.acr[0] == pytest.approx(l2.acr[0] / 8)
    assert certified_tables.radius_text(2 / 255) == "2/255" and certified_tables.radius_text(0.125) == "0.125"


def test_l1_radii_are_not_exported_as_l2(runs, capsys):
    assert main(["export", str(runs["uniform"].folder)]) == 2
    assert "certifies in l1; this log is of l2 radii" in capsys.readouterr().err
    assert main(["export", str(runs["sound"].folder)]) == 0


def test_a_killed_run_with_a_tolerance_ends_with_the_same_table(runs, tmp_path):
    whole = runs["tolerance"]
    again = run(tmp_path, *LATER["tolerance"])
    path = next(again.folder.glob("rows-*.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:11]))
    assert run(tmp_path, *LATER["tolerance"]).header["evidence_sha256"] == whole.header["evidence_sha256"]
    with pytest.raises(DrbenchError, match="expected no --limit"):
        run(tmp_path / "other", *LATER["tolerance"], limit=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify.noise=cauchy"], "certify.noise is gaussian, uniform, laplace"),
        (["certify.sampler=sound", "certify.noise=uniform"], "certify.sampler needs certify.noise: gaussian"),
        (["certify.bound=randomized", "certify.mode=hybrid"], "certify.bound needs"),
        (["certify.sequence=union"], "certify.sequence needs certify.mode: sequential or hybrid"),
        (["certify.tolerance=0.02"], "certify.tolerance needs certify.mode"),
        (["certify.mode=hybrid", "certify.tolerance=2"], "certify.tolerance is a share"),
        (["certify.kind=cascade", "certify.sigmas=[0.25,1.0]", "certify.select=label"], "select needs certify.kind"),
        (["run.precision=int8"], "run.precision is float32, bfloat16, float16"),
    ],
)
def test_what_does_not_fit_together_is_refused(words, message, capsys):
    assert main(["show", str(UNDEFENDED), *words]) == 2
    assert message in capsys.readouterr().err


def test_plan(capsys):
    os.chdir(ROOT)
    words = ["certify.sigma=0.5", "certify.n=100000", "data.subset=first20", "run.batch_rows=200"]
    assert main(["plan", str(UNDEFENDED), *words]) == 0
    head, line, total, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["RUN", "SIGMA", "IMAGES", "ROWS", "EVALUATIONS", "HOURS"]
    name, sigma, images, rows, evaluations, hours, early, early_hours, *_ = line.split()
    assert (name, sigma, images) == ("undefended", "0.5", "20")
    assert rows == evaluations == f"{20 * 100_100:,}"
    assert 20 * 200 < int(early.replace(",", "")) < 20 * 60_000
    assert float(early_hours) == pytest.approx(float(hours) * int(early.replace(",", "")) / (20 * 100_100), rel=0.02)
    assert total.split()[:2] == ["all", rows]


def test_plan_of_a_cascade_has_no_sequential_mode(capsys):
    os.chdir(ROOT)
    file = ROOT / "benchmarks" / "digits" / "multiscale.yaml"
    assert main(["plan", str(file), "data.subset=first5", "run.batch_rows=64"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "1, 0.5, 0.25" in line and " -  " in line
    assert f"{5 * 1100 * 3:,}" in line and f"{5 * 1100 * 6:,}" in line  # two network calls a row


def test_plan_of_an_attack_is_what_it_takes(tmp_path, capsys):
    os.chdir(ROOT)
    words = ["attack.norm=linf", "attack.eps=1/8", "attack.preset=smoke", "attack.evaluations=12", "attack.select=6"]
    words = [str(ROOT / "benchmarks/digits/attack/noise_augmented.yaml"), *words, "data.subset=first8"]
    assert main(["plan", *words, str(UNDEFENDED)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("noise_augmented linf 1/8  0.25") and lines[2].startswith("undefended")
    assert "ROWS: noisy draws" in lines[-3] or "ROWS: noisy draws" in lines[-4]
    planned = int(lines[1].split()[5].replace(",", ""))
    (folder,) = runner.run(config.load(words[0], words[1:]), tmp_path)
    taken = sum(record.read(folder).header["cost"]["network_evaluations"].values())
    assert taken <= planned <= 1.1 * taken
    capsys.readouterr()
    assert main(["plan", *words, "attack.audit=2"]) == 0
    audited = int(capsys.readouterr().out.splitlines()[1].split()[5].replace(",", ""))
    assert audited == pytest.approx(planned + 2 * audit.RUNS * 45, abs=2)


@pytest.mark.parametrize("file, rows", [("undefended", 0), ("attack/noise_augmented", 0.15)])
def test_a_plan_of_what_is_too_slow_is_made_of_single_calls(file, rows, monkeypatch):
    """About as many evaluations as a trial run finds: of an attack its settings do not tell every one."""
    os.chdir(ROOT)
    (cell, *_) = config.load(ROOT / "benchmarks" / "digits" / f"{file}.yaml", ["data.subset=first5"])
    costs = []
    for patience in (0.0, 100.0):
        monkeypatch.setattr(plan, "PATIENCE", patience)
        costs += plan.measure([cell])
    slow, whole = costs
    assert slow.slow and not whole.slow and "too slow here for a trial run" in plan.render([slow])
    assert (slow.rows, slow.evaluations) == pytest.approx((whole.rows, whole.evaluations), rel=rows)
    assert (slow.name, slow.images, slow.disk) == (whole.name, whole.images, whole.disk) and slow.seconds > 0


def test_notebook(runs):
    images = drbench.load_data("digits", subset="first30")
    defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    for name, words in (("uniform", {"noise": "uniform"}), ("sound", {"sampler": "sound"})):
        found = drbench.certify(defense, images, 0.5, n=1000, n0=50, **words).set_index("id")
        stored = {row.id: row.certificate.radius for row in runs[name].rows.values()}
        assert found.radius.to_dict() == pytest.approx(stored)
    with pytest.raises(DrbenchError, match="expected noise gaussian, or for one sigma"):
        drbench.certify(defense, images, [0.25, 0.5], noise="uniform")
    with pytest.raises(DrbenchError, match="sound for Gaussian noise"):
        drbench.certify(defense, images, 0.5, noise="laplace", sampler="sound")
    x = images.x.clone()
    x[0, 0, 0, 0] = 0.3
    with pytest.raises(DrbenchError, match="needs images on a grid"):
        drbench.certify(defense, (x, images.y), 0.5, sampler="grid")
