"""The Lipschitz certificate: closed forms on linear classifiers, and its way through the engine."""

import pytest
import torch

from drbench import config, stats
from drbench.api import Defense, DrbenchError
from drbench.certifiers import lipschitz
from drbench.cli import main
from drbench.evidence import ABSTAIN, Evidence, Stage
from drbench.records import record, verify

SHAPE = (1, 2, 2)


class Linear(Defense):
    """Logits W x, with noise of its own if `randomized`."""

    citation = "a linear classifier"

    def __init__(self, weights, randomized=False, constant=True):
        super().__init__()
        self.weights = torch.tensor(weights)
        self.input_shape, self.num_classes, self.sigmas = SHAPE, len(weights), (0.0,)
        self.randomized = randomized
        self.lipschitz = float(self.weights.norm(dim=1).max()) if constant else None

    def logits(self, z, sigma, draws):
        self.require(sigma)
        logits = z.flatten(1) @ self.weights.T
        return logits + draws.randn(len(z), self.num_classes) if self.randomized else logits

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        raise NotImplementedError


def observed(defense, x, **run):
    return list(lipschitz.observe(defense, x, list(range(len(x))), **run))


def test_radius_of_a_linear_classifier():
    """Never beyond the boundary, at margin / |w_a - w_b|, and at it where w_b = -w_a."""
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    for weights, tight in (([[1.0, 2, -1, 0], [-1.0, -2, 1, 0]], True), ([[1.0, 0, 0, 1], [0.0, 1, 1, 0]], False)):
        defense = Linear(weights)
        about = lipschitz.options(defense)
        assert about["exact"] and about["ceiling"] == pytest.approx(2)  # the diameter of the box
        for seen, image in zip(observed(defense, x, n=1), x, strict=True):
            found = stats.decide("lipschitz", seen.evidence, 0.001, **about)
            margin = float((defense.weights[0] - defense.weights[1]) @ image.flatten())
            assert found.prediction == int(margin < 0)
            boundary = abs(margin) / float((defense.weights[0] - defense.weights[1]).norm())
            assert found.radius <= boundary + 1e-6
            assert found.radius == pytest.approx(boundary, abs=1e-6) or not tight


def test_ties_abstain_and_nothing_is_decided_without_logits():
    about = {"lipschitz": 1.0, "exact": True, "ceiling": 1.0}
    stage = Stage(0.0, {}, 0, {0: 1}, 1)
    assert stats.decide("lipschitz", Evidence((stage,), (1.0, 1.0, 0.0)), 0.1, **about).prediction == ABSTAIN
    found = stats.decide("lipschitz", Evidence((stage,), (0.5, 2.0, 1.0)), 0.1, **about)
    assert (found.prediction, found.radius) == (1, 0.5)
    with pytest.raises(DrbenchError, match="expects clean logits"):
        stats.decide("lipschitz", Evidence((stage,)), 0.1, **about)


def test_a_defense_without_a_constant_is_refused():
    with pytest.raises(DrbenchError, match=r"needs defense.lipschitz > 0; Linear declares None"):
        observed(Linear([[1.0] * 4, [0.0] * 4], constant=False), torch.rand(1, *SHAPE))


def test_means_do_not_depend_on_batches_or_neighbours():
    defense, x = Linear([[1.0, 0, 0, 0], [0.0, 1, 0, 0]], randomized=True), torch.rand(4, *SHAPE)
    assert not lipschitz.options(defense)["exact"]
    whole = observed(defense, x, n=25, block=10, batch_rows=1000)
    parts = observed(defense, x, n=25, block=10, batch_rows=7)
    (alone,) = lipschitz.observe(defense, x[2:3], [2], n=25, block=10, batch_rows=7)
    for a, b in [*zip(whole, parts, strict=True), (whole[2], alone)]:
        assert a.evidence.stages == b.evidence.stages and sum(a.evidence.stages[0].votes.values()) == 25
        torch.testing.assert_close(torch.tensor(a.evidence.clean), torch.tensor(b.evidence.clean))
    means = torch.tensor([seen.evidence.clean for seen in whole])
    assert (means - x.flatten(1)[:, :2]).abs().max() < 5 / 25**0.5


def test_non_finite_logits_are_an_error():
    defense = Linear([[float("nan")] * 4, [0.0] * 4])
    defense.lipschitz = 1.0
    (seen,) = observed(defense, torch.rand(1, *SHAPE))
    assert seen.evidence is None and "non-finite" in seen.error


def test_a_run_from_config_to_table(tmp_path, capsys):
    """The diffusion classifier's row: means of random logits are marked as an estimate everywhere."""
    words = ["benchmarks/digits/rdc-lipschitz.yaml", "data.subset=first3", "defense.args.nodes=3", "run.batch_rows=64"]
    for _ in range(2):  # the second command finds it complete
        assert main(["run", *words, "--out", str(tmp_path)]) == 0
    (folder,) = set(capsys.readouterr().out.split())
    run = record.read(folder)
    assert run.complete and verify.problems(run) == [] and len(run.rows) == 3
    engine = run.header["engine"]
    assert (engine["certifier"], engine["sigma"], engine["n0"], engine["n"]) == ("lipschitz", 0.0, 0, 1)
    assert engine["options"]["exact"] is False and 0 < engine["options"]["ceiling"] < 1
    assert all(row.radius <= engine["options"]["ceiling"] for row in run.ordered())
    assert main(["table", folder, "--out", str(tmp_path / "t")]) == 0
    assert main(["plot", folder, "--out", str(tmp_path / "t")]) == 0
    text = (tmp_path / "t.md").read_text()
    assert "estimate: a Lipschitz radius" in text and "diffusion_classifier (lipschitz)" in text
    assert main(["resume", folder]) == 0


def test_noise_levels_are_not_part_of_its_identity():
    cells = [config.load("benchmarks/digits/rdc-lipschitz.yaml", words)[0] for words in ([], ["certify.sigma=0.25"])]
    assert config.identity(cells[0], []) == config.identity(cells[1], [])
    assert config.levels(cells[0]) == [0.0]
