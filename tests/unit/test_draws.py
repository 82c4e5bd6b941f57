"""Random streams: identity of blocks, prefixes, pieces; and their distribution."""

import numpy as np
import pytest
import torch
from scipy import stats as reference

from drbench.draws import Draws, Span, block_key, normals


def test_every_part_of_the_key_matters():
    base = (0, 17, 0.25, "select", 3)
    others = [
        (1, 17, 0.25, "select", 3),
        (0, 18, 0.25, "select", 3),
        (0, 17, 0.5, "select", 3),
        (0, 17, 0.25, "estimate", 3),
        (0, 17, 0.25, "select", 4),
    ]
    keys = {block_key(*parts) for parts in [base, *others]}
    assert len(keys) == 6
    assert block_key(0, "1", 0.25, "select", 23) != block_key(0, "12", 0.25, "select", 3)
    assert block_key(*base) == 36386920500503659510125445429797719784  # a changed key would change every result


@pytest.mark.parametrize("size", [1, 3, 64, 75, 2_000])
def test_rows_of_a_block_do_not_depend_on_how_it_is_cut(size):
    key = block_key(0, 1, 0.5, "estimate", 0)
    whole = normals([Span(key, 0, 100)], 0, size)
    assert whole.shape == (100, size)
    for start, stop in ((0, 1), (1, 37), (37, 100), (99, 100), (50, 50)):
        assert np.array_equal(whole[start:stop], normals([Span(key, start, stop)], 0, size))
    assert np.array_equal(normals([Span(key, 7, 9), Span(key, 3, 4)], 0, size), whole[[7, 8, 3]])


def test_normals_are_box_muller_of_the_philox_words():
    key = block_key(0, 1, 0.5, "estimate", 0)
    words = np.random.Philox(key=key, counter=[0, 0, 0, 3]).random_raw(500)
    low, high = words & np.uint64(2**32 - 1), words >> np.uint64(32)
    radius = np.sqrt(-2 * np.log((high.astype(float) + 0.5) / 2**32))
    angle = 2 * np.pi * low.astype(float) / 2**32
    expected = np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).ravel()
    assert np.allclose(normals([Span(key, 0, 10)], 3, 100).ravel(), expected, rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize(
    "read",
    [
        lambda draws, rows: draws.randn(rows, 3, 5),
        lambda draws, rows: draws.rand(rows, 7),
        lambda draws, rows: draws.randint(0, 1000, (rows, 3)),
    ],
)
def test_rows_do_not_depend_on_the_batch(read):
    a, b = (block_key(0, image, 0.25, "select", 0) for image in (1, 2))
    whole = Draws([Span(a, 0, 100), Span(b, 0, 60)])
    first, second = read(whole, 160), read(whole, 160)
    assert not torch.equal(first, second)
    cut = Draws([Span(a, 90, 100), Span(b, 0, 30)])
    assert torch.equal(read(cut, 40), first[90:130])
    assert torch.equal(read(cut, 40), second[90:130])
    part = whole[95:120]
    assert part.rows == 25 and torch.equal(read(part, 25), first[95:120])
    alone = whole[159:160]
    assert torch.equal(read(alone, 1), first[159:])


def test_own_draws_are_not_the_input_noise():
    key = block_key(0, 1, 0.25, "select", 0)
    own = Draws([Span(key, 0, 10)]).randn(10, 64).numpy()
    assert abs(np.corrcoef(own.ravel(), normals([Span(key, 0, 10)], 0, 64).ravel())[0, 1]) < 5 / np.sqrt(640)


def test_first_dimension_must_be_the_rows():
    with pytest.raises(ValueError, match="first dimension must be the 4 rows"):
        Draws.seeded(0, 4).randn(5, 3)
    with pytest.raises(ValueError, match="contiguous"):
        Draws.seeded(0, 4)[::2]


def test_noise_is_normal():
    values = np.concatenate(
        [
            normals([Span(block_key(0, image, 0.5, "estimate", block), 0, 10)], 0, 100).ravel()
            for image in range(10)
            for block in range(10)
        ]
    )
    # 100,000 draws from 100 streams: a fixed sample; 1e-3 would be rejected once in a thousand choices of keys
    assert reference.kstest(values, "norm").pvalue > 1e-3
    assert abs(reference.kurtosis(values)) < 5 * np.sqrt(24 / len(values))
    blocks = values.reshape(100, 1000)
    between = np.corrcoef(blocks)[np.triu_indices(100, 1)]
    assert np.abs(between).max() < 5.5 / np.sqrt(1000)  # 4,950 pairs


def test_global_generators_are_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Draws.seeded(0, 8).randn(8, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
