"""Freed memory stays with the process, counted in page faults of a child; networks built before their weights."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from drbench.memory import parameters_elsewhere, without_values
from methods.undefended.defense import Undefended

COUNT = """
import resource, torch
from drbench.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [torch.ones(2**20) for _ in range(4)]  # as the layers of a network do
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.ones(2**10)
if {keep}:
    keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
def test_a_freed_block_is_used_again():
    kept = int(subprocess.check_output([sys.executable, "-c", COUNT.format(keep=True)]))
    assert kept < 5000  # of 50 x 4 blocks of 1,024 pages each


class Derived(nn.Module):
    """Computes with its parameters while it is made: at once, or into a buffer that is not stored."""

    def __init__(self, at_once):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        if at_once:
            self.scale = float(self.linear.weight.detach().norm())
        self.register_buffer("norm", self.linear.weight.detach().norm(), persistent=False)


def test_parameters_have_shapes_only():
    with parameters_elsewhere():
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        tied = nn.Linear(3, 3)
        tied.again = tied.weight
    assert all(one.is_meta and one.requires_grad for one in made.parameters())
    assert made[1].running_var.tolist() == [1, 1, 1, 1] and tied.again is tied.weight
    assert not nn.Linear(2, 2).weight.is_meta  # and it is over


@pytest.mark.parametrize("at_once", [True, False])
def test_modules_that_need_values_have_them(at_once):
    made = without_values(lambda: Derived(at_once))
    assert not made.linear.weight.is_meta and made.norm == made.linear.weight.norm() > 0
    assert without_values(lambda: nn.Linear(2, 2)).weight.is_meta
    with pytest.raises(ValueError, match="mine"):
        without_values(_failing)


def _failing():
    raise ValueError("mine")


def test_a_defense_takes_the_tensors_as_they_are():
    """Not copied, of the network's own type; frozen parameters stay frozen."""
    made = Undefended(width=2)
    state = made.state_dict()
    half = {key: value.half() for key, value in state.items()}
    loaded = Undefended.from_checkpoint(state, width=2)
    for key, value in loaded.state_dict().items():
        assert value.data_ptr() == state[key].data_ptr()
    again = Undefended.from_checkpoint(half, width=2)
    assert all(value.dtype == torch.float32 for value in again.parameters())
    assert all(value.requires_grad for value in again.parameters())
