"""Blurs of photographs, as `drbench.data.corruptions` makes them: (H, W, 3) floats, settings, RandomState -> floats."""

from __future__ import annotations

import numpy as np


def gaussian(x, sigma, random):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def defocus(x, settings, random):
    from scipy.ndimage import convolve

    radius, softness = settings
    steps = np.arange(-8, 9)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    near = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    return filtered(x, convolve(disk, np.outer(near, near) / near.sum() ** 2))


def glass(x, settings, random):
    """Frosted glass: blurred, each pixel shows a random one at most `reach` before it, and blurred again."""
    sigma, reach, rounds = settings
    x = gaussian(x, sigma, random)
    rows, columns = np.indices(x.shape[:2])
    for _ in range(rounds):
        up, left = random.randint(-reach, reach, size=(2, *rows.shape))
        x = x[np.maximum(rows + up, 0), np.maximum(columns + left, 0)]
    return gaussian(x, sigma, random)


def motion(x, settings, random):
    half, sigma = settings
    return filtered(x, line(half, sigma, random.uniform(-45, 45)))


def zoomed(x, largest, random):
    """Mean of the image and of its centre at zooms 1, 1.01, ... below the largest."""
    zooms = np.arange(1, largest - 1e-9, 0.01)
    return sum((zoom(x, each) for each in zooms), x) / (len(zooms) + 1)


def zoom(x, factor):
    """The centre of (H, W, 3), enlarged."""
    from scipy.ndimage import affine_transform

    middle, scale = (np.array(x.shape) - 1) / 2, np.array([1 / factor, 1 / factor, 1])
    return affine_transform(x, scale, middle - scale * middle, order=1, mode="nearest")


def line(half, sigma, degrees):
    """Kernel of Gaussian weights on a line through the centre, its points split among the four pixels around each."""
    angle, kernel = np.deg2rad(degrees), np.zeros((2 * half + 3, 2 * half + 3))
    for step in range(-half, half + 1):
        row, column = half + 1 + step * np.sin(angle), half + 1 + step * np.cos(angle)
        top, left = int(row), int(column)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = (1 - abs(row - top - i)) * (1 - abs(column - left - j))
            kernel[top + i, left + j] += share * np.exp(-(step**2) / (2 * sigma**2))
    return kernel


def filtered(x, kernel):
    """(H, W, 3) under a kernel that is scaled to sum 1."""
    from scipy.ndimage import convolve

    return convolve(x, kernel[:, :, None] / kernel.sum(), mode="mirror")
