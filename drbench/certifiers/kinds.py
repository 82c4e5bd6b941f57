"""Which certifier a run's header asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from drbench.api import Defense
from drbench.certifiers import adaptive, cascade, gaussian, lipschitz
from drbench.certifiers.gaussian import Observation

# kind (adaptive: gaussian in any mode but fixed) -> observer, and what it takes from the section `engine` of a header
# besides n0, n, block and seed
KINDS = {
    "adaptive": (
        adaptive.observe,
        lambda engine: {
            "mode": engine["options"]["mode"],
            **{key: engine[key] for key in ("sigma", "alpha", "radii", "give_up")},
        },
    ),
    "gaussian": (gaussian.observe, lambda engine: {"sigma": engine["sigma"]}),
    "lipschitz": (lipschitz.observe, lambda engine: {}),
    "cascade": (
        cascade.observe,
        lambda engine: {"alpha": engine["alpha"], **{key: engine["options"][key] for key in ("sigmas", "split", "p0")}},
    ),
}


def observe(engine: Mapping, defense: Defense, x: Tensor, ids: Sequence[int | str], **run) -> Iterator[Observation]:
    """Evidence about images as `engine` describes it; `run` (batch_rows, backed_off) does not change it."""
    observer, own = KINDS["adaptive" if "mode" in engine.get("options", {}) else engine["certifier"]]
    return observer(defense, x, ids, **{key: engine[key] for key in ("n0", "n", "block", "seed")}, **own(engine), **run)
