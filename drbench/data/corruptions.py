"""Corruptions of 32x32 photographs, made where the published CIFAR-10-C is not at hand. No torch.

They follow the definitions of Hendrycks and Dietterich 2019 (arXiv 1903.12261, appendix) with severities of their scale
for 32x32 images, but were not compared with the published arrays, which nobody can make anew: their random numbers are
not known. So results on them are results on `cifar10-c-generated`, never on CIFAR-10-C. Motion blur is a line of
Gaussian weights at a random angle. Glass blur, snow, frost, fog, elastic transform and spatter are left out.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np

# One value a severity, 1 to 5.
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),  # standard deviation relative to the value
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),  # radius of the disk, its softness
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # half length of the line, standard deviation
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # the largest zoom, in steps of 0.01
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),  # added to the value of HSV
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),  # factor of the distance to the mean colour
    "saturate": (
        (0.3, 0.0),
        (0.1, 0.0),
        (1.5, 0.0),
        (2.0, 0.1),
        (2.5, 0.2),
    ),  # factor and summand of the saturation of HSV
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.90, 0.85, 0.75, 0.65),  # factor of the side
}
NAMES = tuple(SEVERITIES)


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


def _gaussian_blur(x, sigma, random):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _filtered(x, kernel):
    from scipy.ndimage import convolve

    return convolve(x, kernel[:, :, None] / kernel.sum(), mode="mirror")


def _defocus(x, settings, random):
    from scipy.ndimage import convolve

    radius, softness = settings
    steps = np.arange(-8, 9)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    near = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    return _filtered(x, convolve(disk, np.outer(near, near) / near.sum() ** 2))


def _motion(x, settings, random):
    """A line through the centre, its points split among the four pixels around each."""
    half, sigma = settings
    angle = np.deg2rad(random.uniform(-45, 45))
    kernel = np.zeros((2 * half + 3, 2 * half + 3))
    for step in range(-half, half + 1):
        row, column = half + 1 + step * np.sin(angle), half + 1 + step * np.cos(angle)
        top, left = int(row), int(column)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = (1 - abs(row - top - i)) * (1 - abs(column - left - j))
            kernel[top + i, left + j] += share * np.exp(-(step**2) / (2 * sigma**2))
    return _filtered(x, kernel)


def _zoom(x, largest, random):
    """Mean of the image and of its centre at zooms 1, 1.01, ... below the largest."""
    from scipy.ndimage import affine_transform

    zooms = np.arange(1, largest - 1e-9, 0.01)
    middle = (np.array(x.shape) - 1) / 2
    total = x.copy()
    for zoom in zooms:
        scale = np.array([1 / zoom, 1 / zoom, 1])
        total += affine_transform(x, scale, middle - scale * middle, order=1, mode="nearest")
    return total / (len(zooms) + 1)


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
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus,
    "motion_blur": _motion,
    "zoom_blur": _zoom,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "jpeg_compression": _jpeg,
    "pixelate": _pixelate,
}
