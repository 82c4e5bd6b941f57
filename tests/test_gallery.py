"""Galleries of small runs: what is shown was voted on, what is said was recorded, and every mistake is explained."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from drbench import config, stats
from drbench.certifiers import kinds
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.gallery import contents, drawing, gathering, words
from drbench.gallery.contents import Gallery, Grid, Tile
from drbench.jobs import build, runner, worker
from drbench.records import examples, record
from tests.runs import make_run
from tests.test_run import ROOT

SMALL = ["certify.n=200", "certify.n0=20", "data.subset=first3", "run.batch_rows=64"]
ATTACK = ["attack.audit=0", "attack.evaluations=6", "attack.select=3", "attack.worst_of=5", "data.subset=first3"]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def certify(out, name, *overrides):
    (folder,) = runner.run(config.load(ROOT / f"benchmarks/digits/{name}.yaml", [*SMALL, *overrides]), out)
    return record.read(folder)


def attack(out, name, attacks, *overrides):
    overrides = [*ATTACK, f"attack.attacks=[{attacks}]", *overrides]
    (folder,) = runner.run(config.load(ROOT / f"benchmarks/digits/attack/{name}.yaml", overrides), out)
    return record.read(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One-shot denoising at one level, no purifier, and a cascade."""
    out = tmp_path_factory.mktemp("runs")
    return [certify(out, "denoised-one_shot", "certify.sigma=0.5"), certify(out, "undefended", "certify.sigma=0.5"),
            certify(out, "multiscale")]  # fmt: skip


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    """An l_inf and a spatial attack, and one on a cascade."""
    out, norms = tmp_path_factory.mktemp("attacks"), {"linf": "2/16", "stadv": "0.4", "l2": "0.5"}
    linf, stadv, l2 = ([f"attack.norm={norm}", f"attack.eps={eps}"] for norm, eps in norms.items())
    return [
        attack(out, "denoised-one_shot", "{attack: pgd, loss: margin, steps: 5, draws: 2}", *linf),
        attack(out, "undefended", "{attack: stadv, steps: 5}", *stadv),
        attack(out, "multiscale-cascade", "{attack: noise, tries: 1}", *l2, "attack.decision_draws=5"),
    ]


def rows_that_were_asked(run):
    """Every noisy row, and its logits' argmax, that reaches the defense while the engine of this run works."""
    (cell,) = config.load(run.folder / "config.yaml")
    images = build.images(cell)
    defense, seen = worker.prepare(cell, images, {}), {}
    inner = defense.logits

    def logits(z, sigma, draws):
        found = inner(z, sigma, draws)
        seen.update({(sigma, row.numpy().tobytes()): int(k) for row, k in zip(z, found.argmax(1), strict=True)})
        return found

    defense.logits = logits
    ids, labels = images.ids, images.y.tolist()
    list(kinds.observe(run.header["engine"], defense, images.x, ids, labels, batch_rows=64))
    return seen


def tiles(grid):
    return [tile for row in grid.rows for tile in row if tile]


@pytest.mark.parametrize("number", [0, 2])
def test_the_noise_that_is_shown_was_voted_on_bit_by_bit(runs, number):
    run = runs[number]
    (grid,) = gathering.gather([run]).grids
    asked = rows_that_were_asked(run)
    shown = [(row[1], row[2]) for row in grid.rows if row[1].pixels is not None]
    assert len(shown) >= 3
    for noisy, answer in shown:
        sigma = float(noisy.lines[0].removeprefix("σ = "))
        assert f"this draw: {asked[sigma, noisy.pixels.tobytes()]}" in answer.lines


def test_the_noise_of_other_samplers_was_voted_on_too(tmp_path):
    for override in ("certify.sampler=sound", "certify.noise=uniform", "certify.mode=curtailed"):
        run = certify(tmp_path, "undefended", "certify.sigma=0.25", override)
        (grid,) = gathering.gather([run], first=1).grids
        assert (0.25, grid.rows[0][1].pixels.tobytes()) in rows_that_were_asked(run)


