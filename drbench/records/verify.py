"""Checks of a run folder against itself: every certificate is recomputed from its evidence. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from drbench.errors import DrbenchError
from drbench.records import verify_attack
from drbench.records.record import Row, Run, evidence_sha256
from drbench.stats import VERSIONS, decide_as, levels, top_class
from drbench.stats.stopping import Rule, Table, rule


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
    if engine["certifier"] != "imported":  # of a log nothing can be recomputed; the lines carry checksums
        stop = _rule(engine) if engine.get("mode", "fixed") != "fixed" else None
        for row in run.ordered():
            if row.evidence is None:
                found += [] if row.error else [f"image {row.id}: neither evidence nor an error"]
            else:
                found += [f"image {row.id}: {problem}" for problem in _of_row(engine, row, stop)]
        found += _stops(engine, list(run.ordered()), len(run.wanted), stop) if stop else []
    missing = [image_id for image_id in run.wanted if image_id not in run.rows]
    if missing and run.header["status"] == "complete":
        found.append(f"{len(missing)} of {len(run.wanted)} images are missing, first: {missing[0]}")
    expected = run.header.get("evidence_sha256")
    if expected and expected != evidence_sha256(run):
        found.append("evidence differs from what the run recorded when it ended (evidence_sha256)")
    return found


def _of_row(engine: Mapping, row: Row, stop: Rule | None) -> Iterator[str]:
    drawn = [(stage.sigma, stage.n0, stage.n) for stage in row.evidence.stages]
    wanted = [(sigma, engine["n0"], engine["n"]) for sigma in levels(engine)]
    if stop and drawn and drawn[0][2] in stop.points:
        wanted = [(*wanted[0][:2], drawn[0][2])]
    if not drawn or drawn != wanted[: len(drawn)]:
        yield f"evidence of other draws than the run's: {drawn}"
        return
    if engine.get("select") == "label" and set(row.evidence.stages[0].select) != {row.label}:
        yield f"class {top_class(row.evidence.stages[0].select)} was tested, not the label {row.label}"
    try:
        again = decide_as(engine, row.evidence)
    except DrbenchError as error:
        yield str(error)
        return
    if len(again.detail.get("p_hat", drawn)) < len(drawn):
        yield f"draws at {len(drawn)} scales, although the cascade stops before"
    stored = row.certificate
    if stored is None or stored.prediction != again.prediction or not _close(stored.radius, again.radius):
        yield (
            f"stored certificate {stored and (stored.prediction, stored.radius)} differs from "
            f"{(again.prediction, again.radius)}, recomputed from the evidence"
        )


# ---- modes that stop early ------------------------------------------------------------------------------------------


def _rule(engine: Mapping) -> Rule:
    options, sigma = engine["options"], engine["sigma"]
    return rule(
        options["mode"],
        [radius / sigma for radius in engine["radii"]],
        options["budget"],
        engine["alpha"],
        give_up=engine["give_up"],
        block=engine["block"],
        sequence=options.get("sequence", "e-process"),
        noise=options.get("noise", "gaussian"),
    )


def _stops(engine: Mapping, rows: Sequence[Row], images: int, stop: Rule) -> Iterator[str]:
    """Images that were stopped where the rule does not stop, or drawn on past a checkpoint where it surely does.

    The votes at earlier checkpoints are not recorded: what can be said is whether some do not stop there.
    """
    points = stop.points.tolist()
    ends = [
        (row.id, evidence.votes.get(top_class(evidence.select), 0), points.index(evidence.n))
        for row in rows
        for evidence in (row.evidence.stages if row.evidence else ())
        if evidence.n in points
    ]
    last = max((point for _, _, point in ends), default=0)
    table = Table(stop, engine.get("tolerance"), [row.evidence for row in rows], images)
    for image_id, votes, point in ends:
        if not stop.stops(votes, point) and (table.tolerance is None or point < last):
            yield f"image {image_id}: stopped after {points[point]} draws with open targets"
        if not stop.may_pass(votes, point):
            yield f"image {image_id}: drawn on after {points[point - 1]} draws, although all targets were settled"
    if table.tolerance is not None and ends and last < len(points) - 1 and table.rise() > table.tolerance + 1e-9:
        yield f"a column may still rise by {table.rise():.3f} of the images, the tolerance is {table.tolerance:g}"


def _close(a: float, b: float) -> bool:
    """Equal up to what another version of a special-function library may change."""
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
