"""Rows and run folders: torn and damaged lines, duplicates, verification."""

import errno
import json
import os

import pytest

from drbench.errors import DrbenchError
from drbench.evidence import Evidence, Stage
from drbench.records import record, verify
from drbench.records.record import Row, Writer, decode, encode
from drbench.stats import decide

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
        (lambda p: p.update(evidence=None, certificate=None), "neither evidence nor an error"),
    ],
)
def test_forged_rows_are_found(tmp_path, change, found):
    folder, path = make(tmp_path / "run", [row(0), row(1), row(2)])
    rewrite(path, change)
    assert any(found in problem for problem in verify.problems(record.read(folder)))


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