def test_what_purifiers_make_of_it(runs):
    grid = gathering.gather(runs[:2], first=2).grids[0]
    assert grid.titles == ("clean", "with noise", "denoised (one_shot)", "undefended") and len(grid.rows) == 2
    run = runs[0]
    opened = gathering.open_run(run, run.wanted[:2])
    for row, clean in zip(grid.rows, opened.x, strict=True):
        assert np.array_equal(row[0].pixels, clean.numpy())
        z = torch.from_numpy(row[1].pixels)[None]
        with torch.no_grad():
            expected = opened.defense.purify(z, 0.5, None)[0].numpy()
        assert np.allclose(row[2].pixels, expected, atol=1e-5) and expected.min() >= 0
        assert words.PLAIN in row[3].lines and np.array_equal(row[3].pixels, row[1].pixels)


def test_verdicts_are_those_of_the_record(runs):
    for run in runs[:2]:
        for row in run.ordered():
            lines, verdict = words.votes(run, row.id, 0.5)
            certificate = stats.decide_as(run.header["engine"], row.evidence)
            expected = "abstains" if certificate.prediction == -1 else "right" if row.correct else "wrong"
            top = stats.top_class(row.evidence.stages[0].select)
            assert verdict == expected and lines[0].startswith(f"{top}: ")
            assert (f"r = {certificate.radius:.2f}" in lines) == (expected != "abstains")
    cascade = runs[2]
    for row in cascade.ordered():
        stops = [words.votes(cascade, row.id, stage.sigma) for stage in row.evidence.stages]
        assert all(lines[1] == "goes on" and not verdict for lines, verdict in stops[:-1]) and stops[-1][1]
    grid = gathering.gather([cascade]).grids[0]
    assert len(grid.rows) == 9 and [row[1].lines[0] for row in grid.rows[:3]] == ["σ = 1", "σ = 0.5", "σ = 0.25"]
    stages = sum(len(row.evidence.stages) for row in cascade.ordered())
    assert sum(row[2].pixels is not None for row in grid.rows) == stages
    assert sum("not reached:" in row[2].lines for row in grid.rows) == 9 - stages


def test_shares_are_rounded_but_never_to_certainty(tmp_path):
    run = make_run(tmp_path / "run", [1000, 999, 400, 500, None], defense="rcm")
    found = [words.votes(run, name, 0.5) for name in range(4)]
    assert [lines[0] for lines, _ in found] == ["1: 100 %", "1: > 99 %", "0: 60 %", "0: 50 %"]
    assert [verdict for _, verdict in found] == ["right", "right", "wrong", "abstains"]
    with pytest.raises(DrbenchError, match="image 4 failed: logits are not finite; leave it out"):
        words.votes(run, 4, 0.5)


def test_adversarial_examples_are_the_stored_ones(attacks):
    shown = gathering.gather(attacks)
    clean, grid = shown.grids
    linf, spatial, _ = attacks
    stored = {run.folder: examples.read(run.folder) for run in attacks}
    for place, name in enumerate(linf.wanted):
        adversarial, difference, classified = grid.rows[0][3 * place : 3 * place + 3]
        label, x, x_adv = stored[linf.folder][name]
        assert np.array_equal(clean.rows[0][3 * place].pixels, x) and np.array_equal(adversarial.pixels, x_adv)
        factor = float(difference.lines[0].removeprefix("× "))
        assert factor >= 4 and np.allclose(difference.pixels, 0.5 + factor * (x_adv - x), atol=1e-6)
        assert difference.pixels.min() >= -1e-5 and difference.pixels.max() <= 1 + 1e-5
        assert classified.pixels.min() >= 0 and classified.lines == (
            f"this draw: {linf.rows[name].evidence.adversarial.first}",
        )
        seen = linf.rows[name].evidence.adversarial
        others = max((count for answer, count in seen.votes.items() if answer != label), default=0)
        assert adversarial.verdict == ("right" if seen.votes.get(label, 0) > others else "wrong")
        bent, _, plain = grid.rows[1][3 * place : 3 * place + 3]  # a flow is stored, the moved image is shown
        assert bent.pixels.shape == (1, 8, 8) and stored[spatial.folder][name][2].shape == (8, 8, 2)
        assert plain.lines == (words.PLAIN,) and np.array_equal(plain.pixels, bent.pixels)
        assert str(spatial.rows[name].evidence.adversarial.first) in bent.lines[0]
        assert grid.rows[2][3 * place + 2] == Tile(None, ("several noise levels",))
    assert grid.heads[1].split("\n") == ["undefended", "StAdv ≤ 0.4 pixels"] and "cascade" in grid.heads[2]


