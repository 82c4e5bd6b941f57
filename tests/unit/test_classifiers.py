"""The classifier's augmentation."""

import torch

from drbench.classifiers import mixup


def test_mixup_blends_images_and_targets_alike():
    x = torch.eye(10).reshape(10, 1, 1, 10).repeat(5, 1, 1, 1)  # image k shows its own class
    targets = torch.eye(10).repeat(5, 1)
    mixed, labels = mixup(x, targets, 0.5, torch.Generator().manual_seed(0))
    assert torch.allclose(mixed.flatten(1), labels)
    assert torch.allclose(labels.sum(1), torch.ones(50))
    assert torch.equal(labels[25:], targets[25:])
    weights = labels[:25].max(1).values
    assert (weights < 0.99).sum() > 15 and weights.min() >= 0.5
    # row i keeps the share w of itself: uniform weights have mean 1/2 (25 draws, and a tenth of partners alike)
    assert 0.3 < labels[:25][targets[:25] == 1].mean() < 0.75


def test_no_mixup_leaves_the_batch_and_the_generator_alone():
    x, targets, rng = torch.rand(4, 1, 2, 2), torch.eye(4), torch.Generator().manual_seed(0)
    before = rng.get_state()
    assert mixup(x, targets, 0.0, rng) == (x, targets)
    assert torch.equal(rng.get_state(), before)
