"""Runs from the command line and from Python: resume after real kills, invariance, bad input, verification."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import drbench
from drbench import config
from drbench.cli import main
from drbench.jobs import runner
from drbench.records import record, verify

ROOT = Path(__file__).parents[1]
UNDEFENDED = ROOT / "benchmarks" / "digits" / "undefended.yaml"
CONFIG = "benchmarks/digits/undefended.yaml"
MULTISCALE = "benchmarks/digits/multiscale.yaml"
SMALL = ["certify.sigma=0.25", "certify.n=300", "certify.n0=50", "data.subset=first12", "run.batch_rows=256"]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, *overrides, file=UNDEFENDED, limit=None):
    (folder,) = runner.run(config.load(file, [*SMALL, *overrides]), out, limit)
    return record.read(folder)


def evidence(found):
    return {image_id: row.evidence for image_id, row in found.rows.items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    os.chdir(ROOT)
    return run(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("overrides", [["run.batch_rows=auto"], ["task=attack", "attack.preset=smoke"]])
def test_what_the_code_of_a_defense_raises_says_where(tmp_path, monkeypatch, overrides):
    def logits(self, z, sigma, draws):
        raise KeyError("mine")

    monkeypatch.setattr("methods.undefended.defense.Undefended.logits", logits)
    with pytest.raises(KeyError, match="mine") as caught:
        run(tmp_path, *overrides)
    asked, where = caught.value.__notes__
    assert asked.startswith("raised by Undefended.logits, asked about images (")
    assert where.startswith(f"in the run {tmp_path}") and where.endswith(config.load(UNDEFENDED)[0].title)


def test_a_run_is_recorded_whole(reference):
    header = reference.header
    assert reference.complete and header["status"] == "complete" and reference.problems == ()
    assert [row.id for row in reference.ordered()] == header["data"]["ids"] and len(reference.rows) == 12
    assert header["engine"] == {"certifier": "gaussian", "version": 1, "mode": "fixed", "sigma": 0.25, "n0": 50,
                                "n": 300, "alpha": 0.001, "block": 100, "seed": 0}  # fmt: skip
    assert header["defense"]["nfe"] == {"classifier": 1.0}
    assert header["cost"]["draws"] == 12 * 350
    # the tail of the last batch is padded to the constant batch shape: 17 batches of 256 rows
    assert header["cost"]["network_evaluations"] == {"classifier": 17 * 256}
    assert header["cost"]["seconds"] > 0 and header["cost"]["rows_per_second"] > 0
    assert set(header["sessions"][0]["environment"]["packages"]) >= {"torch", "numpy", "scipy"}
    text = (reference.folder / "run.json").read_text() + (reference.folder / "config.yaml").read_text()
    assert str(ROOT) not in text and os.uname().nodename not in text


@pytest.mark.parametrize("change", ["run.batch_rows=64", "run.batch_rows=4096", "run.batch_rows=auto"])
def test_batch_rows_change_nothing(reference, tmp_path, change):
    assert evidence(run(tmp_path, change)) == evidence(reference)


def test_reverse_order_changes_nothing(reference, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text("\n".join(map(str, reversed(reference.wanted))))
    found = run(tmp_path, f"data.subset=ids:{ids}")
    assert found.wanted == reference.wanted[::-1] and evidence(found) == evidence(reference)


def test_limit_is_partial_and_is_continued(reference, tmp_path):
    part = run(tmp_path, limit=5)
    assert len(part.rows) == 5 and part.marks[0] == "partial" and part.header["status"] == "partial"
    assert verify.problems(part) == []
    whole = run(tmp_path)
    assert whole.folder == part.folder and whole.complete and evidence(whole) == evidence(reference)
    files = {path: path.read_bytes() for path in whole.folder.glob("rows*")}
    assert len(files) == 2
    again = run(tmp_path)  # nothing is left to do
    assert {path: path.read_bytes() for path in again.folder.glob("rows*")} == files


def test_resume_by_folder(reference, tmp_path):
    part = run(tmp_path, limit=4)
    assert main(["resume", str(part.folder)]) == 0
    assert evidence(record.read(part.folder)) == evidence(reference)


def _wait_for_rows(out, process, known):
    """Until the process has written its first row, or ended."""
    start = time.monotonic()
    while set(out.rglob("rows*")) <= known and process.poll() is None and time.monotonic() - start < 60:
        time.sleep(0.005)


def _killed_runs(out, file, overrides, kills, rng):
    """Start the command `kills` times, kill it at a random moment each time, then let it end."""
    command = [sys.executable, "-m", "drbench", "run", str(file), *overrides, "--out", str(out)]
    acknowledged: set = set()
    for kill in range(kills):
        known = set(out.rglob("rows*"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill % 3:  # in the middle of the work; every third kill hits any moment from the start of the process
            _wait_for_rows(out, process, known)
        time.sleep(rng.uniform(0, 0.8 if kill % 3 else 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in out.rglob("run.json"):
            rows = record.read(folder.parent).rows
            assert acknowledged <= set(rows), "a recorded image was lost"
            acknowledged = set(rows)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return record.read(Path(done.stdout.strip().splitlines()[-1]))


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(tmp_path):
    overrides = ["certify.sigma=0.25", "certify.n=20000", "data.subset=first120", "run.batch_rows=512", "run.threads=1"]
    calm = runner.run(config.load(UNDEFENDED, overrides), str(tmp_path / "calm"))  # text is taken too
    found = _killed_runs(tmp_path / "killed", UNDEFENDED, overrides, 9, random.Random(0))
    assert evidence(found) == evidence(record.read(calm[0]))
    assert verify.problems(found) == [] and found.complete
    assert len(list(found.folder.glob("rows*"))) >= 5, "too few kills hit the middle of the work"


# ---- cascades -----------------------------------------------------------------------------------------------------

CASCADE = ["certify.n=300", "certify.n0=50", "data.subset=first12", "run.batch_rows=256"]


@pytest.fixture
def cascade_file(tmp_path):
    """A cascade of the fast undefended classifier."""
    path = tmp_path / "cascade.yaml"
    path.write_text(
        "defense: {name: undefended, checkpoint: [digits/classifier]}\n"
        "certify: {kind: cascade, sigmas: [0.25, 0.5, 1.0]}"
    )
    return path


def cascade(file, out, *overrides, limit=None):
    (folder,) = runner.run(config.load(file, [*CASCADE, *overrides]), out, limit)
    return record.read(folder)


def test_a_cascade_is_recorded_verified_resumed_and_shown(cascade_file, reference, tmp_path, capsys):
    part = cascade(cascade_file, tmp_path / "a", limit=5)
    assert part.marks[0] == "partial" and verify.problems(part) == [] and len(part.rows) == 5
    assert main(["resume", str(part.folder)]) == 0
    whole = record.read(part.folder)
    other = cascade(cascade_file, tmp_path / "b", "run.batch_rows=64")
    assert whole.complete and evidence(whole) == evidence(other) and verify.problems(whole) == []
    engine, cost = whole.header["engine"], whole.header["cost"]
    assert (engine["certifier"], engine["protocol"], engine["sigma"]) == ("cascade", "sound", 1.0)
    assert engine["options"] == {"sigmas": [0.25, 0.5, 1.0], "classes": 10, "p0": 0.5, "split": "bonferroni",
                                 "bounds": "exact"}  # fmt: skip
    drawn = [len(row.evidence.stages) for row in whole.ordered()]
    assert cost["draws"] == 350 * sum(drawn) and cost["most_draws_per_image"] == 3 * 350 and len(set(drawn)) > 1
    assert cost["most_evaluations_per_image"] == 3 * 350 > cost["evaluations_per_image"] >= 350 * sum(drawn) / 12
    for row in whole.ordered():  # paired with the run at a single sigma, image by image
        if len(row.evidence.stages) == 3:
            assert row.evidence.stages[2] == reference.rows[row.id].evidence.stages[0]
    capsys.readouterr()
    assert main(["table", str(whole.folder), str(reference.folder)]) == 0
    shown = capsys.readouterr().out
    assert "## digits test/first12, cascade over σ = 1, 0.5, 0.25: one classifier" in shown
    assert "## Cascades: where they stop" in shown and "1,050" in shown
    assert main(["show", str(cascade_file), *CASCADE]) == 0
    assert "350 noisy draws per image at each of at most 3 scales: 1.0, 0.5, 0.25" in capsys.readouterr().out


def test_verify_recomputes_cascades(cascade_file, tmp_path):
    found = cascade(cascade_file, tmp_path)
    path = next(found.folder.glob("rows*"))
    lines = [record.decode(line) for line in path.read_bytes().splitlines(keepends=True)]

    def problems(change):
        changed = json.loads(json.dumps(lines))
        change(changed)
        path.write_bytes(b"".join(map(record.encode, changed)))
        return " ".join(verify.problems(record.read(found.folder)))

    long = next(i for i, line in enumerate(lines) if len(line["evidence"]["stages"]) > 1)
    assert problems(lambda rows: None) == ""
    assert "no evidence of sigma = 0.5" in problems(
        lambda rows: rows[long]["evidence"]["stages"].__delitem__(slice(1, 3))
    )
    assert "other draws than the run's" in problems(lambda rows: rows[long]["evidence"]["stages"].__delitem__(0))
    assert "differs from" in problems(lambda rows: rows[long]["certificate"].update(radius=9.0))

    def passing_votes(rows):
        first = rows[long]["evidence"]["stages"][0]
        first["votes"] = {next(iter(first["select"])): first["n"]}

    assert "the cascade stops before" in problems(passing_votes)


def test_a_cascade_in_a_notebook(cascade_file, tmp_path):
    images = drbench.load_data("digits", subset="first12")
    defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    frame = drbench.certify(defense, images, sigma=[0.25, 0.5, 1.0], n=300, n0=50)
    found = cascade(cascade_file, tmp_path)
    for row in frame.itertuples():
        certificate = found.rows[row.id].certificate
        assert (row.prediction, row.radius) == (certificate.prediction, certificate.radius)
        reason = row.reason if isinstance(row.reason, str) else None  # pandas makes NaN of None
        assert (row.sigma, reason) == (certificate.detail["sigma"], certificate.detail["reason"])
    assert frame.fallback.eq(frame.label).mean() >= frame.correct.mean() and frame.error.isna().all()
    code = drbench.certify(defense, images, sigma=[0.25, 0.5, 1.0], n=300, n0=50, protocol="paper_code")
    assert code.radius.sum() > frame.radius.sum()
    for wrong, message in (({"sigma": []}, "scales of a cascade"), ({"sigma": [0.3, 1.0]}, "declares sigmas"),
                           ({"sigma": [0.5, 1.0], "protocol": "paper"}, "unknown protocol"),
                           ({"sigma": [0.5, 1.0], "n": 10}, "expected n >= 11")):  # fmt: skip
        with pytest.raises(drbench.DrbenchError, match=message):
            drbench.certify(defense, images, **wrong)


@pytest.mark.slow
def test_sigkill_in_a_cascade_changes_nothing(cascade_file, tmp_path):
    overrides = ["certify.n=10000", "data.subset=first30", "run.batch_rows=256", "run.threads=1"]
    calm = runner.run(config.load(cascade_file, overrides), tmp_path / "calm")
    found = _killed_runs(tmp_path / "killed", cascade_file, overrides, 5, random.Random(1))
    assert evidence(found) == evidence(record.read(calm[0]))
    assert verify.problems(found) == [] and found.complete
    assert len(list(found.folder.glob("rows*"))) >= 3, "too few kills hit the middle of the work"


def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    command = [sys.executable, "-m", "drbench", "run", str(UNDEFENDED), "certify.sigma=0.25", "certify.n=50000",
               "run.batch_rows=512", "run.threads=1", "--out", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    while not list(tmp_path.rglob("rows*")) and time.monotonic() - start < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    (folder,) = record.find([tmp_path])
    found = record.read(folder)
    assert found.rows and not found.complete and found.header["status"] == "partial"
    assert main(["status", str(tmp_path)]) == 0


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, expected",
    [
        (["run", CONFIG, "defense.name=undefendet"], "did you mean 'undefended'"),
        (["run", CONFIG, "certify.sgima=1"], "certify.sgima"),
        (["run", CONFIG, "defense.args.widht=3"], "did you mean 'width'"),
        (["run", CONFIG, "certify.sigma=0.3"], "declares sigmas (0, 0.125, 0.25, 0.5, 1)"),
        (["run", CONFIG, "certify.n=9"], "expected n >= 10"),
        (["run", CONFIG, "defense.checkpoint=[digits/clasifier]"], "did you mean 'digits/c"),
        (["run", CONFIG, "defense.args.width=8"], "weights do not fit Undefended"),
        (["run", CONFIG, "defense.args.num_classes=7", "defense.checkpoint=[]"],
         "takes images (1, 8, 8) of 7 classes; digits has"),
        (["run", CONFIG, "data.subset=first501"], "asks for 501 images, the split has 500"),
        (["run", CONFIG, "data.name=cifar"], "unknown data set 'cifar'"),
        (["run", CONFIG, "run.device=tpu"], "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["run", CONFIG, "--out", "/proc/nowhere"], "choose a writable --out"),
        (["run", "benchmarks/digits/no.yaml"], "no benchmark file"),
        (["run", "certify.n=10"], "expected at least one benchmark file"),
        (["run", CONFIG, "certify.kind=pac"], "certify.kind is gaussian, cascade, lipschitz, got 'pac'"),
            (["run", CONFIG, "certify.kind=lipschitz"], "needs defense.lipschitz > 0; Undefended declares None"),
        (["run", MULTISCALE, "certify.sigmas=[0.3,1.0]"], "declares sigmas (0, 0.25, 0.5, 1)"),
        (["run", MULTISCALE, "certify.n=10"], "expected n >= 12"),
        (["run", CONFIG, "certify.sigma=[1"], "expected a YAML value, as in certify.radii=[0,0.5], got 'certify.si"),
        (["run", CONFIG, "sigma=0.5"], "unknown key 'sigma'; did you mean certify.sigma or attack.sigma?"),
        (["run", CONFIG, "certify.n=0"], "certify.n >= 1, got 0"),
        (["run", CONFIG, "data.root=here"], "'digits' takes no data.root"),
        (["claims", "results/digits/full/runs/constant", "--claims", "nope.yaml"], "no file of claims nope.yaml"),
        (["run", CONFIG, "run.batch_rows=true"], "auto or > 0"),
        (["run", CONFIG, "run.seed=abc"], "run.seed"),
        (["run", CONFIG, "run.device=meta"], "meta is not supported"),
        (["run", CONFIG, "defense.args.width=abc"], "cannot be built with"),
        (["run", CONFIG, "data.subset=ids:/bin/sh"], "cannot read the list of image ids"),
        (["run", CONFIG, "data.subset=first0"], "expected all, firstN"),
        (["run", "benchmarks/digits"], "not readable as YAML"),
        (["run", "benchmarks/digits/train/classifier.yaml"], "got one of task 'train': use `drbench train`"),
        (["train", CONFIG], "expected a benchmark file with a section 'train'"),
        (["table", "nowhere"], "no such folder"),
        (["status", "methods"], "no run folders at or below"),
        (["check", "constnat"], "did you mean 'constant'"),
    ],
    ids=lambda value: " ".join(value[1:])[-40:] if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input_is_explained(words, expected, capsys, tmp_path):
    small = [] if words[0] != "run" else [*([] if "--out" in words else ["--out", str(tmp_path)]), "--limit", "2"]
    assert main([*words, *small]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("drbench: ") and "Traceback" not in error


def test_corrupted_weights_are_refused(tmp_path, monkeypatch, capsys):
    source = ROOT / "benchmarks"
    (tmp_path / "benchmarks" / "checkpoints" / "digits").mkdir(parents=True)
    (tmp_path / "benchmarks" / "checkpoints.yaml").write_bytes((source / "checkpoints.yaml").read_bytes())
    weights = bytearray((source / "checkpoints" / "digits" / "classifier.safetensors").read_bytes())
    weights[-5] ^= 64
    (tmp_path / "benchmarks" / "checkpoints" / "digits" / "classifier.safetensors").write_bytes(weights)
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path))
    assert main(["run", str(UNDEFENDED), *SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "does not match the manifest" in capsys.readouterr().err


class Unlucky(torch.nn.Module):
    """Stands in for a network that overflows on some images."""

    def forward(self, x):
        logits = torch.stack([x.flatten(1).sum(1)] * 10, 1)
        return logits.where(x.mean((1, 2, 3))[:, None] < 0.40, torch.inf)


def test_nonfinite_logits_are_recorded_as_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("methods.undefended.defense.classifiers.build", lambda *args, **options: Unlucky())
    found = run(tmp_path, "defense.checkpoint=[]")
    errors = [row for row in found.ordered() if row.error]
    assert 0 < len(errors) < 12 and found.complete
    assert all("of 350 draws gave non-finite logits" in row.error and not row.correct for row in errors)
    from drbench.tables.summary import frame

    table = frame([found])
    assert set(table.errors) == {len(errors)} and set(table.images) == {12}
    assert table.certified_accuracy.max() <= 1 - len(errors) / 12
    assert verify.problems(found) == []


def test_another_run_in_the_folder_is_refused(tmp_path, capsys):
    found = run(tmp_path)
    header = json.loads((found.folder / "run.json").read_text())
    record.write_header(found.folder, header | {"identity": "0" * 64})
    assert main(["run", str(UNDEFENDED), *SMALL, "--out", str(tmp_path)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_verify_verb(tmp_path, capsys):
    found = run(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    path = next(found.folder.glob("rows*"))
    content = path.read_bytes()
    for change, expected in (
        (content.replace(b'"label":', b'"lavel":', 1), "damaged line"),
        (content.replace(b'"radius":0', b'"radius":1', 1), "damaged line"),
        (b"".join(content.splitlines(keepends=True)[1:]), "1 of 12 images are missing"),
    ):
        assert change != content
        path.write_bytes(change)
        assert main(["verify", str(tmp_path)]) == 1
        assert expected in capsys.readouterr().out
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        ("run.json", '"alpha": 0.001', '"alpha": 0.01', "run.json: 'alpha' of engine is 0.01, by config.yaml 0.001"),
        ("run.json", '"n": 300', '"n": 900', "run.json: 'n' of engine is 900, by config.yaml 300"),
        ("run.json", '"mode": "fixed",', '"mode": "fixed", "select": "label",', "'select' of engine is 'label', by"),
        ("run.json", '"test/first12"', '"test"', "run.json: 'subset' of data is 'test', by config.yaml 'test/first12'"),
        ("run.json", '"images": 12', '"images": 500', "run.json: 'images' of data is 500, it has 12 ids"),
        ("run.json", '"name": "undefended"', '"name": "rcm"', "run.json: 'name' of defense is 'rcm', by config.yaml"),
        ("run.json", '"digits/classifier": "', '"digits/classifier": "0', "run.json: identity is not the hash of"),
        ("run.json", '"identity": "', '"identity": "0', "run.json: identity is not the hash of config.yaml"),
        ("config.yaml", "seed: 0", "seed: 1", "run.json: 'seed' of engine is 0, by config.yaml 1"),
        ("config.yaml", "sigma: 0.25", "sigma: x", "certify.sigma: expected a number, got 'x'"),
        ("config.yaml", "variant: ''", "variant: '${oc.env:HOME}'", "interpolation (${...}) is not allowed"),
        ("config.yaml", "task: certify", "task: attack", "run.json: task is certify, by config.yaml attack"),
        ("config.yaml", "sweep: {}", "sweep: {run.seed: [0, 1]}", "expected the config of one run, got a sweep"),
    ],
)
def test_verify_finds_settings_that_are_not_those_of_the_config(reference, tmp_path, file, old, new, found):
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    assert any(found in problem for problem in verify.problems(record.read(folder)))


# ---- from Python --------------------------------------------------------------------------------------------------


def test_three_lines_in_a_notebook(reference):
    images = drbench.load_data("digits", subset="first12")
    defense = drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    frame = drbench.certify(defense, images, sigma=0.25, n=300, n0=50)
    for row in frame.itertuples():
        certificate = reference.rows[row.id].certificate
        assert (row.prediction, row.radius) == (certificate.prediction, certificate.radius)
        assert row.label == reference.rows[row.id].label and row.correct == reference.rows[row.id].correct
    pair = drbench.certify(defense, (images.x, images.y), sigma=0.25, n=300, n0=50)
    assert pair.id.tolist() == list(range(12))
    arrays = drbench.certify(defense, (images.x.numpy().astype("float64"), images.y.tolist()), sigma=0.25, n=300, n0=50)
    assert arrays.equals(pair)
    empty = drbench.certify(defense, (images.x[:0], images.y[:0]), sigma=0.25)
    assert len(empty) == 0 and "radius" in empty.columns
    for wrong in ({"n0": 0}, {"block": 0}, {"batch_rows": -1}, {"n0": 2.5}):
        with pytest.raises(drbench.DrbenchError, match="expected positive integers"):
            drbench.certify(defense, images, sigma=0.25, **wrong)
    with pytest.raises(drbench.DrbenchError, match="11 labels"):
        drbench.certify(defense, (images.x, images.y[1:]), sigma=0.25)
    with pytest.raises(drbench.DrbenchError, match=r"whole numbers, got 0\.5"):
        drbench.certify(defense, (images.x, images.y + 0.5), sigma=0.25)
    with pytest.raises(drbench.DrbenchError, match="expected n >= 10"):
        drbench.certify(defense, images, sigma=0.25, n=5)
    for wrong in (0.0, -0.25, float("nan"), "x", [0.25, "x"], None):  # not for want of draws
        with pytest.raises(drbench.DrbenchError, match="expected noise levels sigma > 0"):
            drbench.certify(defense, images, sigma=wrong)
    for wrong in (images.x, (images.x,), None, 3, ([["a"]], [1])):
        with pytest.raises(drbench.DrbenchError, match=r"expected .*a pair \(x, y\)"):
            drbench.certify(defense, wrong, sigma=0.25)
    with pytest.raises(drbench.DrbenchError, match="declares sigmas"):
        drbench.certify(defense, images, sigma=0.3)
    with pytest.raises(drbench.DrbenchError, match=r"images are in \[0, 1\]"):
        drbench.certify(defense, (images.x * 255, images.y), sigma=0.25)


def test_random_weights_are_warned_of(recwarn):
    images = drbench.load_data("digits", subset="first2")
    drbench.load_defense("undefended", images, checkpoint="digits/classifier")
    drbench.load_defense("constant", images)  # which has none
    assert not recwarn.list
    with pytest.warns(UserWarning, match="'undefended' has random weights"):
        drbench.load_defense("undefended", images)


def test_importing_drbench_is_light():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, drbench; assert not {'torch', 'numpy'} & {*sys.modules}; drbench.Defense"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_kill_after_a_partial_run_leaves_a_healthy_folder(reference, tmp_path, monkeypatch):
    """What the first session said of its evidence must not be held against the rows that came after it."""
    part = run(tmp_path, limit=4)
    monkeypatch.setattr("drbench.jobs.header.end_session", lambda *args: None)  # as if killed before the last header
    killed = run(tmp_path, limit=8)
    assert killed.header["status"] == "started" and "evidence_sha256" not in killed.header
    assert verify.problems(killed) == [] and len(killed.rows) == 8
    run(tmp_path)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    whole = run(tmp_path)  # nothing is left to do but to say so
    assert whole.folder == part.folder and whole.header["status"] == "complete" and whole.header["cost"]["images"] == 12
    assert evidence(whole) == evidence(reference) and verify.problems(whole) == []


def test_overrides_may_follow_options(tmp_path, capsys):
    assert main(["run", str(UNDEFENDED), "--out", str(tmp_path), *SMALL, "--limit", "2", "run.seed=5"]) == 0
    assert record.read(Path(capsys.readouterr().out.strip())).header["engine"]["seed"] == 5
    with pytest.raises(SystemExit) as end:
        main(["run", str(UNDEFENDED), "--ouy", str(tmp_path)])
    assert end.value.code == 2


def test_damaged_run_folders_are_explained(tmp_path, capsys):
    good, bad = run(tmp_path / "good"), run(tmp_path / "bad")
    capsys.readouterr()
    config_file = bad.folder / "config.yaml"
    for text in (config_file.read_text()[:150], "- a", "certify: {sgima: 3}", "defense: ["):
        config_file.write_text(text)
        assert main(["resume", str(bad.folder)]) == 2
    for text in ("{}", "[]", '{"schema": 99}', "{"):
        (bad.folder / "run.json").write_text(text)
        assert main(["status", str(bad.folder)]) == 2 and main(["table", str(bad.folder)]) == 2
        assert main(["verify", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert f"ok      {good.folder}" in out and f"FAILED  {bad.folder}" in out and "Traceback" not in err


@pytest.mark.parametrize("stem", ["", ".", "results/", ".."])
def test_a_stem_is_asked_for(stem, tmp_path, reference):
    for verb in ("table", "plot"):
        with pytest.raises(SystemExit) as end:
            main([verb, str(reference.folder), "--out", stem])
        assert end.value.code == 2


@pytest.mark.parametrize(("given", "stem"), [("a.png", "a"), ("a.tex", "a"), ("sigma0.25", "sigma0.25"), ("a", "a")])
def test_a_suffix_that_is_written_anyway_is_taken_off(given, stem, tmp_path, reference):
    assert main(["table", str(reference.folder), "--out", str(tmp_path / given)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.csv", f"{stem}.md", f"{stem}.tex"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "results", "--radii", "1/0"], "a radius such as 0.5 or 2/255, got '1/0'"),
        (["run", str(UNDEFENDED), "--limit", "all"], "a number >= 1, got 'all'"),
        (["run", str(UNDEFENDED), "--max-errors", "-3"], "a number >= 0, got '-3'"),
        (["status", "results", "--watch", "-1"], "a number >= 0, got '-1'"),
    ],
)
def test_odd_numbers_are_explained(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_changed_defense_is_noticed(tmp_path, monkeypatch, capsys):
    from drbench.jobs import header

    found = run(tmp_path)
    monkeypatch.setattr(header, "sources", lambda name: {"drbench": "a", "defense": "b"})
    run(tmp_path)
    assert f"{found.folder}: recorded under another version of undefended" in capsys.readouterr().err


def test_rows_of_other_code_are_flagged(tmp_path, monkeypatch):
    from drbench.jobs import header

    part = run(tmp_path, limit=3)
    monkeypatch.setattr(header, "_code", lambda: {"version": "9.9", "commit": "f" * 40, "dirty": True})
    monkeypatch.setattr(header, "sources", lambda name: {"drbench": "a", "defense": "b"})
    whole = run(tmp_path)
    assert whole.folder == part.folder and len(whole.header["sessions"]) == 2
    assert header.MIXED in whole.header["flags"]
    assert whole.header["code"]["dirty"] and "dirty" in whole.marks
