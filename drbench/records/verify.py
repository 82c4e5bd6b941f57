"""Checks of a run folder against itself: every certificate is recomputed from its evidence. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from drbench.digests import names_digest
from drbench.errors import DrbenchError
from drbench.records import verify_attack, verify_settings
from drbench.records.record import Row, Run, evidence_sha256
from drbench.stats import VERSIONS, decide_as, levels, top_class
from drbench.stats.stopping import Rule, Table, rule


def problems(run: Run) -> list[str]:
    """Everything that is wrong with a run: damaged or missing rows, certificates that evidence does not give."""
    found = [problem for problem in run.problems if "torn last line" not in problem]
    for check in (_ids, verify_settings.problems, verify_attack.problems if run.task == "attack" else _certificates):
        try:
            found += check(run)
        except DrbenchError as error:
            found.append(str(error))
        except Exception as error:  # a record may hold anything; a mistake of ours is told likewise, never passed over
            text = f"{type(error).__name__}: {error}"
            found.append(f"cannot be checked, run.json, config.yaml or rows are not what a run writes: {text}")
    return found


def _ids(run: Run) -> Iterator[str]:
    """What is odd about which images there are."""
    if run.header["data"].get("ids_sha256") not in (None, names_digest(run.wanted)):
        yield "run.json: ids of data are not those of its ids_sha256"
    if run.header["data"].get("images", len(run.wanted)) != len(run.wanted):
        yield f"run.json: 'images' of data is {run.header['data']['images']!r}, it has {len(run.wanted)} ids"
    for image_id in run.rows.keys() - set(run.wanted):
        yield f"image {image_id}: not in the subset of this run"
    missing = [image_id for image_id in run.wanted if image_id not in run.rows]
    if missing and run.header["status"] == "complete":
        yield f"{len(missing)} of {len(run.wanted)} images are missing, first: {missing[0]}"
    if run.header.get("evidence_sha256") not in (None, evidence_sha256(run)):
        yield "evidence differs from what the run recorded when it ended (evidence_sha256)"


def _certificates(run: Run) -> list[str]:
    engine, found = run.header["engine"], []
    if engine["version"] != VERSIONS.get(engine["certifier"]):
        found.append(
            f"made by certifier {engine['certifier']} version {engine['version']}, this is "
            f"version {VERSIONS.get(engine['certifier'])}"
        )
    if engine["certifier"] != "imported":  # of a log nothing can be recomputed; the lines carry checksums
        stop = _rule(engine) if engine.get("mode", "fixed") != "fixed" else None
        for row in run.ordered():
            if row.evidence is None:
                found += [] if row.error else [f"image {row.id}: neither evidence nor an error"]
            else:
                found += [f"image {row.id}: {problem}" for problem in _of_row(engine, row, stop)]
        found += _stops(engine, list(run.ordered()), len(run.wanted), stop) if stop else []
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
