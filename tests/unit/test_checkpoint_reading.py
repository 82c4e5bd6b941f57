"""Foreign files: tensors of every layout are found, and nothing hostile or damaged gets further than a message."""

import argparse
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy
import pytest
import torch
from safetensors.torch import save_file

from drbench import weights
from drbench.checkpoints import formats, reading
from drbench.errors import DrbenchError


class Evil:
    """Unpickling it the ordinary way makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """The file that an attack would make, and must not."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def state():
    rng = torch.Generator().manual_seed(0)
    return OrderedDict(a=torch.randn(3, 4, generator=rng), b=torch.zeros(4), n=torch.tensor(7))


def same(found, state):
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def wrappers(state):
    other = {key: value + 1 for key, value in state.items()}
    prefixed = OrderedDict((f"module.{key}", value) for key, value in state.items())
    double = {f"module._orig_mod.{key}": value for key, value in state.items()}
    return {
        "bare": state,
        "distributed": prefixed,
        "compiled": double,
        "state_dict": {"epoch": 3, "arch": "x", "state_dict": prefixed, "optimizer": {"lr": 0.1}},
        "model": {"model": dict(state), "step": 5},
        "ema first": {"model": other, "ema": state},
        "nested": {"ema": {"state_dict": state, "decay": 0.999}},
        "namespace": {"args": argparse.Namespace(lr=0.1), "state_dict": state},
        "numpy number": {"best": numpy.float64(93.5), "n": numpy.int32(3), "state_dict": state},
    }


@pytest.mark.parametrize("name", [*wrappers({})])
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts(tmp_path, state, name, zipped):
    path = tmp_path / "file.pt"
    torch.save(wrappers(state)[name], path, _use_new_zipfile_serialization=zipped)
    assert reading.sniff(path) == "torch"
    same(reading.tensors(path), state)


def test_safetensors(tmp_path, state):
    save_file(dict(state), tmp_path / "a.bin")
    same(reading.tensors(tmp_path / "a.bin"), state)


