"""The shipped diffusion classifiers on all digits, and the conformance of their options."""

import pytest
import torch

import drbench
from drbench.api import Draws
from drbench.testing import check
from methods.diffusion_classifier.defense import DiffusionClassifier

ARGS = {"levels": [0.5, 3.0], "nodes": 16}
MULTIHEAD = ["digits/denoiser", "digits/rdc-multihead"]
ASCENT = {"form": "linf_momentum", "eta": 0.125, "rate": 0.1}


def predictions(images, checkpoint="digits/denoiser", seed=0, **args):
    defense = drbench.load_defense("diffusion_classifier", images, checkpoint, **{**ARGS, **args})
    draws = Draws.seeded(seed, len(images))
    with torch.inference_mode():
        parts = [defense.logits(images.x[i : i + 100], 0.0, draws[i : i + 100]) for i in range(0, len(images), 100)]
    return torch.cat(parts).argmax(1)


@pytest.mark.slow
def test_clean_accuracy_with_few_nodes():
    """DC, 16 nodes: at least 95 % of the 500 test images; RDC within 3 points; multi-head like its teacher."""
    images = drbench.load_data("digits", "test")
    dc, rdc = predictions(images), predictions(images, likelihood=ASCENT)
    accuracy = [float(found.eq(images.y).float().mean()) for found in (dc, rdc)]
    assert accuracy[0] >= 0.95
    assert accuracy[1] >= accuracy[0] - 0.03
    heads = predictions(images, MULTIHEAD, network="multihead")
    assert heads.eq(dc).float().mean() >= 0.95


def test_multi_head_agrees_with_its_teacher():
    """Its errors are small where they differ between classes (what they share cancels), above low noise levels."""
    images = drbench.load_data("digits", "validation", subset="first40")
    defense = drbench.load_defense("diffusion_classifier", images, MULTIHEAD, network="multihead", **ARGS)
    draws = Draws.seeded(0, 40)
    for level, share in ((1.0, 0.5), (1.5, 0.25), (2.5, 0.1)):
        z = 2 * images.x - 1 + level * draws.randn(40, 1, 8, 8)
        with torch.inference_mode():
            heads = defense.multihead(z, torch.full((40,), level))
            told = torch.stack([defense.denoiser(z, level, torch.full((40,), k)) for k in range(10)], 1)
        error = heads - told
        between = (told - told.mean(1, keepdim=True)).square().mean()
        assert (error - error.mean(1, keepdim=True)).square().mean() < share * between
    same = predictions(images, MULTIHEAD, network="multihead") == predictions(images)
    assert same.float().mean() >= 0.9


def test_shared_noise_lowers_the_variance_of_logit_differences():
    images = drbench.load_data("digits", "validation", subset="first10")
    spread = {}
    for shared in (True, False):
        defense = drbench.load_defense(
            "diffusion_classifier", images, "digits/denoiser", **ARGS | {"nodes": 4}, shared_noise=shared
        )
        with torch.inference_mode():
            seen = torch.stack([defense.logits(images.x, 0.0, Draws.seeded(seed, 10)) for seed in range(12)])
        two = seen.mean(0).topk(2, 1).indices
        spread[shared] = float((seen.gather(2, two.expand(12, -1, -1)) @ torch.tensor([1.0, -1.0])).var(0).mean())
    assert spread[True] < 0.5 * spread[False]


SECOND = {"kind": "small_unet", "channels": [8], "groups": 4}
VARIANTS = {
    "rdc": {"likelihood": {"steps": 2, "rate": 0.05}},
    "rdc bpda": {"likelihood": {"steps": 2}, "gradient": "bpda"},
    "adam": {"likelihood": {"form": "adam_free", "steps": 2, "rate": 0.05}},
    "fixed": {"randomness": "fixed"},
    "multi-head": {"network": "multihead", "head_channels": (8,), "noised": "apndc", "sigmas": (0.25,)},
    "sifted": {"sift": {"nodes": 1, "threshold": 1.0, "keep": 2}},
    "epndc": {"noised": "epndc", "nodes": 3, "sigmas": (0.25,)},
    "apndc of the text": {"noised": "apndc_noisy", "sigmas": (0.25,)},
    "denoise": {"noised": "denoise", "sigmas": (0.25,)},
    "lipschitz": {"clip": True, "weight": "uniform"},
    "purifier": {"noised": "apndc", "sigmas": (0.25,), "purifier": SECOND},
    "purifier at another size": {
        "noised": "apndc",
        "sigmas": (0.25,),
        "purifier": SECOND,
        "resize": 4,
        "likelihood": {"steps": 1, "rate": 0.05},
    },
    "classifier": {"network": "classifier", "width": 4, "likelihood": {"steps": 2, "rate": 0.05}},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_options_conform(options, monkeypatch):
    """Every option under the whole suite, at the smaller of its sizes."""
    from drbench import testing

    class Variant(DiffusionClassifier):
        @classmethod
        def tiny(cls, input_shape, num_classes):
            return cls(input_shape, num_classes, **{"channels": (8,), "nodes": 1, "levels": (0.5, 3.0)} | options)

    monkeypatch.setattr(testing, "SIZES", testing.SIZES[:1])
    results = check(Variant)
    assert [(result.check, result.message) for result in results if result.status == "failed"] == []
    assert sum(result.status == "ok" for result in results) >= 14
