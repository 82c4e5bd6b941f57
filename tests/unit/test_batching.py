"""The batch size backs off when memory runs out."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from drbench.api import Draws, DrbenchError
from drbench.certifiers import batching


def test_workers_that_fail_together_halve_the_batch_once():
    class Small(torch.nn.Module):
        device, num_classes = torch.device("cpu"), 2

        def logits(self, z, sigma, draws):
            if len(z) > 500:
                together.wait(timeout=10)
                raise torch.OutOfMemoryError("out of memory")
            return z.flatten(1)[:, :2]

    together, told = threading.Barrier(4), []
    forward = batching.Forward(Small(), 0.5, 1000, told.append)
    z = torch.rand(1000, 1, 2, 2)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: forward(z, Draws.seeded(0, 1000)), range(4)))
    assert told == [500] and forward.rows == 500
    assert all(torch.equal(answer, z.flatten(1)[:, :2]) for answer in answers)


def test_both_texts_of_a_full_host_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert batching.is_out_of_memory(caught.value)
    assert not batching.is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(("answer", "name"), [(None, "NoneType"), ((torch.zeros(4, 2), 1), "tuple")])
def test_an_answer_that_is_no_tensor_is_named(answer, name):
    class Answers(torch.nn.Module):
        device, num_classes = torch.device("cpu"), 2

        def logits(self, z, sigma, draws):
            return answer

    with pytest.raises(DrbenchError, match=rf"Answers.logits: expected a tensor .*, got {name}"):
        batching.Forward(Answers(), 0.5, 4)(torch.rand(4, 1, 2, 2), Draws.seeded(0, 4))
