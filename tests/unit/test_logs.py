"""Logs of other projects: every format from a small file, what is odd in them, and what is refused."""

import math
import os
import pickle
from pathlib import Path

import pytest

from drbench import stats
from drbench.cli import main
from drbench.comparisons import compare
from drbench.errors import DrbenchError
from drbench.records import record, verify
from drbench.records.logs import FORMATS, Settings, cohen_tsv, expected_ids, implied_alpha, import_log, oddities, parse
from drbench.tables import certified_tables, summary
from tests.runs import make_run

REAL = Path(os.environ.get("DRBENCH_SHARED", "../shared")) / "data" / "logs" / "cohen"
COHEN = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ENSEMBLES = "idx\tlabel\tpredict\tradius\tproved\tcorrect\tlevels_needed\testimated_pr\ttime"
SETTINGS = Settings(dataset="cifar10", defense="model", sigma=0.5, dimension=3072, target=0.5)


def written(tmp_path, text, name="sigma_0.5"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(tmp_path, form, text):
    return [line[:4] for line in parse(written(tmp_path, text), form, SETTINGS)]


def test_a_log_that_is_not_there(tmp_path):
    """Said before anything else that a log would need is asked for."""
    with pytest.raises(DrbenchError, match=r"cannot read .*No such file"):
        import_log(tmp_path / "none.tsv", "cohen", Settings(), tmp_path)


def test_cohen(tmp_path):
    text = COHEN + "0\t3\t3\t0.486\t1\t16.6\n20\t7\t-1\t0.0\t0\t0:00:17.2\n40\t4\t5\t0.31\t0\t17.5"
    assert rows(tmp_path, "cohen", text) == [(0, 3, 3, 0.486), (20, 7, -1, 0.0), (40, 4, 5, 0.31)]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("densepure", "idx\tlabel\tpredict\tradius\tcorrect\n7\t1\t1\t0.5\t1\n", (7, 1, 1, 0.5)),
        ("rrcm", "3\t3\t0.9\t1\t12.5\n4\t-1\t0.0\t0\t12.5\n", (0, 3, 3, 0.9)),
        ("multiscale", "idx\tlabel\tpredict\tradius\tr_neg\tcorrect\tpred_uc\tcorr_uc\tstage\ttime\n"
                       "5\t2\t-2\t0.0\t-100\t0\t2\t1\t1\t3.5\n", (5, 2, -1, 0.0)),
        ("iss", "idx\tlabel\tpredict\tpA\tsamplesize\tradius\tcorrect\ttime_forward\n"
                "5\t2\t2\t0.99\t4000\t1.1\t1\t3.5\nACR 1.1\nmean samples 4000\n", (5, 2, 2, 1.1)),
        ("ars", "idx \t label \t predict \t linf_radius \t prob_lb \t correct \t time\n"
                "5 \t 2 \t -1 \t -0.01 \t 0.4 \t 0 \t 3.5\n", (5, 2, -1, 0.0)),
        ("ensembles", ENSEMBLES + "\tsamples_needed\n5\t2\t2\t-1\t0\t1\t3\t0.8\t3.5\t900\n", (5, 2, -1, 0.0)),
    ],
)  # fmt: skip
def test_other_formats(tmp_path, form, text, expected):
    assert rows(tmp_path, form, text)[0] == expected


