"""The `Defense` interface: the one file that the author of an adapter must read.

A defense answers one question: *given images that carry Gaussian noise of level sigma, what are the class scores?*
Adding the noise, voting, radii, attacks and budgets belong to the engines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn

from drbench.draws import Draws
from drbench.errors import DrbenchError
from drbench.evidence import Certificate, Evidence
from drbench.memory import without_values

__all__ = ["Certificate", "Defense", "Draws", "DrbenchError", "Evidence"]


class Defense(nn.Module, ABC):
    """A classifier that the engines can smooth, certify and attack.

    Attributes
    ----------
    input_shape : tuple of int
        (C, H, W). Set in `__init__`.
    num_classes : int
        K. Set in `__init__`.
    sigmas : tuple of float
        Increasing noise levels, pixel units, that this instance declares. Contains 0.0 only if inference on clean
        images is meaningful. Set in `__init__`.
    randomized : bool
        Whether two calls on one input may differ (with different `draws`).
    gradient : {"exact", "surrogate", "none"}
        What autograd through `attack_logits` means.
    lipschitz : float or None
        L with |logits(x)_k - logits(y)_k| <= L * ||x - y||_2 for every class k, clean images x and y, pixel units; of a
        randomised defense for its expected logits.
    logit_span : float or None
        The largest possible difference of two logits, if there is one: with `lipschitz` it bounds certified radii.
    nfe_varies : bool
        Whether the number of network evaluations depends on the image; `nfe` then gives the most.
    citation : str
        BibTeX key, or arXiv id, of the method.

    Notes
    -----
    A defense that mends images before it classifies them should have two more methods, with which attacks look behind
    the purifier and pictures show its work: `purify(z, sigma, draws)`, the image in [0, 1] that is classified, and
    `classify(x, sigma, draws)`, the scores of such images. Under noise, `attack_logits` at sigma = 0 stands for a
    `classify` that is missing.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    sigmas: tuple[float, ...]
    randomized: bool = False
    gradient: Literal["exact", "surrogate", "none"] = "exact"
    lipschitz: float | None = None
    logit_span: float | None = None
    nfe_varies: bool = False
    citation: str

    @abstractmethod
    def logits(self, z: Tensor, sigma: float, draws: Draws) -> Tensor:
        """Class scores of images that carry noise of standard deviation `sigma`.

        Begin with `self.require(sigma)`, so that an undeclared level is refused. The engine calls this from several
        threads at once: keep nothing of a call in `self`.

        Parameters
        ----------
        z : Tensor
            (B, C, H, W) float32. Clean pixels in [0, 1] plus sigma times a standard normal (or other noise of that
            standard deviation, if a config asks for it); *never clipped*. With sigma == 0 the clean pixels. Rescaling
            to a network's own units happens here.
        sigma : float
            Pixel units, one level for the whole batch.
        draws : Draws
            Source of every random number used inside; global generators are not touched.

        Returns
        -------
        Tensor
            (B, K) float32, unnormalised log-scores, finite. Row i depends on row i of `z` and of `draws` alone, and
            is differentiable in `z` when gradients are enabled (unless `gradient == "none"`).
        """

    @abstractmethod
    def nfe(self, sigma: float) -> dict[str, int]:
        """Forward evaluations of each of `networks()` per input row of one `logits` call. Verified by counting.

        The most that a row may need, if `nfe_varies`.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, input_shape: tuple[int, int, int], num_classes: int) -> Self:
        """A randomly initialised miniature (< 100,000 parameters) that exercises the same code path."""

    # ---- defaults: override only what does not fit ----------------------------------------------------------------

    def accepts(self, sigma: float) -> bool:
        """Whether `sigma` is declared."""
        return sigma in self.sigmas

    def require(self, sigma: float) -> None:
        """Raise `DrbenchError`, naming the declared levels, unless `sigma` is accepted."""
        if not self.accepts(sigma):
            name, levels = type(self).__name__, ", ".join(f"{level:g}" for level in self.sigmas)
            raise DrbenchError(
                f"{name} declares sigmas ({levels}); got {sigma:g}. Pick a declared level or train for it"
            )

    def attack_logits(self, z: Tensor, sigma: float, draws: Draws) -> Tensor:
        """Scores that an attacker differentiates. Same values as `logits`; override iff the gradient must differ."""
        return self.logits(z, sigma, draws)

    def gradient_rows(self, sigma: float) -> int | None:
        """Rows of a call above which a row's gradient takes more time; None if more rows are never worse."""
        return None

    def networks(self) -> dict[str, nn.Module]:
        """The networks whose calls (`network(...)`, not other methods) are counted as cost, by name."""
        return dict(self.named_children())

    def fit(self, x: Tensor, y: Tensor, recipe, log) -> None:
        """Train in place on clean images `x` (N, C, H, W) in [0, 1] with labels `y` (N,) int64.

        `recipe` is a `drbench.recipe.Recipe`, whose `seed` decides all random numbers; `log(step, loss)` is called
        after every step. What is trained is listed by `trained()`.
        """
        raise DrbenchError(f"{type(self).__name__} is evaluation-only: it has no training; see its README")

    def trained(self) -> tuple[str, ...]:
        """Names of the direct child modules that `fit` trains, and whose weights `drbench train` writes."""
        return tuple(name for name, _ in self.named_children())

    @classmethod
    def from_checkpoint(cls, state: Mapping[str, Tensor], **args) -> Self:
        """Build with constructor arguments `args` and load a plain state dict, strictly.

        The tensors of `state` become those of the defense: nothing is held twice.
        """
        defense = without_values(lambda: cls(**args))
        wanted = defense.state_dict()
        given = {key: value.to(wanted[key].dtype) if key in wanted else value for key, value in state.items()}
        try:
            defense.load_state_dict(given, strict=True, assign=True)
        except RuntimeError as error:
            raise DrbenchError(f"weights do not fit {cls.__name__}: {error}") from error
        return defense

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer; the CPU if there is none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")
