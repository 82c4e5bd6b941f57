"""Planted gradient masking raises its flag; honest defenses raise none; flags reach records, tables and exit codes."""

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import drbench
from drbench.api import Defense
from drbench.attacks import presets, probes
from drbench.attacks.audit import audit
from drbench.attacks.cascade import Cascade
from drbench.attacks.oracle import Keys
from drbench.attacks.presets import member
from drbench.attacks.problem import Problem
from drbench.attacks.suite import Suite
from drbench.attacks.threat import threat
from drbench.attacks.views import Direct
from drbench.cli import main
from drbench.errors import DrbenchError
from drbench.records import record

ROOT = Path(__file__).parents[2]
IMAGES = drbench.load_data("digits", split="validation", subset="first8")
DENOISED = ["digits/classifier", "digits/denoiser"]


@functools.cache
def load(name, *checkpoint):
    return drbench.load_defense(name, IMAGES, list(checkpoint))


class Masked(Defense):
    """The plain classifier behind something that hurts attackers more than robustness helps users."""

    input_shape, num_classes, sigmas, citation = (1, 8, 8), 10, (0.0,), "arXiv:1802.00420"

    def __init__(self):
        super().__init__()
        self.base = load("undefended", "digits/classifier")

    def scores(self, z):
        return self.base.logits(z, 0.0, None)

    def logits(self, z, sigma, draws):
        return self.scores(z)

    def nfe(self, sigma):
        return {"base": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls()


class Shattered(Masked):
    """A ripple too fine to matter, whose slope swamps that of the network."""

    def logits(self, z, sigma, draws):
        return self.scores(z + 0.01 * (3000 * z).sin())


class Rounded(Masked):
    """Non-differentiable preprocessing: 4 grey levels."""

    def logits(self, z, sigma, draws):
        return self.scores((3 * z).round() / 3)


class Detached(Masked):
    """Half of the pixels reach the network without a gradient."""

    def logits(self, z, sigma, draws):
        return self.scores(torch.cat([z[:, :, :4].detach(), z[:, :, 4:]], 2))


class Vanishing(Masked):
    """Logits so large that cross-entropy is flat in float32."""

    def logits(self, z, sigma, draws):
        return 1e4 * self.scores(z)


class Stochastic(Masked):
    """The same values, while each draw's gradient drowns in noise of its own; declared, as a surrogate."""

    randomized, gradient = True, "surrogate"

    def attack_logits(self, z, sigma, draws):
        noise = 10 * draws.randn(*z.shape, self.num_classes)
        swamp = torch.einsum("bchw,bchwk->bk", z, noise)
        return self.scores(z) + swamp - swamp.detach()


class Hidden(Masked):
    """Random without saying so."""

    def logits(self, z, sigma, draws):
        return self.scores(z + 0.1 * torch.randn_like(z))


class Leaking(Masked):
    """Knows the labels that go with the evaluator's random streams, for one seed."""

    randomized = True

    def __init__(self, seed=0, stages=("select", "evaluate", "audit/verdict")):
        super().__init__()
        self.known = {}
        for stage in stages:
            spans = Keys(seed, tuple(IMAGES.ids), stage).spans(0, 1)
            self.known |= {span.key: int(label) for span, label in zip(spans, IMAGES.y, strict=True)}

    def logits(self, z, sigma, draws):
        bonus = torch.zeros(len(z), 10)
        at = 0
        for key, start, stop in draws.spans:
            if key in self.known:
                bonus[at : at + stop - start, self.known[key]] = 100.0
            at += stop - start
        return self.scores(z) + bonus


class Probabilities(Masked):
    def logits(self, z, sigma, draws):
        return self.scores(z).softmax(1)


class BatchNormed(Masked):
    """Scores depend on the rest of the batch."""

    def logits(self, z, sigma, draws):
        scores = self.scores(z)
        return scores - scores.mean(0)


class Searching(Masked):
    """Takes a step of its own before it answers; `whole` if its gradient passes through the step."""

    def __init__(self, whole, gradient="exact"):
        super().__init__()
        self.whole, self.gradient = whole, gradient

    def logits(self, z, sigma, draws):
        with torch.enable_grad():
            x = z if z.requires_grad else z.detach().requires_grad_()
            (step,) = torch.autograd.grad((10 * x).sin().sum(), x, create_graph=z.requires_grad)
        return self.scores(z + (step if self.whole else step.detach()) / 100)


class Slope(torch.autograd.Function):
    """The identity, with a gradient of its own making."""

    @staticmethod
    def forward(ctx, z, made):
        ctx.save_for_backward(z)
        ctx.made = made
        return z.clone()

    @staticmethod
    def backward(ctx, slope):
        return ctx.made(*ctx.saved_tensors, slope), None


def on_grid(z):
    """Whether images hold nothing but the 17 grey levels of the digits: as clean ones do, and no other."""
    return ((16 * z).round() == 16 * z).flatten(1).all(1)[:, None, None, None]


class Distant(Masked):
    """The gradient is right at clean images, and has the wrong sign everywhere else."""

    def logits(self, z, sigma, draws):
        return self.scores(Slope.apply(z, lambda z, slope: slope.where(on_grid(z), -slope)))


class Uneven(Masked):
    """The gradient has the wrong sign at three of the eight images: at the median all is well."""

    def logits(self, z, sigma, draws):
        def made(z, slope):
            gaps = (z[:, None] - IMAGES.x[:3]).flatten(2).norm(dim=2).amin(1)  # at them and near them
            return slope * torch.where(gaps < 1.0, -1.0, 1.0)[:, None, None, None]

        return self.scores(Slope.apply(z, made))


class Purifying(Rounded):
    """Non-differentiable preprocessing that shows its two parts."""

    def purify(self, z, sigma, draws):
        return (3 * z).round() / 3

    def classify(self, x, sigma, draws):
        return self.scores(x)


class Blind(Rounded):
    """No gradients, and it says so."""

    gradient = "none"

    def logits(self, z, sigma, draws):
        return super().logits(z, sigma, draws).detach()


class Downhill(Masked):
    """A gradient of the wrong sign, declared as a surrogate."""

    gradient = "surrogate"

    def logits(self, z, sigma, draws):
        return self.scores(Slope.apply(z, lambda z, slope: -slope))


class Aimless(Masked):
    """A surrogate gradient that is noise, another at each image."""

    gradient = "surrogate"

    def logits(self, z, sigma, draws):
        def made(z, slope):
            rng = torch.Generator().manual_seed(int(1e6 * z.sum()))
            return slope.norm() * torch.randn(slope.shape, generator=rng)

        return self.scores(Slope.apply(z, made))


class Stray(Aimless):
    """The same, and every answer is random."""

    randomized = True

    def logits(self, z, sigma, draws):
        return super().logits(z, sigma, draws) + 0.1 * draws.randn(len(z), 10)


class Elsewhere(Masked):
    """Attackers are given another network."""

    def __init__(self):
        super().__init__()
        self.other = load("adversarial_training", "digits/adversarial_training")

    def attack_logits(self, z, sigma, draws):
        return self.other.logits(z, sigma, draws)


class Watchful(Masked):
    """Answers otherwise while it is differentiated."""

    gradient = "surrogate"

    def logits(self, z, sigma, draws):
        return self.scores(z.flip(3) if z.requires_grad else z)


class Wary(Masked):
    """Random without saying so, at other images than clean ones."""

    gradient = "surrogate"

    def logits(self, z, sigma, draws):
        return self.scores(torch.where(on_grid(z), z, z + 0.1 * torch.randn_like(z)))


class Training(Masked):
    def logits(self, z, sigma, draws):
        return self.scores(z)


def flags(defense, norm="l2", eps=0.5, sigma=0.0, images=IMAGES, also=(), select=20, **settings):
    attack = {"attack": "stadv"} if norm == "stadv" else {"attack": "pgd", "loss": "margin"}
    attack = member(**{"steps": 20} | attack | settings)
    suite = Suite(defense, threat(norm, eps), [attack, *also], sigma, select=select, evaluations=20)
    found = suite.run(images.x, images.y, images.ids)
    return {each.check: each.text for each in audit(suite, images.x, images.y, images.ids, found) if each.flag}


def probed(defense, norm="l2", eps=0.5):
    problem = Problem.of(Direct(defense), threat(norm, eps), IMAGES.x, IMAGES.y, IMAGES.ids, "test")
    return [each.check for each in probes.run(defense, problem) if each.flag]


@pytest.mark.parametrize(
    "planted, flag",
    [
        (Shattered, "gradient-check"),
        (Rounded, "gradient-zero"),
        (Detached, "gradient-check"),
        (Vanishing, "gradient-zero"),
        (Hidden, "hidden-randomness"),
        (Probabilities, "softmax"),
        (BatchNormed, "batch-dependence"),
        (Distant, "gradient-check"),
        (Uneven, "gradient-check"),
        (Downhill, "uphill"),
        (Elsewhere, "attack-values"),
        (Watchful, "attack-values"),
        (Wary, "attack-values"),
    ],
)
@pytest.mark.parametrize("norm, eps", [("l2", 0.5), ("stadv", 0.4)])
def test_gradient_masking_is_flagged_before_any_attack(planted, flag, norm, eps):
    assert flag in probed(planted().eval(), norm, eps)


def test_gradients_inside_an_answer_are_flagged_unless_they_are_passed_on():
    assert probed(Searching(whole=True).eval()) == []
    assert probed(Searching(whole=False).eval()) == ["gradient-check"]
    assert probed(Searching(whole=False, gradient="surrogate").eval()) == ["dynamic"]


def test_the_surrogate_gradient_of_a_cascade_raises_no_flag():
    assert probed(Cascade(load("denoised", *DENOISED), [0.25, 0.5], votes=5).eval()) == []


def test_training_mode_is_flagged():
    assert "eval-mode" in probed(Training().train())


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5), ("stadv", 0.4)])
@pytest.mark.parametrize("planted", [Rounded, Aimless])
def test_attacks_that_need_no_gradient_show_what_is_masked(planted, norm, eps):
    assert "bb>wb" in flags(planted().eval(), norm, eps)


