"""RCM: one pass through a pre-trained, noise-tuned ViT. Lei et al. 2025, arXiv 2501.13094."""

from copy import deepcopy
from dataclasses import fields, replace

from torch import nn

from drbench.api import Defense, DrbenchError
from drbench.recipe import Recipe
from methods.rcm.network import Classifier, ViT
from methods.rcm.path import snap
from methods.rcm.pretrain import KINDS, pretrain
from methods.rcm.tune import tune

HEADS = ("trainable", "frozen")


class RCM(Defense):
    """One time-conditioned ViT for each declared noise level, all tuned from one pre-trained encoder.

    Parameters
    ----------
    patch, width, depth, heads : int
        Shape of the ViT.
    layernorm : bool
        Whether the head sees the final LayerNorm (official: ImageNet yes, CIFAR-10 no).
    grid : int
        Points of the grid that the noise level 2 sigma is rounded to: those of the end of pre-training.
    pretraining : {"none", "contrastive", "consistency", "both"}
        Terms of the pre-training loss. "both" is the method, the others are its ablations.
    pretraining_recipe : dict, optional
        Fields of the training recipe that differ in pre-training.
    projector : pair of int
        Widths of the projector's hidden layers and of its output; it exists in pre-training only.
    ema : triple of float
        First and last decay of the pre-training target, sharpness of the ramp between them.
    head : {"trainable", "frozen"}
        Tune the linear head too (paper), or leave it at its random start (official code).
    kl_weights : tuple of float
        Weight of the consistency term in tuning, for each of `sigmas`.
    entropy_weight, layer_decay : float
        Of tuning.
    """

    citation = "arXiv:2501.13094"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        sigmas=(0.25, 0.5),
        patch=2,
        width=64,
        depth=2,
        heads=4,
        layernorm=True,
        grid=81,
        pretraining="both",
        pretraining_recipe=None,
        projector=(128, 64),
        ema=(0.99, 0.999, 10.0),
        head="trainable",
        kl_weights=(10.0, 20.0),
        entropy_weight=0.5,
        layer_decay=1.0,
    ):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.grid, self.pretraining, self.pretraining_recipe = grid, pretraining, dict(pretraining_recipe or {})
        self.projector, self.ema, self.head = tuple(projector), tuple(ema), head
        self._check(patch, width, heads, len(kl_weights))
        self.kl_weights, self.entropy_weight, self.layer_decay = tuple(kl_weights), entropy_weight, layer_decay
        self.classifiers = nn.ModuleList(
            Classifier(ViT(self.input_shape, patch, width, depth, heads), num_classes, layernorm) for _ in self.sigmas
        )

    def networks(self):
        return {f"vit_{sigma:g}": network for sigma, network in zip(self.sigmas, self.classifiers, strict=True)}

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifiers[self.sigmas.index(sigma)](2 * z - 1, snap(2 * sigma, self.grid))

    def nfe(self, sigma):
        return {f"vit_{sigma:g}": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, patch=4, width=16, heads=2, projector=(16, 8))

    def fit(self, x, y, recipe, log):
        if self.pretraining != "none":
            encoder = deepcopy(self.classifiers[0].base_model)
            changed = {"state": recipe.state and f"{recipe.state}-pretraining", **self.pretraining_recipe}
            options = {"kind": self.pretraining, "ema": self.ema, "projector": self.projector}
            pretrain(encoder, x, replace(recipe, **changed), log, **options)
            for network in self.classifiers:
                network.base_model.load_state_dict(encoder.state_dict())
        for sigma, network, kl_weight in zip(self.sigmas, self.classifiers, self.kl_weights, strict=True):
            options = {"kl_weight": kl_weight, "entropy_weight": self.entropy_weight}
            options |= {"layer_decay": self.layer_decay, "head": self.head == "trainable"}
            own = replace(recipe, state=recipe.state and f"{recipe.state}-{sigma:g}")
            tune(network, x, y, 2 * sigma, snap(2 * sigma, self.grid), own, log, **options)

    def _check(self, patch, width, heads, weights):
        shape, unknown = self.input_shape, set(self.pretraining_recipe) - {field.name for field in fields(Recipe)}
        problems = [
            (shape[1] % patch or shape[2] % patch, f"a patch that divides the image, got patch {patch} for {shape}"),
            (width % heads or width % 2, f"an even width, a multiple of heads, got width {width} and {heads} heads"),
            (self.pretraining not in KINDS, f"pretraining as one of {', '.join(KINDS)}, got {self.pretraining!r}"),
            (self.head not in HEADS, f"head as one of {', '.join(HEADS)}, got {self.head!r}"),
            (weights != len(self.sigmas), f"one of kl_weights for each of sigmas {self.sigmas}, got {weights}"),
            (unknown, f"fields of train.recipe in pretraining_recipe, got {', '.join(sorted(unknown))}"),
        ]
        for wrong, expected in problems:
            if wrong:
                raise DrbenchError(f"rcm: expected {expected}")
