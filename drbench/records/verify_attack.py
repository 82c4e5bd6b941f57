"""Checks of an attack run against itself: feasibility and hashes of the stored examples, counts. No torch."""

from __future__ import annotations

import hashlib

import numpy as np

from drbench import norms
from drbench.errors import DrbenchError
from drbench.records import examples
from drbench.records.record import Row, Run, evidence_sha256
from drbench.stats.robustness import VERSION


def problems(run: Run) -> list[str]:
    """Everything that is wrong with an attack run.

    Distances are computed anew in float64 from the stored examples and clean images, and the clean images of a complete
    run are compared with the hash of its data. What the defense answers can only be checked by running it.
    """
    engine, found = run.header["engine"], [p for p in run.problems if "torn last line" not in p]
    if engine["version"] != VERSION:
        found.append(f"made by attack engine version {engine['version']}, this is version {VERSION}")
    found += [f"image {name}: not in the subset of this run" for name in run.rows.keys() - set(run.wanted)]
    try:
        stored = examples.read(run.folder)
    except DrbenchError as error:
        return [*found, str(error)]
    for row in run.ordered():
        if row.evidence is None:
            found += [] if row.error else [f"image {row.id}: neither evidence nor an error"]
        elif row.id not in stored:
            found.append(f"image {row.id}: its adversarial example is not stored")
        else:
            found += [f"image {row.id}: {text}" for text in (*_counts(row, engine), *_example(row, engine, stored))]
    missing = [name for name in run.wanted if name not in run.rows]
    if missing and run.header["status"] == "complete":
        found.append(f"{len(missing)} of {len(run.wanted)} images are missing, first: {missing[0]}")
    if run.header.get("evidence_sha256") not in (None, evidence_sha256(run)):
        found.append("answers differ from what the run recorded when it ended (evidence_sha256)")
    if not missing and all(name in stored for name in run.wanted) and _data_hash(run, stored) != _stated_hash(run):
        found.append("the stored clean images are not those of the run's data set")
    return found


def _counts(row: Row, engine: dict) -> list[str]:
    """What is odd about the recorded numbers."""
    seen, n = row.evidence, engine["evaluations"]
    found = [
        f"{answers.count} answers to the {name} image, the run makes {n}"
        for name, answers in (("clean", seen.clean), ("adversarial", seen.adversarial))
        if answers.count != n or not answers.votes.get(answers.first)
    ]
    labels = [each.attack for each in seen.tried]
    known = [name for name in engine["attacks"] if name in labels]
    if labels != known:
        found.append(f"attacks {labels} are not those of the run, in its order")
    if seen.kept and seen.kept not in labels:
        found.append(f"its example is said to come from {seen.kept!r}, which was not run")
    if any(not 0 <= each.failures <= engine["select"] or min(each.gradients, each.forwards) < 0 for each in seen.tried):
        found.append(f"failures outside 0..{engine['select']}, or negative costs")
    return found


def _example(row: Row, engine: dict, stored: dict) -> list[str]:
    """What is wrong with the stored example."""
    label, x, x_adv = stored[row.id]
    if norms.digest(x_adv) != row.evidence.example or label != row.label:
        return ["the stored example or label is not the recorded one"]
    far = float(norms.distance(engine["norm"], x_adv[None], x[None])[0])
    found = []
    if not norms.feasible(engine["norm"], engine["eps"], x_adv[None], x[None])[0]:
        found.append(f"its example is not allowed: distance {far:.9g}, eps = {engine['eps']:.9g}, or outside [0, 1]")
    if not np.isclose(far, row.evidence.distance, rtol=1e-9, atol=1e-12):
        found.append(f"recorded distance {row.evidence.distance!r}, recomputed {far!r}")
    still = np.zeros_like(x_adv) if engine["norm"] == norms.FLOW else x
    if not row.evidence.kept and not np.array_equal(x_adv, still):
        found.append("no attack is named for an example that differs from the clean image")
    return found


def _data_hash(run: Run, stored: dict) -> str:
    """As `drbench.data.Images.sha256`."""
    labels, x = [stored[name][0] for name in run.wanted], np.stack([stored[name][1] for name in run.wanted])
    digest = hashlib.sha256(repr((tuple(run.wanted), labels, x.shape[1:])).encode())
    digest.update(np.ascontiguousarray(x, np.float32).tobytes())
    return digest.hexdigest()


def _stated_hash(run: Run) -> str:
    return run.header["data"]["sha256"]
