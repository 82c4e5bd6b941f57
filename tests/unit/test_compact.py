"""A run as a Parquet file: the same rows, with the hashes of the files that it was made of."""

import hashlib
import json

import pytest
from pyarrow import parquet

from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.evidence import Evidence
from drbench.records import compact
from tests.runs import make_run


def test_the_same_rows(tmp_path, capsys):
    run = make_run(tmp_path / "a", [990, 400, None, 1000])
    assert main(["compact", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "rows.parquet")
    table = parquet.read_table(tmp_path / "a" / "rows.parquet")
    for got, row in zip(table.to_pylist(), run.ordered(), strict=True):
        assert (got["id"], got["label"], got["correct"], got["radius"]) == (str(row.id), 1, row.correct, row.radius)
        assert got["error"] == row.error and (got["evidence"] is None) == (row.evidence is None)
        if row.evidence:
            assert Evidence.from_json(json.loads(got["evidence"])) == row.evidence
            assert got["prediction"] == row.certificate.prediction
    about = json.loads(table.schema.metadata[b"drbench"])
    assert about["header"] == run.header
    (path,) = run.folder.glob("rows-*.jsonl")
    assert about["sources"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_damage_is_not_compacted(tmp_path):
    run = make_run(tmp_path / "a", [990, 400])
    (path,) = run.folder.glob("rows-*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"990", b"991"))
    from drbench.records import record

    with pytest.raises(DrbenchError, match="damaged line"):
        compact.write(record.read(run.folder))
    assert not (run.folder / "rows.parquet").exists()
