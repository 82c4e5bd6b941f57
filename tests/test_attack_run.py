"""Attack runs from the command line and from Python: records, resume after kills, verification, tables, plots."""

import json
import os
import random
import shutil
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest

import drbench
from drbench import config
from drbench.attacks import suite
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.jobs import attack_job, runner
from drbench.plots import robust_plots
from drbench.records import examples, record, verify
from drbench.tables import robust_tables
from tests.test_many_workers import children
from tests.test_run import ROOT, _killed_runs

FILE = ROOT / "benchmarks" / "digits" / "attack" / "noise_augmented.yaml"
SMALL = ["attack.norm=linf", "attack.eps=1/8", "attack.preset=smoke", "attack.evaluations=12", "attack.select=6",
         "data.subset=first8", "attack.worst_of=5"]  # fmt: skip
PROCESSES = ["run.executor=processes", "run.workers=2"]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def cells(*overrides, file=FILE):
    (cell,) = config.load(file, [*SMALL, *overrides])  # the sweep is over norms and radii, which are named
    return [cell]


def run(out, *overrides, file=FILE, limit=None):
    (folder,) = runner.run(cells(*overrides, file=file), out, limit)
    return record.read(folder)


def outcome(found):
    stored = examples.read(found.folder)
    rows = {row.id: (row.evidence, row.label) for row in found.rows.values()}
    return rows, {name: stored[name][2].tobytes() for name in rows}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(tmp_path_factory.mktemp("reference"))


def test_a_run_is_recorded_whole(reference):
    header = reference.header
    assert reference.task == "attack" and reference.complete and header["status"] == "complete"
    assert header["engine"] == {
        "version": 1, "norm": "linf", "eps": 0.125, "eps_text": "1/8", "preset": "smoke",
        "attacks": {"pgd margin 10x4": {"attack": "pgd", "view": "exact", "loss": "margin", "steps": 10, "draws": 4}},
        "sigma": 0.25, "deterministic": False, "decision": "single", "decision_draws": 1, "evaluations": 12,
        "select": 6, "worst_of": 5, "seed": 0,
    }  # fmt: skip
    assert header["cost"]["gradients_per_image"] == 40
    # draws of the search, of the selection (4 candidates and the clean image) and of the two final evaluations
    assert sum(header["cost"]["network_evaluations"].values()) >= 8 * (44 + 30 + 24)
    for row in reference.ordered():
        assert row.evidence.clean.count == row.evidence.adversarial.count == 12
        assert row.evidence.distance <= 0.125 + 1e-6
    assert sorted(path.name for path in reference.folder.iterdir() if "rows" not in path.name) == [
        "config.yaml", "examples.json", "examples.npz", "run.json"]  # fmt: skip
    assert reference.folder.parts[-3] == "attacks" and reference.folder.name.startswith("linf-0.125-sigma0.25-")
    assert verify.problems(reference) == []


def test_stored_examples_are_complete_and_described(reference):
    with np.load(reference.folder / "examples.npz", allow_pickle=False) as arrays:
        rows = list(reference.ordered())
        assert arrays["ids"].tolist() == [row.id for row in rows] and arrays["x_adv"].dtype == np.float32
        assert np.abs(arrays["x_adv"].astype(float) - arrays["x"]).max() <= 0.125 + 1e-6
        assert arrays["failures"].tolist() == [row.evidence.adversarial.wrong(row.label) for row in rows]
    sidecar = json.loads((reference.folder / "examples.json").read_text())
    assert sidecar["feasible"] is True and sidecar["engine"]["eps"] == 0.125
    assert sidecar["identity"] == reference.header["identity"]


@pytest.mark.parametrize("change", [["run.batch_rows=64"], ["run.batch_rows=7"], ["run.threads=2"]])
def test_batches_change_nothing(reference, tmp_path, change):
    found = run(tmp_path, *change)
    assert outcome(found) == outcome(reference) and found.folder.name == reference.folder.name


def test_limit_and_reverse_order_change_nothing(reference, tmp_path):
    part = run(tmp_path / "a", limit=3)
    assert len(part.rows) == 3 and part.marks[0] == "partial" and verify.problems(part) == []
    whole = run(tmp_path / "a")
    assert whole.folder == part.folder and outcome(whole) == outcome(reference) and verify.problems(whole) == []
    assert len(list(whole.folder.glob("examples*.npz"))) == 1
    ids = tmp_path / "ids"
    ids.write_text("\n".join(map(str, reversed(reference.wanted))))
    assert outcome(run(tmp_path / "b", f"data.subset=ids:{ids}")) == outcome(reference)


