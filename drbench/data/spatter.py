"""Spatter: drops of water or mud on the lens, as `drbench.data.corruptions` makes it. No torch."""

from __future__ import annotations

import numpy as np

from drbench.errors import DrbenchError

WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
SLOPE = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # light from the upper left


def spattered(x, settings, random):
    """Drops are where smooth noise is above a threshold: water adds light, mud covers. (H, W, 3) floats."""
    from scipy.ndimage import gaussian_filter

    mean, std, smoothness, threshold, last, kind = settings
    liquid = gaussian_filter(random.normal(mean, std, x.shape[:2]), smoothness, mode="nearest")
    if kind == "mud":
        mud = gaussian_filter((liquid > threshold).astype(float), last, mode="nearest")[:, :, None]
        mud = np.where(mud < 0.8, 0, mud)
        return x * (1 - mud) + mud * MUD
    water = np.uint8(np.where(liquid < threshold, 0, np.clip(liquid, 0, 1)) * 255)
    sheen = water * relief(water).astype(float)
    return x + last * (sheen / max(sheen.max(), 1))[:, :, None] * WATER


def relief(water: np.ndarray) -> np.ndarray:
    """How light falls on drops: both (H, W) bytes. Drops are higher the further from their rims.

    Distances are exact. OpenCV's are not, and depend on whether it uses Intel's library; its other steps do not.
    """
    try:
        import cv2
    except ImportError as error:
        raise DrbenchError(
            "spatter needs the package 'opencv-python-headless': pip install 'drbench[corruptions]'"
        ) from error
    from scipy.ndimage import distance_transform_edt

    rims = cv2.Canny(water, 50, 150)
    far = np.minimum(distance_transform_edt(rims == 0), 20).astype(np.float32)
    levels = cv2.equalizeHist(cv2.blur(far, (3, 3)).astype(np.uint8))
    return cv2.blur(cv2.filter2D(levels, -1, SLOPE), (3, 3))
