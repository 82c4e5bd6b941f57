"""Rows and run folders: torn and damaged lines, duplicates, verification."""

import errno
import json
import os

import pytest

from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.records import record, verify
from drbench.records.record import Row, Writer, decode, encode
from drbench.stats import decide
from tests.runs import make_attack, make_cascade, make_run
from tests.unit.test_verify_stops import adaptive_run

SIGMA, N0, N, ALPHA = 0.5, 10, 100, 0.001


def row(image_id, hits=95, label=1, **changes):
    evidence = Evidence((Stage(SIGMA, {1: N0}, N0, {1: hits, 0: N - hits}, N),))
    return Row(
        **{
            "id": image_id,
            "label": label,
            "evidence": evidence,
            "seconds": 0.1,
            "certificate": decide("gaussian", evidence, ALPHA),
            "evaluations": {"net": 110},
        }
        | changes
    )


def make(folder, rows, status="complete", ids=(0, 1, 2)):
    folder.mkdir(exist_ok=True)
    header = {
        "schema": 1,
        "status": status,
        "identity": "x",
        "data": {"ids": list(ids)},
        "code": {"dirty": False},
        "engine": {"certifier": "gaussian", "version": 1, "sigma": SIGMA, "n0": N0, "n": N, "alpha": ALPHA},
    }
    record.write_header(folder, header)
    writer = Writer(folder)
    for one in rows:
        writer.write(one)
    writer.close()
    header["evidence_sha256"] = record.evidence_sha256(record.read(folder))
    record.write_header(folder, header)
    return folder, writer.path


def test_round_trip(tmp_path):
    rows = [row(0), row("n01", hits=40), Row(2, 5, None, None, 0.2, {}, "3 of 110 draws gave non-finite logits")]
    folder, _ = make(tmp_path / "run", rows, ids=(0, "n01", 2))
    run = record.read(folder)
    assert list(run.ordered()) == rows
    assert run.complete and run.problems == () and run.marks == []
    assert [one.correct for one in rows] == [True, False, False]
    assert rows[1].radius == 0.0 and rows[2].radius == 0.0
    assert verify.problems(run) == []


def test_line_checks():
    line = encode({"a": 1.5, "b": "\u2028 é \n"})
    assert decode(line) == {"a": 1.5, "b": "\u2028 é \n"}
    assert line.count(b"\n") == 1
    for cut in range(len(line)):
        with pytest.raises(ValueError):
            decode(line[:cut])
    with pytest.raises(ValueError):
        encode({"a": float("nan")})


def test_truncation_at_every_byte_of_the_last_line(tmp_path):
    folder, path = make(tmp_path / "run", [row(0), row(1), row(2)])
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        run = record.read(folder)
        assert set(run.rows) == {0, 1} and not run.complete
        assert len(run.problems) == (cut > last)
        assert all("torn last line" in problem for problem in run.problems)


def test_every_flipped_byte_is_found(tmp_path):
    folder, path = make(tmp_path / "run", [row(0), row(1), row(2)])
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify.problems(record.read(folder)), f"byte {at}"


