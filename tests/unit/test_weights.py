"""Checkpoints: hash before parsing, merging of files, and every damage with its message."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from drbench import weights
from drbench.errors import DrbenchError

STATE = {"a.weight": torch.arange(4.0), "a.bias": torch.zeros(1)}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path))
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def test_write_and_read(home):
    written = weights.write("digits/a", STATE, {"seed": 3, "command": "drbench train a.yaml"})
    found = weights.resolve("digits/a")
    assert found == written
    assert weights.manifest()["digits/a"]["seed"] == 3
    read = weights.read([found])
    assert read.keys() == STATE.keys() and all(torch.equal(read[key], STATE[key]) for key in STATE)
    weights.write("digits/b", {"b": torch.ones(1)}, {})
    assert weights.resolve("digits/a") == written  # a second entry leaves the first alone
    assert set(weights.read([found, weights.resolve("digits/b")])) == {"a.weight", "a.bias", "b"}


def test_a_file_for_another_part(home, tmp_path):
    """Two files of one layout in one defense: the second is given to the part that the config names."""
    first, second = weights.write("digits/a", STATE, {}), weights.write("digits/b", STATE, {})
    read = weights.read([weights.resolve("digits/a"), weights.resolve("digits/b as other")])
    assert set(read) == {"a.weight", "a.bias", "other.weight", "other.bias"}
    assert weights.resolve("digits/b as other") == (*second[:3], "other") and first.part == ""
    with pytest.raises(DrbenchError, match="is already given by"):
        weights.read([weights.resolve("digits/a"), weights.resolve("digits/b")])
    path = str(tmp_path / "kept as found" / "a.safetensors")  # the words in a path are no part
    assert weights.resolve(str(weights.write(path, STATE, {}).path)).part == ""


def test_file_outside_the_manifest(home, tmp_path):
    written = weights.write(str(tmp_path / "new" / "mine.safetensors"), STATE, {"seed": 1})
    assert weights.resolve(str(written.path)).sha256 == written.sha256
    assert weights.manifest() == {}


def test_what_cannot_be_written_leaves_what_was_there(home, tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    before = weights.write(str(path), STATE, {})
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def full(state, file, metadata):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DrbenchError, match=r"cannot write weights to .*mine.safetensors: I/O error: No space left"):
        weights.write(str(path), {"other": torch.ones(1)}, {})
    assert weights.resolve(str(path)) == before and not list(tmp_path.glob("*.partial"))


def test_one_flipped_byte_is_found_before_parsing(home):
    path = weights.write("digits/a", STATE, {"command": "drbench train a.yaml"}).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DrbenchError, match=r"does not match the manifest .* drbench train a.yaml"):
        weights.resolve("digits/a")


def test_damage_is_reported(home, tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (b"", b"<html>quota exceeded</html>", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(DrbenchError, match="not a readable safetensors file"):
            weights.read([weights.resolve(str(path))])
    save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(DrbenchError, match="'a' holds values that are not finite"):
        weights.read([weights.resolve(str(path))])
    save_file({"a": torch.tensor([1.0])}, path)
    twice = [weights.resolve(str(path))] * 2
    with pytest.raises(DrbenchError, match="already given"):
        weights.read(twice)


def test_writers_of_the_manifest_wait_for_each_other(home):
    """Several trainings may end at once; none loses its entry."""
    script = "import sys, torch; from drbench import weights\n" \
             "for i in range(20): weights.write(f'{sys.argv[1]}/{i}', {'a': torch.ones(1)}, {})"  # fmt: skip
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(weights.manifest()) == {f"{name}/{i}" for name in "ab" for i in range(20)}


def test_a_file_of_another_project_is_sent_to_the_command_that_converts_it(home):
    for name in ("resnet20-12fca82f.th", "~/model.pt"):
        with pytest.raises(DrbenchError, match=rf"checkpoint {name}: .*`drbench weights add {name}`"):
            weights.resolve(name)


def test_names(home):
    weights.write("digits/classifier", STATE, {})
    with pytest.raises(DrbenchError, match="did you mean 'digits/classifier'"):
        weights.resolve("digits/clasifier")
    with pytest.raises(DrbenchError, match="cannot read"):
        weights.resolve("nowhere/a.safetensors")
