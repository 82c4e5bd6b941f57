"""Freed memory stays with the process: counted in page faults of a child process."""

import platform
import subprocess
import sys

import pytest

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
