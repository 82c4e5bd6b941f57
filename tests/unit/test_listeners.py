"""Listeners hear of runs and trainings, and cannot harm them."""

import sys

import pytest

from drbench import config
from drbench.errors import DrbenchError
from drbench.jobs import listeners, runner
from drbench.jobs.listeners import Audience
from drbench.records import record

HEARD: list = []


class Ear:
    def __init__(self, title, config):
        HEARD.append(("begin", title, config["defense"]["name"]))

    def log(self, step, values):
        HEARD.append((step, values))

    def close(self, status):
        HEARD.append(("end", status))


class Deaf(Ear):
    def log(self, step, values):
        raise OSError("connection lost")


@pytest.fixture(autouse=True)
def ears(monkeypatch):
    HEARD.clear()
    names = {"ear": f"{__name__}:Ear", "deaf": f"{__name__}:Deaf", "absent": "no_such_module:Ear"}
    monkeypatch.setattr(listeners, "LISTENERS", names)


def run(tmp_path, *names, limit=None):
    file = tmp_path / "constant.yaml"
    file.write_text("{defense: {name: constant}, certify: {n: 100}, data: {subset: first5}}")
    (folder,) = runner.run(config.load(file, [f"run.listeners=[{','.join(names)}]"]), tmp_path, limit)
    return record.read(folder)


def test_a_run_is_heard(tmp_path):
    found = run(tmp_path, "ear", limit=3)
    begin, *steps, end = HEARD
    assert begin == ("begin", "constant sigma 0.5", "constant") and end == ("end", "partial")
    assert [step for step, _ in steps] == [1, 2, 3]
    accuracy = sum(row.correct for row in found.rows.values()) / 3
    assert steps[-1][1]["certified_accuracy"] == accuracy and steps[0][1]["seconds"] > 0
    HEARD.clear()
    run(tmp_path, "ear")
    assert [step for step, _ in HEARD[1:-1]] == [4, 5] and HEARD[-1] == ("end", "complete")


def test_a_broken_listener_is_left_out(tmp_path, capsys):
    assert run(tmp_path, "deaf", "ear").complete
    assert capsys.readouterr().err.count("listener deaf failed and is left out: connection lost") == 1
    assert len(HEARD) == 2 + 5 + 1  # the other one hears all


def test_bad_names_are_explained(tmp_path):
    with pytest.raises(DrbenchError, match="unknown listener 'eer'; did you mean 'ear'"):
        run(tmp_path, "eer")
    with pytest.raises(DrbenchError, match="listener 'absent' does not start: No module named 'no_such_module'"):
        run(tmp_path, "absent")


def test_tensorboard(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    audience = Audience(["tensorboard"], "train a/b", {"x": 1})
    for step in range(3):
        audience.log(step, loss=step / 2)
    audience.close("complete")
    events = accumulator.EventAccumulator(str(tmp_path / ".drbench" / "tensorboard" / "train a_b"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_listeners_are_not_loaded_without_need():
    assert not {"wandb", "mlflow"} & set(sys.modules)
