"""The conformance suite is tested with planted faults: each must be caught by the check that names it."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from drbench.api import Defense, DrbenchError
from drbench.conformance import adapter, calls
from drbench.testing import CHECKS, Failure, checks_for, parametrize_with_checks
from drbench.training import train

# ---- correct adapters --------------------------------------------------------------------------------------


class Plain(Defense):
    """Deterministic, exact gradient, trainable. The faults below change one thing each."""

    citation = "plain2024"

    def __init__(self, input_shape=(1, 8, 8), num_classes=10, width=16, sigmas=(0.0, 0.25, 0.5)):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        pixels = int(np.prod(input_shape))
        layers = (nn.Flatten(), nn.Linear(pixels, width), nn.SiLU(), nn.Linear(width, num_classes))
        self.classifier = nn.Sequential(*layers)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifier(self.before(z, draws))

    def before(self, z, draws):
        return z

    def nfe(self, sigma):
        return {"classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes)

    def fit(self, x, y, recipe, log):
        train(self.classifier, lambda rng: nn.functional.cross_entropy(self.classifier(x), y), recipe, log)


class Affine(Plain):
    """Declares its Lipschitz constant, and is clean only: sigma = 0."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10, width=16, sigmas=(0.0,)):
        super().__init__(input_shape, num_classes, width, sigmas)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))

    @property
    def lipschitz(self):
        return float(self.classifier[1].weight.detach().norm(dim=1).max())


class Noisy(Plain):
    """Randomised: adds its own noise and averages two calls."""

    randomized = True

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return sum(self.classifier(z + 0.1 * draws.randn(*z.shape)) for _ in range(2)) / 2

    def nfe(self, sigma):
        return {"classifier": 2}


class Rounded(Plain):
    """Rounds its input; the attacker gets a straight-through surrogate. Evaluation only."""

    gradient = "surrogate"
    fit = Defense.fit

    def before(self, z, draws):
        return z + ((z * 255).round() / 255 - z).detach()


class Unattackable(Rounded):
    gradient = "none"

    def before(self, z, draws):
        return (z * 255).round() / 255


class Locked(Plain):
    """Lets one call in at a time: slow, not wrong."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10):
        super().__init__(input_shape, num_classes)
        self.lock = threading.Lock()

    def logits(self, z, sigma, draws):
        with self.lock:
            return super().logits(z, sigma, draws)


CORRECT = [Plain, Affine, Noisy, Rounded, Unattackable, Locked]


@parametrize_with_checks(CORRECT)
def test_correct_adapters_pass(check, monkeypatch):
    monkeypatch.setattr(calls, "PATIENCE", 0.1)
    check()


# ---- faults ------------------------------------------------------------------------------------------------

FAULTS = []


def faulty(check_name, phrases, name, base=Plain, **members):
    """Register an adapter with these faulty members, the check to catch it, and what it must say."""
    defense_class = type(name, (base,), members)
    FAULTS.append(pytest.param(check_name, phrases, defense_class, id=f"{check_name}-{name}"))


def keep_the_input(self, z, sigma, draws):
    self.require(sigma)
    self.kept = z
    scores = self.classifier(z)
    return scores + self.kept.flatten(1)[:, : self.num_classes]


def changed(change):
    """An `__init__` that builds the correct adapter and then changes it."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10):
        Plain.__init__(self, input_shape, num_classes)
        change(self)

    return __init__


def before(change):
    """A fault in front of the network, as a function of the input."""
    return {"before": lambda self, z, draws: change(z)}


def after(change):
    """A fault behind the network, as a function of the logits."""
    return {"logits": lambda self, z, sigma, draws: change(Plain.logits(self, z, sigma, draws))}


def tiny(*more, **options):
    return classmethod(lambda cls, input_shape, num_classes: cls(input_shape, num_classes, *more, **options))


def object_init(self, input_shape=(1, 8, 8), num_classes=10, activation=nn.SiLU):
    Plain.__init__(self, input_shape, num_classes)