def side_by_side(out):
    """The reference and another cell, by two worker processes."""
    both = [*cells(*PROCESSES), *cells(*PROCESSES, "attack.eps=1/16")]
    return [record.read(folder) for folder in runner.run(both, out)]


@pytest.mark.slow
def test_cells_side_by_side_change_nothing(reference, tmp_path):
    found, other = side_by_side(tmp_path)
    assert outcome(found) == outcome(reference) and found.folder.name == reference.folder.name
    assert other.complete and other.header["engine"]["eps"] == 1 / 16
    environment = other.header["sessions"][0]["environment"]
    assert (environment["executor"], environment["workers"]) == ("processes", 2)
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    side_by_side(tmp_path)  # nothing is left to do
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))] == before


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing(reference, tmp_path):
    """Another one takes its cell, and goes on where it was."""
    deaths = []

    def kill():
        while not list(tmp_path.rglob("run.json")):  # the first cell has begun
            time.sleep(0.05)
        deaths.append(children(os.getpid())[0])
        os.kill(deaths[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found, other = side_by_side(tmp_path)
    killer.join()
    assert deaths and outcome(found) == outcome(reference) and other.complete and verify.problems(found) == []


def test_a_mistake_in_a_worker_ends_the_command(tmp_path):
    (tmp_path / "attacks").write_text("in the way")
    with pytest.raises(DrbenchError, match=r"cannot write to .*; choose a writable --out"):
        side_by_side(tmp_path)
    assert not children(os.getpid())


@pytest.mark.parametrize("where", ["before rows", "among rows", "before join", "in join", "after join"])
def test_a_kill_at_the_worst_moments(reference, tmp_path, monkeypatch, where):
    class Killed(BaseException):
        pass

    def stop(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        if where == "before rows":
            patch.setattr(record.Writer, "write", stop)
        elif where == "among rows":
            write, left = record.Writer.write, [3]

            def some(self, row):
                left[0] -= 1
                return write(self, row) if left[0] >= 0 else stop()

            patch.setattr(record.Writer, "write", some)
        elif where == "before join":
            patch.setattr(attack_job, "finish", stop)
        elif where == "in join":
            patch.setattr(examples, "sidecar", stop)
        else:
            patch.setattr("pathlib.Path.unlink", stop)
        with pytest.raises(Killed):
            run(tmp_path)
    (folder,) = record.find([tmp_path])
    assert verify.problems(record.read(folder)) == []
    again = run(tmp_path)
    assert outcome(again) == outcome(reference) and verify.problems(again) == []
    assert (folder / "examples.json").exists() and not examples.parts(folder)
    runner.resume(folder)
    assert outcome(record.read(folder)) == outcome(reference)


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(reference, tmp_path):
    found = _killed_runs(tmp_path, FILE, SMALL, 8, random.Random(0))
    assert outcome(found) == outcome(reference) and verify.problems(found) == []


# ---- verification -------------------------------------------------------------------------------------------------


def tampered(run_, tmp_path, change):
    """A copy of the run whose arrays went through `change(arrays)`."""
    folder = tmp_path / run_.folder.name
    folder.mkdir(parents=True)
    for path in run_.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with np.load(folder / "examples.npz", allow_pickle=False) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / "examples.npz", **arrays)
    return verify.problems(record.read(folder))


def test_verify_finds_a_changed_example(reference, tmp_path):
    def push(arrays):
        arrays["x_adv"][3] = np.clip(arrays["x_adv"][3] + 0.2, 0, 1)

    example, sidecar, *_ = tampered(reference, tmp_path, push)
    assert "not the recorded one" in example and f"image {reference.wanted[3]}" in example
    assert sidecar == "examples.json: its 'sha256' is not that of examples.npz"


@pytest.mark.parametrize("name", ["failures", "clean_failures", "draws", "distance"])
def test_verify_finds_other_numbers_beside_the_examples(reference, tmp_path, name):
    def raise_one(arrays):
        arrays[name][2] += 1

    assert f"examples.npz: {name!r} is not what the rows say" in tampered(reference, tmp_path, raise_one)


@pytest.mark.parametrize("key", ["identity", "defense", "data", "engine", "sha256", "feasible"])
def test_verify_finds_a_sidecar_of_other_examples(reference, tmp_path, key):
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    sidecar = json.loads((folder / "examples.json").read_text())
    (folder / "examples.json").write_text(json.dumps(sidecar | {key: None}))
    (problem,) = verify.problems(record.read(folder))
    assert problem.startswith(f"examples.json: its {key!r} is not that of")
    (folder / "examples.json").write_text("{")
    (problem,) = verify.problems(record.read(folder))
    assert problem.startswith("examples.json cannot be read")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("engine", "eps", 0.25), ("engine", "sigma", 0.5), ("engine", "worst_of", 3), ("engine", "seed", 1),
     ("engine", "rounding", "decimal4"), ("defense", "args", {"a": 1}), ("data", "subset", "test/first9")],
)  # fmt: skip
def test_verify_finds_settings_that_are_not_those_of_the_config(reference, tmp_path, part, key, value):
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    header = json.loads((folder / "run.json").read_text())
    header[part][key] = value
    record.write_header(folder, header)
    expected = f"run.json: {key!r} of {part} is {value!r}, by config.yaml"
    assert any(problem.startswith(expected) for problem in verify.problems(record.read(folder)))


