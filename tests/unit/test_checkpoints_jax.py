"""Files in the layout of flax, written here byte for byte, and the mapping of an NCSN++ in them."""

import pytest
import torch
from torch import nn

from drbench.checkpoints import flax, formats, jax_consistency
from drbench.diffusion import networks
from drbench.errors import DrbenchError

msgpack = pytest.importorskip("msgpack")

TINY = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def packed(tensor, dtype=None, code=1):
    """One array as `flax.serialization` writes it."""
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()
    name = dtype or str(tensor.dtype).removeprefix("torch.")
    return msgpack.ExtType(code, msgpack.packb((tuple(tensor.shape), name, content), use_bin_type=True))


def nested(flat, pack=packed):
    tree = {}
    for key, value in flat.items():
        *folders, leaf = key.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = pack(value)
    return tree


def write(path, tree):
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    return path


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- reading -----------------------------------------------------------------------------------------------


def test_arrays_scalars_and_cut_arrays(tmp_path):
    a, b, big = normals(0, 2, 3), normals(1, 4).bfloat16(), normals(2, 3, 4)
    cut = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4},
           "chunks": {"0": packed(big.flatten()[:5]), "1": packed(big.flatten()[5:])}}  # fmt: skip
    params = {"a": packed(a), "deep": {"b": packed(b)}, "big": cut, "none": packed(torch.zeros(0, 2))}
    tree = {"step": 7, "params": params, "best": packed(torch.tensor(0.5), code=3), "note": "text"}
    read = flax.tree(write(tmp_path / "file", tree))
    assert read["step"] == 7 and read["note"] == "text" and float(read["best"].tensor()) == 0.5
    flat = flax.flattened(read["params"])
    assert list(flat) == ["a", "deep/b", "big", "none"]
    assert torch.equal(flat["a"], a) and torch.equal(flat["deep/b"], b) and torch.equal(flat["big"], big)
    assert flat["deep/b"].dtype == torch.bfloat16 and flat["none"].shape == (0, 2)


def inner(*content):
    return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a readable msgpack file"), (b"<html>", "expected a mapping|not a readable"),
     (msgpack.packb([1, 2]), "expected a mapping, as flax writes it, got list"),
     (msgpack.packb({"a": 1}) + b"x", "not a readable msgpack"),
     (msgpack.packb({"a": normals(0, 9).tolist()})[:-3], "not a readable msgpack"),
     (b"\xdf\xff\xff\xff\xff", "not a readable msgpack"),
     (b"\x91" * 100_000, "not a readable msgpack"),
     (msgpack.packb({"a": msgpack.ExtType(2, b"")}), "complex"),
     (msgpack.packb({"a": msgpack.ExtType(42, b"")}), "extension 42"),
     (msgpack.packb({"a": inner([2], "float32", b"1234")}), r"4 bytes that claims float32 \[2\]"),
     (msgpack.packb({"a": inner([-1, -1], "float32", b"1234")}), r"of shape \[-1, -1\]"),
     (msgpack.packb({"a": inner([1], "object", b"1234")}), "type 'object'"),
     (msgpack.packb({"a": inner([1], "float32")}), "without shape, type and bytes"),
     (msgpack.packb({"a": inner(1, "float32", b"1234")}), "without shape, type and bytes")],
    ids=range(14),
)  # fmt: skip
def test_damaged_and_hostile_files(content, said, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DrbenchError, match=said):
        flax.tree(tmp_path / "file")