def test_attacks_look_behind_a_purifier_that_has_no_gradient():
    assert {"bpda>exact", "transfer"} <= flags(Purifying().eval()).keys()


def test_a_purifier_without_gradients_is_attacked_through_what_stands_behind_it():
    defense = Purifying().eval()
    defense.gradient = "none"
    threat_, found = threat("linf", 0.1), {}
    for parts in (False, True):
        members = presets.preset("fast", "linf", True, gradient=False, parts=parts)
        suite = Suite(defense, threat_, members, evaluations=1)
        found[parts] = suite.run(IMAGES.x, IMAGES.y, IMAGES.ids)
    kept = [each.evidence.kept for each in found[True]]
    assert any("identity" in label for label in kept) and suite.main.view == "identity"
    labels = IMAGES.y.tolist()
    broken = {
        parts: sum(each.evidence.adversarial.wrong(label) for each, label in zip(some, labels, strict=True))
        for parts, some in found.items()
    }
    assert broken[True] >= broken[False]
    findings = audit(suite, IMAGES.x, IMAGES.y, IMAGES.ids, found[True])
    assert {"budget", "fgsm", "bb>wb"} <= {each.check for each in findings}
    with pytest.raises(DrbenchError, match="cannot transfer from x"):
        Suite(load("undefended", "digits/classifier"), threat_, [member("square")], sources={"x": defense})


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5), ("stadv", 0.4)])
@pytest.mark.parametrize("sigma", [0.0, 0.25])
def test_a_defense_without_gradients_is_attacked_by_its_scores(sigma, norm, eps):
    defense = Blind().eval()
    defense.sigmas = (0.0, 0.25)
    members = presets.preset("fast", norm, sigma == 0, gradient=False)
    suite = Suite(defense, threat(norm, eps), members, sigma, select=20, evaluations=20)
    found = suite.run(IMAGES.x, IMAGES.y, IMAGES.ids)
    assert any(each.evidence.kept.startswith(("square", "noise")) for each in found)
    findings = {each.check: each for each in audit(suite, IMAGES.x, IMAGES.y, IMAGES.ids, found)}
    assert "bb>wb" in findings and not {"gradient-zero", "budget"} & findings.keys()
    assert [each for each in findings.values() if each.flag] == []
    with pytest.raises(DrbenchError, match=r"no gradients.*pgd margin 20"):
        Suite(defense, threat(norm, eps), [*members, member("pgd", loss="margin", steps=20)], sigma)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5)])
