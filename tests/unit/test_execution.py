"""Precision, compilation and CUDA graphs as options of a run, on the CPU."""

import json

import pytest
import torch

import drbench
from drbench import config
from drbench.errors import DrbenchError
from drbench.jobs import execution, runner
from drbench.records import record
from drbench.tables import certified_tables, summary

SMALL = ["certify.sigma=0.5", "certify.n=300", "data.subset=first12", "run.batch_rows=128"]
UNDEFENDED = "benchmarks/digits/undefended.yaml"


def load():
    images = drbench.load_data("digits", subset="first12")
    return images, drbench.load_defense("undefended", images, "digits/classifier")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_changes_logits_a_little_and_few_votes(precision):
    images, defense = load()
    z = images.x.repeat(20, 1, 1, 1) + 0.5 * drbench.Draws.seeded(0, 240).randn(240, 1, 8, 8)
    with torch.inference_mode():
        plain = defense.logits(z, 0.5, None)
        execution.reduce_precision(defense, precision)
        reduced = defense.logits(z, 0.5, None)
    assert reduced.dtype == torch.float32 and 0 < (plain - reduced).abs().max() < 2
    found = execution.vote_flips(defense, images.x, 0.5, 128)
    assert found["rows"] == 1280 and 0 <= found["flipped"] < 64
    # an upside-down classifier flips every vote
    defense.logits = lambda z, sigma, draws: -type(defense).logits(defense, z, sigma, draws)
    assert execution.vote_flips(defense, images.x, 0.5, 128)["flipped"] > 1000


def test_flips_are_stored_flagged_and_part_of_the_identity(tmp_path):
    (plain,), (reduced,) = (config.load(UNDEFENDED, [*SMALL, f"run.precision={p}"]) for p in ("float32", "bfloat16"))
    assert config.identity(plain, []) != config.identity(reduced, [])
    (folder,) = runner.run([reduced], tmp_path)
    about = json.loads((folder / "run.json").read_text())
    environment = about["sessions"][-1]["environment"]
    assert environment["precision"] == "bfloat16" and environment["vote_flips"]["rows"] == 1280
    assert about["flags"] == [f"reduced precision: bfloat16, {environment['vote_flips']['flipped']} of 1280 "
                              "sampled votes differ from float32"]  # fmt: skip
    text = certified_tables.render_markdown(summary.frame([record.read(folder)]))
    assert "≈" in text and "a classifier of its own" in text


def test_cuda_graphs_are_refused_on_the_cpu(tmp_path):
    (cell,) = config.load(UNDEFENDED, [*SMALL, "run.compile=true", "run.cuda_graphs=true", "run.device=cpu"])
    with pytest.raises(DrbenchError, match=r"run\.cuda_graphs needs a CUDA device, this run is on cpu"):
        runner.run([cell], tmp_path)
    with pytest.raises(DrbenchError, match=r"run\.cuda_graphs needs run\.compile"):
        config.load(UNDEFENDED, ["run.cuda_graphs=true"])


def test_calls_in_one_thread_are_copied():
    """What CUDA graphs need: one thread makes all calls, and its buffer may be used again."""
    buffer = torch.zeros(2)
    call = execution._in_one_thread(lambda value: buffer.fill_(value))
    assert [call(1.0).sum().item(), call(2.0).sum().item()] == [2.0, 4.0]
    first = call(3.0)
    call(4.0)
    assert first.tolist() == [3.0, 3.0] and first.is_inference()


@pytest.mark.slow
def test_compiled_networks_vote_the_same_and_are_counted(tmp_path):
    (plain,), (compiled,) = (config.load(UNDEFENDED, [*SMALL, f"run.compile={x}"]) for x in ("false", "true"))
    assert config.identity(plain, []) == config.identity(compiled, [])
    runs = [record.read(runner.run([cell], tmp_path / name)[0]) for cell, name in ((plain, "a"), (compiled, "b"))]
    votes = [{i: row.evidence.stages[0].votes for i, row in run.rows.items()} for run in runs]
    moved = sum(abs(votes[0][i].get(c, 0) - votes[1][i].get(c, 0)) for i in votes[0] for c in range(10))
    assert moved <= 4  # rounding ties
    assert runs[1].header["sessions"][0]["environment"]["compiled"] is True
    assert runs[0].header["cost"]["network_evaluations"] == runs[1].header["cost"]["network_evaluations"]
