"""Checks of a run folder against itself: every certificate is recomputed from its evidence. No torch."""

from __future__ import annotations

import math

from drbench import verify_attack
from drbench.errors import DrbenchError
from drbench.record import Run, evidence_sha256
from drbench.stats import VERSIONS, decide_as, levels
from drbench.stopping import checkpoints


def problems(run: Run) -> list[str]:
    """Everything that is wrong with a run: damaged or missing rows, certificates that evidence does not give."""
    if run.task == "attack":
        return verify_attack.problems(run)
    engine, found = run.header["engine"], [p for p in run.problems if "torn last line" not in p]
    if engine["version"] != VERSIONS.get(engine["certifier"]):
        found.append(
            f"made by certifier {engine['certifier']} version {engine['version']}, this is "
            f"version {VERSIONS.get(engine['certifier'])}"
        )
    for image_id in run.rows.keys() - set(run.wanted):
        found.append(f"image {image_id}: not in the subset of this run")
    for row in run.ordered():
        if engine["certifier"] == "imported":
            continue  # nothing to recompute; the lines carry checksums
        if row.evidence is None:
            found += [] if row.error else [f"image {row.id}: neither evidence nor an error"]
            continue
        drawn = [(stage.sigma, stage.n0, stage.n) for stage in row.evidence.stages]
        wanted = [(sigma, engine["n0"], engine["n"]) for sigma in levels(engine)]
        if (
            engine.get("mode", "fixed") != "fixed"
            and drawn
            and drawn[0][2] in checkpoints(engine["n"], engine["block"])
        ):
            wanted = [(*wanted[0][:2], drawn[0][2])]
        if not drawn or drawn != wanted[: len(drawn)]:
            found.append(f"image {row.id}: evidence of other draws than the run's: {drawn}")
            continue
        try:
            again = decide_as(engine, row.evidence)
        except DrbenchError as error:
            found.append(f"image {row.id}: {error}")
            continue
        if len(again.detail.get("p_hat", drawn)) < len(drawn):
            found.append(f"image {row.id}: draws at {len(drawn)} scales, although the cascade stops before")
        stored = row.certificate
        if stored is None or stored.prediction != again.prediction or not _close(stored.radius, again.radius):
            found.append(
                f"image {row.id}: stored certificate {stored and (stored.prediction, stored.radius)} differs from "
                f"{(again.prediction, again.radius)}, recomputed from the evidence"
            )
    missing = [image_id for image_id in run.wanted if image_id not in run.rows]
    if missing and run.header["status"] == "complete":
        found.append(f"{len(missing)} of {len(run.wanted)} images are missing, first: {missing[0]}")
    expected = run.header.get("evidence_sha256")
    if expected and expected != evidence_sha256(run):
        found.append("evidence differs from what the run recorded when it ended (evidence_sha256)")
    return found


def _close(a: float, b: float) -> bool:
    """Equal up to what another version of a special-function library may change."""
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
