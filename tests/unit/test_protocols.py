"""Presets of the literature's protocols: where they lie among the layers of a config; what is said of deviations."""

import pytest
import yaml

from drbench import config
from drbench.cli import main
from drbench.config import protocols
from drbench.errors import DrbenchError

TEXT = "defense: {name: constant}\n"


def cells(tmp_path, text, *overrides, base=None):
    if base:
        (tmp_path / "base.yaml").write_text(base)
        text = f"extends: base.yaml\n{text}"
    (tmp_path / "a.yaml").write_text(TEXT + text)
    return config.load(tmp_path / "a.yaml", overrides)


def facts(cell):
    return cell.data.subset, cell.certify.n0, cell.certify.n, cell.certify.alpha, cell.certify.rounding


def test_a_preset_fills_in_and_sweeps(tmp_path):
    found = cells(tmp_path, "data: {name: cifar10}\nprotocol: cohen2019")
    assert [cell.certify.sigma for cell in found] == [0.12, 0.25, 0.5, 1.0]
    assert {facts(cell) for cell in found} == {("every20", 100, 100_000, 0.001, "significant3")}


def test_it_lies_above_the_parent_and_under_the_file_and_overrides(tmp_path):
    base = "certify: {n: 7, n0: 7, alpha: 0.7}\ndata: {name: cifar10, subset: first7}\nsweep: {certify.sigma: [7.0]}"
    found = cells(tmp_path, "protocol: ars\ncertify: {sigma: 0.5, n0: 8}", "certify.n=9", base=base)
    assert [(*facts(cell), cell.certify.sigma) for cell in found] == [("every50", 8, 9, 0.05, "none", 7.0)]
    by_override = cells(tmp_path, "certify: {n: 8}", "protocol=rrcm", "certify.sigma=0.5", base=base)
    assert [facts(cell) for cell in by_override] == [("first500", 100, 100_000, 0.001, "significant3")]


def test_numbers_that_depend_on_the_data_set(tmp_path):
    for dataset, n, rounding in (("cifar10", 100_000, "significant3"), ("imagenet", 10_000, "significant3")):
        (cell,) = cells(tmp_path, f"data: {{name: {dataset}}}\nprotocol: dds", "certify.sigma=0.5")
        assert (cell.certify.n, cell.certify.rounding) == (n, rounding)
    assert protocols.preset("smoothadv", "imagenet")["certify"]["rounding"] == "decimal4"
    cascades = cells(tmp_path, "data: {name: cifar10}\nprotocol: msds")
    assert [list(c.certify.sigmas) for c in cascades] == [[0.25, 0.5], [0.25, 1.0], [0.25, 0.5, 1.0]]
    assert {(c.certify.protocol, c.certify.rounding) for c in cascades} == {("paper_code", "significant3")}


def test_deviations_are_listed(tmp_path):
    (cell,) = cells(tmp_path, "data: {name: cifar10}\nprotocol: cohen2019\ncertify: {sigma: 0.25}")
    assert protocols.differences("cohen2019", cell) == []
    (cell,) = cells(tmp_path, "protocol: cohen2019\ncertify: {sigma: 0.3, n: 1000}")
    assert protocols.differences("cohen2019", cell) == [
        "data.name = digits, none of its data sets", "certify.n = 1000, not 100000"]  # fmt: skip
    (cell,) = cells(tmp_path, "data: {name: cifar10, subset: first9}\nprotocol: cohen2019", "certify.sigma=0.3")
    assert protocols.differences("cohen2019", cell) == [
        "certify.sigma = 0.3, not 0.12 or 0.25 or 0.5 or 1.0", "data.subset = first9, not every20"]  # fmt: skip


def test_a_resolved_config_resolves_to_itself(tmp_path):
    from omegaconf import OmegaConf

    (cell,) = cells(tmp_path, "data: {name: cifar10}\nprotocol: cohen2019", "certify.sigma=0.25")
    (tmp_path / "b.yaml").write_text(OmegaConf.to_yaml(cell))
    assert config.load(tmp_path / "b.yaml") == [cell]
    (plain,) = cells(tmp_path, "data: {name: cifar10, subset: every20}\ncertify: {sigma: 0.25, rounding: significant3}")
    assert config.identity(plain, []) == config.identity(cell, [])  # a name for constants changes no number


def test_every_protocol_is_a_valid_config_with_a_source(tmp_path):
    for name, protocol in protocols.load().items():
        assert protocol["source"] and set(protocol) <= {"source", "certify", "data", "sweep", "notes"}
        for dataset in [*protocol["data"], "digits"]:
            assert cells(tmp_path, f"protocol: {name}\ndata: {{name: {dataset}}}")
    assert {"cohen2019", "dds", "msds", "rrcm", "densepure"} <= set(protocols.load())
    assert yaml.safe_load(protocols.FILE.read_text()) == protocols.load()


def test_command_line(tmp_path, capsys):
    assert main(["list", "protocols"]) == 0
    assert any(line.split()[:2] == ["cohen2019", "cifar10/every20"] for line in capsys.readouterr().out.splitlines())
    (tmp_path / "a.yaml").write_text(TEXT)
    assert main(["show", str(tmp_path / "a.yaml"), "protocol=cohen2020"]) == 2
    assert "did you mean 'cohen2019'" in capsys.readouterr().err


def test_an_unknown_name_is_an_error():
    with pytest.raises(DrbenchError, match="unknown protocol 'x'"):
        protocols.preset("x", "digits")