def test_verify_finds_an_infeasible_example_that_was_recorded_so(reference, tmp_path):
    """A record made by other code, consistent with itself, with an example outside the ball."""
    from dataclasses import replace

    from drbench import norms

    folder = tmp_path / "run"
    folder.mkdir()
    for path in reference.folder.iterdir():
        if not path.name.startswith("rows"):
            (folder / path.name).write_bytes(path.read_bytes())
    with np.load(folder / "examples.npz", allow_pickle=False) as file:
        arrays = dict(file)
    first = arrays["x_adv"][0] = np.clip(arrays["x"][0] + 0.2, 0, 1)
    np.savez(folder / "examples.npz", **arrays)
    writer = record.Writer(folder)
    for number, row in enumerate(reference.ordered()):
        evidence = row.evidence
        if number == 0:
            far = float(norms.distance("linf", first[None], arrays["x"][:1])[0])
            evidence = replace(evidence, example=norms.digest(first), distance=far)
        writer.write(replace(row, evidence=evidence))
    writer.close()
    changed, infeasible, numbers, *sidecar = verify.problems(record.read(folder))
    assert "not allowed" in infeasible and "evidence_sha256" in changed and "'distance'" in numbers
    assert [problem.split("'")[1] for problem in sidecar] == ["sha256", "feasible"]


def test_verify_finds_answers_that_were_changed(reference, tmp_path):
    """All adversarial answers made right, every line with its new checksum."""
    from dataclasses import replace

    shutil.copytree(reference.folder, tmp_path / "run", ignore=shutil.ignore_patterns("rows*"))
    writer = record.Writer(tmp_path / "run")
    for row in reference.ordered():
        seen = row.evidence.adversarial
        right = replace(seen, votes={row.label: seen.count}, first=row.label)
        writer.write(replace(row, evidence=replace(row.evidence, adversarial=right)))
    writer.close()
    problem, joined = verify.problems(record.read(tmp_path / "run"))
    assert "evidence differs from what the run recorded" in problem and "'failures'" in joined


def test_verify_finds_other_clean_images(reference, tmp_path):
    def darken(arrays):
        arrays["x"] = (arrays["x"] * 0.999).astype(np.float32)

    problems = tampered(reference, tmp_path, darken)
    assert any("not those of the run's data set" in problem for problem in problems)
    assert sum("recorded distance" in problem for problem in problems) == len(reference.rows)


def test_verify_can_ask_the_defense_again(reference, tmp_path, capsys, monkeypatch):
    assert main(["verify", str(reference.folder), "--rerun"]) == 0
    evaluate = suite.evaluate.evaluate
    monkeypatch.setattr(suite.evaluate, "evaluate", lambda *args: (evaluate(*args) + 1) % 10)
    assert main(["verify", str(reference.folder), "--rerun"]) == 1
    assert capsys.readouterr().out.count("other answers to the") == 16


def test_verify_finds_a_missing_example(reference, tmp_path):
    def drop(arrays):
        arrays.update({name: value[1:] for name, value in arrays.items()})

    problems = tampered(reference, tmp_path, drop)
    assert f"image {reference.wanted[0]}: its adversarial example is not stored" in problems


# ---- tables, plots, commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(reference, tmp_path_factory):
    undefended = run(tmp_path_factory.mktemp("two"), file=FILE.with_name("undefended.yaml"))
    return [reference, undefended]


