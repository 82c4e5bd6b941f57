"""Attacks in lockstep: the answers of each attack alone, from fewer calls; errors end all of them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from drbench.attacks.lockstep import Lockstep, Query
from drbench.attacks.losses import Loss
from drbench.attacks.oracle import Keys
from drbench.attacks.views import View
from drbench.draws import INPUT_NOISE, Span, normals

MARGIN, CPU = Loss("margin"), torch.device("cpu")


class Noisy(View):
    """Logits are sums of pixels of the noisy image, each row by itself."""

    classes, device, randomized, faithful = 3, CPU, True, True

    def __init__(self):
        self.calls = []

    def logits(self, x, spans):
        noise = torch.from_numpy(normals(spans, INPUT_NOISE, x[0].numel())).view(x.shape)
        self.calls.append(len(x))
        return ((x + noise) ** 2).flatten(1).view(len(x), 3, -1).sum(2)


def climb(view, images, steps, draws, loss=MARGIN, target=None, gradient=True):
    """Some steps of gradient ascent; losses and failures of each."""
    ids = tuple(f"{number}/{steps}/{draws}/{loss.name}" for number in range(images))
    x, y = torch.linspace(0, 1, 12 * images).view(images, 3, 2, 2), torch.arange(images) % 3
    aim = None if target is None else torch.full((images,), target)
    found = []
    for step in range(steps):
        spans = Keys(0, ids, "test").spans(step, draws)
        answer = view.answer(x, y, spans, draws, loss, aim, gradient)
        x = x + 0.1 * answer.gradient if gradient else x + 0.1
        found += [answer.loss, answer.failures, x]
    return found


SEVERAL = [
    {"images": 2, "steps": 5, "draws": 8},
    {"images": 3, "steps": 2, "draws": 8},
    {"images": 2, "steps": 3, "draws": 16},
    {"images": 1, "steps": 4, "draws": 8, "loss": Loss("ce")},
    {"images": 2, "steps": 4, "draws": 8, "target": 2},
    {"images": 2, "steps": 6, "draws": 8, "target": 1},
    {"images": 4, "steps": 3, "draws": 8, "gradient": False},
    {"images": 2, "steps": 0, "draws": 8},
]


def played(jobs, workers=2, rows=256):
    with ThreadPoolExecutor(workers) as pool:
        lockstep = Lockstep(pool, workers, rows)
        view = Noisy()
        shared = lockstep.shared("noisy", view)
        return lockstep.play([lambda job=job: job(shared) for job in jobs], CPU), view.calls, lockstep


@pytest.mark.parametrize("workers, rows", [(1, 256), (2, 256), (2, 40), (3, 8)])
def test_each_attack_gets_the_answers_that_it_gets_alone(workers, rows):
    jobs = [lambda view, settings=settings: climb(view, **settings) for settings in SEVERAL]
    found, calls, _ = played(jobs, workers, rows)
    for settings, own in zip(SEVERAL, found, strict=True):
        alone = climb(Noisy(), **settings)
        assert len(alone) == len(own) and all(map(torch.equal, alone, own))
    assert max(calls) <= max(rows, 32)  # less is padded


def test_queries_of_one_kind_share_calls_that_fill_the_workers():
    same = [lambda view: climb(view, 4, 3, 8)] * 4
    for workers, calls in ((1, [128] * 3), (2, [64] * 6), (8, [16] * 24)):
        assert played(same, workers)[1] == calls
    assert played(same, 1, rows=64)[1] == [64] * 6
    other = [lambda view: climb(view, 4, 3, 8), lambda view: climb(view, 4, 3, 16)]
    assert sorted(played(other, 1)[1]) == [32] * 3 + [64] * 3


class Broken(Noisy):
    def logits(self, x, spans):
        raise RuntimeError("no memory")


@pytest.mark.parametrize("pixels, message", [(1, "no memory"), (2, "[Ss]izes of tensors")])
def test_nobody_waits_for_an_answer_that_failed(pixels, message):
    """The view fails, or the call before it: images of two sizes cannot be asked as one."""
    with ThreadPoolExecutor(2) as pool:
        lockstep = Lockstep(pool, 2, 256)
        broken, fine = lockstep.shared("broken", Broken()), lockstep.shared("fine", Noisy())

        def asked(size):
            return broken.answer(torch.ones(1, 3, size, 1), torch.zeros(1).long(), [Span(0, 0, 8)], 8, MARGIN)

        def endless():
            while True:
                climb(fine, 1, 1, 8)

        with pytest.raises(RuntimeError, match=message):
            lockstep.play([lambda: asked(1), lambda: asked(pixels), endless], CPU)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_attack_that_fails_by_itself_ends_the_others_with_its_error(place):
    with ThreadPoolExecutor(2) as pool:
        lockstep = Lockstep(pool, 2, 256)
        fine = lockstep.shared("fine", Noisy())

        def endless():
            while True:
                climb(fine, 1, 1, 8)

        jobs = [endless, endless]
        jobs.insert(place, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lockstep.play(jobs, CPU)


def test_nobody_waits_for_an_attack_that_never_began(monkeypatch):
    """One that no thread could be found for; the first has asked by then."""
    with ThreadPoolExecutor(2) as pool:
        lockstep = Lockstep(pool, 2, 256)
        fine, asked, submit = lockstep.shared("fine", Noisy()), Event(), ThreadPoolExecutor.submit

        def asking():
            asked.set()
            return climb(fine, 1, 1, 8)

        def few(self, call, *job):
            if job and job[0] == 1:
                asked.wait(10)
                raise RuntimeError("can't start new thread")
            return submit(self, call, *job)

        monkeypatch.setattr(ThreadPoolExecutor, "submit", few)
        with pytest.raises(RuntimeError, match="new thread"):
            lockstep.play([asking, asking, asking], CPU)


def test_outside_of_a_game_answers_come_at_once_and_a_name_means_one_view():
    view = Noisy()
    with ThreadPoolExecutor(1) as pool:
        lockstep = Lockstep(pool, 1, 256)
        shared, again = lockstep.shared("noisy", view), lockstep.shared("noisy", Noisy())
        assert all(map(torch.equal, climb(shared, 2, 2, 8), climb(again, 2, 2, 8))) and len(view.calls) == 4
        assert lockstep.play([], CPU) == []
        assert (shared.classes, shared.randomized, shared.faithful) == (3, True, True)
        assert Query(view, *[torch.ones(1)] * 2, [], 8, MARGIN, None, True).kind == (view, 8, MARGIN, True, True)