def test_other_leaves_and_bad_pieces():
    with pytest.raises(DrbenchError, match="found str under 'a'"):
        flax.flattened({"a": "text"})
    one = flax.Array((), "float32", b"1234")
    with pytest.raises(DrbenchError, match="pieces do not fit"):
        flax.flattened({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": one}}})
    with pytest.raises(DrbenchError, match="cannot read"):
        flax.tree("/nowhere/at/all")


# ---- mapping -----------------------------------------------------------------------------------------------


def parts(name, layer, names):
    """A layer's tensors under flax' names, with inputs and outputs last."""
    found = {}
    for leaf, value in layer.items():
        if leaf == "weight" and value.ndim == 4:
            value = value.permute(2, 3, 1, 0)
        elif leaf == "weight" and value.ndim == 2:
            value = value.T
        found[f"{name}/{names[leaf]}"] = value
    return found


def in_flax(denoiser):
    """The weights of a `SongUNet` of the shape above under the names of flax, written down by hand for this shape."""
    state = {key.removeprefix("network."): value for key, value in denoiser.state_dict().items()}

    def layer(name):
        return {leaf: state[f"{name}.{leaf}"] for leaf in ("weight", "bias") if f"{name}.{leaf}" in state}

    kernel, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "bias"}
    found = {"GaussianFourierProjection_0/W": state["map_noise.freqs"]}
    found |= parts("Dense_0", layer("map_layer0"), kernel) | parts("Dense_1", layer("map_layer1"), kernel)
    found |= parts("Conv_0", layer("enc.8x8_conv"), kernel) | parts("Conv_1", layer("dec.8x8_aux_conv"), kernel)
    found |= parts("GroupNorm_0", layer("dec.8x8_aux_norm"), norm)
    found |= parts("Downsample_0/Conv2d_0", layer("enc.4x4_aux_residual"), {"weight": "weight", "bias": "bias"})
    called = ["enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0",
              "dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1"]  # fmt: skip
    for i, ours in enumerate(called):
        for theirs, name in {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1",
                             "Conv_1": "conv1", "Conv_2": "skip"}.items():  # fmt: skip
            names = norm if "norm" in name else kernel
            found |= parts(f"ResnetBlockBigGANpp_{i}/{theirs}", layer(f"{ours}.{name}"), names)
    for i, ours in enumerate(["enc.4x4_block0", "dec.4x4_in0", "dec.4x4_block1"]):
        name = f"AttnBlockpp_{i}"
        found |= parts(f"{name}/GroupNorm_0", layer(f"{ours}.norm2"), norm)
        for part in range(3):
            weight, bias = (state[f"{ours}.qkv.{leaf}"][part::3] for leaf in ("weight", "bias"))
            found |= {f"{name}/NIN_{part}/W": weight[:, :, 0, 0].T, f"{name}/NIN_{part}/b": bias}
        found |= {f"{name}/NIN_3/W": state[f"{ours}.proj.weight"][:, :, 0, 0].T,
                  f"{name}/NIN_3/b": state[f"{ours}.proj.bias"]}  # fmt: skip
    return found


def made():
    """A network of that shape with random weights everywhere, and its file's tree of weights."""
    spec = {"kind": "edm_song", **TINY, **jax_consistency.FIXED, "t_min": 0.002}
    denoiser = networks.build(spec, (3, 8, 8), 10).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    for value in denoiser.parameters():
        value.copy_(0.3 * torch.randn(value.shape, generator=rng))
    return denoiser, in_flax(denoiser)


def test_a_file_gives_the_network_that_it_came_from(tmp_path):
    denoiser, flat = made()
    path = write(tmp_path / "checkpoint_80", {"step": 800, "params_ema": nested(flat), "opt_state": {"x": None}})
    converted = formats.convert(path, "jax_consistency", **TINY)
    read = networks.build(converted.spec, (3, 8, 8), 10)
    read.load_state_dict(converted.state, strict=True)
    z = normals(3, 2, 3, 8, 8)
    assert torch.equal(read.eval()(z, 0.7), denoiser(z, 0.7))
    assert isinstance(read, nn.Module) and torch.allclose(read(z, 0.002), z)
    teacher = networks.build(formats.convert(path, "jax_consistency", **TINY, t_min=None).spec, (3, 8, 8), 10)
    teacher.load_state_dict(converted.state, strict=True)
    assert not torch.allclose(teacher.eval()(z, 0.7), read(z, 0.7), atol=1e-4)


def test_released_configuration_has_the_size_of_the_released_files():
    """902 MB in four copies of float32 are about 56 million parameters."""
    spec = {
        "kind": "edm_song",
        "img_resolution": 32,
        **jax_consistency.CIFAR10,
        **jax_consistency.FIXED,
        "t_min": 0.002,
    }
    with torch.device("meta"):
        denoiser = networks.build(spec, (3, 32, 32), 10)
    parameters = sum(value.numel() for value in denoiser.parameters())
    assert parameters == pytest.approx(902e6 / 16, rel=0.02)


def test_what_cannot_be_mapped_is_listed(tmp_path):
    _, flat = made()

    def convert(tree, **config):
        return formats.convert(write(tmp_path / "file", tree), "jax_consistency", **{**TINY, **config})

    with pytest.raises(DrbenchError, match="expected the weights under 'params_ema', found step, params"):
        convert({"step": 1, "params": nested(flat)})
    assert convert({"params": nested(flat)}, params="params").role == "denoiser"
    with pytest.raises(DrbenchError, match=r"1 of \d+ arrays .* cannot be mapped: Extra_0/kernel \(2, 2\)"):
        convert({"params_ema": nested({**flat, "Extra_0/kernel": torch.ones(2, 2)})})
    with pytest.raises(DrbenchError, match=r"arrays .* cannot be mapped: AttnBlockpp_1"):
        convert({"params_ema": nested(flat)}, channel_mult=[1])
    with pytest.raises(DrbenchError, match=r"1 tensors missing, first 'network.dec.8x8_aux_conv.bias'"):
        convert({"params_ema": nested({key: value for key, value in flat.items() if key != "Conv_1/bias"})})
    with pytest.raises(DrbenchError, match="of another shape"):
        convert({"params_ema": nested(flat)}, model_channels=16)
    with pytest.raises(DrbenchError, match="no option num_block; it takes params"):
        convert({"params_ema": nested(flat)}, num_block=1)