def test_files_from_the_command_line_are_the_same_every_time(runs, attacks, tmp_path, capsys):
    paths = [str(run.folder) for run in (*runs, attacks[0])]
    for stem in ("a", "b"):
        assert main(["gallery", *paths, "--images", "615", "1793", "--out", str(tmp_path / stem)]) == 0
    assert capsys.readouterr().out.split()[:3] == [str(tmp_path / f"a{end}") for end in (".png", ".svg", ".json")]
    for end in (".png", ".svg", ".json"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert [image["id"] for image in sidecar["images"]] == [615, 1793] and "chosen by hand" in sidecar["caption"]
    first = sidecar["runs"][0]
    assert first["identity"] == runs[0].header["identity"] and first["sigma"] == 0.5
    assert first["checkpoints"] == runs[0].header["defense"]["checkpoints"] and len(first["checkpoints"]) == 2
    assert str(tmp_path) not in json.dumps(sidecar) and sidecar["alt"].startswith("Grid of 2 images of digits.")


def test_images_are_those_that_all_runs_have(runs):
    assert contents.choose(runs, None, None) == runs[0].wanted and len(runs[0].wanted) == 3
    assert contents.choose(runs, None, 2) == runs[0].wanted[:2]
    assert contents.choose(runs, ["615", "615"], None) == [615]
    with pytest.raises(DrbenchError, match=r"no recorded image with id 77; it has 1793, 615, 1081, \.\.\. \(3 images"):
        contents.choose(runs, ["77"], None)


def test_runs_that_do_not_go_together(runs, tmp_path):
    other = make_run(tmp_path / "a", [900], dataset="cifar10")
    with pytest.raises(DrbenchError, match="same data, got cifar10 test and digits test"):
        contents.choose([runs[0], other], None, None)
    failed = make_run(tmp_path / "c", [None, 900])
    assert contents.choose([failed], None, None) == [1] and contents.choose([failed], ["0"], None) == [0]
    apart = make_run(tmp_path / "b", [900])
    with pytest.raises(DrbenchError, match="no recorded image in common"):
        contents.choose([runs[0], apart], None, None)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "examples.npz").unlink(), "expected stored examples"),
        (lambda folder: (folder / "examples.npz").write_bytes(b"PK\3\4 not really"), "expected arrays ids"),
        (lambda folder: _flip(folder / "examples.npz"), "expected arrays ids|not the recorded one"),
        (lambda folder: _other_weights(folder), "the weights are not those of the run"),
        (lambda folder: _other_data(folder), "the images are not those of the run"),
    ],
    ids=["no examples", "no archive", "flipped bits", "weights", "data"],
)
def test_damaged_runs(attacks, tmp_path, break_it, message):
    folder = tmp_path / "run"
    shutil.copytree(attacks[0].folder, folder)
    break_it(folder)
    with pytest.raises(DrbenchError, match=message):
        gathering.gather([record.read(folder)])


def _flip(path):
    data = bytearray(path.read_bytes())
    middle = data.index(b"x_adv.npy") + 200
    data[middle : middle + 8] = bytes(255 - byte for byte in data[middle : middle + 8])
    path.write_bytes(data)


def _other_weights(folder):
    header = record.read_header(folder)
    header["defense"]["checkpoints"]["digits/denoiser"] = "0" * 64
    record.write_header(folder, header)


