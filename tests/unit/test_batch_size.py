"""The search for a batch size, on networks whose speed is made up."""

import pytest

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


def test_begins_where_rows_outweigh_the_launch(search):
    """The next size gains 2 % in both, which is not worth its memory."""
    assert search(lambda rows: 0.01 + rows / 4000) == (1024, [1, 32, 512, 1024, 2048])  # 9 launches: 369 rows
    assert search(lambda rows: 0.0001 + rows / 1e5) == (256, [1, 32, 128, 256, 512])


def test_climbs_as_long_as_it_pays(search):
    """A network that is slow in small batches beyond what its launch explains: from 128 on, a doubling gains 7 %."""
    found, tried = search(lambda rows: (0.0001 + rows / 1e5) * max(rows, 128) ** -0.1, most=4096)
    assert found == 4096 and tried == [1, 32, 128, 256, 512, 1024, 2048, 4096]


def test_a_network_without_launch_costs_takes_the_smallest(search):
    assert search(lambda rows: rows / 5000) == (32, [1, 32, 64])


def test_a_cache_that_overflows_is_found(search):
    """The model says 512; beyond 300 rows each costs twice as much."""
    assert search(lambda rows: 0.01 + rows / 4000 + max(0, rows - 300) / 2000)[0] == 256


def test_a_slow_network_is_not_asked_for_large_batches(search):
    found, tried = search(lambda rows: 0.1 + rows / 500)
    assert tried == [1, 32, 256, 512] and found == 512  # a call with 1,024 rows would take 2.1 s
    assert search(lambda rows: 2.1 * rows) == (1, [1])


def test_a_search_without_time_returns_the_model(search, monkeypatch):
    """The clock only moves: nothing is measured but what the model needs."""
    monkeypatch.setattr(batch_size.time, "perf_counter", iter(range(1000)).__next__)
    assert search(lambda rows: 0.01 + rows / 4000, most=4000) == (512, [1, 32])


def test_no_more_than_the_run_needs(search):
    assert search(lambda rows: 1e-3, most=100)[1] == [1, 32, 64]
    assert search(lambda rows: 1e-3, most=3)[1] == [1, 32]


@pytest.mark.parametrize(("most", "limit"), [(1_000, 1), (10_000, 4), (100_000, 40)])
def test_the_search_is_short_beside_the_work(search, monkeypatch, most, limit):
    """100 rows a second whatever the batch, warm-up included; and a clock that only the measurements move."""
    clock = [0.0]

    def seconds(rows):
        clock[0] += max(0.1, 2 * rows / 100)
        return rows / 100 * (1 - rows / 1e5)

    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock[0])
    assert len(search(seconds, most)[1]) == {1: 2, 4: 3, 40: 3}[limit] and clock[0] <= limit


def test_every_size_is_timed_more_than_once(monkeypatch):
    calls = []

    def measure(defense, sigma, rows):
        calls.append(rows)
        lucky = rows == 64 and calls.count(64) == 1  # one measurement too good to be true
        return {1: 2_000, 32: 12_800, 64: 20_000, 128: 26_000}.get(rows, 25_000) * (1.5 if lucky else 1)

    monkeypatch.setattr(batch_size, "_rows_per_second", measure)
    assert batch_size._search(None, 0.5, 512) == 128 and calls.count(64) >= batch_size.TURNS


def test_memory_ends_the_search(monkeypatch):
    """Half as many rows until they fit, and then no more than those."""

    def measured(fits):
        tried = []

        def measure(defense, sigma, rows):
            tried.append(rows)
            return 0.0 if rows > fits else rows / (0.01 + rows / 4000)

        monkeypatch.setattr(batch_size, "_rows_per_second", measure)
        return batch_size._search(None, 0.5, 10**6), list(dict.fromkeys(tried))

    assert measured(100) == (64, [1, 32, 512, 256, 128, 64])
    assert measured(5) == (1, [1, 32]) and measured(0) == (1, [1])
