"""The report as data and as text: every number leads to its run, nothing in a record can become markup."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import special

from drbench import stats
from drbench.errors import DrbenchError
from drbench.records import record
from drbench.report import render
from drbench.report.attacked import audit
from drbench.report.gather import gather
from drbench.tables import summary
from tests.runs import make_cascade, make_run

ROOT = Path(__file__).parents[2]
ATTACKS = ROOT / "results" / "digits" / "full" / "attacks"
EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}{% raw %}\u2028𝒳é&lt;b&gt;"


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and the text of elements with an id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self._id = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._id = dict(attributes).get("id")

    def handle_data(self, text):
        if self._id:
            self.texts[self._id] = self.texts.get(self._id, "") + text


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / "runs" / "a" / "x", [990, 900, None, 400], sigma=0.25),
        make_run(tmp_path / "runs" / "a" / "y", [1000, 950], defense="undefended", images=4, dirty=True),
        make_cascade(tmp_path / "runs" / "c" / "z", [[990], [400, 900], None, [500]]),
    ]


def attacks(*names: str) -> list[record.Run]:
    """Recorded attacks within l2 1, on 50 images."""
    found = [record.read(folder) for name in names for folder in sorted((ATTACKS / name).glob("l2-1-*"))]
    return [run for run in found if len(run.wanted) == 50]


def opened(text: str, number: int) -> dict:
    """What the page embeds for a run."""
    return json.loads(Elements(text).texts[f"data-run-{number}"])


def test_board_shows_the_numbers_of_the_frame(runs):
    page = gather(runs)
    frame = summary.frame(runs)
    for board in page.boards:
        for line in board.lines:
            if line.run is None:
                continue
            place = page.runs[line.run]["place"]
            for column, cell in zip(board.columns, line.cells, strict=True):
                if cell.radius is not None:
                    (row,) = frame[(frame["run"] == place) & (frame["radius"] == cell.radius)].itertuples()
                    assert column.text == f"r = {cell.radius:g}" and cell.value == row.certified_accuracy
                    assert cell.below == f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f}"
    assert {line.run for board in page.boards for line in board.lines} == {0, 1, 2, None}


def test_columns_where_only_the_constant_certifies_are_left_out(tmp_path):
    floor = make_run(tmp_path / "a", [1000] * 3, defense="constant", sigma=1.0, n=1000)
    other = make_run(tmp_path / "b", [560, 600, 500], sigma=1.0, n=1000)
    board, _ = gather([floor, other]).boards
    reach = summary.certified(other)["radius"].max()
    assert [column.text for column in board.columns if column.text.startswith("r =")] == ["r = 0"] and reach < 0.25
    alone = gather([floor]).boards[0]
    assert sum(column.text.startswith("r =") for column in alone.columns) == 10  # ceiling at 2.46


def test_marks_stand_at_every_number_of_a_run(runs):
    page = gather(runs)
    partial = next(i for i, run in enumerate(page.runs) if run["place"] == "a/y")
    seen = 0
    for board in page.boards:
        for line in board.lines:
            of_run = [cell for cell in line.cells if cell.value is not None and cell.radius is not None
                      and partial in (line.run, cell.run)]  # fmt: skip
            seen += len(of_run)
            assert all("†" in cell.signs and "*" in cell.signs for cell in of_run)
            if of_run:
                assert {"partial", "dirty"} <= {badge.text for badge in line.badges}
    lines = [line for panel in page.figures[0]["panels"] for line in panel["lines"] if partial in line["runs"]]
    assert seen and lines and all({"partial", "dirty"} <= {badge["text"] for badge in line["badges"]} for line in lines)
    assert all("†" in line["signs"] for line in lines)
    assert page.facts["complete"] == 2 and page.facts["dirty"] == 1 and page.facts["alarms"] == 1
    (badge,) = [each for each in page.runs[partial]["badges"] if each["text"] == "partial"]
    assert "2 of 4 images" in badge["meaning"] and badge["alarm"]


def test_changed_evidence_is_marked(tmp_path):
    run = make_run(tmp_path / "a", [990, 900])
    record.write_header(run.folder, run.header | {"evidence_sha256": "0" * 64})
    page = gather([record.read(run.folder)])
    assert page.facts["failed"] == 1
    assert [badge.text for badge in page.boards[0].lines[0].badges] == ["fails verification"]
    assert "evidence differs" in page.runs[0]["badges"][0]["meaning"]


def test_evidence_of_each_image_gives_the_number_of_the_cell(runs):
    page = gather(runs)
    for board in page.boards:
        for line in board.lines:
            for cell in line.cells:
                number = line.run if cell.run is None else cell.run
                if cell.radius is None or number is None:
                    continue
                found = page.runs[number]["evidence"]
                rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
                hits = sum(row["answer"] == row["label"] and row["radius"] >= cell.radius for row in rows)
                assert hits / len(rows) == cell.value


def test_votes_and_errors_are_in_the_evidence(runs):
    page = gather(runs)
    number = next(i for i, run in enumerate(page.runs) if run["place"] == "a/x")
    found = page.runs[number]["evidence"]
    assert found["rows"][0][:5] == [0, 1, 1, pytest.approx(stats.gaussian_radius(990, 1000, 0.001, 0.25)),
                                    pytest.approx(special.betaincinv(990, 11, 0.001), abs=1e-6)]  # fmt: skip
    assert found["rows"][0][5:] == ["1:100", "1:990 0:10", ""]
    assert found["rows"][2][2:4] == ["error", 0] and found["rows"][2][-1] == "logits are not finite"
    assert found["rows"][3][2] == 0  # most votes were for class 0


def test_attacks_show_settings_outcomes_and_flags():
    first, *others = attacks("adversarial_training", "denoised-one_shot")
    finding = ["budget", True, "18.8 % right, 6.2 % with twice the steps: not converged"]
    raised = {"flags": [f"audit {finding[0]}: {finding[2]}"], "audit": first.header["audit"] | {"findings": [finding]}}
    runs = [replace(first, header=first.header | raised), *others]
    page = gather(runs)
    (board,) = page.attacks
    names = {line.name: line for line in board.lines}
    flagged = names["adversarial_training"]
    assert [badge.text for badge in flagged.badges] == ["audit budget"] and flagged.badges[0].alarm
    assert "not converged" in flagged.badges[0].meaning
    assert flagged.cells[-1].text == "flags: budget" and names["denoised (one_shot)"].cells[-1].text == "no flag"
    unaudited = replace(runs[0], header={key: value for key, value in runs[0].header.items() if key != "audit"})
    assert audit(unaudited).text == "none"
    assert all("¶" in cell.signs for cell in flagged.cells[3:8])
    run = page.runs[names["denoised (one_shot)"].run]
    facts = {group: dict(lines) for group, lines in run["facts"]}
    assert facts["Attack: pgd margin 100x16"]["steps"] == "100" and facts["Protocol"]["eps"] == "1"
    assert len(facts["Checkpoints"]) == 2 and all(len(sha256) == 64 for sha256 in facts["Checkpoints"].values())
    rows = [dict(zip(run["evidence"]["columns"], row, strict=True)) for row in run["evidence"]["rows"]]
    share = 100 * (1 - sum(row["wrong"] for row in rows) / sum(row["of"] for row in rows))
    assert share == pytest.approx(names["denoised (one_shot)"].cells[4].value) and len(rows) == 50
    assert rows[0]["kept example of"].startswith("pgd") and "noise 10: " in rows[0]["failures by attack"]


def test_killed_attacks_are_marked_partial(tmp_path):
    """The header of a run that was killed has no cost, its session no end; its examples are not joined."""
    for name, kept in (("x", 20), ("y", 0)):
        folder = tmp_path / "attacks" / "d" / name
        shutil.copytree(min((ATTACKS / "denoised-one_shot").glob("l2-0.5-*")), folder)
        header = json.loads((folder / "run.json").read_text()) | {"status": "started"}
        del header["cost"], header["evidence_sha256"], header["sessions"][0]["ended"]
        record.write_header(folder, header)
        (rows,) = folder.glob("rows-*")
        rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:kept]))
        (folder / "examples.npz").rename(folder / "examples-1-1.npz")
        (folder / "examples.json").unlink()
    page = gather([record.read(path) for path in sorted((tmp_path / "attacks" / "d").iterdir())])
    (line,) = page.attacks[0].lines
    assert [badge.text for badge in line.badges] == ["partial"] and all("†" in cell.signs for cell in line.cells[3:8])
    assert page.facts["complete"] == 0 and "killed" in str(page.runs[0]["facts"]) and render.render(page)


def test_everything_that_made_a_number_can_be_read():
    run = record.read(min((ROOT / "results/digits/full/runs/denoised-one_shot").glob("sigma0.5-*")))
    shown = json.dumps(gather([run]).runs[0])
    header = run.header
    session = header["sessions"][0]
    for value in (*header["defense"]["checkpoints"].values(), header["data"]["sha256"], header["data"]["subset"],
                  header["code"]["commit"], header["identity"], header["evidence_sha256"], header["engine"]["n"],
                  header["engine"]["alpha"], session["environment"]["precision"], session["environment"]["device"],
                  session["environment"]["packages"]["torch"], session["started"]):  # fmt: skip
        assert str(value) in shown
    facts = {group: dict(lines) for group, lines in gather([run]).runs[0]["facts"]}
    assert {"seed", "n", "n0", "alpha"} <= facts["Protocol"].keys() and "seconds" in facts["Cost"]


def evil_runs(folder: Path) -> list[record.Run]:
    """Runs whose every text is an attempt to become markup, or script."""
    run = make_run(folder / "runs" / "m" / "<img src=x onerror=alert(3)>", [990, 900], defense=EVIL, variant=EVIL,
                   dataset=EVIL, subset=EVIL, flags=[f"{EVIL}: {EVIL}"])  # fmt: skip
    header = run.header | {"title": EVIL, "identity": EVIL, "sessions": []}
    header["defense"] = header["defense"] | {"checkpoints": {EVIL: EVIL}, "citation": EVIL, "args": {EVIL: [EVIL]}}
    header["code"] = header["code"] | {"commit": EVIL, "version": EVIL}
    record.write_header(run.folder, header)
    (run.folder / "config.yaml").write_text(EVIL)
    writer = record.Writer(run.folder)
    writer.write(record.Row(7, 1, None, None, 0.1, {}, EVIL))
    writer.close()
    header["data"]["ids"].append(7)
    record.write_header(run.folder, header)
    return [record.read(run.folder), make_run(folder / "runs" / "m" / "b", [990, 900], dataset=EVIL)]


def test_no_text_of_a_record_becomes_markup(tmp_path):
    text = render.render(gather(evil_runs(tmp_path)))
    clean = render.render(
        gather([make_run(tmp_path / "a", [990, 900]), make_run(tmp_path / "b", [990], defense="constant", sigma=1.0)])
    )
    found, usual = Elements(text), Elements(clean)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in usual.tags} | {"span", "sup"}
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert [each.get("type") for each in scripts] == ["application/json"] * 3 + [None, None]
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on") or key == "srcdoc"]
    assert "{{ 7 * 7 }}" in text and "alert(1)</script>" not in text and "<img" not in text
    assert opened(text, 0)["title"] == EVIL and opened(text, 0)["config"] == EVIL  # unharmed all the same


def test_only_the_two_scripts_of_the_page_may_run_and_nothing_is_fetched(runs):
    text = render.render(gather(runs))
    (policy,) = [each["content"] for tag, each in Elements(text).tags if each.get("http-equiv")]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    wanted = {f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts}
    assert set(re.search("script-src ([^;]*)", policy)[1].split()) == wanted and len(wanted) == 2
    assert "default-src 'none'" in policy and "connect-src" not in policy
    links = [
        value for _, each in Elements(text).tags for key, value in each.items() if key in ("src", "href", "action")
    ]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_json_is_embedded_without_markup_and_without_nan():
    text = render.embedded({"a": "</script><!-- & \u2028"})
    assert not set("<>&") & set(text) and json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError):
        render.embedded([float("nan")])


def test_same_records_give_the_same_bytes_wherever_they_lie(runs, tmp_path):
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere" / "runs")
    written = []
    for place, seed in ((tmp_path / "runs", "1"), (tmp_path / "elsewhere" / "runs", "2")):
        out = tmp_path / f"{seed}.html"
        words = [sys.executable, "-m", "drbench", "report", str(place), "--out", str(out)]
        subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        written.append(out.read_bytes())
    assert written[0] == written[1] and str(tmp_path).encode() not in written[0]


def test_radii_of_several_norms_and_unfinished_runs(tmp_path):
    empty = make_run(tmp_path / "runs" / "e" / "e", [], images=3)
    with pytest.raises(DrbenchError, match="came twice"):
        gather([empty, empty])
    page = gather([empty])
    assert not page.boards and not page.figures and page.runs[0]["evidence"]["rows"] == []
    assert "No number" not in render.render(page) and page.facts["complete"] == 0


def test_a_report_that_cannot_be_written_is_an_error(tmp_path, runs):
    (tmp_path / "file").write_text("")
    with pytest.raises(DrbenchError, match="choose another file with --out"):
        render.write(runs, tmp_path / "file" / "report.html")


def test_pictures_are_embedded_with_their_words(tmp_path, runs):
    (tmp_path / "gallery-a.png").write_bytes(b"\x89PNG")
    sidecar = {"alt": EVIL, "caption": "three digits", "images": [1], "runs": [{"run": "a/x", "marks": ["partial"]}]}
    (tmp_path / "gallery-a.json").write_text(json.dumps(sidecar))
    out = render.write(runs, tmp_path / "r.html", [tmp_path, tmp_path])
    (image,) = [each for tag, each in Elements(out.read_text()).tags if tag == "img"]
    assert image["alt"] == EVIL and base64.b64decode(image["src"].partition(",")[2]) == b"\x89PNG"
    (tmp_path / "gallery-a.json").write_text("{}")
    with pytest.raises(DrbenchError, match="expected alt, caption"):
        render.write(runs, out, [tmp_path])


def test_templates_and_scripts_are_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "drbench.report"
    ]
    files = [path for path in (ROOT / "drbench" / "report").iterdir() if path.is_file() and path.suffix != ".py"]
    assert files and all(any(path.match(pattern) for pattern in patterns) for path in files)


@pytest.mark.slow
def test_report_of_the_full_digits_job_is_small(tmp_path):
    out = tmp_path / "report.html"
    words = [sys.executable, "-m", "drbench", "report", "results/digits/full", "--out", str(out)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert out.stat().st_size < 12e6