def _other_data(folder):
    header = record.read_header(folder)
    header["data"]["sha256"] = "0" * 64
    record.write_header(folder, header)


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert main(["gallery", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gallery", "run", "--images", "1", "--first", "2", "--out", str(tmp_path / "x")])
    lipschitz = next((ROOT / "results/digits/full/runs/diffusion_classifier-lipschitz").iterdir())
    assert main(["gallery", str(lipschitz), "--out", str(tmp_path / "x")]) == 2
    assert "certifier 'lipschitz', which has no noisy images" in capsys.readouterr().err


@pytest.mark.parametrize("largest, factor", [(0.125, 4), (0.0, 1), (1.0, 0.5), (0.0312, 10), (8 / 255, 10), (0.5, 1)])
def test_magnification_fills_the_range_and_never_leaves_it(largest, factor):
    assert gathering.magnification(float(np.float32(largest))) == factor
    assert factor * largest <= 0.5 + 1e-6
    assert words.magnified(factor) == (() if factor == 1 else (f"× {factor:g}",))


# ---- drawing --------------------------------------------------------------------------------------------------------


def wide(shape, verdict="right"):
    rng = np.random.default_rng(0)
    lines = ("8: 62 of 1000", "(0: 300)", "halts, r = 12.34", words.PLAIN)
    tile = Tile(rng.normal(0.5, 0.5, shape).astype(np.float32), lines, verdict)
    titles = ("clean", "with noise\ngaussian, sound, seed 123456", "diffusion_classifier (RDC, multi-head, BPDA)",
              "adversarial_training (l2)")  # fmt: skip
    heads = ("adversarial_training\nStAdv ≤ 0.2 pixels\nat σ = 0.25", "multiscale (tuned-denoiser)\nℓ₂ ≤ 0.5\n"
             "cascade 1 > 0.5 > 0.25(20)")  # fmt: skip
    empty = Tile(None, ("not reached:", "ended at σ = 0.25"))
    rows = ((tile, tile, empty, tile), (None, tile, tile, tile))
    return Gallery((Grid(titles, (), rows, row_group=1), Grid(titles, heads, rows, column_group=2)), "Words. " * 40, {})


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (1, 28, 40)])
def test_no_text_or_picture_lies_on_another(shape):
    figure = drawing._figure(wide(shape))
    render = FigureCanvasAgg(figure).get_renderer()
    texts = [text.get_window_extent(render) for text in figure.texts if text.get_text()]
    boxes = texts + [axes.get_window_extent(render) for axes in figure.axes]
    whole = figure.bbox
    assert len(figure.axes) == 12 and len(texts) > 60
    for number, a in enumerate(boxes):
        assert whole.x0 <= a.x0 and a.x1 <= whole.x1 and whole.y0 <= a.y0 and a.y1 <= whole.y1
        for b in boxes[number + 1 :]:
            assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 1.5


def test_small_pictures_keep_their_pixels_and_verdicts_need_no_colour():
    figure = drawing._figure(wide((3, 8, 8), "wrong"))
    image = figure.axes[0].images[0]
    assert image.get_interpolation() == "nearest" and image.get_array().shape == (8, 8, 3)
    assert image.get_array().min() >= 0 and image.get_array().max() <= 1
    assert drawing._figure(wide((1, 224, 224))).axes[0].images[0].get_interpolation() == "auto"
    assert "✗ 8: 62 of 1000" in [text.get_text() for text in figure.texts]
    assert len({contents.MARKS[key] for key in ("right", "wrong", "abstains")}) == 3
    assert len({str(dash) for _, dash in drawing.FRAMES.values()}) == 3


def test_drawing_loads_no_torch(tmp_path):
    program = """
import sys
import numpy as np
from drbench.gallery import contents, drawing
tile = contents.Tile(np.zeros((1, 8, 8), np.float32), ("0",), "right")
made = contents.Gallery((contents.Grid(("clean",), (), ((tile,),)),), "note", {"alt": "a"})
drawing.draw(made, sys.argv[1])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "g")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "g.json").read_text()) == {"alt": "a"}
