"""Network snapshots of EDM: read without running them, and hostile ones refused without running anything."""

import io
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict

import pytest
import torch

from drbench.checkpoints import formats, persistence, reading
from drbench.errors import DrbenchError
from tests.parity import PARITY, needs_parity
from tests.unit.test_checkpoint_reading import Evil

SOURCE = "import os\nos.system('touch {marker}')\n"


class Placed:
    """Pickles as a call of any global, which need not exist here."""

    def __init__(self, module, name, *args, state=None):
        self.call, self.args, self.state = stand_in(module, name), args, state

    def __reduce__(self):
        return (self.call, self.args) if self.state is None else (self.call, self.args, self.state)


def stand_in(module, name):
    """A function that pickles as `module.name`; the module exists while the test runs."""
    for parent in (module.partition(".")[0], module):
        holder = sys.modules.setdefault(parent, types.ModuleType(parent))
    if not hasattr(holder, name):

        def function(*args):
            raise AssertionError(f"{module}.{name} was called")

        function.__module__, function.__qualname__, function.__name__ = module, name, name
        setattr(holder, name, function)
    return getattr(holder, name)


@pytest.fixture(autouse=True)
def no_official_code():
    """Modules that stand in for official ones are gone before anything is read, and after."""
    yield
    forget()


def forget():
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        sys.modules.pop(name, None)


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


def thing(name, marker, parameters=(), modules=(), version=6, kwargs=None, **more):
    state = {"_parameters": dict(parameters), "_buffers": {}, "_modules": OrderedDict(modules), "training": False}
    meta = {"type": "class", "version": version, "module_src": SOURCE.format(marker=marker), "class_name": name}
    meta["state"] = state | {"_init_kwargs": kwargs or {}, "_init_args": ()} | more
    return Placed("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def snapshot(path, content, protocol=4):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    forget()
    return persistence.snapshot(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_and_arguments(tmp_path, marker, protocol):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3).T)  # not contiguous
    inner = thing("SongUNet", marker, {"w": weight, "none": None}, kwargs={"channel_mult": [2, 2]})
    kwargs = Placed("dnnlib.util", "EasyDict", state=None)
    outer = thing(
        "EDMPrecond", marker, modules={"model": inner, "nothing": None}, kwargs={"label_dim": 10, "o": kwargs}
    )
    found = snapshot(tmp_path / "a.pkl", {"ema": outer, "loss_fn": thing("Loss", marker)}, protocol)
    assert found.class_name == "EDMPrecond" and found.state.keys() == {"model.w"}
    assert torch.equal(found.state["model.w"], weight) and type(found.state["model.w"]) is torch.Tensor
    assert found.kwargs == {"label_dim": 10, "o": {}, "model": {"channel_mult": [2, 2]}}


@needs_parity
def test_the_official_snapshot_holds_the_official_state_dict():
    found = persistence.snapshot(PARITY / "edm_ddpmpp_c16.pkl")
    flat = reading.tensors(PARITY / "edm_ddpmpp_c16.pt")
    assert found.state.keys() == flat.keys() and all(torch.equal(found.state[key], flat[key]) for key in flat)
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules


def refused(path, content, message):
    with pytest.raises(DrbenchError, match=message):
        snapshot(path, content)


def test_attacks(tmp_path, marker):
    """Directly, in the state, in the bytes of a tensor, and as an object of the fixture's own allowed names."""
    path = tmp_path / "a.pkl"
    refused(path, Evil(marker), "refused.*system, which is not in the list.*nothing in it was run")
    refused(path, {"ema": thing("Net", marker, {"w": Evil(marker)})}, "system, which is not")
    nested = Placed("torch.storage", "_load_from_bytes", pickle.dumps(Evil(marker)))
    refused(path, {"ema": thing("Net", marker, {"w": nested})}, "refused")
    buffer = io.BytesIO()
    torch.save({"x": Evil(marker)}, buffer)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"x": Evil(marker)}, buffer, _use_new_zipfile_serialization=zipped)
        nested = Placed("torch.storage", "_load_from_bytes", buffer.getvalue())
        refused(path, {"ema": thing("Net", marker, {"w": nested})}, "refused.*system")
    for module, name in (("builtins", "eval"), ("builtins", "getattr"), ("posix", "system"), ("torch", "load")):
        call = f"c{module}\n{name}\n(S'1'\ntR.".encode()
        refused(path, b"\x80\x02" + call, f"{module}.{name}, which is not")
    refused(path, b"\x80\x04\x8c\x05torch\x8c\x18storage._load_from_bytes\x93.", "not in the list")  # dotted names


