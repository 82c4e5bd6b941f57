"""One call of a defense, whose answer is looked at before anything is made of it."""

from __future__ import annotations

from torch import Tensor

from drbench.api import Defense, Draws, DrbenchError


def ask(defense: Defense, method: str, z: Tensor, sigma: float, draws: Draws) -> Tensor:
    """`logits`, `attack_logits`, `purify` or `classify` of images (B, C, H, W).

    What the method raises is its author's to mend: it keeps its traceback, and is told what was asked.
    """
    name = f"{type(defense).__name__}.{method}"
    try:
        answer = getattr(defense, method)(z, sigma, draws)
    except Exception as error:
        error.add_note(f"raised by {name}, asked about images {tuple(z.shape)} at sigma = {sigma:g}")
        raise
    shape = z.shape if method == "purify" else (len(z), defense.num_classes)
    if isinstance(answer, Tensor) and answer.shape == shape:
        return answer
    got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    what = "(B, C, H, W)" if method == "purify" else "(rows, num_classes)"
    raise DrbenchError(
        f"{name}: expected a tensor of shape {tuple(shape)} {what}, got {got}; return it, and nothing more"
    )
