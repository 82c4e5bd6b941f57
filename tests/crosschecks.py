"""Our `autoattack` beside the attacks of the library torchattacks, in the same harness, on deterministic defenses."""

from __future__ import annotations

from typing import NamedTuple

from drbench.api import Defense
from drbench.attacks.presets import autoattack, member
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.data import Images

LIBRARY = ("APGD", "APGDT", "FAB", "Square")


class Outcome(NamedTuple):
    """Of one suite: images that stay right, gradient evaluations and other forward passes, all images together."""

    robust: int
    gradients: int
    forwards: int


def both(defense: Defense, images: Images, norm: str, eps: float, queries: int = 5000) -> tuple[Outcome, Outcome]:
    """Ours and the library's; each attack runs on the images that are still right, with 100 steps."""
    ours = [*autoattack(norm)[:-1], member("square", queries=queries)]
    theirs = [member("torchattacks", name=name, steps=100, queries=queries) for name in LIBRARY]
    return _run(defense, images, norm, eps, ours), _run(defense, images, norm, eps, theirs)


def _run(defense: Defense, images: Images, norm: str, eps: float, members) -> Outcome:
    found = Suite(defense, threat(norm, eps), members).run(images.x, images.y, images.ids)
    tried = [each for one in found for each in one.evidence.tried]
    robust = sum(one.evidence.adversarial.wrong(int(label)) == 0 for one, label in zip(found, images.y, strict=True))
    return Outcome(robust, sum(each.gradients for each in tried), sum(each.forwards for each in tried))