def test_masking_shows_where_the_job_itself_needs_no_gradient(norm, eps):
    """Square, a member of preset standard, breaks the images; that is not held against the Square of the audit."""
    square = member("square", queries=1000)
    assert "bb>wb" in flags(Aimless().eval(), norm, eps, also=[square])
    assert "bb>wb" not in flags(load("undefended", "digits/classifier"), norm, eps, also=[square])


def test_few_answers_of_a_job_are_enough_to_flag_noise():
    """A verdict of five answers cannot tell none from all right beyond chance, so the audit asks for more."""
    assert "bb>wb" in flags(Stray().eval(), "l2", 1.0, select=5)


def test_a_radius_as_large_as_the_box_can_be_audited():
    assert flags(load("undefended", "digits/classifier"), "linf", 0.3) == {}


def test_nothing_is_said_to_be_masked_at_radius_0():
    assert flags(load("undefended", "digits/classifier"), "linf", 0.0) == {}


def test_attacks_that_need_no_gradient_ask_what_decides():
    assert "bb>wb" in flags(Elsewhere().eval())


@pytest.mark.parametrize("stages", [("select", "evaluate", "audit/verdict"), ("evaluate",)])
def test_a_verdict_that_depends_on_the_seed_is_flagged(stages):
    assert "seed" in flags(Leaking(stages=stages).eval())


def test_a_surrogate_that_is_worse_than_what_it_stands_for_is_flagged():
    """By the settings of preset fast, on as few images as it audits."""
    few = drbench.load_data("digits", split="validation", subset="first4")
    assert "own>surrogate" in flags(Stochastic().eval(), steps=40, draws=8, images=few)


