"""The audit: signs that an attack was too weak or was misled, looked for on a few images of every attack job.

No honest defense should raise a flag; gradient masking raises at least one (Athalye et al. 2018, arXiv 1802.00420;
Carlini et al. 2019, arXiv 1902.06705; Pintor et al. 2021, arXiv 2106.09947). A check compares two attacks on the same
images by single answers of the defense on draws that no attack has seen. What cannot be automated stays with the
author: to say why the loss fits the decision rule, and that every component was attacked.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from drbench.attacks import evaluate, probes
from drbench.attacks.lockstep import Lockstep
from drbench.attacks.names import ATTACKS, VIEWS
from drbench.attacks.oracle import Keys
from drbench.attacks.outcomes import POINT, Attack, Case
from drbench.attacks.parallel import side_by_side
from drbench.attacks.presets import BEHIND, Member, member
from drbench.attacks.probes import Finding
from drbench.attacks.problem import Problem
from drbench.attacks.suite import Found, Suite
from drbench.attacks.views import has_parts

RUNS = 6  # of the first attack with gradients, about, that an audit takes
PROBED = 8  # images at least, where a job has them: probes are cheap beside attacks
FEWEST = 10  # steps of an attack that is shortened
STILL = 0.05  # share of images whose loss an attack may fail to raise
GRID = (0.25, 0.5, 1.0, 2.0, 4.0)  # radii in units of eps


def audit(
    suite: Suite, x: Tensor, y: Tensor, ids: Sequence[int | str], found: Sequence[Found], compared: int | None = None
) -> list[Finding]:
    """Probes of the function, then comparisons of attacks.

    Parameters
    ----------
    suite : Suite
        The job. Its first attack with gradients is the one that is varied.
    x, y, ids, found
        A few images of the job, their labels and ids, and what the job found on them.
    compared : int, optional
        How many of them, from the first, attacks are compared on: all of them if not given; 0 for probes alone.
    """
    view = VIEWS["exact"](suite.defense, suite.sigma)
    x, y = x.to(view.device), y.to(view.device)
    problem = Problem.of(view, suite.threat, x, y, ids, "audit", suite.seed, rows=suite.rows)
    findings = list(probes.run(suite.defense, problem))
    if compared == 0:
        return findings
    with side_by_side(suite) as threads:
        lockstep = Lockstep(threads.pool, threads.workers, suite.rows)
        few = slice(compared)
        case = Case(replace(threads.suite, lockstep=lockstep), x[few], y[few], tuple(ids[few]), found[few])
        return findings + list(_compared(case, lockstep))


def _compared(case: Case, lockstep: Lockstep) -> Iterator[Finding]:
    """The attacks that the checks ask for, all at the same time and none twice; then what the checks say."""
    checks = [check(case) for check in (OF_MAIN + OF_ALL if case.main else OF_ALL)]
    asked = [next(each, []) for each in checks]  # nothing of a check that has nothing to say here
    attacks = [each for wanted in asked for each in wanted]
    attacks = [each for place, each in enumerate(attacks) if each not in attacks[:place]]
    outcomes = lockstep.play([partial(case.outcome, each) for each in attacks], case.x.device)
    for check, wanted in zip(checks, asked, strict=True):
        try:
            check.send([outcomes[attacks.index(each)] for each in wanted])
        except StopIteration as end:
            yield from end.value or []


def percent(outcome: Tensor) -> str:
    return f"{100 * float(outcome.mean()):.1f} %"


# ---- checks: each yields the attacks that it compares, is sent their outcomes, and returns findings ----------------

Check = Generator[list[Attack], list[Tensor], list[Finding]]


def zero_radius(case: Case) -> Check:
    """At eps = 0 an attack changes nothing."""
    (still,) = yield [case.attack(stepped(case.main, 1), eps=0.0)]
    clean = case.right(case.clean)
    text = f"{percent(still)} right at eps = 0, {percent(clean)} clean"
    return [Finding("eps0", not torch.equal(clean, still), text)]


def random_noise(case: Case) -> Check:
    """Random noise of full size is no match for an attack."""
    if case.spatial:
        return []
    (noise,) = yield [case.attack(member("noise", tries=20))]
    beaten = case.beaten(noise, case.aimed)
    return [Finding("noise", beaten > POINT * len(case.x), f"random noise beats the attacks on {beaten} images")]


def one_step(case: Case) -> Check:
    """Many steps do better than one."""
    view = case.main.view if case.main.view in BEHIND else "exact"
    sign = member("pgd", view, loss="margin", steps=1, size=1.0, draws=drawn(case.main))
    (single,) = yield [case.attack(stepped(case.main, 1) if case.spatial else sign)]
    gain, chance = case.gain(case.job, single)
    text = f"{percent(single)} right after one step, {percent(case.job)} after all attacks"
    return [Finding("fgsm", gain > chance, text)]


def unbounded(case: Case) -> Check:
    """With the whole box to move in, attacks leave nothing, however short."""
    if case.spatial:
        return []
    far = {"linf": 1.0, "l2": math.sqrt(case.x[0].numel()), "l1": float(case.x[0].numel())}
    (outcome,) = yield [case.attack(*map(quartered, case.suite.members), eps=far[case.suite.threat.norm])]
    left = int((outcome > 0.5).sum())
    text = f"{left} of {len(case.x)} images stay right at any radius"
    return [Finding("unbounded", left > POINT * len(case.x), text)]


def monotone(case: Case) -> Check:
    """A larger radius leaves less."""
    curve = yield [case.attack(quartered(case.main), scale=scale) for scale in GRID]
    rises = [case.gain(after, before) for before, after in pairwise(curve)]
    text = ", ".join(f"{percent(outcome)} at {scale:g} eps" for scale, outcome in zip(GRID, curve, strict=True))
    return [Finding("monotone", any(gain > chance for gain, chance in rises), text)]


def budget(case: Case) -> Check:
    """Twice the steps find no more than the job did."""
    (twice,) = yield [case.attack(stepped(case.main, 2 * setting(case.main, "steps")))]
    gain, chance = case.gain(case.job, twice)
    text = f"{percent(case.job)} right after all attacks, {percent(twice)} after the first with twice the steps"
    return [Finding("budget", gain > chance, text + (": not converged" if gain > chance else ""))]


def more_draws(case: Case) -> Check:
    """Four times the draws change nothing."""
    if case.suite.deterministic:
        return []
    short, draws = quartered(case.main), drawn(case.main)
    usual, more = yield [case.attack(short), case.attack(changed(short, draws=4 * draws))]
    gain, chance = case.gain(usual, more)
    text = f"{percent(usual)} right with {draws} draws, {percent(more)} with {4 * draws}"
    return [Finding("eot", abs(gain) > chance, text)]


def gradient_free(case: Case) -> Check:
    """Attacks that use no gradients, or those of something else, find nothing new."""
    suite, others = case.suite, {}
    tries = {"queries": 500} if suite.deterministic else {"queries": 100, "draws": 5}
    others["bb>wb"] = member("square", view="logits", **tries)  # of what decides, not of what is differentiated
    if case.main and suite.defense.gradient != "none":
        if suite.sigma > 0 and suite.defense.accepts(0.0):
            others["transfer"] = replace(case.main, view="clean")
        elif has_parts(suite.defense, suite.sigma):
            others["transfer"] = replace(case.main, view="bare")
        if has_parts(suite.defense, suite.sigma):
            others["bpda>exact"] = replace(case.main, view="identity")
        if suite.defense.gradient == "surrogate" and suite.deployed.sloped(case.x[:1]):
            others["own>surrogate"] = replace(case.main, view="logits")
    outcomes = yield [case.attack(other) for other in others.values()]
    beaten = [case.beaten(outcome, case.aimed) for outcome in outcomes]
    return [
        Finding(name, count > 0, f"{other.label} beats the attacks on {count} of {len(case.x)} images")
        for (name, other), count in zip(others.items(), beaten, strict=True)
    ]


def loss_rises(case: Case) -> Check:
    """On the same draws the loss at the examples is above that at the images that were right."""
    yield []
    keys = Keys(case.suite.seed, case.ids, "audit/loss")
    if not case.suite.threat.eps:
        return []
    view, draws = case.suite.deployed, case.draws
    before, after = (
        evaluate.judge(view, case.suite.threat.image(examples, case.x), case.y, keys, draws, case.suite.rows)[1]
        for examples in (case.clean, case.examples)
    )
    right = before < 0
    still, size = int((right & (after <= before)).sum()), int(right.sum())
    text = f"the margin moved to the wrong side on {size - still} of the {size} right images"
    return [Finding("loss-rise", still > max(1, STILL * size), text)]


def other_streams(case: Case) -> Check:
    """The verdict depends neither on the evaluator's seed nor on which image the random streams are named after."""
    yield []
    if case.suite.deterministic and not case.suite.deployed.randomized:
        return []
    other = case.right(case.examples, seed=case.suite.seed + 1)
    renamed = case.right(case.examples, ids=tuple(f"audit/{place}" for place in range(len(case.x))))
    fewest = min(case.draws, case.suite.evaluations)
    gaps = [case.gain(case.job, other), case.gain(case.job, renamed), case.gain(case.job, case.recorded, fewest)]
    text = (
        f"{percent(case.job)} right ({percent(case.recorded)} in the job's evaluation), {percent(other)} with another "
        f"seed, {percent(renamed)} under other image names"
    )
    return [Finding("seed", any(abs(gain) > chance for gain, chance in gaps), text)]


OF_MAIN = (more_draws, monotone, budget, unbounded, one_step, zero_radius)  # vary the first attack with gradients
OF_ALL = (gradient_free, random_noise, loss_rises, other_streams)


def changed(attack: Member, **settings) -> Member:
    return replace(attack, settings={**attack.settings, **settings})


def stepped(attack: Member, steps: int) -> Member:
    return changed(attack, steps=steps)


def quartered(attack: Member) -> Member:
    """With a quarter of its steps, but not fewer than `FEWEST`: for attacks that are compared with each other."""
    steps = setting(attack, "steps")
    return stepped(attack, max(steps // 4, min(steps, FEWEST))) if steps else attack


def drawn(attack: Member) -> int:
    return setting(attack, "draws") or 1


def setting(attack: Member, name: str) -> int | None:
    """Of the member, or the attack's own default."""
    return {**ATTACKS[attack.attack].__kwdefaults__, **attack.settings}.get(name)