def test_other_versions_and_kinds(tmp_path, marker):
    path = tmp_path / "a.pkl"
    refused(path, {"ema": thing("Net", marker, version=5)}, "expected persistence version 6.*got version 5")
    refused(path, {"G": thing("Net", marker)}, "a network under 'ema'")
    refused(path, [1, 2], "a network under 'ema'")
    refused(path, {"ema": thing("Net", marker, {"w": 3})}, "w is no tensor")
    refused(path, {"ema": Placed("torch_utils.persistence", "_reconstruct_persistent_obj", 3)}, "got version None")
    torch.save({}, path)
    with pytest.raises(DrbenchError, match="expected a network snapshot"):
        persistence.snapshot(path)


def test_streams_that_would_take_the_memory(tmp_path, marker):
    path = tmp_path / "a.pkl"
    refused(path, b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "refused")  # bytes that are not there
    refused(path, b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".", "memo place out of range")
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    refused(path, deep, "a network under 'ema'")
    refused(path, b"\x80\x02" + b"N0" * 200_000 + b"N.", "more than 300000")
    loop = []
    for _ in range(60):  # 2^60 paths through 60 lists
        loop = [loop, loop]
    refused(path, {"ema": thing("Net", marker, kwargs={"x": loop})}, "more than 300000 objects")
    node = thing("Net", marker)
    for _ in range(60):
        node = thing("Net", marker, modules={"a": node, "b": node})
    refused(path, {"ema": node}, "more than 300000 objects")
    whole = pickle.dumps({"ema": thing("Net", marker, {"w": torch.ones(4, 4)})})
    for share in (0.2, 0.5, 0.9):
        refused(path, whole[: int(share * len(whole))], "refused")


def test_tensors_larger_than_their_numbers(tmp_path, marker):
    """A stride of 0 makes a million numbers of one, at no cost to the file."""
    buffer = io.BytesIO()
    torch.save(torch.ones(1).storage(), buffer, _use_new_zipfile_serialization=False)
    flat = Placed("torch.storage", "_load_from_bytes", buffer.getvalue())
    for size, stride, offset in (((10**6, 10**6), (0, 0), 0), ((1,), (1,), 5), ((1,), (1,), -1)):
        tensor = Placed("torch._utils", "_rebuild_tensor_v2", flat, offset, size, stride, False, OrderedDict())
        refused(tmp_path / "a.pkl", {"ema": thing("Net", marker, {"w": tensor})}, "refused")


def test_one_tensor_under_many_names(tmp_path, marker):
    """References cost the file nothing, and copies the memory much."""
    weight = torch.ones(1000)
    names = {str(i): weight for i in range(1000)}
    refused(tmp_path / "a.pkl", {"ema": thing("Net", marker, names)}, "tensors hold more bytes than the file")


@needs_parity
def test_tensors_say_the_architecture(monkeypatch):
    """A snapshot that states a billion blocks is not built with them."""
    path = PARITY / "edm_ddpmpp_c16.pkl"
    found = persistence.snapshot(path)
    stated = found._replace(kwargs=found.kwargs | {"num_blocks": 7})
    monkeypatch.setattr(persistence, "snapshot", lambda path: stated)
    assert formats.convert(path, "edm").spec["num_blocks"] == 2


def test_a_stream_cannot_change_the_reader(tmp_path, marker):
    """It may set attributes of a class that it is given: that class is gone with the file."""
    poison = b"\x80\x02ctorch.nn.modules.container\nModuleDict\n(N}U\x0c__setstate__Nstb0N."
    with pytest.raises(DrbenchError):
        snapshot(tmp_path / "a.pkl", poison)
    weight = torch.ones(2, 2)
    found = snapshot(tmp_path / "b.pkl", {"ema": thing("Net", marker, {"w": weight})})
    assert torch.equal(found.state["w"], weight)
    assert os.path.exists(tmp_path / "b.pkl")
