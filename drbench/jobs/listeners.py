"""Listeners: where runs and trainings tell how they go. TensorBoard, Weights & Biases and MLflow; none is needed.

A listener of another package is a class with the methods of `Listener`, registered in the entry-point group
`drbench.listeners`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

from drbench.errors import DrbenchError, did_you_mean

GROUP = "drbench.listeners"
FOLDER = Path(".drbench")  # where the listeners that write files put them


class Listener(Protocol):
    """Constructed as `Listener(title, config)`: a name for people, and the resolved config."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Some numbers at a step: an image of a run, or a step of a training."""

    def close(self, status: str) -> None:
        """The end: "complete", "partial" or "failed"."""


class TensorBoard:
    """`pip install tensorboard`; then `tensorboard --logdir .drbench/tensorboard`."""

    def __init__(self, title: str, config: Mapping):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(FOLDER / "tensorboard" / title.replace("/", "_")))
        self._writer.add_text("config", str(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class WandB:
    """`pip install wandb`; WANDB_MODE=offline works too."""

    def __init__(self, title: str, config: Mapping):
        import wandb

        self._run = wandb.init(project="drbench", name=title, config=dict(config), dir=str(FOLDER))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))


class MLflow:
    """`pip install mlflow`; MLFLOW_TRACKING_URI says where."""

    def __init__(self, title: str, config: Mapping):
        import mlflow

        self._mlflow, self._run = mlflow, mlflow.start_run(run_name=title)
        mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, status: str) -> None:
        self._mlflow.set_tag("status", status)
        self._mlflow.end_run("FAILED" if status == "failed" else "FINISHED")


LISTENERS = {
    "tensorboard": "drbench.jobs.listeners:TensorBoard",
    "wandb": "drbench.jobs.listeners:WandB",
    "mlflow": "drbench.jobs.listeners:MLflow",
}


class Audience:
    """The listeners of one run or training. One that fails is told once, and then left alone: it is not the work."""

    def __init__(self, names: Sequence[str], title: str, config: Mapping):
        self._listeners = {name: _find(name)(title, config) for name in names}

    def log(self, step: int, **values: float) -> None:
        self._tell("log", step, values)

    def close(self, status: str) -> None:
        self._tell("close", status)

    def _tell(self, method: str, *args) -> None:
        for name, listener in list(self._listeners.items()):
            try:
                getattr(listener, method)(*args)
            except Exception as error:  # a full disk or a lost connection of theirs must not end a run of days
                print(f"drbench: listener {name} failed and is left out: {error}", file=sys.stderr)
                del self._listeners[name]


def _find(name: str) -> type[Listener]:
    known = {**{entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}, **LISTENERS}
    if name not in known:
        raise DrbenchError(f"unknown listener {name!r}{did_you_mean(name, known)}")

    def make(title: str, config: Mapping) -> Listener:
        try:
            return resolve_name(known[name])(title, config)
        except Exception as error:  # not installed, no login, or its own trouble
            raise DrbenchError(f"listener {name!r} does not start: {error}; leave it out of run.listeners") from error

    return make
