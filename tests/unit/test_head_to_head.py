"""The head-to-head page on planted runs: same images, same draws, costs, training. No torch."""

import pytest
import yaml

from drbench import stats, weights
from drbench.comparisons import head_to_head, head_to_head_tables
from drbench.comparisons.lineage import Lineage
from drbench.errors import DrbenchError
from tests.runs import make_attack, make_cascade, make_run


@pytest.fixture
def runs(tmp_path):
    return [
        *(make_run(tmp_path / f"rcm{seed}", [1980] * 8 + [400] * 2, variant=f"seed {seed}", seconds=1.0, n=2000)
          for seed in range(3)),
        make_run(tmp_path / "one", [2000] * 8 + [400] * 2, n=2000, defense="denoised", variant="one_shot",
                 nfe={"denoiser": 1, "classifier": 1}, seconds=4.0),
        make_run(tmp_path / "few", [100] * 4, n=100, defense="denoised", variant="densepure-3x3", seconds=1.0,
                 nfe={"denoiser": 9, "classifier": 3}),
        make_cascade(tmp_path / "cascade", [[900]] * 5),
        make_attack(tmp_path / "attack", [10, 5, 0, 10], variant="seed 0"),
    ]  # fmt: skip


def numbers(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def test_rows_of_a_table_have_the_same_images_and_draws(runs):
    table = head_to_head.frame(runs)
    certified = numbers(table, section="certified", quantity="r = 0")
    found = [(row.condition, row.images, row.draws, row.row, row.seeds) for row in certified.itertuples()]
    assert found == [
        ("σ = 0.5, alpha = 0.001", 10, 2000, "denoised (one_shot)", 1),
        ("σ = 0.5, alpha = 0.001", 10, 2000, "rcm", 3),
        (
            "σ = 0.5, alpha = 0.001",
            4,
            100,
            "denoised (densepure-3x3)",
            1,
        ),  # the four images that all have, at its draws
        ("σ = 0.5, alpha = 0.001", 4, 100, "denoised (one_shot)", 1),
        ("σ = 0.5, alpha = 0.001", 4, 100, "rcm", 3),
        ("cascade over σ = 1, 0.25, alpha = 0.001", 5, 1000, "multiscale", 1),
    ]
    (row,) = numbers(certified, row="denoised (one_shot)", images=10).itertuples()
    assert (row.value, row.low, row.high) == (0.8, *(round(each, 6) for each in stats.interval(8, 10)))
    reach = numbers(table, section="certified", row="denoised (one_shot)", images=4).quantity
    assert "r = 0.5" in set(reach) and "r = 1" not in set(reach)  # beyond 100 draws at sigma = 0.5


def test_costs_and_their_factors(runs):
    table = head_to_head.frame(runs)
    factors = numbers(table, section="factor", quantity="calls")
    assert dict(zip(factors.row, factors.value, strict=True)) == {
        "denoised (densepure-3x3)": 12.0, "denoised (one_shot)": 2.0, "mean over denoised and diffpure": 7.0,
    }  # fmt: skip
    assert factors.note.tolist() == ["59 (secondary)", "3 (secondary)", "85 (published)"]
    seconds = numbers(table, section="factor", quantity="seconds", row="denoised (one_shot)")
    assert seconds.value.item() == 4.0
    budget = numbers(table, section="budget", row="denoised (densepure-3x3)").set_index("quantity").value
    assert budget["calls"] == 12 and budget["seconds"] == pytest.approx(1 / 200)


def test_factors_that_cannot_be_had_are_left_out(runs, tmp_path):
    free = make_run(tmp_path / "free", [1980] * 10, n=2000, defense="diffpure", nfe={})
    other = make_run(tmp_path / "other", [990] * 10, defense="denoised", variant="x", sigma=0.25)
    table = head_to_head.frame([*runs, free, other])
    names = set(numbers(table, section="factor").row)
    assert names == {"denoised (densepure-3x3)", "denoised (one_shot)", "diffpure", "mean over denoised and diffpure"}
    assert numbers(table, section="factor", row="diffpure").quantity.tolist() == ["seconds"]
    assert "– |" in head_to_head_tables.render_markdown(table)
    assert not len(numbers(head_to_head.frame([free, other]), section="factor"))


def test_robust_accuracy_by_threat(runs):
    (row,) = numbers(head_to_head.frame(runs), section="robust", quantity="robust").itertuples()
    assert (row.condition, row.row, row.images, row.value) == ("linf 2/16", "rcm", 4, 0.625)


def test_cascades_of_other_draws_have_a_table_of_their_own(runs, tmp_path):
    """Their votes cannot be thinned, and a title says how many draws all rows are of."""
    more = make_cascade(tmp_path / "more", [[1800]] * 5, n=2000, variant="more")
    certified = numbers(head_to_head.frame([*runs, more]), section="certified", quantity="ACR")
    cascades = certified[certified.condition.str.startswith("cascade")]
    assert list(zip(cascades.row, cascades.draws, strict=True)) == [("multiscale", 1000), ("multiscale (more)", 2000)]


def test_a_row_attacked_at_several_noise_levels_is_a_row_at_each(runs, tmp_path):
    own = [make_attack(tmp_path / f"a{sigma}", [right] * 3, defense="noisy", sigma=sigma)
           for sigma, right in ((0.25, 9), (0.5, 2))]  # fmt: skip
    found = numbers(head_to_head.frame([*runs, *own]), section="robust", quantity="robust")
    assert dict(zip(found.row, found.value, strict=True)) == {
        "noisy, σ = 0.25": 0.9,
        "noisy, σ = 0.5": 0.2,
        "rcm": 0.625,
    }


def test_trainings_attacked_on_other_images_share_some(runs, tmp_path):
    other = make_attack(tmp_path / "other", [10, 0], variant="seed 1", first=2)
    (row,) = numbers(head_to_head.frame([*runs, other]), section="robust", quantity="robust").itertuples()
    assert (row.row, row.seeds, row.images, row.value) == ("rcm", 2, 2, 0.5)  # images 2 and 3


def test_trainings_attacked_on_no_image_in_common_are_named(runs, tmp_path):
    table = head_to_head.frame([*runs, make_attack(tmp_path / "other", [10, 0], variant="seed 1", first=7)])
    (row,) = numbers(table, section="robust", quantity="robust").itertuples()
    assert (row.row, row.seeds, row.images) == ("rcm", 2, 0) and row.value != row.value
    assert "| rcm (2 seeds) | no image in common |" in head_to_head_tables.render_markdown(table)


def test_pages(runs, tmp_path):
    table = head_to_head.frame(runs)
    paths = head_to_head_tables.write(table, tmp_path / "page")
    text = paths[0].read_text()
    assert "| rcm (3 seeds) | 80.0 [" in text and "| denoised (densepure-3x3) | σ = 0.5 | 12 |" in text
    assert "## digits, σ = 0.5, alpha = 0.001: 4 images, 100 draws each" in text and "62.5 \\[" in text
    again = head_to_head_tables.write(head_to_head.frame(runs[::-1]), tmp_path / "again")
    assert [path.read_text() for path in again] == [path.read_text() for path in paths]
    evil = make_run(tmp_path / "evil", [990] * 10, defense="x|<b>", variant="\\input{x}", n=2000)
    table = head_to_head.frame([*runs, evil])
    assert "x\\|\\<b> (\\\\input{x})" in head_to_head_tables.render_markdown(table)
    assert "\\input" not in head_to_head_tables.render_latex(table)
    with pytest.raises(DrbenchError, match="with a recorded image"):
        head_to_head.frame([])


def test_training_is_summed_over_what_weights_came_from(tmp_path, monkeypatch):
    """d starts from b through the file that it extends, and loads c; b starts from a."""
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path))
    (tmp_path / "benchmarks").mkdir()
    files = {"a": {}, "b": {"train": {"start": ["a"]}}, "c": {"train": {}, "defense": {"name": "x"}},
             "d": {"extends": "b2.yaml", "defense": {"checkpoint": ["c"]}},
             "b2": {"train": {"start": ["b"]}}}  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    entries = {name: {"command": f"drbench train {name}.yaml", "seconds": 10**place, "sha256": name * 3}
               for place, name in enumerate("abcd")}  # fmt: skip
    weights.manifest_path().write_text(yaml.safe_dump(entries))
    lineage = Lineage()
    assert lineage.seconds({"d": "ddd"}) == {"a": 1, "b": 10, "c": 100, "d": 1000}
    assert lineage.seconds({"d": "other", "mine.safetensors": "x"}) == {
        "a": 1, "b": 10, "c": 100, "d": None, "mine.safetensors": None,
    }  # fmt: skip
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(DrbenchError, match="expected the training file"):
        Lineage().seconds({"b": "bbb"})
