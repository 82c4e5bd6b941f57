"""A small CNN trained on adversarial examples. Madry et al. 2018, arXiv 1706.06083."""

from torch.nn.functional import cross_entropy

from drbench.api import Defense, DrbenchError
from drbench.classifiers import SmallCNN
from drbench.training import sample, train
from methods.adversarial_training.pgd import NORMS, worst_nearby


class AdversarialTraining(Defense):
    """One classifier call; the training norm and radius do not change the answers of given weights.

    Parameters
    ----------
    norm : {"linf", "l2"}
        Of the perturbations in training.
    eps : float
        Their radius, pixel units.
    attack_steps : int
        Gradient steps for each training batch.
    """

    citation = "arXiv:1706.06083"

    def __init__(
        self,
        input_shape=(1, 8, 8),
        num_classes=10,
        width=16,
        sigmas=(0.0, 0.125, 0.25, 0.5, 1.0),
        norm="linf",
        eps=0.15,
        attack_steps=7,
    ):
        super().__init__()
        if norm not in NORMS or eps <= 0 or attack_steps < 1:
            raise DrbenchError(
                f"adversarial_training needs norm {' or '.join(NORMS)}, eps > 0 and attack_steps >= 1, "
                f"got norm={norm!r}, eps={eps}, attack_steps={attack_steps}"
            )
        self.input_shape, self.num_classes, self.sigmas = tuple(input_shape), num_classes, tuple(sigmas)
        self.norm, self.eps, self.attack_steps = norm, eps, attack_steps
        self.classifier = SmallCNN(self.input_shape, num_classes, width)

    def logits(self, z, sigma, draws):
        self.require(sigma)
        return self.classifier(z)

    def nfe(self, sigma):
        return {"classifier": 1}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls(input_shape, num_classes, width=8, eps=0.02, attack_steps=2)

    def fit(self, x, y, recipe, log):
        def loss(rng):
            images, labels = sample(x, y, recipe, rng)

            def total(moved):
                return cross_entropy(self.classifier(moved), labels, reduction="sum")

            hard = worst_nearby(total, images, self.norm, self.eps, self.attack_steps, rng)
            return total(hard) / len(images)

        train(self.classifier, loss, recipe, log)
