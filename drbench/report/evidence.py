"""What was observed for each image of a run, as a table that the page opens on demand."""

from __future__ import annotations

from collections.abc import Mapping

from drbench import stats
from drbench.evidence import ABSTAIN, Answers, Certificate, Stage
from drbench.records.record import Row, Run
from drbench.tables import summary

CERTIFIED = ["image", "label", "answer", "radius", "p lower", "selection votes", "estimation votes", "note"]
ATTACKED = ["image", "label", "wrong", "of", "answers under attack", "answers when clean", "kept example of",
            "distance", "failures by attack", "sha256 of the example", "note"]  # fmt: skip


def of(run: Run) -> dict:
    """`columns`, and `rows` of numbers and texts in the order of the subset; columns without any are left out.

    Votes are written as "class:count", most first. Radii are those that tables count, float64 and not rounded.
    """
    if run.task == "attack":
        columns, rows = ATTACKED, [_attacked(row) for row in run.ordered()]
    else:
        found = zip(run.ordered(), summary.conclusions(run), summary.certified(run).radius, strict=True)
        several = len(stats.levels(run.header["engine"])) > 1
        columns, rows = CERTIFIED, [_certified(*each, several) for each in found]
    used = [i for i in range(len(columns)) if any(row[i] not in ("", None) for row in rows)]
    return {"task": run.task, "columns": [columns[i] for i in used], "rows": [[row[i] for i in used] for row in rows]}


def _certified(row: Row, certificate: Certificate | None, radius: float, several: bool) -> list:
    if certificate is None:
        return [row.id, row.label, "error", 0, None, "", "", row.error or "no evidence"]
    answer = "abstains" if certificate.prediction == ABSTAIN else certificate.prediction
    stages = row.evidence.stages if row.evidence else ()
    votes = (" / ".join(_stage(stage, name, several) for stage in stages) for name in ("select", "votes"))
    return [row.id, row.label, answer, radius, _p_lower(certificate.detail), *votes, _note(certificate.detail)]


def _p_lower(detail: Mapping) -> float | None:
    lower = detail.get("p_lower")
    return round(lower, 6) if isinstance(lower, float) else None


def _note(detail: Mapping) -> str:
    """Why and where a cascade stopped."""
    parts = [f"stops at σ = {detail['sigma']:g}"] if "limit" in detail or "reason" in detail else []
    parts += [str(detail["reason"])] if detail.get("reason") else []
    return ", ".join(parts + ([f"radius limited by {detail['limit']}"] if detail.get("limit") else []))


def _stage(stage: Stage, name: str, several: bool) -> str:
    return (f"σ {stage.sigma:g} " if several else "") + _counts(getattr(stage, name))


def _counts(votes: Mapping[int, int]) -> str:
    most = sorted(votes.items(), key=lambda each: (-each[1], each[0]))
    return " ".join(f"{'none' if answer == ABSTAIN else answer}:{count}" for answer, count in most if count)


def _attacked(row: Row) -> list:
    seen = row.evidence
    if seen is None:
        return [row.id, row.label, None, None, "", "", "", None, "", "", row.error or "no evidence"]
    failures = ", ".join(f"{each.attack}: {each.failures}" for each in seen.tried)
    return [
        row.id, row.label, seen.adversarial.wrong(row.label), seen.adversarial.count, _answers(seen.adversarial),
        _answers(seen.clean), seen.kept or "none", seen.distance, failures, seen.example, "",
    ]  # fmt: skip


def _answers(answers: Answers) -> str:
    return _counts(answers.votes)
