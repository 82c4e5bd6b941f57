"""What happens in cascades: where they stop, at which cost, and what they answer without a certificate. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pandas import DataFrame

from drbench import stats
from drbench.records.record import Run
from drbench.tables.summary import conclusions, place, position, protocol, scales


def frame(runs: Sequence[Run]) -> DataFrame:
    """One row per run of a cascade with recorded images, in the order of `summary.frame`; other runs are left out.

    Columns: what names the run; halted, undecided (lists along the scales from the largest down: share of images that
    stop there with a class, or undecided); none_halted; earlier (an earlier scale limits the radius), no_radius (to 0);
    draws, most_draws, evaluations, most_evaluations (mean per image and worst case); accuracies certified_cascade (at
    r = 0), cascade_fallback, prior_mixed, clean (NaN without clean logits). Shares in [0, 1] of all recorded images.
    """
    ours = [run for run in runs if run.header["engine"]["certifier"] == "cascade" and any(run.ordered())]
    return DataFrame([_row(run) for run in sorted(ours, key=position)])


def _row(run: Run) -> dict:
    engine, data, defense, rows = run.header["engine"], run.header["data"], run.header["defense"], list(run.ordered())
    sigmas, per_scale = stats.levels(engine), engine["n0"] + engine["n"]
    calls = {sigma: sum(defense["nfe_at"][f"{sigma:g}"].values()) for sigma in sigmas}
    each = zip(rows, conclusions(run), strict=True)
    seen = [(row.label, row.evidence, found) for row, found in each if row.evidence]
    stops = [(found.detail["sigma"], found.detail["reason"]) for _, _, found in seen]
    free = [(label, stats.empirical(evidence, found, engine["options"]["p0"])) for label, evidence, found in seen]
    stages = [stage for _, evidence, _ in seen for stage in evidence.stages]

    def share(hits) -> float:
        return sum(hits) / len(rows)

    def answered(name: str) -> float:
        given = [label == getattr(answer, name) for label, answer in free if answer]
        return share(given) if given else math.nan

    return {
        "dataset": data["name"], "subset": data["subset"], "defense": defense["name"], "variant": defense["variant"],
        "certifier": "cascade", "protocol": protocol(engine), "sigmas": scales(engine), "images": len(rows),
        "halted": [share(stop in ((sigma, None), (sigma, "no radius")) for stop in stops) for sigma in sigmas],
        "undecided": [share(stop == (sigma, "undecided") for stop in stops) for sigma in sigmas],
        "none_halted": share(reason == "none halted" for _, reason in stops),
        "earlier": share(found.detail.get("limit") == "earlier scale" for _, _, found in seen),
        "no_radius": share(reason == "no radius" for _, reason in stops),
        "draws": per_scale * share(1 for _ in stages), "most_draws": per_scale * len(sigmas),
        "evaluations": per_scale * share(calls[stage.sigma] for stage in stages),
        "most_evaluations": per_scale * sum(calls.values()),
        "certified_cascade": share(found.prediction == label for label, _, found in seen),
        "cascade_fallback": answered("fallback"), "prior_mixed": answered("mixed"), "clean": answered("clean"),
        "marks": ", ".join(run.marks), "run": place(run),
    }  # fmt: skip
