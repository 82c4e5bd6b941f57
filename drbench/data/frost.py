"""Frost: photographs of ice over an image, as `drbench.data.corruptions` makes it. No torch.

The photographs are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261), found in a package that others published;
nothing else of it is read, and none of its code runs.
"""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from drbench.data import decoding
from drbench.files import datasets

NAME = "frost-photographs"
WHEEL = "imagecorruptions-1.1.2-py3-none-any.whl"
MEMBERS = [f"imagecorruptions/frost/{name}" for name in (
    "frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")]  # fmt: skip


def frosted(x, settings, random):
    """The image, darkened, plus a random part of a random photograph. (H, W, 3) floats, H and W at most 63."""
    image_factor, ice_factor = settings
    ice = photographs(datasets.folder(NAME, None))[random.randint(len(MEMBERS))]
    height, width, _ = x.shape
    top, left = random.randint(0, np.array(ice.shape[:2]) - (height, width) + 1)
    return image_factor * x + ice_factor * ice[top : top + height, left : left + width]


@lru_cache(maxsize=1)
def photographs(folder: Path) -> list[np.ndarray]:
    """The five photographs that the 32x32 corruption draws from, at a fifth of their size: (h, w, 3) in [0, 1].

    Linear interpolation at a fifth looks at the middle pixel of each 5x5 square alone.
    """
    with zipfile.ZipFile(datasets.check(NAME, folder, WHEEL)) as wheel:  # its hash is right, so its members are
        images = [decoding.decode(wheel.read(member), f"{folder / WHEEL}:{member}") for member in MEMBERS]
    return [np.asarray(image)[2::5, 2::5] / 255 for image in images]