def rewrite(path, change):
    """Change a row and give it a fitting checksum, as a forger would."""
    lines = path.read_bytes().splitlines(keepends=True)
    payload = decode(lines[1])
    change(payload)
    path.write_bytes(b"".join([lines[0], encode(payload), *lines[2:]]))


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda p: p["certificate"].update(radius=p["certificate"]["radius"] + 1e-6), "stored certificate"),
        (lambda p: p["certificate"].update(prediction=3), "stored certificate"),
        (lambda p: p["evidence"]["stages"][0]["votes"].update({"1": 96}), "never scaled"),
        (lambda p: p["evidence"]["stages"][0].update(votes={"1": 950, "0": 50}, n=1000), "evidence of other draws"),
        (lambda p: p.update(label=7), "evidence differs from what the run recorded"),
        (lambda p: p.update(id=99), "not in the subset"),
        (lambda p: p.update(schema=2), "row of schema 2"),
        (lambda p: p.pop("evidence"), "damaged line"),
        (lambda p: p["evidence"]["stages"][0].update(votes=[]), "damaged line"),
        (lambda p: p.update(id=[1]), "damaged line"),
        (lambda p: p.update(evidence=None, certificate=None), "neither evidence nor an error"),
    ],
)
def test_forged_rows_are_found(tmp_path, change, found):
    folder, path = make(tmp_path / "run", [row(0), row(1), row(2)])
    rewrite(path, change)
    assert any(found in problem for problem in verify.problems(record.read(folder)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda h: h["engine"].pop("n"), "run.json: engine has no 'n', expected a whole number >= 0"),
        (lambda h: h["engine"].update(sigma="x"), "run.json: engine: 'sigma' is 'x', expected a number"),
        (lambda h: h["engine"].update(alpha=None), "run.json: engine: 'alpha' is None, expected a number"),
        (lambda h: h["engine"].update(version=[]), "run.json: engine: 'version' is [], expected a whole number >= 0"),
        (lambda h: h["engine"].update(block=-1), "run.json: engine: 'block' is -1, expected a whole number >= 0"),
        (lambda h: h["engine"].update(options=[]), "run.json: engine: 'options' is [], expected a mapping"),
        (lambda h: h["engine"].update(options={"a": 1}), "cannot be checked, run.json, config.yaml or rows are not"),
        (lambda h: h["engine"].update(mode="hybrid"), "KeyError: 'options'"),
        (lambda h: h["data"].update(ids="012"), "run.json: data: 'ids' is '012', expected a list"),
        (lambda h: h["data"].update(ids=[[0]]), "run.json: ids of data are whole numbers or texts, got [0]"),
        (lambda h: h["data"].update(ids_sha256="0"), "run.json: ids of data are not those of its ids_sha256"),
        (lambda h: h.update(data=None), "run.json: 'data' is None, expected a mapping"),
        (lambda h: h.update(log={}), "run.json: log has no 'oddities', expected a list"),
        (lambda h: h.update(task="attack"), "run.json: data has no 'sha256', expected a text"),
        (lambda h: h.update(task=[]), "run.json: task is [], expected certify or attack"),
    ],
)
def test_headers_of_another_shape_are_explained(tmp_path, capsys, change, found):
    folder, _ = make(tmp_path / "bad", [row(0), row(1), row(2)])
    make(tmp_path / "good", [row(0), row(1), row(2)])
    header = record.read_header(folder)
    change(header)
    record.write_header(folder, header)
    assert main(["verify", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert found in shown and f"FAILED  {folder}" in shown and f"ok      {tmp_path / 'good'}" in shown


def edited(header):
    """The header without each of its keys, and with each replaced by what it should not be."""
    for key, value in header.items():
        for new in (None, "x", -1, [], {}, [[]]):
            yield header | {key: new}
        yield {other: kept for other, kept in header.items() if other != key}
        if isinstance(value, dict):
            yield from (header | {key: below} for below in edited(value))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of arithmetic with what is no budget
@pytest.mark.parametrize("kind", ["fixed", "hybrid", "cascade", "attack"])
def test_no_edit_of_a_header_ends_in_a_traceback(tmp_path, kind):
    make_one = {
        "fixed": lambda folder: make_run(folder, [990, 900, None]),
        "hybrid": lambda folder: adaptive_run(folder, [(0, 100)] * 7 + [(440, 800)] * 2, tolerance=0.25),
        "cascade": lambda folder: make_cascade(folder, [[990], [400, 900], None]),
        "attack": lambda folder: make_attack(folder, [3, 10]),
    }
    run = make_one[kind](tmp_path / kind)
    refused = 0
    for header in edited(run.header):
        record.write_header(run.folder, header)
        try:
            verify.problems(record.read(run.folder))
        except DrbenchError:
            refused += 1
    assert refused > 50


def test_missing_image_is_found(tmp_path):
    folder, path = make(tmp_path / "run", [row(0), row(1), row(2)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert any("1 of 3 images are missing, first: 1" in problem for problem in verify.problems(record.read(folder)))


def test_duplicates(tmp_path):
    folder, _ = make(tmp_path / "run", [row(0), row(1), row(2)])
    writer = Writer(folder)
    writer.write(row(1, seconds=9.0))
    writer.write(row(2, hits=96))
    writer.close()
    run = record.read(folder)
    assert run.rows[2] == row(2) and run.rows[1].seconds == 0.1
    assert [problem for problem in run.problems if "image 2: two rows with different evidence" in problem]
    assert len(run.problems) == 1


def test_marks(tmp_path):
    folder, _ = make(tmp_path / "run", [row(0)], status="partial")
    assert record.read(folder).marks == ["partial"]
    header = json.loads((folder / "run.json").read_text())
    record.write_header(folder, header | {"code": {"dirty": True}})
    assert record.read(folder).marks == ["partial", "dirty"]


def test_unreadable_folders(tmp_path):
    with pytest.raises(DrbenchError, match="no such folder"):
        record.find([tmp_path / "nothing"])
    with pytest.raises(DrbenchError, match="no run folders at or below"):
        record.find([tmp_path])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DrbenchError, match=r"expected a run folder with a readable run\.json"):
        record.read(tmp_path)


def test_evidence_hash_ignores_seconds_and_order(tmp_path):
    a, _ = make(tmp_path / "a", [row(0), row(1), row(2)])
    b, _ = make(tmp_path / "b", [row(2, seconds=5.0), row(0), row(1)])
    c, _ = make(tmp_path / "c", [row(0), row(1), row(2, hits=96)])
    hashes = [record.evidence_sha256(record.read(folder)) for folder in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    folder, _ = make(tmp_path / "run", [row(0), row(1)], status="partial")
    writer, real = Writer(folder), os.write
    monkeypatch.setattr("drbench.records.record.os.write", lambda file, line: real(file, line[:40]))
    with pytest.raises(DrbenchError, match=r"disk full after 40 of \d+ bytes .* already written are safe"):
        writer.write(row(2))

    def refuse(file, line):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("drbench.records.record.os.write", refuse)
    with pytest.raises(DrbenchError, match="No space left on device; rows already written are safe"):
        Writer(folder).write(row(2))
    found = record.read(folder)
    assert set(found.rows) == {0, 1} and all("torn last line" in problem for problem in found.problems)