def test_images_that_are_wrong_from_the_start_are_no_evidence_of_masking():
    some = SimpleNamespace(x=IMAGES.x[:4], y=IMAGES.y[:4].clone(), ids=IMAGES.ids[:4])
    some.y[0] = (some.y[0] + 1) % 10
    defense = load("adversarial_training", "digits/adversarial_training")
    assert flags(defense, "linf", 1 / 16, images=some, also=[member("square", queries=500)], steps=40) == {}


def test_gradient_noise_is_flagged_by_more_draws():
    assert "eot" in flags(Stochastic().eval(), eps=0.75, draws=2)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5), ("stadv", 0.4)])
@pytest.mark.parametrize(
    "name, checkpoint", [("undefended", "digits/classifier"), ("adversarial_training", "digits/adversarial_training")]
)
def test_honest_deterministic_defenses_raise_no_flag(name, checkpoint, norm, eps):
    assert flags(load(name, checkpoint), norm, eps, steps=40) == {}


def test_noise_augmentation_raises_no_flag():
    assert flags(load("noise_augmented", "digits/noise_augmented"), sigma=0.25, steps=20, draws=4) == {}


def test_denoised_raises_no_flag():
    few = drbench.load_data("digits", split="validation", subset="first2")
    assert flags(load("denoised", *DENOISED), sigma=0.25, steps=8, draws=2, images=few) == {}


def test_findings_do_not_depend_on_the_number_of_cores():
    defense, found, threads = load("noise_augmented", "digits/noise_augmented"), [], torch.get_num_threads()
    suite = Suite(defense, threat("linf", 0.1), [member("pgd", loss="margin", steps=5, draws=4)], 0.25, select=10)
    x, y, ids = IMAGES.x[:2], IMAGES.y[:2], IMAGES.ids[:2]
    examples = suite.run(x, y, ids)
    for cores in (1, 2, 3):
        torch.set_num_threads(cores)
        found.append(audit(suite, x, y, ids, examples))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2] and len(found[0]) > 15


def attack_constant(tmp_path, *words):
    """A run whose target cannot be attacked: it answers the same class everywhere."""
    words = ["data.subset=first6", "attack.preset=smoke", "attack.audit=4", *words]
    words += ["defense.name=constant", "defense.checkpoint=[]", "attack.eps=1/16", "--out", str(tmp_path)]
    return main(["run", "benchmarks/digits/attack/undefended.yaml", *words])


def test_flags_reach_record_table_and_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert attack_constant(tmp_path) == 0
    (folder, *_), stderr = (text.split("\n") for text in capsys.readouterr())
    assert any("audit gradient-zero" in line for line in stderr)
    header = record.read(folder).header
    audited = header["audit"]
    assert len(audited["probed"]) == 6 and audited["probed"][:4] == audited["ids"] and len(audited["findings"]) >= 15
    raised = [check for check, flag, _ in header["audit"]["findings"] if flag]
    assert "gradient-zero" in raised and len(header["flags"]) == len(raised)
    assert attack_constant(tmp_path, "--strict") == 1
    capsys.readouterr()
    assert main(["table", folder]) == 0 and "audit gradient-zero" in capsys.readouterr().out


def test_a_defense_may_be_probed_alone(tmp_path, capsys, monkeypatch):
    """`audit: 0, probe: 3`: no attacks are compared, and what the function itself shows is found all the same."""
    monkeypatch.chdir(ROOT)
    assert attack_constant(tmp_path, "attack.audit=0", "attack.probe=3", "--strict") == 1
    (folder, *_), _ = (text.split("\n") for text in capsys.readouterr())
    audited = record.read(folder).header["audit"]
    assert audited["ids"] == [] and len(audited["probed"]) == 3
    checks = {check: flag for check, flag, _ in audited["findings"]}
    assert checks["gradient-zero"] and "gradient-check" in checks and "eps0" not in checks
    assert attack_constant(tmp_path / "other", "attack.audit=0") == 0
    assert "audit" not in record.read(capsys.readouterr().out.split("\n")[0]).header


def test_an_audit_that_was_killed_is_made_up_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    attack_constant(tmp_path)
    folder = capsys.readouterr().out.split("\n")[0]
    header = record.read(folder).header
    kept = {key: value for key, value in header.items() if key != "audit"} | {"flags": [], "status": "started"}
    record.write_header(Path(folder), kept)
    attack_constant(tmp_path)
    again = record.read(folder).header
    assert again["audit"]["findings"] == header["audit"]["findings"] and again["flags"] == header["flags"]
    assert again["status"] == "complete" and again["evidence_sha256"] == header["evidence_sha256"]
