"""What the multi-scale paper claims, on the recorded runs: each claim with figures and paired intervals. No torch.

    python -m benchmarks.multiscale_claims [RUNS ...]        (default: results/digits/full/runs)

Differences are paired over images: 95 % percentile bootstrap, and the exact sign test of the images that differ. A
claim "holds" or "fails" if the interval says so, else it is "open". One table of many comparisons: an interval or two
in twenty is expected to miss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pandas import DataFrame, Series

from drbench import record, stats
from drbench.errors import DrbenchError
from drbench.record import Run

DEFAULT = "results/digits/full/runs"
TUNED = {
    "tuned-denoiser": "fine-tuning the denoiser (our variant)",
    "tuned-classifier": "tuning the classifier on denoised images",
}
CLOSE = 0.03  # "close to" means: the whole interval within 3 points


def images(run: Run) -> DataFrame:
    """One row per image: certified (0 if wrong), wrong class answered, where a cascade stopped, uncertified answers."""
    engine, rows = run.header["engine"], {}
    for row in run.ordered():
        if row.evidence is None:
            raise DrbenchError(f"{run.folder}: image {row.id} has no evidence; claims are about complete runs")
        found = stats.decide_as(engine, row.evidence)
        free = stats.empirical(row.evidence, found)
        answer = found.detail["class"] if found.detail.get("reason") == "no radius" else found.prediction
        rows[row.id] = {
            "correct": found.prediction == row.label,
            "radius": found.radius if found.prediction == row.label else 0.0,
            "wrong": answer not in (row.label, stats.ABSTAIN),
            "scales": len(row.evidence.stages),
            "sigma": found.detail.get("sigma"),
            "reason": found.detail.get("reason"),
            **({f"is_{name}": given == row.label for name, given in free._asdict().items()} if free else {}),
        }
    return DataFrame(list(rows.values()), index=list(rows))


def paired(a: Series, b: Series) -> tuple[float, float, str]:
    """95 % interval of the mean of a - b over images; and mean, interval and sign test as text."""
    if not a.index.equals(b.index):
        raise DrbenchError("expected two runs on the same images")
    difference = a.astype(float) - b.astype(float)
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    (low, high), p = stats.bootstrap_mean(difference), stats.sign_test(up, up + down)
    return low, high, f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]; {up} images up, {down} down, p = {p:.2g}"


def above(a: Series, b: Series) -> tuple[str, str]:
    """Verdict on "a is above b", and the figures."""
    low, high, text = paired(a, b)
    return "holds" if low > 0 else "fails" if high < 0 else "open", text


def close(a: Series, b: Series) -> tuple[str, str]:
    """Verdict on "a is close to b", and the figures."""
    low, high, text = paired(a, b)
    return "holds" if low > -CLOSE and high < CLOSE else "fails" if high < -CLOSE or low > CLOSE else "open", text


def claims(runs: list[Run]) -> Iterator[tuple[str, str, str]]:
    """(claim, verdict, figures), for what the runs can answer."""
    cascades = {}
    for run in runs:
        if run.header["defense"]["name"] == "multiscale" and run.header["engine"]["certifier"] == "cascade":
            cascades.setdefault(run.header["defense"]["variant"], run)
    if "" not in cascades:
        raise DrbenchError("expected a run of benchmarks/digits/full/multiscale.yaml among the folders")
    base_run = cascades[""]
    base, sigmas = images(base_run), stats.levels(base_run.header["engine"])
    single = {run.header["engine"]["sigma"]: images(run) for run in runs if _beside(run, base_run)}
    if set(sigmas) <= single.keys():
        yield from _against_single(base, single, sigmas, base_run.header["engine"])
    yield from _alone(base, sigmas)
    for variant, what in TUNED.items():
        if variant in cascades:
            tuned = images(cascades[variant])
            yield f"{what} raises ACR", *above(tuned.radius, base.radius)
            yield f"{what} raises certified accuracy at r = 0", *above(tuned.correct, base.correct)
            yield f"{what} lowers the share of images that halt on a wrong class", *above(base.wrong, tuned.wrong)
            yield f"{what} keeps cascade + fallback", *close(tuned.is_fallback, base.is_fallback)
    if "paper_code" in cascades:
        verdict, text = above(images(cascades["paper_code"]).radius, base.radius)
        yield "ACR: split and bounds of the paper's code, which are not sound, above ours", verdict, text
    yield from _steps(runs, base_run)


def _beside(run: Run, base: Run) -> bool:
    """A run at a single sigma of the same weights, images and number of draws, with one denoiser call."""
    ours, theirs = run.header, base.header
    return (
        ours["engine"]["certifier"] == "gaussian"
        and ours["defense"]["nfe"] == theirs["defense"]["nfe"]
        and ours["defense"]["checkpoints"] == theirs["defense"]["checkpoints"]
        and ours["data"]["sha256"] == theirs["data"]["sha256"]
        and all(ours["engine"][key] == theirs["engine"][key] for key in ("n0", "n", "alpha", "seed", "block"))
    )


def _against_single(base: DataFrame, single: dict, sigmas: list[float], engine: dict) -> Iterator[tuple[str, str, str]]:
    top, low = single[sigmas[0]], single[sigmas[-1]]
    yield f"certified accuracy at r = 0: cascade above sigma = {sigmas[0]:g} alone", *above(base.correct, top.correct)
    beyond = stats.ceiling_radius(engine["n"], engine["alpha"], sigmas[1])
    for r in (0.5, 1.0, round(beyond, 2)):
        verdict, text = close(base.radius >= r, top.radius >= r)
        yield f"certified accuracy at r = {r:g}: cascade like sigma = {sigmas[0]:g} alone", verdict, text
    own = base[(base.sigma == sigmas[0]) & (base.reason != "undecided")]
    above_it = int((own.radius > top.radius[own.index]).sum())
    yield (
        f"an image that halts at sigma = {sigmas[0]:g} never gets a larger radius than there alone",
        "holds" if above_it == 0 else "fails",
        f"{above_it} of {len(own)} images",
    )
    for sigma in sigmas:
        yield f"ACR: cascade above sigma = {sigma:g} alone", *above(base.radius, single[sigma].radius)
    for r in (0.0, 0.25, 0.5):
        verdict, text = above((low.radius >= r) & low.correct, (base.radius >= r) & base.correct)
        yield f"certified accuracy at r = {r:g}: cascade below sigma = {sigmas[-1]:g} alone", verdict, text


def _alone(base: DataFrame, sigmas: list[float]) -> Iterator[tuple[str, str, str]]:
    yield "cascade + fallback is close to the clean classifier", *close(base.is_fallback, base.is_clean)
    yield "prior-mixed is close to the clean classifier", *close(base.is_mixed, base.is_clean)
    mean, low, high = base.scales.mean(), *stats.bootstrap_mean(base.scales)
    text = f"{mean:.2f} [{low:.2f}, {high:.2f}] times one scale, at most {len(sigmas)}"
    yield "mean cost is about 1.5 times that of one scale", "holds" if low <= 1.5 <= high else "measured", text
    passed, stopped = base.scales > 1, base[base.scales == 1]
    undecided, wrong = int((stopped.reason == "undecided").sum()), int(stopped.wrong.sum())
    verdict = "holds" if passed.sum() > max(undecided, wrong) else "fails"
    text = (
        f"passed on {passed.sum()}, undecided {undecided}, over-confident (wrong class) {wrong} of {len(base)} images"
    )
    yield f"over-smoothing is the main error at sigma = {sigmas[0]:g}", verdict, text


def _steps(runs: list[Run], base: Run) -> Iterator[tuple[str, str, str]]:
    """One denoiser call against several, at about the same number of network evaluations."""
    alike = [run for run in runs if run.header["data"]["sha256"] == base.header["data"]["sha256"]]
    named = [run for run in alike if run.header["defense"]["name"] == "denoised"]
    found = {(run.header["defense"]["variant"], run.header["engine"]["sigma"]): run for run in named}
    for (variant, sigma), run in sorted(found.items()):
        one = found.get(("one_shot", sigma))
        if one and one is not run and one.header["defense"]["checkpoints"] == run.header["defense"]["checkpoints"]:
            verdict, text = above(images(one).radius, images(run).radius)
            text += f"; {_evaluations(one):,.0f} against {_evaluations(run):,.0f} evaluations an image"
            yield f"ACR at sigma = {sigma:g}: one shot above {variant}", verdict, text


def _evaluations(run: Run) -> float:
    return sum(run.header["defense"]["nfe"].values()) * (run.header["engine"]["n0"] + run.header["engine"]["n"])


def main(paths: list[str]) -> int:
    try:
        runs = [record.read(folder) for folder in record.find(paths or [DEFAULT])]
        rows = list(claims([run for run in runs if run.complete]))
    except DrbenchError as error:
        print(f"multiscale_claims: {error}", file=sys.stderr)
        return 2
    print("| claim | verdict | figures |\n|---|---|---|")
    for claim, verdict, figures in rows:
        print(f"| {claim} | {verdict} | {figures} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
