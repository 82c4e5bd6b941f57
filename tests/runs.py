"""Run folders with chosen votes, for tests that need records but no network. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from drbench import stats
from drbench.evidence import Answers, Attacked, Evidence, Stage, Tried
from drbench.records import record


def make_run(
    folder: Path,
    hits: Sequence[int | None],
    *,
    defense: str = "rcm",
    variant: str = "",
    sigma: float = 0.5,
    n: int = 1000,
    n0: int = 100,
    alpha: float = 0.001,
    dataset: str = "digits",
    subset: str = "test",
    images: int | None = None,
    nfe: dict[str, float] | None = None,
    flags: Sequence[str] = (),
    dirty: bool = False,
    seconds: float = 0.5,
) -> record.Run:
    """Write a run folder as the runner would, and read it back.

    Parameters
    ----------
    hits : sequence of int or None
        For each image the estimation draws out of `n` that voted for its label 1 (the others for class 0); the
        selection draws follow their majority, ties to class 0. None: the image failed and has no evidence.
    images : int, optional
        Size of the subset, by default `len(hits)`; more makes the run partial.
    """
    folder.mkdir(parents=True)
    ids = list(range(len(hits) if images is None else images))
    header = {
        "schema": record.SCHEMA, "status": "started", "identity": "0" * 64, "title": "",
        "data": {"name": dataset, "subset": subset, "images": len(ids), "sha256": "0" * 64, "ids": ids},
        "code": {"version": "0.1.0", "commit": "0" * 40, "dirty": dirty},
        "engine": {"certifier": "gaussian", "version": stats.VERSIONS["gaussian"], "mode": "fixed", "sigma": sigma,
                   "n0": n0, "n": n, "alpha": alpha, "block": 100, "seed": 0},
        "defense": {"name": defense, "variant": variant, "checkpoints": {},
                    "nfe": {"classifier": 1.0} if nfe is None else nfe},
        "flags": list(flags),
    }  # fmt: skip
    record.write_header(folder, header)
    writer = record.Writer(folder)
    for image_id, k in zip(ids, hits, strict=False):
        evidence = None if k is None else Evidence((_stage(k, n, n0, sigma),))
        certificate = evidence and stats.decide("gaussian", evidence, alpha)
        error = "logits are not finite" if k is None else None
        writer.write(record.Row(image_id, 1, evidence, certificate, seconds, {"classifier": n0 + n}, error))
    writer.close()
    run = record.read(folder)
    status = "complete" if run.complete else "partial"
    record.write_header(folder, header | {"status": status, "evidence_sha256": record.evidence_sha256(run)})
    return record.read(folder)


def make_cascade(
    folder: Path,
    stops: Sequence[Sequence[int] | None],
    *,
    defense: str = "multiscale",
    variant: str = "",
    sigmas: Sequence[float] = (0.25, 1.0),
    n: int = 1000,
    n0: int = 100,
    alpha: float = 0.001,
    protocol: str = "sound",
    clean: Sequence[float] = (1.0, 0.0, 0.0),
) -> record.Run:
    """A complete run of a cascade of three classes; all labels are 1, all clean images are taken for class 0.

    Parameters
    ----------
    stops : sequence of sequences of int, or None
        For each image, and each scale that it reached, the votes for class 1; the others are shared by 0 and 2.
    """
    run = make_run(folder, [], images=len(stops), defense=defense, variant=variant, sigma=max(sigmas), n=n, n0=n0)
    options = {"sigmas": list(sigmas), "classes": 3, "p0": 0.5, **stats.PROTOCOLS[protocol]}
    engine = run.header["engine"] | {"certifier": "cascade", "version": stats.VERSIONS["cascade"], "alpha": alpha,
                                     "protocol": protocol, "options": options}  # fmt: skip
    nfe_at = {f"{sigma:g}": {"denoiser": 1.0, "classifier": 1.0} for sigma in sigmas}
    header = run.header | {"engine": engine, "defense": run.header["defense"] | {"nfe_at": nfe_at}}
    writer = record.Writer(folder)
    for image_id, hits in enumerate(stops):
        evidence = hits and Evidence(
            tuple(
                Stage(sigma, {1: n0}, n0, {1: k, 0: (n - k) // 2, 2: n - k - (n - k) // 2}, n)
                for sigma, k in zip(stats.levels(engine), hits, strict=False)
            ),
            tuple(clean),
        )
        certificate = evidence and stats.decide_as(engine, evidence)
        writer.write(record.Row(image_id, 1, evidence, certificate, 0.5, {}, None if hits else "not finite"))
    writer.close()
    run = record.read(folder)
    header |= {"status": "complete", "evidence_sha256": record.evidence_sha256(run)}
    record.write_header(folder, header)
    return record.read(folder)


def make_attack(
    folder: Path,
    right: Sequence[int],
    *,
    defense: str = "rcm",
    variant: str = "",
    norm: str = "linf",
    eps: str = "2/16",
    evaluations: int = 10,
    sigma: float = 0.0,
    preset: str = "standard",
    dataset: str = "digits",
    first: int = 0,
) -> record.Run:
    """A complete attack run: of `evaluations` answers to each adversarial image, `right` were its label 1.

    Parameters
    ----------
    right : sequence of int
        By image; ids count from `first`. All answers to clean images are right.
    """
    folder.mkdir(parents=True)
    ids = [first + place for place in range(len(right))]
    header = {
        "schema": record.SCHEMA, "task": "attack", "status": "complete", "identity": "0" * 64, "title": "",
        "data": {"name": dataset, "subset": "test", "images": len(ids), "sha256": "0" * 64, "ids": ids},
        "code": {"version": "0.1.0", "commit": "0" * 40, "dirty": False},
        "engine": {"version": 1, "norm": norm, "eps": float(Fraction(eps)), "eps_text": eps, "preset": preset,
                   "attacks": {"pgd": {"attack": "pgd"}},
                   "sigma": sigma, "decision": "single", "decision_draws": 1, "evaluations": evaluations,
                   "select": evaluations, "worst_of": evaluations, "seed": 0},
        "defense": {"name": defense, "variant": variant, "checkpoints": {}, "nfe": {"classifier": 1.0},
                    "gradient": "exact"},
        "cost": {"seconds": 1.0}, "flags": [],
    }  # fmt: skip
    record.write_header(folder, header)
    writer = record.Writer(folder)
    for image_id, k in zip(ids, right, strict=True):
        answers = Answers.of([1] * k + [0] * (evaluations - k))
        tried = (Tried("pgd", evaluations - k, 10, 0),)
        evidence = Attacked(Answers.of([1] * evaluations), answers, tried, "pgd", 0.1, "0" * 64)
        writer.write(record.Row(image_id, 1, evidence, None, 0.5))
    writer.close()
    return record.read(folder)


def _stage(k: int, n: int, n0: int, sigma: float) -> Stage:
    votes = {c: count for c, count in ((0, n - k), (1, k)) if count}
    return Stage(sigma, {int(2 * k > n): n0}, n0, votes, n)
