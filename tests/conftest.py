"""Shared settings of the test suite."""

import torch

# Two processes with two threads each on two cores are many times slower than with one each; and one thread makes
# the speed of the suite the same on every machine.
torch.set_num_threads(1)
