"""Attack jobs of benchmark files: what their header says, their rows and examples. Used by `drbench.runner`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from drbench import cost as costs
from drbench import examples, norms, record
from drbench.api import Defense, DrbenchError
from drbench.attacks import presets, suite
from drbench.attacks.evaluate import Decision
from drbench.attacks.oracle import ROWS
from drbench.attacks.parallel import in_parts
from drbench.attacks.suite import Suite
from drbench.attacks.threat import Threat
from drbench.data import Images
from drbench.progress import Progress
from drbench.record import Row
from drbench.robustness import VERSION, robustness

__all__ = ["ROWS", "check", "cost", "engine", "finish", "observe", "plan"]


def check(cell: DictConfig) -> None:
    """Mistakes in a config that can be found before anything is built."""
    plan(cell, deterministic=False) if cell.attack.attacks else None
    Decision(cell.attack.decision, cell.attack.decision_draws)


def plan(cell: DictConfig, deterministic: bool) -> list[presets.Member]:
    """The attacks of a config, checked."""
    spec = cell.attack
    members = (
        presets.preset(spec.preset, spec.norm, deterministic)
        if spec.attacks is None
        else [presets.member(**each) for each in OmegaConf.to_container(spec.attacks)]
    )
    for each in members:
        suite.check(each)
    labels = Counter(each.label for each in members)
    if twice := [label for label, count in labels.items() if count > 1]:
        raise DrbenchError(f"expected attacks that differ, got {twice[0]!r} twice: it would repeat the same draws")
    return members


def job(cell: DictConfig, defense: Defense, rows: int = ROWS) -> Suite:
    """The attack job of a config."""
    spec, deterministic = cell.attack, cell.attack.sigma == 0 and not defense.randomized
    return Suite(
        defense, Threat(spec.norm, norms.number(spec.eps)), plan(cell, deterministic), spec.sigma,
        Decision(spec.decision, spec.decision_draws), spec.evaluations, spec.select, cell.run.seed, rows,
    )  # fmt: skip


def engine(cell: DictConfig, defense: Defense) -> dict:
    """The protocol of an attack run, as its header has it."""
    spec, made = cell.attack, job(cell, defense)
    return {
        "version": VERSION,
        "norm": spec.norm,
        "eps": made.threat.eps,
        "eps_text": str(spec.eps),
        "preset": spec.preset if spec.attacks is None else "own",
        "attacks": {each.label: {"attack": each.attack, "view": each.view, **each.settings} for each in made.members},
        "sigma": spec.sigma,
        "deterministic": made.deterministic,
        "decision": "single" if made.deterministic else spec.decision,
        "decision_draws": 1 if made.deterministic else spec.decision_draws,
        "evaluations": 1 if made.deterministic else spec.evaluations,
        "select": 1 if made.deterministic else spec.select,
        "worst_of": spec.worst_of,
        "seed": cell.run.seed,
    }


def cost(header: dict, rows: list[Row]) -> dict:
    """What the rows of an attack run took."""
    tried = [each for row in rows if row.evidence for each in row.evidence.tried]
    seconds = sum(row.seconds for row in rows)
    gradients, images = sum(each.gradients for each in tried), max(1, len(rows))
    evaluations = dict(sum((Counter(row.evaluations) for row in rows), Counter()))
    return {
        "images": len(rows),
        "seconds": seconds,
        "gradients_per_image": gradients / images,
        "forwards_per_image": sum(each.forwards for each in tried) / images,
        "gradients_per_second": gradients / seconds if seconds else 0.0,
        "network_evaluations": evaluations,
        "evaluations_per_image": sum(evaluations.values()) / images,
    }


def observe(
    cell: DictConfig, folder: Path, images: Images, todo: list[int], defense: Defense, batch_rows: int, done: dict,
    about: dict,
) -> None:  # fmt: skip
    """Attack the images, a part at a time: examples first, then the rows that name them."""
    made, writer, rows = job(cell, defense, batch_rows), record.Writer(folder), list(done.values())
    title = f"{cell.defense.name} {cell.attack.norm} {cell.attack.eps}"
    with costs.Evaluations(defense) as evaluations, Progress(title, len(todo) + len(rows), "images", len(rows)) as bar:
        last, counted = time.perf_counter(), dict(evaluations.counts)
        try:
            for part, found in in_parts(made, images.x, images.y, images.ids, todo):
                x = images.x[part].numpy()
                x_adv = np.stack([each.example.numpy() for each in found])
                ids, labels = [images.ids[i] for i in part], images.y[part].tolist()
                examples.write_part(folder, ids, labels, x, x_adv)
                now, counts = time.perf_counter(), dict(evaluations.counts)
                for name, label, each in zip(ids, labels, found, strict=True):
                    spent = {key: counts[key] - counted[key] for key in counts}  # of the part, with its first row
                    row = Row(name, label, each.evidence, None, now - last, spent)
                    last, counted = now, counts
                    writer.write(row)
                    rows.append(row)
                    bar.advance(lambda: note(rows))
        finally:
            writer.close()
            about["notes"] = dict(Counter(about.get("notes", {})) + made.notes)


def note(rows: list[Row]) -> str:
    """Running result, e.g. "average 0.970 clean, 0.310 robust"."""
    labels = [row.label for row in rows]
    clean, robust = (robustness([getattr(row.evidence, name) for row in rows], labels, 1).average.value
                     for name in ("clean", "adversarial"))  # fmt: skip
    return f"average {clean:.3f} clean, {robust:.3f} robust"


def finish(folder: Path) -> None:
    """Join the examples of a run that attacked something."""
    run = record.read(folder)
    if run.task == "attack":
        examples.join(run)
