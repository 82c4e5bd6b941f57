"""Published numbers: provenance is compulsory, and what is measured stands beside what was printed."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.papers import measured, published
from drbench.records import record
from tests.runs import make_attack, make_cascade, make_run

FOLDER = Path(__file__).parents[2] / "benchmarks" / "published"
HEAD = ",".join(published.COLUMNS)


def folder(tmp_path, *rows, protocol=None, methods="{Theirs: [ours]}"):
    """An index with the paper `p`, and its file; rows are method,sigma,radius,metric,value."""
    made = tmp_path / "published"
    made.mkdir()
    protocol = f"protocol: {protocol}, " if protocol else ""
    (made / "_papers.yaml").write_text(f"p: {{file: p, {protocol}methods: {methods}}}")
    lines = []
    for row in rows:
        method, sigma, radius, metric, value = row.split(",")
        lines.append(f"A paper,Table 1,cifar10,l2,{method},,{sigma},{radius},{metric},{value},published,")
    (made / "p.csv").write_text("\n".join([HEAD, *lines]) + "\n")
    return made


def test_all_files_have_provenance():
    index = published.papers(FOLDER)
    assert {about["file"] for about in index.values()} == {path.stem for path in FOLDER.glob("*.csv")}
    frames = [published.load(FOLDER, key) for key in index]
    assert sum(map(len, frames)) > 2000 and set(pd.concat(frames)["provenance"]) == set(published.PROVENANCE)
    for key, about in index.items():
        frame = published.load(FOLDER, key)
        known = {*frame["method"], *(frame["method"] + ", " + frame["variant"])}
        assert set(about["methods"]) <= known, f"{key}: a method that is not there"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("A,T,cifar10,l2,M,,0.5,0,certified_accuracy,61,,", "line 2: expected a provenance"),
        ("A,T,cifar10,l2,M,,0.5,0,certified_accuracy,61,memory,", "line 2: expected a provenance"),
        ("A,T,cifar10,l2,M,,0.5,0,certified_accuracy,about 61,published,", "line 2: expected paper, metric and a num"),
        ("A,T,cifar10,l2,M,,0.5,0,certified_accuracy,nan,published,", "line 2: expected paper, metric and a number"),
        (",T,cifar10,l2,M,,0.5,0,certified_accuracy,61,published,", "line 2: expected paper, metric and a number"),
    ],
)
def test_rows_that_prove_nothing_are_refused(tmp_path, line, expected):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEAD}\n{line}\n")
    with pytest.raises(DrbenchError, match=expected):
        published.read(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DrbenchError, match="expected the columns paper, table"):
        published.read(tmp_path / "p.csv")
    with pytest.raises(DrbenchError, match="did you mean 'rcm-cifar10'"):
        published.load(FOLDER, "rcm-cifar")


def test_a_data_set_by_another_name(tmp_path):
    """What a paper calls otherwise is compared with ours where _papers.yaml says so, and only there."""
    made = folder(tmp_path, "Theirs,0.5,0.25,certified_accuracy,80")
    run = make_run(tmp_path / "runs" / "x" / "a", [995] * 80 + [400] * 20, defense="ours", dataset="imagenet")
    assert published.beside(made, "p", [run])["verdict"].tolist() == ["not measured"]
    about = yaml.safe_load((made / "_papers.yaml").read_text())
    about["p"]["data"] = {"cifar10": "imagenet"}
    (made / "_papers.yaml").write_text(yaml.safe_dump(about))
    assert published.beside(made, "p", [run])["measured"].tolist() == [80]


def test_verdicts(tmp_path):
    """80 of 100 images are certified at 0.25 and sigma 0.5: the 95 % interval is [70.8, 87.3]."""
    values = ("80", "87.3", "87.4", "70", "71", "95.0")
    rows = [f"Theirs,0.50,0.25,certified_accuracy,{value}" for value in values]
    rows += ["Theirs,0.25,0.25,certified_accuracy,80", "Theirs,0.5,,clean_accuracy,99"]
    made = folder(tmp_path, *rows, "Others,0.5,0.25,certified_accuracy,1")
    run = make_run(tmp_path / "runs" / "x" / "a", [995] * 80 + [400] * 20, defense="ours", dataset="cifar10")
    frame = published.beside(made, "p", [run])
    agree, unmeasured = ["agrees", "agrees", "differs", "differs", "agrees", "differs"], ["not measured"] * 3
    assert frame["verdict"].tolist() == agree + unmeasured
    first = frame.iloc[0]
    assert (first.measured, first.difference, first.images) == (80.0, 0.0, 100)
    assert first.ci_low == pytest.approx(70.82, abs=0.01) and first.ci_high == pytest.approx(87.33, abs=0.01)
    text = published.render(frame)
    assert "3 agrees, 3 differs, 0 protocol differs, 3 not measured" in text
    assert "1 clean_accuracy" in text and "[70.82, 87.33], 100 images" in text


def test_other_protocols_are_named(tmp_path):
    made = folder(tmp_path, "Theirs,0.5,0,certified_accuracy,100", protocol="cohen2019")
    run = make_run(
        tmp_path / "runs" / "x" / "a", [990] * 5, defense="ours", dataset="cifar10", subset="test/first5", images=6
    )
    (line,) = published.beside(made, "p", [run]).to_dict("records")
    assert line["verdict"] == "protocol differs"
    assert line["differs_in"] == (
        "5 of 6 images; n = 1000, not 100000; rounding = none, not significant3; images test/first5, not every20"
    )


def test_other_images_than_a_paper_s_are_named(tmp_path):
    made = folder(tmp_path, "Theirs,0.5,0.25,certified_accuracy,80")
    run = make_run(tmp_path / "runs" / "x" / "a", [995] * 80 + [400] * 20, defense="ours", dataset="cifar10")
    about = yaml.safe_load((made / "_papers.yaml").read_text())
    for images, differs in {"512 at random": "images test, not 512 at random", "test": ""}.items():
        about["p"]["images"] = images
        (made / "_papers.yaml").write_text(yaml.safe_dump(about))
        assert published.beside(made, "p", [run])["differs_in"].tolist() == [differs]


def test_a_cascade_under_other_bounds_and_draws_that_end_early_are_other_protocols(tmp_path):
    rows = ["Theirs,0.25|1.0,0,certified_accuracy,50", "Theirs,0.5,0,certified_accuracy,100"]
    made = folder(tmp_path, *rows, protocol="msds")
    (made / "p.csv").write_text((made / "p.csv").read_text().replace("cifar10", "digits"))
    for name in ("sound", "paper_code"):
        make_cascade(tmp_path / name, [[9900], [4000, 3000]], defense="ours", n=10_000, protocol=name)
    runs = [record.read(tmp_path / name) for name in ("sound", "paper_code")]
    runs.append(make_run(tmp_path / "early", [9900] * 5, n=10_000, defense="ours"))
    runs[2].header["engine"].update(mode="curtailed", options={"mode": "curtailed", "budget": 10_000})
    for run in runs:
        run.header["engine"]["rounding"] = "significant3"
    found = published.beside(made, "p", runs)
    assert dict(zip(found["run"], found["differs_in"], strict=True)) == {
        "sound": "protocol = sound, not paper_code", "paper_code": "", "early": "mode = curtailed, not fixed",
    }  # fmt: skip
    assert found["verdict"].tolist() == ["protocol differs", "agrees", "protocol differs"]


def test_clean_accuracy_of_an_attack_run_is_that_of_its_images(tmp_path):
    made = folder(tmp_path, "Theirs,,,clean_accuracy,97", protocol="cohen2019")
    (made / "p.csv").write_text((made / "p.csv").read_text().replace("l2", "none"))
    run = make_attack(tmp_path / "a", [2] * 20, defense="ours", dataset="cifar10")
    assert published.beside(made, "p", [run])["differs_in"].tolist() == ["images test, not every20"]


def test_the_best_level_of_each_radius(tmp_path):
    rows = ["Theirs,best,0,certified_accuracy,100", "Theirs,best,0.75,certified_accuracy,40"]
    made = folder(tmp_path, *rows)
    small = make_run(tmp_path / "runs" / "x" / "a", [999] * 10, defense="ours", dataset="cifar10", sigma=0.25)
    large = make_run(tmp_path / "runs" / "x" / "b", [999] * 4 + [1] * 6, defense="ours", dataset="cifar10", sigma=1.0)
    frame = published.beside(made, "p", [small, large])
    assert frame["measured"].tolist() == [100.0, 40.0] and frame["run"].tolist() == ["x/a", "x/b"]
    (made / "_papers.yaml").write_text("p: {file: p, protocol: cohen2019, methods: {Theirs: [ours]}}")
    assert "best without sigma = 0.12, 0.5" in published.beside(made, "p", [small, large])["differs_in"][0]


def test_robust_accuracy_names_both_attacks(tmp_path):
    """A variant of theirs that has rows of its own takes no run of another variant."""
    made = folder(tmp_path, methods="{Theirs: [ours rdc], 'Theirs, N=1': [ours rdc-1]}")
    rows = [
        f"A paper,Table 2,cifar10,linf,Theirs,{variant},,2/16,robust_accuracy,80,published,{note}"
        for variant, note in (("N=5", "found; attack=AutoAttack+BPDA; 512 images"), ("N=1", ""))
    ]
    (made / "p.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    runs = [
        make_attack(tmp_path / "attacks" / name / "a", right, defense="ours", variant=name, dataset="cifar10")
        for name, right in (("rdc", [8, 8]), ("rdc-1", [5, 5]))
    ]
    five, one = published.beside(made, "p", runs).to_dict("records")
    assert (five["run"], five["measured"], five["verdict"]) == ("rdc/a", 80.0, "protocol differs")
    assert five["differs_in"] == "attacks pgd; theirs: AutoAttack+BPDA"
    assert (one["run"], one["measured"], one["differs_in"]) == ("rdc-1/a", 50.0, "attacks pgd; theirs: unknown")


@pytest.mark.parametrize(
    "metric, norm, radius, value",
    [
        ("robust_accuracy", "linf", "2/16", 80),
        ("robust_accuracy_average", "linf", "0.125", 80),
        ("robust_accuracy_worst_of_10", "linf", "2/16", 50),
        ("clean_accuracy", "none", "", 100),
        ("standard_accuracy", "linf", "0", 100),
        ("clean_accuracy_worst_of_10", "none", "", 100),
        ("robust_accuracy", "l2", "2/16", None),
        ("robust_accuracy", "linf", "1/16", None),
        ("clean_accuracy", "l2", "0.5", None),
    ],
)
def test_accuracies_of_an_attack_run(tmp_path, metric, norm, radius, value):
    """One image always right, one in six of ten evaluations; 8 of 10 evaluations in all."""
    run = make_attack(tmp_path / "attacks" / "x" / "a", [10, 6], evaluations=10)
    found = measured.known(run).measure({"metric": metric, "norm": norm}, published._number(radius))
    assert found is None if value is None else found[0] == pytest.approx(value)


def test_bounds_of_spatial_attacks(tmp_path):
    """Papers give them on a grid of side 2, we in pixels: 0.05 is 0.8 at 32 x 32."""
    run = make_attack(tmp_path / "attacks" / "x" / "a", [10, 6], norm="stadv", eps="4/5", dataset="cifar10")
    run.header["data"]["shape"] = [3, 32, 32]
    row = {"metric": "robust_accuracy", "norm": "stadv"}
    assert measured.known(run).measure(row, 0.05)[0] == pytest.approx(80)
    assert measured.known(run).measure(row, 0.8) is None


def test_a_cascade_stands_for_a_cascade(tmp_path):
    made = folder(tmp_path, "Theirs,0.25|1.0,0,certified_accuracy,50", methods="{Theirs: [multiscale]}")
    run = make_cascade(tmp_path / "runs" / "x" / "a", [[990], [400, 300]])
    frame = published.beside(made, "p", [run])
    assert frame["verdict"].tolist() == ["not measured"]  # of another data set
    (made / "p.csv").write_text((made / "p.csv").read_text().replace("cifar10", "digits"))
    (line,) = published.beside(made, "p", [run]).to_dict("records")
    assert line["measured"] == 50.0 and line["verdict"] == "agrees"


def test_accuracy_of_a_cascade_without_certificate_is_that_of_its_votes_as_a_prior(tmp_path):
    """log(0.9 p + 0.1 / 3) of class 1 must exceed that of class 0, which clean logits prefer, by 1: 900 votes do."""
    row = {"metric": "standard_accuracy", "norm": "none"}
    cascade = measured.known(make_cascade(tmp_path / "runs" / "x" / "a", [[990], [400, 560], [900], [100, 100]]))
    assert cascade.measure(row, None)[0] == 50.0
    assert measured.known(make_run(tmp_path / "runs" / "x" / "b", [990])).measure(row, None) is None


def test_from_the_command_line(tmp_path, capsys):
    assert main(["table", "--paper", "list"]) == 0 and "rcm-cifar10" in capsys.readouterr().out.split()
    assert main(["table", "--paper", "rcm-imagenet", "--out", str(tmp_path / "out" / "rcm")]) == 0
    written = pd.read_csv(tmp_path / "out" / "rcm.csv")
    assert set(written["verdict"]) == {"not measured"} and written["measured"].isna().all()
    assert main(["table", "--paper", "nothing"]) == 2 and "no published numbers of" in capsys.readouterr().err
