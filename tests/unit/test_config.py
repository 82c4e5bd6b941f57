"""Benchmark files: merging, sweeps, identity, and messages for every mistake."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from drbench import config
from drbench.errors import DrbenchError
from drbench.jobs import needs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


CASCADE = "defense: {name: constant}\ncertify: {kind: cascade, sigmas: [0.25, 1.0]}"


def write(folder, text, name="a.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_child_wins_and_sweep_expands(tmp_path):
    write(tmp_path, "certify: {n: 100000, n0: 100, alpha: 0.001}", "base.yaml")
    path = write(
        tmp_path,
        "extends: base.yaml\ndefense: {name: constant, args: {answer: 3}}\ncertify: {n: 500}\n"
        "sweep: {certify.sigma: [0.25, 0.5], run.seed: [0, 1, 2]}",
    )
    cells = config.load(path)
    assert [(c.certify.sigma, c.run.seed) for c in cells] == [(s, k) for s in (0.25, 0.5) for k in (0, 1, 2)]
    assert all(c.certify.n == 500 and c.certify.n0 == 100 and c.defense.args.answer == 3 for c in cells)
    assert all(not c.sweep for c in cells)


def test_override_wins_and_replaces_a_swept_key(tmp_path):
    path = write(tmp_path, "defense: {name: constant}\nsweep: {certify.sigma: [0.25, 0.5]}")
    (cell,) = config.load(path, ["certify.sigma=1.0", "certify.n=77", "data.subset=first9"])
    assert (cell.certify.sigma, cell.certify.n, cell.data.subset) == (1.0, 77, "first9")


def test_an_empty_sweep_takes_away_those_below_it(tmp_path):
    path = write(tmp_path, "defense: {name: constant}\ncertify: {sigma: 0.1}\nsweep: {certify.sigma: [0.25, 1.0]}")
    child = write(tmp_path, "extends: a.yaml\nsweep: {}", "child.yaml")
    for cells in (config.load(path, ["sweep={}"]), config.load(child), config.load(path, ["protocol=dds", "sweep={}"])):
        assert [cell.certify.sigma for cell in cells] == [0.1]
    assert len(config.load(path, ["protocol=dds"])) == 2 and len(config.load(child, ["sweep={run.seed: [1, 2]}"])) == 2


def test_what_is_left_open_takes_no_value_from_below(tmp_path):
    """??? in a file that extends another, over a default, and given again by a file or the command line."""
    write(tmp_path, "defense: {name: constant, args: {answer: 3, rest: [1]}}", "base.yaml")
    path = write(
        tmp_path,
        'extends: base.yaml\ndefense: {args: {answer: "???"}}\ntrain: {checkpoint: a, recipe: {steps: "???"}}\n'
        "sweep: {certify.sigma: [0.25, 0.5]}",
    )
    cells = config.load(path)
    for cell in cells:
        assert needs.unpublished(cell) == ["defense.args.answer", "train.recipe.steps"]
        assert cell.defense.args.rest == [1]
    assert len(cells) == 2
    child = write(tmp_path, "extends: a.yaml\ndefense: {args: {answer: 4}}", "child.yaml")
    for given in (config.load(path, ["defense.args.answer=4"]), config.load(child)):
        assert needs.unpublished(given[0]) == ["train.recipe.steps"] and given[0].defense.args.answer == 4
    null = config.load(path, ["defense.args.answer=null", "train.recipe.steps=7"])[0]
    assert needs.unpublished(null) == [] and null.defense.args.answer is None
    with pytest.raises(DrbenchError, match=r"expected a value for certify\.n"):
        config.load(path, ["certify.n=???"])
    with pytest.raises(DrbenchError, match="outside of it"):
        config.load(path, ['sweep={defense: [{args: {answer: "???"}}]}'])


def test_a_sweep_over_what_a_task_does_not_read_is_one_run(tmp_path):
    path = write(
        tmp_path, "defense: {name: constant}\nsweep: {certify.sigma: [0.25, 1.0], attack.eps: [0.1, 0.2, 0.3]}"
    )
    assert [cell.certify.sigma for cell in config.load(path)] == [0.25, 1.0]
    assert [cell.attack.eps for cell in config.load(path, ["task=attack"])] == [0.1, 0.2, 0.3]
    with pytest.raises(DrbenchError, match="sgima"):
        config.load(write(tmp_path, "defense: {name: constant}\ntask: attack\nsweep: {certify.sgima: [3]}"))


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("defense: {nam: constant}", [], r"(?s)a.yaml.*nam"),
        ("defense: {name: constant}\ncertify: {sigmaz: 3}", [], r"(?s)sigmaz.*certify"),
        ("defense: {name: constant}", ["certify.nn=3"], r"(?s)nn"),
        ("defense: {name: constant}\ncertify: {n: 1e5}", [], "certify.n: expected a whole number .*got 100000.0"),
        ("defense: {name: constant}\ncertify: {n: many}", [], "certify.n: expected a whole number .*got 'many'"),
        ("defense: {name: constant}", ["certify.n=[1]"], r"certify.n: expected a whole number .*got \[1\]"),
        ("defense: {name: constant}", ["certify.sigma=null"], "certify.sigma: expected a number, got None"),
        ("defense: {name: constant}", ["certify.sigma.x=3"], "certify.sigma: expected a number, got {'x': 3}"),
        (
            "defense: {name: constant}",
            ["run.threads=abc"],
            "run.threads: expected .* or null, got 'abc'",
        ),
        ("defense: {name: constant}", ["run.fsync=maybe"], "run.fsync: expected true or false, got 'maybe'"),
        (
            "defense: {name: constant}",
            ["defense.checkpoint=x"],
            "checkpoint: expected a list of texts, got 'x'",
        ),
        ("defense: {name: constant}\nsweep: {certify.n: [many]}", [], "certify.n: expected a whole number"),
        (
            "defense: {name: constant}",
            ["sigma=0.5"],
            "unknown key 'sigma'; did you mean certify.sigma or",
        ),
        ("defense: {name: constant}", ["certfy.n=3"], "did you mean certify.n?"),
        ("defense: {name: constant}", ["certfy.x=3"], "did you mean certify?"),
        ("defense: {name: constant}", ["train.recipe.stepz=3"], "did you mean train.recipe.steps?"),
        ("defense: {name: constant}", ["certify.n=[1"], r"expected a YAML value, .*got 'certify.n=\[1'"),
        ("defense: {name: constant}", ["defense.args={a: 1, a: 2}"], "expected a YAML value, .*a: 1, a: 2"),
        ("defense: {name: constant}\ncertify: {n: 0b_}", [], "not readable as YAML"),
        ("defense: {name: constant}", ["certify.radii=[[1]]"], r"certify.radii: expected a list of numbers, got"),
        ("defense: {name: constant}\nsweep: {certify: [3]}", [], "certify has keys of its own"),
        ("~: 3", [], "not readable as YAML"),
        ("certify: {n: 100}", [], "expected a value for defense.name"),
        ("defense: {name: constant}\ncertify: {sigma: -0.5}", [], "noise level > 0"),
        ("defense: {name: constant}\ncertify: {alpha: 1.5}", [], r"alpha is in \(0, 1\)"),
        ("defense: {name: constant}\ncertify: {n: 0}", [], "certify.n >= 1, got 0"),
        ("defense: {name: constant}", ["attack.worst_of=0"], "attack.worst_of >= 1, got 0"),
        ("defense: {name: constant}", ["attack.audit=-1"], "attack.audit >= 0, got -1"),
        ("defense: {name: constant}", ["run.threads=0"], "run.threads >= 1, got 0"),
        ("defense: {name: constant}", ["run.timeout=0"], "run.timeout > 0 seconds, or null, got 0.0"),
        ("defense: {name: constant}", ["run.timeout=-1"], "run.timeout > 0 seconds, or null, got -1.0"),
        ("defense: {name: constant}", ["run.workers=0"], "run.workers is auto or > 0, got 0"),
        ("defense: {name: constant}\nrun: {batch_rows: lots}", [], "auto or > 0"),
        ("defense: {name: constant}\ncertify: {mode: hybrd}", [], "certify.mode is fixed"),
        (CASCADE, ["certify.sigmas=[0.5,0.25]"], "two or more rising noise levels"),
        (CASCADE, ["certify.sigmas=[0.5]"], "two or more rising noise levels"),
        (CASCADE, ["certify.sigmas=[]"], "two or more rising noise levels"),
        (CASCADE, ["certify.sigmas=null"], "two or more rising noise levels"),
        (CASCADE, ["certify.sigmas=[0.0,0.5]"], "two or more rising noise levels"),
        (CASCADE, ["certify.sigma=0.25"], "takes certify.sigmas, not certify.sigma"),
        (CASCADE, ["certify.p0=0.4"], r"certify.p0 is in \[1/2, 1\)"),
        (CASCADE, ["certify.protocol=paper"], "certify.protocol is sound or paper_code"),
        (CASCADE, ["certify.protocol=paper_code", "certify.p0=0.6"], r"paper_code has certify.p0 = 0.5"),
        ("defense: {name: constant}", ["certify.sigmas=[0.25,0.5]"], "only with certify.kind: cascade"),
        ("defense: {name: constant}", ["certify.protocol=paper_code"], "only with certify.kind: cascade"),
        ("defense: {name: constant}\nsweep: {certify.sigma: 3}", [], "list of values under sweep"),
        ("defense: {name: constant}\nsweep: {certify.sgima: [3]}", [], "sgima"),
        ("defense: {name: constant}", ["defense.args=[1]"], r"defense.args has keys of its own.*got \[1\]"),
        ("defense: {name: constant}", ["certify=3"], "certify has keys of its own.*certify={kind: VALUE}, got 3"),
        ("defense: {name: constant}\ndata: digits", [], "data has keys of its own.*got 'digits'"),
        ("defense: {name: constant}\nrun:", [], "run has keys of its own.*got None"),
        ("defense: {name: constant}", ["train=x"], "train has keys of its own"),
        ("defense: {name: constant}", ["train.recipe=x"], "train.recipe has keys of its own"),
        ("defense: {name: constant}", ["sweep=3"], "sweep has keys of its own"),
        (
            "defense: {name: constant}",
            ["certify.radii={a: 1}"],
            "certify.radii: expected a list of numbers or null",
        ),
        ("defense: {name: constant}", ["certify.n"], "form key=value"),
        ("defense: {name: '${oc.env:HOME}'}", [], "interpolation"),
        ("defense: {name: constant}", ["title=${oc.env:HOME}"], "interpolation"),
        ("- a\n- b", [], "expected a YAML mapping"),
        ("defense: [", [], "not readable as YAML"),
        ("defense: {name: constant}\ntask: train", [], "needs the section train"),
    ],
)
def test_mistakes(tmp_path, text, overrides, message):
    with pytest.raises(DrbenchError, match=message) as error:
        config.load(write(tmp_path, text), overrides)
    assert not re.search("full_key|object_type|reference_type|Config|Optional", str(error.value))


def test_unknown_key_names_the_full_key(tmp_path):
    with pytest.raises(DrbenchError) as error:
        config.load(write(tmp_path, "defense: {name: constant}\ncertify: {sgima: 0.5}"))
    assert "certify.sgima" in str(error.value)


def test_missing_file_suggests_a_neighbour(tmp_path):
    write(tmp_path, "", "undefended.yaml")
    with pytest.raises(DrbenchError, match=r"did you mean .*undefended.yaml"):
        config.load(tmp_path / "undefendet.yaml")


def test_yaml_tags_do_not_build_objects(tmp_path):
    with pytest.raises(DrbenchError, match="not readable as YAML"):
        config.load(write(tmp_path, "defense: {name: !!python/object/apply:os.system ['true']}"))


def test_identity(tmp_path):
    path = write(tmp_path, "defense: {name: constant}")

    def identity(*overrides, checkpoints=("aa",)):
        return config.identity(config.load(path, overrides)[0], checkpoints)

    same = ["run.device=cpu", "run.batch_rows=64", "run.threads=1", "run.channels_last=true", "title=x", "data.root=y"]
    assert {identity(o) for o in same} == {identity()}
    other = [
        "run.seed=1",
        "certify.n=99",
        "certify.sigma=1.0",
        "certify.block=50",
        "certify.alpha=0.01",
        "defense.args.answer=1",
        "defense.variant=v",
        "data.subset=first5",
        "data.split=train",
    ]
    assert len({identity(o) for o in other} | {identity(), identity(checkpoints=("bb",))}) == len(other) + 2


def test_identity_of_a_gaussian_run_knows_nothing_of_cascades():
    """Runs recorded before there were cascades are still found."""
    folder = next((BENCHMARKS.parent / "results/digits/full/runs/constant").glob("sigma0.25-*"))
    (cell,) = config.load(folder / "config.yaml")
    recorded = json.loads((folder / "run.json").read_text())["identity"]
    assert config.identity(cell, []) == recorded and folder.name.endswith(recorded[:8])


def test_later_keys_are_part_of_the_identity_only_off_their_defaults(tmp_path):
    path = write(tmp_path, "defense: {name: constant}")
    (plain,) = config.load(path)
    sections = {name: section() for name, section in config.SECTIONS.items()}
    given = [f"{part}.{key}={getattr(sections[part], key)}" for part, keys in config.LATER.items() for key in keys]
    (same,) = config.load(path, [word.replace("None", "null") for word in given])
    assert config.identity(plain, []) == config.identity(same, [])
    changes = ["certify.select=label", "certify.noise=uniform", "certify.sampler=grid", "certify.bound=randomized",
               "certify.rounding=decimal4", "run.precision=bfloat16", "data.preprocessing=box64"]  # fmt: skip
    early = [["certify.mode=hybrid", *words] for words in ([], ["certify.sequence=union"], ["certify.tolerance=0.02"])]
    others = [config.load(path, words)[0] for words in ([], *([change] for change in changes), *early)]
    assert len({config.identity(cell, []) for cell in others}) == len(others)


def test_identity_of_a_cascade(tmp_path):
    path = write(tmp_path, CASCADE)
    changes = [(), ("certify.sigmas=[0.25,0.5]",), ("certify.p0=0.6",), ("certify.protocol=paper_code",)]
    cells = [config.load(path, change)[0] for change in changes]
    assert len({config.identity(cell, []) for cell in cells}) == 4
    assert [cell.certify.sigma for cell in cells] == [1.0, 0.5, 1.0, 1.0]  # the largest scale
    (tmp_path / "again.yaml").write_text(OmegaConf.to_yaml(cells[0]))
    (again,) = config.load(tmp_path / "again.yaml")
    assert config.identity(again, []) == config.identity(cells[0], [])


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(BENCHMARKS)))
def test_shipped_files_are_valid(path):
    if not path.name.startswith("_") and path.parent != BENCHMARKS:  # what lies there are manifests
        assert all(cell.title for cell in config.load(path))


def test_a_sweep_may_list_mappings_and_overrides_reach_into_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "task: attack\ndefense: {name: rcm}\nattack: {preset: fast}\n"
        "sweep: {attack: [{norm: linf, eps: 1/16}, {norm: linf, eps: 0.1}, {norm: l2, eps: 0.5}]}\n"
    )

    def threats(*overrides):
        return [(c.attack.norm, c.attack.eps, c.attack.preset) for c in config.load(path, overrides)]

    assert threats() == [("linf", "1/16", "fast"), ("linf", 0.1, "fast"), ("l2", 0.5, "fast")]
    assert threats("attack.eps=0.2") == [("linf", 0.2, "fast"), ("l2", 0.2, "fast")]
    assert threats("attack.eps=0.2", "attack.norm=l1") == [("l1", 0.2, "fast")]


@pytest.mark.parametrize(
    ("words", "draws"),
    [([], 110), (["certify.select=label"], 10), (["certify.kind=lipschitz"], 10)],
)
def test_draws_of_an_image(words, draws):
    """Where no class is selected by votes, `n0` counts for nothing: neither in plans nor in the search for a batch."""
    file = BENCHMARKS / "digits" / "undefended.yaml"
    for cell in config.load(file, ["certify.n0=100", "certify.n=10", *words]):
        assert config.draws(cell) == draws