def test_radii_in_other_units(tmp_path):
    text = "idx\tlabel\tpredict\tlinf_radius\tprob_lb\tcorrect\ttime\n5\t2\t2\t0.01\t0.9\t1\t3.5\n"
    assert rows(tmp_path, "ars", text)[0][3] == pytest.approx(0.01 * math.sqrt(3072))
    with pytest.raises(DrbenchError, match="needs --dimension"):
        parse(written(tmp_path, text), "ars", Settings(sigma=0.5))
    proved = (
        "idx\tlabel\tpredict\tradius\tproved\tcorrect\tlevels_needed\testimated_pr\ttime\n6\t2\t2\t1\t1\t1\t3\t.9\t3\n"
    )
    assert rows(tmp_path, "ensembles", proved)[0] == (6, 2, 2, 0.5)
    with pytest.raises(DrbenchError, match="needs --target"):
        parse(written(tmp_path, proved), "ensembles", Settings(sigma=0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COHEN + "0\t3\t3\t0.4\t1\n", r"1 of 1 lines .* line 2: expected 6 columns, got 5"),
        (COHEN + "0\t3\t3\t0.4\t1\t1\n20\t3\tx\t0.4\t1\t1\n", "line 3: invalid literal for int"),
        (COHEN + "0\t3\t3\t-0.4\t1\t1\n", "expected a radius >= 0, got -0.4"),
        (COHEN + "0\t3\t3\tnan\t1\t1\n", "expected a radius >= 0, got nan"),
        (COHEN + "0\t3\t-1\t0.4\t1\t1\n", "an abstention with radius 0.4"),
        (COHEN + "0\t3\t3\t0.4\tyes\t1\n", "correct is 'yes'"),
        (COHEN + "0\t3\t3\t0.4\t1\t1\n\n20\t3\t3\t0.4\t1\t1\n", "line 3: expected 6 columns, got 1"),
        (COHEN, "it has none"),
        ("idx,label,predict\n", "expected the header idx label predict radius correct time"),
        (COHEN.replace("radius", "rad") + "0\t3\t3\t0.4\t1\t1\n", "expected the header"),
        ("", "expected the header"),
        (pickle.dumps({"radius": [1.0]}), "pickles are never read"),
        (b"\xff\xfe0\t1", "as text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, text, message):
    with pytest.raises(DrbenchError, match=message):
        parse(written(tmp_path, text), "cohen", SETTINGS)
    with pytest.raises(DrbenchError, match="unknown log format"):
        parse(written(tmp_path, COHEN), "kohen", SETTINGS)


def test_oddities(tmp_path):
    """A running total in `correct`, a gap, an alpha that is not the stated one, radii at a table's edge."""
    cap = stats.ceiling_radius(100_000, 0.01, 0.5)
    lines = [f"{i}\t1\t1\t{cap:.3g}\t{n}\t1" for n, i in enumerate([0, 2000, 4000, 8000])]
    text = COHEN + "\n".join([*lines[:2], lines[2].replace("\t2\t1", "\t1\t1"), lines[3].replace("\t3\t1", "\t0\t1")])
    found = oddities(parse(written(tmp_path, text + "\n6000\t1\t2\t0.25\t1\t1\n"), "cohen", SETTINGS), SETTINGS)
    assert len(found) == 3
    assert "contradicts label and prediction in 3 lines" in found[0]
    assert "not 0.001: n or alpha is another one" in found[1]
    assert "1 radii are printed as a multiple of 0.25" in found[2]


@pytest.mark.parametrize(("n", "alpha", "sigma"), [(100_000, 0.001, 0.25), (100_000, 0.001, 1.0), (10_000, 0.01, 0.5)])
def test_the_implied_alpha_contains_the_true_one(n, alpha, sigma):
    cap = float(f"{stats.ceiling_radius(n, alpha, sigma):.3g}")
    lines = parse_lines([cap] * 4 + [0.1])
    low, high = implied_alpha(lines, Settings(sigma=sigma, n=n))
    assert low <= alpha <= high < 3 * low
    assert implied_alpha(parse_lines([cap, 0.1]), Settings(sigma=sigma, n=n)) is None  # no plateau, no ceiling


@pytest.mark.parametrize("form", ["multiscale", "iss", "ensembles"])
def test_no_alpha_is_implied_where_n_and_alpha_have_no_ceiling(form):
    """Scales of a cascade share alpha, ISS draws as many as it needs: a plateau there means something else."""
    cap = float(f"{stats.ceiling_radius(100_000, 0.01, 0.5):.3g}")
    lines = parse_lines([cap] * 4 + [0.1])
    assert any("n or alpha is another one" in text for text in oddities(lines, SETTINGS, "cohen"))
    assert not any("n or alpha is another one" in text for text in oddities(lines, SETTINGS, form))


def test_a_table_says_that_a_log_beside_our_rows_has_another_alpha(tmp_path):
    ours = make_run(tmp_path / "runs/ours/x", [990] * 5)
    path = written(tmp_path, cohen_tsv(ours))
    theirs = Settings(dataset="digits", defense="theirs", n=1000, n0=100, alpha=0.01)
    folder, _ = import_log(path, "cohen", theirs, tmp_path)
    text = certified_tables.render_markdown(summary.frame([ours, record.read(folder)]))
    assert "Not the same alpha in all rows, compare with care: 0.01, but 0.001, rcm at σ = 0.5 (test)." in text
    assert "Not the same n in" not in text


def parse_lines(radii):
    from drbench.records.logs import Line

    return [Line(20 * i, 1, 1, radius, 1, {}) for i, radius in enumerate(radii)]


def test_irregular_ids_and_first_images_are_not_missing_any():
    from drbench.records.logs import Line

    ids = [3, 8, 100, 17, 250, 1793]
    assert expected_ids([Line(i, 1, 1, 0.1, 1, {}) for i in ids], "cifar10") == sorted(ids)
    assert expected_ids([Line(i, 1, 1, 0.1, 1, {}) for i in range(500)], "cifar10") == list(range(500))


def test_an_import_is_compared_with_our_run_and_not_resumed(tmp_path, capsys):
    ours = make_run(tmp_path / "runs/ours/x", [990] * 5)
    path = written(tmp_path, cohen_tsv(ours))
    folder, _ = import_log(path, "cohen", Settings(dataset="digits", defense="theirs", n=1000), tmp_path)
    table = compare.compare([ours], [record.read(folder)], [0.0])
    assert not table.same_noise.any() and "certifier gaussian against imported" in table.differs[0]
    assert list(table.only_a) == [0] and table.marks[0].startswith("B: imported")
    assert main(["resume", str(folder)]) == 0


def test_missing_images(tmp_path):
    lines = parse_lines([0.1] * 499)
    assert expected_ids(lines, "cifar10") == list(range(0, 10_000, 20))
    assert expected_ids(lines, "unknown") == list(range(0, 9980, 20))
    assert "1 images of the regular subset are missing, ids 9980 to 9980" in oddities(lines, SETTINGS)[0]


def test_an_imported_run_is_counted_marked_and_verified(tmp_path, capsys):
    text = COHEN + "".join(
        f"{20 * i}\t1\t{1 if i % 5 else 2}\t{0.25 * (i % 4):g}\t{int(i % 5 > 0)}\t1\n" for i in range(500)
    )
    folder, odd = import_log(written(tmp_path, text), "cohen", SETTINGS, tmp_path)
    run = record.read(folder)
    assert run.complete and verify.problems(run) == [] and any("multiple of 0.25" in text for text in odd)
    table = summary.frame([run], [0.0, 0.25, 0.75])
    assert list(table.certified_accuracy) == [0.8, 0.6, 0.2] and table.abstention[0] == 0
    assert table.ceiling[0] == stats.ceiling_radius(100_000, 0.001, 0.5)
    assert "imported: from the log" in certified_tables.render_markdown(
        table
    ) and "⇩" in certified_tables.render_markdown(table)
    with pytest.raises(DrbenchError, match="imported before"):
        import_log(written(tmp_path, text), "cohen", SETTINGS, tmp_path)
    rows_file = next(folder.glob("rows*"))
    rows_file.write_bytes(rows_file.read_bytes().replace(b'"radius":0.25', b'"radius":0.95', 1))
    assert any("damaged line" in problem for problem in verify.problems(record.read(folder)))


def test_sigma_comes_from_the_path_or_is_asked_for(tmp_path):
    text = COHEN + "0\t1\t1\t0.1\t1\t1\n"
    folder, _ = import_log(written(tmp_path, text), "cohen", Settings(), tmp_path)
    assert record.read(folder).header["engine"]["sigma"] == 0.5
    with pytest.raises(DrbenchError, match="give --sigma"):
        import_log(written(tmp_path, text, "log.tsv"), "cohen", Settings(), tmp_path)
    with pytest.raises(DrbenchError, match="more than once, first: 0"):
        import_log(written(tmp_path, text + "0\t1\t1\t0.2\t1\t1\n"), "cohen", Settings(), tmp_path)


def test_export_rounds_down_and_comes_back(tmp_path):
    run = make_run(tmp_path / "run", [990, 700, 400, None])
    radii = summary.certified(run).radius
    path = written(tmp_path, cohen_tsv(run))
    back = parse(path, "cohen", SETTINGS)
    assert [line.prediction for line in back] == [1, 1, 0, -1]
    assert all(0 <= radius - line.radius < 1e-6 for radius, line in zip(radii, back, strict=True))
    assert f"\t{radii[0]:.3}\t" in cohen_tsv(run, compat=True)


def test_command_line(tmp_path, capsys):
    path = written(tmp_path, COHEN + "0\t1\t1\t0.25\t1\t1\n")
    assert main(["import", "cohen", str(path), "--out", str(tmp_path), "--defense", "x", "--alpha", "0.01"]) == 0
    seen = capsys.readouterr()
    folder = Path(seen.out.strip())
    assert record.read(folder).header["engine"]["alpha"] == 0.01 and "note: 1 radii" in seen.err
    assert main(["verify", str(folder)]) == 0 and "note: 1 radii" in capsys.readouterr().out
    assert main(["export", str(folder)]) == 0 and capsys.readouterr().out.startswith(COHEN)
    assert main(["import", "cohen", str(tmp_path / "none"), "--sigma", "1", "--out", str(tmp_path)]) == 2
    assert set(FORMATS) == {"cohen", "densepure", "rrcm", "multiscale", "iss", "ars", "ensembles"}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the logs in $DRBENCH_SHARED/data/logs/cohen")
def test_published_rows_of_cohen(tmp_path):
    """To the printed digit: the tables of Cohen et al. 2019, from their logs."""
    published = {
        ("cifar10", "cifar10/resnet110/noise_0.25/test/sigma_0.25"): {0.25: 60, 0.5: 43, 0.75: 27, 1.0: 0},
        ("cifar10", "cifar10/resnet110/noise_0.50/test/sigma_0.50"): {0.25: 55, 0.5: 41},
        ("imagenet", "imagenet/resnet50/noise_0.25/test/sigma_0.25"): {0.0: 67, 0.5: 49, 1.0: 0},
    }
    for (dataset, log), row in published.items():
        folder, odd = import_log(REAL / log, "cohen", Settings(dataset=dataset, defense="cohen"), tmp_path / dataset)
        table = summary.frame([record.read(folder)], list(row))
        assert [round(100 * share) for share in table.certified_accuracy] == list(row.values())
        assert any("n or alpha is another one" in text for text in odd)  # the logs were made at alpha = 0.01
        assert any("73 images" in text for text in odd) == (dataset == "imagenet")
