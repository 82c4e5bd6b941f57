"""The search for a batch size, on networks whose speed is made up."""

import pytest
import torch

from drbench.certifiers import batch_size


@pytest.fixture
def search(monkeypatch):
    """Search with a given seconds(rows) instead of a clock; returns (found, sizes tried)."""

    def run(seconds, most=10**6):
        tried = []

        def measure(defense, sigma, rows):
            tried.append(rows)
            return rows / seconds(rows)

        monkeypatch.setattr(batch_size, "_rows_per_second", measure)
        found = batch_size._search(None, 0.5, most)
        return found, list(dict.fromkeys(tried))

    return run


def test_smallest_of_the_best_sizes(search):
    found, tried = search(lambda rows: 0.01 + rows / 1e5)  # launch cost and throughput: gains fade slowly
    assert found == 8192 and tried[-1] == 8192
    found, tried = search(lambda rows: max(0.001, rows / 1e5))  # gains end at 100 rows
    assert found == 128 and tried == [32, 64, 128, 256, 512, 1024]


def test_a_plateau_ends_the_search(search):
    assert search(lambda rows: rows / 5000) == (32, [32, 64, 128, 256])


def test_a_slow_network_is_not_asked_for_large_batches(search):
    found, tried = search(lambda rows: 1.5 + rows / 1000)
    assert tried == [32, 64, 128, 256, 512] and found == 512  # the call with 512 rows took 2.01 s


def test_no_more_than_the_run_needs(search):
    assert search(lambda rows: 1e-3, most=100)[1] == [32, 64]
    assert search(lambda rows: 1e-3, most=3)[1] == [32]


@pytest.mark.parametrize(("most", "limit"), [(1_000, 1), (10_000, 4), (100_000, 40)])
def test_the_search_is_short_beside_the_work(search, monkeypatch, most, limit):
    """100 rows a second whatever the batch, warm-up included; and a clock that only the measurements move."""
    clock = [0.0]

    def seconds(rows):
        clock[0] += max(0.1, 2 * rows / 100)
        return rows / 100 * (1 - rows / 1e5)

    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock[0])
    assert len(search(seconds, most)[1]) == {1: 1, 4: 2, 40: 4}[limit] and clock[0] <= limit


def test_the_best_sizes_are_timed_more_than_once(monkeypatch):
    calls = []

    def measure(defense, sigma, rows):
        calls.append(rows)
        lucky = rows == 64 and calls.count(64) == 1  # one measurement too good to be true
        return {32: 10_000, 64: 20_000, 128: 26_000}.get(rows, 25_000) * (1.5 if lucky else 1)

    monkeypatch.setattr(batch_size, "_rows_per_second", measure)
    assert batch_size._search(None, 0.5, 512) == 128


def test_memory_ends_the_search(search):
    def seconds(rows):
        if rows > 100:
            raise torch.OutOfMemoryError("out of memory")
        return 0.1

    assert search(seconds) == (64, [32, 64, 128])
