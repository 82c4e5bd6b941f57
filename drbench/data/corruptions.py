"""Corruptions of 32x32 photographs, made where the published CIFAR-10-C is not at hand. No torch.

They follow the definitions of Hendrycks and Dietterich 2019 (arXiv 1903.12261, appendix) with severities of their scale
for 32x32 images, but were not compared with the published arrays, which nobody can make anew: their random numbers are
not known. So results on them are results on `cifar10-c-generated`, never on CIFAR-10-C. Blurs, weather, frost and
spatter have files of their own.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np

from drbench.data import blurs, frost, spatter, weather

# One value a severity, 1 to 5.
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),  # standard deviation relative to the value
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),  # radius of the disk, its softness
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # std, reach of swaps, rounds
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # half length of the line, standard deviation
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # the largest zoom, in steps of 0.01
    # mean and std of the flakes, their zoom, threshold, half length and std of their fall, share of the image
    "snow": (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    ),
    "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # factors of the image and of the ice
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),  # thickness, smoothness
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),  # added to the value of HSV
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),  # factor of the distance to the mean colour
    "saturate": (
        (0.3, 0.0),
        (0.1, 0.0),
        (1.5, 0.0),
        (2.0, 0.1),
        (2.5, 0.2),
    ),  # factor and summand of the saturation of HSV
    # mean and std of the liquid, its smoothness, threshold, strength of water or smoothness of mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
        (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
        (0.65, 0.3, 1.0, 0.69, 0.5, "water"),
        (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
        (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
    ),
    # strength of the field, its smoothness, jitter of the points; pixels
    "elastic_transform": ((0.0, 0.0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.90, 0.85, 0.75, 0.65),  # factor of the side
}


def corrupt(x: np.ndarray, name: str, severity: int, image_id: int | str) -> np.ndarray:
    """The corrupted image, from a random stream of its own.

    Parameters
    ----------
    x : array
        (H, W, 3) in [0, 1], multiples of 1/255.
    severity : int
        1 to 5.
    image_id : int or str
        With name and severity it keys the stream: an image is the same in every subset, order and process.

    Returns
    -------
    (H, W, 3) bytes.
    """
    clean = np.rint(x * 255.0) / 255  # float32 would turn some bytes into their neighbours
    made = _MAKERS[name](clean, SEVERITIES[name][severity - 1], _stream(name, severity, image_id))
    return np.uint8(np.clip(made, 0, 1) * 255 + 1e-6)


def _stream(name: str, severity: int, image_id: int | str) -> np.random.RandomState:
    """RandomState, because numpy promises that its numbers never change."""
    digest = hashlib.sha256(f"drbench cifar10-c-generated {name} {severity} {image_id}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def _impulse(x, share, random):
    hit = random.random_sample(x.shape) < share
    return np.where(hit, (random.random_sample(x.shape) < 0.5).astype(x.dtype), x)


def _elastic(x, settings, random):
    """Three points around the centre are moved, the whole image with them; then each pixel by a smooth field."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    strength, smoothness, jitter = settings
    size = np.array(x.shape[:2])
    points = size // 2 + size.min() // 3 * np.array([(1, 1), (1, -1), (-1, -1)])
    moved = points + random.uniform(-jitter, jitter, points.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points.astype(float))
    grid = np.moveaxis(np.indices(size), 0, -1)
    places = np.concatenate([grid, np.ones((*size, 1))], axis=2) @ back
    fields = [gaussian_filter(random.uniform(-1, 1, size), smoothness, mode="reflect", truncate=3) for _ in range(2)]
    places += strength * np.stack(fields, axis=2)
    channels = (map_coordinates(x[:, :, c], np.moveaxis(places, -1, 0), order=1, mode="mirror") for c in range(3))
    return np.stack(list(channels), axis=2)


def _brightness(x, summand, random):
    """At fixed hue and saturation of HSV, a pixel is proportional to its value, the largest channel."""
    value = x.max(axis=2, keepdims=True)
    new = np.clip(value + summand, 0, 1)
    return np.where(value > 0, x * new / np.where(value > 0, value, 1), new)


def _saturate(x, settings, random):
    """At fixed hue and value of HSV, distances to the largest channel go with the saturation. Grey counts as red."""
    factor, summand = settings
    value = x.max(axis=2, keepdims=True)
    depth = value - x
    most = depth.max(axis=2, keepdims=True)
    saturation = most / np.where(value > 0, value, 1)
    direction = np.where(most > 0, depth / np.where(most > 0, most, 1), np.array([0.0, 1.0, 1.0]))
    return value * (1 - np.clip(saturation * factor + summand, 0, 1) * direction)


def _contrast(x, factor, random):
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def _image(x):
    from PIL import Image

    return Image.fromarray(np.uint8(np.rint(x * 255)))


def _jpeg(x, quality, random):
    from PIL import Image

    stream = io.BytesIO()
    _image(x).save(stream, "JPEG", quality=quality)
    return _exact(Image.open(stream))


def _pixelate(x, factor, random):
    from PIL import Image

    height, width = x.shape[:2]
    small = _image(x).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return _exact(small.resize((width, height), Image.Resampling.BOX))


def _exact(image):
    """Bytes as numbers that `corrupt` turns into the same bytes."""
    return (np.asarray(image, np.float64) + 0.5) / 255


_MAKERS = {
    "gaussian_noise": lambda x, c, random: x + c * random.standard_normal(x.shape),
    "shot_noise": lambda x, c, random: random.poisson(x * c) / c,
    "impulse_noise": _impulse,
    "speckle_noise": lambda x, c, random: x + x * c * random.standard_normal(x.shape),
    "gaussian_blur": blurs.gaussian,
    "defocus_blur": blurs.defocus,
    "glass_blur": blurs.glass,
    "motion_blur": blurs.motion,
    "zoom_blur": blurs.zoomed,
    "snow": weather.snow,
    "frost": frost.frosted,
    "fog": weather.fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "spatter": spatter.spattered,
    "elastic_transform": _elastic,
    "jpeg_compression": _jpeg,
    "pixelate": _pixelate,
}
