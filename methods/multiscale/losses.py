"""What fine-tunes a denoiser for a cascade: a Brier and an anti-consistency loss, *our variant*.

Jeong and Shin 2023 (arXiv 2310.16779) name both losses; their formulas and weights were not available, and the official
code has none. These follow the description: reward agreement of the denoised copies where the image can be recovered,
punish it where the copies agree on a wrong class.
"""

import torch
from torch import Tensor


def calibration_losses(probabilities: Tensor, labels: Tensor, p0: float = 0.5) -> tuple[Tensor, Tensor]:
    """Both losses of a batch: (Brier, anti-consistency), means over the images.

    With q_i the class probabilities of copy i of m, q their mean and c = argmax q, an image adds
    mean_i ||q_i - e_y||^2 to the first if c = y, and mean over i != j of <q_i, q_j> to the second if c != y and
    q_c > p0.

    Parameters
    ----------
    probabilities : Tensor (m, B, K)
        Of m >= 2 noisy copies of each image, at one noise level an image.
    labels : Tensor (B,) int64
    p0 : float
        Threshold of the cascade.
    """
    copies = len(probabilities)
    confidence, answer = probabilities.mean(0).max(1)
    right, overconfident = answer == labels, (answer != labels) & (confidence > p0)
    target = torch.nn.functional.one_hot(labels, probabilities.shape[2])
    brier = (probabilities - target).square().sum(2).mean(0)
    agreement = (probabilities.sum(0).square().sum(1) - probabilities.square().sum((0, 2))) / (copies * (copies - 1))
    return (brier * right).mean(), (agreement * overconfident).mean()