def keywords_init(self, input_shape=(1, 8, 8), num_classes=10, **options):
    Plain.__init__(self, input_shape, num_classes)


def required_init(self, input_shape, num_classes, width):
    Plain.__init__(self, input_shape, num_classes, width)


def ascend(self, x, y, recipe, log):
    def loss(rng):
        return -nn.functional.cross_entropy(self.classifier(x), y)

    train(self.classifier, loss, recipe, lambda step, value: log(step, -value))


def diverge(self, x, y, recipe, log):
    train(self.classifier, lambda rng: (self.classifier(x) / 0).sum(), recipe, log)


def idle(self, x, y, recipe, log):
    for step in range(1, recipe.steps + 1):
        log(step, 1 / step)


def fit_at_random(self, x, y, recipe, log):
    noisy = x + 0.1 * torch.randn_like(x)  # of no step, so that no seed of a step makes it again

    def loss(rng):
        return nn.functional.cross_entropy(self.classifier(noisy), y)

    train(self.classifier, loss, recipe, log)


class TwoNetworks(Plain):
    """A learned scale before the classifier; correct."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10):
        super().__init__(input_shape, num_classes)
        self.scale = nn.Conv2d(input_shape[0], input_shape[0], 1)

    def before(self, z, draws):
        return self.scale(z)

    def nfe(self, sigma):
        return {"classifier": 1, "scale": 1}

    def fit(self, x, y, recipe, log):
        train(self, lambda rng: nn.functional.cross_entropy(self.classifier(self.scale(x)), y), recipe, log)


def keep_a_list(self, z, draws):
    self.__dict__.setdefault("seen", []).append(z.mean())
    return z


def by_the_clock(z):
    generator = torch.Generator()
    generator.seed()
    return z + torch.rand(z.shape, generator=generator)


def block_noise(draws, z):
    """One set of normals for all rows of a block: right for none."""
    return 0.1 * torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(draws.spans[0].key % 2**62))


def count_calls(self, z, draws):
    self.calls = getattr(self, "calls", 0) + 1
    return z + 0.01 * self.calls


class TrainingNorm(Plain):
    """BatchNorm that `eval` does not reach."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10):
        super().__init__(input_shape, num_classes)
        self.norm = nn.BatchNorm2d(input_shape[0])

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def before(self, z, draws):
        return self.norm(z)


# fmt: off
faulty("constructor", ["'activation'", "a config cannot hold"], "ObjectAsDefault", __init__=object_init)
faulty("constructor", ["**options", "spell"], "Keywords", __init__=keywords_init)
faulty("constructor", ["'width' has no default"], "NoDefault", __init__=required_init, tiny=tiny(16))
faulty("declarations", ["increasing", "(0.5, 0.25)"], "Decreasing",
       __init__=changed(lambda self: setattr(self, "sigmas", (0.5, 0.25))))
faulty("declarations", ["num_classes", "10", "None"], "NoClasses",
       __init__=changed(lambda self: delattr(self, "num_classes")))
faulty("declarations", ["gradient", "'approximate'"], "UnknownGradient", gradient="approximate")
faulty("declarations", ["citation"], "NoCitation", citation="")
faulty("declarations", ["int or float", "float32"], "NumpyLevels",
       __init__=changed(lambda self: setattr(self, "sigmas", tuple(np.float32([0.1, 0.25])))))
faulty("tiny_size", ["expected a NoReturn", "got NoneType"], "NoReturn", tiny=classmethod(lambda cls, *size: None))
faulty("tiny_size", ["parameters", "100,000"], "Huge", tiny=tiny(width=2000))
faulty("shape_dtype", ["float64"], "Double", **after(lambda logits: logits.double()))
faulty("shape_dtype", ["(8, 10)", "(8, 11)"], "ExtraClass",
       **after(lambda logits: nn.functional.pad(logits, (0, 1))))
