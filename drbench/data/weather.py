"""Weather on photographs, as `drbench.data.corruptions` makes it: (H, W, 3) floats, settings, RandomState -> floats."""

from __future__ import annotations

import numpy as np

from drbench.data import blurs

LUMA = np.array([0.299, 0.587, 0.114])


def fog(x, settings, random):
    """Light from clouds, and all of it dimmed to the brightness that the image had."""
    thickness, decay = settings
    brightest = x.max()
    hazy = x + thickness * clouds(x.shape[0], decay, random)[:, :, None]
    return hazy * brightest / (brightest + thickness)


def clouds(side, decay, random):
    """A plasma fractal (side, side) in [0, 1] on a torus; side is a power of 2.

    Diamond-square: points midway between four are their mean plus noise, which is smaller by decay^2 at each level.
    """
    height, spread, step = np.zeros((side, side)), 1.0, side

    def midway(first, second):
        return (first + second) / 4 + random.uniform(-spread, spread, first.shape)

    while step > 1:
        half = step // 2
        corners = height[::step, ::step].copy()
        below, beside = (corners + np.roll(corners, -1, axis) for axis in (0, 1))
        height[half::step, half::step] = centres = midway(below, np.roll(below, -1, 1))
        height[::step, half::step] = midway(beside, centres + np.roll(centres, 1, 0))
        height[half::step, ::step] = midway(below, centres + np.roll(centres, 1, 1))
        step, spread = half, spread / decay**2
    height -= height.min()
    return height / height.max()


def snow(x, settings, random):
    """A paler image, and flakes that fall across it, once as they are and once turned by 180 degrees."""
    mean, std, zoom, threshold, half, sigma, share = settings
    flakes = blurs.zoom(random.normal(mean, std, x.shape[:2])[:, :, None], zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = blurs.filtered(flakes, blurs.line(half, sigma, random.uniform(-135, -45)))
    grey = (x @ LUMA)[:, :, None]
    pale = share * x + (1 - share) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + flakes + flakes[::-1, ::-1]
