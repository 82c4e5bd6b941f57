"""How a photograph becomes a square of pixels, under the names that stand in configs and tables. No torch.

Resizing is PIL's, with antialiasing, on bytes, as in the programs of the field; noise is added after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from drbench.errors import DrbenchError, did_you_mean


class Preprocessing(NamedTuple):
    """`make(image) -> image` of `side` x `side` pixels; `source` says who does it so."""

    side: int
    make: Callable
    source: str


def get(name: str | None) -> Preprocessing:
    """A preprocessing by its name, by default that of Cohen et al."""
    if name is not None and name not in NAMES:
        raise DrbenchError(f"unknown data.preprocessing {name!r}{did_you_mean(name, NAMES)}")
    return NAMES[name or DEFAULT]


def _short_side(short: int, side: int, filter_name: str) -> Callable:
    """Resize the short side, then crop the centre: torchvision's Resize and CenterCrop."""

    def make(image):
        width, height = image.size
        least = min(width, height)
        size = int(short * width / least), int(short * height / least)
        return _centre(image.resize(size, _filter(filter_name)), side, round)

    return make


def _adm(side: int) -> Callable:
    """Halve by boxes while the short side stays twice as large, then bicubic, then crop: guided diffusion's way."""

    def make(image):
        while min(image.size) >= 2 * side:
            image = image.resize((image.width // 2, image.height // 2), _filter("BOX"))
        scale = side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return _centre(image.resize(size, _filter("BICUBIC")), side, int)

    return make


def _whole(side: int) -> Callable:
    """The whole image, whatever its proportions, by boxes: the published downsampled ImageNet."""
    return lambda image: image.resize((side, side), _filter("BOX"))


def _centre(image, side: int, whole: Callable[[float], int]):
    left, top = whole((image.width - side) / 2), whole((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _filter(name: str):
    from PIL import Image

    return Image.Resampling[name]


DEFAULT = "resize256-crop224"
NAMES = {
    "resize256-crop224": Preprocessing(
        224, _short_side(256, 224, "BILINEAR"), "Cohen et al. 2019, Carlini et al. 2023"
    ),
    "resize256-crop224-bicubic": Preprocessing(224, _short_side(256, 224, "BICUBIC"), "ImageNet classifiers of timm"),
    "resize224-bicubic": Preprocessing(224, _short_side(224, 224, "BICUBIC"), "Jeong and Shin 2023"),
    "resize256": Preprocessing(256, _short_side(256, 256, "BILINEAR"), "Nie et al. 2022"),
    "adm256": Preprocessing(256, _adm(256), "Dhariwal and Nichol 2021, arXiv 2105.05233"),
    "adm224": Preprocessing(224, _adm(224), "Lei et al. 2025, arXiv 2501.13094"),
    "adm64": Preprocessing(64, _adm(64), "Karras et al. 2022, arXiv 2206.00364"),
    "box64": Preprocessing(64, _whole(64), "Chrabaszcz et al. 2017, arXiv 1707.08819"),
}
