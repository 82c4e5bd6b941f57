"""What papers claim, tested on recorded runs: a verdict for each claim and data set. No torch.

The claims lie in benchmarks/claims.yaml; `comparisons.paired` says how two sides are compared on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from pandas import DataFrame

from drbench import weights
from drbench.comparisons.paired import Bench, Effect
from drbench.comparisons.per_image import COSTS, MEASURES
from drbench.comparisons.sides import NotTested, Side
from drbench.errors import DrbenchError, did_you_mean
from drbench.records.record import Run

COLUMNS = [
    "key", "paper", "statement", "source", "published", "dataset", "verdict", "effect", "low", "high", "unit",
    "reference", "p", "p_mean", "p_holm", "up", "down", "images", "seeds", "cost", "runs", "marks", "note", "main",
]  # fmt: skip
VERDICTS = ("holds", "fails", "undecided", "not tested")
LEVEL = 0.05  # of the interval, and of all sign tests of a data set together
RELATIONS, LIMITS = ("above", "below", "no_worse", "close"), {"radii", "sigmas", "threats"}

RULE = """\
- Effect: A minus B (or A itself, or the cost of B over that of A), mean over images, noise levels or threats, and
  training seeds. Brackets: 95 % interval over the images, paired; score interval (Tango 1998) where every image is
  right or wrong, else bootstrap; over images and seeds where a side has several. Bootstrap intervals are somewhat too
  narrow with 25 images, and of three seeds: three numbers say little about a fourth. Of cost factors, in parentheses:
  the smallest and the largest of the runs.
- *above*, *below*: **holds** if the whole interval lies on the claimed side, **fails** if it lies on the other one,
  and in both cases only if chance is ruled out at 0.05 for all such claims of a data set together: p is a two-sided
  test of the mean when A and B of each image are exchanged at random (the exact sign test where every image is right
  or wrong, else 9,999 flips), “p, Holm” the same after Holm's correction. It is about the images, for the trainings
  at hand. Claims without a “p, Holm”: *no worse* and *close* go by the interval and the stated margin alone; cost
  factors are counts, or times on one machine, and are not tested. All else is **undecided**: the images do not tell.
- Robust accuracy is that under the attacks of these runs, an upper bound on both sides: a stronger attack may turn a
  verdict round. Such runs have few images.
- “fails” says that the claim is not true *here*: other images, networks of another size, one training unless seeds
  are stated. It does not say that the paper's number is wrong.
- Draws: a run at one noise level is compared at the draws of the other if that has fewer (a cascade: at each level): an
  image counts with the mean over all subsets of so many of its votes; “as recorded” where a claim is about equal cost
  instead. Radii that these draws cannot reach are left out.
