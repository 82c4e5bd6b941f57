"""`drbench weights` and `drbench data`: what lies where, and what the verbs say of it."""

import hashlib
import io
import tarfile

import pytest
import torch
import yaml
from safetensors.torch import save_file

from drbench import weights
from drbench.checkpoints import formats
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.files import data_files, foreign


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project with one foreign file, one made here, and two data sets."""
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DRBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("DRBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "home" / "benchmarks").mkdir(parents=True)
    entries = {"them/net": {"file": "net.pt", "format": "known", "where": "their page"},
               "us/net": {"make": "drbench train us.yaml"}}  # fmt: skip
    (tmp_path / "home" / "benchmarks" / "foreign.yaml").write_text(yaml.safe_dump(entries))
    sets = {
        "pair": {"title": "Pair", "licence": "-", "splits": {"test": 5}, "files": [
            {"path": "a.bin", "layout": "one"}, {"path": "b.bin", "layout": "one"},
            {"path": "c.bin", "layout": "two"}]},
        "packed": {"title": "Packed", "licence": "-", "where": "somewhere", "files": [
            {"path": "all.tar", "unpack": True}, {"path": "x.bin", "of": "all.tar"}]},
    }  # fmt: skip
    (tmp_path / "home" / "benchmarks" / "datasets.yaml").write_text(yaml.safe_dump(sets))
    return tmp_path


def test_a_foreign_file_is_converted_and_then_named_like_our_own(home, monkeypatch, capsys):
    def convert(path, format):
        return formats.Converted({"w": torch.ones(2)}, "denoiser", {"kind": format})

    monkeypatch.setattr(formats, "convert", convert)
    given = home / "net.pt"
    given.write_bytes(b"PK\x03\x04 weights")
    with pytest.raises(DrbenchError, match=r"(?s)weights them/net are not here.*their page.*--name them/net"):
        weights.resolve("them/net")
    assert main(["weights", "add", str(given)]) == 0
    said = capsys.readouterr().out
    assert hashlib.sha256(given.read_bytes()).hexdigest() in said and "trusted on first use" in said
    found = weights.resolve("them/net")
    assert set(weights.read([found])) == {"denoiser.w"}
    assert main(["weights", "verify"]) == 0
    said = capsys.readouterr().out
    assert found.sha256 in said and said.endswith("\n1 file verified\n")
    save_file({"denoiser.w": torch.zeros(2)}, found.path)
    with pytest.raises(DrbenchError, match="does not match"):
        weights.resolve("them/net")
    assert main(["weights", "verify"]) == 2


def test_what_nobody_published_of_a_file_has_to_be_written_down(home, capsys):
    place, given = home / "home" / "benchmarks" / "foreign.yaml", home / "net.pt"
    place.write_text('them/net: {file: net.pt, format: timm, config: {arch: "???"}}')
    given.write_bytes(b"PK\x03\x04 weights")
    assert main(["weights", "add", str(given)]) == 2
    said = capsys.readouterr().err
    assert "weights them/net: arch was not published" in said and "drbench weights convert them/net" in said


def test_what_is_made_here_lies_in_the_same_folder(home, capsys):
    with pytest.raises(DrbenchError, match=r"(?s)us/net are not here.*drbench train us.yaml"):
        weights.resolve("us/net")
    written = weights.write("us/net", {"w": torch.ones(1)}, {"command": "drbench train us.yaml"})
    assert written.path == foreign.own("us/net").path and weights.resolve("us/net") == written
    assert weights.manifest() == {}  # what others may not have is not in the tracked manifest
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("us/net") and " present " in line for line in lines)
    assert any(line.startswith("them/net") and " not here " in line for line in lines)
    for words in (["weights", "fetch", "us/net"], ["weights", "fetch"], ["weights", "add", str(home / "other.pt")]):
        assert main(words) == 2 and capsys.readouterr().err


def test_one_complete_layout_is_enough(home, capsys):
    base = home / "data" / "pair"
    assert "no folder" in data_files.lacking("pair", "test")
    for name in ("a.bin", "b.bin"):
        assert data_files.lacking("pair", "test")
        (home / name).write_bytes(name.encode())
        assert main(["data", "add", str(home / name)]) == 0
    assert data_files.lacking("pair", "test") is None and (base / "b.bin").read_bytes() == b"b.bin"
    (base / "b.bin").unlink()
    assert "a complete layout (one, two)" in data_files.lacking("pair", "test")
    assert main(["data", "fetch", "pair"]) == 2 and "cannot be fetched" in capsys.readouterr().err


def test_verify_says_what_it_read(home, capsys):
    """A name that is asked for is verified or an error; what came out of an archive is looked at too."""
    assert main(["data", "verify", "packed"]) == 2
    assert "data packed: no file to verify in" in capsys.readouterr().err
    (home / "data" / "packed").mkdir(parents=True)
    (home / "data" / "packed" / "x.bin").write_bytes(b"image")
    assert main(["data", "verify", "packed"]) == 0 and "x.bin sha256" in capsys.readouterr().out
    assert main(["data", "verify"]) == 0 and capsys.readouterr().out.endswith("\n1 file verified\n")
    assert main(["weights", "verify"]) == 0 and capsys.readouterr().out == "0 files verified\n"


def test_files_that_no_data_set_has_by_that_name(home, capsys):
    (home / "a (1).bin").write_bytes(b"a")
    for words, message in (
        ([str(home / "a (1).bin"), "--name", "pair"], "the files of data pair are a.bin, b.bin, c.bin"),
        ([str(home / "a (1).bin")], "no data set has a file 'a (1).bin'; say which with --name"),
        ([str(home)], "it is a folder"),
    ):
        assert main(["data", "add", *words]) == 2 and message in capsys.readouterr().err
    listed = yaml.safe_load((home / "home" / "benchmarks" / "datasets.yaml").read_text())
    listed["third"] = listed["pair"] | {"title": "Third"}
    (home / "home" / "benchmarks" / "datasets.yaml").write_text(yaml.safe_dump(listed))
    (home / "b.bin").write_bytes(b"b")
    assert main(["data", "add", str(home / "b.bin")]) == 2
    assert "several data sets (pair, third) have a file 'b.bin'" in capsys.readouterr().err


def test_archives_are_unpacked_inside_their_folder(home, capsys):
    def archive(member):
        content = io.BytesIO(b"image")
        with tarfile.open(home / "all.tar", "w") as file:
            about = tarfile.TarInfo(member)
            about.size = 5
            file.addfile(about, content)

    archive("../outside.bin")
    assert main(["data", "add", str(home / "all.tar")]) == 2
    assert "cannot be unpacked" in capsys.readouterr().err and not (home / "data" / "outside.bin").exists()
    (home / "data" / "packed" / "all.tar.json").unlink()
    archive("x.bin")
    assert main(["data", "add", str(home / "all.tar")]) == 0
    assert (home / "data" / "packed" / "x.bin").read_bytes() == b"image"
    assert data_files.lacking("packed", "test") is None
