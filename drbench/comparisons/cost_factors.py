"""How much cheaper a noisy draw of RCM is than that of diffusion-based rows, beside what was published. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from glob import escape

from drbench import weights
from drbench.comparisons import thinning
from drbench.comparisons.paired import Bench, Effect
from drbench.comparisons.sides import NotTested, Side, title
from drbench.papers import published
from drbench.records.record import Run

BASE = "rcm (seed *) | rcm (B) | rcm"  # as in benchmarks/claims.yaml
BASELINES = ("denoised", "diffpure", "consistency")  # diffusion-based rows
IN_MEAN = ("denoised", "diffpure")  # as the paper's mean: purification before an ordinary classifier


def factors(rows: Sequence[tuple[str, list[Run]]]) -> Iterator[dict]:
    """Lines of the head-to-head frame: cost of a draw of each diffusion-based row over `BASE`, at shared noise levels.

    rows : (name, certifications of all its trainings and levels).
    """
    ours = [run for _, runs in rows for run in runs if any(fnmatchcase(title(run), each) for each in BASE.split(" | "))]
    printed, means = _quoted(), {"calls": [], "seconds": []}
    for name, runs in rows:
        theirs = [run for run in runs if run.header["defense"]["name"] in BASELINES]
        shared = sorted(_levels(ours) & _levels(theirs))
        for measure in means if shared else ():
            found = _factor(ours, theirs, measure, shared)
            if found is None:
                continue
            if theirs[0].header["defense"]["name"] in IN_MEAN:
                means[measure].append(found.effect)
            quoted = next((text for start, text in printed.items() if start and _plain(name).startswith(start)), "")
            yield {"section": "factor", "condition": "σ = " + ", ".join(f"{sigma:g}" for sigma in shared), "row": name,
                   "quantity": measure, "value": found.effect, "low": found.low, "high": found.high,
                   "marks": found.marks, "note": quoted}  # fmt: skip
    for measure, found in means.items():
        if found:
            value = sum(found) / len(found)
            yield {"section": "factor", "row": f"mean over {' and '.join(IN_MEAN)}", "quantity": measure,
                   "value": value, "low": value, "high": value, "condition": "", "marks": "",
                   "note": printed[""]}  # fmt: skip


def _levels(runs: Sequence[Run]) -> set[float]:
    return {run.header["engine"]["sigma"] for run in runs if thinning.can_thin(run)}


def _factor(ours: Sequence[Run], theirs: Sequence[Run], measure: str, sigmas: Sequence[float]) -> Effect | None:
    """None if no training has runs at all these levels, or a draw costs nothing."""
    names = tuple(sorted({escape(title(run)) for run in theirs}))
    try:
        return Bench([*ours, *theirs]).effect(Side((BASE,), measure), Side(names, measure), sigmas=sigmas)
    except NotTested:
        return None


def _plain(name: str) -> str:
    return name.replace("(", "").replace(")", "")


def _quoted() -> dict[str, str]:
    """Start of our name of a baseline -> seconds of an image over those of RCM as quoted; "" -> the paper's mean."""
    folder = weights.home() / "benchmarks" / "published"
    rows, names = published.load(folder, "rcm-cost"), published.papers(folder)["rcm-cost"]["methods"]
    mean = rows[(rows.metric == "inference_cost_reduction_factor") & (rows.provenance == "published")].iloc[0]
    times = rows[rows.metric == "latency_s_per_image"].drop_duplicates("method").set_index("method")
    found = {"": f"{mean.value} ({mean.provenance})"}
    for method in times.index.intersection(list(names)).drop("rRCM"):
        factor = float(times.value[method]) / float(times.value["rRCM"])
        found |= {start: f"{factor:.0f} ({times.provenance[method]})" for start in names[method]}
    return dict(sorted(found.items(), reverse=True))  # the longest names first, "" last
