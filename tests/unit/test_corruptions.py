"""Corruptions made here: values, and their growth with severity."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from drbench import data
from drbench.data import blurs, cifar, corruptions, weather
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError


@pytest.fixture
def clean(monkeypatch):
    """Smooth images instead of CIFAR-10's."""
    ramp = np.linspace(20, 235, 32)
    pixels = np.stack([np.add.outer(ramp, i * ramp / 9) / 2 for i in range(3)], axis=2)
    images = np.stack([np.roll(pixels, 3 * i, axis=1) for i in range(6)]).astype(np.uint8)
    source = Source(range(6), [0, 1, 2, 3, 4, 5], 10, (3, 32, 32), lambda row: unit(images[row]))
    monkeypatch.setattr(cifar, "open_split", lambda split, root, name: source)
    return images


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_generated_corruptions(clean, name):
    """Named as made here, the same in every subset, and worse with each severity."""
    runs = {s: data.load("cifar10-c-generated", f"{name}/{s}", "all") for s in (1, 3, 5)}
    again = data.load("cifar10-c-generated", f"{name}/3", "2to4")
    assert torch.equal(again.x, runs[3].x[2:4]) and again.ids == (2, 3)
    assert again.dataset == "cifar10-c-generated" and again.subset == f"{name}/3/2to4"
    original = torch.from_numpy(clean.transpose(0, 3, 1, 2).astype(np.float32)) / 255
    errors = [float((runs[s].x - original).square().mean()) for s in (1, 3, 5)]
    assert min(errors) > 0
    if name != "elastic_transform":  # its scale goes from large shifts to small waves
        assert errors[0] < errors[2]
    assert runs[1].grid == 255 and not torch.equal(runs[5].x[0], runs[5].x[1])


def test_corruptions_are_deterministic_numbers():
    """A change of these would change every number on them: RandomState's stream is promised for ever."""
    x = np.full((32, 32, 3), 100 / 255)
    made = {name: corruptions.corrupt(x, name, 3, 7) for name in ("gaussian_noise", "impulse_noise", "shot_noise")}
    assert [image[0, 0].tolist() for image in made.values()] == FIRST_PIXELS
    assert not np.array_equal(corruptions.corrupt(x, "gaussian_noise", 3, 8), made["gaussian_noise"])


FIRST_PIXELS = [[105, 96, 87], [100, 100, 100], [114, 127, 63]]


def test_noise_has_its_size():
    x = np.full((32, 32, 3), 128 / 255)
    for severity, sigma in enumerate(corruptions.SEVERITIES["gaussian_noise"], 1):
        noise = [corruptions.corrupt(x, "gaussian_noise", severity, i) / 255 - x for i in range(20)]
        assert abs(np.std(noise) - sigma) < 0.01 * sigma + 0.001
    flipped = np.mean([corruptions.corrupt(x, "impulse_noise", 5, i) != 128 for i in range(20)])
    assert abs(flipped - 0.07) < 0.005
    photons = [corruptions.corrupt(x, "shot_noise", 5, i) / 255 for i in range(20)]
    assert abs(np.var(photons) - (128 / 255) / 50) < 0.0005


def test_colours_are_those_of_hsv():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 99  # black and grey
    for name, severity in (("brightness", 4), ("saturate", 1), ("saturate", 5)):
        made = corruptions.corrupt(pixels / 255, name, severity, 0)
        for row in range(8):
            for column in range(8):
                h, s, v = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
                if name == "brightness":
                    v = min(1, v + 0.2)
                else:
                    factor, summand = corruptions.SEVERITIES[name][severity - 1]
                    s = min(1, s * factor + summand)
                expected = np.array(colorsys.hsv_to_rgb(h, s, v)) * 255
                assert np.all(np.abs(made[row, column] - expected) < 1.001), (name, row, column)


def test_file_corruptions_are_pils():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=58)
    assert np.array_equal(corruptions.corrupt(pixels / 255, "jpeg_compression", 3, 0), np.asarray(Image.open(stream)))
    small = Image.fromarray(pixels).resize((27, 27), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(corruptions.corrupt(pixels / 255, "pixelate", 3, 0), np.asarray(small))


def test_blurs_keep_what_is_constant_and_spread_a_point():
    flat, point = np.full((32, 32, 3), 77 / 255), np.zeros((32, 32, 3))
    point[16, 16] = 1
    for name in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        assert np.all(corruptions.corrupt(flat, name, 5, 0) == 77), name
        spread = corruptions.corrupt(point, name, 5, 0)
        assert 0 < spread.max() < 255 and spread[14:19, 14:19].sum() > 0.2 * 3 * 255, name


def test_glass_shows_neighbours():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    made = np.rint(blurs.glass(pixels / 255, (0.01, 1, 1), np.random.RandomState(0)) * 255)
    near = [np.roll(pixels, (down, right), (0, 1)) for down in (0, 1) for right in (0, 1)]
    found = np.stack([(made == each).all(2) for each in near])[:, 1:, 1:]
    assert found.any(0).all() and np.abs(found.mean((1, 2)) - 0.25).max() < 0.05


def test_elastic_moves_pixels_as_far_as_it_says():
    flat, ramp = np.full((32, 32, 3), 77 / 255), np.tile(np.arange(32)[:, None, None] / 64, (1, 32, 3))
    assert np.all(corruptions.corrupt(flat, "elastic_transform", 5, 0) == 77)
    for settings, most in (((0, 0, 0), 1e-9), ((0, 0, 1.0), 4.0), ((3.2, 0.96, 0), 3.2)):
        made = corruptions._elastic(ramp, settings, np.random.RandomState(1))
        rows = 64 * (made - ramp)[8:24, 8:24]  # by how many rows a pixel has moved
        assert np.abs(rows).max() <= most and (most < 1e-6 or np.abs(rows).max() > 0.1 * most), settings


def test_weather():
    rough, smooth = (weather.clouds(32, decay, np.random.RandomState(3)) for decay in (1.2, 3.0))
    assert all(each.min() == 0 and each.max() == 1 for each in (rough, smooth))
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()
    assert np.abs(smooth[:, 0] - smooth[:, -1]).max() < 0.3  # a torus
    black, grey = np.zeros((32, 32, 3)), np.full((32, 32, 3), 100 / 255)
    assert corruptions.corrupt(black, "fog", 5, 0).max() == 0  # as dark as before
    assert corruptions.corrupt(grey, "fog", 5, 0).max() <= 100
    flakes = corruptions.corrupt(grey, "snow", 3, 0).astype(int)
    pale = 0.9 * 100 + 0.1 * (150 + 127.5)
    assert flakes.min() >= int(pale) and (flakes > pale + 20).any()
    assert np.all(np.abs(flakes - flakes[::-1, ::-1]) <= 1)  # fallen both ways


def test_what_is_not_made_here(clean):
    with pytest.raises(DrbenchError, match="frost is not made here: get CIFAR-10-C"):
        data.load("cifar10-c-generated", "frost/1")
