"""Purify by a consistency function, then classify. Li et al. 2024, arXiv 2407.00623; Song et al. 2023, 2303.01469."""

from dataclasses import fields, replace

from drbench import classifiers
from drbench.api import Defense, DrbenchError
from drbench.diffusion import consistency, networks
from drbench.diffusion.consistency import ConsistencyFunction, ConsistencyTraining
from drbench.diffusion.schedules import karras_grid
from drbench.diffusion.train import remember_scale
from drbench.recipe import Recipe
from drbench.training import sample, train
from methods.consistency import metrics

OBJECTIVES = ("distillation", "training", "tuning")
FUNCTIONS = ("consistency", "denoiser")
TIMES = ("snap", "exact", "inflate")
WEIGHTS = ("uniform", "karras")


class Consistency(Defense):
    """One call of a consistency function for every noise level, a classifier that has only seen clean images.

    Parameters
    ----------
    function : {"consistency", "denoiser"}
        What purifies: a consistency function, or, as a control, the posterior mean of a denoiser with the same network.
    time : {"snap", "exact", "inflate"}
        Time that it is told at noise 2 sigma: the nearest point of the grid (published), 2 sigma itself, or the nearest
        point with noise added up to it where it lies above (not in the paper).
    points, t_min, t_max : int, float, float
        The Karras grid, network units.
    objective : {"distillation", "training", "tuning"}
        What `fit` does. "distillation": consistency distillation from the denoiser that `train.start` gives.
        "training": consistency training without teacher, on grids that grow to `points`. "tuning": Consistency
        Fine-tuning of the weights that `train.start` gives. Does not change the answers, as all below.
    metric : str
        Distance of the objective, one of `metrics.METRICS`.
    weight : {"uniform", "karras"}
        Of the times in distillation and training, see `ConsistencyTraining`.
    ema : float
        Decay of the target network: of distillation, or the first one of training. 0: the student itself.
    first_scale : int
        Intervals of the first grid of training.
    encoder_recipe : dict, optional
        Fields of the training recipe of the metric's encoder, where it has one; `encoder_width` is its width.
    channels, width
        Of the UNet, of the classifier.
    denoiser, classifier : dict, optional
        Other networks than the small ones, for `drbench.diffusion.networks.build` and `drbench.classifiers.build`.
        A consistency function is of such a kind, as {"preset": "openai_consistency/cd_imagenet64_lpips",
        "unlabelled": "zero"}, or has `t_min` in its dict.
    """

    citation = "arXiv:2407.00623"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        sigmas=(0.0, 0.25, 0.5, 1.0),
        channels=(16, 32),
        width=16,
        function="consistency",
        time="snap",
        points=18,
        t_min=0.002,
        t_max=80.0,
        objective="distillation",
        metric="lpips_vgg",
        weight="uniform",
        ema=0.0,
        first_scale=2,
        encoder_recipe=None,
        encoder_width=16,
        denoiser=None,
        classifier=None,
    ):
        super().__init__()
        metrics.check(metric)
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.function, self.time, self.points, self.t_min, self.t_max = function, time, points, t_min, t_max
        self.objective, self.metric, self.weight = objective, metric, weight
        self.ema, self.first_scale = ema, first_scale
        self.encoder_recipe, self.encoder_width = dict(encoder_recipe or {}), encoder_width
        self._check()
        self.grid = karras_grid(points, t_min, t_max)
        least = None if function == "denoiser" else t_min
        self.denoiser = networks.build(denoiser, self.input_shape, num_classes, channels=channels, t_min=least)
        self._check_denoiser()
        self.classifier = classifiers.build(classifier, self.input_shape, num_classes, width=width)
        self.randomized = any(self.met(sigma) > 2 * sigma for sigma in self.sigmas if sigma)

    def logits(self, z, sigma, draws):
        return self.classify(self.purify(z, sigma, draws), sigma, draws)

    def purify(self, z, sigma, draws):
        """Clean pixels in [0, 1] that the classifier sees, (B, C, H, W); without noise those that came."""
        self.require(sigma)
        if sigma == 0:
            return z
        z_net, level = 2 * z - 1, self.met(sigma)
        if level > 2 * sigma:
            z_net = z_net + (level**2 - 4 * sigma**2) ** 0.5 * draws.randn(*z.shape)
        return (self.denoiser(z_net, self.told(sigma)).clamp(-1, 1) + 1) / 2

    def classify(self, x, sigma, draws):
        """Scores of purified images."""
        return self.classifier(x)

    def told(self, sigma):
        """Time that the purifier is told at noise level `sigma` > 0, network units."""
        return 2 * sigma if self.time == "exact" else consistency.nearest(2 * sigma, self.grid)

    def met(self, sigma):
        """Noise that the purifier meets at noise level `sigma` > 0, network units."""
        return max(2 * sigma, self.told(sigma)) if self.time == "inflate" else 2 * sigma

    def nfe(self, sigma):
        return {"classifier": 1} if sigma == 0 else {"denoiser": 1, "classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, channels=(8, 16), width=4, metric="l2")

    def trained(self):
        return ("denoiser",)  # the classifier is a given: any network trained on clean images

    def fit(self, x, y, recipe, log):
        if self.objective == "training":
            remember_scale(self.denoiser, 2 * x - 1)
        # the encoder's training is short: it is repeated, not resumed
        encoder_recipe = replace(recipe, state=None, **self.encoder_recipe)
        distance = metrics.metric(self.metric, x, y, self.num_classes, encoder_recipe, self.encoder_width)
        trained, loss = self._tuning(distance) if self.objective == "tuning" else self._consistency(distance, recipe)
        train(trained, lambda rng: loss(2 * sample(x, y, recipe, rng)[0] - 1, rng), recipe, log)

    def _tuning(self, distance):
        levels = [(self.met(sigma), self.told(sigma)) for sigma in self.sigmas if sigma > 0]
        return self.denoiser, lambda x, rng: consistency.tuning_loss(self.denoiser, x, levels, distance, rng)

    def _consistency(self, distance, recipe):
        teacher, grid_at, ema_at = None, lambda step: self.grid, lambda step: self.ema
        if self.objective == "distillation":
            teacher = self.denoiser.teacher()
            teacher.to(self.device).eval().requires_grad_(False)
        else:

            def scale(step):
                return consistency.scale_at(step, recipe.steps, self.first_scale, self.points - 1)

            def grid_at(step):
                return karras_grid(scale(step) + 1, self.t_min, self.t_max)

            def ema_at(step):
                return consistency.ema_at(scale(step), self.first_scale, self.ema)

        stage = ConsistencyTraining(self.denoiser, grid_at, ema_at, distance, teacher, self.ema > 0, self.weight)
        return stage.to(self.device), stage.loss

    def _check_denoiser(self):
        is_function = isinstance(self.denoiser, ConsistencyFunction)
        if is_function != (self.function == "consistency"):
            got = "a consistency function" if is_function else "a denoiser"
            raise DrbenchError(
                f"consistency: function {self.function!r} got {got} as its network; set `function`, or the option that "
                "makes the network the other (`t_min`; of kind openai_consistency `distillation`)"
            )
        if is_function and self.denoiser.t_min != self.t_min:
            raise DrbenchError(
                f"consistency: the network is exact at time {self.denoiser.t_min:g}, the grid begins at t_min = "
                f"{self.t_min:g}; set t_min: {self.denoiser.t_min:g}"
            )

    def _check(self):
        unknown = set(self.encoder_recipe) - {field.name for field in fields(Recipe)}
        problems = [
            (self.function not in FUNCTIONS, f"function as one of {', '.join(FUNCTIONS)}, got {self.function!r}"),
            (self.time not in TIMES, f"time as one of {', '.join(TIMES)}, got {self.time!r}"),
            (self.objective not in OBJECTIVES, f"objective as one of {', '.join(OBJECTIVES)}, got {self.objective!r}"),
            (self.weight not in WEIGHTS, f"weight as one of {', '.join(WEIGHTS)}, got {self.weight!r}"),
            (self.points < 2, f"points >= 2, so that the grid has neighbours, got {self.points}"),
            (not 0 <= self.ema < 1, f"ema in [0, 1), got {self.ema}"),
            (self.function == "denoiser" and self.objective != "tuning", "objective tuning for function denoiser"),
            (unknown, f"fields of train.recipe in encoder_recipe, got {', '.join(sorted(unknown))}"),
        ]
        for wrong, expected in problems:
            if wrong:
                raise DrbenchError(f"consistency: expected {expected}")
