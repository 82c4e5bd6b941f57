"""The benchmark files of the papers: each can be shown, says what is missing, and is what a make target reproduces."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from drbench import catalogue, config, registry, weights
from drbench.cli import EXAMPLES, main
from drbench.errors import DrbenchError
from drbench.jobs import needs, runner
from drbench.papers import published, reproduce
from drbench.planning import effort

ROOT = Path(__file__).parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for folder in ("cifar10", "imagenet")
               for path in (ROOT / "benchmarks" / folder).rglob("*.yaml") if "train" not in path.parts)  # fmt: skip
TABLES = ["rcm-cifar10", "rcm-imagenet", "multiscale-cifar10", "multiscale-imagenet", "consistency-cifar10",
          "consistency-imagenet64", "rdc-cifar10", "ndc-cifar10", "ndc-imagenet", "cost", "digits"]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_here(tmp_path, monkeypatch):
    """No weights, no data, in the project."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DRBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("DRBENCH_DATA", str(tmp_path / "data"))


@cache
def load(file: str) -> list:
    return config.load(ROOT / file)


@pytest.mark.parametrize("file", FILES)
def test_it_is_shown_and_says_what_is_missing(file, tmp_path):
    cells = load(file)
    for cell in cells:
        registry.check_args(cell.defense.name, registry.find(cell.defense.name), cell.defense.args)
        assert all(weights.place(name) for name in needs.checkpoints(cell))
    absent = needs.missing(cells)
    assert {need.name for need in absent} == {
        name for cell in cells for name in (cell.data.name, *needs.checkpoints(cell), *needs.unpublished(cell))
    }
    shown = catalogue.plan(cells[0])
    for need in needs.missing(cells[:1]):
        assert need.command and f"# not here: {need.kind} {need.name}" in shown
    with pytest.raises(DrbenchError, match="not here, and needed") as caught:
        runner.run(cells, tmp_path / "out")
    assert all(f"{need.kind} {need.name}" in str(caught.value) for need in absent)
    assert not (tmp_path / "out").exists()


def test_tables_are_those_of_their_papers():
    index = published.papers(ROOT / "benchmarks" / "published")
    used = {file for files in reproduce.keys().values() for file in files}
    assert used <= set(FILES)
    for key, about in index.items():
        for method, files in about.get("configs", {}).items():
            names = {f"{cell.defense.name} {cell.defense.variant}".strip() for file in files for cell in load(file)}
            wanted = about["methods"].get(method, [])
            found = [name for name in wanted if any(have == name or have.split()[0] == name for have in names)]
            assert found or not wanted, f"{key}: no row of {files} stands for {method}"
    assert set(TABLES[:-2]) | {"rcm-cost"} <= set(reproduce.keys())


def test_the_effort_of_every_row_was_counted():
    for key in list(reproduce.keys()):
        hours = effort.hours([cell for cell in reproduce.cells(key) if not needs.unpublished(cell)])
        assert hours is not None and hours > 0.1, f"{key}: run python -m benchmarks.effort"


