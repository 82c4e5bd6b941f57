"""The benchmark files of the papers: each can be shown, says what is missing, and is what a make target reproduces."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from drbench import catalogue, config, effort, needs, published, registry, reproduce, runner, weights
from drbench.cli import EXAMPLES, main
from drbench.errors import DrbenchError

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
        name for cell in cells for name in (cell.data.name, *needs.checkpoints(cell))
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
        hours = effort.hours(reproduce.cells(key))
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
