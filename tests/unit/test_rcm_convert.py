"""Files in the official layout of RCM become a defense with the same answers; bad files are refused with a reason."""

import json

import pytest
import torch
from safetensors.torch import save_file

import drbench
from drbench.checkpoints import formats
from drbench.data import Images
from drbench.errors import DrbenchError
from methods.rcm.convert import convert, main
from methods.rcm.defense import RCM
from methods.rcm.network import Classifier, ViT
from methods.rcm.path import grid, snap
from tests.parity import PARITY, assert_equal_outputs, needs_parity, recorded


def official(folder, name, sigma, prefix="", seed=0, width=16, **facts):
    """Write a network as the official code would, with projector, and its side-car; return it and its path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(ViT((3, 8, 8), 4, width, 2, 2, projector=12), 5).eval()
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    path = folder / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    (folder / f"{name}.json").write_text(json.dumps({"sigma": sigma, "heads": 2, "layernorm": True, **facts}))
    return network, path


def test_files_become_one_defense(tmp_path, capsys):
    """Two levels, given out of order, one file of several GPUs and one safetensors file."""
    high, first = official(tmp_path, "n10run.pt", 0.5, "module.", seed=1)
    low, second = official(tmp_path, "n05run.safetensors", 0.25, seed=2)
    out = tmp_path / "out.safetensors"
    assert main([str(out), str(first), str(second)]) == 0
    printed = json.loads(capsys.readouterr().out.removeprefix("defense: "))
    images = Images(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), tuple(range(4)), "given", "all", 5)
    defense = drbench.load_defense(printed["name"], images, printed["checkpoint"], **printed["args"])
    assert defense.sigmas == (0.25, 0.5)
    z = images.x + 0.5
    with torch.no_grad():
        for sigma, network in ((0.25, low), (0.5, high)):
            assert torch.equal(defense.logits(z, sigma, None), network(2 * z - 1, snap(2 * sigma, 81)))
    assert not any("projection_head" in key for key in defense.state_dict())


def test_what_a_side_car_leaves_out(tmp_path):
    _, path = official(tmp_path, "a.pt", 1)
    (tmp_path / "a.pt.json").write_text('{"sigma": 1}')
    _, args = convert([path])
    assert (args["heads"], args["grid"], args["layernorm"], args["sigmas"]) == (1, 81, False, [1.0])
    assert args["input_shape"] == [3, 8, 8] and args["num_classes"] == 5 and args["depth"] == 2


@pytest.mark.parametrize(
    "side_car, message",
    [(None, "expected a JSON object"), ("{", "expected a JSON object"), ("[]", "an object with sigma"),
     ('{"heads": 2}', "an object with sigma"), ('{"sigma": 1, "sigmas": 2}', "an object with sigma"),
     ('{"sigma": "1"}', "sigma as float"), ('{"sigma": 1, "layernorm": 1}', "layernorm as bool")],
)  # fmt: skip
def test_bad_side_cars(tmp_path, side_car, message):
    _, path = official(tmp_path, "a.pt", 1)
    place = tmp_path / "a.pt.json"
    place.unlink() if side_car is None else place.write_text(side_car)
    with pytest.raises(DrbenchError, match=message):
        convert([path])


def test_bad_files(tmp_path):
    network, path = official(tmp_path, "a.pt", 0.5)
    state = network.state_dict()

    def refused(content, message):
        content = {key: value for key, value in content.items() if value is not None}
        torch.save(content, path)
        with pytest.raises(DrbenchError, match=message):
            convert([path])

    refused({key.removeprefix("base_model."): value for key, value in state.items()}, "must be tuned first")
    refused(state | {"linear_head.weight": None}, "linear_head.weight.*must be tuned first")
    refused(state | {"base_model.blocks.1.attn.proj.bias": None}, "1 tensors missing, first .*blocks.1.attn.proj.bias")
    refused(state | {"base_model.extra": torch.ones(3)}, "1 unexpected, first .base_model.extra")
    refused(state | {"base_model.norm.bias": torch.ones(3)}, r"norm.bias.: expected \(16,\), got \(3,\)")
    refused({"other": state}, "expected a state dict")
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(DrbenchError, match="neither safetensors nor"):
        convert([path])


def test_files_that_do_not_belong_together(tmp_path, capsys):
    _, first = official(tmp_path, "a.pt", 0.5)
    _, same = official(tmp_path, "b.pt", 0.5)
    _, wider = official(tmp_path, "c.pt", 1.0, width=32)
    with pytest.raises(DrbenchError, match="one file for each noise level"):
        convert([first, same])
    with pytest.raises(DrbenchError, match="expected one architecture"):
        convert([first, wider])
    assert main([str(tmp_path / "out.safetensors"), str(first), str(same)]) == 2
    assert "one file for each noise level" in capsys.readouterr().err
    assert main([]) == 2


@needs_parity
@pytest.mark.parametrize("name", ["rrcm_w64.pt", "rrcm_w64_ddp.pt"])
@pytest.mark.parametrize("layernorm", [True, False])
def test_official_outputs(name, layernorm):
    """Every recorded output of the official code, from both kinds of file, through the format "rrcm"."""
    io = recorded("rrcm_w64")
    for sigma in (0.25, 0.5, 1.0):
        found = formats.convert(PARITY / name, "rrcm", sigma=sigma, heads=4, layernorm=layernorm)
        defense = RCM.from_checkpoint(found.state, **found.spec).eval()
        assert found.role == "defense" and defense.sigmas == (sigma,)
        index, t = int(io[f"sigma{sigma}_index"][0]), float(io[f"sigma{sigma}_t"][0])
        assert grid(81)[index] == snap(2 * sigma, 81) == pytest.approx(t, rel=1e-6)
        with torch.no_grad():
            logits = defense.logits(io[f"sigma{sigma}_noisy01"], sigma, None)
        assert_equal_outputs(logits, io[f"sigma{sigma}_logits_{'' if layernorm else 'no'}layernorm"])


@needs_parity
def test_what_the_format_must_be_told():
    with pytest.raises(DrbenchError, match="expected a JSON object such as"):
        formats.convert(PARITY / "rrcm_w64.pt", "rrcm")
    with pytest.raises(DrbenchError, match="expected an object with sigma"):
        formats.convert(PARITY / "rrcm_w64.pt", "rrcm", heads=4)
