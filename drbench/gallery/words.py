"""The words of a gallery, from records alone: verdicts below its pictures, caption, alt text. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from drbench import stats
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN, Attacked, Evidence, Stage
from drbench.gallery import contents
from drbench.gallery.contents import ABSTAINS, RIGHT, WRONG, Tile
from drbench.records.record import Run

PLAIN = "no purifier to show:\nas it came in"  # also where a method changes the image inside, without a `purify`
NORMS = {"l1": "ℓ₁", "l2": "ℓ₂", "linf": "ℓ∞", "stadv": "StAdv"}


def method(run: Run) -> str:
    """`name` or `name (variant)`."""
    defense = run.header["defense"]
    return f"{defense['name']} ({defense['variant']})" if defense["variant"] else defense["name"]


def levels(run: Run) -> list[float]:
    """Noise levels of a certification, from the largest down."""
    return stats.levels(run.header["engine"])


def image(run: Run, name: int | str) -> tuple[str, str]:
    """Which image, and its class."""
    return f"image {name}", f"label {run.rows[name].label}"


def noise_key(run: Run) -> tuple:
    """Runs with the same key drew the same noise: seed, distribution, how it is sampled."""
    engine = run.header["engine"]
    return engine["seed"], stats.noise(engine), engine.get("sampling", {}).get("sampler", "float")


def noise_title(key: tuple, several: int) -> str:
    seed, kind, sampler = key
    return "with noise" if several == 1 else f"with noise\n{kind}, {sampler}, seed {seed}"


def evidence(run: Run, name: int | str) -> Evidence | Attacked:
    """What the row of an image holds; a row without evidence is an error that says why."""
    row = run.rows[name]
    if row.evidence is None:
        raise DrbenchError(f"{run.folder}: image {name} failed: {row.error}; leave it out with --images")
    return row.evidence


# ---- certification --------------------------------------------------------------------------------------------------


def _stage(run: Run, name: int | str, sigma: float) -> Stage | None:
    return next((stage for stage in evidence(run, name).stages if stage.sigma == sigma), None)


def asked_at(run: Run, name: int | str, sigma: float) -> bool:
    """Whether the image was drawn on at this level; a cascade may have stopped before."""
    return _stage(run, name, sigma) is not None


def missing(run: Run, name: int | str, sigma: float) -> Tile:
    """Stands for a level that a cascade did not reach."""
    return Tile(None, ("not reached:", f"ended at σ = {evidence(run, name).stages[-1].sigma:g}"))


def votes(run: Run, name: int | str, sigma: float) -> tuple[tuple[str, ...], str]:
    """Lines about the votes at a level, and the verdict if it is the one that answers."""
    row, stage, engine = run.rows[name], _stage(run, name, sigma), run.header["engine"]
    top = stats.top_class(stage.select)
    share = f"{top}: {_percent(stage.votes.get(top, 0), stage.n)}"
    cascade = engine["certifier"] == "cascade"
    if cascade and stage is not row.evidence.stages[-1]:
        return (share, "goes on"), ""
    certificate = stats.decide_as(engine, row.evidence)
    if certificate.prediction != ABSTAIN:
        verdict = RIGHT if certificate.prediction == row.label else WRONG
        return (share, f"{'halts, ' if cascade else ''}r = {certificate.radius:.2f}"), verdict
    clean = row.evidence.clean
    if certificate.detail.get("reason") == "none halted" and clean:
        return (share, "none halts;", f"clean: {max(range(len(clean)), key=clean.__getitem__)}"), ABSTAINS
    return (share, "abstains"), ABSTAINS


def _percent(count: int, n: int) -> str:
    """Rounded, but 100 % only for all and 0 % only for none."""
    percent = round(100 * count / n)
    return "> 99 %" if percent == 100 and count < n else "< 1 %" if percent == 0 and count else f"{percent} %"


# ---- attacks --------------------------------------------------------------------------------------------------------


def threat(run: Run) -> str:
    """Name, threat and deployment of an attack run, in lines."""
    engine = run.header["engine"]
    size = f"{NORMS[engine['norm']]} ≤ {engine['eps_text']}{' pixels' if engine['norm'] == 'stadv' else ''}"
    rule = "" if engine["decision"] == "single" else f"\n{engine['decision']}"
    return f"{method(run)}\n{size}" + (f"\nat σ = {engine['sigma']:g}" if engine["sigma"] else "") + rule


def answers(run: Run, name: int | str) -> tuple[tuple[str, ...], str]:
    """Lines about the answers to an adversarial example, and whether the most frequent one is the label (not tied)."""
    row, seen = run.rows[name], evidence(run, name).adversarial
    ranked = sorted(seen.votes.items(), key=lambda item: (-item[1], item[0]))
    answer, count = ranked[0]
    tied = len(ranked) > 1 and ranked[1][1] == count
    verdict = RIGHT if answer == row.label and not tied else WRONG
    if tied and row.label in (ranked[0][0], ranked[1][0]):
        other = ranked[1][0] if answer == row.label else answer
        return (f"{_class(other)}: {count} of {seen.count}", f"({row.label}: {count}, a tie)"), verdict
    if seen.count == 1:
        return (_class(answer),), verdict
    right = seen.votes.get(row.label, 0)
    more = () if verdict == RIGHT else (f"({row.label}: {right})",)
    return (f"{_class(answer)}: {count} of {seen.count}", *more), verdict


def _class(answer: int) -> str:
    return "no answer" if answer == ABSTAIN else str(answer)


def magnified(factor: float) -> tuple[str, ...]:
    """By how much a difference is; nothing where it is shown as it is."""
    return () if factor == 1 else (f"× {factor:g}",)


def found(run: Run, name: int | str) -> str:
    """Which attack found the example."""
    return evidence(run, name).kept or "none found: clean"


# ---- about the whole ------------------------------------------------------------------------------------------------


def note(runs: Sequence[Run]) -> str:
    """What the marks and numbers mean, below the figure."""
    tasks = {run.task for run in runs}
    said = ["✓ right, ✗ wrong" + (", ? abstains" if "certify" in tasks else "") + "."]
    if "certify" in tasks:
        unit = "/".join(sorted({NORMS[stats.norm(run.header["engine"])] for run in runs if run.task == "certify"}))
        said.append(f"Class and its share of the recorded votes; r: certified {unit} radius.")
    if "attack" in tasks:
        said.append("Under attack: most frequent answer and how often it came; difference: grey is none, magnified by "
                    "the factor below it, if any.")  # fmt: skip
    return " ".join([*said, "Noise: that of one draw that was counted, whose answer stands last. Pixels clipped to "
                     "[0,\u00a01]."])  # fmt: skip


def sidecar(runs: Sequence[Run], ids: Sequence[int | str], named: bool) -> dict:
    """{"alt", "caption", "images", "runs"} of a gallery; `named`: somebody chose its images."""
    data = runs[0].header["data"]
    methods = {task: list(dict.fromkeys(method(run) for run in runs if run.task == task)) for task in
               ("certify", "attack")}  # fmt: skip
    images = [{"id": name, "label": runs[0].rows[name].label, "data": data["name"],
               "split": data["subset"].partition("/")[0]} for name in ids]  # fmt: skip
    return {
        "alt": _alt(runs, ids, methods),
        "caption": _caption(runs, ids, named, methods),
        "images": images,
        "runs": [contents.about(run) for run in runs],
    }


def _alt(runs: Sequence[Run], ids: Sequence[int | str], methods: Mapping) -> str:
    """What the picture shows, and the outcome in numbers."""
    parts = [f"Grid of {_count(len(ids), 'image')} of {runs[0].header['data']['name']}."]
    if methods["certify"]:
        sigmas = sorted({sigma for run in runs if run.task == "certify" for sigma in levels(run)})
        verdicts = Counter(
            votes(run, name, run.rows[name].evidence.stages[-1].sigma)[1]
            for run in runs if run.task == "certify" for name in ids
        )  # fmt: skip
        parts.append(f"Each clean, with noise of sigma {_listed(sigmas)}, and as {_listed(methods['certify'])} made "
                     f"it before classifying: {_tally(verdicts)}.")  # fmt: skip
    if methods["attack"]:
        verdicts = Counter(answers(run, name)[1] for run in runs if run.task == "attack" for name in ids)
        parts.append(f"Each with the adversarial examples against {_listed(methods['attack'])}, and their "
                     f"difference to the clean image: {_tally(verdicts)}.")  # fmt: skip
    return " ".join(parts)


def _caption(runs: Sequence[Run], ids: Sequence[int | str], named: bool, methods: Mapping) -> str:
    data = runs[0].header["data"]
    how = "chosen by hand" if named else "the first that all runs have done"
    noun = "images" if len(ids) > 1 else "image"
    parts = [f"{data['name']} {data['subset'].partition('/')[0]}, {noun} {_listed(ids)} ({how})."]
    if methods["certify"]:
        parts.append(f"What purifiers make of noisy images. Votes and radii as recorded ({'; '.join(_drawn(runs))}).")
    if methods["attack"]:
        tried = [f"{threat(run).replace(chr(10), ', ')}: {run.header['engine']['evaluations']} evaluations"
                 for run in runs if run.task == "attack"]  # fmt: skip
        parts.append(f"Strongest examples found ({'; '.join(tried)}); an attack gives an upper bound of robustness.")
    marked = sorted({f"{contents.name_of(run)}: {', '.join(run.marks)}" for run in runs if run.marks})
    parts += [f"Marked runs: {'; '.join(marked)}."] if marked else []
    return " ".join([*parts, note(runs)])


def _drawn(runs: Sequence[Run]) -> list[str]:
    """Draws and alpha of certification runs; runs that differ in their noise level alone are one entry."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.task == "certify":
            engine, over = run.header["engine"], levels(run)
            key = f"{method(run)}: n = {engine['n']:,}, alpha = {engine['alpha']:g}"
            found.setdefault(key, []).append(f"{'over ' * (len(over) > 1)}{_listed(over)}")
    return [f"{key}, σ = {_listed(sigmas)}" for key, sigmas in found.items()]


def _tally(verdicts: Counter) -> str:
    words = {RIGHT: "right", WRONG: "wrong", ABSTAINS: "abstaining"}
    return ", ".join(f"{verdicts[key]} {word}" for key, word in words.items() if verdicts[key])


def _listed(words: Sequence) -> str:
    *most, last = [f"{word:g}" if isinstance(word, float) else str(word) for word in words]
    return f"{', '.join(most)} and {last}" if most else last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"