@pytest.mark.parametrize("table", [*(f"table-{name}" for name in TABLES), "tables"])
def test_make_targets(table):
    done = subprocess.run(["make", "-n", table], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    asked = re.findall(r"drbench reproduce (\S+)", done.stdout)
    if table == "tables":
        assert len(asked) == len(TABLES) - 1
    elif table == "table-digits":
        assert asked == [] and "drbench run" in done.stdout
    else:
        assert asked == [{"cost": "rcm-cost"}.get(name := table.removeprefix("table-"), name)]
        assert asked[0] in set(reproduce.keys())


def test_what_is_missing_is_no_failure(tmp_path, capsys):
    assert main(["reproduce", "rcm-cifar10", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for part in ("6 runs, about", "GPU hours", "0 of them can run", "drbench data fetch cifar10",
                 "drbench train benchmarks/cifar10/train/rcm.yaml", "drbench weights fetch openai/cifar10-uncond-50M",
                 "0 of 25 published numbers", "no table is written"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "out").exists()
    assert main(["reproduce", "rcm-cifar"]) == 2 and "did you mean 'rcm-cifar10'" in capsys.readouterr().err
    assert main(["reproduce", "list"]) == 0 and "benchmarks/cifar10/rcm.yaml" in capsys.readouterr().out


OPEN = {
    "imagenet/rcm-deep": ["defense.args.depth"],
    "imagenet/dds-vit": ["defense.args.classifier.arch"],
    "imagenet/densepure-vit": ["defense.args.classifier.arch"],
    "cifar10/train/rdc-multihead": [f"train.recipe.{key}" for key in ("batch", "lr", "steps")],
    "cifar10/train/multiscale-denoiser": [
        *(f"defense.args.{key}" for key in ("anti_consistency", "brier")),
        *(f"train.recipe.{key}" for key in ("batch", "lr", "steps")),
    ],
}


@pytest.mark.parametrize("name", OPEN)
def test_what_was_not_published_has_to_be_given(name, capsys, tmp_path):
    file, keys = f"benchmarks/{name}.yaml", OPEN[name]
    assert main(["show", file]) == 0
    shown = capsys.readouterr().out
    for key in keys:
        assert f"# not here: setting {key}: not published" in shown and f"give it as {key}=VALUE" in shown
        assert f"{key.rpartition('.')[2]}: ???" in shown
    for words in (["train", file],) if "/train/" in name else (["plan", file], ["run", file, "--out", str(tmp_path)]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert f"  setting {keys[0]}: not published" in said.err and "Traceback" not in said.err
    given = [f"{key}={3 if key.startswith('train') else 1}" for key in keys]
    assert needs.unpublished(config.load(ROOT / file, given)[0]) == []
    assert needs.unpublished(config.load(ROOT / file, given[1:])[0]) == keys[:1]


def test_with_its_open_setting_a_file_is_planned(capsys):
    small = [f"defense.args.{key}" for key in ("depth=1", "width=32", "heads=2", "patch=56")]
    words = ["plan", "benchmarks/imagenet/rcm-deep.yaml", *small, "certify.sigma=0.25"]
    assert main(words) == 0 and "rcm B-Deep" in capsys.readouterr().out


def test_open_settings_of_a_table_are_given_to_the_files_that_leave_them_open(tmp_path, capsys):
    words = ["reproduce", "rcm-imagenet", "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for key in ("defense.args.depth", "defense.args.classifier.arch"):
        assert f"setting {key}: not published" in said
    assert "15 runs, about" in said and "(9 with unpublished settings left out)" in said
    rows = reproduce.cells("rcm-imagenet", ["defense.args.depth=24", "defense.args.classifier.arch=x", "certify.n=7"])
    assert not any(needs.unpublished(cell) for cell in rows) and {cell.certify.n for cell in rows} == {7}
    assert {cell.defense.variant: cell.defense.args.get("depth") for cell in rows} == {
        "B": 12, "S": 6, "B-Deep": 24, "one_shot-vit": None, "densepure-vit": None
    }  # fmt: skip


def test_what_is_here_runs_and_goes_on(tmp_path, capsys, monkeypatch):
    """A table whose only row is a shipped one: run, told to go on, and set beside the paper's number."""
    monkeypatch.setattr(reproduce, "keys", lambda: {"rcm-cifar10": ["benchmarks/digits/rcm.yaml"]})
    words = ["reproduce", "rcm-cifar10", "certify.n=50", "certify.n0=10", "certify.sigma=0.5", "certify.block=10",
             "--out", str(tmp_path), "--limit"]  # fmt: skip
    assert main([*words, "2"]) == 0
    said = capsys.readouterr().out
    assert "1 of them can run" in said and "not here" not in said
    assert main([*words, "3"]) == 0
    table = (tmp_path / "rcm-cifar10.md").read_text()
    assert "Not measured by the runs given: 18 noisy_top1" in table and "| rcm" in table


def test_every_verb_has_an_example():
    verbs = main.__globals__["parser"]()._subparsers._group_actions[0].choices
    assert set(verbs) == set(EXAMPLES)


def test_settings_that_depend_on_the_threat_or_the_data_set():
    """DiffPure has another t* under l2; photographs come to RCM and to the cascades' denoiser each in its own way."""
    assert {
        (cell.attack.norm, cell.defense.args.t_star, cell.defense.args.steps)
        for file in published.papers(ROOT / "benchmarks" / "published")["rdc-cifar10"]["configs"]["DiffPure"]
        for cell in load(file)
    } == {("linf", 0.1, 100), ("l2", 0.075, 75)}
    assert {cell.data.preprocessing for cell in load("benchmarks/imagenet/rcm.yaml")} == {"adm224"}
    for name in ("multiscale", "multiscale-single"):
        assert {cell.defense.args.denoiser.pad for cell in load(f"benchmarks/imagenet/{name}.yaml")} == {16}