def test_frame_states_what_the_records_say(two):
    table = robust_tables.frame(two)
    assert list(table["defense"]) == ["undefended", "noise_augmented"]  # the floor first
    noisy, rows = table.iloc[1], list(two[0].ordered())
    assert noisy["average"] == pytest.approx(1 - np.mean([r.evidence.adversarial.wrong(r.label) / 12 for r in rows]))
    assert noisy["clean_average"] == pytest.approx(1 - np.mean([r.evidence.clean.wrong(r.label) / 12 for r in rows]))
    assert noisy["worst"] <= noisy["average"] <= noisy["clean_average"]
    assert (noisy["gradients"], noisy["attack"], noisy["images"]) == (40, "pgd margin 10x4", 8)
    plain = table.iloc[0]
    assert plain["evaluations"] == 1 and plain["average"] == plain["worst"] == plain["majority"]
    shares = table[[*robust_tables.KINDS]].to_numpy()
    low, high = (table[[f"{kind}_{end}" for kind in robust_tables.KINDS]].to_numpy() for end in ("low", "high"))
    assert (low <= shares).all() and (shares <= high).all()


def test_tables_and_plots_are_written_and_repeatable(two, tmp_path):
    names = []
    for number in range(2):
        stem = tmp_path / str(number) / "robust"
        names.append([*robust_tables.write(robust_tables.frame(two), stem), *robust_plots.robust_curves(two, stem)])
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*names, strict=True))
    markdown, csv, tex = (path.read_text() for path in names[0][:3])
    assert "| noise_augmented | 0.25 | single | 12 | 8 |" in markdown and "ℓ∞ ≤ 1/8" in markdown
    assert len(pd.read_csv(names[0][1])) == 2 and csv.startswith("dataset,subset,norm,eps")
    assert r"$\ell_\infty$ $\leq 1/8$" in tex and tex.count(r"\midrule") == 1
    assert b"noise_augmented at" in names[0][4].read_bytes()


def test_commands(two, reference, tmp_path, capsys):
    folder = str(reference.folder)
    assert main(["status", folder]) == 0 and "robust" in capsys.readouterr().out
    assert main(["verify", folder]) == 0
    assert main(["table", folder]) == 0 and "# Robust accuracy under attack" in capsys.readouterr().out
    assert main(["table", folder, "--out", str(tmp_path / "robust")]) == 0 and (tmp_path / "robust.tex").exists()
    assert main(["plot", folder, "--out", str(tmp_path / "robust")]) == 0 and (tmp_path / "robust.svg").exists()
    assert main(["show", str(FILE), "attack.preset=standard"]) == 0
    assert "pgd margin 100x16" in capsys.readouterr().out
    assert main(["table", folder, "results/digits/full/runs/undefended"]) == 2
    assert "runs of one task, got attack and certify" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [("attack.norm=l3", "unknown norm 'l3'"), ("attack.eps=much", "such as 0.5 or 8/255"),
     ("attack.preset=quick", "attack.preset is smoke, fast"), ("attack.decision=votes", "unknown decision 'votes'"),
     ("attack.worst_of=99", "worst_of is at most"), ("attack.sigma=0.3", "declares sigmas"),
     ("attack.attacks=[{attack: pdg}]", "did you mean 'pgd'"), ("attack.attacks=[pgd]", "list of mappings"),
     *((f"attack.attacks=[{{attack: pgd, {key}: {value}}}]", f"{key}: expected a whole number > 0, got {value}")
       for key, value in (("steps", 0), ("steps", -2), ("draws", 0), ("steps", 1.5))),
     ("attack.attacks=[{attack: pgd, steps: abc}]", "steps: expected a whole number > 0, got 'abc'"),
     ("attack.attacks=[{attack: pgd, size: 0}]", "size: expected a number > 0, got 0"),
     ("attack.attacks=[{attack: pgd, loss: 3}]", "loss: expected text, got 3"),
     ("attack.attacks=[{attack: square, queries: 0}]", "queries: expected a whole number > 0, got 0"),
     ("attack.attacks=[{attack: smoothadv, redraw: -1}]", "redraw: expected a whole number >= 0, got -1"),
     ("attack.attacks=[{attack: stadv}]", "attack 'stadv' is not for norm linf"),
     ("attack.attacks=[{attack: noise},{attack: noise}]", "twice"), ("attack.budget=1", "budget"),
     ("attack.preset=autoattack", "use preset standard")],
)  # fmt: skip
def test_bad_configs_are_explained(override, said, tmp_path):
    with pytest.raises(DrbenchError, match=said.replace("(", r"\(")):
        run(tmp_path, override)