def test_allow_list_ends_with_the_call(tmp_path, state):
    torch.save({"args": argparse.Namespace(lr=0.1), "state_dict": state}, tmp_path / "a.pt")
    reading.tensors(tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


def refused(path, message):
    with pytest.raises(DrbenchError, match=message):
        reading.tensors(path)


def test_code_is_refused_and_not_run(tmp_path, marker, state):
    path = tmp_path / "evil.pt"
    for zipped in (True, False):
        torch.save(dict(state) | {"x": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
        refused(path, r"refused.*system.*nothing in it was run")
    path.write_bytes(pickle.dumps(Evil(marker)))
    refused(path, "a bare pickle is a program")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, "Ask for a file of its state dict")
    os.system(f"touch {marker}")  # the attack is real: it works where it is not stopped
    assert marker.exists()
    marker.unlink()


def test_objects_in_numpy_numbers_are_refused(tmp_path, marker):
    for dtype in ("O", "V8", "M8", "U4"):
        with pytest.raises(pickle.UnpicklingError, match="not one of plain numbers"):
            reading.Dtype(dtype)
    torch.save({"best": numpy.array([1.0])}, tmp_path / "a.pt")  # an array, not a number
    refused(tmp_path / "a.pt", "refused")


def test_names_in_archives_lead_nowhere(tmp_path, state):
    """A zip member that climbs out of the archive is never written: nothing is extracted."""
    torch.save(dict(state), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for member in good.infolist():
            bad.writestr(member.filename, good.read(member))
        bad.writestr("../../climbed", b"x")
        bad.writestr("/tmp/climbed-absolute", b"x")
    before = set(tmp_path.parent.rglob("*"))
    try:
        same(reading.tensors(tmp_path / "bad.pt"), state)
    except DrbenchError as error:
        assert "damaged" in str(error)
    assert set(tmp_path.parent.rglob("*")) == before and not os.path.exists("/tmp/climbed-absolute")


def test_damaged_files(tmp_path, state):
    path, st = tmp_path / "a.pt", tmp_path / "a.safetensors"
    torch.save(dict(state), path)
    save_file(dict(state), st)
    whole, other = path.read_bytes(), st.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "damaged or truncated")
        st.write_bytes(other[: int(share * len(other))])
        refused(st, "truncated")
    path.write_bytes(b"")
    refused(path, r"neither safetensors nor.*0 bytes")
    for size in (10**15, 2**63, 10**6):
        st.write_bytes(struct.pack("<Q", size) + b"{" + b" " * 100)
        refused(st, f"header claims {size} bytes")
    st.write_bytes(struct.pack("<Q", 8) + b"{" * 8 + bytes(50))
    refused(st, "damaged")
    for page in (
        b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>",
        b"\n\n <html>",
        b"\xef\xbb\xbf<?xml?>",
    ):
        path.write_bytes(page)
        refused(path, "HTML page.*confirm or quota page")
    refused(tmp_path / "absent.pt", "cannot read .*No such file")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage_ends_in_a_message_or_in_tensors(tmp_path, state, kind):
    path, rng = tmp_path / "file", random.Random(0)
    if kind == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, refusals = path.read_bytes(), 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3:
            for _ in range(rng.choice((1, 2, 5))):
                damaged[rng.randrange(min(len(whole), 4000))] = rng.randrange(256)
        else:
            damaged = damaged[: rng.randrange(len(whole))]
        path.write_bytes(damaged)
        try:
            reading.tensors(path)
        except DrbenchError:
            refusals += 1
    assert refusals >= 100 - 50 * (kind == "zip")


def test_numbers_that_are_none(tmp_path, state):
    for bad in (float("nan"), float("inf"), -float("inf")):
        torch.save({**state, "c": torch.tensor([[1.0, bad]])}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "'c' holds values that are not finite")
    torch.save({**state, "c": torch.zeros(2, 3)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"'c' \(2, 3\) is all zero")
    torch.save({"state_dict": {"a": torch.ones(2), "b": 3}}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "found int under 'b'")
    torch.save([1, 2], tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "expected a state dict .*got list")


def test_tensors_that_are_no_plain_arrays(tmp_path, state):
    path = tmp_path / "a.pt"
    for odd in (torch.ones(4, 4).to(torch.float8_e4m3fn), torch.eye(4).to_sparse(), torch.ones(4, device="meta"),
                torch.ones(4) * 1j, torch.ones(1).expand(10**6, 10**7)):  # fmt: skip
        torch.save({**state, "odd": odd}, path)
        refused(path, r"tensor 'odd' .* expected plain arrays")
    torch.save({**state, "half": torch.ones(4, 4).half(), "view": torch.arange(9.0)[3:]}, path)
    reading.tensors(path)


def test_a_dict_that_holds_itself(tmp_path):
    loop = {"epoch": 3}
    loop["model"] = loop
    torch.save(loop, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "expected a state dict")


@pytest.mark.parametrize("format, odd", [
    ("improved_diffusion", {"a.qkv.weight": torch.ones(5)}),
    ("openai_consistency", {"label_emb.weight": torch.tensor(1.0)}),
    ("edm", {"map_layer0.weight": torch.ones(4, 4), "enc.32x32_conv.weight": torch.ones(0, 3, 3, 3),
             "enc.32x32_block0.conv1.weight": torch.ones(0, 4, 3, 3)}),
    ("resnet_cifar", {"fc.weight": torch.tensor(1.0), "layer1.0.a": torch.ones(2)}),
])  # fmt: skip
def test_tensors_of_odd_shapes(tmp_path, format, odd):
    torch.save(odd, tmp_path / "a.pt")
    with pytest.raises(DrbenchError, match=r"a.pt: (format .* cannot be read|not the tensors)"):
        formats.convert(tmp_path / "a.pt", format, **({"class_cond": True} if "label_emb.weight" in odd else {}))


def test_match_names_the_first_of_each_kind(state):
    expected = {key: value.shape for key, value in state.items()}
    reading.match(expected, state, "x.pt")
    got = {"a": torch.ones(4, 3), "n": state["n"], "extra": torch.ones(1)}
    message = (
        r"x.pt.*1 tensors missing, first 'b'; 1 unexpected, first 'extra'; 1 of another shape, first 'a': expected"
    )
    with pytest.raises(DrbenchError, match=message + r" \(3, 4\), got \(4, 3\)"):
        reading.match(expected, got, "x.pt")


def test_one_flipped_byte_changes_the_hash(tmp_path, state, monkeypatch):
    """Tensors of a damaged file may well load; only the hash tells."""
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path))
    written = weights.write("x/file", dict(state), {"command": "train"})
    content = bytearray(written.path.read_bytes())
    content[-5] ^= 1
    written.path.write_bytes(content)
    reading.tensors(written.path)
    with pytest.raises(DrbenchError, match="does not match the manifest"):
        weights.resolve("x/file")


def test_hash_of_a_stream(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert weights.sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_metadata_cannot_smuggle(tmp_path, state, marker):
    """Metadata of safetensors is text, whatever it says."""
    buffer = io.BytesIO()
    pickle.dump(Evil(marker), buffer)
    save_file(dict(state), tmp_path / "a.safetensors", {"facts": json.dumps(buffer.getvalue().hex())})
    same(reading.tensors(tmp_path / "a.safetensors"), state)
