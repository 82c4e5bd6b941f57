"""The manifest of data sets, the checks of files, and the subsets of the literature."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drbench import cli, data, weights
from drbench.cli import main
from drbench.config import protocols
from drbench.data import subsets
from drbench.errors import DrbenchError
from drbench.files import data_files, datasets, foreign, places
from drbench.records import record

KEYS = {"title", "root", "classes", "shape", "splits", "with", "source", "licence", "where", "files", "trees"}
FILE_KEYS = {"path", "layout", "url", "bytes", "md5", "sha256", "unpack", "of"}


@pytest.mark.parametrize("name", datasets.manifest())
def test_entries_follow_the_schema(name):
    entry = datasets.entry(name)
    assert entry.keys() <= KEYS and {"title", "licence", "files"} <= entry.keys()
    assert ("classes" in entry) == ("shape" in entry)
    assert all("classes" not in datasets.entry(one) for others in entry.get("with", {}).values() for one in others)
    for file in entry["files"]:
        assert "path" in file and file.keys() <= FILE_KEYS
        assert not file["path"].startswith("/") and ".." not in file["path"]
        assert re.fullmatch(r"[0-9a-f]{32}", file.get("md5", "0" * 32))
        assert re.fullmatch(r"[0-9a-f]{64}", file.get("sha256", "0" * 64))
        assert file.get("url", "https://").startswith("https://")
        assert "url" not in file or file.keys() & {"md5", "sha256"}  # what cannot be checked is not fetched
        assert file.get("of") in {None, *(other["path"] for other in entry["files"])}
    assert all({"path", "folders", "files"} <= tree.keys() for tree in entry.get("trees", []))
    assert entry["files"] or entry.get("trees") or "where" in entry or name == "digits"


def test_every_data_set_is_in_the_manifest():
    """What has no classes cannot be loaded; others are made with it."""
    assert data.DATASETS.keys() == {name for name, entry in datasets.manifest().items() if "classes" in entry}


def test_messages_say_what_belongs_where(tmp_path, monkeypatch):
    monkeypatch.delenv("DRBENCH_DATA", raising=False)
    with pytest.raises(DrbenchError) as error:
        data.load("cifar10.1", "v6")
    for words in (
        "needs data.root",
        "DRBENCH_DATA",
        "sub-folder cifar10.1",
        "cifar10.1_v6_labels.npy (8,128 bytes, sha256",
    ):
        assert words in str(error.value)
    monkeypatch.setenv("DRBENCH_DATA", str(tmp_path))
    splits = {"cifar10.1": "v6", "imagenet": "val", "imagenet64": "val", "restricted-imagenet": "val"}
    for name in data.DATASETS.keys() - {"digits"}:
        with pytest.raises(DrbenchError, match=rf"no folder {tmp_path}/{datasets.entry(name)['root']} \(DRBENCH_DATA="):
            data.load(name, splits.get(name, "test")
                      if "-c" not in name else "contrast/1")  # fmt: skip
    with pytest.raises(DrbenchError, match="did you mean 'imagenet'"):
        datasets.entry("imagnet")


def test_a_tilde_is_the_home_where_no_shell_looks_for_it(tmp_path, monkeypatch):
    for variable, value in {"HOME": str(tmp_path), "DRBENCH_DATA": "~/d", "DRBENCH_WEIGHTS": "~/w"}.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "ids").write_text("5\n")
    assert foreign.own("a").path == tmp_path / "w" / "a.safetensors"
    assert data_files.folder("cifar10").parent == tmp_path / "d"
    assert weights.place("~/a.safetensors") == tmp_path / "a.safetensors"
    assert data.load("digits", subset="ids:~/ids").ids == (5,)
    assert data_files.lacking("cifar10", "test", "~/c") == f"no folder {tmp_path}/c"
    for root in ("~/c", None):
        with pytest.raises(DrbenchError, match=rf"no folder {tmp_path}"):
            data.load("cifar10", root=root)
    monkeypatch.setenv("DRBENCH_HOME", "~/h")
    assert places.home() == tmp_path / "h"
    assert cli.parser().parse_args(["table", "r", "--out=~/t"]).out == tmp_path / "t"


def test_files_are_checked_before_they_are_read(tmp_path, monkeypatch):
    content = b"some content"
    file = {"path": "a.bin", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "md5": "0" * 32}
    monkeypatch.setattr(datasets, "manifest", lambda: {"x": {"files": [file]}})
    with pytest.raises(DrbenchError, match=r"has no file a.bin.\nExpected in it:\n  a.bin \(12 bytes, sha256 "):
        datasets.check("x", tmp_path, "a.bin")
    (tmp_path / "a.bin").write_bytes(content)
    assert datasets.check("x", tmp_path, "a.bin") == tmp_path / "a.bin"  # by the stronger hash alone
    with pytest.raises(DrbenchError, match="expected md5 0000"):
        datasets.check("x", tmp_path, "a.bin", everything=True)
    (tmp_path / "a.bin").write_bytes(b"Some content")
    with pytest.raises(DrbenchError, match="expected sha256"):
        datasets.check("x", tmp_path, "a.bin")
    monkeypatch.setattr(datasets, "HASHED_AT_LOAD", 5)
    assert datasets.check("x", tmp_path, "a.bin")
    with pytest.raises(DrbenchError, match="expected sha256"):
        datasets.check("x", tmp_path, "a.bin", everything=True)
    (tmp_path / "a.bin").write_bytes(content[:-1])
    with pytest.raises(DrbenchError, match="expected 12 bytes, got 11"):
        datasets.check("x", tmp_path, "a.bin")


def test_a_home_without_a_manifest_has_that_of_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("DRBENCH_HOME", str(tmp_path))
    with pytest.raises(DrbenchError, match=r"needs data\.root"):
        data.load("cifar10")
    assert len(data.load("digits", subset="first5")) == 5


def test_subsets_of_cifar10_have_their_hashes():
    ids = range(10_000)
    for rule, facts in subsets.known("cifar10", "test").items():
        chosen = subsets.choose(rule, ids, "cifar10", "test")
        assert len(chosen) == facts["images"] and subsets.digest(chosen) == facts["sha256"]
    with pytest.raises(DrbenchError, match=r"subset cifar10/test/every20: expected 500 images .* others"):
        subsets.choose("every20", range(10_020), "cifar10", "test")
    with pytest.raises(DrbenchError, match=r"cifar10/test/first500: expected 500 images .* another order"):
        subsets.choose("first500", range(1, 10_001), "cifar10", "test")


def test_lists_of_imagenet():
    facts = subsets.known("imagenet", "val")["robustbench5k"]
    numbers = [int(n) for n in (Path(subsets.HERE) / facts["list"]).read_text().split()]
    assert len(numbers) == len(set(numbers)) == 5000 and 1 <= min(numbers) <= max(numbers) <= 50_000
    ids = [facts["id"].format(i) for i in range(50_000, 0, -1)]  # in whatever order the folders have them
    chosen = subsets.choose("robustbench5k", ids, "imagenet", "val")
    assert [ids[i] for i in chosen] == [facts["id"].format(n) for n in numbers]
    assert subsets.digest(ids[i] for i in chosen) == facts["sha256"]
    chosen = subsets.choose("ilsvrc-every100", ids, "imagenet", "val")
    assert [ids[i][-8:] for i in chosen[:3]] == ["00000001", "00000101", "00000201"] and len(chosen) == 500
    with pytest.raises(DrbenchError, match=r"imagenet/val/every100: .* in another order"):
        subsets.choose("every100", ids, "imagenet", "val")
    with pytest.raises(DrbenchError, match="did you mean 'robustbench5k'"):
        subsets.choose("robustbench", ids, "imagenet", "val")


def test_random_subsets_are_diffpures():
    chosen = subsets.choose("random64seed3", range(10_000))
    assert len(set(chosen)) == 64 and chosen != sorted(chosen)
    assert subsets.digest(chosen) == "69427afcd148f9008b4e54a6bc8c4a14a1d4c52b48dbb782d7e6b587837df56b"
    with pytest.raises(DrbenchError, match="asks for 64 images, the split has 10"):
        subsets.choose("random64seed3", range(10))


def test_protocols_use_known_subsets():
    for name, protocol in protocols.load().items():
        for dataset, own in protocol["data"].items():
            if dataset != "imagenet64":  # the order of its files is not certain, so none of its subsets is listed
                split = {"cifar10": "test", "imagenet": "val"}[dataset]
                assert own["subset"] in subsets.known(dataset, split), name


def test_show_names_the_images(capsys, monkeypatch):
    monkeypatch.delenv("DRBENCH_DATA", raising=False)
    assert main(["show", "benchmarks/digits/undefended.yaml", "data.subset=first12"]) == 0
    assert "# images: digits/test/first12: 12 images, 10 of 10 classes, sha256" in capsys.readouterr().out
    words = ["data.name=imagenet", "data.split=val", "data.subset=first500"]
    assert main(["show", "benchmarks/digits/undefended.yaml", *words]) == 0
    shown = capsys.readouterr().out
    assert (
        "# images: imagenet/val/first500: 500 images, 10 classes (not at hand: data 'imagenet' needs data.root" in shown
    )


def test_a_subset_of_few_classes_is_marked_in_the_record(tmp_path, capsys):
    words = ["certify.sigma=0.5", "certify.n=100", "certify.n0=10", "run.batch_rows=100", "--out", str(tmp_path)]
    for subset, flags in (("every10", ["few classes: 50 images, 1 of 10 classes"]), ("first20", [])):
        file = "benchmarks/digits/constant.yaml"
        assert main(["run", file, f"data.subset={subset}", *words]) == 0
        header = record.read(capsys.readouterr().out.strip()).header
        assert header["flags"] == flags and header["data"]["classes"] == [1 if flags else 10, 10]
    assert main(["table", str(tmp_path)]) == 0
    assert "few classes" in capsys.readouterr().out


def test_sources_load_no_torch():
    """Labels are enough to see that every tenth digit is of one class, because the classes take turns."""
    program = "import sys; from drbench import data; print(data.overview('digits', 'test', 'every10'))\n"
    program += "assert 'torch' not in sys.modules"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.stdout == "50 images, 1 of 10 classes\n", done.stderr
