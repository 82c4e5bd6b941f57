"""Which options of a diffusion classifier go together."""

from __future__ import annotations

from drbench.errors import DrbenchError
from methods.diffusion_classifier.likelihood import FORMS
from methods.diffusion_classifier.terms import NOISED

CHOICES = {
    "network": ("unet", "multihead", "exact", "classifier"),
    "randomness": ("fresh", "fixed"),
    "gradient": ("exact", "bpda"),
    "noised": (None, *NOISED),
    "likelihood.form": FORMS,
}


def check(network: str, weight, noised: str | None, likelihood, sift, purifier, resize, labels, **named: str) -> None:
    """Raise `DrbenchError` unless these arguments of the defense fit; `named` are its further ones of `CHOICES`."""
    named |= {"network": network, "noised": noised, "likelihood.form": (likelihood or {}).get("form", FORMS[0])}
    for name, value in named.items():
        if value not in CHOICES[name]:
            raise DrbenchError(f"{name} is one of {', '.join(map(str, CHOICES[name]))}, got {value!r}")
    purifies = likelihood is not None or noised not in (None, "epndc")
    for wrong, message in (
        (network == "classifier" and (noised or sift or purifier or resize),
         "network classifier is for clean images, without noised, sift, purifier and resize (the classifier has its "
         "own; its likelihood is the denoiser's)"),
        (sift and network == "multihead",
         "sift saves nothing with network multihead, which answers for all classes at once"),
        (weight == "vp" and noised,
         f"weight vp sums over all levels of a schedule, for clean images, got noised {noised!r}"),
        (labels is not None and network != "unet", f"labels are what network unet is told, got network {network!r}"),
        (purifier and not purifies, "nothing asks the purifier: give a likelihood, or noised apndc or denoise"),
        (resize and noised in ("epndc", "apndc_noisy"),
         f"noised {noised} compares with the noisy image, which cannot be resized: take apndc or denoise"),
        (resize and purifies and not purifier,
         "with resize the denoiser is for other images than the data: give a purifier that is for these"),
    ):  # fmt: skip
        if wrong:
            raise DrbenchError(message)