- The runs behind each line stand in the CSV."""


class Claim(NamedTuple):
    """One claim of a paper; either `a` and `b` say what is compared, or `missing` why nothing is.

    limits: radii, sigmas and threats, each a list or lists by data set. margin: in the unit of the measure.
    """

    key: str
    paper: str
    statement: str
    source: str
    published: str = ""
    a: Side | None = None
    b: Side | float | None = None
    relation: str = "above"
    reference: float | None = None
    margin: float = 0.0
    draws: str = "equal"
    limits: Mapping[str, Any] = MappingProxyType({})
    missing: str = ""
    main: bool = False


FIELDS = {
    "claim",
    "source",
    "published",
    "measure",
    "a",
    "b",
    "relation",
    "reference",
    "margin",
    "draws",
    "missing",
    "main",
}


def load(path: Path | None = None) -> list[Claim]:
    """The claims of a file, by default benchmarks/claims.yaml."""
    path = path or weights.home() / "benchmarks" / "claims.yaml"
    try:
        papers = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [_claim(str(key), str(paper), raw) for paper, claims in papers.items() for key, raw in claims.items()]
    except FileNotFoundError as error:
        raise DrbenchError(f"no file of claims {path}; expected a path such as benchmarks/claims.yaml") from error
    except (OSError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise DrbenchError(f"{path}: expected papers, each with claims by key, got {error!r}") from error
    except DrbenchError as error:
        raise DrbenchError(f"{path}: {error}") from error


def _claim(key: str, paper: str, raw: dict) -> Claim:
    for name in raw:
        if name not in FIELDS | LIMITS:
            raise DrbenchError(f"claim {key}: unknown field {name!r}{did_you_mean(name, FIELDS | LIMITS)}")
    measure, rest = raw.get("measure"), {name: raw[name] for name in raw.keys() & set(Claim._fields) - {"a", "b"}}
    claim = Claim(key, paper, raw["claim"], limits={name: raw[name] for name in raw.keys() & LIMITS}, **rest)
    if claim.relation not in RELATIONS or claim.draws not in ("equal", "recorded"):
        raise DrbenchError(f"claim {key}: expected a relation ({', '.join(RELATIONS)}), and draws equal or recorded")
    if "missing" in raw:
        return claim
    if "a" not in raw or "b" not in raw:
        raise DrbenchError(f"claim {key}: expected the sides a and b, or `missing` with the reason why there are none")
    return claim._replace(a=_side(key, raw["a"], measure), b=_side(key, raw["b"], measure))


def _side(key: str, raw, measure: str | None) -> Side | float:
    """A side from a name, a list of names, a number, or a mapping with rows, sigma and measure."""
    if isinstance(raw, int | float):
        return float(raw)
    given = raw if isinstance(raw, dict) else {"rows": raw}
    rows = [given["rows"]] if isinstance(given["rows"], str) else given["rows"]
    side = Side(tuple(rows), given.get("measure", measure), given.get("sigma"))
    if side.measure not in MEASURES:
        raise DrbenchError(f"claim {key}: unknown measure {side.measure!r}{did_you_mean(str(side.measure), MEASURES)}")
    if len(rows) > 1 and side.measure not in COSTS:
        raise DrbenchError(f"claim {key}: expected one row a side, got {len(rows)}; only costs are means over rows")
    return side


def judge(runs: Sequence[Run], path: Path | None = None) -> DataFrame:
    """One row per claim and data set of the runs, in the order of the file; a claim that no run can test comes once.

    Parameters
    ----------
    runs : sequence of Run
        Certifications and attacks, in any order.
    path : Path, optional
        Another file of claims.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`. verdict: one of `VERDICTS`. effect, low, high: in `unit` (points, radius in pixel units,
        levels, times), to be compared with `reference`. p: exact sign test of `up` against `down` images; p_mean: see
        `paired.Effect`; p_holm: p_mean after Holm's correction (NaN where the verdict does not use it). seeds:
        trainings of A / of B. cost: network calls and time of a draw of A and of B. marks: what a reader has to know
        of the runs ("A: partial"). note: how it was measured, or why it was not.
    """
    claims, lines = load(path), []
    for dataset in sorted({run.header["data"]["name"] for run in runs}):
        bench = Bench([run for run in runs if run.header["data"]["name"] == dataset])
        found = [(claim, _tested(claim, bench, dataset)) for claim in claims if claim.a]
        tests = _holm([_p(claim, effect) for claim, effect in found])
        lines += [_line(claim, dataset, effect, p) for (claim, effect), p in zip(found, tests, strict=True)]
    lines += [_line(claim, "", claim.missing, math.nan) for claim in claims if not claim.a]
    order = {claim.key: place for place, claim in enumerate(claims)}
    return DataFrame(sorted(lines, key=lambda line: order[line["key"]]), columns=COLUMNS)


def _tested(claim: Claim, bench: Bench, dataset: str) -> Effect | str:
    """The effect, or why there is none."""
    try:
        limits = {name: _of_dataset(value, dataset, name) for name, value in claim.limits.items()}
        found = bench.effect(claim.a, claim.b, equal=claim.draws == "equal", **_conditions(claim.key, limits))
        if claim.relation == "no_worse" and found.base <= claim.margin:
            raise NotTested(f"B has {found.base:g}, not more than the margin of {claim.margin:g}: no A could be worse")
        return found if claim.reference is None else found._replace(reference=float(claim.reference))
    except NotTested as reason:
        return str(reason)


def _of_dataset(value, dataset: str, name: str):
    if not isinstance(value, dict):
        return value
    if dataset not in value:
        raise NotTested(f"the claim names no {name} for {dataset}")
    return value[dataset]


def _conditions(key: str, limits: Mapping[str, Any]) -> dict[str, list]:
    try:
        threats = [text.split() for text in limits.get("threats", ())]
        return {"radii": [float(radius) for radius in limits.get("radii", ())],
                "sigmas": [float(sigma) for sigma in limits.get("sigmas", ())],
                "threats": [(norm, float(Fraction(eps))) for norm, eps in threats]}  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        raise DrbenchError(f"claim {key}: expected numbers, and threats as 'linf 2/16', got {limits}") from error


def _p(claim: Claim, found: Effect | str) -> float:
    """The p-value that the verdict uses, else NaN."""
    return found.p_mean if isinstance(found, Effect) and claim.relation in ("above", "below") else math.nan


def _holm(tests: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of those that are numbers: the largest (m - rank) p so far (Holm 1979)."""
    order = sorted((p, place) for place, p in enumerate(tests) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(tests), 0.0
    for rank, (p, place) in enumerate(order):
        largest = adjusted[place] = max(largest, min(1.0, (len(order) - rank) * p))
    return adjusted


def verdict(claim: Claim, found: Effect, p_holm: float) -> str:
    """The rule, as `RULE` states it in words."""
    low, high, margin = found.low - found.reference, found.high - found.reference, claim.margin
    if claim.relation == "below":
        low, high = -high, -low
    if claim.relation == "close":
        holds, fails = -margin <= low and high <= margin, high < -margin or low > margin
    elif claim.relation == "no_worse":
        holds, fails = low > -margin, high < -margin
    else:
        told = math.isnan(p_holm) or p_holm <= LEVEL
        holds, fails = told and low > 0, told and high < 0
    return "holds" if holds else "fails" if fails else "undecided"


def _line(claim: Claim, dataset: str, found: Effect | str, p_holm: float) -> dict:
    line = {"key": claim.key, "paper": claim.paper, "statement": claim.statement, "source": claim.source,
            "published": claim.published, "dataset": dataset, "main": claim.main}  # fmt: skip
    if isinstance(found, str):
        return line | {"verdict": "not tested", "note": found}
    numbers = {name: round(getattr(found, name), 6) + 0.0 for name in ("effect", "low", "high")}  # no -0.0
    tests = {name: float(f"{p:.4g}") for name, p in (("p", found.p), ("p_mean", found.p_mean), ("p_holm", p_holm))}
    relation = claim.relation.replace("_", " ") + (f" (margin {claim.margin:g})" if claim.margin else "")
    return line | found._asdict() | numbers | tests | {
        "verdict": verdict(claim, found, p_holm), "unit": MEASURES[claim.a.measure].unit,
        "note": f"{relation}; {found.note}",
    }  # fmt: skip