faulty("shape_dtype", ["(1, 10)", "(10,)"], "Squeezed", **after(torch.squeeze))
faulty("shape_dtype", ["8 of 8 rows", "NaN"], "NotFinite", **before(lambda z: z * float("nan")))
faulty("shape_dtype", ["got tuple", "nothing beside"], "Pair", **after(lambda logits: (logits, None)))
faulty("shape_dtype", ["2 of 2 flat images", "denominator"], "Standardised",
       **before(lambda z: (z - z.mean((1, 2, 3), True)) / z.std((1, 2, 3), keepdim=True)))
faulty("logits_not_probabilities", ["softmax"], "Softmax", **after(lambda logits: logits.softmax(1)))
faulty("undeclared_sigma", ["-0.1", "got an answer", "self.require(sigma)"], "Unchecked",
       logits=lambda self, z, sigma, draws: self.classifier(z))
faulty("undeclared_sigma", ["negative"], "AcceptsAll", accepts=lambda self, sigma: True)
faulty("undeclared_sigma", ["KeyError", "names the declared"], "Crashes",
       logits=lambda self, z, sigma, draws: {level: self.classifier for level in self.sigmas}[sigma](z))
faulty("pure", ["in place"], "InPlace", **before(lambda z: z.sub_(0.5)))
faulty("pure", ["norm.running_mean", "BatchNorm"], "NormState", TrainingNorm)
faulty("pure", ["train and eval mode"], "SwitchesMode",
       before=lambda self, z, draws: self.classifier.train() and z)
faulty("pure", ["second identical call", "count calls"], "Counting", before=count_calls)
faulty("pure", ["seen grows", "keeps nothing"], "Growing", before=keep_a_list)
faulty("side_by_side", ["keep nothing of a call"], "KeepsItsInput", logits=keep_the_input)
faulty("rng_only", ["torch", "draws.randn"], "GlobalTorch", randomized=True,
       **before(lambda z: z + 0.1 * torch.randn_like(z)))
faulty("rng_only", ["numpy"], "GlobalNumpy", **before(lambda z: z + 0 * np.random.rand()))
faulty("rng_only", ["does not come", "own generator"], "OwnGenerator", **before(by_the_clock))
faulty("randomized_flag", ["declare randomized = False"], "NotRandom", randomized=True)
faulty("randomized_flag", ["declare randomized = True", "0.25"], "SecretlyRandom", Noisy, randomized=False)
faulty("rows_independent", ["64 copies", "draws.randn(len(z)"], "BlockNoise", Noisy,
       logits=lambda self, z, sigma, draws: self.classifier(z + block_noise(draws, z)))
faulty("rows_independent", ["correlate"], "PartlyShared", Noisy,
       logits=lambda self, z, sigma, draws:
       self.classifier(z + 0.1 * draws.randn(*z.shape) + block_noise(draws, z)))
faulty("rows_independent", ["neighbours", "one draw for all rows"], "FirstRowNoise", Noisy,
       logits=Plain.logits, before=lambda self, z, draws: z + 0.1 * draws.randn(*z.shape)[:1])
faulty("rows_independent", ["neighbours", "batch mean"], "BatchMean", **before(lambda z: z - z.mean(0)))
faulty("rows_independent", ["neighbours", "BatchNorm"], "NormRows", TrainingNorm)
faulty("one_function", ["gradients enabled", "deployed"], "TwoFunctions",
       **before(lambda z: z + 0.1 * torch.is_grad_enabled()))
faulty("one_function", ["attack_logits"], "OtherAttack",
       attack_logits=lambda self, z, sigma, draws: 0.9 * self.logits(z, sigma, draws))
faulty("two_parts", ["[0, 1]", "purify gives"], "OutOfTheBox", purify=lambda self, z, sigma, draws: 2 * z)
faulty("two_parts", ["for want of `classify`"], "PurifiesTwice", Noisy,
       purify=lambda self, z, sigma, draws: (z + 0.1 * draws.randn(*z.shape)).clamp(0, 1))