def test_presets_are_listed(capsys):
    assert main(["list", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and "fast        randomised     pgd margin 40x8" in lines


def test_an_attack_on_images_makes_no_flows(tmp_path):
    with pytest.raises(DrbenchError, match="attack 'pgd' is not for norm stadv; for it are: square, stadv"):
        run(tmp_path, "attack.norm=stadv", "attack.eps=0.5", "attack.attacks=[{attack: pgd}]")


def test_other_defenses_are_transferred_from(tmp_path):
    sources = "attack.sources={cnn: {name: undefended, checkpoint: [digits/classifier]}}"
    found = run(tmp_path, sources, limit=2)
    assert list(found.header["engine"]["attacks"]) == ["pgd margin 10x4", "pgd margin 10 (from cnn)"]
    (hashes,) = found.header["engine"]["sources"].values()
    assert [len(text) for text in hashes] == [64] and verify.problems(found) == []
    assert {len(row.evidence.tried) for row in found.rows.values()} == {2}
    assert runner.rerun(found.folder) == [] and found.header["identity"].startswith(found.folder.name[-8:])
    assert len(run(tmp_path, sources, limit=3).rows) == 3
    for wrong, said in (("{cnn: undefended}", "attack.sources maps names"), ("{cnn: {name: nobody}}", "'nobody'")):
        with pytest.raises(DrbenchError, match=said):
            run(tmp_path, f"attack.sources={wrong}")


def test_three_lines_in_a_notebook(reference):
    images = drbench.load_data("digits", subset="first8")
    defense = drbench.load_defense("noise_augmented", images, "digits/noise_augmented")
    found = drbench.attack(defense, images, norm="linf", eps="1/8", preset="smoke", sigma=0.25, evaluations=12,
                           select=6, worst_of=5)  # fmt: skip
    rows = [reference.rows[name].evidence for name in found.frame["id"]]
    assert found.frame["robust"].tolist() == [1 - e.adversarial.wrong(label) / 12
                                              for e, label in zip(rows, found.frame["label"], strict=True)]  # fmt: skip
    assert found.examples.shape == (8, 1, 8, 8) and found.robust.average.value <= found.clean.average.value
    assert "examples=(8, 1, 8, 8)" in repr(found) and "tensor" not in repr(found)
    plain = drbench.attack(defense, (images.x[:2], images.y[:2]), eps=0.1, attacks=[{"attack": "noise", "tries": 1}],
                           sigma=0.5, evaluations=10)  # fmt: skip
    assert list(plain.frame["id"]) == [0, 1] and plain.frame["attack"].tolist()[0] in ("", "noise 1")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attacks": []}, "at least one attack"),
        ({"attacks": [{"attack": "pgd", "view": "clean", "loss": "margin"}]}, "'clean' needs noise level 0"),
        ({"evaluations": 1}, "worst_of at most evaluations"),  # one answer of a randomised defense is no worst of ten
        ({"select": 0}, "expected evaluations, select and worst_of > 0"),
        ({"select": "x"}, "got 100, 'x' and 10"),
        ({"sigma": "x"}, "expected a noise level sigma >= 0 in pixel units, got 'x'"),
        ({"attacks": ["pgd"]}, "expected attacks such as"),
    ],
)
def test_what_would_be_called_robust_without_being_so_is_refused(options, message):
    images = drbench.load_data("digits", subset="first2")
    defense = drbench.load_defense("noise_augmented", images, "digits/noise_augmented")
    with pytest.raises(DrbenchError, match=message):
        drbench.attack(defense, images, eps="1/8", **{"preset": "smoke", "sigma": 0.25, **options})


def test_the_identity_covers_the_attack_and_nothing_of_certification():
    (cell,) = cells()
    first = config.identity(cell, [])
    assert config.identity(cells("certify.n=7")[0], []) == first == config.identity(cells("attack.eps=0.125")[0], [])
    assert config.identity(cells("attack.select=7")[0], []) != first
    certify = config.load(ROOT / "benchmarks/digits/full/undefended.yaml", ["certify.sigma=0.25"])
    changed = config.load(ROOT / "benchmarks/digits/full/undefended.yaml", ["certify.sigma=0.25", "attack.eps=0.3"])
    assert config.identity(certify[0], []) == config.identity(changed[0], [])


@pytest.mark.parametrize("words", [["export"], ["table", "--cost"], ["table", "--norm", "l1"], ["plot", "--shares"]])
def test_what_is_for_certifications_is_refused(reference, words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "page")] if words[0] == "plot" else []
    assert main([words[0], str(reference.folder), *words[1:], *out]) == 2
    assert "expects certifications" in capsys.readouterr().err
