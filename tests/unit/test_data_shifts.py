"""CIFAR-10-C, CIFAR-10.1 and corruptions made here: sparse files of the published sizes, damaged ones, values."""

import colorsys
import io
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from drbench import data, datasets
from drbench.data import arrays, blurs, cifar, corruptions, shifts, weather
from drbench.data.source import Source, unit
from drbench.errors import DrbenchError


def sparse(path, shape, dtype=np.uint8):
    """A .npy of any size that takes no space: zeros, to be written into."""
    path.parent.mkdir(exist_ok=True, parents=True)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


@pytest.fixture
def root(tmp_path):
    """CIFAR-10-C unpacked, with the corruption fog: image i at severity s has the grey value 10 s + i for i < 5."""
    pixels = sparse(tmp_path / "CIFAR-10-C" / "fog.npy", (50_000, 32, 32, 3))
    for severity in range(5):
        for i in range(5):
            pixels[severity * 10_000 + i] = 10 * (severity + 1) + i
    sparse(tmp_path / "CIFAR-10-C" / "labels.npy", (50_000,))[:] = np.tile(np.arange(10_000) % 10, 5)
    return tmp_path


def test_severities_are_blocks_of_an_array(root):
    for severity in (1, 5):
        images = data.load("cifar10-c", f"fog/{severity}", "first5", root)
        assert (images.x[:, 0, 3, 3] * 255).round().tolist() == [10 * severity + i for i in range(5)]
        assert images.y.tolist() == [0, 1, 2, 3, 4] and images.ids == (0, 1, 2, 3, 4) and images.shape == (3, 32, 32)
        assert (images.dataset, images.subset) == ("cifar10-c", f"fog/{severity}/first5")
    assert len(data.load("cifar10-c", "fog/2", "every20", root)) == 500


def test_only_chosen_images_are_read(root):
    tracemalloc.start()
    data.load("cifar10-c", "fog/5", "first5", root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # the array has 154 million bytes


def test_splits_of_cifar10_c(root):
    for split, message in (
        ("fgo/3", "did you mean 'fog'"),
        ("fog", "with a severity 1-5"),
        ("fog/6", "with a severity 1-5"),
        ("snow/1", r"has no CIFAR-10-C.tar or CIFAR-10-C/snow.npy"),
    ):
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c", split, root=root)


def test_damaged_arrays(root):
    path = root / "CIFAR-10-C" / "fog.npy"

    def refused(message):
        with pytest.raises(DrbenchError, match=message):
            data.load("cifar10-c", "fog/1", "first1", root)

    with path.open("r+b") as stream:
        stream.truncate(1000)
    refused("truncated or damaged")
    path.write_bytes(b"<html>")
    refused("not readable as .npy")
    np.save(path, np.array([{}] * 3, object), allow_pickle=True)
    refused("pickled arrays are not read")
    np.save(path, np.zeros((9, 32, 32, 3), np.uint8))
    refused(r"expected 50,000 rows, got an array of shape \(9, 32, 32, 3\)")
    sparse(path, (50_000, 3, 32, 32))
    refused(r"expected bytes of shape \(N, 32, 32, 3\), got uint8")
    sparse(path, (50_000, 32, 32, 3), np.float32)
    refused("expected bytes or integers, got float32")
    sparse(path, (50_000, 32, 32, 3))
    labels = sparse(root / "CIFAR-10-C" / "labels.npy", (50_000,))
    labels[0] = 1
    labels.flush()
    with pytest.raises(DrbenchError, match="labels of CIFAR-10-C to repeat"):
        data.load("cifar10-c", "fog/2", "first1", root)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_the_archive_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(shifts, "ROWS", 4)
    known = datasets.manifest()
    monkeypatch.setattr(datasets, "manifest", lambda: {name: entry | {"files": []} for name, entry in known.items()})
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    contents = {"labels.npy": npy(np.arange(20, dtype=np.uint8) % 4), "frost.npy": npy(pixels)}
    with tarfile.open(tmp_path / "CIFAR-10-C.tar", "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"CIFAR-10-C/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = data.from_source(shifts.open_split("frost/3", tmp_path, "cifar10-c"), "x", "y")
    assert np.array_equal((images.x * 255).round().numpy().transpose(0, 2, 3, 1), pixels[8:12])
    with pytest.raises(DrbenchError, match=r"expected a member snow\.npy"):
        data.load("cifar10-c", "snow/1", root=tmp_path)
    path = tmp_path / "CIFAR-10-C.tar"
    path.write_bytes(path.read_bytes()[:-30_000])
    with pytest.raises(DrbenchError, match="truncated or damaged"):
        data.load("cifar10-c", "frost/1", root=tmp_path)
    monkeypatch.undo()
    with pytest.raises(DrbenchError, match="expected 2,918,471,680 bytes"):
        data.load("cifar10-c", "frost/1", root=tmp_path)


def test_cifar10_1(tmp_path, monkeypatch):
    for version, rows in shifts.VERSIONS.items():
        sparse(tmp_path / f"cifar10.1_{version}_data.npy", (rows, 32, 32, 3))[1] = 255
        sparse(tmp_path / f"cifar10.1_{version}_labels.npy", (rows,), np.int32)[1] = 9
    with pytest.raises(DrbenchError, match="expected sha256 2997188e5816"):  # of the right size, but not the published
        data.load("cifar10.1", "v6", root=tmp_path)
    known = datasets.manifest()
    monkeypatch.setattr(datasets, "manifest", lambda: {name: entry | {"files": []} for name, entry in known.items()})
    for version, rows in shifts.VERSIONS.items():
        images = data.load("cifar10.1", version, root=tmp_path)
        assert len(images) == rows and images.x[1].min() == 1 and images.y[:3].tolist() == [0, 9, 0]
    with pytest.raises(DrbenchError, match="available: v4"):
        data.load("cifar10.1", "v5", root=tmp_path)


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


def test_arrays_by_column_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(np.zeros((4, 5), np.uint8)))
    with pytest.raises(DrbenchError, match="row by row"):
        arrays.mapped(arrays.alone(tmp_path / "a.npy"))
