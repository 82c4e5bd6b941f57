"""The vote engine: invariance, packing, errors; and certificates on classifiers whose true radius is known."""

import numpy as np
import pytest
import torch
from scipy import stats as reference

from drbench import stats
from drbench.api import Defense, DrbenchError
from drbench.certifiers import gaussian
from drbench.certifiers.batch_size import find_batch_rows
from drbench.certifiers.batching import Forward
from drbench.certifiers.engine import Request, count_votes
from drbench.draws import INPUT_NOISE, Span, block_key, normals


class Linear(Defense):
    """Two classes divided by the hyperplane sum(z) = threshold; remembers every row that it has seen."""

    citation = "test"

    def __init__(self, threshold=32.0, shape=(1, 8, 8)):
        super().__init__()
        self.input_shape, self.num_classes, self.sigmas = shape, 2, (0.25, 0.5)
        self.threshold, self.seen, self.batches = threshold, [], []

    def logits(self, z, sigma, draws):
        self.seen.append(z.clone())
        self.batches.append(len(z))
        margin = z.flatten(1).sum(1) - self.threshold
        return torch.stack([-margin, margin], 1)

    def nfe(self, sigma):
        return {}

    @classmethod
    def tiny(cls, input_shape, num_classes):
        return cls()


class Dice(Linear):
    """Ignores the image; its class is its own draw."""

    randomized = True

    def logits(self, z, sigma, draws):
        first = draws.randn(len(z), 2)
        return first + draws.rand(len(z), 2)


def images(count=5, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def votes(defense, x, *, ids=None, rows=64, n=250, n0=30, sigma=0.5, block=100, seed=0):
    found = gaussian.observe(
        defense, x, ids or range(len(x)), sigma=sigma, n0=n0, n=n, seed=seed, block=block, batch_rows=rows
    )
    return [seen.evidence for seen in found]


@pytest.mark.parametrize("kind", [Linear, Dice])
@pytest.mark.parametrize("rows", [1, 7, 64, 100, 256, 4096])
def test_counts_do_not_depend_on_the_batch(kind, rows):
    x = images()
    assert votes(kind(), x, rows=rows) == votes(kind(), x, rows=99)


@pytest.mark.parametrize("kind", [Linear, Dice])
def test_counts_do_not_depend_on_the_order_or_the_company(kind):
    x, ids = images(), [3, "b", 5, 700, 9]
    forward = votes(kind(), x, ids=ids)
    assert votes(kind(), x.flip(0), ids=ids[::-1]) == forward[::-1]
    assert votes(kind(), x[2:3], ids=ids[2:3]) == forward[2:3]
    assert len({str(evidence.to_json()) for evidence in forward}) == 5


def test_noise_is_the_stream_of_the_block_to_the_last_bit():
    for rows in (64, 4096):
        defense, x = Linear(), images(2)
        votes(defense, x, ids=["a", "b"], rows=rows, n0=10, n=150, sigma=0.25, seed=3)
        seen = torch.cat(defense.seen)
        assert {len(z) for z in defense.seen} == {min(rows, 320)}  # constant batch shape: the tail is padded
        want = []
        for row, name in enumerate("ab"):
            for stage, sizes in (("select", [10]), ("estimate", [100, 50])):
                for block, size in enumerate(sizes):
                    noise = normals([Span(block_key(3, name, 0.25, stage, block), 0, size)], INPUT_NOISE, 64)
                    want.append(torch.from_numpy(noise * np.float32(0.25)).reshape(size, 1, 8, 8) + x[row])
        assert torch.equal(seen[:320], torch.cat(want))


def test_more_draws_extend_the_same_stream():
    x = images(1)
    for block in (40, 100):
        few, many = Linear(), Linear()
        votes(few, x, n=130, n0=40, rows=170, block=block)
        votes(many, x, n=260, n0=40, rows=300, block=block)
        assert torch.equal(few.seen[0], many.seen[0][:170])


def test_votes_are_the_argmax_of_what_the_defense_answers():
    defense, x = Linear(), images(3)
    answers = list(count_votes(Forward(defense, 0.5, 50), x, [Request(i, i, "estimate", 120) for i in range(3)]))
    ones = [int((z.flatten(1).sum(1) > 32).sum()) for z in torch.cat(defense.seen)[:360].split(120)]
    assert [answer.counts.get(1, 0) for answer in answers] == ones
    assert all(sum(answer.counts.values()) == 120 and answer.nonfinite == 0 for answer in answers)


def test_linear_classifier_is_certified_below_its_margin():
    """The smoothed classifier's true radius is the distance of the image to the hyperplane."""
    x = images(40)
    defense = Linear(threshold=30.0)
    margin = (x.flatten(1).sum(1) - 30.0).abs() / 8
    found = [stats.decide("gaussian", evidence, 0.001) for evidence in votes(defense, x, n=2000, n0=100, rows=1024)]
    radii = np.array([certificate.radius for certificate in found])
    # 40 certificates at level 0.001 each
    assert (radii > margin.numpy()).sum() <= reference.binom.ppf(0.999, 40, 0.001)
    clear = (margin > 0.2).numpy() & (margin < 1.0).numpy()
    assert clear.sum() >= 10
    # the expected shortfall is sigma * 3.1 * sqrt(pq / n) / density <= 0.05; twice that is never exceeded here
    assert np.all(radii[clear] > margin.numpy()[clear] - 0.1)


def test_nonfinite_logits_are_an_error_of_that_image():
    class Bad(Linear):
        def logits(self, z, sigma, draws):
            scores = super().logits(z, sigma, draws)
            return scores.where(z[:, :1, 0, 0] < 0.9, torch.nan)  # the noise decides: some draws only

    x = images(3)
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = 0.0, 0.5, 0.0
    seen = list(gaussian.observe(Bad(), x, [0, 1, 2], sigma=0.25, n0=10, n=100, batch_rows=32))
    assert [found.evidence is None for found in seen] == [False, True, False]
    assert "gave non-finite logits" in seen[1].error

    class AllBad(Linear):
        def logits(self, z, sigma, draws):
            return super().logits(z, sigma, draws).where(z.mean((1, 2, 3), keepdim=False)[:, None] < 0.25, torch.nan)

    x = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.zeros(1, 8, 8)])
    seen = list(gaussian.observe(AllBad(), x, [0, 1, 2], sigma=0.25, n0=10, n=100, batch_rows=32))
    assert [found.error for found in seen] == [None, "110 of 110 draws gave non-finite logits", None]
    assert seen[0].evidence.stages[0].votes == {0: 100}


