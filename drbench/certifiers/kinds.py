"""Which certifier a run's header asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from drbench.api import Defense
from drbench.certifiers import adaptive, cascade, gaussian, lipschitz
from drbench.certifiers.gaussian import Observation
from drbench.certifiers.noise import Smoothing
from drbench.evidence import Evidence

OF_A_TABLE = "tolerance"  # key of engines that stop a table as a whole: they need to know the images that are done


def _gaussian(engine: Mapping) -> dict:
    return {"sigma": engine["sigma"], "randomize": engine.get("options", {}).get("bound") == "randomized"}


def _adaptive(engine: Mapping) -> dict:
    given = {key: engine[key] for key in ("sigma", "alpha", "radii", "give_up", OF_A_TABLE) if key in engine}
    return {**given, **{key: engine["options"][key] for key in ("mode", "sequence") if key in engine["options"]}}


def _cascade(engine: Mapping) -> dict:
    return {"alpha": engine["alpha"], **{key: engine["options"][key] for key in ("sigmas", "split", "p0")}}


# kind (adaptive: gaussian in any mode but fixed) -> observer, and what it takes from the section `engine` of a header
# besides n0, n, block, seed and how noise is made
KINDS = {
    "adaptive": (adaptive.observe, _adaptive),
    "gaussian": (gaussian.observe, _gaussian),
    "lipschitz": (lipschitz.observe, lambda engine: {}),
    "cascade": (cascade.observe, _cascade),
}


def smoothing(engine: Mapping) -> Smoothing:
    """How the noisy copies of such a run are made."""
    return Smoothing(engine.get("options", {}).get("noise", "gaussian"), **engine.get("sampling", {}))


def observe(
    engine: Mapping,
    defense: Defense,
    x: Tensor,
    ids: Sequence[int | str],
    labels: Sequence[int],
    done: Sequence[Evidence | None] = (),
    at_once: int | None = None,
    **run,
) -> Iterator[Observation]:
    """Evidence about images as `engine` describes it; what comes after `done` does not change it.

    `labels` are looked at only if the engine tests the true class; `done` is the evidence of the other images of the
    table (None: failed); `at_once` is for observers that draw on several images side by side.
    """
    observer, own = KINDS["adaptive" if "mode" in engine.get("options", {}) else engine["certifier"]]
    keys = {key: engine[key] for key in ("n0", "n", "block", "seed")} | own(engine)
    keys |= {"smoothing": smoothing(engine)} if observer is not lipschitz.observe else {}
    keys |= {"labels": labels} if engine.get("select") == "label" else {}
    keys |= {"done": done} if OF_A_TABLE in engine else {}
    keys |= {"at_once": at_once} if observer is adaptive.observe else {}
    return observer(defense, x, ids, **keys, **run)
