"""Corruptions made here: values, their growth with severity, and what frost and spatter need besides an image."""

import colorsys
import hashlib
import io
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from drbench import data
from drbench.cli import main
from drbench.data import blurs, cifar, corruptions, frost, shifts, spatter, weather
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError
from drbench.files import datasets


def pack(folder, photographs):
    """A wheel with these photographs (h, w, 3) of bytes, and its bytes and hash as the manifest would state them."""
    with zipfile.ZipFile(folder / frost.WHEEL, "w") as wheel:
        for member, pixels in zip(frost.MEMBERS, photographs, strict=True):
            stream = io.BytesIO()
            Image.fromarray(pixels).convert("RGBA").save(stream, "PNG")  # whatever their names say
            wheel.writestr(member, stream.getvalue())
    content = (folder / frost.WHEEL).read_bytes()
    return {"path": frost.WHEEL, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def ice(tmp_path, monkeypatch):
    """Takes five photographs for those of the manifest."""
    folder = tmp_path / frost.NAME
    folder.mkdir()
    monkeypatch.setenv("DRBENCH_DATA", str(tmp_path))
    known = dict(datasets.manifest())
    monkeypatch.setattr(datasets, "manifest", lambda: known)

    def take(photographs):
        frost.photographs.cache_clear()
        known[frost.NAME] = known[frost.NAME] | {"files": [pack(folder, photographs)]}
        return folder / frost.WHEEL

    return take


def grains(count, height=165, width=170):
    """Photographs of rough ice."""
    random = np.random.default_rng(0)
    return list(random.integers(100, 256, (count, height, width, 3), np.uint8))


@pytest.fixture
def clean(monkeypatch):
    """Smooth images instead of CIFAR-10's."""
    ramp = np.linspace(20, 235, 32)
    pixels = np.stack([np.add.outer(ramp, i * ramp / 9) / 2 for i in range(3)], axis=2)
    images = np.stack([np.roll(pixels, 3 * i, axis=1) for i in range(6)]).astype(np.uint8)
    source = Source(range(6), [0, 1, 2, 3, 4, 5], 10, (3, 32, 32), lambda row: unit(images[row]))
    monkeypatch.setattr(cifar, "open_split", lambda split, root, name: source)
    return images


@pytest.mark.parametrize("name", shifts.CORRUPTIONS)
def test_generated_corruptions(clean, ice, name):
    """Named as made here, the same in every subset, and worse with each severity."""
    if name == "frost":
        ice(grains(5))
    if name == "spatter":
        pytest.importorskip("cv2", reason="needs the extra drbench[corruptions]")
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


def test_frost_is_a_part_of_one_photograph(ice):
    """Scaled to a fifth, shifted by a random number of pixels, and mixed with the factors of the severity."""
    rows, columns = np.indices((200, 300)) // 5
    ice([np.stack([rows, columns, np.full_like(rows, 10 * i)], axis=2).astype(np.uint8) for i in range(5)])
    parts = [frost.frosted(np.zeros((32, 32, 3)), (0.5, 1.0), np.random.RandomState(i)) * 255 for i in range(200)]
    corners = np.array([part[0, 0] for part in parts])
    assert all(np.allclose(part - part[0, 0], parts[0] - parts[0][0, 0]) for part in parts)
    assert np.allclose(parts[0][:, 0, 0] - corners[0, 0], np.arange(32)) and np.allclose(np.diff(parts[0][0, :, 1]), 1)
    assert np.allclose(sorted(set(np.rint(corners[:, 2]))), [0, 10, 20, 30, 40])
    assert np.allclose(corners[:, :2].min(0), [0, 0]) and np.allclose(corners[:, :2].max(0), [8, 28])
    x = np.full((32, 32, 3), 0.5)
    assert np.allclose(frost.frosted(x, (0.5, 1.0), np.random.RandomState(3)) * 255, parts[3] + 0.25 * 255)


def test_frost_of_even_photographs(ice):
    ice([np.zeros((200, 200, 3), np.uint8)] * 5)
    for severity, (factor, _) in enumerate(corruptions.SEVERITIES["frost"], 1):
        assert np.all(corruptions.corrupt(np.full((32, 32, 3), 0.8), "frost", severity, 0) == int(204 * factor + 1e-6))
    ice([np.full((200, 200, 3), 255, np.uint8)] * 5)
    dark, bright = (corruptions.corrupt(np.full((32, 32, 3), grey / 255), "frost", 5, 0) for grey in (100, 204))
    assert np.all(dark == int(75 + 0.45 * 255)) and np.all(bright == 255)


def test_photographs_that_are_not_here_or_not_whole(ice, clean, monkeypatch, capsys):
    def refused(message):
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c-generated", "frost/1")

    words = ["show", "benchmarks/digits/undefended.yaml", "data.name=cifar10-c-generated"]
    refused(r"(?s)has no file imagecorruptions.*sha256 d0e4bf52.*pip download --no-deps imagecorruptions==1\.1\.2")
    assert main([*words, "data.split=frost/1"]) == 0
    assert "# not here: data frost-photographs: pip download --no-deps" in capsys.readouterr().out
    assert main([*words, "data.split=fog/1"]) == 0 and "frost-photographs" not in capsys.readouterr().out
    path = ice(grains(5))
    assert main([*words, "data.split=frost/1"]) == 0 and "frost-photographs" not in capsys.readouterr().out
    assert main(["data", "verify", "frost-photographs"]) == 0 and str(path) in capsys.readouterr().out
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(f"expected {len(content):,} bytes, got {len(content) - 1:,}: truncated")
    path.write_bytes(content[:-1] + b"x")
    refused("expected sha256 .*: damaged")
    assert main(["data", "verify", "frost-photographs"]) == 2
    monkeypatch.delenv("DRBENCH_DATA")
    refused("data 'frost-photographs' needs DRBENCH_DATA, a folder with the sub-folder frost-photographs")


def test_severities_of_frost_and_spatter(ice, clean):
    """Frost darkens the image too, so its size is that of what it adds besides an even change; water, then mud."""
    ice(grains(5))
    x = clean[0] / 255
    changes = [[corruptions.corrupt(x, "frost", s, i) / 255 - x for i in range(20)] for s in range(1, 6)]
    sizes = [np.mean([np.std(change) for change in each]) for each in changes]
    assert sizes == sorted(sizes) and sizes[4] > 1.5 * sizes[0]

    pytest.importorskip("cv2", reason="needs the extra drbench[corruptions]")
    changes = [[corruptions.corrupt(x, "spatter", s, i) / 255 - x for i in range(20)] for s in range(1, 6)]
    water, mud = np.split(np.linalg.norm(changes, axis=(2, 3)).mean((1, 2)), [3])
    assert np.all(np.diff(water) > 0) and np.all(np.diff(mud) > 0)


def test_spatter_without_and_with_nothing_but_liquid(clean):
    x = clean[0] / 255
    assert np.array_equal(spatter.spattered(x, (0.5, 0, 1, 0.6, 0.6, "mud"), np.random.RandomState(0)), x)
    covered = spatter.spattered(x, (0.7, 0, 1, 0.6, 0.6, "mud"), np.random.RandomState(0))
    assert np.allclose(covered * 255, [63, 42, 20])
    pytest.importorskip("cv2", reason="needs the extra drbench[corruptions]")
    assert np.array_equal(spatter.spattered(x, (0.5, 0, 1, 0.6, 0.5, "water"), np.random.RandomState(0)), x)
    light = spatter.spattered(x, corruptions.SEVERITIES["spatter"][2], np.random.RandomState(0)) - x
    strength = light / (np.array([175, 238, 238]) / 255)
    assert np.allclose(strength, strength[:, :, :1]) and np.isclose(strength.max(), 0.5) and strength.min() == 0
    assert 0.05 < np.mean(strength > 0) < 0.5


def test_drops_are_lit_from_one_side():
    """A change of these numbers would change every number on water: they were the same with OpenCV 4.10 and 5.0."""
    pytest.importorskip("cv2", reason="needs the extra drbench[corruptions]")
    rows, columns = np.indices((32, 32)) - 16
    drop = np.where(rows**2 + columns**2 <= 36, 200, 0).astype(np.uint8)
    row = [23, 66, 117, 148, 153, 123, 77, 30, 10, 0, 0]
    assert spatter.relief(drop)[16, 10:21].tolist() == row


def test_water_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DrbenchError, match=r"pip install 'drbench\[corruptions\]'"):
        corruptions.corrupt(np.zeros((32, 32, 3)), "spatter", 1, 0)