@pytest.mark.parametrize("kind", [Linear, Dice])
def test_out_of_memory_halves_the_batch_and_changes_nothing(kind):
    class Small(kind):
        def logits(self, z, sigma, draws):
            if len(z) > 40:
                raise torch.OutOfMemoryError("out of memory")
            return super().logits(z, sigma, draws)

    x = images(3)
    assert votes(Small(), x, rows=256) == votes(kind(), x, rows=256)
    forward = Forward(Small(), 0.5, 256)
    list(count_votes(forward, x, [Request(0, 0, "estimate", 300)]))
    assert forward.rows == 32
    assert find_batch_rows(Small(), 0.5) == 32

    class Hopeless(kind):
        def logits(self, z, sigma, draws):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        votes(Hopeless(), x)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a | {"sigma": 0.3}, r"Linear declares sigmas \(0.25, 0.5\); got 0.3"),
        (lambda a: a | {"sigma": 0.0}, "needs sigma > 0"),
        (lambda a: a | {"x": a["x"] * 2 - 1}, r"expected pixels in \[0, 1\], got \[-"),
        (lambda a: a | {"x": a["x"] * float("nan")}, r"expected pixels in \[0, 1\], got \[nan"),
        (lambda a: a | {"x": a["x"][0]}, r"expects images of shape \(M, 1, 8, 8\), got \(1, 8, 8\)"),
        (lambda a: a | {"x": a["x"].repeat(1, 3, 1, 1)}, r"got \(2, 3, 8, 8\)"),
    ],
)
def test_bad_input(change, message):
    args = change({"x": images(2), "sigma": 0.5})
    with pytest.raises(DrbenchError, match=message):
        votes(Linear(), args["x"], sigma=args["sigma"])


def test_wrong_number_of_classes():
    class Wide(Linear):
        def logits(self, z, sigma, draws):
            return torch.zeros(len(z), 3)

    with pytest.raises(
        DrbenchError, match=r"expected a tensor of shape \(64, 2\) \(rows, num_classes\), got \(64, 3\)"
    ):
        votes(Wide(), images(2))