faulty("two_parts", ["classify of purify differs"], "PurifiesMore",
       purify=lambda self, z, sigma, draws: z.clamp(0.4, 0.6),
       classify=lambda self, x, sigma, draws: self.classifier(x))
faulty("gradient", ["expected at least 90%", "detach()"], "HalfDetached",
       **before(lambda z: torch.cat([z[:, :, :4], z[:, :, 4:].detach()], 2)))
faulty("gradient", ["expected at least 90%", "rounding"], "RoundedExact", Rounded, gradient="exact")
faulty("gradient", ["expected at least 90%"], "FlatExact", Unattackable, gradient="exact")
faulty("gradient", ["not connected", "no_grad()"], "Detached", **before(torch.detach))
faulty("gradient", ["surrogate gradient of zero"], "FlatSurrogate", Unattackable, gradient="surrogate")
faulty("lipschitz", ["above the declared", "false"], "SmallConstant", Affine,
       lipschitz=property(lambda self: 0.9 * Affine.lipschitz.fget(self)))
faulty("nfe", ["classifier: 2 calls per row, counted were classifier: 1"], "WrongCost", nfe=Noisy.nfe)
faulty("nfe", ["counted were no", "list every network"], "UnlistedNetwork", networks=lambda self: {})
faulty("nfe", ["nfe returns 2", "a dict"], "BareCount", nfe=lambda self, sigma: 2)
faulty("nfe", ["runs scale outside of networks() (classifier)"], "HidesNetwork", TwoNetworks, nfe=Plain.nfe,
       networks=lambda self: {"classifier": self.classifier})
faulty("state_round_trip", ["register_buffer"], "HiddenState",
       __init__=changed(lambda self: setattr(self, "shift", torch.rand(1))),
       before=lambda self, z, draws: z + self.shift)
faulty("devices", ["0.0% of votes", "buffers"], "LostInTransit",
       to=lambda self, device: [p.data.neg_() for p in self.classifier[3].parameters()] and self)
faulty("certifiable", ["210 of 210 draws gave non-finite"], "NotFiniteVotes",
       **before(lambda z: z * float("inf")))
faulty("trainable", ["changes no weight"], "Idle", fit=idle)
faulty("trainable", ["log(step, loss)", "0 calls"], "Silent", fit=lambda self, x, y, recipe, log: None)
faulty("trainable", ["do not lower the loss", "sign"], "Ascends", fit=ascend)
faulty("trainable", ["diverged"], "Diverges", fit=diverge)
faulty("trainable", ["scale.weight", "trained() names classifier"], "TrainsMore", TwoNetworks,
       trained=lambda self: ("classifier",))
faulty("certifiable", ["expected a tensor", "NoneType"], "Answerless", **after(lambda logits: None))
faulty("fit_seeded", ["classifier.1.weight", "recipe.seed"], "FitsAtRandom", fit=fit_at_random)
# fmt: on


@pytest.mark.parametrize(("check_name", "phrases", "defense_class"), FAULTS)
def test_fault_is_caught_at_both_sizes(check_name, phrases, defense_class, monkeypatch):
    # `devices` needs a device to compare with: the CPU will do.
    monkeypatch.setattr(adapter, "accelerator", lambda: torch.device("cpu"))
    runs = [run for name, run in checks_for(defense_class) if name.startswith(f"{check_name}-")]
    assert len(runs) == 2
    messages = []
    for run in runs:
        with pytest.raises((Failure, DrbenchError)) as caught:
            run()
        messages.append(str(caught.value))
    assert all(phrase in messages[0] for phrase in phrases), messages[0]


def test_every_check_catches_a_fault():
    on_disk = {"documented"}  # see test_conformance_suite.py
    assert {fault.values[0] for fault in FAULTS} | on_disk == set(CHECKS)
