"""Attack jobs of benchmark files: what their header says, their rows and examples. Used by `drbench.jobs.runner`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from drbench import cost as costs
from drbench import norms, weights
from drbench.api import Defense, DrbenchError
from drbench.attacks import presets, suite
from drbench.attacks.cascade import Cascade
from drbench.attacks.evaluate import Decision
from drbench.attacks.oracle import ROWS
from drbench.attacks.parallel import in_parts
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.data import Images
from drbench.jobs import audit_job, build
from drbench.progress import Progress
from drbench.records import examples, record, settings
from drbench.records.record import Row
from drbench.stats.robustness import robustness

__all__ = ["batch_rows", "check", "cost", "engine", "finish", "job", "observe", "plan", "rerun", "source_weights"]


def check(cell: DictConfig) -> None:
    """Mistakes in a config that can be found before anything is built."""
    plan(cell, deterministic=False) if cell.attack.attacks else None
    if cell.run.precision != "float32":
        raise DrbenchError(f"attacks are judged in float32, got run.precision={cell.run.precision}")
    if not cell.attack.cascade:
        Decision(cell.attack.decision, cell.attack.decision_draws)


def plan(cell: DictConfig, **traits: bool) -> list[presets.Member]:
    """The attacks of a config on a defense of these traits (see `suite.traits`), checked."""
    spec = cell.attack
    members = (
        presets.preset(spec.preset, spec.norm, cascade=len(spec.cascade or []), **traits)
        if spec.attacks is None
        else [presets.member(**each) for each in OmegaConf.to_container(spec.attacks)]
    )
    names = list(spec.sources or {})
    members += presets.transfer(spec.preset, spec.norm, names) if spec.attacks is None else []
    for each in members:
        suite.check(each, spec.norm, names)
    labels = Counter(each.label for each in members)
    if twice := [label for label, count in labels.items() if count > 1]:
        raise DrbenchError(f"expected attacks that differ, got {twice[0]!r} twice: it would repeat the same draws")
    return members


def source_weights(cell: DictConfig) -> dict[str, list[weights.Weights]]:
    """Weights of the other defenses that a config names."""
    sources = (cell.attack.sources or {}).items()
    return {name: [weights.resolve(each) for each in spec.get("checkpoint", [])] for name, spec in sources}


def batch_rows(cell: DictConfig) -> int:
    """Rows of a network call."""
    return ROWS if cell.run.batch_rows == "auto" else cell.run.batch_rows


def job(cell: DictConfig, defense: Defense, images: Images | None = None) -> Suite:
    """The attack job of a config; without `images` it lacks the other defenses, and cannot be run."""
    spec, decision, rows = cell.attack, None, batch_rows(cell)
    if spec.cascade:
        defense, decision = Cascade(defense, list(spec.cascade), spec.decision_draws, rows=rows), Decision()
    members = plan(cell, **suite.traits(defense, spec.sigma))
    sources = {
        name: build.defense(DictConfig({"args": {}, **cell.attack.sources[name]}), images, found, cell.run.seed)
        for name, found in (source_weights(cell) if images else {}).items()
    }
    sources = {name: source.to(defense.device) for name, source in sources.items()}
    return Suite(
        defense, threat(spec.norm, norms.number(spec.eps)), members, spec.sigma,
        decision or Decision(spec.decision, spec.decision_draws), spec.evaluations, spec.select, cell.run.seed, rows,
        sources,
    )  # fmt: skip


def engine(cell: DictConfig, defense: Defense) -> dict:
    """The protocol of an attack run, as its header has it."""
    made, others = job(cell, defense), source_weights(cell)
    return {
        **settings.attack(cell, defense.randomized),
        "attacks": {each.label: {"attack": each.attack, "view": each.view, **each.settings} for each in made.members},
    } | ({"sources": {name: [each.sha256 for each in found] for name, found in others.items()}} if others else {})


def rerun(run: record.Run, cell: DictConfig, defense: Defense) -> list[str]:
    """Ask the defense again, about the stored examples and clean images, on the draws of the final evaluation."""
    stored, rows, made = examples.read(run.folder), [row for row in run.ordered() if row.evidence], job(cell, defense)
    ids, found = [row.id for row in rows], []
    x, kept = (torch.from_numpy(np.stack([stored[i][place] for i in ids])) for place in (1, 2))
    for name, images in (("clean", x), ("adversarial", made.threat.image(kept, x))):
        again = made.answers(images, ids)
        found += [
            f"image {row.id}: other answers to the {name} image than recorded: {new.votes}, not {old.votes}"
            for row, new in zip(rows, again, strict=True)
            if new != (old := getattr(row.evidence, name))
        ]
    return found


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
    cell: DictConfig, folder: Path, images: Images, todo: list[int], defense: Defense, done: dict, about: dict
) -> None:
    """Attack the images, a part at a time: examples first, then the rows that name them."""
    made, writer, rows = job(cell, defense, images), record.Writer(folder), list(done.values())
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
    audit_job.add(cell, folder, images, made, about)


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
